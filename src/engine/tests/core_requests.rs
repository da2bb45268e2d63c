//! Requests that clients send faster than they can be answered: how many may wait, and who is not read
//! meanwhile. Does not know what the answers are.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use machine::{Machine, Size};
use ringpost_engine::ConnId;
use ringpost_engine::config::Limits;
use ringpost_engine::mesh::NOTE_BYTES;
use ringpost_wire::control::{Bind, Body, ConsumerCredit, ConsumerOpen};
use ringpost_wire::{
    CREDIT_MESSAGES_MAX, FrameHeader, FrameKind, SETTLE_RANGES_MAX, SettleRange, frame,
};

/// Bytes of the key and the arguments of a binding.
const ARGUMENTS_BYTES: usize = 40 << 10;
/// Turns in which everything is answered.
const TURNS: usize = 20_000;

fn start() -> Machine {
    Machine::start(Size {
        cores: 2,
        buffers: 64,
        segment_bytes: 32 << 20,
        slots_max: 32,
    })
}

fn is_read(machine: &Machine, core: usize, conn: ConnId) -> bool {
    machine.core(core).is_read(conn)
}

/// A consumer of a queue of core 1 on a connection of core 0, which wants nothing.
fn consumer_across(machine: &mut Machine) -> ConnId {
    client::declare(machine, "there-", 1, Some(1));
    let conn = client::greet(machine, 0);
    let open = ConsumerOpen {
        credit_bytes: 0,
        credit_messages: 0,
        flags: 0,
        queue: b"there-0",
        arguments: b"",
    };
    let mut bytes = Vec::new();
    open.write(&mut bytes, FrameHeader::bare(FrameKind::ConsumerOpen, 1, 1));
    client::ask(machine, 0, conn, &bytes);
    conn
}

/// Sends a frame until its sender is not read any more; how often.
fn flood(machine: &mut Machine, core: usize, conn: ConnId, most: u64, bytes: &[u8]) -> u64 {
    for sent in 0..=most {
        if !is_read(machine, core, conn) {
            return sent;
        }
        machine.send(core, conn, bytes);
    }
    panic!("{most} of them wait, and it is read all the same");
}

fn turn_until(machine: &mut Machine, is_so: impl Fn(&mut Machine) -> bool) {
    for _ in 0..TURNS {
        if is_so(machine) {
            return;
        }
        machine.turn();
    }
    panic!("it does not come to rest");
}

//= P-18
#[test]
fn who_asks_another_core_too_much_is_not_read() {
    let most = Limits::default().request_bytes_max;
    let credit = ConsumerCredit {
        bytes: 0,
        messages: CREDIT_MESSAGES_MAX,
        reserved: 0,
    };
    let mut small = Vec::new();
    credit.write(
        &mut small,
        FrameHeader::bare(FrameKind::ConsumerCredit, 1, 0),
    );
    let mut large = Vec::new();
    let mut header = FrameHeader::bare(FrameKind::Settle, 1, 0);
    header.count = SETTLE_RANGES_MAX as u32;
    let body = vec![0; SETTLE_RANGES_MAX * size_of::<SettleRange>()];
    frame::write(&mut large, header, &body);
    let start = || {
        let mut machine = start();
        let conn = consumer_across(&mut machine);
        (machine, conn)
    };
    let (mut machine, conn) = start();
    let other = client::greet(&mut machine, 0);
    assert!(flood(&mut machine, 0, conn, most / NOTE_BYTES + 512, &small) > 0);
    assert!(is_read(&machine, 0, other), "who asks nothing is read");
    turn_until(&mut machine, |machine| is_read(machine, 0, conn));
    machine.core(0).invariants();
    // Those that are on their way count with what they carry.
    let (mut machine, conn) = start();
    assert!(flood(&mut machine, 0, conn, most / body.len() as u64, &large) > 0);
}

fn bind(number: u32) -> Vec<u8> {
    let mut arguments = b"\x01ax".to_vec();
    arguments.extend_from_slice(&(ARGUMENTS_BYTES as u32).to_be_bytes());
    arguments.resize(arguments.len() + ARGUMENTS_BYTES, b'x');
    let bind = Bind {
        flags: 0,
        exchange: b"amq.headers",
        target: b"here-0",
        key: &number.to_be_bytes(),
        arguments: &arguments,
    };
    let mut bytes = Vec::new();
    let header = FrameHeader::bare(FrameKind::Bind, 0, u64::from(number) + 1);
    bind.write(&mut bytes, header);
    bytes
}

//= P-18
//= P-10
#[test]
fn changes_that_wait_for_the_disk_are_bounded() {
    let most = Limits::default().request_bytes_max;
    for core in [0, 1] {
        let mut machine = start();
        client::declare(&mut machine, "here-", 1, Some(0));
        let greedy: Vec<ConnId> = (0..8).map(|_| client::greet(&mut machine, core)).collect();
        let other = client::greet(&mut machine, core);
        let elsewhere = client::greet(&mut machine, 1 - core);
        machine.stall(0, true);
        let mut sent = 0;
        // What finds a buffer is on its way to the disk; what finds none waits.
        for round in 0.. {
            let mut is_anybody_read = false;
            for conn in &greedy {
                if is_read(&machine, core, *conn) {
                    is_anybody_read = true;
                    machine.send(core, *conn, &bind(sent));
                    sent += 1;
                }
            }
            if !is_anybody_read {
                break;
            }
            let waits = u64::from(sent) * ARGUMENTS_BYTES as u64;
            assert!(waits < 4 * most, "{waits} bytes are taken in round {round}");
            machine.turn();
            machine.core(0).invariants();
            machine.core(1).invariants();
        }
        assert!(sent > 0);
        assert!(is_read(&machine, core, other), "who asks nothing is read");
        assert!(
            is_read(&machine, 1 - core, elsewhere),
            "nor who is elsewhere"
        );
        machine.stall(0, false);
        // All are answered, in order.
        let answers = |machine: &mut Machine| {
            let all = greedy.iter().map(|conn| {
                let received = machine.received(core, *conn);
                received.len()
            });
            all.sum::<usize>()
        };
        turn_until(&mut machine, |machine| {
            answers(machine) == sent as usize * frame_bytes()
        });
        turn_until(&mut machine, |machine| {
            greedy.iter().all(|conn| is_read(machine, core, *conn))
        });
        machine.core(0).invariants();
        machine.core(1).invariants();
    }
}

/// Bytes of a `Done`.
const fn frame_bytes() -> usize {
    ringpost_wire::FRAME_HEADER_BYTES
}
