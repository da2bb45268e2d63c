//! Live messages that cannot be served: finds them, gives them up, and saves what lies beside them.
//! Does not know what recovery found in the tail, nor where a queue belongs.

use std::collections::BTreeSet;

use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

use super::{Disk, Opened, append};
use crate::control::compaction::relocated_head;
use crate::data::journal::block::BLOCK_ALIGN;
use crate::data::journal::record::{self, Kind, RecordHead, check_messages};
use crate::data::journal::shared::is_body_at;
use crate::data::journal::{Journal, Note, RunHead, Urgency};
use crate::data::notes;
use crate::data::queue::{LiveRun, Queue, Ranges, SequenceRange, walk};
use crate::ids::{Place, SegmentIdx};

/// Messages of a queue that are not settled and that no queue serves where they lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// The queue.
    pub queue: QueueId,
    /// The messages.
    pub range: SequenceRange,
    /// Why.
    pub why: Unserved,
}

/// Why messages are not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unserved {
    /// They lie nowhere: an index or blocks are gone.
    Nowhere,
    /// What lies in their place cannot be read, or is not what was written.
    Damaged,
    /// They are whole, in records in which only settled messages are damaged. To give them up moves
    /// them, and loses nothing.
    Beside,
}

/// What was read last.
#[derive(Debug, Default)]
pub(super) struct Window {
    segment: Option<SegmentIdx>,
    start: u32,
    bytes: Vec<u8>,
}

/// A whole message in a record that is damaged elsewhere.
struct Saved {
    sequence: QueueSequence,
    place: Place,
    head: RecordHead,
    message: Vec<u8>,
}

/// What a queue's live messages are like.
#[derive(Default)]
struct Examined {
    lost: Ranges,
    saved: Vec<Saved>,
    /// Records that hold some of what is lost.
    with_loss: BTreeSet<Place>,
}

impl Examined {
    /// Messages saved from records in which only settled ones are damaged.
    fn beside(&self) -> Ranges {
        let beside = self.saved.iter();
        let beside = beside.filter(|saved| !self.with_loss.contains(&saved.place));
        let mut sequences: Vec<QueueSequence> = beside.map(|saved| saved.sequence).collect();
        sequences.sort_unstable();
        let mut ranges = Ranges::default();
        for sequence in sequences {
            ranges.push(SequenceRange::new(sequence, sequence));
        }
        ranges
    }
}

impl<D: Disk> Opened<D> {
    /// Proves every live message of the queues that `is_declared`, and names those that are not served,
    /// queue by queue and in order: to give all of them up lets the queue serve again.
    pub fn unreadable(&mut self, is_declared: impl Fn(QueueId) -> bool) -> Vec<Unreadable> {
        let mut found = Vec::new();
        for (id, replay) in std::mem::take(&mut self.queues) {
            if !is_declared(id) {
                continue;
            }
            let mut gaps = Ranges::default();
            replay.gaps(&mut gaps);
            let examined = self.examine(id, &replay.finish_with_gaps());
            let begun = found.len();
            for (ranges, why) in [
                (&gaps, Unserved::Nowhere),
                (&examined.lost, Unserved::Damaged),
                (&examined.beside(), Unserved::Beside),
            ] {
                found.extend(ranges.as_slice().iter().map(|range| Unreadable {
                    queue: id,
                    range: *range,
                    why,
                }));
            }
            found[begun..].sort_unstable_by_key(|unserved| unserved.range.first);
        }
        found
    }

