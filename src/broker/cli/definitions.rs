//! `ringpost export` and `ringpost apply`: the topology of a tenant as one file, and the other way
//! round. Does not know how the file is read or written (`definitions/file.rs`).

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use ringpost_client::admin::{Durability, QueueDescription};
use ringpost_client::{Binding, Client, DeleteIf, Ensured, ExchangeConfig, Policy, QueueConfig};
use ringpost_client::{ByteSize, Headers};

use super::link::{self, BrokerArgs};
use super::{Exit, Failure, output};

mod file;

use file::{Arguments, BindingKey, Definitions, Exchange, PolicyText, Queue, arguments_of};

const EXPORT_EXAMPLES: &str = "\
Exchanges, queues, bindings and policies of a tenant, without what every
tenant has, and without exclusive queues. Messages are not in it.

Examples:
  ringpost export > definitions.toml
  ringpost export --tenant shop --broker other:7400";

const APPLY_EXAMPLES: &str = "\
Shows what would change, asks, and changes it. What is not in the file is
left alone unless --prune is given. What exists with other settings is named,
and nothing is changed then. Doing it twice changes nothing.

Examples:
  ringpost apply definitions.toml --dry-run
  ringpost apply definitions.toml --yes
  ringpost export | ringpost apply - --yes --broker other:7400";

/// Print the exchanges, queues, bindings and policies of a tenant as TOML
#[derive(clap::Args, Debug)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportArgs {
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Create what a file of `export` has and the broker has not
#[derive(clap::Args, Debug)]
#[command(after_help = APPLY_EXAMPLES)]
pub struct ApplyArgs {
    /// The file, `-` for standard input
    file: PathBuf,
    /// Show what would change and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Change it without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Delete what is not in the file, messages included
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Runs `ringpost export`.
pub fn export(args: ExportArgs) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        let definitions = there(&client).await?;
        output::write_all(definitions.to_text().as_bytes())?;
        Ok(client.close().await?)
    })
}

/// Runs `ringpost apply`.
pub fn apply(args: ApplyArgs) -> Result<(), Failure> {
    let is_standard_input = args.file.as_os_str() == "-";
    let name = match is_standard_input {
        true => "standard input".to_owned(),
        false => args.file.display().to_string(),
    };
    let unread = |error| Failure::usage(format!("cannot read {name}: {error}"));
    let mut text = String::new();
    match is_standard_input {
        true => {
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(unread)?;
        }
        false => text = std::fs::read_to_string(&args.file).map_err(unread)?,
    }
    let wanted = Definitions::read(&name, &text)?;
    link::block_on(async {
        let client = args.broker.connect().await?;
        let found = there(&client).await?;
        let conflicts = conflicts(&wanted, &found);
        if !conflicts.is_empty() {
            return Err(Failure::new(Exit::Failed, conflicts.join("\n")));
        }
        let steps = steps(&wanted, &found, args.prune);
        if steps.is_empty() {
            output::line("nothing to do")?;
            return Ok(client.close().await?);
        }
        let mut held = BTreeMap::new();
        if steps
            .iter()
            .any(|step| matches!(step, Step::DeleteQueue(_)))
        {
            let queues = client.queues().await?.into_iter();
            held.extend(queues.map(|queue| (queue.name, queue.ready + queue.unacked)));
        }
        for step in &steps {
            output::line(&step.text(&found, &held))?;
        }
        if !args.dry_run {
            if !args.yes {
                ask(is_standard_input)?;
            }
            for step in &steps {
                step.run(&client, &wanted).await?;
            }
            output::line(&format!(
                "{} made",
                output::counted(steps.len() as u64, "change")
            ))?;
        }
        Ok(client.close().await?)
    })
}

/// Lets somebody say yes.
fn ask(is_standard_input: bool) -> Result<(), Failure> {
    if is_standard_input || !std::io::stdin().is_terminal() {
        let text = "nobody can be asked here: --yes changes it, --dry-run does not";
        return Err(Failure::usage(text));
    }
    let mut output = std::io::stderr();
    write!(output, "Change this? [y/N] ")?;
    output.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was changed")),
    }
}

