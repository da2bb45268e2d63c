//! The same client for programs without an async runtime: every call blocks until it is done.
//! Delegates to the async client on a runtime of its own; does not know anything else.
//!
//! Calls from within an async runtime panic, as a blocked runtime could not drive anybody's IO; use
//! the async [`Client`](crate::Client) there.
//!
//! ```no_run
//! use ringpost_client::blocking::Client;
//! use ringpost_client::{Message, QueueConfig};
//!
//! # fn main() -> ringpost_client::Result<()> {
//! let client = Client::connect(ringpost_client::Client::builder("127.0.0.1:7400"))?;
//! client.ensure_queue("orders", QueueConfig::durable())?;
//! let producer = client.producer(|client| client.producer(""))?;
//! producer.send(Message::new("orders", "hello"))?; // on disk now
//!
//! let mut consumer = client.consumer(|client| client.consumer("orders").credit(100))?;
//! if let Some(batch) = consumer.next_batch()? {
//!     for delivery in &batch {
//!         println!("{:?}", delivery.payload());
//!     }
//!     consumer.ack(&batch)?;
//! }
//! client.close()
//! # }
//! ```

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::admin::QueueInfo;
use crate::{
    Batch, ByteSize, ClientBuilder, ConsumerBuilder, DeleteIf, DeliveryTag, Ensured, Error,
    ErrorKind, ExchangeConfig, Held, Limits, Message, Policy, ProducerBuilder, QueueConfig,
    Receipt, Removed, Result, Settleable, Settlement, Stats, StreamBuilder,
};

/// The runtime that a client and its producers and consumers share.
struct Driver {
    runtime: Option<Runtime>,
}

impl Driver {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let runtime = self
            .runtime
            .as_ref()
            .expect("it is taken only when dropped");
        runtime.block_on(future)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Never blocks; what was not closed was counted and logged by the client.
            runtime.shutdown_background();
        }
    }
}

/// A blocking [`crate::Client`]. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    // Before the driver, so that it is dropped while its tasks can still say goodbye.
    client: crate::Client,
    driver: Arc<Driver>,
}

