//! Moves what is live out of sparse segments, so that their slots come back (rulings 12, 18).
//! Does not know what makes a message live: a [`Relocate`] says so and follows the moves.
//!
//! A move is a record that names the message, not its place in the queue: replay reads it as "lies
//! here now, if it is still live". The old segment's count falls when the record is durable, and its
//! slot is free when no checkpoint on disk needs it. Nothing is ever moved unproved.

use std::collections::{BTreeMap, VecDeque};

use crate::data::journal::block::{BLOCK_HEADER_BYTES, BlockSequence, SegmentNumber};
use crate::data::journal::record::{Kind, RecordHead};
use crate::data::journal::segment::{IndexBody, RunEntry, Segment, SlotState};
use crate::data::journal::{Config, Fetch, Journal, Located, RunHead};
use crate::effect::{Buffers, Effects};
use crate::ids::{Mono, Place, SegmentIdx};
use ringpost_wire::envelope;
use ringpost_wire::ids::{PartitionId, ProducerId, QueueId, QueueSequence, Sequence};
use ringpost_wire::limits::padded;

/// Bytes read and written per millisecond, at most: about 64 MB/s.
const BYTES_PER_MS: u64 = 64 << 10;
/// Bytes saved up while there was nothing to do.
const BYTES_SAVED_MAX: u64 = 1 << 20;
/// Moves in flight, at most.
const MOVES_MAX: usize = 4_096;
/// Messages looked at in one poll, at most, but for those of the run that reaches it.
const LOOKS_PER_POLL_MAX: u32 = 8_192;
/// Time before the table is looked through again after it held nothing worth moving, and before a
/// move is tried again that found no room.
const RETRY_MS: u64 = 250;

/// A stretch of messages, or one piece of a large message, that lies elsewhere now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// The queue.
    pub queue: QueueId,
    /// The first message.
    pub first: QueueSequence,
    /// Messages; 1 for a piece.
    pub count: u32,
    /// Padded bytes of the messages.
    pub bytes: u32,
    /// Number of the piece of a large message.
    pub piece: Option<u32>,
    /// Where the record lies that held them.
    pub source: Place,
    /// Where the record lies that holds them now; `first` is its first message.
    pub target: Place,
}

/// Who knows what is live, and where.
pub trait Relocate {
    /// Whether the message is not durably settled and lies in the record at `place`.
    fn is_live(&self, queue: QueueId, sequence: QueueSequence, place: Place) -> bool;
    /// The partition of a queue that has live messages.
    fn partition(&self, queue: QueueId) -> PartitionId;
    /// The move is durable: those that are still live and still at the source are at the target
    /// now. Returns how many those are; their live counts are moved by the caller of this.
    fn moved(&mut self, moved: &Moved) -> u32;
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    block: BlockSequence,
    moved: Moved,
}

/// The segment that is being emptied.
#[derive(Debug)]
struct Source {
    segment: SegmentIdx,
    /// The life of the slot: it may end while the segment is emptied, by acks alone.
    number: SegmentNumber,
    part: usize,
    copy: u32,
    runs: VecDeque<RunEntry>,
    /// Bytes that were moved out of it.
    moved_bytes: u64,
}

