//! Reading streams: how a reader is built, and where it begins.
//! Does not know how deliveries travel; a reader is a consumer.

use std::time::{Duration, SystemTime};

use super::{Consumer, ConsumerBuilder, PullConsumer};
use crate::{ByteSize, Error, ErrorKind, HeaderValue, Headers, Result};

/// Where a reader of a stream begins. A group that exists goes on where it was instead.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Start {
    /// With the first message that the stream still has.
    First,
    /// With the last one that is there.
    Last,
    /// With the next one that is published.
    #[default]
    Next,
    /// With the message at this offset, from 1; with the first one that is there if that is gone, with
    /// the next one if it is not there yet.
    Offset(u64),
    /// With the first message that arrived at this time or later, and perhaps some that arrived shortly
    /// before: at most a 512th of the time that the stream keeps, and a second.
    Time(SystemTime),
}

impl Start {
    pub(crate) fn value(self) -> Result<HeaderValue<'static>> {
        Ok(match self {
            Self::First => HeaderValue::from("first"),
            Self::Last => HeaderValue::from("last"),
            Self::Next => HeaderValue::from("next"),
            Self::Offset(offset) => {
                let offset = i64::try_from(offset).ok().filter(|offset| *offset > 0);
                let offset = offset.ok_or_else(|| {
                    Error::new(ErrorKind::Invalid, "offsets of a stream begin with 1")
                })?;
                HeaderValue::from(offset)
            }
            Self::Time(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH);
                HeaderValue::Timestamp(since.unwrap_or(Duration::ZERO).as_secs())
            }
        })
    }

    /// As the argument of a request.
    pub(crate) fn add_to(self, arguments: Headers) -> Result<Headers> {
        Ok(arguments.with("x-stream-offset", self.value()?))
    }
}

/// Builds a [`Consumer`] or [`PullConsumer`] that reads a stream; from [`crate::Client::stream`].
///
/// A reader takes nothing: others get the same messages, and what it acks only makes room in its
/// credit, and moves its group. After a lost connection it goes on behind the last message that it
/// handed out, or, in a group, behind the last one that the group has acked.
///
/// A stream of several lanes is read from all of them: each lane in order, those of different lanes as
/// they come. A lane by itself is the stream of that name, `events#0` and so on. Lanes share the credit,
/// and each takes a connection; a rate is that of each lane.
///
/// ```no_run
/// # async fn example(client: ringpost_client::Client) -> ringpost_client::Result<()> {
/// use ringpost_client::Start;
///
/// let mut reader = client
///     .stream("events")
///     .from(Start::First)
///     .group("billing")
///     .filter("amount > 100")
///     .subscribe()
///     .await?;
/// while let Some(batch) = reader.next_batch().await? {
///     for delivery in &batch {
///         println!("{}: {:?}", delivery.queue_sequence(), delivery.payload());
///     }
///     reader.ack(&batch).await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `subscribe` or `pull` is awaited"]
pub struct StreamBuilder {
    consumer: ConsumerBuilder,
    start: Start,
    has_group: bool,
}

impl StreamBuilder {
    pub(crate) fn new(consumer: ConsumerBuilder) -> Self {
        Self {
            consumer,
            start: Start::default(),
            has_group: false,
        }
    }

    fn with<'v>(mut self, name: &str, value: impl Into<HeaderValue<'v>>) -> Self {
        self.consumer.arguments = self.consumer.arguments.with(name, value);
        self
    }

    /// Where it begins; with the next message unless asked otherwise.
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Where it begins in some lanes of a stream of several, by their offsets; in all others as
    /// [`from`](Self::from) says.
    pub fn from_offsets(mut self, lanes: impl IntoIterator<Item = (u32, u64)>) -> Self {
        self.consumer.lane_offsets = lanes.into_iter().collect();
        self
    }

    /// Makes it a member of a group: the broker keeps how far the group has come, one member reads at
    /// a time, and the next goes on where it was. Of a stream of several lanes members share the lanes,
    /// and [`Consumer::activity`] tells which it has.
    pub fn group(mut self, name: &str) -> Self {
        self.has_group = true;
        self.with("x-stream-group", name)
    }

    /// Lets only messages through for which a condition holds: an SQL-92 selector over headers and
    /// `sys.` fields, such as `colour = 'red' AND sys.priority > 3`.
    pub fn filter(self, condition: &str) -> Self {
        self.with("x-stream-filter", condition)
    }

    /// A condition that may look at fields of JSON bodies, such as `body.customer.vip`.
    pub fn filter_body(self, condition: &str) -> Self {
        self.filter(condition).with("x-stream-filter-body", true)
    }

    /// Reads at most so many messages a second, 1 to 10,000,000.
    pub fn rate(self, per_second: u32) -> Self {
        self.with("x-stream-rate", per_second)
    }

    /// Reads as fast as the messages came, in percent of that: 100 is the original pace, 1,000 ten times
    /// as fast; 1 to 100,000.
    pub fn speed(self, percent: u32) -> Self {
        self.with("x-stream-speed", percent)
    }

    /// Its place among the members of its group, -10 to 10, 0 unless asked otherwise: one of the highest
    /// reads.
    pub fn priority(mut self, priority: i8) -> Self {
        self.consumer = self.consumer.priority(priority);
        self
    }

    /// Most messages delivered and not settled; 1,000 unless asked otherwise.
    pub fn credit(mut self, messages: u32) -> Self {
        self.consumer = self.consumer.credit(messages);
        self
    }

    /// Most bytes delivered and not settled; 64 MiB unless asked otherwise.
    pub fn credit_bytes(mut self, bytes: ByteSize) -> Self {
        self.consumer = self.consumer.credit_bytes(bytes);
        self
    }

    /// Deliveries are settled by being sent, and so is how far the group has come.
    pub fn auto_settle(mut self) -> Self {
        self.consumer = self.consumer.auto_settle();
        self
    }

    /// Starts a reader to which messages are pushed.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::subscribe`]; [`ErrorKind::Invalid`] if the queue is no stream or a setting
    /// is out of its bounds.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn subscribe(self) -> Result<Consumer> {
        ConsumerBuilder::from(self).subscribe().await
    }

    /// Starts a reader that takes messages when it wants some; credit does not matter to it.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn pull(self) -> Result<PullConsumer> {
        ConsumerBuilder::from(self).pull().await
    }
}

/// The same reader, built on as a consumer.
impl From<StreamBuilder> for ConsumerBuilder {
    fn from(stream: StreamBuilder) -> Self {
        Self {
            start: Some(stream.start),
            has_group: stream.has_group,
            ..stream.consumer
        }
    }
}
