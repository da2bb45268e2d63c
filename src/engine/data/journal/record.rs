//! One record of a journal block: its 64-byte head, its kinds, how a record proves itself.
//! Does not know blocks, segments, files or what a record does to a queue.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | `kind` |
//! | 1 | 1 | `flags` |
//! | 2 | 2 | `partition` |
//! | 4 | 4 | `length`: head and body, without the zeros that pad a record to 16 bytes |
//! | 8 | 4 | `count`: messages of a run; of other kinds what the kind says |
//! | 12 | 4 | `crc`: crc32c of what the body folds to, then of this head with zero in this field |
//! | 16 | 8 | `partition_sequence`: number of the record in its partition, from 1 without gaps |
//! | 24 | 4 | `term`: replication term, 0 on a single node |
//! | 28 | 4 | `queue` |
//! | 32 | 8 | `queue_sequence` of the first message |
//! | 40 | 8 | `producer`; of a relocated record the segment number of the old place, of a body of its own |
//! | 48 | 8 | `producer_sequence` of the first message; of a relocated record the old offset, of a body its own |
//! | 56 | 4 | `producer_epoch` |
//! | 60 | 4 | `back`: of an entry how many bytes before it its body begins; else zero |
//!
//! A body of messages folds to the first 8 bytes of each message, its producer's checksum and its
//! length: the producer's checksum covers the rest, so no message is ever summed a second time on
//! the way in. Every other body folds to itself, also of kinds that later versions add. So each
//! record proves itself, alone, wherever it is found; a block only has to prove which records it
//! holds.
//!
//! A record that proves itself and is of a kind that this version does not read ends recovery with
//! its number: a later version wrote it, and nothing that it says may be guessed or skipped. Kinds
//! from 128 on are the exception: they say nothing that a reader must know, take no number in their
//! partition, and are skipped.

use ringpost_wire::checksum::{crc32c, crc32c_append};
use ringpost_wire::envelope;
use ringpost_wire::ids::{PartitionId, ProducerId, QueueId, QueueSequence, Sequence};
use ringpost_wire::limits::{ALIGN, ENVELOPE_BYTES, padded};

/// Bytes of a record's head.
pub const RECORD_HEAD_BYTES: u32 = 64;

/// Numbers of blocks, segments and records stay below it for longer than any disk lives: one that
/// does not is no number of ours.
pub const NUMBER_MAX: u64 = 1 << 60;

/// The partition of records that belong to no partition but need an order: topology.
pub const PARTITION_META: PartitionId = PartitionId(u16::MAX);
/// The partition of what a core knows of transactions over several cores.
pub const PARTITION_TRANSACTIONS: PartitionId = PartitionId(u16::MAX - 1);

/// Set on a record that was moved here from another place of the journal.
pub const FLAG_RELOCATED: u8 = 1;
/// Set on the second copy of an index part.
pub const FLAG_SECOND_COPY: u8 = 2;
/// Set on a watermark that lists every partition that has records.
pub const FLAG_COMPLETE: u8 = 8;
/// Set on the index part that ends its segment.
pub const FLAG_LAST_PART: u8 = 4;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a record is. Numbers are never reused.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// Every kind this version knows.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The kind of that number, if this version knows it.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Messages of one queue with consecutive queue sequences, from one producer; the body is the
    /// messages exactly as they travel.
    Run = 1,
    /// One piece of a message larger than a frame; the body is a wire fragment.
    Fragment = 2,
    /// Ranges of queue sequences that are settled.
    Ack = 3,
    /// A run that lay elsewhere: replay moves what of it is still live, never adds.
    Relocated = 4,
    /// A queue may have been delivered up to a sequence (rulings 15).
    Mark = 5,
    /// Delivery counts above zero.
    Counts = 6,
    /// A change of topology, opaque here.
    Catalog = 7,
    /// States that everything before it is synced, and where each partition stands (rulings 9).
    Watermark = 8,
    /// Opens an incarnation: what follows the block before it was cut.
    Truncate = 9,
    /// An operator accepts the loss of a range.
    Loss = 10,
    /// A part of the index of a segment.
    Index = 11,
    /// Reserved: a partition leaves this journal.
    Seal = 12,
    /// Messages of several queues, from one producer; it belongs to no partition and names its own
    /// place (ADR 0026).
    Body = 13,
    /// A queue has the messages of a body that lies before it in the same block.
    Entry = 14,
    /// Reserved: replication's vote and term.
    HardState = 15,
    /// A transaction is prepared on this core: everything it does here (data/transaction/part.rs).
    Prepare = 16,
    /// What becomes of a transaction (data/transaction/part.rs); in the block of what it does here.
    Decide = 17,
    /// Reserved: ranges of queue sequences that expired.
    Expire = 18,
    /// Reserved: a queue was emptied up to a sequence.
    Purge = 19,
    /// A partition that another journal held continues here; the body is the record sequence it
    /// had when it was here before, so that the step is not taken for damage (rulings 14).
    Adopt = 20,
    /// The sequences of the run before it, which are not consecutive: how far each is behind the
    /// head's, u32 each. That run names no producer (ADR 0014).
    Sequences = 21,
    /// How far groups of a stream have come, or that they are no more (queue/stream/groups.rs).
    Offsets = 24,
}

