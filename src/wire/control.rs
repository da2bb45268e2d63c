//! Control bodies: a fixed structure of little-endian integers, then byte parts back to back.
//! Does not know which request is allowed when.
//!
//! Each fixed structure is an rkyv archive of unaligned integers; the length of every byte part is
//! one of its last integers, in order, so a foreign client packs one C struct and appends bytes.

use rend::unaligned::{u16_ule, u32_ule, u64_ule};
use rkyv::Portable;
use rkyv::bytecheck::CheckBytes;

use crate::limits::{
    FILTER_BYTES_MAX, FRAME_BYTES_MAX, HEADERS_BYTES_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX,
    NAMED_MESSAGES_MAX, PATTERN_BYTES_MAX, REASON_BYTES_MAX, TRANSACTION_RANGES_BYTES_MAX,
};
use crate::table::Table;
use crate::{Code, FrameHeader, FrameKind, frame, header};

/// A body that can be written after a header and read from a frame.
pub trait Body<'a>: Sized {
    /// Appends the body's bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads the body; every byte must be accounted for and every limit kept (P-6).
    ///
    /// # Errors
    /// [`Code::BodyMalformed`].
    fn decode(body: &'a [u8]) -> Result<Self, Code>;

    /// Appends one frame with this body.
    fn write(&self, out: &mut Vec<u8>, header: FrameHeader) {
        let mut body = Vec::with_capacity(256);
        self.encode(&mut body);
        frame::write(out, header, &body);
    }
}

macro_rules! le {
    (u8) => {
        u8
    };
    (u16) => {
        u16_ule
    };
    (u32) => {
        u32_ule
    };
    (u64) => {
        u64_ule
    };
}

macro_rules! native {
    ($field:expr, u8) => {
        $field
    };
    ($field:expr, $int:ident) => {
        $field.to_native()
    };
}

/// Whether a field must be zero in this version (P-6).
const fn is_reserved(field: &str) -> bool {
    matches!(field.as_bytes(), b"reserved")
}

