//! Load for a Ringpost broker, or for a peer to compare it with, and what it measured: open loop from
//! intended send times, closed loop with a window. Knows nothing of the insides of brokers, and ends only those that it started.
//!
//! ```text
//! Parameters ── session ──> Plan ── run::run ──> load threads (pinned)     Outcome
//!   params       beside: storm, restart          thread: pacing, times             │
//!                watch: hiccups, intervals       engine, peer: sockets, checks     │
//!                   └───────────────── Results <──────────────────────────────────┘
//!                                         ├── report: table   html: one page
//!                                         └── result: JSON, .hlog   compare: A and B
//! ```
//!
//! Times are those at which a message *should* have been sent; a generator that falls behind makes
//! the latency worse, never better, and the report says how late it was. docs/load.md says how to
//! read it.
#![forbid(unsafe_code)]

pub mod arrivals;
pub mod broker;
pub mod client;
pub mod codec;
pub mod compare;
pub mod device;
pub mod engine;
pub mod error;
pub mod hiccup;
pub mod html;
pub mod link;
pub mod live;
pub mod machine;
pub mod message;
pub mod params;
pub mod peer;
mod pipe;
pub mod plan;
mod receipts;
pub mod report;
pub mod result;
pub mod routes;
pub mod run;
pub mod session;
pub mod sizes;
mod source;
pub mod stages;
pub mod sweep;
pub mod tally;
mod thread;

pub use error::{Error, Result};
pub use plan::{Pace, Plan, Stop, Via};
pub use run::{Outcome, run};
