//! The rkyv-archived message envelope: the fixed 64 bytes that open every message.
//! The only file that knows how a message is laid out; does not know frames, journals or queues.

use rend::unaligned::{u16_ule, u32_ule, u64_ule};
use rkyv::Portable;
use rkyv::bytecheck::CheckBytes;

use crate::limits::{
    ALIGN, ENVELOPE_BYTES, ENVELOPE_BYTES_MAX, HEADERS_BYTES_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX,
    PROPERTIES_BYTES_MAX, padded,
};
use crate::{Code, checksum};

/// A byte part of a message tail, counted from the start of the message; at most 64 KiB in.
#[derive(Clone, Copy, Debug, Portable, CheckBytes)]
#[bytecheck(crate = rkyv::bytecheck)]
#[repr(C)]
pub struct ShortPart {
    offset: u16_ule,
    length: u16_ule,
}

/// A byte part of a message tail, counted from the start of the message.
#[derive(Clone, Copy, Debug, Portable, CheckBytes)]
#[bytecheck(crate = rkyv::bytecheck)]
#[repr(C)]
pub struct LongPart {
    offset: u32_ule,
    length: u32_ule,
}

/// The archived envelope. Built by [`MessageParts::write`], read only through [`open`], which is
/// its one constructor: validation of integers proves nothing, `check_tail` does (rulings 25).
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | `crc`: crc32c of bytes `4..length`, by the producer, never recomputed |
/// | 4 | 4 | `length`: envelope and tail, without padding |
/// | 8 | 2 | `header_bytes`: 64 in this version; later versions append fields, which are skipped |
/// | 10 | 1 | `flags_critical`: an unknown bit refuses the message |
/// | 11 | 1 | `flags_ignorable`: unknown bits are kept and passed on |
/// | 12 | 1 | `priority` |
/// | 13 | 1 | `hops`: written by the broker only |
/// | 14 | 2 | zero |
/// | 16 | 8 | `timestamp_us`: producer's wall clock, µs since 1970, 0 = none |
/// | 24 | 4 | `ttl_ms`: 0 = none |
/// | 28 | 4 | `delay_ms`: 0 = none |
/// | 32 | 4 | `exchange` (u16 offset, u16 length) |
/// | 36 | 4 | `routing_key` (u16 offset, u16 length) |
/// | 40 | 8 | `properties` (u32 offset, u32 length): AMQP 0-9-1 property bytes, or empty |
/// | 48 | 8 | `headers` (u32 offset, u32 length): AMQP 0-9-1 field table bytes, or empty |
/// | 56 | 8 | `payload` (u32 offset, u32 length) |
#[derive(Clone, Copy, Debug, Portable, CheckBytes)]
#[bytecheck(crate = rkyv::bytecheck)]
#[repr(C)]
pub struct Archived {
    crc: u32_ule,
    length: u32_ule,
    header_bytes: u16_ule,
    flags_critical: u8,
    flags_ignorable: u8,
    priority: u8,
    hops: u8,
    zero: [u8; 2],
    timestamp_us: u64_ule,
    ttl_ms: u32_ule,
    delay_ms: u32_ule,
    exchange: ShortPart,
    routing_key: ShortPart,
    properties: LongPart,
    headers: LongPart,
    payload: LongPart,
}

const _: () = assert!(core::mem::size_of::<Archived>() == ENVELOPE_BYTES);
const _: () = assert!(core::mem::align_of::<Archived>() == 1);
const _: () = assert!(core::mem::offset_of!(Archived, timestamp_us) == 16);
const _: () = assert!(core::mem::offset_of!(Archived, exchange) == 32);
const _: () = assert!(core::mem::offset_of!(Archived, payload) == 56);

/// Critical flags this version knows; none yet.
const FLAGS_CRITICAL_KNOWN: u8 = 0;

/// A message read in place: an envelope whose parts were proved to lie inside its bytes.
#[derive(Clone, Copy)]
pub struct Envelope<'a> {
    archived: &'a Archived,
    bytes: &'a [u8],
}

/// Reads the message that starts `bytes`, without checking its checksum (see [`Envelope::check_crc`]).
///
/// `bytes` may hold only the first fragment: parts up to the start of the payload must be inside.
///
/// # Errors
/// [`Code::MessageMalformed`] if a length, offset, reserved byte or critical flag is not right (P-21).
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, Code> {
    let head = bytes.get(..ENVELOPE_BYTES).ok_or(Code::MessageMalformed)?;
    let archived = rkyv::api::low::access_pos::<Archived, rkyv::rancor::Failure>(head, 0)
        .map_err(|_| Code::MessageMalformed)?;
    archived.check_tail(bytes.len())?;
    let length = (archived.length.to_native() as usize).min(bytes.len());
    Ok(Envelope {
        archived,
        bytes: &bytes[..length],
    })
}

