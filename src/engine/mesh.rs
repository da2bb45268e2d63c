//! What cores say to each other: requests, each answered by exactly one reply. Does not know rings.
//!
//! A core has at most [`Limits::requests_per_peer_max`](crate::config::Limits) requests unanswered at
//! each other core, and the shell's reply lane holds as many, so a reply never waits and a request
//! lane never overflows (rulings 2). What cannot be sent yet stays with its sender, bounded by the
//! credit of the producers and consumers it belongs to.

use ringpost_wire::ids::{CoreId, ProducerId, QueueId, QueueSequence, Sequence};
use ringpost_wire::{Code, FragmentHead, SettleRange};

use crate::data::coordinator::Members;
use crate::data::dedup::Known;
use crate::data::lifetime::Leave;
use crate::data::places::MoveTo;
use crate::data::queue::{GroupFigures, Reading, Start, Traits};
use crate::data::recent::RecentFigures;
use crate::data::trace::Arrival;
use crate::data::transaction::{OutcomeOf, TransactionAsk};
use crate::ids::{ConnId, Owner};

/// A message between two cores.
#[derive(Clone, Hash, Debug)]
pub enum MeshMessage {
    /// Asks for something; answered by one [`MeshMessage::Reply`] with the same number.
    Request {
        /// Number, chosen by the asking core.
        id: u32,
        /// What is asked.
        request: Request,
    },
    /// Answers a request.
    Reply {
        /// Number of the request.
        id: u32,
        /// The answer.
        reply: Reply,
    },
}

impl MeshMessage {
    /// Messages of clients that it carries to their queues.
    #[must_use]
    pub fn published(&self) -> u64 {
        match self {
            Self::Request {
                request: Request::Publish(publish),
                ..
            } => u64::from(publish.count),
            Self::Request { .. } | Self::Reply { .. } => 0,
        }
    }

    /// Whether it travels on the reply lane.
    #[must_use]
    pub const fn is_reply(&self) -> bool {
        matches!(self, Self::Reply { .. })
    }
}

/// Messages of one producer for queues of one other core.
#[derive(Clone, Hash, Debug)]
pub struct RemotePublish {
    /// The producer.
    pub producer: ProducerId,
    /// Its epoch.
    pub epoch: u32,
    /// Sequence of the first message.
    pub first: Sequence,
    /// Messages.
    pub count: u32,
    /// Queues of the other core, each to get every message.
    pub queues: Vec<QueueId>,
    /// If the bytes are one large message: the head of its first piece.
    pub fragment: Option<FragmentHead>,
    /// Where the first message came from, and when; of a large one nobody asks.
    pub arrival: Option<Arrival>,
    /// The messages, padded, back to back; or the bodies of the large message's fragment frames.
    pub bytes: Vec<u8>,
}

impl RemotePublish {
    /// Bytes that count against what may be unanswered: a large message has memory of its own.
    #[must_use]
    pub fn parcel_bytes(&self) -> u64 {
        match self.fragment {
            None => self.bytes.len() as u64,
            Some(_) => 0,
        }
    }
}

