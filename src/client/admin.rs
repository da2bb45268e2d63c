//! Queues, exchanges, bindings and tenants: what they are made from, what is said of them, and the
//! client's calls that change them. Does not know how requests travel.

use std::time::Duration;

use bytes::Bytes;
use ringpost_wire::control::{
    self, BIND_TO_EXCHANGE, Bind, Body, DECLARE_PASSIVE, DELETE_IF_EMPTY, DELETE_IF_UNUSED, Delete,
    ExchangeDeclare, Named, PARTITION_BY_NAME, QUEUE_DAMAGED, QUEUE_STREAM, QueueDeclare,
};
use ringpost_wire::table::{Table, Value};
use ringpost_wire::{Code, FrameKind};

use crate::connection::{Answer, Reply};
use crate::recent::Recent;
use crate::{ByteSize, Client, Error, ErrorKind, HeaderValue, Headers, Result, Start};

/// Whether a queue or exchange outlives the broker's process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Durability {
    /// Gone after a restart, with everything in it.
    Volatile,
    /// Kept on disk.
    #[default]
    Durable,
}

impl Durability {
    fn to_wire(self) -> u8 {
        match self {
            Self::Volatile => control::Durability::Volatile as u8,
            Self::Durable => control::Durability::Durable as u8,
        }
    }

    fn from_wire(number: u8) -> Result<Self> {
        match control::Durability::from_number(number) {
            Some(control::Durability::Volatile) => Ok(Self::Volatile),
            Some(control::Durability::Durable) => Ok(Self::Durable),
            None => Err(unreadable(Code::BodyMalformed)),
        }
    }
}

/// What a queue is to be.
///
/// ```
/// use ringpost_client::{ByteSize, QueueConfig};
/// let config = QueueConfig::durable().messages_max(1_000_000).bytes_max(ByteSize::mib(512));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct QueueConfig {
    durability: Durability,
    messages_max: u64,
    bytes_max: u64,
    partition: u16,
    arguments: Headers,
}

impl QueueConfig {
    /// A queue whose messages are on disk before they are confirmed or delivered.
    pub fn durable() -> Self {
        Self::new(Durability::Durable)
    }

    /// A queue that lives in memory only.
    pub fn volatile() -> Self {
        Self::new(Durability::Volatile)
    }

    fn new(durability: Durability) -> Self {
        Self {
            durability,
            messages_max: 0,
            bytes_max: 0,
            partition: PARTITION_BY_NAME,
            arguments: Headers::new(),
        }
    }

    /// A stream: its messages stay, however often they are read, until its limits remove them; read it
    /// with [`Client::stream`]. Its `messages_max` and `bytes_max` refuse nothing: the oldest make room.
    pub fn stream() -> Self {
        Self::durable().of_type("stream")
    }

    /// A queue of a type by its word: `classic` or `stream`, as the broker knows them.
    pub fn of_type(self, word: &str) -> Self {
        self.with("x-queue-type", word)
    }

    /// Of a stream: how old a message may become, in whole milliseconds: a second to ten years.
    pub fn max_age(self, age: Duration) -> Self {
        let ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        self.with("x-max-age", ms)
    }

    /// Of a stream: over how many lanes it goes, each on a core of its own if there are enough; 1 to 64,
    /// fixed for ever. A key, which is the routing key, stays in its lane. Limits are those of each lane.
    pub fn lanes(self, lanes: u32) -> Self {
        self.with("x-stream-lanes", lanes)
    }

    /// Of a stream of several lanes: the header that is a message's key instead of its routing key.
    pub fn lane_header(self, header: &str) -> Self {
        self.with("x-stream-lane-header", header)
    }

    /// Most messages, ready or not settled.
    pub fn messages_max(mut self, messages: u64) -> Self {
        self.messages_max = messages;
        self
    }

    /// Most bytes of messages, ready or not settled.
    pub fn bytes_max(mut self, bytes: ByteSize) -> Self {
        self.bytes_max = bytes.bytes();
        self
    }

    /// What happens to a publish that passes a limit; refused unless asked otherwise.
    pub fn overflow(self, overflow: Overflow) -> Self {
        self.with("x-overflow", overflow.word())
    }

    /// How long nobody may use it before it is deleted, in whole milliseconds: at least 1, and 49 days
    /// at most. Consumers use it, and so does declaring it again; publishing does not. A restart of the
    /// broker begins anew.
    pub fn expires(self, unused: Duration) -> Self {
        let ms = i64::try_from(unused.as_millis()).unwrap_or(i64::MAX);
        self.with("x-expires", ms)
    }

    /// Lets it be deleted when its last consumer goes, once it has had one.
    pub fn auto_delete(self) -> Self {
        self.with("x-auto-delete", true)
    }

    /// Lets it belong to this client's main connection: nobody else may use it, and it goes when that
    /// connection does. Only for a volatile queue. Its consumers, and producers near it, use the same
    /// connection.
    pub fn exclusive(self) -> Self {
        self.with("x-exclusive", true)
    }

