//! docs/protocol.md says what the code does: its tables are compared with the code, its session is
//! cut, decoded and written again to the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_wire::batch::{DeliverHead, FragmentHead, Messages, SettleRange};
use ringpost_wire::code::Scope;
use ringpost_wire::control::*;
use ringpost_wire::{
    BROWSED_CUT, BrowsedHead, BrowsedState, Code, Cut, FrameHeader, FrameKind, MessageParts, cut,
    frame, header, limits,
};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md is in the repository")
}

/// The cells of every row of the first table after `heading`, without its head and backquotes.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let mut lines = page.lines().skip_while(|line| *line != heading).skip(1);
    let rows: Vec<_> = lines
        .by_ref()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table under {heading:?}");
    rows
}

#[test]
fn kinds_are_those_of_the_code() {
    let rows = table(&page(), "## 2. Frame kinds");
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let wanted: Vec<_> = FrameKind::ALL
        .iter()
        .map(|kind| ((*kind as u8).to_string(), format!("{kind:?}")))
        .collect();
    assert_eq!(found, wanted);
}

#[test]
fn codes_are_those_of_the_code() {
    let rows = table(&page(), "## 7. Codes and compatibility");
    let found: Vec<_> = rows.iter().map(|row| row[..4].to_vec()).collect();
    let wanted: Vec<_> = Code::ALL
        .iter()
        .map(|code| {
            let ends = match code.scope() {
                Scope::Request => "request",
                Scope::Channel => "channel",
                Scope::Connection => "connection",
            };
            let retry = if code.is_retryable() { "yes" } else { "no" };
            let number = (*code as u16).to_string();
            [number, code.word().into(), ends.into(), retry.into()].to_vec()
        })
        .collect();
    assert_eq!(found, wanted);
}

/// Name and value of every limit, in the order of `limits.rs`.
macro_rules! limits {
    ($($name:ident)*) => { [$((stringify!($name), limits::$name as u64),)*] };
}

#[test]
fn limits_are_those_of_the_code() {
    let wanted = limits! {
        ALIGN FRAME_HEADER_BYTES FRAME_BYTES_MAX FRAME_BYTES_MAX_HANDSHAKE ENVELOPE_BYTES
        ENVELOPE_BYTES_MAX FRAGMENT_BYTES_MAX MESSAGE_BYTES_MAX_DEFAULT MESSAGE_BYTES_MAX_LIMIT
        NAME_BYTES_MAX KEY_BYTES_MAX PROPERTIES_BYTES_MAX HEADERS_BYTES_MAX HEADERS_COUNT_MAX
        HEADERS_DEPTH_MAX WEIGHT_MAX FILTER_BYTES_MAX FILTER_NODES_MAX FILTER_DEPTH_MAX
        FILTER_PATTERN_BYTES_MAX FILTER_LIKE_BYTES_MAX FILTER_BODY_BYTES_MAX
        PATTERN_BYTES_MAX POLICY_PRIORITY_MAX POLICY_QUEUES_AND_EXCHANGES CHANNELS_MAX SETTLE_RANGES_MAX
        BROWSE_MESSAGES_MAX BROWSE_MESSAGE_BYTES_MAX NAMED_MESSAGES_MAX CREDIT_MESSAGES_MAX CREDIT_BYTES_MAX
        HEARTBEAT_MS_MIN HEARTBEAT_MS_MAX HEARTBEAT_MS_DEFAULT REASON_BYTES_MAX
        TRANSACTION_MESSAGES_MAX TRANSACTION_BYTES_MAX TRANSACTION_RANGES_BYTES_MAX
        TRANSACTION_CHANNELS_MAX TRANSACTION_MS_DEFAULT TRANSACTION_MS_MAX PRODUCER_BROKER_MIN
    };
    let rows = table(&page(), "## 9. Limits");
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row[0].as_str(), row[1].parse().expect("a number")))
        .collect();
    assert_eq!(found, wanted);
    // None was forgotten here.
    let code = include_str!("../limits.rs");
    let constants = code
        .lines()
        .filter(|line| line.starts_with("pub const ") && !line.contains(" fn "));
    assert_eq!(constants.count(), wanted.len());
}

