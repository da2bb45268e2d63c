//! Who gets which messages: priorities, policies, the single active consumer, and who holds for too long.

use std::collections::BTreeMap;

use ringpost_wire::control::{
    Body, CONSUMER_NO_ACK, ConsumerInfo, ConsumerOpen, Level, PRODUCER_DOWNGRADE, QueueDeclare,
};
use ringpost_wire::header::CONSUMER_IS_ACTIVE;
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{Code, FrameHeader, FrameKind, MessageParts};

use crate::wire::{Delivery, Wire, consumer, deliveries, payloads, queue_on, to_queue, volatile};
use crate::{Setup, on_cores};

on_cores! {
    settings_are_checked_when_a_queue_is_declared
    arguments_of_consumers_are_checked
    higher_priorities_come_first
    weights_are_shares
    chance_gives_to_everybody
    who_holds_less_gets_more
    keys_stay_with_their_consumer
    groups_keep_a_key_at_one_consumer_in_order
    what_groups_cannot_go_with_is_refused
    one_is_active_and_the_next_takes_over
    a_higher_priority_takes_over_when_nothing_is_held
    who_holds_for_too_long_loses_it
    consumers_say_what_they_hold
}

const ACK: u8 = 0;
const REQUEUE: u8 = 1;

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().unwrap();
    bytes
}