    /// How long a message may wait to be delivered, in whole milliseconds: at least 1, and 49 days at
    /// most. What a message itself allows holds if it is shorter. It may expire late by a 256th of
    /// that, and then is dead (see [`QueueConfig::dead_letter`]).
    pub fn message_ttl(self, ttl: Duration) -> Self {
        let ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        self.with("x-message-ttl", ms)
    }

    /// How often a message may come back, by being requeued or because its consumer is gone; the next
    /// time it is dead. A crash of the broker may count for one.
    pub fn delivery_limit(self, returns: u32) -> Self {
        self.with("x-delivery-limit", returns)
    }

    /// The exchange that dead messages are published to, with their own routing key: those that were
    /// rejected, have expired, were too many or came back too often. Without one they are dropped.
    pub fn dead_letter(self, exchange: &str) -> Self {
        self.with("x-dead-letter-exchange", exchange)
    }

    /// What becomes of a message that a consumer gives back: it waits before it is offered again.
    pub fn retry(self, retry: Retry) -> Self {
        let ms = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let config = self
            .with("x-retry", retry.word)
            .with("x-retry-delay", ms(retry.delay));
        let config = match retry.delay_max {
            Some(most) => config.with("x-retry-delay-max", ms(most)),
            None => config,
        };
        match retry.jitter_percent {
            0 => config,
            percent => config.with("x-retry-jitter", u32::from(percent)),
        }
    }

    /// Tells priorities from 0 to `highest` apart, at most 31, and delivers the highest first; a message
    /// with a higher one counts as having that. Without this the queue's order alone counts.
    pub fn priorities(self, highest: u8) -> Self {
        self.with("x-max-priority", u32::from(highest))
    }

    /// With [`QueueConfig::priorities`]: after so many messages that have passed older ones of a lower
    /// priority the oldest goes, so that none starves. 0 = never.
    pub fn priority_turn(self, messages: u32) -> Self {
        self.with("x-priority-turn", messages)
    }

    /// The routing key of dead messages, instead of their own.
    pub fn dead_letter_routing_key(self, key: &str) -> Self {
        self.with("x-dead-letter-routing-key", key)
    }

    fn with<'v>(mut self, name: &str, value: impl Into<HeaderValue<'v>>) -> Self {
        self.arguments = self.arguments.with(name, value);
        self
    }

    /// Puts it into a partition, instead of the one that its name hashes to.
    pub fn partition(mut self, partition: u16) -> Self {
        self.partition = partition;
        self
    }

    /// How its messages are shared out among consumers.
    pub fn dispatch(self, dispatch: Dispatch) -> Self {
        self.with("x-dispatch", dispatch.word())
    }

    /// With [`Dispatch::Sticky`]: the header whose value is a message's key, instead of the routing key.
    pub fn sticky_header(self, name: &str) -> Self {
        self.with("x-sticky-header", name)
    }

    /// Keeps each key in order: while a message of a key is unsettled at one consumer, others of the key
    /// go to that consumer only. The key is that of [`Dispatch::Sticky`], which this implies.
    pub fn message_groups(self) -> Self {
        self.with("x-message-groups", true)
    }

    /// With [`Self::message_groups`]: how many messages may wait for their keys before the head of the
    /// queue does, 1 to 1,000,000, 4,096 unless it is said.
    pub fn group_ahead(self, messages: u32) -> Self {
        self.with("x-group-ahead", i64::from(messages))
    }

    /// Lets one consumer at a time get messages: the next takes over when it goes.
    pub fn single_active_consumer(self) -> Self {
        self.with("x-single-active-consumer", true)
    }

    /// How long a consumer may hold a message before it loses it and is closed: a second to a day.
    pub fn consumer_hold_max(self, most: Duration) -> Self {
        let ms = i64::try_from(most.as_millis()).unwrap_or(i64::MAX);
        self.with("x-consumer-hold-max", ms)
    }

    /// Further settings, by name, instead of all that were named before.
    pub fn arguments(mut self, arguments: Headers) -> Self {
        self.arguments = arguments;
        self
    }
}

/// How long a message waits that a consumer has given back, from the first time on. What a consumer
/// leaves behind when it goes does not wait.
///
/// ```
/// use ringpost_client::{QueueConfig, Retry};
/// use std::time::Duration;
/// let retry = Retry::exponential(Duration::from_secs(1))
///     .at_most(Duration::from_secs(600))
///     .jitter(20);
/// let config = QueueConfig::durable().retry(retry).delivery_limit(8);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Retry {
    word: &'static str,
    delay: Duration,
    delay_max: Option<Duration>,
    jitter_percent: u8,
}

impl Retry {
    /// Always so long, in whole milliseconds: at least 1, and a day at most.
    #[must_use]
    pub fn fixed(delay: Duration) -> Self {
        Self::new("fixed", delay)
    }

    /// So long, then twice, three times, ... as long.
    #[must_use]
    pub fn linear(delay: Duration) -> Self {
        Self::new("linear", delay)
    }

    /// So long, then two, four, eight, ... times as long.
    #[must_use]
    pub fn exponential(delay: Duration) -> Self {
        Self::new("exponential", delay)
    }

    fn new(word: &'static str, delay: Duration) -> Self {
        Self {
            word,
            delay,
            delay_max: None,
            jitter_percent: 0,
        }
    }

