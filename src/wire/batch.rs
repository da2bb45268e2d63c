//! Bodies that carry messages or ranges: batches, fragments, settlements. Borrowing, no copies.
//! Does not know what the messages are for.

use crate::Code;
use crate::envelope::{self, Envelope};
use crate::limits::{ENVELOPE_BYTES, FRAGMENT_BYTES_MAX, padded};

/// The messages of a `Publish` or `Deliver` body: each a whole message padded to 16 bytes.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

/// One message of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its envelope and parts.
    pub envelope: Envelope<'a>,
    /// Its bytes with padding, as they are journaled and delivered.
    pub bytes: &'a [u8],
}

impl<'a> Messages<'a> {
    /// The messages in `body`. Nothing is checked until they are iterated.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Bytes not yet iterated over.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Code>;

    /// The next message, its envelope checked (P-21) but not its checksum; after an error, none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = core::mem::take(&mut self.rest);
        let length = envelope::length_of(rest).unwrap_or(0);
        if !(ENVELOPE_BYTES..=FRAGMENT_BYTES_MAX).contains(&length) {
            return Some(Err(Code::MessageMalformed));
        }
        let Some((bytes, after)) = rest.split_at_checked(padded(length)) else {
            return Some(Err(Code::MessageMalformed));
        };
        if bytes[length..].iter().any(|byte| *byte != 0) {
            return Some(Err(Code::MessageMalformed));
        }
        match envelope::open(&bytes[..length]) {
            Ok(envelope) => {
                self.rest = after;
                Some(Ok(Message { envelope, bytes }))
            }
            Err(code) => Some(Err(code)),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The 16 bytes before the messages of a `Deliver` frame:
/// `queue_sequence` u64, `delivery_count` u32, zero u32 (P-42).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeliverHead {
    /// Place in the queue of the first message; the others follow without gaps.
    pub queue_sequence: u64,
    /// Earlier deliveries of every message of the frame: exact, or one too high after a crash.
    pub delivery_count: u32,
}

impl DeliverHead {
    /// Bytes of the head.
    pub const BYTES: usize = 16;

    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.queue_sequence.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.delivery_count.to_le_bytes());
        bytes
    }

    /// Splits a `Deliver` body into head and messages.
    ///
    /// # Errors
    /// [`Code::BodyMalformed`] if it is too short or reserved bytes are not zero.
    pub fn split(body: &[u8]) -> Result<(Self, &[u8]), Code> {
        let (head, messages) = body
            .split_at_checked(Self::BYTES)
            .ok_or(Code::BodyMalformed)?;
        if u32_at(head, 12) != 0 {
            return Err(Code::BodyMalformed);
        }
        Ok((
            Self {
                queue_sequence: u64_at(head, 0),
                delivery_count: u32_at(head, 8),
            },
            messages,
        ))
    }
}

/// The 16 bytes before a piece of a large message:
/// `message_bytes` u32, `offset` u32, two zero u32 (P-31).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentHead {
    /// Whole message in bytes, without padding.
    pub message_bytes: u32,
    /// Where in the message this piece starts; pieces come in order without gaps.
    pub offset: u32,
}

impl FragmentHead {
    /// Bytes of the head.
    pub const BYTES: usize = 16;

    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.message_bytes.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// Bytes of the piece that starts at `offset` of a message of `message_bytes`: every piece is
    /// [`FRAGMENT_BYTES_MAX`] long but the last.
    #[must_use]
    pub const fn piece_bytes(&self) -> usize {
        let left = self.message_bytes.saturating_sub(self.offset) as usize;
        if left < FRAGMENT_BYTES_MAX {
            left
        } else {
            FRAGMENT_BYTES_MAX
        }
    }