/// What a broker has of a tenant.
async fn there(client: &Client) -> Result<Definitions, Failure> {
    let mut definitions = Definitions::default();
    for exchange in client.exchanges().await? {
        if exchange.name.is_empty() || exchange.name.starts_with("amq.") {
            continue;
        }
        let what = format!("exchange {}", exchange.name);
        let entry = Exchange {
            kind: exchange.kind,
            is_volatile: exchange.durability == Durability::Volatile,
            arguments: arguments_of(&what, &exchange.arguments)?,
        };
        definitions.exchanges.insert(exchange.name, entry);
    }
    let mut exclusive = Vec::new();
    for queue in client.describe_queues().await? {
        if is_exclusive(&queue) {
            exclusive.push(queue.name);
            continue;
        }
        let what = format!("queue {}", queue.name);
        let entry = Queue {
            is_volatile: queue.durability == Durability::Volatile,
            messages_max: queue.messages_max,
            bytes_max: queue.bytes_max,
            arguments: arguments_of(&what, &queue.arguments)?,
        };
        definitions.queues.insert(queue.name, entry);
    }
    for binding in client.bindings().await? {
        let is_left_out = binding
            .queue()
            .is_some_and(|queue| exclusive.iter().any(|name| name == queue));
        if is_left_out {
            continue;
        }
        let what = format!("a binding of exchange {}", binding.exchange());
        if binding.routing_key().contains(char::REPLACEMENT_CHARACTER) {
            let text = format!("{what} has a key that is no text, which TOML cannot have");
            return Err(Failure::failed(text));
        }
        let arguments = arguments_of(&what, binding.headers())?;
        let key = BindingKey {
            exchange: binding.exchange().to_owned(),
            is_to_exchange: binding.queue().is_none(),
            target: match (binding.queue(), binding.target_exchange()) {
                (Some(name), _) | (None, Some(name)) => name.to_owned(),
                (None, None) => String::new(),
            },
            key: binding.routing_key().to_owned(),
            arguments: file::inline(&arguments),
        };
        definitions.bindings.insert(key, arguments);
    }
    for policy in client.policies().await? {
        let what = format!("policy {}", policy.name());
        let entry = PolicyText {
            applies_to: policy.applies_to(),
            pattern: policy.pattern().to_owned(),
            priority: policy.rank(),
            options: arguments_of(&what, policy.options())?,
        };
        definitions.policies.insert(policy.name().to_owned(), entry);
    }
    Ok(definitions)
}

fn is_exclusive(queue: &QueueDescription) -> bool {
    use ringpost_client::HeaderValue;
    queue.arguments.get("x-exclusive") == Some(HeaderValue::Bool(true))
}

/// What exists otherwise than the file says, one sentence each.
fn conflicts(wanted: &Definitions, found: &Definitions) -> Vec<String> {
    let mut conflicts = Vec::new();
    let mut differs = |what: &str, name: &str, (setting, is, asked): (String, String, String)| {
        let place = wanted.place(what, name);
        conflicts.push(format!(
            "{place}: it exists with {setting} {is}, the file says {asked}"
        ));
    };
    for (name, entry) in &wanted.exchanges {
        if let Some(there) = found.exchanges.get(name)
            && let Some(difference) = there.difference(entry)
        {
            differs("exchanges", name, difference);
        }
    }
    for (name, entry) in &wanted.queues {
        if let Some(there) = found.queues.get(name)
            && let Some(difference) = there.difference(entry)
        {
            differs("queues", name, difference);
        }
    }
    conflicts
}

/// One thing to be done.
#[derive(Debug)]
enum Step {
    Exchange(String),
    Queue(String),
    Bind(BindingKey),
    Policy(String),
    Unbind(BindingKey),
    DeleteQueue(String),
    DeleteExchange(String),
    DeletePolicy(String),
}

/// What is to be done, in order: what is needed comes before what needs it.
fn steps(wanted: &Definitions, found: &Definitions, prune: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let new = |name: &&String, there: bool| (!there).then(|| (*name).clone());
    let exchanges = wanted.exchanges.keys();
    let exchanges = exchanges.filter_map(|name| new(&name, found.exchanges.contains_key(name)));
    steps.extend(exchanges.map(Step::Exchange));
    let queues = wanted.queues.keys();
    let queues = queues.filter_map(|name| new(&name, found.queues.contains_key(name)));
    steps.extend(queues.map(Step::Queue));
    let bindings = wanted.bindings.keys();
    let bindings = bindings.filter(|key| !found.bindings.contains_key(*key));
    steps.extend(bindings.cloned().map(Step::Bind));
    let policies = wanted.policies.iter();
    let policies = policies.filter(|(name, policy)| found.policies.get(*name) != Some(*policy));
    steps.extend(policies.map(|(name, _)| Step::Policy(name.clone())));
    if prune {
        let bindings = found.bindings.keys();
        let bindings = bindings.filter(|key| !wanted.bindings.contains_key(*key));
        steps.extend(bindings.cloned().map(Step::Unbind));
        let queues = found.queues.keys();
        let queues = queues.filter(|name| !wanted.queues.contains_key(*name));
        steps.extend(queues.cloned().map(Step::DeleteQueue));
        let exchanges = found.exchanges.keys();
        let exchanges = exchanges.filter(|name| !wanted.exchanges.contains_key(*name));
        steps.extend(exchanges.cloned().map(Step::DeleteExchange));
        let policies = found.policies.keys();
        let policies = policies.filter(|name| !wanted.policies.contains_key(*name));
        steps.extend(policies.cloned().map(Step::DeletePolicy));
    }
    steps
}

