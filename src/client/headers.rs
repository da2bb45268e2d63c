//! Message headers and arguments: an owned, encoded AMQP 0-9-1 field table.
//! Does not know which keys mean something to a broker.

use std::borrow::Cow;
use std::fmt;

use bytes::{Bytes, BytesMut};
use ringpost_wire::table;

use crate::{Error, ErrorKind, Result};

/// One value of a table.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum HeaderValue<'a> {
    /// A truth value.
    Bool(bool),
    /// A whole number, whatever its width on the wire; written in 64 bits.
    Integer(i64),
    /// A floating-point number; written in 64 bits.
    Float(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// Bytes that are not text.
    Bytes(&'a [u8]),
    /// Seconds since 1970.
    Timestamp(u64),
    /// There, but without a value.
    Void,
    /// Values in order, as `x-death` has them.
    Array(HeaderArray<'a>),
    /// A table in the table.
    Table(HeaderTable<'a>),
    /// A decimal number, which this view does not read.
    Other,
}

/// An array among headers: nested no deeper than a table may be (see [`Headers::from_encoded`]).
///
/// ```
/// use ringpost_client::{HeaderValue, Headers};
///
/// // One entry, "a": the array of the 8-bit numbers 1 and 2.
/// let headers = Headers::from_encoded(&b"\x01aA\0\0\0\x04b\x01b\x02"[..])?;
/// let Some(HeaderValue::Array(array)) = headers.get("a") else {
///     panic!("it is an array")
/// };
/// let numbers: Vec<_> = array.iter().collect();
/// assert_eq!(numbers, [HeaderValue::Integer(1), HeaderValue::Integer(2)]);
/// # Ok::<(), ringpost_client::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq)]
pub struct HeaderArray<'a>(table::Array<'a>);

impl<'a> HeaderArray<'a> {
    /// The values, in order.
    pub fn iter(&self) -> impl Iterator<Item = HeaderValue<'a>> + use<'a> {
        self.0.values().map(HeaderValue::read)
    }
}

impl fmt::Debug for HeaderArray<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets: sizes only.
        f.debug_struct("HeaderArray")
            .field("bytes", &self.0.as_bytes().len())
            .finish_non_exhaustive()
    }
}

/// A table among headers: nested no deeper than a table may be (see [`Headers::from_encoded`]).
///
/// ```
/// use ringpost_client::{HeaderValue, Headers};
///
/// // One entry, "t": the table with the entry "n", an 8-bit 7.
/// let headers = Headers::from_encoded(&b"\x01tF\0\0\0\x04\x01nb\x07"[..])?;
/// let Some(HeaderValue::Table(table)) = headers.get("t") else {
///     panic!("it is a table")
/// };
/// assert_eq!(table.get("n"), Some(HeaderValue::Integer(7)));
/// # Ok::<(), ringpost_client::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq)]
pub struct HeaderTable<'a>(table::Table<'a>);

impl<'a> HeaderTable<'a> {
    /// The value of the first entry named `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<HeaderValue<'a>> {
        self.0.get(key.as_bytes()).map(HeaderValue::read)
    }

    /// The entries, in the order they were written.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'a, str>, HeaderValue<'a>)> + use<'a> {
        entries(self.0)
    }
}

impl fmt::Debug for HeaderTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets: sizes only.
        f.debug_struct("HeaderTable")
            .field("bytes", &self.0.as_bytes().len())
            .finish_non_exhaustive()
    }
}

fn entries(table: table::Table<'_>) -> impl Iterator<Item = (Cow<'_, str>, HeaderValue<'_>)> {
    let entries = table.entries();
    entries.map(|(key, value)| (String::from_utf8_lossy(key), HeaderValue::read(value)))
}

impl From<bool> for HeaderValue<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for HeaderValue<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<i32> for HeaderValue<'_> {
    fn from(value: i32) -> Self {
        Self::Integer(i64::from(value))
    }
}

impl From<u32> for HeaderValue<'_> {
    fn from(value: u32) -> Self {
        Self::Integer(i64::from(value))
    }
}

impl From<f64> for HeaderValue<'_> {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl<'a> From<&'a str> for HeaderValue<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(Cow::Borrowed(value))
    }
}

impl<'a> From<&'a [u8]> for HeaderValue<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

impl<'a> HeaderValue<'a> {
    fn read(value: table::Value<'a>) -> Self {
        if let Some(number) = value.as_integer() {
            return Self::Integer(number);
        }
        if let Some(number) = value.as_float() {
            return Self::Float(number);
        }
        match value {
            table::Value::Bool(value) => Self::Bool(value),
            table::Value::Text(text) => Self::Text(String::from_utf8_lossy(text)),
            table::Value::Bytes(bytes) => Self::Bytes(bytes),
            table::Value::Timestamp(seconds) => Self::Timestamp(seconds),
            table::Value::Void => Self::Void,
            table::Value::Array(array) => Self::Array(HeaderArray(array)),
            table::Value::Table(table) => Self::Table(HeaderTable(table)),
            _ => Self::Other,
        }
    }

    fn to_wire(&self) -> Option<table::Value<'_>> {
        Some(match self {
            Self::Bool(value) => table::Value::Bool(*value),
            Self::Integer(value) => table::Value::I64(*value),
            Self::Float(value) => table::Value::F64(*value),
            Self::Text(text) => table::Value::Text(text.as_bytes()),
            Self::Bytes(bytes) => table::Value::Bytes(bytes),
            Self::Timestamp(seconds) => table::Value::Timestamp(*seconds),
            Self::Void => table::Value::Void,
            Self::Array(array) => table::Value::Array(array.0),
            Self::Table(table) => table::Value::Table(table.0),
            Self::Other => return None,
        })
    }
}

