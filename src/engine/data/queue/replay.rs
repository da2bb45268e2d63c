//! A queue on its way back from disk: its checkpointed state, and what the journal says since.
//! Does not know the journal's records, only what each says of this queue.
//!
//! State, all integers little-endian u64 unless said otherwise:
//!
//! ```text
//! version u32 = 3 | zero u32 | next | floor | mark | span count | range count | arrival count |
//! wait count | rank count | told | spans: first, last | ranges: first, last, deliveries u32, zero u32 |
//! arrivals: first, wall clock in ms, time to live in ms (0 = what the queue allows) |
//! waits: first, count, wall clock in ms when they are due | ranks: first, rank of those from it on
//! ```
//!
//! Arrivals, waits and ranks are those of all messages below `told`, durable or not: a checkpoint is
//! valid only when they all are, and the records behind it are of others.

use std::collections::BTreeMap;

use super::expiry::{Ms, Span};
use super::index::{Pieces, Run};
use super::returned::{CountRange, DELIVERIES_MAX, Returned};
use super::settled::SettledSet;
use super::settled::{Ranges, SequenceRange};
use super::{
    Marking, Place, Queue, QueueSequence, RANK_MAX, SegmentIdx, Settings, Terms, due_ms, ms_of,
    push_range,
};
use crate::ids::Clock;

const VERSION: u32 = 3;
const HEAD_BYTES: usize = 8 + 9 * 8;
const SPAN_BYTES: usize = 16;
const COUNT_BYTES: usize = 24;
const ARRIVAL_BYTES: usize = 24;
const WAIT_BYTES: usize = 24;
const RANK_BYTES: usize = 16;

/// When a message arrived, and what it asks of its queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// The message.
    pub sequence: QueueSequence,
    /// When it arrived: wall clock in ms since 1970.
    pub wall_ms: i64,
    /// What it asks.
    pub terms: Terms,
}

/// What messages of a queue asked of it, for [`Queue::restore_terms`].
#[derive(Debug, Default)]
pub struct KeptTerms {
    /// By the wall clock, in order.
    expiry: Vec<Span>,
    /// First message: how many, and when they are due by the wall clock in ms.
    delayed: BTreeMap<u64, (u32, i64)>,
    /// First message: the last one, and their rank, which is not 0.
    ranks: BTreeMap<u64, (u64, u8)>,
}

impl KeptTerms {
    /// One message is due then. What was said before holds.
    fn delay(&mut self, sequence: u64, due: i64) {
        if let Some((first, (count, known))) = self.delayed.range_mut(..=sequence).next_back() {
            let behind = first + u64::from(*count);
            if behind > sequence {
                return;
            }
            if behind == sequence && *known == due && *count < u32::MAX {
                *count += 1;
                return;
            }
        }
        self.delayed.insert(sequence, (1, due));
    }

    /// One message has that rank. What was said before holds.
    fn rank(&mut self, sequence: u64, rank: u8) {
        if let Some((_, (last, known))) = self.ranks.range_mut(..=sequence).next_back() {
            if *last >= sequence {
                return;
            }
            if *last + 1 == sequence && *known == rank {
                *last = sequence;
                return;
            }
        }
        self.ranks.insert(sequence, (sequence, rank));
    }

    /// What is set apart of the messages up to `next`: first, last, and until when it is delayed or
    /// its rank. In order.
    fn apart(&self, next: u64) -> Vec<(u64, u64, Apart)> {
        let mut apart = Vec::new();
        for (first, (count, due)) in &self.delayed {
            apart.push((*first, first + u64::from(*count) - 1, Apart::Until(*due)));
        }
        for (first, (last, rank)) in &self.ranks {
            let mut from = *first;
            // Ranks of what is delayed are asked for when it is due.
            let before = self.delayed.range(..from).next_back();
            let within = self.delayed.range(from..=*last);
            for (hole, (count, _)) in before.into_iter().chain(within) {
                if *hole > from {
                    apart.push((from, hole - 1, Apart::Rank(*rank)));
                }
                from = from.max(hole + u64::from(*count));
            }
            if from <= *last {
                apart.push((from, *last, Apart::Rank(*rank)));
            }
        }
        apart.retain_mut(|(first, last, _)| {
            *last = (*last).min(next - 1);
            first <= last
        });
        apart.sort_unstable_by_key(|(first, ..)| *first);
        apart
    }
}

