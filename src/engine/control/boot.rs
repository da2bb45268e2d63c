//! From what a core's directory holds to a core that runs: recovery, the catalog, the queues.
//! Does not decide what on disk is true (`recovery.rs`), and serves nobody yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringpost_wire::ids::{CoreId, PartitionId, QueueId};

use crate::config::{CoreConfig, META};
use crate::control::catalog::{self, Catalog};
use crate::control::recovery::{Recovery, Status};
use crate::control::restore::Restore;
use crate::control::topology::{Topology, queue_state};
use crate::control::words::counted;
use crate::data::flow::{Flow, QueueState};
use crate::data::journal::volatile::Volatile;
use crate::data::journal::{self, Damage, Journal};
use crate::data::queue::{self, Ranges, Taken};
use crate::data::route::Router;
use crate::effect::{Buffers, FailCause, Severity};
use crate::ids::{JournalId, Mono};
use crate::input::{Found, Input};
use crate::mesh::{MeshMessage, Reply, Request};
use crate::{Effect, Effects};

/// How far the journal has come.
enum Stage {
    /// It is being read.
    Recovering(Box<Recovery>),
    /// It is read; its first write must be durable and its spare slots be there.
    Opening(Box<Journal>),
    /// It cannot be opened; the reason was reported.
    Failed,
}

/// A core on its way to running.
pub struct Boot {
    config: CoreConfig,
    stage: Stage,
    restore: Restore,
    queues: BTreeMap<QueueId, queue::Replay>,
    /// Partitions that lost records.
    damaged: BTreeSet<PartitionId>,
    /// The topology, told by the meta core; the meta core's own is in `restore`.
    catalog: Option<Catalog>,
    /// What other cores said before this one runs.
    held: VecDeque<(CoreId, MeshMessage)>,
    now: Mono,
    /// What the wall clock showed when the journal was written last, in µs since 1970; 0 = never.
    last_wall_us: u64,
}

impl Boot {
    /// Starts with what was found.
    pub fn start(config: CoreConfig, found: &Found, now: Mono) -> Self {
        let recovery = Recovery::new(journal_config(&config), &found.slots, &found.checkpoints);
        let catalog = (config.core == META).then(|| Catalog::new(config.partitions));
        Self {
            config,
            stage: Stage::Recovering(Box::new(recovery)),
            restore: Restore::new(catalog),
            queues: BTreeMap::new(),
            damaged: BTreeSet::new(),
            catalog: None,
            held: VecDeque::new(),
            now,
            last_wall_us: 0,
        }
    }

    /// Whether it cannot be recovered.
    #[must_use]
    pub const fn has_failed(&self) -> bool {
        matches!(self.stage, Stage::Failed)
    }

