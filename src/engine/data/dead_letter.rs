//! From a queue to its dead-letter exchange: messages that were rejected, have expired, were too many
//! or came back too often. Does not know why a message died, nor sockets.
//!
//! ```text
//! queue ──next_dead──► read ──► new headers ──► route ──► queues of this core (admit.rs)
//!                                                    └──► other cores, one after the other
//!         ◄──dead_is_done── all of them have it, as durably as they keep anything
//! ```
//!
//! A dead letter is published by the broker itself under a name made of its queue's number, with its
//! place in that queue as sequence: after a crash in between it is published again, and queues that
//! have it know it (rulings 16). It is acked in its own queue when all others have it, so that it is
//! never in none. A queue that does not take it now is asked again later (`later.rs`); an exchange that
//! does not exist, or routes it nowhere, is the end of it, as for any publish that is not mandatory.

mod headers;
mod later;
mod moves;

use ringpost_wire::ids::{CoreId, ProducerId, QueueId, QueueSequence, Sequence, TenantId};
use ringpost_wire::{
    Code, FRAGMENT_BYTES_MAX, FragmentHead, MessageParts, envelope, limits, padded,
};

use crate::Effects;
use crate::data::admit::by_core;
use crate::data::dedup::BROKER_NAMELESS;
use crate::data::flow::{Flow, QueueState, Waiter};
use crate::data::queue::{DeadOffer, Death};
use crate::data::route::{Facts, Publisher, Target, lot_of};
use crate::effect::Buffers;
use crate::ids::Mono;
use crate::mesh::{RemotePublish, Request};

use self::headers::{Before, DeathNote};
use self::later::Later;

/// How often a message is passed on that nobody rejects. Queues in which it died are known from its
/// headers, as far as these have room; this ends every round.
const HOPS_MAX: u8 = 64;
/// Dead letters of a core that are on their way at a time.
const UNDERWAY_MAX: usize = 256;
/// Their bytes; one is always on its way, however large.
const UNDERWAY_BYTES_MAX: usize = 1 << 20;

/// Where dead messages of a queue go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetterTo {
    /// The exchange; empty for the default one.
    pub exchange: Box<[u8]>,
    /// The routing key instead of their own.
    pub routing_key: Option<Box<[u8]>>,
}

/// A message on its way to the queues of a dead-letter exchange.
#[derive(Debug)]
pub(crate) struct DeadLetter {
    queue: QueueId,
    sequence: QueueSequence,
    /// The message, or the bodies of its fragment frames; with another core while that is asked.
    bytes: Vec<u8>,
    /// What that counts for.
    cost: usize,
    /// Of one in fragments: its bytes.
    large: Option<u32>,
    /// Queues of this core that do not have it.
    here: Vec<QueueId>,
    /// Queues of other cores that do not.
    others: Vec<(CoreId, Vec<QueueId>)>,
    /// Those of all these that are durable.
    durable: Vec<QueueId>,
    /// Some queue has it already.
    is_begun: bool,
    /// Times in a row that it was not taken.
    refusals: u32,
    /// The block that must be durable for those who have it.
    block: u64,
    /// It is published as nobody's: a queue does not know any more whether it has had it.
    is_nameless: bool,
}

impl DeadLetter {
    /// The producer that it is published by, and under which sequence.
    fn name(&self) -> (ProducerId, u32, u64) {
        let producer = match self.is_nameless || crate::mutant!(DeadNameless) {
            true => BROKER_NAMELESS,
            false => ProducerId(limits::PRODUCER_BROKER_MIN | self.queue.0 as u64),
        };
        (producer, 1, self.sequence.0)
    }
}

/// A large message of which not all pieces are read yet.
#[derive(Debug)]
struct Gathering {
    queue: QueueId,
    sequence: QueueSequence,
    pieces: usize,
    bytes: Vec<u8>,
}

