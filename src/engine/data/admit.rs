//! Publishes within credit that find no room yet: what is held, the append that is under way, and
//! whose turn is next (ADR 0013). Does not know credit's size, sockets, or how a block is written.
//!
//! A publish is judged before its first byte is copied. From then on it waits where it must, and
//! while it does no other is begun: sequences, limits and dedup windows of its queues stay as they
//! were judged. What is held waits for a write of this core's journal or for another core's answer,
//! never for a client. Only large messages wait for each other's senders, and have places of their own
//! for that: they hold up nobody else.

use ringpost_wire::control::Level;
use ringpost_wire::header::PUBLISH_MANDATORY;
use ringpost_wire::ids::{CoreId, ProducerId, QueueId, Sequence};
use ringpost_wire::limits::PRODUCER_BROKER_MIN;
use ringpost_wire::{Code, FRAGMENT_BYTES_MAX, FragmentHead, envelope, padded};

use crate::Effects;
use crate::data::dedup::Seen;
use crate::data::flow::{Flow, ForwardedPublish, Waiter};
use crate::data::journal::volatile::is_volatile;
use crate::data::journal::{NoRoom, RunHead};
use crate::data::producer::{Assembly, Held, Room, Span};
use crate::data::publish::Group;
use crate::data::queue::Marking;
use crate::data::route::{Facts, Target, lot_of};
use crate::data::session::Channel;
use crate::data::trace::Arrival;
use crate::effect::Buffers;
use crate::ids::{ConnId, Place};
use crate::mesh::{RemotePublish, Request};

/// How often the sender of a large message may be found silent while others wait for its memory: two
/// seconds of a core that runs. What holds up the core itself is one time, not many.
const SILENT_SWEEPS_MAX: u32 = 8;

/// How far an append to one queue has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Done {
    /// Messages that the queue has.
    pub(super) messages: u32,
    /// Their padded bytes.
    pub(super) bytes: usize,
}

impl Done {
    pub(super) fn add(&mut self, messages: u32, bytes: usize) {
        self.messages += messages;
        self.bytes += bytes;
    }
}

/// Why an append stopped before it had everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// There will be room: a write or a new slot is on its way.
    Wait,
    /// The disk has run full; there will be room when somebody acks.
    Disk,
    /// The queue does not take the rest.
    Refused(Code),
}

impl Stop {
    pub(super) fn of(reason: NoRoom) -> Self {
        match reason {
            NoRoom::Buffers | NoRoom::Slot => Self::Wait,
            NoRoom::Disk => Self::Disk,
            NoRoom::Closed => Self::Refused(Code::JournalFailed),
        }
    }
}

/// What became of an append to one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Put {
    /// How far it has come.
    pub(super) done: Done,
    /// The block that must be durable for that, 0 = none.
    pub(super) block: u64,
    /// Why it is not all.
    pub(super) stop: Option<Stop>,
}

/// Who waits for what is under way.
#[derive(Debug)]
enum Origin {
    /// A producer of this core.
    Producer {
        /// Its key; it may be gone.
        key: u64,
        /// Number of the span.
        span: u64,
        /// Of a large message: the other cores that get it next, with their queues.
        others: Vec<(CoreId, Vec<QueueId>)>,
        /// Of a large message: where its memory is counted.
        room: Room,
    },
    /// Another core.
    Core {
        /// Which one.
        from: CoreId,
        /// Number of the request.
        id: u32,
        /// Why the messages after these were refused, if some were.
        refused: Option<Code>,
        /// Where the first message came from, and when, if that is known.
        arrival: Option<Arrival>,
    },
    /// The broker itself: a dead letter.
    Broker {
        /// Its key.
        key: u64,
    },
}

/// A publish that is being copied into queues of this core.
#[derive(Debug)]
pub struct Underway {
    origin: Origin,
    producer: ProducerId,
    epoch: u32,
    first: u64,
    count: u32,
    /// Of a large message: its bytes.
    large: Option<u32>,
    /// The messages back to back, or the bodies of the fragment frames.
    bytes: Vec<u8>,
    /// The queues of this core.
    queues: Vec<QueueId>,
    /// Those that have all of it.
    at: usize,
    /// What the next one has.
    done: Done,
    /// The pieces that the next one has.
    places: Vec<Place>,
    /// The block that must be durable for all that, 0 = none.
    block: u64,
    /// Queues that took it, or some of it.
    stored: u32,
}

impl Underway {
    /// The rest of a group of a producer of this core: `queues` do not have all of it, the first of
    /// them has what is `done`.
    pub(super) fn rest(
        (producer, epoch): (ProducerId, u32),
        group: Group<'_>,
        queues: Vec<QueueId>,
        done: Done,
        block: u64,
        key: u64,
        span: u64,
    ) -> Self {
        Self {
            origin: Origin::Producer {
                key,
                span,
                others: Vec::new(),
                room: Room::Whole,
            },
            producer,
            epoch,
            first: group.first,
            count: group.count,
            large: None,
            bytes: group.bytes.to_vec(),
            queues,
            at: 0,
            done,
            places: Vec::new(),
            block,
            stored: u32::from(block > 0 || done.messages > 0),
        }
    }
}

impl Flow {
    /// Whether so much is held that nobody gets new credit, and connections with producers are not
    /// read. Pieces of large messages may wait for their senders, and have a part of their own.
    pub(crate) fn holds_much(&self) -> bool {
        let room = self.config.limits.hold_bytes_max;
        let whole = self.held_bytes - self.held_piece_bytes;
        whole >= self.config.limits.publish_bytes() || self.held_bytes >= room / 4 * 3
    }

