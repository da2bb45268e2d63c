//! `ringpost queue`: declares, shows, empties and deletes queues. What it does to messages one by one is
//! in files of its own.

mod browse;
mod redrive;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use ringpost_client::admin::{Durability, OptionValue, QueueInfo, QueueOption};
use ringpost_client::{ByteSize, DeleteIf, Dispatch, Overflow, QueueConfig, Retry};
use serde::Serialize;

use super::Failure;
use super::link::{self, BrokerArgs};
use super::numbers;
use super::output::{self, FormatArgs};
use crate::config::value::bytes_from;
use crate::control::numbers::Numbers;

const EXAMPLES: &str = "\
Examples:
  ringpost queue ensure orders
  ringpost queue declare ticks --volatile --messages-max 100000
  ringpost queue declare mails --dispatch weighted --consumer-hold-max 5min
  ringpost queue ensure orders --delivery-limit 5 --dead-letter undelivered
  ringpost queue ensure events --type stream --max-age 168h
  ringpost queue ensure clicks --type stream --lanes 4 --lane-header user
  ringpost queue ensure replies --volatile --expires 30min
  ringpost queue list --json
  ringpost queue browse orders --count 5 --json
  ringpost queue redrive undelivered --to-source --rate 100/s
  ringpost queue purge orders
  ringpost queue delete orders --if-empty";

/// Declare, list, browse, purge and delete queues
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Create a queue unless it exists with the same settings
    Ensure(Settings),
    /// Create a queue that does not exist
    Declare(Settings),
    /// Delete a queue with all its messages
    Delete {
        /// The queue
        name: String,
        /// Only if nobody consumes from it
        #[arg(long)]
        if_unused: bool,
        /// Only if it holds no message
        #[arg(long)]
        if_empty: bool,
    },
    /// Drop all ready messages of a queue
    Purge {
        /// The queue
        name: String,
    },
    /// Show messages of a queue without taking them
    Browse(browse::BrowseArgs),
    /// Take delayed messages back before they are due
    Cancel(browse::CancelArgs),
    /// Move messages elsewhere, such as dead letters back to where they died
    Redrive(redrive::Args),
    /// Show all queues
    List(FormatArgs),
    /// Show one queue
    Inspect {
        /// The queue
        name: String,
        #[command(flatten)]
        format: FormatArgs,
    },
}

