//! Sealing blocks, writing them in order, and what completions mean.
//! Does not know what is in a record, and chooses no slots.

use crate::data::journal::block::{
    BLOCK_ALIGN, BLOCK_FLAG_INDEX, BLOCK_HEADER_BYTES, BlockHeader, BlockSequence, align_block,
    partition_bit,
};
use crate::data::journal::cache::Origin;
use crate::data::journal::record::{FLAG_COMPLETE, Kind, PARTITION_META, RECORD_HEAD_BYTES};
use crate::data::journal::segment::{PartitionRange, SlotState};
use crate::data::journal::{
    CHECKPOINT_SLOTS, CREATE_RETRY_MS, Draft, Journal, OP_JOURNAL, Progress, Purpose, RunHead,
    SealedBlock, SlotTask, State, WATERMARK_MS, WriteInFlight, partition_of, partition_slot,
};
use crate::data::stages::Stage;
use crate::effect::{Buffers, Effect, Effects, FailCause, FileOp, Severity};
use crate::ids::{Mono, OpId};
use crate::input::{FileReply, IoFault};
use ringpost_wire::ids::PartitionId;

impl Journal {
    /// Seals the open block and queues its write.
    pub(crate) fn seal_open(&mut self, buffers: &mut impl Buffers) {
        self.close_record(buffers);
        let Some(open) = self.open.take() else { return };
        assert!(open.record_count > 0, "a block is opened for a record");
        let sequence = self.next_sequence;
        let next_slot = self.next_slot.map(|next| self.table.get(next).slot);
        let segment = self.table.get(open.segment);
        assert_eq!(segment.written_bytes, open.offset);
        let mut header = BlockHeader {
            header_crc: 0,
            flags: open.flags,
            journal: self.config.journal,
            journal_uuid: self.config.journal_uuid,
            segment_number: segment.number,
            offset: open.offset,
            used: open.used,
            sequence,
            incarnation: self.incarnation,
            prev_crc: self.prev_crc,
            durable_upto: if crate::mutant!(WatermarkOfSubmitted) {
                BlockSequence(sequence.0 - 1)
            } else {
                self.durable
            },
            wall_us: self.wall_us,
            record_count: open.record_count,
            content_crc: open.content.sum(),
            prev_partitions: self.prev_partitions,
            next_slot,
            cluster: self.config.cluster,
            node: self.config.node,
            replica: self.config.replica,
        };
        assert!(header.durable_upto < sequence);
        let bytes = align_block(open.used);
        let block = buffers.open_bytes(open.buffer, open.start);
        block[..BLOCK_HEADER_BYTES as usize].copy_from_slice(&header.encode());
        block[open.used as usize..bytes as usize].fill(0);
        buffers.seal(open.buffer, open.start + bytes);

        self.prev_crc = header.header_crc;
        self.ranges.clear();
        self.prev_partitions = 0;
        for partition in self.touched.drain(..) {
            let state = &self.partitions[partition_slot(PartitionId(partition))];
            self.prev_partitions |= partition_bit(partition);
            self.ranges.push(PartitionRange {
                partition,
                first: state.block_first,
                last: state.next - 1,
            });
        }
        assert!(open.offset + bytes <= self.config.segment_bytes);
        self.table.get_mut(open.segment).written_bytes += bytes;
        if open.flags & BLOCK_FLAG_INDEX == 0 {
            self.index
                .add_block(sequence, open.offset, bytes, &self.ranges);
        }
        let window = self.window.as_mut().expect("a block lies in a window");
        window.sealed_bytes += bytes;
        let cached = self
            .cache
            .at_mut(open.segment, window.start)
            .expect("the window being filled is never evicted");
        cached.bytes = window.sealed_bytes;
        cached.origin = Origin::Written(sequence);
        self.sealed.push_back(SealedBlock {
            sequence,
            segment: open.segment,
            offset: open.offset,
            bytes,
            buffer: open.buffer,
            start: open.start,
            since: open.since,
            messages: open.messages,
        });
        self.next_sequence = BlockSequence(sequence.0 + 1);
        self.last_is_watermark = false;
        self.trickle_since = None;
        self.checkpoints.bytes_since += u64::from(bytes);
    }