/// Why messages are set apart.
#[derive(Clone, Copy)]
enum Apart {
    /// Wall clock in ms.
    Until(i64),
    Rank(u8),
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
    terms: KeptTerms,
    /// What was asked by messages below is in `terms`.
    terms_known: u64,
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
        let delayed = self.delayed.iter().map(|(_, span)| span);
        let back = self.returned.iter().chain(delayed);
        let back = back.filter(|span| span.deliveries > 0);
        for span in back.chain(self.pending_counts.iter()) {
            add(span.first, span.last(), span.deliveries);
        }
        let parked = self.groups.iter().flat_map(|groups| groups.iter_parked());
        for (sequence, deliveries) in parked.filter(|(_, deliveries)| *deliveries > 0) {
            add(sequence, sequence, deliveries);
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

        let next = self.durable.max(settled.ceiling()) + 1;
        let waits = self.delayed.iter().chain(self.returned.iter_held_delayed());
        let mut waits: Vec<(u64, u64, i64)> = waits
            .map(|(due, span)| (span.first, span.last(), due))
            .collect();
        if let Some(groups) = &self.groups {
            // What came back is first of its key, which is not known after a restart: it waits no more.
            let mut kept: Vec<(u64, u64, i64)> = Vec::new();
            for (first, last, due) in waits {
                for sequence in (first..=last).filter(|sequence| !groups.knows(*sequence)) {
                    match kept.last_mut() {
                        Some(before) if before.1 + 1 == sequence && before.2 == due => {
                            before.1 = sequence;
                        }
                        _ => kept.push((sequence, sequence, due)),
                    }
                }
            }
            waits = kept;
        }
        waits.sort_unstable();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        let mut number = |number: u64| out.extend_from_slice(&number.to_le_bytes());
        number(next);
        number(settled.floor());
        number(mark);
        number(settled.span_count() as u64);
        number(counts.len() as u64);
        number(self.expiry.len() as u64);
        number(waits.len() as u64);
        number(self.ranks.len() as u64);
        number(self.next);
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
            number((span.arrived + ahead).max(0) as u64);
            number(u64::from(span.ttl_ms));
        }
        for (first, last, due) in waits {
            number(first);
            number(last - first + 1);
            number(wall_of(due, clock).max(0) as u64);
        }
        for (first, rank) in self.ranks.iter() {
            number(first);
            number(u64::from(rank));
        }
    }

    /// After a recovery, before [`Queue::hold_restored`]: what the messages asked of the queue. When they
    /// arrived and when they are due is told by the wall clock; `arrived` and `due` say what that is to
    /// the engine.
    pub fn restore_terms(
        &mut self,
        kept: &KeptTerms,
        arrived: impl Fn(i64) -> i64,
        due: impl Fn(i64) -> i64,
    ) {
        // What was not durable when that was written is not there.
        let next = self.next;
        for span in kept.expiry.iter().take_while(|span| span.first < next) {
            self.expiry.restore(Span {
                arrived: arrived(span.arrived),
                ..*span
            });
        }
        self.expiry.forget(&self.settled);
        if self.is_stream() {
            return;
        }
        let rank_max = self.settings.rank_max;
        let mut behind = 1;
        for (first, (last, rank)) in kept.ranks.range(..next) {
            if behind < *first {
                self.ranks.push(behind, 0);
            }
            self.ranks.push(*first, (*rank).min(rank_max));
            behind = last + 1;
        }
        if behind < next {
            self.ranks.push(behind, 0);
        }
        self.ranks.forget(&self.settled);
        let mut apart = kept.apart(next);
        if rank_max == 0 {
            apart.retain(|(_, _, why)| matches!(why, Apart::Until(_)));
        }
        if !apart.is_empty() && !self.is_stream() {
            self.set_apart(&apart, due);
        }
    }

    /// What is there of `first..=last`: of a damaged queue some are not.
    fn present(&self, (first, last): (u64, u64)) -> Vec<(u64, u64)> {
        let mut parts: Vec<(u64, u64)> = Vec::new();
        let mut from = first;
        while from <= last
            && let Some(run) = self.index.first_from(from)
            && run.first() <= last
        {
            let start = run.first().max(from);
            let end = run.last().min(last);
            match parts.last_mut() {
                Some(before) if before.1 + 1 == start => before.1 = end,
                _ => parts.push((start, end)),
            }
            from = end + 1;
        }
        parts
    }

    /// Takes messages out of those that are fresh or returned.
    fn set_apart(&mut self, apart: &[(u64, u64, Apart)], due: impl Fn(i64) -> i64) {
        let mut back: Vec<Returned> = Vec::new();
        self.returned.drain(|span| back.push(span));
        for (first, last, why) in apart {
            let mut parts: Vec<(u64, u64)> = Vec::new();
            let settled = &self.settled;
            live_parts(settled, *first, *last, |first, last| {
                parts.push((first, last))
            });
            let parts = parts.into_iter().flat_map(|part| self.present(part));
            for (first, last) in parts.collect::<Vec<_>>() {
                self.push_apart(first, last);
                for part in with_deliveries(&back, first, last) {
                    match *why {
                        Apart::Until(wall_ms) => {
                            self.ready -= u64::from(part.count);
                            self.delayed.insert(due(wall_ms), part);
                        }
                        Apart::Rank(rank) => {
                            let rank = rank.min(self.settings.rank_max);
                            self.returned.insert(rank, part);
                        }
                    }
                }
            }
        }
        // The others came back as before.
        for span in back {
            let mut left = Some(span);
            while let Some(span) = left {
                let at = apart.partition_point(|(_, last, _)| *last < span.first);
                let (hole, end) = match apart.get(at) {
                    Some((first, last, _)) => (*first, *last),
                    None => (u64::MAX, u64::MAX),
                };
                if span.first < hole {
                    self.returned.insert(0, span.upto(hole - 1));
                    left = span.from(hole);
                } else {
                    left = span.from(end + 1);
                }
            }
        }
    }
}

