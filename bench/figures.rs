//! Every figure that the broker has to reach, measured in one run and printed beside its limit.
//! Starts the broker on one CPU and makes the load on another; does not know the broker's insides.
//!
//! `figures [--broker PATH] [--directory DIR] [--only NAME,…] [--quick] [--json FILE]`
//!
//! A row is `reached` or `missed`; `load-bound` if the load's CPU was the limit and the broker's CPU
//! time a message is within its own (rulings 27); `contended` if neighbours took so much of the two
//! CPUs that neither could be said. The directory has to be on the disk that counts.

mod figures {
    pub mod broker;
    pub mod limits;
    pub mod rows;
    pub mod table;
}

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use figures::rows::{self, Bench};
use figures::table::Table;

/// Measure every figure beside its limit
#[derive(Parser, Debug)]
#[command(version)]
pub struct Args {
    /// The broker to measure; by default the one beside this program
    #[arg(long, value_name = "path")]
    broker: Option<PathBuf>,
    /// Where data directories are made; on the disk that counts
    #[arg(long, default_value = ".", value_name = "directory")]
    directory: PathBuf,
    /// Only these rows, such as `throughput,open-loop`
    #[arg(long, value_delimiter = ',', value_name = "row,row")]
    only: Vec<String>,
    /// Short runs and small backlogs: shows that a row works, not what it reaches
    #[arg(long)]
    quick: bool,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rounds of what is compared with a floor; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Messages of the backlog
    #[arg(long, default_value_t = 10_000_000)]
    backlog: u64,
    /// Gigabytes through recycled segments before the restart
    #[arg(long, default_value_t = 20.0)]
    restart_gb: f64,
    /// CPU of the broker
    #[arg(long, default_value_t = 0)]
    broker_cpu: usize,
    /// CPU of the load
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Also write the rows here, as JSON
    #[arg(long, value_name = "file")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let json = args.json.clone();
    let mut table = Table::default();
    match Bench::new(args).and_then(|bench| rows::all(&bench, &mut table)) {
        Ok(()) => {}
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    println!("\n{table}");
    if let Some(path) = json
        && let Err(error) = std::fs::write(&path, table.json())
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
