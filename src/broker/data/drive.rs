//! One core's loop: gather a bounded set of inputs, step the engine, perform its effects in batches.
//! Does not decide anything; the engine does.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use hdrhistogram::Histogram;
use ringpost_engine::data::stages::Stage;
use ringpost_engine::data::trace::{TraceEvent, TraceId, Traced, Wanted};
use ringpost_engine::effect::Severity;
use ringpost_engine::mesh::MeshMessage;
use ringpost_engine::{Effect, Effects, FailCause, Input, IoFault, Mono};
use ringpost_wire::Code;

use crate::data::buffers::BufferPool;
use crate::data::conn::{Arrival, ConnLimits, Conns, MUCH_BYTES, Protocol};
use crate::data::engine::Engine;
use crate::data::mesh::{Incoming, MeshEndpoint, PeerIdx};
use crate::data::notices::{Notices, Reporter};
use crate::data::store::Store;
use crate::rt::net::{Connection, Listener};
use crate::rt::time::{Monotonic, wall_us};
use crate::rt::{Events, Poller, Token};
use crate::snapshot::{
    AdminRequest, Asked, BUSIEST_MAX, CoreSnapshot, Counters, FollowRequest, Phase, RingSnapshot,
    latency_histogram,
};
use crate::stages::StageTimes;

/// Connections that one turn reads from.
const RECEIVES_PER_TURN_MAX: usize = 64;
/// Bytes after which a turn takes no second helping.
const TURN_BYTES: usize = 1 << 20;
/// Messages of other cores that one turn takes, per lane.
const MESH_PER_TURN_MAX: usize = 256;
/// Connections that one turn accepts.
const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Rounds of performing effects and telling the engine what came of it, in one turn.
const ROUNDS_PER_TURN_MAX: usize = 8;
/// When to try again to accept after the kernel refused: no event tells that it would not any more.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// When to try again to post to a lane that was full: its reader does not say that it has read.
const LANE_AGAIN: Duration = Duration::from_millis(1);
/// The listener's name at the poller.
const LISTENER: Token = Token::new(Token::MAX);
/// That of all listeners for AMQP.
const AMQP_LISTENERS: Token = Token::new(Token::MAX - 1);
/// Least time between two ticks given to the engine.
const TICK_NS: u64 = 1_000_000;
/// Connections beyond the limit that are told so at a time.
const TURNED_AWAY_MAX: u32 = 32;

/// What travels between the cores of a process.
#[derive(Debug)]
pub enum CoreMail {
    /// The engines' own messages.
    Engine {
        /// What it says.
        message: MeshMessage,
        /// When it was posted, if it carries messages of clients.
        posted: Option<Monotonic>,
    },
    /// A connection that moves.
    Adopt {
        /// The socket.
        socket: Connection,
        /// Bytes received and not yet stepped.
        partial: Vec<u8>,
        /// What the engine knows of it.
        session: Box<ringpost_engine::data::session::Handover>,
    },
}

/// Why a core serves nobody.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What has failed.
    pub cause: FailCause,
    /// For people.
    pub reason: String,
}

impl Failure {
    /// Of the machine, not of what is stored.
    #[must_use]
    pub fn of_machine(reason: impl Into<String>) -> Self {
        Self {
            cause: FailCause::Disk,
            reason: reason.into(),
        }
    }
}

/// The loop of one core and everything it works with.
pub struct Drive {
    /// Number of the core.
    pub core: u16,
    /// Where it waits.
    pub poller: Poller,
    /// Accepts connections; none while the core does not serve.
    pub listener: Option<Listener>,
    /// Those that accept connections which speak AMQP.
    pub amqp_listeners: Vec<Listener>,
    /// Its lanes to the other cores.
    pub mesh: MeshEndpoint<CoreMail>,
    /// Requests that may be unanswered on one of them.
    pub mesh_capacity: u32,
    /// Its journal files.
    pub store: Store,
    /// Its buffers.
    pub pool: BufferPool,
    /// Buffers in all.
    pub buffers: u32,
    /// Free buffers that the engine's block cache leaves; with fewer it has nothing left to give.
    pub buffers_free_min: u32,
    /// What it is asked from outside.
    pub requests: flume::Receiver<AdminRequest>,
    /// Where its reports go.
    pub report: Reporter,
    /// Told once when recovery is over, or why it failed.
    pub started: flume::Sender<(u16, Result<(), Failure>)>,
    /// Most connections.
    pub connections_max: u32,
    /// What its connections may keep.
    pub conn_limits: ConnLimits,
    /// How long a shutdown waits for clients to hang up.
    pub drain_timeout: Duration,
}

