//! A stream against a naive model: what each reader is given, where groups are, what is retained, over
//! random operations and crashes.

use std::collections::BTreeMap;

use ringpost_wire::envelope::Terms;
use ringpost_wire::ids::{DeliveryTag, QueueSequence};
use ringpost_wire::{Code, SettleRange};

use crate::data::queue::{
    AckMode, ConsumerKey, Credit, DispatchSettings, KeptOffset, Marking, Outcome, Overflow, Pace,
    Queue, Ranges, Reading, Replay, SequenceRange, Settings, Start, StreamSettings, Traits,
    decode_offsets, encode_offsets,
};
use crate::ids::{Clock, Mono, Place, SegmentIdx};

const MESSAGE_BYTES: u32 = 64;

fn settings(messages_max: u64, max_age_ms: u64) -> Settings {
    Settings {
        messages_max,
        overflow: Overflow::DropHead,
        stream: Some(StreamSettings {
            max_age_ms,
            lanes: 0,
        }),
        dispatch: DispatchSettings::DEFAULT,
        ..Settings::plain(ringpost_wire::control::Durability::Durable)
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}

/// A stream, and what a journal would hold of it.
struct Machine {
    queue: Queue,
    settings: Settings,
    now_ms: u64,
    runs: Vec<(u64, u32, Place)>,
    offset: u32,
    /// Ack records that are durable, and those that are not.
    acked: Vec<SequenceRange>,
    /// As records said, by name.
    kept: BTreeMap<Box<[u8]>, u64>,
    /// Groups of readers, and how far any of their members was given something.
    group_of: BTreeMap<u64, Box<[u8]>>,
    given: BTreeMap<Box<[u8]>, u64>,
    /// A new group is as if a record of it were on disk.
    keeps_groups: bool,
}

impl Machine {
    fn new(settings: Settings) -> Self {
        Self {
            queue: Queue::new(settings),
            settings,
            now_ms: 1_000,
            runs: Vec::new(),
            offset: 0,
            acked: Vec::new(),
            kept: BTreeMap::new(),
            group_of: BTreeMap::new(),
            given: BTreeMap::new(),
            keeps_groups: true,
        }
    }

    fn clock(&self) -> Clock {
        Clock {
            now: Mono(self.now_ms * 1_000_000),
            wall_us: (1_000_000 + self.now_ms) * 1_000,
        }
    }

    fn publish(&mut self, count: u32) {
        let first = self.queue.next_sequence();
        let place = Place {
            segment: SegmentIdx(0),
            offset: self.offset,
        };
        self.offset += 64 + count * MESSAGE_BYTES;
        let bytes = count * MESSAGE_BYTES;
        self.queue
            .push_run(first, count, bytes, place, Marking::Plain);
        // They stay, and in their order, whatever they ask for.
        let terms = Terms {
            ttl_ms: 1,
            delay_ms: 1_000,
            priority: 9,
        };
        self.queue.arrived(first, count, self.clock().now, terms);
        self.runs.push((first.0, count, place));
    }

    fn sync(&mut self) {
        let last = self.queue.next_sequence().0 - 1;
        self.queue.durable_through(QueueSequence(last));
        self.queue.set_now(self.clock().now);
        self.queue.look_again();
    }

    /// Retention, recorded and durable at once.
    fn sweep(&mut self) -> u64 {
        let mut out = Ranges::new();
        self.queue.set_now(self.clock().now);
        let swept = self.queue.sweep_head(u64::MAX, &mut out);
        self.queue.forget(out.as_slice(), &mut |_, _| {});
        self.acked.extend(out.as_slice());
        swept
    }

    /// What is recorded lies behind all messages, so these are durable as well.
    fn record_groups(&mut self) {
        self.sync();
        while self.queue.has_groups_to_record() {
            let mut body = Vec::new();
            self.queue.groups_to_record(u32::MAX, &mut body);
            let record = self.queue.groups_recorded(u32::MAX);
            if let Some(record) = record {
                self.queue.groups_kept(record);
            }
            for KeptOffset { name, offset } in decode_offsets(&body).expect("just written") {
                match offset {
                    0 => self.kept.remove(&name),
                    offset => self.kept.insert(name, offset),
                };
            }
        }
    }

    fn open(&mut self, key: u64, credit: u32, reading: &Reading) -> Result<(), Code> {
        let credit = Credit {
            messages: credit,
            bytes: 0,
        };
        let clock = self.clock();
        self.group_of.remove(&key);
        if let Some(group) = &reading.group {
            self.group_of.insert(key, group.clone());
        }
        self.queue.add_reader(
            (ConsumerKey(key), reading.member),
            (credit, AckMode::Explicit),
            Traits::default(),
            reading,
            clock,
        )?;
        if self.keeps_groups {
            self.queue.stream().groups.keep_all();
        }
        Ok(())
    }

    /// Takes at most `count` messages: whose they are, their tag and the first of them.
    fn take(&mut self, count: u32) -> Option<(u64, DeliveryTag, u64, u64)> {
        let offer = self.queue.next_offer()?;
        let count = count.min(offer.messages_max);
        let at = offer.index * MESSAGE_BYTES;
        let each = vec![MESSAGE_BYTES; count as usize];
        let mut out = Ranges::new();
        let tag = self.queue.take(&offer, at, &each, &mut out);
        assert!(out.is_empty(), "nothing is taken");
        let group = self.group_of.get(&offer.key.0);
        let given = group.map(|group| self.given.entry(group.clone()).or_default());
        let behind = offer.first.0 + u64::from(count);
        match given {
            // What another member may have had is flagged, and nothing else.
            Some(given) if offer.first.0 < *given => {
                assert_eq!(offer.delivery_count, 1);
                assert!(behind <= *given);
            }
            Some(given) => {
                assert_eq!(offer.delivery_count, 0);
                *given = behind;
            }
            None => assert_eq!(offer.delivery_count, 0),
        }
        Some((offer.key.0, tag, offer.first.0, u64::from(count)))
    }

    fn crash(&mut self) {
        let mut state = Vec::new();
        // What was not durable is gone.
        let durable = self.queue.durable().0;
        self.queue.encode_state(self.clock(), &[], &mut state);
        let mut replay = Replay::decode(Settings::plain(self.settings.durability), &state)
            .expect("it was just written");
        self.runs.retain(|(first, ..)| *first <= durable);
        for (first, count, place) in &self.runs {
            let bytes = count * MESSAGE_BYTES;
            replay
                .run(QueueSequence(*first), *count, bytes, *place, Marking::Plain)
                .expect("it fits");
        }
        for range in &self.acked {
            replay.settled(*range).expect("it fits");
        }
        let terms = replay.take_terms();
        let mut queue = replay
            .finish()
            .unwrap_or_else(|_| panic!("nothing is missing"));
        queue.hold_restored();
        queue.set(self.settings);
        let to_engine = |wall_ms| wall_ms - 1_000_000;
        queue.restore_terms(&terms, to_engine, to_engine);
        let mut groups = Vec::new();
        let kept = self.kept.iter().map(|(name, offset)| (&**name, *offset));
        encode_offsets(kept, &mut groups);
        queue.restore_groups(decode_offsets(&groups).expect("just written"));
        self.queue = queue;
        let next = self.queue.next_sequence().0;
        let kept = self.kept.keys().cloned();
        self.given = kept.map(|name| (name, next)).collect();
    }
}

fn from(start: Start) -> Reading {
    Reading {
        start,
        ..Reading::default()
    }
}

fn member(group: &str, start: Start) -> Reading {
    Reading {
        start,
        group: Some(group.as_bytes().into()),
        ..Reading::default()
    }
}

fn all_of(machine: &mut Machine, key: u64) -> Vec<u64> {
    let mut all = Vec::new();
    while let Some((whose, tag, first, count)) = machine.take(u32::MAX) {
        assert_eq!(whose, key);
        all.extend(first..first + count);
        let range = SettleRange {
            first: 0,
            last: tag.0 + count - 1,
        };
        let settled =
            machine
                .queue
                .settle(ConsumerKey(key), range, Outcome::Ack, &mut Ranges::new());
        assert_eq!(settled.map(|settled| settled.messages), Ok(count));
    }
    all
}

#[test]
fn readers_begin_where_they_ask_and_get_everything_from_there_on() {
    let mut machine = Machine::new(settings(0, 0));
    for _ in 0..4 {
        machine.publish(5);
        machine.now_ms += 10_000;
    }
    machine.sync();
    for (start, first, missed) in [
        (Start::First, 1, 0),
        (Start::Last, 20, 0),
        (Start::Next, 21, 0),
        (Start::Offset(7), 7, 0),
        (Start::Offset(99), 21, 0),
        (Start::Time(0), 1, 0),
        (Start::Time(1_001), 1, 0),
        (Start::Time(1_011), 6, 0),
        (Start::Time(1_012), 11, 0),
        (Start::Time(9_999_999), 21, 0),
    ] {
        machine.open(1, 1_000, &from(start)).expect("there is room");
        let (key, position) = machine.queue.take_position().expect("it is told");
        assert_eq!(
            (key, position.offset.0, position.missed),
            (ConsumerKey(1), first, missed)
        );
        assert_eq!(
            all_of(&mut machine, 1),
            (first..21).collect::<Vec<_>>(),
            "{start:?}"
        );
        machine.queue.invariants();
        machine
            .queue
            .remove_consumer(ConsumerKey(1), &mut Ranges::new());
    }
    // Many read it, each all of it.
    for key in 1..=9 {
        machine
            .open(key, 3, &from(Start::First))
            .expect("there is room");
    }
    let mut given = BTreeMap::<u64, Vec<u64>>::new();
    while let Some((key, tag, first, count)) = machine.take(2) {
        given.entry(key).or_default().extend(first..first + count);
        let range = SettleRange {
            first: tag.0,
            last: tag.0 + count - 1,
        };
        machine
            .queue
            .settle(ConsumerKey(key), range, Outcome::Reject, &mut Ranges::new())
            .expect("it was just delivered");
        machine.queue.invariants();
    }
    assert_eq!(given.len(), 9);
    assert!(given.values().all(|all| all.iter().copied().eq(1..=20)));
    assert_eq!(machine.queue.counters().ready, 20);
}

#[test]
fn what_retention_removed_is_missed_and_that_is_said() {
    let mut machine = Machine::new(settings(10, 0));
    machine.publish(10);
    machine.sync();
    machine
        .open(1, 4, &from(Start::First))
        .expect("there is room");
    machine.queue.take_position();
    assert_eq!(machine.take(3).map(|taken| taken.2), Some(1));
    for _ in 0..5 {
        machine.publish(4);
    }
    machine.sync();
    assert_eq!(machine.sweep(), 20);
    assert_eq!(machine.take(1).map(|taken| taken.2), Some(21));
    let (_, position) = machine.queue.take_position().expect("it is told");
    assert_eq!((position.offset.0, position.missed), (21, 17));
    machine
        .open(2, 4, &from(Start::Offset(5)))
        .expect("there is room");
    let (key, position) = machine.queue.take_position().expect("it is told");
    assert_eq!((key.0, position.offset.0, position.missed), (2, 21, 16));
    machine.queue.invariants();
}

#[test]
fn retention_by_age_lets_go_of_what_is_old_and_of_nothing_else() {
    let mut machine = Machine::new(settings(0, 60_000));
    for _ in 0..100 {
        machine.publish(2);
        machine.now_ms += 1_000;
    }
    machine.sync();
    machine.sweep();
    // At most a 512th of the time that is kept may be late, and 10 ms of the grid.
    let head = machine.queue.first_retained().0;
    assert!((79..=81).contains(&head), "{head}");
    machine.crash();
    machine.sweep();
    assert_eq!(machine.queue.first_retained().0, head);
    machine.now_ms += 1_000_000;
    machine.sweep();
    assert_eq!(machine.queue.first_retained().0, 201);
    machine.queue.invariants();
}

#[test]
fn members_take_turns_and_nobody_skips_what_was_not_settled() {
    let mut machine = Machine::new(settings(0, 0));
    machine.publish(10);
    machine.sync();
    for key in 1..=3 {
        machine
            .open(key, 4, &member("g", Start::First))
            .expect("there is room");
    }
    let (_, is_active) = machine.queue.take_notice().expect("it is told");
    assert!(is_active);
    assert_eq!(machine.take(9), Some((1, DeliveryTag(1), 1, 4)));
    assert_eq!(machine.take(9), None, "the others stand by");
    let ranges = [(2, 2), (1, 1), (4, 4)];
    for (first, last) in ranges {
        let range = SettleRange { first, last };
        machine
            .queue
            .settle(ConsumerKey(1), range, Outcome::Ack, &mut Ranges::new())
            .expect("it is outstanding");
    }
    assert_eq!(machine.queue.groups()[0].offset, 3);
    assert_eq!(machine.queue.groups()[0].lag, 8);
    assert_eq!(machine.queue.groups()[0].members, 3);
    machine
        .queue
        .remove_consumer(ConsumerKey(1), &mut Ranges::new());
    machine.queue.invariants();
    let (next, tag, first, _) = machine.take(2).expect("another takes over");
    assert_eq!((next, tag.0, first), (2, 1, 3));
    machine
        .queue
        .remove_consumer(ConsumerKey(3), &mut Ranges::new());
    machine
        .queue
        .remove_consumer(ConsumerKey(2), &mut Ranges::new());
    assert_eq!(machine.queue.groups()[0].offset, 3);
    machine.record_groups();
    machine.crash();
    // Where the group is counts, not what its member asks for.
    machine
        .open(7, 100, &member("g", Start::Next))
        .expect("there is room");
    assert_eq!(all_of(&mut machine, 7), (3..=10).collect::<Vec<_>>());
    assert_eq!(
        machine
            .queue
            .reset_group(b"g", Start::First, machine.clock()),
        Err(Code::InUse)
    );
    assert_eq!(machine.queue.remove_group(b"g"), Err(Code::InUse));
    machine
        .queue
        .remove_consumer(ConsumerKey(7), &mut Ranges::new());
    let reset = machine
        .queue
        .reset_group(b"g", Start::Offset(5), machine.clock());
    assert_eq!(reset, Ok(QueueSequence(5)));
    machine.record_groups();
    assert_eq!(machine.kept[&b"g"[..]], 5);
    assert_eq!(machine.queue.remove_group(b"g"), Ok(true));
    assert_eq!(machine.queue.remove_group(b"g"), Ok(false));
    machine.record_groups();
    assert!(machine.kept.is_empty());
}

#[test]
fn a_requeue_ends_in_a_refusal_and_groups_have_a_limit() {
    let mut machine = Machine::new(settings(0, 0));
    machine.publish(1);
    machine.sync();
    machine
        .open(1, 4, &from(Start::First))
        .expect("there is room");
    machine.take(1).expect("it is there");
    let range = SettleRange { first: 1, last: 1 };
    let requeued =
        machine
            .queue
            .settle(ConsumerKey(1), range, Outcome::Requeue, &mut Ranges::new());
    assert_eq!(requeued, Err(Code::SettingInvalid));
    for number in 0..super::GROUPS_MAX as u64 {
        let group = member(&format!("g{number}"), Start::Next);
        machine.open(10 + number, 1, &group).expect("there is room");
    }
    let one_more = machine.open(9, 1, &member("more", Start::Next));
    assert_eq!(one_more, Err(Code::LimitReached));
    assert!(machine.open(9, 1, &member("g5", Start::Next)).is_ok());
    machine.queue.invariants();
}

#[test]
fn a_pace_is_kept_while_others_go_on() {
    let mut machine = Machine::new(settings(0, 0));
    for _ in 0..50 {
        machine.publish(2);
        machine.now_ms += 100;
    }
    machine.sync();
    let paced = |pace| Reading {
        start: Start::First,
        pace: Some(pace),
        ..Reading::default()
    };
    machine
        .open(1, 1_000, &paced(Pace::Rate(10)))
        .expect("there is room");
    machine
        .open(2, 1_000, &paced(Pace::Original(1_000)))
        .expect("there is room");
    machine
        .open(3, 1_000, &from(Start::First))
        .expect("there is room");
    let began = machine.now_ms;
    let mut given = BTreeMap::<u64, Vec<u64>>::new();
    loop {
        machine.sync();
        while let Some((key, _, first, count)) = machine.take(7) {
            let ago = machine.now_ms - began;
            given
                .entry(key)
                .or_default()
                .extend((first..first + count).map(|_| ago));
        }
        machine.queue.invariants();
        match machine.queue.next_expiry() {
            Some(at) => machine.now_ms = at.0 / 1_000_000,
            None => break,
        }
    }
    assert!(given[&3].iter().all(|ago| *ago == 0));
    assert_eq!(given.values().map(Vec::len).collect::<Vec<_>>(), [100; 3]);
    assert!(
        given[&1]
            .iter()
            .enumerate()
            .all(|(idx, ago)| *ago == 100 * idx as u64)
    );
    // Ten times as fast as they came: 5 s in half a second, each pair together.
    let last = *given[&2].last().expect("there are some");
    assert!((485..=495).contains(&last), "{last}");
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let messages_max = [0, 40][random.below(2) as usize];
        let mut machine = Machine::new(settings(messages_max, 0));
        // Of each reader: the next message that it is to get, its group and what it has not settled.
        let mut readers = BTreeMap::<u64, (u64, Option<String>, BTreeMap<u64, u64>)>::new();
        // Of each group: what its members have settled below, and where it would go on after a crash.
        let mut groups = BTreeMap::<String, u64>::new();
        let mut durably = BTreeMap::<String, u64>::new();
        let mut keys = 0;
        for _ in 0..400 {
            match random.below(12) {
                0 | 1 => machine.publish(1 + random.below(8) as u32),
                2 => machine.sync(),
                3 => {
                    machine.sweep();
                    let counters = machine.queue.counters();
                    let waits = machine.queue.next_sequence().0 - 1 - machine.queue.durable().0;
                    assert!(messages_max == 0 || counters.ready <= messages_max + waits);
                }
                4 => {
                    keys += 1;
                    let head = machine.queue.first_retained().0;
                    let next = machine.queue.next_sequence().0;
                    let start = match random.below(4) {
                        0 => Start::First,
                        1 => Start::Last,
                        2 => Start::Next,
                        _ => Start::Offset(1 + random.below(next + 5)),
                    };
                    let begins = match start {
                        Start::First => head,
                        Start::Last => (next - 1).max(head),
                        Start::Offset(offset) => offset.clamp(head, next),
                        _ => next,
                    };
                    let credit = 1 + random.below(20) as u32;
                    let group = (random.below(2) == 0).then(|| format!("g{}", random.below(3)));
                    let reading = match &group {
                        Some(group) => member(group, start),
                        None => from(start),
                    };
                    machine.open(keys, credit, &reading).expect("there is room");
                    if let Some(group) = &group {
                        groups.entry(group.clone()).or_insert(begins);
                    }
                    readers.insert(keys, (begins, group, BTreeMap::new()));
                }
                5 if !readers.is_empty() => {
                    let at = random.below(readers.len() as u64) as usize;
                    let key = *readers.keys().nth(at).expect("it is there");
                    readers.remove(&key);
                    machine
                        .queue
                        .remove_consumer(ConsumerKey(key), &mut Ranges::new());
                }
                6 if !readers.is_empty() => {
                    let at = random.below(readers.len() as u64) as usize;
                    let (key, (_, _, held)) = readers.iter_mut().nth(at).expect("it is there");
                    let Some(tag) = held.keys().nth(random.below(4) as usize).copied() else {
                        continue;
                    };
                    held.remove(&tag);
                    let range = SettleRange {
                        first: tag,
                        last: tag,
                    };
                    let outcome = [Outcome::Ack, Outcome::Reject][random.below(2) as usize];
                    machine
                        .queue
                        .settle(ConsumerKey(*key), range, outcome, &mut Ranges::new())
                        .expect("it is held");
                }
                7 if random.below(3) == 0 => {
                    machine.record_groups();
                    for group in machine.queue.groups() {
                        let name = String::from_utf8(group.name.to_vec()).expect("as it was made");
                        durably.insert(name, group.offset);
                    }
                }
                8 if random.below(10) == 0 => {
                    machine.crash();
                    readers.clear();
                    let kept: BTreeMap<_, _> = machine
                        .queue
                        .groups()
                        .iter()
                        .map(|group| {
                            (
                                String::from_utf8_lossy(&group.name).into_owned(),
                                group.offset,
                            )
                        })
                        .collect();
                    let head = machine.queue.first_retained().0;
                    let next = machine.queue.next_sequence().0;
                    for (name, offset) in &kept {
                        assert!(offset <= &groups[name], "never too high");
                        // What it passed over because it is gone needs no record.
                        assert!((*offset).max(head) >= durably[name].min(next));
                    }
                    groups = kept;
                    durably.retain(|name, _| groups.contains_key(name));
                }
                _ => {
                    let Some((key, tag, first, count)) = machine.take(1 + random.below(9) as u32)
                    else {
                        continue;
                    };
                    let head = machine.queue.first_retained().0;
                    let (next, group, held) = readers.get_mut(&key).expect("it is open");
                    if held.is_empty()
                        && let Some(group) = group
                        && *next < groups[group]
                    {
                        // It took over where the one before it had come to.
                        *next = groups[group];
                    }
                    assert!(
                        first == (*next).max(head) || group.is_some(),
                        "no hole, no repetition: {first}, not {next}"
                    );
                    *next = first + count;
                    held.extend((0..count).map(|idx| (tag.0 + idx, first + idx)));
                    assert!(first + count - 1 <= machine.queue.durable().0);
                }
            }
            for group in machine.queue.groups() {
                let name = String::from_utf8(group.name.to_vec()).expect("as it was made");
                let known = groups.get_mut(&name).expect("it was made");
                assert!(group.offset >= *known, "an offset does not go back");
                *known = group.offset;
                // Nobody of it holds anything below.
                for (_, _, held) in readers
                    .values()
                    .filter(|(_, of, _)| of.as_ref() == Some(&name))
                {
                    assert!(held.values().all(|sequence| *sequence >= group.offset));
                }
            }
            machine.queue.invariants();
        }
    }
}