    pub(super) fn submit(&mut self, block: SealedBlock, effects: &mut Effects) {
        let op = self.new_op();
        self.writes.push_back(WriteInFlight {
            op,
            block,
            is_done: false,
            since: self.now,
        });
        if block.messages > 0 {
            let waited = self.now.0.saturating_sub(block.since.0);
            effects.sample(Stage::Journal, waited, block.messages);
        }
        effects.push(Effect::Write {
            op,
            slot: self.table.get(block.segment).slot,
            position: block.offset,
            buffer: block.buffer,
            range: block.start..block.start + block.bytes,
        });
    }

    /// Ends a turn: seals and writes what may be, keeps slots and buffers in supply.
    pub fn turn_end(&mut self, now: Mono, buffers: &mut impl Buffers, effects: &mut Effects) {
        if self.state == State::Failed {
            return;
        }
        self.now = now;
        self.watch_spares(now);
        self.supply_slots(now, effects);
        self.gave_buffers = self.supply_buffers(buffers, effects);
        self.was_short_of_reads = (self.was_short_of_reads.1, false);
        if self.state == State::Starting {
            self.open_incarnation(buffers, effects);
        }
        let is_due = match &self.open {
            None => false,
            Some(open) if open.is_urgent => true,
            Some(_) => {
                let since = *self.trickle_since.get_or_insert(now);
                now.ms_since(since) >= self.config.trickle_ms
            }
        };
        self.write_free(is_due, buffers, effects);
        let is_idle = self.writes.is_empty()
            && self.open.is_none()
            && !self.last_is_watermark
            && self.state == State::Ready;
        if !is_idle {
            self.idle_since = None;
        } else {
            let since = *self.idle_since.get_or_insert(now);
            if now.ms_since(since) >= WATERMARK_MS {
                self.idle_since = None;
                self.write_watermark(buffers, effects);
            }
        }
        self.advance_checkpoint(effects);
    }

    /// Writes whatever is appended, without waiting for company; also a watermark if nothing is
    /// left to write. Used at shutdown: call until [`Journal::is_quiet`].
    pub fn flush(&mut self, buffers: &mut impl Buffers, effects: &mut Effects) {
        if self.state != State::Ready {
            return;
        }
        self.write_free(true, buffers, effects);
        if self.writes.is_empty() && self.open.is_none() && !self.last_is_watermark {
            self.write_watermark(buffers, effects);
        }
        self.advance_checkpoint(effects);
    }

