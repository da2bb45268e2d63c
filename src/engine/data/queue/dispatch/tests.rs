//! Shares: what each consumer gets of many messages, on simulated time, while others come and go.
//! Does not know journals; messages are always deliverable.

use std::collections::BTreeMap;

use super::super::*;
use super::Random;
use super::line::Line;

const MESSAGES: u64 = 100_000;

fn settings(policy: Policy) -> Settings {
    Settings {
        dispatch: DispatchSettings {
            policy,
            ..DispatchSettings::DEFAULT
        },
        ..Settings::plain(Durability::Volatile)
    }
}

/// What one consumer did.
#[derive(Default, Clone)]
struct Book {
    weight: u8,
    credit: u32,
    got: u64,
    /// What it should have got of those that were taken while it was there; before it goes, what a
    /// weight of 1 should have got before it came.
    due: f64,
    /// Messages that were taken, by anybody, before it last got some or came.
    served_at: u64,
}

/// A queue whose consumers settle what they hold some ticks later.
struct World {
    random: Random,
    queue: Queue,
    there: BTreeMap<u64, Book>,
    gone: Vec<Book>,
    /// Deliveries that will be settled: tick, consumer, tag.
    held: std::collections::VecDeque<(u64, u64, u64, u64)>,
    key_last: u64,
    tick: u64,
    /// Messages taken, and what a weight of 1 should have got of them.
    taken: u64,
    share: f64,
    weights: u64,
    /// The most messages that others got while one with room waited.
    passed_over: u64,
    keys: u64,
    by_consumer: BTreeMap<(u64, u64), u64>,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self {
            random: Random::new(7),
            queue: Queue::new(settings(policy)),
            there: BTreeMap::new(),
            gone: Vec::new(),
            held: std::collections::VecDeque::new(),
            key_last: 0,
            tick: 0,
            taken: 0,
            share: 0.0,
            weights: 0,
            passed_over: 0,
            keys: 1,
            by_consumer: BTreeMap::new(),
        }
    }

    fn join(&mut self, credit: u32, traits: Traits) -> u64 {
        self.key_last += 1;
        let key = self.key_last;
        let credits = Credit {
            messages: credit,
            bytes: 0,
        };
        let name = ConsumerKey(key);
        self.queue
            .add_consumer(name, credits, AckMode::Explicit, Sharing::Shared, traits)
            .expect("shared");
        let book = Book {
            weight: traits.weight,
            credit,
            due: self.share,
            served_at: self.taken,
            got: 0,
        };
        self.weights += u64::from(traits.weight);
        self.there.insert(key, book);
        key
    }

    fn leave(&mut self, key: u64) {
        self.queue
            .remove_consumer(ConsumerKey(key), &mut Ranges::new())
            .expect("there");
        let book = self.there.remove(&key).expect("there");
        self.weights -= u64::from(book.weight);
        self.gone.push(self.closed(&book));
    }

    /// A book with what was due to it until now.
    fn closed(&self, book: &Book) -> Book {
        Book {
            due: (self.share - book.due) * f64::from(book.weight),
            ..book.clone()
        }
    }

    fn publish(&mut self, count: u32) {
        let first = self.queue.next_sequence();
        let place = Place {
            segment: SegmentIdx(first.0 as u32),
            offset: 0,
        };
        self.queue
            .push_run(first, count, count * 64, place, Marking::Plain);
        let last = first.plus(u64::from(count) - 1);
        self.queue.durable_through(last);
    }

    /// Gives out what is there; consumers settle each message after `work` ticks.
    fn dispatch(&mut self, work: u64) {
        while let Some(mut offer) = self.queue.next_offer() {
            if offer.key == ConsumerKey::BY_KEY {
                let key = self.random.below(self.keys);
                let hash = Random::new(key).next();
                let addressed = self.queue.address(&offer, hash, (0, 0));
                offer = addressed.expect("there are no groups");
                offer.messages_max = 1;
                *self.by_consumer.entry((key, offer.key.0)).or_default() += 1;
            }
            let count = offer.messages_max;
            let each = vec![64; count as usize];
            let tag = self
                .queue
                .take(&offer, offer.index * 64, &each, &mut Ranges::new());
            let count = u64::from(count);
            self.taken += count;
            self.share += count as f64 / self.weights as f64;
            let book = self.there.get_mut(&offer.key.0).expect("there");
            book.got += count;
            self.passed_over = self.passed_over.max(self.taken - count - book.served_at);
            book.served_at = self.taken;
            let holds = self.queue.outstanding(offer.key).expect("there").messages;
            assert!(holds <= u64::from(book.credit), "credit passed");
            self.held
                .push_back((self.tick + work, offer.key.0, tag.0, tag.0 + count - 1));
        }
    }

    fn settle(&mut self) {
        self.tick += 1;
        while let Some((at, key, first, last)) = self.held.front().copied()
            && at <= self.tick
        {
            self.held.pop_front();
            if self.there.contains_key(&key) {
                let range = SettleRange { first, last };
                let mut out = Ranges::new();
                self.queue
                    .settle(ConsumerKey(key), range, Outcome::Ack, &mut out)
                    .expect("outstanding");
                self.queue.forget(out.as_slice(), &mut |_, _| {});
            }
        }
    }

    /// Sends messages through while every hundredth tick a consumer leaves and another comes.
    fn run(&mut self, arrivals: u32, work: u64) {
        let mut sent = 0;
        while sent < MESSAGES {
            self.publish(arrivals);
            sent += u64::from(arrivals);
            self.dispatch(work);
            let lines = self.queue.consumers.lines.iter();
            let with_room: u32 = lines.map(Line::len).sum();
            assert_eq!(
                with_room as usize,
                self.there.len(),
                "a share is one of all"
            );
            self.settle();
            if self.tick.is_multiple_of(100) {
                let nth = self.random.below(self.there.len() as u64) as usize;
                let (key, book) = self.there.iter().nth(nth).expect("counted");
                let (key, credit) = (*key, book.credit);
                let traits = Traits {
                    weight: book.weight,
                    priority: 0,
                };
                self.leave(key);
                self.join(credit, traits);
            }
        }
        self.queue.invariants();
    }

    fn books(&self) -> impl Iterator<Item = Book> {
        let there = self.there.values().map(|book| self.closed(book));
        self.gone.iter().cloned().chain(there)
    }

    /// How far the worst share is off what the policy says, in points of all messages.
    fn worst(&self) -> f64 {
        let off = |book: Book| (book.got as f64 - book.due).abs() * 100.0 / self.taken as f64;
        self.books().map(off).fold(0.0, f64::max)
    }

    fn longest_passed_over(&self) -> u64 {
        let waits = self.there.values().map(|book| self.taken - book.served_at);
        waits.max().unwrap_or(0).max(self.passed_over)
    }
}

