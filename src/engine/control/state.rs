//! The engine's own part of a checkpoint: the topology, and what is settled in every queue.
//! Does not know when a checkpoint is made; every number is little-endian.
//!
//! ```text
//! version u32 = 4 | catalog bytes u32 | catalog (empty unless this is the meta core's journal)
//! producers' bytes u32 | producers (data/dedup.rs)
//! queue count u32 | per queue: id u32, bytes u32, state (queue/replay.rs)
//! stream count u32 | per stream with groups: id u32, bytes u32, offsets (queue/stream/groups.rs)
//! prepared count u32 | per share: bytes u32, body of its `Prepare` (data/transaction/part.rs)
//! decided count u32 | per transaction: bytes u32, body of its `Decide`
//! ```
//!
//! Version 3 ends before the shares that are prepared, and is read.

use std::collections::BTreeMap;

use ringpost_wire::ids::{CoreId, QueueId};

use crate::control::catalog::Catalog;
use crate::data::dedup::Dedup;
use crate::data::flow::{QueueState, Queues};
use crate::data::queue::{SequenceRange, encode_offsets};
use crate::data::transaction::{Decision, TransactionId, Transactions};
use crate::ids::Clock;

const VERSION: u32 = 4;
const VERSION_WITHOUT_TRANSACTIONS: u32 = 3;

/// Whether something may be delivered after the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// It may, up to the marks.
    Running,
    /// Nothing is any more: what nobody holds was delivered as often as is recorded.
    Last,
}

/// Appends the state: `catalog` on the meta core, and the durable queues of this one. `acked` are the
/// ranges of them whose ack record is appended and not yet durable.
pub fn encode(
    catalog: Option<&Catalog>,
    dedup: &Dedup,
    queues: &Queues,
    transactions: &Transactions,
    acked: impl Iterator<Item = (QueueId, SequenceRange)>,
    (moment, clock, core): (Moment, Clock, CoreId),
    out: &mut Vec<u8>,
) {
    let mut acked_of: BTreeMap<QueueId, Vec<SequenceRange>> = BTreeMap::new();
    for (queue, range) in acked {
        if !crate::mutant!(CheckpointForgetsAcks) {
            acked_of.entry(queue).or_default().push(range);
        }
    }
    out.extend_from_slice(&VERSION.to_le_bytes());
    let snapshot = catalog.map(Catalog::encode).unwrap_or_default();
    put_bytes(out, &snapshot);
    let mut producers = Vec::new();
    dedup.encode(&mut producers);
    put_bytes(out, &producers);
    let durable = || queues.iter().filter(|state| state.durable);
    out.extend_from_slice(&(durable().count() as u32).to_le_bytes());
    let mut bytes = Vec::new();
    for state in durable() {
        out.extend_from_slice(&state.id.0.to_le_bytes());
        bytes.clear();
        let acked = acked_of.get(&state.id).map_or(&[][..], Vec::as_slice);
        match moment {
            Moment::Running => state.queue.encode_state(clock, acked, &mut bytes),
            Moment::Last => state.queue.encode_last_state(clock, acked, &mut bytes),
        }
        put_bytes(out, &bytes);
    }
    let with_groups = |state: &&QueueState| {
        state.queue.kept_offsets().next().is_some() && !crate::mutant!(CheckpointForgetsOffsets)
    };
    let streams = || durable().filter(with_groups);
    out.extend_from_slice(&(streams().count() as u32).to_le_bytes());
    for state in streams() {
        out.extend_from_slice(&state.id.0.to_le_bytes());
        bytes.clear();
        encode_offsets(state.queue.kept_offsets(), &mut bytes);
        put_bytes(out, &bytes);
    }
    let prepared = || {
        let all = transactions.prepared();
        all.filter(|_| !crate::mutant!(CheckpointForgetsPrepared))
    };
    out.extend_from_slice(&(prepared().count() as u32).to_le_bytes());
    for (id, share) in prepared() {
        bytes.clear();
        share.encode(id, &mut bytes);
        put_bytes(out, &bytes);
    }
    out.extend_from_slice(&(transactions.decided().count() as u32).to_le_bytes());
    for (number, cores) in transactions.decided() {
        let id = TransactionId { core, number };
        bytes.clear();
        Decision::Commit(cores.iter().copied().collect()).encode(id, &mut bytes);
        put_bytes(out, &bytes);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("a checkpoint's parts are below 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A decoded state, borrowing from its bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct State<'a> {
    /// The catalog's snapshot, empty if this is not the meta core's journal.
    pub catalog: &'a [u8],
    /// What the producers have stored.
    pub dedup: &'a [u8],
    /// Queue ids and their states.
    pub queues: Vec<(u32, &'a [u8])>,
    /// Streams and the offsets of their groups.
    pub groups: Vec<(u32, &'a [u8])>,
    /// Shares of transactions that are prepared.
    pub prepared: Vec<&'a [u8]>,
    /// Transactions that are decided and not done everywhere.
    pub decided: Vec<&'a [u8]>,
}

/// Reads a state; `None` if the bytes are no such thing or of a later version.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<State<'_>> {
    let mut rest = bytes;
    let version = take_u32(&mut rest)?;
    if version != VERSION && version != VERSION_WITHOUT_TRANSACTIONS {
        return None;
    }
    let catalog = take_bytes(&mut rest)?;
    let dedup = take_bytes(&mut rest)?;
    let count = take_u32(&mut rest)?;
    let mut queues = Vec::new();
    for _ in 0..count {
        queues.push((take_u32(&mut rest)?, take_bytes(&mut rest)?));
    }
    let count = take_u32(&mut rest)?;
    let mut groups = Vec::new();
    for _ in 0..count {
        groups.push((take_u32(&mut rest)?, take_bytes(&mut rest)?));
    }
    let (mut prepared, mut decided) = (Vec::new(), Vec::new());
    if version == VERSION {
        for _ in 0..take_u32(&mut rest)? {
            prepared.push(take_bytes(&mut rest)?);
        }
        for _ in 0..take_u32(&mut rest)? {
            decided.push(take_bytes(&mut rest)?);
        }
    }
    rest.is_empty().then_some(State {
        catalog,
        dedup,
        queues,
        groups,
        prepared,
        decided,
    })
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_le_bytes(*head))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_u32(rest)? as usize;
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Mono;

    #[test]
    fn a_state_survives_and_every_cut_is_seen() {
        let catalog = Catalog::new(4);
        let clock = Clock {
            now: Mono(0),
            wall_us: 0,
        };
        let mut bytes = Vec::new();
        encode(
            Some(&catalog),
            &Dedup::default(),
            &Queues::default(),
            &Transactions::default(),
            std::iter::empty(),
            (Moment::Running, clock, CoreId(0)),
            &mut bytes,
        );
        let state = decode(&bytes).expect("it was just written");
        assert_eq!(state.catalog, catalog.encode());
        assert_eq!(state.queues, []);
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "cut at {len}");
        }
    }
}
