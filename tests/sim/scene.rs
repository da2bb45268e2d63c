//! What every part of a world shares: time, the models, the history and its judge, marks, the trace.
//! Does not know engines or bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;

use ringpost_check::{
    Checker, ConsumerNo, Delivery, Durability, Event, Level, MessageId, QueueNo, Target, text,
};

use ringpost_wire::Code;

use crate::client::Producer;
use crate::graves::Graves;
use crate::groups::Groups;
use crate::model::{Change, Headers, Model, Outcome, Queue};
use crate::places::Places;
use crate::plan::{Fault, Mode, Plan};
use crate::random::Hash;
use crate::streams::Streams;
use crate::times::{Times, Timing};
use crate::transactions::Ledger;

/// How often each thing that a set of seeds should reach was reached.
#[derive(Clone, Default, Debug)]
pub struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    /// What a large set of seeds must reach: every effect, fault, answer and way of clients that worlds
    /// know. Others are counted too.
    pub const EXPECTED: &'static [&'static str] = &[
        "binding_unknown",
        "bit-rot",
        "body_malformed",
        "bounded-queues",
        "byte-cuts",
        "channel_invalid",
        "clean end",
        "client asks after an old publish",
        "client asks a window away",
        "client falls silent",
        "client goes on without an outcome",
        "client hands a producer on",
        "client misbehaves",
        "client publishes a piece",
        "client publishes again",
        "client takes a producer over",
        "client waits for credit",
        "clock-jump",
        "connection left unread",
        "core-stall",
        "crash",
        "crash in a file operation",
        "crash while starting",
        "crash with a write in flight",
        "crash with two writes in flight",
        "crash-twice",
        "credit_exceeded",
        "death delivery_limit",
        "death expired",
        "death maxlen",
        "death rejected",
        "deaths",
        "disk_full",
        "dropped",
        "effect close",
        "effect fail stop",
        "effect file",
        "effect handover",
        "effect mesh",
        "effect read",
        "effect release",
        "effect report",
        "effect send",
        "effect send buffer",
        "effect write",
        "event ack confirmed",
        "event acked",
        "event confirmed",
        "event delivered",
        "event published",
        "event refused",
        "event unknown",
        "exchange_unknown",
        "exclusive queue locked",
        "fault bit rot",
        "fault clock jump",
        "fault core stall",
        "fault dropped write",
        "fault file error",
        "fault hung disk",
        "fault lying sync",
        "fault misdirected write",
        "fault no space",
        "fault read error",
        "fault reset",
        "fault short write",
        "fault slow reader",
        "fault write error",
        "file-error",
        "frame attached",
        "frame binding info",
        "frame close",
        "frame confirm",
        "frame consumer closed",
        "frame consumer opened",
        "frame consumer position",
        "frame deliver",
        "frame deliver fragment",
        "frame done",
        "frame exchange info",
        "frame failed",
        "frame consumer active",
        "frame get done",
        "frame heartbeat",
        "frame producer closed",
        "frame producer credit",
        "frame producer opened",
        "frame queue info",
        "frame refused",
        "frame settled",
        "frame tenant info",
        "frame welcome",
        "frame_malformed",
        "frame_too_large",
        "group read on",
        "hung-disk",
        "in_use",
        "indeterminate",
        "journal_failed",
        "lane led",
        "large message delivered",
        "large-messages",
        "level_unavailable",
        "limit_reached",
        "list done",
        "lying-sync",
        "member active",
        "message_malformed",
        "message_too_large",
        "misbehave",
        "misdirected",
        "mortal queue gone",
        "mortals",
        "name_invalid",
        "no-space",
        "normal",
        "orphan gone",
        "overloaded",
        "permission_denied",
        "policies",
        "policy counts",
        "precondition_failed",
        "producer_fenced",
        "queue drained",
        "queue_damaged",
        "queue_deleted",
        "queue_full",
        "queue_unknown",
        "read from a stream",
        "read-error",
        "reader missed some",
        "redelivered",
        "refused to start over damage",
        "reset",
        "sequence_gap",
        "sequence_too_old",
        "setting_invalid",
        "shell copies out",
        "shutting_down",
        "silence",
        "set apart",
        "slow-disk",
        "slow-mesh",
        "slow-reader",
        "stream drained",
        "tenant declared",
        "tenant_unknown",
        "timed_out",
        "tiny-credit",
        "tiny-memory",
        "tiny-segments",
        "tiny-turns",
        "topology",
        "topology_read_only",
        "transaction committed",
        "transaction moves",
        "transaction refused",
        "transaction rolled back",
        "transaction without an answer",
        "transactions",
        "transactions judged",
        "transactions judged in doubt",
        "unexpected_frame",
        "unknown_delivery",
        "unroutable",
        "version_unsupported",
        "write-error",
        "write-short",
    ];

    /// Counts one.
    pub fn hit(&mut self, mark: &'static str) {
        self.add(mark, 1);
    }

    /// Counts several.
    pub fn add(&mut self, mark: &'static str, count: u64) {
        *self.0.entry(mark).or_default() += count;
    }

    /// How often.
    #[must_use]
    pub fn count(&self, mark: &str) -> u64 {
        self.0.get(mark).copied().unwrap_or(0)
    }

    /// Adds all of another world's.
    pub fn merge(&mut self, other: &Marks) {
        for (mark, count) in &other.0 {
            self.add(mark, *count);
        }
    }

    /// Every mark and its count, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(mark, count)| (*mark, *count))
    }
}

