//! One world: cores, disks, mesh, connections and clients on one agenda, and the faults between
//! them. Does not know what the engine decides or what clients say.
//!
//! A world has phases. *Busy*: clients do as they like and faults happen. *Calming*: no new fault;
//! in safety mode the power fails a last time, in liveness mode everything that was sent must be
//! answered. *Draining*: one client per tenant empties every queue. *Again*: half of the worlds
//! crash once more and drain what should be nothing. Then the history is judged.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use ringpost_check::{Event, Kind, Verdict};
use ringpost_engine::data::session::Handover;
use ringpost_engine::effect::{FailCause, Severity};
use ringpost_engine::mesh::MeshMessage;
use ringpost_engine::{BufferId, ConnId, Effect, Effects, FileReply, Input, IoFault, Mono, OpId};
use ringpost_wire::Code;
use ringpost_wire::ids::CoreId;

use crate::client::Client;
use crate::disk::{Disk, Done, Fate};
use crate::engine::{self, Engine};
use crate::memory::Pool;
use crate::network::{Arrived, Link};
use crate::plan::{Fault, Leaning, Mode, Plan};
use crate::random::{Random, Rate};
use crate::say;
use crate::scene::{Scene, Shape, Trace};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
/// Virtual time that a crash waits for two writes in flight, beside that of some writes.
const CRASH_WAIT_MAX: u64 = 80 * MS;
/// How many.
const CRASH_WAIT_WRITES: u64 = 40;
const SECOND: u64 = 1_000_000_000;
/// Virtual time after which a busy world calms down, whatever was published.
const BUSY_MAX: u64 = 10 * SECOND;
/// Virtual time in which a change without an answer is done or will never be.
const OPEN_CHANGE_MAX: u64 = 10 * SECOND;
/// Happenings after which a busy world calms down.
const BUSY_HAPPENINGS_MAX: u64 = 200_000;
/// Bytes of one receive.
const RECEIVE_BYTES: u64 = 256 << 10;
/// Good writes behind one that never came to its place that may still leave no trace of it.
const UNTRACED_MAX: u32 = 4;
/// How long a connection may hold buffers that the kernel does not take, as in the shell.
const COPY_AFTER: u64 = 10 * MS;
/// Virtual time in which a calm world must have answered everything, or have drained.
const CALM_MAX: u64 = 100 * SECOND;
/// Virtual time after which a world is drained though something is still under way.
const REST_MAX: u64 = 20 * SECOND;
/// Happenings after which a calm world counts as spinning.
const HAPPENINGS_MAX: u64 = 1_500_000;
/// Wall clock at the beginning, µs since 1970.
const WALL_START_US: u64 = 1_790_000_000_000_000;

/// Something on the agenda. `life` is the start of the broker it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Happening {
    Turn {
        core: usize,
        life: u32,
    },
    Deadline {
        core: usize,
        life: u32,
    },
    Disk {
        core: usize,
        op: OpId,
        life: u32,
    },
    Mesh {
        from: usize,
        to: usize,
        is_reply: bool,
        life: u32,
    },
    Adopt {
        link: u64,
        life: u32,
    },
    Arrive {
        link: u64,
    },
    Give {
        link: u64,
    },
    CopyOut {
        link: u64,
        life: u32,
    },
    Act {
        client: usize,
    },
    Accept {
        client: usize,
        dial: u32,
    },
    Trouble,
    Crash {
        life: u32,
    },
    Last {
        life: u32,
    },
    Start,
    Phase,
    Room,
}

/// An input that waits for its turn.
enum Waiting {
    Opened(ConnId),
    Adopted(ConnId, Box<Handover>),
    Frames(ConnId, Vec<u8>),
    Malformed(ConnId, Code),
    Closed(ConnId),
    Sent(ConnId, u32),
    Io(OpId, BufferId, Result<(), IoFault>),
    File(OpId, Result<FileReply, IoFault>),
    Mesh(usize, MeshMessage),
    Tick,
    Shutdown,
}

/// An operation of the disk and the memory it uses.
struct Operation {
    buffer: BufferId,
    range: std::ops::Range<u32>,
}

struct Core {
    engine: Engine,
    effects: Effects,
    waiting: VecDeque<Waiting>,
    operations: BTreeMap<OpId, Operation>,
    turn_scheduled: bool,
    deadline_scheduled: Option<u64>,
    stalled_until: u64,
    /// The disk answers nothing before this time.
    hung_until: u64,
    has_failed: bool,
    /// Good writes since one was dropped.
    writes_since_hole: Option<u32>,
}

impl Core {
    /// Bytes that were received and are not stepped.
    fn unstepped_bytes(&self) -> u64 {
        let frames = self.waiting.iter().map(|input| match input {
            Waiting::Frames(_, bytes) => bytes.len() as u64,
            _ => 0,
        });
        frames.sum()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Busy,
    /// Waits for answers until then.
    Calming(u64),
    /// Waits until everything that returns has returned.
    Settling(u64),
    /// Draining, until then at most.
    Draining(u64),
    Over,
}

/// What became of a world.
#[derive(Debug)]
pub struct Outcome {
    /// What is wrong, if anything.
    pub failure: Option<String>,
    /// Equal for equal worlds.
    pub trace_hash: u64,
    /// Marks reached.
    pub marks: crate::scene::Marks,
    /// What the history holds.
    pub counts: ringpost_check::Counts,
    /// Happenings.
    pub happenings: u64,
    /// Virtual time at the end, in nanoseconds.
    pub time: u64,
    /// What kind of world it was.
    pub plan: Plan,
    /// What it came to hold.
    pub shape: Shape,
}

/// A world.
pub struct World {
    scene: Scene,
    cores: Vec<Core>,
    /// Apart from the cores, so that a connection can let go of a buffer of any.
    pools: Vec<Option<Pool>>,
    disks: Vec<Disk>,
    mesh: BTreeMap<(usize, usize, bool), VecDeque<MeshMessage>>,
    mesh_last: BTreeMap<(usize, usize, bool), u64>,
    links: BTreeMap<u64, Link>,
    link_of: BTreeMap<ConnId, u64>,
    moving: BTreeMap<u64, (Box<Handover>, Vec<Waiting>)>,
    clients: Vec<Client>,
    link_of_client: Vec<Option<u64>>,
    agenda: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    happenings: u64,
    ties: u64,
    conns: u64,
    life: u32,
    is_up: bool,
    /// Every core runs.
    is_serving: bool,
    crashes_while_starting: u32,
    /// Starts that ended with a report instead of a core that runs.
    refused_starts: u32,
    /// A crash is due and waits until then at most.
    crash_until: Option<u64>,
    /// The broker was asked to end, which it must do until then.
    ending_until: Option<u64>,
    /// The world is about to calm down, with the last crash, then at the latest.
    calm_until: Option<u64>,
    wall_skew_us: i64,
    phase: Phase,
    drains_left: u32,
    /// When a core last said something to another.
    mesh_busy_at: u64,
    /// A crash came so soon behind a write that never came to its place that nothing tells of it.
    has_lost_an_end: bool,
    /// One stream per purpose.
    random_disk: Random,
    random_network: Random,
    random_turns: Random,
    random_trouble: Random,
    random_crash: Random,
}

impl World {
    /// A world before anything happened.
    #[must_use]
    pub fn new(plan: Plan, trace: Trace, history: Option<Box<dyn std::io::Write>>) -> Self {
        let seed = plan.seed;
        let mut scene = Scene::new(plan, trace, history);
        let stream = |number| Random::new(seed, number);
        let mut random_trouble = stream(4);
        let plan = &scene.plan;
        let disks = (0..plan.cores)
            .map(|_| {
                let mut disk = Disk::new(plan.disk_bytes);
                if plan.faults.has(Fault::LyingSync) {
                    disk.start_lying();
                }
                disk
            })
            .collect();
        for fault in plan.faults.iter() {
            scene.marks.hit(fault.word());
        }
        let clients: Vec<Client> = (0..plan.clients)
            .map(|id| Client::new(id, &scene))
            .collect();
        let drains_left = 1 + u32::from(random_trouble.coin());
        Self {
            link_of_client: vec![None; clients.len()],
            clients,
            cores: Vec::new(),
            pools: Vec::new(),
            disks,
            mesh: BTreeMap::new(),
            mesh_last: BTreeMap::new(),
            links: BTreeMap::new(),
            link_of: BTreeMap::new(),
            moving: BTreeMap::new(),
            agenda: BinaryHeap::new(),
            happenings: 0,
            ties: 0,
            conns: 0,
            life: 0,
            is_up: false,
            is_serving: false,
            crashes_while_starting: 0,
            refused_starts: 0,
            crash_until: None,
            ending_until: None,
            calm_until: None,
            wall_skew_us: 0,
            phase: Phase::Busy,
            drains_left,
            mesh_busy_at: 0,
            has_lost_an_end: false,
            random_disk: stream(1),
            random_network: stream(2),
            random_turns: stream(3),
            random_trouble,
            random_crash: stream(8),
            scene,
        }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        say!(self.scene, "{:?}", self.scene.plan);
        self.at(0, Happening::Start);
        for client in 0..self.clients.len() {
            let delay = self.random_network.below(MS);
            self.at(delay, Happening::Act { client });
        }
        self.at(MS, Happening::Trouble);
        self.at(MS, Happening::Phase);
        while self.phase != Phase::Over && self.scene.failure.is_none() {
            let Some(Reverse((time, _, happening))) = self.agenda.pop() else {
                self.scene.fail("nothing is on the agenda any more".into());
                break;
            };
            self.scene.now = time;
            self.happenings += 1;
            self.scene.trace.hash.word(time);
            self.happen(happening);
            if self.happenings > HAPPENINGS_MAX {
                self.scene.fail(format!(
                    "{HAPPENINGS_MAX} happenings and no end: {}",
                    self.describe()
                ));
            }
        }
        self.judge()
    }

