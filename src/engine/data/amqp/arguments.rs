//! The tables of arguments in AMQP's names, as native ones: which are mapped, which mean nothing here.
//! docs/amqp.md has the same as a table. Does not know what a setting does.

use ringpost_wire::Table;
use ringpost_wire::control::{Durability, ExchangeKind};
use ringpost_wire::table::{TableWriter, Value};

/// Highest priority that queues tell apart.
const PRIORITY_MAX: i64 = 31;
/// Priorities of consumers that the broker knows.
const CONSUMER_PRIORITY: (i64, i64) = (-10, 10);

/// Settings of queues that mean the same here, or are this broker's own.
const QUEUE: [&[u8]; 17] = [
    b"x-expires",
    b"x-dead-letter-exchange",
    b"x-dead-letter-routing-key",
    b"x-single-active-consumer",
    b"x-retry",
    b"x-retry-delay",
    b"x-retry-delay-max",
    b"x-retry-jitter",
    b"x-priority-turn",
    b"x-dispatch",
    b"x-sticky-header",
    b"x-message-groups",
    b"x-group-ahead",
    b"x-consumer-hold-max",
    b"x-message-ttl",
    b"x-delivery-limit",
    b"x-max-priority",
];
/// Settings of streams that do.
const STREAM: [&[u8]; 3] = [b"x-expires", b"x-stream-lanes", b"x-stream-lane-header"];
/// Settings of consumers that do.
const CONSUMER: [&[u8]; 7] = [
    b"x-weight",
    b"x-stream-offset",
    b"x-stream-group",
    b"x-stream-filter",
    b"x-stream-filter-body",
    b"x-stream-rate",
    b"x-stream-speed",
];

/// What a queue is declared with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueArguments {
    pub(super) messages_max: u64,
    pub(super) bytes_max: u64,
    pub(super) durability: Durability,
    pub(super) arguments: Vec<u8>,
}

fn parse(arguments: &[u8]) -> Result<Table<'_>, String> {
    Table::parse(arguments).map_err(|_| "arguments are no field table within its limits".to_owned())
}

fn finish(writer: TableWriter<'_>) -> Result<(), String> {
    let finished = writer.finish();
    finished.map_err(|_| "arguments are over the limits of a field table".to_owned())
}

/// A limit of a declaration's own field.
fn limit(table: &Table<'_>, name: &str) -> Result<Option<u64>, String> {
    let Some(value) = table.get(name.as_bytes()) else {
        return Ok(None);
    };
    let number = value.as_integer();
    let number = number.and_then(|number| u64::try_from(number).ok());
    let number = number.ok_or_else(|| format!("invalid arg '{name}': it is no whole number"))?;
    Ok(Some(number))
}

/// The settings of a queue.
pub(super) fn queue(
    durable: bool,
    exclusive: bool,
    auto_delete: bool,
    arguments: &[u8],
) -> Result<QueueArguments, String> {
    let table = parse(arguments)?;
    let kind = match table.get(b"x-queue-type") {
        None | Some(Value::Void) => &b"classic"[..],
        Some(value) => value.as_text().ok_or("invalid arg 'x-queue-type'")?,
    };
    let is_stream = kind == b"stream";
    match kind {
        b"classic" => {}
        b"quorum" | b"stream" if !durable || exclusive => {
            let kind = String::from_utf8_lossy(kind);
            return Err(format!("a {kind} queue is durable and not exclusive"));
        }
        b"quorum" | b"stream" => {}
        other => {
            let other = String::from_utf8_lossy(other);
            return Err(format!("invalid arg 'x-queue-type': '{other}'"));
        }
    }
    // 0 means that nothing is kept; what is nearest to that keeps one.
    let messages_max = limit(&table, "x-max-length")?.map_or(0, |most| most.max(1));
    let bytes_max = limit(&table, "x-max-length-bytes")?.map_or(0, |most| most.max(1));
    let mut out = Vec::new();
    let mut writer = TableWriter::new(&mut out);
    let known: &[&[u8]] = if is_stream { &STREAM } else { &QUEUE };
    let mut seen: Vec<&[u8]> = Vec::new();
    for (name, value) in table.entries() {
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        let is_own = !name.starts_with(b"x-");
        if !is_own && !known.contains(&name) {
            continue;
        }
        let value = match (name, value.as_integer()) {
            // Whatever waits has waited for 0 ms.
            (b"x-message-ttl", Some(0)) => Value::I64(1),
            (b"x-max-priority", Some(0)) => continue,
            (b"x-max-priority", Some(most)) if most > PRIORITY_MAX => Value::I64(PRIORITY_MAX),
            // No limit.
            (b"x-delivery-limit", Some(most)) if most < 0 => continue,
            _ => value,
        };
        writer.put(name, value);
    }
    if is_stream {
        writer.put(b"x-queue-type", Value::Text(kind));
        if let Some(age) = table.get(b"x-max-age") {
            writer.put(b"x-max-age", Value::I64(age_ms(&age)?));
        }
    } else if messages_max > 0 || bytes_max > 0 {
        // The oldest go unless the publisher is to be refused; natively it is the other way round.
        let word = match table.get(b"x-overflow").and_then(|word| word.as_text()) {
            None | Some(b"drop-head") => &b"drop-head"[..],
            Some(b"reject-publish" | b"reject-publish-dlx") => b"reject-publish",
            Some(b"block") => b"block",
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                return Err(format!("invalid arg 'x-overflow': '{other}'"));
            }
        };
        writer.put(b"x-overflow", Value::Text(word));
    }
    if auto_delete {
        writer.put(b"x-auto-delete", Value::Bool(true));
    }
    if exclusive {
        writer.put(b"x-exclusive", Value::Bool(true));
    }
    finish(writer)?;
    // What goes with its connection is not on disk, whatever was asked for.
    let durability = match durable && !exclusive {
        true => Durability::Durable,
        false => Durability::Volatile,
    };
    Ok(QueueArguments {
        messages_max,
        bytes_max,
        durability,
        arguments: out,
    })
}

