//! The client that callers hold: its options, its connections, its end.
//! Does not know what travels over a connection.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringpost_wire as wire;
use tokio::task::JoinHandle;

use crate::connection::Connection;
use crate::consumer::StreamBuilder;
use crate::error::counted;
use crate::observe::{LinkEvent, Observer};
use crate::options::Options;
use crate::stats::Counters;
use crate::{
    ByteSize, ConsumerBuilder, Error, ErrorKind, Limits, ProducerBuilder, Reconnect, Resend,
    Result, Stats, TransactorBuilder,
};

/// Connections of one client, one for each queue that is consumed from, and the main one.
const CONNECTIONS_MAX: usize = 4096;

/// Builds a [`Client`]; from [`Client::builder`]. Setters never fail; [`connect`](Self::connect)
/// names every bad option at once.
///
/// ```no_run
/// # async fn example() -> ringpost_client::Result<()> {
/// use std::time::Duration;
/// use ringpost_client::{ByteSize, Client, Reconnect};
///
/// let client = Client::builder("127.0.0.1:7400")
///     .tenant("shop")
///     .name("billing 2.1")
///     .in_flight_max(ByteSize::mib(8))
///     .reconnect(Reconnect::backoff(Duration::from_millis(50), Duration::from_secs(5)))
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `connect` is awaited"]
pub struct ClientBuilder {
    options: Options,
}

impl ClientBuilder {
    /// Works in a tenant other than the default one.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.options.tenant = tenant.into();
        self
    }

    /// What the broker's operator sees of this client: a program and its version, say.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// Most bytes of messages that one producer holds unsettled; enqueueing waits at this bound.
    /// 8 MiB unless asked otherwise.
    pub fn in_flight_max(mut self, bytes: ByteSize) -> Self {
        self.options.in_flight_bytes_max = bytes.bytes();
        self
    }

    /// Largest message this client wants to receive; the broker's own limit unless asked otherwise.
    pub fn message_max(mut self, bytes: ByteSize) -> Self {
        self.options.message_bytes_max = u32::try_from(bytes.bytes()).unwrap_or(u32::MAX);
        self
    }

    /// Asks the broker for an interval of heartbeats; the broker's own unless asked otherwise.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.options.heartbeat = Some(interval);
        self
    }

    /// What to do when a connection is lost.
    pub fn reconnect(mut self, reconnect: Reconnect) -> Self {
        self.options.reconnect = reconnect;
        self
    }

    /// What producers do, after a lost connection, with what was not confirmed.
    pub fn resend(mut self, resend: Resend) -> Self {
        self.options.resend = resend;
        self
    }

    /// How long dialling and the handshake may take; 10 s unless asked otherwise.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// How long the broker may take to answer a request; 30 s unless asked otherwise.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.options.request_timeout = timeout;
        self
    }

    /// How long [`Client::close`] waits for what is in flight; 30 s unless asked otherwise.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.options.close_timeout = timeout;
        self
    }

    /// Calls `tell` whenever a connection is lost that will be dialled again, and when it is back.
    /// It is called by the task that keeps the connection up, so it must not block. A client has
    /// [several connections](crate#connections), each of which is lost by itself.
    pub fn on_link(mut self, tell: impl Fn(LinkEvent) + Send + Sync + 'static) -> Self {
        self.options.observer = Observer::new(tell);
        self
    }

    /// Connects: resolves the address, dials, and agrees with the broker on a protocol version.
    /// This is tried once; [`reconnect`](Self::reconnect) is about connections that were lost.
    ///
    /// Must be called within a tokio runtime that has IO and time enabled.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming every bad option; [`ErrorKind::Connect`] if nobody answers;
    /// [`ErrorKind::Protocol`] if the peer speaks no common version; else as the broker says.
    ///
    /// # Cancel safety
    /// Dropping the future hangs up.
    pub async fn connect(self) -> Result<Client> {
        self.options.check()?;
        let options = Arc::new(self.options);
        let counters = Arc::new(Counters::default());
        let start = Connection::start(Arc::clone(&options), Arc::clone(&counters), None);
        let (main, supervisor) = start.await?;
        Ok(Client {
            shared: Arc::new(Shared {
                options,
                counters,
                main: Arc::clone(&main),
                pool: Mutex::new(Pool {
                    slots: HashMap::new(),
                    open: vec![(main, supervisor)],
                    is_closed: false,
                }),
                exclusive: Mutex::default(),
            }),
        })
    }
}

