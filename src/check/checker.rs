//! Judges a history, one event at a time. Does not know where events come from, and keeps about
//! 50 bytes per message: its hash, and one small record per queue that it was sent to.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::event::{
    AckMode, ConsumerNo, Delivery, Durability, Event, Level, MessageId, QueueNo, Refusal, Target,
};
use crate::verdict::{Counts, Kind, Verdict, Violation};

/// Violations that are kept with their text; further ones are counted.
const VIOLATIONS_KEPT_MAX: usize = 64;
/// Highest queue or consumer number: they index tables.
const NUMBER_MAX: u32 = 1 << 24;
/// How far a sequence may lie beyond the highest of its producer.
const SEQUENCE_GAP_MAX: u64 = 1 << 20;

/// What is known of a publish, apart from where it is.
#[derive(Clone, Copy)]
struct Message {
    hash: u64,
    /// First of its records in `Checker::copies`.
    copies: u32,
    /// Crashes when it was first sent.
    crashes: u32,
    copy_count: u16,
    /// The level asked for.
    asked: Level,
    /// The highest level it was ever confirmed at.
    promised: Level,
    /// Sent at all: the sequence is not just a gap.
    known: bool,
    /// An answer is out.
    waiting: bool,
    /// The answer to the last attempt was a confirm.
    confirmed: bool,
    refused: bool,
    /// It was published again when the answer was no longer out: its place is that of whichever
    /// attempt was stored.
    repeated: bool,
    /// An earlier attempt has no outcome or was confirmed: a refusal of a later one proves nothing.
    may_be_stored: bool,
}

const GAP: Message = Message {
    hash: 0,
    copies: 0,
    crashes: 0,
    copy_count: 0,
    asked: Level::None,
    promised: Level::None,
    known: false,
    waiting: false,
    confirmed: false,
    refused: false,
    repeated: false,
    may_be_stored: false,
};

/// A message in one queue, as clients have seen it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Never delivered.
    Unseen,
    /// Delivered to `Copy::holder`.
    Held,
    /// Given back.
    Returned,
    /// Acked or rejected by `Copy::holder`, not confirmed.
    Settled,
    /// The ack was confirmed.
    Gone,
}

/// One message in one queue that it may have been routed to.
#[derive(Clone, Copy)]
struct Copy {
    place: u64,
    queue: u32,
    holder: u32,
    /// `Queue::drops` when it was first sent.
    drops: u32,
    /// Crashes when it was first delivered.
    crashes: u32,
    /// Crashes when it was last acked.
    acked: u32,
    deliveries: u16,
    state: State,
    certain: bool,
    /// It was seen where its queue sends its dead.
    died: bool,
}

struct Producer {
    id: u64,
    /// Sequence of `messages[0]`.
    first: u64,
    messages: Vec<Message>,
}

struct Queue {
    known: bool,
    durability: Durability,
    /// How often messages may have left it legally.
    drops: u32,
    /// Consumers closed or lost.
    losses: u32,
    /// Messages that may have returned since the last calm.
    returns: u32,
    /// A bit for every place that was seen.
    places: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Unknown,
    Alive,
    Closed,
    Lost,
}

struct Consumer {
    queue: u32,
    life: Life,
    mode: AckMode,
    /// Place of its last delivery.
    last: u64,
    /// How often a delivery had an earlier place than the one before, since the last calm.
    descents: u32,
}