/// What one core asks of another.
#[derive(Clone, Hash, Debug)]
pub enum Request {
    /// Take these messages; answered when they are as durable as their queues.
    Publish(Box<RemotePublish>),
    /// A producer is being opened: end its older ones, store nothing of them any more, and say what
    /// you knew of it.
    Fence {
        /// The producer.
        producer: ProducerId,
        /// Its new epoch.
        epoch: u32,
    },
    /// Open a consumer for a connection of the asking core.
    Subscribe {
        /// The connection, on the asking core.
        conn: ConnId,
        /// Its channel.
        channel: u16,
        /// The queue.
        queue: QueueId,
        /// Most unsettled messages.
        credit_messages: u32,
        /// Most unsettled bytes, 0 = no limit.
        credit_bytes: u64,
        /// As in `ConsumerOpen`.
        flags: u32,
        /// What its arguments ask for.
        traits: Traits,
        /// What they ask for that only readers of streams may.
        reading: Option<Box<Reading>>,
        /// Largest message that its connection takes, in bytes.
        message_bytes_max: u32,
    },
    /// Close a consumer; its unsettled messages return.
    Unsubscribe {
        /// Its key on the owning core.
        consumer: u64,
        /// The `ConsumerClose` that is answered behind its last delivery; 0 = its connection is gone.
        close: u64,
    },
    /// Change a consumer's credit.
    Credit {
        /// Its key on the owning core.
        consumer: u64,
        /// Most unsettled messages.
        messages: u32,
        /// Most unsettled bytes, 0 = no limit.
        bytes: u64,
    },
    /// Say what a consumer holds.
    ConsumerInspect {
        /// Its key on the owning core.
        consumer: u64,
        /// Sequence of the `ConsumerInspect` frame.
        sequence: u64,
    },
    /// Settle deliveries.
    Settle {
        /// The consumer's key on the owning core.
        consumer: u64,
        /// Flags of the `Settle` frame.
        flags: u8,
        /// Its sequence.
        sequence: u64,
        /// Its ranges.
        ranges: Vec<SettleRange>,
    },
    /// Take messages for a consumer.
    Get {
        /// Its key on the owning core.
        consumer: u64,
        /// Sequence of the `Get` frame.
        sequence: u64,
        /// How many.
        count: u32,
        /// How long to wait for the first, in ms.
        wait_ms: u32,
    },
    /// Frames for a connection of the asked core; the answer says whether it keeps up. It never waits
    /// for a socket: those who do not read would use up the requests that all others need.
    Forward {
        /// The connection, on the asked core.
        conn: ConnId,
        /// Its channel.
        channel: u16,
        /// The consumer's key on the asking core.
        consumer: u64,
        /// Whole frames.
        bytes: Vec<u8>,
        /// They are the last ones: the session forgets the channel with them.
        ends: bool,
    },
    /// A connection of the asking core, which was behind, keeps up again.
    Resume {
        /// The connection, on the asking core.
        conn: ConnId,
    },
    /// Decide a change of the topology (asked of the meta core).
    Change(Box<ChangeRequest>),
    /// Apply a change that is durable (asked by the meta core).
    Apply {
        /// The encoded change.
        change: Vec<u8>,
    },
    /// Delete a queue of the asking core that is to go by itself (asked of the meta core); answered as
    /// a `Change`.
    Retire(Leave),
    /// A queue of yours is declared again: it is not unused (asked by the meta core).
    Keep {
        /// The queue.
        queue: QueueId,
    },
    /// Delete the queues of a connection of the asking core, which is gone (asked of the meta core).
    OwnerGone {
        /// The connection.
        conn: ConnId,
    },
    /// The whole topology, at start (asked by the meta core).
    Snapshot {
        /// The encoded catalog.
        catalog: Vec<u8>,
    },
    /// Say what these queues of yours hold.
    Inspect {
        /// The queues.
        queues: Vec<QueueId>,
    },
    /// Say how many connections of a tenant you have.
    Connections {
        /// The tenant.
        tenant: ringpost_wire::ids::TenantId,
    },
    /// Something about a transaction.
    Transaction(Box<TransactionAsk>),
    /// Drop the ready messages of a queue.
    Purge {
        /// The queue.
        queue: QueueId,
    },
    /// Say whether a queue of yours, which has blocked producers, has room.
    Room {
        /// The queue.
        queue: QueueId,
    },
    /// Do something about messages of a queue; answered when that is done and durable.
    Places {
        /// The queue.
        queue: QueueId,
        /// What.
        ask: PlaceAsk,
    },
    /// Do something about the groups of a stream; answered when that is durable.
    Groups {
        /// The stream.
        queue: QueueId,
        /// What.
        ask: GroupAsk,
    },
    /// These are the members of a group in a lane of the asking core: decide who reads (asked of the
    /// core of the stream's first lane).
    Members(Box<Members>),
    /// This member of a group reads a lane of yours, and no other one.
    Lead {
        /// The lane.
        queue: QueueId,
        /// The group.
        group: Box<[u8]>,
        /// The member; nobody if it has none.
        member: Option<u64>,
    },
}