/// The dead letters of one core.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    bytes: usize,
    /// Those that may go on when the turn ends.
    ready: Vec<u64>,
    /// They wait for another publish or another core, whose end is heard of.
    is_blocked: bool,
    /// Those that were not taken.
    later: Later,
    gathering: Option<Gathering>,
    /// Queues with dead messages that found no place here.
    waiting: Vec<QueueId>,
    // Scratch, kept for its memory.
    headers: Vec<u8>,
    message: Vec<u8>,
}

impl DeadLetters {
    /// Whether as many of `count` are on their way as may be. Those that nobody takes now are not: they
    /// have bounds of their own, and keep nobody else waiting.
    fn is_full(&self, count: usize) -> bool {
        count - self.later.len() >= UNDERWAY_MAX
            || self.bytes - self.later.bytes() >= UNDERWAY_BYTES_MAX
    }

    /// When one wants to be tried again.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.later.next_deadline()
    }

    /// Whether one may go on now.
    pub(crate) const fn wants_turn(&self) -> bool {
        !self.ready.is_empty() && !self.is_blocked
    }
}

impl Flow {
    /// Begins to publish the dead messages of a queue, as far as there is room and they are in memory.
    pub(super) fn begin_dead_letters<B: Buffers>(
        &mut self,
        queue: QueueId,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        while let Some(state) = self.queues.get_mut(queue) {
            let Some(dead) = state.queue.next_dead() else {
                return;
            };
            if self.dead.later.is_paused(queue) {
                return;
            }
            if self.dead.is_full(self.dead_letters.len()) {
                self.wait_for_place(queue);
                return;
            }
            let is_read = if dead.offer.fragmented {
                self.gather_dead(queue, &dead, buffers, effects)
            } else {
                self.read_dead(queue, &dead, buffers, effects)
            };
            if !is_read {
                return;
            }
            let message = std::mem::take(&mut self.dead.message);
            self.bury(queue, &dead, &message);
            self.dead.message = message;
        }
    }

    fn wait_for_place(&mut self, queue: QueueId) {
        if !self.dead.waiting.contains(&queue) {
            self.dead.waiting.push(queue);
        }
    }

    /// Copies a dead message into scratch; whether it was in memory.
    fn read_dead<B: Buffers>(
        &mut self,
        queue: QueueId,
        dead: &DeadOffer,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        let offer = &dead.offer;
        let durable = self.queues.get(queue).is_some_and(|state| state.durable);
        let located = self.locate_alone(queue, durable, offer.place, offer.first, buffers, effects);
        let Some((buffer, body)) = located else {
            return false;
        };
        let run = buffers.bytes(buffer, body);
        let message = offer.locate(run).and_then(|start| {
            let bytes = run.get(start as usize..)?;
            let length = envelope::length_of(bytes)?;
            Some((start, bytes.get(..length)?))
        });
        let Some((start, message)) = message else {
            self.damaged(queue, offer.place, offer.first, effects);
            return false;
        };
        let bytes = padded(message.len()) as u32;
        self.dead.message.clear();
        self.dead.message.extend_from_slice(message);
        let state = self.queues.get_mut(queue).expect("it was just looked at");
        state.queue.begin_dead(dead, start, bytes);
        true
    }