#[derive(clap::Args, Debug)]
struct Settings {
    /// The queue
    name: String,
    /// What it is: a `stream` keeps messages however often they are read
    /// [default: classic]
    #[arg(long = "type", value_name = "type", value_parser = ["classic", "stream"])]
    kind: Option<String>,
    /// Of a stream: how old a message may become, such as 168h [default: as
    /// old as it likes]
    #[arg(long, value_name = "time", value_parser = link::span)]
    max_age: Option<Duration>,
    /// Of a stream: over how many lanes it goes, each with the limits that are
    /// asked for, 1 to 64; fixed for ever [default: 1]
    #[arg(long, value_name = "count", value_parser = clap::value_parser!(u32).range(1..=64))]
    lanes: Option<u32>,
    /// Of a stream of several lanes: the header whose value stays in one lane
    /// [default: the routing key does]
    #[arg(long, value_name = "name", requires = "lanes")]
    lane_header: Option<String>,
    /// Keep it in memory only: gone after a restart, with its messages
    #[arg(long)]
    volatile: bool,
    /// Most messages, 0 for no limit; beyond it see --overflow [default: 0]
    #[arg(long, value_name = "count")]
    messages_max: Option<u64>,
    /// Most bytes of messages, such as 10GiB, 0 for no limit [default: 0]
    #[arg(long, value_name = "size", value_parser = size)]
    bytes_max: Option<u64>,
    /// Which consumer with room gets the next messages [default: round-robin]
    #[arg(long, value_enum, value_name = "policy")]
    dispatch: Option<Policy>,
    /// With sticky or groups: the header that is the key [default: the routing key]
    #[arg(long, value_name = "name")]
    sticky_header: Option<String>,
    /// Keep each key in order: one consumer at a time has messages of it
    #[arg(long)]
    message_groups: bool,
    /// How many messages may wait for their keys before the head does [default: 4096]
    #[arg(long, value_name = "count", requires = "message_groups")]
    group_ahead: Option<u32>,
    /// Let one consumer at a time get messages, the next when it goes
    #[arg(long)]
    single_active: bool,
    /// How long a consumer may hold a message, such as 5min [default: for ever]
    #[arg(long, value_name = "duration", value_parser = link::span)]
    consumer_hold_max: Option<Duration>,
    /// What happens when a limit is passed: `refuse` the publish, `drop-head` drops the oldest messages,
    /// `block` gives producers no credit
    #[arg(long, value_name = "what", value_parser = ["refuse", "drop-head", "block"])]
    overflow: Option<String>,
    /// How long a message may wait to be delivered, such as 30s
    #[arg(long, value_name = "time", value_parser = link::span)]
    message_ttl: Option<Duration>,
    /// How often a message may come back before it is dead
    #[arg(long, value_name = "count")]
    delivery_limit: Option<u32>,
    /// What a message that is given back waits for: the same each time, or longer and longer
    #[arg(long, value_name = "how", value_enum, requires = "retry_delay")]
    retry: Option<Backoff>,
    /// How long it waits the first time, such as 5s
    #[arg(long, value_name = "time", value_parser = link::span, requires = "retry")]
    retry_delay: Option<Duration>,
    /// How long it waits at most [default: 24h]
    #[arg(long, value_name = "time", value_parser = link::span, requires = "retry")]
    retry_delay_max: Option<Duration>,
    /// By how many percent a wait is longer or shorter by chance [default: 0]
    #[arg(long, value_name = "percent", requires = "retry")]
    retry_jitter: Option<u8>,
    /// Tell priorities from 0 to this apart, at most 31: the highest goes first
    #[arg(long, value_name = "highest")]
    priorities: Option<u8>,
    /// After so many messages that passed older ones the oldest goes [default: never]
    #[arg(long, value_name = "count", requires = "priorities")]
    priority_turn: Option<u32>,
    /// Exchange for messages that are rejected, expire, are too many or come back too often; empty for
    /// the default one [default: drop them]
    #[arg(long, value_name = "exchange")]
    dead_letter: Option<String>,
    /// Routing key of those, instead of their own
    #[arg(long, value_name = "key", requires = "dead_letter")]
    dead_letter_key: Option<String>,
    /// How long nobody may use it before it is deleted, such as 30min [default: for ever]
    #[arg(long, value_name = "time", value_parser = link::span)]
    expires: Option<Duration>,
    /// Delete it when its last consumer goes, once it has had one
    #[arg(long)]
    auto_delete: bool,
    /// Put it into this partition [default: the one its name hashes to]
    #[arg(long, value_name = "number")]
    partition: Option<u16>,
}

/// How the wait grows of a message that is given back again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Backoff {
    /// Not at all
    Fixed,
    /// By the first wait each time
    Linear,
    /// To twice the last one
    Exponential,
}

/// How a queue shares its messages out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Policy {
    /// One after the other
    RoundRobin,
    /// Any, by chance
    Random,
    /// In proportion to the weights that consumers ask for
    Weighted,
    /// The one that holds the fewest
    LeastOutstanding,
    /// The one that got messages of the same key before
    Sticky,
}

impl Policy {
    const fn dispatch(self) -> Dispatch {
        match self {
            Self::RoundRobin => Dispatch::RoundRobin,
            Self::Random => Dispatch::Random,
            Self::Weighted => Dispatch::Weighted,
            Self::LeastOutstanding => Dispatch::LeastOutstanding,
            Self::Sticky => Dispatch::Sticky,
        }
    }
}

/// Reads a size from the command line.
pub(super) fn size(text: &str) -> Result<u64, String> {
    bytes_from(text).ok_or_else(|| "a whole size such as 10GiB".into())
}

