//! What a caller may choose, in types that say what they mean. Does not know who obeys it.

use std::fmt;
use std::time::Duration;

use ringpost_wire as wire;

use crate::observe::Observer;
use crate::{Error, ErrorKind, Result};

/// A number of bytes.
///
/// ```
/// use ringpost_client::ByteSize;
/// assert_eq!(ByteSize::mib(8).bytes(), 8 * 1024 * 1024);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(u64);

impl ByteSize {
    /// As many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// As many KiB.
    #[must_use]
    pub const fn kib(kib: u32) -> Self {
        Self(kib as u64 * 1024)
    }

    /// As many MiB.
    #[must_use]
    pub const fn mib(mib: u32) -> Self {
        Self(mib as u64 * 1024 * 1024)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

/// How far a publish must get before it is confirmed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Level {
    /// Written to the socket; nobody confirms anything. A lost connection loses messages.
    None,
    /// In the memory of every core whose queues took it; lost if the broker's process ends.
    Volatile,
    /// Synced to the journal of every queue that took it. The default.
    #[default]
    Durable,
}

impl Level {
    pub(crate) const fn to_wire(self) -> wire::control::Level {
        match self {
            Self::None => wire::control::Level::None,
            Self::Volatile => wire::control::Level::Volatile,
            Self::Durable => wire::control::Level::Durable,
        }
    }

    pub(crate) const fn from_wire(level: wire::control::Level) -> Self {
        match level {
            wire::control::Level::None => Self::None,
            wire::control::Level::Volatile => Self::Volatile,
            wire::control::Level::Durable => Self::Durable,
        }
    }
}

/// What happens when a connection is lost: how often and how patiently it is dialled again.
///
/// The wait before the n-th attempt in a row is a random time between half of and all of
/// `first × 2ⁿ⁻¹`, never more than `longest`.
///
/// ```
/// use std::time::Duration;
/// use ringpost_client::Reconnect;
/// let patient = Reconnect::backoff(Duration::from_millis(20), Duration::from_secs(2)).attempts_max(50);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reconnect {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
    pub(crate) attempts_max: u32,
}

impl Reconnect {
    /// Never: a lost connection is an error for everything that used it.
    #[must_use]
    pub const fn off() -> Self {
        Self {
            first: Duration::ZERO,
            longest: Duration::ZERO,
            attempts_max: 0,
        }
    }

    /// With exponential back-off between `first` and `longest`, 100 attempts in a row at most.
    #[must_use]
    pub const fn backoff(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts_max: 100,
        }
    }

    /// Gives up after as many failed attempts in a row.
    #[must_use]
    pub const fn attempts_max(mut self, attempts: u32) -> Self {
        self.attempts_max = attempts;
        self
    }

    /// The wait before attempt `attempt` (from 0), `random` deciding the jitter.
    pub(crate) fn wait(&self, attempt: u32, random: u64) -> Duration {
        let full = self
            .first
            .saturating_mul(1_u32.checked_shl(attempt.min(30)).unwrap_or(u32::MAX))
            .min(self.longest);
        let half = full / 2;
        // 53 random bits make a fraction of [0, 1).
        half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::backoff(Duration::from_millis(50), Duration::from_secs(5))
    }
}

/// What a producer does, after its connection was lost, with publishes that it sent and that were
/// not confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Resend {
    /// Nothing: they end as [`crate::ErrorKind::Indeterminate`].
    Never,
    /// Publish them again under their own sequence numbers. A broker knows the last numbers that
    /// it has stored of each producer, at least 1,024 for each partition, and does not store those
    /// twice; what it cannot know any more ends as [`crate::ErrorKind::Indeterminate`]. Only a
    /// broker that has lost its memory, with volatile queues, may store a message twice. The
    /// default.
    #[default]
    Unconfirmed,
}

/// What the broker agreed to on this connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    pub(crate) message_bytes_max: u32,
    pub(crate) frame_bytes_max: u32,
    pub(crate) channels_max: u16,
    pub(crate) credit_messages_max: u32,
    pub(crate) heartbeat: Duration,
    pub(crate) cores: u16,
    pub(crate) server: String,
}

impl Limits {
    /// Largest message: envelope, keys, headers, properties and payload together.
    #[must_use]
    pub fn message_max(&self) -> ByteSize {
        ByteSize(u64::from(self.message_bytes_max))
    }

    /// Largest frame.
    #[must_use]
    pub fn frame_max(&self) -> ByteSize {
        ByteSize(u64::from(self.frame_bytes_max))
    }

    /// Most producers and consumers of one connection.
    #[must_use]
    pub fn channels_max(&self) -> u16 {
        self.channels_max
    }

    /// Largest credit of a consumer in messages.
    #[must_use]
    pub fn credit_max(&self) -> u32 {
        self.credit_messages_max
    }

