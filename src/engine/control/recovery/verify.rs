//! Checks a whole journal, offline: what recovery would do, then every block it would not read.
//! Does not write, and does not know how bytes are read.

use std::ops::Range;

use super::{Recovery, Replay, Report, Status, index_of};
use crate::data::journal::block::{BLOCK_ALIGN, BlockHeader, Content, Records, check_content};
use crate::data::journal::record::{self, Kind, RecordHead};
use crate::data::journal::segment::{BlockEntry, IndexBody, RunEntry};
use crate::data::journal::shared::LastBody;
use crate::data::journal::{Config, Damage};
use crate::effect::{Buffers, Effect, Effects};
use crate::ids::{BufferId, Place, SegmentIdx, SlotId};
use crate::input::{IoFault, SlotHead};
use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// What recovery found, and damage in what it does not read.
    pub report: Report,
    /// Blocks of sealed segments that were checked.
    pub block_count: u64,
}

impl Verified {
    /// Whether nothing is lost or in doubt.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.report.damages.is_empty()
            && self.report.findings.is_empty()
            && !self.report.checkpoint_damaged
    }
}

/// Checks a journal; `read` fills a slice from a byte position of a slot. Never writes.
///
/// # Errors
/// Why the journal can not be opened at all.
pub fn verify(
    config: Config,
    heads: &[SlotHead],
    checkpoints: &[Vec<u8>],
    mut read: impl FnMut(SlotId, u32, &mut [u8]) -> Result<(), IoFault>,
) -> Result<Verified, String> {
    let mut memory = Memory {
        bytes: vec![0; config.buffer_bytes as usize],
        is_held: false,
    };
    let mut effects = Effects::default();
    let mut recovery = Recovery::new(config, heads, checkpoints);
    loop {
        match recovery.step(&mut memory, &mut effects, &mut Nobody) {
            Status::Done => break,
            Status::Failed(reason) => return Err(reason),
            Status::Working => {}
        }
        for effect in std::mem::take(&mut effects.list) {
            if let Effect::Read {
                op,
                slot,
                position,
                range,
                ..
            } = effect
            {
                let into = &mut memory.bytes[range.start as usize..range.end as usize];
                let result = read(slot, position, into);
                recovery.io_done(op, result, &mut effects);
            }
        }
    }
    let mut check = Check {
        config,
        recovery: &recovery,
        verified: Verified {
            report: recovery.report.clone(),
            block_count: 0,
        },
        bytes: memory.bytes,
        read: &mut read,
    };
    check.everything();
    Ok(check.verified)
}

struct Check<'a, F> {
    config: Config,
    recovery: &'a Recovery,
    verified: Verified,
    bytes: Vec<u8>,
    read: &'a mut F,
}

