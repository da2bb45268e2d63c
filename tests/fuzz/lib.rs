//! Hostile bytes for everything that reads bytes. Each target is a function of its input that
//! panics if a promise is broken; coverage-guided fuzzing and the corpus test call the same ones.
//! Does not know how inputs are found.
//!
//! | target | the input is |
//! |---|---|
//! | `frames` | bytes as a socket gives them, or one frame whose checksums are made right |
//! | `envelope` | a message, or a batch of them, or a table of headers |
//! | `handshake` | what clients send to a whole engine from `Hello` on, and when the disk answers |
//! | `recovery` | what happened to the disk of an engine while it was off |
//! | `amqp` | bytes of AMQP, or what its clients send to a whole engine |
//! | `config` | a configuration file, environment variables and flags |
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod amqp;
pub mod client;
pub mod config;
pub mod envelope;
pub mod frames;
pub mod handshake;
pub mod input;
pub mod recovery;
pub mod seeds;
pub mod shell;

/// What is fuzzed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The cutter of frames, bodies and batches.
    Frames,
    /// Messages and headers tables.
    Envelope,
    /// An engine and its clients.
    Handshake,
    /// An engine and what is left of its disk.
    Recovery,
    /// Frames of AMQP, and an engine and its AMQP clients.
    Amqp,
    /// Settings.
    Config,
}

/// Bytes of an input that are looked at; the fuzzer is told the same figure.
pub const INPUT_BYTES_MAX: usize = 4096;

impl Target {
    /// Every target.
    pub const ALL: [Target; 6] = [
        Target::Frames,
        Target::Envelope,
        Target::Handshake,
        Target::Recovery,
        Target::Amqp,
        Target::Config,
    ];

    /// Its name: of its corpus, and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Envelope => "envelope",
            Self::Handshake => "handshake",
            Self::Recovery => "recovery",
            Self::Amqp => "amqp",
            Self::Config => "config",
        }
    }

    /// The target of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// Does to the code what one input says.
    ///
    /// # Panics
    /// If a promise is broken: that is what is looked for.
    pub fn run(self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(INPUT_BYTES_MAX)];
        match self {
            Self::Frames => frames::run(bytes),
            Self::Envelope => envelope::run(bytes),
            Self::Handshake => handshake::run(bytes),
            Self::Recovery => recovery::run(bytes),
            Self::Amqp => amqp::run(bytes),
            Self::Config => config::run(bytes),
        }
    }
}
