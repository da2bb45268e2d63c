//! Cases of the ring between cores: batches through it in one thread, so that no cache line travels.
//! Does not know lanes or doorbells.

use std::hint::black_box;

use super::Case;

// The crate of the broker brings a runtime and a web server: its one file without them is enough.
#[path = "../../../src/broker/rt/ring.rs"]
#[allow(dead_code)]
mod ring;
#[path = "../../../src/broker/rt/sync.rs"]
mod sync;

/// As large as a message between cores.
type Entry = [u64; 8];

const ENTRIES: usize = 1_024;
/// Entries through the ring in a round.
const PASSED: u64 = 16_384;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("ring/batches-of-1", || pass(1)),
        Case::new("ring/batches-of-16", || pass(16)),
    ]
}

fn pass(batch: u64) -> impl FnMut() -> u64 {
    let (mut producer, mut consumer) = ring::ring::<Entry>(ENTRIES);
    move || {
        for first in (0..PASSED).step_by(batch as usize) {
            for number in first..first + batch {
                producer
                    .push(black_box([number; 8]))
                    .expect("there is room");
            }
            producer.publish();
            while let Some(entry) = consumer.pop() {
                black_box(entry);
            }
        }
        PASSED
    }
}