/// What a world came to hold: a set of seeds is worth little if most are poor.
#[derive(Clone, Default, Debug)]
pub struct Shape {
    /// Queues at once, at most, of all tenants.
    pub queues: usize,
    /// Cores that had queues.
    pub cores: BTreeSet<u32>,
    /// Confirm levels that were asked for.
    pub levels: BTreeSet<Level>,
    /// Crashes.
    pub crashes: u64,
    /// Crashes while a core had two writes in flight.
    pub crashes_in_writes: u64,
}

/// A hash of everything that happened, and its text if somebody wants to read it.
#[derive(Default)]
pub struct Trace {
    /// Equal for equal worlds.
    pub hash: Hash,
    lines: Option<Box<dyn Write>>,
}

impl Trace {
    /// A trace that writes what happens.
    #[must_use]
    pub fn to(lines: Box<dyn Write>) -> Self {
        Self {
            hash: Hash::default(),
            lines: Some(lines),
        }
    }

    /// Whether somebody reads it.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.lines.is_some()
    }

    /// Writes a line.
    pub fn line(&mut self, now: u64, text: fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.lines {
            let (ms, ns) = (now / 1_000_000, now % 1_000_000);
            // A closed pipe ends the reading, not the world.
            if writeln!(lines, "{ms:>7}.{ns:06} {text}").is_err() {
                self.lines = None;
            }
        }
    }
}

/// Says what happens, if somebody reads the trace.
#[macro_export]
macro_rules! say {
    ($scene:expr, $($what:tt)*) => {
        if $scene.trace.is_read() {
            $scene.trace.line($scene.now, format_args!($($what)*));
        }
    };
}

/// A publish whose answer is out: its way may change under it.
#[derive(Clone, Debug)]
pub struct Routed {
    /// Its tenant.
    pub tenant: usize,
    /// Its exchange.
    pub exchange: String,
    /// Its routing key.
    pub key: String,
    /// Its headers.
    pub headers: Headers,
    /// Hash of its bytes.
    pub hash: u64,
    /// The level asked for.
    pub level: Level,
    /// Whether its exchange may have been missing at some moment.
    pub may_lack: bool,
    /// Whether a queue it may have reached may have been missing at some moment.
    pub may_miss: bool,
    /// Whether a queue it may have reached has a limit.
    pub may_be_full: bool,
    /// Whether a queue it may have reached is volatile.
    pub may_be_volatile: bool,
    /// Whether it may have reached several queues.
    pub fans_out: bool,
}

