//! What becomes of a publish, and what its producer is told.

use ringpost_wire::control::{ExchangeKind, Level, PRODUCER_DOWNGRADE, ProducerOpen, QueueDeclare};
use ringpost_wire::header::PUBLISH_MANDATORY;
use ringpost_wire::{Code, FRAGMENT_BYTES_MAX, FrameKind};

use crate::wire::{
    Frame, Producer, Wire, consumer, exchange, filler, payloads, queue, queue_on, to, to_queue,
    volatile,
};
use crate::{Setup, on_cores};

on_cores! {
    every_level_says_how_far_it_got
    level_none_is_told_only_what_was_refused
    volatile_queues_cannot_be_durable
    a_downgrade_is_named
    mandatory_refuses_what_no_queue_takes
    confirms_are_cumulative_over_many_queues
    fan_out_is_confirmed_when_all_have_it
    a_full_queue_refuses
    one_connection_publishes_consumes_and_fills_its_queue
    a_full_queue_among_others
    a_batch_larger_than_a_queue_fills_it
    a_batch_to_many_places_keeps_each_in_order
    credit_comes_back
    closing_waits_for_outcomes
    frames_after_a_close_are_ignored
    many_producers_on_one_connection
    a_producer_needs_a_name
    a_newer_epoch_ends_the_older
    a_producer_goes_on_where_it_was
    what_a_fenced_producer_published_is_known
}

/// Where a producer's connection and a queue are on different cores, and where they are not.
fn everywhere(setup: &Setup, mut test: impl FnMut(&mut Wire, u16)) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        test(&mut wire, core);
        for info in wire.queues() {
            wire.delete(&info.name);
        }
    }
}

/// P-35, P-36
fn every_level_says_how_far_it_got(setup: &Setup) {
    everywhere(setup, |wire, core| {
        wire.declare(&queue_on(b"durable", core));
        wire.declare(&volatile(queue_on(b"volatile", core)));
        let mut durable = wire.producer(1, Level::Durable);
        durable.confirm(wire, &[to_queue(b"durable", b"m")]);
        assert_eq!(durable.level, Some(Level::Durable));
        let mut early = wire.producer(2, Level::Volatile);
        for queue in [&b"durable"[..], b"volatile"] {
            early.confirm(wire, &[to_queue(queue, b"m")]);
            assert!(early.level >= Some(Level::Volatile));
        }
        // What no queue takes is confirmed at the level asked for.
        durable.confirm(wire, &[to_queue(b"nowhere", b"m")]);
        assert_eq!(durable.level, Some(Level::Durable));
        assert_eq!(wire.inspect(b"durable").ready, 2);
        assert_eq!(wire.inspect(b"volatile").ready, 1);
    });
}

/// P-35
fn level_none_is_told_only_what_was_refused(setup: &Setup) {
    everywhere(setup, |wire, core| {
        wire.declare(&queue_on(b"q", core));
        let mut producer = wire.producer(1, Level::None);
        let parts: Vec<_> = (0..100).map(|_| to_queue(b"q", b"m")).collect();
        producer.publish(wire, 0, &parts);
        let sequence = producer.publish(wire, PUBLISH_MANDATORY, &[to_queue(b"nowhere", b"m")]);
        let frame = wire.wait_kind(FrameKind::Refused);
        assert_eq!(frame.header.sequence, sequence);
        assert_eq!(frame.code(), Code::Unroutable);
        wire.until(b"q", |info| info.ready == 100);
        let producer = producer.close(wire);
        assert_eq!(producer.confirmed, 0, "nothing is confirmed");
    });
}

/// P-36
fn volatile_queues_cannot_be_durable(setup: &Setup) {
    everywhere(setup, |wire, core| {
        wire.declare(&volatile(queue_on(b"v", core)));
        let mut producer = wire.producer(1, Level::Durable);
        let code = producer.refused(wire, 0, to_queue(b"v", b"m"));
        assert_eq!(code, Code::LevelUnavailable);
        // Also if another target is durable: it is in no queue then.
        wire.declare(&queue(b"d"));
        wire.bind(b"amq.fanout", b"v", b"", b"");
        wire.bind(b"amq.fanout", b"d", b"", b"");
        let code = producer.refused(wire, 0, to(b"amq.fanout", b"", b"m"));
        assert_eq!(code, Code::LevelUnavailable);
        assert_eq!(wire.inspect(b"d").published, 0);
        assert_eq!(wire.inspect(b"v").published, 0);
    });
}

