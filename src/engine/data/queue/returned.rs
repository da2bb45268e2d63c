//! Messages that were delivered and came back, and those that a rank or a delay has set apart: by rank,
//! in their original order, with their delivery counts. Does not know where they lie or who gave them
//! back.

use std::collections::VecDeque;

use super::chunks::{Chunks, Keyed};
use super::delayed::Delayed;
use super::expiry::Ms;
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

/// Consecutive messages that came back or were set apart, 16 bytes.
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

    /// Its messages up to `last`.
    pub(crate) fn upto(&self, last: u64) -> Self {
        Self {
            count: (last.min(self.last()) - self.first + 1) as u32,
            ..*self
        }
    }

    /// Its messages from `first` on; `None` if there are none.
    pub(crate) fn from(&self, first: u64) -> Option<Self> {
        let cut = first.saturating_sub(self.first);
        let count = u64::from(self.count).checked_sub(cut).filter(|n| *n > 0)?;
        Some(Self {
            first: self.first + cut,
            count: count as u32,
            ..*self
        })
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

/// What waits for its delivery counts to be durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) span: Returned,
    /// Of what is deliverable then.
    pub(crate) rank: u8,
    /// Until when it waits in any case; `None`: it is deliverable once its counts are durable.
    pub(crate) due: Option<Ms>,
}

impl Held {
    fn joins(&self, after: &Self) -> bool {
        self.span.joins(&after.span) && self.rank == after.rank && self.due == after.due
    }
}

/// All messages of a queue that came back or were set apart.
pub(crate) struct ReturnedSet {
    /// Deliverable, in order of sequence; neighbours that join are one. Of rank 0.
    lowest: Level,
    /// The same for ranks from 1 on, as far as there were any.
    above: Vec<Level>,
    ready_count: u64,
    /// Not deliverable until their counts are durable, in the order they came back.
    held: VecDeque<Held>,
    held_count: u64,
    /// Of those, the ones that are delayed.
    held_delayed: u64,
    /// Spans ever taken off the front of `held`.
    released: u64,
    /// Spans ever handed out for the journal; those may not grow any more.
    handed: u64,
}

type Level = Chunks<Returned, 32>;

impl ReturnedSet {
    pub(crate) const fn new() -> Self {
        Self {
            lowest: Chunks::new(),
            above: Vec::new(),
            ready_count: 0,
            held: VecDeque::new(),
            held_count: 0,
            held_delayed: 0,
            released: 0,
            handed: 0,
        }
    }

    /// Messages that are here and not delayed, deliverable or held.
    pub(crate) fn count(&self) -> u64 {
        self.ready_count + self.held_count - self.held_delayed
    }

    /// Delayed messages that wait for their counts.
    pub(crate) fn held_delayed(&self) -> u64 {
        self.held_delayed
    }

    /// Messages that go once their counts are durable.
    pub(crate) fn held_ready(&self) -> u64 {
        self.held_count - self.held_delayed
    }

    /// Deliverable messages.
    pub(crate) fn ready_count(&self) -> u64 {
        self.ready_count
    }

    /// Whether messages wait for their counts.
    pub(crate) fn is_holding(&self) -> bool {
        self.held_count > 0
    }

    /// The lowest message of a rank that goes once its count is durable. They came back in any order,
    /// but few at a time.
    pub(crate) fn held_first(&self, rank: u8) -> Option<u64> {
        let held = self.held.iter();
        let own = held.filter(|held| held.rank == rank && held.due.is_none());
        own.map(|held| held.span.first).min()
    }

    /// The largest rank that there ever was.
    pub(crate) fn rank_max(&self) -> u8 {
        self.above.len() as u8
    }

    /// The next deliverable messages of a rank.
    pub(crate) fn first(&self, rank: u8) -> Option<Returned> {
        match rank {
            0 => self.lowest.first(),
            _ => self.above.get(usize::from(rank) - 1)?.first(),
        }
    }

    /// The rank of a deliverable message, and how often it was delivered.
    pub(crate) fn find(&self, sequence: u64) -> Option<(u8, u32)> {
        (0..).zip(self.levels()).find_map(|(rank, level)| {
            let span = level.get(level.at_or_below(sequence)?);
            (span.last() >= sequence).then_some((rank, span.deliveries))
        })
    }