/// What the parts of a world share.
pub struct Scene {
    /// Virtual time in nanoseconds.
    pub now: u64,
    /// What kind of world it is.
    pub plan: Plan,
    /// The topology of each tenant.
    pub models: Vec<Model>,
    /// Marks reached.
    pub marks: Marks,
    /// What it has come to hold so far.
    pub shape: Shape,
    /// The trace.
    pub trace: Trace,
    /// Publishes so far, repeats not counted.
    pub published: u64,
    /// Starts so far.
    pub starts: u64,
    /// Whether a journal has failed since the last start.
    pub journal_failed: bool,
    /// Whether the broker has reported damage.
    pub damage_reported: bool,
    /// The second tenant was declared.
    pub has_tenant: bool,
    /// Faults have stopped.
    pub is_healthy: bool,
    /// The first thing that is wrong, apart from the history.
    pub failure: Option<String>,
    /// Producers that a client has left to others of its tenant: the tenant, the client, the producer.
    pub handed_on: Vec<(usize, usize, Producer)>,
    /// What died, and what was told of it.
    pub graves: Graves,
    /// What was read of streams.
    pub streams: Streams,
    /// What transactions have done, by client.
    pub ledgers: BTreeMap<usize, Ledger>,
    /// When what may be delivered.
    pub times: Times,
    /// What was cancelled and moved.
    pub places: Places,
    /// In which order keys come.
    pub groups: Groups,
    /// Queues that ever had a consumer without acks.
    pub swallowed: BTreeSet<QueueNo>,
    checker: Checker,
    history: Option<Box<dyn Write>>,
    in_flight: BTreeMap<MessageId, Routed>,
    producers: Vec<u64>,
    open_changes: Vec<(u64, usize, Change)>,
    /// Queues of consumers without acks that are gone, though the owner of the queue may not know:
    /// it goes on sending, and what it sends is settled.
    swallowing: Vec<(u64, QueueNo)>,
    /// Publishes that will have no answer and may still be under way, since when.
    unanswered: Vec<(u64, MessageId)>,
    queue_next: u32,
    consumer_next: u32,
    queue_settings: Vec<(Durability, bool)>,
    /// Tenant and name of each queue.
    queue_names: Vec<(usize, String)>,
    /// Every core stops at this moment.
    pub is_crashing: bool,
    /// Clients whose exclusive queue is there, since when that is known.
    owners: BTreeMap<usize, u64>,
    /// Who was let into those, and when: wrong if their owner turns out to have been there.
    doubts: BTreeMap<usize, Vec<(u64, usize)>>,
}

impl Scene {
    /// An empty scene.
    #[must_use]
    pub fn new(plan: Plan, trace: Trace, history: Option<Box<dyn Write>>) -> Self {
        Self {
            now: 0,
            models: vec![Model::default(); plan.tenants],
            streams: Streams::of(plan.seed),
            ledgers: BTreeMap::new(),
            plan,
            marks: Marks::default(),
            shape: Shape::default(),
            trace,
            published: 0,
            starts: 0,
            journal_failed: false,
            damage_reported: false,
            has_tenant: false,
            is_healthy: false,
            failure: None,
            handed_on: Vec::new(),
            graves: Graves::default(),
            times: Times::default(),
            places: Places::default(),
            groups: Groups::default(),
            swallowed: BTreeSet::new(),
            checker: Checker::new(),
            history,
            in_flight: BTreeMap::new(),
            producers: Vec::new(),
            open_changes: Vec::new(),
            swallowing: Vec::new(),
            unanswered: Vec::new(),
            queue_next: 0,
            consumer_next: 0,
            queue_settings: Vec::new(),
            queue_names: Vec::new(),
            is_crashing: false,
            owners: BTreeMap::new(),
            doubts: BTreeMap::new(),
        }
    }

