//! Messages of every length that matters, whole and in pieces.

use ringpost_wire::control::Level;
use ringpost_wire::header::PUBLISH_MANDATORY;
use ringpost_wire::{Code, ENVELOPE_BYTES, FRAGMENT_BYTES_MAX, MessageParts};

use crate::broker::Broker;
use crate::wire::{Wire, consumer, exchange, filler, message, queue_on, to, to_queue, volatile};
use crate::{Setup, on_cores};

on_cores! { least:
    every_length_survives
    pieces_need_only_the_credit_of_a_piece
    a_message_over_the_limit_is_refused
    large_messages_keep_their_place
    large_messages_fan_out
    a_large_message_that_is_never_finished
    large_messages_are_refused_like_others
    large_messages_return
    memory_for_large_messages_comes_back
    many_large_messages_at_once
    large_messages_are_larger_than_the_cache
}

/// A payload that makes a message to `q` exactly so long.
fn payload_of(message_bytes: usize) -> Vec<u8> {
    filler(message_bytes as u64, message_bytes - ENVELOPE_BYTES - 1)
}

/// P-31, P-46
fn every_length_survives(setup: &Setup) {
    for core in 0..setup.cores() {
        for volatiles in [false, true] {
            let mut wire = setup.wire();
            wire.declare(&match volatiles {
                true => volatile(queue_on(b"q", core)),
                false => queue_on(b"q", core),
            });
            wire.consume(2, &consumer(b"q", 3));
            let mut producer = wire.producer(1, Level::Volatile);
            let border = FRAGMENT_BYTES_MAX;
            for bytes in [
                ENVELOPE_BYTES + 1,
                ENVELOPE_BYTES + 15,
                ENVELOPE_BYTES + 16,
                ENVELOPE_BYTES + 17,
                2047,
                2048,
                2049,
                border - 1,
                border,
                border + 1,
                2 * border - 1,
                2 * border,
                2 * border + 1,
                1 << 20,
                3_000_001,
            ] {
                // What a volatile queue holds is memory.
                if volatiles && bytes > 3 * border {
                    continue;
                }
                let payload = payload_of(bytes);
                let part = to_queue(b"q", &payload);
                assert_eq!(part.length(), bytes);
                producer.confirm(&mut wire, &[to_queue(b"q", b"before")]);
                producer.confirm(&mut wire, &[part]);
                producer.confirm(&mut wire, &[to_queue(b"q", b"after")]);
                let all = wire.deliveries(2, 3);
                assert_eq!(all[0].payload, b"before");
                assert!(all[1].payload == payload, "{bytes} bytes came back changed");
                assert_eq!(all[2].payload, b"after");
                wire.settle_surely(2, 0, &[(all[0].tag, all[2].tag)]);
            }
            wire.delete(b"q");
        }
    }
}

/// P-33
fn pieces_need_only_the_credit_of_a_piece(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue_on(b"q", setup.cores() - 1));
    wire.consume(2, &consumer(b"q", 1));
    let payload = payload_of(16 << 20);
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"q", &payload)]);
    let one = wire.deliveries(2, 1);
    assert!(
        one[0].payload == payload,
        "the largest message came back changed"
    );
    wire.settle_surely(2, 0, &[(1, 1)]);
    assert_eq!(wire.inspect(b"q").bytes, 0);
}

/// P-22
fn a_message_over_the_limit_is_refused(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue_on(b"q", 0));
    let payload = payload_of((16 << 20) + 1);
    let mut producer = wire.producer(1, Level::Durable);
    let code = producer.refused(&mut wire, 0, to_queue(b"q", &payload));
    assert_eq!(code, Code::MessageTooLarge);
    // The next publish has the next sequence.
    producer.confirm(&mut wire, &[to_queue(b"q", b"next")]);
    assert_eq!(wire.inspect(b"q").ready, 1);
}

fn large_messages_keep_their_place(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"q", core));
        let mut producer = wire.producer(1, Level::Durable);
        let payloads: Vec<_> = (0..12_u64)
            .map(|number| filler(number, if number % 3 == 0 { 500_000 } else { 100 }))
            .collect();
        for payload in &payloads {
            producer.confirm(&mut wire, &[to_queue(b"q", payload)]);
        }
        wire.consume(2, &consumer(b"q", 100));
        let all = wire.deliveries(2, 12);
        for (delivery, payload) in all.iter().zip(&payloads) {
            assert!(
                delivery.payload == *payload,
                "at {}",
                delivery.queue_sequence
            );
        }
        wire.delete(b"q");
    }
}

