//! Opens a journal: finds what is durable, tells a torn tail from damage, replays, and cuts.
//! Does not know what records do to queues: it hands them, in order, to a [`Replay`].
//!
//! ```text
//! checkpoint ─► index of the live segments ─► scan of the tail ─► decide ─► replay of the tail
//! ```
//!
//! The scan reads every block behind the checkpoint and believes nothing but checksums; [`decide`]
//! is a pure function of what it saw. Where the chain of blocks breaks, one question decides: does
//! anything later, or a checkpoint, state that the missing block was synced? If not, it was in
//! flight when the process stopped, and it and everything behind it is cut. If so, the block is
//! damaged: the hole is bounded to the partitions that lost records in it, and replay goes on
//! behind it with the first block that vouches for the hole, or is chained to one that does.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::checkpoint::{self, Checkpoint};
use crate::control::recovery::pieces::Pieces;
use crate::control::words::counted;
use crate::data::journal::block::{
    BLOCK_ALIGN, BlockHeader, BlockSequence, Content, Records, SegmentNumber, check_content,
    partition_bit,
};
use crate::data::journal::record::{
    self, FLAG_COMPLETE, FLAG_LAST_PART, FLAG_RELOCATED, FLAG_SECOND_COPY, Kind, PARTITION_META,
    PARTITION_TRANSACTIONS, RECORD_HEAD_BYTES, RecordFault, RecordHead, align_record, u32_at,
    u64_at,
};
use crate::data::journal::segment::{
    IndexBody, IndexPart, OpenIndex, PartitionRange, RunEntry, Segment, SlotState, Table,
};
use crate::data::journal::shared::{LastBody, entry_of};
use crate::data::journal::{self, Config, Damage, Journal, Start};
use crate::effect::{Buffers, Effect, Effects, Severity};
use crate::ids::{BufferId, OpId, Place, SegmentIdx, SlotId};
use crate::input::{IoFault, SlotHead};
use ringpost_wire::FragmentHead;
use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

mod decide;
pub(crate) mod pieces;
mod verify;

pub use decide::{Base, Plan, Seen, Step, decide};
pub use verify::{Verified, verify};

/// Operations of recovery have this bit, as those of the journal that it becomes.
const OP_JOURNAL: u64 = 1 << 62;
/// Sequences skipped by a partition whose end is in doubt: the gap stays visible to every later
/// recovery until somebody accepts the loss.
const DOUBT_STEP: u64 = 1 << 32;

/// Takes what a journal holds, in order. The state it builds is the state before the crash.
pub trait Replay {
    /// The engine's own state at the cut of the checkpoint; first, or never.
    fn checkpoint(&mut self, state: &[u8]);
    /// A run or piece from before the cut lies here. Whether any of it is live, the state says.
    /// Of two entries for one message the later holds.
    fn index(&mut self, entry: &RunEntry, place: Place);
    /// A run was appended. Some of its messages may be damaged: `locate` refuses those.
    fn run(&mut self, head: &RecordHead, messages: &[u8], place: Place);
    /// What is said next was written when the wall clock showed this.
    fn block(&mut self, wall_us: u64);
    /// A piece of a large message was appended; its number is the head's count.
    fn fragment(&mut self, head: &RecordHead, body: &[u8], place: Place);
    /// Messages, or a piece, lie here now; only those that are still live move (rulings 12).
    fn relocated(&mut self, head: &RecordHead, body: &[u8], place: Place);
    /// Anything else that was appended with `append_record`.
    fn record(&mut self, head: &RecordHead, body: &[u8]);
    /// A large message of which pieces are missing: it was never confirmed, or is settled.
    fn incomplete(&mut self, queue: QueueId, sequence: QueueSequence);
}

/// How recovery stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Status {
    /// It waits for a read.
    Working,
    /// See [`Recovery::finish`].
    Done,
    /// The journal can not be opened; says why. Nothing was written.
    Failed(String),
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Generation of the checkpoint that was used, 0 if none.
    pub generation: u64,
    /// Whether a checkpoint on disk could not be read.
    pub checkpoint_damaged: bool,
    /// Blocks replayed.
    pub replayed_count: u64,
    /// Blocks found behind the cut: in flight when the process stopped.
    pub cut_count: u64,
    /// Blocks that are missing or bad although they were durable.
    pub hole_count: u64,
    /// Blocks with bytes other than zero in their padding: harmless rot.
    pub padding_dirty_count: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads that failed.
    pub read_error_count: u64,
    /// Wall clock of the newest thing found, in µs since 1970.
    pub wall_us: u64,
    /// Damage that nobody accepted.
    pub damages: Vec<Damage>,
    /// Reads that failed, and indexes or blocks of sealed segments that could not be read, in words.
    pub findings: Vec<String>,
}

/// A hole and the partitions that may have lost records in it.
#[derive(Clone, Debug)]
struct OpenHole {
    from: BlockSequence,
    upto: BlockSequence,
    position: Option<(SegmentIdx, u32)>,
    suspects: BTreeSet<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    buffer: BufferId,
    segment: SegmentIdx,
    start: u32,
    bytes: u32,
}

/// Reads of a slot that failed: the first, and how many.
#[derive(Clone, Copy, Debug)]
struct SlotFailures {
    start: u32,
    bytes: u32,
    fault: IoFault,
    count: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    op: OpId,
    held: Held,
    /// Bytes from its start that could be read.
    good: u32,
    /// The fewest that could not.
    bad: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct ScanTarget {
    segment: SegmentIdx,
    from: u32,
    /// Nothing but a name says that it is part of the tail: stop early if nothing is found.
    is_guess: bool,
}

#[derive(Clone, Copy, Debug)]
struct IndexCursor {
    named: usize,
    part: usize,
    copy: u32,
    /// Where in the blocks, if both copies are bad.
    block: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Index(IndexCursor),
    Scan { target: usize, at: u32 },
    Replay { step: usize },
    Done,
}

/// Whether a phase goes on.
enum Flow {
    Continue,
    Wait,
}

/// See the module.
#[derive(Debug)]
pub struct Recovery {
    config: Config,
    table: Table,
    checkpoint: Option<Checkpoint>,
    base: Base,
    phase: Phase,
    /// Segments whose index is read, in order of number; the open one of the checkpoint last.
    named: Vec<SegmentIdx>,
    targets: Vec<ScanTarget>,
    seen: Vec<Seen>,
    plan: Option<Plan>,
    held: Option<Held>,
    reading: Option<Reading>,
    next_op: u64,
    is_begun: bool,

