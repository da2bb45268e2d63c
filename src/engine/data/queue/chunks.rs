//! A sorted list of small values in chunks: cheap at both ends, affordable in the middle.
//! Does not know what its values mean.
//!
//! ```text
//! directory   [first, start, end, box] [first, start, end, box] ...       24 B per chunk
//!                                |                        |
//! chunks                     . . 4 5 7 9              11 12 18 . .      N values, sorted by key
//! ```
//!
//! A value is found by a binary search over the directory, then inside one chunk. Chunks that fall
//! empty wait in a bounded free list, so a list that breathes does not allocate.

use std::collections::VecDeque;

/// A value with a place in the order; no two values of a list have the same key.
pub(crate) trait Keyed: Copy + Default {
    /// Where the value belongs. May change while the value keeps its place between its neighbours.
    fn key(&self) -> u64;
}

/// Where a value stands; good until the list changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct At {
    chunk: usize,
    idx: usize,
}

/// Where a value stood when it was found: a guess for the next lookup, right or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hint {
    chunk: usize,
    /// In the chunk's memory, so that values taken from its start change nothing.
    item: usize,
}

impl Hint {
    /// No guess.
    pub(crate) const NONE: Self = Self {
        chunk: usize::MAX,
        item: 0,
    };
}

struct Chunk<T, const N: usize> {
    /// At most the first value's key, above every key of the chunk before.
    first: u64,
    /// Values are `start..end` of `items`; never empty.
    start: u16,
    end: u16,
    items: Box<[T; N]>,
}

impl<T: Keyed, const N: usize> Chunk<T, N> {
    fn len(&self) -> usize {
        usize::from(self.end) - usize::from(self.start)
    }

    fn values(&self) -> &[T] {
        &self.items[usize::from(self.start)..usize::from(self.end)]
    }

    fn values_mut(&mut self) -> &mut [T] {
        &mut self.items[usize::from(self.start)..usize::from(self.end)]
    }

    /// Moves the values to the start of the chunk.
    fn settle_down(&mut self) {
        let (start, end) = (usize::from(self.start), usize::from(self.end));
        self.items.copy_within(start..end, 0);
        self.end -= self.start;
        self.start = 0;
    }
}

/// Free chunks kept for later, or an eighth of those in use if that is more.
const FREE_CHUNKS_MIN: usize = 16;

/// A directory of so many chunks is never shrunk.
const DIRECTORY_KEPT: usize = 1024;

/// The list: `N` values to a chunk.
pub(crate) struct Chunks<T, const N: usize> {
    directory: VecDeque<Chunk<T, N>>,
    free: Vec<Box<[T; N]>>,
    len: usize,
}

impl<T: Keyed, const N: usize> Chunks<T, N> {
    const FITS: () = assert!(N >= 8 && N <= u16::MAX as usize);

