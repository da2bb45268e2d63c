//! AMQP 0-9-1 connections of one core: each is a native session with an interpreter before it, which
//! turns what the client says into native frames and what the core says to it into AMQP (ADR 0024).
//! Does not know queues: `core/amqp.rs` steps the frames.
//!
//! ```text
//! client ── AMQP ──► Session::take ── native frames ──► the core, as from any client
//! client ◄── AMQP ── Session::hear ◄── native frames ── its effects
//! ```

mod arguments;
mod channel;
mod deliver;
mod fault;
mod publish;
mod requests;
mod session;
mod settle;

pub(crate) use session::{Session, Talk};

use crate::data::flow::Flow;
use crate::ids::{ConnId, Mono};

/// How often connections are looked over that may wait for themselves, in ms.
const LOOK_MS: u64 = 250;

/// The interpreters of this core's AMQP connections.
#[derive(Default)]
pub(crate) struct Amqp {
    /// By the low 32 bits of their numbers, as sessions are.
    sessions: Vec<Option<Box<Session>>>,
    count: u32,
    /// Those that have something to do: who waited, and may go on now.
    pub(crate) busy: Vec<ConnId>,
    /// When those that wait for themselves were looked for.
    looked: Mono,
    /// Those that wait for their sockets to take what they were told.
    pub(crate) deaf: Vec<ConnId>,
    /// Bytes of contents that are not whole yet.
    pub(crate) gathering: u64,
    /// Bytes that were received and wait for the core, not for their clients.
    stashed: u64,
    /// With so many of those nobody is read.
    pub(crate) stashed_max: u64,

    // Scratch, kept for its memory.
    pub(crate) native: Vec<u8>,
    pub(crate) heard: Vec<u8>,
    pub(crate) tail: Vec<crate::Effect>,
}

impl Amqp {
    fn idx(conn: ConnId) -> usize {
        (conn.0 & u64::from(u32::MAX)) as usize
    }

    /// Whether there is none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a connection speaks AMQP.
    pub(crate) fn has(&self, conn: ConnId) -> bool {
        self.get(conn).is_some()
    }

    fn get(&self, conn: ConnId) -> Option<&Session> {
        let session = self.sessions.get(Self::idx(conn))?.as_deref();
        session.filter(|session| session.conn == conn)
    }

    /// Whether more of a connection may be read: what it sent is not waiting.
    pub(crate) fn is_read(&self, conn: ConnId) -> bool {
        let session = self.get(conn);
        session.is_none_or(|session| session.is_read() && self.stashed <= self.stashed_max)
    }

    /// Adds the interpreter of a connection.
    pub(crate) fn insert(&mut self, session: Session) {
        let idx = Self::idx(session.conn);
        if self.sessions.len() <= idx {
            self.sessions.resize_with(idx + 1, || None);
        }
        self.sessions[idx] = Some(Box::new(session));
        self.count += 1;
    }

    /// Takes an interpreter out, to be put back by [`Amqp::put`].
    pub(crate) fn take(&mut self, conn: ConnId) -> Option<Box<Session>> {
        self.get(conn)?;
        self.sessions[Self::idx(conn)].take()
    }

    /// Puts back what was taken out.
    pub(crate) fn put(&mut self, mut session: Box<Session>) {
        let idx = Self::idx(session.conn);
        self.stashed -= session.counted;
        session.counted = session.stashed();
        self.stashed += session.counted;
        self.sessions[idx] = Some(session);
    }

    /// Forgets a connection.
    pub(crate) fn remove(&mut self, conn: ConnId) {
        if let Some(session) = self.take(conn) {
            self.count -= 1;
            self.gathering -= session.gathered();
            self.stashed -= session.counted;
        }
    }

    /// A connection that seems to wait for itself; looked for now and then.
    pub(crate) fn waits_for_itself(&mut self, now: Mono) -> Option<ConnId> {
        if now.ms_since(self.looked) < LOOK_MS {
            return None;
        }
        self.looked = now;
        let mut sessions = self.sessions.iter().flatten();
        let found = sessions.find(|session| session.waits_for_itself(now));
        found.map(|session| session.conn)
    }

    /// Nobody is silent who need not speak, or who is not listened to.
    pub(crate) fn excuse(&self, flow: &mut Flow) {
        for session in self.sessions.iter().flatten() {
            if session.is_excused()
                && let Some(native) = flow.sessions.get_mut(session.conn)
            {
                native.heard = flow.now;
            }
        }
    }
}