/// P-36
fn a_downgrade_is_named(setup: &Setup) {
    everywhere(setup, |wire, core| {
        wire.declare(&volatile(queue_on(b"v", core)));
        wire.declare(&queue(b"d"));
        wire.bind(b"amq.fanout", b"v", b"", b"");
        wire.bind(b"amq.fanout", b"d", b"", b"");
        let mut producer = wire.producer_with(1, Level::Durable, PRODUCER_DOWNGRADE);
        producer.confirm(wire, &[to_queue(b"d", b"m")]);
        assert_eq!(producer.level, Some(Level::Durable));
        producer.confirm(wire, &[to_queue(b"v", b"m")]);
        assert_eq!(producer.level, Some(Level::Volatile));
        producer.confirm(wire, &[to(b"amq.fanout", b"", b"m")]);
        assert_eq!(producer.level, Some(Level::Volatile));
        assert_eq!(wire.inspect(b"d").ready, 2);
        assert_eq!(wire.inspect(b"v").ready, 2);
    });
}

/// P-37
fn mandatory_refuses_what_no_queue_takes(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Topic));
    for level in [Level::Volatile, Level::Durable] {
        let mut producer = wire.producer(1, level);
        for part in [to_queue(b"nowhere", b"m"), to(b"x", b"k", b"m")] {
            let code = producer.refused(&mut wire, PUBLISH_MANDATORY, part);
            assert_eq!(code, Code::Unroutable);
            producer.confirm(&mut wire, &[part]);
        }
        let part = to(b"no exchange", b"k", b"m");
        assert_eq!(producer.refused(&mut wire, 0, part), Code::ExchangeUnknown);
        // The flag is of the whole frame.
        let parts = [
            to_queue(b"q", b"m"),
            to_queue(b"nowhere", b"m"),
            to_queue(b"q", b"m"),
        ];
        let first = producer.publish(&mut wire, PUBLISH_MANDATORY, &parts);
        producer.settle(&mut wire);
        let refused = std::mem::take(&mut producer.refused);
        assert_eq!(refused, [(first + 1, first + 1, Code::Unroutable)]);
        producer.close(&mut wire);
    }
    assert_eq!(wire.inspect(b"q").ready, 4);
}

