//! `ringpost-load`: makes load from the command line, keeps and compares what came of it. The work is
//! in the library.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ringpost_load::broker::Ending;
use ringpost_load::compare::compare;
use ringpost_load::html;
use ringpost_load::live::Live;
use ringpost_load::params::{Parameters, SCENARIOS};
use ringpost_load::report::Table;
use ringpost_load::result::Results;
use ringpost_load::session::Session;
use ringpost_load::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  ringpost-load --rate 10000 --size 1024             open loop, latency from the intended time
  ringpost-load run sweep --out sweep                rates up to saturation; sweep.html, .json, .hlog
  ringpost-load run fan-out --print > fan-out.toml   the scenario's parameters, to change and run:
  ringpost-load run --file fan-out.toml
  ringpost-load --window 16384 --batch 1024          closed loop: maximum throughput, hides stalls
  ringpost-load rounds a.toml b.toml --rounds 7      by turns, then the verdict
  ringpost-load compare a.json b.json

Latencies count from the time a message should have been sent, the warm-up is left out, and what was
due and not sent at the end counts with what it had waited. Pin the load off the broker's cores with
--cpus. A run that could not be driven or drained is not reported. docs/load.md says how to read all.

Ends with 0; with 1 if something failed or a message was refused, lost, damaged or out of order; with
2 if the command line or the parameters are wrong; with 3 if a run is not reported.";

