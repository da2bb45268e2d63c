//! What a core tells of itself when it is asked: counters, histograms, its phase. Does not know
//! who reads it, nor in which format.
//!
//! Nothing here is shared: a core answers [`AdminRequest::Snapshot`] between two turns by moving a
//! copy of its counters into the channel that came with the request. The hot path only adds to
//! plain integers of its own.

use hdrhistogram::Histogram;
use ringpost_engine::data::trace::{NotFollowed, TraceId, Traced};
use ringpost_engine::mesh::BusyQueue;
use ringpost_wire::Code;

use crate::stages::StageTimes;

/// Requests to one core that may wait for it; when there are as many, the core counts as not
/// answering.
pub const ADMIN_REQUESTS_MAX: usize = 4;

/// What can be asked of a core from outside the cores.
#[derive(Debug)]
pub enum AdminRequest {
    /// Send a snapshot; the channel has room for it, so that the core never waits.
    Snapshot {
        /// Where to.
        reply: flume::Sender<CoreSnapshot>,
        /// What beside the counters.
        asked: Asked,
    },
    /// Follow the next message of a queue.
    Follow(Box<FollowRequest>),
    /// Serve nobody any more, write everything down, and end.
    Shutdown,
}

/// What a snapshot has beside counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Nothing.
    Counters,
    /// The histograms of its stages: copying them takes a core some 50 µs.
    Stages,
    /// Its busiest queues, at most [`BUSIEST_MAX`]: finding them takes some 20 ns for each queue.
    Queues,
}

/// Queues that a core tells of.
pub const BUSIEST_MAX: usize = 32;

/// Asks a core to follow a message. The core waits for nobody: an event that finds no room ends the
/// trace, as does whoever stops listening.
#[derive(Debug)]
pub struct FollowRequest {
    /// Name of the tenant; empty is the default one.
    pub tenant: Vec<u8>,
    /// Name of the queue.
    pub queue: Vec<u8>,
    /// Only a message with this routing key.
    pub routing_key: Option<Vec<u8>>,
    /// How long, in ms.
    pub lasts_ms: u64,
    /// Told once whether it does; has room for that.
    pub reply: flume::Sender<Result<TraceId, NotFollowed>>,
    /// Told what happens.
    pub events: flume::Sender<Traced>,
}

/// What a core is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// Reads its journal; serves nobody yet.
    Recovering {
        /// Bytes read.
        done_bytes: u64,
    },
    /// Serves.
    #[default]
    Serving,
    /// Goes down: takes nothing new.
    Draining,
    /// Its journal has failed: volatile queues are served, durable ones are not.
    FailStopped {
        /// Why, for people.
        reason: String,
    },
}

impl Phase {
    /// The word used in JSON.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Phase::Recovering { .. } => "recovering",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
            Phase::FailStopped { .. } => "fail_stopped",
        }
    }

    /// Why a core in this phase is not ready, for people; `None` if it is.
    #[must_use]
    pub fn hindrance(&self) -> Option<String> {
        match self {
            Phase::Serving => None,
            Phase::Recovering { done_bytes } => {
                Some(format!("reading its journal, {done_bytes} bytes so far"))
            }
            Phase::Draining => Some("shutting down".into()),
            Phase::FailStopped { reason } => Some(format!(
                "the journal has failed ({reason}): find out why, then restart the broker"
            )),
        }
    }
}

/// Sums since the start of the process; each only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections_opened: u64,
    /// Connections handed to other cores.
    pub handovers: u64,
    /// Messages published by clients of this core.
    pub publishes: u64,
    /// Their bytes.
    pub publish_bytes: u64,
    /// Publishes taken by all their queues, and synced if those are durable.
    pub confirms: u64,
    /// Mandatory publishes returned since no queue took them.
    pub returns: u64,
    /// Messages delivered.
    pub deliveries: u64,
    /// Their bytes.
    pub delivery_bytes: u64,
    /// Of the deliveries, those that may have been seen before.
    pub redeliveries: u64,
    /// Deliveries acked.
    pub acks: u64,
    /// Deliveries returned to their queue.
    pub requeues: u64,
    /// Messages that died, by reason as in [`ringpost_engine::data::queue::Death::ALL`].
    pub deaths: [u64; 4],
    /// Messages that died and that their dead-letter exchange has dealt with.
    pub dead_letters: u64,
    /// Of those, the ones that it routed to no queue.
    pub dead_letters_unroutable: u64,
    /// Transactions that connections of this core have committed.
    pub transactions_committed: u64,
    /// Transactions of which nothing has happened, or nobody knows.
    pub transactions_rolled_back: u64,
    /// Messages that a queue shares with others instead of having a copy.
    pub shared: u64,
    /// Turns of the core's loop.
    pub turns: u64,
}

/// What a core's journal has done and has left.
#[derive(Clone, Debug)]
pub struct JournalSnapshot {
    /// Bytes written, padding included.
    pub write_bytes: u64,
    /// How long each write took until it was durable, in ns: stage `device`.
    pub write_ns: Histogram<u64>,
    /// Segments that hold messages.
    pub segments_live: u32,
    /// Segments written in full and ready for use.
    pub segments_free: u32,
}

/// Longest latency that the histograms tell apart from longer ones: a minute, in ns.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

impl Default for JournalSnapshot {
    fn default() -> Self {
        JournalSnapshot {
            write_bytes: 0,
            write_ns: latency_histogram(),
            segments_live: 0,
            segments_free: 0,
        }
    }
}

/// An empty histogram of latencies in ns, three digits, one minute at most. Record with
/// [`Histogram::saturating_record`].
#[must_use]
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_NS_MAX, 3)
        .expect("the bounds are in order and fit three digits")
}

/// How full the lanes to another core are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingSnapshot {
    /// The other core.
    pub peer: u16,
    /// Requests posted whose reply has not come back.
    pub occupied: u32,
    /// Most of them.
    pub capacity: u32,
}

/// What the queues of a core hold together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueuesSnapshot {
    /// Queues.
    pub queues: u64,
    /// Messages ready for delivery.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacked: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages on their way to dead-letter exchanges.
    pub dead: u64,
    /// Padded bytes of all of them.
    pub bytes: u64,
    /// Consumers.
    pub consumers: u64,
    /// Queues that refuse service because of a damaged range.
    pub damaged: u64,
}

/// Everything a core tells of itself.
#[derive(Clone, Debug, Default)]
pub struct CoreSnapshot {
    /// What it is doing.
    pub phase: Phase,
    /// Connections that live on it now.
    pub connections: u32,
    /// Sums.
    pub counters: Counters,
    /// Refusals of any kind by code; every code at most once, those without refusals may be left out.
    pub refusals: Vec<(Code, u64)>,
    /// The journal.
    pub journal: JournalSnapshot,
    /// How long messages spent in each stage, if that was asked for.
    pub stages: Option<Box<StageTimes>>,
    /// Buffers of the journal and block cache that nobody holds.
    pub buffers_free: u32,
    /// Buffers of the journal and block cache.
    pub buffers_total: u32,
    /// Lanes to the other cores.
    pub rings: Vec<RingSnapshot>,
    /// The queues it owns.
    pub queues: QueuesSnapshot,
    /// Shares of transactions that wait for the decision of another core.
    pub transactions_prepared: u64,
    /// The busiest of them, if that was asked for.
    pub busiest: Vec<BusyQueue>,
}
