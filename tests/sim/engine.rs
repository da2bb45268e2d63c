//! The one place that names the engine's core: how the simulator starts it, and how small it makes
//! it. Does not know worlds.

use ringpost_engine::config::{CoreConfig, Limits};
use ringpost_engine::core::Core;
use ringpost_engine::input::Found;
use ringpost_engine::{Buffers, ConnId, Effects, Input, Mono, SlotHead};
use ringpost_wire::ids::CoreId;

use crate::plan::{Fault, Leaning, Plan};
use crate::random::Random;

/// Bytes of a buffer: a piece of a large message must fit, where there are any. The smaller they are,
/// the more segments a world fills, frees and fills again.
fn buffer_bytes(plan: &Plan) -> u32 {
    match (
        plan.faults.has(Fault::LargeMessages),
        plan.faults.has(Fault::TinySegments),
    ) {
        (true, _) => 256 << 10,
        (false, true) => 16 << 10,
        (false, false) => 32 << 10,
    }
}

/// Buffers of a core.
fn buffers(plan: &Plan) -> usize {
    match (
        plan.faults.has(Fault::LargeMessages),
        plan.faults.has(Fault::TinyMemory),
    ) {
        (true, true) => 16,
        (false, true) => 16,
        (_, false) => 96,
    }
}

/// A core.
pub struct Engine(Core);

/// The bounds that a plan gives its cores; the same at every start of a world.
fn limits(plan: &Plan) -> Limits {
    let mut random = Random::new(plan.seed, 5);
    let mut shares = Random::new(plan.seed, 6);
    let has = |fault| plan.faults.has(fault);
    let tiny = has(Fault::TinyMemory);
    Limits {
        buffer_bytes: buffer_bytes(plan),
        hold_bytes_max: if tiny {
            1 << 20
        } else {
            shares.within(1 << 20..=8 << 20)
        },
        parcel_bytes_max: if tiny { 1 } else { 256 << 10 },
        window_bytes_max: if has(Fault::TinyCredit) {
            shares.within(256 << 10..=512 << 10)
        } else {
            4 << 20
        },
        unsent_bytes_max: random.scale(4 << 10..=1 << 20) as u32,
        unsent_bytes_total: if tiny { 256 << 10 } else { 16 << 20 },
        forward_bytes_max: random.scale(4 << 10..=512 << 10) as u32,
        requests_per_peer_max: requests_per_peer_max(plan),
        volatile_buffers: if tiny { 4 } else { 16 },
        buffers_free_min: if tiny { 6 } else { 8 },
        slots_max: match (random.scale(8..=64) as u32, plan.leaning) {
            (slots, Leaning::Returns) => slots.min(9),
            (slots, _) => slots,
        },
        request_bytes_max: if tiny { 2 << 10 } else { 1 << 20 },
        assembly_bytes_max: if tiny { 1 } else { 4 << 20 },
        beginning_bytes_max: if tiny { 1 << 20 } else { 8 << 20 },
        transaction_bytes_max: if tiny { 8 << 10 } else { 8 << 20 },
        acks_apart_max: if random.coin() { 0 } else { 32 },
        ..Limits::default()
    }
}

/// Bytes of a segment, at least four buffers.
fn segment_bytes(plan: &Plan) -> u32 {
    if plan.faults.has(Fault::TinySegments) {
        4 * buffer_bytes(plan)
    } else {
        16 * buffer_bytes(plan)
    }
}

/// Bytes of all slots that a core may have.
#[must_use]
pub fn journal_bytes_max(plan: &Plan) -> u64 {
    u64::from(limits(plan).slots_max) * u64::from(segment_bytes(plan))
}

/// Requests that a lane between two cores holds.
#[must_use]
pub fn requests_per_peer_max(plan: &Plan) -> u32 {
    if plan.faults.has(Fault::SlowMesh) {
        2
    } else {
        256
    }
}

impl Engine {
    /// Starts a core with what its directory holds.
    #[must_use]
    pub fn boot(
        plan: &Plan,
        core: usize,
        slots: Vec<SlotHead>,
        checkpoints: Vec<Vec<u8>>,
        now: Mono,
    ) -> Self {
        let config = CoreConfig {
            core: CoreId(core as u16),
            cores: plan.cores,
            partitions: plan.partitions,
            cluster: 0x5EED,
            segment_bytes: segment_bytes(plan),
            server: "sim".into(),
            limits: limits(plan),
        };
        Self(Core::boot(config, Found { slots, checkpoints }, now))
    }

    /// Bytes of a buffer and how many of them a core of this world has.
    #[must_use]
    pub fn memory(plan: &Plan) -> (u32, usize) {
        (buffer_bytes(plan), buffers(plan))
    }

    /// Something happened.
    pub fn step<B: Buffers>(
        &mut self,
        now: Mono,
        input: Input<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        self.0.step(now, input, buffers, effects);
    }

    /// When it wants a turn although nothing happens.
    #[must_use]
    pub fn next_deadline(&self, now: Mono) -> Option<Mono> {
        self.0.next_deadline(now)
    }

    /// Whether it takes what a connection sends now.
    #[must_use]
    pub fn is_read(&self, conn: ConnId) -> bool {
        self.0.is_read(conn)
    }

    /// Whether connections may be given to it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.is_running()
    }

    /// The flow of messages, once the core runs: for figures.
    #[must_use]
    pub const fn flow(&self) -> Option<&ringpost_engine::data::flow::Flow> {
        self.0.flow()
    }

    /// Whether something comes back to its queue later.
    #[must_use]
    pub fn is_returning(&self) -> bool {
        self.0.is_returning()
    }

    /// Whether a full queue holds producers back.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        self.0.is_blocking()
    }

    /// Whether a shutdown is complete.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.0.is_drained()
    }

    /// Whether its journal has failed, or could not be recovered.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.has_failed()
    }
}
