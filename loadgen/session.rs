//! Runs what parameters say, as often as they say, with what happens beside it, and gathers all that
//! is known of it into one result. Does not make load itself.

mod beside;
mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringpost_wire::control::{Durability, Level};

use self::beside::{Beside, Happened};
use self::watch::Observer;
use crate::broker::{Look, Own, Window, metric, synced_files};
use crate::device;
use crate::live::Live;
use crate::machine::{self, Facts};
use crate::params::{BUSY_MAX, Parameters};
use crate::peer::Promise;
use crate::plan::{Pace, Plan, Stop, Via};
use crate::result::{Class, Device, Results, Round, SCHEMA, Times, Usage};
use crate::routes;
use crate::run::run_watched;
use crate::sweep;
use crate::{Error, Outcome, Result};

/// Share of the asked rate that an open loop must send to be one.
const RATE_SHARE_MIN: f64 = 0.99;
/// Rates that a sweep tries between the last that the broker follows and the first that it does not.
const HALVINGS: u32 = 3;

/// Parameters that are being run.
pub struct Session {
    parameters: Parameters,
    plan: Plan,
    window: Window,
    own: Option<Own>,
    started: SystemTime,
    machine: Facts,
    device_before: Option<Times>,
    rounds: Vec<Round>,
}

impl Session {
    /// Checks the parameters, starts a broker if the scenario ends one, declares what is needed.
    ///
    /// # Errors
    /// [`Error::Plan`] if they cannot be run; others if the broker is not there or refuses.
    pub fn start(parameters: Parameters, live: &mut Live) -> Result<Self> {
        let plan = parameters.plan()?;
        check_scenario(&parameters, &plan)?;
        let machine = machine::look(&plan.cpus);
        let own = match (&parameters.broker_command, parameters.scenario.as_str()) {
            (Some(command), "broker-restart") => {
                live.tell(&format!("starting {command}"));
                Some(Own::start(command, parameters.address)?)
            }
            _ => None,
        };
        let window = Window {
            admin: parameters.admin,
            process: match &own {
                Some(_) => None, // it is another process after the restart
                None => parameters.broker_pid,
            },
        };
        let mut session = Self {
            window,
            own,
            started: SystemTime::now(),
            machine,
            device_before: None,
            rounds: Vec::new(),
            plan,
            parameters,
        };
        session.device_before = session.measure_device(live)?;
        routes::declare(&session.plan)?;
        Ok(session)
    }

    /// Runs parameters from the first declare to the result.
    ///
    /// # Errors
    /// As [`Session::start`], [`Session::run`] and [`Session::end`].
    pub fn whole(parameters: Parameters, live: &mut Live) -> Result<Results> {
        let mut session = Self::start(parameters, live)?;
        session.run(live)?;
        session.end(live)
    }

    /// Runs all rounds of the scenario.
    ///
    /// # Errors
    /// If the broker is not there any more, refuses or breaks the protocol. A run that could not be
    /// driven or drained is no error: it says so.
    pub fn run(&mut self, live: &mut Live) -> Result<()> {
        match self.parameters.scenario.as_str() {
            "sweep" => self.sweep(live),
            "backlog-then-drain" => self.backlog(live),
            _ => {
                for _ in 0..self.parameters.rounds {
                    self.round(live)?;
                }
                Ok(())
            }
        }
    }