fn large_messages_fan_out(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare_exchange(&exchange(
        b"x",
        ringpost_wire::control::ExchangeKind::Fanout,
    ));
    for number in 0..4_u16 {
        let name = format!("q{number}");
        wire.declare(&queue_on(name.as_bytes(), number));
        wire.bind(b"x", name.as_bytes(), b"", b"");
        wire.consume(10 + number, &consumer(name.as_bytes(), 10));
    }
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(5, 700_000);
    producer.confirm(&mut wire, &[to(b"x", b"", &payload)]);
    producer.confirm(&mut wire, &[to(b"x", b"", b"small")]);
    for number in 0..4_u16 {
        let both = wire.deliveries(10 + number, 2);
        assert!(both[0].payload == payload && both[1].payload == b"small");
    }
}

/// P-17, P-31: nothing of it is seen, and the memory comes back.
fn a_large_message_that_is_never_finished(setup: &Setup) {
    let mut watcher = setup.wire();
    watcher.declare(&queue_on(b"q", 0));
    let large = message(&to_queue(b"q", &payload_of(15 << 20)));
    for round in 0..12 {
        let mut wire = setup.wire();
        let mut producer = wire.producer(1, Level::Durable);
        producer.reserve(&mut wire, 1, FRAGMENT_BYTES_MAX as u64);
        producer.send_piece(&mut wire, 0, large.len(), 0, &large[..FRAGMENT_BYTES_MAX]);
        match round % 3 {
            0 => wire.drop_dead(),
            1 => {
                let producer = producer.close(&mut wire);
                assert_eq!(producer.confirmed, 0);
                wire.bye();
            }
            _ => wire.bye(),
        }
    }
    assert_eq!(watcher.inspect(b"q").published, 0);
    let mut producer = watcher.producer(1, Level::Durable);
    producer.confirm(&mut watcher, &[to_queue(b"q", &payload_of(15 << 20))]);
}

/// P-36, P-37
fn large_messages_are_refused_like_others(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&volatile(queue_on(b"v", 0)));
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(1, 300_000);
    let mut refused = |flags, part| producer.refused(&mut wire, flags, part);
    let part = to_queue(b"nowhere", &payload);
    assert_eq!(refused(PUBLISH_MANDATORY, part), Code::Unroutable);
    assert_eq!(refused(0, to_queue(b"v", &payload)), Code::LevelUnavailable);
    assert_eq!(
        refused(0, to(b"none", b"", &payload)),
        Code::ExchangeUnknown
    );
    producer.confirm(&mut wire, &[part]);
}

/// P-47
fn large_messages_return(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"q", core));
        wire.consume(2, &consumer(b"q", 1));
        let payload = filler(1, 900_000);
        let mut producer = wire.producer(1, Level::Durable);
        producer.confirm(&mut wire, &[to_queue(b"q", &payload)]);
        producer.confirm(&mut wire, &[to_queue(b"q", b"small")]);
        for count in 0..4 {
            let one = wire.deliveries(2, 1);
            assert!(one[0].payload == payload);
            assert_eq!((one[0].count, one[0].queue_sequence), (count, 1));
            wire.settle(2, 1, &[(one[0].tag, one[0].tag)]);
        }
        let last = wire.deliveries(2, 1);
        wire.settle(2, 2, &[(last[0].tag, last[0].tag)]);
        assert_eq!(wire.deliveries(2, 1)[0].payload, b"small");
        wire.delete(b"q");
    }
}

/// Many more than fit at a time, to every place that a message can go.
fn memory_for_large_messages_comes_back(setup: &Setup) {
    let mut wire = setup.wire();
    for core in 0..setup.cores() {
        wire.declare(&queue_on(format!("q{core}").as_bytes(), core));
        wire.declare(&volatile(queue_on(format!("v{core}").as_bytes(), core)));
    }
    let mut producer = wire.producer(1, Level::Volatile);
    let payload = filler(1, 4 << 20);
    for round in 0..24 {
        let core = round / 3 % setup.cores();
        let name = match round % 3 {
            0 => format!("q{core}"),
            1 => format!("v{core}"),
            _ => "nowhere".to_owned(),
        };
        let part = MessageParts {
            routing_key: name.as_bytes(),
            payload: &payload,
            ..MessageParts::default()
        };
        producer.publish(&mut wire, 0, &[part]);
        producer.settle(&mut wire);
        // What a volatile queue holds is memory, of which there is too little.
        if name.starts_with('v') {
            let (_, _, code) = producer.refused.pop().expect("it does not fit");
            assert_eq!(code, Code::QueueFull);
        }
        assert_eq!(producer.refused, []);
        wire.purge_if(name.as_bytes());
    }
}

