//! The golden vectors of tests/golden, read and written. They are never regenerated: who fails here
//! has changed the protocol. tests/compat/test_golden.py says the same in Python.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ringpost_wire::batch::{DeliverHead, FragmentHead, Messages, SettleRange};
use ringpost_wire::control::*;
use ringpost_wire::limits::{FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use ringpost_wire::table::{Array, ArrayWriter, Table, TableWriter, Value};
use ringpost_wire::version::MAGIC;
use ringpost_wire::{
    BrowsedHead, BrowsedState, Code, Cut, FrameHeader, FrameKind, MessageParts, cut, envelope,
    frame, header,
};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"))
}

fn golden(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("no vector {name}"));
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.bytes().filter(u8::is_ascii_hexdigit))
        .collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = core::str::from_utf8(pair).expect("hexadecimal digits are text");
            u8::from_str_radix(pair, 16).expect("two hexadecimal digits")
        })
        .collect()
}

const FULL: MessageParts<'_> = MessageParts {
    exchange: b"shop",
    routing_key: b"order.7.paid",
    properties: b"\x10\x00\x02",
    headers: b"\x04sizei\x00\x00\x00\x07",
    payload: b"hello",
    priority: 3,
    timestamp_us: 1_700_000_000_123_456,
    ttl_ms: 60_000,
    delay_ms: 0,
    hops: 0,
};
const TABLE: &[u8] = b"\x07x-matchS\x00\x00\x00\x03any";
/// `x-expires` is 60,000, says the policy `limits`.
const OPTIONS: &[u8] =
    b"\x09x-expiresF\x00\x00\x00\x1d\x05valueI\x00\x00\xea\x60\x06policyS\x00\x00\x00\x06limits";
const POLICY: PolicySet<'_> = PolicySet {
    priority: -5_i32 as u32,
    applies: 3,
    flags: 0,
    reserved: 0,
    name: b"limits",
    pattern: b"^orders",
    options: b"\x09x-expiresI\x00\x00\xea\x60",
};
const CREDIT: ProducerCredit = ProducerCredit {
    messages: 1000,
    bytes: 8 << 20,
};
const PIECE: FragmentHead = FragmentHead {
    message_bytes: FRAGMENT_BYTES_MAX as u32 + 5,
    offset: FRAGMENT_BYTES_MAX as u32,
};

fn two_messages() -> Vec<u8> {
    let mut out = Vec::new();
    FULL.write(&mut out).expect("within limits");
    let empty = MessageParts::default();
    empty.write(&mut out).expect("within limits");
    out
}

/// A body, and the check that its bytes decode to it again.
fn body<'a, B: Body<'a> + PartialEq + core::fmt::Debug>(value: B, kind: FrameKind) -> Vec<u8> {
    let mut out = Vec::new();
    value.encode(&mut out);
    // Only decoding needs the bytes to live as long as the value's parts.
    let bytes: &'a [u8] = out.clone().leak();
    assert_eq!(B::decode(bytes), Ok(value), "{kind:?}");
    out
}

fn failure(code: Code, reason: &[u8], kind: FrameKind) -> Vec<u8> {
    let code = code as u16;
    let failure = Failure {
        code,
        reserved: 0,
        reason,
    };
    body(failure, kind)
}