    /// The longest wait; a day unless asked otherwise.
    #[must_use]
    pub fn at_most(mut self, delay: Duration) -> Self {
        self.delay_max = Some(delay);
        self
    }

    /// By how many percent a wait may be longer or shorter, by chance; 0 to 100.
    #[must_use]
    pub fn jitter(mut self, percent: u8) -> Self {
        self.jitter_percent = percent;
        self
    }
}

/// Which of the consumers with room gets a queue's next messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Dispatch {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, by chance.
    Random,
    /// In proportion to their weights, see [`crate::ConsumerBuilder::weight`].
    Weighted,
    /// The one that holds the fewest.
    LeastOutstanding,
    /// The one that got others with the same key before, unless it is too much for it.
    Sticky,
}

impl Dispatch {
    const fn word(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Weighted => "weighted",
            Self::LeastOutstanding => "least-outstanding",
            Self::Sticky => "sticky",
        }
    }
}

/// What happens to a publish that passes a limit of its queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Overflow {
    /// It is refused; ready messages and those delivered and not settled count.
    Refuse,
    /// The oldest ready messages make room, and are dead; only ready messages count.
    DropHead,
    /// It is taken, and its producer waits for credit until there is room.
    Block,
}

impl Overflow {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Refuse => "reject-publish",
            Self::DropHead => "drop-head",
            Self::Block => "block",
        }
    }
}

/// How an exchange routes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ExchangeKind {
    /// To queues bound with a key equal to the routing key.
    Direct,
    /// To every bound queue.
    Fanout,
    /// By pattern: words between dots, `*` is one word, `#` any number of words.
    Topic,
    /// By headers: all or any of the binding's arguments.
    Headers,
    /// To one of the bound queues, always the same for the same routing key, header or property; the
    /// binding key is the queue's weight.
    ConsistentHash,
    /// To one of the bound queues, by lot; the binding key is the queue's weight.
    Random,
    /// By conditions on headers, properties and fields of JSON bodies: see [`Binding::filter`].
    Filter,
}

impl ExchangeKind {
    fn to_wire(self) -> u8 {
        let kind = match self {
            Self::Direct => control::ExchangeKind::Direct,
            Self::Fanout => control::ExchangeKind::Fanout,
            Self::Topic => control::ExchangeKind::Topic,
            Self::Headers => control::ExchangeKind::Headers,
            Self::ConsistentHash => control::ExchangeKind::ConsistentHash,
            Self::Random => control::ExchangeKind::Random,
            Self::Filter => control::ExchangeKind::Filter,
        };
        kind as u8
    }

    fn from_wire(number: u8) -> Result<Self> {
        match control::ExchangeKind::from_number(number) {
            Some(control::ExchangeKind::Direct) => Ok(Self::Direct),
            Some(control::ExchangeKind::Fanout) => Ok(Self::Fanout),
            Some(control::ExchangeKind::Topic) => Ok(Self::Topic),
            Some(control::ExchangeKind::Headers) => Ok(Self::Headers),
            Some(control::ExchangeKind::ConsistentHash) => Ok(Self::ConsistentHash),
            Some(control::ExchangeKind::Random) => Ok(Self::Random),
            Some(control::ExchangeKind::Filter) => Ok(Self::Filter),
            None => Err(unreadable(Code::BodyMalformed)),
        }
    }
}

/// What an exchange is to be; durable unless asked otherwise.
///
/// ```
/// use ringpost_client::ExchangeConfig;
/// let config = ExchangeConfig::topic().volatile();
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct ExchangeConfig {
    kind: ExchangeKind,
    durability: Durability,
    arguments: Headers,
}

impl ExchangeConfig {
    /// An exchange of a kind that is known when the program runs.
    pub fn new(kind: ExchangeKind) -> Self {
        Self {
            kind,
            durability: Durability::Durable,
            arguments: Headers::new(),
        }
    }

    /// Routes to queues bound with a key equal to the routing key.
    pub fn direct() -> Self {
        Self::new(ExchangeKind::Direct)
    }

    /// Routes to every bound queue.
    pub fn fanout() -> Self {
        Self::new(ExchangeKind::Fanout)
    }

    /// Routes by pattern.
    pub fn topic() -> Self {
        Self::new(ExchangeKind::Topic)
    }

    /// Routes by headers.
    pub fn headers() -> Self {
        Self::new(ExchangeKind::Headers)
    }

    /// Routes each message to one of the bound queues, always the same for the same routing key.
    pub fn consistent_hash() -> Self {
        Self::new(ExchangeKind::ConsistentHash)
    }

    /// Routes each message to one of the bound queues, by lot.
    pub fn random() -> Self {
        Self::new(ExchangeKind::Random)
    }

    /// Routes by conditions.
    pub fn filter() -> Self {
        Self::new(ExchangeKind::Filter)
    }

    /// Of a consistent-hash exchange: hashes a header instead of the routing key.
    pub fn hash_header(self, name: &str) -> Self {
        self.with("x-hash-header", name)
    }

