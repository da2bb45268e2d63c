//! Works on journals while no broker runs: opens one, reads out what is live in several, and writes
//! it into new ones when the number of cores changes. Does not know files: a [`Disk`] reads and
//! writes.
//!
//! A change of the number of cores moves partitions, and with them their queues, to other journals.
//! What is live is copied, in order, with the same queue sequences; what is settled, marked and
//! counted goes along in each new journal's checkpoint. The old journals are only read, so a crash
//! in the middle leaves them as they were and the copy is begun anew (rulings 14).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use ringpost_wire::control::Durability;
use ringpost_wire::ids::{CoreId, PartitionId, QueueId, QueueSequence};
use ringpost_wire::{FragmentHead, envelope, padded};

use crate::control::catalog::Catalog;
use crate::control::recovery::{Recovery, Status};
use crate::control::restore::{KeptGroups, Restore, has_lost_topology};
use crate::control::topology::queue_state;
use crate::control::{checkpoint, state};
use crate::data::dedup::Dedup;
use crate::data::flow::Queues;
use crate::data::journal::record::Kind;
use crate::data::journal::{
    Appended, Config, Damage, Fetch, GroupBy, GroupRecord, Journal, Located, NoRoom, RunHead,
};
use crate::data::queue::{self, LiveRun, Ranges, SequenceRange};
use crate::data::transaction::{Share, TransactionId, Transactions};
use crate::effect::{Buffers, Effect, Effects, FileOp, Severity};
use crate::ids::{BufferId, Clock, Mono, Place, SlotId};
use crate::input::{FileReply, IoFault, SlotHead};

mod unreadable;

pub use unreadable::{Unreadable, Unserved};

/// Where a journal's slots and checkpoints are. Every operation is durable when it returns.
pub trait Disk {
    /// Fills `into` from a byte position of a slot.
    ///
    /// # Errors
    /// Why it cannot.
    fn read(&mut self, slot: SlotId, position: u32, into: &mut [u8]) -> Result<(), IoFault>;
    /// Writes `bytes` to a byte position of a slot.
    ///
    /// # Errors
    /// Why it cannot.
    fn write(&mut self, slot: SlotId, position: u32, bytes: &[u8]) -> Result<(), IoFault>;
    /// Performs a file operation.
    ///
    /// # Errors
    /// Why it cannot.
    fn file(&mut self, what: &FileOp) -> Result<(), IoFault>;
}

/// A pool of plain vectors.
#[derive(Debug)]
struct Pool {
    /// Each is made when its buffer is first acquired: most runs need few of them.
    bytes: Vec<Vec<u8>>,
    free: Vec<BufferId>,
    buffer_bytes: u32,
}

impl Pool {
    fn new(count: u32, buffer_bytes: u32) -> Self {
        Self {
            bytes: vec![Vec::new(); count as usize],
            free: (0..count).rev().map(BufferId).collect(),
            buffer_bytes,
        }
    }
}

impl Buffers for Pool {
    fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    fn available(&self) -> usize {
        self.free.len()
    }

    fn acquire(&mut self) -> Option<BufferId> {
        let buffer = self.free.pop()?;
        let bytes = &mut self.bytes[buffer.0 as usize];
        if bytes.is_empty() {
            *bytes = vec![0; self.buffer_bytes as usize];
        }
        Some(buffer)
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        &self.bytes[buffer.0 as usize][range.start as usize..range.end as usize]
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        &mut self.bytes[buffer.0 as usize][from as usize..]
    }

    fn seal(&mut self, _buffer: BufferId, _upto: u32) {}
}

/// Buffers of one journal that is worked on offline.
const BUFFERS: u32 = 64;

/// A journal that was opened offline.
pub struct Opened<D> {
    journal: Journal,
    pool: Pool,
    effects: Effects,
    disk: D,
    now: Mono,
    window: unreadable::Window,
    /// What it holds, by queue.
    pub queues: BTreeMap<QueueId, queue::Replay>,
    /// The topology, if it is the meta core's.
    pub catalog: Option<Catalog>,
    /// What the producers have stored.
    dedup: Dedup,
    /// How far groups of streams have come.
    groups: KeptGroups,
    /// Shares of transactions that are prepared.
    prepared: BTreeMap<TransactionId, Share>,
    /// Those that were decided here.
    decided: BTreeSet<u64>,
    /// Wall clock of the newest thing found, in µs since 1970.
    wall_us: u64,
}