    /// Whether this world knows the fault, and faults have not stopped.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        !self.is_healthy && self.plan.faults.has(fault)
    }

    /// Something is wrong that the history does not show.
    pub fn fail(&mut self, text: String) {
        say!(self, "WRONG: {text}");
        if self.failure.is_none() {
            self.failure = Some(text);
        }
    }

    /// Adds an event to the history.
    pub fn event(&mut self, event: Event<'_>) {
        if let Event::Acked { queue, message } = event {
            self.places.acked(queue, message);
        }
        if self.trace.is_read() || self.history.is_some() {
            let mut line = Vec::new();
            text::write(&mut line, &event).expect("memory does not fail");
            if let Some(history) = &mut self.history
                && history.write_all(&line).is_err()
            {
                self.history = None;
            }
            line.pop();
            say!(self, "  * {}", String::from_utf8_lossy(&line));
        }
        let before = self.checker.violation_count();
        self.checker.event(event);
        if self.checker.violation_count() > before && self.failure.is_none() {
            let found = self.checker.violations().last().map(ToString::to_string);
            say!(self, "WRONG: {}", found.as_deref().unwrap_or("?"));
            if !self.tolerates_losses() {
                self.failure = found;
            }
        }
    }

    /// The judge.
    #[must_use]
    pub fn checker(&self) -> &Checker {
        &self.checker
    }

    /// Whether a violation is judged at the end only, together with what was reported.
    #[must_use]
    pub fn tolerates_losses(&self) -> bool {
        self.plan.mode == Mode::Detect
    }

    /// Whether the end of a journal may be gone without a trace, and what was declared there with it: a
    /// drive took back what it had synced, or never wrote where it said it did; or a bit has rotted in what
    /// was written last before the journal failed, behind which nothing could say that it was synced.
    #[must_use]
    pub fn may_have_lost_the_end(&self) -> bool {
        let untraced = [Fault::LyingSync, Fault::Dropped, Fault::Misdirected];
        let has = |fault: &Fault| self.plan.faults.has(*fault);
        let fails = [Fault::WriteError, Fault::WriteShort, Fault::FileError];
        let rots = has(&Fault::BitRot) && fails.iter().any(has);
        self.tolerates_losses() && (rots || untraced.iter().any(has))
    }

    /// A number for a queue that is about to be declared.
    pub fn new_queue(&mut self, durability: Durability, has_limit: bool) -> QueueNo {
        let queue = QueueNo(self.queue_next);
        self.queue_next += 1;
        self.queue_settings.push((durability, has_limit));
        self.event(Event::Queue { queue, durability });
        queue
    }

    /// A dead letter was delivered from the queue for the dead, at this place.
    ///
    /// # Errors
    /// It should not be there.
    pub fn dead_letter(
        &mut self,
        tenant: usize,
        (queue, reason): (&str, &str),
        message: MessageId,
        place: u64,
    ) -> Result<(), String> {
        self.marks.hit(match reason {
            "rejected" => "death rejected",
            "expired" => "death expired",
            "maxlen" => "death maxlen",
            "delivery_limit" => "death delivery_limit",
            _ => return Err(format!("a message died of {reason}")),
        });
        let is_it = |(at, name): &(usize, String)| *at == tenant && name == queue;
        let named: Vec<u32> = (0..self.queue_names.len() as u32)
            .filter(|number| is_it(&self.queue_names[*number as usize]))
            .collect();
        let verdict = self
            .graves
            .found((tenant, queue.to_owned()), reason, message, place);
        // A message that was published again may have died in another queue of the same name.
        if !self.tolerates_losses() && named.len() == 1 {
            verdict?;
        }
        for number in named {
            let queue = QueueNo(number);
            self.event(Event::Died { queue, message });
        }
        Ok(())
    }

    /// A message is delivered: neither too early nor behind one that it goes before.
    ///
    /// # Errors
    /// It is.
    pub fn check_times(
        &mut self,
        tenant: usize,
        name: &str,
        delivery: &Delivery,
    ) -> Result<(), String> {
        let queue = self.models[tenant].queues.get(name);
        let is_sure = !self.tolerates_losses();
        let is_it = |queue: &&Queue| is_sure && queue.is_steady() && queue.number == delivery.queue;
        let queue = queue.filter(is_it);
        // Of a queue of which nobody knows what it is nothing is judged but the delay.
        let timing = queue.map_or(
            Timing {
                rank_max: 31,
                rank_turn: 1,
                retry: None,
            },
            |queue| queue.settings.times.unwrap_or_default(),
        );
        let has_jumped = self.starts > 1 && self.plan.faults.has(Fault::ClockJump);
        let moment = (self.now, self.starts);
        let verdict = self.times.delivered(delivery, timing, moment, has_jumped);
        let has_times = self.plan.faults.has(Fault::Times);
        let is_apart = match verdict {
            Err(_) if self.tolerates_losses() => true,
            verdict => verdict?,
        };
        if is_apart && has_times {
            self.marks.hit("set apart");
            let queue = delivery.queue;
            self.event(Event::Apart { queue });
        }
        Ok(())
    }

    /// A broker has said that messages are back in their queue, which was asked at `sent`.
    pub fn return_is_confirmed(
        &mut self,
        tenant: usize,
        name: &str,
        returned: &[(QueueNo, MessageId)],
        sent: u64,
    ) {
        let queue = self.models[tenant].queues.get(name);
        let Some(queue) = queue.filter(|queue| queue.is_steady()) else {
            return;
        };
        let number = queue.number;
        let Some(retry) = queue.settings.times.and_then(|times| times.retry) else {
            return;
        };
        for message in returned.iter().filter(|(queue, _)| *queue == number) {
            let verdict = self.times.returned(*message, sent, retry, self.starts);
            if let Err(text) = verdict {
                self.fail(text);
            }
        }
    }

    /// A delivery states how often it came back; a queue with a limit lets it do so only so often.
    ///
    /// # Errors
    /// It came back more often.
    pub fn check_returns(&self, tenant: usize, queue: &str, count: u32) -> Result<(), String> {
        let queue = self.models[tenant].queues.get(queue);
        let queue = queue.filter(|queue| queue.is_steady());
        let limit = queue.and_then(|queue| queue.settings.deaths?.returns_max);
        // A message that has died once too often lives again after a crash, is delivered once more, and each
        // start may count for one.
        let Some(limit) = limit.map(|limit| u64::from(limit) + 1 + 2 * self.starts) else {
            return Ok(());
        };
        if u64::from(count) > limit && !self.tolerates_losses() {
            return Err(format!("came back {count} times, {limit} allowed"));
        }
        Ok(())
    }

    /// A broker has said that a reject survives: its dead letter must be found, unless its queue goes.
    pub fn reject_is_confirmed(
        &mut self,
        tenant: usize,
        name: &str,
        number: QueueNo,
        message: MessageId,
    ) {
        let queue = self.models[tenant].queues.get(name);
        let dies = queue.is_some_and(|queue| {
            queue.is_steady() && queue.number == number && queue.settings.deaths.is_some()
        });
        if dies {
            self.graves.owed((tenant, name.to_owned()), number, message);
        }
    }

    /// Everything is drained: what was owed must have been found.
    pub fn judge_graves(&mut self) {
        if self.tolerates_losses() {
            return;
        }
        let models = &self.models;
        let is_there = |(tenant, name): &(usize, String), number: QueueNo| {
            let queue = models[*tenant].queues.get(name);
            queue.is_some_and(|queue| queue.is_steady() && queue.number == number)
        };
        if let Err(text) = self.graves.judge(is_there) {
            self.fail(text);
        }
        let (models, swallowed) = (&self.models, &self.swallowed);
        let is_kept = |tenant: usize, name: &str, number: QueueNo| {
            let queue = models[tenant].queues.get(name);
            queue.is_some_and(|queue| {
                let dies = queue.settings.deaths.is_some();
                queue.is_steady() && queue.number == number && !dies
            }) && !swallowed.contains(&number)
        };
        if let Err(text) = self.places.judge(is_kept) {
            self.fail(text);
        }
        if let Err(text) = self.streams.judge() {
            self.fail(text);
        }
    }

    /// A client's own exclusive queue was answered for, which it asked for at `since`: it was there all
    /// the time, so nobody else may have been let in.
    ///
    /// # Errors
    /// Somebody was.
    pub fn own_is_there(&mut self, owner: usize, since: u64) -> Result<(), String> {
        let doubts = self.doubts.get(&owner).into_iter().flatten();
        let broken = doubts.clone().find(|(at, _)| *at < since);
        if let (Some((at, by)), true) = (broken, self.owners.contains_key(&owner)) {
            return Err(format!("client {by} was let in at {at} ns"));
        }
        self.owners.entry(owner).or_insert(self.now);
        Ok(())
    }

    /// Somebody asked at `since` for the exclusive queue of a client and was not told that it is one.
    pub fn own_was_not_locked(&mut self, owner: usize, by: usize, since: u64) {
        if self.owners.get(&owner).is_some_and(|known| *known <= since) {
            self.doubts.entry(owner).or_default().push((self.now, by));
        }
    }

    /// The connection of a client is gone, or may be: so is its queue.
    pub fn own_is_gone(&mut self, owner: usize) {
        self.owners.remove(&owner);
        self.doubts.remove(&owner);
    }

    /// A number for a consumer.
    pub fn new_consumer(&mut self) -> ConsumerNo {
        self.consumer_next += 1;
        ConsumerNo(self.consumer_next - 1)
    }

    /// A publish goes out, for the first time or again.
    pub fn sent(&mut self, message: MessageId, routed: Routed) {
        self.unanswered.retain(|(_, left)| *left != message);
        self.shape.levels.insert(routed.level);
        self.in_flight.insert(message, routed);
        self.route(message);
    }

    /// Routes a publish in flight by what the model believes now, and tells the history.
    fn route(&mut self, message: MessageId) {
        // A disk that loses what it wrote may bring back what a name meant before.
        let may_be_another = self.tolerates_losses();
        let Some(routed) = self.in_flight.get_mut(&message) else {
            return;
        };
        let model = &self.models[routed.tenant];
        let targets = model.route(&routed.exchange, &routed.key, &routed.headers);
        routed.fans_out |= targets.len() > 1;
        routed.may_lack |= may_be_another || model.may_lack(&routed.exchange);
        routed.may_miss |= may_be_another;
        routed.may_be_full |= may_be_another;
        routed.may_be_volatile |= may_be_another;
        for target in &targets {
            routed.may_miss |= matches!(target, Target::May(_));
            let (durability, has_limit) = self.queue_settings[target.queue().0 as usize];
            routed.may_be_full |= has_limit;
            routed.may_be_volatile |= durability == Durability::Volatile;
        }
        let (hash, level) = (routed.hash, routed.level);
        self.send_event(message, hash, level, &targets);
    }

    fn send_event(&mut self, message: MessageId, hash: u64, level: Level, targets: &[Target]) {
        self.event(Event::Sent {
            message,
            hash,
            level,
            targets,
        });
    }

    /// What is known of a publish in flight.
    #[must_use]
    pub fn routed(&self, message: MessageId) -> Option<&Routed> {
        self.in_flight.get(&message)
    }

    /// A publish has its outcome, or will have none.
    pub fn settled(&mut self, message: MessageId) {
        self.in_flight.remove(&message);
    }

    /// An id for a producer; its low 16 bits name it in tags.
    pub fn new_producer(&mut self) -> u64 {
        let low = self.producers.len() as u64;
        assert!(low < 0xFFFF, "a world has fewer producers");
        let id = crate::random::mix(self.plan.seed ^ low) << 16 | 1 << 63 | low;
        self.producers.push(id);
        id
    }

    /// The message that a tag names.
    #[must_use]
    pub fn message_of_tag(&self, tag: u64) -> Option<MessageId> {
        let producer = *self.producers.get((tag >> 32) as usize & 0xFFFF)?;
        Some(MessageId {
            producer,
            sequence: tag & 0xFFFF_FFFF,
        })
    }

    /// A publish will have no answer. Its frame may still be under way, so it is routed as the
    /// topology changes until that is out of the question.
    pub fn left_unanswered(&mut self, message: MessageId) {
        self.event(Event::Unknown { message });
        self.unanswered.push((self.now, message));
    }

    /// Nothing of this producer will be answered any more.
    pub fn forget_producer(&mut self, producer: u64) {
        let range = MessageId {
            producer,
            sequence: 0,
        }..=MessageId {
            producer,
            sequence: u64::MAX,
        };
        let in_flight = self.in_flight.range(range).map(|(id, _)| *id);
        let is_left =
            |message: &MessageId| !self.unanswered.iter().any(|(_, left)| left == message);
        let gone: Vec<MessageId> = in_flight.filter(is_left).collect();
        for message in gone {
            self.in_flight.remove(&message);
        }
    }

    /// A change of topology is about to be asked for; false if it must not be.
    pub fn begin(&mut self, tenant: usize, change: &Change) -> bool {
        let fresh = match change {
            Change::DeclareQueue(name, settings) => {
                self.queue_names.push((tenant, name.clone()));
                let durability = match settings.durability {
                    ringpost_wire::control::Durability::Volatile => Durability::Volatile,
                    ringpost_wire::control::Durability::Durable => Durability::Durable,
                };
                let has_limit = settings.messages_max + settings.bytes_max > 0;
                self.new_queue(durability, has_limit)
            }
            _ => QueueNo(u32::MAX),
        };
        if let Change::PurgeQueue(name) = change
            && let Some(queue) = self.models[tenant].queues.get(name)
        {
            let (number, now) = (queue.number, self.now);
            self.times.purged(number, now);
            self.groups.purged(number);
            self.places.purged(number);
        }
        if !self.models[tenant].begin(change, fresh) {
            return false;
        }
        // What was sent and not answered may be routed before the change or after it.
        let affected: Vec<MessageId> = self
            .in_flight
            .iter()
            .filter(|(_, routed)| routed.tenant == tenant)
            .map(|(message, _)| *message)
            .collect();
        for message in affected {
            self.route(message);
            if self.unanswered.iter().any(|(_, left)| *left == message) {
                self.event(Event::Unknown { message });
            }
        }
        true
    }

    /// There will be no answer to a change. It may still be under way in the broker, so the things
    /// it is about stay locked until that is out of the question.
    pub fn leave_open(&mut self, tenant: usize, change: Change) {
        self.open_changes.push((self.now, tenant, change));
    }

    /// A consumer without acks is gone; its queue may not know yet.
    pub fn swallows(&mut self, queue: QueueNo) {
        self.swallowed.insert(queue);
        self.swallowing.push((self.now, queue));
    }

    /// Ends changes and publishes without an answer, and the doubt about consumers without acks, that
    /// were left open before `until`.
    pub fn end_open_changes(&mut self, until: u64) {
        let (old, young): (Vec<_>, Vec<_>) = core::mem::take(&mut self.open_changes)
            .into_iter()
            .partition(|(left, ..)| *left < until);
        self.open_changes = young;
        for (_, tenant, change) in old {
            say!(self, "no answer to {change:?}");
            self.end(tenant, &change, Outcome::Lost);
        }
        let (old, young): (Vec<_>, Vec<_>) = core::mem::take(&mut self.swallowing)
            .into_iter()
            .partition(|(since, _)| *since < until);
        self.swallowing = young;
        for (_, queue) in old {
            self.event(Event::Dropped { queue });
        }
        let (old, young): (Vec<_>, Vec<_>) = core::mem::take(&mut self.unanswered)
            .into_iter()
            .partition(|(left, _)| *left < until);
        self.unanswered = young;
        for (_, message) in old {
            self.in_flight.remove(&message);
        }
    }

    /// A change of topology ended.
    pub fn end(&mut self, tenant: usize, change: &Change, outcome: Outcome) {
        if let Outcome::Failed(Code::JournalFailed | Code::Indeterminate) = outcome {
            // It may be on the disk all the same, and then it holds from the next start on.
            return self.leave_open(tenant, change.clone());
        }
        let ended = self.models[tenant].end(change, outcome);
        let queues = self.models.iter().map(|model| model.queues.len()).sum();
        self.shape.queues = self.shape.queues.max(queues);
        match ended {
            Ok(consequence) => {
                if let Some(queue) = consequence.dropped {
                    self.event(Event::Dropped { queue });
                }
            }
            // A lying drive brings back what was deleted.
            Err(_) if self.tolerates_losses() => self.models[tenant].doubt(),
            Err(text) => self.fail(text),
        }
    }
}
