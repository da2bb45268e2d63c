//! What a transaction does on one core, and the bodies of the records that say so.
//! Does not know when they are written.
//!
//! `Prepare`, all integers little-endian:
//!
//! ```text
//! id: core u16, zero u16, zero u32, number u64 | run count u32 | queue count u32 | message bytes u32 |
//! zero u32 | runs: queue u32, count u32, bytes u32, zero u32 | messages as they travel |
//! queues: queue u32, acknowledged u32 | acknowledged: sequence u64, padded bytes u32, earlier
//! deliveries u32
//! ```
//!
//! `Decide` is the id, then `what` u16 and a count u16, then so many cores, u16 each; the head's count
//! is zero.

use ringpost_wire::SettleRange;
use ringpost_wire::ids::{CoreId, QueueId};

use crate::data::journal::group_bytes;
use crate::data::journal::record::{fold_messages, u32_at, u64_at};
use crate::data::queue::Taken;

/// The name of a transaction among all that there ever were.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionId {
    /// The core that decides it.
    pub core: CoreId,
    /// Its number there: the incarnation of that core's journal, and a count. A decision that comes
    /// late finds no other transaction.
    pub number: u64,
}

/// Messages for one queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PartRun {
    /// The queue.
    pub queue: QueueId,
    /// How many.
    pub count: u32,
    /// Their padded bytes.
    pub bytes: u32,
}

/// Deliveries that are acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PartAck {
    /// The consumer's key on its core.
    pub consumer: u64,
    /// Its delivery tags.
    pub range: SettleRange,
}

/// What a transaction asks of one core.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Part {
    /// Messages, queue by queue.
    pub runs: Vec<PartRun>,
    /// These, back to back.
    pub messages: Vec<u8>,
    /// Acknowledgements.
    pub acks: Vec<PartAck>,
}

/// Messages that a transaction acknowledges, queue by queue.
pub type TakenOf = Vec<(QueueId, Vec<Taken>)>;

/// What a transaction does on one core: the messages that it acknowledges belong to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Messages, queue by queue.
    pub runs: Vec<PartRun>,
    /// These, back to back.
    pub messages: Vec<u8>,
    /// What it acknowledges.
    pub taken: TakenOf,
}

/// Bytes of an id and of a count beside it.
const ID_BYTES: usize = 16;
const HEAD_BYTES: usize = ID_BYTES + 16;
const RUN_BYTES: usize = 16;
const QUEUE_BYTES: usize = 8;
const TAKEN_BYTES: usize = 16;
/// Bytes of the body of a `Decide` without cores.
const DECISION_BYTES: usize = ID_BYTES + 4;

