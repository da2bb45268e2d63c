//! Errands: queues, exchanges and policies that each client has to itself, which go by themselves or make
//! others go. What must be there and what must be gone is known from what was answered and when; so each
//! errand judges its own answers. Does not know messages.
//!
//! ```text
//! m7  a queue that expires, or goes with its last consumer; client 7 opens one now and then
//! e7  a queue that is exclusive to client 7; others ask for it in vain
//! y7  an exchange that goes with its last binding, to the queue t7
//! p7  a queue that expires by policy b7, unless policy a7 counts more
//! ```

use ringpost_wire::control::{
    self, Bind, Body, ConsumerOpen, Delete, Durability, ExchangeDeclare, ExchangeKind, Named,
    PolicySet, QueueDeclare,
};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{Code, FrameHeader, FrameKind, frame};

use super::{Channel, Client, Link, Request};
use crate::plan::{Fault, Mode};
use crate::random::Random;
use crate::say;
use crate::scene::Scene;

const MS: u64 = 1_000_000;
/// How long `p7` may be unused by the policy that counts less, in ms.
const SHORT_MS: u32 = 30;
/// How long a change without an answer may still be under way.
const DOUBT: u64 = 10_000 * MS;
/// And by the one that counts more.
const LONG_MS: u32 = 3_600_000;

/// A step of an errand whose answer is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Mortal(Act),
    /// Declares `e7`, or asks for it.
    Own,
    /// Asks for the exclusive queue of another client.
    Probe(usize),
    /// Of `y7`, by its place in the round.
    Orphan(u8),
    /// Of `p7`, by its place in the round.
    Policy(u8),
    /// At the end: asks whether something is gone.
    Gone(usize),
    /// At the end: sees to it that it goes.
    Urge(usize),
}

/// What is done with `m7`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    Declare,
    Find,
    Open(u16),
    Close(u16),
}

/// `m7`, as far as is known.
#[derive(Debug)]
struct Mortal {
    /// How long it may be unused; 0: it goes with its last consumer.
    expires_ms: u32,
    durability: Durability,
    /// It must be there until then; for ever while it is used.
    until: u64,
    may_be_there: bool,
    /// The declare that has created it was answered, so every core knows it. One that was found may
    /// be under way to others.
    is_everywhere: bool,
    /// A declare without an answer may still be under way until then.
    doubted_until: u64,
    /// A step is out, since when.
    since: Option<u64>,
    channel: Option<u16>,
}

/// Something that must be gone at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Doomed {
    name: String,
    /// The client that it was of.
    of: usize,
    stage: Stage,
    /// When it was last asked about: sockets may be slow, and others want to be drained.
    asked_at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// A step is to be taken, of so many.
    Urge(u8),
    Asking,
    Waiting,
    Gone,
}

/// The errands of one client.
#[derive(Debug)]
pub(super) struct Errands {
    random: Random,
    mortal: Mortal,
    /// Whether a step of `e7` is out, since when; and whether it is there.
    own: (Option<u64>, bool),
    /// Another client's queue was asked for, since when.
    probing: Option<u64>,
    /// A step of `y7` without an answer may still be under way until then.
    doubted_until: u64,
    /// The next step of each round, and whether one is out.
    orphan: (u8, bool),
    policy: (u8, bool),
    /// When the policies and the queue of the round were all there.
    settled_at: u64,
    durability: Durability,
    doomed: Option<Vec<Doomed>>,
}

impl Errands {
    pub(super) fn new(id: usize, seed: u64) -> Self {
        let mut random = Random::new(seed, 3_000 + id as u64);
        let durability = match random.below(3) {
            0 => Durability::Volatile,
            _ => Durability::Durable,
        };
        Self {
            mortal: Mortal {
                expires_ms: match random.below(3) {
                    0 => 0,
                    _ => random.scale(2..=500) as u32,
                },
                durability,
                until: 0,
                may_be_there: false,
                is_everywhere: false,
                doubted_until: 0,
                since: None,
                channel: None,
            },
            random,
            own: (None, false),
            probing: None,
            doubted_until: 0,
            orphan: (0, false),
            policy: (0, false),
            settled_at: 0,
            durability,
            doomed: None,
        }
    }