/// Tells the parts of `first..=last` that are not settled.
fn live_parts(settled: &SettledSet, first: u64, last: u64, mut each: impl FnMut(u64, u64)) {
    let mut from = first.max(settled.floor() + 1);
    while from <= last {
        let stretch = settled.stretch_from(from);
        let stretch = stretch.filter(|(first, _)| *first <= last);
        let end = stretch.map_or(last, |(first, _)| first.max(from) - 1);
        if from <= end {
            each(from, end);
        }
        from = stretch.map_or(last, |(_, last)| last) + 1;
    }
}

/// The messages `first..=last`, in parts that were delivered equally often, as `back` says.
fn with_deliveries(back: &[Returned], first: u64, last: u64) -> Vec<Returned> {
    let mut parts = Vec::new();
    let mut from = first;
    let mut at = back.partition_point(|span| span.last() < first);
    while from <= last {
        let span = back.get(at).filter(|span| span.first <= last);
        let (end, deliveries) = match span {
            Some(span) if span.first > from => (span.first - 1, 0),
            Some(span) => {
                at += 1;
                (span.last().min(last), span.deliveries)
            }
            None => (last, 0),
        };
        while from <= end {
            let count = (end - from + 1).min(u64::from(u32::MAX)) as u32;
            parts.push(Returned::new(from, count, deliveries));
            from += u64::from(count);
        }
    }
    parts
}

