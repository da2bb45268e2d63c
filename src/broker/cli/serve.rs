//! `ringpost serve`: runs the broker until it is told to stop. Does not know how it starts.

use std::io::Write;

use super::settings::SettingsArgs;
use super::{Exit, Failure};
use crate::boot::{self, BootError, BootErrorKind};
use crate::control::log;
use crate::rt;

const EXAMPLES: &str = "\
Settings come from flags, then from RINGPOST_* variables, then from the file, then from defaults.
`--help` shows every bound; `-h` is short.

Examples:
  ringpost serve
  ringpost serve --config /etc/ringpost.toml --cores 2
  RINGPOST_MEMORY=4GiB ringpost serve --data-dir /var/lib/ringpost

SIGTERM or Ctrl-C drains: nothing new is taken, what was taken is written, clients are told.
A second one ends at once; like SIGKILL that loses no confirmed message and costs a longer start.";

/// Run the broker
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Self {
        let exit = match error.kind() {
            BootErrorKind::Configuration => Exit::Usage,
            BootErrorKind::Environment => Exit::Unfit,
            BootErrorKind::Damage => Exit::Damaged,
            BootErrorKind::Other => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
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
    let running = boot::start(config, Some(&log))?;
    let mut output = std::io::stdout();
    writeln!(
        output,
        "ready: clients connect to {}, metrics and health are at http://{}",
        running.addr(),
        running.admin_addr()
    )?;
    let signal = signals.recv();
    tracing::info!(?signal, "shutting down");
    std::thread::Builder::new()
        .name("second signal".into())
        .spawn(move || {
            if signals.recv().is_ok() {
                tracing::warn!("told twice to end: ending at once");
                std::process::exit(i32::from(Exit::Failed as u8));
            }
        })
        .map_err(no_signals)?;
    running.shutdown()?;
    tracing::info!("the data directory is clean");
    drop(log);
    Ok(())
}
