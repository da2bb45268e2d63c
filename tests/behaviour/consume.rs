//! What a consumer is given, and what becomes of it.

use ringpost_wire::control::{
    CONSUMER_EXCLUSIVE, CONSUMER_NO_ACK, ConsumerOpen, Level, PRODUCER_DOWNGRADE, QueueDeclare,
};
use ringpost_wire::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, Code, FrameKind, padded};

use crate::wire::{Wire, consumer, filler, payloads, queue_on, to_queue, volatile};
use crate::{Setup, on_cores};

on_cores! {
    messages_come_in_order
    credit_in_messages
    credit_in_bytes
    credit_changes
    too_much_credit_is_refused
    gets_take_what_is_ready
    a_get_is_for_some_messages
    gets_wait
    gets_and_pushes_together
    a_second_get_is_refused_or_served
    settling_one_by_one_and_in_ranges
    settling_cumulatively
    a_settlement_of_what_is_not_outstanding
    settlements_after_the_end_are_ignored
    requeued_messages_return_to_their_places
    rejected_messages_are_gone
    delivery_counts_grow
    what_a_dead_consumer_held_returns
    exclusive_consumers
    no_acks
    no_ack_settles_nothing
    consumers_share
    a_queue_deleted_under_its_consumers
    a_message_larger_than_agreed
    channels_come_and_go
}

const ACK: u8 = 0;
const REQUEUE: u8 = 1;
const REJECT: u8 = 2;

/// A connection with the queue `q` on every core in turn, durable and volatile.
fn everywhere(setup: &Setup, mut test: impl FnMut(&mut Wire)) {
    for core in 0..setup.cores() {
        for make in [|declare| declare, volatile] {
            let mut wire = setup.wire();
            wire.declare(&make(queue_on(b"q", core)));
            test(&mut wire);
            wire.delete(b"q");
        }
    }
}

/// Publishes messages whose payloads are their numbers.
fn fill(wire: &mut Wire, numbers: std::ops::Range<u32>) {
    let mut producer = wire.producer_with(4000, Level::Durable, PRODUCER_DOWNGRADE);
    let payloads: Vec<_> = numbers.map(|number| number.to_string()).collect();
    let parts: Vec<_> = payloads
        .iter()
        .map(|text| to_queue(b"q", text.as_bytes()))
        .collect();
    producer.confirm(wire, &parts);
    producer.close(wire);
}

fn numbers(deliveries: &[crate::wire::Delivery]) -> Vec<u32> {
    let number = |payload: &&[u8]| std::str::from_utf8(payload).unwrap().parse().unwrap();
    payloads(deliveries).iter().map(number).collect()
}

/// P-42
fn messages_come_in_order(setup: &Setup) {
    everywhere(setup, |wire| {
        wire.consume(1, &consumer(b"q", 10_000));
        fill(wire, 0..500);
        fill(wire, 500..1000);
        let all = wire.deliveries(1, 1000);
        assert_eq!(numbers(&all), (0..1000).collect::<Vec<_>>());
        for (idx, delivery) in all.iter().enumerate() {
            assert_eq!(delivery.tag, idx as u64 + 1);
            assert_eq!(delivery.queue_sequence, idx as u64 + 1);
            assert!(!delivery.redelivered);
        }
        wire.settle_surely(1, ACK, &[(0, 1000)]);
    });
}

/// P-41
fn credit_in_messages(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..20);
        wire.consume(1, &consumer(b"q", 3));
        let first = wire.deliveries(1, 3);
        wire.nothing_delivered(1);
        wire.settle(1, ACK, &[(first[0].tag, first[1].tag)]);
        assert_eq!(numbers(&wire.deliveries(1, 2)), [3, 4]);
        wire.nothing_delivered(1);
        wire.settle(1, REQUEUE, &[(0, 5)]);
        assert_eq!(numbers(&wire.deliveries(1, 3)), [2, 3, 4]);
        wire.nothing_delivered(1);
    });
}

