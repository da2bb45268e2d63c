//! The file of `ringpost export` and `apply`: TOML that says line and key of what is wrong with it.
//! Does not know brokers.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ringpost_client::{AppliesTo, ExchangeKind, HeaderValue, Headers};
use serde::Deserialize;
use toml::{Spanned, Value};

use crate::cli::{Failure, policy};

/// Arguments by name.
pub type Arguments = BTreeMap<String, Argument>;

/// An argument.
#[derive(Clone, PartialEq, Debug)]
pub enum Argument {
    Flag(bool),
    Number(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Timestamp(u64),
    Void,
}

impl Argument {
    fn of(value: &HeaderValue<'_>) -> Option<Self> {
        Some(match value {
            HeaderValue::Bool(flag) => Self::Flag(*flag),
            HeaderValue::Integer(number) => Self::Number(*number),
            HeaderValue::Float(number) => Self::Float(*number),
            HeaderValue::Text(text) => Self::Text(text.clone().into_owned()),
            HeaderValue::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
            HeaderValue::Timestamp(seconds) => Self::Timestamp(*seconds),
            HeaderValue::Void => Self::Void,
            _ => return None,
        })
    }

    /// As it travels.
    pub fn as_header(&self) -> HeaderValue<'_> {
        match self {
            Self::Flag(flag) => HeaderValue::Bool(*flag),
            Self::Number(number) => HeaderValue::Integer(*number),
            Self::Float(number) => HeaderValue::Float(*number),
            Self::Text(text) => HeaderValue::from(text.as_str()),
            Self::Bytes(bytes) => HeaderValue::Bytes(bytes),
            Self::Timestamp(seconds) => HeaderValue::Timestamp(*seconds),
            Self::Void => HeaderValue::Void,
        }
    }

    /// What TOML has no type for is a table with one key.
    fn from_toml(value: &Value) -> Result<Self, String> {
        let table = match value {
            Value::Boolean(flag) => return Ok(Self::Flag(*flag)),
            Value::Integer(number) => return Ok(Self::Number(*number)),
            Value::Float(number) => return Ok(Self::Float(*number)),
            Value::String(text) => return Ok(Self::Text(text.clone())),
            Value::Table(table) => table,
            Value::Array(_) | Value::Datetime(_) => return Err(FORMS.to_owned()),
        };
        let mut entries = table.iter();
        match (entries.next(), entries.next()) {
            (Some((key, Value::String(text))), None) if key == "bytes" => {
                let bytes = BASE64.decode(text);
                let bytes = bytes.map_err(|error| format!("bytes are no base64: {error}"))?;
                Ok(Self::Bytes(bytes))
            }
            (Some((key, Value::Integer(seconds))), None) if key == "timestamp" => {
                let seconds = u64::try_from(*seconds);
                let seconds = seconds.map_err(|_| "a timestamp is not below 0".to_owned())?;
                Ok(Self::Timestamp(seconds))
            }
            (Some((key, Value::Boolean(true))), None) if key == "void" => Ok(Self::Void),
            _ => Err(FORMS.to_owned()),
        }
    }

    fn to_toml(&self) -> String {
        match self {
            Self::Flag(flag) => flag.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Float(number) => Value::Float(*number).to_string(),
            Self::Text(text) => quoted(text),
            Self::Bytes(bytes) => format!("{{ bytes = {} }}", quoted(&BASE64.encode(bytes))),
            Self::Timestamp(seconds) => format!("{{ timestamp = {seconds} }}"),
            Self::Void => "{ void = true }".to_owned(),
        }
    }
}

const FORMS: &str = "an argument is a number, a text, true or false, { bytes = \"base64\" }, \
                     { timestamp = seconds } or { void = true }";

/// Arguments that a broker has.
///
/// # Errors
/// One of them has no form in a file.
pub fn arguments_of(what: &str, headers: &Headers) -> Result<Arguments, Failure> {
    let read = |(name, value): (std::borrow::Cow<'_, str>, HeaderValue<'_>)| {
        let argument = Argument::of(&value).ok_or_else(|| {
            let text = format!("{what} has an argument {name} that is an array or a table, which a file cannot have");
            Failure::failed(text)
        })?;
        Ok((name.into_owned(), argument))
    };
    headers.iter().map(read).collect()
}

/// An exchange.
#[derive(Clone, PartialEq, Debug)]
pub struct Exchange {
    pub kind: ExchangeKind,
    pub is_volatile: bool,
    pub arguments: Arguments,
}

