//! From a queue to its consumers, and from their acks to the journal.
//! Does not know sockets, and not how a block is read back.

use ringpost_wire::control::{
    Body, CONSUMER_EXCLUSIVE, CONSUMER_NO_ACK, ConsumerCredit, ConsumerOpen, Get, write_failure,
};
use ringpost_wire::header::{
    DELIVER_REDELIVERED, SETTLE_ACK, SETTLE_CONFIRM, SETTLE_OUTCOME, SETTLE_REJECT, SETTLE_REQUEUE,
};
use ringpost_wire::ids::{CoreId, DeliveryTag, QueueId, QueueSequence};
use ringpost_wire::{
    CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, Code, DeliverHead, FRAME_BYTES_MAX, FRAME_HEADER_BYTES,
    FragmentHead, FrameHeader, FrameKind, SETTLE_RANGES_MAX, SettleRange, checksum, envelope,
    frame, padded,
};

use crate::data::consumer::{Asked, EarlyFrame, Forwarded, GetWait, LargeDelivery, Sink};
use crate::data::flow::{Flow, QueueState, Waiter};
use crate::data::hold::Holds;
use crate::data::journal::Located;
use crate::data::journal::block::BLOCK_ALIGN;
use crate::data::journal::record::Kind;
use crate::data::journal::{Note, RunHead, Urgency};
use crate::data::notes::{self, RANGES_PER_RECORD_MAX};
use crate::data::queue::{
    AckMode, ConsumerKey, Credit, KeyReader, Offer, Outcome, Ranges, Reading, Sharing, Stretch,
    read_consumer,
};
use crate::data::route::{Condition, Target};
use crate::data::session::Channel;
use crate::data::stages::Stage;
use crate::data::trace::Delivery;
use crate::effect::Buffers;
use crate::ids::{BufferId, Clock, ConnId, Mono, Owner, Place};
use crate::mesh::Request;
use crate::{Effect, Effects};