/// Opens a journal without writing to it. Damage is in [`Opened::damages`].
///
/// # Errors
/// Why it cannot be opened.
pub fn open<D: Disk>(
    config: Config,
    heads: &[SlotHead],
    checkpoints: &[Vec<u8>],
    catalog: Option<Catalog>,
    mut disk: D,
) -> Result<Opened<D>, String> {
    let mut pool = Pool::new(BUFFERS, config.buffer_bytes);
    let mut effects = Effects::default();
    let mut restore = Restore::new(catalog);
    let mut recovery = Recovery::new(config, heads, checkpoints);
    loop {
        match recovery.step(&mut pool, &mut effects, &mut restore) {
            Status::Done => break,
            Status::Failed(reason) => return Err(reason),
            Status::Working => {}
        }
        for effect in std::mem::take(&mut effects.list) {
            match effect {
                Effect::Read {
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                } => {
                    let into =
                        &mut pool.open_bytes(buffer, 0)[range.start as usize..range.end as usize];
                    let result = disk.read(slot, position, into);
                    recovery.io_done(op, result, &mut effects);
                }
                Effect::Release { buffer } => pool.free.push(buffer),
                _ => {}
            }
        }
    }
    let (mut journal, report) = recovery.finish(&mut effects);
    effects.clear();
    if let Some(fault) = restore.contradiction(journal.damages()) {
        return Err(format!("the journal contradicts itself: {fault}"));
    }
    let queues = restore.finish();
    for replay in queues.values() {
        replay.for_each_live_run(|segment, count| journal.retain(segment, count));
    }
    let catalog = restore.catalog.take();
    let dedup = std::mem::take(&mut restore.dedup);
    let groups = std::mem::take(&mut restore.groups);
    Ok(Opened {
        prepared: restore.prepared().clone(),
        decided: restore.decided().keys().copied().collect(),
        wall_us: report.wall_us,
        groups,
        journal,
        pool,
        effects,
        disk,
        now: Mono(1),
        window: unreadable::Window::default(),
        queues,
        catalog,
        dedup,
    })
}

impl<D: Disk> Opened<D> {
    /// Ranges of partitions that were lost and not given up.
    #[must_use]
    pub fn damages(&self) -> &[Damage] {
        self.journal.damages()
    }

    /// Whether changes of the topology are lost: no broker starts on it.
    #[must_use]
    pub fn has_lost_topology(&self) -> bool {
        has_lost_topology(self.catalog.as_ref(), self.damages())
    }

