//! A disk that is full: what is told of publishes that are stored, that are not, and that may be. Does
//! not know how room comes back.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use machine::{Machine, Size};
use ringpost_engine::ConnId;
use ringpost_wire::control::{Bind, Body, Failure, ProducerOpen, ProducerOpened};
use ringpost_wire::{Code, FrameHeader, FrameKind, MessageParts, frame};

/// Few of them fill the disk.
const PAYLOAD_BYTES: usize = 60 << 10;

/// A producer that is told everything.
struct Producer {
    conn: ConnId,
    /// What `ProducerOpened` named.
    next: u64,
}

impl Producer {
    fn open(machine: &mut Machine, epoch: u32) -> Self {
        let conn = client::greet(machine, 0);
        let open = ProducerOpen {
            producer: 77,
            epoch,
            level: 2,
            flags: 0,
            reserved: 0,
        };
        let mut bytes = Vec::new();
        open.write(&mut bytes, FrameHeader::bare(FrameKind::ProducerOpen, 1, 1));
        let answer = client::ask(machine, 0, conn, &bytes);
        let (header, body, _) = client::whole(&answer);
        assert_eq!(header.kind, FrameKind::ProducerOpened);
        let next = ProducerOpened::decode(body).expect("a body").sequence;
        Self { conn, next }
    }

    /// Publishes `count` messages from a sequence on and says which of them are refused, and why; the
    /// others are confirmed.
    fn publish(
        &self,
        machine: &mut Machine,
        (exchange, key): (&str, &str),
        first: u64,
        (count, payload_bytes): (u32, usize),
    ) -> Vec<(u64, u32, Code)> {
        let payload = vec![7; payload_bytes];
        let mut body = Vec::new();
        for _ in 0..count {
            let parts = MessageParts {
                exchange: exchange.as_bytes(),
                routing_key: key.as_bytes(),
                payload: &payload,
                ..MessageParts::default()
            };
            parts.write(&mut body).expect("within limits");
        }
        let header = FrameHeader {
            count,
            ..FrameHeader::bare(FrameKind::Publish, 1, first)
        };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, &body);
        machine.send(0, self.conn, &bytes);
        let mut refused = Vec::new();
        for _ in 0..10_000 {
            machine.turn();
            let received = std::mem::take(machine.received(0, self.conn));
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let (header, body, after) = client::whole(rest);
                rest = after;
                match header.kind {
                    FrameKind::Refused => {
                        let code = Failure::decode(body).expect("a failure").code;
                        refused.push((header.sequence, header.count, Code::from_number(code)));
                    }
                    FrameKind::Confirm if header.sequence == first + u64::from(count) - 1 => {
                        return refused;
                    }
                    _ => {}
                }
            }
        }
        panic!("no outcome");
    }
}

fn bind_to_all(machine: &mut Machine, queue: &str) {
    let conn = client::greet(machine, 0);
    let bind = Bind {
        flags: 0,
        exchange: b"amq.fanout",
        target: queue.as_bytes(),
        key: b"",
        arguments: b"",
    };
    let mut bytes = Vec::new();
    bind.write(&mut bytes, FrameHeader::bare(FrameKind::Bind, 0, 1));
    let answer = client::ask(machine, 0, conn, &bytes);
    let (header, _, _) = client::whole(&answer);
    assert_eq!(header.kind, FrameKind::Done);
}

/// A core whose disk is full, and the sequence of the last message that it took, for queue `full-0`.
fn full(machine: &mut Machine) -> u64 {
    let names = client::declare(machine, "full-", 2, Some(0));
    for name in &names {
        bind_to_all(machine, name);
    }
    let producer = Producer::open(machine, 1);
    for sequence in 1..1_000 {
        let outcome = producer.publish(machine, ("", "full-0"), sequence, (1, PAYLOAD_BYTES));
        if !outcome.is_empty() {
            assert_eq!(outcome, [(sequence, 1, Code::DiskFull)]);
            return sequence - 1;
        }
    }
    panic!("the disk has no end");
}

fn small() -> Machine {
    Machine::start(Size {
        cores: 1,
        buffers: 64,
        segment_bytes: 4 << 20,
        slots_max: 12,
    })
}

//= P-38
#[test]
fn what_is_stored_is_confirmed_again() {
    let mut machine = small();
    let last = full(&mut machine);
    let producer = Producer::open(&mut machine, 2);
    assert_eq!(producer.next, last + 1);
    let queue = ("", "full-0");
    let outcome = producer.publish(&mut machine, queue, last, (1, PAYLOAD_BYTES));
    assert_eq!(outcome, []);
    let producer = Producer::open(&mut machine, 3);
    let outcome = producer.publish(&mut machine, queue, last - 1, (3, PAYLOAD_BYTES));
    assert_eq!(outcome, [(last + 1, 1, Code::DiskFull)]);
}

//= P-39
#[test]
fn what_may_be_stored_is_not_refused() {
    let mut machine = small();
    let last = full(&mut machine);
    // One of its queues has it, the other has no room.
    let producer = Producer::open(&mut machine, 2);
    let everywhere = ("amq.fanout", "");
    let outcome = producer.publish(&mut machine, everywhere, last, (1, PAYLOAD_BYTES));
    assert_eq!(outcome, [(last, 1, Code::Indeterminate)]);
    // So it is of one that goes nowhere now: where it went before is not known.
    let producer = Producer::open(&mut machine, 3);
    let refused = producer.publish(&mut machine, ("gone", ""), last - 1, (3, 100));
    let unsure = (last - 1, 2, Code::Indeterminate);
    assert_eq!(refused, [unsure, (last + 1, 1, Code::ExchangeUnknown)]);
}
