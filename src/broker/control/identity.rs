//! What a data directory is: its format, its own number, what was fixed when it was created.
//! Does not know journals, nor how they move to another number of cores; it only says where they are.
//!
//! ```text
//! data directory
//! ├── ringpost.toml      this file's content
//! ├── lock               held by the broker that uses the directory
//! ├── flight-0000.txt    the flight record of a core that failed, and flight-0000.old.txt
//! └── layout-0001/       raised when the number of cores changes
//!     └── core-0000/     a journal: slots `00000000.seg`…, two checkpoints
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::boot_error::{BootError, BootErrorKind};
use crate::config::Config;
use crate::rt::{disk, random_u64};

/// The newest data format that this version reads and writes.
pub const FORMAT: u32 = 1;
/// Name of the file.
const FILE: &str = "ringpost.toml";
/// Largest such file.
const FILE_BYTES_MAX: usize = 64 * 1024;
/// What the names of directories with journals begin with.
const LAYOUT: &str = "layout-";

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    cluster: String,
    partitions: u16,
    segment_bytes: u32,
    cores: u16,
    layout: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    begun: bool,
}

/// A data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    directory: PathBuf,
    /// Its own number, in every block.
    pub cluster: u64,
    /// Partitions, fixed when it was created.
    pub partitions: u16,
    /// Bytes of a segment, fixed when it was created.
    pub segment_bytes: u32,
    /// Cores of the broker that used it last: each has a journal.
    pub cores: u16,
    /// Raised when the number of cores changes and the journals are written anew.
    layout: u32,
    /// All its journals have been written to: one that is not there any more held something.
    begun: bool,
}

impl Identity {
    /// Opens the directory of `config`, or makes it one for `cores` cores. What it says of the number
    /// of cores is what its journals are written for.
    ///
    /// # Errors
    /// It is not one of ours, of a later format, or cannot be written.
    pub fn open(config: &Config, cores: u16) -> Result<Self, BootError> {
        let directory = &config.data_dir;
        let identity = if Self::is_in(directory) {
            Self::read(directory)?
        } else {
            Self::refuse_foreign(directory)?;
            let identity = Self {
                directory: directory.clone(),
                cluster: random_u64().map_err(|error| unwritable(directory, &error))?,
                partitions: u16::try_from(config.partitions).expect("bounded by the settings"),
                segment_bytes: u32::try_from(config.segment_bytes)
                    .expect("bounded by the settings"),
                cores,
                layout: 1,
                begun: false,
            };
            identity.write()?;
            identity
        };
        identity.remove_other_layouts()?;
        Ok(identity)
    }

    /// Looks at a directory that may be used, without writing to it: it is a data directory, or may
    /// become one.
    ///
    /// # Errors
    /// It holds something else, is of another format, or damaged.
    pub fn check(directory: &Path) -> Result<(), BootError> {
        if Self::is_in(directory) {
            Self::read(directory).map(drop)
        } else {
            Self::refuse_foreign(directory)
        }
    }