    /// Of a consistent-hash exchange: hashes a property instead of the routing key, for example
    /// `correlation_id`.
    pub fn hash_property(self, word: &str) -> Self {
        self.with("x-hash-property", word)
    }

    fn with<'v>(mut self, name: &str, value: impl Into<HeaderValue<'v>>) -> Self {
        self.arguments = self.arguments.with(name, value);
        self
    }

    /// Gives what nothing matches to another exchange, which need not exist yet.
    pub fn alternate(self, exchange: &str) -> Self {
        self.with("x-alternate-exchange", exchange)
    }

    /// Lets nobody publish to it: it is reached over other exchanges.
    pub fn internal(self) -> Self {
        self.with("x-internal", true)
    }

    /// Lets it be deleted when its last binding goes, once it has had one.
    pub fn auto_delete(self) -> Self {
        self.with("x-auto-delete", true)
    }

    /// Lets it be gone after a restart.
    pub fn volatile(mut self) -> Self {
        self.durability = Durability::Volatile;
        self
    }

    /// Further settings, by name; those set before are replaced.
    pub fn arguments(mut self, arguments: Headers) -> Self {
        self.arguments = arguments;
        self
    }
}

/// What came of asking for something to be there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ensured {
    /// It is there now.
    Created,
    /// It was there already, with the same settings.
    AlreadyExists,
}

/// What came of asking for something to be gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Removed {
    /// It is gone now, and as many messages with it.
    Removed {
        /// Messages dropped.
        messages: u32,
    },
    /// It was not there.
    Absent,
}

/// When something may be deleted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DeleteIf {
    /// In any case.
    #[default]
    Always,
    /// If nothing uses it: no consumer of a queue, no binding of an exchange.
    Unused,
    /// If it holds no message.
    Empty,
    /// If nothing uses it and it holds no message.
    UnusedAndEmpty,
}

impl DeleteIf {
    fn to_wire(self) -> u32 {
        match self {
            Self::Always => 0,
            Self::Unused => DELETE_IF_UNUSED,
            Self::Empty => DELETE_IF_EMPTY,
            Self::UnusedAndEmpty => DELETE_IF_UNUSED | DELETE_IF_EMPTY,
        }
    }
}

/// What a queue is and holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// Whether it outlives the broker's process.
    pub durability: Durability,
    /// Messages ready for delivery.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacked: u64,
    /// Messages that wait for their time: delayed, or to be tried again.
    pub delayed: u64,
    /// Until the first of those is due, rounded up to milliseconds; zero if none waits.
    pub due_in: Duration,
    /// Messages on their way to the dead-letter exchange.
    pub dead: u64,
    /// Bytes of all messages that are here.
    pub bytes: u64,
    /// Messages ever put into it.
    pub published: u64,
    /// Messages acked or rejected.
    pub settled: u64,
    /// Most messages, 0 = no limit.
    pub messages_max: u64,
    /// Most bytes, 0 = no limit.
    pub bytes_max: u64,
    /// Consumers.
    pub consumers: u32,
    /// Its number; never used for another queue.
    pub id: u32,
    /// Partition it is in.
    pub partition: u16,
    /// Core that owns it.
    pub core: u16,
    /// It refuses service because of a damaged range.
    pub is_damaged: bool,
    /// It is a stream: what is ready is what it retains.
    pub is_stream: bool,
    /// Lanes of a stream of several, whose figures are the sums of theirs; 0 of any other queue.
    pub lanes: u32,
    /// What it did lately.
    pub recent: Recent,
}

/// What a group of a stream is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// The lane, of a stream of several: a group has an offset in each.
    pub lane: Option<u32>,
    /// The first message that is not settled; everything before it is.
    pub offset: u64,
    /// Messages from there on that the stream has.
    pub lag: u64,
    /// Consumers, those that stand by included.
    pub members: u32,
}

/// What a queue was declared to be, and what it is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct QueueDescription {
    /// Its name.
    pub name: String,
    /// Whether it outlives the broker's process.
    pub durability: Durability,
    /// Most messages, 0 = no limit, as it was declared.
    pub messages_max: u64,
    /// Most bytes, 0 = no limit, as it was declared.
    pub bytes_max: u64,
    /// Its number; never used for another queue.
    pub id: u32,
    /// Partition it is in.
    pub partition: u16,
    /// Further settings as it was declared with them.
    pub arguments: Headers,
    /// The settings that are in force, and where they come from.
    pub options: Vec<QueueOption>,
}

/// A setting of a queue that is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct QueueOption {
    /// Its name, as that of an argument; limits of the declaration are `x-max-length` and
    /// `x-max-length-bytes`.
    pub name: String,
    /// What it is.
    pub value: OptionValue,
    /// The policy that it comes from; else the declaration.
    pub policy: Option<String>,
}

/// The value of a setting.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OptionValue {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
    /// On or off.
    Flag(bool),
}

impl std::fmt::Display for OptionValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}