impl Kind {
    /// Whether the body is whole messages, each with its producer's checksum.
    #[must_use]
    pub const fn has_messages(self) -> bool {
        matches!(self, Kind::Run | Kind::Relocated | Kind::Body)
    }

    /// Whether the record takes a number in its partition.
    #[must_use]
    pub const fn is_sequenced(self) -> bool {
        !matches!(
            self,
            Kind::Watermark | Kind::Truncate | Kind::Index | Kind::Body
        )
    }

    /// Whether the index of a segment lists records of this kind.
    #[must_use]
    pub const fn is_indexed(self) -> bool {
        matches!(
            self,
            Kind::Run | Kind::Relocated | Kind::Fragment | Kind::Entry
        )
    }

    /// Whether the number is taken and this version neither writes nor reads it.
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        match self {
            Kind::Run
            | Kind::Fragment
            | Kind::Ack
            | Kind::Relocated
            | Kind::Mark
            | Kind::Counts
            | Kind::Catalog
            | Kind::Watermark
            | Kind::Truncate
            | Kind::Loss
            | Kind::Index
            | Kind::Adopt
            | Kind::Sequences
            | Kind::Prepare
            | Kind::Decide
            | Kind::Offsets
            | Kind::Body
            | Kind::Entry => false,
            Kind::Seal | Kind::HardState | Kind::Expire | Kind::Purge => true,
        }
    }
}

/// Kinds from this number on may be skipped by who does not know them.
const KIND_IGNORABLE_MIN: u8 = 128;

/// A record's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead {
    /// What it is.
    pub kind: Kind,
    /// Flags of the kind.
    pub flags: u8,
    /// The partition it belongs to.
    pub partition: PartitionId,
    /// Head and body in bytes, without padding.
    pub length: u32,
    /// Messages of a run; of other kinds what the kind says.
    pub count: u32,
    /// Proves body and head.
    pub crc: u32,
    /// Number of the record in its partition; 0 if the kind takes none.
    pub partition_sequence: u64,
    /// Replication term.
    pub term: u32,
    /// The queue, 0 if none.
    pub queue: QueueId,
    /// Queue sequence of the first message.
    pub queue_sequence: QueueSequence,
    /// The producer, 0 if it gave no identity.
    pub producer: ProducerId,
    /// Producer sequence of the first message.
    pub producer_sequence: Sequence,
    /// The producer's epoch.
    pub producer_epoch: u32,
    /// Of an entry: how many bytes before it its body begins; else 0.
    pub back: u32,
}

/// A whole record of a kind that this version does not know: a later one wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unknown {
    /// The number of its kind.
    pub kind: u8,
    /// Head and body in bytes, without padding.
    pub length: u32,
    /// Proves body and head.
    pub crc: u32,
}

impl Unknown {
    /// Whether it may be skipped.
    #[must_use]
    pub const fn is_ignorable(self) -> bool {
        self.kind >= KIND_IGNORABLE_MIN
    }
}

/// Why bytes are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordFault {
    /// Too short for its head or its length.
    Cut,
    /// A kind this version does not know. It proves itself, or the fault would be another.
    KindUnknown(Unknown),
    /// Reserved bytes are not zero, a number is beyond all reason, or a body of messages does not
    /// walk.
    Malformed,
    /// The checksum does not fit.
    Checksum,
}