    /// Whether the message ends with this piece.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        self.offset as usize + self.piece_bytes() == self.message_bytes as usize
    }

    /// Splits a fragment body into head and piece.
    ///
    /// # Errors
    /// [`Code::BodyMalformed`] if lengths do not fit: the message is not larger than
    /// [`FRAGMENT_BYTES_MAX`], the offset not on a piece's start, or the piece not as long as it must be.
    pub fn split(body: &[u8]) -> Result<(Self, &[u8]), Code> {
        let (head, piece) = body
            .split_at_checked(Self::BYTES)
            .ok_or(Code::BodyMalformed)?;
        let parsed = Self {
            message_bytes: u32_at(head, 0),
            offset: u32_at(head, 4),
        };
        let fits = u64_at(head, 8) == 0
            && parsed.message_bytes as usize > FRAGMENT_BYTES_MAX
            && (parsed.offset as usize).is_multiple_of(FRAGMENT_BYTES_MAX)
            && parsed.offset < parsed.message_bytes
            && piece.len() == parsed.piece_bytes();
        if fits {
            Ok((parsed, piece))
        } else {
            Err(Code::BodyMalformed)
        }
    }
}

/// Delivery tags `first..=last` of a `Settle` frame (P-44).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SettleRange {
    /// First tag; 0 means "every outstanding tag up to `last`" (cumulative).
    pub first: u64,
    /// Last tag.
    pub last: u64,
}

impl SettleRange {
    /// Bytes of one range.
    pub const BYTES: usize = 16;

    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.first.to_le_bytes());
        bytes[8..].copy_from_slice(&self.last.to_le_bytes());
        bytes
    }

    /// The ranges of a `Settle` body of `count` ranges.
    ///
    /// # Errors
    /// [`Code::BodyMalformed`] if the body is not that long or a range is empty.
    pub fn parse(
        body: &[u8],
        count: u32,
    ) -> Result<impl Iterator<Item = SettleRange> + Clone + '_, Code> {
        let read = |chunk: &[u8]| Self {
            first: u64_at(chunk, 0),
            last: u64_at(chunk, 8),
        };
        let fits = count > 0
            && count as usize <= crate::limits::SETTLE_RANGES_MAX
            && body.len() == count as usize * Self::BYTES
            && body
                .chunks_exact(Self::BYTES)
                .map(read)
                .all(|range| range.first <= range.last);
        if fits {
            Ok(body.chunks_exact(Self::BYTES).map(read))
        } else {
            Err(Code::BodyMalformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageParts;

    #[test]
    fn a_batch_iterates_and_stops_at_damage() {
        let mut body = Vec::new();
        for payload in [&b"one"[..], b"", b"three"] {
            let parts = MessageParts {
                payload,
                ..MessageParts::default()
            };
            parts.write(&mut body).expect("within limits");
        }
        let payloads: Vec<_> = Messages::new(&body)
            .map(|message| message.expect("well formed").envelope.payload())
            .collect();
        assert_eq!(payloads, [&b"one"[..], b"", b"three"]);
        let cut = &body[..body.len() - 16];
        let mut messages = Messages::new(cut);
        assert!(messages.next().is_some_and(|m| m.is_ok()));
        assert!(messages.next().is_some_and(|m| m.is_ok()));
        assert!(messages.next().is_some_and(|m| m.is_err()));
        assert!(messages.next().is_none());
    }

    #[test]
    fn heads_survive() {
        let head = DeliverHead {
            queue_sequence: 77,
            delivery_count: 3,
        };
        assert_eq!(DeliverHead::split(&head.encode()), Ok((head, &[][..])));
        let head = FragmentHead {
            message_bytes: FRAGMENT_BYTES_MAX as u32 + 5,
            offset: 0,
        };
        let mut body = head.encode().to_vec();
        body.resize(16 + FRAGMENT_BYTES_MAX, 1);
        assert_eq!(
            FragmentHead::split(&body).map(|(h, p)| (h, p.len())),
            Ok((head, FRAGMENT_BYTES_MAX))
        );
        assert!(FragmentHead::split(&body[..100]).is_err());
        let range = SettleRange { first: 0, last: 9 };
        assert_eq!(
            SettleRange::parse(&range.encode(), 1).map(|mut ranges| ranges.next()),
            Ok(Some(range))
        );
        assert!(SettleRange::parse(&range.encode(), 2).is_err());
    }
}
