//! How long a message waits that was given back. Does not know messages.

/// Least time a message may wait, in ms.
pub const RETRY_DELAY_MIN_MS: u32 = 1;
/// Most time it may wait: a day, in ms.
pub const RETRY_DELAY_MAX_MS: u32 = 86_400_000;

/// How the wait grows with each time that a message comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backoff {
    /// It does not.
    Fixed,
    /// By the first wait each time.
    Linear,
    /// To twice what it was each time.
    Exponential,
}

/// A retry policy: a message that a consumer gives back is kept back before it is offered again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry {
    /// How the wait grows.
    pub backoff: Backoff,
    /// The first wait, in ms.
    pub delay_ms: u32,
    /// The longest, in ms, before the jitter.
    pub delay_max_ms: u32,
    /// By how much a wait may be shorter or longer, in percent of it: what came back together does not
    /// all come again together.
    pub jitter_percent: u8,
}

impl Retry {
    /// How long a message waits that was delivered so often, in ms. The same for the same message and
    /// number of deliveries.
    pub(crate) fn wait_ms(&self, sequence: u64, deliveries: u32) -> i64 {
        let first = u64::from(self.delay_ms);
        let earlier = deliveries.saturating_sub(1);
        let wait = match self.backoff {
            Backoff::Fixed => first,
            Backoff::Linear => first * (u64::from(earlier) + 1),
            // No wait is longer than 2^27 ms.
            Backoff::Exponential => first << earlier.min(27),
        };
        let wait = wait.min(u64::from(self.delay_max_ms));
        let spread = wait * u64::from(self.jitter_percent) / 100;
        let chance = mixed(sequence ^ u64::from(deliveries) << 48) % (2 * spread + 1);
        (wait - spread + chance) as i64
    }
}

/// A number that looks like chance (the finaliser of SplitMix64, Steele et al. 2014).
const fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(backoff: Backoff, counts: &[u32]) -> Vec<i64> {
        let retry = Retry {
            backoff,
            delay_ms: 100,
            delay_max_ms: 1_000,
            jitter_percent: 0,
        };
        let waits = counts.iter().map(|count| retry.wait_ms(7, *count));
        waits.collect()
    }

    #[test]
    fn waits_grow_up_to_the_longest() {
        assert_eq!(waits(Backoff::Fixed, &[1, 2, u32::MAX]), [100; 3]);
        let linear = waits(Backoff::Linear, &[1, 2, 10, 11, u32::MAX]);
        assert_eq!(linear, [100, 200, 1_000, 1_000, 1_000]);
        let exponential = waits(Backoff::Exponential, &[0, 1, 2, 3, 4, 5, u32::MAX]);
        assert_eq!(exponential, [100, 100, 200, 400, 800, 1_000, 1_000]);
    }

    #[test]
    fn jitter_spreads_waits_evenly_to_both_sides() {
        let retry = Retry {
            backoff: Backoff::Fixed,
            delay_ms: 1_000,
            delay_max_ms: RETRY_DELAY_MAX_MS,
            jitter_percent: 20,
        };
        let mut waits: Vec<i64> = (1..=10_000).map(|n| retry.wait_ms(n, 1)).collect();
        waits.sort_unstable();
        assert!(waits[0] >= 800 && waits[9_999] <= 1_200);
        for (part, at) in [(1, 900), (2, 1_000), (3, 1_100)] {
            assert!((waits[part * 2_500] - at).abs() < 10, "quartile {part}");
        }
        assert_eq!(retry.wait_ms(5, 2), retry.wait_ms(5, 2));
        assert_ne!(retry.wait_ms(5, 2), retry.wait_ms(5, 3));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let retry = Retry {
            backoff: Backoff::Exponential,
            delay_ms: RETRY_DELAY_MAX_MS,
            delay_max_ms: RETRY_DELAY_MAX_MS,
            jitter_percent: 100,
        };
        let most = 2 * i64::from(RETRY_DELAY_MAX_MS);
        for count in [0, 1, 27, 28, u32::MAX] {
            assert!((0..=most).contains(&retry.wait_ms(u64::MAX, count)));
        }
    }
}
