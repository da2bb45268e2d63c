//! A result as one page that needs nothing else: text, tables and drawings, light and dark, for wide
//! and narrow screens and for paper, with the whole result inside. Does not measure or judge.

mod broker;
mod figure;
mod latency;
mod text;

use crate::machine::utc;
use crate::report::{percentile, quantile, rate_of, time_of};
use crate::result::{Results, Round};
use std::time::{Duration, UNIX_EPOCH};
use text::{capital, json_for_script, put};

pub use figure::{Line, spectrum};
pub use latency::line as percentile_line;
pub use text::escape;

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/script.js");

/// What a title says of a scenario.
fn title_of(results: &Results) -> String {
    let scenario = results.parameters.scenario.replace('-', " ");
    match scenario.is_empty() {
        true => "Load".into(),
        false => capital(&scenario),
    }
}

/// The page.
#[must_use]
pub fn page(results: &Results) -> String {
    let title = title_of(results);
    let mut body = String::new();
    head(&mut body, results, &title);
    if results.parameters.scenario == "sweep" {
        latency::curve(&mut body, results);
    }
    latency::spectrum(&mut body, results);
    latency::over_time(&mut body, results);
    latency::two_clocks(&mut body, results);
    broker::stages(&mut body, results);
    broker::cost(&mut body, results);
    broker::device(&mut body, results);
    honesty(&mut body, results);
    identity(&mut body, results);
    document(&title, "Ringpost load", &body, &results.json())
}

/// A page that needs nothing else: its style and script, a body, and the data that it shows as JSON.
#[must_use]
pub fn document(title: &str, of: &str, body: &str, json: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{} · {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <main>\n{body}</main>\n\
         <script type=\"application/json\" id=\"result\">{}</script>\n\
         <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(title),
        escape(of),
        json_for_script(json)
    )
}

fn open(out: &mut String, id: &str, title: &str, lead: &str) {
    put!(
        out,
        "<section id=\"{id}\"><h2>{title}</h2>\n<p class=\"lead\">{lead}</p>\n"
    );
}

/// The round that the page speaks of where only one fits: the knee of a sweep, else the first that
/// can be reported.
fn chief(results: &Results) -> Option<&Round> {
    let knee = results.sweep.and_then(|found| found.knee);
    let reported = || {
        results
            .rounds
            .iter()
            .filter(|round| round.main_series().is_some())
    };
    reported()
        .find(|round| knee.is_some_and(|knee| round.offered == Some(knee.offered)))
        .or_else(|| reported().next())
}

fn head(out: &mut String, results: &Results, title: &str) {
    let when = utc(UNIX_EPOCH + Duration::from_millis(results.started_ms));
    put!(
        out,
        "<header><p class=\"eyebrow\">Ringpost load report</p><h1>{}</h1>\n<p class=\"when\">{when} · \
         ringpost-load {}{}</p>\n",
        escape(title),
        escape(&results.version),
        match &results.parameters.broker {
            Some(words) => format!(" · broker: {}", escape(words)),
            None => String::new(),
        }
    );
    let class = &results.class;
    let state = if class.is_durable { "good" } else { "warn" };
    put!(
        out,
        "<p class=\"badge {state}\"><b>Class {}</b> {}</p></header>\n",
        escape(&class.letter),
        escape(&class.words)
    );
    for round in &results.rounds {
        if let Some(why) = &round.invalid {
            put!(
                out,
                "<div class=\"banner bad\"><b>Not reported: {}.</b> {}</div>\n",
                escape(&round.name),
                escape(why)
            );
        } else if !round.counts.is_clean() {
            put!(
                out,
                "<div class=\"banner bad\"><b>{}: messages were refused, lost, damaged, misrouted or out \
                 of order.</b> The figures of such a run say nothing.</div>\n",
                escape(&round.name)
            );
        }
    }
    tiles(out, results);
    let mut notes: Vec<&str> = Vec::new();
    for note in results.rounds.iter().flat_map(|round| &round.notes) {
        if !notes.contains(&note.as_str()) {
            notes.push(note);
        }
    }
    if !notes.is_empty() && results.rounds.len() < 4 {
        put!(out, "<ul class=\"notes\">");
        for note in notes {
            put!(out, "<li>{}</li>", escape(note));
        }
        put!(out, "</ul>\n");
    }
}

