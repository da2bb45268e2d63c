//! `ringpost sub`: prints the messages of a queue as they come. Does not create the queue.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use ringpost_client::Client;

use super::Failure;
use super::link::{self, BrokerArgs};
use super::message::Printer;

const EXAMPLES: &str = "\
A message is acked once it has been printed; one that could not be printed
returns to the queue. A broker that goes away is waited for, and told of on
standard error; after --timeout it is given up, with exit code 3.

Examples:
  ringpost sub orders
  ringpost sub orders --count 10 --json
  ringpost sub orders --output orders.txt --wait 1s   until none comes for 1 s
  ringpost sub orders --ack none --count 1            look, and leave it there
  ringpost sub orders --timeout 30s                   give it 30 s to be back";

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
    broker: BrokerArgs,
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

/// Prints messages until there have been as many as asked for, or none comes.
async fn print(
    client: &Client,
    args: &Args,
    is_away: impl Fn() -> bool,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let mut left = args.count.unwrap_or(u64::MAX);
    // Never more on its way than will be printed, so that nothing returns to the queue.
    let credit = args.credit.min(u32::try_from(left).unwrap_or(u32::MAX));
    let mut builder = client.consumer(&args.queue).credit(credit);
    if args.ack == Ack::Sent {
        builder = builder.auto_settle();
    }
    let mut consumer = builder.subscribe().await?;
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
        let mut printed = None;
        for delivery in batch
            .iter()
            .take(usize::try_from(left).unwrap_or(usize::MAX))
        {
            printer.print(&delivery)?;
            printed = Some(delivery.tag());
            left -= 1;
        }
        printer.flush()?;
        if let (Ack::Printed, Some(last)) = (args.ack, printed) {
            consumer.ack(*batch.tags().start()..=last).await?;
        }
    }
    Ok(())
}
