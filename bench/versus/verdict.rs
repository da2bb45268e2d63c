//! What the runs come to: medians and spread of rounds, ratios, and which goals are reached. Does not
//! measure or draw.

use std::fmt;

use hdrhistogram::Histogram;
use ringpost_load::compare::{median, ratio_interval};
use ringpost_load::report::{quantile, rate_of, time_of};
use ringpost_load::tally::latencies;

use super::book::{Book, Run};
use super::cells::{self, Cell, Load};
use super::peers::{Durability, Product, SETTINGS, Setting};

/// A load that used this share of its CPU was the limit, at least in part.
pub const LOAD_BUSY_MAX: f64 = 0.9;
/// Fewer rounds than this make no ratio and decide no goal.
const ROUNDS_MIN: usize = 3;
/// What is said of a goal that fewer rounds are there for.
const TOO_FEW: &str = "fewer than three rounds of one side count";

/// Rates of peers that cannot be installed from packages, delivered messages a second, as an earlier
/// comparison found them on another machine with two CPUs and a faster disk: (setting, bytes, window,
/// rate). Shown apart, never as measured here, and no goal is decided by them.
pub const EARLIER: [(&str, u32, u32, f64); 15] = [
    ("iggy-synced", 100, 1_000, 361_000.0),
    ("iggy-synced", 100, 10_000, 349_000.0),
    ("iggy-synced", 1_024, 1_000, 233_000.0),
    ("iggy-synced", 1_024, 10_000, 236_000.0),
    ("iggy-synced", 16_384, 1_000, 14_000.0),
    ("iggy-default", 100, 1_000, 918_000.0),
    ("iggy-default", 100, 10_000, 689_000.0),
    ("iggy-default", 1_024, 1_000, 392_000.0),
    ("iggy-default", 1_024, 10_000, 359_000.0),
    ("iggy-default", 16_384, 1_000, 20_000.0),
    ("nats-always", 100, 1_000, 2_900.0),
    ("nats-always", 100, 10_000, 3_100.0),
    ("nats-always", 1_024, 1_000, 2_300.0),
    ("nats-always", 1_024, 10_000, 2_700.0),
    ("nats-always", 16_384, 1_000, 2_100.0),
];

/// The middle and the ends of what rounds found.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// What each round found.
    pub values: Vec<f64>,
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of some values; none of none.
    #[must_use]
    pub fn of(values: Vec<f64>) -> Option<Self> {
        let least = values.iter().copied().reduce(f64::min)?;
        let most = values.iter().copied().reduce(f64::max)?;
        Some(Self {
            median: median(&values),
            least,
            most,
            values,
        })
    }
}

/// What a setting did in a cell.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The setting.
    pub setting: Setting,
    /// Published, confirmed and delivered a second.
    pub rate: Option<Spread>,
    /// CPU time of the broker for each message, in ns.
    pub cpu_ns: Option<Spread>,
    /// The largest share of its CPU that the load used.
    pub load_busy: f64,
    /// Rounds that count, and that were made.
    pub rounds: (usize, usize),
    /// Why rounds do not count.
    pub why_not: Option<&'a str>,
    /// Whether messages were lost, doubled, refused or out of order.
    pub is_faulty: bool,
    /// An earlier figure, of a setting that could not be measured.
    pub earlier: Option<f64>,
}