    /// Gives up a lost range, durably: records `first..upto` of a partition, and the messages that
    /// its queues miss, which `partition_of` places.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn accept_loss(
        &mut self,
        damage: &Damage,
        partition_of: impl Fn(QueueId) -> Option<PartitionId>,
    ) -> Result<(), String> {
        self.turn_until(Journal::is_ready)?;
        let (partition, lost) = (damage.partition, damage.first..damage.upto);
        // Messages that are all that is damaged of their records.
        let mut messages: BTreeMap<QueueId, Vec<SequenceRange>> = BTreeMap::new();
        for known in self.journal.damages() {
            let is_one = known.partition == partition && known.queue.0 != 0;
            if is_one && known.first < lost.end && lost.start < known.upto {
                let range = SequenceRange::new(known.queue_sequence, known.queue_sequence);
                messages.entry(known.queue).or_default().push(range);
            }
        }
        append(self, |journal, pool, effects| {
            journal
                .accept_loss(pool, effects, partition, lost.clone())
                .map(|_| ())
        })?;
        let ids: Vec<QueueId> = self
            .queues
            .keys()
            .copied()
            .filter(|id| partition_of(*id) == Some(damage.partition))
            .collect();
        for id in ids {
            let mut gaps = Ranges::default();
            self.queues[&id].gaps(&mut gaps);
            self.settle(partition, id, gaps.as_slice())?;
        }
        self.rest()?;
        for (queue, lost) in messages {
            self.give_up(partition, queue, &lost)?;
        }
        Ok(())
    }

    /// Waits until everything is durable.
    fn rest(&mut self) -> Result<(), String> {
        self.journal.flush(&mut self.pool, &mut self.effects);
        self.pump()?;
        self.turn_until(Journal::is_quiet)
    }

    /// A journal that never was.
    fn fresh(config: Config, disk: D) -> Self {
        Self {
            journal: Journal::fresh(config),
            pool: Pool::new(BUFFERS, config.buffer_bytes),
            effects: Effects::default(),
            disk,
            now: Mono(1),
            window: unreadable::Window::default(),
            queues: BTreeMap::new(),
            catalog: None,
            dedup: Dedup::default(),
            groups: KeptGroups::default(),
            prepared: BTreeMap::new(),
            decided: BTreeSet::new(),
            wall_us: 0,
        }
    }

    /// Performs what the journal asks for, and what it asks for then.
    fn pump(&mut self) -> Result<(), String> {
        while !self.effects.list.is_empty() {
            for effect in std::mem::take(&mut self.effects.list) {
                let (pool, effects) = (&mut self.pool, &mut self.effects);
                match effect {
                    Effect::Read {
                        op,
                        slot,
                        position,
                        buffer,
                        range,
                    } => {
                        let into = &mut pool.open_bytes(buffer, 0)
                            [range.start as usize..range.end as usize];
                        let result = self.disk.read(slot, position, into);
                        self.journal.io_done(op, result, pool, effects);
                    }
                    Effect::Write {
                        op,
                        slot,
                        position,
                        buffer,
                        range,
                    } => {
                        let result = self.disk.write(slot, position, pool.bytes(buffer, range));
                        self.journal.io_done(op, result, pool, effects);
                    }
                    Effect::File { op, what } => {
                        let result = self.disk.file(&what).map(|()| FileReply::Done);
                        self.journal.file_done(op, result, self.now, effects);
                    }
                    Effect::Release { buffer } => pool.free.push(buffer),
                    Effect::FailStop { reason, .. } => return Err(reason),
                    Effect::Report {
                        severity: Severity::Error,
                        text,
                    } => return Err(text),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Ends turns until `done` says so.
    fn turn_until(&mut self, done: impl Fn(&Journal) -> bool) -> Result<(), String> {
        const TURNS_MAX: u32 = 100_000;
        for _ in 0..TURNS_MAX {
            if done(&self.journal) {
                return Ok(());
            }
            // A millisecond a turn: what waits for company or for time to pass is soon due.
            self.now = self.now.plus_ms(1);
            self.journal
                .turn_end(self.now, &mut self.pool, &mut self.effects);
            self.pump()?;
        }
        Err("the new journal does not come to rest; is the disk full?".to_owned())
    }

    /// The body of a record.
    fn body(&mut self, place: Place, queue: QueueId, run: &LiveRun) -> Result<Vec<u8>, String> {
        const TRIES_MAX: u32 = 1_000;
        for _ in 0..TRIES_MAX {
            match self.journal.locate(&self.pool, place, queue, run.first) {
                Located::Cached { buffer, body, .. } => {
                    return Ok(self.pool.bytes(buffer, body).to_vec());
                }
                Located::Damaged => break,
                Located::Cold | Located::Coming => {
                    let fetch = self.journal.fetch(&mut self.pool, &mut self.effects, place);
                    self.pump()?;
                    if fetch == Fetch::Busy {
                        self.journal.supply_buffers(&self.pool, &mut self.effects);
                        self.pump()?;
                    }
                }
            }
        }
        Err(format!(
            "message {} of queue {} cannot be read",
            run.first.0, queue.0
        ))
    }

    /// The messages of a run, settled ones included.
    fn run(&mut self, queue: QueueId, run: &LiveRun) -> Result<Messages, String> {
        let malformed = || format!("message {} of queue {} is malformed", run.first.0, queue.0);
        if !run.pieces.is_empty() {
            let mut message = Vec::new();
            for place in &run.pieces {
                let body = self.body(*place, queue, run)?;
                let (_, piece) = FragmentHead::split(&body).map_err(|_| malformed())?;
                message.extend_from_slice(piece);
            }
            return Ok(vec![(run.first, message)]);
        }
        let body = self.body(run.place, queue, run)?;
        let mut at = queue::walk(&body, 0, 0, run.skip).ok_or_else(malformed)? as usize;
        let mut messages = Vec::with_capacity(run.count as usize);
        for number in 0..run.count {
            let rest = body.get(at..).ok_or_else(malformed)?;
            let length = envelope::length_of(rest).ok_or_else(malformed)?;
            let message = rest.get(..length).ok_or_else(malformed)?;
            messages.push((run.first.plus(u64::from(number)), message.to_vec()));
            at += padded(length);
        }
        Ok(messages)
    }
}

/// Messages with their places in a queue.
type Messages = Vec<(QueueSequence, Vec<u8>)>;

/// Copies what is live in `old` journals into new ones, one for each of `new`'s disks, and writes
/// their checkpoints. The first old journal is the meta core's.
///
/// # Errors
/// Why it cannot be done, for people. The old journals are as they were.
pub fn rehome<D: Disk>(mut old: Vec<Opened<D>>, new: Vec<(Config, D)>) -> Result<(), String> {
    let catalog = old
        .first()
        .and_then(|first| first.catalog.clone())
        .ok_or_else(|| "the meta core's journal is missing".to_owned())?;
    let cores = new.len() as u16;
    let mut targets: Vec<Opened<D>> = new
        .into_iter()
        .map(|(config, disk)| Opened::fresh(config, disk))
        .collect();
    let mut queues: Vec<Queues> = (0..cores).map(|_| Queues::default()).collect();
    for target in &mut targets {
        target.turn_until(|journal| journal.is_ready() && journal.is_supplied())?;
    }
    let mut committed = carry_out(&mut old)?;
    let core_of = |queue: QueueId| catalog.queue(queue).map(|queue| queue.partition.0 % cores);
    for mut source in old {
        for (core, target) in targets.iter_mut().enumerate() {
            target
                .dedup
                .adopt(&source.dedup, |queue| core_of(queue) == Some(core as u16));
        }
        if let Some(damage) = source.damages().first() {
            return Err(format!(
                "partition {} has lost records; `ringpost verify` names the range, `ringpost repair \
                 --accept-loss` gives it up",
                damage.partition.0
            ));
        }
        for (id, mut replay) in std::mem::take(&mut source.queues) {
            let Some(declared) = catalog.queue(id) else {
                continue;
            };
            let terms = replay.take_terms();
            let restored = replay
                .finish()
                .map_err(|_| format!("queue {} has a damaged range; repair it first", id.0))?;
            let core = CoreId(declared.partition.0 % cores);
            let target = &mut targets[usize::from(core.0)];
            for run in restored.live_runs() {
                copy(&mut source, target, id, declared.partition, &run)?;
            }
            let mut moved = queue_state(&catalog, declared);
            let settings = *moved.queue.settings();
            moved.queue = restored;
            // What came at an unknown time comes from the future: at the start it has just come.
            moved.queue.set_now(Mono(u64::MAX));
            moved.queue.set(settings);
            // By the wall clock, as it is written again.
            let same = |wall_ms| wall_ms;
            moved.queue.restore_terms(&terms, same, same);
            if moved.queue.is_stream() {
                moved.queue.restore_groups(source.groups.take(id));
            }
            for (count, messages) in committed.remove(&id).unwrap_or_default() {
                let first = moved.queue.next_sequence();
                let run = GroupRecord {
                    kind: Kind::Run,
                    head: RunHead::of_queue(declared.partition, id, first),
                    count,
                    body: &messages,
                };
                let mut place = None;
                append(target, |journal, pool, effects| {
                    let places = journal.append_group(pool, effects, GroupBy::Broker, &[run])?;
                    place = places.first().copied();
                    Ok::<(), NoRoom>(())
                })?;
                let place = place.expect("it was appended");
                let now = Mono(source.wall_us.saturating_mul(1_000));
                moved.took(first, count, &messages, Appended::New(place), now);
                let last = QueueSequence(moved.queue.next_sequence().0 - 1);
                moved.queue.durable_through(last);
            }
            queues[usize::from(core.0)].insert(moved);
        }
    }
    for (core, (target, queues)) in targets.iter_mut().zip(&queues).enumerate() {
        let mut bytes = Vec::new();
        let catalog = (CoreId(core as u16) == crate::config::META).then_some(&catalog);
        let clock = Clock {
            now: Mono(0),
            wall_us: 0,
        };
        let moment = (state::Moment::Last, clock, CoreId(core as u16));
        state::encode(
            catalog,
            &target.dedup,
            queues,
            &Transactions::default(),
            std::iter::empty(),
            moment,
            &mut bytes,
        );
        checkpoint::begin(
            &mut target.journal,
            bytes,
            &mut target.pool,
            &mut target.effects,
        );
        target.pump()?;
        target.journal.flush(&mut target.pool, &mut target.effects);
        target.pump()?;
        target.turn_until(Journal::is_quiet)?;
    }
    Ok(())
}

/// Messages of decided transactions, by queue: how many, and their bytes.
type Committed = BTreeMap<QueueId, Vec<(u32, Vec<u8>)>>;

/// Does what transactions that were decided were to do, to what was read: their acknowledgements are
/// settled, and their messages are returned. Of all others nothing happens.
fn carry_out<D>(journals: &mut [Opened<D>]) -> Result<Committed, String> {
    let decided: Vec<BTreeSet<u64>> = journals
        .iter_mut()
        .map(|journal| std::mem::take(&mut journal.decided))
        .collect();
    let mut committed = Committed::new();
    for journal in journals {
        for (id, share) in std::mem::take(&mut journal.prepared) {
            let deciding = decided.get(usize::from(id.core.0));
            let deciding = deciding.ok_or_else(|| {
                format!(
                    "transaction {:x} was to be decided by core {}, whose journal is missing",
                    id.number, id.core.0
                )
            })?;
            if !deciding.contains(&id.number) {
                continue;
            }
            for (queue, taken) in &share.taken {
                let Some(replay) = journal.queues.get_mut(queue) else {
                    continue;
                };
                for one in taken {
                    let sequence = QueueSequence(one.sequence);
                    let settled = replay.settled(SequenceRange::new(sequence, sequence));
                    settled.map_err(|fault| {
                        format!("a transaction's acknowledgement does not fit: {fault:?}")
                    })?;
                }
            }
            let mut start = 0;
            for run in &share.runs {
                let end = start + run.bytes as usize;
                let messages = share.messages[start..end].to_vec();
                start = end;
                // A queue that never held anything has to be there to get it.
                journal.queues.entry(run.queue).or_insert_with(|| {
                    queue::Replay::new(queue::Settings::plain(Durability::Durable))
                });
                committed
                    .entry(run.queue)
                    .or_default()
                    .push((run.count, messages));
            }
        }
    }
    Ok(committed)
}

/// A message that a broker would find in a queue if it started now.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Whose queue.
    pub tenant: &'a [u8],
    /// The queue.
    pub queue: &'a [u8],
    /// Its place in the queue.
    pub sequence: QueueSequence,
    /// Earlier deliveries, as the next one would state them.
    pub delivery_count: u32,
    /// The message as it was published and would be delivered.
    pub message: &'a [u8],
}

/// Reads every message that a start would find, queue by queue in their order, and gives it to
/// `each`. The first journal is the meta core's. Nothing is written.
///
/// # Errors
/// Why one of them cannot be read, or what `each` says.
pub fn messages<D: Disk>(
    mut journals: Vec<Opened<D>>,
    mut each: impl FnMut(Found<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let catalog = journals
        .first()
        .and_then(|first| first.catalog.clone())
        .ok_or_else(|| "the meta core's journal is missing".to_owned())?;
    let mut committed = carry_out(&mut journals)?;
    for journal in &mut journals {
        for (id, replay) in std::mem::take(&mut journal.queues) {
            let Some(declared) = catalog.queue(id) else {
                continue;
            };
            let tenant = catalog.tenant(declared.tenant).map(|tenant| &*tenant.name);
            let mut restored = replay
                .finish()
                .map_err(|_| format!("queue {} has a damaged range; repair it first", id.0))?;
            // Held: so that all of them are told, as they are before the first delivery of a start.
            restored.hold_restored();
            let mut counts = Vec::new();
            restored.take_counts(&mut counts);
            let count_of = |sequence: QueueSequence| {
                let at = counts.partition_point(|count| count.range.last < sequence);
                let count = counts.get(at).filter(|count| count.range.first <= sequence);
                count.map_or(0, |count| count.deliveries)
            };
            for run in restored.live_runs() {
                for (sequence, message) in journal.run(id, &run)? {
                    if !restored.is_live(sequence) {
                        continue;
                    }
                    envelope::open(&message).map_err(|why| {
                        format!("message {} of queue {}: {why}", sequence.0, id.0)
                    })?;
                    each(Found {
                        tenant: tenant.unwrap_or_default(),
                        queue: &declared.name,
                        sequence,
                        delivery_count: count_of(sequence),
                        message: &message,
                    })?;
                }
            }
            let mut sequence = restored.next_sequence();
            for (_, messages) in committed.remove(&id).unwrap_or_default() {
                for message in ringpost_wire::Messages::new(&messages) {
                    let message = message.map_err(|code| format!("a transaction: {code}"))?;
                    each(Found {
                        tenant: tenant.unwrap_or_default(),
                        queue: &declared.name,
                        sequence,
                        delivery_count: 0,
                        message: &message.bytes[..message.envelope.length()],
                    })?;
                    sequence = sequence.plus(1);
                }
            }
        }
    }
    Ok(())
}

/// Copies one stretch of messages, or one large message.
fn copy<D: Disk>(
    source: &mut Opened<D>,
    target: &mut Opened<D>,
    queue: QueueId,
    partition: PartitionId,
    run: &LiveRun,
) -> Result<(), String> {
    let head = RunHead::of_queue(partition, queue, run.first);
    if run.pieces.is_empty() {
        let body = source.body(run.place, queue, run)?;
        let malformed = || format!("message {} of queue {} is malformed", run.first.0, queue.0);
        let start = queue::walk(&body, 0, 0, run.skip).ok_or_else(malformed)?;
        let end =
            queue::walk(&body, run.skip, start, run.skip + run.count).ok_or_else(malformed)?;
        let messages = body
            .get(start as usize..end as usize)
            .ok_or_else(malformed)?;
        return append(target, |journal, pool, effects| {
            journal
                .append_run(pool, effects, &head, run.count, messages)
                .map(|_| ())
        });
    }
    for place in &run.pieces {
        let body = source.body(*place, queue, run)?;
        append(target, |journal, pool, effects| {
            journal
                .append_fragment(pool, effects, &head, &body)
                .map(|_| ())
        })?;
    }
    Ok(())
}

fn append<D: Disk, E>(
    target: &mut Opened<D>,
    mut what: impl FnMut(&mut Journal, &mut Pool, &mut Effects) -> Result<(), E>,
) -> Result<(), String> {
    const TRIES_MAX: u32 = 10_000;
    for _ in 0..TRIES_MAX {
        let done = what(&mut target.journal, &mut target.pool, &mut target.effects);
        target.pump()?;
        if done.is_ok() {
            return Ok(());
        }
        // Buffers come back when blocks are written, slots when files are made.
        target.now = target.now.plus_ms(1);
        target
            .journal
            .turn_end(target.now, &mut target.pool, &mut target.effects);
        target.pump()?;
    }
    Err("the new journals do not fit on the disk".to_owned())
}
