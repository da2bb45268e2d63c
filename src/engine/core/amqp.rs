//! Steps of a core that has AMQP connections: their interpreters' native frames are stepped as any
//! client's, and what the step says to those connections becomes AMQP before it leaves. Does not know
//! what either says.

use ringpost_wire::control::{Body, DECLARE_PASSIVE, QueueDeclare};
use ringpost_wire::ids::TenantId;

use super::Running;
use crate::data::amqp::{Session as Amqp, Talk};
use crate::data::flow::Flow;
use crate::data::session::Session;
use crate::effect::Buffers;
use crate::ids::{ConnId, Mono};
use crate::input::Input;
use crate::{Effect, Effects};

/// How far effects had come: what is behind it was said natively.
#[derive(Clone, Copy)]
struct Mark {
    list: usize,
    bytes: usize,
}

impl Mark {
    const fn of(effects: &Effects) -> Self {
        Self {
            list: effects.list.len(),
            bytes: effects.bytes.len(),
        }
    }
}

/// Whether a declaration asks for a new queue under a name that only the broker gives.
//= P-60
pub(super) fn is_reserved(flow: &Flow, conn: ConnId, tenant: TenantId, body: &[u8]) -> bool {
    let Ok(asked) = QueueDeclare::decode(body) else {
        return false;
    };
    let session = flow.sessions.get(conn);
    let is_named_by_broker = session.is_some_and(|session| session.is_nameless);
    asked.name.starts_with(b"amq.gen-")
        && asked.flags & DECLARE_PASSIVE == 0
        && !is_named_by_broker
        && flow.router.queue(tenant, asked.name).is_none()
}

impl Running {
    pub(super) fn open_amqp(&mut self, conn: ConnId, is_local: bool) {
        self.flow.stats.connections += 1;
        self.flow.sessions.insert(Session::new(conn, self.flow.now));
        self.amqp.stashed_max = self.flow.config.limits.hold_bytes_max / 4;
        self.amqp.insert(Amqp::new(conn, is_local));
    }

    /// [`Running::step`], for a core with AMQP connections.
    pub(super) fn step_with_amqp<B: Buffers>(
        &mut self,
        now: Mono,
        wall_us: u64,
        input: Input<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        match input {
            Input::Frames { conn, bytes } if self.amqp.has(conn) => {
                self.flow.now = now;
                self.flow.wall_us = wall_us;
                self.flow.journal.set_now(now);
                self.flow.journal.set_wall(wall_us);
                self.take_amqp(conn, bytes, buffers, effects);
                self.flow.tracer.take_told(&mut effects.traced);
            }
            input => {
                let gone = match &input {
                    Input::Closed { conn } => Some(*conn),
                    _ => None,
                };
                let mark = Mark::of(effects);
                self.step(now, wall_us, input, buffers, effects);
                self.interpret(mark, buffers, effects);
                if let Some(conn) = gone {
                    self.amqp.remove(conn);
                }
            }
        }
        if let Some(conn) = self.amqp.waits_for_itself(now) {
            self.give_up(conn, buffers, effects);
        }
        self.hear_the_deaf();
        while let Some(conn) = self.amqp.busy.pop() {
            self.resume_amqp(conn, buffers, effects);
        }
    }

    /// Frames of an AMQP client.
    fn take_amqp<B: Buffers>(
        &mut self,
        conn: ConnId,
        bytes: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        if let Some(session) = self.flow.sessions.get_mut(conn) {
            session.heard = self.flow.now;
        }
        let Some(mut session) = self.amqp.take(conn) else {
            return;
        };
        session.lend(&mut self.amqp.native);
        let mut talk = Talk {
            flow: &mut self.flow,
            effects,
            gathering: &mut self.amqp.gathering,
        };
        session.take(bytes, &mut talk);
        self.put_back(session, buffers, effects);
    }

    /// An AMQP connection may have something to go on with.
    fn resume_amqp<B: Buffers>(&mut self, conn: ConnId, buffers: &mut B, effects: &mut Effects) {
        let Some(mut session) = self.amqp.take(conn) else {
            return;
        };
        session.lend(&mut self.amqp.native);
        let mut talk = Talk {
            flow: &mut self.flow,
            effects,
            gathering: &mut self.amqp.gathering,
        };
        session.resume(&mut talk);
        self.put_back(session, buffers, effects);
    }

