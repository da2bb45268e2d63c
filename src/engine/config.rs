//! What a core is told when it starts: who it is, and its bounds.
//! Does not know where the numbers come from.

use ringpost_wire::ids::CoreId;
use ringpost_wire::{HEARTBEAT_MS_DEFAULT, MESSAGE_BYTES_MAX_DEFAULT};

/// The core that decides topology.
pub const META: CoreId = CoreId(0);

/// Bounds of one core. Sizes come from the broker's memory budget.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Heartbeat interval offered to clients, in ms.
    pub heartbeat_ms: u32,
    /// Time a connection has to say `Hello`, in ms.
    pub handshake_ms: u64,
    /// Largest message, in bytes.
    pub message_bytes_max: u32,
    /// Most producers.
    pub producers_max: u32,
    /// Most consumers.
    pub consumers_max: u32,
    /// Bytes of publishes that may wait for room, with what is noted of them. While half of it is in
    /// use, or three quarters with pieces of large messages, connections with producers are not read:
    /// the rest is for what comes all the same, at least what one socket is read at a time.
    pub hold_bytes_max: u64,
    /// Credit that every producer gets whose publishes are stored, in bytes: a whole frame (P-33).
    pub window_bytes_min: u64,
    /// Largest credit window of a producer, in bytes.
    pub window_bytes_max: u64,
    /// Bytes a socket may be behind before its consumers pause.
    pub unsent_bytes_max: u32,
    /// Bytes that all sockets of a core may be behind before nobody is offered anything.
    pub unsent_bytes_total: u64,
    /// Bytes of publishes that may be on their way to each other core; one frame always may.
    pub parcel_bytes_max: u32,
    /// Bytes of deliveries that may be on their way to another core, per consumer.
    pub forward_bytes_max: u32,
    /// Requests unanswered at each other core; the shell's lanes must hold as many.
    pub requests_per_peer_max: u32,
    /// Buffers that volatile queues may use.
    pub volatile_buffers: u32,
    /// Free buffers that the block cache leaves for appends and reads.
    pub buffers_free_min: u32,
    /// Bytes of a buffer, and of the largest block: a whole frame unless messages are known to be
    /// smaller, as the simulator's are.
    pub buffer_bytes: u32,
    /// Most slots of the journal.
    pub slots_max: u32,
    /// Most writes of the journal in flight.
    pub writes_in_flight: u32,
    /// Longest time that acknowledgements alone wait for company in the journal, in ms.
    pub trickle_ms: u64,
    /// Acknowledgements of at most so many queues are journaled in every turn; those of more are
    /// gathered for as long as they may wait.
    pub acks_apart_max: u32,
    /// Bytes of exchanges, bindings and queue descriptors; beyond it none is created.
    pub catalog_bytes_max: u64,
    /// Bytes of clients' requests that may wait for the disk or for another core. With half of it in
    /// use whoever asks for more is not read, with all of it nobody is.
    pub request_bytes_max: u64,
    /// Bytes of large messages that may be on their way in or to their queues; one always may.
    pub assembly_bytes_max: u64,
    /// Bytes of the beginnings of large messages that wait for a place among those.
    pub beginning_bytes_max: u64,
    /// Bytes of what transactions gather, and of what is prepared of them.
    pub transaction_bytes_max: u64,
}

impl Limits {
    /// Bytes of credit that may be given beyond everybody's least.
    #[must_use]
    pub const fn publish_bytes(&self) -> u64 {
        self.hold_bytes_max / 2
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heartbeat_ms: HEARTBEAT_MS_DEFAULT,
            handshake_ms: 5_000,
            message_bytes_max: MESSAGE_BYTES_MAX_DEFAULT,
            producers_max: 65_536,
            consumers_max: 65_536,
            hold_bytes_max: 64 << 20,
            window_bytes_min: 256 << 10,
            window_bytes_max: 16 << 20,
            unsent_bytes_max: 1 << 20,
            unsent_bytes_total: 64 << 20,
            parcel_bytes_max: 1 << 20,
            forward_bytes_max: 512 << 10,
            requests_per_peer_max: 256,
            volatile_buffers: 64,
            buffers_free_min: 64,
            buffer_bytes: 256 << 10,
            slots_max: 1 << 16,
            writes_in_flight: 2,
            trickle_ms: 20,
            acks_apart_max: 32,
            catalog_bytes_max: 64 << 20,
            request_bytes_max: 1 << 20,
            assembly_bytes_max: 32 << 20,
            beginning_bytes_max: 32 << 20,
            transaction_bytes_max: 8 << 20,
        }
    }
}

/// What a core is told when it starts.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Its number.
    pub core: CoreId,
    /// Cores of the broker.
    pub cores: u16,
    /// Partitions of the data directory.
    pub partitions: u16,
    /// Identity of the data directory, in every block.
    pub cluster: u64,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// What the broker calls itself in the handshake.
    pub server: String,
    /// Bounds.
    pub limits: Limits,
}