const EQUAL: Traits = Traits {
    priority: 0,
    weight: 1,
};

#[test]
fn shares_are_within_two_points_of_the_policy() {
    for policy in [
        Policy::RoundRobin,
        Policy::Random,
        Policy::Weighted,
        Policy::LeastOutstanding,
    ] {
        let weights: [u8; 8] = if policy == Policy::Weighted {
            [1, 2, 3, 5, 8, 13, 21, 100]
        } else {
            [1; 8]
        };
        for (arrivals, work) in [(1, 3), (7, 3), (50, 1), (1_000, 1)] {
            let mut world = World::new(policy);
            for weight in weights {
                let traits = Traits { weight, ..EQUAL };
                world.join(2_000, traits);
            }
            world.run(arrivals, work);
            let worst = world.worst();
            assert!(
                worst <= 2.0,
                "{policy:?}, {arrivals} at a time: {worst} points off"
            );
            assert!(world.books().all(|book| book.got > 0 || book.due < 500.0));
        }
    }
}

#[test]
fn a_thousand_consumers_have_their_shares_and_nobody_starves() {
    for policy in [
        Policy::RoundRobin,
        Policy::Weighted,
        Policy::LeastOutstanding,
    ] {
        let mut world = World::new(policy);
        let mut weights = 0;
        for nth in 0..1_000_u32 {
            let weight = match policy {
                Policy::Weighted => 1 + (nth % 100) as u8,
                _ => 1,
            };
            weights += u64::from(weight);
            world.join(200, Traits { weight, ..EQUAL });
        }
        world.run(100, 2);
        let worst = world.worst();
        assert!(worst <= 0.1, "{policy:?}: {worst} points off");
        // Two rounds, and what a turn is too long.
        let most = 2 * weights + 10_000;
        let passed = world.longest_passed_over();
        assert!(
            passed <= most,
            "{policy:?}: passed over for {passed} messages"
        );
    }
}