impl QueueOption {
    fn read((name, entry): (&[u8], Value<'_>)) -> Result<Self> {
        let malformed = || unreadable(Code::BodyMalformed);
        let Value::Table(entry) = entry else {
            return Err(malformed());
        };
        let value = entry.get(b"value").ok_or_else(malformed)?;
        let value = if let Some(number) = value.as_integer() {
            OptionValue::Number(number)
        } else if let Some(flag) = value.as_bool() {
            OptionValue::Flag(flag)
        } else {
            OptionValue::Text(text(value.as_text().ok_or_else(malformed)?))
        };
        let policy = entry.get(b"policy");
        Ok(Self {
            name: text(name),
            value,
            policy: policy.and_then(|policy| policy.as_text()).map(text),
        })
    }
}

/// What an exchange is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ExchangeInfo {
    /// Its name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Whether it outlives the broker's process.
    pub durability: Durability,
    /// Further settings.
    pub arguments: Headers,
}

/// A queue, or another exchange, bound to an exchange.
///
/// ```
/// use ringpost_client::{Binding, Headers};
/// let binding = Binding::new("orders", "by-colour")
///     .arguments(Headers::new().with("x-match", "any").with("colour", "red"));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    target: Target,
    exchange: String,
    key: String,
    arguments: Headers,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    Queue(String),
    Exchange(String),
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Exchange(name) => name,
        }
    }
}

impl Binding {
    /// `queue` gets what `exchange` routes to it.
    #[must_use]
    pub fn new(queue: impl Into<String>, exchange: impl Into<String>) -> Self {
        Self::of(Target::Queue(queue.into()), exchange.into())
    }

    /// The exchange `target` gets what `exchange` routes to it, and routes it on.
    #[must_use]
    pub fn to_exchange(target: impl Into<String>, exchange: impl Into<String>) -> Self {
        Self::of(Target::Exchange(target.into()), exchange.into())
    }

    fn of(target: Target, exchange: String) -> Self {
        Self {
            target,
            exchange,
            key: String::new(),
            arguments: Headers::new(),
        }
    }

    /// Sets the key, for direct and topic exchanges; for those with weights, the weight.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets the arguments, for headers exchanges: what to match, and `x-match` `all` or `any`.
    #[must_use]
    pub fn arguments(mut self, arguments: Headers) -> Self {
        self.arguments = arguments;
        self
    }

    /// Sets the condition, for filter exchanges: an SQL-92 selector over headers and `sys.` fields,
    /// such as `colour = 'red' AND sys.priority > 3`.
    #[must_use]
    pub fn filter(mut self, condition: &str) -> Self {
        self.arguments = self.arguments.with("x-filter", condition);
        self
    }

    /// Sets a condition that may look at fields of JSON bodies, such as `body.customer.vip`.
    #[must_use]
    pub fn filter_body(mut self, condition: &str) -> Self {
        self.arguments = self.arguments.with("x-filter", condition);
        self.arguments = self.arguments.with("x-filter-body", true);
        self
    }

    /// The queue that is bound, if it is one.
    #[must_use]
    pub fn queue(&self) -> Option<&str> {
        match &self.target {
            Target::Queue(name) => Some(name),
            Target::Exchange(_) => None,
        }
    }

    /// The exchange that is bound, if it is one.
    #[must_use]
    pub fn target_exchange(&self) -> Option<&str> {
        match &self.target {
            Target::Queue(_) => None,
            Target::Exchange(name) => Some(name),
        }
    }

    /// The exchange that messages come from.
    #[must_use]
    pub fn exchange(&self) -> &str {
        &self.exchange
    }

    /// The key.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        &self.key
    }

    /// The arguments.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.arguments
    }

    fn encode(&self) -> Result<Vec<u8>> {
        self.arguments.check()?;
        encoded(&Bind {
            flags: match self.target {
                Target::Queue(_) => 0,
                Target::Exchange(_) => BIND_TO_EXCHANGE,
            },
            exchange: self.exchange.as_bytes(),
            target: self.target.name().as_bytes(),
            key: self.key.as_bytes(),
            arguments: self.arguments.as_encoded(),
        })
    }
}

pub(crate) fn unreadable(code: Code) -> Error {
    Error::protocol(code, "the broker's answer cannot be read")
}

/// A body within its limits: what cannot be decoded again would end the connection.
pub(crate) fn encoded<'a, B: Body<'a>>(body: &B) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(256);
    body.encode(&mut bytes);
    Ok(bytes)
}

pub(crate) fn check_length(what: &str, value: &str, max: usize) -> Result<()> {
    if value.len() > max {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{what} has {} bytes, at most {max} are allowed",
                value.len()
            ),
        ));
    }
    Ok(())
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn queue_info(body: &Bytes) -> Result<QueueInfo> {
    let info = control::QueueInfo::decode(body).map_err(unreadable)?;
    Ok(QueueInfo {
        name: text(info.name),
        durability: Durability::from_wire(info.durability)?,
        ready: info.ready,
        unacked: info.unacked,
        delayed: info.delayed,
        due_in: Duration::from_millis(info.due_ms),
        dead: info.dead,
        bytes: info.bytes,
        published: info.published,
        settled: info.settled,
        messages_max: info.messages_max,
        bytes_max: info.bytes_max,
        consumers: info.consumers,
        id: info.id,
        partition: info.partition,
        core: info.core,
        is_damaged: info.flags & QUEUE_DAMAGED != 0,
        is_stream: info.flags & QUEUE_STREAM != 0,
        lanes: u32::from(info.lanes),
        recent: Recent::of(&info),
    })
}

