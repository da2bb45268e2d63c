//! `ringpost group`: shows, sets and forgets the groups of a stream. Does not read messages.

use clap::Subcommand;
use ringpost_client::Start;
use ringpost_client::admin::GroupInfo;
use serde::Serialize;

use super::Failure;
use super::link::{self, BrokerArgs};
use super::output::{self, FormatArgs};
use super::reading;

const EXAMPLES: &str = "\
Examples:
  ringpost group list events
  ringpost group reset events billing --to first
  ringpost group reset events billing --to time:2026-11-30T10:00:00Z
  ringpost group delete events billing";

/// Show, reset and forget groups of a stream
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show how far the groups of a stream have come, and how far behind they are
    List {
        /// The stream
        stream: String,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Set a group without members to another place
    Reset {
        /// The stream
        stream: String,
        /// The group; one that is not there is made
        group: String,
        /// The place, as for `sub --from`
        #[arg(long, value_name = "place", value_parser = reading::start)]
        to: Start,
    },
    /// Forget a group without members
    Delete {
        /// The stream
        stream: String,
        /// The group
        group: String,
    },
}

/// What is shown of a group.
#[derive(Debug, Serialize)]
struct Row {
    group: String,
    offset: u64,
    lag: u64,
    members: u32,
}

impl From<GroupInfo> for Row {
    fn from(info: GroupInfo) -> Self {
        Row {
            group: info.name,
            offset: info.offset,
            lag: info.lag,
            members: info.members,
        }
    }
}

const HEADS: [&str; 4] = ["group", "offset", "lag", "members"];

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.group.clone(),
        row.offset.to_string(),
        row.lag.to_string(),
        row.members.to_string(),
    ]
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        match args.command {
            Command::List { stream, format } => {
                let groups = client.stream_groups(&stream).await?;
                let rows: Vec<Row> = groups.into_iter().map(Row::from).collect();
                output::rows(format, &HEADS, &rows, cells)?;
            }
            Command::Reset { stream, group, to } => {
                client.reset_group(&stream, &group, to).await?;
                output::line(&format!("group {group} of {stream} reset"))?;
            }
            Command::Delete { stream, group } => {
                let removed = client.delete_group(&stream, &group).await?;
                link::say_removed("group", &group, removed)?;
            }
        }
        Ok(client.close().await?)
    })
}
