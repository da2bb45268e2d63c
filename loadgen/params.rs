//! The parameters of a run as one block of text that can be printed, kept and run again, and the
//! scenarios, which are such blocks with a name. Does not run anything.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ringpost_wire::control::{Durability, Level};
use serde::{Deserialize, Serialize};

use crate::arrivals::Profile;
use crate::broker::Ending;
use crate::peer::{Promise, QueueType, Settings};
use crate::plan::{Pace, Plan, Service, Stop, Via};
use crate::routes::Exchange;
use crate::sizes::Sizes;
use crate::{Error, Result};

/// The scenarios, and what each is for.
pub const SCENARIOS: [(&str, &str); 9] = [
    (
        "steady",
        "one rate, held: what a message's way takes at that rate",
    ),
    (
        "sweep",
        "rate after rate until the broker does not follow: the knee and the saturation",
    ),
    (
        "step",
        "the rate jumps up and back: how far latency rises, how soon it is back",
    ),
    (
        "slow-consumer",
        "one queue of eight is consumed too slowly: do the others notice",
    ),
    (
        "backlog-then-drain",
        "a backlog is published with nobody there, then consumed",
    ),
    (
        "thousand-queues",
        "the steady rate spread over 1,000 queues",
    ),
    (
        "connection-storm",
        "hundreds of clients connect while others work",
    ),
    (
        "broker-restart",
        "the broker ends under load and comes back: needs --broker-command",
    ),
    (
        "fan-out",
        "every message goes to eight queues by one exchange",
    ),
];

/// From this share of its CPUs on, figures are those of the load.
pub(crate) const BUSY_MAX: f64 = 0.9;