/// P-41: the last message may pass the limit of bytes.
fn credit_in_bytes(setup: &Setup) {
    everywhere(setup, |wire| {
        let payload = filler(1, 1000);
        let bytes = padded(64 + 1 + 1000) as u64;
        let mut producer = wire.producer(2, Level::Volatile);
        let parts: Vec<_> = (0..10).map(|_| to_queue(b"q", &payload)).collect();
        producer.confirm(wire, &parts);
        let open = ConsumerOpen {
            credit_bytes: 2 * bytes,
            ..consumer(b"q", 100)
        };
        wire.consume(1, &open);
        let mut held = wire.deliveries(1, 2);
        wire.nothing_delivered(1);
        wire.settle(1, ACK, &[(held[0].tag, held[0].tag)]);
        held.extend(wire.deliveries(1, 1));
        wire.nothing_delivered(1);
        // Less than one message: still one at a time, as large as it is.
        wire.credit(1, 100, 1);
        wire.settle(1, ACK, &[(0, 3)]);
        assert_eq!(wire.deliveries(1, 1)[0].tag, 4);
        wire.nothing_delivered(1);
        // No limit of bytes.
        wire.credit(1, 100, 0);
        wire.deliveries(1, 6);
    });
}

/// P-41
fn credit_changes(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..20);
        wire.consume(1, &consumer(b"q", 0));
        wire.nothing_delivered(1);
        wire.credit(1, 4, 0);
        wire.deliveries(1, 4);
        wire.nothing_delivered(1);
        // Lowering takes nothing back.
        wire.credit(1, 1, 0);
        wire.settle(1, ACK, &[(1, 3)]);
        wire.nothing_delivered(1);
        assert_eq!(wire.until(b"q", |info| info.ready == 16).unacked, 1);
        wire.settle(1, ACK, &[(4, 4)]);
        assert_eq!(numbers(&wire.deliveries(1, 1)), [4]);
        wire.credit(1, 0, 0);
        wire.settle(1, ACK, &[(5, 5)]);
        wire.nothing_delivered(1);
        wire.credit(1, 100, 0);
        assert_eq!(
            numbers(&wire.deliveries(1, 15)),
            (5..20).collect::<Vec<_>>()
        );
    });
}

/// P-40
fn too_much_credit_is_refused(setup: &Setup) {
    everywhere(setup, |wire| {
        for open in [
            consumer(b"q", CREDIT_MESSAGES_MAX + 1),
            ConsumerOpen {
                credit_bytes: CREDIT_BYTES_MAX + 1,
                ..consumer(b"q", 1)
            },
        ] {
            let id = wire.request_on(FrameKind::ConsumerOpen, 1, &open);
            assert_eq!(wire.failed(id), Code::SettingInvalid);
        }
        let open = ConsumerOpen {
            credit_bytes: CREDIT_BYTES_MAX,
            ..consumer(b"q", CREDIT_MESSAGES_MAX)
        };
        wire.consume(1, &open);
    });
}

/// P-43
fn gets_take_what_is_ready(setup: &Setup) {
    everywhere(setup, |wire| {
        wire.consume(1, &consumer(b"q", 0));
        let id = wire.get(1, 5, 0);
        assert_eq!(wire.got(1, id), []);
        fill(wire, 0..8);
        let id = wire.get(1, 5, 0);
        let got = wire.got(1, id);
        assert_eq!(numbers(&got), [0, 1, 2, 3, 4]);
        let id = wire.get(1, 5, 0);
        assert_eq!(numbers(&wire.got(1, id)), [5, 6, 7]);
        let id = wire.get(1, 5, 0);
        assert_eq!(wire.got(1, id), []);
        assert_eq!(wire.inspect(b"q").unacked, 8);
        wire.settle_surely(1, REQUEUE, &[(got[1].tag, got[2].tag)]);
        let id = wire.get(1, 100, 0);
        let again = wire.got(1, id);
        assert_eq!(numbers(&again), [1, 2]);
        assert!(
            again
                .iter()
                .all(|delivery| delivery.redelivered && delivery.count == 1)
        );
        // As many as are ready, however long they are.
        let payload = filler(1, 50_000);
        let mut producer = wire.producer_with(2, Level::Durable, PRODUCER_DOWNGRADE);
        let parts: Vec<_> = (0..60).map(|_| to_queue(b"q", &payload)).collect();
        producer.confirm(wire, &parts);
        let id = wire.get(1, 100, 0);
        assert_eq!(wire.got(1, id).len(), 60);
    });
}

