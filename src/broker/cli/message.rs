//! Messages on the command line: lines, whole files and JSON in, lines and JSON out. Does not talk
//! to a broker.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use ringpost_client::{DeliveryRef, HeaderValue, Headers, Message};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Failure;

/// How input becomes messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InputForm {
    /// Each line is a payload.
    Lines,
    /// Each line is a JSON object as `sub --json` prints it.
    Json,
    /// Each file is a payload.
    Whole,
}

/// A message as one line of JSON: what is printed and published again is the same message. A key or a
/// payload that is no UTF-8 is in `key_hex` or `payload_hex` instead.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    headers: serde_json::Map<String, Value>,
    /// The encoded headers, if `headers` does not say all of them; then it is only for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    headers_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    properties_hex: Option<String>,
    /// Microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    /// How long queues keep it back; not said of what was delivered.
    #[serde(default, skip_serializing)]
    delay_ms: Option<u64>,
    /// Said by the broker; ignored when published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exchange: Option<String>,
    /// As `exchange`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue_sequence: Option<u64>,
    /// As `exchange`: of a stream of several lanes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lane: Option<u32>,
    /// As `exchange`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delivery_count: Option<u32>,
    /// As `exchange`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redelivered: Option<bool>,
}

/// Reads the messages of `files`, standard input if there are none or for `-`, and gives each to
/// `take` until that says no. Blocks.
///
/// # Errors
/// A file cannot be read, a line is longer than `bytes_max` or is no message.
pub fn read_all(
    files: &[PathBuf],
    form: InputForm,
    key: &str,
    bytes_max: u64,
    mut take: impl FnMut(Message) -> bool,
) -> Result<(), Failure> {
    let standard_input = [PathBuf::from("-")];
    let files = if files.is_empty() {
        &standard_input[..]
    } else {
        files
    };
    for path in files {
        let unreadable =
            |error: io::Error| Failure::failed(format!("cannot read {}: {error}", path.display()));
        let source: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(path).map_err(unreadable)?)
        };
        let mut source = BufReader::with_capacity(256 << 10, source);
        if form == InputForm::Whole {
            let mut payload = Vec::new();
            source
                .take(bytes_max + 1)
                .read_to_end(&mut payload)
                .map_err(unreadable)?;
            if payload.len() as u64 > bytes_max {
                return Err(too_long(&path.display().to_string(), bytes_max));
            }
            if !take(Message::new(key.to_owned(), payload)) {
                return Ok(());
            }
            continue;
        }
        for number in 1_u64.. {
            let place = || format!("line {number} of {}", path.display());
            let mut line = Vec::new();
            let mut limited = (&mut source).take(bytes_max + 2);
            if limited.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
                break;
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if line.len() as u64 > bytes_max {
                return Err(too_long(&place(), bytes_max));
            }
            let message = match form {
                InputForm::Json => message_of(&line, key)
                    .map_err(|why| Failure::usage(format!("{} is no message: {why}", place())))?,
                InputForm::Lines | InputForm::Whole => Message::new(key.to_owned(), line),
            };
            if !take(message) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn too_long(what: &str, bytes_max: u64) -> Failure {
    Failure::failed(format!(
        "{what} has more than {bytes_max} bytes, the largest message this broker takes; split it, \
         or raise `message_bytes_max`"
    ))
}

/// What the parser says of a line, which is always the first that it sees.
fn json_text(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{what}, at column {}", error.column()),
        None => text,
    }
}

/// The message of a line of JSON; without a key of its own it gets `key`.
fn message_of(line: &[u8], key: &str) -> Result<Message, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| json_text(&error))?;
    let payload = text_or_hex("payload", line.payload, line.payload_hex)?.unwrap_or_default();
    let own = text_or_hex("key", line.key, line.key_hex)?;
    let mut message = Message::new(own.unwrap_or_else(|| key.into()), payload);
    let headers = match line.headers_hex {
        None => headers_of(&line.headers)?,
        Some(hex) => {
            let bytes = from_hex(&hex).ok_or("headers_hex is no hexadecimal text")?;
            Headers::from_encoded(bytes).map_err(|_| "headers_hex holds no headers")?
        }
    };
    if !headers.is_empty() {
        message = message.headers(headers);
    }
    if let Some(hex) = line.properties_hex {
        let properties = from_hex(&hex).ok_or("properties_hex is no hexadecimal text")?;
        message = message.properties(properties);
    }
    if let Some(us) = line.timestamp_us {
        let time = UNIX_EPOCH.checked_add(Duration::from_micros(us));
        message = message.timestamp(time.ok_or("timestamp_us is no time")?);
    }
    if let Some(priority) = line.priority {
        message = message.priority(priority);
    }
    if let Some(ms) = line.ttl_ms {
        message = message.ttl(Duration::from_millis(ms));
    }
    if let Some(ms) = line.delay_ms {
        message = message.delay(delay_of(ms)?);
    }
    Ok(message)
}