#[test]
fn weights_hold_relative_to_each_other() {
    let mut world = World::new(Policy::Weighted);
    let keys = [1, 10, 50, 100].map(|weight| world.join(1_000_000, Traits { weight, ..EQUAL }));
    for _ in 0..1_000 {
        world.publish(161);
        world.dispatch(0);
        world.settle();
    }
    let got = keys.map(|key| world.there[&key].got);
    for (got, weight) in got.into_iter().zip([1.0, 10.0, 50.0, 100.0]) {
        let off = got as f64 / (1_000.0 * weight) - 1.0;
        assert!(off.abs() < 0.02, "weight {weight} got {got}");
    }
}

#[test]
fn higher_priorities_take_all_that_they_have_room_for() {
    for policy in [
        Policy::RoundRobin,
        Policy::Random,
        Policy::Weighted,
        Policy::LeastOutstanding,
        Policy::Sticky(KeySource::RoutingKey),
    ] {
        let mut world = World::new(policy);
        world.keys = 100;
        let mut join = |priority, credit| {
            let traits = Traits {
                priority,
                weight: 1,
            };
            world.join(credit, traits)
        };
        let low = [join(-10, 100), join(-10, 100)];
        let high = [join(10, 5), join(10, 5)];
        let middle = join(0, 7);
        world.publish(9);
        world.dispatch(1);
        let got = |world: &World, key: u64| world.there[&key].got;
        assert_eq!(got(&world, high[0]) + got(&world, high[1]), 9, "{policy:?}");
        world.publish(10);
        world.dispatch(1);
        assert_eq!(got(&world, middle), 7);
        assert_eq!(got(&world, low[0]) + got(&world, low[1]), 2);
        // Whoever has room again comes first again, also in the middle of a turn of others.
        world.settle();
        world.publish(10);
        world.dispatch(1);
        assert_eq!(
            got(&world, high[0]) + got(&world, high[1]),
            20,
            "{policy:?}"
        );
        world.queue.invariants();
    }
}

#[test]
fn the_one_that_holds_the_fewest_is_next() {
    let mut world = World::new(Policy::LeastOutstanding);
    let slow = world.join(1_000, EQUAL);
    let fast = world.join(1_000, EQUAL);
    for _ in 0..1_000 {
        world.publish(1);
        world.dispatch(u64::MAX / 2);
        // The fast one settles at once, the slow one never.
        let fast_held = world.queue.outstanding(ConsumerKey(fast)).expect("there");
        if fast_held.messages > 0 {
            let range = SettleRange {
                first: 0,
                last: world.there[&fast].got,
            };
            let mut out = Ranges::new();
            let key = ConsumerKey(fast);
            world
                .queue
                .settle(key, range, Outcome::Ack, &mut out)
                .expect("outstanding");
        }
    }
    assert!(world.there[&slow].got <= 2, "{}", world.there[&slow].got);
}

