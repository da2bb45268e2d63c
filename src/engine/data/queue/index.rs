//! Where the messages of a queue lie: one entry per run, in queue order, 24 bytes each.
//! Does not know which messages are ready, delivered or waiting for a consumer.

use std::collections::BTreeMap;

use super::chunks::{At, Chunks, Hint, Keyed, Sweep};
use super::settled::SettledSet;
use crate::data::journal::record::RECORD_HEAD_BYTES;
use crate::ids::{Place, SegmentIdx};

/// Most messages of one run.
pub const RUN_MESSAGES_MAX: u32 = u16::MAX as u32;
/// Most bytes of one run's body; a journal block is smaller.
pub const RUN_BYTES_MAX: u32 = u16::MAX as u32 * 16;

/// The one message lies in several pieces; see [`RunIndex::pieces`].
const FRAGMENTED: u32 = 1 << 31;

/// Messages that lie back to back in one record, or a part of one record's messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Run {
    /// Queue sequence of the first message, low and high half (so that 24 bytes suffice).
    first_low: u32,
    first_high: u32,
    /// Messages, at least one.
    count: u16,
    /// Of those, the ones not durably settled; never 0 in the index.
    live: u16,
    /// Messages of the record before the first one of this entry.
    skip: u16,
    /// Body bytes of the whole record, in units of 16.
    body: u16,
    /// Segment of the record.
    segment: u32,
    /// Offset of the record in units of 16, and [`FRAGMENTED`].
    offset: u32,
}

const _: () = assert!(size_of::<Run>() == 24);

impl Keyed for Run {
    fn key(&self) -> u64 {
        self.first()
    }
}

impl Run {
    /// A whole record's messages, all live.
    ///
    /// Answers `None` if a number is out of bounds.
    pub(crate) fn new(first: u64, count: u32, bytes: u32, place: Place) -> Option<Self> {
        first.checked_add(u64::from(count))?;
        let fits = first > 0
            && (1..=RUN_MESSAGES_MAX).contains(&count)
            && bytes <= RUN_BYTES_MAX
            && bytes.is_multiple_of(16)
            && place.offset.is_multiple_of(16);
        fits.then_some(Self {
            first_low: first as u32,
            first_high: (first >> 32) as u32,
            count: count as u16,
            live: count as u16,
            skip: 0,
            body: (bytes / 16) as u16,
            segment: place.segment.0,
            offset: place.offset / 16,
        })
    }

    /// The one message of which the first piece lies at `place`.
    pub(crate) fn fragmented(sequence: u64, place: Place) -> Option<Self> {
        let mut run = Self::new(sequence, 1, 0, place)?;
        run.offset |= FRAGMENTED;
        Some(run)
    }

    pub(crate) const fn first(&self) -> u64 {
        self.first_low as u64 | (self.first_high as u64) << 32
    }

    pub(crate) const fn last(&self) -> u64 {
        self.first() + self.count as u64 - 1
    }

    pub(crate) const fn contains(&self, sequence: u64) -> bool {
        self.first() <= sequence && sequence <= self.last()
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count as u64
    }

    pub(crate) const fn live(&self) -> u64 {
        self.live as u64
    }

    pub(crate) const fn is_fragmented(&self) -> bool {
        self.offset & FRAGMENTED != 0
    }

    /// Body bytes of the whole record.
    pub(crate) const fn body_bytes(&self) -> u32 {
        self.body as u32 * 16
    }

    /// Byte offset in the segment after the record; of a fragmented message only its first head is
    /// known.
    const fn end(&self) -> u32 {
        self.place().offset + RECORD_HEAD_BYTES + self.body_bytes()
    }

    /// How many messages of the record lie before `sequence`.
    pub(crate) fn index_of(&self, sequence: u64) -> u32 {
        debug_assert!(self.contains(sequence));
        (sequence - self.first()) as u32 + u32::from(self.skip)
    }

    /// Queue sequence of the record's first message: with the place it names the record for ever.
    pub(crate) fn base(&self) -> u64 {
        self.first() - u64::from(self.skip)
    }

    pub(crate) const fn place(&self) -> Place {
        Place {
            segment: SegmentIdx(self.segment),
            offset: (self.offset & !FRAGMENTED) * 16,
        }
    }