/// An age as streams have it: a number with a unit, or one of milliseconds.
fn age_ms(age: &Value<'_>) -> Result<i64, String> {
    if let Some(ms) = age.as_integer() {
        return Ok(ms);
    }
    let text = age
        .as_text()
        .and_then(|text| core::str::from_utf8(text).ok());
    let wrong = "invalid arg 'x-max-age': it is no number with one of Y, M, D, h, m, s";
    let text = text.ok_or(wrong)?;
    let unit = text.chars().last().ok_or(wrong)?;
    let seconds = match unit {
        'Y' => 365 * 86_400,
        'M' => 30 * 86_400,
        'D' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong.to_owned()),
    };
    let number: i64 = text[..text.len() - 1].parse().map_err(|_| wrong)?;
    let ms = number.checked_mul(seconds * 1_000);
    ms.ok_or_else(|| wrong.to_owned())
}

/// Kind and arguments of an exchange.
pub(super) fn exchange(
    kind: &[u8],
    auto_delete: bool,
    internal: bool,
    arguments: &[u8],
) -> Result<(ExchangeKind, Vec<u8>), String> {
    let table = parse(arguments)?;
    // A delay is a matter of queues here.
    let kind = match (kind, table.get(b"x-delayed-type")) {
        (b"x-delayed-message", Some(Value::Text(inner))) => inner,
        (b"x-delayed-message", _) => b"direct",
        (kind, _) => kind,
    };
    let found = match kind {
        b"direct" => ExchangeKind::Direct,
        b"fanout" => ExchangeKind::Fanout,
        b"topic" => ExchangeKind::Topic,
        b"headers" => ExchangeKind::Headers,
        b"x-consistent-hash" | b"consistent-hash" => ExchangeKind::ConsistentHash,
        b"x-random" | b"random" => ExchangeKind::Random,
        b"filter" => ExchangeKind::Filter,
        other => {
            let other = String::from_utf8_lossy(other);
            return Err(format!("unknown exchange type '{other}'"));
        }
    };
    let mut out = Vec::new();
    let mut writer = TableWriter::new(&mut out);
    for (name, value) in table.entries() {
        match name {
            b"alternate-exchange" => {
                writer.put(b"x-alternate-exchange", value);
            }
            b"hash-header" if found == ExchangeKind::ConsistentHash => {
                writer.put(b"x-hash-header", value);
            }
            b"hash-property" if found == ExchangeKind::ConsistentHash => {
                writer.put(b"x-hash-property", value);
            }
            name if name.starts_with(b"x-") => {}
            name => {
                writer.put(name, value);
            }
        }
    }
    if auto_delete {
        writer.put(b"x-auto-delete", Value::Bool(true));
    }
    if internal {
        writer.put(b"x-internal", Value::Bool(true));
    }
    finish(writer)?;
    Ok((found, out))
}

