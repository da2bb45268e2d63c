//! The real broker, started, loaded, killed and started again, and its history judged by
//! `ringpost-check`. Does not know the broker's insides: only its command line, its log and the
//! wire.
//!
//! | module | what it does to the broker |
//! |---|---|
//! | [`kill`] | SIGKILL under load and during recovery, SIGTERM under load; needs nothing |
//!
//! ```text
//! ringpost-crash kill --broker target/release/ringpost --cycles 500 --cores 2
//! ```
//!
//! A run is planned from a seed, but processes and disks are not deterministic: a failure prints
//! what broke and where its history and the broker's log are kept, not how to see it again.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod broker;
pub mod consumer;
pub mod drain;
pub mod history;
pub mod kill;
pub mod link;
pub mod producer;
pub mod random;
pub mod scene;
pub mod worker;

/// What a run of this crate ends with if it cannot go on or something is wrong: a text for people.
pub type Outcome<T> = Result<T, String>;