/// P-35: whatever cores they are on.
fn confirms_are_cumulative_over_many_queues(setup: &Setup) {
    let mut wire = setup.wire();
    let names: Vec<_> = (0..8_u16).map(|number| format!("q{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        wire.declare(&queue_on(name.as_bytes(), number as u16));
    }
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(1, 300);
    for round in 0..50 {
        let parts: Vec<_> = (0..40)
            .map(|idx| to_queue(names[(round + idx * 3) % 8].as_bytes(), &payload))
            .collect();
        producer.publish(&mut wire, 0, &parts);
    }
    producer.settle(&mut wire);
    assert_eq!(producer.refused, []);
    let ready: u64 = wire.queues().iter().map(|info| info.ready).sum();
    assert_eq!(ready, 2000);
}

/// P-35, P-39
fn fan_out_is_confirmed_when_all_have_it(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    for number in 0..8_u16 {
        let name = format!("q{number}");
        wire.declare(&queue_on(name.as_bytes(), number));
        wire.bind(b"x", name.as_bytes(), b"", b"");
    }
    let mut producer = wire.producer(1, Level::Durable);
    let texts: Vec<_> = (0..500).map(|number| format!("message {number}")).collect();
    for chunk in texts.chunks(50) {
        let parts: Vec<_> = chunk
            .iter()
            .map(|text| to(b"x", b"k", text.as_bytes()))
            .collect();
        producer.confirm(&mut wire, &parts);
        // What is confirmed is there.
        let begun = texts.iter().position(|text| *text == chunk[0]).unwrap();
        for info in wire.queues() {
            assert_eq!(info.published, (begun + 50) as u64);
        }
    }
    for number in 0..8_u16 {
        let name = format!("q{number}");
        wire.consume(10 + number, &consumer(name.as_bytes(), 1000));
        let all = wire.deliveries(10 + number, 500);
        let expected: Vec<_> = texts.iter().map(String::as_bytes).collect();
        assert_eq!(payloads(&all), expected);
    }
}

/// P-39, P-61: by messages and by bytes.
fn a_full_queue_refuses(setup: &Setup) {
    everywhere(setup, |wire, core| {
        for make in [|declare| declare, volatile] {
            wire.declare(&make(QueueDeclare {
                messages_max: 3,
                ..queue_on(b"short", core)
            }));
            let mut producer = wire.producer(1, Level::Volatile);
            for _ in 0..3 {
                producer.confirm(wire, &[to_queue(b"short", b"m")]);
            }
            assert_eq!(
                producer.refused(wire, 0, to_queue(b"short", b"m")),
                Code::QueueFull
            );
            // Outstanding messages count until they are settled.
            wire.consume(2, &consumer(b"short", 10));
            let held = wire.deliveries(2, 3);
            assert_eq!(
                producer.refused(wire, 0, to_queue(b"short", b"m")),
                Code::QueueFull
            );
            wire.settle_surely(2, 0, &[(held[1].tag, held[1].tag)]);
            producer.confirm(wire, &[to_queue(b"short", b"m")]);
            assert_eq!(
                producer.refused(wire, 0, to_queue(b"short", b"m")),
                Code::QueueFull
            );
            wire.close_consumer(2);

            let payload = filler(1, 1024 - 64 - 5);
            wire.declare(&make(QueueDeclare {
                bytes_max: 3000,
                ..queue_on(b"small", core)
            }));
            producer.confirm(wire, &[to_queue(b"small", &payload)]);
            producer.confirm(wire, &[to_queue(b"small", &payload)]);
            let part = to_queue(b"small", &payload);
            assert_eq!(producer.refused(wire, 0, part), Code::QueueFull);
            producer.confirm(wire, &[to_queue(b"small", b"a little one fits")]);
            let large = filler(1, FRAGMENT_BYTES_MAX + 1);
            assert_eq!(
                producer.refused(wire, 0, to_queue(b"small", &large)),
                Code::QueueFull
            );
            producer.close(wire);
            wire.delete(b"short");
            wire.delete(b"small");
        }
    });
}

/// P-39: refused is in no queue; where one has it and another does not, the outcome is unknown.
fn a_full_queue_among_others(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    for number in 0..6_u16 {
        let name = format!("q{number}");
        let messages_max = if number == 3 { 1 } else { 0 };
        wire.declare(&QueueDeclare {
            messages_max,
            ..queue_on(name.as_bytes(), number)
        });
        wire.bind(b"x", name.as_bytes(), b"", b"");
    }
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to(b"x", b"", b"fits")]);
    for _ in 0..5 {
        let before: Vec<_> = wire.queues().iter().map(|info| info.published).collect();
        let code = producer.refused(&mut wire, 0, to(b"x", b"", b"does not"));
        let after: Vec<_> = wire.queues().iter().map(|info| info.published).collect();
        assert_eq!(after[3], 1, "no queue passes its limit");
        match code {
            Code::QueueFull => assert_eq!(after, before, "refused is in no queue"),
            Code::Indeterminate => {}
            other => panic!("{other}"),
        }
    }
}

/// A batch that does not fit as a whole is taken as far as it fits, wherever it comes from.
fn a_batch_larger_than_a_queue_fills_it(setup: &Setup) {
    everywhere(setup, |wire, core| {
        wire.declare(&QueueDeclare {
            messages_max: 10,
            ..queue_on(b"q", core)
        });
        let mut producer = wire.producer(1, Level::Durable);
        let parts: Vec<_> = (0..25).map(|_| to_queue(b"q", b"m")).collect();
        let first = producer.publish(wire, 0, &parts);
        producer.settle(wire);
        let info = wire.inspect(b"q");
        assert_eq!(info.ready, 10);
        let refused: u64 = producer
            .refused
            .iter()
            .map(|(from, to, _)| to - from + 1)
            .sum();
        assert_eq!(refused, 15, "{:?}", producer.refused);
        for (from, _, code) in &producer.refused {
            assert!(*from >= first + 10);
            assert_eq!(*code, Code::QueueFull);
        }
    });
}

