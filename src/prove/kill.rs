//! Kills the broker under load, during recovery and politely, reads what it left, lets bytes of it
//! tear and rot if asked to, and starts it again. Does not know devices: what a kill leaves is what
//! the page cache and the drive have, so this tests recovery, not durability.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringpost_check::{Event, Verdict};

use crate::broker::{Broker, Program};
use crate::drain::drain;
use crate::history::{History, judge, write};
use crate::link::Link;
use crate::offline::{deliver, messages};
use crate::random::Random;
use crate::rot::{self, Rot, Tails};
use crate::scene::{Scene, Volatile};
use crate::worker::{Crew, Load, Shared};
use crate::{Outcome, Stopped};

/// How long nothing may happen under load before the broker is said to hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run of kills is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The broker's program.
    pub program: PathBuf,
    /// Where to put data, log and history; emptied by the caller.
    pub directory: PathBuf,
    /// Cores of the broker.
    pub cores: u16,
    /// Kills under load.
    pub cycles: u32,
    /// When no further cycle is begun.
    pub until: Option<Instant>,
    /// Set by whoever wants the run to end soon, and not well.
    pub stop: Arc<AtomicBool>,
    /// Producers, each with a connection and some consumers.
    pub producers: usize,
    /// Plans the run.
    pub seed: u64,
    /// How the broker is ended.
    pub ending: Ending,
    /// Says where journals end, if writes there shall be torn.
    pub tails: Option<Tails>,
    /// Bits that rot after each good end, each in a copy.
    pub flips: u32,
}

/// How the broker is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// SIGKILL, also during recovery; now and then SIGTERM.
    Kill,
    /// SIGTERM, always; queues are durable, so that nothing may be excused.
    Terminate,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The verdict of the checker.
    pub verdict: Verdict,
    /// Kills under load.
    pub kills: u32,
    /// Kills during recovery.
    pub kills_in_recovery: u32,
    /// SIGTERMs.
    pub terminations: u32,
    /// Journals that ended with a torn write.
    pub tears: u32,
    /// Bits that rotted without harm, over which queues refused service, and over which the broker
    /// did not start.
    pub flips: [u32; 3],
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} kills under load, {} in recovery, {} SIGTERMs; ",
            self.kills, self.kills_in_recovery, self.terminations
        )?;
        if self.tears > 0 {
            write!(f, "{} torn writes; ", self.tears)?;
        }
        if self.flips != [0; 3] {
            let [harmless, refused, not_started] = self.flips;
            write!(
                f,
                "{} flipped bits: {harmless} harmless, {refused} named and refused by their queues, \
                 {not_started} by the start; ",
                harmless + refused + not_started
            )?;
        }
        write!(f, "{}", self.verdict)
    }
}

/// Runs a plan.
///
/// # Errors
/// What went wrong, and where the history and the broker's log are.
pub fn run(plan: &Plan) -> Result<Report, Stopped> {
    run_and_tell(plan, &mut |_, _| {})
}

/// The same; tells after each cycle how far it is, with the events so far.
///
/// # Errors
/// As [`run`].
pub fn run_and_tell(plan: &Plan, tell: &mut dyn FnMut(&Report, usize)) -> Result<Report, Stopped> {
    let volatile = match plan.ending {
        Ending::Kill => Volatile::Allow,
        Ending::Terminate => Volatile::Avoid,
    };
    let shared = Shared::new(History::default(), Scene::new(volatile));
    let outcome = Run::new(plan, &shared).run(tell);
    let events = shared.history.all();
    let history = plan.directory.join("history.txt");
    let verdict = judge(&events);
    match outcome {
        Ok(mut report) if verdict.is_clean() => {
            report.verdict = verdict;
            Ok(report)
        }
        other => {
            let place = match write(&history, &events) {
                Ok(()) => format!("history: {}, log and data beside it", history.display()),
                Err(error) => format!("the history is not kept: {error}"),
            };
            let (is_broken, why) = match other {
                Ok(_) => (false, String::new()),
                Err(Stopped::Broken(why)) => (true, why),
                Err(Stopped::Unable(why)) => (false, why),
            };
            let text = format!("seed {}: {why}\n{verdict}\n{place}", plan.seed);
            Err(if is_broken || verdict.violation_count > 0 {
                Stopped::Broken(text)
            } else {
                Stopped::Unable(text)
            })
        }
    }
}

/// Starts a broker as a run does, in a directory of its own, and ends it: what fails here breaks no
/// promise, since none was made.
///
/// # Errors
/// No broker can run there.
pub fn rehearse(plan: &Plan) -> Outcome<()> {
    let mut program = program(&plan.program, &plan.directory, plan.cores);
    program.data = plan.directory.join("rehearsal");
    program.log = plan.directory.join("rehearsal.log");
    program.start()?.terminate()?;
    let removed = std::fs::remove_dir_all(&program.data);
    removed.map_err(|error| format!("cannot remove {}: {error}", program.data.display()))
}

