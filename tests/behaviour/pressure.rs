//! Readers that are slow or stop, many producers at once, more messages than memory.

use ringpost_wire::control::{ConsumerOpen, ExchangeKind, Level};
use ringpost_wire::{Code, FRAGMENT_BYTES_MAX};

use crate::broker::{Broker, memory_least};
use crate::wire::{Producer, Wire, consumer, exchange, filler, queue_on, to, to_queue, volatile};
use crate::{Setup, on_cores};

on_cores! { least:
    a_reader_that_stops_holds_up_nobody
    many_readers_that_stop_hold_up_nobody
    one_connection_publishes_consumes_and_fills_its_queue
    every_producer_gets_credit
    credit_of_dead_producers_comes_back
    a_wide_fan_out_needs_no_more_memory
    everybody_publishes_at_once
}

/// A broker of its own with the least memory.
fn least(cores: u16) -> Broker {
    let memory = memory_least(cores, 128);
    Broker::start(cores, &[("memory", &memory), ("connections_max", "128")])
}

/// P-18: what is meant for it waits, and others go on.
fn a_reader_that_stops_holds_up_nobody(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"q", core));
        wire.declare(&queue_on(b"other", core));
        let mut stopped = setup.wire();
        stopped.consume(1, &consumer(b"q", 1_000_000));
        let mut producer = wire.producer(1, Level::Durable);
        let payload = filler(1, 20_000);
        let parts: Vec<_> = (0..600).map(|_| to_queue(b"q", &payload)).collect();
        producer.confirm(&mut wire, &parts);
        wire.consume(2, &consumer(b"other", 10));
        for _ in 0..20 {
            producer.confirm(&mut wire, &[to_queue(b"other", b"m")]);
            let one = wire.deliveries(2, 1);
            wire.settle_surely(2, 0, &[(one[0].tag, one[0].tag)]);
        }
        // Not all of it was pushed into a socket that nobody reads.
        let info = wire.inspect(b"q");
        assert!(info.ready > 0, "{info:?}");
        // It reads on and gets everything in order.
        let mut seen = 0;
        while seen < 600 {
            for delivery in stopped.delivered(1) {
                seen += 1;
                assert_eq!(delivery.queue_sequence, seen);
                assert!(delivery.payload == payload);
            }
            stopped.settle(1, 0, &[(0, seen)]);
        }
        wire.until(b"q", |info| info.settled == 600);
        wire.delete(b"q");
        wire.delete(b"other");
    }
}

/// More stopped consumers than two cores can have requests between them.
fn many_readers_that_stop_hold_up_nobody(setup: &Setup) {
    let mut wire = setup.wire();
    let far = setup.cores() - 1;
    wire.declare(&queue_on(b"near", 0));
    wire.declare(&queue_on(b"far", far));
    wire.declare(&queue_on(b"other", far));
    let mut stopped = setup.wire();
    stopped.attach(b"near");
    for channel in 1..=400 {
        stopped.consume(channel, &consumer(b"far", 100));
    }
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(1, 10_000);
    let parts: Vec<_> = (0..4_000).map(|_| to_queue(b"far", &payload)).collect();
    producer.confirm(&mut wire, &parts);
    // Another connection of the same core still gets through to the far one, and back.
    let mut lively = setup.wire();
    lively.attach(b"near");
    lively.consume(2, &consumer(b"other", 10));
    let mut producer = lively.producer(1, Level::Durable);
    for _ in 0..10 {
        producer.confirm(&mut lively, &[to_queue(b"other", b"m")]);
        let one = lively.deliveries(2, 1);
        lively.settle_surely(2, 0, &[(one[0].tag, one[0].tag)]);
    }
    assert!(lively.declare(&queue_on(b"new", far)));
    stopped.drop_dead();
    lively.until(b"far", |info| info.consumers == 0 && info.ready == 4_000);
}

