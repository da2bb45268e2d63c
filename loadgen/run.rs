//! One run from the first declare to the last settlement: starts the load threads, marks where
//! measuring begins and ends, notices when nothing moves. Does not touch messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client;
use crate::engine::Engine;
use crate::peer;
use crate::plan::{Plan, Service, Stop, Via};
pub use crate::routes::{declare, delete};
use crate::tally::{Shared, Sums, Tally};
use crate::{Error, Result};

/// How often the threads are looked at.
const LOOK: Duration = Duration::from_millis(2);

/// What a run found.
#[derive(Debug)]
pub struct Outcome {
    /// Histograms and faults of all threads.
    pub tally: Tally,
    /// Everything counted, warm-up and end included.
    pub total: Sums,
    /// What was counted while it was measured.
    pub measured: Sums,
    /// How long it was measured.
    pub time: Duration,
    /// Load threads.
    pub threads: usize,
}

impl Outcome {
    /// A count as a rate over the measured time.
    #[must_use]
    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.time.as_secs_f64()
    }

    /// Messages a second that were published, confirmed and delivered (the least of these).
    #[must_use]
    pub fn rate(&self, plan: &Plan) -> f64 {
        let mut count = u64::MAX;
        if plan.producers > 0 {
            count = count.min(self.measured.confirmed);
        }
        if plan.consumers > 0 {
            count = count.min(self.measured.settled);
        }
        self.per_second(count)
    }

    /// Share of their CPUs that the load threads used.
    #[must_use]
    pub fn busy(&self) -> f64 {
        self.measured.work_ns as f64 / (self.time.as_nanos() as f64 * self.threads as f64)
    }
}

/// What is told while a run goes on.
pub trait Watcher {
    /// Measuring begins or ends.
    fn edge(&mut self) {}
    /// Looked at about every 2 ms: what was counted so far.
    fn look(&mut self, _sums: &Sums) {}
    /// An interval is over, of one of the threads.
    fn interval(&mut self, _tally: Box<Tally>, _sums: &Sums) {}
}

/// Only the edges.
struct Edges<F>(F);

impl<F: FnMut()> Watcher for Edges<F> {
    fn edge(&mut self) {
        (self.0)();
    }
}

/// Runs a plan whose queues exist. `edge` is called when measuring begins and when it ends.
///
/// # Errors
/// If the plan cannot be run, a connection fails, or nothing moves for as long as `drain`.
pub fn run(plan: &Plan, edge: impl FnMut()) -> Result<Outcome> {
    run_watched(plan, &mut Edges(edge))
}

