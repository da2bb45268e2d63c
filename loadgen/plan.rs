//! What load to make. Does not know how it is made.

use std::net::SocketAddr;
use std::time::Duration;

use ringpost_wire::control::{Durability, Level};
use ringpost_wire::{FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES};

use crate::arrivals::{Gaps, Profile, Schedule};
use crate::message::STAMP_BYTES;
use crate::peer::{self, Settings};
use crate::routes::{self, Exchange};
use crate::sizes::Sizes;
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
    /// The lean driver of this crate for a peer that speaks AMQP 0-9-1: RabbitMQ.
    Amqp,
    /// The same for streams with consumer groups of Redis.
    Redis,
    /// The same for JetStream of NATS.
    Nats,
}

impl Via {
    /// The words of parameters and of the command line.
    pub const WORDS: [(&str, Via); 5] = [
        ("raw", Via::Raw),
        ("client", Via::Client),
        ("amqp", Via::Amqp),
        ("redis", Via::Redis),
        ("nats", Via::Nats),
    ];

    /// What a word stands for.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        let mut words = Self::WORDS.into_iter();
        words.find_map(|(own, via)| (own == word).then_some(via))
    }

    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        let found = Self::WORDS.into_iter().find(|(_, via)| *via == self);
        found.expect("every way has a word").0
    }

    /// Whether the broker is another one than Ringpost.
    #[must_use]
    pub const fn is_peer(self) -> bool {
        matches!(self, Via::Amqp | Via::Redis | Via::Nats)
    }
}

