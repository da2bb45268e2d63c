//! Methods and contents: what decodes encodes to the same bytes, and every cut is seen.

use ringpost_amqp::method::FieldType;
use ringpost_amqp::{ContentHeader, FRAME_BYTES_MAX, Headers, Method, ReplyCode, content};
use ringpost_wire::properties::{Property, PropertyValue};
use ringpost_wire::{MessageParts, envelope};

/// Numbers that look like chance and are the same every time.
struct Lots(u64);

impl Lots {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let count = self.below(most + 1);
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Arguments of a method, put together by the rules of the specification alone.
fn arguments(fields: &[(&str, FieldType)], lots: &mut Lots) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut bits = 0;
    for (_, field) in fields {
        if *field == FieldType::Bit {
            if bits % 8 == 0 {
                out.push(0);
            }
            *out.last_mut().expect("it was pushed") |= (lots.below(2) as u8) << (bits % 8);
            bits += 1;
            continue;
        }
        bits = 0;
        match field {
            FieldType::Bit => {}
            FieldType::Octet => out.push(lots.next() as u8),
            FieldType::Short => out.extend_from_slice(&(lots.next() as u16).to_be_bytes()),
            FieldType::Long => out.extend_from_slice(&(lots.next() as u32).to_be_bytes()),
            FieldType::LongLong => out.extend_from_slice(&lots.next().to_be_bytes()),
            FieldType::ShortStr => {
                let bytes = lots.bytes(255);
                out.push(bytes.len() as u8);
                out.extend_from_slice(&bytes);
            }
            FieldType::LongStr | FieldType::Table => {
                let bytes = lots.bytes(700);
                out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                out.extend_from_slice(&bytes);
            }
        }
    }
    out
}

#[test]
fn every_method_survives_and_every_cut_is_seen() {
    let mut lots = Lots(1);
    for info in Method::ALL {
        for _ in 0..20 {
            let mut payload = [info.class.to_be_bytes(), info.method.to_be_bytes()].concat();
            payload.extend(arguments(info.fields, &mut lots));
            let method = Method::decode(&payload).expect(info.name);
            assert_eq!(method.number(), (info.class, info.method));
            assert_eq!(method.name(), info.name);
            let mut again = Vec::new();
            method.encode(&mut again);
            assert_eq!(again, payload, "{}", info.name);
            for len in 0..payload.len() {
                let error = Method::decode(&payload[..len]).expect_err(info.name);
                assert_eq!(error.code, ReplyCode::SyntaxError, "{} cut", info.name);
            }
            payload.push(0);
            let error = Method::decode(&payload).expect_err("a byte too many");
            assert_eq!(error.code, ReplyCode::SyntaxError);
        }
    }
}

#[test]
fn numbers_of_no_method_are_invalid_commands() {
    for class in 0..=100u16 {
        for method in 0..=130u16 {
            let is_known = Method::ALL
                .iter()
                .any(|info| (info.class, info.method) == (class, method));
            let payload = [class.to_be_bytes(), method.to_be_bytes()].concat();
            let is_invalid = Method::decode(&payload)
                .is_err_and(|error| error.code == ReplyCode::CommandInvalid);
            assert_eq!(is_invalid, !is_known, "{class}.{method}");
        }
    }
    // 64 of the specification without its deprecated `connection.redirect`, and RabbitMQ's.
    assert_eq!(Method::ALL.len(), 66);
}

/// Bytes that the specification spells out, and what other people's clients write.
#[test]
fn known_bytes_are_read() {
    let tune = b"\0\x0a\0\x1e\x07\xff\0\x02\0\0\0\x3c";
    let expected = Method::ConnectionTune {
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: 60,
    };
    assert_eq!(Method::decode(tune), Ok(expected));
    // queue.declare of a durable, exclusive queue: bits 1 and 2 of one octet.
    let declare = b"\0\x32\0\x0a\0\0\x05hello\x06\0\0\0\0";
    let expected = Method::QueueDeclare {
        reserved_1: 0,
        queue: b"hello",
        passive: false,
        durable: true,
        exclusive: true,
        auto_delete: false,
        no_wait: false,
        arguments: b"",
    };
    assert_eq!(Method::decode(declare), Ok(expected));
    let publish = b"\0\x3c\0\x28\0\0\0\x05hello\x01";
    let expected = Method::BasicPublish {
        reserved_1: 0,
        exchange: b"",
        routing_key: b"hello",
        mandatory: true,
        immediate: false,
    };
    assert_eq!(Method::decode(publish), Ok(expected));
    // exchange.unbind-ok is 51 and not 41.
    assert_eq!(Method::ExchangeUnbindOk {}.number(), (40, 51));
}

