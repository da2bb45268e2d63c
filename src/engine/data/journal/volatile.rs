//! Runs of volatile queues: in buffers only, gone with the process, never written anywhere.
//! Does not know segments or disks; offers the same places as the journal does.

use std::ops::Range;

use crate::data::journal::record::{Kind, RECORD_HEAD_BYTES, RecordHead, align_record};
use crate::data::journal::{Appended, BUFFERS_TO_PUBLISH, NoRoom, RunHead};
use crate::effect::{Buffers, Effect, Effects};
use crate::ids::{BufferId, Place, SegmentIdx};
use ringpost_wire::ids::QueueSequence;

/// Places of volatile runs have this bit in their segment, so that one word says where to look.
pub const SEGMENT_VOLATILE: u32 = 1 << 31;

/// Whether a place lies in memory only.
#[must_use]
pub const fn is_volatile(place: Place) -> bool {
    place.segment.0 & SEGMENT_VOLATILE != 0
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    buffer: BufferId,
    /// Bytes filled, a multiple of 16.
    used: u32,
    /// Messages that are not settled.
    live_count: u64,
}

/// The run that was appended last, while it may still grow.
#[derive(Clone, Copy, Debug)]
struct LastRun {
    at: u32,
    head: RecordHead,
}

/// Every volatile run of a core.
#[derive(Debug)]
pub struct Volatile {
    chunks: Vec<Option<Chunk>>,
    buffers_max: usize,
    held: usize,
    open: Option<usize>,
    last: Option<LastRun>,
}

impl Volatile {
    /// None yet, and never in more than `buffers_max` buffers.
    #[must_use]
    pub fn new(buffers_max: usize) -> Self {
        Self {
            chunks: Vec::new(),
            buffers_max,
            held: 0,
            open: None,
            last: None,
        }
    }

    /// Appends messages of one queue; may be sent from after [`Volatile::turn_end`]. They count as
    /// live until [`Volatile::drop_live`].
    ///
    /// # Errors
    /// [`NoRoom::Buffers`]: no buffer is free, or the share of the pool is used up; the caller has
    /// seen by [`Volatile::takes`] that it is not.
    pub fn append_run(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        count: u32,
        messages: &[u8],
    ) -> Result<Appended, NoRoom> {
        self.append(buffers, effects, Kind::Run, head, count, messages)
    }

    /// Appends one piece of a large message, `number` from 0; one unit counts as live.
    ///
    /// # Errors
    /// As [`Volatile::append_run`].
    pub fn append_fragment(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        head: &RunHead,
        number: u32,
        body: &[u8],
    ) -> Result<Place, NoRoom> {
        match self.append(buffers, effects, Kind::Fragment, head, number, body)? {
            Appended::New(place) => Ok(place),
            Appended::Merged => unreachable!("a fragment is a record of its own"),
        }
    }

    /// Whether so many records with bodies of at most so many bytes fit into the share of the pool,
    /// however badly.
    #[must_use]
    pub fn takes(&self, buffers: &impl Buffers, records: u64, body_bytes: u32) -> bool {
        let taken = align_record(RECORD_HEAD_BYTES + body_bytes);
        let each = u64::from(buffers.buffer_bytes() / taken);
        let open = self.open.map_or(0, |open| {
            let chunk = self.chunks[open].as_ref().expect("the open chunk is held");
            u64::from((buffers.buffer_bytes() - chunk.used) / taken)
        });
        let more = self.buffers_max.saturating_sub(self.held) as u64;
        records <= open + more * each
    }

    fn append(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        kind: Kind,
        head: &RunHead,
        count: u32,
        body: &[u8],
    ) -> Result<Appended, NoRoom> {
        let bytes = body.len() as u32;
        assert!(RECORD_HEAD_BYTES + bytes <= buffers.buffer_bytes());
        let units = match kind {
            Kind::Fragment => 1,
            _ => u64::from(count),
        };
        if kind == Kind::Run
            && let Some(open) = self.open
            && let Some(last) = &mut self.last
            && last.head.kind == Kind::Run
            && last.head.queue == head.queue
            && last.head.queue_sequence.plus(u64::from(last.head.count)) == head.queue_sequence
        {
            let chunk = self.chunks[open].as_mut().expect("the open chunk is held");
            if chunk.used + bytes <= buffers.buffer_bytes() {
                buffers.open_bytes(chunk.buffer, chunk.used)[..body.len()].copy_from_slice(body);
                chunk.used += bytes;
                chunk.live_count += units;
                last.head.count += count;
                last.head.length += bytes;
                return Ok(Appended::Merged);
            }
        }
        self.close_run(buffers);
        let taken = align_record(RECORD_HEAD_BYTES + bytes);
        let open = self.chunk_for(taken, buffers, effects)?;
        let chunk = self.chunks[open].as_mut().expect("the open chunk is held");
        let at = chunk.used;
        let tail = buffers.open_bytes(chunk.buffer, at + RECORD_HEAD_BYTES);
        tail[..body.len()].copy_from_slice(body);
        chunk.used = at + taken;
        chunk.live_count += units;
        self.last = Some(LastRun {
            at,
            head: RecordHead {
                kind,
                flags: 0,
                partition: head.partition,
                length: RECORD_HEAD_BYTES + bytes,
                count,
                crc: 0,
                partition_sequence: 0,
                term: head.term,
                queue: head.queue,
                queue_sequence: head.queue_sequence,
                producer: head.producer,
                producer_sequence: head.producer_sequence,
                producer_epoch: head.producer_epoch,
                back: 0,
            },
        });
        Ok(Appended::New(Place {
            segment: SegmentIdx(SEGMENT_VOLATILE | open as u32),
            offset: at,
        }))
    }