    /// Whether what a connection sends has a place. Only while much is held, or many requests wait,
    /// it may not: what ends that is the device or another core, whatever is behind in the stream. The rest of a large message has its
    /// place, and others may wait for its end.
    //= P-18
    #[must_use]
    pub fn is_read(&self, conn: ConnId) -> bool {
        if !self.holds_much() && !self.is_pressed {
            return true;
        }
        let Some(session) = self.sessions.get(conn) else {
            return true;
        };
        if self.is_held_up(session) {
            return false;
        }
        if !self.holds_much() {
            return true;
        }
        let mut publishes = false;
        for (_, channel) in session.channels() {
            if let Channel::Producer(key) = channel
                && let Some(producer) = self.producers.get(key)
            {
                publishes = true;
                if producer.is_in_a_large_one() {
                    return true;
                }
            }
        }
        !publishes
    }

    /// Checks that what is held and what waits is counted; O(n).
    pub(super) fn check_held(&self) {
        let (mut bytes, mut piece_bytes, mut begun) = (self.spread.cost() as u64, 0, 0);
        for key in self.producers.keys() {
            let producer = self.producers.get(key).expect("it was just found");
            for held in &producer.held {
                bytes += held.cost();
                if let Held::Piece { .. } = held {
                    piece_bytes += held.cost();
                }
            }
            if let Some(assembly) = &producer.assembly {
                let waits = assembly.refused.is_none() && assembly.room == Room::Beginning;
                assert_eq!(waits, self.beginnings.contains(&key));
                begun += usize::from(waits);
            }
        }
        assert_eq!(
            (bytes, piece_bytes),
            (self.held_bytes, self.held_piece_bytes)
        );
        assert_eq!(begun, self.beginnings.len(), "each waits for one message");
        assert!(self.beginning_bytes <= self.config.limits.beginning_bytes_max);
    }

    /// Whether anything waits for room on this core.
    pub(crate) fn is_holding(&self) -> bool {
        self.underway.is_some()
            || !self.spread.is_empty()
            || !self.waiting.is_empty()
            || !self.holding.is_empty()
            || self.transactions.has_work()
    }

    /// Whether some pieces of a large message are in the journal and not all: they are not in a queue
    /// yet, so that nothing may be written that claims to name everything that is live.
    pub(crate) fn is_in_pieces(&self) -> bool {
        let underway = self.underway.as_ref();
        underway.is_some_and(|underway| !underway.places.is_empty())
    }

    /// Whether a publish may be begun: nothing else is under way here, and what goes to other cores
    /// finds room on its way.
    pub(super) fn has_turn(&self, targets: &[Target], bytes: usize) -> bool {
        let room = u64::from(self.config.limits.parcel_bytes_max);
        targets.iter().all(|target| {
            if target.core == self.config.core {
                self.underway.is_none() && !self.spread.is_stuck() && !self.is_share_due()
            } else {
                let peer = &self.peers[usize::from(target.core.0)];
                peer.takes_publish(bytes as u64, room)
            }
        })
    }

    /// Whether the queues of this core have a place for all of a publish: what has none there is
    /// refused before any queue has a part of it.
    pub(super) fn has_place<B: Buffers>(
        &self,
        targets: &[Target],
        bytes: usize,
        may_share: bool,
        pieces: usize,
        buffers: &B,
    ) -> Result<(), Code> {
        let here = targets
            .iter()
            .filter(|target| target.core == self.config.core);
        let durable = here.clone().filter(|target| target.durable).count();
        let volatile = here.count() - durable;
        if durable > 0 && self.journal.is_publish_refused() {
            return Err(Code::DiskFull);
        }
        // A single queue can be told which messages it took.
        let disk_bytes = if targets.len() == 1 && pieces == 1 {
            0
        } else if pieces == 1 && may_share {
            self.journal.shared_bytes(durable, bytes)
        } else {
            durable * bytes
        };
        self.has_space(disk_bytes, volatile, bytes, pieces, buffers)
    }

    pub(super) fn has_space<B: Buffers>(
        &self,
        disk_bytes: usize,
        volatile: usize,
        bytes: usize,
        pieces: usize,
        buffers: &B,
    ) -> Result<(), Code> {
        if disk_bytes > 0 && !self.journal.may_grow() {
            // Heads, padding and indexes take little beside messages, and beside few of them there
            // is a block's worth.
            let need = disk_bytes + disk_bytes / 4 + buffers.buffer_bytes() as usize;
            if self
                .journal
                .publish_space()
                .is_none_or(|space| space < need as u64)
            {
                return Err(Code::DiskFull);
            }
        }
        if volatile > 0 {
            let body_bytes_max = self.journal.body_bytes_max() as usize;
            let largest = if pieces > 1 {
                FRAGMENT_BYTES_MAX
            } else {
                bytes
            };
            let each = largest + FragmentHead::BYTES;
            let records = volatile * pieces * if each > body_bytes_max { 2 } else { 1 };
            let body = each.min(body_bytes_max) as u32;
            if !self.volatile.takes(buffers, records as u64, body) {
                return Err(Code::QueueFull);
            }
        }
        Ok(())
    }

    /// Begins to copy what nobody else is in the way of.
    pub(super) fn begin(&mut self, underway: Underway) {
        assert!(
            self.underway.is_none(),
            "one publish is under way at a time"
        );
        self.underway = Some(underway);
    }

    /// Begins to copy what the broker itself publishes: one message, or the bodies of a large one's
    /// fragment frames with its bytes. [`Flow::dead_is_placed`] hears of it.
    pub(super) fn begin_broker_publish(
        &mut self,
        key: u64,
        (producer, epoch, first): (ProducerId, u32, u64),
        queues: Vec<QueueId>,
        (bytes, large): (Vec<u8>, Option<u32>),
    ) {
        self.begin(Underway {
            origin: Origin::Broker { key },
            producer,
            epoch,
            first,
            count: 1,
            large,
            bytes,
            queues,
            at: 0,
            done: Done::default(),
            places: Vec::new(),
            block: 0,
            stored: 0,
        });
    }

