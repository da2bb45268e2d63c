//! What a stream keeps, and what a reader of it asks for: settings read from their arguments.
//! Does not know how they are kept.
//!
//! | argument of a consumer | what | values |
//! |---|---|---|
//! | `x-stream-offset` | where to begin | `first`, `last`, `next` (default), an offset, a timestamp |
//! | `x-stream-group` | the group whose offset it moves | 1 to 255 bytes |
//! | `x-stream-filter` | which messages | a condition |
//! | `x-stream-filter-body` | whether it looks at JSON bodies | |
//! | `x-stream-member` | who it is, in every lane of the stream | 1 to 2^60 |
//! | `x-stream-rate` | most messages a second | 1 to 10,000,000 |
//! | `x-stream-speed` | of the pace at which they came, in percent | 1 to 100,000 |

use std::ops::RangeInclusive;

use ringpost_wire::control::is_name;
use ringpost_wire::limits::{FILTER_BYTES_MAX, NAME_BYTES_MAX};
use ringpost_wire::table::Value;

use crate::data::queue::Traits;
use crate::data::route::Condition;
use crate::options::Options;

/// How old a message may become in a stream, in ms: a second to ten years.
pub const MAX_AGE_MS: RangeInclusive<u64> = 1_000..=315_360_000_000;
/// Messages a second that a reader may ask for.
pub const RATES: RangeInclusive<u64> = 1..=10_000_000;
/// Percents of the original pace that a reader may ask for.
pub const SPEEDS: RangeInclusive<u64> = 1..=100_000;
/// Largest offset that may be asked for.
const OFFSET_MAX: u64 = 1 << 60;
/// Most lanes of a stream.
pub const LANES_MAX: u8 = 64;
/// Numbers that members of a group may call themselves by; those above are the broker's.
pub const MEMBERS: RangeInclusive<u64> = 1..=1 << 60;

/// What makes a queue a stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct StreamSettings {
    /// How old a message may become, in ms; 0 = as old as it likes.
    pub max_age_ms: u64,
    /// Lanes of the stream, of which a queue is one; 0 = it is no stream of several.
    pub lanes: u8,
}

/// Where a reader begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Start {
    /// With the first message that is retained.
    First,
    /// With the last one that is there.
    Last,
    /// With the next one that is published.
    Next,
    /// With this one, or the first that is there from it on; with the next one if it is beyond that.
    Offset(u64),
    /// With the first one that arrived at this time or later, or some that arrived shortly before: wall
    /// clock in seconds since 1970.
    Time(u64),
}

/// How fast it reads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pace {
    /// At most so many messages a second.
    Rate(u32),
    /// As they came, in percent of that speed.
    Original(u32),
}

/// What a reader asks for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reading {
    /// Where it begins, if it has no group or that is new.
    pub start: Start,
    /// The group that it is a member of.
    pub group: Option<Box<[u8]>>,
    /// Who it is among the members of the group; 0 = its connection.
    pub member: u64,
    /// The condition of what it gets, checked.
    pub filter: Option<Box<[u8]>>,
    /// How fast.
    pub pace: Option<Pace>,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            start: Start::Next,
            group: None,
            member: 0,
            filter: None,
            pace: None,
        }
    }
}

/// Reads the arguments of a consumer: what any may ask for, and what only readers of streams may, if it
/// asks for some of that.
///
/// # Errors
/// What is wrong with them.
//= P-50, P-82
pub fn read_consumer(arguments: &[u8]) -> Result<(Traits, Option<Box<Reading>>), String> {
    if arguments.is_empty() {
        return Ok((Traits::default(), None));
    }
    let mut options = Options::of(arguments)?;
    let traits = Traits::take(&mut options)?;
    let reading = Reading::take(&mut options)?;
    options.done("a consumer")?;
    Ok((traits, reading.map(Box::new)))
}

impl Start {
    /// Reads a start.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(options: &mut Options<'_>) -> Result<Option<Self>, String> {
        let Some(value) = options.value("x-stream-offset") else {
            return Ok(None);
        };
        let start = match value {
            Value::Timestamp(seconds) if seconds <= OFFSET_MAX => Some(Self::Time(seconds)),
            Value::Text(b"first") => Some(Self::First),
            Value::Text(b"last") => Some(Self::Last),
            Value::Text(b"next") => Some(Self::Next),
            other => other
                .as_integer()
                .and_then(|offset| u64::try_from(offset).ok())
                .filter(|offset| (1..=OFFSET_MAX).contains(offset))
                .map(Self::Offset),
        };
        let refusal = || {
            "x-stream-offset is not first, last, next, an offset from 1 to 2^60 or a timestamp"
                .to_owned()
        };
        start.map(Some).ok_or_else(refusal)
    }
}