    fn judge(mut self) -> Outcome {
        let mut verdict = Verdict {
            violation_count: self.scene.checker().violation_count(),
            violations: self.scene.checker().violations().to_vec(),
            counts: *self.scene.checker().counts(),
            ended: true,
        };
        if self.scene.tolerates_losses() && self.scene.failure.is_none() {
            // What a lying drive took back nobody can know, nor a write that was dropped or went
            // elsewhere last of all.
            let is_unknowable =
                self.scene.plan.faults.has(Fault::LyingSync) || self.has_lost_an_end;
            let reported = self.scene.damage_reported || is_unknowable;
            verdict
                .violations
                .retain(|found| !is_tolerable(found.kind, reported));
            if let Some(found) = verdict.violations.first() {
                self.scene.failure = Some(format!("{found}, damage reported: {reported}"));
            }
        }
        let counts = verdict.counts;
        let hash = &mut self.scene.trace.hash;
        for word in [
            counts.events,
            counts.sent,
            counts.confirmed,
            counts.delivered,
            counts.acked,
        ] {
            hash.word(word);
        }
        let marks = &mut self.scene.marks;
        marks.add("event published", counts.sent);
        marks.add("event confirmed", counts.confirmed);
        marks.add("event refused", counts.refused);
        marks.add("event unknown", counts.unknown);
        marks.add("event delivered", counts.delivered);
        marks.add("event acked", counts.acked);
        marks.add("event ack confirmed", counts.ack_confirmed);
        Outcome {
            failure: self.scene.failure,
            trace_hash: self.scene.trace.hash.0,
            marks: self.scene.marks,
            counts,
            happenings: self.happenings,
            time: self.scene.now,
            plan: self.scene.plan,
            shape: self.scene.shape,
        }
    }

    fn at(&mut self, delay: u64, happening: Happening) {
        self.ties += 1;
        let time = self.scene.now + delay;
        self.agenda.push(Reverse((time, self.ties, happening)));
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Turn { core, life } if life == self.life => self.turn(core),
            Happening::Deadline { core, life } if life == self.life => self.deadline(core),
            Happening::Disk { core, op, life } if life == self.life => self.disk_done(core, op),
            Happening::Mesh {
                from,
                to,
                is_reply,
                life,
            } if life == self.life => self.mesh_arrives(from, to, is_reply),
            Happening::Adopt { link, life } if life == self.life => self.adopt(link),
            Happening::CopyOut { link, life } if life == self.life => self.copy_out(link),
            Happening::Turn { .. }
            | Happening::CopyOut { .. }
            | Happening::Deadline { .. }
            | Happening::Disk { .. }
            | Happening::Mesh { .. }
            | Happening::Adopt { .. } => {}
            Happening::Arrive { link } => self.arrive(link),
            Happening::Give { link } => self.give(link),
            Happening::Act { client } => self.act(client),
            Happening::Accept { client, dial } => self.accept(client, dial),
            Happening::Trouble => self.trouble(),
            Happening::Crash { life } if life == self.life => {
                let has_failed = self.cores.iter().any(|core| core.has_failed);
                if let Some(until) = self.ending_until {
                    if self.scene.now >= until {
                        let what = self.describe();
                        self.scene.fail(format!("a shutdown does not end: {what}"));
                    } else if !self.scene.is_healthy {
                        self.crash();
                    }
                } else if has_failed || (!self.scene.is_healthy && !self.waits_to_crash()) {
                    let is_clean = !has_failed && self.is_serving;
                    match is_clean && self.random_crash.below(12) == 0 {
                        true => self.shut_down(),
                        false => self.crash(),
                    }
                }
            }
            Happening::Last { life } if life == self.life && self.has_two_writes() => {
                if self.is_about_to_calm() {
                    self.calm_down();
                } else if self.may_crash_in_a_drain() {
                    self.crash_in_a_drain();
                }
            }
            Happening::Last { .. } => {}
            Happening::Crash { .. } => {}
            Happening::Start => self.start(),
            Happening::Phase => self.change_phase(),
            Happening::Room => self.give_room(),
        }
    }

    // ---- starts and crashes ------------------------------------------------------------------

    /// Draws when this life ends: now and then while it starts, else some time after.
    fn schedule_crash(&mut self) {
        let life = self.life;
        let is_soon = self.scene.has(Fault::CrashTwice)
            && self.crashes_while_starting < 4
            && self.random_trouble.below(3) == 0;
        if is_soon {
            self.crashes_while_starting += 1;
            let delay = self
                .random_trouble
                .scale(10 * US..=40 * self.scene.plan.device);
            self.at(delay, Happening::Crash { life });
        }
    }

    /// Every core runs: connections come, and some time later the end of this life.
    fn is_all_running(&mut self) {
        self.crashes_while_starting = 0;
        say!(self.scene, "==== every core runs");
        if let Phase::Settling(until) = &mut self.phase {
            // A core that came late has yet to hear who is gone.
            *until = (*until).max(self.scene.now + 300 * MS + 4 * self.scene.plan.mesh_max);
        }
        if self.scene.has(Fault::Crash) {
            let delay = self
                .random_trouble
                .within(1..=2 * self.scene.plan.crash_every);
            let life = self.life;
            self.at(delay, Happening::Crash { life });
        }
    }

