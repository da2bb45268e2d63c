//! The sections about latency: throughput and latency, percentiles, over time, and the two clocks.

use hdrhistogram::Histogram;

use super::figure::{self, Line};
use super::text::{escape, put};
use super::{chief, open, words_of};
use crate::report::{COLUMNS, percentile, quantile, rate_of, time_of};
use crate::result::{Results, Round};

pub(super) fn curve(out: &mut String, results: &Results) {
    open(
        out,
        "curve",
        "Throughput and latency",
        "Each point is one run at one rate. Latency counts from the time at which a message was due. The \
         knee is where the curve bends; beyond saturation the broker does not follow and latency grows \
         with time.",
    );
    let points: Vec<(&Round, &Histogram<u64>)> = results
        .rounds
        .iter()
        .filter_map(|round| Some((round, round.main_series()?.1)))
        .collect();
    let line = |name: &str, class: &'static str, at: f64| Line {
        name: name.to_owned(),
        class,
        points: points
            .iter()
            .filter_map(|(round, times)| {
                Some((
                    round.offered?,
                    quantile(times, at)? as f64,
                    round.name.clone(),
                ))
            })
            .collect(),
    };
    let lines = [
        line("p50", "c1", 0.5),
        line("p99", "c2", 0.99),
        line("p99.9", "c3", 0.999),
    ];
    let mut marks = Vec::new();
    if let Some(found) = results.sweep {
        if let Some(knee) = found.knee {
            marks.push((knee.offered, "knee".to_owned()));
        }
        if found.is_reached {
            marks.push((found.saturation, "saturation".to_owned()));
        }
    }
    figure::curve(out, &lines, &marks);
    put!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>offered</th><th>achieved</th><th>p50</th>\
         <th>p99</th><th>p99.9</th><th>max</th><th>load CPU</th><th></th></tr></thead><tbody>\n"
    );
    for round in &results.rounds {
        let times = round.main_series().map(|(_, times)| times);
        let cell = |at: f64| times.map_or_else(|| "–".to_owned(), |times| percentile(times, at));
        let is_knee = results
            .sweep
            .and_then(|found| found.knee)
            .is_some_and(|knee| round.offered == Some(knee.offered));
        let is_behind = crate::session::point_of(round).is_some_and(|point| point.is_saturated());
        let word = match (is_knee, is_behind, &round.invalid) {
            (_, _, Some(_)) => "not reported",
            (true, ..) => "knee",
            (_, true, _) => "did not follow",
            _ => "",
        };
        put!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.0} %</td>\
             <td class=\"word\">{word}</td></tr>\n",
            round.offered.map_or_else(|| "–".into(), rate_of),
            rate_of(round.achieved_per_second),
            cell(0.5),
            cell(0.99),
            cell(0.999),
            times.map_or_else(|| "–".into(), |times| time_of(times.max())),
            round.load_busy * 100.0
        );
    }
    put!(out, "</tbody></table></div></section>\n");
}

/// Points of a percentile plot: nines and time.
fn spectrum_of(times: &Histogram<u64>) -> Vec<(f64, f64, String)> {
    let mut points: Vec<(f64, f64, String)> = Vec::new();
    // From p1 on: the one fastest message would stretch the axis for nothing.
    let first = std::iter::once(-(0.99f64.log10()));
    // Twenty steps for each nine, as far as at least one sample lies above.
    for nines in first.chain((1..=120).map(|step| f64::from(step) / 20.0)) {
        let share = 1.0 - 10f64.powf(-nines);
        if times.len() as f64 * (1.0 - share) < 1.0 {
            break;
        }
        let name = format!("p{}", percent_of(share * 100.0));
        points.push((nines, times.value_at_quantile(share) as f64, name));
    }
    if !times.is_empty() {
        // The last sample stands for the share that it is of all.
        let nines = (times.len() as f64).log10();
        points.push((nines.min(6.5), times.max() as f64, "max".into()));
    }
    points
}

/// A line of a percentile plot.
#[must_use]
pub fn line(name: &str, class: &'static str, times: &Histogram<u64>) -> Line {
    Line {
        name: name.to_owned(),
        class,
        points: spectrum_of(times),
    }
}

