//! `ringpost queue redrive`: moves messages of a queue to where they can be dealt with. Does not consume:
//! the broker moves what it is told by place, so a run that is broken off has lost nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use ringpost_client::{
    Browse, Browsed, Client, HeaderValue, Headers, MessageState, MoveTo, PlaceOutcome,
};

use crate::cli::Failure;
use crate::cli::output;

/// Most messages that are moved at a time.
const BATCH: u64 = 256;
/// How often what came back a moment ago, and waits for the disk, is named.
const PASSES: u32 = 3;
/// How long it has for that.
const PASS_PAUSE: Duration = Duration::from_millis(50);
/// How often progress is shown on a terminal.
const PROGRESS: Duration = Duration::from_millis(500);

/// What is moved, and where.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["to", "to_exchange", "to_source"]))]
pub struct Args {
    /// The queue, mostly one for dead letters
    name: String,
    /// Move them to this queue
    #[arg(long, value_name = "queue")]
    to: Option<String>,
    /// Move them to this exchange
    #[arg(long, value_name = "exchange")]
    to_exchange: Option<String>,
    /// Move each to the queue in which it died last, as its header x-death says
    #[arg(long)]
    to_source: bool,
    /// With --to-exchange: with this routing key instead of their own
    #[arg(long, value_name = "key", requires = "to_exchange")]
    routing_key: Option<String>,
    /// At most so many a second, as 100/s [default: as fast as they are taken]
    #[arg(long, value_name = "number/s", value_parser = rate)]
    rate: Option<u32>,
    /// At most so many, the oldest first [default: all that are there now]
    #[arg(long, value_name = "number")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only messages for which this condition holds, as of a filter binding
    #[arg(long, value_name = "condition")]
    filter: Option<String>,
    /// Only say what would be moved
    #[arg(long)]
    dry_run: bool,
}

fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(rate) if (1..=1_000_000).contains(&rate) => Ok(rate),
        _ => Err("1 to 1000000 messages a second, as 100/s".into()),
    }
}

/// The queue in which a message died last.
fn source_of(headers: &Headers) -> Option<String> {
    let deaths = headers.iter().find(|(name, _)| name == "x-death")?.1;
    let HeaderValue::Array(deaths) = deaths else {
        return None;
    };
    let HeaderValue::Table(last) = deaths.iter().next()? else {
        return None;
    };
    let queue = last.iter().find(|(name, _)| name == "queue")?.1;
    match queue {
        HeaderValue::Text(name) => Some(name.into_owned()),
        _ => None,
    }
}

/// Moves what is there when it begins.
pub async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let mut run = Run {
        client,
        args,
        begun: Instant::now(),
        shown: Instant::now(),
        named: 0,
        sum: PlaceOutcome::default(),
        without_source: 0,
        would: BTreeMap::new(),
    };
    run.all().await?;
    run.report()
}

struct Run<'a> {
    client: &'a Client,
    args: &'a Args,
    begun: Instant,
    shown: Instant,
    /// Messages that were named to the broker.
    named: u64,
    sum: PlaceOutcome,
    without_source: u64,
    /// Of a dry run: how many would go where.
    would: BTreeMap<String, u64>,
}

