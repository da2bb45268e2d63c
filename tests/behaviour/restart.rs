//! What a broker knows after it was shut down and started again in the same directory.

use ringpost_wire::control::{ConsumerOpen, ExchangeKind, Level, ProducerOpen, QueueDeclare};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{Code, FrameHeader, FrameKind};

use crate::broker::Broker;
use crate::wire::{
    Producer, Wire, consumer, exchange, filler, hello, payloads, queue_on, to, to_queue, volatile,
};

/// Topology, messages, what was settled, places and delivery counts; and nothing that is volatile.
fn survives(cores: &[u16]) {
    let mut broker = Broker::start(cores[0], &[]);
    let mut wire = Wire::tenant(&broker, "shop");
    for number in 0..8_u16 {
        let name = format!("q{number}");
        wire.declare(&QueueDeclare {
            messages_max: 1_000 + u64::from(number),
            ..queue_on(name.as_bytes(), number)
        });
        wire.declare(&volatile(queue_on(format!("v{number}").as_bytes(), number)));
        wire.bind(b"amq.fanout", name.as_bytes(), b"", b"");
    }
    wire.declare_exchange(&exchange(b"topic", ExchangeKind::Topic));
    wire.bind(b"topic", b"q1", b"a.#", b"");
    wire.bind(b"topic", b"q2", b"a.*", b"");
    wire.declare_exchange(&ringpost_wire::control::ExchangeDeclare {
        durability: 0,
        ..exchange(b"passing", ExchangeKind::Direct)
    });
    wire.bind(b"passing", b"q1", b"k", b"");
    wire.declare(&queue_on(b"deleted", 3));
    let mut producer = wire.producer(1, Level::Volatile);
    producer.confirm(&mut wire, &[to_queue(b"deleted", b"m")]);
    wire.delete(b"deleted");

    let large = filler(7, 1 << 20);
    for number in 0..8 {
        let name = format!("q{number}");
        let mut parts = Vec::new();
        let texts: Vec<_> = (0..100).map(|text| format!("{number}.{text}")).collect();
        for (idx, text) in texts.iter().enumerate() {
            let payload = if idx == 50 { &large } else { text.as_bytes() };
            parts.push(to_queue(name.as_bytes(), payload));
        }
        for part in &parts {
            producer.confirm(&mut wire, &[*part]);
        }
        producer.confirm(
            &mut wire,
            &[to_queue(format!("v{number}").as_bytes(), b"gone")],
        );
        let channel = 10 + number;
        wire.consume(channel, &consumer(name.as_bytes(), 40));
        wire.deliveries(channel, 40);
        // Of the first 40: 10 acked in order, 5 out of order, 5 back twice, 20 held by somebody.
        wire.settle_surely(channel, 0, &[(0, 10), (20, 24)]);
        wire.deliveries(channel, 15);
        wire.settle_surely(channel, 1, &[(30, 34)]);
        assert_eq!(wire.deliveries(channel, 5)[0].count, 1);
    }
    // What is held when the broker goes returns, one delivery the richer.
    let expected: Vec<u64> = (11..20).chain(25..=100).collect();
    let mut delivered_before = vec![0_u32; 101];
    (1..=55).for_each(|sequence: usize| delivered_before[sequence] = 1);
    (30..=34).for_each(|sequence: usize| delivered_before[sequence] = 2);

    for (round, cores) in cores.iter().enumerate().skip(1) {
        broker.restart_on(*cores);
        let mut wire = Wire::greet(&broker, &hello(b"shop"));
        let queues = wire.queues();
        let names: Vec<_> = queues
            .iter()
            .map(|info| String::from_utf8_lossy(&info.name).into_owned())
            .collect();
        assert_eq!(
            names,
            ["q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7"],
            "round {round}"
        );
        for (number, info) in queues.iter().enumerate() {
            assert_eq!(info.messages_max, 1_000 + number as u64);
            assert_eq!(
                (info.ready, info.unacked),
                (85, 0),
                "round {round} {info:?}"
            );
            assert_eq!((info.published, info.settled), (100, 15));
            assert_eq!(info.core, info.partition % cores);
        }
        let mut producer = wire.producer(1, Level::Volatile);
        let code = producer.refused(&mut wire, 0, to(b"passing", b"k", b"m"));
        assert_eq!(code, Code::ExchangeUnknown);
        for number in 0..8_u16 {
            let channel = 10 + number;
            wire.consume(channel, &consumer(format!("q{number}").as_bytes(), 1_000));
            let all = wire.deliveries(channel, 85);
            let sequences: Vec<_> = all.iter().map(|delivery| delivery.queue_sequence).collect();
            assert_eq!(sequences, expected);
            for delivery in &all {
                let sequence = delivery.queue_sequence as usize;
                let text = format!("{number}.{}", sequence - 1);
                let payload = if sequence == 51 {
                    &large
                } else {
                    text.as_bytes()
                };
                assert!(delivery.payload == payload, "{text}");
                // Exact: a shutdown is no crash. Each round before delivered everything once.
                let expected = delivered_before[sequence] + round as u32 - 1;
                assert_eq!(delivery.count, expected, "round {round}, {sequence}");
            }
        }
        wire.drop_dead();
        let mut wire = Wire::greet(&broker, &hello(b"shop"));
        for number in 0..8 {
            wire.until(format!("q{number}").as_bytes(), |info| info.consumers == 0);
        }
    }
    // Sequences go on, routes are there.
    let mut wire = Wire::greet(&broker, &hello(b"shop"));
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(
        &mut wire,
        &[
            to(b"topic", b"a.b", b"routed"),
            to(b"amq.fanout", b"", b"to all"),
        ],
    );
    for number in 0..8 {
        let routed = u64::from(number == 1 || number == 2);
        assert_eq!(
            wire.inspect(format!("q{number}").as_bytes()).ready,
            86 + routed
        );
    }
    // A new queue never has the number, or the messages, of an old one.
    wire.declare(&queue_on(b"deleted", 3));
    assert_eq!(wire.inspect(b"deleted").published, 0);
}