/// The length of the message that starts `bytes`, in bytes without padding, unchecked but for room
/// to read it; `None` if fewer than 8 bytes are left.
#[must_use]
pub fn length_of(bytes: &[u8]) -> Option<usize> {
    bytes
        .get(4..8)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
}

/// What a message asks of the queues that it comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// Time to live in milliseconds, 0 = none.
    pub ttl_ms: u32,
    /// How long it is kept back, in milliseconds, 0 = not at all.
    pub delay_ms: u32,
    /// Priority, 0 is the lowest.
    pub priority: u8,
}

/// The terms of the message that starts `bytes`, unchecked but for room to read them; `None` if fewer
/// than 32 bytes are left.
#[must_use]
pub fn terms_of(bytes: &[u8]) -> Option<Terms> {
    let head = bytes.get(..32)?;
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Some(Terms {
        ttl_ms: number(24),
        delay_ms: number(28),
        priority: head[12],
    })
}

impl Archived {
    /// Every part inside, in order, not overlapping; reserved bytes zero; limits kept.
    fn check_tail(&self, available: usize) -> Result<(), Code> {
        let length = self.length.to_native() as usize;
        let exchange = self.exchange.range();
        let routing_key = self.routing_key.range();
        let properties = self.properties.range();
        let headers = self.headers.range();
        let payload = self.payload.range();
        // One tail, back to back: the start of each part is the end of the one before it.
        let header_bytes = usize::from(self.header_bytes.to_native());
        let ordered = exchange.0 == header_bytes as u64
            && routing_key.0 == exchange.1
            && properties.0 == routing_key.1
            && headers.0 == properties.1
            && payload.0 == headers.1
            && payload.1 == length as u64;
        let limited = exchange.1 - exchange.0 <= NAME_BYTES_MAX as u64
            && routing_key.1 - routing_key.0 <= KEY_BYTES_MAX as u64
            && properties.1 - properties.0 <= PROPERTIES_BYTES_MAX as u64
            && headers.1 - headers.0 <= HEADERS_BYTES_MAX as u64;
        // A later version's fields lie between the known ones and the tail (P-23).
        //= P-23, P-24
        let reserved = (ENVELOPE_BYTES..=ENVELOPE_BYTES_MAX).contains(&header_bytes)
            && header_bytes.is_multiple_of(ALIGN)
            && self.flags_critical & !FLAGS_CRITICAL_KNOWN == 0
            && self.zero == [0; 2];
        if ordered && limited && reserved && payload.0 <= available as u64 {
            Ok(())
        } else {
            Err(Code::MessageMalformed)
        }
    }
}

impl ShortPart {
    fn range(self) -> (u64, u64) {
        let start = u64::from(self.offset.to_native());
        (start, start + u64::from(self.length.to_native()))
    }
}

impl LongPart {
    fn range(self) -> (u64, u64) {
        let start = u64::from(self.offset.to_native());
        (start, start + u64::from(self.length.to_native()))
    }
}

impl<'a> Envelope<'a> {
    /// Whole message in bytes, envelope and tail, without padding.
    #[must_use]
    pub fn length(&self) -> usize {
        self.archived.length.to_native() as usize
    }

    /// The producer's checksum.
    #[must_use]
    pub fn crc(&self) -> u32 {
        self.archived.crc.to_native()
    }

