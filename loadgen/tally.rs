//! What one load thread counted and timed. Does not know sockets.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::arrivals::Schedule;
use crate::message::Stamp;
use crate::plan::Plan;

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

/// Adds to a counter of one's own, which no other thread writes.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
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

/// Where a load thread leaves what it found in an interval, and takes an empty tally for the next.
#[derive(Debug)]
struct Mail {
    full: Option<Box<Tally>>,
    spare: Option<Box<Tally>>,
}

/// What all threads share: one clock, one start, one end.
#[derive(Debug)]
pub struct Shared {
    /// Counters, one for each thread.
    pub threads: Vec<Progress>,
    /// Intervals, one for each thread; held for a few instructions.
    mail: Vec<Mutex<Mail>>,
    /// How long an interval is, in ns.
    pub interval_ns: u64,
    /// When producers started, in ns of the clock; written before `is_started`.
    pub started_ns: AtomicU64,
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
    pub fn new(threads: usize, interval: Duration) -> Self {
        let mail = || {
            Mutex::new(Mail {
                full: None,
                spare: Some(Box::default()),
            })
        };
        Self {
            threads: (0..threads).map(|_| Progress::default()).collect(),
            mail: (0..threads).map(|_| mail()).collect(),
            interval_ns: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX),
            started_ns: AtomicU64::new(0),
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
        now_ns()
    }

    /// Leaves what thread `index` found, if the last was fetched, and gives it an empty tally.
    pub fn post(&self, index: usize, own: &mut Box<Tally>, now: u64) {
        own.to_ns = now;
        let Ok(mut mail) = self.mail[index].try_lock() else {
            return; // it is being fetched: this interval gets a little longer
        };
        if mail.full.is_some() {
            return; // nobody looked: as above
        }
        if let Some(mut spare) = mail.spare.take() {
            spare.from_ns = now;
            mail.full = Some(std::mem::replace(own, spare));
        }
    }

    /// What thread `index` has left, if anything.
    #[must_use]
    pub fn fetch(&self, index: usize) -> Option<Box<Tally>> {
        let lock = || {
            self.mail[index]
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let full = lock().full.take()?;
        let spare = Box::default(); // made while nobody waits for the lock
        lock().spare = Some(spare);
        Some(full)
    }
}

/// Now, in ns of a clock that all runs of this process share.
#[must_use]
pub fn now_ns() -> u64 {
    static CLOCK: OnceLock<Instant> = OnceLock::new();
    let start = CLOCK.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What went otherwise than it should, in messages if nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Open loop: messages written more than [`MISSED_NS`] after their time though the broker took all
    /// that it was sent.
    pub missed: u64,
    /// Publishes refused.
    pub refused: u64,
    /// Deliveries with the redelivered flag.
    pub redelivered: u64,
    /// Messages that did not come where they should: the sum of all jumps of sequences.
    pub missing: u64,
    /// Messages that came after a later one of the same producer and queue, or again.
    pub disordered: u64,
    /// Messages that came again after the broker had ended, which is allowed then.
    pub repeated: u64,
    /// Deliveries from a queue that they should not be in.
    pub misrouted: u64,
    /// Deliveries of other runs: their stamp names no producer or group of this one.
    pub foreign: u64,
    /// Deliveries with a wrong checksum.
    pub corrupt: u64,
    /// Times a producer had work and no credit.
    pub credit_waits: u64,
    /// Times a producer had work and a socket that the broker did not read.
    pub socket_waits: u64,
    /// Open loop: messages that were due and had not been sent when the time was over.
    pub unsent: u64,
    /// The broker's words for the first refusal.
    pub first_refusal: Option<String>,
}

impl Counts {
    /// Adds what others found.
    pub fn add(&mut self, other: &Counts) {
        self.missed += other.missed;
        self.refused += other.refused;
        self.redelivered += other.redelivered;
        self.missing += other.missing;
        self.disordered += other.disordered;
        self.repeated += other.repeated;
        self.misrouted += other.misrouted;
        self.foreign += other.foreign;
        self.corrupt += other.corrupt;
        self.credit_waits += other.credit_waits;
        self.socket_waits += other.socket_waits;
        self.unsent += other.unsent;
        if self.first_refusal.is_none() {
            self.first_refusal.clone_from(&other.first_refusal);
        }
    }

    /// Whether every message came once, in order and whole.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.missing == 0
            && self.disordered == 0
            && self.misrouted == 0
            && self.corrupt == 0
            && self.refused == 0
    }
}