/// Make load for a Ringpost broker and report what came of it
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Line {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run a scenario by its name (`steady` if none is named), or the parameters of a file
    #[command(alias = "scenario", after_help = scenarios())]
    Run {
        /// The scenario; `ringpost-load scenarios` lists them
        scenario: Option<String>,
        /// Parameters as they were printed; what is said beside changes them
        #[arg(long, value_name = "file", conflicts_with = "scenario")]
        file: Option<PathBuf>,
        /// Only print the parameters
        #[arg(long)]
        print: bool,
        #[command(flatten)]
        load: Box<Load>,
        #[command(flatten)]
        output: Output,
    },
    /// List the scenarios
    Scenarios,
    /// Compare two results: which is better, and how likely chance alone is
    Compare {
        /// The first result, as JSON
        a: PathBuf,
        /// The second
        b: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run two files of parameters by turns, as often as asked, and compare
    Rounds {
        /// Parameters of the first
        a: PathBuf,
        /// Parameters of the second
        b: PathBuf,
        /// Rounds of each; fewer than 4 make no verdict
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// Where results go: NAME-a and NAME-b, each as .json, .hlog and .html
        #[arg(long, default_value = "rounds", value_name = "name")]
        out: PathBuf,
    },
    /// Draw the HTML report of a result again
    Report {
        /// The result, as JSON
        result: PathBuf,
        /// Where the page goes
        #[arg(long, value_name = "file")]
        out: Option<PathBuf>,
    },
}

fn scenarios() -> String {
    let lines: Vec<_> = SCENARIOS
        .iter()
        .map(|(name, what)| format!("  {name:<20} {what}"))
        .collect();
    format!("Scenarios:\n{}", lines.join("\n"))
}

#[derive(Args, Debug)]
struct Output {
    /// Keep the result: NAME.json, NAME.hlog and NAME.html
    #[arg(long, value_name = "name")]
    out: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Say nothing while it runs
    #[arg(long)]
    quiet: bool,
}

/// What can be said of the load; what is not said is the scenario's.
#[derive(Args, Debug)]
struct Load {
    /// Where the broker listens [default: 127.0.0.1:7400]
    #[arg(long, value_name = "address:port")]
    address: Option<SocketAddr>,
    /// What makes the load: raw, client; of a peer amqp, redis, nats [default: raw]
    #[arg(long, value_name = "word")]
    via: Option<String>,
    /// Make the load with the public client instead of the raw engine: the same as --via client
    #[arg(long, conflicts_with = "via")]
    client: bool,

    /// What the broker is, in words that are shown, e.g. "RabbitMQ 3.10.8"
    #[arg(long, value_name = "text", help_heading = "Peers")]
    broker: Option<String>,
    /// What a peer is set to do before it confirms: synced, unsynced
    #[arg(long, value_name = "word", help_heading = "Peers")]
    class: Option<String>,
    /// AMQP: kind of queue: classic, quorum [default: classic]
    #[arg(long, value_name = "word", help_heading = "Peers")]
    queue_type: Option<String>,
    /// AMQP: user [default: guest]
    #[arg(long, value_name = "text", help_heading = "Peers")]
    user: Option<String>,
    /// AMQP: password, which stands in the result [default: guest]
    #[arg(long, value_name = "text", help_heading = "Peers")]
    password: Option<String>,

    /// Open loop: messages a second over all producers [default: 10000]
    #[arg(long, value_name = "messages", help_heading = "Arrivals")]
    rate: Option<f64>,
    /// Gaps between messages: constant, poisson [default: constant]
    #[arg(long, value_name = "word", help_heading = "Arrivals")]
    arrivals: Option<String>,
    /// The same as --arrivals poisson
    #[arg(long, conflicts_with = "arrivals", help_heading = "Arrivals")]
    poisson: bool,
    /// All messages during the first of two times, nothing during the second, e.g. 100ms/900ms
    #[arg(long, value_name = "on/off", help_heading = "Arrivals")]
    burst: Option<String>,
    /// Rates one after the other, each with its seconds, e.g. 5000:4,20000:4,5000:4
    #[arg(long, value_name = "rate:seconds", value_delimiter = ',', value_parser = step, help_heading = "Arrivals")]
    steps: Vec<(f64, f64)>,
    /// Closed loop: unconfirmed messages of each producer. Maximum throughput, no claim about arrival
    #[arg(long, value_name = "messages", conflicts_with_all = ["rate", "arrivals", "poisson", "burst", "steps"], help_heading = "Arrivals")]
    window: Option<u32>,
    /// Closed loop: pause while this many messages are published and not delivered [default: 262144]
    #[arg(long, value_name = "messages", help_heading = "Arrivals")]
    lag: Option<u64>,

    /// Queues, all published to evenly [default: 1]
    #[arg(long, value_name = "count", help_heading = "Topology")]
    queues: Option<u32>,
    /// Kind of exchange: default, direct, fanout, topic, headers [default: default]
    #[arg(long, value_name = "kind", help_heading = "Topology")]
    exchange: Option<String>,
    /// Exchanges that groups of queues are spread over; of a fanout each group has its own [default: 1]
    #[arg(long, value_name = "count", help_heading = "Topology")]
    exchanges: Option<u32>,
    /// Queues that each message goes to [default: 1]
    #[arg(long, value_name = "queues", help_heading = "Topology")]
    fan_out: Option<u32>,
    /// What names of queues and exchanges start with [default: load-]
    #[arg(long, value_name = "text", help_heading = "Topology")]
    prefix: Option<String>,
    /// Volatile queues instead of durable ones
    #[arg(long, help_heading = "Topology")]
    volatile: bool,
    /// Leave queues and exchanges there at the end
    #[arg(long, help_heading = "Topology")]
    keep: bool,

    /// Producers [default: 1]
    #[arg(long, value_name = "count", help_heading = "Clients")]
    producers: Option<u32>,
    /// Consumers of each queue [default: 1]
    #[arg(long, value_name = "count", help_heading = "Clients")]
    consumers: Option<u32>,
    /// Connections that carry producers; 0 = one each
    #[arg(long, value_name = "count", help_heading = "Clients")]
    producer_connections: Option<u32>,
    /// Connections that carry consumers; 0 = one each, at most 16
    #[arg(long, value_name = "count", help_heading = "Clients")]
    consumer_connections: Option<u32>,
    /// Credit of each consumer [default: 65536]
    #[arg(long, value_name = "messages", help_heading = "Clients")]
    credit: Option<u32>,
    /// Time that a consumer works on each message: none, fixed:2ms, exponential:2ms [default: none]
    #[arg(long, value_name = "time", help_heading = "Clients")]
    service: Option<String>,
    /// Only consumers of the first queues take that time; 0 = all
    #[arg(long, value_name = "queues", help_heading = "Clients")]
    service_queues: Option<u32>,
    /// Check the checksum of every delivery
    #[arg(long, help_heading = "Clients")]
    verify: bool,

    /// Payloads: bytes, uniform:100..2000, lognormal:MEDIAN,SIGMA,MAX, weighted:100*70,1000*30 or
    /// file:PATH [default: 100]
    #[arg(long, value_name = "size", help_heading = "Messages")]
    size: Option<String>,
    /// Most messages of one write [default: 256]
    #[arg(long, value_name = "messages", help_heading = "Messages")]
    batch: Option<u32>,
    /// Publish each message in a frame of its own, as clients that publish one by one do
    #[arg(long, help_heading = "Load")]
    singly: bool,
    /// Confirm level: none, volatile, durable [default: durable]
    #[arg(long, value_name = "word", help_heading = "Messages")]
    level: Option<String>,

    /// Seconds to measure [default: 10]
    #[arg(long, value_name = "seconds", help_heading = "Time")]
    duration: Option<f64>,
    /// Seconds before anything is measured [default: 2]
    #[arg(long, value_name = "seconds", help_heading = "Time")]
    warm_up: Option<f64>,
    /// Publish this many messages instead of for a time
    #[arg(
        long,
        value_name = "messages",
        conflicts_with = "duration",
        help_heading = "Time"
    )]
    messages: Option<u64>,
    /// End when this many messages were delivered, e.g. of a backlog with `--producers 0`
    #[arg(long, value_name = "messages", conflicts_with_all = ["duration", "messages"], help_heading = "Time")]
    drain: Option<u64>,
    /// Give up after so many seconds without any progress [default: 30]
    #[arg(long, value_name = "seconds", help_heading = "Time")]
    patience: Option<f64>,
    /// Seconds of an interval of the log [default: 1]
    #[arg(long, value_name = "seconds", help_heading = "Time")]
    interval: Option<f64>,
    /// Runs of the same [default: 1]
    #[arg(long, value_name = "count", help_heading = "Time")]
    rounds: Option<u32>,

    /// CPUs of the load threads, one thread each; the broker should not run there
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "cpu,cpu",
        help_heading = "Honesty"
    )]
    cpus: Vec<usize>,
    /// Most of the schedule that may be missed by 1 ms, as a share [default: 0.01]
    #[arg(long, value_name = "share", help_heading = "Honesty")]
    missed_max: Option<f64>,
    /// Share of its CPUs from which on a run at a rate is the load's and not reported; 1 = report it
    /// however busy [default: 0.9]
    #[arg(long, value_name = "share", help_heading = "Honesty")]
    busy_max: Option<f64>,
    /// Where numbers that look random come from [default: 1]
    #[arg(long, value_name = "number", help_heading = "Honesty")]
    seed: Option<u64>,
    /// The broker's admin port: its version, metrics and stages
    #[arg(long, value_name = "address:port", help_heading = "Honesty")]
    admin: Option<SocketAddr>,
    /// The broker's process: CPU time, bytes written, whether its journal is synced
    #[arg(long, value_name = "pid", help_heading = "Honesty")]
    broker_pid: Option<u32>,
    /// A directory on the broker's device, whose own sync times are measured before and after
    #[arg(long, value_name = "dir", help_heading = "Honesty")]
    device_dir: Option<PathBuf>,
    /// Bytes of one write there [default: 4096]
    #[arg(long, value_name = "bytes", help_heading = "Honesty")]
    device_bytes: Option<usize>,
    /// Seconds of that, before and after [default: 1]
    #[arg(long, value_name = "seconds", help_heading = "Honesty")]
    device_seconds: Option<f64>,

    /// Sweep: the rates; none = they are sought from --rate on
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "rate,rate",
        help_heading = "Scenarios"
    )]
    rates: Vec<f64>,
    /// Sweep: each rate is so many times the one before [default: 1.5]
    #[arg(long, value_name = "number", help_heading = "Scenarios")]
    factor: Option<f64>,
    /// Sweep: most rates [default: 24]
    #[arg(long, value_name = "count", help_heading = "Scenarios")]
    points_max: Option<u32>,
    /// Backlog: messages [default: 500000]
    #[arg(long, value_name = "messages", help_heading = "Scenarios")]
    backlog: Option<u64>,
    /// Storm: clients [default: 500]
    #[arg(long, value_name = "count", help_heading = "Scenarios")]
    storm: Option<u32>,
    /// Storm: clients that connect in a second [default: 1000]
    #[arg(long, value_name = "count", help_heading = "Scenarios")]
    storm_rate: Option<f64>,
    /// Restart: the command of the broker; only what is started by it is ended
    #[arg(long, value_name = "command", help_heading = "Scenarios")]
    broker_command: Option<String>,
    /// Restart: how the broker ends [default: kill]
    #[arg(long, value_name = "kill|term", value_parser = ending, help_heading = "Scenarios")]
    ending: Option<Ending>,
    /// Storm, restart: seconds of measuring before it happens [default: 3]
    #[arg(long, value_name = "seconds", help_heading = "Scenarios")]
    after: Option<f64>,
}

