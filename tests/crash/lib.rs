//! The real broker over disks that lose power or fail, under the load of `ringpost-prove`, and its
//! history judged by `ringpost-check`. Knows the broker as a program, and its recovery of a directory as
//! one function ([`recover`]); nothing else of its insides.
//!
//! | module | what it does to the broker |
//! |---|---|
//! | `ringpost_prove::kill` | SIGKILL under load and during recovery, SIGTERM under load; needs nothing |
//! | [`images`] | power cuts at any write of a disk, made up afterwards; needs root, FUSE and loop devices |
//! | [`faults`] | a disk that fails, hangs, lies, rots or is full, and a file system that stops; needs the same |
//!
//! ```text
//! cargo run -p ringpost-crash -- kill --cycles 500 --cores 2
//! cargo run -p ringpost-crash -- images --file-system ext4 --count 200 --seed 1
//! cargo run -p ringpost-crash -- faults --file-system xfs
//! ```
//!
//! A run is planned from a seed, but processes and disks are not deterministic: a failure prints
//! what broke and where its history and the broker's log are kept, not how to see it again.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod device;
pub mod faults;
pub mod file_system;
pub mod fuse;
pub mod images;
pub mod mounts;
pub mod recover;
pub mod volume;