/// P-32, P-39: wherever the messages of a frame go, each queue gets its own in their order, and each
/// that is refused is named.
fn a_batch_to_many_places_keeps_each_in_order(setup: &Setup) {
    const QUEUES: usize = 6;
    const LIMITED: usize = 4;
    const LIMIT: usize = 7;
    let mut wire = setup.wire();
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    for number in 0..QUEUES {
        let name = format!("q{number}");
        let limit = if number == LIMITED { LIMIT as u64 } else { 0 };
        wire.declare(&QueueDeclare {
            messages_max: limit,
            ..queue_on(name.as_bytes(), number as u16)
        });
    }
    // What goes through the exchange goes to two of them.
    wire.bind(b"x", b"q0", b"", b"");
    wire.bind(b"x", b"q5", b"", b"");
    let large = filler(9, 3 * FRAGMENT_BYTES_MAX / 2);
    let mut wanted: Vec<Vec<Vec<u8>>> = vec![Vec::new(); QUEUES];
    let mut places = Vec::new();
    let mut state = 7_u32;
    for number in 0..600_u32 {
        // A linear congruential generator: Numerical Recipes, 7.1.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let place = (state >> 16) as usize % (QUEUES + 2);
        let payload = match number {
            300 => large.clone(),
            _ => number.to_le_bytes().to_vec(),
        };
        places.push((place, payload));
    }
    let names: Vec<String> = (0..QUEUES + 2).map(|number| format!("q{number}")).collect();
    let mut unroutable = 0;
    let parts: Vec<_> = places
        .iter()
        .map(|(place, payload)| {
            match *place {
                QUEUES => {
                    wanted[0].push(payload.clone());
                    wanted[5].push(payload.clone());
                    return to(b"x", b"", payload);
                }
                LIMITED if wanted[LIMITED].len() == LIMIT => {}
                place if place < QUEUES => wanted[place].push(payload.clone()),
                _ => unroutable += 1,
            }
            to_queue(names[*place].as_bytes(), payload)
        })
        .collect();
    let mut producer = wire.producer(1, Level::Durable);
    producer.publish(&mut wire, PUBLISH_MANDATORY, &parts);
    producer.settle(&mut wire);
    let refused = |code: Code| -> u64 {
        let of_code = producer.refused.iter().filter(|(.., said)| *said == code);
        of_code.map(|(first, last, _)| last - first + 1).sum()
    };
    let stored: usize = wanted.iter().map(Vec::len).sum();
    let twice = places.iter().filter(|(place, _)| *place == QUEUES).count();
    assert_eq!(refused(Code::Unroutable), unroutable);
    let full = refused(Code::QueueFull) as usize;
    assert_eq!(full, places.len() + twice - stored - unroutable as usize);
    for (number, wanted) in wanted.iter().enumerate() {
        let channel = 10 + number as u16;
        wire.consume(channel, &consumer(names[number].as_bytes(), 1_000));
        let got = wire.deliveries(channel, wanted.len());
        assert!(payloads(&got).iter().eq(wanted.iter()), "queue {number}");
    }
}

/// P-33
fn credit_comes_back(setup: &Setup) {
    everywhere(setup, |wire, core| {
        wire.declare(&queue_on(b"q", core));
        wire.declare(&volatile(queue_on(b"v", core)));
        let payload = filler(1, 60_000);
        for (channel, level, name) in [
            (1, Level::None, &b"q"[..]),
            (2, Level::Volatile, b"q"),
            (3, Level::Durable, b"q"),
            (4, Level::Volatile, b"v"),
            (5, Level::None, b"v"),
            (6, Level::Durable, b"nowhere"),
        ] {
            let mut producer = wire.producer(channel, level);
            let (messages, bytes) = (producer.messages, producer.bytes);
            assert!(bytes >= FRAGMENT_BYTES_MAX as u64);
            let mut count = 0;
            while producer.used_bytes < bytes + 500_000 {
                producer.publish(wire, 0, &[to_queue(name, &payload)]);
                count += 1;
                if count % 20 == 0 && name != b"nowhere" {
                    wire.purge(name);
                }
            }
            assert!(producer.bytes > bytes && producer.messages >= messages);
            wire.purge_if(name);
            producer.close(wire);
        }
    });
}