    /// Interval of heartbeats; a peer that is silent for two of them is taken for gone.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// Cores of the broker.
    #[must_use]
    pub fn cores(&self) -> u16 {
        self.cores
    }

    /// What the broker calls itself.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }
}

/// Everything [`crate::ClientBuilder`] gathers.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub address: String,
    pub tenant: String,
    pub name: String,
    pub in_flight_bytes_max: u64,
    pub message_bytes_max: u32,
    pub heartbeat: Option<Duration>,
    pub reconnect: Reconnect,
    pub resend: Resend,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    pub close_timeout: Duration,
    pub observer: Observer,
}

impl Options {
    pub(crate) fn new(address: String) -> Self {
        Self {
            address,
            tenant: String::new(),
            name: concat!("ringpost-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            in_flight_bytes_max: 8 * 1024 * 1024,
            message_bytes_max: 0,
            heartbeat: None,
            reconnect: Reconnect::default(),
            resend: Resend::default(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(30),
            observer: Observer::default(),
        }
    }

    pub(crate) fn heartbeat_ms(&self) -> u32 {
        self.heartbeat.map_or(0, |interval| {
            u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)
        })
    }

    /// Checks all options and names every bad one.
    pub(crate) fn check(&self) -> Result<()> {
        let mut bad = Vec::new();
        let port = self.address.rsplit_once(':').map(|(_, port)| port);
        if port.is_none_or(|port| port.parse::<u16>().is_err()) {
            bad.push(format!("address {:?} is no host:port", self.address));
        }
        if !self.tenant.is_empty() && !wire::control::is_name(self.tenant.as_bytes()) {
            bad.push(format!("tenant {:?} is not a name", self.tenant));
        }
        if self.name.len() > wire::NAME_BYTES_MAX {
            bad.push(format!(
                "client name has {} bytes, at most {} are allowed",
                self.name.len(),
                wire::NAME_BYTES_MAX
            ));
        }
        if self.in_flight_bytes_max == 0 {
            bad.push("in_flight_max is 0, nothing could ever be published".to_owned());
        }
        if self.message_bytes_max > wire::MESSAGE_BYTES_MAX_LIMIT {
            bad.push(format!(
                "message_max is {} B, at most {} B are allowed",
                self.message_bytes_max,
                wire::MESSAGE_BYTES_MAX_LIMIT
            ));
        }
        if let Some(interval) = self.heartbeat {
            let least = Duration::from_millis(u64::from(wire::HEARTBEAT_MS_MIN));
            let most = Duration::from_millis(u64::from(wire::HEARTBEAT_MS_MAX));
            if interval < least || interval > most {
                bad.push(format!(
                    "heartbeat is {interval:?}, allowed are {least:?} to {most:?}"
                ));
            }
        }
        if self.reconnect.attempts_max > 0 && self.reconnect.longest < self.reconnect.first {
            bad.push(format!(
                "reconnect waits at most {:?}, less than its first wait of {:?}",
                self.reconnect.longest, self.reconnect.first
            ));
        }
        if bad.is_empty() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Invalid, bad.join("; ")))
        }
    }
}

/// A random number above 0 that another process does not choose as well: the standard library seeds its
/// hash keys from the operating system.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
    // Zero names nothing (P-30).
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port() {
        let check = |address: &str| Options::new(address.to_owned()).check();
        for good in ["localhost:7400", "127.0.0.1:7400", "[::1]:7400"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "localhost",
            "localhost:",
            "localhost:x",
            "localhost:65536",
        ] {
            let error = check(bad).expect_err("has no port");
            assert_eq!(
                error.to_string(),
                format!("address {bad:?} is no host:port")
            );
        }
    }

    #[test]
    fn every_bad_option_is_named_at_once() {
        let mut options = Options::new(String::new());
        options.tenant = "a\nb".to_owned();
        options.heartbeat = Some(Duration::from_millis(1));
        options.in_flight_bytes_max = 0;
        let text = options.check().expect_err("four bad options").to_string();
        for word in ["address", "tenant", "heartbeat", "in_flight_max"] {
            assert!(text.contains(word), "{word} is not named in {text}");
        }
        assert!(Options::new("localhost:1".to_owned()).check().is_ok());
    }

    #[test]
    fn waits_double_within_bounds() {
        let policy = Reconnect::backoff(Duration::from_millis(100), Duration::from_secs(1));
        for (attempt, full_ms) in [(0, 100), (1, 200), (3, 800), (4, 1_000), (99, 1_000)] {
            let full = Duration::from_millis(full_ms);
            assert_eq!(policy.wait(attempt, 0), full / 2);
            let longest = policy.wait(attempt, u64::MAX);
            assert!(longest <= full && longest > full * 9 / 10);
        }
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random(), random());
    }
}
