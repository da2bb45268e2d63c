//! `ringpost prove`: puts this machine and a disk of it through kills, torn writes and rotten bits,
//! and says whether anything that was promised got lost. Does not judge; the history checker does.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ringpost_prove::Stopped;
use ringpost_prove::kill::{self, Ending, Plan, Report};
use serde_json::json;
use tempfile::TempDir;

use super::output::{self, FormatArgs};
use super::{Exit, Failure, link};
use crate::offline;
use crate::rt::disk::{DirectIo, probe_direct_io};
use crate::rt::{self, Signal};

const EXAMPLES: &str = "\
Works in a new directory below DIR, which is removed unless a promise was
broken. Again and again a broker is started there and loaded by clients that
write down what they send, are told and receive; it is killed, also while it
starts; writes are torn where its journals end; it is started again. After each
good end bits are flipped in copies of its data, one at a time. What the clients
wrote down is judged as a whole: every confirmed message must arrive, nothing
twice without being flagged, nothing out of order, nothing that was not sent;
and damage must be refused by name.

A kill leaves the page cache and the drive alone. That what is confirmed
survives a power cut is only as true as the drive's answer to a flush: no
program can prove that from inside.

Examples:
  ringpost prove /var/lib
  ringpost prove /mnt/data --cycles 500 --cores 4
  ringpost prove /mnt/data --minutes 60 --seed 7 --json";

/// Prove on this machine and disk that nothing confirmed gets lost
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A directory on the disk in question
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Times that the broker is ended
    #[arg(long, value_name = "number", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Go on for so long instead
    #[arg(long, value_name = "number", conflicts_with = "cycles", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: Option<u32>,
    /// Cores of the broker
    #[arg(long, value_name = "number", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    cores: u16,
    /// Clients, each with a producer and some consumers
    #[arg(long, value_name = "number", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=32))]
    clients: u16,
    /// Bits that are flipped after a good end
    #[arg(long, value_name = "number", default_value_t = 1)]
    flips: u32,
    /// Plans the run
    #[arg(long, value_name = "number", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    format: FormatArgs,
}

/// How long to listen for a signal after a run has failed: Ctrl-C at a terminal goes to the brokers,
/// too, and they may end before we have heard of it.
const HEARING: Duration = Duration::from_millis(200);

/// Heeds signals: the first one ends the run soon. Which it was is in what is returned.
fn heed_signals(stop: Arc<AtomicBool>) -> std::io::Result<flume::Receiver<Signal>> {
    rt::block_termination_signals()?;
    let signals = rt::spawn_signal_thread()?;
    let (sender, told) = flume::bounded(1);
    let heed = move || {
        // Further ones change nothing.
        for signal in &signals {
            if !stop.swap(true, Ordering::Relaxed) {
                link::say("told to end: ending the broker and removing the data");
                let _ = sender.send(signal); // the run has ended if nobody is there to be told
            }
        }
    };
    std::thread::Builder::new()
        .name("heed signals".into())
        .spawn(heed)?;
    Ok(told)
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("cannot find this program: {error}")))?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = heed_signals(stop.clone())
        .map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))?;
    let scratch = tempfile::Builder::new()
        .prefix("ringpost-prove-")
        .tempdir_in(&args.directory)
        .map_err(|error| {
            let shown = args.directory.display();
            Failure::new(
                Exit::Unfit,
                format!("cannot make a directory in {shown}: {error}; choose another"),
            )
        })?;
    let is_durable = matches!(probe_direct_io(scratch.path()), Ok(DirectIo::Durable));
    let until = args
        .minutes
        .map(|minutes| Instant::now() + Duration::from_secs(60 * u64::from(minutes)));
    let plan = Plan {
        program,
        directory: scratch.path().to_owned(),
        cores: args.cores,
        cycles: until.map_or(args.cycles, |_| u32::MAX),
        until,
        stop,
        producers: usize::from(args.clients),
        seed: args.seed,
        ending: Ending::Kill,
        tails: Some(tails),
        flips: args.flips,
    };
    let shown = scratch.path().display().to_string();
    let interrupted = |scratch: TempDir, signal: Signal| {
        let sentence = match scratch.close() {
            Ok(()) => "ended before it was done: it says nothing, and nothing is left".to_owned(),
            Err(error) => format!("ended before it was done, and cannot remove {shown}: {error}"),
        };
        Failure::new(signal.into(), sentence)
    };
    if let Err(why) = kill::rehearse(&plan) {
        return Err(match told.recv_timeout(HEARING) {
            Ok(signal) => interrupted(scratch, signal),
            Err(_) => Failure::new(
                Exit::Unfit,
                format!("nothing is proved, since no broker runs here: {why}"),
            ),
        });
    }
    let bar = bar(&args);
    let since = Instant::now();
    let outcome = kill::run_and_tell(&plan, &mut |report, events| {
        bar.inc(1);
        bar.set_message(format!(
            "{} kills, {} torn, {} flipped, {events} events",
            report.kills + report.kills_in_recovery,
            report.tears,
            report.flips.iter().sum::<u32>()
        ));
    });
    bar.finish_and_clear();
    // Its children are gone with the run.
    if outcome.is_err()
        && let Ok(signal) = told.recv_timeout(HEARING)
    {
        return Err(interrupted(scratch, signal));
    }
    let report = outcome.map_err(|stopped| {
        // Whoever looks into it needs everything.
        let kept = scratch.keep();
        let kept = kept.display();
        match stopped {
            Stopped::Broken(why) => Failure::new(
                Exit::Damaged,
                format!("a promise was broken, everything is kept in {kept}\n{why}"),
            ),
            Stopped::Unable(why) => Failure::failed(format!(
                "nothing is proved: the run could not go on; everything is kept in {kept}\n{why}"
            )),
        }
    })?;
    say(&args, &report, is_durable, since.elapsed())
}