impl RecordHead {
    /// The bytes on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_HEAD_BYTES as usize] {
        let mut bytes = [0; RECORD_HEAD_BYTES as usize];
        bytes[0] = self.kind as u8;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.partition.0.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.partition_sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.term.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.queue.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.queue_sequence.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.producer.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.producer_sequence.0.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.producer_epoch.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.back.to_le_bytes());
        bytes
    }

    /// Reads the head that starts `bytes`; proves nothing but that it can be read.
    ///
    /// # Errors
    /// A [`RecordFault`] if it is cut, its reserved bytes are not zero, or its kind is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let head = bytes
            .get(..RECORD_HEAD_BYTES as usize)
            .ok_or(RecordFault::Cut)?;
        let Some(kind) = Kind::from_number(head[0]) else {
            return Err(fault_of_kind(bytes));
        };
        let length = u32_at(head, 4);
        let is_possible = u64_at(head, 16) < NUMBER_MAX && u64_at(head, 32) < NUMBER_MAX;
        let back = u32_at(head, 60);
        let is_here = (back > 0) == (kind == Kind::Entry);
        if length < RECORD_HEAD_BYTES || !is_here || !is_possible {
            return Err(RecordFault::Malformed);
        }
        Ok(Self {
            kind,
            flags: head[1],
            partition: PartitionId(u16::from_le_bytes([head[2], head[3]])),
            length,
            count: u32_at(head, 8),
            crc: u32_at(head, 12),
            partition_sequence: u64_at(head, 16),
            term: u32_at(head, 24),
            queue: QueueId(u32_at(head, 28)),
            queue_sequence: QueueSequence(u64_at(head, 32)),
            producer: ProducerId(u64_at(head, 40)),
            producer_sequence: Sequence(u64_at(head, 48)),
            producer_epoch: u32_at(head, 56),
            back,
        })
    }

    /// Bytes the record takes in its block, padding included.
    #[must_use]
    pub const fn padded_length(&self) -> u32 {
        align_record(self.length)
    }

    /// Bytes of the body.
    #[must_use]
    pub const fn body_bytes(&self) -> u32 {
        self.length - RECORD_HEAD_BYTES
    }

    /// Sets `crc` over a body that folded to `folded`, and returns the bytes on disk.
    #[must_use]
    pub fn seal(&mut self, folded: u32) -> [u8; RECORD_HEAD_BYTES as usize] {
        self.seal_gathered(&mut Gathered::new(folded))
    }

    /// As [`RecordHead::seal`], over a body that was gathered.
    #[must_use]
    pub(crate) fn seal_gathered(
        &mut self,
        folded: &mut Gathered,
    ) -> [u8; RECORD_HEAD_BYTES as usize] {
        self.crc = 0;
        let mut bytes = self.encode();
        folded.push(&bytes);
        self.crc = folded.sum();
        bytes[12..16].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }
}

/// What is wrong with a record whose kind is unknown: damage, or a later version.
fn fault_of_kind(bytes: &[u8]) -> RecordFault {
    let (length, crc) = (u32_at(bytes, 4), u32_at(bytes, 12));
    let Some(body) = bytes.get(RECORD_HEAD_BYTES as usize..length as usize) else {
        return RecordFault::Cut;
    };
    let mut head = [0; RECORD_HEAD_BYTES as usize];
    head.copy_from_slice(&bytes[..RECORD_HEAD_BYTES as usize]);
    head[12..16].fill(0);
    if head[0] == 0 || crc32c_append(crc32c(body), &head) != crc {
        return RecordFault::Checksum;
    }
    RecordFault::KindUnknown(Unknown {
        kind: head[0],
        length,
        crc,
    })
}

/// `bytes` rounded up to the alignment of records.
#[must_use]
pub const fn align_record(bytes: u32) -> u32 {
    (bytes + (ALIGN as u32 - 1)) & !(ALIGN as u32 - 1)
}

