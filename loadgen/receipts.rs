//! The times of messages that arrived or were confirmed together: those in a row that have one time in
//! common are recorded at once. Does not know where they came from.

use hdrhistogram::Histogram;

use crate::message::Stamp;
use crate::tally::Tally;

/// Messages in a row with the same time.
#[derive(Default)]
struct Run {
    at_ns: u64,
    count: u64,
}

impl Run {
    /// More messages; records the run before them if its time is another.
    fn step(&mut self, at_ns: u64, count: u64, from: u64, now: u64, times: &mut Histogram<u64>) {
        if at_ns != self.at_ns {
            self.end(from, now, times);
            self.at_ns = at_ns;
        }
        self.count += count;
    }

    /// Records the run, if it was measured.
    fn end(&mut self, from: u64, now: u64, times: &mut Histogram<u64>) {
        if self.count > 0 && self.at_ns >= from {
            times.saturating_record_n(now.saturating_sub(self.at_ns), self.count);
        }
        self.count = 0;
    }
}

/// What of a message is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its confirm.
    Confirm,
    /// Its delivery.
    Delivery,
    /// Its delivery by a consumer that is told apart.
    Apart,
}

/// Messages of one turn.
pub(crate) struct Receipts {
    kind: Kind,
    /// Messages that were due before are not measured.
    from: u64,
    now: u64,
    is_open_loop: bool,
    intended: Run,
    sent: Run,
}

impl Receipts {
    /// None yet, of what comes at `now`; measured is what was due from `from` on.
    pub(crate) fn new(kind: Kind, from: u64, now: u64, is_open_loop: bool) -> Self {
        Self {
            kind,
            from,
            now,
            is_open_loop,
            intended: Run::default(),
            sent: Run::default(),
        }
    }

    /// One more message, by its stamp.
    pub(crate) fn see(&mut self, stamp: &Stamp, tally: &mut Tally) {
        self.add(stamp.intended_ns, stamp.sent_ns, 1, tally);
    }

    /// Messages that have their times in common.
    pub(crate) fn add(&mut self, intended_ns: u64, sent_ns: u64, count: u64, tally: &mut Tally) {
        let (from, now) = (self.from, self.now);
        let (response, service) = times(self.kind, tally);
        self.intended.step(intended_ns, count, from, now, response);
        // Measured is what was due in time, even if it was sent later.
        if let (true, Some(service)) = (self.is_open_loop && intended_ns >= from, service) {
            self.sent.step(sent_ns, count, from, now, service);
        }
    }

    /// Records what is left.
    pub(crate) fn end(&mut self, tally: &mut Tally) {
        let (response, service) = times(self.kind, tally);
        self.intended.end(self.from, self.now, response);
        if let Some(service) = service {
            self.sent.end(self.from, self.now, service);
        }
    }
}

/// Histograms of response time and of service time, if that is kept.
fn times(kind: Kind, tally: &mut Tally) -> (&mut Histogram<u64>, Option<&mut Histogram<u64>>) {
    match kind {
        Kind::Confirm => (&mut tally.confirm, Some(&mut tally.confirm_service)),
        Kind::Delivery => (&mut tally.end_to_end, Some(&mut tally.end_to_end_service)),
        Kind::Apart => (&mut tally.slow, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_due_before_measuring_is_left_out_and_runs_are_counted_whole() {
        let mut tally = Tally::default();
        let mut receipts = Receipts::new(Kind::Delivery, 100, 1_000, true);
        for (intended, sent) in [(99, 150), (100, 150), (100, 150), (300, 400)] {
            receipts.add(intended, sent, 1, &mut tally);
        }
        receipts.end(&mut tally);
        receipts.end(&mut tally);
        assert_eq!(tally.end_to_end.len(), 3);
        assert_eq!(tally.end_to_end.count_at(900), 2);
        assert_eq!(tally.end_to_end_service.len(), 3);
        assert_eq!(tally.end_to_end_service.count_at(600), 1);
        let mut closed = Receipts::new(Kind::Confirm, 0, 10, false);
        closed.add(1, 1, 1, &mut tally);
        closed.end(&mut tally);
        assert_eq!((tally.confirm.len(), tally.confirm_service.len()), (1, 0));
    }
}
