//! The one door to threads, clocks, files and sockets: nothing outside `rt` names glommio or makes
//! a syscall. It does not know what a message is, and no type of glommio leaves it.
//!
//! A core is a thread with a glommio executor. Its *driver*, the future given to [`spawn_core`],
//! owns a [`Poller`] and does the work; *background* tasks share the thread at low priority and
//! get their turn at least once a millisecond.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::{Latency, LocalExecutorBuilder, Placement, PoolPlacement, Shares};

mod bell;
pub mod disk;
mod memory;
pub mod net;
mod poll;
pub mod probe;
mod ring;
#[cfg(test)]
mod ring_tests;
mod signal;
mod sync;
pub mod time;

pub use bell::Bell;
pub use memory::{IO_ALIGNMENT, IoWindow, Memory};
pub use poll::{
    Completion, Events, IoFailure, OperationId, Poller, PollerStats, RingFull,
    SOCKET_EVENTS_PER_TURN_MAX, SocketEvent, Token,
};
pub use ring::{Consumer, Producer, SleepFlag, ring};
pub use signal::{Signal, block_termination_signals, spawn_signal_thread};
use time::Monotonic;

/// How long a driver may spin while it has nothing to do, if experience says that it pays.
pub const SPIN_DEFAULT: Duration = Duration::from_micros(50);
/// Journal operations in flight on one core, if not configured otherwise.
pub const OPERATIONS_IN_FLIGHT_DEFAULT: u32 = 128;

/// When the executor asks the running task to give way. Below 250 µs it can park with work queued.
const PREEMPT: Duration = Duration::from_millis(1);
/// The heartbeat while there was work within [`BUSY`]: bounds the stall if the executor parks with
/// a task queued, which a preemption at the wrong moment makes it do.
const HEARTBEAT_BUSY: Duration = Duration::from_millis(2);
/// The heartbeat of an idle core.
const HEARTBEAT_IDLE: Duration = Duration::from_millis(50);
/// How long after the last work a core counts as busy.
const BUSY: Duration = Duration::from_millis(100);
/// The executor's own rings carry timers and one poll; they need no depth.
const EXECUTOR_RING_DEPTH: usize = 64;
/// The smallest the executor accepts; we bring our own buffers. It is pinned three times.
const EXECUTOR_MEMORY_BYTES: usize = 64 << 10;
/// The driver's part of the thread against [`SHARES_BACKGROUND`].
const SHARES_DRIVER: usize = 1000;
/// The part of everything in the background.
const SHARES_BACKGROUND: usize = 50;

/// A random number, for identities that must differ between machines.
///
/// # Errors
///
/// If the kernel's source of randomness cannot be read.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let mut source = std::fs::File::open("/dev/urandom")?;
    io::Read::read_exact(&mut source, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// What a core is made of.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// The thread's name.
    pub name: String,
    /// The CPU to stay on; `None` leaves it to the scheduler, as it must be when there are more
    /// cores than CPUs.
    pub cpu: Option<usize>,
    /// Rung by those who post to this core; made beforehand so that they can have it.
    pub bell: Arc<Bell>,
    /// How long to spin at most; zero never spins.
    pub spin: Duration,
    /// Journal operations in flight at most.
    pub operations_in_flight_max: u32,
}

impl CoreConfig {
    /// A core with the default limits, not pinned.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left for the bell.
    pub fn new(name: impl Into<String>) -> io::Result<Self> {
        Ok(CoreConfig {
            name: name.into(),
            cpu: None,
            bell: Bell::new()?,
            spin: SPIN_DEFAULT,
            operations_in_flight_max: OPERATIONS_IN_FLIGHT_DEFAULT,
        })
    }
}

/// What the driver of a core works with.
#[derive(Debug)]
pub struct CoreRuntime {
    /// Where the driver waits.
    pub poller: Poller,
    /// Starts tasks beside the driver.
    pub background: Background,
}

/// Starts the tasks beside the driver of one core, at low priority.
#[derive(Clone, Debug)]
pub struct Background {
    queue: glommio::TaskQueueHandle,
}

impl Background {
    /// Starts a task. It lives as long as its handle: dropping that cancels it.
    pub fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> BackgroundTask<T> {
        let task = glommio::spawn_local_into(task, self.queue);
        BackgroundTask {
            task: task.expect("the queue lives as long as its executor"),
        }
    }

    /// Ends after `duration`; later by up to a millisecond while the driver is busy.
    pub async fn sleep(&self, duration: Duration) {
        glommio::timer::sleep(duration).await;
    }
}

/// A task beside the driver, owned by whoever holds this.
#[derive(Debug)]
#[must_use = "a dropped task is cancelled"]
pub struct BackgroundTask<T> {
    task: glommio::Task<T>,
}