    /// What a message waits for that waits for its count.
    pub(crate) fn find_held(&self, sequence: u64) -> Option<Held> {
        let is_in = |held: &&Held| (held.span.first..=held.span.last()).contains(&sequence);
        self.held.iter().find(is_in).copied()
    }

    /// Takes one deliverable message of a rank, which is there.
    pub(crate) fn take_one(&mut self, rank: u8, sequence: u64) {
        self.ready_count -= 1;
        let level = self.level(rank);
        let at = level.at_or_below(sequence).expect("it is there");
        let span = level.get(at);
        if span.first == sequence {
            match span.from(sequence + 1) {
                Some(rest) => level.set(at, rest),
                None => level.remove(at),
            }
            return;
        }
        level.set(at, span.upto(sequence - 1));
        if let Some(rest) = span.from(sequence + 1) {
            level.insert(rest);
        }
    }

    fn level(&mut self, rank: u8) -> &mut Level {
        if rank == 0 {
            return &mut self.lowest;
        }
        let rank = usize::from(rank);
        if self.above.len() < rank {
            self.above.resize_with(rank, Chunks::new);
        }
        &mut self.above[rank - 1]
    }

    fn levels(&self) -> impl Iterator<Item = &Level> {
        std::iter::once(&self.lowest).chain(&self.above)
    }

    /// Keeps messages back until their counts are durable.
    pub(crate) fn hold(&mut self, held: Held) {
        let count = u64::from(held.span.count);
        self.held_count += count;
        if held.due.is_some() {
            self.held_delayed += count;
        }
        if self.handed < self.released + self.held.len() as u64
            && let Some(last) = self.held.back_mut()
            && last.joins(&held)
        {
            last.span.count += held.span.count;
        } else {
            self.held.push_back(held);
        }
    }

    /// Keeps all messages back that were delivered until their counts are durable.
    pub(crate) fn hold_all(&mut self, delayed: &mut Delayed) {
        for rank in 0..=self.rank_max() {
            let level = std::mem::replace(self.level(rank), Chunks::new());
            for span in level.iter() {
                self.ready_count -= u64::from(span.count);
                match span.deliveries {
                    0 => self.insert(rank, span),
                    _ => self.hold(Held {
                        span,
                        rank,
                        due: None,
                    }),
                }
            }
        }
        let mut waiting = Vec::new();
        delayed.drain(|due, span| waiting.push((due, span)));
        for (due, span) in waiting {
            match span.deliveries {
                0 => delayed.insert(due, span),
                _ => self.hold(Held {
                    span,
                    rank: 0,
                    due: Some(due),
                }),
            }
        }
    }

    /// Appends the counts not handed out yet.
    pub(crate) fn take_counts(&mut self, out: &mut Vec<CountRange>) -> CountsUpto {
        let already = (self.handed - self.released) as usize;
        out.extend(self.held.range(already..).map(|held| held.span.counts()));
        self.handed = self.released + self.held.len() as u64;
        CountsUpto(self.handed)
    }

    /// Counts up to `upto` are durable: their messages are deliverable, or wait in `delayed`.
    pub(crate) fn release(&mut self, upto: CountsUpto, delayed: &mut Delayed) {
        assert!(upto.0 <= self.handed);
        while self.released < upto.0 {
            let held = self.held.pop_front().expect("handed out and not released");
            let count = u64::from(held.span.count);
            self.held_count -= count;
            self.released += 1;
            match held.due {
                Some(due) => {
                    self.held_delayed -= count;
                    delayed.insert(due, held.span);
                }
                None => self.insert(held.rank, held.span),
            }
        }
    }

