//! One core: its messages' flow and its topology, behind one function.
//! The only place that knows both planes; does not decide anything itself.

mod amqp;

use ringpost_wire::control::{Body, Failure};
use ringpost_wire::ids::CoreId;
use ringpost_wire::{
    Code, Cut, FRAME_BYTES_MAX, FRAME_BYTES_MAX_HANDSHAKE, FRAME_HEADER_BYTES, FrameHeader,
    FrameKind, cut, frame,
};

use crate::config::{CoreConfig, META};
use crate::control::boot::Boot;
use crate::control::checkpoint;
use crate::control::compaction::Compactor;
use crate::control::relocate::Residents;
use crate::control::state::{self, Moment};
use crate::control::topology::Topology;
use crate::data::amqp::Amqp;
use crate::data::consumer::{Asked, Forwarded, Sink};
use crate::data::flow::{Flow, Waiter};
use crate::data::session::{Channel, Greeting, Session};
use crate::data::trace::{NotFollowed, TraceId, Wanted};
use crate::effect::Buffers;
use crate::ids::{Clock, ConnId, Mono, Owner};
use crate::input::{Found, Input};
use crate::mesh::{BusyQueue, ChangeRequest, MeshMessage, Reply, Request};
use crate::{Effect, Effects};

/// One core of a broker.
pub struct Core {
    stage: Stage,
    /// The wall clock at the last tick, 0 before the first one, and when that was.
    ticked: (u64, Mono),
}

enum Stage {
    Booting(Box<Boot>),
    Running(Box<Running>),
    /// The journal could not be recovered; the reason was reported.
    Failed,
}

struct Running {
    flow: Flow,
    topology: Topology,
    amqp: Amqp,
    swept: Mono,
    compactor: Compactor,
    /// The checkpoint of the shutdown was begun.
    checkpointed: bool,
}

/// How long a shutdown waits for other cores to take back their consumers.
const LEAVE_MS: u64 = 1_000;
/// How often publishes and changes that wait look for room, if nothing else happens: a socket may have let go of
/// buffers.
const HOLD_MS: u64 = 1;
/// How often sessions are looked over for silence and heartbeats.
const SWEEP_MS: u64 = 250;

impl Core {
    /// A core that starts with what its directory holds.
    #[must_use]
    pub fn boot(config: CoreConfig, found: Found, now: Mono) -> Self {
        assert!(
            config.core.0 < config.cores,
            "a core is one of the broker's"
        );
        assert!(config.partitions > 0, "a data directory has partitions");
        let boot = Boot::start(config, &found, now);
        Self {
            stage: Stage::Booting(Box::new(boot)),
            ticked: (0, now),
        }
    }

    /// The wall clock, which ticks tell: what is written of a time must not be earlier than it was, or
    /// what is delayed until then would be early after a restart.
    fn wall_us(&self, now: Mono) -> u64 {
        match self.ticked {
            (0, _) => 0,
            (wall_us, then) => wall_us + now.0.saturating_sub(then.0) / 1_000,
        }
    }

