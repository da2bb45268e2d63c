//! The journal of one core: appends records to blocks, blocks to segments, and knows what is synced.
//! Does not know queues, sessions, or what makes a message live; does not recover or checkpoint.
//!
//! ```text
//! segment   | block | block | block ...  | index part | index part again |
//! block     | header | record | record ...            | zeros to 4 KiB |
//! record    | head | body                              | zeros to 16 B |
//! ```
//!
//! Blocks are sealed and written in order, at most [`Config::writes_in_flight`] at a time, whenever
//! one of those is free and there are bytes: the batch is what arrived meanwhile, nothing lingers.
//! A write completes when it is synced, and [`Journal::durable_block`] is the prefix of those.
//! Any failed write is final. docs/storage.md has the format and the reasons.

use std::collections::VecDeque;
use std::ops::Range;

use ringpost_wire::FragmentHead;
use ringpost_wire::ids::{PartitionId, ProducerId, QueueId, QueueSequence, Sequence};
use ringpost_wire::limits::{FRAGMENT_BYTES_MAX, PRODUCER_BROKER_MIN};

use crate::effect::{Buffers, Effects};
use crate::ids::{BufferId, JournalId, Mono, OpId, Place, SegmentIdx, SlotId};

pub mod block;
pub mod cache;
mod reading;
pub mod record;
pub mod segment;
pub(crate) mod shared;
mod slots;
pub mod volatile;
mod writing;

use block::{
    BLOCK_ALIGN, BLOCK_FLAG_INDEX, BLOCK_HEADER_BYTES, BlockSequence, SegmentNumber, align_block,
};
use cache::{Cache, Origin, Window};
use reading::FailedReads;
use record::{
    FLAG_LAST_PART, FLAG_RELOCATED, FLAG_SECOND_COPY, Gathered, Kind, PARTITION_META,
    PARTITION_TRANSACTIONS, RECORD_HEAD_BYTES, RecordHead, align_record,
};
use segment::{IndexPart, OpenIndex, PartitionRange, RunEntry, Segment, SlotState, Table};
use shared::OpenEntries;

/// Free slots that publishes never take: acks, relocation, dead letters and checkpoints need somewhere
/// to go when the disk is full of messages (rulings 17).
pub const RESERVE_SLOTS: usize = 4;
/// Most writes that any journal may have in flight, whatever is set. Recovery relies on it: a block that
/// lies further back than that from a later one was synced before the later one was written.
pub const WRITES_IN_FLIGHT_MAX: u32 = 4;
/// Free slots that dead letters leave to moves and acks. They free as much as they take, but here and
/// there: only what is packed makes slots of that.
const RESERVE_LETTERS: usize = RESERVE_SLOTS - 1;
/// Free slots that moves leave to acks.
const RESERVE_MOVES: usize = RESERVE_LETTERS - 1;
/// Free slots beyond the reserve at which refused publishes are accepted again.
pub const RESUME_SLOTS: usize = 2;
/// Free slots that are kept when a checkpoint has no space: one that is written frees more.
const CHECKPOINT_SLOTS: usize = 1;
/// Idle time after which a watermark states that everything is synced (rulings 9).
pub const WATERMARK_MS: u64 = 5;
/// Time before a file is tried to be created again after there was no space.
const CREATE_RETRY_MS: u64 = 1_000;
/// Buffers that an append which is no publish may need at once: two index copies and a window.
const BUFFERS_UPKEEP: usize = 3;
/// Buffers beyond these that publishes leave for messages being read back.
const BUFFERS_READS: usize = 2;
/// Free buffers with which a publish may begin a block, or memory of a volatile queue.
pub(crate) const BUFFERS_TO_PUBLISH: usize = BUFFERS_UPKEEP + BUFFERS_READS + 1;
/// Most reads in flight for messages that are not in memory.
const READS_MAX: usize = 8;
/// Most of those for messages that nobody waits for yet.
const READS_AHEAD_MAX: usize = 6;
/// One in so many buffers may hold what was read before it is needed: more would push out what others
/// are about to need.
const AHEAD_PART: usize = 4;
/// Bytes that one run, one partition and one block add to an index part, at most.
const INDEX_RUN_BYTES: u32 = 34;
const INDEX_PARTITION_BYTES: u32 = 23;
const INDEX_BLOCK_BYTES: u32 = 16;
/// Bytes that both copies of an index part may grow by with one record.
const GROUP_INDEX_BYTES: u32 = 2 * (INDEX_RUN_BYTES + INDEX_PARTITION_BYTES);

/// Operations of a journal have this bit, so that a core knows whose answer it got.
const OP_JOURNAL: u64 = 1 << 62;

/// What a journal is configured to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Which journal it is.
    pub journal: JournalId,
    /// The data directory's own random number.
    pub journal_uuid: u64,
    /// Bytes of every slot, a multiple of 4096.
    pub segment_bytes: u32,
    /// Bytes of every buffer, a multiple of 4096: the largest block.
    pub buffer_bytes: u32,
    /// Most slots: the share of the disk that this journal may use.
    pub slots_max: u32,
    /// Free slots kept ready beyond the reserve.
    pub spare_slots: u32,
    /// Free slots beyond those go back to the file system when nothing needed them for so long.
    pub spare_after_ms: u64,
    /// When no segment was filled for so long, every slot that moving can empty is worth it; before,
    /// as many as are spare may wait for acks to do it.
    pub pack_after_ms: u64,
    /// Most writes in flight.
    pub writes_in_flight: u32,
    /// Longest time that data without urgency waits for company, in ms.
    pub trickle_ms: u64,
    /// Free buffers that the block cache leaves in the pool.
    pub buffers_free_min: u32,
    /// Partitions of the data directory.
    pub partitions: u16,
    /// Reserved for replication.
    pub cluster: u64,
    /// Reserved for replication.
    pub node: u32,
    /// Reserved for replication.
    pub replica: u32,
}

impl Config {
    /// Defaults for a journal of that identity.
    #[must_use]
    pub const fn new(journal: JournalId, journal_uuid: u64) -> Self {
        Self {
            journal,
            journal_uuid,
            segment_bytes: 32 << 20,
            buffer_bytes: 256 << 10,
            slots_max: 64,
            spare_slots: 2,
            spare_after_ms: 10_000,
            pack_after_ms: 1_000,
            writes_in_flight: 2,
            trickle_ms: 20,
            buffers_free_min: 8,
            partitions: 64,
            cluster: 0,
            node: 0,
            replica: 0,
        }
    }

    /// Slots that there may be when starts have needed more than [`Self::slots_max`].
    #[must_use]
    pub const fn slots_at_start_max(&self) -> u32 {
        self.slots_max.saturating_mul(2)
    }