impl Step {
    /// One line for people: `+` comes, `~` changes, `-` goes.
    fn text(&self, found: &Definitions, held: &BTreeMap<String, u64>) -> String {
        match self {
            Self::Exchange(name) => format!("+ exchange {name}"),
            Self::Queue(name) => format!("+ queue {name}"),
            Self::Bind(key) => format!("+ binding {key}"),
            Self::Policy(name) if found.policies.contains_key(name) => format!("~ policy {name}"),
            Self::Policy(name) => format!("+ policy {name}"),
            Self::Unbind(key) => format!("- binding {key}"),
            Self::DeleteQueue(name) => match held.get(name).copied().unwrap_or(0) {
                0 => format!("- queue {name}"),
                messages => {
                    let messages = output::counted(messages, "message");
                    format!("- queue {name}, with {messages}")
                }
            },
            Self::DeleteExchange(name) => format!("- exchange {name}"),
            Self::DeletePolicy(name) => format!("- policy {name}"),
        }
    }

    async fn run(&self, client: &Client, wanted: &Definitions) -> Result<(), Failure> {
        let done = match self {
            Self::Exchange(name) => {
                let entry = &wanted.exchanges[name];
                let config = ExchangeConfig::new(entry.kind).arguments(headers(&entry.arguments));
                let config = match entry.is_volatile {
                    true => config.volatile(),
                    false => config,
                };
                client.ensure_exchange(name, config).await.map(drop)
            }
            Self::Queue(name) => {
                let entry = &wanted.queues[name];
                let config = match entry.is_volatile {
                    true => QueueConfig::volatile(),
                    false => QueueConfig::durable(),
                };
                let config = config
                    .messages_max(entry.messages_max)
                    .bytes_max(ByteSize::new(entry.bytes_max))
                    .arguments(headers(&entry.arguments));
                client.ensure_queue(name, config).await.map(drop)
            }
            Self::Bind(key) => {
                let binding = binding(key, &wanted.bindings[key]);
                client.ensure_binding(&binding).await.map(drop)
            }
            Self::Policy(name) => {
                let entry = &wanted.policies[name];
                let mut policy =
                    Policy::new(entry.applies_to, name, &entry.pattern).priority(entry.priority);
                for (option, value) in &entry.options {
                    policy = policy.with(option, value.as_header());
                }
                let set: Result<Ensured, _> = client.set_policy(&policy).await;
                set.map(drop)
            }
            Self::Unbind(key) => {
                // Its arguments are those of the broker, which the key has as text.
                let arguments = file::arguments_from(&key.arguments)?;
                let binding = binding(key, &arguments);
                client.remove_binding(&binding).await.map(drop)
            }
            Self::DeleteQueue(name) => client.delete_queue(name, DeleteIf::Always).await.map(drop),
            Self::DeleteExchange(name) => client
                .delete_exchange(name, DeleteIf::Always)
                .await
                .map(drop),
            Self::DeletePolicy(name) => client.delete_policy(name).await.map(drop),
        };
        done.map_err(|error| {
            let failure = Failure::from(error);
            let place = match self {
                Self::Exchange(name) => wanted.place("exchanges", name),
                Self::Queue(name) => wanted.place("queues", name),
                Self::Policy(name) => wanted.place("policies", name),
                Self::Bind(key) => wanted.place("bindings", &key.to_string()),
                Self::Unbind(key) => format!("binding {key}"),
                Self::DeleteQueue(name) => format!("queue {name}"),
                Self::DeleteExchange(name) => format!("exchange {name}"),
                Self::DeletePolicy(name) => format!("policy {name}"),
            };
            Failure::new(failure.exit, format!("{place}: {}", failure.sentence))
        })
    }
}

fn headers(arguments: &Arguments) -> Headers {
    arguments
        .iter()
        .fold(Headers::new(), |headers, (name, value)| {
            headers.with(name, value.as_header())
        })
}

fn binding(key: &BindingKey, arguments: &Arguments) -> Binding {
    let binding = match key.is_to_exchange {
        true => Binding::to_exchange(&key.target, &key.exchange),
        false => Binding::new(&key.target, &key.exchange),
    };
    binding.key(&key.key).arguments(headers(arguments))
}