/// Everything that decides what is run, as it stands in a file. What is left out has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The scenario: how many runs there are, and what happens beside them.
    pub scenario: String,
    /// Where the broker listens.
    pub address: SocketAddr,
    /// `raw` or `client`; of a peer `amqp`, `redis` or `nats`.
    pub via: String,
    /// The broker in words, e.g. `RabbitMQ 3.10.8, quorum queues`; Ringpost tells its own version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<String>,
    /// A peer's confirms by its configuration: `synced` or `unsynced`; none = not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// AMQP: kind of queue, `classic` or `quorum`; none = classic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_type: Option<String>,
    /// AMQP: user; none = guest. It stands in the result, as the password does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// AMQP: password; none = guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Messages a second over all producers; none is a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// `constant` or `poisson`.
    pub arrivals: String,
    /// Bursts, as `on/off` times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<String>,
    /// Steps, each a rate and how many seconds it lasts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<(f64, f64)>,
    /// Closed loop: unconfirmed messages of each producer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Closed loop: producers pause while so many messages are not delivered.
    pub lag: u64,
    /// Queues.
    pub queues: u32,
    /// Kind of exchange: default, direct, fanout, topic, headers.
    pub exchange: String,
    /// Exchanges.
    pub exchanges: u32,
    /// Queues that one message goes to.
    pub fan_out: u32,
    /// What names of queues and exchanges start with.
    pub prefix: String,
    /// `durable` or `volatile` queues.
    pub queue: String,
    /// Confirm level: none, volatile, durable.
    pub level: String,
    /// Producers.
    pub producers: u32,
    /// Consumers of each queue.
    pub consumers: u32,
    /// Connections of producers; 0 = one each.
    pub producer_connections: u32,
    /// Connections of consumers; 0 = one each, at most 16.
    pub consumer_connections: u32,
    /// Sizes of payloads.
    pub size: String,
    /// Most messages of one write.
    pub batch: u32,
    /// Each message in a frame of its own.
    pub singly: bool,
    /// Credit of each consumer.
    pub credit: u32,
    /// Time of consumers for a message: none, fixed:TIME, exponential:TIME.
    pub service: String,
    /// Only consumers of the first queues take that time; 0 = all.
    pub service_queues: u32,
    /// Seconds before anything is measured.
    pub warm_up: f64,
    /// Seconds that are measured.
    pub duration: f64,
    /// Publish so many messages instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
    /// End when so many messages were delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<u64>,
    /// Seconds without any progress after which a run is given up.
    pub patience: f64,
    /// Seconds of an interval of the log.
    pub interval: f64,
    /// Check the checksum of every delivery.
    pub verify: bool,
    /// CPUs of the load threads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<usize>,
    /// Where numbers that look random come from.
    pub seed: u64,
    /// Runs of the same.
    pub rounds: u32,
    /// Leave queues and exchanges there.
    pub keep: bool,
    /// A run that misses more than this share of its schedule by a millisecond is not reported.
    pub missed_max: f64,
    /// A run at a rate that uses this share of its CPUs or more is not reported; 1 = however busy.
    pub busy_max: f64,
    /// Sweep: the rates; none = they are sought.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<f64>,
    /// Sweep: each rate is so many times the one before.
    pub factor: f64,
    /// Sweep: most rates.
    pub points_max: u32,
    /// Backlog: messages.
    pub backlog: u64,
    /// Storm: clients.
    pub storm: u32,
    /// Storm: clients that connect in a second.
    pub storm_rate: f64,
    /// Restart: the command of the broker, which is started and ended here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_command: Option<String>,
    /// Restart: kill or term.
    pub ending: Ending,
    /// Seconds of measuring after which the storm begins or the broker ends.
    pub after: f64,
    /// The broker's admin port, for its stages and metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
    /// The broker's process, for CPU time and what it writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_pid: Option<u32>,
    /// A directory on the broker's device, whose own sync times are measured before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_dir: Option<PathBuf>,
    /// Bytes of one write there.
    pub device_bytes: usize,
    /// Seconds of measuring it, before and after.
    pub device_seconds: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            scenario: "steady".into(),
            address: ([127, 0, 0, 1], 7400).into(),
            via: "raw".into(),
            broker: None,
            class: None,
            queue_type: None,
            user: None,
            password: None,
            rate: Some(10_000.0),
            arrivals: "constant".into(),
            burst: None,
            steps: Vec::new(),
            window: None,
            lag: 262_144,
            queues: 1,
            exchange: "default".into(),
            exchanges: 1,
            fan_out: 1,
            prefix: "load-".into(),
            queue: "durable".into(),
            level: "durable".into(),
            producers: 1,
            consumers: 1,
            producer_connections: 0,
            consumer_connections: 0,
            size: "100".into(),
            batch: 256,
            singly: false,
            credit: 65_536,
            service: "none".into(),
            service_queues: 0,
            warm_up: 2.0,
            duration: 10.0,
            messages: None,
            drain: None,
            patience: 30.0,
            interval: 1.0,
            verify: false,
            cpus: Vec::new(),
            seed: 1,
            rounds: 1,
            keep: false,
            missed_max: 0.01,
            busy_max: BUSY_MAX,
            rates: Vec::new(),
            factor: 1.5,
            points_max: 24,
            backlog: 500_000,
            storm: 500,
            storm_rate: 1_000.0,
            broker_command: None,
            ending: Ending::Kill,
            after: 3.0,
            admin: None,
            broker_pid: None,
            device_dir: None,
            device_bytes: 4096,
            device_seconds: 1.0,
        }
    }
}

impl Parameters {
    /// The parameters of a scenario, before anything else is said.
    ///
    /// # Errors
    /// [`Error::Plan`] with the names there are, if this is none.
    pub fn of(scenario: &str) -> Result<Self> {
        let base = Self {
            scenario: scenario.to_owned(),
            ..Self::default()
        };
        Ok(match scenario {
            "steady" => base,
            "sweep" => Self {
                rate: Some(1_000.0),
                warm_up: 1.0,
                duration: 5.0,
                producers: 4,
                ..base
            },
            "step" => Self {
                steps: vec![(5_000.0, 4.0), (20_000.0, 4.0), (5_000.0, 4.0)],
                duration: 12.0,
                interval: 0.25,
                ..base
            },
            "slow-consumer" => Self {
                rate: Some(8_000.0),
                queues: 8,
                producers: 8,
                service: "fixed:2ms".into(),
                service_queues: 1,
                credit: 64,
                ..base
            },
            "backlog-then-drain" => Self {
                rate: Some(50_000.0),
                warm_up: 0.0,
                size: "1024".into(),
                ..base
            },
            "thousand-queues" => Self {
                queues: 1_000,
                producers: 8,
                credit: 256,
                ..base
            },
            "connection-storm" => Self {
                interval: 0.25,
                ..base
            },
            "broker-restart" => Self {
                via: "client".into(),
                rate: Some(2_000.0),
                duration: 12.0,
                interval: 0.25,
                ..base
            },
            "fan-out" => Self {
                rate: Some(2_000.0),
                queues: 8,
                exchange: "fanout".into(),
                fan_out: 8,
                ..base
            },
            other => {
                let names: Vec<_> = SCENARIOS.iter().map(|(name, _)| *name).collect();
                return Err(Error::Plan(format!(
                    "no scenario {other}; there are {}",
                    names.join(", ")
                )));
            }
        })
    }

