//! The bytes of a load message: a template that is copied, and a stamp at its end that is patched,
//! so that the checksum of all before the stamp is computed once. Does not know frames.

use ringpost_wire::{MessageParts, checksum, padded};

use crate::{Error, Result};

/// Bytes of the stamp that ends every payload.
pub const STAMP_BYTES: usize = 32;

/// What a message says of itself, in the last bytes of its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Counts the messages of one producer to one queue, from 0.
    pub sequence: u64,
    /// When it should have been sent, in ns since the start of the run's clock.
    pub intended_ns: u64,
    /// When it was sent, by the same clock.
    pub sent_ns: u64,
    /// Who published it.
    pub producer: u32,
    /// Which group of queues it is for.
    pub group: u32,
}

impl Stamp {
    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.intended_ns.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sent_ns.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.producer.to_le_bytes());
        bytes[28..].copy_from_slice(&self.group.to_le_bytes());
        bytes
    }

    /// The stamp of a whole message without padding, if it is long enough to have one.
    #[must_use]
    pub fn of(message: &[u8]) -> Option<Self> {
        let bytes: &[u8; STAMP_BYTES] = message.last_chunk()?;
        let (sequence, rest) = bytes.split_first_chunk()?;
        let (intended, rest) = rest.split_first_chunk()?;
        let (sent, rest) = rest.split_first_chunk()?;
        let (producer, group) = rest.split_first_chunk()?;
        Some(Self {
            sequence: u64::from_le_bytes(*sequence),
            intended_ns: u64::from_le_bytes(*intended),
            sent_ns: u64::from_le_bytes(*sent),
            producer: u32::from_le_bytes(*producer),
            group: u32::from_le_bytes(*group.first_chunk()?),
        })
    }
}

/// Where the envelope says how long the message is.
const LENGTH_AT: usize = 4;
/// Where it says how long the payload is.
const PAYLOAD_BYTES_AT: usize = 60;

/// Where a message goes: what its envelope says before the payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way<'a> {
    /// The exchange; empty is the default one, which takes the key for the name of a queue.
    pub exchange: &'a [u8],
    /// The routing key.
    pub key: &'a [u8],
    /// The headers as a field table, or empty.
    pub headers: &'a [u8],
}

impl Way<'_> {
    /// Padded bytes of a message with so much payload.
    #[must_use]
    pub const fn padded_bytes(&self, payload_bytes: u32) -> usize {
        let names = self.exchange.len() + self.key.len() + self.headers.len();
        padded(ringpost_wire::ENVELOPE_BYTES + names + payload_bytes as usize)
    }
}

/// A message of one way, whole but for stamp and checksum; others of the same way may be shorter.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    /// Bytes before the payload.
    head_bytes: usize,
    /// Where the stamp starts.
    stamp_at: usize,
    /// Where the message ends and its padding starts.
    length: usize,
    /// crc32c of the bytes from 4 to the stamp.
    crc_before: u32,
}

impl Template {
    /// A message with its payload incompressible.
    ///
    /// # Errors
    /// [`Error::Plan`] if a part is too long.
    pub fn new(way: Way<'_>, payload_bytes: u32) -> Result<Self> {
        let payload = noise(payload_bytes as usize);
        let parts = MessageParts {
            exchange: way.exchange,
            routing_key: way.key,
            headers: way.headers,
            payload: &payload,
            ..MessageParts::default()
        };
        let mut bytes = Vec::new();
        parts
            .write(&mut bytes)
            .map_err(|code| Error::Plan(format!("no such message can be made: {code:?}")))?;
        let length = parts.length();
        let stamp_at = length - STAMP_BYTES;
        let crc_before = checksum::crc32c(&bytes[4..stamp_at]);
        Ok(Self {
            bytes,
            head_bytes: length - payload.len(),
            stamp_at,
            length,
            crc_before,
        })
    }

    /// Padded bytes of a message to a queue of this name.
    #[must_use]
    pub fn padded_bytes(queue: &str, payload_bytes: u32) -> usize {
        padded(ringpost_wire::ENVELOPE_BYTES + queue.len() + payload_bytes as usize)
    }