#[test]
fn a_key_stays_with_its_consumer_and_loads_are_bounded() {
    let policy = Policy::Sticky(KeySource::RoutingKey);
    let mut world = World::new(policy);
    world.keys = 1_000;
    for _ in 0..10 {
        world.join(1_000_000, EQUAL);
    }
    for _ in 0..MESSAGES {
        world.publish(1);
        world.dispatch(0);
        world.settle();
    }
    let total: u64 = world.books().map(|book| book.got).sum();
    for book in world.books() {
        assert!(
            book.got as f64 <= 1.26 * total as f64 / 10.0,
            "{}",
            book.got
        );
    }
    // Most messages go where most of their key go.
    let mut most: BTreeMap<u64, u64> = BTreeMap::new();
    for ((key, _), count) in &world.by_consumer {
        let best = most.entry(*key).or_default();
        *best = (*best).max(*count);
    }
    let stayed: u64 = most.values().sum();
    assert!(stayed * 100 >= total * 85, "{stayed} of {total}");
    world.queue.invariants();
}

#[test]
fn one_hot_key_is_spread_and_an_idle_queue_is_not() {
    let policy = Policy::Sticky(KeySource::RoutingKey);
    let mut world = World::new(policy);
    for _ in 0..4 {
        world.join(1_000, EQUAL);
    }
    // A handful: all to one.
    for _ in 0..16 {
        world.publish(1);
        world.dispatch(0);
        world.settle();
    }
    assert_eq!(world.by_consumer.len(), 1);
    for _ in 0..MESSAGES {
        world.publish(1);
        world.dispatch(0);
        world.settle();
    }
    let most = world.there.values().map(|book| book.got).max();
    let most = most.expect("four") as f64;
    assert!(most <= 1.26 * MESSAGES as f64 / 4.0, "{most}");
    // Far beyond what loads are counted in.
    for _ in 0..2_000_000 / 64 {
        world.publish(64);
        world.dispatch(0);
        world.settle();
    }
    world.queue.invariants();
}

#[test]
fn keys_move_only_where_consumers_do() {
    let policy = Policy::Sticky(KeySource::RoutingKey);
    let mut world = World::new(policy);
    for _ in 0..20 {
        world.join(1_000, EQUAL);
    }
    world.publish(1);
    let offer = world.queue.next_offer().expect("room");
    let homes = |queue: &mut Queue| -> Vec<u64> {
        let hash = |key| Random::new(key).next();
        let home = |key| {
            let addressed = queue.address(&offer, hash(key), (0, 0));
            addressed.expect("there are no groups").key.0
        };
        (0..10_000).map(home).collect()
    };
    let before = homes(&mut world.queue);
    world.leave(7);
    let without = homes(&mut world.queue);
    for (before, after) in before.iter().zip(&without) {
        assert!(*before == 7 || before == after);
    }
    let back = world.join(1_000, EQUAL);
    for (before, after) in without.iter().zip(&homes(&mut world.queue)) {
        assert!(*after == back || before == after);
    }
}

