//! `ringpost status`: what every core of a broker does, asked at its admin port. Does not speak the
//! messaging protocol, so it works while the cores do not.

use super::Failure;
use super::admin_port::AdminArgs;
use super::output::{self, FormatArgs};
use crate::control::admin::{CoreStatus, Status};

const EXAMPLES: &str = "\
Ends with 0 if every core serves durable queues, else with 1 and the reason.

Examples:
  ringpost status
  ringpost status --json --admin 10.0.0.7:7480";

/// Show what a running broker does
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let text = args.admin.get("/status")?;
    let status: Status = args.admin.parse(&text)?;
    if args.format.json {
        output::line(&text)?;
    } else {
        let state = if status.ready { "ready" } else { "not ready" };
        output::line(&format!("ringpost {}, {state}", status.version))?;
        let heads = [
            "core",
            "phase",
            "connections",
            "queues",
            "ready",
            "unacked",
            "consumers",
            "published",
            "delivered",
            "write p50 us",
            "p99 us",
        ];
        output::rows(args.format, &heads, &status.cores, cells)?;
    }
    if status.ready {
        Ok(())
    } else {
        Err(Failure::failed(status.reasons.join("\n")))
    }
}

fn cells(core: &CoreStatus) -> Vec<String> {
    let numbers = [
        u64::from(core.connections),
        core.queues,
        core.ready,
        core.unacked,
        core.consumers,
        core.publishes,
        core.deliveries,
        core.write_p50_us,
        core.write_p99_us,
    ];
    let mut cells = vec![core.core.to_string(), core.phase.clone()];
    cells.extend(numbers.map(|number| number.to_string()));
    cells
}