    /// Keeps the rest of a frame until there is room for it.
    pub(super) fn hold_batch(&mut self, key: u64, rest: Group<'_>) {
        let held = if self.can_hold(rest.bytes.len()) {
            Held::Batch {
                first: rest.first,
                count: rest.count,
                mandatory: rest.mandatory,
                bytes: rest.bytes.to_vec(),
                taken: 0,
            }
        } else {
            Held::Refused {
                first: rest.first,
                count: rest.count,
                bytes: rest.bytes.len() as u32,
                code: Code::Overloaded,
            }
        };
        self.hold(key, held);
    }

    /// Refuses a frame, in turn with what its producer published before.
    pub(super) fn refuse_frame(&mut self, key: u64, frame: Group<'_>, code: Code) {
        if self.producers.get(key).is_some_and(|p| p.holding) {
            let held = Held::Refused {
                first: frame.first,
                count: frame.count,
                bytes: frame.bytes.len() as u32,
                code,
            };
            self.hold(key, held);
        } else {
            self.refuse(key, frame, code);
        }
    }

    /// Keeps a piece of a large message until there is room for it.
    pub(super) fn hold_piece(
        &mut self,
        key: u64,
        sequence: u64,
        head: FragmentHead,
        flags: u8,
        body: &[u8],
    ) {
        let body = if self.can_hold(body.len()) {
            body.to_vec()
        } else {
            Vec::new()
        };
        let held = Held::Piece {
            sequence,
            head,
            flags,
            body,
        };
        self.hold(key, held);
    }

    fn can_hold(&self, bytes: usize) -> bool {
        self.held_bytes + bytes as u64 <= self.config.limits.hold_bytes_max
    }

    fn hold(&mut self, key: u64, held: Held) {
        self.note_held(&held);
        let producer = self.producers.get_mut(key).expect("its frame is stepped");
        producer.held.push_back(held);
        if !producer.holding {
            producer.holding = true;
            self.holding.push_back(key);
        }
    }

    fn note_held(&mut self, held: &Held) {
        self.held_bytes += held.cost();
        if let Held::Piece { .. } = held {
            self.held_piece_bytes += held.cost();
        }
    }

    pub(super) fn note_unheld(&mut self, held: &Held) {
        self.held_bytes -= held.cost();
        if let Held::Piece { .. } = held {
            self.held_piece_bytes -= held.cost();
        }
    }