    // The state of the writer, as replay finds it.
    partitions: BTreeMap<u16, u64>,
    holes: Vec<OpenHole>,
    damages: Vec<Damage>,
    index: OpenIndex,
    index_segment: Option<SegmentIdx>,
    /// The index of blocks that are read for want of one.
    made: OpenIndex,
    /// Segments that are not continued, and of whose own index nothing behind this is believed: they
    /// have a hole.
    closed: BTreeSet<SegmentIdx>,
    /// Segments that end with their footer.
    complete: BTreeSet<SegmentIdx>,
    /// Slots that only the older checkpoint needs, and what is in them.
    of_older: Vec<(SegmentIdx, SegmentNumber)>,
    /// Generation of that, 0 if there is none.
    older_generation: u64,
    /// Reads that failed, whatever less was read in their place.
    failed_reads: BTreeMap<SlotId, SlotFailures>,
    prev_partitions: u64,
    pieces: BTreeMap<(QueueId, QueueSequence), Pieces<()>>,
    bytes_since: u64,
    next_number: SegmentNumber,
    incarnation: u32,
    /// Why nothing of this journal may be guessed: it holds what a later version wrote.
    refusal: Option<String>,
    report: Report,
}

impl Recovery {
    /// Prepares to open a journal from the first bytes of its slots and the content of its
    /// checkpoint files, whichever exist.
    #[must_use]
    pub fn new(config: Config, heads: &[SlotHead], checkpoints: &[Vec<u8>]) -> Self {
        config.assert_valid();
        let mut report = Report::default();
        let mut valid: Vec<Checkpoint> = Vec::new();
        for content in checkpoints {
            match Checkpoint::decode(&config, content) {
                Some(checkpoint) => valid.push(checkpoint),
                None => report.checkpoint_damaged = true,
            }
        }
        let durable = valid
            .iter()
            .map(|checkpoint| checkpoint.next_sequence.0 - 1)
            .max()
            .unwrap_or(0);
        valid.sort_by_key(|checkpoint| checkpoint.generation);
        let checkpoint = valid.pop();
        let older = valid.pop();
        let mut recovery = Self {
            config,
            table: Table::default(),
            base: Base {
                position: None,
                number: SegmentNumber(0),
                next_sequence: BlockSequence(1),
                prev_crc: 0,
                incarnation: 0,
                durable: BlockSequence(durable),
            },
            phase: Phase::Index(IndexCursor {
                named: 0,
                part: 0,
                copy: 0,
                block: None,
            }),
            checkpoint,
            named: Vec::new(),
            targets: Vec::new(),
            seen: Vec::new(),
            plan: None,
            held: None,
            reading: None,
            next_op: 1,
            is_begun: false,
            partitions: BTreeMap::new(),
            holes: Vec::new(),
            damages: Vec::new(),
            index: OpenIndex::default(),
            index_segment: None,
            made: OpenIndex::default(),
            closed: BTreeSet::new(),
            complete: BTreeSet::new(),
            of_older: Vec::new(),
            older_generation: 0,
            failed_reads: BTreeMap::new(),
            prev_partitions: 0,
            pieces: BTreeMap::new(),
            bytes_since: 0,
            next_number: SegmentNumber(1),
            incarnation: 0,
            refusal: None,
            report,
        };
        recovery.build_table(heads);
        recovery.name_segments();
        recovery.find_targets(heads);
        if let Some(older) = older {
            recovery.keep_for(&older, heads);
        }
        recovery
    }

    fn build_table(&mut self, heads: &[SlotHead]) {
        let config = self.config;
        let count = heads.iter().map(|head| head.slot.0 + 1).max().unwrap_or(0);
        for slot in 0..count {
            self.table
                .push(Segment::absent(SlotId(slot), config.journal));
        }
        for head in heads {
            let slot = SegmentIdx(head.slot.0);
            let header = BlockHeader::decode(&head.head).filter(|header| self.is_ours(header));
            if head.file_bytes == u64::from(config.segment_bytes) {
                self.table.get_mut(slot).state = SlotState::Free;
            } else if let Some(header) = header {
                // A file is whole before a block is written to it, and never changes its length.
                let mut segment = self.table.get_mut(slot);
                segment.state = SlotState::Free;
                segment.is_short = true;
                drop(segment);
                self.closed.insert(slot);
                self.report.findings.push(format!(
                    "slot {} holds segment {} and has {} bytes instead of {}",
                    head.slot.0, header.segment_number.0, head.file_bytes, config.segment_bytes
                ));
            }
        }
    }

    /// Enters what the checkpoint names into the table.
    fn name_segments(&mut self) {
        let Some(checkpoint) = self.checkpoint.take() else {
            return;
        };
        self.base.next_sequence = checkpoint.next_sequence;
        self.base.prev_crc = checkpoint.prev_crc;
        self.base.incarnation = checkpoint.incarnation;
        self.base.number = SegmentNumber(checkpoint.next_number.0 - 1);
        self.next_number = checkpoint.next_number;
        self.incarnation = checkpoint.incarnation;
        self.prev_partitions = checkpoint.prev_partitions;
        self.damages = checkpoint.damages.clone();
        self.report.generation = checkpoint.generation;
        self.report.wall_us = checkpoint.wall_us;
        for (partition, next) in &checkpoint.partitions {
            self.partitions.insert(partition.0, *next);
        }
        let all = checkpoint.segments.iter().chain(&checkpoint.open);
        for named in all {
            while self.table.len() <= named.slot.0 as usize {
                let slot = SlotId(self.table.len() as u32);
                self.table.push(Segment::absent(slot, self.config.journal));
            }
            let index = SegmentIdx(named.slot.0);
            let mut segment = self.table.get_mut(index);
            if segment.state == SlotState::Absent {
                segment.is_short = true;
                self.report.findings.push(format!(
                    "segment {} is named by checkpoint {} but its file, slot {}, is missing or short",
                    named.number.0, checkpoint.generation, named.slot.0
                ));
            }
            *segment = Segment {
                state: SlotState::Sealed,
                journal: named.journal,
                number: named.number,
                written_bytes: named.written_bytes,
                durable_bytes: named.written_bytes,
                parts: named.parts.clone(),
                made_parts: named.made_parts.clone(),
                unit_count: named.unit_count,
                unit_bytes: named.unit_bytes,
                named_generation: checkpoint.generation,
                is_damaged: named.is_damaged,
                is_short: segment.is_short,
                ..Segment::absent(named.slot, named.journal)
            };
            self.named.push(index);
        }
        if let Some(open) = &checkpoint.open {
            let index = SegmentIdx(open.slot.0);
            self.base.position = Some((index, open.written_bytes));
            self.base.number = open.number;
            self.index_segment = Some(index);
            if self.table.get(index).is_short {
                // Nothing is written to what is not there.
                self.closed.insert(index);
            }
            match checkpoint::open_index(&checkpoint) {
                // Of a file that was cut, the blocks say what is left.
                Some(_) if self.closed.contains(&index) => {}
                Some((index, _)) => self.index = index,
                // Its checksum held, so this is a mistake of the writer: read the blocks instead.
                None => {
                    self.closed.insert(index);
                }
            }
        }
        self.checkpoint = Some(checkpoint);
    }

    /// Lists what must be scanned: the rest of the open segment, and every later one.
    fn find_targets(&mut self, heads: &[SlotHead]) {
        if let Some((segment, from)) = self.base.position {
            self.targets.push(ScanTarget {
                segment,
                from,
                is_guess: false,
            });
        }
        let mut later = Vec::new();
        for head in heads {
            let Some(header) = BlockHeader::decode(&head.head).filter(|h| self.is_ours(h)) else {
                continue;
            };
            self.next_number.0 = self.next_number.0.max(header.segment_number.0 + 1);
            self.incarnation = self.incarnation.max(header.incarnation);
            if header.segment_number > self.base.number && header.offset == 0 {
                later.push((header.segment_number, SegmentIdx(head.slot.0)));
            }
        }
        later.sort_unstable();
        for (_, segment) in later {
            self.add_target(segment, false);
        }
        if let Some(slot) = self.checkpoint.as_ref().and_then(|c| c.next_slot) {
            self.guess_target(slot);
        }
        // Without a checkpoint nothing says which slots are in use, and there are few.
        if self.checkpoint.is_none() {
            for head in heads {
                self.guess_target(head.slot);
            }
        }
    }

