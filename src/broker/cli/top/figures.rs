//! What the pictures of `top` show: rates and percentiles between two samples. Does not know where
//! samples come from, nor how figures are drawn.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringpost_client::admin::QueueInfo;

use crate::control::admin::stages::Stages;
use crate::control::admin::{CoreStatus, Status};

/// Queues, or why they are not known.
#[derive(Clone, Debug)]
pub enum Queues {
    Known(Vec<QueueInfo>),
    Unknown(String),
}

/// Histograms of the stages of a core that answered.
#[derive(Clone, Debug)]
struct CoreTimes {
    core: usize,
    stages: Vec<(String, Histogram<u64>)>,
}

impl CoreTimes {
    fn of(&self, name: &str) -> Option<&Histogram<u64>> {
        let mut all = self.stages.iter();
        all.find(|(own, _)| own == name).map(|(_, times)| times)
    }
}

/// What a broker said of itself at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    taken: Instant,
    status: Status,
    /// Of each core: sums since the start, in ns.
    stages: Vec<CoreTimes>,
    queues: Queues,
}

impl Sample {
    pub fn new(taken: Instant, status: Status, stages: &Stages, queues: Queues) -> Self {
        let answered = stages.cores.iter().filter(|core| !core.stages.is_empty());
        let cores = answered.map(|core| CoreTimes {
            core: core.core,
            // What another version of the broker says in another way is left out.
            stages: (core.stages.iter())
                .filter_map(|stage| Some((stage.name.clone(), stage.histogram()?)))
                .collect(),
        });
        Self {
            taken,
            status,
            stages: cores.collect(),
            queues,
        }
    }
}

/// Messages a second, or bytes.
pub type Rate = f64;

/// A core between two samples.
#[derive(Clone, PartialEq, Debug)]
pub struct CoreFigures {
    /// What it says now.
    pub now: CoreStatus,
    pub publishes: Rate,
    pub publish_bytes: Rate,
    pub confirms: Rate,
    pub deliveries: Rate,
    pub delivery_bytes: Rate,
    pub settles: Rate,
    pub writes: Rate,
    pub write_bytes: Rate,
}

/// A stage between two samples, all cores together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StageFigures {
    pub name: String,
    /// Messages that went through it.
    pub count: u64,
    /// 50th, 99th and 99.9th percentile and the longest, in ns.
    pub ns: [u64; 4],
}

/// A queue between two samples.
#[derive(Clone, PartialEq, Debug)]
pub struct QueueFigures {
    /// What it says now.
    pub now: QueueInfo,
    /// Arrivals.
    pub arrives: Rate,
    /// Settled: the rate at which it is served.
    pub leaves: Rate,
}

/// In which order queues are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    Rate,
    Depth,
    Name,
}

impl Order {
    pub fn next(self) -> Self {
        match self {
            Order::Rate => Order::Depth,
            Order::Depth => Order::Name,
            Order::Name => Order::Rate,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Order::Rate => "rate",
            Order::Depth => "waiting",
            Order::Name => "name",
        }
    }
}

/// What a picture shows.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The broker's version.
    pub version: String,
    /// Why it is not ready; empty if it is.
    pub reasons: Vec<String>,
    /// Since when it runs, in seconds since 1970.
    pub started: u64,
    /// What lies between the samples.
    pub interval: Duration,
    pub cores: Vec<CoreFigures>,
    pub stages: Vec<StageFigures>,
    /// Queues in order, or why they are not known.
    pub queues: Result<Vec<QueueFigures>, String>,
    pub order: Order,
}

