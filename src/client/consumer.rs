//! Consuming: the consumers that callers hold, how they are built, and settling.
//! Does not know frames; see `consumer/inbox.rs`.

mod batch;
mod inbox;
mod lanes;
mod stream;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use ringpost_wire::control::{Body, ConsumerCredit, ConsumerInfo, Get};
use ringpost_wire::header::{SETTLE_ACK, SETTLE_REJECT, SETTLE_REQUEUE};
use ringpost_wire::{self as wire, Code, FrameHeader, FrameKind, SettleRange};
use tokio::sync::oneshot;

pub use batch::{Batch, Deliveries, Delivery, DeliveryRef, DeliveryTag, Settleable};
pub(crate) use inbox::Inbox;
pub use stream::{Start, StreamBuilder};

use self::batch::Span;
use self::inbox::Settings;
use crate::client::{Lease, Shared};
use crate::connection::{Answer, Connection};
use crate::stats::Counters;
use crate::{ByteSize, Error, ErrorKind, Headers, Result};

/// Messages pushed ahead of settlements unless asked otherwise.
const CREDIT_DEFAULT: u32 = 1_000;
/// Bytes pushed ahead of settlements unless asked otherwise.
const CREDIT_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;

/// Builds a [`Consumer`] or [`PullConsumer`]; from [`crate::Client::consumer`].
///
/// ```no_run
/// # async fn example(client: ringpost_client::Client) -> ringpost_client::Result<()> {
/// use ringpost_client::ByteSize;
///
/// let consumer = client
///     .consumer("orders")
///     .credit(500)
///     .credit_bytes(ByteSize::mib(4))
///     .subscribe()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `subscribe` or `pull` is awaited"]
pub struct ConsumerBuilder {
    shared: Arc<Shared>,
    queue: String,
    credit_messages: u32,
    credit_bytes: u64,
    is_exclusive: bool,
    is_auto: bool,
    arguments: Headers,
    /// Of a stream: where it begins.
    start: Option<Start>,
    /// The broker keeps how far its group has come.
    has_group: bool,
    /// Of a stream of several lanes: those that begin elsewhere.
    lane_offsets: Vec<(u32, u64)>,
    /// Whose connection it gets.
    beside: Option<Settler>,
}

impl ConsumerBuilder {
    pub(crate) fn new(shared: Arc<Shared>, queue: String) -> Self {
        Self {
            shared,
            queue,
            credit_messages: CREDIT_DEFAULT,
            credit_bytes: CREDIT_BYTES_DEFAULT,
            is_exclusive: false,
            is_auto: false,
            arguments: Headers::new(),
            start: None,
            has_group: false,
            lane_offsets: Vec::new(),
            beside: None,
        }
    }

    /// Most messages delivered and not settled; 1,000 unless asked otherwise.
    pub fn credit(mut self, messages: u32) -> Self {
        self.credit_messages = messages;
        self
    }

    /// Most bytes delivered and not settled; 64 MiB unless asked otherwise. The last message may
    /// pass the bound, so that none is too large for it.
    pub fn credit_bytes(mut self, bytes: ByteSize) -> Self {
        self.credit_bytes = bytes.bytes();
        self
    }

    /// Its priority, -10 to 10, 0 unless asked otherwise: consumers of a higher one that have room get
    /// every message, those of a lower one what is left.
    pub fn priority(mut self, priority: i8) -> Self {
        self.arguments = self.arguments.with("x-priority", i64::from(priority));
        self
    }

    /// Its weight, 1 to 100, 1 unless asked otherwise: its share of a queue that is shared out by
    /// weights, see [`crate::Dispatch::Weighted`].
    pub fn weight(mut self, weight: u8) -> Self {
        self.arguments = self.arguments.with("x-weight", i64::from(weight));
        self
    }

    /// Reads the queue, which is a stream, from there on: see [`crate::Client::stream`].
    pub fn reading(self, start: Start) -> StreamBuilder {
        StreamBuilder::new(self).from(start)
    }

    /// Refuses to share the queue with another consumer.
    pub fn exclusive(mut self) -> Self {
        self.is_exclusive = true;
        self
    }

    /// Deliveries are settled by being sent: fast, needs no acks, and loses what is on its way when
    /// a connection is lost. Such a consumer has a connection to itself.
    pub fn auto_settle(mut self) -> Self {
        self.is_auto = true;
        self
    }