    /// Whether recovery is over and connections may be given to this core.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running(_))
    }

    /// Whether the journal has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        match &self.stage {
            Stage::Booting(_) => false,
            Stage::Running(running) => running.flow.failed,
            Stage::Failed => true,
        }
    }

    /// Whether a slot that is being made is needed as soon as it can be had.
    #[must_use]
    pub fn is_short_of_slots(&self) -> bool {
        match &self.stage {
            Stage::Booting(_) | Stage::Failed => true,
            Stage::Running(running) => {
                let flow = &running.flow;
                flow.is_shutting_down() || flow.journal.is_short_of_slots()
            }
        }
    }

    /// Whether a shutdown is complete: everything is on disk.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        match &self.stage {
            Stage::Booting(_) => false,
            Stage::Running(running) => {
                let flow = &running.flow;
                let quiet = running.checkpointed && flow.journal.is_quiet();
                flow.is_shutting_down() && (flow.failed || quiet)
            }
            Stage::Failed => true,
        }
    }

    /// Whether something comes back to its queue later: another core has not answered, or delivery
    /// counts are not durable yet.
    #[must_use]
    pub fn is_returning(&self) -> bool {
        match &self.stage {
            Stage::Running(running) => running.flow.is_returning(),
            Stage::Booting(_) | Stage::Failed => false,
        }
    }

    /// Whether a full queue of this core holds producers back.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        match &self.stage {
            Stage::Running(running) => running.flow.is_any_blocking(),
            Stage::Booting(_) | Stage::Failed => false,
        }
    }

    /// The flow of messages, once the core runs: for figures and for tests.
    #[must_use]
    pub const fn flow(&self) -> Option<&Flow> {
        match &self.stage {
            Stage::Running(running) => Some(&running.flow),
            _ => None,
        }
    }

    /// Messages published to this core's connections since the start.
    #[must_use]
    pub const fn published(&self) -> u64 {
        match &self.stage {
            Stage::Running(running) => running.flow.stats.published,
            Stage::Booting(_) | Stage::Failed => 0,
        }
    }

    /// Follows the next message that is appended to a queue of this core: what happens to it leaves with
    /// [`Effects::traced`], until one of the events ends the trace. Nothing else is done differently.
    ///
    /// # Errors
    /// Why nothing is followed.
    pub fn follow(&mut self, wanted: Wanted) -> Result<TraceId, NotFollowed> {
        let Stage::Running(running) = &mut self.stage else {
            return Err(NotFollowed::NotServing);
        };
        let tenant = running.topology.tenant(&wanted.tenant);
        let tenant = tenant.ok_or(NotFollowed::TenantUnknown)?;
        running.flow.follow(tenant, wanted)
    }

    /// The busiest queues of this core, at most `count`, with what they hold and what they did lately.
    /// Looks at every queue.
    #[must_use]
    pub fn busiest(&self, count: usize) -> Vec<BusyQueue> {
        let Stage::Running(running) = &self.stage else {
            return Vec::new();
        };
        let found = running.flow.busiest(count);
        let known = found.filter_map(|(state, figures)| {
            Some(BusyQueue {
                tenant: running.topology.tenant_name(state.tenant)?.into(),
                name: state.name.clone(),
                messages_max: state.queue.settings().messages_max,
                bytes_max: state.queue.settings().bytes_max,
                figures,
            })
        });
        known.collect()
    }

    /// Nobody wants to hear of a trace any more.
    pub fn unfollow(&mut self, trace: TraceId) {
        if let Stage::Running(running) = &mut self.stage {
            running.flow.tracer.remove(trace);
        }
    }

    /// Groups of streams of several lanes of whose members this core says who reads what.
    #[must_use]
    pub fn groups_coordinated(&self) -> usize {
        match &self.stage {
            Stage::Running(running) => running.flow.coordinators.len(),
            Stage::Booting(_) | Stage::Failed => 0,
        }
    }

    /// Whether the shell shall read from a connection now; else it asks again in each turn. Bytes that
    /// were received must be given all the same.
    #[must_use]
    pub fn is_read(&self, conn: ConnId) -> bool {
        match &self.stage {
            Stage::Running(running) => running.flow.is_read(conn) && running.amqp.is_read(conn),
            Stage::Booting(_) | Stage::Failed => true,
        }
    }

    /// Checks everything that must hold between two steps; O(n). For tests, after every step.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn invariants(&self) {
        if let Stage::Running(running) = &self.stage {
            running.flow.invariants();
            running.topology.invariants(&running.flow);
        }
    }

    /// When the core wants to be stepped again with [`Input::Tick`] and [`Input::TurnEnd`] if nothing
    /// else happens before. `Some(now)` or earlier: at once, work is left.
    #[must_use]
    pub fn next_deadline(&self, now: Mono) -> Option<Mono> {
        match &self.stage {
            Stage::Failed => None,
            Stage::Booting(boot) => boot.next_deadline(),
            Stage::Running(running) => running.next_deadline(now),
        }
    }

    /// Takes one input and says what is to be done.
    pub fn step<B: Buffers>(
        &mut self,
        now: Mono,
        input: Input<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        if let Input::Tick { wall_us } = &input {
            self.ticked = (*wall_us, now);
        }
        let wall_us = self.wall_us(now);
        match &mut self.stage {
            Stage::Failed => refuse(input, effects),
            Stage::Running(running) if running.amqp.is_empty() => {
                running.step(now, wall_us, input, buffers, effects);
            }
            Stage::Running(running) => {
                running.step_with_amqp(now, wall_us, input, buffers, effects);
            }
            Stage::Booting(boot) => {
                boot.step(now, wall_us, input, buffers, effects);
                if boot.has_failed() {
                    self.stage = Stage::Failed;
                } else if boot.is_ready() {
                    let Stage::Booting(boot) = std::mem::replace(&mut self.stage, Stage::Failed)
                    else {
                        unreachable!("the stage was just looked at")
                    };
                    let (flow, topology, held) = boot.finish(wall_us, effects);
                    let mut running = Box::new(Running {
                        flow,
                        topology,
                        amqp: Amqp::default(),
                        swept: now,
                        compactor: Compactor::default(),
                        checkpointed: false,
                    });
                    running.topology.started(&mut running.flow, effects);
                    running.flow.resume_transactions(effects);
                    for (from, message) in held {
                        running.mesh(from, message, buffers, effects);
                    }
                    self.stage = Stage::Running(running);
                }
            }
        }
    }
}

/// A core that could not be recovered serves nobody.
fn refuse(input: Input<'_>, effects: &mut Effects) {
    match input {
        Input::Opened { conn } | Input::OpenedAmqp { conn, .. } | Input::Adopted { conn, .. } => {
            effects.push(Effect::Close { conn })
        }
        _ => {}
    }
}

