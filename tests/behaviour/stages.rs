//! Every message is counted once in each stage that it passes, whichever core that is on. What the
//! times are worth is measured by benchmarks.

use std::collections::BTreeMap;

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use ringpost::control::admin::stages::Stages;
use ringpost_prove::broker::page;
use ringpost_wire::control::Level;

use crate::broker::Broker;
use crate::wire::{Wire, consumer, filler, queue_on, to_queue, volatile};

const BATCHES: u64 = 40;
const MESSAGES: u64 = 3;

/// The histograms of all cores together, by stage.
fn stages(broker: &Broker) -> BTreeMap<String, Histogram<u64>> {
    let (status, text) = page(&broker.admin_addr().to_string(), "/stages").unwrap();
    assert_eq!(status, 200, "{text}");
    let stages: Stages = serde_json::from_str(&text).expect("JSON");
    assert_eq!(stages.cores.len(), usize::from(broker.cores()));
    let mut all: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    for stage in stages.cores.into_iter().flat_map(|core| core.stages) {
        let bytes = base64::engine::general_purpose::STANDARD.decode(stage.v2);
        let histogram: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.unwrap().as_slice())
            .expect("the V2 encoding");
        match all.get_mut(&stage.name) {
            None => drop(all.insert(stage.name, histogram)),
            Some(sum) => sum.add(histogram).unwrap(),
        }
    }
    all
}

fn counts(broker: &Broker) -> BTreeMap<String, u64> {
    let stages = stages(broker).into_iter();
    stages.map(|(name, times)| (name, times.len())).collect()
}

/// Publishes to a queue, takes everything and settles it.
fn pass(wire: &mut Wire, name: &[u8], level: Level) -> u64 {
    let mut producer = wire.producer(1, level);
    wire.consume(2, &consumer(name, 1_000));
    let total = BATCHES * MESSAGES;
    for batch in 0..BATCHES {
        // Some come in pieces.
        let bytes = if batch % 20 == 7 { 400_000 } else { 500 };
        let payload = filler(batch, bytes);
        let parts: Vec<_> = (0..MESSAGES).map(|_| to_queue(name, &payload)).collect();
        producer.confirm(wire, &parts);
    }
    wire.deliveries(2, total as usize);
    // Some apart, one after another, the others together.
    for tag in 1..=MESSAGES {
        wire.settle_surely(2, 0, &[(tag, tag)]);
    }
    wire.settle_surely(2, 0, &[(MESSAGES + 1, total - 1), (total, total)]);
    wire.until(name, |info| info.settled == total);
    total
}

fn every_stage_counts(cores: u16) {
    let broker = Broker::start(cores, &[]);
    let before = counts(&broker);
    assert!(before.values().all(|count| *count == 0), "{before:?}");
    let mut durable = 0;
    for core in 0..cores {
        let mut wire = Wire::open(&broker);
        let name = format!("q{core}");
        wire.declare(&queue_on(name.as_bytes(), core));
        durable += pass(&mut wire, name.as_bytes(), Level::Durable);
    }
    let mut wire = Wire::open(&broker);
    wire.declare(&volatile(queue_on(b"v", 0)));
    let passing = pass(&mut wire, b"v", Level::Volatile);
    let after = counts(&broker);
    let all = durable + passing;
    for (name, expected) in [
        ("receive", all),
        ("route", all),
        ("journal", durable),
        ("device", durable),
        ("confirm", all),
        ("publish", all),
        ("ready", all),
        ("dispatch", all),
        ("held", all),
    ] {
        assert_eq!(after[name], expected, "{name}: {after:?}");
    }
    // Where connections land is the kernel's choice.
    assert!(after["ring"] <= all, "{after:?}");
    assert_eq!(after["ring"] % (BATCHES * MESSAGES), 0, "{after:?}");
    // What passes all stages takes no less than any of them.
    let times = stages(&broker);
    for name in ["route", "journal", "device"] {
        assert!(
            times["publish"].max() >= times[name].max() * 98 / 100,
            "{name}: {} {}",
            times["publish"].max(),
            times[name].max()
        );
    }
}

#[test]
fn of_1_core() {
    every_stage_counts(1);
}

#[test]
fn of_2_cores() {
    every_stage_counts(2);
}