impl Replay {
    /// Recovery of a queue without a checkpoint.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            queue: Queue::new(settings),
            mark: 0,
            counts: BTreeMap::new(),
            terms: KeptTerms::default(),
            terms_known: 0,
        }
    }

    /// A message arrived. What is said of messages that were spoken of before is not taken again.
    pub fn arrived(&mut self, arrival: Arrival) {
        let span = Span {
            first: arrival.sequence.0,
            arrived: arrival.wall_ms,
            ttl_ms: arrival.terms.ttl_ms,
        };
        match self.terms.expiry.last() {
            Some(last) if last.first >= span.first => {}
            Some(last) if last.ttl_ms == span.ttl_ms && last.arrived == span.arrived => {}
            _ => self.terms.expiry.push(span),
        }
        self.set_apart(&arrival);
    }

    fn set_apart(&mut self, arrival: &Arrival) {
        let sequence = arrival.sequence.0;
        if sequence < self.terms_known {
            return;
        }
        let Terms {
            delay_ms, priority, ..
        } = arrival.terms;
        if delay_ms > 0 {
            let due = due_ms(arrival.wall_ms, delay_ms);
            self.terms.delay(sequence, due);
        }
        if priority > 0 {
            self.terms.rank(sequence, priority.min(RANK_MAX));
        }
    }

    /// A message arrived; others behind it may have been spoken of.
    pub fn arrived_alone(&mut self, arrival: Arrival) {
        self.set_apart(&arrival);
        let sequence = arrival.sequence.0;
        let alone = Span {
            first: sequence,
            arrived: arrival.wall_ms,
            ttl_ms: arrival.terms.ttl_ms,
        };
        let expiry = &mut self.terms.expiry;
        let at = expiry.partition_point(|known| known.first <= sequence);
        let before = at.checked_sub(1).map(|before| expiry[before]);
        if before.is_some_and(|before| before.first == sequence) {
            return;
        }
        let behind = sequence + 1;
        let is_next_known = expiry.get(at).is_some_and(|next| next.first == behind);
        expiry.insert(at, alone);
        if !is_next_known {
            let next = Span {
                first: behind,
                ..before.unwrap_or(Span { ttl_ms: 0, ..alone })
            };
            expiry.insert(at + 1, next);
        }
    }

    /// What the messages asked, for [`Queue::restore_terms`] behind [`Replay::finish`].
    #[must_use]
    pub fn take_terms(&mut self) -> KeptTerms {
        std::mem::take(&mut self.terms)
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
        let [
            next,
            floor,
            mark,
            spans,
            counts,
            arrivals,
            waits,
            ranks,
            told,
        ] = [8, 16, 24, 32, 40, 48, 56, 64, 72].map(|at| u64_at(head, at));
        let needed = u128::from(spans) * SPAN_BYTES as u128
            + u128::from(counts) * COUNT_BYTES as u128
            + u128::from(arrivals) * ARRIVAL_BYTES as u128
            + u128::from(waits) * WAIT_BYTES as u128
            + u128::from(ranks) * RANK_BYTES as u128;
        if needed != rest.len() as u128 {
            return Err(StateFault::Length);
        }
        if next <= floor || next > told || told == u64::MAX {
            return Err(StateFault::Number);
        }
        let mut replay = Self::new(settings);
        replay.mark = mark;
        replay.queue.next = next;
        replay.terms_known = told;
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
            replay.terms.expiry.push(Span {
                first,
                arrived: wall_ms,
                ttl_ms,
            });
            (below, rest) = (Some(first), after);
        }
        let mut below = 0;
        for _ in 0..waits {
            let (entry, after) = rest.split_at(WAIT_BYTES);
            let (first, count, due) = (u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16));
            let (Ok(count), Ok(due)) = (u32::try_from(count), i64::try_from(due)) else {
                return Err(StateFault::Number);
            };
            if count == 0 {
                return Err(StateFault::Number);
            }
            if first <= below || first >= told || u64::from(count) > told - first {
                return Err(StateFault::Ranges);
            }
            replay.terms.delayed.insert(first, (count, due));
            (below, rest) = (first + u64::from(count) - 1, after);
        }
        let mut open: Option<(u64, u8)> = None;
        for _ in 0..ranks {
            let (entry, after) = rest.split_at(RANK_BYTES);
            let (first, rank) = (u64_at(entry, 0), u64_at(entry, 8));
            if rank > u64::from(RANK_MAX) || first == 0 {
                return Err(StateFault::Number);
            }
            let rank = rank as u8;
            if open.is_some_and(|(before, known)| first <= before || rank == known) {
                return Err(StateFault::Ranges);
            }
            if let Some((before, known)) = open
                && known > 0
            {
                replay.terms.ranks.insert(before, (first - 1, known));
            }
            (open, rest) = (Some((first, rank)), after);
        }
        // What came after the checkpoint says its own.
        if let Some((first, rank)) = open
            && rank > 0
            && first < told
        {
            replay.terms.ranks.insert(first, (told - 1, rank));
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
            ..
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
    let Queue {
        settled, returned, ..
    } = queue;
    live_parts(settled, first, last, |first, last| {
        for span in with_deliveries(&[], first, last) {
            let span = Returned::new(span.first, span.count, deliveries);
            returned.insert(0, span);
        }
    });
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
/// When the wall clock shows that a time of the engine has come, in ms; never before it has.
fn wall_of(due: Ms, clock: Clock) -> i64 {
    let now_us = (clock.now.0 / 1_000) as i64;
    let wall_us = (clock.wall_us as i64).saturating_sub(now_us);
    ceil_ms(due.saturating_mul(1_000).saturating_add(wall_us))
}

/// Microseconds in ms, rounded up.
pub(crate) const fn ceil_ms(us: i64) -> i64 {
    us.div_euclid(1_000) + (us.rem_euclid(1_000) > 0) as i64
}