impl Run<'_> {
    async fn all(&mut self) -> Result<(), Failure> {
        let name = &self.args.name;
        // What comes later is not followed, wherever it comes from.
        let probe = Browse::from_head().messages_max(1).message_bytes_max(1);
        let last = self.client.browse(name, &probe).await?.newest;
        for pass in 1..=PASSES {
            self.pass(last).await?;
            if self.sum.busy == 0 || pass == PASSES {
                break;
            }
            // Those are named again, and so are those that no queue took.
            let again = self.sum.busy + self.sum.refused;
            self.named -= u64::from(again) + self.without_source;
            (self.sum.busy, self.sum.refused, self.without_source) = (0, 0, 0);
            tokio::time::sleep(PASS_PAUSE).await;
        }
        Ok(())
    }

    /// Moves what is ready of the places up to `last`.
    async fn pass(&mut self, last: u64) -> Result<(), Failure> {
        let name = &self.args.name;
        let most = self.args.count.unwrap_or(u64::MAX);
        let mut from = Some(0);
        while let Some(place) = from.filter(|place| *place <= last)
            && self.named < most
        {
            let batch = match self.args.rate {
                // A tenth of a second at a time.
                Some(rate) => BATCH.min(u64::from(rate.div_ceil(10))),
                None => BATCH,
            };
            let mut asked = Browse::from(place)
                .messages_max(batch.min(most - self.named) as u32)
                .message_bytes_max(1)
                .state(MessageState::Ready)
                .state(MessageState::Grouped);
            if let Some(filter) = &self.args.filter {
                asked = asked.filter(filter);
            }
            let page = self.client.browse(name, &asked).await?;
            from = page.next;
            let messages = page.messages.iter();
            let there: Vec<&Browsed> = messages.filter(|one| one.place() <= last).collect();
            for (to, places) in self.targets(&there) {
                self.move_some(&to, places).await?;
            }
            self.pace().await;
        }
        Ok(())
    }

    /// Where messages go, and which.
    fn targets(&mut self, messages: &[&Browsed]) -> Vec<(MoveTo, Vec<u64>)> {
        let mut by_target: BTreeMap<Option<String>, Vec<u64>> = BTreeMap::new();
        for message in messages {
            let source = match self.args.to_source {
                true => source_of(&message.headers()),
                false => Some(String::new()),
            };
            by_target.entry(source).or_default().push(message.place());
        }
        let mut targets = Vec::new();
        for (source, places) in by_target {
            let count = places.len() as u64;
            let (to, text) = match (source, &self.args.to, &self.args.to_exchange) {
                (None, ..) => {
                    self.without_source += count;
                    self.named += count;
                    continue;
                }
                (_, Some(queue), _) => (MoveTo::queue(queue), format!("queue {queue}")),
                (_, _, Some(exchange)) => {
                    let to = MoveTo::exchange(exchange);
                    let to = match &self.args.routing_key {
                        Some(key) => to.routing_key(key.as_str()),
                        None => to,
                    };
                    (to, format!("exchange {exchange}"))
                }
                (Some(queue), ..) => (MoveTo::queue(&queue), format!("queue {queue}")),
            };
            if self.args.dry_run {
                *self.would.entry(text).or_default() += count;
                self.named += count;
            } else {
                targets.push((to, places));
            }
        }
        targets
    }

    async fn move_some(&mut self, to: &MoveTo, places: Vec<u64>) -> Result<(), Failure> {
        let name = &self.args.name;
        self.named += places.len() as u64;
        let outcome = self.client.move_messages(name, to, &places).await?;
        self.sum.done += outcome.done;
        self.sum.late += outcome.late;
        self.sum.busy += outcome.busy;
        self.sum.refused += outcome.refused;
        self.show_progress();
        Ok(())
    }

    fn show_progress(&mut self) {
        if self.shown.elapsed() >= PROGRESS && std::io::stderr().is_terminal() {
            self.shown = Instant::now();
            eprintln!(
                "{} moved so far",
                output::counted(u64::from(self.sum.done), "message")
            );
        }
    }

    async fn pace(&self) {
        if let Some(rate) = self.args.rate.filter(|_| !self.args.dry_run) {
            let due = Duration::from_secs_f64(self.named as f64 / f64::from(rate));
            if let Some(ahead) = due.checked_sub(self.begun.elapsed()) {
                tokio::time::sleep(ahead).await;
            }
        }
    }

    fn report(&self) -> Result<(), Failure> {
        for (target, count) in &self.would {
            output::line(&format!(
                "{} would move to {target}",
                output::counted(*count, "message")
            ))?;
        }
        if self.args.dry_run && self.would.is_empty() {
            output::line("no message would move")?;
        }
        if !self.args.dry_run {
            let done = output::counted(u64::from(self.sum.done), "message");
            output::line(&format!("{done} moved"))?;
        }
        let mut left = Vec::new();
        let mut say = |count: u64, why: &str| {
            if count > 0 {
                left.push(format!("{} {why}", output::counted(count, "message")));
            }
        };
        say(u64::from(self.sum.refused), "taken by no queue");
        say(u64::from(self.sum.busy), "held by a consumer");
        say(u64::from(self.sum.late), "gone meanwhile");
        say(self.without_source, "without a death that says where from");
        let is_all = self.sum.refused == 0 && self.sum.busy == 0 && self.without_source == 0;
        match (left.is_empty(), is_all) {
            (true, _) => Ok(()),
            (false, true) => output::line(&format!("not moved: {}", left.join(", "))),
            (false, false) => Err(Failure::failed(format!("not moved: {}", left.join(", ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_within_their_bounds() {
        assert_eq!(rate("100/s"), Ok(100));
        assert_eq!(rate("1"), Ok(1));
        assert_eq!(rate("1000000/s"), Ok(1_000_000));
        for wrong in ["0", "1000001", "-1", "fast", "", "1/m"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
