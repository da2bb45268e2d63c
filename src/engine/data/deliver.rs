//! From a queue to its consumers, and from their acks to the journal.
//! Does not know sockets, and not how a block is read back.

use ringpost_wire::control::{Body, ConsumerCredit, ConsumerOpen, Get, write_failure};
use ringpost_wire::header::{
    DELIVER_REDELIVERED, SETTLE_ACK, SETTLE_CONFIRM, SETTLE_OUTCOME, SETTLE_REJECT, SETTLE_REQUEUE,
};
use ringpost_wire::ids::{CoreId, QueueId};
use ringpost_wire::{
    CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, Code, DeliverHead, FRAME_BYTES_MAX,
    FRAME_HEADER_BYTES, FragmentHead, FrameHeader, FrameKind, SETTLE_RANGES_MAX, SettleRange,
    checksum, envelope, frame, padded,
};

use crate::data::consumer::{GetWait, Sink};
use crate::data::flow::{Flow, Waiter};
use crate::data::journal::Located;
use crate::data::queue::{Offer, Outcome};
use crate::data::route::Target;
use crate::data::session::Channel;
use crate::effect::Buffers;
use crate::ids::{BufferId, ConnId};
use crate::mesh::{Reply, Request};
use crate::{Effect, Effects};

/// Messages of this many bytes or fewer are gathered by copy, larger ones are sent from their
/// buffer: an extra piece in a vectored send costs about as much as copying this many bytes.
const GATHER_BYTES_MAX: usize = 2 * 1024;
/// Bytes one turn may deliver before the loop looks at its inputs again.
const DISPATCH_BYTES_PER_TURN: usize = 1024 * 1024;

impl Flow {
    /// `ConsumerOpen` (P-40).
    pub(crate) fn consumer_open(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let open = ConsumerOpen::decode(body)?;
        let session = self.sessions.get(conn).ok_or(Code::Internal)?;
        let tenant = session.agreed().ok_or(Code::UnexpectedFrame)?.tenant;
        if open.credit_messages > CREDIT_MESSAGES_MAX || open.credit_bytes > CREDIT_BYTES_MAX {
            self.fail(conn, header, Code::SettingInvalid, "credit is above the protocol's limit", effects);
            return Ok(());
        }
        let Some(target) = self.find_queue(tenant, open.queue) else {
            let name = String::from_utf8_lossy(open.queue);
            self.fail(conn, header, Code::QueueUnknown, &format!("there is no queue '{name}'"), effects);
            return Ok(());
        };
        let opening = Channel::ConsumerOpening { queue: target.queue, owner: target.core };
        let session = self.sessions.get_mut(conn).expect("it was just looked at");
        session.claim(header.channel, opening)?;
        if target.core == self.config.core {
            let outcome = self.subscribe(
                Sink {
                    queue: target.queue,
                    core: self.config.core,
                    conn,
                    channel: header.channel,
                    outbox: Vec::new(),
                    forwarding: 0,
                    outgoing: false,
                    congested: false,
                },
                (open.credit_messages, open.credit_bytes, open.flags),
            );
            self.subscribed(target.core, conn, header.channel, header.sequence, outcome, effects);
        } else {
            let request = Request::Subscribe {
                conn,
                channel: header.channel,
                queue: target.queue,
                credit_messages: open.credit_messages,
                credit_bytes: open.credit_bytes,
                flags: open.flags,
            };
            let waiter = Waiter::Subscribe {
                conn,
                channel: header.channel,
                sequence: header.sequence,
            };
            self.ask(target.core, request, waiter, effects);
        }
        Ok(())
    }

    /// Finds a queue by name: it is what the default exchange routes to.
    pub(crate) fn find_queue(
        &mut self,
        tenant: ringpost_wire::ids::TenantId,
        name: &[u8],
    ) -> Option<Target> {
        self.router.queue(tenant, name)
    }