/// Header fields and body of the vector of `kind`: (channel, sequence, count, flags, body).
fn expected(kind: FrameKind) -> (u16, u64, u32, u8, Vec<u8>) {
    use FrameKind as K;
    let name = &b"orders"[..];
    let named = |name| body(Named { name }, kind);
    let bind = |key, arguments| {
        let (exchange, queue) = (&b"shop"[..], name);
        let bind = Bind {
            flags: 0,
            exchange,
            target: queue,
            key,
            arguments,
        };
        body(bind, kind)
    };
    let delete = |flags, name| body(Delete { flags, name }, kind);
    match kind {
        K::Hello => {
            let hello = Hello {
                magic: MAGIC,
                version_min: 1,
                version_max: 1,
                heartbeat_ms: 10_000,
                message_bytes_max: 1 << 24,
                tenant: b"acme",
                client: b"golden 1",
            };
            (0, 0, 0, 0, body(hello, kind))
        }
        K::Welcome => {
            let welcome = Welcome {
                magic: MAGIC,
                version: 1,
                core: 1,
                cores: 4,
                channels_max: 4096,
                heartbeat_ms: 10_000,
                frame_bytes_max: 1 << 18,
                message_bytes_max: 1 << 24,
                credit_messages_max: 1_000_000,
                connection: 0x0102_0304_0506_0708,
                server: b"ringpost 0.1.0",
            };
            (0, 0, 0, 0, body(welcome, kind))
        }
        K::Attach => (0, 1, 0, 0, body(Attach { queue: name }, kind)),
        K::Attached => (0, 1, 3, 0, vec![]),
        K::Heartbeat => (0, 0, 0, 0, vec![]),
        K::Close => {
            let body = failure(Code::ShuttingDown, b"going down", kind);
            (0, 0, 0, 0, body)
        }
        K::Failed => {
            let body = failure(Code::QueueUnknown, b"no queue orders", kind);
            (0, 2, 0, 0, body)
        }
        K::Done => (0, 3, 7, header::DONE_CHANGED, vec![]),
        K::ProducerOpen => {
            let open = ProducerOpen {
                producer: 0x1122_3344_5566_7788,
                epoch: 9,
                level: Level::Durable as u8,
                flags: PRODUCER_DOWNGRADE,
                reserved: 0,
            };
            (1, 4, 0, 0, body(open, kind))
        }
        K::ProducerOpened => {
            let opened = ProducerOpened {
                sequence: 42,
                messages: CREDIT.messages,
                bytes: CREDIT.bytes,
            };
            (1, 4, 0, 0, body(opened, kind))
        }
        K::Publish => (1, 42, 2, header::PUBLISH_MANDATORY, two_messages()),
        K::PublishFragment => (1, 44, 1, 0, [&PIECE.encode()[..], b"tail!"].concat()),
        K::Confirm => (1, 43, 0, Level::Durable as u8, body(CREDIT, kind)),
        K::Refused => {
            let body = failure(Code::Unroutable, b"no queue takes it", kind);
            (1, 44, 2, 0, body)
        }
        K::ProducerCredit => (1, 0, 0, 0, body(CREDIT, kind)),
        K::ProducerClose => (1, 5, 0, 0, vec![]),
        K::ProducerClosed => (1, 5, 0, 0, failure(Code::Normal, b"", kind)),
        K::ConsumerOpen => {
            let open = ConsumerOpen {
                credit_bytes: 1 << 20,
                credit_messages: 100,
                flags: CONSUMER_EXCLUSIVE,
                queue: name,
                arguments: b"\x0ax-priorityI\x00\x00\x00\x05",
            };
            (2, 6, 0, 0, body(open, kind))
        }
        K::ConsumerOpened => (2, 6, 3, 0, vec![]),
        K::Deliver => {
            let head = DeliverHead {
                queue_sequence: 77,
                delivery_count: 3,
            };
            let body = [&head.encode()[..], &two_messages()].concat();
            (2, 7, 2, header::DELIVER_REDELIVERED, body)
        }
        K::DeliverFragment => {
            let head = DeliverHead {
                queue_sequence: 79,
                delivery_count: 0,
            };
            let body = [&head.encode()[..], &PIECE.encode(), b"tail!"].concat();
            (2, 9, 1, 0, body)
        }
        K::Settle => {
            let ranges = [
                SettleRange { first: 0, last: 6 },
                SettleRange { first: 8, last: 9 },
            ];
            let flags = header::SETTLE_REQUEUE | header::SETTLE_CONFIRM;
            let body = ranges.map(|range| range.encode()).concat();
            let read: Vec<_> = SettleRange::parse(&body, 2).expect("well formed").collect();
            assert_eq!(read, ranges);
            (2, 10, 2, flags, body)
        }
        K::Settled => (2, 10, 0, 0, vec![]),
        K::ConsumerCredit => {
            let credit = ConsumerCredit {
                bytes: 1 << 20,
                messages: 200,
                reserved: 0,
            };
            (2, 0, 0, 0, body(credit, kind))
        }
        K::ConsumerClose => (2, 11, 0, 0, vec![]),
        K::ConsumerClosed => {
            let body = failure(Code::QueueDeleted, b"queue orders was deleted", kind);
            (2, 0, 0, 0, body)
        }
        K::Get => {
            let get = Get {
                wait_ms: 250,
                reserved: 0,
            };
            (2, 12, 10, 0, body(get, kind))
        }
        K::GetDone => (2, 12, 2, 0, vec![]),
        K::ConsumerActive => (2, 0, 0, header::CONSUMER_IS_ACTIVE, vec![]),
        K::ConsumerInspect => (2, 12, 0, 0, vec![]),
        K::ConsumerInfo => {
            let info = ConsumerInfo {
                messages: 3,
                bytes: 1 << 20,
                oldest_ms: 1_500,
            };
            (2, 12, 0, 0, body(info, kind))
        }
        K::ConsumerPosition => {
            let position = ConsumerPosition {
                offset: 31,
                missed: 27,
            };
            (2, 0, 0, 0, body(position, kind))
        }
        K::GroupList => (0, 27, 0, 0, named(name)),
        K::GroupInfo => {
            let info = GroupInfo {
                offset: 31,
                lag: 9,
                members: 2,
                reserved: 0,
                name: b"billing",
            };
            (0, 27, 0, 0, body(info, kind))
        }
        K::GroupReset => {
            let reset = GroupReset {
                queue: name,
                group: b"billing",
                arguments: TABLE,
            };
            (0, 28, 0, 0, body(reset, kind))
        }
        K::GroupDelete => {
            let delete = GroupDelete {
                queue: name,
                group: b"billing",
            };
            (0, 29, 0, 0, body(delete, kind))
        }
        K::TransactionOpen => {
            let open = TransactionOpen {
                timeout_ms: 30_000,
                reserved: 0,
            };
            (3, 30, 0, 0, body(open, kind))
        }
        K::TransactionOpened => {
            let opened = TransactionOpened {
                messages_max: 10_000,
                bytes_max: 260_000,
                timeout_ms: 30_000,
                reserved: 0,
            };
            (3, 30, 0, 0, body(opened, kind))
        }
        K::TransactionPublish => (3, 1, 2, header::PUBLISH_MANDATORY, two_messages()),
        K::TransactionSettle => {
            let ranges = [(0, 6), (8, 9)].map(|(first, last)| SettleRange { first, last }.encode());
            let settle = TransactionSettle {
                consumer: 2,
                reserved: 0,
                ranges: &ranges.concat(),
            };
            (3, 1, 2, 0, body(settle, kind))
        }
        K::TransactionCommit | K::TransactionRollback => (3, 1, 0, 0, vec![]),
        K::TransactionDone => (3, 1, 0, header::TRANSACTION_COMMITTED, vec![]),
        K::TransactionClose => (3, 31, 0, 0, vec![]),
        K::TransactionClosed => (3, 31, 0, 0, failure(Code::Normal, b"", kind)),
        K::QueueBrowse => {
            let browse = QueueBrowse {
                from: 31,
                messages_max: 10,
                message_bytes_max: 1000,
                states: 2,
                reserved: 0,
                queue: name,
                filter: b"size > 3",
            };
            (0, 40, 0, 0, body(browse, kind))
        }
        K::QueueBrowsed => {
            let mut message = Vec::new();
            FULL.write(&mut message).expect("it is small");
            let head = BrowsedHead {
                place: 31,
                due_ms: 1500,
                connection: 0,
                deliveries: 1,
                message_bytes: FULL.length() as u32,
                shown_bytes: FULL.length() as u32,
                channel: 0,
                core: 0,
                state: BrowsedState::Delayed,
                flags: 0,
            };
            let messages = [&head.encode()[..], &message].concat();
            let browsed = QueueBrowsed {
                next: 32,
                newest: 40,
                messages: &messages,
            };
            (0, 40, 1, 0, body(browsed, kind))
        }
        K::QueueCancel => {
            let cancel = QueueCancel {
                queue: name,
                places: b"\x1f\0\0\0\0\0\0\0",
            };
            (0, 41, 0, 0, body(cancel, kind))
        }
        K::QueueMove => {
            let moved = QueueMove {
                flags: MOVE_WITH_KEY,
                queue: name,
                exchange: b"shop",
                routing_key: b"order.*.paid",
                places: b"\x1f\0\0\0\0\0\0\0",
            };
            (0, 42, 0, 0, body(moved, kind))
        }
        K::QueueOutcome => {
            let outcome = QueueOutcome {
                done: 1,
                late: 2,
                busy: 3,
                refused: 4,
            };
            (0, 42, 0, 0, body(outcome, kind))
        }
        K::QueueDeclare => {
            let declare = QueueDeclare {
                messages_max: 1000,
                bytes_max: 1 << 30,
                durability: Durability::Durable as u8,
                flags: 0,
                partition: PARTITION_BY_NAME,
                name,
                arguments: TABLE,
            };
            (0, 13, 0, 0, body(declare, kind))
        }
        K::QueueDelete => (
            0,
            14,
            0,
            0,
            delete(DELETE_IF_UNUSED | DELETE_IF_EMPTY, name),
        ),
        K::QueuePurge => (0, 15, 0, 0, named(name)),
        K::QueueInspect => (0, 16, 0, 0, named(name)),
        K::QueueList => (0, 17, 0, 0, vec![]),
        K::QueueInfo => {
            let info = QueueInfo {
                ready: 1,
                unacked: 2,
                bytes: 3,
                published: 4,
                settled: 5,
                messages_max: 6,
                bytes_max: 7,
                delayed: 8,
                due_ms: 9,
                dead: 10,
                recent_ms: 11,
                recent_arrived: 12,
                recent_left: 13,
                recent_taken: 14,
                wait_mean_us: 15,
                wait_p50_us: 16,
                wait_p99_us: 17,
                wait_max_us: 18,
                id: 19,
                consumers: 20,
                core: 21,
                partition: 22,
                durability: Durability::Durable as u8,
                flags: QUEUE_DAMAGED,
                lanes: 0,
                name,
            };
            (0, 17, 0, 0, body(info, kind))
        }
        K::QueueDescribe => (0, 27, 0, 0, named(name)),
        K::QueueDescription => {
            let described = QueueDescription {
                messages_max: 1000,
                bytes_max: 1 << 30,
                id: 8,
                partition: 11,
                durability: Durability::Durable as u8,
                reserved: 0,
                name,
                arguments: TABLE,
                options: OPTIONS,
            };
            (0, 27, 0, 0, body(described, kind))
        }
        K::PolicySet => (0, 28, 0, 0, body(POLICY, kind)),
        K::PolicyDelete => (0, 29, 0, 0, named(b"limits")),
        K::PolicyList => (0, 30, 0, 0, vec![]),
        K::PolicyInfo => (0, 30, 0, 0, body(POLICY, kind)),
        K::ExchangeDeclare => {
            let declare = ExchangeDeclare {
                kind: ExchangeKind::Topic as u8,
                durability: Durability::Durable as u8,
                flags: DECLARE_PASSIVE,
                reserved: 0,
                name: b"shop",
                arguments: b"",
            };
            (0, 18, 0, 0, body(declare, kind))
        }
        K::ExchangeDelete => (0, 19, 0, 0, delete(DELETE_IF_UNUSED, b"shop")),
        K::ExchangeList => (0, 20, 0, 0, vec![]),
        K::ExchangeInfo => {
            let info = ExchangeDeclare {
                kind: ExchangeKind::Headers as u8,
                durability: Durability::Volatile as u8,
                flags: 0,
                reserved: 0,
                name: b"shop",
                arguments: TABLE,
            };
            (0, 20, 0, 0, body(info, kind))
        }
        K::Bind => (0, 21, 0, 0, bind(b"order.*.paid", TABLE)),
        K::Unbind => (0, 22, 0, 0, bind(b"order.*.paid", b"")),
        K::BindingList => (0, 23, 0, 0, vec![]),
        K::BindingInfo => (0, 23, 0, 0, bind(b"", TABLE)),
        K::TenantDeclare => (0, 24, 0, 0, named(b"acme")),
        K::TenantDelete => (0, 25, 0, 0, named(b"acme")),
        K::TenantList => (0, 26, 0, 0, vec![]),
        K::TenantInfo => (0, 26, 0, 0, named(b"acme")),
    }
}

