//! `ringpost-sim`: runs worlds from the command line. Does not know what happens in them.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::process::ExitCode;
use std::time::Instant;

use ringpost_sim::ledger;
use ringpost_sim::plan::{Fault, Mode, Overrides};
use ringpost_sim::run::{self, Order, Total};
use ringpost_sim::scene::{Marks, Trace};

const HELP: &str = "\
ringpost-sim SEED               one world, with a readable trace
ringpost-sim fuzz --seeds A..B  many worlds (0..2000), quietly; a table at the end
ringpost-sim smoke              a small fixed set of worlds, some of them twice
ringpost-sim shrink SEED        takes out of a failing world what can go
ringpost-sim mutants [NAME...]  planted bugs against seeds 0..2000: after how many each dies
                                (feature `mutants`)

options
  --mode safety|liveness|detect   instead of what the seed draws
  --without FAULT,FAULT,...       switches faults off
  --publishes N, --clients N      at most so many
  --cores N                       so many cores
  --quiet                         no trace, only the outcome
  --history FILE                  writes the history of one world, for ringpost-check
  --threads N                     for fuzz and mutants (default 1)
  --failures N                    for fuzz: stops after so many per thread (default 20)
  --twice N                       for fuzz: runs the first N again and compares their traces
  --marks N                       for fuzz: fails if a mark has fewer hits
  --shape                         for fuzz: fails if the median world has less than 3 queues on 2
                                  cores, every confirm level, and two writes in flight at half of
                                  its crashes
  --ledger FILE                   for fuzz: appends what was run to the table at its end
  --seconds N                     for mutants: begins no more worlds after so long
  --least N                       for mutants: so many must die, not all
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
    twice: u64,
    marks: u64,
    shape: bool,
    ledger: Option<String>,
    seconds: u64,
    least: Option<usize>,
    mutant: Option<String>,
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
        ["mutants", ..] => mutants(&arguments),
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
        seeds: 0..2000,
        overrides: Overrides::default(),
        is_quiet: false,
        history: None,
        threads: 1,
        failures: 20,
        twice: 0,
        marks: 0,
        shape: false,
        ledger: None,
        seconds: u64::MAX,
        least: None,
        mutant: None,
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
            "--twice" => arguments.twice = number(value()?)?,
            "--marks" => arguments.marks = number(value()?)?,
            "--shape" => arguments.shape = true,
            "--ledger" => arguments.ledger = Some(value()?),
            "--seconds" => arguments.seconds = number(value()?)?,
            "--least" => arguments.least = Some(number(value()?)? as usize),
            "--mutant" => {
                let name = value()?;
                plant(&name)?;
                arguments.mutant = Some(name);
            }
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
    let median = total.median();
    println!(
        "the median world: {} queues on {} cores, {} confirm levels, {} crashes, {} % of them with two \
         writes of a core in flight",
        median.queues, median.cores, median.levels, median.crashes, median.percent_in_writes
    );
}

fn fuzz(arguments: &Arguments) -> bool {
    let order = Order {
        seeds: arguments.seeds.clone(),
        twice: arguments.twice,
        threads: arguments.threads,
        failures_max: arguments.failures,
    };
    let total = run_and_print(&order, arguments);
    for (mark, count) in total.marks.iter() {
        println!("{count:>12}  {mark}");
    }
    let is_rich = !arguments.shape || total.median().is_rich();
    if !is_rich {
        println!("the median world is too poor");
    }
    let is_good = verdict(&total, arguments.marks) && is_rich;
    let entered = match &arguments.ledger {
        None => Ok(()),
        Some(path) => ledger::enter(path, &order.seeds, &total),
    };
    if let Err(error) = &entered {
        println!("not entered: {error}");
    }
    is_good && entered.is_ok()
}

/// Few enough for every commit. That they reach every mark is left to larger sets.
fn smoke(arguments: &Arguments) -> bool {
    let order = Order {
        seeds: 0..60,
        twice: 10,
        threads: arguments.threads,
        failures_max: u64::MAX,
    };
    verdict(&run_and_print(&order, arguments), 0)
}

fn run_and_print(order: &Order, arguments: &Arguments) -> Total {
    let start = Instant::now();
    let total = run::fuzz(order, &arguments.overrides, || {
        // It was checked when it was read.
        let _ = arguments.mutant.as_deref().map(plant);
    });
    print_total(&total, start.elapsed().as_secs_f64());
    total
}

/// Lowest marks that are printed.
const LOWEST: usize = 10;

