//! What can happen in a history. Does not know how it is written down or judged.

use core::fmt;

/// A producer's id and the number of a publish within it, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MessageId {
    /// The producer, any number.
    pub producer: u64,
    /// Number of the publish within the producer, without large gaps.
    pub sequence: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.producer, self.sequence)
    }
}

/// A queue as the harness numbers it: small, and a new number whenever a queue is created anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueNo(pub u32);

/// A consumer as the harness numbers it: small, and never used again once it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConsumerNo(pub u32);

/// How far a publish was asked to get, or was said to have got.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Nothing is answered and nothing promised.
    None = 0,
    /// In memory: gone with a crash.
    Volatile = 1,
    /// Synced in the journal of every target.
    Durable = 2,
}

/// Whether a queue outlives the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Its messages are gone after a crash.
    Volatile,
    /// Its messages are journaled, and delivered only after that.
    Durable,
}

/// A queue that a publish should reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// It must be there.
    Must(QueueNo),
    /// It may be there: bindings were changing, or the publish was repeated.
    May(QueueNo),
}

impl Target {
    /// The queue, certain or not.
    #[must_use]
    pub const fn queue(self) -> QueueNo {
        match self {
            Self::Must(queue) | Self::May(queue) => queue,
        }
    }
}

/// Why a publish was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No queue takes it.
    Unroutable,
    /// Anything else.
    Other,
}

/// Who says that a delivered message is done with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckMode {
    /// The consumer, with acks.
    Acks,
    /// The sending of it.
    OnSend,
}

/// One message as a consumer received it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Who received it.
    pub consumer: ConsumerNo,
    /// The queue it came from.
    pub queue: QueueNo,
    /// Its place in the queue as the broker stated it; 0 if the protocol states none.
    pub place: u64,
    /// What it is, read from its payload.
    pub message: MessageId,
    /// Hash of what was received.
    pub hash: u64,
    /// The broker's redelivered flag.
    pub redelivered: bool,
    /// Earlier deliveries, as the broker stated them.
    pub count: u32,
}

/// Something that a client did or saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A queue exists from here on.
    Queue {
        /// Its number.
        queue: QueueNo,
        /// Whether it outlives the process.
        durability: Durability,
    },
    /// The queue was purged or deleted, or something else took messages from it legally: those sent
    /// before this event may be gone.
    Dropped {
        /// The queue.
        queue: QueueNo,
    },
    /// A message that died in a queue was seen where that sends its dead.
    Died {
        /// The queue.
        queue: QueueNo,
        /// The message; one that was never routed there says nothing.
        message: MessageId,
    },
    /// A client published, or published again what it has no answer for. Said again while the
    /// answer is out, it narrows what must and widens what may be reached.
    Sent {
        /// What.
        message: MessageId,
        /// Hash of what was sent.
        hash: u64,
        /// The confirm level asked for.
        level: Level,
        /// Where it should go.
        targets: &'a [Target],
    },
    /// Publishes `first..=last` of a producer that had no answer yet are confirmed.
    Confirmed {
        /// The producer.
        producer: u64,
        /// First sequence.
        first: u64,
        /// Last sequence.
        last: u64,
        /// The level reached.
        level: Level,
    },
    /// A publish was refused: it must never be seen.
    Refused {
        /// Which.
        message: MessageId,
        /// Why.
        why: Refusal,
    },
    /// A publish has no answer and will get none: it may or may not be seen.
    Unknown {
        /// Which.
        message: MessageId,
    },
    /// A consumer was opened.
    Consumer {
        /// Its number.
        consumer: ConsumerNo,
        /// Its queue.
        queue: QueueNo,
        /// Who settles.
        mode: AckMode,
    },
    /// A message arrived.
    Delivered(Delivery),
    /// A consumer said that it is done with a message: ack or reject.
    Acked {
        /// The queue.
        queue: QueueNo,
        /// The message.
        message: MessageId,
    },
    /// The broker said that such an ack is durable.
    AckConfirmed {
        /// The queue.
        queue: QueueNo,
        /// The message.
        message: MessageId,
    },
    /// A consumer gave a message back.
    Returned {
        /// The queue.
        queue: QueueNo,
        /// The message.
        message: MessageId,
    },
    /// A message comes next that its queue need not deliver in its order: its delay or its rank has
    /// set it apart.
    Apart {
        /// The queue.
        queue: QueueNo,
    },
    /// A consumer was closed in good order; its unsettled messages return. Deliveries that cross
    /// the close must not be recorded.
    ConsumerClosed {
        /// Which.
        consumer: ConsumerNo,
    },
    /// A consumer's connection was lost, also while its close was under way: what it had sent last
    /// may or may not have arrived.
    ConsumerLost {
        /// Which.
        consumer: ConsumerNo,
    },
    /// The broker stopped without warning. Every consumer is lost.
    Crash,
    /// Nothing is under way: every return was processed before what is recorded from here on.
    Calm,
    /// Every queue was drained: what has not been seen by now is not there.
    End,
}
