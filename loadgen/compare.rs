//! Whether two results differ, from figures of whole rounds: an exact rank test, and how large the
//! difference may be, by resampling rounds. Messages of one round are not independent; rounds are
//! what is repeated, so rounds are what is counted. Does not run anything.

use std::fmt;

use serde::Serialize;

use crate::message::Random;
use crate::result::Results;
use crate::{Error, Result};

/// Fewest rounds of each side that a verdict is made of: with fewer, no arrangement is rare enough.
pub const ROUNDS_MIN: usize = 4;
/// A difference is shown if it comes by chance less often than this, all figures together.
const SIGNIFICANCE: f64 = 0.05;
/// Times rounds are drawn anew.
const RESAMPLES: usize = 10_000;

/// What is compared: a name, whether less is better, and its value in a round.
type Measure = (&'static str, bool, fn(&crate::result::Round) -> Option<f64>);

const MEASURES: [Measure; 6] = [
    ("achieved messages/s", false, |round| {
        Some(round.achieved_per_second)
    }),
    ("confirm p50", true, |round| quantile(round, "confirm", 0.5)),
    ("confirm p99", true, |round| {
        quantile(round, "confirm", 0.99)
    }),
    ("end to end p50", true, |round| {
        quantile(round, "end-to-end", 0.5)
    }),
    ("end to end p99", true, |round| {
        quantile(round, "end-to-end", 0.99)
    }),
    ("end to end p99.9", true, |round| {
        quantile(round, "end-to-end", 0.999)
    }),
];

fn quantile(round: &crate::result::Round, name: &str, quantile: f64) -> Option<f64> {
    let times = round.times(name)?;
    // Fewer than ten samples above it are no percentile.
    let is_known = times.len() as f64 * (1.0 - quantile) >= 10.0;
    is_known.then(|| times.value_at_quantile(quantile) as f64)
}

/// What a figure came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// The second is better.
    Better,
    /// The second is worse.
    Worse,
    /// No difference is shown; that does not show that there is none.
    NotShown,
}

/// One figure of both.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What it is.
    pub name: &'static str,
    /// Medians of the rounds.
    pub medians: [f64; 2],
    /// The second median ÷ the first.
    pub ratio: f64,
    /// The ratio lies between these with 95 % confidence.
    pub interval: [f64; 2],
    /// How often chance alone makes such a difference (two-sided).
    pub chance: f64,
    /// The verdict, corrected for how many figures there are.
    pub verdict: Verdict,
}

/// All figures of both.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Rounds that count.
    pub rounds: [usize; 2],
    /// Why there is no verdict, if so.
    pub caution: Vec<String>,
    /// The figures.
    pub lines: Vec<Line>,
}

/// Compares two results.
///
/// # Errors
/// [`Error::Data`] if no round of one can be reported.
pub fn compare(first: &Results, second: &Results) -> Result<Comparison> {
    let sound = |results: &Results| {
        let rounds = results.rounds.iter();
        let sound = rounds.filter(|round| round.invalid.is_none() && round.counts.is_clean());
        sound.cloned().collect::<Vec<_>>()
    };
    let sides = [sound(first), sound(second)];
    if sides.iter().any(Vec::is_empty) {
        let text = "one of the results has no round that can be reported: nothing to compare";
        return Err(Error::Data(text.into()));
    }
    let rounds = [sides[0].len(), sides[1].len()];
    let mut caution = Vec::new();
    if rounds.iter().any(|count| *count < ROUNDS_MIN) {
        caution.push(format!(
            "{} and {} rounds are too few for a verdict: run {ROUNDS_MIN} of each at least, by turns \
             (ringpost-load rounds)",
            rounds[0], rounds[1]
        ));
    }
    for (name, is_same) in [
        ("the load", load_of(first) == load_of(second)),
        ("the machine", machine_of(first) == machine_of(second)),
    ] {
        if !is_same {
            caution.push(format!("{name} was not the same in both"));
        }
    }
    let mut lines = Vec::new();
    for (name, is_less_better, value) in MEASURES {
        let values = [0, 1]
            .map(|side: usize| -> Vec<f64> { sides[side].iter().filter_map(value).collect() });
        if values.iter().any(Vec::is_empty) {
            continue;
        }
        let medians = [median(&values[0]), median(&values[1])];
        let chance = rank_test(&values[0], &values[1]);
        let is_better = (medians[1] < medians[0]) == is_less_better;
        lines.push(Line {
            name,
            medians,
            ratio: medians[1] / medians[0],
            interval: ratio_interval(&values[0], &values[1]),
            chance,
            // Whether it is shown at all is decided below, over all lines.
            verdict: if is_better {
                Verdict::Better
            } else {
                Verdict::Worse
            },
        });
    }
    let chances: Vec<_> = lines.iter().map(|line| line.chance).collect();
    let is_enough = rounds.iter().all(|count| *count >= ROUNDS_MIN);
    for (line, is_shown) in lines.iter_mut().zip(holm(&chances, SIGNIFICANCE)) {
        let holds_one = line.interval[0] <= 1.0 && 1.0 <= line.interval[1];
        if !is_shown || holds_one || !is_enough {
            line.verdict = Verdict::NotShown;
        }
    }
    Ok(Comparison {
        rounds,
        caution,
        lines,
    })
}