/// What all settings did in a cell.
#[must_use]
pub fn rows<'a>(book: &'a Book, cell: &Cell) -> Vec<Row<'a>> {
    let name = cell.name();
    SETTINGS
        .into_iter()
        .filter_map(|setting| {
            let made: Vec<&Run> = book.of(setting.name, &name).collect();
            let counting: Vec<&&Run> = made.iter().filter(|run| run.is_valid()).collect();
            let values = |of: fn(&Run) -> Option<f64>| {
                Spread::of(counting.iter().filter_map(|run| of(run)).collect())
            };
            let earlier = EARLIER.iter().find(|(peer, bytes, window, _)| {
                *peer == setting.name && *bytes == cell.bytes && cell.load == Load::Window(*window)
            });
            (!made.is_empty()).then(|| Row {
                setting,
                rate: values(|run| Some(run.achieved)),
                cpu_ns: values(|run| run.cpu_ns.filter(|ns| *ns >= 1.0)),
                load_busy: counting.iter().map(|run| run.load_busy).fold(0.0, f64::max),
                rounds: (counting.len(), made.len()),
                why_not: made.iter().find_map(|run| run.invalid.as_deref()),
                is_faulty: made.iter().any(|run| run.faults > 0),
                earlier: earlier.map(|(.., rate)| *rate),
            })
        })
        .collect()
}

/// How many times the first is of the second, and the range that holds it with 95 % confidence.
#[must_use]
pub fn ratio(ours: &Spread, theirs: &Spread) -> Option<(f64, [f64; 2])> {
    let is_enough = ours.values.len().min(theirs.values.len()) >= ROUNDS_MIN;
    (is_enough && theirs.median > 0.0).then(|| {
        (
            ours.median / theirs.median,
            ratio_interval(&theirs.values, &ours.values),
        )
    })
}

/// The histograms of all rounds of a cell that count, in one.
#[must_use]
pub fn merged(book: &Book, setting: &str, cell: &str, is_confirm: bool) -> Option<Histogram<u64>> {
    let mut sum = latencies();
    for run in book.counting(setting, cell) {
        let times = if is_confirm {
            run.confirm.as_ref()
        } else {
            run.end_to_end.as_ref()
        };
        sum.add(&times?.0).ok()?;
    }
    (!sum.is_empty()).then_some(sum)
}

/// A quantile in each round.
#[must_use]
pub fn times(book: &Book, setting: &str, cell: &str, at: f64) -> Option<Spread> {
    let each = book.counting(setting, cell);
    Spread::of(each.filter_map(|run| run.end_to_end_at(at)).collect())
}

/// Device and loopback together at a quantile: what a durable message cannot be faster than.
#[must_use]
pub fn floor(book: &Book, at: f64) -> Option<f64> {
    let one = |what: &str| {
        let values = book.counting(what, "floor").filter_map(|run| {
            let times = &run.end_to_end.as_ref()?.0;
            quantile(times, at).map(|ns| ns as f64)
        });
        Spread::of(values.collect()).map(|spread| spread.median)
    };
    Some(one("device")? + one("loopback")?)
}

/// How a goal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The figure is there.
    Reached,
    /// It is not.
    Missed,
    /// One side was not measured.
    Unknown,
}

/// A goal of the comparison.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What it says.
    pub words: String,
    /// What is asked for.
    pub limit: String,
    /// What was found.
    pub found: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// The rate of a setting in a cell, if enough rounds count, and whether it was measured here.
fn rate_in(book: &Book, setting: &str, cell: &Cell) -> Option<(f64, bool)> {
    let row = rows(book, cell)
        .into_iter()
        .find(|row| row.setting.name == setting)?;
    match (row.rate.and_then(enough), row.earlier) {
        (Some(spread), _) => Some((spread.median, true)),
        (None, Some(rate)) => Some((rate, false)),
        (None, None) => None,
    }
}

/// A spread of enough rounds to decide by.
fn enough(spread: Spread) -> Option<Spread> {
    (spread.values.len() >= ROUNDS_MIN).then_some(spread)
}