    /// Asserts what the code relies on.
    pub fn assert_valid(&self) {
        assert!(self.journal_uuid != 0, "a journal has an identity");
        assert!(self.buffer_bytes.is_multiple_of(BLOCK_ALIGN));
        assert!(self.segment_bytes.is_multiple_of(BLOCK_ALIGN));
        assert!(self.buffer_bytes >= 4 * BLOCK_ALIGN);
        // A largest block and its index, twice, fit a segment of their own.
        assert!(u64::from(self.segment_bytes) >= 4 * u64::from(self.buffer_bytes));
        assert!(self.slots_max as usize >= RESERVE_SLOTS + RESUME_SLOTS + 2);
        assert!((1..=WRITES_IN_FLIGHT_MAX).contains(&self.writes_in_flight));
        // What is kept free must be enough to go on with, or nothing would ever free more.
        assert!(self.buffers_free_min as usize >= BUFFERS_TO_PUBLISH);
    }

    /// Bytes of the largest body of one record.
    #[must_use]
    pub const fn body_bytes_max(&self) -> u32 {
        self.buffer_bytes - BLOCK_HEADER_BYTES - RECORD_HEAD_BYTES
    }

    /// An index part is written when it has grown to this many bytes.
    const fn part_bytes(&self) -> u32 {
        self.buffer_bytes / 4
    }
}

/// What a caller says of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunHead {
    /// The partition.
    pub partition: PartitionId,
    /// Replication term.
    pub term: u32,
    /// The queue.
    pub queue: QueueId,
    /// Queue sequence of the first message.
    pub queue_sequence: QueueSequence,
    /// The producer, 0 if it gave no identity.
    pub producer: ProducerId,
    /// The producer's epoch.
    pub producer_epoch: u32,
    /// Producer sequence of the first message.
    pub producer_sequence: Sequence,
}

impl RunHead {
    /// A record of a queue without a producer.
    #[must_use]
    pub const fn of_queue(partition: PartitionId, queue: QueueId, first: QueueSequence) -> Self {
        Self {
            partition,
            term: 0,
            queue,
            queue_sequence: first,
            producer: ProducerId(0),
            producer_epoch: 0,
            producer_sequence: Sequence(0),
        }
    }

    /// A record that belongs to no queue.
    #[must_use]
    pub const fn of_partition(partition: PartitionId) -> Self {
        Self::of_queue(partition, QueueId(0), QueueSequence(0))
    }
}

/// Where a run went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Appended {
    /// A record of its own.
    New(Place),
    /// The end of the record that was appended last: the same queue and producer, no gap.
    Merged,
}

/// One of several records that are durable together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupRecord<'a> {
    /// What it is: a run, or something that is no message.
    pub(crate) kind: Kind,
    /// Where it belongs.
    pub(crate) head: RunHead,
    /// Messages of a run; of other kinds what the kind says.
    pub(crate) count: u32,
    /// The body.
    pub(crate) body: &'a [u8],
}

/// Whose slots a group of records may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GroupBy {
    /// Those of publishes.
    Publisher,
    /// Those of the broker: what was promised before.
    Broker,
    /// Those of acks.
    Settler,
}

/// Bytes that a record takes in its block.
const fn record_bytes(body_bytes: usize) -> u32 {
    align_record(RECORD_HEAD_BYTES + body_bytes as u32)
}

/// Bytes that a record of a group takes at most, in its block and in both copies of the index.
#[must_use]
pub(crate) const fn group_bytes(body_bytes: usize) -> u32 {
    record_bytes(body_bytes) + GROUP_INDEX_BYTES
}

/// Why nothing was appended. Nothing of it is in a block, so the publish may be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoom {
    /// No buffer is free; there will be one when writes or sends complete.
    Buffers,
    /// No slot is free for publishes yet; one is being made.
    Slot,
    /// No slot is free, or only those that publishes may not take, and no more can be had.
    Disk,
    /// The journal has failed or is not ready.
    Closed,
}

/// Who appends: publishes leave the reserve alone, dead letters leave one slot of it to moves, and
/// moves leave the rest to acks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Publish,
    Letter,
    Move,
    Upkeep,
}

impl Purpose {
    /// What the broker publishes itself, a dead letter, frees as much as it takes.
    const fn of(head: &RunHead) -> Self {
        if head.producer.0 < PRODUCER_BROKER_MIN {
            Self::Publish
        } else {
            Self::Letter
        }
    }

    /// Free slots that are left to others.
    const fn leaves(self) -> usize {
        match self {
            Self::Publish => RESERVE_SLOTS,
            Self::Letter => RESERVE_LETTERS,
            Self::Move => RESERVE_MOVES,
            Self::Upkeep => 0,
        }
    }
}

/// Whether somebody waits for a record to be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// Write it as soon as a write is free.
    Now,
    /// It may wait for company, up to [`Config::trickle_ms`].
    Trickle,
}

/// What a caller says of a record that is no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Note {
    /// What it is.
    pub kind: Kind,
    /// Where it belongs.
    pub head: RunHead,
    /// What the kind says: ranges of an ack, for one.
    pub count: u32,
    /// Whether somebody waits for it.
    pub urgency: Urgency,
}

/// What a completion changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing that the caller can see.
    Nothing,
    /// Every block up to this one is synced.
    Durable(BlockSequence),
    /// These bytes of a segment are in memory now.
    Arrived {
        /// The segment.
        segment: SegmentIdx,
        /// From this byte offset.
        from: u32,
        /// Up to this one.
        upto: u32,
    },
    /// This record can not be read (rulings 10).
    Unreadable(Place),
    /// The journal has failed; the effect says why.
    Failed,
}

/// How old what lies at a place is: the place in the order in which the journal was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Age(SegmentNumber, u32);

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// In memory, proved.
    Cached {
        /// The buffer.
        buffer: BufferId,
        /// Its body in the buffer.
        body: Range<u32>,
        /// Its head.
        head: RecordHead,
    },
    /// On disk: see [`Journal::fetch`].
    Cold,
    /// A read that covers it is in flight.
    Coming,
    /// It is not what was written there, or can not be read (rulings 10).
    Damaged,
}

/// What became of asking for a record to be in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    /// It begins in memory; the window reaches to this byte offset of its segment.
    Cached {
        /// End of the window.
        upto: u32,
    },
    /// A read is in flight; its window will reach to this byte offset of its segment.
    Coming {
        /// End of the window.
        upto: u32,
    },
    /// No buffer or no read is free now; ask again when something completes.
    Busy,
}

/// Whether the journal takes appends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Its incarnation is not in a block yet.
    Starting,
    /// Its incarnation is in this block; ready when that is durable.
    Opening(BlockSequence),
    /// Open.
    Ready,
    /// A write failed: final.
    Failed,
}

/// The record that was appended last, while its head may still change.
#[derive(Clone, Copy, Debug)]
struct OpenRecord {
    /// Byte offset in the block.
    at: u32,
    /// Its head, without checksum.
    head: RecordHead,
    /// Of a fragment: bytes of the whole message.
    message_bytes: u32,
}

