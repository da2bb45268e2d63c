//! Every limit that a peer can observe, const-asserted against each other.
//! Does not know what a broker is configured to; these are the protocol's own bounds and defaults.

/// Alignment of frames and of messages inside a batch, in bytes.
pub const ALIGN: usize = 16;
/// Bytes of a [`crate::FrameHeader`].
pub const FRAME_HEADER_BYTES: usize = 32;
/// Largest frame in bytes, header and padding included (P-3).
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Largest frame before the handshake is complete, in bytes (P-7).
pub const FRAME_BYTES_MAX_HANDSHAKE: usize = 4 * 1024;
/// Bytes of a message's fixed [`crate::Envelope`].
pub const ENVELOPE_BYTES: usize = 64;
/// Largest `header_bytes` of a message: room for the fields of later versions (P-23).
pub const ENVELOPE_BYTES_MAX: usize = 1024;
/// A message up to this many bytes travels whole, a larger one in fragments (P-31).
pub const FRAGMENT_BYTES_MAX: usize = 192 * 1024;
/// Default largest message in bytes: envelope and tail (rulings 21).
pub const MESSAGE_BYTES_MAX_DEFAULT: u32 = 16 * 1024 * 1024;
/// Largest value `message_bytes_max` may be configured to.
pub const MESSAGE_BYTES_MAX_LIMIT: u32 = 128 * 1024 * 1024;
/// Largest name (tenant, exchange, queue) in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Largest routing or binding key in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// Largest `properties` part of a message in bytes.
pub const PROPERTIES_BYTES_MAX: usize = 16 * 1024;
/// Largest `headers` part of a message, and largest binding arguments, in bytes.
pub const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// Most entries of one headers table.
pub const HEADERS_COUNT_MAX: usize = 256;
/// Deepest nesting of a headers table.
pub const HEADERS_DEPTH_MAX: usize = 8;
/// Largest weight of a binding of a `consistent-hash` or `random` exchange (P-70).
pub const WEIGHT_MAX: u32 = 1_000;
/// Longest condition of a filter binding in bytes (P-75).
pub const FILTER_BYTES_MAX: usize = 4 * 1024;
/// Most fields, constants and operators of a filter.
pub const FILTER_NODES_MAX: usize = 256;
/// Deepest nesting of a filter: operators and parentheses that are open at a time.
pub const FILTER_DEPTH_MAX: usize = 32;
/// Longest pattern of `LIKE` in bytes.
pub const FILTER_PATTERN_BYTES_MAX: usize = 255;
/// Longest text that `LIKE` looks at, in bytes: whether a longer one is like something is unknown.
pub const FILTER_LIKE_BYTES_MAX: usize = 4 * 1024;
/// Longest body whose fields filters know, in bytes.
pub const FILTER_BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest pattern of a policy in bytes (P-79).
pub const PATTERN_BYTES_MAX: usize = 255;
/// Highest priority of a policy; the lowest one is as far below zero.
pub const POLICY_PRIORITY_MAX: i16 = 1_000;
/// Largest value of what a policy applies to: queues and exchanges.
pub const POLICY_QUEUES_AND_EXCHANGES: u8 = 3;
/// Most channels (producers plus consumers) of one connection; channel numbers are `1..=CHANNELS_MAX`.
pub const CHANNELS_MAX: u16 = 4096;
/// Most ranges in one [`crate::FrameKind::Settle`] frame.
pub const SETTLE_RANGES_MAX: usize = 4096;
/// Most messages of one [`crate::FrameKind::QueueBrowsed`] frame.
pub const BROWSE_MESSAGES_MAX: u32 = 256;
/// Most bytes of one message that a [`crate::FrameKind::QueueBrowsed`] frame shows.
pub const BROWSE_MESSAGE_BYTES_MAX: u32 = 64 * 1024;
/// Most messages that one [`crate::FrameKind::QueueCancel`] or [`crate::FrameKind::QueueMove`] names.
pub const NAMED_MESSAGES_MAX: usize = 1024;
/// Largest credit a consumer may ask for, in messages.
pub const CREDIT_MESSAGES_MAX: u32 = 1_000_000;
/// Largest credit a consumer may ask for, in bytes.
pub const CREDIT_BYTES_MAX: u64 = 1 << 30;
/// Shortest heartbeat interval that a peer may ask for, in milliseconds.
pub const HEARTBEAT_MS_MIN: u32 = 1_000;
/// Longest heartbeat interval, in milliseconds.
pub const HEARTBEAT_MS_MAX: u32 = 600_000;
/// Default heartbeat interval, in milliseconds; a peer silent for two intervals is gone (P-12).
pub const HEARTBEAT_MS_DEFAULT: u32 = 10_000;
/// Longest reason text in an error or close body, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;
/// Most messages that one transaction publishes, and most that it acknowledges.
pub const TRANSACTION_MESSAGES_MAX: u32 = 10_000;
/// Most padded bytes of messages that one transaction publishes.
pub const TRANSACTION_BYTES_MAX: u32 = 1024 * 1024;
/// Most bytes of ranges in one [`crate::FrameKind::TransactionSettle`] frame.
pub const TRANSACTION_RANGES_BYTES_MAX: usize = SETTLE_RANGES_MAX * 16;
/// Most channels for transactions of one connection.
pub const TRANSACTION_CHANNELS_MAX: u32 = 64;
/// How long a transaction may be open if its client does not say, in milliseconds.
pub const TRANSACTION_MS_DEFAULT: u32 = 60_000;
/// Longest time that a transaction may be open, in milliseconds.
pub const TRANSACTION_MS_MAX: u32 = 3_600_000;
/// Producers are named below this; from here on the names are the broker's own (P-30).
pub const PRODUCER_BROKER_MIN: u64 = 0xffff_ffff_0000_0000;

const _: () = assert!(FRAME_BYTES_MAX.is_multiple_of(ALIGN));
const _: () = assert!(ENVELOPE_BYTES.is_multiple_of(ALIGN) && ENVELOPE_BYTES <= ENVELOPE_BYTES_MAX);
// The u16 offsets of exchange and routing key reach.
const _: () = assert!(ENVELOPE_BYTES_MAX + NAME_BYTES_MAX + KEY_BYTES_MAX <= u16::MAX as usize);
// A whole message, its batch head and its frame header fit a frame.
const _: () = assert!(FRAGMENT_BYTES_MAX + FRAME_HEADER_BYTES + 2 * ALIGN <= FRAME_BYTES_MAX);
// The parts that routing reads always lie in the first fragment.
const _: () = assert!(
    ENVELOPE_BYTES_MAX + NAME_BYTES_MAX + KEY_BYTES_MAX + PROPERTIES_BYTES_MAX + HEADERS_BYTES_MAX
        < FRAGMENT_BYTES_MAX
);
const _: () = assert!(SETTLE_RANGES_MAX * 16 + FRAME_HEADER_BYTES < FRAME_BYTES_MAX);

/// `bytes` rounded up to the next multiple of [`ALIGN`].
#[must_use]
pub const fn padded(bytes: usize) -> usize {
    (bytes + (ALIGN - 1)) & !(ALIGN - 1)
}