    /// Reads the pieces of a large dead message, one after the other as they come into memory; whether
    /// all were there. One is read at a time.
    fn gather_dead<B: Buffers>(
        &mut self,
        queue: QueueId,
        dead: &DeadOffer,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        let (sequence, offer) = (dead.sequence(), &dead.offer);
        let before = self.dead.gathering.take();
        if let Some(other) = before.as_ref().filter(|other| other.queue != queue)
            && self.is_served(other.queue)
        {
            self.dead.gathering = before;
            self.wait_for_place(queue);
            return false;
        }
        // Where another one of the same queue has come in front this begins anew.
        let own = before.filter(|before| (before.queue, before.sequence) == (queue, sequence));
        let mut gathering = own.unwrap_or_else(|| Gathering {
            queue,
            sequence,
            pieces: 0,
            bytes: Vec::new(),
        });
        let state = self.queues.get(queue).expect("it has dead messages");
        let durable = state.durable;
        let places = state.queue.pieces(sequence);
        let places = places.expect("the offer says so").to_vec();
        while let Some(place) = places.get(gathering.pieces) {
            let located = self.locate_alone(queue, durable, *place, sequence, buffers, effects);
            let piece =
                located.map(|(buffer, body)| FragmentHead::split(buffers.bytes(buffer, body)));
            match piece {
                Some(Ok((_, piece))) => gathering.bytes.extend_from_slice(piece),
                Some(Err(_)) => self.damaged(queue, *place, offer.first, effects),
                None => {}
            }
            if !matches!(piece, Some(Ok(_))) {
                if self.is_served(queue) {
                    self.dead.gathering = Some(gathering);
                } else {
                    self.wake_waiting();
                }
                return false;
            }
            gathering.pieces += 1;
        }
        let bytes = padded(gathering.bytes.len()) as u32;
        self.dead.message = gathering.bytes;
        let state = self.queues.get_mut(queue).expect("it was just looked at");
        state.queue.begin_dead(dead, 0, bytes);
        self.wake_waiting();
        true
    }

    /// Whether a queue delivers: it is there, whole, and its journal has not failed.
    fn is_served(&self, queue: QueueId) -> bool {
        let refuses = |state: &QueueState| state.damaged || (self.failed && state.durable);
        self.queues.get(queue).is_some_and(|state| !refuses(state))
    }

    /// A queue that is deleted or refuses service reads no large message any more: others may.
    pub(super) fn stop_gathering(&mut self, queue: QueueId) {
        let gathering = self.dead.gathering.take_if(|own| own.queue == queue);
        if gathering.is_some() {
            self.wake_waiting();
        }
    }

    /// A queue was deleted: what has died in it goes no further but for what is on its way.
    pub(super) fn dead_source_is_gone(&mut self, queue: QueueId) {
        self.dead.later.forget(queue);
        self.stop_gathering(queue);
        self.end_places_of(queue);
    }

