//! Messages of a queue that wait for their time: delayed by their producers, or by the queue's retry
//! policy. Does not know when they arrived, nor which of them are durable.
//!
//! ```text
//!            near_end
//! near           │ far
//! in order       │ buckets of four seconds: in order only when their time has come
//! ───────────────┴──────[   ]──[       ]────[ ]──────────────► time
//! ```
//!
//! An entry of 24 bytes stands for consecutive messages that are due in the same millisecond, so that a
//! batch costs what one message costs. To set one apart that is due in an hour is to put it at the end of
//! a list, however many wait; a bucket is put in order once.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::expiry::Ms;
use super::returned::Returned;

/// A bucket is of so many ms, as a power of two.
const BUCKET_BITS: u32 = 12;

/// Consecutive messages that are due together.
#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Ms,
    first: u64,
    count: u32,
    /// How often each was delivered.
    deliveries: u32,
}

impl Entry {
    fn of(due: Ms, span: Returned) -> Self {
        Self {
            due,
            first: span.first,
            count: span.count,
            deliveries: span.deliveries,
        }
    }

    const fn key(&self) -> (Ms, u64) {
        (self.due, self.first)
    }

    fn span(&self) -> Returned {
        Returned::new(self.first, self.count, self.deliveries)
    }

    /// Takes in another one that goes on where this one ends, if it does.
    fn joins(&mut self, next: &Self) -> bool {
        let count = self.count.checked_add(next.count);
        let goes_on = self.due == next.due
            && self.first + u64::from(self.count) == next.first
            && self.deliveries == next.deliveries;
        match count.filter(|_| goes_on) {
            Some(count) => {
                self.count = count;
                true
            }
            None => false,
        }
    }

    /// Messages from `sequence` on are gone; whether some are left.
    fn truncate_from(&mut self, sequence: u64) -> bool {
        let kept = sequence.saturating_sub(self.first);
        self.count = kept.min(u64::from(self.count)) as u32;
        self.count > 0
    }
}

/// What is due within the same four seconds.
#[derive(Debug)]
enum Bucket {
    One(Entry),
    Many(Box<Many>),
}

#[derive(Debug)]
struct Many {
    entries: Vec<Entry>,
    is_in_order: bool,
    /// When the first of them is due.
    due: Ms,
}

impl Bucket {
    fn push(&mut self, entry: Entry) {
        match self {
            Self::One(one) => {
                if !one.joins(&entry) {
                    *self = Self::Many(Box::new(Many {
                        due: one.due.min(entry.due),
                        is_in_order: one.key() < entry.key(),
                        entries: vec![*one, entry],
                    }));
                }
            }
            Self::Many(many) => {
                let last = many.entries.last_mut().expect("it has several");
                if !last.joins(&entry) {
                    many.is_in_order &= last.key() < entry.key();
                    many.entries.push(entry);
                    many.due = many.due.min(entry.due);
                }
            }
        }
    }

    fn entries(&self) -> &[Entry] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => &many.entries,
        }
    }

    fn first_due(&self) -> Ms {
        match self {
            Self::One(one) => one.due,
            Self::Many(many) => many.due,
        }
    }

    /// Puts its entries in order.
    fn in_order(&mut self) -> &[Entry] {
        if let Self::Many(many) = self
            && !many.is_in_order
        {
            many.entries.sort_unstable_by_key(Entry::key);
            many.is_in_order = true;
        }
        self.entries()
    }

    /// Puts others in the place of an entry, where they belong; whether nothing is left.
    fn replace(&mut self, key: &(Ms, u64), by: Vec<Entry>) -> bool {
        let found = self.in_order().binary_search_by_key(key, Entry::key);
        let at = found.expect("an entry is in its bucket");
        let entries = match self {
            Self::One(_) => by,
            Self::Many(many) => {
                many.entries.splice(at..=at, by);
                std::mem::take(&mut many.entries)
            }
        };
        match entries.as_slice() {
            [] => return true,
            [one] => *self = Self::One(*one),
            [first, ..] => {
                let due = first.due;
                *self = Self::Many(Box::new(Many {
                    due,
                    is_in_order: true,
                    entries,
                }));
            }
        }
        false
    }

    /// Its entries in order.
    fn sorted(&self) -> Vec<Entry> {
        let mut entries = self.entries().to_vec();
        entries.sort_unstable_by_key(Entry::key);
        entries
    }
}