    /// Reads a block.
    ///
    /// # Errors
    /// [`Error::Data`] with the line that is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let read: Self = toml::from_str(text)
            .map_err(|error| Error::Data(format!("these are no parameters: {error}")))?;
        Self::of(&read.scenario)?;
        Ok(read)
    }

    /// Reads the block of a file.
    ///
    /// # Errors
    /// As [`Parameters::parse`], and if the file cannot be read.
    pub fn read(path: &std::path::Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Data(format!("cannot read {}: {error}", path.display())))?;
        Self::parse(&text).map_err(|error| Error::Data(format!("{}: {error}", path.display())))
    }

    /// The block, which [`Parameters::parse`] reads.
    #[must_use]
    pub fn block(&self) -> String {
        toml::to_string(self).expect("numbers, words and lists are TOML")
    }

    /// The plan of one run.
    ///
    /// # Errors
    /// [`Error::Plan`] with what cannot be run.
    pub fn plan(&self) -> Result<Plan> {
        let wrong = |what: &str, word: &str, words: &str| {
            Error::Plan(format!("{what} {word:?} is none of {words}"))
        };
        let plan = Plan {
            via: Via::of(&self.via).ok_or_else(|| {
                let words = Via::WORDS.map(|(word, _)| word).join(", ");
                wrong("via", &self.via, &words)
            })?,
            peer: self.settings()?,
            queue_prefix: self.prefix.clone(),
            queues: self.queues,
            exchange: match self.exchange.as_str() {
                "default" => Exchange::Default,
                "direct" => Exchange::Direct,
                "fanout" => Exchange::Fanout,
                "topic" => Exchange::Topic,
                "headers" => Exchange::Headers,
                word => {
                    let words = "default, direct, fanout, topic, headers";
                    return Err(wrong("exchange", word, words));
                }
            },
            exchanges: self.exchanges,
            fan_out: self.fan_out,
            durability: match self.queue.as_str() {
                "durable" => Durability::Durable,
                "volatile" => Durability::Volatile,
                word => return Err(wrong("queue", word, "durable, volatile")),
            },
            level: match self.level.as_str() {
                "none" => Level::None,
                "volatile" => Level::Volatile,
                "durable" => Level::Durable,
                word => return Err(wrong("level", word, "none, volatile, durable")),
            },
            producers: self.producers,
            consumers: self.consumers,
            producer_connections: self.producer_connections,
            consumer_connections: self.consumer_connections,
            batch: self.batch,
            is_singly: self.singly,
            pace: self.pace()?,
            profile: self.profile()?,
            lag_max: self.lag,
            credit: self.credit,
            service: service_of(&self.service)?,
            service_queues: self.service_queues,
            warm_up: seconds("warm_up", self.warm_up)?,
            stop: match (self.messages, self.drain) {
                (Some(messages), None) => Stop::Published(messages),
                (None, Some(messages)) => Stop::Delivered(messages),
                (None, None) => Stop::After(seconds("duration", self.duration)?),
                (Some(_), Some(_)) => {
                    let text = "a run ends after messages or after drain, not both";
                    return Err(Error::Plan(text.into()));
                }
            },
            verify: self.verify,
            cpus: self.cpus.clone(),
            drain: seconds("patience", self.patience)?,
            interval: seconds("interval", self.interval.max(0.01))?,
            seed: self.seed,
            is_restart_expected: self.scenario == "broker-restart",
            ..Plan::new(self.address)
        };
        let plan = match self.size.parse::<Sizes>().map_err(Error::Plan)? {
            Sizes::Fixed(bytes) => Plan {
                payload_bytes: bytes,
                ..plan
            },
            sizes => Plan {
                sizes: Some(sizes),
                ..plan
            },
        };
        plan.check()?;
        if !(0.0..=1.0).contains(&self.missed_max) {
            let text = "missed_max is a share from 0 to 1";
            return Err(Error::Plan(text.into()));
        }
        if !(self.busy_max > 0.0 && self.busy_max <= 1.0) {
            let text = "busy_max is a share above 0, at most 1";
            return Err(Error::Plan(text.into()));
        }
        if self.rounds == 0 {
            return Err(Error::Plan("0 rounds are nothing to report".into()));
        }
        Ok(plan)
    }

    /// What only a peer is told, and what nobody but a peer may be told.
    fn settings(&self) -> Result<Settings> {
        let wrong = |text: String| Err(Error::Plan(text));
        let is_peer = Via::of(&self.via).is_some_and(Via::is_peer);
        if is_peer && self.admin.is_some() {
            return wrong("admin is a port of Ringpost; a peer has none of its pages".into());
        }
        if !is_peer && self.class.is_some() {
            return wrong(
                "class is said of peers; what Ringpost's confirms are is looked at".into(),
            );
        }
        let is_amqp = self.via == Via::Amqp.word();
        if !is_amqp && (self.queue_type.is_some() || self.user.is_some() || self.password.is_some())
        {
            return wrong("queue_type, user and password are told to peers of amqp only".into());
        }
        let base = Settings::default();
        Ok(Settings {
            queue_type: match self.queue_type.as_deref() {
                None => base.queue_type,
                Some("classic") => QueueType::Classic,
                Some("quorum") => QueueType::Quorum,
                Some(word) => {
                    return wrong(format!("queue_type {word:?} is none of classic, quorum"));
                }
            },
            user: self.user.clone().unwrap_or(base.user),
            password: self.password.clone().unwrap_or(base.password),
            promise: match self.class.as_deref() {
                None => Promise::Unknown,
                Some("synced") => Promise::Synced,
                Some("unsynced") => Promise::Unsynced,
                Some(word) => return wrong(format!("class {word:?} is none of synced, unsynced")),
            },
        })
    }

    /// The mean of the steps, which they are factors of.
    fn steps_mean(&self) -> f64 {
        let time: f64 = self.steps.iter().map(|(_, seconds)| seconds).sum();
        let sum: f64 = self
            .steps
            .iter()
            .map(|(rate, seconds)| rate * seconds)
            .sum();
        sum / time
    }

    fn pace(&self) -> Result<Pace> {
        if let Some(messages) = self.window {
            return Ok(Pace::Window { messages });
        }
        let per_second = if self.steps.is_empty() {
            self.rate.ok_or_else(|| {
                Error::Plan(
                    "a rate is needed for an open loop, or a window for a closed one".into(),
                )
            })?
        } else {
            self.steps_mean()
        };
        match self.arrivals.as_str() {
            "constant" => Ok(Pace::Constant { per_second }),
            "poisson" => Ok(Pace::Poisson { per_second }),
            word => Err(Error::Plan(format!(
                "arrivals {word:?} is none of constant, poisson; bursts are --burst"
            ))),
        }
    }

    fn profile(&self) -> Result<Profile> {
        match (&self.burst, self.steps.is_empty()) {
            (None, true) => Ok(Profile::Flat),
            (Some(_), false) => Err(Error::Plan("bursts and steps cannot be had at once".into())),
            (Some(text), true) => {
                let (on, off) = text.split_once('/').ok_or_else(|| {
                    Error::Plan(format!(
                        "a burst is two times like 100ms/900ms, not {text:?}"
                    ))
                })?;
                Ok(Profile::Bursts {
                    on: time_of(on)?,
                    off: time_of(off)?,
                })
            }
            (None, false) => {
                let mean = self.steps_mean();
                let step = |(rate, length): &(f64, f64)| -> Result<(Duration, f64)> {
                    Ok((seconds("steps", *length)?, rate / mean))
                };
                Ok(Profile::Steps(
                    self.steps.iter().map(step).collect::<Result<_>>()?,
                ))
            }
        }
    }
}