impl<T> BackgroundTask<T> {
    /// Waits for its result.
    pub async fn join(self) -> T {
        self.task.await
    }

    /// Stops it where it awaits, and returns when all it held is dropped; its result if it had
    /// ended before.
    pub async fn cancel(self) -> Option<T> {
        self.task.cancel().await
    }
}

/// When a core had work last; shared by its poller, which notes it, and its heartbeat.
#[derive(Debug)]
struct Activity {
    last: Cell<Monotonic>,
}

impl Activity {
    fn note(&self, now: Monotonic) {
        self.last.set(now);
    }

    fn is_busy(&self) -> bool {
        Monotonic::now().since(self.last.get()) < BUSY
    }
}

/// Why a core ended without a result.
#[derive(Debug)]
pub enum CoreFailure {
    /// It could not be started: the kernel refused io_uring, epoll or memory.
    Start(io::Error),
    /// Its thread panicked or its executor failed; what it said.
    Died(String),
}

impl std::fmt::Display for CoreFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CoreFailure::Start(error) => write!(f, "the core could not start: {error}"),
            CoreFailure::Died(reason) => write!(f, "the core died: {reason}"),
        }
    }
}

impl std::error::Error for CoreFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CoreFailure::Start(error) => Some(error),
            CoreFailure::Died(_) => None,
        }
    }
}

/// A core that runs.
#[derive(Debug)]
pub struct CoreHandle<T: Send + 'static> {
    thread: glommio::ExecutorJoinHandle<io::Result<T>>,
}

impl<T: Send + 'static> CoreHandle<T> {
    /// Waits until the driver has ended and takes its result.
    ///
    /// # Errors
    ///
    /// If the core did not start, or died.
    pub fn join(self) -> Result<T, CoreFailure> {
        match self.thread.join() {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(CoreFailure::Start(error)),
            Err(error) => Err(CoreFailure::Died(error.to_string())),
        }
    }
}

/// Starts a thread with an executor, and on it the driver that `drive` makes. The driver ends the
/// core by returning; it has to have ended its background tasks and connections by then.
///
/// Create cores once per process: the executor leaks a descriptor when it ends.
///
/// # Errors
///
/// If the thread cannot be started or the CPU does not exist. What fails on the thread itself is
/// told by [`CoreHandle::join`].
pub fn spawn_core<Drive, Driver, T>(config: CoreConfig, drive: Drive) -> io::Result<CoreHandle<T>>
where
    Drive: FnOnce(CoreRuntime) -> Driver + Send + 'static,
    Driver: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let placement = config.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let builder = LocalExecutorBuilder::new(placement)
        .name(&config.name)
        .ring_depth(EXECUTOR_RING_DEPTH)
        .io_memory(EXECUTOR_MEMORY_BYTES)
        .preempt_timer(PREEMPT)
        // The driver spins by itself, where it sees everything; the executor parks at once.
        .spin_before_park(Duration::ZERO)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1));
    let thread = builder
        .spawn(move || run_core(config, drive))
        .map_err(io::Error::other)?;
    Ok(CoreHandle { thread })
}

async fn run_core<Drive, Driver, T>(config: CoreConfig, drive: Drive) -> io::Result<T>
where
    Drive: FnOnce(CoreRuntime) -> Driver,
    Driver: Future<Output = T> + 'static,
    T: 'static,
{
    let activity = Rc::new(Activity {
        last: Cell::new(Monotonic::now()),
    });
    let poller = Poller::new(
        config.bell,
        activity.clone(),
        config.spin,
        config.operations_in_flight_max,
    )?;
    let executor = glommio::executor();
    let relaxed = Latency::NotImportant;
    let background = Background {
        queue: executor.create_task_queue(Shares::Static(SHARES_BACKGROUND), relaxed, "background"),
    };
    let heartbeat = background.spawn(heartbeat(activity));
    let queue = executor.create_task_queue(Shares::Static(SHARES_DRIVER), relaxed, "driver");
    let driver = drive(CoreRuntime { poller, background });
    let driver = glommio::spawn_local_into(driver, queue);
    let result = driver
        .expect("the queue lives as long as its executor")
        .await;
    heartbeat.cancel().await;
    Ok(result)
}

/// Never ends. Its timer is what wakes the executor if it has parked with a task queued.
async fn heartbeat(activity: Rc<Activity>) {
    loop {
        let pause = if activity.is_busy() {
            HEARTBEAT_BUSY
        } else {
            HEARTBEAT_IDLE
        };
        glommio::timer::sleep(pause).await;
    }
}

/// Lets the executor run other tasks if it wants to, which is about once a millisecond.
#[inline]
async fn yield_if_due() {
    glommio::executor().yield_if_needed().await;
}

#[cfg(test)]
mod tests;
