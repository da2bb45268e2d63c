//! From a publish frame to the open block, and from the durable prefix to the confirm.
//! Does not know sockets, and not how a block becomes durable.

use ringpost_wire::control::{Level, ProducerCredit, write_failure};
use ringpost_wire::header::PUBLISH_MANDATORY;
use ringpost_wire::ids::{CoreId, ProducerId, QueueId, QueueSequence, Sequence};
use ringpost_wire::{
    Code, FRAGMENT_BYTES_MAX, FragmentHead, FrameHeader, FrameKind, Messages, checksum, envelope,
    frame, padded,
};

use crate::Effects;
use crate::data::admit::{Done, Put, Stop, Underway};
use crate::data::dedup::Seen;
use crate::data::flow::{Flow, ForwardedPublish, Waiter};
use crate::data::journal::RunHead;
use crate::data::producer::{Arriving, Held, Producer, Span, Word};
use crate::data::route::{Decides, Facts, Target, lot_of};
use crate::data::session::Channel;
use crate::data::stages::Stage;
use crate::effect::Buffers;
use crate::ids::ConnId;
use crate::mesh::{RemotePublish, Reply, Request};

/// Messages that go to the same places: a slice of the received frame.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) bytes: &'a [u8],
    pub(super) mandatory: bool,
}

impl<'a> Group<'a> {
    /// Each message as a group of its own.
    fn singly(self) -> impl Iterator<Item = Group<'a>> {
        let mut rest = self.bytes;
        (0..self.count).map(move |offset| {
            let length = envelope::length_of(rest).expect("it was checked");
            let (bytes, after) = rest.split_at(padded(length));
            rest = after;
            let first = self.first + u64::from(offset);
            Group {
                first,
                count: 1,
                bytes,
                ..self
            }
        })
    }
}

impl Span {
    /// A span that waits for nothing yet.
    pub(super) fn of(group: Group<'_>) -> Self {
        Self {
            first: group.first,
            last: group.first + u64::from(group.count) - 1,
            messages: group.count,
            bytes: group.bytes.len() as u32,
            waits: 0,
            block: 0,
            level: Level::Durable,
            failed: None,
            kept: group.count,
            stored: false,
        }
    }
}

impl Flow {
    /// `ProducerClose`: answered when everything published before it has its outcome.
    //= P-39
    pub(crate) fn producer_close(&mut self, conn: ConnId, header: FrameHeader) -> Result<(), Code> {
        let Some(key) = self.producer_key(conn, header.channel)? else {
            return Ok(());
        };
        let producer = self.producers.get_mut(key).ok_or(Code::Internal)?;
        producer.closing = Some(header.sequence);
        self.dirty(key);
        Ok(())
    }

    /// Forgets a producer, takes back the credit it had, and drops what it published that is not
    /// begun yet. What is under way goes on: no queue shall have it alone.
    pub(crate) fn drop_producer(&mut self, key: u64) {
        let Some(producer) = self.producers.remove(key) else {
            return;
        };
        self.names.remove(&(producer.id.0, key));
        if producer.blocks > 0 {
            self.forget_blocks(key);
        }
        self.granted_bytes -= producer.reserved;
        for held in &producer.held {
            self.note_unheld(held);
            if let Held::Whole { assembly, .. } = held {
                self.give_back(assembly.room, assembly.reserved());
            }
        }
        if let Some(assembly) = producer.assembly {
            self.give_back(assembly.room, assembly.reserved());
            self.beginnings.retain(|waits| *waits != key);
        }
    }

    /// The producer of a channel; `None` if the frame is late and ignored.
    //= P-15
    fn producer_key(&self, conn: ConnId, channel: u16) -> Result<Option<u64>, Code> {
        match self
            .sessions
            .get(conn)
            .map(|session| session.channel(channel))
        {
            Some(Channel::Producer(key)) => {
                let producer = self.producers.get(key);
                Ok(producer.is_some_and(|p| p.closing.is_none()).then_some(key))
            }
            Some(Channel::Closed) => Ok(None),
            _ => Err(Code::UnexpectedFrame),
        }
    }

