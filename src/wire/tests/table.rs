//! Field tables: what is written is read, what is damaged is refused or harmless, limits hold.

use ringpost_wire::Code;
use ringpost_wire::limits::{HEADERS_BYTES_MAX, HEADERS_COUNT_MAX, HEADERS_DEPTH_MAX};
use ringpost_wire::table::{Array, ArrayWriter, Table, TableWriter, Value};

/// A small deterministic generator (xorshift64*): the same seed, the same tables.
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

    fn bytes(&mut self, below: u64) -> Vec<u8> {
        let count = self.below(below);
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// A value that owns what it holds: the model that the reader is compared with.
#[derive(Clone, Debug)]
enum Owned {
    Plain(Value<'static>),
    Text(Vec<u8>),
    Bytes(Vec<u8>),
    Array(Vec<Owned>),
    Table(Vec<(Vec<u8>, Owned)>),
}

fn any_value(random: &mut Random, depth: u64) -> Owned {
    let bits = random.next();
    Owned::Plain(match random.below(if depth > 1 { 17 } else { 15 }) {
        0 => Value::Bool(bits & 1 == 1),
        1 => Value::I8(bits as i8),
        2 => Value::U8(bits as u8),
        3 => Value::I16(bits as i16),
        4 => Value::U16(bits as u16),
        5 => Value::I32(bits as i32),
        6 => Value::U32(bits as u32),
        7 => Value::I64(bits as i64),
        8 => Value::F32(bits as u16 as f32 / 3.0),
        9 => Value::F64(bits as u32 as f64 / 3.0),
        10 => Value::Decimal {
            scale: bits as u8,
            value: (bits >> 8) as u32,
        },
        11 => Value::Timestamp(bits),
        12 => Value::Void,
        13 => return Owned::Text(random.bytes(20)),
        14 => return Owned::Bytes(random.bytes(20)),
        15 => {
            let count = random.below(4);
            return Owned::Array((0..count).map(|_| any_value(random, depth - 1)).collect());
        }
        _ => return Owned::Table(any_table(random, depth - 1)),
    })
}

fn any_table(random: &mut Random, depth: u64) -> Vec<(Vec<u8>, Owned)> {
    let count = random.below(5);
    (0..count)
        .map(|_| (random.bytes(9), any_value(random, depth)))
        .collect()
}

impl Owned {
    fn put(&self, put: &mut dyn FnMut(Value<'_>)) {
        match self {
            Owned::Plain(value) => put(*value),
            Owned::Text(bytes) => put(Value::Text(bytes)),
            Owned::Bytes(bytes) => put(Value::Bytes(bytes)),
            Owned::Array(values) => {
                let mut bytes = Vec::new();
                let mut writer = ArrayWriter::new(&mut bytes);
                for value in values {
                    value.put(&mut |value| {
                        writer.put(value);
                    });
                }
                writer.finish().expect("within limits");
                put(Value::Array(Array::parse(&bytes).expect("just written")));
            }
            Owned::Table(entries) => {
                let bytes = written(entries);
                put(Value::Table(Table::parse(&bytes).expect("just written")));
            }
        }
    }

    fn assert_read(&self, read: Value<'_>) {
        match (self, read) {
            (Owned::Plain(value), read) => assert_eq!(*value, read),
            (Owned::Text(bytes), Value::Text(read)) => assert_eq!(bytes, read),
            (Owned::Bytes(bytes), Value::Bytes(read)) => assert_eq!(bytes, read),
            (Owned::Array(values), Value::Array(read)) => {
                assert_eq!(values.len(), read.values().count());
                for (value, read) in values.iter().zip(read.values()) {
                    value.assert_read(read);
                }
            }
            (Owned::Table(entries), Value::Table(read)) => assert_entries(entries, read),
            (owned, read) => panic!("wrote {owned:?}, read {read:?}"),
        }
    }
}

fn assert_entries(entries: &[(Vec<u8>, Owned)], table: Table<'_>) {
    assert_eq!(entries.len(), table.entries().count());
    for ((key, value), (read_key, read)) in entries.iter().zip(table.entries()) {
        assert_eq!(key, read_key);
        value.assert_read(read);
    }
}

fn written(entries: &[(Vec<u8>, Owned)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (key, value) in entries {
        value.put(&mut |value| {
            writer.put(key, value);
        });
    }
    writer.finish().expect("within limits");
    bytes
}

/// Reads everything; returns how many values there are.
fn walk(table: Table<'_>) -> usize {
    fn value(read: Value<'_>) -> usize {
        assert!(read.is_same(&read) || has_nan(read));
        1 + match read {
            Value::Table(table) => walk(table),
            Value::Array(array) => array.values().map(value).sum(),
            _ => 0,
        }
    }
    let read: Vec<_> = table.entries().collect();
    // The entries account for every byte: written again they take as many.
    let mut again = Vec::new();
    let mut writer = TableWriter::new(&mut again);
    for (key, read) in &read {
        writer.put(key, *read);
    }
    writer.finish().expect("it was within limits before");
    assert_eq!(again.len(), table.as_bytes().len());
    read.into_iter().map(|(_, read)| value(read)).sum()
}

fn has_nan(read: Value<'_>) -> bool {
    match read {
        Value::Table(table) => table.entries().any(|(_, read)| has_nan(read)),
        Value::Array(array) => array.values().any(has_nan),
        read => read.as_float().is_some_and(f64::is_nan),
    }
}

#[test]
fn what_is_written_is_read() {
    let mut random = Random(0x5eed);
    for _ in 0..2_000 {
        let entries = any_table(&mut random, 5);
        let bytes = written(&entries);
        let table = Table::parse(&bytes).expect("just written");
        assert_entries(&entries, table);
        assert!(table.is_same(&table));
        for (key, _) in &entries {
            let first = entries.iter().find(|(name, _)| name == key);
            let (_, value) = first.expect("it is there");
            value.assert_read(table.get(key).expect("it is there"));
        }
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused_or_harmless() {
    let mut random = Random(0xcafe);
    for _ in 0..200 {
        let bytes = written(&any_table(&mut random, 4));
        for len in 0..bytes.len() {
            if let Ok(table) = Table::parse(&bytes[..len]) {
                // Only a cut between two outermost entries is a table.
                let whole = Table::parse(&bytes).expect("just written");
                let kept = table.entries().count();
                let both = whole.entries().zip(table.entries()).take(kept);
                assert!(both.into_iter().all(|(a, b)| a.0 == b.0));
                walk(table);
            }
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(table) = Table::parse(&bad) {
                walk(table);
            }
        }
    }
}

#[test]
fn random_bytes_are_refused_or_harmless() {
    let mut random = Random(0xbad);
    let kinds = b"tbBsuIilfdDSATFVx";
    for _ in 0..100_000 {
        let mut bytes = random.bytes(60);
        for byte in &mut bytes {
            // Mostly small lengths and known types, so that damage lies deep.
            *byte = match random.below(4) {
                0 => kinds[random.below(kinds.len() as u64) as usize],
                1 => *byte,
                _ => *byte & 3,
            };
        }
        if let Ok(table) = Table::parse(&bytes) {
            walk(table);
        }
        if let Ok(array) = Array::parse(&bytes) {
            array.values().for_each(|value| {
                if let Value::Table(table) = value {
                    walk(table);
                }
            });
        }
    }
}

//= P-65
#[test]
fn the_bytes_are_those_of_amqp() {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    writer
        .put(b"t", Value::Bool(true))
        .put(b"l", Value::I64(-2))
        .put(b"u", Value::U16(258))
        .put(
            b"D",
            Value::Decimal {
                scale: 2,
                value: 314,
            },
        )
        .put(b"S", Value::Text(b"ab"))
        .put(b"V", Value::Void);
    writer.finish().expect("within limits");
    let expected = b"\x01tt\x01\x01ll\xff\xff\xff\xff\xff\xff\xff\xfe\x01uu\x01\x02\
        \x01DD\x02\x00\x00\x01\x3a\x01SS\x00\x00\x00\x02ab\x01VV";
    assert_eq!(bytes, expected);
}

#[test]
fn integers_are_the_same_at_any_width() {
    let sevens = [
        Value::I8(7),
        Value::U8(7),
        Value::I16(7),
        Value::U16(7),
        Value::I32(7),
        Value::U32(7),
        Value::I64(7),
    ];
    for left in sevens {
        for right in sevens {
            assert!(left.is_same(&right), "{left:?} {right:?}");
        }
        assert!(!left.is_same(&Value::I64(8)));
        assert!(!left.is_same(&Value::F64(7.0)));
        assert!(!left.is_same(&Value::Timestamp(7)));
        assert!(!left.is_same(&Value::Text(b"7")));
    }
    assert!(Value::F32(0.5).is_same(&Value::F64(0.5)));
    assert!(!Value::U32(u32::MAX).is_same(&Value::I32(-1)));
    assert!(!Value::Text(b"a").is_same(&Value::Bytes(b"a")));
    assert!(Value::Void.is_same(&Value::Void));
    let narrow = written(&[(b"n".to_vec(), Owned::Plain(Value::I8(1)))]);
    let wide = written(&[(b"n".to_vec(), Owned::Plain(Value::I64(1)))]);
    let narrow = Table::parse(&narrow).expect("just written");
    let wide = Table::parse(&wide).expect("just written");
    assert!(Value::Table(narrow).is_same(&Value::Table(wide)));
    assert!(!narrow.is_same(&Table::default()));
}

#[test]
fn limits_hold_at_one_less_at_and_one_more() {
    for count in [
        HEADERS_COUNT_MAX - 1,
        HEADERS_COUNT_MAX,
        HEADERS_COUNT_MAX + 1,
    ] {
        let mut bytes = vec![0xee];
        let mut writer = TableWriter::new(&mut bytes);
        for _ in 0..count {
            writer.put(b"", Value::Void);
        }
        assert_eq!(writer.finish().is_ok(), count <= HEADERS_COUNT_MAX);
        assert_eq!(bytes.len() == 1, count > HEADERS_COUNT_MAX);
    }
    for depth in [
        HEADERS_DEPTH_MAX - 1,
        HEADERS_DEPTH_MAX,
        HEADERS_DEPTH_MAX + 1,
    ] {
        // Inside the outermost table, arrays and tables in turn; an entry of a table has a key.
        let mut inner = Vec::new();
        for level in (1..depth).rev() {
            let kind = if level % 2 == 1 { b'A' } else { b'F' };
            let is_in_table = level % 2 == 1;
            let mut bytes = if is_in_table { vec![0] } else { Vec::new() };
            bytes.push(kind);
            bytes.extend_from_slice(&(inner.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&inner);
            inner = bytes;
        }
        let parsed = Table::parse(&inner);
        assert_eq!(parsed.is_ok(), depth <= HEADERS_DEPTH_MAX, "depth {depth}");
    }
    for text in [
        HEADERS_BYTES_MAX - 8,
        HEADERS_BYTES_MAX - 7,
        HEADERS_BYTES_MAX - 6,
    ] {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        let text = vec![b'a'; text];
        writer.put(b"k", Value::Text(&text));
        assert_eq!(writer.finish().is_ok(), text.len() + 7 <= HEADERS_BYTES_MAX);
    }
    for key in [254, 255, 256] {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        writer.put(&vec![b'k'; key], Value::Void);
        assert_eq!(writer.finish().is_ok(), key <= 255);
    }
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    let mut bytes = Vec::new();
    while bytes.len() < HEADERS_BYTES_MAX - 10 {
        let mut outer = vec![b'A'];
        outer.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    assert_eq!(Array::parse(&bytes), Err(Code::SettingInvalid));
}