fn step(text: &str) -> std::result::Result<(f64, f64), String> {
    let wrong = || format!("a step is a rate and its seconds like 5000:4, not {text:?}");
    let (rate, seconds) = text.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
    Ok((number(rate)?, number(seconds)?))
}

fn ending(text: &str) -> std::result::Result<Ending, String> {
    match text {
        "kill" => Ok(Ending::Kill),
        "term" => Ok(Ending::Term),
        _ => Err("kill (SIGKILL, as a crash) or term (SIGTERM)".into()),
    }
}

/// Takes over what was said.
macro_rules! take {
    ($from:ident, $to:ident: $($field:ident)*) => {
        $(if let Some(value) = $from.$field.clone() { $to.$field = value; })*
    };
}

impl Load {
    fn change(&self, to: &mut Parameters) {
        let from = self;
        take!(from, to: address arrivals lag queues exchange exchanges fan_out prefix producers);
        take!(from, to: consumers producer_connections consumer_connections credit service);
        take!(from, to: service_queues size batch level duration warm_up patience interval rounds);
        take!(from, to: missed_max busy_max seed device_bytes device_seconds factor points_max backlog);
        take!(from, to: storm storm_rate ending after);
        if self.client {
            to.via = "client".into();
        }
        if self.poisson {
            to.arrivals = "poisson".into();
        }
        if self.volatile {
            to.queue = "volatile".into();
            if self.level.is_none() && to.level == "durable" {
                to.level = "volatile".into();
            }
        }
        to.singly |= self.singly;
        to.keep |= self.keep;
        to.verify |= self.verify;
        if self.window.is_some() {
            (to.window, to.rate) = (self.window, None);
            to.steps.clear();
        }
        if self.rate.is_some() {
            (to.rate, to.window) = (self.rate, None);
            to.steps.clear();
        }
        if !self.steps.is_empty() {
            (to.steps, to.window) = (self.steps.clone(), None);
            if self.duration.is_none() {
                to.duration = to.steps.iter().map(|(_, seconds)| seconds).sum();
            }
        }
        to.burst = self.burst.clone().or(to.burst.take());
        to.messages = self.messages.or(to.messages);
        to.drain = self.drain.or(to.drain);
        to.admin = self.admin.or(to.admin);
        to.broker_pid = self.broker_pid.or(to.broker_pid);
        to.device_dir = self.device_dir.clone().or(to.device_dir.take());
        to.broker_command = self.broker_command.clone().or(to.broker_command.take());
        take!(from, to: via);
        to.broker = self.broker.clone().or(to.broker.take());
        to.class = self.class.clone().or(to.class.take());
        to.queue_type = self.queue_type.clone().or(to.queue_type.take());
        to.user = self.user.clone().or(to.user.take());
        to.password = self.password.clone().or(to.password.take());
        if !self.cpus.is_empty() {
            to.cpus.clone_from(&self.cpus);
        }
        if !self.rates.is_empty() {
            to.rates.clone_from(&self.rates);
        }
    }
}

