//! The fixed 32-byte header of every frame. Does not know what bodies mean.

use crate::limits::{ALIGN, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, padded};
use crate::{Code, checksum};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// What a frame is. Numbers are never reused (P-90).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum FrameKind { $($(#[$doc])* $name = $number,)* }

        impl FrameKind {
            /// Every kind, in the order of its number.
            pub const ALL: &'static [FrameKind] = &[$(FrameKind::$name,)*];

            /// The kind of a number that travelled.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<FrameKind> {
                match number { $($number => Some(FrameKind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Client: opens the conversation ([`crate::control::Hello`]).
    Hello = 1;
    /// Broker: accepts it ([`crate::control::Welcome`]).
    Welcome = 2;
    /// Client: move this connection to the core of a queue ([`crate::control::Attach`]).
    Attach = 3;
    /// Broker: the connection now lives on `count` = core.
    Attached = 4;
    /// Both: I am alive; no body.
    Heartbeat = 5;
    /// Both: the connection ends ([`crate::control::Failure`]).
    Close = 6;
    /// Broker: the request `sequence` failed ([`crate::control::Failure`]).
    Failed = 7;
    /// Broker: the request `sequence` is done; `flags` bit 0 = something was created or removed,
    /// `count` = messages affected where that makes sense.
    Done = 8;
    /// Client: opens a producer on `channel` ([`crate::control::ProducerOpen`]).
    ProducerOpen = 16;
    /// Broker: it is open ([`crate::control::ProducerOpened`]).
    ProducerOpened = 17;
    /// Client: `count` messages, the first has `sequence`; `flags` see [`PUBLISH_MANDATORY`].
    Publish = 18;
    /// Client: a piece of the one message `sequence` ([`crate::FragmentHead`]).
    PublishFragment = 19;
    /// Broker: every publish up to `sequence` is settled at level `flags`, but for those named by
    /// earlier `Refused` frames; body as in `ProducerCredit`.
    Confirm = 20;
    /// Broker: publishes `sequence .. sequence + count` were refused ([`crate::control::Failure`]).
    Refused = 21;
    /// Broker: new cumulative credit ([`crate::control::ProducerCredit`]).
    ProducerCredit = 22;
    /// Client: no more publishes on `channel`.
    ProducerClose = 23;
    /// Broker: the producer on `channel` is gone ([`crate::control::Failure`]).
    ProducerClosed = 24;
    /// Client: opens a consumer on `channel` ([`crate::control::ConsumerOpen`]).
    ConsumerOpen = 32;
    /// Broker: it is open; `count` = core that owns its queue.
    ConsumerOpened = 33;
    /// Broker: `count` messages, the first has delivery tag `sequence` ([`crate::DeliverHead`]).
    Deliver = 34;
    /// Broker: a piece of the one message with delivery tag `sequence`
    /// ([`crate::DeliverHead`], then [`crate::FragmentHead`], then the piece).
    DeliverFragment = 35;
    /// Client: `count` ranges of delivery tags are done with ([`crate::SettleRange`]);
    /// `flags` = [`SETTLE_ACK`], [`SETTLE_REQUEUE`] or [`SETTLE_REJECT`], with [`SETTLE_CONFIRM`].
    Settle = 36;
    /// Broker: the settle frame with this `sequence` is durable.
    Settled = 37;
    /// Client: new credit ([`crate::control::ConsumerCredit`]).
    ConsumerCredit = 38;
    /// Client: no more deliveries on `channel`; unsettled messages return to the queue.
    ConsumerClose = 39;
    /// Broker: the consumer on `channel` is gone ([`crate::control::Failure`]).
    ConsumerClosed = 40;
    /// Client: take up to `count` messages on `channel` now or within a wait ([`crate::control::Get`]).
    Get = 41;
    /// Broker: the get `sequence` is over; `count` = messages it was given.
    GetDone = 42;
    /// Broker: the consumer on `channel` is the active one of its queue, or is it no longer; `flags`
    /// bit 0 = it is.
    ConsumerActive = 43;
    /// Client: no body; answered by one `ConsumerInfo`.
    ConsumerInspect = 44;
    /// Broker: what the consumer on `channel` holds ([`crate::control::ConsumerInfo`]).
    ConsumerInfo = 45;
    /// Broker: where the consumer on `channel`, which reads a stream, goes on
    /// ([`crate::control::ConsumerPosition`]).
    ConsumerPosition = 46;
    /// Client: [`crate::control::QueueDeclare`]; answered by `Done`.
    QueueDeclare = 48;
    /// Client: [`crate::control::Delete`] a queue; answered by `Done`, `count` = messages dropped.
    QueueDelete = 49;
    /// Client: [`crate::control::Named`]; drops the ready messages; answered by `Done`.
    QueuePurge = 50;
    /// Client: [`crate::control::Named`]; answered by one `QueueInfo`.
    QueueInspect = 51;
    /// Client: no body; answered by a `QueueInfo` each, then `Done`.
    QueueList = 52;
    /// Broker: [`crate::control::QueueInfo`].
    QueueInfo = 53;
    /// Client: [`crate::control::Named`], no name = all queues; answered by a `QueueDescription` each,
    /// then `Done` unless it was one.
    QueueDescribe = 54;
    /// Broker: [`crate::control::QueueDescription`].
    QueueDescription = 55;
    /// Client: [`crate::control::ExchangeDeclare`]; answered by `Done`.
    ExchangeDeclare = 56;
    /// Client: [`crate::control::Delete`] an exchange; answered by `Done`.
    ExchangeDelete = 57;
    /// Client: no body; answered by an `ExchangeInfo` each, then `Done`.
    ExchangeList = 58;
    /// Broker: [`crate::control::ExchangeDeclare`].
    ExchangeInfo = 59;
    /// Client: [`crate::control::Bind`]; answered by `Done`.
    Bind = 60;
    /// Client: [`crate::control::Bind`]; answered by `Done`.
    Unbind = 61;
    /// Client: no body; answered by a `BindingInfo` each, then `Done`.
    BindingList = 62;
    /// Broker: [`crate::control::Bind`].
    BindingInfo = 63;
    /// Client: [`crate::control::Named`]; creates a tenant; answered by `Done`.
    TenantDeclare = 64;
    /// Client: [`crate::control::Named`]; removes an empty tenant; answered by `Done`.
    TenantDelete = 65;
    /// Client: no body; answered by a `TenantInfo` each, then `Done`.
    TenantList = 66;
    /// Broker: [`crate::control::Named`].
    TenantInfo = 67;
    /// Client: [`crate::control::PolicySet`]; answered by `Done`.
    PolicySet = 72;
    /// Client: [`crate::control::Named`]; removes a policy; answered by `Done`.
    PolicyDelete = 73;
    /// Client: no body; answered by a `PolicyInfo` each, then `Done`.
    PolicyList = 74;
    /// Broker: [`crate::control::PolicySet`].
    PolicyInfo = 75;
    /// Client: [`crate::control::Named`] a stream; answered by a `GroupInfo` each, then `Done`.
    GroupList = 80;
    /// Broker: [`crate::control::GroupInfo`].
    GroupInfo = 81;
    /// Client: [`crate::control::GroupReset`]; answered by `Done`.
    GroupReset = 82;
    /// Client: [`crate::control::GroupDelete`]; answered by `Done`.
    GroupDelete = 83;
    /// Client: opens a channel for transactions ([`crate::control::TransactionOpen`]).
    TransactionOpen = 88;
    /// Broker: it is open ([`crate::control::TransactionOpened`]).
    TransactionOpened = 89;
    /// Client: `count` messages for the transaction `sequence`; `flags` see [`PUBLISH_MANDATORY`].
    TransactionPublish = 90;
    /// Client: `count` ranges of delivery tags of a consumer that the transaction `sequence`
    /// acknowledges ([`crate::control::TransactionSettle`]).
    TransactionSettle = 91;
    /// Client: all of the transaction `sequence` or nothing of it; no body. Answered by
    /// `TransactionDone` or `Failed`.
    TransactionCommit = 92;
    /// Client: nothing of the transaction `sequence`; no body. Answered by `TransactionDone`.
    TransactionRollback = 93;
    /// Broker: the transaction `sequence` is over; `flags` see [`TRANSACTION_COMMITTED`].
    TransactionDone = 94;
    /// Client: no more transactions on `channel`; what is open is rolled back.
    TransactionClose = 95;
    /// Broker: the transactions of `channel` are over ([`crate::control::Failure`]).
    TransactionClosed = 96;
    /// Client: shows messages of a queue without taking them ([`crate::control::QueueBrowse`]);
    /// answered by one `QueueBrowsed`.
    QueueBrowse = 104;
    /// Broker: `count` messages and where to go on ([`crate::control::QueueBrowsed`]).
    QueueBrowsed = 105;
    /// Client: takes delayed messages back ([`crate::control::QueueCancel`]); answered by one
    /// `QueueOutcome`.
    QueueCancel = 106;
    /// Client: moves messages elsewhere ([`crate::control::QueueMove`]); answered by one
    /// `QueueOutcome`.
    QueueMove = 107;
    /// Broker: what became of them ([`crate::control::QueueOutcome`]).
    QueueOutcome = 108;
}

/// `Publish` and first `PublishFragment`: refuse with `unroutable` what no queue takes (P-37).
pub const PUBLISH_MANDATORY: u8 = 1;
/// `Settle`: the messages are done with and never delivered again.
pub const SETTLE_ACK: u8 = 0;
/// `Settle`: the messages return to their original places.
pub const SETTLE_REQUEUE: u8 = 1;
/// `Settle`: the messages are dropped (dead-lettered where the queue has a target).
pub const SETTLE_REJECT: u8 = 2;
/// `Settle`: bits that hold the outcome.
pub const SETTLE_OUTCOME: u8 = 3;
/// `Settle`: answer with `Settled` once the outcome is durable.
pub const SETTLE_CONFIRM: u8 = 4;
/// `Done`: something was created, changed or removed.
pub const DONE_CHANGED: u8 = 1;
/// `Deliver`: every message of the frame may have been delivered before.
pub const DELIVER_REDELIVERED: u8 = 1;
/// `ConsumerActive`: it is the active consumer of its queue from now on.
pub const CONSUMER_IS_ACTIVE: u8 = 1;

/// `TransactionDone`: everything of it has happened; without it, nothing has.
pub const TRANSACTION_COMMITTED: u8 = 1;

/// A decoded frame header. On the wire (all little-endian):
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | `length`: whole frame, header and padding included, a multiple of 16 |
/// | 4 | 1 | `kind` |
/// | 5 | 1 | `flags`, by kind |
/// | 6 | 2 | `channel`, 0 = the connection |
/// | 8 | 8 | `sequence`, by kind: request id, first publish sequence, first delivery tag |
/// | 16 | 4 | `count`, by kind |
/// | 20 | 4 | `body_bytes`: body without padding |
/// | 24 | 4 | `body_crc`: crc32c of the body; of the 16-byte head only for `Deliver`; 0 for `Publish` |
/// | 28 | 4 | crc32c of bytes 0..28 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Bits by kind.
    pub flags: u8,
    /// Producer or consumer within the connection; 0 is the connection.
    pub channel: u16,
    /// Request id, publish sequence or delivery tag, by kind.
    pub sequence: u64,
    /// Number of things in the body, by kind.
    pub count: u32,
    /// Body bytes without padding.
    pub body_bytes: u32,
    /// Checksum of the checked part of the body.
    pub body_crc: u32,
}

impl FrameHeader {
    /// A header for a frame of `kind` without a body.
    #[must_use]
    pub const fn bare(kind: FrameKind, channel: u16, sequence: u64) -> Self {
        Self {
            kind,
            flags: 0,
            channel,
            sequence,
            count: 0,
            body_bytes: 0,
            body_crc: 0,
        }
    }

    /// Whole frame in bytes: header, body, padding.
    #[must_use]
    pub const fn length(&self) -> usize {
        FRAME_HEADER_BYTES + padded(self.body_bytes as usize)
    }

    /// The 32 bytes that travel.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let length = u32::try_from(self.length()).expect("a body is bounded by FRAME_BYTES_MAX");
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.channel.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = checksum::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a header (P-4): checksum, kind, and that `length` is what `body_bytes` needs.
    ///
    /// # Errors
    /// [`Code::FrameMalformed`] or [`Code::FrameTooLarge`]; both end the connection.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, Code> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if checksum::crc32c(&bytes[..28]) != u32_at(28) {
            return Err(Code::FrameMalformed);
        }
        let kind = FrameKind::from_number(bytes[4]).ok_or(Code::FrameMalformed)?;
        let length = u32_at(0) as usize;
        let body_bytes = u32_at(20);
        if length > FRAME_BYTES_MAX || body_bytes as usize > FRAME_BYTES_MAX {
            return Err(Code::FrameTooLarge);
        }
        let header = Self {
            kind,
            flags: bytes[5],
            channel: u16::from_le_bytes([bytes[6], bytes[7]]),
            sequence: u64::from_le_bytes([
                bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14],
                bytes[15],
            ]),
            count: u32_at(16),
            body_bytes,
            body_crc: u32_at(24),
        };
        if !length.is_multiple_of(ALIGN) || header.length() != length {
            return Err(Code::FrameMalformed);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_and_every_flipped_bit_is_seen() {
        let header = FrameHeader {
            kind: FrameKind::Publish,
            flags: 1,
            channel: 7,
            sequence: 0x0102_0304_0506_0708,
            count: 3,
            body_bytes: 1000,
            body_crc: 0xdead_beef,
        };
        let bytes = header.encode();
        assert_eq!(FrameHeader::decode(&bytes), Ok(header));
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bad).is_err(), "bit {bit} passed");
        }
    }

    //= P-90
    #[test]
    fn kinds_are_unique() {
        for kind in FrameKind::ALL {
            assert_eq!(FrameKind::from_number(*kind as u8), Some(*kind));
        }
        assert_eq!(FrameKind::from_number(0), None);
    }
}