    /// Whether nothing is in flight or waits, and a watermark says so on disk.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.state == State::Failed
            || (self.writes.is_empty()
                && self.sealed.is_empty()
                && self.open.is_none()
                && self.reads.is_empty()
                && self.last_is_watermark
                && self.checkpoints.pending.is_none()
                && self.slot_task.is_none())
    }

    /// Whether [`Journal::turn_end`] wants to be called at once: something was appended after the
    /// last one, and a write is free for it.
    #[must_use]
    pub fn wants_turn(&self) -> bool {
        self.writes.len() < self.config.writes_in_flight as usize
            && self
                .open
                .as_ref()
                .is_some_and(|open| open.is_urgent || self.trickle_since.is_none())
    }

    /// When [`Journal::turn_end`] wants to be called even if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        let is_free = self.writes.len() < self.config.writes_in_flight as usize;
        let trickle = self
            .trickle_since
            .filter(|_| is_free)
            .map(|since| since.plus_ms(self.config.trickle_ms));
        let idle = self.idle_since.map(|since| since.plus_ms(WATERMARK_MS));
        let spare = self
            .spare_since
            .map(|(since, _)| since.plus_ms(self.config.spare_after_ms));
        [trickle, idle, spare, self.create_after]
            .into_iter()
            .flatten()
            .min()
    }

    /// Submits sealed blocks while writes are free, then the open one if it is due.
    pub(super) fn write_free(
        &mut self,
        is_due: bool,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) {
        while self.writes.len() < self.config.writes_in_flight as usize {
            if let Some(block) = self.sealed.pop_front() {
                self.submit(block, effects);
            } else if is_due && self.open.is_some() {
                self.seal_open(buffers);
            } else {
                break;
            }
        }
    }

    pub(super) fn open_incarnation(&mut self, buffers: &mut impl Buffers, effects: &mut Effects) {
        let mut body = [0u8; 16];
        body[..8].copy_from_slice(&self.next_sequence.0.to_le_bytes());
        body[8..12].copy_from_slice(&self.incarnation.to_le_bytes());
        let need = RECORD_HEAD_BYTES + body.len() as u32;
        // No slot or buffer yet: a later turn tries again.
        if self
            .make_room(need, Purpose::Upkeep, buffers, effects)
            .is_ok()
        {
            let head = RunHead::of_partition(PARTITION_META);
            let draft = Draft::of(Kind::Truncate, &head, 0);
            self.push(buffers, &draft, &body);
            self.set_urgent();
            self.state = State::Opening(self.next_sequence);
        }
    }

    /// Writes a block that states "all synced", and where the partitions stand.
    pub(super) fn write_watermark(&mut self, buffers: &mut impl Buffers, effects: &mut Effects) {
        const PARTITIONS_MAX: usize = (BLOCK_ALIGN as usize - 256) / 10;
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        for (slot, state) in self.partitions.iter().enumerate().take(PARTITIONS_MAX) {
            if state.next > 1 {
                body.extend_from_slice(&partition_of(slot).0.to_le_bytes());
                body.extend_from_slice(&state.next.to_le_bytes());
            }
        }
        let need = RECORD_HEAD_BYTES + body.len() as u32;
        // Without room there is no watermark: a wider window of doubt, not an error.
        if self
            .make_room(need, Purpose::Upkeep, buffers, effects)
            .is_ok()
        {
            let head = RunHead::of_partition(PARTITION_META);
            let mut draft = Draft::of(Kind::Watermark, &head, (body.len() / 10) as u32);
            if self.partitions.len() <= PARTITIONS_MAX {
                draft.flags = FLAG_COMPLETE;
            }
            self.push(buffers, &draft, &body);
            self.seal_open(buffers);
            self.last_is_watermark = true;
            self.write_free(false, buffers, effects);
        }
        self.scratch = body;
    }

    pub(super) fn new_op(&mut self) -> OpId {
        let op = OpId(OP_JOURNAL | self.next_op);
        self.next_op += 1;
        op
    }

    /// Whether an answer to that operation is for a journal.
    #[must_use]
    pub const fn owns(op: OpId) -> bool {
        op.0 & OP_JOURNAL != 0
    }

    /// Takes the answer of a read or write effect.
    pub fn io_done(
        &mut self,
        op: OpId,
        result: Result<(), IoFault>,
        buffers: &mut impl Buffers,
        effects: &mut Effects,
    ) -> Progress {
        if let Some(at) = self.reads.iter().position(|read| read.op == op) {
            let read = self.reads.swap_remove(at);
            return self.read_done(read, result, buffers, effects);
        }
        if self.state == State::Failed {
            return Progress::Nothing;
        }
        let Some(write) = self.writes.iter_mut().find(|write| write.op == op) else {
            return Progress::Nothing;
        };
        if let Err(fault) = result
            && !crate::mutant!(WriteErrorIgnored)
        {
            let block = write.block;
            let slot = self.table.get(block.segment).slot.0;
            self.fail(
                format!(
                    "write of block {} at offset {} of slot {slot} failed: {fault:?}; \
                     restart the broker to recover what is durable",
                    block.sequence.0, block.offset
                ),
                effects,
            );
            return Progress::Failed;
        }
        write.is_done = true;
        if crate::mutant!(PrefixSkipsHole) {
            let done = self.writes.iter().position(|write| write.op == op);
            for write in self.writes.iter_mut().take(done.unwrap_or(0)) {
                write.is_done = true;
            }
        }
        let before = self.durable;
        while let Some(write) = self.writes.front()
            && write.is_done
        {
            let block = write.block;
            assert_eq!(block.sequence.0, self.durable.0 + 1, "a prefix has no gap");
            if block.messages > 0 {
                let took = self.now.0.saturating_sub(write.since.0);
                effects.sample(Stage::Device, took, block.messages);
            }
            self.durable = block.sequence;
            self.table.get_mut(block.segment).durable_bytes = block.offset + block.bytes;
            self.writes.pop_front();
        }
        if self.durable == before {
            return Progress::Nothing;
        }
        if let State::Opening(block) = self.state
            && self.durable >= block
        {
            self.state = State::Ready;
        }
        self.advance_checkpoint(effects);
        Progress::Durable(self.durable)
    }

    pub(super) fn fail(&mut self, reason: String, effects: &mut Effects) {
        self.state = State::Failed;
        self.sealed.clear();
        let cause = FailCause::Disk;
        effects.push(Effect::FailStop { cause, reason });
    }

    /// Takes the answer of a file effect.
    pub fn file_done(
        &mut self,
        op: OpId,
        result: Result<FileReply, IoFault>,
        now: Mono,
        effects: &mut Effects,
    ) -> Progress {
        if let Some((task_op, task)) = self.slot_task
            && task_op == op
        {
            self.slot_task = None;
            self.slot_done(task, result, now, effects);
            return Progress::Nothing;
        }
        let is_checkpoint = self
            .checkpoints
            .pending
            .as_ref()
            .is_some_and(|pending| pending.op == Some(op));
        if is_checkpoint && self.state != State::Failed {
            return self.checkpoint_done(result, now, effects);
        }
        Progress::Nothing
    }

    pub(super) fn slot_done(
        &mut self,
        task: SlotTask,
        result: Result<FileReply, IoFault>,
        now: Mono,
        effects: &mut Effects,
    ) {
        match (task, result) {
            (SlotTask::Create(slot), Ok(FileReply::Done)) => {
                let mut made = self.table.get_mut(slot);
                made.state = SlotState::Free;
                made.is_short = false;
                drop(made);
                self.slot_freed();
                if std::mem::take(&mut self.is_short_of_space) {
                    effects.push(Effect::Report {
                        severity: Severity::Info,
                        text: "the journal has space again".to_owned(),
                    });
                }
            }
            (SlotTask::Create(slot), Err(fault)) => {
                self.table.get_mut(slot).state = SlotState::Absent;
                self.create_after = Some(now.plus_ms(CREATE_RETRY_MS));
                // It is tried again until there is space; once is enough to be told.
                if !std::mem::replace(&mut self.is_short_of_space, true) {
                    let why = match fault {
                        IoFault::NoSpace => "the file system is full".to_owned(),
                        fault => format!("{fault:?}"),
                    };
                    effects.push(Effect::Report {
                        severity: Severity::Warning,
                        text: format!(
                            "journal slot {} cannot be created: {why}; publishes are refused when \
                             what is spare is full: consume, or free space",
                            slot.0
                        ),
                    });
                }
            }
            (SlotTask::Remove(slot), Ok(FileReply::Done)) => {
                self.table.get_mut(slot).state = SlotState::Absent;
            }
            (SlotTask::Remove(slot), Err(fault)) => {
                // Whether the file is still there is unknown, so it is not used again.
                effects.push(Effect::Report {
                    severity: Severity::Warning,
                    text: format!("journal slot {} not removed: {fault:?}", slot.0),
                });
            }
        }
    }

    pub(super) fn checkpoint_done(
        &mut self,
        result: Result<FileReply, IoFault>,
        now: Mono,
        effects: &mut Effects,
    ) -> Progress {
        match result {
            Ok(FileReply::Done) => {
                let pending = self.checkpoints.pending.take().expect("just matched");
                self.checkpoints.durable_generation = pending.generation;
                self.checkpoints.last_bytes = pending.content_bytes;
                self.reclaim(effects);
                Progress::Nothing
            }
            Err(IoFault::NoSpace) => {
                // The older generation still holds. Space comes from a spare slot if there is one,
                // and the next checkpoint, which covers more, tries again under the same number.
                let pending = self.checkpoints.pending.take().expect("just matched");
                self.checkpoints.generation = pending.generation - 1;
                self.checkpoints.segments_since += 1;
                self.remove_slot(CHECKPOINT_SLOTS, effects);
                self.create_after = Some(now.plus_ms(CREATE_RETRY_MS));
                effects.push(Effect::Report {
                    severity: Severity::Warning,
                    text: format!("no space for checkpoint {}", pending.generation),
                });
                Progress::Nothing
            }
            Err(fault) => {
                self.fail(format!("writing a checkpoint failed: {fault:?}"), effects);
                Progress::Failed
            }
        }
    }

    /// Hands over the checkpoint that is ready, if what it says has become true.
    pub(crate) fn advance_checkpoint(&mut self, effects: &mut Effects) {
        let durable = self.durable;
        let next_op = OpId(OP_JOURNAL | self.next_op);
        let Some(pending) = &mut self.checkpoints.pending else {
            return;
        };
        let is_synced = pending.after <= durable || crate::mutant!(CheckpointBeforeSync);
        if pending.op.is_some() || !is_synced {
            return;
        }
        pending.op = Some(next_op);
        self.next_op += 1;
        effects.push(Effect::File {
            op: next_op,
            what: FileOp::WriteCheckpoint {
                generation: pending.generation,
                content: std::mem::take(&mut pending.content),
            },
        });
    }
}
