//! Transactions: what callers hold of them, and what they are told. Does not know how a broker keeps
//! what it is told.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringpost_wire::control::{Body, TransactionOpen, TransactionOpened, TransactionSettle};
use ringpost_wire::header::{PUBLISH_MANDATORY, TRANSACTION_COMMITTED};
use ringpost_wire::{
    self as wire, Code, FrameHeader, FrameKind, SETTLE_RANGES_MAX, SettleRange, padded,
};
use tokio::sync::oneshot;

use crate::client::{Lease, Shared};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::{Batch, Error, ErrorKind, Message, Result, Settleable};

/// Bytes of messages that are gathered before they are sent.
const FRAME_ROOM: usize = wire::FRAME_BYTES_MAX - wire::FRAME_HEADER_BYTES;

/// How a transaction ended; `Ok(true)`: everything has happened.
type Ended = Result<bool>;

/// Who waits for what.
#[derive(Default)]
enum Waits {
    #[default]
    Nobody,
    /// The channel is being opened.
    Open(oneshot::Sender<Result<()>>),
    /// A transaction is being ended.
    End(oneshot::Sender<Ended>),
}

struct State {
    /// The session in which it is open; 0 = none.
    session: u32,
    channel: u16,
    /// Number of the transaction that is next.
    number: u64,
    /// One has begun that was not ended.
    is_begun: bool,
    /// One was dropped, and the broker has not said that it is over.
    is_ending: bool,
    limits: Option<TransactionOpened>,
    waits: Waits,
    end: Option<Error>,
}

/// A channel for transactions, as its connection sees it.
pub(crate) struct Book {
    timeout_ms: u32,
    state: Mutex<State>,
}

