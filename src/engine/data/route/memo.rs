//! Answers of the router by exact address, for as long as topology and placement do not change.
//! Does not know how an address is routed.
//!
//! ```text
//! hash(tenant, exchange, key) ─► set of 8 ways ─► tags (u32 each, 32 B together)
//!                                                   │ equal
//!                                                   ▼
//!                              entry, 128 B: whole address, stamp, count, the one target
//!                                                   │ count > 1
//!                                                   ▼
//!                              ring of targets, overwritten from behind
//! ```
//!
//! All memory is allocated once, so a hostile mix of addresses costs misses and nothing else.
//! A change of topology bumps the router's stamp and thereby empties the memo in O(1).

use ringpost_wire::ids::TenantId;

use super::Target;
use crate::data::table::hash_bytes;

/// Addresses remembered.
const ENTRIES: usize = SETS * WAYS;
const SETS: usize = 512;
const WAYS: usize = 8;
/// Longest exchange and key together, in bytes, that is remembered; longer ones are looked up.
const ADDRESS_BYTES_MAX: usize = 88;
/// Targets of answers with more than one, all together.
const RING: usize = 16 * 1024;
/// Longest answer that is remembered: one may not push out all others.
const ANSWER_MAX: usize = RING / 16;
/// A stamp that no router reaches.
const NEVER: u64 = u64::MAX;

const _: () = assert!(ENTRIES == 4096);
const _: () = assert!(size_of::<Entry>() == 128, "two cache lines");

/// What is looked up.
pub(super) struct Address<'a> {
    pub tenant: TenantId,
    pub exchange: &'a [u8],
    pub key: &'a [u8],
}

#[derive(Clone)]
#[repr(C, align(64))]
struct Entry {
    /// The router's stamp when this was true.
    stamp: u64,
    /// Position in the ring's endless numbering, for counts above one.
    position: u64,
    tenant: TenantId,
    count: u16,
    exchange_bytes: u8,
    key_bytes: u8,
    /// The target, for a count of one.
    target: Target,
    /// Exchange, then key.
    address: [u8; ADDRESS_BYTES_MAX],
}

pub(super) struct Memo {
    /// Upper half of the hash of each entry: read before the entry is touched.
    tags: Box<[u32]>,
    entries: Box<[Entry]>,
    /// Clock of each set: a bit per way, set by a hit, and the way to look at next.
    used: Box<[u8]>,
    hands: Box<[u8]>,
    ring: Box<[Target]>,
    /// Where the next long answer goes, in the ring's endless numbering.
    ring_at: u64,
    /// The entry of the last answer, tried before anything is hashed.
    last: usize,
}

impl Memo {
    pub fn new() -> Self {
        let empty = Entry {
            stamp: NEVER,
            position: 0,
            tenant: TenantId(0),
            count: 0,
            exchange_bytes: 0,
            key_bytes: 0,
            target: Target::default(),
            address: [0; ADDRESS_BYTES_MAX],
        };
        Self {
            tags: vec![0; ENTRIES].into(),
            entries: vec![empty; ENTRIES].into(),
            used: vec![0; SETS].into(),
            hands: vec![0; SETS].into(),
            ring: vec![Target::default(); RING].into(),
            ring_at: 0,
            last: 0,
        }
    }

    /// Appends what was kept for `address` under `stamp`; whether there was anything.
    pub fn find(&mut self, stamp: u64, address: &Address<'_>, targets: &mut Vec<Target>) -> bool {
        let last = &self.entries[self.last];
        if last.stamp == stamp && last.is(address) {
            return self.answer(self.last, targets);
        }
        let (set, tag) = locate(address);
        let tags = &self.tags[set * WAYS..][..WAYS];
        for (way, _) in tags.iter().enumerate().filter(|(_, t)| **t == tag) {
            let index = set * WAYS + way;
            let entry = &self.entries[index];
            if entry.stamp == stamp && entry.is(address) {
                self.used[set] |= 1 << way;
                self.last = index;
                return self.answer(index, targets);
            }
        }
        false
    }

    /// Keeps `targets` as the answer to `address`, if neither is too long.
    pub fn keep(&mut self, stamp: u64, address: &Address<'_>, targets: &[Target]) {
        if address.bytes() > ADDRESS_BYTES_MAX || targets.len() > ANSWER_MAX {
            return;
        }
        let (set, tag) = locate(address);
        let way = self.way_for(set, stamp, address);
        let index = set * WAYS + way;
        let position = match targets {
            [_, _, ..] => self.keep_in_ring(targets),
            _ => 0,
        };
        let entry = &mut self.entries[index];
        entry.stamp = stamp;
        entry.position = position;
        entry.tenant = address.tenant;
        entry.count = targets.len() as u16;
        entry.exchange_bytes = address.exchange.len() as u8;
        entry.key_bytes = address.key.len() as u8;
        entry.target = targets.first().copied().unwrap_or_default();
        entry.address[..address.exchange.len()].copy_from_slice(address.exchange);
        entry.address[address.exchange.len()..address.bytes()].copy_from_slice(address.key);
        self.tags[index] = tag;
        self.used[set] |= 1 << way;
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

    /// The way to overwrite: this address's own, else a stale one, else the clock's choice.
    fn way_for(&mut self, set: usize, stamp: u64, address: &Address<'_>) -> usize {
        let entries = &self.entries[set * WAYS..][..WAYS];
        let own = entries.iter().position(|entry| entry.is(address));
        if let Some(way) = own.or_else(|| entries.iter().position(|entry| entry.stamp != stamp)) {
            return way;
        }
        // A hit bought each way one round; after a full turn every bit is clear.
        loop {
            let way = self.hands[set] as usize;
            self.hands[set] = ((way + 1) % WAYS) as u8;
            if self.used[set] & (1 << way) == 0 {
                return way;
            }
            self.used[set] &= !(1 << way);
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
            && self.address[exchange_bytes..][..key_bytes] == *address.key
            && self.address[..exchange_bytes] == *address.exchange
    }
}

fn locate(address: &Address<'_>) -> (usize, u32) {
    let seed = hash_bytes(u64::from(address.tenant.0), address.exchange);
    let hash = hash_bytes(seed, address.key);
    ((hash as usize) % SETS, (hash >> 32) as u32)
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

    fn found(memo: &mut Memo, stamp: u64, address: &Address<'_>) -> Option<Vec<Target>> {
        let mut targets = Vec::new();
        memo.find(stamp, address, &mut targets).then_some(targets)
    }

    #[test]
    fn an_answer_holds_for_its_address_and_stamp_only() {
        let mut memo = Memo::new();
        let two = [target(1), target(2)];
        memo.keep(7, &address(b"none"), &[]);
        memo.keep(7, &address(b"one"), &two[..1]);
        memo.keep(7, &address(b"two"), &two);
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
                    memo.keep(u64::from(round), &address(key.as_bytes()), &kept);
                }
            }
        }
        assert!(hits > 0, "some of the long tail is still there");
    }

    #[test]
    fn too_long_is_not_kept() {
        let mut memo = Memo::new();
        let key = [b'k'; ADDRESS_BYTES_MAX];
        memo.keep(1, &address(&key), &[]);
        assert_eq!(found(&mut memo, 1, &address(&key)), None);
        memo.keep(1, &address(&key[1..]), &[]);
        assert_eq!(found(&mut memo, 1, &address(&key[1..])), Some(vec![]));
        memo.keep(1, &address(b"wide"), &vec![target(1); ANSWER_MAX + 1]);
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
                    memo.keep(1, &address(key.as_bytes()), &[target(number as u32)]);
                }
            }
        }
    }
}
