//! The table of slots and segments of a core, and the index that a segment keeps of itself.
//! Does not know buffers, writes in flight or what makes a message live.
//!
//! An index part covers a stretch of blocks. It is written twice, in blocks of its own, when it
//! has grown to a quarter of a buffer and when the segment is sealed; the last part is the footer.
//! Its body is a list of variable-length integers:
//!
//! ```text
//! part number, offset of the part before / 4096, first block's sequence, its offset / 4096,
//! block count, run count
//! per block: bytes / 4096, partition count, per partition: partition, first sequence, count - 1
//! per run:   kind * 2 + relocated, queue, queue sequence, count, offset step / 16, body bytes / 16,
//!            and of a fragment: message bytes
//! ```

use std::ops::{Deref, DerefMut};

use crate::data::journal::block::{BLOCK_ALIGN, BlockSequence, SegmentNumber};
use crate::data::journal::record::{Kind, put_varint, put_varints, take_varint};
use crate::ids::{JournalId, SegmentIdx, SlotId};
use ringpost_wire::ids::{QueueId, QueueSequence};

/// What a slot is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// No file.
    Absent,
    /// Its file is being created or removed.
    Busy,
    /// Its file is there and holds nothing that is needed.
    Free,
    /// It holds the segment that is being written.
    Open,
    /// It holds a segment that is never written again.
    Sealed,
}

impl SlotState {
    const COUNT: usize = 5;
}

const _: () = assert!(SlotState::Sealed as usize + 1 == SlotState::COUNT);

/// Where a part of a segment's index lies and what it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IndexPart {
    /// Byte offset of the first block covered.
    pub covers_from: u32,
    /// Byte offset after the last block covered.
    pub covers_upto: u32,
    /// Byte offset of the block with the first copy.
    pub first_copy: u32,
    /// Byte offset of the block with the second copy.
    pub second_copy: u32,
}

impl IndexPart {
    /// Neither copy can be read: what they said was made again from the blocks.
    pub(crate) fn give_up(&mut self) {
        self.first_copy = 0;
        self.second_copy = 0;
    }

    /// Whether its copies were given up. No copy lies at the start of a segment: it covers a block
    /// before it.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.first_copy == 0 && self.second_copy == 0
    }
}

/// One slot and the segment it holds.
#[derive(Clone, Debug)]
pub struct Segment {
    /// What the slot is used for.
    pub state: SlotState,
    /// The file.
    pub slot: SlotId,
    /// The journal it belongs to; another than the core's own if the number of cores changed.
    pub journal: JournalId,
    /// The life of the slot.
    pub number: SegmentNumber,
    /// Bytes written: where the next block goes.
    pub written_bytes: u32,
    /// Bytes known synced, a prefix: what may be read back.
    pub durable_bytes: u32,
    /// The parts of its index, in order.
    pub parts: Vec<IndexPart>,
    /// Bodies of index parts that recovery made from blocks, where the segment has none of its own
    /// that can be read or believed. Checkpoints carry them, so that the blocks are read once.
    pub made_parts: Vec<Vec<u8>>,
    /// Units (messages, once for each queue that has them; pieces of large messages) that are not durably
    /// settled.
    pub live_count: u64,
    /// Units ever appended.
    pub unit_count: u64,
    /// Bytes of their records: what they take when nothing else is around them.
    pub unit_bytes: u64,
    /// The newest checkpoint that needs it, by naming it or by replaying it.
    pub named_generation: u64,
    /// Reads and relocations in flight that need its bytes to stay.
    pub pin_count: u32,
    /// Something in it could not be read: it is kept, and never relocated.
    pub is_damaged: bool,
    /// It was opened when publishes may not take another one.
    pub is_reserve: bool,
    /// Its file is missing or too short: it must be made anew before anything is written to it.
    pub is_short: bool,
}

impl Segment {
    /// A slot of which nothing is known but its number.
    #[must_use]
    pub fn absent(slot: SlotId, journal: JournalId) -> Self {
        Self {
            state: SlotState::Absent,
            slot,
            journal,
            number: SegmentNumber::default(),
            written_bytes: 0,
            durable_bytes: 0,
            parts: Vec::new(),
            made_parts: Vec::new(),
            live_count: 0,
            unit_count: 0,
            unit_bytes: 0,
            named_generation: 0,
            pin_count: 0,
            is_damaged: false,
            is_reserve: false,
            is_short: false,
        }
    }

