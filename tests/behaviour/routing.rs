//! Which queues a message goes to.

use ringpost_wire::control::{
    BIND_TO_EXCHANGE, Bind, Body, DELETE_IF_UNUSED, Delete, ExchangeDeclare, ExchangeKind, Level,
};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{Code, FrameKind, MessageParts};

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
    a_key_stays_with_its_queue
    lots_are_shared_out
    exchanges_are_bound_to_exchanges
    internal_exchanges_are_closed
    what_matches_nothing_goes_to_the_alternate
    filters_go_by_conditions
    filters_that_cannot_be_read_are_refused
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
            b"n" if part.exchange.is_empty() => Some((idx as u64, Code::Unroutable)),
            b"n" => Some((idx as u64, Code::ExchangeUnknown)),
            _ => None,
        })
        .collect();
    assert_eq!(refused, expected);
    let ready: Vec<_> = wire.queues().iter().map(|info| info.ready).collect();
    assert_eq!(ready, [50, 100, 50, 50]);
}

/// Publishes messages with these keys or headers and says how many each queue took.
fn shared_out(wire: &mut Wire, producer: &mut Producer, parts: &[MessageParts<'_>]) -> Vec<u64> {
    producer.confirm(wire, parts);
    let infos = wire.queues();
    let ready = infos.iter().map(|info| info.ready).collect();
    for info in &infos {
        wire.purge(&info.name);
    }
    ready
}

/// P-70
fn a_key_stays_with_its_queue(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 5);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::ConsistentHash));
    for (queue, weight) in [
        (b"q0", &b"1"[..]),
        (b"q1", b"2"),
        (b"q2", b""),
        (b"q3", b"4"),
    ] {
        assert!(wire.bind(b"x", queue, weight, b""));
    }
    let keys: Vec<String> = (0..800)
        .map(|number| format!("customer.{number}"))
        .collect();
    let parts: Vec<_> = keys
        .iter()
        .map(|key| to(b"x", key.as_bytes(), b"m"))
        .collect();
    let before = shared_out(&mut wire, &mut producer, &parts);
    assert_eq!(before.iter().sum::<u64>(), 800);
    for (ready, share) in before.iter().zip([100_u64, 200, 100, 400, 0]) {
        assert!(ready.abs_diff(share) <= 60, "{before:?}");
    }
    assert_eq!(shared_out(&mut wire, &mut producer, &parts), before);
    assert!(wire.bind(b"x", b"q4", b"8", b""));
    let with = shared_out(&mut wire, &mut producer, &parts);
    assert!(with[4].abs_diff(400) <= 60, "{with:?}");
    for queue in 0..4 {
        assert!(
            with[queue] <= before[queue],
            "nothing moves but to the new one"
        );
    }
    // One key, one queue; a header of the message in its place.
    let same = vec![to(b"x", b"customer.1", b"m"); 20];
    let ready = shared_out(&mut wire, &mut producer, &same);
    assert_eq!(ready.iter().filter(|count| **count > 0).count(), 1);
    let by_header = ExchangeDeclare {
        arguments: b"\x0dx-hash-headerS\0\0\0\x08customer",
        ..exchange(b"h", ExchangeKind::ConsistentHash)
    };
    wire.declare_exchange(&by_header);
    for queue in [b"q0", b"q1", b"q2", b"q3", b"q4"] {
        assert!(wire.bind(b"h", queue, b"", b""));
    }
    let one = MessageParts {
        headers: b"\x08customerb\x07",
        ..to(b"h", b"", b"m")
    };
    let wide = MessageParts {
        headers: b"\x08customerI\0\0\0\x07",
        ..to(b"h", b"another key", b"m")
    };
    let ready = shared_out(&mut wire, &mut producer, &[one, wide]);
    assert_eq!(ready.iter().max(), Some(&2), "{ready:?}");
    let refused = |wire: &mut Wire, key: &[u8]| {
        let bind = Bind {
            flags: 0,
            exchange: b"x",
            target: b"q0",
            key,
            arguments: b"",
        };
        let id = wire.request(FrameKind::Bind, &bind);
        wire.failed(id)
    };
    for key in [&b"0"[..], b"1001", b"many"] {
        assert_eq!(refused(&mut wire, key), Code::SettingInvalid);
    }
}

/// P-71
fn lots_are_shared_out(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 3);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Random));
    for (queue, weight) in [(b"q0", &b"1"[..]), (b"q1", b"1"), (b"q2", b"2")] {
        assert!(wire.bind(b"x", queue, weight, b""));
    }
    // One address: what was drawn for one message is not what the next one gets.
    let parts = vec![to(b"x", b"k", b"m"); 800];
    let ready = shared_out(&mut wire, &mut producer, &parts);
    assert_eq!(ready.iter().sum::<u64>(), 800);
    for (ready, share) in ready.iter().zip([200_u64, 200, 400]) {
        assert!(ready.abs_diff(share) <= 60, "{ready:?}");
    }
}

