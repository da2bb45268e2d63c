//! One thread of a load: a connection with a producer and some consumers, opened again when it was
//! given up. Ends with the broker. Does not know whether that was a kill or a goodbye.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringpost_check::{ConsumerNo, Event, Level};
use ringpost_wire::FrameKind;

use crate::Outcome;
use crate::consumer::{Consumer, Habit};
use crate::history::{History, unanswered};
use crate::link::{Ended, Link};
use crate::producer::Producer;
use crate::random::Random;
use crate::scene::{Scene, Volatile};

/// Frames taken before the producer has its turn again.
const FRAMES_PER_TURN_MAX: usize = 64;
/// How long a broker that lives may leave publishes without an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections that one worker may open in one life of the broker.
const SESSIONS_MAX: usize = 64;

/// What all clients of a run share.
#[derive(Debug)]
pub struct Shared {
    /// What they did and saw.
    pub history: History,
    /// Queues and addresses.
    pub scene: Scene,
    /// Numbers consumers, over all threads.
    consumers: AtomicU32,
    /// Set when workers should settle what is open, and end.
    stop: AtomicBool,
}

impl Shared {
    /// The start of a run.
    #[must_use]
    pub fn new(history: History, scene: Scene) -> Arc<Self> {
        history.record(scene.stated());
        Arc::new(Self {
            history,
            scene,
            consumers: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// What goes on where a history was cut off by a crash: whatever had no answer then never gets
    /// one.
    #[must_use]
    pub fn after_crash(events: Vec<Event<'static>>, scene: Scene) -> Self {
        let consumer = |event: &Event<'_>| match event {
            Event::Consumer { consumer, .. } => Some(consumer.0 + 1),
            _ => None,
        };
        let consumers = events.iter().filter_map(consumer).max().unwrap_or_default();
        let history = History::default();
        let unanswered = unanswered(&events);
        history.record(events);
        history.record(unanswered);
        history.record([Event::Crash]);
        history.record(scene.restarted());
        Self {
            history,
            scene,
            consumers: AtomicU32::new(consumers),
            stop: AtomicBool::new(false),
        }
    }

    /// A copy of everything so far, to try out how it may end.
    #[must_use]
    pub fn copy(&self) -> Self {
        let history = History::default();
        history.record(self.history.all());
        Self {
            history,
            scene: self.scene.copy(),
            consumers: AtomicU32::new(self.consumers.load(Ordering::Relaxed)),
            stop: AtomicBool::new(false),
        }
    }

    /// The number of a new consumer.
    pub fn consumer(&self) -> ConsumerNo {
        ConsumerNo(self.consumers.fetch_add(1, Ordering::Relaxed))
    }
}

/// The producers of a load, which outlive the broker.
#[derive(Debug)]
pub struct Crew {
    producers: Vec<Producer>,
    random: Random,
}

/// Levels that the producers of a crew have, in turn.
const LEVELS: &[(Level, Volatile)] = &[
    (Level::Durable, Volatile::Avoid),
    (Level::Durable, Volatile::Allow),
    (Level::Volatile, Volatile::Allow),
    (Level::Durable, Volatile::Avoid),
    (Level::None, Volatile::Allow),
];

impl Crew {
    /// Some producers.
    #[must_use]
    pub fn new(seed: u64, count: usize) -> Self {
        let mut random = Random::new(seed);
        let producers = (0..count)
            .map(|number| {
                let (level, volatile) = LEVELS[number % LEVELS.len()];
                Producer::new(&mut random, level, volatile, 0)
            })
            .collect();
        Self { producers, random }
    }

    /// Starts a load on a broker: a thread for each producer, with consumers beside it.
    pub fn start(&mut self, shared: &Arc<Shared>, address: &str, publishes_max: u64) -> Load {
        shared.stop.store(false, Ordering::Relaxed);
        let threads = self
            .producers
            .drain(..)
            .map(|mut producer| {
                producer.allow(publishes_max);
                let worker = Worker {
                    shared: Arc::clone(shared),
                    address: address.to_owned(),
                    random: self.random.fork(),
                    producer,
                    consumers: Vec::new(),
                };
                std::thread::spawn(move || worker.run())
            })
            .collect();
        Load { threads }
    }
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    threads: Vec<JoinHandle<(Producer, Outcome<()>)>>,
}

impl Load {
    /// Waits until all workers have ended, which they do when the broker has.
    ///
    /// # Errors
    /// The broker broke the protocol.
    ///
    /// # Panics
    /// If a worker did.
    pub fn join(self, crew: &mut Crew) -> Outcome<()> {
        let mut outcome = Ok(());
        for thread in self.threads {
            let (producer, ended) = thread.join().expect("a worker does not panic");
            crew.producers.push(producer);
            outcome = outcome.and(ended);
        }
        outcome
    }

    /// Lets all workers get their answers, and ends them.
    ///
    /// # Errors
    /// The broker broke the protocol, or is gone.
    pub fn stop(self, shared: &Shared, crew: &mut Crew) -> Outcome<()> {
        shared.stop.store(true, Ordering::Relaxed);
        self.join(crew)
    }

    /// Whether a worker has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

struct Worker {
    shared: Arc<Shared>,
    address: String,
    random: Random,
    producer: Producer,
    consumers: Vec<Consumer>,
}

/// Why a session is over.
enum Over {
    /// It was given up; another may follow.
    GivenUp,
    /// The broker is gone, or everything is done.
    End,
}

impl Worker {
    fn run(mut self) -> (Producer, Outcome<()>) {
        let mut outcome = Ok(());
        for _ in 0..SESSIONS_MAX {
            // The broker may be killed at any moment: who is not let in any more has no complaint.
            let link = match Link::open(&self.address) {
                Ok(link) => link,
                Err(_) => break,
            };
            let over = self.session(link);
            self.producer.gone(&self.shared.history);
            match over {
                Ok(Over::GivenUp) => {}
                Ok(Over::End) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        (self.producer, outcome)
    }

    fn session(&mut self, mut link: Link) -> Outcome<Over> {
        let shared = Arc::clone(&self.shared);
        let queues = shared.scene.queue_numbers();
        if self.random.percent(50) {
            let queue = *self.random.pick(&queues);
            if link.attach(shared.scene.queue_name(queue)).is_err() {
                // Killed in between; if not, the next session shows what is wrong.
                return Ok(Over::GivenUp);
            }
        }
        self.producer.open(&mut link, 1);
        for number in 0..self.random.between(1, 3) {
            let queue = *self.random.pick(&queues);
            let name = shared.scene.queue_name(queue);
            let habit = match self.random.below(4) {
                0 => Habit::Takes,
                1 => Habit::Acks,
                _ => Habit::Mixed,
            };
            let consumer = Consumer::open(
                &mut link,
                &shared.history,
                (shared.consumer(), queue, name),
                2 + number as u16,
                habit,
                &mut self.random,
            );
            self.consumers.push(consumer);
        }
        let turns_max = match self.random.percent(60) {
            true => u64::MAX,
            false => self.random.between(50, 2_000),
        };
        let over = self.turns(&mut link, turns_max);
        let lost = |consumer: &Consumer| Event::ConsumerLost {
            consumer: consumer.number(),
        };
        // Said before the broker can know it and give what they held to others.
        shared.history.record(self.consumers.iter().map(lost));
        self.consumers.clear();
        drop(link);
        over
    }

    fn turns(&mut self, link: &mut Link, turns_max: u64) -> Outcome<Over> {
        let mut turns = 0;
        let mut stopping_since = None;
        loop {
            let is_stopping = self.shared.stop.load(Ordering::Relaxed);
            if is_stopping {
                if self.producer.is_settled() {
                    return Ok(Over::End);
                }
                let since = *stopping_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(format!("publishes are not answered: {:?}", self.producer));
                }
                // Nothing new; what was made and not sent, or left open by a session before, still
                // has to be published to get its answer.
                self.producer.allow(0);
            } else {
                turns += 1;
                if turns > turns_max {
                    return Ok(Over::GivenUp);
                }
                for consumer in &mut self.consumers {
                    consumer.poll(link);
                }
            }
            self.producer
                .publish(link, &self.shared.scene, &self.shared.history);
            for _ in 0..FRAMES_PER_TURN_MAX {
                match link.receive() {
                    Ok(None) => break,
                    Ok(Some(frame)) => self.take(&frame, link)?,
                    Err(Ended::Lost) => return Ok(Over::End),
                    Err(Ended::Closed(ringpost_wire::Code::ShuttingDown, _)) => {
                        return Ok(Over::End);
                    }
                    Err(ended) => return Err(ended.to_string()),
                }
            }
        }
    }

    fn take(&mut self, frame: &crate::link::Frame, link: &mut Link) -> Outcome<()> {
        let history = &self.shared.history;
        match frame.header.channel {
            0 if frame.header.kind == FrameKind::Heartbeat => Ok(()),
            1 => self.producer.take(frame, history),
            channel => {
                let place = usize::from(channel).checked_sub(2);
                match place.and_then(|place| self.consumers.get_mut(place)) {
                    Some(consumer) => consumer.take(frame, link, history),
                    None => Err(format!("a frame on no channel: {:?}", frame.header)),
                }
            }
        }
    }
}