struct Run<'a> {
    plan: &'a Plan,
    program: Program,
    shared: &'a Arc<Shared>,
    random: Random,
    crew: Crew,
    report: Report,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, shared: &'a Arc<Shared>) -> Self {
        Self {
            plan,
            program: program(&plan.program, &plan.directory, plan.cores),
            shared,
            random: Random::new(plan.seed),
            crew: Crew::new(plan.seed, plan.producers),
            report: Report {
                verdict: Verdict::default(),
                kills: 0,
                kills_in_recovery: 0,
                terminations: 0,
                tears: 0,
                flips: [0; 3],
            },
        }
    }

    fn run(mut self, tell: &mut dyn FnMut(&Report, usize)) -> Result<Report, Stopped> {
        for _ in 0..self.plan.cycles {
            if self.plan.until.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            self.go_on()?;
            self.kill_in_recovery()?;
            let mut broker = self.start()?;
            let publishes_max = self.random.between(100, 1_500);
            let load = self
                .crew
                .start(self.shared, broker.address(), publishes_max);
            let events = self.random.between(50, 6_000) as usize;
            let waited = wait_for_events(self.shared, &mut broker, &load, events);
            if self.plan.ending == Ending::Terminate && self.random.percent(50) {
                load.stop(self.shared, &mut self.crew)?;
                self.end(broker)?;
            } else {
                self.end(broker)?;
                load.join(&mut self.crew)?;
            }
            if self.plan.ending == Ending::Kill {
                self.ended();
                self.read_without_a_broker()?;
            }
            waited?;
            self.go_on()?;
            if let Some(tails) = self.plan.tails {
                let data = &self.program.data;
                self.report.tears += rot::tear(tails, data, &mut self.random)?;
            }
            self.rot()?;
            tell(&self.report, self.shared.history.len());
        }
        let broker = self.start()?;
        drain(self.shared, broker.address())?;
        broker.terminate()?;
        let log = self.program.log_text()?;
        match log.lines().find(|line| is_alarming(line)) {
            Some(line) => Err(format!("the broker's log says: {line}").into()),
            None => Ok(self.report),
        }
    }

    /// Ends the run if somebody wants that.
    fn go_on(&self) -> Outcome<()> {
        match self.plan.stop.load(Ordering::Relaxed) {
            true => Err("told to stop".to_owned()),
            false => Ok(()),
        }
    }

    fn start(&mut self) -> Outcome<Broker> {
        let broker = self.program.start()?;
        let mut link = Link::open(broker.address())?;
        self.shared.scene.declare(&mut link)?;
        Ok(broker)
    }

    /// What is volatile is gone.
    fn ended(&self) {
        self.shared.history.record([Event::Crash]);
        let restarted = self.shared.scene.restarted();
        self.shared.history.record(restarted);
    }

    /// What `ringpost verify` finds must be what a start would, which nobody has told yet.
    fn read_without_a_broker(&self) -> Result<(), Stopped> {
        let found = messages(&self.program, &self.plan.directory)?;
        let shared = self.shared.copy();
        deliver(&shared, &found)?;
        let verdict = judge(&shared.history.all());
        let told = format!("without a broker: {verdict}");
        match verdict.violation_count {
            0 if verdict.is_clean() => Ok(()),
            0 => Err(Stopped::Unable(told)),
            _ => Err(Stopped::Broken(told)),
        }
    }

    /// Lets bits rot in copies of what a good end leaves. What a kill leaves has an end that is in
    /// doubt: there, rot cannot be told from a torn write.
    fn rot(&mut self) -> Result<(), Stopped> {
        if self.plan.flips == 0 {
            return Ok(());
        }
        self.start()?.terminate()?;
        self.ended();
        for _ in 0..self.plan.flips {
            self.go_on()?;
            let directory = &self.plan.directory;
            let rot = rot::flip(&self.program, self.shared, directory, &mut self.random)?;
            let place = match rot {
                Rot::Harmless => 0,
                Rot::Refused => 1,
                Rot::NotStarted => 2,
            };
            self.report.flips[place] += 1;
        }
        Ok(())
    }

    fn kill_in_recovery(&mut self) -> Outcome<()> {
        if self.plan.ending == Ending::Terminate {
            return Ok(());
        }
        for _ in 0..3 {
            if !self.random.percent(30) {
                break;
            }
            let broker = self.program.spawn()?;
            // There is nothing to wait for: any moment of the start will do.
            std::thread::sleep(Duration::from_micros(self.random.below(40_000)));
            broker.kill()?;
            self.report.kills_in_recovery += 1;
        }
        Ok(())
    }

    fn end(&mut self, broker: Broker) -> Outcome<()> {
        if self.plan.ending == Ending::Terminate || self.random.percent(10) {
            self.report.terminations += 1;
            broker.terminate()
        } else {
            self.report.kills += 1;
            broker.kill()
        }
    }
}

/// The program as these runs start it, with its data in a directory of a run.
#[must_use]
pub fn program(path: &Path, directory: &Path, cores: u16) -> Program {
    Program {
        path: path.to_owned(),
        data: directory.join("data"),
        log: directory.join("broker.log"),
        cores,
        arguments: Vec::new(),
    }
}

/// Waits until the history has grown by `events`, or as far as it will.
///
/// # Errors
/// The broker has ended, or nothing happens at all.
pub fn wait_for_events(
    shared: &Shared,
    broker: &mut Broker,
    load: &Load,
    events: usize,
) -> Outcome<()> {
    let start = shared.history.len();
    let (mut last, mut since) = (start, Instant::now());
    loop {
        let now = shared.history.len();
        if now >= start + events || load.has_ended() {
            return broker.check();
        }
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > Duration::from_millis(300) && now > start {
            // Everything is published and what is held is held: as far as it will go.
            return broker.check();
        } else if since.elapsed() > PATIENCE {
            return Err(format!("nothing happened for {PATIENCE:?} under load"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a line of the log tells of something that must not be.
#[must_use]
pub fn is_alarming(line: &str) -> bool {
    line.contains("\"level\":\"ERROR\"") || line.contains("panicked")
}
