//! The engines decide by what they are given and by nothing else: twins that are given the same want
//! the same, through recovery, traffic between cores, a restart and a goodbye. What the flight recorder
//! keeps of a core is the same again.

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use ringpost::data::engine::{Recorded, Recording};
use ringpost::data::twin::{Given, Twin};
use ringpost_wire::control::Level;

use crate::broker::{Broker, Record};
use crate::damage::without_a_declaration;
use crate::wire::{Wire, consumer, filler, queue_on, to, to_queue, volatile};

/// Parts of a record that wait for the twins.
const WAITING_MAX: usize = 4_096;

/// A twin of each core, and the turns that it has repeated, all lives together.
#[derive(Default)]
struct Twins {
    twins: BTreeMap<u16, Twin>,
    turns: BTreeMap<u16, u64>,
}

impl Twins {
    /// Repeats a part of the record; says what a twin does otherwise.
    fn repeat(&mut self, core: u16, part: Recorded) -> Result<(), String> {
        match part {
            Recorded::Started {
                config,
                found,
                now,
                buffer_bytes,
            } => {
                let twin = Twin::boot(*config, found, now, buffer_bytes);
                self.twins.insert(core, twin);
            }
            Recorded::Turn(turn) => {
                let twin = self.twins.get_mut(&core).expect("it has started");
                twin.turn(turn)?;
                *self.turns.entry(core).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// Repeats what is recorded while it happens. Returns the turns of each core.
fn repeat() -> (Record, JoinHandle<BTreeMap<u16, u64>>) {
    let (record, recorded) = flume::bounded::<Recording>(WAITING_MAX);
    let twins = std::thread::spawn(move || {
        let mut twins = Twins::default();
        for (core, part) in recorded {
            let repeated = twins.repeat(core, part);
            repeated.unwrap_or_else(|what| panic!("core {core}: {what}"));
        }
        twins.turns
    });
    (record, twins)
}

fn twins_agree(cores: u16) {
    let (record, twins) = repeat();
    let mut broker = Broker::recorded(cores, &[], record);
    let names: Vec<_> = (0..6).map(|number| format!("q{number}")).collect();
    let large = filler(3, 700_000);
    for _ in 0..3 {
        let mut wire = Wire::open(&broker);
        for (partition, name) in names.iter().enumerate() {
            wire.declare(&queue_on(name.as_bytes(), partition as u16));
            wire.bind(b"amq.fanout", name.as_bytes(), b"", b"");
        }
        wire.declare(&volatile(queue_on(b"passing", 1)));
        let mut producer = wire.producer(1, Level::Durable);
        for round in 0..20_u64 {
            let payload = filler(round, 3_000);
            let parts: Vec<_> = names
                .iter()
                .map(|name| to_queue(name.as_bytes(), &payload))
                .collect();
            producer.confirm(&mut wire, &parts);
            producer.confirm(&mut wire, &[to(b"amq.fanout", b"", &payload)]);
        }
        producer.confirm(&mut wire, &[to_queue(b"q1", &large)]);
        for (number, name) in names.iter().enumerate() {
            let channel = 10 + number as u16;
            wire.consume(channel, &consumer(name.as_bytes(), 30));
            wire.deliveries(channel, 30);
            // Back, for good, and held when the broker goes.
            wire.settle_surely(channel, 1, &[(1, 5)]);
            wire.deliveries(channel, 5);
            wire.settle_surely(channel, 0, &[(6, 30)]);
            let more = wire.delivered(channel);
            assert!(!more.is_empty(), "more is there than was settled");
        }
        broker.restart();
    }
    drop(broker);
    let turns = twins.join().expect("every twin agrees");
    assert_eq!(turns.len(), usize::from(cores));
    assert!(turns.values().all(|turns| *turns > 50), "{turns:?}");
}

#[test]
fn on_1_core() {
    twins_agree(1);
}

#[test]
fn on_2_cores() {
    twins_agree(2);
}

#[test]
fn on_4_cores() {
    twins_agree(4);
}

/// A twin that is not given everything wants something else.
#[test]
fn a_twin_that_missed_something_disagrees() {
    let (record, recorded) = flume::bounded::<Recording>(WAITING_MAX);
    let twin = std::thread::spawn(move || {
        let mut twins = Twins::default();
        let mut missed = 0;
        for (core, mut part) in recorded {
            if let Recorded::Turn(turn) = &mut part {
                let before = turn.steps.len();
                let is_long = |given: &Given| match given {
                    Given::Frames { bytes, .. } => bytes.len() > 2_000,
                    Given::Read { .. } | Given::Other(_) => false,
                };
                turn.steps.retain(|step| !is_long(&step.given));
                missed += before - turn.steps.len();
            }
            if let Err(what) = twins.repeat(core, part) {
                return (missed, what);
            }
        }
        panic!("it agreed to the end, though it missed {missed} inputs");
    });
    let broker = Broker::recorded(1, &[], record);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"q", 0));
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"q", &filler(1, 3_000))]);
    drop(broker);
    let (missed, what) = twin.join().expect("it disagrees");
    assert_eq!(missed, 1);
    assert!(what.starts_with("turn "), "{what}");
}

/// Everything that is recorded until the broker is gone.
fn collect() -> (Record, JoinHandle<Vec<Recorded>>) {
    let (record, recorded) = flume::bounded::<Recording>(WAITING_MAX);
    let parts = std::thread::spawn(move || recorded.into_iter().map(|(_, part)| part).collect());
    (record, parts)
}

/// When a journal fails, what the flight recorder writes down are the turns before, by the same digests
/// that a twin compares.
#[test]
fn the_flight_recorder_keeps_what_a_twin_would_repeat() {
    let (record, parts) = collect();
    let broker = without_a_declaration().recording(record);
    broker.refusal();
    let text = std::fs::read_to_string(broker.directory().join("flight-0000.txt"));
    let text = text.expect("the record of core 0");
    drop(broker);
    let mut digests = Vec::new();
    for part in parts.join().expect("nobody panics") {
        match part {
            Recorded::Started { .. } => assert!(digests.is_empty(), "it starts once"),
            Recorded::Turn(turn) => digests.push(format!("{:016x}", turn.digest)),
        }
    }
    let kept = |line: &str| Some(line.split_once(" effects turn ")?.1.to_owned());
    let kept: Vec<String> = text.lines().filter_map(kept).collect();
    assert!(!kept.is_empty(), "{text}");
    for line in kept {
        let words: Vec<&str> = line.split(' ').collect();
        let turn: usize = words[0].parse().expect("the number of a turn");
        assert_eq!(words.last(), Some(&digests[turn].as_str()), "turn {turn}");
    }
}
