//! What a checkpoint of a journal says, when one is due, and how it is begun.
//! Does not know what the engine's own state in it means, nor how the file is written.
//!
//! A checkpoint is taken at the end of a turn: the open block is sealed, and the content is the
//! state after exactly the blocks up to that one. It is handed to the disk only when they are
//! durable, so replay starts behind it and applies nothing twice. Two generations are on disk, and a
//! segment is reused only when neither needs it: rot in one of them costs nothing.

use std::collections::BTreeSet;

use crate::data::journal::block::{BLOCK_ALIGN, BlockSequence, SegmentNumber};
use crate::data::journal::record::{NUMBER_MAX, u32_at, u64_at};
use crate::data::journal::segment::{IndexBody, IndexPart, OpenIndex, Segment, SlotState};
use crate::data::journal::{Config, Damage, Journal, PendingCheckpoint, RESERVE_SLOTS};
use crate::effect::{Buffers, Effects};
use crate::ids::{JournalId, Mono, SlotId};
use ringpost_wire::checksum::crc32c;
use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

/// First four bytes of every checkpoint.
pub const CHECKPOINT_MAGIC: [u8; 4] = *b"RPC1";
/// The format this code writes, and the only one it reads.
const VERSION: u32 = 1;
/// Journal bytes per checkpoint byte, at least: checkpoints are at most 5 % of what is written.
const BYTES_RATIO: u64 = 20;
/// Dead segment bytes per checkpoint byte, at least, for a checkpoint that only frees space; it
/// takes two.
const DEAD_RATIO: u64 = 2 * BYTES_RATIO;

/// A sealed segment that a checkpoint names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedSegment {
    /// The file.
    pub slot: SlotId,
    /// The journal it belongs to.
    pub journal: JournalId,
    /// The life of the slot.
    pub number: SegmentNumber,
    /// Bytes written.
    pub written_bytes: u32,
    /// Units ever appended.
    pub unit_count: u64,
    /// Bytes of their records.
    pub unit_bytes: u64,
    /// Something in it could not be read.
    pub is_damaged: bool,
    /// The parts of its index.
    pub parts: Vec<IndexPart>,
    /// Index parts that lie in no block; if there is none of either kind its blocks are read.
    pub made_parts: Vec<Vec<u8>>,
}

/// What a checkpoint says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Counts up; even and odd numbers are the two generations on disk.
    pub generation: u64,
    /// Number of the first block that it does not cover. All before are durable.
    pub next_sequence: BlockSequence,
    /// `header_crc` of the last block covered.
    pub prev_crc: u32,
    /// Partitions of the last block covered, modulo 64.
    pub prev_partitions: u64,
    /// Incarnation of the writer.
    pub incarnation: u32,
    /// Number of the next segment.
    pub next_number: SegmentNumber,
    /// Slot of the next segment, if known.
    pub next_slot: Option<SlotId>,
    /// Wall clock in µs since 1970.
    pub wall_us: u64,
    /// Next record sequence of each partition that has records.
    pub partitions: Vec<(PartitionId, u64)>,
    /// Sealed segments with something live.
    pub segments: Vec<NamedSegment>,
    /// The open segment, if there was one: written up to the last block covered.
    pub open: Option<NamedSegment>,
    /// The open segment's index since its last part.
    pub open_index: Vec<u8>,
    /// Damage that nobody accepted yet.
    pub damages: Vec<Damage>,
    /// The engine's own state, opaque here.
    pub state: Vec<u8>,
}

