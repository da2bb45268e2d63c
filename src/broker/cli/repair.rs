//! `ringpost repair`: writes down that a damaged range is given up. Does nothing else to the data.

use super::settings::DirectoryArgs;
use super::{Failure, output};
use crate::offline;

const EXAMPLES: &str = "\
Only a range that `ringpost verify` names can be given up. What it held is lost
for good; queues that refused service because of it serve again, without it.
Copy the data directory first.

Examples:
  ringpost verify --data-dir /var/lib/ringpost
  ringpost repair --data-dir /var/lib/ringpost --accept-loss 0:7:12-90";

/// Give up a damaged range, so that its queues serve again
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    directory: DirectoryArgs,
    /// The range, as `ringpost verify` names it; may be given again for further ones
    #[arg(long, value_name = "range", required = true)]
    accept_loss: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    for range in &args.accept_loss {
        offline::accept_loss(&args.directory.data_dir, range)?;
        output::line(&format!("the loss of {range} is accepted and written down"))?;
    }
    Ok(())
}
