//! What a queue did lately: how many messages came and went, and how long they waited. Does not know
//! messages.
//!
//! Two windows of [`WINDOW_MS`] are kept, the one that is filled and the one before it, so what is told
//! is of the last ten to twenty seconds. Nothing runs for a queue that nothing happens to: a window is
//! closed by what comes after it.

use crate::ids::Mono;

/// Length of a window, in ms.
pub const WINDOW_MS: u64 = 10_000;

const WINDOW_NS: u64 = WINDOW_MS * 1_000_000;

/// Steps to each doubling of a waiting time.
const STEPS: u64 = 4;

/// Buckets of waiting times: of 0 to 3 µs one for each, then [`STEPS`] to each doubling, up to 19 hours.
const BUCKETS: usize = 35 * STEPS as usize;

/// What a queue did lately.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RecentFigures {
    /// The span that all of this is of, in ms; 0 if nothing ever happened.
    pub span_ms: u64,
    /// Messages that became deliverable.
    pub arrived: u64,
    /// Messages that the queue was done with.
    pub left: u64,
    /// Messages delivered for the first time whose wait is known.
    pub taken: u64,
    /// Mean of how long those had been deliverable, in µs.
    pub wait_mean_us: u64,
    /// Median of it, an eighth off at most, in µs.
    pub wait_p50_us: u64,
    /// 99th percentile of it, an eighth off at most, in µs.
    pub wait_p99_us: u64,
    /// The longest, in µs.
    pub wait_max_us: u64,
}

/// Counts what a queue does. Takes no memory before the first time, and 1.3 KiB from then on.
#[derive(Clone, Debug, Default)]
pub struct Recent(Option<Box<Windows>>);

#[derive(Clone, Debug)]
struct Windows {
    /// When the present window began.
    start: Mono,
    present: Window,
    /// Of the window before: `None` if there was none.
    before: Option<Window>,
}

#[derive(Clone, Debug)]
struct Window {
    arrived: u64,
    left: u64,
    taken: u64,
    wait_sum_us: u64,
    wait_max_us: u64,
    waits: [u32; BUCKETS],
}

impl Window {
    const EMPTY: Self = Self {
        arrived: 0,
        left: 0,
        taken: 0,
        wait_sum_us: 0,
        wait_max_us: 0,
        waits: [0; BUCKETS],
    };
}

impl Recent {
    /// Messages became deliverable.
    pub fn arrived(&mut self, count: u64, now: Mono) {
        self.at(now).arrived += count;
    }

    /// The queue is done with messages.
    pub fn left(&mut self, count: u64, now: Mono) {
        self.at(now).left += count;
    }

    /// Messages are delivered for the first time, `ns` after they became deliverable.
    pub fn taken(&mut self, count: u32, ns: u64, now: Mono) {
        let window = self.at(now);
        let us = ns / 1_000;
        window.taken += u64::from(count);
        window.wait_sum_us = (window.wait_sum_us).saturating_add(us.saturating_mul(count.into()));
        window.wait_max_us = window.wait_max_us.max(us);
        let bucket = &mut window.waits[bucket_of(us)];
        *bucket = bucket.saturating_add(count);
    }

    /// The window that `now` lies in.
    fn at(&mut self, now: Mono) -> &mut Window {
        let windows = self.0.get_or_insert_with(|| {
            Box::new(Windows {
                start: now,
                present: Window::EMPTY,
                before: None,
            })
        });
        let elapsed = now.0.saturating_sub(windows.start.0);
        if elapsed >= WINDOW_NS {
            let full = std::mem::replace(&mut windows.present, Window::EMPTY);
            let is_next = elapsed < 2 * WINDOW_NS;
            windows.before = Some(if is_next { full } else { Window::EMPTY });
            windows.start = Mono(now.0 - elapsed % WINDOW_NS);
        }
        &mut windows.present
    }

    /// Messages that came and went: how busy it is, for less than its figures cost.
    #[must_use]
    pub fn moved(&self, now: Mono) -> u64 {
        let Some(windows) = &self.0 else { return 0 };
        let moved = |window: &Window| window.arrived + window.left;
        match now.0.saturating_sub(windows.start.0) / WINDOW_NS {
            0 => moved(&windows.present) + windows.before.as_ref().map_or(0, moved),
            1 => moved(&windows.present),
            _ => 0,
        }
    }

