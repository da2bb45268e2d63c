//! Counters of one client. Does not know who reads them.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a client counts; all atomics are shared by its tasks and handles and only ever added to.
#[derive(Default, Debug)]
pub(crate) struct Counters {
    pub reconnects: AtomicU64,
    pub connect_failures: AtomicU64,
    pub resent: AtomicU64,
    pub confirmed: AtomicU64,
    pub refused: AtomicU64,
    pub indeterminate: AtomicU64,
    pub pendings_dropped: AtomicU64,
    pub unconfirmed_dropped: AtomicU64,
    pub deliveries: AtomicU64,
    pub deliveries_stale: AtomicU64,
    pub deliveries_damaged: AtomicU64,
    pub settles_stale: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        if count > 0 {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// What a client has done so far; read with [`crate::Client::stats`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes of messages accepted and not settled yet, over all producers.
    pub in_flight_bytes: u64,
    /// Messages accepted and not settled yet, over all producers.
    pub in_flight: u64,
    /// Connections that were lost and came back.
    pub reconnects: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Publishes sent again after a reconnect.
    pub resent: u64,
    /// Publishes settled without an exception.
    pub confirmed: u64,
    /// Publishes refused by the broker.
    pub refused: u64,
    /// Publishes whose fate is unknown.
    pub indeterminate: u64,
    /// [`crate::Pending`]s dropped before their outcome was known.
    pub pendings_dropped: u64,
    /// Publishes that were not settled when their client was dropped without `close`.
    pub unconfirmed_dropped: u64,
    /// Messages received.
    pub deliveries: u64,
    /// Messages received and thrown away unseen because a reconnect had made them void.
    pub deliveries_stale: u64,
    /// Messages received that did not match their checksum.
    pub deliveries_damaged: u64,
    /// Settlements that did nothing because a reconnect had made their deliveries void.
    pub settles_stale: u64,
}

impl Counters {
    pub(crate) fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            in_flight_bytes: 0,
            in_flight: 0,
            reconnects: read(&self.reconnects),
            connect_failures: read(&self.connect_failures),
            resent: read(&self.resent),
            confirmed: read(&self.confirmed),
            refused: read(&self.refused),
            indeterminate: read(&self.indeterminate),
            pendings_dropped: read(&self.pendings_dropped),
            unconfirmed_dropped: read(&self.unconfirmed_dropped),
            deliveries: read(&self.deliveries),
            deliveries_stale: read(&self.deliveries_stale),
            deliveries_damaged: read(&self.deliveries_damaged),
            settles_stale: read(&self.settles_stale),
        }
    }
}
