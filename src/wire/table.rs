//! AMQP 0-9-1 field tables as RabbitMQ and its clients write them: message headers and arguments.
//! Does not know which keys mean something, and never allocates to read.
//!
//! The bytes of a table are its **contents**: entries back to back, *without* the u32 length that
//! AMQP writes before a table (the envelope or body that holds the table states its length). Tables
//! nested in a table do carry that length. Unlike everything else here, integers are big-endian:
//! these bytes are AMQP's, so that a message can come from one protocol and leave by the other.
//!
//! ```text
//! table = entry*          entry = key_bytes u8, key, type u8, value
//! array = (type, value)*  nested: length u32, then the table's or array's bytes
//! ```

use crate::Code;
use crate::limits::{HEADERS_BYTES_MAX, HEADERS_COUNT_MAX, HEADERS_DEPTH_MAX};

/// One value, read in place.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value<'a> {
    /// `t`: one byte, zero is false.
    Bool(bool),
    /// `b`.
    I8(i8),
    /// `B`.
    U8(u8),
    /// `s`.
    I16(i16),
    /// `u`.
    U16(u16),
    /// `I`.
    I32(i32),
    /// `i`.
    U32(u32),
    /// `l`.
    I64(i64),
    /// `f`.
    F32(f32),
    /// `d`.
    F64(f64),
    /// `D`: `value` ÷ 10^`scale`.
    Decimal {
        /// Digits after the point.
        scale: u8,
        /// All digits.
        value: u32,
    },
    /// `S`: text by convention, any bytes by the letter.
    Text(&'a [u8]),
    /// `A`.
    Array(Array<'a>),
    /// `T`: seconds since 1970.
    Timestamp(u64),
    /// `F`.
    Table(Table<'a>),
    /// `V`: there, but without a value.
    Void,
    /// `x`: bytes that are not text.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number, whatever its width.
    #[must_use]
    pub const fn as_integer(&self) -> Option<i64> {
        match *self {
            Self::I8(value) => Some(value as i64),
            Self::U8(value) => Some(value as i64),
            Self::I16(value) => Some(value as i64),
            Self::U16(value) => Some(value as i64),
            Self::I32(value) => Some(value as i64),
            Self::U32(value) => Some(value as i64),
            Self::I64(value) => Some(value),
            _ => None,
        }
    }

    /// The floating-point number, whatever its width.
    #[must_use]
    pub const fn as_float(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value as f64),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The bytes of a text.
    #[must_use]
    pub const fn as_text(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Text(value) => Some(value),
            _ => None,
        }
    }

    /// The truth value.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Whether both say the same to a headers exchange: integers of any width by their value,
    /// floats of either width by theirs, everything else by type and value, tables in order (P-66).
    #[must_use]
    pub fn is_same(&self, other: &Value<'_>) -> bool {
        if let (Some(left), Some(right)) = (self.as_integer(), other.as_integer()) {
            return left == right;
        }
        if let (Some(left), Some(right)) = (self.as_float(), other.as_float()) {
            return left == right;
        }
        match (self, other) {
            // Both were parsed, so this nests no deeper than HEADERS_DEPTH_MAX.
            (Self::Table(left), Value::Table(right)) => left.is_same(right),
            (Self::Array(left), Value::Array(right)) => {
                let (mut left, mut right) = (left.values(), right.values());
                loop {
                    match (left.next(), right.next()) {
                        (None, None) => return true,
                        (Some(left), Some(right)) if left.is_same(&right) => {}
                        _ => return false,
                    }
                }
            }
            (left, right) => left == right,
        }
    }

    /// Splits the value that starts `bytes` from what follows; nested ones are taken as they are.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (kind, rest) = bytes.split_first()?;
        Some(match *kind {
            b't' => fixed(rest).map(|([byte], rest)| (Self::Bool(byte != 0), rest))?,
            b'b' => fixed(rest).map(|(raw, rest)| (Self::I8(i8::from_be_bytes(raw)), rest))?,
            b'B' => fixed(rest).map(|([byte], rest)| (Self::U8(byte), rest))?,
            b's' => fixed(rest).map(|(raw, rest)| (Self::I16(i16::from_be_bytes(raw)), rest))?,
            b'u' => fixed(rest).map(|(raw, rest)| (Self::U16(u16::from_be_bytes(raw)), rest))?,
            b'I' => fixed(rest).map(|(raw, rest)| (Self::I32(i32::from_be_bytes(raw)), rest))?,
            b'i' => fixed(rest).map(|(raw, rest)| (Self::U32(u32::from_be_bytes(raw)), rest))?,
            b'l' => fixed(rest).map(|(raw, rest)| (Self::I64(i64::from_be_bytes(raw)), rest))?,
            b'f' => fixed(rest).map(|(raw, rest)| (Self::F32(f32::from_be_bytes(raw)), rest))?,
            b'd' => fixed(rest).map(|(raw, rest)| (Self::F64(f64::from_be_bytes(raw)), rest))?,
            b'D' => fixed(rest).map(|([scale, a, b, c, d], rest)| {
                let value = u32::from_be_bytes([a, b, c, d]);
                (Self::Decimal { scale, value }, rest)
            })?,
            b'S' => sized(rest).map(|(bytes, rest)| (Self::Text(bytes), rest))?,
            b'A' => sized(rest).map(|(bytes, rest)| (Self::Array(Array { bytes }), rest))?,
            b'T' => {
                fixed(rest).map(|(raw, rest)| (Self::Timestamp(u64::from_be_bytes(raw)), rest))?
            }
            b'F' => sized(rest).map(|(bytes, rest)| (Self::Table(Table { bytes }), rest))?,
            b'V' => (Self::Void, rest),
            b'x' => sized(rest).map(|(bytes, rest)| (Self::Bytes(bytes), rest))?,
            _ => return None,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut sized = |kind: u8, bytes: &[u8]| {
            out.push(kind);
            // A length that does not fit would be over HEADERS_BYTES_MAX, which `finish` refuses.
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(bytes);
        };
        match *self {
            Self::Text(bytes) => return sized(b'S', bytes),
            Self::Bytes(bytes) => return sized(b'x', bytes),
            Self::Array(array) => return sized(b'A', array.bytes),
            Self::Table(table) => return sized(b'F', table.bytes),
            _ => {}
        }
        let mut fixed = |kind: u8, raw: &[u8]| {
            out.push(kind);
            out.extend_from_slice(raw);
        };
        match *self {
            Self::Bool(value) => fixed(b't', &[u8::from(value)]),
            Self::I8(value) => fixed(b'b', &value.to_be_bytes()),
            Self::U8(value) => fixed(b'B', &[value]),
            Self::I16(value) => fixed(b's', &value.to_be_bytes()),
            Self::U16(value) => fixed(b'u', &value.to_be_bytes()),
            Self::I32(value) => fixed(b'I', &value.to_be_bytes()),
            Self::U32(value) => fixed(b'i', &value.to_be_bytes()),
            Self::I64(value) => fixed(b'l', &value.to_be_bytes()),
            Self::F32(value) => fixed(b'f', &value.to_be_bytes()),
            Self::F64(value) => fixed(b'd', &value.to_be_bytes()),
            Self::Decimal { scale, value } => {
                fixed(b'D', &[scale]);
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Timestamp(value) => fixed(b'T', &value.to_be_bytes()),
            Self::Void => fixed(b'V', &[]),
            Self::Text(_) | Self::Bytes(_) | Self::Array(_) | Self::Table(_) => {}
        }
    }
}

/// The first `N` bytes and what follows.
fn fixed<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (raw, rest) = bytes.split_first_chunk()?;
    Some((*raw, rest))
}

/// The bytes after a u32 length and what follows them.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = fixed(bytes)?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(length)).ok()?)
}

/// The bytes after a u8 length and what follows them.
fn short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// A table whose whole structure was checked when it was parsed.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Table<'a> {
    bytes: &'a [u8],
}

