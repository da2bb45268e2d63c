//! Where a consumer's frames go: to a connection of this core, or of another one.
//! Does not know which messages it gets.

use ringpost_wire::ids::{CoreId, QueueId};

use crate::ids::{ConnId, Mono};

/// A consumer of a queue of this core.
#[derive(Debug)]
pub struct Sink {
    /// Its queue.
    pub queue: QueueId,
    /// The core that holds its connection.
    pub core: CoreId,
    /// Its connection, on that core.
    pub conn: ConnId,
    /// Its channel there.
    pub channel: u16,
    /// Frames not yet forwarded to the other core.
    pub outbox: Vec<u8>,
    /// Bytes forwarded and not yet answered.
    pub forwarding: u32,
    /// Is on the list of sinks to forward.
    pub outgoing: bool,
    /// Its connection takes no more bytes for now.
    pub congested: bool,
}

/// A consumer that waits for messages it asked for with `Get`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetWait {
    /// The consumer.
    pub consumer: u64,
    /// Sequence of its frame.
    pub sequence: u64,
    /// Messages it may still get.
    pub left: u32,
    /// Messages it got.
    pub given: u32,
    /// When it stops waiting for the first message.
    pub deadline: Mono,
}
