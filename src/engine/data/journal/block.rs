//! One block of a segment: its 128-byte header and how its content is proved.
//! Does not know segments' lives, caches or what a record means.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `magic`: `RPJ1` |
//! | 4 | 4 | `header_crc`: crc32c of bytes `8..128`; names the block in the chain |
//! | 8 | 2 | `version`: 1 |
//! | 10 | 2 | `header_bytes`: 128 |
//! | 12 | 2 | `flags`: 1 = holds only a part of the segment's index |
//! | 14 | 2 | `journal` |
//! | 16 | 8 | `journal_uuid` |
//! | 24 | 8 | `segment_number`: names one life of a slot, never reused |
//! | 32 | 4 | `offset`: own byte offset in the slot |
//! | 36 | 4 | `used`: header and records in bytes; zeros follow to the next multiple of 4096 |
//! | 40 | 8 | `sequence`: number of the block in the journal, from 1 without gaps |
//! | 48 | 4 | `incarnation`: number of the recovery that the writer came from |
//! | 52 | 4 | `prev_crc`: `header_crc` of the block before |
//! | 56 | 8 | `durable_upto`: every block up to this one was known synced when this one was sealed |
//! | 64 | 8 | `wall_us`: wall clock |
//! | 72 | 4 | `record_count` |
//! | 76 | 4 | `content_crc`: crc32c of the records' own checksums, in order |
//! | 80 | 8 | `prev_partitions`: bit p % 64 is set if the block before holds records of partition p |
//! | 88 | 4 | `next_slot`: the slot that will hold the next segment, `u32::MAX` if not yet known |
//! | 92 | 4 | zero |
//! | 96 | 8 | `cluster`: reserved for replication |
//! | 104 | 4 | `node`: reserved for replication |
//! | 108 | 4 | `replica`: reserved for replication |
//! | 112 | 16 | zero |

use crate::data::journal::record::{
    self, NUMBER_MAX, RECORD_HEAD_BYTES, RecordFault, RecordHead, align_record, u32_at, u64_at,
};
use crate::ids::{JournalId, SlotId};
use ringpost_wire::checksum::{crc32c, crc32c_append};

/// Bytes of a block's header.
pub const BLOCK_HEADER_BYTES: u32 = 128;
/// Blocks begin and end at multiples of this many bytes.
pub const BLOCK_ALIGN: u32 = 4096;
/// First four bytes of every block.
pub const BLOCK_MAGIC: [u8; 4] = *b"RPJ1";
/// The format this code writes, and the only one it reads.
pub const BLOCK_VERSION: u16 = 1;
/// Flag of a block that holds only a part of the segment's index.
pub const BLOCK_FLAG_INDEX: u16 = 1;

const _: () = assert!(BLOCK_HEADER_BYTES.is_multiple_of(16));
const _: () = assert!(BLOCK_ALIGN.is_multiple_of(512));

/// Number of a block in its journal, from 1; 0 is "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockSequence(pub u64);

/// Number of a segment in its journal, from 1; 0 is "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SegmentNumber(pub u64);

/// A block's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// Proves the header; names the block in the chain.
    pub header_crc: u32,
    /// See [`BLOCK_FLAG_INDEX`].
    pub flags: u16,
    /// The journal.
    pub journal: JournalId,
    /// The journal's own random number, so that another directory's block is never taken for ours.
    pub journal_uuid: u64,
    /// The life of the slot.
    pub segment_number: SegmentNumber,
    /// Own byte offset in the slot: a misdirected write names itself.
    pub offset: u32,
    /// Header and records in bytes.
    pub used: u32,
    /// Number of the block.
    pub sequence: BlockSequence,
    /// Number of the recovery that the writer came from.
    pub incarnation: u32,
    /// `header_crc` of the block before.
    pub prev_crc: u32,
    /// Every block up to this one was known synced when this one was sealed.
    pub durable_upto: BlockSequence,
    /// Wall clock in µs since 1970.
    pub wall_us: u64,
    /// Records in the block.
    pub record_count: u32,
    /// crc32c of the records' own checksums.
    pub content_crc: u32,
    /// Partitions of the block before, modulo 64.
    pub prev_partitions: u64,
    /// The slot of the next segment, if known.
    pub next_slot: Option<SlotId>,
    /// Reserved for replication.
    pub cluster: u64,
    /// Reserved for replication.
    pub node: u32,
    /// Reserved for replication.
    pub replica: u32,
}

