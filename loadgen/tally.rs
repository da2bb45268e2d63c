//! What one load thread counted and timed. Does not know sockets.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;

/// Longest latency that is told apart from longer ones, in ns.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// A histogram of latencies in ns.
#[must_use]
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid")
}

/// Counters of one thread that others may read while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages written to sockets or queued for them.
    pub published: AtomicU64,
    /// Messages confirmed or refused.
    pub confirmed: AtomicU64,
    /// Messages refused.
    pub refused: AtomicU64,
    /// Messages delivered.
    pub delivered: AtomicU64,
    /// Messages settled.
    pub settled: AtomicU64,
    /// Time spent working, waiting and spinning not counted, in ns.
    pub work_ns: AtomicU64,
    /// Every channel is open.
    pub is_ready: AtomicBool,
}

/// Sums of the counters of all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Messages written.
    pub published: u64,
    /// Messages confirmed or refused.
    pub confirmed: u64,
    /// Messages refused.
    pub refused: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages settled.
    pub settled: u64,
    /// Time spent working, waiting and spinning not counted.
    pub work_ns: u64,
}

impl Sums {
    /// The sums now.
    #[must_use]
    pub fn of(threads: &[Progress]) -> Self {
        let mut sums = Self::default();
        for progress in threads {
            sums.published += progress.published.load(Ordering::Relaxed);
            sums.confirmed += progress.confirmed.load(Ordering::Relaxed);
            sums.refused += progress.refused.load(Ordering::Relaxed);
            sums.delivered += progress.delivered.load(Ordering::Relaxed);
            sums.settled += progress.settled.load(Ordering::Relaxed);
            sums.work_ns += progress.work_ns.load(Ordering::Relaxed);
        }
        sums
    }
}

/// What all threads share: one clock, one start, one end.
#[derive(Debug)]
pub struct Shared {
    /// Time 0 of the run.
    pub clock: Instant,
    /// Counters, one for each thread.
    pub threads: Vec<Progress>,
    /// Producers may start.
    pub is_started: AtomicBool,
    /// When measuring starts, in ns of the clock; later than any time while it is not known.
    pub measure_from_ns: AtomicU64,
    /// When measuring ended, in ns of the clock; written before `is_stopped`.
    pub stopped_ns: AtomicU64,
    /// Producers must stop.
    pub is_stopped: AtomicBool,
    /// Everything must end now.
    pub is_over: AtomicBool,
}

impl Shared {
    /// Nothing started yet.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            clock: Instant::now(),
            threads: (0..threads).map(|_| Progress::default()).collect(),
            is_started: AtomicBool::new(false),
            measure_from_ns: AtomicU64::new(u64::MAX),
            stopped_ns: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    /// Now, in ns of the clock.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What one thread found; merged at the end.
#[derive(Clone, Debug)]
pub struct Tally {
    /// From the intended time to the confirm.
    pub confirm: Histogram<u64>,
    /// From the intended time to the delivery.
    pub end_to_end: Histogram<u64>,
    /// From the intended time to the write.
    pub late: Histogram<u64>,
    /// Publishes refused.
    pub refused: u64,
    /// Deliveries with the redelivered flag.
    pub redelivered: u64,
    /// Messages that did not come where they should: the sum of all jumps of sequences.
    pub missing: u64,
    /// Messages that came after a later one of the same producer and queue, or again.
    pub disordered: u64,
    /// Deliveries of other runs: their stamp names no producer or queue of this one.
    pub foreign: u64,
    /// Deliveries with a wrong checksum.
    pub corrupt: u64,
    /// Times a producer had work and no credit.
    pub credit_waits: u64,
    /// Open loop: messages that were due and had not been sent when the time was over.
    pub unsent: u64,
    /// The broker's words for the first refusal.
    pub first_refusal: Option<String>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            confirm: latencies(),
            end_to_end: latencies(),
            late: latencies(),
            refused: 0,
            redelivered: 0,
            missing: 0,
            disordered: 0,
            foreign: 0,
            corrupt: 0,
            credit_waits: 0,
            unsent: 0,
            first_refusal: None,
        }
    }
}