    /// An empty list; owns no memory yet.
    pub(crate) const fn new() -> Self {
        let () = Self::FITS;
        Self {
            directory: VecDeque::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    /// Number of values.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value with the smallest key.
    pub(crate) fn first(&self) -> Option<T> {
        self.directory.front().map(|chunk| chunk.values()[0])
    }

    /// The value with the largest key.
    pub(crate) fn last(&self) -> Option<T> {
        self.directory
            .back()
            .map(|chunk| chunk.items[usize::from(chunk.end) - 1])
    }

    /// Where the value with the smallest key stands.
    pub(crate) fn first_at(&self) -> Option<At> {
        (!self.is_empty()).then_some(At { chunk: 0, idx: 0 })
    }

    /// Where the value with the largest key stands.
    pub(crate) fn last_at(&self) -> Option<At> {
        let chunk = self.directory.len().checked_sub(1)?;
        Some(At {
            chunk,
            idx: self.directory[chunk].len() - 1,
        })
    }

    pub(crate) fn get(&self, at: At) -> T {
        self.directory[at.chunk].values()[at.idx]
    }

    /// Changes the value in place; its key must stay between those of its neighbours.
    pub(crate) fn set(&mut self, at: At, value: T) {
        let chunk = &mut self.directory[at.chunk];
        if at.idx == 0 {
            chunk.first = chunk.first.min(value.key());
        }
        chunk.values_mut()[at.idx] = value;
        let is_last = at.idx + 1 == chunk.len();
        // A raised key may pass what the chunk above claims since it held smaller keys.
        if is_last
            && let Some(above) = self.directory.get_mut(at.chunk + 1)
            && above.first <= value.key()
        {
            above.first = above.values()[0].key();
        }
    }

    /// The next place up.
    pub(crate) fn next(&self, at: At) -> Option<At> {
        if at.idx + 1 < self.directory[at.chunk].len() {
            return Some(At {
                chunk: at.chunk,
                idx: at.idx + 1,
            });
        }
        (at.chunk + 1 < self.directory.len()).then_some(At {
            chunk: at.chunk + 1,
            idx: 0,
        })
    }

    /// The next place down.
    pub(crate) fn previous(&self, at: At) -> Option<At> {
        if at.idx > 0 {
            return Some(At {
                chunk: at.chunk,
                idx: at.idx - 1,
            });
        }
        let chunk = at.chunk.checked_sub(1)?;
        Some(At {
            chunk,
            idx: self.directory[chunk].len() - 1,
        })
    }

    /// The value with the largest key that is at most `key`.
    pub(crate) fn at_or_below(&self, key: u64) -> Option<At> {
        self.at_or_below_hinted(key, Hint::NONE)
    }

    /// The same, trying where `hint` says and its neighbours first: of a list that is not in the
    /// processor's cache each value looked at is a wait.
    pub(crate) fn at_or_below_hinted(&self, key: u64, hint: Hint) -> Option<At> {
        let Hint { chunk: hint, item } = hint;
        let holds = |chunk: usize| {
            self.directory.get(chunk).is_some_and(|c| c.first <= key)
                && self
                    .directory
                    .get(chunk + 1)
                    .is_none_or(|after| after.first > key)
        };
        let chunk = if hint != usize::MAX && holds(hint) {
            hint
        } else if hint != usize::MAX && holds(hint + 1) {
            hint + 1
        } else if hint != usize::MAX && hint > 0 && holds(hint - 1) {
            hint - 1
        } else if self.directory.front().is_some_and(|c| {
            c.first <= key && self.directory.get(1).is_none_or(|after| after.first > key)
        }) {
            0
        } else {
            self.directory
                .partition_point(|chunk| chunk.first <= key)
                .checked_sub(1)?
        };
        let values = self.directory[chunk].values();
        let is_it = |idx: usize| {
            values.get(idx).is_some_and(|value| value.key() <= key)
                && values.get(idx + 1).is_none_or(|after| after.key() > key)
        };
        let guess = item.saturating_sub(usize::from(self.directory[chunk].start));
        let near = [guess, guess + 1, 0].into_iter().find(|idx| is_it(*idx));
        if let Some(idx) = near {
            return Some(At { chunk, idx });
        }
        let at = if values[values.len() - 1].key() <= key {
            values.len()
        } else {
            values.partition_point(|value| value.key() <= key)
        };
        match at.checked_sub(1) {
            Some(idx) => Some(At { chunk, idx }),
            // `first` may lag behind the first value's key.
            None => self.previous(At { chunk, idx: 0 }),
        }
    }

    /// A place as a hint for [`Chunks::at_or_below_hinted`].
    pub(crate) fn hint(&self, at: At) -> Hint {
        Hint {
            chunk: at.chunk,
            item: usize::from(self.directory[at.chunk].start) + at.idx,
        }
    }

    /// Adds a value above all others.
    pub(crate) fn push_back(&mut self, value: T) {
        self.len += 1;
        if let Some(chunk) = self.directory.back_mut() {
            debug_assert!(chunk.items[usize::from(chunk.end) - 1].key() < value.key());
            if usize::from(chunk.end) == N && usize::from(chunk.start) >= N / 2 {
                chunk.settle_down();
            }
            if usize::from(chunk.end) < N {
                chunk.items[usize::from(chunk.end)] = value;
                chunk.end += 1;
                return;
            }
        }
        let mut items = self.fresh_items();
        items[0] = value;
        self.directory.push_back(Chunk {
            first: value.key(),
            start: 0,
            end: 1,
            items,
        });
    }

    /// Adds a value where it belongs.
    pub(crate) fn insert(&mut self, value: T) {
        let key = value.key();
        let Some(below) = self.at_or_below(key) else {
            if self.is_empty() {
                self.push_back(value);
            } else {
                self.insert_into(0, 0, value);
            }
            return;
        };
        debug_assert!(self.get(below).key() != key);
        let Some(above) = self.next(below) else {
            self.push_back(value);
            return;
        };
        // The chunk above may claim the key already: its `first` lags behind its first value.
        if above.idx == 0 && self.directory[above.chunk].first <= key {
            self.insert_into(above.chunk, 0, value);
        } else {
            self.insert_into(below.chunk, below.idx + 1, value);
        }
    }

    fn insert_into(&mut self, mut chunk: usize, mut idx: usize, value: T) {
        if self.directory[chunk].len() == N {
            self.split(chunk);
            let left = self.directory[chunk].len();
            if idx > left {
                chunk += 1;
                idx -= left;
            }
        }
        let target = &mut self.directory[chunk];
        if idx == 0 && target.start > 0 {
            target.start -= 1;
        } else {
            if usize::from(target.end) == N {
                target.settle_down();
            }
            let from = usize::from(target.start) + idx;
            let end = usize::from(target.end);
            target.items.copy_within(from..end, from + 1);
            target.end += 1;
        }
        let at = usize::from(target.start) + idx;
        target.items[at] = value;
        if idx == 0 {
            target.first = target.first.min(value.key());
        }
        self.len += 1;
    }

    fn split(&mut self, chunk: usize) {
        let mut items = self.fresh_items();
        let source = &mut self.directory[chunk];
        debug_assert_eq!(source.len(), N);
        let half = N / 2;
        items[..N - half].copy_from_slice(&source.items[half..]);
        source.end = half as u16;
        let first = items[0].key();
        self.directory.insert(
            chunk + 1,
            Chunk {
                first,
                start: 0,
                end: (N - half) as u16,
                items,
            },
        );
    }

    /// Removes the value there.
    pub(crate) fn remove(&mut self, at: At) {
        let chunk = &mut self.directory[at.chunk];
        if at.idx == 0 {
            chunk.start += 1;
        } else {
            let from = usize::from(chunk.start) + at.idx;
            let end = usize::from(chunk.end);
            chunk.items.copy_within(from + 1..end, from);
            chunk.end -= 1;
        }
        self.len -= 1;
        self.tidy(at.chunk);
    }

    /// Visits values upwards from `at`; `visit` may change the value in place and says what becomes
    /// of it. Costs a move for each value that stays behind a removed one, chunk by chunk.
    pub(crate) fn sweep(&mut self, at: At, visit: impl FnMut(&mut T) -> Sweep) {
        let final_chunk = self.sweep_chunks(at, visit);
        // Only the chunks at both ends can have become sparse in a sweep that removes a range.
        if final_chunk != at.chunk && final_chunk < self.directory.len() {
            self.tidy(final_chunk);
        }
        if at.chunk < self.directory.len() {
            self.tidy(at.chunk);
        }
    }

    /// The sweep without merging; returns the chunk it ended in.
    fn sweep_chunks(&mut self, at: At, mut visit: impl FnMut(&mut T) -> Sweep) -> usize {
        let (mut chunk_idx, mut idx) = (at.chunk, at.idx);
        while chunk_idx < self.directory.len() {
            let chunk = &mut self.directory[chunk_idx];
            let values = chunk.values_mut();
            let count = values.len();
            let from = idx;
            let mut kept = from;
            let mut read = from;
            let mut going = true;
            while going && read < count {
                let mut value = values[read];
                let verdict = visit(&mut value);
                match verdict {
                    Sweep::Stop => break,
                    Sweep::Keep => {
                        values[kept] = value;
                        kept += 1;
                        read += 1;
                    }
                    Sweep::Remove => read += 1,
                    Sweep::KeepAndStop => {
                        values[kept] = value;
                        kept += 1;
                        read += 1;
                        going = false;
                    }
                }
            }
            let stopped = !going || read < count;
            let removed = read - kept;
            if removed > 0 {
                if kept == 0 {
                    chunk.start += removed as u16;
                } else {
                    let base = usize::from(chunk.start);
                    let end = usize::from(chunk.end);
                    chunk.items.copy_within(base + read..end, base + kept);
                    chunk.end -= removed as u16;
                }
                self.len -= removed;
            }
            idx = 0;
            if chunk.len() == 0 {
                self.drop_chunk(chunk_idx);
            } else if !stopped {
                chunk_idx += 1;
            }
            if stopped {
                break;
            }
        }
        chunk_idx
    }

    /// Removes every value with a key at or above `key`.
    pub(crate) fn truncate_from(&mut self, key: u64) {
        while let Some(at) = self.last_at() {
            if self.get(at).key() < key {
                return;
            }
            let chunk = &mut self.directory[at.chunk];
            chunk.end -= 1;
            self.len -= 1;
            if chunk.len() == 0 {
                self.drop_chunk(at.chunk);
            }
        }
    }

    /// Removes everything.
    pub(crate) fn clear(&mut self) {
        while !self.directory.is_empty() {
            self.drop_chunk(self.directory.len() - 1);
        }
        self.len = 0;
    }

    /// Drops the chunk if it is empty, or merges a sparse one with a neighbour that has room.
    fn tidy(&mut self, chunk: usize) {
        let len = self.directory[chunk].len();
        if len == 0 {
            self.drop_chunk(chunk);
            return;
        }
        // The chunk at the front drains by itself; merging there would only move values twice.
        if chunk == 0 || len > N / 2 || self.directory.len() == 1 {
            return;
        }
        let room = |other: usize| {
            self.directory
                .get(other)
                .is_some_and(|other| other.len() + len <= N)
        };
        if room(chunk + 1) {
            self.merge(chunk);
        } else if chunk > 1 && room(chunk - 1) {
            self.merge(chunk - 1);
        }
    }

    /// Appends the values of the chunk after to this one.
    fn merge(&mut self, chunk: usize) {
        let after = self
            .directory
            .remove(chunk + 1)
            .expect("the neighbour exists");
        let target = &mut self.directory[chunk];
        target.settle_down();
        let (end, more) = (usize::from(target.end), after.len());
        target.items[end..end + more].copy_from_slice(after.values());
        target.end += more as u16;
        self.keep_free(after.items);
    }

    fn drop_chunk(&mut self, chunk: usize) {
        let dropped = self.directory.remove(chunk).expect("the chunk exists");
        self.keep_free(dropped.items);
        let capacity = self.directory.capacity();
        if capacity > DIRECTORY_KEPT && self.directory.len() < capacity / 8 {
            self.directory.shrink_to(capacity / 2);
        }
    }

    fn keep_free(&mut self, items: Box<[T; N]>) {
        self.free.push(items);
        let free_max = FREE_CHUNKS_MIN.max(self.directory.len() / 8);
        self.free.truncate(free_max);
    }

    fn fresh_items(&mut self) -> Box<[T; N]> {
        self.free
            .pop()
            .unwrap_or_else(|| Box::new([T::default(); N]))
    }

    /// Every value, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.directory
            .iter()
            .flat_map(|chunk| chunk.values().iter().copied())
    }

    /// Checks the order, the directory and the count; O(n).
    pub(crate) fn invariants(&self) {
        let mut below = None;
        let mut count = 0;
        for chunk in &self.directory {
            assert!(chunk.len() > 0, "an empty chunk is in the directory");
            assert!(chunk.first <= chunk.values()[0].key());
            assert!(below.is_none_or(|below| below < chunk.first));
            for value in chunk.values() {
                assert!(below.is_none_or(|below| below < value.key()));
                below = Some(value.key());
                count += 1;
            }
        }
        assert_eq!(count, self.len);
    }
}

/// What becomes of a value that was visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sweep {
    /// It stays; go on.
    Keep,
    /// It goes; go on.
    Remove,
    /// It stays; visit no more.
    KeepAndStop,
    /// As if it had not been visited; visit no more.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    struct Pair(u64, u32);