impl BlockHeader {
    /// Sets `header_crc` and returns the bytes on disk.
    #[must_use]
    pub fn encode(&mut self) -> [u8; BLOCK_HEADER_BYTES as usize] {
        let mut bytes = [0; BLOCK_HEADER_BYTES as usize];
        bytes[..4].copy_from_slice(&BLOCK_MAGIC);
        bytes[8..10].copy_from_slice(&BLOCK_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(BLOCK_HEADER_BYTES as u16).to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.journal.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.journal_uuid.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment_number.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.offset.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.used.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.sequence.0.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.prev_crc.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.durable_upto.0.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.wall_us.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.record_count.to_le_bytes());
        bytes[76..80].copy_from_slice(&self.content_crc.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.prev_partitions.to_le_bytes());
        let next = self.next_slot.map_or(u32::MAX, |slot| slot.0);
        bytes[88..92].copy_from_slice(&next.to_le_bytes());
        bytes[96..104].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[104..108].copy_from_slice(&self.node.to_le_bytes());
        bytes[108..112].copy_from_slice(&self.replica.to_le_bytes());
        self.header_crc = crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&self.header_crc.to_le_bytes());
        bytes
    }

    /// Reads a header and checks its checksum and that it can be one; `None` otherwise. Does not
    /// check whose it is.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..BLOCK_HEADER_BYTES as usize)?;
        if bytes[..4] != BLOCK_MAGIC || crc32c(&bytes[8..]) != u32_at(bytes, 4) {
            return None;
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let next = u32_at(bytes, 88);
        let header = Self {
            header_crc: u32_at(bytes, 4),
            flags: u16_at(12),
            journal: JournalId(u16_at(14)),
            journal_uuid: u64_at(bytes, 16),
            segment_number: SegmentNumber(u64_at(bytes, 24)),
            offset: u32_at(bytes, 32),
            used: u32_at(bytes, 36),
            sequence: BlockSequence(u64_at(bytes, 40)),
            incarnation: u32_at(bytes, 48),
            prev_crc: u32_at(bytes, 52),
            durable_upto: BlockSequence(u64_at(bytes, 56)),
            wall_us: u64_at(bytes, 64),
            record_count: u32_at(bytes, 72),
            content_crc: u32_at(bytes, 76),
            prev_partitions: u64_at(bytes, 80),
            next_slot: (next != u32::MAX).then_some(SlotId(next)),
            cluster: u64_at(bytes, 96),
            node: u32_at(bytes, 104),
            replica: u32_at(bytes, 108),
        };
        let possible = u16_at(8) == BLOCK_VERSION
            && u32::from(u16_at(10)) == BLOCK_HEADER_BYTES
            && header.used >= BLOCK_HEADER_BYTES
            && header.used <= u32::MAX - BLOCK_ALIGN
            && header.offset.is_multiple_of(BLOCK_ALIGN)
            && (1..NUMBER_MAX).contains(&header.sequence.0)
            && (1..NUMBER_MAX).contains(&header.segment_number.0)
            && u64::from(header.incarnation) << 30 < NUMBER_MAX
            && header.durable_upto < header.sequence;
        possible.then_some(header)
    }

    /// Bytes of the block on disk, padding included.
    #[must_use]
    pub const fn bytes(&self) -> u32 {
        align_block(self.used)
    }

    /// Whether the block holds only a part of the segment's index.
    #[must_use]
    pub const fn is_index(&self) -> bool {
        self.flags & BLOCK_FLAG_INDEX != 0
    }
}

/// `bytes` rounded up to the alignment of blocks.
#[must_use]
pub const fn align_block(bytes: u32) -> u32 {
    (bytes + (BLOCK_ALIGN - 1)) & !(BLOCK_ALIGN - 1)
}

/// Bit of a partition in `prev_partitions`.
#[must_use]
pub const fn partition_bit(partition: u16) -> u64 {
    1 << (partition % 64)
}

/// The records of a block's bytes, by their lengths; ends at the first that cannot be read.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    block: &'a [u8],
    at: u32,
    used: u32,
}

