//! What operators ask about messages of a queue by their places: to see them, to take delayed ones back,
//! to move them elsewhere. Does not know how a queue tells its messages apart.
//!
//! Each request is a *work*. A turn does one bounded step of one work, so that a look at a long backlog
//! costs deliveries a step of a turn and no more; what must be read from disk is asked for, one record at a
//! time, and the work waits for that.

use std::collections::{BTreeMap, VecDeque};

use ringpost_wire::control::{
    Body, MOVE_WITH_KEY, QueueBrowse, QueueBrowsed, QueueCancel, QueueMove, QueueOutcome,
};
use ringpost_wire::ids::{QueueId, QueueSequence};
use ringpost_wire::{
    BROWSE_MESSAGE_BYTES_MAX, BROWSE_MESSAGES_MAX, BROWSED_CUT, BrowsedHead, BrowsedState, Code,
    FRAME_BYTES_MAX, FragmentHead, FrameHeader, FrameKind, envelope, padded,
};

use crate::Effects;
use crate::data::flow::Flow;
use crate::data::queue::{Cancelling, Look, Picked, Queue, Seen, Walked};
use crate::data::route::Condition;
use crate::data::streams::GroupAsker as Asker;
use crate::effect::Buffers;
use crate::ids::ConnId;
use crate::mesh::{PlaceAnswer, PlaceAsk, Reply};

/// Works of a core at a time.
const WORKS_MAX: usize = 64;
/// Messages that a step looks at.
const STEP_MESSAGES: usize = 64;
/// Bytes that a step copies, and then the message that passes them.
const STEP_BYTES: usize = 64 * 1024;
/// Entries of what is delayed that a step looks through.
const STEP_ENTRIES: usize = 8 * 1024;
/// Messages after which an answer is given, whether any is shown or not.
const ANSWER_LOOKED: u32 = 4 * 1024;
/// Bytes of messages after which an answer is given.
const ANSWER_BYTES: usize = 64 * 1024;
/// The most that fits a frame.
const ANSWER_BYTES_MAX: usize = FRAME_BYTES_MAX - 1_024;

const FAILED: (Code, &str) = (
    Code::JournalFailed,
    "the journal of this queue has failed; restart the broker",
);
const DAMAGED: (Code, &str) = (
    Code::QueueDamaged,
    "the queue refuses service because of a damaged range; run `ringpost verify`",
);
const GONE: (Code, &str) = (Code::QueueUnknown, "the queue was deleted meanwhile");

/// Why a request is not done.
type Refusal = (Code, &'static str);

/// Where messages are moved to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MoveTo {
    /// The exchange; empty for the default one.
    pub exchange: Box<[u8]>,
    /// The routing key instead of their own.
    pub routing_key: Option<Box<[u8]>>,
}

/// A look at messages.
#[derive(Debug)]
struct Browsing {
    message_bytes_max: usize,
    messages_max: u32,
    states: u32,
    condition: Option<Box<Condition>>,
    look: Look,
    /// Messages of the look that are dealt with; `None` while the look is not done.
    dealt: Option<usize>,
    walked: Option<Walked>,
    count: u32,
    looked: u32,
    out: Vec<u8>,
}

#[derive(Debug)]
enum Kind {
    Browse(Box<Browsing>),
    Cancel(Cancelling),
    Move(MoveTo),
}

#[derive(Debug)]
struct Work {
    queue: QueueId,
    asker: Asker,
    kind: Kind,
    outcome: QueueOutcome,
    /// Of a move: messages on their way.
    left: u32,
}

/// The works of one core.
#[derive(Debug, Default)]
pub(crate) struct Places {
    works: BTreeMap<u64, Work>,
    number_last: u64,
    /// Works that a step may be done of.
    ready: VecDeque<u64>,
    /// Those that wait for a read.
    reading: Vec<u64>,
    /// Messages on their way elsewhere, and the works that they are of.
    moving: BTreeMap<(QueueId, QueueSequence), u64>,
    /// What is to be in a block, and then durable, before it is answered.
    asks: Vec<(QueueId, Asker, QueueOutcome)>,
    waits: VecDeque<(u64, Asker, QueueOutcome)>,
}

