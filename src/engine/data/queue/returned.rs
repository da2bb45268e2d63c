//! Messages that were delivered and came back, in their original order, with their delivery counts.
//! Does not know where they lie or who gave them back.

use std::collections::VecDeque;

use super::chunks::{Chunks, Keyed};
use super::settled::SequenceRange;
use ringpost_wire::ids::QueueSequence;

/// Most deliveries that are counted; above, the count stands still.
pub const DELIVERIES_MAX: u32 = (1 << 31) - 1;

/// Consecutive messages with the same number of deliveries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CountRange {
    /// The messages.
    pub range: SequenceRange,
    /// How often each was delivered, at least once.
    pub deliveries: u32,
}

/// Names the count ranges handed out so far; see [`super::Queue::take_counts`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CountsUpto(u64);

/// Consecutive messages that came back, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Returned {
    pub(crate) first: u64,
    pub(crate) count: u32,
    /// How often each was delivered; one too high, perhaps, for each crash it has lived through.
    pub(crate) deliveries: u32,
}

impl Keyed for Returned {
    fn key(&self) -> u64 {
        self.first
    }
}

impl Returned {
    pub(crate) fn new(first: u64, count: u32, deliveries: u32) -> Self {
        Self {
            first,
            count,
            deliveries: deliveries.min(DELIVERIES_MAX),
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    fn counts(&self) -> CountRange {
        CountRange {
            range: SequenceRange::new(QueueSequence(self.first), QueueSequence(self.last())),
            deliveries: self.deliveries,
        }
    }

    fn joins(&self, after: &Self) -> bool {
        self.last() + 1 == after.first
            && self.deliveries == after.deliveries
            && self.count.checked_add(after.count).is_some()
    }
}

/// Delivery counts of messages that are done with, though not durably: a crash would bring them back.
pub(crate) struct PendingCounts {
    spans: Chunks<Returned, 32>,
}

impl PendingCounts {
    pub(crate) const fn new() -> Self {
        Self {
            spans: Chunks::new(),
        }
    }

    /// Remembers messages, none of which is here.
    pub(crate) fn insert(&mut self, span: Returned) {
        if let Some(at) = self.spans.at_or_below(span.first) {
            let mut before = self.spans.get(at);
            if before.joins(&span) {
                before.count += span.count;
                self.spans.set(at, before);
                return;
            }
        }
        self.spans.insert(span);
    }

    /// Forgets the messages `first..=last`.
    pub(crate) fn remove(&mut self, first: u64, last: u64) {
        if self.spans.is_empty() {
            return;
        }
        if let Some(at) = self.spans.at_or_below(first) {
            let span = self.spans.get(at);
            if span.last() >= first {
                if span.first < first {
                    let count = (first - span.first) as u32;
                    self.spans.set(at, Returned { count, ..span });
                } else {
                    self.spans.remove(at);
                }
                self.insert_behind(span, last);
            }
        }
        while let Some(at) = self.spans.at_or_below(last) {
            let span = self.spans.get(at);
            if span.last() < first {
                return;
            }
            self.spans.remove(at);
            self.insert_behind(span, last);
        }
    }

    /// Puts back what of a removed span lies behind `last`.
    fn insert_behind(&mut self, span: Returned, last: u64) {
        if span.last() > last {
            let count = (span.last() - last) as u32;
            self.spans.insert(Returned {
                first: last + 1,
                count,
                ..span
            });
        }
    }

    /// Drops everything from `sequence` on, where no span is cut.
    pub(crate) fn truncate_from(&mut self, sequence: u64) {
        self.spans.truncate_from(sequence);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Returned> + '_ {
        self.spans.iter()
    }

    pub(crate) fn invariants(&self) {
        self.spans.invariants();
        let mut below = 0;
        for span in self.spans.iter() {
            assert!(span.count > 0 && span.first > below, "spans overlap");
            below = span.last();
        }
    }
}

/// All messages of a queue that came back.
pub(crate) struct ReturnedSet {
    /// Deliverable, in order of sequence; neighbours that join are one.
    ready: Chunks<Returned, 32>,
    ready_count: u64,
    /// Not deliverable until their counts are durable, in the order they came back.
    held: VecDeque<Returned>,
    held_count: u64,
    /// Spans ever taken off the front of `held`.
    released: u64,
    /// Spans ever handed out for the journal; those may not grow any more.
    handed: u64,
}

impl ReturnedSet {
    pub(crate) const fn new() -> Self {
        Self {
            ready: Chunks::new(),
            ready_count: 0,
            held: VecDeque::new(),
            held_count: 0,
            released: 0,
            handed: 0,
        }
    }

    /// Messages that came back, deliverable or held.
    pub(crate) fn count(&self) -> u64 {
        self.ready_count + self.held_count
    }

    /// Deliverable messages.
    pub(crate) fn ready_count(&self) -> u64 {
        self.ready_count
    }

    /// Whether messages wait for their counts.
    pub(crate) fn is_holding(&self) -> bool {
        self.held_count > 0
    }

    /// The lowest message that waits for its count. They came back in any order, but few at a time.
    pub(crate) fn held_first(&self) -> Option<u64> {
        self.held.iter().map(|span| span.first).min()
    }

    /// The next deliverable messages.
    pub(crate) fn first(&self) -> Option<Returned> {
        self.ready.first()
    }

    /// Keeps messages back until their counts are durable.
    pub(crate) fn hold(&mut self, span: Returned) {
        self.held_count += u64::from(span.count);
        if self.handed < self.released + self.held.len() as u64
            && let Some(last) = self.held.back_mut()
            && last.joins(&span)
        {
            last.count += span.count;
        } else {
            self.held.push_back(span);
        }
    }

    /// Keeps all messages back until their counts are durable.
    pub(crate) fn hold_all(&mut self) {
        let ready = std::mem::replace(&mut self.ready, Chunks::new());
        self.ready_count = 0;
        ready.iter().for_each(|span| self.hold(span));
    }

    /// Appends the counts not handed out yet.
    pub(crate) fn take_counts(&mut self, out: &mut Vec<CountRange>) -> CountsUpto {
        let already = (self.handed - self.released) as usize;
        out.extend(self.held.range(already..).map(Returned::counts));
        self.handed = self.released + self.held.len() as u64;
        CountsUpto(self.handed)
    }

    /// Counts up to `upto` are durable: their messages are deliverable.
    pub(crate) fn release(&mut self, upto: CountsUpto) {
        assert!(upto.0 <= self.handed);
        while self.released < upto.0 {
            let span = self.held.pop_front().expect("handed out and not released");
            self.held_count -= u64::from(span.count);
            self.released += 1;
            self.insert(span);
        }
    }

    /// Makes messages deliverable.
    pub(crate) fn insert(&mut self, mut span: Returned) {
        self.ready_count += u64::from(span.count);
        let below = self.ready.at_or_below(span.first);
        let above = match below {
            Some(at) => self.ready.next(at),
            None => self.ready.first_at(),
        };
        debug_assert!(below.is_none_or(|at| self.ready.get(at).last() < span.first));
        if let Some(above) = above {
            let after = self.ready.get(above);
            debug_assert!(span.last() < after.first);
            if span.joins(&after) {
                span.count += after.count;
                if let Some(below) = below
                    && self.ready.get(below).joins(&span)
                {
                    span.count += self.ready.get(below).count;
                    span.first = self.ready.get(below).first;
                    self.ready.set(below, span);
                    self.ready.remove(above);
                } else {
                    self.ready.set(above, span);
                }
                return;
            }
        }
        if let Some(below) = below {
            let mut before = self.ready.get(below);
            if before.joins(&span) {
                before.count += span.count;
                self.ready.set(below, before);
                return;
            }
        }
        self.ready.insert(span);
    }

    /// Takes the first `count` messages of the first span.
    pub(crate) fn take_first(&mut self, count: u32) {
        let at = self.ready.first_at().expect("there is a first span");
        let mut span = self.ready.get(at);
        assert!(count <= span.count);
        self.ready_count -= u64::from(count);
        if count == span.count {
            self.ready.remove(at);
        } else {
            span.first += u64::from(count);
            span.count -= count;
            self.ready.set(at, span);
        }
    }

    /// Empties the set, telling each span.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Returned)) {
        self.ready.iter().for_each(&mut each);
        self.ready.clear();
        self.ready_count = 0;
        self.released += self.held.len() as u64;
        self.handed = self.handed.max(self.released);
        self.held.drain(..).for_each(&mut each);
        self.held_count = 0;
    }

    /// Every span, deliverable ones first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Returned> + '_ {
        self.ready.iter().chain(self.held.iter().copied())
    }

    pub(crate) fn invariants(&self) {
        self.ready.invariants();
        let mut below = 0;
        for span in self.ready.iter() {
            assert!(span.count > 0 && span.first > below, "spans overlap");
            below = span.last();
        }
        let sum = |count: u64, span: &Returned| count + u64::from(span.count);
        assert_eq!(
            self.ready_count,
            self.ready.iter().fold(0, |n, s| sum(n, &s))
        );
        assert_eq!(self.held_count, self.held.iter().fold(0, sum));
        assert!(self.released <= self.handed);
        assert!(self.handed <= self.released + self.held.len() as u64);
    }
}
