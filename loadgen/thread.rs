//! The loop of a load thread: when it sends, when it waits and for how long, when an interval ends, what
//! of its time is work. Does not know any protocol; whoever does is a [`Turn`].

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::arrivals::Schedule;
use crate::plan::{Pace, Plan, Stop};
use crate::tally::{Progress, Shared, Sums, Tally};
use crate::{Error, Result};

/// Longest wait for events: flags are looked at this often.
pub(crate) const WAIT_MAX: Duration = Duration::from_millis(5);
/// A time nearer than this is spun for, since waits are in whole milliseconds.
const SPIN_NS: u64 = 2_000_000;
/// How often the CPU time of the thread is looked at.
const CPU_LOOK_NS: u64 = 10_000_000;

/// What every load thread has, whatever it speaks.
pub(crate) struct Thread<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) shared: &'a Shared,
    pub(crate) index: usize,
    pub(crate) progress: &'a Progress,
    poll: Poll,
    /// What was found in this interval.
    pub(crate) tally: Box<Tally>,
    /// Messages that each producer may send.
    pub(crate) quota: u64,
    pub(crate) is_open_loop: bool,
    pub(crate) measure_from_ns: u64,
    /// When the interval ends that `tally` belongs to.
    interval_due_ns: u64,
}

/// What a protocol does in one turn of the loop.
pub(crate) trait Turn<'a> {
    /// The thread.
    fn thread(&mut self) -> &mut Thread<'a>;
    /// Sends what is due or fits the window; returns how many messages.
    fn produce(&mut self, now: u64) -> Result<u32>;
    /// How long to wait for events, when so many messages were sent.
    fn wait_for(&self, now: u64, produced: u32) -> Duration;
    /// Receives and answers; whether there was anything to do.
    fn handle(&mut self, events: &Events, now: u64) -> Result<bool>;
    /// Says that it is alive, if that is due.
    fn beat(&mut self, now: u64) -> Result<()>;
    /// Calls `each` with every schedule.
    fn schedules(&self, each: &mut dyn FnMut(&Schedule));
}

impl<'a> Thread<'a> {
    /// Thread `index` of a plan, without connections.
    ///
    /// # Errors
    /// If there is no poller to be had.
    pub(crate) fn new(plan: &'a Plan, shared: &'a Shared, index: usize) -> Result<Self> {
        Ok(Self {
            plan,
            shared,
            index,
            progress: &shared.threads[index],
            poll: Poll::new().map_err(Error::io("cannot make a poller"))?,
            tally: Box::default(),
            quota: match plan.stop {
                Stop::Published(messages) => messages.div_ceil(u64::from(plan.producers.max(1))),
                Stop::After(_) | Stop::Delivered(_) => u64::MAX,
            },
            is_open_loop: plan.is_open_loop(),
            measure_from_ns: u64::MAX,
            interval_due_ns: u64::MAX,
        })
    }