#[test]
fn on_one_core() {
    survives(&[1, 1, 1]);
}

#[test]
fn on_four_cores() {
    survives(&[4, 4, 4]);
}

/// Another number of cores at the next start keeps every message.
#[test]
fn from_one_core_to_two_to_four_and_back() {
    survives(&[1, 2, 4, 1]);
}

/// P-81, P-84: what a stream retains and how far its groups have come, whoever owns it at the next start.
#[test]
fn streams_and_their_groups_are_where_they_were() {
    let arguments = |entries: &[(&str, &str)]| {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, text) in entries {
            writer.put(name.as_bytes(), Value::Text(text.as_bytes()));
        }
        writer.finish().expect("a small table");
        bytes
    };
    let stream = arguments(&[("x-queue-type", "stream")]);
    let first = [("x-stream-offset", "first")];
    let all = arguments(&first);
    let member = arguments(&[first[0], ("x-stream-group", "g")]);
    let mut broker = Broker::start(1, &[]);
    let mut published: u64 = 0;
    for (round, cores) in [1, 2, 4, 4, 1].into_iter().enumerate() {
        if round > 0 {
            broker.restart_on(cores);
        }
        let mut wire = Wire::open(&broker);
        for number in 0..4_u16 {
            let name = format!("s{number}");
            wire.declare(&QueueDeclare {
                messages_max: 90,
                arguments: &stream,
                ..queue_on(name.as_bytes(), number)
            });
            let mut producer = wire.producer(1, Level::Durable);
            let texts: Vec<_> = (1..=30)
                .map(|text| (published + text).to_string())
                .collect();
            let name = name.as_bytes();
            let parts = texts.iter().map(|text| to_queue(name, text.as_bytes()));
            producer.confirm(&mut wire, &parts.collect::<Vec<_>>());
            producer.close(&mut wire);
            let last = published + 30;
            // It may hold one more than its limit, and does not for long.
            let head = last.saturating_sub(89).max(1);
            wire.until(name, |info| info.ready <= 91);
            let open = ConsumerOpen {
                arguments: &all,
                ..consumer(name, 1_000)
            };
            wire.consume(2, &open);
            let count = wire.inspect(name).ready;
            let read = wire.deliveries(2, count as usize);
            assert!(read[0].queue_sequence <= head && head <= read[0].queue_sequence + 1);
            for (idx, delivery) in read.iter().enumerate() {
                assert_eq!(delivery.queue_sequence, read[0].queue_sequence + idx as u64);
                assert_eq!(
                    delivery.payload,
                    delivery.queue_sequence.to_string().as_bytes()
                );
            }
            assert_eq!(read.last().map(|last| last.queue_sequence), Some(last));
            wire.close_consumer(2);
            // Of what the group has left it settles twenty for good, and ten beyond.
            let open = ConsumerOpen {
                arguments: &member,
                ..consumer(name, 30)
            };
            wire.consume(3, &open);
            let read = wire.deliveries(3, 30);
            assert_eq!(
                read[0].queue_sequence,
                20 * round as u64 + 1,
                "round {round}"
            );
            let tag = read[0].tag;
            wire.settle_surely(3, 0, &[(tag + 25, tag + 26), (tag, tag + 19)]);
            wire.close_consumer(3);
            // What it had credit for again when it had settled.
            wire.deliveries_before_end(3);
            wire.until(name, |info| info.consumers == 0);
        }
        published += 30;
    }
}

