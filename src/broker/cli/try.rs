//! `ringpost try`: the real broker in this process, the real client over TCP, real messages from
//! publish to ack, and a verdict. Does not know how the broker works.

mod tour;
mod workload;

use std::fmt::Write;
use std::io::{self, IsTerminal, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use ringpost_client::{
    ByteSize, Client, ExchangeConfig, Message, PendingBatch, Producer, QueueConfig, Resend,
};
use ringpost_wire::limits;
use tokio::sync::Notify;

use super::link::{self, BrokerArgs};
use super::{Exit, Failure, output};
use crate::boot;
use crate::config::{Config, Sources};
use crate::rt;
use crate::rt::disk::{DirectIo, probe_direct_io};
use crate::snapshot::latency_histogram;
use workload::{Expected, REGIONS, Workload};

const EXAMPLES: &str = "\
Starts a broker on free ports with its data in a temporary directory, declares a
topic exchange and four queues (one for each of three regions and one for
everything), publishes with durable confirms, consumes and acks, and checks that
every message arrived in each of its queues exactly as it was sent, once, and in
order. First as fast as it goes, then at a steady rate for latencies. Nothing is
left behind, unless you --keep it.

Examples:
  ringpost try
  ringpost try --tour
  ringpost try /usr/share/dict/words
  journalctl | ringpost try -
  ringpost try --count 5000000 --cores 1 --keep";

/// Watch a broker work: publish, confirm, consume, verify
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A text whose lines are published, `-` for standard input [default: generated orders]
    file: Option<PathBuf>,
    /// Show what the broker can do instead, one feature after the other
    #[arg(long, conflicts_with_all = ["file", "count", "rate"])]
    tour: bool,
    /// Generated orders to publish as fast as it goes
    #[arg(
        long,
        value_name = "number",
        default_value_t = 300_000,
        value_parser = clap::value_parser!(u64).range(1..=MESSAGES_MAX),
        conflicts_with = "file"
    )]
    count: u64,
    /// Messages a second in the second, steady part; 0 leaves it out
    #[arg(long, value_name = "number", default_value_t = 1000)]
    rate: u32,
    /// Cores of the broker
    #[arg(long, value_name = "number")]
    cores: Option<u16>,
    /// Memory of the broker
    #[arg(long, value_name = "size", default_value = "512MiB")]
    memory: String,
    /// Make the temporary directory in this one
    #[arg(long, value_name = "path")]
    dir: Option<PathBuf>,
    /// Keep the data, and say where it is
    #[arg(long)]
    keep: bool,
}

/// Most generated orders: when each was due is kept in memory.
const MESSAGES_MAX: u64 = 100_000_000;
/// Longest line: what the broker takes by default, less room for key, exchange and envelope.
const LINE_BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX_DEFAULT as usize - 4096;
/// How long the steady part takes.
const STEADY: Duration = Duration::from_secs(2);
/// Messages handed to the client at a time while it goes as fast as it can.
const BATCH: u64 = 256;
/// Bytes on their way to the broker: enough to keep it busy, little enough for honest latencies.
const IN_FLIGHT: ByteSize = ByteSize::mib(1);
/// Publishes whose confirm is awaited at most; the client's bound of bytes comes first.
const PENDINGS_MAX: usize = 4096;
/// Messages on their way to each consumer.
const CREDIT: u32 = 10_000;
/// A trial in which nothing arrives for so long has failed.
const STALL: Duration = Duration::from_secs(30);
/// The queue that gets everything.
const AUDIT: &str = "audit";
/// The exchange.
const EXCHANGE: &str = "trial";

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    if args.tour {
        return run_tour(&args);
    }
    let workload = Arc::new(read_workload(&args)?);
    if workload.count() == 0 {
        return Err(Failure::usage(
            "there is nothing to publish: the text has no lines",
        ));
    }
    if let Some(number) = workload.first_longer_than(LINE_BYTES_MAX) {
        return Err(Failure::usage(format!(
            "line {} has {} bytes, and a message of this broker at most {LINE_BYTES_MAX}: is it a \
             text?",
            number + 1,
            workload.payload(number).len()
        )));
    }
    let directory = make_directory(args.dir.as_deref())?;
    clean_up_on_signal(directory.path(), args.keep)?;
    let config = config(&args, directory.path())?;
    let is_durable = matches!(probe_direct_io(directory.path()), Ok(DirectIo::Durable));
    let running = boot::start(config, None)?;
    let broker = BrokerArgs::at(running.addr().to_string(), STALL);
    let outcome = link::block_on(trial(&broker, workload, args.rate));
    let ended = running.shutdown();
    let kept = if args.keep {
        Some(directory.keep())
    } else {
        None
    };
    let report = outcome?;
    ended?;
    output::write_all(report.text(is_durable, output::columns()).as_bytes())?;
    if let Some(path) = kept {
        let path = path.display();
        output::line(&format!(
            "the data is in {path}\nringpost serve --data-dir {path}\nringpost verify --data-dir {path}"
        ))?;
    }
    match report.verdict {
        Ok(()) => Ok(()),
        Err(why) => Err(Failure::failed(why)),
    }
}