    /// Makes messages of a rank deliverable.
    pub(crate) fn insert(&mut self, rank: u8, mut span: Returned) {
        self.ready_count += u64::from(span.count);
        let level = self.level(rank);
        let below = level.at_or_below(span.first);
        let above = match below {
            Some(at) => level.next(at),
            None => level.first_at(),
        };
        debug_assert!(below.is_none_or(|at| level.get(at).last() < span.first));
        if let Some(above) = above {
            let after = level.get(above);
            debug_assert!(span.last() < after.first);
            if span.joins(&after) {
                span.count += after.count;
                if let Some(below) = below
                    && level.get(below).joins(&span)
                {
                    span.count += level.get(below).count;
                    span.first = level.get(below).first;
                    level.set(below, span);
                    level.remove(above);
                } else {
                    level.set(above, span);
                }
                return;
            }
        }
        if let Some(below) = below {
            let mut before = level.get(below);
            if before.joins(&span) {
                before.count += span.count;
                level.set(below, before);
                return;
            }
        }
        level.insert(span);
    }

    /// Takes the first `count` messages of the first span of a rank.
    pub(crate) fn take_first(&mut self, rank: u8, count: u32) {
        self.ready_count -= u64::from(count);
        let level = self.level(rank);
        let at = level.first_at().expect("there is a first span");
        let mut span = level.get(at);
        assert!(count <= span.count);
        if count == span.count {
            level.remove(at);
        } else {
            span.first += u64::from(count);
            span.count -= count;
            level.set(at, span);
        }
    }

    /// Messages from `sequence` on are gone, none of which was delivered; how many that were.
    pub(crate) fn truncate_from(&mut self, sequence: u64) -> u64 {
        let mut gone = 0;
        for rank in 0..=self.rank_max() {
            let level = self.level(rank);
            while let Some(span) = level.last()
                && span.last() >= sequence
            {
                let kept = sequence.saturating_sub(span.first) as u32;
                gone += u64::from(span.count - kept);
                let at = level.at_or_below(span.first).expect("it is the last one");
                match kept {
                    0 => level.remove(at),
                    count => level.set(at, Returned { count, ..span }),
                }
            }
        }
        self.ready_count -= gone;
        gone
    }

    /// Empties the set, telling each span.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Returned)) {
        for rank in 0..=self.rank_max() {
            let level = self.level(rank);
            level.iter().for_each(&mut each);
            level.clear();
        }
        self.ready_count = 0;
        self.released += self.held.len() as u64;
        self.handed = self.handed.max(self.released);
        self.held.drain(..).for_each(|held| each(held.span));
        self.held_count = 0;
        self.held_delayed = 0;
    }

    /// Every span, deliverable ones first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Returned> + '_ {
        let ready = self.levels().flat_map(Chunks::iter);
        ready.chain(self.held.iter().map(|held| held.span))
    }

    /// Those of rank 0 that are deliverable or will be, and those of other ranks.
    pub(crate) fn by_rank(&self) -> impl Iterator<Item = (u8, Returned)> + '_ {
        let ready = (0..).zip(self.levels());
        let ready = ready.flat_map(|(rank, level)| level.iter().map(move |span| (rank, span)));
        let held = self.held.iter().filter(|held| held.due.is_none());
        ready.chain(held.map(|held| (held.rank, held.span)))
    }

    /// What is delayed and waits for its counts.
    pub(crate) fn iter_held_delayed(&self) -> impl Iterator<Item = (Ms, Returned)> + '_ {
        let held = self.held.iter();
        held.filter_map(|held| Some((held.due?, held.span)))
    }

    pub(crate) fn invariants(&self) {
        let sum = |count: u64, span: &Returned| count + u64::from(span.count);
        let mut ready = 0;
        for level in self.levels() {
            level.invariants();
            let mut below = 0;
            for span in level.iter() {
                assert!(span.count > 0 && span.first > below, "spans overlap");
                below = span.last();
                ready = sum(ready, &span);
            }
        }
        assert_eq!(self.ready_count, ready);
        let held = self.held.iter().map(|held| held.span);
        assert_eq!(self.held_count, held.fold(0, |n, span| sum(n, &span)));
        let delayed = self.iter_held_delayed().map(|(_, span)| span);
        assert_eq!(self.held_delayed, delayed.fold(0, |n, span| sum(n, &span)));
        assert!(self.held.iter().all(|held| held.span.deliveries > 0));
        assert!(self.released <= self.handed);
        assert!(self.handed <= self.released + self.held.len() as u64);
    }
}
