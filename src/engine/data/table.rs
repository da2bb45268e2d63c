//! The engine's hash table: the same operations give the same answers in every run.
//! Does not know what is stored, and never shows an order that depends on hashing.

use std::borrow::Borrow;
#[expect(
    clippy::disallowed_types,
    reason = "the one place that wraps it: fixed hasher, no iteration order"
)]
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};

/// A hash table with a fixed hasher whose iteration order cannot be observed: what runs on it is
/// deterministic, at the price that control code which needs all keys sorts them first.
///
/// The hasher is not keyed by a secret. Whoever can fill a table could choose colliding keys, so
/// tables hold what a principal was allowed to create under a limit (queues, bindings), never what
/// every message may bring.
#[derive(Clone)]
#[expect(
    clippy::disallowed_types,
    reason = "the one place that wraps it: fixed hasher, no iteration order"
)]
pub struct Table<K, V> {
    map: HashMap<K, V, Fixed>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            map: Default::default(),
        }
    }
}

impl<K, V> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("len", &self.map.len())
            .finish_non_exhaustive()
    }
}

impl<K: Hash + Eq, V> Table<K, V> {
    /// An empty table; allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty table with room for `capacity` entries.
    #[must_use]
    #[expect(clippy::disallowed_types, reason = "see Table")]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            map: HashMap::with_capacity_and_hasher(capacity, Fixed),
        }
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether `key` has an entry.
    pub fn contains<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.map.contains_key(key)
    }

    /// The value of `key`.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.map.get(key)
    }

    /// The value of `key`, to change.
    pub fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.map.get_mut(key)
    }

    /// The value of `key`, made by `make` if there was none.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        self.map.entry(key).or_insert_with(make)
    }

    /// Sets the value of `key`; the old one is given back.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.map.insert(key, value)
    }

    /// Removes the entry of `key`; its value is given back.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.map.remove(key)
    }

    /// Removes every entry; keeps the memory.
    pub fn clear(&mut self) {
        self.map.clear();
    }

    /// Room for `additional` more entries without allocating.
    pub fn reserve(&mut self, additional: usize) {
        self.map.reserve(additional);
    }

    /// Every key, sorted: O(n log n) and an allocation, for control code and timers only.
    #[must_use]
    pub fn keys_sorted(&self) -> Vec<K>
    where
        K: Ord + Clone,
    {
        let mut keys: Vec<K> = self.map.keys().cloned().collect();
        keys.sort_unstable();
        keys
    }
}

/// Builds [`FixedHasher`]s; holds no seed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Fixed;

impl BuildHasher for Fixed {
    type Hasher = FixedHasher;

    fn build_hasher(&self) -> FixedHasher {
        FixedHasher { state: SEED }
    }
}

/// A fast hasher for short keys: one 64 × 64 → 128 bit multiplication per 16 bytes, folded.
#[derive(Clone, Debug)]
pub struct FixedHasher {
    state: u64,
}

// Digits of pi: nothing up the sleeve, and odd bit patterns in every byte.
const SEED: u64 = 0x2437_3d3b_a8e0_5d8f;
const MIX_A: u64 = 0x243f_6a88_85a3_08d3;
const MIX_B: u64 = 0x1319_8a2e_0370_7344;

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        self.state = hash_bytes(self.state, bytes);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.state = fold(self.state ^ value, MIX_A);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// A hash of `bytes` that starts from `seed`, equal on every machine and in every run of this
/// version. Not for anything on disk: it may change between versions.
#[must_use]
pub fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(MIX_B);
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        state = fold(state ^ read_u64(chunk, 0), MIX_B ^ read_u64(chunk, 8));
    }
    let rest = chunks.remainder();
    // The ends overlap instead of being padded: no branch per byte, every byte counts.
    let (low, high) = match rest.len() {
        0 => (0, 0),
        1..=3 => {
            let middle = rest[rest.len() / 2];
            let word = [rest[0], middle, rest[rest.len() - 1]];
            (
                u64::from(word[0]) | u64::from(word[1]) << 8 | u64::from(word[2]) << 16,
                0,
            )
        }
        4..=7 => (read_u32(rest, 0), read_u32(rest, rest.len() - 4)),
        _ => (read_u64(rest, 0), read_u64(rest, rest.len() - 8)),
    };
    fold(state ^ low, MIX_A ^ high)
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let word: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes");
    u64::from_le_bytes(word)
}

fn read_u32(bytes: &[u8], at: usize) -> u64 {
    let word: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
    u64::from(u32::from_le_bytes(word))
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_a_map() {
        let mut table: Table<Box<[u8]>, u32> = Table::with_capacity(4);
        assert_eq!(table.insert(Box::from(&b"b"[..]), 1), None);
        assert_eq!(table.insert(Box::from(&b"a"[..]), 2), None);
        assert_eq!(table.insert(Box::from(&b"b"[..]), 3), Some(1));
        assert_eq!(table.get(&b"b"[..]), Some(&3));
        assert_eq!(
            table.keys_sorted(),
            [Box::from(&b"a"[..]), Box::from(&b"b"[..])]
        );
        assert_eq!(table.remove(&b"a"[..]), Some(2));
        assert!(!table.contains(&b"a"[..]));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn hashes_are_the_same_in_every_run_and_see_every_byte() {
        assert_eq!(hash_bytes(0, b"orders"), hash_bytes(0, b"orders"));
        for len in 0..70_usize {
            let bytes = vec![7_u8; len];
            let hash = hash_bytes(1, &bytes);
            assert_ne!(hash, hash_bytes(2, &bytes));
            assert_ne!(hash, hash_bytes(1, &vec![7_u8; len + 1]));
            for at in 0..len {
                let mut other = bytes.clone();
                other[at] ^= 1;
                assert_ne!(hash, hash_bytes(1, &other), "byte {at} of {len}");
            }
        }
    }

    #[test]
    fn numbered_names_spread_over_buckets() {
        let mut buckets = [0_u32; 256];
        for number in 0..25_600 {
            let hash = hash_bytes(SEED, format!("queue-{number}").as_bytes());
            buckets[(hash & 255) as usize] += 1;
        }
        assert!(buckets.iter().all(|count| (50..200).contains(count)));
    }
}
