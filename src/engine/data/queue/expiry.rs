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
    queue_ttl_ms: Ms,
    /// In order; empty while no message expires, unless all arrivals are kept.
    spans: VecDeque<Span>,
    /// All arrivals are kept: messages that arrive within a cell of so many ms share a span.
    grid: Option<Ms>,
}

/// Most spans where all arrivals are kept. With one more cells become twice as wide, so that a span is
/// never wider than about a 512th of the time that is kept.
const KEPT_MAX: usize = 1024;
/// Width of the narrowest cell, in ms.
const GRID_MIN: Ms = 10;

impl Expiry {
    pub(crate) const fn new(queue_ttl_ms: u32) -> Self {
        Self {
            queue_ttl_ms: queue_ttl_ms as Ms,
            spans: VecDeque::new(),
            grid: None,
        }
    }

    /// Of a stream, whose messages may become `max_age_ms` old, 0 = as old as they like, and whose
    /// arrivals are all kept.
    pub(crate) fn keep_all(&mut self, max_age_ms: u64) {
        self.queue_ttl_ms = Ms::try_from(max_age_ms).unwrap_or(Ms::MAX);
        self.grid.get_or_insert(GRID_MIN);
    }

    /// What the queue allows from now on, also those that are here.
    pub(crate) const fn set_queue_ttl(&mut self, queue_ttl_ms: u32) {
        self.queue_ttl_ms = queue_ttl_ms as Ms;
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

    fn limit(&self, ttl_ms: u32) -> Ms {
        match (self.queue_ttl_ms, Ms::from(ttl_ms)) {
            (0, own) => own,
            (queue, 0) => queue,
            (queue, own) => queue.min(own),
        }
    }

    /// Messages from `first` on arrived, behind all others, and may live `ttl_ms`, 0 = any time.
    pub(crate) fn push(&mut self, first: u64, arrived: Ms, ttl_ms: u32) {
        if self.grid.is_some() {
            self.keep(first, arrived);
            return;
        }
        let limit = self.limit(ttl_ms);
        if limit == 0 && self.spans.is_empty() {
            return;
        }
        // Later ends of a grid: what falls between two of them shares a span.
        let grid = (limit / Ms::from(LATE_PART)).max(1);
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

    /// Messages from `first` on arrived, behind all others.
    fn keep(&mut self, first: u64, arrived: Ms) {
        let grid = self.grid.expect("all arrivals are kept");
        // A clock that goes back stands still.
        let arrived = match self.spans.back_mut() {
            Some(last) if last.arrived.div_euclid(grid) >= arrived.div_euclid(grid) => {
                last.arrived = last.arrived.max(arrived);
                return;
            }
            _ => arrived,
        };
        self.spans.push_back(Span {
            first,
            arrived,
            ttl_ms: 0,
        });
        if self.spans.len() > KEPT_MAX {
            self.widen();
        } else if self.spans.len() < KEPT_MAX / 4 && grid > GRID_MIN {
            self.grid = Some(grid / 2);
        }
    }

    /// Makes cells wider until there are markedly fewer spans.
    fn widen(&mut self) {
        while self.spans.len() > KEPT_MAX / 4 * 3 {
            let grid = self.grid.expect("all arrivals are kept").saturating_mul(2);
            self.grid = Some(grid);
            let mut wide: VecDeque<Span> = VecDeque::with_capacity(KEPT_MAX + 1);
            for span in self.spans.drain(..) {
                match wide.back_mut() {
                    Some(last)
                        if last.arrived.div_euclid(grid) == span.arrived.div_euclid(grid) =>
                    {
                        last.arrived = span.arrived;
                    }
                    _ => wide.push_back(span),
                }
            }
            self.spans = wide;
        }
    }

    /// The first message that may have arrived at a time or later; `None` if none has.
    pub(crate) fn first_since(&self, at: Ms) -> Option<u64> {
        let before = self.spans.partition_point(|span| span.arrived < at);
        self.spans.get(before).map(|span| span.first)
    }

    /// When a message arrived, as well as that is known: within a span evenly. Never before one with a
    /// lower number.
    pub(crate) fn arrival_of(&self, sequence: u64) -> Ms {
        let behind = self.spans.partition_point(|span| span.first <= sequence);
        let Some(own) = behind.checked_sub(1) else {
            return self.spans.front().map_or(0, |span| span.arrived);
        };
        let span = self.spans[own];
        let Some(next) = self.spans.get(behind) else {
            return span.arrived;
        };
        let grid = self.grid.unwrap_or(1);
        let cell = span.arrived.div_euclid(grid) * grid;
        let before = own.checked_sub(1).map_or(cell, |at| self.spans[at].arrived);
        let from = cell.max(before).min(span.arrived);
        let share = i128::from(sequence - span.first + 1) * i128::from(span.arrived - from);
        from + (share / i128::from(next.first - span.first)) as Ms
    }

    /// A span of an earlier life.
    pub(crate) fn restore(&mut self, span: Span) {
        if self.grid.is_some() {
            self.keep(span.first, span.arrived);
            return;
        }
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
            limit => Some(span.arrived.saturating_add(limit)),
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
        if self.grid.is_some() {
            assert!(self.spans.len() <= KEPT_MAX);
            assert!(self.spans.iter().is_sorted_by_key(|span| span.arrived));
        }
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
    fn where_all_arrivals_are_kept_a_time_is_found_and_little_memory_is_used() {
        let mut expiry = Expiry::new(0);
        expiry.keep_all(0);
        let arrived = |sequence: u64| sequence as Ms * 7 / 3;
        for sequence in 1..=1_000_000 {
            expiry.push(sequence, arrived(sequence), 55);
        }
        expiry.invariants();
        assert!(expiry.of(1).is_none() && !expiry.is_over(1, Ms::MAX));
        let grid = arrived(1_000_000) / 512;
        for sequence in [1, 2, 500, 99_999, 500_000, 999_999, 1_000_000] {
            let exact = arrived(sequence);
            let found = expiry.first_since(exact).expect("it has arrived");
            assert!(found <= sequence, "nothing is left out");
            assert!(exact - arrived(found) <= grid, "and little is too much");
            assert!((expiry.arrival_of(sequence) - exact).abs() <= grid);
        }
        assert_eq!(expiry.first_since(arrived(1_000_000) + 1), None);
        let all: Vec<Ms> = (1..=10_000).map(|at| expiry.arrival_of(at * 100)).collect();
        assert!(all.is_sorted());
        // When what is kept is young, it is known better.
        let mut settled = SettledSet::new();
        settled.insert_new(1, 999_000);
        expiry.forget(&settled);
        for sequence in 1_000_001..=1_000_200 {
            expiry.push(sequence, arrived(sequence), 0);
        }
        assert!(expiry.grid < Some(grid));
        expiry.keep_all(1_000);
        assert_eq!(expiry.of(1_000_200), Some(arrived(1_000_200) + 1_000));
    }

    #[test]
    fn arrivals_that_are_few_are_known_exactly() {
        let mut expiry = Expiry::new(0);
        expiry.keep_all(0);
        for (sequence, at) in [(1, 0), (2, 5_000), (3, 5_001), (4, 9_000_000)] {
            expiry.push(sequence, at, 0);
        }
        assert_eq!(
            [1, 2, 4].map(|sequence| expiry.arrival_of(sequence)),
            [0, 5_000, 9_000_000]
        );
        let starts = [-1, 0, 1, 5_001, 5_002, 9_000_001].map(|at| expiry.first_since(at));
        assert_eq!(starts, [Some(1), Some(1), Some(2), Some(2), Some(4), None]);
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