/// Whether the work of a poll can go on.
enum Flow {
    Continue,
    Stop,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Compactor {
    source: Option<Source>,
    pending: VecDeque<Pending>,
    budget_bytes: u64,
    /// Bytes ever spent.
    spent_bytes: u64,
    polled: Option<Mono>,
    /// When there may be something to do again, if nothing happens before.
    wake_at: Option<Mono>,
    /// When the table is looked through again.
    pick_after: Option<Mono>,
    /// Somebody waits for a slot: every one that can be made is worth it, now.
    is_wanted: bool,
    /// Segments of which more was moved than is worth it, with their numbers and what was live then: what
    /// their queues share is as many copies when it is moved.
    given_up: BTreeMap<SegmentIdx, (SegmentNumber, u64)>,
    scratch: Vec<u8>,
    stretch: Vec<u8>,
    moved_count: u64,
}

impl Compactor {
    /// Reports moves that became durable and does a bounded amount of work. Call at the end of
    /// every turn.
    pub fn poll(
        &mut self,
        now: Mono,
        journal: &mut Journal,
        relocate: &mut impl Relocate,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) {
        self.report_durable(journal, relocate);
        let elapsed = self.polled.map_or(0, |polled| now.ms_since(polled));
        if elapsed > 0 || self.polled.is_none() {
            self.polled = Some(now);
            let earned = elapsed.saturating_mul(BYTES_PER_MS);
            self.budget_bytes = (self.budget_bytes + earned).min(BYTES_SAVED_MAX);
        }
        self.wake_at = None;
        if !journal.is_ready() {
            return;
        }
        self.is_wanted = journal.take_wants_packing();
        let mut looks = 0;
        while self.pending.len() < MOVES_MAX {
            if self.budget_bytes == 0 || looks >= LOOKS_PER_POLL_MAX {
                self.wake_at = Some(now.plus_ms(1));
                return;
            }
            let taken = self.source.take().filter(|source| {
                let segment = journal.table.get(source.segment);
                segment.state == SlotState::Sealed && segment.number == source.number
            });
            let Some(mut source) = taken.or_else(|| self.pick(now, journal)) else {
                return;
            };
            looks += source.runs.front().map_or(1, |run| run.count.max(1));
            let flow = self.work(&mut source, journal, relocate, buffers, effects);
            let is_done = source.runs.is_empty()
                && source.part >= journal.table.get(source.segment).parts.len();
            if !is_done {
                self.source = Some(source);
            }
            if let Flow::Stop = flow {
                self.wake_at = Some(now.plus_ms(RETRY_MS));
                return;
            }
        }
    }

    /// When it wants to be polled even if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.wake_at
    }

    /// Messages and pieces moved so far.
    #[must_use]
    pub fn moved_count(&self) -> u64 {
        self.moved_count
    }