    /// Keeps what the older checkpoint names or would replay until the next one takes its place: the
    /// newest may rot before (rulings 12).
    fn keep_for(&mut self, older: &Checkpoint, heads: &[SlotHead]) {
        self.older_generation = older.generation;
        let open = older.open.as_ref().map(|open| open.number);
        let last = open.unwrap_or(SegmentNumber(older.next_number.0 - 1));
        let all = older.segments.iter().chain(&older.open);
        let named: BTreeMap<SlotId, SegmentNumber> =
            all.map(|named| (named.slot, named.number)).collect();
        let targets: BTreeSet<SegmentIdx> =
            self.targets.iter().map(|target| target.segment).collect();
        for head in heads {
            let slot = SegmentIdx(head.slot.0);
            let entry = self.table.get(slot);
            if targets.contains(&slot) || entry.is_short || entry.state != SlotState::Free {
                continue;
            }
            let header = BlockHeader::decode(&head.head).filter(|header| self.is_ours(header));
            let holds = header.map(|header| header.segment_number);
            let named = named.get(&head.slot).copied();
            let replayed = holds.filter(|number| *number > last && *number <= self.base.number);
            // What was used again since is of no use to it.
            let needed = named.filter(|number| holds.is_none_or(|holds| holds == *number));
            self.of_older
                .extend(needed.or(replayed).map(|number| (slot, number)));
        }
    }

    fn is_ours(&self, header: &BlockHeader) -> bool {
        header.journal_uuid == self.config.journal_uuid && header.journal == self.config.journal
    }

    fn guess_target(&mut self, slot: SlotId) {
        if let Some(segment) = self.table.of_slot(self.config.journal, slot) {
            self.add_target(segment, true);
        }
    }

    fn add_target(&mut self, segment: SegmentIdx, is_guess: bool) {
        let is_known = self.targets.iter().any(|target| target.segment == segment);
        // A slot that the checkpoint names holds what it names, nothing newer.
        let is_named = self.named.contains(&segment);
        if !is_known && !is_named && self.table.get(segment).state == SlotState::Free {
            self.targets.push(ScanTarget {
                segment,
                from: 0,
                is_guess,
            });
        }
    }

    /// Works until a read must be waited for. Call it first, and after every [`Recovery::io_done`].
    pub fn step(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        replay: &mut impl Replay,
    ) -> Status {
        if !self.is_begun {
            self.is_begun = true;
            if let Some(checkpoint) = &mut self.checkpoint {
                replay.checkpoint(&checkpoint.state);
                checkpoint.state = Vec::new();
            }
        }
        loop {
            if self.reading.is_some() {
                return Status::Working;
            }
            let flow = match self.phase {
                Phase::Index(cursor) => self.step_index(cursor, buffers, effects, replay),
                Phase::Scan { target, at } => match self.step_scan(target, at, buffers, effects) {
                    Ok(flow) => flow,
                    Err(reason) => return Status::Failed(reason),
                },
                Phase::Replay { step } => match self.step_replay(step, buffers, effects, replay) {
                    Ok(flow) => flow,
                    Err(reason) => return Status::Failed(reason),
                },
                Phase::Done => {
                    if let Some(held) = self.held.take() {
                        effects.push(Effect::Release {
                            buffer: held.buffer,
                        });
                    }
                    return Status::Done;
                }
            };
            match flow {
                Flow::Continue => {}
                Flow::Wait => return Status::Working,
            }
            if let Some(reason) = &self.refusal {
                return Status::Failed(reason.clone());
            }
        }
    }

    fn refuse_kind(&mut self, kind: u8, segment: SegmentIdx, offset: u32) {
        let name = Kind::from_number(kind).map(|kind| format!(" ({kind:?})"));
        self.refusal = Some(format!(
            "journal {} holds records of kind {kind}{} (slot {}, offset {offset}), which this \
             version does not read: start the version that wrote them, or a later one",
            self.config.journal.0,
            name.unwrap_or_default(),
            self.table.get(segment).slot.0
        ));
    }

    /// Takes the answer of a read effect.
    pub fn io_done(&mut self, op: OpId, result: Result<(), IoFault>, effects: &mut Effects) {
        let Some(reading) = self.reading.take_if(|reading| reading.op == op) else {
            return;
        };
        let Reading {
            mut held,
            mut good,
            mut bad,
            ..
        } = reading;
        match result {
            Ok(()) => {
                self.report.read_bytes += u64::from(held.bytes);
                good = held.bytes;
            }
            Err(fault) => {
                self.report.read_error_count += 1;
                if bad.is_none() {
                    self.note_failed_read(held, fault);
                }
                bad = Some(held.bytes);
                if good >= held.bytes {
                    // It could be read before.
                    good = 0;
                }
            }
        }
        // Find out how much of it can be read, to the block: what is whole in it is not lost.
        let most = match bad {
            Some(bad) if bad - good > BLOCK_ALIGN => (good + bad) / 2 / BLOCK_ALIGN * BLOCK_ALIGN,
            Some(_) => good,
            None => held.bytes,
        };
        if most > 0 && (most != held.bytes || result.is_err()) {
            held.bytes = most;
            self.read(held, (good, bad), effects);
            return;
        }
        held.bytes = most;
        self.held = Some(held);
    }

    /// Notes that a read failed: where nothing proves that a block was synced, one that cannot be read
    /// is taken for torn, so that the start says so.
    fn note_failed_read(&mut self, held: Held, fault: IoFault) {
        let slot = self.table.get(held.segment).slot;
        let failed = self.failed_reads.entry(slot).or_insert(SlotFailures {
            start: held.start,
            bytes: held.bytes,
            fault,
            count: 0,
        });
        failed.count += 1;
    }

    fn read(&mut self, held: Held, (good, bad): (u32, Option<u32>), effects: &mut Effects) {
        let op = OpId(OP_JOURNAL | self.next_op);
        self.next_op += 1;
        self.reading = Some(Reading {
            op,
            held,
            good,
            bad,
        });
        effects.push(Effect::Read {
            op,
            slot: self.table.get(held.segment).slot,
            position: held.start,
            buffer: held.buffer,
            range: 0..held.bytes,
        });
    }