    /// What it comes to.
    #[must_use]
    pub fn figures(&self, now: Mono) -> RecentFigures {
        let Some(windows) = &self.0 else {
            return RecentFigures::default();
        };
        let elapsed = now.0.saturating_sub(windows.start.0);
        // A window that is over, as nothing came after it, is the one before.
        let (present, before, span) = match elapsed / WINDOW_NS {
            0 => {
                let before = windows.before.as_ref();
                let ahead = if before.is_some() { WINDOW_NS } else { 0 };
                (Some(&windows.present), before, elapsed + ahead)
            }
            1 => (None, Some(&windows.present), elapsed),
            _ => (None, None, 2 * WINDOW_NS),
        };
        let both = || present.into_iter().chain(before);
        let sum = |of: fn(&Window) -> u64| both().map(of).fold(0, u64::saturating_add);
        let (taken, waited) = (sum(|window| window.taken), sum(|window| window.wait_sum_us));
        let wait_max_us = both().map(|window| window.wait_max_us).max().unwrap_or(0);
        let percentile = |per_mille: u64| {
            let rank = (taken * per_mille).div_ceil(1_000).max(1);
            let mut seen = 0;
            for bucket in 0..BUCKETS {
                seen += both()
                    .map(|window| u64::from(window.waits[bucket]))
                    .sum::<u64>();
                if seen >= rank {
                    return middle_of(bucket).min(wait_max_us);
                }
            }
            wait_max_us
        };
        RecentFigures {
            span_ms: span / 1_000_000,
            arrived: sum(|window| window.arrived),
            left: sum(|window| window.left),
            taken,
            wait_mean_us: waited.checked_div(taken).unwrap_or(0),
            wait_p50_us: if taken > 0 { percentile(500) } else { 0 },
            wait_p99_us: if taken > 0 { percentile(990) } else { 0 },
            wait_max_us,
        }
    }
}

fn bucket_of(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let doublings = u64::from(us.ilog2()) - 2;
    let step = (us >> doublings) - STEPS;
    ((doublings + 1) * STEPS + step).min(BUCKETS as u64 - 1) as usize
}

/// The middle of a bucket, in µs.
fn middle_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let doublings = bucket / STEPS - 1;
    let low = (STEPS + bucket % STEPS) << doublings;
    low + (1 << doublings) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    #[test]
    fn a_bucket_is_an_eighth_off_at_most() {
        let mut us = 0_u64;
        while us < 1 << 36 {
            let middle = middle_of(bucket_of(us));
            assert!(middle.abs_diff(us) * 8 <= us, "{us} {middle}");
            us += 1 + us / 97;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_waits() {
        let mut recent = Recent::default();
        assert_eq!(recent.figures(ms(5)), RecentFigures::default());
        for us in 1..=1_000 {
            recent.taken(1, us * 1_000, ms(100));
        }
        recent.taken(1, 50_000_000, ms(200));
        let figures = recent.figures(ms(1_100));
        assert_eq!(figures.span_ms, 1_000);
        assert_eq!(figures.taken, 1_001);
        assert_eq!(figures.wait_mean_us, (500_500 + 50_000) / 1_001);
        assert!(figures.wait_p50_us.abs_diff(500) <= 63, "{figures:?}");
        assert!(figures.wait_p99_us.abs_diff(990) <= 124, "{figures:?}");
        assert_eq!(figures.wait_max_us, 50_000);
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let mut recent = Recent::default();
        recent.arrived(10, ms(0));
        recent.left(4, ms(9_999));
        recent.arrived(1, ms(10_000));
        let figures = recent.figures(ms(12_000));
        assert_eq!(
            (figures.span_ms, figures.arrived, figures.left),
            (12_000, 11, 4)
        );
        // The first window is out of sight, with or without something new.
        let idle = recent.figures(ms(20_500));
        assert_eq!((idle.span_ms, idle.arrived, idle.left), (10_500, 1, 0));
        recent.left(1, ms(20_500));
        let busy = recent.figures(ms(20_500));
        assert_eq!((busy.span_ms, busy.arrived, busy.left), (10_500, 1, 1));
        // After a long time all is.
        let idle = recent.figures(ms(90_000));
        assert_eq!((idle.span_ms, idle.arrived, idle.left), (20_000, 0, 0));
        recent.arrived(7, ms(95_000));
        let busy = recent.figures(ms(96_000));
        assert_eq!((busy.span_ms, busy.arrived, busy.left), (16_000, 7, 0));
        let moved = [96_000, 109_000, 110_000].map(|at| recent.moved(ms(at)));
        assert_eq!(moved, [7, 7, 0]);
    }
}