    /// Whether nothing is being moved.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.source.is_none() && self.pending.is_empty()
    }

    fn report_durable(&mut self, journal: &mut Journal, relocate: &mut impl Relocate) {
        while let Some(pending) = self.pending.front()
            && (pending.block <= journal.durable_block() || crate::mutant!(MovedBeforeSync))
        {
            let moved = pending.moved;
            self.pending.pop_front();
            let count = relocate.moved(&moved);
            assert!(count <= moved.count, "no more can move than was moved");
            journal.retain(moved.target.segment, count);
            journal.drop_live(moved.source.segment, count);
            journal.unpin(moved.target.segment);
            self.moved_count += u64::from(count);
        }
    }

    /// The sparsest segment, if the journal takes more than one and a half times what is live.
    /// Spare slots are no excuse: they are free, and counted apart.
    fn pick(&mut self, now: Mono, journal: &Journal) -> Option<Source> {
        let totals = journal.table.totals();
        let held_bytes = totals.holding_count as u64 * u64::from(journal.config.segment_bytes);
        if 2 * held_bytes <= 3 * totals.live_bytes {
            self.pick_after = None;
            return None;
        }
        let after = self.pick_after.filter(|after| now < *after);
        if let Some(after) = after.filter(|_| !self.is_wanted) {
            self.wake_at = Some(after);
            return None;
        }
        let sources = self.pending.iter().map(|moving| moving.moved.source);
        let mut moving: Vec<SegmentIdx> = sources.map(|source| source.segment).collect();
        moving.dedup();
        let sparse = journal
            .segments()
            .filter(|(_, segment)| may_empty(segment, &journal.config))
            .filter(|(index, _)| !moving.contains(index))
            .filter(|(index, segment)| !self.is_given_up(*index, segment));
        let (mut count, mut bytes, mut sparsest) = (0, 0, None);
        for (index, segment) in sparse {
            let live_bytes = segment.live_bytes();
            count += 1;
            bytes += live_bytes;
            if sparsest.is_none_or(|(least, _)| live_bytes < least) {
                sparsest = Some((live_bytes, index));
            }
        }
        // Together they must fit fewer segments than they take now, at the density that counts as
        // packed; so what is as dense as it gets is never moved for its padding. While segments are
        // being filled, so many more that the gain is worth the writing.
        let config = &journal.config;
        let (room, slack) = match journal.is_filling(now) && !self.is_wanted {
            true => (0, u64::from(config.spare_slots)),
            false => (journal.open_room(), 0),
        };
        let behind = (bytes + bytes / 2).saturating_sub(room);
        let needed = behind.div_ceil(u64::from(config.segment_bytes));
        let sparsest = sparsest
            .filter(|_| needed + slack < count)
            .map(|(_, index)| index);
        let Some(segment) = sparsest else {
            // Nothing to gain yet; the table is not walked again at once.
            self.pick_after = Some(now.plus_ms(RETRY_MS));
            self.wake_at = self.pick_after;
            return None;
        };
        Some(Source {
            segment,
            number: journal.table.get(segment).number,
            part: 0,
            copy: 0,
            runs: journal.table.get(segment).made_runs().collect(),
            moved_bytes: 0,
        })
    }

    /// Whether moving the rest of a segment is not worth it, as long as most of it is live still.
    fn is_given_up(&self, index: SegmentIdx, segment: &Segment) -> bool {
        let known = self.given_up.get(&index);
        known.is_some_and(|(number, live)| {
            *number == segment.number && 4 * segment.live_count > 3 * live
        })
    }

    fn work(
        &mut self,
        source: &mut Source,
        journal: &mut Journal,
        relocate: &mut impl Relocate,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Flow {
        let Some(run) = source.runs.front().copied() else {
            return self.read_part(source, journal, buffers, effects);
        };
        let place = Place {
            segment: source.segment,
            offset: run.offset,
        };
        let count = match run.kind {
            Kind::Fragment => 1,
            _ => run.count,
        };
        let is_live = |index: u32| {
            let sequence = run.queue_sequence.plus(u64::from(index));
            relocate.is_live(run.queue, sequence, place)
        };
        if !(0..count).any(is_live) {
            source.runs.pop_front();
            return Flow::Continue;
        }
        let (head, body) = match journal.locate(buffers, place, run.queue, run.queue_sequence) {
            Located::Cached { buffer, body, head } => {
                // A body does not say whose it is: it moves as a run of the queue that is looked at.
                let head = match head.kind {
                    Kind::Body => RecordHead {
                        partition: relocate.partition(run.queue),
                        queue: run.queue,
                        queue_sequence: run.queue_sequence,
                        ..head
                    },
                    _ => head,
                };
                (head, buffers.bytes(buffer, body))
            }
            Located::Cold | Located::Coming => return self.fetch(place, journal, buffers, effects),
            Located::Damaged => {
                // It stays where it is, and so does its segment (rulings 10).
                journal.note_damage(place);
                source.runs.clear();
                source.part = usize::MAX;
                return Flow::Continue;
            }
        };
        self.scratch.clear();
        self.scratch.extend_from_slice(body);
        let before = self.spent_bytes;
        let done = match run.kind {
            Kind::Fragment => self.move_piece(&head, place, journal, buffers, effects),
            _ => self.move_run(&head, place, journal, relocate, buffers, effects),
        };
        source.moved_bytes += self.spent_bytes - before;
        match done {
            Flow::Continue => {
                source.runs.pop_front();
                if 3 * source.moved_bytes > 2 * u64::from(journal.config.segment_bytes) {
                    let live = journal.table.get(source.segment).live_count;
                    self.given_up.insert(source.segment, (source.number, live));
                    source.runs.clear();
                    source.part = usize::MAX;
                }
                Flow::Continue
            }
            // What was moved of the run already will be moved once more: replay does not mind.
            Flow::Stop => Flow::Stop,
        }
    }

    fn fetch(
        &mut self,
        place: Place,
        journal: &mut Journal,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Flow {
        match journal.fetch(buffers, effects, place) {
            Fetch::Cached { .. } => {}
            Fetch::Coming { upto } => self.spend(u64::from(upto.saturating_sub(place.offset))),
            Fetch::Busy => {}
        }
        Flow::Stop
    }

    fn spend(&mut self, bytes: u64) {
        self.budget_bytes = self.budget_bytes.saturating_sub(bytes);
        self.spent_bytes += bytes;
    }

    /// Reads the next part of the source's index.
    fn read_part(
        &mut self,
        source: &mut Source,
        journal: &mut Journal,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Flow {
        let parts = &journal.table.get(source.segment).parts;
        let Some(part) = parts.get(source.part).copied() else {
            return Flow::Continue;
        };
        if part.is_given_up() {
            source.part += 1;
            return Flow::Continue;
        }
        let offset = match source.copy {
            0 => part.first_copy,
            _ => part.second_copy,
        };
        let place = Place {
            segment: source.segment,
            offset: offset + BLOCK_HEADER_BYTES,
        };
        let body = match journal.locate_record(buffers, place) {
            Located::Cached { buffer, body, head } if head.kind == Kind::Index => {
                IndexBody::decode(buffers.bytes(buffer, body))
            }
            Located::Cold | Located::Coming => return self.fetch(place, journal, buffers, effects),
            Located::Cached { .. } | Located::Damaged => None,
        };
        match body {
            Some(body) => {
                source.runs.extend(body.runs);
                source.part += 1;
                source.copy = 0;
            }
            None if source.copy == 0 => source.copy = 1,
            None => {
                journal.note_damage(place);
                source.part = usize::MAX;
            }
        }
        Flow::Continue
    }

    fn move_piece(
        &mut self,
        head: &RecordHead,
        source: Place,
        journal: &mut Journal,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Flow {
        let moved_head = relocated_head(head, head.queue_sequence, journal, source);
        let body = std::mem::take(&mut self.scratch);
        let appended = journal.append_relocated_fragment(buffers, effects, &moved_head, &body);
        self.spend(body.len() as u64);
        self.scratch = body;
        let Ok(target) = appended else {
            return Flow::Stop;
        };
        self.pending.push_back(Pending {
            block: journal.open_block(),
            moved: Moved {
                queue: head.queue,
                first: head.queue_sequence,
                count: 1,
                bytes: 0,
                piece: Some(head.count),
                source,
                target,
            },
        });
        Flow::Continue
    }

    /// Moves each stretch of live messages of a run.
    fn move_run(
        &mut self,
        head: &RecordHead,
        source: Place,
        journal: &mut Journal,
        relocate: &impl Relocate,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Flow {
        let body = std::mem::take(&mut self.scratch);
        let mut rest = &body[..];
        let mut sequence = head.queue_sequence;
        let mut first = sequence;
        let mut count = 0;
        let mut flow = Flow::Continue;
        self.stretch.clear();
        loop {
            let message = envelope::length_of(rest)
                .and_then(|length| rest.split_at_checked(padded(length).max(16)));
            let is_live = message.is_some() && relocate.is_live(head.queue, sequence, source);
            if !is_live && count > 0 {
                let moved_head = relocated_head(head, first, journal, source);
                let stretch = std::mem::take(&mut self.stretch);
                let appended =
                    journal.append_relocated(buffers, effects, &moved_head, count, &stretch);
                self.spend(stretch.len() as u64);
                let bytes = stretch.len() as u32;
                self.stretch = stretch;
                self.stretch.clear();
                let Ok(target) = appended else {
                    flow = Flow::Stop;
                    break;
                };
                self.pending.push_back(Pending {
                    block: journal.open_block(),
                    moved: Moved {
                        queue: head.queue,
                        first,
                        count,
                        bytes,
                        piece: None,
                        source,
                        target,
                    },
                });
                count = 0;
            }
            let Some((message, after)) = message else {
                break;
            };
            if is_live {
                if count == 0 {
                    first = sequence;
                }
                self.stretch.extend_from_slice(message);
                count += 1;
            }
            sequence = sequence.plus(1);
            rest = after;
        }
        self.scratch = body;
        flow
    }
}

/// Whether a segment may be emptied by moving, and that gives space back.
fn may_empty(segment: &Segment, config: &Config) -> bool {
    segment.state == SlotState::Sealed
        && segment.live_count > 0
        && 3 * segment.live_bytes() < 2 * u64::from(config.segment_bytes)
        && !segment.is_damaged
        && !(segment.parts.is_empty() && segment.made_parts.is_empty())
        && segment.pin_count == 0
        && segment.durable_bytes == segment.written_bytes
}

/// The head of a moved record: it names the old place where a run names its producer.
pub(crate) fn relocated_head(
    head: &RecordHead,
    first: QueueSequence,
    journal: &Journal,
    source: Place,
) -> RunHead {
    let number = journal.table.get(source.segment).number;
    RunHead {
        partition: head.partition,
        term: head.term,
        queue: head.queue,
        queue_sequence: first,
        producer: ProducerId(number.0),
        producer_epoch: 0,
        producer_sequence: Sequence(u64::from(source.offset)),
    }
}
