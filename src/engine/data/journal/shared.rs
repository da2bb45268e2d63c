//! What goes to several queues is stored once: a body, and an entry for each queue behind it in the same
//! block (ADR 0026). Does not know when that pays.

use ringpost_wire::ids::{PartitionId, ProducerId, QueueId, QueueSequence, Sequence};

use crate::data::journal::block::SegmentNumber;
use crate::data::journal::record::{
    self, Gathered, Kind, RECORD_HEAD_BYTES, RecordHead, align_record,
};
use crate::data::journal::segment::RunEntry;
use crate::data::journal::{Appended, Draft, Journal, NoRoom, Purpose, RunHead, fits};
use crate::effect::{Buffers, Effects};
use crate::ids::Place;

/// Most queues of one body. A block of bodies for so many each has an index that fits a block.
const QUEUES_MAX: u32 = 1_024;

/// The entries of the last body of the open block: they are written when it is closed.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenEntries {
    heads: Vec<RunHead>,
    /// Byte offset of their body in the block.
    body_at: u32,
    /// Messages of it.
    messages: u32,
    /// Bytes of it, padding included.
    body_bytes: u32,
}

impl OpenEntries {
    pub(super) fn count(&self) -> u32 {
        self.heads.len() as u32
    }

    /// Bytes that they will take.
    pub(super) fn bytes(&self) -> u32 {
        self.count() * RECORD_HEAD_BYTES
    }
}

impl Journal {
    /// Most queues that one body of so many bytes may have, 0 if none.
    #[must_use]
    pub fn shared_by_max(&self, body_bytes: usize) -> usize {
        let body = align_record(RECORD_HEAD_BYTES + body_bytes as u32);
        let room = (self.config.body_bytes_max() + RECORD_HEAD_BYTES).saturating_sub(body);
        let most = QUEUES_MAX.min(self.config.buffer_bytes / 256);
        (room / RECORD_HEAD_BYTES).min(most) as usize
    }

    /// Whether one body for so many queues takes less than a run for each.
    #[must_use]
    pub const fn sharing_pays(queues: usize, body_bytes: usize) -> bool {
        let head = RECORD_HEAD_BYTES as usize;
        queues > 1 && (queues - 1) * body_bytes > (queues + 1) * head
    }

    /// Bytes that messages take for so many queues, shared as far as they can be.
    #[must_use]
    pub fn shared_bytes(&self, queues: usize, body_bytes: usize) -> usize {
        let most = self.shared_by_max(body_bytes).min(queues);
        if Self::sharing_pays(most, body_bytes) {
            queues.div_ceil(most) * body_bytes + queues * RECORD_HEAD_BYTES as usize
        } else {
            queues * body_bytes
        }
    }

    /// Appends messages for several queues, at most [`Journal::shared_by_max`]; `heads` say the place that
    /// they have in each, and the producer. The caller has checked them, as for [`Journal::append_run`].
    ///
    /// The messages count as live in the segment of the place once for each queue, until
    /// [`Journal::drop_live`].
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing was appended.
    pub fn append_shared(
        &mut self,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
        heads: &[RunHead],
        count: u32,
        messages: &[u8],
    ) -> Result<Appended, NoRoom> {
        assert!(count > 0 && heads.len() > 1);
        assert!(heads.len() <= self.shared_by_max(messages.len()));
        let purpose = Purpose::of(&heads[0]);
        self.may_append(purpose)?;
        if self.join_body(buffers, heads, count, messages) {
            return Ok(Appended::Merged);
        }
        let queues = heads.len() as u32;
        let body = align_record(RECORD_HEAD_BYTES + messages.len() as u32);
        let need = body + queues * RECORD_HEAD_BYTES;
        self.make_room_for(queues + 1, need, purpose, buffers, effects)?;
        self.close_record(buffers);
        let open = self.open.as_ref().expect("room was made");
        let at = open.used;
        // It names its own place, by which it is known.
        let own = Place {
            segment: open.segment,
            offset: open.offset + at,
        };
        let head = self.body_head(own);
        let place = self.push(buffers, &Draft::of(Kind::Body, &head, count), messages);
        assert_eq!(place, own);
        self.entries.heads.extend_from_slice(heads);
        self.entries.body_at = at;
        self.entries.messages = count;
        self.set_urgent();
        let holders = if crate::mutant!(SharedCountedOnce) {
            1
        } else {
            queues
        };
        self.count_live(place.segment, count * holders, body * holders);
        Ok(Appended::New(place))
    }

    fn body_head(&self, own: Place) -> RunHead {
        RunHead {
            producer: ProducerId(self.table.get(own.segment).number.0),
            producer_sequence: Sequence(u64::from(own.offset)),
            ..RunHead::of_queue(PartitionId(0), QueueId(0), QueueSequence(0))
        }
    }

    /// Whether a record with messages is what an index says that lies at a place: a body names its place,
    /// a run its queue and messages.
    pub(crate) fn is_record_of(
        &self,
        head: &RecordHead,
        place: Place,
        queue: QueueId,
        sequence: QueueSequence,
    ) -> bool {
        let first = head.queue_sequence.0;
        match head.kind {
            Kind::Body => is_body_at(head, self.table.get(place.segment).number, place.offset),
            Kind::Fragment => head.queue == queue && first == sequence.0,
            kind => {
                let after = first.saturating_add(u64::from(head.count));
                head.queue == queue && kind.has_messages() && (first..after).contains(&sequence.0)
            }
        }
    }

