//! Publishing: the producer that callers hold and how it is built.
//! Does not know frames or credit; see `producer/inner.rs` and `producer/window.rs`.

mod group;
pub(crate) mod inner;
mod pending;
mod window;

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_wire as wire;
use tokio::sync::oneshot;

pub use pending::{Pending, PendingBatch, Receipt};
pub(crate) use window::Segment;

use self::inner::{Inner, Settings};
use crate::client::{Lease, Shared};
use crate::{ByteSize, Error, ErrorKind, Level, Message, Resend, Result};

/// Builds a [`Producer`]; from [`crate::Client::producer`].
///
/// ```no_run
/// # async fn example(client: ringpost_client::Client) -> ringpost_client::Result<()> {
/// use ringpost_client::{ByteSize, Level};
///
/// let producer = client
///     .producer("shop")
///     .level(Level::Durable)
///     .mandatory()
///     .in_flight_max(ByteSize::mib(1))
///     .build()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is awaited"]
pub struct ProducerBuilder {
    shared: Arc<Shared>,
    exchange: String,
    level: Level,
    is_downgrade_allowed: bool,
    is_mandatory: bool,
    in_flight_bytes_max: u64,
    resend: Resend,
    near: Option<String>,
}

impl ProducerBuilder {
    pub(crate) fn new(shared: Arc<Shared>, exchange: String) -> Self {
        Self {
            exchange,
            level: Level::default(),
            is_downgrade_allowed: false,
            is_mandatory: false,
            in_flight_bytes_max: shared.options.in_flight_bytes_max,
            resend: shared.options.resend,
            near: None,
            shared,
        }
    }

    /// How far a publish must get before it is confirmed. [`Level::Durable`] unless asked otherwise.
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Lets a durable confirm fall back to volatile where a target queue is volatile; otherwise
    /// such a publish is refused. The receipt says which it was.
    pub fn allow_downgrade(mut self) -> Self {
        self.is_downgrade_allowed = true;
        self
    }

    /// Refuses messages that no queue takes with [`ErrorKind::Unroutable`], instead of dropping them.
    pub fn mandatory(mut self) -> Self {
        self.is_mandatory = true;
        self
    }

    /// Most bytes of messages accepted and not settled; [`Producer::enqueue`] waits at this bound.
    /// A single message above it is still sent, alone.
    pub fn in_flight_max(mut self, bytes: ByteSize) -> Self {
        self.in_flight_bytes_max = bytes.bytes();
        self
    }

    /// What to do after a lost connection with what was not confirmed.
    pub fn resend(mut self, resend: Resend) -> Self {
        self.resend = resend;
        self
    }

    /// Publishes over a connection to the core that owns `queue`, which spares messages for that
    /// queue a hop inside the broker. Others still get where they belong.
    pub fn near(mut self, queue: impl Into<String>) -> Self {
        self.near = Some(queue.into());
        self
    }

    /// Opens the producer.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a name that is none or a bound of 0; [`ErrorKind::NotFound`] if
    /// the queue to be near to does not exist; else as the broker or the network says.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn build(self) -> Result<Producer> {
        if self.exchange.len() > wire::NAME_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the exchange name has {} bytes, at most {} are allowed",
                    self.exchange.len(),
                    wire::NAME_BYTES_MAX
                ),
            ));
        }
        if self.in_flight_bytes_max == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "in_flight_max is 0, nothing could ever be published",
            ));
        }
        let lease = match &self.near {
            Some(queue) => self.shared.attached(queue).await?,
            None => self.shared.main()?,
        };
        let settings = Settings {
            exchange: Bytes::from(self.exchange),
            level: self.level,
            is_downgrade_allowed: self.is_downgrade_allowed,
            is_mandatory: self.is_mandatory,
            in_flight_bytes_max: self.in_flight_bytes_max,
            resend: self.resend,
            message_bytes_max: lease.connection().limits().message_bytes_max,
        };
        let inner = Inner::new(settings, Arc::clone(lease.connection()));
        let (sender, opened) = oneshot::channel();
        inner.expect_open(sender);
        // From here on dropping the handle closes the producer.
        let producer = Producer {
            handle: Arc::new(Handle {
                inner,
                lease,
                shared: self.shared,
            }),
        };
        let connection = producer.handle.lease.connection();
        connection.add_producer(&producer.handle.inner)?;
        match tokio::time::timeout(connection.options.request_timeout, opened).await {
            Ok(Ok(result)) => result.map(|()| producer),
            Ok(Err(_)) => Err(Error::closed()),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                "the broker did not open the producer in time",
            )),
        }
    }
}

/// Publishes messages to one exchange, in order. Cheap to clone; clones share order and bounds.
///
/// | call | resolves when | answers |
/// |---|---|---|
/// | [`send`](Self::send) | the message is confirmed at the producer's level | the receipt |
/// | [`enqueue`](Self::enqueue) | the message is accepted for sending | a [`Pending`] receipt |
/// | [`send_batch`](Self::send_batch) | all messages are confirmed | one receipt |
/// | [`enqueue_batch`](Self::enqueue_batch) | all messages are accepted | a [`PendingBatch`] |
/// | [`flush`](Self::flush) | all that was accepted is settled | the first failure, if any |
///
/// Dropping the last clone does not block: accepted messages are still sent while the client lives.
#[derive(Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

