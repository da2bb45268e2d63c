//! The flight recorder of a core: what it was given last and a hash of what it wanted, in memory that
//! is laid out once. Does not keep what messages say, and does not know files: whoever writes a record
//! down is handed a copy of it.
//!
//! A turn here is everything between two times that effects were performed, as for a twin
//! ([`crate::data::twin`]), and both know its effects by the same [`digest`].

use std::cell::RefCell;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use ringpost_engine::effect::{Buffers, Effect, Effects};
use ringpost_engine::input::Input;
use ringpost_engine::{ConnId, Mono};
use ringpost_wire::checksum::crc32c;

/// Entries kept for each turn that shall be kept: an input takes one, and so do the effects. A core
/// with more inputs a turn keeps fewer turns.
pub const ENTRIES_PER_TURN: u32 = 16;
/// Bytes of an entry.
pub const ENTRY_BYTES: u32 = size_of::<Entry>() as u32;

const _: () = assert!(ENTRY_BYTES == 32);

/// A hash that is the same in every process: a multiplication a word, a checksum a slice.
#[derive(Clone, Copy, Default, Debug)]
struct Digest(u64);

impl Digest {
    fn word(&mut self, word: u64) {
        // The multiplier of rustc's own tables: odd, and its bits look random.
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.word(u64::from(crc32c(bytes)) | (bytes.len() as u64) << 32);
    }

