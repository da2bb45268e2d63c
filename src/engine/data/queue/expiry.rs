//! When messages of a queue expire. Does not know which of them are ready.
//!
//! A span says when the messages from its first one on arrived and how long they may live, up to where
//! the next span begins. Messages that arrive within a 256th of their time to live share a span and
//! its later end, so that a queue whose messages all live equally long has some 256 spans, however
//! many messages it holds; at worst each message has 24 bytes of its own.

use std::collections::VecDeque;

use super::settled::SettledSet;

/// A clock reading in milliseconds: of the engine's clock, which may begin after a message arrived.
pub(crate) type Ms = i64;

/// Of a time to live, by how much of it a message may expire late: one in so many.
const LATE_PART: u32 = 256;

/// Consecutive messages that live equally long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// The first message.
    pub(crate) first: u64,
    /// When the last one of them arrived.
    pub(crate) arrived: Ms,
    /// What their producers allowed, 0 = any time.
    pub(crate) ttl_ms: u32,
}

/// The spans of one queue.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// What the queue allows, 0 = any time.
    queue_ttl_ms: u32,
    /// In order; empty while no message expires.
    spans: VecDeque<Span>,
}

impl Expiry {
    pub(crate) const fn new(queue_ttl_ms: u32) -> Self {
        Self {
            queue_ttl_ms,
            spans: VecDeque::new(),
        }
    }

    /// What the queue allows from now on, also those that are here.
    pub(crate) const fn set_queue_ttl(&mut self, queue_ttl_ms: u32) {
        self.queue_ttl_ms = queue_ttl_ms;
    }

    /// Messages from `first` on are here of which nobody knows when they came: now.
    pub(crate) fn begin(&mut self, first: u64, now: Ms) {
        let is_known = self.spans.front().is_some_and(|span| span.first <= first);
        if !is_known {
            self.spans.push_front(Span {
                first,
                arrived: now,
                ttl_ms: 0,
            });
        }
    }

