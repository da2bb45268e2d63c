//! Transactions as clients see them: on one core and on two, and whatever power fails in between.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use std::collections::BTreeSet;

use machine::{Machine, Outage, Size};
use ringpost_engine::ConnId;
use ringpost_wire::control::{
    Body, ConsumerOpen, Durability, Failure, QueueDeclare, TransactionOpen, TransactionOpened,
    TransactionSettle,
};
use ringpost_wire::header::{SETTLE_ACK, TRANSACTION_COMMITTED};
use ringpost_wire::{
    Code, DeliverHead, FrameHeader, FrameKind, MessageParts, Messages, SettleRange,
    TRANSACTION_MESSAGES_MAX, frame,
};

const TRANSACTIONS: u16 = 1;
const CONSUMER: u16 = 2;

/// What a client was told.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Told {
    Committed(u64),
    RolledBack(u64),
    Failed(u64, Code),
    Closed,
}

/// A message that was delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Delivered {
    tag: u64,
    sequence: u64,
    count: u32,
    payload: String,
}

struct Client {
    core: usize,
    conn: ConnId,
    number: u64,
    told: Vec<Told>,
    delivered: Vec<Delivered>,
    limits: Option<TransactionOpened>,
}

impl Client {
    fn open(machine: &mut Machine, core: usize) -> Self {
        Self::open_for(machine, core, 0)
    }

    fn open_for(machine: &mut Machine, core: usize, timeout_ms: u32) -> Self {
        let conn = client::greet(machine, core);
        let open = TransactionOpen {
            timeout_ms,
            reserved: 0,
        };
        let mut bytes = Vec::new();
        let header = FrameHeader::bare(FrameKind::TransactionOpen, TRANSACTIONS, 1);
        open.write(&mut bytes, header);
        machine.send(core, conn, &bytes);
        Self {
            core,
            conn,
            number: 1,
            told: Vec::new(),
            delivered: Vec::new(),
            limits: None,
        }
    }