impl Figures {
    /// What happened between two samples. Of a broker that was restarted between them, or a core or
    /// queue that was not there, nothing is said but what is now.
    pub fn between(before: &Sample, now: &Sample, order: Order) -> Self {
        let interval = now.taken.duration_since(before.taken);
        let is_same = before.status.start_time_seconds == now.status.start_time_seconds;
        let rate = Per(if is_same { interval } else { Duration::ZERO });
        let core_before = |core: usize| {
            let cores = &before.status.cores;
            cores.iter().find(|old| old.core == core && old.answered)
        };
        let cores = now.status.cores.iter().map(|core| {
            let old = core_before(core.core).filter(|_| core.answered);
            let old = old.unwrap_or(core);
            CoreFigures {
                publishes: rate.of(old.publishes, core.publishes),
                publish_bytes: rate.of(old.publish_bytes, core.publish_bytes),
                confirms: rate.of(old.confirms, core.confirms),
                deliveries: rate.of(old.deliveries, core.deliveries),
                delivery_bytes: rate.of(old.delivery_bytes, core.delivery_bytes),
                settles: rate.of(old.acks + old.requeues, core.acks + core.requeues),
                writes: rate.of(old.writes, core.writes),
                write_bytes: rate.of(old.write_bytes, core.write_bytes),
                now: core.clone(),
            }
        });
        let stages = stages_between(if is_same { &before.stages } else { &[] }, &now.stages);
        let mut figures = Self {
            version: now.status.version.clone(),
            reasons: now.status.reasons.clone(),
            started: now.status.start_time_seconds,
            interval,
            cores: cores.collect(),
            stages,
            queues: match &now.queues {
                Queues::Known(queues) => Ok(queues_between(&before.queues, queues, rate)),
                Queues::Unknown(why) => Err(why.clone()),
            },
            order,
        };
        figures.sort(order);
        figures
    }

    /// Puts the queues in another order.
    pub fn sort(&mut self, order: Order) {
        self.order = order;
        let Ok(queues) = &mut self.queues else {
            return;
        };
        queues.sort_by(|a, b| {
            let by_name = a.now.name.cmp(&b.now.name);
            match order {
                Order::Rate => (b.arrives + b.leaves).total_cmp(&(a.arrives + a.leaves)),
                Order::Depth => b.now.depth().cmp(&a.now.depth()),
                Order::Name => by_name,
            }
            .then(by_name)
        });
    }
}

/// What went through the stages of the cores that answered both times.
fn stages_between(before: &[CoreTimes], now: &[CoreTimes]) -> Vec<StageFigures> {
    let mut merged: Vec<(String, Histogram<u64>)> = Vec::new();
    for core in now {
        let old = before.iter().find(|old| old.core == core.core);
        for (name, times) in &core.stages {
            let mut lately = times.clone();
            match old.and_then(|old| old.of(name)) {
                Some(old) if lately.subtract(old).is_ok() => {}
                _ => lately.reset(),
            }
            match merged.iter_mut().find(|(own, _)| own == name) {
                // Those of one broker have the same bounds.
                Some((_, all)) => drop(all.add(lately)),
                None => merged.push((name.clone(), lately)),
            }
        }
    }
    let figures = merged.into_iter().map(|(name, times)| {
        let at = |quantile| times.value_at_quantile(quantile);
        StageFigures {
            name,
            count: times.len(),
            ns: if times.is_empty() {
                [0; 4]
            } else {
                [at(0.5), at(0.99), at(0.999), times.max()]
            },
        }
    });
    figures.collect()
}

fn queues_between(before: &Queues, now: &[QueueInfo], rate: Per) -> Vec<QueueFigures> {
    let old: HashMap<u32, &QueueInfo> = match before {
        Queues::Known(queues) => queues.iter().map(|queue| (queue.id, queue)).collect(),
        Queues::Unknown(_) => HashMap::new(),
    };
    let each = now.iter().map(|queue| {
        let old = old.get(&queue.id).copied().unwrap_or(queue);
        QueueFigures {
            arrives: rate.of(old.published, queue.published),
            leaves: rate.of(old.settled, queue.settled),
            now: queue.clone(),
        }
    });
    each.collect()
}

/// Makes rates of sums.
#[derive(Clone, Copy, Debug)]
struct Per(Duration);

