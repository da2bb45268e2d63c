//! What happens per operation: topology, recovery, checkpoints. May allocate and assert lavishly.

pub mod checkpoint;
pub mod recovery;
