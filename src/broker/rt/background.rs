//! The tasks beside the driver of a core: whether one of them can run, when the next one wants to,
//! and how they get to. It does not know what they do, nor what the driver waits for.
//!
//! The executor sees a task that was woken only when it is given a [round](Tasks::round), and the
//! driver gives one only if it knows of a reason. So every task is wrapped in a [`Counted`], whose
//! waker counts the task as runnable and rings the core's bell, whoever calls it:
//!
//! ```text
//!   waker, any thread                   driver
//!   runnable += 1                       announce that it sleeps
//!   the executor's own waker            runnable > 0? then a round instead
//!   ring the bell                       sleep; a ring ends it
//! ```
//!
//! The count comes first: a round that finds nothing is repeated, a task that runs before it is
//! counted would leave a count that nobody takes back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicIsize, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use glommio::io::PollableFd;

use super::bell::{Bell, readable_for_ever};
use super::time::Monotonic;

/// How often tasks that can run get a round while the driver has work.
const ROUND_EVERY: Duration = Duration::from_millis(1);
/// How long the executor goes without a round although no task wants one. Its clock advances by the
/// millisecond and only in rounds: after a day without, the next would take a second.
const ROUND_AT_LEAST: Duration = Duration::from_secs(1);

/// A task that waits for something.
const IDLE: u8 = 0;
/// A task that can run and is counted as such.
const WOKEN: u8 = 1;
/// A task that is over; waking it means nothing.
const OVER: u8 = 2;

/// Starts the tasks beside the driver of one core.
///
/// A task may hold the thread for as long as the driver may be held up, so it works in pieces and
/// awaits between them. Once it can run it does so at the driver's next idle moment, or a millisecond
/// later if there is none; it may be woken by any thread, and needs nothing else for that.
#[derive(Clone, Debug)]
pub struct Background {
    queue: glommio::TaskQueueHandle,
    tasks: Rc<Tasks>,
}

impl Background {
    pub(super) fn new(queue: glommio::TaskQueueHandle, tasks: Rc<Tasks>) -> Self {
        Background { queue, tasks }
    }

    /// Starts a task. It lives as long as its handle: dropping that cancels it.
    pub fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> BackgroundTask<T> {
        let task = Counted::new(task, &self.tasks);
        let task = glommio::spawn_local_into(task, self.queue);
        BackgroundTask {
            task: task.expect("the queue lives as long as its executor"),
        }
    }

    /// Ends after `duration`; later by up to two milliseconds, which is how exact the executor's
    /// clock is.
    pub async fn sleep(&self, duration: Duration) {
        let timer = glommio::timer::Timer::new(duration);
        // Noted after the timer was made, so that the timer is over when this is.
        let _sleeper = Sleeper::new(&self.tasks, Monotonic::now().plus(duration));
        timer.await;
    }
}

/// A task beside the driver, owned by whoever holds this.
#[derive(Debug)]
#[must_use = "a dropped task is cancelled"]
pub struct BackgroundTask<T> {
    task: glommio::Task<T>,
}

impl<T> BackgroundTask<T> {
    /// Waits for its result. A driver that does so looks at nothing else meanwhile.
    pub async fn join(self) -> T {
        self.task.await
    }

    /// Stops it where it awaits, and returns when all it held is dropped; its result if it had
    /// ended before.
    pub async fn cancel(self) -> Option<T> {
        self.task.cancel().await
    }
}

/// What the wakers of a core's tasks share, on whatever thread they are.
#[derive(Debug)]
struct Woken {
    /// Tasks that can run. Signed, since a waker may be between its two steps when its task ends.
    runnable: AtomicIsize,
    /// The core's.
    bell: Arc<Bell>,
}

/// The tasks of one core, as its poller sees them.
#[derive(Debug)]
pub(super) struct Tasks {
    /// Shared with the wakers.
    woken: Arc<Woken>,
    /// When those that sleep want to wake, told apart by a number.
    sleepers: RefCell<BTreeSet<(Monotonic, u64)>>,
    /// The number of the last sleeper.
    numbered: Cell<u64>,
    /// When the last round ended.
    last_round: Cell<Monotonic>,
    /// Always readable: what the driver awaits to let the executor go round once.
    turnstile: PollableFd<OwnedFd>,
}