/// What a main series is called.
fn words_of(series: &str) -> &'static str {
    match series {
        "confirm" => "confirm",
        _ => "end to end",
    }
}

fn tile(out: &mut String, name: &str, value: &str, note: &str) {
    let (number, unit) = value.rsplit_once(' ').unwrap_or((value, ""));
    put!(
        out,
        "<div class=\"tile\"><span class=\"name\">{name}</span><span class=\"value\">{}<small> {}</small>\
         </span><span class=\"note\">{}</span></div>\n",
        escape(number),
        escape(unit),
        escape(note)
    );
}

fn tiles(out: &mut String, results: &Results) {
    let Some(round) = chief(results) else {
        return;
    };
    put!(out, "<div class=\"tiles\">\n");
    if let Some(found) = results.sweep {
        let note = match found.knee {
            Some(knee) => format!("p99 {} there", time_of(knee.p99_ns as u64)),
            None => "the curve does not bend".into(),
        };
        let knee = found.knee.map_or("none".into(), |knee| {
            format!("{} /s", rate_of(knee.offered))
        });
        tile(out, "Knee", &knee, &note);
        let (note, sign) = match found.is_reached {
            true => ("the broker followed no further", ""),
            false => ("not reached", "> "),
        };
        let most = format!("{sign}{} /s", rate_of(found.saturation));
        tile(out, "Saturation", &most, note);
    } else {
        let note = match round.offered {
            Some(offered) => format!("of {} /s offered", rate_of(offered)),
            None if round.published == 0 => "consumed only".into(),
            None => "closed loop: maximum throughput".into(),
        };
        let value = format!("{} /s", rate_of(round.achieved_per_second));
        tile(out, "Throughput", &value, &note);
    }
    if let Some((name, times)) = round.main_series() {
        let what = words_of(name);
        let of = match results.rounds.len() {
            1 => what.to_owned(),
            _ => format!("{what}, {}", round.name),
        };
        for (name, at) in [("Median", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            if let Some(ns) = quantile(times, at) {
                tile(out, name, &time_of(ns), &of);
            }
        }
        if results.sweep.is_none() {
            tile(out, "Worst", &time_of(times.max()), &of);
        }
    }
    put!(out, "</div>\n");
}

fn honesty(out: &mut String, results: &Results) {
    open(
        out,
        "honesty",
        "Can this be believed?",
        "How well the load was driven, what the machine adds by itself, and whether every message came once, \
         whole and in order.",
    );
    put!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th class=\"word\">run</th><th class=\"word\">verdict</th>\
         <th>load CPU</th><th>missed</th><th>held up</th><th>unsent</th><th>hiccup p99</th>\
         <th>hiccup max</th></tr></thead><tbody>\n"
    );
    for round in &results.rounds {
        let (class, verdict) = verdict_of(round);
        put!(
            out,
            "<tr><td class=\"word\">{}</td><td class=\"word {class}\">{verdict}</td><td>{:.0} %</td>\
             <td>{} ({:.2} %)</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&round.name),
            round.load_busy * 100.0,
            rate_of(round.counts.missed as f64),
            round.missed_share * 100.0,
            rate_of(round.late.saturating_sub(round.counts.missed) as f64),
            rate_of(round.counts.unsent as f64),
            percentile(&round.hiccups.0, 0.99),
            time_of(round.hiccups.0.max())
        );
    }
    put!(
        out,
        "</tbody></table></div>\n<div class=\"scroll\"><table><thead><tr><th class=\"word\">run</th>\
         <th>published</th><th>delivered</th><th>again</th><th>lost</th><th>refused</th>\
         <th>out of order</th><th>misrouted</th><th>damaged</th></tr></thead><tbody>\n"
    );
    for round in &results.rounds {
        put!(out, "<tr><td class=\"word\">{}</td>", escape(&round.name));
        for count in [
            round.published,
            round.delivered,
            round.counts.redelivered.max(round.counts.repeated),
            round.counts.missing,
            round.counts.refused,
            round.counts.disordered,
            round.counts.misrouted,
            round.counts.corrupt,
        ] {
            put!(out, "<td>{}</td>", rate_of(count as f64));
        }
        put!(out, "</tr>\n");
    }
    put!(
        out,
        "</tbody></table></div>\n<p class=\"fine\"><b>missed</b>: sent more than 1 ms after their time though \
         the broker took all. <b>held up</b>: as late, because the broker gave no credit or did not read. \
         <b>unsent</b>: due and not sent when the time was over; they count with what they had waited. \
         <b>hiccup</b>: how much later than asked a thread that slept on the load’s CPU was woken; differences \
         below that are noise.</p></section>\n"
    );
}