/// The block that is being filled.
#[derive(Debug)]
struct OpenBlock {
    segment: SegmentIdx,
    buffer: BufferId,
    /// Where the block begins in the buffer.
    start: u32,
    /// Where the block begins in the segment.
    offset: u32,
    /// Header and records so far.
    used: u32,
    /// Records whose head is written.
    record_count: u32,
    /// Of the checksums of those records.
    content: Gathered,
    last: Option<OpenRecord>,
    /// What the body of the last record folds to so far.
    folded: Gathered,
    is_urgent: bool,
    flags: u16,
    /// When the first message was published into it, if one was.
    since: Mono,
    /// Messages that were.
    messages: u32,
}

/// The buffer that mirrors the end of the segment.
#[derive(Clone, Copy, Debug)]
struct AppendWindow {
    buffer: BufferId,
    /// Byte offset in the segment of the buffer's first byte.
    start: u32,
    /// Bytes of the buffer that hold sealed blocks.
    sealed_bytes: u32,
}

/// A block on its way to the disk.
#[derive(Clone, Copy, Debug)]
struct SealedBlock {
    sequence: BlockSequence,
    segment: SegmentIdx,
    offset: u32,
    bytes: u32,
    buffer: BufferId,
    start: u32,
    /// When the first message was published into it, if one was.
    since: Mono,
    /// Messages that were.
    messages: u32,
}

#[derive(Clone, Copy, Debug)]
struct WriteInFlight {
    op: OpId,
    block: SealedBlock,
    is_done: bool,
    /// When it was submitted.
    since: Mono,
}

#[derive(Clone, Copy, Debug)]
struct ReadInFlight {
    op: OpId,
    segment: SegmentIdx,
    start: u32,
    bytes: u32,
    buffer: BufferId,
    /// The record it was asked for.
    place: Place,
    /// As [`Window::readers`].
    readers: u32,
    /// As [`Window::is_utmost`].
    is_utmost: bool,
}

#[derive(Clone, Copy, Debug)]
enum SlotTask {
    Create(SegmentIdx),
    Remove(SegmentIdx),
}

/// A partition as the writer sees it.
#[derive(Clone, Copy, Debug, Default)]
struct PartitionState {
    /// Number of its next record.
    next: u64,
    /// Whether the open block holds records of it, and from which on.
    in_block: BlockSequence,
    block_first: u64,
}

/// A range of a partition that is lost or can not be proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The partition.
    pub partition: PartitionId,
    /// First record sequence that is not there.
    pub first: u64,
    /// First record sequence after it that is; `u64::MAX` if that is not known.
    pub upto: u64,
    /// The queue, if the damage is one known run; else 0.
    pub queue: QueueId,
    /// Queue sequence of the first message of that run that is bad.
    pub queue_sequence: QueueSequence,
    /// The segment, 0 if it is gone.
    pub segment_number: SegmentNumber,
    /// Byte offset in it.
    pub offset: u32,
}

/// A checkpoint that is being made.
#[derive(Clone, Debug)]
pub(crate) struct PendingCheckpoint {
    pub(crate) generation: u64,
    /// Its content is true only when this block is durable.
    pub(crate) after: BlockSequence,
    pub(crate) content: Vec<u8>,
    pub(crate) content_bytes: u64,
    pub(crate) op: Option<OpId>,
}

/// What the journal knows of its checkpoints.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checkpoints {
    /// The newest that was begun.
    pub(crate) generation: u64,
    /// The newest that is durable.
    pub(crate) durable_generation: u64,
    pub(crate) pending: Option<PendingCheckpoint>,
    /// Bytes of the newest.
    pub(crate) last_bytes: u64,
    /// Bytes of blocks sealed since it was begun.
    pub(crate) bytes_since: u64,
    /// Segments sealed since it was begun.
    pub(crate) segments_since: u32,
}

/// Where the writer stands between two blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) next_sequence: BlockSequence,
    pub(crate) prev_crc: u32,
    pub(crate) prev_partitions: u64,
    pub(crate) incarnation: u32,
    pub(crate) next_number: SegmentNumber,
    pub(crate) next_slot: Option<SlotId>,
    pub(crate) wall_us: u64,
}

/// Where the writer continues; made by recovery.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) table: Table,
    /// The segment to continue and its index so far, if it can be.
    pub(crate) segment: Option<(SegmentIdx, OpenIndex)>,
    pub(crate) next_number: SegmentNumber,
    pub(crate) next_sequence: BlockSequence,
    pub(crate) prev_crc: u32,
    pub(crate) prev_partitions: u64,
    pub(crate) incarnation: u32,
    /// Next record sequence of each partition that has one.
    pub(crate) partitions: Vec<(PartitionId, u64)>,
    pub(crate) generation: u64,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) bytes_since: u64,
    pub(crate) segments_since: u32,
    pub(crate) damages: Vec<Damage>,
    pub(crate) next_op: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    pub(crate) config: Config,
    pub(crate) table: Table,
    pub(crate) cache: Cache,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) damages: Vec<Damage>,
    state: State,
    incarnation: u32,
    wall_us: u64,

    segment: Option<SegmentIdx>,
    next_slot: Option<SegmentIdx>,
    next_number: SegmentNumber,
    window: Option<AppendWindow>,
    open: Option<OpenBlock>,
    entries: OpenEntries,
    index: OpenIndex,
    partitions: Vec<PartitionState>,
    touched: Vec<u16>,
    ranges: Vec<PartitionRange>,
    scratch: Vec<u8>,

    /// Sequence of the open block, or of the next one.
    next_sequence: BlockSequence,
    prev_crc: u32,
    prev_partitions: u64,
    last_is_watermark: bool,
    sealed: VecDeque<SealedBlock>,
    writes: VecDeque<WriteInFlight>,
    durable: BlockSequence,

    reads: Vec<ReadInFlight>,
    failed_reads: FailedReads,
    slot_task: Option<(OpId, SlotTask)>,
    create_after: Option<Mono>,
    /// Whether it was reported that there is no space, and not yet that there is again.
    is_short_of_space: bool,
    /// Since when more slots are free than are kept ready, and the fewest that were free since.
    spare_since: Option<(Mono, usize)>,
    /// Free slots that are to be given back.
    surplus: usize,
    is_publish_refused: bool,
    /// A dead letter has found no slot.
    wants_packing: bool,
    /// When the last turn ended.
    now: Mono,
    /// When a segment was filled last.
    filled_at: Mono,
    trickle_since: Option<Mono>,
    idle_since: Option<Mono>,
    /// The last turn gave cached buffers back: more are free in the next.
    gave_buffers: bool,
    /// Somebody waited for a read and there was none to be had: in the last turn, in this one.
    was_short_of_reads: (bool, bool),
    next_op: u64,
}

impl Journal {
    /// A journal that never was: no slots yet. Recovery of an empty directory gives the same.
    #[must_use]
    pub fn fresh(config: Config) -> Self {
        let start = Start {
            table: Table::default(),
            segment: None,
            next_number: SegmentNumber(1),
            next_sequence: BlockSequence(1),
            prev_crc: 0,
            prev_partitions: 0,
            incarnation: 1,
            partitions: Vec::new(),
            generation: 0,
            checkpoint_bytes: 0,
            bytes_since: 0,
            segments_since: 0,
            damages: Vec::new(),
            next_op: 1,
        };
        Self::start(config, start)
    }

