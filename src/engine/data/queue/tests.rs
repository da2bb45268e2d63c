//! The queue against a naive model, and its corners. Does not know other parts of the engine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::expiry::Ms;
use super::*;
use crate::ids::Clock;

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
    /// The same, and it is delayed in any case.
    HeldDelayed,
    /// Came back, or was set apart when it came.
    Returned,
    Delayed,
    /// Waits for the dead-letter exchange, or is on its way.
    Dead,
    Dying,
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
    arrived: i64,
    terms: Terms,
    /// Until when it is delayed, as far as it is.
    due: i64,
}

#[derive(Clone, Debug)]
struct ModelConsumer {
    credit: Credit,
    priority: i8,
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
    /// What waited when it was taken, and until when; and its last message.
    checkpoint_waits: BTreeMap<u64, i64>,
    checkpoint_last: u64,
    key_last: u64,
    place_last: u32,
    /// The bytes counter is exact.
    exact: bool,
    live_by_segment: BTreeMap<u32, i64>,
    /// Both clocks, in ms.
    now: i64,
    deaths: [u64; 4],
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
        let is_plain = random.chance(50);
        let mut some = |percent: u64, below: u64| match !is_plain && random.chance(percent) {
            true => Some(random.below(below) as u32),
            false => None,
        };
        let dispatch = DispatchSettings {
            policy: match some(70, 6) {
                Some(0) => Policy::Random,
                Some(1) => Policy::Weighted,
                Some(2) => Policy::LeastOutstanding,
                Some(3) => Policy::Sticky(KeySource::RoutingKey),
                _ => Policy::RoundRobin,
            },
            is_single_active: some(15, 1).is_some(),
            ..DispatchSettings::DEFAULT
        };
        let settings = Settings {
            overflow: match some(40, 1) {
                Some(_) => Overflow::DropHead,
                None => Overflow::Refuse,
            },
            // Shorter than what may make a message expire late.
            ttl_ms: some(40, 200).map_or(0, |ms| ms + 1),
            returns_max: some(50, 3),
            has_dead_letters: some(60, 1).is_some(),
            retry: some(50, 3).map(|kind| Retry {
                backoff: [Backoff::Fixed, Backoff::Linear, Backoff::Exponential][kind as usize],
                delay_ms: 20,
                delay_max_ms: 100,
                jitter_percent: 30,
            }),
            rank_max: some(50, 4).map_or(0, |max| [1, 2, 9, 31][max as usize]),
            rank_turn: some(50, 6).unwrap_or(0),
            messages_max: 20 + random.below(300),
            dispatch,
            ..Settings::plain(durability)
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
            checkpoint_waits: BTreeMap::new(),
            checkpoint_last: 0,
            key_last: 0,
            place_last: 0,
            exact: true,
            live_by_segment: BTreeMap::new(),
            now: 1_000,
            deaths: [0; 4],
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
        counters.ready + counters.unacked + counters.delayed + counters.dead
    }

    fn mono(&self) -> Mono {
        Mono(self.now as u64 * 1_000_000)
    }

    fn clock(&self) -> Clock {
        Clock {
            now: self.mono(),
            wall_us: self.now as u64 * 1_000,
        }
    }

    /// When a message expires.
    fn end(&self, message: &Message) -> Option<i64> {
        let limits = [self.settings.ttl_ms, message.terms.ttl_ms];
        let limit = limits.into_iter().filter(|ms| *ms > 0).min()?;
        Some(message.arrived + i64::from(limit))
    }

    fn is_over(&self, message: &Message) -> bool {
        self.end(message).is_some_and(|end| end < self.now)
    }

