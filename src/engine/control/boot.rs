//! From what a core's directory holds to a core that runs: recovery, the catalog, the queues.
//! Does not decide what on disk is true (`recovery.rs`), and serves nobody yet.

use std::collections::VecDeque;

use ringpost_wire::control::Durability;
use ringpost_wire::ids::{CoreId, PartitionId};

use crate::control::catalog::{self, Catalog};
use crate::control::topology::Topology;
use crate::core::{CoreConfig, Found, META};
use crate::data::flow::{Flow, QueueState};
use crate::data::journal::volatile::Volatile;
use crate::data::journal::{self, Journal};
use crate::data::queue::{Queue, Ranges, Settings};
use crate::data::route::Router;
use crate::effect::{Buffers, Severity};
use crate::ids::{ConnId, JournalId, Mono};
use crate::input::Input;
use crate::mesh::{MeshMessage, Reply, Request};
use crate::{Effect, Effects};

/// A core on its way to running.
pub struct Boot {
    config: CoreConfig,
    journal: Journal,
    /// Known at once on the meta core; told by it on the others.
    catalog: Option<Catalog>,
    failed: bool,
    /// What other cores said before this one runs.
    held: VecDeque<(CoreId, MeshMessage)>,
    now: Mono,
}

impl Boot {
    /// Starts with what was found.
    pub fn start(config: CoreConfig, _found: Found, now: Mono, _effects: &mut Effects) -> Self {
        let journal = Journal::fresh(journal_config(&config));
        let catalog = (config.core == META).then(|| Catalog::new(config.partitions));
        Self {
            config,
            journal,
            catalog,
            failed: false,
            held: VecDeque::new(),
            now,
        }
    }

    /// Whether it cannot be recovered.
    #[must_use]
    pub const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether the core can run.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.catalog.is_some() && self.journal.is_ready()
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
            Input::Opened { conn } | Input::Adopted { conn, .. } => turn_away(conn, effects),
            Input::Io { op, result, .. } => {
                self.journal.io_done(op, result, buffers, effects);
            }
            Input::File { op, result } => {
                self.journal.file_done(op, result, now, effects);
            }
            Input::Mesh { from, message } => self.mesh(from, message, effects),
            Input::TurnEnd => {
                self.journal.set_wall(wall_us);
                self.journal.turn_end(now, buffers, effects);
            }
            Input::Frames { .. }
            | Input::Malformed { .. }
            | Input::Closed { .. }
            | Input::Sent { .. }
            | Input::Tick { .. } => {}
            Input::Shutdown => self.failed = true,
        }
        self.failed |= self.journal.has_failed();
        if self.failed {
            let text = "this core could not start; see the report before this one".to_owned();
            effects.push(Effect::Report {
                severity: Severity::Error,
                text,
            });
        }
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
    pub fn finish(self) -> (Flow, Topology, VecDeque<(CoreId, MeshMessage)>) {
        let catalog = self.catalog.expect("the core is ready");
        let placement = placement(&self.config);
        let router = Router::of(&catalog, &placement);
        let volatile = Volatile::new(self.config.limits.volatile_buffers as usize);
        let mut flow = Flow::new(self.config, self.now, router, self.journal, volatile);
        for queue in catalog.all_queues() {
            flow.add_queue(queue_state(queue));
        }
        (flow, Topology::new(catalog), self.held)
    }
}

fn turn_away(conn: ConnId, effects: &mut Effects) {
    effects.push(Effect::Close { conn });
}

/// Which core owns each partition.
#[must_use]
pub fn placement(config: &CoreConfig) -> Vec<CoreId> {
    (0..config.partitions)
        .map(|partition| CoreId(partition % config.cores))
        .collect()
}

fn journal_config(config: &CoreConfig) -> journal::Config {
    journal::Config {
        segment_bytes: config.segment_bytes,
        slots_max: config.limits.slots_max,
        buffers_free_min: config.limits.buffers_free_min,
        partitions: config.partitions,
        ..journal::Config::new(JournalId(config.core.0), config.cluster)
    }
}

/// An empty queue as it was declared.
#[must_use]
pub fn queue_state(queue: &catalog::Queue) -> QueueState {
    let settings = Settings {
        durability: queue.durability,
        messages_max: queue.messages_max,
        bytes_max: queue.bytes_max,
    };
    QueueState {
        id: queue.id,
        tenant: queue.tenant,
        partition: PartitionId(queue.partition.0),
        durable: queue.durability == Durability::Durable,
        damaged: false,
        queue: Queue::new(settings),
        waits_for: 0,
        appended: VecDeque::new(),
        pieces: Default::default(),
        awake: false,
        settled: Ranges::default(),
        settling: false,
        counting: false,
    }
}