    fn consume(&self, machine: &mut Machine, channel: u16, queue: &str) {
        let open = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: 1_000,
            flags: 0,
            queue: queue.as_bytes(),
            arguments: b"",
        };
        let mut bytes = Vec::new();
        open.write(
            &mut bytes,
            FrameHeader::bare(FrameKind::ConsumerOpen, channel, 7),
        );
        machine.send(self.core, self.conn, &bytes);
    }

    fn publish(&self, machine: &mut Machine, queue: &str, payloads: &[&str]) {
        let mut body = Vec::new();
        for payload in payloads {
            let parts = MessageParts {
                routing_key: queue.as_bytes(),
                payload: payload.as_bytes(),
                ..MessageParts::default()
            };
            parts.write(&mut body).expect("within limits");
        }
        self.publish_bytes(machine, payloads.len() as u32, &body, 1);
    }

    fn publish_bytes(&self, machine: &mut Machine, count: u32, body: &[u8], flags: u8) {
        let header = FrameHeader {
            count,
            flags,
            ..FrameHeader::bare(FrameKind::TransactionPublish, TRANSACTIONS, self.number)
        };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, body);
        // Messages have checksums of their own.
        let header = FrameHeader {
            body_bytes: body.len() as u32,
            ..header
        };
        bytes[..32].copy_from_slice(&header.encode());
        machine.send(self.core, self.conn, &bytes);
    }

    fn settle(&self, machine: &mut Machine, ranges: &[(u64, u64)]) {
        let mut all = Vec::new();
        for (first, last) in ranges {
            let (first, last) = (*first, *last);
            all.extend_from_slice(&SettleRange { first, last }.encode());
        }
        let settle = TransactionSettle {
            consumer: CONSUMER,
            reserved: 0,
            ranges: &all,
        };
        let header = FrameHeader {
            count: ranges.len() as u32,
            ..FrameHeader::bare(FrameKind::TransactionSettle, TRANSACTIONS, self.number)
        };
        let mut bytes = Vec::new();
        settle.write(&mut bytes, header);
        machine.send(self.core, self.conn, &bytes);
    }

    fn end(&mut self, machine: &mut Machine, kind: FrameKind) {
        let mut bytes = Vec::new();
        frame::write_bare(&mut bytes, kind, TRANSACTIONS, self.number);
        machine.send(self.core, self.conn, &bytes);
        self.number += 1;
    }

    /// Settles without a transaction.
    fn ack(&self, machine: &mut Machine, tag: u64) {
        let header = FrameHeader {
            count: 1,
            flags: SETTLE_ACK,
            ..FrameHeader::bare(FrameKind::Settle, CONSUMER, 0)
        };
        let range = SettleRange {
            first: tag,
            last: tag,
        };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, &range.encode());
        machine.send(self.core, self.conn, &bytes);
    }

    /// Takes what has come.
    fn hear(&mut self, machine: &mut Machine) {
        let bytes = std::mem::take(machine.received(self.core, self.conn));
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (header, body, after) = client::whole(rest);
            rest = after;
            match header.kind {
                FrameKind::TransactionOpened => {
                    self.limits = Some(TransactionOpened::decode(body).expect("limits"));
                }
                FrameKind::TransactionDone if header.flags & TRANSACTION_COMMITTED != 0 => {
                    self.told.push(Told::Committed(header.sequence));
                }
                FrameKind::TransactionDone => self.told.push(Told::RolledBack(header.sequence)),
                FrameKind::TransactionClosed => self.told.push(Told::Closed),
                FrameKind::Failed => {
                    let failure = Failure::decode(body).expect("a reason");
                    let code = Code::from_number(failure.code);
                    self.told.push(Told::Failed(header.sequence, code));
                }
                FrameKind::Deliver => {
                    let (head, messages) = DeliverHead::split(body).expect("a head");
                    for (number, message) in (0..).zip(Messages::new(messages)) {
                        let payload = message.expect("whole").envelope.payload().to_vec();
                        self.delivered.push(Delivered {
                            tag: header.sequence + number,
                            sequence: head.queue_sequence + number,
                            count: head.delivery_count,
                            payload: String::from_utf8(payload).expect("text"),
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// Runs the machine until something is told; what it is.
    fn outcome(&mut self, machine: &mut Machine) -> Told {
        for _ in 0..2_000 {
            machine.turn();
            self.hear(machine);
            if !self.told.is_empty() {
                return self.told.remove(0);
            }
        }
        panic!("no answer");
    }

    fn payloads(&self) -> Vec<&str> {
        let all = self.delivered.iter();
        all.map(|message| message.payload.as_str()).collect()
    }
}

fn size(cores: u16) -> Size {
    Size {
        cores,
        buffers: 24,
        segment_bytes: 2 << 20,
        slots_max: 24,
    }
}

/// Declares a queue in a partition, which is its core here.
fn declare(machine: &mut Machine, name: &str, partition: u16, messages_max: u64) {
    declare_as(machine, name, partition, messages_max, Durability::Durable);
}

fn declare_as(
    machine: &mut Machine,
    name: &str,
    partition: u16,
    messages_max: u64,
    durability: Durability,
) {
    let conn = client::greet(machine, 0);
    let declare = QueueDeclare {
        messages_max,
        bytes_max: 0,
        durability: durability as u8,
        flags: 0,
        partition,
        name: name.as_bytes(),
        arguments: b"",
    };
    let mut bytes = Vec::new();
    declare.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDeclare, 0, 1));
    let answer = client::ask(machine, 0, conn, &bytes);
    assert_eq!(client::whole(&answer).0.kind, FrameKind::Done);
}

fn turns(machine: &mut Machine, count: u32) {
    for _ in 0..count {
        machine.turn();
    }
}

/// What a queue holds, read by a consumer of its own that goes again.
fn contents(machine: &mut Machine, core: usize, queue: &str) -> Vec<Delivered> {
    let mut reader = Client::open(machine, core);
    reader.consume(machine, CONSUMER, queue);
    turns(machine, 150);
    reader.hear(machine);
    machine.hang_up(core, reader.conn);
    turns(machine, 20);
    reader.delivered
}

fn texts(delivered: &[Delivered]) -> Vec<&str> {
    delivered.iter().map(|one| one.payload.as_str()).collect()
}

fn is_at_rest(machine: &Machine, cores: u16) -> bool {
    (0..usize::from(cores)).all(|core| {
        let flow = machine.core(core).flow().expect("it runs");
        let figures = flow.transaction_figures();
        figures.prepared == 0 && figures.decided == 0
    })
}

fn invariants(machine: &Machine, cores: u16) {
    for core in 0..usize::from(cores) {
        machine.core(core).invariants();
    }
}

/// Fills a queue with inputs by a transaction of its own.
fn fill(machine: &mut Machine, queue: &str, payloads: &[&str]) {
    let mut client = Client::open(machine, 0);
    client.publish(machine, queue, payloads);
    client.end(machine, FrameKind::TransactionCommit);
    assert_eq!(client.outcome(machine), Told::Committed(1));
    machine.hang_up(0, client.conn);
}

//= P-98
#[test]
fn what_is_committed_is_there_and_in_order() {
    let mut machine = Machine::start(size(1));
    for name in ["in", "a", "b"] {
        declare(&mut machine, name, 0, 0);
    }
    fill(&mut machine, "in", &["1", "2", "3"]);
    let mut client = Client::open(&mut machine, 0);
    client.consume(&mut machine, CONSUMER, "in");
    turns(&mut machine, 10);
    client.hear(&mut machine);
    assert_eq!(client.payloads(), ["1", "2", "3"]);
    client.publish(&mut machine, "a", &["x", "y"]);
    client.publish(&mut machine, "b", &["z"]);
    client.publish(&mut machine, "a", &["w"]);
    client.settle(&mut machine, &[(1, 1), (3, 3)]);
    turns(&mut machine, 10);
    // Nothing of it is to be seen.
    assert_eq!(contents(&mut machine, 0, "a"), []);
    client.end(&mut machine, FrameKind::TransactionCommit);
    assert_eq!(client.outcome(&mut machine), Told::Committed(1));
    invariants(&machine, 1);
    let a = contents(&mut machine, 0, "a");
    assert_eq!(texts(&a), ["x", "y", "w"]);
    let sequences: Vec<u64> = a.iter().map(|one| one.sequence).collect();
    assert_eq!(sequences, [1, 2, 3]);
    assert_eq!(texts(&contents(&mut machine, 0, "b")), ["z"]);
    machine.hang_up(0, client.conn);
    turns(&mut machine, 20);
    let left = contents(&mut machine, 0, "in");
    assert_eq!(texts(&left), ["2"]);
    assert_eq!(left[0].count, 1);
    let mut machine = machine.restart();
    invariants(&machine, 1);
    assert_eq!(texts(&contents(&mut machine, 0, "in")), ["2"]);
    assert_eq!(texts(&contents(&mut machine, 0, "a")), ["x", "y", "w"]);
}

//= P-99
#[test]
fn a_rollback_returns_messages_to_their_places() {
    for cores in [1, 2] {
        let mut machine = Machine::start(size(cores));
        declare(&mut machine, "in", cores - 1, 0);
        declare(&mut machine, "a", 0, 0);
        fill(&mut machine, "in", &["1", "2", "3", "4"]);
        let mut client = Client::open(&mut machine, 0);
        client.consume(&mut machine, CONSUMER, "in");
        turns(&mut machine, 20);
        client.hear(&mut machine);
        assert_eq!(client.payloads(), ["1", "2", "3", "4"]);
        client.publish(&mut machine, "a", &["x"]);
        client.settle(&mut machine, &[(2, 3)]);
        client.end(&mut machine, FrameKind::TransactionRollback);
        assert_eq!(client.outcome(&mut machine), Told::RolledBack(1));
        turns(&mut machine, 20);
        client.hear(&mut machine);
        let again: Vec<(u64, u32)> = client.delivered[4..]
            .iter()
            .map(|one| (one.sequence, one.count))
            .collect();
        assert_eq!(again, [(2, 1), (3, 1)]);
        assert_eq!(contents(&mut machine, 0, "a"), []);
        invariants(&machine, cores);
        // The next one is another one.
        client.settle(&mut machine, &[(1, 1), (4, 6)]);
        client.publish(&mut machine, "a", &["y"]);
        client.end(&mut machine, FrameKind::TransactionCommit);
        assert_eq!(client.outcome(&mut machine), Told::Committed(2));
        turns(&mut machine, 20);
        assert_eq!(texts(&contents(&mut machine, 0, "a")), ["y"]);
        assert_eq!(contents(&mut machine, usize::from(cores) - 1, "in"), []);
        client.end(&mut machine, FrameKind::TransactionClose);
        assert_eq!(client.outcome(&mut machine), Told::Closed);
    }
}

#[test]
fn what_cannot_be_done_is_done_nowhere() {
    for cores in [1, 2] {
        let mut machine = Machine::start(size(cores));
        declare(&mut machine, "in", 0, 0);
        declare(&mut machine, "full", cores - 1, 2);
        declare(&mut machine, "a", 0, 0);
        declare_as(&mut machine, "loose", cores - 1, 0, Durability::Volatile);
        fill(&mut machine, "in", &["1", "2"]);
        let mut client = Client::open(&mut machine, 0);
        client.consume(&mut machine, CONSUMER, "in");
        turns(&mut machine, 20);
        client.hear(&mut machine);
        let mut tag = 1;
        for (queue, payloads, code) in [
            ("full", &["x", "y", "z"][..], Code::QueueFull),
            ("loose", &["x"][..], Code::LevelUnavailable),
            ("nowhere", &["x"][..], Code::Unroutable),
        ] {
            client.publish(&mut machine, "a", &["a"]);
            client.publish(&mut machine, queue, payloads);
            client.settle(&mut machine, &[(tag, tag + 1)]);
            let number = client.number;
            client.end(&mut machine, FrameKind::TransactionCommit);
            assert_eq!(client.outcome(&mut machine), Told::Failed(number, code));
            turns(&mut machine, 20);
            client.hear(&mut machine);
            tag += 2;
            assert_eq!(client.delivered.len() as u64, tag + 1, "they came again");
            invariants(&machine, cores);
        }
        // A tag that is not outstanding.
        client.publish(&mut machine, "a", &["a"]);
        client.settle(&mut machine, &[(tag, tag), (1, 1)]);
        let number = client.number;
        client.end(&mut machine, FrameKind::TransactionCommit);
        let told = client.outcome(&mut machine);
        assert_eq!(told, Told::Failed(number, Code::UnknownDelivery));
        assert_eq!(contents(&mut machine, 0, "a"), []);
        assert_eq!(contents(&mut machine, usize::from(cores) - 1, "full"), []);
        machine.hang_up(0, client.conn);
        turns(&mut machine, 20);
        assert_eq!(texts(&contents(&mut machine, 0, "in")), ["1", "2"]);
        assert!(is_at_rest(&machine, cores));
    }
}

#[test]
fn limits_are_answered() {
    let mut machine = Machine::start(size(1));
    declare(&mut machine, "a", 0, 0);
    let mut client = Client::open(&mut machine, 0);
    turns(&mut machine, 2);
    client.hear(&mut machine);
    let limits = client.limits.expect("it is open");
    assert_eq!(limits.timeout_ms, 60_000);
    let mut one = Vec::new();
    let parts = MessageParts {
        routing_key: b"a",
        ..MessageParts::default()
    };
    parts.write(&mut one).expect("a small message");
    // As many messages as may be, and one more.
    for (count, is_in) in [(1_000, true), (TRANSACTION_MESSAGES_MAX + 1, false)] {
        let mut left = count;
        while left > 0 {
            let now = left.min(2_000);
            client.publish_bytes(&mut machine, now, &one.repeat(now as usize), 0);
            left -= now;
        }
        let number = client.number;
        client.end(&mut machine, FrameKind::TransactionCommit);
        let expected = match is_in {
            true => Told::Committed(number),
            false => Told::Failed(number, Code::TransactionTooLarge),
        };
        assert_eq!(client.outcome(&mut machine), expected, "{count} messages");
    }
    // Bytes, to the byte: what a block takes.
    let most = limits.bytes_max as usize;
    for (bytes, is_in) in [(most / 2, true), (most + 1, false)] {
        let payload = vec![7; bytes / 2 - 200];
        let parts = MessageParts {
            routing_key: b"a",
            payload: &payload,
            ..MessageParts::default()
        };
        let mut message = Vec::new();
        parts.write(&mut message).expect("within limits");
        for _ in 0..if is_in { 2 } else { 3 } {
            client.publish_bytes(&mut machine, 1, &message, 0);
        }
        let number = client.number;
        client.end(&mut machine, FrameKind::TransactionCommit);
        let expected = match is_in {
            true => Told::Committed(number),
            false => Told::Failed(number, Code::TransactionTooLarge),
        };
        assert_eq!(client.outcome(&mut machine), expected, "{bytes} bytes");
    }
    let used = machine
        .core(0)
        .flow()
        .expect("it runs")
        .transaction_figures();
    assert_eq!(used.bytes, 0);
    // Too long a time.
    let mut late = Client::open_for(&mut machine, 0, 3_600_001);
    assert_eq!(
        late.outcome(&mut machine),
        Told::Failed(1, Code::SettingInvalid)
    );
}

#[test]
fn what_is_open_for_too_long_leaves_nothing() {
    let mut machine = Machine::start(size(2));
    declare(&mut machine, "in", 1, 0);
    declare(&mut machine, "a", 0, 0);
    fill(&mut machine, "in", &["1"]);
    let mut client = Client::open_for(&mut machine, 0, 1_000);
    client.consume(&mut machine, CONSUMER, "in");
    turns(&mut machine, 20);
    client.publish(&mut machine, "a", &["x"]);
    client.settle(&mut machine, &[(1, 1)]);
    for _ in 0..8_000 {
        machine.turn();
    }
    client.hear(&mut machine);
    let figures = machine
        .core(0)
        .flow()
        .expect("it runs")
        .transaction_figures();
    assert_eq!(figures.bytes, 0);
    assert_eq!(client.payloads(), ["1", "1"], "it came again");
    client.publish(&mut machine, "a", &["late"]);
    client.settle(&mut machine, &[(2, 2)]);
    client.end(&mut machine, FrameKind::TransactionCommit);
    let told = client.outcome(&mut machine);
    assert_eq!(told, Told::Failed(1, Code::TransactionTimedOut));
    turns(&mut machine, 20);
    client.hear(&mut machine);
    assert_eq!(client.payloads(), ["1", "1", "1"]);
    client.publish(&mut machine, "a", &["y"]);
    client.settle(&mut machine, &[(3, 3)]);
    client.end(&mut machine, FrameKind::TransactionCommit);
    assert_eq!(client.outcome(&mut machine), Told::Committed(2));
    assert_eq!(texts(&contents(&mut machine, 0, "a")), ["y"]);
    assert_eq!(contents(&mut machine, 1, "in"), []);
}

#[test]
fn who_goes_leaves_nothing() {
    for cores in [1, 2] {
        let mut machine = Machine::start(size(cores));
        declare(&mut machine, "in", cores - 1, 0);
        declare(&mut machine, "a", 0, 0);
        declare(&mut machine, "b", cores - 1, 0);
        fill(&mut machine, "in", &["1"]);
        for is_committing in [false, true] {
            let client = Client::open(&mut machine, 0);
            client.consume(&mut machine, CONSUMER, "in");
            turns(&mut machine, 20);
            client.publish(&mut machine, "a", &["x"]);
            client.publish(&mut machine, "b", &["x"]);
            client.settle(&mut machine, &[(1, 1)]);
            let (core, conn) = (client.core, client.conn);
            if is_committing {
                let mut client = client;
                client.end(&mut machine, FrameKind::TransactionCommit);
            }
            machine.hang_up(core, conn);
            turns(&mut machine, 100);
            let figures = machine
                .core(0)
                .flow()
                .expect("it runs")
                .transaction_figures();
            assert_eq!((figures.bytes, figures.channels), (0, 0));
            let a = contents(&mut machine, 0, "a").len();
            let b = contents(&mut machine, usize::from(cores) - 1, "b").len();
            let left = contents(&mut machine, usize::from(cores) - 1, "in").len();
            let expected = match is_committing {
                true => (1, 1, 0),
                false => (0, 0, 1),
            };
            assert_eq!((a, b, left), expected);
            assert!(is_at_rest(&machine, cores));
        }
    }
}

/// For what came to nothing nothing is written, so that a start finds it prepared again, although others
/// have taken what it acknowledged.
#[test]
fn a_share_of_nothing_gives_way_to_a_later_one() {
    let layout = LAYOUTS[3];
    let mut machine = Machine::start(size(layout.cores));
    declare(&mut machine, "in", layout.input, 0);
    declare(&mut machine, "a", layout.outputs[0], 0);
    declare(&mut machine, "b", layout.outputs[1], 0);
    fill(&mut machine, "in", &["1", "3"]);
    for round in 0..4 {
        let mut client = Client::open(&mut machine, layout.client);
        client.consume(&mut machine, CONSUMER, "in");
        turns(&mut machine, 100);
        client.hear(&mut machine);
        assert_eq!(client.payloads(), ["1", "3"], "round {round}");
        client.publish(&mut machine, "a", &["x", "y"]);
        client.publish(&mut machine, "b", &["z"]);
        client.settle(&mut machine, &[(1, 2)]);
        client.end(&mut machine, FrameKind::TransactionCommit);
        if round == 3 {
            assert_eq!(client.outcome(&mut machine), Told::Committed(1));
            break;
        }
        while machine
            .core(1)
            .flow()
            .expect("it runs")
            .transaction_figures()
            .prepared
            == 0
        {
            machine.turn();
        }
        // It is on the disk of one core, and nobody has decided.
        machine = machine.restart();
        turns(&mut machine, 100);
        invariants(&machine, layout.cores);
        assert!(is_at_rest(&machine, layout.cores));
    }
    let mut machine = machine.restart();
    assert!(assert_whole(&mut machine, layout, None, "after all"));
}

#[test]
fn a_failed_journal_decides_at_the_next_start() {
    let layout = LAYOUTS[3];
    let mut machine = Machine::start(size(layout.cores));
    declare(&mut machine, "in", layout.input, 0);
    declare(&mut machine, "a", layout.outputs[0], 0);
    declare(&mut machine, "b", layout.outputs[1], 0);
    fill(&mut machine, "in", &["1", "3"]);
    let mut client = Client::open(&mut machine, layout.client);
    client.consume(&mut machine, CONSUMER, "in");
    turns(&mut machine, 60);
    client.publish(&mut machine, "a", &["x", "y"]);
    client.publish(&mut machine, "b", &["z"]);
    client.settle(&mut machine, &[(1, 2)]);
    client.end(&mut machine, FrameKind::TransactionCommit);
    let prepared = |machine: &Machine| {
        let flow = machine.core(1).flow().expect("it runs");
        flow.transaction_figures().prepared
    };
    while prepared(&machine) == 0 {
        machine.turn();
    }
    machine.fail_writes(layout.client);
    let told = client.outcome(&mut machine);
    assert_eq!(told, Told::Failed(1, Code::Indeterminate));
    turns(&mut machine, 200);
    invariants(&machine, layout.cores);
    // Nobody else gets what it may have acknowledged.
    assert_eq!(prepared(&machine), 1);
    assert_eq!(contents(&mut machine, 1, "in"), []);
    let mut machine = machine.restart();
    // The disk had written what it said it had not.
    assert!(assert_whole(&mut machine, layout, None, "the next start"));
}

/// Where the queues of a scene are.
#[derive(Clone, Copy, Debug)]
struct Layout {
    cores: u16,
    input: u16,
    outputs: [u16; 2],
    /// The core of the connection.
    client: usize,
}

const LAYOUTS: [Layout; 6] = [
    // All on one core, which is that of the connection, or not.
    Layout {
        cores: 1,
        input: 0,
        outputs: [0, 0],
        client: 0,
    },
    Layout {
        cores: 2,
        input: 1,
        outputs: [1, 1],
        client: 0,
    },
    // On two cores; on three, one of which only decides.
    Layout {
        cores: 2,
        input: 0,
        outputs: [0, 1],
        client: 0,
    },
    Layout {
        cores: 2,
        input: 1,
        outputs: [0, 1],
        client: 0,
    },
    Layout {
        cores: 2,
        input: 0,
        outputs: [1, 0],
        client: 1,
    },
    Layout {
        cores: 3,
        input: 1,
        outputs: [1, 2],
        client: 0,
    },
];

/// A transaction on a machine whose power fails. Returns the machine, in the dark or not, and whether
/// the client was told that it was committed.
fn run_into(layout: Layout, outage: Outage) -> (Machine, Option<Told>) {
    let mut machine = Machine::start(size(layout.cores));
    declare(&mut machine, "in", layout.input, 0);
    declare(&mut machine, "a", layout.outputs[0], 0);
    declare(&mut machine, "b", layout.outputs[1], 0);
    fill(&mut machine, "in", &["1", "2", "3"]);
    let mut client = Client::open(&mut machine, layout.client);
    client.consume(&mut machine, CONSUMER, "in");
    turns(&mut machine, 60);
    client.hear(&mut machine);
    assert_eq!(client.payloads(), ["1", "2", "3"]);
    client.ack(&mut machine, 2);
    turns(&mut machine, 200);
    client.publish(&mut machine, "a", &["x", "y"]);
    client.publish(&mut machine, "b", &["z"]);
    client.settle(&mut machine, &[(1, 1), (3, 3)]);
    machine.fail_power(outage);
    client.end(&mut machine, FrameKind::TransactionCommit);
    let mut told = None;
    for _ in 0..400 {
        machine.turn();
        client.hear(&mut machine);
        told = told.or_else(|| client.told.pop());
        if machine.is_dark() {
            break;
        }
    }
    // What nobody heard any more.
    (machine, told)
}

/// All of it or nothing, and all if that was said.
fn assert_whole(machine: &mut Machine, layout: Layout, told: Option<&Told>, what: &str) -> bool {
    for _ in 0..200 {
        machine.turn();
    }
    invariants(machine, layout.cores);
    assert!(is_at_rest(machine, layout.cores), "{what}: undecided");
    let a = contents(machine, usize::from(layout.outputs[0]), "a");
    let b = contents(machine, usize::from(layout.outputs[1]), "b");
    let left = contents(machine, usize::from(layout.input), "in");
    let is_done = !a.is_empty();
    if is_done {
        assert_eq!(texts(&a), ["x", "y"], "{what}");
        assert_eq!(texts(&b), ["z"], "{what}");
        assert_eq!(texts(&left), [""; 0], "{what}");
    } else {
        assert_eq!(texts(&b), [""; 0], "{what}");
        assert_eq!(texts(&left), ["1", "3"], "{what}");
        assert!(left.iter().all(|one| one.count >= 1), "{what}: {left:?}");
    }
    if let Some(told) = told {
        assert_eq!(*told, Told::Committed(1), "{what}");
        assert!(is_done, "{what}: it was promised");
    }
    invariants(machine, layout.cores);
    is_done
}

#[test]
fn power_may_fail_at_every_write() {
    for layout in LAYOUTS {
        let mut ends = BTreeSet::new();
        let mut after = 0;
        loop {
            let mut is_over = false;
            for is_torn in [false, true] {
                let outage = Outage { after, is_torn };
                let what = format!("{layout:?} {outage:?}");
                let (machine, told) = run_into(layout, outage);
                is_over |= !machine.is_dark();
                let was_told = told.is_some();
                let mut machine = machine.restart();
                let is_done = assert_whole(&mut machine, layout, told.as_ref(), &what);
                ends.insert((was_told, is_done));
                // It stays so.
                let mut machine = machine.restart();
                let again = assert_whole(&mut machine, layout, None, &what);
                assert_eq!(again, is_done, "{what}: after one more start");
            }
            after += 1;
            if is_over {
                break;
            }
        }
        assert!(ends.contains(&(false, false)), "{layout:?}");
        assert!(ends.contains(&(true, true)), "{layout:?}");
    }
}

#[test]
fn power_may_fail_again_while_it_is_recovered() {
    for layout in LAYOUTS.into_iter().filter(|layout| layout.cores > 1) {
        for after in 0..6 {
            for again in 0..12 {
                let is_torn = (after + again) % 2 == 1;
                let what = format!("{layout:?} after {after}, again {again}");
                let (machine, told) = run_into(layout, Outage { after, is_torn });
                if !machine.is_dark() {
                    continue;
                }
                let mut machine = machine.restart();
                machine.fail_power(Outage {
                    after: again,
                    is_torn: !is_torn,
                });
                turns(&mut machine, 100);
                let mut machine = machine.restart();
                assert_whole(&mut machine, layout, told.as_ref(), &what);
            }
        }
    }
}