/// The tour, on a broker of its own.
fn run_tour(args: &Args) -> Result<(), Failure> {
    let directory = make_directory(args.dir.as_deref())?;
    clean_up_on_signal(directory.path(), args.keep)?;
    let running = boot::start(config(args, directory.path())?, None)?;
    let broker = BrokerArgs::at(running.addr().to_string(), STALL);
    let outcome = link::block_on(async {
        let client = broker.connect().await?;
        tour::show(&client).await?;
        Ok(client.close().await?)
    });
    let ended = running.shutdown();
    if args.keep {
        let path = directory.keep();
        output::line(&format!("the data is in {}", path.display()))?;
    }
    outcome?;
    Ok(ended?)
}

/// What is to be published.
fn read_workload(args: &Args) -> Result<Workload, Failure> {
    let steady = u64::from(args.rate) * STEADY.as_secs();
    let Some(path) = &args.file else {
        return Ok(Workload::Orders {
            count: args.count + steady,
        });
    };
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().read_to_end(&mut text).map(drop)
    } else {
        std::fs::read(path).map(|all| text = all)
    };
    read.map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))?;
    Ok(Workload::lines(Bytes::from(text)))
}

/// A directory for the data: where asked, or the first of the usual places that is on a disk.
fn make_directory(asked: Option<&Path>) -> Result<tempfile::TempDir, Failure> {
    let make = |parent: &Path| {
        tempfile::Builder::new()
            .prefix("ringpost-try-")
            .tempdir_in(parent)
    };
    let unwritable = |error| Failure::failed(format!("cannot make a temporary directory: {error}"));
    if let Some(parent) = asked {
        return make(parent).map_err(unwritable);
    }
    let usual = [
        std::env::temp_dir(),
        PathBuf::from("/var/tmp"),
        PathBuf::from("."),
    ];
    let is_on_disk = |parent: &&PathBuf| matches!(probe_direct_io(parent), Ok(DirectIo::Durable));
    make(usual.iter().find(is_on_disk).unwrap_or(&usual[0])).map_err(unwritable)
}

/// Sees to it that whoever interrupts the trial finds no data left behind.
fn clean_up_on_signal(directory: &Path, keep: bool) -> Result<(), Failure> {
    let no_signals = |error| Failure::failed(format!("cannot wait for signals: {error}"));
    rt::block_termination_signals().map_err(no_signals)?;
    let signals = rt::spawn_signal_thread().map_err(no_signals)?;
    let directory = directory.to_owned();
    let wait = move || {
        if let Ok(signal) = signals.recv() {
            let shown = directory.display();
            if keep {
                link::say(&format!("told to end: the data is in {shown}"));
            } else {
                let what = match std::fs::remove_dir_all(&directory) {
                    Ok(()) => "told to end: the data is removed".to_owned(),
                    Err(error) => format!("told to end, and cannot remove {shown}: {error}"),
                };
                link::say(&what);
            }
            std::process::exit(i32::from(Exit::from(signal) as u8));
        }
    };
    let spawned = std::thread::Builder::new()
        .name("clean up".into())
        .spawn(wait);
    spawned.map(drop).map_err(no_signals)
}

