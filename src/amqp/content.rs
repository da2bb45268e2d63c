//! The header of a content, and how its properties and headers lie in a native message (P-25). Does not
//! know where a message goes.
//!
//! ```text
//! AMQP property list   flags │ content-type, content-encoding │ headers: u32, table │ all others
//! native message       properties = flags without `headers`, and the others │ headers = the table
//! envelope             priority, expiration, timestamp and the header x-delay, as numbers
//! ```
//!
//! Nothing is decoded to be encoded again: both ways move bytes. What comes by AMQP leaves by AMQP byte
//! for byte; what a native client says only in the envelope is written as the property that says so.

use ringpost_wire::properties::{HEADERS_FLAG, Properties, Property, PropertyValue};
use ringpost_wire::{Envelope, MessageParts, Table};

use crate::code::Error;

/// The class of contents; there is no other.
const CLASS_BASIC: u16 = 60;
/// Bytes of a header before its property list.
const FIXED_BYTES: usize = 12;
/// The properties before `headers`.
const EARLY: u16 = Property::ContentType.flag() | Property::ContentEncoding.flag();
/// The header that asks for a delay, in ms.
const DELAY: &[u8] = b"x-delay";

/// The table of the property `headers`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Headers<'a> {
    /// It is not there.
    None,
    /// Its contents, which may be empty.
    Table(&'a [u8]),
}

/// A content header, read in place: every property is known to be whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContentHeader<'a> {
    /// Bytes of the body.
    pub body_bytes: u64,
    flags: u16,
    /// Values of the properties before `headers`.
    before: &'a [u8],
    headers: Headers<'a>,
    /// Values of those behind.
    after: &'a [u8],
}

/// Why a content cannot be a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// The headers are no field table, or over the limits of one (P-65).
    Headers,
    /// The property `expiration` is no whole number of milliseconds.
    Expiration,
}

impl<'a> ContentHeader<'a> {
    /// Reads the payload of a header frame.
    ///
    /// # Errors
    /// `SYNTAX_ERROR` if it is cut short or too long, or has a flag of no property; `FRAME_ERROR` if it
    /// is of another class or has a weight.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        let cut_short = Error::syntax("a content header is cut short");
        let (fixed, list) = payload.split_at_checked(FIXED_BYTES).ok_or(cut_short)?;
        if fixed[..2] != CLASS_BASIC.to_be_bytes() || fixed[2..4] != [0; 2] {
            return Err(Error::frame("a content header is of no class that has one"));
        }
        let body_bytes = u64::from_be_bytes([
            fixed[4], fixed[5], fixed[6], fixed[7], fixed[8], fixed[9], fixed[10], fixed[11],
        ]);
        let (flags, values) = list.split_first_chunk().ok_or(cut_short)?;
        let flags = u16::from_be_bytes(*flags);
        let wrong = Error::syntax("the properties of a content are not whole, or not known");
        let mut at = 0;
        for property in [Property::ContentType, Property::ContentEncoding] {
            if flags & property.flag() != 0 {
                at += 1 + usize::from(*values.get(at).ok_or(wrong)?);
            }
        }
        let (before, rest) = values.split_at_checked(at).ok_or(wrong)?;
        let (headers, after) = if flags & HEADERS_FLAG == 0 {
            (Headers::None, rest)
        } else {
            let (length, rest) = rest.split_first_chunk().ok_or(wrong)?;
            let length = u32::from_be_bytes(*length) as usize;
            let (table, after) = rest.split_at_checked(length).ok_or(wrong)?;
            (Headers::Table(table), after)
        };
        let header = Self {
            body_bytes,
            flags,
            before,
            headers,
            after,
        };
        // Both parts are whole, and nothing is behind them.
        let early = values_are_whole(flags & EARLY, before);
        let late = values_are_whole(flags & !EARLY & !HEADERS_FLAG, after);
        if early && late {
            Ok(header)
        } else {
            Err(wrong)
        }
    }

    /// The property `headers`.
    #[must_use]
    pub const fn headers(&self) -> Headers<'a> {
        self.headers
    }

    /// The value of another property.
    #[must_use]
    pub fn get(&self, property: Property) -> Option<PropertyValue<'a>> {
        let is_early = matches!(property, Property::ContentType | Property::ContentEncoding);
        match is_early {
            true => Properties::of(self.flags & EARLY, self.before).get(property),
            false => self.late().get(property),
        }
    }

    /// The properties behind `headers`.
    const fn late(&self) -> Properties<'a> {
        Properties::of(self.flags & !EARLY & !HEADERS_FLAG, self.after)
    }

    /// The message that this is, without its body and address. The bytes of its properties are put
    /// together in `scratch`.
    ///
    /// # Errors
    /// What a message cannot have.
    pub fn parts<'b>(&self, scratch: &'b mut Vec<u8>) -> Result<MessageParts<'b>, Unfit>
    where
        'a: 'b,
    {
        self.parts_with(None, scratch)
    }

    /// The same with another `reply-to`, if one is given and it has one.
    ///
    /// # Errors
    /// As [`Self::parts`].
    ///
    /// # Panics
    /// If `reply_to` is longer than 255 bytes.
    pub fn parts_with<'b>(
        &self,
        reply_to: Option<&[u8]>,
        scratch: &'b mut Vec<u8>,
    ) -> Result<MessageParts<'b>, Unfit>
    where
        'a: 'b,
    {
        let headers: &[u8] = match self.headers {
            Headers::None => &[],
            Headers::Table(table) => table,
        };
        let table = Table::parse(headers).map_err(|_| Unfit::Headers)?;
        // That there are headers is said only where nobody could see it.
        let is_empty = self.headers == Headers::Table(&[]);
        let flags = match is_empty {
            true => self.flags,
            false => self.flags & !HEADERS_FLAG,
        };
        scratch.clear();
        if flags != 0 {
            scratch.extend_from_slice(&flags.to_be_bytes());
            scratch.extend_from_slice(self.before);
            match reply_to {
                None => scratch.extend_from_slice(self.after),
                Some(reply_to) => {
                    for (property, value) in self.late().entries() {
                        let value = match property {
                            Property::ReplyTo => PropertyValue::Text(reply_to),
                            _ => value,
                        };
                        put(scratch, property, value);
                    }
                }
            }
        }
        let mut parts = MessageParts {
            headers,
            ..MessageParts::default()
        };
        if let Some(PropertyValue::Number(priority)) = self.get(Property::Priority) {
            parts.priority = priority as u8;
        }
        if let Some(PropertyValue::Number(seconds)) = self.get(Property::Timestamp) {
            // What does not fit stands in the property all the same.
            parts.timestamp_us = seconds.checked_mul(1_000_000).unwrap_or(0);
        }
        if let Some(PropertyValue::Text(text)) = self.get(Property::Expiration) {
            parts.ttl_ms = milliseconds(text).ok_or(Unfit::Expiration)?.max(1);
        }
        let delay = table.get(DELAY).and_then(|delay| delay.as_integer());
        if let Some(delay) = delay {
            parts.delay_ms = u32::try_from(delay.max(0)).unwrap_or(u32::MAX);
        }
        parts.properties = scratch;
        Ok(parts)
    }
}