impl Per {
    fn of(self, before: u64, now: u64) -> Rate {
        let seconds = self.0.as_secs_f64();
        if seconds > 0.0 {
            now.saturating_sub(before) as f64 / seconds
        } else {
            0.0
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::control::admin::stages::{CoreStages, StageJson};

    fn core(core: usize, phase: &str, sum: u64) -> CoreStatus {
        CoreStatus {
            core,
            answered: phase != "gone",
            phase: phase.into(),
            connections: 1,
            queues: 1,
            ready: 0,
            unacked: 0,
            consumers: 0,
            publishes: sum,
            publish_bytes: 100 * sum,
            confirms: sum,
            deliveries: sum,
            delivery_bytes: 100 * sum,
            acks: sum,
            requeues: 0,
            writes: sum / 10,
            write_bytes: 100 * sum,
            buffers_free: 1,
            buffers_total: 2,
            ring_occupied: 0,
            ring_capacity: 256,
            write_p50_us: 0,
            write_p99_us: 0,
        }
    }

    /// A broker whose sums are `sum`, so many seconds after it was first asked: one core whose journal
    /// has failed, one that is gone.
    pub fn sample(seconds: u64, sum: u64) -> Sample {
        let mut histogram = Histogram::<u64>::new(2).expect("digits");
        histogram.record_n(1_000, sum).expect("within bounds");
        let unknown = StageJson {
            name: "ready".into(),
            v2: "no histogram".into(),
        };
        let stages = Stages {
            cores: vec![CoreStages {
                core: 0,
                stages: vec![StageJson::of("journal", &histogram), unknown],
            }],
        };
        let status = Status {
            version: "0.1.0".into(),
            start_time_seconds: 1,
            ready: false,
            reasons: vec!["core 1: gone".into()],
            cores: vec![core(0, "fail_stopped", sum), core(1, "gone", 0)],
            queues: Vec::new(),
        };
        let begin = *BEGIN.get_or_init(Instant::now);
        let taken = begin + Duration::from_secs(seconds);
        Sample::new(taken, status, &stages, Queues::Known(Vec::new()))
    }

    static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

    fn queue(id: u32, ready: u64, published: u64, settled: u64) -> QueueInfo {
        let mut queue = QueueInfo::default();
        (queue.id, queue.name) = (id, format!("queue-{id}"));
        (queue.ready, queue.published, queue.settled) = (ready, published, settled);
        queue
    }

    /// The same with so many queues.
    pub fn with_queues(mut sample: Sample, count: u32) -> Sample {
        let queues = (0..count).map(|id| queue(id, 10, 10, 0));
        sample.queues = Queues::Known(queues.collect());
        sample
    }

    #[test]
    fn rates_are_of_the_interval() {
        let figures = Figures::between(&sample(0, 1_000), &sample(2, 5_000), Order::Rate);
        let core = &figures.cores[0];
        assert_eq!((core.publishes, core.write_bytes), (2_000.0, 200_000.0));
        assert_eq!(figures.cores[1].publishes, 0.0);
        let stage = &figures.stages[0];
        assert_eq!(
            (stage.name.as_str(), stage.count),
            ("journal", 5_000 - 1_000)
        );
        assert_eq!(figures.stages.len(), 1, "what is no histogram is left out");
    }

    #[test]
    fn a_restart_is_no_rate() {
        let before = sample(0, 5_000);
        let mut now = sample(1, 1_000);
        now.status.start_time_seconds = 7;
        let figures = Figures::between(&before, &now, Order::Rate);
        assert_eq!(figures.cores[0].publishes, 0.0);
        assert_eq!(figures.stages[0].count, 0);
        // The same sums, of a broker that says less than before: nothing is known.
        let figures = Figures::between(&sample(0, 5_000), &sample(1, 1_000), Order::Rate);
        assert_eq!(figures.stages[0].count, 0);
    }

    #[test]
    fn queues_have_rates() {
        let per = Per(Duration::from_secs(10));
        let between = |old: QueueInfo, now: QueueInfo| {
            queues_between(&Queues::Known(vec![old]), &[now], per).remove(0)
        };
        let shrinking = between(queue(1, 0, 0, 0), queue(1, 1_000, 1_000, 2_000));
        assert_eq!((shrinking.arrives, shrinking.leaves), (100.0, 200.0));
        // A queue of the same name that was made anew is another one.
        let other = between(queue(1, 0, 900, 900), queue(2, 5, 5, 0));
        assert_eq!((other.arrives, other.leaves), (0.0, 0.0));
    }
}
