//! The broker is killed under load again and again, and nothing that it promised is lost:
//! `cargo test --test kill`; `RINGPOST_KILL_CYCLES=500` makes it long, `RINGPOST_KILL_SEED` plans
//! other lives. A kill leaves the page cache and the drive alone, so this proves recovery, not that
//! confirmed bytes were synced.

use ringpost_prove::kill::{Ending, Plan, Report, run};

/// Cycles of one run, unless asked otherwise.
const CYCLES: u32 = 13;
/// Brokers that are killed side by side when there are cycles for each of them: a cycle waits most
/// of its time, for the disk and for its load.
const LANES: u32 = 4;
/// Cycles below which a lane is not worth its scene.
const LANE_CYCLES_MIN: u32 = 10;

fn cycles() -> u32 {
    number("RINGPOST_KILL_CYCLES").unwrap_or(CYCLES)
}

fn number(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

fn survives(cores: u16, ending: Ending, cycles: u32, seed: u64) -> Report {
    let directory = tempfile::tempdir().expect("a directory");
    let plan = Plan {
        program: env!("CARGO_BIN_EXE_ringpost").into(),
        directory: directory.path().to_owned(),
        cores,
        cycles,
        producers: 5,
        seed,
        ending,
        until: None,
        stop: Default::default(),
        tails: None,
        flips: 0,
    };
    match run(&plan) {
        Ok(report) => {
            println!("{cores} cores, seed {seed}: {report}");
            report
        }
        Err(error) => {
            // Kept for whoever looks into it.
            let _ = directory.keep();
            panic!("{cores} cores, seed {seed}: {error}");
        }
    }
}

/// All cycles, in lanes of their own.
fn survives_in_lanes(cores: u16) -> Vec<Report> {
    let first = number("RINGPOST_KILL_SEED").unwrap_or(0) + u32::from(cores);
    let lanes = (cycles() / LANE_CYCLES_MIN).clamp(1, LANES);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..lanes)
            .map(|lane| {
                let share = cycles() * (lane + 1) / lanes - cycles() * lane / lanes;
                let seed = u64::from(first + 100 * lane);
                scope.spawn(move || survives(cores, Ending::Kill, share, seed))
            })
            .collect();
        runs.into_iter()
            .map(|run| run.join().expect("a lane that survives"))
            .collect()
    })
}

fn kills(cores: u16) {
    for report in survives_in_lanes(cores) {
        let counts = report.verdict.counts;
        assert!(report.kills > 0, "{report}");
        assert!(counts.confirmed_durable > 100, "{report}");
        assert!(counts.ack_confirmed > 100, "{report}");
        assert!(counts.redelivered > 0, "{report}");
    }
}

#[test]
fn nothing_promised_is_lost_to_kills_on_1_core() {
    kills(1);
}

#[test]
fn nothing_promised_is_lost_to_kills_on_2_cores() {
    kills(2);
}

#[test]
fn a_goodbye_breaks_no_promise() {
    let report = survives(1, Ending::Terminate, CYCLES, 1);
    let counts = report.verdict.counts;
    assert_eq!(counts.crashes, 0, "{report}");
    assert!(counts.confirmed_durable > 100, "{report}");
}
