//! Why a broker does not start. Does not know how one is started.

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
    /// A failure of this kind, as a sentence that says what to do.
    pub(crate) fn new(kind: BootErrorKind, sentence: String) -> Self {
        Self { kind, sentence }
    }

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