/// What is asked about messages of a queue, by their places.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PlaceAsk {
    /// Show some.
    Browse {
        /// Where to begin.
        from: QueueSequence,
        /// Most messages.
        messages_max: u32,
        /// Most bytes of each.
        message_bytes_max: u32,
        /// The sum of the states that are shown.
        states: u32,
        /// What must hold of each.
        filter: Option<Box<[u8]>>,
    },
    /// Take delayed ones back, in ascending order.
    Cancel(Vec<u64>),
    /// Move ready ones elsewhere.
    Move {
        /// Where.
        to: MoveTo,
        /// Which, in ascending order.
        places: Vec<u64>,
    },
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PlaceAnswer {
    /// These are the messages.
    Browsed {
        /// Where to go on; 0 = there is nothing more.
        next: u64,
        /// The newest place.
        newest: u64,
        /// How many are shown.
        count: u32,
        /// They, as they travel.
        messages: Vec<u8>,
    },
    /// How many are done, late, busy and refused.
    Outcome([u32; 4]),
}

/// What is asked about the groups of a stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum GroupAsk {
    /// What they are.
    List,
    /// Set one to another offset.
    Reset {
        /// Its name.
        name: Box<[u8]>,
        /// The offset.
        start: Start,
    },
    /// Forget one.
    Delete {
        /// Its name.
        name: Box<[u8]>,
    },
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum GroupAnswer {
    /// These are the groups, by name.
    List(Vec<GroupFigures>),
    /// It is done; whether anything has changed.
    Done(bool),
}

/// Bytes of memory that a request which waits takes beside what it carries: its place in lists, and
/// what is noted of who asked.
pub const NOTE_BYTES: u64 = 256;

impl Request {
    /// Bytes of memory that it carries, if it is a client's: those that only clients bound are
    /// counted. Publishes are counted as credit, and what follows from deliveries or changes with them.
    #[must_use]
    pub fn asked_bytes(&self) -> Option<u64> {
        match self {
            Self::Settle { ranges, .. } => Some(size_of_val(ranges.as_slice()) as u64),
            Self::Change(request) => Some(request.body.len() as u64),
            // What was gathered is counted there.
            Self::Transaction(_) => None,
            Self::Fence { .. }
            | Self::Subscribe { .. }
            | Self::Unsubscribe { .. }
            | Self::Credit { .. }
            | Self::ConsumerInspect { .. }
            | Self::Get { .. }
            | Self::Inspect { .. }
            | Self::Connections { .. }
            | Self::Purge { .. } => Some(0),
            Self::Places { ask, .. } => Some(match ask {
                PlaceAsk::Browse { filter, .. } => filter.as_ref().map_or(0, |text| text.len()),
                PlaceAsk::Cancel(places) | PlaceAsk::Move { places, .. } => {
                    size_of_val(places.as_slice())
                }
            } as u64),
            // Names and starts are as small as the notes that are counted anyway.
            Self::Groups { .. } => Some(0),
            // Of a lane one at a time, and what follows from it.
            Self::Members(_) | Self::Lead { .. } => None,
            Self::Publish(_)
            | Self::Forward { .. }
            | Self::Resume { .. }
            | Self::Room { .. }
            | Self::Retire(_)
            | Self::Keep { .. }
            | Self::OwnerGone { .. }
            | Self::Apply { .. }
            | Self::Snapshot { .. } => None,
        }
    }
}

