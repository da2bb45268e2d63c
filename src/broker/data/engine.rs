//! The engine of one core, and the one place that sees all that it is given and all that it wants: for
//! the flight recorder, and for whoever asks for a full record. Does not know what records are for.

use std::ops::Deref;

use ringpost_engine::config::CoreConfig;
use ringpost_engine::core::Core;
use ringpost_engine::data::trace::{NotFollowed, TraceId, Wanted};
use ringpost_engine::input::Found;
use ringpost_engine::{Effects, Input, Mono};

use crate::data::buffers::BufferPool;
use crate::data::flight::{self, FlightRecorder};
use crate::data::twin::{Recorder, Turn};

/// What a recorded core did, with its number.
pub type Recording = (u16, Recorded);

/// One part of a record.
#[derive(Debug)]
pub enum Recorded {
    /// The core has started.
    Started {
        /// With these settings.
        config: Box<CoreConfig>,
        /// On these files.
        found: Found,
        /// When.
        now: Mono,
        /// Bytes of each of its buffers.
        buffer_bytes: u32,
    },
    /// It was given something, and its effects are about to be performed.
    Turn(Turn),
}

/// See the module.
pub struct Engine {
    core: Core,
    flight: Option<FlightRecorder>,
    record: Option<Box<Record>>,
}

struct Record {
    core: u16,
    recorder: Recorder,
    to: flume::Sender<Recording>,
}

impl Engine {
    /// Starts a core; the last of what it is given is kept by `flight`, if there is one, and all of it
    /// goes to `record`, if there is one.
    #[must_use]
    pub fn boot(
        config: CoreConfig,
        found: Found,
        now: Mono,
        flight: Option<FlightRecorder>,
        record: Option<flume::Sender<Recording>>,
    ) -> Self {
        let record = record.map(|to| {
            let core = config.core.0;
            let started = Recorded::Started {
                config: Box::new(config.clone()),
                found: found.clone(),
                now,
                buffer_bytes: config.limits.buffer_bytes,
            };
            // Whoever asked for the record may have lost interest.
            let _ = to.send((core, started));
            Box::new(Record {
                core,
                recorder: Recorder::default(),
                to,
            })
        });
        Self {
            core: Core::boot(config, found, now),
            flight,
            record,
        }
    }

    /// Gives it an input.
    pub fn step(
        &mut self,
        now: Mono,
        input: Input<'_>,
        buffers: &mut BufferPool,
        effects: &mut Effects,
    ) {
        if let Some(flight) = &self.flight {
            flight.given(now, &input);
        }
        match &mut self.record {
            None => self.core.step(now, input, buffers, effects),
            Some(record) => {
                let core = &mut self.core;
                record.recorder.step(core, now, input, buffers, effects);
            }
        }
    }

    /// Follows a message, as [`Core::follow`]. That is no input: nothing that the core decides depends on
    /// it, so no record needs it.
    ///
    /// # Errors
    /// Why nothing is followed.
    pub fn follow(&mut self, wanted: Wanted) -> Result<TraceId, NotFollowed> {
        self.core.follow(wanted)
    }

    /// Nobody wants to hear of a trace any more.
    pub fn unfollow(&mut self, trace: TraceId) {
        self.core.unfollow(trace);
    }

    /// What it asked for is about to be done.
    pub fn performing(&mut self, effects: &Effects, buffers: &BufferPool) {
        if self.flight.is_none() && self.record.is_none() {
            return;
        }
        let digest = flight::digest(effects, buffers);
        if let Some(flight) = &self.flight {
            flight.performing(effects, digest);
        }
        if let Some(record) = &mut self.record {
            let turn = record.recorder.turn(effects, digest);
            // As above.
            let _ = record.to.send((record.core, Recorded::Turn(turn)));
        }
    }
}

impl Deref for Engine {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}
