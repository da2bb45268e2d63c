//! The real broker, started, loaded, killed and started again, and its history judged by
//! `ringpost-check`. Does not know the broker's insides: only its command line, its log and the
//! wire.
//!
//! | module | what it does to the broker |
//! |---|---|
//! | [`kill`] | SIGKILL under load and during recovery, SIGTERM under load; needs nothing |
//! | [`images`] | power cuts at any write of a disk, made up afterwards; needs root, FUSE and loop devices |
//! | [`faults`] | a disk that fails, hangs, lies or is full, and a file system that stops; needs the same |
//!
//! ```text
//! cargo run -p ringpost-crash -- kill --cycles 500 --cores 2
//! cargo run -p ringpost-crash -- images --file-system ext4 --count 50 --seed 1
//! cargo run -p ringpost-crash -- faults --file-system xfs
//! ```
//!
//! A run is planned from a seed, but processes and disks are not deterministic: a failure prints
//! what broke and where its history and the broker's log are kept, not how to see it again.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod broker;
pub mod consumer;
pub mod device;
pub mod drain;
pub mod faults;
pub mod file_system;
pub mod fuse;
pub mod history;
pub mod images;
pub mod kill;
pub mod link;
pub mod offline;
pub mod producer;
pub mod random;
pub mod scene;
pub mod tool;
pub mod volume;
pub mod worker;

/// What a run of this crate ends with if it cannot go on or something is wrong: a text for people.
pub type Outcome<T> = Result<T, String>;
