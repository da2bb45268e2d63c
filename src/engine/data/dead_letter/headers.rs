//! What the headers of a dead letter say of its deaths: `x-death`, `x-first-death-…` and
//! `x-last-death-…` as RabbitMQ writes them. Does not know queues.

use ringpost_wire::table::{Array, ArrayWriter, Table, TableWriter, Value};
use ringpost_wire::{Code, HEADERS_BYTES_MAX};

const DEATHS: &[u8] = b"x-death";
const FIRST: [&[u8]; 3] = [
    b"x-first-death-exchange",
    b"x-first-death-queue",
    b"x-first-death-reason",
];
const LAST: [&[u8]; 3] = [
    b"x-last-death-exchange",
    b"x-last-death-queue",
    b"x-last-death-reason",
];
/// Entries of `x-death` that are kept; the oldest fall out.
const DEATHS_MAX: usize = 32;

/// One death of a message.
#[derive(Clone, Copy, Debug)]
pub struct DeathNote<'a> {
    /// The queue in which it died.
    pub queue: &'a [u8],
    /// Why.
    pub reason: &'a [u8],
    /// The exchange that it had been published to.
    pub exchange: &'a [u8],
    /// With which routing key.
    pub routing_key: &'a [u8],
    /// When it died: seconds since 1970.
    pub time_s: u64,
    /// Its own time to live, in ms; 0 = none.
    pub ttl_ms: u32,
}

impl DeathNote<'_> {
    fn is_of(&self, entry: &Table<'_>) -> bool {
        entry.get(b"queue").and_then(|v| v.as_text()) == Some(self.queue)
            && entry.get(b"reason").and_then(|v| v.as_text()) == Some(self.reason)
    }
}

/// The deaths that headers tell of, the last one first; none where they are not as they should be.
pub fn deaths<'a>(headers: &'a [u8]) -> impl Iterator<Item = Table<'a>> {
    let table = Table::parse(headers).unwrap_or_default();
    let array = match table.get(DEATHS) {
        Some(Value::Array(array)) => Some(array),
        _ => None,
    };
    let values = array.map(|array| array.values());
    values
        .into_iter()
        .flatten()
        .filter_map(|value| match value {
            Value::Table(table) => Some(table),
            _ => None,
        })
}

/// Whether headers tell of deaths of which the broker knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// The broker has written them.
    Told,
    /// It has not died before: what they say is its publisher's, and left out.
    Claimed,
}

/// Writes `headers` without what they say of deaths.
///
/// # Errors
/// [`Code::SettingInvalid`] if they are no field table.
pub fn without_deaths(headers: &[u8], out: &mut Vec<u8>) -> Result<(), Code> {
    let table = Table::parse(headers).map_err(|_| Code::SettingInvalid)?;
    out.clear();
    let mut writer = TableWriter::new(out);
    for (name, value) in table.entries().filter(|(name, _)| !is_ours(name)) {
        writer.put(name, value);
    }
    writer.finish()
}

fn is_ours(name: &[u8]) -> bool {
    name == DEATHS || LAST.contains(&name) || FIRST.contains(&name)
}

