//! The numbers of a queue as JSON says them. Does not know where they come from.

use std::time::Duration;

use ringpost_client::admin::QueueInfo;
use ringpost_engine::mesh::BusyQueue;
use serde::{Deserialize, Serialize};

/// The numbers of a queue; docs/concepts/queue-numbers.md says what each means.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Numbers {
    /// Mean bytes of a message in it.
    pub mean_bytes: u64,
    /// The span that the rates and waits are of, in ms.
    pub span_ms: u64,
    /// Messages that arrive, a second.
    pub arrival_rate: f64,
    /// Messages that it is done with, a second.
    pub service_rate: f64,
    /// Messages by which it grows, a second.
    pub growth: f64,
    /// Messages delivered for the first time whose wait is known.
    pub waits: u64,
    /// Their mean wait, in ms.
    pub wait_mean_ms: f64,
    /// Their median wait, in ms.
    pub wait_p50_ms: f64,
    /// The 99th percentile of their waits, in ms.
    pub wait_p99_ms: f64,
    /// The longest wait, in ms.
    pub wait_max_ms: f64,
    /// Mean time in it by Little's law, in ms; nothing if nothing is served.
    pub littles_wait_ms: Option<f64>,
    /// When it is full, in s; nothing if it does not grow or has no bound.
    pub full_in_s: Option<f64>,
    /// When it is empty, in s; nothing if it does not shrink.
    pub empty_in_s: Option<f64>,
}

impl Numbers {
    /// Those of a queue.
    pub fn of(info: &QueueInfo) -> Self {
        let recent = &info.recent;
        let ms = |span: Duration| span.as_micros() as f64 / 1e3;
        Self {
            mean_bytes: info.mean_bytes(),
            span_ms: u64::try_from(recent.span.as_millis()).unwrap_or(u64::MAX),
            arrival_rate: info.arrival_rate(),
            service_rate: info.service_rate(),
            growth: info.growth(),
            waits: recent.taken,
            wait_mean_ms: ms(recent.wait_mean),
            wait_p50_ms: ms(recent.wait_p50),
            wait_p99_ms: ms(recent.wait_p99),
            wait_max_ms: ms(recent.wait_max),
            littles_wait_ms: info.littles_wait().map(ms),
            full_in_s: info.time_to_full().map(|span| span.as_secs_f64()),
            empty_in_s: info.time_to_drain().map(|span| span.as_secs_f64()),
        }
    }
}

/// What `/status` says of a queue.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueStatus {
    /// Name of its tenant.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// The core that owns it.
    pub core: usize,
    /// Messages ready for delivery.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacked: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages on their way to the dead-letter exchange.
    pub dead: u64,
    /// Padded bytes of all of them.
    pub bytes: u64,
    /// Most messages, 0 = no limit.
    pub messages_max: u64,
    /// Most padded bytes, 0 = no limit.
    pub bytes_max: u64,
    /// Consumers.
    pub consumers: u32,
    /// Refuses service because of a damaged range.
    pub damaged: bool,
    /// It is a stream.
    pub stream: bool,
    /// What it did lately, and what follows from that.
    pub numbers: Numbers,
}

impl QueueStatus {
    /// What a core says of one of its queues.
    pub fn of(core: usize, queue: &BusyQueue) -> Self {
        let figures = &queue.figures;
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let recent = &figures.recent;
        let mut info = QueueInfo::default();
        info.ready = figures.ready;
        info.unacked = figures.unacked;
        info.delayed = figures.delayed;
        info.dead = figures.dead;
        info.bytes = figures.bytes;
        info.messages_max = queue.messages_max;
        info.bytes_max = queue.bytes_max;
        info.is_stream = figures.is_stream;
        info.recent.span = Duration::from_millis(recent.span_ms);
        info.recent.arrived = recent.arrived;
        info.recent.left = recent.left;
        info.recent.taken = recent.taken;
        info.recent.wait_mean = Duration::from_micros(recent.wait_mean_us);
        info.recent.wait_p50 = Duration::from_micros(recent.wait_p50_us);
        info.recent.wait_p99 = Duration::from_micros(recent.wait_p99_us);
        info.recent.wait_max = Duration::from_micros(recent.wait_max_us);
        Self {
            tenant: text(&queue.tenant),
            name: text(&queue.name),
            core,
            ready: figures.ready,
            unacked: figures.unacked,
            delayed: figures.delayed,
            dead: figures.dead,
            bytes: figures.bytes,
            messages_max: queue.messages_max,
            bytes_max: queue.bytes_max,
            consumers: figures.consumers,
            damaged: figures.damaged,
            stream: figures.is_stream,
            numbers: Numbers::of(&info),
        }
    }
}