fn vector(kind: FrameKind) -> String {
    format!("frame_{:02}_{kind:?}", kind as u8)
}

#[test]
fn every_kind_has_a_vector_and_no_vector_is_forgotten() {
    let mut wanted: BTreeSet<String> = FrameKind::ALL.iter().map(|kind| vector(*kind)).collect();
    for name in ["message_empty", "message_full", "message_later", "table"] {
        wanted.insert(name.into());
    }
    let found: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("the folder of the vectors")
        .filter_map(|entry| {
            let name = entry.expect("an entry").file_name();
            let name = name.to_str()?.strip_suffix(".hex")?;
            // Those of the journal belong to the engine's test.
            (!name.starts_with("journal_")).then(|| name.to_string())
        })
        .collect();
    assert_eq!(found, wanted);
}

//= P-1
#[test]
fn frames_are_written_and_read() {
    for &kind in FrameKind::ALL {
        let golden = golden(&vector(kind));
        let (channel, sequence, count, flags, body) = expected(kind);
        let header = FrameHeader {
            flags,
            count,
            ..FrameHeader::bare(kind, channel, sequence)
        };
        let mut written = Vec::new();
        frame::write(&mut written, header, &body);
        assert_eq!(written, golden, "{kind:?}");
        let Cut::Complete {
            header: read,
            length,
        } = cut(&golden, FRAME_BYTES_MAX)
        else {
            panic!("{kind:?} is not a whole frame")
        };
        assert_eq!(length, golden.len());
        let found = &golden[FRAME_HEADER_BYTES..][..read.body_bytes as usize];
        assert_eq!(frame::check_body(&read, found), Ok(()));
        assert_eq!(found, body, "{kind:?}");
        let fields = (
            read.kind,
            read.channel,
            read.sequence,
            read.count,
            read.flags,
        );
        assert_eq!(fields, (kind, channel, sequence, count, flags));
    }
}