    /// Estimated bytes of the records of live units. Of what queues share as if each had its own, as it
    /// will if it is moved, but never more than what was written.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        let bytes = u128::from(self.unit_bytes) * u128::from(self.live_count);
        let each = bytes.checked_div(u128::from(self.unit_count)).unwrap_or(0);
        each.min(u128::from(self.written_bytes)) as u64
    }

    /// The runs that its made parts list.
    pub fn made_runs(&self) -> impl Iterator<Item = RunEntry> {
        let bodies = self.made_parts.iter();
        bodies
            .filter_map(|body| IndexBody::decode(body))
            .flat_map(|body| body.runs)
    }

    /// Whether nothing in it is needed but by checkpoints.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.live_count == 0 && self.pin_count == 0
    }
}

/// What the table keeps counted, so that no turn has to walk it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Slots by state, in the order of [`SlotState`].
    states: [usize; SlotState::COUNT],
    /// Sealed segments with nothing live and no pin: they wait for checkpoints to become free.
    pub dead_count: usize,
    /// Sealed segments with something live.
    pub holding_count: usize,
    /// Estimated live bytes in those.
    pub live_bytes: u64,
}

impl Totals {
    fn add(&mut self, segment: &Segment) {
        self.states[segment.state as usize] += 1;
        if segment.state == SlotState::Sealed {
            self.dead_count += usize::from(segment.is_dead());
            self.holding_count += usize::from(segment.live_count > 0);
            self.live_bytes += segment.live_bytes();
        }
    }

    fn remove(&mut self, segment: &Segment) {
        self.states[segment.state as usize] -= 1;
        if segment.state == SlotState::Sealed {
            self.dead_count -= usize::from(segment.is_dead());
            self.holding_count -= usize::from(segment.live_count > 0);
            self.live_bytes -= segment.live_bytes();
        }
    }
}

/// Every slot of a core, by its index.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Vec<Segment>,
    totals: Totals,
}

/// An entry that may be changed; the totals follow when it is let go.
#[derive(Debug)]
pub struct SegmentMut<'a> {
    segment: &'a mut Segment,
    totals: &'a mut Totals,
}

impl Deref for SegmentMut<'_> {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        self.segment
    }
}

impl DerefMut for SegmentMut<'_> {
    fn deref_mut(&mut self) -> &mut Segment {
        self.segment
    }
}

impl Drop for SegmentMut<'_> {
    fn drop(&mut self) {
        self.totals.add(self.segment);
    }
}

impl Table {
    /// The segment; panics if there is none of that index, which would be our own mistake.
    #[must_use]
    pub fn get(&self, segment: SegmentIdx) -> &Segment {
        &self.entries[segment.0 as usize]
    }

    /// As [`Table::get`], to change.
    pub fn get_mut(&mut self, segment: SegmentIdx) -> SegmentMut<'_> {
        let segment = &mut self.entries[segment.0 as usize];
        self.totals.remove(segment);
        SegmentMut {
            segment,
            totals: &mut self.totals,
        }
    }

    /// Adds an entry and returns its index.
    pub fn push(&mut self, segment: Segment) -> SegmentIdx {
        let index = SegmentIdx(u32::try_from(self.entries.len()).expect("slots are bounded"));
        self.totals.add(&segment);
        self.entries.push(segment);
        index
    }

    /// Every entry with its index.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentIdx, &Segment)> {
        let number = |(index, segment)| (SegmentIdx(index as u32), segment);
        self.entries.iter().enumerate().map(number)
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries are in a state.
    #[must_use]
    pub fn count(&self, state: SlotState) -> usize {
        self.totals.states[state as usize]
    }

    /// What is kept counted.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The entry with the lowest index in a state, other than `but`.
    #[must_use]
    pub fn first(&self, state: SlotState, but: Option<SegmentIdx>) -> Option<SegmentIdx> {
        self.iter()
            .find(|(index, segment)| segment.state == state && Some(*index) != but)
            .map(|(index, _)| index)
    }

    /// The entry of a slot of a journal.
    #[must_use]
    pub fn of_slot(&self, journal: JournalId, slot: SlotId) -> Option<SegmentIdx> {
        self.iter()
            .find(|(_, segment)| segment.slot == slot && segment.journal == journal)
            .map(|(index, _)| index)
    }

    /// Asserts that what is kept counted is what a count gives.
    pub fn invariants(&self) {
        let mut totals = Totals::default();
        for segment in &self.entries {
            totals.add(segment);
        }
        assert_eq!(totals, self.totals);
    }
}