/// Ours against the best of some peers in one cell.
fn against(book: &Book, ours: &str, peers: &[&str], cell: &Cell, times: f64) -> Goal {
    let own = rate_in(book, ours, cell);
    let best = peers
        .iter()
        .filter_map(|peer| Some((*peer, rate_in(book, peer, cell)?)))
        .max_by(|one, two| one.1.0.total_cmp(&two.1.0));
    let title = |name: &str| Setting::of(name).map_or(name.to_owned(), |found| found.title.into());
    let (found, outcome) = match (own, best) {
        (Some((own, true)), Some((peer, (rate, is_here)))) => {
            let ratio = own / rate;
            // A figure of another machine shows a direction and decides nothing.
            let (word, outcome) = match (is_here, ratio >= times) {
                (false, _) => (", measured earlier on another machine", Outcome::Unknown),
                (true, true) => ("", Outcome::Reached),
                (true, false) => ("", Outcome::Missed),
            };
            (
                format!(
                    "{ratio:.2} × ({} and {} of {}{word})",
                    rate_of(own),
                    rate_of(rate),
                    title(peer)
                ),
                outcome,
            )
        }
        _ => (TOO_FEW.into(), Outcome::Unknown),
    };
    let names: Vec<_> = peers.iter().map(|peer| title(peer)).collect();
    let best_of = if peers.len() > 1 { "the best of " } else { "" };
    Goal {
        words: format!(
            "{} against {best_of}{}: {}",
            title(ours),
            names.join(", "),
            cell.words()
        ),
        limit: format!("≥ {times} ×"),
        found,
        outcome,
    }
}

/// The best durable peer that followed an open loop, by a quantile.
fn best_peer(book: &Book, cell: &Cell, at: f64) -> Option<(Setting, f64)> {
    let peers = SETTINGS.into_iter().filter(|setting| {
        setting.product != Product::Ringpost && setting.durability == Durability::Synced
    });
    peers
        .filter_map(|setting| {
            let followed = follows(book, &setting, cell)?;
            followed
                .then(|| times(book, setting.name, &cell.name(), at))?
                .and_then(enough)
                .map(|spread| (setting, spread.median))
        })
        .min_by(|one, two| one.1.total_cmp(&two.1))
}

/// Whether a setting kept the rate of an open loop: 97 % of it came through in the middle round.
#[must_use]
pub fn follows(book: &Book, setting: &Setting, cell: &Cell) -> Option<bool> {
    let name = cell.name();
    let shares = book
        .counting(setting.name, &name)
        .filter_map(|run| Some(run.achieved / run.offered?));
    Spread::of(shares.collect()).map(|spread| spread.median >= 0.97)
}

fn latency_goal(book: &Book, ours: &str, cell: &Cell, (word, at): (&str, f64)) -> Goal {
    let own = times(book, ours, &cell.name(), at).and_then(enough);
    let own = own.map(|spread| spread.median);
    let peer = best_peer(book, cell, at);
    let floor = floor(book, at);
    let limit = match (peer.as_ref(), floor) {
        (Some((_, peer)), Some(floor)) => Some(f64::max(peer / 3.0, 1.5 * floor)),
        _ => None,
    };
    let time = |ns: f64| time_of(ns as u64);
    let (found, outcome) = match (own, limit) {
        (Some(own), Some(limit)) => {
            let is_reached = own <= limit;
            let (setting, theirs) = peer.as_ref().expect("the limit is of a peer");
            (
                format!(
                    "{} ({} {}, device and loopback {})",
                    time(own),
                    setting.title,
                    time(*theirs),
                    floor.map_or_else(String::new, time)
                ),
                if is_reached {
                    Outcome::Reached
                } else {
                    Outcome::Missed
                },
            )
        }
        _ => (TOO_FEW.into(), Outcome::Unknown),
    };
    Goal {
        words: format!("end to end {word}: {}", cell.words()),
        limit: match limit {
            Some(limit) => format!("≤ {}", time(limit)),
            None => "≤ a third of the best durable peer's, or 1.5 × (device + loopback)".into(),
        },
        found,
        outcome,
    }
}