impl Running {
    fn next_deadline(&self, now: Mono) -> Option<Mono> {
        let flow = &self.flow;
        if (!flow.awake.is_empty() && !flow.is_crowded())
            || !flow.dirty_producers.is_empty()
            || !flow.forgetting.is_empty()
            || (!flow.settling.is_empty() && flow.settling_since.is_none())
            || self.topology.wants_turn(flow)
            || flow.dead.wants_turn()
            || flow.places.wants_turn()
            || (flow.is_holding() && flow.journal.gave_buffers())
            || (flow.journal.wants_turn() && !flow.failed)
        {
            return Some(now);
        }
        let sweep = (!flow.sessions.is_empty()).then(|| self.swept.plus_ms(SWEEP_MS));
        // Those that are due wait for something else.
        let gets = flow.gets_until.first().map(|(deadline, _)| *deadline);
        let holds = flow.holds_until.first().map(|(deadline, _)| *deadline);
        // A journal that has failed has nothing more to do, and nothing is packed, as at the end.
        let journal = flow.journal.next_deadline().filter(|_| !flow.failed);
        let compactor = self.compactor.next_deadline();
        let compactor = compactor.filter(|_| !flow.failed && !flow.is_shutting_down());
        // A read that found no buffer, and that no other one's end will call, looks for one.
        let is_starved = !flow.reading.is_empty() && !flow.journal.is_reading();
        let is_waiting = flow.is_holding() || self.topology.is_undecided() || is_starved;
        let hold = is_waiting.then(|| now.plus_ms(HOLD_MS));
        let is_free = !checkpoint::is_underway(&flow.journal);
        let last = flow.shut_down.filter(|_| !self.checkpointed && is_free);
        let last = last.map(|since| since.plus_ms(LEAVE_MS));
        let acks = flow.acks_deadline();
        let traces = flow.tracer.next_deadline();
        let expiry = flow.expiring.first().map(|(at, _)| *at);
        let dead = flow.dead.next_deadline();
        let room = flow.blocks.next_deadline();
        let unused = flow.unused_until.first().map(|(until, _)| *until);
        let (expiry, dead, unused, room) = match flow.is_shutting_down() {
            true => (None, None, None, None),
            false => (expiry, dead, unused, room),
        };
        [
            sweep, gets, holds, journal, hold, compactor, last, acks, traces, expiry, dead, unused,
            room,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn step<B: Buffers>(
        &mut self,
        now: Mono,
        wall_us: u64,
        input: Input<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        self.flow.now = now;
        self.flow.wall_us = wall_us;
        self.flow.journal.set_now(now);
        self.flow.journal.set_wall(wall_us);
        match input {
            Input::Opened { conn } => {
                self.flow.stats.connections += 1;
                self.flow.sessions.insert(Session::new(conn, now));
            }
            Input::OpenedAmqp { conn, is_local } => self.open_amqp(conn, is_local),
            Input::Adopted { conn, session } => self.adopt(conn, *session, buffers, effects),
            Input::Frames { conn, bytes } => self.frames(conn, bytes, buffers, effects),
            Input::Unwanted { conn } => {
                let reason = "as many connections as may be (connections_max)";
                self.flow.hang_up(conn, Code::Overloaded, reason, effects);
            }
            Input::Malformed { conn, code } => {
                if self.flow.sessions.get(conn).is_some() {
                    self.flow
                        .violate(conn, code, "the bytes received are no frame", effects);
                }
            }
            Input::Closed { conn } => {
                self.flow.forget_connection(conn, effects);
            }
            Input::Sent { conn, bytes } => {
                self.flow.sent(conn, bytes, effects);
                self.topology.sent(conn);
            }
            Input::Io { op, result, .. } => {
                let progress = self.flow.journal.io_done(op, result, buffers, effects);
                self.progress(progress, effects);
            }
            Input::File { op, result } => {
                let progress = self.flow.journal.file_done(op, result, now, effects);
                self.progress(progress, effects);
            }
            Input::Mesh { from, message } => self.mesh(from, message, buffers, effects),
            Input::Tick { .. } => {}
            Input::TurnEnd => self.turn_end(wall_us, buffers, effects),
            Input::Shutdown => self.shutdown(buffers, effects),
        }
        self.flow.tracer.take_told(&mut effects.traced);
    }

    fn progress(&mut self, progress: crate::data::journal::Progress, effects: &mut Effects) {
        use crate::data::journal::Progress;
        match progress {
            Progress::Nothing => {}
            Progress::Durable(_) => {
                self.flow.durable_advanced(effects);
                self.topology.durable_advanced(&mut self.flow, effects);
            }
            Progress::Arrived { .. } => self.flow.read_done(),
            Progress::Unreadable(place) => {
                self.flow.journal.note_damage(place);
                self.flow.read_done();
            }
            Progress::Failed => {
                self.flow.fail_stop(effects);
                self.topology.fail_stop(&mut self.flow, effects);
            }
        }
    }

    /// The end of a turn: everything that was gathered is sealed, said and dispatched together.
    fn turn_end<B: Buffers>(&mut self, wall_us: u64, buffers: &mut B, effects: &mut Effects) {
        let flow = &mut self.flow;
        let now = flow.now;
        flow.take_held(buffers, effects);
        flow.place_spread(buffers, effects);
        flow.work_transactions(buffers, effects);
        flow.volatile.turn_end(buffers);
        flow.journal_settled(buffers, effects);
        self.topology.turn_end(flow, buffers, effects);
        // The last checkpoint says that nobody holds anything, so it waits for those who do, and for
        // the one before it; not for another core that has died.
        let left = |since: Mono| flow.is_left() || now.ms_since(since) >= LEAVE_MS;
        let is_free = !checkpoint::is_underway(&flow.journal);
        let last = flow.shut_down.is_some_and(left) && !self.checkpointed && is_free;
        if last {
            flow.abandon(effects);
        }
        // Nothing may come behind the last one: any other says what may have been delivered.
        let is_due = !self.checkpointed && checkpoint::is_due(&flow.journal, now);
        if !flow.failed && !flow.is_in_pieces() && (last || is_due) {
            self.checkpointed |= last;
            let catalog = (flow.config.core == META).then(|| self.topology.appended());
            let mut bytes = Vec::new();
            let acked = flow.forget_waits.iter();
            let acked = acked.map(|(_, queue, range)| (*queue, *range));
            let moment = if last { Moment::Last } else { Moment::Running };
            state::encode(
                catalog,
                &flow.dedup,
                &flow.queues,
                &flow.transactions,
                acked,
                (moment, Clock { now, wall_us }, flow.config.core),
                &mut bytes,
            );
            checkpoint::begin(&mut flow.journal, bytes, buffers, effects);
        }
        if flow.is_shutting_down() {
            flow.journal.flush(buffers, effects);
        } else if !flow.failed && !flow.is_in_pieces() {
            let Flow {
                journal, queues, ..
            } = flow;
            self.compactor
                .poll(now, journal, &mut Residents { queues }, buffers, effects);
        }
        flow.journal.turn_end(now, buffers, effects);
        flow.look_at_blocks(effects);
        flow.feed_hungry();
        while let Some(key) = flow.dirty_producers.pop() {
            flow.confirm(key, effects);
        }
        // Those that nothing on the disk holds up.
        flow.answer_forwarded(effects);
        flow.retry_reads();
        flow.wake_expiring();
        flow.dispatch(buffers, effects);
        flow.publish_dead_letters(buffers, effects);
        flow.look_at_blocks(effects);
        flow.finish_gets(effects);
        flow.end_holders(effects);
        flow.forward_outgoing(effects);
        flow.press(None);
        if flow.tracer.is_armed() {
            flow.trace_turn();
        }
        if now.ms_since(self.swept) >= SWEEP_MS {
            self.swept = now;
            self.amqp.excuse(flow);
            flow.sweep(effects);
            self.topology.sweep(flow);
        }
    }

    fn shutdown<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let flow = &mut self.flow;
        flow.place_spread(buffers, effects);
        flow.shut_down.get_or_insert(flow.now);
        let conns: Vec<ConnId> = flow.sessions.iter().map(|session| session.conn).collect();
        while let Some(key) = flow.dirty_producers.pop() {
            flow.confirm(key, effects);
        }
        for conn in conns {
            flow.hang_up(
                conn,
                Code::ShuttingDown,
                "the broker is shutting down",
                effects,
            );
        }
    }

    fn adopt<B: Buffers>(
        &mut self,
        conn: ConnId,
        mut handover: crate::data::session::Handover,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let sequence = handover.sequence;
        let rest = std::mem::take(&mut handover.rest);
        let flow = &mut self.flow;
        flow.stats.connections += 1;
        flow.sessions
            .insert(Session::adopt(conn, handover, flow.now));
        if flow.is_shutting_down() {
            // It was on its way when the others were told.
            let reason = "the broker is shutting down";
            flow.hang_up(conn, Code::ShuttingDown, reason, effects);
            return;
        }
        self.attached(conn, sequence, effects);
        self.frames(conn, &rest, buffers, effects);
    }

    fn attached(&mut self, conn: ConnId, sequence: u64, effects: &mut Effects) {
        let mut header = FrameHeader::bare(FrameKind::Attached, 0, sequence);
        header.count = u32::from(self.flow.config.core.0);
        self.flow
            .say(conn, effects, |out| frame::write(out, header, &[]));
    }

    /// Whole frames of one connection.
    fn frames<B: Buffers>(
        &mut self,
        conn: ConnId,
        mut bytes: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let Some(session) = self.flow.sessions.get_mut(conn) else {
            return;
        };
        session.heard = self.flow.now;
        while !bytes.is_empty() {
            let Some(session) = self.flow.sessions.get(conn) else {
                return;
            };
            let frame_bytes_max = match session.agreed() {
                Some(_) => FRAME_BYTES_MAX,
                None => FRAME_BYTES_MAX_HANDSHAKE,
            };
            let (header, length) = match cut(bytes, frame_bytes_max) {
                Cut::Complete { header, length } => (header, length),
                Cut::Incomplete { .. } => {
                    self.flow
                        .violate(conn, Code::FrameMalformed, "a frame was cut short", effects);
                    return;
                }
                Cut::Malformed(code) => {
                    self.flow
                        .violate(conn, code, "a frame header is not right", effects);
                    return;
                }
            };
            // What an AMQP client says is not stepped while it does not read, but for the rest of one helping.
            if self.flow.is_deaf(conn) && !self.amqp.has(conn) {
                let reason = "it asks and does not read the answers";
                self.flow.violate(conn, Code::Overloaded, reason, effects);
                return;
            }
            let (this, rest) = bytes.split_at(length);
            let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
            let padding_is_zero = this[end..].iter().all(|byte| *byte == 0);
            let verdict = if padding_is_zero {
                self.frame(
                    conn,
                    header,
                    &this[FRAME_HEADER_BYTES..end],
                    buffers,
                    effects,
                )
            } else {
                Err(Code::FrameMalformed)
            };
            if let Err(code) = verdict {
                let reason = format!("{:?} frame refused: {}", header.kind, violation_text(code));
                self.flow.violate(conn, code, &reason, effects);
                return;
            }
            if !matches!(
                header.kind,
                FrameKind::Publish
                    | FrameKind::PublishFragment
                    | FrameKind::TransactionPublish
                    | FrameKind::Heartbeat
            ) {
                self.flow.press(Some(conn));
            }
            // Who moves takes along what came behind its request, though nothing should (P-13).
            if header.kind == FrameKind::Attach
                && let Some(Effect::Handover {
                    conn: moved,
                    session,
                    ..
                }) = effects.list.last_mut()
                && *moved == conn
            {
                session.rest.extend_from_slice(rest);
                return;
            }
            bytes = rest;
        }
    }

    /// One frame. An error ends the connection.
    fn frame<B: Buffers>(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let flow = &mut self.flow;
        let agreed = flow.sessions.get(conn).ok_or(Code::Internal)?.agreed();
        let Some(agreed) = agreed else {
            return if header.kind == FrameKind::Hello && header.channel == 0 {
                frame::check_body(&header, body)?;
                self.hello(conn, header, body, effects)
            } else {
                Err(Code::UnexpectedFrame)
            };
        };
        let late = matches!(
            header.kind,
            FrameKind::Publish
                | FrameKind::PublishFragment
                | FrameKind::ProducerClose
                | FrameKind::Settle
                | FrameKind::ConsumerCredit
                | FrameKind::ConsumerClose
                | FrameKind::Get
                | FrameKind::ConsumerInspect
                | FrameKind::TransactionPublish
                | FrameKind::TransactionSettle
                | FrameKind::TransactionCommit
                | FrameKind::TransactionRollback
                | FrameKind::TransactionClose
        );
        let session = flow.sessions.get(conn).ok_or(Code::Internal)?;
        if late && session.channel(header.channel) == Channel::Closed {
            // Sent before the client knew that the broker had closed the channel (P-15).
            return Ok(());
        }
        match header.kind {
            // The hot ones check their own checksums.
            FrameKind::Publish => return flow.publish(conn, header, body, buffers, effects),
            FrameKind::Settle => return flow.settle(conn, header, body, effects),
            FrameKind::TransactionPublish => {
                return flow.transaction_publish(conn, header, body);
            }
            FrameKind::PublishFragment => {
                return flow.publish_fragment(conn, header, body, buffers, effects);
            }
            _ => frame::check_body(&header, body)?,
        }
        // Whoever asks sees what was published before; these do not ask.
        if !matches!(
            header.kind,
            FrameKind::ConsumerCredit | FrameKind::Heartbeat
        ) {
            flow.place_spread(buffers, effects);
        }
        if is_of_connection(header.kind) && header.channel != 0 {
            return Err(Code::UnexpectedFrame);
        }
        //= P-9
        if asks(header.kind) && header.sequence == 0 {
            return Err(Code::UnexpectedFrame);
        }
        if header.flags != 0 && asks(header.kind) {
            return flow.refuse_flags(conn, header, effects);
        }
        match header.kind {
            FrameKind::Heartbeat => no_body(body),
            //= P-11
            FrameKind::Close => {
                Failure::decode(body)?;
                flow.hang_up(conn, Code::Normal, "closed by the client", effects);
                Ok(())
            }
            FrameKind::Attach => self.attach(conn, header, body, agreed, effects),
            FrameKind::ProducerOpen => flow.producer_open(conn, header, body, effects),
            FrameKind::ProducerClose => {
                no_body(body)?;
                flow.producer_close(conn, header)
            }
            FrameKind::ConsumerOpen => flow.consumer_open(conn, header, body, effects),
            FrameKind::ConsumerCredit => flow.consumer_credit(conn, header, body, effects),
            FrameKind::ConsumerClose => {
                no_body(body)?;
                flow.consumer_close(conn, header, effects)
            }
            FrameKind::Get => flow.get(conn, header, body, effects),
            FrameKind::TransactionOpen => flow.transaction_open(conn, header, body, effects),
            FrameKind::TransactionSettle => flow.transaction_settle(conn, header, body, effects),
            FrameKind::TransactionCommit => {
                no_body(body)?;
                flow.transaction_commit(conn, header, effects)
            }
            FrameKind::TransactionRollback => {
                no_body(body)?;
                flow.transaction_rollback(conn, header, effects)
            }
            FrameKind::TransactionClose => {
                no_body(body)?;
                flow.transaction_close(conn, header, effects)
            }
            FrameKind::ConsumerInspect => {
                no_body(body)?;
                flow.consumer_inspect(conn, header, effects)
            }
            FrameKind::QueueDeclare
            | FrameKind::QueueDelete
            | FrameKind::QueuePurge
            | FrameKind::QueueInspect
            | FrameKind::QueueDescribe
            | FrameKind::QueueList
            | FrameKind::ExchangeDeclare
            | FrameKind::ExchangeDelete
            | FrameKind::ExchangeList
            | FrameKind::Bind
            | FrameKind::Unbind
            | FrameKind::BindingList
            | FrameKind::TenantDeclare
            | FrameKind::TenantDelete
            | FrameKind::TenantList
            | FrameKind::PolicySet
            | FrameKind::PolicyDelete
            | FrameKind::PolicyList
            | FrameKind::GroupList
            | FrameKind::GroupReset
            | FrameKind::GroupDelete
            | FrameKind::QueueBrowse
            | FrameKind::QueueCancel
            | FrameKind::QueueMove => {
                if header.kind == FrameKind::QueueDeclare
                    && amqp::is_reserved(flow, conn, agreed.tenant, body)
                {
                    let reason = "the name is reserved: it starts with amq.";
                    flow.fail(conn, header, Code::NameInvalid, reason, effects);
                    return Ok(());
                }
                let core = flow.config.core;
                let request = ChangeRequest {
                    tenant: agreed.tenant,
                    owner: Owner { core, conn },
                    kind: header.kind,
                    body: body.to_vec(),
                    usage: (0, 0),
                };
                self.topology.frame(flow, conn, header, request, effects)
            }
            //= P-16
            FrameKind::Hello
            | FrameKind::Welcome
            | FrameKind::Attached
            | FrameKind::Failed
            | FrameKind::Done
            | FrameKind::ProducerOpened
            | FrameKind::Confirm
            | FrameKind::Refused
            | FrameKind::ProducerCredit
            | FrameKind::ProducerClosed
            | FrameKind::ConsumerOpened
            | FrameKind::Deliver
            | FrameKind::DeliverFragment
            | FrameKind::Settled
            | FrameKind::ConsumerClosed
            | FrameKind::GetDone
            | FrameKind::ConsumerActive
            | FrameKind::ConsumerInfo
            | FrameKind::ConsumerPosition
            | FrameKind::QueueInfo
            | FrameKind::QueueDescription
            | FrameKind::ExchangeInfo
            | FrameKind::BindingInfo
            | FrameKind::TenantInfo
            | FrameKind::GroupInfo
            | FrameKind::PolicyInfo
            | FrameKind::TransactionOpened
            | FrameKind::TransactionDone
            | FrameKind::TransactionClosed
            | FrameKind::TransactionPublish
            | FrameKind::QueueBrowsed
            | FrameKind::QueueOutcome
            | FrameKind::Publish
            | FrameKind::PublishFragment
            | FrameKind::Settle => Err(Code::UnexpectedFrame),
        }
    }

    fn hello(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let flow = &mut self.flow;
        if flow.is_shutting_down() {
            flow.hang_up(
                conn,
                Code::ShuttingDown,
                "the broker is shutting down",
                effects,
            );
            return Ok(());
        }
        let config = flow.config.clone();
        let topology = &self.topology;
        let session = flow
            .sessions
            .get_mut(conn)
            .expect("its frame is being stepped");
        match session.greet(&config, body, |name| topology.tenant(name)) {
            Greeting::Welcome(agreed) => {
                let mut welcome = Vec::with_capacity(128);
                session.welcome(&config, agreed, header.sequence, &mut welcome);
                flow.say(conn, effects, |out| out.extend_from_slice(&welcome));
            }
            Greeting::Refuse(code, reason) => flow.violate(conn, code, reason, effects),
        }
        Ok(())
    }

    /// `Attach` (P-13): the connection goes to the core that owns the queue.
    fn attach(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        agreed: crate::data::session::Agreed,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let attach = ringpost_wire::control::Attach::decode(body)?;
        let flow = &mut self.flow;
        let session = flow.sessions.get(conn).ok_or(Code::Internal)?;
        let is_asking = self.topology.is_asking(conn)
            || flow.is_asking_groups(conn)
            || flow.is_asking_places(conn);
        if session.channels_open > 0 || is_asking {
            return Err(Code::UnexpectedFrame);
        }
        let owns_queues = session.owns_queues;
        let Some(target) = flow.find_queue(agreed.tenant, attach.queue) else {
            let name = String::from_utf8_lossy(attach.queue);
            let reason = format!("there is no queue '{name}'");
            flow.fail(conn, header, Code::QueueUnknown, &reason, effects);
            return Ok(());
        };
        if target.core == flow.config.core || owns_queues {
            self.attached(conn, header.sequence, effects);
            return Ok(());
        }
        let session = flow.remove_session(conn).expect("it was just looked at");
        let handover = crate::data::session::Handover {
            agreed,
            client: session.client,
            sequence: header.sequence,
            rest: Vec::new(),
        };
        effects.push(Effect::Handover {
            conn,
            to: target.core,
            session: Box::new(handover),
        });
        Ok(())
    }

    /// A message from another core.
    fn mesh<B: Buffers>(
        &mut self,
        from: CoreId,
        message: MeshMessage,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        self.flow.place_spread(buffers, effects);
        match message {
            MeshMessage::Request { id, request } => {
                self.request(from, id, request, buffers, effects);
            }
            MeshMessage::Reply { id, reply } => {
                let waiter = self.flow.peers[usize::from(from.0)].answered(effects, id);
                self.answer(from, waiter, reply, effects);
            }
        }
    }

    fn request<B: Buffers>(
        &mut self,
        from: CoreId,
        id: u32,
        request: Request,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let flow = &mut self.flow;
        match request {
            Request::Publish(publish) => flow.take_forwarded(from, id, publish, buffers, effects),
            Request::Fence { producer, epoch } => {
                let known = flow.fence(producer, epoch, effects);
                flow.reply(from, id, Reply::Fenced(known), effects);
            }
            Request::Subscribe {
                conn,
                channel,
                queue,
                credit_messages,
                credit_bytes,
                flags,
                traits,
                reading,
                message_bytes_max,
            } => {
                let sink = Sink::new(queue, from, (conn, channel), message_bytes_max);
                let asked = Asked {
                    credit_messages,
                    credit_bytes,
                    flags,
                    traits,
                };
                let outcome = flow.subscribe(sink, asked, reading.as_deref());
                flow.reply(from, id, Reply::Subscribed(outcome), effects);
            }
            Request::Unsubscribe { consumer, close } => {
                if close == 0 {
                    flow.unsubscribe(consumer);
                } else {
                    flow.close_consumer(consumer, close, effects);
                }
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Credit {
                consumer,
                messages,
                bytes,
            } => {
                flow.set_credit(consumer, messages, bytes);
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Room { queue } => {
                let has_room = !flow.is_blocking(queue);
                flow.reply(from, id, Reply::Room(has_room), effects);
            }
            Request::ConsumerInspect { consumer, sequence } => {
                flow.inspect_consumer(consumer, sequence, effects);
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Settle {
                consumer,
                flags,
                sequence,
                ranges,
            } => {
                flow.settle_ranges(consumer, flags, sequence, ranges.into_iter(), effects);
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Get {
                consumer,
                sequence,
                count,
                wait_ms,
            } => {
                flow.start_get(consumer, sequence, count, wait_ms, effects);
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Forward {
                conn,
                channel,
                consumer,
                bytes,
                ends,
            } => {
                let forward = Forwarded {
                    from,
                    id,
                    conn,
                    channel,
                    consumer,
                    bytes,
                    ends,
                };
                flow.hear_forward(forward, effects);
            }
            Request::Transaction(ask) => {
                flow.take_transaction(from, id, *ask, buffers, effects);
            }
            Request::Resume { conn } => {
                flow.resume((from, conn));
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Members(said) => {
                flow.members_are(*said, effects);
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Lead {
                queue,
                group,
                member,
            } => {
                flow.lead(queue, &group, member);
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Change(_)
            | Request::Apply { .. }
            | Request::Retire(_)
            | Request::Keep { .. }
            | Request::OwnerGone { .. }
            | Request::Snapshot { .. }
            | Request::Inspect { .. }
            | Request::Connections { .. }
            | Request::Purge { .. }
            | Request::Places { .. }
            | Request::Groups { .. } => self.topology.request(flow, from, id, request, effects),
        }
    }

    fn answer(&mut self, from: CoreId, waiter: Waiter, reply: Reply, effects: &mut Effects) {
        let flow = &mut self.flow;
        match (waiter, reply) {
            (
                Waiter::Publish {
                    producer,
                    span,
                    bytes: sent,
                },
                Reply::Published {
                    outcome,
                    taken,
                    full,
                    bytes,
                },
            ) => {
                if let Some(queue) = full {
                    flow.blocked_there(from, queue, producer);
                }
                flow.keep_parcel(bytes);
                flow.peers[usize::from(from.0)].publish_answered(sent);
                if let Some(producer) = flow.producers.get_mut(producer) {
                    producer.answered(span, outcome, taken);
                }
                flow.dirty(producer);
            }
            (Waiter::DeadLetter { key, bytes: sent }, Reply::Published { outcome, bytes, .. }) => {
                flow.peers[usize::from(from.0)].publish_answered(sent);
                flow.dead_is_answered(key, bytes, outcome);
            }
            (Waiter::Fence { opening }, Reply::Fenced(known)) => {
                flow.fenced(opening, known, effects);
            }
            (
                Waiter::Large(rest),
                Reply::Published {
                    outcome,
                    taken,
                    full,
                    bytes,
                },
            ) => {
                if let Some(queue) = full {
                    flow.blocked_there(from, queue, rest.key);
                }
                flow.peers[usize::from(from.0)].publish_answered(0);
                if let Some(producer) = flow.producers.get_mut(rest.key) {
                    producer.answered(rest.span, outcome, taken);
                }
                flow.dirty(rest.key);
                flow.forward_large(*rest, bytes, outcome, effects);
            }
            (
                Waiter::Subscribe {
                    conn,
                    channel,
                    sequence,
                },
                Reply::Subscribed(outcome),
            ) => {
                flow.subscribed(from, conn, channel, sequence, outcome, effects);
            }
            (Waiter::Forward { consumer, number }, Reply::Forwarded { room, bytes }) => {
                flow.keep_parcel(bytes);
                flow.forward_answered(from, (consumer, number), room);
            }
            (Waiter::Transaction(waiter), reply) => {
                flow.transaction_answered(from, waiter, reply, effects);
            }
            (Waiter::Room { queue }, Reply::Room(has_room)) => {
                flow.room_is_answered(from, queue, has_room);
            }
            (Waiter::Control(number), reply) => {
                self.topology.answer(flow, number, reply, effects);
            }
            (Waiter::Members(queue), Reply::Done) => flow.members_said(queue, effects),
            (Waiter::Nobody, Reply::Forwarded { bytes, .. }) => flow.keep_parcel(bytes),
            (Waiter::Nobody, _) => {}
            (waiter, reply) => panic!("{reply:?} does not answer {waiter:?}"),
        }
    }
}

/// Whether a frame that is stepped here has an answer; none of these has a flag (P-92). `Settle` has,
/// and looks at them itself.
const fn asks(kind: FrameKind) -> bool {
    match kind {
        FrameKind::Attach
        | FrameKind::ProducerOpen
        | FrameKind::ProducerClose
        | FrameKind::ConsumerOpen
        | FrameKind::ConsumerClose
        | FrameKind::Get
        | FrameKind::ConsumerInspect
        | FrameKind::QueueDeclare
        | FrameKind::QueueDelete
        | FrameKind::QueuePurge
        | FrameKind::QueueInspect
        | FrameKind::QueueDescribe
        | FrameKind::QueueList
        | FrameKind::ExchangeDeclare
        | FrameKind::ExchangeDelete
        | FrameKind::ExchangeList
        | FrameKind::Bind
        | FrameKind::Unbind
        | FrameKind::BindingList
        | FrameKind::TenantDeclare
        | FrameKind::TenantDelete
        | FrameKind::TenantList
        | FrameKind::PolicySet
        | FrameKind::PolicyDelete
        | FrameKind::PolicyList
        | FrameKind::GroupList
        | FrameKind::GroupReset
        | FrameKind::GroupDelete
        | FrameKind::TransactionOpen
        | FrameKind::TransactionCommit
        | FrameKind::TransactionRollback
        | FrameKind::TransactionClose
        | FrameKind::QueueBrowse
        | FrameKind::QueueCancel
        | FrameKind::QueueMove => true,
        FrameKind::Hello
        | FrameKind::Welcome
        | FrameKind::Heartbeat
        | FrameKind::Close
        | FrameKind::Attached
        | FrameKind::Failed
        | FrameKind::Done
        | FrameKind::ProducerOpened
        | FrameKind::Publish
        | FrameKind::PublishFragment
        | FrameKind::Confirm
        | FrameKind::Refused
        | FrameKind::ProducerCredit
        | FrameKind::ProducerClosed
        | FrameKind::ConsumerOpened
        | FrameKind::ConsumerCredit
        | FrameKind::Deliver
        | FrameKind::DeliverFragment
        | FrameKind::Settle
        | FrameKind::Settled
        | FrameKind::ConsumerClosed
        | FrameKind::GetDone
        | FrameKind::ConsumerActive
        | FrameKind::ConsumerInfo
        | FrameKind::ConsumerPosition
        | FrameKind::QueueInfo
        | FrameKind::QueueDescription
        | FrameKind::ExchangeInfo
        | FrameKind::BindingInfo
        | FrameKind::TenantInfo
        | FrameKind::PolicyInfo
        | FrameKind::GroupInfo
        | FrameKind::TransactionOpened
        | FrameKind::TransactionPublish
        | FrameKind::TransactionSettle
        | FrameKind::TransactionDone
        | FrameKind::TransactionClosed
        | FrameKind::QueueBrowsed
        | FrameKind::QueueOutcome => false,
    }
}

/// Whether a client's frame is about the connection or the topology, not a channel (P-14).
const fn is_of_connection(kind: FrameKind) -> bool {
    asks(kind)
        && !matches!(
            kind,
            FrameKind::ProducerOpen
                | FrameKind::ProducerClose
                | FrameKind::ConsumerOpen
                | FrameKind::ConsumerClose
                | FrameKind::Get
                | FrameKind::ConsumerInspect
                | FrameKind::TransactionOpen
                | FrameKind::TransactionCommit
                | FrameKind::TransactionRollback
                | FrameKind::TransactionClose
        )
        || matches!(kind, FrameKind::Heartbeat | FrameKind::Close)
}

/// Some kinds have no body (P-6).
const fn no_body(body: &[u8]) -> Result<(), Code> {
    if body.is_empty() {
        Ok(())
    } else {
        Err(Code::BodyMalformed)
    }
}

/// For people: what a peer did that it may not.
fn violation_text(code: Code) -> &'static str {
    match code {
        Code::FrameMalformed => "padding is not zero",
        Code::BodyMalformed => "the body does not fit its kind, or its checksum is wrong",
        Code::UnexpectedFrame => "this state, its channel or its request number do not allow it",
        Code::CreditExceeded => "published beyond credit",
        Code::SequenceGap => "the sequence is not the next one",
        Code::MessageMalformed => "a message's checksum, envelope or parts do not hold together",
        Code::Overloaded => "too many frames for a consumer that is not open yet",
        Code::ChannelInvalid => "the channel number is out of range or in use",
        _ => "it breaks the protocol",
    }
}
