//! Streams of several lanes through the client crate: keys, groups whose members share the lanes, and
//! what another number of cores finds.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_client::{
    Batch, Client, Consumer, DeleteIf, DeliveryRef, ErrorKind, HeaderValue, Headers, Level,
    Message, QueueConfig, Start,
};

use crate::broker::Broker;
use crate::client::talk;
use crate::{Setup, on_cores};

on_cores! {
    keys_stay_in_their_lanes
    members_share_the_lanes
    a_lane_is_a_stream
}

type Result<T> = ringpost_client::Result<T>;

const LANES: u32 = 4;

/// Publishes messages `from..upto`, of 30 keys in turn, to an exchange or the default one.
async fn publish(client: &Client, exchange: &str, from: u64, upto: u64) -> Result<()> {
    let producer = client
        .producer(exchange)
        .level(Level::Durable)
        .build()
        .await?;
    for number in from..upto {
        let key = match exchange {
            "" => "events".to_owned(),
            _ => format!("key-{}", number % 30),
        };
        let headers = Headers::new().with("customer", (number % 30) as i64);
        let message = Message::new(key, number.to_string()).headers(headers);
        // The flush says what became of it.
        drop(producer.enqueue(message).await?);
    }
    producer.flush().await?;
    producer.close().await
}

/// One message that was read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Read {
    lane: u32,
    offset: u64,
    number: u64,
}

/// Reads so many messages, and acks them.
async fn read(consumer: &mut Consumer, count: usize) -> Result<Vec<Read>> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = consumer.next_batch().await?.expect("it goes on");
        all.extend(messages(&batch));
        consumer.ack_durable(&batch).await?;
    }
    Ok(all)
}

fn messages(batch: &Batch) -> Vec<Read> {
    let read = |delivery: DeliveryRef<'_>| Read {
        lane: delivery.lane().expect("it has lanes"),
        offset: delivery.queue_sequence(),
        number: String::from_utf8_lossy(delivery.payload())
            .parse()
            .expect("a number"),
    };
    batch.iter().map(read).collect()
}

/// Each lane has what it has in order, and all together have every number once.
fn check(read: &[Read], upto: u64) {
    let mut numbers = BTreeSet::new();
    let mut lanes: BTreeMap<u32, Vec<Read>> = BTreeMap::new();
    for one in read {
        assert!(numbers.insert(one.number), "{} came twice", one.number);
        lanes.entry(one.lane).or_default().push(*one);
    }
    assert!(numbers.into_iter().eq(0..upto));
    for own in lanes.values() {
        assert!(own.iter().map(|one| one.offset).eq(1..=own.len() as u64));
        assert!(own.is_sorted_by_key(|one| one.number));
    }
}

/// By key, where each is in one lane.
fn check_keys(read: &[Read]) {
    let mut lane_of = BTreeMap::new();
    for one in read {
        let lane = lane_of.entry(one.number % 30).or_insert(one.lane);
        assert_eq!(*lane, one.lane);
    }
    assert!(lane_of.values().collect::<BTreeSet<_>>().len() > 1);
}

/// P-87, P-88: by the routing key or a header; what has no key goes anywhere.
fn keys_stay_in_their_lanes(setup: &Setup) {
    talk(setup, |client| async move {
        for (header, exchange) in [(None, "amq.fanout"), (Some("customer"), ""), (None, "")] {
            let mut config = QueueConfig::stream().lanes(LANES);
            if let Some(header) = header {
                config = config.lane_header(header);
            }
            client.ensure_queue("events", config).await?;
            client.bind("events", "amq.fanout", "").await?;
            publish(&client, exchange, 0, 900).await?;
            let mut reader = client
                .stream("events")
                .from(Start::First)
                .subscribe()
                .await?;
            let read = read(&mut reader, 900).await?;
            check(&read, 900);
            if header.is_some() || !exchange.is_empty() {
                check_keys(&read);
            }
            assert_eq!(reader.lanes(), LANES);
            let info = client.inspect_queue("events").await?;
            assert_eq!((info.ready, info.lanes), (900, LANES));
            let described = client.describe_queue("events").await?;
            let lanes = described.arguments.get("x-stream-lanes");
            assert_eq!(lanes, Some(HeaderValue::Integer(i64::from(LANES))));
            let another = client
                .ensure_queue("events", QueueConfig::stream().lanes(LANES + 1))
                .await
                .expect_err("it has four");
            assert_eq!(another.kind(), ErrorKind::Conflict, "{another}");
            drop(reader);
            client.delete_queue("events", DeleteIf::Always).await?;
            assert!(client.queues().await?.is_empty());
        }
        client.close().await
    });
}

