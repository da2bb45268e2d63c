//! The durable part of a catalog as bytes for a checkpoint: the changes that build it from nothing.
//! Does not know where a checkpoint is kept.
//!
//! ```text
//! offset  size
//! 0       4     "RPTC"
//! 4       2     format version, 1
//! 6       2     partitions
//! 8       8     version of the catalog
//! 16      12    next tenant, exchange and queue number
//! 28      4     number of changes
//! 32            changes, each behind a u32 length
//! end-4   4     crc32c of everything before it
//! ```

use ringpost_wire::checksum::crc32c;
use ringpost_wire::control::Durability;

use super::change::put_u32;
use super::{Catalog, Change, PARTITIONS_MAX, TENANT_DEFAULT};

const MAGIC: [u8; 4] = *b"RPTC";
const FORMAT: u16 = 1;
const HEAD_BYTES: usize = 32;

/// Why bytes are no snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotError {
    /// Cut short, damaged, or not one topology.
    Malformed,
    /// Written by a later version of the broker.
    FormatUnknown,
}

impl Catalog {
    /// The durable part of the catalog. Equal catalogs give equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.partitions.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        put_u32(&mut out, self.tenant_next);
        put_u32(&mut out, self.exchange_next);
        put_u32(&mut out, self.queue_next);
        let count_at = out.len();
        put_u32(&mut out, 0);
        assert_eq!(out.len(), HEAD_BYTES);
        let mut count = 0;
        for change in self.durable_changes() {
            let length_at = out.len();
            put_u32(&mut out, 0);
            change.encode(&mut out);
            let length = (out.len() - length_at - 4) as u32;
            out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
            count += 1_u32;
        }
        out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
        let crc = crc32c(&out);
        put_u32(&mut out, crc);
        out
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (covered, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or(SnapshotError::Malformed)?;
        let (head, mut rest) = covered
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(SnapshotError::Malformed)?;
        if u32::from_le_bytes(*crc) != crc32c(covered) || head[..4] != MAGIC {
            return Err(SnapshotError::Malformed);
        }
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        if u16_at(4) != FORMAT {
            return Err(SnapshotError::FormatUnknown);
        }
        if !(1..=PARTITIONS_MAX).contains(&u16_at(6)) {
            return Err(SnapshotError::Malformed);
        }
        let mut catalog = Self::empty(u16_at(6));
        for _ in 0..u32_at(28) {
            let (length, after) = rest
                .split_first_chunk::<4>()
                .ok_or(SnapshotError::Malformed)?;
            let (change, after) = after
                .split_at_checked(u32::from_le_bytes(*length) as usize)
                .ok_or(SnapshotError::Malformed)?;
            let change = Change::decode(change).map_err(|error| match error {
                super::ChangeError::Malformed => SnapshotError::Malformed,
                super::ChangeError::FormatUnknown => SnapshotError::FormatUnknown,
            })?;
            let applied = catalog.apply(&change);
            applied.map_err(|_| SnapshotError::Malformed)?;
            rest = after;
        }
        let next = [u32_at(16), u32_at(20), u32_at(24)];
        let used = [
            catalog.tenant_next,
            catalog.exchange_next,
            catalog.queue_next,
        ];
        let sound = rest.is_empty()
            && catalog.tenant(TENANT_DEFAULT).is_some()
            && next.iter().zip(&used).all(|(next, used)| next >= used);
        if !sound {
            return Err(SnapshotError::Malformed);
        }
        catalog.version = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        [
            catalog.tenant_next,
            catalog.exchange_next,
            catalog.queue_next,
        ] = next;
        Ok(catalog)
    }

    /// Changes that build the durable part, applied in order to nothing. A tenant brings its
    /// predeclared exchanges, whose numbers lie between those of others: so tenants and exchanges
    /// come together, in the order of numbers.
    fn durable_changes(&self) -> impl Iterator<Item = Change> {
        let durable = Durability::Durable;
        let mut named: Vec<(u32, Change)> = Vec::new();
        for tenant in self.tenants.values() {
            let change = Change::TenantCreated {
                id: tenant.id,
                name: tenant.name.clone(),
                predeclared: tenant.predeclared,
            };
            named.push((tenant.predeclared.0, change));
        }
        for exchange in self.exchanges.values() {
            if exchange.durability == durable && !self.is_predeclared(exchange) {
                named.push((exchange.id.0, Change::ExchangeCreated(exchange.clone())));
            }
        }
        named.sort_by_key(|(number, _)| *number);
        let queues = self
            .queues
            .values()
            // Lanes follow from their streams.
            .filter(|q| q.durability == Durability::Durable && self.lane(q.id).is_none());
        let bindings = self
            .bindings
            .iter()
            .filter(move |binding| self.durability_of(binding) == Some(durable));
        let policies = self
            .tenants
            .values()
            .flat_map(|tenant| tenant.policies.values());
        let policies = policies.cloned().map(Change::PolicySet);
        named
            .into_iter()
            .map(|(_, change)| change)
            .chain(queues.cloned().map(Change::QueueCreated))
            .chain(bindings.cloned().map(move |binding| Change::Bound {
                binding,
                durability: durable,
            }))
            .chain(policies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::routing::tests::Random;

    #[test]
    fn snapshots_keep_what_is_durable_and_every_cut_and_flip_is_seen() {
        let mut random = Random::new(5);
        let mut catalog = Catalog::new(64);
        for _ in 0..300 {
            random.step(&mut catalog);
        }
        let mut bytes = catalog.encode();
        let restored = Catalog::decode(&bytes).expect("just encoded");
        restored.invariants();
        assert_eq!(restored.encode(), bytes);
        assert_eq!(restored.version(), catalog.version());
        assert!(restored.all_queues().count() < catalog.all_queues().count());
        let durable = Durability::Durable;
        assert!(
            catalog
                .all_queues()
                .filter(|queue| queue.durability == durable)
                .eq(restored.all_queues())
        );
        for at in 0..bytes.len() {
            assert!(Catalog::decode(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                assert!(Catalog::decode(&bytes).is_err(), "bit {bit} of byte {at}");
                bytes[at] ^= 1 << bit;
            }
        }
    }

    #[test]
    fn damage_behind_a_good_checksum_never_panics() {
        let mut random = Random::new(6);
        let mut catalog = Catalog::new(64);
        for _ in 0..60 {
            random.step(&mut catalog);
        }
        let bytes = catalog.encode();
        let covered = bytes.len() - 4;
        let sealed = |bytes: &[u8]| {
            let crc = crc32c(bytes).to_le_bytes();
            Catalog::decode(&[bytes, &crc].concat())
        };
        for at in 0..covered {
            let _ = sealed(&bytes[..at]);
            for bit in 0..8 {
                let mut bent = bytes[..covered].to_vec();
                bent[at] ^= 1 << bit;
                if let Ok(catalog) = sealed(&bent) {
                    catalog.invariants();
                }
            }
        }
    }

    #[test]
    fn replay_gives_what_a_snapshot_would() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let mut live = Catalog::new(8);
            let mut replayed = Catalog::new(8);
            for _ in 0..200 {
                if let Some(change) = random.step(&mut live) {
                    let version = replayed.replay(&change);
                    assert_eq!(version, Ok(live.version()));
                }
            }
            let restored = Catalog::decode(&live.encode()).expect("just encoded");
            assert_eq!(restored, replayed, "seed {seed}");
        }
    }
}
