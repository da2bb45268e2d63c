//! Answers of the router by exact address, for as long as topology and placement do not change.
//! Does not know how an address is routed.
//!
//! ```text
//! hash(tenant, exchange, key) ─► set, 64 B: stamp, 8 tags, clock
//!                                  │ stamp and a tag are equal
//!                                  ▼
//!                                entry, 128 B: whole address, count, the one target
//!                                  │ count > 1
//!                                  ▼
//!                                ring of targets, overwritten from behind
//! ```
//!
//! All memory is allocated once, so a hostile mix of addresses costs misses and nothing else.
//! A change of topology gives the router a new stamp and thereby empties the memo in O(1).

use ringpost_wire::ids::TenantId;

use super::Target;
use crate::data::table::hash_bytes;

/// Addresses remembered.
const ENTRIES: usize = SETS * WAYS;
const SETS: usize = 512;
const WAYS: usize = 8;
/// Longest exchange and key together, in bytes, that is remembered; longer ones are looked up.
const ADDRESS_BYTES_MAX: usize = 96;
/// Targets of answers with more than one, all together.
const RING: usize = 16 * 1024;
/// Longest answer that is remembered: one may not push out all others.
const ANSWER_MAX: usize = RING / 16;
/// Of answers that would have to push out a live one, one in this many may: more addresses than fit
/// then cost a look-up each, not a look-up and a write, and what is hot gets in soon all the same.
const ADMIT_ONE_IN: u32 = 8;
/// A stamp that no router reaches.
const NEVER: u64 = u64::MAX;

const _: () = assert!(ENTRIES == 4096);
const _: () = assert!(size_of::<Set>() == 64, "a cache line");
const _: () = assert!(size_of::<Entry>() == 128, "two cache lines");

/// What is looked up.
pub(super) struct Address<'a> {
    pub tenant: TenantId,
    pub exchange: &'a [u8],
    pub key: &'a [u8],
}

/// Where an address would be kept.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    set: usize,
    tag: u32,
}

#[derive(Clone)]
#[repr(C, align(64))]
struct Set {
    /// The router's stamp under which every way was kept.
    stamp: u64,
    /// Upper half of the hash of each way's address.
    tags: [u32; WAYS],
    /// Ways in use, from 0.
    filled: u8,
    /// Clock: ways that were hit since the hand passed, and the way that the hand is at.
    used: u8,
    hand: u8,
}

#[derive(Clone)]
#[repr(C, align(64))]
struct Entry {
    /// Position in the ring's endless numbering, for counts above one.
    position: u64,
    /// The target, for a count of one.
    target: Target,
    tenant: TenantId,
    count: u16,
    exchange_bytes: u8,
    key_bytes: u8,
    /// Exchange, then key.
    address: [u8; ADDRESS_BYTES_MAX],
}

pub(super) struct Memo {
    sets: Box<[Set]>,
    entries: Box<[Entry]>,
    ring: Box<[Target]>,
    /// Where the next long answer goes, in the ring's endless numbering.
    ring_at: u64,
    /// Counts answers that would have to push out a live one.
    pressed: u32,
    /// The entry of the last answer, tried before anything is hashed.
    last: usize,
}

impl Memo {
    pub fn new() -> Self {
        let set = Set {
            stamp: NEVER,
            tags: [0; WAYS],
            filled: 0,
            used: 0,
            hand: 0,
        };
        let entry = Entry {
            position: 0,
            target: Target::default(),
            tenant: TenantId(0),
            count: 0,
            exchange_bytes: 0,
            key_bytes: 0,
            address: [0; ADDRESS_BYTES_MAX],
        };
        Self {
            sets: vec![set; SETS].into(),
            entries: vec![entry; ENTRIES].into(),
            ring: vec![Target::default(); RING].into(),
            ring_at: 0,
            pressed: 0,
            last: 0,
        }
    }

    /// Appends what was kept for `address` under `stamp`.
    ///
    /// # Errors
    /// Where to keep the answer, if there was none.
    pub fn find(
        &mut self,
        stamp: u64,
        address: &Address<'_>,
        targets: &mut Vec<Target>,
    ) -> Result<(), Spot> {
        // A way below `filled` was written under its set's stamp, whatever was there before.
        if self.sets[self.last / WAYS].holds(stamp, self.last % WAYS)
            && self.entries[self.last].is(address)
            && self.answer(self.last, targets)
        {
            return Ok(());
        }
        let spot = Spot::of(address);
        if let Some(way) = self.way_of(stamp, address, spot) {
            let index = spot.set * WAYS + way;
            if self.answer(index, targets) {
                self.sets[spot.set].used |= 1 << way;
                self.last = index;
                return Ok(());
            }
        }
        Err(spot)
    }