/// One record found in a block.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Byte offset in the block.
    pub at: u32,
    /// Its head and body, or why it is none.
    pub record: Result<(RecordHead, &'a [u8]), RecordFault>,
}

impl<'a> Records<'a> {
    /// The records of `block`, whose header is `header`.
    #[must_use]
    pub fn new(header: &BlockHeader, block: &'a [u8]) -> Self {
        let used = (header.used as usize).min(block.len());
        Self {
            block,
            at: BLOCK_HEADER_BYTES,
            used: used as u32,
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.used {
            return None;
        }
        let at = self.at;
        let bytes = &self.block[at as usize..self.used as usize];
        let record = record::check(bytes);
        // A record whose sum fails still has a length; if that is wrong, so is all that follows.
        let length = match (&record, RecordHead::decode(bytes)) {
            (_, Ok(head)) => Some(head.length),
            (Err(RecordFault::KindUnknown(unknown)), Err(_)) => Some(unknown.length),
            (_, Err(_)) => None,
        };
        self.at = length.map_or(self.used, |length| {
            at.saturating_add(align_record(length.min(self.used)))
        });
        Some(Found { at, record })
    }
}

/// What a whole block's bytes prove.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Every byte that matters is as it was written.
    Good,
    /// As `Good`, but zeros after the records or between them are not zero: harmless bit rot.
    PaddingDirty,
    /// Every record is whole, but so many messages do not fit their producers' checksums.
    MessagesBad(u32),
    /// Whole, with a record of this kind, which this version does not read: a later one wrote it.
    KindUnread(u8),
    /// Not the records that the header names.
    Bad,
}

impl Content {
    /// Whether every byte that matters is as it was written.
    #[must_use]
    pub const fn is_good(self) -> bool {
        match self {
            Content::Good | Content::PaddingDirty | Content::KindUnread(_) => true,
            Content::MessagesBad(_) | Content::Bad => false,
        }
    }
}

/// Checks all of a block, its messages included. `block` holds at least its used bytes.
#[must_use]
pub fn check_content(header: &BlockHeader, block: &[u8]) -> Content {
    if crate::mutant!(BlockChecksumIgnored) {
        return Content::Good;
    }
    let Some(used) = block.get(..header.used as usize) else {
        return Content::Bad;
    };
    let mut content_crc = 0;
    let mut record_count = 0;
    let mut end = BLOCK_HEADER_BYTES;
    let mut bad_messages = 0;
    let mut padding_clean = true;
    let mut kind_unread = None;
    for found in Records::new(header, used) {
        let (length, crc) = match found.record {
            Ok((head, body)) => {
                if head.kind.has_messages() {
                    record::check_messages(body, |_| bad_messages += 1);
                }
                if head.kind.is_reserved() {
                    kind_unread = Some(head.kind as u8);
                }
                (head.length, head.crc)
            }
            Err(RecordFault::KindUnknown(unknown)) => {
                if !unknown.is_ignorable() {
                    kind_unread = Some(unknown.kind);
                }
                (unknown.length, unknown.crc)
            }
            Err(_) => return Content::Bad,
        };
        content_crc = crc32c_append(content_crc, &crc.to_le_bytes());
        record_count += 1;
        let Some(next) = found.at.checked_add(align_record(length)) else {
            return Content::Bad;
        };
        let padding = used.get((found.at + length) as usize..next as usize);
        match padding {
            Some(padding) => padding_clean &= padding.iter().all(|byte| *byte == 0),
            None => return Content::Bad,
        }
        end = next;
    }
    if end != header.used
        || record_count != header.record_count
        || content_crc != header.content_crc
    {
        return Content::Bad;
    }
    if let Some(kind) = kind_unread {
        return Content::KindUnread(kind);
    }
    if bad_messages > 0 {
        return Content::MessagesBad(bad_messages);
    }
    let after = &block[used.len()..block.len().min(header.bytes() as usize)];
    if padding_clean && after.iter().all(|byte| *byte == 0) {
        Content::Good
    } else {
        Content::PaddingDirty
    }
}

const _: () = assert!(BLOCK_HEADER_BYTES + RECORD_HEAD_BYTES < BLOCK_ALIGN);