/// The messages that wait.
#[derive(Debug)]
pub(crate) struct Delayed {
    /// What is due before `near_end`.
    near: BTreeMap<(Ms, u64), Entry>,
    near_end: Ms,
    /// The rest, by due time.
    far: BTreeMap<Ms, Bucket>,
    count: u64,
}

impl Delayed {
    pub(crate) const fn new() -> Self {
        Self {
            near: BTreeMap::new(),
            near_end: 0,
            far: BTreeMap::new(),
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
        let far = self.far.values().map(|bucket| bucket.entries().len());
        self.near.len() + far.sum::<usize>()
    }

    /// Messages wait until `due`.
    pub(crate) fn insert(&mut self, due: Ms, span: Returned) {
        self.count += u64::from(span.count);
        let entry = Entry::of(due, span);
        if due >= self.near_end {
            let bucket = self.far.entry(due >> BUCKET_BITS);
            bucket
                .and_modify(|bucket| bucket.push(entry))
                .or_insert(Bucket::One(entry));
            return;
        }
        let before = self.near.range_mut(..entry.key()).next_back();
        if before.is_none_or(|(_, before)| !before.joins(&entry)) {
            let known = self.near.insert(entry.key(), entry);
            debug_assert!(known.is_none());
        }
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Ms> {
        match self.near.first_key_value() {
            Some(((due, _), _)) => Some(*due),
            None => Some(self.far.first_key_value()?.1.first_due()),
        }
    }

    /// Takes messages that are due.
    pub(crate) fn take_due(&mut self, now: Ms) -> Option<Returned> {
        if self.next_due().is_none_or(|due| due > now) {
            return None;
        }
        if self.near.is_empty() {
            self.bring_near();
        }
        let entry = self.near.first_entry().expect("it is due").remove();
        self.count -= u64::from(entry.count);
        Some(entry.span())
    }

    /// Puts the first bucket in order.
    fn bring_near(&mut self) {
        let (number, bucket) = self.far.pop_first().expect("something waits");
        self.near_end = (number + 1) << BUCKET_BITS;
        let entries = bucket.sorted().into_iter();
        self.near = entries.map(|entry| (entry.key(), entry)).collect();
    }

    /// The entry behind one, in order of time; the first one behind `None`. Puts the bucket that it comes
    /// to in order.
    pub(crate) fn next_behind(&mut self, at: Option<(Ms, u64)>) -> Option<(Ms, Returned)> {
        let from = at.map_or(Bound::Unbounded, Bound::Excluded);
        let near = self.near.range((from, Bound::Unbounded)).next();
        if let Some((_, entry)) = near {
            return Some((entry.due, entry.span()));
        }
        let number = at.map_or(Ms::MIN, |(due, _)| due >> BUCKET_BITS);
        for (_, bucket) in self.far.range_mut(number..) {
            let entries = bucket.in_order();
            let behind = at.map_or(0, |at| entries.partition_point(|entry| entry.key() <= at));
            if let Some(entry) = entries.get(behind) {
                return Some((entry.due, entry.span()));
            }
        }
        None
    }

    /// Takes some messages, in ascending order, out of an entry.
    pub(crate) fn take_out(&mut self, due: Ms, entry: Returned, taken: &[u64]) {
        self.count -= taken.len() as u64;
        let mut left = Vec::new();
        let mut from = entry.first;
        for sequence in taken.iter().copied().chain([entry.last() + 1]) {
            if from < sequence {
                let span = Returned::new(from, (sequence - from) as u32, entry.deliveries);
                left.push(Entry::of(due, span));
            }
            from = sequence + 1;
        }
        let key = (due, entry.first);
        if due < self.near_end {
            let known = self.near.remove(&key);
            debug_assert!(known.is_some());
            let left = left.into_iter().map(|entry| (entry.key(), entry));
            self.near.extend(left);
            return;
        }
        let number = due >> BUCKET_BITS;
        let bucket = self.far.get_mut(&number);
        let bucket = bucket.expect("an entry is in its bucket");
        if bucket.replace(&key, left) {
            self.far.remove(&number);
        }
    }

    /// Takes all of them.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Ms, Returned)) {
        for (due, span) in std::mem::replace(self, Self::new()).iter() {
            each(due, span);
        }
    }

    /// Messages from `sequence` on are gone; how many that were. Looks at every entry.
    pub(crate) fn truncate_from(&mut self, sequence: u64) -> u64 {
        let before = self.count;
        let mut left = Self::new();
        left.near_end = self.near_end;
        for (due, span) in self.iter() {
            let mut entry = Entry::of(due, span);
            if entry.truncate_from(sequence) {
                left.insert(due, entry.span());
            }
        }
        *self = left;
        before - self.count
    }

    /// When messages are due, in order of that.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ms, Returned)> + '_ {
        let far = self.far.values().flat_map(Bucket::sorted);
        let all = self.near.values().copied().chain(far);
        all.map(|entry| (entry.due, entry.span()))
    }