    /// A journal that continues where recovery stopped. It first writes its incarnation.
    pub(crate) fn start(config: Config, start: Start) -> Self {
        config.assert_valid();
        let mut partitions = vec![PartitionState::default(); usize::from(config.partitions) + 1];
        for state in &mut partitions {
            state.next = 1;
        }
        let durable = BlockSequence(start.next_sequence.0 - 1);
        let (segment, index) = match start.segment {
            Some((segment, index)) => (Some(segment), index),
            None => (None, OpenIndex::default()),
        };
        let mut journal = Self {
            config,
            table: start.table,
            cache: Cache::default(),
            checkpoints: Checkpoints {
                generation: start.generation,
                durable_generation: start.generation,
                pending: None,
                last_bytes: start.checkpoint_bytes,
                bytes_since: start.bytes_since,
                segments_since: start.segments_since,
            },
            damages: start.damages,
            state: State::Starting,
            incarnation: start.incarnation,
            wall_us: 0,
            segment,
            next_slot: None,
            next_number: start.next_number,
            window: None,
            open: None,
            entries: OpenEntries::default(),
            index,
            partitions,
            touched: Vec::new(),
            ranges: Vec::new(),
            scratch: Vec::new(),
            next_sequence: start.next_sequence,
            prev_crc: start.prev_crc,
            prev_partitions: start.prev_partitions,
            last_is_watermark: false,
            sealed: VecDeque::new(),
            writes: VecDeque::new(),
            durable,
            reads: Vec::new(),
            failed_reads: FailedReads::default(),
            slot_task: None,
            create_after: None,
            is_short_of_space: false,
            spare_since: None,
            surplus: 0,
            is_publish_refused: false,
            wants_packing: false,
            now: Mono(0),
            filled_at: Mono(0),
            trickle_since: None,
            idle_since: None,
            gave_buffers: false,
            was_short_of_reads: (false, false),
            next_op: start.next_op,
        };
        for (partition, next) in start.partitions {
            journal.raise_partition(partition, next);
        }
        // What acks took of the reserve before is not for publishes now, unless there is more.
        if let Some(segment) = segment
            && journal.table.count(SlotState::Free) < RESERVE_SLOTS
        {
            journal.table.get_mut(segment).is_reserve = true;
        }
        journal
    }

    /// Appends messages of one queue, exactly as they travel. The caller has checked them, their
    /// checksums included, and that they are at most [`Journal::body_bytes_max`].
    ///
    /// The messages count as live in the segment of the place until [`Journal::drop_live`].
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    pub fn append_run(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        count: u32,
        messages: &[u8],
    ) -> Result<Appended, NoRoom> {
        assert!(messages.len() <= self.config.body_bytes_max() as usize);
        self.may_append(Purpose::of(head))?;
        if self.merge(buffers, head, count, messages) {
            return Ok(Appended::Merged);
        }
        self.append_new_run(buffers, effects, head, count, messages, None)
    }

    /// As [`Journal::append_run`], of messages whose sequences are not consecutive: `sequences` is the
    /// body of the record that says which they are, and stands behind the run in the same block.
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    pub fn append_scattered(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        count: u32,
        messages: &[u8],
        sequences: &[u8],
    ) -> Result<Appended, NoRoom> {
        self.may_append(Purpose::of(head))?;
        // The run itself names no producer: whoever reads it alone cannot mistake its sequences.
        let nameless = RunHead {
            producer: ProducerId(0),
            producer_epoch: 0,
            producer_sequence: Sequence(0),
            ..*head
        };
        let sequences = Some((head, sequences));
        self.append_new_run(buffers, effects, &nameless, count, messages, sequences)
    }

    /// Appends a run as a record of its own and, in the same block, what says its sequences.
    fn append_new_run(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        count: u32,
        messages: &[u8],
        sequences: Option<(&RunHead, &[u8])>,
    ) -> Result<Appended, NoRoom> {
        assert!(count > 0, "a run has messages");
        let run = align_record(RECORD_HEAD_BYTES + messages.len() as u32);
        let list = sequences.map_or(0, |(_, body)| RECORD_HEAD_BYTES + body.len() as u32);
        self.make_room(run + list, Purpose::of(head), buffers, effects)?;
        let place = self.push(buffers, &Draft::of(Kind::Run, head, count), messages);
        if let Some((head, body)) = sequences {
            self.push(buffers, &Draft::of(Kind::Sequences, head, count), body);
        }
        self.set_urgent();
        self.count_live(place.segment, count, run);
        Ok(Appended::New(place))
    }

    /// Appends one piece of a large message; `body` is a wire fragment. One unit counts as live per
    /// piece. Pieces of one message must come in order; others may come between.
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    pub fn append_fragment(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        body: &[u8],
    ) -> Result<Place, NoRoom> {
        let purpose = Purpose::of(head);
        self.may_append(purpose)?;
        self.append_piece(buffers, effects, head, body, 0, purpose)
            .inspect(|place| self.table.get_mut(place.segment).live_count += 1)
    }

    /// Appends a record that is no message. Returns its place.
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    pub fn append_record(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        note: &Note,
        body: &[u8],
    ) -> Result<Place, NoRoom> {
        assert!(!note.kind.is_indexed(), "messages have their own functions");
        assert!(note.kind.is_sequenced(), "the journal writes those itself");
        assert!(!note.kind.is_reserved(), "what is written is read");
        assert!(body.len() <= self.config.body_bytes_max() as usize);
        self.must_be_open()?;
        let need = RECORD_HEAD_BYTES + body.len() as u32;
        self.make_room(need, Purpose::Upkeep, buffers, effects)?;
        let draft = Draft::of(note.kind, &note.head, note.count);
        let place = self.push(buffers, &draft, body);
        if note.urgency == Urgency::Now {
            self.set_urgent();
        }
        Ok(place)
    }

    /// Appends records that are durable together or not at all: they lie in one block, and a block is
    /// whole or torn. Returns the place of each. `urgency` is [`Urgency::Now`].
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    ///
    /// # Panics
    /// If they do not fit a block: see [`Journal::group_bytes_max`].
    pub(crate) fn append_group(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        by: GroupBy,
        records: &[GroupRecord<'_>],
    ) -> Result<Vec<Place>, NoRoom> {
        let purpose = match by {
            GroupBy::Publisher => Purpose::Publish,
            GroupBy::Broker => Purpose::Letter,
            GroupBy::Settler => Purpose::Upkeep,
        };
        self.may_append(purpose)?;
        let counted = records.iter().map(|record| group_bytes(record.body.len()));
        let most = self.group_bytes_max();
        assert!(counted.sum::<u32>() <= most, "the caller has counted");
        let need = records.iter().map(|record| record_bytes(record.body.len()));
        let count = records.len() as u32;
        self.make_room_for(count, need.sum(), purpose, buffers, effects)?;
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            let draft = Draft::of(record.kind, &record.head, record.count);
            let place = self.push(buffers, &draft, record.body);
            if record.kind == Kind::Run {
                let bytes = align_record(RECORD_HEAD_BYTES + record.body.len() as u32);
                self.count_live(place.segment, record.count, bytes);
            }
            places.push(place);
        }
        self.set_urgent();
        Ok(places)
    }

