//! What happens per operation: topology, recovery, checkpoints. May allocate and assert lavishly.

pub mod catalog;
pub mod routing;
