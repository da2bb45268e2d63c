//! How a queue shares its messages out, and what a consumer asks for: settings read from their
//! arguments. Does not know consumers' credit or turns.

use std::ops::RangeInclusive;

use ringpost_wire::limits::KEY_BYTES_MAX;
use ringpost_wire::table::{Table, Value};
use ringpost_wire::{Envelope, envelope};

use crate::data::table::hash_bytes;
use crate::options::Options;

/// Priorities of consumers; 0 unless asked for.
pub const PRIORITIES: RangeInclusive<i64> = -10..=10;
/// Weights of consumers; 1 unless asked for.
pub const WEIGHTS: RangeInclusive<u64> = 1..=100;
/// How long a consumer may hold a message, in ms: a second to a day.
pub const HOLD_MAX_MS: RangeInclusive<u64> = 1_000..=86_400_000;
/// How many messages a queue with message groups looks ahead.
pub const GROUP_AHEAD: RangeInclusive<u64> = 1..=1_000_000;
/// So many unless it is told otherwise.
const AHEAD_DEFAULT: u32 = 4_096;

/// Which of the consumers with room gets the next messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, as a generator of random numbers says.
    Random,
    /// As often as its weight says.
    Weighted,
    /// The one that holds the fewest.
    LeastOutstanding,
    /// The one that got others of the same key before.
    Sticky(KeySource),
}

/// Where a message's key stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeySource {
    /// It is the routing key.
    RoutingKey,
    /// In a header: the hash of its name. A message without it has its routing key.
    Header(u64),
}

/// How a queue shares its messages out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DispatchSettings {
    /// Who is next.
    pub policy: Policy,
    /// One consumer at a time gets messages.
    pub is_single_active: bool,
    /// A consumer that holds a message for so long loses it and is closed, in ms; 0 = never.
    pub hold_max_ms: u64,
    /// No two consumers hold messages of one key, and each key is in order; only where the policy is
    /// [`Policy::Sticky`].
    pub is_grouped: bool,
    /// Most messages that were never delivered and wait for their keys; then the head waits.
    pub ahead_max: u32,
}

#[derive(Clone, Copy)]
enum Word {
    RoundRobin,
    Random,
    Weighted,
    LeastOutstanding,
    Sticky,
}

const WORDS: [(&str, Word); 5] = [
    ("round-robin", Word::RoundRobin),
    ("random", Word::Random),
    ("weighted", Word::Weighted),
    ("least-outstanding", Word::LeastOutstanding),
    ("sticky", Word::Sticky),
];

impl DispatchSettings {
    /// Those of a queue that asks for nothing.
    pub const DEFAULT: Self = Self {
        policy: Policy::RoundRobin,
        is_single_active: false,
        hold_max_ms: 0,
        is_grouped: false,
        ahead_max: AHEAD_DEFAULT,
    };

    /// Reads a queue's settings.
    ///
    /// # Errors
    /// What is wrong with them.
    //= P-51
    pub fn read(options: &mut Options<'_>) -> Result<Self, String> {
        let word = options.word("x-dispatch", &WORDS)?;
        let header = options.text("x-sticky-header", KEY_BYTES_MAX)?;
        let is_grouped = options.flag("x-message-groups")?;
        let ahead_max = options.number("x-group-ahead", GROUP_AHEAD)?;
        if ahead_max.is_some() && !is_grouped {
            return Err("x-group-ahead needs x-message-groups".to_owned());
        }
        let by_default = match is_grouped {
            true => Word::Sticky,
            false => Word::RoundRobin,
        };
        let policy = match word.unwrap_or(by_default) {
            Word::RoundRobin => Policy::RoundRobin,
            Word::Random => Policy::Random,
            Word::Weighted => Policy::Weighted,
            Word::LeastOutstanding => Policy::LeastOutstanding,
            Word::Sticky => Policy::Sticky(match header {
                None => KeySource::RoutingKey,
                Some(b"") => return Err("x-sticky-header is empty".to_owned()),
                Some(name) => KeySource::Header(hash(name)),
            }),
        };
        if header.is_some() && !matches!(policy, Policy::Sticky(_)) {
            return Err("x-sticky-header is of use only where x-dispatch is sticky".to_owned());
        }
        let hold_max_ms = options.limit("x-consumer-hold-max", HOLD_MAX_MS)?;
        let is_single_active = options.flag("x-single-active-consumer")?;
        //= P-55
        if is_grouped && !matches!(policy, Policy::Sticky(_)) {
            return Err(
                "x-message-groups goes with x-dispatch sticky: the key of a message says who gets it"
                    .to_owned(),
            );
        }
        if is_grouped && is_single_active {
            return Err(
                "x-message-groups is of no use with x-single-active-consumer: one consumer gets all \
                 keys in order"
                    .to_owned(),
            );
        }
        Ok(Self {
            policy,
            is_single_active,
            hold_max_ms: hold_max_ms.unwrap_or(0),
            is_grouped,
            ahead_max: ahead_max.map_or(AHEAD_DEFAULT, |most| most as u32),
        })
    }
}

/// What a consumer asks for beside its credit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Traits {
    /// Those with a lower one get what it has no room for.
    pub priority: i8,
    /// Its share of a queue that is shared out by weights.
    pub weight: u8,
}

impl Default for Traits {
    fn default() -> Self {
        Self {
            priority: 0,
            weight: 1,
        }
    }
}

impl Traits {
    /// Reads them among a consumer's arguments.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn take(options: &mut Options<'_>) -> Result<Self, String> {
        let priority = options.signed("x-priority", PRIORITIES)?;
        let weight = options.number("x-weight", WEIGHTS)?;
        Ok(Self {
            priority: priority.map_or(0, |priority| priority as i8),
            weight: weight.map_or(1, |weight| weight as u8),
        })
    }
}

impl KeySource {
    /// The hash of a message's key. `message` starts with it and need not hold its payload; `None` if
    /// it is no message.
    #[must_use]
    pub fn of(self, message: &[u8]) -> Option<u64> {
        let envelope = envelope::open(message).ok()?;
        let header = match self {
            Self::RoutingKey => None,
            Self::Header(name) => header_of(&envelope, name),
        };
        Some(header.unwrap_or_else(|| hash(envelope.routing_key())))
    }

    /// The hash of the key of a message where keys make groups; `None` if it is of no group.
    pub(crate) fn of_group(self, envelope: &Envelope<'_>) -> Option<u64> {
        match self {
            Self::RoutingKey => {
                let key = envelope.routing_key();
                (!key.is_empty()).then(|| hash(key))
            }
            Self::Header(name) => header_of(envelope, name),
        }
    }
}

/// The hash of the first header whose name has the hash `name`, if it is text, bytes or a number.
fn header_of(envelope: &Envelope<'_>, name: u64) -> Option<u64> {
    let table = Table::parse(envelope.headers()).ok()?;
    let (_, value) = table.entries().find(|(key, _)| hash(key) == name)?;
    match value {
        Value::Text(bytes) | Value::Bytes(bytes) => Some(hash(bytes)),
        value => Some(hash(&value.as_integer()?.to_le_bytes())),
    }
}

pub(super) fn hash(bytes: &[u8]) -> u64 {
    hash_bytes(0, bytes)
}