    /// Runs one more round of a scenario that has one run a round.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn round(&mut self, live: &mut Live) -> Result<()> {
        let name = match self.parameters.rounds {
            1 if self.rounds.is_empty() => self.parameters.scenario.clone(),
            _ => format!("round {}", self.rounds.len() + 1),
        };
        let after = Duration::try_from_secs_f64(self.parameters.after).unwrap_or_default();
        let beside = match (self.parameters.scenario.as_str(), self.own.take()) {
            ("connection-storm", _) => Beside::Storm {
                after,
                clients: self.parameters.storm,
                per_second: self.parameters.storm_rate,
            },
            ("broker-restart", Some(own)) => Beside::Restart {
                after,
                ending: self.parameters.ending,
                own: Box::new(own),
            },
            (_, own) => {
                self.own = own;
                Beside::Nothing
            }
        };
        let plan = self.plan.clone();
        let (round, own) = self.one(&name, &plan, beside, live)?;
        self.own = own;
        self.rounds.push(round);
        Ok(())
    }

    fn sweep(&mut self, live: &mut Live) -> Result<()> {
        let given = self.parameters.rates.clone();
        let mut points: Vec<sweep::Point> = Vec::new();
        for at in 0..self.parameters.points_max as usize {
            let rate = if !given.is_empty() {
                given.get(at).copied()
            } else if points.is_empty() {
                self.plan.per_second()
            } else {
                sweep::next_rate(&points, self.parameters.factor, HALVINGS)
            };
            let Some(per_second) = rate else {
                break;
            };
            let mut plan = self.plan.clone();
            plan.pace = match plan.pace {
                Pace::Poisson { .. } => Pace::Poisson { per_second },
                _ => Pace::Constant { per_second },
            };
            plan.check()?;
            let name = format!("{}/s", crate::report::rate_of(per_second));
            let (round, _) = self.one(&name, &plan, Beside::Nothing, live)?;
            let point = point_of(&round);
            let is_driven = round.invalid.is_none();
            self.rounds.push(round);
            match point {
                Some(point) => points.push(point),
                None if given.is_empty() => break,
                None => {}
            }
            if !is_driven && given.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn backlog(&mut self, live: &mut Live) -> Result<()> {
        let messages = self.parameters.backlog;
        let fill = Plan {
            consumers: 0,
            stop: Stop::Published(messages),
            ..self.plan.clone()
        };
        let (round, _) = self.one("fill", &fill, Beside::Nothing, live)?;
        let published = round.published;
        let is_filled = round.invalid.is_none();
        self.rounds.push(round);
        if !is_filled {
            return Ok(());
        }
        let drain = Plan {
            producers: 0,
            backlog_of: self.plan.producers,
            warm_up: Duration::ZERO,
            stop: Stop::Delivered(published * u64::from(self.plan.fan_out)),
            ..self.plan.clone()
        };
        let (mut round, _) = self.one("drain", &drain, Beside::Nothing, live)?;
        let text = "end to end is how long messages lay in the backlog, not what a delivery takes";
        round.notes.push(text.into());
        self.rounds.push(round);
        Ok(())
    }

    /// One run, and all that is known of it.
    fn one(
        &self,
        name: &str,
        plan: &Plan,
        beside: Beside,
        live: &mut Live,
    ) -> Result<(Round, Option<Own>)> {
        let mut observer = Observer::new(name, plan, &self.window, live);
        let (outcome, happened) = beside.during(plan, observer.measuring(), || {
            run_watched(plan, &mut observer)
        });
        let seen = observer.end()?;
        let happened = happened?;
        let mut round = match outcome {
            Ok(outcome) => {
                let mut round = Round::new(name, plan, &outcome);
                round.intervals = seen.intervals;
                if let (Some(before), Some(after)) = (&seen.before, &seen.after) {
                    tell_broker(&mut round, before, after, &outcome, plan);
                }
                let why = fault(plan, &round, &self.parameters);
                match why {
                    Some(why) => round.refuse(why),
                    None => tell_limits(&mut round, plan),
                }
                round
            }
            Err(Error::Stalled(why)) => not_driven(name, plan, &why),
            Err(error) => return Err(error),
        };
        round.hiccups = Times(seen.hiccups);
        let Happened {
            marks,
            connects,
            notes,
            own,
        } = happened;
        round.marks = marks;
        round.connects = connects.map(Times);
        round.notes.extend(notes);
        if plan.is_restart_expected {
            let silent = seen.silence.as_secs_f64() * 1e3;
            let text = format!("the longest time without a confirm was {silent:.0} ms");
            round.notes.push(text);
        }
        live.tell(&crate::report::line_of(&round));
        Ok((round, own))
    }

    /// Deletes what was declared, measures the device once more and puts the result together.
    ///
    /// # Errors
    /// If the broker refuses or the device fails.
    pub fn end(mut self, live: &mut Live) -> Result<Results> {
        let broker = self.broker_facts();
        let class = self.class();
        if !self.parameters.keep {
            routes::delete(&self.plan)?;
        }
        if let Some(own) = &mut self.own {
            own.end(crate::broker::Ending::Term)?;
        }
        let device_after = self.measure_device(live)?;
        let device = match (
            &self.parameters.device_dir,
            self.device_before,
            device_after,
        ) {
            (Some(directory), Some(before), Some(after)) => {
                let place = device::look(directory)?;
                Some(Device {
                    directory: directory.display().to_string(),
                    file_system: format!("{} on {}", place.file_system, place.source),
                    bytes: self.parameters.device_bytes,
                    before,
                    after,
                })
            }
            _ => None,
        };
        let points: Vec<_> = self.rounds.iter().filter_map(point_of).collect();
        let is_sweep = self.parameters.scenario == "sweep";
        let started = self.started.duration_since(UNIX_EPOCH);
        Ok(Results {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            command: machine::command(),
            started_ms: started.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
            block: self.parameters.block(),
            parameters: self.parameters,
            machine: self.machine,
            broker,
            class,
            device,
            rounds: self.rounds,
            sweep: is_sweep.then(|| sweep::find(&points)).flatten(),
        })
    }

    fn measure_device(&self, live: &mut Live) -> Result<Option<Times>> {
        let Some(directory) = &self.parameters.device_dir else {
            return Ok(None);
        };
        live.now(|| format!("measuring the device at {}", directory.display()));
        let time = Duration::try_from_secs_f64(self.parameters.device_seconds)
            .map_err(|error| Error::Plan(format!("device_seconds: {error}")))?;
        let found = device::measure(directory, self.parameters.device_bytes, time)?;
        Ok(Some(Times(found)))
    }

    fn broker_facts(&self) -> Facts {
        let mut facts = Facts::default();
        facts.add("address", self.parameters.address.to_string());
        if let Some(words) = &self.parameters.broker {
            facts.add("broker", words.clone());
        }
        if !self.plan.via.is_peer() {
            self.add_ringpost_facts(&mut facts);
        }
        self.add_process_facts(&mut facts);
        facts
    }

    /// What Ringpost says of itself.
    fn add_ringpost_facts(&self, facts: &mut Facts) {
        let page = self.window.look().metrics.unwrap_or_default();
        let version = page.lines().find_map(|line| {
            let rest = line.strip_prefix("ringpost_build_info{version=\"")?;
            Some(rest.split('"').next()?.to_owned())
        });
        let unknown = "not known: --admin names the port that tells";
        facts.add("version", version.unwrap_or_else(|| unknown.into()));
        let cores = page
            .lines()
            .filter(|line| line.starts_with("ringpost_core_up{"))
            .count();
        if cores > 0 {
            facts.add("cores", cores.to_string());
        }
    }

    /// What the kernel says of the broker's process.
    fn add_process_facts(&self, facts: &mut Facts) {
        if let Some(process) = self.process() {
            let read = |file: &str| std::fs::read(format!("/proc/{process}/{file}"));
            let words = read("cmdline").unwrap_or_default();
            let words = String::from_utf8_lossy(&words)
                .trim_end_matches('\0')
                .replace('\0', " ");
            facts.add("command", words);
            let status = read("status").unwrap_or_default();
            let status = String::from_utf8_lossy(&status).into_owned();
            if let Some(cpus) = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            {
                facts.add("allowed CPUs", cpus.trim());
            }
            let files = synced_files(process);
            if !files.is_empty() {
                let count = files.len();
                facts.add("files open with O_DIRECT and O_DSYNC", count.to_string());
            }
        }
    }

    fn process(&self) -> Option<u32> {
        let own = self.own.as_ref().map(Own::process);
        own.or(self.parameters.broker_pid)
    }

    fn class(&self) -> Class {
        let journal = self.process().map(synced_files);
        let places = match (&journal, &self.parameters.device_dir) {
            (Some(files), _) if !files.is_empty() => {
                let directory = files[0].parent().map(std::path::Path::to_owned);
                directory.map(|directory| device::look(&directory))
            }
            (_, Some(directory)) => Some(device::look(directory)),
            _ => None,
        };
        let place = places.and_then(Result::ok);
        if self.plan.via.is_peer() {
            return class_of_peer(self.plan.peer.promise, self.plan.level, place.as_ref());
        }
        let is_synced = journal.map(|files| !files.is_empty());
        class_of(
            self.plan.durability,
            self.plan.level,
            place.as_ref(),
            is_synced,
        )
    }
}

/// What a peer's confirm is worth: its own affair, and the word of whoever set it up.
fn class_of_peer(promise: Promise, level: Level, place: Option<&device::Place>) -> Class {
    let own = "durability is the peer's own";
    let (letter, words) = match (level, promise) {
        (Level::None, _) => ("A", format!("{own}; not durable: nothing is confirmed")),
        (_, Promise::Unknown) => {
            let text = "what it is set to was not said (--class) and not looked at";
            ("?", format!("{own}: {text}"))
        }
        (_, Promise::Unsynced) => {
            let text = "it is said to confirm before it syncs, which was not looked at";
            ("B", format!("{own}; not durable: {text}"))
        }
        (_, Promise::Synced) => match place.filter(|place| place.is_memory()) {
            Some(place) => {
                let text = format!(
                    "it is said to sync, on {}, which is memory",
                    place.file_system
                );
                ("B", format!("{own}; not durable: {text}"))
            }
            None => {
                let text = "it is said to sync before it confirms, which was not looked at";
                ("C", format!("{own}: {text}"))
            }
        },
    };
    Class {
        letter: letter.into(),
        is_durable: false, // nothing of it was seen from here
        words,
    }
}

/// What a confirm is worth. `is_synced`: whether the kernel says that the broker has files open that
/// are synced by every write, if that could be seen.
fn class_of(
    durability: Durability,
    level: Level,
    place: Option<&device::Place>,
    is_synced: Option<bool>,
) -> Class {
    let class = |letter: &str, is_durable, words: String| Class {
        letter: letter.into(),
        is_durable,
        words,
    };
    match (durability, level) {
        (_, Level::None) => class("A", false, "not durable: nothing is confirmed".into()),
        (Durability::Volatile, _) | (_, Level::Volatile) => {
            class("B", false, "not durable: confirmed when in memory".into())
        }
        (Durability::Durable, Level::Durable) => {
            let promise = "the broker confirms what is synced in its journal";
            match (place.map(|place| (place, place.fault())), is_synced) {
                (Some((_, Some(fault))), _) => class("B", false, format!("not durable: {fault}")),
                (_, Some(false)) => {
                    let text = "not durable as far as can be seen: the broker's process has no file \
                                open with O_DIRECT and O_DSYNC";
                    class("B", false, text.into())
                }
                (Some((place, None)), _) => {
                    let file_system = &place.file_system;
                    let seen = match is_synced {
                        Some(_) => "its journal is open with O_DIRECT and O_DSYNC",
                        None => "that it uses it is the broker's word",
                    };
                    let text = format!("{promise}, on {file_system} with O_DIRECT; {seen}");
                    class("C", true, text)
                }
                (None, _) => {
                    let text = format!(
                        "{promise}, by its own word: on what file system was not looked at \
                         (--device-dir or --broker-pid)"
                    );
                    class("C", false, text)
                }
            }
        }
    }
}

/// Whether the scenario can be run with these parameters.
fn check_scenario(parameters: &Parameters, plan: &Plan) -> Result<()> {
    let wrong = |text: &str| Err(Error::Plan(text.to_owned()));
    match parameters.scenario.as_str() {
        "sweep" if !plan.is_open_loop() => wrong("a sweep is of rates; leave --window out"),
        "sweep" if !(parameters.factor > 1.0 && parameters.factor.is_finite()) => {
            wrong("each rate of a sweep has to be more than the one before: a factor above 1")
        }
        "step" if parameters.steps.is_empty() => wrong("the scenario step needs --steps"),
        "slow-consumer" if plan.service == crate::plan::Service::None => {
            wrong("the scenario slow-consumer needs a --service time")
        }
        "backlog-then-drain" if plan.producers == 0 || plan.consumers == 0 => {
            wrong("a backlog needs producers and consumers")
        }
        "connection-storm" if plan.via.is_peer() => {
            wrong("a storm's clients speak Ringpost's protocol: it cannot be had of a peer")
        }
        "connection-storm" if parameters.storm == 0 || parameters.storm_rate <= 0.0 => {
            wrong("a storm needs clients, and how many connect in a second")
        }
        "broker-restart" if plan.via != Via::Client => {
            wrong("only the public client comes back after its broker has: use --client")
        }
        "broker-restart" if parameters.broker_command.is_none() => wrong(
            "broker-restart ends the broker, and ends only what it has started: give the command, \
             e.g. --broker-command \"ringpost serve --data-dir DIR --listen 127.0.0.1:7499\", and its \
             --address",
        ),
        "connection-storm" | "broker-restart" if parameters.after >= parameters.duration => {
            wrong("--after has to come before the --duration is over")
        }
        _ => Ok(()),
    }
}

/// A point of the curve, of a round that can be reported.
pub(crate) fn point_of(round: &Round) -> Option<sweep::Point> {
    let (_, times) = round.main_series()?;
    Some(sweep::Point {
        offered: round.offered?,
        achieved: round.achieved_per_second,
        p99_ns: times.value_at_quantile(0.99) as f64,
    })
}

/// A run that did not come to its end.
fn not_driven(name: &str, plan: &Plan, why: &str) -> Round {
    let outcome = Outcome {
        tally: crate::tally::Tally::default(),
        total: crate::tally::Sums::default(),
        measured: crate::tally::Sums::default(),
        time: Duration::from_secs(1),
        threads: plan.threads(),
    };
    let mut round = Round::new(name, plan, &outcome);
    round.refuse(why.to_owned());
    round
}

/// Why a run measured its load instead of the broker, if it did. What the broker held up, by credit
/// or by not reading, is a result.
fn fault(plan: &Plan, round: &Round, parameters: &Parameters) -> Option<String> {
    let offered = round.offered?; // a closed loop is labelled as what it is
    let busy = round.load_busy;
    if parameters.busy_max < 1.0 && busy >= parameters.busy_max {
        return Some(format!(
            "the load used {:.0} % of its CPUs: it measured the load generator; lower the rate, or \
             give it more with --cpus",
            busy * 100.0
        ));
    }
    let missed_max = parameters.missed_max;
    if round.missed_share > missed_max {
        return Some(format!(
            "{:.2} % of the messages were sent more than 1 ms after their time though the broker took \
             all ({:.2} % are allowed): lower the rate, or give the load CPUs of its own with --cpus",
            round.missed_share * 100.0,
            missed_max * 100.0
        ));
    }
    let is_timed = matches!(plan.stop, Stop::After(_));
    let sent = round.published_per_second;
    let is_held = round.counts.credit_waits + round.counts.socket_waits > 0;
    // A Poisson process of few messages has fewer than its mean by chance.
    let chance = 4.0 * (offered * round.seconds).sqrt() / round.seconds;
    if is_timed && sent < offered * RATE_SHARE_MIN - chance && !is_held {
        return Some(format!(
            "the load sent {sent:.0} messages/s of the {offered:.0} asked for, and no producer was held \
             up by the broker: lower the rate, or give it CPUs of its own with --cpus"
        ));
    }
    None
}

/// What limits a run that can be reported.
fn tell_limits(round: &mut Round, plan: &Plan) {
    if !plan.is_open_loop() {
        let text = "closed loop: maximum throughput, no latency claim about arrival";
        round.notes.push(text.into());
        if round.load_busy >= BUSY_MAX {
            round.notes.push(format!(
                "the load used {:.0} % of its CPUs: this rate is the load generator's",
                round.load_busy * 100.0
            ));
        }
    }
    if round.counts.unsent > 0 {
        round.notes.push(format!(
            "{} messages were due and not sent at the end, held up by the broker: they count with what \
             they had waited",
            round.counts.unsent
        ));
    }
    if !round.counts.is_clean() {
        let text = "messages were refused, lost, damaged, misrouted or out of order";
        round.notes.push(text.into());
    }
}

/// What the broker and the kernel say of the run.
fn tell_broker(round: &mut Round, before: &Look, after: &Look, outcome: &Outcome, plan: &Plan) {
    match (&before.stages, &after.stages) {
        _ if plan.via.is_peer() => {
            let text = "stages are what Ringpost tells of itself; the broker is another";
            round.stages_missing = Some(text.into());
        }
        (Ok(before), Ok(after)) => match after.since(before) {
            Ok(stages) => {
                let missing = stages.missing();
                if !missing.is_empty() {
                    let text = format!("the broker does not tell of: {}", missing.join(", "));
                    round.stages_missing = Some(text);
                }
                let stages = stages.stages.into_iter();
                round.stages = stages.map(|(name, times)| (name, Times(times))).collect();
            }
            Err(error) => round.stages_missing = Some(error.to_string()),
        },
        (Err(why), _) | (_, Err(why)) => round.stages_missing = Some(why.clone()),
    }
    round.usage = usage_of(before, after, outcome, plan);
}

fn usage_of(before: &Look, after: &Look, outcome: &Outcome, plan: &Plan) -> Usage {
    let messages = match plan.producers {
        0 => outcome.measured.settled,
        _ => outcome.measured.published,
    } as f64;
    if messages == 0.0 {
        return Usage::default();
    }
    let time = outcome.time.as_secs_f64();
    let cpu = before
        .cpu
        .zip(after.cpu)
        .and_then(|(before, after)| after.checked_sub(before));
    let written = before
        .written_bytes
        .zip(after.written_bytes)
        .and_then(|(before, after)| after.checked_sub(before));
    let grown = |name: &str| {
        let (before, after) = (before.metrics.as_ref()?, after.metrics.as_ref()?);
        let grown = metric(after, name)? - metric(before, name)?;
        (grown >= 0.0).then_some(grown) // less: it has started anew
    };
    let writes = grown("ringpost_journal_write_seconds_count").filter(|count| *count > 0.0);
    let bytes = grown("ringpost_journal_write_bytes_total");
    let published = grown("ringpost_publishes_total");
    let payload = match &plan.sizes {
        Some(_) => None, // their mean is not what was drawn
        None => Some(messages * f64::from(plan.payload_bytes)),
    };
    Usage {
        cpu_ns_per_message: cpu.map(|cpu| cpu.as_nanos() as f64 / messages),
        cpus: cpu.map(|cpu| cpu.as_secs_f64() / time),
        written_per_payload: payload
            .filter(|_| plan.producers > 0)
            .and_then(|payload| Some(written? as f64 / payload)),
        writes,
        bytes_per_write: bytes.zip(writes).map(|(bytes, writes)| bytes / writes),
        messages_per_write: published.zip(writes).map(|(count, writes)| count / writes),
        device_busy: grown("ringpost_journal_write_seconds_sum").map(|busy| busy / time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::made_up;

    fn plan() -> Plan {
        Plan {
            pace: Pace::Constant { per_second: 100.0 },
            ..Plan::new(([127, 0, 0, 1], 1).into())
        }
    }

    #[test]
    fn a_load_that_could_not_keep_its_rate_says_so() {
        let round = |change: fn(&mut Round)| {
            let mut round = made_up(&[100]).rounds.remove(0);
            round.offered = Some(10_000.0);
            round.published_per_second = 10_000.0;
            change(&mut round);
            fault(&plan(), &round, &Parameters::default())
        };
        assert_eq!(round(|_| {}), None);
        let slow = round(|round| round.published_per_second = 9_700.0).expect("too few");
        assert!(slow.contains("9700 messages/s of the 10000"), "{slow}");
        let held =
            round(|round| (round.published_per_second, round.counts.credit_waits) = (5_000.0, 7));
        assert_eq!(held, None);
        let busy = round(|round| round.load_busy = 0.9).expect("too busy");
        assert!(busy.contains("90 % of its CPUs"), "{busy}");
        let mut saturated = made_up(&[100]).rounds.remove(0);
        (saturated.offered, saturated.load_busy) = (Some(10_000.0), 1.01);
        saturated.published_per_second = 10_000.0;
        let however_busy = Parameters {
            busy_max: 1.0,
            ..Parameters::default()
        };
        assert_eq!(fault(&plan(), &saturated, &however_busy), None);
        let late = round(|round| round.missed_share = 0.011).expect("too late");
        assert!(late.contains("1.10 %"), "{late}");
        assert_eq!(round(|round| round.missed_share = 0.009), None);
        assert_eq!(
            round(|round| (round.offered, round.load_busy) = (None, 1.0)),
            None
        );
    }

    #[test]
    fn a_closed_loop_is_labelled() {
        let mut plan = plan();
        plan.pace = Pace::Window { messages: 1 };
        let mut round = made_up(&[100]).rounds.remove(0);
        round.load_busy = 0.95;
        tell_limits(&mut round, &plan);
        assert!(round.notes[0].starts_with("closed loop: maximum throughput"));
        assert!(round.notes[1].contains("95 %"));
    }

    #[test]
    fn only_what_is_synced_on_a_device_is_durable() {
        let place = |file_system: &str, is_direct| device::Place {
            file_system: file_system.into(),
            source: "x".into(),
            is_direct,
        };
        let (durable, volatile) = (Durability::Durable, Durability::Volatile);
        let disk = place("ext4", true);
        let memory = place("tmpfs", true);
        let buffered = place("ext4", false);
        for (class, letter, is_durable) in [
            (
                class_of(durable, Level::Durable, Some(&disk), Some(true)),
                "C",
                true,
            ),
            (
                class_of(durable, Level::Durable, Some(&disk), None),
                "C",
                true,
            ),
            (class_of(durable, Level::Durable, None, None), "C", false),
            (
                class_of(durable, Level::Durable, Some(&disk), Some(false)),
                "B",
                false,
            ),
            (
                class_of(durable, Level::Durable, Some(&memory), Some(true)),
                "B",
                false,
            ),
            (
                class_of(durable, Level::Durable, Some(&buffered), None),
                "B",
                false,
            ),
            (
                class_of(durable, Level::Volatile, Some(&disk), Some(true)),
                "B",
                false,
            ),
            (
                class_of(volatile, Level::Durable, Some(&disk), Some(true)),
                "B",
                false,
            ),
            (
                class_of(durable, Level::None, Some(&disk), Some(true)),
                "A",
                false,
            ),
        ] {
            assert_eq!(
                (class.letter.as_str(), class.is_durable),
                (letter, is_durable),
                "{class:?}"
            );
        }
    }

    #[test]
    fn of_a_peer_nothing_is_claimed_that_was_not_looked_at() {
        let place = |file_system: &str| device::Place {
            file_system: file_system.into(),
            source: "x".into(),
            is_direct: true,
        };
        let (disk, memory) = (place("ext4"), place("tmpfs"));
        for (promise, level, place, letter) in [
            (Promise::Synced, Level::Durable, Some(&disk), "C"),
            (Promise::Synced, Level::Volatile, None, "C"),
            (Promise::Synced, Level::Durable, Some(&memory), "B"),
            (Promise::Synced, Level::None, Some(&disk), "A"),
            (Promise::Unsynced, Level::Durable, Some(&disk), "B"),
            (Promise::Unknown, Level::Durable, Some(&disk), "?"),
        ] {
            let class = class_of_peer(promise, level, place);
            assert_eq!(class.letter, letter, "{class:?}");
            assert!(!class.is_durable && class.words.starts_with("durability is the peer's own"));
        }
    }

    #[test]
    fn what_a_run_cost_is_what_counters_grew_by() {
        let look = |writes: f64, bytes: f64, publishes: f64, cpu_ms: u64| Look {
            metrics: Some(format!(
                "ringpost_journal_write_seconds_count {writes}\n\
                 ringpost_journal_write_seconds_sum {}\n\
                 ringpost_journal_write_bytes_total {bytes}\nringpost_publishes_total {publishes}\n",
                writes / 100.0
            )),
            stages: Err("none".into()),
            cpu: Some(Duration::from_millis(cpu_ms)),
            written_bytes: Some(bytes as u64),
        };
        let measured = crate::tally::Sums {
            published: 1_000,
            ..crate::tally::Sums::default()
        };
        let outcome = Outcome {
            tally: crate::tally::Tally::default(),
            total: measured,
            measured,
            time: Duration::from_secs(10),
            threads: 1,
        };
        let (before, after) = (look(5.0, 1e5, 7.0, 100), look(105.0, 6e5, 1007.0, 600));
        let usage = usage_of(&before, &after, &outcome, &plan());
        assert_eq!(usage.writes, Some(100.0));
        assert_eq!(usage.bytes_per_write, Some(5_000.0));
        assert_eq!(usage.messages_per_write, Some(10.0));
        assert_eq!(usage.cpu_ns_per_message, Some(500_000.0));
        assert_eq!(usage.written_per_payload, Some(5.0));
        assert!((usage.device_busy.expect("known") - 0.1).abs() < 1e-9);
        // A broker that has started anew counts from 0.
        assert_eq!(usage_of(&after, &before, &outcome, &plan()).writes, None);
    }

    #[test]
    fn scenarios_say_what_they_lack() {
        let wrong = |scenario: &str, change: fn(&mut Parameters), says: &str| {
            let mut parameters = Parameters::of(scenario).expect(scenario);
            change(&mut parameters);
            let plan = parameters.plan().expect(scenario);
            let error = check_scenario(&parameters, &plan).expect_err(says);
            assert!(error.to_string().contains(says), "{error}");
        };
        wrong("broker-restart", |_| {}, "ends only what it has started");
        wrong("broker-restart", |p| p.via = "raw".into(), "--client");
        wrong("connection-storm", |p| p.via = "nats".into(), "of a peer");
        wrong("sweep", |p| p.window = Some(1), "--window");
        wrong("sweep", |p| p.factor = 1.0, "above 1");
        wrong("step", |p| p.steps.clear(), "--steps");
        wrong("slow-consumer", |p| p.service = "none".into(), "--service");
        wrong("connection-storm", |p| p.after = 100.0, "--after");
        wrong("connection-storm", |p| p.storm = 0, "clients");
        wrong("backlog-then-drain", |p| p.consumers = 0, "consumers");
    }
}
