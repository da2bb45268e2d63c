//! The messages of a `QueueBrowsed` frame: where each stands, and its bytes. Borrowing, no copies.
//! Does not know queues.

use crate::limits::{BROWSE_MESSAGE_BYTES_MAX, padded};
use crate::{Code, Envelope, envelope};

/// How a message stands in its queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum BrowsedState {
    /// It goes to the next consumer with room, when it is its turn.
    Ready = 1,
    /// It waits for its time.
    Delayed = 2,
    /// A consumer holds it.
    Unacked = 4,
    /// It is on its way to the dead-letter exchange, or is being moved.
    Dead = 8,
    /// It is ready and waits for its key, in a queue with message groups.
    Grouped = 16,
}

impl BrowsedState {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Delayed,
        Self::Unacked,
        Self::Dead,
        Self::Grouped,
    ];

    /// The state of a number that travelled.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == number)
    }
}

/// [`BrowsedHead::flags`]: less than the whole message is there.
pub const BROWSED_CUT: u8 = 1;

/// The 48 bytes before a message of a `QueueBrowsed` body (P-111).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BrowsedHead {
    /// Its place in the queue.
    pub place: u64,
    /// Of a delayed one: until it is due, in ms, rounded up; else 0.
    pub due_ms: u64,
    /// Of one that a consumer holds: number of its connection; else 0.
    pub connection: u64,
    /// How often it was delivered: exact, or one too high after a crash.
    pub deliveries: u32,
    /// Its bytes, without padding.
    pub message_bytes: u32,
    /// How many of them follow, without padding.
    pub shown_bytes: u32,
    /// Of one that a consumer holds: the consumer's channel; else 0.
    pub channel: u16,
    /// And the core of that connection.
    pub core: u16,
    /// How it stands.
    pub state: BrowsedState,
    /// [`BROWSED_CUT`].
    pub flags: u8,
}

impl BrowsedHead {
    /// Bytes of the head.
    pub const BYTES: usize = 48;

    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.place.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.due_ms.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.connection.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.deliveries.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.message_bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.shown_bytes.to_le_bytes());
        bytes[36..38].copy_from_slice(&self.channel.to_le_bytes());
        bytes[38..40].copy_from_slice(&self.core.to_le_bytes());
        bytes[40] = self.state as u8;
        bytes[41] = self.flags;
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let head = Self {
            place: u64_at(0),
            due_ms: u64_at(8),
            connection: u64_at(16),
            deliveries: u32_at(24),
            message_bytes: u32_at(28),
            shown_bytes: u32_at(32),
            channel: u16_at(36),
            core: u16_at(38),
            state: BrowsedState::from_number(bytes[40])?,
            flags: bytes[41],
        };
        let is_cut = head.flags & BROWSED_CUT != 0;
        let fits = head.place > 0
            && head.flags & !BROWSED_CUT == 0
            && is_cut == (head.shown_bytes < head.message_bytes)
            && head.shown_bytes <= head.message_bytes
            && bytes[42..].iter().all(|byte| *byte == 0);
        fits.then_some(head)
    }
}

/// One message of a `QueueBrowsed` body.
#[derive(Clone, Copy, Debug)]
pub struct BrowsedMessage<'a> {
    /// How it stands.
    pub head: BrowsedHead,
    /// Its envelope; its payload is as long as is shown.
    pub envelope: Envelope<'a>,
    /// The bytes that are shown.
    pub bytes: &'a [u8],
}

/// The messages of a `QueueBrowsed` body.
#[derive(Clone, Debug)]
pub struct BrowsedMessages<'a> {
    rest: &'a [u8],
}

impl<'a> BrowsedMessages<'a> {
    /// The messages in `bytes`. Nothing is checked until they are iterated.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for BrowsedMessages<'a> {
    type Item = Result<BrowsedMessage<'a>, Code>;

    /// The next message, its envelope checked but not its checksum; after an error, none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = core::mem::take(&mut self.rest);
        let Some((head, rest)) = rest.split_at_checked(BrowsedHead::BYTES) else {
            return Some(Err(Code::BodyMalformed));
        };
        let Some(head) = BrowsedHead::decode(head) else {
            return Some(Err(Code::BodyMalformed));
        };
        let shown = head.shown_bytes as usize;
        let Some((bytes, after)) = rest.split_at_checked(padded(shown)) else {
            return Some(Err(Code::BodyMalformed));
        };
        if bytes[shown..].iter().any(|byte| *byte != 0) {
            return Some(Err(Code::BodyMalformed));
        }
        let bytes = &bytes[..shown];
        Some(envelope::open(bytes).map(|envelope| {
            self.rest = after;
            BrowsedMessage {
                head,
                envelope,
                bytes,
            }
        }))
    }
}

const _: () = assert!(BROWSE_MESSAGE_BYTES_MAX as usize <= crate::FRAGMENT_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageParts;

    fn body(change: impl Fn(&mut BrowsedHead)) -> Vec<u8> {
        let mut message = Vec::new();
        let parts = MessageParts {
            routing_key: b"orders",
            payload: b"hello",
            ..MessageParts::default()
        };
        parts.write(&mut message).expect("it is small");
        let mut head = BrowsedHead {
            place: 7,
            due_ms: 0,
            connection: 3,
            deliveries: 2,
            message_bytes: parts.length() as u32,
            shown_bytes: parts.length() as u32,
            channel: 5,
            core: 1,
            state: BrowsedState::Unacked,
            flags: 0,
        };
        change(&mut head);
        let mut bytes = head.encode().to_vec();
        let shown = head.shown_bytes as usize;
        bytes.extend_from_slice(&message[..shown.min(message.len())]);
        bytes.resize(BrowsedHead::BYTES + padded(shown), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<BrowsedHead, Code> {
        let mut messages = BrowsedMessages::new(bytes);
        let first = messages.next().expect("there is one")?;
        assert_eq!(first.envelope.routing_key(), b"orders");
        assert!(messages.next().is_none());
        Ok(first.head)
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let two = [body(|_| ()), body(|head| head.place = 8)].concat();
        let places: Vec<u64> = BrowsedMessages::new(&two)
            .map(|message| message.expect("it is whole").head.place)
            .collect();
        assert_eq!(places, [7, 8]);
        let head = read(&body(|_| ())).expect("it is whole");
        assert_eq!((head.connection, head.channel, head.core), (3, 5, 1));
        assert_eq!((head.deliveries, head.state), (2, BrowsedState::Unacked));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let good = body(|_| ());
        for cut in 1..good.len() {
            assert!(read(&good[..cut]).is_err(), "{cut}");
        }
        for (at, byte) in [
            (0, 0),
            (40, 0),
            (40, 3),
            (40, 32),
            (41, 1),
            (41, 2),
            (42, 1),
            (47, 1),
        ] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert_eq!(read(&bytes), Err(Code::BodyMalformed), "{at}");
        }
        let long = body(|head| head.message_bytes += 1);
        assert_eq!(
            read(&long),
            Err(Code::BodyMalformed),
            "it is not said to be cut"
        );
        let short = body(|head| head.message_bytes -= 1);
        assert_eq!(read(&short), Err(Code::BodyMalformed));
    }
}