fn verdict(total: &Total, marks_min: u64) -> bool {
    let mut lowest: Vec<(u64, &str)> = Marks::EXPECTED
        .iter()
        .map(|mark| (total.marks.count(mark), *mark))
        .collect();
    lowest.sort_unstable();
    let few = lowest.iter().take_while(|(count, _)| *count < marks_min);
    let few = few.count();
    let shown: Vec<String> = lowest[..LOWEST.max(few).min(lowest.len())]
        .iter()
        .map(|(count, mark)| format!("{mark} {count}"))
        .collect();
    println!("lowest of {} marks: {}", lowest.len(), shown.join(", "));
    if few > 0 {
        println!("{few} marks were hit less than {marks_min} times");
    }
    println!(
        "{} failing seeds; {} seeds run twice and compared",
        total.failure_count, total.twice
    );
    // Again, since they were printed when they happened, far above.
    for (seed, failure) in &total.failures {
        println!("failed: seed {seed}: {}", run::first_lines(failure));
    }
    total.failure_count == 0 && few == 0
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

/// What a planted bug has come to.
#[cfg(feature = "mutants")]
struct Trial {
    planted: ringpost_engine::mutant::Mutant,
    /// Seeds that it has met.
    met: u64,
    /// What ended it.
    failure: Option<String>,
}

/// Planted bugs meet seeds in rounds, so that those that die early have died when time is short.
#[cfg(feature = "mutants")]
const ROUNDS: [u64; 6] = [25, 100, 300, 600, 1_000, u64::MAX];

/// Every planted bug must die, or `--least` of them; prints after how many seeds. A seed that fails
/// without the bug too proves nothing about it and is passed over.
#[cfg(feature = "mutants")]
fn mutants(arguments: &Arguments) -> bool {
    use ringpost_engine::mutant::{Mutant, Origin};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let named = |mutant: &Mutant| {
        let names = &arguments.words[1..];
        names.is_empty() || names.iter().any(|name| name == mutant.word())
    };
    let seeds_max = arguments.seeds.end;
    let start = Instant::now();
    let is_over = || start.elapsed().as_secs() >= arguments.seconds;
    let passed_over = Mutex::new(std::collections::BTreeSet::new());
    let chosen = Mutant::ALL.iter().filter(|mutant| named(mutant));
    let mut trials: Vec<Mutex<Trial>> = chosen
        .map(|planted| {
            Mutex::new(Trial {
                planted: *planted,
                met: 0,
                failure: None,
            })
        })
        .collect();
    for round in ROUNDS {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut trial = trial.lock().expect("a trial catches what its worlds do");
                while trial.failure.is_none() && trial.met < round.min(seeds_max) && !is_over() {
                    let seed = trial.met;
                    trial.met += 1;
                    let failure = fails_with(trial.planted, seed, &arguments.overrides);
                    match failure {
                        Ok(failure) => trial.failure = failure,
                        Err(()) => {
                            passed_over.lock().expect("nobody panics").insert(seed);
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..arguments.threads {
                scope.spawn(work);
            }
        });
    }
    let mut trials: Vec<Trial> = trials
        .drain(..)
        .map(|trial| {
            trial
                .into_inner()
                .expect("a trial catches what its worlds do")
        })
        .collect();
    // Those that died come first, by how long they lived.
    trials.sort_by_key(|trial| (trial.failure.is_none(), trial.met, trial.planted));
    println!("| Planted bug | Comes from | Dies after | Died of |");
    println!("|---|---|---|---|");
    for trial in &trials {
        let (word, met) = (trial.planted.word(), trial.met);
        let origin = match trial.planted.origin() {
            Origin::Peer(name) => name,
            Origin::Shipped => "shipped here once",
            Origin::Mutation => "a rule left out",
        };
        let fate = match &trial.failure {
            Some(failure) => format!("{met} seeds | {}", judgement(failure)),
            None => format!("lived {met} seeds |"),
        };
        println!("| `{word}` | {origin} | {fate} |");
    }
    let died = trials
        .iter()
        .filter(|trial| trial.failure.is_some())
        .count();
    let is_late = |trial: &&Trial| trial.failure.is_some() && trial.met > 50;
    let late = trials.iter().filter(is_late).count();
    let met: u64 = trials.iter().map(|trial| trial.met).sum();
    let seconds = start.elapsed().as_secs();
    let passed_over = passed_over.into_inner().expect("nobody panics");
    if !passed_over.is_empty() {
        println!("failing without any planted bug, not counted: {passed_over:?}");
    }
    println!(
        "{died} of {} planted bugs died, {late} of them after more than 50 seeds; {met} worlds in {seconds} s",
        trials.len()
    );
    died >= arguments.least.unwrap_or(trials.len()) && passed_over.is_empty()
}

/// Which promise a world found broken, from what it says of it: the word of the judge, or what a client
/// says of an answer, without names and numbers.
#[cfg(feature = "mutants")]
fn judgement(failure: &str) -> String {
    let line = failure.lines().next().unwrap_or_default();
    let behind = |mark: &str| line.split_once(mark).map(|(_, rest)| rest);
    let rest = match line.split_once(' ').map(|(first, _)| first) {
        Some("event" | "client") => behind(": ").unwrap_or(line),
        _ => line,
    };
    let short = rest.split([',', ':', ';']).next().unwrap_or(rest);
    let words = short
        .split(' ')
        .filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ").replace('_', " ")
}

/// Whether a seed fails with a planted bug, and how; an error if it fails without.
#[cfg(feature = "mutants")]
fn fails_with(
    planted: ringpost_engine::mutant::Mutant,
    seed: u64,
    overrides: &Overrides,
) -> Result<Option<String>, ()> {
    use ringpost_engine::mutant;
    mutant::plant(Some(planted));
    let failure = run::run_quiet(seed, overrides).failure;
    mutant::plant(None);
    if failure.is_some() && run::run_quiet(seed, overrides).failure.is_some() {
        return Err(());
    }
    Ok(failure)
}

#[cfg(not(feature = "mutants"))]
fn mutants(_arguments: &Arguments) -> bool {
    eprintln!("built without the feature `mutants`");
    false
}