/// What the index says of one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunEntry {
    /// Run, Relocated, Fragment or Entry.
    pub kind: Kind,
    /// Whether it lay elsewhere before.
    pub is_relocated: bool,
    /// The queue.
    pub queue: QueueId,
    /// Queue sequence of the first message.
    pub queue_sequence: QueueSequence,
    /// Messages; of a fragment the number of the piece.
    pub count: u32,
    /// Byte offset of the record in the segment; of an entry that of its body.
    pub offset: u32,
    /// Bytes of the body, padding included; of an entry those of its body.
    pub body_bytes: u32,
    /// Of a fragment: bytes of the whole message; else 0.
    pub message_bytes: u32,
}

/// Records of one partition in one block: sequences `first..=last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionRange {
    /// The partition.
    pub partition: u16,
    /// First record sequence.
    pub first: u64,
    /// Last record sequence.
    pub last: u64,
}

/// The index of the blocks since the last part, while they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenIndex {
    blocks: Vec<u8>,
    runs: Vec<u8>,
    block_count: u32,
    run_count: u32,
    /// Sequence of the first block covered.
    first_block: BlockSequence,
    /// Byte offset of the first block covered.
    covers_from: u32,
    /// Byte offset after the last block covered.
    covers_upto: u32,
    /// Offset of the last run entry, against which the next is written.
    last_offset: u32,
}

impl OpenIndex {
    /// Bytes that the part would have now, at most.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        (self.blocks.len() + self.runs.len() + 64) as u32
    }

    /// Whether it covers nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.block_count == 0 && self.run_count == 0
    }

    /// Byte offset of the first block covered.
    #[must_use]
    pub fn covers_from(&self) -> u32 {
        self.covers_from
    }

    /// Byte offset after the last block covered.
    #[must_use]
    pub fn covers_upto(&self) -> u32 {
        self.covers_upto
    }

    /// Adds a run.
    pub fn add_run(&mut self, entry: &RunEntry) {
        let step = entry.offset.wrapping_sub(self.last_offset) / 16;
        let numbers = [
            (entry.kind as u64) << 1 | u64::from(entry.is_relocated),
            u64::from(entry.queue.0),
            entry.queue_sequence.0,
            u64::from(entry.count),
            u64::from(step),
            u64::from(entry.body_bytes / 16),
            u64::from(entry.message_bytes),
        ];
        let count = match entry.kind {
            Kind::Fragment => numbers.len(),
            _ => numbers.len() - 1,
        };
        put_varints(&mut self.runs, &numbers[..count]);
        self.last_offset = entry.offset;
        self.run_count += 1;
    }

    /// Adds a block after its runs.
    pub fn add_block(
        &mut self,
        sequence: BlockSequence,
        offset: u32,
        bytes: u32,
        partitions: &[PartitionRange],
    ) {
        if self.block_count == 0 {
            self.first_block = sequence;
            self.covers_from = offset;
        }
        assert!(bytes.is_multiple_of(BLOCK_ALIGN), "blocks are aligned");
        put_varint(&mut self.blocks, u64::from(bytes / BLOCK_ALIGN));
        put_varint(&mut self.blocks, partitions.len() as u64);
        for range in partitions {
            put_varint(&mut self.blocks, u64::from(range.partition));
            put_varint(&mut self.blocks, range.first);
            put_varint(&mut self.blocks, range.last - range.first);
        }
        self.block_count += 1;
        self.covers_upto = offset + bytes;
    }

    /// Appends the body of the part to `out`.
    pub fn encode(&self, number: u32, part_before: Option<IndexPart>, out: &mut Vec<u8>) {
        put_varint(out, u64::from(number));
        let before = part_before.map_or(0, |part| part.first_copy / BLOCK_ALIGN);
        put_varint(out, u64::from(before));
        put_varint(out, self.first_block.0);
        put_varint(out, u64::from(self.covers_from / BLOCK_ALIGN));
        put_varint(out, u64::from(self.block_count));
        put_varint(out, u64::from(self.run_count));
        out.extend_from_slice(&self.blocks);
        out.extend_from_slice(&self.runs);
    }

    /// Forgets everything; keeps the memory.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.runs.clear();
        self.block_count = 0;
        self.run_count = 0;
        self.first_block = BlockSequence(0);
        self.covers_from = 0;
        self.covers_upto = 0;
        self.last_offset = 0;
    }
}

/// What the index says of one block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockEntry {
    /// The block.
    pub sequence: BlockSequence,
    /// Its byte offset in the segment.
    pub offset: u32,
    /// Its bytes.
    pub bytes: u32,
    /// Its partitions and their sequences.
    pub partitions: Vec<PartitionRange>,
}