    /// Holds `start..start + bytes` of a segment in memory, or as much of it as can be read; asks
    /// for it otherwise.
    fn hold(
        &mut self,
        segment: SegmentIdx,
        start: u32,
        bytes: u32,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Flow {
        if let Some(held) = self.held
            && held.segment == segment
            && held.start <= start
            && (held.start == start || start + bytes <= held.start + held.bytes)
        {
            return Flow::Continue;
        }
        let buffer = match self.held.take() {
            Some(held) => held.buffer,
            None => buffers
                .acquire()
                .expect("recovery starts with an unused pool"),
        };
        let held = Held {
            buffer,
            segment,
            start,
            bytes: self
                .config
                .buffer_bytes
                .min(self.config.segment_bytes - start),
        };
        self.read(held, (0, None), effects);
        Flow::Wait
    }

    /// What is held from `start` on.
    fn held_bytes<'b>(&self, start: u32, buffers: &'b impl Buffers) -> &'b [u8] {
        let held = self.held.expect("asked for before");
        let from = (start - held.start).min(held.bytes);
        buffers.bytes(held.buffer, from..held.bytes)
    }

    /// The header of the block of ours that lies at `at` of what is held.
    fn header_at(&self, at: u32, buffers: &impl Buffers) -> Option<BlockHeader> {
        let header = BlockHeader::decode(self.held_bytes(at, buffers))?;
        let is_here = self.is_ours(&header)
            && header.offset == at
            && header.bytes() <= self.config.buffer_bytes
            && u64::from(at) + u64::from(header.bytes()) <= u64::from(self.config.segment_bytes);
        is_here.then_some(header)
    }

    // ---------------------------------------------------------------- index of live segments

    fn step_index(
        &mut self,
        cursor: IndexCursor,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        replay: &mut impl Replay,
    ) -> Flow {
        let Some(segment) = self.named.get(cursor.named).copied() else {
            self.phase = Phase::Scan {
                target: 0,
                at: self.targets.first().map_or(0, |target| target.from),
            };
            return Flow::Continue;
        };
        let is_open = self.base.position.is_some_and(|(open, _)| open == segment);
        let entry = self.table.get(segment);
        let written = entry.written_bytes;
        if let Some(part) = entry.parts.get(cursor.part).copied() {
            if part.is_given_up() {
                if entry.is_damaged {
                    self.report.findings.push(format!(
                        "parts of segment {} (slot {}) can not be read, and neither can its index",
                        entry.number.0, entry.slot.0
                    ));
                }
                self.phase = Phase::Index(IndexCursor {
                    part: cursor.part + 1,
                    ..cursor
                });
                return Flow::Continue;
            }
            return match cursor.block {
                Some(at) => self.index_blocks(
                    cursor,
                    segment,
                    at,
                    part.covers_upto,
                    buffers,
                    effects,
                    replay,
                ),
                None => self.index_part(cursor, segment, part, buffers, effects, replay),
            };
        }
        // Behind the parts: those made before; of the open segment the checkpoint has the index.
        let made = self.named_made_parts(segment);
        if cursor.block.is_none() {
            for run in made.iter().flat_map(|body| &body.runs) {
                self.index_run(segment, run, replay);
            }
        }
        let entry = self.table.get(segment);
        let is_unlisted = entry.parts.is_empty() && made.is_empty();
        if is_open && !self.closed.contains(&segment) {
            let checkpoint = self.checkpoint.take().expect("it named the segment");
            if let Some((_, body)) = checkpoint::open_index(&checkpoint) {
                for run in &body.runs {
                    self.index_run(segment, run, replay);
                }
            }
            self.checkpoint = Some(checkpoint);
        } else if is_unlisted || is_open || cursor.block.is_some() {
            let from = entry.parts.last().map_or(0, |part| part.covers_upto);
            let at = cursor.block.unwrap_or(from);
            if at < written || cursor.block.is_some() {
                return self.index_blocks(cursor, segment, at, written, buffers, effects, replay);
            }
        }
        self.phase = Phase::Index(IndexCursor {
            named: cursor.named + 1,
            part: 0,
            copy: 0,
            block: None,
        });
        Flow::Continue
    }

    fn index_part(
        &mut self,
        cursor: IndexCursor,
        segment: SegmentIdx,
        part: IndexPart,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        replay: &mut impl Replay,
    ) -> Flow {
        let at = match cursor.copy {
            0 => part.first_copy,
            _ => part.second_copy,
        };
        if at >= self.config.segment_bytes {
            return self.index_next_copy(cursor, segment, part);
        }
        if let Flow::Wait = self.hold(segment, at, BLOCK_ALIGN, buffers, effects) {
            return Flow::Wait;
        }
        let number = self.table.get(segment).number;
        if let Some(header) = self.header_at(at, buffers)
            && header.segment_number == number
        {
            if let Flow::Wait = self.hold(segment, at, header.bytes(), buffers, effects) {
                return Flow::Wait;
            }
            let block = self.held_bytes(at, buffers);
            if let Some(body) = index_of(&header, block)
                && body.number as usize == cursor.part
                && body.blocks.first().map_or(0, |block| block.offset) == part.covers_from
            {
                for run in &body.runs {
                    self.index_run(segment, run, replay);
                }
                self.phase = Phase::Index(IndexCursor {
                    part: cursor.part + 1,
                    copy: 0,
                    ..cursor
                });
                return Flow::Continue;
            }
        }
        self.index_next_copy(cursor, segment, part)
    }

    fn index_next_copy(
        &mut self,
        cursor: IndexCursor,
        segment: SegmentIdx,
        part: IndexPart,
    ) -> Flow {
        let number = self.table.get(segment).number.0;
        self.report.findings.push(format!(
            "copy {} of index part {} of segment {number} can not be read",
            cursor.copy + 1,
            cursor.part
        ));
        let mut next = IndexCursor {
            copy: cursor.copy + 1,
            ..cursor
        };
        if cursor.copy == 1 {
            next.copy = 0;
            next.block = Some(part.covers_from);
        }
        self.phase = Phase::Index(next);
        Flow::Continue
    }

