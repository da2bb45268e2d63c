//! What can end a run. Does not know who reports it.

use std::fmt;
use std::io;

use ringpost_wire::Code;

/// The outcome of what may fail here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a run failed.
#[derive(Debug)]
pub enum Error {
    /// A socket or a thread failed.
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The broker refused or ended something.
    Refused {
        /// What was asked.
        what: &'static str,
        /// The broker's code; a peer has none of ours.
        code: Option<Code>,
        /// The broker's words.
        reason: String,
    },
    /// The broker sent what the protocol does not allow here.
    Protocol(String),
    /// The plan cannot be run.
    Plan(String),
    /// A file, or what another program said, is not what it should be.
    Data(String),
    /// The broker did not do in time what it must.
    Stalled(String),
}

impl Error {
    /// Names what failed.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { what, source } => write!(f, "{what}: {source}"),
            Error::Refused { what, code, reason } => match code {
                Some(code) => write!(f, "the broker refused {what}: {code:?}, {reason}"),
                None => write!(f, "the broker refused {what}: {reason}"),
            },
            Error::Protocol(text) => write!(f, "unexpected from the broker: {text}"),
            Error::Plan(text) | Error::Stalled(text) | Error::Data(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}
