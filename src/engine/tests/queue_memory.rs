//! What a queue costs in memory, and that it does not allocate per message.
//! Does not know whether what it does is right; the model in the crate does.

#[path = "allocations/count.rs"]
mod allocations;

use ringpost_engine::data::queue::{
    AckMode, ConsumerKey, Credit, Marking, Outcome, Queue, Ranges, SequenceRange, Settings, Sharing,
};
use ringpost_engine::{Place, SegmentIdx};
use ringpost_wire::SettleRange;
use ringpost_wire::control::Durability;
use ringpost_wire::ids::QueueSequence;

const DURABLE: Settings = Settings::plain(Durability::Durable);

fn place(number: u64) -> Place {
    Place {
        segment: SegmentIdx((number / 1000) as u32),
        offset: (number % 1000) as u32 * 4096,
    }
}

#[test]
fn ten_million_runs_of_one_message_cost_at_most_32_bytes_each() {
    const MESSAGES: u64 = 10_000_000;
    let before = allocations::bytes();
    let mut queue = Queue::new(DURABLE);
    for sequence in 1..=MESSAGES {
        let place = place(sequence);
        queue.push_run(QueueSequence(sequence), 1, 128, place, Marking::Plain);
    }
    let kept = (allocations::bytes() - before) as u64;
    let peak = (allocations::bytes_max() - before) as u64;
    println!(
        "kept {:.2} B, peak {:.2} B per message",
        kept as f64 / MESSAGES as f64,
        peak as f64 / MESSAGES as f64
    );
    assert!(kept <= 26 * MESSAGES);
    assert!(peak <= 32 * MESSAGES);

    // Every second one is settled: the worst case of both the index and the settled ranges.
    queue.durable_through(QueueSequence(MESSAGES));
    let mut out = Ranges::new();
    queue.purge(&mut out);
    drop(out);
    for sequence in (1..=MESSAGES).step_by(2) {
        let one = SequenceRange::new(QueueSequence(sequence), QueueSequence(sequence));
        queue.forget(&[one], &mut |_, _| {});
    }
    let kept = (allocations::bytes() - before) as u64;
    let live = MESSAGES / 2;
    println!(
        "every second settled: {:.2} B per live one",
        kept as f64 / live as f64
    );
    assert!(kept <= 48 * live);
    queue.forget(
        &(2..=MESSAGES)
            .step_by(2)
            .map(|sequence| SequenceRange::new(QueueSequence(sequence), QueueSequence(sequence)))
            .collect::<Vec<_>>(),
        &mut |_, _| {},
    );
    assert_eq!(queue.footprint(), (0, 0));
    let kept = allocations::bytes() - before;
    println!("empty: {kept} B");
    assert!(kept < 1 << 20, "an emptied queue keeps little");
}

/// One round of everything that happens per message, for one queue.
fn round(queue: &mut Queue, scratch: &mut Scratch) {
    // Publish: runs of one and of many messages.
    for (count, run) in [(1, 0), (7, 1), (16, 2), (1, 3)] {
        let first = queue.next_sequence();
        let marking = if queue.wants_marked() {
            Marking::Marked
        } else {
            Marking::Plain
        };
        queue.push_run(first, count, count * 64, place(first.0 + run), marking);
        queue.extend_last(1, 64);
    }
    queue.durable_through(QueueSequence(queue.next_sequence().0 - 1));
    if let Some(mark) = queue.mark_needed() {
        queue.mark_durable(mark);
    }
    deliver(queue, scratch);
    // A part of it comes back, out of order, and is delivered again.
    for key in [1, 2] {
        let key = ConsumerKey(key);
        let tag = scratch.tags[key.0 as usize];
        for tag in [tag - 1, tag - 3] {
            let range = SettleRange {
                first: tag,
                last: tag,
            };
            queue
                .settle(key, range, Outcome::Requeue, &mut scratch.out)
                .expect("outstanding");
        }
    }
    scratch.counts.clear();
    let upto = queue.take_counts(&mut scratch.counts);
    queue.counts_durable(upto);
    deliver(queue, scratch);
    for key in [1, 2] {
        let key = ConsumerKey(key);
        let last = scratch.tags[key.0 as usize];
        for range in [
            SettleRange { first: last, last },
            SettleRange { first: 0, last },
        ] {
            // The second call finds the rest.
            let done = queue.settle(key, range, Outcome::Ack, &mut scratch.out);
            done.expect("outstanding");
        }
    }
    let mut lost = 0;
    queue.forget(scratch.out.as_slice(), &mut |_, count| lost += count);
    assert_eq!(lost, 29);
    scratch.out.clear();
}