/// What is known of the connections that wait at the listener. An event tells of them once, so a turn
/// that leaves some has to remember it.
#[derive(Clone, Copy, Debug)]
enum Arrivals {
    /// Nobody waits.
    None,
    /// Somebody may wait.
    Waiting,
    /// Somebody waits, and the kernel would not have it before this time.
    Refused(Monotonic),
}

/// The parts that change from turn to turn.
struct Running {
    engine: Engine,
    effects: Effects,
    conns: Conns,
    /// Connections whose handover found the lane full.
    leaving: VecDeque<(PeerIdx, CoreMail)>,
    write_ns: Histogram<u64>,
    stages: StageTimes,
    /// Messages that were confirmed, and delivered, before this turn.
    told: (u64, u64),
    failed: Option<Failure>,
    told_started: bool,
    arrivals: Arrivals,
    shutting_down: bool,
    /// When a shutdown cuts off the clients that are left.
    cut_off: Option<Monotonic>,
    ticked: u64,
    turns: u64,
    write_bytes: u64,
    read_bytes: u64,
    accepted: u64,
    handovers: u64,
    notices: Notices,
    /// Who is told of each message that is followed: as many as the engine follows at most.
    followers: Vec<(TraceId, flume::Sender<Traced>)>,
}

impl Drive {
    /// Runs until a shutdown is complete.
    pub async fn run(mut self, engine: Engine, effects: Effects) {
        let mut running = Running {
            engine,
            effects,
            conns: Conns::new(self.conn_limits),
            leaving: VecDeque::new(),
            write_ns: latency_histogram(),
            stages: StageTimes::default(),
            told: (0, 0),
            failed: None,
            told_started: false,
            arrivals: Arrivals::None,
            shutting_down: false,
            cut_off: None,
            ticked: 0,
            turns: 0,
            write_bytes: 0,
            read_bytes: 0,
            accepted: 0,
            handovers: 0,
            notices: Notices::default(),
            followers: Vec::new(),
        };
        if let Some(listener) = &self.listener
            && let Err(error) = self.poller.register(listener.as_fd(), LISTENER)
        {
            let _ = self.started.send((
                self.core,
                Err(Failure::of_machine(format!("cannot listen: {error}"))),
            ));
            return;
        }
        for listener in &self.amqp_listeners {
            if let Err(error) = self.poller.register(listener.as_fd(), AMQP_LISTENERS) {
                let text = format!("cannot listen for AMQP: {error}");
                let _ = self
                    .started
                    .send((self.core, Err(Failure::of_machine(text))));
                return;
            }
        }
        let mut events = Events::new();
        // The engine has not been asked for anything yet: its first turn starts recovery.
        self.turn(&mut running, &mut events);
        loop {
            let deadline = running.deadline();
            let (mesh, store, requests) = (&self.mesh, &self.store, &self.requests);
            let waited = self
                .poller
                .wait(deadline, &mut events, || {
                    mesh.has_incoming() || store.has_answers() || !requests.is_empty()
                })
                .await;
            if let Err(error) = waited {
                let text = format!("core {} cannot wait for events: {error}", self.core);
                (self.report)(Severity::Error, text);
                let _ = self
                    .started
                    .send((self.core, Err(Failure::of_machine("the poller failed"))));
                return;
            }
            self.turn(&mut running, &mut events);
            if running.shutting_down
                && running.engine.is_drained()
                && self.store.is_idle()
                && running.conns.is_empty()
                && self.poller.in_flight() == 0
            {
                break;
            }
        }
        self.store.close();
    }

