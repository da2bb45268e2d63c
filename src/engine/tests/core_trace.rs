//! What is said of a message that is followed, event by event with its time. Does not know who asks.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use client::{Consumer, Producer};
use machine::{Machine, Size, TURN_NS};
use ringpost_engine::Mono;
use ringpost_engine::data::trace::{
    NotFollowed, TRACES_MAX, TraceEnd, TraceEvent, TraceOutcome, Traced, Wanted,
};
use ringpost_wire::control::{Body, Delete};
use ringpost_wire::ids::CoreId;
use ringpost_wire::{FrameHeader, FrameKind};

use TraceEvent::{
    Appended, Confirmed, Durable, Ended, Ready, Received, Returned, Sent, Settled, Submitted,
};

/// Turns that acks wait for company in the journal.
const COMPANY: u64 = 20_000_000 / TURN_NS;

fn start(cores: u16) -> Machine {
    Machine::start(Size {
        cores,
        buffers: 64,
        segment_bytes: 32 << 20,
        slots_max: 16,
    })
}

fn wanted(machine: &Machine, queue: &str) -> Wanted {
    Wanted {
        tenant: Vec::new(),
        queue: queue.into(),
        routing_key: None,
        until: machine.now().plus_ms(10_000),
    }
}

/// Passes a message, so that the record that says how far may be delivered is on disk.
fn warm(machine: &mut Machine, producer: &mut Producer, consumer: &mut Consumer) {
    producer.publish(machine, 100);
    for _ in 0..200 {
        machine.turn();
        consumer.work(machine, false);
    }
}

/// Runs until the core has ended what it follows, the consumer working; says what was told and in
/// which turn since `start` that was.
fn follow_to_the_end(
    machine: &mut Machine,
    core: usize,
    consumer: &mut Consumer,
    start: Mono,
) -> Vec<(u64, TraceEvent)> {
    let mut told = Vec::new();
    for _ in 0..1_000 {
        told.extend(turns(machine.traced(core), start));
        if let Some((_, Ended(_))) = told.last() {
            return told;
        }
        machine.turn();
        consumer.work(machine, false);
    }
    panic!("it does not end: {told:?}");
}

fn turns(traced: Vec<Traced>, start: Mono) -> Vec<(u64, TraceEvent)> {
    let turn = |at: Mono| (at.0 - start.0) / TURN_NS;
    traced.iter().map(|one| (turn(one.at), one.event)).collect()
}

/// The same without what identifies things.
fn words(told: &[(u64, TraceEvent)]) -> Vec<(u64, &'static str)> {
    let word = |event: &TraceEvent| match event {
        Received { .. } => "received",
        Appended { .. } => "appended",
        Submitted => "submitted",
        Durable => "durable",
        Confirmed => "confirmed",
        Ready => "ready",
        Sent {
            delivery_count: 0, ..
        } => "sent",
        Sent { .. } => "sent again",
        Settled(TraceOutcome::Acked) => "acked",
        Settled(TraceOutcome::Requeued) => "requeued",
        Settled(_) => "settled",
        Returned { .. } => "returned",
        Ended(TraceEnd::Forgotten) => "forgotten",
        Ended(TraceEnd::QueueDeleted) => "deleted",
        Ended(TraceEnd::TimedOut) => "timed out",
        Ended(TraceEnd::JournalFailed) => "failed",
    };
    told.iter()
        .map(|(turn, event)| (*turn, word(event)))
        .collect()
}