    /// Goes on with what is under way, then with what is held: other cores and producers in turn,
    /// each in its own order. Call at the end of every turn.
    pub(crate) fn take_held<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        self.advance(buffers, effects);
        self.place_spread(buffers, effects);
        self.take_all_held(buffers, effects);
        // Whose turn has come may have pieces here.
        if self.make_room() {
            self.take_all_held(buffers, effects);
        }
    }

    fn take_all_held<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let mut stuck = 0_usize;
        loop {
            let mut moved = false;
            if self.underway.is_none()
                && !self.spread.is_stuck()
                && !self.is_share_due()
                && let Some((from, id, publish)) = self.waiting.pop_front()
            {
                self.begin_forwarded(from, id, *publish, buffers, effects);
                moved = true;
            }
            if let Some(key) = self.holding.pop_front() {
                let took = self.take_one(key, buffers, effects);
                moved |= took;
                stuck = if took { 0 } else { stuck + 1 };
                if let Some(producer) = self.producers.get_mut(key) {
                    if producer.held.is_empty() {
                        producer.holding = false;
                        self.dirty(key);
                    } else if producer.is_parked() {
                        // It comes back when there is memory for its large message.
                        stuck = stuck.saturating_sub(1);
                    } else {
                        self.holding.push_back(key);
                    }
                }
            }
            if !moved && stuck >= self.holding.len() {
                return;
            }
        }
    }

    /// Takes the next thing that a producer holds, or some of it. Returns whether it did.
    fn take_one<B: Buffers>(&mut self, key: u64, buffers: &mut B, effects: &mut Effects) -> bool {
        let Some(producer) = self.producers.get_mut(key) else {
            return true;
        };
        if producer.is_passing_on && !producer.held.is_empty() {
            return false;
        }
        let Some(held) = producer.held.pop_front() else {
            return true;
        };
        self.note_unheld(&held);
        let (left, took) = match held {
            Held::Batch {
                first,
                count,
                mandatory,
                bytes,
                taken,
            } => {
                let batch = Group {
                    first,
                    count,
                    bytes: &bytes[taken..],
                    mandatory,
                };
                let took = self.take_batch(key, batch, buffers, effects);
                let took = took.expect("it was checked when it came");
                let left = (took.0 < count).then_some(Held::Batch {
                    first: first + u64::from(took.0),
                    count: count - took.0,
                    mandatory,
                    bytes,
                    taken: taken + took.1,
                });
                (left, took.0 > 0)
            }
            Held::Piece {
                sequence,
                head,
                flags,
                body,
            } => {
                let took = self.take_piece(key, sequence, head, flags, &body, buffers, effects);
                let left = (!took).then_some(Held::Piece {
                    sequence,
                    head,
                    flags,
                    body,
                });
                (left, took)
            }
            Held::Whole {
                sequence,
                last_bytes,
                assembly,
            } => {
                let left = self.take_whole(key, sequence, last_bytes, assembly, buffers, effects);
                let took = left.is_none();
                (left, took)
            }
            Held::Refused {
                first,
                count,
                bytes,
                code,
            } => {
                self.refuse_span(key, (first, count, bytes), code);
                (None, true)
            }
        };
        if let Some(left) = left {
            self.note_held(&left);
            let producer = self.producers.get_mut(key).expect("taking drops nobody");
            producer.held.push_front(left);
        }
        took
    }

    fn refuse_span(&mut self, key: u64, (first, count, bytes): (u64, u32, u32), code: Code) {
        let none = Group {
            first,
            count,
            bytes: &[],
            mandatory: false,
        };
        let span = Span {
            bytes,
            failed: Some(code),
            kept: 0,
            ..Span::of(none)
        };
        self.push_span(key, span);
    }

    /// Takes a piece of a large message; the last one makes it whole. Returns whether it could: what
    /// is more than a beginning waits until there is memory for all.
    #[expect(
        clippy::too_many_arguments,
        reason = "a frame in its parts, and the turn's memory"
    )]
    pub(super) fn take_piece<B: Buffers>(
        &mut self,
        key: u64,
        sequence: u64,
        head: FragmentHead,
        flags: u8,
        body: &[u8],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        if head.offset == 0 {
            self.start_assembly(key, head, flags, body.is_empty());
        }
        let producer = self.producers.get_mut(key).expect("its frame is stepped");
        let mut assembly = producer.assembly.take().expect("its first piece was taken");
        if assembly.refused.is_none() && !assembly.has_place() {
            producer.assembly = Some(assembly);
            return false;
        }
        let is_last_to_come = producer.held.is_empty();
        let piece_bytes = head.piece_bytes();
        let bytes = padded(piece_bytes) as u64;
        assembly.arrived += piece_bytes as u32;
        assembly.silent_sweeps = 0;
        if body.is_empty() && assembly.refused.is_none() {
            self.refuse_assembly(key, &mut assembly, Code::Overloaded);
        }
        if assembly.refused.is_none() {
            assembly.bodies.extend_from_slice(body);
        }
        if !head.is_last() {
            if assembly.refused.is_none() && !assembly.has_place() {
                assembly.unsettled += bytes;
            } else {
                // The piece has come to rest in the memory reserved for its message.
                let producer = self.producers.get_mut(key).expect("its frame is stepped");
                producer.settled.1 += bytes;
                self.dirty(key);
            }
            if assembly.refused.is_some() && is_last_to_come {
                self.tell_refused(key, assembly);
            } else {
                let producer = self.producers.get_mut(key).expect("its frame is stepped");
                producer.assembly = Some(assembly);
            }
            return true;
        }
        if assembly.room == Room::Beginning {
            self.beginnings.retain(|waits| *waits != key);
        }
        let last_bytes = bytes as u32;
        let left = self.take_whole(key, sequence, last_bytes, assembly, buffers, effects);
        if let Some(whole) = left {
            // It waits in front of whatever else is held, and takes nothing more of the hold.
            self.note_held(&whole);
            let producer = self.producers.get_mut(key).expect("its frame is stepped");
            producer.held.push_front(whole);
            if !producer.holding {
                producer.holding = true;
                self.holding.push_back(key);
            }
        }
        true
    }

    /// Begins a large message: with memory for all of it if nobody waits for that, else with memory
    /// for a beginning. Where that is used up, too, it is refused: whoever waits for memory here waits
    /// for others to send, so nobody else may wait for him (P-18).
    fn start_assembly(&mut self, key: u64, head: FragmentHead, flags: u8, lost: bool) {
        let producer = self.producers.get(key).expect("its frame is stepped");
        let agreed = self.sessions.get(producer.conn).and_then(|s| s.agreed());
        let message_bytes_max = agreed.map_or(0, |agreed| agreed.message_bytes_max);
        let bytes = u64::from(head.message_bytes);
        let beginning = u64::from(Assembly::beginning_bytes(head.message_bytes));
        let has_beginning =
            self.beginning_bytes + beginning <= self.config.limits.beginning_bytes_max;
        let (room, refused) = if self.beginnings.is_empty() && self.has_large_room(bytes) {
            (Room::Whole, None)
        } else if has_beginning {
            (Room::Beginning, None)
        } else {
            (Room::Beginning, Some(Code::Overloaded))
        };
        //= P-22
        let refused = if head.message_bytes > message_bytes_max {
            Some(Code::MessageTooLarge)
        } else if flags & !PUBLISH_MANDATORY != 0 {
            Some(Code::SettingInvalid)
        } else if lost {
            Some(Code::Overloaded)
        } else {
            refused
        };
        let mut assembly = Assembly {
            message_bytes: head.message_bytes,
            room,
            arrived: 0,
            unsettled: 0,
            silent_sweeps: 0,
            bodies: Vec::new(),
            refused,
            mandatory: flags & PUBLISH_MANDATORY != 0,
        };
        if refused.is_none() {
            assembly.expect_bytes();
            match room {
                Room::Whole => self.assembly_bytes += assembly.reserved(),
                Room::Beginning => {
                    self.beginning_bytes += assembly.reserved();
                    self.beginnings.push_back(key);
                }
            }
        }
        let producer = self.producers.get_mut(key).expect("it was just looked at");
        producer.assembly = Some(assembly);
    }

    fn has_large_room(&self, bytes: u64) -> bool {
        let room = self.config.limits.assembly_bytes_max;
        self.assembly_bytes == 0 || self.assembly_bytes + bytes <= room
    }

    /// The memory of a large message is free again.
    pub(super) fn give_back(&mut self, room: Room, bytes: u64) {
        match room {
            Room::Whole => self.assembly_bytes -= bytes,
            Room::Beginning => self.beginning_bytes -= bytes,
        }
    }

    /// Gives large messages that wait for memory what has become free, in the order in which they
    /// began. Returns whether pieces that are held may go on.
    fn make_room(&mut self) -> bool {
        let mut is_held = false;
        while let Some(key) = self.beginnings.front().copied() {
            let producer = self.producers.get(key).expect("it takes itself off");
            let assembly = producer.assembly.as_ref().expect("it has begun one");
            let bytes = u64::from(assembly.message_bytes);
            if !self.has_large_room(bytes) {
                break;
            }
            self.beginnings.pop_front();
            let producer = self.producers.get_mut(key).expect("it was just looked at");
            let assembly = producer.assembly.as_mut().expect("it was just looked at");
            self.beginning_bytes -= assembly.reserved();
            self.assembly_bytes += bytes;
            assembly.room = Room::Whole;
            assembly.silent_sweeps = 0;
            assembly.expect_bytes();
            producer.settled.1 += std::mem::take(&mut assembly.unsettled);
            if !producer.held.is_empty() {
                self.holding.push_back(key);
                is_held = true;
            }
            self.dirty(key);
        }
        is_held
    }

    /// Refuses large messages whose senders are silent although they may send, while others wait for
    /// memory.
    pub(crate) fn refuse_stalled(&mut self) {
        if self.beginnings.is_empty() {
            return;
        }
        let mut keys = std::mem::take(&mut self.keys);
        keys.extend(self.producers.keys());
        for key in keys.drain(..) {
            let producer = self.producers.get(key).expect("it was just found");
            let is_waited_for = self.beginnings.iter().any(|waits| *waits != key);
            let is_read = self.is_read(producer.conn);
            let producer = self.producers.get_mut(key).expect("it was just found");
            let credit = producer.granted.1 - producer.used.1;
            let may_send = is_read && producer.held.is_empty() && producer.arriving.is_some();
            let Some(assembly) = &mut producer.assembly else {
                continue;
            };
            let next_bytes = padded(assembly.next_piece().piece_bytes()) as u64;
            if !may_send || !is_waited_for || !assembly.has_place() || credit < next_bytes {
                assembly.silent_sweeps = 0;
                continue;
            }
            assembly.silent_sweeps += 1;
            if assembly.silent_sweeps > SILENT_SWEEPS_MAX {
                let mut assembly = producer.assembly.take().expect("it was just looked at");
                self.refuse_assembly(key, &mut assembly, Code::TimedOut);
                self.tell_refused(key, assembly);
            }
        }
        self.keys = keys;
        self.make_room();
    }

    /// A large message that is not whole will be in no queue; its memory is free.
    fn refuse_assembly(&mut self, key: u64, assembly: &mut Assembly, code: Code) {
        self.give_back(assembly.room, assembly.reserved());
        if assembly.room == Room::Beginning {
            self.beginnings.retain(|waits| *waits != key);
        }
        assembly.refused = Some(code);
        assembly.bodies = Vec::new();
    }

    /// Says that a large message is refused of which all pieces that came were taken, without
    /// waiting for the others.
    //= P-31
    fn tell_refused(&mut self, key: u64, assembly: Assembly) {
        let code = assembly.refused.expect("it was refused");
        let producer = self.producers.get_mut(key).expect("its message is refused");
        let sequence = producer.next;
        producer.unwanted = producer.arriving.take();
        producer.next = sequence + 1;
        let bytes = u32::try_from(assembly.unsettled).expect("pieces of one message");
        self.refuse_span(key, (sequence, 1, bytes), code);
    }

    /// A large message is whole: it is routed like any other, and gives its memory back when the last
    /// queue has it. Gives it back itself if it must wait.
    fn take_whole<B: Buffers>(
        &mut self,
        key: u64,
        sequence: u64,
        last_bytes: u32,
        mut assembly: Assembly,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Option<Held> {
        let what = (sequence, 1, last_bytes + assembly.unsettled as u32);
        if let Some(code) = assembly.refused {
            self.refuse_span(key, what, code);
            return None;
        }
        let first = &assembly.bodies[FragmentHead::BYTES..];
        let message = envelope::open(&first[..FRAGMENT_BYTES_MAX]).expect("it was checked");
        let producer = self.producers.get(key).expect("its frame is stepped");
        let origin = (producer.id, producer.epoch);
        let mut targets = std::mem::take(&mut self.targets);
        targets.clear();
        let closed = self
            .router
            .resolve(
                producer.tenant,
                message.exchange(),
                message.routing_key(),
                &Facts::of(&message, lot_of(origin.0.0, sequence)),
                &mut targets,
            )
            .err();
        let judged = if self.place_spread_before(&targets, buffers, effects) {
            self.judge_whole(key, sequence, origin, &targets, closed, &assembly, buffers)
        } else {
            Ok(None)
        };
        let here = self.config.core;
        let left = match judged {
            Err(code) => {
                self.give_back(assembly.room, assembly.reserved());
                self.refuse_span(key, what, code);
                None
            }
            Ok(None) => Some(()),
            Ok(Some(level)) => {
                self.note_blocks(key, &targets, 1, assembly.message_bytes as usize);
                let (queues, others) = by_core(&targets, here);
                let number = self.next_span(key);
                let span = Span {
                    first: sequence,
                    last: sequence,
                    messages: 1,
                    bytes: what.2,
                    waits: others.len() as u32 + u32::from(!queues.is_empty()),
                    block: 0,
                    level,
                    failed: None,
                    kept: 1,
                    stored: false,
                };
                self.push_span(key, span);
                let producer = self.producers.get_mut(key).expect("it was just looked at");
                producer.is_passing_on = !others.is_empty() && !crate::mutant!(LargeOvertaken);
                let underway = Underway {
                    origin: Origin::Producer {
                        key,
                        span: number,
                        others,
                        room: assembly.room,
                    },
                    producer: origin.0,
                    epoch: origin.1,
                    first: sequence,
                    count: 1,
                    large: Some(assembly.message_bytes),
                    bytes: std::mem::take(&mut assembly.bodies),
                    queues,
                    at: 0,
                    done: Done::default(),
                    places: Vec::new(),
                    block: 0,
                    stored: 0,
                };
                if underway.queues.is_empty() {
                    self.finish(underway, Ok(()), 0, effects);
                } else {
                    self.begin(underway);
                    self.advance(buffers, effects);
                }
                None
            }
        };
        self.targets = targets;
        left.map(|()| Held::Whole {
            sequence,
            last_bytes,
            assembly,
        })
    }

    /// Whether a large message may be begun now, and which level its queues reach; `None` = later.
    #[expect(
        clippy::too_many_arguments,
        reason = "a message in its parts, and the turn's memory"
    )]
    fn judge_whole<B: Buffers>(
        &self,
        key: u64,
        sequence: u64,
        (id, epoch): (ProducerId, u32),
        targets: &[Target],
        closed: Option<Code>,
        assembly: &Assembly,
        buffers: &B,
    ) -> Result<Option<Level>, Code> {
        let producer = self.producers.get(key).expect("its frame is stepped");
        let level = self.judge(producer, targets, closed, assembly.mandatory)?;
        let here = |target: &&Target| target.core == self.config.core;
        let is_busy = self.underway.is_some() || self.spread.is_stuck();
        if is_busy && targets.iter().any(|target| here(&target)) {
            return Ok(None);
        }
        let is_known = targets
            .iter()
            .filter(here)
            .all(|target| self.dedup.judge(id, epoch, target.queue, sequence) == Seen::Before);
        if !is_known {
            let bytes = assembly.message_bytes as usize;
            if self.overflows(targets, 1, bytes) {
                return Err(Code::QueueFull);
            }
            let pieces = bytes.div_ceil(FRAGMENT_BYTES_MAX);
            self.has_place(targets, bytes, false, pieces, buffers)?;
        }
        Ok(Some(level))
    }

    /// Takes messages that another core forwards; the answer waits until they are durable.
    pub(crate) fn take_forwarded<B: Buffers>(
        &mut self,
        from: CoreId,
        id: u32,
        publish: Box<RemotePublish>,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let is_next = self.waiting.is_empty() && !self.spread.is_stuck() && !self.is_share_due();
        if self.underway.is_some() || !is_next {
            self.waiting.push_back((from, id, publish));
        } else {
            self.begin_forwarded(from, id, *publish, buffers, effects);
        }
    }

    fn begin_forwarded<B: Buffers>(
        &mut self,
        from: CoreId,
        id: u32,
        publish: RemotePublish,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let judged = self.judge_forwarded(&publish, buffers);
        let (count, refused) = match judged {
            Ok(count) if count == publish.count => (count, None),
            Ok(count) => (count, Some(Code::QueueFull)),
            Err(code) => (0, Some(code)),
        };
        let mut bytes = publish.bytes;
        if publish.fragment.is_none() && count < publish.count {
            bytes.truncate(prefix_bytes(&bytes, count));
        }
        let underway = Underway {
            origin: Origin::Core {
                from,
                id,
                refused,
                arrival: publish.arrival,
            },
            producer: publish.producer,
            epoch: publish.epoch,
            first: publish.first.0,
            count,
            large: publish.fragment.map(|head| head.message_bytes),
            bytes,
            queues: if count > 0 {
                publish.queues
            } else {
                Vec::new()
            },
            at: 0,
            done: Done::default(),
            places: Vec::new(),
            block: 0,
            stored: 0,
        };
        self.begin(underway);
        self.advance(buffers, effects);
    }

    /// How many messages of a forwarded publish the queues of this core take: all, or those for which
    /// a single queue has room.
    fn judge_forwarded<B: Buffers>(
        &mut self,
        publish: &RemotePublish,
        buffers: &B,
    ) -> Result<u32, Code> {
        let (bytes, pieces) = match publish.fragment {
            Some(head) => {
                let bytes = head.message_bytes as usize;
                (bytes, bytes.div_ceil(FRAGMENT_BYTES_MAX))
            }
            None => (publish.bytes.len(), 1),
        };
        let first = publish.first.0;
        let mut count = publish.count;
        let (mut durable, mut volatile, mut known) = (0, 0, 0);
        let mut is_new = false;
        for queue in &publish.queues {
            let Some(state) = self.queues.get(*queue) else {
                continue;
            };
            known += 1;
            if state.damaged {
                return Err(Code::QueueDamaged);
            }
            if state.durable {
                self.admits()?;
            }
            let seen = self
                .dedup
                .judge(publish.producer, publish.epoch, *queue, first);
            if seen == Seen::Before && publish.count == 1 {
                continue;
            }
            is_new = true;
            // Of what was sent before each message may be there; only the append can tell.
            let is_ahead = self
                .dedup
                .is_ahead(publish.producer, publish.epoch, *queue, first);
            // A dead letter frees as much as it takes.
            let needs_room = publish.producer.0 < PRODUCER_BROKER_MIN;
            if needs_room && state.durable && is_ahead && self.journal.is_publish_refused() {
                return Err(Code::DiskFull);
            }
            durable += usize::from(needs_room && state.durable && is_ahead);
            volatile += usize::from(!state.durable);
            let overflows = if needs_room {
                state.queue.would_overflow(publish.count, bytes as u64)
            } else {
                !state.queue.has_room_for_dead(publish.count, bytes as u64)
            };
            if overflows {
                // What of it fits is taken, as on the producer's own core. Other queues would need an
                // answer of their own for each message.
                let is_alone =
                    publish.queues.len() == 1 && publish.fragment.is_none() && needs_room;
                count = if is_alone {
                    self.fits(*queue, publish)
                } else {
                    0
                };
                if count == 0 {
                    return Err(Code::QueueFull);
                }
            }
        }
        if known == 0 {
            return Err(Code::QueueUnknown);
        }
        if is_new {
            self.has_space(durable * bytes, volatile, bytes, pieces, buffers)?;
        }
        Ok(count)
    }

    /// How many messages at the start of a forwarded publish a queue has room for; those that it has
    /// need none.
    fn fits(&self, queue: QueueId, publish: &RemotePublish) -> u32 {
        let state = self.queues.get(queue).expect("it was just looked at");
        let (mut taken, mut end) = (0, 0);
        let (mut count, mut bytes) = (0, 0);
        while taken < publish.count {
            let length = envelope::length_of(&publish.bytes[end..]).expect("it was checked");
            let sequence = publish.first.0 + u64::from(taken);
            let seen = self
                .dedup
                .judge(publish.producer, publish.epoch, queue, sequence);
            if seen != Seen::Before {
                count += 1;
                bytes += padded(length) as u64;
                if state.queue.would_overflow(count, bytes) {
                    break;
                }
            }
            end += padded(length);
            taken += 1;
        }
        taken
    }

    /// Copies what is under way on into its queues, until it must stop or all have it.
    pub(super) fn advance<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        let Some(mut underway) = self.underway.take() else {
            return;
        };
        let (mut outcome, mut taken) = (Ok(()), 0);
        self.advance_together(&mut underway, buffers, effects);
        while underway.at < underway.queues.len() {
            let queue = underway.queues[underway.at];
            let stop = match underway.large {
                Some(bytes) => self.append_pieces(&mut underway, queue, bytes, buffers, effects),
                None => {
                    let group = Group {
                        first: underway.first,
                        count: underway.count,
                        bytes: &underway.bytes,
                        mandatory: false,
                    };
                    let origin = (underway.producer, underway.epoch);
                    if let Origin::Core { from, arrival, .. } = underway.origin {
                        self.tracer.forwarded = arrival.map(|arrival| (from, arrival));
                    }
                    let put =
                        self.append_some(queue, origin, group, underway.done, buffers, effects);
                    self.tracer.forwarded = None;
                    underway.block = underway.block.max(put.block);
                    underway.done = put.done;
                    put.stop
                }
            };
            match stop {
                None => {
                    underway.at += 1;
                    underway.done = Done::default();
                    underway.stored += 1;
                }
                Some(Stop::Wait) => {
                    self.underway = Some(underway);
                    return;
                }
                // A disk that is full has room when somebody acks, which may be never: what came
                // after would wait for that, too.
                Some(stop @ (Stop::Disk | Stop::Refused(_))) => {
                    let partly = underway.stored > 0 || underway.done.messages > 0;
                    // A single queue can be told which messages it took.
                    let is_alone =
                        underway.queues.len() == 1 && underway.large.is_none() && !self.failed;
                    outcome = Err(match stop {
                        _ if partly && !is_alone => Code::Indeterminate,
                        Stop::Refused(code) => code,
                        _ => Code::DiskFull,
                    });
                    if is_alone {
                        taken = underway.done.messages;
                    }
                    break;
                }
            }
        }
        self.finish(underway, outcome, taken, effects);
    }

    /// Appends what several queues can share, if none of them has begun.
    fn advance_together<B: Buffers>(
        &mut self,
        underway: &mut Underway,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        let rest = &underway.queues[underway.at..];
        if underway.large.is_some() || underway.done.messages > 0 || rest.len() < 2 {
            return;
        }
        let group = Group {
            first: underway.first,
            count: underway.count,
            bytes: &underway.bytes,
            mandatory: false,
        };
        let origin = (underway.producer, underway.epoch);
        if let Origin::Core { from, arrival, .. } = underway.origin {
            self.tracer.forwarded = arrival.map(|arrival| (from, arrival));
        }
        let queues = rest.iter().copied();
        let block = self.append_together(queues, origin, group, buffers, effects);
        self.tracer.forwarded = None;
        underway.block = underway.block.max(block);
        // Those that have it go to the front.
        for queue in &self.fanout.queues {
            let rest = &mut underway.queues[underway.at..];
            let found = rest.iter().position(|other| other == queue);
            rest.swap(0, found.expect("it is one of them"));
            underway.at += 1;
            underway.stored += 1;
        }
    }

    /// Appends the pieces of a large message to a queue of this core, from where it stopped before.
    fn append_pieces<B: Buffers>(
        &mut self,
        underway: &mut Underway,
        queue: QueueId,
        message_bytes: u32,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Option<Stop> {
        let (producer, epoch, sequence) = (underway.producer, underway.epoch, underway.first);
        if underway.places.is_empty() {
            match self.known(queue, producer, epoch, sequence) {
                Ok(None) => {}
                Ok(Some(block)) => {
                    underway.block = underway.block.max(block);
                    return None;
                }
                Err(code) => return Some(Stop::Refused(code)),
            }
        }
        let Some(state) = self.queues.get_mut(queue) else {
            // Deleted since it was begun, with everything in it.
            self.drop_pieces(underway, effects);
            return None;
        };
        let head = RunHead {
            producer,
            producer_epoch: epoch,
            producer_sequence: Sequence(sequence),
            ..RunHead::of_queue(state.partition, queue, state.queue.next_sequence())
        };
        let durable = state.durable;
        let bodies = underway
            .bytes
            .chunks(FragmentHead::BYTES + FRAGMENT_BYTES_MAX)
            .enumerate()
            .skip(underway.places.len());
        let mut stop = None;
        for (number, body) in bodies {
            let appended = if durable {
                self.journal.append_fragment(buffers, effects, &head, body)
            } else {
                self.volatile
                    .append_fragment(buffers, effects, &head, number as u32, body)
            };
            match appended {
                Ok(place) => underway.places.push(place),
                Err(reason) => {
                    stop = Some(Stop::of(reason));
                    break;
                }
            }
        }
        match stop {
            None => {}
            Some(Stop::Wait) => return stop,
            Some(Stop::Disk | Stop::Refused(_)) => {
                // Room comes with a checkpoint, which must not come between pieces.
                self.drop_pieces(underway, effects);
                return stop;
            }
        }
        let state = self.queues.get_mut(queue).expect("it was just looked at");
        let bytes = padded(message_bytes as usize) as u32;
        let places = std::mem::take(&mut underway.places);
        state
            .queue
            .push_fragmented(head.queue_sequence, bytes, &places, Marking::Plain);
        if let Some(terms) = envelope::terms_of(&underway.bytes[FragmentHead::BYTES..]) {
            state.note_arrival(head.queue_sequence, 1, terms, self.now);
        }
        //= P-38
        self.dedup
            .store(producer, epoch, queue, (sequence, sequence));
        underway.block = underway.block.max(self.appended(queue));
        None
    }

    /// Pieces without their last one are no message; recovery drops them too.
    fn drop_pieces(&mut self, underway: &mut Underway, effects: &mut Effects) {
        for place in underway.places.drain(..) {
            if is_volatile(place) {
                self.volatile.drop_live(place, 1, effects);
            } else {
                self.journal.drop_live(place.segment, 1);
            }
        }
    }

    /// What was under way has come to an end on this core: its queues have all of it, or refused it but
    /// for the first `taken` messages.
    fn finish(
        &mut self,
        mut underway: Underway,
        outcome: Result<(), Code>,
        taken: u32,
        effects: &mut Effects,
    ) {
        assert!(underway.places.is_empty(), "every piece is in a queue");
        match underway.origin {
            Origin::Producer {
                key,
                span,
                others,
                room,
            } => {
                let is_large = underway.large.is_some();
                if !underway.queues.is_empty() {
                    self.span_stored(key, span, underway.block, outcome, taken);
                }
                let bytes = std::mem::take(&mut underway.bytes);
                if is_large {
                    let rest = LargeRest {
                        key,
                        span,
                        producer: underway.producer,
                        epoch: underway.epoch,
                        sequence: underway.first,
                        message_bytes: underway.large.unwrap_or(0),
                        room,
                        others,
                    };
                    self.forward_large(rest, bytes, outcome, effects);
                }
            }
            Origin::Broker { key } => {
                self.dead_is_placed(key, underway.bytes, underway.block, outcome);
            }
            Origin::Core {
                from, id, refused, ..
            } => {
                let mut bytes = underway.bytes;
                if underway.large.is_none() {
                    bytes.clear();
                }
                let waits = ForwardedPublish {
                    from,
                    id,
                    outcome: outcome.and(refused.map_or(Ok(()), Err)),
                    taken: if outcome.is_ok() {
                        underway.count
                    } else {
                        taken
                    },
                    full: self.blocked_of(&underway.queues),
                    bytes,
                };
                if underway.block <= self.journal.durable_block().0 || self.failed {
                    self.answer_one_forwarded(underway.block, waits, effects);
                } else {
                    self.forwarded.push_back((underway.block, waits));
                }
            }
        }
    }

    /// The last sequence of what is under way, if it is of this producer.
    pub(super) fn underway_of(&self, producer: ProducerId) -> Option<u64> {
        let underway = self.underway.as_ref();
        let of_producer = underway.filter(|underway| underway.producer == producer);
        of_producer.map(|underway| underway.first + u64::from(underway.count) - 1)
    }

    /// Gives up what is under way: the broker shuts down and its producer is gone.
    pub(crate) fn abandon(&mut self, effects: &mut Effects) {
        if let Some(mut underway) = self.underway.take() {
            self.drop_pieces(&mut underway, effects);
            self.finish(underway, Err(Code::Indeterminate), 0, effects);
        }
        self.abandon_spread();
    }

    /// The queues of this core have a span, or one of them refused it.
    pub(super) fn span_stored(
        &mut self,
        key: u64,
        span: u64,
        block: u64,
        outcome: Result<(), Code>,
        taken: u32,
    ) {
        let Some(producer) = self.producers.get_mut(key) else {
            return;
        };
        producer.stored(span, block, outcome, taken);
        if block > producer.waits_for && block > self.journal.durable_block().0 && !self.failed {
            producer.waits_for = block;
            self.confirm_waits.push_back((block, key));
        }
        self.dirty(key);
    }

    /// Sends a large message to the next of the other cores, if there is one, or gives its memory
    /// back: one copy of it travels from core to core.
    pub(crate) fn forward_large(
        &mut self,
        mut rest: LargeRest,
        bytes: Vec<u8>,
        outcome: Result<(), Code>,
        effects: &mut Effects,
    ) {
        // Who is at its last core has let the next one begin, which may be large as well.
        let is_passing_on = !rest.others.is_empty() || crate::mutant!(PassingEndsEarly);
        let producer = self.producers.get_mut(rest.key);
        // What is refused at once is asked of nobody else: refused means in no queue (P-39).
        if let Err(code) = outcome
            && let Some(producer) = producer
            && !producer.is_stored(rest.span)
        {
            for _ in rest.others.drain(..) {
                producer.answered(rest.span, Err(code), 0);
            }
            self.dirty(rest.key);
        }
        let next = rest.others.pop();
        if is_passing_on
            && rest.others.is_empty()
            && let Some(producer) = self.producers.get_mut(rest.key)
        {
            producer.is_passing_on = false;
        }
        let Some((core, queues)) = next else {
            self.give_back(rest.room, u64::from(rest.message_bytes));
            return;
        };
        let request = Request::Publish(Box::new(RemotePublish {
            producer: rest.producer,
            epoch: rest.epoch,
            first: Sequence(rest.sequence),
            count: 1,
            queues,
            fragment: Some(FragmentHead {
                message_bytes: rest.message_bytes,
                offset: 0,
            }),
            arrival: None,
            bytes,
        }));
        self.ask(core, request, Waiter::Large(Box::new(rest)), effects);
    }
}

