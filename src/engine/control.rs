//! What happens per operation: topology, recovery, checkpoints. May allocate and assert lavishly.

pub mod boot;
pub mod catalog;
pub mod checkpoint;
pub mod recovery;
pub mod routing;
pub mod topology;
