//! Results in a terminal: one line for each run, a table at the end. Does not measure or judge.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::result::{Results, Round};

/// Quantiles of one latency, in µs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    /// Samples.
    pub count: u64,
    /// Half are at most this.
    pub p50_us: f64,
    /// 90 % are.
    pub p90_us: f64,
    /// 99 % are.
    pub p99_us: f64,
    /// 99.9 % are.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Quantiles {
    /// The quantiles of a histogram of ns.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: us(1.0),
        }
    }
}

/// A quantile that at least ten samples lie above; fewer say nothing of it.
#[must_use]
pub fn quantile(times: &Histogram<u64>, quantile: f64) -> Option<u64> {
    let above = times.len() as f64 * (1.0 - quantile);
    (above >= 9.999).then(|| times.value_at_quantile(quantile))
}

/// A percentile for people, as far as enough messages lie above it.
#[must_use]
pub fn percentile(times: &Histogram<u64>, at: f64) -> String {
    quantile(times, at).map_or_else(|| "–".to_owned(), time_of)
}

/// A time in the unit that suits it, three digits.
#[must_use]
pub fn time_of(ns: u64) -> String {
    let ns = ns as f64;
    let (value, unit) = match ns {
        _ if ns < 1e3 => return format!("{ns:.0} ns"),
        _ if ns < 999.5e3 => (ns / 1e3, "µs"),
        _ if ns < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A number with spaces between thousands (no-break and thin, so that it stays on one line).
#[must_use]
pub fn rate_of(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    if value <= -0.5 {
        text.push('−');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A run in one line.
#[must_use]
pub fn line_of(round: &Round) -> String {
    let name = &round.name;
    if let Some(why) = &round.invalid {
        return format!("{name}: NOT REPORTED: {why}");
    }
    let rate = rate_of(round.achieved_per_second);
    let offered = match round.offered {
        Some(offered) => format!(" of {}", rate_of(offered)),
        None if round.published == 0 => String::new(),
        None => " (closed loop)".to_owned(),
    };
    let times = match round.main_series() {
        Some((_, times)) => {
            let at = |quantile| time_of(times.value_at_quantile(quantile));
            format!(
                "  p50 {}  p99 {}  max {}",
                at(0.5),
                at(0.99),
                time_of(times.max())
            )
        }
        None => String::new(),
    };
    format!("{name}: {rate}/s{offered}{times}")
}

/// The columns of the table of latencies.
pub const COLUMNS: [(&str, f64); 6] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
    ("p99.999", 0.99999),
];

/// Everything as text.
pub struct Table<'a>(pub &'a Results);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let results = self.0;
        for (name, value) in results.machine.0.iter().chain(&results.broker.0) {
            writeln!(f, "  {name}: {value}")?;
        }
        writeln!(
            f,
            "durability class {}: {}",
            results.class.letter, results.class.words
        )?;
        for round in &results.rounds {
            writeln!(f)?;
            write_round(f, round)?;
        }
        if let Some(device) = &results.device {
            writeln!(f)?;
            writeln!(
                f,
                "the device itself: one thread, {} B durable, {} ({})",
                device.bytes, device.directory, device.file_system
            )?;
            write_head(f)?;
            write_times(f, "before", &device.before.0)?;
            write_times(f, "after", &device.after.0)?;
            if let Some(ratio) = device_ratio(results) {
                writeln!(f, "confirm p99 is {ratio:.2} × the device's p99")?;
            }
        }
        if let Some(text) = device_change(results) {
            writeln!(f, "caution: {text}")?;
        }
        if let Some(found) = &results.sweep {
            writeln!(f)?;
            match found.knee {
                Some(knee) => writeln!(
                    f,
                    "knee: {}/s, p99 {}",
                    rate_of(knee.offered),
                    time_of(knee.p99_ns as u64)
                )?,
                None => writeln!(f, "knee: the curve does not bend")?,
            }
            let most = rate_of(found.saturation);
            match found.is_reached {
                true => writeln!(f, "saturation: {most}/s")?,
                false => writeln!(f, "saturation: not reached, more than {most}/s")?,
            }
        }
        Ok(())
    }
}

/// The p99 of confirms against that of the device, the higher of before and after; only where both
/// mean the same.
#[must_use]
pub fn device_ratio(results: &Results) -> Option<f64> {
    let device = results
        .device
        .as_ref()
        .filter(|_| results.class.is_durable)?;
    let [round] = &results.rounds[..] else {
        return None;
    };
    let own = quantile(round.times("confirm")?, 0.99)?;
    let before = quantile(&device.before.0, 0.99)?;
    let after = quantile(&device.after.0, 0.99)?;
    Some(own as f64 / before.max(after) as f64)
}

/// A word of warning if the device was not the same before and after.
#[must_use]
pub fn device_change(results: &Results) -> Option<String> {
    let device = results.device.as_ref()?;
    let [before, after] =
        [&device.before.0, &device.after.0].map(|times| times.value_at_quantile(0.5));
    let ratio = before.max(after) as f64 / before.min(after).max(1) as f64;
    (ratio >= 2.0).then(|| {
        format!(
            "the device was not the same before and after: a write took {} and {} at the median",
            time_of(before),
            time_of(after)
        )
    })
}