    /// Whether a directory is a data directory already.
    #[must_use]
    pub fn is_in(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Reads what a directory says of itself.
    ///
    /// # Errors
    /// It is not one of ours, or of a later format.
    pub fn read(directory: &Path) -> Result<Self, BootError> {
        let path = directory.join(FILE);
        if !Self::is_in(directory) {
            Self::refuse_foreign(directory)?;
            let sentence = format!(
                "{} is no data directory of Ringpost: it is empty; name another with --data-dir",
                directory.display()
            );
            return Err(BootError::new(BootErrorKind::Environment, sentence));
        }
        let damaged = |why: String| {
            let sentence = format!(
                "{} is not what a broker wrote: {why}; this is no data directory of Ringpost, or \
                 it is damaged",
                path.display()
            );
            BootError::new(BootErrorKind::Damage, sentence)
        };
        let bytes =
            disk::read_file(&path, FILE_BYTES_MAX).map_err(|error| damaged(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        let format = text
            .parse::<toml::Table>()
            .ok()
            .and_then(|table| table.get("format").and_then(toml::Value::as_integer));
        if let Some(format) = format
            && format > i64::from(FORMAT)
        {
            let sentence = format!(
                "the data directory {} has format {format}, which is newer than this version \
                 ({FORMAT}); start the version that wrote it, or a later one",
                directory.display()
            );
            return Err(BootError::new(BootErrorKind::Environment, sentence));
        }
        if let Some(format) = format
            && format < i64::from(FORMAT)
        {
            let sentence = format!(
                "the data directory {} has format {format}, which is older than this version \
                 reads ({FORMAT}); docs/changelog.md says how to move it",
                directory.display()
            );
            return Err(BootError::new(BootErrorKind::Environment, sentence));
        }
        let stored: Stored =
            toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
        let cluster =
            u64::from_str_radix(&stored.cluster, 16).map_err(|error| damaged(error.to_string()))?;
        if stored.partitions == 0 || stored.cores == 0 || stored.segment_bytes == 0 {
            return Err(damaged("a count is zero".to_owned()));
        }
        Ok(Self {
            directory: directory.to_owned(),
            cluster,
            partitions: stored.partitions,
            segment_bytes: stored.segment_bytes,
            cores: stored.cores,
            layout: stored.layout,
            begun: stored.begun,
        })
    }

    fn layout_directory(&self) -> PathBuf {
        self.directory.join(format!("{LAYOUT}{:04}", self.layout))
    }

    /// The same directory with new journals for another number of cores, which is what it is once
    /// that is [written](Self::write).
    #[must_use]
    pub fn for_cores(&self, cores: u16) -> Self {
        Self {
            cores,
            layout: self.layout + 1,
            begun: false,
            ..self.clone()
        }
    }

    /// Writes down that all its journals have been written to, if that is news.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(&mut self) -> Result<(), BootError> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        self.write()
    }

    /// Looks whether the journals that have been written to are there. One that is made anew would
    /// lose in silence what it held.
    ///
    /// # Errors
    /// One of them is not.
    pub fn check_journals(&self) -> Result<(), BootError> {
        let missing = (0..self.cores)
            .map(|core| self.journal_directory(core))
            .find(|journal| self.begun && !disk::has_entries(journal));
        let Some(journal) = missing else {
            return Ok(());
        };
        let sentence = format!(
            "the journal {} is gone, and every message of its queues with it: restore it from a \
             copy; or, to give up what it held, remove the line `begun = true` from {}",
            journal.display(),
            self.directory.join(FILE).display()
        );
        Err(BootError::new(BootErrorKind::Damage, sentence))
    }

    /// Makes the directories of its journals.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn make_journals(&self) -> Result<(), BootError> {
        (0..self.cores).try_for_each(|core| {
            make(&self.journal_directory(core)).map_err(|error| unwritable(&self.directory, &error))
        })
    }

    /// Removes what a start with another number of cores left behind: the copy it did not finish, or
    /// the original it had no more use for.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_other_layouts(&self) -> Result<(), BootError> {
        let own = self.layout_directory();
        let entries = std::fs::read_dir(&self.directory)
            .map_err(|error| unwritable(&self.directory, &error))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            if name.starts_with(LAYOUT) && path != own {
                std::fs::remove_dir_all(&path).map_err(|error| unwritable(&path, &error))?;
            }
        }
        Ok(())
    }

    /// A directory that holds something else is left alone, and one that has lost its file is not
    /// begun anew.
    fn refuse_foreign(directory: &Path) -> Result<(), BootError> {
        let entries =
            std::fs::read_dir(directory).map_err(|error| unwritable(directory, &error))?;
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| {
                // What a first start left that was killed before the directory was one.
                let unfinished = format!("{FILE}.tmp");
                *name != "lock"
                    && *name != "lost+found"
                    && *name != unfinished
                    && !name.starts_with('.')
            })
            .collect();
        names.sort();
        let shown = directory.display();
        if let Some(layout) = names.iter().find(|name| name.starts_with(LAYOUT)) {
            let sentence = format!(
                "the data directory {shown} has lost its file `{FILE}`: it holds journals, in \
                 `{layout}`; restore the file from a copy"
            );
            return Err(BootError::new(BootErrorKind::Damage, sentence));
        }
        match names.first() {
            None => Ok(()),
            Some(name) => Err(BootError::new(
                BootErrorKind::Environment,
                format!(
                    "{shown} is no data directory of Ringpost: it holds `{name}`; choose an empty \
                     one with --data-dir"
                ),
            )),
        }
    }

    /// Writes down, durably, that the directory is this.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> Result<(), BootError> {
        let stored = Stored {
            format: FORMAT,
            cluster: format!("{:016x}", self.cluster),
            partitions: self.partitions,
            segment_bytes: self.segment_bytes,
            cores: self.cores,
            layout: self.layout,
            begun: self.begun,
        };
        let text = toml::to_string(&stored).expect("plain fields are always TOML");
        disk::write_file_atomically(&self.directory.join(FILE), text.as_bytes())
            .map_err(|error| unwritable(&self.directory, &error))
    }

    /// Where the journal of a core is.
    #[must_use]
    pub fn journal_directory(&self, core: u16) -> PathBuf {
        self.layout_directory().join(format!("core-{core:04}"))
    }
}