/// What makes the load the same: everything but where the broker is and how often it is run.
fn load_of(results: &Results) -> String {
    let mut own = results.parameters.clone();
    let other = crate::params::Parameters::default();
    own.address = other.address;
    own.admin = None;
    own.broker_pid = None;
    own.broker_command = None;
    own.device_dir = None;
    own.rounds = 1;
    own.prefix = other.prefix;
    own.block()
}

fn machine_of(results: &Results) -> Vec<(String, String)> {
    let facts = results.machine.0.iter();
    let lasting = facts.filter(|(name, _)| !name.starts_with("run queue"));
    lasting.cloned().collect()
}

/// The middle value, or the mean of the two in the middle.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// Mann and Whitney's test, exact, two-sided: how often a random split of all values into two such
/// groups has a rank sum at least as far from its mean. Equal values share their ranks.
#[must_use]
pub fn rank_test(first: &[f64], second: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> = first
        .iter()
        .map(|value| (*value, true))
        .chain(second.iter().map(|value| (*value, false)))
        .collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Twice the mean rank of equals, so that it is whole.
    let mut doubled = vec![0usize; all.len()];
    let mut at = 0;
    while at < all.len() {
        let same = all[at..]
            .iter()
            .take_while(|(value, _)| *value == all[at].0);
        let end = at + same.count();
        doubled[at..end].fill(at + end + 1);
        at = end;
    }
    let own: usize = all
        .iter()
        .zip(&doubled)
        .filter(|((_, is_first), _)| *is_first)
        .map(|(_, rank)| rank)
        .sum();
    // Ways to choose so many of the ranks with each sum.
    let most: usize = doubled.iter().sum();
    let mut ways = vec![vec![0.0f64; most + 1]; first.len() + 1];
    ways[0][0] = 1.0;
    for rank in &doubled {
        for count in (1..=first.len()).rev() {
            for sum in (*rank..=most).rev() {
                ways[count][sum] += ways[count - 1][sum - rank];
            }
        }
    }
    let all_ways: f64 = ways[first.len()].iter().sum();
    let mean = first.len() as f64 * (all.len() + 1) as f64; // of the doubled ranks
    let distance = (own as f64 - mean).abs();
    let as_far = ways[first.len()].iter().enumerate();
    let as_far = as_far.filter(|(sum, _)| (*sum as f64 - mean).abs() >= distance - 1e-9);
    as_far.map(|(_, ways)| ways).sum::<f64>() / all_ways
}

/// The middle 95 % of the ratio of medians when rounds are drawn anew, with the same seed every time.
#[must_use]
pub fn ratio_interval(first: &[f64], second: &[f64]) -> [f64; 2] {
    let mut random = Random::new(11);
    let mut draw = |values: &[f64]| {
        let pick = |_| values[(random.next_unit() * values.len() as f64) as usize];
        median(&(0..values.len()).map(pick).collect::<Vec<_>>())
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| draw(second) / draw(first)).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[((RESAMPLES - 1) as f64 * share).round() as usize];
    [at(0.025), at(0.975)]
}

