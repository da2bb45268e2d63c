//! `ringpost pub`: publishes lines, files or JSON and waits for their confirms. Does not know where
//! messages are routed.

use std::cell::Cell;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use ringpost_client::{Client, Error, ErrorKind, Level, Message, Pending, Producer};

use super::Failure;
use super::link::{self, BrokerArgs};
use super::message::{self, InputForm};
use super::output::counted;

const EXAMPLES: &str = "\
Ends when every message is confirmed at the level asked for; ends with 1 if one
was refused or may not be stored, and says how many were confirmed before.
Without --exchange a message goes to the queue that its key names. A broker that
goes away is waited for, and told of on standard error; after --timeout it is
given up, with exit code 3.

Examples:
  ringpost pub --key orders < orders.txt
  ringpost pub --exchange shop --key order.7.paid --message 'hello'
  ringpost pub --key images --whole a.png b.png
  ringpost pub --json --transaction both-or-none.json
  ringpost sub old --json --wait 1s | ringpost pub --exchange shop --json
  ringpost pub --key orders --message tick --count 1000 --rate 100";

/// Publish lines, files or JSON
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Files to publish, `-` for standard input [default: standard input]
    files: Vec<PathBuf>,
    /// The exchange [default: the one that routes to the queue named by the key]
    #[arg(
        long,
        value_name = "name",
        default_value = "",
        hide_default_value = true
    )]
    exchange: String,
    /// The routing key
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    /// Publish this text instead of files
    #[arg(long, value_name = "text", conflicts_with_all = ["files", "json", "whole"])]
    message: Option<String>,
    /// Each line is a message as JSON, as `sub --json` prints it: key, payload, headers, priority,
    /// ttl_ms, delay_ms, timestamp_us; key_hex, payload_hex, properties_hex, headers_hex for what is no text
    #[arg(long, conflicts_with = "whole")]
    json: bool,
    /// Each file is one message, not each line
    #[arg(long)]
    whole: bool,
    /// Stop after so many messages; with --message publish it so often
    #[arg(long, value_name = "number", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Messages a second [default: as fast as they are taken]
    #[arg(long, value_name = "number", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// The priority of each, in queues that have priorities
    #[arg(long, value_name = "number")]
    priority: Option<u8>,
    /// How long each may wait to be delivered, such as 30s
    #[arg(long, value_name = "time", value_parser = term)]
    ttl: Option<Duration>,
    /// How long queues keep each back before they deliver it, such as 10min
    #[arg(long, value_name = "time", value_parser = term)]
    delay: Option<Duration>,
    /// How far each message must get
    #[arg(long, value_enum, default_value = "durable")]
    level: LevelArg,
    /// Refuse what no queue takes, instead of dropping it; always so without --exchange
    #[arg(long)]
    mandatory: bool,
    /// Publish all of them or none, as one transaction: at most 10,000 messages and 1 MiB
    #[arg(long, conflicts_with_all = ["rate", "level"])]
    transaction: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelArg {
    /// Written to the socket
    None,
    /// In the memory of every queue's core
    Volatile,
    /// On the disk of every queue's core
    Durable,
}

impl LevelArg {
    fn level(self) -> Level {
        match self {
            LevelArg::None => Level::None,
            LevelArg::Volatile => Level::Volatile,
            LevelArg::Durable => Level::Durable,
        }
    }
}

/// Messages read and not yet published, and publishes whose confirm is awaited. Bytes in flight are
/// bounded by the client.
const AHEAD_MAX: usize = 1024;

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    if args.exchange.is_empty() && args.key.is_empty() && !args.json {
        return Err(Failure::usage(
            "--key is missing: without --exchange it names the queue, as in `ringpost pub --key \
             orders`",
        ));
    }
    let is_typed = args.message.is_none() && args.files.is_empty();
    if is_typed && std::io::stdin().is_terminal() {
        link::say("each line that is typed is a message; Ctrl-D ends");
    }
    link::block_on(async {
        let (client, mut vigil) = args.broker.connect_to_stay().await?;
        let confirmed = Cell::new(0);
        let outcome = vigil.over(publish(&client, &args, &confirmed)).await;
        let messages = counted(confirmed.get(), "message");
        let level = args.level.level();
        outcome.map_err(|failure| {
            let far = match level {
                Level::None => "sent",
                Level::Volatile | Level::Durable => "published and confirmed",
            };
            let sentence = format!("after {messages} {far}: {}", failure.sentence);
            Failure::new(failure.exit, sentence)
        })?;
        client.close().await?;
        let far = level_text(level, confirmed.get());
        link::say(&format!("{messages} published, {far}"));
        Ok(())
    })
}

/// Publishes everything; counts what was confirmed.
async fn publish(client: &Client, args: &Args, confirmed: &Cell<u64>) -> Result<(), Failure> {
    let mut builder = client
        .producer(args.exchange.clone())
        .level(args.level.level());
    // A key that is meant to name a queue and names none is a mistake, never a choice.
    if args.mandatory || args.exchange.is_empty() {
        builder = builder.mandatory();
    }
    let producer = builder.build().await?;
    let bytes_max = client.limits().message_max().bytes();
    let (messages, reader) = start_reader(args, bytes_max)?;
    if args.transaction {
        let done = publish_whole(client, messages, reader, args).await;
        confirmed.set(done?);
        return Ok(());
    }
    let published = publish_all(&producer, messages, args.rate, confirmed).await;
    published.map_err(|error| explained(error, args))?;
    // The reader has ended: its end of the channel is what ended the publishing.
    match reader.join() {
        Ok(read) => read?,
        Err(_) => return Err(Failure::failed("reading the input has panicked")),
    }
    // At level none this is where the broker's refusals are heard of.
    producer
        .close()
        .await
        .map_err(|error| explained(error, args))
}