#[test]
fn flags_are_those_of_the_code() {
    let wanted: &[(&str, u64)] = &[
        ("DONE_CHANGED", header::DONE_CHANGED.into()),
        ("PUBLISH_MANDATORY", header::PUBLISH_MANDATORY.into()),
        (
            "TRANSACTION_COMMITTED",
            header::TRANSACTION_COMMITTED.into(),
        ),
        ("DELIVER_REDELIVERED", header::DELIVER_REDELIVERED.into()),
        ("CONSUMER_IS_ACTIVE", header::CONSUMER_IS_ACTIVE.into()),
        ("SETTLE_ACK", header::SETTLE_ACK.into()),
        ("SETTLE_REQUEUE", header::SETTLE_REQUEUE.into()),
        ("SETTLE_REJECT", header::SETTLE_REJECT.into()),
        ("SETTLE_OUTCOME", header::SETTLE_OUTCOME.into()),
        ("SETTLE_CONFIRM", header::SETTLE_CONFIRM.into()),
        ("PRODUCER_DOWNGRADE", PRODUCER_DOWNGRADE.into()),
        ("CONSUMER_NO_ACK", CONSUMER_NO_ACK.into()),
        ("CONSUMER_EXCLUSIVE", CONSUMER_EXCLUSIVE.into()),
        ("DECLARE_PASSIVE", DECLARE_PASSIVE.into()),
        ("PARTITION_BY_NAME", PARTITION_BY_NAME.into()),
        ("DELETE_IF_UNUSED", DELETE_IF_UNUSED.into()),
        ("DELETE_IF_EMPTY", DELETE_IF_EMPTY.into()),
        ("BIND_TO_EXCHANGE", BIND_TO_EXCHANGE.into()),
        ("QUEUE_DAMAGED", QUEUE_DAMAGED.into()),
        ("QUEUE_STREAM", QUEUE_STREAM.into()),
        ("MOVE_WITH_KEY", MOVE_WITH_KEY.into()),
        ("BROWSED_CUT", BROWSED_CUT.into()),
        ("BrowsedState::Ready", BrowsedState::Ready as u64),
        ("BrowsedState::Delayed", BrowsedState::Delayed as u64),
        ("BrowsedState::Unacked", BrowsedState::Unacked as u64),
        ("BrowsedState::Dead", BrowsedState::Dead as u64),
        ("BrowsedState::Grouped", BrowsedState::Grouped as u64),
        ("Level::None", Level::None as u64),
        ("Level::Volatile", Level::Volatile as u64),
        ("Level::Durable", Level::Durable as u64),
        ("Durability::Volatile", Durability::Volatile as u64),
        ("Durability::Durable", Durability::Durable as u64),
        ("ExchangeKind::Direct", ExchangeKind::Direct as u64),
        ("ExchangeKind::Fanout", ExchangeKind::Fanout as u64),
        ("ExchangeKind::Topic", ExchangeKind::Topic as u64),
        ("ExchangeKind::Headers", ExchangeKind::Headers as u64),
        (
            "ExchangeKind::ConsistentHash",
            ExchangeKind::ConsistentHash as u64,
        ),
        ("ExchangeKind::Random", ExchangeKind::Random as u64),
        ("ExchangeKind::Filter", ExchangeKind::Filter as u64),
    ];
    let rows = table(&page(), "### Flags and small numbers");
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row[0].as_str(), row[1].parse().expect("a number")))
        .collect();
    assert_eq!(found, wanted);
}

/// Offset, size and name of the rows of a structure; rows of byte parts have no offset.
fn structure(page: &str, name: &str) -> Vec<(usize, usize, String)> {
    table(page, &format!("#### {name}"))
        .into_iter()
        .filter(|row| !row[0].is_empty())
        .map(|row| {
            let number = |at: usize| row[at].parse().expect("a number");
            (number(0), number(1), row[2].clone())
        })
        .collect()
}

