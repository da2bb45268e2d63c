//! Up to where messages may have been delivered, and what of that is durable (ruling 15).
//! Does not know journals: it says what to record and is told what is durable.

use std::collections::VecDeque;

/// Least number of messages a mark is raised ahead of dispatch.
pub const MARK_WINDOW_MIN: u64 = 4096;

/// The marks of one queue. A mark covers every message up to it, in this life of the process: recovery
/// turns it into delivery counts and starts again at 0.
pub(crate) struct Marks {
    /// Messages above are not dispatched.
    durable: u64,
    /// Raised to here, though perhaps not durably yet.
    asked: u64,
    /// Marked runs not known durable, as (first, last); neighbours are one.
    pending: VecDeque<(u64, u64)>,
}

impl Marks {
    /// Nothing may have been delivered.
    pub(crate) const fn durable_queue() -> Self {
        Self {
            durable: 0,
            asked: 0,
            pending: VecDeque::new(),
        }
    }

    /// A queue that never recovers needs no marks.
    pub(crate) const fn volatile_queue() -> Self {
        Self {
            durable: u64::MAX,
            asked: u64::MAX,
            pending: VecDeque::new(),
        }
    }

    pub(crate) const fn durable(&self) -> u64 {
        self.durable
    }

    /// Up to where marks were asked for: a checkpoint that says it is never too low.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.max(self.durable)
    }

    /// Whether a run pushed at `next` should carry a mark: everything before it is covered or gone,
    /// somebody may be given it, and dispatch is at most a window behind.
    pub(crate) fn wants_marked(&self, next: u64, cursor: u64, credit_sum: u64) -> bool {
        credit_sum > 0
            && self.durable != u64::MAX
            && (self.asked >= next - 1 || cursor >= next)
            && next - cursor.min(next) < window(credit_sum)
    }

    /// A marked run was pushed.
    pub(crate) fn pushed_marked(&mut self, first: u64, last: u64) {
        self.asked = self.asked.max(last);
        if let Some(pending) = self.pending.back_mut()
            && pending.1 + 1 == first
        {
            pending.1 = last;
        } else {
            self.pending.push_back((first, last));
        }
    }

    /// Runs up to `sequence` are durable, and with them their marks.
    pub(crate) fn runs_durable(&mut self, sequence: u64) {
        while let Some((first, last)) = self.pending.front().copied()
            && first <= sequence
        {
            self.durable = self.durable.max(last.min(sequence));
            if last > sequence {
                self.pending[0].0 = sequence + 1;
                return;
            }
            self.pending.pop_front();
        }
    }

    /// Runs from `sequence` on are gone.
    pub(crate) fn abandon_from(&mut self, sequence: u64) {
        while let Some((first, last)) = self.pending.back_mut() {
            if *last < sequence {
                return;
            }
            if *first < sequence {
                *last = sequence - 1;
                return;
            }
            self.pending.pop_back();
        }
    }

    /// The mark to record next: some existing message has none, and less than half a window is left.
    pub(crate) fn needed(&mut self, next: u64, cursor: u64, credit_sum: u64) -> Option<u64> {
        let dispatched = cursor - 1;
        let window = window(credit_sum);
        if credit_sum == 0 || self.asked >= next - 1 || self.asked >= dispatched + window / 2 {
            return None;
        }
        self.asked = dispatched + window;
        Some(self.asked)
    }

    /// The mark `sequence` is durable.
    pub(crate) fn mark_durable(&mut self, sequence: u64) {
        self.durable = self.durable.max(sequence);
        self.asked = self.asked.max(sequence);
    }
}

fn window(credit_sum: u64) -> u64 {
    credit_sum.max(MARK_WINDOW_MIN)
}
