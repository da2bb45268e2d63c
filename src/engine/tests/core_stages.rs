//! What the samples of stages are about. Does not know histograms.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use client::{Consumer, Producer};
use machine::{Machine, Size, TURN_NS};
use ringpost_engine::data::stages::Stage;

/// Turns between an ack and the next publish: less than acks wait for company.
const IDLE_TURNS: u64 = 10_000_000 / TURN_NS;

#[test]
fn a_message_does_not_wait_for_what_came_into_its_block_before() {
    let mut machine = Machine::start(Size {
        cores: 1,
        buffers: 64,
        segment_bytes: 32 << 20,
        slots_max: 16,
    });
    let names = client::declare(&mut machine, "q-", 1, None);
    let mut producer = Producer::open(&mut machine, 0, &names, 1, 100);
    let mut consumer = Consumer::open(&mut machine, 0, &names, 100);
    machine.samples(0);
    for round in 1..=20 {
        assert_eq!(producer.publish(&mut machine, 100), 1);
        // It is delivered and acked, and the ack waits in a block for company.
        for _ in 0..IDLE_TURNS {
            machine.turn();
            consumer.work(&mut machine, false);
        }
        assert_eq!(consumer.delivered, round);
    }
    let samples = machine.samples(0);
    let of = |stage| samples.iter().filter(move |sample| sample.stage == stage);
    for stage in [Stage::Journal, Stage::Device, Stage::Publish, Stage::Ready] {
        assert_eq!(
            of(stage).map(|sample| sample.count).sum::<u32>(),
            20,
            "{stage:?}"
        );
    }
    let longest = |stage| of(stage).map(|sample| sample.ns).max();
    assert!(longest(Stage::Journal) <= Some(TURN_NS), "{samples:?}");
    assert!(longest(Stage::Journal) <= longest(Stage::Publish));
}