/// P-43
fn gets_wait(setup: &Setup) {
    everywhere(setup, |wire| {
        wire.consume(1, &consumer(b"q", 0));
        let id = wire.get(1, 5, 30_000);
        wire.sync();
        assert_eq!(wire.aside(), [], "it waits");
        fill(wire, 0..1);
        assert_eq!(numbers(&wire.got(1, id)), [0]);
        fill(wire, 1..3);
        let id = wire.get(1, 5, 30_000);
        assert_eq!(numbers(&wire.got(1, id)), [1, 2]);
        let id = wire.get(1, 5, 50);
        assert_eq!(wire.got(1, id), []);
        // What it did not use is not left over.
        fill(wire, 3..5);
        wire.nothing_delivered(1);
        // A consumer that is closed while it waits is answered by that alone.
        let id = wire.get(1, 100, 30_000);
        wire.got(1, id);
        let waiting = wire.get(1, 5, 30_000);
        wire.close_consumer(1);
        wire.sync();
        assert!(
            !wire
                .aside()
                .iter()
                .any(|(_, _, sequence)| *sequence == waiting)
        );
    });
}

/// P-43: what is taken counts against what is pushed.
fn gets_and_pushes_together(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..10);
        wire.consume(1, &consumer(b"q", 2));
        let pushed = wire.deliveries(1, 2);
        let id = wire.get(1, 3, 0);
        assert_eq!(numbers(&wire.got(1, id)), [2, 3, 4]);
        wire.settle(1, ACK, &[(pushed[0].tag, pushed[1].tag)]);
        wire.nothing_delivered(1);
        wire.settle(1, ACK, &[(3, 4)]);
        assert_eq!(numbers(&wire.deliveries(1, 1)), [5]);
    });
}

/// P-43
fn a_second_get_is_refused_or_served(setup: &Setup) {
    everywhere(setup, |wire| {
        wire.consume(1, &consumer(b"q", 0));
        let first = wire.get(1, 1, 30_000);
        let second = wire.get(1, 1, 30_000);
        fill(wire, 0..2);
        let mut given = 0;
        for id in [first, second] {
            let frame = wire.answer(id);
            match frame.kind() {
                FrameKind::GetDone => given += frame.header.count as usize,
                _ => assert_eq!(frame.code(), Code::LimitReached),
            }
        }
        assert!(given > 0);
        wire.deliveries(1, given);
        wire.nothing_delivered(1);
    });
}

/// P-44, P-45
fn settling_one_by_one_and_in_ranges(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..20);
        wire.consume(1, &consumer(b"q", 100));
        wire.deliveries(1, 20);
        wire.settle_surely(1, ACK, &[(7, 7)]);
        wire.settle_surely(1, ACK, &[(20, 20), (1, 3), (9, 12)]);
        let info = wire.inspect(b"q");
        assert_eq!((info.ready, info.unacked, info.settled), (0, 11, 9));
        wire.close_consumer(1);
        wire.consume(1, &consumer(b"q", 100));
        let rest = wire.deliveries(1, 11);
        assert_eq!(numbers(&rest), [3, 4, 5, 7, 12, 13, 14, 15, 16, 17, 18]);
        assert!(
            rest.iter()
                .all(|delivery| delivery.redelivered && delivery.count == 1)
        );
        assert_eq!(rest[0].queue_sequence, 4);
    });
}

/// P-44
fn settling_cumulatively(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..10);
        wire.consume(1, &consumer(b"q", 100));
        wire.deliveries(1, 10);
        wire.settle_surely(1, ACK, &[(2, 2)]);
        wire.settle_surely(1, ACK, &[(0, 4)]);
        assert_eq!(wire.inspect(b"q").unacked, 6);
        wire.settle_surely(1, ACK, &[(0, 6), (9, 9), (0, 10)]);
        let info = wire.inspect(b"q");
        assert_eq!((info.ready, info.unacked, info.settled), (0, 0, 10));
    });
}

/// P-44: ranges before the bad one hold.
fn a_settlement_of_what_is_not_outstanding(setup: &Setup) {
    everywhere(setup, |wire| {
        for bad in [
            (3, 3),
            (1, 9),
            (9, 9),
            (0, 9),
            (u64::MAX, u64::MAX),
            (0, u64::MAX),
        ] {
            fill(wire, 0..6);
            wire.consume(1, &consumer(b"q", 100));
            wire.deliveries(1, 6);
            wire.settle(1, ACK, &[(3, 3)]);
            wire.settle(1, ACK, &[(2, 2), bad, (5, 5)]);
            assert_eq!(wire.consumer_closed(1), Code::UnknownDelivery, "{bad:?}");
            let info = wire.until(b"q", |info| info.consumers == 0);
            assert_eq!((info.ready, info.unacked), (4, 0), "{bad:?}");
            wire.purge(b"q");
        }
    });
}

