//! TO BE REPLACED by the start of the real broker: only the shape that the command line relies on.

use std::net::SocketAddr;

use crate::config::Config;

/// What a failure to start is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootErrorKind {
    /// Settings that do not fit each other or the machine.
    Configuration,
    /// The machine lacks something: io_uring, memory to lock, a free port, a writable directory.
    Environment,
    /// The data directory is damaged.
    Damage,
    /// Anything else.
    Other,
}

/// Why the broker did not start.
#[derive(Debug)]
pub struct BootError {
    kind: BootErrorKind,
    sentence: String,
}

impl BootError {
    /// What it is about.
    #[must_use]
    pub fn kind(&self) -> BootErrorKind {
        self.kind
    }
}

impl std::fmt::Display for BootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for BootError {}

/// A broker that runs.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    admin_addr: SocketAddr,
}

impl Running {
    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where metrics and health are served.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Drains, writes what there is, and ends.
    pub fn shutdown(self) {}
}

/// Starts the broker.
///
/// # Errors
/// Always, until it is replaced.
pub fn start(config: Config) -> Result<Running, BootError> {
    drop(config);
    let sentence = "this build has no cores yet".to_owned();
    Err(BootError {
        kind: BootErrorKind::Other,
        sentence,
    })
}
