//! `ringpost trace`: the next message of a queue, followed on its way. Asks the admin port; does not
//! know how a core follows it.

use std::time::Duration;

use super::admin_port::AdminArgs;
use super::link;
use super::output;
use super::{Exit, Failure};
use crate::control::admin::trace::{Event, SECONDS_MAX, Trace, What, encoded};

const EXAMPLES: &str = "\
Waits for the next message that is appended to the queue and prints what happens
to it, each line with the time since the one before: until it is settled and
forgotten, or the time is over. Ends with 1 if no message comes.

What the lines mean is in docs/operations.md.

Examples:
  ringpost trace orders
  ringpost trace orders --key order.7.paid --timeout 5min
  ringpost trace orders --json";

/// Follow the next message of a queue on its way
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The queue
    queue: String,
    /// The queue's tenant [default: the default one]
    #[arg(long, value_name = "name", env = "RINGPOST_TENANT")]
    tenant: Option<String>,
    /// Only a message with this routing key
    #[arg(long, value_name = "key")]
    key: Option<String>,
    /// How long to follow, the wait for the message included: 1s to 1h
    #[arg(long, value_name = "duration", default_value = "30s", value_parser = patience)]
    timeout: Duration,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Reads how long to follow from the command line.
fn patience(text: &str) -> Result<Duration, String> {
    let span = link::span(text)?;
    let bounds = Duration::from_secs(1)..=Duration::from_secs(SECONDS_MAX);
    if bounds.contains(&span) {
        Ok(span)
    } else {
        Err("from 1s to 1h".into())
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut question = format!(
        "/trace?queue={}&seconds={}",
        encoded(args.queue.as_bytes()),
        args.timeout.as_secs()
    );
    for (name, value) in [("tenant", &args.tenant), ("key", &args.key)] {
        if let Some(value) = value {
            question.push_str(&format!("&{name}={}", encoded(value.as_bytes())));
        }
    }
    let mut trace = ask(&args.admin, &question)?;
    let question = format!("/trace?id={}", trace.id);
    let mut last = None;
    let (mut has_come, mut has_ended) = (false, false);
    while !trace.ended {
        trace = ask(&args.admin, &question)?;
        for event in &trace.events {
            let is_end = matches!(event.what, What::Ended { .. });
            has_come |= !is_end;
            has_ended |= is_end;
            if args.json {
                let text = serde_json::to_string(event);
                output::line(&text.expect("numbers and words are JSON"))?;
            } else if has_come {
                output::line(&line(last.unwrap_or(event.at_ns), event))?;
            }
            last = Some(event.at_ns);
        }
    }
    if has_come && has_ended {
        Ok(())
    } else if has_come {
        let text = "not followed any longer: more happened at once than could be told";
        Err(Failure::new(Exit::Failed, text))
    } else {
        Err(Failure::new(
            Exit::Failed,
            format!(
                "no message came to '{}' in time, or the queue went",
                args.queue
            ),
        ))
    }
}

fn ask(admin: &AdminArgs, question: &str) -> Result<Trace, Failure> {
    let text = admin.get(question)?;
    admin.parse(&text)
}

/// A line for people: the time since the one before, and what happened.
fn line(before_ns: u64, event: &Event) -> String {
    let took = event.at_ns.saturating_sub(before_ns);
    format!(
        "{:>12}  {}",
        format!("+{}", time(took)),
        sentence(&event.what)
    )
}

/// A time in the largest unit of which it has a hundred, or in µs.
fn time(ns: u64) -> String {
    match ns {
        0..100_000_000 => {
            let us = ns / 1_000;
            if us < 10_000 {
                format!("{us} us")
            } else {
                format!("{} ms", us / 1_000)
            }
        }
        100_000_000..100_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    }
}

fn sentence(what: &What) -> String {
    match what {
        What::Received {
            core,
            connection,
            producer,
            sequence,
        } => format!(
            "received on core {core} from producer {producer}, its sequence {sequence}, \
             connection {connection}"
        ),
        What::Appended {
            queue_sequence,
            bytes,
            block,
            segment,
        } => {
            let place = match (block, segment) {
                (Some(block), Some(segment)) => format!("block {block} of segment {segment}"),
                _ => "memory".into(),
            };
            format!("routed and appended as message {queue_sequence}, {bytes} bytes, in {place}")
        }
        What::Submitted => "write began".into(),
        What::Durable => "synced".into(),
        What::Confirmed => "confirmed to its producer".into(),
        What::Ready => "ready".into(),
        What::Sent {
            consumer,
            core,
            connection,
            tag,
            delivery_count,
        } => {
            let again = if *delivery_count > 0 { " again" } else { "" };
            format!(
                "sent{again} to consumer {consumer}, tag {tag}, connection {connection} of \
                 core {core}"
            )
        }
        What::Settled { outcome } => match outcome.as_str() {
            "by_sending" => "settled by being sent".into(),
            other => other.into(),
        },
        What::Returned { consumer } => format!("returned: consumer {consumer} is gone"),
        What::Ended { why } => match why.as_str() {
            "forgotten" => "forgotten: that it is settled is as durable as it was".into(),
            "timed_out" => "not followed any longer: the time is over".into(),
            other => format!("not followed any longer: {}", other.replace('_', " ")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_and_what() {
        let event = |at_ns, what| Event { at_ns, what };
        let lines = [
            line(5_000, &event(5_000, What::Ready)),
            line(0, &event(210_400, What::Submitted)),
            line(0, &event(99_000_000, What::Durable)),
            line(0, &event(20_000_000_000, What::Returned { consumer: 31 })),
            line(
                0,
                &event(
                    400_000_000_000,
                    What::Settled {
                        outcome: "acked".into(),
                    },
                ),
            ),
        ];
        assert_eq!(
            lines,
            [
                "       +0 us  ready",
                "     +210 us  write began",
                "      +99 ms  synced",
                "   +20000 ms  returned: consumer 31 is gone",
                "      +400 s  acked",
            ]
        );
    }

    #[test]
    fn how_long_to_follow_has_bounds() {
        assert_eq!(patience("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(patience("1h"), Ok(Duration::from_secs(3_600)));
        assert!(patience("999ms").is_err());
        assert!(patience("61min").is_err());
        assert!(patience("soon").is_err());
    }
}