/// P-15
fn settlements_after_the_end_are_ignored(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..4);
        wire.consume(1, &consumer(b"q", 100));
        wire.deliveries(1, 4);
        wire.settle(1, ACK, &[(9, 9)]);
        for tag in 1..=4 {
            wire.settle(1, ACK, &[(tag, tag)]);
        }
        wire.credit(1, 5, 0);
        let get = wire.get(1, 1, 0);
        let close = wire.request_bare(FrameKind::ConsumerClose, 1);
        assert_eq!(wire.consumer_closed(1), Code::UnknownDelivery);
        wire.sync();
        let ignored = |(_, _, sequence): &(_, _, u64)| *sequence != get && *sequence != close;
        assert!(wire.aside().iter().all(ignored), "{:?}", wire.aside());
        assert_eq!(wire.until(b"q", |info| info.consumers == 0).ready, 4);
        // The number is free again.
        wire.consume(1, &consumer(b"q", 100));
        wire.deliveries(1, 4);
        // The same after a close by the client.
        wire.close_consumer(1);
        wire.settle(1, ACK, &[(1, 1)]);
        wire.credit(1, 5, 0);
        wire.get(1, 1, 0);
        wire.request_bare(FrameKind::ConsumerClose, 1);
        wire.sync();
        assert_eq!(wire.until(b"q", |info| info.unacked == 0).ready, 4);
        wire.purge(b"q");
    });
}

/// P-47
fn requeued_messages_return_to_their_places(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..10);
        wire.consume(1, &consumer(b"q", 5));
        wire.deliveries(1, 5);
        wire.settle_surely(1, REQUEUE, &[(4, 4), (2, 2)]);
        let again = wire.deliveries(1, 2);
        assert_eq!(numbers(&again), [1, 3], "ahead of 5, in their order");
        assert!(
            again
                .iter()
                .all(|delivery| delivery.redelivered && delivery.count == 1)
        );
        assert_eq!((again[0].queue_sequence, again[1].queue_sequence), (2, 4));
        wire.settle_surely(1, ACK, &[(0, 7)]);
        let rest = wire.deliveries(1, 5);
        assert_eq!(numbers(&rest), [5, 6, 7, 8, 9]);
        assert!(rest.iter().all(|delivery| !delivery.redelivered));
    });
}

/// P-44
fn rejected_messages_are_gone(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..5);
        wire.consume(1, &consumer(b"q", 5));
        wire.deliveries(1, 5);
        wire.settle_surely(1, REJECT, &[(2, 3)]);
        let info = wire.inspect(b"q");
        assert_eq!((info.unacked, info.settled), (3, 2));
        wire.close_consumer(1);
        wire.consume(1, &consumer(b"q", 5));
        assert_eq!(numbers(&wire.deliveries(1, 3)), [0, 3, 4]);
    });
}

/// P-47
fn delivery_counts_grow(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..1);
        wire.consume(1, &consumer(b"q", 1));
        for count in 0..10 {
            let one = wire.deliveries(1, 1);
            assert_eq!((one[0].count, one[0].redelivered), (count, count > 0));
            assert_eq!(
                (one[0].queue_sequence, one[0].tag),
                (1, u64::from(count) + 1)
            );
            wire.settle(1, REQUEUE, &[(one[0].tag, one[0].tag)]);
        }
    });
}

/// P-17, P-47
fn what_a_dead_consumer_held_returns(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..10);
        let mut dying = setup.wire();
        dying.consume(1, &consumer(b"q", 6));
        dying.consume(2, &consumer(b"q", 0));
        dying.deliveries(1, 6);
        let id = dying.get(2, 2, 0);
        dying.got(2, id);
        dying.settle_surely(1, ACK, &[(2, 3)]);
        let waits = dying.deliveries(1, 2);
        assert_eq!(numbers(&waits), [8, 9]);
        dying.drop_dead();
        wire.until(b"q", |info| info.consumers == 0);
        wire.consume(1, &consumer(b"q", 100));
        let all = wire.deliveries(1, 8);
        assert_eq!(numbers(&all), [0, 3, 4, 5, 6, 7, 8, 9]);
        assert!(
            all.iter()
                .all(|delivery| delivery.redelivered && delivery.count == 1)
        );
    });
}

