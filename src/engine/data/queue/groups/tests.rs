//! Message groups against what they promise, by random operations. Does not know bytes: keys are told.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;
use super::FREE;
use crate::ids::Clock;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

const BYTES: u32 = 64;

/// A queue, and what was published to it.
struct World {
    random: Random,
    queue: Queue,
    settings: Settings,
    /// Message: its key, and whether it is done with.
    messages: BTreeMap<u64, (u64, bool)>,
    /// What its producer delays and was never delivered.
    delayed: BTreeSet<u64>,
    /// Consumer: tag, message.
    held: BTreeMap<u64, BTreeMap<u64, u64>>,
    /// What transactions have acknowledged that are not decided.
    deciding: Vec<Taken>,
    /// Consumer: its credit in messages.
    credits: BTreeMap<u64, u32>,
    places: BTreeMap<u64, Place>,
    key_last: u64,
    now_ms: u64,
    keys: u64,
    parked_most: u64,
    delivered: u64,
    coverage: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let retry = (random.below(2) == 0).then_some(Retry {
            backoff: Backoff::Fixed,
            delay_ms: 20,
            delay_max_ms: 100,
            jitter_percent: 50,
        });
        let settings = Settings {
            retry,
            returns_max: (random.below(3) == 0).then_some(3),
            has_dead_letters: false,
            ttl_ms: [0, 0, 150][random.below(3) as usize],
            dispatch: DispatchSettings {
                policy: Policy::Sticky(KeySource::RoutingKey),
                is_grouped: true,
                ahead_max: [1, 5, 64, 4_096][random.below(4) as usize],
                ..DispatchSettings::DEFAULT
            },
            ..Settings::plain([Durability::Durable, Durability::Volatile][random.below(2) as usize])
        };
        Self {
            keys: [1, 3, 20][random.below(3) as usize],
            random,
            queue: Queue::new(settings),
            settings,
            messages: BTreeMap::new(),
            delayed: BTreeSet::new(),
            held: BTreeMap::new(),
            deciding: Vec::new(),
            credits: BTreeMap::new(),
            places: BTreeMap::new(),
            key_last: 0,
            now_ms: 1_000,
            parked_most: 0,
            delivered: 0,
            coverage: BTreeSet::new(),
        }
    }

    fn now(&self) -> Mono {
        Mono(self.now_ms * 1_000_000)
    }

    fn publish(&mut self) {
        let count = 1 + self.random.below(6) as u32;
        let first = self.queue.next_sequence();
        let place = Place {
            segment: SegmentIdx(first.0 as u32),
            offset: 0,
        };
        self.queue
            .push_run(first, count, count * BYTES, place, Marking::Plain);
        self.places.insert(first.0, place);
        let delay_ms = match self.random.below(12) {
            0 => 1 + self.random.below(60) as u32,
            _ => 0,
        };
        let terms = Terms {
            delay_ms,
            ..Terms::default()
        };
        if self.queue.heeds(&terms) {
            self.queue.arrived(first, count, self.now(), terms);
        }
        for sequence in first.0..first.0 + u64::from(count) {
            // Every seventh has no key.
            let key = match self.random.below(7) {
                0 => FREE,
                _ => self.random.below(self.keys),
            };
            self.messages.insert(sequence, (key, false));
            if delay_ms > 0 {
                self.delayed.insert(sequence);
            }
        }
        self.queue.durable_through(first.plus(u64::from(count) - 1));
    }

    fn join(&mut self) {
        self.key_last += 1;
        let credit = Credit {
            messages: 1 + self.random.below(12) as u32,
            bytes: [0, 0, 4 * u64::from(BYTES)][self.random.below(3) as usize],
        };
        let traits = Traits {
            priority: self.random.below(2) as i8,
            weight: 1,
        };
        let key = ConsumerKey(self.key_last);
        self.queue
            .add_consumer(key, credit, AckMode::Explicit, Sharing::Shared, traits)
            .expect("it is shared");
        self.held.insert(self.key_last, BTreeMap::new());
        self.credits.insert(self.key_last, credit.messages);
    }

    fn leave(&mut self) {
        let nth = self.random.below(self.held.len() as u64) as usize;
        let key = *self.held.keys().nth(nth).expect("counted");
        self.held.remove(&key);
        let mut out = Ranges::new();
        self.queue.remove_consumer(ConsumerKey(key), &mut out);
        self.done(&out);
        self.coverage.insert("left");
    }

    fn done(&mut self, out: &Ranges) {
        for range in out.as_slice() {
            for sequence in range.first.0..=range.last.0 {
                self.messages.get_mut(&sequence).expect("published").1 = true;
            }
        }
        self.queue.forget(out.as_slice(), &mut |_, _| {});
    }

    /// Everything that waits for the disk is durable.
    fn disk(&mut self) {
        while let Some(mark) = self.queue.mark_needed() {
            self.queue.mark_durable(mark);
        }
        let upto = self.queue.take_counts(&mut Vec::new());
        self.queue.counts_durable(upto);
    }

    fn dispatch(&mut self) {
        self.queue.set_now(self.now());
        self.queue.release_due(u64::MAX);
        let mut out = Ranges::new();
        self.queue.sweep_head(u64::MAX, &mut out);
        self.done(&out);
        self.queue.look_again();
        let mut looks = 0;
        while let Some(offer) = self.queue.next_offer() {
            looks += 1;
            assert!(looks < 100_000, "it goes on for ever");
            let first = offer.first.0;
            let index = first - offer.base;
            let at = index as u32 * BYTES;
            let key = self.messages[&first].0;
            let offer = if offer.key == ConsumerKey::BY_KEY {
                match self.queue.address(&offer, key, (at, BYTES)) {
                    Some(offer) => offer,
                    None => {
                        self.queue.invariants();
                        continue;
                    }
                }
            } else {
                self.coverage.insert("parked goes");
                offer
            };
            let mut count = 0;
            while offer.fits(count, u64::from(count * BYTES), BYTES)
                && self.messages[&(first + u64::from(count))].0 == key
            {
                count += 1;
            }
            if count == 0 {
                self.queue.decline(&offer);
                continue;
            }
            let each = vec![BYTES; count as usize];
            let tag = self.queue.take(&offer, at, &each, &mut Ranges::new());
            for nth in 0..u64::from(count) {
                self.is_right(first + nth, offer.key.0);
                self.delayed.remove(&(first + nth));
                let held = self.held.get_mut(&offer.key.0).expect("it is there");
                held.insert(tag.0 + nth, first + nth);
            }
            let most = self.credits[&offer.key.0] as usize;
            assert!(self.held[&offer.key.0].len() <= most, "credit passed");
            self.delivered += u64::from(count);
            self.queue.invariants();
        }
        let groups = self.queue.groups.as_ref().expect("it has some");
        self.parked_most = self.parked_most.max(groups.ahead);
        assert!(groups.ahead <= groups.ahead_max);
    }

    /// A message goes to a consumer: whether it may.
    fn is_right(&mut self, sequence: u64, consumer: u64) {
        let key = self.messages[&sequence].0;
        if key == FREE {
            return;
        }
        for (other, held) in &self.held {
            let holds = held.values().any(|held| self.messages[held].0 == key);
            assert!(
                *other == consumer || !holds,
                "{sequence} goes to {consumer}, and {other} holds its key"
            );
        }
        for one in &self.deciding {
            let other = self.messages[&one.sequence].0;
            assert!(
                other != key,
                "{sequence} goes while a transaction has its key"
            );
        }
        let held: BTreeSet<u64> = self.held[&consumer].values().copied().collect();
        for (earlier, (other, is_done)) in self.messages.range(..sequence) {
            // What its producer delays joins its key when it is its turn for the first time.
            let is_known = !self.delayed.contains(earlier);
            assert!(
                *other != key || *is_done || held.contains(earlier) || !is_known,
                "{sequence} goes before {earlier}"
            );
        }
        if let Some(before) = held.iter().next_back()
            && self.messages[before].0 == key
        {
            self.coverage.insert("several of a key");
        }
    }

    fn settle(&mut self, is_last: bool) {
        let holding: Vec<u64> = self.held.keys().copied().collect();
        for consumer in holding {
            let tags: Vec<u64> = self.held[&consumer].keys().copied().collect();
            for tag in tags {
                if !is_last && self.random.below(3) > 0 {
                    continue;
                }
                let sequence = self
                    .held
                    .get_mut(&consumer)
                    .and_then(|held| held.remove(&tag));
                assert!(sequence.is_some());
                let outcome = match self.random.below(10) {
                    0..=2 if !is_last => Outcome::Requeue,
                    3 if !is_last => Outcome::Reject,
                    _ => Outcome::Ack,
                };
                let range = SettleRange {
                    first: tag,
                    last: tag,
                };
                if !is_last && self.random.below(8) == 0 {
                    let taken =
                        self.queue
                            .take_acked(ConsumerKey(consumer), range, &mut self.deciding);
                    taken.expect("it is held");
                    self.coverage.insert("by a transaction");
                    self.queue.invariants();
                    continue;
                }
                let mut out = Ranges::new();
                let settled = self
                    .queue
                    .settle(ConsumerKey(consumer), range, outcome, &mut out);
                settled.expect("it is held");
                self.done(&out);
                self.queue.invariants();
            }
        }
    }

    /// All transactions are committed, or rolled back.
    fn decide(&mut self) {
        let taken = std::mem::take(&mut self.deciding);
        let mut out = Ranges::new();
        if self.random.below(2) == 0 {
            self.queue.give_back_acked(&taken, &mut out);
        } else {
            let mut sequences: Vec<u64> = taken.iter().map(|one| one.sequence).collect();
            sequences.sort_unstable();
            for sequence in sequences {
                push_range(&mut out, sequence, sequence);
            }
        }
        self.done(&out);
    }

    fn purge(&mut self) {
        let mut out = Ranges::new();
        self.queue.purge(&mut out);
        self.done(&out);
        self.coverage.insert("purged");
    }

    /// The broker stops and comes back.
    fn restart(&mut self) {
        if self.settings.durability == Durability::Volatile {
            return;
        }
        let clock = Clock {
            now: self.now(),
            wall_us: self.now_ms * 1_000,
        };
        let mut state = Vec::new();
        self.queue.encode_state(clock, &[], &mut state);
        let mut replay = Replay::decode(self.settings, &state).expect("it was just written");
        for (first, place) in &self.places {
            let next = self.places.range(first + 1..).next();
            let end = next.map_or(self.queue.next_sequence().0, |(next, _)| *next);
            let count = (end - first) as u32;
            let run = (QueueSequence(*first), count, count * BYTES, *place);
            replay
                .run(run.0, run.1, run.2, run.3, Marking::Plain)
                .expect("it was published");
        }
        let terms = replay.take_terms();
        self.queue = replay.finish().map_err(|_| ()).expect("nothing is lost");
        self.queue.set_now(self.now());
        self.queue
            .restore_terms(&terms, |wall_ms| wall_ms, |wall_ms| wall_ms);
        self.queue.hold_restored();
        self.held.clear();
        self.deciding.clear();
        self.queue.invariants();
        self.coverage.insert("restarted");
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..=3 => self.publish(),
            4 if self.held.len() < 5 => self.join(),
            5 if !self.held.is_empty() && self.random.below(6) == 0 => self.leave(),
            6 => self.now_ms += self.random.below(40),
            7 if self.random.below(4) == 0 => self.decide(),
            7 if self.random.below(25) == 0 => self.purge(),
            7 if self.random.below(12) == 0 => self.restart(),
            8 | 9 => self.settle(false),
            _ => {
                self.disk();
                self.dispatch();
            }
        }
        self.queue.invariants();
    }
}

