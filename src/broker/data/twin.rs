//! A twin of a core: given what the core was given, it must want what the core wanted. A recorder in
//! the shell notes inputs, the pool's answers and what reads brought; a digest of each turn's effects
//! stands for the rest. Shows that the shell gives the engine nothing else to decide by.
//! Does not know threads or files.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use ringpost_engine::config::CoreConfig;
use ringpost_engine::core::Core;
use ringpost_engine::effect::{Buffers, Effect, Effects};
use ringpost_engine::ids::{BufferId, ConnId, Mono, OpId};
use ringpost_engine::input::{Found, Input};

use crate::data::flight::digest;

/// An input that owns its bytes.
#[derive(Debug)]
pub enum Given {
    /// Whole frames, as [`Input::Frames`].
    Frames {
        /// The connection.
        conn: ConnId,
        /// The frames.
        bytes: Vec<u8>,
    },
    /// A read that succeeded, with what it brought.
    Read {
        /// Which.
        op: OpId,
        /// The buffer.
        buffer: BufferId,
        /// Where in it.
        start: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Anything else.
    Other(Input<'static>),
}

/// One step of a core.
#[derive(Debug)]
pub struct Step {
    /// When.
    pub now: Mono,
    /// What happened.
    pub given: Given,
    /// What the pool answered, in the order of the questions.
    pub answers: Vec<u32>,
}

/// What a core did between two times that its effects were performed.
#[derive(Debug, Default)]
pub struct Turn {
    /// Its steps.
    pub steps: Vec<Step>,
    /// [Digest](digest) of what it wanted.
    pub digest: u64,
}

/// Notes what a core is given.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Reads on their way.
    reads: BTreeMap<OpId, (BufferId, Range<u32>)>,
    turn: Turn,
}

impl Recorder {
    /// Steps a core and notes that.
    pub fn step<B: Buffers>(
        &mut self,
        core: &mut Core,
        now: Mono,
        input: Input<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let given = self.given(&input, buffers);
        let mut noted = Noted {
            buffers,
            answers: std::cell::RefCell::default(),
        };
        core.step(now, input, &mut noted, effects);
        let answers = noted.answers.into_inner();
        self.turn.steps.push(Step {
            now,
            given,
            answers,
        });
    }

    fn given(&mut self, input: &Input<'_>, buffers: &impl Buffers) -> Given {
        match input {
            Input::Frames { conn, bytes } => Given::Frames {
                conn: *conn,
                bytes: bytes.to_vec(),
            },
            Input::Io {
                op,
                buffer,
                result: Ok(()),
            } if self.reads.contains_key(op) => {
                let (_, range) = self.reads.remove(op).expect("it was just looked at");
                Given::Read {
                    op: *op,
                    buffer: *buffer,
                    start: range.start,
                    bytes: buffers.bytes(*buffer, range).to_vec(),
                }
            }
            other => Given::Other(owned(other)),
        }
    }

    /// The effects are about to be performed: what the core did since the last time. `digest` is that
    /// of the effects.
    pub fn turn(&mut self, effects: &Effects, digest: u64) -> Turn {
        for effect in &effects.list {
            if let Effect::Read {
                op, buffer, range, ..
            } = effect
            {
                self.reads.insert(*op, (*buffer, range.clone()));
            }
        }
        self.turn.digest = digest;
        std::mem::take(&mut self.turn)
    }
}

fn owned(input: &Input<'_>) -> Input<'static> {
    match input {
        Input::Opened { conn } => Input::Opened { conn: *conn },
        Input::OpenedAmqp { conn, is_local } => Input::OpenedAmqp {
            conn: *conn,
            is_local: *is_local,
        },
        Input::Adopted { conn, session } => Input::Adopted {
            conn: *conn,
            session: session.clone(),
        },
        Input::Unwanted { conn } => Input::Unwanted { conn: *conn },
        Input::Frames { .. } => unreachable!("frames are noted apart"),
        Input::Malformed { conn, code } => Input::Malformed {
            conn: *conn,
            code: *code,
        },
        Input::Closed { conn } => Input::Closed { conn: *conn },
        Input::Sent { conn, bytes } => Input::Sent {
            conn: *conn,
            bytes: *bytes,
        },
        Input::Io { op, buffer, result } => Input::Io {
            op: *op,
            buffer: *buffer,
            result: *result,
        },
        Input::File { op, result } => Input::File {
            op: *op,
            result: result.clone(),
        },
        Input::Mesh { from, message } => Input::Mesh {
            from: *from,
            message: message.clone(),
        },
        Input::Tick { wall_us } => Input::Tick { wall_us: *wall_us },
        Input::TurnEnd => Input::TurnEnd,
        Input::Shutdown => Input::Shutdown,
    }
}

/// A pool that notes its answers.
struct Noted<'a, B> {
    buffers: &'a mut B,
    answers: std::cell::RefCell<Vec<u32>>,
}

/// The answer of a pool that has no buffer.
const NONE: u32 = u32::MAX;

impl<B: Buffers> Buffers for Noted<'_, B> {
    fn buffer_bytes(&self) -> u32 {
        self.buffers.buffer_bytes()
    }

