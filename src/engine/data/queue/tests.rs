//! The queue against a naive model, and its corners. Does not know other parts of the engine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;

/// A small generator of random numbers: the same seed gives the same test.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Fresh,
    Unacked,
    /// Came back; its count is not durable yet.
    Held,
    Returned,
    Pending,
    Settled,
}

#[derive(Clone, Debug)]
struct Message {
    state: State,
    bytes: u32,
    /// Deliveries in truth.
    deliveries: u32,
    /// The count of its last delivery.
    told: u32,
    /// Crashes it has lived through.
    crashes: u32,
    place: Place,
    index: u32,
    offset: u32,
    pieces: Vec<Place>,
}

#[derive(Clone, Debug)]
struct ModelConsumer {
    credit: Credit,
    granted: u32,
    mode: AckMode,
    blocked: bool,
    short: bool,
    tag_last: u64,
    unacked: BTreeMap<u64, u64>,
}

/// What the journal says, in order.
#[derive(Clone, Debug)]
enum Said {
    Run(u64, u32, u32, Place, Marking),
    Fragmented(u64, u32, Vec<Place>, Marking),
    Settled(SequenceRange),
    Mark(u64),
    Counts(CountRange),
    Moved(u64, Place, u32),
}

struct Model {
    random: Random,
    settings: Settings,
    queue: Queue,
    messages: BTreeMap<u64, Message>,
    consumers: BTreeMap<u64, ModelConsumer>,
    /// Bodies of records by place.
    bodies: BTreeMap<Place, Vec<u8>>,
    /// The last record pushed, for extensions: index in `undurable`.
    extendable: bool,
    durable: u64,
    mark: u64,
    marks_asked: VecDeque<u64>,
    counts_out: VecDeque<(CountsUpto, Vec<CountRange>)>,
    /// Runs not durable yet.
    undurable: VecDeque<Said>,
    /// The durable journal since the checkpoint.
    journal: Vec<Said>,
    checkpoint: Option<Vec<u8>>,
    key_last: u64,
    place_last: u32,
    /// The bytes counter is exact.
    exact: bool,
    live_by_segment: BTreeMap<u32, i64>,
    coverage: BTreeSet<&'static str>,
}

