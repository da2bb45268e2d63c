//! AMQP 0-9-1 properties of class `basic`, as messages carry them beside their headers (P-25).
//! Does not know what a property means, and never allocates to read.
//!
//! ```text
//! flags u16, one bit per property from the highest down │ the values of those whose bit is set
//! text = length u8, bytes      octet = u8      time = u64, seconds since 1970
//! ```
//!
//! The property `headers` has its own part of a message and no value here. Its bit may be set all the same:
//! that the publisher wrote a table of headers, if only an empty one. As in field tables, integers are
//! big-endian.

use crate::Code;

/// The bit of the property `headers`.
pub const HEADERS_FLAG: u16 = 1 << 13;

/// A property.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Property {
    /// MIME type of the payload.
    ContentType = 15,
    /// MIME encoding of the payload.
    ContentEncoding = 14,
    /// 1 is volatile, 2 is durable; the queue decides, not this.
    DeliveryMode = 12,
    /// As AMQP clients set it; the broker looks at that of the envelope.
    Priority = 11,
    /// What the message answers or belongs to.
    CorrelationId = 10,
    /// Where an answer goes.
    ReplyTo = 9,
    /// As AMQP clients set it; the broker looks at that of the envelope.
    Expiration = 8,
    /// The application's name for the message.
    MessageId = 7,
    /// Seconds since 1970.
    Timestamp = 6,
    /// The application's type of message.
    Type = 5,
    /// Who published it.
    UserId = 4,
    /// Which application published it.
    AppId = 3,
    /// Not used.
    ClusterId = 2,
}

impl Property {
    /// Every property, in the order of their values: from the highest bit down.
    pub const ALL: [Self; 13] = [
        Self::ContentType,
        Self::ContentEncoding,
        Self::DeliveryMode,
        Self::Priority,
        Self::CorrelationId,
        Self::ReplyTo,
        Self::Expiration,
        Self::MessageId,
        Self::Timestamp,
        Self::Type,
        Self::UserId,
        Self::AppId,
        Self::ClusterId,
    ];

    /// The word for it in arguments and expressions.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ContentType => "content_type",
            Self::ContentEncoding => "content_encoding",
            Self::DeliveryMode => "delivery_mode",
            Self::Priority => "priority",
            Self::CorrelationId => "correlation_id",
            Self::ReplyTo => "reply_to",
            Self::Expiration => "expiration",
            Self::MessageId => "message_id",
            Self::Timestamp => "timestamp",
            Self::Type => "type",
            Self::UserId => "user_id",
            Self::AppId => "app_id",
            Self::ClusterId => "cluster_id",
        }
    }

    /// Its bit.
    #[must_use]
    pub const fn flag(self) -> u16 {
        1 << self as u8
    }
}

/// A property's value, read in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PropertyValue<'a> {
    /// At most 255 bytes, text by convention.
    Text(&'a [u8]),
    /// A small number, or seconds since 1970.
    Number(u64),
}

/// The properties of a message, checked when they were parsed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Properties<'a> {
    flags: u16,
    values: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Checks `bytes`, which may be empty, down to the last value.
    ///
    /// # Errors
    /// [`Code::SettingInvalid`] if they are cut short or too long, or have a bit of no property.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Code> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let (flags, values) = bytes.split_first_chunk().ok_or(Code::SettingInvalid)?;
        let properties = Self {
            flags: u16::from_be_bytes(*flags),
            values,
        };
        if properties.is_whole() {
            Ok(properties)
        } else {
            Err(Code::SettingInvalid)
        }
    }

    /// Properties with these flags and values, which are not looked at.
    #[must_use]
    pub const fn of(flags: u16, values: &'a [u8]) -> Self {
        Self { flags, values }
    }

    /// Whether every flag is known and there is a value for each and nothing more.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let known = Property::ALL
            .iter()
            .fold(HEADERS_FLAG, |all, one| all | one.flag());
        let mut entries = self.entries();
        while entries.next().is_some() {}
        self.flags & !known == 0 && entries.flags & !HEADERS_FLAG == 0 && entries.rest.is_empty()
    }

    /// The bits of those that are there, [`HEADERS_FLAG`] among them.
    #[must_use]
    pub const fn flags(&self) -> u16 {
        self.flags
    }

    /// Those that are there, in order.
    #[must_use]
    pub const fn entries(&self) -> Entries<'a> {
        Entries {
            flags: self.flags,
            rest: self.values,
            at: 0,
        }
    }

    /// The value of one.
    #[must_use]
    pub fn get(&self, property: Property) -> Option<PropertyValue<'a>> {
        if self.flags & property.flag() == 0 {
            return None;
        }
        let mut entries = self.entries();
        entries
            .find(|(there, _)| *there == property)
            .map(|(_, value)| value)
    }
}

/// The properties that are there.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    /// Those that are left.
    flags: u16,
    rest: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (Property, PropertyValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let property = *Property::ALL.get(self.at)?;
            if self.flags & property.flag() == 0 {
                self.at += 1;
                continue;
            }
            let (value, rest) = match property {
                Property::DeliveryMode | Property::Priority => {
                    let (number, rest) = self.rest.split_first()?;
                    (PropertyValue::Number(u64::from(*number)), rest)
                }
                Property::Timestamp => {
                    let (raw, rest) = self.rest.split_first_chunk()?;
                    (PropertyValue::Number(u64::from_be_bytes(*raw)), rest)
                }
                _ => {
                    let (length, rest) = self.rest.split_first()?;
                    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
                    (PropertyValue::Text(text), rest)
                }
            };
            self.at += 1;
            self.flags &= !property.flag();
            self.rest = rest;
            return Some((property, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content type, priority, message id, timestamp.
    const SOME: &[u8] = b"\x88\xc0\x04text\x05\x02id\0\0\0\0\0\0\x01\x02";

    #[test]
    fn what_is_there_is_read_in_order() {
        let properties = Properties::parse(SOME).expect("sound");
        let all: Vec<_> = properties.entries().collect();
        let expect = [
            (Property::ContentType, PropertyValue::Text(b"text")),
            (Property::Priority, PropertyValue::Number(5)),
            (Property::MessageId, PropertyValue::Text(b"id")),
            (Property::Timestamp, PropertyValue::Number(258)),
        ];
        assert_eq!(all, expect);
        for (property, value) in expect {
            assert_eq!(properties.get(property), Some(value));
        }
        assert_eq!(properties.get(Property::AppId), None);
        let none = Properties::parse(b"").expect("none");
        assert_eq!(none.entries().count(), 0);
    }

    #[test]
    fn every_cut_and_every_strange_bit_is_seen() {
        for at in 1..SOME.len() {
            assert!(Properties::parse(&SOME[..at]).is_err(), "cut at {at}");
        }
        let longer = [SOME, b"\0"].concat();
        assert!(Properties::parse(&longer).is_err());
        for bit in [0_u16, 1] {
            let flags = (1_u16 << bit).to_be_bytes();
            assert!(Properties::parse(&flags).is_err(), "bit {bit}");
        }
        assert!(Properties::parse(&[0, 0]).is_ok());
        // That of the headers has no value here.
        let there = HEADERS_FLAG.to_be_bytes();
        let properties = Properties::parse(&there).expect("no value is missing");
        assert_eq!(properties.entries().count(), 0);
        assert_eq!(properties.flags(), HEADERS_FLAG);
    }
}
