//! When messages should be sent: gaps that are equal or exponential, at a rate that is even, comes in
//! bursts or goes in steps. Does not know the clock; times are ns that its caller counts.

use std::sync::Arc;
use std::time::Duration;

use crate::message::Random;

/// How gaps vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gaps {
    /// Every gap is the mean.
    Equal,
    /// Exponential: a Poisson process.
    Exponential,
}

/// How the rate changes in time, as factors of the mean rate.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Profile {
    /// It does not.
    #[default]
    Flat,
    /// Nothing for `off`, after all that is due in both during `on`; again and again. All producers
    /// have the same phase.
    Bursts {
        /// Time with load.
        on: Duration,
        /// Time without.
        off: Duration,
    },
    /// A factor for each time, the last one for ever.
    Steps(Vec<(Duration, f64)>),
}

/// A stretch of time with one rate.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stretch {
    ns: f64,
    factor: f64,
}

/// A profile made ready: stretches that are walked along, in a circle or once.
#[derive(Clone, Debug, PartialEq)]
struct Course {
    stretches: Vec<Stretch>,
    is_circle: bool,
}

impl Course {
    /// `lead`: the first factor lasts this much longer, for a warm-up before the first step.
    fn new(profile: &Profile, lead: Duration) -> Option<Self> {
        let ns = |time: Duration| time.as_nanos() as f64;
        match profile {
            Profile::Flat => None,
            Profile::Bursts { on, off } => Some(Self {
                stretches: vec![
                    Stretch {
                        ns: ns(*on),
                        factor: (ns(*on) + ns(*off)) / ns(*on),
                    },
                    Stretch {
                        ns: ns(*off),
                        factor: 0.0,
                    },
                ],
                is_circle: true,
            }),
            Profile::Steps(steps) => {
                let mut stretches: Vec<_> = steps
                    .iter()
                    .map(|(time, factor)| Stretch {
                        ns: ns(*time),
                        factor: *factor,
                    })
                    .collect();
                if let Some(first) = stretches.first_mut() {
                    first.ns += ns(lead);
                }
                if let Some(last) = stretches.last_mut() {
                    last.ns = f64::INFINITY;
                }
                Some(Self {
                    stretches,
                    is_circle: false,
                })
            }
        }
    }
}

/// The intended times of one producer's messages, in order. The same seed gives the same times.
#[derive(Clone, Debug)]
pub struct Schedule {
    gaps: Gaps,
    /// Mean gap in ns at factor 1.
    gap_ns: f64,
    /// When the next message is due, in ns; not a number before [`Schedule::begin`].
    due_ns: f64,
    random: Random,
    course: Option<Arc<Course>>,
    /// The stretch that `due_ns` lies in, and where it ends.
    stretch: usize,
    stretch_end_ns: f64,
}

impl Schedule {
    /// `per_second`: of this producer. `lead`: how long the first step lasts beyond its time.
    #[must_use]
    pub fn new(gaps: Gaps, per_second: f64, profile: &Profile, lead: Duration, seed: u64) -> Self {
        Self {
            gaps,
            gap_ns: 1e9 / per_second,
            due_ns: f64::NAN,
            random: Random::new(seed),
            course: Course::new(profile, lead).map(Arc::new),
            stretch: 0,
            stretch_end_ns: f64::INFINITY,
        }
    }

    /// Whether [`Schedule::begin`] was called.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        !self.due_ns.is_nan()
    }

    /// Starts at `start_ns`; the first message comes after `share` of a gap, so that producers are
    /// spread over one.
    pub fn begin(&mut self, start_ns: u64, share: f64) {
        self.due_ns = start_ns as f64;
        if let Some(course) = &self.course {
            self.stretch = 0;
            self.stretch_end_ns = self.due_ns + course.stretches[0].ns;
        }
        self.advance(share);
    }

    /// When the next message is due, in ns.
    #[must_use]
    pub const fn due_ns(&self) -> f64 {
        self.due_ns
    }

    /// Whether a message is due.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        self.due_ns <= now as f64
    }

    /// The time that is due; the next is one gap later.
    pub fn take(&mut self) -> u64 {
        let due = self.due_ns;
        let gaps = match self.gaps {
            Gaps::Equal => 1.0,
            Gaps::Exponential => self.random.next_exponential(),
        };
        self.advance(gaps);
        due as u64
    }

    /// Goes on by `gaps` mean gaps of the rate that holds there.
    fn advance(&mut self, gaps: f64) {
        let mut left = gaps * self.gap_ns;
        let Some(course) = &self.course else {
            self.due_ns += left;
            return;
        };
        loop {
            let factor = course.stretches[self.stretch].factor;
            let room = (self.stretch_end_ns - self.due_ns) * factor;
            if factor > 0.0 && left < room {
                self.due_ns += left / factor;
                return;
            }
            if self.stretch_end_ns.is_infinite() {
                self.due_ns = f64::INFINITY; // nothing more comes
                return;
            }
            left -= if factor > 0.0 { room } else { 0.0 };
            self.due_ns = self.stretch_end_ns;
            self.stretch += 1;
            if self.stretch == course.stretches.len() {
                assert!(course.is_circle, "the last step has no end");
                self.stretch = 0;
            }
            self.stretch_end_ns += course.stretches[self.stretch].ns;
        }
    }
}