    /// Gives it the connection of another consumer, so that one transaction can acknowledge the
    /// deliveries of both ([`crate::TransactorBuilder::beside`]). Messages of its queue may have a longer
    /// way then.
    pub fn beside(mut self, other: &impl crate::Settles) -> Self {
        self.beside = Some(other.handle().clone());
        self
    }

    /// Starts a consumer to which messages are pushed.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; [`ErrorKind::Invalid`] for a credit out of
    /// bounds; else as the broker or the network says.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened; deliveries return to the queue.
    pub async fn subscribe(self) -> Result<Consumer> {
        if self.credit_messages == 0 || self.credit_bytes == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a credit of 0 would never deliver anything",
            ));
        }
        let settler = self.open().await?;
        Ok(Consumer { settler, turn: 0 })
    }

    /// Starts a consumer that takes messages when it wants some; credit does not matter to it.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn pull(mut self) -> Result<PullConsumer> {
        self.credit_messages = 0;
        self.credit_bytes = 0;
        let settler = self.open().await?;
        Ok(PullConsumer { settler, turn: 0 })
    }

    async fn open(self) -> Result<Settler> {
        self.arguments.check()?;
        self.start.map(Start::value).transpose()?;
        if self.credit_bytes > wire::CREDIT_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "credit_bytes is {} B, at most {} B are allowed",
                    self.credit_bytes,
                    wire::CREDIT_BYTES_MAX
                ),
            ));
        }
        match self.open_one(&self.queue, None).await {
            Ok(handle) => Ok(Settler::of(self.queue, vec![handle])),
            // What a stream of several lanes holds lies in these.
            Err(error) if error.code_number() == Some(Code::SettingInvalid) => {
                self.open_lanes(error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Opens one consumer, of a queue or of a lane of a stream.
    async fn open_one(&self, queue: &str, lane: Option<u32>) -> Result<Handle> {
        let lease = match &self.beside {
            Some(other) => other.lease()?,
            None if self.is_auto => self.shared.own(queue).await?,
            None => self.shared.attached(queue).await?,
        };
        let connection = Arc::clone(lease.connection());
        let limits = connection.limits();
        let credit_max = limits.credit_messages_max.min(wire::CREDIT_MESSAGES_MAX);
        if self.credit_messages > credit_max {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "credit is {} messages, the broker allows at most {credit_max}",
                    self.credit_messages
                ),
            ));
        }
        let settings = Settings {
            queue: queue.to_owned(),
            lane,
            credit_messages: self.credit_messages,
            credit_bytes: self.credit_bytes,
            is_exclusive: self.is_exclusive,
            is_auto: self.is_auto,
            arguments: self.arguments.clone(),
            start: self.start,
            has_group: self.has_group,
            message_bytes_max: limits.message_bytes_max,
        };
        let inbox = Inbox::new(settings, Arc::clone(&connection.counters));
        let (sender, opened) = oneshot::channel();
        inbox.expect_open(sender);
        let channel = connection.add_consumer(&inbox)?;
        // From here on dropping the handle closes the consumer.
        let handle = Handle {
            inbox,
            channel,
            lease,
            _shared: Arc::clone(&self.shared),
        };
        match tokio::time::timeout(connection.options.request_timeout, opened).await {
            Ok(Ok(result)) => result.map(|()| handle),
            Ok(Err(_)) => Err(Error::closed()),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                "the broker did not open the consumer in time",
            )),
        }
    }
}

/// What a consumer holds: delivered and not settled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Held {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: ByteSize,
    /// How long it has held the oldest of them, as the broker counts; 0 if it holds none.
    pub oldest: Duration,
}

/// Tells whether a consumer is the active one of its queue, from any task: for queues with a single
/// active consumer ([`crate::QueueConfig::single_active_consumer`]). Does not keep it open.
///
/// Of a stream of several lanes it tells which lanes it has, as a member of its group.
#[derive(Clone)]
pub struct Activity {
    inboxes: Vec<(Arc<Inbox>, bool)>,
}