    /// The connection is gone.
    fn over(&mut self, now: u64, is_crash: bool) {
        let mortal = &mut self.mortal;
        let was_used = mortal.channel.take().is_some();
        // When the broker knew of the end is not known, and what is volatile may have gone with it.
        if was_used || mortal.durability == Durability::Volatile || mortal.until == u64::MAX {
            mortal.until = 0;
        }
        let is_out = mortal.since.take().is_some();
        if is_crash {
            // Nothing is under way any more; what was may have come to the disk, and a deletion that was
            // told of before it was there may not have.
            let is_durable = mortal.durability == Durability::Durable;
            mortal.may_be_there |= is_out || is_durable || mortal.doubted_until > now;
            mortal.doubted_until = 0;
            self.doubted_until = 0;
        } else {
            if is_out {
                mortal.doubted_until = now + DOUBT;
            }
            if self.orphan.1 {
                self.doubted_until = now + DOUBT;
            }
        }
        self.own = (None, false);
        self.probing = None;
        self.orphan = (0, false);
        self.policy = (0, false);
    }
}

/// Whether this world has errands, and what they find can be judged.
fn has(scene: &Scene, fault: Fault) -> bool {
    scene.plan.mode != Mode::Detect && scene.plan.faults.has(fault)
}

/// The broker did not do it, and that says nothing.
fn is_excused(code: Code) -> bool {
    matches!(
        code,
        Code::TopologyReadOnly
            | Code::JournalFailed
            | Code::ShuttingDown
            | Code::Indeterminate
            | Code::LimitReached
            | Code::Overloaded
    )
}

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = TableWriter::new(&mut out);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().expect("a few settings are within limits");
    out
}

impl Client {
    /// Does an errand, now and then.
    pub(super) fn run_errand(&mut self, scene: &mut Scene) -> bool {
        let has_mortals = has(scene, Fault::Mortals);
        let has_policies = has(scene, Fault::Policies);
        let is_due = (has_mortals || has_policies) && self.errands.random.below(4) == 0;
        if !is_due || self.is_guilty {
            return false;
        }
        let choices = match (has_mortals, has_policies) {
            (true, true) => 0..8,
            (true, false) => 0..6,
            (false, _) => 6..8,
        };
        match self.errands.random.within(choices.start..=choices.end - 1) {
            0 | 1 => self.use_mortal(scene),
            2 => self.use_own(scene),
            3 => self.probe(scene),
            4 | 5 => self.orphan_step(scene),
            _ => self.policy_step(scene),
        }
        true
    }

    fn errand(&mut self, step: Step) -> FrameHeader {
        let id = self.request(Request::Errand(step));
        FrameHeader::bare(FrameKind::Heartbeat, 0, id)
    }

