//! `ringpost binding`: what queue gets what an exchange routes. Creates neither.

use clap::Subcommand;
use ringpost_client::{Binding, Headers};
use serde::Serialize;

use super::Failure;
use super::link::{self, BrokerArgs};
use super::message;
use super::output::{self, FormatArgs};

const EXAMPLES: &str = "\
Examples:
  ringpost binding ensure orders --exchange shop --key 'order.*.paid'
  ringpost binding ensure red --exchange by-colour --argument colour=red
  ringpost binding ensure audit --to-exchange --exchange shop --key '#'
  ringpost binding ensure big --exchange sales --filter 'total > 100'
  ringpost binding list --queue orders
  ringpost binding delete orders --exchange shop --key 'order.*.paid'";

/// Bind queues and exchanges to exchanges, and show and remove bindings
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
    /// Bind a queue or an exchange unless it is bound that way
    Ensure(Place),
    /// Remove a binding
    Delete(Place),
    /// Show all bindings
    List {
        /// Only those of this queue
        #[arg(long, value_name = "name")]
        queue: Option<String>,
        /// Only those of this exchange
        #[arg(long, value_name = "name")]
        exchange: Option<String>,
        #[command(flatten)]
        format: FormatArgs,
    },
}

#[derive(clap::Args, Debug)]
struct Place {
    /// The queue, or with --to-exchange the exchange
    target: String,
    /// Bind an exchange, which routes on what it gets
    #[arg(long)]
    to_exchange: bool,
    /// The exchange that messages come from
    #[arg(long, value_name = "name")]
    exchange: String,
    /// The binding key, for direct and topic exchanges; the weight, for those that choose one queue
    #[arg(long, default_value = "")]
    key: String,
    /// What to match, for headers exchanges; `x-match=any` takes one of them, else all must match
    #[arg(long = "argument", value_name = "name=text", value_parser = argument)]
    arguments: Vec<(String, String)>,
    /// The condition, for filter exchanges: an SQL-92 selector over headers and sys. fields
    #[arg(long, value_name = "condition")]
    filter: Option<String>,
    /// Let the condition look at fields of JSON bodies, as body.customer.vip
    #[arg(long, requires = "filter")]
    filter_body: bool,
}

fn argument(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("a name, `=` and a text".into()),
    }
}

impl Place {
    fn binding(&self) -> Binding {
        let arguments = self
            .arguments
            .iter()
            .fold(Headers::new(), |headers, (name, text)| {
                headers.with(name, text.as_str())
            });
        let binding = if self.to_exchange {
            Binding::to_exchange(&self.target, &self.exchange)
        } else {
            Binding::new(&self.target, &self.exchange)
        };
        let binding = binding.key(&self.key).arguments(arguments);
        match &self.filter {
            Some(condition) if self.filter_body => binding.filter_body(condition),
            Some(condition) => binding.filter(condition),
            None => binding,
        }
    }

    fn name(&self) -> String {
        format!(
            "from {} to {} with key \"{}\"",
            self.exchange, self.target, self.key
        )
    }
}

/// What is shown of a binding.
#[derive(Debug, Serialize)]
struct Row {
    exchange: String,
    key: String,
    /// Nothing where an exchange is bound.
    queue: Option<String>,
    target_exchange: Option<String>,
    arguments: serde_json::Map<String, serde_json::Value>,
}

/// Arguments as `--argument` takes them.
pub(super) fn arguments_text(arguments: &serde_json::Map<String, serde_json::Value>) -> String {
    let texts = arguments.iter().map(|(name, value)| match value {
        serde_json::Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        match args.command {
            Command::Ensure(place) => {
                let ensured = client.ensure_binding(&place.binding()).await?;
                link::say_ensured("binding", &place.name(), ensured)?;
            }
            Command::Delete(place) => {
                let removed = client.remove_binding(&place.binding()).await?;
                link::say_removed("binding", &place.name(), removed)?;
            }
            Command::List {
                queue,
                exchange,
                format,
            } => {
                let is_asked_for = |binding: &Binding| {
                    (queue.is_none() || queue.as_deref() == binding.queue())
                        && exchange
                            .as_deref()
                            .is_none_or(|name| name == binding.exchange())
                };
                let bindings = client.bindings().await?;
                let rows: Vec<Row> = bindings
                    .iter()
                    .filter(|binding| is_asked_for(binding))
                    .map(|binding| Row {
                        exchange: binding.exchange().into(),
                        key: binding.routing_key().into(),
                        queue: binding.queue().map(Into::into),
                        target_exchange: binding.target_exchange().map(Into::into),
                        arguments: message::json_of_headers(binding.headers()),
                    })
                    .collect();
                output::rows(
                    format,
                    &["exchange", "key", "to", "arguments"],
                    &rows,
                    |row| {
                        vec![
                            row.exchange.clone(),
                            row.key.clone(),
                            match (&row.queue, &row.target_exchange) {
                                (Some(queue), _) => queue.clone(),
                                (None, Some(exchange)) => format!("exchange {exchange}"),
                                (None, None) => String::new(),
                            },
                            arguments_text(&row.arguments),
                        ]
                    },
                )?;
            }
        }
        Ok(client.close().await?)
    })
}