fn group_info(body: &Bytes) -> Result<GroupInfo> {
    let info = control::GroupInfo::decode(body).map_err(unreadable)?;
    Ok(GroupInfo {
        name: text(info.name),
        lane: None,
        offset: info.offset,
        lag: info.lag,
        members: info.members,
    })
}

fn queue_description(body: &Bytes) -> Result<QueueDescription> {
    let described = control::QueueDescription::decode(body).map_err(unreadable)?;
    let options = Table::parse(described.options).map_err(unreadable)?;
    Ok(QueueDescription {
        name: text(described.name),
        durability: Durability::from_wire(described.durability)?,
        messages_max: described.messages_max,
        bytes_max: described.bytes_max,
        id: described.id,
        partition: described.partition,
        arguments: Headers::from_encoded(Bytes::copy_from_slice(described.arguments))?,
        options: options
            .entries()
            .map(QueueOption::read)
            .collect::<Result<_>>()?,
    })
}

fn exchange_info(body: &Bytes) -> Result<ExchangeInfo> {
    let info = ExchangeDeclare::decode(body).map_err(unreadable)?;
    Ok(ExchangeInfo {
        name: text(info.name),
        kind: ExchangeKind::from_wire(info.kind)?,
        durability: Durability::from_wire(info.durability)?,
        arguments: Headers::from_encoded(Bytes::copy_from_slice(info.arguments))?,
    })
}

fn binding_info(body: &Bytes) -> Result<Binding> {
    let bind = Bind::decode(body).map_err(unreadable)?;
    let target = text(bind.target);
    Ok(Binding {
        target: match bind.flags & BIND_TO_EXCHANGE {
            0 => Target::Queue(target),
            _ => Target::Exchange(target),
        },
        exchange: text(bind.exchange),
        key: text(bind.key),
        arguments: Headers::from_encoded(Bytes::copy_from_slice(bind.arguments))?,
    })
}

fn tenant_info(body: &Bytes) -> Result<String> {
    Named::decode(body)
        .map(|named| text(named.name))
        .map_err(unreadable)
}

pub(crate) fn ensured(reply: &Reply) -> Ensured {
    if reply.is_changed {
        Ensured::Created
    } else {
        Ensured::AlreadyExists
    }
}

/// Something that is not there is as good as removed.
pub(crate) fn removed(result: Result<Reply>, absent: Code) -> Result<Removed> {
    match result {
        Ok(reply) if reply.is_changed || reply.count > 0 => Ok(Removed::Removed {
            messages: reply.count,
        }),
        Ok(_) => Ok(Removed::Absent),
        Err(error) if error.code_number() == Some(absent) => Ok(Removed::Absent),
        Err(error) => Err(error),
    }
}

/// Queues, exchanges, bindings and tenants.
///
/// All of these wait while the client is connecting again, and none is repeated by itself when a
/// connection is lost before the answer: it fails as [`ErrorKind::Disconnected`] then, and may be
/// called again, since each says what is to be rather than what to do.
///
/// # Cancel safety
/// A dropped future may or may not have been done by the broker.
impl Client {
    pub(crate) async fn ask(&self, kind: FrameKind, answer: Answer, body: &[u8]) -> Result<Reply> {
        self.shared.main.call(kind, answer, body).await
    }

    pub(crate) async fn ask_about(
        &self,
        kind: FrameKind,
        answer: Answer,
        name: &str,
    ) -> Result<Reply> {
        check_length("the name", name, ringpost_wire::NAME_BYTES_MAX)?;
        let body = encoded(&Named {
            name: name.as_bytes(),
        })?;
        self.ask(kind, answer, &body).await
    }

    pub(crate) async fn list<T>(
        &self,
        kind: FrameKind,
        read: impl Fn(&Bytes) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.ask(kind, Answer::Done, &[])
            .await?
            .items
            .iter()
            .map(read)
            .collect()
    }

    /// Sees to it that there is such a queue.
    ///
    /// ```no_run
    /// # async fn example(client: ringpost_client::Client) -> ringpost_client::Result<()> {
    /// use ringpost_client::{Ensured, QueueConfig};
    ///
    /// if client.ensure_queue("orders", QueueConfig::durable()).await? == Ensured::Created {
    ///     println!("the first to come");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it exists with other settings; [`ErrorKind::Invalid`] for a name
    /// or setting that is not allowed; else as the broker or the network says.
    pub async fn ensure_queue(&self, name: &str, config: QueueConfig) -> Result<Ensured> {
        check_length("the name", name, ringpost_wire::NAME_BYTES_MAX)?;
        config.arguments.check()?;
        let declare = QueueDeclare {
            messages_max: config.messages_max,
            bytes_max: config.bytes_max,
            durability: config.durability.to_wire(),
            flags: 0,
            partition: config.partition,
            name: name.as_bytes(),
            arguments: config.arguments.as_encoded(),
        };
        let body = encoded(&declare)?;
        let reply = self
            .ask(FrameKind::QueueDeclare, Answer::Done, &body)
            .await?;
        if declare.is_exclusive() {
            self.shared.note_exclusive(name);
        }
        Ok(ensured(&reply))
    }

