//! Which limits were reached since it was last said, and saying so once a second at most: who floods
//! a broker must not flood its log. Does not count; the engine and the loop do.

use std::io;

use ringpost_engine::Mono;
use ringpost_engine::data::flow::Refusals;
use ringpost_engine::effect::Severity;
use ringpost_wire::Code;

/// Where a core's reports go. Must not block.
pub type Reporter = Box<dyn Fn(Severity, String) + Send>;

/// Codes that say that something is used up: an operator can do something about each.
const LIMITS: [Code; 4] = [
    Code::QueueFull,
    Code::DiskFull,
    Code::Overloaded,
    Code::LimitReached,
];
/// Least time between two lines on the same limit.
const QUIET_MS: u64 = 1_000;

/// What was said of the limits of a core.
#[derive(Debug, Default)]
pub struct Notices {
    /// Connections closed without a word, since there were too many even to refuse them.
    pub dropped: u64,
    /// Connections cut off because they held up the buffers and did not read.
    pub cut: u64,
    /// Why the last connection could not be accepted, until it is said.
    pub accept_failed: Option<io::Error>,
    said: Refusals,
    said_dropped: u64,
    said_cut: u64,
    said_at: Option<Mono>,
}

impl Notices {
    /// Says what is new, if it is time.
    pub fn tell(&mut self, now: Mono, refusals: &Refusals, report: &Reporter) {
        if self
            .said_at
            .is_some_and(|said| now.ms_since(said) < QUIET_MS)
        {
            return;
        }
        let mut is_said = false;
        let mut say = |text: String| {
            is_said = true;
            report(Severity::Warning, text);
        };
        for ((code, count), (_, before)) in refusals.iter().zip(self.said.iter()) {
            if LIMITS.contains(&code) && count > before {
                let more = count - before;
                say(format!("limit reached: {more} more refused with {code}"));
            }
        }
        if self.dropped > self.said_dropped {
            let more = self.dropped - self.said_dropped;
            say(format!(
                "limit reached: {more} more closed without a word, beyond connections_max"
            ));
        }
        if self.cut > self.said_cut {
            let more = self.cut - self.said_cut;
            say(format!(
                "limit reached: {more} more cut off that did not read what they asked for"
            ));
        }
        if let Some(error) = self.accept_failed.take() {
            say(format!(
                "connections cannot be accepted: {error}; `ringpost doctor` says whether \
                 descriptors are short"
            ));
        }
        if is_said {
            self.said = *refusals;
            self.said_dropped = self.dropped;
            self.said_cut = self.cut;
            self.said_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_at_once_and_then_once_a_second_with_the_sum() {
        let (lines, told) = flume::bounded(16);
        let report: Reporter = Box::new(move |severity, text| {
            lines.send((severity, text)).expect("the test listens");
        });
        let mut refusals = Refusals::default();
        let mut notices = Notices::default();
        let start = Mono(5_000_000_000);
        notices.tell(start, &refusals, &report);
        assert!(told.is_empty());
        refusals.add(Code::DiskFull, 2);
        refusals.add(Code::Unroutable, 9);
        notices.tell(start, &refusals, &report);
        refusals.add(Code::DiskFull, 3);
        notices.tell(start.plus_ms(QUIET_MS - 1), &refusals, &report);
        notices.dropped = 7;
        notices.tell(start.plus_ms(QUIET_MS), &refusals, &report);
        notices.tell(start.plus_ms(3 * QUIET_MS), &refusals, &report);
        let texts: Vec<(Severity, String)> = told.drain().collect();
        let expected = [
            "limit reached: 2 more refused with disk_full",
            "limit reached: 3 more refused with disk_full",
            "limit reached: 7 more closed without a word, beyond connections_max",
        ];
        assert_eq!(
            texts,
            expected.map(|text| (Severity::Warning, text.to_owned()))
        );
    }
}
