//! The resident memory of a broker stays inside `memory`, whatever it is loaded with.

use ringpost_wire::FRAGMENT_BYTES_MAX;
use ringpost_wire::control::{ConsumerOpen, ExchangeKind, Level};

use crate::broker::memory_least;
use crate::process::{CONNECTIONS_MAX, Process};
use crate::wire::{Producer, Wire, consumer, exchange, filler, queue_on, to, to_queue, volatile};

/// P9 of the guarantees, with the least memory that such a broker starts with.
#[test]
fn the_process_stays_inside_its_memory() {
    for cores in [1, 2] {
        let process = Process::start(cores, &memory_least(cores, CONNECTIONS_MAX));
        let mut wire = process.wire();
        wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
        for number in 0..8_u16 {
            let name = format!("q{number}");
            wire.declare(&queue_on(name.as_bytes(), number % cores));
            wire.bind(b"x", name.as_bytes(), b"", b"");
        }
        wire.declare(&volatile(queue_on(b"v", 0)));
        process.stays_inside("the start");
        let idle = connections(&process);
        process.stays_inside("connections that publish all they may");
        backlog(&mut wire);
        process.stays_inside("a backlog");
        large(&process);
        process.stays_inside("large messages");
        readers(&process);
        process.stays_inside("readers that stop");
        drop(idle);
    }
}

/// Many connections, each with producers, of which all publish what they have credit for.
fn connections(process: &Process) -> Vec<(Wire, Vec<Producer>)> {
    let mut all: Vec<_> = (0..150)
        .map(|_| {
            let mut wire = process.wire();
            let producers = (1..=2).map(|channel| wire.producer(channel, Level::Durable));
            let producers: Vec<_> = producers.collect();
            (wire, producers)
        })
        .collect();
    let payload = filler(1, FRAGMENT_BYTES_MAX - 128);
    for (number, (wire, producers)) in all.iter_mut().enumerate() {
        for producer in producers {
            let part = match number % 30 {
                0 => to(b"x", b"", &payload),
                _ => to_queue(b"q2", &payload),
            };
            producer.publish(wire, 0, &[part]);
        }
    }
    for (wire, producers) in &mut all {
        for producer in producers {
            producer.settle(wire);
            assert_eq!(producer.refused, []);
        }
    }
    all
}

/// Small messages and middling ones, to durable queues and until a volatile one is full.
fn backlog(wire: &mut Wire) {
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(2, 24_000);
    for _ in 0..40 {
        let parts: Vec<_> = (0..32).map(|_| to_queue(b"q0", &payload)).collect();
        producer.confirm(wire, &parts);
        let parts: Vec<_> = (0..1_000).map(|_| to_queue(b"q1", b"small")).collect();
        producer.confirm(wire, &parts);
    }
    let mut producer = wire.producer(2, Level::Volatile);
    while producer.refused.is_empty() {
        producer.publish(wire, 0, &[to_queue(b"v", &payload)]);
        producer.settle(wire);
    }
}

/// The largest, in and out, one to several queues.
fn large(process: &Process) {
    let mut wire = process.wire();
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(3, (16 << 20) - 128);
    wire.declare(&queue_on(b"large", 0));
    wire.declare(&queue_on(b"larger", 1));
    for name in [&b"large"[..], b"larger", b"large"] {
        producer.confirm(&mut wire, &[to_queue(name, &payload)]);
    }
    for (channel, name, count) in [(2, &b"large"[..], 2), (3, b"larger", 1)] {
        wire.consume(channel, &consumer(name, 1));
        for tag in 1..=count {
            assert!(wire.deliveries(channel, 1)[0].payload == payload);
            wire.settle_surely(channel, 0, &[(tag, tag)]);
        }
    }
}

/// Readers of small and large messages that stop, and one that does not.
fn readers(process: &Process) {
    let mut stopped = Vec::new();
    for number in 0..60_u16 {
        let mut wire = process.wire();
        let name = format!("q{}", number % 8);
        let open = ConsumerOpen {
            credit_bytes: 0,
            ..consumer(name.as_bytes(), 100_000)
        };
        wire.consume(1, &open);
        stopped.push(wire);
    }
    let mut lively = process.wire();
    lively.declare(&queue_on(b"other", 0));
    lively.consume(2, &consumer(b"other", 10));
    let mut producer = lively.producer(1, Level::Durable);
    let payload = filler(4, 100_000);
    for _ in 0..50 {
        producer.confirm(&mut lively, &[to_queue(b"other", &payload)]);
        let one = lively.deliveries(2, 1);
        lively.settle_surely(2, 0, &[(one[0].tag, one[0].tag)]);
    }
}