impl Checkpoint {
    /// The bytes on disk.
    #[must_use]
    pub fn encode(&self, config: &Config) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.state.len());
        out.extend_from_slice(&CHECKPOINT_MAGIC);
        out.extend_from_slice(&[0; 4]);
        let mut put = Put(&mut out);
        put.u32(VERSION);
        put.u32(u32::from(config.journal.0));
        put.u64(config.journal_uuid);
        put.u64(self.generation);
        put.u64(self.next_sequence.0);
        put.u32(self.prev_crc);
        put.u64(self.prev_partitions);
        put.u32(self.incarnation);
        put.u64(self.next_number.0);
        put.u32(self.next_slot.map_or(u32::MAX, |slot| slot.0));
        put.u64(self.wall_us);
        put.count(self.partitions.len());
        for (partition, next) in &self.partitions {
            put.u32(u32::from(partition.0));
            put.u64(*next);
        }
        put.count(self.segments.len());
        for segment in &self.segments {
            put.segment(segment);
        }
        put.count(usize::from(self.open.is_some()));
        if let Some(open) = &self.open {
            put.segment(open);
        }
        put.bytes(&self.open_index);
        put.count(self.damages.len());
        for damage in &self.damages {
            put.u32(u32::from(damage.partition.0));
            put.u64(damage.first);
            put.u64(damage.upto);
            put.u32(damage.queue.0);
            put.u64(damage.queue_sequence.0);
            put.u64(damage.segment_number.0);
            put.u32(damage.offset);
        }
        put.bytes(&self.state);
        let crc = crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a checkpoint of that journal; `None` if the bytes are none.
    #[must_use]
    pub fn decode(config: &Config, bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 8
            || bytes[..4] != CHECKPOINT_MAGIC
            || crc32c(&bytes[8..]) != u32_at(bytes, 4)
        {
            return None;
        }
        let mut take = Take(&bytes[8..]);
        let is_ours = take.u32()? == VERSION
            && take.u32()? == u32::from(config.journal.0)
            && take.u64()? == config.journal_uuid;
        if !is_ours {
            return None;
        }
        let mut checkpoint = Self {
            generation: take.u64()?,
            next_sequence: BlockSequence(take.u64()?),
            prev_crc: take.u32()?,
            prev_partitions: take.u64()?,
            incarnation: take.u32()?,
            next_number: SegmentNumber(take.u64()?),
            next_slot: Some(take.u32()?)
                .filter(|slot| *slot != u32::MAX)
                .map(SlotId),
            wall_us: take.u64()?,
            partitions: Vec::new(),
            segments: Vec::new(),
            open: None,
            open_index: Vec::new(),
            damages: Vec::new(),
            state: Vec::new(),
        };
        if checkpoint.generation == 0 || checkpoint.next_sequence.0 == 0 {
            return None;
        }
        for _ in 0..take.u32()? {
            let partition = PartitionId(u16::try_from(take.u32()?).ok()?);
            checkpoint.partitions.push((partition, take.u64()?));
        }
        for _ in 0..take.u32()? {
            checkpoint.segments.push(take.segment()?);
        }
        if take.u32()? == 1 {
            checkpoint.open = Some(take.segment()?);
        }
        checkpoint.open_index = take.bytes()?.to_vec();
        for _ in 0..take.u32()? {
            checkpoint.damages.push(Damage {
                partition: PartitionId(u16::try_from(take.u32()?).ok()?),
                first: take.u64()?,
                upto: take.u64()?,
                queue: QueueId(take.u32()?),
                queue_sequence: QueueSequence(take.u64()?),
                segment_number: SegmentNumber(take.u64()?),
                offset: take.u32()?,
            });
        }
        checkpoint.state = take.bytes()?.to_vec();
        let is_whole = take.0.is_empty() && checkpoint.is_possible(config);
        is_whole.then_some(checkpoint)
    }

    /// Whether a journal of that configuration can have come to this. What recovery adds to and
    /// reads at is bounded here, so that a checkpoint whose checksum is right and whose content is
    /// not is one that cannot be read, like any other.
    fn is_possible(&self, config: &Config) -> bool {
        let numbers = [
            self.generation,
            self.next_sequence.0,
            self.next_number.0,
            u64::from(self.incarnation) << 30,
        ];
        let nexts = self.partitions.iter().map(|(_, next)| *next);
        let is_counted = numbers
            .into_iter()
            .chain(nexts)
            .all(|number| (1..NUMBER_MAX).contains(&number));
        let named = || self.segments.iter().chain(&self.open);
        let slots: BTreeSet<SlotId> = named().map(|segment| segment.slot).collect();
        is_counted
            && slots.len() == named().count()
            && named().all(|segment| {
                segment.slot.0 < config.slots_at_start_max()
                    && (segment.journal != config.journal || segment.number < self.next_number)
                    && is_boundary(config, segment.written_bytes)
                    && segment.parts.iter().all(|part| {
                        let ends = [
                            part.covers_from,
                            part.covers_upto,
                            part.first_copy,
                            part.second_copy,
                        ];
                        part.covers_from <= part.covers_upto
                            && ends.into_iter().all(|end| is_boundary(config, end))
                    })
            })
    }
}

/// Whether a block of a segment may begin or end there.
fn is_boundary(config: &Config, offset: u32) -> bool {
    offset.is_multiple_of(BLOCK_ALIGN) && offset <= config.segment_bytes
}

struct Put<'a>(&'a mut Vec<u8>);