    /// Ends an AMQP connection that waits for itself (rulings 1).
    fn give_up<B: Buffers>(&mut self, conn: ConnId, buffers: &mut B, effects: &mut Effects) {
        let Some(mut session) = self.amqp.take(conn) else {
            return;
        };
        let mut talk = Talk {
            flow: &mut self.flow,
            effects,
            gathering: &mut self.amqp.gathering,
        };
        session.give_up(&mut talk);
        self.put_back(session, buffers, effects);
    }

    /// Puts an interpreter back and steps what it has to say.
    fn put_back<B: Buffers>(
        &mut self,
        mut session: Box<Amqp>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let conn = session.conn;
        let mut native = session.take_native();
        let must_end = session.must_end();
        if session.is_deaf() && !self.amqp.deaf.contains(&conn) {
            self.amqp.deaf.push(conn);
        }
        self.amqp.put(session);
        let mark = Mark::of(effects);
        if !native.is_empty() {
            self.frames(conn, &native, buffers, effects);
            native.clear();
        }
        self.amqp.native = native;
        self.interpret(mark, buffers, effects);
        if must_end && self.amqp.has(conn) {
            self.amqp.remove(conn);
            self.flow.forget_connection(conn, effects);
            effects.push(Effect::Close { conn });
        }
    }

    /// Turns what was said to AMQP connections since the mark into AMQP.
    fn interpret<B: Buffers>(&mut self, mark: Mark, buffers: &B, effects: &mut Effects) {
        let mut tail = std::mem::take(&mut self.amqp.tail);
        // What was said first may have been added to what was said before.
        if let Some(Effect::Send { conn, range }) = effects.list[..mark.list].last_mut()
            && range.end as usize > mark.bytes
            && self.amqp.has(*conn)
        {
            let said = mark.bytes as u32..range.end;
            range.end = said.start;
            tail.push(Effect::Send {
                conn: *conn,
                range: said,
            });
        }
        let is_said = |effect: &Effect| match effect {
            Effect::Send { conn, .. }
            | Effect::SendBuffer { conn, .. }
            | Effect::Close { conn } => self.amqp.has(*conn),
            _ => false,
        };
        if tail.is_empty() && !effects.list[mark.list..].iter().any(is_said) {
            self.amqp.tail = tail;
            return;
        }
        tail.extend(effects.list.drain(mark.list..));
        let mut heard = std::mem::take(&mut self.amqp.heard);
        for effect in tail.drain(..) {
            match effect {
                Effect::Send { conn, range } if self.amqp.has(conn) => {
                    heard.clear();
                    heard.extend_from_slice(
                        &effects.bytes[range.start as usize..range.end as usize],
                    );
                    self.hear(conn, heard.len() as u64, effects, |session, talk| {
                        session.hear(&heard, talk);
                    });
                }
                Effect::SendBuffer {
                    conn,
                    buffer,
                    range,
                } if self.amqp.has(conn) => {
                    let bytes = buffers.bytes(buffer, range.clone());
                    self.hear(conn, bytes.len() as u64, effects, |session, talk| {
                        session.hear_buffer(buffer, range.start, bytes, talk);
                    });
                }
                Effect::Close { conn } => {
                    self.amqp.remove(conn);
                    effects.push(Effect::Close { conn });
                }
                other => effects.push(other),
            }
        }
        self.amqp.heard = heard;
        self.amqp.tail = tail;
    }

    /// Lets an interpreter hear so many native bytes, which do not leave.
    fn hear(
        &mut self,
        conn: ConnId,
        bytes: u64,
        effects: &mut Effects,
        tell: impl FnOnce(&mut Amqp, &mut Talk<'_>),
    ) {
        let mut session = self.amqp.take(conn).expect("it was looked at");
        self.flow.unsay(conn, bytes);
        let mut talk = Talk {
            flow: &mut self.flow,
            effects,
            gathering: &mut self.amqp.gathering,
        };
        tell(&mut session, &mut talk);
        self.amqp.put(session);
        // Bytes that lead to none for the socket are never taken by it.
        self.flow.go_on_sending(conn, effects);
        if self.amqp.busy.last() != Some(&conn) {
            self.amqp.busy.push(conn);
        }
    }

    /// Lets those go on whose sockets have taken what they were told.
    fn hear_the_deaf(&mut self) {
        if self.amqp.deaf.is_empty() {
            return;
        }
        let (flow, amqp) = (&self.flow, &mut self.amqp);
        let mut deaf = std::mem::take(&mut amqp.deaf);
        deaf.retain(|conn| {
            let is_deaf = flow.is_deaf(*conn);
            if !is_deaf {
                amqp.busy.push(*conn);
            }
            is_deaf
        });
        amqp.deaf = deaf;
    }
}