/// Reads the record that starts `bytes` and checks its checksum: its head, its body if that is not
/// messages, the lengths and checksums of its messages but not the messages themselves.
///
/// # Errors
/// A [`RecordFault`]; disk bytes never panic.
pub fn check(bytes: &[u8]) -> Result<(RecordHead, &[u8]), RecordFault> {
    let head = RecordHead::decode(bytes)?;
    let body = bytes
        .get(RECORD_HEAD_BYTES as usize..head.length as usize)
        .ok_or(RecordFault::Cut)?;
    let folded = if head.kind.has_messages() {
        let folded = fold_messages(0, body).ok_or(RecordFault::Malformed)?;
        if folded.count != head.count {
            return Err(RecordFault::Malformed);
        }
        folded.crc
    } else {
        crc32c(body)
    };
    let mut sealed = head;
    let _bytes_not_needed = sealed.seal(folded);
    if sealed.crc == head.crc {
        Ok((head, body))
    } else {
        Err(RecordFault::Checksum)
    }
}

/// Bytes that a [`Gathered`] holds back.
const GATHERED_BYTES: usize = 128;

/// A checksum of pieces that come one by one. A call for a few bytes costs more than their sum, so
/// they are summed together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gathered {
    crc: u32,
    held: usize,
    bytes: [u8; GATHERED_BYTES],
}

impl Gathered {
    /// Of what `crc` covers, and what follows.
    pub(crate) const fn new(crc: u32) -> Self {
        Self {
            crc,
            held: 0,
            bytes: [0; GATHERED_BYTES],
        }
    }

    /// Adds a piece.
    #[inline]
    pub(crate) fn push(&mut self, piece: &[u8]) {
        if self.held + piece.len() > GATHERED_BYTES {
            self.crc = self.sum();
            self.held = 0;
        }
        match self.bytes[self.held..].get_mut(..piece.len()) {
            Some(place) => {
                place.copy_from_slice(piece);
                self.held += piece.len();
            }
            None => self.crc = crc32c_append(self.crc, piece),
        }
    }

    /// The checksum of all pieces.
    pub(crate) fn sum(&self) -> u32 {
        crc32c_append(self.crc, &self.bytes[..self.held])
    }
}

/// What a body of messages folds to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Folded {
    /// crc32c of the first 8 bytes of each message.
    pub crc: u32,
    /// Messages walked.
    pub count: u32,
}

/// Walks messages and folds the first 8 bytes of each into `crc`; `None` if they do not end where
/// `messages` ends.
#[must_use]
pub fn fold_messages(crc: u32, messages: &[u8]) -> Option<Folded> {
    let mut gathered = Gathered::new(crc);
    let count = gather_messages(&mut gathered, messages)?;
    let crc = gathered.sum();
    Some(Folded { crc, count })
}

/// As [`fold_messages`], into what was gathered before; says how many messages there are. If it is
/// none, what was gathered is worth nothing.
#[must_use]
pub(crate) fn gather_messages(gathered: &mut Gathered, messages: &[u8]) -> Option<u32> {
    let mut count = 0;
    let mut rest = messages;
    while let Some(first) = rest.first_chunk::<8>() {
        let length = u32_at(first, 4) as usize;
        let taken = padded(length);
        if length < ENVELOPE_BYTES || taken > rest.len() {
            return None;
        }
        gathered.push(first);
        count += 1;
        rest = &rest[taken..];
    }
    rest.is_empty().then_some(count)
}

/// Checks every message of a body against its producer's checksum, and that padding is zero.
/// Calls `bad` with the number in the run of each that fails. The body must have walked.
pub fn check_messages(body: &[u8], mut bad: impl FnMut(u32)) {
    let mut rest = body;
    let mut index = 0;
    while let Some(length) = envelope::length_of(rest) {
        let taken = padded(length).max(ALIGN).min(rest.len());
        let (message, after) = rest.split_at(taken);
        if !check_message(message) {
            bad(index);
        }
        index += 1;
        rest = after;
    }
}