fn bar(args: &Args) -> ProgressBar {
    if args.format.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match args.minutes {
        None => (
            ProgressBar::new(u64::from(args.cycles)),
            "{bar:12} {pos}/{len} cycles  {wide_msg}",
        ),
        Some(minutes) => {
            let spinner = ProgressBar::new_spinner();
            spinner.enable_steady_tick(Duration::from_millis(200));
            spinner.set_prefix(format!("{minutes} min"));
            (
                spinner,
                "{spinner} {elapsed} of {prefix}, {pos} cycles  {wide_msg}",
            )
        }
    };
    bar.set_style(ProgressStyle::with_template(template).expect("a template"));
    bar
}

fn tails(directory: &Path) -> Result<Vec<(PathBuf, u64)>, String> {
    offline::tails(directory).map_err(|error| error.to_string())
}

fn say(args: &Args, report: &Report, is_durable: bool, took: Duration) -> Result<(), Failure> {
    let counts = report.verdict.counts;
    let [harmless, refused, not_started] = report.flips;
    if args.format.json {
        let line = json!({
            "confirmed": counts.confirmed,
            "confirmed_durable": counts.confirmed_durable,
            "lost": 0,
            "sent": counts.sent,
            "delivered": counts.delivered,
            "delivered_again": counts.redelivered,
            "acked": counts.acked,
            "acks_confirmed": counts.ack_confirmed,
            "kills": report.kills,
            "kills_in_recovery": report.kills_in_recovery,
            "good_ends": report.terminations,
            "torn_writes": report.tears,
            "flipped_bits": {
                "harmless": harmless,
                "queues_refused": refused,
                "start_refused": not_started,
            },
            "direct_io": is_durable,
            "cores": args.cores,
            "seed": args.seed,
            "seconds": took.as_secs_f64(),
        });
        return output::line(&line.to_string());
    }
    let rows = [
        ("sent", counts.sent.to_string()),
        (
            "confirmed",
            format!(
                "{}, {} of them durably",
                counts.confirmed, counts.confirmed_durable
            ),
        ),
        (
            "delivered",
            format!(
                "{}, {} of them again and flagged",
                counts.delivered, counts.redelivered
            ),
        ),
        (
            "acked",
            format!(
                "{}, {} of them known to be durable",
                counts.acked, counts.ack_confirmed
            ),
        ),
        (
            "killed",
            format!(
                "{} under load, {} while starting",
                output::counted(u64::from(report.kills), "time"),
                output::counted(u64::from(report.kills_in_recovery), "time")
            ),
        ),
        (
            "ended well",
            format!(
                "{} under load",
                output::counted(u64::from(report.terminations), "time")
            ),
        ),
        ("torn writes", report.tears.to_string()),
        (
            "flipped bits",
            format!(
                "{}: {harmless} harmless, {refused} refused by their queues, {not_started} by the start",
                harmless + refused + not_started
            ),
        ),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        let head = format!("{name:<14}");
        text.push_str(&output::hanging(&head, &value, output::columns()));
    }
    if !is_durable {
        text.push_str(
            "\nthis directory has no direct I/O: confirms there do not survive a power cut, and this \
             run says nothing of that\n",
        );
    }
    text.push_str(&format!(
        "\n{} confirmed, 0 lost, in {:.0} s on {} (seed {})\n",
        counts.confirmed,
        took.as_secs_f64(),
        output::counted(u64::from(args.cores), "core"),
        args.seed
    ));
    output::write_all(text.as_bytes())
}
