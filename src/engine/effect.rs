//! Everything a core can want done, and the memory it is lent. Does not know how either is done.

use std::ops::Range;

use crate::data::session::Handover;
use crate::data::stages::{Sample, Stage};
use crate::data::trace::Traced;
use crate::ids::{BufferId, ConnId, OpId, SlotId};
use crate::mesh::MeshMessage;
use ringpost_wire::ids::CoreId;

/// The shell's pool of equal, aligned buffers.
pub trait Buffers {
    /// Bytes of every buffer, a multiple of 4096.
    fn buffer_bytes(&self) -> u32;
    /// Buffers free now.
    fn available(&self) -> usize;
    /// A free buffer, wholly open, held once by the engine until [`Effect::Release`].
    fn acquire(&mut self) -> Option<BufferId>;
    /// Bytes of a held buffer.
    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8];
    /// The open tail of a held buffer, from the sealed watermark or `from`, whichever is higher, to
    /// its end. `from` below the watermark is a bug and panics.
    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8];
    /// Raises the sealed watermark: bytes below `upto` are never changed again while it is held.
    fn seal(&mut self, buffer: BufferId, upto: u32);
}

/// A slow, rare operation on files, done off the core. Every one is durable when it is answered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FileOp {
    /// Create the slot's file, write it in full with zeros, sync it and its directory.
    CreateSlot {
        /// The file.
        slot: SlotId,
        /// Bytes of the file.
        bytes: u64,
    },
    /// Remove the slot's file and sync the directory.
    RemoveSlot {
        /// The file.
        slot: SlotId,
    },
    /// Write a checkpoint: a new file, synced, renamed over the older of the two generations.
    WriteCheckpoint {
        /// Counts up; even and odd numbers are the two generations on disk.
        generation: u64,
        /// The whole content.
        content: Vec<u8>,
    },
}

/// Something to be done, in the order given.
#[derive(Hash, Debug)]
pub enum Effect {
    /// Send bytes of [`Effects::bytes`].
    Send {
        /// The connection.
        conn: ConnId,
        /// Range in the arena.
        range: Range<u32>,
    },
    /// Send bytes of a sealed part of a buffer; the shell holds the buffer until they are sent.
    SendBuffer {
        /// The connection.
        conn: ConnId,
        /// The buffer.
        buffer: BufferId,
        /// Range in the buffer.
        range: Range<u32>,
    },
    /// Send what was asked for before, then hang up. The engine has forgotten the connection.
    Close {
        /// The connection.
        conn: ConnId,
    },
    /// Give the socket, and bytes received but not yet stepped, to another core.
    Handover {
        /// The connection.
        conn: ConnId,
        /// The other core.
        to: CoreId,
        /// What this core knows of it.
        session: Box<Handover>,
    },
    /// Write a sealed range of a buffer to a slot, synced; answered by [`crate::Input::Io`].
    Write {
        /// Names the answer.
        op: OpId,
        /// The file.
        slot: SlotId,
        /// Byte position in the file, a multiple of 4096.
        position: u32,
        /// The buffer.
        buffer: BufferId,
        /// Range in the buffer, both ends multiples of 4096.
        range: Range<u32>,
    },
    /// Read from a slot into an open buffer; answered by [`crate::Input::Io`].
    Read {
        /// Names the answer.
        op: OpId,
        /// The file.
        slot: SlotId,
        /// Byte position in the file, a multiple of 4096.
        position: u32,
        /// The buffer.
        buffer: BufferId,
        /// Range in the buffer, both ends multiples of 4096.
        range: Range<u32>,
    },
    /// The engine holds this buffer no longer.
    Release {
        /// The buffer.
        buffer: BufferId,
    },
    /// Do something slow with files; answered by [`crate::Input::File`].
    File {
        /// Names the answer.
        op: OpId,
        /// What.
        what: FileOp,
    },
    /// Give a message to another core.
    Mesh {
        /// The other core.
        to: CoreId,
        /// What to say.
        message: MeshMessage,
    },
    /// The journal has failed and says why; nothing durable is confirmed or delivered any more.
    FailStop {
        /// What has failed.
        cause: FailCause,
        /// For people.
        reason: String,
    },
    /// Something an operator should know, for the log.
    Report {
        /// How bad.
        severity: Severity,
        /// For people: what, with which values.
        text: String,
    },
}

/// What a journal fails of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FailCause {
    /// The disk answered with an error, or wrongly.
    Disk,
    /// What is on the disk is damaged, or not for this version: the next start ends like this one.
    Content,
}

/// How bad a report is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Severity {
    /// Worth a line.
    Info,
    /// Somebody should look.
    Warning,
    /// Somebody must act.
    Error,
}

/// What one or more steps want done: a list and the arena of bytes to send.
#[derive(Default, Debug)]
pub struct Effects {
    /// In the order in which they must be done.
    pub list: Vec<Effect>,
    /// Bytes that [`Effect::Send`] names; valid until [`Effects::clear`].
    pub bytes: Vec<u8>,
    /// How long messages took, for whoever keeps histograms; the shell may ignore it.
    pub samples: Vec<Sample>,
    /// What happened to messages that are followed, for whoever asked.
    pub traced: Vec<Traced>,
}

impl Effects {
    /// Asks for an effect.
    pub fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// Runs `write` on the arena and sends what it appended; a send directly after another one to
    /// the same connection extends it. Returns the bytes appended.
    pub fn send(&mut self, conn: ConnId, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let start = self.bytes.len() as u32;
        write(&mut self.bytes);
        let end = u32::try_from(self.bytes.len()).expect("a turn's sends are bounded");
        if end > start {
            if let Some(Effect::Send { conn: last, range }) = self.list.last_mut()
                && *last == conn
                && range.end == start
            {
                range.end = end;
            } else {
                self.list.push(Effect::Send {
                    conn,
                    range: start..end,
                });
            }
        }
        end - start
    }

    /// So many messages took so long.
    pub(crate) fn sample(&mut self, stage: Stage, ns: u64, count: u32) {
        self.samples.push(Sample { stage, ns, count });
    }

    /// Forgets everything; keeps the memory.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes.clear();
        self.samples.clear();
        self.traced.clear();
    }
}
