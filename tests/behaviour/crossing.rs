//! Connections, producers and consumers whose queues live on other cores, and connections that move.

use ringpost_wire::control::{Attach, Level, Named};
use ringpost_wire::{Code, FrameKind};

use crate::wire::{Wire, consumer, filler, hello, payloads, queue_on, to_queue};
use crate::{Setup, on_cores};

on_cores! {
    attach_goes_to_the_core_of_a_queue
    attach_again_and_again
    attach_with_bytes_behind_it
    attach_while_answers_are_awaited
    consumers_of_every_core_on_one_connection
    frames_may_follow_an_open_at_once
    frames_may_follow_an_open_that_fails
    a_close_is_the_last_of_a_channel
    connections_die_while_others_serve_them
    settlements_are_confirmed_across_cores
    order_holds_across_cores
}

fn declare_everywhere(setup: &Setup, wire: &mut Wire) -> Vec<String> {
    (0..setup.cores())
        .map(|core| {
            let name = format!("q{core}");
            wire.declare(&queue_on(name.as_bytes(), core));
            name
        })
        .collect()
}

/// P-13
fn attach_goes_to_the_core_of_a_queue(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    for (core, name) in names.iter().enumerate() {
        let mut moved = setup.wire();
        moved.attach(name.as_bytes());
        assert_eq!(usize::from(moved.core), core);
        let mut producer = moved.producer(1, Level::Durable);
        producer.confirm(&mut moved, &[to_queue(name.as_bytes(), b"m")]);
        moved.consume(2, &consumer(name.as_bytes(), 1));
        assert_eq!(payloads(&moved.deliveries(2, 1)), [b"m"]);
        // What was agreed still holds, and the connection still belongs to its tenant.
        assert_eq!(moved.queues().len(), names.len());
        moved.bye();
    }
    let id = wire.request(FrameKind::Attach, &Attach { queue: b"none" });
    assert_eq!(wire.failed(id), Code::QueueUnknown);
    wire.sync();
}

/// P-13
fn attach_again_and_again(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    for round in 0..40_usize {
        let name = &names[round * 7 % names.len()];
        wire.attach(name.as_bytes());
        assert_eq!(usize::from(wire.core), round * 7 % names.len());
        if round % 3 == 0 {
            wire.consume(1, &consumer(name.as_bytes(), 1));
            wire.close_consumer(1);
        }
    }
    wire.bye();
}

/// P-13: a client must not, but what it sends is answered after all, in order.
fn attach_with_bytes_behind_it(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    for name in &names {
        let mut eager = setup.wire();
        let mut bytes = Vec::new();
        let attach = Attach {
            queue: name.as_bytes(),
        };
        let write = |bytes: &mut Vec<u8>, kind, id| {
            let header = ringpost_wire::FrameHeader::bare(kind, 0, id);
            ringpost_wire::control::Body::write(&attach, bytes, header);
        };
        write(&mut bytes, FrameKind::Attach, 1);
        for id in 2..6 {
            let named = Named {
                name: name.as_bytes(),
            };
            let header = ringpost_wire::FrameHeader::bare(FrameKind::QueueInspect, 0, id);
            ringpost_wire::control::Body::write(&named, &mut bytes, header);
        }
        // And half a frame, whose rest comes later.
        let cut = bytes.len() - 20;
        eager.send_bytes(&bytes[..cut]);
        let frame = eager.read();
        assert_eq!(frame.kind(), FrameKind::Attached);
        eager.send_bytes(&bytes[cut..]);
        for id in 2..6 {
            let frame = eager.read();
            assert_eq!(
                (frame.kind(), frame.header.sequence),
                (FrameKind::QueueInfo, id)
            );
        }
    }
}

/// P-13: a move while answers are awaited would lose them.
fn attach_while_answers_are_awaited(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    let mut eager = setup.wire();
    eager.request(FrameKind::QueueDeclare, &queue_on(b"new", 1));
    let queue = names[names.len() - 1].as_bytes();
    eager.request(FrameKind::Attach, &Attach { queue });
    assert_eq!(eager.closed(), Code::UnexpectedFrame);
    wire.until_there(b"new");
}