    fn turn(&mut self, running: &mut Running, events: &mut Events) {
        running.turns += 1;
        let now = Mono(Monotonic::now().as_nanos());
        if now.0 - running.ticked >= TICK_NS {
            running.ticked = now.0;
            self.step(running, now, Input::Tick { wall_us: wall_us() });
            if let Some(flow) = running.engine.flow() {
                let refusals = flow.stats().refusals;
                running.notices.tell(now, &refusals, &self.report);
            }
        }
        let code = Code::TimedOut;
        for conn in running.conns.silent(Monotonic::from_nanos(now.0)) {
            self.step(running, now, Input::Malformed { conn, code });
        }
        for completion in events.completions.drain(..) {
            let input = self.store.completed(completion, &mut self.pool);
            self.step(running, now, input);
        }
        for ns in self.store.write_ns.drain(..) {
            running.write_ns.saturating_record(ns);
        }
        while let Some(input) = self.store.answer() {
            self.step(running, now, input);
        }
        self.take_mail(running, now);
        while let Ok(request) = self.requests.try_recv() {
            self.obey(running, now, request);
        }
        for event in &events.sockets {
            if event.token == LISTENER || event.token == AMQP_LISTENERS {
                running.arrivals = Arrivals::Waiting;
            } else {
                running.conns.note(event);
            }
        }
        self.hang_up_late(running);
        if running
            .accepts_at()
            .is_some_and(|at| at.as_nanos() <= now.0)
        {
            self.accept(running, now);
        }
        self.receive(running, now);
        let late = Mono(Monotonic::now().as_nanos());
        self.step(running, late, Input::TurnEnd);
        self.perform(running, now);
        self.store.hurry(running.engine.is_short_of_slots());
        // What has room now is read in a turn of its own; nothing else may call for one.
        let engine = &running.engine;
        running.conns.read_again(|conn| engine.is_read(conn));
        if !running.told_started && (running.engine.is_running() || running.engine.has_failed()) {
            running.told_started = true;
            let outcome = match &running.failed {
                None if running.engine.is_running() => Ok(()),
                reason => Err(reason
                    .clone()
                    .unwrap_or_else(|| Failure::of_machine("recovery failed"))),
            };
            // The rest of the process may have given up waiting; then nobody needs to hear it.
            let _ = self.started.send((self.core, outcome));
        }
    }

    /// Cuts off those who were told to hang up and did not.
    fn hang_up_late(&mut self, running: &mut Running) {
        let now = Monotonic::now();
        if running.cut_off.is_some_and(|late| late <= now) {
            // Once is enough: nobody is let in any more.
            running.cut_off = None;
            running.conns.drop_all(&mut self.pool);
        }
        running.conns.expire(now, &mut self.pool);
    }

    fn step(&mut self, running: &mut Running, now: Mono, input: Input<'_>) {
        running
            .engine
            .step(now, input, &mut self.pool, &mut running.effects);
    }

    fn take_mail(&mut self, running: &mut Running, now: Mono) {
        for peer in self.mesh.peers() {
            let from = ringpost_wire::ids::CoreId(peer.0 as u16);
            for _ in 0..MESH_PER_TURN_MAX {
                let mail = match self.mesh.take_reply(peer) {
                    Some(Incoming::Reply(mail) | Incoming::Control(mail)) => mail,
                    None => break,
                };
                self.deliver_mail(running, now, from, mail);
            }
            for _ in 0..MESH_PER_TURN_MAX {
                let Some(mail) = self.mesh.take_request(peer) else {
                    break;
                };
                self.deliver_mail(running, now, from, mail);
            }
        }
    }

    fn deliver_mail(
        &mut self,
        running: &mut Running,
        now: Mono,
        from: ringpost_wire::ids::CoreId,
        mail: CoreMail,
    ) {
        match mail {
            CoreMail::Engine { message, posted } => {
                if let Some(posted) = posted {
                    let ns = now.0.saturating_sub(posted.as_nanos());
                    running.stages.add(Stage::Ring, ns, message.published());
                }
                self.step(running, now, Input::Mesh { from, message });
            }
            CoreMail::Adopt {
                socket,
                partial,
                session,
            } => {
                if running.conns.len() >= self.connections_max || running.shutting_down {
                    // Dropping the socket closes it; the client reconnects with back-off.
                    return;
                }
                match running.conns.adopt(socket, partial, &mut self.poller) {
                    Ok(conn) => self.step(running, now, Input::Adopted { conn, session }),
                    Err(error) => {
                        let text = format!("cannot adopt a connection: {error}");
                        (self.report)(Severity::Warning, text);
                    }
                }
            }
        }
    }