/// Runs a plan whose queues exist, and tells how it goes.
///
/// # Errors
/// As [`run`].
pub fn run_watched(plan: &Plan, watcher: &mut dyn Watcher) -> Result<Outcome> {
    plan.check()?;
    let shared = Arc::new(Shared::new(plan.threads(), plan.interval));
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for index in 0..plan.threads() {
            let shared = &shared;
            let cpu = plan.cpus.get(index).copied();
            let body = move || {
                if let Some(id) = cpu
                    && !crate::machine::pin(id)
                {
                    return Err(Error::Plan(format!(
                        "a load thread cannot run on CPU {id}: name CPUs that this process may use"
                    )));
                }
                match plan.via {
                    Via::Raw => Engine::connect(plan, shared, index)?.work(),
                    Via::Client => client::work(plan, shared),
                    Via::Amqp | Via::Redis | Via::Nats => peer::work(plan, shared, index),
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("load {index}"))
                .spawn_scoped(scope, body)
                .map_err(Error::io("cannot start a thread"))?;
            threads.push(thread);
        }
        let is_lost = || threads.iter().any(|thread| thread.is_finished());
        let mut collected = Collected::default();
        let conducted = conduct(plan, &shared, &is_lost, watcher, &mut collected);
        shared.is_over.store(true, Ordering::Relaxed);
        let mut tally = collected.tally;
        let mut failed = None;
        for thread in threads {
            match thread.join() {
                Ok(Ok(own)) => {
                    tally.add(&own);
                    watcher.interval(Box::new(own), &Sums::of(&shared.threads));
                }
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        for index in 0..plan.threads() {
            if let Some(last) = shared.fetch(index) {
                tally.add(&last);
                watcher.interval(last, &Sums::of(&shared.threads));
            }
        }
        match (failed, conducted) {
            (None, Ok((measured, time))) => Ok(Outcome {
                tally,
                total: Sums::of(&shared.threads),
                measured,
                time,
                threads: plan.threads(),
            }),
            (Some(error), Ok(_) | Err(None)) => Err(error),
            (_, Err(Some(Error::Stalled(why)))) => Err(Error::Stalled(with_faults(why, &tally))),
            (_, Err(Some(error))) => Err(error),
            (None, Err(None)) => Err(Error::Stalled("a load thread ended early".into())),
        }
    })
}

/// Why nothing moves any more, with what went wrong before: what was lost, say.
fn with_faults(why: String, tally: &Tally) -> String {
    let counts = &tally.counts;
    if counts.is_clean() {
        return why;
    }
    format!(
        "{why}; of what came {} missing, {} again or out of order, {} misrouted, {} damaged, {} refused",
        counts.missing, counts.disordered, counts.misrouted, counts.corrupt, counts.refused
    )
}

/// The intervals that were fetched, added up.
#[derive(Default)]
struct Collected {
    tally: Tally,
}

/// Start, measure, stop, drain. An error of `None` means that a thread ended, which has its own.
fn conduct(
    plan: &Plan,
    shared: &Shared,
    is_lost: &dyn Fn() -> bool,
    watcher: &mut dyn Watcher,
    collected: &mut Collected,
) -> std::result::Result<(Sums, Duration), Option<Error>> {
    let mut watch = Watch {
        plan,
        shared,
        is_lost,
        watcher,
        collected,
    };
    watch.until("opening channels", |_| {
        let mut threads = shared.threads.iter();
        threads.all(|thread| thread.is_ready.load(Ordering::Acquire))
    })?;
    let warm_up = u64::try_from(plan.warm_up.as_nanos()).unwrap_or(u64::MAX);
    let started = shared.now_ns();
    shared.started_ns.store(started, Ordering::Relaxed);
    let measure_from = started.saturating_add(warm_up);
    shared
        .measure_from_ns
        .store(measure_from, Ordering::Relaxed);
    shared.is_started.store(true, Ordering::Release);
    watch.until("warming up", |_| shared.now_ns() >= measure_from)?;
    watch.watcher.edge();
    let (before, start) = (Sums::of(&shared.threads), Instant::now());
    watch.until("the load", |sums| match plan.stop {
        Stop::After(time) => start.elapsed() >= time,
        Stop::Published(messages) => sums.confirmed >= messages && is_drained(plan, sums),
        Stop::Delivered(messages) => sums.delivered >= messages,
    })?;
    let (after, time) = (Sums::of(&shared.threads), start.elapsed());
    shared.stopped_ns.store(shared.now_ns(), Ordering::Relaxed);
    shared.is_stopped.store(true, Ordering::Release);
    watch.watcher.edge();
    if !matches!(plan.stop, Stop::Delivered(_)) {
        watch.until("draining", |sums| is_drained(plan, sums))?;
    }
    let measured = Sums {
        published: after.published - before.published,
        confirmed: after.confirmed - before.confirmed,
        refused: after.refused - before.refused,
        delivered: after.delivered - before.delivered,
        settled: after.settled - before.settled,
        work_ns: after.work_ns - before.work_ns,
    };
    Ok((measured, time))
}

fn is_drained(plan: &Plan, sums: &Sums) -> bool {
    let stored = (sums.published - sums.refused) * u64::from(plan.fan_out);
    let is_settled = plan.service == Service::None || sums.settled >= sums.delivered;
    sums.confirmed >= sums.published
        && (plan.consumers == 0 || sums.delivered >= stored && is_settled)
}

/// Notices when the counters stand still.
struct Watch<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    is_lost: &'a dyn Fn() -> bool,
    watcher: &'a mut dyn Watcher,
    collected: &'a mut Collected,
}

impl Watch<'_> {
    fn until(
        &mut self,
        what: &str,
        mut is_done: impl FnMut(&Sums) -> bool,
    ) -> std::result::Result<(), Option<Error>> {
        let mut last = (Sums::default(), Instant::now());
        loop {
            let sums = Sums::of(&self.shared.threads);
            self.watcher.look(&sums);
            for index in 0..self.plan.threads() {
                if let Some(tally) = self.shared.fetch(index) {
                    self.collected.tally.add(&tally);
                    self.watcher.interval(tally, &sums);
                }
            }
            if is_done(&sums) {
                return Ok(());
            }
            if (self.is_lost)() {
                return Err(None);
            }
            let moving = Sums { work_ns: 0, ..sums };
            if moving != last.0 {
                last = (moving, Instant::now());
            }
            let patience = self.plan.drain.max(self.plan.warm_up);
            if last.1.elapsed() > patience {
                return Err(Some(Error::Stalled(format!(
                    "nothing moved for {patience:?} while {what}: {moving:?}"
                ))));
            }
            std::thread::sleep(LOOK);
        }
    }
}
