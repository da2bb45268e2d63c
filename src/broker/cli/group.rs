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
  ringpost group inspect events billing
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
    /// Show how far one group has come; of a stream of several lanes in each
    Inspect {
        /// The stream
        stream: String,
        /// The group
        group: String,
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
    /// Of a stream of several lanes.
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<u32>,
    offset: u64,
    lag: u64,
    members: u32,
}

impl From<GroupInfo> for Row {
    fn from(info: GroupInfo) -> Self {
        Row {
            group: info.name,
            lane: info.lane,
            offset: info.offset,
            lag: info.lag,
            members: info.members,
        }
    }
}

const HEADS: [&str; 5] = ["group", "lane", "offset", "lag", "members"];

/// The groups as a table, with a line for all lanes together where there are several.
fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for lanes in rows.chunk_by(|one, two| one.group == two.group) {
        for row in lanes {
            lines.push(vec![
                row.group.clone(),
                row.lane.map_or_else(String::new, |lane| lane.to_string()),
                row.offset.to_string(),
                row.lag.to_string(),
                row.members.to_string(),
            ]);
        }
        if lanes.len() > 1 {
            let lag: u64 = lanes.iter().map(|row| row.lag).sum();
            let members = lanes.iter().map(|row| row.members).max();
            lines.push(vec![
                lanes[0].group.clone(),
                "all".to_owned(),
                String::new(),
                lag.to_string(),
                members.unwrap_or(0).to_string(),
            ]);
        }
    }
    lines
}

fn show(format: FormatArgs, rows: &[Row]) -> Result<(), Failure> {
    if format.json {
        return output::rows(format, &HEADS, rows, |_| Vec::new());
    }
    let text = output::fitted(&HEADS, &table(rows), output::columns());
    output::write_all(text.as_bytes())
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        match args.command {
            Command::List { stream, format } => {
                let groups = client.stream_groups(&stream).await?;
                let rows: Vec<Row> = groups.into_iter().map(Row::from).collect();
                show(format, &rows)?;
            }
            Command::Inspect {
                stream,
                group,
                format,
            } => {
                let groups = client.stream_groups(&stream).await?;
                let own = groups.into_iter().filter(|info| info.name == group);
                let rows: Vec<Row> = own.map(Row::from).collect();
                if rows.is_empty() {
                    let reason = format!("the stream {stream} has no group {group}");
                    return Err(Failure::failed(reason));
                }
                show(format, &rows)?;
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