/// P-40
fn exclusive_consumers(setup: &Setup) {
    everywhere(setup, |wire| {
        let exclusive = ConsumerOpen {
            flags: CONSUMER_EXCLUSIVE,
            ..consumer(b"q", 1)
        };
        wire.consume(1, &consumer(b"q", 1));
        let id = wire.request_on(FrameKind::ConsumerOpen, 2, &exclusive);
        assert_eq!(wire.failed(id), Code::InUse);
        wire.close_consumer(1);
        wire.until(b"q", |info| info.consumers == 0);
        let mut alone = setup.wire();
        alone.consume(1, &exclusive);
        for open in [exclusive, consumer(b"q", 1)] {
            let id = wire.request_on(FrameKind::ConsumerOpen, 2, &open);
            assert_eq!(wire.failed(id), Code::InUse);
        }
        alone.drop_dead();
        wire.until(b"q", |info| info.consumers == 0);
        wire.consume(2, &exclusive);
    });
}

/// P-49
fn no_acks(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..50);
        let open = ConsumerOpen {
            flags: CONSUMER_NO_ACK,
            ..consumer(b"q", 5)
        };
        wire.consume(1, &open);
        assert_eq!(
            numbers(&wire.deliveries(1, 50)),
            (0..50).collect::<Vec<_>>()
        );
        let info = wire.until(b"q", |info| info.settled == 50);
        assert_eq!((info.ready, info.unacked), (0, 0));
        wire.credit(1, 0, 0);
        fill(wire, 50..52);
        wire.nothing_delivered(1);
        let id = wire.get(1, 1, 0);
        assert_eq!(numbers(&wire.got(1, id)), [50]);
        wire.close_consumer(1);
        let info = wire.until(b"q", |info| info.consumers == 0);
        assert_eq!((info.ready, info.unacked, info.settled), (1, 0, 51));
    });
}

/// P-49
fn no_ack_settles_nothing(setup: &Setup) {
    everywhere(setup, |wire| {
        fill(wire, 0..1);
        let open = ConsumerOpen {
            flags: CONSUMER_NO_ACK,
            ..consumer(b"q", 5)
        };
        wire.consume(1, &open);
        wire.deliveries(1, 1);
        wire.settle(1, ACK, &[(1, 1)]);
        assert_eq!(wire.consumer_closed(1), Code::UnknownDelivery);
    });
}

fn consumers_share(setup: &Setup) {
    everywhere(setup, |wire| {
        let mut other = setup.wire();
        wire.consume(1, &consumer(b"q", 1000));
        wire.consume(2, &consumer(b"q", 1000));
        other.consume(1, &consumer(b"q", 1000));
        for round in 0..20 {
            fill(wire, round * 30..round * 30 + 30);
        }
        // Whoever holds what, each message is with one of them.
        wire.until(b"q", |info| info.unacked == 600);
        let mut all = Vec::new();
        wire.sync();
        other.sync();
        while wire
            .aside()
            .iter()
            .any(|(kind, channel, _)| *kind == FrameKind::Deliver && *channel == 1)
        {
            all.extend(numbers(&wire.delivered(1)));
        }
        let of_first = all.len();
        while wire
            .aside()
            .iter()
            .any(|(kind, _, _)| *kind == FrameKind::Deliver)
        {
            all.extend(numbers(&wire.delivered(2)));
        }
        let of_second = all.len() - of_first;
        let of_third = 600 - all.len();
        all.extend(numbers(&other.deliveries(1, of_third)));
        all.sort_unstable();
        assert_eq!(all, (0..600).collect::<Vec<_>>());
        assert!(of_first > 0 && of_second > 0 && of_third > 0);
        other.drop_dead();
        wire.until(b"q", |info| info.consumers == 2);
    });
}