/// A large message that other cores get, one after the other.
#[derive(Debug)]
pub struct LargeRest {
    /// Its producer here; it may be gone.
    pub key: u64,
    /// Number of its span.
    pub span: u64,
    producer: ProducerId,
    epoch: u32,
    sequence: u64,
    message_bytes: u32,
    room: Room,
    others: Vec<(CoreId, Vec<QueueId>)>,
}

/// Padded bytes of so many messages at the start.
fn prefix_bytes(messages: &[u8], count: u32) -> usize {
    (0..count).fold(0, |end, _| {
        end + padded(envelope::length_of(&messages[end..]).expect("it was checked"))
    })
}

/// The queues of this core among targets, and those of each other core.
pub(super) fn by_core(
    targets: &[Target],
    here: CoreId,
) -> (Vec<QueueId>, Vec<(CoreId, Vec<QueueId>)>) {
    let mut local = Vec::new();
    let mut others: Vec<(CoreId, Vec<QueueId>)> = Vec::new();
    for target in targets {
        if target.core == here {
            local.push(target.queue);
        } else if let Some((_, queues)) = others.iter_mut().find(|other| other.0 == target.core) {
            queues.push(target.queue);
        } else {
            others.push((target.core, vec![target.queue]));
        }
    }
    (local, others)
}
