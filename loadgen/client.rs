//! The same load through the public client, to see what the client costs. One thread; does not
//! know the wire.

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringpost_client::{
    ByteSize, Client, Consumer, Headers, Level, Message, PendingBatch, Producer,
};
use ringpost_wire::control::Level as WireLevel;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::arrivals::Schedule;
use crate::message::{STAMP_BYTES, Stamp, noise};
use crate::plan::{Pace, Plan};
use crate::routes;
use crate::sizes::Sampler;
use crate::tally::{Expected, MISSED_NS, Shared, Sums, Tally};
use crate::thread::cpu_ns;
use crate::{Error, Result};

/// How often flags are looked at while there is nothing to do.
const LOOK: Duration = Duration::from_millis(1);
/// Open loop: batches that may wait for their confirm.
const WAITING_MAX: usize = 65_536;

/// A batch that waits for its confirm.
struct Sent {
    pending: PendingBatch,
    sent_ns: u64,
    /// Intended times, with how many messages had each.
    runs: Vec<(u64, u64)>,
}

/// What the tasks of the thread share.
#[derive(Clone)]
struct Common {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    /// What was found in this interval. Held between two awaits only; all tasks are of one thread.
    tally: Arc<Mutex<Box<Tally>>>,
}

impl Common {
    fn tally(&self) -> MutexGuard<'_, Box<Tally>> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measure_from_ns(&self) -> u64 {
        self.shared.measure_from_ns.load(Ordering::Relaxed)
    }
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
    runtime.block_on(all(Common {
        plan: Arc::new(plan.clone()),
        shared: Arc::clone(shared),
        tally: Arc::default(),
    }))
}

fn failed(what: &'static str) -> impl FnOnce(ringpost_client::Error) -> Error {
    move |error| match error.source() {
        Some(source) => Error::Stalled(format!("{what}: {error}: {source}")),
        None => Error::Stalled(format!("{what}: {error}")),
    }
}

