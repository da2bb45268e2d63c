//! `ringpost serve`: runs the broker until it is told to stop. Does not know how it starts.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::link;
use super::settings::SettingsArgs;
use super::{Exit, Failure};
use crate::boot;
use crate::boot_error::{BootError, BootErrorKind};
use crate::control::log;
use crate::rt;

const EXAMPLES: &str = "\
Settings come from flags, then from RINGPOST_* variables, then from the file,
then from defaults. `--help` shows every bound; `-h` is short.

Examples:
  ringpost serve
  ringpost serve --config /etc/ringpost.toml --cores 2
  RINGPOST_MEMORY=4GiB ringpost serve --data-dir /var/lib/ringpost

SIGTERM or Ctrl-C drains: nothing new is taken, what was taken is written,
clients are told. Another one a second or more later ends at once; like SIGKILL
that loses no confirmed message and costs a longer start.";

/// What comes this soon after the first signal is that signal said twice, as by a terminal and a
/// supervisor, and not somebody who has lost patience.
const SAID_TWICE: Duration = Duration::from_secs(1);

/// Run the broker
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// The same for every command that meets it.
impl From<BootErrorKind> for Exit {
    fn from(kind: BootErrorKind) -> Self {
        match kind {
            BootErrorKind::Configuration => Exit::Usage,
            BootErrorKind::Environment => Exit::Unfit,
            BootErrorKind::Damage => Exit::Damaged,
            BootErrorKind::Other => Exit::Failed,
        }
    }
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Self {
        Failure::new(error.kind().into(), error.to_string())
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = args.settings.resolve()?;
    let no_signals = |error| Failure::failed(format!("cannot wait for signals: {error}"));
    rt::block_termination_signals().map_err(no_signals)?;
    let log = log::start(config.log_format, config.log_level)
        .map_err(|error| Failure::failed(format!("cannot start the log: {error}")))?;
    let signals = rt::spawn_signal_thread().map_err(no_signals)?;
    let told = heed_signals(signals).map_err(no_signals)?;
    let running = boot::start(config, Some(&log))?;
    told.is_started.store(true, Ordering::Relaxed);
    let ready = format!(
        "ready: clients connect to {}, metrics and health are at http://{}",
        running.addr(),
        running.admin_addr()
    );
    if let Err(error) = writeln!(std::io::stdout(), "{ready}") {
        // Whoever does not read this must not end the broker.
        tracing::warn!(%error, "standard output cannot be written; {ready}");
    }
    let amqp: Vec<String> = running
        .amqp_addrs()
        .iter()
        .map(ToString::to_string)
        .collect();
    if !amqp.is_empty() {
        let line = format!("amqp: clients connect to {}", amqp.join(" "));
        if let Err(error) = writeln!(std::io::stdout(), "{line}") {
            tracing::warn!(%error, "standard output cannot be written; {line}");
        }
    }
    let signal = match told.to_end.recv() {
        Ok(rt::Signal::Terminate) => "SIGTERM",
        Ok(rt::Signal::Interrupt) => "SIGINT",
        // Nobody listens for signals any more: the broker could not be told to end later.
        Err(flume::RecvError::Disconnected) => "no more signals",
    };
    tracing::info!(signal, "shutting down");
    running.shutdown()?;
    tracing::info!("the data directory is clean");
    drop(log);
    Ok(())
}

/// What the thread that heeds signals shares with the one that starts and ends the broker.
struct Told {
    /// Set when the broker serves; a signal before that has nothing to drain.
    is_started: Arc<AtomicBool>,
    /// The first signal after that.
    to_end: flume::Receiver<rt::Signal>,
}

/// Heeds signals from the first moment on: reading a journal may take long, and whoever ends the
/// broker meanwhile must not have to wait for it.
fn heed_signals(signals: flume::Receiver<rt::Signal>) -> std::io::Result<Told> {
    let is_started = Arc::new(AtomicBool::new(false));
    let (sender, to_end) = flume::bounded(1);
    let started = is_started.clone();
    let end_at_once = |signal: rt::Signal, why: &str| {
        // Not through the log, which would have to be waited for.
        link::say(why);
        std::process::exit(i32::from(Exit::from(signal) as u8));
    };
    let heed = move || {
        let mut first = None;
        for signal in &signals {
            if !started.load(Ordering::Relaxed) {
                let why = "told to end before it was ready: ending at once, nothing is lost";
                end_at_once(signal, why);
            }
            let since: &Instant = first.get_or_insert_with(Instant::now);
            if since.elapsed() >= SAID_TWICE {
                let why = "told again to end: ending at once, the next start takes longer";
                end_at_once(signal, why);
            }
            // Only the first is waited for.
            let _ = sender.try_send(signal);
        }
    };
    std::thread::Builder::new()
        .name("heed signals".into())
        .spawn(heed)?;
    Ok(Told { is_started, to_end })
}