/// P-39
fn closing_waits_for_outcomes(setup: &Setup) {
    everywhere(setup, |wire, core| {
        wire.declare(&queue_on(b"q", core));
        for level in [Level::Durable, Level::Volatile, Level::None] {
            let mut producer = wire.producer(1, level);
            let parts: Vec<_> = (0..200).map(|_| to_queue(b"q", b"m")).collect();
            let before = wire.inspect(b"q").published;
            producer.publish(wire, 0, &parts);
            let last = producer.next - 1;
            let producer = producer.close(wire);
            if level != Level::None {
                assert_eq!(producer.confirmed, last, "told before it is closed");
            }
            assert_eq!(wire.inspect(b"q").published, before + 200);
        }
    });
}

/// P-15
fn frames_after_a_close_are_ignored(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"q", b"before")]);
    let id = wire.request_bare(FrameKind::ProducerClose, 1);
    // Also beyond credit and out of order: nobody looks at them.
    let mut late = producer;
    (late.messages, late.bytes) = (u64::MAX, u64::MAX);
    late.publish(&mut wire, 0, &[to_queue(b"q", b"after")]);
    late.next += 7;
    late.publish(
        &mut wire,
        0,
        &[to_queue(b"q", &filler(1, FRAGMENT_BYTES_MAX + 100))],
    );
    let second = wire.request_bare(FrameKind::ProducerClose, 1);
    let frame = wire.answer(id);
    assert_eq!(frame.kind(), FrameKind::ProducerClosed);
    wire.sync();
    assert_eq!(wire.inspect(b"q").published, 1);
    let answered = wire
        .aside()
        .iter()
        .any(|(_, _, sequence)| *sequence == second);
    assert!(!answered, "requests ignored so are not answered");
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"q", b"anew")]);
}

fn many_producers_on_one_connection(setup: &Setup) {
    let mut wire = setup.wire();
    for number in 0..4_u16 {
        wire.declare(&queue_on(format!("q{number}").as_bytes(), number));
    }
    let mut producers: Vec<_> = (1..=40)
        .map(|channel| wire.producer(channel, Level::Durable))
        .collect();
    for round in 0..10_u16 {
        for producer in &mut producers {
            let name = format!("q{}", (round + producer.channel) % 4);
            producer.publish(&mut wire, 0, &[to_queue(name.as_bytes(), b"m")]);
        }
    }
    for producer in &mut producers {
        producer.settle(&mut wire);
        assert_eq!(producer.refused, []);
    }
    let ready: u64 = wire.queues().iter().map(|info| info.ready).sum();
    assert_eq!(ready, 400);
}

/// P-30
fn a_producer_needs_a_name(setup: &Setup) {
    let mut wire = setup.wire();
    let open = ProducerOpen {
        producer: 0,
        epoch: 1,
        level: Level::Durable as u8,
        flags: 0,
        reserved: 0,
    };
    let id = wire.request_on(FrameKind::ProducerOpen, 1, &open);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    let open = ProducerOpen {
        producer: 1,
        level: 3,
        ..open
    };
    let id = wire.request_on(FrameKind::ProducerOpen, 1, &open);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
}

/// A name for a producer that no other test has.
fn name() -> u64 {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    1 << 63 | u64::from(std::process::id()) << 24 | number
}

/// Asks for a producer of that name and epoch; returns the answer.
#[track_caller]
fn open_named(wire: &mut Wire, channel: u16, producer: u64, epoch: u32) -> Frame {
    let open = ProducerOpen {
        producer,
        epoch,
        level: Level::Durable as u8,
        flags: 0,
        reserved: 0,
    };
    let id = wire.request_on(FrameKind::ProducerOpen, channel, &open);
    wire.answer(id)
}

/// A connection on each core, and a queue there.
fn on_every_core(setup: &Setup) -> Vec<(Wire, Vec<u8>)> {
    let there = |core: u16| {
        let name = format!("on-{core}").into_bytes();
        let mut wire = setup.wire();
        wire.declare(&queue_on(&name, core));
        wire.attach(&name);
        assert_eq!(wire.core, core);
        (wire, name)
    };
    (0..setup.cores()).map(there).collect()
}

