//! Publishes of one producer that have no outcome yet. Peers confirm in any order, one by one or all up to
//! one. Does not know protocols.

use std::collections::VecDeque;

use super::Which;

/// A publish.
struct Sent {
    intended_ns: u64,
    sent_ns: u64,
    /// It has its outcome, and one before it has not.
    is_done: bool,
}

/// Publishes without an outcome, the oldest first.
#[derive(Default)]
pub(super) struct Outcomes {
    /// Publishes before the first that waits.
    before: u64,
    waiting: VecDeque<Sent>,
    /// How many of `waiting` are not done.
    count: u64,
}

impl Outcomes {
    /// One more publish.
    pub(super) fn send(&mut self, intended_ns: u64, sent_ns: u64) {
        self.waiting.push_back(Sent {
            intended_ns,
            sent_ns,
            is_done: false,
        });
        self.count += 1;
    }

    /// How many wait.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Publishes got their outcome: calls `each` with the times of each, returns how many. None if it
    /// names one that was not sent or has its outcome.
    pub(super) fn settle(&mut self, which: Which, mut each: impl FnMut(u64, u64)) -> Option<u64> {
        let place = which.sequence.checked_sub(self.before + 1)?;
        let place = usize::try_from(place).ok()?;
        let last = self.waiting.get(place)?;
        let mut settled = 0;
        if which.is_multiple {
            for sent in self.waiting.drain(..=place) {
                self.before += 1;
                if !sent.is_done {
                    each(sent.intended_ns, sent.sent_ns);
                    settled += 1;
                }
            }
        } else {
            if last.is_done {
                return None;
            }
            each(last.intended_ns, last.sent_ns);
            settled = 1;
            self.waiting[place].is_done = true;
        }
        while self.waiting.front().is_some_and(|first| first.is_done) {
            self.waiting.pop_front();
            self.before += 1;
        }
        self.count -= settled;
        Some(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_in_any_order_and_once() {
        let mut outcomes = Outcomes::default();
        for at in 0..6 {
            outcomes.send(at, at + 10);
        }
        let mut seen = Vec::new();
        let mut settle = |sequence, is_multiple| {
            let which = Which {
                role: 0,
                sequence,
                is_multiple,
            };
            outcomes.settle(which, |intended, _| seen.push(intended))
        };
        assert_eq!(settle(3, false), Some(1));
        assert_eq!(settle(3, false), None, "again");
        assert_eq!(settle(7, false), None, "never sent");
        assert_eq!(settle(0, false), None, "never sent");
        assert_eq!(settle(1, false), Some(1));
        assert_eq!(settle(1, false), None, "again, and gone");
        assert_eq!(settle(5, true), Some(3), "2, 4, 5: 3 has its own");
        assert_eq!(settle(6, true), Some(1));
        assert_eq!(settle(6, true), None);
        assert_eq!(seen, [2, 0, 1, 3, 4, 5]);
        assert_eq!(outcomes.count(), 0);
    }
}