struct Handle {
    inner: Arc<Inner>,
    lease: Lease,
    /// Keeps the client's connections alive while a producer is.
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.abandon();
    }
}

impl Producer {
    /// Publishes a message and waits until it is confirmed at the producer's level: on disk, if
    /// that is [`Level::Durable`].
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue) and [`Pending`].
    ///
    /// # Cancel safety
    /// Once the message was accepted it is published, also if the future is dropped.
    pub async fn send(&self, message: Message) -> Result<Receipt> {
        self.enqueue(message).await?.await
    }

    /// Accepts a message for sending, waiting while [`in_flight_max`](ProducerBuilder::in_flight_max)
    /// is used up; what comes of it is in the [`Pending`].
    ///
    /// ```no_run
    /// # async fn example(producer: ringpost_client::Producer) -> ringpost_client::Result<()> {
    /// use ringpost_client::Message;
    ///
    /// let first = producer.enqueue(Message::new("a", "1")).await?;
    /// let second = producer.enqueue(Message::new("a", "2")).await?;
    /// first.await?;
    /// second.await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] or [`ErrorKind::Invalid`] for a message that cannot be sent, and what
    /// ended the producer, if something did.
    ///
    /// # Cancel safety
    /// A dropped future has either accepted the message or not; it never holds part of it.
    pub async fn enqueue(&self, message: Message) -> Result<Pending> {
        self.handle.inner.push(&message).await
    }

    /// Publishes messages and waits until all of them are confirmed.
    ///
    /// # Errors
    /// As [`send`](Self::send) for the first that failed; [`Error::failed`] names all of them.
    ///
    /// # Cancel safety
    /// What was accepted is published, also if the future is dropped.
    pub async fn send_batch<I>(&self, messages: I) -> Result<Receipt>
    where
        I: IntoIterator,
        I::Item: Borrow<Message>,
    {
        self.enqueue_batch(messages).await?.await
    }

    /// Accepts messages for sending, at the cost of one wait and one receipt for all of them. This
    /// is the fastest way to publish: messages are encoded once, straight into what is sent.
    ///
    /// ```no_run
    /// # async fn example(producer: ringpost_client::Producer) -> ringpost_client::Result<()> {
    /// use ringpost_client::Message;
    ///
    /// let batch: Vec<_> = (0..1_000).map(|n| Message::new("tick", n.to_string())).collect();
    /// let pending = producer.enqueue_batch(&batch).await?;
    /// println!("{} messages are durable", pending.await?.messages);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue) for the first message that was not accepted; those before it
    /// were, and [`flush`](Self::flush) tells of them.
    ///
    /// # Cancel safety
    /// Some messages from the start may have been accepted when the future is dropped.
    pub async fn enqueue_batch<I>(&self, messages: I) -> Result<PendingBatch>
    where
        I: IntoIterator,
        I::Item: Borrow<Message>,
    {
        self.handle.inner.push_batch(messages).await
    }

    /// Waits until every message accepted before the call is settled.
    ///
    /// # Errors
    /// The first failure of any message since the last flush, also if its [`Pending`] told of it.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped; flush again.
    pub async fn flush(&self) -> Result<()> {
        self.handle.inner.flush().await
    }

    /// Waits until everything is settled and closes the producer, unless it has other clones.
    ///
    /// At [`Level::None`] nothing is confirmed; the broker answers the close when it has said what it
    /// refused, on whichever core. While there are other clones it is only asked something behind the
    /// last message, and what another core refuses may come later.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    ///
    /// # Cancel safety
    /// Dropping the future is dropping the producer.
    pub async fn close(self) -> Result<()> {
        self.flush().await?;
        if self.level() == Level::None {
            let connection = self.handle.lease.connection();
            let is_last = Arc::strong_count(&self.handle) == 1;
            match self.handle.inner.place().filter(|_| is_last) {
                Some((session, channel)) => connection.end_producer(session, channel).await?,
                // An answer may overtake what the broker says at the end of the same turn; that to a
                // second question, which comes in a later one, cannot.
                None => {
                    for _ in 0..2 {
                        connection.answers().await?;
                    }
                }
            }
        }
        self.flush().await
    }

    /// The level it confirms at.
    #[must_use]
    pub fn level(&self) -> Level {
        self.handle.inner.settings.level
    }

    /// Messages accepted and not settled.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.handle.inner.in_flight().0
    }

    /// The client it belongs to.
    #[must_use]
    pub fn client(&self) -> crate::Client {
        crate::Client::from_shared(Arc::clone(&self.handle.shared))
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field(
                "exchange",
                &String::from_utf8_lossy(&self.handle.inner.settings.exchange),
            )
            .field("level", &self.level())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