/// Writes `headers` with one more death. One for the same reason in the same queue is counted and put
/// first; where there is no room for all, the oldest are left out.
///
/// # Errors
/// [`Code::SettingInvalid`] if there is no room even for this one, or the headers are no field table.
pub fn with_death(
    headers: &[u8],
    before: Before,
    note: &DeathNote<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Code> {
    let mut bare = Vec::new();
    let headers = match before {
        Before::Told => headers,
        Before::Claimed => {
            without_deaths(headers, &mut bare)?;
            &bare
        }
    };
    let table = Table::parse(headers).map_err(|_| Code::SettingInvalid)?;
    let mut kept = DEATHS_MAX;
    loop {
        out.clear();
        if write(&table, headers, note, kept, out).is_ok() && out.len() <= HEADERS_BYTES_MAX {
            return Ok(());
        }
        if kept == 1 {
            return Err(Code::SettingInvalid);
        }
        kept /= 2;
    }
}

fn write(
    table: &Table<'_>,
    headers: &[u8],
    note: &DeathNote<'_>,
    kept: usize,
    out: &mut Vec<u8>,
) -> Result<(), Code> {
    let before = deaths(headers).find(|entry| note.is_of(entry));
    let count = before.and_then(|entry| entry.get(b"count")?.as_integer());
    let mut keys = Vec::new();
    let mut writer = ArrayWriter::new(&mut keys);
    writer.put(Value::Text(note.routing_key));
    writer.finish()?;
    let mut entry = Vec::new();
    let mut writer = TableWriter::new(&mut entry);
    writer
        .put(b"count", Value::I64(count.unwrap_or(0).saturating_add(1)))
        .put(b"reason", Value::Text(note.reason))
        .put(b"queue", Value::Text(note.queue))
        .put(b"time", Value::Timestamp(note.time_s))
        .put(b"exchange", Value::Text(note.exchange))
        .put(b"routing-keys", Value::Array(Array::parse(&keys)?));
    let ttl = note.ttl_ms.to_string();
    if note.ttl_ms > 0 {
        writer.put(b"original-expiration", Value::Text(ttl.as_bytes()));
    }
    writer.finish()?;
    let mut all = Vec::new();
    let mut writer = ArrayWriter::new(&mut all);
    writer.put(Value::Table(Table::parse(&entry)?));
    for other in deaths(headers)
        .filter(|entry| !note.is_of(entry))
        .take(kept - 1)
    {
        writer.put(Value::Table(other));
    }
    writer.finish()?;
    let is_first = deaths(headers).next().is_none();
    let mut writer = TableWriter::new(out);
    for (name, value) in table.entries() {
        let is_ours = name == DEATHS || LAST.contains(&name) || (is_first && FIRST.contains(&name));
        if !is_ours {
            writer.put(name, value);
        }
    }
    writer.put(DEATHS, Value::Array(Array::parse(&all)?));
    let values = [note.exchange, note.queue, note.reason];
    if is_first {
        for (name, value) in FIRST.into_iter().zip(values) {
            writer.put(name, Value::Text(value));
        }
    }
    for (name, value) in LAST.into_iter().zip(values) {
        writer.put(name, Value::Text(value));
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: DeathNote<'_> = DeathNote {
        queue: b"orders",
        reason: b"rejected",
        exchange: b"shop",
        routing_key: b"order.7",
        time_s: 1_700_000_000,
        ttl_ms: 0,
    };

    fn table(entries: &[(&[u8], Value<'_>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name, *value);
        }
        writer.finish().expect("a small table");
        bytes
    }

    fn text(headers: &[u8], name: &[u8]) -> Option<Vec<u8>> {
        let table = Table::parse(headers).expect("a table");
        Some(table.get(name)?.as_text()?.to_vec())
    }

    #[test]
    fn deaths_are_counted_and_the_last_is_first() {
        let mut headers = table(&[(b"id", Value::I32(7)), (b"x-death", Value::I8(1))]);
        let expiry = DeathNote {
            queue: b"later",
            reason: b"expired",
            ttl_ms: 250,
            ..NOTE
        };
        let mut out = Vec::new();
        for note in [NOTE, expiry, NOTE] {
            let before = match deaths(&headers).next() {
                None => Before::Claimed,
                Some(_) => Before::Told,
            };
            with_death(&headers, before, &note, &mut out).expect("there is room");
            headers.clone_from(&out);
        }
        let told: Vec<_> = deaths(&headers)
            .map(|entry| {
                let queue = entry.get(b"queue").and_then(|v| v.as_text()).expect("text");
                let count = entry.get(b"count").and_then(|v| v.as_integer());
                (queue.to_vec(), count)
            })
            .collect();
        assert_eq!(
            told,
            [(b"orders".to_vec(), Some(2)), (b"later".to_vec(), Some(1))]
        );
        let last = deaths(&headers).nth(1).expect("two deaths");
        let ttl = last.get(b"original-expiration").and_then(|v| v.as_text());
        assert_eq!(ttl, Some(&b"250"[..]));
        let Some(Value::Array(keys)) = last.get(b"routing-keys") else {
            panic!("keys are an array")
        };
        assert_eq!(keys.values().next(), Some(Value::Text(b"order.7")));
        assert_eq!(
            text(&headers, b"x-first-death-queue"),
            Some(b"orders".to_vec())
        );
        assert_eq!(
            text(&headers, b"x-last-death-reason"),
            Some(b"rejected".to_vec())
        );
        let parsed = Table::parse(&headers).expect("a table");
        assert_eq!(parsed.get(b"id"), Some(Value::I32(7)));
        let names: Vec<_> = parsed.entries().map(|(name, _)| name.to_vec()).collect();
        let mut once = names.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), names.len(), "no name is there twice");
    }

    #[test]
    fn what_a_publisher_says_of_deaths_is_left_out() {
        let mut forged = Vec::new();
        with_death(&[], Before::Claimed, &NOTE, &mut forged).expect("there is room");
        let expiry = DeathNote {
            queue: b"later",
            reason: b"expired",
            ..NOTE
        };
        let mut out = Vec::new();
        with_death(&forged, Before::Claimed, &expiry, &mut out).expect("there is room");
        assert_eq!(deaths(&out).count(), 1);
        for name in [&b"x-first-death-queue"[..], b"x-last-death-queue"] {
            assert_eq!(text(&out, name), Some(b"later".to_vec()));
        }
        without_deaths(&forged, &mut out).expect("a table");
        assert_eq!(Table::parse(&out).expect("a table").entries().count(), 0);
    }

    #[test]
    fn what_has_no_room_is_left_out_and_then_refused() {
        let mut headers = Vec::new();
        let mut out = Vec::new();
        for number in 0..40 {
            let queue = format!("queue-{number}");
            let note = DeathNote {
                queue: queue.as_bytes(),
                ..NOTE
            };
            with_death(&headers, Before::Told, &note, &mut out).expect("there is room");
            headers.clone_from(&out);
        }
        assert_eq!(deaths(&headers).count(), DEATHS_MAX);
        let free = HEADERS_BYTES_MAX - 1_200;
        let filler = vec![b'x'; free];
        let big = table(&[(b"filler", Value::Text(&filler))]);
        for number in 0..9 {
            let queue = format!("queue-{number}");
            let note = DeathNote {
                queue: queue.as_bytes(),
                ..NOTE
            };
            let before = if number == 0 {
                big.clone()
            } else {
                out.clone()
            };
            with_death(&before, Before::Told, &note, &mut out).expect("the oldest make room");
        }
        assert!((1..9).contains(&deaths(&out).count()));
        let filler = vec![b'x'; HEADERS_BYTES_MAX - 20];
        let full = table(&[(b"filler", Value::Text(&filler))]);
        assert_eq!(
            with_death(&full, Before::Claimed, &NOTE, &mut out),
            Err(Code::SettingInvalid)
        );
        assert_eq!(
            with_death(b"\xff", Before::Claimed, &NOTE, &mut out),
            Err(Code::SettingInvalid)
        );
    }
}