    /// Whether no message here ever expires.
    pub(crate) fn is_idle(&self) -> bool {
        self.spans.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    fn limit(&self, ttl_ms: u32) -> u32 {
        match (self.queue_ttl_ms, ttl_ms) {
            (0, own) => own,
            (queue, 0) => queue,
            (queue, own) => queue.min(own),
        }
    }

    /// Messages from `first` on arrived, behind all others, and may live `ttl_ms`, 0 = any time.
    pub(crate) fn push(&mut self, first: u64, arrived: Ms, ttl_ms: u32) {
        let limit = self.limit(ttl_ms);
        if limit == 0 && self.spans.is_empty() {
            return;
        }
        // Later ends of a grid: what falls between two of them shares a span.
        let grid = Ms::from((limit / LATE_PART).max(1));
        let arrived = arrived.div_euclid(grid) * grid + if grid == 1 { 0 } else { grid - 1 };
        let span = Span {
            first,
            arrived,
            ttl_ms,
        };
        match self.spans.back_mut() {
            Some(last) if last.ttl_ms == ttl_ms && last.arrived >= arrived => {}
            // They never expire, unless the queue comes to say so: then not too early.
            Some(last) if limit == 0 && last.ttl_ms == 0 => last.arrived = arrived,
            _ => self.spans.push_back(span),
        }
    }

    /// A span of an earlier life.
    pub(crate) fn restore(&mut self, span: Span) {
        if self.limit(span.ttl_ms) > 0 || !self.spans.is_empty() {
            self.spans.push_back(span);
        }
    }

    /// When a message expires.
    pub(crate) fn of(&self, sequence: u64) -> Option<Ms> {
        let behind = self.spans.partition_point(|span| span.first <= sequence);
        self.end(self.spans.get(behind.checked_sub(1)?)?)
    }

    fn end(&self, span: &Span) -> Option<Ms> {
        match self.limit(span.ttl_ms) {
            0 => None,
            limit => Some(span.arrived + Ms::from(limit)),
        }
    }

    /// Whether a message has expired.
    pub(crate) fn is_over(&self, sequence: u64, now: Ms) -> bool {
        self.of(sequence).is_some_and(|end| end < now)
    }

    /// How far from `sequence` on messages have expired, or not, as it has; at most to `last`.
    pub(crate) fn alike_upto(&self, sequence: u64, last: u64, now: Ms) -> u64 {
        let is_over = |span: &Span| self.end(span).is_some_and(|end| end < now);
        let behind = self.spans.partition_point(|span| span.first <= sequence);
        let own = behind.checked_sub(1).and_then(|at| self.spans.get(at));
        let own = own.is_some_and(is_over);
        let others = self.spans.range(behind..);
        let within = others.take_while(|span| span.first <= last);
        let other = within
            .filter(|span| is_over(span) != own)
            .map(|span| span.first - 1)
            .next();
        other.unwrap_or(last)
    }

    /// Forgets spans of which every message is settled.
    pub(crate) fn forget(&mut self, settled: &SettledSet) {
        let floor = settled.floor();
        while self.spans.len() > 1 && self.spans[1].first <= floor + 1 {
            self.spans.pop_front();
        }
    }

    /// Nothing is live any more.
    pub(crate) fn clear(&mut self) {
        self.spans.clear();
    }

    /// Messages from `sequence` on are gone.
    pub(crate) fn truncate_from(&mut self, sequence: u64) {
        while self.spans.back().is_some_and(|span| span.first >= sequence) {
            self.spans.pop_back();
        }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Span> + '_ {
        self.spans.iter().copied()
    }

    pub(crate) fn invariants(&self) {
        let firsts = self.spans.iter().map(|span| span.first);
        assert!(firsts.is_sorted(), "spans are in order");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_expire_when_their_time_is_over_and_hardly_later() {
        let mut expiry = Expiry::new(0);
        assert!(expiry.is_idle());
        expiry.push(1, 1_000, 0);
        assert!(expiry.is_idle(), "nothing expires yet");
        expiry.push(2, 1_000, 100);
        expiry.push(3, 1_050, 0);
        expiry.push(4, 1_060, 10);
        let ends: Vec<Option<Ms>> = (1..=5).map(|sequence| expiry.of(sequence)).collect();
        assert_eq!(ends, [None, Some(1_100), None, Some(1_070), Some(1_070)]);
        assert!(!expiry.is_over(2, 1_100) && expiry.is_over(2, 1_101));
        assert_eq!(expiry.alike_upto(1, 9, 1_080), 3);
        assert_eq!(expiry.alike_upto(4, 9, 1_080), 9);
        assert_eq!(expiry.alike_upto(2, 9, 1_200), 2);
        assert_eq!(expiry.alike_upto(2, 2, 0), 2);
    }

    /// A policy may come to say how long messages live that are here already.
    #[test]
    fn what_came_before_the_queue_had_a_time_lives_for_all_of_it() {
        let mut expiry = Expiry::new(0);
        expiry.push(3, 1_000, 50);
        for sequence in 4..=100 {
            expiry.push(sequence, 1_000 + sequence as Ms, 0);
        }
        assert_eq!(expiry.len(), 2, "they need no spans of their own");
        expiry.push(101, 2_000, 70);
        expiry.push(102, 3_000, 0);
        expiry.set_queue_ttl(60);
        expiry.begin(1, 5_000);
        let ends: Vec<Option<Ms>> = [1, 2, 3, 4, 100, 101, 102].map(|at| expiry.of(at)).to_vec();
        let later = Some(1_160);
        let expected = [Some(5_060), Some(5_060), Some(1_050), later, later];
        assert_eq!(ends[..5], expected);
        assert_eq!(ends[5..], [Some(2_060), Some(3_060)]);
        // What is known already is not said again.
        expiry.begin(1, 9_000);
        assert_eq!(expiry.of(1), Some(5_060));
    }

    #[test]
    fn the_shorter_time_of_queue_and_message_holds() {
        let mut expiry = Expiry::new(200);
        expiry.push(1, 0, 0);
        expiry.push(2, 0, 300);
        expiry.push(3, 0, 100);
        let ends: Vec<Option<Ms>> = (1..=3).map(|sequence| expiry.of(sequence)).collect();
        assert_eq!(ends, [Some(200), Some(200), Some(100)]);
    }

    #[test]
    fn a_long_time_to_live_takes_some_256_spans() {
        let ttl_ms = 100_000;
        let mut expiry = Expiry::new(ttl_ms);
        for sequence in 1..=200_000 {
            let arrived = sequence as Ms / 2;
            expiry.push(sequence, arrived, 0);
            let end = expiry.of(sequence).expect("it expires");
            let exact = arrived + Ms::from(ttl_ms);
            assert!(end >= exact && end - exact <= Ms::from(ttl_ms / LATE_PART));
        }
        assert!(expiry.len() <= 258, "{} spans", expiry.len());
        expiry.invariants();
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_keeps_spans_in_order() {
        let mut expiry = Expiry::new(1_000);
        for (sequence, arrived) in [(1, 500), (2, 500), (3, 400), (4, -70), (5, 900)] {
            expiry.push(sequence, arrived, 0);
        }
        expiry.invariants();
        assert!(expiry.of(4) >= Some(930) && expiry.of(5) >= Some(1_900));
        expiry.truncate_from(5);
        assert!(expiry.of(9) < Some(1_900));
        let mut settled = SettledSet::new();
        settled.insert_new(1, 4);
        expiry.forget(&settled);
        assert_eq!(expiry.len(), 1);
    }
}