impl Reading {
    fn take(options: &mut Options<'_>) -> Result<Option<Self>, String> {
        let start = Start::take(options)?;
        let group = options.text("x-stream-group", NAME_BYTES_MAX)?;
        let member = options.number("x-stream-member", MEMBERS)?;
        let filter = options.text("x-stream-filter", FILTER_BYTES_MAX)?;
        let with_body = options.flag("x-stream-filter-body")?;
        let rate = options.number("x-stream-rate", RATES)?;
        let speed = options.number("x-stream-speed", SPEEDS)?;
        if group.is_some_and(|name| !is_name(name)) {
            return Err(
                "x-stream-group is no name: 1 to 255 bytes of UTF-8 without control characters, not \
                 starting with amq."
                    .to_owned(),
            );
        }
        if member.is_some() && group.is_none() {
            return Err("x-stream-member is of use only with x-stream-group".to_owned());
        }
        if let Some(text) = filter {
            Condition::check(text, with_body)?;
        } else if with_body {
            return Err("x-stream-filter-body is of use only with x-stream-filter".to_owned());
        }
        let pace = match (rate, speed) {
            (Some(_), Some(_)) => {
                return Err("x-stream-rate and x-stream-speed exclude each other".to_owned());
            }
            (Some(rate), None) => Some(Pace::Rate(rate as u32)),
            (None, Some(speed)) => Some(Pace::Original(speed as u32)),
            (None, None) => None,
        };
        let is_asked = start.is_some() || group.is_some() || filter.is_some() || pace.is_some();
        Ok(is_asked.then(|| Self {
            start: start.unwrap_or(Start::Next),
            group: group.map(Into::into),
            member: member.unwrap_or(0),
            filter: filter.map(Into::into),
            pace,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::table::TableWriter;

    fn read(entries: &[(&str, Value<'_>)]) -> Result<(Traits, Option<Box<Reading>>), String> {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        read_consumer(&bytes)
    }

    //= P-82
    #[test]
    fn everything_that_a_reader_may_ask_for_is_read() {
        let (traits, reading) = read(&[
            ("x-priority", Value::I8(3)),
            ("x-stream-offset", Value::Timestamp(1_700_000_000)),
            ("x-stream-group", Value::Text(b"billing")),
            ("x-stream-member", Value::I64(1 << 60)),
            ("x-stream-filter", Value::Text(b"body.total > 5")),
            ("x-stream-filter-body", Value::Bool(true)),
            ("x-stream-speed", Value::I32(200)),
        ])
        .expect("it is right");
        assert_eq!(traits.priority, 3);
        let expected = Reading {
            start: Start::Time(1_700_000_000),
            group: Some(b"billing"[..].into()),
            member: 1 << 60,
            filter: Some(b"body.total > 5"[..].into()),
            pace: Some(Pace::Original(200)),
        };
        assert_eq!(reading.as_deref(), Some(&expected));
        assert_eq!(read(&[]), Ok((Traits::default(), None)));
        assert_eq!(
            read(&[("x-weight", Value::I8(2))]).map(|read| read.1),
            Ok(None)
        );
        for (value, start) in [
            (Value::Text(b"first"), Start::First),
            (Value::Text(b"last"), Start::Last),
            (Value::Text(b"next"), Start::Next),
            (Value::I8(1), Start::Offset(1)),
            (Value::I64(1 << 60), Start::Offset(1 << 60)),
        ] {
            let reading = read(&[("x-stream-offset", value)]).expect("it is right").1;
            assert_eq!(reading.expect("it was asked for").start, start);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let offset =
            "x-stream-offset is not first, last, next, an offset from 1 to 2^60 or a timestamp";
        for (entries, reason) in [
            (&[("x-stream-offset", Value::Text(b"begin"))][..], offset),
            (&[("x-stream-offset", Value::I8(0))], offset),
            (&[("x-stream-offset", Value::I8(-1))], offset),
            (&[("x-stream-offset", Value::I64((1 << 60) + 1))], offset),
            (&[("x-stream-offset", Value::Bool(true))], offset),
            (
                &[("x-stream-group", Value::Text(b""))],
                "x-stream-group is no name: 1 to 255 bytes of UTF-8 without control characters, not \
                 starting with amq.",
            ),
            (
                &[("x-stream-group", Value::Text(&[b'g'; 256]))],
                "x-stream-group has 256 bytes, at most 255 are allowed",
            ),
            (
                &[("x-stream-member", Value::I8(1))],
                "x-stream-member is of use only with x-stream-group",
            ),
            (
                &[
                    ("x-stream-group", Value::Text(b"g")),
                    ("x-stream-member", Value::I8(0)),
                ],
                "x-stream-member is 0, not 1 to 1152921504606846976",
            ),
            (
                &[("x-stream-rate", Value::I8(0))],
                "x-stream-rate is 0, not 1 to 10000000",
            ),
            (
                &[("x-stream-speed", Value::I32(100_001))],
                "x-stream-speed is 100001, not 1 to 100000",
            ),
            (
                &[
                    ("x-stream-rate", Value::I8(1)),
                    ("x-stream-speed", Value::I8(1)),
                ],
                "x-stream-rate and x-stream-speed exclude each other",
            ),
            (
                &[("x-stream-filter-body", Value::Bool(true))],
                "x-stream-filter-body is of use only with x-stream-filter",
            ),
        ] {
            assert_eq!(read(entries), Err(reason.to_owned()));
        }
        let unfit = read(&[("x-stream-filter", Value::Text(b"body.total >"))]);
        assert!(unfit.is_err());
        let without = read(&[("x-stream-filter", Value::Text(b"body.total > 1"))]);
        assert_eq!(
            without,
            Err("body.total is looked at only with x-stream-filter-body true".to_owned())
        );
    }
}