fn percent_of(percent: f64) -> String {
    let text = format!("{percent:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const COLOURS: [&str; 8] = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"];

pub(super) fn spectrum(out: &mut String, results: &Results) {
    open(
        out,
        "percentiles",
        "Percentiles",
        "Share of messages that took at most so long, to the slowest of all. Each step to the right leaves a \
         tenth of the messages above; both axes are logarithmic.",
    );
    let mut lines = Vec::new();
    let reported: Vec<_> = results
        .rounds
        .iter()
        .filter(|round| round.main_series().is_some())
        .collect();
    if reported.len() == 1 {
        let round = reported[0];
        let names = [
            ("end-to-end", "end to end"),
            ("slow", "end to end, slow queues"),
            ("served", "consumer done"),
            ("confirm", "confirm"),
        ];
        let wanted = names
            .iter()
            .filter_map(|(name, words)| Some((*words, round.times(name)?)));
        for ((words, times), class) in wanted.zip(COLOURS) {
            lines.push(line(words, class, times));
        }
        if let Some(connects) = &round.connects {
            lines.push(line("connect", "c5", &connects.0));
        }
        if !round.hiccups.0.is_empty() {
            lines.push(line("the machine itself", "quiet", &round.hiccups.0));
        }
    } else {
        // As many as can be told apart, spread over all.
        let most = COLOURS.len().min(reported.len());
        for (slot, class) in COLOURS.into_iter().take(most).enumerate() {
            let at = slot * (reported.len() - 1) / (most - 1).max(1);
            if let Some((_, times)) = reported[at].main_series() {
                lines.push(line(&reported[at].name, class, times));
            }
        }
    }
    if lines.is_empty() {
        put!(
            out,
            "<p class=\"none\">No run can be reported.</p></section>\n"
        );
        return;
    }
    figure::spectrum(out, &lines);
    put!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th class=\"word\">{}</th>",
        if reported.len() == 1 { "" } else { "run" }
    );
    for (name, _) in COLUMNS {
        put!(out, "<th>{name}</th>");
    }
    put!(out, "<th>max</th><th>samples</th></tr></thead><tbody>\n");
    if let [round] = reported[..] {
        for (name, words) in [
            ("end-to-end", "end to end, response"),
            ("end-to-end-service", "end to end, service"),
            ("slow", "end to end, slow queues"),
            ("served", "consumer done, response"),
            ("confirm", "confirm, response"),
            ("confirm-service", "confirm, service"),
            ("late", "sent late"),
        ] {
            if let Some(times) = round.times(name) {
                row(out, words, times);
            }
        }
        if let Some(connects) = &round.connects {
            row(out, "connect and attach", &connects.0);
        }
        if !round.hiccups.0.is_empty() {
            row(out, "the machine itself", &round.hiccups.0);
        }
    } else {
        for round in reported {
            if let Some((_, times)) = round.main_series() {
                row(out, &round.name, times);
            }
        }
    }
    put!(
        out,
        "</tbody></table></div><p class=\"fine\">Response counts from when a message was due, service from when \
         it was sent. A percentile that fewer than ten messages lie above is left out.</p></section>\n"
    );
}

fn row(out: &mut String, name: &str, times: &Histogram<u64>) {
    put!(out, "<tr><td class=\"word\">{}</td>", escape(name));
    for (_, at) in COLUMNS {
        let cell = percentile(times, at);
        put!(out, "<td>{cell}</td>");
    }
    put!(
        out,
        "<td>{}</td><td>{}</td></tr>\n",
        time_of(times.max()),
        rate_of(times.len() as f64)
    );
}

pub(super) fn over_time(out: &mut String, results: &Results) {
    let rounds: Vec<_> = results
        .rounds
        .iter()
        .filter(|round| round.intervals.len() > 1 && round.main_series().is_some())
        .collect();
    if rounds.is_empty() {
        return;
    }
    open(
        out,
        "time",
        "Over time",
        "Each column is an interval, by when messages arrived; the darker a cell, the more of them took so \
         long.",
    );
    // Of many rounds those that matter most: the chief one, and the last.
    let mut shown = Vec::new();
    if rounds.len() <= 3 {
        shown.extend(rounds);
    } else {
        let chief = chief(results).map(|round| &round.name);
        shown.extend(rounds.iter().filter(|round| Some(&round.name) == chief));
        let last = rounds[rounds.len() - 1];
        if Some(&last.name) != chief {
            shown.push(last);
        }
    }
    for round in shown {
        let series = round.main_series().map_or("confirm", |(name, _)| name);
        put!(
            out,
            "<h3>{}: {}</h3>\n",
            escape(&round.name),
            words_of(series)
        );
        figure::strip(out, round, series);
    }
    put!(out, "</section>\n");
}

pub(super) fn two_clocks(out: &mut String, results: &Results) {
    let Some(round) = chief(results) else {
        return;
    };
    let pairs = [
        ("confirm", "confirm-service", "Confirm"),
        ("end-to-end", "end-to-end-service", "End to end"),
    ];
    let pairs: Vec<_> = pairs
        .iter()
        .filter_map(|(response, service, name)| {
            Some((*name, round.times(response)?, round.times(service)?))
        })
        .collect();
    if pairs.is_empty() {
        return;
    }
    let of = match results.rounds.len() {
        1 => String::new(),
        _ => format!(" Run {}.", escape(&round.name)),
    };
    open(
        out,
        "clocks",
        "Response time and service time",
        &format!(
            "Response time counts from when a message was due, service time from when it was sent. Where \
             they part, messages waited before they were sent; a tool that only knows the second clock does \
             not see that.{of}"
        ),
    );
    for (name, response, service) in pairs {
        put!(out, "<h3>{name}</h3>\n");
        let lines = [
            line("response", "c1", response),
            line("service", "c2", service),
        ];
        figure::spectrum(out, &lines);
    }
    put!(out, "</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::made_up;

    #[test]
    fn percentiles_go_as_far_as_there_are_samples() {
        let results = made_up(&[100]);
        let times = results.rounds[0].times("confirm").expect("confirms");
        let points = spectrum_of(times);
        assert_eq!(points[0].2, "p1");
        assert!(points.iter().any(|point| point.2 == "p99.9"));
        let last = points.last().expect("points");
        assert_eq!((last.2.as_str(), last.1), ("max", times.max() as f64));
        assert!((last.0 - 3.0).abs() < 1e-9);
        assert!(points.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
}