    /// Adds a consumer to a queue of this core.
    pub(crate) fn subscribe(
        &mut self,
        sink: Sink,
        (messages, bytes, flags): (u32, u64, u32),
    ) -> Result<u64, Code> {
        let queue = sink.queue;
        let state = self.queues.get(queue).ok_or(Code::QueueUnknown)?;
        if state.damaged {
            return Err(Code::QueueDamaged);
        }
        if self.failed && state.durable {
            return Err(Code::JournalFailed);
        }
        if self.sinks.len() >= self.config.limits.consumers_max as usize {
            return Err(Code::LimitReached);
        }
        let key = self.sinks.insert(sink);
        let no_ack = flags & ringpost_wire::control::CONSUMER_NO_ACK != 0;
        let exclusive = flags & ringpost_wire::control::CONSUMER_EXCLUSIVE != 0;
        let state = self.queues.get_mut(queue).expect("it was just looked at");
        if let Err(code) = state.queue.add_consumer(key, messages, bytes, no_ack, exclusive) {
            self.sinks.remove(key);
            return Err(code);
        }
        self.wake(queue);
        Ok(key)
    }

    /// The owning core has answered: the channel is a consumer, or free again.
    pub(crate) fn subscribed(
        &mut self,
        owner: CoreId,
        conn: ConnId,
        channel: u16,
        sequence: u64,
        outcome: Result<u64, Code>,
        effects: &mut Effects,
    ) {
        let opening = self.sessions.get(conn).map(|session| session.channel(channel));
        let Some(Channel::ConsumerOpening { queue, .. }) = opening else {
            // The connection went while the other core was asked.
            if let Ok(key) = outcome {
                self.unsubscribe_at(owner, key, effects);
            }
            return;
        };
        let session = self.sessions.get_mut(conn).expect("it was just looked at");
        match outcome {
            Ok(key) => {
                session.set(channel, Channel::Consumer { queue, owner, key });
                self.say(conn, effects, |out| {
                    let mut header = FrameHeader::bare(FrameKind::ConsumerOpened, channel, sequence);
                    header.count = u32::from(owner.0);
                    frame::write(out, header, &[]);
                });
            }
            Err(code) => {
                session.set(channel, Channel::Free);
                let header = FrameHeader::bare(FrameKind::ConsumerOpen, channel, sequence);
                self.fail(conn, header, code, subscribe_text(code), effects);
            }
        }
    }

    /// Answers a request frame with `Failed`.
    pub(crate) fn fail(
        &mut self,
        conn: ConnId,
        request: FrameHeader,
        code: Code,
        reason: &str,
        effects: &mut Effects,
    ) {
        let header = FrameHeader::bare(FrameKind::Failed, request.channel, request.sequence);
        self.say(conn, effects, |out| write_failure(out, header, code, reason));
    }

    fn consumer(&self, conn: ConnId, channel: u16) -> Result<(QueueId, CoreId, u64), Code> {
        match self.sessions.get(conn).map(|session| session.channel(channel)) {
            Some(Channel::Consumer { queue, owner, key }) => Ok((queue, owner, key)),
            _ => Err(Code::UnexpectedFrame),
        }
    }

    /// `ConsumerClose`.
    pub(crate) fn consumer_close(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let (_, owner, key) = self.consumer(conn, header.channel)?;
        let session = self.sessions.get_mut(conn).expect("the channel was just found");
        session.set(header.channel, Channel::Free);
        self.unsubscribe_at(owner, key, effects);
        self.say(conn, effects, |out| {
            ringpost_wire::control::write_done(out, header.sequence, true, 0);
        });
        Ok(())
    }

    /// Closes a consumer wherever its queue lives.
    pub(crate) fn unsubscribe_at(&mut self, owner: CoreId, key: u64, effects: &mut Effects) {
        if owner == self.config.core {
            self.unsubscribe(key);
        } else {
            self.ask(owner, Request::Unsubscribe { consumer: key }, Waiter::Nobody, effects);
        }
    }

    /// Removes a consumer of a queue of this core; what it holds returns to the queue.
    pub(crate) fn unsubscribe(&mut self, key: u64) {
        let Some(sink) = self.sinks.remove(key) else { return };
        if let Some(state) = self.queues.get_mut(sink.queue) {
            self.stats.returned += state.queue.remove_consumer(key);
        }
        self.gets.retain(|get| get.consumer != key);
        self.wake(sink.queue);
    }