    fn chunk_for(
        &mut self,
        taken: u32,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Result<usize, NoRoom> {
        if let Some(open) = self.open {
            let chunk = self.chunks[open].as_ref().expect("the open chunk is held");
            if chunk.used + taken <= buffers.buffer_bytes() {
                return Ok(open);
            }
            self.turn_end(buffers);
            self.open = None;
            self.free_if_dead(open, effects);
        }
        if self.held >= self.buffers_max || buffers.available() < BUFFERS_TO_PUBLISH {
            return Err(NoRoom::Buffers);
        }
        let buffer = buffers.acquire().ok_or(NoRoom::Buffers)?;
        let chunk = Chunk {
            buffer,
            used: 0,
            live_count: 0,
        };
        let free = self.chunks.iter().position(Option::is_none);
        let open = free.unwrap_or_else(|| {
            self.chunks.push(None);
            self.chunks.len() - 1
        });
        self.chunks[open] = Some(chunk);
        self.held += 1;
        self.open = Some(open);
        Ok(open)
    }

    fn close_run(&mut self, buffers: &mut impl Buffers) {
        let Some(last) = self.last.take() else { return };
        let open = self.open.expect("the last run lies in the open chunk");
        let chunk = self.chunks[open].as_ref().expect("the open chunk is held");
        let tail = buffers.open_bytes(chunk.buffer, last.at);
        tail[..RECORD_HEAD_BYTES as usize].copy_from_slice(&last.head.encode());
    }

    /// Ends a turn: what was appended may be sent from now on.
    pub fn turn_end(&mut self, buffers: &mut impl Buffers) {
        self.close_run(buffers);
        if let Some(open) = self.open {
            let chunk = self.chunks[open].as_ref().expect("the open chunk is held");
            buffers.seal(chunk.buffer, chunk.used);
        }
    }

    /// The run at `place`: its buffer, the range of its body, and its head. `None` before the end
    /// of the turn that appended it.
    #[must_use]
    pub fn locate(
        &self,
        buffers: &impl Buffers,
        place: Place,
        sequence: QueueSequence,
    ) -> Option<(BufferId, Range<u32>, RecordHead)> {
        assert!(is_volatile(place));
        let index = place.segment.0 & !SEGMENT_VOLATILE;
        let chunk = self.chunks.get(index as usize)?.as_ref()?;
        if let Some(last) = self.last
            && self.open == Some(index as usize)
            && last.at == place.offset
        {
            return None;
        }
        let head = place.offset..place.offset + RECORD_HEAD_BYTES;
        let head = RecordHead::decode(buffers.bytes(chunk.buffer, head)).ok()?;
        assert!(
            head.queue_sequence <= sequence,
            "a volatile place is what it was"
        );
        let body = place.offset + RECORD_HEAD_BYTES..place.offset + head.length;
        Some((chunk.buffer, body, head))
    }

    /// Takes away messages that are settled; a buffer without any goes back to the pool.
    pub fn drop_live(&mut self, place: Place, units: u32, effects: &mut Effects) {
        assert!(is_volatile(place));
        let index = (place.segment.0 & !SEGMENT_VOLATILE) as usize;
        let chunk = self.chunks[index].as_mut().expect("a live run is held");
        chunk.live_count = chunk
            .live_count
            .checked_sub(u64::from(units))
            .expect("a message is settled once");
        if self.open != Some(index) {
            self.free_if_dead(index, effects);
        }
    }

    fn free_if_dead(&mut self, index: usize, effects: &mut Effects) {
        let chunk = self.chunks[index].expect("checked by the callers");
        if chunk.live_count == 0 {
            effects.push(Effect::Release {
                buffer: chunk.buffer,
            });
            self.chunks[index] = None;
            self.held -= 1;
        }
    }

    /// Buffers held.
    #[must_use]
    pub fn buffers_held(&self) -> usize {
        self.held
    }
}