    /// Whether the core can run.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let open = match &self.stage {
            Stage::Opening(journal) => journal.is_ready() && journal.is_supplied(),
            Stage::Recovering(_) | Stage::Failed => false,
        };
        open && (self.catalog.is_some() || self.restore.catalog.is_some())
    }

    /// When it wants to be stepped although nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        match &self.stage {
            Stage::Opening(journal) => journal.next_deadline(),
            Stage::Recovering(_) | Stage::Failed => None,
        }
    }

    /// Takes one input.
    pub fn step<B: Buffers>(
        &mut self,
        now: Mono,
        wall_us: u64,
        input: Input<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        self.now = now;
        match input {
            Input::Opened { conn }
            | Input::OpenedAmqp { conn, .. }
            | Input::Adopted { conn, .. } => {
                effects.push(Effect::Close { conn });
            }
            Input::Io { op, result, .. } => match &mut self.stage {
                Stage::Recovering(recovery) => {
                    recovery.io_done(op, result, effects);
                    self.recover(buffers, effects);
                }
                Stage::Opening(journal) => {
                    journal.io_done(op, result, buffers, effects);
                }
                Stage::Failed => {}
            },
            Input::File { op, result } => {
                if let Stage::Opening(journal) = &mut self.stage {
                    journal.file_done(op, result, now, effects);
                }
            }
            Input::Mesh { from, message } => self.mesh(from, message, effects),
            Input::TurnEnd => {
                self.recover(buffers, effects);
                if let Stage::Opening(journal) = &mut self.stage {
                    journal.set_wall(wall_us);
                    journal.turn_end(now, buffers, effects);
                }
            }
            Input::Frames { .. }
            | Input::Unwanted { .. }
            | Input::Malformed { .. }
            | Input::Closed { .. }
            | Input::Sent { .. }
            | Input::Tick { .. } => {}
            // Nothing was promised to anybody yet.
            Input::Shutdown => self.stage = Stage::Failed,
        }
        if let Stage::Opening(journal) = &self.stage
            && journal.has_failed()
        {
            self.stage = Stage::Failed;
        }
    }

    fn recover<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let Stage::Recovering(recovery) = &mut self.stage else {
            return;
        };
        match recovery.step(buffers, effects, &mut self.restore) {
            Status::Working => {}
            Status::Failed(reason) => {
                effects.push(content_failure(reason));
                self.stage = Stage::Failed;
            }
            Status::Done => {
                let Stage::Recovering(recovery) = std::mem::replace(&mut self.stage, Stage::Failed)
                else {
                    unreachable!("the stage was just looked at")
                };
                let (mut journal, report) = recovery.finish(effects);
                self.last_wall_us = report.wall_us;
                if let Some(reason) = self.refusal(journal.damages()) {
                    effects.push(content_failure(reason));
                    return;
                }
                self.queues = self.restore.finish();
                for replay in self.queues.values() {
                    replay.for_each_live_run(|segment, count| journal.retain(segment, count));
                }
                self.damaged = journal
                    .damages()
                    .iter()
                    .map(|damage| damage.partition)
                    .collect();
                self.stage = Stage::Opening(Box::new(journal));
            }
        }
    }

    /// Why what was read cannot be served.
    fn refusal(&self, damages: &[Damage]) -> Option<String> {
        if let Some(fault) = self.restore.contradiction(damages) {
            return Some(format!(
                "the journal contradicts itself: {fault}; run `ringpost verify` and report this"
            ));
        }
        let is_lost = self.restore.has_lost_topology(damages);
        is_lost.then(|| {
            "the topology has lost records, and what was declared in them is not known; `ringpost \
             verify` names the range, `ringpost repair --accept-loss` gives it up"
                .to_owned()
        })
    }

    fn mesh(&mut self, from: CoreId, message: MeshMessage, effects: &mut Effects) {
        match message {
            MeshMessage::Request {
                id,
                request: Request::Snapshot { catalog },
            } => {
                let catalog = Catalog::decode(&catalog).expect("the meta core wrote it");
                self.catalog = Some(catalog);
                let message = MeshMessage::Reply {
                    id,
                    reply: Reply::Done,
                };
                effects.push(Effect::Mesh { to: from, message });
            }
            message => self.held.push_back((from, message)),
        }
    }

    /// The core that runs, and what it was told meanwhile.
    #[must_use]
    pub fn finish(
        self,
        wall_us: u64,
        effects: &mut Effects,
    ) -> (Flow, Topology, VecDeque<(CoreId, MeshMessage)>) {
        let Self {
            config,
            stage,
            restore,
            mut queues,
            damaged,
            catalog,
            held,
            now,
            last_wall_us,
        } = self;
        let Stage::Opening(journal) = stage else {
            unreachable!("only a core that is ready is finished")
        };
        let mut restore = restore;
        let own = restore.catalog.take();
        let dedup = std::mem::take(&mut restore.dedup);
        let mut groups = std::mem::take(&mut restore.groups);
        let catalog = catalog.or(own).expect("the core is ready");
        let router = Router::of(&catalog, &placement(&config));
        let volatile = Volatile::new(config.limits.volatile_buffers as usize);
        let transactions = restore.take_transactions(journal.damages());
        let mut taken: BTreeMap<QueueId, Vec<Taken>> = BTreeMap::new();
        for (_, share) in transactions.prepared() {
            for (queue, messages) in &share.taken {
                taken.entry(*queue).or_default().extend(messages);
            }
        }
        let mut flow = Flow::new(config, now, router, *journal, volatile);
        flow.dedup = dedup;
        flow.transactions = transactions;
        let past = Past::new(now, wall_us, last_wall_us, effects);
        // A stream of several lanes holds nothing itself.
        let holding = |queue: &&catalog::Queue| catalog.lanes_of(queue.id) == 0;
        for declared in catalog.all_queues().filter(holding) {
            let mut state = queue_state(&catalog, declared);
            if let Some(replay) = queues.remove(&declared.id) {
                let taken = taken.remove(&declared.id).unwrap_or_default();
                let there = restore_queue(&mut state, replay, &taken, &past, effects);
                flow.transactions.keep_taken(declared.id, &there);
            }
            if state.queue.is_stream() {
                state.queue.restore_groups(groups.take(declared.id));
            }
            if damaged.contains(&state.partition) && state.durable {
                refuse_queue(&mut state, "its partition has lost records", effects);
            }
            let is_holding = state.queue.is_holding() || state.queue.has_groups_to_record();
            let goes_by_time = state.queue.may_die() || state.queue.next_due().is_some();
            flow.add_queue(state);
            if goes_by_time {
                // What expired or is due goes without anybody.
                flow.wake(declared.id);
            }
            if is_holding {
                flow.note_counts(declared.id);
            }
        }
        // Queues that were deleted: nothing of them is live.
        for replay in queues.into_values() {
            replay.for_each_live_run(|segment, count| flow.journal.drop_live(segment, count));
        }
        (flow, Topology::new(catalog), held)
    }
}