macro_rules! bodies {
    ($(
        $(#[$doc:meta])*
        $name:ident $(<$life:lifetime>)? $archived:ident {
            $( $(#[$fdoc:meta])* $field:ident: $int:ident, )*
            ;
            $( $(#[$pdoc:meta])* $part:ident ($plen:ident) max $max:expr, )*
        }
    )*) => { $(
        #[derive(Clone, Copy, Debug, Portable, CheckBytes)]
        #[bytecheck(crate = rkyv::bytecheck)]
        #[repr(C)]
        struct $archived {
            $( $field: le!($int), )*
            $( $plen: u32_ule, )*
        }

        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name $(<$life>)? {
            $( $(#[$fdoc])* pub $field: $int, )*
            $( $(#[$pdoc])* pub $part: &'a [u8], )*
        }

        impl $(<$life>)? $name $(<$life>)? {
            /// Bytes of the fixed structure.
            pub const FIXED_BYTES: usize = core::mem::size_of::<$archived>();
            /// The fixed structure's fields: name and bytes, in order.
            pub const FIELDS: &'static [(&'static str, usize)] = &[
                $( (stringify!($field), core::mem::size_of::<$int>()), )*
                $( (stringify!($plen), 4), )*
            ];
        }

        impl<'a> Body<'a> for $name $(<$life>)? {
            fn encode(&self, out: &mut Vec<u8>) {
                $( out.extend_from_slice(&self.$field.to_le_bytes()); )*
                $( out.extend_from_slice(&(self.$part.len() as u32).to_le_bytes()); )*
                $( out.extend_from_slice(self.$part); )*
            }

            #[allow(unused_mut, unused_variables, unused_assignments)]
            fn decode(body: &'a [u8]) -> Result<Self, Code> {
                let (head, tail) =
                    body.split_at_checked(Self::FIXED_BYTES).ok_or(Code::BodyMalformed)?;
                let fixed =
                    rkyv::api::low::access_pos::<$archived, rkyv::rancor::Failure>(head, 0)
                        .map_err(|_| Code::BodyMalformed)?;
                let mut rest = tail;
                $(
                    let length = fixed.$plen.to_native() as usize;
                    if length > $max {
                        return Err(Code::BodyMalformed);
                    }
                    let ($part, after) =
                        rest.split_at_checked(length).ok_or(Code::BodyMalformed)?;
                    rest = after;
                )*
                if !rest.is_empty() {
                    return Err(Code::BodyMalformed);
                }
                $(
                    if is_reserved(stringify!($field)) && native!(fixed.$field, $int) != 0 {
                        return Err(Code::BodyMalformed);
                    }
                )*
                Ok(Self {
                    $( $field: native!(fixed.$field, $int), )*
                    $( $part, )*
                })
            }
        }
    )* };
}

bodies! {
    /// The first frame of a client (P-7).
    Hello<'a> HelloArchived {
        /// [`crate::version::MAGIC`].
        magic: u32,
        /// Oldest version the client speaks.
        version_min: u16,
        /// Newest version the client speaks.
        version_max: u16,
        /// Heartbeat interval the client asks for, in ms; 0 = the broker's default.
        heartbeat_ms: u32,
        /// Largest message the client wants to receive, in bytes; 0 = the broker's limit.
        message_bytes_max: u32,
        ;
        /// Tenant, empty for the default one.
        tenant (tenant_bytes) max NAME_BYTES_MAX,
        /// What the client calls itself: program and version, for operators to read.
        client (client_bytes) max NAME_BYTES_MAX,
    }

    /// The broker's answer: what holds on this connection (P-7).
    Welcome<'a> WelcomeArchived {
        /// [`crate::version::MAGIC`].
        magic: u32,
        /// The version spoken from here on.
        version: u16,
        /// Core that holds the connection.
        core: u16,
        /// Cores of the broker.
        cores: u16,
        /// Most channels of the connection.
        channels_max: u16,
        /// Heartbeat interval, in ms (P-12).
        heartbeat_ms: u32,
        /// Largest frame in bytes.
        frame_bytes_max: u32,
        /// Largest message in bytes.
        message_bytes_max: u32,
        /// Largest credit of a consumer, in messages.
        credit_messages_max: u32,
        /// Number of this connection in the broker's logs.
        connection: u64,
        ;
        /// What the broker calls itself: program and version.
        server (server_bytes) max NAME_BYTES_MAX,
    }

    /// Moves the connection to the core that owns a queue; only while it has no channel (P-13).
    Attach<'a> AttachArchived {
        ;
        /// The queue.
        queue (queue_bytes) max NAME_BYTES_MAX,
    }

    /// Why something failed, was refused or ended.
    Failure<'a> FailureArchived {
        /// A [`Code`].
        code: u16,
        /// Zero.
        reserved: u16,
        ;
        /// UTF-8 text for people: what, with which values, and what to do.
        reason (reason_bytes) max REASON_BYTES_MAX,
    }

    /// Opens a producer (P-30).
    ProducerOpen ProducerOpenArchived {
        /// Chosen at random by the client and kept for the producer's life.
        producer: u64,
        /// Raised by the client whenever it opens the producer again; an older epoch is fenced.
        epoch: u32,
        /// Confirm level: a [`Level`].
        level: u8,
        /// Bit 0: a `durable` confirm may fall back to `volatile` where a target is volatile.
        flags: u8,
        /// Zero.
        reserved: u16,
        ;
    }

    /// The producer is open.
    ProducerOpened ProducerOpenedArchived {
        /// One above the highest sequence that the broker knows of this producer, 1 for a new one:
        /// where a producer without unconfirmed publishes goes on (P-32).
        sequence: u64,
        /// Cumulative credit as in [`ProducerCredit`].
        messages: u64,
        /// Cumulative credit as in [`ProducerCredit`].
        bytes: u64,
        ;
    }

    /// Cumulative credit of a producer since it was opened (P-33): it may have published at most
    /// `messages` messages and `bytes` padded message bytes in all. Never goes down.
    ProducerCredit ProducerCreditArchived {
        /// Messages in all.
        messages: u64,
        /// Padded bytes of messages in all.
        bytes: u64,
        ;
    }

    /// Opens a consumer (P-40).
    ConsumerOpen<'a> ConsumerOpenArchived {
        /// Most unsettled bytes (padded messages) pushed; 0 = no limit of bytes.
        credit_bytes: u64,
        /// Most unsettled messages pushed; 0 = nothing is pushed, messages are taken with `Get`.
        credit_messages: u32,
        /// Bit 0: deliveries are settled by being sent (no acks). Bit 1: exclusive.
        flags: u32,
        ;
        /// The queue.
        queue (queue_bytes) max NAME_BYTES_MAX,
        /// Further settings as an AMQP 0-9-1 field table, or empty (P-50).
        arguments (arguments_bytes) max HEADERS_BYTES_MAX,
    }

    /// What a consumer holds (P-53).
    ConsumerInfo ConsumerInfoArchived {
        /// Messages outstanding.
        messages: u64,
        /// Their padded bytes.
        bytes: u64,
        /// How long it has held the oldest of them, in ms; 0 if it holds none.
        oldest_ms: u64,
        ;
    }

    /// Where a consumer that reads a stream goes on (P-83).
    ConsumerPosition ConsumerPositionArchived {
        /// The next message that it may be given, by its place in the queue.
        offset: u64,
        /// Messages before that one which it would have been given and that are there no more.
        missed: u64,
        ;
    }

    /// Changes a consumer's credit (P-41); what is outstanding counts against it.
    ConsumerCredit ConsumerCreditArchived {
        /// Most unsettled bytes pushed; 0 = no limit of bytes.
        bytes: u64,
        /// Most unsettled messages pushed; 0 = nothing more is pushed.
        messages: u32,
        /// Zero.
        reserved: u32,
        ;
    }

    /// Takes messages (P-43).
    Get GetArchived {
        /// How long to wait for the first message, in ms; 0 = answer at once.
        wait_ms: u32,
        /// Zero.
        reserved: u32,
        ;
    }

    /// Declares a queue (P-61).
    QueueDeclare<'a> QueueDeclareArchived {
        /// Most ready and unsettled messages, 0 = no limit.
        messages_max: u64,
        /// Most padded bytes of ready and unsettled messages, 0 = no limit.
        bytes_max: u64,
        /// A [`Durability`].
        durability: u8,
        /// Bit 0: passive: must exist, nothing is created or compared.
        flags: u8,
        /// Partition, or 65535 for the one that tenant and name hash to.
        partition: u16,
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
        /// Further settings as an AMQP 0-9-1 field table, or empty.
        arguments (arguments_bytes) max HEADERS_BYTES_MAX,
    }

    /// Deletes a queue or an exchange (P-62).
    Delete<'a> DeleteArchived {
        /// Bit 0: only if unused (no consumers, no bindings). Bit 1: only if empty.
        flags: u32,
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
    }

    /// A body that only names something.
    Named<'a> NamedArchived {
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
    }

    /// What a queue is and holds.
    QueueInfo<'a> QueueInfoArchived {
        /// Messages ready for delivery.
        ready: u64,
        /// Messages delivered and not settled.
        unacked: u64,
        /// Padded bytes of all messages that are here.
        bytes: u64,
        /// Messages ever put into the queue.
        published: u64,
        /// Messages acked or rejected.
        settled: u64,
        /// Most messages, 0 = no limit.
        messages_max: u64,
        /// Most bytes, 0 = no limit.
        bytes_max: u64,
        /// Messages that wait for their time: delayed, or to be tried again.
        delayed: u64,
        /// Time until the first of them is due, in milliseconds, rounded up; 0 if none waits.
        due_ms: u64,
        /// Messages on their way to the dead-letter exchange.
        dead: u64,
        /// Span of which the next seven fields are, up to now: 10,000 to 20,000 ms, less for a queue that
        /// is younger; 0 if nothing happened yet (P-115).
        recent_ms: u64,
        /// Messages that became deliverable in that span.
        recent_arrived: u64,
        /// Messages that were done with in it.
        recent_left: u64,
        /// Messages delivered for the first time in it of which is known since when they were ready.
        recent_taken: u64,
        /// Mean time for which those had been ready, in µs.
        wait_mean_us: u64,
        /// Median of it, an eighth off at most.
        wait_p50_us: u64,
        /// 99th percentile of it, an eighth off at most.
        wait_p99_us: u64,
        /// The longest of it.
        wait_max_us: u64,
        /// Number of the queue.
        id: u32,
        /// Consumers.
        consumers: u32,
        /// Core that owns the queue.
        core: u16,
        /// Partition of the queue.
        partition: u16,
        /// A [`Durability`].
        durability: u8,
        /// Bit 0: refuses service because of a damaged range. Bit 1: it is a stream.
        flags: u8,
        /// Lanes of a stream of several, whose figures are the sums of theirs; 0 of any other queue.
        lanes: u16,
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
    }

    /// What a group of a stream is (P-85).
    GroupInfo<'a> GroupInfoArchived {
        /// Everything below is settled.
        offset: u64,
        /// Messages from there on that are retained.
        lag: u64,
        /// Consumers, those that stand by included.
        members: u32,
        /// Zero.
        reserved: u32,
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
    }

    /// Sets a group of a stream to another offset (P-86); one that is not there is made.
    GroupReset<'a> GroupResetArchived {
        ;
        /// The stream.
        queue (queue_bytes) max NAME_BYTES_MAX,
        /// The group.
        group (group_bytes) max NAME_BYTES_MAX,
        /// `x-stream-offset` as for a consumer, in an AMQP 0-9-1 field table (P-82).
        arguments (arguments_bytes) max HEADERS_BYTES_MAX,
    }

    /// Forgets a group of a stream (P-86).
    GroupDelete<'a> GroupDeleteArchived {
        ;
        /// The stream.
        queue (queue_bytes) max NAME_BYTES_MAX,
        /// The group.
        group (group_bytes) max NAME_BYTES_MAX,
    }

    /// Opens a channel for transactions.
    TransactionOpen TransactionOpenArchived {
        /// How long a transaction may be open, in ms; 0 = 60,000.
        timeout_ms: u32,
        /// Zero.
        reserved: u32,
        ;
    }

    /// What a transaction of the channel may be.
    TransactionOpened TransactionOpenedArchived {
        /// Most messages that one may publish, and most that it may acknowledge.
        messages_max: u32,
        /// Most padded bytes that one may publish to the queues of one core.
        bytes_max: u32,
        /// How long one may be open, in ms.
        timeout_ms: u32,
        /// Zero.
        reserved: u32,
        ;
    }

    /// Acknowledges deliveries of a consumer of the same connection with a transaction.
    TransactionSettle<'a> TransactionSettleArchived {
        /// Channel of the consumer.
        consumer: u16,
        /// Zero.
        reserved: u16,
        ;
        /// [`crate::SettleRange`] each.
        ranges (ranges_bytes) max TRANSACTION_RANGES_BYTES_MAX,
    }

    /// Shows messages of a queue where they are (P-111).
    QueueBrowse<'a> QueueBrowseArchived {
        /// Place in the queue of the first message that is looked at.
        from: u64,
        /// Most messages to show, at most [`crate::limits::BROWSE_MESSAGES_MAX`]; 0 = that many.
        messages_max: u32,
        /// Most bytes of each to show, at most [`crate::limits::BROWSE_MESSAGE_BYTES_MAX`], 0 = that many;
        /// what comes before the payload is shown in any case.
        message_bytes_max: u32,
        /// Bits of [`crate::BrowsedState`]: what is shown; 0 = everything.
        states: u32,
        /// Zero.
        reserved: u32,
        ;
        /// The queue.
        queue (queue_bytes) max NAME_BYTES_MAX,
        /// Shows only messages of which this holds, as for a filter binding; empty = all.
        filter (filter_bytes) max FILTER_BYTES_MAX,
    }

    /// Messages of a queue (P-111).
    QueueBrowsed<'a> QueueBrowsedArchived {
        /// Place in the queue where to go on; 0 = there is nothing more.
        next: u64,
        /// Place of the newest message that there ever was; 0 = there was none.
        newest: u64,
        ;
        /// Each a [`crate::BrowsedHead`] and its bytes, padded to 16.
        messages (messages_bytes) max FRAME_BYTES_MAX,
    }

    /// Takes delayed messages back (P-113).
    QueueCancel<'a> QueueCancelArchived {
        ;
        /// The queue.
        queue (queue_bytes) max NAME_BYTES_MAX,
        /// Their places in the queue, ascending, 8 bytes each.
        places (places_bytes) max NAMED_MESSAGES_MAX * 8,
    }

    /// Moves messages to where an exchange routes them (P-112).
    QueueMove<'a> QueueMoveArchived {
        /// Bit 0: `routing_key` counts, else each message's own.
        flags: u32,
        ;
        /// The queue.
        queue (queue_bytes) max NAME_BYTES_MAX,
        /// The exchange; empty for the default one.
        exchange (exchange_bytes) max NAME_BYTES_MAX,
        /// The routing key.
        routing_key (routing_key_bytes) max KEY_BYTES_MAX,
        /// Their places in the queue, ascending, 8 bytes each.
        places (places_bytes) max NAMED_MESSAGES_MAX * 8,
    }

    /// What became of messages that were named (P-112, P-113).
    QueueOutcome QueueOutcomeArchived {
        /// Messages that are cancelled or moved.
        done: u32,
        /// Messages that are not there any more, or not as they must be: too late.
        late: u32,
        /// Messages that a consumer holds or that wait for the disk: they may be named again.
        busy: u32,
        /// Messages that no queue took; they are where they were.
        refused: u32,
        ;
    }

    /// What a queue was declared to be, and what it is (P-80).
    QueueDescription<'a> QueueDescriptionArchived {
        /// Most messages, 0 = no limit, as it was declared.
        messages_max: u64,
        /// Most bytes, 0 = no limit, as it was declared.
        bytes_max: u64,
        /// Number of the queue.
        id: u32,
        /// Partition of the queue.
        partition: u16,
        /// A [`Durability`].
        durability: u8,
        /// Zero.
        reserved: u8,
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
        /// Further settings as it was declared with them, a field table.
        arguments (arguments_bytes) max HEADERS_BYTES_MAX,
        /// The settings that are in force, a field table: each a table of its `value` and, if a policy
        /// says so, the `policy`.
        options (options_bytes) max HEADERS_BYTES_MAX,
    }

    /// Sets a policy (P-79); also what is said of one in a list.
    PolicySet<'a> PolicySetArchived {
        /// Of several that have an option the one of the highest priority counts: a number in two's
        /// complement, −1,000 to 1,000.
        priority: u32,
        /// 1 = it is about queues, 2 = about exchanges, 3 = about both.
        applies: u8,
        /// Zero.
        flags: u8,
        /// Zero.
        reserved: u16,
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
        /// A regular expression, found anywhere in a name unless it says otherwise.
        pattern (pattern_bytes) max PATTERN_BYTES_MAX,
        /// What it sets, as an AMQP 0-9-1 field table.
        options (options_bytes) max HEADERS_BYTES_MAX,
    }

    /// Declares an exchange (P-63); also what is said of one in a list.
    ExchangeDeclare<'a> ExchangeDeclareArchived {
        /// An [`ExchangeKind`].
        kind: u8,
        /// A [`Durability`].
        durability: u8,
        /// Bit 0: passive: must exist, nothing is created or compared.
        flags: u8,
        /// Zero.
        reserved: u8,
        ;
        /// Name.
        name (name_bytes) max NAME_BYTES_MAX,
        /// Further settings as an AMQP 0-9-1 field table, or empty.
        arguments (arguments_bytes) max HEADERS_BYTES_MAX,
    }

    /// Binds or unbinds a queue (P-64) or an exchange (P-72); also what is said of a binding in a list.
    Bind<'a> BindArchived {
        /// Bit 0: `target` is an exchange.
        flags: u32,
        ;
        /// Exchange.
        exchange (exchange_bytes) max NAME_BYTES_MAX,
        /// Queue, or exchange, that gets what `exchange` routes to it.
        target (target_bytes) max NAME_BYTES_MAX,
        /// Binding key.
        key (key_bytes) max KEY_BYTES_MAX,
        /// AMQP 0-9-1 field table (for `headers` exchanges, with `x-match`), or empty.
        arguments (arguments_bytes) max HEADERS_BYTES_MAX,
    }
}