    fn obey(&mut self, running: &mut Running, now: Mono, request: AdminRequest) {
        match request {
            AdminRequest::Snapshot { reply, asked } => {
                let mut snapshot = self.snapshot(running);
                match asked {
                    Asked::Counters => {}
                    Asked::Stages => snapshot.stages = Some(Box::new(running.stages.clone())),
                    Asked::Queues => snapshot.busiest = running.engine.busiest(BUSIEST_MAX),
                }
                // Who asked may have stopped waiting.
                let _ = reply.try_send(snapshot);
            }
            AdminRequest::Follow(request) => running.follow(now, *request),
            AdminRequest::Shutdown => {
                running.shutting_down = true;
                running.cut_off = Some(Monotonic::now().plus(self.drain_timeout));
                self.listener = None;
                self.amqp_listeners.clear();
                running.arrivals = Arrivals::None;
                self.step(running, now, Input::Shutdown);
            }
        }
    }

    fn snapshot(&self, running: &Running) -> CoreSnapshot {
        let mut snapshot = CoreSnapshot {
            phase: match &running.failed {
                Some(failure) => Phase::FailStopped {
                    reason: failure.reason.clone(),
                },
                None if running.shutting_down => Phase::Draining,
                None if running.engine.is_running() => Phase::Serving,
                None => Phase::Recovering {
                    done_bytes: running.read_bytes,
                },
            },
            connections: running.conns.len(),
            buffers_free: self.pool.free_count() as u32,
            buffers_total: self.buffers,
            ..CoreSnapshot::default()
        };
        snapshot.journal.write_ns = running.write_ns.clone();
        snapshot.journal.write_bytes = running.write_bytes;
        let Some(flow) = running.engine.flow() else {
            return snapshot;
        };
        let stats = flow.stats();
        snapshot.refusals = stats.refusals.iter().collect();
        snapshot.rings = flow
            .lanes()
            .map(|(core, occupied)| RingSnapshot {
                peer: core.0,
                occupied,
                capacity: self.mesh_capacity,
            })
            .collect();
        let transactions = flow.transaction_figures();
        snapshot.transactions_prepared = transactions.prepared;
        let mut returned = stats.refusals.iter();
        let returned = returned.find(|(code, _)| *code == Code::Unroutable);
        snapshot.counters = Counters {
            connections_opened: running.accepted,
            handovers: running.handovers,
            publishes: stats.published,
            publish_bytes: stats.published_bytes,
            confirms: stats.rested - stats.refused.min(stats.rested),
            returns: returned.map_or(0, |(_, count)| count),
            deliveries: stats.delivered,
            delivery_bytes: stats.delivered_bytes,
            redeliveries: stats.redelivered,
            acks: stats.settled,
            requeues: stats.returned,
            deaths: flow.deaths(),
            dead_letters: stats.dead_lettered,
            dead_letters_unroutable: stats.dead_unroutable,
            transactions_committed: transactions.committed,
            transactions_rolled_back: transactions.rolled_back,
            shared: stats.shared,
            turns: running.turns,
        };
        let (free, live) = flow.slots();
        snapshot.journal.segments_free = free;
        snapshot.journal.segments_live = live;
        for figures in flow.figures() {
            let queues = &mut snapshot.queues;
            queues.queues += 1;
            queues.ready += figures.ready;
            queues.unacked += figures.unacked;
            queues.delayed += figures.delayed;
            queues.dead += figures.dead;
            queues.bytes += figures.bytes;
            queues.consumers += u64::from(figures.consumers);
            queues.damaged += u64::from(figures.damaged);
        }
        snapshot
    }