#[test]
fn a_message_is_followed_from_its_producer_until_nothing_is_left_of_it() {
    let mut machine = start(1);
    let names = client::declare(&mut machine, "q-", 1, None);
    let mut producer = Producer::open(&mut machine, 0, &names, 3, 100);
    let mut consumer = Consumer::open(&mut machine, 0, &names, 100);
    warm(&mut machine, &mut producer, &mut consumer);
    let wanted = wanted(&machine, &names[0]);
    machine.follow(0, wanted).expect("it is there");
    let now = machine.now();
    // The first of three.
    assert_eq!(producer.publish(&mut machine, 100), 3);
    let told = follow_to_the_end(&mut machine, 0, &mut consumer, now);
    assert_eq!(
        words(&told),
        [
            (0, "received"),
            (0, "appended"),
            (1, "submitted"),
            (2, "durable"),
            (2, "ready"),
            (2, "confirmed"),
            (2, "sent"),
            (2, "acked"),
            (4 + COMPANY, "forgotten"),
        ]
    );
    assert!(
        matches!(told[0].1, Received { core: CoreId(0), sequence, .. } if sequence.0 == 4),
        "{told:?}"
    );
    let Appended {
        queue_sequence,
        bytes,
        block,
    } = told[1].1
    else {
        panic!("{told:?}");
    };
    assert_eq!((queue_sequence.0, bytes), (4, 176));
    assert!(block.is_some());
    assert!(matches!(told[6].1, Sent { tag: 4, .. }), "{told:?}");
    // Nothing more is said, whatever comes.
    producer.publish(&mut machine, 100);
    machine.turn();
    assert_eq!(machine.traced(0), []);
}

#[test]
fn a_message_that_is_sent_back_is_followed_until_it_is_acked() {
    let mut machine = start(1);
    let names = client::declare(&mut machine, "q-", 1, None);
    let mut producer = Producer::open(&mut machine, 0, &names, 1, 100);
    let mut consumer = Consumer::open(&mut machine, 0, &names, 100);
    warm(&mut machine, &mut producer, &mut consumer);
    let wanted = wanted(&machine, &names[0]);
    machine.follow(0, wanted).expect("it is there");
    let now = machine.now();
    producer.publish(&mut machine, 100);
    machine.turn();
    machine.turn();
    assert_eq!(consumer.work(&mut machine, true), 1);
    let told = follow_to_the_end(&mut machine, 0, &mut consumer, now);
    assert_eq!(
        words(&told)[6..],
        [
            (2, "sent"),
            (2, "requeued"),
            (4, "sent again"),
            (4, "acked"),
            (6 + COMPANY, "forgotten"),
        ]
    );
}

#[test]
fn a_message_whose_consumer_goes_is_followed_to_the_next_one() {
    let mut machine = start(1);
    let names = client::declare(&mut machine, "q-", 1, None);
    let mut producer = Producer::open(&mut machine, 0, &names, 1, 100);
    let mut first = Consumer::open(&mut machine, 0, &names, 100);
    warm(&mut machine, &mut producer, &mut first);
    let wanted = wanted(&machine, &names[0]);
    machine.follow(0, wanted).expect("it is there");
    let now = machine.now();
    producer.publish(&mut machine, 100);
    machine.turn();
    machine.turn();
    first.close(&mut machine);
    let mut second = Consumer::open(&mut machine, 0, &names, 100);
    let told = follow_to_the_end(&mut machine, 0, &mut second, now);
    assert_eq!(
        words(&told)[6..],
        [
            (2, "sent"),
            (2, "returned"),
            (4, "sent again"),
            (4, "acked"),
            (6 + COMPANY, "forgotten"),
        ]
    );
    let consumers: Vec<u64> = told
        .iter()
        .filter_map(|(_, event)| match event {
            Sent { consumer, .. } => Some(*consumer),
            _ => None,
        })
        .collect();
    assert_ne!(consumers[0], consumers[1]);
    assert_eq!(
        told[7].1,
        Returned {
            consumer: consumers[0]
        }
    );
}