    /// Reads blocks for want of an index.
    #[expect(
        clippy::too_many_arguments,
        reason = "a cursor, a range and the three of every step"
    )]
    fn index_blocks(
        &mut self,
        cursor: IndexCursor,
        segment: SegmentIdx,
        at: u32,
        upto: u32,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        replay: &mut impl Replay,
    ) -> Flow {
        if at >= upto {
            self.keep_made(segment);
            if let Some(part) = self.table.get_mut(segment).parts.get_mut(cursor.part) {
                part.give_up();
            }
            self.phase = Phase::Index(IndexCursor {
                part: cursor.part + 1,
                copy: 0,
                block: None,
                ..cursor
            });
            // Behind the last part there is no next one: the segment is done.
            if cursor.part >= self.table.get(segment).parts.len() {
                self.phase = Phase::Index(IndexCursor {
                    named: cursor.named + 1,
                    part: 0,
                    copy: 0,
                    block: None,
                });
            }
            return Flow::Continue;
        }
        if let Flow::Wait = self.hold(segment, at, BLOCK_ALIGN, buffers, effects) {
            return Flow::Wait;
        }
        let number = self.table.get(segment).number;
        let mut step = BLOCK_ALIGN;
        if let Some(header) = self.header_at(at, buffers)
            && header.segment_number == number
        {
            if let Flow::Wait = self.hold(segment, at, header.bytes(), buffers, effects) {
                return Flow::Wait;
            }
            step = header.bytes();
            let block = self.held_bytes(at, buffers);
            if let Content::KindUnread(kind) = check_content(&header, block) {
                self.refuse_kind(kind, segment, at);
                return Flow::Continue;
            }
            let mut runs = Vec::new();
            let mut ranges = Vec::new();
            let mut is_bad = false;
            let mut bodies = LastBody::default();
            for found in Records::new(&header, block) {
                let (head, body) = match found.record {
                    Ok(record) => record,
                    Err(RecordFault::KindUnknown(_)) => continue,
                    Err(_) => {
                        is_bad = true;
                        continue;
                    }
                };
                match head.kind {
                    Kind::Body => bodies.note(found.at, &head, body),
                    Kind::Entry => match bodies.of(&head, found.at) {
                        Some((body_at, body)) => runs.push(run_entry(&head, body, at + body_at)),
                        None => is_bad = true,
                    },
                    kind if kind.is_indexed() => {
                        runs.push(run_entry(&head, body, at + found.at));
                    }
                    _ => {}
                }
                if head.kind.is_sequenced() {
                    note_range(&mut ranges, &head);
                }
            }
            if is_bad {
                self.keep_made(segment);
                self.note_cold_damage(segment, at);
            }
            for run in &runs {
                self.index_run(segment, run, replay);
                self.made.add_run(run);
            }
            if is_bad {
                self.keep_made(segment);
            } else if !header.is_index() {
                self.made
                    .add_block(header.sequence, at, header.bytes(), &ranges);
            }
        } else {
            self.keep_made(segment);
            self.note_cold_damage(segment, at);
        }
        self.phase = Phase::Index(IndexCursor {
            block: Some(at + step),
            ..cursor
        });
        Flow::Continue
    }

    /// Keeps what was made of an index: of blocks without a gap, or of one that is damaged.
    fn keep_made(&mut self, segment: SegmentIdx) {
        let mut made = std::mem::take(&mut self.made);
        self.keep(segment, &mut made);
        self.made = made;
    }

    /// The same of the index that the tail gives: nothing in the segment itself will say it.
    fn keep_index(&mut self, segment: SegmentIdx) {
        let mut index = std::mem::take(&mut self.index);
        self.keep(segment, &mut index);
        self.index = index;
    }

    fn keep(&mut self, segment: SegmentIdx, index: &mut OpenIndex) {
        if !index.is_empty() {
            let mut body = Vec::new();
            index.encode(0, None, &mut body);
            self.table.get_mut(segment).made_parts.push(body);
        }
        index.clear();
    }

    fn note_cold_damage(&mut self, segment: SegmentIdx, at: u32) {
        let mut segment = self.table.get_mut(segment);
        segment.is_damaged = true;
        let text = format!(
            "segment {} (slot {}) can not be read at offset {at}, and neither can its index",
            segment.number.0, segment.slot.0
        );
        self.report.findings.push(text);
    }

    fn index_run(&mut self, segment: SegmentIdx, run: &RunEntry, replay: &mut impl Replay) {
        if run.kind == Kind::Fragment {
            let key = (run.queue, run.queue_sequence);
            self.note_piece(key, run.count, run.message_bytes);
        }
        let place = Place {
            segment,
            offset: run.offset,
        };
        replay.index(run, place);
    }

    fn note_piece(&mut self, key: (QueueId, QueueSequence), number: u32, message_bytes: u32) {
        let pieces = self.pieces.entry(key).or_default();
        pieces.note(number, message_bytes, ());
    }

    // ---------------------------------------------------------------- scan of the tail

    fn step_scan(
        &mut self,
        target: usize,
        at: u32,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Result<Flow, String> {
        let Some(scanned) = self.targets.get(target).copied() else {
            return self.end_scan();
        };
        let segment = scanned.segment;
        let is_hopeless = scanned.is_guess
            && u64::from(at) >= 2 * u64::from(self.config.buffer_bytes)
            && !self.seen.iter().any(|block| block.segment == segment);
        if at >= self.config.segment_bytes || is_hopeless {
            let next = target + 1;
            if next == self.targets.len() {
                self.follow_names();
            }
            self.phase = Phase::Scan {
                target: next,
                at: self.targets.get(next).map_or(0, |target| target.from),
            };
            return Ok(Flow::Continue);
        }
        if let Flow::Wait = self.hold(segment, at, BLOCK_ALIGN, buffers, effects) {
            return Ok(Flow::Wait);
        }
        let mut step = BLOCK_ALIGN;
        if let Some(header) = self.header_at(at, buffers)
            && header.segment_number >= self.base.number
        {
            if let Flow::Wait = self.hold(segment, at, header.bytes(), buffers, effects) {
                return Ok(Flow::Wait);
            }
            let content = check_content(&header, self.held_bytes(at, buffers));
            if content.is_good() {
                // A block that is not good may be partly written over: look inside it too.
                step = header.bytes();
            }
            self.seen.push(Seen {
                segment,
                header,
                content,
            });
        }
        self.phase = Phase::Scan {
            target,
            at: at + step,
        };
        Ok(Flow::Continue)
    }

    /// Adds the slots that blocks name as the next one: the head of one may be what is damaged.
    fn follow_names(&mut self) {
        let names: BTreeSet<SlotId> = self
            .seen
            .iter()
            .filter_map(|block| block.header.next_slot)
            .collect();
        for slot in names {
            self.guess_target(slot);
        }
    }

    fn end_scan(&mut self) -> Result<Flow, String> {
        for block in &self.seen {
            let number = block.header.segment_number.0;
            self.next_number.0 = self.next_number.0.max(number + 1);
            self.incarnation = self.incarnation.max(block.header.incarnation);
        }
        let plan = decide(&self.base, &self.seen);
        if self.checkpoint.is_none()
            && let Some(Step::Hole { .. }) = plan.steps.first()
        {
            return Err(format!(
                "journal {} has blocks but no readable checkpoint, and its first block is gone: \
                 which messages are settled is not known; restore a checkpoint file",
                self.config.journal.0
            ));
        }
        self.report.cut_count = plan.cut_count;
        self.plan = Some(plan);
        self.phase = Phase::Replay { step: 0 };
        Ok(Flow::Continue)
    }

    // ---------------------------------------------------------------- replay of the tail

    fn step_replay(
        &mut self,
        step: usize,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        replay: &mut impl Replay,
    ) -> Result<Flow, String> {
        let plan = self.plan.as_ref().expect("made by the scan");
        let Some(what) = plan.steps.get(step).copied() else {
            self.end_replay(replay);
            self.phase = Phase::Done;
            return Ok(Flow::Continue);
        };
        match what {
            Step::Hole {
                from,
                upto,
                position,
            } => {
                let behind = plan.steps.get(step + 1).map(|step| match step {
                    Step::Whole(index) | Step::Damaged(index) => *index,
                    Step::Hole { .. } => unreachable!("holes do not touch"),
                });
                self.open_hole(from, upto, position, behind);
            }
            Step::Whole(index) | Step::Damaged(index) => {
                let block = self.seen[index];
                let header = block.header;
                if let Flow::Wait = self.hold(
                    block.segment,
                    header.offset,
                    header.bytes(),
                    buffers,
                    effects,
                ) {
                    return Ok(Flow::Wait);
                }
                if self.header_at(header.offset, buffers) != Some(header) {
                    return Err(format!(
                        "block {} of slot {} could be read once but not twice",
                        header.sequence.0,
                        self.table.get(block.segment).slot.0
                    ));
                }
                if let Content::KindUnread(kind) = block.content {
                    self.refuse_kind(kind, block.segment, header.offset);
                    return Ok(Flow::Continue);
                }
                if what == Step::Damaged(index) {
                    let next = self.plan.as_ref().and_then(|plan| {
                        plan.steps.get(step + 1).and_then(|step| match step {
                            Step::Whole(index) | Step::Damaged(index) => Some(*index),
                            Step::Hole { .. } => None,
                        })
                    });
                    self.note_damaged_block(&block, next);
                }
                self.replay_block(&block, buffers, replay);
            }
        }
        self.phase = Phase::Replay { step: step + 1 };
        Ok(Flow::Continue)
    }

    fn open_hole(
        &mut self,
        from: BlockSequence,
        upto: BlockSequence,
        position: Option<(SegmentIdx, u32)>,
        behind: Option<usize>,
    ) {
        self.report.hole_count += upto.0 - from.0;
        if let Some((segment, _)) = position {
            self.close(segment);
        }
        if let Some(behind) = behind {
            let block = &self.seen[behind];
            if block.header.offset > 0 {
                self.closed.insert(block.segment);
            }
        }
        let single = behind.filter(|_| upto.0 == from.0 + 1);
        self.doubt(from, upto, position, single);
    }

    /// Doubts every partition that may have had records in `from..upto`: of one block, the block
    /// behind it says which.
    fn doubt(
        &mut self,
        from: BlockSequence,
        upto: BlockSequence,
        position: Option<(SegmentIdx, u32)>,
        behind: Option<usize>,
    ) {
        let mask = behind.map_or(u64::MAX, |index| self.seen[index].header.prev_partitions);
        let is_suspect = |partition: &u16| mask & partition_bit(*partition) != 0;
        let suspects = (0..self.config.partitions)
            .chain([PARTITION_META.0, PARTITION_TRANSACTIONS.0])
            .chain(self.partitions.keys().copied())
            .filter(is_suspect)
            .collect();
        self.holes.push(OpenHole {
            from,
            upto,
            position,
            suspects,
        });
    }

    fn note_damaged_block(&mut self, block: &Seen, behind: Option<usize>) {
        self.report.hole_count += 1;
        self.close(block.segment);
        // If the records are all there, and only messages are bad, nothing else is in doubt.
        if block.content == Content::Bad {
            let from = block.header.sequence;
            let upto = BlockSequence(from.0 + 1);
            self.doubt(
                from,
                upto,
                Some((block.segment, block.header.offset)),
                behind,
            );
        }
    }

    /// A segment with a hole is not written any more, and its own index behind it is not believed.
    fn close(&mut self, segment: SegmentIdx) {
        if self.index_segment == Some(segment) {
            self.keep_index(segment);
        }
        self.closed.insert(segment);
        self.table.get_mut(segment).is_damaged = true;
    }

    fn replay_block(&mut self, block: &Seen, buffers: &impl Buffers, replay: &mut impl Replay) {
        let header = block.header;
        self.enter_segment(block);
        self.report.replayed_count += 1;
        self.report.wall_us = self.report.wall_us.max(header.wall_us);
        if block.content == Content::PaddingDirty {
            self.report.padding_dirty_count += 1;
        }
        self.bytes_since += u64::from(header.bytes());
        replay.block(header.wall_us);
        let bytes = self.held_bytes(header.offset, buffers);
        let mut ranges: Vec<PartitionRange> = Vec::new();
        let mut bodies = LastBody::default();
        self.prev_partitions = 0;
        for found in Records::new(&header, bytes) {
            let Ok((head, body)) = found.record else {
                continue;
            };
            let offset = header.offset + found.at;
            if head.kind == Kind::Body {
                bodies.note(found.at, &head, body);
            }
            if head.kind.is_sequenced() && !self.take_number(&head, body, block, offset) {
                continue;
            }
            if head.kind.is_sequenced() {
                self.prev_partitions |= partition_bit(head.partition.0);
                note_range(&mut ranges, &head);
            }
            let (body, offset) = match head.kind {
                Kind::Entry => match bodies.of(&head, found.at) {
                    Some((at, messages)) => (messages, header.offset + at),
                    None => {
                        self.note_bodiless(&head, block, offset);
                        continue;
                    }
                },
                _ => (body, offset),
            };
            let has_messages = head.kind.has_messages() || head.kind == Kind::Entry;
            if has_messages && head.kind != Kind::Body && !block.content.is_good() {
                self.note_bad_messages(&head, body, block, offset);
            }
            self.replay_record(&head, body, block, offset, replay);
        }
        let mut segment = self.table.get_mut(block.segment);
        segment.written_bytes = header.offset + header.bytes();
        segment.durable_bytes = segment.written_bytes;
        drop(segment);
        if !block.content.is_good() {
            // What proved itself in it is listed; that the block is whole is not.
            self.keep_index(block.segment);
        } else if !header.is_index() {
            self.index
                .add_block(header.sequence, header.offset, header.bytes(), &ranges);
        }
    }

    fn enter_segment(&mut self, block: &Seen) {
        if self.index_segment == Some(block.segment) {
            return;
        }
        if let Some(before) = self.index_segment {
            // Left without a footer, or that is not believed: its index is what its blocks say.
            self.keep_index(before);
        }
        self.index.clear();
        self.index_segment = Some(block.segment);
        let generation = self.report.generation;
        let mut entry = self.table.get_mut(block.segment);
        assert_eq!(
            entry.state,
            SlotState::Free,
            "the tail lies in no named slot"
        );
        *entry = Segment {
            state: SlotState::Sealed,
            number: block.header.segment_number,
            named_generation: generation,
            is_damaged: self.closed.contains(&block.segment),
            is_short: entry.is_short,
            ..Segment::absent(entry.slot, entry.journal)
        };
    }

    /// Checks a record's number in its partition. Returns false for one that was there already.
    fn take_number(&mut self, head: &RecordHead, body: &[u8], block: &Seen, offset: u32) -> bool {
        let partition = head.partition.0;
        let next = self.partitions.get(&partition).copied().unwrap_or(1);
        if head.partition_sequence < next {
            self.report.findings.push(format!(
                "record {} of partition {partition} at offset {offset} of segment {} comes twice",
                head.partition_sequence, block.header.segment_number.0
            ));
            return false;
        }
        // Another journal may have held the partition meanwhile.
        let expected_upto = match head.kind {
            Kind::Adopt if body.len() == 8 => u64_at(body, 0),
            _ => head.partition_sequence,
        };
        if expected_upto > next {
            self.damages.push(Damage {
                partition: head.partition,
                first: next,
                upto: expected_upto,
                queue: QueueId(0),
                queue_sequence: QueueSequence(0),
                segment_number: block.header.segment_number,
                offset,
            });
        }
        self.partitions
            .insert(partition, head.partition_sequence + 1);
        for hole in &mut self.holes {
            hole.suspects.remove(&partition);
        }
        true
    }

    /// The body of an entry is not there: the queue lost all of it.
    fn note_bodiless(&mut self, head: &RecordHead, block: &Seen, offset: u32) {
        if crate::mutant!(EntryWithoutBodyIgnored) {
            return;
        }
        self.damages.push(Damage {
            partition: head.partition,
            first: head.partition_sequence,
            upto: head.partition_sequence + 1,
            queue: QueueId(0),
            queue_sequence: QueueSequence(0),
            segment_number: block.header.segment_number,
            offset,
        });
    }

    fn note_bad_messages(&mut self, head: &RecordHead, body: &[u8], block: &Seen, offset: u32) {
        let damages = &mut self.damages;
        record::check_messages(body, |index| {
            damages.push(Damage {
                partition: head.partition,
                first: head.partition_sequence,
                upto: head.partition_sequence + 1,
                queue: head.queue,
                queue_sequence: head.queue_sequence.plus(u64::from(index)),
                segment_number: block.header.segment_number,
                offset,
            });
        });
    }

    fn replay_record(
        &mut self,
        head: &RecordHead,
        body: &[u8],
        block: &Seen,
        offset: u32,
        replay: &mut impl Replay,
    ) {
        let place = Place {
            segment: block.segment,
            offset,
        };
        if head.kind.is_indexed() {
            let entry = run_entry(head, body, offset);
            self.index.add_run(&entry);
            let units = match head.kind {
                Kind::Fragment => 1,
                _ => u64::from(head.count),
            };
            let mut segment = self.table.get_mut(block.segment);
            segment.unit_count += units;
            segment.unit_bytes += u64::from(RECORD_HEAD_BYTES + entry.body_bytes);
            drop(segment);
            if head.kind == Kind::Fragment {
                let key = (head.queue, head.queue_sequence);
                self.note_piece(key, entry.count, entry.message_bytes);
            }
        }
        match head.kind {
            Kind::Run | Kind::Entry => replay.run(head, body, place),
            Kind::Body => {}
            Kind::Fragment if head.flags & FLAG_RELOCATED == 0 => {
                replay.fragment(head, body, place);
            }
            Kind::Relocated | Kind::Fragment => replay.relocated(head, body, place),
            Kind::Index => self.replay_index(head, body, block),
            Kind::Watermark => self.replay_watermark(head, body, block),
            Kind::Truncate => {}
            Kind::Loss => {
                if body.len() == 16 {
                    let lost = u64_at(body, 0)..u64_at(body, 8);
                    journal::accept(&mut self.damages, head.partition, lost);
                }
                replay.record(head, body);
            }
            Kind::Ack
            | Kind::Mark
            | Kind::Counts
            | Kind::Catalog
            | Kind::Adopt
            | Kind::Sequences
            | Kind::Prepare
            | Kind::Decide
            | Kind::Offsets => {
                replay.record(head, body);
            }
            Kind::Seal | Kind::HardState | Kind::Expire | Kind::Purge => {
                unreachable!("a block with a reserved kind is not replayed")
            }
        }
    }

    fn replay_index(&mut self, head: &RecordHead, body: &[u8], block: &Seen) {
        let Some(part) = IndexBody::decode(body) else {
            return;
        };
        self.vouch_index(&part, block);
        if self.closed.contains(&block.segment) {
            self.keep_index(block.segment);
            return;
        }
        let offset = block.header.offset;
        let mut segment = self.table.get_mut(block.segment);
        if head.flags & FLAG_SECOND_COPY == 0 {
            segment.parts.push(IndexPart {
                covers_from: self.index.covers_from(),
                covers_upto: self.index.covers_upto(),
                first_copy: offset,
                second_copy: offset,
            });
            self.index.clear();
        } else if let Some(last) = segment.parts.last_mut() {
            last.second_copy = offset;
        }
        if head.flags & FLAG_LAST_PART != 0 {
            // Complete: nothing follows in this segment, whether or not the second copy does.
            self.complete.insert(block.segment);
        }
    }

    /// The index lists what blocks in a hole held: the partitions that it names lost exactly that,
    /// the others nothing.
    fn vouch_index(&mut self, part: &IndexBody, block: &Seen) {
        let (Some(first), Some(last)) = (part.blocks.first(), part.blocks.last()) else {
            return;
        };
        let mut lost = Vec::new();
        for hole in &mut self.holes {
            for entry in &part.blocks {
                if (hole.from..hole.upto).contains(&entry.sequence) {
                    lost.extend(entry.partitions.iter().map(|range| (*range, entry.offset)));
                }
            }
            if first.sequence <= hole.from && hole.upto.0 <= last.sequence.0 + 1 {
                hole.suspects.clear();
            }
        }
        for (range, offset) in lost {
            self.prove_upto(range.partition, range.last + 1, block, offset);
        }
    }

    /// A watermark says where every partition stands.
    fn replay_watermark(&mut self, head: &RecordHead, body: &[u8], block: &Seen) {
        let stated: Vec<(u16, u64)> = body
            .chunks_exact(10)
            .map(|entry| {
                let partition = u16::from_le_bytes([entry[0], entry[1]]);
                (partition, u64_at(entry, 2))
            })
            .collect();
        for (partition, next) in &stated {
            self.prove_upto(*partition, *next, block, block.header.offset);
            for hole in &mut self.holes {
                hole.suspects.remove(partition);
            }
        }
        if head.flags & FLAG_COMPLETE != 0 {
            // Those that are not listed have no records; if we know of some, the doubt stays.
            let partitions = &self.partitions;
            for hole in &mut self.holes {
                hole.suspects
                    .retain(|suspect| partitions.contains_key(suspect));
            }
        }
    }

    /// Something states that a partition's next record was `next`: what is missing before is lost.
    fn prove_upto(&mut self, partition: u16, next: u64, block: &Seen, offset: u32) {
        let known = self.partitions.get(&partition).copied().unwrap_or(1);
        if next > known {
            self.damages.push(Damage {
                partition: PartitionId(partition),
                first: known,
                upto: next,
                queue: QueueId(0),
                queue_sequence: QueueSequence(0),
                segment_number: block.header.segment_number,
                offset,
            });
            self.partitions.insert(partition, next);
        }
    }

    fn end_replay(&mut self, replay: &mut impl Replay) {
        let holes = std::mem::take(&mut self.holes);
        for hole in holes {
            for partition in hole.suspects {
                let next = self.partitions.get(&partition).copied().unwrap_or(1);
                let known = self
                    .damages
                    .iter()
                    .any(|damage| damage.partition.0 == partition && damage.upto == u64::MAX);
                if known {
                    continue;
                }
                let (segment_number, offset) = hole.position.map_or_else(
                    || (SegmentNumber(0), 0),
                    |(segment, offset)| (self.table.get(segment).number, offset),
                );
                self.damages.push(Damage {
                    partition: PartitionId(partition),
                    first: next,
                    upto: u64::MAX,
                    queue: QueueId(0),
                    queue_sequence: QueueSequence(0),
                    segment_number,
                    offset,
                });
                self.partitions.insert(partition, next + DOUBT_STEP);
            }
        }
        for ((queue, sequence), pieces) in std::mem::take(&mut self.pieces) {
            if !pieces.is_whole() && !crate::mutant!(IncompleteKept) {
                replay.incomplete(queue, sequence);
            }
        }
        self.report.damages = self.damages.clone();
    }

    /// The parts of the index that the checkpoint knows of a segment.
    fn named_parts(&self, segment: SegmentIdx) -> Vec<IndexPart> {
        self.named_segment(segment)
            .map_or_else(Vec::new, |named| named.parts.clone())
    }

    /// Index parts that the checkpoint carries of a segment.
    fn named_made_parts(&self, segment: SegmentIdx) -> Vec<IndexBody> {
        let named = self.named_segment(segment);
        let bodies = named.map_or(&[][..], |named| &named.made_parts);
        bodies
            .iter()
            .filter_map(|body| IndexBody::decode(body))
            .collect()
    }

    /// How far the checkpoint covers a segment.
    fn named_upto(&self, segment: SegmentIdx) -> u32 {
        self.named_segment(segment)
            .map_or(0, |named| named.written_bytes)
    }

    fn named_segment(&self, segment: SegmentIdx) -> Option<&checkpoint::NamedSegment> {
        let checkpoint = self.checkpoint.as_ref()?;
        let mut all = checkpoint.segments.iter().chain(&checkpoint.open);
        all.find(|named| named.slot.0 == segment.0)
    }

    /// Blocks of the open segment of the checkpoint that no part of its index lists.
    fn open_blocks(&self, segment: SegmentIdx) -> Option<IndexBody> {
        let checkpoint = self.checkpoint.as_ref()?;
        let open = checkpoint.open.as_ref()?;
        (open.slot.0 == segment.0)
            .then(|| checkpoint::open_index(checkpoint))
            .flatten()
            .map(|(_, body)| body)
    }

    /// The journal, and what was found. Its first write opens a new incarnation; until that is
    /// durable it takes nothing. The caller retains what is live before it ends a turn.
    pub fn finish(mut self, effects: &mut Effects) -> (Journal, Report) {
        assert!(matches!(self.phase, Phase::Done), "recovery is done");
        let plan = self.plan.take().expect("made by the scan");
        let mut segment = None;
        if let Some((open, offset)) = plan.position {
            let mut entry = self.table.get_mut(open);
            let is_known = entry.state == SlotState::Sealed && entry.written_bytes == offset;
            if is_known && !self.complete.contains(&open) && !self.closed.contains(&open) {
                entry.state = SlotState::Open;
                segment = Some((open, std::mem::take(&mut self.index)));
            }
        }
        if let Some(left) = self.index_segment {
            self.keep_index(left);
        }
        let mut segments_since = 0;
        for index in 0..self.table.len() {
            let index = SegmentIdx(index as u32);
            let mut entry = self.table.get_mut(index);
            if entry.is_short && entry.state == SlotState::Free {
                entry.state = SlotState::Absent;
            }
            if entry.state == SlotState::Sealed && !self.named.contains(&index) {
                segments_since += 1;
            }
        }
        // A start that could not begin without them takes them: it is worth more than a second way
        // back.
        let has_room = segment.as_ref().is_some_and(|(open, index)| {
            let written = self.table.get(*open).written_bytes;
            journal::takes_a_block(&self.config, index, written)
        });
        let is_begun = has_room || self.table.count(SlotState::Free) > self.of_older.len();
        let of_older = if is_begun {
            self.of_older.as_slice()
        } else {
            &[]
        };
        for (index, number) in of_older {
            let mut entry = self.table.get_mut(*index);
            *entry = Segment {
                state: SlotState::Sealed,
                number: *number,
                named_generation: self.older_generation,
                ..Segment::absent(entry.slot, entry.journal)
            };
        }
        for (slot, failed) in &self.failed_reads {
            self.report.findings.push(format!(
                "{} of slot {} failed, the first of {} at offset {}: {}",
                counted(failed.count, "read"),
                slot.0,
                counted(u64::from(failed.bytes), "byte"),
                failed.start,
                failed.fault
            ));
        }
        self.report_to(effects);
        let start = Start {
            table: self.table,
            segment,
            next_number: self.next_number,
            next_sequence: plan.next_sequence,
            prev_crc: plan.prev_crc,
            prev_partitions: self.prev_partitions,
            incarnation: self.incarnation + 1,
            partitions: self
                .partitions
                .iter()
                .map(|(partition, next)| (PartitionId(*partition), *next))
                .collect(),
            generation: self.report.generation,
            checkpoint_bytes: 0,
            bytes_since: self.bytes_since,
            segments_since,
            damages: self.damages,
            next_op: self.next_op,
        };
        (Journal::start(self.config, start), self.report)
    }

    fn report_to(&self, effects: &mut Effects) {
        let journal = self.config.journal.0;
        let report = &self.report;
        effects.push(Effect::Report {
            severity: Severity::Info,
            text: format!(
                "journal {journal}: checkpoint {}, {} replayed, {} in flight cut, {} read",
                report.generation,
                counted(report.replayed_count, "block"),
                report.cut_count,
                counted(report.read_bytes, "byte"),
            ),
        });
        if report.checkpoint_damaged {
            effects.push(Effect::Report {
                severity: Severity::Warning,
                text: format!("journal {journal}: a checkpoint file can not be read"),
            });
        }
        for finding in &report.findings {
            effects.push(Effect::Report {
                severity: Severity::Error,
                text: format!("journal {journal}: {finding}"),
            });
        }
        for damage in &report.damages {
            effects.push(Effect::Report {
                severity: Severity::Error,
                text: format!(
                    "journal {journal}: partition {} has lost records {}..{} (segment {}, offset {}); \
                     it refuses until the loss is accepted",
                    damage.partition.0,
                    damage.first,
                    damage.upto,
                    damage.segment_number.0,
                    damage.offset
                ),
            });
        }
    }
}