#[test]
fn batches_and_pieces_are_read() {
    let publish = golden(&vector(FrameKind::Publish));
    let deliver = golden(&vector(FrameKind::Deliver));
    let (head, delivered) = DeliverHead::split(&deliver[FRAME_HEADER_BYTES..]).expect("a head");
    assert_eq!((head.queue_sequence, head.delivery_count), (77, 3));
    assert_eq!(delivered, &publish[FRAME_HEADER_BYTES..]);
    let messages: Vec<_> = Messages::new(delivered)
        .map(|message| message.expect("well formed").envelope)
        .collect();
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].payload(), FULL.payload);
    assert_eq!(messages[1].length(), 64);
    for message in messages {
        assert_eq!(message.check_crc(), Ok(()));
    }
    for (kind, skip) in [
        (FrameKind::PublishFragment, 0),
        (FrameKind::DeliverFragment, 16),
    ] {
        let golden = golden(&vector(kind));
        let body = &golden[FRAME_HEADER_BYTES + skip..][..16 + 5];
        let (head, piece) = FragmentHead::split(body).expect("well formed");
        assert_eq!((head, piece), (PIECE, &b"tail!"[..]));
        assert!(head.is_last());
    }
}

#[test]
fn messages_are_written_and_read() {
    for (name, parts) in [
        ("message_empty", MessageParts::default()),
        ("message_full", FULL),
    ] {
        let golden = golden(name);
        let mut written = Vec::new();
        parts.write(&mut written).expect("within limits");
        assert_eq!(written[..parts.length()], golden, "{name}");
        assert_same(&golden, &parts);
    }
}