/// Runs parameters, keeps and prints what came of it.
fn run(parameters: Parameters, output: &Output) -> Result<ExitCode> {
    parameters.plan()?;
    let mut live = match output.quiet {
        true => Live::Quiet,
        false => Live::new(),
    };
    live.tell(&format!(
        "# these parameters, in a file, are run again by: ringpost-load run --file FILE\n{}",
        parameters.block()
    ));
    let results = Session::whole(parameters, &mut live)?;
    live.end();
    if let Some(name) = &output.out {
        keep(&results, name)?;
    }
    if output.json {
        println!("{}", results.json());
    } else {
        print!("{}", Table(&results));
    }
    Ok(code_of(&results))
}

fn code_of(results: &Results) -> ExitCode {
    if !results.is_clean() {
        eprintln!("messages were refused, lost, damaged, misrouted or out of order");
        ExitCode::FAILURE
    } else if results.rounds.iter().any(|round| round.invalid.is_some()) {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    }
}

/// Writes the three files of a result.
fn keep(results: &Results, name: &Path) -> Result<()> {
    let beside = |end: &str| {
        let mut file = name.as_os_str().to_owned();
        file.push(end);
        PathBuf::from(file)
    };
    write(&beside(".json"), results.json().as_bytes())?;
    write(&beside(".hlog"), &results.log()?)?;
    write(&beside(".html"), html::page(results).as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes)
        .map_err(|error| Error::Data(format!("cannot write {}: {error}", path.display())))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// Two sessions by turns: A B, B A, A B, so that what drifts meets both alike.
fn rounds(files: [&Path; 2], count: u32, out: &Path) -> Result<ExitCode> {
    let mut live = Live::new();
    let mut sessions = Vec::new();
    for (at, file) in files.into_iter().enumerate() {
        let mut parameters = Parameters::read(file)?;
        if ["sweep", "backlog-then-drain"].contains(&parameters.scenario.as_str()) {
            let scenario = parameters.scenario;
            return Err(Error::Plan(format!(
                "{scenario} has many runs in a round: compare scenarios that have one"
            )));
        }
        parameters.rounds = count;
        // Both may be of one broker.
        parameters.prefix.push_str(["a-", "b-"][at]);
        sessions.push(Session::start(parameters, &mut live)?);
    }
    for round in 0..count as usize {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            live.tell(["A", "B"][at]);
            sessions[at].round(&mut live)?;
        }
    }
    let mut found = Vec::new();
    for (session, end) in sessions.into_iter().zip(["-a", "-b"]) {
        let results = session.end(&mut live)?;
        let mut name = out.as_os_str().to_owned();
        name.push(end);
        keep(&results, Path::new(&name))?;
        found.push(results);
    }
    live.end();
    println!("{}", compare(&found[0], &found[1])?);
    let codes = [code_of(&found[0]), code_of(&found[1])];
    let is_fine = codes.iter().all(|code| *code == ExitCode::SUCCESS);
    Ok(if is_fine { codes[0] } else { ExitCode::from(3) })
}