/// A topology request on its way to the meta core.
#[derive(Clone, Hash, Debug)]
pub struct ChangeRequest {
    /// Tenant of the connection that asks.
    pub tenant: ringpost_wire::ids::TenantId,
    /// That connection.
    pub owner: Owner,
    /// Kind of the frame.
    pub kind: ringpost_wire::FrameKind,
    /// Body of the frame.
    pub body: Vec<u8>,
    /// Consumers and messages of the queue that a conditional delete names.
    pub usage: (u32, u64),
}

/// What a queue holds now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct QueueFigures {
    /// The queue.
    pub queue: QueueId,
    /// Messages ready for delivery.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacked: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Until the first of those is due, in ms, rounded up; 0 if none waits.
    pub due_ms: u64,
    /// Messages on their way to the dead-letter exchange.
    pub dead: u64,
    /// Padded bytes of all of them.
    pub bytes: u64,
    /// Messages ever put in.
    pub published: u64,
    /// Messages acked or rejected.
    pub settled: u64,
    /// Consumers.
    pub consumers: u32,
    /// Refuses service because of a damaged range.
    pub damaged: bool,
    /// It is a stream.
    pub is_stream: bool,
    /// What it did lately.
    pub recent: RecentFigures,
}

/// A queue to which much has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BusyQueue {
    /// Name of its tenant; empty is the default one.
    pub tenant: Box<[u8]>,
    /// Its name.
    pub name: Box<[u8]>,
    /// Most messages, 0 = no limit.
    pub messages_max: u64,
    /// Most padded bytes, 0 = no limit.
    pub bytes_max: u64,
    /// What it holds, and what it did lately.
    pub figures: QueueFigures,
}

