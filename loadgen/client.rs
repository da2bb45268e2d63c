//! The same load through the public client, to see what the client costs. One thread; does not
//! know the wire.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringpost_client::{ByteSize, Client, Consumer, Level, Message, PendingBatch, Producer};
use ringpost_wire::control::Level as WireLevel;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::engine::cpu_ns;
use crate::message::{Random, STAMP_BYTES, Stamp, noise};
use crate::plan::{Pace, Plan};
use crate::tally::{Expected, Shared, Sums, Tally};
use crate::{Error, Result};

/// How often flags are looked at while there is nothing to do.
const LOOK: Duration = Duration::from_millis(1);
/// Open loop: batches that may wait for their confirm.
const WAITING_MAX: usize = 65_536;

/// A batch that waits for its confirm.
struct Sent {
    pending: PendingBatch,
    /// Intended times, with how many messages had each.
    runs: Vec<(u64, u64)>,
}

/// Runs a plan in this thread.
///
/// # Errors
/// If the client fails.
pub fn work(plan: &Plan, shared: &Arc<Shared>) -> Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("cannot make a runtime"))?;
    runtime.block_on(all(Arc::new(plan.clone()), Arc::clone(shared)))
}

fn failed(what: &'static str) -> impl FnOnce(ringpost_client::Error) -> Error {
    move |error| match error.source() {
        Some(source) => Error::Stalled(format!("{what}: {error}: {source}")),
        None => Error::Stalled(format!("{what}: {error}")),
    }
}