/// A queue.
#[derive(Clone, PartialEq, Debug)]
pub struct Queue {
    pub is_volatile: bool,
    pub messages_max: u64,
    pub bytes_max: u64,
    pub arguments: Arguments,
}

/// A policy.
#[derive(Clone, PartialEq, Debug)]
pub struct PolicyText {
    pub applies_to: AppliesTo,
    pub pattern: String,
    pub priority: i32,
    pub options: Arguments,
}

/// What a binding is known by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BindingKey {
    pub exchange: String,
    pub is_to_exchange: bool,
    pub target: String,
    pub key: String,
    /// As [`inline`] writes them.
    pub arguments: String,
}

impl fmt::Display for BindingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = if self.is_to_exchange { "exchange " } else { "" };
        let (exchange, target, key) = (&self.exchange, &self.target, &self.key);
        write!(f, "from {exchange} to {to}{target} with key \"{key}\"")?;
        match self.arguments.as_str() {
            "" => Ok(()),
            arguments => write!(f, " and {arguments}"),
        }
    }
}

/// A setting, what it is, and what was asked for.
type Difference = (String, String, String);

fn word(is_volatile: bool) -> String {
    if is_volatile { "volatile" } else { "durable" }.to_owned()
}

fn first_difference(
    settings: Vec<Difference>,
    one: &Arguments,
    other: &Arguments,
) -> Option<Difference> {
    let differs = settings.into_iter().find(|(_, is, asked)| is != asked);
    let shown = |value: Option<&Argument>| value.map_or("nothing".into(), Argument::to_toml);
    differs.or_else(|| {
        let names = one.keys().chain(other.keys());
        let name = names
            .into_iter()
            .find(|name| one.get(*name) != other.get(*name))?;
        let setting = format!("argument {name}");
        Some((setting, shown(one.get(name)), shown(other.get(name))))
    })
}

impl Exchange {
    /// What of it the other one has otherwise.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let settings = vec![
            (
                "kind".into(),
                kind_word(self.kind).into(),
                kind_word(other.kind).into(),
            ),
            (
                "durability".into(),
                word(self.is_volatile),
                word(other.is_volatile),
            ),
        ];
        first_difference(settings, &self.arguments, &other.arguments)
    }
}

impl Queue {
    /// What of it the other one has otherwise.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let number =
            |name: &str, is: u64, asked: u64| (name.into(), is.to_string(), asked.to_string());
        let settings = vec![
            (
                "durability".into(),
                word(self.is_volatile),
                word(other.is_volatile),
            ),
            number("messages_max", self.messages_max, other.messages_max),
            number("bytes_max", self.bytes_max, other.bytes_max),
        ];
        first_difference(settings, &self.arguments, &other.arguments)
    }
}

const KINDS: [(&str, ExchangeKind); 7] = [
    ("direct", ExchangeKind::Direct),
    ("fanout", ExchangeKind::Fanout),
    ("topic", ExchangeKind::Topic),
    ("headers", ExchangeKind::Headers),
    ("consistent-hash", ExchangeKind::ConsistentHash),
    ("random", ExchangeKind::Random),
    ("filter", ExchangeKind::Filter),
];

fn kind_word(kind: ExchangeKind) -> &'static str {
    let found = KINDS.iter().find(|(_, known)| *known == kind);
    found.map_or("unknown", |(word, _)| word)
}

/// The topology of a tenant.
#[derive(Clone, Default, Debug)]
pub struct Definitions {
    pub exchanges: BTreeMap<String, Exchange>,
    pub queues: BTreeMap<String, Queue>,
    pub bindings: BTreeMap<BindingKey, Arguments>,
    pub policies: BTreeMap<String, PolicyText>,
    /// Where each stands in the file, by kind and name.
    places: BTreeMap<(String, String), String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: Option<Spanned<i64>>,
    #[serde(default)]
    exchanges: BTreeMap<Spanned<String>, ExchangeEntry>,
    #[serde(default)]
    queues: BTreeMap<Spanned<String>, QueueEntry>,
    #[serde(default)]
    bindings: Vec<Spanned<BindingEntry>>,
    #[serde(default)]
    policies: BTreeMap<Spanned<String>, PolicyEntry>,
}