/// Messages of this many bytes or fewer are gathered by copy, larger ones are sent from their
/// buffer: an extra piece in a vectored send costs about as much as copying this many bytes.
const GATHER_BYTES_MAX: usize = 2 * 1024;
/// Frames that are kept for a consumer until it is open.
const EARLY_FRAMES_MAX: usize = 16;
/// Pieces of a large message that are read ahead of the one that is to be sent.
const PIECES_AHEAD: usize = 3;
/// Windows that a queue which reads from disk has on their way or waiting for their turn.
const WINDOWS_AHEAD: usize = 4;
/// As many while no other queue reads: more than a turn delivers, so that the device works during it.
const WINDOWS_AHEAD_ALONE: usize = 8;
/// Bytes one turn may deliver before the loop looks at its inputs again.
const DISPATCH_BYTES_PER_TURN: usize = 1024 * 1024;
/// Messages that one turn lets die at the head of a queue.
const SWEEP_MESSAGES_MAX: u64 = 64 * 1024;
/// Acks of so many messages are written however short they have waited.
const SETTLING_MESSAGES_MAX: u64 = 64 * 1024;

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
        let session = self.sessions.get_mut(conn).ok_or(Code::Internal)?;
        let agreed = session.agreed().ok_or(Code::UnexpectedFrame)?;
        session.ask(header.channel)?;
        let unfit =
            if open.credit_messages > CREDIT_MESSAGES_MAX || open.credit_bytes > CREDIT_BYTES_MAX {
                Some("credit is above the protocol's limit")
            } else if open.flags & !(CONSUMER_NO_ACK | CONSUMER_EXCLUSIVE) != 0 {
                Some("a flag of the consumer is not known")
            } else {
                None
            };
        if let Some(reason) = unfit {
            self.fail(conn, header, Code::SettingInvalid, reason, effects);
            return Ok(());
        }
        let (traits, reading) = match read_consumer(open.arguments) {
            Ok(asked) => asked,
            Err(reason) => {
                self.fail(conn, header, Code::SettingInvalid, &reason, effects);
                return Ok(());
            }
        };
        let Some(target) = self.find_queue(agreed.tenant, open.queue) else {
            let name = String::from_utf8_lossy(open.queue);
            self.fail(
                conn,
                header,
                Code::QueueUnknown,
                &format!("there is no queue '{name}'"),
                effects,
            );
            return Ok(());
        };
        //= P-89
        if let Some(reason) = self.is_read_by_lane(target.queue) {
            self.fail(conn, header, Code::SettingInvalid, &reason, effects);
            return Ok(());
        }
        let opening = Channel::ConsumerOpening {
            queue: target.queue,
            owner: target.core,
        };
        let session = self.sessions.get_mut(conn).expect("it was just looked at");
        session.claim(header.channel, opening);
        if target.core == self.config.core {
            let place = (conn, header.channel);
            let sink = Sink::new(target.queue, target.core, place, agreed.message_bytes_max);
            let asked = Asked {
                credit_messages: open.credit_messages,
                credit_bytes: open.credit_bytes,
                flags: open.flags,
                traits,
            };
            let outcome = self.subscribe(sink, asked, reading.as_deref());
            let (owner, sequence) = (target.core, header.sequence);
            self.subscribed(owner, conn, header.channel, sequence, outcome, effects);
        } else {
            let request = Request::Subscribe {
                conn,
                channel: header.channel,
                queue: target.queue,
                credit_messages: open.credit_messages,
                credit_bytes: open.credit_bytes,
                flags: open.flags,
                traits,
                reading,
                message_bytes_max: agreed.message_bytes_max,
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
        mut sink: Sink,
        asked: Asked,
        reading: Option<&Reading>,
    ) -> Result<u64, (Code, &'static str)> {
        let Asked {
            credit_messages: messages,
            credit_bytes: bytes,
            flags,
            traits,
        } = asked;
        let refused = |code| (code, subscribe_text(code));
        let queue = sink.queue;
        let state = self.queues.get(queue);
        let state = state.ok_or(refused(Code::QueueUnknown))?;
        //= P-77
        let mortal = state.mortal.as_ref();
        if mortal.is_some_and(|mortal| mortal.is_locked_for(sink.owner())) {
            return Err(refused(Code::ResourceLocked));
        }
        if mortal.is_some_and(|mortal| mortal.is_leaving()) {
            return Err(refused(Code::QueueUnknown));
        }
        if state.damaged {
            return Err(refused(Code::QueueDamaged));
        }
        if self.failed && state.durable {
            return Err(refused(Code::JournalFailed));
        }
        if self.sinks.len() >= self.config.limits.consumers_max as usize {
            return Err(refused(Code::LimitReached));
        }
        let is_stream = state.queue.is_stream();
        //= P-82
        let unfit = if reading.is_some() && !is_stream {
            Some(
                "settings that begin with x-stream- are for readers of streams, and the queue is none",
            )
        } else if is_stream && flags & CONSUMER_EXCLUSIVE != 0 {
            Some("a stream is read by any number of consumers, so none of them is exclusive")
        } else if state.queue.settings().dispatch.is_grouped && flags & CONSUMER_NO_ACK != 0 {
            //= P-55
            Some("a queue with message groups needs acks: they say when a key is free")
        } else {
            None
        };
        if let Some(reason) = unfit {
            return Err((Code::SettingInvalid, reason));
        }
        if let Some(text) = reading.and_then(|reading| reading.filter.as_deref()) {
            let condition = Condition::read(text);
            let condition = condition.map_err(|_| refused(Code::Internal))?;
            sink.filter = Some(Box::new(condition));
        }
        // A connection that is behind gets nothing, also no new consumer of it.
        let behind = sink.core == self.config.core
            && self
                .sessions
                .get(sink.conn)
                .is_some_and(|session| session.behind);
        //= P-49
        let mode = match flags & CONSUMER_NO_ACK {
            0 => AckMode::Explicit,
            _ => AckMode::None,
        };
        let hold_max_ms = state.queue.settings().dispatch.hold_max_ms;
        if hold_max_ms > 0 && mode == AckMode::Explicit {
            sink.holds = Some(Box::new(Holds::new(hold_max_ms)));
        }
        let by_conn = sink.owner();
        let key = self.sinks.insert(sink);
        let sharing = match flags & CONSUMER_EXCLUSIVE {
            0 => Sharing::Shared,
            _ => Sharing::Exclusive,
        };
        let credit = Credit { messages, bytes };
        let clock = Clock {
            now: self.now,
            wall_us: self.wall_us,
        };
        let state = self.queues.get_mut(queue).expect("it was just looked at");
        let key_of_it = ConsumerKey(key);
        let added = if is_stream {
            let default = Reading::default();
            let reading = reading.unwrap_or(&default);
            let member = match reading.member {
                0 => member_of(by_conn),
                named => named,
            };
            let who = (key_of_it, member);
            state
                .queue
                .add_reader(who, (credit, mode), traits, reading, clock)
        } else {
            state
                .queue
                .add_consumer(key_of_it, credit, mode, sharing, traits)
        };
        if let Err(code) = added {
            self.sinks.remove(key);
            return Err(match code {
                Code::LimitReached if is_stream => (code, STREAM_FULL),
                code => refused(code),
            });
        }
        // Whoever makes a group waits for its record.
        self.is_settling_urgent |= state.queue.has_new_groups();
        self.note_groups(queue);
        self.end_unused(queue);
        if behind {
            self.congest(key);
        }
        self.wake(queue);
        Ok(key)
    }

    /// Offers a consumer nothing until its connection has room.
    fn congest(&mut self, key: u64) {
        let Some(sink) = self.sinks.get_mut(key) else {
            return;
        };
        if !sink.congested {
            sink.congested = true;
            if let Some(state) = self.queues.get_mut(sink.queue) {
                state.queue.block(ConsumerKey(key));
            }
        }
    }

    /// Offers nothing more to the consumers of a connection whose socket takes too little.
    pub(crate) fn look_behind(&mut self, conn: ConnId) {
        let limit = self.unsent_bytes_max();
        let here = self.config.core;
        let Some(session) = self.sessions.get_mut(conn) else {
            return;
        };
        if session.behind || session.unsent <= limit {
            return;
        }
        session.behind = true;
        let mut keys = std::mem::take(&mut self.keys);
        let session = self.sessions.get(conn).expect("it was just looked at");
        for (_, channel) in session.channels() {
            if let Channel::Consumer { owner, key, .. } = channel
                && owner == here
            {
                keys.push(key);
            }
        }
        for key in keys.drain(..) {
            self.congest(key);
        }
        self.keys = keys;
    }

    /// Another core has taken the frames of a consumer. If the connection is behind, all consumers
    /// that it has here are offered nothing until it says more. That may overtake this answer, which
    /// is late then: there is nothing in flight any more.
    pub(crate) fn forward_answered(
        &mut self,
        from: CoreId,
        (consumer, number): (u64, u64),
        room: bool,
    ) {
        let Some(sink) = self.sinks.get(consumer) else {
            return;
        };
        if sink.forwarding == 0 || sink.forward != number {
            return;
        }
        if room {
            self.forwarded(consumer);
            return;
        }
        for key in self.consumers_at((from, sink.conn)) {
            self.congest(key);
        }
    }

    /// Another core's connection has room again.
    pub(crate) fn resume(&mut self, place: (CoreId, ConnId)) {
        for key in self.consumers_at(place) {
            self.forwarded(key);
        }
    }

    fn consumers_at(&self, (core, conn): (CoreId, ConnId)) -> Vec<u64> {
        let there = |key: &u64| {
            let sink = self.sinks.get(*key);
            sink.is_some_and(|sink| sink.core == core && sink.conn == conn)
        };
        self.sinks.keys().filter(there).collect()
    }

    /// The owning core has answered: the channel is a consumer, or free again.
    pub(crate) fn subscribed(
        &mut self,
        owner: CoreId,
        conn: ConnId,
        channel: u16,
        sequence: u64,
        outcome: Result<u64, (Code, &'static str)>,
        effects: &mut Effects,
    ) {
        let opening = self
            .sessions
            .get(conn)
            .map(|session| session.channel(channel));
        let Some(Channel::ConsumerOpening { queue, .. }) = opening else {
            // The connection went while the other core was asked.
            if let Ok(key) = outcome {
                self.unsubscribe_at(owner, key, effects);
            }
            self.catch_up(conn, channel, effects);
            return;
        };
        let early = self.take_early(conn, channel);
        let session = self.sessions.get_mut(conn).expect("it was just looked at");
        match outcome {
            Ok(key) => {
                session.set(channel, Channel::Consumer { queue, owner, key });
                self.say(conn, effects, |out| {
                    let mut header =
                        FrameHeader::bare(FrameKind::ConsumerOpened, channel, sequence);
                    header.count = u32::from(owner.0);
                    frame::write(out, header, &[]);
                });
                self.catch_up(conn, channel, effects);
                self.step_early(early, effects);
            }
            Err((code, reason)) => {
                session.set(channel, Channel::Closed);
                let header = FrameHeader::bare(FrameKind::ConsumerOpen, channel, sequence);
                self.fail(conn, header, code, reason, effects);
            }
        }
    }

    /// Frames of another core for a connection of this one. Requests may overtake replies: what comes
    /// before the core's answer that it has opened the consumer waits for that.
    pub(crate) fn hear_forward(&mut self, forward: Forwarded, effects: &mut Effects) {
        let session = self.sessions.get(forward.conn);
        let channel = session.map(|session| session.channel(forward.channel));
        let is_ahead = match channel {
            Some(Channel::ConsumerOpening { owner, .. }) => owner == forward.from,
            _ => false,
        };
        if is_ahead && !crate::mutant!(OpenedAfterItsFrames) {
            self.ahead.push(forward);
            return;
        }
        self.take_forward(
            forward.from,
            forward.id,
            forward.conn,
            forward.bytes,
            effects,
        );
        if forward.ends {
            self.detach(forward.conn, forward.channel, forward.consumer);
        }
    }

    /// Takes what came for a channel ahead of the answer that has come now.
    fn catch_up(&mut self, conn: ConnId, channel: u16, effects: &mut Effects) {
        let mut idx = 0;
        while idx < self.ahead.len() {
            if self.ahead[idx].conn == conn && self.ahead[idx].channel == channel {
                let forward = self.ahead.remove(idx);
                self.hear_forward(forward, effects);
            } else {
                idx += 1;
            }
        }
    }

    /// Takes the frames that came for a channel before it was a consumer.
    fn take_early(&mut self, conn: ConnId, channel: u16) -> Vec<EarlyFrame> {
        let mut early = Vec::new();
        let mut idx = 0;
        while idx < self.early.len() {
            let frame = &self.early[idx];
            if frame.conn == conn && frame.header.channel == channel {
                let frame = self.early.remove(idx);
                self.early_bytes -= frame.cost();
                early.push(frame);
            } else {
                idx += 1;
            }
        }
        early
    }

    /// Keeps a frame for a consumer that its owning core has not opened yet.
    //= P-10
    fn keep_early(&mut self, conn: ConnId, header: FrameHeader, body: &[u8]) -> Result<(), Code> {
        let same =
            |frame: &&EarlyFrame| frame.conn == conn && frame.header.channel == header.channel;
        if self.early.iter().filter(same).count() == EARLY_FRAMES_MAX {
            return Err(Code::Overloaded);
        }
        let frame = EarlyFrame {
            conn,
            header,
            body: body.to_vec(),
        };
        self.early_bytes += frame.cost();
        self.early.push(frame);
        Ok(())
    }

    fn step_early(&mut self, early: Vec<EarlyFrame>, effects: &mut Effects) {
        for EarlyFrame { conn, header, body } in early {
            let verdict = match header.kind {
                FrameKind::ConsumerCredit => self.consumer_credit(conn, header, &body, effects),
                FrameKind::Get => self.get(conn, header, &body, effects),
                FrameKind::Settle => self.settle(conn, header, &body, effects),
                FrameKind::ConsumerInspect => self.consumer_inspect(conn, header, effects),
                _ => self.consumer_close(conn, header, effects),
            };
            if let Err(code) = verdict {
                let reason = format!("{:?} frame refused", header.kind);
                self.violate(conn, code, &reason, effects);
                return;
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
        //= P-9
        self.stats.refusals.add(code, 1);
        let header = FrameHeader::bare(FrameKind::Failed, request.channel, request.sequence);
        self.say(conn, effects, |out| {
            write_failure(out, header, code, reason)
        });
    }

    /// Refuses a request with a flag that is not known.
    //= P-92
    pub(crate) fn refuse_flags(
        &mut self,
        conn: ConnId,
        request: FrameHeader,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        if matches!(
            request.kind,
            FrameKind::ProducerOpen | FrameKind::ConsumerOpen | FrameKind::TransactionOpen
        ) {
            // Frames may be on their way to the channel already (P-10).
            let session = self.sessions.get_mut(conn).ok_or(Code::Internal)?;
            session.ask(request.channel)?;
        }
        let reason = "a flag of the frame is not known";
        self.fail(conn, request, Code::SettingInvalid, reason, effects);
        Ok(())
    }

    /// Where the consumer of a channel lives; `None` if the frame is late and ignored, or kept until
    /// the consumer is open.
    //= P-15
    pub(crate) fn consumer(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
    ) -> Result<Option<(CoreId, u64)>, Code> {
        match self
            .sessions
            .get(conn)
            .map(|session| session.channel(header.channel))
        {
            Some(Channel::Consumer { owner, key, .. }) => Ok(Some((owner, key))),
            Some(Channel::ConsumerOpening { .. }) => {
                self.keep_early(conn, header, body)?;
                Ok(None)
            }
            Some(Channel::ConsumerClosing { .. } | Channel::Closed) => Ok(None),
            Some(
                Channel::ProducerOpening(_)
                | Channel::Producer(_)
                | Channel::Transaction(_)
                | Channel::Free,
            )
            | None => Err(Code::UnexpectedFrame),
        }
    }

    /// `ConsumerClose`: answered behind the last delivery, by whoever sends these.
    //= P-48
    pub(crate) fn consumer_close(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let Some((owner, key)) = self.consumer(conn, header, &[])? else {
            return Ok(());
        };
        let session = self
            .sessions
            .get_mut(conn)
            .expect("the channel was just found");
        session.set(header.channel, Channel::ConsumerClosing { key });
        if owner == self.config.core {
            self.close_consumer(key, header.sequence, effects);
        } else {
            let request = Request::Unsubscribe {
                consumer: key,
                close: header.sequence,
            };
            self.ask(owner, request, Waiter::Nobody, effects);
        }
        Ok(())
    }

    /// Closes a consumer of this core as its client asked for: it gets nothing more, and is told so
    /// when it was told of every settle frame before.
    pub(crate) fn close_consumer(&mut self, key: u64, sequence: u64, effects: &mut Effects) {
        match self.sinks.get_mut(key) {
            Some(sink) if sink.unconfirmed > 0 && !crate::mutant!(ClosedBeforeSettled) => {
                sink.closing = Some(sequence);
                self.let_go(key);
            }
            _ => {
                let reason = "closed by the client";
                self.finish_consumer(key, sequence, Code::Normal, reason, effects);
            }
        }
    }

    /// Closes a consumer whose connection is gone, wherever its queue lives.
    pub(crate) fn unsubscribe_at(&mut self, owner: CoreId, key: u64, effects: &mut Effects) {
        if owner == self.config.core {
            self.unsubscribe(key);
        } else if !crate::mutant!(UnackedOrphaned) {
            let request = Request::Unsubscribe {
                consumer: key,
                close: 0,
            };
            self.ask(owner, request, Waiter::Nobody, effects);
        }
    }

    /// Removes a consumer of a queue of this core; what it holds returns to the queue.
    pub(crate) fn unsubscribe(&mut self, key: u64) {
        self.let_go(key);
        self.sinks.remove(key);
    }

    /// The queue of a consumer forgets it, and gets back what it holds.
    fn let_go(&mut self, key: u64) {
        self.large_is_sent(key);
        self.holds_nothing(key);
        self.drop_ahead(key);
        let Some(sink) = self.sinks.get_mut(key) else {
            return;
        };
        let (queue, get) = (sink.queue, sink.get.take());
        if let Some(state) = self.queues.get_mut(queue) {
            //= P-47
            let gone = state
                .queue
                .remove_consumer(ConsumerKey(key), &mut state.settled);
            let is_last = gone.is_some() && state.queue.consumers().next().is_none();
            let gone = gone.unwrap_or_default();
            self.tracer.consumer_gone(key, self.now);
            let is_returning = gone.messages > 0 && !state.queue.is_stream();
            if is_returning {
                self.stats.returned += gone.messages;
                self.note_settled(queue, 0);
                self.note_counts(queue);
            }
            if is_last {
                self.last_consumer_gone(queue);
            }
        }
        if let Some(get) = get {
            self.gets_until.remove(&(get.deadline, key));
        }
        self.wake(queue);
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
        let Some((owner, key)) = self.consumer(conn, header, body)? else {
            return Ok(());
        };
        if owner == self.config.core {
            self.set_credit(key, credit.messages, credit.bytes);
        } else {
            let request = Request::Credit {
                consumer: key,
                messages: credit.messages,
                bytes: credit.bytes,
            };
            self.ask(owner, request, Waiter::Nobody, effects);
        }
        Ok(())
    }

    /// Changes the credit of a consumer of this core.
    pub(crate) fn set_credit(&mut self, key: u64, messages: u32, bytes: u64) {
        let Some(queue) = self.sinks.get(key).map(|sink| sink.queue) else {
            return;
        };
        if let Some(state) = self.queues.get_mut(queue) {
            state
                .queue
                .set_credit(ConsumerKey(key), Credit { messages, bytes });
        }
        if crate::mutant!(CreditWakesNobody) {
            return;
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
        let Some((owner, key)) = self.consumer(conn, header, body)? else {
            return Ok(());
        };
        if header.count == 0 || header.count > CREDIT_MESSAGES_MAX {
            let reason = format!("a get is for 1 to {CREDIT_MESSAGES_MAX} messages");
            self.fail(conn, header, Code::SettingInvalid, &reason, effects);
            return Ok(());
        }
        if owner == self.config.core {
            self.start_get(key, header.sequence, header.count, get.wait_ms, effects);
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
    pub(crate) fn start_get(
        &mut self,
        key: u64,
        sequence: u64,
        count: u32,
        wait_ms: u32,
        effects: &mut Effects,
    ) {
        let Some(sink) = self.sinks.get(key) else {
            return;
        };
        let (queue, channel) = (sink.queue, sink.channel);
        //= P-43
        if sink.get.is_some() {
            let header = FrameHeader::bare(FrameKind::Failed, channel, sequence);
            let reason = "another get of this consumer is not answered yet";
            self.tell(key, effects, |out| {
                write_failure(out, header, Code::LimitReached, reason);
            });
            return;
        }
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        state.queue.grant_get(ConsumerKey(key), count);
        let deadline = self.now.plus_ms(u64::from(wait_ms));
        let sink = self.sinks.get_mut(key).expect("it was just looked at");
        sink.get = Some(GetWait {
            sequence,
            left: count,
            given: 0,
            deadline,
            is_due: false,
        });
        self.gets_until.insert((deadline, key));
        self.wake(queue);
    }

    /// A get is to be looked at when the turn ends.
    fn get_is_due(&mut self, key: u64) {
        if let Some(sink) = self.sinks.get_mut(key)
            && let Some(get) = &mut sink.get
            && !get.is_due
        {
            get.is_due = true;
            self.gets_until.remove(&(get.deadline, key));
            self.gets_due.push(key);
        }
    }

    /// Ends the gets that have what they asked for or have waited long enough. Those that wait for a
    /// first message are not looked at: there may be many.
    pub(crate) fn finish_gets(&mut self, effects: &mut Effects) {
        while let Some((deadline, key)) = self.gets_until.first().copied()
            && self.now >= deadline
        {
            self.get_is_due(key);
        }
        let mut due = std::mem::take(&mut self.gets_due);
        due.retain(|key| !self.finish_get(*key, effects));
        due.append(&mut self.gets_due);
        self.gets_due = due;
    }

    /// Answers a get that is due, unless more is to come at once; whether it is done with.
    fn finish_get(&mut self, key: u64, effects: &mut Effects) -> bool {
        let Some(sink) = self.sinks.get(key) else {
            return true;
        };
        let Some(get) = sink.get else {
            return true;
        };
        let (queue, channel) = (sink.queue, sink.channel);
        if sink.large.is_some() || (get.left > 0 && self.is_owed(key)) {
            return false;
        }
        let sink = self.sinks.get_mut(key).expect("it was just looked at");
        sink.get = None;
        if let Some(state) = self.queues.get_mut(queue) {
            state.queue.cancel_get(ConsumerKey(key));
        }
        let mut header = FrameHeader::bare(FrameKind::GetDone, channel, get.sequence);
        header.count = get.given;
        self.tell(key, effects, |out| frame::write(out, header, &[]));
        true
    }

    /// Whether messages are ready for a consumer that could not be given to it yet: they must be
    /// read, or their marks or counts be written, or its socket or another turn has room for them.
    fn is_owed(&self, consumer: u64) -> bool {
        let Some(sink) = self.sinks.get(consumer) else {
            return false;
        };
        let Some(state) = self.queues.get(sink.queue) else {
            return false;
        };
        if state.damaged || self.is_shutting_down() || (self.failed && state.durable) {
            return false;
        }
        let ready = match state.queue.is_stream() {
            true => state.queue.has_for(ConsumerKey(consumer)),
            false => state.queue.has_deliverable(),
        };
        ready
            && (sink.congested
                || state.awake
                || state.queue.awaits_group(ConsumerKey(consumer))
                || state.queue.awaits_journal()
                || self
                    .reading
                    .iter()
                    .any(|(_, reading)| *reading == sink.queue))
    }

    /// Sends frames to a consumer, wherever its connection is.
    pub(crate) fn tell(
        &mut self,
        key: u64,
        effects: &mut Effects,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let here = self.config.core;
        let Some(sink) = self.sinks.get_mut(key) else {
            return;
        };
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
        let is_asking = header.flags & SETTLE_CONFIRM != 0;
        if is_asking && header.sequence == 0 {
            return Err(Code::UnexpectedFrame);
        }
        if header.flags & !(SETTLE_OUTCOME | SETTLE_CONFIRM) != 0 {
            // Who did not ask could not be answered.
            return if is_asking {
                self.refuse_flags(conn, header, effects)
            } else {
                Err(Code::BodyMalformed)
            };
        }
        if header.flags & SETTLE_OUTCOME > SETTLE_REJECT
            || header.count as usize > SETTLE_RANGES_MAX
        {
            return Err(Code::BodyMalformed);
        }
        let ranges = SettleRange::parse(body, header.count)?;
        let Some((owner, key)) = self.consumer(conn, header, body)? else {
            return Ok(());
        };
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
        let Some(queue) = self.sinks.get(key).map(|sink| sink.queue) else {
            return;
        };
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        let outcome = match flags & SETTLE_OUTCOME {
            SETTLE_ACK => Outcome::Ack,
            SETTLE_REQUEUE => Outcome::Requeue,
            _ => Outcome::Reject,
        };
        let is_stream = state.queue.is_stream();
        state.queue.set_now(self.now);
        let mut messages = 0;
        let mut verdict = Ok(());
        let died = state.queue.died();
        let sink = self.sinks.get_mut(key).expect("it was just looked at");
        let now = self.now;
        for range in ranges {
            match state
                .queue
                .settle(ConsumerKey(key), range, outcome, &mut state.settled)
            {
                Ok(settled) => {
                    messages += settled.messages;
                    let is_apart = range.first != 0;
                    sink.held_since
                        .leave(range.first, range.last, is_apart, now, |ns, count| {
                            effects.sample(Stage::Held, ns, count);
                        });
                    if self.tracer.is_armed() {
                        self.tracer.settled(key, range, outcome, now);
                    }
                }
                Err(code) => {
                    verdict = Err(code);
                    break;
                }
            }
        }
        if flags & SETTLE_CONFIRM != 0 && verdict.is_ok() {
            sink.unconfirmed += 1;
            // What was rejected must survive as well: where it goes now, or not at all. What died
            // before is not waited for.
            self.settle_asks
                .push((key, sequence, died..state.queue.died()));
        }
        self.note_settled(queue, messages);
        self.note_groups(queue);
        if outcome == Outcome::Requeue && !is_stream {
            self.stats.returned += messages;
            self.note_counts(queue);
        } else {
            self.stats.settled += messages;
        }
        // A queue that keeps up has nothing to give for the room that it got.
        let state = self.queues.get(queue);
        if state.is_some_and(|state| {
            let queue = &state.queue;
            let due = queue.next_due();
            let is_late = due.is_some() && due != state.expires_at;
            queue.has_deliverable() || queue.has_notice() || queue.dead_waiting() > 0 || is_late
        }) {
            self.wake(queue);
        }
        if let Err(code) = verdict {
            let reason = match code {
                //= P-83
                Code::SettingInvalid => {
                    "messages of a stream do not return, since nobody takes them: settle them, or open \
                     the consumer again at their offset"
                }
                _ => "a settled delivery tag is not outstanding",
            };
            self.end_consumer(key, code, reason, effects);
        }
    }

    /// Ends a consumer of this core unasked and tells its client why.
    pub(crate) fn end_consumer(
        &mut self,
        key: u64,
        code: Code,
        reason: &str,
        effects: &mut Effects,
    ) {
        if let Some(sink) = self.sinks.get(key) {
            let text = format!(
                "consumer of queue {} ended, channel {} of connection {}: {code}: {reason}",
                sink.queue.0, sink.channel, sink.conn.0
            );
            effects.push(Effect::Report {
                severity: crate::effect::Severity::Warning,
                text,
            });
        }
        self.stats.refusals.add(code, 1);
        self.finish_consumer(key, 0, code, reason, effects);
    }

    /// Ends the consumers of all durable queues: the journal has failed, so nothing is delivered any
    /// more, and what they settle is not recorded.
    pub(crate) fn end_durable_consumers(&mut self, effects: &mut Effects) {
        if crate::mutant!(SettledAfterFailure) {
            return;
        }
        let keys: Vec<u64> = self.sinks.keys().collect();
        for key in keys {
            let Some(sink) = self.sinks.get(key) else {
                continue;
            };
            // The queue of one that is being closed may be gone, and with the journal all that it
            // waits for.
            let state = self.queues.get(sink.queue);
            if state.map_or(sink.closing.is_some(), |state| state.durable) {
                self.stats.refusals.add(Code::JournalFailed, 1);
                let reason = subscribe_text(Code::JournalFailed);
                self.finish_consumer(key, 0, Code::JournalFailed, reason, effects);
            }
        }
    }

    fn finish_consumer(
        &mut self,
        key: u64,
        sequence: u64,
        code: Code,
        reason: &str,
        effects: &mut Effects,
    ) {
        let Some(sink) = self.sinks.get(key) else {
            return;
        };
        let (core, conn, channel) = (sink.core, sink.conn, sink.channel);
        let header = FrameHeader::bare(FrameKind::ConsumerClosed, channel, sequence);
        if core == self.config.core {
            self.say(conn, effects, |out| {
                write_failure(out, header, code, reason)
            });
            self.detach(conn, channel, key);
        } else {
            let mut bytes = std::mem::take(
                &mut self
                    .sinks
                    .get_mut(key)
                    .expect("it was just looked at")
                    .outbox,
            );
            write_failure(&mut bytes, header, code, reason);
            let request = Request::Forward {
                conn,
                channel,
                consumer: key,
                bytes,
                ends: true,
            };
            self.ask(core, request, Waiter::Nobody, effects);
        }
        self.unsubscribe(key);
    }

    /// Frees the channel of a consumer that its owning core has ended.
    pub(crate) fn detach(&mut self, conn: ConnId, channel: u16, consumer: u64) {
        let Some(session) = self.sessions.get_mut(conn) else {
            return;
        };
        if let Channel::Consumer { key, .. } | Channel::ConsumerClosing { key } =
            session.channel(channel)
            && key == consumer
        {
            session.set(channel, Channel::Closed);
        }
    }

    /// Tells a consumer that a settle frame is durable.
    pub(crate) fn settled(&mut self, key: u64, sequence: u64, effects: &mut Effects) {
        let Some(sink) = self.sinks.get_mut(key) else {
            return;
        };
        sink.unconfirmed -= 1;
        let (channel, closing) = (sink.channel, sink.closing.filter(|_| sink.unconfirmed == 0));
        self.tell(key, effects, |out| {
            frame::write_bare(out, FrameKind::Settled, channel, sequence);
        });
        if let Some(close) = closing {
            self.close_consumer(key, close, effects);
        }
    }

    /// Puts a queue on the list of those with something to journal: messages came back.
    pub(crate) fn note_counts(&mut self, queue: QueueId) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        if state.durable {
            state.counting = true;
            // The messages are offered again when that is on disk.
            self.is_settling_urgent = true;
            if !state.settling {
                state.settling = true;
                self.settling.push(queue);
            }
        }
    }

    /// Puts a queue on the list of those with settled messages, if it has some: so many more.
    pub(crate) fn note_settled(&mut self, queue: QueueId, messages: u64) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        if state.settled.is_empty() {
            return;
        }
        if state.durable {
            self.settling_messages += messages;
        }
        if !state.settling {
            state.settling = true;
            if state.durable {
                self.settling.push(queue);
            } else {
                self.forgetting.push(queue);
            }
        }
    }

    /// Whether acks are to be written now. Those of a few queues are, into the block that is open or
    /// into one that waits for company itself. A record for each of many queues in every turn would cost as
    /// much as their messages do, so they are gathered for as long as that wait may be: then one record
    /// says what each settled in many turns.
    fn are_acks_due(&mut self) -> bool {
        let is_many = self.settling.len() > self.config.limits.acks_apart_max as usize
            && self.settling_messages < SETTLING_MESSAGES_MAX
            && self.settle_asks.is_empty()
            && !self.is_settling_urgent
            && !self.failed
            && !self.is_shutting_down();
        if !is_many {
            return true;
        }
        let since = *self.settling_since.get_or_insert(self.now);
        self.now.ms_since(since) >= self.config.limits.trickle_ms
    }

    /// When acks that are gathered are due.
    pub(crate) fn acks_deadline(&self) -> Option<Mono> {
        let since = self.settling_since?;
        Some(since.plus_ms(self.config.limits.trickle_ms))
    }

    /// Writes the acks and delivery counts of this turn into the open block.
    pub(crate) fn journal_settled<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let mut forgetting = std::mem::take(&mut self.forgetting);
        for queue in forgetting.drain(..) {
            self.forget_volatile(queue, effects);
        }
        self.forgetting = forgetting;
        if !self.are_acks_due() {
            self.places_are_appended(effects);
            return;
        }
        // What was gathered has waited enough.
        let nobody_asks = self.settle_asks.is_empty() && !self.places.has_asks();
        let urgency = match (self.settling_since.take(), nobody_asks) {
            (None, true) => Urgency::Trickle,
            (Some(_), _) | (_, false) => Urgency::Now,
        };
        self.settling_messages = 0;
        self.is_settling_urgent = false;
        let mut settling = std::mem::take(&mut self.settling);
        settling.retain(|queue| self.settle_queue(*queue, urgency, buffers, effects));
        settling.append(&mut self.settling);
        self.settling = settling;
        //= P-45
        let mut asks = std::mem::take(&mut self.settle_asks);
        asks.retain(|(key, sequence, dead)| {
            let (key, sequence, dead) = (*key, *sequence, dead.clone());
            let state = self.sinks.get(key);
            let state = state.and_then(|sink| self.queues.get(sink.queue));
            let durable = state.is_some_and(|state| state.durable);
            // What the journal had no room for is in no block yet, and tried again.
            let is_left = state.is_some_and(|state| state.settling);
            let is_dying = state.is_some_and(|state| !state.queue.are_dead_done(dead));
            if durable && self.failed && !crate::mutant!(SettledAfterFailure) {
                // It is in no journal, and its consumer has ended.
                return false;
            }
            if durable && is_left && !crate::mutant!(SettledWithoutRoom) {
                return true;
            }
            if is_dying && !crate::mutant!(DeadSettledAtOnce) {
                return true;
            }
            // A requeue of what was never recorded waits for nothing.
            let is_at_rest = self.journal.open_block() <= self.journal.durable_block();
            if !durable || is_at_rest || crate::mutant!(SettledBeforeSync) {
                self.settled(key, sequence, effects);
            } else {
                self.settle_waits
                    .push_back((self.journal.open_block().0, key, sequence));
            }
            false
        });
        self.settle_asks = asks;
        self.groups_are_appended(effects);
        self.places_are_appended(effects);
    }

    /// What was settled in a volatile queue is forgotten at once: nothing on a disk says so.
    fn forget_volatile(&mut self, queue: QueueId, effects: &mut Effects) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        state.settling = false;
        let volatile = &mut self.volatile;
        let mut settled = std::mem::take(&mut state.settled);
        state.forget(settled.as_slice(), self.now, &mut |segment, count| {
            volatile.drop_live(Place { segment, offset: 0 }, count, effects);
        });
        if self.tracer.is_armed() {
            self.tracer.forgotten(queue, settled.as_slice(), self.now);
        }
        settled.clear();
        state.settled = settled;
        if state.queue.has_ready_key() {
            self.wake(queue);
        }
    }

    /// Journals what was settled in one durable queue. Returns whether something is left for the next turn.
    fn settle_queue<B: Buffers>(
        &mut self,
        queue: QueueId,
        urgency: Urgency,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        let Some(state) = self.queues.get_mut(queue) else {
            return false;
        };
        state.settling = false;
        if self.failed {
            if state.queue.has_groups_to_record() {
                // They are in no block and never will be.
                state.queue.groups_recorded(u32::MAX);
            }
            state.settled.clear();
            state.counts.clear();
            state.counts_upto = None;
            return false;
        }
        let head = RunHead::of_queue(state.partition, queue, QueueSequence(0));
        let mut written = 0;
        let body_bytes = self.journal.body_bytes_max() as usize;
        let most = RANGES_PER_RECORD_MAX.min(body_bytes / notes::RANGE_BYTES);
        for ranges in state.settled.as_slice().chunks(most) {
            self.body.clear();
            notes::encode_ranges(ranges, &mut self.body);
            let count = ranges.len() as u32;
            let note = Note {
                kind: Kind::Ack,
                head,
                count,
                urgency,
            };
            // The journal keeps buffers and slots for acks (rulings 17), so only its failure says no.
            if self
                .journal
                .append_record(buffers, effects, &note, &self.body)
                .is_err()
            {
                // Each range is said once: only those that are left are tried again.
                state.settled.drop_first(written);
                state.settling = true;
                return true;
            }
            written += ranges.len();
            let block = self.journal.open_block().0;
            self.forget_waits
                .extend(ranges.iter().map(|range| (block, queue, *range)));
        }
        state.settled.clear();
        while state.queue.has_groups_to_record() {
            self.body.clear();
            let most = self.journal.body_bytes_max();
            let count = state.queue.groups_to_record(most, &mut self.body);
            let note = Note {
                kind: Kind::Offsets,
                head,
                count,
                urgency,
            };
            let appended = self
                .journal
                .append_record(buffers, effects, &note, &self.body);
            if appended.is_err() {
                state.settling = true;
                return true;
            }
            if let Some(record) = state.queue.groups_recorded(most) {
                let block = self.journal.open_block().0;
                self.new_groups.push_back((block, queue, record));
            }
        }
        if state.counting && state.counts.is_empty() {
            state.counting = false;
            state.counts_upto = Some(state.queue.take_counts(&mut state.counts));
        }
        let Some(upto) = state.counts_upto else {
            return false;
        };
        let mut written = 0;
        let most = RANGES_PER_RECORD_MAX.min(body_bytes / notes::COUNT_BYTES);
        for counts in state.counts.chunks(most) {
            self.body.clear();
            notes::encode_counts(counts, &mut self.body);
            let count = counts.len() as u32;
            let note = Note {
                kind: Kind::Counts,
                head,
                count,
                urgency: Urgency::Now,
            };
            if self
                .journal
                .append_record(buffers, effects, &note, &self.body)
                .is_err()
            {
                // The messages wait for their counts, so these are tried again.
                state.counts.drain(..written);
                state.settling = true;
                return true;
            }
            written += counts.len();
        }
        state.counts.clear();
        state.counts_upto = None;
        // These had found no room before, and other messages have come back since.
        let is_left = state.counting && !crate::mutant!(CountsLeft);
        state.settling = is_left;
        self.count_waits
            .push_back((self.journal.open_block().0, queue, upto));
        is_left
    }

    /// Gives messages to consumers with room, queue by queue, as far as this turn may.
    pub(crate) fn dispatch<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let room = self
            .config
            .limits
            .unsent_bytes_total
            .saturating_sub(self.unsent);
        let mut budget = DISPATCH_BYTES_PER_TURN.min(usize::try_from(room).unwrap_or(usize::MAX));
        self.step_places(buffers, effects);
        self.send_larges(&mut budget, buffers, effects);
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
        self.say_members(queue, effects);
        self.say_active(queue, effects);
        self.sweep_queue(queue, buffers, effects);
        if let Some(state) = self.queues.get_mut(queue) {
            state.queue.look_again();
        }
        loop {
            let Some(state) = self.queues.get_mut(queue) else {
                return;
            };
            let down = self.shut_down.is_some();
            if state.damaged || down || (self.failed && state.durable) {
                return;
            }
            let offer = state.queue.next_offer();
            let is_stream = state.queue.is_stream();
            if is_stream {
                self.say_positions(queue, effects);
            }
            let Some(offer) = offer else {
                break;
            };
            if *budget == 0 {
                // What a turn may send is used up, not what is marked: the next mark is asked for in time.
                self.raise_mark(queue, buffers, effects);
                self.wake(queue);
                return;
            }
            if is_stream {
                self.swap_ahead(queue, offer.key);
            }
            let done = if offer.fragmented {
                self.deliver_fragmented(queue, &offer, budget, buffers, effects)
            } else {
                self.deliver_run(queue, &offer, budget, buffers, effects)
            };
            if is_stream {
                self.swap_ahead(queue, offer.key);
                if !done {
                    // Its other readers do not wait for what this one needs from disk.
                    self.reader_waits(queue, &offer);
                }
            } else if !done {
                return;
            }
        }
        self.note_groups(queue);
        self.raise_mark(queue, buffers, effects);
        // The head that expires next is another one now.
        if self
            .queues
            .get(queue)
            .is_some_and(|state| state.queue.expires())
        {
            self.sweep_queue(queue, buffers, effects);
        }
    }

    /// Lets ready messages of a queue die that must, puts dead ones on their way, and notes when the queue
    /// is to be looked at next because of that.
    fn sweep_queue<B: Buffers>(&mut self, queue: QueueId, buffers: &mut B, effects: &mut Effects) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        let down = self.shut_down.is_some();
        if state.damaged || down || (self.failed && state.durable) {
            return;
        }
        let delays = state.queue.next_due().is_some();
        if state.queue.may_die() || delays || state.expires_at.is_some() {
            state.queue.set_now(self.now);
            let is_grouped = state.queue.has_groups();
            let released = state.queue.release_due(SWEEP_MESSAGES_MAX);
            let died = state
                .queue
                .sweep_head(SWEEP_MESSAGES_MAX, &mut state.settled);
            // The others are in line already; what is due and cannot go now is woken by what it waits for.
            let expiry = state.queue.next_expiry().filter(|at| *at > self.now);
            let at = expiry.into_iter().chain(state.queue.next_due()).min();
            if at != state.expires_at {
                if let Some(before) = state.expires_at.take() {
                    self.expiring.remove(&(before, queue));
                }
                self.expiring.extend(at.map(|at| (at, queue)));
                state.expires_at = at;
            }
            if died > 0 {
                self.note_settled(queue, died);
            }
            if died == SWEEP_MESSAGES_MAX || released > 0 || (died > 0 && is_grouped) {
                self.wake(queue);
            }
        }
        let state = self.queues.get(queue).expect("it was just looked at");
        if state.queue.dead_waiting() > 0 {
            self.begin_dead_letters(queue, buffers, effects);
        }
    }

    /// Wakes the queues of which a message expires now.
    pub(crate) fn wake_expiring(&mut self) {
        while let Some((at, queue)) = self.expiring.first().copied()
            && at <= self.now
        {
            self.expiring.pop_first();
            if let Some(state) = self.queues.get_mut(queue) {
                state.expires_at = None;
            }
            self.wake(queue);
        }
    }

    /// Writes the record that lets a queue deliver further (rulings 15).
    fn raise_mark<B: Buffers>(&mut self, queue: QueueId, buffers: &mut B, effects: &mut Effects) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        let due = state.mark_due.take();
        let Some(mark) = due.or_else(|| state.queue.mark_needed()) else {
            return;
        };
        if !state.durable {
            state.queue.mark_durable(mark);
            self.wake(queue);
            return;
        }
        let note = Note {
            kind: Kind::Mark,
            head: RunHead::of_queue(state.partition, queue, mark),
            count: 1,
            urgency: Urgency::Now,
        };
        if self
            .journal
            .append_record(buffers, effects, &note, &[])
            .is_ok()
        {
            if crate::mutant!(MarkBeforeSync) {
                state.queue.mark_durable(mark);
                self.wake(queue);
                return;
            }
            self.mark_waits
                .push_back((self.journal.open_block().0, queue, mark.0));
        } else if !self.failed {
            // The queue names a mark once, and delivers nothing beyond the last one written.
            state.mark_due = Some(mark);
            self.wake(queue);
        }
    }

    /// Where a record is in memory: its buffer and the range of its body there.
    pub(super) fn locate<B: Buffers>(
        &mut self,
        queue: QueueId,
        durable: bool,
        place: Place,
        sequence: QueueSequence,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Option<(BufferId, std::ops::Range<u32>)> {
        if !durable {
            let found = self.volatile.locate(buffers, place, sequence);
            return found.map(|(buffer, body, _)| (buffer, body));
        }
        match self.journal.locate(buffers, place, queue, sequence) {
            Located::Cached { buffer, body, .. } => return Some((buffer, body)),
            Located::Damaged => self.damaged(queue, place, sequence, effects),
            Located::Cold | Located::Coming => {
                let state = self.queues.get_mut(queue).expect("it is being dispatched");
                state.ahead.turn_to(sequence);
                self.read_ahead(queue, sequence, buffers, effects);
                // If that has asked for it, it is on its way; else it takes what is left for those
                // that wait.
                self.read_alone(queue, place, buffers, effects);
            }
        }
        None
    }

    /// As [`Flow::locate`], of a message that is none of those to be delivered next: what was asked for
    /// ahead stays.
    pub(super) fn locate_alone<B: Buffers>(
        &mut self,
        queue: QueueId,
        durable: bool,
        place: Place,
        sequence: QueueSequence,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Option<(BufferId, std::ops::Range<u32>)> {
        if !durable {
            let found = self.volatile.locate(buffers, place, sequence);
            return found.map(|(buffer, body, _)| (buffer, body));
        }
        match self.journal.locate(buffers, place, queue, sequence) {
            Located::Cached { buffer, body, .. } => return Some((buffer, body)),
            Located::Damaged => self.damaged(queue, place, sequence, effects),
            Located::Cold | Located::Coming => self.read_alone(queue, place, buffers, effects),
        }
        None
    }

    /// Asks for a record; its queue looks again when that, or another, is in memory.
    fn read_alone<B: Buffers>(
        &mut self,
        queue: QueueId,
        place: Place,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        if !self.reading.iter().any(|(_, reading)| *reading == queue) {
            self.reading.push((self.journal.age(place), queue));
        }
        self.journal.fetch(buffers, effects, place);
    }

    /// Asks for what a queue that reads from disk will need next; it has come to message `from`.
    /// Several windows are on their way at a time, so that the device and the sockets work at once.
    fn read_ahead<B: Buffers>(
        &mut self,
        queue: QueueId,
        from: QueueSequence,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let state = self.queues.get_mut(queue).expect("it is being dispatched");
        let QueueState { ahead, queue, .. } = state;
        while let Some((_, place)) = ahead.windows.front().copied()
            && ahead.first_behind() <= from
        {
            self.journal.pass(place);
            ahead.windows.pop_front();
        }
        while ahead.windows.len() < WINDOWS_AHEAD
            || self.journal.windows_ahead() < WINDOWS_AHEAD_ALONE
        {
            let first = ahead.next;
            let Some(stretch) = queue.stretch(first, buffers.buffer_bytes() - BLOCK_ALIGN) else {
                return;
            };
            let Stretch { place, bytes, upto } = stretch;
            let reaches = self
                .journal
                .fetch_ahead(buffers, effects, place, bytes, upto);
            let Some(upto) = reaches else { return };
            ahead.windows.push_back((first, place));
            ahead.next = queue.first_beyond(first, place, upto);
            if ahead.next == first {
                return;
            }
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
        let state = self.queues.get(queue).expect("its offer is being taken");
        let durable = state.durable;
        if !state.ahead.windows.is_empty() && state.ahead.first_behind() <= offer.first {
            self.read_ahead(queue, offer.first, buffers, effects);
        }
        let located = self.locate(queue, durable, offer.place, offer.first, buffers, effects);
        let Some((buffer, body)) = located else {
            return false;
        };
        let run = buffers.bytes(buffer, body.clone());
        let Some(start) = offer.locate(run) else {
            self.damaged(queue, offer.place, offer.first, effects);
            return false;
        };
        let sink = self.sinks.get_mut(offer.key.0);
        let mut most = offer.messages_max;
        if let Some(condition) = sink.and_then(|sink| sink.filter.as_mut()) {
            let verdict = sift(condition, run, start as usize, most);
            let Ok(sifted) = verdict else {
                self.damaged(queue, offer.place, offer.first, effects);
                return false;
            };
            *budget = budget.saturating_sub(sifted.bytes);
            if !sifted.holds {
                let state = self
                    .queues
                    .get_mut(queue)
                    .expect("its offer is being taken");
                let bytes = sifted.bytes as u64;
                state.queue.pass_over(offer, sifted.count, start, bytes);
                return true;
            }
            most = sifted.count;
        }
        let mut offer = *offer;
        offer.messages_max = most;
        let offer = &offer;
        let state = self.queues.get(queue).expect("its offer is being taken");
        let key = match key_of(state, offer, run.get(start as usize..)) {
            Ok(key) => key,
            Err(_) => {
                self.damaged(queue, offer.place, offer.first, effects);
                return false;
            }
        };
        let offer = match key {
            None => *offer,
            Some((_, key)) => {
                let length = run.get(start as usize..).and_then(envelope::length_of);
                let length = padded(length.unwrap_or(0));
                let state = self
                    .queues
                    .get_mut(queue)
                    .expect("its offer is being taken");
                let at = (start, length as u32);
                let Some(offer) = state.queue.address(offer, key, at) else {
                    *budget = budget.saturating_sub(length);
                    return true;
                };
                offer
            }
        };
        let offer = &offer;
        let sink = self
            .sinks
            .get(offer.key.0)
            .expect("a queue's consumers have sinks");
        let message_bytes_max = sink.message_bytes_max as usize;
        // A frame takes no more than its connection may be behind, if that is more than a message.
        let room = (*budget).min(self.config.limits.unsent_bytes_max as usize);
        let lengths = &mut self.lengths;
        let bounds = (room, message_bytes_max);
        let fit = fitting(run, start as usize, offer, bounds, key, lengths);
        let bytes = match fit {
            Ok(bytes) => bytes,
            Err(Code::MessageTooLarge) => {
                self.end_too_large(offer.key.0, effects);
                return true;
            }
            Err(_) => {
                self.damaged(queue, offer.place, offer.first, effects);
                return false;
            }
        };
        let state = self
            .queues
            .get_mut(queue)
            .expect("its offer is being taken");
        if self.lengths.is_empty() {
            state.queue.decline(offer);
            return true;
        }
        let count = self.lengths.len() as u32;
        let tag = state
            .queue
            .take(offer, start, &self.lengths, &mut state.settled);
        state.not_ready(offer, count, self.now, effects);
        if !state.settled.is_empty() {
            self.note_settled(queue, u64::from(count));
        }
        self.count_delivered(offer, count, bytes as u64, budget);
        let head = deliver_head(offer).encode();
        let sink = self
            .sinks
            .get_mut(offer.key.0)
            .expect("a queue's consumers have sinks");
        let channel = sink.channel;
        let last = tag.0 + u64::from(count) - 1;
        sink.held_since.enter(tag.0, last, self.now);
        self.holds_more(offer.key.0, DeliveryTag(last));
        if self.tracer.is_armed() {
            let sink = self.sinks.get(offer.key.0);
            let sink = sink.expect("it was just looked at");
            let delivery = Delivery {
                queue,
                first: offer.first,
                count,
                consumer: offer.key.0,
                place: (sink.core, sink.conn),
                tag: tag.0,
                delivery_count: offer.delivery_count,
            };
            let state = self.queues.get(queue).expect("its offer was taken");
            let by_sending = state.settled.as_slice();
            self.tracer.sent(&delivery, by_sending, self.now);
        }
        let header = FrameHeader {
            kind: FrameKind::Deliver,
            flags: if offer.delivery_count > 0 {
                DELIVER_REDELIVERED
            } else {
                0
            },
            channel,
            sequence: tag.0,
            count,
            body_bytes: (DeliverHead::BYTES + bytes) as u32,
            body_crc: checksum::crc32c(&head),
        };
        let tail = body.start + start..body.start + start + bytes as u32;
        self.emit(
            offer.key.0,
            &header,
            &head,
            (buffer, tail),
            buffers,
            effects,
        );
        true
    }

    /// Ends a consumer whose next message is larger than its connection takes (P-42).
    fn end_too_large(&mut self, consumer: u64, effects: &mut Effects) {
        let reason = "the next message is larger than agreed in the handshake";
        self.end_consumer(consumer, Code::MessageTooLarge, reason, effects);
    }

    fn count_delivered(&mut self, offer: &Offer, count: u32, bytes: u64, budget: &mut usize) {
        *budget = budget.saturating_sub(bytes as usize);
        self.stats.delivered += u64::from(count);
        self.stats.delivered_bytes += bytes;
        if offer.delivery_count > 0 {
            self.stats.redelivered += u64::from(count);
        }
        let sink = self.sinks.get_mut(offer.key.0);
        if let Some(get) = sink.and_then(|sink| sink.get.as_mut()) {
            // What its credit pushes beside the get is not the get's.
            let taken = count.min(get.left);
            get.left -= taken;
            get.given += taken;
            self.get_is_due(offer.key.0);
        }
    }

    /// Sends one frame whose tail lies in a buffer; the frame needs no padding.
    fn emit<B: Buffers>(
        &mut self,
        key: u64,
        header: &FrameHeader,
        head: &[u8],
        (buffer, tail): (BufferId, std::ops::Range<u32>),
        buffers: &B,
        effects: &mut Effects,
    ) {
        let gather = tail.len() <= GATHER_BYTES_MAX;
        let length = tail.end - tail.start;
        let sink = self
            .sinks
            .get_mut(key)
            .expect("a queue's consumers have sinks");
        let bytes = buffers.bytes(buffer, tail.clone());
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
                state.queue.block(ConsumerKey(key));
            }
            return;
        }
        let conn = sink.conn;
        if self.sessions.get(conn).is_none() {
            return;
        }
        let mut sent = effects.send(conn, |out| {
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(head);
            if gather {
                out.extend_from_slice(bytes);
                out.resize(out.len() + padding, 0);
            }
        });
        if !gather {
            effects.push(Effect::SendBuffer {
                conn,
                buffer,
                range: tail,
            });
            sent += length;
            if padding > 0 {
                sent += effects.send(conn, |out| out.resize(out.len() + padding, 0));
            }
        }
        self.note_unsent(conn, sent);
        self.look_behind(conn);
    }

    /// Begins to deliver one large message; its pieces follow as they come into memory.
    fn deliver_fragmented<B: Buffers>(
        &mut self,
        queue: QueueId,
        offer: &Offer,
        budget: &mut usize,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        let state = self.queues.get(queue).expect("its offer is being taken");
        let durable = state.durable;
        let pieces = state.queue.pieces(offer.first);
        let place = pieces.expect("the offer says it is in pieces")[0];
        let found = self.locate(queue, durable, place, offer.first, buffers, effects);
        let Some((buffer, body)) = found else {
            return false;
        };
        let sink = self.sinks.get_mut(offer.key.0);
        if let Some(condition) = sink.and_then(|sink| sink.filter.as_mut()) {
            let split = FragmentHead::split(buffers.bytes(buffer, body.clone()));
            let message = split.and_then(|(_, piece)| envelope::open(piece));
            let Ok(message) = message else {
                self.damaged(queue, offer.place, offer.first, effects);
                return false;
            };
            if !condition.holds(&message) {
                *budget = budget.saturating_sub(body.len());
                let state = self
                    .queues
                    .get_mut(queue)
                    .expect("its offer is being taken");
                state.queue.pass_over(offer, 1, 0, 0);
                return true;
            }
        }
        let state = self.queues.get(queue).expect("its offer is being taken");
        let fragment = FragmentHead::split(buffers.bytes(buffer, body));
        let found = fragment.and_then(|(fragment, piece)| {
            let key = key_of(state, offer, Some(piece))?;
            Ok((fragment, key))
        });
        let Ok((fragment, key)) = found else {
            self.damaged(queue, offer.place, offer.first, effects);
            return false;
        };
        let offer = match key {
            None => *offer,
            Some((_, key)) => {
                let state = self
                    .queues
                    .get_mut(queue)
                    .expect("its offer is being taken");
                let Some(offer) = state.queue.address(offer, key, (0, 0)) else {
                    return true;
                };
                offer
            }
        };
        let offer = &offer;
        let key = offer.key.0;
        let sink = self.sinks.get(key);
        if sink.is_some_and(|sink| fragment.message_bytes > sink.message_bytes_max) {
            self.end_too_large(key, effects);
            return true;
        }
        let bytes = padded(fragment.message_bytes as usize) as u32;
        let state = self
            .queues
            .get_mut(queue)
            .expect("its offer is being taken");
        if !offer.fits(0, 0, bytes) {
            state.queue.decline(offer);
            return true;
        }
        let mut settled = Ranges::default();
        let tag = state.queue.take(offer, 0, &[bytes], &mut settled);
        state.queue.block(offer.key);
        state.not_ready(offer, 1, self.now, effects);
        // Its pieces are charged to the turns that send them.
        self.count_delivered(offer, 1, u64::from(bytes), &mut 0);
        let sink = self
            .sinks
            .get_mut(key)
            .expect("a queue's consumers have sinks");
        sink.large = Some(Box::new(LargeDelivery {
            first: offer.first,
            tag: tag.0,
            delivery_count: offer.delivery_count,
            sent: 0,
            settled,
        }));
        sink.held_since.enter(tag.0, tag.0, self.now);
        self.holds_more(key, tag);
        self.send_pieces(key, budget, buffers, effects);
        if self.sinks.get(key).is_some_and(|sink| sink.large.is_some()) {
            self.larges.push(key);
        }
        true
    }

    /// Goes on with the large messages that are being sent.
    fn send_larges<B: Buffers>(
        &mut self,
        budget: &mut usize,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let mut larges = std::mem::take(&mut self.larges);
        // Whoever was first in this turn is last in the next.
        if larges.len() > 1 {
            larges.rotate_left(1);
        }
        for key in &larges {
            self.send_pieces(*key, budget, buffers, effects);
        }
        larges.retain(|key| {
            self.sinks
                .get(*key)
                .is_some_and(|sink| sink.large.is_some())
        });
        larges.append(&mut self.larges);
        self.larges = larges;
    }

    //= P-46
    /// Sends pieces of a consumer's large message, as far as they are in memory, its connection takes
    /// them and the turn may.
    fn send_pieces<B: Buffers>(
        &mut self,
        key: u64,
        budget: &mut usize,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        while let Some(sink) = self.sinks.get(key)
            && let Some(large) = &sink.large
            && !sink.congested
        {
            let (queue, channel) = (sink.queue, sink.channel);
            let (first, number) = (large.first, large.sent);
            let head = DeliverHead {
                queue_sequence: first.0,
                delivery_count: large.delivery_count,
            };
            let (tag, again) = (large.tag, large.delivery_count > 0);
            let state = self.queues.get(queue).expect("it has a consumer");
            let down = self.shut_down.is_some();
            if state.damaged || down || (self.failed && state.durable) {
                return;
            }
            if *budget == 0 {
                self.wake(queue);
                return;
            }
            let durable = state.durable;
            let Some(places) = state.queue.pieces(first) else {
                let reason = match state.queue.is_stream() {
                    true => "retention has removed a message before its last piece was sent",
                    false => "a delivery was settled before its last piece was sent",
                };
                self.end_consumer(key, Code::UnknownDelivery, reason, effects);
                return;
            };
            let is_last = number + 1 == places.len();
            let place = places[number];
            let ahead: [Option<Place>; PIECES_AHEAD] =
                std::array::from_fn(|idx| places.get(number + 1 + idx).copied());
            let Some((buffer, body)) = self.locate(queue, durable, place, first, buffers, effects)
            else {
                if durable && !self.failed {
                    for place in ahead.into_iter().flatten() {
                        self.journal.fetch(buffers, effects, place);
                    }
                }
                return;
            };
            let head = head.encode();
            let piece = buffers.bytes(buffer, body.clone());
            let header = FrameHeader {
                kind: FrameKind::DeliverFragment,
                flags: if again { DELIVER_REDELIVERED } else { 0 },
                channel,
                sequence: tag,
                count: 1,
                body_bytes: (head.len() + body.len()) as u32,
                body_crc: checksum::crc32c_append(checksum::crc32c(&head), piece),
            };
            *budget = budget.saturating_sub(body.len());
            self.emit(key, &header, &head, (buffer, body), buffers, effects);
            let sink = self.sinks.get_mut(key).expect("sending drops nobody");
            let large = sink.large.as_mut().expect("it was just looked at");
            large.sent += 1;
            if is_last {
                let congested = sink.congested;
                self.large_is_sent(key);
                if !congested {
                    let state = self.queues.get_mut(queue).expect("it has a consumer");
                    state.queue.unblock(ConsumerKey(key));
                    self.wake(queue);
                }
            }
        }
    }

    /// A large message needs no more of a consumer's queue: what it settled by being sent is settled.
    fn large_is_sent(&mut self, key: u64) {
        let Some(sink) = self.sinks.get_mut(key) else {
            return;
        };
        let queue = sink.queue;
        let Some(large) = sink.large.take() else {
            return;
        };
        if let Some(state) = self.queues.get_mut(queue)
            && !large.settled.is_empty()
        {
            for range in large.settled.as_slice() {
                state.settled.push(*range);
            }
            self.note_settled(queue, large.settled.count());
        }
    }

    /// Lets queues that wait for a read look again, if there is none whose end would wake them.
    pub(crate) fn retry_reads(&mut self) {
        if !self.reading.is_empty() && !self.journal.is_reading() {
            self.read_done();
        }
    }

    /// A read from disk is done: the queues that waited look again, those that are farthest behind
    /// first. Queues whose messages lie between each other's so stay close, and what is read for one
    /// is there for all.
    pub(crate) fn read_done(&mut self) {
        self.places_read();
        let mut reading = std::mem::take(&mut self.reading);
        reading.sort_unstable();
        for (_, queue) in reading.drain(..) {
            self.wake(queue);
        }
        self.reading = reading;
    }

    /// A record is not what was written: the queue refuses service (rulings 10).
    pub(super) fn damaged(
        &mut self,
        queue: QueueId,
        place: Place,
        sequence: QueueSequence,
        effects: &mut Effects,
    ) {
        let Some(state) = self.queues.get_mut(queue) else {
            return;
        };
        state.damaged = true;
        self.stop_gathering(queue);
        let text = format!(
            "queue {} refuses service: message {} at segment {} offset {} is damaged; run `ringpost verify`",
            queue.0, sequence.0, place.segment.0, place.offset
        );
        effects.push(Effect::Report {
            severity: crate::effect::Severity::Error,
            text,
        });
        let state = self.queues.get(queue).expect("it was just looked at");
        let keys: Vec<u64> = state.queue.consumers().map(|key| key.0).collect();
        for key in keys {
            self.end_consumer(
                key,
                Code::QueueDamaged,
                "the queue has a damaged range; run `ringpost verify`",
                effects,
            );
        }
    }

    /// Hands frames for connections of other cores over, one request a sink at a time.
    pub(crate) fn forward_outgoing(&mut self, effects: &mut Effects) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.retain(|key| {
            let Some(sink) = self.sinks.get_mut(*key) else {
                return false;
            };
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
            sink.forward += 1;
            let waiter = Waiter::Forward {
                consumer: *key,
                number: sink.forward,
            };
            let request = Request::Forward {
                conn: sink.conn,
                channel: sink.channel,
                consumer: *key,
                bytes,
                ends: false,
            };
            self.peers[usize::from(sink.core.0)].ask(effects, request, waiter);
            false
        });
        outgoing.append(&mut self.outgoing);
        self.outgoing = outgoing;
    }

    /// The other core has room for more frames of a sink.
    pub(crate) fn forwarded(&mut self, key: u64) {
        let Some(sink) = self.sinks.get_mut(key) else {
            return;
        };
        sink.forwarding = 0;
        let queue = sink.queue;
        if sink.congested {
            sink.congested = false;
            let is_between = sink.large.is_some();
            if let Some(state) = self.queues.get_mut(queue)
                && !is_between
            {
                state.queue.unblock(ConsumerKey(key));
            }
            self.wake(queue);
        }
    }

    /// The socket took bytes: consumers that waited for it go on.
    pub(crate) fn sent(&mut self, conn: ConnId, bytes: u32, effects: &mut Effects) {
        let Some(session) = self.sessions.get_mut(conn) else {
            return;
        };
        session.took = self.now;
        let taken = u64::from(bytes).min(session.unsent);
        session.unsent -= taken;
        self.unsent -= taken;
        self.go_on_sending(conn, effects);
    }

    /// Consumers of a connection that waited for its socket go on, if little is unsent.
    pub(crate) fn go_on_sending(&mut self, conn: ConnId, effects: &mut Effects) {
        let low = self.unsent_bytes_max() / 2;
        let Some(session) = self.sessions.get_mut(conn) else {
            return;
        };
        if !session.behind || session.unsent > low {
            return;
        }
        session.behind = false;
        let session = self.sessions.get(conn).expect("it was just looked at");
        let mut freed = std::mem::take(&mut self.keys);
        for (_, channel) in session.channels() {
            if let Channel::Consumer { owner, key, .. } = channel
                && owner == self.config.core
            {
                freed.push(key);
            }
        }
        for key in freed.drain(..) {
            self.forwarded(key);
        }
        self.keys = freed;
        self.say_resume(conn, effects);
    }

    /// Tells the other cores whose consumers waited for a connection's socket that it has room.
    fn say_resume(&mut self, conn: ConnId, effects: &mut Effects) {
        let mut idx = 0;
        while idx < self.held_back.len() {
            if self.held_back[idx].1 == conn {
                let (core, conn) = self.held_back.swap_remove(idx);
                self.ask(core, Request::Resume { conn }, Waiter::Nobody, effects);
            } else {
                idx += 1;
            }
        }
    }

    /// Forgets a connection and everything it had.
    pub(crate) fn forget_connection(&mut self, conn: ConnId, effects: &mut Effects) {
        let Some(session) = self.remove_session(conn) else {
            return;
        };
        //= P-17
        for (_, channel) in session.channels() {
            match channel {
                Channel::ProducerOpening(key) => {
                    self.openings.remove(key);
                }
                Channel::Producer(key) => self.drop_producer(key),
                Channel::Transaction(key) => {
                    self.drop_transaction(key);
                }
                Channel::Consumer { owner, key, .. } => self.unsubscribe_at(owner, key, effects),
                Channel::ConsumerOpening { .. }
                | Channel::ConsumerClosing { .. }
                | Channel::Closed
                | Channel::Free => {}
            }
        }
        let early_bytes = &mut self.early_bytes;
        self.early.retain(|frame| {
            let stays = frame.conn != conn;
            *early_bytes -= if stays { 0 } else { frame.cost() };
            stays
        });
        self.held_back.retain(|(_, held)| *held != conn);
        if session.owns_queues {
            let core = self.config.core;
            self.owners_gone.push(Owner { core, conn });
        }
    }
}