    pub(crate) fn invariants(&self) {
        let mut sum = 0;
        for (due, span) in self.iter() {
            assert!(span.count > 0);
            sum += u64::from(span.count);
            let is_near = self.near.contains_key(&(due, span.first));
            assert_eq!(is_near, due < self.near_end);
        }
        assert_eq!(self.count, sum);
        for (number, bucket) in &self.far {
            let dues = || bucket.entries().iter().map(|entry| entry.due);
            assert!(dues().all(|due| due >> BUCKET_BITS == *number));
            assert_eq!(dues().min(), Some(bucket.first_due()));
        }
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
    fn it_says_what_a_sorted_list_says() {
        let mut delayed = Delayed::new();
        let mut model: Vec<(Ms, u64)> = Vec::new();
        let mut random = 1_u64;
        let mut next = |below: u64| -> u64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        let (mut now, mut sequence): (Ms, u64) = (-50, 1);
        for step in 0..20_000 {
            if next(3) > 0 {
                // Near, far, and often the same as another one.
                let ahead = [10, 5_000, 100_000, 10_000_000][next(4) as usize];
                let due: Ms = now + (next(ahead) / 7 * 7) as Ms;
                delayed.insert(due, Returned::new(sequence, 1, 0));
                model.push((due, sequence));
                sequence += 1;
            } else {
                now += [1, 100, 10_000, 3_000_000][next(4) as usize];
                let mut due: Vec<(Ms, u64)> = Vec::new();
                model.retain(|wait| {
                    let is_due = wait.0 <= now;
                    due.extend(is_due.then_some(*wait));
                    !is_due
                });
                due.sort_unstable();
                let mut got = Vec::new();
                while let Some(span) = delayed.take_due(now) {
                    got.extend(span.first..span.first + u64::from(span.count));
                }
                let wanted: Vec<u64> = due.into_iter().map(|(_, sequence)| sequence).collect();
                assert_eq!(got, wanted, "at {now}");
            }
            assert_eq!(delayed.next_due(), model.iter().map(|wait| wait.0).min());
            assert_eq!(delayed.count(), model.len() as u64);
            if step % 700 == 0 {
                // A walk sees everything in order; every fifth message is taken out.
                let (mut at, mut seen) = (None, Vec::new());
                while let Some((due, span)) = delayed.next_behind(at) {
                    let all = span.first..span.first + u64::from(span.count);
                    seen.extend(all.clone().map(|sequence| (due, sequence)));
                    at = Some((due, span.last()));
                    let taken: Vec<u64> = all.filter(|sequence| sequence % 5 == 0).collect();
                    if !taken.is_empty() {
                        delayed.take_out(due, span, &taken);
                    }
                }
                model.sort_unstable();
                assert_eq!(seen, model);
                model.retain(|wait| wait.1 % 5 != 0);
                delayed.invariants();
            }
            if step % 500 == 0 {
                delayed.invariants();
                let gone = sequence - next(3);
                let cut = model.iter().filter(|wait| wait.1 >= gone).count() as u64;
                model.retain(|wait| wait.1 < gone);
                assert_eq!(delayed.truncate_from(gone), cut);
                delayed.invariants();
            }
        }
        model.sort_unstable();
        let mut left = Vec::new();
        delayed.drain(|due, span| {
            left.extend((0..u64::from(span.count)).map(|index| (due, span.first + index)));
        });
        assert_eq!(left, model);
        assert_eq!((delayed.count(), delayed.next_due()), (0, None));
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