/// P-18, P-33: acks are read although nothing may be published.
fn one_connection_publishes_consumes_and_fills_its_queue(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&ringpost_wire::control::QueueDeclare {
            messages_max: 50,
            ..queue_on(b"q", core)
        });
        wire.consume(2, &consumer(b"q", 10));
        let mut producer = wire.producer(1, Level::Durable);
        let mut stored = 0;
        let mut settled = 0;
        while stored < 1_000 {
            producer.publish(&mut wire, 0, &[to_queue(b"q", b"m")]);
            if producer.next.is_multiple_of(60) {
                producer.settle(&mut wire);
                stored = producer.next - 1 - refused(&producer);
                while settled < stored {
                    settled += wire.delivered(2).len() as u64;
                    wire.settle_surely(2, 0, &[(0, settled)]);
                }
            }
        }
        wire.until(b"q", |info| info.settled == stored);
        wire.delete(b"q");
    }
}

fn refused(producer: &Producer) -> u64 {
    producer
        .refused
        .iter()
        .map(|(first, last, code)| {
            assert_eq!(*code, Code::QueueFull);
            last + 1 - first
        })
        .sum()
}

/// P-33: however many there are, and however long the others say nothing.
fn every_producer_gets_credit(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue_on(b"q", setup.cores() - 1));
    let payload = filler(1, FRAGMENT_BYTES_MAX - 66);
    for channel in 1..=600 {
        let mut producer = wire.producer(channel, Level::Durable);
        if channel % 100 == 0 {
            for _ in 0..3 {
                producer.confirm(&mut wire, &[to_queue(b"q", &payload)]);
            }
        }
    }
}

/// P-17, P-33: also of those whose publishes went to other cores only.
fn credit_of_dead_producers_comes_back(setup: &Setup) {
    let mut watcher = setup.wire();
    watcher.declare(&queue_on(b"near", 0));
    watcher.declare(&queue_on(b"far", setup.cores() - 1));
    let payload = filler(1, 100_000);
    let parts: Vec<_> = (0..40).map(|_| to_queue(b"far", &payload)).collect();
    for _ in 0..60 {
        let mut wire = setup.wire();
        wire.attach(b"near");
        let mut producer = wire.producer(1, Level::Durable);
        let count = parts.len().min((producer.bytes / 100_100) as usize);
        producer.publish(&mut wire, 0, &parts[..count]);
        wire.drop_dead();
        watcher.purge(b"far");
    }
    let mut wire = setup.wire();
    wire.attach(b"near");
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &parts[..10]);
}

/// A backlog of several times the memory drains completely and in order.
#[test]
fn a_backlog_beyond_memory_drains_in_order() {
    for cores in [1, 2, 4] {
        let broker = least(cores);
        let mut wire = Wire::open(&broker);
        wire.declare(&queue_on(b"q", cores - 1));
        let mut producer = wire.producer(1, Level::Durable);
        let count = 160_u64 * 1024 / 24;
        for chunk in (0..count).collect::<Vec<_>>().chunks(32) {
            let payloads: Vec<_> = chunk.iter().map(|number| filler(*number, 24_000)).collect();
            let parts: Vec<_> = payloads
                .iter()
                .map(|payload| to_queue(b"q", payload))
                .collect();
            producer.publish(&mut wire, 0, &parts);
        }
        producer.settle(&mut wire);
        assert_eq!(producer.refused, []);
        let open = ConsumerOpen {
            credit_bytes: 4 << 20,
            ..consumer(b"q", 1_000)
        };
        wire.consume(2, &open);
        let mut seen = 0;
        while seen < count {
            for delivery in wire.delivered(2) {
                assert!(delivery.payload == filler(seen, 24_000), "message {seen}");
                assert!(!delivery.redelivered);
                seen += 1;
            }
            wire.settle(2, 0, &[(0, seen)]);
        }
        wire.until(b"q", |info| info.settled == count && info.bytes == 0);
    }
}

