//! Finding records in memory, reading them back, and proving what was read.
//! Does not know who wants them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::data::journal::block::{BLOCK_ALIGN, align_block};
use crate::data::journal::cache::{Origin, Window};
use crate::data::journal::record::{RECORD_HEAD_BYTES, RecordHead};
use crate::data::journal::segment::{OpenIndex, SlotState};
use crate::data::journal::{
    AHEAD_PART, Age, BUFFERS_UPKEEP, Config, Cut, Fetch, Journal, Located, PartitionState,
    Progress, READS_AHEAD_MAX, READS_MAX, ReadInFlight, partition_of, proves_itself,
};
use crate::effect::{Buffers, Effect, Effects, Severity};
use crate::ids::{Mono, Place, SegmentIdx};
use crate::input::IoFault;
use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

/// Reads that failed: where each began, and the fewest bytes from there on that did. What needs as many
/// is refused without another read, and whoever needs fewer reads fewer, so that reads come to an end.
/// One entry at most for each block of 4 KiB of the segments that are held, and only for those that
/// were read in vain.
#[derive(Debug, Default)]
pub(super) struct FailedReads(BTreeMap<(SegmentIdx, u32), u32>);

impl FailedReads {
    fn note(&mut self, segment: SegmentIdx, start: u32, bytes: u32) {
        let fewest = self.0.entry((segment, start)).or_insert(bytes);
        *fewest = bytes.min(*fewest);
    }

    fn fewest(&self, segment: SegmentIdx, start: u32) -> Option<u32> {
        self.0.get(&(segment, start)).copied()
    }

    /// Whether so many bytes from `start` on cannot be read.
    fn refuse(&self, segment: SegmentIdx, start: u32, bytes: u32) -> bool {
        self.fewest(segment, start)
            .is_some_and(|fewest| fewest <= bytes)
    }

    /// The segment's slot is written anew.
    pub(super) fn forget(&mut self, segment: SegmentIdx) {
        self.0.retain(|(other, _), _| *other != segment);
    }
}

/// The block in which a record begins.
const fn own_block(place: Place) -> u32 {
    place.offset / BLOCK_ALIGN * BLOCK_ALIGN
}

/// Bytes of the least read from its own block on that says anything of a record: its head may lie
/// across two blocks.
const fn least_read(place: Place) -> u32 {
    align_block(place.offset + RECORD_HEAD_BYTES) - own_block(place)
}

impl Journal {
    /// Finds the record at `place`, which must hold message `sequence` of `queue`. What was read
    /// back is proved here, once per record and window: its checksum, its messages', its identity.
    pub fn locate(
        &mut self,
        buffers: &impl Buffers,
        place: Place,
        queue: QueueId,
        sequence: QueueSequence,
    ) -> Located {
        let located = self.locate_record(buffers, place);
        let Located::Cached { head, .. } = &located else {
            return located;
        };
        if self.is_record_of(head, place, queue, sequence) {
            located
        } else {
            Located::Damaged
        }
    }

    /// Finds the record at `place`, whatever it is.
    pub(crate) fn locate_record(&mut self, buffers: &impl Buffers, place: Place) -> Located {
        let Some(window) = self
            .cache
            .find_mut(place.segment, place.offset, RECORD_HEAD_BYTES)
        else {
            return self.locate_cold(place);
        };
        let at = window.range(place.offset, RECORD_HEAD_BYTES);
        let head = RecordHead::decode(buffers.bytes(window.buffer, at)).ok();
        let whole = head.filter(|head| head.length <= window.end() - place.offset);
        let Some(head) = whole else {
            // Damage, or it ends behind this window and needs one of its own.
            let end = head.map(|head| record_end(&self.config, place, &head));
            return if is_final(window, &self.failed_reads, place, end) {
                Located::Damaged
            } else {
                self.locate_cold(place)
            };
        };
        let record = window.range(place.offset, head.length);
        if let Origin::Read(proved) = &mut window.origin
            && let Err(missing) = proved.binary_search(&place.offset)
        {
            if !proves_itself(buffers.bytes(window.buffer, record.clone())) {
                return Located::Damaged;
            }
            proved.insert(missing, place.offset);
        }
        Located::Cached {
            buffer: window.buffer,
            body: record.start + RECORD_HEAD_BYTES..record.end,
            head,
        }
    }

