//! `ringpost-sim`: runs worlds from the command line. Does not know what happens in them.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::process::ExitCode;
use std::time::Instant;

use ringpost_sim::plan::{Fault, Mode, Overrides};
use ringpost_sim::run::{self, Total};
use ringpost_sim::scene::Trace;

const HELP: &str = "\
ringpost-sim SEED               one world, with a readable trace
ringpost-sim fuzz --seeds A..B  many worlds, quietly; a table at the end
ringpost-sim smoke              a small fixed set of worlds, each twice
ringpost-sim shrink SEED        takes out of a failing world what can go
ringpost-sim mutants            every planted bug against seeds 0..2000 (feature `mutants`)

options
  --mode safety|liveness|detect   instead of what the seed draws
  --without FAULT,FAULT,...       switches faults off
  --publishes N, --clients N      at most so many
  --cores N                       so many cores
  --quiet                         no trace, only the outcome
  --history FILE                  writes the history of one world, for ringpost-check
  --threads N                     for fuzz (default 1)
  --failures N                    for fuzz: stops after so many per thread (default 20)
  --mutant NAME                   switches a planted bug on (feature `mutants`)
";

struct Arguments {
    words: Vec<String>,
    seeds: std::ops::Range<u64>,
    overrides: Overrides,
    is_quiet: bool,
    history: Option<String>,
    threads: u64,
    failures: u64,
}

fn main() -> ExitCode {
    run::name_seeds_in_panics();
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!("{text}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    let is_good = match words[..] {
        ["fuzz"] => fuzz(&arguments),
        ["smoke"] => smoke(&arguments),
        ["mutants"] => mutants(&arguments),
        ["shrink", seed] => seed.parse().is_ok_and(|seed| shrink(seed, &arguments)),
        [seed] => seed.parse().is_ok_and(|seed| one(seed, &arguments)),
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn parse(mut from: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        words: Vec::new(),
        seeds: 0..100,
        overrides: Overrides::default(),
        is_quiet: false,
        history: None,
        threads: 1,
        failures: 20,
    };
    while let Some(word) = from.next() {
        let mut value = || from.next().ok_or(format!("{word} wants a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{text} is no number"))
        };
        match word.as_str() {
            "--mode" => {
                let text = value()?;
                let modes = [Mode::Safety, Mode::Liveness, Mode::Detect];
                let mode = modes.into_iter().find(|mode| mode.word() == text);
                arguments.overrides.mode = Some(mode.ok_or(format!("{text} is no mode"))?);
            }
            "--without" => {
                for text in value()?.split(',') {
                    let fault = Fault::ALL.iter().find(|fault| fault.word() == text);
                    arguments
                        .overrides
                        .without
                        .push(*fault.ok_or(format!("{text} is no fault"))?);
                }
            }
            "--publishes" => arguments.overrides.publishes = Some(number(value()?)?),
            "--clients" => arguments.overrides.clients = Some(number(value()?)? as usize),
            "--cores" => arguments.overrides.cores = Some(number(value()?)? as u16),
            "--quiet" => arguments.is_quiet = true,
            "--history" => arguments.history = Some(value()?),
            "--threads" => arguments.threads = number(value()?)?.max(1),
            "--failures" => arguments.failures = number(value()?)?,
            "--mutant" => plant(&value()?)?,
            "--seeds" => {
                let text = value()?;
                let (first, end) = text.split_once("..").ok_or("--seeds wants A..B")?;
                arguments.seeds = number(first.into())?..number(end.into())?;
            }
            _ if word.starts_with("--") => return Err(format!("{word} is no option")),
            _ => arguments.words.push(word),
        }
    }
    Ok(arguments)
}

fn one(seed: u64, arguments: &Arguments) -> bool {
    let trace = if arguments.is_quiet {
        Trace::default()
    } else {
        Trace::to(Box::new(BufWriter::new(stdout())))
    };
    let history = arguments.history.as_ref().map(|path| {
        let file =
            File::create(path).unwrap_or_else(|error| panic!("cannot create {path}: {error}"));
        Box::new(BufWriter::new(file)) as Box<dyn Write>
    });
    let outcome = run::run(seed, &arguments.overrides, trace, history);
    println!(
        "seed {seed}: {} mode, {} cores, {} happenings, {:.3} virtual seconds",
        outcome.plan.mode.word(),
        outcome.plan.cores,
        outcome.happenings,
        outcome.time as f64 / 1e9
    );
    println!("{:?}", outcome.counts);
    println!("trace hash {:016x}", outcome.trace_hash);
    match &outcome.failure {
        None => println!("every promise was kept"),
        Some(failure) => println!("FAILED: {failure}"),
    }
    outcome.failure.is_none()
}