    /// `ConsumerCredit` (P-41).
    pub(crate) fn consumer_credit(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let credit = ConsumerCredit::decode(body)?;
        if credit.messages > CREDIT_MESSAGES_MAX || credit.bytes > CREDIT_BYTES_MAX {
            return Err(Code::BodyMalformed);
        }
        let (_, owner, key) = self.consumer(conn, header.channel)?;
        if owner == self.config.core {
            self.set_credit(key, credit.messages, credit.bytes);
        } else {
            let request =
                Request::Credit { consumer: key, messages: credit.messages, bytes: credit.bytes };
            self.ask(owner, request, Waiter::Nobody, effects);
        }
        Ok(())
    }

    /// Changes the credit of a consumer of this core.
    pub(crate) fn set_credit(&mut self, key: u64, messages: u32, bytes: u64) {
        let Some(queue) = self.sinks.get(key).map(|sink| sink.queue) else { return };
        if let Some(state) = self.queues.get_mut(queue) {
            state.queue.set_credit(key, messages, bytes);
        }
        self.wake(queue);
    }

    /// `Get` (P-43).
    pub(crate) fn get(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let get = Get::decode(body)?;
        if header.count == 0 || header.count > CREDIT_MESSAGES_MAX {
            return Err(Code::BodyMalformed);
        }
        let (_, owner, key) = self.consumer(conn, header.channel)?;
        if owner == self.config.core {
            self.start_get(key, header.sequence, header.count, get.wait_ms);
        } else {
            let request = Request::Get {
                consumer: key,
                sequence: header.sequence,
                count: header.count,
                wait_ms: get.wait_ms,
            };
            self.ask(owner, request, Waiter::Nobody, effects);
        }
        Ok(())
    }

    /// Lets a consumer of this core take messages.
    pub(crate) fn start_get(&mut self, key: u64, sequence: u64, count: u32, wait_ms: u32) {
        let Some(queue) = self.sinks.get(key).map(|sink| sink.queue) else { return };
        let Some(state) = self.queues.get_mut(queue) else { return };
        state.queue.grant_get(key, count);
        let deadline = self.now.plus_ms(u64::from(wait_ms));
        self.gets.push(GetWait { consumer: key, sequence, left: count, given: 0, deadline });
        self.wake(queue);
    }

    /// Ends the gets that have what they asked for or have waited long enough.
    pub(crate) fn finish_gets(&mut self, effects: &mut Effects) {
        let mut idx = 0;
        while idx < self.gets.len() {
            let get = self.gets[idx];
            let over = get.left == 0 || get.given > 0 || self.now >= get.deadline;
            // A queue that waits for the disk has not been asked yet.
            let asked = self
                .sinks
                .get(get.consumer)
                .is_none_or(|sink| get.left == 0 || !self.reading.contains(&sink.queue));
            if !(over && asked) {
                idx += 1;
                continue;
            }
            self.gets.swap_remove(idx);
            let Some(sink) = self.sinks.get(get.consumer) else { continue };
            let (queue, channel) = (sink.queue, sink.channel);
            if let Some(state) = self.queues.get_mut(queue) {
                state.queue.cancel_get(get.consumer);
            }
            let mut header = FrameHeader::bare(FrameKind::GetDone, channel, get.sequence);
            header.count = get.given;
            self.tell(get.consumer, effects, |out| frame::write(out, header, &[]));
        }
    }

    /// Sends frames to a consumer, wherever its connection is.
    pub(crate) fn tell(
        &mut self,
        key: u64,
        effects: &mut Effects,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let here = self.config.core;
        let Some(sink) = self.sinks.get_mut(key) else { return };
        if sink.core == here {
            let conn = sink.conn;
            self.say(conn, effects, write);
        } else {
            write(&mut sink.outbox);
            if !sink.outgoing {
                sink.outgoing = true;
                self.outgoing.push(key);
            }
        }
    }

