//! `ringpost verify`: reads a data directory that no broker uses and names every damaged range.
//! Never writes. Does not know the format: the engine's recovery does.

use super::output::FormatArgs;
use super::settings::DirectoryArgs;
use super::{Exit, Failure};
use crate::offline::{self, OfflineError};

const EXAMPLES: &str = "\
Ends with 0 if all is well and with 4 if something is damaged.

Examples:
  ringpost verify --data-dir /var/lib/ringpost
  ringpost verify --data-dir /var/lib/ringpost --json";

/// Check a data directory, without writing to it
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    directory: DirectoryArgs,
    #[command(flatten)]
    format: FormatArgs,
}

impl From<OfflineError> for Failure {
    fn from(error: OfflineError) -> Self {
        let exit = match error {
            OfflineError::Unreadable { .. } | OfflineError::InUse { .. } => Exit::Failed,
            OfflineError::RangeUnknown { .. } => Exit::Usage,
            OfflineError::Unfit { .. } => Exit::Unfit,
        };
        Failure::new(exit, error.to_string())
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let survey = offline::verify(&args.directory.data_dir)?;
    let heads = ["range", "partition", "what is damaged"];
    if !survey.damage.is_empty() {
        super::output::rows(args.format, &heads, &survey.damage, |damage| {
            vec![
                damage.range.clone(),
                damage.partitions.clone(),
                damage.what.clone(),
            ]
        })?;
    }
    if survey.damage.is_empty() {
        if !args.format.json {
            super::output::line(&format!(
                "{} files, {} blocks, {} bytes: all is well",
                survey.files, survey.blocks, survey.bytes
            ))?;
        }
        return Ok(());
    }
    Err(Failure::new(
        Exit::Damaged,
        format!(
            "{} damaged ranges: restore them from a copy, or accept the loss of each with `ringpost \
             repair --accept-loss RANGE`",
            survey.damage.len()
        ),
    ))
}