    /// Keeps `targets` as the answer to `address`, if neither is too long and there is room.
    pub fn keep(&mut self, stamp: u64, address: &Address<'_>, spot: Spot, targets: &[Target]) {
        if address.bytes() > ADDRESS_BYTES_MAX || targets.len() > ANSWER_MAX {
            return;
        }
        let own = self.way_of(stamp, address, spot);
        let Some(way) = own.or_else(|| self.way_for(stamp, spot.set)) else {
            return;
        };
        let index = spot.set * WAYS + way;
        let position = match targets {
            [_, _, ..] => self.keep_in_ring(targets),
            _ => 0,
        };
        let entry = &mut self.entries[index];
        entry.position = position;
        entry.target = targets.first().copied().unwrap_or_default();
        entry.tenant = address.tenant;
        entry.count = targets.len() as u16;
        entry.exchange_bytes = address.exchange.len() as u8;
        entry.key_bytes = address.key.len() as u8;
        entry.address[..address.exchange.len()].copy_from_slice(address.exchange);
        entry.address[address.exchange.len()..address.bytes()].copy_from_slice(address.key);
        self.sets[spot.set].tags[way] = spot.tag;
        self.sets[spot.set].used |= 1 << way;
        self.last = index;
    }

    fn answer(&self, index: usize, targets: &mut Vec<Target>) -> bool {
        let entry = &self.entries[index];
        match entry.count {
            0 => true,
            1 => {
                targets.push(entry.target);
                true
            }
            count => {
                let alive = self.ring_at - entry.position <= RING as u64;
                if alive {
                    let start = (entry.position % RING as u64) as usize;
                    targets.extend_from_slice(&self.ring[start..start + count as usize]);
                }
                alive
            }
        }
    }

    /// The way that holds this address under this stamp.
    fn way_of(&self, stamp: u64, address: &Address<'_>, spot: Spot) -> Option<usize> {
        let set = &self.sets[spot.set];
        let mut equal = 0_u8;
        for (way, tag) in set.tags.iter().enumerate() {
            equal |= u8::from(*tag == spot.tag) << way;
        }
        while equal != 0 {
            let way = equal.trailing_zeros() as usize;
            if set.holds(stamp, way) && self.entries[spot.set * WAYS + way].is(address) {
                return Some(way);
            }
            equal &= equal - 1;
        }
        None
    }

    /// A way to overwrite: one that is free, else the clock's choice; none if it is not this
    /// answer's turn to push out a live one.
    fn way_for(&mut self, stamp: u64, set: usize) -> Option<usize> {
        let set = &mut self.sets[set];
        if set.stamp != stamp {
            set.stamp = stamp;
            set.filled = 0;
            set.used = 0;
        }
        if (set.filled as usize) < WAYS {
            set.filled += 1;
            return Some(set.filled as usize - 1);
        }
        self.pressed = self.pressed.wrapping_add(1);
        if !self.pressed.is_multiple_of(ADMIT_ONE_IN) {
            return None;
        }
        // A hit bought each way one round; after a full turn every bit is clear.
        loop {
            let way = set.hand as usize;
            set.hand = ((way + 1) % WAYS) as u8;
            if set.used & (1 << way) == 0 {
                return Some(way);
            }
            set.used &= !(1 << way);
        }
    }

    /// Copies `targets` to one contiguous place of the ring and says where.
    fn keep_in_ring(&mut self, targets: &[Target]) -> u64 {
        let start = (self.ring_at % RING as u64) as usize;
        if start + targets.len() > RING {
            self.ring_at += (RING - start) as u64;
        }
        let position = self.ring_at;
        let start = (position % RING as u64) as usize;
        self.ring[start..start + targets.len()].copy_from_slice(targets);
        self.ring_at += targets.len() as u64;
        position
    }
}

impl Set {
    fn holds(&self, stamp: u64, way: usize) -> bool {
        (self.stamp == stamp || crate::mutant!(StaleRoute)) && way < self.filled as usize
    }
}

impl Spot {
    fn of(address: &Address<'_>) -> Self {
        let seed = hash_bytes(u64::from(address.tenant.0), address.exchange);
        let hash = hash_bytes(seed, address.key);
        Self {
            set: (hash as usize) % SETS,
            tag: (hash >> 32) as u32,
        }
    }
}

impl Address<'_> {
    fn bytes(&self) -> usize {
        self.exchange.len() + self.key.len()
    }
}