/// Every goal, with how it ended.
#[must_use]
pub fn goals(book: &Book) -> Vec<Goal> {
    let mut goals = Vec::new();
    let closed = |bytes: u32, window: u32| Cell {
        bytes,
        load: Load::Window(window),
    };
    let peers = ["rabbitmq-quorum", "rabbitmq-classic", "redis-always"];
    for (bytes, window, least) in [
        (100, 10_000, 4.0),
        (1_024, 10_000, 2.0),
        (16_384, 1_000, 2.0),
    ] {
        let cell = closed(bytes, window);
        goals.push(against(book, "ringpost", &["iggy-synced"], &cell, least));
    }
    for (bytes, window) in [(100, 1_000), (100, 10_000), (1_024, 1_000), (1_024, 10_000)] {
        let cell = closed(bytes, window);
        goals.push(against(book, "ringpost-singly", &peers, &cell, 5.0));
    }
    for bytes in [100, 1_024] {
        goals.push(against(
            book,
            "ringpost",
            &peers,
            &closed(bytes, 10_000),
            20.0,
        ));
    }
    let large = closed(16_384, 1_000);
    for (peer, least) in [
        ("rabbitmq-quorum", 6.0),
        ("redis-always", 8.0),
        ("nats-always", 15.0),
    ] {
        goals.push(against(book, "ringpost", &[peer], &large, least));
    }
    for cell in cells::all() {
        if matches!(cell.load, Load::Window(_)) {
            for memory in [&["redis-default", "nats-default"][..], &["iggy-default"]] {
                goals.push(against(book, "ringpost", memory, &cell, 1.0));
            }
        }
    }
    for cell in cells::all() {
        if matches!(cell.load, Load::Share(_)) {
            for quantile in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                goals.push(latency_goal(book, "ringpost", &cell, quantile));
            }
        }
    }
    goals
}

/// The whole as text for a terminal.
pub struct Text<'a>(pub &'a Book);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cell in cells::all() {
            let mut rows = rows(self.0, &cell);
            if rows.is_empty() {
                continue;
            }
            rows.sort_by(|one, two| {
                let rate = |row: &Row<'_>| row.rate.as_ref().map_or(0.0, |rate| rate.median);
                rate(two).total_cmp(&rate(one))
            });
            writeln!(f, "\n{}", cell.words())?;
            for row in rows {
                write!(f, "  {:<18}", row.setting.title)?;
                match (&row.rate, cell.load) {
                    (Some(rate), Load::Window(_)) => write!(
                        f,
                        " {:>9}/s  ({} to {})",
                        rate_of(rate.median),
                        rate_of(rate.least),
                        rate_of(rate.most)
                    )?,
                    (Some(_), Load::Share(_)) => {
                        for (word, at) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                            let found = times(self.0, row.setting.name, &cell.name(), at);
                            let text = found.map_or_else(
                                || "–".to_owned(),
                                |found| time_of(found.median as u64),
                            );
                            write!(f, " {word} {text:>9}")?;
                        }
                        if row.rounds.0 < row.rounds.1 {
                            write!(f, "  {} of {} rounds count", row.rounds.0, row.rounds.1)?;
                        }
                        if follows(self.0, &row.setting, &cell) == Some(false) {
                            write!(f, "  did not follow")?;
                        }
                    }
                    (None, _) => {
                        write!(
                            f,
                            " not measured: {}",
                            row.why_not.unwrap_or("no round counts")
                        )?;
                    }
                }
                if row.is_faulty {
                    write!(f, "  MESSAGES LOST, DOUBLED, REFUSED OR OUT OF ORDER")?;
                }
                if row.load_busy >= LOAD_BUSY_MAX {
                    write!(f, "  (load {:.0} % busy)", row.load_busy * 100.0)?;
                }
                writeln!(f)?;
            }
        }
        writeln!(f, "\ngoals")?;
        for goal in goals(self.0) {
            let word = match goal.outcome {
                Outcome::Reached => "reached",
                Outcome::Missed => "MISSED",
                Outcome::Unknown => "unknown",
            };
            writeln!(
                f,
                "  {word:<8} {}: {} (goal {})",
                goal.words, goal.found, goal.limit
            )?;
        }
        Ok(())
    }
}