impl Activity {
    /// Whether it is the active one now: of one lane at least, if there are several.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.inboxes.iter().any(|(inbox, _)| inbox.is_active())
    }

    /// Waits until it becomes the active one (`true`), or is it no longer; `None` once the consumer is
    /// over. The first call says so at once if it is active already. Of several lanes each that comes or
    /// goes is a change.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn changed(&mut self) -> Option<bool> {
        let (at, is_active) = lanes::first_change(&self.inboxes).await?;
        self.inboxes[at].1 = is_active;
        Some(self.is_active())
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity")
            .field("is_active", &self.is_active())
            .finish_non_exhaustive()
    }
}

struct Handle {
    inbox: Arc<Inbox>,
    channel: u16,
    lease: Lease,
    /// Keeps the client's connections alive while a consumer is.
    _shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inbox.ended(&Error::closed());
        self.lease
            .connection()
            .close_consumer(self.channel, &self.inbox);
    }
}

/// What a settlement came to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Settlement {
    /// It is on its way to the broker; with `ack_durable`, it is on disk.
    Sent,
    /// The connection was lost since some or all of the deliveries: the broker has taken their
    /// messages back and delivers them again. The others, if any, were settled.
    Stale,
    /// Nothing was done: the consumer's deliveries are settled by being sent.
    NotNeeded,
}

/// Where a consumer lives now.
struct Aim {
    consumer: u32,
    session: u32,
    channel: u16,
    /// Some deliveries are of an older session.
    has_stale: bool,
}

impl Aim {
    fn range(&self, span: Span) -> Option<SettleRange> {
        let is_its = span.first.consumer == self.consumer;
        (is_its && span.first.session == self.session).then(|| span.range())
    }
}

/// Settles deliveries of one consumer, from any task. Cheap to clone; keeps the consumer open.
#[derive(Clone)]
pub struct Settler {
    handles: Arc<Handles>,
}

/// One consumer; of a stream of several lanes one for each.
struct Handles {
    queue: String,
    all: Vec<Handle>,
}

impl Handle {
    fn connection(&self) -> &Connection {
        self.lease.connection()
    }
}

impl Settler {
    fn of(queue: String, all: Vec<Handle>) -> Self {
        Self {
            handles: Arc::new(Handles { queue, all }),
        }
    }

    /// The consumer; the first of several.
    fn first(&self) -> &Handle {
        &self.handles.all[0]
    }

    fn all(&self) -> &[Handle] {
        &self.handles.all
    }

    fn connection(&self) -> &Connection {
        self.first().connection()
    }

    /// One more use of its connection.
    pub(crate) fn lease(&self) -> Result<Lease> {
        self.first().lease.again()
    }

    pub(crate) fn lease_connection(&self) -> &Arc<Connection> {
        self.first().lease.connection()
    }