/// Answers.
#[derive(Clone, Hash, Debug)]
pub enum Reply {
    /// To `Publish`: how it ended, and the bytes back for reuse.
    Published {
        /// Whether a queue refused messages, and why; all others are as durable as their queues.
        outcome: Result<(), Code>,
        /// If it did: how many at the start of them every queue took.
        taken: u32,
        /// One of the queues, if that is full and blocks who publishes into it.
        full: Option<QueueId>,
        /// The vector that came with the request, emptied unless it is a large message.
        bytes: Vec<u8>,
    },
    /// To `Fence`.
    Fenced(Known),
    /// To `Subscribe`: the consumer's key on the owning core, or why there is none.
    Subscribed(Result<u64, (Code, &'static str)>),
    /// To `Forward`; the vector comes back for reuse.
    Forwarded {
        /// There is room for more; else [`Request::Resume`] says when.
        room: bool,
        /// The vector that came with the request, emptied.
        bytes: Vec<u8>,
    },
    /// To `Change` and `Retire`: what it did.
    Changed(Result<Changed, (Code, String)>),
    /// To `Apply`: messages dropped by it.
    Applied {
        /// Messages dropped.
        messages: u64,
    },
    /// To `Inspect`.
    Figures(Vec<QueueFigures>),
    /// To `Connections`.
    Connections(u32),
    /// To `Keep`: how often the queue was to go so far. None of that holds.
    Kept {
        /// So often.
        attempts: u32,
    },
    /// To a `Transaction` that is to be done or kept: whether it is, durably.
    Transaction(Result<(), Code>),
    /// To a `Transaction` of which the outcome is asked.
    TransactionOutcome(OutcomeOf),
    /// To `Purge`: messages dropped.
    Purged(Result<u64, Code>),
    /// To `Room`: whether there is some.
    Room(bool),
    /// To `Places`.
    Places(Result<PlaceAnswer, (Code, &'static str)>),
    /// To `Groups`.
    Groups(Result<GroupAnswer, (Code, &'static str)>),
    /// Done, nothing to say.
    Done,
}

/// What a topology change did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Changed {
    /// Something was created or removed.
    pub changed: bool,
    /// Messages dropped.
    pub messages: u64,
}

/// One other core, as seen from this one: who waits for which answer, and what waits to be asked.
#[derive(Debug)]
pub struct Peer<W> {
    /// The other core.
    pub core: CoreId,
    /// Bytes of publishes, large messages apart, that it was sent and has not answered.
    publish_bytes: u64,
    /// Publishes that it was sent, or will be, and has not answered.
    publishes: u32,
    /// Who waits for each answer, and the bytes that clients asked with.
    waiting: Vec<Option<(W, u64)>>,
    free: Vec<u32>,
    outbox: std::collections::VecDeque<(Request, W)>,
    /// Bytes of unanswered requests of clients, and of the notes of those that were not sent.
    asked_bytes: u64,
}

impl<W> Peer<W> {
    /// A peer at which at most `requests_max` requests are unanswered.
    #[must_use]
    pub fn new(core: CoreId, requests_max: u32) -> Self {
        Self {
            core,
            publish_bytes: 0,
            publishes: 0,
            waiting: (0..requests_max).map(|_| None).collect(),
            free: (0..requests_max).rev().collect(),
            outbox: std::collections::VecDeque::new(),
            asked_bytes: 0,
        }
    }

    /// Bytes that requests of clients take until they are answered.
    #[must_use]
    pub const fn asked_bytes(&self) -> u64 {
        self.asked_bytes
    }

    /// Asks now if there is room, else keeps the request; `waiter` is given back with the answer.
    pub fn ask(&mut self, effects: &mut crate::Effects, request: Request, waiter: W) {
        self.asked_bytes += request.asked_bytes().map_or(0, |bytes| bytes + NOTE_BYTES);
        if let Request::Publish(publish) = &request {
            self.publishes += 1;
            self.publish_bytes += publish.parcel_bytes();
        }
        self.outbox.push_back((request, waiter));
        self.flush(effects);
    }

    /// A publish was answered, which had so many [`RemotePublish::parcel_bytes`].
    pub fn publish_answered(&mut self, bytes: u64) {
        self.publishes -= 1;
        self.publish_bytes -= bytes;
    }

    /// Whether one more publish of so many bytes may be sent: it finds room among those that may be
    /// unanswered, `bytes_max`, and leaves places for others. On a full disk publishes wait for acks,
    /// so they must not hold the places that acks need.
    #[must_use]
    pub fn takes_publish(&self, bytes: u64, bytes_max: u64) -> bool {
        let most = self.waiting.len() as u32 / 2;
        let has_place =
            self.publishes == 0 || self.publishes < most || crate::mutant!(PublishesHoldTheLane);
        has_place && (self.publish_bytes == 0 || self.publish_bytes + bytes <= bytes_max)
    }

    /// Whether nothing is unanswered, nor waits to be asked.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.waiting.len() && self.outbox.is_empty()
    }

    /// Sends what there is room for.
    pub fn flush(&mut self, effects: &mut crate::Effects) {
        while !self.outbox.is_empty() {
            let Some(id) = self.free.pop() else { return };
            let (request, waiter) = self.outbox.pop_front().expect("it is not empty");
            // On its way it takes one of few places, which are there anyway.
            let bytes = request.asked_bytes();
            self.asked_bytes -= bytes.map_or(0, |_| NOTE_BYTES);
            self.waiting[id as usize] = Some((waiter, bytes.unwrap_or(0)));
            let message = MeshMessage::Request { id, request };
            effects.push(crate::Effect::Mesh {
                to: self.core,
                message,
            });
        }
    }

    /// Who waits for the answer `id`; makes room for another request.
    ///
    /// # Panics
    /// If nobody asked: the other core is ours, so that is a bug.
    pub fn answered(&mut self, effects: &mut crate::Effects, id: u32) -> W {
        let (waiter, bytes) = self.waiting[id as usize]
            .take()
            .expect("a reply answers a request");
        self.asked_bytes -= bytes;
        self.free.push(id);
        self.flush(effects);
        waiter
    }

    /// Requests that were asked and are not answered.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        let asked = self.waiting.len() - self.free.len();
        u32::try_from(asked).expect("as many as the limit, which is one")
    }

    /// Requests that wait for room.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.outbox.len()
    }
}