    pub(super) fn locate_cold(&self, place: Place) -> Located {
        if self.reading(place).is_some() {
            Located::Coming
        } else if self.is_refused(place, least_read(place)) {
            Located::Damaged
        } else {
            Located::Cold
        }
    }

    /// Whether so many bytes from the record's own block on cannot be read.
    fn is_refused(&self, place: Place, bytes: u32) -> bool {
        self.failed_reads
            .refuse(place.segment, own_block(place), bytes)
    }

    /// How old what lies at a place is.
    #[must_use]
    pub fn age(&self, place: Place) -> Age {
        Age(self.table.get(place.segment).number, place.offset)
    }

    pub(super) fn reading(&self, place: Place) -> Option<&ReadInFlight> {
        // A record that begins in a window need not end in it; then it is asked for again.
        self.reads.iter().find(|read| {
            read.segment == place.segment
                && read.start <= place.offset
                && place.offset < read.start + read.bytes
        })
    }

    /// Asks for the record at `place`, and what follows it, to be in memory. Call it for the places
    /// a queue will need next; each answer says how far its window reaches.
    pub fn fetch(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        place: Place,
    ) -> Fetch {
        let mut end = None;
        if let Some(window) = self
            .cache
            .find(place.segment, place.offset, RECORD_HEAD_BYTES)
        {
            let bytes = buffers.bytes(window.buffer, window.range(place.offset, RECORD_HEAD_BYTES));
            let head = RecordHead::decode(bytes).ok();
            end = head.map(|head| record_end(&self.config, place, &head));
            let is_whole = end.is_some_and(|end| end <= window.end());
            if is_whole || is_final(window, &self.failed_reads, place, end) {
                return Fetch::Cached { upto: window.end() };
            }
        } else if let Some(read) = self.reading(place) {
            return Fetch::Coming {
                upto: read.start + read.bytes,
            };
        }
        let (start, upto) = self.range_of_read(place, end);
        if let Some(read) = self
            .reads
            .iter()
            .find(|read| read.segment == place.segment && read.start == start)
        {
            return Fetch::Coming {
                upto: read.start + read.bytes,
            };
        }
        if self.reads.len() >= READS_MAX || buffers.available() <= BUFFERS_UPKEEP {
            self.was_short_of_reads.1 = true;
            return Fetch::Busy;
        }
        let segment = self.table.get(place.segment);
        assert!(place.offset < segment.durable_bytes, "only what is durable");
        let upto = upto.min(segment.durable_bytes);
        self.begin_read(place, start..upto, 0, buffers, effects);
        Fetch::Coming { upto }
    }

    /// As [`Journal::fetch`], for the record of `bytes` at `place` that is not needed yet, and what
    /// follows it up to the byte offset `upto`. Leaves reads and buffers to those who wait for them.
    /// Says how far the window reaches; `None` if there is none now, or no need: it is in memory
    /// since it was written.
    pub fn fetch_ahead(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        place: Place,
        bytes: u32,
        upto: u32,
    ) -> Option<u32> {
        if let Some(window) = self.cache.find(place.segment, place.offset, bytes) {
            let upto = window.end();
            let is_read = matches!(window.origin, Origin::Read(_));
            if is_read {
                self.cache.join(place.segment, place.offset, bytes);
            }
            return is_read.then_some(upto);
        }
        let own_start = own_block(place);
        let end = place.offset + bytes;
        let mut reads = self.reads.iter_mut();
        if let Some(read) = reads.find(|read| {
            let whole = read.start <= place.offset && end <= read.start + read.bytes;
            read.segment == place.segment && (whole || read.start == own_start)
        }) {
            let upto = read.start + read.bytes;
            if upto < end {
                return None;
            }
            read.readers += 1;
            return Some(upto);
        }
        let kept = (self.config.buffers_free_min as usize / 2).max(BUFFERS_UPKEEP);
        let held = self.windows_ahead();
        let buffer_count = self.cache.len() + buffers.available();
        let others_wait = self.was_short_of_reads.0 || self.was_short_of_reads.1;
        if others_wait
            || self.reads.len() >= READS_AHEAD_MAX
            || held >= buffer_count / AHEAD_PART
            || buffers.available() <= kept
            || self.is_refused(place, align_block(end) - own_start)
        {
            return None;
        }
        let segment = self.table.get(place.segment);
        assert!(place.offset < segment.durable_bytes, "only what is durable");
        let (start, most) = self.range_of_read(place, Some(end));
        let upto = align_block(upto).min(segment.durable_bytes).min(most);
        if upto < end {
            return None;
        }
        self.begin_read(place, start..upto, 1, buffers, effects);
        Some(upto)
    }