/// The configuration of the trial's broker: nothing of this machine's environment.
fn config(args: &Args, directory: &Path) -> Result<Config, Failure> {
    let mut flags = vec![
        ("listen", "127.0.0.1:0".to_owned()),
        ("amqp_listen", "off".to_owned()),
        ("admin_listen", "127.0.0.1:0".to_owned()),
        ("data_dir", directory.display().to_string()),
        ("memory", args.memory.clone()),
        ("connections_max", "64".to_owned()),
        ("log_level", "warn".to_owned()),
    ];
    flags.extend(args.cores.map(|cores| ("cores", cores.to_string())));
    let sources = Sources {
        flags,
        ..Sources::default()
    };
    Config::resolve(&sources).map_err(|errors| Failure::usage(errors.to_string()))
}

/// A stretch of the workload that is published in one way, and what was measured.
#[derive(Debug)]
struct Part {
    /// What it is called.
    name: String,
    /// Its messages.
    numbers: Range<u64>,
    /// Messages a second; `None` is as fast as it goes.
    rate: Option<u32>,
    /// When it began, when its last confirm and its last delivery came, in ns of [`Clock`].
    begin_ns: u64,
    confirmed_ns: u64,
    delivered_ns: u64,
    /// From the time a message was due to its confirm, in ns.
    confirm_ns: Histogram<u64>,
    /// From the time a message was due to its delivery, in ns.
    end_to_end_ns: Histogram<u64>,
}

impl Part {
    fn new(name: String, numbers: Range<u64>, rate: Option<u32>) -> Self {
        Part {
            name,
            numbers,
            rate,
            begin_ns: 0,
            confirmed_ns: 0,
            delivered_ns: 0,
            confirm_ns: latency_histogram(),
            end_to_end_ns: latency_histogram(),
        }
    }

    fn count(&self) -> u64 {
        self.numbers.end - self.numbers.start
    }
}

/// What came of the trial.
#[derive(Debug)]
struct Report {
    cores: u16,
    bytes: u64,
    parts: Vec<Part>,
    verdict: Result<(), String>,
}

/// What those who publish and those who receive share.
#[derive(Debug)]
struct Clock {
    start: Instant,
    /// When each message was due, in ns since the start; written before it is published.
    due_ns: Vec<AtomicU64>,
    /// Messages received, over all queues.
    received: AtomicU64,
    /// A queue delivered what it should not have: there is no use in waiting for more.
    failed: AtomicBool,
    /// Told after every change of the two above.
    changed: Notify,
    progress: ProgressBar,
}

impl Clock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn due(&self, number: u64) -> &AtomicU64 {
        &self.due_ns[usize::try_from(number).expect("every message has its time in memory")]
    }

    /// Waits until there is no use in waiting.
    async fn failed(&self) {
        self.received_all(u64::MAX).await;
    }

    /// Waits until as many messages were received, or there is no use in waiting.
    async fn received_all(&self, count: u64) {
        while self.received.load(Ordering::Relaxed) < count && !self.failed.load(Ordering::Relaxed)
        {
            self.changed.notified().await;
        }
    }
}

/// The queues, and the region each is for.
fn queues() -> impl Iterator<Item = (&'static str, Option<usize>)> {
    let regions = REGIONS
        .iter()
        .enumerate()
        .map(|(region, name)| (*name, Some(region)));
    regions.chain([(AUDIT, None)])
}