impl Tasks {
    /// No task yet, on the core whose bell this is and whose executor runs this.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub(super) fn new(bell: Arc<Bell>) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Tasks {
            woken: Arc::new(Woken {
                runnable: AtomicIsize::new(0),
                bell,
            }),
            sleepers: RefCell::new(BTreeSet::new()),
            numbered: Cell::new(0),
            last_round: Cell::new(Monotonic::now()),
            turnstile: PollableFd::new(readable_for_ever()?).map_err(io::Error::other)?,
        }))
    }

    /// Whether a task was woken; to be asked between announcing a sleep and sleeping.
    #[inline]
    pub(super) fn has_runnable(&self) -> bool {
        self.woken.runnable.load(Ordering::Acquire) > 0
    }

    /// When an idle driver is to give the next round.
    #[inline]
    pub(super) fn next_round(&self) -> Monotonic {
        let last = self.last_round.get();
        if self.has_runnable() {
            return last;
        }
        let rarely = last.plus(ROUND_AT_LEAST);
        match self.sleepers.borrow().first() {
            // The executor's clock may be a tick behind: no round follows another at once.
            Some((wake, _)) => rarely.min((*wake).max(last.plus(ROUND_EVERY))),
            None => rarely,
        }
    }

    /// Whether a driver that has work should give a round first.
    #[inline]
    pub(super) fn is_overdue(&self, now: Monotonic) -> bool {
        now.since(self.last_round.get()) >= ROUND_EVERY && self.next_round() <= now
    }

    /// Runs every task that can run, and comes back.
    ///
    /// The executor is never left with the driver queued and a timer of its own running out, which
    /// is when it may go to sleep with work to do: see `PREEMPT`.
    ///
    /// # Errors
    ///
    /// If the executor's ring is broken.
    pub(super) async fn round(&self) -> io::Result<()> {
        let passed = self.turnstile.readable().await;
        self.last_round.set(Monotonic::now());
        passed.map_err(io::Error::other)
    }
}

/// One entry among the sleepers, taken out when it is dropped.
struct Sleeper<'a> {
    tasks: &'a Tasks,
    entry: (Monotonic, u64),
}

impl<'a> Sleeper<'a> {
    fn new(tasks: &'a Tasks, wake: Monotonic) -> Self {
        let number = tasks.numbered.get() + 1;
        tasks.numbered.set(number);
        let entry = (wake, number);
        tasks.sleepers.borrow_mut().insert(entry);
        Sleeper { tasks, entry }
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.tasks.sleepers.borrow_mut().remove(&self.entry);
    }
}

/// Whether one task can run; shared with its wakers.
#[derive(Debug)]
struct Flag {
    state: AtomicU8,
    /// The executor's waker of the task, from its first poll on.
    executor: OnceLock<Waker>,
    woken: Arc<Woken>,
}

impl Flag {
    /// Takes the task out of the count, if it is in it.
    fn settle(&self, next: u8) {
        if self.state.swap(next, Ordering::AcqRel) == WOKEN {
            self.woken.runnable.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let first = self
            .state
            .compare_exchange(IDLE, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            self.woken.runnable.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(executor) = self.executor.get() {
            executor.wake_by_ref();
        }
        self.woken.bell.ring();
    }
}

/// A task that is counted while it can run.
struct Counted<F> {
    /// Boxed once per task, so that it may be polled in place.
    task: Pin<Box<F>>,
    flag: Arc<Flag>,
    waker: Waker,
}

impl<F> Counted<F> {
    fn new(task: F, tasks: &Tasks) -> Self {
        // A task can run from the start.
        tasks.woken.runnable.fetch_add(1, Ordering::AcqRel);
        let flag = Arc::new(Flag {
            state: AtomicU8::new(WOKEN),
            executor: OnceLock::new(),
            woken: tasks.woken.clone(),
        });
        Counted {
            task: Box::pin(task),
            waker: flag.clone().into(),
            flag,
        }
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.flag.executor.get_or_init(|| cx.waker().clone());
        // Before the poll: a wake during it counts again.
        this.flag.settle(IDLE);
        this.task
            .as_mut()
            .poll(&mut Context::from_waker(&this.waker))
    }
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        self.flag.settle(OVER);
    }
}