impl Client {
    /// Connects as `builder` says.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`]; [`ErrorKind::Connect`] if no thread can be started.
    ///
    /// # Panics
    /// Within an async runtime, like every call of this module.
    pub fn connect(builder: ClientBuilder) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ringpost-client")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Connect, "cannot start a thread").with_source(error)
            })?;
        let driver = Arc::new(Driver {
            runtime: Some(runtime),
        });
        let client = driver.block_on(builder.connect())?;
        Ok(Self { client, driver })
    }

    /// Runs any call of the async client to its end, such as those that have no twin here.
    ///
    /// ```no_run
    /// # fn example(client: ringpost_client::blocking::Client) -> ringpost_client::Result<()> {
    /// let bindings = client.wait(async |client| client.bindings().await)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As the call.
    pub fn wait<T>(&self, call: impl AsyncFnOnce(&crate::Client) -> Result<T>) -> Result<T> {
        self.driver.block_on(call(&self.client))
    }

    /// Opens the producer that `build` describes.
    ///
    /// # Errors
    /// As [`ProducerBuilder::build`].
    pub fn producer(
        &self,
        build: impl FnOnce(&crate::Client) -> ProducerBuilder,
    ) -> Result<Producer> {
        let producer = self.driver.block_on(build(&self.client).build())?;
        Ok(Producer {
            producer,
            driver: Arc::clone(&self.driver),
        })
    }

    /// Starts the consumer that `build` describes.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::subscribe`].
    pub fn consumer(
        &self,
        build: impl FnOnce(&crate::Client) -> ConsumerBuilder,
    ) -> Result<Consumer> {
        let consumer = self.driver.block_on(build(&self.client).subscribe())?;
        Ok(Consumer {
            consumer,
            driver: Arc::clone(&self.driver),
        })
    }

    /// Opens what runs transactions: on the connection of a consumer if one is given.
    ///
    /// # Errors
    /// As [`crate::TransactorBuilder::build`].
    pub fn transactor(
        &self,
        build: impl FnOnce(&crate::Client) -> crate::TransactorBuilder,
        beside: Option<&Consumer>,
    ) -> Result<Transactor> {
        let builder = build(&self.client);
        let transactor = match beside {
            Some(consumer) => self.driver.block_on(builder.beside(&consumer.consumer))?,
            None => self.driver.block_on(builder.build())?,
        };
        Ok(Transactor {
            transactor,
            driver: Arc::clone(&self.driver),
        })
    }

    /// Starts the reader of a stream that `build` describes.
    ///
    /// # Errors
    /// As [`StreamBuilder::subscribe`].
    pub fn stream(&self, build: impl FnOnce(&crate::Client) -> StreamBuilder) -> Result<Consumer> {
        let consumer = self.driver.block_on(build(&self.client).subscribe())?;
        Ok(Consumer {
            consumer,
            driver: Arc::clone(&self.driver),
        })
    }

    /// Starts the consumer that `build` describes, to take messages when it wants some.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::pull`].
    pub fn pull_consumer(
        &self,
        build: impl FnOnce(&crate::Client) -> ConsumerBuilder,
    ) -> Result<PullConsumer> {
        let consumer = self.driver.block_on(build(&self.client).pull())?;
        Ok(PullConsumer {
            consumer,
            driver: Arc::clone(&self.driver),
        })
    }

    /// See [`crate::Client::ensure_queue`].
    ///
    /// # Errors
    /// As there.
    pub fn ensure_queue(&self, name: &str, config: QueueConfig) -> Result<Ensured> {
        self.driver.block_on(self.client.ensure_queue(name, config))
    }

    /// See [`crate::Client::delete_queue`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_queue(&self, name: &str, only: DeleteIf) -> Result<Removed> {
        self.driver.block_on(self.client.delete_queue(name, only))
    }

    /// See [`crate::Client::purge_queue`].
    ///
    /// # Errors
    /// As there.
    pub fn purge_queue(&self, name: &str) -> Result<u32> {
        self.driver.block_on(self.client.purge_queue(name))
    }

    /// See [`crate::Client::browse`].
    ///
    /// # Errors
    /// As there.
    pub fn browse(&self, queue: &str, browse: &crate::Browse) -> Result<crate::Page> {
        self.driver.block_on(self.client.browse(queue, browse))
    }

    /// See [`crate::Client::cancel_messages`].
    ///
    /// # Errors
    /// As there.
    pub fn cancel_messages(&self, queue: &str, messages: &[u64]) -> Result<crate::PlaceOutcome> {
        let cancelled = self.client.cancel_messages(queue, messages);
        self.driver.block_on(cancelled)
    }

    /// See [`crate::Client::move_messages`].
    ///
    /// # Errors
    /// As there.
    pub fn move_messages(
        &self,
        queue: &str,
        to: &crate::MoveTo,
        messages: &[u64],
    ) -> Result<crate::PlaceOutcome> {
        let moved = self.client.move_messages(queue, to, messages);
        self.driver.block_on(moved)
    }

    /// See [`crate::Client::inspect_queue`].
    ///
    /// # Errors
    /// As there.
    pub fn inspect_queue(&self, name: &str) -> Result<QueueInfo> {
        self.driver.block_on(self.client.inspect_queue(name))
    }

    /// See [`crate::Client::set_policy`].
    ///
    /// # Errors
    /// As there.
    pub fn set_policy(&self, policy: &Policy) -> Result<Ensured> {
        self.driver.block_on(self.client.set_policy(policy))
    }

    /// See [`crate::Client::delete_policy`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_policy(&self, name: &str) -> Result<Removed> {
        self.driver.block_on(self.client.delete_policy(name))
    }

    /// See [`crate::Client::policies`].
    ///
    /// # Errors
    /// As there.
    pub fn policies(&self) -> Result<Vec<Policy>> {
        self.driver.block_on(self.client.policies())
    }

    /// See [`crate::Client::queues`].
    ///
    /// # Errors
    /// As there.
    pub fn queues(&self) -> Result<Vec<QueueInfo>> {
        self.driver.block_on(self.client.queues())
    }

    /// See [`crate::Client::ensure_exchange`].
    ///
    /// # Errors
    /// As there.
    pub fn ensure_exchange(&self, name: &str, config: ExchangeConfig) -> Result<Ensured> {
        self.driver
            .block_on(self.client.ensure_exchange(name, config))
    }

    /// See [`crate::Client::bind`].
    ///
    /// # Errors
    /// As there.
    pub fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<Ensured> {
        self.driver.block_on(self.client.bind(queue, exchange, key))
    }

    /// See [`crate::Client::unbind`].
    ///
    /// # Errors
    /// As there.
    pub fn unbind(&self, queue: &str, exchange: &str, key: &str) -> Result<Removed> {
        self.driver
            .block_on(self.client.unbind(queue, exchange, key))
    }

    /// See [`crate::Client::limits`].
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.client.limits()
    }

    /// See [`crate::Client::stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.client.stats()
    }

    /// See [`crate::Client::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(self) -> Result<()> {
        self.driver.block_on(self.client.clone().close())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