    fn send_errand<'a>(&mut self, step: Step, kind: FrameKind, body: &impl Body<'a>) {
        let header = FrameHeader {
            kind,
            ..self.errand(step)
        };
        body.write(&mut self.out, header);
    }

    fn declare_errand(
        &mut self,
        step: Step,
        name: &str,
        durability: Durability,
        (flags, arguments): (u8, &[u8]),
    ) {
        let body = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: durability as u8,
            flags,
            partition: control::PARTITION_BY_NAME,
            name: name.as_bytes(),
            arguments,
        };
        self.send_errand(step, FrameKind::QueueDeclare, &body);
    }

    fn find_errand(&mut self, step: Step, name: &str) {
        self.declare_errand(
            step,
            name,
            Durability::Volatile,
            (control::DECLARE_PASSIVE, b""),
        );
    }

    // ---- m7 ----------------------------------------------------------------------------------

    fn use_mortal(&mut self, scene: &mut Scene) {
        let now = scene.now;
        if self.errands.mortal.since.is_some() {
            return;
        }
        let name = format!("m{}", self.id);
        let mortal = &self.errands.mortal;
        let (expires_ms, durability) = (mortal.expires_ms, mortal.durability);
        let act = match (mortal.channel, self.errands.random.below(4)) {
            (Some(channel), 0) => Act::Close(channel),
            (None, 0) => match self.free_channel() {
                Some(channel) => Act::Open(channel),
                None => return,
            },
            (_, 1) => Act::Declare,
            _ => Act::Find,
        };
        self.errands.mortal.since = Some(now);
        say!(scene, "client {}: errand {act:?} of {name}", self.id);
        let step = Step::Mortal(act);
        match act {
            Act::Declare => {
                let option = match expires_ms {
                    0 => ("x-auto-delete", Value::Bool(true)),
                    ms => ("x-expires", Value::U32(ms)),
                };
                self.declare_errand(step, &name, durability, (0, &table(&[option])));
            }
            Act::Find => self.find_errand(step, &name),
            Act::Open(channel) => self.open_errand(step, &name, channel),
            Act::Close(channel) => {
                // It may go at once, or begins to be unused, when this arrives.
                self.errands.mortal.until = match expires_ms {
                    0 => 0,
                    ms => now + u64::from(ms) * MS,
                };
                self.errands.mortal.channel = None;
                let header = self.errand(step);
                let id = header.sequence;
                frame::write_bare(&mut self.out, FrameKind::ConsumerClose, channel, id);
            }
        }
    }

    fn open_errand(&mut self, step: Step, name: &str, channel: u16) {
        let header = self.errand(step);
        let body = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: 1,
            flags: 0,
            queue: name.as_bytes(),
            arguments: b"",
        };
        let header = FrameHeader::bare(FrameKind::ConsumerOpen, channel, header.sequence);
        body.write(&mut self.out, header);
        self.channels.insert(channel, Channel::Guest);
    }

    fn mortal_answered(
        &mut self,
        act: Act,
        outcome: Result<bool, Code>,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let now = scene.now;
        let mortal = &mut self.errands.mortal;
        let since = mortal.since.take().unwrap_or(now);
        let must_be_there = mortal.until > now;
        let lives = |mortal: &Mortal| match mortal.expires_ms {
            0 => u64::MAX,
            ms => since + u64::from(ms) * MS,
        };
        match (act, outcome) {
            (Act::Declare, Ok(true)) => {
                if must_be_there {
                    return Err(format!("it had gone, before {} ns", mortal.until));
                }
                // Nobody has consumed from it.
                mortal.until = lives(mortal);
                mortal.may_be_there = true;
                mortal.is_everywhere = true;
            }
            (Act::Declare | Act::Find, Ok(_)) => {
                if !mortal.may_be_there && now > mortal.doubted_until {
                    return Err("it is there, and nobody has declared it".into());
                }
                if mortal.expires_ms > 0 {
                    mortal.until = mortal.until.max(lives(mortal));
                }
            }
            (Act::Find | Act::Open(_), Err(Code::QueueUnknown)) => {
                let is_everywhere = std::mem::take(&mut mortal.is_everywhere);
                if must_be_there && (is_everywhere || act == Act::Find) {
                    return Err(format!("it is gone before {} ns", mortal.until));
                }
                scene.marks.hit("mortal queue gone");
                // For consumers it is gone when it is about to go, and then that may fail.
                mortal.may_be_there &= act != Act::Find;
            }
            (Act::Open(channel), Ok(_)) => {
                if !mortal.may_be_there && now > mortal.doubted_until {
                    return Err("it is there, and nobody has declared it".into());
                }
                mortal.channel = Some(channel);
                mortal.until = u64::MAX;
            }
            (Act::Close(_), Ok(_)) => {}
            (act, Err(code)) if is_excused(code) => {
                if act == Act::Declare {
                    mortal.doubted_until = now + DOUBT;
                }
            }
            (_, Err(code)) => return Err(format!("failed with {code}")),
        }
        Ok(())
    }

    /// A frame of a consumer of `m7`, or of what a drain opened.
    pub(super) fn on_guest_frame(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        match head.kind {
            FrameKind::ConsumerClosed => {
                self.channels.remove(&head.channel);
                if head.sequence != 0 {
                    return self.errand_answered(head.sequence, Ok(true), scene);
                }
                let failure = control::Failure::decode(body);
                let failure = failure.map_err(|code| format!("ConsumerClosed: {code}"))?;
                let code = Code::from_number(failure.code);
                let mortal = &mut self.errands.mortal;
                let is_held = mortal.channel == Some(head.channel);
                if is_held {
                    mortal.channel = None;
                    mortal.until = 0;
                }
                match code {
                    Code::QueueDeleted if is_held => {
                        Err("a queue that is used was deleted".to_owned())
                    }
                    Code::QueueDeleted => Ok(()),
                    code if is_excused(code) => Ok(()),
                    code => Err(format!("a consumer was closed with {code}")),
                }
            }
            kind => Err(format!("{kind:?} for a consumer of an empty queue")),
        }
    }

    // ---- e7 ----------------------------------------------------------------------------------

    fn use_own(&mut self, scene: &mut Scene) {
        if self.errands.own.0.is_some() {
            return;
        }
        self.errands.own.0 = Some(scene.now);
        let name = format!("e{}", self.id);
        if self.errands.own.1 {
            return self.find_errand(Step::Own, &name);
        }
        let arguments = table(&[("x-exclusive", Value::Bool(true))]);
        self.declare_errand(Step::Own, &name, Durability::Volatile, (0, &arguments));
    }

    fn own_answered(
        &mut self,
        outcome: Result<bool, Code>,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let since = self.errands.own.0.take().unwrap_or(scene.now);
        match outcome {
            Ok(is_new) => {
                if !is_new && !self.errands.own.1 {
                    return Err("an exclusive queue is shared with a connection before".into());
                }
                self.errands.own.1 = true;
                scene.own_is_there(self.id, since)
            }
            // The broker may not know yet that the connection before is gone.
            Err(Code::ResourceLocked) if !self.errands.own.1 && self.dials > 1 => Ok(()),
            Err(code) if is_excused(code) => Ok(()),
            Err(code) => Err(format!("failed with {code}")),
        }
    }

    fn probe(&mut self, scene: &mut Scene) {
        let others: Vec<usize> = (0..scene.plan.clients).collect();
        let other = *self.errands.random.pick(&others);
        let is_of_another_tenant = scene.plan.tenants > 1 && other % 2 != self.id % 2;
        if self.errands.probing.is_some() || other == self.id || is_of_another_tenant {
            return;
        }
        self.errands.probing = Some(scene.now);
        let name = format!("e{other}");
        let step = Step::Probe(other);
        match self.errands.random.coin() {
            true => self.find_errand(step, &name),
            false => {
                let body = Named {
                    name: name.as_bytes(),
                };
                self.send_errand(step, FrameKind::QueuePurge, &body);
            }
        }
    }

    fn probe_answered(
        &mut self,
        other: usize,
        outcome: Result<bool, Code>,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let since = self.errands.probing.take().unwrap_or(scene.now);
        match outcome {
            Err(Code::ResourceLocked) => scene.marks.hit("exclusive queue locked"),
            Err(code) if is_excused(code) => {}
            Ok(_) | Err(Code::QueueUnknown) => scene.own_was_not_locked(other, self.id, since),
            Err(code) => return Err(format!("failed with {code}")),
        }
        Ok(())
    }

    // ---- y7 ----------------------------------------------------------------------------------

    /// Declares queue and exchange, binds one to the other, looks for the exchange, takes the binding
    /// away, looks again.
    fn orphan_step(&mut self, scene: &mut Scene) {
        let (place, is_out) = self.errands.orphan;
        if is_out {
            return;
        }
        self.errands.orphan.1 = true;
        let (queue, exchange) = (format!("t{}", self.id), format!("y{}", self.id));
        let durability = self.errands.durability;
        let step = Step::Orphan(place);
        say!(scene, "client {}: errand {step:?}", self.id);
        let declare = |flags, arguments| ExchangeDeclare {
            kind: ExchangeKind::Fanout as u8,
            durability: durability as u8,
            flags,
            reserved: 0,
            name: exchange.as_bytes(),
            arguments,
        };
        let arguments = table(&[("x-auto-delete", Value::Bool(true))]);
        let bind = Bind {
            flags: 0,
            exchange: exchange.as_bytes(),
            target: queue.as_bytes(),
            key: b"",
            arguments: b"",
        };
        match place {
            0 => self.declare_errand(step, &queue, durability, (0, b"")),
            1 => self.send_errand(step, FrameKind::ExchangeDeclare, &declare(0, &arguments)),
            2 => self.send_errand(step, FrameKind::Bind, &bind),
            4 if self.errands.random.coin() => self.send_errand(step, FrameKind::Unbind, &bind),
            4 => {
                let body = Delete {
                    flags: 0,
                    name: queue.as_bytes(),
                };
                self.send_errand(step, FrameKind::QueueDelete, &body);
            }
            _ => {
                let find = declare(control::DECLARE_PASSIVE, b"");
                self.send_errand(step, FrameKind::ExchangeDeclare, &find);
            }
        }
    }

    fn orphan_answered(
        &mut self,
        place: u8,
        outcome: Result<bool, Code>,
        scene: &mut Scene,
    ) -> Result<(), String> {
        self.errands.orphan = ((place + 1) % 6, false);
        match (place, outcome) {
            (_, Err(code)) if is_excused(code) => {
                self.errands.orphan.0 = 0;
                self.errands.doubted_until = scene.now + DOUBT;
            }
            _ if scene.now < self.errands.doubted_until && outcome.is_err() => {
                self.errands.orphan.0 = 0;
            }
            (5, Ok(_)) if scene.now < self.errands.doubted_until => {}
            (5, Err(Code::ExchangeUnknown)) => scene.marks.hit("orphan gone"),
            (5, Ok(_)) => return Err("an exchange outlives its last binding".into()),
            (_, Ok(_)) => {}
            (_, Err(code)) => return Err(format!("failed with {code}")),
        }
        Ok(())
    }

    // ---- p7 ----------------------------------------------------------------------------------

    fn set_policy(&mut self, step: Step, of: usize, is_long: bool) {
        let (letter, priority, ms) = match is_long {
            true => ("a", 1, LONG_MS),
            false => ("b", 0, SHORT_MS),
        };
        let options = table(&[("x-expires", Value::U32(ms))]);
        let (name, pattern) = (format!("{letter}{of}"), format!("^p{of}$"));
        let body = PolicySet {
            priority,
            applies: 1,
            flags: 0,
            reserved: 0,
            name: name.as_bytes(),
            pattern: pattern.as_bytes(),
            options: &options,
        };
        let header = FrameHeader {
            kind: FrameKind::PolicySet,
            ..self.errand(step)
        };
        body.write(&mut self.out, header);
    }

    /// Sets both policies, declares the queue, waits for longer than the one of them lets it live, and
    /// looks for it.
    fn policy_step(&mut self, scene: &mut Scene) {
        let (place, is_out) = self.errands.policy;
        let waits =
            place == 3 && scene.now < self.errands.settled_at + 2 * u64::from(SHORT_MS) * MS;
        if is_out || waits {
            return;
        }
        self.errands.policy.1 = true;
        let name = format!("p{}", self.id);
        let step = Step::Policy(place);
        say!(scene, "client {}: errand {step:?}", self.id);
        match place {
            0 => self.set_policy(step, self.id, true),
            1 => self.set_policy(step, self.id, false),
            2 => self.declare_errand(step, &name, self.errands.durability, (0, b"")),
            _ => self.find_errand(step, &name),
        }
    }

    fn policy_answered(
        &mut self,
        place: u8,
        outcome: Result<bool, Code>,
        scene: &mut Scene,
    ) -> Result<(), String> {
        self.errands.policy = ((place + 1) % 4, false);
        match (place, outcome) {
            (_, Err(code)) if is_excused(code) => self.errands.policy.0 = 0,
            (2, Ok(_)) => self.errands.settled_at = scene.now,
            (3, Ok(_)) => scene.marks.hit("policy counts"),
            (_, Ok(_)) => {}
            (3, Err(Code::QueueUnknown)) => {
                return Err("it expired by a policy that another one overrides".into());
            }
            (_, Err(code)) => return Err(format!("failed with {code}")),
        }
        Ok(())
    }

    // ---- the end -----------------------------------------------------------------------------

    /// Sees to it that everything is gone that goes by itself, whoever left it. Whether it is.
    pub(super) fn drain_errands(&mut self, scene: &mut Scene) {
        let mut doomed = self.errands.doomed.take().unwrap_or_else(|| {
            let ids = (0..scene.plan.clients)
                .filter(|id| scene.plan.tenants == 1 || id % 2 == self.tenant)
                .collect::<Vec<_>>();
            let mut doomed = Vec::new();
            for id in ids {
                let mut add = |letter: &str| {
                    doomed.push(Doomed {
                        name: format!("{letter}{id}"),
                        of: id,
                        stage: Stage::Urge(0),
                        asked_at: 0,
                    });
                };
                if has(scene, Fault::Mortals) {
                    add("m");
                    add("e");
                }
                if has(scene, Fault::Policies) {
                    add("p");
                }
            }
            doomed
        });
        for (at, one) in doomed.iter_mut().enumerate() {
            let Doomed {
                name,
                of,
                stage,
                asked_at,
            } = one.clone();
            let step = Step::Urge(at);
            let is_policy = name.starts_with('p');
            let next = match stage {
                Stage::Gone | Stage::Asking => continue,
                Stage::Urge(0) if is_policy => {
                    self.set_policy(step, of, false);
                    Stage::Asking
                }
                Stage::Urge(_) if is_policy => {
                    let name = format!("a{of}");
                    let body = Named {
                        name: name.as_bytes(),
                    };
                    self.send_errand(step, FrameKind::PolicyDelete, &body);
                    Stage::Asking
                }
                // One that goes with its last consumer goes when it has had one.
                Stage::Urge(0) if name.starts_with('m') => match self.free_channel() {
                    Some(channel) => {
                        self.open_errand(step, &name, channel);
                        Stage::Asking
                    }
                    None => continue,
                },
                Stage::Urge(_) | Stage::Waiting => {
                    if scene.now < asked_at + 100 * MS {
                        continue;
                    }
                    one.asked_at = scene.now;
                    let body = Named {
                        name: name.as_bytes(),
                    };
                    self.send_errand(Step::Gone(at), FrameKind::QueueInspect, &body);
                    Stage::Asking
                }
            };
            one.stage = next;
        }
        self.errands.doomed = Some(doomed);
    }

    /// Whether everything is gone that a drain waits for.
    pub(super) fn errands_are_drained(&self) -> bool {
        let doomed = self.errands.doomed.as_ref();
        doomed.is_some_and(|doomed| doomed.iter().all(|one| one.stage == Stage::Gone))
    }

    /// A drain begins, or begins again.
    pub(super) fn forget_errands(&mut self) {
        self.errands.doomed = None;
    }

    fn doomed_answered(
        &mut self,
        step: Step,
        outcome: Result<bool, Code>,
        channel: Option<u16>,
    ) -> Result<(), String> {
        let (Step::Gone(at) | Step::Urge(at)) = step else {
            return Ok(());
        };
        let Some(one) = self.errands.doomed.as_mut().and_then(|all| all.get_mut(at)) else {
            return Ok(());
        };
        let is_policy = one.name.starts_with('p');
        one.stage = match (step, outcome) {
            (_, Err(Code::QueueUnknown)) => Stage::Gone,
            (Step::Gone(_), _) => Stage::Waiting,
            (_, Err(code)) if is_excused(code) => Stage::Urge(0),
            (_, Ok(_)) if is_policy => Stage::Urge(1),
            (_, Ok(_)) => Stage::Waiting,
            (_, Err(Code::PolicyUnknown)) => Stage::Waiting,
            (_, Err(code)) => return Err(format!("failed with {code}")),
        };
        if let Some(channel) = channel {
            // Opened to be closed.
            frame::write_bare(&mut self.out, FrameKind::ConsumerClose, channel, 1 << 60);
        }
        Ok(())
    }

    // ---- answers -----------------------------------------------------------------------------

    /// Whether a frame answers an errand, or is for a consumer of one.
    pub(super) fn is_of_errand(&self, head: &FrameHeader) -> bool {
        let is_answer = matches!(
            head.kind,
            FrameKind::Done | FrameKind::Failed | FrameKind::QueueInfo
        );
        let is_guest = matches!(self.channels.get(&head.channel), Some(Channel::Guest));
        is_guest
            || (is_answer && matches!(self.requests.get(&head.sequence), Some(Request::Errand(_))))
    }

    /// Such a frame.
    ///
    /// # Errors
    /// It should not have come.
    pub(super) fn on_errand_frame(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let outcome = match head.kind {
            FrameKind::Done => Ok(head.flags & ringpost_wire::header::DONE_CHANGED != 0),
            FrameKind::Failed => {
                let failure = control::Failure::decode(body);
                let failure = failure.map_err(|code| format!("Failed: {code}"))?;
                let code = Code::from_number(failure.code);
                scene.marks.hit(code.word());
                Err(code)
            }
            FrameKind::QueueInfo | FrameKind::ConsumerOpened => Ok(true),
            _ => return self.on_guest_frame(head, body, scene),
        };
        say!(
            scene,
            "client {}: errand {} ended: {outcome:?}",
            self.id,
            head.sequence
        );
        match self.drain {
            Some(_) => self.drain_errand_answered(head, outcome),
            None => self.errand_answered(head.sequence, outcome, scene),
        }
    }

    /// An errand was answered.
    ///
    /// # Errors
    /// It cannot have been.
    pub(super) fn errand_answered(
        &mut self,
        sequence: u64,
        outcome: Result<bool, Code>,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let Some(Request::Errand(step)) = self.requests.remove(&sequence) else {
            // The close of a consumer that a drain opened.
            return Ok(());
        };
        let verdict = match step {
            Step::Mortal(act) => {
                if let (Act::Open(channel), Err(_)) = (act, outcome) {
                    self.channels.remove(&channel);
                }
                self.mortal_answered(act, outcome, scene)
            }
            Step::Own => self.own_answered(outcome, scene),
            Step::Probe(other) => self.probe_answered(other, outcome, scene),
            Step::Orphan(place) => self.orphan_answered(place, outcome, scene),
            Step::Policy(place) => self.policy_answered(place, outcome, scene),
            Step::Gone(_) | Step::Urge(_) => Ok(()),
        };
        verdict.map_err(|text| format!("errand {step:?} of client {}: {text}", self.id))
    }

    /// As [`Self::errand_answered`], of a drain; `channel` if it opened a consumer.
    pub(super) fn drain_errand_answered(
        &mut self,
        head: &FrameHeader,
        outcome: Result<bool, Code>,
    ) -> Result<(), String> {
        let Some(Request::Errand(step)) = self.requests.remove(&head.sequence) else {
            return Ok(());
        };
        let is_open = head.kind == FrameKind::ConsumerOpened;
        if !is_open && head.channel > 0 {
            self.channels.remove(&head.channel);
        }
        // An info is no end of a wait.
        let channel = is_open.then_some(head.channel);
        self.doomed_answered(step, outcome, channel)
            .map_err(|text| format!("errand {step:?}: {text}"))
    }

    /// The connection is gone: what was out has no answer.
    pub(super) fn errands_over(&mut self, scene: &mut Scene) {
        self.errands.over(scene.now, scene.is_crashing);
        scene.own_is_gone(self.id);
        if let Some(doomed) = &mut self.errands.doomed {
            for one in doomed.iter_mut().filter(|one| one.stage != Stage::Gone) {
                one.stage = Stage::Urge(0);
            }
        }
    }

    /// Nothing more is heard: whether this client's queue is locked cannot be told from now on.
    pub(super) fn errands_cut_off(&mut self, scene: &mut Scene) {
        if self.link != Link::None {
            scene.own_is_gone(self.id);
        }
    }
}