/// `ProducerOpen::flags`: a durable confirm may fall back to volatile where a target is volatile.
pub const PRODUCER_DOWNGRADE: u8 = 1;
/// `ConsumerOpen::flags`: deliveries are settled by being sent.
pub const CONSUMER_NO_ACK: u32 = 1;
/// `ConsumerOpen::flags`: no other consumer beside this one.
pub const CONSUMER_EXCLUSIVE: u32 = 2;
/// `QueueDeclare::flags`, `ExchangeDeclare::flags`: must exist; nothing is created or compared.
pub const DECLARE_PASSIVE: u8 = 1;
/// `QueueDeclare::partition`: the one that tenant and name hash to.
pub const PARTITION_BY_NAME: u16 = u16::MAX;
/// `Delete::flags`: only if nothing uses it.
pub const DELETE_IF_UNUSED: u32 = 1;
/// `Delete::flags`: only if it holds no message.
pub const DELETE_IF_EMPTY: u32 = 2;
/// `Bind::flags`: `target` is an exchange.
pub const BIND_TO_EXCHANGE: u32 = 1;
/// `QueueInfo::flags`: refuses service because of a damaged range.
pub const QUEUE_DAMAGED: u8 = 1;
/// `QueueMove::flags`: its routing key counts, else each message's own.
pub const MOVE_WITH_KEY: u32 = 1;
/// `QueueInfo::flags`: it is a stream.
pub const QUEUE_STREAM: u8 = 2;