    /// Whether there is a queue of that name, whatever its settings.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn queue_exists(&self, name: &str) -> Result<bool> {
        check_length("the name", name, ringpost_wire::NAME_BYTES_MAX)?;
        let body = encoded(&QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: Durability::Durable.to_wire(),
            flags: DECLARE_PASSIVE,
            partition: PARTITION_BY_NAME,
            name: name.as_bytes(),
            arguments: &[],
        })?;
        match self.ask(FrameKind::QueueDeclare, Answer::Done, &body).await {
            Ok(_) => Ok(true),
            Err(error) if error.code_number() == Some(Code::QueueUnknown) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a queue and what it holds.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it may not be deleted as it is; else as the broker or the network
    /// says.
    pub async fn delete_queue(&self, name: &str, only: DeleteIf) -> Result<Removed> {
        let reply = self.delete(FrameKind::QueueDelete, name, only).await;
        removed(reply, Code::QueueUnknown)
    }

    async fn delete(&self, kind: FrameKind, name: &str, only: DeleteIf) -> Result<Reply> {
        check_length("the name", name, ringpost_wire::NAME_BYTES_MAX)?;
        let body = encoded(&Delete {
            flags: only.to_wire(),
            name: name.as_bytes(),
        })?;
        self.ask(kind, Answer::Done, &body).await
    }

    /// Drops the messages of a queue that are not out for delivery; returns how many.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; else as the broker or the network says.
    pub async fn purge_queue(&self, name: &str) -> Result<u32> {
        self.ask_about(FrameKind::QueuePurge, Answer::Done, name)
            .await
            .map(|reply| reply.count)
    }

    /// What a queue is and holds.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; else as the broker or the network says.
    pub async fn inspect_queue(&self, name: &str) -> Result<QueueInfo> {
        let reply = self
            .ask_about(FrameKind::QueueInspect, Answer::Item, name)
            .await?;
        reply
            .items
            .first()
            .ok_or_else(|| unreadable(Code::BodyMalformed))
            .and_then(queue_info)
    }

    /// All queues of the tenant.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn queues(&self) -> Result<Vec<QueueInfo>> {
        self.list(FrameKind::QueueList, queue_info).await
    }

    /// The groups of a stream, by name; of a stream of several lanes each as often as there are lanes, by
    /// name and lane.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; [`ErrorKind::Invalid`] if it is no stream; else
    /// as the broker or the network says.
    pub async fn stream_groups(&self, stream: &str) -> Result<Vec<GroupInfo>> {
        let mut groups = Vec::new();
        for (lane, name) in self.lanes_of(stream).await? {
            let reply = self
                .ask_about(FrameKind::GroupList, Answer::Done, &name)
                .await?;
            for item in &reply.items {
                groups.push(GroupInfo {
                    lane,
                    ..group_info(item)?
                });
            }
        }
        groups.sort_by(|one, two| (&one.name, one.lane).cmp(&(&two.name, two.lane)));
        Ok(groups)
    }

    /// Sets a group of a stream to another place, where its next member begins; one that is not there is
    /// made. After this not even a crash brings the old place back. Of a stream of several lanes that is
    /// done in one lane after the other.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it has members; else as [`stream_groups`](Self::stream_groups).
    pub async fn reset_group(&self, stream: &str, group: &str, start: Start) -> Result<()> {
        check_length("the name", stream, ringpost_wire::NAME_BYTES_MAX)?;
        check_length("the group's name", group, ringpost_wire::NAME_BYTES_MAX)?;
        let arguments = start.add_to(Headers::new())?;
        for (_, name) in self.lanes_of(stream).await? {
            let body = encoded(&control::GroupReset {
                queue: name.as_bytes(),
                group: group.as_bytes(),
                arguments: arguments.as_encoded(),
            })?;
            self.ask(FrameKind::GroupReset, Answer::Done, &body).await?;
        }
        Ok(())
    }

    /// Forgets a group of a stream, in all of its lanes.
    ///
    /// # Errors
    /// As [`reset_group`](Self::reset_group).
    pub async fn delete_group(&self, stream: &str, group: &str) -> Result<Removed> {
        check_length("the name", stream, ringpost_wire::NAME_BYTES_MAX)?;
        check_length("the group's name", group, ringpost_wire::NAME_BYTES_MAX)?;
        let mut removed = Removed::Absent;
        for (_, name) in self.lanes_of(stream).await? {
            let body = encoded(&control::GroupDelete {
                queue: name.as_bytes(),
                group: group.as_bytes(),
            })?;
            let reply = self
                .ask(FrameKind::GroupDelete, Answer::Done, &body)
                .await?;
            if reply.is_changed {
                removed = Removed::Removed { messages: 0 };
            }
        }
        Ok(removed)
    }

    /// The names of the lanes of a stream; its own if it is one by itself.
    async fn lanes_of(&self, stream: &str) -> Result<Vec<(Option<u32>, String)>> {
        let lanes = self.inspect_queue(stream).await?.lanes;
        let named = |lane| (Some(lane), format!("{stream}#{lane}"));
        Ok(match lanes {
            0 => vec![(None, stream.to_owned())],
            lanes => (0..lanes).map(named).collect(),
        })
    }

    /// What a queue was declared to be, and what it is, policies taken together.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; else as the broker or the network says.
    pub async fn describe_queue(&self, name: &str) -> Result<QueueDescription> {
        if name.is_empty() {
            return Err(Error::new(
                ErrorKind::NotFound,
                "no queue has an empty name",
            ));
        }
        let reply = self
            .ask_about(FrameKind::QueueDescribe, Answer::Item, name)
            .await?;
        reply
            .items
            .first()
            .ok_or_else(|| unreadable(Code::BodyMalformed))
            .and_then(queue_description)
    }

    /// The same of all queues of the tenant.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn describe_queues(&self) -> Result<Vec<QueueDescription>> {
        let reply = self
            .ask_about(FrameKind::QueueDescribe, Answer::Done, "")
            .await?;
        reply.items.iter().map(queue_description).collect()
    }

    /// Sees to it that there is such an exchange.
    ///
    /// # Errors
    /// As [`ensure_queue`](Self::ensure_queue).
    pub async fn ensure_exchange(&self, name: &str, config: ExchangeConfig) -> Result<Ensured> {
        check_length("the name", name, ringpost_wire::NAME_BYTES_MAX)?;
        config.arguments.check()?;
        let body = encoded(&ExchangeDeclare {
            kind: config.kind.to_wire(),
            durability: config.durability.to_wire(),
            flags: 0,
            reserved: 0,
            name: name.as_bytes(),
            arguments: config.arguments.as_encoded(),
        })?;
        self.ask(FrameKind::ExchangeDeclare, Answer::Done, &body)
            .await
            .map(|reply| ensured(&reply))
    }

    /// Deletes an exchange and its bindings.
    ///
    /// # Errors
    /// As [`delete_queue`](Self::delete_queue).
    pub async fn delete_exchange(&self, name: &str, only: DeleteIf) -> Result<Removed> {
        let reply = self.delete(FrameKind::ExchangeDelete, name, only).await;
        removed(reply, Code::ExchangeUnknown)
    }

    /// All exchanges of the tenant.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn exchanges(&self) -> Result<Vec<ExchangeInfo>> {
        self.list(FrameKind::ExchangeList, exchange_info).await
    }

    /// Sees to it that `queue` gets what is published to `exchange` with a key that fits `key`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if either does not exist; else as the broker or the network says.
    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<Ensured> {
        self.ensure_binding(&Binding::new(queue, exchange).key(key))
            .await
    }

    /// Takes back a [`bind`](Self::bind).
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) -> Result<Removed> {
        self.remove_binding(&Binding::new(queue, exchange).key(key))
            .await
    }

    /// Sees to it that there is such a binding, which may have arguments.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn ensure_binding(&self, binding: &Binding) -> Result<Ensured> {
        let body = self.binding_body(binding)?;
        self.ask(FrameKind::Bind, Answer::Done, &body)
            .await
            .map(|reply| ensured(&reply))
    }

    /// Takes back an [`ensure_binding`](Self::ensure_binding).
    ///
    /// # Errors
    /// As [`unbind`](Self::unbind).
    pub async fn remove_binding(&self, binding: &Binding) -> Result<Removed> {
        let body = self.binding_body(binding)?;
        removed(
            self.ask(FrameKind::Unbind, Answer::Done, &body).await,
            Code::BindingUnknown,
        )
    }

    fn binding_body(&self, binding: &Binding) -> Result<Vec<u8>> {
        check_length(
            "the queue's name",
            binding.target.name(),
            ringpost_wire::NAME_BYTES_MAX,
        )?;
        check_length(
            "the exchange's name",
            &binding.exchange,
            ringpost_wire::NAME_BYTES_MAX,
        )?;
        check_length("the key", &binding.key, ringpost_wire::KEY_BYTES_MAX)?;
        binding.encode()
    }

    /// All bindings of the tenant.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn bindings(&self) -> Result<Vec<Binding>> {
        self.list(FrameKind::BindingList, binding_info).await
    }

    /// Sees to it that there is such a tenant.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn ensure_tenant(&self, name: &str) -> Result<Ensured> {
        let reply = self
            .ask_about(FrameKind::TenantDeclare, Answer::Done, name)
            .await?;
        Ok(ensured(&reply))
    }

    /// Deletes an empty tenant.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it is not empty; else as the broker or the network says.
    pub async fn delete_tenant(&self, name: &str) -> Result<Removed> {
        let reply = self
            .ask_about(FrameKind::TenantDelete, Answer::Done, name)
            .await;
        removed(reply, Code::TenantUnknown)
    }

    /// All tenants.
    ///
    /// # Errors
    /// As the broker or the network says.
    pub async fn tenants(&self) -> Result<Vec<String>> {
        self.list(FrameKind::TenantList, tenant_info).await
    }
}