impl Entry {
    fn is(&self, address: &Address<'_>) -> bool {
        let exchange_bytes = self.exchange_bytes as usize;
        let key_bytes = self.key_bytes as usize;
        self.tenant == address.tenant
            && key_bytes == address.key.len()
            && exchange_bytes == address.exchange.len()
            && same(&self.address[exchange_bytes..][..key_bytes], address.key)
            && same(&self.address[..exchange_bytes], address.exchange)
    }
}

/// Whether two slices of one length are equal. The empty slice of a literal points nowhere, and a
/// vectorised `memcmp` that masks its loads was measured to take 100 ns to find that out.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.is_empty() || one == other
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::ids::QueueId;

    fn target(queue: u32) -> Target {
        Target {
            queue: QueueId(queue),
            ..Target::default()
        }
    }

    fn address(key: &[u8]) -> Address<'_> {
        Address {
            tenant: TenantId(1),
            exchange: b"x",
            key,
        }
    }

    fn keep(memo: &mut Memo, stamp: u64, address: &Address<'_>, targets: &[Target]) {
        memo.keep(stamp, address, Spot::of(address), targets);
    }

    fn found(memo: &mut Memo, stamp: u64, address: &Address<'_>) -> Option<Vec<Target>> {
        let mut targets = Vec::new();
        memo.find(stamp, address, &mut targets).ok()?;
        Some(targets)
    }

    #[test]
    fn an_answer_holds_for_its_address_and_stamp_only() {
        let mut memo = Memo::new();
        let two = [target(1), target(2)];
        keep(&mut memo, 7, &address(b"none"), &[]);
        keep(&mut memo, 7, &address(b"one"), &two[..1]);
        keep(&mut memo, 7, &address(b"two"), &two);
        assert_eq!(found(&mut memo, 7, &address(b"none")), Some(vec![]));
        assert_eq!(found(&mut memo, 7, &address(b"one")), Some(vec![two[0]]));
        assert_eq!(found(&mut memo, 7, &address(b"two")), Some(two.to_vec()));
        assert_eq!(found(&mut memo, 7, &address(b"tw")), None);
        assert_eq!(found(&mut memo, 8, &address(b"two")), None);
        let shifted = Address {
            exchange: b"xt",
            ..address(b"wo")
        };
        assert_eq!(found(&mut memo, 7, &shifted), None);
        let tenant = TenantId(2);
        let elsewhere = Address {
            tenant,
            ..address(b"two")
        };
        assert_eq!(found(&mut memo, 7, &elsewhere), None);
    }

    #[test]
    fn what_is_found_is_always_what_was_kept_last() {
        let mut memo = Memo::new();
        let answer = |number: u32, round: u32| -> Vec<Target> {
            (0..(number * 7 + round) % 40)
                .map(|idx| target(number * 1000 + round * 50 + idx))
                .collect()
        };
        let mut hits = 0;
        for round in 0..3 {
            for number in 0..20_000_u32 {
                let key = format!("key.{}", number % 6_000);
                let kept = answer(number % 6_000, round);
                if let Some(found) = found(&mut memo, u64::from(round), &address(key.as_bytes())) {
                    assert_eq!(found, kept);
                    hits += 1;
                } else {
                    keep(&mut memo, u64::from(round), &address(key.as_bytes()), &kept);
                }
            }
        }
        assert!(hits > 0, "some of the long tail is still there");
    }

    #[test]
    fn too_long_is_not_kept() {
        let mut memo = Memo::new();
        let key = [b'k'; ADDRESS_BYTES_MAX];
        keep(&mut memo, 1, &address(&key), &[]);
        assert_eq!(found(&mut memo, 1, &address(&key)), None);
        keep(&mut memo, 1, &address(&key[1..]), &[]);
        assert_eq!(found(&mut memo, 1, &address(&key[1..])), Some(vec![]));
        keep(
            &mut memo,
            1,
            &address(b"wide"),
            &vec![target(1); ANSWER_MAX + 1],
        );
        assert_eq!(found(&mut memo, 1, &address(b"wide")), None);
    }

    #[test]
    fn as_many_addresses_as_there_are_queues_stay() {
        let mut memo = Memo::new();
        let keys: Vec<String> = (0..1_000).map(|number| format!("queue-{number}")).collect();
        for round in 0..3 {
            for (number, key) in keys.iter().enumerate() {
                let hit = found(&mut memo, 1, &address(key.as_bytes())).is_some();
                assert_eq!(hit, round > 0, "{key}");
                if !hit {
                    keep(
                        &mut memo,
                        1,
                        &address(key.as_bytes()),
                        &[target(number as u32)],
                    );
                }
            }
        }
    }
}