impl Tally {
    /// Adds what another thread found.
    pub fn add(&mut self, other: &Tally) {
        // The bounds are the same everywhere, so adding cannot fail.
        let _ = self.confirm.add(&other.confirm);
        let _ = self.end_to_end.add(&other.end_to_end);
        let _ = self.late.add(&other.late);
        self.refused += other.refused;
        self.redelivered += other.redelivered;
        self.missing += other.missing;
        self.disordered += other.disordered;
        self.foreign += other.foreign;
        self.corrupt += other.corrupt;
        self.credit_waits += other.credit_waits;
        self.unsent += other.unsent;
        if self.first_refusal.is_none() {
            self.first_refusal.clone_from(&other.first_refusal);
        }
    }

    /// Counts messages that were due every `gap_ns` from `due_ns` on and were not sent by
    /// `stopped_ns`, with the time they have waited by then. Left out, a stall at the end of a run
    /// would be seen by none of the messages that it held up.
    pub fn note_unsent(&mut self, due_ns: f64, gap_ns: f64, stopped_ns: u64, is_consumed: bool) {
        let stopped = stopped_ns as f64;
        let mut due = due_ns;
        while due <= stopped && gap_ns > 0.0 {
            let waited = (stopped - due) as u64;
            self.unsent += 1;
            self.late.saturating_record(waited);
            self.confirm.saturating_record(waited);
            if is_consumed {
                self.end_to_end.saturating_record(waited);
            }
            due += gap_ns;
        }
    }

    /// Whether every message came once, in order and whole.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.missing == 0 && self.disordered == 0 && self.corrupt == 0 && self.refused == 0
    }
}

/// The next sequence expected of each producer in each queue of one thread's consumers.
#[derive(Clone, Debug)]
pub struct Expected {
    producers: u32,
    queues: u32,
    next: Vec<u64>,
    /// Several consumers share a queue: only order can be checked for each of them.
    is_shared: bool,
}

impl Expected {
    /// Nothing seen yet. `is_shared`: some messages of a queue go to other consumers.
    #[must_use]
    pub fn new(producers: u32, queues: u32, is_shared: bool) -> Self {
        Self {
            producers,
            queues,
            next: vec![0; producers as usize * queues as usize],
            is_shared,
        }
    }

    /// Counts what is wrong with a message's place.
    pub fn see(&mut self, stamp: &crate::message::Stamp, tally: &mut Tally) {
        if stamp.producer >= self.producers || stamp.queue >= self.queues {
            tally.foreign += 1;
            return;
        }
        let place = stamp.producer as usize * self.queues as usize + stamp.queue as usize;
        let next = &mut self.next[place];
        if stamp.sequence < *next {
            tally.disordered += 1;
            return;
        }
        if !self.is_shared {
            tally.missing += stamp.sequence - *next;
        }
        *next = stamp.sequence + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Stamp;

    #[test]
    fn what_was_due_and_not_sent_has_waited() {
        let mut tally = Tally::default();
        // Due at 1, 2 and 3 ms when the time is over at 3.5 ms.
        tally.note_unsent(1e6, 1e6, 3_500_000, false);
        tally.note_unsent(4e6, 1e6, 3_500_000, false);
        tally.note_unsent(f64::NAN, 1e6, 3_500_000, false);
        assert_eq!((tally.unsent, tally.late.len()), (3, 3));
        assert!(tally.confirm.max() >= 2_490_000, "{}", tally.confirm.max());
        assert!(tally.confirm.min() <= 510_000, "{}", tally.confirm.min());
        assert!(tally.end_to_end.is_empty());
    }

    #[test]
    fn gaps_repeats_and_strangers_are_counted() {
        let mut expected = Expected::new(2, 2, false);
        let mut tally = Tally::default();
        for (sequence, producer) in [(0, 0), (1, 0), (4, 0), (3, 0), (0, 1), (0, 2)] {
            let stamp = Stamp {
                sequence,
                intended_ns: 0,
                producer,
                queue: 1,
            };
            expected.see(&stamp, &mut tally);
        }
        assert_eq!((tally.missing, tally.disordered, tally.foreign), (2, 1, 1));
        assert!(!tally.is_clean());
    }
}