impl Book {
    fn new(timeout_ms: u32) -> Arc<Self> {
        Arc::new(Self {
            timeout_ms,
            state: Mutex::new(State {
                session: 0,
                channel: 0,
                number: 1,
                is_begun: false,
                is_ending: false,
                limits: None,
                waits: Waits::Nobody,
                end: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here is a bug that has been reported already; the state stays consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open_frame(&self, channel: u16, session: u32, request: u64, out: &mut Vec<u8>) {
        let mut state = self.lock();
        state.channel = channel;
        state.session = session;
        state.number = 1;
        state.is_begun = false;
        state.is_ending = false;
        state.limits = None;
        let open = TransactionOpen {
            timeout_ms: self.timeout_ms,
            reserved: 0,
        };
        let header = FrameHeader::bare(FrameKind::TransactionOpen, channel, request);
        open.write(out, header);
    }

    pub(crate) fn opened(&self, body: &[u8]) -> Result<(), Code> {
        let limits = TransactionOpened::decode(body)?;
        let mut state = self.lock();
        state.limits = Some(limits);
        if let Waits::Open(opened) = std::mem::take(&mut state.waits) {
            // Who has given up waiting does not want to know.
            let _ = opened.send(Ok(()));
        }
        Ok(())
    }

    /// The broker said how a transaction ended.
    pub(crate) fn over(&self, header: &FrameHeader, outcome: Result<()>) -> Result<(), Code> {
        let mut state = self.lock();
        state.is_ending = false;
        match std::mem::take(&mut state.waits) {
            Waits::End(ended) => {
                let committed = header.flags & TRANSACTION_COMMITTED != 0;
                let _ = ended.send(outcome.map(|()| committed)); // as above
                Ok(())
            }
            // Whoever began it is gone.
            Waits::Nobody => Ok(()),
            waits @ Waits::Open(_) => {
                state.waits = waits;
                Err(Code::UnexpectedFrame)
            }
        }
    }

    /// Whether it is open, so that a failure is about a transaction.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().limits.is_some()
    }

    /// The connection is lost.
    pub(crate) fn lost(&self) {
        let mut state = self.lock();
        state.session = 0;
        state.limits = None;
        state.is_begun = false;
        state.is_ending = false;
        if let Waits::End(ended) = std::mem::take(&mut state.waits) {
            let _ = ended.send(Err(unsure())); // as above
        }
    }

    /// Nothing comes after this.
    pub(crate) fn ended(&self, error: &Error) {
        let mut state = self.lock();
        state.session = 0;
        state.limits = None;
        state.end.get_or_insert_with(|| error.clone());
        match std::mem::take(&mut state.waits) {
            Waits::Nobody => {}
            Waits::Open(opened) => drop(opened.send(Err(error.clone()))),
            Waits::End(ended) => drop(ended.send(Err(unsure()))),
        }
    }

    /// Expects the answer that opens it.
    fn expect_open(&self) -> oneshot::Receiver<Result<()>> {
        let (sender, opened) = oneshot::channel();
        self.lock().waits = Waits::Open(sender);
        opened
    }
}

fn unsure() -> Error {
    Error::new(
        ErrorKind::Indeterminate,
        "the connection was lost before the broker said how the transaction ended: all of it has \
         happened, or nothing",
    )
}

/// Builds a [`Transactor`]; from [`crate::Client::transactor`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is awaited"]
pub struct TransactorBuilder {
    shared: Arc<Shared>,
    timeout: Duration,
}

impl TransactorBuilder {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            timeout: Duration::ZERO,
        }
    }

    /// How long a transaction may be open before the broker rolls it back, at most an hour; a minute
    /// unless asked otherwise.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens it on the client's main connection: its transactions publish, and acknowledge nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] if a connection has as many as it may; [`ErrorKind::Invalid`] for a timeout
    /// out of bounds; else as the network says.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn build(self) -> Result<Transactor> {
        let lease = self.shared.main()?;
        self.open(lease).await
    }

    /// Opens it on the connection of a consumer: its transactions acknowledge what that was delivered,
    /// too, and what those were that were built [beside it](crate::ConsumerBuilder::beside).
    ///
    /// # Errors
    /// As [`build`](Self::build).
    ///
    /// # Cancel safety
    /// As [`build`](Self::build).
    pub async fn beside(self, consumer: &impl Settles) -> Result<Transactor> {
        let lease = consumer.handle().lease()?;
        self.open(lease).await
    }

    async fn open(self, lease: Lease) -> Result<Transactor> {
        let timeout_ms = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        let book = Book::new(timeout_ms);
        let connection = Arc::clone(lease.connection());
        let opened = book.expect_open();
        let channel = connection.add_book(&book)?;
        // From here on dropping it closes the channel.
        let transactor = Transactor {
            book,
            channel,
            lease,
            _shared: self.shared,
        };
        let waits = connection.options.request_timeout;
        match tokio::time::timeout(waits, opened).await {
            Ok(Ok(result)) => result.map(|()| transactor),
            Ok(Err(_)) => Err(Error::closed()),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                "the broker did not open the channel in time",
            )),
        }
    }
}

/// Whatever settles deliveries: a [`Consumer`], a
/// [`PullConsumer`](crate::PullConsumer) or a [`Settler`](crate::Settler). Sealed.
pub trait Settles: Handles {}

impl<T: Handles> Settles for T {}

mod sealed {
    use crate::consumer::{Consumer, PullConsumer, Settler};

    /// What is common to consumers.
    pub trait Handles {
        /// What settles.
        fn handle(&self) -> &Settler;
    }

    impl Handles for Settler {
        fn handle(&self) -> &Settler {
            self
        }
    }

    impl Handles for Consumer {
        fn handle(&self) -> &Settler {
            self.as_settler()
        }
    }

    impl Handles for PullConsumer {
        fn handle(&self) -> &Settler {
            self.as_settler()
        }
    }
}

pub(crate) use sealed::Handles;

/// Runs transactions, one after the other. For several at a time there are several transactors.
///
/// After a lost connection it goes on by itself; a transaction that was open then has come to nothing.
/// Dropping it rolls back what is open.
pub struct Transactor {
    book: Arc<Book>,
    channel: u16,
    lease: Lease,
    _shared: Arc<Shared>,
}