    /// Gives up `lost` messages of a queue, as far as they cannot be read, and moves whole messages
    /// out of the records that held them, so that those can be read.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn give_up(
        &mut self,
        partition: PartitionId,
        queue: QueueId,
        lost: &[SequenceRange],
    ) -> Result<(), String> {
        let Some(replay) = self.queues.remove(&queue) else {
            return Ok(());
        };
        self.turn_until(Journal::is_ready)?;
        let mut gaps = Ranges::default();
        replay.gaps(&mut gaps);
        let examined = self.examine(queue, &replay.finish_with_gaps());
        let mut given_up = Ranges::default();
        for bad in gaps.as_slice().iter().chain(examined.lost.as_slice()) {
            for range in lost {
                let (first, last) = (bad.first.max(range.first), bad.last.min(range.last));
                if first <= last {
                    given_up.push(SequenceRange::new(first, last));
                }
            }
        }
        for saved in &examined.saved {
            let head = RecordHead {
                partition,
                queue,
                ..saved.head
            };
            let head = relocated_head(&head, saved.sequence, &self.journal, saved.place);
            append(self, |journal, pool, effects| {
                journal
                    .append_relocated(pool, effects, &head, 1, &saved.message)
                    .map(|_| ())
            })?;
        }
        self.settle(partition, queue, given_up.as_slice())?;
        self.rest()
    }

    /// Writes that messages are settled.
    pub(super) fn settle(
        &mut self,
        partition: PartitionId,
        queue: QueueId,
        ranges: &[SequenceRange],
    ) -> Result<(), String> {
        for ranges in ranges.chunks(notes::RANGES_PER_RECORD_MAX) {
            let mut body = Vec::new();
            notes::encode_ranges(ranges, &mut body);
            let note = Note {
                kind: Kind::Ack,
                head: RunHead::of_queue(partition, queue, QueueSequence(0)),
                count: ranges.len() as u32,
                urgency: Urgency::Now,
            };
            append(self, |journal, pool, effects| {
                journal
                    .append_record(pool, effects, &note, &body)
                    .map(|_| ())
            })?;
        }
        Ok(())
    }

    fn examine(&mut self, id: QueueId, queue: &Queue) -> Examined {
        let mut examined = Examined::default();
        for run in queue.live_runs() {
            if run.pieces.is_empty() {
                self.examine_run(id, queue, &run, &mut examined);
            } else {
                let pieces = &run.pieces;
                let is_whole = pieces.iter().all(|place| {
                    self.proved(*place).is_some_and(|(head, _)| {
                        let is_it = head.queue == id && head.queue_sequence == run.first;
                        is_it && head.kind == Kind::Fragment
                    })
                });
                if !is_whole {
                    examined.lost.push(SequenceRange::new(run.first, run.first));
                }
            }
        }
        examined
    }

    fn examine_run(&mut self, id: QueueId, queue: &Queue, run: &LiveRun, examined: &mut Examined) {
        let live = (0..run.count).map(|index| (run.skip + index, run.first.plus(index.into())));
        let live = live.filter(|(_, sequence)| queue.lies_at(*sequence, run.place));
        let base = run.first.0.checked_sub(run.skip.into());
        let base = base.map(QueueSequence);
        let number = self.journal.table.get(run.place.segment).number;
        let record = self.proved(run.place).filter(|(head, _)| match head.kind {
            Kind::Body => is_body_at(head, number, run.place.offset),
            kind => head.queue == id && Some(head.queue_sequence) == base && kind.has_messages(),
        });
        let Some((head, body)) = record else {
            for (_, sequence) in live {
                examined.lost.push(SequenceRange::new(sequence, sequence));
            }
            return;
        };
        let mut bad = Vec::new();
        check_messages(body, |index| bad.push(index));
        if bad.is_empty() {
            return;
        }
        for (index, sequence) in live {
            let start = walk(body, 0, 0, index);
            let end = start.and_then(|start| walk(body, index, start, index + 1));
            match start.zip(end) {
                Some((start, end)) if !bad.contains(&index) => examined.saved.push(Saved {
                    sequence,
                    place: run.place,
                    head,
                    message: body[start as usize..end as usize].to_vec(),
                }),
                _ => {
                    examined.lost.push(SequenceRange::new(sequence, sequence));
                    examined.with_loss.insert(run.place);
                }
            }
        }
    }

    /// The record at a place, if it proves itself. Its messages may still be damaged.
    fn proved(&mut self, place: Place) -> Option<(RecordHead, &[u8])> {
        let start = place.offset / BLOCK_ALIGN * BLOCK_ALIGN;
        let is_held = self.window.segment == Some(place.segment) && self.window.start <= start;
        let at = place.offset.wrapping_sub(self.window.start) as usize;
        let held = self.window.bytes.get(at..).filter(|_| is_held);
        if held.is_none_or(|bytes| record::check(bytes).is_err()) {
            self.fill(place.segment, start, self.journal.config.buffer_bytes);
        }
        let at = (place.offset - self.window.start) as usize;
        // Something behind it could not be read: as much as the record needs may be.
        if let Some(bytes) = self.window.bytes.get(at..)
            && let Ok(head) = RecordHead::decode(bytes)
            && (bytes.len() as u64) < u64::from(head.length)
        {
            let end = (place.offset - start).saturating_add(head.length);
            self.fill(place.segment, start, end);
        }
        record::check(self.window.bytes.get(at..)?).ok()
    }

    /// Reads what can be read of a segment from `start` on, at most so many bytes and a buffer.
    fn fill(&mut self, segment: SegmentIdx, start: u32, most: u32) {
        let slot = self.journal.table.get(segment).slot;
        let config = &self.journal.config;
        let most = most.min(config.buffer_bytes).next_multiple_of(BLOCK_ALIGN);
        let mut length = most.min(config.segment_bytes - start);
        let window = &mut self.window;
        (window.segment, window.start) = (Some(segment), start);
        while length > 0 {
            window.bytes.resize(length as usize, 0);
            if self.disk.read(slot, start, &mut window.bytes).is_ok() {
                return;
            }
            length = match length {
                ..=BLOCK_ALIGN => 0,
                _ => (length / 2).next_multiple_of(BLOCK_ALIGN),
            };
        }
        window.bytes.clear();
    }
}