    /// `Publish` (P-32): checks every message and puts it where it belongs.
    pub(crate) fn publish<B: Buffers>(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let Some(key) = self.producer_key(conn, header.channel)? else {
            return Ok(());
        };
        let producer = self.producers.get_mut(key).ok_or(Code::Internal)?;
        // Nothing comes between the pieces of a large message (P-31), and each message has a checksum
        // of its own (P-5).
        if header.count == 0 || producer.arriving.is_some() || header.body_crc != 0 {
            return Err(Code::BodyMalformed);
        }
        producer.expect(header.sequence, header.count)?;
        producer.charge(u64::from(header.count), body.len() as u64)?;
        producer.next = header.sequence + u64::from(header.count);
        producer
            .arrivals
            .enter(header.sequence, producer.next - 1, self.now);
        producer.unwanted = None;
        let waits = producer.holding || producer.is_passing_on;
        let frame = Group {
            first: header.sequence,
            count: header.count,
            bytes: body,
            mandatory: header.flags & PUBLISH_MANDATORY != 0,
        };
        //= P-92
        if header.flags & !PUBLISH_MANDATORY != 0 {
            check_batch(frame)?;
            self.refuse_frame(key, frame, Code::SettingInvalid);
            return Ok(());
        }
        let (taken, bytes) = if waits {
            (0, 0)
        } else {
            self.take_batch(key, frame, buffers, effects)?
        };
        if taken < frame.count {
            let rest = Group {
                first: frame.first + u64::from(taken),
                count: frame.count - taken,
                bytes: &body[bytes..],
                ..frame
            };
            check_batch(rest)?;
            self.hold_batch(key, rest);
        }
        self.stats.published += u64::from(header.count);
        self.stats.published_bytes += body.len() as u64;
        Ok(())
    }

