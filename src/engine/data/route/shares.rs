//! Bindings with weights: one of them takes a message, by the hash of a key or by lot.
//! Does not know which part of a message is its key.
//!
//! By key it is weighted rendezvous hashing: every queue draws a number from the key and its own
//! name, and the least of `-log2(number) / weight` takes the message. So each queue gets its weight's
//! share of all keys; a queue that comes takes its share from all others and moves no other key, and
//! one that goes leaves its keys to the others and moves no other key. The cost is one draw for each
//! queue, which is why [`SHARES_MAX`] bounds them.
//!
//! The draws are fixed for ever: a key goes to the same queue after a restart, and on another broker
//! with queues of the same names and weights.

use ringpost_wire::limits::WEIGHT_MAX;
use ringpost_wire::table::Value;

use super::Hop;

/// Most bindings of an exchange of such a kind: every one costs a draw per message.
pub const SHARES_MAX: usize = 1_000;

/// The bindings of one exchange; those to one queue or exchange count together.
#[derive(Default)]
pub(super) struct Shares {
    /// In order of seeds, whatever the order in which they came.
    shares: Vec<Share>,
    /// Weight of all.
    total: u64,
}

struct Share {
    hop: Hop,
    /// Made from the name: what is drawn from.
    seed: u64,
    /// Of all its bindings.
    weight: u64,
    bindings: u32,
    /// Weight of this share and of those before it.
    until: u64,
}

// A cost of at most 64 with 32 binary digits behind the point, times a weight, fits 64 bits.
const _: () = assert!(64_u64 << 32 <= u64::MAX / (SHARES_MAX as u64 * WEIGHT_MAX as u64));

impl Shares {
    pub fn bind(&mut self, hop: Hop, name: &[u8], key: &[u8]) {
        let weight = weight_of(key).expect("the binding was checked");
        match self.shares.iter_mut().find(|share| share.hop == hop) {
            Some(share) => {
                share.weight += weight;
                share.bindings += 1;
            }
            None => {
                let share = Share {
                    hop,
                    seed: match hop {
                        Hop::Queue(_) => queue_seed(name),
                        Hop::Exchange(_) => exchange_seed(name),
                    },
                    weight,
                    bindings: 1,
                    until: 0,
                };
                let at = self.shares.partition_point(|one| one.seed < share.seed);
                self.shares.insert(at, share);
            }
        }
        self.sum();
    }

    pub fn unbind(&mut self, hop: Hop, key: &[u8]) {
        let weight = weight_of(key).expect("the binding was checked");
        let at = self.shares.iter().position(|share| share.hop == hop);
        let at = at.expect("the binding exists");
        let share = &mut self.shares[at];
        share.weight -= weight;
        share.bindings -= 1;
        if share.bindings == 0 {
            self.shares.remove(at);
        }
        self.sum();
    }

    fn sum(&mut self) {
        self.total = 0;
        for share in &mut self.shares {
            self.total += share.weight;
            share.until = self.total;
        }
    }

    /// Who takes a message whose key has this hash.
    pub fn by_hash(&self, hash: u64) -> Option<Hop> {
        let mut shares = self.shares.iter();
        let mut best = shares.next()?;
        let mut least = cost(mix(hash ^ best.seed));
        for share in shares {
            let own = cost(mix(hash ^ share.seed));
            if own * best.weight < least * share.weight {
                (best, least) = (share, own);
            }
        }
        Some(best.hop)
    }

    //= P-71
    /// Who takes a message with this lot.
    pub fn by_lot(&self, lot: u64) -> Option<Hop> {
        let drawn = (u128::from(mix(lot)) * u128::from(self.total)) >> 64;
        let at = self
            .shares
            .partition_point(|share| u128::from(share.until) <= drawn);
        self.shares.get(at).map(|share| share.hop)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shares.len()
    }
}