type Entries = BTreeMap<String, Spanned<Value>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExchangeEntry {
    kind: Spanned<String>,
    #[serde(default)]
    volatile: bool,
    #[serde(default)]
    arguments: Entries,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueEntry {
    #[serde(default)]
    volatile: bool,
    #[serde(default)]
    messages_max: u64,
    #[serde(default)]
    bytes_max: u64,
    #[serde(default)]
    arguments: Entries,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BindingEntry {
    exchange: String,
    queue: Option<String>,
    to_exchange: Option<String>,
    #[serde(default)]
    key: String,
    #[serde(default)]
    arguments: Entries,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyEntry {
    pattern: String,
    apply_to: Option<Spanned<String>>,
    #[serde(default)]
    priority: i32,
    options: Entries,
}

/// The file that is read.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, at: usize, key: &str) -> String {
        let line = self.text[..at].matches('\n').count() + 1;
        format!("{}:{line}: {key}", self.name)
    }

    fn wrong<T>(&self, spanned: &Spanned<T>, key: &str, what: &str) -> Failure {
        let place = self.place(spanned.span().start, key);
        Failure::usage(format!("{place}: {what}"))
    }

    fn arguments(&self, key: &str, entries: &Entries) -> Result<Arguments, Failure> {
        let read = |(name, value): (&String, &Spanned<Value>)| {
            let argument = Argument::from_toml(value.get_ref());
            let key = format!("{key}.{}", bare(name));
            let argument = argument.map_err(|what| self.wrong(value, &key, &what))?;
            Ok((name.clone(), argument))
        };
        entries.iter().map(read).collect()
    }
}

impl Definitions {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong, with its line and key.
    pub fn read(name: &str, text: &str) -> Result<Self, Failure> {
        let source = Source { name, text };
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text[..at].matches('\n').count() + 1;
            let line_text = text.lines().nth(line - 1).unwrap_or_default().trim();
            let message = error.message().replace('\n', "; ");
            Failure::usage(format!("{name}:{line}: {message}, at: {line_text}"))
        })?;
        if let Some(format) = &file.format
            && *format.get_ref() != 1
        {
            let what = "this version reads format 1";
            return Err(source.wrong(format, "format", what));
        }
        let mut all = Self::default();
        for (name, entry) in file.exchanges {
            let key = format!("exchanges.{}", bare(name.get_ref()));
            let kind = KINDS.iter().find(|(word, _)| word == entry.kind.get_ref());
            let Some((_, kind)) = kind else {
                let words = KINDS.map(|(word, _)| word).join(", ");
                let what = format!("{} is not one of {words}", quoted(entry.kind.get_ref()));
                return Err(source.wrong(&entry.kind, &format!("{key}.kind"), &what));
            };
            let arguments = source.arguments(&format!("{key}.arguments"), &entry.arguments)?;
            let exchange = Exchange {
                kind: *kind,
                is_volatile: entry.volatile,
                arguments,
            };
            all.note(&source, "exchanges", &name);
            all.exchanges.insert(name.into_inner(), exchange);
        }
        for (name, entry) in file.queues {
            let key = format!("queues.{}", bare(name.get_ref()));
            let arguments = source.arguments(&format!("{key}.arguments"), &entry.arguments)?;
            let queue = Queue {
                is_volatile: entry.volatile,
                messages_max: entry.messages_max,
                bytes_max: entry.bytes_max,
                arguments,
            };
            all.note(&source, "queues", &name);
            all.queues.insert(name.into_inner(), queue);
        }
        for (number, spanned) in file.bindings.into_iter().enumerate() {
            let key = format!("bindings[{number}]");
            let place = source.place(spanned.span().start, &key);
            let entry = spanned.get_ref();
            let (is_to_exchange, target) = match (&entry.queue, &entry.to_exchange) {
                (Some(queue), None) => (false, queue),
                (None, Some(exchange)) => (true, exchange),
                _ => {
                    let what = "a binding leads to a queue or, with to_exchange, to an exchange";
                    return Err(source.wrong(&spanned, &key, what));
                }
            };
            let arguments = source.arguments(&format!("{key}.arguments"), &entry.arguments)?;
            let binding = BindingKey {
                exchange: entry.exchange.clone(),
                is_to_exchange,
                target: target.clone(),
                key: entry.key.clone(),
                arguments: inline(&arguments),
            };
            let noted = ("bindings".to_owned(), binding.to_string());
            all.places.insert(noted, place);
            if all.bindings.insert(binding, arguments).is_some() {
                return Err(source.wrong(&spanned, &key, "the same binding is there twice"));
            }
        }
        for (name, entry) in file.policies {
            let key = format!("policies.{}", bare(name.get_ref()));
            let word = entry
                .apply_to
                .as_ref()
                .map_or("queues", |word| word.get_ref());
            let all_words = [AppliesTo::Queues, AppliesTo::Exchanges, AppliesTo::All];
            let applies_to = all_words.into_iter().find(|to| policy::word(*to) == word);
            let Some(applies_to) = applies_to else {
                let what = format!("{} is not one of queues, exchanges, all", quoted(word));
                let at = entry.apply_to.as_ref().expect("the default is one of them");
                return Err(source.wrong(at, &format!("{key}.apply_to"), &what));
            };
            let policy = PolicyText {
                applies_to,
                pattern: entry.pattern,
                priority: entry.priority,
                options: source.arguments(&format!("{key}.options"), &entry.options)?,
            };
            all.note(&source, "policies", &name);
            all.policies.insert(name.into_inner(), policy);
        }
        Ok(all)
    }

    fn note(&mut self, source: &Source<'_>, what: &str, name: &Spanned<String>) {
        let key = format!("{what}.{}", bare(name.get_ref()));
        let place = source.place(name.span().start, &key);
        let noted = (what.to_owned(), name.get_ref().clone());
        self.places.insert(noted, place);
    }

    /// Where something stands in the file: name of the file, line and key.
    pub fn place(&self, what: &str, name: &str) -> String {
        let noted = (what.to_owned(), name.to_owned());
        let place = self.places.get(&noted).cloned();
        place.unwrap_or_else(|| format!("{what}.{}", bare(name)))
    }

    /// The file. Equal definitions give equal texts.
    pub fn to_text(&self) -> String {
        let mut out = String::from(
            "# Definitions of a Ringpost tenant: `ringpost apply` reads them.\nformat = 1\n",
        );
        let mut put = |line: String| {
            out.push_str(&line);
            out.push('\n');
        };
        for (name, exchange) in &self.exchanges {
            put(format!("\n[exchanges.{}]", bare(name)));
            put(format!("kind = {}", quoted(kind_word(exchange.kind))));
            if exchange.is_volatile {
                put("volatile = true".into());
            }
            put_table(&mut put, "arguments", &exchange.arguments);
        }
        for (name, queue) in &self.queues {
            put(format!("\n[queues.{}]", bare(name)));
            if queue.is_volatile {
                put("volatile = true".into());
            }
            for (key, limit) in [
                ("messages_max", queue.messages_max),
                ("bytes_max", queue.bytes_max),
            ] {
                if limit > 0 {
                    put(format!("{key} = {limit}"));
                }
            }
            put_table(&mut put, "arguments", &queue.arguments);
        }
        for (binding, arguments) in &self.bindings {
            put("\n[[bindings]]".into());
            put(format!("exchange = {}", quoted(&binding.exchange)));
            let key = if binding.is_to_exchange {
                "to_exchange"
            } else {
                "queue"
            };
            put(format!("{key} = {}", quoted(&binding.target)));
            if !binding.key.is_empty() {
                put(format!("key = {}", quoted(&binding.key)));
            }
            put_table(&mut put, "arguments", arguments);
        }
        for (name, policy) in &self.policies {
            put(format!("\n[policies.{}]", bare(name)));
            put(format!("pattern = {}", quoted(&policy.pattern)));
            put(format!(
                "apply_to = {}",
                quoted(policy::word(policy.applies_to))
            ));
            if policy.priority != 0 {
                put(format!("priority = {}", policy.priority));
            }
            put_table(&mut put, "options", &policy.options);
        }
        out
    }
}

