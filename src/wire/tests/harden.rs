//! Damage of every kind to every kind of bytes: it is refused or harmless, never a panic.

use ringpost_wire::batch::{DeliverHead, FragmentHead, Messages, SettleRange};
use ringpost_wire::control::*;
use ringpost_wire::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use ringpost_wire::{
    BrowsedMessages, Code, Cut, FrameHeader, FrameKind, MessageParts, Table, cut, envelope, frame,
};

/// A small deterministic generator (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Every cut and every flipped bit of the body: refused, or decoded to what encodes to the same
/// bytes. Nothing else is left for damage to hide in.
fn assert_every_byte_counts<'a, B: Body<'a> + core::fmt::Debug>(value: &B) {
    let mut whole = Vec::new();
    value.encode(&mut whole);
    let read = |bytes: Vec<u8>, what: &dyn core::fmt::Display| {
        let bytes: &'a [u8] = bytes.leak();
        match B::decode(bytes) {
            Err(code) => assert_eq!(code, Code::BodyMalformed, "{what}"),
            Ok(read) => {
                let mut again = Vec::new();
                read.encode(&mut again);
                assert_eq!(again, bytes, "{what}");
            }
        }
    };
    for length in 0..whole.len() {
        let cut: &'a [u8] = whole[..length].to_vec().leak();
        assert!(B::decode(cut).is_err(), "{value:?} cut at {length}");
    }
    for bit in 0..whole.len() * 8 {
        let mut bad = whole.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        read(bad, &format_args!("{value:?} bit {bit}"));
    }
    whole.push(0);
    let longer: &'a [u8] = whole.leak();
    assert!(B::decode(longer).is_err(), "{value:?} with a byte more");
}

#[test]
fn every_byte_of_every_control_body_counts() {
    let (name, key, arguments) = (&b"orders"[..], &b"order.*"[..], &b"\x01kt\x01"[..]);
    assert_every_byte_counts(&Hello {
        magic: ringpost_wire::version::MAGIC,
        version_min: 1,
        version_max: 1,
        heartbeat_ms: 10_000,
        message_bytes_max: 0,
        tenant: b"",
        client: b"test",
    });
    assert_every_byte_counts(&Welcome {
        magic: ringpost_wire::version::MAGIC,
        version: 1,
        core: 0,
        cores: 2,
        channels_max: 4096,
        heartbeat_ms: 10_000,
        frame_bytes_max: 1 << 18,
        message_bytes_max: 1 << 24,
        credit_messages_max: 1_000_000,
        connection: 9,
        server: b"ringpost",
    });
    assert_every_byte_counts(&Attach { queue: name });
    assert_every_byte_counts(&Failure {
        code: Code::QueueFull as u16,
        reserved: 0,
        reason: b"the queue is full",
    });
    assert_every_byte_counts(&ProducerOpen {
        producer: 7,
        epoch: 1,
        level: 2,
        flags: 0,
        reserved: 0,
    });
    assert_every_byte_counts(&ProducerOpened {
        sequence: 1,
        messages: 1000,
        bytes: 1 << 20,
    });
    assert_every_byte_counts(&ProducerCredit {
        messages: 1000,
        bytes: 1 << 20,
    });
    assert_every_byte_counts(&ConsumerOpen {
        credit_bytes: 0,
        credit_messages: 100,
        flags: CONSUMER_NO_ACK,
        queue: name,
        arguments: b"\x08x-weightb\x05",
    });
    assert_every_byte_counts(&ConsumerCredit {
        bytes: 0,
        messages: 5,
        reserved: 0,
    });
    assert_every_byte_counts(&ConsumerInfo {
        messages: 3,
        bytes: 4,
        oldest_ms: 5,
    });
    assert_every_byte_counts(&ConsumerPosition {
        offset: 31,
        missed: 27,
    });
    assert_every_byte_counts(&GroupInfo {
        offset: 31,
        lag: 9,
        members: 2,
        reserved: 0,
        name,
    });
    assert_every_byte_counts(&GroupReset {
        queue: name,
        group: b"billing",
        arguments,
    });
    assert_every_byte_counts(&GroupDelete {
        queue: name,
        group: b"billing",
    });
    assert_every_byte_counts(&TransactionOpen {
        timeout_ms: 30_000,
        reserved: 0,
    });
    assert_every_byte_counts(&TransactionOpened {
        messages_max: 10_000,
        bytes_max: 260_000,
        timeout_ms: 30_000,
        reserved: 0,
    });
    assert_every_byte_counts(&TransactionSettle {
        consumer: 2,
        reserved: 0,
        ranges: &[7; 32],
    });
    assert_every_byte_counts(&QueueBrowse {
        from: 7,
        messages_max: 10,
        message_bytes_max: 1_000,
        states: 2,
        reserved: 0,
        queue: name,
        filter: b"a = 1",
    });
    assert_every_byte_counts(&QueueBrowsed {
        next: 9,
        newest: 12,
        messages: b"bytes",
    });
    assert_every_byte_counts(&QueueCancel {
        queue: name,
        places: &[7, 0, 0, 0, 0, 0, 0, 0],
    });
    assert_every_byte_counts(&QueueMove {
        flags: MOVE_WITH_KEY,
        queue: name,
        exchange: b"shop",
        routing_key: b"k",
        places: &[7, 0, 0, 0, 0, 0, 0, 0],
    });
    assert_every_byte_counts(&QueueOutcome {
        done: 1,
        late: 2,
        busy: 3,
        refused: 4,
    });
    assert_every_byte_counts(&Get {
        wait_ms: 5,
        reserved: 0,
    });
    assert_every_byte_counts(&QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: 1,
        flags: 0,
        partition: PARTITION_BY_NAME,
        name,
        arguments,
    });
    assert_every_byte_counts(&Delete {
        flags: DELETE_IF_EMPTY,
        name,
    });
    assert_every_byte_counts(&Named { name });
    assert_every_byte_counts(&QueueInfo {
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
        id: 8,
        consumers: 9,
        core: 10,
        partition: 11,
        durability: 1,
        flags: 0,
        lanes: 0,
        name,
    });
    assert_every_byte_counts(&QueueDescription {
        messages_max: 1,
        bytes_max: 2,
        id: 3,
        partition: 4,
        durability: 1,
        reserved: 0,
        name,
        arguments,
        options: arguments,
    });
    assert_every_byte_counts(&PolicySet {
        priority: -3_i32 as u32,
        applies: 3,
        flags: 0,
        reserved: 0,
        name,
        pattern: key,
        options: arguments,
    });
    assert_every_byte_counts(&ExchangeDeclare {
        kind: 3,
        durability: 1,
        flags: 0,
        reserved: 0,
        name,
        arguments,
    });
    assert_every_byte_counts(&Bind {
        flags: 0,
        exchange: b"shop",
        target: name,
        key,
        arguments,
    });
}

