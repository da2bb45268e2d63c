//! `ringpost exchange`: declares, shows and deletes exchanges. Does not bind queues to them.

use clap::{Subcommand, ValueEnum};
use ringpost_client::admin::Durability;
use ringpost_client::{DeleteIf, ExchangeConfig, ExchangeKind};
use serde::Serialize;

use super::link::{self, BrokerArgs};
use super::output::{self, FormatArgs};
use super::{Failure, binding, message};

const EXAMPLES: &str = "\
Examples:
  ringpost exchange ensure shop --kind topic
  ringpost exchange ensure workers --kind consistent-hash --hash-header customer
  ringpost exchange list
  ringpost exchange delete shop --if-unused";

/// Declare, list and delete exchanges
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
    /// Create an exchange unless it exists with the same settings
    Ensure(Settings),
    /// Create an exchange that does not exist
    Declare(Settings),
    /// Delete an exchange
    Delete {
        /// The exchange
        name: String,
        /// Only if no queue is bound to it
        #[arg(long)]
        if_unused: bool,
    },
    /// Show all exchanges
    List(FormatArgs),
}

#[derive(clap::Args, Debug)]
struct Settings {
    /// The exchange
    name: String,
    /// How it routes
    #[arg(long, value_enum)]
    kind: Kind,
    /// Keep it in memory only: gone after a restart
    #[arg(long)]
    volatile: bool,
    /// Who takes what nothing matches: another exchange, which need not exist yet
    #[arg(long, value_name = "exchange")]
    alternate: Option<String>,
    /// Let nobody publish to it: it is reached over other exchanges
    #[arg(long)]
    internal: bool,
    /// Delete it when its last binding goes, once it has had one
    #[arg(long)]
    auto_delete: bool,
    /// Of a consistent-hash exchange: hash this header instead of the routing key
    #[arg(long, value_name = "name")]
    hash_header: Option<String>,
    /// Of a consistent-hash exchange: hash this property, for example correlation_id
    #[arg(long, value_name = "word", conflicts_with = "hash_header")]
    hash_property: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// To queues bound with a key equal to the routing key
    Direct,
    /// To every bound queue
    Fanout,
    /// By pattern: `*` is one word between dots, `#` any number of words
    Topic,
    /// By headers: all or any of the binding's arguments
    Headers,
    /// To one queue, the same for the same key; the binding key is its weight
    ConsistentHash,
    /// To one queue, by lot; the binding key is its weight
    Random,
    /// By conditions on headers, properties and fields of JSON bodies
    Filter,
}

impl Settings {
    fn config(&self) -> ExchangeConfig {
        let mut config = match self.kind {
            Kind::Direct => ExchangeConfig::direct(),
            Kind::Fanout => ExchangeConfig::fanout(),
            Kind::Topic => ExchangeConfig::topic(),
            Kind::Headers => ExchangeConfig::headers(),
            Kind::ConsistentHash => ExchangeConfig::consistent_hash(),
            Kind::Random => ExchangeConfig::random(),
            Kind::Filter => ExchangeConfig::filter(),
        };
        if let Some(name) = &self.hash_header {
            config = config.hash_header(name);
        }
        if let Some(word) = &self.hash_property {
            config = config.hash_property(word);
        }
        if let Some(exchange) = &self.alternate {
            config = config.alternate(exchange);
        }
        if self.auto_delete {
            config = config.auto_delete();
        }
        if self.internal {
            config = config.internal();
        }
        if self.volatile {
            config.volatile()
        } else {
            config
        }
    }
}

/// What is shown of an exchange.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    kind: &'static str,
    durable: bool,
    arguments: serde_json::Map<String, serde_json::Value>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        match args.command {
            Command::Ensure(settings) => {
                let ensured = client
                    .ensure_exchange(&settings.name, settings.config())
                    .await?;
                link::say_ensured("exchange", &settings.name, ensured)?;
            }
            Command::Declare(settings) => {
                let ensured = client
                    .ensure_exchange(&settings.name, settings.config())
                    .await?;
                link::say_declared("exchange", &settings.name, ensured)?;
            }
            Command::Delete { name, if_unused } => {
                let only = if if_unused {
                    DeleteIf::Unused
                } else {
                    DeleteIf::Always
                };
                link::say_removed(
                    "exchange",
                    &name,
                    client.delete_exchange(&name, only).await?,
                )?;
            }
            Command::List(format) => {
                let exchanges = client.exchanges().await?.into_iter();
                let mut rows: Vec<Row> = exchanges
                    .map(|info| Row {
                        name: info.name,
                        kind: kind_word(info.kind),
                        durable: info.durability == Durability::Durable,
                        arguments: message::json_of_headers(&info.arguments),
                    })
                    .collect();
                rows.sort_by(|left, right| left.name.cmp(&right.name));
                let head = &["exchange", "kind", "kept", "arguments"];
                output::rows(format, head, &rows, |row| {
                    let kept = if row.durable { "on disk" } else { "in memory" };
                    let name = if row.name.is_empty() {
                        "(default)"
                    } else {
                        &row.name
                    };
                    vec![
                        name.into(),
                        row.kind.into(),
                        kept.into(),
                        binding::arguments_text(&row.arguments),
                    ]
                })?;
            }
        }
        Ok(client.close().await?)
    })
}

fn kind_word(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Headers => "headers",
        ExchangeKind::ConsistentHash => "consistent-hash",
        ExchangeKind::Random => "random",
        ExchangeKind::Filter => "filter",
        // The client may learn of kinds that this program does not create.
        _ => "other",
    }
}