    /// Windows that hold what nobody has passed yet, or are on their way.
    pub fn windows_ahead(&self) -> usize {
        self.cache.awaited() + self.reads.len()
    }

    /// Those who had asked for the record at `place` have passed what was read with it.
    pub fn pass(&mut self, place: Place) {
        self.cache
            .leave(place.segment, place.offset, RECORD_HEAD_BYTES);
    }

    /// What to read for the record at `place`, which ends at `end` if that is known: from where the
    /// read before ends, if that is near. Queues whose messages lie between each other's then share
    /// the same windows; if each started where its own next message lies, all would read almost the
    /// same. Of a record that lies across the ends of two such windows only itself is read again. Where
    /// a read has failed, no more is read than the record needs, as far as that is known.
    fn range_of_read(&self, place: Place, end: Option<u32>) -> (u32, u32) {
        let own = own_block(place);
        let most = self.config.buffer_bytes;
        if let Some(failed) = self.failed_reads.fewest(place.segment, own) {
            let needed = match end {
                Some(end) => align_block(end) - own,
                None => align_block(failed / 2).max(least_read(place)),
            };
            return (own, own + needed.min(most));
        }
        let in_flight = || {
            let here = |read: &&ReadInFlight| read.segment == place.segment;
            self.reads.iter().filter(here)
        };
        let holds_head = |start, end| start <= place.offset && place.offset < end;
        let coming = in_flight().find(|read| holds_head(read.start, read.start + read.bytes));
        let cached = self.cache.end_before(place.segment, place.offset);
        let first_end = coming
            .map(|read| read.start + read.bytes)
            .or_else(|| cached.filter(|end| place.offset < *end));
        let Some(first_end) = first_end else {
            let grid = own / most * most;
            let start = in_flight()
                .map(|read| read.start + read.bytes)
                .chain(cached)
                .filter(|end| *end <= own)
                .fold(grid, u32::max);
            return (start, start + most);
        };
        let is_next_there = in_flight().any(|read| read.start == first_end)
            || self.cache.has_start(place.segment, first_end);
        match end {
            Some(end) if is_next_there => (own, align_block(end).min(own + most)),
            _ => (own, own + most),
        }
    }

    fn begin_read(
        &mut self,
        place: Place,
        range: Range<u32>,
        readers: u32,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) {
        let bytes = range.end - range.start;
        let read = ReadInFlight {
            op: self.new_op(),
            segment: place.segment,
            start: range.start,
            bytes,
            is_utmost: self.is_utmost(place.segment, range),
            readers,
            buffer: buffers.acquire().expect("the caller counted the buffers"),
            place,
        };
        let mut segment = self.table.get_mut(place.segment);
        let is_used = matches!(segment.state, SlotState::Open | SlotState::Sealed);
        assert!(is_used, "what is wanted lies in a segment");
        segment.pin_count += 1;
        drop(segment);
        self.issue_read(read, effects);
    }

