//! Everything that can happen to a core. Does not know where an input came from.

use crate::data::session::Handover;
use crate::ids::{BufferId, ConnId, OpId, SlotId};
use crate::mesh::MeshMessage;
use ringpost_wire::Code;
use ringpost_wire::ids::CoreId;

/// Why an I/O operation failed. Nothing is ever retried.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoFault {
    /// The device or file system said so; the number is the operating system's.
    Error(i32),
    /// Fewer bytes than asked for were written or read.
    Short {
        /// Bytes done.
        done: u32,
    },
    /// No space left for a new file.
    NoSpace,
}

impl core::fmt::Display for IoFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Error(number) => write!(f, "error {number} of the operating system"),
            Self::Short { done } => write!(f, "only {done} bytes"),
            Self::NoSpace => f.write_str("no space"),
        }
    }
}

/// The first bytes of a journal file, read at start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotHead {
    /// The file.
    pub slot: SlotId,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Its first 4 KiB, or fewer if the file is shorter.
    pub head: Vec<u8>,
}

/// What a file operation answers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FileReply {
    /// Done, nothing to say.
    Done,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A connection was accepted.
    Opened {
        /// Its number.
        conn: ConnId,
    },
    /// A connection was accepted where AMQP 0-9-1 is spoken. Its [`Input::Frames`] are those of AMQP, the
    /// first of them the protocol header.
    OpenedAmqp {
        /// Its number.
        conn: ConnId,
        /// The peer is on this machine.
        is_local: bool,
    },
    /// A connection was handed over by another core, after [`crate::Effect::Handover`].
    Adopted {
        /// Its number on this core.
        conn: ConnId,
        /// What the other core knew of it.
        session: Box<Handover>,
    },
    /// A connection that was just opened is one more than there may be.
    Unwanted {
        /// The connection.
        conn: ConnId,
    },
    /// Whole frames arrived; every header is checked again.
    Frames {
        /// The connection.
        conn: ConnId,
        /// One or more whole frames.
        bytes: &'a [u8],
    },
    /// Bytes arrived that are no frame.
    Malformed {
        /// The connection.
        conn: ConnId,
        /// Why.
        code: Code,
    },
    /// The peer hung up or the socket failed.
    Closed {
        /// The connection.
        conn: ConnId,
    },
    /// Bytes of earlier send effects were taken by the socket.
    Sent {
        /// The connection.
        conn: ConnId,
        /// How many.
        bytes: u32,
    },
    /// A write or read effect is done: all of its bytes, or a fault.
    Io {
        /// Which.
        op: OpId,
        /// The buffer it used.
        buffer: BufferId,
        /// How it ended.
        result: Result<(), IoFault>,
    },
    /// A file effect is done.
    File {
        /// Which.
        op: OpId,
        /// How it ended.
        result: Result<FileReply, IoFault>,
    },
    /// A message from another core.
    Mesh {
        /// The other core.
        from: CoreId,
        /// What it says.
        message: MeshMessage,
    },
    /// Time has passed; also carries the wall clock.
    Tick {
        /// Wall clock in µs since 1970.
        wall_us: u64,
    },
    /// Every input of this turn was given: seal, confirm, dispatch.
    TurnEnd,
    /// The broker is going down: refuse new work, settle what is there, write a checkpoint.
    Shutdown,
}

/// What was found in a core's journal directory.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Every slot file.
    pub slots: Vec<SlotHead>,
    /// The content of every checkpoint file.
    pub checkpoints: Vec<Vec<u8>>,
}
