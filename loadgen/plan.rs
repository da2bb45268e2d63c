//! What load to make. Does not know how it is made.

use std::net::SocketAddr;
use std::time::Duration;

use ringpost_wire::control::{Durability, Level};
use ringpost_wire::{FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES};

use crate::message::{STAMP_BYTES, Template};
use crate::{Error, Result};

/// When messages are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Open loop: `per_second` messages in all, evenly.
    Constant {
        /// Messages a second over all producers.
        per_second: f64,
    },
    /// Open loop: `per_second` messages in all, with exponential gaps.
    Poisson {
        /// Messages a second over all producers.
        per_second: f64,
    },
    /// Closed loop: each producer keeps up to `messages` unconfirmed. Finds saturation, hides stalls.
    Window {
        /// Unconfirmed messages of one producer.
        messages: u32,
    },
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this long, warm-up not counted.
    After(Duration),
    /// When this many messages were published and confirmed in all, and delivered if anybody consumes.
    Published(u64),
    /// When this many messages were delivered in all.
    Delivered(u64),
}

/// What makes the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The lean engine of this crate, on the raw protocol.
    Raw,
    /// The public client, in one thread.
    Client,
}

/// What load to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What makes the load.
    pub via: Via,
    /// Where the broker listens.
    pub address: SocketAddr,
    /// Queues are named by this and a number.
    pub queue_prefix: String,
    /// Queues, all published to evenly.
    pub queues: u32,
    /// Durability of the queues.
    pub durability: Durability,
    /// Producers; with fewer than queues each takes turns over its share.
    pub producers: u32,
    /// Consumers of each queue.
    pub consumers: u32,
    /// Connections that carry producers; 0 = one each.
    pub producer_connections: u32,
    /// Connections that carry consumers; 0 = one each, at most 16.
    pub consumer_connections: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// Most messages of one `Publish`, which is one write.
    pub batch: u32,
    /// Confirm level.
    pub level: Level,
    /// When messages are sent.
    pub pace: Pace,
    /// Closed loop: producers pause while this many messages are published and not delivered.
    pub lag_max: u64,
    /// Credit of each consumer.
    pub credit: u32,
    /// Runs this long before anything is measured.
    pub warm_up: Duration,
    /// When the run ends.
    pub stop: Stop,
    /// Checks the checksum of every delivery.
    pub verify: bool,
    /// CPUs of the load threads, one thread each; none = one thread, not pinned.
    pub cpus: Vec<usize>,
    /// How long the end may take: everything confirmed, delivered and settled.
    pub drain: Duration,
}

impl Plan {
    /// One producer and one consumer of one durable queue, 100 B, closed loop.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            via: Via::Raw,
            address,
            queue_prefix: "load-".into(),
            queues: 1,
            durability: Durability::Durable,
            producers: 1,
            consumers: 1,
            producer_connections: 0,
            consumer_connections: 0,
            payload_bytes: 100,
            batch: 256,
            level: Level::Durable,
            pace: Pace::Window { messages: 16_384 },
            lag_max: 262_144,
            credit: 65_536,
            warm_up: Duration::from_secs(1),
            stop: Stop::After(Duration::from_secs(5)),
            verify: false,
            cpus: Vec::new(),
            drain: Duration::from_secs(30),
        }
    }

    /// Name of a queue.
    #[must_use]
    pub fn queue_name(&self, queue: u32) -> String {
        format!("{}{queue}", self.queue_prefix)
    }

    /// Load threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self.via {
            Via::Raw => self.cpus.len().max(1),
            Via::Client => 1,
        }
    }

    /// Whether messages have intended times.
    #[must_use]
    pub const fn is_open_loop(&self) -> bool {
        !matches!(self.pace, Pace::Window { .. })
    }

    /// Queues that a producer publishes to.
    pub fn queues_of_producer(&self, producer: u32) -> impl Iterator<Item = u32> + use<> {
        let (first, step) = if self.queues > self.producers {
            (producer, self.producers)
        } else {
            (producer % self.queues, self.queues)
        };
        (first..self.queues).step_by(step as usize)
    }

    /// Messages of a batch: as asked for, or what fits a frame.
    #[must_use]
    pub fn batch_fitting(&self) -> u32 {
        let longest = self.queue_name(self.queues - 1);
        let each = Template::padded_bytes(&longest, self.payload_bytes);
        let room = (FRAME_BYTES_MAX - FRAME_HEADER_BYTES) / each;
        self.batch
            .min(u32::try_from(room).unwrap_or(u32::MAX))
            .max(1)
    }

    /// Checks what cannot be run.
    ///
    /// # Errors
    /// [`Error::Plan`] with what is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: &str| Err(Error::Plan(text.to_owned()));
        if self.queues == 0 || self.producers + self.consumers == 0 {
            return wrong("a queue and a producer or a consumer are needed");
        }
        if (self.payload_bytes as usize) < STAMP_BYTES {
            return Err(Error::Plan(format!(
                "the payload needs {STAMP_BYTES} bytes for its stamp"
            )));
        }
        let longest = self.queue_name(self.queues - 1);
        let padded = Template::padded_bytes(&longest, self.payload_bytes);
        if self.via == Via::Raw && padded > FRAGMENT_BYTES_MAX {
            return wrong(
                "messages that travel in fragments cannot be made here yet; use --client",
            );
        }
        match self.pace {
            Pace::Constant { per_second } | Pace::Poisson { per_second } => {
                if !(per_second.is_finite() && per_second > 0.0) {
                    return wrong("the rate has to be above 0");
                }
            }
            Pace::Window { messages: 0 } => return wrong("the window has to be above 0"),
            Pace::Window { .. } => {}
        }
        if self.level == Level::None && !self.is_open_loop() {
            return wrong("a window needs confirms; use a rate with level none");
        }
        if self.consumers == 0 && matches!(self.stop, Stop::Delivered(_)) {
            return wrong("nothing is delivered without consumers");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_a_producer_and_every_producer_a_queue() {
        for (queues, producers) in [(1, 1), (1, 64), (1_000, 1), (7, 3), (3, 7)] {
            let mut plan = Plan::new(([127, 0, 0, 1], 1).into());
            plan.queues = queues;
            plan.producers = producers;
            let mut seen = vec![0; queues as usize];
            for producer in 0..producers {
                let own: Vec<_> = plan.queues_of_producer(producer).collect();
                assert!(!own.is_empty());
                own.iter().for_each(|queue| seen[*queue as usize] += 1);
            }
            assert!(seen.iter().all(|count| *count > 0), "{queues} {producers}");
        }
    }

    #[test]
    fn a_batch_fits_a_frame() {
        let mut plan = Plan::new(([127, 0, 0, 1], 1).into());
        plan.batch = 100_000;
        plan.payload_bytes = 16 << 10;
        assert!(plan.batch_fitting() < 16);
        plan.payload_bytes = 190 << 10;
        assert_eq!(plan.batch_fitting(), 1);
        plan.payload_bytes = 10;
        assert!(plan.check().is_err());
    }
}