/// P-30
fn a_newer_epoch_ends_the_older(setup: &Setup) {
    let mut wires = on_every_core(setup);
    let count = wires.len();
    for (old, new) in (0..count).flat_map(|old| (0..count).map(move |new| (old, new))) {
        let producer = name();
        let wire = &mut wires[old].0;
        assert_eq!(
            open_named(wire, 1, producer, 5).kind(),
            FrameKind::ProducerOpened
        );
        // Two of one connection, too.
        let wire = &mut wires[new].0;
        assert_eq!(
            open_named(wire, 2, producer, 6).kind(),
            FrameKind::ProducerOpened
        );
        let closed = wires[old].0.wait_on(FrameKind::ProducerClosed, 1);
        assert_eq!(closed.header.sequence, 0, "nobody asked");
        assert_eq!(closed.code(), Code::ProducerFenced);
        // Nobody may go back, on no core.
        for (wire, _) in &mut wires {
            let refused = open_named(wire, 1, producer, 5);
            assert_eq!(refused.kind(), FrameKind::Failed);
            assert_eq!(refused.code(), Code::ProducerFenced);
        }
        let wire = &mut wires[new].0;
        let id = wire.request_bare(FrameKind::ProducerClose, 2);
        let closed = wire.answer(id);
        assert_eq!(
            (closed.kind(), closed.code()),
            (FrameKind::ProducerClosed, Code::Normal)
        );
    }
}

/// P-30, P-32, P-38: wherever it is opened again, and wherever its messages are.
fn a_producer_goes_on_where_it_was(setup: &Setup) {
    let mut wires = on_every_core(setup);
    let names: Vec<Vec<u8>> = wires.iter().map(|(_, name)| name.clone()).collect();
    let count = wires.len();
    for queue in &names {
        let producer = name();
        for epoch in 1..=2 * count as u64 {
            let wire = &mut wires[epoch as usize % count].0;
            let opened = open_named(wire, 1, producer, 2 * epoch as u32 - 1);
            let mut opened = Producer::opened(&opened);
            assert_eq!(opened.next, 10 * (epoch - 1) + 1);
            let parts: Vec<_> = (0..10).map(|_| to_queue(queue, b"once")).collect();
            opened.confirm(wire, &parts);
            opened.close(wire);
            // The same again under its own sequences.
            let again = open_named(wire, 1, producer, 2 * epoch as u32);
            let mut again = Producer::opened(&again);
            (again.next, again.confirmed) = (again.next - 10, again.confirmed - 10);
            again.confirm(wire, &parts);
            again.close(wire);
            assert_eq!(wire.inspect(queue).published, 10 * epoch);
        }
    }
}

/// P-30: what an older one has on its way is stored before the newer one is open, or never.
fn what_a_fenced_producer_published_is_known(setup: &Setup) {
    let mut wires = on_every_core(setup);
    let names: Vec<Vec<u8>> = wires.iter().map(|(_, name)| name.clone()).collect();
    let count = wires.len();
    for round in 0..10 * count {
        let (old, new, target) = (round % count, (round + 1) % count, (round / 2) % count);
        let producer = name();
        let queue = &names[target];
        let wire = &mut wires[old].0;
        let before = wire.inspect(queue).published;
        let mut older = Producer::opened(&open_named(wire, 1, producer, 1));
        let parts: Vec<_> = (0..50).map(|_| to_queue(queue, b"once")).collect();
        older.publish(wire, 0, &parts);
        // The other connection does not wait for any of it.
        let wire = &mut wires[new].0;
        let mut newer = Producer::opened(&open_named(wire, 2, producer, 2));
        let known = newer.next - 1;
        (newer.next, newer.confirmed) = (1, 0);
        newer.confirm(wire, &parts);
        newer.close(wire);
        let stored = wire.inspect(queue).published - before;
        assert!(known <= 50);
        assert_eq!(stored, 50, "each once, {known} of them before");
        // Its outcomes came before its end, or never.
        let wire = &mut wires[old].0;
        wire.wait_on(FrameKind::ProducerClosed, 1);
        wire.sync();
    }
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

fn refused(producer: &crate::wire::Producer) -> u64 {
    producer
        .refused
        .iter()
        .map(|(first, last, code)| {
            assert_eq!(*code, Code::QueueFull);
            last + 1 - first
        })
        .sum()
}