    /// The session and channel that a transaction finds these deliveries on, and their tags; none if some
    /// are of an older session.
    pub(crate) fn ranges_of(
        &self,
        what: &impl Settleable,
    ) -> Result<(u32, u16, Option<Vec<SettleRange>>)> {
        if !self.takes(what)? {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the consumer's deliveries are settled by being sent",
            ));
        }
        // A transaction has its deliveries from a queue: what is read from a stream nobody takes.
        let aim = self.first().aim(what);
        let ranges = what.spans().filter_map(|span| aim.range(span));
        let ranges = (!aim.has_stale).then(|| ranges.collect());
        Ok((aim.session, aim.channel, ranges))
    }

    async fn settle(&self, outcome: u8, what: impl Settleable) -> Result<Settlement> {
        if !self.takes(&what)? {
            return Ok(Settlement::NotNeeded);
        }
        let mut is_all_sent = true;
        for handle in self.all() {
            if !self.is_concerned(handle, &what) {
                continue;
            }
            let aim = handle.aim(&what);
            let mut ranges = what.spans().filter_map(|span| aim.range(span));
            let is_sent = handle
                .connection()
                .settle(aim.session, aim.channel, outcome, &mut ranges)
                .await;
            is_all_sent &= is_sent && !aim.has_stale;
        }
        Ok(self.settlement(is_all_sent))
    }

    fn settlement(&self, is_all_sent: bool) -> Settlement {
        if is_all_sent {
            return Settlement::Sent;
        }
        Counters::add(&self.connection().counters.settles_stale, 1);
        Settlement::Stale
    }

    /// Whether some are its deliveries; one that has no others is asked in any case.
    fn is_concerned(&self, handle: &Handle, what: &impl Settleable) -> bool {
        let is_its = |span: Span| span.first.consumer == handle.inbox.id;
        self.all().len() == 1 || what.spans().any(is_its)
    }

    /// Whether the deliveries need a settlement, and are of this consumer.
    fn takes(&self, what: &impl Settleable) -> Result<bool> {
        if self.first().inbox.settings.is_auto {
            return Ok(false);
        }
        for Span { first, last } in what.spans() {
            let is_own = self
                .all()
                .iter()
                .any(|handle| handle.inbox.id == first.consumer);
            if !is_own || first.consumer != last.consumer {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "the deliveries are those of another consumer",
                ));
            }
            if first > last || first.session != last.session {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "a range of deliveries must go forward within one connection",
                ));
            }
        }
        Ok(true)
    }

    /// See [`Consumer::ack`].
    ///
    /// # Errors
    /// As there.
    pub async fn ack(&self, what: impl Settleable) -> Result<Settlement> {
        self.settle(SETTLE_ACK, what).await
    }

    /// See [`Consumer::ack_through`].
    ///
    /// # Errors
    /// As there.
    pub async fn ack_through(&self, last: DeliveryTag) -> Result<Settlement> {
        // A first tag of 0 means everything outstanding up to the last one (P-44).
        let first = DeliveryTag { number: 0, ..last };
        self.settle(SETTLE_ACK, first..=last).await
    }

    /// See [`Consumer::ack_durable`].
    ///
    /// # Errors
    /// As there.
    pub async fn ack_durable(&self, what: impl Settleable) -> Result<Settlement> {
        if !self.takes(&what)? {
            return Ok(Settlement::NotNeeded);
        }
        let mut is_all_sent = true;
        for handle in self.all() {
            if !self.is_concerned(handle, &what) {
                continue;
            }
            let aim = handle.aim(&what);
            let ranges: Vec<SettleRange> =
                what.spans().filter_map(|span| aim.range(span)).collect();
            is_all_sent &= !aim.has_stale;
            for ranges in ranges.chunks(wire::SETTLE_RANGES_MAX) {
                is_all_sent &= handle
                    .connection()
                    .settle_durably(aim.session, aim.channel, SETTLE_ACK, ranges)
                    .await?;
            }
        }
        Ok(self.settlement(is_all_sent))
    }

    /// See [`Consumer::nack`].
    ///
    /// # Errors
    /// As there.
    pub async fn nack(&self, what: impl Settleable) -> Result<Settlement> {
        self.settle(SETTLE_REQUEUE, what).await
    }

    /// See [`Consumer::reject`].
    ///
    /// # Errors
    /// As there.
    pub async fn reject(&self, what: impl Settleable) -> Result<Settlement> {
        self.settle(SETTLE_REJECT, what).await
    }
}

impl Handle {
    /// Where to send the settlement of those that are its own.
    fn aim(&self, what: &impl Settleable) -> Aim {
        let (session, channel) = self.inbox.place();
        let mut own = what
            .spans()
            .filter(|span| span.first.consumer == self.inbox.id);
        Aim {
            consumer: self.inbox.id,
            session,
            channel,
            has_stale: own.any(|span| span.first.session != session),
        }
    }

    async fn held(&self) -> Result<Held> {
        let inbox = &self.inbox;
        if let Some(error) = inbox.end() {
            return Err(error);
        }
        let connection = self.connection();
        connection.up().await?;
        let (session, channel) = inbox.place();
        let header = FrameHeader::bare(FrameKind::ConsumerInspect, channel, 0);
        let timeout = connection.options.request_timeout;
        let reply = connection
            .call_with(header, Some(session), timeout, Answer::Item, &[])
            .await?;
        let info = reply.items.first().map(|item| ConsumerInfo::decode(item));
        let Some(Ok(info)) = info else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "what the broker says of the consumer cannot be read",
            ));
        };
        Ok(Held {
            messages: info.messages,
            bytes: ByteSize::new(info.bytes),
            oldest: Duration::from_millis(info.oldest_ms),
        })
    }
}

impl fmt::Debug for Settler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settler")
            .field("queue", &self.handles.queue)
            .finish_non_exhaustive()
    }
}

