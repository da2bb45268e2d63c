//! What goes to several queues of a core: what it costs on disk, and that each has it. Does not know how
//! it is stored.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use client::{Consumer, Producer};
use machine::{Machine, Size};

/// Bytes written for so many messages in batches, to `queues` queues of one core.
fn written(queues: u32, batch: u32, payload: usize) -> f64 {
    let mut machine = Machine::start(Size {
        cores: 1,
        buffers: 128,
        segment_bytes: 32 << 20,
        slots_max: 64,
    });
    let names = client::declare(&mut machine, "q-", queues, None);
    client::bind(&mut machine, "amq.fanout", &names);
    let key = ["all".to_owned()];
    let target = ("amq.fanout", &key[..]);
    let mut producer = Producer::open_to(&mut machine, 0, target, batch, payload);
    let before = machine.written_bytes(0);
    while producer.published() < 16_384 {
        while producer.publish(&mut machine, 4_096) > 0 {}
        machine.turn();
    }
    while producer.confirmed < producer.published() {
        machine.turn();
        producer.publish(&mut machine, 0);
    }
    let bytes = machine.written_bytes(0) - before;
    let messages = producer.published();
    // Each queue has all of it.
    let mut consumer = Consumer::open(&mut machine, 0, &names, 10_000);
    while consumer.delivered < messages * u64::from(queues) {
        machine.turn();
        consumer.work(&mut machine, false);
    }
    assert_eq!(consumer.redelivered, 0);
    bytes as f64 / messages as f64
}

#[test]
fn ten_queues_cost_little_more_than_one() {
    for (batch, payload, most) in [(64, 100, 1.2), (16, 1_024, 1.2), (1, 1_024, 1.7)] {
        let (one, ten) = (written(1, batch, payload), written(10, batch, payload));
        println!("{batch} x {payload} B: one queue {one:.0}, ten {ten:.0} bytes a message");
        assert!(ten <= most * one, "{batch} x {payload} B: {one} {ten}");
    }
}
