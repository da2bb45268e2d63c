//! Opening a producer: who may publish under its name, on every core, is the newest epoch (P-30).
//! Does not know messages, and not what a queue has stored.
//!
//! ```text
//! core of the connection                     every other core
//!   ProducerOpen, epoch e
//!     ends its own producers before e
//!     Request::Fence e              ──────►    ends its producers before e,
//!                                              stores nothing of them any more
//!     all have answered             ◄──────    what it knew: epoch, highest sequence
//!   ProducerOpened, or Failed if one knew a newer epoch
//! ```
//!
//! What a core knew is final when it answers, but for what is under way, which it counts; so the sequence in `ProducerOpened` is that of the whole
//! broker: a producer that goes on there repeats nothing and is not taken for one that does.

use ringpost_wire::control::{
    Body, Level, PRODUCER_DOWNGRADE, ProducerOpen, ProducerOpened, write_failure,
};
use ringpost_wire::ids::{CoreId, ProducerId};
use ringpost_wire::{Code, FrameHeader, FrameKind, limits};

use crate::Effects;
use crate::data::dedup::{BROKER_NAMELESS, Known};
use crate::data::flow::{Flow, Waiter};
use crate::data::producer::Producer;
use crate::data::session::Channel;
use crate::ids::ConnId;
use crate::mesh::Request;

/// A producer that other cores are asked about.
#[derive(Debug)]
pub struct Opening {
    /// Its connection.
    conn: ConnId,
    /// The frame that is answered.
    header: FrameHeader,
    /// What it will be.
    producer: Producer,
    /// What the cores that have answered knew, and this one when it began.
    known: Known,
    /// Cores that have not answered.
    waits: u16,
}

impl Flow {
    /// `ProducerOpen` (P-30).
    pub(crate) fn producer_open(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        body: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let open = ProducerOpen::decode(body)?;
        let session = self.sessions.get_mut(conn).ok_or(Code::Internal)?;
        let tenant = session.agreed().ok_or(Code::UnexpectedFrame)?.tenant;
        session.ask(header.channel)?;
        let is_nameless = session.is_nameless && open.producer == BROKER_NAMELESS.0;
        let count = self.producers.len() + self.openings.len();
        let full = count >= self.config.limits.producers_max as usize;
        let refusal = if open.flags & !PRODUCER_DOWNGRADE != 0 {
            Some((Code::SettingInvalid, "a flag of the producer is not known"))
        } else if !is_nameless
            && (open.producer == 0 || open.producer >= limits::PRODUCER_BROKER_MIN)
        {
            let reason = "a producer's name is neither 0 nor one of the broker's own";
            Some((Code::SettingInvalid, reason))
        } else if full {
            let reason = "this core has as many producers as its limit allows";
            Some((Code::LimitReached, reason))
        } else {
            None
        };
        let level = Level::from_number(open.level);
        let (Some(level), None) = (level, refusal) else {
            let unknown = (Code::SettingInvalid, "the level is not 0, 1 or 2");
            let (code, reason) = refusal.unwrap_or(unknown);
            self.fail(conn, header, code, reason, effects);
            return Ok(());
        };
        let id = ProducerId(open.producer);
        let mut producer = Producer::new(conn, header.channel, tenant, id, open.epoch, level);
        producer.downgrade = open.flags & PRODUCER_DOWNGRADE != 0;
        let key = self.openings.insert(Opening {
            conn,
            header,
            producer,
            known: Known { next: 1, epoch: 0 },
            waits: if is_nameless { 1 } else { self.config.cores },
        });
        let session = self.sessions.get_mut(conn).expect("it was just looked at");
        session.claim(header.channel, Channel::ProducerOpening(key));
        for core in (0..self.config.cores).map(CoreId) {
            // Who has no name fences nobody.
            if core != self.config.core && !is_nameless {
                let request = Request::Fence {
                    producer: id,
                    epoch: open.epoch,
                };
                self.ask(core, request, Waiter::Fence { opening: key }, effects);
            }
        }
        let known = self.fence(id, open.epoch, effects);
        self.fenced(key, known, effects);
        Ok(())
    }

    /// A producer is opened with `epoch` somewhere: ends the older ones of this core. Says what this
    /// core knew of it.
    //= P-30
    pub(crate) fn fence(
        &mut self,
        producer: ProducerId,
        epoch: u32,
        effects: &mut Effects,
    ) -> Known {
        let mut keys = std::mem::take(&mut self.keys);
        let named = self.names.range((producer.0, 0)..=(producer.0, u64::MAX));
        keys.extend(named.map(|(_, key)| *key));
        for key in keys.drain(..) {
            let older = self.producers.get(key).filter(|older| older.epoch < epoch);
            if let Some(older) = older {
                let (conn, channel) = (older.conn, older.channel);
                self.drop_producer(key);
                if let Some(session) = self.sessions.get_mut(conn) {
                    session.set(channel, Channel::Closed);
                }
                let header = FrameHeader::bare(FrameKind::ProducerClosed, channel, 0);
                let reason = "the producer was opened again with a newer epoch";
                self.say(conn, effects, |out| {
                    write_failure(out, header, Code::ProducerFenced, reason);
                });
            }
        }
        self.keys = keys;
        let known = self.dedup.fence(producer, epoch);
        // What is under way from one that is older goes on as far as it has come.
        match self.underway_of(producer).max(self.spread_of(producer)) {
            Some(last) => known.and(Known {
                next: last + 1,
                epoch: 0,
            }),
            None => known,
        }
    }

    /// A core has ended the older producers of an opening.
    pub(crate) fn fenced(&mut self, key: u64, known: Known, effects: &mut Effects) {
        // Its connection may be gone.
        let Some(opening) = self.openings.get_mut(key) else {
            return;
        };
        opening.known = opening.known.and(known);
        opening.waits -= 1;
        if opening.waits == 0 {
            let opening = self.openings.remove(key).expect("it was just looked at");
            self.opened(opening, effects);
        }
    }

    /// Every core has answered: the channel is a producer, or free again.
    fn opened(&mut self, opening: Opening, effects: &mut Effects) {
        let Opening {
            conn,
            header,
            mut producer,
            known,
            waits: _,
        } = opening;
        // A newer one may have been opened elsewhere meanwhile, and has fenced this core since.
        let known = known.and(self.dedup.known(producer.id));
        let session = self.sessions.get_mut(conn).expect("it holds the opening");
        if known.epoch > producer.epoch {
            session.set(header.channel, Channel::Closed);
            let reason = format!("the producer was opened with epoch {}", known.epoch);
            self.fail(conn, header, Code::ProducerFenced, &reason, effects);
            return;
        }
        producer.known_before = known.next;
        self.grant(&mut producer);
        producer.told = producer.granted;
        let opened = ProducerOpened {
            sequence: known.next,
            messages: producer.granted.0,
            bytes: producer.granted.1,
        };
        let id = producer.id;
        let key = self.producers.insert(producer);
        self.names.insert((id.0, key));
        let session = self.sessions.get_mut(conn).expect("it was just looked at");
        session.set(header.channel, Channel::Producer(key));
        self.say(conn, effects, |out| {
            let kind = FrameKind::ProducerOpened;
            opened.write(
                out,
                FrameHeader::bare(kind, header.channel, header.sequence),
            );
        });
    }
}