/// Whether a padded message is what its producer summed, with zeros after it.
#[must_use]
pub fn check_message(message: &[u8]) -> bool {
    let Some(length) = envelope::length_of(message) else {
        return false;
    };
    length >= ENVELOPE_BYTES
        && length <= message.len()
        && crc32c(&message[4..length]) == u32_at(message, 0)
        && message[length..].iter().all(|byte| *byte == 0)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Appends an integer in 7-bit groups, lowest first.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends up to eight integers as [`put_varint`] does, growing `out` once.
pub(crate) fn put_varints(out: &mut Vec<u8>, values: &[u64]) {
    const EACH_MAX: usize = 10;
    let mut bytes = [0u8; 8 * EACH_MAX];
    let mut at = 0;
    for value in values {
        let mut value = *value;
        while value >= 0x80 {
            bytes[at] = value as u8 | 0x80;
            value >>= 7;
            at += 1;
        }
        bytes[at] = value as u8;
        at += 1;
    }
    out.extend_from_slice(&bytes[..at]);
}

/// Takes an integer off the front of `bytes`; `None` if it is cut or over 64 bits.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let group = u64::from(byte & 0x7f);
        if shift == 63 && group > 1 {
            return None;
        }
        value |= group << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::MessageParts;

    fn run() -> Vec<u8> {
        let mut body = Vec::new();
        for payload in [&b"one"[..], b"", b"a longer third one"] {
            let parts = MessageParts {
                payload,
                ..MessageParts::default()
            };
            parts.write(&mut body).expect("within limits");
        }
        let mut head = RecordHead {
            kind: Kind::Run,
            flags: 0,
            partition: PartitionId(3),
            length: RECORD_HEAD_BYTES + body.len() as u32,
            count: 3,
            crc: 0,
            partition_sequence: 9,
            term: 1,
            queue: QueueId(5),
            queue_sequence: QueueSequence(17),
            producer: ProducerId(99),
            producer_sequence: Sequence(4),
            producer_epoch: 2,
            back: 0,
        };
        let folded = fold_messages(0, &body).expect("walks").crc;
        let mut bytes = head.seal(folded).to_vec();
        bytes.extend_from_slice(&body);
        bytes
    }

    #[test]
    fn every_flipped_bit_of_a_run_is_seen() {
        let bytes = run();
        let whole = |bytes: &[u8]| -> bool {
            check(bytes).is_ok_and(|(_, body)| {
                let mut good = true;
                check_messages(body, |_| good = false);
                good
            })
        };
        assert!(whole(&bytes));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!whole(&bad), "bit {bit} passed");
        }
        for len in 0..bytes.len() {
            assert!(!whole(&bytes[..len]), "cut at {len} passed");
        }
    }

    #[test]
    fn a_flipped_body_bit_names_its_message() {
        let mut bytes = run();
        let last = bytes.len() - 20;
        bytes[last] ^= 1;
        let (_, body) = check(&bytes).expect("the record itself is whole");
        let mut bad = Vec::new();
        check_messages(body, |index| bad.push(index));
        assert_eq!(bad, [2]);
    }

    #[test]
    fn a_kind_of_a_later_version_is_named_if_it_proves_itself() {
        let mut bytes = run();
        for kind in [22, 127, 128, 255] {
            bytes[0] = kind;
            assert_eq!(check(&bytes), Err(RecordFault::Checksum));
            let mut head = bytes[..RECORD_HEAD_BYTES as usize].to_vec();
            head[12..16].fill(0);
            let crc = crc32c_append(crc32c(&bytes[RECORD_HEAD_BYTES as usize..]), &head);
            let mut whole = bytes.clone();
            whole[12..16].copy_from_slice(&crc.to_le_bytes());
            let length = bytes.len() as u32;
            let unknown = Unknown { kind, length, crc };
            assert_eq!(check(&whole), Err(RecordFault::KindUnknown(unknown)));
            assert_eq!(unknown.is_ignorable(), kind >= 128);
            assert_eq!(check(&whole[..whole.len() - 1]), Err(RecordFault::Cut));
        }
    }

    #[test]
    fn kinds_and_varints_survive() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(*kind as u8), Some(*kind));
        }
        assert_eq!(Kind::from_number(0), None);
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut rest = &out[..];
            assert_eq!(take_varint(&mut rest), Some(value));
            assert!(rest.is_empty());
            let mut cut = &out[..out.len() - 1];
            assert_eq!(take_varint(&mut cut), None);
        }
        assert_eq!(take_varint(&mut &[0xff; 10][..]), None);
    }
}
