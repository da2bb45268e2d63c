//! The two clocks: a monotonic one for order and ages, the wall clock for what people read. It does
//! not know what is timed, and nothing in the engine calls it.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on the monotonic clock, in nanoseconds since this process first looked at it. The same
/// clock on all cores, so that a stamp taken on one can be compared on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(u64);

/// What [`Monotonic`] counts from; set once by whoever comes first, read by all threads.
static ORIGIN: OnceLock<Instant> = OnceLock::new();

impl Monotonic {
    /// Reads the clock: one vDSO call, no syscall.
    #[inline]
    pub fn now() -> Self {
        let elapsed = ORIGIN.get_or_init(Instant::now).elapsed();
        // u64 nanoseconds last for 584 years.
        Monotonic(elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos()))
    }

    /// The point with the given number of nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Monotonic(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `duration` later; the far end of the clock if it lies beyond.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Monotonic(self.0.saturating_add(nanos))
    }

    /// The time from `earlier` to this point; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Microseconds since 1970 by the wall clock; 0 if it stands before that.
pub fn wall_us() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let early = Monotonic::from_nanos(5);
        let late = early.plus(Duration::from_nanos(7));
        assert_eq!(late.as_nanos(), 12);
        assert_eq!(late.since(early), Duration::from_nanos(7));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.plus(Duration::MAX).as_nanos(), u64::MAX);
    }

    #[test]
    fn the_clock_does_not_go_back() {
        let first = Monotonic::now();
        assert!(Monotonic::now() >= first);
        assert!(wall_us() > 0);
    }
}