/// What the wall clock of earlier lives is to the engine's clock of this one (rulings 19).
struct Past {
    now: Mono,
    now_ms: i64,
    wall_ms: i64,
    /// The wall clock, or that of what was written last if that is later, in µs.
    latest_us: i64,
}

/// A step of the wall clock since the last life that is not believed to be time that has passed.
const CLOCK_JUMP_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

impl Past {
    fn new(now: Mono, mut wall_us: u64, last_wall_us: u64, effects: &mut Effects) -> Self {
        let mut wall_ms = wall_us / 1_000;
        let last_ms = last_wall_us / 1_000;
        if last_ms > 0 && wall_ms.saturating_sub(last_ms) > CLOCK_JUMP_MAX_MS {
            let days = (wall_ms - last_ms) / (24 * 60 * 60 * 1_000);
            let text = format!(
                "the wall clock is {days} days ahead of what was written last: that time does not \
                 count for messages that expire or are delayed"
            );
            effects.push(Effect::Report {
                severity: Severity::Warning,
                text,
            });
            (wall_ms, wall_us) = (last_ms, last_wall_us);
        }
        Self {
            now,
            now_ms: (now.0 / 1_000_000) as i64,
            wall_ms: wall_ms as i64,
            latest_us: wall_us.max(last_wall_us) as i64,
        }
    }

    /// A message that arrived then, by the wall clock; one of the future has just arrived.
    fn arrived(&self, wall_ms: i64) -> i64 {
        let age = self.wall_ms.saturating_sub(wall_ms).max(0);
        self.now_ms - age
    }

    /// A message that is due then, by the wall clock. One that was set back since the last life stands
    /// still until then: nothing waits longer than it had to when that ended.
    fn due(&self, wall_ms: i64) -> i64 {
        let now_us = self.now.0.div_ceil(1_000) as i64;
        let wall_us = wall_ms.saturating_mul(1_000);
        queue::ceil_ms(now_us.saturating_add(wall_us.saturating_sub(self.latest_us)))
    }
}