impl QueueDeclare<'_> {
    /// Whether it asks for a queue that belongs to its connection (P-77).
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        let arguments = Table::parse(self.arguments).unwrap_or_default();
        arguments
            .get(b"x-exclusive")
            .and_then(|value| value.as_bool())
            == Some(true)
    }
}

/// How far a publish must get before it is confirmed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// No confirm is sent.
    None = 0,
    /// In the memory of every core whose queues it was routed to.
    Volatile = 1,
    /// Synced in the journal of every queue it was routed to.
    Durable = 2,
}

impl Level {
    /// The level of a number that travelled.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Volatile),
            2 => Some(Self::Durable),
            _ => None,
        }
    }
}

/// Whether a queue or exchange outlives the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Durability {
    /// Gone after a restart, never journaled.
    Volatile = 0,
    /// Journaled.
    Durable = 1,
}

impl Durability {
    /// The durability of a number that travelled.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Volatile),
            1 => Some(Self::Durable),
            _ => None,
        }
    }
}

/// How an exchange routes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ExchangeKind {
    /// To queues bound with a key equal to the routing key.
    Direct = 1,
    /// To every bound queue.
    Fanout = 2,
    /// By pattern: words between dots, `*` one word, `#` any number of words.
    Topic = 3,
    /// By headers: all or any of the binding's arguments.
    Headers = 4,
    /// To one of the bound queues, always the same for the same routing key, header or property.
    ConsistentHash = 5,
    /// To one of the bound queues, by lot.
    Random = 6,
    /// By conditions on headers, properties and fields of JSON bodies.
    Filter = 7,
}