impl Places {
    /// Whether a step may be done now.
    pub(crate) fn wants_turn(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether somebody waits for an ack to be in a block.
    pub(crate) fn has_asks(&self) -> bool {
        !self.asks.is_empty()
    }

    /// Where a message is to be moved that is on its way.
    pub(super) fn moves_to(&self, queue: QueueId, sequence: QueueSequence) -> Option<MoveTo> {
        let number = self.moving.get(&(queue, sequence))?;
        match &self.works.get(number)?.kind {
            Kind::Move(to) => Some(to.clone()),
            Kind::Browse(_) | Kind::Cancel(_) => None,
        }
    }

    fn asks_of(&self, is_its: impl Fn(&Asker) -> bool) -> bool {
        let works = self.works.values().map(|work| &work.asker);
        let asks = self.asks.iter().map(|(_, asker, _)| asker);
        let waits = self.waits.iter().map(|(_, asker, _)| asker);
        works.chain(asks).chain(waits).any(is_its)
    }
}

/// What a frame asks about messages of which queue; or what is wrong with it, for people.
///
/// # Errors
/// [`Code::BodyMalformed`].
pub fn place_ask(kind: FrameKind, body: &[u8]) -> Result<(&[u8], Result<PlaceAsk, String>), Code> {
    match kind {
        FrameKind::QueueBrowse => {
            let browse = QueueBrowse::decode(body)?;
            Ok((browse.queue, browse_ask(&browse)))
        }
        FrameKind::QueueCancel => {
            let cancel = QueueCancel::decode(body)?;
            let places = places_of(cancel.places)?;
            Ok((cancel.queue, in_order(places).map(PlaceAsk::Cancel)))
        }
        FrameKind::QueueMove => {
            let asked = QueueMove::decode(body)?;
            let places = places_of(asked.places)?;
            Ok((asked.queue, move_ask(&asked, places)))
        }
        _ => Err(Code::UnexpectedFrame),
    }
}

fn browse_ask(browse: &QueueBrowse<'_>) -> Result<PlaceAsk, String> {
    let all = BrowsedState::ALL
        .iter()
        .fold(0, |sum, state| sum | *state as u32);
    if browse.messages_max > BROWSE_MESSAGES_MAX {
        return Err(format!(
            "at most {BROWSE_MESSAGES_MAX} messages are shown at a time"
        ));
    }
    if browse.message_bytes_max > BROWSE_MESSAGE_BYTES_MAX {
        return Err(format!(
            "at most {BROWSE_MESSAGE_BYTES_MAX} bytes of a message are shown"
        ));
    }
    if browse.states & !all != 0 {
        return Err("a state of messages is not known".to_owned());
    }
    if !browse.filter.is_empty() {
        Condition::read(browse.filter)?;
    }
    let or = |asked: u32, most: u32| if asked == 0 { most } else { asked };
    Ok(PlaceAsk::Browse {
        from: QueueSequence(browse.from),
        messages_max: or(browse.messages_max, BROWSE_MESSAGES_MAX),
        message_bytes_max: or(browse.message_bytes_max, BROWSE_MESSAGE_BYTES_MAX),
        states: or(browse.states, all),
        filter: (!browse.filter.is_empty()).then(|| browse.filter.into()),
    })
}

fn move_ask(asked: &QueueMove<'_>, places: Vec<u64>) -> Result<PlaceAsk, String> {
    let has_key = asked.flags & MOVE_WITH_KEY != 0;
    if asked.flags & !MOVE_WITH_KEY != 0 {
        return Err("a flag of the move is not known".to_owned());
    }
    if !has_key && !asked.routing_key.is_empty() {
        return Err("the move has a routing key and does not say that it counts".to_owned());
    }
    if has_key && asked.exchange.is_empty() && asked.routing_key == asked.queue {
        return Err("a queue's messages are moved to another one, not to itself".to_owned());
    }
    let to = MoveTo {
        exchange: asked.exchange.into(),
        routing_key: has_key.then(|| asked.routing_key.into()),
    };
    let places = in_order(places)?;
    Ok(PlaceAsk::Move { to, places })
}

fn places_of(bytes: &[u8]) -> Result<Vec<u64>, Code> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Code::BodyMalformed);
    }
    Ok(chunks
        .iter()
        .map(|chunk| u64::from_le_bytes(*chunk))
        .collect())
}