fn write_head(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "  {:<22}", "")?;
    for (name, _) in COLUMNS {
        write!(f, "{name:>10}")?;
    }
    writeln!(f, "{:>10}{:>12}", "max", "samples")
}

fn write_times(f: &mut fmt::Formatter<'_>, name: &str, times: &Histogram<u64>) -> fmt::Result {
    write!(f, "  {name:<22}")?;
    for (_, at) in COLUMNS {
        let text = percentile(times, at);
        write!(f, "{text:>10}")?;
    }
    writeln!(
        f,
        "{:>10}{:>12}",
        time_of(times.max()),
        rate_of(times.len() as f64)
    )
}

fn write_round(f: &mut fmt::Formatter<'_>, round: &Round) -> fmt::Result {
    writeln!(f, "{}", line_of(round))?;
    for note in &round.notes {
        writeln!(f, "  note: {note}")?;
    }
    if round.invalid.is_none() {
        write_head(f)?;
        for (name, _) in crate::result::SERIES {
            if let Some(times) = round.times(name) {
                write_times(f, name, times)?;
            }
        }
        if let Some(connects) = &round.connects {
            write_times(f, "connect", &connects.0)?;
        }
        for (name, times) in &round.stages {
            write_times(f, &format!("stage {name}"), &times.0)?;
        }
    } else if let Some(times) = round.times("late") {
        write_head(f)?;
        write_times(f, "late", times)?;
    }
    if !round.hiccups.0.is_empty() {
        write_times(f, "hiccups of the machine", &round.hiccups.0)?;
    }
    writeln!(
        f,
        "  published {}/s, confirmed {}/s, delivered {}/s, settled {}/s in {:.1} s; load CPU {:.0} % busy",
        rate_of(round.published_per_second),
        rate_of(round.confirmed_per_second),
        rate_of(round.delivered_per_second),
        rate_of(round.settled_per_second),
        round.seconds,
        round.load_busy * 100.0
    )?;
    if round.offered.is_some() {
        writeln!(
            f,
            "  schedule missed by more than 1 ms: {} messages ({:.3} %); held up by the broker: {}; due \
             and not sent at the end: {}",
            round.counts.missed,
            round.missed_share * 100.0,
            round.late.saturating_sub(round.counts.missed),
            round.counts.unsent
        )?;
    }
    if let Some(why) = &round.stages_missing
        && round.invalid.is_none()
    {
        writeln!(f, "  stages: {why}")?;
    }
    writeln!(
        f,
        "  in all: published {}, refused {}, delivered {}, redelivered {}, repeated {}, missing {}, out \
         of order {}, misrouted {}, of other runs {}, corrupt {}",
        round.published,
        round.counts.refused,
        round.delivered,
        round.counts.redelivered,
        round.counts.repeated,
        round.counts.missing,
        round.counts.disordered,
        round.counts.misrouted,
        round.counts.foreign,
        round.counts.corrupt
    )?;
    if let Some(words) = &round.counts.first_refusal {
        writeln!(f, "  first refusal: {words}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::made_up;
    use crate::tally::latencies;

    #[test]
    fn figures_are_said_in_three_digits() {
        for (ns, text) in [
            (7, "7 ns"),
            (1_234, "1.23 µs"),
            (45_678, "45.7 µs"),
            (999_400, "999 µs"),
            (999_600, "1.00 ms"),
            (12_345_678_900, "12.3 s"),
        ] {
            assert_eq!(time_of(ns), text);
        }
        let plain = |value| rate_of(value).replace('\u{202f}', " ");
        assert_eq!(plain(1_234_567.4), "1 234 567");
        assert_eq!(plain(999.0), "999");
        assert_eq!(plain(-1000.0), "−1 000");
    }

    #[test]
    fn percentiles_need_samples() {
        let mut times = latencies();
        times.saturating_record_n(5, 1_000);
        assert_eq!(quantile(&times, 0.99), Some(5));
        assert_eq!(quantile(&times, 0.999), None);
    }

    #[test]
    fn a_run_that_is_not_reported_shows_no_latency() {
        let mut results = made_up(&[100]);
        let text = Table(&results).to_string();
        assert!(
            text.contains("end-to-end") && text.contains("p99.999"),
            "{text}"
        );
        results.rounds[0].refuse("too late".into());
        let text = Table(&results).to_string();
        assert!(
            text.contains("NOT REPORTED: too late") && !text.contains("end-to-end"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_durable_has_no_ratio_to_the_device() {
        let mut results = made_up(&[100]);
        let mut times = latencies();
        times.saturating_record_n(50_000, 10_000);
        results.device = Some(crate::result::Device {
            directory: "/data".into(),
            file_system: "ext4".into(),
            bytes: 4096,
            before: crate::result::Times(times.clone()),
            after: crate::result::Times(times),
        });
        let ratio = device_ratio(&results).expect("both are durable");
        assert!((ratio - 3.98).abs() < 0.05, "{ratio}");
        assert_eq!(device_change(&results), None);
        let mut slow = latencies();
        slow.saturating_record_n(150_000, 10_000);
        if let Some(device) = &mut results.device {
            device.after = crate::result::Times(slow);
        }
        let text = device_change(&results).expect("three times as slow");
        assert!(text.contains("50.0 µs and 150 µs"), "{text}");
        results.class.is_durable = false;
        assert_eq!(device_ratio(&results), None);
    }
}