/// A blocking [`crate::Producer`]. Cheap to clone.
#[derive(Clone)]
pub struct Producer {
    producer: crate::Producer,
    driver: Arc<Driver>,
}

impl Producer {
    /// See [`crate::Producer::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, message: Message) -> Result<Receipt> {
        self.driver.block_on(self.producer.send(message))
    }

    /// See [`crate::Producer::enqueue`].
    ///
    /// # Errors
    /// As there.
    pub fn enqueue(&self, message: Message) -> Result<Pending> {
        let pending = self.driver.block_on(self.producer.enqueue(message))?;
        Ok(Pending {
            pending,
            driver: Arc::clone(&self.driver),
        })
    }

    /// See [`crate::Producer::send_batch`].
    ///
    /// # Errors
    /// As there.
    pub fn send_batch<I>(&self, messages: I) -> Result<Receipt>
    where
        I: IntoIterator,
        I::Item: Borrow<Message>,
    {
        self.driver.block_on(self.producer.send_batch(messages))
    }

    /// See [`crate::Producer::enqueue_batch`].
    ///
    /// # Errors
    /// As there.
    pub fn enqueue_batch<I>(&self, messages: I) -> Result<PendingBatch>
    where
        I: IntoIterator,
        I::Item: Borrow<Message>,
    {
        let pending = self.producer.enqueue_batch(messages);
        let pending = self.driver.block_on(pending)?;
        Ok(PendingBatch {
            pending,
            driver: Arc::clone(&self.driver),
        })
    }

    /// See [`crate::Producer::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self) -> Result<()> {
        self.driver.block_on(self.producer.flush())
    }

    /// See [`crate::Producer::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(self) -> Result<()> {
        self.driver.block_on(self.producer.close())
    }

    /// See [`crate::Producer::in_flight`].
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.producer.in_flight()
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.producer.fmt(f)
    }
}

/// A blocking [`crate::Pending`].
#[must_use = "a `Pending` is the only word about the message; wait for it, or `flush` the producer"]
pub struct Pending {
    pending: crate::Pending,
    driver: Arc<Driver>,
}

impl Pending {
    /// Waits for the receipt.
    ///
    /// # Errors
    /// As [`crate::Pending`].
    pub fn wait(self) -> Result<Receipt> {
        self.driver.block_on(self.pending)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pending.fmt(f)
    }
}

/// A blocking [`crate::PendingBatch`].
#[must_use = "a `PendingBatch` is the only word about its messages; wait for it, or `flush` the producer"]
pub struct PendingBatch {
    pending: crate::PendingBatch,
    driver: Arc<Driver>,
}

impl PendingBatch {
    /// Waits for the receipt of all of them.
    ///
    /// # Errors
    /// As [`crate::PendingBatch`].
    pub fn wait(self) -> Result<Receipt> {
        self.driver.block_on(self.pending)
    }
}

impl fmt::Debug for PendingBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pending.fmt(f)
    }
}

/// What settles deliveries: both kinds of consumer, and what acts for them in other threads.
macro_rules! settling {
    ($name:ident, $inner:ident) => {
        impl $name {
            /// See [`crate::Consumer::ack`].
            ///
            /// # Errors
            /// As there.
            pub fn ack(&self, what: impl Settleable) -> Result<Settlement> {
                self.driver.block_on(self.$inner.ack(what))
            }

            /// See [`crate::Consumer::ack_through`].
            ///
            /// # Errors
            /// As there.
            pub fn ack_through(&self, last: DeliveryTag) -> Result<Settlement> {
                self.driver.block_on(self.$inner.ack_through(last))
            }

            /// See [`crate::Consumer::ack_durable`].
            ///
            /// # Errors
            /// As there.
            pub fn ack_durable(&self, what: impl Settleable) -> Result<Settlement> {
                self.driver.block_on(self.$inner.ack_durable(what))
            }

            /// See [`crate::Consumer::nack`].
            ///
            /// # Errors
            /// As there.
            pub fn nack(&self, what: impl Settleable) -> Result<Settlement> {
                self.driver.block_on(self.$inner.nack(what))
            }

            /// See [`crate::Consumer::reject`].
            ///
            /// # Errors
            /// As there.
            pub fn reject(&self, what: impl Settleable) -> Result<Settlement> {
                self.driver.block_on(self.$inner.reject(what))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.$inner.fmt(f)
            }
        }
    };
}

/// A blocking [`crate::Consumer`].
pub struct Consumer {
    consumer: crate::Consumer,
    driver: Arc<Driver>,
}

