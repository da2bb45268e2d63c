//! The tour of `ringpost try --tour`: each stop shows a feature with real messages, and checks that what
//! arrives is what it says. Does not know how the broker is started.

use std::time::Duration;

use ringpost_client::{
    Binding, Client, ExchangeConfig, HeaderValue, Headers, Message, Policy, PullConsumer,
    QueueConfig, Result, Retry, Start,
};

use crate::cli::{Failure, output};

/// A message that does not come within this will not.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a message is delayed and how long one lives, where that is shown.
const SOON: Duration = Duration::from_millis(300);

/// Shows all stops, in order. Ends at the first that does not show what it should.
///
/// # Errors
/// What did not come, or that the broker is lost.
pub async fn show(client: &Client) -> std::result::Result<(), Failure> {
    let mut tour = Tour { client, stops: 0 };
    tour.topic().await?;
    tour.filter().await?;
    tour.fanout().await?;
    tour.hash().await?;
    tour.priorities().await?;
    tour.delay().await?;
    tour.retry_and_dead_letters().await?;
    tour.expiry().await?;
    tour.limits().await?;
    tour.stream().await?;
    tour.group().await?;
    tour.transactions().await?;
    tour.numbers().await?;
    let stops = output::counted(tour.stops, "stop");
    output::line(&format!(
        "\n{stops}, and every message was where it should be"
    ))
}

struct Tour<'a> {
    client: &'a Client,
    stops: u64,
}