fn deliver_head(offer: &Offer) -> DeliverHead {
    DeliverHead {
        queue_sequence: offer.first.0,
        delivery_count: offer.delivery_count,
    }
}

/// What says who gets the first message of an offer, if its key does.
fn key_of(
    state: &QueueState,
    offer: &Offer,
    message: Option<&[u8]>,
) -> Result<Option<(KeyReader, u64)>, Code> {
    match state.queue.key_reader() {
        Some(reader) if offer.key == ConsumerKey::BY_KEY => {
            let key = message.and_then(|message| reader.of(message));
            let key = key.ok_or(Code::MessageMalformed)?;
            Ok(Some((reader, key)))
        }
        _ => Ok(None),
    }
}

/// Collects the padded lengths of the messages from `start` that fit the consumer, a frame and the
/// turn, and, if their consumer was found by key, have the key of the first. Returns their sum.
///
/// # Errors
/// [`Code::MessageTooLarge`] if the first is larger than the consumer takes; any other code if the
/// bytes are no messages.
fn fitting(
    run: &[u8],
    start: usize,
    offer: &Offer,
    (budget, message_bytes_max): (usize, usize),
    key: Option<(KeyReader, u64)>,
    lengths: &mut Vec<u32>,
) -> Result<usize, Code> {
    let room = (FRAME_BYTES_MAX - FRAME_HEADER_BYTES - DeliverHead::BYTES).min(budget);
    lengths.clear();
    let mut end = start;
    while (lengths.len() as u32) < offer.messages_max {
        let bytes = run.get(end..).and_then(envelope::length_of);
        let bytes = bytes.ok_or(Code::MessageMalformed)?;
        let length = padded(bytes);
        if length == 0 || end + length > run.len() {
            return Err(Code::MessageMalformed);
        }
        let taken = lengths.len() as u32;
        if bytes > message_bytes_max {
            if taken == 0 {
                return Err(Code::MessageTooLarge);
            }
            break;
        }
        let fits = offer.fits(taken, (end - start) as u64, length as u32)
            && key.is_none_or(|(reader, key)| taken == 0 || reader.of(&run[end..]) == Some(key));
        if !fits || (taken > 0 && end + length - start > room) {
            break;
        }
        end += length;
        lengths.push(length as u32);
    }
    Ok(end - start)
}