/// A property list, put together by the rules of the specification alone.
fn property_list(lots: &mut Lots) -> Vec<u8> {
    let mut flags = 0u16;
    let mut values = Vec::new();
    for bit in (2..16u16).rev() {
        if lots.below(2) == 0 {
            continue;
        }
        flags |= 1 << bit;
        match bit {
            13 => {
                let mut table: Vec<u8> = Vec::new();
                for number in 0..lots.below(3) {
                    table.extend_from_slice(&[2, b'k', number as u8, b'S']);
                    let text = lots.bytes(40);
                    table.extend_from_slice(&(text.len() as u32).to_be_bytes());
                    table.extend_from_slice(&text);
                }
                values.extend_from_slice(&(table.len() as u32).to_be_bytes());
                values.extend_from_slice(&table);
            }
            12 | 11 => values.push(lots.next() as u8),
            6 => values.extend_from_slice(&lots.next().to_be_bytes()),
            8 => {
                let text = lots.below(5_000_000_000).to_string();
                values.push(text.len() as u8);
                values.extend_from_slice(text.as_bytes());
            }
            _ => {
                let text = lots.bytes(255);
                values.push(text.len() as u8);
                values.extend_from_slice(&text);
            }
        }
    }
    [flags.to_be_bytes().to_vec(), values].concat()
}

fn header_payload(body_bytes: u64, list: &[u8]) -> Vec<u8> {
    let mut payload = b"\0\x3c\0\0".to_vec();
    payload.extend_from_slice(&body_bytes.to_be_bytes());
    payload.extend_from_slice(list);
    payload
}

/// The message that a content becomes.
fn message_of(header: &ContentHeader<'_>, body: &[u8]) -> Vec<u8> {
    let mut scratch = Vec::new();
    let mut parts = header.parts(&mut scratch).expect("it fits a message");
    parts.routing_key = b"key";
    let mut bytes = Vec::new();
    parts
        .begin(body.len(), &mut bytes)
        .expect("parts are small");
    bytes.extend_from_slice(body);
    envelope::finish(&mut bytes, 0);
    bytes
}

/// What comes by AMQP leaves by AMQP, byte for byte, whatever properties it has.
#[test]
fn properties_survive_byte_for_byte() {
    let mut lots = Lots(2);
    for _ in 0..2_000 {
        let list = property_list(&mut lots);
        let payload = header_payload(5, &list);
        let header = ContentHeader::decode(&payload).expect("it is whole");
        let bytes = message_of(&header, b"hello");
        let message = envelope::open(&bytes).expect("a message");
        message.check_published().expect("as a client publishes");
        let mut again = Vec::new();
        content::encode(&message, &mut again);
        assert_eq!(again, payload);
    }
}

#[test]
fn every_cut_of_a_header_is_seen() {
    let mut lots = Lots(3);
    for _ in 0..200 {
        let list = property_list(&mut lots);
        let payload = header_payload(0, &list);
        for len in 0..payload.len() {
            assert!(ContentHeader::decode(&payload[..len]).is_err(), "at {len}");
        }
        let longer = [&payload[..], b"\0"].concat();
        assert!(ContentHeader::decode(&longer).is_err());
    }
    for bit in [0u16, 1] {
        let payload = header_payload(0, &(1u16 << bit).to_be_bytes());
        let error = ContentHeader::decode(&payload).expect_err("of no property");
        assert_eq!(error.code, ReplyCode::SyntaxError);
    }
    for wrong in [&b"\0\x3b\0\0"[..], b"\0\x3c\0\x01"] {
        let mut payload = header_payload(0, &[0, 0]);
        payload[..4].copy_from_slice(wrong);
        let error = ContentHeader::decode(&payload).expect_err("class and weight");
        assert_eq!(error.code, ReplyCode::FrameError);
    }
}

