//! Load for a Ringpost broker and what it measured: open loop from intended send times, closed
//! loop with a window. Does not start brokers and knows nothing of their insides.
//!
//! ```text
//! Plan ── run::run ──> load threads (pinned)          Outcome ── report ──> table, JSON
//!                       engine: sockets, pacing, checks
//!                       message: bytes of one message, stamped
//! ```
//!
//! Times are those at which a message *should* have been sent; a generator that falls behind makes
//! the latency worse, never better, and the report says how late it was.
#![forbid(unsafe_code)]

pub mod client;
pub mod engine;
pub mod error;
pub mod link;
pub mod message;
pub mod plan;
pub mod report;
pub mod run;
pub mod tally;

pub use error::{Error, Result};
pub use plan::{Pace, Plan, Stop, Via};
pub use run::{Outcome, run};