/// P-62, P-48
fn a_queue_deleted_under_its_consumers(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        let mut others: Vec<_> = (0..3).map(|_| setup.wire()).collect();
        wire.declare(&queue_on(b"q", core));
        for other in &mut others {
            other.consume(1, &consumer(b"q", 5));
            other.consume(2, &consumer(b"q", 0));
        }
        let waits: Vec<_> = others
            .iter_mut()
            .map(|other| other.get(2, 1, 30_000))
            .collect();
        fill(&mut wire, 0..30);
        wire.until(b"q", |info| info.unacked == 18);
        assert_eq!(wire.delete(b"q"), 30);
        for (other, wait) in others.iter_mut().zip(waits) {
            assert_eq!(other.answer(wait).kind(), FrameKind::GetDone);
            // Settlements that were on their way find a channel that was open.
            other.settle(1, ACK | 4, &[(0, 1)]);
            assert_eq!(other.consumer_closed(1), Code::QueueDeleted);
            assert_eq!(other.consumer_closed(2), Code::QueueDeleted);
            other.sync();
        }
        wire.declare(&queue_on(b"q", core));
        fill(&mut wire, 100..110);
        others[0].consume(1, &consumer(b"q", 100));
        // Deliveries of the old consumer came before its end.
        let old = others[0].deliveries_before_end(1);
        assert!(
            old.iter()
                .all(|delivery| numbers(std::slice::from_ref(delivery))[0] < 30)
        );
        assert_eq!(
            numbers(&others[0].deliveries(1, 10)),
            (100..110).collect::<Vec<_>>()
        );
        wire.delete(b"q");
    }
}

/// P-42
fn a_message_larger_than_agreed(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"q", core));
        let mut small = Wire::greet(
            &setup.broker,
            &ringpost_wire::control::Hello {
                message_bytes_max: 5000,
                ..crate::wire::hello(setup.tenant.as_bytes())
            },
        );
        small.consume(1, &consumer(b"q", 10));
        let payload = filler(1, 6000);
        let mut producer = wire.producer(1, Level::Durable);
        producer.confirm(
            &mut wire,
            &[to_queue(b"q", b"fits"), to_queue(b"q", &payload)],
        );
        assert_eq!(small.deliveries(1, 1)[0].payload, b"fits");
        assert_eq!(small.consumer_closed(1), Code::MessageTooLarge);
        // P-22: it may not publish such a one either.
        let mut other = small.producer(2, Level::Durable);
        let code = other.refused(&mut small, 0, to_queue(b"q", &payload));
        assert_eq!(code, Code::MessageTooLarge);
        let info = wire.until(b"q", |info| info.unacked == 0);
        assert_eq!(info.ready, 2);
        wire.consume(2, &consumer(b"q", 10));
        let both = wire.deliveries(2, 2);
        assert_eq!(both[1].payload, payload);
        assert_eq!(both[0].count, 1);
        wire.delete(b"q");
    }
}

/// P-14, P-48: what is meant for a consumer that is gone never reaches the next one of its number.
fn channels_come_and_go(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"q", core));
        wire.declare(&QueueDeclare {
            partition: core,
            ..crate::wire::queue(b"other")
        });
        fill(&mut wire, 0..200);
        for _ in 0..30 {
            wire.consume(1, &consumer(b"q", 50));
            let close = wire.request_bare(FrameKind::ConsumerClose, 1);
            let closed = wire.answer(close);
            assert_eq!(closed.kind(), FrameKind::ConsumerClosed);
            let _ = wire.deliveries_before_end(1);
            wire.consume(1, &consumer(b"other", 50));
            wire.nothing_delivered(1);
            wire.close_consumer(1);
        }
        wire.until(b"q", |info| info.unacked == 0);
        wire.consume(1, &consumer(b"q", 200));
        assert_eq!(
            numbers(&wire.deliveries(1, 200)),
            (0..200).collect::<Vec<_>>()
        );
        wire.delete(b"q");
        wire.delete(b"other");
    }
}

/// P-41, P-43
fn a_get_is_for_some_messages(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue_on(b"q", 0));
    wire.consume(2, &consumer(b"q", 0));
    for count in [0, CREDIT_MESSAGES_MAX + 1] {
        let id = wire.get(2, count, 0);
        assert_eq!(wire.failed(id), Code::SettingInvalid);
    }
    let id = wire.get(2, CREDIT_MESSAGES_MAX, 0);
    assert_eq!(wire.got(2, id), []);
    // Credit is no request, and has no answer.
    wire.credit(2, CREDIT_MESSAGES_MAX, 0);
    wire.sync();
    wire.credit(2, CREDIT_MESSAGES_MAX + 1, 0);
    assert_eq!(wire.closed(), Code::BodyMalformed);
}