    /// The messages `first..=last` of this entry as an entry of their own, `None` if none lives.
    pub(crate) fn part(&self, first: u64, last: u64, settled: &SettledSet) -> Option<Self> {
        if first > last {
            return None;
        }
        debug_assert!(self.contains(first) && self.contains(last));
        let count = last - first + 1;
        let live = count - settled.count_in(first, last);
        (live > 0).then_some(Self {
            first_low: first as u32,
            first_high: (first >> 32) as u32,
            count: count as u16,
            live: live as u16,
            skip: self.skip + (first - self.first()) as u16,
            ..*self
        })
    }

    /// Bytes of the live messages, in proportion: exact if the whole record lives.
    pub(crate) fn live_bytes(&self) -> u64 {
        let messages = u64::from(self.skip) + self.count();
        u64::from(self.body_bytes()) * self.live() / messages
    }
}

/// What lies side by side in a segment, to be read at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The first record.
    pub place: Place,
    /// Its bytes, head included.
    pub bytes: u32,
    /// Byte offset in the segment where the first record begins that is not whole within the bytes
    /// asked for, or where those end.
    pub upto: u32,
}

/// The pieces of a message too large for one record.
pub(crate) struct Pieces {
    pub(crate) bytes: u32,
    pub(crate) places: Vec<Place>,
}

/// Entries to a chunk: 1008 bytes, so that a chunk with its allocator header is 1 KiB.
const RUNS_PER_CHUNK: usize = 42;

/// The runs of a queue that have live messages.
pub(crate) struct RunIndex {
    runs: Chunks<Run, RUNS_PER_CHUNK>,
    pieces: BTreeMap<u64, Pieces>,
    /// Place of the last lookup: most lookups go on where the one before was.
    hint: Hint,
}

impl RunIndex {
    pub(crate) const fn new() -> Self {
        Self {
            runs: Chunks::new(),
            pieces: BTreeMap::new(),
            hint: Hint::NONE,
        }
    }

    pub(crate) fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Adds a run behind all others.
    pub(crate) fn push(&mut self, run: Run) {
        self.runs.push_back(run);
    }

    /// Adds a run that overlaps no other.
    pub(crate) fn insert(&mut self, run: Run) {
        self.runs.insert(run);
    }

    pub(crate) fn insert_pieces(&mut self, sequence: u64, pieces: Pieces) {
        self.pieces.insert(sequence, pieces);
    }

    /// The pieces of a fragmented message.
    pub(crate) fn pieces(&self, sequence: u64) -> Option<&Pieces> {
        self.pieces.get(&sequence)
    }

    /// Adds messages to the last run if it lies at `place`; `false` if that entry has gone since.
    pub(crate) fn extend_last(&mut self, first: u64, count: u32, bytes: u32, place: Place) -> bool {
        let Some(at) = self.runs.last_at() else {
            return false;
        };
        let mut run = self.runs.get(at);
        if run.last() + 1 != first || run.place() != place {
            return false;
        }
        let messages = u32::from(run.skip) + u32::from(run.count) + count;
        assert!(!run.is_fragmented());
        assert!(messages <= RUN_MESSAGES_MAX);
        assert!(run.body_bytes() + bytes <= RUN_BYTES_MAX);
        run.count += count as u16;
        run.live += count as u16;
        run.body += (bytes / 16) as u16;
        self.runs.set(at, run);
        true
    }

    /// The run that holds `sequence`.
    pub(crate) fn find(&mut self, sequence: u64) -> Option<Run> {
        let at = self.runs.at_or_below_hinted(sequence, self.hint)?;
        self.hint = self.runs.hint(at);
        let run = self.runs.get(at);
        run.contains(sequence).then_some(run)
    }

    fn find_at(&self, sequence: u64) -> Option<At> {
        let at = self.runs.at_or_below(sequence)?;
        self.runs.get(at).contains(sequence).then_some(at)
    }

    /// Messages of an entry that overlap `first..`: the first run that ends at or above `first`.
    pub(crate) fn first_from(&self, first: u64) -> Option<Run> {
        self.at_from(first).map(|at| self.runs.get(at))
    }

    fn at_from(&self, first: u64) -> Option<At> {
        match self.runs.at_or_below(first) {
            Some(at) if self.runs.get(at).contains(first) => Some(at),
            Some(at) => self.runs.next(at),
            None => self.runs.first_at(),
        }
    }