#[test]
fn only_one_is_active_and_hands_over_when_it_holds_nothing() {
    let mut queue = Queue::new(Settings {
        dispatch: DispatchSettings {
            is_single_active: true,
            ..DispatchSettings::DEFAULT
        },
        ..settings(Policy::RoundRobin)
    });
    let join = |queue: &mut Queue, key, priority| {
        let credit = Credit {
            messages: 10,
            bytes: 0,
        };
        let traits = Traits {
            priority,
            weight: 1,
        };
        let (mode, sharing) = (AckMode::Explicit, Sharing::Shared);
        queue
            .add_consumer(ConsumerKey(key), credit, mode, sharing, traits)
            .expect("shared");
        queue.invariants();
    };
    let told = |queue: &mut Queue| -> Vec<(u64, bool)> {
        std::iter::from_fn(|| queue.take_notice())
            .map(|(key, is_active)| (key.0, is_active))
            .collect()
    };
    join(&mut queue, 1, 0);
    join(&mut queue, 2, 0);
    assert_eq!(told(&mut queue), [(1, true)]);
    let place = Place {
        segment: SegmentIdx(1),
        offset: 0,
    };
    queue.push_run(QueueSequence(1), 8, 8 * 64, place, Marking::Plain);
    queue.durable_through(QueueSequence(8));
    let take = |queue: &mut Queue, count: usize| {
        let offer = queue.next_offer()?;
        queue.take(
            &offer,
            offer.index * 64,
            &vec![64; count],
            &mut Ranges::new(),
        );
        queue.invariants();
        Some((offer.key.0, offer.first.0, offer.delivery_count))
    };
    assert_eq!(take(&mut queue, 3), Some((1, 1, 0)));
    // One of a higher priority waits until the first holds nothing, and the first gets no more.
    join(&mut queue, 3, 5);
    assert_eq!(told(&mut queue), [(1, false)]);
    assert_eq!(queue.next_offer(), None);
    let settle = |queue: &mut Queue, first, last, outcome| {
        let range = SettleRange { first, last };
        queue
            .settle(ConsumerKey(1), range, outcome, &mut Ranges::new())
            .expect("outstanding");
        queue.invariants();
    };
    settle(&mut queue, 1, 2, Outcome::Ack);
    assert_eq!((queue.next_offer(), told(&mut queue)), (None, vec![]));
    settle(&mut queue, 3, 3, Outcome::Requeue);
    assert_eq!(told(&mut queue), [(3, true)]);
    assert_eq!(take(&mut queue, 1), Some((3, 3, 1)));
    assert_eq!(take(&mut queue, 2), Some((3, 4, 0)));
    // It goes: what it held is first, for the one that was there before the other.
    queue.remove_consumer(ConsumerKey(3), &mut Ranges::new());
    assert_eq!(told(&mut queue), [(1, true)]);
    assert_eq!(take(&mut queue, 1), Some((1, 3, 2)));
    queue.remove_consumer(ConsumerKey(1), &mut Ranges::new());
    queue.remove_consumer(ConsumerKey(2), &mut Ranges::new());
    assert_eq!(told(&mut queue), []);
    assert_eq!(queue.next_offer(), None);
    // A higher one that goes again before it was its turn.
    join(&mut queue, 4, 0);
    assert_eq!(take(&mut queue, 1), Some((4, 3, 3)));
    join(&mut queue, 5, 1);
    queue.remove_consumer(ConsumerKey(5), &mut Ranges::new());
    assert_eq!(told(&mut queue), [(4, true), (4, false), (4, true)]);
    assert_eq!(take(&mut queue, 1), Some((4, 4, 1)));
}