/// The settling methods, which both kinds of consumer have.
macro_rules! settling {
    ($name:ident) => {
        impl $name {
            pub(crate) const fn as_settler(&self) -> &Settler {
                &self.settler
            }

            /// Acks deliveries: they are done with and never delivered again. Takes a batch, one
            /// delivery, a tag, a range of tags or a slice of them. Acks that follow each other are
            /// sent as one.
            ///
            /// Each delivery may be settled once; settling it again ends the consumer with an error.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`] for deliveries of another consumer.
            ///
            /// # Cancel safety
            /// A dropped future has either settled all of them or none.
            pub async fn ack(&self, what: impl Settleable) -> Result<Settlement> {
                self.settler.ack(what).await
            }

            /// Acks every delivery that is not settled yet, up to and including `last`.
            ///
            /// # Errors
            /// As [`ack`](Self::ack).
            ///
            /// # Cancel safety
            /// As [`ack`](Self::ack).
            pub async fn ack_through(&self, last: DeliveryTag) -> Result<Settlement> {
                self.settler.ack_through(last).await
            }

            /// Acks deliveries and waits until the broker has that on disk: after this, not even a
            /// crash delivers them again.
            ///
            /// # Errors
            /// As [`ack`](Self::ack); [`ErrorKind::Disconnected`] if the connection was lost
            /// meanwhile, after which they may or may not be delivered again.
            ///
            /// # Cancel safety
            /// A dropped future has settled them, durably or not yet.
            pub async fn ack_durable(&self, what: impl Settleable) -> Result<Settlement> {
                self.settler.ack_durable(what).await
            }

            /// Gives deliveries back: they return to their places in the queue and are delivered
            /// again, to whoever comes first.
            ///
            /// # Errors
            /// As [`ack`](Self::ack).
            ///
            /// # Cancel safety
            /// As [`ack`](Self::ack).
            pub async fn nack(&self, what: impl Settleable) -> Result<Settlement> {
                self.settler.nack(what).await
            }

            /// Drops deliveries: they are not delivered again. Dead letters do not exist yet.
            ///
            /// # Errors
            /// As [`ack`](Self::ack).
            ///
            /// # Cancel safety
            /// As [`ack`](Self::ack).
            pub async fn reject(&self, what: impl Settleable) -> Result<Settlement> {
                self.settler.reject(what).await
            }

            /// What the consumer holds, as the broker sees it.
            ///
            /// # Errors
            /// [`ErrorKind::Disconnected`] if the connection was lost meanwhile: call again, it holds
            /// nothing any more. Else what ended the consumer.
            ///
            /// # Cancel safety
            /// A dropped future has changed nothing.
            pub async fn held(&self) -> Result<Held> {
                lanes::held(self.settler.all()).await
            }

            /// Tells whether this is the active consumer of its queue.
            #[must_use]
            pub fn activity(&self) -> Activity {
                let inboxes = self.settler.all().iter().map(|handle| &handle.inbox);
                Activity {
                    inboxes: inboxes.map(|inbox| (Arc::clone(inbox), false)).collect(),
                }
            }

            /// Of a reader of a stream: the next message that it is given, by its offset, as the broker
            /// said it last: when it began, and when some were missed. `None` for any other consumer,
            /// and for a member of a group whose turn it is not. Of several lanes that of the first:
            /// see [`position_in`](Self::position_in).
            #[must_use]
            pub fn position(&self) -> Option<u64> {
                self.position_in(0)
            }

            /// As [`position`](Self::position), in one lane of a stream of several.
            #[must_use]
            pub fn position_in(&self, lane: u32) -> Option<u64> {
                let handle = self.settler.all().get(lane as usize)?;
                handle.inbox.position()
            }

            /// How many lanes it reads or waits for: 1 unless it reads a stream of several.
            #[must_use]
            pub fn lanes(&self) -> u32 {
                self.settler.all().len() as u32
            }

            /// Of a reader of a stream: messages that it would have been given and that retention has
            /// removed before, since it was opened.
            #[must_use]
            pub fn missed(&self) -> u64 {
                let all = self.settler.all().iter();
                all.map(|handle| handle.inbox.missed()).sum()
            }

            /// A handle that settles from other tasks.
            #[must_use]
            pub fn settler(&self) -> Settler {
                self.settler.clone()
            }

            /// The queue.
            #[must_use]
            pub fn queue(&self) -> &str {
                &self.settler.handles.queue
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("queue", &self.queue())
                    .finish_non_exhaustive()
            }
        }
    };
}