/// A part of an index, read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IndexBody {
    /// Number of the part in its segment, from 0.
    pub number: u32,
    /// Byte offset of the part before, 0 if none.
    pub part_before: u32,
    /// The blocks covered.
    pub blocks: Vec<BlockEntry>,
    /// The runs covered.
    pub runs: Vec<RunEntry>,
}

impl IndexBody {
    /// Reads a part; `None` if the bytes are none. The caller has checked their checksum.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let u32_of = |value: u64| u32::try_from(value).ok();
        let number = u32_of(take_varint(rest)?)?;
        let part_before = u32_of(take_varint(rest)?)?.checked_mul(BLOCK_ALIGN)?;
        let mut sequence = take_varint(rest)?;
        let mut offset = u32_of(take_varint(rest)?)?.checked_mul(BLOCK_ALIGN)?;
        let block_count = take_varint(rest)?;
        let run_count = take_varint(rest)?;
        let mut body = Self {
            number,
            part_before,
            ..Self::default()
        };
        for _ in 0..block_count {
            let bytes = u32_of(take_varint(rest)?)?.checked_mul(BLOCK_ALIGN)?;
            let partition_count = take_varint(rest)?;
            let mut partitions = Vec::new();
            for _ in 0..partition_count {
                let partition = u16::try_from(take_varint(rest)?).ok()?;
                let first = take_varint(rest)?;
                let last = first.checked_add(take_varint(rest)?)?;
                partitions.push(PartitionRange {
                    partition,
                    first,
                    last,
                });
            }
            body.blocks.push(BlockEntry {
                sequence: BlockSequence(sequence),
                offset,
                bytes,
                partitions,
            });
            sequence = sequence.checked_add(1)?;
            offset = offset.checked_add(bytes)?;
        }
        let mut record_offset = 0u32;
        for _ in 0..run_count {
            let tag = take_varint(rest)?;
            let kind = Kind::from_number(u8::try_from(tag >> 1).ok()?)?;
            let queue = QueueId(u32_of(take_varint(rest)?)?);
            let queue_sequence = QueueSequence(take_varint(rest)?);
            let count = u32_of(take_varint(rest)?)?;
            let step = u32_of(take_varint(rest)?)?.checked_mul(16)?;
            record_offset = record_offset.checked_add(step)?;
            let body_bytes = u32_of(take_varint(rest)?)?.checked_mul(16)?;
            let message_bytes = match kind {
                Kind::Fragment => u32_of(take_varint(rest)?)?,
                _ => 0,
            };
            body.runs.push(RunEntry {
                kind,
                is_relocated: tag & 1 == 1,
                queue,
                queue_sequence,
                count,
                offset: record_offset,
                body_bytes,
                message_bytes,
            });
        }
        rest.is_empty().then_some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_part_survives() {
        let mut index = OpenIndex::default();
        let run = RunEntry {
            kind: Kind::Run,
            is_relocated: false,
            queue: QueueId(7),
            queue_sequence: QueueSequence(1 << 40),
            count: 12,
            offset: 4096 + 128,
            body_bytes: 960,
            message_bytes: 0,
        };
        let piece = RunEntry {
            kind: Kind::Fragment,
            is_relocated: true,
            offset: 12288 + 128,
            message_bytes: 1 << 24,
            ..run
        };
        let ranges = [
            PartitionRange {
                partition: 3,
                first: 9,
                last: 9,
            },
            PartitionRange {
                partition: u16::MAX,
                first: 1,
                last: 500,
            },
        ];
        index.add_run(&run);
        index.add_block(BlockSequence(5), 4096, 8192, &ranges);
        index.add_run(&piece);
        index.add_block(BlockSequence(6), 12288, 4096, &[]);
        let mut bytes = Vec::new();
        index.encode(1, Some(IndexPart::default()), &mut bytes);
        assert!(bytes.len() <= index.bytes() as usize);
        let body = IndexBody::decode(&bytes).expect("as written");
        assert_eq!(body.runs, [run, piece]);
        assert_eq!(body.blocks[0].partitions, ranges);
        assert_eq!(
            (body.blocks[1].sequence, body.blocks[1].offset),
            (BlockSequence(6), 12288)
        );
        for len in 0..bytes.len() {
            assert_eq!(IndexBody::decode(&bytes[..len]), None, "cut at {len}");
        }
    }
}
