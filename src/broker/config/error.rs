//! What can be wrong with settings, in sentences that say what to write instead. Does not look for it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Config;
use super::value::{Unfit, cpu_list_text};

/// Where the text of a setting came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// This flag, without dashes in front.
    Flag(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("by default"),
            Origin::File(path) => write!(f, "in {}", path.display()),
            Origin::Environment(variable) => write!(f, "in the environment variable {variable}"),
            Origin::Flag(flag) => write!(f, "in the flag --{flag}"),
        }
    }
}

/// Why there is no configuration; at least one error, and every one that could be found.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong with the configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    FileUnreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML.
    FileMalformed {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The byte in it, from 1.
        column: usize,
        /// What the parser says.
        error: String,
    },
    /// No setting has this key.
    KeyUnknown {
        /// The key as written.
        key: String,
        /// Where.
        origin: Origin,
    },
    /// The value is not of the setting's form, or out of its bounds.
    Unfit {
        /// The setting.
        key: &'static str,
        /// Its text.
        value: String,
        /// From where.
        origin: Origin,
        /// Half a sentence: what it must be.
        why: Unfit,
    },
    /// An address that other machines can reach.
    ListenInsecure {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// Two settings ask for the same port.
    PortShared {
        /// Which.
        keys: (&'static str, &'static str),
        /// Both have this address.
        address: SocketAddr,
    },
    /// CPUs that the process may not use.
    CpusForeign {
        /// Those of the setting.
        foreign: Vec<u32>,
        /// Those that there are for the process.
        usable: Vec<usize>,
    },
    /// More cores than partitions.
    CoresWithoutPartition {
        /// Cores.
        cores: u16,
        /// Partitions.
        partitions: u32,
    },
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FileUnreadable { file, error } => {
                write!(
                    f,
                    "cannot read the configuration file {}: {error}",
                    file.display()
                )
            }
            Self::FileMalformed {
                file,
                line,
                column,
                error,
            } => write!(
                f,
                "{} is not valid TOML in line {line}, column {column}: {error}",
                file.display()
            ),
            Self::KeyUnknown { key, origin } => {
                write!(f, "unknown setting `{key}` {origin}")?;
                match nearest(key) {
                    Some(name) => write!(f, "; did you mean `{name}`?"),
                    None => f.write_str("; `ringpost serve --help` lists every setting"),
                }
            }
            Self::Unfit {
                key,
                value,
                origin,
                why,
            } => {
                write!(f, "`{key}` is \"{value}\" {origin}: it {}", why.0)
            }
            Self::ListenInsecure { key, address } => write!(
                f,
                "`{key}` is {address}, which other machines can reach, and this version has no \
                 log-in and no encryption: use a loopback address such as 127.0.0.1:{}, or add \
                 --insecure-listen if the network itself keeps strangers out",
                address.port()
            ),
            Self::PortShared { keys, address } => {
                let (one, other) = keys;
                write!(
                    f,
                    "`{one}` and `{other}` are both {address}: give one another port"
                )
            }
            Self::CpusForeign { foreign, usable } => {
                let foreign: Vec<usize> = foreign.iter().map(|cpu| *cpu as usize).collect();
                write!(
                    f,
                    "`cpus` names {}, and the CPUs that this process may use are {}: name some of \
                     these, or widen its set (taskset -pc, AllowedCPUs= in the systemd unit)",
                    cpu_list_text(&foreign),
                    cpu_list_text(usable)
                )
            }
            Self::CoresWithoutPartition { cores, partitions } => write!(
                f,
                "`cores` is {cores} and `partitions` only {partitions}: a core without a partition \
                 has no work, so lower `cores`, or raise `partitions` for a new data directory"
            ),
        }
    }
}

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (idx, error) in self.0.iter().enumerate() {
            if idx > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The setting that `key` may have been meant to be: two edits away at most.
fn nearest(key: &str) -> Option<&'static str> {
    const EDITS_MAX: usize = 2;
    let key = key.replace('-', "_").to_ascii_lowercase();
    Config::SETTINGS
        .iter()
        .map(|setting| (edits_between(&key, setting.name), setting.name))
        .min()
        .filter(|(edits, _)| *edits <= EDITS_MAX)
        .map(|(_, name)| name)
}

/// The Levenshtein distance in bytes, over texts cut at 64 bytes.
fn edits_between(left: &str, right: &str) -> usize {
    const BYTES_MAX: usize = 64;
    let cut = |text: &str| text.bytes().take(BYTES_MAX).collect::<Vec<u8>>();
    let (left, right) = (cut(left), cut(right));
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, a) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (column, b) in right.iter().enumerate() {
            let kept = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = kept.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
