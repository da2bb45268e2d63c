//! Delayed messages: what one takes while it waits, and what publishing and releasing them costs while
//! millions wait. Does not know other features.

use std::time::Instant;

use ringpost_engine::data::queue::{Marking, Queue, Settings};
use ringpost_engine::ids::{Mono, Place, SegmentIdx};
use ringpost_wire::control::Durability;
use ringpost_wire::envelope::Terms;
use ringpost_wire::ids::QueueSequence;

use crate::count;
use crate::features::cases::{PLAIN, Scene};

/// Bytes that a delayed message may take.
const BYTES_GOAL: f64 = 48.0;
/// The least that the ratio has to be.
const RATIO_GOAL: f64 = 0.40;
/// Messages of a record.
const RUN: u32 = 256;
/// Padded bytes of one.
const BYTES: u32 = 176;
/// Within what time those that wait are due.
const HOUR_MS: u64 = 3_600_000;

/// A queue in which so many wait, each with a time of its own.
struct Waiting {
    queue: Queue,
    next: u64,
    now_ms: u64,
    random: u64,
}

impl Waiting {
    fn new() -> Self {
        Self {
            queue: Queue::new(Settings::plain(Durability::Volatile)),
            next: 1,
            now_ms: 1_000,
            random: 1,
        }
    }

    /// A record of messages, each delayed by `delay` ms.
    fn publish(&mut self, delay: impl Fn(u64) -> u64) {
        let first = QueueSequence(self.next);
        let place = Place {
            segment: SegmentIdx((self.next >> 20) as u32),
            offset: (self.next as u32 & 0xfff) << 12,
        };
        self.queue
            .push_run(first, RUN, RUN * BYTES, place, Marking::Plain);
        let now = Mono(self.now_ms * 1_000_000);
        for index in 0..u64::from(RUN) {
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let terms = Terms {
                delay_ms: delay(self.random >> 33) as u32,
                ..Terms::default()
            };
            self.queue.arrived(first.plus(index), 1, now, terms);
        }
        self.next += u64::from(RUN);
        self.queue.durable_through(QueueSequence(self.next - 1));
    }
}

/// Prints what delayed messages take and cost.
pub fn rows(pending: u64, messages: u64, rounds: usize) {
    let before = count::bytes();
    let mut waiting = Waiting::new();
    let start = Instant::now();
    while waiting.next <= pending {
        waiting.publish(|random| 1_000 + random % HOUR_MS);
    }
    let put_ns = start.elapsed().as_nanos() as f64 / pending as f64;
    let each = (count::bytes() - before) as f64 / (waiting.next - 1) as f64;
    let verdict = if each <= BYTES_GOAL { "" } else { "  missed" };
    println!(
        "{pending} delayed, each due at a time of its own: {each:.1} bytes each (goal {BYTES_GOAL:.0}){verdict}, \
         {put_ns:.0} ns to set one apart"
    );
    // With all those waiting, others are published with a short delay and released.
    let mut costs = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        let mut done = 0;
        while done < messages {
            waiting.publish(|random| 1 + random % 50);
            waiting.now_ms += 1;
            waiting.queue.set_now(Mono(waiting.now_ms * 1_000_000));
            done += waiting.queue.release_due(u64::from(4 * RUN));
        }
        costs.push(start.elapsed().as_nanos() as f64 / done as f64);
    }
    let own = crate::median(costs);
    let mut scene = Scene::of(&PLAIN, 100);
    scene.run(messages);
    let plain = crate::median((0..rounds).map(|_| scene.run(messages)).collect());
    let ratio = plain / (plain + own);
    let verdict = if ratio >= RATIO_GOAL { "" } else { "  missed" };
    println!(
        "to set one apart and release it among them: {own:.0} ns beside {plain:.0} of the plain path: \
         ratio {ratio:.2} (goal {RATIO_GOAL:.2}){verdict}"
    );
}
