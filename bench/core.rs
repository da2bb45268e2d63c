//! What one message costs the engine, from the publish frame to the settled delivery, over one queue
//! and over a thousand, on a device and sockets that cost nothing. Does not know real ones.
//!
//! `core [QUEUES] [MESSAGES] [PAYLOAD]`: with a number of queues one measurement, for a profiler.
//! Without: one queue and a thousand in turns, the best and the median of several.

#[path = "../src/engine/tests/memory/client.rs"]
mod client;
#[path = "../src/engine/tests/memory/machine.rs"]
mod machine;

use std::time::Instant;

use client::{Consumer, Producer};
use machine::{Machine, Size};

const BATCH: u32 = 1_024;
const WINDOW: u64 = 16_384;
const CONSUMER_CONNECTIONS: usize = 16;
const ROUNDS: usize = 7;

/// Everything that one measurement needs.
struct Scene {
    machine: Machine,
    producer: Producer,
    consumers: Vec<Consumer>,
}

impl Scene {
    fn new(queues: u32, payload: usize) -> Self {
        let mut machine = Machine::start(Size {
            cores: 1,
            buffers: 512,
            segment_bytes: 64 << 20,
            slots_max: 64,
        });
        let names = client::declare(&mut machine, "many-", queues, None);
        let producer = Producer::open(&mut machine, 0, &names, BATCH, payload);
        let share = names.len().div_ceil(CONSUMER_CONNECTIONS);
        let consumers = names
            .chunks(share)
            .map(|names| Consumer::open(&mut machine, 0, names, 4_096))
            .collect();
        Self {
            machine,
            producer,
            consumers,
        }
    }

    fn delivered(&self) -> u64 {
        self.consumers.iter().map(|one| one.delivered).sum()
    }

    /// Publishes, delivers and settles at least so many messages more; says the ns each.
    fn run(&mut self, messages: u64) -> f64 {
        let first = self.delivered();
        let start = Instant::now();
        while self.delivered() < first + messages {
            self.producer.publish(&mut self.machine, WINDOW);
            self.machine.turn();
            for consumer in &mut self.consumers {
                consumer.work(&mut self.machine, false);
            }
        }
        start.elapsed().as_nanos() as f64 / (self.delivered() - first) as f64
    }
}

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .map(|word| word.parse().expect("a number"))
        .collect();
    let messages = numbers.get(1).copied().unwrap_or(300_000);
    let payload = numbers.get(2).copied().unwrap_or(100) as usize;
    if let Some(queues) = numbers.first() {
        let mut scene = Scene::new(*queues as u32, payload);
        scene.run(messages / 2);
        let each = scene.run(messages);
        let frames: u64 = scene.consumers.iter().map(|one| one.frames).sum();
        let per_frame = scene.delivered() as f64 / frames as f64;
        println!("{queues} queues: {each:.0} ns a message, {per_frame:.1} messages a delivery");
        return;
    }
    let mut scenes = [1, 1_000].map(|queues| (queues, Scene::new(queues, payload), Vec::new()));
    for _ in 0..ROUNDS {
        for (_, scene, found) in &mut scenes {
            found.push(scene.run(messages));
        }
    }
    for (queues, _, found) in &mut scenes {
        found.sort_by(f64::total_cmp);
        let (best, median) = (found[0], found[ROUNDS / 2]);
        println!("{queues:5} queues: best {best:6.0} ns, median {median:6.0} ns a message");
    }
}