//= P-93
#[test]
fn bodies_are_those_of_the_code() {
    let page = page();
    let mut described = BTreeSet::new();
    macro_rules! compare {
        ($($name:ident)*) => { $({
            let mut at = 0;
            let wanted: Vec<_> = $name::FIELDS
                .iter()
                .map(|(field, size)| {
                    at += size;
                    (at - size, *size, (*field).to_string())
                })
                .collect();
            assert_eq!(at, $name::FIXED_BYTES);
            assert_eq!(structure(&page, stringify!($name)), wanted, stringify!($name));
            described.insert(stringify!($name).to_string());
        })* };
    }
    compare! {
        Hello Welcome Attach Failure ProducerOpen ProducerOpened ProducerCredit ConsumerOpen
        ConsumerInfo ConsumerPosition ConsumerCredit Get QueueDeclare Delete Named QueueInfo GroupInfo
        GroupReset GroupDelete TransactionOpen TransactionOpened TransactionSettle QueueBrowse QueueBrowsed QueueCancel
        QueueMove QueueOutcome QueueDescription PolicySet ExchangeDeclare Bind
    }
    let section = page.split("\n## 8. Bodies\n").nth(1).expect("section 8");
    let section = section.split("\n## ").next().expect("its text");
    let headings: BTreeSet<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("#### "))
        .map(str::to_string)
        .collect();
    assert_eq!(headings, described);
    // A kind's body is one of them, or what the text describes.
    for row in table(&page, "## 2. Frame kinds") {
        let other = [
            "none",
            "messages",
            "FragmentHead, piece",
            "SettleRange each",
        ];
        let deliver = ["DeliverHead, messages", "DeliverHead, FragmentHead, piece"];
        let body = row[7].as_str();
        let known = other.contains(&body) || deliver.contains(&body);
        assert!(known || described.contains(body), "body of {}", row[1]);
    }
}

/// The bytes at a field of a structure.
fn at<'a>(bytes: &'a [u8], rows: &[(usize, usize, String)], field: &str) -> &'a [u8] {
    let (offset, size, _) = rows
        .iter()
        .find(|(_, _, name)| name == field)
        .unwrap_or_else(|| panic!("no field {field}"));
    &bytes[*offset..offset + size]
}

fn assert_contiguous(rows: &[(usize, usize, String)], bytes: usize) {
    let end = rows.iter().fold(0, |end, (offset, size, name)| {
        assert_eq!(*offset, end, "offset of {name}");
        end + size
    });
    assert_eq!(end, bytes);
}

#[test]
fn heads_are_those_of_the_code() {
    let page = page();
    let rows = structure(&page, "FrameHeader");
    assert_contiguous(&rows, limits::FRAME_HEADER_BYTES);
    let frame = FrameHeader {
        kind: FrameKind::Settle,
        flags: 5,
        channel: 0x0102,
        sequence: 0x0304_0506_0708_090a,
        count: 0x0b0c_0d0e,
        body_bytes: 1000,
        body_crc: 0x1112_1314,
    };
    let bytes = frame.encode();
    assert_eq!(at(&bytes, &rows, "length"), 1040_u32.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "kind"), [FrameKind::Settle as u8]);
    assert_eq!(at(&bytes, &rows, "flags"), [5]);
    assert_eq!(at(&bytes, &rows, "channel"), frame.channel.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "sequence"), frame.sequence.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "count"), frame.count.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "body_bytes"), 1000_u32.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "body_crc"), frame.body_crc.to_le_bytes());

    let rows = structure(&page, "DeliverHead");
    assert_contiguous(&rows, DeliverHead::BYTES);
    let head = DeliverHead {
        queue_sequence: 0x0102_0304_0506_0708,
        delivery_count: 9,
    };
    let bytes = head.encode();
    let sequence = at(&bytes, &rows, "queue_sequence");
    assert_eq!(sequence, head.queue_sequence.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "delivery_count"), 9_u32.to_le_bytes());

    let rows = structure(&page, "BrowsedHead");
    assert_contiguous(&rows, BrowsedHead::BYTES);
    let head = BrowsedHead {
        place: 0x0102_0304_0506_0708,
        due_ms: 0x090a_0b0c_0d0e_0f10,
        connection: 0x1112_1314_1516_1718,
        deliveries: 0x191a_1b1c,
        message_bytes: 0x1d1e_1f20,
        shown_bytes: 0x2122_2324,
        channel: 0x2526,
        core: 0x2728,
        state: BrowsedState::Grouped,
        flags: BROWSED_CUT,
    };
    let bytes = head.encode();
    assert_eq!(at(&bytes, &rows, "place"), head.place.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "due_ms"), head.due_ms.to_le_bytes());
    assert_eq!(
        at(&bytes, &rows, "connection"),
        head.connection.to_le_bytes()
    );
    assert_eq!(
        at(&bytes, &rows, "deliveries"),
        head.deliveries.to_le_bytes()
    );
    assert_eq!(
        at(&bytes, &rows, "message_bytes"),
        head.message_bytes.to_le_bytes()
    );
    assert_eq!(
        at(&bytes, &rows, "shown_bytes"),
        head.shown_bytes.to_le_bytes()
    );
    assert_eq!(at(&bytes, &rows, "channel"), head.channel.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "core"), head.core.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "state"), [16]);
    assert_eq!(at(&bytes, &rows, "flags"), [1]);
    assert_eq!(at(&bytes, &rows, "reserved"), [0; 6]);

    let rows = structure(&page, "FragmentHead");
    assert_contiguous(&rows, FragmentHead::BYTES);
    let head = FragmentHead {
        message_bytes: 0x0102_0304,
        offset: 0x0506_0708,
    };
    let bytes = head.encode();
    let length = at(&bytes, &rows, "message_bytes");
    assert_eq!(length, head.message_bytes.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "offset"), head.offset.to_le_bytes());

    let rows = structure(&page, "SettleRange");
    assert_contiguous(&rows, SettleRange::BYTES);
    let bytes = SettleRange { first: 1, last: 2 }.encode();
    assert_eq!(at(&bytes, &rows, "first"), 1_u64.to_le_bytes());
    assert_eq!(at(&bytes, &rows, "last"), 2_u64.to_le_bytes());
}