#[test]
fn settings_are_read_and_bounded() {
    use crate::options::Options;
    use ringpost_wire::table::{TableWriter, Value};
    let table = |entries: &[(&str, Value<'_>)]| {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        bytes
    };
    let read = |entries: &[(&str, Value<'_>)]| {
        let bytes = table(entries);
        let mut options = Options::of(&bytes)?;
        let settings = DispatchSettings::read(&mut options)?;
        options.done("a queue")?;
        Ok::<_, String>(settings)
    };
    assert_eq!(read(&[]), Ok(DispatchSettings::DEFAULT));
    for (word, policy) in [
        ("round-robin", Policy::RoundRobin),
        ("random", Policy::Random),
        ("weighted", Policy::Weighted),
        ("least-outstanding", Policy::LeastOutstanding),
        ("sticky", Policy::Sticky(KeySource::RoutingKey)),
    ] {
        let word = Value::Text(word.as_bytes());
        assert_eq!(read(&[("x-dispatch", word)]).map(|s| s.policy), Ok(policy));
    }
    let hold = |ms| read(&[("x-consumer-hold-max", Value::I64(ms))]).map(|s| s.hold_max_ms);
    assert_eq!(hold(1_000), Ok(1_000));
    assert_eq!(hold(86_400_000), Ok(86_400_000));
    for ms in [0, 999, 86_400_001] {
        assert!(hold(ms).is_err());
    }
    let sticky = ("x-dispatch", Value::Text(b"sticky"));
    let header = read(&[sticky, ("x-sticky-header", Value::Text(b"customer"))]);
    assert!(matches!(
        header.map(|settings| settings.policy),
        Ok(Policy::Sticky(KeySource::Header(_)))
    ));
    for entries in [
        &[sticky, ("x-sticky-header", Value::Text(b""))][..],
        &[("x-sticky-header", Value::Text(b"customer"))],
        &[("x-dispatch", Value::Text(b"fair"))],
        &[("x-single-active-consumer", Value::I8(1))],
    ] {
        assert!(read(entries).is_err());
    }
    let traits = |entries: &[(&str, Value<'_>)]| {
        let arguments = table(entries);
        let mut options = Options::of(&arguments)?;
        let traits = Traits::take(&mut options)?;
        options.done("a consumer").map(|()| traits)
    };
    assert_eq!(traits(&[]), Ok(Traits::default()));
    let both = [
        ("x-priority", Value::I32(-10)),
        ("x-weight", Value::I8(100)),
    ];
    let expected = Traits {
        priority: -10,
        weight: 100,
    };
    assert_eq!(traits(&both), Ok(expected));
    for (entry, reason) in [
        (
            ("x-priority", Value::I8(11)),
            "x-priority is 11, not -10 to 10",
        ),
        (
            ("x-priority", Value::I8(-11)),
            "x-priority is -11, not -10 to 10",
        ),
        (("x-weight", Value::I8(0)), "x-weight is 0, not 1 to 100"),
        (
            ("x-weight", Value::I8(101)),
            "x-weight is 101, not 1 to 100",
        ),
        (
            ("x-wait", Value::I8(1)),
            "'x-wait' is no setting of a consumer: they are x-priority, x-weight",
        ),
    ] {
        assert_eq!(traits(&[entry]), Err(reason.to_owned()));
    }
}

#[test]
fn a_key_is_read_from_a_message() {
    use ringpost_wire::MessageParts;
    use ringpost_wire::table::{TableWriter, Value};
    let message = |key: &[u8], headers: &[(&str, Value<'_>)]| {
        let mut table = Vec::new();
        let mut writer = TableWriter::new(&mut table);
        for (name, value) in headers {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        let mut bytes = Vec::new();
        let parts = MessageParts {
            routing_key: key,
            headers: &table,
            ..MessageParts::default()
        };
        parts.write(&mut bytes).expect("small");
        bytes
    };
    let key = KeySource::RoutingKey;
    let header = KeySource::Header(super::settings::hash(b"customer"));
    let of = |source: KeySource, bytes: &[u8]| source.of(bytes).expect("a message");
    let seven = message(b"a", &[("customer", Value::I32(7))]);
    let wide = message(
        b"b",
        &[("other", Value::I8(1)), ("customer", Value::I64(7))],
    );
    let text = message(b"a", &[("customer", Value::Text(b"7"))]);
    let none = message(b"a", &[("other", Value::I8(7))]);
    assert_eq!(of(key, &seven), of(key, &none));
    assert_ne!(of(key, &seven), of(key, &wide));
    assert_eq!(of(header, &seven), of(header, &wide));
    assert_ne!(of(header, &seven), of(header, &text));
    // Without the header, or with one that is neither text nor a number, it is the routing key.
    assert_eq!(of(header, &none), of(key, &none));
    let odd = message(b"a", &[("customer", Value::Bool(true))]);
    assert_eq!(of(header, &odd), of(key, &odd));
    assert_eq!(key.of(&seven[..60]), None);
}