    fn write_u8(&mut self, number: u8) {
        self.word(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.word(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.word(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.word(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.word(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn hash_of(what: &impl Hash) -> u64 {
    let mut digest = Digest::default();
    what.hash(&mut digest);
    digest.finish()
}

/// What two turns that are the same have the same: the effects, and the bytes that they name.
#[must_use]
pub fn digest(effects: &Effects, buffers: &impl Buffers) -> u64 {
    let mut digest = Digest::default();
    digest.write(&effects.bytes);
    for effect in &effects.list {
        effect.hash(&mut digest);
        if let Effect::Write { buffer, range, .. } | Effect::SendBuffer { buffer, range, .. } =
            effect
        {
            digest.write(buffers.bytes(*buffer, range.clone()));
        }
    }
    digest.finish()
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Opened,
    OpenedAmqp,
    Adopted,
    Unwanted,
    Frames,
    Malformed,
    Closed,
    Sent,
    Done,
    Failed,
    File,
    Mesh,
    Tick,
    TurnEnd,
    Shutdown,
    /// Not an input: what the turn wanted.
    Effects,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::OpenedAmqp => "opened_amqp",
            Self::Adopted => "adopted",
            Self::Unwanted => "unwanted",
            Self::Frames => "frames",
            Self::Malformed => "malformed",
            Self::Closed => "closed",
            Self::Sent => "sent",
            Self::Done => "io-done",
            Self::Failed => "io-failed",
            Self::File => "file-done",
            Self::Mesh => "mesh",
            Self::Tick => "tick",
            Self::TurnEnd => "turn-end",
            Self::Shutdown => "shutdown",
            Self::Effects => "effects",
        }
    }

    /// What the subject of an entry is.
    const fn subject(self) -> &'static str {
        match self {
            Self::Opened
            | Self::OpenedAmqp
            | Self::Adopted
            | Self::Unwanted
            | Self::Frames
            | Self::Malformed
            | Self::Closed
            | Self::Sent => "connection",
            Self::Done | Self::Failed | Self::File => "operation",
            Self::Mesh => "core",
            Self::Tick => "wall-us",
            Self::TurnEnd | Self::Shutdown => "-",
            Self::Effects => "turn",
        }
    }
}

/// One input, or the effects of a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    now: Mono,
    /// The connection, operation, core, time or turn; see [`Kind::subject`].
    subject: u64,
    /// Of what it says, without time and subject.
    hash: u64,
    /// Bytes of it, or the number of effects.
    length: u32,
    kind: Kind,
}

/// The last entries of a core.
#[derive(Clone, Debug)]
pub struct Flight {
    entries: Vec<Entry>,
    /// Where the oldest entry is, once there are as many as there may be.
    oldest: usize,
    entries_max: usize,
    /// Turns recorded.
    turns: u64,
    now: Mono,
}

impl Flight {
    /// Room for so many turns.
    ///
    /// # Panics
    /// If that is none.
    #[must_use]
    pub fn new(turns_max: u32) -> Self {
        assert!(turns_max > 0, "a recorder of nothing is none at all");
        let entries_max = turns_max as usize * ENTRIES_PER_TURN as usize;
        Self {
            entries: Vec::with_capacity(entries_max),
            oldest: 0,
            entries_max,
            turns: 0,
            now: Mono::default(),
        }
    }

    fn push(&mut self, entry: Entry) {
        if self.entries.len() < self.entries_max {
            self.entries.push(entry);
            return;
        }
        self.entries[self.oldest] = entry;
        self.oldest += 1;
        if self.oldest == self.entries_max {
            self.oldest = 0;
        }
    }

    /// A core is about to be given an input.
    pub fn given(&mut self, now: Mono, input: &Input<'_>) {
        let of_conn = |kind, conn: &ConnId, length, hash| (kind, conn.0, length, hash);
        let (kind, subject, length, hash) = match input {
            Input::Opened { conn } => of_conn(Kind::Opened, conn, 0, 0),
            Input::OpenedAmqp { conn, is_local } => {
                of_conn(Kind::OpenedAmqp, conn, 0, hash_of(is_local))
            }
            Input::Adopted { conn, session } => of_conn(Kind::Adopted, conn, 0, hash_of(session)),
            Input::Unwanted { conn } => of_conn(Kind::Unwanted, conn, 0, 0),
            Input::Frames { conn, bytes } => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                of_conn(Kind::Frames, conn, length, crc32c(bytes).into())
            }
            Input::Malformed { conn, code } => of_conn(Kind::Malformed, conn, 0, hash_of(code)),
            Input::Closed { conn } => of_conn(Kind::Closed, conn, 0, 0),
            Input::Sent { conn, bytes } => of_conn(Kind::Sent, conn, *bytes, 0),
            Input::Io { op, buffer, result } => {
                let kind = if result.is_ok() {
                    Kind::Done
                } else {
                    Kind::Failed
                };
                (kind, op.0, 0, hash_of(&(buffer, result)))
            }
            Input::File { op, result } => (Kind::File, op.0, 0, hash_of(result)),
            Input::Mesh { from, message } => (Kind::Mesh, from.0.into(), 0, hash_of(message)),
            Input::Tick { wall_us } => (Kind::Tick, *wall_us, 0, 0),
            Input::TurnEnd => (Kind::TurnEnd, 0, 0, 0),
            Input::Shutdown => (Kind::Shutdown, 0, 0, 0),
        };
        self.now = now;
        self.push(Entry {
            now,
            subject,
            hash,
            length,
            kind,
        });
    }

    /// What the inputs since the last time led to is about to be performed.
    pub fn performing(&mut self, effects: &Effects, digest: u64) {
        self.push(Entry {
            now: self.now,
            subject: self.turns,
            hash: digest,
            length: u32::try_from(effects.list.len()).unwrap_or(u32::MAX),
            kind: Kind::Effects,
        });
        self.turns += 1;
    }

    /// The entries, oldest first, as lines of `nanoseconds before the last, kind, subject and its
    /// number, length, hash`.
    #[must_use]
    pub fn text(&self) -> String {
        let (newer, older) = self.entries.split_at(self.oldest);
        let mut text = String::with_capacity(80 * self.entries.len());
        for entry in older.iter().chain(newer) {
            let ago_ns = self.now.0.saturating_sub(entry.now.0);
            let _ = writeln!(
                text,
                "-{ago_ns} {} {} {} length {} hash {:016x}",
                entry.kind.word(),
                entry.kind.subject(),
                entry.subject,
                entry.length,
                entry.hash
            ); // writing to a String cannot fail
        }
        text
    }
}

/// A record that shall be written down, and why.
#[derive(Debug)]
pub struct Crash {
    /// The core.
    pub core: u16,
    /// What happened to it.
    pub reason: String,
    /// Its record.
    pub flight: Flight,
}

/// The recorder of a core that runs.
#[derive(Clone, Debug)]
pub struct FlightRecorder {
    core: u16,
    /// Shared with whoever looks when the core's thread panics, on the same thread; borrowed for the
    /// length of a method here.
    flight: Rc<RefCell<Flight>>,
    /// Takes the record when the journal fails; a core has one fail-stop in its life.
    crashes: flume::Sender<Crash>,
}

impl FlightRecorder {
    /// A recorder with room for so many turns.
    #[must_use]
    pub fn new(core: u16, turns_max: u32, crashes: flume::Sender<Crash>) -> Self {
        Self {
            core,
            flight: Rc::new(RefCell::new(Flight::new(turns_max))),
            crashes,
        }
    }

    /// The record as it is now; `None` while it is being written to.
    #[must_use]
    pub fn crash(&self, reason: String) -> Option<Crash> {
        Some(Crash {
            core: self.core,
            reason,
            flight: self.flight.try_borrow().ok()?.clone(),
        })
    }

    /// The core is about to be given an input.
    pub fn given(&self, now: Mono, input: &Input<'_>) {
        self.flight.borrow_mut().given(now, input);
    }

    /// What the inputs since the last time led to is about to be performed. If the journal has
    /// failed, the record leaves.
    pub fn performing(&self, effects: &Effects, digest: u64) {
        self.flight.borrow_mut().performing(effects, digest);
        for effect in &effects.list {
            if let Effect::FailStop { reason, .. } = effect
                && let Some(crash) = self.crash(reason.clone())
            {
                // Whoever writes it may have ended, or have enough to do.
                let _ = self.crashes.try_send(crash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::buffers::BufferPool;
    use ringpost_engine::{BufferId, IoFault, OpId};

    fn subjects(flight: &Flight) -> Vec<u64> {
        let text = flight.text();
        let lines = text.lines().map(|line| line.split(' ').nth(3));
        lines
            .map(|word| word.expect("a subject").parse().expect("digits"))
            .collect()
    }

    #[test]
    fn the_oldest_entries_go_first_and_it_never_grows() {
        let mut flight = Flight::new(1);
        let most = u64::from(ENTRIES_PER_TURN);
        let room = flight.entries.capacity();
        for number in 0..5 * most {
            let conn = ConnId(number);
            flight.given(Mono(number), &Input::Opened { conn });
            let kept: Vec<u64> = ((number + 1).saturating_sub(most)..=number).collect();
            assert_eq!(subjects(&flight), kept);
        }
        assert_eq!(flight.entries.capacity(), room);
    }

    #[test]
    fn inputs_that_differ_have_entries_that_differ() {
        let conn = ConnId(3);
        let op = OpId(3);
        let buffer = BufferId(0);
        let inputs = [
            Input::Opened { conn },
            Input::Closed { conn },
            Input::Frames {
                conn,
                bytes: b"abc",
            },
            Input::Frames {
                conn,
                bytes: b"abd",
            },
            Input::Sent { conn, bytes: 3 },
            Input::Sent { conn, bytes: 4 },
            Input::Io {
                op,
                buffer,
                result: Ok(()),
            },
            Input::Io {
                op,
                buffer,
                result: Err(IoFault::Error(5)),
            },
            Input::Io {
                op,
                buffer,
                result: Err(IoFault::Short { done: 5 }),
            },
            Input::Tick { wall_us: 3 },
            Input::TurnEnd,
            Input::Shutdown,
        ];
        let mut flight = Flight::new(1);
        for input in &inputs {
            flight.given(Mono(7), input);
        }
        let text = flight.text();
        let lines: std::collections::BTreeSet<&str> = text.lines().collect();
        assert_eq!(lines.len(), inputs.len(), "{text}");
    }

    #[test]
    fn effects_that_differ_have_digests_that_differ() {
        let pool = BufferPool::new(1, 4096).expect("memory");
        let of = |list: Vec<Effect>, bytes: &[u8]| {
            let bytes = bytes.to_vec();
            let effects = Effects {
                list,
                bytes,
                ..Effects::default()
            };
            digest(&effects, &pool)
        };
        let send = |conn, end| Effect::Send {
            conn: ConnId(conn),
            range: 0..end,
        };
        let digests = [
            of(vec![], b""),
            of(vec![send(1, 2)], b"ab"),
            of(vec![send(1, 2)], b"ac"),
            of(vec![send(2, 2)], b"ab"),
            of(vec![send(1, 1)], b"ab"),
            of(vec![send(1, 2), send(1, 2)], b"ab"),
            of(vec![Effect::Close { conn: ConnId(1) }], b""),
        ];
        for (number, digest) in digests.iter().enumerate() {
            assert!(!digests[..number].contains(digest), "digest {number}");
        }
        assert_eq!(of(vec![send(1, 2)], b"ab"), digests[1]);
    }
}