    /// Whether the crash that is due waits until two writes of a core are in flight, as most do: that is
    /// when the most is at stake.
    fn waits_to_crash(&mut self) -> bool {
        let now = self.scene.now;
        let until = match self.crash_until {
            Some(until) => until,
            None => {
                let rate = self.scene.plan.crash_in_writes;
                if !self.is_serving || !self.random_crash.chance(rate) {
                    return false;
                }
                let delay = CRASH_WAIT_MAX + CRASH_WAIT_WRITES * self.scene.plan.device;
                let life = self.life;
                self.at(delay, Happening::Crash { life });
                self.crash_until = Some(now + delay);
                now + delay
            }
        };
        now < until && !self.has_two_writes()
    }

    /// The broker is asked to end, and ends some time later unless the power fails before.
    fn shut_down(&mut self) {
        say!(self.scene, "==== shutdown");
        self.ending_until = Some(self.scene.now + CALM_MAX);
        let life = self.life;
        self.at(CALM_MAX, Happening::Crash { life });
        if self.random_crash.below(3) == 0 {
            let delay = self.random_crash.scale(10 * US..=20 * MS);
            self.at(delay, Happening::Crash { life });
        }
        for core in 0..self.cores.len() {
            self.give_input(core, Waiting::Shutdown);
        }
    }

    /// Ends the process when a shutdown is complete: nothing may be under way then.
    fn end_shutdown(&mut self) {
        let has_failed = self.cores.iter().any(|core| core.has_failed);
        let has_writes = self.disks.iter().any(|disk| disk.writes_in_flight() > 0);
        if has_writes && !has_failed {
            self.scene
                .fail("a shutdown ended with writes in flight".into());
        }
        self.scene.marks.hit("clean end");
        self.end_life();
    }

    /// Whether the world calms down with the next crash.
    fn is_about_to_calm(&self) -> bool {
        self.calm_until.is_some() && self.phase == Phase::Busy
    }

    /// Whether the crash behind the first drain may as well come in its middle.
    fn may_crash_in_a_drain(&self) -> bool {
        matches!(self.phase, Phase::Draining(_)) && self.drains_left > 1
    }

    /// Whether a core has two writes in flight.
    fn has_two_writes(&self) -> bool {
        self.disks.iter().any(|disk| disk.writes_in_flight() > 1)
    }

    fn start(&mut self) {
        if self.is_up {
            return;
        }
        self.life += 1;
        self.crash_until = None;
        self.ending_until = None;
        self.is_up = true;
        self.scene.starts += 1;
        self.scene.streams.restarts();
        self.scene.journal_failed = false;
        say!(self.scene, "==== start {}", self.life);
        let memory = Engine::memory(&self.scene.plan);
        self.cores.clear();
        self.pools.clear();
        for core in 0..usize::from(self.scene.plan.cores) {
            if self.scene.has(Fault::BitRot)
                && let Some(place) = self.rot(core)
            {
                self.scene.marks.hit("fault bit rot");
                say!(self.scene, "core {core}: a bit rots: {place}");
            }
            self.pools.push(Some(Pool::new(memory.0, memory.1)));
            let (slots, checkpoints) = self.disks[core].found(&mut self.random_disk);
            let now = Mono(self.scene.now);
            let engine = Engine::boot(&self.scene.plan, core, slots, checkpoints, now);
            self.cores.push(Core {
                engine,
                effects: Effects::default(),
                waiting: VecDeque::new(),
                operations: BTreeMap::new(),
                turn_scheduled: false,
                deadline_scheduled: None,
                stalled_until: 0,
                hung_until: 0,
                has_failed: false,
                writes_since_hole: None,
            });
        }
        for core in 0..self.cores.len() {
            self.give_input(core, Waiting::Tick);
        }
        self.is_serving = false;
        self.schedule_crash();
    }

    /// A bit of a core's disk flips, most of the time; where the backlog of a slow disk is to rot, seldom,
    /// and there.
    fn rot(&mut self, core: usize) -> Option<String> {
        let random = &mut self.random_trouble;
        match self.scene.plan.leaning {
            Leaning::Backlog if random.below(3) > 0 => None,
            Leaning::Backlog => self.disks[core].rot_late(random),
            _ if random.below(4) == 0 => None,
            _ => self.disks[core].rot(random),
        }
    }

    /// The power fails.
    fn crash(&mut self) {
        if !self.is_up {
            return;
        }
        self.scene.shape.crashes += 1;
        self.scene.shape.crashes_in_writes += u64::from(self.has_two_writes());
        self.end_life();
    }

    /// The broker is gone with all its connections, and starts again some time later.
    fn end_life(&mut self) {
        say!(self.scene, "==== crash");
        self.scene.marks.hit("crash");
        if !self.is_serving {
            self.scene.marks.hit("crash while starting");
        }
        self.is_up = false;
        self.life += 1;
        let mut writes = 0;
        for core in 0..self.cores.len() {
            let flow = self.cores.get(core).and_then(|core| core.engine.flow());
            if flow.is_some_and(|flow| flow.stats().shared > 0) {
                self.scene.marks.hit("crash after messages were shared");
            }
            let wreck = self.disks[core].crash(&mut self.random_disk);
            let since_hole = self.cores.get(core).and_then(|core| core.writes_since_hole);
            self.has_lost_an_end |= since_hole.is_some_and(|writes| writes <= UNTRACED_MAX);
            say!(self.scene, "core {core}: {wreck:?}");
            writes += wreck.writes;
            if wreck.writes > 1 {
                self.scene.marks.hit("crash with two writes in flight");
            }
            if wreck.files > 0 {
                self.scene.marks.hit("crash in a file operation");
            }
            if wreck.taken_back > 0 {
                self.scene.marks.hit("fault lying sync");
            }
        }
        if writes > 0 {
            self.scene.marks.hit("crash with a write in flight");
        }
        // What the network had taken may still arrive, all or in part.
        let links = core::mem::take(&mut self.links);
        for (id, mut link) in links {
            if link.is_attached {
                let readable = link.readable() as u64;
                let count = self.random_network.within(0..=readable) as usize;
                let bytes = link.give(count);
                self.clients[link.client].receive(&bytes, &mut self.scene);
            }
            self.clients[link.client].cut_off(&mut self.scene);
            self.link_of_client[link.client] = None;
            let _ = id; // Numbers of connections are never used again.
        }
        self.link_of.clear();
        self.moving.clear();
        self.mesh.clear();
        self.mesh_last.clear();
        self.cores.clear();
        self.pools.clear();
        self.scene.event(Event::Crash);
        self.scene.is_crashing = true;
        for client in &mut self.clients {
            client.over(&mut self.scene);
        }
        self.scene.is_crashing = false;
        self.scene.end_open_changes(u64::MAX);
        // What a drive took back, or put elsewhere, nobody can notice.
        let is_doubtful = self.scene.may_have_lost_the_end()
            || (self.scene.tolerates_losses() && self.scene.damage_reported);
        for model in &mut self.scene.models {
            model.crash();
            if is_doubtful {
                model.doubt();
                self.scene.has_tenant = false;
            }
        }
        let delay = self.random_trouble.scale(10 * US..=20 * MS);
        self.at(delay, Happening::Start);
    }

    // ---- turns -------------------------------------------------------------------------------

    fn give_input(&mut self, core: usize, input: Waiting) {
        self.cores[core].waiting.push_back(input);
        self.schedule_turn(core);
    }

    fn schedule_turn(&mut self, core: usize) {
        if !self.cores[core].turn_scheduled {
            self.cores[core].turn_scheduled = true;
            let stalled = self.cores[core]
                .stalled_until
                .saturating_sub(self.scene.now);
            let delay = stalled + self.random_turns.within(200..=20 * US);
            let life = self.life;
            self.at(delay, Happening::Turn { core, life });
        }
    }

