//! When acks are journaled: those of many queues are gathered for as long as acks may wait, those that
//! somebody waits for are not. Does not know what a record looks like, or what a crash leaves.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use client::{Consumer, Producer};
use machine::{Machine, Size, TURN_NS};
use ringpost_engine::data::journal::record::RECORD_HEAD_BYTES;
use ringpost_wire::FrameKind;

const QUEUES: u32 = 200;
/// Queues of each consumer.
const SHARE: usize = 50;
/// Bytes of a message with its padding.
const MESSAGE_BYTES: u64 = 176;
/// Turns in which acks may wait: 20 ms.
const WAIT_TURNS: u64 = 20_000_000 / TURN_NS;
/// What one range of acks takes in a record of its own.
const ACK_BYTES: u64 = RECORD_HEAD_BYTES as u64 + 16;

struct Scene {
    machine: Machine,
    producer: Producer,
    consumers: Vec<Consumer>,
}

impl Scene {
    /// One message for each queue in every batch; few enough bytes for one segment, which has no index
    /// and no checkpoint among what is counted.
    fn new() -> Self {
        let mut machine = Machine::start(Size {
            cores: 1,
            buffers: 64,
            segment_bytes: 32 << 20,
            slots_max: 16,
        });
        let names = client::declare(&mut machine, "many-", QUEUES, None);
        let producer = Producer::open(&mut machine, 0, &names, QUEUES, 100);
        let consumers = names
            .chunks(SHARE)
            .map(|names| Consumer::open(&mut machine, 0, names, 4_096))
            .collect();
        Self {
            machine,
            producer,
            consumers,
        }
    }

    fn turn(&mut self) {
        self.machine.turn();
        for consumer in &mut self.consumers {
            consumer.work(&mut self.machine, false);
        }
    }

    fn delivered(&self) -> u64 {
        self.consumers.iter().map(|one| one.delivered).sum()
    }

    /// Publishes one message for each queue and acks them all.
    fn round(&mut self) {
        let before = self.delivered();
        assert_eq!(self.producer.publish(&mut self.machine, 8_192), QUEUES);
        for _ in 0..50 {
            self.turn();
            if self.delivered() - before == u64::from(QUEUES) {
                return;
            }
        }
        panic!("every message is delivered");
    }

    fn written(&self) -> u64 {
        self.machine.written_bytes(0)
    }
}

#[test]
fn acks_of_many_queues_share_records() {
    let mut scene = Scene::new();
    // Every queue has its mark.
    for _ in 0..4 {
        scene.round();
    }
    const ROUNDS: u64 = 100;
    let before = scene.written();
    for _ in 0..ROUNDS {
        scene.round();
    }
    let messages = ROUNDS * u64::from(QUEUES);
    let each = (scene.written() - before) / messages;
    let alone = u64::from(RECORD_HEAD_BYTES) + MESSAGE_BYTES;
    assert!(each >= alone, "{each} bytes hold no message");
    assert!(
        each < alone + ACK_BYTES / 2,
        "{each} bytes a message: acks have records of their own"
    );
}

#[test]
fn gathered_acks_wait_no_longer_than_acks_may() {
    let mut scene = Scene::new();
    for _ in 0..4 {
        scene.round();
    }
    for _ in 0..2 * WAIT_TURNS {
        scene.turn();
    }
    scene.round();
    let before = scene.written();
    scene.turn();
    scene.turn();
    assert_eq!(scene.written(), before, "acks wait for company");
    let now = scene.machine.now();
    let deadline = scene.machine.core(0).next_deadline(now);
    let deadline = deadline.expect("something waits");
    assert!(deadline.0 <= now.0 + WAIT_TURNS * TURN_NS);
    for _ in 0..WAIT_TURNS {
        scene.turn();
    }
    let acks = scene.written() - before;
    assert!(
        acks >= u64::from(QUEUES) * ACK_BYTES,
        "{acks} bytes are no ack of every queue"
    );
}

#[test]
fn an_ack_that_is_waited_for_takes_the_others_along() {
    let mut scene = Scene::new();
    for _ in 0..4 {
        scene.round();
    }
    for _ in 0..2 * WAIT_TURNS {
        scene.turn();
    }
    assert_eq!(scene.producer.publish(&mut scene.machine, 8_192), QUEUES);
    for _ in 0..5 {
        scene.machine.turn();
        for consumer in &mut scene.consumers[1..] {
            consumer.work(&mut scene.machine, false);
        }
    }
    let before = scene.written();
    assert!(!scene.consumers[0].is_settled(&mut scene.machine));
    scene.consumers[0].ack_durably(&mut scene.machine);
    for _ in 0..5 {
        scene.machine.turn();
    }
    assert!(scene.consumers[0].is_settled(&mut scene.machine));
    let acks = scene.written() - before;
    assert!(
        acks >= u64::from(QUEUES - SHARE as u32 + 1) * ACK_BYTES,
        "{acks} bytes are no ack of every queue"
    );
}

//= P-48
#[test]
fn a_close_waits_for_the_acks_before_it() {
    for consumer_core in 0..2 {
        let mut machine = Machine::start(Size {
            cores: 2,
            buffers: 64,
            segment_bytes: 32 << 20,
            slots_max: 16,
        });
        let names = client::declare(&mut machine, "there-", 1, Some(1));
        let mut producer = Producer::open(&mut machine, 1, &names, 2, 100);
        let mut consumer = Consumer::open(&mut machine, consumer_core, &names, 100);
        assert_eq!(producer.publish(&mut machine, 8_192), 2);
        for _ in 0..10 {
            machine.turn();
        }
        assert_eq!(consumer.told(&mut machine), [FrameKind::Deliver]);
        machine.stall(1, true);
        consumer.ack_durably(&mut machine);
        consumer.close(&mut machine);
        for _ in 0..10 {
            machine.turn();
        }
        assert_eq!(consumer.told(&mut machine), [], "the ack is on no disk yet");
        machine.stall(1, false);
        for _ in 0..10 {
            machine.turn();
        }
        let told = [FrameKind::Settled, FrameKind::ConsumerClosed];
        assert_eq!(consumer.told(&mut machine), told);
        // The other message is there for the next.
        let mut next = Consumer::open(&mut machine, consumer_core, &names, 100);
        for _ in 0..10 {
            machine.turn();
        }
        next.work(&mut machine, false);
        assert_eq!(next.delivered, 1);
    }
}
