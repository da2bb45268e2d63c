//! What happens per operation: topology, recovery, checkpoints. May allocate and assert lavishly.

pub mod checkpoint;
pub mod compaction;
pub mod recovery;