/// P-89: members that come and go have all lanes between them, and nothing is read twice.
fn members_share_the_lanes(setup: &Setup) {
    let (address, tenant) = (setup.broker.addr().to_string(), setup.tenant.clone());
    talk(setup, |client| async move {
        client
            .ensure_queue("events", QueueConfig::stream().lanes(LANES))
            .await?;
        let join = || client.stream("events").from(Start::First).group("g");
        let mut one = join().subscribe().await?;
        let mut read_one = Vec::new();
        publish(&client, "", 0, 500).await?;
        read_one.extend(read(&mut one, 500).await?);
        let mut has = one.activity();
        assert_eq!(has.changed().await, Some(true));
        while has.lanes().len() < 4 {
            has.changed().await;
        }
        // Another client comes, then goes.
        let other = Client::builder(address).tenant(tenant).connect().await?;
        let mut two = other
            .stream("events")
            .from(Start::First)
            .group("g")
            .subscribe()
            .await?;
        let mut other_has = two.activity();
        while other_has.lanes().len() < 2 || has.lanes().len() > 2 {
            tokio::select! {
                _ = other_has.changed() => {}
                _ = has.changed() => {}
            }
        }
        let lanes: BTreeSet<u32> = has.lanes().into_iter().chain(other_has.lanes()).collect();
        assert_eq!(lanes.len(), 4);
        publish(&client, "", 500, 2_500).await?;
        let (mut left, mut read_two) = (2_000, Vec::new());
        while left > 0 {
            let (read, consumer, batch) = tokio::select! {
                batch = one.next_batch() => (&mut read_one, &one, batch?),
                batch = two.next_batch() => (&mut read_two, &two, batch?),
            };
            let batch = batch.expect("it goes on");
            read.extend(messages(&batch));
            consumer.ack_durable(&batch).await?;
            left -= batch.len();
        }
        assert!(read_one.len() > 500 && !read_two.is_empty());
        drop(two);
        other.close().await?;
        while has.lanes().len() < 4 {
            has.changed().await;
        }
        publish(&client, "", 2_500, 3_000).await?;
        read_one.extend(read(&mut one, 500).await?);
        let mut all = read_one;
        all.extend(read_two);
        all.sort();
        check(&all, 3_000);
        let groups = client.stream_groups("events").await?;
        let groups: Vec<_> = groups
            .iter()
            .map(|group| (group.lane, group.lag, group.members))
            .collect();
        assert_eq!(groups, [0, 1, 2, 3].map(|lane| (Some(lane), 0, 1)));
        let refused = client.reset_group("events", "g", Start::First).await;
        assert_eq!(
            refused.map_err(|error| error.kind()),
            Err(ErrorKind::Conflict)
        );
        drop((one, has));
        while client.inspect_queue("events").await?.consumers > 0 {
            tokio::task::yield_now().await;
        }
        client.reset_group("events", "g", Start::First).await?;
        let mut again = join().subscribe().await?;
        let mut all = read(&mut again, 3_000).await?;
        all.sort();
        check(&all, 3_000);
        client.close().await
    });
}