impl Share {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.taken.is_empty()
    }

    /// Whether both acknowledge a message.
    #[must_use]
    pub fn shares_with(&self, other: &Self) -> bool {
        self.taken.iter().any(|(queue, taken)| {
            let same = other.taken.iter().filter(|(of, _)| of == queue);
            same.flat_map(|(_, others)| others).any(|one| {
                let at = taken.binary_search_by_key(&one.sequence, |own| own.sequence);
                at.is_ok()
            })
        })
    }

    /// Bytes of memory that it takes, roughly.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let taken: usize = self.taken.iter().map(|(_, taken)| taken.len()).sum();
        (self.messages.len() + self.runs.len() * RUN_BYTES + taken * size_of::<Taken>()) as u64
    }

    /// Bytes of all its records in one block, with a decision for so many cores; also what it takes
    /// prepared is no more.
    #[must_use]
    pub fn group_bytes(&self, cores: usize) -> u64 {
        let runs = self
            .runs
            .iter()
            .map(|run| u64::from(group_bytes(run.bytes as usize)));
        let acks = self
            .taken
            .iter()
            .map(|(_, taken)| u64::from(group_bytes(taken.len() * TAKEN_BYTES)));
        let decision = group_bytes(DECISION_BYTES + cores * 2);
        let prepared = u64::from(group_bytes(self.body_bytes()));
        prepared.max(runs.chain(acks).sum::<u64>() + u64::from(decision))
    }

    fn body_bytes(&self) -> usize {
        let taken = self.taken.iter();
        let taken = taken.map(|(_, taken)| QUEUE_BYTES + taken.len() * TAKEN_BYTES);
        HEAD_BYTES + self.runs.len() * RUN_BYTES + self.messages.len() + taken.sum::<usize>()
    }

    /// Appends the body of a `Prepare`.
    pub fn encode(&self, id: TransactionId, out: &mut Vec<u8>) {
        let mut number = |number: usize| {
            let number = u32::try_from(number).expect("a share is bounded");
            out.extend_from_slice(&number.to_le_bytes());
        };
        number(usize::from(id.core.0));
        number(0);
        number((id.number & u64::from(u32::MAX)) as usize);
        number((id.number >> 32) as usize);
        number(self.runs.len());
        number(self.taken.len());
        number(self.messages.len());
        number(0);
        for run in &self.runs {
            number(run.queue.0 as usize);
            number(run.count as usize);
            number(run.bytes as usize);
            number(0);
        }
        out.extend_from_slice(&self.messages);
        for (queue, taken) in &self.taken {
            out.extend_from_slice(&queue.0.to_le_bytes());
            out.extend_from_slice(&(taken.len() as u32).to_le_bytes());
            for one in taken {
                out.extend_from_slice(&one.sequence.to_le_bytes());
                out.extend_from_slice(&one.bytes.to_le_bytes());
                out.extend_from_slice(&one.earlier.to_le_bytes());
            }
        }
    }

    /// The id and share of a `Prepare`; `None` if the body is no such thing.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<(TransactionId, Self)> {
        let (head, mut rest) = body.split_at_checked(HEAD_BYTES)?;
        let id = decode_id(head)?;
        let [run_count, queue_count, message_bytes] =
            [16, 20, 24].map(|at| u32_at(head, at) as usize);
        if u32_at(head, 28) != 0 || run_count > rest.len() / RUN_BYTES {
            return None;
        }
        let mut share = Self::default();
        let mut bytes = 0;
        for _ in 0..run_count {
            let run = take(&mut rest, RUN_BYTES)?;
            let run_bytes = u32_at(run, 8);
            bytes += run_bytes as usize;
            share.runs.push(PartRun {
                queue: QueueId(u32_at(run, 0)),
                count: u32_at(run, 4),
                bytes: run_bytes,
            });
        }
        let messages = take(&mut rest, message_bytes)?;
        let mut left = messages;
        for run in &share.runs {
            let walked = fold_messages(0, take(&mut left, run.bytes as usize)?)?;
            if walked.count != run.count || run.count == 0 {
                return None;
            }
        }
        if bytes != message_bytes {
            return None;
        }
        share.messages.extend_from_slice(messages);
        for _ in 0..queue_count {
            let queue = take(&mut rest, QUEUE_BYTES)?;
            let count = u32_at(queue, 4) as usize;
            let all = take(&mut rest, count.checked_mul(TAKEN_BYTES)?)?;
            let taken = all.chunks_exact(TAKEN_BYTES).map(|one| Taken {
                sequence: u64_at(one, 0),
                bytes: u32_at(one, 8),
                earlier: u32_at(one, 12),
            });
            share
                .taken
                .push((QueueId(u32_at(queue, 0)), taken.collect()));
        }
        let is_ordered = share.taken.iter().all(|(_, taken)| {
            let rises = taken
                .windows(2)
                .all(|pair| pair[0].sequence < pair[1].sequence);
            rises && taken.first().is_some_and(|first| first.sequence > 0)
        });
        (rest.is_empty() && is_ordered).then_some((id, share))
    }
}

/// What a `Decide` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The core that decides: everything of it happens, on these other cores, too.
    Commit(Vec<CoreId>),
    /// The same core: all of them have done it, nobody asks any more.
    Done,
    /// A core that takes part: it is done here.
    Applied,
    /// A core that takes part: nothing of it happens here.
    Dropped,
}