/// Declares, publishes, consumes, verifies.
async fn trial(broker: &BrokerArgs, workload: Arc<Workload>, rate: u32) -> Result<Report, Failure> {
    let client = broker
        .connect_with(|builder| builder.in_flight_max(IN_FLIGHT).resend(Resend::Never))
        .await?;
    declare(&client).await?;
    let count = workload.count();
    let clock = Arc::new(Clock {
        start: Instant::now(),
        due_ns: (0..count).map(|_| AtomicU64::new(0)).collect(),
        received: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        changed: Notify::new(),
        progress: progress_bar(count * 2),
    });
    // The steady part is the end of the workload, and never the larger part of a short text.
    let split = count - (u64::from(rate) * STEADY.as_secs()).min(count / 2);
    let mut parts = vec![Part::new("as fast as it goes".into(), 0..split, None)];
    if split < count {
        let name = format!("at {} messages/s", output::grouped(u64::from(rate)));
        parts.push(Part::new(name, split..count, Some(rate)));
    }

    let consumers: Vec<_> = queues()
        .map(|(queue, region)| {
            let expected = Expected::new(workload.clone(), region);
            tokio::spawn(receive(
                client.clone(),
                queue,
                expected,
                split,
                clock.clone(),
            ))
        })
        .collect();
    let producer = client.producer(EXCHANGE).mandatory().build().await?;
    for part in &mut parts {
        // Its rate is its own, and not also that of the part before.
        clock.progress.set_prefix(part.name.clone());
        clock.progress.reset_eta();
        // Whoever waits for a confirm of a broker that does nothing waits for ever.
        tokio::select! {
            published = publish(&producer, &workload, part, &clock) => published?,
            () = clock.failed() => break,
        }
        // The next part begins when nothing of this one is on its way.
        clock.received_all(part.numbers.end * 2).await;
    }
    if clock.failed.load(Ordering::Relaxed) {
        drop(producer);
    } else {
        producer.close().await?;
    }

    let mut verdict = Ok(());
    for consumer in consumers {
        let ended = consumer.await;
        let received =
            ended.map_err(|error| Failure::failed(format!("a consumer died: {error}")))??;
        for (part, tally) in parts.iter_mut().zip(received.tallies) {
            part.delivered_ns = part.delivered_ns.max(tally.last_ns);
            let added = part.end_to_end_ns.add(&tally.end_to_end_ns);
            added.expect("all latency histograms have the same bounds");
        }
        verdict = verdict.and(received.verdict);
    }
    clock.progress.finish_and_clear();
    if verdict.is_ok() {
        verdict = check_nothing_is_left(&client).await?;
    }
    let cores = client.limits().cores();
    client.close().await?;
    let bytes = (0..count)
        .map(|number| workload.payload(number).len() as u64)
        .sum();
    Ok(Report {
        cores,
        bytes,
        parts,
        verdict,
    })
}

/// The bar on a terminal; nothing elsewhere.
fn progress_bar(messages: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{wide_bar} {percent:>3}% of deliveries, {prefix}: {rate}/s");
    let style = style.expect("the template is one");
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
        // A line that cannot be drawn is drawn again.
        let _ = out.write_str(&output::grouped(state.per_sec() as u64));
    });
    ProgressBar::new(messages).with_style(style)
}

/// The exchange, the queues and their bindings.
async fn declare(client: &Client) -> Result<(), Failure> {
    client
        .ensure_exchange(EXCHANGE, ExchangeConfig::topic())
        .await?;
    for (queue, region) in queues() {
        client.ensure_queue(queue, QueueConfig::durable()).await?;
        let key = region.map_or("#".to_owned(), |region| format!("*.{}.#", REGIONS[region]));
        client.bind(queue, EXCHANGE, &key).await?;
    }
    Ok(())
}