/// P-87, P-89: by its name it is read and reset as any other, and nothing else.
fn a_lane_is_a_stream(setup: &Setup) {
    // So many that no lane is left without any: they go by lot, 64 at a time.
    const ALL: u64 = 4_000;
    talk(setup, |client| async move {
        client
            .ensure_queue("events", QueueConfig::stream().lanes(LANES))
            .await?;
        publish(&client, "", 0, ALL).await?;
        let mut sum = 0;
        let mut offsets = Vec::new();
        for lane in 0..LANES {
            let name = format!("events#{lane}");
            let ready = client.inspect_queue(&name).await?.ready;
            let mut reader = client.stream(&name).from(Start::First).subscribe().await?;
            let mut next = 1;
            while next <= ready {
                let batch = reader.next_batch().await?.expect("it goes on");
                for delivery in &batch {
                    assert_eq!((delivery.queue_sequence(), delivery.lane()), (next, None));
                    next += 1;
                }
                reader.ack(&batch).await?;
            }
            sum += ready;
            offsets.push((lane, ready.max(2) / 2));
            let refused = client.delete_queue(&name, DeleteIf::Always).await;
            let error = refused.expect_err("it is a part");
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        }
        assert_eq!(sum, ALL);
        // All lanes, each from an offset of its own.
        let mut reader = client
            .stream("events")
            .from_offsets(offsets.clone())
            .subscribe()
            .await?;
        let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
        while seen.len() < LANES as usize {
            let batch = reader.next_batch().await?.expect("it goes on");
            let lane = batch.lane().expect("it has lanes");
            let first = batch.iter().next().expect("one at least").queue_sequence();
            seen.entry(lane).or_insert(first);
            reader.ack(&batch).await?;
        }
        assert!(seen.into_iter().eq(offsets));
        // Those who take what they want take from all.
        let mut pull = client.stream("events").from(Start::First).pull().await?;
        let mut taken = 0;
        while taken < ALL {
            let batches = pull.get(300, std::time::Duration::from_secs(5)).await?;
            let more: usize = batches.iter().map(|batch| batch.len()).sum();
            assert!((1..=300).contains(&more));
            taken += more as u64;
            for batch in batches {
                pull.ack(&batch).await?;
            }
        }
        assert_eq!(taken, ALL);
        assert_eq!(u64::from(client.purge_queue("events").await?), ALL);
        client.close().await
    });
}

/// P-87, P-89: lanes, what they hold and how far groups have come, whoever owns them at the next start.
#[test]
fn lanes_and_their_groups_are_where_they_were() {
    let mut broker = Broker::start(1, &[]);
    let mut all: Vec<Read> = Vec::new();
    for (round, cores) in [1, 2, 4, 3, 1].into_iter().enumerate() {
        if round > 0 {
            broker.restart_on(cores);
        }
        let address = broker.addr().to_string();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let more = runtime.block_on(async {
            let client = Client::builder(address).connect().await?;
            client
                .ensure_queue("events", QueueConfig::stream().lanes(LANES))
                .await?;
            client.bind("events", "amq.fanout", "").await?;
            let from = round as u64 * 400;
            publish(&client, "amq.fanout", from, from + 400).await?;
            let mut reader = client
                .stream("events")
                .from(Start::First)
                .subscribe()
                .await?;
            let whole = read(&mut reader, from as usize + 400).await?;
            check(&whole, from + 400);
            check_keys(&whole);
            let member = client.stream("events").from(Start::First).group("g");
            let mut member = member.subscribe().await?;
            let more = read(&mut member, 400).await?;
            drop((reader, member));
            client.close().await?;
            Ok::<_, ringpost_client::Error>(more)
        });
        all.extend(more.unwrap());
        // What the group had settled never came again.
        let mut sorted = all.clone();
        sorted.sort();
        check(&sorted, (round as u64 + 1) * 400);
    }
    broker.stop();
}