fn put_table(put: &mut impl FnMut(String), key: &str, arguments: &Arguments) {
    if !arguments.is_empty() {
        put(format!("{key} = {}", inline(arguments)));
    }
}

/// Arguments as an inline table, nothing if there are none.
pub fn inline(arguments: &Arguments) -> String {
    if arguments.is_empty() {
        return String::new();
    }
    let mut text = String::from("{ ");
    for (at, (name, value)) in arguments.iter().enumerate() {
        let comma = if at > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{} = {}", bare(name), value.to_toml()); // to a String
    }
    text + " }"
}

/// The arguments that [`inline`] wrote.
pub fn arguments_from(text: &str) -> Result<Arguments, Failure> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        arguments: BTreeMap<String, Value>,
    }
    let line = match text {
        "" => String::new(),
        text => format!("arguments = {text}"),
    };
    let unread =
        |error: String| Failure::failed(format!("arguments {text} cannot be read: {error}"));
    let line: Line = toml::from_str(&line).map_err(|error| unread(error.to_string()))?;
    let read = |(name, value): (String, Value)| {
        let argument = Argument::from_toml(&value).map_err(&unread)?;
        Ok((name, argument))
    };
    line.arguments.into_iter().map(read).collect()
}

/// A text as TOML has it: always on one line, whatever is in it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c)); // to a String
            }
            c => out.push(c),
        }
    }
    out + "\""
}