impl Decision {
    /// Appends the body of a `Decide`.
    pub fn encode(&self, id: TransactionId, out: &mut Vec<u8>) {
        let (what, cores): (u16, &[CoreId]) = match self {
            Self::Commit(cores) => (1, cores),
            Self::Done => (2, &[]),
            Self::Applied => (3, &[]),
            Self::Dropped => (4, &[]),
        };
        out.extend_from_slice(&id.core.0.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&id.number.to_le_bytes());
        out.extend_from_slice(&what.to_le_bytes());
        out.extend_from_slice(&(cores.len() as u16).to_le_bytes());
        for core in cores {
            out.extend_from_slice(&core.0.to_le_bytes());
        }
    }

    /// The id and decision of a `Decide`; `None` if the body is no such thing.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<(TransactionId, Self)> {
        let (head, rest) = body.split_at_checked(DECISION_BYTES)?;
        let id = decode_id(head)?;
        let what = u32_at(head, ID_BYTES);
        let (what, count) = (what & 0xffff, (what >> 16) as usize);
        if rest.len() != count * 2 {
            return None;
        }
        let cores = rest.chunks_exact(2);
        let cores = cores.map(|core| CoreId(u16::from_le_bytes([core[0], core[1]])));
        let decision = match (what, count) {
            (1, 1..) => Self::Commit(cores.collect()),
            (2, 0) => Self::Done,
            (3, 0) => Self::Applied,
            (4, 0) => Self::Dropped,
            _ => return None,
        };
        Some((id, decision))
    }
}

fn decode_id(bytes: &[u8]) -> Option<TransactionId> {
    let core = u32_at(bytes, 0);
    let number = u64_at(bytes, 8);
    let is_id = u32_at(bytes, 4) == 0 && core <= u32::from(u16::MAX);
    is_id.then_some(TransactionId {
        core: CoreId(core as u16),
        number,
    })
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::MessageParts;

    fn share() -> Share {
        let mut messages = Vec::new();
        for payload in [&b"one"[..], b"two", b"three"] {
            let parts = MessageParts {
                payload,
                ..MessageParts::default()
            };
            parts.write(&mut messages).expect("a small message");
        }
        let each = messages.len() as u32 / 3;
        let run = |queue, count| PartRun {
            queue: QueueId(queue),
            count,
            bytes: count * each,
        };
        let taken = |sequence| Taken {
            sequence,
            bytes: 96,
            earlier: 2,
        };
        Share {
            runs: vec![run(3, 2), run(9, 1)],
            messages,
            taken: vec![(QueueId(4), vec![taken(7), taken(9)])],
        }
    }

    const ID: TransactionId = TransactionId {
        core: CoreId(5),
        number: 7 << 32 | 3,
    };

    #[test]
    fn shares_survive_and_cuts_are_seen() {
        let share = share();
        let mut body = Vec::new();
        share.encode(ID, &mut body);
        assert_eq!(body.len(), share.body_bytes());
        assert!(share.group_bytes(3) >= u64::from(group_bytes(body.len())));
        assert_eq!(Share::decode(&body), Some((ID, share.clone())));
        assert!(share.shares_with(&share));
        let mut other = share;
        other.taken[0].1.remove(0);
        other.taken[0].1[0].sequence = 8;
        assert!(!self::share().shares_with(&other));
        for length in 0..body.len() {
            assert_eq!(Share::decode(&body[..length]), None, "cut at {length}");
        }
        body.push(0);
        assert_eq!(Share::decode(&body), None);
    }

    #[test]
    fn shares_that_do_not_hold_together_are_none() {
        let mut twice = share();
        twice.taken[0].1[1].sequence = 7;
        let mut wrong = share();
        wrong.runs[0].count = 1;
        for share in [twice, wrong] {
            let mut body = Vec::new();
            share.encode(ID, &mut body);
            assert_eq!(Share::decode(&body), None);
        }
    }

    #[test]
    fn decisions_survive_and_cuts_are_seen() {
        let cores = vec![CoreId(1), CoreId(300)];
        for decision in [
            Decision::Commit(cores),
            Decision::Done,
            Decision::Applied,
            Decision::Dropped,
        ] {
            let mut body = Vec::new();
            decision.encode(ID, &mut body);
            assert_eq!(Decision::decode(&body), Some((ID, decision)));
            for length in 0..body.len() {
                assert_eq!(Decision::decode(&body[..length]), None, "cut at {length}");
            }
        }
    }
}
