//! The whole path of a message allocates nothing per message: publish, route, journal, deliver and
//! settle, over one queue, a thousand, another core, messages that come back, and a backlog read from
//! disk. Counted by the allocator itself. Does not know whether what is done is right.

#[path = "allocations/count.rs"]
mod allocations;
#[path = "memory/amqp.rs"]
mod amqp;
#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use client::{Consumer, Producer};
use machine::{Machine, Size};

const BATCH: u32 = 1_024;
const WINDOW: u64 = 8_192;
/// Bytes of a message with its padding.
const MESSAGE_BYTES: u64 = 176;
/// Turns in which everything that is kept and used again grows to its size.
const WARM_TURNS: u32 = 1_500;
const TURNS: u32 = 500;
/// What a checkpoint may allocate, and for each queue in it.
const CHECKPOINT_MAX: u64 = 64;
const PER_QUEUE_MAX: u64 = 6;
/// What a turn may allocate: requests to other cores, the vectors of a window.
const PER_TURN_MAX: u64 = 8;

fn size(cores: u16) -> Size {
    Size {
        cores,
        buffers: 64,
        segment_bytes: 8 << 20,
        slots_max: 256,
    }
}

/// Counts what `turn` allocates once it is warm; `turn` says how many messages it moved.
fn check(
    what: &str,
    machine: &mut Machine,
    queues: u32,
    mut turn: impl FnMut(&mut Machine) -> u64,
) {
    for _ in 0..WARM_TURNS {
        turn(machine);
    }
    let (before, checkpoints) = (allocations::count(), machine.checkpoints(0));
    let mut messages = 0;
    for _ in 0..TURNS {
        messages += turn(machine);
    }
    let counted = allocations::count() - before;
    let checkpoints = machine.checkpoints(0) - checkpoints;
    println!(
        "{what}: {counted} allocations for {messages} messages in {TURNS} turns with {checkpoints} checkpoints"
    );
    assert!(messages > u64::from(TURNS) * 100, "{what}: something moves");
    let checkpoint_max = CHECKPOINT_MAX + PER_QUEUE_MAX * u64::from(queues);
    let most = PER_TURN_MAX * u64::from(TURNS) + checkpoint_max * checkpoints;
    assert!(
        counted <= most,
        "{what}: {counted} allocations in {TURNS} turns, at most {most} are due"
    );
}

/// Publishes to queues, and consumes them on `at`; `requeue`: the last of each delivery comes back.
fn flow(what: &str, cores: u16, (queues, partition): (u32, Option<u16>), requeue: bool) {
    let mut machine = Machine::start(size(cores));
    let names = client::declare(&mut machine, "queue-", queues, partition);
    let mut producer = Producer::open(&mut machine, 0, &names, BATCH, 100);
    let mut consumer = Consumer::open(&mut machine, 0, &names, 4_096);
    check(what, &mut machine, queues, |machine| {
        producer.publish(machine, WINDOW);
        machine.turn();
        consumer.work(machine, requeue)
    });
    assert_eq!(consumer.redelivered > 0, requeue);
}

#[test]
fn one_queue() {
    flow("one queue", 1, (1, None), false);
}

#[test]
fn a_thousand_queues() {
    flow("a thousand queues", 1, (1_000, None), false);
}

#[test]
fn a_queue_of_another_core() {
    flow("another core", 2, (1, Some(1)), false);
}

#[test]
fn messages_that_come_back() {
    flow("requeue", 1, (1, None), true);
}

