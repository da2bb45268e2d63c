//! What a queue costs per message: push, take, settle, forget, in runs of 1, 16 and 1024 messages.
//! Does not know journals or sockets.
//!
//! `cargo run --release --bin queue`. Prints the best and the median of several repetitions.

use std::hint::black_box;
use std::time::Instant;

use ringpost_engine::data::queue::{
    AckMode, ConsumerKey, Credit, Marking, Outcome, Queue, Ranges, SequenceRange, Settings, Sharing,
};
use ringpost_engine::{Place, SegmentIdx};
use ringpost_wire::SettleRange;
use ringpost_wire::control::Durability;
use ringpost_wire::ids::QueueSequence;

/// Messages that are in the queue at a time.
const WINDOW: u64 = 64 * 1024;
/// Windows per repetition.
const WINDOWS: usize = 20;
const REPETITIONS: usize = 9;
const BYTES_EACH: [u32; 1024] = [128; 1024];

const STEPS: [&str; 8] = [
    "push",
    "offer and take",
    "settle",
    "forget",
    "all four",
    "requeue",
    "take returned",
    "settle returned",
];

fn queue(consumers: u64) -> Queue {
    let mut queue = Queue::new(Settings::plain(Durability::Durable));
    for key in 1..=consumers {
        // All but the first have no credit: they must cost nothing.
        let messages = if key == 1 { 1_000_000 } else { 0 };
        let credit = Credit { messages, bytes: 0 };
        queue
            .add_consumer(ConsumerKey(key), credit, AckMode::Explicit, Sharing::Shared)
            .expect("shared");
    }
    queue
}

fn take_all(queue: &mut Queue, out: &mut Ranges) {
    while let Some(offer) = queue.next_offer() {
        let count = offer.messages_max.min(1024);
        let at = offer.index * 128;
        black_box(queue.take(&offer, at, &BYTES_EACH[..count as usize], out));
    }
}

/// Publishes a window of messages in runs of `run`.
fn push_all(queue: &mut Queue, run: u32) {
    for record in 0..WINDOW / u64::from(run) {
        let first = queue.next_sequence();
        let place = Place {
            segment: SegmentIdx((first.0 >> 16) as u32),
            offset: (record % 4096) as u32 * 4096,
        };
        queue.push_run(first, run, run * 128, place, Marking::Marked);
    }
    queue.durable_through(QueueSequence(queue.next_sequence().0 - 1));
}

/// Acks a window of deliveries up to `last`, as a consumer that acks each frame of `run` messages.
fn settle_all(queue: &mut Queue, run: u32, last: u64, out: &mut Ranges) {
    let mut tag = last - WINDOW;
    while tag < last {
        tag += u64::from(run);
        let range = SettleRange {
            first: 0,
            last: tag,
        };
        let done = queue.settle(ConsumerKey(1), range, Outcome::Ack, out);
        black_box(done).expect("outstanding");
    }
}

/// Forgets what was settled, as of one ack record for each run.
fn forget_all(queue: &mut Queue, run: u32, out: &mut Ranges) {
    let whole = out.as_slice()[0];
    let mut first = whole.first;
    while first <= whole.last {
        let last = first.plus(u64::from(run) - 1);
        let mut lost = 0;
        queue.forget(&[SequenceRange::new(first, last)], &mut |_, n| lost += n);
        black_box(lost);
        first = last.plus(1);
    }
    out.clear();
}

/// Nanoseconds per message of each step.
fn measure(run: u32, consumers: u64) -> [f64; STEPS.len()] {
    let mut queue = queue(consumers);
    let mut out = Ranges::new();
    let mut counts = Vec::new();
    let mut tag = 0;
    let mut nanoseconds = [0.0; STEPS.len()];
    for window in 0..WINDOWS + 1 {
        let mut started = Instant::now();
        let mut lap = |step: Option<usize>| {
            // The first window warms up.
            if let Some(step) = step.filter(|_| window > 0) {
                nanoseconds[step] += started.elapsed().as_nanos() as f64;
            }
            started = Instant::now();
        };
        push_all(&mut queue, run);
        lap(Some(0));
        take_all(&mut queue, &mut out);
        lap(Some(1));
        tag += WINDOW;
        settle_all(&mut queue, run, tag, &mut out);
        lap(Some(2));
        forget_all(&mut queue, run, &mut out);
        lap(Some(3));

        push_all(&mut queue, run);
        take_all(&mut queue, &mut out);
        tag += WINDOW;
        let range = SettleRange {
            first: 0,
            last: tag,
        };
        lap(None);
        let done = queue.settle(ConsumerKey(1), range, Outcome::Requeue, &mut out);
        done.expect("outstanding");
        counts.clear();
        let upto = queue.take_counts(&mut counts);
        queue.counts_durable(upto);
        lap(Some(5));
        take_all(&mut queue, &mut out);
        lap(Some(6));
        tag += WINDOW;
        settle_all(&mut queue, run, tag, &mut out);
        lap(Some(7));
        forget_all(&mut queue, run, &mut out);
    }
    for step in &mut nanoseconds {
        *step /= (WINDOW * WINDOWS as u64) as f64;
    }
    nanoseconds[4] = nanoseconds[..4].iter().sum();
    nanoseconds
}

fn main() {
    println!("ns per message, best / median of {REPETITIONS}");
    for consumers in [1, 1_000] {
        for run in [1, 16, 1024] {
            let mut results: Vec<_> = (0..REPETITIONS).map(|_| measure(run, consumers)).collect();
            println!("runs of {run}, {consumers} consumers");
            for (idx, step) in STEPS.iter().enumerate() {
                results.sort_by(|one, two| one[idx].total_cmp(&two[idx]));
                let (best, median) = (results[0][idx], results[REPETITIONS / 2][idx]);
                println!("  {step:16} {best:8.2} {median:8.2}");
            }
        }
    }
}