    /// Bytes of the largest group of records, each as [`group_bytes`] counts it.
    #[must_use]
    pub(crate) fn group_bytes_max(&self) -> u32 {
        self.config.body_bytes_max()
    }

    /// Appends live messages that lie at `old`, which replay moves if they are still live. They
    /// count as live at the new place only when the caller moves its count there; until then the
    /// new segment is pinned.
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    pub(crate) fn append_relocated(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        count: u32,
        messages: &[u8],
    ) -> Result<Place, NoRoom> {
        self.may_append(Purpose::Move)?;
        let need = RECORD_HEAD_BYTES + messages.len() as u32;
        self.make_room(need, Purpose::Move, buffers, effects)?;
        let mut draft = Draft::of(Kind::Relocated, head, count);
        draft.flags = FLAG_RELOCATED;
        let place = self.push(buffers, &draft, messages);
        self.count_units(place.segment, count, align_record(need));
        self.table.get_mut(place.segment).pin_count += 1;
        Ok(place)
    }

    /// As [`Journal::append_relocated`], for one piece of a large message.
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    pub(crate) fn append_relocated_fragment(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        body: &[u8],
    ) -> Result<Place, NoRoom> {
        self.may_append(Purpose::Move)?;
        self.append_piece(buffers, effects, head, body, FLAG_RELOCATED, Purpose::Move)
            .inspect(|place| self.table.get_mut(place.segment).pin_count += 1)
    }

    fn append_piece(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        body: &[u8],
        flags: u8,
        purpose: Purpose,
    ) -> Result<Place, NoRoom> {
        assert!(body.len() <= self.config.body_bytes_max() as usize);
        let (piece, _) = FragmentHead::split(body).expect("the caller checked the fragment");
        let need = RECORD_HEAD_BYTES + body.len() as u32;
        self.make_room(need, purpose, buffers, effects)?;
        let mut draft = Draft::of(
            Kind::Fragment,
            head,
            piece.offset / FRAGMENT_BYTES_MAX as u32,
        );
        draft.flags = flags;
        draft.message_bytes = piece.message_bytes;
        let place = self.push(buffers, &draft, body);
        self.set_urgent();
        self.count_units(place.segment, 1, align_record(need));
        if flags & FLAG_RELOCATED == 0 && piece.is_last() {
            self.count_messages(1);
        }
        Ok(place)
    }

    /// Bytes of the largest body of one record.
    #[must_use]
    pub fn body_bytes_max(&self) -> u32 {
        self.config.body_bytes_max()
    }

    /// Bytes of a body that fit the open block, 0 if it is full or there is none: a caller with
    /// more than that splits at a message, so that blocks are filled.
    #[must_use]
    pub fn room(&self, buffers: &impl Buffers) -> u32 {
        let Some(open) = &self.open else { return 0 };
        let left = buffers.buffer_bytes() - open.start - open.used;
        left.saturating_sub(self.entries.bytes() + RECORD_HEAD_BYTES)
    }

    /// How often the journal was opened: no life has the number of another.
    #[must_use]
    pub const fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// The block that holds what was appended last.
    #[must_use]
    pub fn open_block(&self) -> BlockSequence {
        match self.open {
            Some(_) => self.next_sequence,
            None => BlockSequence(self.next_sequence.0 - 1),
        }
    }

    /// Every block up to this one is synced.
    #[must_use]
    pub fn durable_block(&self) -> BlockSequence {
        self.durable
    }

    /// Whether more buffers are free at the next turn than at the last one.
    #[must_use]
    pub fn gave_buffers(&self) -> bool {
        self.gave_buffers
    }

    /// The segment of the open block, if one is open.
    #[must_use]
    pub fn open_segment(&self) -> Option<SegmentIdx> {
        self.open.as_ref().map(|open| open.segment)
    }

    /// When the write of a block was begun, while it is in flight.
    #[must_use]
    pub fn submitted(&self, block: BlockSequence) -> Option<Mono> {
        let mut writes = self.writes.iter();
        let write = writes.find(|write| write.block.sequence == block)?;
        Some(write.since)
    }

    /// Whether appends are taken: the incarnation is durable and no write has failed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether a write has failed; final.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Whether publishes are refused because the disk is nearly full; ends with hysteresis.
    #[must_use]
    pub fn is_publish_refused(&self) -> bool {
        self.is_publish_refused
    }

    /// Whether as many slots are free as are kept ready, or no more can be had for now.
    #[must_use]
    pub fn is_supplied(&self) -> bool {
        self.table.count(SlotState::Free) >= self.free_target()
            || self.create_after.is_some()
            || self.is_full()
    }

    /// Whether publishes will soon wait for a slot: a file that is being made for one shall be done as
    /// fast as the disk can. Otherwise it shall leave the disk to what is written.
    #[must_use]
    pub fn is_short_of_slots(&self) -> bool {
        self.table.count(SlotState::Free) <= RESERVE_SLOTS + 1
    }

    fn is_full(&self) -> bool {
        let count = self.table.len() - self.table.count(SlotState::Absent);
        count >= self.config.slots_max as usize
    }

    /// Whether more slots can be had than there are.
    #[must_use]
    pub fn may_grow(&self) -> bool {
        self.create_after.is_none() && !self.is_full()
    }

    /// Bytes that publishes may still fill without touching the reserve. `None` if there are no more
    /// slots to be had: publishes are refused then, where they only waited for credit before.
    #[must_use]
    pub fn publish_space(&self) -> Option<u64> {
        if self.is_publish_refused && !self.may_grow() {
            return None;
        }
        let free = self
            .table
            .count(SlotState::Free)
            .saturating_sub(RESERVE_SLOTS) as u64;
        let open = if self.is_in_reserve() {
            0
        } else {
            self.open_room()
        };
        Some(free * u64::from(self.config.segment_bytes) + open)
    }

    /// Whether the open segment is for acks alone.
    fn is_in_reserve(&self) -> bool {
        self.segment
            .is_some_and(|segment| self.table.get(segment).is_reserve)
    }

    /// Whether a segment was filled a moment ago.
    pub(crate) fn is_filling(&self, now: Mono) -> bool {
        now.ms_since(self.filled_at) < self.config.pack_after_ms
    }

    /// Bytes of the open segment that are not written.
    pub(crate) fn open_room(&self) -> u64 {
        self.segment.map_or(0, |segment| {
            let written = self.table.get(segment).written_bytes;
            u64::from(self.config.segment_bytes.saturating_sub(written))
        })
    }

    /// Ranges of partitions that recovery could not prove and nobody accepted the loss of.
    #[must_use]
    pub fn damages(&self) -> &[Damage] {
        &self.damages
    }

