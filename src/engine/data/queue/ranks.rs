//! The ranks of a queue's messages: what their producers' priorities come to in a queue that has some.
//! Does not know which messages are ready.
//!
//! A span of 16 bytes says that the messages from its first one on have a rank, up to where the next
//! span begins.

use std::collections::VecDeque;

use super::settled::SettledSet;

/// Largest rank: a queue has up to 32 of them, from 0.
pub const RANK_MAX: u8 = 31;

/// The ranks of one queue.
#[derive(Debug)]
pub(crate) struct Ranks {
    /// (first message, rank), in order; neighbours differ. Empty while all have rank 0.
    spans: VecDeque<(u64, u8)>,
}

impl Ranks {
    pub(crate) const fn new() -> Self {
        Self {
            spans: VecDeque::new(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.spans.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Messages from `first` on, behind all others, have that rank.
    pub(crate) fn push(&mut self, first: u64, rank: u8) {
        let before = self.spans.back().map_or(0, |span| span.1);
        if rank != before {
            self.spans.push_back((first, rank));
        }
    }

    /// The rank of a message, and how far those behind it have the same; at most to `last`.
    pub(crate) fn of(&self, sequence: u64, last: u64) -> (u8, u64) {
        let behind = self.spans.partition_point(|span| span.0 <= sequence);
        let own = behind.checked_sub(1).map_or(0, |at| self.spans[at].1);
        let upto = self
            .spans
            .get(behind)
            .map_or(last, |next| last.min(next.0 - 1));
        (own, upto)
    }

    /// Forgets spans of which every message is settled.
    pub(crate) fn forget(&mut self, settled: &SettledSet) {
        let floor = settled.floor();
        while self.spans.len() > 1 && self.spans[1].0 <= floor + 1 {
            self.spans.pop_front();
        }
    }

    /// Nothing is live any more.
    pub(crate) fn clear(&mut self) {
        self.spans.clear();
    }

    /// Messages from `sequence` on are gone.
    pub(crate) fn truncate_from(&mut self, sequence: u64) {
        while self.spans.back().is_some_and(|span| span.0 >= sequence) {
            self.spans.pop_back();
        }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (u64, u8)> + '_ {
        self.spans.iter().copied()
    }

    pub(crate) fn invariants(&self) {
        let pairs = self.spans.iter().zip(self.spans.iter().skip(1));
        for ((first, rank), (next, other)) in pairs {
            assert!(
                first < next && rank != other,
                "spans are in order and differ"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_rank_they_came_with() {
        let mut ranks = Ranks::new();
        ranks.push(1, 0);
        assert!(ranks.is_idle());
        for (first, rank) in [(3, 5), (4, 5), (7, 0), (8, 2)] {
            ranks.push(first, rank);
        }
        ranks.invariants();
        assert_eq!(ranks.of(1, 10), (0, 2));
        assert_eq!(ranks.of(4, 5), (5, 5));
        assert_eq!(ranks.of(4, 10), (5, 6));
        assert_eq!(ranks.of(9, 10), (2, 10));
        ranks.truncate_from(8);
        assert_eq!(ranks.of(9, 10), (0, 10));
        let mut settled = SettledSet::new();
        settled.insert_new(1, 6);
        ranks.forget(&settled);
        assert_eq!((ranks.len(), ranks.of(7, 9)), (1, (0, 9)));
    }
}