    /// `Settle` (P-44).
    pub(crate) fn settle(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        frame::check_body(&header, body)?;
        if header.flags & !(SETTLE_OUTCOME | SETTLE_CONFIRM) != 0
            || header.flags & SETTLE_OUTCOME > SETTLE_REJECT
            || header.count as usize > SETTLE_RANGES_MAX
        {
            return Err(Code::BodyMalformed);
        }
        let ranges = SettleRange::parse(body, header.count)?;
        let (_, owner, key) = self.consumer(conn, header.channel)?;
        if owner == self.config.core {
            self.settle_ranges(key, header.flags, header.sequence, ranges, effects);
        } else {
            let request = Request::Settle {
                consumer: key,
                flags: header.flags,
                sequence: header.sequence,
                ranges: ranges.collect(),
            };
            self.ask(owner, request, Waiter::Nobody, effects);
        }
        Ok(())
    }

    /// Settles deliveries of a consumer of this core; an unknown tag ends the consumer.
    pub(crate) fn settle_ranges(
        &mut self,
        key: u64,
        flags: u8,
        sequence: u64,
        ranges: impl Iterator<Item = SettleRange>,
        effects: &mut Effects,
    ) {
        let Some(queue) = self.sinks.get(key).map(|sink| sink.queue) else { return };
        let Some(state) = self.queues.get_mut(queue) else { return };
        let outcome = match flags & SETTLE_OUTCOME {
            SETTLE_ACK => Outcome::Ack,
            SETTLE_REQUEUE => Outcome::Requeue,
            _ => Outcome::Reject,
        };
        let mut messages = 0;
        let mut verdict = Ok(());
        for range in ranges {
            match state.queue.settle(key, range, outcome, &mut state.settled) {
                Ok(settled) => messages += settled.messages,
                Err(code) => {
                    verdict = Err(code);
                    break;
                }
            }
        }
        if flags & SETTLE_OUTCOME == SETTLE_REQUEUE {
            self.stats.returned += messages;
        } else {
            self.stats.settled += messages;
        }
        if !state.settled.is_empty() && !state.settling {
            state.settling = true;
            self.settling.push(queue);
        }
        if flags & SETTLE_CONFIRM != 0 && verdict.is_ok() {
            self.settle_asks.push((key, sequence));
        }
        self.wake(queue);
        if let Err(code) = verdict {
            self.end_consumer(key, code, "a settled delivery tag is not outstanding", effects);
        }
    }

    /// Ends a consumer of this core and tells its client why.
    pub(crate) fn end_consumer(
        &mut self,
        key: u64,
        code: Code,
        reason: &str,
        effects: &mut Effects,
    ) {
        let Some(sink) = self.sinks.get(key) else { return };
        let (core, conn, channel) = (sink.core, sink.conn, sink.channel);
        let header = FrameHeader::bare(FrameKind::ConsumerClosed, channel, 0);
        if core == self.config.core {
            self.say(conn, effects, |out| write_failure(out, header, code, reason));
            self.detach(conn, channel, key);
        } else {
            let mut bytes = std::mem::take(
                &mut self.sinks.get_mut(key).expect("it was just looked at").outbox,
            );
            write_failure(&mut bytes, header, code, reason);
            self.ask(core, Request::Forward { conn, bytes }, Waiter::Nobody, effects);
            let request = Request::Detached { conn, channel, consumer: key };
            self.ask(core, request, Waiter::Nobody, effects);
        }
        self.unsubscribe(key);
    }

    /// Frees the channel of a consumer that its owning core has ended.
    pub(crate) fn detach(&mut self, conn: ConnId, channel: u16, consumer: u64) {
        if let Some(session) = self.sessions.get_mut(conn)
            && matches!(session.channel(channel), Channel::Consumer { key, .. } if key == consumer)
        {
            session.set(channel, Channel::Free);
        }
    }

    /// Tells a consumer that a settle frame is durable.
    pub(crate) fn settled(&mut self, key: u64, sequence: u64, effects: &mut Effects) {
        let Some(channel) = self.sinks.get(key).map(|sink| sink.channel) else { return };
        self.tell(key, effects, |out| {
            frame::write_bare(out, FrameKind::Settled, channel, sequence);
        });
    }

