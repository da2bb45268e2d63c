//! The one place that names the engine's core: how the simulator starts it and steps it.
//! Does not know worlds.

use ringpost_engine::{Buffers, Effects, Input, Mono, SlotHead};

use crate::plan::Plan;

/// What is found in a core's journal directory at a start.
pub struct Found {
    /// The first bytes of every slot.
    pub slots: Vec<SlotHead>,
    /// The checkpoints that could be read.
    pub checkpoints: Vec<Vec<u8>>,
}

/// A core.
pub struct Engine;

impl Engine {
    /// Starts a core.
    pub fn boot(
        _plan: &Plan,
        _core: usize,
        _found: Found,
        _now: Mono,
        _effects: &mut Effects,
    ) -> Self {
        Self
    }

    /// Bytes of a buffer and how many of them a core of this world has.
    #[must_use]
    pub fn memory(_plan: &Plan) -> (u32, usize) {
        (1 << 18, 16)
    }

    /// Something happened.
    pub fn step<B: Buffers>(
        &mut self,
        _now: Mono,
        _input: Input<'_>,
        _buffers: &mut B,
        _effects: &mut Effects,
    ) {
    }

    /// When it wants to be told the time.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        None
    }
}