fn in_order(places: Vec<u64>) -> Result<Vec<u64>, String> {
    let is_in_order = places.windows(2).all(|pair| pair[0] < pair[1]);
    if is_in_order && !places.is_empty() && places[0] > 0 {
        return Ok(places);
    }
    Err("the places of messages are named once each, ascending, from 1 on".to_owned())
}

impl Flow {
    /// Begins a work on messages of a queue of this core.
    pub(crate) fn ask_places(
        &mut self,
        queue: QueueId,
        ask: PlaceAsk,
        asker: Asker,
        effects: &mut Effects,
    ) {
        let begun = self.begin_places(queue, ask, asker);
        if let Err(refusal) = begun {
            self.answer_places(asker, Err(refusal), effects);
        }
    }

    fn begin_places(&mut self, queue: QueueId, ask: PlaceAsk, asker: Asker) -> Result<(), Refusal> {
        let state = self.queues.get_mut(queue).ok_or(GONE)?;
        if state.damaged {
            return Err(DAMAGED);
        }
        if self.failed && state.durable {
            return Err(FAILED);
        }
        if self.places.works.len() >= WORKS_MAX {
            return Err((
                Code::Overloaded,
                "as many messages are looked at as may be at a time; try again",
            ));
        }
        let is_stream = state.queue.is_stream();
        if is_stream && !matches!(ask, PlaceAsk::Browse { .. }) {
            return Err((
                Code::SettingInvalid,
                "nothing is taken out of a stream but by its retention",
            ));
        }
        state.queue.set_now(self.now);
        let number = self.places.number_last + 1;
        let mut work = Work {
            queue,
            asker,
            kind: Kind::Cancel(Cancelling::new(Vec::new())),
            outcome: NOTHING,
            left: 0,
        };
        match ask {
            PlaceAsk::Browse {
                from,
                messages_max,
                message_bytes_max,
                states,
                filter,
            } => {
                let condition = filter.map(|text| Condition::read(&text).map(Box::new));
                let condition = condition
                    .transpose()
                    .map_err(|_| (Code::SettingInvalid, "the filter is wrong"))?;
                work.kind = Kind::Browse(Box::new(Browsing {
                    message_bytes_max: message_bytes_max as usize,
                    messages_max,
                    states,
                    condition,
                    look: Look::begin(from),
                    dealt: Some(0),
                    walked: None,
                    count: 0,
                    looked: 0,
                    out: Vec::new(),
                }));
            }
            PlaceAsk::Cancel(places) => work.kind = Kind::Cancel(Cancelling::new(places)),
            PlaceAsk::Move { to, places } => {
                let held = state.queue.held_of(&places);
                for place in places {
                    let sequence = QueueSequence(place);
                    match state.queue.pick(sequence, &held) {
                        Picked::Taken => {
                            work.left += 1;
                            self.places.moving.insert((queue, sequence), number);
                        }
                        Picked::Busy => work.outcome.busy += 1,
                        Picked::Late => work.outcome.late += 1,
                    }
                }
                work.kind = Kind::Move(to);
                self.wake(queue);
            }
        }
        // Even one of which nothing is left is answered by a step.
        self.places.number_last = number;
        self.places.works.insert(number, work);
        self.places.ready.push_back(number);
        Ok(())
    }