/// With the least memory: large messages, cold, one after the other.
#[test]
fn large_messages_come_back_from_disk_with_little_memory() {
    let broker = least(1);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"q", 0));
    let mut producer = wire.producer(1, Level::Durable);
    let lengths = [1 << 20, 300, 2 << 20, 16 << 20, 5, 400_000];
    for round in 0..3 {
        for (idx, bytes) in lengths.iter().enumerate() {
            let payload = filler(
                round * 10 + idx as u64,
                (*bytes as usize).min((16 << 20) - 65),
            );
            producer.confirm(&mut wire, &[to_queue(b"q", &payload)]);
        }
    }
    wire.consume(2, &consumer(b"q", 2));
    for round in 0..3 {
        for (idx, bytes) in lengths.iter().enumerate() {
            let one = wire.delivered(2).remove(0);
            let payload = filler(
                round * 10 + idx as u64,
                (*bytes as usize).min((16 << 20) - 65),
            );
            assert!(one.payload == payload, "{bytes} bytes");
            wire.settle(2, 0, &[(one.tag, one.tag)]);
        }
    }
}

/// Volatile queues take a bounded part of the memory; then publishes are refused, and durable queues
/// go on.
#[test]
fn volatile_queues_fill_up_alone() {
    let broker = least(1);
    let mut wire = Wire::open(&broker);
    wire.declare(&volatile(queue_on(b"v", 0)));
    wire.declare(&queue_on(b"q", 0));
    let mut producer = wire.producer(1, Level::Volatile);
    let payload = filler(1, 50_000);
    let mut stored = 0;
    while producer.refused.is_empty() {
        producer.publish(&mut wire, 0, &[to_queue(b"v", &payload)]);
        producer.settle(&mut wire);
        stored += 1;
        assert!(stored < 2_000, "nothing bounds it");
    }
    assert!(stored > 10);
    producer.refused.clear();
    for _ in 0..20 {
        producer.confirm(&mut wire, &[to_queue(b"q", &payload)]);
    }
    wire.purge(b"v");
    producer.confirm(&mut wire, &[to_queue(b"v", &payload)]);
}

/// Those who do not read keep no memory from those who do.
#[test]
fn stopped_readers_and_little_memory() {
    let broker = least(1);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"q", 0));
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(1, 30_000);
    let mut stopped = Vec::new();
    for number in 0..40 {
        let name = format!("q{number}");
        wire.declare(&queue_on(name.as_bytes(), 0));
        let mut reader = Wire::open(&broker);
        reader.consume(1, &consumer(name.as_bytes(), 1_000));
        stopped.push(reader);
        let parts: Vec<_> = (0..150)
            .map(|_| to_queue(name.as_bytes(), &payload))
            .collect();
        producer.confirm(&mut wire, &parts);
    }
    wire.consume(2, &consumer(b"q", 10));
    for _ in 0..10 {
        producer.confirm(&mut wire, &[to_queue(b"q", &payload)]);
        let one = wire.deliveries(2, 1);
        wire.settle_surely(2, 0, &[(one[0].tag, one[0].tag)]);
    }
    for mut reader in stopped {
        let mut seen = 0;
        while seen < 150 {
            seen += reader.delivered(1).len();
        }
    }
}

/// P-11: a broker that shuts down does not wait for ever for those who do not read.
#[test]
fn a_stopped_reader_does_not_hold_up_the_shutdown() {
    let mut broker = Broker::start(2, &[("drain_timeout", "1s")]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"q", 0));
    let mut stopped = Wire::open(&broker);
    stopped.consume(1, &consumer(b"q", 1_000_000));
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(1, 50_000);
    let parts: Vec<_> = (0..400).map(|_| to_queue(b"q", &payload)).collect();
    producer.confirm(&mut wire, &parts);
    broker.restart();
    let mut wire = Wire::open(&broker);
    assert_eq!(wire.inspect(b"q").ready, 400);
    stopped.drop_dead();
}