impl<'a> Table<'a> {
    /// Checks `bytes`, a table's contents without a length before it, down to its last value (P-65).
    ///
    /// # Errors
    /// [`Code::SettingInvalid`] if it is cut short, has an unknown type, nests deeper than
    /// [`HEADERS_DEPTH_MAX`] (the outermost table counts), has more than [`HEADERS_COUNT_MAX`]
    /// entries in one table or array, or is larger than [`HEADERS_BYTES_MAX`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Code> {
        check(Inside::Table(bytes))?;
        Ok(Self { bytes })
    }

    /// The entries, in the order they were written.
    #[must_use]
    pub const fn entries(&self) -> Entries<'a> {
        Entries { rest: self.bytes }
    }

    /// The value of the first entry named `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Value<'a>> {
        self.entries()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether both hold the same keys and [same](Value::is_same) values in the same order.
    #[must_use]
    pub fn is_same(&self, other: &Table<'_>) -> bool {
        let (mut left, mut right) = (self.entries(), other.entries());
        loop {
            match (left.next(), right.next()) {
                (None, None) => return true,
                (Some((a, left)), Some((b, right))) if a == b && left.is_same(&right) => {}
                _ => return false,
            }
        }
    }
}

/// An array whose whole structure was checked when it was parsed.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Array<'a> {
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Checks `bytes`, an array's values without a length before them.
    ///
    /// # Errors
    /// As [`Table::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Code> {
        check(Inside::Array(bytes))?;
        Ok(Self { bytes })
    }

    /// The values, in order.
    #[must_use]
    pub const fn values(&self) -> Values<'a> {
        Values { rest: self.bytes }
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The entries of a [`Table`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, rest) = short(self.rest)?;
        let (value, rest) = Value::split(rest)?;
        self.rest = rest;
        Some((key, value))
    }
}