    /// Queues that found no place look again.
    fn wake_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.dead.waiting);
        for queue in waiting.drain(..) {
            self.wake(queue);
        }
        self.dead.waiting = waiting;
    }

    /// Puts a dead message, which was read, on its way.
    fn bury(&mut self, queue: QueueId, dead: &DeadOffer, message: &[u8]) {
        if dead.death == Death::Moved {
            self.send_moved(queue, dead, message);
            return;
        }
        let state = self.queues.get(queue).expect("it has dead messages");
        let to = state.dead_letter.as_deref();
        let to = to.expect("a queue without an exchange has no dead letters");
        let read = envelope::open(message).expect("its queue took it");
        let note = DeathNote {
            queue: &state.name,
            reason: dead.death.word().as_bytes(),
            exchange: read.exchange(),
            routing_key: read.routing_key(),
            time_s: self.wall_us / 1_000_000,
            ttl_ms: read.ttl_ms(),
        };
        // What a publisher says of deaths is not believed: only the broker writes hops.
        let before = match read.hops() {
            0 => Before::Claimed,
            _ => Before::Told,
        };
        let is_rejected = dead.death == Death::Rejected;
        let hops = match is_rejected {
            true => 1,
            false => read.hops().saturating_add(1),
        };
        let mut headers = std::mem::take(&mut self.dead.headers);
        if headers::with_death(read.headers(), before, &note, &mut headers).is_err() {
            // There is no room for what we have to say, so it goes on without.
            without_note(&read, before, &mut headers);
        }
        let mut targets = std::mem::take(&mut self.targets);
        targets.clear();
        let own_key = to.routing_key.clone();
        let routing_key = own_key.as_deref().unwrap_or(read.routing_key());
        let (tenant, exchange) = (state.tenant, to.exchange.clone());
        let facts = Facts {
            headers: &headers,
            ttl_ms: 0,
            by: Publisher::Broker,
            ..Facts::of(&read, lot_of(u64::from(queue.0), dead.sequence().0))
        };
        let routed = self
            .router
            .resolve(tenant, &exchange, routing_key, &facts, &mut targets);
        if routed.is_err() || (!is_rejected && hops > HOPS_MAX) {
            targets.clear();
        }
        if !is_rejected {
            self.drop_cycles(tenant, &headers, &mut targets);
        }
        let parts = MessageParts {
            exchange: &exchange,
            routing_key,
            properties: read.properties(),
            headers: &headers,
            payload: read.payload(),
            priority: read.priority(),
            timestamp_us: read.timestamp_us(),
            // It would die of that again.
            ttl_ms: 0,
            delay_ms: 0,
            hops,
        };
        let mut bare = Vec::new();
        let too_large = parts.length() > self.config.limits.message_bytes_max as usize;
        if too_large {
            without_note(&read, before, &mut bare);
        }
        let parts = MessageParts {
            headers: if too_large { &bare } else { parts.headers },
            ..parts
        };
        self.put_underway(queue, dead.sequence(), &parts, &targets);
        targets.clear();
        self.targets = targets;
        self.dead.headers = headers;
    }

    /// Puts a message on its way to queues.
    fn put_underway(
        &mut self,
        queue: QueueId,
        sequence: QueueSequence,
        parts: &MessageParts<'_>,
        targets: &[Target],
    ) {
        let mut bytes = Vec::with_capacity(parts.padded_length());
        parts
            .write(&mut bytes)
            .expect("each part is within its limit");
        let length = parts.length();
        let large = (length > FRAGMENT_BYTES_MAX).then_some(length as u32);
        let bytes = match large {
            Some(_) => in_fragments(&bytes[..length]),
            None => bytes,
        };
        let (here, others) = by_core(targets, self.config.core);
        let durable = targets.iter().filter(|target| target.durable);
        let durable = durable.map(|target| target.queue).collect();
        if here.is_empty() && others.is_empty() {
            self.stats.dead_unroutable += 1;
        }
        let cost = bytes.len();
        self.dead.bytes += cost;
        let key = self.dead_letters.insert(DeadLetter {
            queue,
            sequence,
            bytes,
            cost,
            large,
            here,
            others,
            durable,
            is_begun: false,
            refusals: 0,
            block: 0,
            is_nameless: false,
        });
        self.dead.ready.push(key);
    }

    /// A message that goes round without anybody rejecting it would go round for ever: queues in which
    /// it died since somebody last rejected it do not get it again.
    fn drop_cycles(&self, tenant: TenantId, headers: &[u8], targets: &mut Vec<Target>) {
        for entry in headers::deaths(headers) {
            let text = |name: &[u8]| entry.get(name).and_then(|value| value.as_text());
            // The last death is the first entry.
            if text(b"reason") == Some(Death::Rejected.word().as_bytes()) || targets.is_empty() {
                return;
            }
            if let Some(queue) = self
                .router
                .queue(tenant, text(b"queue").unwrap_or_default())
            {
                targets.retain(|target| target.queue != queue.queue);
            }
        }
    }

    /// Lets dead letters go on that can: at the end of a turn.
    pub(crate) fn publish_dead_letters<B: Buffers>(
        &mut self,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        self.retry_dead();
        self.dead.is_blocked = false;
        // Each goes on until it waits for something.
        while !self.dead.ready.is_empty() && !self.dead.is_blocked {
            let ready = std::mem::take(&mut self.dead.ready);
            let mut left = ready.into_iter();
            for key in left.by_ref() {
                if !self.publish_dead(key, buffers, effects) {
                    self.dead.ready.push(key);
                    self.dead.is_blocked = true;
                    break;
                }
            }
            self.dead.ready.extend(left);
        }
    }

    /// Goes on with one dead letter. Returns false if others must be waited for.
    fn publish_dead<B: Buffers>(
        &mut self,
        key: u64,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        let Some(letter) = self.dead_letters.get_mut(key) else {
            return true;
        };
        if self.shut_down.is_some() {
            return true;
        }
        let queues = &self.queues;
        letter.here.retain(|queue| queues.get(*queue).is_some());
        if !letter.here.is_empty() {
            if self.underway.is_some() || self.spread.is_stuck() {
                return false;
            }
            let letter = self.dead_letters.get(key).expect("it was just looked at");
            if let Err(code) = self.judge_dead(letter, buffers) {
                self.dead_is_refused(key, code);
                return true;
            }
            self.begin_dead(key, buffers, effects);
            return true;
        }
        let Some((core, _)) = letter.others.last() else {
            self.dead_is_stored(key);
            return true;
        };
        let core = *core;
        let parcel = if letter.large.is_some() {
            0
        } else {
            letter.bytes.len() as u64
        };
        let room = u64::from(self.config.limits.parcel_bytes_max);
        if !self.peers[usize::from(core.0)].takes_publish(parcel, room) {
            return false;
        }
        let letter = self
            .dead_letters
            .get_mut(key)
            .expect("it was just looked at");
        let (producer, epoch, sequence) = letter.name();
        let request = RemotePublish {
            producer,
            epoch,
            first: Sequence(sequence),
            count: 1,
            queues: letter
                .others
                .last()
                .expect("it was just looked at")
                .1
                .clone(),
            fragment: letter.large.map(|message_bytes| FragmentHead {
                message_bytes,
                offset: 0,
            }),
            arrival: None,
            // A large one comes back with the answer.
            bytes: match letter.large {
                Some(_) => std::mem::take(&mut letter.bytes),
                None => letter.bytes.clone(),
            },
        };
        let waiter = Waiter::DeadLetter { key, bytes: parcel };
        self.ask(core, Request::Publish(Box::new(request)), waiter, effects);
        true
    }

    /// Whether the queues of this core take a dead letter now.
    fn judge_dead<B: Buffers>(&self, letter: &DeadLetter, buffers: &B) -> Result<(), Code> {
        let bytes = letter
            .large
            .map_or(letter.bytes.len(), |bytes| bytes as usize);
        let mut volatile = 0;
        for queue in &letter.here {
            let state = self.queues.get(*queue).ok_or(Code::QueueUnknown)?;
            if state.damaged {
                return Err(Code::QueueDamaged);
            }
            if state.durable {
                self.admits()?;
            }
            if !state.queue.has_room_for_dead(1, bytes as u64) {
                return Err(Code::QueueFull);
            }
            volatile += usize::from(!state.durable);
        }
        // A full disk is no reason: it frees as much as it takes, and where some of its queues have it and
        // others not, they know it the next time.
        let pieces = bytes.div_ceil(FRAGMENT_BYTES_MAX);
        self.has_space(0, volatile, bytes, pieces, buffers)
    }

    /// Copies a dead letter into queues of this core.
    fn begin_dead<B: Buffers>(&mut self, key: u64, buffers: &mut B, effects: &mut Effects) {
        let letter = self.dead_letters.get_mut(key).expect("it was judged");
        let bytes = std::mem::take(&mut letter.bytes);
        let (name, here, large) = (letter.name(), letter.here.clone(), letter.large);
        self.begin_broker_publish(key, name, here, (bytes, large));
        self.advance(buffers, effects);
    }

    /// The queues of this core have a dead letter when `block` is durable, or not.
    pub(super) fn dead_is_placed(
        &mut self,
        key: u64,
        bytes: Vec<u8>,
        block: u64,
        outcome: Result<(), Code>,
    ) {
        let Some(letter) = self.dead_letters.get_mut(key) else {
            return;
        };
        letter.bytes = bytes;
        if let Err(code) = outcome {
            self.dead_is_refused(key, code);
            return;
        }
        letter.here.clear();
        letter.is_begun = true;
        letter.refusals = 0;
        letter.block = letter.block.max(block);
        self.dead.ready.push(key);
    }

    /// Another core has answered for a dead letter.
    pub(crate) fn dead_is_answered(&mut self, key: u64, bytes: Vec<u8>, outcome: Result<(), Code>) {
        let Some(letter) = self.dead_letters.get_mut(key) else {
            return;
        };
        if letter.large.is_some() {
            letter.bytes = bytes;
        } else {
            self.keep_parcel(bytes);
        }
        let letter = self
            .dead_letters
            .get_mut(key)
            .expect("it was just looked at");
        match outcome {
            Ok(()) | Err(Code::QueueUnknown) => {
                letter.others.pop();
                letter.is_begun = true;
                letter.refusals = 0;
                self.dead.ready.push(key);
            }
            Err(code) => self.dead_is_refused(key, code),
        }
    }

    /// All queues have a dead letter; when that is durable, its own queue is done with it.
    fn dead_is_stored(&mut self, key: u64) {
        let letter = self.dead_letters.get(key).expect("it was just looked at");
        // Of a journal that has failed only volatile queues are left to wait for: see `dead_has_failed`.
        if letter.block > self.journal.durable_block().0 && !self.failed {
            self.dead_waits.push_back((letter.block, key));
            return;
        }
        self.dead_is_done(key);
    }

    /// What waited for blocks up to the durable one is done with.
    pub(crate) fn dead_are_durable(&mut self, durable: u64) {
        while let Some((block, key)) = self.dead_waits.front().copied()
            && block <= durable
        {
            self.dead_waits.pop_front();
            self.dead_is_done(key);
        }
    }

    fn dead_is_done(&mut self, key: u64) {
        let Some(letter) = self.dead_letters.remove(key) else {
            return;
        };
        self.dead.bytes -= letter.cost;
        self.dead.later.got_through(letter.queue);
        let is_move = self.is_moving(letter.queue, letter.sequence);
        if !is_move {
            self.stats.dead_lettered += 1;
        }
        if let Some(state) = self.queues.get_mut(letter.queue)
            && state
                .queue
                .dead_is_done(letter.sequence, &mut state.settled)
        {
            self.note_settled(letter.queue, 1);
            self.wake(letter.queue);
        }
        if is_move {
            self.moved(letter.queue, letter.sequence, true);
        }
        self.wake_waiting();
    }
}

