//! Counts the instructions of a case and takes its time. Does not know what a case does, or what its
//! figures should be.
//!
//! A case is counted in a process of its own under callgrind, which counts only what [`counted`] does:
//! set-up and a first round, which grows what is kept, are not in it.

use std::hint::black_box;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::cases::{Case, ROUND, Work};
use crate::table::Figure;

/// Rounds of which the best and the median are told.
const ROUNDS: usize = 15;
/// Shorter measurements than this are the clock's.
const MEASUREMENT_MIN: Duration = Duration::from_millis(5);

/// The C library chooses how to copy by the sizes of the caches, and with one of the ways callgrind
/// counts every byte: copies below any size that occurs here are made the same way everywhere.
const COPIES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:\
     glibc.cpu.x86_rep_stosb_threshold=1073741824:\
     glibc.cpu.x86_non_temporal_threshold=1073741824",
);

/// The round that is counted: callgrind finds it by its name.
#[inline(never)]
fn counted(work: &mut dyn Work) -> u64 {
    black_box(work).round()
}

/// Sets a case up and does its work once for warmth and once to be counted; says its units.
pub fn one_round(case: &Case) -> u64 {
    let mut work = (case.make)();
    work.prepare();
    work.round();
    work.prepare();
    counted(work.as_mut())
}

/// What the compiler calls itself.
///
/// # Errors
/// If it can not be asked.
pub fn compiler() -> Result<String, String> {
    let asked = Command::new("rustc").arg("--version").output();
    let asked = asked.map_err(|error| format!("rustc does not say its version: {error}"))?;
    Ok(String::from_utf8_lossy(&asked.stdout).trim().into())
}

/// Instructions of each case per unit. Counts as many at a time as there are CPUs.
///
/// # Errors
/// Without valgrind, or if a case fails or nothing of it was counted.
pub fn instructions(cases: &[Case]) -> Result<Vec<Figure>, String> {
    let version = Command::new("valgrind").arg("--version").output();
    version.map_err(|error| format!("valgrind is needed to count instructions: {error}"))?;
    let next = Mutex::new(0..cases.len());
    let found = Mutex::new(Vec::new());
    let lane = || {
        loop {
            let at = next.lock().ok().and_then(|mut next| next.next());
            let Some(at) = at else { break };
            let figure = count(&cases[at]);
            found.lock().expect("no lane panics").push((at, figure));
        }
    };
    let lanes = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(lane);
        }
    });
    let mut found = found.into_inner().expect("no lane panics");
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, figure)| figure).collect()
}

fn count(case: &Case) -> Result<Figure, String> {
    let fail = |what: &str| format!("{}: {what}", case.name);
    let own = std::env::current_exe().map_err(|error| fail(&error.to_string()))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={}", case.counted))
        .arg(format!("--zero-before={ROUND}"))
        .arg(own)
        .args(["run", case.name])
        .env(COPIES.0, COPIES.1)
        .output()
        .map_err(|error| fail(&error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(fail(&format!("it failed:\n{said}")));
    }
    let units = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
    let units = units.filter(|units| *units > 0.0);
    let units: f64 = units.ok_or_else(|| fail("it did nothing"))?;
    let counted = collected(&said).filter(|counted| *counted > 0);
    let counted = counted.ok_or_else(|| fail(&format!("nothing was counted:\n{said}")))?;
    Ok(Figure {
        name: case.name.into(),
        instructions: counted as f64 / units,
    })
}

/// What callgrind says it has collected, in instructions.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Nanoseconds of a case per unit: best and median.
pub fn nanoseconds(case: &Case) -> (f64, f64) {
    let mut work = (case.make)();
    let mut each: Vec<f64> = (0..=ROUNDS).map(|_| measurement(work.as_mut())).collect();
    // The first one warms up.
    each.remove(0);
    each.sort_by(f64::total_cmp);
    (each[0], each[ROUNDS / 2])
}

fn measurement(work: &mut dyn Work) -> f64 {
    let (mut taken, mut units) = (Duration::ZERO, 0);
    while taken < MEASUREMENT_MIN {
        work.prepare();
        let start = Instant::now();
        units += counted(work);
        taken += start.elapsed();
    }
    taken.as_nanos() as f64 / units as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrind_is_understood() {
        let said = "==7== \n==7== Events    : Ir\n==7== Collected : 1234\n==7== \n";
        assert_eq!(collected(said), Some(1_234));
        assert_eq!(collected("==7== Collected : \n"), None);
        assert_eq!(collected("valgrind: no permission"), None);
    }

    #[test]
    fn every_case_does_the_same_work_in_every_round() {
        for case in crate::cases::all() {
            let units = one_round(&case);
            assert!(units > 0, "{} does something", case.name);
            assert_eq!(units, one_round(&case), "{}", case.name);
        }
    }
}