impl Put<'_> {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("tables are bounded"));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn segment(&mut self, segment: &NamedSegment) {
        self.u32(segment.slot.0);
        self.u32(u32::from(segment.journal.0));
        self.u64(segment.number.0);
        self.u32(segment.written_bytes);
        self.u64(segment.unit_count);
        self.u64(segment.unit_bytes);
        self.u32(u32::from(segment.is_damaged));
        self.count(segment.parts.len());
        for part in &segment.parts {
            self.u32(part.covers_from);
            self.u32(part.covers_upto);
            self.u32(part.first_copy);
            self.u32(part.second_copy);
        }
        self.count(segment.made_parts.len());
        for body in &segment.made_parts {
            self.bytes(body);
        }
    }
}

struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_at_checked(4)?;
        self.0 = rest;
        Some(u32_at(head, 0))
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_at_checked(8)?;
        self.0 = rest;
        Some(u64_at(head, 0))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u64()?).ok()?;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn segment(&mut self) -> Option<NamedSegment> {
        let mut segment = NamedSegment {
            slot: SlotId(self.u32()?),
            journal: JournalId(u16::try_from(self.u32()?).ok()?),
            number: SegmentNumber(self.u64()?),
            written_bytes: self.u32()?,
            unit_count: self.u64()?,
            unit_bytes: self.u64()?,
            is_damaged: self.u32()? != 0,
            parts: Vec::new(),
            made_parts: Vec::new(),
        };
        for _ in 0..self.u32()? {
            segment.parts.push(IndexPart {
                covers_from: self.u32()?,
                covers_upto: self.u32()?,
                first_copy: self.u32()?,
                second_copy: self.u32()?,
            });
        }
        for _ in 0..self.u32()? {
            segment.made_parts.push(self.bytes()?.to_vec());
        }
        Some(segment)
    }
}

fn named(segment: &Segment) -> NamedSegment {
    NamedSegment {
        slot: segment.slot,
        journal: segment.journal,
        number: segment.number,
        written_bytes: segment.written_bytes,
        unit_count: segment.unit_count,
        unit_bytes: segment.unit_bytes,
        is_damaged: segment.is_damaged,
        parts: segment.parts.clone(),
        made_parts: segment.made_parts.clone(),
    }
}

/// Whether a checkpoint should be begun: there is none yet, enough was written since the last one, or
/// segments without anything live wait for one to become free. The first one bounds what damage at
/// the beginning of a new journal can cost.
#[must_use]
pub fn is_due(journal: &Journal, now: Mono) -> bool {
    let known = &journal.checkpoints;
    if !journal.is_ready() || is_underway(journal) || journal.is_backing_off(now) {
        return false;
    }
    let segment_bytes = u64::from(journal.config.segment_bytes);
    let is_written = (known.segments_since > 0 || known.bytes_since >= segment_bytes)
        && known.bytes_since >= BYTES_RATIO * known.last_bytes;
    let dead = journal.table.totals().dead_count as u64;
    let free = journal.table.count(SlotState::Free);
    let is_freeing = dead > 0
        && (free <= RESERVE_SLOTS || dead * segment_bytes >= DEAD_RATIO * known.last_bytes);
    known.generation == 0 || is_written || is_freeing
}

/// Whether one is being made.
#[must_use]
pub fn is_underway(journal: &Journal) -> bool {
    journal.checkpoints.pending.is_some()
}

/// Begins a checkpoint: call between turns, with the engine's state after everything appended.
/// Does nothing if one is being made.
pub fn begin(
    journal: &mut Journal,
    state: Vec<u8>,
    buffers: &mut impl Buffers,
    effects: &mut Effects,
) {
    if !journal.is_ready() || is_underway(journal) {
        return;
    }
    journal.seal_open(buffers);
    let generation = journal.checkpoints.generation + 1;
    let mut segments = Vec::new();
    let mut open = None;
    let mut open_index = Vec::new();
    let mut kept = Vec::new();
    for (index, segment) in journal.table.iter() {
        let is_needed = segment.live_count > 0 || segment.pin_count > 0;
        match segment.state {
            SlotState::Sealed if is_needed => segments.push(named(segment)),
            SlotState::Open => {
                open = Some(named(segment));
                if !journal.index().is_empty() {
                    journal.index().encode(0, None, &mut open_index);
                }
            }
            SlotState::Sealed | SlotState::Absent | SlotState::Busy | SlotState::Free => continue,
        }
        kept.push(index);
    }
    segments.sort_by_key(|segment| segment.number);
    let cut = journal.cut();
    let checkpoint = Checkpoint {
        generation,
        next_sequence: cut.next_sequence,
        prev_crc: cut.prev_crc,
        prev_partitions: cut.prev_partitions,
        incarnation: cut.incarnation,
        next_number: cut.next_number,
        next_slot: cut.next_slot,
        wall_us: cut.wall_us,
        partitions: journal.partitions_next().collect(),
        segments,
        open,
        open_index,
        damages: journal.damages.clone(),
        state,
    };
    for index in kept {
        journal.table.get_mut(index).named_generation = generation;
    }
    let content = checkpoint.encode(&journal.config);
    let known = &mut journal.checkpoints;
    known.generation = generation;
    known.bytes_since = 0;
    known.segments_since = 0;
    known.pending = Some(PendingCheckpoint {
        generation,
        after: BlockSequence(cut.next_sequence.0 - 1),
        content_bytes: content.len() as u64,
        content,
        op: None,
    });
    journal.submit_sealed(buffers, effects);
    journal.advance_checkpoint(effects);
}