    /// Makes a socket one that does not wait, whose events name `place`.
    pub(crate) fn watch(&self, socket: std::net::TcpStream, place: usize) -> Result<TcpStream> {
        socket
            .set_nonblocking(true)
            .map_err(Error::io("cannot make a socket non-blocking"))?;
        let mut socket = TcpStream::from_std(socket);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut socket, Token(place), interest)
            .map_err(Error::io("cannot register a socket"))?;
        Ok(socket)
    }

    /// Waits for events.
    pub(crate) fn wait(&mut self, events: &mut Events, timeout: Duration) -> Result<()> {
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                Err(Error::io("cannot wait for events")(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether the run is over.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::Relaxed)
    }

    /// Whether producers send now: the run has started and not stopped, and consumers keep up in a closed
    /// loop.
    pub(crate) fn is_producing(&self) -> bool {
        if !self.shared.is_started.load(Ordering::Relaxed)
            || self.shared.is_stopped.load(Ordering::Relaxed)
        {
            return false;
        }
        if self.is_open_loop || self.plan.consumers == 0 {
            return true;
        }
        let sums = Sums::of(&self.shared.threads);
        let stored = (sums.published - sums.refused) * u64::from(self.plan.fan_out);
        stored <= sums.delivered + self.plan.lag_max
    }

    /// How many messages a producer may write now in one batch of at most `batch`, that has sent so many
    /// and waits for the outcome of so many.
    pub(crate) fn room(&self, batch: u32, sent: u64, unconfirmed: u64, is_due: bool) -> u64 {
        let left = self.quota - sent.min(self.quota);
        let batch = u64::from(batch).min(left);
        match self.plan.pace {
            Pace::Window { messages } => {
                let window = u64::from(messages);
                let batch = batch.min(window);
                if unconfirmed + batch > window {
                    0
                } else {
                    batch
                }
            }
            Pace::Constant { .. } | Pace::Poisson { .. } if is_due => batch,
            Pace::Constant { .. } | Pace::Poisson { .. } => 0,
        }
    }

    /// How long to wait if all there is to do comes at the earliest of some times.
    pub(crate) fn until(now: u64, times_ns: impl Iterator<Item = f64>) -> Duration {
        let next = times_ns.fold(f64::INFINITY, f64::min);
        if next.is_finite() && next < (now + SPIN_NS) as f64 {
            Duration::ZERO
        } else if next.is_finite() {
            Duration::from_millis(1)
        } else {
            WAIT_MAX
        }
    }

    /// Whether messages come at times of their own, still.
    pub(crate) fn is_paced(&self) -> bool {
        self.is_open_loop && !self.shared.is_stopped.load(Ordering::Relaxed)
    }

    /// From when on deliveries are measured.
    pub(crate) fn deliveries_from_ns(&self) -> u64 {
        self.plan.deliveries_from_ns(self.measure_from_ns)
    }

    /// Ends the interval if it is over. The first starts with measuring; after each the tally is left for
    /// whoever collects.
    fn turn_interval(&mut self, now: u64) {
        let is_first = self.interval_due_ns == u64::MAX;
        let due_ns = [self.interval_due_ns, self.measure_from_ns][usize::from(is_first)];
        if now < due_ns {
            return;
        }
        if is_first {
            self.tally.from_ns = self.measure_from_ns;
            self.interval_due_ns = self.measure_from_ns;
        } else {
            self.shared.post(self.index, &mut self.tally, now);
        }
        let interval = self.shared.interval_ns;
        while self.interval_due_ns <= now {
            self.interval_due_ns = self.interval_due_ns.saturating_add(interval);
        }
    }

    /// Open loop: what should have been sent by the end and was not.
    fn note_unsent(&mut self, schedule: &Schedule) {
        let is_timed = matches!(self.plan.stop, Stop::After(_));
        if !is_timed || !self.is_open_loop || !self.shared.is_stopped.load(Ordering::Acquire) {
            return;
        }
        let stopped_ns = self.shared.stopped_ns.load(Ordering::Relaxed);
        let is_consumed = self.plan.consumers > 0;
        self.tally
            .note_unsent(schedule.clone(), stopped_ns, is_consumed);
    }
}

/// Takes turns until the run is over.
///
/// # Errors
/// As the turns'.
pub(crate) fn work<'a>(turn: &mut impl Turn<'a>) -> Result<()> {
    let mut events = Events::with_capacity(1024);
    let mut cpu_look_ns = 0;
    let mut work_ns = 0;
    while !turn.thread().is_over() {
        let thread = turn.thread();
        let shared = thread.shared;
        let before = shared.now_ns();
        thread.measure_from_ns = shared.measure_from_ns.load(Ordering::Relaxed);
        thread.turn_interval(before);
        let produced = turn.produce(before)?;
        let produced_ns = if produced > 0 {
            shared.now_ns() - before
        } else {
            0
        };
        let timeout = turn.wait_for(before, produced);
        turn.thread().wait(&mut events, timeout)?;
        let woken = shared.now_ns();
        let handled = turn.handle(&events, woken)?;
        if handled {
            work_ns += shared.now_ns() - woken;
        } else if produced == 0 && timeout == Duration::ZERO {
            // Spinning for a send time; the broker's kernel work may need this CPU.
            std::thread::yield_now();
        }
        work_ns += produced_ns;
        let thread = turn.thread();
        if thread.is_open_loop {
            thread.progress.work_ns.store(work_ns, Ordering::Relaxed);
        } else if woken >= cpu_look_ns {
            cpu_look_ns = woken + CPU_LOOK_NS;
            thread.progress.work_ns.store(cpu_ns(), Ordering::Relaxed);
        }
        turn.beat(woken)?;
    }
    let mut schedules = Vec::new();
    turn.schedules(&mut |schedule| schedules.push(schedule.clone()));
    for schedule in &schedules {
        turn.thread().note_unsent(schedule);
    }
    Ok(())
}

/// The carriers of thread `index`.
pub(crate) fn mine(carriers: u32, index: usize, threads: usize) -> impl Iterator<Item = u32> {
    (0..carriers).filter(move |carrier| *carrier as usize % threads == index)
}

/// Connections that carry producers, all threads' together.
pub(crate) fn producer_carriers(plan: &Plan) -> u32 {
    match plan.producer_connections {
        0 => plan.producers,
        count => count.min(plan.producers),
    }
}

/// Connections that carry consumers, all threads' together.
pub(crate) fn consumer_carriers(plan: &Plan) -> u32 {
    let places = plan.queues * plan.consumers;
    match plan.consumer_connections {
        0 => places.min(16),
        count => count.min(places),
    }
}

/// CPU time of this thread, in ns.
#[must_use]
pub(crate) fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or(0)
}