/// A delay that a broker can keep.
fn delay_of(ms: u64) -> Result<Duration, String> {
    match u32::try_from(ms) {
        Ok(ms) => Ok(Duration::from_millis(ms.into())),
        Err(_) => Err(format!("delay_ms is {ms}, more than {}", u32::MAX)),
    }
}

/// The bytes of a member that is a text, or hexadecimal under another name.
fn text_or_hex(
    name: &str,
    text: Option<String>,
    hex: Option<String>,
) -> Result<Option<Vec<u8>>, String> {
    match (text, hex) {
        (text, None) => Ok(text.map(String::into_bytes)),
        (None, Some(hex)) => match from_hex(&hex) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(format!("{name}_hex is no hexadecimal text")),
        },
        (Some(_), Some(_)) => Err(format!("it has both {name} and {name}_hex")),
    }
}

/// The headers of a JSON object.
fn headers_of(object: &serde_json::Map<String, Value>) -> Result<Headers, String> {
    let mut headers = Headers::new();
    for (name, value) in object {
        headers = match value {
            Value::String(text) => headers.with(name, text.as_str()),
            Value::Bool(switch) => headers.with(name, *switch),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => headers.with(name, number),
                // A whole number that is too large would not be the same as this.
                (None, Some(number)) if !value.is_u64() => headers.with(name, number),
                (None, _) => return Err(format!("the header {name} is beyond 64 bits")),
            },
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return Err(format!(
                    "the header {name} is no text, number or truth value"
                ));
            }
        };
    }
    Ok(headers)
}

/// Where received messages go.
pub struct Printer {
    output: BufWriter<Box<dyn Write>>,
    is_json: bool,
}

impl Printer {
    /// Prints to the file at `path`, appending, or to standard output.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: Option<&Path>, is_json: bool) -> Result<Self, Failure> {
        let output: Box<dyn Write> = match path {
            None => Box::new(io::stdout()),
            Some(path) => {
                let file = File::options().append(true).create(true).open(path);
                Box::new(file.map_err(|error| {
                    Failure::failed(format!("cannot write to {}: {error}", path.display()))
                })?)
            }
        };
        Ok(Printer {
            output: BufWriter::with_capacity(256 << 10, output),
            is_json,
        })
    }

    /// Prints one message; it may still be in memory until [`flush`](Self::flush).
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn print(&mut self, delivery: &DeliveryRef<'_>) -> Result<(), Failure> {
        if self.is_json {
            serde_json::to_writer(&mut self.output, &line_of(delivery)).map_err(io::Error::from)?;
        } else {
            self.output.write_all(delivery.payload())?;
        }
        self.output.write_all(b"\n")?;
        Ok(())
    }

    /// Hands everything printed to the system: what is acked afterwards is not lost with us.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.output.flush()?)
    }
}

fn line_of(delivery: &DeliveryRef<'_>) -> Line {
    let (key, key_hex) = as_text_or_hex(delivery.routing_key_bytes());
    let (payload, payload_hex) = as_text_or_hex(delivery.payload());
    let table = delivery.headers();
    let headers = json_of_headers(&table);
    // A name may be there twice, and not every value has a form in JSON.
    let is_all =
        headers.len() == table.iter().count() && table.iter().all(|(_, value)| is_said(&value));
    let timestamp = delivery.timestamp();
    let since_1970 = timestamp.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Line {
        key,
        key_hex,
        payload,
        payload_hex,
        headers,
        headers_hex: (!is_all).then(|| to_hex(delivery.headers_encoded())),
        properties_hex: Some(delivery.properties())
            .filter(|properties| !properties.is_empty())
            .map(to_hex),
        timestamp_us: since_1970.and_then(|since| u64::try_from(since.as_micros()).ok()),
        priority: Some(delivery.priority()).filter(|priority| *priority > 0),
        ttl_ms: delivery
            .ttl()
            .map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        delay_ms: None,
        exchange: Some(delivery.exchange().into_owned()),
        queue_sequence: Some(delivery.queue_sequence()),
        lane: delivery.lane(),
        delivery_count: Some(delivery.delivery_count()),
        redelivered: Some(delivery.is_redelivered()),
    }
}

/// Bytes as text if they are some, else in hexadecimal.
pub fn as_text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(to_hex(bytes))),
    }
}

/// Headers as a JSON object.
pub fn json_of_headers(headers: &Headers) -> serde_json::Map<String, Value> {
    let headers = headers.iter();
    let headers = headers.map(|(name, value)| (name.into_owned(), json_of(&value)));
    headers.collect()
}