impl<F: FnMut(SlotId, u32, &mut [u8]) -> Result<(), IoFault>> Check<'_, F> {
    fn everything(&mut self) {
        for segment in &self.recovery.named {
            self.segment(*segment);
        }
    }

    fn segment(&mut self, segment: SegmentIdx) {
        let parts = self.recovery.named_parts(segment);
        let upto = self.recovery.named_upto(segment);
        let mut checked_upto = 0;
        for (number, part) in parts.iter().enumerate() {
            checked_upto = part.covers_upto;
            if part.is_given_up() {
                continue;
            }
            let mut body = None;
            for (copy, at) in [part.first_copy, part.second_copy].into_iter().enumerate() {
                let found = self.index_at(segment, at);
                if found.is_none() {
                    self.find(format!(
                        "copy {} of index part {number} of {} is bad",
                        copy + 1,
                        self.name(segment)
                    ));
                }
                body = body.or(found);
            }
            match body {
                Some(body) => self.blocks(segment, &body.blocks),
                None => self.unindexed(segment, part.covers_from, part.covers_upto),
            }
        }
        let made = self.recovery.named_made_parts(segment);
        for body in &made {
            self.blocks(segment, &body.blocks);
        }
        match self.recovery.open_blocks(segment) {
            Some(body) => self.blocks(segment, &body.blocks),
            None if parts.is_empty() && made.is_empty() => {
                self.unindexed(segment, checked_upto, upto);
            }
            None => {}
        }
    }

    fn name(&self, segment: SegmentIdx) -> String {
        let entry = self.recovery.table.get(segment);
        format!("segment {} (slot {})", entry.number.0, entry.slot.0)
    }

    fn find(&mut self, finding: String) {
        if !self.verified.report.findings.contains(&finding) {
            self.verified.report.findings.push(finding);
        }
    }

    /// The header at `at` of a segment, and the block's bytes in `self.bytes`.
    fn block_at(&mut self, segment: SegmentIdx, at: u32) -> Option<BlockHeader> {
        let left = self.config.segment_bytes.checked_sub(at)?;
        let length = left.min(self.config.buffer_bytes) as usize;
        let entry = self.recovery.table.get(segment);
        if (self.read)(entry.slot, at, &mut self.bytes[..length]).is_err() {
            // Perhaps only what follows it can not be read.
            let head = (BLOCK_ALIGN as usize).min(length);
            self.bytes[head..].fill(0);
            (self.read)(entry.slot, at, &mut self.bytes[..head]).ok()?;
            let whole = BlockHeader::decode(&self.bytes[..head])?.bytes() as usize;
            if let Some(rest) = self.bytes[..length].get_mut(head..whole) {
                let behind = at + head as u32;
                if (self.read)(entry.slot, behind, rest).is_err() {
                    rest.fill(0);
                }
            }
        }
        let header = BlockHeader::decode(&self.bytes[..length])?;
        let is_here = self.recovery.is_ours(&header)
            && header.offset == at
            && header.segment_number == entry.number
            && header.bytes() as usize <= length;
        is_here.then_some(header)
    }

    fn index_at(&mut self, segment: SegmentIdx, at: u32) -> Option<IndexBody> {
        let header = self.block_at(segment, at)?;
        index_of(&header, &self.bytes[..header.bytes() as usize])
    }

    /// Checks blocks that an index lists.
    fn blocks(&mut self, segment: SegmentIdx, entries: &[BlockEntry]) {
        for entry in entries {
            self.verified.block_count += 1;
            let header = self
                .block_at(segment, entry.offset)
                .filter(|header| header.sequence == entry.sequence);
            let content = header.map(|header| {
                let block = &self.bytes[..header.bytes() as usize];
                (header, check_content(&header, block))
            });
            match content {
                Some((_, Content::Good)) => {}
                Some((_, Content::PaddingDirty)) => {
                    self.verified.report.padding_dirty_count += 1;
                }
                Some((header, Content::MessagesBad(_))) => self.messages(&header, segment),
                Some((_, Content::KindUnread(kind))) => self.unread(kind, segment, entry.offset),
                Some((_, Content::Bad)) | None => self.lost(segment, entry),
            }
        }
    }

    fn unread(&mut self, kind: u8, segment: SegmentIdx, offset: u32) {
        self.find(format!(
            "{} holds a record of kind {kind} at offset {offset}, which this version does not read",
            self.name(segment)
        ));
    }

    /// Everything in a listed block is in doubt: the index says what that is.
    fn lost(&mut self, segment: SegmentIdx, entry: &BlockEntry) {
        let number = self.recovery.table.get(segment).number;
        for range in &entry.partitions {
            self.damage(Damage {
                partition: PartitionId(range.partition),
                first: range.first,
                upto: range.last + 1,
                queue: QueueId(0),
                queue_sequence: QueueSequence(0),
                segment_number: number,
                offset: entry.offset,
            });
        }
        if entry.partitions.is_empty() {
            self.find(format!(
                "block {} of {} is bad, but held no records",
                entry.sequence.0,
                self.name(segment)
            ));
        }
    }

    fn damage(&mut self, damage: Damage) {
        if !self.verified.report.damages.contains(&damage) {
            self.verified.report.damages.push(damage);
        }
    }

    fn messages(&mut self, header: &BlockHeader, segment: SegmentIdx) {
        let number = self.recovery.table.get(segment).number;
        let mut damages = Vec::new();
        let mut bodies = LastBody::default();
        for found in Records::new(header, &self.bytes[..header.bytes() as usize]) {
            let Ok((head, body)) = found.record else {
                continue;
            };
            let (body, offset) = match head.kind {
                Kind::Body => {
                    bodies.note(found.at, &head, body);
                    continue;
                }
                Kind::Entry => match bodies.of(&head, found.at) {
                    Some((at, messages)) => (messages, at),
                    None => continue,
                },
                kind if kind.has_messages() => (body, found.at),
                _ => continue,
            };
            record::check_messages(body, |index| {
                damages.push(Damage {
                    partition: head.partition,
                    first: head.partition_sequence,
                    upto: head.partition_sequence + 1,
                    queue: head.queue,
                    queue_sequence: head.queue_sequence.plus(u64::from(index)),
                    segment_number: number,
                    offset: header.offset + offset,
                });
            });
        }
        for damage in damages {
            self.damage(damage);
        }
    }

    /// Checks blocks that no index lists: what is bad is named by its place only.
    fn unindexed(&mut self, segment: SegmentIdx, from: u32, upto: u32) {
        let mut at = from;
        while at < upto {
            self.verified.block_count += 1;
            let Some(header) = self.block_at(segment, at) else {
                self.find(format!("{} is bad at offset {at}", self.name(segment)));
                at += BLOCK_ALIGN;
                continue;
            };
            let block = &self.bytes[..header.bytes() as usize];
            match check_content(&header, block) {
                Content::Good => {}
                Content::PaddingDirty => self.verified.report.padding_dirty_count += 1,
                Content::MessagesBad(_) => self.messages(&header, segment),
                Content::KindUnread(kind) => self.unread(kind, segment, at),
                Content::Bad => {
                    self.find(format!("{} is bad at offset {at}", self.name(segment)));
                }
            }
            at += header.bytes();
        }
    }
}

/// One buffer.
struct Memory {
    bytes: Vec<u8>,
    is_held: bool,
}

impl Buffers for Memory {
    fn buffer_bytes(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn available(&self) -> usize {
        usize::from(!self.is_held)
    }

    fn acquire(&mut self) -> Option<BufferId> {
        let is_free = !self.is_held;
        self.is_held = true;
        is_free.then_some(BufferId(0))
    }

    fn bytes(&self, _buffer: BufferId, range: Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    fn open_bytes(&mut self, _buffer: BufferId, from: u32) -> &mut [u8] {
        &mut self.bytes[from as usize..]
    }

    fn seal(&mut self, _buffer: BufferId, _upto: u32) {}
}

/// Takes what is replayed and forgets it.
struct Nobody;

impl Replay for Nobody {
    fn checkpoint(&mut self, _state: &[u8]) {}
    fn block(&mut self, _wall_us: u64) {}
    fn index(&mut self, _entry: &RunEntry, _place: Place) {}
    fn run(&mut self, _head: &RecordHead, _messages: &[u8], _place: Place) {}
    fn fragment(&mut self, _head: &RecordHead, _body: &[u8], _place: Place) {}
    fn relocated(&mut self, _head: &RecordHead, _body: &[u8], _place: Place) {}
    fn record(&mut self, _head: &RecordHead, _body: &[u8]) {}
    fn incomplete(&mut self, _queue: QueueId, _sequence: QueueSequence) {}
}
