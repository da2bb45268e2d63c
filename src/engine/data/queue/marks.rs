//! Up to where messages may have been delivered, and what of that is durable (ruling 15).
//! Does not know journals: it says what to record and is told what is durable.

use std::collections::VecDeque;

/// Least number of messages a mark is raised ahead of dispatch.
pub const MARK_WINDOW_MIN: u64 = 4096;
/// Most messages it is raised ahead of dispatch for want of a faster disk; credit may be more. So many
/// may be flagged as redelivered after a crash though nobody was given them.
pub const MARK_WINDOW_MAX: u64 = 1 << 18;

/// The marks of one queue. A mark covers every message up to it, in this life of the process: recovery
/// turns it into delivery counts and starts again at 0.
pub(crate) struct Marks {
    /// Messages above are not dispatched.
    durable: u64,
    /// Raised to here, though perhaps not durably yet.
    asked: u64,
    /// Marked runs not known durable, as (first, last); neighbours are one.
    pending: VecDeque<(u64, u64)>,
    /// How far ahead of dispatch the next mark is raised, if credit does not ask for more. It doubles
    /// each time a backlog is delivered faster than marks are written, and is the least again when the
    /// backlog is gone.
    reach: u64,
    /// Dispatch has waited for the mark that was asked for last.
    is_short: bool,
}

impl Marks {
    /// Nothing may have been delivered.
    pub(crate) const fn durable_queue() -> Self {
        Self {
            durable: 0,
            asked: 0,
            pending: VecDeque::new(),
            reach: MARK_WINDOW_MIN,
            is_short: false,
        }
    }

    /// A queue that never recovers needs no marks, nor does one of which nothing is taken.
    pub(crate) const fn unmarked() -> Self {
        Self {
            durable: u64::MAX,
            asked: u64::MAX,
            pending: VecDeque::new(),
            reach: MARK_WINDOW_MIN,
            is_short: false,
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
            && next - cursor.min(next) < self.window(credit_sum)
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
    /// `runs_durable`: the last message that could be given if it were marked.
    pub(crate) fn needed(
        &mut self,
        next: u64,
        cursor: u64,
        runs_durable: u64,
        credit_sum: u64,
    ) -> Option<u64> {
        let dispatched = cursor - 1;
        if cursor >= next {
            self.reach = MARK_WINDOW_MIN;
            self.is_short = false;
        } else if (self.durable..self.asked).contains(&dispatched) && cursor <= runs_durable {
            self.is_short |= credit_sum > 0 && self.durable > 0;
        }
        let window = self.window(credit_sum);
        if credit_sum == 0 || self.asked >= next - 1 || self.asked >= dispatched + window / 2 {
            return None;
        }
        if std::mem::take(&mut self.is_short) {
            self.reach = (self.reach * 2).min(MARK_WINDOW_MAX);
        }
        // Beyond what is there the least is enough.
        let most = next - 1 + credit_sum.max(MARK_WINDOW_MIN);
        self.asked = (dispatched + self.window(credit_sum)).min(most);
        Some(self.asked)
    }

    fn window(&self, credit_sum: u64) -> u64 {
        credit_sum.max(self.reach)
    }

    /// The mark `sequence` is durable.
    pub(crate) fn mark_durable(&mut self, sequence: u64) {
        self.durable = self.durable.max(sequence);
        self.asked = self.asked.max(sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything is published and durable; `left` of it is not dispatched.
    struct Backlog {
        marks: Marks,
        next: u64,
        cursor: u64,
    }

    impl Backlog {
        fn of(messages: u64) -> Self {
            Self {
                marks: Marks::durable_queue(),
                next: messages + 1,
                cursor: 1,
            }
        }

        fn needed(&mut self) -> Option<u64> {
            let (next, cursor) = (self.next, self.cursor);
            self.marks.needed(next, cursor, next - 1, 100)
        }

        /// Gives all that is marked.
        fn give_all(&mut self) {
            self.cursor = self.next.min(self.marks.durable() + 1);
        }
    }

    #[test]
    fn a_mark_that_was_waited_for_makes_the_next_reach_twice_as_far() {
        let mut backlog = Backlog::of(10_000_000);
        let mut ahead = Vec::new();
        for _ in 0..10 {
            let mark = backlog.needed().expect("a mark is needed");
            ahead.push(mark + 1 - backlog.cursor);
            // Dispatch comes to the end of what is marked before this mark is written.
            backlog.give_all();
            assert_eq!(backlog.needed(), None, "it is asked for already");
            backlog.marks.mark_durable(mark);
            backlog.give_all();
        }
        // Nothing was delivered before the first: that it is waited for says nothing.
        assert_eq!(ahead[..2], [MARK_WINDOW_MIN, MARK_WINDOW_MIN]);
        assert_eq!(ahead[2..4], [2 * MARK_WINDOW_MIN, 4 * MARK_WINDOW_MIN]);
        assert_eq!(ahead[9], MARK_WINDOW_MAX);
    }

    #[test]
    fn marks_that_come_in_time_reach_no_further() {
        let mut backlog = Backlog::of(1_000_000);
        let first = backlog.needed().expect("a mark is needed");
        backlog.marks.mark_durable(first);
        for _ in 0..50 {
            backlog.cursor += MARK_WINDOW_MIN / 2 + 1;
            let mark = backlog.needed().expect("half is used");
            assert_eq!(mark + 1 - backlog.cursor, MARK_WINDOW_MIN);
            backlog.marks.mark_durable(mark);
        }
    }

    #[test]
    fn a_backlog_that_is_gone_makes_marks_short_again() {
        let mut backlog = Backlog::of(100_000);
        while backlog.cursor < backlog.next {
            if let Some(mark) = backlog.needed() {
                backlog.give_all();
                backlog.needed();
                backlog.marks.mark_durable(mark);
            }
            backlog.give_all();
        }
        assert_eq!(backlog.needed(), None);
        assert!(backlog.marks.durable() < backlog.next + MARK_WINDOW_MIN);
        backlog.next += 1_000_000;
        backlog.give_all();
        let mark = backlog.needed().expect("a new backlog");
        assert_eq!(mark + 1 - backlog.cursor, MARK_WINDOW_MIN);
    }

    #[test]
    fn waiting_for_messages_that_are_not_durable_is_no_want_of_marks() {
        let mut marks = Marks::durable_queue();
        marks.mark_durable(10);
        marks.pushed_marked(11, 20);
        // 11 to 20 wait for their own block.
        assert_eq!(marks.needed(21, 11, 10, 100), None);
        assert_eq!(
            marks.needed(30_000, 11, 10, 100),
            Some(10 + MARK_WINDOW_MIN)
        );
    }
}
