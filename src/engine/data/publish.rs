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
use crate::data::dedup::Seen;
use crate::data::flow::{Flow, ForwardedPublish, Waiter};
use crate::data::journal::{Appended, NoRoom, RunHead};
use crate::data::producer::{Assembly, Producer, Span, Word};
use crate::data::queue::Marking;
use crate::data::route::{Decides, Target};
use crate::data::session::Channel;
use crate::effect::Buffers;
use crate::ids::ConnId;
use crate::mesh::{RemotePublish, Reply, Request};

/// Messages that go to the same places: a slice of the received frame.
#[derive(Clone, Copy)]
struct Group<'a> {
    first: u64,
    count: u32,
    bytes: &'a [u8],
    mandatory: bool,
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
    fn of(group: Group<'_>) -> Self {
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

    /// Forgets a producer and takes back the credit it had.
    pub(crate) fn drop_producer(&mut self, key: u64) {
        let Some(mut producer) = self.producers.remove(key) else {
            return;
        };
        self.names.remove(&(producer.id.0, key));
        let assembly = producer.assembly.take();
        let exposure = producer.exposure();
        if producer.is_settled() {
            self.granted_bytes -= exposure.1;
        } else {
            // Its bytes are still on their way to the disk: the credit comes back when they are.
            let used = producer.used.1 - producer.settled.1;
            self.granted_bytes -= exposure.1 - used;
            self.orphan_credit(producer.block_last(), used);
        }
        if let Some(assembly) = assembly
            && assembly.refused.is_none()
        {
            self.assembly_bytes -= u64::from(assembly.message_bytes);
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
        let agreed = self.sessions.get(conn).and_then(|s| s.agreed());
        let message_bytes_max = agreed.ok_or(Code::Internal)?.message_bytes_max as usize;
        let producer = self.producers.get_mut(key).ok_or(Code::Internal)?;
        // Nothing comes between the pieces of a large message (P-31).
        if header.count == 0 || producer.assembly.is_some() {
            return Err(Code::BodyMalformed);
        }
        producer.expect(header.sequence, header.count)?;
        producer.charge(u64::from(header.count), body.len() as u64)?;
        producer.next = header.sequence + u64::from(header.count);
        let tenant = producer.tenant;
        let mandatory = header.flags & PUBLISH_MANDATORY != 0;

        // Consecutive messages with the same targets are one group; most frames are one group.
        let mut group = Group {
            first: header.sequence,
            count: 0,
            bytes: &[],
            mandatory,
        };
        let mut start = 0;
        let mut end = 0;
        let mut seen = 0;
        let mut address: (&[u8], usize) = (&[], usize::MAX);
        let mut targets = std::mem::take(&mut self.targets);
        let mut other = std::mem::take(&mut self.targets_other);
        targets.clear();
        let mut unknown = false;
        let mut verdict = Ok(());
        for message in Messages::new(body) {
            let message = match message.and_then(|m| m.envelope.check_crc().map(|()| m)) {
                Ok(message) => message,
                Err(code) => {
                    // One that must travel in pieces does not travel whole (P-31).
                    let length = envelope::length_of(&body[end..]).unwrap_or(0);
                    verdict = Err(if length > FRAGMENT_BYTES_MAX {
                        Code::BodyMalformed
                    } else {
                        code
                    });
                    break;
                }
            };
            if message.envelope.length() > message_bytes_max {
                if group.count > 0 {
                    group.bytes = &body[start..end];
                    self.route(key, group, &targets, unknown, buffers, effects);
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
                let (next_unknown, decides) = match self.router.resolve(
                    tenant,
                    exchange,
                    message.envelope.routing_key(),
                    message.envelope.headers(),
                    &mut other,
                ) {
                    Ok(decides) => (false, decides == Decides::Address),
                    Err(_) => (true, true),
                };
                self.address_decides = decides;
                if group.count > 0 && (other != targets || next_unknown != unknown) {
                    group.bytes = &body[start..end];
                    self.route(key, group, &targets, unknown, buffers, effects);
                    group.first += u64::from(group.count);
                    group.count = 0;
                    start = end;
                }
                std::mem::swap(&mut targets, &mut other);
                unknown = next_unknown;
                address = here;
            }
            seen += 1;
            group.count += 1;
            end += message.bytes.len();
        }
        //= P-19
        if verdict.is_ok() && seen != header.count {
            verdict = Err(Code::BodyMalformed);
        }
        if group.count > 0 && verdict.is_ok() {
            group.bytes = &body[start..end];
            self.route(key, group, &targets, unknown, buffers, effects);
        }
        self.targets = targets;
        self.targets_other = other;
        self.stats.published += u64::from(seen);
        self.stats.published_bytes += body.len() as u64;
        verdict
    }

    /// Refuses a group that is in no queue.
    fn refuse(&mut self, key: u64, group: Group<'_>, code: Code) {
        self.stats.refused += u64::from(group.count);
        let span = Span {
            failed: Some(code),
            kept: 0,
            ..Span::of(group)
        };
        self.push_span(key, span);
    }

    /// Puts a group where it belongs and notes what its confirm waits for.
    fn route<B: Buffers>(
        &mut self,
        key: u64,
        group: Group<'_>,
        targets: &[Target],
        unknown: bool,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let (id, epoch) = (producer.id, producer.epoch);
        let level = match self.judge(producer, targets, unknown, group.mandatory) {
            Ok(level) => level,
            Err(code) => return self.refuse(key, group, code),
        };
        let here = self.config.core;
        let local = targets.iter().filter(|target| target.core == here).count();
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
            return self.refuse(key, group, Code::QueueFull);
        }
        let mut span = Span {
            level,
            ..Span::of(group)
        };
        for target in targets.iter().filter(|target| target.core == here) {
            match self.append(target.queue, id, epoch, group, buffers, effects) {
                Ok(block) => {
                    span.block = span.block.max(block);
                    span.stored = true;
                }
                Err(code) => {
                    span.failed = Some(code);
                    span.kept = 0;
                }
            }
        }
        if span.failed.is_some() {
            self.stats.refused += u64::from(group.count);
        }
        // What is refused here is asked of nobody else: refused means in no queue (P-39).
        if local < targets.len() && span.failed.is_none() {
            let number = self.next_span(key);
            span.waits = self.forward(key, number, group, None, targets, effects);
        }
        self.push_span(key, span);
    }

    fn route_singly<B: Buffers>(
        &mut self,
        key: u64,
        group: Group<'_>,
        targets: &[Target],
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        for one in group.singly() {
            self.route(key, one, targets, false, buffers, effects);
        }
    }

    /// Whether the publish may go to these targets, and which level they reach together.
    fn judge(
        &self,
        producer: &Producer,
        targets: &[Target],
        unknown: bool,
        mandatory: bool,
    ) -> Result<Level, Code> {
        if unknown {
            return Err(Code::ExchangeUnknown);
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

    /// Whether the journal takes publishes.
    pub(crate) fn admits(&self) -> Result<(), Code> {
        if self.failed {
            Err(Code::JournalFailed)
        } else if self.is_shutting_down() {
            Err(Code::ShuttingDown)
        } else if self.journal.is_publish_refused() {
            Err(Code::DiskFull)
        } else {
            Ok(())
        }
    }

    fn overflows(&self, targets: &[Target], count: u32, bytes: usize) -> bool {
        targets
            .iter()
            .filter(|target| target.core == self.config.core)
            .filter_map(|target| self.queues.get(target.queue))
            .any(|state| state.queue.would_overflow(count, bytes as u64))
    }

    fn next_span(&self, key: u64) -> u64 {
        self.producers
            .get(key)
            .expect("its frame is being stepped")
            .next_span()
    }

    fn push_span(&mut self, key: u64, span: Span) {
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

    /// Appends a group to a queue of this core. Returns the block that must be durable, 0 = none.
    fn append<B: Buffers>(
        &mut self,
        queue: QueueId,
        producer: ProducerId,
        epoch: u32,
        group: Group<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<u64, Code> {
        if !self.dedup.is_ahead(producer, epoch, queue, group.first) {
            if group.count > 1 {
                return self.append_again(queue, producer, epoch, group, buffers, effects);
            }
            if let Some(known) = self.known(queue, producer, epoch, group.first)? {
                return Ok(known);
            }
        }
        let state = self.queues.get_mut(queue).ok_or(Code::QueueUnknown)?;
        let mut rest = group.bytes;
        let mut left = group.count;
        let mut sequence = group.first;
        let mut refused = None;
        while left > 0 {
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
            let appended = if state.durable {
                self.journal
                    .append_run(buffers, effects, &head, count, bytes)
            } else {
                self.volatile
                    .append_run(buffers, effects, &head, count, bytes)
            };
            match appended {
                Ok(Appended::New(place)) => state.queue.push_run(
                    head.queue_sequence,
                    count,
                    bytes.len() as u32,
                    place,
                    Marking::Plain,
                ),
                Ok(Appended::Merged) => state.queue.extend_last(count, bytes.len() as u32),
                Err(reason) => refused = Some(refusal(reason)),
            }
            if refused.is_some() {
                break;
            }
            rest = &rest[bytes.len()..];
            left -= count;
            sequence += u64::from(count);
        }
        if sequence > group.first {
            //= P-38
            let stored = (group.first, sequence - 1);
            self.dedup.store(producer, epoch, queue, stored);
        }
        // What was refused in the middle of a group leaves its start in a block: nobody can say then
        // that all of it was refused.
        if let Some(code) = refused {
            return Err(if left == group.count {
                code
            } else {
                Code::Indeterminate
            });
        }
        Ok(self.appended(queue))
    }

    /// Whether a queue has stored a publish before: then the block to wait for, 0 = none (P-38).
    fn known(
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

    /// Appends a group of which some were perhaps stored before, one by one.
    fn append_again<B: Buffers>(
        &mut self,
        queue: QueueId,
        producer: ProducerId,
        epoch: u32,
        group: Group<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<u64, Code> {
        let mut block = 0;
        for one in group.singly() {
            block = block.max(self.append(queue, producer, epoch, one, buffers, effects)?);
        }
        Ok(block)
    }

    /// Asks the other cores among `targets` to take the group. Returns how many were asked.
    fn forward(
        &mut self,
        key: u64,
        span: u64,
        group: Group<'_>,
        fragment: Option<FragmentHead>,
        targets: &[Target],
        effects: &mut Effects,
    ) -> u32 {
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let (id, epoch) = (producer.id, producer.epoch);
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
                fragment,
                bytes,
            }));
            self.ask(
                CoreId(core),
                request,
                Waiter::Publish {
                    producer: key,
                    span,
                },
                effects,
            );
            asked += 1;
        }
        asked
    }

    /// Takes messages that another core forwards; the answer waits until they are durable.
    pub(crate) fn take_forwarded<B: Buffers>(
        &mut self,
        from: CoreId,
        id: u32,
        publish: RemotePublish,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let origin = (publish.producer, publish.epoch, publish.first.0);
        let mut group = Group {
            first: publish.first.0,
            count: publish.count,
            bytes: &publish.bytes,
            mandatory: false,
        };
        let mut block = 0;
        let mut failed = None;
        let mut queues = 0;
        let mut taken = 0;
        for queue in &publish.queues {
            let verdict = self
                .admits_to(*queue)
                .and_then(|()| match publish.fragment {
                    Some(head) if self.is_full(*queue, 1, head.message_bytes as usize) => {
                        Err(Code::QueueFull)
                    }
                    Some(_) => self.append_large(*queue, origin, group.bytes, buffers, effects),
                    None => {
                        if self.is_full(*queue, group.count, group.bytes.len()) {
                            // What of it fits is taken, as on the producer's own core. Other queues
                            // would need an answer of their own for each message.
                            let fits = match publish.queues.len() {
                                1 => self.fits(*queue, group),
                                _ => (0, &[][..]),
                            };
                            if fits.0 == 0 {
                                return Err(Code::QueueFull);
                            }
                            (group.count, group.bytes) = fits;
                            taken = fits.0;
                            failed = Some(Code::QueueFull);
                        }
                        self.append(*queue, origin.0, origin.1, group, buffers, effects)
                    }
                });
            match verdict {
                Ok(wait) => {
                    block = block.max(wait);
                    queues += u32::from(taken == 0);
                }
                Err(code) => {
                    taken = 0;
                    failed = Some(code);
                }
            }
        }
        // Refused only if no queue took it; else the producer cannot be promised either way.
        let outcome = match failed {
            None => Ok(()),
            Some(code) if queues == 0 => Err(code),
            Some(_) => Err(Code::Indeterminate),
        };
        let mut waits = ForwardedPublish {
            from,
            id,
            outcome,
            taken,
            bytes: publish.bytes,
        };
        waits.bytes.clear();
        if block <= self.journal.durable_block().0 || self.failed {
            self.answer_one_forwarded(block, waits, effects);
        } else {
            self.forwarded.push_back((block, waits));
        }
    }

    /// Whether a queue of this core takes publishes.
    fn admits_to(&self, queue: QueueId) -> Result<(), Code> {
        let state = self.queues.get(queue).ok_or(Code::QueueUnknown)?;
        if state.damaged {
            return Err(Code::QueueDamaged);
        }
        if state.durable {
            self.admits()?;
        }
        Ok(())
    }

    /// Whether the journal will have room for so many bytes, but has not yet.
    fn lacks_space(&self, bytes: u64) -> bool {
        self.journal
            .publish_space()
            .is_some_and(|space| space < bytes)
    }

    fn is_full(&self, queue: QueueId, count: u32, bytes: usize) -> bool {
        let state = self.queues.get(queue);
        state.is_some_and(|state| state.queue.would_overflow(count, bytes as u64))
    }

    /// How many messages at the start of a group a queue has room for, and their bytes.
    fn fits<'a>(&self, queue: QueueId, group: Group<'a>) -> (u32, &'a [u8]) {
        let mut count = 0;
        let mut end = 0;
        while count < group.count {
            let length = envelope::length_of(&group.bytes[end..]).expect("it was checked");
            if self.is_full(queue, count + 1, end + padded(length)) {
                break;
            }
            end += padded(length);
            count += 1;
        }
        (count, &group.bytes[..end])
    }

    /// Answers forwarded publishes whose blocks are durable.
    pub(crate) fn answer_forwarded(&mut self, effects: &mut Effects) {
        let durable = self.journal.durable_block().0;
        while let Some((block, _)) = self.forwarded.front() {
            if *block > durable && !self.failed {
                break;
            }
            let (block, waits) = self.forwarded.pop_front().expect("it was just looked at");
            self.answer_one_forwarded(block, waits, effects);
        }
    }

    fn answer_one_forwarded(&mut self, block: u64, waits: ForwardedPublish, effects: &mut Effects) {
        let (outcome, taken) = if block > self.journal.durable_block().0 {
            (Err(Code::Indeterminate), 0)
        } else {
            (waits.outcome, waits.taken)
        };
        let reply = Reply::Published {
            outcome,
            taken,
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
        let agreed = self
            .sessions
            .get(conn)
            .and_then(|s| s.agreed())
            .ok_or(Code::Internal)?;
        let producer = self.producers.get_mut(key).ok_or(Code::Internal)?;
        producer.expect(header.sequence, 1)?;
        // The first piece begins a message, and each other one goes on with one (P-31).
        if producer.assembly.is_some() == (head.offset == 0) {
            return Err(Code::BodyMalformed);
        }
        let bytes = padded(piece.len()) as u64;
        producer.charge(u64::from(head.offset == 0), bytes)?;
        if head.offset == 0 {
            let mandatory = header.flags & PUBLISH_MANDATORY != 0;
            self.start_assembly(key, head, piece, mandatory, agreed.message_bytes_max)?;
        }
        let producer = self.producers.get_mut(key).expect("it was just looked at");
        let mut assembly = producer
            .assembly
            .take()
            .expect("it was just begun or found");
        if assembly.message_bytes != head.message_bytes || assembly.arrived != head.offset {
            self.assembly_bytes -= assembly.reserved();
            return Err(Code::BodyMalformed);
        }
        assembly.arrived += piece.len() as u32;
        let covered = if head.offset == 0 { &piece[4..] } else { piece };
        assembly.crc = checksum::crc32c_append(assembly.crc, covered);
        if assembly.refused.is_none() {
            assembly.bodies.extend_from_slice(body);
        }
        self.stats.published_bytes += bytes;
        // The piece has come to rest in the memory reserved for its message.
        if !head.is_last() {
            producer.settled.1 += bytes;
            self.granted_bytes -= bytes;
            producer.assembly = Some(assembly);
            self.dirty(key);
            return Ok(());
        }
        producer.next = header.sequence + 1;
        self.stats.published += 1;
        let verdict = self.route_large(
            key,
            header.sequence,
            bytes as u32,
            &assembly,
            buffers,
            effects,
        );
        if let Err(code) = verdict {
            self.assembly_bytes -= assembly.reserved();
            return Err(code);
        }
        Ok(())
    }

    fn start_assembly(
        &mut self,
        key: u64,
        head: FragmentHead,
        piece: &[u8],
        mandatory: bool,
        message_bytes_max: u32,
    ) -> Result<(), Code> {
        let message = envelope::open(piece)?;
        if message.length() != head.message_bytes as usize {
            return Err(Code::MessageMalformed);
        }
        let free = self
            .config
            .limits
            .assembly_bytes_max
            .saturating_sub(self.assembly_bytes);
        //= P-22
        let refused = if head.message_bytes > message_bytes_max {
            Some(Code::MessageTooLarge)
        } else if u64::from(head.message_bytes) > free {
            Some(Code::Overloaded)
        } else {
            None
        };
        let mut bodies = Vec::new();
        if refused.is_none() {
            self.assembly_bytes += u64::from(head.message_bytes);
            let pieces = (head.message_bytes as usize).div_ceil(FRAGMENT_BYTES_MAX);
            bodies.reserve_exact(head.message_bytes as usize + pieces * FragmentHead::BYTES);
        }
        let producer = self
            .producers
            .get_mut(key)
            .expect("its frame is being stepped");
        producer.assembly = Some(Assembly {
            message_bytes: head.message_bytes,
            arrived: 0,
            crc: 0,
            bodies,
            refused,
            mandatory,
        });
        Ok(())
    }

    /// A large message is whole: it is routed like any other.
    fn route_large<B: Buffers>(
        &mut self,
        key: u64,
        sequence: u64,
        last_bytes: u32,
        assembly: &Assembly,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let mut span = Span {
            first: sequence,
            last: sequence,
            messages: 1,
            bytes: last_bytes,
            waits: 0,
            block: 0,
            level: Level::Durable,
            failed: assembly.refused,
            kept: 0,
            stored: false,
        };
        if assembly.refused.is_some() {
            self.stats.refused += 1;
            self.push_span(key, span);
            return Ok(());
        }
        let first = &assembly.bodies[FragmentHead::BYTES..];
        let message = envelope::open(&first[..FRAGMENT_BYTES_MAX])?;
        if message.crc() != assembly.crc {
            return Err(Code::MessageMalformed);
        }
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let (id, epoch) = (producer.id, producer.epoch);
        let mut targets = std::mem::take(&mut self.targets);
        targets.clear();
        let unknown = self
            .router
            .resolve(
                producer.tenant,
                message.exchange(),
                message.routing_key(),
                message.headers(),
                &mut targets,
            )
            .is_err();
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let judged = self
            .judge(producer, &targets, unknown, assembly.mandatory)
            .and_then(|level| {
                let copies = targets
                    .iter()
                    .filter(|target| target.durable && target.core == self.config.core);
                let bytes = u64::from(assembly.message_bytes) * copies.count() as u64;
                if self.overflows(&targets, 1, assembly.message_bytes as usize) {
                    Err(Code::QueueFull)
                } else if bytes > 0 && self.lacks_space(bytes) {
                    // Else it would end in the reserve, and everybody's disk would seem to be full.
                    Err(Code::Overloaded)
                } else {
                    Ok(level)
                }
            });
        match judged {
            Err(code) => {
                span.failed = Some(code);
                self.stats.refused += 1;
            }
            Ok(level) => {
                span.level = level;
                let here = self.config.core;
                let bodies = &assembly.bodies;
                for target in targets.iter().filter(|target| target.core == here) {
                    let origin = (id, epoch, sequence);
                    match self.append_large(target.queue, origin, bodies, buffers, effects) {
                        Ok(block) => {
                            span.block = span.block.max(block);
                            span.stored = true;
                        }
                        Err(code) => span.failed = Some(code),
                    }
                }
                let elsewhere = targets.iter().any(|target| target.core != here);
                if elsewhere && span.failed.is_none() {
                    let number = self.next_span(key);
                    let group = Group {
                        first: sequence,
                        count: 1,
                        bytes: bodies,
                        mandatory: false,
                    };
                    let message_bytes = assembly.message_bytes;
                    let fragment = Some(FragmentHead {
                        message_bytes,
                        offset: 0,
                    });
                    span.waits = self.forward(key, number, group, fragment, &targets, effects);
                }
            }
        }
        self.targets = targets;
        self.orphan_assembly(span.block, u64::from(assembly.message_bytes));
        self.push_span(key, span);
        Ok(())
    }

    /// Appends a large message to a queue of this core, piece by piece. `bodies` are the bodies of
    /// its fragment frames. Returns the block that must be durable, 0 = none.
    fn append_large<B: Buffers>(
        &mut self,
        queue: QueueId,
        (producer, epoch, sequence): (ProducerId, u32, u64),
        bodies: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<u64, Code> {
        if let Some(known) = self.known(queue, producer, epoch, sequence)? {
            return Ok(known);
        }
        let state = self.queues.get_mut(queue).ok_or(Code::QueueUnknown)?;
        let head = RunHead {
            producer,
            producer_epoch: epoch,
            producer_sequence: Sequence(sequence),
            ..RunHead::of_queue(state.partition, queue, state.queue.next_sequence())
        };
        let mut places = Vec::new();
        let mut failed = None;
        let mut message_bytes = 0;
        for (number, body) in bodies
            .chunks(FragmentHead::BYTES + FRAGMENT_BYTES_MAX)
            .enumerate()
        {
            let (fragment, _) = FragmentHead::split(body).expect("every piece was checked");
            message_bytes = fragment.message_bytes;
            let appended = if state.durable {
                self.journal.append_fragment(buffers, effects, &head, body)
            } else {
                self.volatile
                    .append_fragment(buffers, effects, &head, number as u32, body)
            };
            match appended {
                Ok(place) => places.push(place),
                Err(reason) => {
                    failed = Some(refusal(reason));
                    break;
                }
            }
        }
        if let Some(code) = failed {
            // Pieces without their last one are no message; recovery drops them too.
            for place in places {
                if state.durable {
                    self.journal.drop_live(place.segment, 1);
                } else {
                    self.volatile.drop_live(place, 1, effects);
                }
            }
            return Err(code);
        }
        let bytes = padded(message_bytes as usize) as u32;
        state
            .queue
            .push_fragmented(head.queue_sequence, bytes, &places, Marking::Plain);
        self.dedup
            .store(producer, epoch, queue, (sequence, sequence));
        Ok(self.appended(queue))
    }

    /// Messages were appended to a queue: what must be durable before they are delivered.
    fn appended(&mut self, queue: QueueId) -> u64 {
        let state = self.queues.get_mut(queue).expect("it was just appended to");
        let last = QueueSequence(state.queue.next_sequence().0 - 1);
        if !state.durable {
            state.queue.durable_through(last);
            self.wake(queue);
            return 0;
        }
        let block = self.journal.open_block().0;
        if crate::mutant!(DeliverBeforeSync) {
            state.queue.durable_through(last);
            self.wake(queue);
            return block;
        }
        if block > state.waits_for {
            state.waits_for = block;
            self.queue_waits.push_back((block, queue));
        }
        state.note(block, last.0);
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
        let settled_before = producer.settled;
        let mut words = std::mem::take(&mut self.words);
        producer.settle(durable, |word| words.push(word));
        self.granted_bytes -= producer.settled.1 - settled_before.1;
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
                    self.stats.confirms += 1;
                    let header = FrameHeader {
                        flags: reached as u8,
                        ..FrameHeader::bare(FrameKind::Confirm, channel, sequence)
                    };
                    self.say(conn, effects, |out| write_credit(out, header, credit));
                }
                Word::Confirm(..) => {}
                Word::Refused { first, last, code } => {
                    let header = FrameHeader {
                        count: (last + 1 - first) as u32,
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

    /// Raises a producer's credit to its share of what this core can hold un-synced.
    pub(crate) fn grant(&mut self, producer: &mut Producer) {
        let limits = &self.config.limits;
        let share = limits.publish_bytes / (self.producers.len() as u64 + 1);
        // Credit cannot be taken back, so it is earned: who never publishes must not hold the share
        // of those who do.
        let earned = producer.used.1.saturating_mul(2);
        let window = share
            .min(limits.window_bytes_max)
            .min(earned)
            .max(limits.window_bytes_min);
        let (messages, bytes) = producer.exposure();
        let missing = window.saturating_sub(bytes);
        let mut more = missing.min(self.credit_free());
        self.hungry |= more < missing;
        // Whoever waits for nothing may publish something, also if others keep credit that they do
        // not use; what finds no memory then is refused.
        //= P-33
        let waits_for_nothing = producer.used == producer.settled;
        let waits_for_space = producer.assembly.as_ref().is_some_and(|assembly| {
            assembly.refused.is_none() && self.lacks_space(u64::from(assembly.message_bytes))
        });
        if waits_for_nothing && !waits_for_space {
            more = more.max((FRAGMENT_BYTES_MAX as u64).saturating_sub(bytes));
        }
        producer.granted.1 += more;
        self.granted_bytes += more;
        // Messages are granted by the smallest that a message can be.
        let window_messages = window / ringpost_wire::ENVELOPE_BYTES as u64;
        producer.granted.0 += window_messages.saturating_sub(messages);
    }
}

/// Why an append was refused, in the words of the protocol. Credit bounds what can be on its way, so
/// a durable append finds buffers; it may not find disk, and a volatile one may not find memory.
fn refusal(reason: NoRoom) -> Code {
    match reason {
        NoRoom::Disk => Code::DiskFull,
        NoRoom::Buffers => Code::Overloaded,
        NoRoom::Closed => Code::JournalFailed,
    }
}

/// What a refused publish's producer is told.
fn refusal_text(code: Code) -> &'static str {
    match code {
        Code::Unroutable => "no queue takes this message",
        Code::ExchangeUnknown => "there is no such exchange",
        Code::QueueFull => "a target queue is at its maximum length or bytes",
        Code::DiskFull => "the disk has no room for publishes; consume or free space",
        Code::LevelUnavailable => "a target queue is volatile and level durable was asked for",
        Code::JournalFailed => "the journal of a target queue has failed; restart the broker",
        Code::QueueDamaged => "a target queue refuses service because of a damaged range",
        Code::Overloaded => "no memory, or no segment yet, is free for this message; try again",
        Code::ShuttingDown => "the broker is shutting down",
        Code::MessageTooLarge => "the message is larger than agreed in the handshake",
        Code::Indeterminate => "the outcome is unknown: a target was lost before it answered",
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