fn consumers_of_every_core_on_one_connection(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    for (idx, name) in names.iter().enumerate() {
        wire.consume(10 + idx as u16, &consumer(name.as_bytes(), 7));
    }
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(1, 5_000);
    for _ in 0..10 {
        let parts: Vec<_> = (0..100)
            .map(|idx| to_queue(names[idx % names.len()].as_bytes(), &payload))
            .collect();
        producer.publish(&mut wire, 0, &parts);
    }
    let mut expected = vec![0_usize; names.len()];
    (0..1000).for_each(|idx| expected[idx % 100 % names.len()] += 1);
    for (idx, count) in expected.iter().enumerate() {
        let channel = 10 + idx as u16;
        let mut seen = 0;
        while seen < *count {
            let some = wire.delivered(channel);
            for delivery in &some {
                seen += 1;
                assert_eq!(delivery.queue_sequence, seen as u64);
                assert!(delivery.payload == payload);
            }
            wire.settle(channel, 0, &[(0, seen as u64)]);
        }
    }
    producer.settle(&mut wire);
    for name in &names {
        wire.until(name.as_bytes(), |info| info.settled == info.published);
    }
}

/// P-10
fn frames_may_follow_an_open_at_once(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    let mut producer = wire.producer(1, Level::Durable);
    for name in &names {
        let name = name.as_bytes();
        producer.confirm(
            &mut wire,
            &[
                to_queue(name, b"1"),
                to_queue(name, b"2"),
                to_queue(name, b"3"),
            ],
        );
        let open = wire.request_on(FrameKind::ConsumerOpen, 2, &consumer(name, 0));
        let get = wire.get(2, 1, 30_000);
        wire.credit(2, 1, 0);
        assert_eq!(wire.answer(open).kind(), FrameKind::ConsumerOpened);
        let done = wire.answer(get);
        assert_eq!((done.kind(), done.header.count), (FrameKind::GetDone, 1));
        // One was taken, and one may have been pushed before it.
        wire.sync();
        let held = wire.deliveries_before_end(2);
        assert!((1..=2).contains(&held.len()));
        wire.settle(2, 0, &[(0, held.len() as u64)]);
        let next = (held.len() + 1).to_string();
        assert_eq!(payloads(&wire.deliveries(2, 1)), [next.as_bytes()]);
        let open = wire.request_on(FrameKind::ConsumerOpen, 3, &consumer(name, 5));
        let close = wire.request_bare(FrameKind::ConsumerClose, 3);
        assert_eq!(wire.answer(open).kind(), FrameKind::ConsumerOpened);
        assert_eq!(wire.answer(close).kind(), FrameKind::ConsumerClosed);
        wire.close_consumer(2);
        wire.deliveries_before_end(3);
        wire.until(name, |info| info.consumers == 0 && info.unacked == 0);
    }
}

/// P-10, P-15
fn frames_may_follow_an_open_that_fails(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    for name in names.iter().map(String::as_bytes).chain([&b"none"[..]]) {
        let exclusive = ringpost_wire::control::ConsumerOpen {
            flags: 2,
            ..consumer(name, 1)
        };
        if name != b"none" {
            wire.consume(9, &exclusive);
        }
        let open = wire.request_on(FrameKind::ConsumerOpen, 2, &consumer(name, 0));
        wire.get(2, 1, 30_000);
        wire.credit(2, 1, 0);
        wire.settle(2, 0, &[(1, 1)]);
        wire.request_bare(FrameKind::ConsumerClose, 2);
        assert!(matches!(
            wire.failed(open),
            Code::InUse | Code::QueueUnknown
        ));
        wire.sync();
        if name != b"none" {
            wire.close_consumer(9);
            wire.until(name, |info| info.consumers == 0);
        }
    }
    wire.bye();
}

/// P-48
fn a_close_is_the_last_of_a_channel(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    let mut producer = wire.producer(1, Level::Durable);
    for name in &names {
        let name = name.as_bytes();
        let payload = filler(1, 3_000);
        let parts: Vec<_> = (0..300).map(|_| to_queue(name, &payload)).collect();
        producer.confirm(&mut wire, &parts);
        for _ in 0..10 {
            let open = wire.request_on(FrameKind::ConsumerOpen, 2, &consumer(name, 1000));
            assert_eq!(wire.answer(open).kind(), FrameKind::ConsumerOpened);
            let close = wire.request_bare(FrameKind::ConsumerClose, 2);
            wire.answer(close);
            wire.deliveries_before_end(2);
            for _ in 0..3 {
                wire.nothing_delivered(2);
            }
        }
        let info = wire.until(name, |info| info.consumers == 0);
        assert_eq!((info.ready, info.unacked), (300, 0));
    }
}