struct Scratch {
    out: Ranges,
    counts: Vec<ringpost_engine::data::queue::CountRange>,
    tags: [u64; 3],
}

fn deliver(queue: &mut Queue, scratch: &mut Scratch) {
    const EACH: [u32; 64] = [64; 64];
    while let Some(offer) = queue.next_offer() {
        let count = offer.messages_max.min(64);
        let each = &EACH[..count as usize];
        // As the caller would find it: every message has 64 bytes.
        let tag = queue.take(&offer, offer.index * 64, each, &mut scratch.out);
        scratch.tags[offer.key.0 as usize] = tag.0 + u64::from(count) - 1;
    }
}

#[test]
fn steady_state_does_not_allocate() {
    let mut queues = Vec::new();
    for _ in 0..1_000 {
        let mut queue = Queue::new(DURABLE);
        for key in [1, 2] {
            let credit = Credit {
                messages: 100,
                bytes: 0,
            };
            queue
                .add_consumer(ConsumerKey(key), credit, AckMode::Explicit, Sharing::Shared)
                .expect("shared");
        }
        let scratch = Scratch {
            out: Ranges::new(),
            counts: Vec::new(),
            tags: [0; 3],
        };
        queues.push((queue, scratch));
    }
    let turn = |queues: &mut Vec<(Queue, Scratch)>| {
        for (queue, scratch) in queues {
            round(queue, scratch);
        }
    };
    for _ in 0..100 {
        turn(&mut queues);
    }
    println!("warm: {} B per queue", allocations::bytes() / 1_000);
    let (before, bytes) = (allocations::count(), allocations::bytes());
    for _ in 0..100 {
        turn(&mut queues);
    }
    assert_eq!(
        allocations::count() - before,
        0,
        "something allocates per message"
    );
    assert_eq!(allocations::bytes(), bytes);
}

#[test]
fn a_delivery_held_for_ever_does_not_keep_later_ones() {
    let mut queue = Queue::new(DURABLE);
    let credit = Credit {
        messages: 1_000,
        bytes: 0,
    };
    let key = ConsumerKey(1);
    queue
        .add_consumer(key, credit, AckMode::Explicit, Sharing::Shared)
        .expect("first");
    let mut out = Ranges::new();
    let mut warm = 0;
    for round in 0..100_000u64 {
        let first = queue.next_sequence();
        queue.push_run(first, 16, 1024, place(round), Marking::Marked);
        queue.durable_through(first.plus(15));
        while let Some(offer) = queue.next_offer() {
            let each = [64; 16];
            let each = &each[..offer.messages_max.min(16) as usize];
            let tag = queue.take(&offer, offer.index * 64, each, &mut out).0;
            // The very first delivery stays.
            let range = SettleRange {
                first: tag.max(2),
                last: tag + each.len() as u64 - 1,
            };
            queue
                .settle(key, range, Outcome::Ack, &mut out)
                .expect("outstanding");
        }
        queue.forget(out.as_slice(), &mut |_, _| {});
        out.clear();
        if round == 1_000 {
            warm = allocations::count();
        }
    }
    assert_eq!(allocations::count(), warm);
    assert_eq!(queue.counters().unacked, 1);
}