    /// Whether a read for a message is in flight.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        !self.reads.is_empty()
    }

    pub(super) fn issue_read(&mut self, read: ReadInFlight, effects: &mut Effects) {
        effects.push(Effect::Read {
            op: read.op,
            slot: self.table.get(read.segment).slot,
            position: read.start,
            buffer: read.buffer,
            range: 0..read.bytes,
        });
        self.reads.push(read);
    }

    /// As [`Window::is_utmost`], of what is read there.
    fn is_utmost(&self, segment: SegmentIdx, range: Range<u32>) -> bool {
        let durable_bytes = self.table.get(segment).durable_bytes;
        range.end - range.start >= self.config.buffer_bytes || range.end >= durable_bytes
    }

    /// Bytes to be read from the record's own block on after a read for it has failed; `None` if none
    /// is left to try.
    fn next_read(&self, read: &ReadInFlight) -> Option<u32> {
        let own = own_block(read.place);
        let least = least_read(read.place);
        let behind = read.start + read.bytes - own;
        match self.failed_reads.fewest(read.segment, own) {
            // All that has failed is a window that begins before it.
            None => Some(behind),
            Some(failed) if failed > least => Some(align_block(failed / 2).max(least).min(behind)),
            Some(_) => None,
        }
    }

    pub(super) fn read_done(
        &mut self,
        mut read: ReadInFlight,
        result: Result<(), IoFault>,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Progress {
        let own = own_block(read.place);
        if result.is_err() {
            if read.start == own {
                self.failed_reads.note(read.segment, own, read.bytes);
            }
            if let Some(bytes) = self.next_read(&read) {
                // Some of the window can not be read. Less of it may be all that is needed; this is
                // another read of a smaller range, not the same once more.
                read.start = own;
                read.bytes = bytes;
                read.is_utmost = self.is_utmost(read.segment, own..own + bytes);
                read.op = self.new_op();
                self.issue_read(read, effects);
                return Progress::Nothing;
            }
        }
        self.table.get_mut(read.segment).pin_count -= 1;
        if let Err(fault) = result {
            self.table.get_mut(read.segment).is_damaged = true;
            effects.push(Effect::Release {
                buffer: read.buffer,
            });
            effects.push(Effect::Report {
                severity: Severity::Error,
                text: format!(
                    "read at offset {} of slot {} failed: {fault:?}",
                    read.start,
                    self.table.get(read.segment).slot.0
                ),
            });
            return Progress::Unreadable(read.place);
        }
        buffers.seal(read.buffer, read.bytes);
        let window = Window {
            buffer: read.buffer,
            start: read.start,
            bytes: read.bytes,
            origin: Origin::Read(Vec::new()),
            readers: read.readers,
            is_utmost: read.is_utmost,
        };
        self.cache.insert(read.segment, window, effects);
        Progress::Arrived {
            segment: read.segment,
            from: read.start,
            upto: read.start + read.bytes,
        }
    }

    /// Whether something had no space lately, so that trying again would only fail again.
    pub(crate) fn is_backing_off(&self, now: Mono) -> bool {
        self.create_after.is_some_and(|after| now < after)
    }

    /// The index of the open segment since its last part.
    pub(crate) fn index(&self) -> &OpenIndex {
        &self.index
    }

    /// Next record sequence of each partition that has records.
    pub(crate) fn partitions_next(&self) -> impl Iterator<Item = (PartitionId, u64)> {
        let with_records = |(_, state): &(usize, &PartitionState)| state.next > 1;
        self.partitions
            .iter()
            .enumerate()
            .filter(with_records)
            .map(|(slot, state)| (partition_of(slot), state.next))
    }

    /// Where the writer stands; no block is open.
    pub(crate) fn cut(&self) -> Cut {
        assert!(self.open.is_none(), "a cut lies between blocks");
        Cut {
            next_sequence: self.next_sequence,
            prev_crc: self.prev_crc,
            prev_partitions: self.prev_partitions,
            incarnation: self.incarnation,
            next_number: self.next_number,
            next_slot: self.next_slot.map(|next| self.table.get(next).slot),
            wall_us: self.wall_us,
        }
    }

    /// Submits sealed blocks while writes are free.
    pub(crate) fn submit_sealed(&mut self, buffers: &mut impl Buffers, effects: &mut Effects) {
        self.write_free(false, buffers, effects);
    }

    /// Notes that a record could not be proved: its segment is kept and never relocated.
    pub fn note_damage(&mut self, place: Place) {
        self.table.get_mut(place.segment).is_damaged = true;
    }
}

/// Where a record ends, by a head that nothing has proved yet: none takes more than a buffer.
fn record_end(config: &Config, place: Place, head: &RecordHead) -> u32 {
    place.offset + head.length.min(config.buffer_bytes)
}

/// Whether a window is all that there will be of a record that is not whole in it, which ends at `end`
/// if that is known: it is damaged.
fn is_final(window: &Window, failed: &FailedReads, place: Place, end: Option<u32>) -> bool {
    let own = own_block(place);
    let needed = end.map_or(u32::MAX, |end| align_block(end) - own);
    window.start == own && (window.is_utmost || failed.refuse(place.segment, own, needed))
}