    /// Whether all of the message is in the slice it was opened on (false for a first fragment).
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == self.length()
    }

    /// Checks the producer's checksum over the whole message (P-20).
    ///
    /// # Errors
    /// [`Code::MessageMalformed`]; also for a message that is not whole.
    pub fn check_crc(&self) -> Result<(), Code> {
        if self.is_whole() && checksum::crc32c(&self.bytes[4..]) == self.crc() {
            Ok(())
        } else {
            Err(Code::MessageMalformed)
        }
    }

    /// Checks what a client publishes: the checksum, and that no broker has written in it (P-21).
    ///
    /// # Errors
    /// [`Code::MessageMalformed`]; also for a message that is not whole.
    pub fn check_published(&self) -> Result<(), Code> {
        //= P-21
        match self.hops() {
            0 => self.check_crc(),
            _ => Err(Code::MessageMalformed),
        }
    }

    /// How often a broker has passed it on to a dead-letter exchange since a consumer last rejected it;
    /// 255 stands for more. 0 of a message that has not died.
    #[must_use]
    pub fn hops(&self) -> u8 {
        self.archived.hops
    }

    /// Priority, 0 is the lowest.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.archived.priority
    }

    /// Producer's wall clock in µs since 1970, 0 = none.
    #[must_use]
    pub fn timestamp_us(&self) -> u64 {
        self.archived.timestamp_us.to_native()
    }

    /// Time to live in milliseconds, 0 = none.
    #[must_use]
    pub fn ttl_ms(&self) -> u32 {
        self.archived.ttl_ms.to_native()
    }

    /// How long queues keep it back, in milliseconds, 0 = not at all.
    #[must_use]
    pub fn delay_ms(&self) -> u32 {
        self.archived.delay_ms.to_native()
    }

    /// What it asks of its queues.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms {
            ttl_ms: self.ttl_ms(),
            delay_ms: self.delay_ms(),
            priority: self.priority(),
        }
    }

    fn slice(&self, range: (u64, u64)) -> &'a [u8] {
        // `check_tail` proved every part but the payload to lie inside; a first fragment's payload
        // is what of it is there.
        let end = usize::try_from(range.1)
            .unwrap_or(usize::MAX)
            .min(self.bytes.len());
        self.bytes.get(range.0 as usize..end).unwrap_or(&[])
    }

    /// Name of the exchange, empty for the default exchange.
    #[must_use]
    pub fn exchange(&self) -> &'a [u8] {
        self.slice(self.archived.exchange.range())
    }

    /// Routing key.
    #[must_use]
    pub fn routing_key(&self) -> &'a [u8] {
        self.slice(self.archived.routing_key.range())
    }

    /// Exchange and routing key as the one run of bytes that they are: what routing may memoise on,
    /// together with the length of the first.
    #[must_use]
    pub fn address(&self) -> &'a [u8] {
        self.slice((
            self.archived.exchange.range().0,
            self.archived.routing_key.range().1,
        ))
    }

    //= P-25
    /// AMQP 0-9-1 property bytes, or empty.
    #[must_use]
    pub fn properties(&self) -> &'a [u8] {
        self.slice(self.archived.properties.range())
    }

    /// AMQP 0-9-1 field table bytes, or empty.
    #[must_use]
    pub fn headers(&self) -> &'a [u8] {
        self.slice(self.archived.headers.range())
    }

    /// The payload, or what of it is there.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.slice(self.archived.payload.range())
    }

    /// Bytes of the whole payload, also if only a first fragment is there.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.archived.payload.length.to_native() as usize
    }
}

impl core::fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Envelope")
            .field("length", &self.length())
            .field("payload_bytes", &self.payload_bytes())
            .finish_non_exhaustive()
    }
}

/// What a producer says of a message; [`MessageParts::write`] makes the bytes.
#[derive(Clone, Copy, Default, Debug)]
pub struct MessageParts<'a> {
    /// Name of the exchange, empty for the default exchange.
    pub exchange: &'a [u8],
    /// Routing key.
    pub routing_key: &'a [u8],
    /// AMQP 0-9-1 property bytes, or empty.
    pub properties: &'a [u8],
    /// AMQP 0-9-1 field table bytes, or empty.
    pub headers: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
    /// Priority, 0 is the lowest.
    pub priority: u8,
    /// Producer's wall clock in µs since 1970, 0 = none.
    pub timestamp_us: u64,
    /// Time to live in milliseconds, 0 = none.
    pub ttl_ms: u32,
    /// How long queues keep it back, in milliseconds, 0 = not at all.
    pub delay_ms: u32,
    /// See [`Envelope::hops`]: of what a client publishes 0.
    pub hops: u8,
}

impl MessageParts<'_> {
    /// Whole message in bytes, without padding.
    #[must_use]
    pub const fn length(&self) -> usize {
        ENVELOPE_BYTES
            + self.exchange.len()
            + self.routing_key.len()
            + self.properties.len()
            + self.headers.len()
            + self.payload.len()
    }

    /// Bytes the message takes in a batch, padding included.
    #[must_use]
    pub const fn padded_length(&self) -> usize {
        padded(self.length())
    }

    /// Appends the message and its padding to `out`.
    ///
    /// # Errors
    /// [`Code::SettingInvalid`] if a part is over its limit; nothing is written then.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), Code> {
        let start = out.len();
        self.begin(self.payload.len(), out)?;
        out.extend_from_slice(self.payload);
        finish(out, start);
        Ok(())
    }

    /// Appends the message up to its payload, which is to be appended by whoever has it, `payload_bytes`
    /// bytes of it and not those of [`Self::payload`], before [`finish`].
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn begin(&self, payload_bytes: usize, out: &mut Vec<u8>) -> Result<(), Code> {
        if self.exchange.len() > NAME_BYTES_MAX
            || self.routing_key.len() > KEY_BYTES_MAX
            || self.properties.len() > PROPERTIES_BYTES_MAX
            || self.headers.len() > HEADERS_BYTES_MAX
        {
            return Err(Code::SettingInvalid);
        }
        let before = self.length() - self.payload.len();
        let length = before
            .checked_add(payload_bytes)
            .and_then(|length| u32::try_from(length).ok())
            .ok_or(Code::MessageTooLarge)?;
        out.reserve(padded(length as usize));
        let mut head = [0u8; ENVELOPE_BYTES];
        head[4..8].copy_from_slice(&length.to_le_bytes());
        head[8..10].copy_from_slice(&(ENVELOPE_BYTES as u16).to_le_bytes());
        head[12] = self.priority;
        head[13] = self.hops;
        head[16..24].copy_from_slice(&self.timestamp_us.to_le_bytes());
        head[24..28].copy_from_slice(&self.ttl_ms.to_le_bytes());
        head[28..32].copy_from_slice(&self.delay_ms.to_le_bytes());
        let mut at = ENVELOPE_BYTES;
        let mut short = |slot: usize, part: &[u8]| {
            head[slot..slot + 2].copy_from_slice(&(at as u16).to_le_bytes());
            head[slot + 2..slot + 4].copy_from_slice(&(part.len() as u16).to_le_bytes());
            at += part.len();
        };
        short(32, self.exchange);
        short(36, self.routing_key);
        let mut long = |slot: usize, bytes: usize| {
            head[slot..slot + 4].copy_from_slice(&(at as u32).to_le_bytes());
            head[slot + 4..slot + 8].copy_from_slice(&(bytes as u32).to_le_bytes());
            at += bytes;
        };
        long(40, self.properties.len());
        long(48, self.headers.len());
        long(56, payload_bytes);
        out.extend_from_slice(&head);
        for part in [
            self.exchange,
            self.routing_key,
            self.properties,
            self.headers,
        ] {
            out.extend_from_slice(part);
        }
        Ok(())
    }
}

