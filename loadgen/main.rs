//! `ringpost-load`: makes load from the command line. Does not start a broker.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ringpost_load::report::Report;
use ringpost_load::run::{declare, delete};
use ringpost_load::{Pace, Plan, Stop, Via};
use ringpost_wire::control::{Durability, Level};

const EXAMPLES: &str = "\
Examples:
  ringpost-load --rate 10000 --size 1024             open loop, latency from the intended time
  ringpost-load --rate 10000 --poisson --queues 8    the same with random gaps
  ringpost-load --window 16384 --batch 1024          closed loop: finds the limit, hides stalls
  ringpost-load --producers 64 --window 1 --batch 1  64 connections, one message at a time

Latencies count from the time a message should have been sent, the warm-up is left out, and what was
due and not sent at the end counts with what it had waited. Pin the load off the broker's cores with
--cpus. Ends with 0; with 1 if something failed or a message was refused, lost, damaged or out of
order; with 2 if the command line is wrong; with 3 if the load could not keep its rate, so that the
figures are not the broker's.";

/// Make load for a Ringpost broker and report what came of it
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    /// Where the broker listens
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "address:port")]
    address: SocketAddr,
    /// Open loop: messages a second over all producers
    #[arg(long, value_name = "messages", conflicts_with = "window")]
    rate: Option<f64>,
    /// Open loop with exponential gaps instead of equal ones
    #[arg(long, requires = "rate")]
    poisson: bool,
    /// Closed loop: unconfirmed messages of each producer
    #[arg(long, value_name = "messages", default_value_t = 16_384)]
    window: u32,
    /// Queues, all published to evenly
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// What the queues' names start with
    #[arg(long, default_value = "load-")]
    prefix: String,
    /// Volatile queues instead of durable ones
    #[arg(long)]
    volatile: bool,
    /// Producers
    #[arg(long, default_value_t = 1)]
    producers: u32,
    /// Consumers of each queue
    #[arg(long, default_value_t = 1)]
    consumers: u32,
    /// Connections that carry producers; 0 = one each
    #[arg(long, default_value_t = 0)]
    producer_connections: u32,
    /// Connections that carry consumers; 0 = one each, at most 16
    #[arg(long, default_value_t = 0)]
    consumer_connections: u32,
    /// Bytes of the payload
    #[arg(long, default_value_t = 100)]
    size: u32,
    /// Most messages of one write
    #[arg(long, default_value_t = 256)]
    batch: u32,
    /// Confirm level
    #[arg(long, value_enum, default_value_t = LevelWord::Durable)]
    level: LevelWord,
    /// Seconds to measure
    #[arg(long, default_value = "10", value_name = "seconds", value_parser = seconds)]
    duration: Duration,
    /// Seconds before anything is measured
    #[arg(long, default_value = "2", value_name = "seconds", value_parser = seconds)]
    warm_up: Duration,
    /// Publish this many messages instead of for a time
    #[arg(long, value_name = "messages", conflicts_with = "duration")]
    messages: Option<u64>,
    /// End when this many messages were delivered, e.g. of a backlog with `--producers 0`
    #[arg(long, value_name = "messages", conflicts_with_all = ["duration", "messages"])]
    drain: Option<u64>,
    /// Closed loop: pause while this many messages are published and not delivered
    #[arg(long, default_value_t = 262_144, value_name = "messages")]
    lag: u64,
    /// Credit of each consumer
    #[arg(long, default_value_t = 65_536, value_name = "messages")]
    credit: u32,
    /// Check the checksum of every delivery
    #[arg(long)]
    verify: bool,
    /// Make the load with the public client instead of the raw engine
    #[arg(long)]
    client: bool,
    /// CPUs of the load threads, one thread each; the broker should not run there
    #[arg(long, value_delimiter = ',', value_name = "cpu,cpu")]
    cpus: Vec<usize>,
    /// Leave the queues there at the end
    #[arg(long)]
    keep: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelWord {
    None,
    Volatile,
    Durable,
}

impl Args {
    fn plan(&self) -> Plan {
        Plan {
            via: if self.client { Via::Client } else { Via::Raw },
            queue_prefix: self.prefix.clone(),
            queues: self.queues,
            durability: if self.volatile {
                Durability::Volatile
            } else {
                Durability::Durable
            },
            producers: self.producers,
            consumers: self.consumers,
            producer_connections: self.producer_connections,
            consumer_connections: self.consumer_connections,
            payload_bytes: self.size,
            batch: self.batch,
            level: match self.level {
                LevelWord::None => Level::None,
                LevelWord::Volatile => Level::Volatile,
                LevelWord::Durable => Level::Durable,
            },
            pace: match self.rate {
                Some(per_second) if self.poisson => Pace::Poisson { per_second },
                Some(per_second) => Pace::Constant { per_second },
                None => Pace::Window {
                    messages: self.window,
                },
            },
            lag_max: self.lag,
            credit: self.credit,
            warm_up: self.warm_up,
            stop: match (self.messages, self.drain) {
                (Some(messages), _) => Stop::Published(messages),
                (None, Some(messages)) => Stop::Delivered(messages),
                (None, None) => Stop::After(self.duration),
            },
            verify: self.verify,
            cpus: self.cpus.clone(),
            ..Plan::new(self.address)
        }
    }

    fn run(&self) -> ringpost_load::Result<ExitCode> {
        let plan = self.plan();
        plan.check()?;
        declare(&plan)?;
        let outcome = ringpost_load::run(&plan, || {})?;
        if !self.keep {
            delete(&plan)?;
        }
        let report = Report::new(&plan, &outcome);
        if self.json {
            let json = serde_json::to_string_pretty(&report);
            println!("{}", json.unwrap_or_else(|error| error.to_string()));
        } else {
            println!("{report}");
        }
        Ok(if !outcome.tally.is_clean() {
            eprintln!("messages were refused, lost, damaged or out of order");
            ExitCode::FAILURE
        } else if report.invalid.is_some() {
            ExitCode::from(3)
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn main() -> ExitCode {
    match Args::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
