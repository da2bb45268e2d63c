//! `ringpost doctor`: what this machine lacks for a broker, and the command that cures it. Gathers
//! facts first and judges them afterwards; does neither itself.

mod facts;
mod judge;

use serde::Serialize;

use super::output::{self, FormatArgs};
use super::settings::SettingsArgs;
use super::{Exit, Failure};
use facts::Facts;

const EXAMPLES: &str = "\
Every line says OK, DEGRADED (it works, and something is slower or unsafe) or
MISSING (the broker cannot start). Ends with 0, or with 5 if anything is
missing. Takes the settings of `serve`, to judge the data directory, the ports
and the memory that the broker will have. Run it as the broker's user, before
the broker: what a running one has taken is MISSING for another.

Examples:
  ringpost doctor
  ringpost doctor --config /etc/ringpost.toml
  sudo -u ringpost ringpost doctor --data-dir /var/lib/ringpost --json";

/// Check this machine, and say how to cure what it lacks
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Skip the measurement of synced writes
    #[arg(long)]
    no_measure: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = args.settings.resolve()?;
    let facts = Facts::gather(&config, !args.no_measure);
    let findings = judge::judge(&facts, &config);
    if args.format.json {
        output::rows(args.format, &[], &findings, |_| Vec::new())?;
    } else {
        output::write_all(text_of(&findings, output::columns()).as_bytes())?;
    }
    let is_missing = |finding: &&Finding| finding.verdict == Verdict::Missing;
    let missing = findings.iter().filter(is_missing).count();
    if missing == 0 {
        return Ok(());
    }
    let what = if missing == 1 {
        "1 line is"
    } else {
        &format!("{missing} lines are")
    };
    Err(Failure::new(
        Exit::Unfit,
        format!("{what} MISSING: the broker cannot start here until that is cured"),
    ))
}

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Verdict {
    /// As it should be.
    Ok,
    /// The broker works, slower or less safely.
    Degraded,
    /// The broker cannot start.
    Missing,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "OK",
            Verdict::Degraded => "DEGRADED",
            Verdict::Missing => "MISSING",
        }
    }
}

/// One line of the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    /// How bad.
    verdict: Verdict,
    /// What was found.
    found: String,
    /// The command or the change that cures it; empty if there is nothing to cure.
    cure: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Finding {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            cure: String::new(),
        }
    }

    fn degraded(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        let (found, cure) = (found.into(), cure.into());
        Finding {
            check,
            verdict: Verdict::Degraded,
            found,
            cure,
        }
    }

    fn missing(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        let (found, cure) = (found.into(), cure.into());
        Finding {
            check,
            verdict: Verdict::Missing,
            found,
            cure,
        }
    }
}

fn text_of(findings: &[Finding], columns: usize) -> String {
    let mut text = String::new();
    for Finding {
        check,
        verdict,
        found,
        cure,
    } in findings
    {
        let head = format!("{check:<16}{:<10}", verdict.word());
        text.push_str(&output::hanging(&head, found, columns));
        if !cure.is_empty() {
            // Not broken into lines, so that it can be copied.
            text.push_str(&format!("{:<16}cure: {cure}\n", ""));
        }
    }
    text
}
