//! Crashes, damage, full disks and faults against the journal: nothing confirmed is lost, nothing
//! settled comes back, and what is damaged is named.

#[path = "journal/disk.rs"]
mod disk;
#[path = "journal/toy.rs"]
mod toy;

use std::collections::BTreeSet;

use disk::{Disk, Image, Random};
use ringpost_engine::control::recovery::verify;
use ringpost_engine::data::journal::block::{BLOCK_HEADER_BYTES, BlockHeader, BlockSequence};
use ringpost_engine::data::journal::record::{Kind, RecordHead};
use ringpost_engine::data::journal::segment::SlotState;
use ringpost_engine::data::journal::volatile::{Volatile, is_volatile};
use ringpost_engine::data::journal::{
    Appended, Config, NoRoom, Note, RESERVE_SLOTS, RunHead, Urgency,
};
use ringpost_engine::effect::{Buffers, Effect, Effects};
use ringpost_engine::ids::{JournalId, SlotId};
use ringpost_engine::input::IoFault;
use ringpost_wire::checksum::{crc32c, crc32c_append};
use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};
use ringpost_wire::limits::FRAGMENT_BYTES_MAX;
use ringpost_wire::{FragmentHead, MessageParts};
use toy::{Crashed, Habits, Key, Marks, State, Toy, matches, recover};

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
        habits.config.writes_in_flight = 1 + random.below(4) as u32;
        habits.ack_percent = random.below(101);
        habits.queues = 1 + random.below(8) as u32;
        let marks = crash_run(habits, seed, 6);
        total.published += marks.published;
        total.shared += marks.shared;
        total.joined += marks.joined;
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
        total.shared,
        total.joined,
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

