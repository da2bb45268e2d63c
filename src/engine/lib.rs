//! START READING HERE: what one core of a Ringpost broker decides. Values in, values out.
//!
//! A [`Core`](core::Core) owns the partitions of one core: their queues, the journal they share,
//! the sessions of the connections that live here. It is driven by one function,
//!
//! ```text
//! step(now, Input, &mut Buffers, &mut Effects)
//! ```
//!
//! and knows no file, socket, clock, thread or random number: bytes and completions arrive as
//! [`Input`], everything it wants done leaves as [`Effect`]. The same inputs give the same effects,
//! always; the simulator and the broker run this very code.
//!
//! The contract, on one page:
//!
//! - **Memory.** The shell owns fixed-size buffers and lends them through [`Buffers`]; the engine
//!   holds ids. A buffer mirrors a contiguous window of a journal segment: sealed blocks, then an
//!   open tail that alone is lent mutably. The engine gives a buffer back with
//!   [`Effect::Release`]; memory is reused when no write, read or send holds it any more.
//! - **Copies.** A published message is copied once, from the received bytes into the open block,
//!   inside `step`. It is delivered from that block.
//! - **Turns.** The shell gathers a bounded set of inputs, steps each, then steps
//!   [`Input::TurnEnd`]: only there are blocks sealed, confirms written and queues dispatched, so
//!   everything is batched by what arrived together and nothing ever lingers.
//! - **Durability.** [`Effect::Write`] completes when the bytes are synced (O_DSYNC). A publish is
//!   confirmed and a message delivered only after the durable *prefix* of the journal covers it. Any
//!   error is final: [`Effect::FailStop`], and nothing durable is confirmed or delivered again.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod config;
pub mod control;
pub mod core;
pub mod data;
pub mod effect;
pub mod ids;
pub mod input;
pub mod mesh;
pub mod mutant;
pub mod options;

pub use effect::{Buffers, Effect, Effects, FailCause, FileOp};
pub use ids::{BufferId, ConnId, JournalId, Mono, OpId, Place, SegmentIdx, SlotId};
pub use input::{FileReply, Input, IoFault, SlotHead};
