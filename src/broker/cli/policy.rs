//! `ringpost policy`: sets, shows and deletes policies. Does not say what an option does.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use ringpost_client::{AppliesTo, ByteSize, Overflow, Policy};
use serde::Serialize;

use super::link::{self, BrokerArgs};
use super::output::{self, FormatArgs};
use super::queue::size;
use super::{Failure, binding, message};

const EXAMPLES: &str = "\
A policy sets options of all queues and exchanges whose names match, at once.
Limits of a declaration hold as well: the lower one counts. Of anything else
the declaration counts. Of several policies the highest priority does.

Examples:
  ringpost policy set ticks --pattern '^ticks\\.' --messages-max 10000
  ringpost policy set spare --pattern . --expires 24h --priority -10
  ringpost policy set rest --pattern '^shop$' --apply-to exchanges \\
    --alternate unrouted
  ringpost policy list
  ringpost policy delete ticks";

/// Set options of all queues and exchanges whose names match a pattern
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
    /// Set a policy, instead of the one of that name if there is one
    Set(Box<Settings>),
    /// Delete a policy: what it set is as it was declared
    Delete {
        /// The policy
        name: String,
    },
    /// Show all policies
    List(FormatArgs),
}

#[derive(clap::Args, Debug)]
struct Settings {
    /// The policy
    name: String,
    /// Regular expression, found anywhere in a name unless it has ^ and $
    #[arg(long, value_name = "regex")]
    pattern: String,
    /// What it is about
    #[arg(long, value_enum, value_name = "what", default_value = "queues")]
    apply_to: Subject,
    /// Which of several policies counts: the highest, -1000 to 1000
    #[arg(long, value_name = "number", default_value_t = 0)]
    priority: i32,
    /// Most messages
    #[arg(long, value_name = "count")]
    messages_max: Option<u64>,
    /// Most bytes of messages, such as 10GiB
    #[arg(long, value_name = "size", value_parser = size)]
    bytes_max: Option<u64>,
    /// What makes room when a limit is passed: `refuse` the publish, or `drop-head` drops the oldest
    /// messages
    #[arg(long, value_name = "what", value_parser = ["refuse", "drop-head", "block"])]
    overflow: Option<String>,
    /// How long a message may wait to be delivered, such as 30s
    #[arg(long, value_name = "time", value_parser = link::span)]
    message_ttl: Option<Duration>,
    /// How long a queue may be unused before it is deleted, such as 24h
    #[arg(long, value_name = "time", value_parser = link::span)]
    expires: Option<Duration>,
    /// How often a message may come back before it is dead
    #[arg(long, value_name = "count")]
    delivery_limit: Option<u32>,
    /// Exchange for dead messages; empty for the default one
    #[arg(long, value_name = "exchange")]
    dead_letter: Option<String>,
    /// Routing key of those, instead of their own
    #[arg(long, value_name = "key")]
    dead_letter_key: Option<String>,
    /// How long a consumer may hold a message, such as 5min
    #[arg(long, value_name = "duration", value_parser = link::span)]
    consumer_hold_max: Option<Duration>,
    /// Who takes what an exchange does not route: another exchange
    #[arg(long, value_name = "exchange")]
    alternate: Option<String>,
}

/// What a policy is about.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Subject {
    /// Queues
    Queues,
    /// Exchanges
    Exchanges,
    /// Both
    All,
}

/// The word for what a policy is about, on the command line and in files.
pub(super) const fn word(applies_to: AppliesTo) -> &'static str {
    match applies_to {
        AppliesTo::Queues => "queues",
        AppliesTo::Exchanges => "exchanges",
        AppliesTo::All => "all",
    }
}

impl Settings {
    fn policy(&self) -> Policy {
        let applies_to = match self.apply_to {
            Subject::Queues => AppliesTo::Queues,
            Subject::Exchanges => AppliesTo::Exchanges,
            Subject::All => AppliesTo::All,
        };
        let mut policy = Policy::new(applies_to, &self.name, &self.pattern).priority(self.priority);
        if let Some(messages) = self.messages_max {
            policy = policy.messages_max(messages);
        }
        if let Some(bytes) = self.bytes_max {
            policy = policy.bytes_max(ByteSize::new(bytes));
        }
        match self.overflow.as_deref() {
            Some("drop-head") => policy = policy.overflow(Overflow::DropHead),
            Some("block") => policy = policy.overflow(Overflow::Block),
            Some(_) => policy = policy.overflow(Overflow::Refuse),
            None => {}
        }
        if let Some(ttl) = self.message_ttl {
            policy = policy.message_ttl(ttl);
        }
        if let Some(unused) = self.expires {
            policy = policy.expires(unused);
        }
        if let Some(limit) = self.delivery_limit {
            policy = policy.delivery_limit(limit);
        }
        if let Some(exchange) = &self.dead_letter {
            policy = policy.dead_letter(exchange);
        }
        if let Some(key) = &self.dead_letter_key {
            policy = policy.dead_letter_routing_key(key);
        }
        if let Some(most) = self.consumer_hold_max {
            policy = policy.consumer_hold_max(most);
        }
        if let Some(exchange) = &self.alternate {
            policy = policy.alternate(exchange);
        }
        policy
    }
}

/// What is shown of a policy.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    pattern: String,
    apply_to: &'static str,
    priority: i32,
    options: serde_json::Map<String, serde_json::Value>,
}

impl From<&Policy> for Row {
    fn from(policy: &Policy) -> Self {
        Self {
            name: policy.name().into(),
            pattern: policy.pattern().into(),
            apply_to: word(policy.applies_to()),
            priority: policy.rank(),
            options: message::json_of_headers(policy.options()),
        }
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        match args.command {
            Command::Set(settings) => {
                let policy = settings.policy();
                let text = match client.set_policy(&policy).await? {
                    ringpost_client::Ensured::Created => "set",
                    ringpost_client::Ensured::AlreadyExists => "is set already",
                };
                output::line(&format!("policy {} {text}", policy.name()))?;
            }
            Command::Delete { name } => {
                link::say_removed("policy", &name, client.delete_policy(&name).await?)?;
            }
            Command::List(format) => {
                let rows: Vec<Row> = client.policies().await?.iter().map(Row::from).collect();
                let heads = ["policy", "applies to", "pattern", "priority", "options"];
                output::rows(format, &heads, &rows, |row| {
                    vec![
                        row.name.clone(),
                        row.apply_to.into(),
                        row.pattern.clone(),
                        row.priority.to_string(),
                        binding::arguments_text(&row.options),
                    ]
                })?;
            }
        }
        Ok(client.close().await?)
    })
}
