//! What cores say to each other. Does not know rings.

/// A message between two cores.
#[derive(Debug)]
pub enum MeshMessage {}