#[test]
fn reserved_integers_and_limits_are_refused() {
    let body = |code: u16, reserved, reason: &[u8]| {
        let mut out = Vec::new();
        let failure = Failure {
            code,
            reserved,
            reason,
        };
        failure.encode(&mut out);
        out
    };
    assert!(Failure::decode(&body(1, 0, b"")).is_ok());
    for bit in 0..16 {
        let bad = body(1, 1 << bit, b"");
        assert_eq!(Failure::decode(&bad), Err(Code::BodyMalformed));
    }
    for length in [1023, 1024, 1025] {
        let reason = vec![b'r'; length];
        let decoded = Failure::decode(&body(1, 0, &reason)).is_ok();
        assert_eq!(decoded, length <= 1024);
    }
    // A length that only a wider integer holds reaches past nothing.
    let mut bad = body(1, 0, b"reason");
    bad[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Failure::decode(&bad), Err(Code::BodyMalformed));
}

#[test]
fn ranges_are_checked_before_they_are_read() {
    let range = |first, last| SettleRange { first, last }.encode();
    assert!(SettleRange::parse(&range(5, 4), 1).is_err());
    assert!(SettleRange::parse(&range(4, 4), 1).is_ok());
    assert!(SettleRange::parse(&[], 0).is_err());
    assert!(SettleRange::parse(&range(1, 1)[..15], 1).is_err());
    for count in [4095_usize, 4096, 4097] {
        let body = range(1, 2).repeat(count);
        assert_eq!(
            SettleRange::parse(&body, count as u32).is_ok(),
            count <= 4096
        );
    }
    assert!(SettleRange::parse(&range(1, 1), u32::MAX).is_err());
}

/// Everything that a receiver would do with one frame.
fn receive(bytes: &[u8]) -> Result<usize, Code> {
    let (header, length) = match cut(bytes, FRAME_BYTES_MAX) {
        Cut::Complete { header, length } => (header, length),
        Cut::Incomplete { bytes_needed } => {
            assert!(bytes_needed > bytes.len() && bytes_needed <= FRAME_BYTES_MAX);
            return Ok(0);
        }
        Cut::Malformed(code) => return Err(code),
    };
    assert!(length <= bytes.len());
    let body = &bytes[FRAME_HEADER_BYTES..][..header.body_bytes as usize];
    // Damage that the checksum sees must be harmless too if it did not.
    let checked = frame::check_body(&header, body);
    read(&header, body).and(checked).map(|()| length)
}

