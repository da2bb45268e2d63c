//! Runs seeds: one with its trace, many with a table, a failing one with less and less in it.
//! Does not know what happens in a world.

use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::plan::{Fault, Overrides, Plan};
use crate::scene::{Marks, Shape, Trace};
use crate::world::{Outcome, World};

thread_local! {
    /// The seed that this thread runs, and where its last panic was.
    static RUNNING: RefCell<(Option<u64>, String)> = const { RefCell::new((None, String::new())) };
}

/// Makes a panic inside a world name its seed. Call once.
pub fn name_seeds_in_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let is_ours = RUNNING.with_borrow_mut(|(seed, text)| {
            let Some(seed) = seed else {
                return false;
            };
            *text = info.to_string();
            if cfg!(panic = "abort") {
                // This profile ends the process: say at least which world it was.
                eprintln!("seed {seed}: {text}");
            }
            true
        });
        if !is_ours || std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value == "full") {
            before(info);
        }
    }));
}

/// Runs one world. A panic of the engine or of a rule of the seam is a failure like any other.
#[must_use]
pub fn run(
    seed: u64,
    overrides: &Overrides,
    trace: Trace,
    history: Option<Box<dyn Write>>,
) -> Outcome {
    let plan = Plan::draw(seed, overrides);
    let kept = plan.clone();
    RUNNING.with_borrow_mut(|running| *running = (Some(seed), String::new()));
    let result = catch_unwind(AssertUnwindSafe(move || {
        World::new(plan, trace, history).run()
    }));
    let text = RUNNING.with_borrow_mut(|running| core::mem::take(running).1);
    result.unwrap_or_else(|_| Outcome {
        failure: Some(text),
        trace_hash: 0,
        marks: Marks::default(),
        counts: ringpost_check::Counts::default(),
        happenings: 0,
        time: 0,
        plan: kept,
        shape: Shape::default(),
    })
}

/// Runs one world quietly.
#[must_use]
pub fn run_quiet(seed: u64, overrides: &Overrides) -> Outcome {
    run(seed, overrides, Trace::default(), None)
}

/// What many worlds came to.
#[derive(Default, Debug)]
pub struct Total {
    /// Worlds.
    pub seeds: u64,
    /// Worlds that were run twice.
    pub twice: u64,
    /// Failing seeds, the first ones, with what was wrong.
    pub failures: Vec<(u64, String)>,
    /// How many failed.
    pub failure_count: u64,
    /// Marks of all.
    pub marks: Marks,
    /// Messages published.
    pub sent: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Crashes.
    pub crashes: u64,
    /// Happenings.
    pub happenings: u64,
    /// Virtual nanoseconds.
    pub time: u64,
    /// What each came to hold.
    pub shapes: Vec<Shape>,
}

/// Failing seeds that are kept with their texts.
const FAILURES_KEPT_MAX: usize = 50;

impl Total {
    /// Adds a world.
    pub fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.marks.merge(&outcome.marks);
        self.sent += outcome.counts.sent;
        self.delivered += outcome.counts.delivered;
        self.crashes += outcome.counts.crashes;
        self.happenings += outcome.happenings;
        self.time += outcome.time;
        self.shapes.push(outcome.shape.clone());
        if let Some(failure) = &outcome.failure {
            self.failure_count += 1;
            if self.failures.len() < FAILURES_KEPT_MAX {
                self.failures.push((seed, failure.clone()));
            }
        }
    }

    /// Adds what another thread found.
    pub fn merge(&mut self, other: Total) {
        self.seeds += other.seeds;
        self.twice += other.twice;
        self.failures.extend(other.failures);
        self.failures.sort();
        self.failures.truncate(FAILURES_KEPT_MAX);
        self.failure_count += other.failure_count;
        self.marks.merge(&other.marks);
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.crashes += other.crashes;
        self.happenings += other.happenings;
        self.time += other.time;
        self.shapes.extend(other.shapes);
    }

    /// The median world, by each of its figures.
    #[must_use]
    pub fn median(&self) -> Median {
        let of = |figure: fn(&Shape) -> Option<u64>| {
            let mut figures: Vec<u64> = self.shapes.iter().filter_map(figure).collect();
            figures.sort_unstable();
            figures.get(figures.len() / 2).copied().unwrap_or(0)
        };
        Median {
            queues: of(|shape| Some(shape.queues as u64)),
            cores: of(|shape| Some(shape.cores.len() as u64)),
            levels: of(|shape| Some(shape.levels.len() as u64)),
            crashes: of(|shape| Some(shape.crashes)),
            percent_in_writes: of(|shape| {
                (shape.crashes_in_writes * 100).checked_div(shape.crashes)
            }),
        }
    }
}

/// Figures of the median world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Median {
    /// Queues at once.
    pub queues: u64,
    /// Cores that had queues.
    pub cores: u64,
    /// Confirm levels that were asked for.
    pub levels: u64,
    /// Crashes.
    pub crashes: u64,
    /// Crashes of a hundred while a core had two writes in flight, where there were crashes.
    pub percent_in_writes: u64,
}