impl Flow {
    /// Dead letters on their way, those that may go on, that wait for another try and for a block, and the
    /// queues that wait for a place: for tests and for whoever looks for what stands still.
    #[must_use]
    pub fn dead_figures(&self) -> [usize; 5] {
        let dead = &self.dead;
        [
            self.dead_letters.len(),
            dead.ready.len(),
            dead.later.len(),
            self.dead_waits.len(),
            dead.waiting.len() + dead.later.paused(),
        ]
    }
}

/// The headers of a message of whose death they have no room to tell.
fn without_note(message: &envelope::Envelope<'_>, before: Before, out: &mut Vec<u8>) {
    let is_bare =
        before == Before::Claimed && headers::without_deaths(message.headers(), out).is_ok();
    if !is_bare {
        out.clear();
        out.extend_from_slice(message.headers());
    }
}

/// A large message as the bodies of its fragment frames.
fn in_fragments(message: &[u8]) -> Vec<u8> {
    let pieces = message.len().div_ceil(FRAGMENT_BYTES_MAX);
    let mut bodies = Vec::with_capacity(message.len() + pieces * FragmentHead::BYTES);
    for (number, piece) in message.chunks(FRAGMENT_BYTES_MAX).enumerate() {
        let head = FragmentHead {
            message_bytes: message.len() as u32,
            offset: (number * FRAGMENT_BYTES_MAX) as u32,
        };
        bodies.extend_from_slice(&head.encode());
        bodies.extend_from_slice(piece);
    }
    bodies
}