#[test]
fn the_envelope_says_what_properties_say() {
    // priority 7, expiration "250", timestamp 9, x-delay 1500
    let mut list = 0b0010_1001_0100_0000u16.to_be_bytes().to_vec();
    let table = b"\x07x-delayI\0\0\x05\xdc";
    list.extend_from_slice(&(table.len() as u32).to_be_bytes());
    list.extend_from_slice(table);
    list.push(7);
    list.extend_from_slice(b"\x03250");
    list.extend_from_slice(&9u64.to_be_bytes());
    let payload = header_payload(0, &list);
    let header = ContentHeader::decode(&payload).expect("it is whole");
    assert_eq!(header.headers(), Headers::Table(table));
    assert_eq!(
        header.get(Property::Expiration),
        Some(PropertyValue::Text(b"250"))
    );
    let mut scratch = Vec::new();
    let parts = header.parts(&mut scratch).expect("it fits");
    assert_eq!((parts.priority, parts.ttl_ms), (7, 250));
    assert_eq!((parts.timestamp_us, parts.delay_ms), (9_000_000, 1_500));
    assert_eq!(parts.headers, table);

    for (text, ttl_ms) in [
        (&b"0"[..], Some(1)),
        (b"1", Some(1)),
        (b"4294967295", Some(u32::MAX)),
        (b"99999999999999999999999", Some(u32::MAX)),
        (b"", None),
        (b"-1", None),
        (b"1.5", None),
        (b"soon", None),
    ] {
        let mut list = Property::Expiration.flag().to_be_bytes().to_vec();
        list.push(text.len() as u8);
        list.extend_from_slice(text);
        let payload = header_payload(0, &list);
        let header = ContentHeader::decode(&payload).expect("it is whole");
        let mut scratch = Vec::new();
        let parts = header.parts(&mut scratch);
        assert_eq!(parts.ok().map(|parts| parts.ttl_ms), ttl_ms, "{text:?}");
    }
}

#[test]
fn another_reply_to_changes_nothing_else() {
    let mut lots = Lots(4);
    let mut seen = 0;
    for _ in 0..500 {
        let list = property_list(&mut lots);
        let payload = header_payload(0, &list);
        let header = ContentHeader::decode(&payload).expect("it is whole");
        let mut scratch = Vec::new();
        let parts = header.parts_with(Some(b"there"), &mut scratch);
        let mut bytes = Vec::new();
        parts.expect("it fits").write(&mut bytes).expect("small");
        let message = envelope::open(&bytes).expect("a message");
        let mut again = Vec::new();
        content::encode(&message, &mut again);
        let changed = ContentHeader::decode(&again).expect("it is whole");
        assert_eq!(changed.headers(), header.headers());
        for property in Property::ALL {
            let (before, after) = (header.get(property), changed.get(property));
            if property == Property::ReplyTo && before.is_some() {
                assert_eq!(after, Some(PropertyValue::Text(b"there")));
                seen += 1;
            } else {
                assert_eq!(after, before, "{property:?}");
            }
        }
    }
    assert!(seen > 100, "{seen} had one");
}

#[test]
fn what_only_a_native_envelope_says_becomes_properties() {
    let mut bytes = Vec::new();
    let parts = MessageParts {
        payload: b"native",
        headers: b"\x01kt\x01",
        priority: 3,
        ttl_ms: 60_000,
        timestamp_us: 12_345_678,
        ..MessageParts::default()
    };
    parts.write(&mut bytes).expect("small");
    let message = envelope::open(&bytes).expect("a message");
    let mut payload = Vec::new();
    content::encode(&message, &mut payload);
    let header = ContentHeader::decode(&payload).expect("it is whole");
    assert_eq!(header.body_bytes, 6);
    assert_eq!(header.headers(), Headers::Table(b"\x01kt\x01"));
    let value = |property| header.get(property);
    assert_eq!(value(Property::Priority), Some(PropertyValue::Number(3)));
    assert_eq!(
        value(Property::Expiration),
        Some(PropertyValue::Text(b"60000"))
    );
    assert_eq!(value(Property::Timestamp), Some(PropertyValue::Number(12)));
    assert_eq!(value(Property::MessageId), None);
}

/// Headers may be as large as a frame, and nest: what a message cannot have is said, not cut.
#[test]
fn huge_and_deep_headers_are_refused() {
    let with_headers = |table: &[u8]| {
        let mut list = (1u16 << 13).to_be_bytes().to_vec();
        list.extend_from_slice(&(table.len() as u32).to_be_bytes());
        list.extend_from_slice(table);
        let payload = header_payload(0, &list);
        let header = ContentHeader::decode(&payload).expect("it is whole");
        let mut scratch = Vec::new();
        header.parts(&mut scratch).map(|_| ())
    };
    let mut huge = b"\x01kS".to_vec();
    let text = vec![b'x'; FRAME_BYTES_MAX - 100];
    huge.extend_from_slice(&(text.len() as u32).to_be_bytes());
    huge.extend_from_slice(&text);
    assert_eq!(with_headers(&huge), Err(content::Unfit::Headers));
    let mut deep = Vec::new();
    for _ in 0..1_000 {
        let inner = std::mem::take(&mut deep);
        deep.extend_from_slice(b"\x01kF");
        deep.extend_from_slice(&(inner.len() as u32).to_be_bytes());
        deep.extend_from_slice(&inner);
    }
    assert_eq!(with_headers(&deep), Err(content::Unfit::Headers));
    assert_eq!(with_headers(b"\x01kZ"), Err(content::Unfit::Headers));
    assert_eq!(with_headers(b"\x01kV"), Ok(()));
}