fn read(header: &FrameHeader, body: &[u8]) -> Result<(), Code> {
    use FrameKind as K;
    let messages = |body| {
        for message in Messages::new(body) {
            let envelope = message?.envelope;
            envelope.check_crc()?;
            if let Ok(table) = Table::parse(envelope.headers()) {
                assert!(table.entries().count() <= 256);
            }
            assert_eq!(
                envelope.address().len(),
                envelope.exchange().len() + envelope.routing_key().len()
            );
        }
        Ok(())
    };
    match header.kind {
        K::Hello => Hello::decode(body).map(drop),
        K::Welcome => Welcome::decode(body).map(drop),
        K::Attach => Attach::decode(body).map(drop),
        K::Close
        | K::Failed
        | K::Refused
        | K::ProducerClosed
        | K::ConsumerClosed
        | K::TransactionClosed => Failure::decode(body).map(drop),
        K::ProducerOpen => ProducerOpen::decode(body).map(drop),
        K::ProducerOpened => ProducerOpened::decode(body).map(drop),
        K::Confirm | K::ProducerCredit => ProducerCredit::decode(body).map(drop),
        K::Publish => messages(body),
        K::PublishFragment => {
            let (_, piece) = FragmentHead::split(body)?;
            envelope::open(piece).map(drop)
        }
        K::ConsumerOpen => ConsumerOpen::decode(body).map(drop),
        K::Deliver => messages(DeliverHead::split(body)?.1),
        K::DeliverFragment => FragmentHead::split(DeliverHead::split(body)?.1).map(drop),
        K::Settle => SettleRange::parse(body, header.count).map(|ranges| {
            assert_eq!(ranges.count(), header.count as usize);
        }),
        K::ConsumerCredit => ConsumerCredit::decode(body).map(drop),
        K::Get => Get::decode(body).map(drop),
        K::ConsumerInfo => ConsumerInfo::decode(body).map(drop),
        K::QueueDeclare => QueueDeclare::decode(body).map(drop),
        K::QueueDelete | K::ExchangeDelete => Delete::decode(body).map(drop),
        K::QueuePurge
        | K::QueueInspect
        | K::QueueDescribe
        | K::TenantDeclare
        | K::TenantDelete
        | K::TenantInfo
        | K::PolicyDelete
        | K::GroupList => Named::decode(body).map(drop),
        K::QueueDescription => QueueDescription::decode(body).map(drop),
        K::PolicySet | K::PolicyInfo => PolicySet::decode(body).map(drop),
        K::ConsumerPosition => ConsumerPosition::decode(body).map(drop),
        K::GroupInfo => GroupInfo::decode(body).map(drop),
        K::GroupReset => GroupReset::decode(body).map(drop),
        K::GroupDelete => GroupDelete::decode(body).map(drop),
        K::TransactionOpen => TransactionOpen::decode(body).map(drop),
        K::TransactionOpened => TransactionOpened::decode(body).map(drop),
        K::TransactionPublish => messages(body),
        K::TransactionSettle => {
            let settle = TransactionSettle::decode(body)?;
            SettleRange::parse(settle.ranges, header.count).map(drop)
        }
        K::QueueBrowse => QueueBrowse::decode(body).map(drop),
        K::QueueBrowsed => {
            let mut all = BrowsedMessages::new(QueueBrowsed::decode(body)?.messages);
            all.try_for_each(|message| message.map(drop))
        }
        K::QueueCancel => QueueCancel::decode(body).map(drop),
        K::QueueMove => QueueMove::decode(body).map(drop),
        K::QueueOutcome => QueueOutcome::decode(body).map(drop),
        K::QueueInfo => QueueInfo::decode(body).map(drop),
        K::ExchangeDeclare | K::ExchangeInfo => ExchangeDeclare::decode(body).map(drop),
        K::Bind | K::Unbind | K::BindingInfo => Bind::decode(body).map(drop),
        K::Attached
        | K::Heartbeat
        | K::Done
        | K::ProducerClose
        | K::ConsumerOpened
        | K::Settled
        | K::ConsumerClose
        | K::GetDone
        | K::ConsumerActive
        | K::ConsumerInspect
        | K::TransactionCommit
        | K::TransactionRollback
        | K::TransactionDone
        | K::TransactionClose
        | K::QueueList
        | K::ExchangeList
        | K::BindingList
        | K::TenantList
        | K::PolicyList => Ok(()),
    }
}