/// Ends the message that begins at `start` of `out` and has its whole payload: writes its checksum and
/// appends its padding.
pub fn finish(out: &mut Vec<u8>, start: usize) {
    let crc = checksum::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + padded(out.len() - start), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let parts = MessageParts {
            exchange: b"shop",
            routing_key: b"order.7.paid",
            headers: b"hh",
            payload: b"hello",
            priority: 3,
            timestamp_us: 5,
            ttl_ms: 6,
            delay_ms: 7,
            ..MessageParts::default()
        };
        parts.write(&mut out).expect("within limits");
        out
    }

    #[test]
    fn parts_survive() {
        let bytes = sample();
        assert_eq!(bytes.len() % 16, 0);
        let envelope = open(&bytes).expect("well formed");
        assert_eq!(envelope.check_crc(), Ok(()));
        assert_eq!(envelope.exchange(), b"shop");
        assert_eq!(envelope.routing_key(), b"order.7.paid");
        assert_eq!(envelope.address(), b"shoporder.7.paid");
        assert_eq!(envelope.headers(), b"hh");
        assert_eq!(envelope.payload(), b"hello");
        assert_eq!(
            (
                envelope.priority(),
                envelope.timestamp_us(),
                envelope.ttl_ms(),
                envelope.delay_ms()
            ),
            (3, 5, 6, 7)
        );
        let terms = Terms {
            ttl_ms: 6,
            delay_ms: 7,
            priority: 3,
        };
        assert_eq!((terms_of(&bytes), envelope.terms()), (Some(terms), terms));
        assert_eq!(terms_of(&bytes[..31]), None);
        assert_eq!(length_of(&bytes), Some(envelope.length()));
    }

    /// `sample` as a later version might write it: with `more` bytes of fields before the tail.
    fn later(more: u16) -> Vec<u8> {
        let mut bytes = sample();
        bytes.truncate(open(&bytes).expect("well formed").length());
        let mut tail = bytes.split_off(ENVELOPE_BYTES);
        let mut add = |at: usize| {
            let value = u16::from_le_bytes([bytes[at], bytes[at + 1]]) + more;
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        [4, 8, 32, 36, 40, 48, 56].into_iter().for_each(&mut add);
        bytes.resize(ENVELOPE_BYTES + usize::from(more), 0xee);
        bytes.append(&mut tail);
        let crc = checksum::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn fields_of_later_versions_are_skipped() {
        for more in [0, 16, 32, 944, 960] {
            let bytes = later(more);
            let envelope = open(&bytes).expect("later fields are skipped");
            assert_eq!(envelope.check_crc(), Ok(()));
            assert_eq!(envelope.address(), b"shoporder.7.paid");
            assert_eq!(envelope.payload(), b"hello");
        }
        for more in [1, 8, 976] {
            assert!(open(&later(more)).is_err(), "{more} more bytes passed");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let bytes = sample();
        let length = open(&bytes).expect("well formed").length();
        for bit in 0..length * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let seen = open(&bad).and_then(|envelope| envelope.check_crc());
            assert!(seen.is_err(), "bit {bit} passed");
        }
        for len in 0..length {
            let seen = open(&bytes[..len]).and_then(|envelope| envelope.check_crc());
            assert!(seen.is_err(), "cut at {len} passed");
        }
    }
}