/// Holm's correction: which of many chances are rare enough that one false find in all of them is.
#[must_use]
pub fn holm(chances: &[f64], significance: f64) -> Vec<bool> {
    let mut order: Vec<_> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let mut shown = vec![false; chances.len()];
    for (rank, at) in order.iter().enumerate() {
        if chances[*at] > significance / (chances.len() - rank) as f64 {
            break;
        }
        shown[*at] = true;
    }
    shown
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rounds: {} and {}", self.rounds[0], self.rounds[1])?;
        writeln!(
            f,
            "{:<20} {:>12} {:>12} {:>8}  {:<16} {:>7}  verdict",
            "", "A", "B", "B/A", "95 % of B/A", "chance"
        )?;
        for line in &self.lines {
            let is_time = line.name != "achieved messages/s";
            let figure = |value: f64| match is_time {
                true => format!("{:.1} µs", value / 1e3),
                false => format!("{value:.0}"),
            };
            let verdict = match line.verdict {
                Verdict::Better => "B is better",
                Verdict::Worse => "B is worse",
                Verdict::NotShown => "no difference shown",
            };
            writeln!(
                f,
                "{:<20} {:>12} {:>12} {:>8.3}  {:<16} {:>7.4}  {verdict}",
                line.name,
                figure(line.medians[0]),
                figure(line.medians[1]),
                line.ratio,
                format!("{:.3} to {:.3}", line.interval[0], line.interval[1]),
                line.chance,
            )?;
        }
        for caution in &self.caution {
            writeln!(f, "caution: {caution}")?;
        }
        let is_shown = self
            .lines
            .iter()
            .any(|line| line.verdict != Verdict::NotShown);
        match is_shown {
            true => write!(f, "A difference is shown."),
            false => write!(f, "No difference shown: what there is may be chance."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::made_up;

    #[test]
    fn the_rank_test_is_that_of_the_tables() {
        // Two-sided critical values of U: groups of 4 and 4, U = 0: 2 of 70; 5 and 5: 2 of 252.
        let up = [1.0, 2.0, 3.0, 4.0];
        let higher = [5.0, 6.0, 7.0, 8.0];
        assert!((rank_test(&up, &higher) - 2.0 / 70.0).abs() < 1e-12);
        assert!((rank_test(&higher, &up) - 2.0 / 70.0).abs() < 1e-12);
        let five = [1.0, 2.0, 3.0, 4.0, 5.0];
        let other = [6.0, 7.0, 8.0, 9.0, 10.0];
        assert!((rank_test(&five, &other) - 2.0 / 252.0).abs() < 1e-12);
        // U = 1: one swap more each way.
        let mixed = [1.0, 2.0, 3.0, 5.0];
        let rest = [4.0, 6.0, 7.0, 8.0];
        assert!((rank_test(&mixed, &rest) - 4.0 / 70.0).abs() < 1e-12);
        assert_eq!(rank_test(&[1.0, 4.0], &[2.0, 3.0]), 1.0);
        assert_eq!(rank_test(&[5.0; 4], &[5.0; 6]), 1.0);
    }

    #[test]
    fn equal_values_share_their_ranks() {
        // Ranks 1.5 1.5 3 4: the pairs have sums 3, 4.5 (twice), 5.5 (twice), 7; the mean is 5.
        let chance = rank_test(&[1.0, 1.0], &[2.0, 3.0]);
        assert!((chance - 2.0 / 6.0).abs() < 1e-12, "{chance}");
    }

    #[test]
    fn the_interval_holds_the_ratio_and_is_narrow_for_what_is_steady() {
        let steady = ratio_interval(&[100.0, 101.0, 99.0, 100.0], &[200.0, 202.0, 198.0, 200.0]);
        assert!(steady[0] <= 2.0 && 2.0 <= steady[1] && steady[1] - steady[0] < 0.1);
        let wild = ratio_interval(&[100.0, 300.0, 50.0, 900.0], &[100.0, 20.0, 700.0, 300.0]);
        assert!(wild[0] < 0.5 && wild[1] > 2.0, "{wild:?}");
    }

    #[test]
    fn many_figures_need_rarer_chances() {
        assert_eq!(holm(&[0.04], 0.05), [true]);
        assert_eq!(holm(&[0.04, 0.5], 0.05), [false, false]);
        assert_eq!(holm(&[0.04, 0.01, 0.02], 0.05), [true, true, true]);
        assert_eq!(holm(&[0.03, 0.01, 0.9], 0.05), [false, true, false]);
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_real_difference_is_shown_and_noise_is_not() {
        let calm = made_up(&[100, 102, 98, 101, 99, 103]);
        let slow = made_up(&[150, 149, 152, 148, 151, 153]);
        let found = compare(&calm, &slow).expect("rounds");
        let line = |name: &str| {
            let line = found.lines.iter().find(|line| line.name == name);
            line.map(|line| line.verdict)
        };
        assert_eq!(line("end to end p50"), Some(Verdict::Worse));
        assert_eq!(line("achieved messages/s"), Some(Verdict::NotShown));
        assert_eq!(
            line("end to end p99.9"),
            None,
            "a thousand messages do not tell"
        );
        assert!(found.to_string().contains("B is worse"));
        let again = made_up(&[101, 99, 103, 98, 100, 102]);
        let found = compare(&calm, &again).expect("rounds");
        assert!(found.to_string().contains("No difference shown"), "{found}");
    }

    #[test]
    fn few_rounds_and_unlike_loads_are_said() {
        let mut other = made_up(&[500, 501, 502]);
        other.parameters.batch = 7;
        let found = compare(&made_up(&[100, 101, 102]), &other).expect("rounds");
        assert!(
            found
                .lines
                .iter()
                .all(|line| line.verdict == Verdict::NotShown)
        );
        let text = found.to_string();
        assert!(
            text.contains("too few") && text.contains("the load was not the same"),
            "{text}"
        );
        let mut refused = made_up(&[100]);
        refused.rounds[0].refuse("late".into());
        assert!(compare(&made_up(&[100]), &refused).is_err());
    }
}
