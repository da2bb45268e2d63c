//! `ringpost get`: takes a few messages of a queue, now. Does not subscribe.

use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use super::link::{self, BrokerArgs};
use super::message::Printer;
use super::reading::Reading;
use super::sub::{Ack, Standing};

const EXAMPLES: &str = "\
Ends with 1 if there was no message.

Examples:
  ringpost get orders
  ringpost get orders --count 100 --wait 5s --json
  ringpost get orders --ack none          look at a message and leave it there";

/// Take a few messages of a queue
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The queue
    queue: String,
    /// Most messages to take
    #[arg(long, value_name = "number", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How long to wait for the first, such as 5s
    #[arg(long, value_name = "duration", default_value = "0s", value_parser = link::span)]
    wait: Duration,
    /// Print JSON, one object a line, instead of payloads
    #[arg(long)]
    json: bool,
    /// When messages are acked
    #[arg(long, value_enum, default_value = "printed")]
    ack: Ack,
    /// Append to this file instead of standard output
    #[arg(long, value_name = "path")]
    output: Option<PathBuf>,
    #[command(flatten)]
    standing: Standing,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut printer = Printer::open(args.output.as_deref(), args.json)?;
    link::block_on(async {
        let client = args.broker.connect().await?;
        let builder = args.standing.of(client.consumer(&args.queue));
        let mut builder = args.reading.of(builder);
        if args.ack == Ack::Sent {
            builder = builder.auto_settle();
        }
        let mut consumer = builder.pull().await?;
        let batches = consumer.get(args.count, args.wait).await?;
        let is_empty = batches.is_empty();
        for batch in batches {
            for delivery in &batch {
                printer.print(&delivery)?;
            }
            printer.flush()?;
            if args.ack == Ack::Printed {
                consumer.ack(&batch).await?;
            }
        }
        drop(consumer);
        client.close().await?;
        if is_empty {
            return Err(Failure::failed(format!(
                "the queue {} has no message ready",
                args.queue
            )));
        }
        Ok(())
    })
}