fn act(line: Line) -> Result<ExitCode> {
    match line.verb {
        None => {
            let mut parameters = Parameters::default();
            line.load.change(&mut parameters);
            run(parameters, &line.output)
        }
        Some(Verb::Run {
            scenario,
            file,
            print,
            load,
            output,
        }) => {
            let mut parameters = match file {
                Some(path) => Parameters::read(&path)?,
                None => Parameters::of(scenario.as_deref().unwrap_or("steady"))?,
            };
            load.change(&mut parameters);
            if print {
                parameters.plan()?;
                print!("{}", parameters.block());
                return Ok(ExitCode::SUCCESS);
            }
            run(parameters, &output)
        }
        Some(Verb::Scenarios) => {
            println!("{}", scenarios());
            Ok(ExitCode::SUCCESS)
        }
        Some(Verb::Compare { a, b, json }) => {
            let found = compare(&Results::read(&a)?, &Results::read(&b)?)?;
            match json {
                true => println!("{}", serde_json::to_string(&found).expect("it is JSON")),
                false => println!("{found}"),
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Verb::Rounds {
            a,
            b,
            rounds: count,
            out,
        }) => rounds([&a, &b], count, &out),
        Some(Verb::Report { result, out }) => {
            let page = html::page(&Results::read(&result)?);
            let out = out.unwrap_or_else(|| result.with_extension("html"));
            write(&out, page.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn main() -> ExitCode {
    match act(Line::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            match error {
                Error::Plan(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