    /// Writes the acks of this turn into the open block.
    pub(crate) fn journal_settled<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let mut settling = std::mem::take(&mut self.settling);
        for queue in settling.drain(..) {
            let Some(state) = self.queues.get_mut(queue) else { continue };
            state.settling = false;
            let mut ranges = std::mem::take(&mut state.settled);
            if state.durable {
                if !self.failed {
                    let appended = self.journal.append_ack(
                        buffers, effects, state.partition, queue, &ranges,
                    );
                    if appended.is_err() {
                        // No buffer for now: the acks wait for the next turn.
                        state.settled = ranges;
                        state.settling = true;
                        self.settling.push(queue);
                        continue;
                    }
                    let block = self.journal.open_block();
                    for (first, last) in ranges.drain(..) {
                        self.forget_waits.push_back((block, queue, first, last));
                    }
                }
                ranges.clear();
            } else {
                let volatile = &mut self.volatile;
                state.queue.forget(&ranges, &mut |segment, count| {
                    volatile.drop_live(segment, count, effects);
                });
                ranges.clear();
            }
            state.settled = ranges;
        }
        if self.settling.is_empty() {
            self.settling = settling;
        }
        let mut asks = std::mem::take(&mut self.settle_asks);
        for (key, sequence) in asks.drain(..) {
            let durable = self
                .sinks
                .get(key)
                .and_then(|sink| self.queues.get(sink.queue))
                .is_some_and(|state| state.durable);
            if !durable {
                self.settled(key, sequence, effects);
            } else if !self.failed {
                self.journal.hurry();
                self.settle_waits.push_back((self.journal.open_block(), key, sequence));
            }
        }
        self.settle_asks = asks;
    }

    /// Gives messages to consumers with room, queue by queue, as far as this turn may.
    pub(crate) fn dispatch<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let mut budget = DISPATCH_BYTES_PER_TURN;
        let mut left = self.awake.len();
        while left > 0 && budget > 0 {
            left -= 1;
            let queue = self.awake.pop_front().expect("it was counted");
            if let Some(state) = self.queues.get_mut(queue) {
                state.awake = false;
                self.dispatch_queue(queue, &mut budget, buffers, effects);
            }
        }
        self.forward_outgoing(effects);
    }

    fn dispatch_queue<B: Buffers>(
        &mut self,
        queue: QueueId,
        budget: &mut usize,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        loop {
            let Some(state) = self.queues.get_mut(queue) else { return };
            if state.damaged || (self.failed && state.durable) {
                return;
            }
            let Some(offer) = state.queue.next() else { break };
            if *budget == 0 {
                self.wake(queue);
                return;
            }
            let done = if offer.fragmented {
                self.deliver_fragmented(queue, &offer, budget, buffers, effects)
            } else {
                self.deliver_run(queue, &offer, budget, buffers, effects)
            };
            if !done {
                return;
            }
        }
        self.raise_mark(queue, buffers, effects);
    }

    /// Writes the record that lets a queue deliver further (rulings 15).
    fn raise_mark<B: Buffers>(
        &mut self,
        queue: QueueId,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let Some(state) = self.queues.get_mut(queue) else { return };
        let Some(mark) = state.queue.mark_needed() else { return };
        if !state.durable {
            state.queue.mark_durable(mark);
            self.wake(queue);
        } else if state.marking < mark.0
            && self
                .journal
                .append_mark(buffers, effects, state.partition, queue, mark)
                .is_ok()
        {
            state.marking = mark.0;
            self.journal.hurry();
            self.mark_waits.push_back((self.journal.open_block(), queue, mark.0));
        }
    }

    /// Delivers from one run. Returns false if the queue must wait.
    fn deliver_run<B: Buffers>(
        &mut self,
        queue: QueueId,
        offer: &Offer,
        budget: &mut usize,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        let state = self.queues.get_mut(queue).expect("its offer is being taken");
        let durable = state.durable;
        let located = if durable {
            self.journal.locate(offer.place, offer.run_bytes)
        } else {
            self.volatile.locate(offer.place, offer.run_bytes)
        };
        let (buffer, range) = match located {
            Located::Cached(buffer, range) => (buffer, range),
            Located::Cold => {
                self.read(queue, offer, buffers, effects);
                return false;
            }
        };
        let run = buffers.bytes(buffer, range.clone());
        let start = match offer.byte_offset {
            Some(offset) => offset as usize,
            None => state.queue.walk(offer, run),
        };
        let (count, end) = fitting(run, start, offer, *budget);
        if count == 0 {
            // Only damage can make a run end early: cached bytes were verified.
            self.damaged(queue, offer, effects);
            return false;
        }
        let bytes = end - start;
        let taken = state.queue.take(offer, count, &run[start..end], &mut state.settled);
        if !state.settled.is_empty() && !state.settling {
            state.settling = true;
            self.settling.push(queue);
        }
        *budget = budget.saturating_sub(bytes);
        self.stats.delivered += u64::from(count);
        self.stats.delivered_bytes += bytes as u64;
        if offer.redelivered {
            self.stats.redelivered += u64::from(count);
        }
        let head = DeliverHead {
            queue_sequence: offer.sequence.0,
            delivery_count: offer.delivery_count,
        }
        .encode();
        let sink = self.sinks.get(offer.consumer).expect("a queue's consumers have sinks");
        let header = FrameHeader {
            kind: FrameKind::Deliver,
            flags: if offer.redelivered { DELIVER_REDELIVERED } else { 0 },
            channel: sink.channel,
            sequence: taken.0,
            count,
            body_bytes: (DeliverHead::BYTES + bytes) as u32,
            body_crc: checksum::crc32c(&head),
        };
        let from = range.start + start as u32;
        self.emit(offer.consumer, &header, &head, (buffer, from, bytes as u32), buffers, effects);
        for get in self.gets.iter_mut().filter(|get| get.consumer == offer.consumer).take(1) {
            get.left = get.left.saturating_sub(count);
            get.given += count;
        }
        true
    }

    /// Sends one frame whose tail lies in a buffer; the frame needs no padding.
    fn emit<B: Buffers>(
        &mut self,
        key: u64,
        header: &FrameHeader,
        head: &[u8],
        (buffer, from, length): (BufferId, u32, u32),
        buffers: &B,
        effects: &mut Effects,
    ) {
        let gather = length as usize <= GATHER_BYTES_MAX;
        let sink = self.sinks.get_mut(key).expect("a queue's consumers have sinks");
        let bytes = buffers.bytes(buffer, from..from + length);
        let padding = padded(header.body_bytes as usize) - header.body_bytes as usize;
        if sink.core != self.config.core {
            sink.outbox.extend_from_slice(&header.encode());
            sink.outbox.extend_from_slice(head);
            sink.outbox.extend_from_slice(bytes);
            frame::pad(&mut sink.outbox);
            if !sink.outgoing {
                sink.outgoing = true;
                self.outgoing.push(key);
            }
            let full = sink.outbox.len() + sink.forwarding as usize
                > self.config.limits.forward_bytes_max as usize;
            if full && !sink.congested {
                sink.congested = true;
                let queue = sink.queue;
                let state = self.queues.get_mut(queue).expect("it is being dispatched");
                state.queue.block(key);
            }
            return;
        }
        let conn = sink.conn;
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let mut sent = effects.send(conn, |out| {
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(head);
            if gather {
                out.extend_from_slice(bytes);
                out.resize(out.len() + padding, 0);
            }
        });
        if !gather {
            effects.push(Effect::SendBuffer { conn, buffer, range: from..from + length });
            sent += length;
            if padding > 0 {
                sent += effects.send(conn, |out| out.resize(out.len() + padding, 0));
            }
        }
        session.unsent += u64::from(sent);
        session.spoke = self.now;
        if session.unsent > u64::from(self.config.limits.unsent_bytes_max) && !sink.congested {
            sink.congested = true;
            let queue = sink.queue;
            let state = self.queues.get_mut(queue).expect("it is being dispatched");
            state.queue.block(key);
        }
    }

    /// Delivers one large message, piece by piece; all of its pieces must be in memory.
    fn deliver_fragmented<B: Buffers>(
        &mut self,
        queue: QueueId,
        offer: &Offer,
        budget: &mut usize,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        let state = self.queues.get_mut(queue).expect("its offer is being taken");
        let pieces = state.queue.pieces(offer.sequence).to_vec();
        let message_bytes = state.queue.message_bytes(offer.sequence);
        let mut offset = 0;
        let mut places = Vec::with_capacity(pieces.len());
        for place in pieces {
            let head = FragmentHead { message_bytes, offset };
            let length = head.piece_bytes() as u32;
            let located = if state.durable {
                self.journal.locate(place, length)
            } else {
                self.volatile.locate(place, length)
            };
            match located {
                Located::Cached(buffer, range) => places.push((head, buffer, range)),
                Located::Cold => {
                    let offer = Offer { place, run_bytes: length, ..*offer };
                    self.read(queue, &offer, buffers, effects);
                    return false;
                }
            }
            offset += length;
        }
        let (_, buffer, range) = places.first().cloned().expect("a message has pieces");
        let state = self.queues.get_mut(queue).expect("its offer is being taken");
        let first = buffers.bytes(buffer, range);
        let tag = state.queue.take(offer, 1, first, &mut state.settled);
        if !state.settled.is_empty() && !state.settling {
            state.settling = true;
            self.settling.push(queue);
        }
        let channel =
            self.sinks.get(offer.consumer).expect("a queue's consumers have sinks").channel;
        for (fragment, buffer, range) in places {
            let mut head = [0; DeliverHead::BYTES + FragmentHead::BYTES];
            let deliver = DeliverHead {
                queue_sequence: offer.sequence.0,
                delivery_count: offer.delivery_count,
            };
            head[..DeliverHead::BYTES].copy_from_slice(&deliver.encode());
            head[DeliverHead::BYTES..].copy_from_slice(&fragment.encode());
            let length = range.end - range.start;
            let body_crc = checksum::crc32c_append(
                checksum::crc32c(&head),
                buffers.bytes(buffer, range.clone()),
            );
            let header = FrameHeader {
                kind: FrameKind::DeliverFragment,
                flags: if offer.redelivered { DELIVER_REDELIVERED } else { 0 },
                channel,
                sequence: tag.0,
                count: u32::from(fragment.is_last()),
                body_bytes: head.len() as u32 + length,
                body_crc,
            };
            self.emit(offer.consumer, &header, &head, (buffer, range.start, length), buffers, effects);
        }
        *budget = budget.saturating_sub(message_bytes as usize);
        self.stats.delivered += 1;
        self.stats.delivered_bytes += u64::from(message_bytes);
        self.stats.redelivered += u64::from(offer.redelivered);
        for get in self.gets.iter_mut().filter(|get| get.consumer == offer.consumer).take(1) {
            get.left = get.left.saturating_sub(1);
            get.given += 1;
        }
        true
    }

    /// Asks for a run that is not in memory; the queue is looked at again when a read is done.
    fn read<B: Buffers>(
        &mut self,
        queue: QueueId,
        offer: &Offer,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        if !self.reading.contains(&queue) {
            self.reading.push(queue);
        }
        self.journal.read(offer.place, offer.run_bytes, buffers, effects);
    }

    /// A read from disk is done: the queues that waited look again.
    pub(crate) fn read_done(&mut self) {
        for queue in std::mem::take(&mut self.reading) {
            self.wake(queue);
        }
    }

    /// A run read back from disk is not what was written: the queue refuses service (rulings 10).
    fn damaged(&mut self, queue: QueueId, offer: &Offer, effects: &mut Effects) {
        let Some(state) = self.queues.get_mut(queue) else { return };
        state.damaged = true;
        let text = format!(
            "queue {} refuses service: message {} at segment {} offset {} is damaged; run `ringpost verify`",
            queue.0, offer.sequence.0, offer.place.segment.0, offer.place.offset
        );
        effects.push(Effect::Report { severity: crate::effect::Severity::Error, text });
        let keys: Vec<u64> = state.queue.consumers().collect();
        for key in keys {
            self.end_consumer(key, Code::QueueDamaged, "the queue has a damaged range", effects);
        }
    }

    /// Hands frames for connections of other cores over, one request a sink at a time.
    pub(crate) fn forward_outgoing(&mut self, effects: &mut Effects) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.retain(|key| {
            let Some(sink) = self.sinks.get_mut(*key) else { return false };
            if sink.forwarding > 0 {
                return true;
            }
            sink.outgoing = false;
            if sink.outbox.is_empty() {
                return false;
            }
            let spare = self.parcels.pop().unwrap_or_default();
            let bytes = std::mem::replace(&mut sink.outbox, spare);
            sink.forwarding = bytes.len() as u32;
            let (core, conn) = (sink.core, sink.conn);
            let waiter = Waiter::Forward { consumer: *key };
            self.peers[usize::from(core.0)].ask(effects, Request::Forward { conn, bytes }, waiter);
            false
        });
        outgoing.append(&mut self.outgoing);
        self.outgoing = outgoing;
    }

    /// The other core has room for more frames of a sink.
    pub(crate) fn forwarded(&mut self, key: u64) {
        let Some(sink) = self.sinks.get_mut(key) else { return };
        sink.forwarding = 0;
        let queue = sink.queue;
        if sink.congested {
            sink.congested = false;
            if let Some(state) = self.queues.get_mut(queue) {
                state.queue.unblock(key);
            }
            self.wake(queue);
        }
    }

    /// The socket took bytes: consumers that waited for it go on.
    pub(crate) fn sent(&mut self, conn: ConnId, bytes: u32, effects: &mut Effects) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let before = session.unsent;
        session.unsent = before.saturating_sub(u64::from(bytes));
        let low = u64::from(self.config.limits.unsent_bytes_max) / 2;
        if before <= low || session.unsent > low {
            return;
        }
        let session = self.sessions.get(conn).expect("it was just looked at");
        let mut freed = std::mem::take(&mut self.ranges);
        for (_, channel) in session.channels() {
            if let Channel::Consumer { owner, key, .. } = channel
                && owner == self.config.core
            {
                freed.push((key, 0));
            }
        }
        for (key, _) in freed.drain(..) {
            self.forwarded(key);
        }
        self.ranges = freed;
        self.answer_forwards(conn, effects);
    }

    /// Answers the forwards that waited for a connection's socket.
    fn answer_forwards(&mut self, conn: ConnId, effects: &mut Effects) {
        let mut idx = 0;
        while idx < self.held_forwards.len() {
            if self.held_forwards[idx].conn == conn {
                let held = self.held_forwards.swap_remove(idx);
                let reply = Reply::Forwarded { bytes: held.bytes };
                self.reply(held.from, held.id, reply, effects);
            } else {
                idx += 1;
            }
        }
    }

    /// Forgets a connection and everything it had.
    pub(crate) fn forget_connection(&mut self, conn: ConnId, effects: &mut Effects) {
        let Some(session) = self.sessions.remove(conn) else { return };
        for (_, channel) in session.channels() {
            match channel {
                Channel::Producer(key) => self.drop_producer(key),
                Channel::Consumer { owner, key, .. } => self.unsubscribe_at(owner, key, effects),
                Channel::ConsumerOpening { .. } | Channel::Free => {}
            }
        }
        self.answer_forwards(conn, effects);
    }
}