/// Whether `values` are those of `flags` and nothing more.
fn values_are_whole(flags: u16, values: &[u8]) -> bool {
    if flags == 0 {
        return values.is_empty();
    }
    let properties = Properties::of(flags, values);
    properties.is_whole()
}

/// A whole number of milliseconds; what is more than fits is the most.
fn milliseconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = text.iter().fold(0u64, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    });
    Some(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Appends the payload of the header frame of a message, of which the first piece may be all there is.
pub fn encode(message: &Envelope<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&CLASS_BASIC.to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(message.payload_bytes() as u64).to_be_bytes());
    let properties = Properties::parse(message.properties()).unwrap_or_default();
    let headers = message.headers();
    let at = out.len();
    out.extend_from_slice(&[0; 2]);
    let mut flags = properties.flags();
    if !headers.is_empty() {
        flags |= HEADERS_FLAG;
    }
    let has_headers = flags & HEADERS_FLAG != 0;
    // What only the envelope says. Those of AMQP clients say it in both places.
    let lacks = |property: Property| properties.flags() & property.flag() == 0;
    let priority =
        (message.priority() > 0 && lacks(Property::Priority)).then(|| message.priority());
    let expiration =
        (message.ttl_ms() > 0 && lacks(Property::Expiration)).then(|| message.ttl_ms());
    let seconds = message.timestamp_us() / 1_000_000;
    let timestamp = (seconds > 0 && lacks(Property::Timestamp)).then_some(seconds);
    let put_headers = |out: &mut Vec<u8>| {
        if has_headers {
            let length = u32::try_from(headers.len()).expect("headers are bounded");
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(headers);
        }
    };
    let mut entries = properties.entries();
    let mut next = entries.next();
    // In the order of the list, which is that of the flags from the highest down.
    for property in Property::ALL {
        if property == Property::DeliveryMode {
            put_headers(out);
        }
        if let Some((there, value)) = next
            && there == property
        {
            put(out, property, value);
            next = entries.next();
            continue;
        }
        match property {
            Property::Priority => {
                if let Some(priority) = priority {
                    flags |= property.flag();
                    out.push(priority);
                }
            }
            Property::Expiration => {
                if let Some(ms) = expiration {
                    flags |= property.flag();
                    put_number(out, ms);
                }
            }
            Property::Timestamp => {
                if let Some(seconds) = timestamp {
                    flags |= property.flag();
                    out.extend_from_slice(&seconds.to_be_bytes());
                }
            }
            _ => {}
        }
    }
    out[at..at + 2].copy_from_slice(&flags.to_be_bytes());
}

fn put(out: &mut Vec<u8>, property: Property, value: PropertyValue<'_>) {
    match (property, value) {
        (Property::DeliveryMode | Property::Priority, PropertyValue::Number(number)) => {
            out.push(number as u8);
        }
        (_, PropertyValue::Number(number)) => out.extend_from_slice(&number.to_be_bytes()),
        (_, PropertyValue::Text(text)) => {
            out.push(u8::try_from(text.len()).expect("it was read with one octet"));
            out.extend_from_slice(text);
        }
    }
}

/// A short string of a number's digits.
fn put_number(out: &mut Vec<u8>, number: u32) {
    let at = out.len();
    out.push(0);
    let mut digits = [0u8; 10];
    let mut first = digits.len();
    let mut left = number;
    loop {
        first -= 1;
        digits[first] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
    out[at] = (digits.len() - first) as u8;
}
