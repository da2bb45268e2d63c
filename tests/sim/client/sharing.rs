//! How queues share their messages out: drawn from the seed and the name, so that a queue that is declared
//! again is the same. Does not know what a consumer then gets.

use ringpost_wire::table::{Table, TableWriter, Value};
use ringpost_wire::{Envelope, checksum};

use crate::model::GRAVES;
use crate::random::mix;
use crate::streams;

/// What a queue of a world asks for beside its limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Nothing.
    Plain,
    /// A policy.
    Policy(&'static str),
    /// One consumer at a time gets messages.
    Single,
    /// Who holds a message for too long loses it.
    Bounded,
    /// No two consumers hold messages of one key, and each key is in order.
    Groups(Key),
    /// A full one gives producers no credit.
    Blocks,
    /// It is a stream, of so many lanes.
    Stream(u8),
}

/// Where the key of a message stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// It is the routing key.
    Routing,
    /// In a header.
    Header,
}

/// The header that is the key of [`Key::Header`].
const KEY_HEADER: &str = "a";

impl Key {
    /// The key of a message, if it has one.
    #[must_use]
    pub fn of(self, envelope: &Envelope<'_>) -> Option<Vec<u8>> {
        if self == Self::Routing {
            let key = envelope.routing_key();
            return (!key.is_empty()).then(|| key.to_vec());
        }
        let headers = Table::parse(envelope.headers()).ok()?;
        let mut entries = headers.entries();
        let (_, value) = entries.find(|(name, _)| *name == KEY_HEADER.as_bytes())?;
        match value {
            Value::Text(text) => Some(text.to_vec()),
            value => Some(value.as_integer()?.to_le_bytes().to_vec()),
        }
    }
}

/// How long a consumer of a [`Sharing::Bounded`] queue may hold a message, in ms.
pub const HOLD_MAX_MS: i64 = 1_000;

impl Sharing {
    /// What the queue of this name asks for in every life of it.
    #[must_use]
    pub fn of(seed: u64, tenant: usize, queue: &str, is_slow: bool) -> Self {
        if streams::is_stream(queue) {
            return Self::Stream(streams::lanes(seed));
        }
        let name = u64::from(checksum::crc32c(queue.as_bytes()));
        match mix(seed ^ name << 8 ^ tenant as u64) % 14 {
            0 => Self::Policy("random"),
            1 => Self::Policy("weighted"),
            2 => Self::Policy("least-outstanding"),
            3 => Self::Policy("sticky"),
            4 | 5 => Self::Single,
            // Else a message may never come to anybody in time.
            6 if !is_slow => Self::Bounded,
            7 => Self::Groups(Key::Routing),
            8 => Self::Groups(Key::Header),
            9 if queue != GRAVES => Self::Blocks,
            _ => Self::Plain,
        }
    }

    /// The arguments that say so.
    #[must_use]
    pub fn arguments(self) -> Vec<u8> {
        match self {
            Self::Plain => Vec::new(),
            Self::Stream(lanes) => streams::arguments(lanes),
            Self::Policy(word) => table(&[("x-dispatch", Value::Text(word.as_bytes()))]),
            Self::Groups(key) => {
                let mut entries = vec![("x-message-groups", Value::Bool(true))];
                if key == Key::Header {
                    entries.push(("x-sticky-header", Value::Text(KEY_HEADER.as_bytes())));
                    entries.push(("x-group-ahead", Value::I64(3)));
                }
                table(&entries)
            }
            Self::Blocks => table(&[("x-overflow", Value::Text(b"block"))]),
            Self::Single => table(&[("x-single-active-consumer", Value::Bool(true))]),
            Self::Bounded => table(&[("x-consumer-hold-max", Value::I64(HOLD_MAX_MS))]),
        }
    }
}

/// The arguments of a consumer: every other one asks for a priority and a weight.
#[must_use]
pub fn standing(seed: u64, consumer: u64) -> Vec<u8> {
    let drawn = mix(seed ^ consumer << 20 ^ 0x5eed);
    if drawn.is_multiple_of(2) {
        return Vec::new();
    }
    let priority = (drawn >> 8) % 4;
    let weight = 1 + (drawn >> 16) % 100;
    table(&[
        ("x-priority", Value::I8(priority as i8 - 1)),
        ("x-weight", Value::U8(weight as u8)),
    ])
}

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().expect("a small table");
    bytes
}
