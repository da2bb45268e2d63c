//! The bytes of a load message: a template that is copied, and a stamp at its end that is patched,
//! so that the checksum of all before the stamp is computed once. Does not know frames.

use ringpost_wire::{MessageParts, checksum, padded};

use crate::{Error, Result};

/// Bytes of the stamp that ends every payload.
pub const STAMP_BYTES: usize = 24;

/// What a message says of itself, in the last bytes of its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Counts the messages of one producer to one queue, from 0.
    pub sequence: u64,
    /// When it should have been sent, in ns since the start of the run's clock.
    pub intended_ns: u64,
    /// Who published it.
    pub producer: u32,
    /// Which queue it is for.
    pub queue: u32,
}

impl Stamp {
    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.intended_ns.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.producer.to_le_bytes());
        bytes[20..].copy_from_slice(&self.queue.to_le_bytes());
        bytes
    }

    /// The stamp of a whole message without padding, if it is long enough to have one.
    #[must_use]
    pub fn of(message: &[u8]) -> Option<Self> {
        let bytes: &[u8; STAMP_BYTES] = message.last_chunk()?;
        let (sequence, rest) = bytes.split_first_chunk()?;
        let (intended, rest) = rest.split_first_chunk()?;
        let (producer, queue) = rest.split_first_chunk()?;
        Some(Self {
            sequence: u64::from_le_bytes(*sequence),
            intended_ns: u64::from_le_bytes(*intended),
            producer: u32::from_le_bytes(*producer),
            queue: u32::from_le_bytes(*queue.first_chunk()?),
        })
    }
}

/// A message to one queue, whole but for stamp and checksum.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    /// Where the stamp starts.
    stamp_at: usize,
    /// Where the message ends and its padding starts.
    length: usize,
    /// crc32c of the bytes from 4 to the stamp.
    crc_before: u32,
}

impl Template {
    /// A message by way of the default exchange, its payload incompressible.
    ///
    /// # Errors
    /// [`Error::Plan`] if a part is too long.
    pub fn new(queue: &str, payload_bytes: u32) -> Result<Self> {
        let payload = noise(payload_bytes as usize);
        let parts = MessageParts {
            routing_key: queue.as_bytes(),
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

    /// Exponentially distributed with mean 1.
    pub fn next_exponential(&mut self) -> f64 {
        let unit = ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -unit.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::Messages;

    #[test]
    fn stamped_messages_are_whole_and_their_checksums_right() {
        let mut out = Vec::new();
        for payload_bytes in [24, 100, 1024, 16 << 10] {
            let template = Template::new("load-17", payload_bytes).expect("within limits");
            out.clear();
            let stamps: Vec<_> = (0..3)
                .map(|sequence| Stamp {
                    sequence,
                    intended_ns: 1 << 40,
                    producer: 5,
                    queue: 17,
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
}
