//! Seeded random numbers: one stream per purpose, so that switching one fault off leaves the other
//! decisions of a world alone. Does not know what is decided with them.

use std::ops::RangeInclusive;

/// xoshiro256++, seeded through SplitMix64.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

/// A probability in parts per million.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rate(pub u32);

impl Rate {
    /// Never.
    pub const NEVER: Rate = Rate(0);

    /// `percent` out of a hundred.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        Self(percent * 10_000)
    }
}

/// One step of SplitMix64: spreads a number over all bits.
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    /// The stream number `stream` of a seed.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let start = mix(seed) ^ mix(stream.wrapping_mul(0xD134_2543_DE82_EF95));
        Self {
            state: [1, 2, 3, 4].map(|n: u64| mix(start.wrapping_add(n))),
        }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below 0");
        // Multiply and shift: the bias is far below anything a simulation can notice.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something of `len` entries.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in the range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// A number in the range, its order of magnitude drawn first: small ones are as likely as large ones.
    pub fn scale(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = ((*range.start()).max(1), *range.end());
        let bits = self.within(u64::from(low.ilog2())..=u64::from(high.max(low).ilog2()));
        let from = (1u64 << bits).max(low);
        let to = ((1u64 << bits) | ((1u64 << bits) - 1)).min(high.max(low));
        self.within(from..=to)
    }

    /// True with this probability.
    pub fn chance(&mut self, rate: Rate) -> bool {
        rate.0 > 0 && self.below(1_000_000) < u64::from(rate.0)
    }

    /// True every second time.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// Brings a list into random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for idx in (1..list.len()).rev() {
            list.swap(idx, self.index(idx + 1));
        }
    }
}

/// A hash that is the same everywhere and for ever: for traces and message bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash(pub u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0x243F_6A88_85A3_08D3)
    }
}

impl Hash {
    /// Adds a number.
    pub fn word(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value) * u128::from(0x9E37_79B9_7F4A_7C15_u64);
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ value.rotate_left(32);
    }

    /// Adds bytes and their number.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let word: [u8; 8] = chunk.try_into().expect("chunks are 8 bytes");
            self.word(u64::from_le_bytes(word));
        }
        let mut last = [0; 8];
        let rest = chunks.remainder();
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    /// The hash of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.bytes(bytes);
        hash.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [random.bits(), random.bits(), random.bits()]
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(2, 1));
        assert_ne!(draw(1, 2), draw(1, 3));
    }

    #[test]
    fn draws_stay_in_bounds_and_reach_them() {
        let mut random = Random::new(7, 0);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[random.within(3..=7) as usize - 3] = true;
            assert!((5..=900).contains(&random.scale(5..=900)));
            assert!(!random.chance(Rate::NEVER));
            assert!(random.chance(Rate::percent(100)));
        }
        assert_eq!(seen, [true; 5]);
    }

    #[test]
    fn hashes_see_length_and_order() {
        assert_ne!(Hash::of(b""), Hash::of(b"\0"));
        assert_ne!(Hash::of(b"ab"), Hash::of(b"ba"));
        assert_ne!(Hash::of(&[0; 8]), Hash::of(&[0; 16]));
    }
}