    fn turn(&mut self, core: usize) {
        self.cores[core].turn_scheduled = false;
        let count = self.random_turns.scale(1..=self.scene.plan.turn_inputs_max);
        let mut closed = Vec::new();
        let mut stepped = 0;
        while stepped < count {
            let Some(input) = self.cores[core].waiting.pop_front() else {
                break;
            };
            if let Some(conn) = conn_of(&input)
                && !self.link_of.contains_key(&conn)
            {
                continue;
            }
            stepped += 1;
            if let Waiting::Closed(conn) = &input {
                closed.push(*conn);
            }
            self.step(core, input);
        }
        if stepped > 0 {
            self.step_raw(core, Input::TurnEnd);
            self.perform(core);
            self.look_at_failure(core);
            if !self.is_serving && self.cores.iter().all(|core| core.engine.is_running()) {
                self.is_serving = true;
                self.refused_starts = 0;
                self.is_all_running();
            }
        }
        for conn in closed {
            self.forget_link(conn);
        }
        if !self.cores.is_empty() {
            if !self.cores[core].waiting.is_empty() {
                self.schedule_turn(core);
            }
            self.schedule_deadline(core);
        }
        let is_drained = |core: &Core| core.engine.is_drained();
        if self.ending_until.is_some() && self.is_up && self.cores.iter().all(is_drained) {
            self.end_shutdown();
        }
    }

    fn step(&mut self, core: usize, input: Waiting) {
        let wall_us = self.wall_us();
        let input = match &input {
            Waiting::Opened(conn) => Input::Opened { conn: *conn },
            Waiting::Frames(conn, bytes) => Input::Frames { conn: *conn, bytes },
            Waiting::Malformed(conn, code) => Input::Malformed {
                conn: *conn,
                code: *code,
            },
            Waiting::Closed(conn) => Input::Closed { conn: *conn },
            Waiting::Sent(conn, bytes) => Input::Sent {
                conn: *conn,
                bytes: *bytes,
            },
            Waiting::Io(op, buffer, result) => Input::Io {
                op: *op,
                buffer: *buffer,
                result: *result,
            },
            Waiting::File(op, result) => Input::File {
                op: *op,
                result: result.clone(),
            },
            Waiting::Tick => Input::Tick { wall_us },
            Waiting::Shutdown => Input::Shutdown,
            Waiting::Adopted(..) | Waiting::Mesh(..) => return self.step_owned(core, input),
        };
        self.step_raw(core, input);
    }

    /// Inputs whose content moves into the engine.
    fn step_owned(&mut self, core: usize, input: Waiting) {
        match input {
            Waiting::Adopted(conn, session) => {
                self.step_raw(core, Input::Adopted { conn, session });
            }
            Waiting::Mesh(from, message) => {
                let from = CoreId(from as u16);
                self.step_raw(core, Input::Mesh { from, message });
            }
            _ => unreachable!("every other input is borrowed"),
        }
    }

    fn step_raw(&mut self, core: usize, input: Input<'_>) {
        self.trace_input(core, &input);
        let slot = &mut self.cores[core];
        let pool = self.pools[core]
            .as_mut()
            .expect("a running core has a pool");
        slot.engine
            .step(Mono(self.scene.now), input, pool, &mut slot.effects);
    }

    fn trace_input(&mut self, core: usize, input: &Input<'_>) {
        let hash = &mut self.scene.trace.hash;
        hash.word(core as u64);
        match input {
            Input::Frames { conn, bytes } => {
                hash.word(conn.0);
                hash.bytes(bytes);
            }
            Input::Io { op, result, .. } => {
                hash.word(op.0);
                hash.word(u64::from(result.is_ok()));
            }
            Input::Sent { conn, bytes } => {
                hash.word(conn.0);
                hash.word(u64::from(*bytes));
            }
            _ => {}
        }
        if self.scene.trace.is_read() {
            match input {
                Input::Frames { conn, bytes } => {
                    say!(
                        self.scene,
                        "core {core} < frames of {}: {}",
                        conn.0,
                        frames_text(bytes)
                    );
                }
                Input::TurnEnd => {}
                Input::Tick { .. } => say!(self.scene, "core {core} < tick"),
                other => say!(self.scene, "core {core} < {other:?}"),
            }
        }
    }

    fn wall_us(&self) -> u64 {
        (WALL_START_US + self.scene.now / 1_000).saturating_add_signed(self.wall_skew_us)
    }

    fn schedule_deadline(&mut self, core: usize) {
        let Some(Mono(deadline)) = self.cores[core].engine.next_deadline(Mono(self.scene.now))
        else {
            return;
        };
        let deadline = deadline.max(self.scene.now + 1);
        if self.cores[core]
            .deadline_scheduled
            .is_none_or(|at| at > deadline)
        {
            self.cores[core].deadline_scheduled = Some(deadline);
            let life = self.life;
            self.at(
                deadline - self.scene.now,
                Happening::Deadline { core, life },
            );
        }
    }

    /// A core that gave up its journal without a fault, while it was starting or later.
    fn look_at_failure(&mut self, core: usize) {
        if self.cores[core].has_failed || !self.cores[core].engine.has_failed() {
            return;
        }
        self.fail_stop(core, "it says so");
    }

    fn deadline(&mut self, core: usize) {
        self.cores[core].deadline_scheduled = None;
        self.give_input(core, Waiting::Tick);
    }

    // ---- effects -----------------------------------------------------------------------------

    fn perform(&mut self, core: usize) {
        let mut effects = core::mem::take(&mut self.cores[core].effects);
        for effect in effects.list.drain(..) {
            if self.scene.failure.is_some() {
                break;
            }
            self.perform_one(core, effect, &effects.bytes);
        }
        effects.clear();
        if let Some(slot) = self.cores.get_mut(core) {
            slot.effects = effects;
        }
    }

    /// As the shell does: those who do not read keep no memory from those who do, beyond a while.
    fn copy_out(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.copy_scheduled = false;
        if link.holds_buffers() {
            self.scene.marks.hit("shell copies out");
            link.copy_out(&mut self.pools);
            // The engine may wait for a buffer.
            for core in 0..self.cores.len() {
                self.give_input(core, Waiting::Tick);
            }
        }
    }