/// What one thread found in an interval; all are merged at the end.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Start of the interval, in ns of the clock.
    pub from_ns: u64,
    /// Its end.
    pub to_ns: u64,
    /// Response time: from the intended time to the confirm.
    pub confirm: Histogram<u64>,
    /// Response time: from the intended time to the delivery.
    pub end_to_end: Histogram<u64>,
    /// Open loop: from the intended time to the write.
    pub late: Histogram<u64>,
    /// Open loop, service time: from the write to the confirm.
    pub confirm_service: Histogram<u64>,
    /// Open loop, service time: from the write to the delivery.
    pub end_to_end_service: Histogram<u64>,
    /// Slow consumers: from the intended time to the end of the consumer's work.
    pub served: Histogram<u64>,
    /// Some consumers are slow: of their deliveries, from the intended time; `end_to_end` has the others.
    pub slow: Histogram<u64>,
    /// What was counted beside the times.
    pub counts: Counts,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            from_ns: 0,
            to_ns: 0,
            confirm: latencies(),
            end_to_end: latencies(),
            late: latencies(),
            confirm_service: latencies(),
            end_to_end_service: latencies(),
            served: latencies(),
            slow: latencies(),
            counts: Counts::default(),
        }
    }
}

impl Tally {
    /// Adds what another thread found.
    pub fn add(&mut self, other: &Tally) {
        for (own, more) in [
            (&mut self.confirm, &other.confirm),
            (&mut self.end_to_end, &other.end_to_end),
            (&mut self.late, &other.late),
            (&mut self.confirm_service, &other.confirm_service),
            (&mut self.end_to_end_service, &other.end_to_end_service),
            (&mut self.served, &other.served),
            (&mut self.slow, &other.slow),
        ] {
            if !more.is_empty() {
                own.add(more).expect("the bounds are the same everywhere");
            }
        }
        self.counts.add(&other.counts);
    }

    /// Counts messages that were due and were not sent by `stopped_ns`, with the time they have waited
    /// by then. Left out, a stall at the end of a run would be seen by none of the messages that it
    /// held up.
    pub fn note_unsent(&mut self, mut schedule: Schedule, stopped_ns: u64, is_consumed: bool) {
        while schedule.has_begun() && schedule.is_due(stopped_ns) {
            let waited = stopped_ns - schedule.take();
            self.counts.unsent += 1;
            self.late.saturating_record(waited);
            self.confirm.saturating_record(waited);
            if is_consumed {
                self.end_to_end.saturating_record(waited);
            }
        }
    }
}

/// A send later than this after its time counts as missed, in ns.
pub const MISSED_NS: u64 = 1_000_000;

/// The next sequence expected of each producer by each consumer of one thread.
#[derive(Clone, Debug)]
pub struct Expected {
    producers: u32,
    queues: u32,
    fan_out: u32,
    consumers: u32,
    next: Vec<u64>,
    /// Several consumers share a queue: only order can be checked, for each of them.
    is_shared: bool,
    /// The broker may end meanwhile, and deliver again what was not settled.
    may_repeat: bool,
}