/// Counts the messages from `start` that fit the offer, a frame and the turn; at least one if the
/// run holds one. Returns how many and where they end.
fn fitting(run: &[u8], start: usize, offer: &Offer, budget: usize) -> (u32, usize) {
    let frame_room = FRAME_BYTES_MAX - FRAME_HEADER_BYTES - DeliverHead::BYTES;
    let room = frame_room.min(budget).min(offer.bytes_max as usize);
    let mut end = start;
    let mut count = 0;
    while count < offer.count {
        let Some(length) = run.get(end..).and_then(envelope::length_of) else { break };
        let next = end + padded(length);
        if length == 0 || next > run.len() || (count > 0 && next - start > room) {
            break;
        }
        end = next;
        count += 1;
    }
    (count, end)
}

fn subscribe_text(code: Code) -> &'static str {
    match code {
        Code::QueueUnknown => "the queue was deleted meanwhile",
        Code::QueueDamaged => "the queue refuses service because of a damaged range; run `ringpost verify`",
        Code::JournalFailed => "the journal of this queue has failed; restart the broker",
        Code::LimitReached => "this core has as many consumers as its limit allows",
        Code::InUse => "the queue has an exclusive consumer, or others where this one asked to be alone",
        _ => "the consumer cannot be opened",
    }
}
