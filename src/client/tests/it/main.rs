//! The client against brokers that are played: one by itself (`fake`), one by hand (`peer`).
//!
//! | file | what it proves |
//! |---|---|
//! | `admin.rs` | requests, their answers, their failures |
//! | `publish.rs` | receipts, refusals, levels, batches, back-pressure, credit, large messages |
//! | `consume.rs` | deliveries, settling, pulling, damage, large messages |
//! | `lost.rs` | connections that are cut, reconnecting, resending, closing, dropping |
//! | `blocking.rs` | the blocking client does as the async one |
//! | `peers.rs` | peers that break the protocol, and handshakes that fail |

#![allow(
    clippy::unwrap_used,
    reason = "a failed expectation is what a test is for"
)]

mod admin;
#[cfg(feature = "blocking")]
mod blocking;
mod consume;
mod fake;
mod lost;
mod peer;
mod peers;
mod publish;

use std::time::Duration;

use ringpost_client::{Batch, Client, ClientBuilder, Consumer, Message, Producer, Reconnect};

/// A client that reconnects fast.
pub fn builder(address: &str) -> ClientBuilder {
    Client::builder(address).reconnect(Reconnect::backoff(
        Duration::from_millis(1),
        Duration::from_millis(20),
    ))
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send>(_: T) {}
    shared::<Client>();
    shared::<Producer>();
    shared::<Consumer>();
    shared::<ringpost_client::Settler>();
    shared::<Batch>();
    shared::<ringpost_client::Pending>();
    shared::<ringpost_client::Error>();
    let futures = |client: Client, producer: Producer, mut consumer: Consumer, batch: Batch| {
        let message = Message::new("", "");
        sent(producer.send(message.clone()));
        sent(producer.send_batch(vec![message]));
        sent(producer.flush());
        sent(consumer.ack(&batch));
        sent(consumer.ack_durable(&batch));
        sent(consumer.next_batch());
        sent(client.queues());
        sent(client.close());
    };
    let _ = futures;
}
