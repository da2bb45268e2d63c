//! Crashes, damage, full disks and faults against the journal: nothing confirmed is lost, nothing
//! settled comes back, and what is damaged is named.

#[path = "journal/disk.rs"]
mod disk;
#[path = "journal/toy.rs"]
mod toy;

use disk::{Image, Random};
use ringpost_engine::control::recovery::verify;
use ringpost_engine::input::IoFault;
use toy::{Crashed, Habits, Marks, State, Toy, matches};

/// Runs with crashes from one seed.
fn crash_run(habits: Habits, seed: u64, lives: u32) -> Marks {
    let mut toy = Toy::new(habits, seed);
    for _ in 0..lives {
        // Every third life ends early: in recovery's own first writes, for one.
        let steps = match toy.random.below(3) {
            0 => 1 + toy.random.below(30),
            _ => 1 + toy.random.below(400),
        };
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

/// A small journal with a checkpoint, sealed segments, recycled slots and a tail, shut down well.
fn sample(seed: u64) -> (Habits, Image, State) {
    let mut habits = Habits::small();
    habits.buffers = 12;
    habits.config.slots_max = 8;
    habits.config.segment_bytes = 64 << 10;
    habits.queues = 3;
    habits.payload_bytes_max = 120;
    habits.ack_percent = 95;
    let mut toy = Toy::new(habits, seed);
    while toy.marks.checkpoints < 9 || toy.random.below(40) > 0 {
        toy.random_step();
    }
    for _ in 0..60 {
        toy.random_step();
    }
    toy.shut_down();
    let state = toy.state_upto(toy.journal.durable_block());
    (habits, toy.disk.image, state)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// It opened, with everything, and nothing was reported.
    Harmless,
    /// It opened with everything, and something was reported.
    Reported,
    /// It opened without everything, or refused, and said so.
    Refused,
    /// It opened without everything and said nothing.
    Silent,
}

fn look(habits: Habits, image: Image, expected: &State) -> Seen {
    let Ok(mut toy) = Toy::try_open(habits, Random(1), image, State::new()) else {
        return Seen::Refused;
    };
    let is_reported = !toy.report.damages.is_empty()
        || !toy.report.findings.is_empty()
        || toy.report.checkpoint_damaged
        || toy.report.padding_dirty_count > 0;
    if !matches(expected, &toy.book) {
        return if is_reported {
            Seen::Refused
        } else {
            Seen::Silent
        };
    }
    match toy.check_contents(expected) {
        Ok(()) if is_reported => Seen::Reported,
        Ok(()) => Seen::Harmless,
        Err(reason) if is_reported || reason.contains("damaged") => Seen::Refused,
        Err(_) => Seen::Silent,
    }
}

/// Whether the offline checker calls the image clean.
fn is_clean(habits: Habits, image: &Image) -> bool {
    let read = |slot, position: u32, into: &mut [u8]| {
        let bytes = image
            .slots
            .get(&slot)
            .and_then(|slot: &Vec<u8>| slot.get(position as usize..position as usize + into.len()));
        match bytes {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return Err(IoFault::Short { done: 0 }),
        }
        Ok(())
    };
    let heads = image.heads();
    let verified = verify(habits.config, &heads, &image.checkpoints(), read);
    verified.is_ok_and(|verified| verified.is_clean() && verified.report.padding_dirty_count == 0)
}

#[test]
fn every_flipped_byte_is_detected_or_harmless() {
    let (habits, image, expected) = sample(11);
    assert_eq!(look(habits, image.clone(), &expected), Seen::Harmless);
    assert!(is_clean(habits, &image));
    let mut counts = [0u64; 4];
    for (slot, bytes) in &image.slots {
        for at in 0..bytes.len() {
            // Zeros are padding or never written: some of them will do.
            if bytes[at] == 0 && at % 61 != 0 {
                continue;
            }
            let mut bad = image.clone();
            let flipped = bad.slots.get_mut(slot).expect("the same slots");
            flipped[at] ^= 1 << (at % 8);
            let clean = is_clean(habits, &bad);
            let seen = look(habits, bad, &expected);
            assert_ne!(seen, Seen::Silent, "slot {slot:?} byte {at}");
            if seen == Seen::Refused {
                assert!(!clean, "slot {slot:?} byte {at}: the checker says clean");
            }
            counts[seen as usize] += 1;
        }
    }
    println!("{counts:?} of harmless, reported, refused, silent");
    assert!(counts[Seen::Refused as usize] > 1_000);
    assert!(counts[Seen::Reported as usize] > 100);
}

#[test]
fn every_truncated_file_is_detected() {
    let (habits, image, expected) = sample(12);
    for (slot, bytes) in &image.slots {
        for length in (4096..bytes.len()).step_by(512) {
            let mut bad = image.clone();
            bad.slots
                .get_mut(slot)
                .expect("the same slots")
                .truncate(length);
            let clean = is_clean(habits, &bad);
            let seen = look(habits, bad, &expected);
            assert_ne!(seen, Seen::Silent, "slot {slot:?} cut to {length}");
            assert!(seen != Seen::Refused || !clean);
        }
        let mut bad = image.clone();
        bad.slots.remove(slot);
        let seen = look(habits, bad, &expected);
        println!("without slot {slot:?}: {seen:?}");
    }
    // One generation of the checkpoint may go; both may not.
    for generation in [0, 1] {
        for length in [0, 1, 7, 8, 100] {
            let mut bad = image.clone();
            let file = bad
                .checkpoints
                .get_mut(&generation)
                .expect("both are there");
            file.truncate(length);
            assert_eq!(look(habits, bad, &expected), Seen::Reported);
        }
        let mut bad = image.clone();
        bad.checkpoints.remove(&generation);
        assert_eq!(look(habits, bad, &expected), Seen::Harmless);
    }
    let mut bad = image.clone();
    bad.checkpoints.clear();
    assert_eq!(look(habits, bad, &expected), Seen::Refused);
}