/// How a stretch of messages stands to a condition: so many, of so many padded bytes, are all of those,
/// or none is.
struct Sifted {
    count: u32,
    bytes: usize,
    holds: bool,
}

/// Most messages that a condition is asked about at a time: what does not fit a frame is asked again.
const SIFTED_MAX: u32 = 256;

/// Asks a condition about the messages of a run from `start` on, as far as the answer stays the same.
fn sift(condition: &mut Condition, run: &[u8], start: usize, most: u32) -> Result<Sifted, Code> {
    let mut sifted = Sifted {
        count: 0,
        bytes: 0,
        holds: false,
    };
    while sifted.count < most.min(SIFTED_MAX) {
        let message = run.get(start + sifted.bytes..);
        let message = message.ok_or(Code::MessageMalformed)?;
        let length = envelope::length_of(message).ok_or(Code::MessageMalformed)?;
        let whole = message.get(..length).ok_or(Code::MessageMalformed)?;
        let holds = condition.holds(&envelope::open(whole)?);
        if sifted.count == 0 {
            sifted.holds = holds;
        } else if holds != sifted.holds {
            break;
        }
        sifted.count += 1;
        sifted.bytes += padded(length);
    }
    Ok(sifted)
}

const STREAM_FULL: &str = "the stream has as many consumers or groups as it may have";

/// Who a member of a group is that does not say so: its connection, the same in all lanes. Those that
/// do have lower numbers.
const fn member_of(owner: Owner) -> u64 {
    (1 << 63) | (owner.core.0 as u64) << 47 | (owner.conn.0 & ((1 << 47) - 1))
}

fn subscribe_text(code: Code) -> &'static str {
    match code {
        Code::QueueUnknown => "the queue was deleted meanwhile",
        Code::QueueDamaged => {
            "the queue refuses service because of a damaged range; run `ringpost verify`"
        }
        Code::JournalFailed => "the journal of this queue has failed; restart the broker",
        Code::ResourceLocked => "the queue is exclusive to another connection",
        Code::LimitReached => "this core has as many consumers as its limit allows",
        Code::InUse => {
            "the queue has an exclusive consumer, or others where this one asked to be alone"
        }
        _ => "the consumer cannot be opened",
    }
}