    /// Bytes that one message adds.
    #[must_use]
    pub const fn padded_length(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a stamped message whose payload is only so long, with its padding; returns the bytes
    /// it took. Its checksum is computed over all of it.
    pub fn append_short(&self, out: &mut Vec<u8>, stamp: Stamp, payload_bytes: u32) -> usize {
        let length = self.head_bytes + payload_bytes as usize;
        assert!(
            length <= self.length,
            "the template has the longest payload"
        );
        let start = out.len();
        out.extend_from_slice(&self.bytes[..length - STAMP_BYTES]);
        out.extend_from_slice(&stamp.encode());
        let message = &mut out[start..];
        let total = u32::try_from(length).unwrap_or(u32::MAX);
        message[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&total.to_le_bytes());
        message[PAYLOAD_BYTES_AT..PAYLOAD_BYTES_AT + 4]
            .copy_from_slice(&payload_bytes.to_le_bytes());
        let crc = checksum::crc32c(&message[4..]);
        message[..4].copy_from_slice(&crc.to_le_bytes());
        out.resize(start + padded(length), 0);
        padded(length)
    }

    /// Appends a stamped message with its padding.
    pub fn append(&self, out: &mut Vec<u8>, stamp: Stamp) {
        let stamp = stamp.encode();
        let crc = checksum::crc32c_append(self.crc_before, &stamp);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.bytes[4..self.stamp_at]);
        out.extend_from_slice(&stamp);
        out.extend_from_slice(&self.bytes[self.length..]);
    }
}

/// Bytes without a pattern, always the same.
#[must_use]
pub fn noise(length: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    (0..length).map(|_| random.next_u64() as u8).collect()
}

/// A small generator of random numbers, for gaps and payloads.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// One of its own for every seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly distributed from 0 up to, without, 1.
    pub fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponentially distributed with mean 1.
    pub fn next_exponential(&mut self) -> f64 {
        -(1.0 - self.next_unit()).ln()
    }

    /// Normally distributed with mean 0 and standard deviation 1 (Box and Muller).
    pub fn next_normal(&mut self) -> f64 {
        let radius = (2.0 * self.next_exponential()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.next_unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::Messages;

    const WAY: Way<'static> = Way {
        exchange: b"",
        key: b"load-17",
        headers: b"",
    };

    #[test]
    fn short_messages_of_a_template_are_whole_too() {
        let way = Way {
            exchange: b"shop",
            headers: b"\x05groupb\x07",
            ..WAY
        };
        let template = Template::new(way, 5000).expect("within limits");
        let (mut out, mut sizes) = (Vec::new(), vec![32, 33, 100, 4999, 5000]);
        for size in &sizes {
            let stamp = Stamp {
                sequence: u64::from(*size),
                intended_ns: 7,
                sent_ns: 8,
                producer: 1,
                group: 2,
            };
            let bytes = template.append_short(&mut out, stamp, *size);
            assert_eq!(bytes, way.padded_bytes(*size));
        }
        for message in Messages::new(&out) {
            let message = message.expect("well formed");
            assert_eq!(message.envelope.check_crc(), Ok(()));
            assert_eq!(message.envelope.exchange(), b"shop");
            assert_eq!(message.envelope.headers(), way.headers);
            let size = sizes.remove(0);
            assert_eq!(message.envelope.payload().len(), size as usize);
            let stamp = Stamp::of(&message.bytes[..message.envelope.length()]).expect("stamped");
            assert_eq!((stamp.sequence, stamp.sent_ns), (u64::from(size), 8));
        }
        assert!(sizes.is_empty());
    }

    #[test]
    fn stamped_messages_are_whole_and_their_checksums_right() {
        let mut out = Vec::new();
        for payload_bytes in [32, 100, 1024, 16 << 10] {
            let template = Template::new(WAY, payload_bytes).expect("within limits");
            out.clear();
            let stamps: Vec<_> = (0..3)
                .map(|sequence| Stamp {
                    sequence,
                    intended_ns: 1 << 40,
                    sent_ns: 1 << 41,
                    producer: 5,
                    group: 17,
                })
                .collect();
            for stamp in &stamps {
                template.append(&mut out, *stamp);
            }
            assert_eq!(out.len(), 3 * template.padded_length());
            for (message, stamp) in Messages::new(&out).zip(&stamps) {
                let message = message.expect("well formed");
                assert_eq!(message.envelope.check_crc(), Ok(()));
                assert_eq!(message.envelope.routing_key(), b"load-17");
                let length = message.envelope.length();
                assert_eq!(Stamp::of(&message.bytes[..length]), Some(*stamp));
            }
        }
    }

    #[test]
    fn exponential_gaps_have_mean_one() {
        let mut random = Random::new(1);
        let sum: f64 = (0..100_000).map(|_| random.next_exponential()).sum();
        assert!((sum / 100_000.0 - 1.0).abs() < 0.02);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_deviation_one() {
        let mut random = Random::new(2);
        let drawn: Vec<f64> = (0..100_000).map(|_| random.next_normal()).collect();
        let mean = drawn.iter().sum::<f64>() / 1e5;
        let square = drawn.iter().map(|number| number * number).sum::<f64>() / 1e5;
        assert!(
            mean.abs() < 0.02 && (square - 1.0).abs() < 0.02,
            "{mean} {square}"
        );
    }
}