impl Expected {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let producers = plan.producers.max(plan.backlog_of);
        let consumers = plan.consumers.max(1);
        let places = producers as usize * plan.queues as usize * consumers as usize;
        Self {
            producers,
            queues: plan.queues,
            fan_out: plan.fan_out,
            consumers,
            next: vec![0; places],
            is_shared: plan.consumers > 1,
            may_repeat: plan.is_restart_expected,
        }
    }

    /// Counts what is wrong with the place of a message that came from `queue`, to the consumer `copy` of
    /// those that share it. False if it came before, where that is allowed.
    pub fn see(&mut self, stamp: &Stamp, queue: u32, copy: u32, tally: &mut Tally) -> bool {
        if stamp.producer >= self.producers || stamp.group >= self.queues / self.fan_out {
            tally.counts.foreign += 1;
            return true;
        }
        if stamp.group != queue / self.fan_out {
            tally.counts.misrouted += 1;
            return true;
        }
        let place = stamp.producer as usize * self.queues as usize + queue as usize;
        let place = place * self.consumers as usize + copy as usize;
        let next = &mut self.next[place];
        if stamp.sequence < *next {
            if self.may_repeat {
                tally.counts.repeated += 1;
                return false;
            }
            tally.counts.disordered += 1;
            return true;
        }
        if !self.is_shared {
            tally.counts.missing += stamp.sequence - *next;
        }
        *next = stamp.sequence + 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::{Gaps, Profile};

    #[test]
    fn what_was_due_and_not_sent_has_waited() {
        let mut tally = Tally::default();
        let mut schedule = Schedule::new(Gaps::Equal, 1000.0, &Profile::Flat, Duration::ZERO, 1);
        tally.note_unsent(schedule.clone(), 3_500_000, false);
        assert_eq!(tally.counts.unsent, 0, "it has not begun");
        // Due at 1, 2 and 3 ms when the time is over at 3.5 ms.
        schedule.begin(1_000_000, 0.0);
        tally.note_unsent(schedule.clone(), 3_500_000, false);
        schedule.begin(4_000_000, 0.0);
        tally.note_unsent(schedule, 3_500_000, false);
        assert_eq!((tally.counts.unsent, tally.late.len()), (3, 3));
        assert!(tally.confirm.max() >= 2_490_000, "{}", tally.confirm.max());
        assert!(tally.confirm.min() <= 510_000, "{}", tally.confirm.min());
        assert!(tally.end_to_end.is_empty());
    }

    fn plan(producers: u32, queues: u32, fan_out: u32) -> Plan {
        Plan {
            producers,
            queues,
            fan_out,
            ..Plan::new(([127, 0, 0, 1], 1).into())
        }
    }

    fn stamp(producer: u32, group: u32, sequence: u64) -> Stamp {
        Stamp {
            sequence,
            intended_ns: 0,
            sent_ns: 0,
            producer,
            group,
        }
    }

    #[test]
    fn gaps_repeats_and_strangers_are_counted() {
        let mut expected = Expected::new(&plan(2, 2, 1));
        let mut tally = Tally::default();
        for (sequence, producer) in [(0, 0), (1, 0), (4, 0), (3, 0), (0, 1), (0, 2)] {
            expected.see(&stamp(producer, 1, sequence), 1, 0, &mut tally);
        }
        assert_eq!(
            (
                tally.counts.missing,
                tally.counts.disordered,
                tally.counts.foreign
            ),
            (2, 1, 1)
        );
        assert!(!tally.counts.is_clean());
    }

    #[test]
    fn every_queue_of_a_group_sees_all_and_others_nothing() {
        let mut expected = Expected::new(&plan(1, 4, 2));
        let mut tally = Tally::default();
        for sequence in 0..3 {
            expected.see(&stamp(0, 1, sequence), 2, 0, &mut tally);
            expected.see(&stamp(0, 1, sequence), 3, 0, &mut tally);
        }
        assert!(tally.counts.is_clean() && tally.counts.foreign == 0);
        expected.see(&stamp(0, 1, 3), 1, 0, &mut tally);
        assert_eq!(tally.counts.misrouted, 1);
        assert!(!tally.counts.is_clean());
    }

    #[test]
    fn consumers_that_share_a_queue_have_an_order_each() {
        let mut shared = plan(1, 2, 1);
        shared.consumers = 2;
        let mut expected = Expected::new(&shared);
        let mut tally = Tally::default();
        // What the second was sent later is received first.
        for (sequence, copy) in [(4, 1), (5, 1), (0, 0), (2, 0), (7, 1)] {
            expected.see(&stamp(0, 1, sequence), 1, copy, &mut tally);
        }
        assert!(tally.counts.is_clean(), "{:?}", tally.counts);
        expected.see(&stamp(0, 1, 6), 1, 1, &mut tally);
        assert_eq!(tally.counts.disordered, 1);
    }

    #[test]
    fn messages_may_come_again_only_after_a_restart() {
        let mut may = plan(1, 1, 1);
        may.is_restart_expected = true;
        let mut expected = Expected::new(&may);
        let mut tally = Tally::default();
        let seen = [0, 1, 0, 1, 2].map(|at| expected.see(&stamp(0, 0, at), 0, 0, &mut tally));
        assert_eq!(seen, [true, true, false, false, true]);
        assert_eq!(
            (
                tally.counts.repeated,
                tally.counts.disordered,
                tally.counts.missing
            ),
            (2, 0, 0)
        );
        assert!(tally.counts.is_clean());
    }

    #[test]
    fn intervals_are_left_and_fetched_one_by_one() {
        let shared = Shared::new(1, Duration::from_secs(1));
        let mut own: Box<Tally> = Box::default();
        own.counts.missing = 1;
        shared.post(0, &mut own, 10);
        assert_eq!((own.counts.missing, own.from_ns), (0, 10));
        own.counts.missing = 2;
        shared.post(0, &mut own, 20);
        assert_eq!(own.counts.missing, 2, "the first was not fetched");
        let first = shared.fetch(0).expect("it was left");
        assert_eq!((first.counts.missing, first.to_ns), (1, 10));
        assert!(shared.fetch(0).is_none());
        shared.post(0, &mut own, 30);
        assert_eq!((own.counts.missing, own.from_ns), (0, 30));
        assert_eq!(shared.fetch(0).map(|tally| tally.counts.missing), Some(2));
    }
}