#[test]
fn the_envelope_is_that_of_the_code() {
    let rows = structure(&page(), "Envelope");
    assert_contiguous(&rows, limits::ENVELOPE_BYTES);
    let parts = MessageParts {
        exchange: b"e",
        routing_key: b"kk",
        properties: b"ppp",
        headers: b"hhhh",
        payload: b"fivefive!",
        priority: 7,
        timestamp_us: 0x0102_0304_0506_0708,
        ttl_ms: 0x090a_0b0c,
        delay_ms: 0x0d0e_0f10,
        hops: 9,
    };
    let mut bytes = Vec::new();
    parts.write(&mut bytes).expect("within limits");
    let number = |field: &str| {
        let raw = at(&bytes, &rows, field).iter().rev();
        raw.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let length = parts.length();
    assert_eq!(number("length"), length as u64);
    let crc = ringpost_wire::checksum::crc32c(&bytes[4..length]);
    assert_eq!(number("crc"), u64::from(crc));
    assert_eq!(number("header_bytes"), 64);
    assert_eq!(number("flags_critical"), 0);
    assert_eq!(number("flags_ignorable"), 0);
    assert_eq!(number("priority"), 7);
    assert_eq!(number("hops"), 9);
    assert_eq!(number("timestamp_us"), parts.timestamp_us);
    assert_eq!(number("ttl_ms"), u64::from(parts.ttl_ms));
    assert_eq!(number("delay_ms"), u64::from(parts.delay_ms));
    for (name, part) in [
        ("exchange", parts.exchange),
        ("routing_key", parts.routing_key),
        ("properties", parts.properties),
        ("headers", parts.headers),
        ("payload", parts.payload),
    ] {
        let offset = number(&format!("{name}_offset")) as usize;
        let size = number(&format!("{name}_bytes")) as usize;
        assert_eq!(&bytes[offset..offset + size], part, "{name}");
    }
}

#[test]
fn rules_are_numbered_once_and_every_cited_one_exists() {
    let page = page();
    let mut rules = BTreeSet::new();
    let mut last = 0;
    for line in page.lines() {
        if let Some((number, text)) = line
            .strip_prefix("**P-")
            .and_then(|rest| rest.split_once("** "))
        {
            let number: u32 = number.parse().expect("a number");
            assert!(number > last, "P-{number} after P-{last}");
            assert!(!text.is_empty());
            last = number;
            rules.insert(number);
        }
    }
    let folder = std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the crate's folder");
    let mut texts: BTreeMap<String, String> = BTreeMap::from([("the page".into(), page)]);
    for file in folder {
        let path = file.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            texts.insert(path.display().to_string(), text);
        }
    }
    for (name, text) in &texts {
        for cited in text.split("P-").skip(1) {
            let digits: String = cited.chars().take_while(char::is_ascii_digit).collect();
            if let Ok(number) = digits.parse() {
                assert!(rules.contains(&number), "{name} cites P-{number}");
            }
        }
    }
}

/// The frames of the session: who sent it, its kind by name, its bytes.
fn session(page: &str) -> Vec<(String, String, Vec<u8>)> {
    let block = page.split("```hex\n").nth(1).expect("a hex block");
    let block = block.split("```").next().expect("its end");
    let mut frames: Vec<(String, String, Vec<u8>)> = Vec::new();
    for line in block.lines() {
        if let Some((from @ (">" | "<"), kind)) = line.split_once(' ') {
            frames.push((from.to_string(), kind.to_string(), Vec::new()));
        } else {
            let (_, _, bytes) = frames.last_mut().expect("a frame's name comes first");
            let digits: String = line.split_whitespace().collect();
            for pair in 0..digits.len() / 2 {
                let byte = u8::from_str_radix(&digits[pair * 2..pair * 2 + 2], 16);
                bytes.push(byte.expect("two hexadecimal digits"));
            }
        }
    }
    frames
}