/// The values of an [`Array`].
#[derive(Clone, Debug)]
pub struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (value, rest) = Value::split(self.rest)?;
        self.rest = rest;
        Some(value)
    }
}

/// What is left of a table or array that is being checked.
#[derive(Clone, Copy)]
enum Inside<'a> {
    Table(&'a [u8]),
    Array(&'a [u8]),
}

/// Walks everything inside `outermost` with a stack of its own: input never recurses.
fn check(outermost: Inside<'_>) -> Result<(), Code> {
    let (Inside::Table(bytes) | Inside::Array(bytes)) = outermost;
    if bytes.len() > HEADERS_BYTES_MAX {
        return Err(Code::SettingInvalid);
    }
    let mut stack = [(Inside::Table(&[][..]), 0_usize); HEADERS_DEPTH_MAX];
    stack[0] = (outermost, 0);
    let mut depth = 1;
    while depth > 0 {
        let (inside, count) = stack[depth - 1];
        let rest = match inside {
            Inside::Table(rest) | Inside::Array(rest) if rest.is_empty() => {
                depth -= 1;
                continue;
            }
            Inside::Table(rest) => short(rest).ok_or(Code::SettingInvalid)?.1,
            Inside::Array(rest) => rest,
        };
        let (value, rest) = Value::split(rest).ok_or(Code::SettingInvalid)?;
        if count == HEADERS_COUNT_MAX {
            return Err(Code::SettingInvalid);
        }
        let left = match inside {
            Inside::Table(_) => Inside::Table(rest),
            Inside::Array(_) => Inside::Array(rest),
        };
        stack[depth - 1] = (left, count + 1);
        let nested = match value {
            Value::Table(table) => Inside::Table(table.bytes),
            Value::Array(array) => Inside::Array(array.bytes),
            _ => continue,
        };
        if depth == HEADERS_DEPTH_MAX {
            return Err(Code::SettingInvalid);
        }
        stack[depth] = (nested, 0);
        depth += 1;
    }
    Ok(())
}

/// Appends a table's contents to the caller's buffer.
///
/// ```
/// use ringpost_wire::table::{Table, TableWriter, Value};
///
/// let mut bytes = Vec::new();
/// let mut writer = TableWriter::new(&mut bytes);
/// writer.put(b"colour", Value::Text(b"red")).put(b"size", Value::I32(7));
/// writer.finish()?;
/// assert_eq!(Table::parse(&bytes)?.get(b"size").and_then(|size| size.as_integer()), Some(7));
/// # Ok::<(), ringpost_wire::Code>(())
/// ```
#[derive(Debug)]
pub struct TableWriter<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    is_key_too_long: bool,
}

impl<'b> TableWriter<'b> {
    /// A table that starts where `out` ends.
    #[must_use]
    pub fn new(out: &'b mut Vec<u8>) -> Self {
        let start = out.len();
        Self {
            out,
            start,
            is_key_too_long: false,
        }
    }

    /// Appends an entry; limits are checked by [`TableWriter::finish`].
    pub fn put(&mut self, key: &[u8], value: Value<'_>) -> &mut Self {
        match u8::try_from(key.len()) {
            Ok(length) => {
                self.out.push(length);
                self.out.extend_from_slice(key);
                value.encode(self.out);
            }
            Err(_) => self.is_key_too_long = true,
        }
        self
    }

    /// Ends the table.
    ///
    /// # Errors
    /// [`Code::SettingInvalid`] if a key is longer than 255 bytes or a limit of [`Table::parse`] is
    /// passed; the buffer is as it was before the table then.
    pub fn finish(self) -> Result<(), Code> {
        if self.is_key_too_long || Table::parse(&self.out[self.start..]).is_err() {
            self.out.truncate(self.start);
            return Err(Code::SettingInvalid);
        }
        Ok(())
    }
}

/// Appends an array's values to the caller's buffer.
#[derive(Debug)]
pub struct ArrayWriter<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
}

impl<'b> ArrayWriter<'b> {
    /// An array that starts where `out` ends.
    #[must_use]
    pub fn new(out: &'b mut Vec<u8>) -> Self {
        let start = out.len();
        Self { out, start }
    }

    /// Appends a value; limits are checked by [`ArrayWriter::finish`].
    pub fn put(&mut self, value: Value<'_>) -> &mut Self {
        value.encode(self.out);
        self
    }

    /// Ends the array.
    ///
    /// # Errors
    /// As [`TableWriter::finish`].
    pub fn finish(self) -> Result<(), Code> {
        if Array::parse(&self.out[self.start..]).is_err() {
            self.out.truncate(self.start);
            return Err(Code::SettingInvalid);
        }
        Ok(())
    }
}