    fn accept(&mut self, running: &mut Running, now: Mono) {
        if self.listener.is_none() {
            // It was closed in the turn that heard of them: nobody is let in any more.
            running.arrivals = Arrivals::None;
            return;
        }
        let mut left = ACCEPTS_PER_TURN_MAX;
        let native = self.listener.iter();
        let native = native.map(|listener| (listener, Protocol::Native));
        let amqp = self.amqp_listeners.iter();
        let amqp = amqp.map(|listener| (listener, Protocol::Amqp));
        for (listener, protocol) in native.chain(amqp) {
            loop {
                if left == 0 {
                    return;
                }
                left -= 1;
                let socket = match listener.accept() {
                    Ok(Some(socket)) => socket,
                    Ok(None) => break,
                    Err(error) => {
                        // Out of descriptors or memory. Those who wait stay, and no event tells of
                        // them.
                        running.arrivals = Arrivals::Refused(Monotonic::now().plus(ACCEPT_AGAIN));
                        running.notices.accept_failed = Some(error);
                        return;
                    }
                };
                let is_one_too_many = running.conns.len() >= self.connections_max;
                if running.conns.len() >= self.connections_max + TURNED_AWAY_MAX {
                    // Dropped, and thereby closed, without a word: enough others are being told.
                    running.notices.dropped += 1;
                    continue;
                }
                let is_local = protocol == Protocol::Amqp && socket.is_local();
                let Ok(conn) = running.conns.add(socket, protocol, &mut self.poller) else {
                    continue;
                };
                running.accepted += 1;
                let (pool, effects) = (&mut self.pool, &mut running.effects);
                let engine = &mut running.engine;
                let opened = match protocol {
                    Protocol::Native => Input::Opened { conn },
                    Protocol::Amqp => Input::OpenedAmqp { conn, is_local },
                };
                engine.step(now, opened, pool, effects);
                if is_one_too_many {
                    engine.step(now, Input::Unwanted { conn }, pool, effects);
                }
            }
        }
        running.arrivals = Arrivals::None;
    }

    fn receive(&mut self, running: &mut Running, now: Mono) {
        let Running {
            engine,
            effects,
            conns,
            stages,
            ..
        } = running;
        let pool = &mut self.pool;
        let mut gone = Vec::new();
        let mut received = 0;
        let mut left = conns.readable_count().min(RECEIVES_PER_TURN_MAX);
        while left > 0 {
            left -= 1;
            let Some(id) = conns.next_readable() else {
                break;
            };
            if !engine.is_read(id) {
                conns.leave_unread(id);
                continue;
            }
            conns.receive(id, |conn, arrival| match arrival {
                Arrival::Frames(bytes) => {
                    received += bytes.len();
                    // While one frame is stepped the next may have come: a turn that takes more of
                    // them has fewer seals, syncs and visits of queues for each message.
                    if bytes.len() >= MUCH_BYTES && received < TURN_BYTES {
                        left += 1;
                    }
                    // What comes together shares its times: two looks at the clock for a helping.
                    let published = engine.published();
                    let start = Mono(Monotonic::now().as_nanos());
                    engine.step(start, Input::Frames { conn, bytes }, pool, effects);
                    let count = engine.published() - published;
                    if count > 0 {
                        let end = Monotonic::now().as_nanos();
                        stages.add(Stage::Receive, start.0 - now.0, count);
                        stages.add(Stage::Route, end - start.0, count);
                    }
                }
                Arrival::Malformed(code) => {
                    engine.step(now, Input::Malformed { conn, code }, pool, effects);
                }
                Arrival::Gone => {
                    engine.step(now, Input::Closed { conn }, pool, effects);
                    gone.push(conn);
                }
                Arrival::Nothing => {}
            });
        }
        for conn in gone {
            // Pieces of this turn's arena for it are skipped when they find it gone.
            conns.drop_gone(conn, pool);
        }
    }

