//! `ringpost sub`: prints the messages of a queue as they come. Does not create the queue.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use ringpost_client::{Activity, ByteSize, Client, Consumer, ConsumerBuilder, DeliveryRef};
use ringpost_wire::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX};

use super::Failure;
use super::link::{self, BrokerArgs};
use super::message::Printer;
use super::output;
use super::reading::Reading;

const EXAMPLES: &str = "\
A message is acked once it has been printed; one that could not be printed
returns to the queue. A broker that goes away is waited for, and told of on
standard error; after --timeout it is given up, with exit code 3.

Examples:
  ringpost sub orders
  ringpost sub orders --count 10 --json
  ringpost sub orders --output orders.txt --wait 1s   until none comes for 1 s
  ringpost sub orders --ack none --count 1            look, and leave it there
  ringpost sub orders --timeout 30s                   give it 30 s to be back
  ringpost sub events --from first --group billing    read a stream in a group
  ringpost sub events --from ago:1h --speed 100       as in the hour before";

/// Print the messages of a queue as they come
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The queue
    queue: String,
    /// End after so many messages [default: never]
    #[arg(long, value_name = "number", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End when nothing has come for so long, such as 1s [default: never]
    #[arg(long, value_name = "duration", value_parser = link::span)]
    wait: Option<Duration>,
    /// Print JSON, one object a line, instead of payloads
    #[arg(long)]
    json: bool,
    /// When messages are acked
    #[arg(long, value_enum, default_value = "printed")]
    ack: Ack,
    /// Append to this file instead of standard output
    #[arg(long, value_name = "path")]
    output: Option<PathBuf>,
    /// Most messages on their way to us
    #[arg(long, value_name = "number", default_value_t = 1000)]
    credit: u32,
    #[command(flatten)]
    standing: Standing,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// How we stand among the queue's consumers.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Standing {
    /// Take messages before consumers of a lower priority, -10 to 10 [default: 0]
    #[arg(long, value_name = "number", allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(i8).range(-10..=10))]
    priority: Option<i8>,
    /// Our share of a queue that is shared out by weights, 1 to 100 [default: 1]
    #[arg(long, value_name = "number", value_parser = clap::value_parser!(u8).range(1..=100))]
    weight: Option<u8>,
}

impl Standing {
    /// A consumer that stands so.
    pub fn of(self, mut builder: ConsumerBuilder) -> ConsumerBuilder {
        if let Some(priority) = self.priority {
            builder = builder.priority(priority);
        }
        if let Some(weight) = self.weight {
            builder = builder.weight(weight);
        }
        builder
    }
}

/// Says on standard error when we become the active consumer of the queue, or are it no longer.
async fn tell(mut activity: Activity, queue: &str) {
    while let Some(is_active) = activity.changed().await {
        if activity.lanes_max() > 1 {
            let lanes: Vec<String> = activity.lanes().iter().map(u32::to_string).collect();
            let lanes = match lanes.as_slice() {
                [] => "no lane".to_owned(),
                lanes => format!("lanes {}", lanes.join(", ")),
            };
            link::say(&format!("now reading {lanes} of {queue}"));
            continue;
        }
        let now = if is_active { "now" } else { "no longer" };
        link::say(&format!("{now} the active consumer of {queue}"));
    }
    // The end is told by who takes messages.
    std::future::pending().await
}

/// When messages are acked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Ack {
    /// Once they are printed: none is lost, some may come twice
    Printed,
    /// Never: they return to the queue when the command ends
    None,
    /// By being sent: fastest, and loses what is on its way when the connection is lost
    Sent,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut printer = Printer::open(args.output.as_deref(), args.json)?;
    link::block_on(async {
        let (client, mut vigil) = args.broker.connect_to_stay().await?;
        let is_away = vigil.is_away();
        let work = print(&client, &args, is_away, &mut printer);
        vigil.over(work).await?;
        Ok(client.close().await?)
    })
}

/// Bytes on their way to us.
const CREDIT_BYTES: u64 = 64 << 20;
/// Most that what is said of a message adds to its payload, headers and properties.
const ENVELOPE_BYTES_MAX: u64 = 1024;

