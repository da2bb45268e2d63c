//! The numbers of a queue: what it did lately, and what follows from that. Does not know how they are
//! asked for.

use std::time::Duration;

use ringpost_wire::control;

use crate::admin::QueueInfo;

/// What a queue did in a span up to now: ten to twenty seconds, less if it is younger, or nothing yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub struct Recent {
    /// The span; zero if nothing happened since the broker's start.
    pub span: Duration,
    /// Messages that became deliverable.
    pub arrived: u64,
    /// Messages that the queue was done with: acked, rejected, expired, purged.
    pub left: u64,
    /// Messages delivered for the first time of which is known since when they were ready.
    pub taken: u64,
    /// Mean time for which those were ready.
    pub wait_mean: Duration,
    /// Median of it, an eighth off at most.
    pub wait_p50: Duration,
    /// 99th percentile of it, an eighth off at most.
    pub wait_p99: Duration,
    /// The longest of it.
    pub wait_max: Duration,
}

impl Recent {
    pub(crate) fn of(info: &control::QueueInfo<'_>) -> Self {
        Self {
            span: Duration::from_millis(info.recent_ms),
            arrived: info.recent_arrived,
            left: info.recent_left,
            taken: info.recent_taken,
            wait_mean: Duration::from_micros(info.wait_mean_us),
            wait_p50: Duration::from_micros(info.wait_p50_us),
            wait_p99: Duration::from_micros(info.wait_p99_us),
            wait_max: Duration::from_micros(info.wait_max_us),
        }
    }

    fn rate(&self, count: u64) -> f64 {
        let seconds = self.span.as_secs_f64();
        if seconds > 0.0 {
            count as f64 / seconds
        } else {
            0.0
        }
    }
}

/// The numbers of a queue.
impl QueueInfo {
    /// Messages in it, whatever they wait for.
    #[must_use]
    pub fn depth(&self) -> u64 {
        [self.ready, self.unacked, self.delayed, self.dead]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Mean bytes of a message that is in it, so that [`QueueInfo::bytes`], its capacity in use, is
    /// messages times mean size; 0 if it is empty.
    #[must_use]
    pub fn mean_bytes(&self) -> u64 {
        self.bytes.checked_div(self.depth()).unwrap_or(0)
    }

    /// λ: messages that arrived, a second.
    #[must_use]
    pub fn arrival_rate(&self) -> f64 {
        self.recent.rate(self.recent.arrived)
    }

    /// μ: messages that the queue was done with, a second.
    #[must_use]
    pub fn service_rate(&self) -> f64 {
        self.recent.rate(self.recent.left)
    }

    /// λ − μ: messages by which it grows, a second; negative while it shrinks.
    #[must_use]
    pub fn growth(&self) -> f64 {
        self.arrival_rate() - self.service_rate()
    }

    /// Mean time that a message spends in it by Little's law, W = L / λ, with what is in it now for L and
    /// the rate at which it is served for λ, so that it says when what is behind the last message now is
    /// through. `None` if nothing is served.
    #[must_use]
    pub fn littles_wait(&self) -> Option<Duration> {
        let rate = self.service_rate();
        (rate > 0.0).then(|| span(self.depth() as f64 / rate))
    }

    /// When it is empty if both rates stay; `None` if it is empty or does not shrink.
    #[must_use]
    pub fn time_to_drain(&self) -> Option<Duration> {
        let shrinks = -self.growth();
        (shrinks > 0.0 && self.depth() > 0).then(|| span(self.depth() as f64 / shrinks))
    }

    /// When it is at the first of its bounds if both rates and the mean size stay; `None` if it has none,
    /// or does not grow.
    #[must_use]
    pub fn time_to_full(&self) -> Option<Duration> {
        let growth = self.growth();
        if growth <= 0.0 {
            return None;
        }
        let by_messages =
            (self.messages_max > 0).then(|| self.messages_max.saturating_sub(self.depth()) as f64);
        let by_bytes = (self.bytes_max > 0 && self.mean_bytes() > 0)
            .then(|| self.bytes_max.saturating_sub(self.bytes) as f64 / self.mean_bytes() as f64);
        let room = match (by_messages, by_bytes) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other)?,
        };
        Some(span(room / growth))
    }
}

fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(arrived: u64, left: u64) -> QueueInfo {
        QueueInfo {
            ready: 60,
            unacked: 20,
            delayed: 15,
            dead: 5,
            bytes: 20_000,
            recent: Recent {
                span: Duration::from_secs(10),
                arrived,
                left,
                ..Recent::default()
            },
            ..QueueInfo::default()
        }
    }

    #[test]
    fn numbers_follow_from_what_happened() {
        let mut grows = queue(120, 20);
        assert_eq!((grows.depth(), grows.mean_bytes()), (100, 200));
        assert_eq!((grows.arrival_rate(), grows.service_rate()), (12.0, 2.0));
        assert_eq!(grows.littles_wait(), Some(Duration::from_secs(50)));
        assert_eq!((grows.time_to_drain(), grows.time_to_full()), (None, None));
        grows.messages_max = 1_100;
        assert_eq!(grows.time_to_full(), Some(Duration::from_secs(100)));
        grows.bytes_max = 40_000;
        assert_eq!(grows.time_to_full(), Some(Duration::from_secs(10)));
        grows.messages_max = 90;
        assert_eq!(grows.time_to_full(), Some(Duration::ZERO));
        let shrinks = queue(0, 50);
        assert_eq!(shrinks.time_to_drain(), Some(Duration::from_secs(20)));
        assert_eq!(shrinks.time_to_full(), None);
    }

    #[test]
    fn an_idle_queue_has_no_outlook() {
        let idle = queue(0, 0);
        assert_eq!((idle.growth(), idle.littles_wait()), (0.0, None));
        assert_eq!((idle.time_to_drain(), idle.time_to_full()), (None, None));
        let unused = QueueInfo {
            messages_max: 5,
            bytes_max: 5,
            ..QueueInfo::default()
        };
        assert_eq!((unused.mean_bytes(), unused.arrival_rate()), (0, 0.0));
        assert_eq!(unused.time_to_full(), None);
    }
}