/// P-72
fn exchanges_are_bound_to_exchanges(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 4);
    wire.declare_exchange(&exchange(b"all", ExchangeKind::Topic));
    wire.declare_exchange(&exchange(b"some", ExchangeKind::Topic));
    wire.declare_exchange(&exchange(b"copies", ExchangeKind::Fanout));
    assert!(wire.bind_exchange(b"all", b"some", b"a.#"));
    assert!(!wire.bind_exchange(b"all", b"some", b"a.#"));
    wire.bind_exchange(b"some", b"copies", b"#.b");
    // In a circle, and to itself.
    wire.bind_exchange(b"copies", b"all", b"");
    wire.bind_exchange(b"all", b"all", b"#");
    wire.bind(b"all", b"q0", b"#", b"");
    wire.bind(b"some", b"q1", b"*.b", b"");
    wire.bind(b"copies", b"q2", b"", b"");
    wire.bind(b"copies", b"q1", b"", b"");
    for (from, key, expected) in [
        (&b"all"[..], &b"a.b"[..], &[0, 1, 2][..]),
        (b"all", b"a.c", &[0]),
        (b"all", b"b", &[0]),
        (b"some", b"x.b", &[0, 1, 2]),
        (b"copies", b"a.c", &[0, 1, 2]),
        (b"some", b"c", &[]),
    ] {
        let part = to(from, key, b"m");
        assert_eq!(
            takers(&mut wire, &mut producer, part),
            expected,
            "{from:?} {key:?}"
        );
    }
    let id = wire.request_bare(FrameKind::BindingList, 0);
    let mut flags = 0;
    loop {
        let frame = wire.answer(id);
        if frame.kind() == FrameKind::Done {
            break;
        }
        let bind = Bind::decode(&frame.body).unwrap();
        flags += bind.flags;
        assert_eq!(
            bind.flags == BIND_TO_EXCHANGE,
            !bind.target.starts_with(b"q")
        );
    }
    assert_eq!(flags, 4);
    // What is deleted takes bindings from it and to it along, and leaves the others.
    let delete = Delete {
        flags: DELETE_IF_UNUSED,
        name: b"some",
    };
    let id = wire.request(FrameKind::ExchangeDelete, &delete);
    assert_eq!(wire.failed(id), Code::InUse);
    let id = wire.request(FrameKind::ExchangeDelete, &Delete { flags: 0, ..delete });
    assert!(wire.done(id).0);
    let part = to(b"all", b"a.b", b"m");
    assert_eq!(takers(&mut wire, &mut producer, part), [0]);
    wire.declare_exchange(&exchange(b"some", ExchangeKind::Fanout));
    wire.bind(b"some", b"q3", b"", b"");
    let part = to(b"all", b"a.b", b"m");
    assert_eq!(
        takers(&mut wire, &mut producer, part),
        [0],
        "another one of that name"
    );
}

/// P-73
fn internal_exchanges_are_closed(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 2);
    let inner = ExchangeDeclare {
        arguments: b"\x0ax-internalt\x01",
        ..exchange(b"inner", ExchangeKind::Fanout)
    };
    wire.declare_exchange(&inner);
    wire.declare_exchange(&exchange(b"outer", ExchangeKind::Fanout));
    wire.bind(b"inner", b"q1", b"", b"");
    wire.bind_exchange(b"outer", b"inner", b"");
    let parts = [
        to(b"outer", b"k", b"m"),
        to(b"inner", b"k", b"m"),
        to_queue(b"q0", b"m"),
    ];
    for _ in 0..2 {
        let first = producer.publish(&mut wire, 0, &parts);
        producer.settle(&mut wire);
        let refused = std::mem::take(&mut producer.refused);
        assert_eq!(refused, [(first + 1, first + 1, Code::PermissionDenied)]);
    }
    let ready: Vec<_> = wire.queues().iter().map(|info| info.ready).collect();
    assert_eq!(ready, [2, 2]);
    let text = ExchangeDeclare {
        arguments: b"\x0ax-internalS\0\0\0\x01y",
        ..exchange(b"other", ExchangeKind::Fanout)
    };
    let id = wire.request(FrameKind::ExchangeDeclare, &text);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    let open = exchange(b"inner", ExchangeKind::Fanout);
    let differs = ExchangeDeclare {
        arguments: b"\x0ax-internalt\0",
        ..open
    };
    let id = wire.request(FrameKind::ExchangeDeclare, &differs);
    assert_eq!(wire.failed(id), Code::PreconditionFailed);
}

