//! The client crate against the real broker: what it promises, on every number of cores.

use std::time::Duration;

use ringpost_client::{
    Binding, ByteSize, Client, Ensured, ErrorKind, ExchangeConfig, Headers, Level, Message, Policy,
    QueueConfig, Removed,
};

use crate::{Setup, on_cores};

on_cores! {
    publishes_and_consumes
    gets_and_settles
    many_tasks_share_a_client
    a_large_message
    the_routing_example
    an_exclusive_queue
    a_policy
}

/// Runs a conversation with the broker, in a tenant of its own.
pub fn talk<F: Future<Output = ringpost_client::Result<()>>>(
    setup: &Setup,
    conversation: impl FnOnce(Client) -> F,
) {
    // Makes the tenant.
    setup.wire().bye();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = setup.broker.addr().to_string();
    let outcome = runtime.block_on(async {
        let client = Client::builder(address)
            .tenant(setup.tenant.clone())
            .connect()
            .await?;
        tokio::time::timeout(crate::wire::PATIENCE, conversation(client))
            .await
            .expect("it is over in time")
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// A client consumes from its exclusive queue, and nobody else does.
fn an_exclusive_queue(setup: &Setup) {
    let (address, tenant) = (setup.broker.addr().to_string(), setup.tenant.clone());
    talk(setup, |client| async move {
        let config = QueueConfig::volatile().exclusive();
        client.ensure_queue("replies", config).await?;
        let other = Client::builder(address).tenant(tenant).connect().await?;
        let exists = other.queue_exists("replies").await;
        let error = exists.expect_err("it is another client's");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let opened = other.consumer("replies").credit(1).subscribe().await;
        let error = opened.expect_err("it is another client's");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let producer = other.producer("").level(Level::Volatile).build().await?;
        producer.send(Message::new("replies", "hello")).await?;
        let mut consumer = client.consumer("replies").credit(10).subscribe().await?;
        let batch = consumer.next_batch().await?.expect("a message");
        assert_eq!(batch.iter().count(), 1);
        consumer.ack(&batch).await?;
        client.close().await?;
        while other
            .queues()
            .await?
            .iter()
            .any(|queue| queue.name == "replies")
        {
            tokio::task::yield_now().await;
        }
        other.close().await
    });
}

fn a_policy(setup: &Setup) {
    talk(setup, |client| async move {
        client
            .ensure_queue("ticks.eu", QueueConfig::durable())
            .await?;
        let policy = Policy::queues("ticks", r"^ticks\.")
            .messages_max(7)
            .expires(Duration::from_secs(3_600))
            .priority(-3);
        assert_eq!(client.set_policy(&policy).await?, Ensured::Created);
        assert_eq!(client.set_policy(&policy).await?, Ensured::AlreadyExists);
        assert_eq!(client.policies().await?, [policy]);
        let described = client.describe_queue("ticks.eu").await?;
        let options = described.options.iter();
        let options: Vec<_> = options
            .map(|option| {
                (
                    option.name.as_str(),
                    option.value.to_string(),
                    option.policy.as_deref(),
                )
            })
            .collect();
        let by = Some("ticks");
        assert_eq!(
            options,
            [
                ("x-max-length", "7".to_owned(), by),
                ("x-expires", "3600000".to_owned(), by)
            ]
        );
        assert_eq!(client.describe_queues().await?, [described]);
        let gone = client.delete_policy("ticks").await?;
        assert_eq!(gone, Removed::Removed { messages: 0 });
        assert_eq!(client.delete_policy("ticks").await?, Removed::Absent);
        let described = client.describe_queue("ticks.eu").await?;
        assert_eq!(described.options, []);
        client.close().await
    });
}

fn publishes_and_consumes(setup: &Setup) {
    talk(setup, |client| async move {
        client
            .ensure_exchange("shop", ExchangeConfig::topic())
            .await?;
        for queue in ["all", "paid"] {
            client.ensure_queue(queue, QueueConfig::durable()).await?;
        }
        client.bind("all", "shop", "#").await?;
        client.bind("paid", "shop", "order.*.paid").await?;
        let producer = client.producer("shop").mandatory().build().await?;
        let mut pending = Vec::new();
        for number in 0..500 {
            let state = if number % 5 == 0 { "paid" } else { "new" };
            let key = format!("order.{number}.{state}");
            pending.push(
                producer
                    .enqueue(Message::new(key, number.to_string()))
                    .await?,
            );
        }
        for one in pending {
            assert_eq!(one.await?.level, Level::Durable);
        }
        for (queue, count) in [("all", 500), ("paid", 100)] {
            let mut consumer = client.consumer(queue).credit(64).subscribe().await?;
            let mut seen = 0;
            while seen < count {
                let batch = consumer.next_batch().await?.expect("more is to come");
                for delivery in &batch {
                    let step = 500 / count;
                    assert_eq!(delivery.payload(), (seen * step).to_string().as_bytes());
                    seen += 1;
                }
                consumer.ack(&batch).await?;
            }
        }
        producer.close().await?;
        client.close().await
    });
}

fn gets_and_settles(setup: &Setup) {
    talk(setup, |client| async move {
        client.ensure_queue("q", QueueConfig::durable()).await?;
        let producer = client.producer("").build().await?;
        for number in 0..10 {
            producer.send(Message::new("q", number.to_string())).await?;
        }
        let mut consumer = client.consumer("q").pull().await?;
        let mut seen = 0;
        while seen < 10 {
            for batch in consumer.get(4, Duration::from_secs(30)).await? {
                seen += batch.len();
                consumer.ack_durable(&batch).await?;
            }
        }
        assert!(consumer.get(1, Duration::ZERO).await?.is_empty());
        client.close().await
    });
}

fn many_tasks_share_a_client(setup: &Setup) {
    talk(setup, |client| async move {
        let tasks: Vec<_> = (0..12)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    let queue = format!("q{number}");
                    client.ensure_queue(&queue, QueueConfig::durable()).await?;
                    let producer = client.producer("").near(&queue).build().await?;
                    let mut consumer = client.consumer(&queue).credit(10).subscribe().await?;
                    for round in 0..50 {
                        producer
                            .send(Message::new(queue.clone(), round.to_string()))
                            .await?;
                        let batch = consumer.next_batch().await?.expect("more is to come");
                        consumer.ack(&batch).await?;
                    }
                    producer.close().await
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap()?;
        }
        client.close().await
    });
}

fn a_large_message(setup: &Setup) {
    talk(setup, |client| async move {
        client.ensure_queue("q", QueueConfig::durable()).await?;
        let producer = client
            .producer("")
            .in_flight_max(ByteSize::mib(32))
            .build()
            .await?;
        let payload = crate::wire::filler(1, 5 << 20);
        producer.send(Message::new("q", payload.clone())).await?;
        let mut consumer = client.consumer("q").credit(10).subscribe().await?;
        let batch = consumer.next_batch().await?.expect("one is to come");
        for delivery in &batch {
            assert!(delivery.payload() == payload);
        }
        consumer.ack(&batch).await?;
        client.close().await
    });
}

/// The example of docs/concepts/routing.md, word by word.
#[rustfmt::skip]
fn the_routing_example(setup: &Setup) {
    talk(setup, |client| async move {
        // The example begins.
        client.ensure_exchange("sales", ExchangeConfig::filter().alternate("rest")).await?;
        client.ensure_exchange("workers", ExchangeConfig::consistent_hash().hash_header("customer")).await?;
        client.ensure_exchange("rest", ExchangeConfig::fanout().internal()).await?;
        for queue in ["worker-1", "worker-2", "audit", "small"] {
            client.ensure_queue(queue, QueueConfig::durable()).await?;
        }
        let large = Binding::to_exchange("workers", "sales").filter("total > 100 AND country = 'de'");
        client.ensure_binding(&large).await?;
        let audited = Binding::new("audit", "sales").filter_body("body.suspicious OR body.vip");
        client.ensure_binding(&audited).await?;
        client.bind("worker-1", "workers", "1").await?;
        client.bind("worker-2", "workers", "3").await?;
        client.bind("small", "rest", "").await?;
        let producer = client.producer("sales").mandatory().build().await?;
        let headers = Headers::new().with("total", 250).with("country", "de").with("customer", "c-17");
        producer.send(Message::new("order", r#"{"vip": true}"#).headers(headers)).await?;
        producer.send(Message::new("order", "{}")).await?;
        // The example ends.
        let mut ready = Vec::new();
        for queue in ["worker-1", "worker-2", "audit", "small"] {
            ready.push(client.inspect_queue(queue).await?.ready);
        }
        assert_eq!((ready[0] + ready[1], ready[2], ready[3]), (1, 1, 1));
        producer.close().await?;
        client.close().await
    });
    let own = include_str!("client.rs").split("// The example begins.\n").nth(1).unwrap();
    let own = own.split("        // The example ends.").next().unwrap();
    let own: String = own.lines().map(|line| format!("{}\n", line.trim_start_matches("        "))).collect();
    let page = include_str!("../../docs/concepts/routing.md");
    let example = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(own, example);
}
