//! One connection's protocol state. Does not know sockets.

/// What a core knows of a connection that it hands over.
#[derive(Debug)]
pub struct Handover {}