/// Who is to be told what, from a lane.
fn said(machine: &mut Machine) -> Vec<(String, Vec<(u64, i8)>)> {
    std::iter::from_fn(|| machine.queue.take_members())
        .map(|(group, members)| {
            let members = members.iter().map(|one| (one.id, one.priority));
            (
                String::from_utf8_lossy(&group).into_owned(),
                members.collect(),
            )
        })
        .collect()
}

//= P-89
#[test]
fn a_lane_changes_hands_when_all_is_settled_and_what_may_have_been_given_is_flagged() {
    let mut machine = Machine::new(Settings {
        stream: Some(StreamSettings {
            max_age_ms: 0,
            lanes: 4,
        }),
        ..settings(0, 0)
    });
    machine.publish(10);
    machine.sync();
    let one = |member| Reading {
        group: Some(b"g"[..].into()),
        member,
        ..from(Start::First)
    };
    let settle = |machine: &mut Machine, key, first, last| {
        let range = SettleRange { first, last };
        let settled =
            machine
                .queue
                .settle(ConsumerKey(key), range, Outcome::Ack, &mut Ranges::new());
        settled.expect("it is outstanding");
        machine.queue.invariants();
    };
    for (key, member) in [(1, 71), (2, 72), (3, 72)] {
        machine.open(key, 4, &one(member)).expect("there is room");
    }
    assert_eq!(
        said(&mut machine),
        [("g".to_owned(), vec![(71, 0), (72, 0)])]
    );
    // Nobody reads until that is said, and a group that is not there is nobody's.
    assert_eq!(machine.take(9), None);
    machine.queue.lead(b"other", Some(71));
    machine.queue.lead(b"g", Some(71));
    machine.queue.invariants();
    assert_eq!(machine.take(9), Some((1, DeliveryTag(1), 1, 4)));
    machine.queue.lead(b"g", Some(72));
    settle(&mut machine, 1, 2, 4);
    assert_eq!(machine.take(9), None, "one is not settled");
    settle(&mut machine, 1, 1, 1);
    // The one of its consumers that came last, and nothing twice.
    assert_eq!(machine.take(9), Some((3, DeliveryTag(1), 5, 4)));
    settle(&mut machine, 3, 2, 2);
    machine
        .queue
        .remove_consumer(ConsumerKey(3), &mut Ranges::new());
    machine.queue.invariants();
    // Its other consumer goes on; of what was not settled in turn all may have been had.
    assert_eq!(machine.take(2), Some((2, DeliveryTag(1), 5, 2)));
    assert_eq!(machine.take(9), Some((2, DeliveryTag(3), 7, 2)));
    settle(&mut machine, 2, 1, 4);
    assert_eq!(machine.take(9), Some((2, DeliveryTag(5), 9, 2)));
    machine.queue.lead(b"g", None);
    settle(&mut machine, 2, 5, 6);
    machine.publish(2);
    machine.sync();
    assert_eq!(machine.take(9), None);
    let notices: Vec<_> = std::iter::from_fn(|| machine.queue.take_notice()).collect();
    let told = |key, is_active| (ConsumerKey(key), is_active);
    // Those of the one that is gone went with it.
    let expected = [told(1, true), told(1, false), told(2, true), told(2, false)];
    assert_eq!(notices, expected);
    machine.queue.lead(b"g", Some(71));
    assert_eq!(machine.take(1), Some((1, DeliveryTag(5), 11, 1)));
    for key in [1, 2] {
        machine
            .queue
            .remove_consumer(ConsumerKey(key), &mut Ranges::new());
    }
    assert_eq!(said(&mut machine), [("g".to_owned(), Vec::new())]);
    machine.record_groups();
    machine.crash();
    machine.open(5, 4, &one(71)).expect("there is room");
    assert_eq!(machine.take(9), None);
    machine.queue.lead(b"g", Some(71));
    assert_eq!(machine.take(9), Some((5, DeliveryTag(1), 11, 2)));
    // A lane is read without a group as any stream.
    machine
        .open(6, 9, &from(Start::First))
        .expect("there is room");
    assert_eq!(machine.take(9).map(|taken| taken.0), Some(6));
    machine.queue.invariants();
}