/// The index part that a block holds, proved.
fn index_of(header: &BlockHeader, block: &[u8]) -> Option<IndexBody> {
    if !check_content(header, block).is_good() {
        return None;
    }
    let found = Records::new(header, block).next()?;
    let (head, body) = found.record.ok()?;
    (head.kind == Kind::Index)
        .then(|| IndexBody::decode(body))
        .flatten()
}

fn run_entry(head: &RecordHead, body: &[u8], offset: u32) -> RunEntry {
    if head.kind == Kind::Entry {
        return entry_of(head, offset, align_record(body.len() as u32));
    }
    let message_bytes = match head.kind {
        Kind::Fragment if body.len() >= FragmentHead::BYTES => u32_at(body, 0),
        _ => 0,
    };
    RunEntry {
        kind: head.kind,
        is_relocated: head.flags & FLAG_RELOCATED != 0,
        queue: head.queue,
        queue_sequence: head.queue_sequence,
        count: head.count,
        offset,
        body_bytes: align_record(head.body_bytes()),
        message_bytes,
    }
}

fn note_range(ranges: &mut Vec<PartitionRange>, head: &RecordHead) {
    let known = ranges
        .iter_mut()
        .find(|range| range.partition == head.partition.0);
    match known {
        Some(range) => range.last = head.partition_sequence,
        None => ranges.push(PartitionRange {
            partition: head.partition.0,
            first: head.partition_sequence,
            last: head.partition_sequence,
        }),
    }
}