    /// Takes the messages of a frame, or as many of them as need not wait: how many, and their bytes.
    pub(super) fn take_batch<B: Buffers>(
        &mut self,
        key: u64,
        batch: Group<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(u32, usize), Code> {
        let body = batch.bytes;
        let producer = self.producers.get(key).ok_or(Code::Internal)?;
        let (tenant, id) = (producer.tenant, producer.id);
        let agreed = self.sessions.get(producer.conn).and_then(|s| s.agreed());
        let message_bytes_max = agreed.ok_or(Code::Internal)?.message_bytes_max as usize;

        // Consecutive messages with the same targets are one group; most frames are one group.
        let mut group = Group {
            count: 0,
            bytes: &[],
            ..batch
        };
        let mut start = 0;
        let mut end = 0;
        let mut seen = 0;
        let mut address: (&[u8], usize) = (&[], usize::MAX);
        let mut targets = std::mem::take(&mut self.targets);
        let mut other = std::mem::take(&mut self.targets_other);
        targets.clear();
        let mut closed = None;
        let mut verdict = Ok(());
        // Set when a group must wait: messages of it that need not, and their bytes.
        let mut stopped = None;
        for message in Messages::new(body) {
            let message = match message.and_then(|m| m.envelope.check_published().map(|()| m)) {
                Ok(message) => message,
                Err(code) => {
                    verdict = Err(of_message(&body[end..], code));
                    break;
                }
            };
            if message.envelope.length() > message_bytes_max {
                if group.count > 0 {
                    group.bytes = &body[start..end];
                    let taken = self.route(key, group, &targets, closed, buffers, effects);
                    if taken.0 < group.count {
                        stopped = Some(taken);
                        break;
                    }
                    group.first += u64::from(group.count);
                }
                let alone = Group {
                    count: 1,
                    bytes: message.bytes,
                    ..group
                };
                self.refuse(key, alone, Code::MessageTooLarge);
                seen += 1;
                group.first += 1;
                group.count = 0;
                end += message.bytes.len();
                start = end;
                address = (&[], usize::MAX);
                continue;
            }
            let exchange = message.envelope.exchange();
            let here = (message.envelope.address(), exchange.len());
            if here != address || !self.address_decides {
                other.clear();
                let (next_closed, decides) = match self.router.resolve(
                    tenant,
                    exchange,
                    message.envelope.routing_key(),
                    &Facts::of(
                        &message.envelope,
                        lot_of(id.0, batch.first + u64::from(seen)),
                    ),
                    &mut other,
                ) {
                    Ok(decides) => (None, decides == Decides::Address),
                    Err(code) => (Some(code), true),
                };
                self.address_decides = decides;
                if group.count > 0 && (other != targets || next_closed != closed) {
                    group.bytes = &body[start..end];
                    if !self.keep_spread(key, group, &targets) {
                        let taken = self.route(key, group, &targets, closed, buffers, effects);
                        if taken.0 < group.count {
                            stopped = Some(taken);
                            break;
                        }
                    }
                    group.first += u64::from(group.count);
                    group.count = 0;
                    start = end;
                }
                std::mem::swap(&mut targets, &mut other);
                closed = next_closed;
                address = here;
            }
            seen += 1;
            group.count += 1;
            end += message.bytes.len();
        }
        //= P-19
        if verdict.is_ok() && stopped.is_none() && seen != batch.count {
            verdict = Err(Code::BodyMalformed);
        }
        let is_all = group.count == batch.count;
        if group.count > 0 && verdict.is_ok() && stopped.is_none() {
            group.bytes = &body[start..end];
        }
        if group.count > 0
            && verdict.is_ok()
            && stopped.is_none()
            && (is_all || !self.keep_spread(key, group, &targets))
        {
            let taken = self.route(key, group, &targets, closed, buffers, effects);
            if taken.0 < group.count {
                stopped = Some(taken);
            }
        }
        self.targets = targets;
        self.targets_other = other;
        let before = (group.first - batch.first) as u32;
        verdict.map(|()| match stopped {
            Some((count, bytes)) => (before + count, start + bytes),
            None => (batch.count, body.len()),
        })
    }

    /// Refuses a group that is in no queue.
    pub(super) fn refuse(&mut self, key: u64, group: Group<'_>, code: Code) {
        let span = Span {
            failed: Some(code),
            kept: 0,
            ..Span::of(group)
        };
        self.push_span(key, span);
    }

    /// Puts a group where it belongs and notes what its confirm waits for. Returns how many messages
    /// of it need not wait for room, and their bytes: all or none, unless each has its own answer.
    fn route<B: Buffers>(
        &mut self,
        key: u64,
        group: Group<'_>,
        targets: &[Target],
        closed: Option<Code>,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> (u32, usize) {
        const NONE: (u32, usize) = (0, 0);
        let all = (group.count, group.bytes.len());
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let origin = (producer.id, producer.epoch);
        let (id, epoch) = origin;
        let level = match self.judge(producer, targets, closed, group.mandatory) {
            Ok(level) => level,
            Err(code) => {
                self.refuse(key, group, code);
                return all;
            }
        };
        if !targets.is_empty() && !self.has_turn(targets, group.bytes.len()) {
            return NONE;
        }
        let here = self.config.core;
        let local = targets.iter().filter(|target| target.core == here).count();
        // What was published before goes first.
        if !self.place_spread_before(targets, buffers, effects) {
            return NONE;
        }
        let mut local_targets = targets.iter().filter(|target| target.core == here);
        let again = !local_targets
            .clone()
            .all(|target| self.dedup.is_ahead(id, epoch, target.queue, group.first));
        let full = local > 0 && self.overflows(targets, group.count, group.bytes.len());
        // Rare: a queue is nearly full, or a producer sends again. Each message has its own answer.
        if (full || again) && group.count > 1 {
            return self.route_singly(key, group, targets, buffers, effects);
        }
        let is_known = again
            && local_targets.all(|target| {
                self.dedup.judge(id, epoch, target.queue, group.first) == Seen::Before
            });
        if full && !is_known {
            self.refuse(key, group, Code::QueueFull);
            return all;
        }
        if !is_known
            && let Err(code) = self.has_place(targets, group.bytes.len(), !again, 1, buffers)
        {
            self.refuse(key, group, code);
            return all;
        }
        if local > 0 && !is_known {
            self.note_blocks(key, targets, group.count, group.bytes.len());
        }
        let mut span = Span {
            level,
            ..Span::of(group)
        };
        let mut underway = None;
        let mut shared = 0;
        if local > 1 && !again {
            let queues = targets.iter().filter(|target| target.core == here);
            let queues = queues.map(|target| target.queue);
            span.block = self.append_together(queues, origin, group, buffers, effects);
            span.stored = span.block > 0;
        } else {
            self.fanout.forget();
        }
        for (idx, target) in targets.iter().enumerate() {
            if target.core != here {
                continue;
            }
            if self.fanout.queues.get(shared) == Some(&target.queue) {
                shared += 1;
                continue;
            }
            let start = Done::default();
            let put = self.append_some(target.queue, origin, group, start, buffers, effects);
            span.block = span.block.max(put.block);
            let is_alone = targets.len() == 1;
            match put.stop {
                None => span.stored = true,
                Some(Stop::Refused(code)) => {
                    span.failed = Some(code);
                    span.kept = if is_alone { put.done.messages } else { 0 };
                }
                // The disk has just run full: nobody has anything of it, or only this queue.
                Some(Stop::Disk) if is_alone || !(span.stored || put.done.messages > 0) => {
                    span.failed = Some(Code::DiskFull);
                    span.kept = if is_alone { put.done.messages } else { 0 };
                    break;
                }
                // Room comes when somebody acks, which may be never: nobody waits for that.
                Some(Stop::Disk) => {
                    span.failed = Some(Code::Indeterminate);
                    span.kept = 0;
                    break;
                }
                Some(Stop::Wait) => {
                    let queues = &targets[idx..];
                    let queues = queues.iter().filter(|target| target.core == here);
                    let have = &self.fanout.queues[shared..];
                    let queues = queues.filter(|target| !have.contains(&target.queue));
                    underway = Some((queues.map(|target| target.queue).collect(), put.done));
                    break;
                }
            }
        }
        let number = self.next_span(key);
        // What is refused here is asked of nobody else: refused means in no queue (P-39).
        if local < targets.len() && span.failed.is_none() {
            span.waits = self.forward(key, number, group, targets, effects);
        }
        if let Some((queues, done)) = underway {
            span.waits += 1;
            let block = std::mem::take(&mut span.block);
            self.begin(Underway::rest(
                origin, group, queues, done, block, key, number,
            ));
        }
        self.push_span(key, span);
        all
    }

    fn route_singly<B: Buffers>(
        &mut self,
        key: u64,
        group: Group<'_>,
        targets: &[Target],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> (u32, usize) {
        let mut taken = (0, 0);
        for one in group.singly() {
            let (count, bytes) = self.route(key, one, targets, None, buffers, effects);
            if count == 0 {
                break;
            }
            taken = (taken.0 + count, taken.1 + bytes);
        }
        taken
    }

    /// Whether the publish may go to these targets, and which level they reach together.
    pub(super) fn judge(
        &self,
        producer: &Producer,
        targets: &[Target],
        closed: Option<Code>,
        mandatory: bool,
    ) -> Result<Level, Code> {
        if let Some(code) = closed {
            return Err(code);
        }
        if targets.is_empty() {
            //= P-37
            return if mandatory {
                Err(Code::Unroutable)
            } else {
                Ok(producer.level)
            };
        }
        //= P-36
        let durable = targets.iter().all(|target| target.durable);
        if producer.level == Level::Durable && !durable && !producer.downgrade {
            return Err(Code::LevelUnavailable);
        }
        for target in targets
            .iter()
            .filter(|target| target.core == self.config.core)
        {
            let state = self.queues.get(target.queue).ok_or(Code::QueueUnknown)?;
            if state.damaged {
                return Err(Code::QueueDamaged);
            }
            if state.durable {
                self.admits()?;
            }
        }
        Ok(if durable {
            producer.level
        } else {
            producer.level.min(Level::Volatile)
        })
    }

    /// Whether the journal takes publishes. What it has needs no room, so that is asked later.
    pub(crate) fn admits(&self) -> Result<(), Code> {
        if self.failed {
            Err(Code::JournalFailed)
        } else if self.is_shutting_down() {
            Err(Code::ShuttingDown)
        } else {
            Ok(())
        }
    }

    pub(super) fn overflows(&self, targets: &[Target], count: u32, bytes: usize) -> bool {
        targets
            .iter()
            .filter(|target| target.core == self.config.core)
            .filter_map(|target| self.queues.get(target.queue))
            .any(|state| state.queue.would_overflow(count, bytes as u64))
    }

    pub(super) fn next_span(&self, key: u64) -> u64 {
        self.producers
            .get(key)
            .expect("its frame is being stepped")
            .next_span()
    }

    pub(super) fn push_span(&mut self, key: u64, span: Span) {
        let producer = self
            .producers
            .get_mut(key)
            .expect("its frame is being stepped");
        if span.block > producer.waits_for {
            producer.waits_for = span.block;
            self.confirm_waits.push_back((span.block, key));
        }
        // What was stored before may be durable already: then nothing more is waited for.
        let is_at_rest = span.block <= self.journal.durable_block().0;
        let early = producer.level != Level::Durable || crate::mutant!(ConfirmBeforeSync);
        producer.push(span);
        if (is_at_rest || early) && !producer.dirty {
            producer.dirty = true;
            self.dirty_producers.push(key);
        }
    }

    /// Appends messages of a group to a queue of this core, from where it stopped before, until it has
    /// all of them or must stop.
    pub(super) fn append_some<B: Buffers>(
        &mut self,
        queue: QueueId,
        (producer, epoch): (ProducerId, u32),
        group: Group<'_>,
        start: Done,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Put {
        let mut put = Put {
            done: start,
            block: 0,
            stop: None,
        };
        let mut appended = 0;
        let first = group.first + u64::from(start.messages);
        let ahead = self.dedup.is_ahead(producer, epoch, queue, first);
        while put.done.messages < group.count {
            let sequence = group.first + u64::from(put.done.messages);
            let mut rest = &group.bytes[put.done.bytes..];
            let mut left = group.count - put.done.messages;
            if !ahead {
                // Each message may have been stored before.
                rest = &rest[..padded(envelope::length_of(rest).expect("it was checked"))];
                left = 1;
                match self.known(queue, producer, epoch, sequence) {
                    Ok(None) => {}
                    Ok(Some(block)) => {
                        put.block = put.block.max(block);
                        put.done.add(1, rest.len());
                        continue;
                    }
                    Err(code) => {
                        put.stop = Some(Stop::Refused(code));
                        break;
                    }
                }
            }
            let Some(state) = self.queues.get_mut(queue) else {
                // Deleted since it was begun, with everything in it.
                put.done.add(left, rest.len());
                break;
            };
            let head = RunHead {
                producer,
                producer_epoch: epoch,
                producer_sequence: Sequence(sequence),
                ..RunHead::of_queue(state.partition, queue, state.queue.next_sequence())
            };
            let room = match self.journal.room(buffers) {
                room if state.durable && room > 0 => room,
                _ => self.journal.body_bytes_max(),
            };
            let (count, bytes) = fitting(rest, left, room as usize);
            let outcome = if state.durable {
                self.journal
                    .append_run(buffers, effects, &head, count, bytes)
            } else {
                self.volatile
                    .append_run(buffers, effects, &head, count, bytes)
            };
            match outcome {
                Ok(to) => state.took(head.queue_sequence, count, bytes, to, self.now),
                Err(reason) => {
                    put.stop = Some(Stop::of(reason));
                    break;
                }
            }
            if self.tracer.is_armed() {
                self.trace_appended(&head, bytes, |idx| sequence + idx as u64);
            }
            //= P-38
            let last = sequence + u64::from(count) - 1;
            self.dedup.store(producer, epoch, queue, (sequence, last));
            appended += count;
            put.done.add(count, bytes.len());
        }
        if appended > 0 {
            put.block = put.block.max(self.appended(queue));
        }
        put
    }

    /// Whether a queue has stored a publish before: then the block to wait for, 0 = none (P-38).
    pub(super) fn known(
        &self,
        queue: QueueId,
        producer: ProducerId,
        epoch: u32,
        sequence: u64,
    ) -> Result<Option<u64>, Code> {
        match self.dedup.judge(producer, epoch, queue, sequence) {
            Seen::New => Ok(None),
            Seen::TooOld => Err(Code::SequenceTooOld),
            Seen::Fenced => Err(Code::ProducerFenced),
            // It may still be on its way to the disk, and is not behind what was appended last.
            Seen::Before => {
                let durable = self.queues.get(queue).is_some_and(|state| state.durable);
                Ok(Some(if durable {
                    self.journal.open_block().0
                } else {
                    0
                }))
            }
        }
    }

    /// Asks the other cores among `targets` to take the group. Returns how many were asked.
    fn forward(
        &mut self,
        key: u64,
        span: u64,
        group: Group<'_>,
        targets: &[Target],
        effects: &mut Effects,
    ) -> u32 {
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let (id, epoch) = (producer.id, producer.epoch);
        let arrival = producer.arrival(group.first, self.now);
        let mut asked = 0;
        for core in 0..self.config.cores {
            let there = |target: &&Target| target.core == CoreId(core);
            if core == self.config.core.0 || !targets.iter().any(|target| there(&target)) {
                continue;
            }
            let mut bytes = self.parcels.pop().unwrap_or_default();
            bytes.extend_from_slice(group.bytes);
            let request = Request::Publish(Box::new(RemotePublish {
                producer: id,
                epoch,
                first: Sequence(group.first),
                count: group.count,
                queues: targets
                    .iter()
                    .filter(there)
                    .map(|target| target.queue)
                    .collect(),
                fragment: None,
                arrival: Some(arrival),
                bytes,
            }));
            let waiter = Waiter::Publish {
                producer: key,
                span,
                bytes: group.bytes.len() as u64,
            };
            self.ask(CoreId(core), request, waiter, effects);
            asked += 1;
        }
        asked
    }

    /// Answers forwarded publishes whose blocks are durable.
    pub(crate) fn answer_forwarded(&mut self, effects: &mut Effects) {
        let durable = self.journal.durable_block().0;
        while let Some((block, _)) = self.forwarded.front() {
            if *block > durable && !self.failed && !crate::mutant!(ForwardedBeforeSync) {
                break;
            }
            let (block, waits) = self.forwarded.pop_front().expect("it was just looked at");
            self.answer_one_forwarded(block, waits, effects);
        }
    }

    pub(super) fn answer_one_forwarded(
        &mut self,
        block: u64,
        waits: ForwardedPublish,
        effects: &mut Effects,
    ) {
        let is_unsure = block > self.journal.durable_block().0;
        let (outcome, taken) = if is_unsure && !crate::mutant!(ForwardedBeforeSync) {
            (Err(Code::Indeterminate), 0)
        } else {
            (waits.outcome, waits.taken)
        };
        let reply = Reply::Published {
            outcome,
            taken,
            full: waits.full,
            bytes: waits.bytes,
        };
        self.reply(waits.from, waits.id, reply, effects);
    }

    /// `PublishFragment` (P-31).
    pub(crate) fn publish_fragment<B: Buffers>(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        frame::check_body(&header, body)?;
        let Some(key) = self.producer_key(conn, header.channel)? else {
            return Ok(());
        };
        let (head, piece) = FragmentHead::split(body)?;
        let producer = self.producers.get_mut(key).ok_or(Code::Internal)?;
        let bytes = padded(piece.len()) as u64;
        if let Some(unwanted) = producer.unwanted
            && header.sequence == producer.next - 1
        {
            producer.ignore_piece(unwanted, head)?;
            self.dirty(key);
            return Ok(());
        }
        producer.expect(header.sequence, 1)?;
        producer.unwanted = None;
        // Whatever sequence the first publish chose, all pieces of it have (P-31).
        producer.next = header.sequence;
        let arriving = producer.arriving.take();
        // The first piece begins a message, and each other one goes on with one (P-31).
        let mut arriving = match arriving {
            None if head.offset == 0 => begin_large(head, piece)?,
            Some(arriving) if head.offset > 0 => arriving,
            None | Some(_) => return Err(Code::BodyMalformed),
        };
        if arriving.message_bytes != head.message_bytes || arriving.arrived != head.offset {
            return Err(Code::BodyMalformed);
        }
        producer.charge(u64::from(head.offset == 0), bytes)?;
        arriving.arrived += piece.len() as u32;
        let covered = if head.offset == 0 { &piece[4..] } else { piece };
        arriving.crc = checksum::crc32c_append(arriving.crc, covered);
        if head.is_last() {
            if arriving.crc != arriving.crc_expected {
                return Err(Code::MessageMalformed);
            }
            producer.next = header.sequence + 1;
            producer
                .arrivals
                .enter(header.sequence, header.sequence, self.now);
            self.stats.published += 1;
        } else {
            producer.arriving = Some(arriving);
        }
        self.stats.published_bytes += bytes;
        let waits = producer.holding || producer.is_passing_on;
        if waits
            || !self.take_piece(
                key,
                header.sequence,
                head,
                header.flags,
                body,
                buffers,
                effects,
            )
        {
            self.hold_piece(key, header.sequence, head, header.flags, body);
        }
        Ok(())
    }

    /// Messages were appended to a queue: what must be durable before they are delivered.
    pub(super) fn appended(&mut self, queue: QueueId) -> u64 {
        let state = self.queues.get_mut(queue).expect("it was just appended to");
        let last = QueueSequence(state.queue.next_sequence().0 - 1);
        if !state.durable {
            state.may_be_delivered(last, self.now);
            self.wake(queue);
            return 0;
        }
        let block = self.journal.open_block().0;
        if crate::mutant!(DeliverBeforeSync) {
            state.queue.durable_through(last);
            self.wake(queue);
            return block;
        }
        self.wait_durable(queue, block, last);
        block
    }

    /// Tells a producer what came to rest, and gives it credit.
    pub(crate) fn confirm(&mut self, key: u64, effects: &mut Effects) {
        let durable = if crate::mutant!(ConfirmBeforeSync) {
            u64::MAX
        } else {
            self.journal.durable_block().0
        };
        let failed = self.failed;
        let Some(mut producer) = self.producers.take(key) else {
            return;
        };
        if failed {
            producer.journal_failed(durable);
        }
        producer.dirty = false;
        let (conn, channel, level) = (producer.conn, producer.channel, producer.level);
        let settled_before = producer.settled.0;
        let mut words = std::mem::take(&mut self.words);
        producer.settle(durable, |word| words.push(word));
        if let Some(Word::Confirm(last, _) | Word::Refused { last, .. }) = words.last() {
            let now = self.now;
            producer.arrivals.leave(0, *last, false, now, |ns, count| {
                effects.sample(Stage::Publish, ns, count);
            });
        }
        self.stats.rested += producer.settled.0 - settled_before;
        self.grant(&mut producer);
        let credit = ProducerCredit {
            messages: producer.granted.0,
            bytes: producer.granted.1,
        };
        let mut told = false;
        let last = words.len();
        for (idx, word) in words.drain(..).enumerate() {
            match word {
                Word::Confirm(sequence, reached) if level != Level::None => {
                    told |= idx + 1 == last;
                    let header = FrameHeader {
                        flags: reached as u8,
                        ..FrameHeader::bare(FrameKind::Confirm, channel, sequence)
                    };
                    self.say(conn, effects, |out| write_credit(out, header, credit));
                    if self.tracer.is_armed() {
                        self.tracer.confirmed(key, sequence, self.now);
                    }
                }
                Word::Confirm(..) => {}
                Word::Refused { first, last, code } => {
                    let count = last + 1 - first;
                    self.stats.refused += count;
                    self.stats.refusals.add(code, count);
                    let header = FrameHeader {
                        count: count as u32,
                        ..FrameHeader::bare(FrameKind::Refused, channel, first)
                    };
                    self.say(conn, effects, |out| {
                        write_failure(out, header, code, refusal_text(code));
                    });
                }
            }
        }
        self.words = words;
        if !told && producer.wants_credit_told() {
            told = true;
            let header = FrameHeader::bare(FrameKind::ProducerCredit, channel, 0);
            self.say(conn, effects, |out| write_credit(out, header, credit));
        }
        if told {
            producer.told = producer.granted;
        }
        let closed = producer.closing.filter(|_| producer.is_told());
        self.producers.put(key, producer);
        if let Some(sequence) = closed {
            self.drop_producer(key);
            if let Some(session) = self.sessions.get_mut(conn) {
                session.set(channel, Channel::Closed);
            }
            let header = FrameHeader::bare(FrameKind::ProducerClosed, channel, sequence);
            self.say(conn, effects, |out| {
                write_failure(out, header, Code::Normal, "closed by the client");
            });
        }
    }

    /// Raises a producer's credit to its share of what may wait on this core. The least, a whole frame,
    /// is everybody's, however many there are; what goes beyond is counted (ADR 0013).
    pub(crate) fn grant(&mut self, producer: &mut Producer) {
        let limits = &self.config.limits;
        let least = limits.window_bytes_min;
        let (messages, bytes) = producer.exposure();
        // What came to rest is free before more is given.
        self.granted_bytes -= producer.reserved;
        self.granted_bytes += bytes.saturating_sub(least);
        let share = limits.publish_bytes() / (self.producers.len() as u64 + 1);
        // Credit cannot be taken back, so it is earned: who never publishes must not hold the share
        // of those who do.
        let earned = producer.used.1.saturating_mul(2);
        let window = share.min(limits.window_bytes_max).min(earned).max(least);
        let missing = window.saturating_sub(bytes);
        // The rest of a large message has its memory; all others wait while much is held.
        //= P-33
        let more = if self.holds_much() && !producer.is_in_a_large_one() {
            self.starved = true;
            0
        } else {
            missing.min(self.credit_free() + least.saturating_sub(bytes))
        };
        // What is told to those whose queue is full is nothing, until it has room.
        //= P-114
        let is_blocked = producer.blocks > 0 && !producer.is_in_a_large_one();
        let more = if is_blocked { 0 } else { more };
        self.hungry |= more < missing && !is_blocked;
        producer.granted.1 += more;
        producer.reserved = (bytes + more).saturating_sub(least);
        self.granted_bytes += producer.reserved - bytes.saturating_sub(least);
        // Messages are granted by the smallest that a message can be.
        if is_blocked {
            return;
        }
        let window_messages = window / ringpost_wire::ENVELOPE_BYTES as u64;
        producer.granted.0 += window_messages.saturating_sub(messages);
    }
}

/// Checks the messages of a frame of a transaction.
pub(super) fn check_transaction_batch(count: u32, bytes: &[u8]) -> Result<(), Code> {
    check_batch(Group {
        first: 0,
        count,
        bytes,
        mandatory: false,
    })
}

/// Checks the messages of a frame, or of the rest of one.
fn check_batch(batch: Group<'_>) -> Result<(), Code> {
    let mut seen = 0;
    let mut end = 0;
    for message in Messages::new(batch.bytes) {
        let message = message
            .and_then(|m| m.envelope.check_published().map(|()| m))
            .map_err(|code| of_message(&batch.bytes[end..], code))?;
        seen += 1;
        end += message.bytes.len();
    }
    //= P-19
    if seen == batch.count {
        Ok(())
    } else {
        Err(Code::BodyMalformed)
    }
}

/// What is wrong with a message of a `Publish` that begins here.
fn of_message(bytes: &[u8], code: Code) -> Code {
    // One that must travel in pieces does not travel whole (P-31).
    if envelope::length_of(bytes).unwrap_or(0) > FRAGMENT_BYTES_MAX {
        Code::BodyMalformed
    } else {
        code
    }
}

/// What the other pieces of a large message must be.
fn begin_large(head: FragmentHead, piece: &[u8]) -> Result<Arriving, Code> {
    let message = envelope::open(piece)?;
    if message.length() != head.message_bytes as usize || message.hops() > 0 {
        return Err(Code::MessageMalformed);
    }
    Ok(Arriving {
        message_bytes: head.message_bytes,
        arrived: 0,
        crc: 0,
        crc_expected: message.crc(),
    })
}

/// What a refused publish's producer is told.
fn refusal_text(code: Code) -> &'static str {
    match code {
        Code::Unroutable => "no queue takes this message",
        Code::ExchangeUnknown => "there is no such exchange",
        Code::PermissionDenied => "the exchange is internal: it is reached over other exchanges",
        Code::QueueFull => {
            "a target queue is at its maximum length or bytes, or no memory is left for volatile ones"
        }
        Code::DiskFull => "the disk has no room for publishes; consume or free space",
        Code::LevelUnavailable => "a target queue is volatile and level durable was asked for",
        Code::JournalFailed => "the journal of a target queue has failed; restart the broker",
        Code::QueueDamaged => "a target queue refuses service because of a damaged range",
        Code::Overloaded => {
            "as many large messages are on their way as there is memory for, or this connection \
             published too much beside one; try again"
        }
        Code::TimedOut => {
            "the rest of the message did not come in time, and others need its memory"
        }
        Code::ShuttingDown => "the broker is shutting down",
        Code::MessageTooLarge => "the message is larger than agreed in the handshake",
        Code::Indeterminate => {
            "the outcome is unknown: some queues may have it, and others have not; publish it again \
             under its own sequence"
        }
        Code::QueueUnknown => "a target queue was deleted meanwhile",
        Code::ProducerFenced => "a newer epoch of this producer has opened",
        Code::SettingInvalid => "a flag of the frame is not known",
        Code::SequenceTooOld => {
            "below the window of sequences that are remembered: it may have been stored before"
        }
        _ => "the publish was refused",
    }
}

fn write_credit(out: &mut Vec<u8>, mut header: FrameHeader, credit: ProducerCredit) {
    // By hand: this is the one control frame on the hot path, and it must not allocate.
    let mut body = [0u8; 16];
    body[..8].copy_from_slice(&credit.messages.to_le_bytes());
    body[8..].copy_from_slice(&credit.bytes.to_le_bytes());
    header.count = 0;
    frame::write(out, header, &body);
}

/// The longest prefix of `left` messages that fits into `room` bytes, at least one message.
fn fitting(bytes: &[u8], left: u32, room: usize) -> (u32, &[u8]) {
    if bytes.len() <= room {
        return (left, bytes);
    }
    let mut end = 0;
    let mut count = 0;
    while count < left {
        let length = envelope::length_of(&bytes[end..]).expect("it was checked");
        if count > 0 && end + padded(length) > room {
            break;
        }
        end += padded(length);
        count += 1;
    }
    (count, &bytes[..end])
}