//= P-89
#[test]
fn a_group_has_a_limit_of_members_in_a_lane() {
    let mut machine = Machine::new(Settings {
        stream: Some(StreamSettings {
            max_age_ms: 0,
            lanes: 2,
        }),
        ..settings(0, 0)
    });
    let most = u64::from(super::MEMBERS_MAX);
    for key in 1..=most {
        let group = member("g", Start::First);
        machine.open(key, 1, &group).expect("there is room");
    }
    let group = member("g", Start::First);
    assert_eq!(machine.open(most + 1, 1, &group), Err(Code::LimitReached));
    let other = member("h", Start::First);
    assert_eq!(machine.open(most + 1, 1, &other), Ok(()));
}

#[test]
fn a_new_group_is_given_nothing_before_a_record_of_it_is_on_disk() {
    let mut machine = Machine::new(settings(0, 0));
    machine.keeps_groups = false;
    machine.publish(5);
    machine.sync();
    for (key, group) in [(1, "g"), (2, "h")] {
        let group = member(group, Start::First);
        machine.open(key, 4, &group).expect("there is room");
    }
    machine
        .open(3, 1, &from(Start::First))
        .expect("there is room");
    assert_eq!(machine.take(9).map(|taken| taken.0), Some(3));
    assert_eq!(machine.take(9), None);
    assert!(machine.queue.has_new_groups());
    machine.queue.invariants();
    let mut body = Vec::new();
    machine.queue.groups_to_record(u32::MAX, &mut body);
    let first = machine
        .queue
        .groups_recorded(u32::MAX)
        .expect("they are new");
    assert!(!machine.queue.has_new_groups());
    machine
        .open(4, 4, &member("i", Start::First))
        .expect("there is room");
    machine.queue.groups_to_record(u32::MAX, &mut body);
    let second = machine.queue.groups_recorded(u32::MAX).expect("one is new");
    assert_eq!(machine.take(9), None, "it is in a block");
    machine.queue.groups_kept(first);
    machine.queue.invariants();
    let mut given = [machine.take(9), machine.take(9)].map(|taken| taken.map(|taken| taken.0));
    given.sort_unstable();
    assert_eq!(given, [Some(1), Some(2)]);
    assert_eq!(machine.take(9), None);
    machine.queue.groups_kept(second);
    assert_eq!(machine.take(9).map(|taken| taken.0), Some(4));
    machine.queue.invariants();
}
