//! Crashes, damage, full disks and faults against the journal: nothing confirmed is lost, nothing
//! settled comes back, and what is damaged is named.

#[path = "journal/disk.rs"]
mod disk;
#[path = "journal/toy.rs"]
mod toy;

use disk::Random;
use toy::{Crashed, Habits, Marks, Toy};

/// Runs with crashes from one seed.
fn crash_run(habits: Habits, seed: u64, lives: u32) -> Marks {
    let mut toy = Toy::new(habits, seed);
    for _ in 0..lives {
        let steps = 1 + toy.random.below(400);
        for _ in 0..steps {
            toy.random_step();
        }
        let crashed: Crashed = toy.crash();
        toy = crashed.reopen();
    }
    toy.marks
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    0..default
}

#[test]
fn crashes_lose_nothing_and_resurrect_nothing() {
    let mut total = Marks::default();
    for seed in seeds(1_000) {
        let mut habits = Habits::small();
        let mut random = Random(seed ^ 0xabcdef);
        habits.config.writes_in_flight = 1 + random.below(3) as u32;
        habits.ack_percent = random.below(101);
        habits.queues = 1 + random.below(8) as u32;
        let marks = crash_run(habits, seed, 6);
        total.published += marks.published;
        total.checkpoints += marks.checkpoints;
        total.moved += marks.moved;
        total.cold_reads += marks.cold_reads;
        total.refused_disk += marks.refused_disk;
        total.refused_buffers += marks.refused_buffers;
        total.cut_blocks += marks.cut_blocks;
        total.used_checkpoint += marks.used_checkpoint;
    }
    println!("{total:?}");
    // The seeds reach what they are for.
    for mark in [
        total.published,
        total.checkpoints,
        total.moved,
        total.cold_reads,
        total.cut_blocks,
        total.used_checkpoint,
    ] {
        assert!(mark >= 100, "{total:?}");
    }
}