/// Appends a message of so many padded bytes, as far as `envelope::length_of` reads it.
fn write_message(body: &mut Vec<u8>, bytes: u32) {
    let at = body.len();
    let length = bytes - 3;
    body.resize(at + bytes as usize, 0);
    body[at + 4..at + 8].copy_from_slice(&length.to_le_bytes());
    assert_eq!(envelope::length_of(&body[at..]), Some(length as usize));
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let durability = if random.chance(75) {
            Durability::Durable
        } else {
            Durability::Volatile
        };
        let settings = Settings {
            durability,
            messages_max: 20 + random.below(300),
            bytes_max: 0,
        };
        Self {
            random,
            settings,
            queue: Queue::new(settings),
            messages: BTreeMap::new(),
            consumers: BTreeMap::new(),
            bodies: BTreeMap::new(),
            extendable: false,
            durable: 0,
            mark: if durability == Durability::Durable {
                0
            } else {
                u64::MAX
            },
            marks_asked: VecDeque::new(),
            counts_out: VecDeque::new(),
            undurable: VecDeque::new(),
            journal: Vec::new(),
            checkpoint: None,
            key_last: 0,
            place_last: 0,
            exact: true,
            live_by_segment: BTreeMap::new(),
            coverage: BTreeSet::new(),
        }
    }

    fn is_durable_queue(&self) -> bool {
        self.settings.durability == Durability::Durable
    }

    fn new_place(&mut self) -> Place {
        self.place_last += 1;
        Place {
            segment: SegmentIdx(self.place_last / 7),
            offset: (self.place_last % 7) * 4096,
        }
    }

    fn next(&self) -> u64 {
        self.queue.next_sequence().0
    }

    fn held_messages(&self) -> u64 {
        let counters = self.queue.counters();
        counters.ready + counters.unacked
    }

    fn add_message(&mut self, bytes: u32, place: Place, index: u32, offset: u32, pieces: &[Place]) {
        let sequence = self.messages.last_key_value().map_or(0, |(s, _)| *s) + 1;
        let message = Message {
            state: State::Fresh,
            bytes,
            deliveries: 0,
            told: 0,
            crashes: 0,
            place,
            index,
            offset,
            pieces: pieces.to_vec(),
        };
        self.messages.insert(sequence, message);
        let one = [place];
        let places = if pieces.is_empty() { &one } else { pieces };
        for place in places {
            *self.live_by_segment.entry(place.segment.0).or_default() += 1;
        }
    }

    fn marking(&mut self) -> Marking {
        if self.queue.wants_marked() && self.random.chance(70) {
            self.coverage.insert("marked run");
            Marking::Marked
        } else {
            Marking::Plain
        }
    }

    fn push(&mut self) {
        let count = 1 + self.random.below(8) as u32;
        let overflow = self.held_messages() + u64::from(count) > self.settings.messages_max;
        assert_eq!(self.queue.would_overflow(count, 0), overflow);
        if overflow {
            self.coverage.insert("full");
            return;
        }
        let first = self.next();
        if self.random.chance(5) {
            let places: Vec<_> = (0..2 + self.random.below(3))
                .map(|_| self.new_place())
                .collect();
            let marking = self.marking();
            let bytes = 200_000 + 16 * self.random.below(100) as u32;
            self.queue
                .push_fragmented(QueueSequence(first), bytes, &places, marking);
            self.add_message(bytes, places[0], 0, 0, &places);
            self.undurable
                .push_back(Said::Fragmented(first, bytes, places, marking));
            self.extendable = false;
            self.coverage.insert("fragmented");
            return;
        }
        if self.extendable && self.random.chance(40) && !self.undurable.is_empty() {
            let Some(Said::Run(_, before, bytes_before, place, _)) = self.undurable.back_mut()
            else {
                unreachable!("only runs are extendable");
            };
            let (place, index) = (*place, *before);
            *before += count;
            let offset = *bytes_before;
            let added = self.write_messages(place, count, index, offset);
            if let Some(Said::Run(_, _, bytes, _, _)) = self.undurable.back_mut() {
                *bytes += added;
            }
            self.queue.extend_last(count, added);
            self.coverage.insert("extended");
            return;
        }
        let place = self.new_place();
        self.bodies.insert(place, Vec::new());
        let bytes = self.write_messages(place, count, 0, 0);
        let marking = self.marking();
        self.queue
            .push_run(QueueSequence(first), count, bytes, place, marking);
        self.undurable
            .push_back(Said::Run(first, count, bytes, place, marking));
        self.extendable = true;
    }

    fn write_messages(&mut self, place: Place, count: u32, index: u32, mut offset: u32) -> u32 {
        let mut added = 0;
        for nth in 0..count {
            let bytes = 64 + 16 * self.random.below(8) as u32;
            self.add_message(bytes, place, index + nth, offset, &[]);
            write_message(self.bodies.get_mut(&place).expect("a record"), bytes);
            offset += bytes;
            added += bytes;
        }
        added
    }

    /// Makes some runs durable, the oldest first.
    fn durable(&mut self) {
        let count = self.random.below(self.undurable.len() as u64 + 1);
        for _ in 0..count {
            let said = self.undurable.pop_front().expect("counted");
            let (last, marking) = match &said {
                Said::Run(first, count, _, _, marking) => (first + u64::from(*count) - 1, *marking),
                Said::Fragmented(first, _, _, marking) => (*first, *marking),
                _ => unreachable!("only messages wait here"),
            };
            self.journal.push(said);
            self.durable = last;
            if marking == Marking::Marked && self.is_durable_queue() {
                self.mark = self.mark.max(last);
            }
        }
        if count > 0 {
            self.queue.durable_through(QueueSequence(self.durable));
        }
        if self.undurable.is_empty() {
            self.extendable = false;
        }
    }

    fn abandon(&mut self) {
        let first = match self.undurable.front() {
            Some(Said::Run(first, ..) | Said::Fragmented(first, ..)) => *first,
            _ => return,
        };
        self.coverage.insert("abandoned");
        self.queue.abandon_from(QueueSequence(first));
        let gone = self.messages.split_off(&first);
        if gone.values().any(|message| message.state != State::Fresh) {
            self.exact = false;
        }
        for message in gone.values() {
            self.drop_segments(message);
        }
        self.undurable.clear();
        self.extendable = false;
    }

    fn drop_segments(&mut self, message: &Message) {
        let one = [message.place];
        let places = if message.pieces.is_empty() {
            &one[..]
        } else {
            &message.pieces
        };
        for place in places {
            *self
                .live_by_segment
                .get_mut(&place.segment.0)
                .expect("counted") -= 1;
        }
    }

    fn marks(&mut self) {
        if let Some(mark) = self.queue.mark_needed() {
            assert!(self.is_durable_queue());
            self.marks_asked.push_back(mark.0);
            self.coverage.insert("mark asked");
        }
        if self.random.chance(50)
            && let Some(mark) = self.marks_asked.pop_front()
        {
            self.queue.mark_durable(QueueSequence(mark));
            self.journal.push(Said::Mark(mark));
            self.mark = self.mark.max(mark);
        }
    }

    fn churn(&mut self) {
        let keys: Vec<u64> = self.consumers.keys().copied().collect();
        let credit = Credit {
            messages: match self.random.below(4) {
                0 => 0,
                1 => 1,
                _ => self.random.below(40) as u32,
            },
            bytes: match self.random.below(3) {
                0 => 100 + self.random.below(2_000),
                _ => 0,
            },
        };
        if keys.is_empty() || (keys.len() < 6 && self.random.chance(25)) {
            self.key_last += 1;
            let key = self.key_last;
            let mode = if self.random.chance(15) {
                AckMode::None
            } else {
                AckMode::Explicit
            };
            let sharing = if self.random.chance(5) {
                Sharing::Exclusive
            } else {
                Sharing::Shared
            };
            let done = self
                .queue
                .add_consumer(ConsumerKey(key), credit, mode, sharing);
            if done.is_err() {
                self.coverage.insert("in use");
                assert!(!keys.is_empty());
                assert!(sharing == Sharing::Exclusive || keys.len() == 1);
                return;
            }
            self.consumers.insert(
                key,
                ModelConsumer {
                    credit,
                    granted: 0,
                    mode,
                    blocked: false,
                    short: false,
                    tag_last: 0,
                    unacked: BTreeMap::new(),
                },
            );
            return;
        }
        let key = keys[self.random.below(keys.len() as u64) as usize];
        let name = ConsumerKey(key);
        let consumer = self.consumers.get_mut(&key).expect("listed");
        match self.random.below(7) {
            0 => {
                let consumer = self.consumers.remove(&key).expect("listed");
                let gone = self.queue.remove_consumer(name).expect("known");
                assert_eq!(gone.messages, consumer.unacked.len() as u64);
                for sequence in consumer.unacked.values() {
                    self.came_back(*sequence);
                }
                assert_eq!(self.queue.remove_consumer(name), None);
            }
            1 => {
                consumer.credit = credit;
                consumer.short = false;
                assert!(self.queue.set_credit(name, credit));
            }
            2 => {
                consumer.granted += 3;
                consumer.short = false;
                assert!(self.queue.grant_get(name, 3));
                self.coverage.insert("granted");
            }
            3 => {
                let granted = core::mem::take(&mut consumer.granted);
                assert_eq!(self.queue.cancel_get(name), Some(granted));
            }
            4 => {
                consumer.blocked = true;
                assert!(self.queue.block(name));
            }
            _ => {
                consumer.blocked = false;
                assert!(self.queue.unblock(name));
            }
        }
    }

    fn came_back(&mut self, sequence: u64) {
        let durable = self.is_durable_queue();
        let message = self.messages.get_mut(&sequence).expect("known");
        assert_eq!(message.state, State::Unacked);
        message.state = if durable {
            State::Held
        } else {
            State::Returned
        };
    }

    fn bytes_of(&self, sequences: impl Iterator<Item = u64>) -> u64 {
        sequences
            .map(|sequence| u64::from(self.messages[&sequence].bytes))
            .sum()
    }

    fn room(&self, consumer: &ModelConsumer) -> (u64, u64) {
        let outstanding = consumer.unacked.len() as u64;
        let bytes = self.bytes_of(consumer.unacked.values().copied());
        let room = u64::from(consumer.credit.messages).saturating_sub(outstanding)
            + u64::from(consumer.granted);
        let bytes_room = match consumer.credit.bytes {
            0 => u64::MAX,
            limit => limit.saturating_sub(bytes),
        };
        (room, bytes_room)
    }

    /// The message that must be offered next.
    fn due(&self) -> Option<u64> {
        let limit = self.durable.min(self.mark);
        self.messages
            .iter()
            .find(|(sequence, message)| match message.state {
                State::Fresh => **sequence <= limit,
                State::Returned => true,
                _ => false,
            })
            .map(|(sequence, _)| *sequence)
    }

    fn dispatch(&mut self) {
        for _ in 0..1 + self.random.below(10) {
            let due = self.due();
            let able: BTreeSet<u64> = self
                .consumers
                .iter()
                .filter(|(_, consumer)| {
                    let (room, bytes) = self.room(consumer);
                    room > 0 && bytes > 0 && !consumer.blocked && !consumer.short
                })
                .map(|(key, _)| *key)
                .collect();
            let offer = self.queue.next_offer();
            let Some(offer) = offer else {
                assert!(
                    due.is_none() || able.is_empty(),
                    "{due:?} is due to {able:?} and not offered"
                );
                return;
            };
            assert_eq!(self.queue.next_offer(), Some(offer), "the same again");
            assert_eq!(due, Some(offer.first.0));
            assert!(able.contains(&offer.key.0));
            self.take(&offer);
        }
    }

    fn take(&mut self, offer: &Offer) {
        let consumer = &self.consumers[&offer.key.0];
        let (room, bytes_room) = self.room(consumer);
        assert_eq!(offer.bytes_room, bytes_room);
        assert_eq!(offer.any_size, consumer.unacked.is_empty());
        assert!(offer.messages_max > 0 && u64::from(offer.messages_max) <= room);
        let first = &self.messages[&offer.first.0];
        assert_eq!(
            (offer.place, offer.index, offer.fragmented),
            (first.place, first.index, !first.pieces.is_empty())
        );
        let at = if offer.fragmented {
            assert_eq!(
                self.queue.pieces(offer.first),
                Some(first.pieces.as_slice())
            );
            0
        } else {
            let body = &self.bodies[&offer.place];
            // No more than the offer's bytes may be needed to find the message.
            let body = &body[..offer.body_bytes as usize];
            offer.locate(body).expect("well formed")
        };
        assert_eq!(at, first.offset);
        let want = 1 + self.random.below(u64::from(offer.messages_max)) as u32;
        let mut each = Vec::new();
        let mut bytes = 0;
        for nth in 0..want {
            let sequence = offer.first.0 + u64::from(nth);
            let message = &self.messages[&sequence];
            assert_eq!(message.place, offer.place);
            assert_eq!(message.index, offer.index + nth);
            if !offer.fits(nth, bytes, message.bytes) {
                break;
            }
            bytes += u64::from(message.bytes);
            each.push(message.bytes);
        }
        if each.is_empty() {
            self.coverage.insert("declined");
            self.queue.decline(offer);
            let consumer = self.consumers.get_mut(&offer.key.0).expect("offered");
            consumer.short = true;
            return;
        }
        let mut out = Ranges::new();
        let tag = self.queue.take(offer, at, &each, &mut out);
        let count = each.len() as u64;
        let consumer = self.consumers.get_mut(&offer.key.0).expect("offered");
        assert_eq!(tag.0, consumer.tag_last + 1);
        consumer.tag_last += count;
        consumer.granted -= consumer.granted.min(count as u32);
        let no_ack = consumer.mode == AckMode::None;
        assert_eq!(out.count(), if no_ack { count } else { 0 });
        for nth in 0..count {
            let sequence = offer.first.0 + nth;
            let message = self.messages.get_mut(&sequence).expect("offered");
            assert!(message.state == State::Fresh || message.state == State::Returned);
            assert!(sequence <= self.durable, "delivered before it was durable");
            assert!(sequence <= self.mark, "delivered before it was marked");
            // Rulings 15: what was delivered is flagged, what never was in any life is not.
            if message.deliveries > 0 {
                assert!(offer.redelivered);
            } else if message.crashes == 0 {
                assert!(!offer.redelivered);
            }
            if message.crashes == 0 {
                assert_eq!(offer.delivery_count, message.deliveries);
            } else if message.crashes == 1 {
                let told = offer.delivery_count;
                assert!(told == message.deliveries || told == message.deliveries + 1);
            }
            assert!(offer.delivery_count <= message.deliveries + message.crashes);
            message.deliveries += 1;
            message.told = offer.delivery_count;
            if no_ack {
                message.state = State::Pending;
            } else {
                message.state = State::Unacked;
                consumer.unacked.insert(tag.0 + nth, sequence);
            }
        }
    }

    fn settle(&mut self) {
        let keys: Vec<u64> = self.consumers.keys().copied().collect();
        let Some(key) = keys.get(self.random.below(keys.len().max(1) as u64) as usize) else {
            return;
        };
        let consumer = &self.consumers[key];
        let base = consumer
            .unacked
            .first_key_value()
            .map_or(1, |(tag, _)| *tag);
        let span = consumer.tag_last + 2 - base;
        let first = match self.random.below(3) {
            0 => 0,
            _ => base + self.random.below(span),
        };
        let last = match first {
            0 => base + self.random.below(span),
            _ => first + self.random.below(4),
        };
        let outcome = match self.random.below(5) {
            0 | 1 => Outcome::Requeue,
            2 => Outcome::Reject,
            _ => Outcome::Ack,
        };
        let from = if first == 0 { 1 } else { first };
        let found: Vec<(u64, u64)> = consumer
            .unacked
            .range(from..=last.max(from))
            .filter(|(tag, _)| **tag <= last)
            .map(|(tag, sequence)| (*tag, *sequence))
            .collect();
        let valid = match first {
            0 => !found.is_empty() && last <= consumer.tag_last,
            _ => found.len() as u64 == last - first + 1,
        };
        let mut out = Ranges::new();
        let range = SettleRange { first, last };
        let done = self
            .queue
            .settle(ConsumerKey(*key), range, outcome, &mut out);
        if !valid {
            assert_eq!(done, Err(Code::UnknownDelivery));
            assert!(out.is_empty());
            self.coverage.insert("unknown delivery");
            return;
        }
        let bytes = self.bytes_of(found.iter().map(|(_, sequence)| *sequence));
        let messages = found.len() as u64;
        assert_eq!(done, Ok(Settled { messages, bytes }));
        let consumer = self.consumers.get_mut(key).expect("listed");
        consumer.short = false;
        for (tag, _) in &found {
            consumer.unacked.remove(tag);
        }
        if outcome == Outcome::Requeue {
            assert!(out.is_empty());
            found
                .iter()
                .for_each(|(_, sequence)| self.came_back(*sequence));
            self.coverage.insert("requeued");
        } else {
            let told: Vec<u64> = sequences(&out);
            let expected: Vec<u64> = found.iter().map(|(_, sequence)| *sequence).collect();
            assert_eq!(told, expected);
            for sequence in told {
                self.messages.get_mut(&sequence).expect("known").state = State::Pending;
            }
        }
    }

    fn counts(&mut self) {
        let mut out = Vec::new();
        let upto = self.queue.take_counts(&mut out);
        if !out.is_empty() {
            self.counts_out.push_back((upto, out));
        }
        if self.random.chance(60)
            && let Some((upto, counts)) = self.counts_out.pop_front()
        {
            self.queue.counts_durable(upto);
            for count in counts {
                self.journal.push(Said::Counts(count));
                for sequence in count.range.first.0..=count.range.last.0 {
                    let message = self.messages.get_mut(&sequence).expect("known");
                    if message.state == State::Held {
                        assert_eq!(message.told + 1, count.deliveries);
                        message.state = State::Returned;
                    }
                }
            }
        }
    }

    fn forget(&mut self) {
        let mut ranges = Ranges::new();
        let percent = 20 + self.random.below(80);
        for (sequence, message) in &self.messages {
            if message.state == State::Pending
                && *sequence <= self.durable
                && self.random.chance(percent)
            {
                push_range(&mut ranges, *sequence, *sequence);
            }
        }
        let mut lost: BTreeMap<u32, i64> = BTreeMap::new();
        self.queue.forget(ranges.as_slice(), &mut |segment, count| {
            *lost.entry(segment.0).or_default() += i64::from(count);
        });
        for range in ranges.as_slice() {
            self.journal.push(Said::Settled(*range));
        }
        let before = self.live_by_segment.clone();
        for sequence in sequences(&ranges) {
            let message = self.messages.get_mut(&sequence).expect("known");
            message.state = State::Settled;
            let message = message.clone();
            self.drop_segments(&message);
            assert!(!self.queue.is_live(QueueSequence(sequence)));
        }
        for (segment, count) in before {
            let now = self.live_by_segment[&segment];
            assert_eq!(count - now, lost.get(&segment).copied().unwrap_or(0));
        }
    }

    fn purge(&mut self) {
        let mut out = Ranges::new();
        let gone = self.queue.purge(&mut out);
        let mut expected: Vec<u64> = Vec::new();
        let mut bytes = 0;
        for (sequence, message) in &mut self.messages {
            if matches!(message.state, State::Fresh | State::Returned | State::Held) {
                message.state = State::Pending;
                expected.push(*sequence);
                bytes += u64::from(message.bytes);
            }
        }
        let mut told = sequences(&out);
        told.sort_unstable();
        assert_eq!(told, expected);
        assert_eq!(gone.messages, expected.len() as u64);
        if self.exact {
            assert_eq!(gone.bytes, bytes);
        }
        self.coverage.insert("purged");
    }

    fn relocate(&mut self) {
        if self.messages.is_empty() || self.durable == 0 {
            return;
        }
        let sequence = 1 + self.random.below(self.durable);
        let live: Vec<u64> = self
            .messages
            .range(sequence..=self.durable)
            .filter(|(_, message)| message.state != State::Settled)
            .map(|(sequence, _)| *sequence)
            .take(1 + self.random.below(4) as usize)
            .collect();
        if self
            .messages
            .get(&sequence)
            .is_some_and(|m| m.state == State::Settled)
        {
            let place = self.new_place();
            assert_eq!(self.queue.moved(QueueSequence(sequence), place, 64), None);
        }
        for sequence in live {
            let message = self.messages[&sequence].clone();
            assert!(self.queue.is_live(QueueSequence(sequence)));
            self.drop_segments(&message);
            let place = self.new_place();
            let mut pieces = Vec::new();
            if message.pieces.is_empty() {
                let old = self
                    .queue
                    .moved(QueueSequence(sequence), place, message.bytes);
                assert_eq!(old, Some(message.place));
                let mut body = Vec::new();
                write_message(&mut body, message.bytes);
                self.bodies.insert(place, body);
                self.journal
                    .push(Said::Moved(sequence, place, message.bytes));
                *self.live_by_segment.entry(place.segment.0).or_default() += 1;
            } else {
                pieces = vec![place, self.new_place()];
                assert!(
                    self.queue
                        .moved_fragmented(QueueSequence(sequence), &pieces)
                );
                self.journal.push(Said::Fragmented(
                    sequence,
                    message.bytes,
                    pieces.clone(),
                    Marking::Plain,
                ));
                for place in &pieces {
                    *self.live_by_segment.entry(place.segment.0).or_default() += 1;
                }
            }
            let message = self.messages.get_mut(&sequence).expect("listed");
            (message.place, message.index, message.offset) = (place, 0, 0);
            message.pieces = pieces;
            self.coverage.insert("moved");
        }
    }

    fn take_checkpoint(&mut self) {
        let mut state = Vec::new();
        self.queue.encode_state(&mut state);
        // The runs of a checkpoint come from the segments' own indexes.
        self.journal
            .retain(|said| matches!(said, Said::Run(..) | Said::Fragmented(..) | Said::Moved(..)));
        self.checkpoint = Some(state);
        self.coverage.insert("checkpoint");
    }

    fn crash(&mut self) {
        if !self.is_durable_queue() {
            return;
        }
        self.coverage.insert("crash");
        self.abandon_model();
        let mut replay = match &self.checkpoint {
            Some(state) => Replay::decode(self.settings, state).expect("written by encode"),
            None => Replay::new(self.settings),
        };
        for said in &self.journal {
            let done = match said {
                Said::Run(first, count, bytes, place, marking) => {
                    replay.run(QueueSequence(*first), *count, *bytes, *place, *marking)
                }
                Said::Fragmented(sequence, bytes, places, marking) => {
                    replay.fragmented(QueueSequence(*sequence), *bytes, places, *marking)
                }
                Said::Settled(range) => replay.settled(*range),
                Said::Mark(mark) => {
                    replay.mark(QueueSequence(*mark));
                    Ok(())
                }
                Said::Counts(counts) => replay.counts(*counts),
                Said::Moved(sequence, place, bytes) => {
                    replay.moved(QueueSequence(*sequence), *place, *bytes)
                }
            };
            done.expect("within bounds");
        }
        let Ok(queue) = replay.finish() else {
            panic!("gaps");
        };
        self.queue = queue;
        self.exact = false;
        self.consumers.clear();
        self.counts_out.clear();
        self.marks_asked.clear();
        for message in self.messages.values_mut() {
            message.crashes += 1;
            if message.state != State::Settled {
                // Whether it is offered as fresh or returned does not matter to the model.
                message.state = State::Fresh;
            }
        }
    }

    fn abandon_model(&mut self) {
        let gone = self.messages.split_off(&(self.durable + 1));
        for message in gone.values() {
            self.drop_segments(message);
        }
        self.undurable.clear();
        self.extendable = false;
    }

    fn check(&mut self) {
        self.queue.invariants();
        let counters = self.queue.counters();
        let count = |states: &[State]| {
            let found = self.messages.values();
            found.filter(|m| states.contains(&m.state)).count() as u64
        };
        assert_eq!(
            counters.ready,
            count(&[State::Fresh, State::Held, State::Returned])
        );
        assert_eq!(counters.unacked, count(&[State::Unacked]));
        assert_eq!(counters.settled, count(&[State::Pending, State::Settled]));
        assert_eq!(counters.published, self.messages.len() as u64);
        assert_eq!(counters.consumers as usize, self.consumers.len());
        if counters.ready + counters.unacked == 0 {
            self.exact = true;
            assert_eq!(counters.bytes, 0);
        }
        if self.exact {
            let here = self.messages.iter();
            let here = here.filter(|(_, m)| !matches!(m.state, State::Pending | State::Settled));
            assert_eq!(counters.bytes, self.bytes_of(here.map(|(s, _)| *s)));
        }
        let mut live: BTreeMap<u32, i64> = BTreeMap::new();
        self.queue.for_each_live_run(|segment, count| {
            *live.entry(segment.0).or_default() += i64::from(count);
        });
        let mut expected = self.live_by_segment.clone();
        expected.retain(|_, count| *count != 0);
        assert_eq!(live, expected);
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=21 => self.push(),
            22..=34 => self.durable(),
            35..=56 => self.dispatch(),
            57..=73 => self.settle(),
            74..=78 => self.churn(),
            79..=84 => self.marks(),
            85..=89 => self.counts(),
            90..=94 => self.forget(),
            95..=97 => self.relocate(),
            _ => match self.random.below(12) {
                0 => self.purge(),
                1 => self.abandon(),
                2 | 3 => self.crash(),
                4..=6 => self.take_checkpoint(),
                _ => self.churn(),
            },
        }
    }
}

fn sequences(ranges: &Ranges) -> Vec<u64> {
    let ranges = ranges.as_slice().iter();
    ranges
        .flat_map(|range| range.first.0..=range.last.0)
        .collect()
}

#[test]
fn random_operations_agree_with_the_model() {
    let (seeds, ops) = if cfg!(debug_assertions) {
        (40, 2_000)
    } else {
        (300, 20_000)
    };
    let mut coverage = BTreeSet::new();
    for seed in 1..=seeds {
        let mut model = Model::new(seed);
        // A life ends and another begins before its history makes the model slow.
        for op in 0..ops {
            model.step();
            if op % 8 == 0 {
                model.check();
            }
            if model.messages.len() > 600 {
                coverage.append(&mut model.coverage);
                model = Model::new(seed * 1_000_003 + op);
            }
        }
        coverage.append(&mut model.coverage);
    }
    for mark in [
        "abandoned",
        "checkpoint",
        "crash",
        "declined",
        "extended",
        "fragmented",
        "full",
        "granted",
        "in use",
        "mark asked",
        "marked run",
        "moved",
        "purged",
        "requeued",
        "unknown delivery",
    ] {
        assert!(coverage.contains(mark), "{mark} never happened");
    }
}
