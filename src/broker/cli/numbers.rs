//! How the numbers of a queue read. Does not know where they come from.

use std::time::Duration;

use super::output;
use crate::control::numbers::Numbers;

/// Heads of [`cells`].
pub const HEADS: [&str; 6] = [
    "in/s",
    "out/s",
    "wait p50",
    "wait p99",
    "by Little",
    "outlook",
];

/// Rates, waits and outlook.
pub fn cells(numbers: &Numbers, is_damaged: bool) -> [String; 6] {
    let measured = |ms: f64| match numbers.waits {
        0 => "-".into(),
        _ => latency(ms),
    };
    [
        rate(numbers.arrival_rate),
        rate(numbers.service_rate),
        measured(numbers.wait_p50_ms),
        measured(numbers.wait_p99_ms),
        numbers.littles_wait_ms.map_or("-".into(), latency),
        outlook(numbers, is_damaged),
    ]
}

/// What becomes of a queue if everything goes on like this.
pub fn outlook(numbers: &Numbers, is_damaged: bool) -> String {
    let span = |seconds: f64| {
        let span = Duration::try_from_secs_f64(seconds);
        output::span(span.unwrap_or(Duration::MAX))
    };
    if is_damaged {
        "damaged".into()
    } else if let Some(seconds) = numbers.empty_in_s {
        format!("empty in {}", span(seconds))
    } else if let Some(seconds) = numbers.full_in_s {
        format!("full in {}", span(seconds))
    } else if numbers.growth > 0.0 {
        format!("grows {}/s", rate(numbers.growth))
    } else {
        String::new()
    }
}

/// A latency, given in ms.
pub fn latency(ms: f64) -> String {
    output::latency((ms * 1e6) as u64)
}

/// A rate: to the whole number, or with a digit where that says more.
pub fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 {
        format!("{rate:.1}")
    } else {
        output::grouped(rate.round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_a_dash() {
        let idle = cells(&Numbers::default(), false);
        assert_eq!(idle, ["0", "0", "-", "-", "-", ""]);
        let busy = Numbers {
            arrival_rate: 1_200.4,
            service_rate: 0.25,
            growth: 1_200.15,
            waits: 3,
            wait_p50_ms: 0.0,
            wait_p99_ms: 12.5,
            littles_wait_ms: Some(90_000.0),
            ..Numbers::default()
        };
        let shown = ["1,200", "0.2", "0 ns", "12.5 ms", "90.0 s", "grows 1,200/s"];
        assert_eq!(cells(&busy, false), shown);
    }

    #[test]
    fn the_outlook_says_what_comes_first() {
        let mut numbers = Numbers {
            empty_in_s: Some(61.0),
            ..Numbers::default()
        };
        assert_eq!(outlook(&numbers, false), "empty in 1 min 1 s");
        assert_eq!(outlook(&numbers, true), "damaged");
        numbers.empty_in_s = None;
        numbers.full_in_s = Some(f64::INFINITY);
        assert_eq!(outlook(&numbers, false), "full in years");
    }
}