/// Judges one history. See the crate's page for what is decided.
pub struct Checker {
    producers: Vec<Producer>,
    producer_of: HashMap<u64, u32, BuildHasherDefault<IdHasher>>,
    /// The producer looked up last: histories come in runs.
    recent: (u64, u32),
    copies: Vec<Copy>,
    queues: Vec<Queue>,
    consumers: Vec<Consumer>,
    alive: Vec<u32>,
    verdict: Verdict,
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// A checker that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            producers: Vec::new(),
            producer_of: HashMap::default(),
            recent: (0, u32::MAX),
            copies: Vec::new(),
            queues: Vec::new(),
            consumers: Vec::new(),
            alive: Vec::new(),
            verdict: Verdict::default(),
        }
    }

    /// Takes the next event.
    pub fn event(&mut self, event: Event<'_>) {
        self.verdict.counts.events += 1;
        match event {
            Event::Queue { queue, durability } => self.queue(queue, durability),
            Event::Dropped { queue } => {
                if let Some(queue) = self.known_queue(queue) {
                    queue.drops += 1;
                }
            }
            Event::Died { queue, message } => self.died(queue, message),
            Event::Sent {
                message,
                hash,
                level,
                targets,
            } => self.sent(message, hash, level, targets),
            Event::Confirmed {
                producer,
                first,
                last,
                level,
            } => self.confirmed(producer, first, last, level),
            Event::Refused { message, why } => self.refused(message, why),
            Event::Unknown { message } => self.unknown(message),
            Event::Consumer {
                consumer,
                queue,
                mode,
            } => self.consumer(consumer, queue, mode),
            Event::Delivered(delivery) => self.delivered(delivery),
            Event::Acked { queue, message } => {
                self.verdict.counts.acked += 1;
                self.settle(queue, message, State::Settled);
            }
            Event::AckConfirmed { queue, message } => {
                self.verdict.counts.ack_confirmed += 1;
                self.settle(queue, message, State::Gone);
            }
            Event::Returned { queue, message } => self.settle(queue, message, State::Returned),
            Event::Apart { queue } => {
                if let Some(queue) = self.queues.get_mut(queue.0 as usize) {
                    queue.returns = queue.returns.saturating_add(1);
                }
            }
            Event::ConsumerClosed { consumer } => self.gone(consumer, Life::Closed),
            Event::ConsumerLost { consumer } => self.gone(consumer, Life::Lost),
            Event::Crash => self.crash(),
            Event::Calm => self.calm(),
            Event::End => self.end(),
        }
    }

    /// Violations so far, also those beyond the ones that are kept.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.verdict.violation_count
    }

    /// The violations kept so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.verdict.violations
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.verdict.counts
    }

    /// The verdict on what was read.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        self.verdict
    }

    fn sent(&mut self, id: MessageId, hash: u64, level: Level, targets: &[Target]) {
        let crashes = self.verdict.counts.crashes as u32;
        let Some(targets_fit) = u16::try_from(targets.len()).ok() else {
            return self.bad(Some(id), None, "more than 65,535 targets");
        };
        if targets
            .iter()
            .any(|target| !self.queue_is_known(target.queue()))
        {
            return self.bad(Some(id), None, "sent to a queue that was never stated");
        }
        let producer = self.producer_or_new(id);
        let Some(at) = self.message_slot(producer, id) else {
            return self.bad(
                Some(id),
                None,
                "sequence is far from the others of its producer",
            );
        };
        let message = self.producers[producer].messages[at];
        if message.known {
            return self.sent_again(producer, at, id, hash, targets);
        }
        let copies = self.copies.len() as u32;
        for target in targets {
            let queue = target.queue().0;
            self.copies.push(Copy {
                place: 0,
                queue,
                holder: u32::MAX,
                drops: self.queues[queue as usize].drops,
                crashes: 0,
                acked: 0,
                deliveries: 0,
                state: State::Unseen,
                certain: matches!(target, Target::Must(_)),
                died: false,
            });
        }
        self.producers[producer].messages[at] = Message {
            hash,
            copies,
            crashes,
            copy_count: targets_fit,
            asked: level,
            promised: Level::None,
            known: true,
            waiting: level != Level::None,
            confirmed: false,
            refused: false,
            repeated: false,
            may_be_stored: false,
        };
        self.verdict.counts.sent += 1;
    }

    /// A repeat: what both name is certain if it was, all else becomes possible. What may have
    /// happened to the first attempt (a purge, a crash of a volatile queue) excuses the second,
    /// which may have been taken for a duplicate.
    fn sent_again(
        &mut self,
        producer: usize,
        at: usize,
        id: MessageId,
        hash: u64,
        targets: &[Target],
    ) {
        let mut message = self.producers[producer].messages[at];
        if message.hash != hash {
            return self.bad(Some(id), None, "sent again with another hash");
        }
        let old = message.copies as usize..message.copies as usize + message.copy_count as usize;
        for copy in &mut self.copies[old.clone()] {
            copy.certain &= targets.contains(&Target::Must(QueueNo(copy.queue)));
        }
        let is_new = |checker: &Self, target: &Target| {
            checker.copies[old.clone()]
                .iter()
                .all(|copy| copy.queue != target.queue().0)
        };
        if targets.iter().any(|target| is_new(self, target)) {
            let start = self.copies.len();
            self.copies.extend_from_within(old.clone());
            for target in targets {
                if is_new(self, target) {
                    self.copies.push(Copy {
                        place: 0,
                        queue: target.queue().0,
                        holder: u32::MAX,
                        drops: self.queues[target.queue().0 as usize].drops,
                        crashes: 0,
                        acked: 0,
                        deliveries: 0,
                        state: State::Unseen,
                        certain: false,
                        died: false,
                    });
                }
            }
            message.copies = start as u32;
            message.copy_count = (self.copies.len() - start) as u16;
        }
        message.may_be_stored |= !message.waiting && !message.refused;
        message.repeated |= !message.waiting;
        message.waiting = message.asked != Level::None;
        message.confirmed = false;
        message.refused = false;
        self.producers[producer].messages[at] = message;
    }

    fn confirmed(&mut self, producer: u64, first: u64, last: u64, level: Level) {
        let id = |sequence| MessageId { producer, sequence };
        let Some(index) = self.producer(producer) else {
            return self.bad(Some(id(first)), None, "confirm for an unknown producer");
        };
        let base = self.producers[index].first;
        let end = base + self.producers[index].messages.len() as u64;
        if first < base || last >= end || first > last {
            return self.bad(Some(id(last)), None, "confirm for what was never sent");
        }
        for sequence in first..=last {
            let at = (sequence - base) as usize;
            let message = &mut self.producers[index].messages[at];
            if !message.waiting {
                if message.confirmed {
                    self.broken(Kind::AnsweredTwice, Some(id(sequence)), None, None, || {
                        "confirmed before".into()
                    });
                }
                continue;
            }
            message.waiting = false;
            message.confirmed = true;
            message.promised = message.promised.max(level);
            let message = *message;
            self.verdict.counts.confirmed += 1;
            if level == Level::Durable {
                self.verdict.counts.confirmed_durable += 1;
                let volatile = self.copies_of(&message).iter().find(|copy| {
                    copy.certain
                        && self.queues[copy.queue as usize].durability == Durability::Volatile
                });
                if let Some(queue) = volatile.map(|copy| QueueNo(copy.queue)) {
                    self.broken(
                        Kind::LevelOverstated,
                        Some(id(sequence)),
                        Some(queue),
                        None,
                        || "a target is volatile".into(),
                    );
                }
            }
        }
    }

    fn refused(&mut self, id: MessageId, why: Refusal) {
        let Some((producer, at)) = self.find(id) else {
            return self.bad(Some(id), None, "refused but never sent");
        };
        let message = &mut self.producers[producer].messages[at];
        if !message.waiting && message.asked != Level::None {
            return self.broken(Kind::AnsweredTwice, Some(id), None, None, || {
                "refused after another answer".into()
            });
        }
        message.waiting = false;
        message.refused = !message.may_be_stored;
        let message = *message;
        self.verdict.counts.refused += 1;
        if why == Refusal::Unroutable
            && let Some(copy) = self.copies_of(&message).iter().find(|copy| copy.certain)
        {
            let queue = QueueNo(copy.queue);
            self.broken(
                Kind::WronglyUnroutable,
                Some(id),
                Some(queue),
                None,
                String::new,
            );
        }
        let seen = self
            .copies_of(&message)
            .iter()
            .find(|copy| copy.deliveries > 0 && message.refused)
            .map(|copy| QueueNo(copy.queue));
        if let Some(queue) = seen {
            self.broken(Kind::RefusedButSeen, Some(id), Some(queue), None, || {
                "refused after it was delivered".into()
            });
        }
    }

    fn unknown(&mut self, id: MessageId) {
        let Some((producer, at)) = self.find(id) else {
            return self.bad(Some(id), None, "unknown outcome of what was never sent");
        };
        let message = &mut self.producers[producer].messages[at];
        if message.waiting {
            message.waiting = false;
            self.verdict.counts.unknown += 1;
        }
    }

    fn delivered(&mut self, delivery: Delivery) {
        let Delivery {
            consumer,
            queue,
            place,
            message: id,
            hash,
            redelivered,
            count,
        } = delivery;
        self.verdict.counts.delivered += 1;
        if !self.consumer_is_alive(consumer, queue) {
            return self.bad(
                Some(id),
                Some(queue),
                "delivered to a consumer that is not there",
            );
        }
        self.order_of_consumer(&delivery);
        let names = (Some(id), Some(queue), Some(consumer));
        let Some((producer, at)) = self.find(id) else {
            return self.broken(Kind::Phantom, names.0, names.1, names.2, String::new);
        };
        let message = self.producers[producer].messages[at];
        if message.refused {
            self.broken(Kind::RefusedButSeen, names.0, names.1, names.2, String::new);
        }
        if message.hash != hash {
            self.broken(Kind::HashMismatch, names.0, names.1, names.2, || {
                format!("sent {:016x}, received {hash:016x}", message.hash)
            });
        }
        let Some(copy_at) = self.copy_at(&message, queue) else {
            return self.broken(Kind::CrossQueue, names.0, names.1, names.2, String::new);
        };
        let mut copy = self.copies[copy_at];
        let crashes = self.verdict.counts.crashes as u32;
        let losses = self.queues[queue.0 as usize].losses;
        if copy.deliveries == 0 {
            copy.crashes = crashes;
            if place != 0 && !self.mark_place(queue, place) {
                self.broken(Kind::PlaceReused, names.0, names.1, names.2, || {
                    format!("place {place}")
                });
            }
            if redelivered && losses + crashes == 0 {
                self.broken(
                    Kind::FlaggedWithoutCause,
                    names.0,
                    names.1,
                    names.2,
                    String::new,
                );
            }
        } else {
            self.verdict.counts.redelivered += 1;
            if !redelivered {
                self.broken(Kind::UnflaggedDuplicate, names.0, names.1, names.2, || {
                    format!("delivered {} times before", copy.deliveries)
                });
            }
            if place != copy.place {
                self.broken(Kind::PlaceChanged, names.0, names.1, names.2, || {
                    format!("place {} before, {place} now", copy.place)
                });
            }
        }
        let seen = u32::from(copy.deliveries);
        if count < seen {
            self.broken(Kind::CountTooLow, names.0, names.1, names.2, || {
                format!("stated {count}, seen {seen}")
            });
        }
        if count > seen + losses + crashes {
            self.broken(Kind::CountTooHigh, names.0, names.1, names.2, || {
                format!("stated {count}, seen {seen}, {losses} losses, {crashes} crashes")
            });
        }
        let holder = self.consumers.get(copy.holder as usize);
        let holder_life = holder.map_or(Life::Unknown, |holder| holder.life);
        match copy.state {
            State::Unseen | State::Returned => {}
            State::Held if holder_life != Life::Alive => {}
            State::Held => self.broken(Kind::TwoHolders, names.0, names.1, names.2, || {
                format!("held by consumer {}", copy.holder)
            }),
            State::Settled if holder_life == Life::Lost || copy.acked != crashes => {}
            State::Settled => {
                self.broken(Kind::DeliveredAfterAck, names.0, names.1, names.2, || {
                    format!("acked by consumer {}", copy.holder)
                });
            }
            State::Gone => {
                let kind = Kind::DeliveredAfterAckConfirm;
                self.broken(kind, names.0, names.1, names.2, String::new);
            }
        }
        copy.place = place;
        copy.deliveries = copy.deliveries.saturating_add(1);
        copy.holder = consumer.0;
        copy.acked = crashes;
        copy.state = match self.consumers[consumer.0 as usize].mode {
            AckMode::Acks => State::Held,
            AckMode::OnSend => State::Settled,
        };
        self.copies[copy_at] = copy;
    }

    /// Deliveries of one consumer descend only where something returned to the queue.
    fn order_of_consumer(&mut self, delivery: &Delivery) {
        let returns = self.queues[delivery.queue.0 as usize].returns;
        let consumer = &mut self.consumers[delivery.consumer.0 as usize];
        let last = consumer.last;
        if delivery.place == 0 {
            return;
        }
        consumer.last = delivery.place;
        if delivery.place <= last {
            consumer.descents += 1;
            if consumer.descents > returns {
                let names = (
                    Some(delivery.message),
                    Some(delivery.queue),
                    Some(delivery.consumer),
                );
                self.broken(Kind::DeliveredOutOfOrder, names.0, names.1, names.2, || {
                    format!(
                        "place {} after {last}, {returns} returns to the queue",
                        delivery.place
                    )
                });
            }
        }
    }

    fn settle(&mut self, queue: QueueNo, id: MessageId, to: State) {
        // Also of what should not have come from this queue: the next delivery descends for it.
        if to == State::Returned
            && let Some(queue) = self.queues.get_mut(queue.0 as usize)
        {
            queue.returns = queue.returns.saturating_add(1);
        }
        let copy = self
            .find(id)
            .and_then(|(producer, at)| {
                let message = self.producers[producer].messages[at];
                self.copy_at(&message, queue)
            })
            .filter(|at| self.copies[*at].deliveries > 0);
        let Some(at) = copy else {
            // A phantom or a leak, reported when it was delivered; settling it says nothing new.
            return;
        };
        let crashes = self.verdict.counts.crashes as u32;
        let copy = &mut self.copies[at];
        if copy.state != State::Gone {
            copy.state = to;
            copy.acked = crashes;
        }
    }

    fn died(&mut self, queue: QueueNo, id: MessageId) {
        let Some((producer, at)) = self.find(id) else {
            return self.broken(Kind::Phantom, Some(id), Some(queue), None, String::new);
        };
        let message = self.producers[producer].messages[at];
        if message.refused {
            self.broken(
                Kind::RefusedButSeen,
                Some(id),
                Some(queue),
                None,
                String::new,
            );
        }
        if let Some(copy) = self.copy_at(&message, queue) {
            self.copies[copy].died = true;
        }
    }

    fn queue(&mut self, queue: QueueNo, durability: Durability) {
        if queue.0 >= NUMBER_MAX {
            return self.bad(None, Some(queue), "queue number is too high");
        }
        if self.queue_is_known(queue) {
            return self.bad(None, Some(queue), "queue stated twice");
        }
        while self.queues.len() <= queue.0 as usize {
            self.queues.push(Queue {
                known: false,
                durability,
                drops: 0,
                losses: 0,
                returns: 0,
                places: Vec::new(),
            });
        }
        let entry = &mut self.queues[queue.0 as usize];
        entry.known = true;
        entry.durability = durability;
    }

    fn consumer(&mut self, consumer: ConsumerNo, queue: QueueNo, mode: AckMode) {
        if consumer.0 >= NUMBER_MAX || !self.queue_is_known(queue) {
            return self.bad(
                None,
                Some(queue),
                "consumer number too high or queue unknown",
            );
        }
        while self.consumers.len() <= consumer.0 as usize {
            self.consumers.push(Consumer {
                queue: 0,
                life: Life::Unknown,
                mode: AckMode::Acks,
                last: 0,
                descents: 0,
            });
        }
        if self.consumers[consumer.0 as usize].life != Life::Unknown {
            return self.bad(None, Some(queue), "consumer number used twice");
        }
        self.consumers[consumer.0 as usize] = Consumer {
            queue: queue.0,
            life: Life::Alive,
            mode,
            last: 0,
            descents: 0,
        };
        self.alive.push(consumer.0);
    }

    fn gone(&mut self, consumer: ConsumerNo, life: Life) {
        let Some(entry) = self.consumers.get_mut(consumer.0 as usize) else {
            return self.bad(None, None, "consumer gone that was never there");
        };
        if entry.life != Life::Alive {
            if entry.life == Life::Closed {
                // The connection went down before the close was answered.
                entry.life = life;
            }
            return;
        }
        entry.life = life;
        let (queue, mode) = (entry.queue as usize, entry.mode);
        self.alive.retain(|alive| *alive != consumer.0);
        let queue = &mut self.queues[queue];
        queue.losses += 1;
        // Any number of messages may return to their places.
        queue.returns = queue.returns.saturating_add(1 << 20);
        if mode == AckMode::OnSend {
            // What was sent to it and did not arrive is settled all the same.
            queue.drops += 1;
        }
    }

    fn crash(&mut self) {
        for consumer in core::mem::take(&mut self.alive) {
            self.gone(ConsumerNo(consumer), Life::Lost);
        }
        self.verdict.counts.crashes += 1;
        for queue in &mut self.queues {
            if queue.durability == Durability::Volatile {
                queue.places.clear();
            }
        }
    }

    fn calm(&mut self) {
        for queue in &mut self.queues {
            queue.returns = 0;
        }
        for consumer in &mut self.consumers {
            consumer.descents = 0;
        }
    }

    fn end(&mut self) {
        self.verdict.ended = true;
        // Per queue: the producer that wrote the entry, its last place, its crash count.
        let mut last: Vec<(u32, u32, u64)> = vec![(u32::MAX, 0, 0); self.queues.len()];
        for producer in 0..self.producers.len() {
            for at in 0..self.producers[producer].messages.len() {
                let message = self.producers[producer].messages[at];
                if !message.known {
                    continue;
                }
                let id = MessageId {
                    producer: self.producers[producer].id,
                    sequence: self.producers[producer].first + at as u64,
                };
                if message.waiting {
                    self.broken(Kind::NeverAnswered, Some(id), None, None, String::new);
                }
                for copy_at in message.copies..message.copies + u32::from(message.copy_count) {
                    let copy = self.copies[copy_at as usize];
                    self.end_of_copy(id, &message, &copy);
                    let entry = &mut last[copy.queue as usize];
                    let is_comparable = entry.0 == producer as u32
                        && (self.queues[copy.queue as usize].durability == Durability::Durable
                            || entry.1 == copy.crashes);
                    if copy.place == 0 || message.repeated {
                        continue;
                    }
                    let before = entry.2;
                    *entry = (producer as u32, copy.crashes, copy.place);
                    if is_comparable && copy.place <= before {
                        self.broken(
                            Kind::PlacesOutOfOrder,
                            Some(id),
                            Some(QueueNo(copy.queue)),
                            None,
                            || format!("place {}, an earlier publish has {before}", copy.place),
                        );
                    }
                }
            }
        }
    }

    /// Whether a copy that should be somewhere is nowhere.
    fn end_of_copy(&mut self, id: MessageId, message: &Message, copy: &Copy) {
        let queue = &self.queues[copy.queue as usize];
        let holder = self.consumers.get(copy.holder as usize);
        let is_safe = match copy.state {
            _ if copy.died => true,
            State::Settled | State::Gone => true,
            State::Held => holder.is_some_and(|holder| holder.life == Life::Alive),
            State::Unseen | State::Returned => false,
        };
        let was_dropped = queue.drops != copy.drops;
        let crashed = u64::from(message.crashes) != self.verdict.counts.crashes;
        if is_safe || was_dropped || (crashed && queue.durability == Durability::Volatile) {
            return;
        }
        let is_promised = match message.promised {
            Level::None => false,
            Level::Volatile => !crashed,
            Level::Durable => true,
        };
        let name = QueueNo(copy.queue);
        if is_promised && (copy.certain || copy.deliveries > 0) {
            self.broken(Kind::Lost, Some(id), Some(name), None, || {
                format!(
                    "confirmed {:?}, delivered {} times, then {:?}",
                    message.promised, copy.deliveries, copy.state
                )
            });
        } else if copy.deliveries > 0 {
            self.broken(Kind::Vanished, Some(id), Some(name), None, || {
                format!("delivered {} times, then {:?}", copy.deliveries, copy.state)
            });
        }
    }

    fn queue_is_known(&self, queue: QueueNo) -> bool {
        self.queues
            .get(queue.0 as usize)
            .is_some_and(|queue| queue.known)
    }

    fn known_queue(&mut self, queue: QueueNo) -> Option<&mut Queue> {
        if !self.queue_is_known(queue) {
            self.bad(None, Some(queue), "queue was never stated");
            return None;
        }
        self.queues.get_mut(queue.0 as usize)
    }

    fn consumer_is_alive(&self, consumer: ConsumerNo, queue: QueueNo) -> bool {
        self.consumers
            .get(consumer.0 as usize)
            .is_some_and(|entry| entry.life == Life::Alive && entry.queue == queue.0)
    }

    /// Marks a place as seen; false if it was.
    fn mark_place(&mut self, queue: QueueNo, place: u64) -> bool {
        let places = &mut self.queues[queue.0 as usize].places;
        let word = (place / 64) as usize;
        // A place far beyond the others is not worth its memory; order still catches nonsense.
        if word > places.len() + (1 << 20) {
            return true;
        }
        if word >= places.len() {
            places.resize(word + 1, 0);
        }
        let bit = 1 << (place % 64);
        let is_new = places[word] & bit == 0;
        places[word] |= bit;
        is_new
    }

    fn copies_of(&self, message: &Message) -> &[Copy] {
        &self.copies[message.copies as usize..][..message.copy_count as usize]
    }

    fn copy_at(&self, message: &Message, queue: QueueNo) -> Option<usize> {
        self.copies_of(message)
            .iter()
            .position(|copy| copy.queue == queue.0)
            .map(|at| message.copies as usize + at)
    }

    fn producer(&mut self, id: u64) -> Option<usize> {
        if self.recent.0 != id || self.recent.1 == u32::MAX {
            self.recent = (id, *self.producer_of.get(&id)?);
        }
        Some(self.recent.1 as usize)
    }

    fn producer_or_new(&mut self, id: MessageId) -> usize {
        if let Some(at) = self.producer(id.producer) {
            return at;
        }
        let at = self.producers.len() as u32;
        self.producers.push(Producer {
            id: id.producer,
            first: id.sequence,
            messages: Vec::new(),
        });
        self.producer_of.insert(id.producer, at);
        self.recent = (id.producer, at);
        at as usize
    }

    /// Where a sequence is kept, made if need be; `None` if it is absurd.
    fn message_slot(&mut self, producer: usize, id: MessageId) -> Option<usize> {
        let producer = &mut self.producers[producer];
        let at = id.sequence.checked_sub(producer.first)?;
        let count = producer.messages.len() as u64;
        if at > count + SEQUENCE_GAP_MAX {
            return None;
        }
        if at >= count {
            producer.messages.resize(at as usize + 1, GAP);
        }
        Some(at as usize)
    }

    fn find(&mut self, id: MessageId) -> Option<(usize, usize)> {
        let producer = self.producer(id.producer)?;
        let entry = &self.producers[producer];
        let at = usize::try_from(id.sequence.checked_sub(entry.first)?).ok()?;
        entry
            .messages
            .get(at)
            .is_some_and(|message| message.known)
            .then_some((producer, at))
    }

    fn bad(&mut self, message: Option<MessageId>, queue: Option<QueueNo>, why: &str) {
        self.broken(Kind::BadHistory, message, queue, None, || why.into());
    }

    #[cold]
    fn broken(
        &mut self,
        kind: Kind,
        message: Option<MessageId>,
        queue: Option<QueueNo>,
        consumer: Option<ConsumerNo>,
        detail: impl FnOnce() -> String,
    ) {
        self.verdict.violation_count += 1;
        if self.verdict.violations.len() < VIOLATIONS_KEPT_MAX {
            self.verdict.violations.push(Violation {
                event: self.verdict.counts.events,
                kind,
                message,
                queue,
                consumer,
                detail: detail(),
            });
        }
    }
}

/// Spreads a producer id; producers choose theirs at random, so little is needed.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
