//! Messages of a queue that wait for their time: delayed by their producers, or by the queue's retry
//! policy. Does not know when they arrived, nor which of them are durable.
//!
//! In order of time, one entry of 24 bytes for consecutive messages that are due in the same
//! millisecond, so that a batch costs what one message costs.

use std::collections::BTreeMap;

use super::expiry::Ms;
use super::returned::Returned;

/// Consecutive messages behind their key: when they are due, and the first one.
#[derive(Clone, Copy, Debug)]
struct Wait {
    count: u32,
    /// How often each was delivered.
    deliveries: u32,
}

/// The messages that wait.
#[derive(Debug)]
pub(crate) struct Delayed {
    by_time: BTreeMap<(Ms, u64), Wait>,
    count: u64,
}

impl Delayed {
    pub(crate) const fn new() -> Self {
        Self {
            by_time: BTreeMap::new(),
            count: 0,
        }
    }

    /// How many messages wait.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    #[cfg(test)]
    /// How many entries they take.
    pub(crate) fn len(&self) -> usize {
        self.by_time.len()
    }

    /// Messages wait until `due`.
    pub(crate) fn insert(&mut self, due: Ms, span: Returned) {
        self.count += u64::from(span.count);
        if let Some((key, before)) = self.by_time.range_mut(..(due, span.first)).next_back()
            && key.0 == due
            && key.1 + u64::from(before.count) == span.first
            && before.deliveries == span.deliveries
            && let Some(count) = before.count.checked_add(span.count)
        {
            before.count = count;
            return;
        }
        let wait = Wait {
            count: span.count,
            deliveries: span.deliveries,
        };
        let known = self.by_time.insert((due, span.first), wait);
        debug_assert!(known.is_none());
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Ms> {
        self.by_time.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes messages that are due.
    pub(crate) fn take_due(&mut self, now: Ms) -> Option<Returned> {
        let entry = self.by_time.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let ((_, first), wait) = entry.remove_entry();
        self.count -= u64::from(wait.count);
        Some(Returned::new(first, wait.count, wait.deliveries))
    }

    /// The entry behind one, in order of time; the first one behind `None`.
    pub(crate) fn next_behind(&self, at: Option<(Ms, u64)>) -> Option<(Ms, Returned)> {
        let from = match at {
            None => std::ops::Bound::Unbounded,
            Some(at) => std::ops::Bound::Excluded(at),
        };
        let entry = self
            .by_time
            .range((from, std::ops::Bound::Unbounded))
            .next();
        entry.map(|((due, first), wait)| (*due, Returned::new(*first, wait.count, wait.deliveries)))
    }

    /// Takes some messages, in ascending order, out of an entry.
    pub(crate) fn take_out(&mut self, due: Ms, entry: Returned, taken: &[u64]) {
        let known = self.by_time.remove(&(due, entry.first));
        debug_assert!(known.is_some());
        self.count -= u64::from(entry.count);
        let mut from = entry.first;
        for sequence in taken.iter().copied().chain([entry.last() + 1]) {
            if from < sequence {
                let span = Returned::new(from, (sequence - from) as u32, entry.deliveries);
                self.insert(due, span);
            }
            from = sequence + 1;
        }
    }

    /// Takes all of them.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Ms, Returned)) {
        for ((due, first), wait) in std::mem::take(&mut self.by_time) {
            each(due, Returned::new(first, wait.count, wait.deliveries));
        }
        self.count = 0;
    }

    /// Messages from `sequence` on are gone; how many that were. Looks at every entry.
    pub(crate) fn truncate_from(&mut self, sequence: u64) -> u64 {
        let before = self.count;
        let count = &mut self.count;
        self.by_time.retain(|(_, first), wait| {
            let kept = sequence.saturating_sub(*first).min(u64::from(wait.count));
            *count -= u64::from(wait.count) - kept;
            wait.count = kept as u32;
            kept > 0
        });
        before - self.count
    }

    /// When messages are due, in order of that.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ms, Returned)> + '_ {
        let spans = self.by_time.iter();
        spans.map(|((due, first), wait)| {
            let span = Returned::new(*first, wait.count, wait.deliveries);
            (*due, span)
        })
    }

    pub(crate) fn invariants(&self) {
        let sum: u64 = self
            .by_time
            .values()
            .map(|wait| u64::from(wait.count))
            .sum();
        assert_eq!(self.count, sum);
        assert!(self.by_time.values().all(|wait| wait.count > 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(delayed: &mut Delayed, now: Ms) -> Vec<(u64, u32)> {
        let spans = std::iter::from_fn(|| delayed.take_due(now));
        spans.map(|span| (span.first, span.count)).collect()
    }

    #[test]
    fn messages_come_in_order_of_their_time() {
        let mut delayed = Delayed::new();
        assert_eq!(delayed.next_due(), None);
        delayed.insert(300, Returned::new(1, 2, 0));
        delayed.insert(100, Returned::new(3, 1, 0));
        delayed.insert(100, Returned::new(4, 2, 0));
        delayed.insert(100, Returned::new(6, 1, 3));
        delayed.insert(200, Returned::new(7, 1, 0));
        delayed.invariants();
        assert_eq!((delayed.count(), delayed.len()), (7, 4));
        assert_eq!(delayed.next_due(), Some(100));
        assert_eq!(taken(&mut delayed, 99), []);
        assert_eq!(taken(&mut delayed, 250), [(3, 3), (6, 1), (7, 1)]);
        assert_eq!(delayed.next_due(), Some(300));
        delayed.invariants();
    }

    #[test]
    fn what_is_gone_from_a_message_on_is_cut() {
        let mut delayed = Delayed::new();
        delayed.insert(50, Returned::new(5, 4, 0));
        delayed.insert(10, Returned::new(9, 1, 0));
        assert_eq!(delayed.truncate_from(7), 3);
        delayed.invariants();
        let mut left = Vec::new();
        delayed.drain(|due, span| left.push((due, span.first, span.count)));
        assert_eq!(left, [(50, 5, 2)]);
        assert_eq!(delayed.count(), 0);
    }
}