/// Publishes a part and waits for its confirms.
async fn publish(
    producer: &Producer,
    workload: &Workload,
    part: &mut Part,
    clock: &Clock,
) -> Result<(), Failure> {
    part.begin_ns = clock.now_ns();
    let (sender, pendings) = flume::bounded::<(u64, PendingBatch)>(PENDINGS_MAX);
    let (numbers, rate, begin_ns) = (part.numbers.clone(), part.rate, part.begin_ns);
    let send = async move {
        let mut next = numbers.start;
        while next < numbers.end {
            let (end, due_ns) = match rate {
                None => ((next + BATCH).min(numbers.end), clock.now_ns()),
                // Due by plan, not when it could be sent: waiting counts as latency.
                Some(rate) => {
                    let due_ns =
                        begin_ns + (next - numbers.start) * 1_000_000_000 / u64::from(rate);
                    let due = clock.start + Duration::from_nanos(due_ns);
                    tokio::time::sleep_until(due.into()).await;
                    (next + 1, due_ns)
                }
            };
            let messages: Vec<Message> = (next..end)
                .map(|number| {
                    clock.due(number).store(due_ns, Ordering::Relaxed);
                    Message::new(workload.key(number), workload.payload(number))
                })
                .collect();
            let pending = producer.enqueue_batch(&messages).await?;
            if sender.send_async((due_ns, pending)).await.is_err() {
                break; // a confirm failed: that is the error to tell of
            }
            next = end;
        }
        Ok::<(), Failure>(())
    };
    let confirm = async {
        while let Ok((due_ns, pending)) = pendings.recv_async().await {
            let receipt = pending.await?;
            let now_ns = clock.now_ns();
            part.confirm_ns
                .saturating_record_n(now_ns.saturating_sub(due_ns), receipt.messages);
            part.confirmed_ns = now_ns;
        }
        drop(pendings);
        Ok::<(), Failure>(())
    };
    let (sent, confirmed) = tokio::join!(send, confirm);
    confirmed.and(sent)
}

/// What one queue delivered of one part.
#[derive(Debug)]
struct Tally {
    end_to_end_ns: Histogram<u64>,
    /// When the last message came, in ns of [`Clock`].
    last_ns: u64,
}

/// What one queue delivered.
#[derive(Debug)]
struct Received {
    /// Of the messages before the split, and from there on.
    tallies: [Tally; 2],
    /// What was wrong with them.
    verdict: Result<(), String>,
}

/// Receives everything that a queue must deliver; if that does not come about, nobody waits for it.
async fn receive(
    client: Client,
    queue: &'static str,
    expected: Expected,
    split: u64,
    clock: Arc<Clock>,
) -> Result<Received, Failure> {
    let result = receive_all(&client, queue, expected, split, &clock).await;
    if !result
        .as_ref()
        .is_ok_and(|received| received.verdict.is_ok())
    {
        clock.failed.store(true, Ordering::Relaxed);
        clock.changed.notify_one();
    }
    result
}

/// Receives, verifies and acks, up to the first message that is wrong.
async fn receive_all(
    client: &Client,
    queue: &str,
    mut expected: Expected,
    split: u64,
    clock: &Clock,
) -> Result<Received, Failure> {
    let mut left = expected.count();
    let tally = || Tally {
        end_to_end_ns: latency_histogram(),
        last_ns: 0,
    };
    let mut received = Received {
        tallies: [tally(), tally()],
        verdict: Ok(()),
    };
    let mut consumer = client.consumer(queue).credit(CREDIT).subscribe().await?;
    while left > 0 {
        let next = match tokio::time::timeout(STALL, consumer.next_batch()).await {
            Ok(next) => next?,
            Err(_) => None,
        };
        let Some(batch) = next else {
            received.verdict = Err(format!(
                "the queue {queue} still owes {} and delivers none",
                output::counted(left, "message")
            ));
            return Ok(received);
        };
        let now_ns = clock.now_ns();
        for delivery in &batch {
            match expected.take(delivery.routing_key_bytes(), delivery.payload()) {
                Ok(number) => {
                    let part = &mut received.tallies[usize::from(number >= split)];
                    let since_due =
                        now_ns.saturating_sub(clock.due(number).load(Ordering::Relaxed));
                    part.end_to_end_ns.saturating_record(since_due);
                    part.last_ns = now_ns;
                    left -= 1;
                }
                Err(why) => {
                    received.verdict = Err(format!("the queue {queue} is wrong: {why}"));
                    return Ok(received);
                }
            }
        }
        if left > 0 {
            consumer.ack(&batch).await?;
        } else {
            consumer.ack_durable(&batch).await?;
        }
        let count = batch.len() as u64;
        clock.received.fetch_add(count, Ordering::Relaxed);
        clock.changed.notify_one();
        clock.progress.inc(count);
    }
    Ok(received)
}