/// The open segment's index of a checkpoint, to continue; `None` if it can not be read.
#[must_use]
pub fn open_index(checkpoint: &Checkpoint) -> Option<(OpenIndex, IndexBody)> {
    if checkpoint.open_index.is_empty() {
        return Some((OpenIndex::default(), IndexBody::default()));
    }
    let body = IndexBody::decode(&checkpoint.open_index)?;
    let mut index = OpenIndex::default();
    for run in &body.runs {
        index.add_run(run);
    }
    for block in &body.blocks {
        index.add_block(block.sequence, block.offset, block.bytes, &block.partitions);
    }
    Some((index, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        let segment = NamedSegment {
            slot: SlotId(4),
            journal: JournalId(1),
            number: SegmentNumber(9),
            written_bytes: 65536,
            unit_count: 10,
            unit_bytes: 1000,
            is_damaged: true,
            parts: vec![IndexPart {
                covers_from: 0,
                covers_upto: 4096,
                first_copy: 4096,
                second_copy: 8192,
            }],
            made_parts: vec![vec![9; 5], Vec::new()],
        };
        Checkpoint {
            generation: 3,
            next_sequence: BlockSequence(77),
            prev_crc: 5,
            prev_partitions: 6,
            incarnation: 2,
            next_number: SegmentNumber(11),
            next_slot: None,
            wall_us: 1,
            partitions: vec![(PartitionId(u16::MAX), 4), (PartitionId(0), 9)],
            segments: vec![segment.clone()],
            open: Some(NamedSegment {
                slot: SlotId(5),
                number: SegmentNumber(10),
                ..segment
            }),
            open_index: vec![1, 2, 3],
            damages: vec![Damage {
                partition: PartitionId(3),
                first: 4,
                upto: u64::MAX,
                queue: QueueId(0),
                queue_sequence: QueueSequence(0),
                segment_number: SegmentNumber(9),
                offset: 4096,
            }],
            state: vec![7; 100],
        }
    }

    /// A right checksum does not make a number that recovery would count or read with possible.
    #[test]
    fn what_no_journal_can_have_come_to_is_no_checkpoint() {
        let config = Config::new(JournalId(1), 42);
        let changes: [fn(&mut Checkpoint); 12] = [
            |checkpoint| checkpoint.generation = u64::MAX,
            |checkpoint| checkpoint.next_sequence.0 = u64::MAX,
            |checkpoint| checkpoint.next_number.0 = 0,
            |checkpoint| checkpoint.next_number.0 = 10,
            |checkpoint| checkpoint.incarnation = u32::MAX,
            |checkpoint| checkpoint.partitions[0].1 = u64::MAX,
            |checkpoint| checkpoint.segments[0].slot.0 = u32::MAX,
            |checkpoint| checkpoint.segments[0].slot.0 = 5,
            |checkpoint| checkpoint.segments[0].written_bytes = 4095,
            |checkpoint| checkpoint.segments[0].written_bytes = (32 << 20) + 4096,
            |checkpoint| checkpoint.segments[0].parts[0].covers_from = 8192,
            |checkpoint| checkpoint.segments[0].parts[0].second_copy = u32::MAX,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut checkpoint = sample();
            change(&mut checkpoint);
            let bytes = checkpoint.encode(&config);
            assert_eq!(Checkpoint::decode(&config, &bytes), None, "change {number}");
        }
    }

    #[test]
    fn a_checkpoint_survives_and_damage_to_it_is_seen() {
        let config = Config::new(JournalId(1), 42);
        let checkpoint = sample();
        let bytes = checkpoint.encode(&config);
        assert_eq!(Checkpoint::decode(&config, &bytes), Some(checkpoint));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Checkpoint::decode(&config, &bad), None, "bit {bit} passed");
        }
        for len in 0..bytes.len() {
            assert_eq!(Checkpoint::decode(&config, &bytes[..len]), None);
        }
        let other = Config::new(JournalId(2), 42);
        assert_eq!(Checkpoint::decode(&other, &bytes), None);
    }
}