fn assert_same(bytes: &[u8], parts: &MessageParts<'_>) {
    let read = envelope::open(bytes).expect("well formed");
    assert_eq!(read.check_crc(), Ok(()));
    assert_eq!(read.exchange(), parts.exchange);
    assert_eq!(read.routing_key(), parts.routing_key);
    assert_eq!(read.properties(), parts.properties);
    assert_eq!(read.headers(), parts.headers);
    assert_eq!(read.payload(), parts.payload);
    assert_eq!(read.priority(), parts.priority);
    assert_eq!(read.timestamp_us(), parts.timestamp_us);
    assert_eq!(read.ttl_ms(), parts.ttl_ms);
    assert_eq!(read.delay_ms(), parts.delay_ms);
}

//= P-23
#[test]
fn a_message_of_a_later_version_is_read() {
    let golden = golden("message_later");
    assert_eq!(golden[8], 80);
    assert_eq!(golden[11], 0x80);
    assert_same(&golden, &FULL);
}

#[test]
fn the_table_is_written_and_read() {
    let golden = golden("table");
    let mut array = Vec::new();
    let mut writer = ArrayWriter::new(&mut array);
    writer.put(Value::I8(1)).put(Value::Void);
    writer.finish().expect("within limits");
    let mut table = Vec::new();
    let mut writer = TableWriter::new(&mut table);
    writer.put(b"k", Value::Bool(true));
    writer.finish().expect("within limits");
    let entries = [
        (b"t", Value::Bool(true)),
        (b"b", Value::I8(-1)),
        (b"B", Value::U8(255)),
        (b"s", Value::I16(-2)),
        (b"u", Value::U16(65_535)),
        (b"I", Value::I32(-3)),
        (b"i", Value::U32(u32::MAX)),
        (b"l", Value::I64(-4)),
        (b"f", Value::F32(0.5)),
        (b"d", Value::F64(-0.25)),
        (
            b"D",
            Value::Decimal {
                scale: 2,
                value: 314,
            },
        ),
        (b"S", Value::Text(b"text")),
        (b"A", Value::Array(Array::parse(&array).expect("written"))),
        (b"T", Value::Timestamp(1_700_000_000)),
        (b"F", Value::Table(Table::parse(&table).expect("written"))),
        (b"V", Value::Void),
        (b"x", Value::Bytes(b"\x00\xff")),
    ];
    let mut written = Vec::new();
    let mut writer = TableWriter::new(&mut written);
    for (key, value) in entries {
        writer.put(key, value);
    }
    writer.finish().expect("within limits");
    assert_eq!(written, golden);
    let read: Vec<_> = Table::parse(&golden)
        .expect("well formed")
        .entries()
        .collect();
    assert_eq!(read.len(), entries.len());
    for ((key, value), (read_key, read)) in entries.iter().zip(read) {
        assert_eq!((&key[..], *value), (read_key, read));
    }
}