/// The body, decoded by its kind and encoded again.
fn again(kind: FrameKind, count: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    macro_rules! body {
        ($name:ident) => {
            $name::decode(body).expect("well formed").encode(&mut out)
        };
    }
    let messages = |bytes: &[u8], out: &mut Vec<u8>| {
        let mut found = 0;
        for message in Messages::new(bytes) {
            let envelope = message.expect("well formed").envelope;
            assert_eq!(envelope.check_crc(), Ok(()));
            let parts = MessageParts {
                exchange: envelope.exchange(),
                routing_key: envelope.routing_key(),
                properties: envelope.properties(),
                headers: envelope.headers(),
                payload: envelope.payload(),
                priority: envelope.priority(),
                timestamp_us: envelope.timestamp_us(),
                ttl_ms: envelope.ttl_ms(),
                delay_ms: envelope.delay_ms(),
                hops: envelope.hops(),
            };
            parts.write(out).expect("within limits");
            found += 1;
        }
        assert_eq!(found, count);
    };
    match kind {
        FrameKind::Hello => body!(Hello),
        FrameKind::Welcome => body!(Welcome),
        FrameKind::Close => body!(Failure),
        FrameKind::ProducerOpen => body!(ProducerOpen),
        FrameKind::ProducerOpened => body!(ProducerOpened),
        FrameKind::Confirm => body!(ProducerCredit),
        FrameKind::ConsumerOpen => body!(ConsumerOpen),
        FrameKind::QueueDeclare => body!(QueueDeclare),
        FrameKind::Publish => messages(body, &mut out),
        FrameKind::Deliver => {
            let (head, rest) = DeliverHead::split(body).expect("well formed");
            out.extend_from_slice(&head.encode());
            messages(rest, &mut out);
        }
        FrameKind::Settle => {
            for range in SettleRange::parse(body, count).expect("well formed") {
                out.extend_from_slice(&range.encode());
            }
        }
        FrameKind::Done | FrameKind::ConsumerOpened | FrameKind::Settled => {}
        other => panic!("{other:?} is not in the session"),
    }
    out
}

#[test]
fn the_session_is_read_and_written_again() {
    let page = page();
    let frames = session(&page);
    let kinds: Vec<_> = frames.iter().map(|(_, kind, _)| kind.as_str()).collect();
    let wanted = [
        "Hello",
        "Welcome",
        "QueueDeclare",
        "Done",
        "ProducerOpen",
        "ProducerOpened",
        "Publish",
        "Confirm",
        "ConsumerOpen",
        "ConsumerOpened",
        "Deliver",
        "Settle",
        "Settled",
        "Close",
        "Close",
    ];
    assert_eq!(kinds, wanted);
    let rows = table(&page, "## 2. Frame kinds");
    for (from, kind, bytes) in &frames {
        let Cut::Complete { header, length } = cut(bytes, limits::FRAME_BYTES_MAX) else {
            panic!("{kind} is not a whole frame")
        };
        assert_eq!(length, bytes.len());
        assert_eq!(format!("{:?}", header.kind), *kind);
        let row = rows.iter().find(|row| row[1] == *kind).expect("a kind");
        assert!(
            row[2].contains(if from == ">" { 'C' } else { 'B' }),
            "{kind}"
        );
        assert_eq!(row[3] == "n", header.channel != 0, "channel of {kind}");
        let start = limits::FRAME_HEADER_BYTES;
        let body = &bytes[start..start + header.body_bytes as usize];
        assert_eq!(frame::check_body(&header, body), Ok(()));
        let body = again(header.kind, header.count, body);
        let mut written = Vec::new();
        frame::write(&mut written, header, &body);
        assert_eq!(written, *bytes, "{kind}");
    }
    // What is delivered is what was published, byte for byte.
    let body = |name: &str| {
        let (_, _, bytes) = frames.iter().find(|(_, kind, _)| kind == name).expect(name);
        bytes[limits::FRAME_HEADER_BYTES..].to_vec()
    };
    assert_eq!(body("Publish"), body("Deliver")[DeliverHead::BYTES..]);
}
