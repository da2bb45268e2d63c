//! Which messages of a queue are done with: a floor and the ranges above it.
//! Does not know runs, consumers or why a message is done with.

use super::chunks::{Chunks, Keyed};
use ringpost_wire::ids::QueueSequence;

/// Queue sequences `first..=last`; never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SequenceRange {
    /// The first.
    pub first: QueueSequence,
    /// The last, not below the first.
    pub last: QueueSequence,
}

impl SequenceRange {
    /// The range `first..=last`.
    ///
    /// # Panics
    /// If it is empty.
    #[must_use]
    pub fn new(first: QueueSequence, last: QueueSequence) -> Self {
        assert!(first <= last);
        Self { first, last }
    }

    /// Number of messages.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }
}

/// A list of ranges to be filled and emptied over and over; ranges that touch become one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    list: Vec<SequenceRange>,
}

impl Ranges {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// Adds a range; one that starts right behind the last added one extends it.
    pub fn push(&mut self, range: SequenceRange) {
        if let Some(last) = self.list.last_mut()
            && last.last.0 + 1 == range.first.0
        {
            last.last = range.last;
        } else {
            self.list.push(range);
        }
    }

    /// The ranges, in the order they were added.
    #[must_use]
    pub fn as_slice(&self) -> &[SequenceRange] {
        &self.list
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Number of messages in all ranges.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.list.iter().map(SequenceRange::count).sum()
    }

    /// Forgets the ranges that were added first.
    pub fn drop_first(&mut self, count: usize) {
        self.list.drain(..count);
    }

    /// Empties the list; keeps its memory.
    pub fn clear(&mut self) {
        self.list.clear();
    }
}

#[derive(Clone, Copy, Default)]
struct Span {
    first: u64,
    last: u64,
}

impl Keyed for Span {
    fn key(&self) -> u64 {
        self.first
    }
}

/// A set of sequences: everything up to the floor, and ranges above it with holes between. Holes are
/// messages that still live, so their number bounds the ranges.
pub(crate) struct SettledSet {
    /// Everything up to here is in the set.
    floor: u64,
    /// Above the floor, with at least one sequence between any two and above the floor.
    spans: Chunks<Span, 32>,
}

impl SettledSet {
    pub(crate) const fn new() -> Self {
        Self {
            floor: 0,
            spans: Chunks::new(),
        }
    }

    pub(crate) const fn floor(&self) -> u64 {
        self.floor
    }

    /// The largest member, 0 if there is none.
    pub(crate) fn ceiling(&self) -> u64 {
        self.spans.last().map_or(self.floor, |span| span.last)
    }

    pub(crate) fn span_count(&self) -> usize {
        self.spans.len()
    }

    pub(crate) fn contains(&self, sequence: u64) -> bool {
        sequence <= self.floor
            || self
                .spans
                .at_or_below(sequence)
                .is_some_and(|at| self.spans.get(at).last >= sequence)
    }

    /// The first stretch of members that ends at or above `sequence`, as (first, last).
    pub(crate) fn stretch_from(&self, sequence: u64) -> Option<(u64, u64)> {
        if sequence <= self.floor {
            return Some((1, self.floor));
        }
        if sequence > self.ceiling() {
            return None;
        }
        let mut at = match self.spans.at_or_below(sequence) {
            Some(at) => at,
            None => self.spans.first_at()?,
        };
        loop {
            let span = self.spans.get(at);
            if span.last >= sequence {
                return Some((span.first, span.last));
            }
            at = self.spans.next(at)?;
        }
    }

    /// How many of `first..=last` are members.
    pub(crate) fn count_in(&self, first: u64, last: u64) -> u64 {
        let mut count = 0;
        let mut from = first;
        while from <= last {
            let Some((start, end)) = self.stretch_from(from) else {
                break;
            };
            let (start, end) = (start.max(from), end.min(last));
            if start > last {
                break;
            }
            count += end - start + 1;
            from = end + 1;
        }
        count
    }

    /// Adds `first..=last`, none of which is a member.
    pub(crate) fn insert_new(&mut self, first: u64, last: u64) {
        debug_assert!(self.floor < first && first <= last);
        debug_assert_eq!(self.count_in(first, last), 0);
        if first == self.floor + 1 {
            self.floor = last;
            if let Some(span) = self.spans.first()
                && span.first == last + 1
            {
                self.floor = span.last;
                let at = self.spans.first_at().expect("there is a first span");
                self.spans.remove(at);
            }
            return;
        }
        let below = self.spans.at_or_below(first);
        let above = match below {
            Some(at) => self.spans.next(at),
            None => self.spans.first_at(),
        };
        let joins_above = above.filter(|at| self.spans.get(*at).first == last + 1);
        let joins_below = below.filter(|at| self.spans.get(*at).last + 1 == first);
        match (joins_below, joins_above) {
            (Some(below), Some(above)) => {
                let joined = Span {
                    first: self.spans.get(below).first,
                    last: self.spans.get(above).last,
                };
                self.spans.set(below, joined);
                self.spans.remove(above);
            }
            (Some(below), None) => {
                let first = self.spans.get(below).first;
                self.spans.set(below, Span { first, last });
            }
            (None, Some(above)) => {
                let last = self.spans.get(above).last;
                self.spans.set(above, Span { first, last });
            }
            (None, None) => self.spans.insert(Span { first, last }),
        }
    }

    /// The ranges above the floor, in order, as (first, last).
    pub(crate) fn spans(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.spans.iter().map(|span| (span.first, span.last))
    }

    pub(crate) fn invariants(&self) {
        self.spans.invariants();
        let mut below = self.floor;
        for (first, last) in self.spans() {
            assert!(below + 1 < first, "ranges touch and are not one");
            assert!(first <= last);
            below = last;
        }
    }
}