/// P-17. On a broker of its own: what waits for a place on the way to another core, behind publishes of
/// other tests, goes with its connection.
fn connections_die_while_others_serve_them(setup: &Setup) {
    let setup = &setup.alone();
    let mut watcher = setup.wire();
    let names = declare_everywhere(setup, &mut watcher);
    let mut published = vec![0; names.len()];
    for round in 0..30 {
        let at = round % names.len();
        let name = names[at].as_bytes();
        let mut wire = setup.wire();
        wire.request_on(FrameKind::ConsumerOpen, 2, &consumer(name, 10));
        let mut producer = wire.producer(1, Level::Durable);
        let parts: Vec<_> = (0..20).map(|_| to_queue(name, b"m")).collect();
        producer.publish(&mut wire, 0, &parts);
        published[at] += 20;
        if round % 2 == 0 {
            wire.delivered(2);
        }
        if round % 3 == 0 {
            wire.request(FrameKind::QueueDeclare, &queue_on(b"more", 1));
            wire.request_bare(FrameKind::QueueList, 0);
            wire.get(2, 5, 1000);
        }
        wire.sync();
        wire.drop_dead();
    }
    for (name, count) in names.iter().zip(published) {
        let info = watcher.until(name.as_bytes(), |info| info.consumers == 0);
        assert_eq!(
            (info.published, info.ready, info.unacked),
            (count, count, 0)
        );
    }
}

/// P-45
fn settlements_are_confirmed_across_cores(setup: &Setup) {
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    let mut producer = wire.producer(1, Level::Durable);
    for (idx, name) in names.iter().enumerate() {
        let channel = 10 + idx as u16;
        let parts: Vec<_> = (0..10).map(|_| to_queue(name.as_bytes(), b"m")).collect();
        producer.confirm(&mut wire, &parts);
        wire.consume(channel, &consumer(name.as_bytes(), 10));
        wire.deliveries(channel, 10);
    }
    let ids: Vec<_> = (0..names.len() * 10)
        .map(|number| {
            let tag = (number / names.len()) as u64 + 1;
            wire.settle(10 + (number % names.len()) as u16, 4, &[(tag, tag)])
        })
        .collect();
    for id in ids {
        assert_eq!(wire.answer(id).kind(), FrameKind::Settled);
    }
    for info in wire.queues() {
        assert_eq!((info.settled, info.ready, info.unacked), (10, 0, 0));
    }
}

/// One producer, many queues on many cores, consumers on a connection of yet another core: what each
/// queue holds is in the order of publishing.
fn order_holds_across_cores(setup: &Setup) {
    let mut wire = Wire::greet(&setup.broker, &hello(b""));
    wire.bye();
    let mut wire = setup.wire();
    let names = declare_everywhere(setup, &mut wire);
    let mut sink = setup.wire();
    sink.attach(names[names.len() - 1].as_bytes());
    for (idx, name) in names.iter().enumerate() {
        sink.consume(10 + idx as u16, &consumer(name.as_bytes(), 100));
    }
    let mut producer = wire.producer(1, Level::Volatile);
    let texts: Vec<_> = (0..2000).map(|number: u32| number.to_string()).collect();
    for chunk in texts.chunks(70) {
        let parts: Vec<_> = chunk
            .iter()
            .map(|text| {
                let number: usize = text.parse().unwrap();
                to_queue(
                    names[number * number % names.len()].as_bytes(),
                    text.as_bytes(),
                )
            })
            .collect();
        producer.publish(&mut wire, 0, &parts);
    }
    producer.settle(&mut wire);
    for (idx, name) in names.iter().enumerate() {
        let count = wire.inspect(name.as_bytes()).published as usize;
        let channel = 10 + idx as u16;
        let mut last = None;
        let mut seen = 0;
        while seen < count {
            for delivery in sink.delivered(channel) {
                seen += 1;
                let number: u32 = std::str::from_utf8(&delivery.payload)
                    .unwrap()
                    .parse()
                    .unwrap();
                assert!(last < Some(number), "{last:?} before {number}");
                last = Some(number);
            }
            sink.settle(channel, 0, &[(0, seen as u64)]);
        }
    }
}
