//! Policies: what they are made from, what is said of them, and the client's calls that set and remove
//! them. Does not know how they are kept to.

use std::time::Duration;

use bytes::Bytes;
use ringpost_wire::control::{Body, PolicySet};
use ringpost_wire::limits::PATTERN_BYTES_MAX;
use ringpost_wire::{Code, FrameKind};

use crate::admin::{check_length, encoded, ensured, removed, text, unreadable};
use crate::connection::Answer;
use crate::{ByteSize, Client, Ensured, HeaderValue, Headers, Overflow, Removed, Result};

/// What a policy is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AppliesTo {
    /// Queues.
    Queues,
    /// Exchanges.
    Exchanges,
    /// Queues and exchanges.
    All,
}

impl AppliesTo {
    const fn to_wire(self) -> u8 {
        match self {
            Self::Queues => 1,
            Self::Exchanges => 2,
            Self::All => 3,
        }
    }

    fn from_wire(number: u8) -> Result<Self> {
        match number {
            1 => Ok(Self::Queues),
            2 => Ok(Self::Exchanges),
            3 => Ok(Self::All),
            _ => Err(unreadable(Code::BodyMalformed)),
        }
    }
}

/// Options for all queues and exchanges whose names match a pattern, whenever they were declared.
///
/// ```
/// use std::time::Duration;
/// use ringpost_client::{Overflow, Policy};
///
/// let policy = Policy::queues("ticks", r"^ticks\.")
///     .messages_max(10_000)
///     .overflow(Overflow::DropHead)
///     .message_ttl(Duration::from_secs(60))
///     .priority(5);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Policy {
    name: String,
    pattern: String,
    applies_to: AppliesTo,
    priority: i32,
    options: Headers,
}

impl Policy {
    /// A policy that sets nothing yet. The pattern is a regular expression, found anywhere in a name
    /// unless it says otherwise: `^orders$` is about the queue `orders` alone.
    pub fn new(applies_to: AppliesTo, name: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pattern: pattern.into(),
            applies_to,
            priority: 0,
            options: Headers::new(),
        }
    }

    /// A policy about queues.
    pub fn queues(name: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self::new(AppliesTo::Queues, name, pattern)
    }

    /// A policy about exchanges.
    pub fn exchanges(name: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self::new(AppliesTo::Exchanges, name, pattern)
    }

    /// Of several policies that have an option the one of the highest priority counts, −1,000 to 1,000;
    /// 0 unless asked otherwise. Of equal ones the last by name does.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Most messages, ready or not settled.
    pub fn messages_max(self, messages: u64) -> Self {
        self.with("x-max-length", whole(messages))
    }

    /// Most bytes of messages, ready or not settled.
    pub fn bytes_max(self, bytes: ByteSize) -> Self {
        self.with("x-max-length-bytes", whole(bytes.bytes()))
    }

    /// See [`crate::QueueConfig::overflow`].
    pub fn overflow(self, overflow: Overflow) -> Self {
        self.with("x-overflow", overflow.word())
    }

    /// See [`crate::QueueConfig::message_ttl`]. For messages that are there already it begins now.
    pub fn message_ttl(self, ttl: Duration) -> Self {
        self.with("x-message-ttl", whole_ms(ttl))
    }

    /// See [`crate::QueueConfig::expires`].
    pub fn expires(self, unused: Duration) -> Self {
        self.with("x-expires", whole_ms(unused))
    }

    /// See [`crate::QueueConfig::delivery_limit`].
    pub fn delivery_limit(self, returns: u32) -> Self {
        self.with("x-delivery-limit", returns)
    }

    /// See [`crate::QueueConfig::dead_letter`].
    pub fn dead_letter(self, exchange: &str) -> Self {
        self.with("x-dead-letter-exchange", exchange)
    }

    /// See [`crate::QueueConfig::dead_letter_routing_key`].
    pub fn dead_letter_routing_key(self, key: &str) -> Self {
        self.with("x-dead-letter-routing-key", key)
    }

    /// See [`crate::QueueConfig::consumer_hold_max`]; for consumers that come from now on.
    pub fn consumer_hold_max(self, most: Duration) -> Self {
        self.with("x-consumer-hold-max", whole_ms(most))
    }

    /// See [`crate::ExchangeConfig::alternate`].
    pub fn alternate(self, exchange: &str) -> Self {
        self.with("x-alternate-exchange", exchange)
    }

    /// Any option, by the name that it has as an argument of a declaration.
    pub fn with<'v>(mut self, name: &str, value: impl Into<HeaderValue<'v>>) -> Self {
        self.options = self.options.with(name, value);
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pattern.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// What it is about.
    #[must_use]
    pub const fn applies_to(&self) -> AppliesTo {
        self.applies_to
    }

    /// Its priority.
    #[must_use]
    pub const fn rank(&self) -> i32 {
        self.priority
    }

    /// What it sets, by the names of arguments.
    #[must_use]
    pub const fn options(&self) -> &Headers {
        &self.options
    }
}

/// Beyond what a broker takes it says so.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn whole_ms(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn policy_info(body: &Bytes) -> Result<Policy> {
    let info = PolicySet::decode(body).map_err(unreadable)?;
    Ok(Policy {
        name: text(info.name),
        pattern: text(info.pattern),
        applies_to: AppliesTo::from_wire(info.applies)?,
        priority: info.priority as i32,
        options: Headers::from_encoded(Bytes::copy_from_slice(info.options))?,
    })
}

/// Policies.
impl Client {
    /// Sees to it that there is such a policy, instead of one of the same name that says something else.
    /// Queues and exchanges that match keep to it when this returns, those that are declared later too.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] for a pattern or option that is not allowed; else as the broker or
    /// the network says.
    pub async fn set_policy(&self, policy: &Policy) -> Result<Ensured> {
        check_length("the name", &policy.name, ringpost_wire::NAME_BYTES_MAX)?;
        check_length("the pattern", &policy.pattern, PATTERN_BYTES_MAX)?;
        policy.options.check()?;
        let body = encoded(&PolicySet {
            priority: policy.priority as u32,
            applies: policy.applies_to.to_wire(),
            flags: 0,
            reserved: 0,
            name: policy.name.as_bytes(),
            pattern: policy.pattern.as_bytes(),
            options: policy.options.as_encoded(),
        })?;
        self.ask(FrameKind::PolicySet, Answer::Done, &body)
            .await
            .map(|reply| ensured(&reply))
    }

    /// Deletes a policy: what it set is as declared again, or as other policies say.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn delete_policy(&self, name: &str) -> Result<Removed> {
        let reply = self
            .ask_about(FrameKind::PolicyDelete, Answer::Done, name)
            .await;
        removed(reply, Code::PolicyUnknown)
    }

    /// All policies of the tenant.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn policies(&self) -> Result<Vec<Policy>> {
        self.list(FrameKind::PolicyList, policy_info).await
    }
}