/// Shared by the handles of one client, its producers and its consumers.
pub(crate) struct Shared {
    pub options: Arc<Options>,
    pub counters: Arc<Counters>,
    /// Admin and producers that are not near any queue.
    pub main: Arc<Connection>,
    pool: Mutex<Pool>,
    /// Queues that belong to the main connection: no other one may consume from them.
    exclusive: Mutex<HashSet<String>>,
}

struct Pool {
    /// The connection attached to each queue. A slot is locked while it is being dialled.
    slots: HashMap<String, Arc<tokio::sync::Mutex<Option<Arc<Connection>>>>>,
    /// Every connection that has not ended, with its supervisor.
    open: Vec<(Arc<Connection>, JoinHandle<()>)>,
    is_closed: bool,
}

/// The use of a connection; given back when dropped.
pub(crate) struct Lease(Arc<Connection>);

impl Lease {
    fn new(connection: Arc<Connection>) -> Result<Self> {
        connection.join()?;
        Ok(Self(connection))
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.0
    }

    /// One more use of the same connection.
    pub(crate) fn again(&self) -> Result<Self> {
        Self::new(Arc::clone(&self.0))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        // A panic in here is a bug that has been reported already; the maps stay consistent.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The main connection.
    pub(crate) fn main(&self) -> Result<Lease> {
        Lease::new(Arc::clone(&self.main))
    }

    /// A queue belongs to the main connection.
    pub(crate) fn note_exclusive(&self, queue: &str) {
        let mut exclusive = self
            .exclusive
            .lock()
            .unwrap_or_else(PoisonError::into_inner); // as of the pool
        exclusive.insert(queue.to_owned());
    }

    fn is_exclusive(&self, queue: &str) -> bool {
        let exclusive = self.exclusive.lock();
        exclusive
            .unwrap_or_else(PoisonError::into_inner) // as of the pool
            .contains(queue)
    }

    /// The connection to the core of `queue`, dialled if there is none.
    pub(crate) async fn attached(&self, queue: &str) -> Result<Lease> {
        if self.is_exclusive(queue) {
            return self.main();
        }
        let slot = {
            let mut pool = self.pool();
            // Slots nobody uses: their connections have ended, and nobody holds them.
            pool.slots.retain(|_, slot| {
                let is_ended = |slot: &Option<Arc<Connection>>| {
                    slot.as_ref().is_none_or(|connection| connection.is_ended())
                };
                Arc::strong_count(slot) > 1 || !slot.try_lock().is_ok_and(|slot| is_ended(&slot))
            });
            Arc::clone(pool.slots.entry(queue.to_owned()).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some(connection) = &*slot
            && let Ok(lease) = Lease::new(Arc::clone(connection))
        {
            return Ok(lease);
        }
        let lease = self.own(queue).await?;
        *slot = Some(Arc::clone(lease.connection()));
        Ok(lease)
    }

    /// A connection of one's own to the core of `queue`.
    pub(crate) async fn own(&self, queue: &str) -> Result<Lease> {
        if self.is_exclusive(queue) {
            return self.main();
        }
        if !wire::control::is_name(queue.as_bytes()) && !queue.starts_with("amq.") {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{queue:?} is not a name"),
            ));
        }
        {
            let mut pool = self.pool();
            pool.open
                .retain(|(_, supervisor)| !supervisor.is_finished());
            if pool.is_closed {
                return Err(Error::closed());
            }
            if pool.open.len() >= CONNECTIONS_MAX {
                return Err(Error::new(
                    ErrorKind::Full,
                    format!("the client has all of its {CONNECTIONS_MAX} connections in use"),
                ));
            }
        }
        let (options, counters) = (Arc::clone(&self.options), Arc::clone(&self.counters));
        let (connection, supervisor) =
            Connection::start(options, counters, Some(queue.to_owned())).await?;
        let lease = Lease::new(Arc::clone(&connection))?;
        let mut pool = self.pool();
        if pool.is_closed {
            // The client was closed in the meantime; the lease's drop ends the connection.
            return Err(Error::closed());
        }
        pool.open.push((connection, supervisor));
        Ok(lease)
    }

    /// Messages and bytes that are not settled, over all producers.
    fn in_flight(&self) -> (u64, u64) {
        let connections: Vec<_> = self
            .pool()
            .open
            .iter()
            .map(|(connection, _)| Arc::clone(connection))
            .collect();
        let producers = connections
            .iter()
            .flat_map(|connection| connection.producers());
        producers.map(|producer| producer.in_flight()).fold(
            (0, 0),
            |(messages, bytes), (more_messages, more_bytes)| {
                (messages + more_messages, bytes + more_bytes)
            },
        )
    }

    async fn close(&self) -> Result<()> {
        let open = {
            let mut pool = self.pool();
            pool.is_closed = true;
            std::mem::take(&mut pool.open)
        };
        let drain = async {
            for (connection, _) in &open {
                for producer in connection.producers() {
                    // What failed was told to those who asked; here only its end counts.
                    let _ = producer.flush().await;
                }
                connection.shut_down();
            }
        };
        let deadline = tokio::time::Instant::now() + self.options.close_timeout;
        let is_late = tokio::time::timeout_at(deadline, drain).await.is_err();
        let producers: Vec<_> = open
            .iter()
            .flat_map(|(connection, _)| connection.producers())
            .collect();
        let unsettled: u64 = producers
            .iter()
            .map(|producer| producer.in_flight().0)
            .sum();
        for (connection, mut supervisor) in open {
            connection.shut_down();
            if tokio::time::timeout_at(deadline, &mut supervisor)
                .await
                .is_err()
            {
                supervisor.abort();
                connection.abandon();
            }
        }
        if is_late || unsettled > 0 {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "{} not confirmed within {:?} of closing",
                    counted(unsettled, "message"),
                    self.options.close_timeout
                ),
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("address", &self.options.address)
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let (unsettled, _) = self.in_flight();
        if unsettled > 0 {
            Counters::add(&self.counters.unconfirmed_dropped, unsettled);
            crate::observe::dropped(unsettled);
        }
        for (connection, _) in &self.pool().open {
            // Its tasks write what may be written and end by themselves.
            connection.shut_down();
        }
    }
}

/// A client of one broker. Cheap to clone; all clones share their connections.
///
/// See the [crate's documentation](crate) for a tour.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

impl Client {
    /// Starts to build a client of the broker at `address`, a `host:port`.
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            options: Options::new(address.into()),
        }
    }

    pub(crate) fn from_shared(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Starts to build a producer to `exchange`. The default exchange has the empty name and routes
    /// to the queue that the routing key names. Whether an exchange exists is told with what is
    /// published to it.
    pub fn producer(&self, exchange: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.shared), exchange.into())
    }

    /// Starts to build a consumer of `queue`.
    pub fn consumer(&self, queue: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(Arc::clone(&self.shared), queue.into())
    }

    /// Starts to build what runs transactions.
    pub fn transactor(&self) -> TransactorBuilder {
        TransactorBuilder::new(Arc::clone(&self.shared))
    }

    /// Starts to build a reader of the stream `name`, see [`crate::QueueConfig::stream`].
    pub fn stream(&self, name: impl Into<String>) -> StreamBuilder {
        StreamBuilder::new(self.consumer(name))
    }

    /// What the broker agreed to.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::clone(&self.shared.main.limits())
    }

    /// What the client has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (in_flight, in_flight_bytes) = self.shared.in_flight();
        Stats {
            in_flight,
            in_flight_bytes,
            ..self.shared.counters.read()
        }
    }

    /// Closes the client and all its clones: waits until every accepted message is settled and
    /// every settlement sent, says goodbye and hangs up. Consumers end with `None`.
    ///
    /// Dropping the last clone and all producers and consumers instead does not wait: it counts and
    /// logs what was not confirmed.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] with the number of messages that were not confirmed in time.
    ///
    /// # Cancel safety
    /// A dropped future leaves the client closed to new connections; close it again.
    pub async fn close(self) -> Result<()> {
        self.shared.close().await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.shared.options.address)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