/// How long a consumer works on one message, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Service {
    /// No time: it settles what it receives at once.
    #[default]
    None,
    /// The same for every message.
    Fixed(Duration),
    /// Exponentially distributed around this.
    Exponential(Duration),
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
    /// Kind of exchange that messages go through.
    pub exchange: Exchange,
    /// Exchanges that the groups of queues are spread over; of a fanout each group has its own.
    pub exchanges: u32,
    /// Queues that one message goes to.
    pub fan_out: u32,
    /// Durability of the queues and exchanges.
    pub durability: Durability,
    /// Producers; with fewer than queues each takes turns over its share.
    pub producers: u32,
    /// Consumers of each queue.
    pub consumers: u32,
    /// Connections that carry producers; 0 = one each.
    pub producer_connections: u32,
    /// Connections of producers go to the core of this queue, not to that of their own: what crossing
    /// costs. Only the raw engine.
    pub producers_near: Option<String>,
    /// Connections that carry consumers; 0 = one each, at most 16.
    pub consumer_connections: u32,
    /// Bytes of the payload, unless `sizes` says otherwise.
    pub payload_bytes: u32,
    /// Payloads of many sizes.
    pub sizes: Option<Sizes>,
    /// Most messages of one write.
    pub batch: u32,
    /// Each message in a `Publish` of its own, as clients that publish one by one do; else a write is
    /// one `Publish`.
    pub is_singly: bool,
    /// Confirm level.
    pub level: Level,
    /// When messages are sent.
    pub pace: Pace,
    /// Open loop: how the rate changes in time.
    pub profile: Profile,
    /// Closed loop: producers pause while this many messages are published and not delivered.
    pub lag_max: u64,
    /// Credit of each consumer.
    pub credit: u32,
    /// How long consumers work on a message. What is left when the load stops is settled at once.
    pub service: Service,
    /// Only the consumers of the first queues work so long; 0 = all.
    pub service_queues: u32,
    /// Producers of an earlier run in this process whose messages are expected, with `producers` 0.
    pub backlog_of: u32,
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
    /// How long the histograms of one interval are filled.
    pub interval: Duration,
    /// Numbers that look random come from this and are the same for the same seed.
    pub seed: u64,
    /// Connections may end and come back while it runs: messages may come twice then.
    pub is_restart_expected: bool,
    /// What only a peer is told.
    pub peer: Settings,
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
            exchange: Exchange::Default,
            exchanges: 1,
            fan_out: 1,
            durability: Durability::Durable,
            producers: 1,
            consumers: 1,
            producer_connections: 0,
            producers_near: None,
            consumer_connections: 0,
            payload_bytes: 100,
            sizes: None,
            batch: 256,
            is_singly: false,
            level: Level::Durable,
            pace: Pace::Window { messages: 16_384 },
            profile: Profile::Flat,
            lag_max: 262_144,
            credit: 65_536,
            service: Service::None,
            service_queues: 0,
            backlog_of: 0,
            warm_up: Duration::from_secs(1),
            stop: Stop::After(Duration::from_secs(5)),
            verify: false,
            cpus: Vec::new(),
            drain: Duration::from_secs(30),
            interval: Duration::from_secs(1),
            seed: 1,
            is_restart_expected: false,
            peer: Settings::default(),
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
            Via::Client => 1,
            Via::Raw | Via::Amqp | Via::Redis | Via::Nats => self.cpus.len().max(1),
        }
    }

    /// Whether messages have intended times.
    #[must_use]
    pub const fn is_open_loop(&self) -> bool {
        !matches!(self.pace, Pace::Window { .. })
    }

    /// Groups of queues; a message goes to all queues of one.
    #[must_use]
    pub const fn groups(&self) -> u32 {
        self.queues / self.fan_out
    }

    /// The group of a queue.
    #[must_use]
    pub const fn group_of(&self, queue: u32) -> u32 {
        queue / self.fan_out
    }

    /// Groups of queues that a producer publishes to.
    pub fn groups_of_producer(&self, producer: u32) -> impl Iterator<Item = u32> + use<> {
        let groups = self.groups();
        let (first, step) = if groups > self.producers {
            (producer, self.producers)
        } else {
            (producer % groups, groups)
        };
        (first..groups).step_by(step as usize)
    }

    /// Messages a second of all producers, on average; none in a closed loop.
    #[must_use]
    pub const fn per_second(&self) -> Option<f64> {
        match self.pace {
            Pace::Constant { per_second } | Pace::Poisson { per_second } => Some(per_second),
            Pace::Window { .. } => None,
        }
    }

    /// When a producer sends; none in a closed loop.
    #[must_use]
    pub fn schedule(&self, producer: u32) -> Option<Schedule> {
        let gaps = match self.pace {
            Pace::Constant { .. } => Gaps::Equal,
            Pace::Poisson { .. } => Gaps::Exponential,
            Pace::Window { .. } => return None,
        };
        let own = self.per_second()? / f64::from(self.producers);
        let seed = self.seed.wrapping_mul(1_000_003) + u64::from(producer);
        Some(Schedule::new(gaps, own, &self.profile, self.warm_up, seed))
    }

    /// Deliveries that were due from then on are measured: of a backlog all, it was due before.
    #[must_use]
    pub const fn deliveries_from_ns(&self, measure_from_ns: u64) -> u64 {
        if self.backlog_of > 0 {
            0
        } else {
            measure_from_ns
        }
    }

    /// Where in the first gap a producer starts.
    #[must_use]
    pub fn share_of(&self, producer: u32) -> f64 {
        f64::from(producer) / f64::from(self.producers)
    }

    /// The largest payload, in bytes.
    #[must_use]
    pub fn payload_bytes_max(&self) -> u32 {
        self.sizes
            .as_ref()
            .map_or(self.payload_bytes, Sizes::largest)
    }

    /// Padded bytes of the largest message.
    #[must_use]
    pub fn padded_bytes_max(&self) -> usize {
        let route = routes::route(self, self.groups() - 1);
        route.way().padded_bytes(self.payload_bytes_max())
    }

    /// Messages of a batch: as asked for, or what fits a frame.
    #[must_use]
    pub fn batch_fitting(&self) -> u32 {
        let room = (FRAME_BYTES_MAX - FRAME_HEADER_BYTES) / self.padded_bytes_max();
        self.batch
            .min(u32::try_from(room).unwrap_or(u32::MAX))
            .max(1)
    }

    /// How long the consumers of a queue work on a message.
    #[must_use]
    pub const fn service_of(&self, queue: u32) -> Service {
        if self.service_queues == 0 || queue < self.service_queues {
            self.service
        } else {
            Service::None
        }
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
        routes::check(self)?;
        let smallest = self
            .sizes
            .as_ref()
            .map_or(self.payload_bytes, Sizes::smallest);
        if (smallest as usize) < STAMP_BYTES {
            return Err(Error::Plan(format!(
                "the payload needs {STAMP_BYTES} bytes for its stamp"
            )));
        }
        if self.via == Via::Raw && self.padded_bytes_max() > FRAGMENT_BYTES_MAX {
            return wrong(
                "messages that travel in fragments cannot be made here yet; use --client",
            );
        }
        if self.via == Via::Client {
            self.check_client()?;
        }
        if self.via.is_peer() {
            peer::check(self)?;
        }
        self.check_profile()?;
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

    /// What the public client is not driven to do here.
    fn check_client(&self) -> Result<()> {
        if self.is_singly {
            let text =
                "the public client frames messages by itself: --singly is for the raw engine";
            return Err(Error::Plan(text.into()));
        }
        if self.service != Service::None {
            let text = "consumers of --client have no service time; leave --client out";
            return Err(Error::Plan(text.into()));
        }
        let mut exchanges = (0..self.groups()).map(|group| routes::route(self, group).exchange);
        let first = exchanges.next();
        if exchanges.any(|other| Some(other) != first) {
            let text = "a producer of --client publishes to one exchange; use --exchanges 1 and a \
                        kind other than fanout, or one group of queues";
            return Err(Error::Plan(text.into()));
        }
        Ok(())
    }

    fn check_profile(&self) -> Result<()> {
        let wrong = |text: &str| Err(Error::Plan(text.to_owned()));
        if self.profile != Profile::Flat && !self.is_open_loop() {
            return wrong("bursts and steps need a rate, not a window");
        }
        match &self.profile {
            Profile::Flat => {}
            Profile::Bursts { on, off } => {
                if on.is_zero() || off.is_zero() {
                    return wrong("a burst needs a time with load and one without, both above 0");
                }
            }
            Profile::Steps(steps) => {
                let is_sound = |(time, factor): &(Duration, f64)| {
                    !time.is_zero() && factor.is_finite() && *factor >= 0.0
                };
                if steps.is_empty() || !steps.iter().all(is_sound) {
                    return wrong("each step needs a time above 0 and a rate from 0 on");
                }
                if steps.iter().all(|(_, factor)| *factor == 0.0) {
                    return wrong("one step at least needs a rate above 0");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_a_producer_and_every_producer_a_group() {
        for (queues, producers) in [(1, 1), (1, 64), (1_000, 1), (7, 3), (3, 7)] {
            let mut plan = Plan::new(([127, 0, 0, 1], 1).into());
            plan.queues = queues;
            plan.producers = producers;
            let mut seen = vec![0; queues as usize];
            for producer in 0..producers {
                let own: Vec<_> = plan.groups_of_producer(producer).collect();
                assert!(!own.is_empty());
                own.iter().for_each(|group| seen[*group as usize] += 1);
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