impl Profile {
    /// The mean factor over a time from the start of the profile.
    #[must_use]
    pub fn mean_factor(&self, time: Duration) -> f64 {
        let Profile::Steps(steps) = self else {
            return 1.0;
        };
        let all = time.as_secs_f64();
        let (mut sum, mut left) = (0.0, all);
        for (idx, (length, factor)) in steps.iter().enumerate() {
            let is_last = idx + 1 == steps.len();
            let part = if is_last {
                left
            } else {
                left.min(length.as_secs_f64())
            };
            sum += part * factor;
            left -= part;
        }
        if all > 0.0 { sum / all } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn times(schedule: &mut Schedule, until_ns: u64) -> Vec<u64> {
        schedule.begin(0, 0.0);
        let mut times = Vec::new();
        while schedule.is_due(until_ns) {
            times.push(schedule.take());
        }
        times
    }

    #[test]
    fn equal_gaps_are_equal() {
        let mut schedule = Schedule::new(Gaps::Equal, 1000.0, &Profile::Flat, Duration::ZERO, 1);
        let times = times(&mut schedule, SECOND - 1);
        assert_eq!(times.len(), 1000);
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 1_000_000));
    }

    #[test]
    fn producers_are_spread_over_a_gap() {
        let mut schedule = Schedule::new(Gaps::Equal, 1000.0, &Profile::Flat, Duration::ZERO, 1);
        schedule.begin(5_000_000, 0.25);
        assert_eq!(schedule.take(), 5_250_000);
        assert_eq!(schedule.take(), 6_250_000);
    }

    #[test]
    fn exponential_gaps_make_a_poisson_process() {
        let gaps = Gaps::Exponential;
        let mut schedule = Schedule::new(gaps, 10_000.0, &Profile::Flat, Duration::ZERO, 3);
        let times = times(&mut schedule, 100 * SECOND);
        // Counts in windows of 10 ms have mean 100 and a variance that equals it.
        let mut counts = vec![0.0; 10_000];
        for time in &times {
            if let Some(count) = counts.get_mut((time / 10_000_000) as usize) {
                *count += 1.0;
            }
        }
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        let variance = counts
            .iter()
            .map(|count| (count - mean) * (count - mean))
            .sum::<f64>()
            / counts.len() as f64;
        assert!((mean - 100.0).abs() < 0.5, "{mean}");
        assert!((variance / mean - 1.0).abs() < 0.05, "{variance} of {mean}");
        // A share of 1 - 1/e of the gaps is shorter than the mean.
        let short = times
            .windows(2)
            .filter(|pair| pair[1] - pair[0] < 100_000)
            .count() as f64;
        let share = short / (times.len() - 1) as f64;
        assert!((share - 0.632).abs() < 0.005, "{share}");
    }

    #[test]
    fn bursts_hold_all_messages_and_keep_the_mean() {
        let profile = Profile::Bursts {
            on: Duration::from_millis(100),
            off: Duration::from_millis(300),
        };
        for gaps in [Gaps::Equal, Gaps::Exponential] {
            let mut schedule = Schedule::new(gaps, 1000.0, &profile, Duration::ZERO, 5);
            let times = times(&mut schedule, 40 * SECOND - 1);
            let share = times.len() as f64 / 40_000.0;
            assert!((share - 1.0).abs() < 0.02, "{share}");
            let outside = times
                .iter()
                .filter(|time| *time % 400_000_000 > 100_000_001)
                .count();
            assert_eq!(outside, 0, "{gaps:?}");
        }
    }

    #[test]
    fn steps_change_the_rate_at_their_times() {
        let step = |seconds, factor| (Duration::from_secs(seconds), factor);
        let profile = Profile::Steps(vec![step(2, 1.0), step(1, 3.0), step(1, 0.0), step(1, 1.0)]);
        let lead = Duration::from_secs(1);
        let mut schedule = Schedule::new(Gaps::Equal, 100.0, &profile, lead, 1);
        let times = times(&mut schedule, 7 * SECOND - 1);
        let within = |from: u64, to: u64| {
            let range = from * SECOND..to * SECOND;
            times.iter().filter(|time| range.contains(time)).count() as i64
        };
        for (from, to, count) in [
            (0, 3, 300),
            (3, 4, 300),
            (4, 5, 0),
            (5, 6, 100),
            (6, 7, 100),
        ] {
            let found = within(from, to);
            assert!((found - count).abs() <= 1, "{from}..{to}: {found}");
        }
        let mean = profile.mean_factor(Duration::from_secs(5));
        assert!((mean - 6.0 / 5.0).abs() < 1e-9, "{mean}");
    }

    #[test]
    fn a_course_that_ends_in_nothing_is_over() {
        let step = |seconds, factor| (Duration::from_secs(seconds), factor);
        let profile = Profile::Steps(vec![step(1, 1.0), step(1, 0.0)]);
        let mut schedule = Schedule::new(Gaps::Equal, 10.0, &profile, Duration::ZERO, 1);
        assert_eq!(times(&mut schedule, 1000 * SECOND).len(), 10);
        assert!(schedule.due_ns().is_infinite());
    }
}