/// The settings of a consumer.
pub(super) fn consumer(arguments: &[u8]) -> Result<Vec<u8>, String> {
    let table = parse(arguments)?;
    let mut out = Vec::new();
    let mut writer = TableWriter::new(&mut out);
    for (name, value) in table.entries() {
        if name == b"x-priority" {
            let number = value.as_integer();
            let number = number.ok_or("invalid arg 'x-priority': it is no whole number")?;
            let (least, most) = CONSUMER_PRIORITY;
            writer.put(name, Value::I64(number.clamp(least, most)));
        } else if !name.starts_with(b"x-") || CONSUMER.contains(&name) {
            writer.put(name, value);
        }
    }
    finish(writer)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        bytes
    }

    #[test]
    fn settings_of_queues_are_mapped() {
        let asked = table(&[
            ("x-max-length", Value::I8(7)),
            ("x-message-ttl", Value::I32(0)),
            ("x-max-priority", Value::U8(255)),
            ("x-queue-type", Value::Text(b"quorum")),
            ("x-queue-mode", Value::Text(b"lazy")),
            ("x-delivery-limit", Value::I32(-1)),
            ("x-nobody-knows", Value::Void),
            ("mine", Value::Text(b"kept")),
        ]);
        let expected = table(&[
            ("x-message-ttl", Value::I64(1)),
            ("x-max-priority", Value::I64(31)),
            ("mine", Value::Text(b"kept")),
            ("x-overflow", Value::Text(b"drop-head")),
        ]);
        assert_eq!(
            queue(true, false, false, &asked),
            Ok(QueueArguments {
                messages_max: 7,
                bytes_max: 0,
                durability: Durability::Durable,
                arguments: expected,
            })
        );
        let exclusive = queue(true, true, true, b"").expect("it is fit");
        assert_eq!(exclusive.durability, Durability::Volatile);
        let flags = [
            ("x-auto-delete", Value::Bool(true)),
            ("x-exclusive", Value::Bool(true)),
        ];
        assert_eq!(exclusive.arguments, table(&flags));
        let asked = table(&[
            ("x-queue-type", Value::Text(b"stream")),
            ("x-max-age", Value::Text(b"7D")),
            ("x-stream-max-segment-size-bytes", Value::I32(1)),
        ]);
        let expected = table(&[
            ("x-queue-type", Value::Text(b"stream")),
            ("x-max-age", Value::I64(604_800_000)),
        ]);
        let stream = queue(true, false, false, &asked).expect("it is fit");
        assert_eq!(stream.arguments, expected);
        for (name, value) in [
            ("x-queue-type", Value::Text(b"other")),
            ("x-queue-type", Value::I8(1)),
            ("x-max-length", Value::I8(-1)),
            ("x-max-length-bytes", Value::Text(b"1")),
        ] {
            let asked = table(&[(name, value)]);
            assert!(queue(true, false, false, &asked).is_err(), "{name}");
        }
        let asked = table(&[("x-queue-type", Value::Text(b"quorum"))]);
        assert!(queue(false, false, false, &asked).is_err(), "not durable");
        for age in ["", "7", "D", "7X", "-"] {
            assert!(age_ms(&Value::Text(age.as_bytes())).is_err(), "{age}");
        }
    }

    #[test]
    fn exchanges_and_consumers_are_mapped() {
        let asked = table(&[
            ("alternate-exchange", Value::Text(b"spare")),
            ("x-delayed-type", Value::Text(b"topic")),
            ("mine", Value::I8(1)),
        ]);
        let expected = table(&[
            ("x-alternate-exchange", Value::Text(b"spare")),
            ("mine", Value::I8(1)),
            ("x-internal", Value::Bool(true)),
        ]);
        assert_eq!(
            exchange(b"x-delayed-message", false, true, &asked),
            Ok((ExchangeKind::Topic, expected))
        );
        assert!(exchange(b"x-other", false, false, b"").is_err());
        let asked = table(&[
            ("x-priority", Value::I32(1_000)),
            ("x-cancel-on-ha-failover", Value::Bool(true)),
            ("x-stream-offset", Value::Text(b"first")),
        ]);
        let expected = table(&[
            ("x-priority", Value::I64(10)),
            ("x-stream-offset", Value::Text(b"first")),
        ]);
        assert_eq!(consumer(&asked), Ok(expected));
    }
}