/// The weight that a binding key says: a number from 1 to [`WEIGHT_MAX`], or 1 if it is empty.
///
/// # Errors
/// What is wrong, for people.
pub(crate) fn weight_of(key: &[u8]) -> Result<u64, String> {
    if key.is_empty() {
        return Ok(1);
    }
    let digits = std::str::from_utf8(key).ok();
    let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .filter(|weight| (1..=u64::from(WEIGHT_MAX)).contains(weight))
        .ok_or_else(|| {
            format!(
                "the binding key is the weight, a number from 1 to {WEIGHT_MAX}, not '{}'",
                String::from_utf8_lossy(key).escape_debug()
            )
        })
}

/// A lot for each message, the same however often it is routed: a producer's repetition goes where
/// the first went, so that it is known there.
#[must_use]
pub fn lot_of(producer: u64, sequence: u64) -> u64 {
    mix(producer) ^ sequence
}

/// A hash of a key, the same for ever.
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut state = mix(bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = mix(state ^ u64::from_le_bytes(word));
    }
    state
}

/// A hash of a header's value, the same for ever: integers of any width by their numbers, what is
/// not there as an empty text.
pub(super) fn hash_value(value: Option<Value<'_>>) -> u64 {
    let Some(value) = value else {
        return hash_bytes(b"");
    };
    if let Some(number) = value.as_integer() {
        return hash_number(number as u64);
    }
    if let Some(number) = value.as_float() {
        return mix(number.to_bits() ^ FLOAT);
    }
    match value {
        Value::Text(bytes) | Value::Bytes(bytes) => hash_bytes(bytes),
        Value::Bool(value) => mix(u64::from(value) ^ BOOL),
        Value::Timestamp(seconds) => hash_number(seconds),
        Value::Decimal { scale, value } => {
            mix((u64::from(scale) << 32 | u64::from(value)) ^ DECIMAL)
        }
        Value::Array(array) => hash_bytes(array.as_bytes()),
        Value::Table(table) => hash_bytes(table.as_bytes()),
        _ => hash_bytes(b""),
    }
}

pub(super) fn hash_number(number: u64) -> u64 {
    mix(number ^ NUMBER)
}

// Tell values of different types apart.
const NUMBER: u64 = 0x6e75_6d62_6572_0001;
const FLOAT: u64 = 0x666c_6f61_7400_0002;
const BOOL: u64 = 0x626f_6f6c_0000_0003;
const DECIMAL: u64 = 0x6465_6369_6d61_6c04;

/// A permutation of the numbers in which every bit counts for every other (splitmix64).
pub(super) const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `-log2(draw / 2^64)` with 32 binary digits behind the point: exponentially distributed, as the
/// shares need it, and in integers, so that every machine computes the same.
fn cost(draw: u64) -> u64 {
    let draw = draw | 1;
    let zeros = draw.leading_zeros();
    // The highest bit is the whole part; eight bits behind it choose a step, the rest is between two.
    let fraction = (draw << zeros) << 1;
    let step = (fraction >> 56) as usize;
    let between = fraction << 8 >> 40;
    let (low, high) = (LOG2[step], LOG2[step + 1]);
    let log2 = low + (((high - low) * between) >> 24);
    (u64::from(zeros + 1) << 32) - log2
}

/// log2(1 + n / 256) with 32 binary digits behind the point.
const LOG2: [u64; 257] = {
    let mut table = [0; 257];
    let mut step = 0;
    while step < 256 {
        // A square doubles the logarithm: each time it passes 2, a binary digit is 1.
        let mut value = (256 + step as u128) << 24;
        let mut digit = 0;
        while digit < 32 {
            value = (value * value) >> 32;
            table[step] <<= 1;
            if value >= 2 << 32 {
                value >>= 1;
                table[step] |= 1;
            }
            digit += 1;
        }
        step += 1;
    }
    table[256] = 1 << 32;
    table
};

/// What a queue of this name draws from, and an exchange of the same name differently.
pub(crate) fn queue_seed(name: &[u8]) -> u64 {
    hash_bytes(name)
}

/// See [`queue_seed`].
pub(crate) fn exchange_seed(name: &[u8]) -> u64 {
    mix(hash_bytes(name))
}