    /// Next record sequence of a partition.
    #[must_use]
    pub fn partition_next(&self, partition: PartitionId) -> u64 {
        self.partitions
            .get(partition_slot(partition))
            .map_or(1, |state| state.next)
    }

    /// Continues a partition that another journal held before (rulings 14), and says so durably.
    ///
    /// # Errors
    /// [`NoRoom`]; then the partition is not adopted.
    pub fn adopt_partition(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        partition: PartitionId,
        next: u64,
    ) -> Result<Place, NoRoom> {
        self.must_be_open()?;
        let left_at = self.partition_next(partition).to_le_bytes();
        let need = RECORD_HEAD_BYTES + left_at.len() as u32;
        self.make_room(need, Purpose::Upkeep, buffers, effects)?;
        self.raise_partition(partition, next);
        let draft = Draft::of(Kind::Adopt, &RunHead::of_partition(partition), 0);
        let place = self.push(buffers, &draft, &left_at);
        self.set_urgent();
        Ok(place)
    }

    /// Writes that an operator accepts the loss of a partition's records `lost`; nothing else ends
    /// damage (rulings 10).
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was written.
    pub fn accept_loss(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        partition: PartitionId,
        lost: Range<u64>,
    ) -> Result<Place, NoRoom> {
        let mut body = [0u8; 16];
        body[..8].copy_from_slice(&lost.start.to_le_bytes());
        body[8..].copy_from_slice(&lost.end.to_le_bytes());
        let note = Note {
            kind: Kind::Loss,
            head: RunHead::of_partition(partition),
            count: 1,
            urgency: Urgency::Now,
        };
        let place = self.append_record(buffers, effects, &note, &body)?;
        accept(&mut self.damages, partition, lost);
        Ok(place)
    }

    fn raise_partition(&mut self, partition: PartitionId, next: u64) {
        let slot = partition_slot(partition);
        while self.partitions.len() <= slot {
            self.partitions.push(PartitionState {
                next: 1,
                ..PartitionState::default()
            });
        }
        let state = &mut self.partitions[slot];
        state.next = state.next.max(next);
    }

    /// Sets the wall clock that blocks carry.
    pub fn set_wall(&mut self, wall_us: u64) {
        self.wall_us = wall_us;
    }

    fn must_be_open(&self) -> Result<(), NoRoom> {
        match self.state {
            State::Ready => Ok(()),
            State::Starting | State::Opening(_) | State::Failed => Err(NoRoom::Closed),
        }
    }

    fn may_append(&mut self, purpose: Purpose) -> Result<(), NoRoom> {
        match purpose {
            Purpose::Publish => self.may_publish(),
            Purpose::Letter | Purpose::Move | Purpose::Upkeep => self.may_move(purpose),
        }
    }

    fn may_publish(&mut self) -> Result<(), NoRoom> {
        self.must_be_open()?;
        if self.is_publish_refused || self.is_in_reserve() {
            return Err(self.no_slot());
        }
        Ok(())
    }

    /// Dead letters and moves stop while others may need what is left, also of a segment that was
    /// opened for those: what they empty comes back only with checkpoints.
    fn may_move(&mut self, purpose: Purpose) -> Result<(), NoRoom> {
        self.must_be_open()?;
        if self.table.count(SlotState::Free) < purpose.leaves() {
            return Err(self.no_room(purpose));
        }
        Ok(())
    }

    /// Why there is no slot for somebody.
    fn no_room(&mut self, purpose: Purpose) -> NoRoom {
        match purpose {
            Purpose::Publish => self.no_slot(),
            Purpose::Letter => {
                self.wants_packing = true;
                NoRoom::Disk
            }
            Purpose::Move | Purpose::Upkeep => NoRoom::Disk,
        }
    }

    /// Whether a dead letter has found no slot: then what can be packed is, at once. Says so once.
    pub(crate) fn take_wants_packing(&mut self) -> bool {
        std::mem::take(&mut self.wants_packing)
    }

    /// Why there is no slot for a publish: from the moment that none can be had publishes are
    /// refused, before it they wait.
    fn no_slot(&mut self) -> NoRoom {
        if !self.is_publish_refused && self.may_grow() {
            return NoRoom::Slot;
        }
        self.is_publish_refused = true;
        NoRoom::Disk
    }