    /// Extends the last body if the messages continue it for the same queues, and fit its block.
    fn join_body(
        &mut self,
        buffers: &mut impl Buffers,
        heads: &[RunHead],
        count: u32,
        messages: &[u8],
    ) -> bool {
        let (Some(open), entries) = (&mut self.open, &self.entries) else {
            return false;
        };
        let Some(last) = &mut open.last else {
            return false;
        };
        if last.head.kind != Kind::Body || entries.heads.len() != heads.len() {
            return false;
        }
        let before = u64::from(last.head.count);
        let follows = |(old, new): (&RunHead, &RunHead)| {
            old.queue == new.queue
                && old.partition == new.partition
                && old.term == new.term
                && old.producer == new.producer
                && old.producer_epoch == new.producer_epoch
                && old.queue_sequence.plus(before) == new.queue_sequence
                && (new.producer.0 == 0
                    || old.producer_sequence.plus(before) == new.producer_sequence)
        };
        let bytes = messages.len() as u32;
        let used = open.used + bytes;
        let end = used + entries.bytes();
        let records = entries.count();
        let (index, touched) = (&self.index, &self.touched);
        if !entries.heads.iter().zip(heads).all(follows)
            || open.start + end > self.config.buffer_bytes
            || !fits(&self.config, index, touched, records, open.offset, end)
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
        let (segment, queues) = (open.segment, records);
        self.count_live(segment, count * queues, bytes * queues);
        true
    }

    /// The last record is closed as it is: if it is a body, that is what its entries say.
    pub(super) fn note_closed(&mut self, head: &RecordHead) {
        if head.kind == Kind::Body {
            if !crate::mutant!(JoinedNotEntered) {
                self.entries.messages = head.count;
            }
            self.entries.body_bytes = align_record(head.body_bytes());
        }
    }

    /// Writes the entries of the last body behind it.
    pub(super) fn push_entries(&mut self, buffers: &mut impl Buffers) {
        let mut heads = std::mem::take(&mut self.entries.heads);
        let (body_at, count) = (self.entries.body_at, self.entries.messages);
        for entry in heads.drain(..) {
            let partition_sequence = self.number_record(entry.partition);
            let open = self.open.as_mut().expect("they have a body in it");
            let at = open.used;
            let mut head = RecordHead {
                kind: Kind::Entry,
                flags: 0,
                partition: entry.partition,
                length: RECORD_HEAD_BYTES,
                count,
                crc: 0,
                partition_sequence,
                term: entry.term,
                queue: entry.queue,
                queue_sequence: entry.queue_sequence,
                producer: entry.producer,
                producer_sequence: entry.producer_sequence,
                producer_epoch: entry.producer_epoch,
                back: at - body_at,
            };
            let bytes = head.seal_gathered(&mut Gathered::new(0));
            let tail = buffers.open_bytes(open.buffer, open.start + at);
            tail[..RECORD_HEAD_BYTES as usize].copy_from_slice(&bytes);
            open.used = at + RECORD_HEAD_BYTES;
            open.content.push(&head.crc.to_le_bytes());
            open.record_count += 1;
            self.index.add_run(&entry_of(
                &head,
                open.offset + body_at,
                self.entries.body_bytes,
            ));
        }
        self.entries.heads = heads;
    }
}

/// Whether a body is the one that was written at this place.
pub(crate) fn is_body_at(head: &RecordHead, number: SegmentNumber, offset: u32) -> bool {
    head.kind == Kind::Body
        && head.producer.0 == number.0
        && head.producer_sequence.0 == u64::from(offset)
}

/// The bodies of a block, as its records are gone through in their order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastBody<'a> {
    /// Byte offset in the block, head and messages of the last body.
    found: Option<(u32, RecordHead, &'a [u8])>,
}

impl<'a> LastBody<'a> {
    /// A body of the block, at this offset in it.
    pub(crate) const fn note(&mut self, at: u32, head: &RecordHead, messages: &'a [u8]) {
        self.found = Some((at, *head, messages));
    }

    /// Where the body of an entry at `at` lies in the block, and its messages; `None` if it is not whole:
    /// then the entry is damaged, too.
    pub(crate) fn of(&self, entry: &RecordHead, at: u32) -> Option<(u32, &'a [u8])> {
        let (body_at, head, messages) = self.found?;
        let is_it = entry.back.checked_add(body_at) == Some(at) && entry.count == head.count;
        is_it.then_some((body_at, messages))
    }
}

/// What the index says of an entry: where its body lies.
pub(crate) fn entry_of(head: &RecordHead, body_offset: u32, body_bytes: u32) -> RunEntry {
    RunEntry {
        kind: Kind::Entry,
        is_relocated: false,
        queue: head.queue,
        queue_sequence: head.queue_sequence,
        count: head.count,
        offset: body_offset,
        body_bytes,
        message_bytes: 0,
    }
}