impl Transactor {
    fn connection(&self) -> &Arc<Connection> {
        self.lease.connection()
    }

    /// Begins a transaction, once the connection is up. Nothing is sent for that.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if the connection does not come up in time; else what ended it.
    ///
    /// # Cancel safety
    /// A dropped future has begun nothing.
    pub async fn begin(&mut self) -> Result<Transaction<'_>> {
        let connection = Arc::clone(self.connection());
        let waits = connection.options.request_timeout;
        let opened = async {
            loop {
                connection.up().await?;
                let waits = {
                    let mut state = self.book.lock();
                    if let Some(error) = &state.end {
                        return Err(error.clone());
                    }
                    if state.limits.is_some() {
                        break;
                    }
                    // Opened again after the connection was lost.
                    let (sender, opened) = oneshot::channel();
                    state.waits = Waits::Open(sender);
                    opened
                };
                if let Ok(result) = waits.await {
                    result?;
                }
            }
            Ok(())
        };
        match tokio::time::timeout(waits, opened).await {
            Ok(result) => result?,
            Err(_) => {
                let text = "the channel was not opened again in time";
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
        }
        let is_over = {
            let mut state = self.book.lock();
            state.is_ending.then(|| {
                let (sender, ended) = oneshot::channel();
                state.waits = Waits::End(sender);
                ended
            })
        };
        if let Some(is_over) = is_over {
            // The one before was dropped: the next one begins when that is rolled back (P-95).
            let waited = tokio::time::timeout(waits, is_over).await;
            if waited.is_err() {
                let text = "the broker did not say in time that the transaction before is over";
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
        }
        let (session, number) = {
            let mut state = self.book.lock();
            state.is_begun = true;
            (state.session, state.number)
        };
        Ok(Transaction {
            transactor: self,
            session,
            number,
            body: Vec::new(),
            count: 0,
            is_mandatory: true,
            failed: None,
        })
    }

    /// Ends the transaction that has begun, and waits for what the broker says.
    async fn end(&self, kind: FrameKind) -> Ended {
        let connection = self.connection();
        let (session, number, ended) = {
            let mut state = self.book.lock();
            if state.session == 0 || !state.is_begun {
                let text = "the connection was lost while the transaction was open";
                return Err(Error::disconnected(text));
            }
            let (sender, ended) = oneshot::channel();
            state.waits = Waits::End(sender);
            state.is_begun = false;
            let number = state.number;
            state.number += 1;
            (state.session, number, ended)
        };
        let header = FrameHeader::bare(kind, self.channel, number);
        connection.tell(session, header, &[]);
        match tokio::time::timeout(connection.options.request_timeout, ended).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Error::new(
                ErrorKind::Indeterminate,
                "the broker did not say in time how the transaction ended: all of it has happened, \
                 or nothing",
            )),
        }
    }

    /// Takes a consumer's next batch, gives it to `each`, which publishes what comes of it, and commits
    /// that together with the acknowledgement of the batch: each message is consumed, and what comes of
    /// it published, exactly once. Returns how many messages; `None` once the client was closed.
    ///
    /// Call it over and over, also after an error that [is retryable](Error::is_retryable) or
    /// [`ErrorKind::Indeterminate`]: nothing is half done, and what was not consumed comes again.
    ///
    /// ```no_run
    /// # async fn example(client: ringpost_client::Client) -> ringpost_client::Result<()> {
    /// use ringpost_client::Message;
    ///
    /// let mut orders = client.consumer("orders").subscribe().await?;
    /// let mut transactor = client.transactor().beside(&orders).await?;
    /// loop {
    ///     let done = transactor
    ///         .transform(&mut orders, async |batch, transaction| {
    ///             for order in batch {
    ///                 let bill = Message::new("bills", order.payload().to_vec());
    ///                 transaction.publish("", &bill).await?;
    ///             }
    ///             Ok(())
    ///         })
    ///         .await;
    ///     match done {
    ///         Ok(Some(_)) => {}
    ///         Ok(None) => return Ok(()),
    ///         Err(error) if error.is_retryable() => {}
    ///         Err(error) => return Err(error),
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the consumer, `each` or the commit says.
    ///
    /// # Cancel safety
    /// A dropped future rolls back what is open; what it was given comes again when its consumer does not
    /// hold it any more.
    pub async fn transform(
        &mut self,
        consumer: &mut Consumer,
        each: impl AsyncFnOnce(&Batch, &mut Transaction<'_>) -> Result<()>,
    ) -> Result<Option<usize>> {
        let Some(batch) = consumer.next_batch().await? else {
            return Ok(None);
        };
        let count = batch.len();
        let mut transaction = self.begin().await?;
        if let Err(error) = transaction.ack(consumer, &batch).await {
            transaction.rollback().await?;
            return Err(error);
        }
        if let Err(error) = each(&batch, &mut transaction).await {
            transaction.rollback().await?;
            return Err(error);
        }
        transaction.commit().await?;
        Ok(Some(count))
    }
}

