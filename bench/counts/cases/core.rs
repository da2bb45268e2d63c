//! Cases of whole cores: messages from the publish frame to the settled delivery, on a device and
//! sockets that cost a copy. What clients do is timed with it. Does not know real devices and sockets.

use super::Case;
use crate::client::{self, Consumer, Producer};
use crate::machine::{Machine, Size};

const BATCH: u32 = 1_024;
/// Messages that wait for their confirm, at most.
const WINDOW: u64 = 16_384;
const CONSUMER_CONNECTIONS: usize = 16;

pub fn cases() -> Vec<Case> {
    vec![
        Case::of_engine("core/1-queue/100B", || pass(Shape::of(1, 100))),
        Case::of_engine("core/1-queue/1KiB", || pass(Shape::of(1, 1 << 10))),
        Case::of_engine("core/1-queue/16KiB", || pass(Shape::of(1, 16 << 10))),
        Case::of_engine("core/1000-queues/100B", || pass(Shape::of(1_000, 100))),
        Case::of_engine("core/1000-queues/1KiB", || pass(Shape::of(1_000, 1 << 10))),
        Case::of_engine("core/another-core/100B", || {
            pass(Shape {
                cores: 2,
                ..Shape::of(1, 100)
            })
        }),
    ]
}

#[derive(Clone, Copy)]
struct Shape {
    queues: u32,
    payload: usize,
    /// With two, the producer is on one and queue and consumer on the other.
    cores: u16,
}

impl Shape {
    const fn of(queues: u32, payload: usize) -> Self {
        Self {
            queues,
            payload,
            cores: 1,
        }
    }

    /// Messages of a round: about 4 MiB, and every queue has its share.
    fn messages(&self) -> u64 {
        (4 << 20) / self.payload.max(128) as u64
    }
}

fn pass(shape: Shape) -> impl FnMut() -> u64 {
    let mut machine = Machine::start(Size {
        cores: shape.cores,
        buffers: 256,
        segment_bytes: 16 << 20,
        slots_max: 64,
    });
    let core = usize::from(shape.cores - 1);
    let partition = (core > 0).then_some(1);
    let names = client::declare(&mut machine, "many-", shape.queues, partition);
    let mut producer = Producer::open(&mut machine, 0, &names, BATCH, shape.payload);
    let share = names.len().div_ceil(CONSUMER_CONNECTIONS);
    let mut consumers: Vec<Consumer> = names
        .chunks(share)
        .map(|names| Consumer::open(&mut machine, core, names, 4_096))
        .collect();
    move || {
        let delivered = |consumers: &[Consumer]| consumers.iter().map(|one| one.delivered).sum();
        let first: u64 = delivered(&consumers);
        while delivered(&consumers) < first + shape.messages() {
            producer.publish(&mut machine, WINDOW);
            machine.turn();
            for consumer in &mut consumers {
                consumer.work(&mut machine, false);
            }
        }
        delivered(&consumers) - first
    }
}
