//! The Ringpost client.
#![forbid(unsafe_code)]
#![deny(missing_docs, rustdoc::broken_intra_doc_links)]

pub mod admin;
mod client;
mod connection;
mod consumer;
mod error;
mod headers;
mod message;
mod observe;
mod options;
mod producer;
mod stats;

pub use admin::{Binding, DeleteIf, Ensured, ExchangeConfig, ExchangeKind, QueueConfig, Removed};
pub use client::{Client, ClientBuilder};
pub use consumer::{
    Batch, Consumer, ConsumerBuilder, Deliveries, Delivery, DeliveryRef, DeliveryTag, PullConsumer,
    Settleable, Settlement, Settler,
};
pub use error::{Error, ErrorKind, Result};
pub use headers::{HeaderValue, Headers};
pub use message::Message;
pub use options::{ByteSize, Level, Limits, Reconnect, Resend};
pub use producer::{Pending, PendingBatch, Producer, ProducerBuilder, Receipt};
pub use stats::Stats;
