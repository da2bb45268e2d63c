//! Which queues a message goes to.

use ringpost_wire::MessageParts;
use ringpost_wire::control::{ExchangeKind, Level};
use ringpost_wire::table::{TableWriter, Value};

use crate::wire::{Producer, Wire, exchange, queue_on, to, to_queue};
use crate::{Setup, on_cores};

on_cores! {
    direct_goes_by_the_whole_key
    fanout_goes_everywhere
    topic_goes_by_pattern
    headers_go_by_arguments
    the_default_exchange_goes_by_name
    a_message_goes_once_to_a_queue
    one_frame_may_go_many_ways
}

/// Queues `q0` and on, spread over the cores, and a producer.
fn queues(setup: &Setup, count: u16) -> (Wire, Producer) {
    let mut wire = setup.wire();
    for number in 0..count {
        wire.declare(&queue_on(format!("q{number}").as_bytes(), number % 16));
    }
    let producer = wire.producer(1, Level::Durable);
    (wire, producer)
}

/// Publishes one message and says which queues took it.
#[track_caller]
fn takers(wire: &mut Wire, producer: &mut Producer, part: MessageParts<'_>) -> Vec<u16> {
    producer.confirm(wire, &[part]);
    let mut takers = Vec::new();
    for info in wire.queues() {
        assert!(info.ready <= 1, "{info:?}");
        if info.ready == 1 {
            assert_eq!(wire.purge(&info.name), 1);
            takers.push(
                String::from_utf8(info.name[1..].to_vec())
                    .unwrap()
                    .parse()
                    .unwrap(),
            );
        }
    }
    takers.sort_unstable();
    takers
}

/// P-64
fn direct_goes_by_the_whole_key(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 3);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Direct));
    wire.bind(b"x", b"q0", b"red", b"");
    wire.bind(b"x", b"q1", b"red", b"");
    wire.bind(b"x", b"q1", b"blue", b"");
    wire.bind(b"x", b"q2", b"", b"");
    for (key, expected) in [
        (&b"red"[..], &[0, 1][..]),
        (b"blue", &[1]),
        (b"", &[2]),
        (b"re", &[]),
        (b"red.x", &[]),
        (b"*", &[]),
    ] {
        assert_eq!(
            takers(&mut wire, &mut producer, to(b"x", key, b"m")),
            expected
        );
    }
}

fn fanout_goes_everywhere(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 6);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    for number in 0..5 {
        wire.bind(b"x", format!("q{number}").as_bytes(), b"whatever", b"");
    }
    for key in [&b""[..], b"k"] {
        let part = to(b"x", key, b"m");
        assert_eq!(takers(&mut wire, &mut producer, part), [0, 1, 2, 3, 4]);
    }
}

fn topic_goes_by_pattern(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 7);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Topic));
    for (number, pattern) in ["a.b", "a.*", "a.#", "#", "*.b", "#.b.#", ""]
        .iter()
        .enumerate()
    {
        wire.bind(
            b"x",
            format!("q{number}").as_bytes(),
            pattern.as_bytes(),
            b"",
        );
    }
    for (key, expected) in [
        (&b"a.b"[..], &[0, 1, 2, 3, 4, 5][..]),
        (b"a", &[2, 3]),
        (b"a.c", &[1, 2, 3]),
        (b"a.b.c", &[2, 3, 5]),
        (b"x.y.b", &[3, 5]),
        (b"b", &[3, 5]),
        (b"a.", &[1, 2, 3]),
    ] {
        let part = to(b"x", key, b"m");
        let key = String::from_utf8_lossy(key);
        assert_eq!(takers(&mut wire, &mut producer, part), expected, "{key}");
    }
}

/// P-65, P-66
fn headers_go_by_arguments(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 5);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Headers));
    let table = |entries: &[(&[u8], Value<'_>)]| {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (key, value) in entries {
            writer.put(key, *value);
        }
        writer.finish().unwrap();
        bytes
    };
    let red = (&b"colour"[..], Value::Text(b"red"));
    let size = (&b"size"[..], Value::I32(7));
    let matched = |how| (&b"x-match"[..], Value::Text(how));
    for (number, arguments) in [
        table(&[red, size]),
        table(&[matched(b"any"), red, size]),
        table(&[matched(b"all"), (b"size", Value::Void)]),
        table(&[matched(b"all-with-x"), (b"x-kind", Value::I64(1)), red]),
        table(&[]),
    ]
    .iter()
    .enumerate()
    {
        wire.bind(b"x", format!("q{number}").as_bytes(), b"", arguments);
    }
    for (headers, expected) in [
        (table(&[red, (b"size", Value::U8(7))]), &[0, 1, 2, 4][..]),
        (table(&[red]), &[1, 4]),
        (table(&[(b"size", Value::Text(b"seven"))]), &[2, 4]),
        (table(&[red, (b"x-kind", Value::U16(1))]), &[1, 3, 4]),
        (table(&[(b"colour", Value::Bytes(b"red"))]), &[4]),
        (table(&[]), &[4]),
    ] {
        let part = MessageParts {
            headers: &headers,
            ..to(b"x", b"ignored", b"m")
        };
        assert_eq!(takers(&mut wire, &mut producer, part), expected);
    }
}

/// P-60
fn the_default_exchange_goes_by_name(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 4);
    for number in 0..4 {
        let name = format!("q{number}");
        let part = to_queue(name.as_bytes(), b"m");
        assert_eq!(takers(&mut wire, &mut producer, part), [number]);
    }
    assert!(takers(&mut wire, &mut producer, to_queue(b"q9", b"m")).is_empty());
}

/// P-64
fn a_message_goes_once_to_a_queue(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 2);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Topic));
    for pattern in ["#", "a.#", "*.b", "a.b"] {
        wire.bind(b"x", b"q0", pattern.as_bytes(), b"");
        wire.bind(b"x", b"q1", pattern.as_bytes(), b"");
    }
    assert_eq!(
        takers(&mut wire, &mut producer, to(b"x", b"a.b", b"m")),
        [0, 1]
    );
}

/// A frame is cut into groups of one fate; each message keeps its own.
fn one_frame_may_go_many_ways(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 4);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    wire.bind(b"x", b"q2", b"", b"");
    wire.bind(b"x", b"q3", b"", b"");
    let mut parts = Vec::new();
    for round in 0..50 {
        parts.push(to_queue(b"q0", b"0"));
        parts.push(to_queue(b"q1", b"1"));
        parts.push(to_queue(b"q1", b"1"));
        parts.push(to(b"x", b"k", b"x"));
        if round % 5 == 0 {
            parts.push(to_queue(b"nowhere", b"n"));
            parts.push(to(b"no exchange", b"k", b"n"));
        }
    }
    let first = producer.publish(&mut wire, 1, &parts);
    producer.settle(&mut wire);
    let mut refused = Vec::new();
    for (from, to, code) in &producer.refused {
        refused.extend((*from..=*to).map(|sequence| (sequence - first, *code)));
    }
    refused.sort_by_key(|(sequence, _)| *sequence);
    let expected: Vec<_> = parts
        .iter()
        .enumerate()
        .filter_map(|(idx, part)| match part.payload {
            b"n" if part.exchange.is_empty() => Some((idx as u64, ringpost_wire::Code::Unroutable)),
            b"n" => Some((idx as u64, ringpost_wire::Code::ExchangeUnknown)),
            _ => None,
        })
        .collect();
    assert_eq!(refused, expected);
    let ready: Vec<_> = wire.queues().iter().map(|info| info.ready).collect();
    assert_eq!(ready, [50, 100, 50, 50]);
}