/// What a run is worth, and its colour.
fn verdict_of(round: &Round) -> (&'static str, &'static str) {
    /// More than this share is late, whatever was allowed.
    const MISSED_SHARE: f64 = 0.01;
    match (&round.invalid, round.counts.is_clean(), round.offered) {
        (Some(_), ..) => ("bad", "not reported"),
        (_, false, _) => ("bad", "messages are wrong"),
        (_, _, None) if round.published == 0 => ("good", "drained"),
        (_, _, None) => ("warn", "closed loop"),
        _ if round.missed_share > MISSED_SHARE => ("warn", "late, as was allowed"),
        _ => ("good", "driven as asked"),
    }
}

fn facts(out: &mut String, title: &str, facts: &[(String, String)]) {
    put!(out, "<div><h3>{title}</h3><dl>");
    for (name, value) in facts {
        put!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    }
    put!(out, "</dl></div>\n");
}

fn identity(out: &mut String, results: &Results) {
    open(
        out,
        "identity",
        "What was run, and where",
        "Enough to run the same again.",
    );
    put!(out, "<div class=\"facts\">");
    facts(out, "Machine", &results.machine.0);
    facts(out, "Broker", &results.broker.0);
    put!(
        out,
        "</div>\n<h3>Command</h3><pre class=\"wrap\">{}</pre>\n",
        escape(&results.command)
    );
    put!(
        out,
        "<h3>Parameters</h3><p class=\"fine\">In a file: <code>ringpost-load run --file FILE</code></p>\
         <pre>{}</pre>\n<p class=\"fine\">The whole result with all histograms is in this page, in \
         <code>&lt;script id=\"result\"&gt;</code>.</p></section>\n",
        escape(results.block.trim_end())
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::made_up;

    #[test]
    fn the_page_needs_nothing_else_and_holds_the_result() {
        let results = made_up(&[100, 200]);
        let page = page(&results);
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            let found = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(outside), "{outside}");
        }
        let start = "id=\"result\">";
        let at = page.find(start).expect("it is inside") + start.len();
        let json = &page[at..at + page[at..].find("</script>").expect("it ends")];
        let again = Results::parse(json).expect("a result");
        assert_eq!(again.json(), results.json());
        assert!(page.contains("6.18 &lt;b&gt;"), "what others wrote is text");
    }

    #[test]
    fn a_run_that_is_not_reported_has_no_curve() {
        let mut results = made_up(&[100]);
        results.rounds[0].refuse("late & slow".into());
        let page = page(&results);
        assert!(page.contains("Not reported: round 1.</b> late &amp; slow"));
        assert!(page.contains("No run can be reported"));
    }

    #[test]
    fn only_what_was_driven_is_called_so() {
        let verdict = |change: fn(&mut Round)| {
            let mut round = made_up(&[100]).rounds.remove(0);
            change(&mut round);
            verdict_of(&round)
        };
        assert_eq!(verdict(|_| {}), ("good", "driven as asked"));
        assert_eq!(verdict(|round| round.missed_share = 0.5).0, "warn");
        assert_eq!(verdict(|round| round.offered = None).1, "closed loop");
        assert_eq!(verdict(|round| round.counts.missing = 1).0, "bad");
        assert_eq!(
            verdict(|round| round.refuse(String::new())).1,
            "not reported"
        );
    }

    #[test]
    fn what_is_missing_is_said_with_why() {
        let mut results = made_up(&[100]);
        results.rounds[0].stages_missing = Some("the broker is old".into());
        let page = page(&results);
        assert!(page.contains("No stages.</b> The broker is old"));
        assert!(page.contains("--device-dir names") && page.contains("--broker-pid names"));
    }
}