/// Which of some ends with seeds and weights takes a key, said as plainly as possible: what the
/// shares are tested against.
#[cfg(test)]
pub(crate) fn naive_by_hash<T: Copy>(ends: &[(T, u64, u64)], hash: u64) -> Option<T> {
    let costs = ends.iter().map(|(end, seed, weight)| {
        let draw = (mix(hash ^ seed) | 1) as f64 / 2_f64.powi(64);
        (-draw.ln() / *weight as f64, *end)
    });
    let least = costs.min_by(|left, right| left.0.total_cmp(&right.0));
    least.map(|(_, end)| end)
}

/// The same for a lot.
#[cfg(test)]
pub(crate) fn naive_by_lot<T: Copy>(ends: &[(T, u64, u64)], lot: u64) -> Option<T> {
    let mut ends = ends.to_vec();
    ends.sort_by_key(|(_, seed, _)| *seed);
    let tickets = ends
        .iter()
        .flat_map(|(end, _, weight)| std::iter::repeat_n(*end, *weight as usize));
    let tickets: Vec<T> = tickets.collect();
    let at = (u128::from(mix(lot)) * tickets.len() as u128) >> 64;
    tickets.get(at as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::super::Destination;
    use super::*;
    use ringpost_wire::ids::{PartitionId, QueueId};

    const KEYS: u64 = 100_000;

    fn queue(number: u32) -> Hop {
        Hop::Queue(Destination {
            queue: QueueId(number),
            partition: PartitionId(0),
            durable: true,
        })
    }

    fn bind(shares: &mut Shares, number: u32, weight: u32) {
        let name = format!("queue-{number}");
        shares.bind(
            queue(number),
            name.as_bytes(),
            weight.to_string().as_bytes(),
        );
    }

    fn of(weights: &[u32]) -> Shares {
        let mut shares = Shares::default();
        for (number, weight) in weights.iter().enumerate() {
            bind(&mut shares, number as u32, *weight);
        }
        shares
    }

    fn by_key(shares: &Shares) -> Vec<u32> {
        let keys = (0..KEYS).map(|number| hash_bytes(format!("customer.{number}").as_bytes()));
        keys.map(|key| shares.by_hash(key).expect("a queue").order().1)
            .collect()
    }

    fn by_lot(shares: &Shares) -> Vec<u32> {
        let lots = (0..KEYS).map(|sequence| lot_of(7, sequence));
        lots.map(|lot| shares.by_lot(lot).expect("a queue").order().1)
            .collect()
    }

    /// Every queue has its weight's share within 10 %.
    fn check_shares(taken: &[u32], weights: &[u32]) {
        let total: u32 = weights.iter().sum();
        let there = weights
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0);
        for (number, weight) in there {
            let count = taken.iter().filter(|took| **took == number as u32).count();
            let share = KEYS as f64 * f64::from(*weight) / f64::from(total);
            let off = count as f64 / share - 1.0;
            assert!(off.abs() < 0.1, "{number} of {weights:?}: {off:.3}");
        }
    }

    #[test]
    fn every_queue_gets_its_share() {
        for weights in [
            &[1][..],
            &[1, 1],
            &[1; 10],
            &[1, 2, 3, 4, 5],
            &[1_000; 20],
            &[10, 1_000, 90],
            &[7, 30, 30, 33],
        ] {
            let shares = of(weights);
            check_shares(&by_key(&shares), weights);
            check_shares(&by_lot(&shares), weights);
        }
    }

    #[test]
    fn a_queue_that_comes_or_goes_moves_only_its_share() {
        let mut shares = of(&[3, 1, 4, 1, 5]);
        let before = by_key(&shares);
        bind(&mut shares, 5, 9);
        let with = by_key(&shares);
        let moved = before.iter().zip(&with).filter(|(old, new)| old != new);
        let (mut count, mut elsewhere) = (0, 0);
        for (_, new) in moved {
            count += 1;
            elsewhere += u32::from(*new != 5);
        }
        assert_eq!(elsewhere, 0, "nothing moves but to the new queue");
        check_shares(&with, &[3, 1, 4, 1, 5, 9]);
        assert!((KEYS * 9 / 23).abs_diff(count) < KEYS / 50, "{count}");
        shares.unbind(queue(5), b"9");
        assert_eq!(by_key(&shares), before);
        shares.unbind(queue(2), b"4");
        let without = by_key(&shares);
        for (old, new) in before.iter().zip(&without) {
            assert!(old == new || *old == 2);
        }
        check_shares(&without, &[3, 1, 0, 1, 5]);
    }

    #[test]
    fn the_order_of_binding_does_not_matter_and_weights_of_one_queue_add_up() {
        let one = of(&[2, 3, 5]);
        let mut other = Shares::default();
        for (number, weight) in [(2, 4), (0, 2), (2, 1), (1, 3)] {
            bind(&mut other, number, weight);
        }
        assert_eq!(by_key(&one), by_key(&other));
        assert_eq!(by_lot(&one), by_lot(&other));
        other.unbind(queue(2), b"1");
        other.unbind(queue(2), b"4");
        assert_eq!(other.len(), 2);
        other.unbind(queue(0), b"2");
        other.unbind(queue(1), b"3");
        assert_eq!((other.len(), other.total), (0, 0));
        assert_eq!(other.by_hash(1), None);
        assert_eq!(other.by_lot(1), None);
    }

    #[test]
    fn weights_are_numbers_within_their_bounds() {
        for (key, weight) in [("", 1), ("1", 1), ("999", 999), ("1000", 1_000)] {
            assert_eq!(weight_of(key.as_bytes()), Ok(weight));
        }
        for key in [
            "0",
            "1001",
            "-1",
            "+1",
            "1.5",
            "ten",
            " 1",
            "1 ",
            "18446744073709551617",
        ] {
            let reason = weight_of(key.as_bytes()).expect_err(key);
            assert!(reason.contains("a number from 1 to 1000"), "{reason}");
        }
        assert!(weight_of(b"\xff").is_err());
    }

    /// Where a key goes must outlive versions: never regenerated.
    #[test]
    fn hashes_are_what_they_always_were() {
        assert_eq!(hash_bytes(b""), HASHES[0]);
        assert_eq!(hash_bytes(b"orders"), HASHES[1]);
        assert_eq!(hash_bytes(b"a longer key than 8"), HASHES[2]);
        assert_eq!(hash_value(Some(Value::I8(-1))), HASHES[3]);
        assert_eq!(hash_value(Some(Value::I64(-1))), HASHES[3]);
        assert_eq!(hash_value(Some(Value::Text(b"orders"))), HASHES[1]);
        assert_eq!(hash_value(None), HASHES[0]);
        let shares = of(&[3, 1, 4, 1, 5]);
        let first = by_key(&shares)[..16].to_vec();
        assert_eq!(first, FIRST);
    }

    const HASHES: [u64; 4] = [
        0xe220_a839_7b1d_cdaf,
        0xda81_bc47_ee04_ead4,
        0xb003_6e6f_ad52_e858,
        0xf518_d987_b9f9_0e45,
    ];
    const FIRST: [u32; 16] = [0, 1, 2, 2, 4, 2, 2, 2, 4, 2, 4, 4, 1, 2, 4, 2];

    #[test]
    fn costs_are_logarithms() {
        for draw in [1, 3, 1 << 20, 1 << 63, u64::MAX / 3, u64::MAX - 5, u64::MAX] {
            let exact = 64.0 - (draw as f64).log2();
            let own = cost(draw) as f64 / f64::from(1 << 16) / f64::from(1 << 16);
            assert!((exact - own).abs() < 1e-5, "{draw}: {exact} {own}");
        }
        let mut last = u64::MAX;
        for step in 0..1_000_000_u64 {
            let own = cost(step * (u64::MAX / 1_000_000));
            assert!(own <= last, "never up");
            last = own;
        }
    }
}
