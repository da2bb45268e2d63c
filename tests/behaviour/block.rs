//! Queues that block: a full one gives its producers no credit, and nothing else waits.

use ringpost_wire::control::{ExchangeKind, Level, PRODUCER_DOWNGRADE, QueueDeclare};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{Code, FrameKind, padded};

use crate::wire::{Producer, Wire, consumer, exchange, filler, queue_on, to, to_queue, volatile};
use crate::{Setup, on_cores};

on_cores! {
    a_full_queue_gives_no_credit_until_it_has_room
    a_fan_out_is_stored_whole_and_blocks
    queues_that_block_and_die_into_each_other_go_on
    a_queue_that_blocks_needs_a_limit
}

const ACK: u8 = 0;
const REJECT: u8 = 2;

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().unwrap();
    bytes
}

const BLOCK: (&str, Value<'_>) = ("x-overflow", Value::Text(b"block"));

fn everywhere(setup: &Setup, mut test: impl FnMut(&mut Wire)) {
    let arguments = &table(&[BLOCK]);
    for core in 0..setup.cores() {
        for make in [|declare| declare, volatile] {
            let mut wire = setup.wire();
            wire.declare(&make(QueueDeclare {
                arguments,
                messages_max: 3,
                ..queue_on(b"q", core)
            }));
            wire.declare(&make(queue_on(b"other", (core + 1) % setup.cores())));
            test(&mut wire);
            wire.delete(b"q");
            wire.delete(b"other");
        }
    }
}

/// Publishes until there is no credit for more: how many.
fn exhaust(wire: &mut Wire, producer: &mut Producer, payload: &[u8]) -> u64 {
    let bytes = padded(to_queue(b"q", payload).length()) as u64;
    let mut count = 0;
    loop {
        // What has come to rest is known, and whatever credit came with it.
        producer.settle(wire);
        wire.sync();
        producer.settle(wire);
        if !producer.may_publish(1, bytes) {
            return count;
        }
        producer.confirm(wire, &[to_queue(b"q", payload)]);
        count += 1;
        assert!(count < 2_000, "credit has no end");
    }
}

//= P-114
/// P-114
fn a_full_queue_gives_no_credit_until_it_has_room(setup: &Setup) {
    everywhere(setup, |wire| {
        let payload = filler(3, 60_000);
        let mut producer = wire.producer_with(100, Level::Durable, PRODUCER_DOWNGRADE);
        let count = exhaust(wire, &mut producer, &payload);
        assert!(count > 3, "what it has credit for is taken, and confirmed");
        let info = wire.inspect(b"q");
        assert_eq!(info.ready, count);
        // Others of the same connection go on, to other queues, and consumers do.
        let mut free = wire.producer_with(101, Level::Durable, PRODUCER_DOWNGRADE);
        for _ in 0..40 {
            free.confirm(wire, &[to_queue(b"other", &payload)]);
        }
        wire.consume(1, &consumer(b"q", 1_000));
        let got = wire.deliveries(1, count as usize);
        // Delivered is not done with.
        producer.settle(wire);
        assert!(!producer.may_publish(1, 60_200));
        wire.settle_surely(1, ACK, &[(1, got.len() as u64)]);
        producer.confirm(wire, &[to_queue(b"q", &payload)]);
        wire.close_consumer(1);
        free.close(wire);
        producer.close(wire);
    });
}

/// P-114
fn a_fan_out_is_stored_whole_and_blocks(setup: &Setup) {
    everywhere(setup, |wire| {
        wire.declare_exchange(&exchange(b"both", ExchangeKind::Fanout));
        wire.bind(b"both", b"q", b"", b"");
        wire.bind(b"both", b"other", b"", b"");
        let payload = filler(4, 60_000);
        let mut producer = wire.producer_with(100, Level::Durable, PRODUCER_DOWNGRADE);
        let mut count = 0;
        while producer.may_publish(1, 60_300) {
            producer.confirm(wire, &[to(b"both", b"", &payload)]);
            producer.settle(wire);
            wire.sync();
            producer.settle(wire);
            count += 1;
            assert!(count < 2_000, "credit has no end");
        }
        assert!(count > 3);
        for queue in [&b"q"[..], b"other"] {
            assert_eq!(wire.inspect(queue).ready, count);
        }
        wire.purge(b"q");
        producer.reserve(wire, 1, 60_300);
        producer.close(wire);
        let delete = ringpost_wire::control::Delete {
            flags: 0,
            name: b"both",
        };
        let id = wire.request(FrameKind::ExchangeDelete, &delete);
        wire.done(id);
    });
}

/// P-114
fn queues_that_block_and_die_into_each_other_go_on(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        for (name, other, core) in [
            (&b"left"[..], &b"right"[..], core),
            (b"right", b"left", (core + 1) % setup.cores()),
        ] {
            let arguments = &table(&[
                BLOCK,
                ("x-dead-letter-exchange", Value::Text(b"")),
                ("x-dead-letter-routing-key", Value::Text(other)),
            ]);
            wire.declare(&QueueDeclare {
                arguments,
                messages_max: 2,
                ..queue_on(name, core)
            });
        }
        let mut producer = wire.producer(100, Level::Durable);
        for name in [b"left".as_slice(), b"right"] {
            producer.confirm(&mut wire, &[to_queue(name, b"1"), to_queue(name, b"2")]);
        }
        // Both are full, and what dies in each goes to the other.
        wire.consume(1, &consumer(b"left", 2));
        wire.consume(2, &consumer(b"right", 2));
        wire.deliveries(1, 2);
        wire.deliveries(2, 2);
        wire.settle(1, REJECT, &[(1, 2)]);
        wire.settle(2, REJECT, &[(1, 2)]);
        wire.deliveries(1, 2);
        wire.deliveries(2, 2);
        wire.settle_surely(1, ACK, &[(3, 4)]);
        wire.settle_surely(2, ACK, &[(3, 4)]);
        producer.reserve(&mut wire, 1, 200);
        wire.close_consumer(1);
        wire.close_consumer(2);
        wire.delete(b"left");
        wire.delete(b"right");
    }
}

/// P-114
fn a_queue_that_blocks_needs_a_limit(setup: &Setup) {
    let mut wire = setup.wire();
    let arguments = &table(&[BLOCK]);
    let queue = QueueDeclare {
        arguments,
        ..queue_on(b"q", 0)
    };
    let id = wire.request(FrameKind::QueueDeclare, &queue);
    let frame = wire.answer(id);
    assert_eq!(frame.code(), Code::SettingInvalid);
    assert_eq!(
        frame.reason(),
        "x-overflow block needs a limit of messages or bytes"
    );
    let limited = QueueDeclare {
        bytes_max: 1,
        ..queue
    };
    assert!(wire.declare(&limited));
    wire.bye();
}
