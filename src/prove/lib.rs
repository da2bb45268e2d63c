//! The real broker, started, loaded, killed and started again, and its history judged by
//! `ringpost-check`. Does not know the broker's insides: only its command line, its log and the
//! wire.
//!
//! | module | what it is |
//! |---|---|
//! | [`kill`] | cycles of SIGKILL under load and during recovery, or of SIGTERM |
//! | [`rot`] | torn writes at the end of a journal, and bits that rot |
//! | [`broker`], [`tool`] | the program as a process, and other programs |
//! | [`scene`], [`worker`], [`producer`], [`consumer`], [`drain`], [`link`] | the load, by the wire alone |
//! | [`history`], [`offline`] | what was done, seen and found |
//!
//! A run is planned from a seed, but processes are not deterministic: a failure prints what broke
//! and where its history and the broker's log are kept, not how to see it again.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod broker;
pub mod consumer;
pub mod drain;
pub mod history;
pub mod kill;
pub mod link;
pub mod offline;
pub mod producer;
pub mod random;
pub mod rot;
pub mod scene;
pub mod tool;
pub mod worker;

/// What a run ends with if it cannot go on or something is wrong: a text for people.
pub type Outcome<T> = Result<T, String>;

/// Why a run ended before it was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// A promise is broken.
    Broken(String),
    /// The run could not go on, which says nothing of promises.
    Unable(String),
}

impl From<String> for Stopped {
    fn from(why: String) -> Self {
        Self::Unable(why)
    }
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(why) => write!(f, "a promise is broken: {why}"),
            Self::Unable(why) => f.write_str(why),
        }
    }
}

impl From<Stopped> for String {
    fn from(stopped: Stopped) -> Self {
        stopped.to_string()
    }
}