fn restore_queue(
    state: &mut QueueState,
    mut replay: queue::Replay,
    taken: &[Taken],
    past: &Past,
    effects: &mut Effects,
) -> Vec<Taken> {
    let settings = *state.queue.settings();
    let terms = replay.take_terms();
    state.queue = match replay.finish() {
        Ok(queue) => queue,
        Err(replay) => {
            let mut gaps = Ranges::default();
            replay.gaps(&mut gaps);
            let first = gaps.as_slice().first().map_or(0, |range| range.first.0);
            let missing = counted(gaps.count(), "message");
            let text = format!("{missing} missing, from {first} on");
            refuse_queue(state, &text, effects);
            replay.finish_with_gaps()
        }
    };
    state.queue.set_now(past.now);
    state.queue.set(settings);
    state.queue.restore_terms(
        &terms,
        |wall_ms| past.arrived(wall_ms),
        |wall_ms| past.due(wall_ms),
    );
    let there = match taken.is_empty() {
        true => Vec::new(),
        false => state.queue.restore_taken(taken),
    };
    state.queue.hold_restored();
    there
}

const fn content_failure(reason: String) -> Effect {
    let cause = FailCause::Content;
    Effect::FailStop { cause, reason }
}

/// Lets a queue refuse service rather than skip what is missing (rulings 10).
fn refuse_queue(state: &mut QueueState, why: &str, effects: &mut Effects) {
    state.damaged = true;
    let text = format!(
        "queue {} refuses service: {why}; `ringpost verify` names the range, \
         `ringpost repair --accept-loss` gives it up",
        state.id.0
    );
    effects.push(Effect::Report {
        severity: Severity::Error,
        text,
    });
}

/// Which core owns each partition.
#[must_use]
pub fn placement(config: &CoreConfig) -> Vec<CoreId> {
    (0..config.partitions)
        .map(|partition| CoreId(partition % config.cores))
        .collect()
}

fn journal_config(config: &CoreConfig) -> journal::Config {
    let defaults = journal::Config::new(JournalId(config.core.0), config.cluster);
    // The largest message finds room at once, wherever in its segment the journal is.
    let slots =
        u64::from(config.limits.message_bytes_max).div_ceil(u64::from(config.segment_bytes));
    let slots = u32::try_from(slots + 1).expect("a message is bounded");
    journal::Config {
        segment_bytes: config.segment_bytes,
        buffer_bytes: config.limits.buffer_bytes,
        spare_slots: defaults
            .spare_slots
            .max(slots)
            .min(config.limits.slots_max / 4),
        slots_max: config.limits.slots_max,
        writes_in_flight: config.limits.writes_in_flight,
        trickle_ms: config.limits.trickle_ms,
        buffers_free_min: config.limits.buffers_free_min,
        partitions: config.partitions,
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delayed_is_never_due_early_after_a_start() {
        for now_ns in [0, 1, 999_999, 1_000_000, 5_000_000_999] {
            for wall_us in [
                1_700_000_000_000_000,
                1_700_000_000_000_001,
                1_700_000_000_999_999,
            ] {
                let mut effects = Effects::default();
                let past = Past::new(Mono(now_ns), wall_us, wall_us - 5, &mut effects);
                for ahead_ms in [1, 2, 1_000] {
                    let wall_ms = (wall_us / 1_000) as i64 + ahead_ms;
                    let exact_ns = now_ns as i64 + (wall_ms * 1_000 - wall_us as i64) * 1_000;
                    let due_ns = past.due(wall_ms) * 1_000_000;
                    assert!(due_ns >= exact_ns, "{now_ns} {wall_us} {ahead_ms}");
                    assert!(
                        due_ns - exact_ns < 1_002_000,
                        "{now_ns} {wall_us} {ahead_ms}"
                    );
                }
            }
        }
    }
}
