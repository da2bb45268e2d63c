//! A queue on its way back from disk: its checkpointed state, and what the journal says since.
//! Does not know the journal's records, only what each says of this queue.
//!
//! State, all integers little-endian u64 unless said otherwise:
//!
//! ```text
//! version u32 = 2 | zero u32 | next | floor | mark | span count | range count | arrival count |
//! spans: first, last | ranges: first, last, deliveries u32, zero u32 |
//! arrivals: first, wall clock in ms, time to live in ms (0 = what the queue allows)
//! ```

use std::collections::BTreeMap;

use super::expiry::Span;
use super::index::{Pieces, Run};
use super::returned::{CountRange, DELIVERIES_MAX, Returned};
use super::settled::SettledSet;
use super::settled::{Ranges, SequenceRange};
use super::{Marking, Place, Queue, QueueSequence, SegmentIdx, Settings, ms_of, push_range};
use crate::ids::Clock;

const VERSION: u32 = 2;
const HEAD_BYTES: usize = 8 + 6 * 8;
const SPAN_BYTES: usize = 16;
const COUNT_BYTES: usize = 24;
const ARRIVAL_BYTES: usize = 24;

/// When messages from a first one on arrived, and how long they may live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// The first message.
    pub first: QueueSequence,
    /// When the last of them arrived: wall clock in ms since 1970.
    pub wall_ms: i64,
    /// What their producers allowed, 0 = any time.
    pub ttl_ms: u32,
}

/// Why bytes or records are no state of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateFault {
    /// Written by a later version.
    Version(u32),
    /// Length and counts do not agree.
    Length,
    /// Ranges are empty, out of order, touching or beyond the last message.
    Ranges,
    /// A number is out of its bounds.
    Number,
}

/// Consecutive messages from a key on.
#[derive(Clone, Copy)]
struct Deliveries {
    last: u64,
    count: u32,
}

/// A queue that is being recovered. Feed it what the journal says, in journal order, then
/// [`Replay::finish`]. Everything may be said more than once.
pub struct Replay {
    queue: Queue,
    mark: u64,
    /// Delivery counts by first sequence; ranges do not overlap.
    counts: BTreeMap<u64, Deliveries>,
    /// In order of sequence.
    arrivals: Vec<Arrival>,
}

impl Queue {
    /// Appends the state for a checkpoint: what [`Replay::decode`] reads. Runs are not in it, nor how
    /// far they go. `acked` are the ranges whose ack record is appended and not yet known durable:
    /// the checkpoint becomes valid only when it is, and replay starts behind it.
    pub fn encode_state(&self, clock: Clock, acked: &[SequenceRange], out: &mut Vec<u8>) {
        let mark = match self.is_stream() {
            true => 0,
            false => self.marks.asked(),
        };
        self.encode(mark, clock, acked, out);
    }

    /// The same when nothing is delivered any more, in a checkpoint behind the last record: what
    /// nobody holds was delivered as often as was counted, and needs no mark. Acks that got no record
    /// are lost, and what they were for was delivered once more than was counted.
    pub fn encode_last_state(&self, clock: Clock, acked: &[SequenceRange], out: &mut Vec<u8>) {
        let recorded: u64 = acked.iter().map(SequenceRange::count).sum();
        if self.unacked == 0 && self.pending == recorded {
            self.encode(0, clock, acked, out);
        } else {
            self.encode_state(clock, acked, out);
        }
    }