    /// Performs everything the engine asked for in this turn, which began at `began`.
    fn perform(&mut self, running: &mut Running, began: Mono) {
        if !running.leaving.is_empty() {
            self.send_leaving(running);
            self.mesh.publish();
        }
        // A failed submission answers at once, and taken bytes are told to the engine, which may
        // ask for more: each round moves bytes into sockets or ends an operation.
        for _ in 0..ROUNDS_PER_TURN_MAX {
            running.take_samples();
            // A socket that takes bytes again has to be served although the engine wants nothing.
            if running.effects.list.is_empty() && !running.conns.has_sending() {
                break;
            }
            let mut effects = std::mem::take(&mut running.effects);
            running.engine.performing(&effects, &self.pool);
            let mut answers: Vec<Input<'static>> = Vec::new();
            for effect in effects.list.drain(..) {
                self.perform_one(running, effect, &effects.bytes, &mut answers);
            }
            if let Err(error) = self.poller.submit() {
                let text = format!("the ring takes no more operations: {error}");
                (self.report)(Severity::Error, text);
            }
            self.mesh.publish();
            let now = Monotonic::now();
            effects.list.clear();
            let mut sent = Vec::new();
            running
                .conns
                .flush(now, &effects.bytes, &mut self.pool, |conn, bytes| {
                    sent.push((conn, bytes));
                });
            effects.clear();
            running.effects = effects;
            running.note_told(began);
            let now = Mono(now.as_nanos());
            let again = !answers.is_empty();
            for input in answers {
                self.step(running, now, input);
            }
            for (conn, bytes) in sent {
                self.step(running, now, Input::Sent { conn, bytes });
            }
            if again {
                self.step(running, now, Input::TurnEnd);
            }
        }
        self.relieve(running);
    }

    /// Takes buffers back from those who do not read: by copies, or, if there is no room for those and
    /// the engine is short of buffers, from one at a time by cutting it off.
    fn relieve(&mut self, running: &mut Running) {
        running.conns.copy_out(Monotonic::now(), &mut self.pool);
        if self.pool.free_count() < self.buffers_free_min as usize
            && running.conns.cut_longest_pinning(&mut self.pool)
        {
            running.notices.cut += 1;
        }
    }

    fn perform_one(
        &mut self,
        running: &mut Running,
        effect: Effect,
        arena: &[u8],
        answers: &mut Vec<Input<'static>>,
    ) {
        match effect {
            Effect::Send { conn, range } => running.conns.send_arena(conn, range),
            Effect::SendBuffer {
                conn,
                buffer,
                range,
            } => {
                running
                    .conns
                    .send_buffer(conn, buffer, range, &mut self.pool);
            }
            Effect::Close { conn } => running.conns.close(conn, Monotonic::now()),
            Effect::Handover { conn, to, session } => {
                running.handovers += 1;
                let taken = running
                    .conns
                    .take(conn, arena, &mut self.pool, &mut self.poller);
                if let Some((socket, partial)) = taken {
                    let mail = CoreMail::Adopt {
                        socket,
                        partial,
                        session,
                    };
                    running
                        .leaving
                        .push_back((PeerIdx(usize::from(to.0)), mail));
                }
                self.send_leaving(running);
            }
            Effect::Write {
                op,
                slot,
                position,
                buffer,
                range,
            } => {
                running.write_bytes += (range.end - range.start) as u64;
                let queued = self.store.write(
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                    &mut self.pool,
                    &mut self.poller,
                );
                if let Err(fault) = queued {
                    answers.push(io_failed(op, buffer, fault));
                }
            }
            Effect::Read {
                op,
                slot,
                position,
                buffer,
                range,
            } => {
                running.read_bytes += (range.end - range.start) as u64;
                let queued = self.store.read(
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                    &mut self.pool,
                    &mut self.poller,
                );
                if let Err(fault) = queued {
                    answers.push(io_failed(op, buffer, fault));
                }
            }
            Effect::Release { buffer } => {
                self.pool.release(buffer);
            }
            Effect::File { op, what } => self.store.file(op, what),
            Effect::Mesh { to, message } => {
                let peer = PeerIdx(usize::from(to.0));
                let is_reply = message.is_reply();
                let posted = (message.published() > 0).then(Monotonic::now);
                let mail = CoreMail::Engine { message, posted };
                if is_reply {
                    self.mesh.reply(peer, mail);
                } else {
                    let posted = self.mesh.request(peer, mail);
                    assert!(posted.is_ok(), "the engine keeps to the lanes' capacity");
                }
            }
            Effect::FailStop { cause, reason } => {
                let text = format!(
                    "the journal has failed: {reason}; nothing durable is confirmed or delivered \
                     until a restart"
                );
                (self.report)(Severity::Error, text);
                running.failed = Some(Failure { cause, reason });
            }
            Effect::Report { severity, text } => (self.report)(severity, text),
        }
    }

