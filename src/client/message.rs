//! A message to be published. Does not know producers or connections.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringpost_wire::{self as wire, MessageParts};

use crate::{Error, ErrorKind, Headers, Result};

/// A message to be published: a routing key, a payload and what is said about it.
///
/// Keys and payloads are [`Bytes`]: `&'static str`, `String`, `Vec<u8>` and `Bytes` are taken
/// without a copy, and cloning a message copies none of them.
///
/// ```
/// use std::time::Duration;
/// use ringpost_client::{Headers, Message};
///
/// let message = Message::new("order.7.paid", "hello")
///     .priority(3)
///     .ttl(Duration::from_secs(60))
///     .headers(Headers::new().with("currency", "EUR"));
/// assert_eq!(message.payload().as_ref(), b"hello");
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Message {
    routing_key: Bytes,
    payload: Bytes,
    properties: Bytes,
    headers: Headers,
    timestamp_us: u64,
    ttl_ms: u32,
    delay_ms: u32,
    priority: u8,
}

impl Message {
    /// A message.
    #[must_use]
    pub fn new(routing_key: impl Into<Bytes>, payload: impl Into<Bytes>) -> Self {
        Self {
            routing_key: routing_key.into(),
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// Sets the headers, which a `headers` exchange routes by and consumers read.
    #[must_use]
    pub fn headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// Sets the priority, 0 is the lowest and the default. Queues that have priorities
    /// ([`QueueConfig::priorities`](crate::QueueConfig::priorities)) deliver the highest first; others
    /// deliver in their order. Consumers read it.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Says how long the message is of use, rounded up to milliseconds, from when it comes to its
    /// queues. Consumers read it.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        let ms = ttl.as_nanos().div_ceil(1_000_000).max(1);
        self.ttl_ms = u32::try_from(ms).unwrap_or(u32::MAX);
        self
    }

    /// Keeps the message back in its queues for so long after it has come to them, rounded up to
    /// milliseconds; at most 49 days, 17 h. It is confirmed as any other, and never delivered early.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        let ms = delay.as_nanos().div_ceil(1_000_000);
        self.delay_ms = u32::try_from(ms).unwrap_or(u32::MAX);
        self
    }

    /// Keeps the message back until then, by this machine's clock: a [`delay`](Self::delay) from now
    /// on. A time that has passed means no delay.
    #[must_use]
    pub fn deliver_at(self, time: SystemTime) -> Self {
        let delay = time.duration_since(SystemTime::now());
        self.delay(delay.unwrap_or_default())
    }

    /// Says when the message came about.
    #[must_use]
    pub fn timestamp(mut self, timestamp: SystemTime) -> Self {
        let since = timestamp.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.timestamp_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        self
    }

    /// Sets the properties: AMQP 0-9-1 property bytes, passed on as they are.
    #[must_use]
    pub fn properties(mut self, properties: impl Into<Bytes>) -> Self {
        self.properties = properties.into();
        self
    }

    /// The routing key.
    #[must_use]
    pub fn routing_key(&self) -> &Bytes {
        &self.routing_key
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    pub(crate) fn parts<'a>(&'a self, exchange: &'a [u8]) -> MessageParts<'a> {
        MessageParts {
            exchange,
            routing_key: &self.routing_key,
            properties: &self.properties,
            headers: self.headers.as_encoded(),
            payload: &self.payload,
            priority: self.priority,
            timestamp_us: self.timestamp_us,
            ttl_ms: self.ttl_ms,
            delay_ms: self.delay_ms,
            hops: 0,
        }
    }

    /// Whether the broker could take it at all.
    pub(crate) fn check(&self, length: usize, message_bytes_max: u32) -> Result<()> {
        if length > message_bytes_max as usize {
            return Err(self.too_large(length, message_bytes_max));
        }
        if self.routing_key.len() > wire::KEY_BYTES_MAX
            || self.properties.len() > wire::PROPERTIES_BYTES_MAX
        {
            return Err(self.part_too_large());
        }
        self.headers.check()
    }

    #[cold]
    fn too_large(&self, length: usize, message_bytes_max: u32) -> Error {
        Error::new(
            ErrorKind::TooLarge,
            format!("the message has {length} B, the broker takes at most {message_bytes_max} B"),
        )
    }

    #[cold]
    fn part_too_large(&self) -> Error {
        Error::new(
            ErrorKind::Invalid,
            format!(
                "routing key has {} B of at most {}, properties have {} B of at most {}",
                self.routing_key.len(),
                wire::KEY_BYTES_MAX,
                self.properties.len(),
                wire::PROPERTIES_BYTES_MAX
            ),
        )
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("routing_key", &String::from_utf8_lossy(&self.routing_key))
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_at_their_edges() {
        let message = |key: usize, payload: usize| Message::new(vec![b'k'; key], vec![0; payload]);
        let check = |m: &Message, max| m.check(m.parts(b"").length(), max);
        assert!(check(&message(255, 0), 1_000).is_ok());
        assert!(check(&message(256, 0), 1_000).is_err());
        assert!(check(&message(0, 36), 100).is_ok());
        let error = check(&message(0, 37), 100).expect_err("one byte over");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("101") && error.to_string().contains("100"));
        let properties = |bytes: usize| message(0, 0).properties(vec![0; bytes]);
        assert!(check(&properties(16 * 1024), 100_000).is_ok());
        assert!(check(&properties(16 * 1024 + 1), 100_000).is_err());
    }

    #[test]
    fn times_are_rounded_and_kept_in_range() {
        let ttl = |ttl| Message::new("", "").ttl(ttl).ttl_ms;
        assert_eq!(ttl(Duration::from_nanos(1)), 1);
        assert_eq!(ttl(Duration::from_micros(1_500)), 2);
        assert_eq!(ttl(Duration::MAX), u32::MAX);
    }

    #[test]
    fn a_time_to_deliver_at_is_a_delay_from_now_on() {
        let hour = Duration::from_secs(3_600);
        let before = SystemTime::now();
        let message = Message::new("", "").deliver_at(before + hour);
        let passed = before.elapsed().expect("the clock goes forward");
        let most = hour.as_millis() as u32;
        let least = most - passed.as_millis() as u32 - 1;
        assert!(
            (least..=most).contains(&message.delay_ms),
            "{}",
            message.delay_ms
        );
        for past in [before, UNIX_EPOCH] {
            assert_eq!(Message::new("", "").deliver_at(past).delay_ms, 0);
        }
        let never = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(Message::new("", "").deliver_at(never).delay_ms, u32::MAX);
    }
}