    /// Extends the last record if the messages continue it and fit its block.
    fn merge(
        &mut self,
        buffers: &mut impl Buffers,
        head: &RunHead,
        count: u32,
        messages: &[u8],
    ) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let Some(last) = &mut open.last else {
            return false;
        };
        let is_next = last.head.kind == Kind::Run
            && last.head.queue == head.queue
            && last.head.partition == head.partition
            && last.head.term == head.term
            && last.head.producer == head.producer
            && last.head.producer_epoch == head.producer_epoch
            && last.head.queue_sequence.plus(u64::from(last.head.count)) == head.queue_sequence
            && (head.producer.0 == 0
                || last.head.producer_sequence.plus(u64::from(last.head.count))
                    == head.producer_sequence);
        let bytes = messages.len() as u32;
        let used = open.used + bytes;
        if !is_next
            || open.start + used > self.config.buffer_bytes
            || !fits(
                &self.config,
                &self.index,
                &self.touched,
                1,
                open.offset,
                used,
            )
        {
            return false;
        }
        let counted = record::gather_messages(&mut open.folded, messages);
        assert_eq!(counted, Some(count), "the caller checked the messages");
        let tail = buffers.open_bytes(open.buffer, open.start + open.used);
        tail[..messages.len()].copy_from_slice(messages);
        last.head.count += count;
        last.head.length += bytes;
        open.used = used;
        let segment = open.segment;
        self.count_live(segment, count, bytes);
        true
    }

    /// So many messages were published into the open block, a large one with its last piece.
    fn count_messages(&mut self, count: u32) {
        let open = self.open.as_mut().expect("just appended to");
        if open.messages == 0 {
            open.since = self.now;
        }
        open.messages += count;
    }

    fn count_live(&mut self, segment: SegmentIdx, count: u32, bytes: u32) {
        self.count_messages(count);
        self.count_units(segment, count, bytes);
        self.table.get_mut(segment).live_count += u64::from(count);
    }

    fn count_units(&mut self, segment: SegmentIdx, count: u32, bytes: u32) {
        let mut segment = self.table.get_mut(segment);
        segment.unit_count += u64::from(count);
        segment.unit_bytes += u64::from(bytes);
    }

    fn set_urgent(&mut self) {
        let open = self.open.as_mut().expect("just appended to");
        open.is_urgent = true;
    }

    /// Sees to it that the open block takes a record of `need` bytes.
    fn make_room(
        &mut self,
        need: u32,
        purpose: Purpose,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Result<(), NoRoom> {
        self.make_room_for(1, need, purpose, buffers, effects)
    }

    /// Sees to it that the open block takes so many records of `need` bytes together.
    fn make_room_for(
        &mut self,
        records: u32,
        need: u32,
        purpose: Purpose,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Result<(), NoRoom> {
        let need = align_record(need);
        if let Some(open) = &self.open {
            let used = open.used + self.entries.bytes() + need;
            let records = self.entries.count() + records;
            let (index, touched) = (&self.index, &self.touched);
            if open.start + used <= self.config.buffer_bytes
                && fits(&self.config, index, touched, records, open.offset, used)
            {
                return Ok(());
            }
        }
        self.seal_open(buffers);
        let part_bytes = self.index.bytes();
        let is_part_due = part_bytes > self.config.part_bytes();
        let continues = self.segment.is_some_and(|segment| {
            let written = self.table.get(segment).written_bytes;
            let used = BLOCK_HEADER_BYTES + need;
            if is_part_due {
                let from = written + index_copies_bytes(part_bytes);
                fits(
                    &self.config,
                    &OpenIndex::default(),
                    &[],
                    records,
                    from,
                    used,
                )
            } else {
                fits(&self.config, &self.index, &[], records, written, used)
            }
        });
        let has_window = continues
            && !is_part_due
            && self
                .window
                .is_some_and(|window| window_takes(&self.config, window, need));
        let buffers_min = match purpose {
            Purpose::Publish => BUFFERS_TO_PUBLISH,
            Purpose::Letter | Purpose::Move | Purpose::Upkeep => BUFFERS_UPKEEP,
        };
        if !has_window && buffers.available() < buffers_min {
            return Err(NoRoom::Buffers);
        }
        if !continues {
            self.roll(purpose, buffers, effects)?;
        } else if is_part_due {
            self.write_index(0, buffers, effects);
        }
        self.open_in_window(need, 0, buffers, effects);
        Ok(())
    }

    /// Seals the segment, if there is one, and opens the next.
    fn roll(
        &mut self,
        purpose: Purpose,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Result<(), NoRoom> {
        let free = self.table.count(SlotState::Free);
        if free <= purpose.leaves() {
            return Err(self.no_room(purpose));
        }
        self.seal_segment(buffers, effects);
        let next = self
            .next_slot
            .filter(|next| self.table.get(*next).state == SlotState::Free)
            .or_else(|| self.table.first(SlotState::Free, None))
            .expect("counted above");
        let number = self.next_number;
        self.next_number = SegmentNumber(number.0 + 1);
        let named_generation = self.checkpoints.generation;
        let mut segment = self.table.get_mut(next);
        assert_eq!(segment.live_count, 0, "a free slot holds nothing live");
        assert_eq!(segment.pin_count, 0, "a free slot is not pinned");
        *segment = Segment {
            state: SlotState::Open,
            number,
            named_generation,
            is_reserve: free - 1 < RESERVE_SLOTS,
            ..Segment::absent(segment.slot, segment.journal)
        };
        drop(segment);
        self.segment = Some(next);
        self.next_slot = self.table.first(SlotState::Free, Some(next));
        self.slot_taken();
        self.window = None;
        self.index.clear();
        Ok(())
    }

    /// What time it is, for all that follows.
    pub(crate) const fn set_now(&mut self, now: Mono) {
        self.now = now;
    }

    /// Writes the footer of the open segment and closes it.
    fn seal_segment(&mut self, buffers: &mut impl Buffers, effects: &mut Effects) {
        let Some(segment) = self.segment else { return };
        assert!(
            self.open.is_none(),
            "blocks are sealed before their segment"
        );
        self.write_index(FLAG_LAST_PART, buffers, effects);
        self.segment = None;
        self.window = None;
        self.table.get_mut(segment).state = SlotState::Sealed;
        self.filled_at = self.now;
        self.checkpoints.segments_since += 1;
    }

    /// Writes the index since the last part, twice, in blocks of their own.
    fn write_index(&mut self, flags: u8, buffers: &mut impl Buffers, effects: &mut Effects) {
        let segment = self.segment.expect("an index belongs to a segment");
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        let (number, before) = {
            let parts = &self.table.get(segment).parts;
            (parts.len() as u32, parts.last().copied())
        };
        self.index.encode(number, before, &mut body);
        let mut part = IndexPart {
            covers_from: self.index.covers_from(),
            covers_upto: self.index.covers_upto(),
            ..IndexPart::default()
        };
        for copy in [0, FLAG_SECOND_COPY] {
            let need = align_record(RECORD_HEAD_BYTES + body.len() as u32);
            self.open_in_window(need, BLOCK_FLAG_INDEX, buffers, effects);
            let mut draft = Draft::of(Kind::Index, &RunHead::of_partition(PARTITION_META), number);
            draft.flags = flags | copy;
            self.push(buffers, &draft, &body);
            let offset = self.open.as_ref().expect("just opened").offset;
            if copy == 0 {
                part.first_copy = offset;
            } else {
                part.second_copy = offset;
            }
            self.seal_open(buffers);
        }
        self.scratch = body;
        self.table.get_mut(segment).parts.push(part);
        self.index.clear();
    }

    /// Opens a block with room for a record of `need` bytes, in the window or in a new one.
    fn open_in_window(
        &mut self,
        need: u32,
        flags: u16,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) {
        assert!(self.open.is_none(), "one block is open at a time");
        let segment = self.segment.expect("a block belongs to a segment");
        let written = self.table.get(segment).written_bytes;
        let usable = self
            .window
            .filter(|window| window_takes(&self.config, *window, need));
        let window = usable.unwrap_or_else(|| {
            let buffer = buffers.acquire().expect("the caller counted the buffers");
            let window = AppendWindow {
                buffer,
                start: written,
                sealed_bytes: 0,
            };
            let cached = Window {
                buffer,
                start: written,
                bytes: 0,
                origin: Origin::Written(self.next_sequence),
                readers: 0,
                is_utmost: true,
            };
            self.cache.insert(segment, cached, effects);
            window
        });
        assert_eq!(window.start + window.sealed_bytes, written);
        self.window = Some(window);
        self.touched.clear();
        self.open = Some(OpenBlock {
            segment,
            buffer: window.buffer,
            start: window.sealed_bytes,
            offset: written,
            used: BLOCK_HEADER_BYTES,
            record_count: 0,
            content: Gathered::new(0),
            folded: Gathered::new(0),
            last: None,
            is_urgent: false,
            flags,
            since: self.now,
            messages: 0,
        });
    }

    /// Copies a record into the open block, which has room for it.
    fn push(&mut self, buffers: &mut impl Buffers, draft: &Draft, body: &[u8]) -> Place {
        self.close_record(buffers);
        let partition_sequence = if draft.kind.is_sequenced() {
            self.number_record(draft.head.partition)
        } else {
            0
        };
        let open = self.open.as_mut().expect("room was made");
        open.folded = Gathered::new(0);
        if draft.kind.has_messages() {
            let counted = record::gather_messages(&mut open.folded, body);
            assert_eq!(
                counted,
                Some(draft.count),
                "the caller checked the messages"
            );
        } else {
            open.folded.push(body);
        }
        let length = RECORD_HEAD_BYTES + body.len() as u32;
        let at = open.used;
        let tail = buffers.open_bytes(open.buffer, open.start + at);
        let tail = &mut tail[..align_record(length) as usize];
        let (_, rest) = tail.split_at_mut(RECORD_HEAD_BYTES as usize);
        let (place, padding) = rest.split_at_mut(body.len());
        place.copy_from_slice(body);
        padding.fill(0);
        open.used = at + align_record(length);
        open.last = Some(OpenRecord {
            at,
            head: RecordHead {
                kind: draft.kind,
                flags: draft.flags,
                partition: draft.head.partition,
                length,
                count: draft.count,
                crc: 0,
                partition_sequence,
                term: draft.head.term,
                queue: draft.head.queue,
                queue_sequence: draft.head.queue_sequence,
                producer: draft.head.producer,
                producer_sequence: draft.head.producer_sequence,
                producer_epoch: draft.head.producer_epoch,
                back: 0,
            },
            message_bytes: draft.message_bytes,
        });
        Place {
            segment: open.segment,
            offset: open.offset + at,
        }
    }

    fn number_record(&mut self, partition: PartitionId) -> u64 {
        let slot = partition_slot(partition);
        if slot >= self.partitions.len() {
            self.raise_partition(partition, 1);
        }
        let state = &mut self.partitions[slot];
        let sequence = state.next;
        state.next += 1;
        if state.in_block != self.next_sequence {
            state.in_block = self.next_sequence;
            state.block_first = sequence;
            self.touched.push(partition.0);
        }
        sequence
    }

    /// Writes the head of the last record, and the entries of a body: they do not change any more.
    fn close_record(&mut self, buffers: &mut impl Buffers) {
        self.close_last(buffers);
        self.push_entries(buffers);
    }

    fn close_last(&mut self, buffers: &mut impl Buffers) {
        let Some(open) = &mut self.open else { return };
        let Some(OpenRecord {
            at,
            mut head,
            message_bytes,
        }) = open.last.take()
        else {
            return;
        };
        let bytes = head.seal_gathered(&mut open.folded);
        let tail = buffers.open_bytes(open.buffer, open.start + at);
        tail[..RECORD_HEAD_BYTES as usize].copy_from_slice(&bytes);
        open.content.push(&head.crc.to_le_bytes());
        open.record_count += 1;
        let offset = open.offset + at;
        self.note_closed(&head);
        if head.kind.is_indexed() {
            self.index.add_run(&RunEntry {
                kind: head.kind,
                is_relocated: head.flags & FLAG_RELOCATED != 0,
                queue: head.queue,
                queue_sequence: head.queue_sequence,
                count: head.count,
                offset,
                body_bytes: align_record(head.body_bytes()),
                message_bytes,
            });
        }
    }

    /// Every segment, for people and tests.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentIdx, &Segment)> {
        self.table.iter()
    }

    /// Asserts what must hold between steps.
    pub fn invariants(&self) {
        self.cache.invariants();
        self.table.invariants();
        assert!(self.writes.len() <= self.config.writes_in_flight as usize);
        let waiting = (self.writes.len() + self.sealed.len()) as u64;
        if self.state != State::Failed {
            assert_eq!(self.durable.0 + waiting + 1, self.next_sequence.0);
        }
        let open = self.table.count(SlotState::Open);
        assert_eq!(open, usize::from(self.segment.is_some()));
        for (_, segment) in self.table.iter() {
            assert!(segment.durable_bytes <= segment.written_bytes);
            assert!(segment.written_bytes <= self.config.segment_bytes);
            assert!(segment.live_count <= segment.unit_count || segment.unit_count == 0);
        }
    }
}

/// A record to be pushed.
struct Draft {
    kind: Kind,
    flags: u8,
    head: RunHead,
    count: u32,
    message_bytes: u32,
}

impl Draft {
    fn of(kind: Kind, head: &RunHead, count: u32) -> Self {
        Self {
            kind,
            flags: 0,
            head: *head,
            count,
            message_bytes: 0,
        }
    }
}

/// Whether a record read back is what was written: it and all its messages.
pub(crate) fn proves_itself(bytes: &[u8]) -> bool {
    match record::check(bytes) {
        Ok((head, body)) if head.kind.has_messages() => {
            let mut is_good = true;
            record::check_messages(body, |_| is_good = false);
            is_good
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Takes what was accepted out of a list of damage.
pub(crate) fn accept(damages: &mut Vec<Damage>, partition: PartitionId, lost: Range<u64>) {
    let mut left = Vec::new();
    for damage in damages.drain(..) {
        if damage.partition != partition || damage.upto <= lost.start || damage.first >= lost.end {
            left.push(damage);
            continue;
        }
        if damage.first < lost.start {
            left.push(Damage {
                upto: lost.start,
                ..damage
            });
        }
        if damage.upto > lost.end {
            left.push(Damage {
                first: lost.end,
                ..damage
            });
        }
    }
    *damages = left;
}

/// Where a partition's state lies; those that are no queues' come first.
const fn partition_slot(partition: PartitionId) -> usize {
    match partition {
        PARTITION_META => 0,
        PARTITION_TRANSACTIONS => 1,
        PartitionId(number) => number as usize + 2,
    }
}

/// The partition whose state lies there.
const fn partition_of(slot: usize) -> PartitionId {
    match slot {
        0 => PARTITION_META,
        1 => PARTITION_TRANSACTIONS,
        slot => PartitionId(slot as u16 - 2),
    }
}

/// Whether a block at `offset` with `used` bytes leaves room for its segment's index, twice.
fn fits(
    config: &Config,
    index: &OpenIndex,
    touched: &[u16],
    records: u32,
    offset: u32,
    used: u32,
) -> bool {
    let growth = (records + 1) * INDEX_RUN_BYTES
        + (touched.len() as u32 + records) * INDEX_PARTITION_BYTES
        + INDEX_BLOCK_BYTES;
    let part = index.bytes() + growth;
    let end = offset + align_block(used) + index_copies_bytes(part);
    end <= config.segment_bytes && part <= config.body_bytes_max()
}

/// Whether a segment that is open again takes one more block, such as the first of a start.
pub(crate) fn takes_a_block(config: &Config, index: &OpenIndex, written: u32) -> bool {
    fits(config, index, &[], 1, written, BLOCK_ALIGN)
}

/// Bytes of both copies of an index part.
const fn index_copies_bytes(part_bytes: u32) -> u32 {
    2 * align_block(BLOCK_HEADER_BYTES + align_record(RECORD_HEAD_BYTES + part_bytes))
}

/// Whether a window has room for a block with a record of `need` bytes. A small rest is left
/// unused: it costs memory only, and a block of its own would be written for very little.
fn window_takes(config: &Config, window: AppendWindow, need: u32) -> bool {
    let left = config.buffer_bytes - window.sealed_bytes;
    left >= BLOCK_HEADER_BYTES + need && left >= config.buffer_bytes / 8
}