settling!(Consumer, consumer);

impl Consumer {
    /// See [`crate::Consumer::next_batch`].
    ///
    /// # Errors
    /// As there.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        self.driver.block_on(self.consumer.next_batch())
    }

    /// As [`next_batch`](Self::next_batch), for as long as `wait`.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if nothing came: call again, nothing is lost. Else as there.
    pub fn next_batch_within(&mut self, wait: Duration) -> Result<Option<Batch>> {
        let next = async { tokio::time::timeout(wait, self.consumer.next_batch()).await };
        self.driver.block_on(next).unwrap_or_else(|_| {
            let text = format!("no message came within {wait:?}");
            Err(Error::new(ErrorKind::TimedOut, text))
        })
    }

    /// See [`crate::Consumer::set_credit`].
    ///
    /// # Errors
    /// As there.
    pub fn set_credit(&self, messages: u32, bytes: ByteSize) -> Result<()> {
        self.consumer.set_credit(messages, bytes)
    }

    /// See [`crate::Consumer::held`].
    ///
    /// # Errors
    /// As there.
    pub fn held(&self) -> Result<Held> {
        self.driver.block_on(self.consumer.held())
    }

    /// Whether it is the active consumer of its queue: see [`crate::Activity`].
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.consumer.activity().is_active()
    }

    /// A handle that settles from other threads.
    #[must_use]
    pub fn settler(&self) -> Settler {
        Settler {
            settler: self.consumer.settler(),
            driver: Arc::clone(&self.driver),
        }
    }
}

/// A blocking [`crate::Settler`]. Cheap to clone.
#[derive(Clone)]
pub struct Settler {
    settler: crate::Settler,
    driver: Arc<Driver>,
}

settling!(Settler, settler);

/// A blocking [`crate::PullConsumer`].
pub struct PullConsumer {
    consumer: crate::PullConsumer,
    driver: Arc<Driver>,
}

settling!(PullConsumer, consumer);

impl PullConsumer {
    /// See [`crate::PullConsumer::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&mut self, count: u32, wait: Duration) -> Result<Vec<Batch>> {
        self.driver.block_on(self.consumer.get(count, wait))
    }
}

/// A blocking [`crate::Transactor`].
#[derive(Debug)]
pub struct Transactor {
    transactor: crate::Transactor,
    driver: Arc<Driver>,
}

impl Transactor {
    /// See [`crate::Transactor::begin`].
    ///
    /// # Errors
    /// As there.
    pub fn begin(&mut self) -> Result<Transaction<'_>> {
        let transaction = self.driver.block_on(self.transactor.begin())?;
        Ok(Transaction {
            transaction,
            driver: Arc::clone(&self.driver),
        })
    }

    /// See [`crate::Transactor::transform`]; `each` says what is to be published, and where.
    ///
    /// # Errors
    /// As there.
    pub fn transform(
        &mut self,
        consumer: &mut Consumer,
        each: impl FnOnce(&Batch) -> Result<Vec<(String, Message)>>,
    ) -> Result<Option<usize>> {
        let done = self.transactor.transform(
            &mut consumer.consumer,
            async |batch: &Batch, transaction: &mut crate::Transaction<'_>| {
                for (exchange, message) in each(batch)? {
                    transaction.publish(&exchange, &message).await?;
                }
                Ok(())
            },
        );
        self.driver.block_on(done)
    }
}

/// A blocking [`crate::Transaction`].
#[derive(Debug)]
#[must_use = "a transaction comes to nothing unless it is committed"]
pub struct Transaction<'a> {
    transaction: crate::Transaction<'a>,
    driver: Arc<Driver>,
}

impl Transaction<'_> {
    /// See [`crate::Transaction::publish`].
    ///
    /// # Errors
    /// As there.
    pub fn publish(&mut self, exchange: &str, message: &Message) -> Result<()> {
        let published = self.transaction.publish(exchange, message);
        self.driver.block_on(published)
    }

    /// See [`crate::Transaction::ack`].
    ///
    /// # Errors
    /// As there.
    pub fn ack(&mut self, by: &Consumer, what: impl Settleable) -> Result<()> {
        self.driver
            .block_on(self.transaction.ack(&by.consumer, what))
    }

    /// See [`crate::Transaction::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(self) -> Result<()> {
        self.driver.block_on(self.transaction.commit())
    }

    /// See [`crate::Transaction::rollback`].
    ///
    /// # Errors
    /// As there.
    pub fn rollback(self) -> Result<()> {
        self.driver.block_on(self.transaction.rollback())
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}