/// P-45: what `Settled` was said for is never delivered again.
#[test]
fn settled_stays_settled() {
    let mut broker = Broker::start(2, &[]);
    for round in 0..4_u64 {
        let mut wire = Wire::open(&broker);
        for core in 0..2 {
            let name = format!("q{core}");
            wire.declare(&queue_on(name.as_bytes(), core));
            let mut producer = wire.producer(1, Level::Durable);
            let parts: Vec<_> = (0..50).map(|_| to_queue(name.as_bytes(), b"m")).collect();
            producer.confirm(&mut wire, &parts);
            producer.close(&mut wire);
            wire.consume(2, &consumer(name.as_bytes(), 1_000));
            let left = (round * 10) as usize;
            let all = wire.deliveries(2, left + 50);
            let first = all[0].tag;
            // All that was left and 40 of the new ones.
            let last = first + left as u64 + 39;
            wire.settle_surely(2, 0, &[(first + left as u64, last)]);
            wire.close_consumer(2);
            wire.until(name.as_bytes(), |info| info.consumers == 0);
            assert_eq!(wire.inspect(name.as_bytes()).ready, (round + 1) * 10);
        }
        broker.restart();
    }
    let mut wire = Wire::open(&broker);
    for info in wire.queues() {
        assert_eq!((info.ready, info.published, info.settled), (40, 200, 160));
    }
}

/// Many small segments' worth, acked and not, over several starts.
/// P-38: also those that one frame brought to many queues, whose sequences have gaps in each.
#[test]
fn what_many_queues_have_stored_is_known_after_a_crash() {
    const QUEUES: usize = 7;
    let broker = Broker::start(1, &[]);
    let mut wire = Wire::open(&broker);
    let names: Vec<String> = (0..QUEUES).map(|number| format!("q{number}")).collect();
    for name in &names {
        wire.declare(&queue_on(name.as_bytes(), 0));
    }
    let texts: Vec<String> = (0..500).map(|text| text.to_string()).collect();
    // Every fifth goes to the first queue too, so that the gaps differ.
    let place = |number: usize| {
        if number.is_multiple_of(5) {
            0
        } else {
            number % QUEUES
        }
    };
    let parts: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| to_queue(names[place(number)].as_bytes(), text.as_bytes()))
        .collect();
    let open = |wire: &mut Wire, epoch: u32| {
        let open = ProducerOpen {
            producer: 77,
            epoch,
            level: Level::Durable as u8,
            flags: 0,
            reserved: 0,
        };
        let id = wire.request_on(FrameKind::ProducerOpen, 1, &open);
        Producer::opened(&wire.answer(id))
    };
    let mut producer = open(&mut wire, 1);
    producer.confirm(&mut wire, &parts[..400]);

    // What a crash leaves, and once more after what was replayed has gone into a checkpoint.
    let mut broker = broker.copied().started();
    for epoch in 2..5 {
        let mut wire = Wire::open(&broker);
        let mut producer = open(&mut wire, epoch);
        assert_eq!(producer.next, if epoch == 2 { 401 } else { 501 });
        (producer.next, producer.confirmed) = (1, 0);
        producer.confirm(&mut wire, &parts);
        for (number, name) in names.iter().enumerate() {
            let wanted = (0..texts.len()).filter(|text| place(*text) == number);
            let channel = 10 + number as u16;
            wire.consume(channel, &consumer(name.as_bytes(), 1_000));
            let got = wire.deliveries(channel, wanted.clone().count());
            let wanted: Vec<&[u8]> = wanted.map(|text| texts[text].as_bytes()).collect();
            assert_eq!(payloads(&got), wanted, "queue {number}, epoch {epoch}");
        }
        drop(wire);
        if epoch == 2 {
            broker = broker.copied().started();
        } else {
            broker.restart();
        }
    }
}