async fn all(plan: Arc<Plan>, shared: Arc<Shared>) -> Result<Tally> {
    let client = Client::builder(plan.address.to_string())
        .name("ringpost-load")
        .connect()
        .await
        .map_err(failed("cannot connect"))?;
    let mut work = JoinSet::new();
    for number in 0..plan.producers {
        let producer = client
            .producer("")
            .near(plan.queue_name(number % plan.queues))
            .level(match plan.level {
                WireLevel::None => Level::None,
                WireLevel::Volatile => Level::Volatile,
                WireLevel::Durable => Level::Durable,
            })
            .in_flight_max(ByteSize::mib(64))
            .build()
            .await
            .map_err(failed("cannot open a producer"))?;
        let room = match plan.pace {
            Pace::Window { messages } => (messages / plan.batch.max(1)).max(1) as usize,
            Pace::Constant { .. } | Pace::Poisson { .. } => WAITING_MAX,
        };
        let (sender, receiver) = mpsc::channel(room);
        let (own_plan, own_shared) = (Arc::clone(&plan), Arc::clone(&shared));
        work.spawn(produce(own_plan, own_shared, number, producer, sender));
        work.spawn(confirm(Arc::clone(&shared), receiver));
    }
    for place in 0..plan.queues * plan.consumers {
        let consumer = client
            .consumer(plan.queue_name(place % plan.queues))
            .credit(plan.credit)
            .subscribe()
            .await
            .map_err(failed("cannot open a consumer"))?;
        work.spawn(consume(Arc::clone(&plan), Arc::clone(&shared), consumer));
    }
    let progress = &shared.threads[0];
    progress.is_ready.store(true, Ordering::Release);
    let mut tally = Tally::default();
    while !shared.is_over.load(Ordering::Relaxed) {
        progress.work_ns.store(cpu_ns(), Ordering::Relaxed);
        match tokio::time::timeout(LOOK, work.join_next()).await {
            Ok(Some(done)) => tally.add(&done.map_err(|error| Error::Stalled(error.to_string()))??),
            Ok(None) | Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
    // Consumers end with the client.
    client.close().await.map_err(failed("cannot close"))?;
    while let Some(done) = work.join_next().await {
        tally.add(&done.map_err(|error| Error::Stalled(error.to_string()))??);
    }
    Ok(tally)
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

async fn produce(
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    number: u32,
    producer: Producer,
    sender: mpsc::Sender<Sent>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut lanes: Vec<_> = plan
        .queues_of_producer(number)
        .map(|queue| (queue, plan.queue_name(queue), 0u64))
        .collect();
    let lane_count = lanes.len();
    let mut payload = noise(plan.payload_bytes as usize);
    let stamp_at = payload.len() - STAMP_BYTES;
    let mut left = match plan.stop {
        crate::Stop::Published(messages) => messages.div_ceil(u64::from(plan.producers)),
        _ => u64::MAX,
    };
    let mut schedule = Schedule::new(&plan, number);
    let (mut turn, mut batch) = (0, Vec::new());
    while left > 0 && !shared.is_stopped.load(Ordering::Relaxed) {
        let sums = Sums::of(&shared.threads);
        let lag = sums.published.saturating_sub(sums.refused + sums.delivered);
        let is_ahead = plan.consumers > 0 && !plan.is_open_loop() && lag > plan.lag_max;
        if !shared.is_started.load(Ordering::Relaxed) || is_ahead {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let now = shared.now_ns();
        let most = u64::from(plan.batch).min(left) as usize;
        let runs = schedule.take(now, most);
        if runs.is_empty() {
            let wait = schedule.wait_ns(now);
            if wait > 2_000_000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            } else {
                tokio::task::yield_now().await;
            }
            continue;
        }
        let is_measured = now >= shared.measure_from_ns.load(Ordering::Relaxed);
        batch.clear();
        for &(intended_ns, count) in &runs {
            if is_measured && plan.is_open_loop() {
                tally
                    .late
                    .saturating_record_n(now.saturating_sub(intended_ns), count);
            }
            for _ in 0..count {
                turn = (turn + 1) % lane_count;
                let lane = &mut lanes[turn];
                let stamp = Stamp {
                    sequence: lane.2,
                    intended_ns,
                    producer: number,
                    queue: lane.0,
                };
                lane.2 += 1;
                payload[stamp_at..].copy_from_slice(&stamp.encode());
                batch.push(Message::new(lane.1.clone(), payload.clone()));
            }
        }
        let count = batch.len() as u64;
        left -= count;
        add(&shared.threads[0].published, count);
        let pending = producer.enqueue_batch(&batch).await;
        let pending = pending.map_err(failed("cannot publish"))?;
        if sender.send(Sent { pending, runs }).await.is_err() {
            break;
        }
    }
    let is_timed = matches!(plan.stop, crate::Stop::After(_));
    if is_timed && plan.is_open_loop() && shared.is_stopped.load(Ordering::Acquire) {
        let stopped_ns = shared.stopped_ns.load(Ordering::Relaxed);
        let is_consumed = plan.consumers > 0;
        tally.note_unsent(schedule.due_ns, schedule.gap_ns, stopped_ns, is_consumed);
    }
    drop(sender);
    producer.flush().await.map_err(failed("cannot flush"))?;
    Ok(tally)
}

async fn confirm(shared: Arc<Shared>, mut sent: mpsc::Receiver<Sent>) -> Result<Tally> {
    let mut tally = Tally::default();
    while let Some(Sent { pending, runs }) = sent.recv().await {
        let outcome = pending.await;
        let now = shared.now_ns();
        let count: u64 = runs.iter().map(|(_, count)| count).sum();
        if let Err(error) = outcome {
            // Which of the batch were refused does not matter here: the run is not clean.
            tally.refused += count;
            add(&shared.threads[0].refused, count);
            tally.first_refusal.get_or_insert(error.to_string());
        }
        add(&shared.threads[0].confirmed, count);
        let from = shared.measure_from_ns.load(Ordering::Relaxed);
        for (intended, count) in runs.into_iter().filter(|(intended, _)| *intended >= from) {
            tally
                .confirm
                .saturating_record_n(now.saturating_sub(intended), count);
        }
    }
    Ok(tally)
}

async fn consume(plan: Arc<Plan>, shared: Arc<Shared>, mut consumer: Consumer) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut expected = Expected::new(plan.producers, plan.queues, plan.consumers > 1);
    let progress = &shared.threads[0];
    while let Some(batch) = consumer
        .next_batch()
        .await
        .map_err(failed("cannot consume"))?
    {
        let now = shared.now_ns();
        let from = shared.measure_from_ns.load(Ordering::Relaxed);
        let mut count = 0;
        for delivery in &batch {
            let Some(stamp) = Stamp::of(delivery.payload()) else {
                return Err(Error::Protocol("a message without a stamp".into()));
            };
            expected.see(&stamp, &mut tally);
            if stamp.intended_ns >= from {
                let latency = now.saturating_sub(stamp.intended_ns);
                tally.end_to_end.saturating_record(latency);
            }
            count += 1;
        }
        add(&progress.delivered, count);
        consumer.ack(&batch).await.map_err(failed("cannot ack"))?;
        add(&progress.settled, count);
    }
    Ok(tally)
}

/// When a producer's messages should be sent.
struct Schedule {
    pace: Pace,
    due_ns: f64,
    gap_ns: f64,
    share: f64,
    random: Random,
}

impl Schedule {
    fn new(plan: &Plan, number: u32) -> Self {
        let gap_ns = match plan.pace {
            Pace::Constant { per_second } | Pace::Poisson { per_second } => {
                1e9 * f64::from(plan.producers) / per_second
            }
            Pace::Window { .. } => 0.0,
        };
        Self {
            pace: plan.pace,
            due_ns: f64::NAN,
            gap_ns,
            share: f64::from(number) / f64::from(plan.producers),
            random: Random::new(u64::from(number) + 1),
        }
    }

    /// The intended times that have come, at most `most`; in a closed loop now, `most` times.
    fn take(&mut self, now: u64, most: usize) -> Vec<(u64, u64)> {
        if let Pace::Window { .. } = self.pace {
            return vec![(now, most as u64)];
        }
        if self.due_ns.is_nan() {
            self.due_ns = now as f64 + self.gap_ns * self.share;
        }
        let mut due = Vec::new();
        while self.due_ns <= now as f64 && due.len() < most {
            due.push((self.due_ns as u64, 1));
            self.due_ns += match self.pace {
                Pace::Poisson { .. } => self.gap_ns * self.random.next_exponential(),
                Pace::Constant { .. } | Pace::Window { .. } => self.gap_ns,
            };
        }
        due
    }

    fn wait_ns(&self, now: u64) -> u64 {
        (self.due_ns - now as f64).max(0.0) as u64
    }
}
