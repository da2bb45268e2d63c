//! Messages and headers tables: whatever the bytes, reading stays inside them, and what can be read
//! can be written again. Does not know frames.

use ringpost_wire::checksum::crc32c;
use ringpost_wire::limits::{HEADERS_COUNT_MAX, HEADERS_DEPTH_MAX};
use ringpost_wire::table::{ArrayWriter, TableWriter, Value};
use ringpost_wire::{Code, ENVELOPE_BYTES, Envelope, MessageParts, Messages, Table, envelope};

/// The first byte says how the others are read.
pub fn run(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    match how % 4 {
        // As it came.
        0 => message(bytes),
        // With the checksum that its producer would have written.
        1 => {
            let mut bytes = bytes.to_vec();
            seal(&mut bytes);
            message(&bytes);
        }
        2 => batch(bytes),
        _ => headers(bytes),
    }
}

/// Makes the checksum of the message that starts `bytes` right.
pub fn seal(bytes: &mut [u8]) {
    let Some(length) = envelope::length_of(bytes) else {
        return;
    };
    if let Some(message) = bytes.get_mut(..length).filter(|message| message.len() > 4) {
        let crc = crc32c(&message[4..]);
        message[..4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn message(bytes: &[u8]) {
    match envelope::open(bytes) {
        Err(code) => assert_eq!(code, Code::MessageMalformed),
        Ok(envelope) => read(&envelope, bytes),
    }
}

/// Everything that anybody reads of a message.
fn read(envelope: &Envelope<'_>, bytes: &[u8]) {
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
    let tail = [
        parts.exchange,
        parts.routing_key,
        parts.properties,
        parts.headers,
        parts.payload,
    ];
    let inside = bytes.as_ptr_range();
    for part in tail {
        let part = part.as_ptr_range();
        let is_inside = inside.start <= part.start && part.end <= inside.end;
        assert!(
            part.is_empty() || is_inside,
            "a part lies outside its message"
        );
    }
    let tail: usize = tail.iter().map(|part| part.len()).sum();
    assert!(tail + ENVELOPE_BYTES <= bytes.len());
    assert_eq!(
        envelope.address().len(),
        parts.exchange.len() + parts.routing_key.len()
    );
    assert!(parts.payload.len() <= envelope.payload_bytes());
    let is_right = envelope.check_crc().is_ok();
    assert!(!is_right || envelope.is_whole());
    headers(parts.headers);
    if !envelope.is_whole() {
        return;
    }
    // Written again, it says the same.
    let mut again = Vec::new();
    parts
        .write(&mut again)
        .expect("what was read is within limits");
    let again = &again[..parts.length()];
    let copy = envelope::open(again).expect("what was written can be read");
    assert_eq!(copy.check_crc(), Ok(()));
    assert_eq!(copy.address(), envelope.address());
    assert_eq!(copy.payload(), parts.payload);
    assert_eq!(copy.headers(), parts.headers);
    assert_eq!(copy.timestamp_us(), parts.timestamp_us);
}

/// The messages of a batch: none overlaps another, and an error ends it.
pub fn batch(bytes: &[u8]) {
    let mut messages = Messages::new(bytes);
    let mut taken = 0;
    while let Some(message) = messages.next() {
        let Ok(message) = message else {
            assert!(messages.next().is_none(), "an error ends a batch");
            return;
        };
        read(&message.envelope, message.bytes);
        taken += message.bytes.len();
        assert_eq!(taken + messages.rest().len(), bytes.len());
    }
    assert_eq!(taken, bytes.len());
}

/// A table, entry by entry, and written again.
pub fn headers(bytes: &[u8]) {
    let Ok(table) = Table::parse(bytes) else {
        return;
    };
    let mut again = Vec::new();
    copy_table(&table, &mut again, 1);
    let copy = Table::parse(&again).expect("what was written can be read");
    // Not a number is the same as nothing, itself included.
    let mut is_comparable = true;
    numbers(&table, &mut is_comparable);
    if is_comparable {
        assert!(table.is_same(&copy) && copy.is_same(&table));
    }
    for (key, _) in table.entries() {
        assert!(table.get(key).is_some());
    }
}

fn copy_table(table: &Table<'_>, out: &mut Vec<u8>, depth: usize) {
    assert!(depth <= HEADERS_DEPTH_MAX && table.entries().count() <= HEADERS_COUNT_MAX);
    let mut writer = TableWriter::new(out);
    let mut inner = Vec::new();
    for (key, value) in table.entries() {
        inner.clear();
        match copy_value(&value, &mut inner, depth) {
            Copied::Itself => writer.put(key, value),
            Copied::Table => {
                let table = Table::parse(&inner).expect("it was just written");
                writer.put(key, Value::Table(table))
            }
            Copied::Array => {
                let array = ringpost_wire::table::Array::parse(&inner).expect("just written");
                writer.put(key, Value::Array(array))
            }
        };
    }
    writer.finish().expect("a copy is within the same limits");
}

enum Copied {
    Itself,
    Table,
    Array,
}

fn copy_value(value: &Value<'_>, out: &mut Vec<u8>, depth: usize) -> Copied {
    match value {
        Value::Table(table) => {
            copy_table(table, out, depth + 1);
            Copied::Table
        }
        Value::Array(array) => {
            assert!(depth < HEADERS_DEPTH_MAX && array.values().count() <= HEADERS_COUNT_MAX);
            let mut writer = ArrayWriter::new(out);
            let mut inner = Vec::new();
            for value in array.values() {
                inner.clear();
                match copy_value(&value, &mut inner, depth + 1) {
                    Copied::Itself => writer.put(value),
                    Copied::Table => {
                        let table = Table::parse(&inner).expect("it was just written");
                        writer.put(Value::Table(table))
                    }
                    Copied::Array => {
                        let array =
                            ringpost_wire::table::Array::parse(&inner).expect("just written");
                        writer.put(Value::Array(array))
                    }
                };
            }
            writer.finish().expect("a copy is within the same limits");
            Copied::Array
        }
        _ => Copied::Itself,
    }
}

/// Whether every floating-point number in a table equals itself.
fn numbers(table: &Table<'_>, all: &mut bool) {
    for (_, value) in table.entries() {
        numbers_in(&value, all);
    }
}

fn numbers_in(value: &Value<'_>, all: &mut bool) {
    match value {
        Value::Table(table) => numbers(table, all),
        Value::Array(array) => array.values().for_each(|value| numbers_in(&value, all)),
        _ => *all &= value.as_float().is_none_or(|number| !number.is_nan()),
    }
}
