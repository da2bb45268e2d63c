//! What a queue says that it did lately. Does not know how it is shown.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use client::{Consumer, Producer};
use machine::{Machine, Size, TURN_NS};
use ringpost_engine::mesh::BusyQueue;

const SIZE: Size = Size {
    cores: 1,
    buffers: 64,
    segment_bytes: 32 << 20,
    slots_max: 16,
};

fn pass(machine: &mut Machine, ns: u64) {
    for _ in 0..ns / TURN_NS {
        machine.turn();
    }
}

fn only(machine: &Machine) -> BusyQueue {
    machine.core(0).busiest(1).remove(0)
}

/// P-115: what came and went is counted, and waits are those that the clock says.
#[test]
fn a_queue_says_what_it_did_lately() {
    let mut machine = Machine::start(SIZE);
    let names = client::declare(&mut machine, "q-", 1, None);
    let untouched = only(&machine);
    assert_eq!(
        (&*untouched.tenant, &*untouched.name),
        (&b"default"[..], &b"q-0"[..])
    );
    assert_eq!(untouched.figures.recent, Default::default());
    let mut producer = Producer::open(&mut machine, 0, &names, 1, 100);
    for _ in 0..50 {
        producer.publish(&mut machine, 100);
        machine.turn();
    }
    let published = producer.published();
    assert!(published >= 50);
    let wait_ns = 40_000_000;
    pass(&mut machine, wait_ns);
    let waiting = only(&machine).figures.recent;
    assert_eq!(
        (waiting.arrived, waiting.left, waiting.taken),
        (published, 0, 0)
    );
    assert!(waiting.span_ms >= wait_ns / 1_000_000);
    let mut consumer = Consumer::open(&mut machine, 0, &names, 1_000);
    while consumer.delivered < published {
        machine.turn();
        consumer.work(&mut machine, false);
    }
    pass(&mut machine, wait_ns);
    let taken = only(&machine).figures.recent;
    assert_eq!(
        (taken.arrived, taken.left, taken.taken),
        (published, published, published)
    );
    let least = wait_ns / 1_000;
    let (most, eighth) = (3 * least, least / 8);
    assert!(
        taken.wait_p50_us >= least - eighth && taken.wait_p50_us <= most,
        "{taken:?}"
    );
    assert!(taken.wait_p50_us <= taken.wait_p99_us);
    assert!(taken.wait_mean_us >= least && taken.wait_mean_us <= taken.wait_max_us);
    assert!(taken.wait_max_us <= most, "{taken:?}");
}

#[test]
fn the_busiest_queues_come_first() {
    let mut machine = Machine::start(SIZE);
    let names = client::declare(&mut machine, "q-", 5, None);
    let mut some = Producer::open(&mut machine, 0, &names[3..4], 1, 100);
    let mut more = Producer::open(&mut machine, 0, &names[1..2], 4, 100);
    for _ in 0..10 {
        some.publish(&mut machine, 100);
        more.publish(&mut machine, 100);
        machine.turn();
    }
    pass(&mut machine, 5_000_000);
    let found = machine.core(0).busiest(3);
    let found: Vec<&[u8]> = found.iter().map(|queue| &*queue.name).collect();
    assert_eq!(found, [&b"q-1"[..], b"q-3", b"q-0"]);
    assert_eq!(machine.core(0).busiest(9).len(), 5);
    // What was busy once is not for ever: the fullest is the first.
    pass(&mut machine, 21_000_000_000);
    some.publish(&mut machine, 100);
    pass(&mut machine, 5_000_000);
    let found = machine.core(0).busiest(2);
    let found: Vec<&[u8]> = found.iter().map(|queue| &*queue.name).collect();
    assert_eq!(found, [&b"q-3"[..], b"q-1"]);
}