    fn encode(&self, mark: u64, clock: Clock, acked: &[SequenceRange], out: &mut Vec<u8>) {
        let mut settled = SettledSet::new();
        if self.settled.floor() > 0 {
            settled.insert_new(1, self.settled.floor());
        }
        for (first, last) in self.settled.spans() {
            settled.insert_new(first, last);
        }
        for range in acked {
            settled.insert_new(range.first.0, range.last.0);
        }
        let mut counts: Vec<CountRange> = Vec::new();
        let mut add = |first: u64, last: u64, deliveries: u32| {
            let range = SequenceRange::new(QueueSequence(first), QueueSequence(last));
            counts.push(CountRange { range, deliveries });
        };
        for span in self.returned.iter().chain(self.pending_counts.iter()) {
            add(span.first, span.last(), span.deliveries);
        }
        for consumer in self.consumers.iter().filter(|_| !self.is_stream()) {
            for delivery in consumer.unacked.iter().filter(|d| d.earlier > 0) {
                add(delivery.sequence, delivery.sequence, delivery.earlier);
            }
        }
        // What died was delivered as often as that says; nobody holds it.
        for (sequence, dying) in self.dead.iter().filter(|(_, dying)| dying.deliveries > 0) {
            add(sequence, sequence, dying.deliveries);
        }
        counts.sort_unstable();
        counts.dedup_by(|after, before| {
            let joins = before.range.last.0 + 1 == after.range.first.0
                && before.deliveries == after.deliveries;
            if joins {
                before.range.last = after.range.last;
            }
            joins
        });

        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        let mut number = |number: u64| out.extend_from_slice(&number.to_le_bytes());
        number(self.durable.max(settled.ceiling()) + 1);
        number(settled.floor());
        number(mark);
        number(settled.span_count() as u64);
        number(counts.len() as u64);
        number(self.expiry.len() as u64);
        for (first, last) in settled.spans() {
            number(first);
            number(last);
        }
        for count in &counts {
            number(count.range.first.0);
            number(count.range.last.0);
            number(u64::from(count.deliveries));
        }
        let ahead = (clock.wall_us / 1_000) as i64 - ms_of(clock.now);
        for span in self.expiry.iter() {
            number(span.first);
            number((span.arrived + ahead) as u64);
            number(u64::from(span.ttl_ms));
        }
    }

    /// After a recovery: when the messages arrived, and what time that is to the engine.
    pub fn restore_arrivals(
        &mut self,
        arrivals: &[Arrival],
        mut to_engine: impl FnMut(i64) -> i64,
    ) {
        // What was not durable when that was written is not there.
        let known = |arrival: &&Arrival| arrival.first.0 < self.next;
        for arrival in arrivals.iter().take_while(known) {
            self.expiry.restore(Span {
                first: arrival.first.0,
                arrived: to_engine(arrival.wall_ms),
                ttl_ms: arrival.ttl_ms,
            });
        }
        self.expiry.forget(&self.settled);
    }
}