/// A million frames of all kinds. Bodies are damaged before their frame is written, so that the
/// checksums are right and the damage reaches the decoders; some frames are damaged or cut after.
#[test]
fn a_million_damaged_frames_are_refused_or_harmless() {
    let mut random = Random(0x0001_0203_0405_0607);
    let mut messages = Vec::new();
    let parts = MessageParts {
        exchange: b"shop",
        routing_key: b"order.7.paid",
        headers: b"\x01kt\x01",
        payload: b"hello",
        ..MessageParts::default()
    };
    parts.write(&mut messages).expect("within limits");
    parts.write(&mut messages).expect("within limits");
    let (mut accepted, mut refused) = (0_u32, 0_u32);
    let mut body = Vec::new();
    let mut bytes = Vec::new();
    for _ in 0..1_000_000 {
        let kind = FrameKind::ALL[random.below(FrameKind::ALL.len() as u64) as usize];
        body.clear();
        bytes.clear();
        match kind {
            FrameKind::Publish => body.extend_from_slice(&messages),
            FrameKind::Deliver => {
                body.extend_from_slice(&[0; 16]);
                body.extend_from_slice(&messages);
            }
            _ => {
                let count = random.below(64);
                body.extend((0..count).map(|_| match random.below(3) {
                    0 => random.next() as u8,
                    _ => 0,
                }));
            }
        }
        for _ in 0..random.below(3) {
            if !body.is_empty() {
                let at = random.below(body.len() as u64) as usize;
                body[at] ^= 1 << random.below(8);
            }
        }
        let header = FrameHeader {
            flags: random.below(4) as u8,
            count: random.below(4) as u32,
            ..FrameHeader::bare(kind, random.below(3) as u16, random.below(5))
        };
        frame::write(&mut bytes, header, &body);
        if random.below(4) == 0 {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        if random.below(8) == 0 {
            let length = random.below(bytes.len() as u64) as usize;
            bytes.truncate(length);
        }
        match receive(&bytes) {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
    }
    // The generator reaches both answers often, so neither is trivially all there is.
    assert!(accepted > 100_000, "{accepted} accepted");
    assert!(refused > 100_000, "{refused} refused");
}

/// Messages whose checksum is right and whose envelope is random: `open` alone must hold.
#[test]
fn random_envelopes_are_refused_or_read_within_bounds() {
    let mut random = Random(0xe4e1);
    let parts = MessageParts {
        exchange: b"shop",
        routing_key: b"k",
        payload: b"payload",
        ..MessageParts::default()
    };
    let mut whole = Vec::new();
    parts.write(&mut whole).expect("within limits");
    let mut opened = 0;
    for _ in 0..300_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(64) as usize;
            bytes[at] = match random.below(3) {
                0 => random.next() as u8,
                1 => bytes[at] ^ 1 << random.below(8),
                _ => random.below(80) as u8,
            };
        }
        let Ok(read) = envelope::open(&bytes) else {
            continue;
        };
        opened += 1;
        let tail = [
            read.exchange(),
            read.routing_key(),
            read.properties(),
            read.headers(),
            read.payload(),
        ];
        let tail: usize = tail.iter().map(|part| part.len()).sum();
        assert!(tail <= bytes.len());
        let _ = read.check_crc();
    }
    assert!(opened > 1_000, "{opened} opened");
}

/// Archived types hold nothing but unaligned integers, bytes, byte arrays and such structures: no
/// references, niches, vectors or relative pointers, whose layout is not ours to promise.
#[test]
fn archived_types_use_only_the_allowed_vocabulary() {
    let allowed = [
        "u8",
        "u16_ule",
        "u32_ule",
        "u64_ule",
        "[u8; 2]",
        "ShortPart",
        "LongPart",
    ];
    let sources = [
        include_str!("../envelope.rs"),
        include_str!("../control.rs"),
        include_str!("../batch.rs"),
        include_str!("../table.rs"),
        include_str!("../header.rs"),
        include_str!("../frame.rs"),
    ];
    let mut structures = 0;
    for source in sources {
        for after in source.split("Portable, CheckBytes)]").skip(1) {
            let (head, rest) = after.split_once('{').expect("a structure");
            assert!(head.contains("#[repr(C)]"), "{head}");
            assert!(head.contains("struct"), "{head}");
            structures += 1;
            // A macro's fields are the types of its `le!`, below.
            if head.contains('$') {
                continue;
            }
            let (fields, _) = rest.split_once("\n}").expect("its end");
            for field in fields
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
            {
                let (_, kind) = field
                    .trim_end_matches(',')
                    .split_once(": ")
                    .expect("a field");
                assert!(allowed.contains(&kind), "{field} in {head}");
            }
        }
    }
    assert_eq!(structures, 4);
    let control = include_str!("../control.rs");
    let (_, le) = control.split_once("macro_rules! le {").expect("the macro");
    let (le, _) = le.split_once("\n}").expect("its end");
    let kinds = le
        .lines()
        .map(str::trim)
        .filter(|line| line.ends_with("_ule") || *line == "u8");
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        ["u8", "u16_ule", "u32_ule", "u64_ule"]
    );
    for word in [
        "access_unchecked",
        "unsafe impl",
        "Rc<",
        "Arc<",
        "ArchivedVec",
        "Niche",
    ] {
        assert!(
            sources.iter().all(|source| !source.contains(word)),
            "{word}"
        );
    }
}