/// P-74
fn what_matches_nothing_goes_to_the_alternate(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 4);
    let with = |name: &'static [u8], alternate: &'static [u8]| ExchangeDeclare {
        arguments: alternate,
        ..exchange(name, ExchangeKind::Direct)
    };
    wire.declare_exchange(&with(b"one", b"\x14x-alternate-exchangeS\0\0\0\x03two"));
    wire.bind(b"one", b"q0", b"a", b"");
    let none = to(b"one", b"b", b"m");
    assert!(
        takers(&mut wire, &mut producer, none).is_empty(),
        "nobody there yet"
    );
    // Round in a circle.
    wire.declare_exchange(&with(b"two", b"\x14x-alternate-exchangeS\0\0\0\x03one"));
    wire.bind(b"two", b"q1", b"b", b"");
    for (key, expected) in [(&b"a"[..], &[0][..]), (b"b", &[1]), (b"c", &[])] {
        let part = to(b"one", key, b"m");
        assert_eq!(takers(&mut wire, &mut producer, part), expected);
    }
    let unroutable = producer.publish(&mut wire, 1, &[to(b"one", b"c", b"m")]);
    producer.settle(&mut wire);
    assert_eq!(
        std::mem::take(&mut producer.refused),
        [(unroutable, unroutable, Code::Unroutable)]
    );
    // To the queue that the routing key names.
    wire.declare_exchange(&with(b"three", b"\x14x-alternate-exchangeS\0\0\0\0"));
    let part = to(b"three", b"q3", b"m");
    assert_eq!(takers(&mut wire, &mut producer, part), [3]);
}

/// A field table.
fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (key, value) in entries {
        writer.put(key.as_bytes(), *value);
    }
    writer.finish().unwrap();
    bytes
}

fn condition(text: &str) -> Vec<u8> {
    table(&[("x-filter", Value::Text(text.as_bytes()))])
}

/// P-75
fn filters_go_by_conditions(setup: &Setup) {
    let (mut wire, mut producer) = queues(setup, 5);
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Filter));
    let with_body = table(&[
        (
            "x-filter",
            Value::Text(b"body.order.total > 100 OR body.order.lines.0.sku LIKE 'A%'"),
        ),
        ("x-filter-body", Value::Bool(true)),
    ]);
    for (queue, arguments) in [
        (b"q0", condition("colour = 'red' AND size BETWEEN 5 AND 10")),
        (b"q1", condition("NOT colour = 'red'")),
        (
            b"q2",
            condition("sys.priority >= 5 AND sys.routing_key LIKE 'order.%'"),
        ),
        (
            b"q2",
            condition("colour IN ('red', 'blue') AND size * 2 = 14"),
        ),
        (b"q3", with_body),
        (b"q4", condition("sys.message_id IS NOT NULL")),
    ] {
        assert!(wire.bind(b"x", queue, b"", &arguments));
        assert!(!wire.bind(b"x", queue, b"", &arguments));
    }
    let red = table(&[("colour", Value::Text(b"red")), ("size", Value::I8(7))]);
    let blue = table(&[("colour", Value::Text(b"blue")), ("size", Value::F64(7.0))]);
    let plain = to(b"x", b"order.new", b"m");
    for (part, expected) in [
        (plain, &[][..]),
        (
            MessageParts {
                headers: &red,
                ..plain
            },
            &[0, 2],
        ),
        (
            MessageParts {
                headers: &blue,
                ..plain
            },
            &[1, 2],
        ),
        (
            MessageParts {
                priority: 5,
                ..plain
            },
            &[2],
        ),
        (
            MessageParts {
                properties: b"\0\x80\x02id",
                ..plain
            },
            &[4],
        ),
        (to(b"x", b"k", br#"{"order": {"total": 100.5}}"#), &[3]),
        (
            to(
                b"x",
                b"k",
                br#"{"order": {"lines": [{"sku": "\u0041-1"}]}}"#,
            ),
            &[3],
        ),
        (to(b"x", b"k", br#"{"order": {"total": 100.5}"#), &[]),
    ] {
        assert_eq!(takers(&mut wire, &mut producer, part), expected, "{part:?}");
    }
    // Longer than is looked at.
    let mut long = br#"{"order": {"total": 200}}"#.to_vec();
    long.resize(65_536, b' ');
    assert_eq!(takers(&mut wire, &mut producer, to(b"x", b"k", &long)), [3]);
    long.push(b' ');
    assert!(takers(&mut wire, &mut producer, to(b"x", b"k", &long)).is_empty());
    long.resize(300_000, b' ');
    let part = MessageParts {
        headers: &red,
        ..to(b"x", b"k", &long)
    };
    assert_eq!(takers(&mut wire, &mut producer, part), [0, 2], "in pieces");
}

/// P-75
fn filters_that_cannot_be_read_are_refused(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue_on(b"q0", 0));
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Filter));
    for (arguments, expected) in [
        (
            condition("colour = "),
            "x-filter, character 10: expected a field",
        ),
        (
            condition("colour = 'red"),
            "x-filter, character 10: this quote is never closed",
        ),
        (condition("body.a = 1"), "only with x-filter-body true"),
        (condition(&"a".repeat(4_097)), "at most 4096"),
        (Vec::new(), "x-filter"),
        (table(&[("x-filtre", Value::Text(b"a = 1"))]), "no setting"),
    ] {
        let bind = Bind {
            flags: 0,
            exchange: b"x",
            target: b"q0",
            key: b"",
            arguments: &arguments,
        };
        let id = wire.request(FrameKind::Bind, &bind);
        let answer = wire.answer(id);
        assert_eq!(
            (answer.kind(), answer.code()),
            (FrameKind::Failed, Code::SettingInvalid)
        );
        assert!(answer.reason().contains(expected), "{}", answer.reason());
    }
}
