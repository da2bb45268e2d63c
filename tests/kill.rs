//! The broker is killed under load again and again, and nothing that it promised is lost:
//! `cargo test --test kill`; `RINGPOST_KILL_CYCLES=500` makes it long. A kill leaves the page
//! cache and the drive alone, so this proves recovery, not that confirmed bytes were synced.

use ringpost_prove::kill::{Ending, Plan, Report, run};

/// Cycles of one run, unless asked otherwise.
const CYCLES: u32 = 13;

fn cycles() -> u32 {
    std::env::var("RINGPOST_KILL_CYCLES")
        .ok()
        .map_or(CYCLES, |text| text.parse().expect("a number of cycles"))
}

fn survives(cores: u16, ending: Ending) -> Report {
    let directory = tempfile::tempdir().expect("a directory");
    let plan = Plan {
        program: env!("CARGO_BIN_EXE_ringpost").into(),
        directory: directory.path().to_owned(),
        cores,
        cycles: cycles(),
        producers: 5,
        seed: u64::from(cores),
        ending,
        until: None,
        stop: Default::default(),
        tails: None,
        flips: 0,
    };
    match run(&plan) {
        Ok(report) => {
            println!("{cores} cores: {report}");
            report
        }
        Err(error) => {
            // Kept for whoever looks into it.
            let _ = directory.keep();
            panic!("{cores} cores: {error}");
        }
    }
}

fn kills(cores: u16) {
    let report = survives(cores, Ending::Kill);
    let counts = report.verdict.counts;
    assert!(report.kills > 0, "{report}");
    assert!(counts.confirmed_durable > 100, "{report}");
    assert!(counts.ack_confirmed > 100, "{report}");
    assert!(counts.redelivered > 0, "{report}");
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
    let report = survives(1, Ending::Terminate);
    let counts = report.verdict.counts;
    assert_eq!(counts.crashes, 0, "{report}");
    assert!(counts.confirmed_durable > 100, "{report}");
}
