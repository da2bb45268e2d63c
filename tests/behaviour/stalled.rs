//! Consumers that do not read: they hold up nobody, and nothing that they were offered is lost.

use std::collections::BTreeSet;

use ringpost_wire::control::{Hello, Level};

use crate::broker::Broker;
use crate::wire::{Wire, consumer, filler, hello, queue, to_queue};

const STALLED: usize = 200;
/// Twice what the kernel takes for all of them, whatever it may be set to within reason.
const MESSAGES: u32 = 8_000;
const MESSAGE_BYTES: usize = 16 << 10;

#[test]
fn two_hundred_who_do_not_read_hold_up_nobody_and_lose_nothing() {
    let broker = Broker::start(1, &[("memory", "192MiB")]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue(b"slow"));
    wire.declare(&queue(b"quick"));
    let patient = Hello {
        heartbeat_ms: 600_000,
        ..hello(b"")
    };
    let stalled: Vec<Wire> = (0..STALLED)
        .map(|_| {
            let mut wire = Wire::greet_small(&broker, &patient);
            wire.consume(1, &consumer(b"slow", 10_000));
            wire
        })
        .collect();

    let mut producer = wire.producer(1, Level::Durable);
    let body = filler(7, MESSAGE_BYTES);
    for number in 0..MESSAGES {
        let mut payload = body.clone();
        payload[..4].copy_from_slice(&number.to_le_bytes());
        producer.publish(&mut wire, 0, &[to_queue(b"slow", &payload)]);
    }
    producer.settle(&mut wire);
    assert_eq!(producer.refused, [], "who does not read costs no publish");

    // Somebody else's messages pass, while all of those wait.
    let mut reader = Wire::open(&broker);
    reader.consume(1, &consumer(b"quick", 10_000));
    for round in 0..50u32 {
        let payload = [round.to_le_bytes().as_slice(), &body].concat();
        producer.confirm(&mut wire, &[to_queue(b"quick", &payload)]);
        let got = reader.deliveries(1, 1);
        assert_eq!(got[0].payload, payload);
        reader.settle_surely(1, 0, &[(got[0].tag, got[0].tag)]);
    }

    // What they were offered comes back when they are gone.
    stalled.into_iter().for_each(Wire::drop_dead);
    let mut heir = Wire::open(&broker);
    heir.consume(1, &consumer(b"slow", 10_000));
    let mut seen = BTreeSet::new();
    while seen.len() < MESSAGES as usize {
        for delivery in heir.delivered(1) {
            let number = delivery.payload.first_chunk().expect("it is long");
            seen.insert(u32::from_le_bytes(*number));
            assert_eq!(delivery.payload[4..], body[4..]);
        }
    }
}
