//! The Ringpost client: publish messages and know what became of them, consume messages and say so.
//! Knows the protocol (`ringpost-wire`) and sockets; does not know how a broker works.
//!
//! # A tour
//!
//! A [`Client`] is connected once and cloned wherever it is needed. [`ClientBuilder::connect`] is the
//! one step that can fail for a wrong option or address; afterwards the client keeps its connections
//! up by itself.
//!
//! ```no_run
//! use ringpost_client::{ByteSize, Client, ExchangeConfig, Level, Message, QueueConfig, Result};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<()> {
//!     let client = Client::builder("127.0.0.1:7400")
//!         .in_flight_max(ByteSize::mib(8)) // `enqueue` waits here, it never buffers more
//!         .connect() // resolve, dial, agree on a protocol version
//!         .await?;
//!
//!     // These words say what is to be, not what to do: run them twice, run them everywhere.
//!     client.ensure_queue("orders", QueueConfig::durable()).await?;
//!     client.ensure_exchange("shop", ExchangeConfig::topic()).await?;
//!     client.bind("orders", "shop", "order.*.paid").await?;
//!
//!     let producer = client.producer("shop").level(Level::Durable).build().await?;
//!     let receipt = producer.send(Message::new("order.7.paid", "hello")).await?; // on disk now
//!     println!("confirmed at {:?}", receipt.level);
//!     let pending = producer.enqueue(Message::new("order.8.paid", "world")).await?; // pipelined
//!     pending.await?;
//!
//!     let mut consumer = client.consumer("orders").credit(1_000).subscribe().await?;
//!     while let Some(batch) = consumer.next_batch().await? {
//!         for delivery in &batch {
//!             // Borrows the bytes that were received: no copy per message.
//!             println!("{} {:?}", delivery.routing_key(), delivery.payload());
//!         }
//!         consumer.ack(&batch).await?;
//!     }
//!     client.close().await // waits for what is in flight; dropping never blocks
//! }
//! ```
//!
//! # Publishing
//!
//! A [`Producer`] publishes to one exchange, in order. Its [`Level`] says when a publish is confirmed:
//! [`Level::Durable`], the default, when it is on disk. [`Producer::send`] waits for that;
//! [`Producer::enqueue`] returns as soon as the message is accepted, with a [`Pending`] receipt, so
//! that many are on their way at once. [`Producer::enqueue_batch`] does so for many messages at the
//! cost of one, and [`Producer::flush`] waits for all there are.
//!
//! ```no_run
//! # async fn example(producer: ringpost_client::Producer) -> ringpost_client::Result<()> {
//! use ringpost_client::{ErrorKind, Message};
//!
//! match producer.send(Message::new("order.9.paid", "again")).await {
//!     Ok(_) => println!("stored"),
//!     Err(error) if error.kind() == ErrorKind::Indeterminate => println!("stored or not"),
//!     Err(error) if error.is_retryable() => println!("not stored, try again: {error}"),
//!     Err(error) => println!("not stored, and never will be as it is: {error}"),
//! }
//! # Ok(()) }
//! ```
//!
//! Back-pressure has two bounds: what one producer holds unsettled
//! ([`ClientBuilder::in_flight_max`]), and what the broker gives it credit for. Both show as
//! [`Producer::enqueue`] taking its time, never as memory.
//!
//! # Consuming
//!
//! A [`Consumer`] gets messages pushed, as far ahead of its settlements as its credit goes; a
//! [`PullConsumer`] takes some when it wants some. Settle a whole [`Batch`], a [`DeliveryRef`], a
//! [`DeliveryTag`] or ranges of tags, from any task with a [`Settler`]: [`ack`](Consumer::ack) is
//! done with it, [`nack`](Consumer::nack) gives it back, [`reject`](Consumer::reject) drops it, and
//! [`ack_durable`](Consumer::ack_durable) waits until not even a crash brings it back.
//!
//! [`Client::stream`] reads a queue that was declared as a stream: any number of readers get the same
//! messages, each from where it [starts](Start), and groups have their place kept by the broker.
//!
//! # Transactions
//!
//! A [`Transactor`] runs transactions: messages are published and deliveries acknowledged together or
//! not at all, whatever queues they are of. [`Transactor::transform`] consumes, transforms and
//! publishes exactly once.
//!
//! # Guarantees
//!
//! | | |
//! |---|---|
//! | order | Messages of one producer to one queue are stored in the order in which they were enqueued, and delivered in the order of their queue. What is given back or was on its way when a connection was lost comes again at its old place. |
//! | loss | A message whose receipt says [`Level::Durable`] is on disk. An error other than [`ErrorKind::Indeterminate`] and [`ErrorKind::Disconnected`] says that it was not stored. Nothing is dropped silently: what nobody waits for is counted in [`Stats`]. |
//! | duplicates | Unconfirmed messages are published again after a lost connection, under their old numbers, by which the broker knows those that it has stored ([`Resend`]). Deliveries that were not acked come again and say so ([`DeliveryRef::is_redelivered`]). |
//! | damage | Every message carries its producer's checksum, made here and checked here: [`ErrorKind::Damaged`]. |
//! | bounds | Producers hold [`ClientBuilder::in_flight_max`], consumers their credit, requests their [timeout](ClientBuilder::request_timeout), attempts to connect again their [number](Reconnect::attempts_max). |
//!
//! # Connections
//!
//! A client has one connection, and one more for each queue that it consumes from or
//! [publishes near to](ProducerBuilder::near), which lives on the core that owns the queue. Losing
//! one does not disturb the others. It is dialled again as [`Reconnect`] says; producers and
//! consumers then go on by themselves. [`ClientBuilder::on_link`] hears of both.
//!
//! # Features
//!
//! - `blocking`: the same client without async, in the module `blocking`.
//! - `tracing`: events about lost connections and dropped messages, target `ringpost_client`.

#![forbid(unsafe_code)]
#![deny(missing_docs, rustdoc::broken_intra_doc_links)]

pub mod admin;
#[cfg(feature = "blocking")]
pub mod blocking;
mod client;
mod connection;
mod consumer;
mod error;
mod headers;
mod message;
mod observe;
mod options;
mod places;
mod policy;
mod producer;
mod recent;
mod stats;
mod transaction;

pub use admin::{
    Binding, DeleteIf, Dispatch, Ensured, ExchangeConfig, ExchangeKind, Overflow, QueueConfig,
    Removed, Retry,
};
pub use client::{Client, ClientBuilder};
pub use consumer::{
    Activity, Batch, Consumer, ConsumerBuilder, Deliveries, Delivery, DeliveryRef, DeliveryTag,
    Held, PullConsumer, Settleable, Settlement, Settler, Start, StreamBuilder,
};
pub use error::{Error, ErrorKind, Result};
pub use headers::{HeaderArray, HeaderTable, HeaderValue, Headers};
pub use message::Message;
pub use observe::LinkEvent;
pub use options::{ByteSize, Level, Limits, Reconnect, Resend};
pub use places::{Browse, Browsed, MessageState, MoveTo, Page, PlaceOutcome};
pub use policy::{AppliesTo, Policy};
pub use producer::{Pending, PendingBatch, Producer, ProducerBuilder, Receipt};
pub use recent::Recent;
pub use stats::Stats;
pub use transaction::{Settles, Transaction, Transactor, TransactorBuilder};

/// The example of the README, compiled with those of the crate.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
