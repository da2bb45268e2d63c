//! `ringpost tenant`: creates, shows and deletes tenants. Does not look into them.

use clap::Subcommand;
use serde::Serialize;

use super::Failure;
use super::link::{self, BrokerArgs};
use super::output::{self, FormatArgs};

const EXAMPLES: &str = "\
Names of queues and exchanges in one tenant mean nothing in another.

Examples:
  ringpost tenant ensure shop
  ringpost queue list --tenant shop
  ringpost tenant delete shop";

/// Create, list and delete tenants
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
    /// Create a tenant unless it exists
    Ensure {
        /// The tenant
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a tenant that is empty
    Delete {
        /// The tenant
        #[arg(value_parser = mortal)]
        name: String,
    },
    /// Show all tenants
    List(FormatArgs),
}

/// What is shown of a tenant.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
}

/// The tenant of those who name none.
const DEFAULT: &str = "default";

/// Reads the name of a tenant.
fn name(text: &str) -> Result<String, String> {
    match text {
        "" => Err(format!(
            "a tenant needs a name; '{DEFAULT}' is always there"
        )),
        text => Ok(text.into()),
    }
}

/// Reads the name of a tenant that may go.
fn mortal(text: &str) -> Result<String, String> {
    match name(text)? {
        text if text == DEFAULT => Err("the default tenant cannot be deleted".into()),
        text => Ok(text),
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    link::block_on(async {
        let client = args.broker.connect().await?;
        match args.command {
            Command::Ensure { name } => {
                link::say_ensured("tenant", &name, client.ensure_tenant(&name).await?)?;
            }
            Command::Delete { name } => {
                link::say_removed("tenant", &name, client.delete_tenant(&name).await?)?;
            }
            Command::List(format) => {
                let mut names = client.tenants().await?;
                names.sort();
                let rows: Vec<Row> = names.into_iter().map(|name| Row { name }).collect();
                output::rows(format, &["tenant"], &rows, |row| vec![row.name.clone()])?;
            }
        }
        Ok(client.close().await?)
    })
}
