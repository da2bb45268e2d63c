//! How fast a reader goes through a stream that asked for a pace. Does not know messages or credit.
//!
//! A pace counts from an anchor: the moment at which its reader began, or went on after a pause. It
//! never owes more than a tenth of a second: who was held up by something else does not catch up in a
//! burst.

use super::super::expiry::Ms;
use super::settings::Pace;

/// What of a pace that could not be kept is made up for, in ms.
const OWED_MS_MAX: i64 = 100;

pub(super) struct Pacer {
    pace: Pace,
    anchor: Option<Anchor>,
}

#[derive(Clone, Copy)]
struct Anchor {
    /// When it was set.
    at: Ms,
    /// Messages given since.
    given: u64,
    /// When the message that was next then had arrived.
    arrival: Ms,
}

impl Pacer {
    pub(super) const fn new(pace: Pace) -> Self {
        Self { pace, anchor: None }
    }

    /// The reader pauses: what it could have had meanwhile is not owed.
    pub(super) fn stop(&mut self) {
        // The original pace goes on through a pause: that is what it is.
        if matches!(self.pace, Pace::Rate(_)) {
            self.anchor = None;
        }
    }

    /// The reader was given so many messages.
    pub(super) fn gave(&mut self, count: u64) {
        if let Some(anchor) = &mut self.anchor {
            anchor.given += count;
        }
    }

    /// Up to where the messages `first..=last` may be given now, or when the first may.
    pub(super) fn due_upto(
        &mut self,
        first: u64,
        last: u64,
        now: Ms,
        arrival_of: impl Fn(u64) -> Ms,
    ) -> Result<u64, Ms> {
        let anchor = self.anchor.get_or_insert_with(|| Anchor {
            at: now,
            given: 0,
            arrival: arrival_of(first),
        });
        match self.pace {
            Pace::Rate(rate) => {
                let rate = i64::from(rate);
                let due = (now - anchor.at) * rate / 1_000 + 1;
                let owed = due - anchor.given as i64;
                if owed <= 0 {
                    let wait = (anchor.given as i64 * 1_000 + rate - 1) / rate;
                    return Err((anchor.at + wait).max(now + 1));
                }
                let owed_max = rate * OWED_MS_MAX / 1_000 + 1;
                if owed > owed_max {
                    *anchor = Anchor {
                        at: now,
                        given: 0,
                        ..*anchor
                    };
                    return Ok(first);
                }
                Ok(last.min(first + owed as u64 - 1))
            }
            Pace::Original(percent) => {
                let Anchor { at, arrival, .. } = *anchor;
                let when = |sequence: u64| {
                    let behind = (arrival_of(sequence) - arrival).max(0);
                    at + behind.saturating_mul(100) / i64::from(percent)
                };
                if when(first) > now {
                    return Err(when(first));
                }
                // Arrivals rise, so what is due is a prefix.
                let (mut is_due, mut is_not) = (first, last + 1);
                while is_due + 1 < is_not {
                    let middle = is_due + (is_not - is_due) / 2;
                    if when(middle) <= now {
                        is_due = middle;
                    } else {
                        is_not = middle;
                    }
                }
                Ok(is_due)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as fast as the pace allows, looking every `step` ms; says when each message was given.
    fn read(pace: Pace, count: u64, step: i64, arrival_of: impl Fn(u64) -> Ms) -> Vec<Ms> {
        let mut pacer = Pacer::new(pace);
        let mut given = Vec::new();
        let mut now = 1_000;
        while (given.len() as u64) < count {
            let first = given.len() as u64 + 1;
            match pacer.due_upto(first, count, now, &arrival_of) {
                Ok(upto) => {
                    pacer.gave(upto - first + 1);
                    given.extend((first..=upto).map(|_| now));
                }
                Err(until) => {
                    assert!(until > now, "it waits for something");
                    now = until.max(now + step);
                }
            }
        }
        given
    }

    #[test]
    fn a_rate_is_kept_and_never_passed() {
        for rate in [1, 7, 100, 1_000, 25_000] {
            let count = (u64::from(rate) * 3).max(10);
            let given = read(Pace::Rate(rate), count, 1, |_| 0);
            for (idx, at) in given.iter().enumerate() {
                let exact = 1_000 + idx as i64 * 1_000 / i64::from(rate);
                assert!(
                    (exact..=exact + 2).contains(at),
                    "{idx} of {rate}: {at}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn what_was_held_up_is_not_made_up_for_at_once() {
        let mut pacer = Pacer::new(Pace::Rate(1_000));
        assert_eq!(pacer.due_upto(1, 10_000, 0, |_| 0), Ok(1));
        pacer.gave(1);
        // It was busy for ten seconds.
        assert_eq!(pacer.due_upto(2, 10_000, 10_000, |_| 0), Ok(2));
        pacer.gave(1);
        assert_eq!(pacer.due_upto(3, 10_000, 10_050, |_| 0), Ok(52));
    }

    #[test]
    fn the_original_pace_is_that_of_the_arrivals() {
        let arrivals = |sequence: u64| -500 + sequence as i64 * sequence as i64;
        for percent in [50, 100, 1_000] {
            let given = read(Pace::Original(percent), 60, 1, arrivals);
            for (idx, at) in given.iter().enumerate() {
                let behind = arrivals(idx as u64 + 1) - arrivals(1);
                let exact = 1_000 + behind * 100 / i64::from(percent);
                assert!((exact..=exact + 1).contains(at));
            }
        }
    }
}