/// Gets messages of one queue pushed, as far ahead as its credit allows.
///
/// After a lost connection it subscribes again by itself. Deliveries from before are void then: the
/// broker delivers them again, and settling them does nothing ([`Settlement::Stale`]).
///
/// Dropping it does not block: what it has not settled returns to the queue.
pub struct Consumer {
    settler: Settler,
    /// The lane that is looked at first.
    turn: usize,
}

settling!(Consumer);

impl Consumer {
    /// The next messages, or `None` once the client was closed.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] for a message that does not match its producer's checksum: ack or
    /// reject it by [`Error::delivery`] and go on. Everything else is what ended the consumer.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn next_batch(&mut self) -> Result<Option<Batch>> {
        poll_fn(|cx| lanes::poll_next(self.settler.all(), &mut self.turn, cx)).await
    }

    /// Changes the credit from here on; what was delivered already counts against it. Lanes share it, and
    /// each has one message at least.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a credit out of bounds.
    pub fn set_credit(&self, messages: u32, bytes: ByteSize) -> Result<()> {
        let connection = self.settler.connection();
        let most = connection
            .limits()
            .credit_messages_max
            .min(wire::CREDIT_MESSAGES_MAX);
        if messages > most || bytes.bytes() > wire::CREDIT_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "credit is {messages} messages and {bytes}, at most {most} messages and {} B are allowed",
                    wire::CREDIT_BYTES_MAX
                ),
            ));
        }
        let all = self.settler.all();
        let (messages, bytes) = lanes::share(all.len(), messages, bytes.bytes());
        for handle in all {
            let (session, channel) = handle.inbox.set_credit(messages, bytes);
            let credit = ConsumerCredit {
                bytes,
                messages,
                reserved: 0,
            };
            let mut body = Vec::new();
            credit.encode(&mut body);
            let header = FrameHeader::bare(FrameKind::ConsumerCredit, channel, 0);
            handle.connection().tell(session, header, &body);
        }
        Ok(())
    }
}

/// Takes messages of one queue when it wants some.
///
/// ```no_run
/// # async fn example(client: ringpost_client::Client) -> ringpost_client::Result<()> {
/// use std::time::Duration;
///
/// let mut consumer = client.consumer("orders").pull().await?;
/// for batch in consumer.get(100, Duration::from_secs(1)).await? {
///     consumer.ack(&batch).await?;
/// }
/// # Ok(()) }
/// ```
pub struct PullConsumer {
    settler: Settler,
    /// The lane that is looked at first.
    turn: usize,
}

settling!(PullConsumer);

impl PullConsumer {
    /// Takes up to `count` messages that are there now; if there is none, waits up to `wait` for
    /// the first. No messages are no batches.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] as for [`Consumer::next_batch`]; [`ErrorKind::Disconnected`] if the
    /// connection was lost meanwhile: call again. Else what ended the consumer.
    ///
    /// # Cancel safety
    /// Messages that arrive after the future was dropped are in the answer of the next call, which
    /// may then be more than it asked for.
    ///
    /// Of a stream of several lanes each is asked in turn, and waited for in turn while none has any.
    pub async fn get(&mut self, count: u32, wait: Duration) -> Result<Vec<Batch>> {
        match self.settler.all() {
            [handle] => handle.get(count, wait).await,
            all => lanes::get(all, &mut self.turn, count, wait).await,
        }
    }
}

impl Handle {
    async fn get(&self, count: u32, wait: Duration) -> Result<Vec<Batch>> {
        let inbox = &self.inbox;
        if count == 0 {
            return Ok(Vec::new());
        }
        if let Some(error) = inbox.end() {
            return Err(error);
        }
        if !inbox.is_damaged_next() {
            let connection = self.connection();
            connection.up().await?;
            let (session, channel) = inbox.place();
            inbox.expect(count);
            let get = Get {
                wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
                reserved: 0,
            };
            let mut body = Vec::new();
            get.encode(&mut body);
            let header = FrameHeader {
                count,
                ..FrameHeader::bare(FrameKind::Get, channel, 0)
            };
            let timeout = wait.saturating_add(connection.options.request_timeout);
            connection
                .call_with(header, Some(session), timeout, Answer::Done, &body)
                .await?;
        }
        let mut batches = Vec::new();
        while !inbox.is_damaged_next() || batches.is_empty() {
            match inbox.take() {
                Some(Ok(batch)) => batches.extend(batch),
                Some(Err(error)) => return Err(error),
                None => break,
            }
        }
        Ok(batches)
    }
}