fn print_total(total: &Total, seconds: f64) {
    println!(
        "{} seeds in {seconds:.1} s ({:.1}/s), {} published, {} delivered, {} crashes, \
         {} happenings ({:.2} M/s), {:.0} virtual seconds",
        total.seeds,
        total.seeds as f64 / seconds,
        total.sent,
        total.delivered,
        total.crashes,
        total.happenings,
        total.happenings as f64 / seconds / 1e6,
        total.time as f64 / 1e9
    );
}

fn fuzz(arguments: &Arguments) -> bool {
    let start = Instant::now();
    let total = run::fuzz(
        arguments.seeds.clone(),
        &arguments.overrides,
        arguments.threads,
        arguments.failures,
    );
    for (mark, count) in total.marks.iter() {
        println!("{count:>12}  {mark}");
    }
    print_total(&total, start.elapsed().as_secs_f64());
    println!("{} failing seeds", total.failure_count);
    total.failure_count == 0
}

/// Few enough for every commit, each twice: equal traces or the simulator itself is broken.
fn smoke(arguments: &Arguments) -> bool {
    let start = Instant::now();
    let mut total = Total::default();
    let mut is_good = true;
    for seed in 0..60 {
        let outcome = run::run_quiet(seed, &arguments.overrides);
        if let Some(failure) = &outcome.failure {
            println!("seed {seed}: {}", run::first_lines(failure));
            is_good = false;
        }
        if seed % 6 == 0 {
            let again = run::run_quiet(seed, &arguments.overrides);
            if again.trace_hash != outcome.trace_hash {
                println!("seed {seed}: two runs differ");
                is_good = false;
            }
        }
        total.add(seed, &outcome);
    }
    print_total(&total, start.elapsed().as_secs_f64());
    is_good
}

fn shrink(seed: u64, arguments: &Arguments) -> bool {
    let shrunk = run::shrink(seed, &arguments.overrides, |text| println!("{text}"));
    match shrunk {
        Some(overrides) => println!("ringpost-sim {seed}{}", run::arguments(&overrides)),
        None => println!("seed {seed} does not fail"),
    }
    true
}

#[cfg(feature = "mutants")]
fn plant(name: &str) -> Result<(), String> {
    use ringpost_engine::mutant::Mutant;
    let mutant = Mutant::ALL.iter().find(|mutant| mutant.word() == name);
    ringpost_engine::mutant::plant(Some(*mutant.ok_or(format!("{name} is no mutant"))?));
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn plant(_name: &str) -> Result<(), String> {
    Err("built without the feature `mutants`".into())
}

/// Every planted bug must die; prints after how many seeds. A seed that fails without the bug too
/// proves nothing about it and is passed over.
#[cfg(feature = "mutants")]
fn mutants(arguments: &Arguments) -> bool {
    use ringpost_engine::mutant::{self, Mutant};
    let seeds_max = 2000;
    let mut alive = 0;
    let mut passed_over = std::collections::BTreeSet::new();
    for planted in Mutant::ALL {
        let start = Instant::now();
        let killed = (0..seeds_max).find_map(|seed| {
            mutant::plant(Some(*planted));
            let failure = run::run_quiet(seed, &arguments.overrides).failure?;
            mutant::plant(None);
            if run::run_quiet(seed, &arguments.overrides).failure.is_some() {
                passed_over.insert(seed);
                return None;
            }
            Some((seed, failure))
        });
        mutant::plant(None);
        let seconds = start.elapsed().as_secs_f64();
        match killed {
            Some((seed, failure)) => {
                let failure: String = failure.replace('\n', " ").chars().take(120).collect();
                println!(
                    "{:<28} {:>5} seeds {seconds:>6.1} s  {failure}",
                    planted.word(),
                    seed + 1
                );
            }
            None => {
                alive += 1;
                println!("{:<28} ALIVE after {seeds_max} seeds", planted.word());
            }
        }
    }
    if !passed_over.is_empty() {
        println!("failing without any planted bug, not counted: {passed_over:?}");
    }
    println!(
        "{} of {} planted bugs died",
        Mutant::ALL.len() - alive,
        Mutant::ALL.len()
    );
    alive == 0
}

#[cfg(not(feature = "mutants"))]
fn mutants(_arguments: &Arguments) -> bool {
    eprintln!("built without the feature `mutants`");
    false
}
