//! TO BE REPLACED by the offline use of the engine's recovery: only the shape that `verify` and
//! `repair` rely on, and the checks that need no knowledge of the format.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What was found in a data directory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Files read.
    pub files: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// A damaged range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Damage {
    /// Its name, for [`accept_loss`].
    pub range: String,
    /// The partitions that it may concern.
    pub partitions: String,
    /// What is wrong, for people.
    pub what: String,
}

/// Why a data directory cannot be worked on.
#[derive(Debug)]
pub enum OfflineError {
    /// It cannot be read.
    Unreadable {
        /// The directory.
        directory: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A broker uses it.
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// No damage has this name.
    RangeUnknown {
        /// The name.
        range: String,
    },
    /// This build cannot read the format.
    NotBuilt,
}

impl std::fmt::Display for OfflineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OfflineError::Unreadable { directory, error } => write!(
                f,
                "cannot read the data directory {}: {error}; name another with --data-dir",
                directory.display()
            ),
            OfflineError::InUse { directory } => {
                write!(f, "a broker uses {}: stop it first", directory.display())
            }
            OfflineError::RangeUnknown { range } => write!(
                f,
                "`ringpost verify` finds no damaged range {range}: only damage can be given up"
            ),
            OfflineError::NotBuilt => f.write_str("this build cannot read journals yet"),
        }
    }
}

impl std::error::Error for OfflineError {}

/// Reads everything and writes nothing.
///
/// # Errors
/// The directory cannot be read, or a broker uses it.
pub fn verify(directory: &Path) -> Result<Survey, OfflineError> {
    check_readable(directory)?;
    Err(OfflineError::NotBuilt)
}

/// Writes a durable record that `range` is given up.
///
/// # Errors
/// The directory cannot be read or written, a broker uses it, or no damage has this name.
pub fn accept_loss(directory: &Path, range: &str) -> Result<(), OfflineError> {
    check_readable(directory)?;
    let _ = range; // the replacement looks it up
    Err(OfflineError::NotBuilt)
}

fn check_readable(directory: &Path) -> Result<(), OfflineError> {
    match std::fs::read_dir(directory) {
        Ok(_) => Ok(()),
        Err(error) => Err(OfflineError::Unreadable {
            directory: directory.to_owned(),
            error,
        }),
    }
}