impl ExchangeKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::Fanout,
        Self::Topic,
        Self::Headers,
        Self::ConsistentHash,
        Self::Random,
        Self::Filter,
    ];

    /// The kind of a number that travelled.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Direct),
            2 => Some(Self::Fanout),
            3 => Some(Self::Topic),
            4 => Some(Self::Headers),
            5 => Some(Self::ConsistentHash),
            6 => Some(Self::Random),
            7 => Some(Self::Filter),
            _ => None,
        }
    }

    /// The word used in texts and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
            Self::ConsistentHash => "consistent-hash",
            Self::Random => "random",
            Self::Filter => "filter",
        }
    }
}

/// Appends a `Failed`, `Refused`, `Close`, `ProducerClosed` or `ConsumerClosed` frame.
pub fn write_failure(out: &mut Vec<u8>, header: FrameHeader, code: Code, reason: &str) {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let failure = Failure {
        code: code as u16,
        reserved: 0,
        reason: &reason.as_bytes()[..end],
    };
    failure.write(out, header);
}

/// Appends a `Done` frame for the request `sequence`.
pub fn write_done(out: &mut Vec<u8>, sequence: u64, changed: bool, count: u32) {
    let header = FrameHeader {
        flags: if changed { header::DONE_CHANGED } else { 0 },
        count,
        ..FrameHeader::bare(FrameKind::Done, 0, sequence)
    };
    frame::write(out, header, &[]);
}

/// Whether `name` may name a tenant, exchange or queue (P-60): 1 to 255 bytes of UTF-8 without
/// control characters, not starting with `amq.`.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with(b"amq.")
        && core::str::from_utf8(name).is_ok_and(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_and_every_cut_is_seen() {
        let bind = Bind {
            flags: 0,
            exchange: b"shop",
            target: b"orders",
            key: b"order.*",
            arguments: b"",
        };
        let mut body = Vec::new();
        bind.encode(&mut body);
        assert_eq!(Bind::decode(&body), Ok(bind));
        for len in 0..body.len() {
            assert_eq!(
                Bind::decode(&body[..len]),
                Err(Code::BodyMalformed),
                "cut at {len}"
            );
        }
        body.push(0);
        assert_eq!(Bind::decode(&body), Err(Code::BodyMalformed));
    }

    #[test]
    fn names() {
        assert!(is_name(b"orders.eu-1"));
        assert!(is_name("größe".as_bytes()));
        for bad in [&b""[..], b"amq.topic", b"a\nb", b"\xff"] {
            assert!(!is_name(bad));
        }
        assert!(is_name(&[b'a'; 255]));
        assert!(!is_name(&[b'a'; 256]));
    }
}