/// P-33: a message for many queues is stored many times, and credit does not pay for that.
fn a_wide_fan_out_needs_no_more_memory(setup: &Setup) {
    const QUEUES: u16 = 60;
    let mut wire = setup.wire();
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    for number in 0..QUEUES {
        let name = format!("q{number}");
        wire.declare(&queue_on(name.as_bytes(), number % setup.cores()));
        wire.bind(b"x", name.as_bytes(), b"", b"");
    }
    for (channel, level) in [(1, Level::Durable), (2, Level::Volatile), (3, Level::None)] {
        let mut producer = wire.producer(channel, level);
        let payloads: Vec<_> = [190_000, 100, 130_000, 60_000]
            .iter()
            .map(|bytes| filler(u64::from(channel), *bytes))
            .collect();
        let parts: Vec<_> = payloads
            .iter()
            .map(|payload| to(b"x", b"", payload))
            .collect();
        producer.publish(&mut wire, 0, &parts);
        let closed = producer.close(&mut wire);
        assert_eq!(closed.refused, []);
    }
    for number in 0..QUEUES {
        let info = wire.inspect(format!("q{number}").as_bytes());
        assert_eq!(info.ready, 12, "{info:?}");
    }
    for number in 0..4 {
        let name = format!("q{number}");
        wire.consume(10 + number, &consumer(name.as_bytes(), 100));
        let lengths: Vec<_> = wire
            .deliveries(10 + number, 12)
            .iter()
            .map(|delivery| delivery.payload.len())
            .collect();
        assert_eq!(lengths, [190_000, 100, 130_000, 60_000].repeat(3));
    }
}

/// P-33: all the credit that there is at the same moment, again and again, at every level, to one
/// queue and to several.
fn everybody_publishes_at_once(setup: &Setup) {
    const CONNECTIONS: usize = 20;
    const CHANNELS: u16 = 12;
    let mut first = setup.wire();
    first.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    for number in 0..3 {
        let name = format!("q{number}");
        first.declare(&queue_on(name.as_bytes(), number % setup.cores()));
        first.bind(b"x", name.as_bytes(), b"", b"");
    }
    let mut wires: Vec<_> = (0..CONNECTIONS).map(|_| setup.wire()).collect();
    let mut producers: Vec<Vec<Producer>> = Vec::new();
    for wire in &mut wires {
        let open = |channel| wire.producer(channel, level_of(channel));
        producers.push((1..=CHANNELS).map(open).collect());
    }
    let payload = filler(7, FRAGMENT_BYTES_MAX - 128);
    for round in 0..2 {
        for (wire, producers) in wires.iter_mut().zip(&mut producers) {
            for producer in producers {
                // All of its credit, at once; what others still wait for does not matter.
                let part = match (producer.channel + round) % 4 {
                    0 => to(b"x", b"", &payload),
                    number => to_queue([b"q0", b"q1", b"q2"][usize::from(number) - 1], &payload),
                };
                producer.publish(wire, 0, &[part]);
            }
        }
    }
    let mut stored = 0;
    for (wire, producers) in wires.iter_mut().zip(producers) {
        for producer in producers {
            stored += producer.next - 1;
            let closed = producer.close(wire);
            assert_eq!(closed.refused, [], "channel {}", closed.channel);
        }
    }
    // A quarter of them went to three queues.
    let fanned = stored / 4;
    let in_queues: u64 = first.queues().iter().map(|info| info.ready).sum();
    assert_eq!(in_queues, stored + 2 * fanned);
    for number in 0..3 {
        assert!(first.purge(format!("q{number}").as_bytes()) > 0);
    }
}

fn level_of(channel: u16) -> Level {
    [Level::Durable, Level::Volatile, Level::None][usize::from(channel % 3)]
}