#[test]
fn recycled_segments_keep_what_is_live() {
    let mut broker = Broker::start(1, &[]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"keep", 0));
    wire.declare(&queue_on(b"pass", 0));
    let payload = filler(1, 60_000);
    for round in 0..3_u64 {
        let mut producer = wire.producer(1, Level::Durable);
        wire.consume(2, &consumer(b"pass", 100));
        let mut passed = 0;
        for step in 0..8 {
            let text = format!("{round}.{step}");
            producer.confirm(&mut wire, &[to_queue(b"keep", text.as_bytes())]);
            let parts: Vec<_> = (0..40).map(|_| to_queue(b"pass", &payload)).collect();
            producer.confirm(&mut wire, &parts);
            wire.deliveries(2, 40);
            passed += 40;
            wire.settle_surely(2, 0, &[(0, passed)]);
        }
        broker.restart();
        wire = Wire::open(&broker);
        let info = wire.inspect(b"pass");
        assert_eq!(
            (info.ready, info.unacked, info.settled),
            (0, 0, (round + 1) * 320)
        );
        assert_eq!(wire.inspect(b"keep").ready, (round + 1) * 8);
    }
    wire.consume(2, &consumer(b"keep", 100));
    let all = wire.deliveries(2, 24);
    let expected: Vec<_> = (0..3)
        .flat_map(|round| (0..8).map(move |step| format!("{round}.{step}")))
        .collect();
    let expected: Vec<_> = expected.iter().map(String::as_bytes).collect();
    assert_eq!(payloads(&all), expected);
}

/// A checkpoint that only frees segments, behind the last one, must not take it back.
#[test]
fn a_good_end_counts_exactly_though_segments_have_just_died() {
    let mut broker = Broker::start(1, &[]);
    for round in 0..4_u32 {
        let mut wire = Wire::open(&broker);
        wire.declare(&queue_on(b"q", 0));
        let mut producer = wire.producer(1, Level::Durable);
        let payload = filler(u64::from(round), 100_000);
        // Three segments, of which the acks are the last thing that happens.
        for _ in 0..13 {
            let parts: Vec<_> = (0..10).map(|_| to_queue(b"q", &payload)).collect();
            producer.confirm(&mut wire, &parts);
        }
        wire.consume(2, &consumer(b"q", 1_000));
        let left = u64::from(round > 0);
        let all = wire.deliveries(2, 130 + left as usize);
        if round > 0 {
            assert_eq!((all[0].count, all[1].count), (1, 0), "round {round}");
        }
        // All but the last.
        wire.settle_surely(2, 0, &[(0, 129 + left)]);
        broker.restart();
    }
}

/// P-11: clients are told, and what they had not heard of is stored or not, but never half.
#[test]
fn a_shutdown_under_load() {
    let mut broker = Broker::start(2, &[]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"q", 1));
    let mut producer = wire.producer(1, Level::Durable);
    let parts: Vec<_> = (0..1000).map(|_| to_queue(b"q", b"m")).collect();
    producer.confirm(&mut wire, &parts);
    producer.publish(&mut wire, 0, &parts);
    broker.stop();
    loop {
        let frame = wire.try_read().expect("the broker says that it goes");
        if frame.kind() == FrameKind::Close {
            assert_eq!(frame.code(), Code::ShuttingDown);
            break;
        }
        producer.hear(&frame);
    }
    let refused = |(first, last, code): &(u64, u64, Code)| match code {
        Code::ShuttingDown => last + 1 - first,
        other => panic!("{other}"),
    };
    let refused: u64 = producer.refused.iter().map(refused).sum();
    let confirmed = producer.confirmed - refused;
    let mut broker = broker.started();
    let mut wire = Wire::open(&broker);
    let published = wire.inspect(b"q").published;
    let most = 2000 - refused;
    assert!(
        (confirmed..=most).contains(&published),
        "{confirmed} confirmed, {published} there"
    );
    wire.send_frame(FrameHeader::bare(FrameKind::Heartbeat, 0, 0), b"");
    wire.bye();
    broker.restart();
}