/// A key as TOML has it.
fn bare(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !name.is_empty() && name.chars().all(is_bare) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "# Definitions of a Ringpost tenant: `ringpost apply` reads them.
format = 1

[exchanges.shop]
kind = \"topic\"
volatile = true
arguments = { x-alternate-exchange = \"rest\", x-internal = true }

[queues.orders]
messages_max = 10
bytes_max = 4096
arguments = { owner = \"me \\\"and\\\" you\", raw = { bytes = \"/w==\" }, since = { timestamp = 9 }, x-message-ttl = 1000 }

[queues.\"or.ders\\u007F\"]
volatile = true

[[bindings]]
exchange = \"shop\"
to_exchange = \"rest\"

[[bindings]]
exchange = \"shop\"
queue = \"orders\"
key = \"a\\tb\\\\\"
arguments = { \"a b\" = { void = true }, half = 0.5 }

[policies.limits]
pattern = \"^orders\"
apply_to = \"all\"
priority = -3
options = { x-max-length = 5 }
";

    #[test]
    fn a_file_says_what_was_written() {
        let read = Definitions::read("f", WHOLE).expect("a sound file");
        let text = read.to_text();
        // Bindings come in the order of their ends.
        let again = Definitions::read("f", &text).expect("just written");
        assert_eq!(again.to_text(), text);
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(Into::into).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&text), lines(WHOLE));
        for (key, arguments) in &read.bindings {
            let found = arguments_from(&key.arguments).expect("just written");
            assert_eq!(found, *arguments);
        }
        assert_eq!(read.place("queues", "orders"), "f:9: queues.orders");
        assert_eq!(read.place("policies", "limits"), "f:27: policies.limits");
    }

    #[test]
    fn what_is_wrong_is_said_with_line_and_key() {
        for (text, expected) in [
            ("a = 1", "f:1: unknown field `a`, expected one of `format`"),
            ("format = 2", "f:1: format: this version reads format 1"),
            (
                "\n[queues.a]\nmesages_max = 1",
                "f:3: unknown field `mesages_max`",
            ),
            ("[queues.a]\n[queues.a]\n", "f:2: duplicate key"),
            ("[queues.a]\nmessages_max = -1", "f:2: "),
            (
                "[exchanges.x]\n\nkind = \"topics\"",
                "f:3: exchanges.x.kind: \"topics\" is not one of direct, fanout, topic, ",
            ),
            (
                "[queues.\"a b\"]\narguments = { x = [1] }",
                "f:2: queues.\"a b\".arguments.x: an argument is a number, ",
            ),
            (
                "[queues.a.arguments]\n# raw\nraw = { bytes = \"?\" }",
                "f:3: queues.a.arguments.raw: bytes are no base64: ",
            ),
            (
                "[[bindings]]\nexchange = \"x\"",
                "f:1: bindings[0]: a binding leads to a queue or, ",
            ),
            (
                "[[bindings]]\nexchange = \"x\"\nqueue = \"q\"\n[[bindings]]\nqueue = \"q\"\nexchange = \"x\"",
                "f:4: bindings[1]: the same binding is there twice",
            ),
            (
                "[policies.p]\npattern = \"a\"\napply_to = \"queue\"\noptions = {}",
                "f:3: policies.p.apply_to: \"queue\" is not one of queues, exchanges, all",
            ),
            (
                "[policies.p]\npattern = \"a\"",
                "f:1: missing field `options`",
            ),
        ] {
            let failure = Definitions::read("f", text).expect_err("it is wrong");
            assert!(
                failure.sentence.starts_with(expected),
                "{}",
                failure.sentence
            );
        }
    }
}
