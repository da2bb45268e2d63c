//! What each feature costs the engine, as a ratio to the plain path: one durable queue, published to by its
//! name, delivered and acked. On a device and sockets that cost nothing; does not know real ones.
//!
//! `features [--messages N] [--rounds N] [--pending N] [--only NAME,…]`
//!
//! A row's ratio is the plain path's time a message divided by the feature's, measured in turns; the median of
//! the rounds counts. Every producer has its id and sequences, so that deduplication is in all of them. The kernel's part of a message is the same for both and is not in it: in a broker the
//! ratio is nearer to one.

#[path = "../src/engine/tests/memory/client.rs"]
mod client;
#[path = "../src/engine/tests/allocations/count.rs"]
mod count;
#[path = "../src/engine/tests/memory/machine.rs"]
mod machine;

mod features {
    pub mod cases;
    pub mod pending;
}

use clap::Parser;

use features::cases::{CASES, Case, PLAIN, Scene};

/// Measure features as ratios to the plain path
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// Messages of a measurement
    #[arg(long, default_value_t = 200_000)]
    messages: u64,
    /// Measurements of each case
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Delayed messages that wait while others are delayed
    #[arg(long, default_value_t = 10_000_000)]
    pending: u64,
    /// Only these rows
    #[arg(long, value_delimiter = ',', value_name = "row,row")]
    only: Vec<String>,
}

fn main() {
    let args = Args::parse();
    let is_wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    println!(
        "{:<28} {:>8} {:>9} {:>9} {:>8} {:>17} {:>7}",
        "feature", "payload", "plain ns", "ns", "ratio", "of the rounds", "goal"
    );
    for case in CASES.iter().filter(|case| is_wanted(case.name)) {
        for payload in [100, 1_024] {
            row(case, payload, &args);
        }
    }
    if is_wanted("delayed") {
        features::pending::rows(args.pending, args.messages, args.rounds);
    }
}

/// Measures a case beside its reference, in turns.
fn row(case: &Case, payload: usize, args: &Args) {
    let mut scenes = [case.reference.unwrap_or(&PLAIN), case].map(|case| Scene::of(case, payload));
    let mut times = [Vec::new(), Vec::new()];
    // The first round warms up.
    for round in 0..=args.rounds {
        for (scene, times) in scenes.iter_mut().zip(&mut times) {
            let each = scene.run(args.messages);
            if round > 0 {
                times.push(each);
            }
        }
    }
    let mut ratios: Vec<f64> = times[0]
        .iter()
        .zip(&times[1])
        .map(|(plain, own)| plain / own)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let [plain, own] = times.map(median);
    let middle = ratios[ratios.len() / 2];
    let verdict = if middle >= case.goal { "" } else { "  missed" };
    println!(
        "{:<28} {:>6} B {plain:>9.0} {own:>9.0} {middle:>8.2} {:>8.2} to {:>5.2} {:>6.2}{verdict}",
        case.name,
        payload,
        ratios[0],
        ratios[ratios.len() - 1],
        case.goal,
    );
}

/// The middle one.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