impl Replay {
    /// Recovery of a queue without a checkpoint.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            queue: Queue::new(settings),
            mark: 0,
            counts: BTreeMap::new(),
            arrivals: Vec::new(),
        }
    }

    /// Messages from `first` on arrived then. What is said of messages that were spoken of before is
    /// not taken again.
    pub fn arrived(&mut self, arrival: Arrival) {
        match self.arrivals.last() {
            Some(last) if last.first >= arrival.first => {}
            Some(last) if last.ttl_ms == arrival.ttl_ms && last.wall_ms == arrival.wall_ms => {}
            _ => self.arrivals.push(arrival),
        }
    }

    /// One message arrived then; others behind it may have been spoken of.
    pub fn arrived_alone(&mut self, arrival: Arrival) {
        let at = self
            .arrivals
            .partition_point(|known| known.first <= arrival.first);
        let before = at.checked_sub(1).map(|before| self.arrivals[before]);
        if before.is_some_and(|before| before.first == arrival.first) {
            return;
        }
        let behind = arrival.first.plus(1);
        let is_next_known = self
            .arrivals
            .get(at)
            .is_some_and(|next| next.first == behind);
        self.arrivals.insert(at, arrival);
        if !is_next_known {
            let next = Arrival {
                first: behind,
                ..before.unwrap_or(Arrival {
                    ttl_ms: 0,
                    ..arrival
                })
            };
            self.arrivals.insert(at + 1, next);
        }
    }

    /// When the messages arrived, for [`Queue::restore_arrivals`] behind [`Replay::finish`].
    #[must_use]
    pub fn take_arrivals(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals)
    }

    /// Recovery from a checkpoint's state. Takes memory in proportion to `bytes`, whatever they say.
    ///
    /// # Errors
    /// [`StateFault`] if the bytes are not what [`Queue::encode_state`] writes.
    pub fn decode(settings: Settings, bytes: &[u8]) -> Result<Self, StateFault> {
        let (head, mut rest) = bytes
            .split_at_checked(HEAD_BYTES)
            .ok_or(StateFault::Length)?;
        let version = u64_at(head, 0);
        if version != u64::from(VERSION) {
            return Err(StateFault::Version(version as u32));
        }
        let [next, floor, mark, spans, counts, arrivals] =
            [8, 16, 24, 32, 40, 48].map(|at| u64_at(head, at));
        let needed = u128::from(spans) * SPAN_BYTES as u128
            + u128::from(counts) * COUNT_BYTES as u128
            + u128::from(arrivals) * ARRIVAL_BYTES as u128;
        if needed != rest.len() as u128 {
            return Err(StateFault::Length);
        }
        if next <= floor || next == u64::MAX {
            return Err(StateFault::Number);
        }
        let mut replay = Self::new(settings);
        replay.mark = mark;
        replay.queue.next = next;
        if floor > 0 {
            replay.queue.settled.insert_new(1, floor);
        }
        let mut below = floor;
        for _ in 0..spans {
            let (span, after) = rest.split_at(SPAN_BYTES);
            let (first, last) = (u64_at(span, 0), u64_at(span, 8));
            // One message at least lives between two ranges, else they were one.
            if first <= below || first - below < 2 || last < first || last >= next {
                return Err(StateFault::Ranges);
            }
            replay.queue.settled.insert_new(first, last);
            (below, rest) = (last, after);
        }
        let mut below = 0;
        for _ in 0..counts {
            let (entry, after) = rest.split_at(COUNT_BYTES);
            let (first, last, count) = (u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16));
            if first <= below || last < first || last >= next {
                return Err(StateFault::Ranges);
            }
            if count == 0 || count > u64::from(DELIVERIES_MAX) {
                return Err(StateFault::Number);
            }
            let count = count as u32;
            replay.counts.insert(first, Deliveries { last, count });
            (below, rest) = (last, after);
        }
        let mut below = None;
        for _ in 0..arrivals {
            let (entry, after) = rest.split_at(ARRIVAL_BYTES);
            let (first, wall_ms, ttl_ms) = (u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16));
            if below.is_some_and(|below| first <= below) {
                return Err(StateFault::Ranges);
            }
            let numbers = (i64::try_from(wall_ms), u32::try_from(ttl_ms));
            let (Ok(wall_ms), Ok(ttl_ms)) = numbers else {
                return Err(StateFault::Number);
            };
            replay.arrivals.push(Arrival {
                first: QueueSequence(first),
                wall_ms,
                ttl_ms,
            });
            (below, rest) = (Some(first), after);
        }
        Ok(replay)
    }

    /// A record holds `count` messages from `first` on; as for [`Queue::push_run`]. Messages that are
    /// settled or were found elsewhere before are not taken again. The marks of records that lie
    /// before the checkpoint are in its state: they are [`Marking::Plain`] here.
    ///
    /// # Errors
    /// [`StateFault::Number`] if a number is out of bounds.
    pub fn run(
        &mut self,
        first: QueueSequence,
        count: u32,
        bytes: u32,
        place: Place,
        marking: Marking,
    ) -> Result<(), StateFault> {
        let run = Run::new(first.0, count, bytes, place).ok_or(StateFault::Number)?;
        self.seen(run.last())?;
        if marking == Marking::Marked {
            self.mark = self.mark.max(run.last());
        }
        let queue = &mut self.queue;
        let mut from = run.first();
        while from <= run.last() {
            let known = queue.index.first_from(from);
            let known = known.filter(|known| known.first() <= run.last());
            let end = known.map_or(run.last(), |known| known.first().max(from) - 1);
            if let Some(part) = run.part(from, end, &queue.settled) {
                queue.index.insert(part);
            }
            from = known.map_or(end, |known| known.last()) + 1;
        }
        Ok(())
    }

    /// One message lies in several records; as for [`Queue::push_fragmented`]. Said again with other
    /// places, it has moved.
    ///
    /// # Errors
    /// [`StateFault::Number`] if there is no place or a number is out of bounds.
    pub fn fragmented(
        &mut self,
        sequence: QueueSequence,
        bytes: u32,
        places: &[Place],
        marking: Marking,
    ) -> Result<(), StateFault> {
        let first = *places.first().ok_or(StateFault::Number)?;
        let run = Run::fragmented(sequence.0, first).ok_or(StateFault::Number)?;
        self.seen(sequence.0)?;
        if marking == Marking::Marked {
            self.mark = self.mark.max(sequence.0);
        }
        let queue = &mut self.queue;
        if queue.settled.contains(sequence.0) {
            return Ok(());
        }
        match queue.index.find(sequence.0) {
            Some(known) if known.is_fragmented() => {
                queue.index.relocate_pieces(sequence.0, run, places);
            }
            Some(_) => return Err(StateFault::Number),
            None => {
                queue.index.insert(run);
                let places = places.to_vec();
                let pieces = Pieces { bytes, places };
                queue.index.insert_pieces(sequence.0, pieces);
            }
        }
        Ok(())
    }

    /// A relocate record: the message, if it still lives, lies at `place`, alone in its record.
    ///
    /// # Errors
    /// [`StateFault::Number`] if a number is out of bounds or the message is fragmented.
    pub fn moved(
        &mut self,
        sequence: QueueSequence,
        place: Place,
        bytes: u32,
    ) -> Result<(), StateFault> {
        let run = Run::new(sequence.0, 1, bytes, place).ok_or(StateFault::Number)?;
        self.seen(sequence.0)?;
        let queue = &mut self.queue;
        if queue.settled.contains(sequence.0) {
            return Ok(());
        }
        match queue.index.find(sequence.0) {
            Some(known) if known.is_fragmented() => return Err(StateFault::Number),
            Some(_) => {
                queue.index.relocate(sequence.0, run, &queue.settled);
            }
            None => queue.index.insert(run),
        }
        Ok(())
    }

    /// A relocate record of several messages: those that still live lie there.
    ///
    /// # Errors
    /// [`StateFault::Number`] if a number is out of bounds.
    pub fn moved_run(
        &mut self,
        first: QueueSequence,
        count: u32,
        bytes: u32,
        place: Place,
    ) -> Result<(), StateFault> {
        let run = Run::new(first.0, count, bytes, place).ok_or(StateFault::Number)?;
        self.seen(run.last())?;
        let queue = &mut self.queue;
        queue.index.relocate_run(run, None, &queue.settled);
        Ok(())
    }

    /// An ack record, a purge, or a loss that an operator has accepted.
    ///
    /// # Errors
    /// [`StateFault::Number`] if a number is out of bounds.
    pub fn settled(&mut self, range: SequenceRange) -> Result<(), StateFault> {
        if range.first.0 == 0 || range.first > range.last {
            return Err(StateFault::Number);
        }
        self.seen(range.last.0)?;
        let settled = &mut self.queue.settled;
        let mut from = range.first.0;
        while from <= range.last.0 {
            let known = settled.stretch_from(from);
            let known = known.filter(|(first, _)| *first <= range.last.0);
            let end = known.map_or(range.last.0, |(first, _)| first.max(from) - 1);
            if from <= end {
                self.queue.index.forget(from, end, &mut |_, _| {});
                settled.insert_new(from, end);
            }
            from = known.map_or(end, |(_, last)| last).max(end) + 1;
        }
        Ok(())
    }

    /// A mark: messages up to `sequence` may have been delivered.
    pub fn mark(&mut self, sequence: QueueSequence) {
        self.mark = self.mark.max(sequence.0);
    }

    /// A delivery count record. The later one holds.
    ///
    /// # Errors
    /// [`StateFault::Number`] if a number is out of bounds.
    pub fn counts(&mut self, counts: CountRange) -> Result<(), StateFault> {
        let (first, last) = (counts.range.first.0, counts.range.last.0);
        let count = counts.deliveries;
        if first == 0 || last < first || count == 0 || count > DELIVERIES_MAX {
            return Err(StateFault::Number);
        }
        self.seen(last)?;
        // Cut what overlaps on both sides, then drop what lies inside.
        if let Some((start, below)) = self.counts.range(..first).next_back() {
            let (start, below) = (*start, *below);
            if below.last >= first {
                let cut = Deliveries {
                    last: first - 1,
                    ..below
                };
                self.counts.insert(start, cut);
                if below.last > last {
                    self.counts.insert(last + 1, below);
                }
            }
        }
        while let Some((start, inside)) = self.counts.range(first..=last).next() {
            let (start, inside) = (*start, *inside);
            self.counts.remove(&start);
            if inside.last > last {
                self.counts.insert(last + 1, inside);
            }
        }
        self.counts.insert(first, Deliveries { last, count });
        Ok(())
    }

    /// Messages exist up to `sequence`.
    fn seen(&mut self, sequence: u64) -> Result<(), StateFault> {
        if sequence >= u64::MAX - 1 {
            return Err(StateFault::Number);
        }
        self.queue.next = self.queue.next.max(sequence + 1);
        Ok(())
    }

    /// Messages that are neither found nor settled: what a damaged range has cost.
    pub fn gaps(&self, out: &mut Ranges) {
        let queue = &self.queue;
        let mut runs = queue.index.iter().peekable();
        let mut at = queue.settled.floor() + 1;
        while at < queue.next {
            while runs.peek().is_some_and(|run| run.last() < at) {
                runs.next();
            }
            let run = runs.peek();
            let stretch = queue.settled.stretch_from(at);
            let starts = [run.map(Run::first), stretch.map(|(first, _)| first)];
            let start = starts.into_iter().flatten().min().unwrap_or(queue.next);
            if start > at {
                push_range(out, at, start.min(queue.next) - 1);
                at = start;
            } else {
                let run_end = run.filter(|run| run.first() <= at).map(Run::last);
                let stretch = stretch.filter(|(first, _)| *first <= at);
                let ends = [run_end, stretch.map(|(_, last)| last)];
                at = ends.into_iter().flatten().max().unwrap_or(at) + 1;
            }
        }
    }

    /// Tells for each run (and each piece of a fragmented message) its segment and how many live
    /// messages it holds there.
    pub fn for_each_live_run(&self, each: impl FnMut(SegmentIdx, u32)) {
        self.queue.index.for_each_live(each);
    }

    /// The queue as it was: everything found is durable, nothing is delivered, and what may have been
    /// delivered before counts as delivered.
    ///
    /// The mark starts again at 0, which is what tells the deliveries of this life from those before:
    /// the delivery counts must be durable before the first delivery, in a new checkpoint
    /// ([`Queue::encode_state`]) or as records ([`Queue::hold_restored`]), else a second crash could
    /// leave a count too low.
    ///
    /// # Errors
    /// The replay itself if there are gaps (see [`Replay::gaps`]): the queue must refuse service.
    pub fn finish(self) -> Result<Queue, Box<Replay>> {
        let mut gaps = Ranges::new();
        self.gaps(&mut gaps);
        if !gaps.is_empty() {
            return Err(Box::new(self));
        }
        Ok(self.finish_with_gaps())
    }

    /// As [`Replay::finish`], whatever is missing: for a queue that refuses service but keeps what
    /// it has until the loss is repaired or accepted.
    #[must_use]
    pub fn finish_with_gaps(self) -> Queue {
        let Self {
            mut queue,
            mark,
            counts,
            arrivals: _,
        } = self;
        queue.durable = queue.next - 1;
        queue.cursor = queue.settled.floor() + 1;
        queue.ready = queue.index.iter().map(|run| run.live()).sum();
        queue.bytes = queue.index.iter().map(|run| queue.bytes_of(run)).sum();
        // Up to the mark each message may have been delivered once more than was recorded.
        let marked = mark.min(queue.next - 1);
        let mut from = queue.cursor;
        for (first, Deliveries { last, count }) in counts {
            restore(&mut queue, from, marked.min(first - 1), 1);
            restore(&mut queue, first, last.min(marked), count.saturating_add(1));
            restore(&mut queue, first.max(marked + 1), last, count);
            from = last + 1;
        }
        restore(&mut queue, from, marked, 1);
        queue
    }
}

/// The messages `first..=last`, as far as they are not settled, were delivered before.
fn restore(queue: &mut Queue, first: u64, last: u64, deliveries: u32) {
    let mut from = first.max(queue.settled.floor() + 1);
    while from <= last {
        let stretch = queue.settled.stretch_from(from);
        let stretch = stretch.filter(|(first, _)| *first <= last);
        let end = stretch.map_or(last, |(first, _)| first.max(from) - 1);
        while from <= end {
            let count = (end - from + 1).min(u64::from(u32::MAX)) as u32;
            queue
                .returned
                .insert(Returned::new(from, count, deliveries));
            from += u64::from(count);
        }
        from = stretch.map_or(from, |(_, last)| last + 1);
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