/// The same by AMQP: contents of one receive, confirmed, delivered and acked one by one.
#[test]
fn amqp_connections() {
    use ringpost_amqp::{FRAME_BYTES_MAX, FrameType, Method, cut, frame};

    const MESSAGES: u64 = 256;
    let mut machine = Machine::start(size(1));
    let mut producer = amqp::Client::with_channel(&mut machine, 0);
    let mut consumer = amqp::Client::with_channel(&mut machine, 0);
    producer.ask(&mut machine, 1, &amqp::declare(b"q", true));
    producer.ask(&mut machine, 1, &Method::ConfirmSelect { no_wait: false });
    consumer.ask(&mut machine, 1, &amqp::consume(b"q", false));
    for _ in 0..MESSAGES {
        producer.put_publish(1, b"", b"q", &[7; 100]);
    }
    let batch = producer.take_put();
    let mut acks = Vec::new();
    let (mut delivered, mut confirmed) = (0, 0);
    check("amqp", &mut machine, 1, |machine| {
        machine.send(0, producer.conn, &batch);
        machine.turn();
        let received = std::mem::take(machine.received(0, consumer.conn));
        let mut rest = received.as_slice();
        let mut messages = 0;
        acks.clear();
        while let ringpost_amqp::Cut::Complete { frame, length } = cut(rest, FRAME_BYTES_MAX) {
            if frame.kind == FrameType::Method {
                messages += 1;
                delivered += 1;
                let ack = Method::BasicAck {
                    delivery_tag: delivered,
                    multiple: false,
                };
                frame::write(&mut acks, FrameType::Method, 1, |out| ack.encode(out));
            }
            rest = &rest[length..];
        }
        let mut received = received;
        received.clear();
        *machine.received(0, consumer.conn) = received;
        if !acks.is_empty() {
            machine.send(0, consumer.conn, &acks);
        }
        let received = machine.received(0, producer.conn);
        if let ringpost_amqp::Cut::Complete { frame, .. } = cut(received, FRAME_BYTES_MAX)
            && let Ok(Method::BasicAck { delivery_tag, .. }) = Method::decode(frame.payload)
        {
            confirmed = delivery_tag;
        }
        received.clear();
        messages
    });
    assert!(delivered > 0 && confirmed > 0, "both ways");
}

#[test]
fn a_backlog() {
    let mut machine = Machine::start(size(1));
    let names = client::declare(&mut machine, "queue-", 1, None);
    let mut producer = Producer::open(&mut machine, 0, &names, BATCH, 100);
    while producer.published() < 5_000_000 {
        producer.publish(&mut machine, WINDOW);
        machine.turn();
    }
    // A turn brings as much as there is credit: some of the backlog is left for all turns.
    let mut consumer = Consumer::open(&mut machine, 0, &names, 2_048);
    check("a backlog", &mut machine, 1, |machine| {
        machine.turn();
        consumer.work(machine, false)
    });
    let (reads, bytes) = machine.reads(0);
    let each = bytes / consumer.delivered;
    println!("{reads} reads, {each} bytes a message of {MESSAGE_BYTES}");
    assert!(reads > 0, "it came from disk");
    assert!(consumer.delivered < producer.published(), "some is left");
    assert!(each <= MESSAGE_BYTES * 5 / 4, "what is read is read once");
}

#[test]
fn a_backlog_of_queues_that_lie_between_each_other() {
    const QUEUES: u32 = 100;
    let mut machine = Machine::start(size(1));
    let names = client::declare(&mut machine, "queue-", QUEUES, None);
    let mut producer = Producer::open(&mut machine, 0, &names, BATCH, 100);
    while producer.published() < 1_000_000 {
        producer.publish(&mut machine, WINDOW);
        machine.turn();
    }
    let mut consumer = Consumer::open(&mut machine, 0, &names, 4_096);
    for _ in 0..20_000 {
        machine.turn();
        consumer.work(&mut machine, false);
        if consumer.delivered == producer.published() {
            break;
        }
    }
    assert_eq!(consumer.delivered, producer.published());
    let (reads, bytes) = machine.reads(0);
    let each = bytes / consumer.delivered;
    println!("{QUEUES} queues: {reads} reads, {each} bytes a message of {MESSAGE_BYTES}");
    assert!(reads > 0, "it came from disk");
    // Some ten of each lie together; what lies across two windows costs a read of its own.
    assert!(each <= 5 * MESSAGE_BYTES, "they share what is read");
}