/// Makes a directory and its parent, durably.
fn make(directory: &Path) -> std::io::Result<()> {
    for directory in directory.parent().into_iter().chain([directory]) {
        if !directory.exists() {
            disk::create_directory(directory)?;
        }
    }
    Ok(())
}

fn unwritable(directory: &Path, error: &std::io::Error) -> BootError {
    let sentence = format!(
        "cannot write to the data directory {}: {error}; choose another with --data-dir",
        directory.display()
    );
    BootError::new(BootErrorKind::Environment, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_1_is_read_and_written_as_it_was() {
        let golden = include_str!("../../../tests/golden/ringpost_1.toml");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE);
        std::fs::write(&path, golden).expect("it is writable");
        let identity = Identity::read(directory.path()).expect("it is one");
        let wanted = Identity {
            directory: directory.path().to_owned(),
            cluster: 0x0102_0304_0506_0708,
            partitions: 64,
            segment_bytes: 32 << 20,
            cores: 2,
            layout: 3,
            begun: false,
        };
        assert_eq!(identity, wanted);
        std::fs::remove_file(&path).expect("it is there");
        identity.write().expect("it is writable");
        let written = std::fs::read_to_string(&path).expect("it was written");
        assert_eq!(written, golden);
        let journal = identity.journal_directory(1);
        assert_eq!(journal, directory.path().join("layout-0003/core-0001"));
    }

    #[test]
    fn what_cannot_be_read_is_a_sentence() {
        let golden = include_str!("../../../tests/golden/ringpost_1.toml");
        let directory = tempfile::tempdir().expect("a directory");
        for (from, to, words) in [
            ("format = 1", "format = 2", "newer than this version"),
            ("format = 1", "format = 0", "older than this version"),
            ("cores = 2", "cores = 0", "a count is zero"),
            (
                "cluster = \"01",
                "cluster = \"xy",
                "not what a broker wrote",
            ),
            ("layout", "lay out", "not what a broker wrote"),
        ] {
            let text = golden.replace(from, to);
            std::fs::write(directory.path().join(FILE), text).expect("it is writable");
            let error = Identity::read(directory.path()).expect_err(to).to_string();
            assert!(error.contains(words), "{to}: {error}");
            assert!(
                !error.contains('\n'),
                "{to}: one sentence, on one line: {error}"
            );
        }
    }
}