    /// The records of the messages `first..=last`, as far as they lie within `bytes_max` of the first.
    pub(crate) fn stretch(&self, first: u64, last: u64, bytes_max: u32) -> Option<Stretch> {
        let mut at = self.at_from(first)?;
        let run = self.runs.get(at);
        if run.first() > last {
            return None;
        }
        let place = run.place();
        let limit = place.offset.saturating_add(bytes_max);
        let bytes = run.end() - place.offset;
        let mut upto = limit.max(run.end());
        while let Some(next) = self.runs.next(at) {
            let run = self.runs.get(next);
            let offset = run.place().offset;
            if run.first() > last || run.segment != place.segment.0 || offset >= limit {
                break;
            }
            if run.end() > limit {
                upto = offset;
                break;
            }
            at = next;
        }
        Some(Stretch { place, bytes, upto })
    }

    /// The first message from `first` on whose record is not whole between `from` and `upto` of its
    /// segment; one more than `last` if there is none up to there.
    pub(crate) fn first_beyond(&self, (first, last): (u64, u64), from: Place, upto: u32) -> u64 {
        let mut at = self.at_from(first);
        while let Some(here) = at {
            let run = self.runs.get(here);
            let is_inside = run.segment == from.segment.0
                && run.place().offset >= from.offset
                && run.end() <= upto;
            if run.first() > last {
                break;
            }
            if !is_inside {
                return run.first().max(first);
            }
            at = self.runs.next(here);
        }
        last + 1
    }

    /// The live messages `first..=last` live no more: runs without live messages go, and each
    /// segment's loss is reported. Returns how many messages were found.
    pub(crate) fn forget(
        &mut self,
        first: u64,
        last: u64,
        per_segment: &mut impl FnMut(SegmentIdx, u32),
    ) -> u64 {
        let Some(at) = self.at_from(first) else {
            return 0;
        };
        let mut found = 0;
        let mut segment = self.runs.get(at).segment;
        let mut lost = 0;
        let pieces = &mut self.pieces;
        self.runs.sweep(at, |run| {
            if run.first() > last {
                return Sweep::Stop;
            }
            let overlap = run.last().min(last) - run.first().max(first) + 1;
            found += overlap;
            if run.is_fragmented() {
                let gone = pieces.remove(&run.first()).expect("pieces of a live run");
                for place in gone.places {
                    per_segment(place.segment, 1);
                }
                return Sweep::Remove;
            }
            if run.segment != segment {
                if lost > 0 {
                    per_segment(SegmentIdx(segment), lost);
                }
                segment = run.segment;
                lost = 0;
            }
            lost += overlap as u32;
            run.live = run
                .live
                .checked_sub(overlap as u16)
                .expect("forgotten messages were live");
            if run.live == 0 {
                Sweep::Remove
            } else if run.last() >= last {
                Sweep::KeepAndStop
            } else {
                Sweep::Keep
            }
        });
        if lost > 0 {
            per_segment(SegmentIdx(segment), lost);
        }
        found
    }

    /// The live message lies at `to` from now on, alone in its record. Returns where its record was.
    pub(crate) fn relocate(&mut self, sequence: u64, to: Run, settled: &SettledSet) -> Place {
        debug_assert!(to.first() == sequence && to.count() == 1);
        let at = self.find_at(sequence).expect("a live message has a run");
        let old = self.runs.get(at);
        assert!(!old.is_fragmented());
        let below = old.part(old.first(), sequence - 1, settled);
        let above = old.part(sequence + 1, old.last(), settled);
        match below {
            Some(below) => {
                self.runs.set(at, below);
                self.runs.insert(to);
            }
            None => self.runs.set(at, to),
        }
        if let Some(above) = above {
            self.runs.insert(above);
        }
        old.place()
    }