    fn add_message(&mut self, bytes: u32, place: Place, index: u32, offset: u32, pieces: &[Place]) {
        let sequence = self.messages.last_key_value().map_or(0, |(s, _)| *s) + 1;
        let mut some = |percent: u64, below: u64| match self.random.chance(percent) {
            true => 1 + self.random.below(below) as u32,
            false => 0,
        };
        let terms = Terms {
            ttl_ms: some(10, 200),
            delay_ms: some(8, 100),
            priority: some(30, 12) as u8,
        };
        let message = Message {
            arrived: self.now,
            terms,
            due: 0,
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

    /// Says what the messages ask that were pushed last, from `first` on.
    fn arrived(&mut self, first: u64) {
        let now = self.mono();
        let mut said: Option<(u64, u32, Terms)> = None;
        let mut all: Vec<(u64, u32, Terms)> = Vec::new();
        for (sequence, message) in self.messages.range_mut(first..) {
            if message.terms.delay_ms > 0 {
                message.due = message.arrived + 1 + i64::from(message.terms.delay_ms);
                message.state = State::Delayed;
                self.coverage.insert("delayed");
            } else if message.terms.priority > 0 && self.settings.rank_max > 0 {
                message.state = State::Returned;
                self.coverage.insert("ranked");
            }
            match &mut said {
                Some((_, count, terms)) if *terms == message.terms => *count += 1,
                said => all.extend(said.replace((*sequence, 1, message.terms))),
            }
        }
        all.extend(said);
        for (first, count, terms) in all {
            if self.queue.heeds(&terms) {
                self.queue.arrived(QueueSequence(first), count, now, terms);
            } else {
                assert_eq!((terms.ttl_ms, terms.delay_ms), (0, 0));
            }
        }
    }

    fn rank(&self, message: &Message) -> u8 {
        message.terms.priority.min(self.settings.rank_max)
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
        let overflow = self.settings.overflow == Overflow::Refuse
            && self.held_messages() + u64::from(count) > self.settings.messages_max;
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
            self.arrived(first);
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
            self.arrived(first);
            self.coverage.insert("extended");
            return;
        }
        let place = self.new_place();
        self.bodies.insert(place, Vec::new());
        let bytes = self.write_messages(place, count, 0, 0);
        let marking = self.marking();
        self.queue
            .push_run(QueueSequence(first), count, bytes, place, marking);
        self.arrived(first);
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
        if gone.values().any(|message| message.state == State::Pending) {
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
            let traits = Traits {
                priority: match self.random.below(3) {
                    0 => self.random.below(3) as i8 - 1,
                    _ => 0,
                },
                weight: 1 + self.random.below(100) as u8,
            };
            let name = ConsumerKey(key);
            let done = self.queue.add_consumer(name, credit, mode, sharing, traits);
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
                    priority: traits.priority,
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
                let mut out = Ranges::new();
                let gone = self.queue.remove_consumer(name, &mut out).expect("known");
                assert_eq!(gone.messages, consumer.unacked.len() as u64);
                let held: Vec<u64> = consumer.unacked.into_values().collect();
                self.all_came_back(&held, &out, None);
                assert_eq!(self.queue.remove_consumer(name, &mut out), None);
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

    /// Some of them are dead now; those that are done with are in `out`.
    fn all_came_back(&mut self, held: &[u64], out: &Ranges, retry: Option<Retry>) {
        let is_over = |model: &Self, sequence: &u64| {
            let told = model.messages[sequence].told;
            model.settings.returns_max.is_some_and(|max| told >= max)
        };
        let (over, back): (Vec<u64>, Vec<u64>) =
            held.iter().partition(|sequence| is_over(self, sequence));
        for sequence in back {
            let told = self.messages[&sequence].told;
            let wait = retry.map(|retry| retry.wait_ms(sequence, told.saturating_add(1)));
            self.came_back(sequence, wait);
        }
        if !over.is_empty() {
            self.coverage.insert("delivery limit");
        }
        self.died(&over, out, Death::DeliveryLimit);
    }

    /// Messages died; those that are done with are in `out`, in any order.
    fn died(&mut self, dead: &[u64], out: &Ranges, death: Death) {
        let (state, expected) = match self.settings.has_dead_letters {
            true => (State::Dead, BTreeSet::new()),
            false => (State::Pending, dead.iter().copied().collect()),
        };
        assert_eq!(
            sequences(out).into_iter().collect::<BTreeSet<_>>(),
            expected
        );
        for sequence in dead {
            self.messages.get_mut(sequence).expect("known").state = state;
        }
        self.deaths[death as usize] += dead.len() as u64;
    }

    /// What goes in a rank: fresh and returned messages up to `end`, in order, up to one that waits for
    /// its count, and nothing fresh then.
    fn heads(&self, rank: u8, end: u64) -> Vec<u64> {
        let own = |message: &Message| self.rank(message) == rank;
        let held = |message: &Message| own(message) && message.state == State::Held;
        let held = self.messages.iter().find(|(_, message)| held(message));
        let end = held.map_or(end, |(sequence, _)| end.min(sequence - 1));
        let all = self.messages.range(..=end);
        let all = all.filter(|(_, message)| own(message));
        let ready = all.filter(|(_, m)| matches!(m.state, State::Fresh | State::Returned));
        let goes = ready.take_while(|(_, m)| held.is_none() || m.state == State::Returned);
        goes.map(|(sequence, _)| *sequence).collect()
    }

    fn ranks(&self) -> std::ops::RangeInclusive<u8> {
        0..=self.settings.rank_max
    }

    /// Lets go what is due.
    fn release(&mut self) {
        let now = self.mono();
        self.queue.set_now(now);
        let mut count = 0;
        for message in self.messages.values_mut() {
            if message.state == State::Delayed && message.due <= self.now {
                message.state = State::Returned;
                count += 1;
                self.coverage.insert("due");
            }
        }
        let mut released = 0;
        while let more @ 1.. = self.queue.release_due(1 + self.random.below(20)) {
            released += more;
        }
        assert_eq!(released, count);
        let waits = self.messages.values().filter(|m| m.state == State::Delayed);
        let next = waits.map(|message| message.due).min();
        assert_eq!(self.queue.next_due(), next.map(mono_of));
    }

    fn sweep(&mut self) {
        self.release();
        let heads: Vec<Vec<u64>> = self.ranks().map(|r| self.heads(r, self.durable)).collect();
        if self.random.chance(50) {
            let firsts = heads.iter().filter_map(|heads| heads.first());
            let ends = firsts.filter_map(|first| self.end(&self.messages[first]));
            let next = ends.min().map(|end| mono_of(end + 1));
            let told = self.queue.next_expiry();
            // Messages that live equally long may share a later end.
            let grid = Ms::from((self.settings.ttl_ms / 256).max(1));
            assert!(told.is_some() == next.is_some() && told >= next);
            let late = told.zip(next).map(|(told, next)| told.0 - next.0);
            assert!(late.is_none_or(|late| late <= grid as u64 * 1_000_000));
        }
        let before = self.queue.counters();
        let max = 1 + self.random.below(50);
        let (mut expired, mut dropped) = (Vec::new(), Vec::new());
        // What cannot die yet makes no message of a higher rank die for it.
        let late = match self.settings.rank_max {
            0 => 0,
            _ => {
                let held = self.messages.values().filter(|m| m.state == State::Held);
                self.next() - 1 - self.durable + held.count() as u64
            }
        };
        let mut ready = before.ready.saturating_sub(late);
        for heads in &heads {
            for head in heads {
                if (expired.len() + dropped.len()) as u64 == max {
                    break;
                }
                if self.is_over(&self.messages[head]) {
                    expired.push(*head);
                } else if self.settings.overflow == Overflow::DropHead
                    && ready > self.settings.messages_max
                {
                    dropped.push(*head);
                } else {
                    break;
                }
                ready = ready.saturating_sub(1);
            }
        }
        let mut out = Ranges::new();
        let died = self.queue.sweep_head(max, &mut out);
        assert_eq!(died, (expired.len() + dropped.len()) as u64);
        assert_eq!(before.ready - died, self.queue.counters().ready);
        for (dead, death, mark) in [
            (expired, Death::Expired, "expired"),
            (dropped, Death::MaxLength, "dropped"),
        ] {
            if dead.is_empty() {
                continue;
            }
            self.coverage.insert(mark);
            self.exact = false;
            let own = |sequence: &u64| dead.contains(sequence);
            let mut part = Ranges::new();
            for sequence in sequences(&out).into_iter().filter(own) {
                push_range(&mut part, sequence, sequence);
            }
            self.died(&dead, &part, death);
        }
    }

    fn bury(&mut self) {
        for _ in 0..1 + self.random.below(4) {
            let Some(dead) = self.queue.next_dead() else {
                let dead = self.messages.values().any(|m| m.state == State::Dead);
                assert!(!dead, "it is not offered");
                break;
            };
            assert_eq!(self.queue.next_dead(), Some(dead), "the same again");
            let message = self.messages[&dead.sequence().0].clone();
            assert_eq!(message.state, State::Dead);
            let offer = dead.offer;
            assert_eq!(
                (offer.place, offer.index, offer.fragmented),
                (message.place, message.index, !message.pieces.is_empty())
            );
            assert!(offer.delivery_count >= message.deliveries);
            let at = match offer.fragmented {
                true => 0,
                false => {
                    let body = &self.bodies[&offer.place][..offer.body_bytes as usize];
                    offer.locate(body).expect("well formed")
                }
            };
            assert_eq!(at, message.offset);
            self.queue.begin_dead(&dead, at, message.bytes);
            let message = self.messages.get_mut(&dead.sequence().0);
            message.expect("known").state = State::Dying;
        }
        let dying = |(sequence, message): (&u64, &Message)| {
            (message.state == State::Dying).then_some(*sequence)
        };
        let dying: Vec<u64> = self.messages.iter().filter_map(dying).collect();
        for sequence in dying {
            if self.random.chance(50) {
                let mut out = Ranges::new();
                assert!(self.queue.dead_is_done(QueueSequence(sequence), &mut out));
                assert_eq!(sequences(&out), [sequence]);
                assert!(!self.queue.dead_is_done(QueueSequence(sequence), &mut out));
                self.messages.get_mut(&sequence).expect("known").state = State::Pending;
                self.coverage.insert("dead letter");
            } else if self.random.chance(30) {
                // What was offered next before it is still.
                let next = self.queue.next_dead();
                self.queue.give_dead_back(QueueSequence(sequence));
                assert!(next.is_none() || self.queue.next_dead() == next);
                self.messages.get_mut(&sequence).expect("known").state = State::Dead;
                self.coverage.insert("dead letter given back");
            }
        }
    }

    fn came_back(&mut self, sequence: u64, wait: Option<i64>) {
        let durable = self.is_durable_queue();
        let now = self.now;
        let message = self.messages.get_mut(&sequence).expect("known");
        assert_eq!(message.state, State::Unacked);
        if let Some(wait) = wait {
            message.due = now + 1 + wait;
            self.coverage.insert("retried");
        }
        message.state = match (durable, wait) {
            (true, None) => State::Held,
            (true, Some(_)) => State::HeldDelayed,
            (false, None) => State::Returned,
            (false, Some(_)) => State::Delayed,
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
        let heads = |rank| self.heads(rank, limit).first().copied();
        let turn = self.settings.rank_turn;
        let head = if turn > 0 && self.queue.passed >= turn {
            self.ranks().filter_map(heads).min()
        } else {
            let waits = |rank| {
                let held = |m: &Message| m.state == State::Held && self.rank(m) == rank;
                self.messages.values().any(held)
            };
            let mut ranks = self.ranks().rev().map(|rank| (heads(rank), waits(rank)));
            ranks.find(|(head, waits)| head.is_some() || *waits)?.0
        };
        // One that has expired makes way first.
        head.filter(|head| !self.is_over(&self.messages[head]))
    }

    fn any_returned(&self) -> bool {
        self.messages
            .values()
            .any(|message| matches!(message.state, State::Held))
    }

    /// The consumers that may get messages; of a queue with a single active one that is one, and
    /// nobody else holds any.
    fn active(&mut self) -> BTreeSet<u64> {
        let keys = self.consumers.keys().copied();
        let queue = &mut self.queue;
        let active: BTreeSet<u64> = keys
            .filter(|key| queue.is_active(ConsumerKey(*key)))
            .collect();
        if self.settings.dispatch.is_single_active {
            assert!(active.len() <= 1);
            let holders = self.consumers.iter().filter(|(_, c)| !c.unacked.is_empty());
            let holders: BTreeSet<u64> = holders.map(|(key, _)| *key).collect();
            assert!(holders.len() <= 1 && (active.is_empty() || holders.is_subset(&active)));
            while self.queue.take_notice().is_some() {
                self.coverage.insert("told who is active");
            }
        } else {
            assert_eq!(active.len(), self.consumers.len());
        }
        active
    }

    fn dispatch(&mut self) {
        self.release();
        for _ in 0..1 + self.random.below(10) {
            let due = self.due();
            let active = self.active();
            let able = self.consumers.iter().filter(|(key, consumer)| {
                let (room, bytes) = self.room(consumer);
                let has_room = room > 0 && bytes > 0;
                has_room && !consumer.blocked && !consumer.short && active.contains(key)
            });
            let highest = able.clone().map(|(_, consumer)| consumer.priority).max();
            let able: BTreeSet<u64> = able
                .filter(|(_, consumer)| Some(consumer.priority) == highest)
                .map(|(key, _)| *key)
                .collect();
            let mut offer = self.queue.next_offer();
            if let Some(keyless) = offer
                && keyless.key == ConsumerKey::BY_KEY
            {
                assert_eq!(self.queue.next_offer(), offer, "the same again");
                self.coverage.insert("by key");
                let hash = self.random.below(4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                offer = self.queue.address(&keyless, hash, (0, 0));
            }
            let Some(offer) = offer else {
                assert!(
                    // What came back holds up what is behind it until its count is durable.
                    due.is_none() || able.is_empty() || self.any_returned(),
                    "{due:?} is due to {able:?} and not offered"
                );
                return;
            };
            if self.queue.key_reader().is_none() {
                assert_eq!(self.queue.next_offer(), Some(offer), "the same again");
            }
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
            assert!(!self.is_over(message), "delivered after its time");
            assert!(message.due <= self.now, "delivered before its time");
            assert_eq!(self.rank(message), self.rank(first));
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
            // Ruling 15: never too low, at most one too high for each crash.
            let told = offer.delivery_count;
            assert!(told >= message.deliveries);
            assert!(told <= message.deliveries + message.crashes);
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
        let now = self.mono();
        self.queue.set_now(now);
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
        let found_sequences: Vec<u64> = found.iter().map(|(_, sequence)| *sequence).collect();
        if outcome == Outcome::Requeue {
            self.all_came_back(&found_sequences, &out, self.settings.retry);
            self.coverage.insert("requeued");
        } else if outcome == Outcome::Reject {
            self.died(&found_sequences, &out, Death::Rejected);
            self.coverage.insert("rejected");
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
                    message.state = match message.state {
                        State::Held => State::Returned,
                        State::HeldDelayed => State::Delayed,
                        other => {
                            assert!(
                                matches!(other, State::Pending | State::Settled),
                                "{other:?}"
                            );
                            continue;
                        }
                    };
                    assert_eq!(message.told + 1, count.deliveries);
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
            if matches!(
                message.state,
                State::Fresh | State::Returned | State::Held | State::HeldDelayed | State::Delayed
            ) {
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

    /// One that is valid: what it was taken behind is durable.
    fn take_checkpoint(&mut self) {
        if !self.undurable.is_empty() {
            return;
        }
        let mut state = Vec::new();
        self.queue.encode_state(self.clock(), &[], &mut state);
        // The runs of a checkpoint come from the segments' own indexes.
        self.journal
            .retain(|said| matches!(said, Said::Run(..) | Said::Fragmented(..) | Said::Moved(..)));
        for said in &mut self.journal {
            if let Said::Run(.., marking) | Said::Fragmented(.., marking) = said {
                *marking = Marking::Plain;
            }
        }
        self.checkpoint = Some(state);
        let waits = self.messages.range(..=self.durable);
        let waits = waits
            .filter(|(_, message)| matches!(message.state, State::Delayed | State::HeldDelayed));
        self.checkpoint_waits = waits.map(|(sequence, m)| (*sequence, m.due)).collect();
        self.checkpoint_last = self.durable;
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
        let arrival = |sequence: u64| Arrival {
            sequence: QueueSequence(sequence),
            wall_ms: self.messages[&sequence].arrived,
            terms: self.messages[&sequence].terms,
        };
        for said in &self.journal {
            let done = match said {
                Said::Run(first, count, bytes, place, marking) => {
                    for sequence in *first..first + u64::from(*count) {
                        replay.arrived(arrival(sequence));
                    }
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
        for said in &self.journal {
            if let Said::Fragmented(sequence, ..) = said {
                replay.arrived_alone(arrival(*sequence));
            }
        }
        let terms = replay.take_terms();
        let Ok(queue) = replay.finish() else {
            panic!("gaps");
        };
        self.queue = queue;
        self.queue.set(self.settings);
        self.queue
            .restore_terms(&terms, |wall_ms| wall_ms, |wall_ms| wall_ms);
        self.deaths = [0; 4];
        self.mark = 0;
        self.exact = false;
        self.consumers.clear();
        self.counts_out.clear();
        self.marks_asked.clear();
        for (sequence, message) in &mut self.messages {
            message.crashes += 1;
            if message.state == State::Settled {
                continue;
            }
            let known = *sequence <= self.checkpoint_last;
            let due = match self.checkpoint_waits.get(sequence) {
                Some(due) => Some(*due),
                None if known || message.terms.delay_ms == 0 => None,
                None => Some(message.arrived + 1 + i64::from(message.terms.delay_ms)),
            };
            message.state = match due {
                Some(due) => {
                    message.due = due;
                    State::Delayed
                }
                None => {
                    message.due = 0;
                    State::Fresh
                }
            };
        }
        for (_, span) in self.queue.returned.by_rank() {
            for sequence in span.first..=span.last() {
                let message = self.messages.get_mut(&sequence).expect("known");
                assert_eq!(message.state, State::Fresh);
                message.state = State::Returned;
            }
        }
        self.take_checkpoint();
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
        assert_eq!(
            counters.delayed,
            count(&[State::Delayed, State::HeldDelayed])
        );
        assert_eq!(counters.dead, count(&[State::Dead, State::Dying]));
        assert_eq!(counters.deaths, self.deaths);
        assert_eq!(counters.settled, count(&[State::Pending, State::Settled]));
        assert_eq!(counters.published, self.messages.len() as u64);
        assert_eq!(counters.consumers as usize, self.consumers.len());
        if self.held_messages() == 0 {
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
        self.now += self.random.below(10) as i64;
        match self.random.below(100) {
            0..=21 => self.push(),
            22..=34 => self.durable(),
            35..=56 => self.dispatch(),
            57..=73 => self.settle(),
            74..=78 => self.churn(),
            79..=80 => self.sweep(),
            81 => self.bury(),
            82..=84 => self.marks(),
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
        "dead letter",
        "declined",
        "delayed",
        "delivery limit",
        "dropped",
        "due",
        "expired",
        "extended",
        "fragmented",
        "full",
        "granted",
        "in use",
        "mark asked",
        "marked run",
        "moved",
        "purged",
        "by key",
        "ranked",
        "retried",
        "rejected",
        "requeued",
        "told who is active",
        "unknown delivery",
    ] {
        assert!(coverage.contains(mark), "{mark} never happened");
    }
}

const DURABLE: Settings = Settings::plain(Durability::Durable);

const VOLATILE: Settings = Settings::plain(Durability::Volatile);

const CLOCK: Clock = Clock {
    now: Mono(0),
    wall_us: 0,
};

fn place(number: u32) -> Place {
    Place {
        segment: SegmentIdx(number / 16),
        offset: number % 16 * 4096,
    }
}

fn credit(messages: u32) -> Credit {
    Credit { messages, bytes: 0 }
}

/// Publishes messages of 64 bytes in runs of `run`, deliverable at once.
fn publish(queue: &mut Queue, runs: u32, run: u32) {
    for _ in 0..runs {
        let first = queue.next_sequence();
        let place = place(first.0 as u32);
        queue.push_run(first, run, run * 64, place, Marking::Marked);
    }
    queue.durable_through(QueueSequence(queue.next - 1));
}

fn consume(queue: &mut Queue, key: u64, messages: u32) {
    queue
        .add_consumer(
            ConsumerKey(key),
            credit(messages),
            AckMode::Explicit,
            Sharing::Shared,
            Traits::default(),
        )
        .expect("shared");
}

/// Takes up to `count` messages of the next offer.
fn take(queue: &mut Queue, count: u32) -> Option<(Offer, DeliveryTag, u32)> {
    let offer = queue.next_offer()?;
    let count = count.min(offer.messages_max);
    let each = vec![64; count as usize];
    let tag = queue.take(&offer, offer.index * 64, &each, &mut Ranges::new());
    Some((offer, tag, count))
}

fn ack(queue: &mut Queue, key: u64, first: u64, last: u64) -> Result<Settled, Code> {
    let range = SettleRange { first, last };
    queue.settle(ConsumerKey(key), range, Outcome::Ack, &mut Ranges::new())
}

fn sequences_taken(queue: &mut Queue) -> Vec<u64> {
    let mut taken = Vec::new();
    while let Some((offer, _, count)) = take(queue, u32::MAX) {
        taken.extend(offer.first.0..offer.first.0 + u64::from(count));
    }
    taken
}

#[test]
fn equal_consumers_get_equal_shares() {
    for (run, batch, acked_at_once) in [(1, 1, 1), (1, 64, 8), (16, 64, 3), (200, 1000, 100)] {
        let mut queue = Queue::new(DURABLE);
        for key in 1..=5 {
            consume(&mut queue, key, 1_000);
        }
        let mut random = Random::new(u64::from(run));
        let mut shares = [0u64; 6];
        let mut held = [(); 6].map(|()| VecDeque::new());
        let mut total = 0;
        while total < 100_000 {
            publish(&mut queue, 1 + random.below(batch) as u32, run);
            while let Some((offer, tag, count)) = take(&mut queue, u32::MAX) {
                let key = offer.key.0 as usize;
                shares[key] += u64::from(count);
                total += u64::from(count);
                held[key].push_back((tag.0, tag.0 + u64::from(count) - 1));
            }
            // Consumers ack at random times, so turns begin and end anywhere.
            for _ in 0..acked_at_once {
                let key = 1 + random.below(5) as usize;
                for (first, last) in held[key].drain(..) {
                    ack(&mut queue, key as u64, first, last).expect("outstanding");
                }
            }
            if held.iter().all(|held| held.len() > 100) {
                for (key, held) in held.iter_mut().enumerate() {
                    for (first, last) in held.drain(..) {
                        ack(&mut queue, key as u64, first, last).expect("outstanding");
                    }
                }
            }
        }
        for share in &shares[1..] {
            let points = *share as f64 * 100.0 / total as f64;
            assert!(
                (points - 20.0).abs() <= 2.0,
                "runs of {run}: {shares:?} is not equal"
            );
        }
    }
}

#[test]
fn little_work_is_spread_and_much_is_batched() {
    let mut queue = Queue::new(DURABLE);
    for key in 0..4 {
        consume(&mut queue, key, 1_000);
    }
    publish(&mut queue, 1, 4);
    let mut keys = Vec::new();
    while let Some((offer, _, count)) = take(&mut queue, u32::MAX) {
        assert_eq!(count, 1);
        keys.push(offer.key.0);
    }
    assert_eq!(keys, [0, 1, 2, 3]);
    publish(&mut queue, 1, 1_000);
    let (_, _, count) = take(&mut queue, u32::MAX).expect("deliverable");
    assert_eq!(count, 250);
}

#[test]
fn requeue_goes_to_the_original_place_and_counts() {
    let mut queue = Queue::new(DURABLE);
    consume(&mut queue, 1, 10);
    publish(&mut queue, 3, 4);
    assert_eq!(sequences_taken(&mut queue), (1..=10).collect::<Vec<_>>());
    let mut out = Ranges::new();
    for tag in [7, 2, 3, 6] {
        let range = SettleRange {
            first: tag,
            last: tag,
        };
        let done = queue.settle(ConsumerKey(1), range, Outcome::Requeue, &mut out);
        done.expect("outstanding");
    }
    // Counts are not durable: nothing overtakes what came back.
    assert_eq!(sequences_taken(&mut queue), [0; 0]);
    let mut counts = Vec::new();
    let upto = queue.take_counts(&mut counts);
    let total: u64 = counts.iter().map(|count| count.range.count()).sum();
    assert_eq!((total, counts[0].deliveries), (4, 1));
    ack(&mut queue, 1, 0, 10).expect("outstanding");
    assert!(queue.next_offer().is_none());
    queue.counts_durable(upto);
    let offer = queue.next_offer().expect("deliverable");
    assert_eq!(offer.delivery_count, 1);
    assert_eq!(sequences_taken(&mut queue), [2, 3, 6, 7, 11, 12]);
    queue.invariants();
}

#[test]
fn fresh_messages_wait_for_their_mark() {
    let mut queue = Queue::new(DURABLE);
    for first in 1..=10_000u64 {
        let at = place(first as u32);
        queue.push_run(QueueSequence(first), 1, 64, at, Marking::Plain);
    }
    queue.durable_through(QueueSequence(10_000));
    assert_eq!(queue.mark_needed(), None, "nobody to deliver to");
    consume(&mut queue, 1, 1_000_000);
    assert!(queue.next_offer().is_none());
    assert_eq!(queue.mark_needed(), Some(QueueSequence(1_000_000)));
    assert_eq!(queue.mark_needed(), None, "said once");
    queue.set_credit(ConsumerKey(1), credit(100));
    queue.mark_durable(QueueSequence(50));
    assert_eq!(sequences_taken(&mut queue).len(), 50);
    assert!(queue.next_offer().is_none());
}

#[test]
fn a_consumer_that_keeps_up_needs_no_mark_records() {
    let mut queue = Queue::new(DURABLE);
    consume(&mut queue, 1, 100);
    for round in 1..100u64 {
        assert!(queue.wants_marked());
        publish(&mut queue, 1, 100);
        assert_eq!(queue.mark_needed(), None);
        assert_eq!(sequences_taken(&mut queue).len(), 100);
        ack(&mut queue, 1, 0, round * 100).expect("outstanding");
    }
    // One that falls behind a window is not covered any more, so that a crash flags little.
    for _ in 0..100 {
        publish(&mut queue, 1, 100);
    }
    assert!(!queue.wants_marked());
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_state_is_survived() {
    let mut queue = Queue::new(DURABLE);
    consume(&mut queue, 1, 100);
    publish(&mut queue, 10, 5);
    sequences_taken(&mut queue);
    let mut out = Ranges::new();
    let settle = |queue: &mut Queue, first, last, outcome, out: &mut Ranges| {
        let range = SettleRange { first, last };
        let done = queue.settle(ConsumerKey(1), range, outcome, out);
        done.expect("outstanding");
    };
    settle(&mut queue, 1, 4, Outcome::Ack, &mut out);
    settle(&mut queue, 6, 8, Outcome::Ack, &mut out);
    settle(&mut queue, 20, 21, Outcome::Ack, &mut out);
    settle(&mut queue, 30, 33, Outcome::Requeue, &mut out);
    queue.forget(out.as_slice(), &mut |_, _| {});
    let mut state = Vec::new();
    queue.encode_state(CLOCK, &[], &mut state);

    let read = |bytes: &[u8]| -> Option<Queue> {
        let mut replay = Replay::decode(DURABLE, bytes).ok()?;
        for record in 0..10 {
            let first = QueueSequence(record * 5 + 1);
            let place = place(record as u32);
            replay.run(first, 5, 320, place, Marking::Plain).ok()?;
        }
        let mut queue = replay.finish().ok()?;
        queue.invariants();
        consume(&mut queue, 1, 100);
        queue.mark_durable(QueueSequence(50));
        sequences_taken(&mut queue);
        queue.invariants();
        Some(queue)
    };
    let restored = read(&state).expect("as written");
    assert_eq!(restored.counters().unacked, 50 - 9);
    for cut in 0..state.len() {
        assert!(read(&state[..cut]).is_none());
    }
    for bit in 0..state.len() * 8 {
        let mut bad = state.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        read(&bad);
    }
    let mut random = Random::new(5);
    for _ in 0..20_000 {
        let mut bad = state.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bad.len() as u64) as usize;
            bad[at] = random.below(256) as u8;
        }
        read(&bad);
    }
}

#[test]
fn a_gap_is_named_and_can_be_accepted() {
    let mut replay = Replay::new(DURABLE);
    let run = |replay: &mut Replay, first, count| {
        let place = place(first as u32);
        let bytes = count * 64;
        replay
            .run(QueueSequence(first), count, bytes, place, Marking::Plain)
            .expect("within bounds");
    };
    run(&mut replay, 1, 5);
    run(&mut replay, 9, 2);
    let lost = SequenceRange::new(QueueSequence(6), QueueSequence(8));
    let mut gaps = Ranges::new();
    replay.gaps(&mut gaps);
    assert_eq!(gaps.as_slice(), [lost]);
    let Err(mut replay) = replay.finish() else {
        panic!("served with a gap");
    };
    replay.settled(lost).expect("within bounds");
    let Ok(mut queue) = replay.finish() else {
        panic!("the gap was accepted");
    };
    consume(&mut queue, 1, 100);
    queue.mark_durable(QueueSequence(10));
    assert_eq!(sequences_taken(&mut queue), [1, 2, 3, 4, 5, 9, 10]);
    // Only what the mark covered before the crash is flagged.
    assert_eq!(queue.counters().published, 10);
}

#[test]
fn records_out_of_bounds_are_refused_in_replay() {
    let mut replay = Replay::new(DURABLE);
    let at = place(1);
    let crooked = Place { offset: 8, ..at };
    for (first, count, bytes, place) in [
        (0, 1, 64, at),
        (1, 0, 64, at),
        (1, RUN_MESSAGES_MAX + 1, 64, at),
        (1, 1, RUN_BYTES_MAX + 16, at),
        (1, 1, 65, at),
        (1, 1, 64, crooked),
        (u64::MAX, 1, 64, at),
        (u64::MAX - 3, 3, 64, at),
    ] {
        let done = replay.run(QueueSequence(first), count, bytes, place, Marking::Plain);
        assert_eq!(done, Err(StateFault::Number), "{first} {count} {bytes}");
    }
    let done = replay.run(
        QueueSequence(1),
        RUN_MESSAGES_MAX,
        RUN_BYTES_MAX,
        at,
        Marking::Plain,
    );
    assert_eq!(done, Ok(()));
}

#[test]
fn volatile_queues_need_neither_marks_nor_durable_counts() {
    let mut queue = Queue::new(VOLATILE);
    consume(&mut queue, 1, 100);
    publish(&mut queue, 1, 10);
    assert!(!queue.wants_marked());
    assert_eq!(queue.mark_needed(), None);
    assert_eq!(sequences_taken(&mut queue).len(), 10);
    assert!(
        queue
            .remove_consumer(ConsumerKey(1), &mut Ranges::new())
            .is_some()
    );
    consume(&mut queue, 2, 100);
    let offer = queue.next_offer().expect("deliverable at once");
    assert_eq!((offer.first.0, offer.delivery_count), (1, 1));
    // The record grows after all of it was settled and forgotten.
    assert_eq!(sequences_taken(&mut queue).len(), 10);
    let mut out = Ranges::new();
    let range = SettleRange { first: 0, last: 10 };
    let done = queue.settle(ConsumerKey(2), range, Outcome::Ack, &mut out);
    assert_eq!(done.map(|done| done.messages), Ok(10));
    queue.forget(out.as_slice(), &mut |_, _| {});
    assert_eq!(queue.footprint(), (0, 0));
    queue.extend_last(2, 128);
    queue.durable_through(QueueSequence(12));
    let offer = queue.next_offer().expect("deliverable");
    assert_eq!((offer.index, offer.body_bytes), (10, 12 * 64));
    queue.invariants();
}

/// Publishes messages of 64 bytes, one to a run, each with its terms.
fn publish_with(queue: &mut Queue, terms: &[Terms]) {
    for terms in terms {
        let first = queue.next_sequence();
        let place = place(first.0 as u32);
        queue.push_run(first, 1, 64, place, Marking::Marked);
        queue.arrived(first, 1, Mono(0), *terms);
    }
    queue.durable_through(QueueSequence(queue.next - 1));
}

fn priority(priority: u8) -> Terms {
    Terms {
        priority,
        ..Terms::default()
    }
}

#[test]
fn the_highest_rank_goes_first_and_equals_keep_their_order() {
    let settings = Settings {
        rank_max: 5,
        ..DURABLE
    };
    let mut queue = Queue::new(settings);
    consume(&mut queue, 1, 100);
    // One above the highest counts as the highest.
    publish_with(&mut queue, &[0, 5, 1, 9, 0, 1, 5].map(priority));
    queue.invariants();
    assert_eq!(sequences_taken(&mut queue), [2, 4, 7, 3, 6, 1, 5]);
    queue.invariants();
    // What is given back keeps its rank and its place.
    let range = SettleRange { first: 3, last: 4 };
    let mut out = Ranges::new();
    let done = queue.settle(ConsumerKey(1), range, Outcome::Requeue, &mut out);
    done.expect("it holds them");
    let upto = queue.take_counts(&mut Vec::new());
    queue.counts_durable(upto);
    publish_with(&mut queue, &[5, 0].map(priority));
    assert_eq!(sequences_taken(&mut queue), [7, 8, 3, 9]);
    queue.invariants();
}

#[test]
fn with_a_turn_the_oldest_message_goes_after_so_many_that_passed_it() {
    let settings = Settings {
        rank_max: 3,
        rank_turn: 2,
        ..DURABLE
    };
    let mut queue = Queue::new(settings);
    consume(&mut queue, 1, 100);
    publish_with(&mut queue, &[0, 0, 0, 3, 3, 3, 3, 3].map(priority));
    assert_eq!(sequences_taken(&mut queue), [4, 5, 1, 6, 7, 2, 8, 3]);
    // Without it the lowest wait as long as there are others.
    queue.set(Settings {
        rank_turn: 0,
        ..settings
    });
    publish_with(&mut queue, &[0, 3, 3, 3].map(priority));
    assert_eq!(sequences_taken(&mut queue), [10, 11, 12, 9]);
}

#[test]
fn a_high_rank_passes_a_backlog_that_is_not_marked() {
    let settings = Settings {
        rank_max: 1,
        ..DURABLE
    };
    let mut queue = Queue::new(settings);
    for _ in 0..100 {
        let first = queue.next_sequence();
        let place = place(first.0 as u32);
        queue.push_run(first, 1_000, 64_000, place, Marking::Plain);
        queue.arrived(first, 1_000, Mono(0), Terms::default());
    }
    let first = queue.next_sequence();
    queue.push_run(first, 1, 64, place(1), Marking::Plain);
    queue.arrived(first, 1, Mono(0), priority(1));
    queue.durable_through(first);
    consume(&mut queue, 1, 10);
    assert_eq!(queue.next_offer(), None);
    assert!(queue.awaits_journal());
    let mark = queue.mark_needed().expect("a mark is needed");
    assert!(mark >= first, "{mark:?} is below the one that goes first");
    queue.mark_durable(mark);
    assert_eq!(queue.next_offer().map(|offer| offer.first), Some(first));
}

#[test]
fn a_delayed_message_comes_when_it_is_due() {
    let mut queue = Queue::new(DURABLE);
    consume(&mut queue, 1, 100);
    let delayed = |delay_ms| Terms {
        delay_ms,
        ..Terms::default()
    };
    publish_with(
        &mut queue,
        &[delayed(50), delayed(0), delayed(20), delayed(50)],
    );
    queue.invariants();
    assert_eq!(sequences_taken(&mut queue), [2]);
    assert_eq!((queue.counters().ready, queue.counters().delayed), (0, 3));
    // The millisecond in which they came counts for nothing.
    assert_eq!(queue.next_due(), Some(mono_of(21)));
    for (ms, expected) in [(20, &[][..]), (21, &[3]), (50, &[]), (51, &[1, 4])] {
        queue.set_now(mono_of(ms));
        queue.release_due(u64::MAX);
        assert_eq!(sequences_taken(&mut queue), expected, "at {ms} ms");
        queue.invariants();
    }
    assert_eq!(queue.next_due(), None);
}

#[test]
fn what_is_given_back_waits_and_what_a_consumer_leaves_does_not() {
    let retry = Retry {
        backoff: Backoff::Exponential,
        delay_ms: 100,
        delay_max_ms: 150,
        jitter_percent: 0,
    };
    let mut queue = Queue::new(Settings {
        retry: Some(retry),
        ..VOLATILE
    });
    consume(&mut queue, 1, 10);
    publish(&mut queue, 1, 2);
    let mut now = 0;
    for wait in [100, 150, 150] {
        assert_eq!(sequences_taken(&mut queue).len(), 2);
        let range = SettleRange {
            first: 0,
            last: queue.consumers.get(0).unacked.tag_last(),
        };
        let mut out = Ranges::new();
        let done = queue.settle(ConsumerKey(1), range, Outcome::Requeue, &mut out);
        done.expect("it holds them");
        assert_eq!(queue.next_due(), Some(mono_of(now + 1 + wait)));
        now += wait;
        queue.set_now(mono_of(now));
        assert_eq!(queue.release_due(10), 0);
        now += 1;
        queue.set_now(mono_of(now));
        assert_eq!(queue.release_due(10), 2);
    }
    assert_eq!(sequences_taken(&mut queue), [1, 2]);
    queue.remove_consumer(ConsumerKey(1), &mut Ranges::new());
    assert_eq!((queue.counters().ready, queue.next_due()), (2, None));
}

#[test]
fn a_batch_that_is_delayed_costs_what_a_message_costs() {
    let mut queue = Queue::new(DURABLE);
    for batch in 0..1_000u32 {
        let first = queue.next_sequence();
        queue.push_run(first, 100, 6_400, place(batch), Marking::Plain);
        let terms = Terms {
            delay_ms: 1 + batch * 7_919 % 100_000,
            ..Terms::default()
        };
        queue.arrived(first, 100, Mono(0), terms);
    }
    assert_eq!(queue.counters().delayed, 100_000);
    assert_eq!(queue.delayed.len(), 1_000);
    assert_eq!(queue.apart.len(), 1);
}

#[test]
fn a_walk_reads_each_message_once() {
    let mut body = Vec::new();
    for bytes in [64, 96, 80, 128] {
        write_message(&mut body, bytes);
    }
    assert_eq!(walk(&body, 0, 0, 0), Some(0));
    assert_eq!(walk(&body, 0, 0, 3), Some(240));
    assert_eq!(walk(&body, 2, 160, 3), Some(240));
    assert_eq!(walk(&[], 3, 240, 3), Some(240), "nothing to read");
    assert_eq!(walk(&body[..164], 0, 0, 3), None);
    assert_eq!(walk(&[0; 64], 0, 0, 1), None);
}

#[test]
fn deliveries_are_counted_over_two_crashes_under_one_mark() {
    let journal = |counts: &[CountRange]| {
        let mut replay = Replay::new(DURABLE);
        let said = replay.run(QueueSequence(1), 1, 64, place(1), Marking::Plain);
        said.expect("in bounds");
        replay.mark(QueueSequence(5));
        for counts in counts {
            replay.counts(*counts).expect("in bounds");
        }
        let mut queue = replay.finish().ok().expect("no gap");
        queue.hold_restored();
        consume(&mut queue, 1, 10);
        queue.mark_durable(QueueSequence(5));
        queue
    };
    let mut queue = journal(&[]);
    assert!(queue.next_offer().is_none(), "its count is not recorded");
    let mut counts = Vec::new();
    let upto = queue.take_counts(&mut counts);
    queue.counts_durable(upto);
    let first = queue.next_offer().expect("deliverable").delivery_count;
    queue.invariants();
    let mut queue = journal(&counts);
    let upto = queue.take_counts(&mut Vec::new());
    queue.counts_durable(upto);
    let second = queue.next_offer().expect("deliverable").delivery_count;
    assert_eq!((first, second), (1, 2));
}

#[test]
fn a_good_end_counts_exactly_though_acks_are_on_their_way() {
    let mut queue = Queue::new(DURABLE);
    consume(&mut queue, 1, 100);
    publish(&mut queue, 2, 5);
    assert_eq!(sequences_taken(&mut queue).len(), 10);
    let mut acked = Ranges::new();
    let range = SettleRange { first: 1, last: 4 };
    let done = queue.settle(ConsumerKey(1), range, Outcome::Ack, &mut acked);
    done.expect("outstanding");
    queue
        .remove_consumer(ConsumerKey(1), &mut Ranges::new())
        .expect("it is there");
    let restored = |acked: &[SequenceRange]| {
        let mut state = Vec::new();
        queue.encode_last_state(CLOCK, acked, &mut state);
        let mut replay = Replay::decode(DURABLE, &state).expect("as written");
        for record in 0..2 {
            let first = QueueSequence(record * 5 + 1);
            let run = replay.run(first, 5, 320, place(record as u32), Marking::Plain);
            run.expect("in order");
        }
        let mut queue = replay.finish().ok().expect("whole");
        queue.hold_restored();
        let mut counts = Vec::new();
        queue.take_counts(&mut counts);
        let numbers = |count: &CountRange| {
            let CountRange { range, deliveries } = *count;
            (range.first.0, range.last.0, deliveries)
        };
        counts.iter().map(numbers).collect::<Vec<_>>()
    };
    // What is acked in the checkpoint needs no mark, and the others came back before it.
    assert_eq!(restored(acked.as_slice()), [(5, 10, 1)]);
    // Acks of which no record was appended are lost: what they were for was delivered all the same.
    assert_eq!(restored(&[]), [(1, 4, 1), (5, 10, 2)]);
}

#[test]
fn what_was_marked_before_a_crash_counts_as_delivered_and_needs_a_new_mark() {
    let mut replay = Replay::new(DURABLE);
    let at = place(1);
    replay
        .run(QueueSequence(1), 10, 640, at, Marking::Plain)
        .expect("within bounds");
    replay.mark(QueueSequence(6));
    let Ok(mut queue) = replay.finish() else {
        panic!("there is no gap");
    };
    consume(&mut queue, 1, 100);
    assert!(queue.next_offer().is_none());
    assert!(queue.mark_needed().is_some_and(|mark| mark.0 >= 10));
    queue.mark_durable(QueueSequence(4));
    let (offer, _, count) = take(&mut queue, 100).expect("marked");
    assert_eq!((offer.first.0, offer.delivery_count, count), (1, 1, 4));
    assert!(queue.next_offer().is_none());
    queue.mark_durable(QueueSequence(10));
    let (offer, _, count) = take(&mut queue, 100).expect("marked");
    assert_eq!((offer.first.0, offer.delivery_count, count), (5, 1, 2));
    let (offer, _, count) = take(&mut queue, 100).expect("marked");
    assert_eq!((offer.first.0, offer.delivery_count, count), (7, 0, 4));
    queue.invariants();
}