/// A connection with the queue `q` of these arguments on every core in turn, durable and volatile.
fn everywhere(
    setup: &Setup,
    arguments: &[(&str, Value<'_>)],
    mut test: impl FnMut(&mut Wire, u16),
) {
    let arguments = &table(arguments);
    for core in 0..setup.cores() {
        for make in [|declare| declare, volatile] {
            let mut wire = setup.wire();
            let queue = QueueDeclare {
                arguments,
                ..queue_on(b"q", core)
            };
            wire.declare(&make(queue));
            test(&mut wire, core);
            wire.delete(b"q");
        }
    }
}

/// Publishes messages whose payloads are their numbers.
fn fill(wire: &mut Wire, numbers: std::ops::Range<u32>) {
    let payloads: Vec<_> = numbers.map(|number| number.to_string()).collect();
    let parts: Vec<_> = payloads
        .iter()
        .map(|text| to_queue(b"q", text.as_bytes()))
        .collect();
    publish(wire, &parts);
}

fn publish(wire: &mut Wire, parts: &[MessageParts<'_>]) {
    let mut producer = wire.producer_with(4000, Level::Durable, PRODUCER_DOWNGRADE);
    producer.confirm(wire, parts);
    producer.close(wire);
}

fn numbers(deliveries: &[Delivery]) -> Vec<u32> {
    let number = |payload: &&[u8]| std::str::from_utf8(payload).unwrap().parse().unwrap();
    payloads(deliveries).iter().map(number).collect()
}

/// The next so many deliveries of all channels, by channel.
#[track_caller]
fn gather(wire: &mut Wire, count: usize) -> BTreeMap<u16, Vec<Delivery>> {
    let mut all: BTreeMap<u16, Vec<Delivery>> = BTreeMap::new();
    let mut found = 0;
    while found < count {
        let frame = wire.wait(|frame| frame.kind() == FrameKind::Deliver);
        let these = deliveries(&frame);
        found += these.len();
        all.entry(frame.header.channel).or_default().extend(these);
    }
    assert_eq!(found, count, "more was delivered than expected");
    all
}

fn consume_with(wire: &mut Wire, channel: u16, credit: u32, arguments: &[(&str, Value<'_>)]) {
    let arguments = &table(arguments);
    let open = ConsumerOpen {
        arguments,
        ..consumer(b"q", credit)
    };
    wire.consume(channel, &open);
}

/// Waits until a consumer is told whether it is active.
#[track_caller]
fn told(wire: &mut Wire, channel: u16) -> bool {
    let frame = wire.wait_on(FrameKind::ConsumerActive, channel);
    assert!(frame.body.is_empty() && frame.header.sequence == 0);
    frame.header.flags & CONSUMER_IS_ACTIVE != 0
}

#[track_caller]
fn held(wire: &mut Wire, channel: u16) -> ConsumerInfo {
    let id = wire.request_bare(FrameKind::ConsumerInspect, channel);
    let frame = wire.answer(id);
    assert_eq!(frame.kind(), FrameKind::ConsumerInfo, "{frame:?}");
    assert_eq!(frame.header.channel, channel);
    ConsumerInfo::decode(&frame.body).unwrap()
}

/// P-51
fn settings_are_checked_when_a_queue_is_declared(setup: &Setup) {
    let mut wire = setup.wire();
    for (entry, reason) in [
        (
            ("x-dispatch", Value::Text(b"fair")),
            "x-dispatch is 'fair', not one of round-robin, random, weighted",
        ),
        (
            ("x-sticky-header", Value::Text(b"customer")),
            "x-sticky-header is of use only where x-dispatch is sticky",
        ),
        (
            ("x-single-active-consumer", Value::I8(1)),
            "x-single-active-consumer is neither true nor false",
        ),
        (
            ("x-consumer-hold-max", Value::I32(999)),
            "x-consumer-hold-max is 999, not 1000 to 86400000",
        ),
        (
            ("x-consumer-hold-max", Value::I32(86_400_001)),
            "x-consumer-hold-max is 86400001, not 1000 to 86400000",
        ),
        (
            ("x-dispach", Value::Text(b"random")),
            "'x-dispach' is no setting of a queue",
        ),
    ] {
        let queue = QueueDeclare {
            arguments: &table(&[entry]),
            ..queue_on(b"q", 0)
        };
        let id = wire.request(FrameKind::QueueDeclare, &queue);
        let frame = wire.answer(id);
        assert_eq!(frame.kind(), FrameKind::Failed);
        assert_eq!(frame.code(), Code::SettingInvalid);
        assert!(frame.reason().contains(reason), "{}", frame.reason());
    }
    for ms in [1_000, 86_400_000] {
        let queue = QueueDeclare {
            arguments: &table(&[("x-consumer-hold-max", Value::I32(ms))]),
            ..queue_on(b"q", 0)
        };
        assert!(wire.declare(&queue));
        // The same is nothing new, another is refused.
        assert!(!wire.declare(&queue));
        let other = QueueDeclare {
            arguments: &table(&[("x-consumer-hold-max", Value::I32(2_000))]),
            ..queue_on(b"q", 0)
        };
        let id = wire.request(FrameKind::QueueDeclare, &other);
        assert_eq!(wire.failed(id), Code::PreconditionFailed);
        wire.delete(b"q");
    }
    wire.bye();
}

/// P-50
fn arguments_of_consumers_are_checked(setup: &Setup) {
    everywhere(setup, &[], |wire, _| {
        for (arguments, reason) in [
            (
                table(&[("x-priority", Value::I8(11))]),
                "x-priority is 11, not -10 to 10",
            ),
            (
                table(&[("x-priority", Value::I64(-11))]),
                "x-priority is -11, not -10 to 10",
            ),
            (
                table(&[("x-weight", Value::I8(0))]),
                "x-weight is 0, not 1 to 100",
            ),
            (
                table(&[("x-weight", Value::U8(101))]),
                "x-weight is 101, not 1 to 100",
            ),
            (
                table(&[("x-prio", Value::I8(1))]),
                "'x-prio' is no setting of a consumer",
            ),
            (b"\xff".to_vec(), "arguments are not a field table"),
        ] {
            let open = ConsumerOpen {
                arguments: &arguments,
                ..consumer(b"q", 1)
            };
            let id = wire.request_on(FrameKind::ConsumerOpen, 1, &open);
            let frame = wire.answer(id);
            assert_eq!(
                (frame.kind(), frame.code()),
                (FrameKind::Failed, Code::SettingInvalid)
            );
            assert!(frame.reason().contains(reason), "{}", frame.reason());
        }
        // The channel is free, and what is no setting says nothing.
        for (priority, weight) in [(-10, 1), (10, 100)] {
            let all = [
                ("x-priority", Value::I8(priority)),
                ("x-weight", Value::I8(weight)),
                ("owner", Value::Text(b"shop")),
            ];
            consume_with(wire, 1, 1, &all);
            wire.close_consumer(1);
        }
    });
}

/// P-50
fn higher_priorities_come_first(setup: &Setup) {
    everywhere(setup, &[], |wire, _| {
        consume_with(wire, 1, 5, &[("x-priority", Value::I8(-1))]);
        consume_with(wire, 2, 3, &[("x-priority", Value::I8(1))]);
        consume_with(wire, 3, 2, &[]);
        fill(wire, 0..8);
        let all = gather(wire, 8);
        assert_eq!(numbers(&all[&2]), [0, 1, 2]);
        assert_eq!(numbers(&all[&3]), [3, 4]);
        assert_eq!(numbers(&all[&1]), [5, 6, 7]);
        // Room at the top is used first, what comes back included.
        wire.settle_surely(1, REQUEUE, &[(1, 1)]);
        assert_eq!(numbers(&gather(wire, 1)[&1]), [5]);
        wire.settle_surely(2, ACK, &[(1, 2)]);
        fill(wire, 8..11);
        let all = gather(wire, 3);
        assert_eq!(numbers(&all[&2]), [8, 9]);
        assert_eq!(numbers(&all[&1]), [10]);
    });
}

/// P-51
fn weights_are_shares(setup: &Setup) {
    let weighted = [("x-dispatch", Value::Text(b"weighted"))];
    everywhere(setup, &weighted, |wire, _| {
        consume_with(wire, 1, 1_000, &[]);
        consume_with(wire, 2, 1_000, &[("x-weight", Value::I8(3))]);
        for part in 0..20 {
            fill(wire, part * 20..(part + 1) * 20);
        }
        let all = gather(wire, 400);
        let shares = [all[&1].len(), all[&2].len()];
        assert!(shares[0].abs_diff(100) <= 4, "{shares:?}");
    });
}

/// P-51
fn chance_gives_to_everybody(setup: &Setup) {
    let random = [("x-dispatch", Value::Text(b"random"))];
    everywhere(setup, &random, |wire, _| {
        for channel in 1..=4 {
            wire.consume(channel, &consumer(b"q", 1_000));
        }
        for number in 0..100 {
            fill(wire, number..number + 1);
        }
        let all = gather(wire, 100);
        for channel in 1..=4 {
            let share = all[&channel].len();
            assert!((10..=45).contains(&share), "{channel} got {share}");
        }
    });
}

/// P-51
fn who_holds_less_gets_more(setup: &Setup) {
    let least = [("x-dispatch", Value::Text(b"least-outstanding"))];
    everywhere(setup, &least, |wire, _| {
        wire.consume(1, &consumer(b"q", 1_000));
        fill(wire, 0..20);
        assert_eq!(gather(wire, 20)[&1].len(), 20);
        wire.consume(2, &consumer(b"q", 1_000));
        for number in 20..40 {
            fill(wire, number..number + 1);
        }
        assert_eq!(gather(wire, 20)[&2].len(), 20);
        wire.settle_surely(1, ACK, &[(0, 20)]);
        for number in 40..60 {
            fill(wire, number..number + 1);
        }
        assert_eq!(gather(wire, 20)[&1].len(), 20);
    });
}

const GROUPS: [(&str, Value<'_>); 2] = [
    ("x-message-groups", Value::Bool(true)),
    ("x-sticky-header", Value::Text(b"customer")),
];

//= P-55
/// P-55
fn groups_keep_a_key_at_one_consumer_in_order(setup: &Setup) {
    everywhere(setup, &GROUPS, |wire, _| {
        for channel in 1..=2 {
            wire.consume(channel, &consumer(b"q", 2));
        }
        // Four of one customer, one of another, and one of nobody.
        let of = |customer| table(&[("customer", Value::Text(customer))]);
        let (ann, bob) = (of(b"ann"), of(b"bob"));
        let keys = [&ann[..], &ann, &ann, &ann, &bob, b""];
        let names: Vec<_> = (0..keys.len()).map(|number| number.to_string()).collect();
        let parts: Vec<_> = (0..keys.len())
            .map(|number| MessageParts {
                headers: keys[number],
                ..to_queue(b"q", names[number].as_bytes())
            })
            .collect();
        publish(wire, &parts);
        // The third and fourth wait though the other consumer has room, and are passed.
        let all = gather(wire, 4);
        let holder = *all
            .keys()
            .find(|key| numbers(&all[key]).contains(&0))
            .unwrap();
        let other = 3 - holder;
        assert_eq!(numbers(&all[&holder]), [0, 1]);
        assert_eq!(numbers(&all[&other]), [4, 5]);
        // What is given back goes first, when nothing of its key is out.
        wire.settle_surely(holder, REQUEUE, &[(1, 1)]);
        wire.settle_surely(other, ACK, &[(0, 2)]);
        wire.settle_surely(holder, ACK, &[(2, 2)]);
        let all = gather(wire, 2);
        let holder = *all.keys().next().unwrap();
        assert_eq!(numbers(&all[&holder]), [0, 2]);
        // Its consumer goes: what it held goes to the other one, in order, and the rest behind.
        wire.close_consumer(holder);
        let all = gather(wire, 2);
        assert_eq!(numbers(&all[&(3 - holder)]), [0, 2]);
        let last = all[&(3 - holder)].last().unwrap().tag;
        wire.settle_surely(3 - holder, ACK, &[(0, last)]);
        assert_eq!(numbers(&gather(wire, 1)[&(3 - holder)]), [3]);
    });
}

//= P-55
/// P-55
fn what_groups_cannot_go_with_is_refused(setup: &Setup) {
    let mut wire = setup.wire();
    for (entry, reason) in [
        (
            ("x-dispatch", Value::Text(b"random")),
            "x-message-groups goes with x-dispatch sticky",
        ),
        (
            ("x-max-priority", Value::I8(5)),
            "x-message-groups does not go with x-max-priority",
        ),
        (
            ("x-overflow", Value::Text(b"drop-head")),
            "x-message-groups does not go with x-overflow drop-head",
        ),
        (
            ("x-single-active-consumer", Value::Bool(true)),
            "x-message-groups is of no use with x-single-active-consumer",
        ),
        (
            ("x-group-ahead", Value::I32(0)),
            "x-group-ahead is 0, not 1 to 1000000",
        ),
        (
            ("x-group-ahead", Value::I32(1_000_001)),
            "x-group-ahead is 1000001, not 1 to 1000000",
        ),
        (
            ("x-queue-type", Value::Text(b"stream")),
            "x-message-groups makes no sense on a stream",
        ),
    ] {
        let arguments = table(&[("x-message-groups", Value::Bool(true)), entry]);
        let queue = QueueDeclare {
            arguments: &arguments,
            messages_max: 5,
            ..queue_on(b"q", 0)
        };
        let id = wire.request(FrameKind::QueueDeclare, &queue);
        let frame = wire.answer(id);
        assert_eq!(frame.code(), Code::SettingInvalid);
        assert!(frame.reason().contains(reason), "{}", frame.reason());
    }
    wire.bye();
    everywhere(setup, &GROUPS, |wire, _| {
        let open = ConsumerOpen {
            flags: CONSUMER_NO_ACK,
            ..consumer(b"q", 1)
        };
        let id = wire.request_on(FrameKind::ConsumerOpen, 1, &open);
        let frame = wire.answer(id);
        assert_eq!(frame.code(), Code::SettingInvalid);
        assert!(frame.reason().contains("needs acks"), "{}", frame.reason());
    });
}

/// P-51
fn keys_stay_with_their_consumer(setup: &Setup) {
    let sticky = [
        ("x-dispatch", Value::Text(b"sticky")),
        ("x-sticky-header", Value::Text(b"customer")),
    ];
    everywhere(setup, &sticky, |wire, _| {
        for channel in 1..=3 {
            wire.consume(channel, &consumer(b"q", 1_000));
        }
        let headers: Vec<_> = (0..12)
            .map(|customer| table(&[("customer", Value::I32(customer))]))
            .collect();
        let names: Vec<_> = (0..12).map(|customer| format!("{customer}")).collect();
        let parts: Vec<_> = (0..60)
            .map(|number| MessageParts {
                headers: &headers[number % 12],
                ..to_queue(b"q", names[number % 12].as_bytes())
            })
            .collect();
        let mut homes: BTreeMap<u32, u16> = BTreeMap::new();
        publish(wire, &parts);
        for (channel, got) in gather(wire, 60) {
            for customer in numbers(&got) {
                let home = *homes.entry(customer).or_insert(channel);
                assert_eq!(home, channel, "customer {customer}");
            }
        }
        let busy: std::collections::BTreeSet<u16> = homes.values().copied().collect();
        assert!(busy.len() > 1, "{homes:?}");
        // A consumer goes: its keys go elsewhere, with what it held, and all others stay.
        wire.close_consumer(1);
        publish(wire, &parts);
        let again = homes.values().filter(|home| **home == 1).count() * 5;
        for (channel, got) in gather(wire, 60 + again) {
            for customer in numbers(&got) {
                let home = homes[&customer];
                assert!(home == channel || home == 1, "customer {customer}");
            }
        }
    });
}

/// P-52
fn one_is_active_and_the_next_takes_over(setup: &Setup) {
    let single = [("x-single-active-consumer", Value::Bool(true))];
    everywhere(setup, &single, |wire, _| {
        let mut first = setup.wire();
        first.consume(1, &consumer(b"q", 5));
        assert!(told(&mut first, 1));
        wire.consume(7, &consumer(b"q", 100));
        let mut third = setup.wire();
        third.consume(1, &consumer(b"q", 100));
        fill(wire, 0..10);
        assert_eq!(numbers(&gather(&mut first, 5)[&1]), [0, 1, 2, 3, 4]);
        first.settle_surely(1, ACK, &[(1, 1), (3, 3)]);
        let more = gather(&mut first, 2);
        assert_eq!(numbers(&more[&1]), [5, 6]);
        // Who is not active gets nothing, also if it asks.
        let get = wire.get(7, 3, 0);
        assert!(wire.got(7, get).is_empty());
        // It dies: what it held comes first and flagged, then the rest, all in order.
        drop(first);
        assert!(told(wire, 7));
        let all = gather(wire, 8).remove(&7).unwrap();
        assert_eq!(numbers(&all), [1, 3, 4, 5, 6, 7, 8, 9]);
        let flags: Vec<bool> = all.iter().map(|delivery| delivery.redelivered).collect();
        assert_eq!(flags, [true, true, true, true, true, false, false, false]);
        wire.close_consumer(7);
        assert!(told(&mut third, 1));
        let all = gather(&mut third, 8).remove(&1).unwrap();
        assert_eq!(numbers(&all), [1, 3, 4, 5, 6, 7, 8, 9]);
        third.bye();
    });
}

/// P-52
fn a_higher_priority_takes_over_when_nothing_is_held(setup: &Setup) {
    let single = [("x-single-active-consumer", Value::Bool(true))];
    everywhere(setup, &single, |wire, _| {
        consume_with(wire, 1, 100, &[]);
        assert!(told(wire, 1));
        fill(wire, 0..3);
        gather(wire, 3);
        consume_with(wire, 2, 100, &[("x-priority", Value::I8(5))]);
        assert!(!told(wire, 1));
        fill(wire, 3..6);
        wire.nothing_delivered(1);
        wire.nothing_delivered(2);
        wire.settle(1, ACK, &[(1, 2)]);
        wire.nothing_delivered(2);
        wire.settle(1, REQUEUE, &[(3, 3)]);
        assert!(told(wire, 2));
        let all = gather(wire, 4).remove(&2).unwrap();
        assert_eq!(numbers(&all), [2, 3, 4, 5]);
        wire.nothing_delivered(1);
    });
}

/// P-54
fn who_holds_for_too_long_loses_it(setup: &Setup) {
    let bounded = [("x-consumer-hold-max", Value::I32(1_000))];
    everywhere(setup, &bounded, |wire, _| {
        wire.consume(1, &consumer(b"q", 3));
        fill(wire, 0..5);
        gather(wire, 3);
        // One that it settles and two that it does not.
        wire.settle(1, ACK, &[(2, 2)]);
        gather(wire, 1);
        // It holds nothing, so it may stay.
        wire.consume(2, &consumer(b"q", 0));
        let frame = wire.wait_on(FrameKind::ConsumerClosed, 1);
        assert_eq!(frame.code(), Code::HoldExceeded);
        let reason = "it held a message for longer than 1000 ms";
        assert!(frame.reason().contains(reason), "{}", frame.reason());
        wire.until(b"q", |info| info.unacked == 0 && info.ready == 4);
        // Without acks nothing is held.
        let get = wire.get(2, 10, 10_000);
        let all = wire.got(2, get);
        assert_eq!(numbers(&all), [0, 2, 3, 4]);
        let flags: Vec<bool> = all.iter().map(|delivery| delivery.redelivered).collect();
        assert_eq!(flags, [true, true, true, false]);
        wire.settle_surely(2, ACK, &[(0, 4)]);
    });
}

/// P-53, P-15
fn consumers_say_what_they_hold(setup: &Setup) {
    everywhere(setup, &[], |wire, _| {
        wire.consume(1, &consumer(b"q", 3));
        let nothing = ConsumerInfo {
            messages: 0,
            bytes: 0,
            oldest_ms: 0,
        };
        assert_eq!(held(wire, 1), nothing);
        fill(wire, 0..5);
        let got = gather(wire, 3);
        let bytes: u64 = 3 * 80;
        let info = held(wire, 1);
        assert_eq!((info.messages, info.bytes), (3, bytes));
        wire.settle(1, ACK, &[(0, 3)]);
        gather(wire, 2);
        assert_eq!(held(wire, 1).messages, 2);
        wire.settle_surely(1, ACK, &[(0, 5)]);
        assert_eq!(held(wire, 1), nothing);
        assert_eq!(got[&1].len(), 3);
        // On a channel that was open it is ignored, and the close is the answer.
        wire.close_consumer(1);
        wire.request_bare(FrameKind::ConsumerInspect, 1);
        wire.sync();
    });
    let frames: [(FrameHeader, &[u8], Code); 4] = [
        (
            FrameHeader::bare(FrameKind::ConsumerInspect, 1, 9),
            b"",
            Code::UnexpectedFrame,
        ),
        (
            FrameHeader::bare(FrameKind::ConsumerInspect, 0, 9),
            b"",
            Code::UnexpectedFrame,
        ),
        (
            FrameHeader::bare(FrameKind::ConsumerInspect, 2, 0),
            b"",
            Code::UnexpectedFrame,
        ),
        (
            FrameHeader::bare(FrameKind::ConsumerInspect, 2, 9),
            b"x",
            Code::BodyMalformed,
        ),
    ];
    for (header, body, code) in frames {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"q", 0));
        wire.consume(2, &consumer(b"q", 1));
        wire.send_frame(header, body);
        assert_eq!(wire.closed(), code, "{header:?}");
    }
    // An unknown flag is refused (P-92).
    let mut wire = setup.wire();
    wire.consume(2, &consumer(b"q", 1));
    let id = wire.next_id();
    let flagged = FrameHeader {
        flags: 1,
        ..FrameHeader::bare(FrameKind::ConsumerInspect, 2, id)
    };
    wire.send_frame(flagged, b"");
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    wire.bye();
}