impl Settings {
    fn config(&self) -> QueueConfig {
        let is_stream = self.kind.as_deref() == Some("stream");
        let mut config = match (self.volatile, is_stream) {
            (true, true) => QueueConfig::volatile().of_type("stream"),
            (true, false) => QueueConfig::volatile(),
            (false, true) => QueueConfig::stream(),
            (false, false) => QueueConfig::durable(),
        };
        if let Some(age) = self.max_age {
            config = config.max_age(age);
        }
        if let Some(lanes) = self.lanes {
            config = config.lanes(lanes);
        }
        if let Some(header) = &self.lane_header {
            config = config.lane_header(header);
        }
        if let Some(messages) = self.messages_max {
            config = config.messages_max(messages);
        }
        if let Some(bytes) = self.bytes_max {
            config = config.bytes_max(ByteSize::new(bytes));
        }
        match self.overflow.as_deref() {
            Some("drop-head") => config = config.overflow(Overflow::DropHead),
            Some("block") => config = config.overflow(Overflow::Block),
            Some(_) => config = config.overflow(Overflow::Refuse),
            None => {}
        }
        if let Some(ttl) = self.message_ttl {
            config = config.message_ttl(ttl);
        }
        if let Some(limit) = self.delivery_limit {
            config = config.delivery_limit(limit);
        }
        if let (Some(backoff), Some(delay)) = (self.retry, self.retry_delay) {
            let mut retry = match backoff {
                Backoff::Fixed => Retry::fixed(delay),
                Backoff::Linear => Retry::linear(delay),
                Backoff::Exponential => Retry::exponential(delay),
            };
            if let Some(most) = self.retry_delay_max {
                retry = retry.at_most(most);
            }
            config = config.retry(retry.jitter(self.retry_jitter.unwrap_or(0)));
        }
        if let Some(highest) = self.priorities {
            config = config.priorities(highest);
        }
        if let Some(turn) = self.priority_turn {
            config = config.priority_turn(turn);
        }
        if let Some(exchange) = &self.dead_letter {
            config = config.dead_letter(exchange);
        }
        if let Some(key) = &self.dead_letter_key {
            config = config.dead_letter_routing_key(key);
        }
        if let Some(policy) = self.dispatch {
            config = config.dispatch(policy.dispatch());
        }
        if let Some(name) = &self.sticky_header {
            config = config.sticky_header(name);
        }
        if self.message_groups {
            config = config.message_groups();
        }
        if let Some(messages) = self.group_ahead {
            config = config.group_ahead(messages);
        }
        if self.single_active {
            config = config.single_active_consumer();
        }
        if let Some(most) = self.consumer_hold_max {
            config = config.consumer_hold_max(most);
        }
        if let Some(unused) = self.expires {
            config = config.expires(unused);
        }
        if self.auto_delete {
            config = config.auto_delete();
        }
        if let Some(partition) = self.partition {
            config = config.partition(partition);
        }
        config
    }
}

/// What is shown of a queue.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    durable: bool,
    ready: u64,
    unacked: u64,
    delayed: u64,
    due_ms: u64,
    dead: u64,
    bytes: u64,
    consumers: u32,
    published: u64,
    settled: u64,
    messages_max: u64,
    bytes_max: u64,
    partition: u16,
    core: u16,
    stream: bool,
    /// Of a stream of several.
    #[serde(skip_serializing_if = "is_zero")]
    lanes: u32,
    damaged: bool,
    numbers: Numbers,
    /// What is in force, and the policy that says so.
    options: BTreeMap<String, Setting>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(lanes: &u32) -> bool {
    *lanes == 0
}

/// An option of a queue.
#[derive(Debug, Serialize)]
struct Setting {
    value: serde_json::Value,
    /// The policy that it comes from; nothing if the queue was declared so.
    policy: Option<String>,
}

impl From<QueueOption> for Setting {
    fn from(option: QueueOption) -> Self {
        Self {
            value: match option.value {
                OptionValue::Number(number) => number.into(),
                OptionValue::Flag(flag) => flag.into(),
                other => other.to_string().into(),
            },
            policy: option.policy,
        }
    }
}

/// Options as people read them.
fn options_text(options: &BTreeMap<String, Setting>) -> String {
    let texts = options.iter().map(|(name, setting)| {
        let value = match &setting.value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match &setting.policy {
            Some(policy) => format!("{name}={value} (policy {policy})"),
            None => format!("{name}={value}"),
        }
    });
    texts.collect::<Vec<_>>().join(", ")
}

impl Row {
    fn of(info: QueueInfo, options: Vec<QueueOption>) -> Self {
        let options = options.into_iter();
        Row {
            numbers: Numbers::of(&info),
            options: options
                .map(|option| (option.name.clone(), option.into()))
                .collect(),
            name: info.name,
            durable: info.durability == Durability::Durable,
            ready: info.ready,
            unacked: info.unacked,
            delayed: info.delayed,
            due_ms: u64::try_from(info.due_in.as_millis()).unwrap_or(u64::MAX),
            dead: info.dead,
            bytes: info.bytes,
            consumers: info.consumers,
            published: info.published,
            settled: info.settled,
            messages_max: info.messages_max,
            bytes_max: info.bytes_max,
            partition: info.partition,
            core: info.core,
            stream: info.is_stream,
            lanes: info.lanes,
            damaged: info.is_damaged,
        }
    }
}

