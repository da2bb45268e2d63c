//! The engine of one core, and what is recorded of it where somebody asks for that. Does not know
//! what the record is for.

use std::ops::Deref;

use crate::data::twin::{Recorder, Turn};
use ringpost_engine::config::CoreConfig;
use ringpost_engine::core::Core;
use ringpost_engine::input::Found;
use ringpost_engine::{Effects, Input, Mono};

use crate::data::buffers::BufferPool;

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
    record: Option<Box<Record>>,
}

struct Record {
    core: u16,
    recorder: Recorder,
    to: flume::Sender<Recording>,
}

impl Engine {
    /// Starts a core; everything it is given goes to `record`, if there is one.
    #[must_use]
    pub fn boot(
        config: CoreConfig,
        found: Found,
        now: Mono,
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
        match &mut self.record {
            None => self.core.step(now, input, buffers, effects),
            Some(record) => {
                let core = &mut self.core;
                record.recorder.step(core, now, input, buffers, effects);
            }
        }
    }

    /// What it asked for is about to be done.
    pub fn performing(&mut self, effects: &Effects, buffers: &BufferPool) {
        if let Some(record) = &mut self.record {
            let turn = record.recorder.turn(effects, buffers);
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