/// Whether what was written first is there no more.
fn is_recycled(image: &Image) -> bool {
    let slots = image.slots.values();
    let mut first = slots.filter_map(|slot| BlockHeader::decode(slot.get(..4096)?));
    first.all(|header| header.segment_number.0 > 1)
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
    // Where no slot was used twice, the blocks alone say everything.
    let mut samples = (12..).map(sample);
    let (habits, image, expected) = samples
        .find(|(_, image, _)| is_recycled(image))
        .expect("one of them");
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

/// Fails the n-th operation, whatever it is, and looks at what follows.
#[test]
fn every_operation_may_fail() {
    let faults = [
        IoFault::Error(5),
        IoFault::Short { done: 512 },
        IoFault::NoSpace,
    ];
    let mut fail_stops = 0;
    for n in 1..700 {
        let mut toy = Toy::new(Habits::small(), 77);
        toy.disk.fault = Some((n, faults[n as usize % 3]));
        let mut failed_at = None;
        for _ in 0..1_500 {
            toy.random_step();
            if toy.failed {
                let durable = *failed_at.get_or_insert(toy.journal.durable_block());
                assert_eq!(
                    toy.journal.durable_block(),
                    durable,
                    "nothing is confirmed again"
                );
                assert!(toy.disk.fail_stop.is_some(), "and it says why");
                assert_eq!(toy.publish(), Err(NoRoom::Closed));
            }
        }
        fail_stops += u64::from(toy.failed);
        // What was confirmed is there after a restart, also if a read failed before.
        toy.disk.fault = None;
        toy.crash().reopen();
    }
    println!("{fail_stops} of 699 were final");
    assert!(fail_stops > 150, "{fail_stops}");
}

/// A read that fails while recovering is damage or is read another way; never a silent loss.
#[test]
fn every_read_of_recovery_may_fail() {
    let (habits, image, expected) = sample(13);
    for n in 1..200 {
        let mut disk = Disk::of(image.clone());
        disk.fault = Some((n, IoFault::Error(5)));
        match toy::recover_from(&habits, disk) {
            Err(_) => {}
            Ok((_, book, disk, _, report, _)) => {
                let is_reported = !report.damages.is_empty() || !report.findings.is_empty();
                let was_hit = disk.op_count >= n;
                assert!(is_reported || matches(&expected, &book), "read {n}");
                assert!(!was_hit || report.read_error_count > 0);
                assert!(
                    !was_hit || !report.findings.is_empty(),
                    "read {n} is not told"
                );
            }
        }
    }
}

/// Fills the disk to the last slot, then acks everything: publishes resume, with no operator, and
/// also if the file system itself is full (rulings 17).
#[test]
fn a_full_disk_drains_by_acks_alone() {
    let slots_bytes = 14 * (64 << 10);
    let full = [0, 100, 600, 1_200, 3_000, 9_000].map(|more| Some(slots_bytes + more));
    for bytes_max in full.into_iter().chain([None]) {
        let mut habits = Habits::small();
        habits.config.slots_max = 14;
        habits.queues = 3;
        let mut toy = Toy::new(habits, 5);
        toy.disk.bytes_max = bytes_max;
        toy.settle_down();
        for round in 0..3 {
            let mut refusals = 0;
            while refusals < 50 {
                match toy.publish() {
                    Ok(()) => {}
                    Err(NoRoom::Disk) => {
                        refusals += 1;
                        toy.settle_down();
                    }
                    Err(NoRoom::Buffers | NoRoom::Slot | NoRoom::Closed) => {}
                }
                toy.turn_end();
                toy.complete_one();
            }
            toy.settle_down();
            assert!(toy.journal.is_publish_refused(), "round {round}");
            assert!(toy.publish().is_err(), "round {round}");
            let live = toy.book.live.len();
            assert!(live > 100, "the disk was full of messages");
            // A crash while full is like any other.
            if round == 1 {
                toy = toy.crash().reopen();
                toy.disk.bytes_max = bytes_max;
                toy.settle_down();
            }
            while !toy.book.live.is_empty() {
                toy.ack(40)
                    .expect("acks have room when publishes have none");
                toy.settle_down();
            }
            toy.settle_down();
            assert!(!toy.journal.is_publish_refused(), "round {round}");
            toy.publish().expect("publishes resume");
            toy.settle_down();
        }
        toy.crash().reopen();
    }
}

/// A journal that writes no checkpoint and takes no publish any more.
fn full() -> Toy {
    let mut habits = Habits::small();
    habits.config.slots_max = 14;
    let mut toy = Toy::new(habits, 5);
    toy.checkpoints_on = false;
    toy.settle_down();
    // Full blocks, so that nothing is worth moving.
    while !toy.journal.is_publish_refused() {
        let _no_room_is_fine = toy.publish();
        if toy.random.chance(20) {
            toy.turn_end();
            while toy.complete_one() {}
        }
    }
    toy.settle_down();
    toy
}

/// Its slots in that state.
fn count(toy: &Toy, state: SlotState) -> usize {
    let segments = toy.journal.segments();
    segments.filter(|(_, s)| s.state == state).count()
}

/// What acks took of the reserve is not for publishes, also after a restart: else every restart of a
/// full broker would leave acks less.
#[test]
fn a_restart_gives_publishes_nothing_of_the_reserve() {
    let mut toy = full();
    let free = |toy: &Toy| count(toy, SlotState::Free);
    while free(&toy) >= RESERVE_SLOTS {
        toy.ack(1).expect("acks have the reserve");
        toy.settle_down();
    }
    let mut short = 0;
    for restart in 0..4 {
        toy = toy.crash().reopen();
        toy.checkpoints_on = false;
        while !toy.journal.is_ready() {
            toy.turn_end();
            toy.complete_one();
        }
        // A checkpoint while it opened may have given slots back: then there is no reserve to guard.
        if free(&toy) < RESERVE_SLOTS {
            short += 1;
            assert_eq!(toy.publish(), Err(NoRoom::Disk), "restart {restart}");
        }
        toy.ack(1).expect("acks have the reserve");
        while toy.complete_one() {}
    }
    assert!(short > 0, "the case that this is about");
}

/// On a full disk dead letters take one slot of the reserve and leave one to moves: what they free lies
/// here and there, and only what is packed makes a slot of it.
#[test]
fn dead_letters_leave_a_slot_to_moves() {
    let mut toy = full();
    let living: Vec<Key> = toy.book.live.keys().copied().collect();
    while toy.publish_dead(1).is_ok() {
        toy.settle_down();
    }
    for queue in 1..=toy.habits.queues {
        let of_queue = living.iter().filter(|key| key.0 == queue);
        let done: Vec<Key> = of_queue.filter(|key| key.1 % 5 < 3).copied().collect();
        toy.ack_keys(queue, &done).expect("acks have room");
    }
    toy.checkpoints_on = true;
    toy.settle_down();
    toy.publish_dead(1).expect("packing has made room");
    assert!(toy.marks.moved > 0);
}

/// While no checkpoint can be written acks take the last free slot, block by block. A start then has one
/// more, or it could not write the checkpoint either that frees others.
#[test]
fn a_start_that_finds_no_free_slot_opens() {
    let mut toy = full();
    while toy.ack(1).is_ok() {
        toy.settle_down();
    }
    assert_eq!(count(&toy, SlotState::Free), 0, "acks have the reserve");
    for restart in 0..3 {
        toy = toy.crash().reopen();
        toy.checkpoints_on = false;
        for _ in 0..1_000 {
            if !toy.journal.is_ready() {
                toy.turn_end();
                toy.complete_one();
            }
        }
        assert!(toy.journal.is_ready(), "restart {restart}");
    }
    let all = toy.journal.segments().count();
    assert!((15..28).contains(&all), "{all} slots");
    toy.checkpoints_on = true;
    while !toy.book.live.is_empty() {
        toy.ack(40).expect("acks have room");
        toy.settle_down();
    }
    toy.publish().expect("publishes resume");
}

/// Whichever of the two checkpoints rots, and whenever, the other is enough: also when the newest was
/// read by a start, and slots that only the older one needs seemed free to it.
#[test]
fn the_older_checkpoint_is_enough() {
    let generation =
        |content: &[u8]| u64::from_le_bytes(content[24..32].try_into().expect("eight"));
    let mut rotten_count = 0;
    for seed in seeds(60) {
        let mut habits = Habits::small();
        habits.config.slots_max = 64;
        habits.ack_percent = 98;
        let mut toy = Toy::new(habits, seed);
        let mut rotten = Vec::new();
        for _ in 0..12 {
            for _ in 0..200 + toy.random.below(2_000) {
                toy.random_step();
            }
            let mut crashed = toy.crash();
            let both = crashed.image.checkpoints.values_mut();
            let mut good: Vec<_> = both.filter(|content| **content != rotten).collect();
            good.sort_by_key(|content| generation(content));
            if let [_, newest] = &mut good[..]
                && crashed.random.chance(2)
            {
                let at = crashed.random.below(newest.len() as u64) as usize;
                newest[at] ^= 0x10;
                rotten.clone_from(newest);
                rotten_count += 1;
            }
            toy = crashed.reopen();
            toy.checkpoints_on = toy.random.chance(2);
        }
    }
    assert!(
        rotten_count > 100,
        "{rotten_count} rotten checkpoints are few"
    );
}

/// One live message left in each of many segments: the journal shrinks to what is live.
#[test]
fn sparse_segments_shrink() {
    let mut habits = Habits::small();
    habits.config.slots_max = 240;
    habits.queues = 1;
    let mut toy = Toy::new(habits, 9);
    toy.checkpoints_on = false;
    toy.settle_down();
    let sealed = |toy: &Toy| {
        let segments = toy.journal.segments();
        segments
            .filter(|(_, s)| s.state == SlotState::Sealed)
            .count()
    };
    let mut kept = Vec::new();
    while sealed(&toy) < 200 {
        let before = sealed(&toy);
        while sealed(&toy) == before {
            let _no_room_is_fine = toy.publish();
            toy.turn_end();
            while toy.complete_one() {}
        }
        toy.settle_down();
        kept.push(*toy.book.live.last_key_value().expect("just published").0);
        let keys: Vec<_> = toy.book.live.keys().copied().collect();
        let acked: Vec<_> = keys.into_iter().filter(|key| !kept.contains(key)).collect();
        for some in acked.chunks(200) {
            toy.ack_keys(1, some).expect("room");
        }
        toy.settle_down();
    }
    toy.checkpoints_on = true;
    toy.settle_down();
    assert!(toy.marks.moved >= 190, "{:?}", toy.marks);
    // What is left: the slots that are kept ready, the open one, and what the messages take.
    assert_packed(&toy);
    let files = toy.disk.image.slots.len();
    assert_eq!(files, SPARES + 1 + sealed(&toy));
    toy.crash().reopen();
}

/// What is live, beside what is being written, takes at most 1.5 times its size.
#[track_caller]
fn assert_packed(toy: &Toy) {
    let segment_bytes = u64::from(toy.habits.config.segment_bytes);
    let live_bytes: u64 = toy.journal.segments().map(|(_, s)| s.live_bytes()).sum();
    let holding = toy.journal.segments();
    let holding = holding.filter(|(_, s)| s.state == SlotState::Sealed && s.live_count > 0);
    let held = holding.count() as u64 * segment_bytes;
    assert!(
        held <= (live_bytes * 3 / 2).next_multiple_of(segment_bytes),
        "{held} for {live_bytes}"
    );
}

/// Slots that hold a segment.
fn used(toy: &Toy) -> usize {
    let segments = toy.journal.segments();
    segments
        .filter(|(_, s)| matches!(s.state, SlotState::Open | SlotState::Sealed))
        .count()
}

/// Free slots that [`Habits::small`] keeps ready.
const SPARES: usize = RESERVE_SLOTS + 2;

/// One small message a block: most of a segment is padding. Packing takes it out, once, and then
/// leaves the messages where they are (rulings 18).
#[test]
fn trickle_segments_are_packed_once() {
    let mut habits = Habits::small();
    habits.config.segment_bytes = 256 << 10;
    habits.payload_bytes_max = 100;
    let mut toy = Toy::new(habits, 10);
    toy.settle_down();
    while used(&toy) < 12 {
        toy.publish().expect("room");
        toy.turn_end();
        while toy.complete_one() {}
        toy.turn_end();
    }
    toy.settle_down();
    assert_packed(&toy);
    let published = toy.marks.published;
    assert!(toy.marks.moved <= published, "{:?}", toy.marks);

    // Half of them go: packed again, and each message that stays moves at most once more.
    let keys: Vec<_> = toy.book.live.keys().copied().collect();
    for queue in 1..=habits.queues {
        let keys = keys.iter().filter(|key| key.0 == queue && key.1 % 2 == 0);
        let keys: Vec<_> = keys.copied().collect();
        toy.ack_keys(queue, &keys).expect("room");
        toy.settle_down();
    }
    assert_packed(&toy);
    assert!(toy.marks.moved <= 2 * published, "{:?}", toy.marks);
    toy.crash().reopen();
}

/// Slots that a burst needed go back to the file system when nothing needs them any more; those that
/// traffic goes through stay.
#[test]
fn what_a_burst_took_is_given_back() {
    let mut habits = Habits::small();
    habits.config.slots_max = 60;
    let mut toy = Toy::new(habits, 12);
    toy.settle_down();
    let burst = |toy: &mut Toy| {
        while used(toy) < 40 {
            toy.publish().expect("room");
            toy.turn_end();
            while toy.complete_one() {}
        }
        while !toy.book.live.is_empty() {
            toy.ack(200).expect("room");
            toy.turn_end();
            while toy.complete_one() {}
        }
    };
    burst(&mut toy);
    assert!(toy.disk.image.slots.len() > 30);
    toy.settle_down();
    assert_eq!(toy.disk.image.slots.len(), SPARES + 1);
    // Traffic that needs as many again and again, with less than the time between: none goes back.
    let created = toy.disk.created_count;
    burst(&mut toy);
    let again = toy.disk.created_count - created;
    for _ in 0..5 {
        toy.now = toy.now.plus_ms(habits.config.spare_after_ms / 2);
        burst(&mut toy);
    }
    assert!(toy.disk.created_count - created <= again + 10);
    toy.settle_down();
    assert_eq!(toy.disk.image.slots.len(), SPARES + 1);
    toy.crash().reopen();
}

/// Large messages: pieces in order, between others, over a crash, and moved.
#[test]
fn fragments_are_whole_or_dropped() {
    let mut habits = Habits::small();
    habits.config = Config::new(JournalId(1), 7);
    habits.config.segment_bytes = 2 << 20;
    habits.config.slots_max = 16;
    habits.config.partitions = 4;
    habits.buffers = 40;
    let mut message = Vec::new();
    let payload = vec![3; 3 * FRAGMENT_BYTES_MAX];
    let parts = MessageParts {
        payload: &payload,
        ..MessageParts::default()
    };
    parts.write(&mut message).expect("within limits");
    let bytes = parts.length() as u32;
    for seed in 0..40 {
        let mut toy = Toy::new(habits, seed);
        toy.settle_down();
        let mut whole = Vec::new();
        for sequence in 1..=5u64 {
            let mut offset = 0;
            let mut last = None;
            while offset < bytes {
                let head = FragmentHead {
                    message_bytes: bytes,
                    offset,
                };
                let mut body = head.encode().to_vec();
                let end = offset as usize + head.piece_bytes();
                body.extend_from_slice(&message[offset as usize..end]);
                let run = RunHead::of_queue(PartitionId(1), QueueId(90), QueueSequence(sequence));
                let journal = &mut toy.journal;
                match journal.append_fragment(&mut toy.pool, &mut toy.effects, &run, &body) {
                    Ok(place) => {
                        toy.book
                            .pieces
                            .entry((90, sequence))
                            .or_default()
                            .insert(offset / FRAGMENT_BYTES_MAX as u32, place);
                        offset = end as u32;
                        last = Some(toy.journal.open_block());
                    }
                    Err(NoRoom::Buffers) => {}
                    Err(other) => panic!("{other:?}"),
                }
                toy.turn_end();
                if toy.random.chance(2) {
                    let _no_room_is_fine = toy.publish();
                }
                toy.complete_one();
                if seed % 2 == 0 && sequence == 3 && toy.random.chance(3) {
                    toy.checkpoint();
                }
                if seed % 4 == 0 && sequence == 5 && offset > 0 {
                    break;
                }
            }
            if offset >= bytes {
                whole.push((last.expect("appended"), sequence));
            }
        }
        let crashed = toy.crash();
        let durable = crashed.durable;
        let toy = crashed.reopen();
        for (block, sequence) in whole {
            let pieces = toy.book.pieces.get(&(90, sequence));
            if block <= durable {
                assert_eq!(pieces.map(|p| p.len()), Some(4), "seed {seed}: {sequence}");
            }
        }
        for pieces in toy.book.pieces.values() {
            assert_eq!(
                pieces.len(),
                4,
                "seed {seed}: no incomplete message is left"
            );
        }
    }
}

/// The journal never runs without its effects being done; a pool too small refuses, and recovers.
#[test]
fn a_small_pool_refuses_and_goes_on() {
    let mut habits = Habits::small();
    habits.buffers = 7;
    let mut toy = Toy::new(habits, 21);
    for _ in 0..30_000 {
        toy.random_step();
    }
    assert!(toy.marks.refused_buffers > 0, "{:?}", toy.marks);
    assert!(toy.marks.published > 2_000, "{:?}", toy.marks);
    toy.crash().reopen();
}

/// A watermark is written once after the journal has gone quiet, and nothing else is.
#[test]
fn an_idle_journal_writes_one_watermark() {
    let mut toy = Toy::new(Habits::small(), 3);
    toy.settle_down();
    toy.publish().expect("room");
    toy.settle_down();
    let written = toy.disk.written_bytes;
    toy.settle_down();
    assert_eq!(toy.disk.written_bytes, written);
    assert_eq!(toy.journal.next_deadline(), None);
    let mut effects = Effects::default();
    toy.journal.flush(&mut toy.pool, &mut effects);
    assert!(effects.list.is_empty());
    assert!(toy.journal.is_quiet());
}

/// Flips a bit in a block: of its header at 20, of its first record's head at 150, of its first
/// message at 300.
fn damage(image: &mut Image, sequence: BlockSequence, at: usize) {
    for slot in image.slots.values_mut() {
        for from in (0..slot.len()).step_by(4096) {
            let header = BlockHeader::decode(&slot[from..]);
            if header.is_some_and(|header| header.sequence == sequence) {
                slot[from + at] ^= 1;
                return;
            }
        }
    }
    panic!("no block {sequence:?}");
}

/// One block per queue and partition, a long message in each; and the blocks.
fn one_block_each(is_checkpointed: bool) -> (Toy, Vec<BlockSequence>) {
    let mut toy = Toy::new(Habits::small(), 4);
    toy.checkpoints_on = false;
    toy.habits.payload_bytes_max = 1;
    toy.settle_down();
    let mut blocks = Vec::new();
    for queue in 0..4 {
        toy.publish_to(queue).expect("room");
        blocks.push(toy.journal.open_block());
        toy.turn_end();
        while toy.complete_one() {}
        toy.turn_end();
    }
    if is_checkpointed {
        toy.checkpoint();
    }
    toy.shut_down();
    (toy, blocks)
}

/// A damaged block in the tail: the partitions that lost records in it refuse, the others do not;
/// it is reported at every start until the loss is accepted, and never again (rulings 10).
#[test]
fn damage_is_bounded_to_the_partition_and_stays_until_accepted() {
    for at in [20, 130, 150, 200] {
        let (toy, blocks) = one_block_each(false);
        let habits = toy.habits;
        let mut image = toy.disk.image;
        damage(&mut image, blocks[2], at);
        let mut toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
        let damages = toy.journal.damages().to_vec();
        assert_eq!(damages.len(), 1, "{at}: {damages:?}");
        let damage = damages[0];
        assert_eq!(damage.partition, PartitionId(2), "{at}");
        assert_eq!((damage.first, damage.upto), (1, 2), "{at}");
        let served: Vec<u32> = toy.book.next.keys().copied().collect();
        let is_message = at == 200 || served.len() == 4;
        assert!(is_message || served == [0, 1, 3], "{at}: {served:?}");

        // It stays, over a restart, and behind a checkpoint.
        for _ in 0..3 {
            toy.settle_down();
            toy.publish_to(1).expect("other partitions go on");
            toy.shut_down();
            toy.checkpoint();
            toy.shut_down();
            let image = toy.disk.image;
            toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
            assert_eq!(toy.journal.damages(), damages);
        }
        toy.settle_down();
        let lost = damage.first..damage.upto;
        toy.journal
            .accept_loss(&mut toy.pool, &mut toy.effects, damage.partition, lost)
            .expect("room");
        toy.shut_down();
        assert_eq!(toy.journal.damages(), []);
        let image = toy.disk.image;
        assert!(is_clean(habits, &image), "{at}");
        let toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
        assert_eq!(toy.journal.damages(), [], "{at}");
    }
}

/// A segment with a hole has no index of its own to be believed: its blocks are read at the first
/// start, and never again.
#[test]
fn a_hole_is_scanned_once() {
    let mut habits = Habits::small();
    habits.config.segment_bytes = 1 << 20;
    let mut toy = Toy::new(habits, 4);
    toy.checkpoints_on = false;
    toy.settle_down();
    let mut blocks = Vec::new();
    for round in 0..120 {
        toy.publish_to(round % 4).expect("room");
        blocks.push(toy.journal.open_block());
        toy.turn_end();
        while toy.complete_one() {}
    }
    toy.shut_down();
    for bad in [
        vec![blocks[60]],
        vec![blocks[30], blocks[31]],
        vec![blocks[0], blocks[90]],
    ] {
        for at in [20, 150, 200] {
            let mut image = toy.disk.image.clone();
            for block in &bad {
                damage(&mut image, *block, at);
            }
            let mut again = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
            let damages = again.journal.damages().to_vec();
            assert!(!damages.is_empty());
            assert!(again.report.read_bytes > 400 << 10, "the tail is read");
            let book = again.book.clone();
            for _ in 0..2 {
                again.settle_down();
                again.checkpoint();
                again.shut_down();
                let image = again.disk.image;
                again = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
                assert_eq!(
                    again.book.live, book.live,
                    "{bad:?} {at}: every place is known"
                );
                assert_eq!(again.journal.damages(), damages);
                // The rest of the open segment is always looked through.
                let read = again.report.read_bytes;
                let limit = u64::from(habits.config.segment_bytes) + (64 << 10);
                assert!(read <= limit, "{bad:?} {at}: {read} bytes read");
                assert_eq!(again.report.findings, [] as [String; 0]);
            }
        }
    }
}

/// Publishes; waits for the disk if no buffer is free.
fn publish_surely(toy: &mut Toy) {
    if toy.publish_to(1) == Err(NoRoom::Buffers) {
        toy.settle_down();
        toy.publish_to(1).expect("room");
    }
}

/// What a start reads depends on what is live and on the tail, not on what went through the journal:
/// sixteen times the history, the same bound.
#[test]
fn a_start_reads_what_is_live_not_what_was() {
    let mut habits = Habits::small();
    habits.config.segment_bytes = 256 << 10;
    habits.queues = 1;
    for segments in [20, 320] {
        let mut toy = Toy::new(habits, 8);
        toy.settle_down();
        let mut kept = Vec::new();
        let mut written = 0;
        while written < segments * u64::from(habits.config.segment_bytes) {
            // One message in a while stays, spread over all of history.
            if kept.len() as u64 * segments < 100 * written / u64::from(habits.config.segment_bytes)
            {
                publish_surely(&mut toy);
                kept.push(*toy.book.live.last_key_value().expect("just published").0);
            }
            for _ in 0..40 {
                publish_surely(&mut toy);
            }
            toy.settle_down();
            let gone = toy.book.live.keys().copied();
            let gone: Vec<_> = gone.filter(|key| !kept.contains(key)).collect();
            toy.ack_keys(1, &gone).expect("room");
            toy.settle_down();
            written = toy.disk.written_bytes;
        }
        let expected = toy.state_upto(toy.journal.durable_block());
        for is_clean_end in [false, true] {
            let image = if is_clean_end {
                toy.shut_down();
                toy.disk.image.clone()
            } else {
                toy.disk.image.clone()
            };
            let again = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
            assert!(matches(&expected, &again.book));
            // Index parts of the few segments that hold it, and what was written since the last
            // checkpoint, twice: at most a segment, but for a few blocks.
            let read = again.report.read_bytes;
            println!("{segments} segments of history: {read} bytes read");
            assert!(
                read <= 3 * u64::from(habits.config.segment_bytes),
                "{segments}: {read}"
            );
        }
    }
}

/// Two blocks in a row are gone: their watermark says which partitions lost what.
#[test]
fn a_watermark_bounds_a_larger_hole() {
    let (toy, blocks) = one_block_each(false);
    let habits = toy.habits;
    let mut image = toy.disk.image;
    damage(&mut image, blocks[1], 20);
    damage(&mut image, blocks[2], 20);
    let toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
    let mut named: Vec<u16> = toy
        .journal
        .damages()
        .iter()
        .map(|d| d.partition.0)
        .collect();
    named.sort_unstable();
    assert_eq!(named, [1, 2]);
}

/// Two blocks in a row are gone and nothing says what they held: every partition of which nothing
/// is found behind them is in doubt, without an end, until that is accepted.
#[test]
fn a_hole_that_nobody_bounds_is_doubt() {
    let mut toy = Toy::new(Habits::small(), 4);
    toy.checkpoints_on = false;
    toy.settle_down();
    let mut blocks = Vec::new();
    for queue in [0, 1, 2, 3, 0, 0] {
        toy.publish_to(queue).expect("room");
        blocks.push(toy.journal.open_block());
        toy.turn_end();
        while toy.complete_one() {}
    }
    let habits = toy.habits;
    let mut image = toy.disk.image;
    damage(&mut image, blocks[1], 20);
    damage(&mut image, blocks[2], 20);
    let mut toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
    for _ in 0..3 {
        let mut doubts: Vec<(u16, u64)> = toy
            .journal
            .damages()
            .iter()
            .map(|damage| (damage.partition.0, damage.upto))
            .collect();
        doubts.sort_unstable();
        assert_eq!(
            doubts,
            [1, 2, u16::MAX - 1, u16::MAX].map(|partition| (partition, u64::MAX))
        );
        toy.settle_down();
        toy.publish_to(3).expect("others go on");
        toy.shut_down();
        let image = toy.disk.image;
        toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
    }
    toy.settle_down();
    for damage in toy.journal.damages().to_vec() {
        let lost = damage.first..damage.upto;
        toy.journal
            .accept_loss(&mut toy.pool, &mut toy.effects, damage.partition, lost)
            .expect("room");
    }
    toy.publish_to(1).expect("the partition goes on");
    toy.shut_down();
    let image = toy.disk.image;
    let toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
    assert_eq!(toy.journal.damages(), []);
}

/// Cold messages: a flipped bit is found when the message is read, and never delivered.
#[test]
fn a_cold_message_that_is_damaged_is_refused() {
    let (toy, blocks) = one_block_each(true);
    let habits = toy.habits;
    let expected = toy.state_upto(toy.journal.durable_block());
    for at in [20, 130, 150, 200] {
        let mut image = toy.disk.image.clone();
        damage(&mut image, blocks[3], at);
        assert!(!is_clean(habits, &image), "{at}: the checker sees it");
        let mut toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
        let read = toy.check_contents(&expected);
        // The header of a block is not needed to read a record in it.
        assert_eq!(read.is_ok(), at == 20, "{at}: {read:?}");
    }
}

/// A journal with records of up to so many payload bytes, all sealed and cold when it is opened again.
fn cold_journal(mut habits: Habits, publishes: u32, at_rest_one_in: u64) -> (Habits, Image, State) {
    habits.config.pack_after_ms = 3_600_000;
    let mut toy = Toy::new(habits, 7);
    toy.checkpoints_on = false;
    toy.settle_down();
    for _ in 0..publishes {
        if toy.publish().is_err() || toy.random.chance(at_rest_one_in) {
            toy.settle_down();
        }
    }
    toy.settle_down();
    toy.checkpoint();
    toy.shut_down();
    let expected = toy.state_upto(toy.journal.durable_block());
    (habits, toy.disk.image, expected)
}

/// The slot of a message's record, and the blocks of 4 KiB that it touches.
fn blocks_of(toy: &Toy, key: Key) -> (SlotId, std::ops::Range<u32>) {
    let place = toy.book.live[&key].expect("it has a place");
    let segment = toy.journal.segments().nth(place.segment.0 as usize);
    let slot = segment.expect("it is there").1.slot;
    let bytes = &toy.disk.image.slots[&slot][place.offset as usize..];
    let head = RecordHead::decode(bytes).expect("it is whole");
    let end = (place.offset + head.length).next_multiple_of(4096);
    (slot, place.offset / 4096 * 4096..end)
}

/// A message is refused if the disk cannot read a block that its record touches, and read if it can,
/// wherever the records lie and however many blocks they take.
#[test]
fn reads_of_a_block_that_cannot_be_read_come_to_an_end() {
    let (mut refused, mut whole) = (0, 0);
    // Short records, so that the heads of some lie across two blocks, and such of several blocks.
    for (payload_bytes_max, publishes, buffer_bytes) in
        [(60, 1_000, 16 << 10), (3_000, 60, 64 << 10)]
    {
        let mut habits = Habits::small();
        habits.payload_bytes_max = payload_bytes_max;
        habits.config.buffer_bytes = buffer_bytes;
        habits.config.segment_bytes = 256 << 10;
        let (habits, image, expected) = cold_journal(habits, publishes, 40);
        for (slot, bytes) in &image.slots {
            for block in (0..bytes.len() as u32).step_by(4096) {
                if bytes[block as usize..][..4096]
                    .iter()
                    .all(|byte| *byte == 0)
                {
                    continue;
                }
                let image = image.clone();
                let mut toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
                toy.disk.unreadable.insert((*slot, block));
                let keys: Vec<_> = toy.book.live.keys().copied().collect();
                for key in keys {
                    let (there, blocks) = blocks_of(&toy, key);
                    let is_hit = there == *slot && blocks.contains(&block);
                    match toy.read(key) {
                        Ok(payload) => {
                            assert_eq!(payload, expected[&key.0].live[&key.1], "{key:?}");
                            assert!(!is_hit, "{key:?}");
                            whole += 1;
                        }
                        Err(why) => {
                            assert!(is_hit, "{why}, but not {block} of {slot:?}: {blocks:?}");
                            refused += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(
        refused > 1_000 && whole > refused,
        "{refused} refused, {whole} whole"
    );
}

/// Of a tail with a block of 4 KiB that the disk cannot read, what lies in other blocks of the journal is
/// found by recovery, and by the check of what a checkpoint covers.
#[test]
fn a_block_that_cannot_be_read_costs_its_own_records() {
    for is_checkpointed in [false, true] {
        let mut habits = Habits::small();
        habits.payload_bytes_max = 3_000;
        habits.config.buffer_bytes = 64 << 10;
        habits.config.segment_bytes = 512 << 10;
        let mut toy = Toy::new(habits, 9);
        toy.checkpoints_on = false;
        toy.settle_down();
        for _ in 0..60 {
            toy.publish().expect("room");
            if toy.random.chance(4) {
                toy.settle_down();
            }
        }
        toy.settle_down();
        if is_checkpointed {
            toy.checkpoint();
        }
        toy.shut_down();
        let image = toy.disk.image;
        let (slot, bytes) = image.slots.first_key_value().expect("one is open");
        let mut at = 0;
        let mut large = 0;
        while let Some(header) = BlockHeader::decode(&bytes[at as usize..]) {
            let end = at + header.bytes();
            // Behind the last blocks nothing says that they were synced.
            if BlockHeader::decode(&bytes[end as usize..]).is_none() {
                break;
            }
            // Without the first one and a checkpoint nothing is known.
            for bad in (at.max(4096)..end).step_by(4096) {
                let mut disk = Disk::of(image.clone());
                disk.unreadable.insert((*slot, bad));
                let is_lost = |offset: u32| (at..end).contains(&offset);
                if is_checkpointed {
                    let read = |slot: SlotId, position: u32, into: &mut [u8]| {
                        let upto = position + into.len() as u32;
                        let blocks = (slot, position)..(slot, upto);
                        if disk.unreadable.range(blocks).next().is_some() {
                            return Err(IoFault::Error(5));
                        }
                        into.copy_from_slice(&image.slots[&slot][position as usize..upto as usize]);
                        Ok(())
                    };
                    let (heads, checkpoints) = (image.heads(), image.checkpoints());
                    let found = verify(habits.config, &heads, &checkpoints, read).expect("opens");
                    let damages = found.report.damages;
                    assert!(
                        damages.iter().all(|damage| is_lost(damage.offset)),
                        "{damages:?}"
                    );
                } else {
                    let (_, book, ..) = toy::recover_from(&habits, disk).expect("opens");
                    let missing: Vec<_> = toy
                        .book
                        .live
                        .iter()
                        .filter(|(key, place)| {
                            !is_lost(place.expect("it has one").offset)
                                && book.live.get(key) != Some(place)
                        })
                        .collect();
                    assert!(missing.is_empty(), "{bad} of {at}..{end}: {missing:?}");
                }
            }
            large += u32::from(header.bytes() > 2 * 4096);
            at = end;
        }
        assert!(large > 5, "{large} large blocks");
    }
}

/// A record's length is what the disk says until the record is proved: whatever it says, the message is
/// refused and the others are read.
#[test]
fn a_length_that_has_rotted_is_no_length() {
    let mut habits = Habits::small();
    habits.payload_bytes_max = 300;
    habits.config.segment_bytes = 256 << 10;
    let (habits, image, expected) = cold_journal(habits, 120, 10);
    let toy = Toy::try_open(habits, Random(1), image.clone(), State::new()).expect("opens");
    let keys: Vec<_> = toy.book.live.keys().copied().collect();
    let places: Vec<_> = keys.iter().map(|key| toy.book.live[key]).collect();
    let slots: Vec<_> = toy
        .journal
        .segments()
        .map(|(_, segment)| segment.slot)
        .collect();
    for (key, rotten) in keys.iter().zip(&places) {
        let place = rotten.expect("it has a place");
        let mut image = image.clone();
        let slot = slots[place.segment.0 as usize];
        let bytes = image.slots.get_mut(&slot).expect("it is there");
        bytes[place.offset as usize + 4..][..4].fill(0xff);
        let mut toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
        // Once more when what lies around it is in memory.
        for _ in 0..2 {
            for (other, place) in keys.iter().zip(&places) {
                match toy.read(*other) {
                    Ok(payload) => {
                        assert_eq!(payload, expected[&other.0].live[&other.1]);
                        assert_ne!(place, rotten, "{key:?}");
                    }
                    Err(why) => assert_eq!(place, rotten, "{why}"),
                }
            }
        }
    }
}

/// However many blocks cannot be read, their messages are refused, each after a few reads and from then
/// on without any; the others are read.
#[test]
fn a_disk_that_can_hardly_be_read_is_not_read_for_ever() {
    const BLOCKS: usize = 4_200;
    let mut habits = Habits::small();
    habits.payload_bytes_max = 2_800;
    habits.config.segment_bytes = 1 << 20;
    habits.config.slots_max = 96;
    let (habits, image, expected) = cold_journal(habits, 8_500, 1);
    let mut toy = Toy::try_open(habits, Random(1), image, State::new()).expect("opens");
    let keys: Vec<_> = toy.book.live.keys().copied().collect();
    for key in &keys {
        let (slot, blocks) = blocks_of(&toy, *key);
        // One in eight can be read.
        if blocks.start / 4096 % 8 > 0 {
            toy.disk.unreadable.insert((slot, blocks.start));
        }
    }
    assert!(
        toy.disk.unreadable.len() > BLOCKS,
        "{}",
        toy.disk.unreadable.len()
    );
    for round in 0..2 {
        let mut whole = 0;
        for key in &keys {
            let (slot, blocks) = blocks_of(&toy, *key);
            let is_hit = |block| toy.disk.unreadable.contains(&(slot, block));
            let is_hit = blocks.step_by(4096).any(is_hit);
            let before = toy.disk.unread_count;
            match toy.read(*key) {
                Ok(payload) => {
                    assert_eq!(payload, expected[&key.0].live[&key.1], "{key:?}");
                    assert!(!is_hit, "{key:?}");
                    whole += 1;
                }
                Err(why) => {
                    assert!(is_hit, "{why}");
                    let reads = toy.disk.unread_count - before;
                    assert!(
                        reads <= [8, 0][round],
                        "{reads} reads in round {round}: {why}"
                    );
                }
            }
        }
        assert!(whole > 0, "some are read");
    }
}

/// Makes the last record of the journal, alone in its block, one of another kind, as a later version
/// would have written it.
fn change_kind(image: &mut Image, sequence: BlockSequence, kind: u8) {
    let slot = image.slots.values_mut();
    let block = slot.flat_map(|slot| slot.chunks_mut(4096));
    let found = block.filter_map(|block| Some((BlockHeader::decode(block)?, block)));
    let (mut header, block) = found
        .into_iter()
        .find(|(header, _)| header.sequence == sequence)
        .expect("it was written");
    let (head, body) = (
        BLOCK_HEADER_BYTES as usize,
        BLOCK_HEADER_BYTES as usize + 64,
    );
    block[head] = kind;
    block[head + 12..head + 16].fill(0);
    let crc = crc32c_append(
        crc32c(&block[body..header.used as usize]),
        &block[head..body],
    );
    block[head + 12..head + 16].copy_from_slice(&crc.to_le_bytes());
    header.content_crc = crc32c(&crc.to_le_bytes());
    let bytes = header.encode();
    block[..head].copy_from_slice(&bytes);
}

/// A record of a later version is neither damage nor a torn tail: the journal is refused, by name.
#[test]
fn a_kind_of_a_later_version_is_refused_by_name() {
    for (kind, named) in [
        (15, Some("kind 15 (HardState)")),
        (77, Some("kind 77")),
        (200, None),
    ] {
        for is_checkpointed in [false, true] {
            let mut toy = Toy::new(Habits::small(), 7);
            toy.checkpoints_on = false;
            toy.settle_down();
            toy.publish().expect("room");
            toy.settle_down();
            let note = Note {
                kind: Kind::Mark,
                head: RunHead::of_queue(PartitionId(1), QueueId(1), QueueSequence(1)),
                count: 0,
                urgency: Urgency::Now,
            };
            toy.journal
                .append_record(&mut toy.pool, &mut toy.effects, &note, &[5; 16])
                .expect("room");
            let block = toy.journal.open_block();
            toy.turn_end();
            while toy.complete_one() {}
            let expected = toy.state_upto(block);
            if is_checkpointed {
                // Behind a checkpoint nothing of it is read again but by the checker.
                toy.checkpoint();
                while toy.complete_one() {}
            }
            let habits = toy.habits;
            let mut image = toy.disk.image;
            change_kind(&mut image, block, kind);
            assert_eq!(is_clean(habits, &image), named.is_none());
            match Toy::try_open(habits, Random(1), image, State::new()) {
                Ok(toy) => {
                    assert!(named.is_none() || is_checkpointed);
                    assert!(matches(&expected, &toy.book));
                    assert_eq!(toy.journal.damages(), []);
                }
                Err(reason) => {
                    let named = named.expect("a kind that may be skipped");
                    assert!(reason.contains(named), "{reason}");
                    assert!(!is_checkpointed);
                }
            }
        }
    }
}

/// Every start, also after nothing happened, writes under a new incarnation.
#[test]
fn every_start_opens_a_new_incarnation() {
    let mut toy = Toy::new(Habits::small(), 6);
    for start in 1..=4 {
        toy.settle_down();
        toy.publish().expect("room");
        toy.shut_down();
        let newest = toy
            .disk
            .image
            .slots
            .values()
            .flat_map(|slot| slot.chunks(4096))
            .filter_map(BlockHeader::decode)
            .max_by_key(|header| header.sequence)
            .expect("blocks were written");
        assert_eq!(newest.incarnation, start);
        toy = toy.crash().reopen();
    }
}

/// Volatile runs: appended, merged, found, bounded, and gone when they are settled.
#[test]
fn volatile_runs_live_in_buffers_only() {
    let mut pool = disk::Pool::new(9, 16 << 10);
    let mut effects = Effects::default();
    let mut volatile = Volatile::new(3);
    let mut message = Vec::new();
    let parts = MessageParts {
        payload: &[9; 900],
        ..MessageParts::default()
    };
    parts.write(&mut message).expect("within limits");
    let run =
        |queue, first| RunHead::of_queue(PartitionId(0), QueueId(queue), QueueSequence(first));
    for round in 0..3u64 {
        let mut places = Vec::new();
        let mut count = 0u64;
        loop {
            let queue = 1 + (count / 3 % 2) as u32;
            let head = run(queue, 1 + round * 1_000 + count);
            let takes = volatile.takes(&pool, 1, message.len() as u32);
            match volatile.append_run(&mut pool, &mut effects, &head, 1, &message) {
                Ok(Appended::New(place)) => {
                    assert!(is_volatile(place));
                    places.push((place, head, 1));
                }
                Ok(Appended::Merged) => places.last_mut().expect("merged into").2 += 1,
                Err(NoRoom::Buffers) => {
                    assert!(!takes, "what it said it takes, it takes");
                    break;
                }
                Err(error) => panic!("{error:?}"),
            }
            count += 1;
            if count.is_multiple_of(5) {
                volatile.turn_end(&mut pool);
            }
        }
        assert_eq!(volatile.buffers_held(), 3);
        assert!(count >= 40, "the share is used: {count}");
        volatile.turn_end(&mut pool);
        for (place, head, units) in places {
            let (buffer, body, found) = volatile
                .locate(&pool, place, head.queue_sequence)
                .expect("the turn has ended");
            assert_eq!((found.queue, found.count), (head.queue, units));
            assert_eq!(pool.bytes(buffer, body), message.repeat(units as usize));
            volatile.drop_live(place, units, &mut effects);
        }
        for effect in effects.list.drain(..) {
            let Effect::Release { buffer } = effect else {
                panic!("volatile runs need nothing else: {effect:?}")
            };
            pool.release(buffer);
        }
        assert!(volatile.buffers_held() <= 1, "only the open one is kept");
    }
}

/// What is shared costs one copy, lives as long as the last queue needs it, and is a copy for each queue
/// when it is moved.
#[test]
fn a_body_lives_as_long_as_one_queue_needs_it() {
    let mut toy = Toy::new(Habits::small(), 5);
    toy.checkpoints_on = false;
    toy.settle_down();
    let before = toy.disk.image.slots.len();
    assert!(before > 0);
    while toy.marks.shared < 5 {
        publish_shared_surely(&mut toy);
    }
    toy.settle_down();
    let all: Vec<Key> = toy.book.live.keys().copied().collect();
    let segments: Vec<u64> = toy
        .journal
        .segments()
        .map(|(_, it)| it.live_count)
        .collect();
    assert_eq!(segments.iter().sum::<u64>(), all.len() as u64);
    // All queues but one are done with it.
    let (kept, done): (Vec<Key>, Vec<Key>) = all.iter().partition(|key| key.0 == 2);
    assert!(!kept.is_empty() && !done.is_empty());
    for queue in 1..=toy.habits.queues {
        let keys: Vec<Key> = done.iter().copied().filter(|key| key.0 == queue).collect();
        if !keys.is_empty() {
            toy.ack_keys(queue, &keys).expect("room");
        }
    }
    toy.settle_down();
    let live: u64 = toy.journal.segments().map(|(_, it)| it.live_count).sum();
    assert_eq!(live, kept.len() as u64);
    let state = toy.state_upto(toy.journal.durable_block());
    toy.check_contents(&state)
        .expect("the one that needs it reads it");
    let mut toy = toy.crash().reopen();
    let state = toy.state_upto(toy.journal.durable_block());
    assert_eq!(toy.book.live.len(), kept.len());
    toy.check_contents(&state).expect("after a crash, too");
}

fn publish_shared_surely(toy: &mut Toy) {
    while toy.publish_shared().is_err() {
        toy.turn_end();
        toy.complete_one();
    }
}

/// A body that is damaged is damage of every queue that has an entry for it, and of no other.
#[test]
fn a_damaged_body_is_damage_of_each_of_its_queues() {
    let mut toy = Toy::new(Habits::small(), 9);
    toy.checkpoints_on = false;
    toy.settle_down();
    for queue in 1..=5 {
        toy.publish_to(queue).expect("room");
        toy.turn_end();
        while toy.complete_one() {}
    }
    toy.publish_shared().expect("room");
    let block = toy.journal.open_block();
    let sharing: Vec<u32> = {
        let logged = toy.log.iter().filter(|(at, _)| *at == block);
        let queues = logged.map(|(_, op)| match op {
            toy::Op::Publish { queue, .. } | toy::Op::Ack { queue, .. } => *queue,
        });
        queues.collect()
    };
    assert!(sharing.len() > 1 && sharing.len() < 5, "{sharing:?}");
    toy.turn_end();
    while toy.complete_one() {}
    // Two more blocks, so that it is no torn end.
    for _ in 0..2 {
        toy.publish_to(1).expect("room");
        toy.turn_end();
        while toy.complete_one() {}
    }
    let (habits, mut image) = (toy.habits, toy.disk.image);
    // The head of the body: its own checksum does not fit any more.
    damage(&mut image, block, BLOCK_HEADER_BYTES as usize + 9);
    let (journal, book, ..) = recover(&habits, image).expect("the others are served");
    let damaged: BTreeSet<u16> = journal.damages().iter().map(|it| it.partition.0).collect();
    let wanted: BTreeSet<u16> = sharing
        .iter()
        .map(|queue| book.partitions[queue].0)
        .collect();
    assert_eq!(damaged, wanted);
    // All of it is lost, not one message.
    assert!(journal.damages().iter().all(|it| it.queue == QueueId(0)));
}