/// A header as JSON; what JSON has no form for becomes text.
fn json_of(value: &HeaderValue<'_>) -> Value {
    match value {
        HeaderValue::Text(text) => Value::from(text.as_ref()),
        HeaderValue::Integer(number) => Value::from(*number),
        HeaderValue::Bool(switch) => Value::from(*switch),
        HeaderValue::Float(number) => Value::from(*number),
        HeaderValue::Timestamp(seconds) => Value::from(*seconds),
        HeaderValue::Void => Value::Null,
        HeaderValue::Array(array) => array.iter().map(|value| json_of(&value)).collect(),
        HeaderValue::Table(table) => {
            let entries = table.iter();
            let entries = entries.map(|(name, value)| (name.into_owned(), json_of(&value)));
            Value::Object(entries.collect())
        }
        other => Value::from(format!("{other:?}")),
    }
}

/// Whether [`json_of`] says a value so that it can be read again.
fn is_said(value: &HeaderValue<'_>) -> bool {
    match value {
        HeaderValue::Text(_) | HeaderValue::Integer(_) | HeaderValue::Bool(_) => true,
        HeaderValue::Float(number) => number.is_finite(),
        _ => false,
    }
}

/// Bytes in hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|idx| &text[idx..idx + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, form: InputForm, bytes_max: u64) -> Result<Vec<Message>, Failure> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("input");
        std::fs::write(&path, text).expect("writes");
        let mut messages = Vec::new();
        read_all(&[path], form, "k", bytes_max, |message| {
            messages.push(message);
            true
        })?;
        Ok(messages)
    }

    #[test]
    fn lines_are_payloads_and_the_last_needs_no_end() {
        let messages = lines("a\n\nb c", InputForm::Lines, 10).expect("reads");
        let payloads: Vec<&[u8]> = messages
            .iter()
            .map(|message| &message.payload()[..])
            .collect();
        assert_eq!(payloads, [&b"a"[..], b"", b"b c"]);
        assert_eq!(&messages[0].routing_key()[..], b"k");
        let whole = lines("a\n\nb c", InputForm::Whole, 10).expect("reads");
        assert_eq!(&whole[0].payload()[..], b"a\n\nb c");
    }

    #[test]
    fn a_line_may_have_as_many_bytes_as_the_broker_takes_and_no_more() {
        for form in [InputForm::Lines, InputForm::Whole] {
            assert!(lines("123", form, 4).is_ok());
            assert!(lines("1234", form, 4).is_ok());
            let error = lines("12345", form, 4).expect_err("is too long");
            assert!(error.sentence.contains("more than 4 bytes"), "{error:?}");
        }
        assert!(lines("1234\n1234\n", InputForm::Lines, 4).is_ok());
        let error = lines("1234\n12345\n", InputForm::Lines, 4).expect_err("is too long");
        assert!(error.sentence.contains("line 2 of"), "{error:?}");
    }

    #[test]
    fn json_has_a_key_of_its_own_and_refuses_what_it_does_not_know() {
        let text = "{\"key\":\"x\",\"payload\":\"p\",\"headers\":{\"a\":1,\"b\":\"c\"}}\n{\"payload_hex\":\"00ff\"}\n";
        let messages = lines(text, InputForm::Json, 100).expect("reads");
        assert_eq!(&messages[0].routing_key()[..], b"x");
        assert_eq!(&messages[1].routing_key()[..], b"k");
        assert_eq!(&messages[1].payload()[..], [0, 255]);
        for bad in [
            "nonsense",
            "{\"paylod\":\"\"}",
            "{\"payload_hex\":\"0\"}",
            "{\"payload_hex\":\"00\",\"payload\":\"\"}",
            "{\"key_hex\":\"zz\"}",
            "{\"headers_hex\":\"01\"}",
            "{\"properties_hex\":\"1\"}",
            "{\"headers\":{\"a\":18446744073709551615}}",
            "{\"headers\":{\"a\":null}}",
        ] {
            let error = lines(bad, InputForm::Json, 100).expect_err("is no message");
            assert!(error.sentence.contains("line 1 of"), "{error:?}");
        }
        let error = lines("{}\n{]\n", InputForm::Json, 100).expect_err("is no message");
        let sentence = &error.sentence;
        assert!(sentence.contains("line 2 of"), "{sentence}");
        assert!(sentence.ends_with(", at column 2"), "{sentence}");
        assert!(!sentence.contains("line 1"), "{sentence}");
    }

    #[test]
    fn nested_headers_are_shown_as_json() {
        // "a": an array of a table with "t", a time, and of nothing.
        let bytes = b"\x01aA\0\0\0\x11F\0\0\0\x0b\x01tT\0\0\0\0\0\0\0\x09V";
        let headers = Headers::from_encoded(&bytes[..]).expect("a table");
        let json = Value::Object(json_of_headers(&headers));
        assert_eq!(json, serde_json::json!({"a": [{"t": 9}, null]}));
        assert!(headers.iter().all(|(_, value)| !is_said(&value)));
    }

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(
            from_hex(&to_hex(&[0, 1, 254, 255])),
            Some(vec![0, 1, 254, 255])
        );
        for bad in ["0", "0g", "größe"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}