impl Tour<'_> {
    fn stop(&mut self, title: &str, why: &str) -> std::result::Result<(), Failure> {
        self.stops += 1;
        output::line(&format!("\n{}. {title}\n   {why}", self.stops))
    }

    async fn queue(&self, name: &str, config: QueueConfig) -> Result<()> {
        self.client.ensure_queue(name, config).await.map(drop)
    }

    async fn exchange(&self, name: &str, config: ExchangeConfig) -> Result<()> {
        self.client.ensure_exchange(name, config).await.map(drop)
    }

    /// Publishes durably, one after the other.
    async fn publish(
        &self,
        exchange: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<()> {
        let producer = self.client.producer(exchange).mandatory().build().await?;
        for message in messages {
            producer.send(message).await?;
        }
        producer.close().await
    }

    /// Takes so many messages of a queue, and shows and checks them.
    async fn takes(&self, queue: &str, wanted: &[&str]) -> std::result::Result<(), Failure> {
        let mut consumer = self.client.consumer(queue).pull().await?;
        let got = take(&mut consumer, wanted.len()).await?;
        drop(consumer);
        shown(queue, &got, wanted)
    }

    async fn topic(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Topic exchange",
            "Keys are words between dots: * is one word, # any number of them.",
        )?;
        self.exchange("news", ExchangeConfig::topic()).await?;
        for (queue, pattern) in [("sport", "*.sport.#"), ("europe", "eu.#")] {
            self.queue(queue, QueueConfig::durable()).await?;
            self.client.bind(queue, "news", pattern).await?;
        }
        let keys = ["eu.sport.chess", "us.sport", "eu.weather"];
        self.publish("news", keys.map(|key| Message::new(key, key)))
            .await?;
        self.takes("sport", &keys[..2]).await?;
        self.takes("europe", &[keys[0], keys[2]]).await
    }

    async fn filter(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Filter exchange",
            "Conditions on headers, and on fields of JSON bodies where a binding asks for it.",
        )?;
        self.exchange("sales", ExchangeConfig::filter()).await?;
        for queue in ["large", "vip"] {
            self.queue(queue, QueueConfig::durable()).await?;
        }
        let large = Binding::new("large", "sales").filter("total > 100 AND country = 'de'");
        let vip = Binding::new("vip", "sales").filter_body("body.customer.vip");
        self.client.ensure_binding(&large).await?;
        self.client.ensure_binding(&vip).await?;
        let sale = |total: i64, body: &'static str| {
            let headers = Headers::new().with("total", total).with("country", "de");
            Message::new("", body).headers(headers)
        };
        let (plain, star) = ("{\"n\":1}", "{\"customer\":{\"vip\":true}}");
        self.publish("sales", [sale(250, plain), sale(300, star)])
            .await?;
        self.takes("large", &[plain, star]).await?;
        self.takes("vip", &[star]).await
    }

    async fn fanout(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Fanout exchange",
            "Every bound queue gets it; queues of one core share what is stored.",
        )?;
        self.exchange("all", ExchangeConfig::fanout()).await?;
        for queue in ["mail", "audit", "index"] {
            self.queue(queue, QueueConfig::durable()).await?;
            self.client.bind(queue, "all", "").await?;
        }
        self.publish("all", [Message::new("", "to everybody")])
            .await?;
        for queue in ["mail", "audit", "index"] {
            self.takes(queue, &["to everybody"]).await?;
        }
        Ok(())
    }

    async fn hash(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Consistent-hash exchange",
            "One of the bound queues gets it: the same for the same key, by weight.",
        )?;
        self.exchange("users", ExchangeConfig::consistent_hash())
            .await?;
        for (queue, weight) in [("users.0", "1"), ("users.1", "3")] {
            self.queue(queue, QueueConfig::durable()).await?;
            self.client.bind(queue, "users", weight).await?;
        }
        let keys = (0..400).map(|user| format!("user-{user}"));
        self.publish("users", keys.map(|key| Message::new(key.clone(), key)))
            .await?;
        let light = self.client.inspect_queue("users.0").await?.ready;
        let heavy = self.client.inspect_queue("users.1").await?.ready;
        output::line(&format!(
            "   400 users by weights 1 and 3: users.0 has {light}, users.1 has {heavy}"
        ))?;
        check(
            light + heavy == 400 && light > 0 && heavy > light,
            "the shares",
        )
    }

    async fn priorities(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Priorities",
            "The highest goes first, and none starves if asked.",
        )?;
        self.queue("tasks", QueueConfig::durable().priorities(9))
            .await?;
        let tasks = [(0, "some time"), (5, "soon"), (9, "now")];
        let tasks = tasks.map(|(priority, text)| Message::new("tasks", text).priority(priority));
        self.publish("", tasks).await?;
        self.takes("tasks", &["now", "soon", "some time"]).await
    }

    async fn delay(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Delayed messages",
            "On disk at once, delivered when they are due.",
        )?;
        self.queue("reminders", QueueConfig::durable()).await?;
        let messages = [
            Message::new("reminders", "in 300 ms").delay(SOON),
            Message::new("reminders", "at once"),
        ];
        self.publish("", messages).await?;
        let waiting = self.client.inspect_queue("reminders").await?;
        output::line(&format!(
            "   {} ready, {} waits",
            waiting.ready, waiting.delayed
        ))?;
        self.takes("reminders", &["at once", "in 300 ms"]).await
    }

    async fn retry_and_dead_letters(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Retries and dead letters",
            "What a consumer gives back waits a little longer each time; what comes back too often dies.",
        )?;
        self.queue("failed", QueueConfig::durable()).await?;
        let config = QueueConfig::durable()
            .retry(Retry::exponential(Duration::from_millis(50)))
            .delivery_limit(2)
            .dead_letter("")
            .dead_letter_routing_key("failed");
        self.queue("work", config).await?;
        self.publish("", [Message::new("work", "poison")]).await?;
        let mut consumer = self.client.consumer("work").pull().await?;
        for attempt in 1..=3 {
            let batches = consumer.get(1, PATIENCE).await?;
            check(!batches.is_empty(), "the next attempt")?;
            output::line(&format!("   attempt {attempt}: given back"))?;
            for batch in &batches {
                consumer.nack(batch).await?;
            }
        }
        drop(consumer);
        let mut consumer = self.client.consumer("failed").pull().await?;
        let batches = consumer.get(1, PATIENCE).await?;
        let dead = batches.iter().flatten().next();
        let why = dead.and_then(|letter| match letter.header("x-first-death-reason")? {
            HeaderValue::Text(why) => Some(why.to_string()),
            _ => None,
        });
        if let Some(why) = &why {
            output::line(&format!("   failed: it died of: {why}"))?;
        }
        for batch in &batches {
            consumer.ack_durable(batch).await?;
        }
        drop(consumer);
        check(why.is_some(), "the dead letter and its reason")
    }

    async fn expiry(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Expiry",
            "By the queue's time to live, or the message's own.",
        )?;
        let config = QueueConfig::durable()
            .dead_letter("")
            .dead_letter_routing_key("failed");
        self.queue("offers", config).await?;
        self.publish("", [Message::new("offers", "today only").ttl(SOON)])
            .await?;
        self.takes("failed", &["today only"]).await
    }

    async fn limits(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Limits and policies",
            "A policy bounds all queues of a pattern, also those that exist.",
        )?;
        self.queue("ticks.eu", QueueConfig::durable()).await?;
        let policy = Policy::queues("ticks", "ticks.*").messages_max(2);
        self.client.set_policy(&policy).await?;
        let producer = self.client.producer("").build().await?;
        for tick in ["one", "two"] {
            producer.send(Message::new("ticks.eu", tick)).await?;
        }
        let third = producer.send(Message::new("ticks.eu", "three")).await;
        match &third {
            Ok(_) => {}
            Err(error) => output::line(&format!("   the third is refused: {error}"))?,
        }
        // To close it would tell of the refusal once more.
        drop(producer);
        check(third.is_err(), "the refusal")?;
        self.takes("ticks.eu", &["one", "two"]).await
    }

    async fn stream(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Streams",
            "Messages stay, and any number of readers begin where they like.",
        )?;
        self.queue("events", QueueConfig::stream()).await?;
        let events = ["first", "second", "third"];
        self.publish("", events.map(|event| Message::new("events", event)))
            .await?;
        for (start, wanted) in [(Start::First, &events[..]), (Start::Last, &events[2..])] {
            let mut reader = self.client.stream("events").from(start).pull().await?;
            let got = take(&mut reader, wanted.len()).await?;
            drop(reader);
            shown("a reader", &got, wanted)?;
        }
        Ok(())
    }

    async fn group(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Groups of a stream",
            "The broker keeps where a group goes on.",
        )?;
        let group = || {
            self.client
                .stream("events")
                .from(Start::First)
                .group("billing")
        };
        let mut member = group().pull().await?;
        let got = take(&mut member, 2).await?;
        drop(member);
        shown("a member", &got, &["first", "second"])?;
        let mut next = group().pull().await?;
        let got = take(&mut next, 1).await?;
        drop(next);
        shown("the next one", &got, &["third"])
    }

    async fn transactions(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Transactions",
            "Taken from one queue and put into two others: all of it happens, or nothing.",
        )?;
        for queue in ["orders", "bills", "parcels"] {
            self.queue(queue, QueueConfig::durable()).await?;
        }
        self.publish("", [Message::new("orders", "a lamp")]).await?;
        let mut orders = self.client.consumer("orders").subscribe().await?;
        let mut transactor = self.client.transactor().beside(&orders).await?;
        // The first one fails halfway, and its order comes again.
        for targets in [["bills", "nowhere"], ["bills", "parcels"]] {
            let done = transactor
                .transform(&mut orders, async |batch, transaction| {
                    for order in batch {
                        for target in targets {
                            let message = Message::new(target, order.payload().to_vec());
                            transaction.publish("", &message).await?;
                        }
                    }
                    Ok(())
                })
                .await;
            let targets = targets.join(" and ");
            match done {
                Ok(_) => output::line(&format!("   to {targets}: done"))?,
                Err(error) => output::line(&format!("   to {targets}: nothing of it, {error}"))?,
            }
        }
        drop((transactor, orders));
        self.takes("bills", &["a lamp"]).await?;
        self.takes("parcels", &["a lamp"]).await?;
        let left = self.client.inspect_queue("orders").await?;
        check(left.ready == 0 && left.settled == 1, "what is left")
    }

    async fn numbers(&mut self) -> std::result::Result<(), Failure> {
        self.stop(
            "Numbers of a queue",
            "What it did lately, measured while it works.",
        )?;
        let queue = self.client.inspect_queue("sport").await?;
        let recent = queue.recent;
        output::line(&format!(
            "   sport: {} arrived and {} left in {} ms; half waited {} µs at most",
            recent.arrived,
            recent.left,
            recent.span.as_millis(),
            recent.wait_p50.as_micros()
        ))?;
        check(recent.arrived == 2, "what arrived")
    }
}

/// Takes so many messages and acks them; fewer if they do not come in time.
async fn take(consumer: &mut PullConsumer, count: usize) -> Result<Vec<String>> {
    let mut got = Vec::new();
    while got.len() < count {
        let batches = consumer.get((count - got.len()) as u32, PATIENCE).await?;
        if batches.is_empty() {
            break;
        }
        for batch in &batches {
            let texts = batch
                .iter()
                .map(|one| String::from_utf8_lossy(one.payload()).into_owned());
            got.extend(texts);
            consumer.ack_durable(batch).await?;
        }
    }
    Ok(got)
}

fn shown(who: &str, got: &[String], wanted: &[&str]) -> std::result::Result<(), Failure> {
    output::line(&format!("   {who}: {}", got.join(", ")))?;
    check(got == wanted, &wanted.join(", "))
}

fn check(is_right: bool, what: &str) -> std::result::Result<(), Failure> {
    match is_right {
        true => Ok(()),
        false => Err(Failure::failed(format!("expected was: {what}"))),
    }
}