async fn all(common: Common) -> Result<Tally> {
    let plan = Arc::clone(&common.plan);
    let client = Client::builder(plan.address.to_string())
        .name("ringpost-load")
        .connect()
        .await
        .map_err(failed("cannot connect"))?;
    let mut work = JoinSet::new();
    let exchange = routes::route(&plan, 0).exchange;
    for number in 0..plan.producers {
        let producer = client
            .producer(exchange.clone())
            .near(plan.queue_name(number % plan.groups() * plan.fan_out))
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
        work.spawn(produce(common.clone(), number, producer, sender));
        work.spawn(confirm(common.clone(), receiver));
    }
    for place in 0..plan.queues * plan.consumers {
        let queue = place % plan.queues;
        let consumer = client
            .consumer(plan.queue_name(queue))
            .credit(plan.credit)
            .subscribe()
            .await
            .map_err(failed("cannot open a consumer"))?;
        work.spawn(consume(common.clone(), queue, consumer));
    }
    let progress = &common.shared.threads[0];
    progress.is_ready.store(true, Ordering::Release);
    let mut interval_due_ns = u64::MAX;
    while !common.shared.is_over.load(Ordering::Relaxed) {
        progress.work_ns.store(cpu_ns(), Ordering::Relaxed);
        let (now, from) = (common.shared.now_ns(), common.measure_from_ns());
        if interval_due_ns == u64::MAX && now >= from {
            common.tally().from_ns = from;
            interval_due_ns = from.saturating_add(common.shared.interval_ns);
        } else if now >= interval_due_ns {
            common.shared.post(0, &mut common.tally(), now);
            interval_due_ns = now.saturating_add(common.shared.interval_ns);
        }
        match tokio::time::timeout(LOOK, work.join_next()).await {
            Ok(Some(done)) => done.map_err(|error| Error::Stalled(error.to_string()))??,
            Ok(None) | Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
    // Consumers end with the client.
    client.close().await.map_err(failed("cannot close"))?;
    while let Some(done) = work.join_next().await {
        done.map_err(|error| Error::Stalled(error.to_string()))??;
    }
    let mut tally = std::mem::take(&mut *common.tally());
    tally.to_ns = common.shared.now_ns();
    Ok(*tally)
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// What a producer sends to one group of queues.
struct Lane {
    group: u32,
    key: String,
    headers: Option<Headers>,
    sequence: u64,
}

async fn produce(
    common: Common,
    number: u32,
    producer: Producer,
    sender: mpsc::Sender<Sent>,
) -> Result<()> {
    let (plan, shared) = (&common.plan, &common.shared);
    let mut lanes = Vec::new();
    for group in plan.groups_of_producer(number) {
        let route = routes::route(plan, group);
        let headers = match route.headers.is_empty() {
            true => None,
            false => Some(Headers::from_encoded(route.headers).map_err(failed("no headers"))?),
        };
        lanes.push(Lane {
            group,
            key: route.key,
            headers,
            sequence: 0,
        });
    }
    let lane_count = lanes.len();
    let longest = noise(plan.payload_bytes_max() as usize);
    let seed = plan.seed ^ (u64::from(number) << 32);
    let mut sizes = plan.sizes.clone().map(|sizes| Sampler::new(sizes, seed));
    let mut left = match plan.stop {
        crate::Stop::Published(messages) => messages.div_ceil(u64::from(plan.producers)),
        _ => u64::MAX,
    };
    let mut schedule = plan.schedule(number);
    let (mut turn, mut batch) = (0, Vec::new());
    while left > 0 && !shared.is_stopped.load(Ordering::Relaxed) {
        let sums = Sums::of(&shared.threads);
        let stored = sums.published.saturating_sub(sums.refused) * u64::from(plan.fan_out);
        let lag = stored.saturating_sub(sums.delivered);
        let is_ahead = plan.consumers > 0 && !plan.is_open_loop() && lag > plan.lag_max;
        if !shared.is_started.load(Ordering::Relaxed) || is_ahead {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        if let Some(schedule) = &mut schedule
            && !schedule.has_begun()
        {
            schedule.begin(
                shared.started_ns.load(Ordering::Relaxed),
                plan.share_of(number),
            );
        }
        let now = shared.now_ns();
        let most = u64::from(plan.batch).min(left) as usize;
        let runs = due(schedule.as_mut(), now, most);
        if runs.is_empty() {
            let next = schedule.as_ref().map_or(f64::INFINITY, Schedule::due_ns);
            if next > (now + 2_000_000) as f64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            } else {
                tokio::task::yield_now().await;
            }
            continue;
        }
        if now >= common.measure_from_ns() && plan.is_open_loop() {
            let mut tally = common.tally();
            for &(intended_ns, count) in &runs {
                let late = now.saturating_sub(intended_ns);
                tally.late.saturating_record_n(late, count);
                tally.counts.missed += if late > MISSED_NS { count } else { 0 };
            }
        }
        batch.clear();
        for &(intended_ns, count) in &runs {
            for _ in 0..count {
                turn = (turn + 1) % lane_count;
                let lane = &mut lanes[turn];
                let stamp = Stamp {
                    sequence: lane.sequence,
                    intended_ns,
                    sent_ns: now,
                    producer: number,
                    group: lane.group,
                };
                lane.sequence += 1;
                let bytes = match &mut sizes {
                    Some(sizes) => sizes.next_bytes() as usize,
                    None => longest.len(),
                };
                let mut payload = longest[..bytes].to_vec();
                payload[bytes - STAMP_BYTES..].copy_from_slice(&stamp.encode());
                let message = Message::new(lane.key.clone(), payload);
                batch.push(match &lane.headers {
                    Some(headers) => message.headers(headers.clone()),
                    None => message,
                });
            }
        }
        let count = batch.len() as u64;
        left -= count;
        add(&shared.threads[0].published, count);
        let pending = producer.enqueue_batch(&batch).await;
        let pending = pending.map_err(failed("cannot publish"))?;
        let sent = Sent {
            pending,
            sent_ns: now,
            runs,
        };
        if sender.send(sent).await.is_err() {
            break;
        }
    }
    let is_timed = matches!(plan.stop, crate::Stop::After(_));
    if let Some(schedule) = schedule
        && is_timed
        && shared.is_stopped.load(Ordering::Acquire)
    {
        let stopped_ns = shared.stopped_ns.load(Ordering::Relaxed);
        let is_consumed = plan.consumers > 0;
        common
            .tally()
            .note_unsent(schedule, stopped_ns, is_consumed);
    }
    drop(sender);
    // Whoever waits for a batch is told its outcome; that one of them was refused is no news here.
    let _ = producer.flush().await;
    Ok(())
}

/// The intended times that have come, at most `most`; in a closed loop now, `most` times.
fn due(schedule: Option<&mut Schedule>, now: u64, most: usize) -> Vec<(u64, u64)> {
    let Some(schedule) = schedule else {
        return vec![(now, most as u64)];
    };
    let mut due = Vec::new();
    while schedule.is_due(now) && due.len() < most {
        due.push((schedule.take(), 1));
    }
    due
}

async fn confirm(common: Common, mut sent: mpsc::Receiver<Sent>) -> Result<()> {
    let shared = &common.shared;
    while let Some(batch) = sent.recv().await {
        let outcome = batch.pending.await;
        let now = shared.now_ns();
        let count: u64 = batch.runs.iter().map(|(_, count)| count).sum();
        let mut tally = common.tally();
        if let Err(error) = outcome {
            // Which of the batch were refused does not matter here: the run is not clean.
            tally.counts.refused += count;
            add(&shared.threads[0].refused, count);
            tally.counts.first_refusal.get_or_insert(error.to_string());
        }
        add(&shared.threads[0].confirmed, count);
        let from = common.measure_from_ns();
        for (intended, count) in batch.runs {
            if intended < from {
                continue;
            }
            let response = now.saturating_sub(intended);
            tally.confirm.saturating_record_n(response, count);
            if common.plan.is_open_loop() {
                let service = now.saturating_sub(batch.sent_ns);
                tally.confirm_service.saturating_record_n(service, count);
            }
        }
    }
    Ok(())
}

async fn consume(common: Common, queue: u32, mut consumer: Consumer) -> Result<()> {
    let (plan, shared) = (&common.plan, &common.shared);
    let mut expected = Expected::new(plan);
    let progress = &shared.threads[0];
    while let Some(batch) = consumer
        .next_batch()
        .await
        .map_err(failed("cannot consume"))?
    {
        let now = shared.now_ns();
        let from = plan.deliveries_from_ns(common.measure_from_ns());
        let (mut count, mut first_count) = (0, 0);
        {
            let mut tally = common.tally();
            for delivery in &batch {
                let Some(stamp) = Stamp::of(delivery.payload()) else {
                    return Err(Error::Protocol("a message without a stamp".into()));
                };
                let is_first = expected.see(&stamp, queue, 0, &mut tally);
                first_count += u64::from(is_first);
                if stamp.intended_ns >= from && is_first {
                    let latency = now.saturating_sub(stamp.intended_ns);
                    tally.end_to_end.saturating_record(latency);
                    if plan.is_open_loop() {
                        let service = now.saturating_sub(stamp.sent_ns);
                        tally.end_to_end_service.saturating_record(service);
                    }
                }
                count += 1;
            }
            if batch.is_redelivered() {
                tally.counts.redelivered += count;
            }
        }
        add(&progress.delivered, first_count);
        match consumer.ack(&batch).await {
            Ok(_) => {}
            // The connection has ended: the broker delivers again, which is counted.
            Err(_) if plan.is_restart_expected => {}
            Err(error) => return Err(failed("cannot ack")(error)),
        }
        add(&progress.settled, count);
    }
    Ok(())
}