#[test]
fn a_message_from_another_core_is_followed_from_there() {
    let mut machine = start(2);
    let names = client::declare(&mut machine, "q-", 1, Some(1));
    let mut producer = Producer::open(&mut machine, 0, &names, 1, 100);
    let mut consumer = Consumer::open(&mut machine, 1, &names, 100);
    warm(&mut machine, &mut producer, &mut consumer);
    let request = wanted(&machine, &names[0]);
    let elsewhere = machine.follow(0, request.clone());
    assert_eq!(elsewhere, Err(NotFollowed::Elsewhere(CoreId(1))));
    machine.follow(1, request).expect("it is there");
    let now = machine.now();
    producer.publish(&mut machine, 100);
    let told = follow_to_the_end(&mut machine, 1, &mut consumer, now);
    assert_eq!(
        words(&told),
        [
            (0, "received"),
            (1, "appended"),
            (1, "submitted"),
            (2, "durable"),
            (2, "ready"),
            (2, "sent"),
            (2, "acked"),
            (4 + COMPANY, "forgotten"),
        ]
    );
    assert!(
        matches!(
            told[0].1,
            Received {
                core: CoreId(0),
                ..
            }
        ),
        "{told:?}"
    );
    assert_eq!(machine.traced(0), []);
}

#[test]
fn a_trace_ends_with_its_queue_and_with_its_time() {
    let mut machine = start(1);
    let names = client::declare(&mut machine, "q-", 2, None);
    let conn = client::greet(&mut machine, 0);
    let mut short = wanted(&machine, &names[1]);
    short.until = machine.now().plus_ms(1);
    let start = machine.now();
    let deleted = machine
        .follow(0, wanted(&machine, &names[0]))
        .expect("it is there");
    let timed_out = machine.follow(0, short).expect("it is there");
    let mut delete = Vec::new();
    let body = Delete {
        flags: 0,
        name: names[0].as_bytes(),
    };
    body.write(&mut delete, FrameHeader::bare(FrameKind::QueueDelete, 0, 1));
    client::ask(&mut machine, 0, conn, &delete);
    for _ in 0..10 {
        machine.turn();
    }
    let told = machine.traced(0);
    let ends: Vec<_> = told.iter().map(|one| (one.trace, one.event)).collect();
    assert_eq!(
        ends,
        [
            (deleted, Ended(TraceEnd::QueueDeleted)),
            (timed_out, Ended(TraceEnd::TimedOut)),
        ]
    );
    assert_eq!(turns(told, start)[1].0, 1_000_000 / TURN_NS);
}

#[test]
fn only_the_message_with_the_key_is_followed() {
    let mut machine = start(1);
    let names = client::declare(&mut machine, "q-", 1, None);
    let mut producer = Producer::open(&mut machine, 0, &names, 1, 100);
    let mut consumer = Consumer::open(&mut machine, 0, &names, 100);
    for (key, is_followed) in [("another", false), (names[0].as_str(), true)] {
        let request = Wanted {
            routing_key: Some(key.into()),
            ..wanted(&machine, &names[0])
        };
        let trace = machine.follow(0, request).expect("it is there");
        producer.publish(&mut machine, 100);
        for _ in 0..10 {
            machine.turn();
            consumer.work(&mut machine, false);
        }
        assert_eq!(!machine.traced(0).is_empty(), is_followed, "{key}");
        machine.unfollow(0, trace);
    }
}

#[test]
fn no_more_are_followed_than_may_be() {
    let mut machine = start(1);
    let names = client::declare(&mut machine, "q-", 1, None);
    let request = wanted(&machine, &names[0]);
    let traces: Vec<_> = (0..TRACES_MAX)
        .map(|_| machine.follow(0, request.clone()).expect("there is room"))
        .collect();
    assert_eq!(
        machine.follow(0, request.clone()),
        Err(NotFollowed::TooMany)
    );
    machine.unfollow(0, traces[1]);
    assert!(machine.follow(0, request.clone()).is_ok());
    let nowhere = Wanted {
        queue: b"nowhere".to_vec(),
        ..request.clone()
    };
    assert_eq!(machine.follow(0, nowhere), Err(NotFollowed::QueueUnknown));
    let nobody = Wanted {
        tenant: b"nobody".to_vec(),
        ..request
    };
    assert_eq!(machine.follow(0, nobody), Err(NotFollowed::TenantUnknown));
}