/// P-31, P-33: all of them are begun before one is finished, on one connection and for several queues;
/// with the least memory they are taken one after the other. Others that are begun meanwhile could be
/// refused, so the broker is its own.
fn many_large_messages_at_once(setup: &Setup) {
    let broker = Broker::least(setup.cores());
    let mut wire = Wire::open(&broker);
    wire.declare_exchange(&exchange(
        b"x",
        ringpost_wire::control::ExchangeKind::Fanout,
    ));
    for number in 0..3_u16 {
        let name = format!("q{number}");
        wire.declare(&queue_on(name.as_bytes(), number));
        wire.bind(b"x", name.as_bytes(), b"", b"");
    }
    let levels = [Level::Durable, Level::Volatile];
    let mut producers: Vec<_> = (1..=12_u16)
        .map(|channel| wire.producer(channel, levels[usize::from(channel % 2)]))
        .collect();
    let payloads: Vec<_> = (0..12_u64)
        .map(|number| filler(number, (1 << 20) + number as usize * 250_000))
        .collect();
    let messages: Vec<_> = payloads
        .iter()
        .map(|payload| message(&to(b"x", b"", payload)))
        .collect();
    let mut sent = vec![0; messages.len()];
    while (0..messages.len()).any(|idx| sent[idx] < messages[idx].len()) {
        let mut any = false;
        for (idx, producer) in producers.iter_mut().enumerate() {
            let piece = messages[idx][sent[idx]..].chunks(FRAGMENT_BYTES_MAX).next();
            if let Some(piece) = piece
                && producer.may_publish(u64::from(sent[idx] == 0), piece.len() as u64)
            {
                producer.reserve(&mut wire, u64::from(sent[idx] == 0), piece.len() as u64);
                let whole = messages[idx].len();
                producer.send_piece(&mut wire, 0, whole, sent[idx], piece);
                sent[idx] += piece.len();
                any = true;
                if sent[idx] == whole {
                    producer.next += 1;
                }
            }
        }
        if !any {
            let frame = wire.wait(|frame| (1..=12).contains(&frame.header.channel));
            producers[usize::from(frame.header.channel) - 1].hear(&frame);
        }
    }
    for producer in &mut producers {
        producer.settle(&mut wire);
        assert_eq!(producer.refused, []);
    }
    for number in 0..3_u16 {
        let name = format!("q{number}");
        let channel = 20 + number;
        wire.consume(channel, &consumer(name.as_bytes(), 2));
        for _ in 0..12 {
            let one = wire.deliveries(channel, 1).remove(0);
            let original = payloads.contains(&one.payload);
            assert!(original, "{} bytes came back changed", one.payload.len());
            wire.settle(channel, 0, &[(one.tag, one.tag)]);
        }
    }
}

/// P-46: delivered piece by piece, to several consumers at a time, also without acks.
fn large_messages_are_larger_than_the_cache(setup: &Setup) {
    let mut wire = setup.wire();
    let far = setup.cores() - 1;
    for name in [&b"q"[..], b"n"] {
        wire.declare(&queue_on(name, far));
        let mut producer = wire.producer(if name == b"q" { 1 } else { 2 }, Level::Durable);
        for number in 0..3_u64 {
            let payload = filler(number, (6 << 20) + number as usize);
            producer.confirm(&mut wire, &[to_queue(name, &payload)]);
        }
    }
    let mut readers = [setup.wire(), setup.wire(), setup.wire()];
    readers[0].consume(5, &consumer(b"q", 1));
    readers[1].consume(5, &consumer(b"q", 1));
    readers[2].consume(
        5,
        &ringpost_wire::control::ConsumerOpen {
            flags: ringpost_wire::control::CONSUMER_NO_ACK,
            ..consumer(b"n", 1)
        },
    );
    let is_right = |payload: &[u8]| {
        let number = (payload.len() - (6 << 20)) as u64;
        assert!(payload == filler(number, payload.len()), "message {number}");
    };
    for reader in &mut readers[..2] {
        is_right(&reader.deliveries(5, 1)[0].payload);
    }
    readers[0].settle_surely(5, 0, &[(1, 1)]);
    is_right(&readers[0].deliveries(5, 1)[0].payload);
    for _ in 0..3 {
        is_right(&readers[2].deliveries(5, 1)[0].payload);
    }
    // The first connection was silent for as long as that took.
    let mut wire = setup.wire();
    wire.until(b"n", |info| info.settled == 3 && info.bytes == 0);
}