const HEADS: [&str; 14] = [
    "queue",
    "kept",
    "ready",
    "unacked",
    "delayed",
    "dead",
    "bytes",
    "consumers",
    "published",
    "settled",
    "partition",
    "core",
    "state",
    "options",
];

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.name.clone(),
        if row.durable { "on disk" } else { "in memory" }.into(),
        row.ready.to_string(),
        row.unacked.to_string(),
        row.delayed.to_string(),
        row.dead.to_string(),
        row.bytes.to_string(),
        row.consumers.to_string(),
        row.published.to_string(),
        row.settled.to_string(),
        row.partition.to_string(),
        row.core.to_string(),
        if row.damaged { "damaged" } else { "good" }.into(),
        options_text(&row.options),
    ]
}

/// What `inspect` shows beside [`HEADS`].
const NUMBER_HEADS: [&str; 11] = [
    "due in",
    "mean bytes",
    "rates over",
    "in/s",
    "out/s",
    "wait mean",
    "wait p50",
    "wait p99",
    "wait max",
    "by Little",
    "outlook",
];

fn number_cells(row: &Row) -> Vec<String> {
    let numbers = &row.numbers;
    let [arrives, leaves, p50, p99, little, outlook] = numbers::cells(numbers, row.damaged);
    let measured = |ms| match numbers.waits {
        0 => "-".into(),
        _ => numbers::latency(ms),
    };
    let span = |ms| match ms {
        0 => "-".into(),
        ms => output::span(Duration::from_millis(ms)),
    };
    vec![
        span(row.due_ms),
        numbers.mean_bytes.to_string(),
        span(numbers.span_ms),
        arrives,
        leaves,
        measured(numbers.wait_mean_ms),
        p50,
        p99,
        measured(numbers.wait_max_ms),
        little,
        outlook,
    ]
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        match args.command {
            Command::Ensure(settings) => {
                let ensured = client
                    .ensure_queue(&settings.name, settings.config())
                    .await?;
                link::say_ensured("queue", &settings.name, ensured)?;
            }
            Command::Declare(settings) => {
                let ensured = client
                    .ensure_queue(&settings.name, settings.config())
                    .await?;
                link::say_declared("queue", &settings.name, ensured)?;
            }
            Command::Delete {
                name,
                if_unused,
                if_empty,
            } => {
                let only = match (if_unused, if_empty) {
                    (false, false) => DeleteIf::Always,
                    (true, false) => DeleteIf::Unused,
                    (false, true) => DeleteIf::Empty,
                    (true, true) => DeleteIf::UnusedAndEmpty,
                };
                link::say_removed("queue", &name, client.delete_queue(&name, only).await?)?;
            }
            Command::Purge { name } => {
                let messages = u64::from(client.purge_queue(&name).await?);
                let messages = output::counted(messages, "message");
                output::line(&format!("queue {name} purged of {messages}"))?;
            }
            Command::Browse(args) => browse::browse(&client, &args).await?,
            Command::Cancel(args) => browse::cancel(&client, &args).await?,
            Command::Redrive(args) => redrive::run(&client, &args).await?,
            Command::List(format) => {
                let described = client.describe_queues().await?.into_iter();
                let mut options: HashMap<u32, Vec<QueueOption>> =
                    described.map(|queue| (queue.id, queue.options)).collect();
                let queues = client.queues().await?.into_iter();
                let mut rows: Vec<Row> = queues
                    .map(|info| {
                        let options = options.remove(&info.id).unwrap_or_default();
                        Row::of(info, options)
                    })
                    .collect();
                rows.sort_by(|left, right| left.name.cmp(&right.name));
                output::rows(format, &HEADS, &rows, cells)?;
            }
            Command::Inspect { name, format } => {
                let described = client.describe_queue(&name).await?;
                let row = Row::of(client.inspect_queue(&name).await?, described.options);
                if format.json {
                    output::rows(format, &HEADS, &[row], cells)?;
                } else {
                    let heads = [&HEADS[..], &NUMBER_HEADS].concat();
                    let all = [cells(&row), number_cells(&row)].concat();
                    output::write_all(output::fitted(&heads, &[all], 0).as_bytes())?;
                }
            }
        }
        Ok(client.close().await?)
    })
}