#[test]
fn random_operations_keep_what_groups_promise() {
    let mut coverage = BTreeSet::new();
    let mut parked_most = 0;
    for seed in 1..=150 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        // Nothing is stuck: who settles gets all there is.
        world.decide();
        world.join();
        let mut rounds = 0;
        while world.messages.values().any(|(_, is_done)| !is_done) {
            rounds += 1;
            assert!(rounds < 20_000, "seed {seed}: {:?}", world.queue.counters());
            world.now_ms += 5;
            world.disk();
            world.dispatch();
            world.settle(true);
        }
        assert!(
            world.queue.groups.as_ref().is_some_and(|groups| {
                groups.by_hash.is_empty() && groups.by_sequence.is_empty()
            })
        );
        parked_most = parked_most.max(world.parked_most);
        coverage.append(&mut world.coverage);
    }
    let expected = [
        "by a transaction",
        "left",
        "parked goes",
        "purged",
        "restarted",
        "several of a key",
    ];
    assert_eq!(coverage.into_iter().collect::<Vec<_>>(), expected);
    assert!(parked_most >= 64, "{parked_most}");
}

#[test]
fn a_busy_key_holds_up_no_other_within_the_look_ahead() {
    let settings = Settings {
        dispatch: DispatchSettings {
            policy: Policy::Sticky(KeySource::RoutingKey),
            is_grouped: true,
            ahead_max: 10,
            ..DispatchSettings::DEFAULT
        },
        ..Settings::plain(Durability::Volatile)
    };
    for (waiting, gets) in [(9, true), (10, true), (11, false)] {
        let mut queue = Queue::new(settings);
        let give = |queue: &mut Queue| {
            let mut given = Vec::new();
            queue.look_again();
            while let Some(offer) = queue.next_offer() {
                // All have key 7 but the last one.
                let key = if offer.first.0 == waiting + 2 { 8 } else { 7 };
                let offer = match offer.key {
                    ConsumerKey::BY_KEY => queue.address(&offer, key, (0, BYTES)),
                    _ => Some(offer),
                };
                if let Some(offer) = offer {
                    queue.take(&offer, 0, &[BYTES], &mut Ranges::new());
                    given.push((offer.key.0, offer.first.0));
                }
            }
            given
        };
        let credit = Credit {
            messages: 1,
            bytes: 0,
        };
        for key in [1, 2] {
            let key = ConsumerKey(key);
            let traits = Traits::default();
            let added = queue.add_consumer(key, credit, AckMode::Explicit, Sharing::Shared, traits);
            added.expect("it is shared");
        }
        for sequence in 1..=waiting + 2 {
            let place = Place {
                segment: SegmentIdx(sequence as u32),
                offset: 0,
            };
            queue.push_run(QueueSequence(sequence), 1, BYTES, place, Marking::Plain);
            queue.durable_through(QueueSequence(sequence));
        }
        let given = give(&mut queue);
        let holder = given[0].0;
        assert_eq!(given[0].1, 1);
        assert_eq!(given.len() > 1, gets, "{waiting}: {given:?}");
        assert!(
            given
                .iter()
                .skip(1)
                .all(|one| *one == (3 - holder, waiting + 2))
        );
        queue.invariants();
        // The key is free: what was parked first goes first.
        let range = SettleRange { first: 1, last: 1 };
        let settled = queue.settle(ConsumerKey(holder), range, Outcome::Ack, &mut Ranges::new());
        settled.expect("it is held");
        assert_eq!(give(&mut queue)[0].1, 2);
    }
}