    fn available(&self) -> usize {
        let available = self.buffers.available();
        self.answers.borrow_mut().push(available as u32);
        available
    }

    fn acquire(&mut self) -> Option<BufferId> {
        let buffer = self.buffers.acquire();
        let answer = buffer.map_or(NONE, |buffer| buffer.0);
        self.answers.borrow_mut().push(answer);
        buffer
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        self.buffers.bytes(buffer, range)
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        self.buffers.open_bytes(buffer, from)
    }

    fn seal(&mut self, buffer: BufferId, upto: u32) {
        self.buffers.seal(buffer, upto);
    }
}

/// A core that repeats another.
pub struct Twin {
    core: Core,
    pool: TwinPool,
    turns: u64,
}

impl Twin {
    /// A core that starts as the other one did.
    #[must_use]
    pub fn boot(config: CoreConfig, found: Found, now: Mono, buffer_bytes: u32) -> Self {
        Self {
            core: Core::boot(config, found, now),
            pool: TwinPool {
                buffer_bytes,
                memory: BTreeMap::new(),
                answers: std::cell::RefCell::default(),
            },
            turns: 0,
        }
    }

    /// Repeats a turn.
    ///
    /// # Errors
    /// It wants something else than the other one did: which turn, and what.
    pub fn turn(&mut self, turn: Turn) -> Result<(), String> {
        let mut effects = Effects::default();
        let mut kinds = Vec::new();
        for step in turn.steps {
            kinds.push(kind_of(&step.given));
            *self.pool.answers.borrow_mut() = step.answers.into();
            let (pool, effects) = (&mut self.pool, &mut effects);
            match step.given {
                Given::Frames { conn, bytes } => {
                    let input = Input::Frames {
                        conn,
                        bytes: &bytes,
                    };
                    self.core.step(step.now, input, pool, effects);
                }
                Given::Read {
                    op,
                    buffer,
                    start,
                    bytes,
                } => {
                    pool.fill(buffer, start, &bytes);
                    let result = Ok(());
                    let input = Input::Io { op, buffer, result };
                    self.core.step(step.now, input, pool, effects);
                }
                Given::Other(input) => self.core.step(step.now, input, pool, effects),
            }
            let left = self.pool.answers.borrow().len();
            if left > 0 {
                return Err(format!(
                    "turn {}: {left} answers of the pool were not asked for in {kinds:?}",
                    self.turns
                ));
            }
        }
        self.turns += 1;
        if digest(&effects, &self.pool) == turn.digest {
            return Ok(());
        }
        Err(format!(
            "turn {}: other effects than recorded after {kinds:?}: {:?}",
            self.turns, effects.list
        ))
    }

    /// Turns repeated.
    #[must_use]
    pub const fn turns(&self) -> u64 {
        self.turns
    }
}

fn kind_of(given: &Given) -> String {
    match given {
        Given::Frames { conn, bytes } => format!("{} bytes of {}", bytes.len(), conn.0),
        Given::Read { op, bytes, .. } => format!("{} bytes read by {}", bytes.len(), op.0),
        Given::Other(input) => format!("{input:?}"),
    }
}

/// Memory for what the engine writes, and the recorded answers of another pool.
struct TwinPool {
    buffer_bytes: u32,
    memory: BTreeMap<BufferId, Vec<u8>>,
    answers: std::cell::RefCell<VecDeque<u32>>,
}

impl TwinPool {
    fn answer(&self) -> u32 {
        let answer = self.answers.borrow_mut().pop_front();
        // More was asked than the other one did: the effects will tell.
        answer.unwrap_or(NONE)
    }

    fn fill(&mut self, buffer: BufferId, start: u32, bytes: &[u8]) {
        let memory = self.memory.get_mut(&buffer).expect("it was acquired");
        memory[start as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

impl Buffers for TwinPool {
    fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    fn available(&self) -> usize {
        self.answer() as usize
    }

    fn acquire(&mut self) -> Option<BufferId> {
        let buffer = Some(self.answer()).filter(|answer| *answer != NONE);
        let buffer = BufferId(buffer?);
        let bytes = self.buffer_bytes as usize;
        self.memory.entry(buffer).or_insert_with(|| vec![0; bytes]);
        Some(buffer)
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        &self.memory[&buffer][range.start as usize..range.end as usize]
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        let memory = self.memory.get_mut(&buffer).expect("it was acquired");
        &mut memory[from as usize..]
    }

    fn seal(&mut self, _: BufferId, _: u32) {}
}