/// Every queue must be empty: what is left would have been delivered twice, or never.
async fn check_nothing_is_left(client: &Client) -> Result<Result<(), String>, Failure> {
    for (queue, _) in queues() {
        let info = client.inspect_queue(queue).await?;
        if info.ready + info.unacked + info.delayed + info.dead > 0 {
            return Ok(Err(format!(
                "everything arrived, but the queue {queue} still holds {} ready and {} unacked \
                 messages",
                info.ready, info.unacked
            )));
        }
    }
    Ok(Ok(()))
}

impl Report {
    /// The tables and the verdict.
    fn text(&self, is_durable: bool, columns: usize) -> String {
        let count: u64 = self.parts.iter().map(Part::count).sum();
        let what = format!(
            "{} message{}, {} bytes of payload, each in 2 of {} queues; {}",
            output::grouped(count),
            if count == 1 { "" } else { "s" },
            output::grouped(self.bytes),
            queues().count(),
            output::counted(u64::from(self.cores), "core"),
        );
        let mut text = output::hanging("", &what, columns);
        text.push('\n');
        let rate = |messages: u64, from_ns: u64, to_ns: u64| {
            let seconds = Duration::from_nanos(to_ns.saturating_sub(from_ns).max(1)).as_secs_f64();
            output::grouped((messages as f64 / seconds) as u64)
        };
        let rows: Vec<Vec<String>> = self
            .parts
            .iter()
            .map(|part| {
                vec![
                    part.name.clone(),
                    output::grouped(part.count()),
                    rate(part.count(), part.begin_ns, part.confirmed_ns),
                    rate(part.count() * 2, part.begin_ns, part.delivered_ns),
                ]
            })
            .collect();
        let heads = [
            "throughput",
            "messages",
            "confirmed/s",
            "delivered and acked/s",
        ];
        text.push_str(&output::fitted(&heads, &rows, columns));
        text.push('\n');
        let rows: Vec<Vec<String>> = self
            .parts
            .iter()
            .flat_map(|part| {
                let of = |what: &str, histogram: &Histogram<u64>| {
                    let mut row = vec![format!("{what}, {}", part.name)];
                    row.extend([0.5, 0.9, 0.99, 0.999, 1.0].map(|quantile| {
                        let us = histogram.value_at_quantile(quantile) as f64 / 1e3;
                        output::grouped(us.round() as u64)
                    }));
                    row
                };
                [
                    of("confirm", &part.confirm_ns),
                    of("end to end", &part.end_to_end_ns),
                ]
            })
            .collect();
        let heads = ["latency in us", "p50", "p90", "p99", "p99.9", "max"];
        text.push_str(&output::fitted(&heads, &rows, columns));
        text.push('\n');
        if !is_durable {
            text.push_str("not durable: the data was in memory or without direct I/O; see --dir\n");
        }
        if self.verdict.is_ok() {
            text.push_str(&output::hanging(
                "",
                "verified: every message arrived in each of its queues exactly as it was sent, once \
                 and in order; no queue holds anything",
                columns,
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_was_measured() {
        let mut fast = Part::new("as fast as it goes".into(), 0..1_000_000, None);
        fast.confirmed_ns = 500_000_000;
        fast.delivered_ns = 1_000_000_000;
        fast.confirm_ns.saturating_record_n(1_500_000, 1_000_000);
        let mut report = Report {
            cores: 1,
            bytes: 12_345,
            parts: vec![fast],
            verdict: Ok(()),
        };
        let text = report.text(true, 80);
        for word in [
            "1,000,000 messages, 12,345 bytes",
            "1 core\n",
            "2,000,000",
            "verified:",
            "1,500",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains("not durable"));
        report.verdict = Err("wrong".into());
        let text = report.text(false, 80);
        assert!(!text.contains("verified"), "{text}");
        assert!(text.contains("not durable"), "{text}");
    }
}