/// Prints messages until there have been as many as asked for, or none comes.
async fn print(
    client: &Client,
    args: &Args,
    is_away: impl Fn() -> bool,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let left = args.count.unwrap_or(u64::MAX);
    let credit = args.credit.min(u32::try_from(left).unwrap_or(u32::MAX));
    let builder = args.standing.of(client.consumer(&args.queue));
    let mut builder = args
        .reading
        .of(builder)
        .credit(credit)
        .credit_bytes(ByteSize::new(CREDIT_BYTES));
    // What is settled by being sent makes room for more at once, whatever the count.
    let is_auto = args.ack == Ack::Sent && args.count.is_none();
    if is_auto {
        builder = builder.auto_settle();
    }
    let consumer = builder.subscribe().await?;
    let activity = consumer.activity();
    let work = take(client, args, is_away, printer, consumer, left);
    tokio::select! {
        // First, so that it is told before what came after it is printed.
        biased;
        () = tell(activity, &args.queue) => unreachable!("it never ends"),
        done = work => done,
    }
}

/// Prints what a consumer is sent.
async fn take(
    client: &Client,
    args: &Args,
    is_away: impl Fn() -> bool,
    printer: &mut Printer,
    mut consumer: Consumer,
    mut left: u64,
) -> Result<(), Failure> {
    let is_auto = args.ack == Ack::Sent && args.count.is_none();
    let mut credit = Credit {
        ahead: args.credit,
        most: client.limits().credit_max().min(CREDIT_MESSAGES_MAX),
        held: 0,
        held_bytes: 0,
    };
    let mut missed = 0;
    while left > 0 {
        let next = consumer.next_batch();
        let batch = match args.wait {
            None => next.await?,
            Some(wait) => match tokio::time::timeout(wait, next).await {
                Ok(batch) => batch?,
                // Who is not there cannot say that there is nothing.
                Err(_) if is_away() => continue,
                Err(_) => break,
            },
        };
        let Some(batch) = batch else { break };
        if consumer.missed() > missed {
            let gone = output::counted(consumer.missed() - missed, "message");
            let first = batch
                .iter()
                .next()
                .map_or(0, |first| first.queue_sequence());
            link::say(&format!("{gone} before offset {first} are there no more"));
            missed = consumer.missed();
        }
        let taken = batch.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let deliveries = || batch.iter().take(taken);
        left -= taken as u64;
        if args.ack == Ack::None {
            deliveries().for_each(|delivery| credit.hold(&delivery));
        }
        // Before the ack, which makes room: never more on its way than will be printed, so that
        // nothing returns to the queue as delivered, or is lost.
        if !is_auto && (args.ack == Ack::None || left < u64::from(args.credit)) {
            let (messages, bytes) = credit.with(left);
            consumer.set_credit(messages, bytes)?;
        }
        let last = deliveries().last().map(|delivery| delivery.tag());
        let tags = last.map(|last| *batch.tags().start()..=last);
        if let (Ack::Sent, false, Some(tags)) = (args.ack, is_auto, &tags) {
            consumer.ack(tags.clone()).await?;
        }
        for delivery in deliveries() {
            printer.print(&delivery)?;
        }
        printer.flush()?;
        if let (Ack::Printed, Some(tags)) = (args.ack, tags) {
            consumer.ack(tags).await?;
        }
    }
    Ok(())
}

/// What may be on its way to us, beside what we hold and will not settle.
struct Credit {
    /// Messages on their way at most.
    ahead: u32,
    /// What the broker allows, those held included.
    most: u32,
    held: u32,
    held_bytes: u64,
}

impl Credit {
    fn hold(&mut self, delivery: &DeliveryRef<'_>) {
        self.held = self.held.saturating_add(1);
        let parts = [
            delivery.payload(),
            delivery.headers_encoded(),
            delivery.properties(),
        ];
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        self.held_bytes += bytes as u64 + ENVELOPE_BYTES_MAX;
    }

    /// The credit of a consumer that prints `left` more.
    fn with(&self, left: u64) -> (u32, ByteSize) {
        let ahead = self.ahead.min(u32::try_from(left).unwrap_or(u32::MAX));
        let messages = self.held.saturating_add(ahead).min(self.most);
        let bytes = (self.held_bytes + CREDIT_BYTES).min(CREDIT_BYTES_MAX);
        (messages, ByteSize::new(bytes))
    }
}
