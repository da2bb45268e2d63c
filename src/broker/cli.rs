//! The command line: arguments in, exit code out. Every command has its file; what they share is
//! here. Does not know how a broker works inside.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::rt::Signal;

mod admin_port;
mod binding;
mod completions;
mod definitions;
mod doctor;
mod exchange;
mod get;
mod group;
mod link;
mod man;
mod message;
mod numbers;
mod output;
mod policy;
mod prove;
mod r#pub;
mod queue;
mod reading;
mod repair;
mod serve;
mod settings;
mod status;
mod sub;
mod tenant;
mod top;
mod trace;
mod r#try;
mod verify;

/// What follows every help text.
const EXAMPLES: &str = "\
Examples:
  ringpost try                     watch a broker work, from publish to ack
  ringpost doctor                  what this machine lacks, and what cures it
  ringpost serve --data-dir /var/lib/ringpost
  ringpost queue ensure orders
  ringpost pub --key orders < orders.txt
  ringpost sub orders --count 10

Exit codes:
  0  done
  1  the operation failed or was refused
  2  the command line or the configuration is wrong
  3  no broker can be reached
  4  the data directory is damaged
  5  the machine or the directory does not do; `ringpost doctor` says why
  130, 143  told to end by Ctrl-C or SIGTERM, before it was done";

/// A message broker: durable by default, at a tail latency you can prove.
#[derive(Parser, Debug)]
#[command(name = "ringpost", version, after_help = EXAMPLES, arg_required_else_help = true)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(serve::Args),
    Try(r#try::Args),
    Pub(r#pub::Args),
    Sub(sub::Args),
    Get(get::Args),
    Queue(queue::Args),
    Exchange(exchange::Args),
    Binding(binding::Args),
    Group(group::Args),
    Policy(policy::Args),
    Tenant(tenant::Args),
    Export(definitions::ExportArgs),
    Apply(definitions::ApplyArgs),
    Status(status::Args),
    Top(top::Args),
    Trace(trace::Args),
    Doctor(doctor::Args),
    Prove(prove::Args),
    Verify(verify::Args),
    Repair(repair::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Why a command ends without success: what the process exits with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// The reader of our output has gone, as in `ringpost sub orders | head`: no failure.
    ReaderGone = 0,
    /// The operation failed or was refused.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// No broker can be reached.
    Unreachable = 3,
    /// The data directory is damaged.
    Damaged = 4,
    /// The machine lacks something.
    Unfit = 5,
    /// SIGINT came before it was done.
    Interrupted = 130,
    /// SIGTERM came before it was done.
    Terminated = 143,
}

impl From<Signal> for Exit {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Interrupt => Exit::Interrupted,
            Signal::Terminate => Exit::Terminated,
        }
    }
}

/// A command's failure: one sentence for people, one code for scripts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    /// What happened, with which values, and what to do; several lines if several things did. Empty
    /// if the command has said it already.
    pub sentence: String,
}

impl Failure {
    /// A failure.
    pub fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Failure {
            exit,
            sentence: sentence.into(),
        }
    }

    /// The operation failed or was refused.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Failure::new(Exit::Failed, sentence)
    }

    /// The command line or the configuration is wrong.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Failure::new(Exit::Usage, sentence)
    }
}

/// Standard output cannot be written.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::ReaderGone, ""),
            _ => Failure::failed(format!("cannot write the output: {error}")),
        }
    }
}

/// Does what the arguments ask for. The first one is the name of the program.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing more can be said if standard error is closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Try(args) => r#try::run(args),
        Command::Pub(args) => r#pub::run(args),
        Command::Sub(args) => sub::run(args),
        Command::Get(args) => get::run(args),
        Command::Queue(args) => queue::run(args),
        Command::Exchange(args) => exchange::run(args),
        Command::Binding(args) => binding::run(args),
        Command::Group(args) => group::run(args),
        Command::Policy(args) => policy::run(args),
        Command::Tenant(args) => tenant::run(args),
        Command::Export(args) => definitions::export(args),
        Command::Apply(args) => definitions::apply(args),
        Command::Status(args) => status::run(args),
        Command::Top(args) => top::run(args),
        Command::Trace(args) => trace::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Prove(args) => prove::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Repair(args) => repair::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.sentence.lines() {
                let _ = writeln!(io::stderr(), "error: {line}"); // as above
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// The whole command line, also for completions and manual pages.
fn command() -> clap::Command {
    with_plain_values(Cli::command())
}

/// An environment variable that is empty is as good as none, and `-1` is a number that is out of
/// bounds rather than an unknown flag.
fn with_plain_values(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|text| text.is_empty());
    command
        .mut_args(|arg| {
            let takes_number = arg.get_long().is_some() && arg.get_action().takes_values();
            let is_unset = arg.get_env().is_some_and(is_empty);
            let arg = arg.allow_negative_numbers(takes_number);
            if is_unset { arg.env(None::<&str>) } else { arg }
        })
        .mut_subcommands(with_plain_values)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }

    /// What is broken into lines by hand must not be broken once more by a terminal.
    #[test]
    fn texts_behind_the_help_fit_80_columns() {
        fn check(command: &clap::Command) {
            let text = command.get_after_help().map(ToString::to_string);
            for line in text.unwrap_or_default().lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&super::command());
    }
}