    impl Keyed for Pair {
        fn key(&self) -> u64 {
            self.0
        }
    }

    /// Random operations on small chunks agree with a tree map.
    #[test]
    fn a_list_agrees_with_a_map() {
        let mut state = 1u64;
        let mut below = |end: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        for round in 0..20 {
            let mut list: Chunks<Pair, 8> = Chunks::new();
            let mut map = BTreeMap::new();
            for step in 0..5_000u32 {
                let key = below(400);
                match below(if step % 1_000 < 600 { 6 } else { 9 }) {
                    0..=2 => {
                        if map.insert(key, step).is_none() {
                            list.insert(Pair(key, step));
                        } else {
                            let at = list.at_or_below(key).expect("it is there");
                            list.set(at, Pair(key, step));
                        }
                    }
                    3 => {
                        let key = map.last_key_value().map_or(0, |(last, _)| last + 1);
                        map.insert(key, step);
                        list.push_back(Pair(key, step));
                    }
                    4 | 5 => {
                        let found = list.at_or_below_hinted(
                            key,
                            Hint {
                                chunk: below(10) as usize,
                                item: below(10) as usize,
                            },
                        );
                        let expected = map.range(..=key).next_back();
                        assert_eq!(found.map(|at| list.get(at).0), expected.map(|(k, _)| *k));
                        if let Some(at) = found.filter(|_| step % 2 == 0) {
                            map.remove(&list.get(at).0);
                            list.remove(at);
                        }
                    }
                    6 => {
                        // A key may change while the order holds.
                        if let Some(at) = list.first_at() {
                            let Pair(first, value) = list.get(at);
                            let above = list.next(at).map_or(first + 2, |at| list.get(at).0);
                            let key = first + below(above - first);
                            map.remove(&first);
                            map.insert(key, value);
                            list.set(at, Pair(key, value));
                        }
                    }
                    7 => {
                        let (end, keep) = (key + below(60), below(5) + 1);
                        let Some(at) = list.at_or_below(key) else {
                            continue;
                        };
                        let from = list.get(at).0;
                        let goes = |key: u64| key.is_multiple_of(keep);
                        list.sweep(at, |pair| match pair.0 {
                            key if key > end => Sweep::Stop,
                            key if goes(key) => Sweep::Remove,
                            _ => Sweep::Keep,
                        });
                        map.retain(|key, _| !(from..=end).contains(key) || !goes(*key));
                    }
                    _ => {
                        if round % 2 == 0 && below(20) == 0 {
                            list.truncate_from(key);
                            map.split_off(&key);
                        }
                    }
                }
                list.invariants();
                assert!(list.iter().eq(map.iter().map(|(k, v)| Pair(*k, *v))));
            }
            list.clear();
            assert!(list.is_empty() && list.first().is_none() && list.last_at().is_none());
        }
    }
}