    fn perform_one(&mut self, core: usize, effect: Effect, arena: &[u8]) {
        if self.scene.trace.is_read() {
            match &effect {
                Effect::Send { conn, range } => {
                    let bytes = &arena[range.start as usize..range.end as usize];
                    say!(
                        self.scene,
                        "core {core} > send to {}: {}",
                        conn.0,
                        frames_text(bytes)
                    );
                }
                other => say!(self.scene, "core {core} > {other:?}"),
            }
        }
        match effect {
            Effect::Send { conn, range } => {
                let bytes = &arena[range.start as usize..range.end as usize];
                self.scene.trace.hash.bytes(bytes);
                self.scene.marks.hit("effect send");
                if let Some(link) = self.link(core, conn) {
                    self.links.get_mut(&link).expect("it was found").send(bytes);
                    self.take(link);
                }
            }
            Effect::SendBuffer {
                conn,
                buffer,
                range,
            } => {
                self.scene.marks.hit("effect send buffer");
                if let Some(link) = self.link(core, conn) {
                    let pool = self.pools[core]
                        .as_mut()
                        .expect("a running core has a pool");
                    let entry = self.links.get_mut(&link).expect("it was found");
                    entry.send_buffer(pool, buffer, range);
                    self.take(link);
                    self.schedule_copy(link);
                }
            }
            Effect::Close { conn } => self.close(core, conn),
            Effect::Handover { conn, to, session } => self.hand_over(core, conn, to, session),
            Effect::Write {
                op,
                slot,
                position,
                buffer,
                range,
            } => {
                self.scene.marks.hit("effect write");
                let pool = self.pools[core]
                    .as_mut()
                    .expect("a running core has a pool");
                pool.hold_sealed(buffer, &range);
                let bytes = pool.shell_bytes(buffer, range.clone());
                self.disks[core].write(op, slot, position, bytes);
                self.submitted(core, op, Operation { buffer, range });
                if self.disks[core].writes_in_flight() > 1 {
                    let delay = self.random_crash.below(self.scene.plan.device / 4 + 1);
                    let life = self.life;
                    if self.crash_until.is_some() {
                        self.at(delay, Happening::Crash { life });
                    } else if self.is_about_to_calm() || self.may_crash_in_a_drain() {
                        self.at(delay, Happening::Last { life });
                    }
                }
            }
            Effect::Read {
                op,
                slot,
                position,
                buffer,
                range,
            } => {
                self.scene.marks.hit("effect read");
                let pool = self.pools[core]
                    .as_mut()
                    .expect("a running core has a pool");
                pool.hold_open(buffer, &range);
                self.disks[core].read(op, slot, position, range.end - range.start);
                self.submitted(core, op, Operation { buffer, range });
            }
            Effect::Release { buffer } => {
                self.scene.marks.hit("effect release");
                let pool = self.pools[core]
                    .as_mut()
                    .expect("a running core has a pool");
                pool.release(buffer);
            }
            Effect::File { op, what } => {
                self.scene.marks.hit("effect file");
                self.disks[core].file(op, what);
                let delay = self.device_delay(core) * 3;
                let life = self.life;
                self.at(delay, Happening::Disk { core, op, life });
            }
            Effect::Mesh { to, message } => {
                self.scene.marks.hit("effect mesh");
                self.mesh_busy_at = self.scene.now;
                let to = usize::from(to.0);
                assert!(
                    to != core && to < self.cores.len(),
                    "core {core} sends to core {to}"
                );
                let is_reply = message.is_reply();
                let lane = self.mesh.entry((core, to, is_reply)).or_default();
                lane.push_back(message);
                let most = engine::requests_per_peer_max(&self.scene.plan) as usize;
                assert!(
                    lane.len() <= most,
                    "the lane from core {core} to core {to}, replies {is_reply}, overflows"
                );
                let last = self.mesh_last.entry((core, to, is_reply)).or_default();
                // Now and then as long as it can take: what was sent on other lanes overtakes it.
                let most = self.scene.plan.mesh_max;
                let delay = match self.random_turns.below(4) {
                    0 => self.random_turns.within(100..=most),
                    _ => self.random_turns.scale(100..=most),
                };
                *last = (*last).max(self.scene.now + delay);
                let delay = *last - self.scene.now;
                let life = self.life;
                self.at(
                    delay,
                    Happening::Mesh {
                        from: core,
                        to,
                        is_reply,
                        life,
                    },
                );
            }
            Effect::FailStop { cause, reason } => {
                // A write that fails says nothing of what was written before.
                self.scene.damage_reported |= cause == FailCause::Content;
                self.fail_stop(core, &reason);
            }
            Effect::Report { severity, text } => {
                say!(self.scene, "core {core} reports {severity:?}: {text}");
                if severity == Severity::Error {
                    self.scene.damage_reported = true;
                    self.scene.marks.hit("effect report");
                }
            }
        }
    }

    fn fail_stop(&mut self, core: usize, reason: &str) {
        if self.cores[core].has_failed {
            return;
        }
        self.scene.marks.hit("effect fail stop");
        self.scene.journal_failed = true;
        self.cores[core].has_failed = true;
        say!(self.scene, "core {core}: FAIL STOP: {reason}");
        let was_expected = [Fault::WriteError, Fault::WriteShort, Fault::FileError]
            .iter()
            .any(|fault| self.scene.plan.faults.has(*fault))
            || self.scene.plan.mode == Mode::Detect;
        if !was_expected {
            self.scene
                .fail(format!("core {core} failed without a fault: {reason}"));
        }
        if !self.is_serving && self.scene.tolerates_losses() {
            self.refused_starts += 1;
            if self.refused_starts > 3 {
                // Damage that it will not serve over, and says so: that is the promise.
                self.scene.marks.hit("refused to start over damage");
                self.phase = Phase::Over;
                return;
            }
        }
        // Somebody restarts the process some time later.
        let delay = self.random_trouble.scale(100 * US..=100 * MS);
        let life = self.life;
        self.at(delay, Happening::Crash { life });
    }

    // ---- disk --------------------------------------------------------------------------------

    fn device_delay(&mut self, core: usize) -> u64 {
        let typical = self.scene.plan.device;
        let mut delay = typical / 2 + self.random_disk.below(typical);
        if self.scene.has(Fault::SlowDisk) {
            delay = self.random_disk.scale(typical / 4 + 1..=typical * 200);
        } else if self.random_disk.below(50) == 0 {
            delay *= 10;
        }
        delay + self.cores[core].hung_until.saturating_sub(self.scene.now)
    }

    fn submitted(&mut self, core: usize, op: OpId, operation: Operation) {
        self.cores[core].operations.insert(op, operation);
        let delay = self.device_delay(core);
        let life = self.life;
        self.at(delay, Happening::Disk { core, op, life });
    }

