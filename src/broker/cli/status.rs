//! `ringpost status`: what every core of a broker does, asked at its admin port. Does not speak the
//! messaging protocol, so it works while the cores do not.

use super::Failure;
use super::admin_port::AdminArgs;
use super::numbers;
use super::output::{self, FormatArgs};
use crate::control::admin::{CoreStatus, Status};
use crate::control::numbers::QueueStatus;

const EXAMPLES: &str = "\
Shows the cores and the 32 busiest queues; `ringpost queue list` has all.
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
        if !status.queues.is_empty() {
            output::line("")?;
            let heads = [&QUEUE_HEADS[..], &numbers::HEADS].concat();
            output::rows(args.format, &heads, &status.queues, queue_cells)?;
        }
    }
    if status.ready {
        Ok(())
    } else {
        Err(Failure::failed(status.reasons.join("\n")))
    }
}

const DEFAULT_TENANT: &str = "default";

const QUEUE_HEADS: [&str; 6] = ["queue", "core", "ready", "unacked", "bytes", "consumers"];

fn queue_cells(queue: &QueueStatus) -> Vec<String> {
    // Names of the default tenant stand for themselves.
    let name = match queue.tenant.as_str() {
        DEFAULT_TENANT => queue.name.clone(),
        tenant => format!("{tenant}/{}", queue.name),
    };
    let mut cells = vec![
        name,
        queue.core.to_string(),
        queue.ready.to_string(),
        queue.unacked.to_string(),
        queue.bytes.to_string(),
        queue.consumers.to_string(),
    ];
    cells.extend(numbers::cells(&queue.numbers, queue.damaged));
    cells
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
