//! Ringpost and its peers, side by side, in one run: starts each broker on one CPU, makes the same load
//! for it on another, by turns and several rounds, and draws one page. Does not know how load is made,
//! nor what is inside any broker.
//!
//! `versus --install [--directory DIR] [--out DIR] [--rounds 5] [--only NAME,…]`
//!
//! What was measured is kept cell by cell in `rounds.jsonl`; the same command goes on where it was ended.
//! docs/performance.md tells what came of it; a peer that is not there has rows that say so.

mod versus {
    pub mod book;
    pub mod cells;
    pub mod page;
    pub mod peers;
    pub mod process;
    pub mod run;
    pub mod verdict;
}

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Measure Ringpost and its peers side by side
#[derive(Parser, Debug, Clone)]
#[command(version)]
pub struct Args {
    /// Where the brokers keep their data; on the disk that counts
    #[arg(long, default_value = ".", value_name = "directory")]
    directory: PathBuf,
    /// Where results go [default: `bench/results/DATE-HOST`]
    #[arg(long, value_name = "directory")]
    out: Option<PathBuf>,
    /// What the machine is called in the results [default: its host name]
    #[arg(long, value_name = "name")]
    host: Option<String>,
    /// The broker to measure; by default the one beside this program
    #[arg(long, value_name = "path")]
    broker: Option<PathBuf>,
    /// Only these settings, such as `ringpost,redis-always`
    #[arg(long, value_delimiter = ',', value_name = "name,name")]
    only: Vec<String>,
    /// Only these cells, such as `closed-1024-w1000,open-1024-50`
    #[arg(long, value_delimiter = ',', value_name = "name,name")]
    cells: Vec<String>,
    /// Rounds; each runs every cell of every setting, in another order
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds before each that are not measured
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// CPU of the broker
    #[arg(long, default_value_t = 0)]
    broker_cpu: usize,
    /// CPU of the load
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Install peers that are missing from the system's packages (Debian: apt-get, as root)
    #[arg(long)]
    install: bool,
    /// Measure nothing: draw the page of what is there
    #[arg(long)]
    draw: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = versus::process::end_with_this_one().and_then(|()| versus::run::run(&args));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus: {error}");
            ExitCode::FAILURE
        }
    }
}