/// Publishes everything or nothing; how many messages that was.
async fn publish_whole(
    client: &Client,
    messages: flume::Receiver<Message>,
    reader: Reader,
    args: &Args,
) -> Result<u64, Failure> {
    let mut transactor = client.transactor().build().await?;
    let mut transaction = transactor.begin().await?;
    transaction.mandatory(args.mandatory || args.exchange.is_empty())?;
    let mut count = 0;
    while let Ok(message) = messages.recv_async().await {
        let published = transaction.publish(&args.exchange, &message).await;
        published.map_err(|error| explained(error, args))?;
        count += 1;
    }
    // What could not be read is not published, nor is what could.
    match reader.join() {
        Ok(read) => read?,
        Err(_) => return Err(Failure::failed("reading the input has panicked")),
    }
    let committed = transaction.commit().await;
    committed.map_err(|error| explained(error, args))?;
    Ok(count)
}

/// What an error of publishing means for whoever gave these arguments.
fn explained(error: Error, args: &Args) -> Failure {
    let hint = match error.kind() {
        ErrorKind::Unroutable if args.exchange.is_empty() && args.json => {
            "; without --exchange the key of a message names its queue".to_owned()
        }
        ErrorKind::Unroutable if args.exchange.is_empty() => format!(
            "; without --exchange the key names the queue: `ringpost queue ensure '{}'` creates it",
            args.key
        ),
        ErrorKind::NotFound => format!(
            "; the exchange is '{}', and `ringpost exchange list` shows those there are",
            args.exchange
        ),
        _ => String::new(),
    };
    let failure = Failure::from(error);
    Failure::new(failure.exit, failure.sentence + &hint)
}

/// How far so many messages got.
fn level_text(level: Level, count: u64) -> String {
    let place = match level {
        Level::None => return "sent".to_owned(),
        Level::Volatile => "taken by",
        Level::Durable => "on the disk of",
    };
    let they_were = if count == 1 { "it was" } else { "they were" };
    format!("{place} every queue that {they_were} routed to")
}

/// Reads how long a message may live or is kept back.
fn term(text: &str) -> Result<Duration, String> {
    let span = link::span(text)?;
    match u32::try_from(span.as_millis()) {
        Ok(_) => Ok(span),
        Err(_) => Err("at most 49 days, such as 1176h".into()),
    }
}

/// What each message asks of its queues, whatever its own line says.
#[derive(Clone, Copy)]
struct Terms {
    priority: Option<u8>,
    ttl: Option<Duration>,
    delay: Option<Duration>,
}

impl Terms {
    fn on(self, mut message: Message) -> Message {
        if let Some(priority) = self.priority {
            message = message.priority(priority);
        }
        if let Some(ttl) = self.ttl {
            message = message.ttl(ttl);
        }
        if let Some(delay) = self.delay {
            message = message.delay(delay);
        }
        message
    }
}

/// A thread that reads the input, and where its messages come from.
type Reader = std::thread::JoinHandle<Result<(), Failure>>;

/// Starts the reading; files and pipes block, so it has its own thread.
fn start_reader(
    args: &Args,
    bytes_max: u64,
) -> Result<(flume::Receiver<Message>, Reader), Failure> {
    let (sender, receiver) = flume::bounded(AHEAD_MAX);
    let files = args.files.clone();
    let key = args.key.clone();
    let text = args.message.clone();
    let count = args.count;
    let terms = Terms {
        priority: args.priority,
        ttl: args.ttl,
        delay: args.delay,
    };
    let form = match (args.json, args.whole) {
        (true, _) => InputForm::Json,
        (_, true) => InputForm::Whole,
        _ => InputForm::Lines,
    };
    let read = move || {
        if let Some(text) = text {
            let message = terms.on(Message::new(key, text));
            // Whoever publishes has ended if it takes no more, and says why.
            let _ = (0..count.unwrap_or(1)).all(|_| sender.send(message.clone()).is_ok());
            return Ok(());
        }
        let mut left = count.unwrap_or(u64::MAX);
        if left == 0 {
            return Ok(());
        }
        message::read_all(&files, form, &key, bytes_max, |message| {
            left -= 1;
            sender.send(terms.on(message)).is_ok() && left > 0
        })
    };
    let reader = std::thread::Builder::new().name("input".into()).spawn(read);
    let reader = reader.map_err(|error| Failure::failed(format!("no thread: {error}")))?;
    Ok((receiver, reader))
}

/// Publishes until there is no more, and awaits and counts every confirm. After the first failure
/// nothing more is published.
async fn publish_all(
    producer: &Producer,
    messages: flume::Receiver<Message>,
    rate: Option<u32>,
    confirmed: &Cell<u64>,
) -> Result<(), Error> {
    let (sender, pendings) = flume::bounded::<Pending>(AHEAD_MAX);
    let publish = async move {
        let start = tokio::time::Instant::now();
        let mut number = 0_u64;
        while let Ok(message) = messages.recv_async().await {
            if let Some(rate) = rate {
                let due =
                    Duration::from_nanos(number.saturating_mul(1_000_000_000 / u64::from(rate)));
                tokio::time::sleep_until(start + due).await;
            }
            let pending = producer.enqueue(message).await?;
            number += 1;
            if sender.send_async(pending).await.is_err() {
                break; // a confirm failed: that is the error to tell of
            }
        }
        Ok::<(), Error>(())
    };
    let confirm = async move {
        while let Ok(pending) = pendings.recv_async().await {
            pending.await?;
            confirmed.set(confirmed.get() + 1);
        }
        Ok::<(), Error>(())
    };
    let (published, outcome) = tokio::join!(publish, confirm);
    outcome.and(published)
}