    /// The messages of `to` lie in that record from now on: those that are not settled and whose
    /// record lies at `source`. Without a source, wherever they are known to be, or if they are not
    /// known at all. Returns how many live messages that are.
    pub(crate) fn relocate_run(
        &mut self,
        to: Run,
        source: Option<Place>,
        settled: &SettledSet,
    ) -> u64 {
        let mut moved = 0;
        let mut from = to.first();
        while from <= to.last() {
            let end;
            if let Some(at) = self.find_at(from) {
                let old = self.runs.get(at);
                end = old.last().min(to.last());
                let is_it = !old.is_fragmented() && source.is_none_or(|place| place == old.place());
                if is_it && let Some(part) = to.part(from, end, settled) {
                    moved += part.live();
                    let below = old.part(old.first(), from - 1, settled);
                    let above = old.part(end + 1, old.last(), settled);
                    match below {
                        Some(below) => {
                            self.runs.set(at, below);
                            self.runs.insert(part);
                        }
                        None => self.runs.set(at, part),
                    }
                    if let Some(above) = above {
                        self.runs.insert(above);
                    }
                }
            } else {
                let next = self.first_from(from).map(|run| run.first());
                end = next.map_or(to.last(), |next| to.last().min(next - 1));
                if source.is_none()
                    && let Some(part) = to.part(from, end, settled)
                {
                    moved += part.live();
                    self.runs.insert(part);
                }
            }
            from = end + 1;
        }
        moved
    }

    /// Whether `sequence` is in the index and lies, or one of its pieces does, at `place`.
    pub(crate) fn lies_at(&self, sequence: u64, place: Place) -> bool {
        let at = self.runs.at_or_below_hinted(sequence, self.hint);
        let run = at
            .map(|at| self.runs.get(at))
            .filter(|run| run.contains(sequence));
        match run {
            Some(run) if run.is_fragmented() => self
                .pieces(sequence)
                .is_some_and(|pieces| pieces.places.contains(&place)),
            Some(run) => run.place() == place,
            None => false,
        }
    }

    /// Piece `number` of a fragmented message lies at `target` from now on, if it lay at `source`.
    pub(crate) fn relocate_piece(
        &mut self,
        sequence: u64,
        number: u32,
        source: Place,
        target: Place,
    ) -> bool {
        let Some(pieces) = self.pieces.get_mut(&sequence) else {
            return false;
        };
        let Some(place) = pieces.places.get_mut(number as usize) else {
            return false;
        };
        if *place != source {
            return false;
        }
        *place = target;
        if number == 0 {
            let at = self
                .find_at(sequence)
                .expect("a message in pieces has a run");
            let run = Run::fragmented(sequence, target).expect("a place is aligned");
            self.runs.set(at, run);
        }
        true
    }

    /// The pieces of a live fragmented message lie elsewhere from now on.
    pub(crate) fn relocate_pieces(&mut self, sequence: u64, run: Run, places: &[Place]) {
        let at = self.find_at(sequence).expect("a live message has a run");
        assert!(self.runs.get(at).is_fragmented());
        self.runs.set(at, run);
        let pieces = self.pieces.get_mut(&sequence).expect("it is fragmented");
        pieces.places.clear();
        pieces.places.extend_from_slice(places);
    }

    /// Drops every run from `sequence` on, which is where one starts; returns live messages dropped.
    pub(crate) fn truncate_from(&mut self, sequence: u64) -> u64 {
        if let Some(below) = sequence.checked_sub(1)
            && let Some(at) = self.find_at(below)
        {
            assert!(self.runs.get(at).last() == below);
        }
        let mut dropped = 0;
        let mut at = self.at_from(sequence);
        while let Some(here) = at {
            dropped += self.runs.get(here).live();
            at = self.runs.next(here);
        }
        self.runs.truncate_from(sequence);
        self.pieces.split_off(&sequence);
        dropped
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter()
    }

    /// Tells for each run (or piece) its segment and its live messages.
    pub(crate) fn for_each_live(&self, mut each: impl FnMut(SegmentIdx, u32)) {
        for run in self.runs.iter() {
            if run.is_fragmented() {
                let pieces = self.pieces(run.first()).expect("pieces of a live run");
                for place in &pieces.places {
                    each(place.segment, 1);
                }
            } else {
                each(SegmentIdx(run.segment), u32::from(run.live));
            }
        }
    }

    pub(crate) fn invariants(&self, settled: &SettledSet) {
        self.runs.invariants();
        let mut below = 0;
        let mut fragmented = 0;
        for run in self.runs.iter() {
            assert!(run.first() > below, "runs overlap");
            assert!(run.live > 0 && run.live <= run.count);
            let dead = settled.count_in(run.first(), run.last());
            assert_eq!(run.live(), run.count() - dead);
            if run.is_fragmented() {
                fragmented += 1;
                let pieces = self.pieces(run.first()).expect("pieces of a live run");
                assert_eq!(pieces.places[0], run.place());
            }
            below = run.last();
        }
        assert_eq!(fragmented, self.pieces.len());
    }
}