    fn send_leaving(&mut self, running: &mut Running) {
        while let Some((peer, mail)) = running.leaving.pop_front() {
            if let Err(mail) = self.mesh.control(peer, mail) {
                running.leaving.push_front((peer, mail));
                return;
            }
        }
    }
}

impl Running {
    /// Puts what the engine says of stages into the histograms.
    fn take_samples(&mut self) {
        for sample in self.effects.samples.drain(..) {
            self.stages.add_sample(sample);
        }
        if !self.effects.traced.is_empty() {
            self.tell_followers();
        }
    }

    fn follow(&mut self, now: Mono, request: FollowRequest) {
        self.leave_the_gone();
        let wanted = Wanted {
            tenant: request.tenant,
            queue: request.queue,
            routing_key: request.routing_key,
            until: now.plus_ms(request.lasts_ms),
        };
        let outcome = self.engine.follow(wanted);
        let is_heard = request.reply.try_send(outcome).is_ok();
        match outcome {
            Ok(trace) if is_heard => self.followers.push((trace, request.events)),
            // Who asked has stopped waiting.
            Ok(trace) => self.engine.unfollow(trace),
            Err(_) => {}
        }
    }

    /// Follows nothing for those who do not ask any more: they make room for others.
    fn leave_the_gone(&mut self) {
        let engine = &mut self.engine;
        self.followers.retain(|(trace, events)| {
            let is_gone = events.is_disconnected();
            if is_gone {
                engine.unfollow(*trace);
            }
            !is_gone
        });
    }

    fn tell_followers(&mut self) {
        for traced in self.effects.traced.drain(..) {
            let is_it = |(trace, _): &(TraceId, _)| *trace == traced.trace;
            let Some(idx) = self.followers.iter().position(is_it) else {
                continue;
            };
            let is_told = self.followers[idx].1.try_send(traced).is_ok();
            if !is_told {
                self.engine.unfollow(traced.trace);
            }
            if !is_told || matches!(traced.event, TraceEvent::Ended(_)) {
                self.followers.swap_remove(idx);
            }
        }
    }

    /// What was said in this turn has just been given to sockets.
    fn note_told(&mut self, began: Mono) {
        let Some(flow) = self.engine.flow() else {
            return;
        };
        let (confirmed, delivered) = flow.told();
        let (confirms, deliveries) = (confirmed - self.told.0, delivered - self.told.1);
        if confirms + deliveries > 0 {
            self.told = (confirmed, delivered);
            let ns = Monotonic::now().as_nanos() - began.0;
            self.stages.add(Stage::Confirm, ns, confirms);
            self.stages.add(Stage::Dispatch, ns, deliveries);
        }
    }

    /// When the next turn is due if nothing happens before. What is left of a turn and of which no
    /// event will tell again has to be named here, or it waits for somebody else's event.
    fn deadline(&mut self) -> Option<Monotonic> {
        let now = Monotonic::now();
        let is_left = self.conns.has_readable()
            || self.conns.has_sending()
            || self.conns.take_freed()
            || !self.effects.list.is_empty();
        if is_left {
            return Some(now);
        }
        let engine = self.engine.next_deadline(Mono(now.as_nanos()));
        let engine = engine.map(|mono| Monotonic::from_nanos(mono.0));
        let conns = self.conns.next_deadline();
        let leaving = (!self.leaving.is_empty()).then(|| now.plus(LANE_AGAIN));
        let all = [engine, conns, leaving, self.cut_off, self.accepts_at()];
        all.into_iter().flatten().min()
    }

    /// When to accept connections; nobody is let in before the core serves.
    fn accepts_at(&self) -> Option<Monotonic> {
        if !self.engine.is_running() {
            return None;
        }
        match self.arrivals {
            Arrivals::None => None,
            Arrivals::Waiting => Some(Monotonic::from_nanos(0)),
            Arrivals::Refused(until) => Some(until),
        }
    }
}

fn io_failed(
    op: ringpost_engine::OpId,
    buffer: ringpost_engine::BufferId,
    fault: IoFault,
) -> Input<'static> {
    Input::Io {
        op,
        buffer,
        result: Err(fault),
    }
}