    fn draw_fate(&mut self, core: usize, op: OpId) -> Fate {
        let is_write = self.disks[core].bytes_in_flight(op).is_some();
        let is_memory = self.cores[core].operations.contains_key(&op);
        let rate = self.scene.plan.fault_rate;
        let kinds: &[(Fault, Fate, &'static str)] = if is_write {
            &[
                (Fault::WriteError, Fate::Error, "fault write error"),
                (Fault::WriteShort, Fate::Short, "fault short write"),
                (Fault::Dropped, Fate::Dropped, "fault dropped write"),
                (
                    Fault::Misdirected,
                    Fate::Misdirected,
                    "fault misdirected write",
                ),
            ]
        } else if is_memory {
            &[(Fault::ReadError, Fate::Error, "fault read error")]
        } else {
            &[(Fault::FileError, Fate::Error, "fault file error")]
        };
        // Of file operations there are few.
        let rate = match is_memory {
            true => rate,
            false => Rate((rate.0 * 8).min(200_000)),
        };
        for (fault, fate, mark) in kinds {
            if self.scene.has(*fault) && self.random_disk.chance(rate) {
                self.scene.marks.hit(mark);
                say!(self.scene, "core {core}: {fate:?} for operation {}", op.0);
                return *fate;
            }
        }
        Fate::Good
    }

    fn disk_done(&mut self, core: usize, op: OpId) {
        let hung = self.cores[core].hung_until.saturating_sub(self.scene.now);
        if hung > 0 {
            let life = self.life;
            return self.at(hung, Happening::Disk { core, op, life });
        }
        let fate = self.draw_fate(core, op);
        let operation = self.cores[core].operations.remove(&op);
        if let (Some(operation), Some(bytes)) = (&operation, self.disks[core].bytes_in_flight(op)) {
            let pool = self.pools[core]
                .as_ref()
                .expect("a running core has a pool");
            if pool.shell_bytes(operation.buffer, operation.range.clone()) != bytes {
                self.scene
                    .fail(format!("core {core}: bytes changed under write {}", op.0));
            }
        }
        if matches!(fate, Fate::Dropped | Fate::Misdirected) {
            self.cores[core].writes_since_hole = Some(0);
        } else if let Some(writes) = &mut self.cores[core].writes_since_hole {
            *writes += 1;
        }
        let done = self.disks[core].complete(op, fate, &mut self.random_disk);
        let pool = self.pools[core]
            .as_mut()
            .expect("a running core has a pool");
        let input = match (done, operation) {
            (Done::Write(result), Some(operation)) => {
                pool.unhold(operation.buffer);
                Waiting::Io(op, operation.buffer, result)
            }
            (Done::Read(result, bytes), Some(operation)) => {
                pool.fill(operation.buffer, operation.range, &bytes);
                Waiting::Io(op, operation.buffer, result)
            }
            (Done::File(result), _) => {
                if result == Err(IoFault::NoSpace) {
                    self.scene.marks.hit("fault no space");
                }
                Waiting::File(op, result)
            }
            (done, None) => panic!("operation {} ended as {done:?} without memory", op.0),
        };
        self.give_input(core, input);
    }

    // ---- mesh --------------------------------------------------------------------------------

    fn mesh_arrives(&mut self, from: usize, to: usize, is_reply: bool) {
        let lane = self
            .mesh
            .get_mut(&(from, to, is_reply))
            .expect("something was sent");
        let message = lane.pop_front().expect("one arrival per message");
        self.give_input(to, Waiting::Mesh(from, message));
    }

    // ---- connections -------------------------------------------------------------------------

    /// The link of a connection, or `None` if the socket is gone.
    fn link(&mut self, core: usize, conn: ConnId) -> Option<u64> {
        let link = self.link_of.get(&conn).copied()?;
        let entry = &self.links[&link];
        assert!(
            entry.core == core,
            "core {core} uses a connection of core {}",
            entry.core
        );
        entry.is_attached.then_some(link)
    }

    fn act(&mut self, client: usize) {
        let pause = if self.clients[client].drain.is_some() {
            self.random_network.within(50 * US..=MS)
        } else {
            let think = self.random_network.within(1..=self.scene.plan.think_max);
            match self.phase {
                Phase::Busy if self.is_serving => think,
                Phase::Busy => think.max(MS / 4),
                _ => think.max(5 * MS),
            }
        };
        self.at(pause, Happening::Act { client });
        let wants = match self.phase {
            Phase::Busy => true,
            Phase::Draining(_) => self.clients[client].drain.is_some(),
            Phase::Calming(_) | Phase::Settling(_) | Phase::Over => false,
        };
        if self.clients[client].wants_connection() {
            if wants && self.is_up {
                let dial = self.clients[client].dial();
                let delay = self.network_delay();
                self.at(delay, Happening::Accept { client, dial });
            }
            return;
        }
        if self.phase == Phase::Busy || self.clients[client].drain.is_some() {
            self.clients[client].act(&mut self.scene);
        } else {
            self.clients[client].stay_alive(&mut self.scene);
        }
        self.send_up(client);
    }

    fn send_up(&mut self, client: usize) {
        let Some(id) = self.link_of_client[client] else {
            return;
        };
        let link = self.links.get_mut(&id).expect("a client's link is there");
        link.up.extend(self.clients[client].out.drain(..));
        if !link.up.is_empty() && !link.up_scheduled {
            link.up_scheduled = true;
            let delay = self.network_delay();
            self.at(delay, Happening::Arrive { link: id });
        }
    }

    fn network_delay(&mut self) -> u64 {
        self.random_network.scale(US..=self.scene.plan.network_max)
    }

    fn accept(&mut self, client: usize, dial: u32) {
        if !self.clients[client].is_dialling(dial) {
            return;
        }
        if !self.is_up {
            self.clients[client].over(&mut self.scene);
            return;
        }
        let core = self.random_network.index(self.cores.len());
        if !self.cores[core].engine.is_running() {
            // The shell listens only when recovery is over.
            self.clients[client].over(&mut self.scene);
            return;
        }
        self.conns += 1;
        let (id, conn) = (self.conns, ConnId(self.conns));
        say!(
            self.scene,
            "client {client}: connection {id} on core {core}"
        );
        self.links.insert(id, Link::new(client, core, conn));
        self.link_of.insert(conn, id);
        self.link_of_client[client] = Some(id);
        self.give_input(core, Waiting::Opened(conn));
        self.clients[client].opened(&mut self.scene);
        self.send_up(client);
    }

    fn arrive(&mut self, id: u64) {
        let byte_cuts = self.scene.has(Fault::ByteCuts);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if link.is_moving {
            // The socket is between two cores.
            return self.at(10 * US, Happening::Arrive { link: id });
        }
        let is_read = |core: &Core| core.engine.is_read(link.conn);
        if !link.is_closed && !self.cores.get(link.core).is_none_or(is_read) {
            self.scene.marks.hit("connection left unread");
            return self.at(MS, Happening::Arrive { link: id });
        }
        let there = (link.up.len() as u64).min(RECEIVE_BYTES);
        // A shell steps what it has read before it asks whether to read more.
        let unstepped = self.cores.get(link.core).map_or(0, Core::unstepped_bytes);
        if !link.is_closed && unstepped > 0 && unstepped + there > RECEIVE_BYTES {
            return self.at(10 * US, Happening::Arrive { link: id });
        }
        link.up_scheduled = false;
        let count = if byte_cuts && there > 0 {
            self.random_network.scale(1..=there)
        } else {
            there
        };
        let arrived = link.arrive(count as usize);
        let (core, conn) = (link.core, link.conn);
        let again = !link.up.is_empty() || (link.has_rest() && arrived != Arrived::Nothing);
        if again {
            link.up_scheduled = true;
        }
        let is_closed = link.is_closed;
        if again {
            let delay = self.random_network.within(100..=10 * US);
            self.at(delay, Happening::Arrive { link: id });
        }
        match arrived {
            Arrived::Nothing => {}
            _ if is_closed => {}
            Arrived::Frames(bytes) => self.give_input(core, Waiting::Frames(conn, bytes)),
            Arrived::Malformed(code) => self.give_input(core, Waiting::Malformed(conn, code)),
        }
    }

    /// What the kernel does not take for some time is copied.
    fn schedule_copy(&mut self, id: u64) {
        if let Some(link) = self.links.get_mut(&id)
            && !link.copy_scheduled
            && link.holds_buffers()
        {
            link.copy_scheduled = true;
            let life = self.life;
            self.at(COPY_AFTER, Happening::CopyOut { link: id, life });
        }
    }

    /// The kernel takes what the broker sends, as far as it has room.
    fn take(&mut self, id: u64) {
        let room = self.scene.plan.socket_bytes;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let taken = link.take(&mut self.pools, room, &mut self.random_network);
        let (core, conn) = (link.core, link.conn);
        let readable = link.readable() > 0 && !link.give_scheduled;
        if readable {
            link.give_scheduled = true;
        }
        let (is_moving, paused) = (
            link.is_moving,
            link.paused_until.saturating_sub(self.scene.now),
        );
        if taken > 0 && !is_moving {
            self.give_input(core, Waiting::Sent(conn, taken));
        }
        if readable {
            let delay = paused + self.network_delay();
            self.at(delay, Happening::Give { link: id });
        }
    }

    fn give(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.give_scheduled = false;
        if !link.is_attached {
            return;
        }
        let readable = link.readable() as u64;
        let count = if self.random_network.below(4) == 0 {
            self.random_network.within(0..=readable)
        } else {
            readable
        };
        let bytes = link.give(count as usize);
        let client = link.client;
        self.clients[client].receive(&bytes, &mut self.scene);
        self.send_up(client);
        self.take(id);
    }

    /// The engine hangs up: everything it sent arrives first.
    fn close(&mut self, core: usize, conn: ConnId) {
        self.scene.marks.hit("effect close");
        let Some(id) = self.link_of.get(&conn).copied() else {
            return;
        };
        assert!(
            self.links[&id].core == core,
            "core {core} closes another core's connection"
        );
        let mut link = self.links.remove(&id).expect("it was found");
        self.link_of.remove(&conn);
        let bytes = link.flush(&mut self.pools);
        let client = link.client;
        if link.is_attached {
            self.clients[client].receive(&bytes, &mut self.scene);
        }
        say!(
            self.scene,
            "client {client}: connection {id} closed by the broker"
        );
        self.link_of_client[client] = None;
        self.clients[client].over(&mut self.scene);
    }

    /// The network cuts a connection.
    fn reset(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if !link.is_attached {
            return;
        }
        link.is_attached = false;
        link.is_closed = true;
        let (client, core, conn, is_moving) = (link.client, link.core, link.conn, link.is_moving);
        say!(self.scene, "client {client}: connection {id} reset");
        self.clients[client].cut_off(&mut self.scene);
        if !is_moving {
            self.give_input(core, Waiting::Closed(conn));
        }
    }

    /// The engine was told that a connection is closed, and has done what follows from it.
    fn forget_link(&mut self, conn: ConnId) {
        let Some(id) = self.link_of.remove(&conn) else {
            return;
        };
        let mut link = self.links.remove(&id).expect("it was found");
        let _unread = link.flush(&mut self.pools);
        self.link_of_client[link.client] = None;
        self.clients[link.client].over(&mut self.scene);
    }

    fn hand_over(&mut self, core: usize, conn: ConnId, to: CoreId, session: Box<Handover>) {
        self.scene.marks.hit("effect handover");
        let Some(id) = self.link_of.get(&conn).copied() else {
            return;
        };
        assert!(usize::from(to.0) != core, "handed over to the same core");
        // Bytes that were received and not stepped go along.
        let waiting = core::mem::take(&mut self.cores[core].waiting);
        let (go, stay): (VecDeque<_>, VecDeque<_>) = waiting
            .into_iter()
            .partition(|input| conn_of(input) == Some(conn));
        self.cores[core].waiting = stay;
        let along = go
            .into_iter()
            .filter(|input| matches!(input, Waiting::Frames(..) | Waiting::Malformed(..)))
            .collect();
        let link = self.links.get_mut(&id).expect("it was found");
        link.is_moving = true;
        link.core = usize::from(to.0);
        self.link_of.remove(&conn);
        self.moving.insert(id, (session, along));
        let delay = self
            .random_turns
            .scale(US..=self.scene.plan.mesh_max.max(2 * US));
        let life = self.life;
        self.at(delay, Happening::Adopt { link: id, life });
    }

    fn adopt(&mut self, id: u64) {
        let Some((session, along)) = self.moving.remove(&id) else {
            return;
        };
        self.conns += 1;
        let conn = ConnId(self.conns);
        let link = self.links.get_mut(&id).expect("a moving link is there");
        link.is_moving = false;
        link.conn = conn;
        let (core, is_closed) = (link.core, link.is_closed);
        self.link_of.insert(conn, id);
        self.give_input(core, Waiting::Adopted(conn, session));
        for input in along {
            self.give_input(
                core,
                match input {
                    Waiting::Frames(_, bytes) => Waiting::Frames(conn, bytes),
                    Waiting::Malformed(_, code) => Waiting::Malformed(conn, code),
                    _ => unreachable!("only received bytes go along"),
                },
            );
        }
        if is_closed {
            self.give_input(core, Waiting::Closed(conn));
        }
    }

    // ---- faults between ----------------------------------------------------------------------

    fn trouble(&mut self) {
        if self.scene.is_healthy {
            return;
        }
        let delay = self.random_trouble.within(MS / 2..=10 * MS);
        self.at(delay, Happening::Trouble);
        if !self.is_up {
            return;
        }
        let links: Vec<u64> = self.links.keys().copied().collect();
        if self.scene.has(Fault::Reset) && !links.is_empty() && self.random_trouble.below(20) == 0 {
            self.scene.marks.hit("fault reset");
            let id = *self.random_trouble.pick(&links);
            self.reset(id);
        }
        if self.scene.has(Fault::SlowReader)
            && !links.is_empty()
            && self.random_trouble.below(20) == 0
        {
            self.scene.marks.hit("fault slow reader");
            let id = *self.random_trouble.pick(&links);
            let pause = self.random_trouble.scale(MS..=300 * MS);
            let link = self.links.get_mut(&id).expect("it is one of them");
            link.paused_until = self.scene.now + pause;
        }
        let core = self.random_trouble.index(self.cores.len());
        if self.scene.has(Fault::CoreStall) && self.random_trouble.below(40) == 0 {
            self.scene.marks.hit("fault core stall");
            let pause = self.random_trouble.scale(MS..=500 * MS);
            self.cores[core].stalled_until = self.scene.now + pause;
            say!(self.scene, "core {core}: stalls");
        }
        if self.scene.has(Fault::HungDisk) && self.random_trouble.below(100) == 0 {
            self.scene.marks.hit("fault hung disk");
            let pause = self.random_trouble.scale(10 * MS..=2 * SECOND);
            self.cores[core].hung_until = self.scene.now + pause;
            say!(self.scene, "core {core}: disk hangs");
        }
        if self.scene.has(Fault::ClockJump) && self.random_trouble.below(40) == 0 {
            self.scene.marks.hit("fault clock jump");
            let day = 86_400_000_000;
            self.wall_skew_us = self.random_trouble.within(0..=20 * day) as i64 - 10 * day as i64;
        }
        let (seldom, is_freed) = match self.returns_while_full() {
            true => (5, 6),
            false => (50, 2),
        };
        if self.scene.has(Fault::NoSpace) && self.random_trouble.below(seldom) == 0 {
            let disk = &mut self.disks[core];
            let room = if self.random_trouble.below(is_freed) == 0 {
                1 << 30
            } else {
                disk.used()
            };
            disk.set_capacity(room);
        }
    }

    // ---- phases ------------------------------------------------------------------------------

    fn change_phase(&mut self) {
        self.at(2 * MS, Happening::Phase);
        let now = self.scene.now;
        self.scene
            .end_open_changes(now.saturating_sub(OPEN_CHANGE_MAX));
        match self.phase {
            Phase::Busy => {
                // Clients go on for a while: what the last crash meets is under way.
                let is_over = self.scene.published >= self.scene.plan.publishes * 9 / 10
                    || now > BUSY_MAX
                    || self.happenings > BUSY_HAPPENINGS_MAX;
                let is_due = is_over && self.random_trouble.below(10) == 0;
                if is_due && self.calm_until.is_none() {
                    let wait = CRASH_WAIT_MAX + CRASH_WAIT_WRITES * self.scene.plan.device;
                    let crashes = self.scene.plan.mode != Mode::Liveness;
                    self.calm_until = Some(now + if crashes { wait } else { 0 });
                }
                if self.calm_until.is_some_and(|until| now >= until) {
                    self.calm_down();
                }
            }
            Phase::Calming(until) => {
                let is_blocked = self.cores.iter().any(|core| core.engine.is_blocking());
                let waits = self.clients.iter().any(|client| {
                    client.waits_for_broker(is_blocked) || client.waits_for_messages()
                }) || self.group_waits();
                if !self.is_up || !waits {
                    self.hang_up_all();
                } else if now > until {
                    self.scene.fail(format!(
                        "publishes without an answer, producers without credit, or consumers \
                         without messages: {}",
                        self.describe()
                    ));
                }
            }
            Phase::Settling(until) if now > until && self.is_serving && self.is_up => {
                // Lanes of two carry what a whole world left behind, and a core that was stalled
                // when the world calmed down takes its inputs late.
                // A disk that hung holds up requests between cores, consumers to be closed among them;
                // and what came back is offered when its delivery counts are on the disk.
                let is_at_rest =
                    |core: &Core| core.waiting.is_empty() && !core.engine.is_returning();
                let is_idle =
                    self.cores.iter().all(is_at_rest) && self.mesh.values().all(VecDeque::is_empty);
                let is_at_rest = is_idle && now > self.mesh_busy_at + 300 * MS;
                // What waits for room on a full disk waits for acks, which come with the drain.
                if is_at_rest || now > until + REST_MAX {
                    self.begin_draining();
                }
            }
            Phase::Settling(until) if now > until + CALM_MAX => {
                self.scene.fail(format!("no rest: {}", self.describe()));
            }
            Phase::Settling(_) | Phase::Over => {}
            Phase::Draining(until) => {
                if self
                    .clients
                    .iter()
                    .all(|c| c.drain.is_none() || c.is_drained())
                {
                    self.end_draining();
                } else if now > until {
                    self.scene
                        .fail(format!("queues do not drain: {}", self.describe()));
                }
            }
        }
    }

    fn calm_down(&mut self) {
        say!(self.scene, "==== calm");
        self.scene.is_healthy = true;
        let is_full = self.returns_while_full()
            && self.scene.plan.mode == Mode::Liveness
            && self.random_crash.coin();
        if !is_full {
            self.give_room();
        }
        for core in &mut self.cores {
            core.stalled_until = 0;
            core.hung_until = 0;
        }
        let has_failed = self.cores.iter().any(|core| core.has_failed);
        if self.scene.plan.mode != Mode::Liveness || has_failed {
            self.crash();
        }
        self.phase = Phase::Calming(self.scene.now + CALM_MAX);
        if is_full && self.is_up {
            // Who waits for an outcome is not answered by who has no room.
            self.hang_up_all();
        }
    }

    /// Whether what clients held comes back while there is no room to write it down.
    fn returns_while_full(&self) -> bool {
        self.scene.plan.leaning == Leaning::Returns && self.scene.plan.faults.has(Fault::NoSpace)
    }

    fn give_room(&mut self) {
        for disk in &mut self.disks {
            disk.set_capacity(1 << 40);
        }
    }

    fn hang_up_all(&mut self) {
        let links: Vec<u64> = self.links.keys().copied().collect();
        for id in links {
            self.reset(id);
        }
        self.phase = Phase::Settling(self.scene.now + 300 * MS + 4 * self.scene.plan.mesh_max);
        if self.returns_while_full() {
            for disk in &mut self.disks {
                disk.set_capacity(disk.used());
            }
            let delay = self.random_crash.scale(MS..=200 * MS);
            self.at(delay, Happening::Room);
        }
    }

    fn begin_draining(&mut self) {
        if self.links.values().any(|link| link.is_attached) {
            // Somebody was accepted while everybody was hung up.
            return self.hang_up_all();
        }
        say!(self.scene, "==== drain");
        self.scene.end_open_changes(u64::MAX);
        self.scene.event(Event::Calm);
        if self.clients.iter().all(|client| client.drain.is_none()) {
            for tenant in 0..self.scene.plan.tenants {
                let id = self.clients.len();
                self.clients.push(Client::drainer(id, tenant, &self.scene));
                self.link_of_client.push(None);
                self.at(MS, Happening::Act { client: id });
            }
        }
        for client in &mut self.clients {
            client.begin_drain();
        }
        self.phase = Phase::Draining(self.scene.now + CALM_MAX);
    }

    fn end_draining(&mut self) {
        if self.drains_left > 1 {
            return self.crash_in_a_drain();
        }
        self.scene.judge_graves();
        self.scene.event(Event::End);
        self.phase = Phase::Over;
    }

    /// A crash in the middle of a drain or after it, and another drain.
    fn crash_in_a_drain(&mut self) {
        say!(self.scene, "==== crash of the drain");
        self.drains_left -= 1;
        self.crash();
        self.phase = Phase::Settling(self.scene.now + 300 * MS);
    }

    /// Whether a group has members in a lane of which nobody reads, though none has to settle anything
    /// first.
    fn group_waits(&self) -> bool {
        if self.scene.journal_failed || self.scene.tolerates_losses() {
            return false;
        }
        let mut served: BTreeMap<_, bool> = BTreeMap::new();
        for (place, is_active, holds) in self.clients.iter().flat_map(Client::members) {
            *served.entry(place).or_default() |= is_active || holds;
        }
        served.values().any(|is_served| !is_served)
    }

    fn describe(&self) -> String {
        let clients: Vec<String> = self.clients.iter().map(Client::describe).collect();
        let waiting: Vec<usize> = self.cores.iter().map(|core| core.waiting.len()).collect();
        let mesh: usize = self.mesh.values().map(VecDeque::len).sum();
        let free: Vec<usize> = self
            .pools
            .iter()
            .flatten()
            .map(ringpost_engine::Buffers::available)
            .collect();
        let returning: Vec<bool> = self.cores.iter().map(|c| c.engine.is_returning()).collect();
        let flows = self.cores.iter().filter_map(|core| core.engine.flow());
        let dead: Vec<_> = flows.clone().map(|flow| flow.dead_figures()).collect();
        let held: Vec<_> = flows
            .flat_map(|flow| flow.figures().collect::<Vec<_>>())
            .filter(|figures| figures.ready + figures.unacked > 0)
            .map(|figures| (figures.queue.0, figures.ready, figures.unacked))
            .collect();
        format!(
            "dead {dead:?}, queues {held:?}, returning {returning:?}, buffers free {free:?}, {:?}, waiting inputs {waiting:?}, mesh {mesh}; {}",
            self.phase,
            clients.join("; ")
        )
    }
}

/// The connection that an input is about, if it is about one.
fn conn_of(input: &Waiting) -> Option<ConnId> {
    match input {
        Waiting::Opened(conn)
        | Waiting::Adopted(conn, _)
        | Waiting::Frames(conn, _)
        | Waiting::Malformed(conn, _)
        | Waiting::Closed(conn)
        | Waiting::Sent(conn, _) => Some(*conn),
        Waiting::Io(..)
        | Waiting::File(..)
        | Waiting::Mesh(..)
        | Waiting::Tick
        | Waiting::Shutdown => None,
    }
}

/// The frames in some bytes, for traces.
fn frames_text(bytes: &[u8]) -> String {
    use ringpost_wire::{Cut, FRAME_BYTES_MAX, cut};
    let mut text = Vec::new();
    let mut at = 0;
    while let Cut::Complete { header, length } = cut(&bytes[at..], FRAME_BYTES_MAX) {
        text.push(format!(
            "{:?} ch {} seq {} count {} flags {}",
            header.kind, header.channel, header.sequence, header.count, header.flags
        ));
        at += length;
    }
    if at < bytes.len() {
        text.push(format!("{} bytes of a frame", bytes.len() - at));
    }
    text.join(", ")
}

/// Whether damage beyond the promises may cause this, given that it was reported or not.
fn is_tolerable(kind: Kind, was_reported: bool) -> bool {
    match kind {
        Kind::Lost
        | Kind::Vanished
        | Kind::DeliveredAfterAckConfirm
        | Kind::DeliveredAfterAck
        | Kind::UnflaggedDuplicate
        | Kind::FlaggedWithoutCause
        | Kind::CountTooLow
        | Kind::CountTooHigh
        | Kind::PlaceReused
        | Kind::PlaceChanged
        | Kind::PlacesOutOfOrder
        // A name may mean again what it meant before: the queue that was deleted is back.
        | Kind::CrossQueue
        | Kind::WronglyUnroutable
        | Kind::LevelOverstated => was_reported,
        Kind::TwoHolders
        | Kind::DeliveredOutOfOrder
        | Kind::Phantom
        | Kind::RefusedButSeen
        | Kind::HashMismatch
        | Kind::AnsweredTwice
        | Kind::NeverAnswered
        | Kind::BadHistory => false,
    }
}