    /// Does a step of the work whose turn it is.
    pub(crate) fn step_places<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        if self.shut_down.is_some() {
            return;
        }
        let Some(number) = self.places.ready.pop_front() else {
            return;
        };
        let Some(mut work) = self.places.works.remove(&number) else {
            return;
        };
        let state = self.queues.get(work.queue);
        let refusal = match state {
            None => Some(GONE),
            Some(state) if state.damaged => Some(DAMAGED),
            Some(state) if self.failed && state.durable => Some(FAILED),
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            self.forget_moving(number);
            self.answer_places(work.asker, Err(refusal), effects);
            return;
        }
        let (queue, asker) = (work.queue, work.asker);
        let next = match &mut work.kind {
            Kind::Browse(browsing) => self.browse(queue, browsing, buffers, effects),
            Kind::Cancel(cancelling) => {
                let state = self.queues.get_mut(queue).expect("it was just looked at");
                let (done, is_done) =
                    state
                        .queue
                        .cancel_some(cancelling, STEP_ENTRIES, &mut state.settled);
                work.outcome.done += done;
                if done > 0 {
                    self.note_settled(queue, u64::from(done));
                }
                if is_done {
                    work.outcome.late = cancelling.left();
                    self.is_settling_urgent = true;
                    self.places.asks.push((queue, asker, work.outcome));
                    // Where nothing is to be written this is the end of it.
                    self.places_are_appended(effects);
                    return;
                }
                Next::Again
            }
            Kind::Move(_) if work.left == 0 => {
                let answer = PlaceAnswer::Outcome(outcome_numbers(work.outcome));
                Next::Answer(Ok(answer))
            }
            Kind::Move(_) => Next::Waits,
        };
        match next {
            Next::Answer(answer) => {
                self.answer_places(asker, answer, effects);
                return;
            }
            Next::Again => self.places.ready.push_back(number),
            Next::Reads => self.places.reading.push(number),
            Next::Waits => {}
        }
        self.places.works.insert(number, work);
    }

    /// Something has come from disk, or may have: who waits for that looks again.
    pub(crate) fn places_read(&mut self) {
        let Places { ready, reading, .. } = &mut self.places;
        ready.extend(reading.drain(..));
    }

    /// Shows some more messages.
    //= P-111
    fn browse<B: Buffers>(
        &mut self,
        queue: QueueId,
        browsing: &mut Browsing,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Next {
        let mut copied = 0;
        let mut looked = 0;
        loop {
            let state = self.queues.get_mut(queue).expect("it was just looked at");
            let Some(dealt) = browsing.dealt else {
                if !state.queue.look_on(&mut browsing.look, STEP_ENTRIES) {
                    return Next::Again;
                }
                browsing.dealt = Some(0);
                continue;
            };
            let Some(seen) = browsing.look.found.get(dealt).copied() else {
                let Some(from) = browsing.look.next else {
                    return self.browsed(queue, browsing, 0);
                };
                if browsing.looked >= ANSWER_LOOKED {
                    return self.browsed(queue, browsing, from.0);
                }
                if looked > 0 {
                    return Next::Again;
                }
                browsing.look = state.queue.look(from, STEP_MESSAGES);
                browsing.dealt = None;
                looked += 1;
                continue;
            };
            let is_shown = browsing.states & seen.state as u32 != 0;
            if !is_shown {
                browsing.dealt = Some(dealt + 1);
                browsing.looked += 1;
                continue;
            }
            let is_full = browsing.count >= browsing.messages_max
                || browsing.out.len() >= ANSWER_BYTES
                || browsing.looked >= ANSWER_LOOKED;
            if is_full {
                return self.browsed(queue, browsing, seen.sequence.0);
            }
            if copied >= STEP_BYTES {
                return Next::Again;
            }
            match self.show(queue, &seen, browsing, buffers, effects) {
                Shown::Bytes(bytes) => copied += bytes,
                Shown::Full => return self.browsed(queue, browsing, seen.sequence.0),
                Shown::Reads => return Next::Reads,
                Shown::Damaged => return Next::Answer(Err(DAMAGED)),
            }
            browsing.dealt = Some(dealt + 1);
            browsing.looked += 1;
        }
    }

    fn browsed(&self, queue: QueueId, browsing: &mut Browsing, next: u64) -> Next {
        let newest = self
            .queues
            .get(queue)
            .map(|state| state.queue.next_sequence());
        Next::Answer(Ok(PlaceAnswer::Browsed {
            next,
            newest: newest.map_or(0, |next| next.0 - 1),
            count: browsing.count,
            messages: std::mem::take(&mut browsing.out),
        }))
    }

    /// Copies a message into the answer, if it is to be shown.
    fn show<B: Buffers>(
        &mut self,
        queue: QueueId,
        seen: &Seen,
        browsing: &mut Browsing,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Shown {
        let state = self.queues.get_mut(queue).expect("it was just looked at");
        let durable = state.durable;
        let Some(offer) = state.queue.place_of(seen.sequence, browsing.walked) else {
            // It is done with meanwhile.
            return Shown::Bytes(0);
        };
        let place = match state.queue.pieces(seen.sequence) {
            Some(pieces) if offer.fragmented => pieces[0],
            _ => offer.place,
        };
        let located = self.locate_alone(queue, durable, place, seen.sequence, buffers, effects);
        let Some((buffer, body)) = located else {
            let is_damaged = self.queues.get(queue).is_none_or(|state| state.damaged);
            return match is_damaged {
                true => Shown::Damaged,
                false => Shown::Reads,
            };
        };
        let run = buffers.bytes(buffer, body);
        let message = match offer.fragmented {
            true => FragmentHead::split(run)
                .ok()
                .map(|(head, piece)| (0, head.message_bytes as usize, piece)),
            false => offer.locate(run).and_then(|start| {
                let bytes = run.get(start as usize..)?;
                let length = envelope::length_of(bytes)?;
                Some((start, length, bytes.get(..length)?))
            }),
        };
        let read = message.and_then(|(start, length, bytes)| {
            Some((start, length, bytes, envelope::open(bytes).ok()?))
        });
        let Some((start, length, bytes, message)) = read else {
            self.damaged(queue, offer.place, seen.sequence, effects);
            return Shown::Damaged;
        };
        browsing.walked = Queue::walked_behind(&offer, start, padded(length) as u32);
        if let Some(condition) = &mut browsing.condition
            && !condition.holds(&message)
        {
            return Shown::Bytes(bytes.len());
        }
        let head_bytes = bytes.len() - message.payload().len();
        let shown = browsing.message_bytes_max.max(head_bytes).min(bytes.len());
        let entry = BrowsedHead::BYTES + padded(shown);
        if browsing.count > 0 && browsing.out.len() + entry > ANSWER_BYTES_MAX {
            return Shown::Full;
        }
        let holder = seen.holder.and_then(|key| self.sinks.get(key.0));
        let due_ms = seen.due.map_or(0, |due| {
            due.0.saturating_sub(self.now.0).div_ceil(1_000_000)
        });
        let head = BrowsedHead {
            place: seen.sequence.0,
            due_ms,
            connection: holder.map_or(0, |sink| sink.conn.0),
            deliveries: seen.deliveries,
            message_bytes: length as u32,
            shown_bytes: shown as u32,
            channel: holder.map_or(0, |sink| sink.channel),
            core: holder.map_or(0, |sink| sink.core.0),
            state: seen.state,
            flags: if shown < length { BROWSED_CUT } else { 0 },
        };
        browsing.out.extend_from_slice(&head.encode());
        browsing.out.extend_from_slice(&bytes[..shown]);
        let end = browsing.out.len() + padded(shown) - shown;
        browsing.out.resize(end, 0);
        browsing.count += 1;
        Shown::Bytes(shown)
    }

    // Moves.

    /// Whether a message is one that is moved.
    pub(super) fn is_moving(&self, queue: QueueId, sequence: QueueSequence) -> bool {
        self.places.moving.contains_key(&(queue, sequence))
    }

    /// A message was moved, or no queue took it and it stays.
    pub(super) fn moved(&mut self, queue: QueueId, sequence: QueueSequence, is_done: bool) {
        let Some(number) = self.places.moving.remove(&(queue, sequence)) else {
            return;
        };
        if !is_done && let Some(state) = self.queues.get_mut(queue) {
            state.queue.unpick(sequence);
            self.wake(queue);
        }
        let Some(work) = self.places.works.get_mut(&number) else {
            return;
        };
        work.left -= 1;
        match is_done {
            true => work.outcome.done += 1,
            false => work.outcome.refused += 1,
        }
        if work.left == 0 && !self.places.ready.contains(&number) {
            self.places.ready.push_back(number);
        }
    }

    fn forget_moving(&mut self, number: u64) {
        self.places.moving.retain(|_, of| *of != number);
    }

    /// A queue was deleted, or its journal has failed: who waits for its messages is told.
    pub(super) fn end_places_of(&mut self, queue: QueueId) {
        let of_queue = self
            .places
            .works
            .iter()
            .filter(|(_, work)| work.queue == queue);
        let numbers: Vec<u64> = of_queue.map(|(number, _)| *number).collect();
        for number in numbers {
            if !self.places.ready.contains(&number) {
                self.places.ready.push_back(number);
            }
        }
        self.places.reading.clear();
    }

    // Answers.

    /// What was cancelled stands in the open block, if it found room: it waits for that.
    pub(crate) fn places_are_appended(&mut self, effects: &mut Effects) {
        let mut asks = std::mem::take(&mut self.places.asks);
        for (queue, asker, outcome) in asks.drain(..) {
            let state = self.queues.get(queue);
            let waits = state.is_some_and(|state| !state.settled.is_empty());
            let durable = state.is_some_and(|state| state.durable);
            if waits && !(self.failed && durable) {
                self.places.asks.push((queue, asker, outcome));
            } else if self.failed && durable {
                self.answer_places(asker, Err(FAILED), effects);
            } else if durable && self.journal.open_block() > self.journal.durable_block() {
                let block = self.journal.open_block().0;
                self.places.waits.push_back((block, asker, outcome));
            } else {
                let answer = PlaceAnswer::Outcome(outcome_numbers(outcome));
                self.answer_places(asker, Ok(answer), effects);
            }
        }
    }

    pub(crate) fn places_are_durable(&mut self, durable: u64, effects: &mut Effects) {
        while let Some((block, asker, outcome)) = self.places.waits.front().copied()
            && block <= durable
        {
            self.places.waits.pop_front();
            let answer = PlaceAnswer::Outcome(outcome_numbers(outcome));
            self.answer_places(asker, Ok(answer), effects);
        }
    }

    /// The journal has failed: nobody knows what of that is on disk.
    pub(crate) fn fail_places(&mut self, effects: &mut Effects) {
        for (_, asker, _) in std::mem::take(&mut self.places.waits) {
            self.answer_places(asker, Err(FAILED), effects);
        }
        let numbers: Vec<u64> = self.places.works.keys().copied().collect();
        self.places.ready = numbers.into();
        self.places.reading.clear();
        self.places_are_appended(effects);
    }

    /// Whether a connection waits for an answer about messages.
    pub(crate) fn is_asking_places(&self, conn: ConnId) -> bool {
        self.places
            .asks_of(|asker| matches!(asker, Asker::Here { conn: c, .. } if *c == conn))
    }

    fn answer_places(
        &mut self,
        asker: Asker,
        outcome: Result<PlaceAnswer, Refusal>,
        effects: &mut Effects,
    ) {
        match asker {
            Asker::Here { conn, header } => self.say_places(conn, header, outcome, effects),
            Asker::There { core, id } => self.reply(core, id, Reply::Places(outcome), effects),
        }
    }

    /// Answers a request about messages.
    pub(crate) fn say_places(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        outcome: Result<PlaceAnswer, Refusal>,
        effects: &mut Effects,
    ) {
        match outcome {
            Err((code, reason)) => self.fail(conn, header, code, reason, effects),
            Ok(PlaceAnswer::Browsed {
                next,
                newest,
                count,
                messages,
            }) => {
                let body = QueueBrowsed {
                    next,
                    newest,
                    messages: &messages,
                };
                let answer = FrameHeader {
                    count,
                    ..FrameHeader::bare(FrameKind::QueueBrowsed, 0, header.sequence)
                };
                self.say(conn, effects, |out| body.write(out, answer));
            }
            Ok(PlaceAnswer::Outcome([done, late, busy, refused])) => {
                let body = QueueOutcome {
                    done,
                    late,
                    busy,
                    refused,
                };
                let answer = FrameHeader::bare(FrameKind::QueueOutcome, 0, header.sequence);
                self.say(conn, effects, |out| body.write(out, answer));
            }
        }
    }
}

const NOTHING: QueueOutcome = QueueOutcome {
    done: 0,
    late: 0,
    busy: 0,
    refused: 0,
};

const fn outcome_numbers(outcome: QueueOutcome) -> [u32; 4] {
    [outcome.done, outcome.late, outcome.busy, outcome.refused]
}

/// How a work goes on.
enum Next {
    Answer(Result<PlaceAnswer, Refusal>),
    Again,
    /// When something was read.
    Reads,
    /// When its messages have arrived.
    Waits,
}

enum Shown {
    /// It was looked at, so many bytes; or it is not there any more.
    Bytes(usize),
    /// It goes into the next answer.
    Full,
    Reads,
    Damaged,
}