impl Median {
    /// Whether it is worth running: several queues on several cores, every confirm level, and two writes
    /// in flight at half of its crashes.
    #[must_use]
    pub const fn is_rich(&self) -> bool {
        self.queues >= 3 && self.cores >= 2 && self.levels == 3 && self.percent_in_writes >= 50
    }
}

/// Worlds to be run.
#[derive(Clone, Debug)]
pub struct Order {
    /// Their seeds.
    pub seeds: std::ops::Range<u64>,
    /// So many of the first ones are run twice: they must be the same worlds.
    pub twice: u64,
    /// On so many threads.
    pub threads: u64,
    /// A thread stops after so many failures.
    pub failures_max: u64,
}

/// Runs the worlds of an order; `prepare` is called on each thread before the first.
#[must_use]
pub fn fuzz(order: &Order, overrides: &Overrides, prepare: impl Fn() + Sync) -> Total {
    let worker = &|thread: u64| {
        prepare();
        let mut total = Total::default();
        let mut seed = order.seeds.start + thread;
        while seed < order.seeds.end && total.failure_count < order.failures_max {
            let mut outcome = run_quiet(seed, overrides);
            if seed - order.seeds.start < order.twice {
                total.twice += 1;
                let again = run_quiet(seed, overrides);
                if again.trace_hash != outcome.trace_hash {
                    let differ = || "two runs of it differ".to_owned();
                    outcome.failure.get_or_insert_with(differ);
                }
            }
            if let Some(failure) = &outcome.failure {
                println!("seed {seed}: {}", first_lines(failure));
            }
            total.add(seed, &outcome);
            seed += order.threads;
        }
        total
    };
    let mut total = Total::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..order.threads)
            .map(|thread| scope.spawn(move || worker(thread)))
            .collect();
        for handle in workers {
            total.merge(handle.join().expect("a worker catches what its worlds do"));
        }
    });
    total
}

/// A text cut to what fits a screen.
#[must_use]
pub fn first_lines(text: &str) -> String {
    let mut short: String = text.chars().take(600).collect();
    if short.len() < text.len() {
        short.push_str(" ...");
    }
    short
}

/// Takes as much out of a failing world as can go while it fails in any way. Returns what is left
/// to write on the command line, or `None` if it does not fail.
#[must_use]
pub fn shrink(seed: u64, overrides: &Overrides, mut say: impl FnMut(String)) -> Option<Overrides> {
    let fails = |overrides: &Overrides| run_quiet(seed, overrides).failure;
    let mut best = overrides.clone();
    say(format!("it fails with: {}", first_lines(&fails(&best)?)));
    let plan = Plan::draw(seed, &best);
    best.mode = Some(plan.mode);
    let mut attempt = |best: &mut Overrides, next: Overrides, what: String| {
        let failure = fails(&next);
        if let Some(failure) = &failure {
            say(format!("still fails {what}: {}", first_lines(failure)));
            *best = next;
        }
        failure.is_some()
    };
    for _round in 0..2 {
        for fault in Fault::ALL {
            if Plan::draw(seed, &best).faults.has(*fault) {
                let mut next = best.clone();
                next.without.push(*fault);
                attempt(&mut best, next, format!("without {}", fault.word()));
            }
        }
        for clients in 1..Plan::draw(seed, &best).clients {
            let next = Overrides {
                clients: Some(clients),
                ..best.clone()
            };
            if attempt(&mut best, next, format!("with {clients} clients")) {
                break;
            }
        }
        if Plan::draw(seed, &best).cores > 1 {
            let next = Overrides {
                cores: Some(1),
                ..best.clone()
            };
            attempt(&mut best, next, "on one core".into());
        }
        let mut publishes = Plan::draw(seed, &best).publishes;
        while publishes > 1 {
            let fewer = publishes * 2 / 3;
            let next = Overrides {
                publishes: Some(fewer),
                ..best.clone()
            };
            if !attempt(&mut best, next, format!("with {fewer} publishes")) {
                break;
            }
            publishes = fewer;
        }
    }
    Some(best)
}

/// The overrides as command-line arguments.
#[must_use]
pub fn arguments(overrides: &Overrides) -> String {
    let mut text = String::new();
    if let Some(mode) = overrides.mode {
        text += &format!(" --mode {}", mode.word());
    }
    if !overrides.without.is_empty() {
        let words: Vec<&str> = overrides.without.iter().map(|fault| fault.word()).collect();
        text += &format!(" --without {}", words.join(","));
    }
    if let Some(publishes) = overrides.publishes {
        text += &format!(" --publishes {publishes}");
    }
    if let Some(clients) = overrides.clients {
        text += &format!(" --clients {clients}");
    }
    if let Some(cores) = overrides.cores {
        text += &format!(" --cores {cores}");
    }
    text
}