/// A number of seconds as a time.
fn seconds(what: &str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| Error::Plan(format!("{what} of {seconds} seconds: {error}")))
}

/// A time in words: `500us`, `2ms`, `1.5s`.
///
/// # Errors
/// [`Error::Plan`] with what a time looks like.
pub fn time_of(text: &str) -> Result<Duration> {
    let text = text.trim();
    let wrong = || Error::Plan(format!("{text:?} is no time; one is 500us, 2ms or 1.5s"));
    let split = text
        .find(|c: char| c.is_ascii_alphabetic() || c == 'µ')
        .ok_or_else(wrong)?;
    let number: f64 = text[..split].trim().parse().map_err(|_| wrong())?;
    let unit = match &text[split..] {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

fn service_of(text: &str) -> Result<Service> {
    match text.split_once(':') {
        None if text == "none" => Ok(Service::None),
        Some(("fixed", time)) => Ok(Service::Fixed(time_of(time)?)),
        Some(("exponential", time)) => Ok(Service::Exponential(time_of(time)?)),
        _ => Err(Error::Plan(format!(
            "a service time is none, fixed:2ms or exponential:2ms, not {text:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_prints_parameters_that_are_read_as_the_same_and_can_be_planned() {
        for (name, _) in SCENARIOS {
            let parameters = Parameters::of(name).expect(name);
            let again = Parameters::parse(&parameters.block()).expect(name);
            assert_eq!(again, parameters, "{name}");
            parameters.plan().expect(name);
        }
        let error = Parameters::of("chaos").expect_err("there is none");
        assert!(error.to_string().contains("broker-restart"), "{error}");
    }

    #[test]
    fn a_file_may_leave_out_what_it_does_not_change() {
        let read = Parameters::parse("scenario = \"steady\"\nrate = 5.5\n").expect("a block");
        assert_eq!((read.rate, read.queues), (Some(5.5), 1));
        let error = Parameters::parse("rats = 5").expect_err("a word that is not known");
        assert!(error.to_string().contains("rats"), "{error}");
        assert!(Parameters::parse("scenario = \"chaos\"").is_err());
    }

    #[test]
    fn steps_keep_their_rates() {
        let parameters = Parameters {
            steps: vec![(1000.0, 1.0), (4000.0, 2.0)],
            ..Parameters::default()
        };
        let plan = parameters.plan().expect("a plan");
        assert_eq!(plan.pace, Pace::Constant { per_second: 3000.0 });
        let Profile::Steps(steps) = plan.profile else {
            panic!("steps");
        };
        let rates: Vec<_> = steps.iter().map(|(_, factor)| factor * 3000.0).collect();
        assert!((rates[0] - 1000.0).abs() < 1e-6 && (rates[1] - 4000.0).abs() < 1e-6);
    }

    #[test]
    fn times_are_read() {
        for (text, ns) in [
            ("500us", 500_000),
            ("2ms", 2_000_000),
            ("1.5s", 1_500_000_000),
        ] {
            assert_eq!(time_of(text).expect(text).as_nanos(), ns);
        }
        for text in ["", "5", "ms", "5m", "-1s"] {
            assert!(time_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        let wrong = |change: fn(&mut Parameters), says: &str| {
            let mut parameters = Parameters::default();
            change(&mut parameters);
            let error = parameters.plan().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        };
        wrong(|p| p.via = "mqtt".into(), "raw, client, amqp, redis, nats");
        wrong(|p| p.arrivals = "bursty".into(), "--burst");
        wrong(|p| p.burst = Some("1s".into()), "100ms/900ms");
        wrong(|p| p.service = "slow".into(), "fixed:2ms");
        wrong(|p| p.rate = Some(0.0), "above 0");
        wrong(|p| p.rate = None, "open loop");
        wrong(|p| p.fan_out = 2, "multiple of the fan-out");
        wrong(|p| (p.fan_out, p.queues) = (2, 2), "--exchange");
        wrong(|p| p.size = "3".into(), "from 32");
        wrong(|p| p.warm_up = -1.0, "warm_up");
        wrong(|p| p.rounds = 0, "0 rounds");
        wrong(|p| p.missed_max = 5.0, "from 0 to 1");
        wrong(|p| p.busy_max = 0.0, "above 0");
        wrong(|p| p.busy_max = 1.5, "at most 1");
        wrong(
            |p| (p.window, p.burst) = (Some(1), Some("1s/1s".into())),
            "need a rate",
        );
        wrong(
            |p| (p.via, p.service) = ("client".into(), "fixed:1ms".into()),
            "--client",
        );
        wrong(|p| (p.messages, p.drain) = (Some(1), Some(1)), "not both");
    }
}