impl Drop for Transactor {
    fn drop(&mut self) {
        self.lease.connection().close_book(self.channel, &self.book);
    }
}

impl fmt::Debug for Transactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactor").finish_non_exhaustive()
    }
}

/// Messages that are published and deliveries that are acknowledged together, or not at all.
///
/// Nothing of it is seen by anybody before [`commit`](Self::commit). Dropping it rolls it back.
#[must_use = "a transaction comes to nothing unless it is committed"]
pub struct Transaction<'a> {
    transactor: &'a mut Transactor,
    session: u32,
    number: u64,
    /// Messages that are not sent yet.
    body: Vec<u8>,
    count: u32,
    is_mandatory: bool,
    /// Why nothing can come of it.
    failed: Option<Error>,
}

impl Transaction<'_> {
    /// Whether a message that no queue takes fails the transaction, for those published from now on; it
    /// does unless asked otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::Disconnected`] if the connection was lost: the transaction has come to nothing.
    pub fn mandatory(&mut self, is_mandatory: bool) -> Result<()> {
        self.send()?;
        self.is_mandatory = is_mandatory;
        Ok(())
    }

    /// Publishes a message to an exchange; the default one has the empty name. It may be at most 192
    /// KiB with all its parts.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] or [`ErrorKind::Invalid`] for a message that cannot be;
    /// [`ErrorKind::Disconnected`] if the connection was lost: the transaction has come to nothing.
    ///
    /// # Cancel safety
    /// A dropped future has published the message or not.
    pub async fn publish(&mut self, exchange: &str, message: &Message) -> Result<()> {
        self.check()?;
        let parts = message.parts(exchange.as_bytes());
        let length = parts.length();
        let limits = self.transactor.connection().limits();
        message.check(length, limits.message_bytes_max)?;
        if length > wire::FRAGMENT_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the message has {length} B, one of a transaction at most {}",
                    wire::FRAGMENT_BYTES_MAX
                ),
            ));
        }
        if self.body.len() + padded(length) > FRAME_ROOM {
            self.send()?;
            self.transactor.connection().flushed(self.session).await;
        }
        let start = self.body.len();
        if let Err(fault) = parts.write(&mut self.body) {
            self.body.truncate(start);
            return Err(Error::new(ErrorKind::Invalid, fault.to_string()));
        }
        self.count += 1;
        Ok(())
    }

    /// Acknowledges deliveries with the transaction: of a consumer on the same connection, see
    /// [`TransactorBuilder::beside`]. They stay outstanding until the commit.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for deliveries of another consumer or connection;
    /// [`ErrorKind::Disconnected`] if the connection was lost since they were delivered: they come
    /// again, and the transaction can come to nothing.
    ///
    /// # Cancel safety
    /// A dropped future has acknowledged all of them or none.
    pub async fn ack(&mut self, by: &impl Settles, what: impl Settleable) -> Result<()> {
        self.check()?;
        let settler = by.handle();
        let connection = self.transactor.connection();
        if !Arc::ptr_eq(connection, settler.lease_connection()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the consumer is on another connection than the transaction: build one beside the other",
            ));
        }
        let (session, consumer, ranges) = settler.ranges_of(&what)?;
        let Some(ranges) = ranges.filter(|_| session == self.session) else {
            let error = Error::disconnected(
                "the connection was lost since the deliveries: they are delivered again",
            );
            self.failed = Some(error.clone());
            return Err(error);
        };
        self.send()?;
        for ranges in ranges.chunks(SETTLE_RANGES_MAX) {
            let bytes: Vec<u8> = ranges.iter().flat_map(SettleRange::encode).collect();
            let settle = TransactionSettle {
                consumer,
                reserved: 0,
                ranges: &bytes,
            };
            let header = FrameHeader {
                count: ranges.len() as u32,
                ..self.header(FrameKind::TransactionSettle)
            };
            let mut body = Vec::new();
            settle.encode(&mut body);
            self.transactor
                .connection()
                .tell(self.session, header, &body);
        }
        self.transactor.connection().flushed(self.session).await;
        Ok(())
    }

    /// Makes all of it happen, durably.
    ///
    /// # Errors
    /// [`ErrorKind::Indeterminate`] if the connection or the broker's journal was lost meanwhile: all of
    /// it has happened, or nothing. Any other error says that nothing has, and why; deliveries return to
    /// their places.
    ///
    /// # Cancel safety
    /// After a dropped future all of it happens, or nothing.
    pub async fn commit(mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            let _nothing_came_of_it = self.finish(FrameKind::TransactionRollback).await;
            return Err(error);
        }
        self.check()?;
        self.send()?;
        match self.finish(FrameKind::TransactionCommit).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::protocol(
                Code::UnexpectedFrame,
                "the broker rolled back what was to be committed, and did not say why",
            )),
            Err(error) => Err(error),
        }
    }

    /// Lets nothing of it happen: deliveries return to their places. A lost connection does so, too.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if the client is.
    ///
    /// # Cancel safety
    /// After a dropped future nothing of it happens.
    pub async fn rollback(mut self) -> Result<()> {
        match self.finish(FrameKind::TransactionRollback).await {
            Err(error) if error.kind() == ErrorKind::Closed => Err(error),
            // Without its connection nothing comes of it.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn finish(&mut self, kind: FrameKind) -> Ended {
        self.transactor.end(kind).await
    }

    fn header(&self, kind: FrameKind) -> FrameHeader {
        FrameHeader::bare(kind, self.transactor.channel, self.number)
    }

    /// Whether its session still is.
    fn check(&self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let state = self.transactor.book.lock();
        if let Some(error) = &state.end {
            return Err(error.clone());
        }
        if state.session != self.session {
            return Err(Error::disconnected(
                "the connection was lost while the transaction was open: nothing came of it",
            ));
        }
        Ok(())
    }

    /// Sends the messages that were gathered.
    fn send(&mut self) -> Result<()> {
        self.check()?;
        if self.count > 0 {
            let header = FrameHeader {
                count: self.count,
                flags: if self.is_mandatory {
                    PUBLISH_MANDATORY
                } else {
                    0
                },
                ..self.header(FrameKind::TransactionPublish)
            };
            self.transactor
                .connection()
                .tell(self.session, header, &self.body);
            self.body.clear();
            self.count = 0;
        }
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.transactor.book.lock();
            let is_open = state.is_begun && state.session == self.session;
            if !is_open || state.number != self.number {
                return;
            }
            state.is_begun = false;
            state.is_ending = true;
            state.number += 1;
        }
        let header = self.header(FrameKind::TransactionRollback);
        self.transactor.connection().tell(self.session, header, &[]);
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
