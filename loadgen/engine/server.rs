//! A consumer that works on one message after the other, for a fixed or an exponential time. The work
//! is a wait that costs nothing, so that thousands fit one thread. Does not know sockets.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use crate::message::Random;
use crate::plan::Service;

/// The messages that one consumer has and has not settled.
pub(super) struct Server {
    service: Service,
    random: Random,
    /// When it is done with all it has, in ns.
    free_at_ns: u64,
    /// When it is done with each, and when that was due.
    waiting: VecDeque<(u64, u64)>,
}

impl Server {
    pub(super) fn new(service: Service, seed: u64) -> Self {
        Self {
            service,
            random: Random::new(seed),
            free_at_ns: 0,
            waiting: VecDeque::new(),
        }
    }

    /// One more message, which was due at `intended_ns`.
    pub(super) fn take(&mut self, now: u64, intended_ns: u64) {
        let work_ns = match self.service {
            Service::None => 0.0,
            Service::Fixed(time) => time.as_nanos() as f64,
            Service::Exponential(time) => time.as_nanos() as f64 * self.random.next_exponential(),
        };
        self.free_at_ns = self.free_at_ns.max(now) + work_ns as u64;
        self.waiting.push_back((self.free_at_ns, intended_ns));
    }

    /// When it is done with the next message.
    pub(super) fn next(&self) -> Option<u64> {
        self.waiting.front().map(|(finish_ns, _)| *finish_ns)
    }

    /// Ends what is done by now, or all; records from the intended time to the end of the work.
    /// Returns how many.
    pub(super) fn finish(
        &mut self,
        now: u64,
        is_all: bool,
        measure_from_ns: u64,
        served: &mut Histogram<u64>,
    ) -> u64 {
        let mut count = 0;
        while let Some((finish_ns, intended_ns)) = self.waiting.front().copied()
            && (is_all || finish_ns <= now)
        {
            if intended_ns >= measure_from_ns {
                let end = finish_ns.min(now);
                served.saturating_record(end.saturating_sub(intended_ns));
            }
            self.waiting.pop_front();
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tally::latencies;

    #[test]
    fn work_is_done_one_after_the_other() {
        let mut server = Server::new(Service::Fixed(Duration::from_nanos(100)), 1);
        let mut served = latencies();
        for _ in 0..3 {
            server.take(1000, 950);
        }
        assert_eq!(server.next(), Some(1100));
        assert_eq!(server.finish(1099, false, 0, &mut served), 0);
        assert_eq!(server.finish(1250, false, 0, &mut served), 2);
        assert_eq!((served.min(), served.max()), (150, 250));
        // It was free before the next came.
        assert_eq!(server.finish(2000, false, 0, &mut served), 1);
        server.take(3000, 3000);
        assert_eq!(server.next(), Some(3100));
        // The load has stopped: what it has is let go.
        assert_eq!(server.finish(3001, true, 0, &mut served), 1);
        assert_eq!(served.min(), 1);
    }

    #[test]
    fn exponential_work_has_its_mean() {
        let mut server = Server::new(Service::Exponential(Duration::from_micros(1)), 1);
        for _ in 0..100_000 {
            server.take(0, 0);
        }
        let mean = server.free_at_ns as f64 / 1e5;
        assert!((mean / 1000.0 - 1.0).abs() < 0.02, "{mean}");
    }
}
