//! What happens per operation: topology, recovery, checkpoints. May allocate and assert lavishly.

pub mod boot;
pub mod catalog;
pub mod checkpoint;
pub mod compaction;
pub mod listing;
pub mod offline;
pub mod recovery;
pub mod relocate;
pub mod restore;
pub mod routing;
pub mod state;
pub mod topology;
mod words;
