//! Where a consumer's frames go: to a connection of this core, or of another one.
//! Does not know which messages it gets.

use ringpost_wire::FrameHeader;
use ringpost_wire::ids::{CoreId, QueueId, QueueSequence};

use crate::data::flow::ReadAhead;
use crate::data::hold::Holds;
use crate::data::queue::{Ranges, Traits};
use crate::data::route::Condition;
use crate::data::stages::Entries;
use crate::ids::{ConnId, Mono, Owner};
use crate::mesh::NOTE_BYTES;

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
    /// Largest message that its connection takes, in bytes.
    pub message_bytes_max: u32,
    /// Frames not yet forwarded to the other core.
    pub outbox: Vec<u8>,
    /// Bytes forwarded and not yet answered.
    pub forwarding: u32,
    /// Number of the last forward: answers to those before it are late.
    pub forward: u64,
    /// Is on the list of sinks to forward.
    pub outgoing: bool,
    /// Its connection takes no more bytes for now.
    pub congested: bool,
    /// The large message that it is being sent; until it has all of it, it is offered nothing else.
    pub large: Option<Box<LargeDelivery>>,
    /// What it asked for with `Get`, until that is answered.
    pub get: Option<GetWait>,
    /// Since when it holds deliveries.
    pub held_since: Entries,
    /// Of a queue that bounds how long a message may be held: since when it holds which.
    pub holds: Option<Box<Holds>>,
    /// Settle frames whose confirm it waits for.
    pub unconfirmed: u32,
    /// The frame that closed it, if that is not answered yet: its queue has let go of it.
    pub closing: Option<u64>,
    /// Of a stream: which messages it gets, if not all.
    pub filter: Option<Box<Condition>>,
    /// Of a stream: what was asked for ahead of it, while messages come from disk.
    pub ahead: ReadAhead,
}

/// A large message of which a consumer has some pieces: as many as are in memory, and as its
/// connection takes.
#[derive(Debug)]
pub struct LargeDelivery {
    /// Which message.
    pub first: QueueSequence,
    /// Its delivery tag.
    pub tag: u64,
    /// Earlier deliveries of it.
    pub delivery_count: u32,
    /// Pieces sent.
    pub sent: usize,
    /// What is settled by its being sent.
    pub settled: Ranges,
}

/// What a consumer asks for when it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Most unsettled messages.
    pub credit_messages: u32,
    /// Most unsettled bytes, 0 = no limit.
    pub credit_bytes: u64,
    /// As in `ConsumerOpen`.
    pub flags: u32,
    /// What its arguments ask for.
    pub traits: Traits,
}

impl Sink {
    /// The connection that it is a consumer of.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        Owner {
            core: self.core,
            conn: self.conn,
        }
    }

    /// A consumer to which nothing was sent yet.
    #[must_use]
    pub fn new(
        queue: QueueId,
        core: CoreId,
        (conn, channel): (ConnId, u16),
        message_bytes_max: u32,
    ) -> Self {
        Self {
            queue,
            core,
            conn,
            channel,
            message_bytes_max,
            outbox: Vec::new(),
            forwarding: 0,
            forward: 0,
            outgoing: false,
            congested: false,
            large: None,
            get: None,
            held_since: Entries::default(),
            holds: None,
            unconfirmed: 0,
            closing: None,
            filter: None,
            ahead: ReadAhead::default(),
        }
    }
}

/// A frame for a consumer that the owning core has not opened yet (P-10).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EarlyFrame {
    /// Its connection.
    pub conn: ConnId,
    /// Its header.
    pub header: FrameHeader,
    /// Its body.
    pub body: Vec<u8>,
}

impl EarlyFrame {
    /// Bytes of memory that it takes.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.body.len() as u64 + NOTE_BYTES
    }
}

/// Frames of another core for a connection of this one; see [`crate::mesh::Request::Forward`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// The other core.
    pub from: CoreId,
    /// Number of its request.
    pub id: u32,
    /// The connection.
    pub conn: ConnId,
    /// Its channel.
    pub channel: u16,
    /// The consumer's key on the other core.
    pub consumer: u64,
    /// The frames.
    pub bytes: Vec<u8>,
    /// They are the last ones.
    pub ends: bool,
}

/// Messages that a consumer asked for with `Get` and waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetWait {
    /// Sequence of its frame.
    pub sequence: u64,
    /// Messages it may still get.
    pub left: u32,
    /// Messages it got.
    pub given: u32,
    /// When it stops waiting for the first message.
    pub deadline: Mono,
    /// Is on the list of those to look at when the turn ends.
    pub is_due: bool,
}