/// A table of headers or arguments, kept as the bytes that travel. Cloning it copies nothing.
///
/// ```
/// use ringpost_client::{HeaderValue, Headers};
///
/// let headers = Headers::new().with("colour", "red").with("size", 7);
/// assert_eq!(headers.get("size"), Some(HeaderValue::Integer(7)));
/// assert_eq!(headers.iter().count(), 2);
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Headers {
    bytes: Bytes,
    /// An entry was refused; found out when the table is used, so that setters stay infallible.
    is_bad: bool,
}

impl Headers {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry. A key over 255 bytes, or more than the table may hold, is reported by the
    /// call that uses the table.
    #[must_use]
    pub fn with<'v>(mut self, key: &str, value: impl Into<HeaderValue<'v>>) -> Self {
        let value = value.into();
        let mut bytes = Vec::from(BytesMut::from(self.bytes));
        let written = value.to_wire().is_some_and(|value| {
            let mut writer = table::TableWriter::new(&mut bytes);
            writer.put(key.as_bytes(), value);
            writer.finish().is_ok()
        });
        self.is_bad |= !written || table::Table::parse(&bytes).is_err();
        self.bytes = Bytes::from(bytes);
        self
    }

    /// The table that encoded bytes hold, for those who bring their own: entries back to back,
    /// without the length that AMQP writes before a table.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if they are no table or break a limit.
    pub fn from_encoded(bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        match table::Table::parse(&bytes) {
            Ok(_) => Ok(Self {
                bytes,
                is_bad: false,
            }),
            Err(code) => Err(Error::from_code(code, "these bytes are no table")),
        }
    }

    /// The encoded bytes.
    #[must_use]
    pub fn as_encoded(&self) -> &Bytes {
        &self.bytes
    }

    /// The value of the first entry named `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<HeaderValue<'_>> {
        self.iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    /// The entries, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'_, str>, HeaderValue<'_>)> {
        // What is not a table was never let in.
        entries(table::Table::parse(&self.bytes).unwrap_or_default())
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_bad {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a header has a key over 255 bytes or a value that cannot be written, or the table is over its limits",
            ));
        }
        Ok(())
    }
}

/// The value of the first entry named `key` of encoded headers; nothing if they are no table.
pub(crate) fn find<'a>(encoded: &'a [u8], key: &str) -> Option<HeaderValue<'a>> {
    table::Table::parse(encoded)
        .ok()?
        .get(key.as_bytes())
        .map(HeaderValue::read)
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets: sizes only.
        f.debug_struct("Headers")
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive() {
        let headers = Headers::new()
            .with("b", true)
            .with("i", -5_i64)
            .with("f", 1.5)
            .with("t", "text")
            .with("x", &b"\xff"[..])
            .with("when", HeaderValue::Timestamp(9))
            .with("v", HeaderValue::Void);
        assert!(headers.check().is_ok());
        let again = Headers::from_encoded(headers.as_encoded().clone()).expect("a table");
        let values: Vec<_> = again.iter().map(|(_, value)| value).collect();
        assert_eq!(
            values,
            [
                HeaderValue::Bool(true),
                HeaderValue::Integer(-5),
                HeaderValue::Float(1.5),
                HeaderValue::Text("text".into()),
                HeaderValue::Bytes(b"\xff"),
                HeaderValue::Timestamp(9),
                HeaderValue::Void,
            ]
        );
    }

    #[test]
    fn nested_values_are_opened_and_survive() {
        // "deaths": an array of one table that says why and how often, and of 5.
        let entry = b"\x06reasonS\0\0\0\x07expired\x05countb\x02";
        let mut array = vec![b'F', 0, 0, 0, entry.len() as u8];
        array.extend_from_slice(entry);
        array.extend_from_slice(b"b\x05");
        let mut bytes = b"\x06deathsA\0\0\0".to_vec();
        bytes.push(array.len() as u8);
        bytes.extend_from_slice(&array);
        let headers = Headers::from_encoded(bytes).expect("a table");
        let again = Headers::new().with("deaths", headers.get("deaths").expect("it is there"));
        assert_eq!(again, headers);
        let Some(HeaderValue::Array(deaths)) = again.get("deaths") else {
            panic!("an array")
        };
        let values: Vec<_> = deaths.iter().collect();
        let [HeaderValue::Table(table), HeaderValue::Integer(5)] = values[..] else {
            panic!("{values:?}")
        };
        let reason = HeaderValue::Text("expired".into());
        assert_eq!(table.get("reason"), Some(reason.clone()));
        let all: Vec<_> = table.iter().collect();
        assert_eq!(
            all,
            [
                ("reason".into(), reason),
                ("count".into(), HeaderValue::Integer(2))
            ]
        );
        assert_eq!(table.get("queue"), None);
    }

    #[test]
    fn bad_tables_are_refused_when_used() {
        let long = "k".repeat(256);
        assert!(Headers::new().with(&long, 1).check().is_err());
        assert!(Headers::new().with(&long[..255], 1).check().is_ok());
        assert!(
            Headers::new()
                .with("k", HeaderValue::Other)
                .check()
                .is_err()
        );
        assert!(Headers::from_encoded(&b"\x01"[..]).is_err());
    }
}
