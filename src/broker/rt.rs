//! The one door to threads, clocks, files and sockets: nothing outside `rt` names glommio or makes
//! a syscall. It does not know what a message is, and no type of glommio leaves it.
//!
//! A core is a thread with a glommio executor. Its *driver*, the future given to [`spawn_core`],
//! owns a [`Poller`], which alone decides when the thread sleeps; *background* tasks share the
//! thread and run when the driver is idle, or after a millisecond.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use glommio::{Latency, LocalExecutorBuilder, Placement, PoolPlacement, Shares};

mod background;
mod bell;
pub mod disk;
#[cfg(test)]
mod edge_tests;
mod memory;
pub mod net;
mod poll;
pub mod probe;
mod ring;
#[cfg(test)]
mod ring_tests;
mod signal;
mod sync;
pub mod terminal;
pub mod time;

use background::Tasks;
pub use background::{Background, BackgroundTask};
pub use bell::Bell;
pub use memory::{IO_ALIGNMENT, IoWindow, Memory};
pub use poll::{
    Completion, Events, IoFailure, OperationId, Poller, PollerStats, RingFull,
    SOCKET_EVENTS_PER_TURN_MAX, SocketEvent, Token,
};
pub use ring::{Consumer, Producer, SleepFlag, ring};
pub use signal::{Signal, block_termination_signals, spawn_signal_thread};

/// How long a driver may spin while it has nothing to do, if experience says that it pays.
pub const SPIN_DEFAULT: Duration = Duration::from_micros(50);
/// Journal operations in flight on one core, if not configured otherwise.
pub const OPERATIONS_IN_FLIGHT_DEFAULT: u32 = 128;

/// When the executor tells the running task to give way: never within the life of this machine.
///
/// If that timer runs out between the moment the executor sets it and the moment it looks for work,
/// the executor finds that it has to give way, takes the timer for the only event there was, and
/// sleeps with tasks queued; and if one of those was to be woken by a timer of its own, for good.
/// Whoever is denied the CPU for as long as the timer runs gets there: with the usual millisecond
/// and some busy neighbours within a minute.
const PREEMPT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// The executor's own rings carry timers and one poll; they need no depth.
const EXECUTOR_RING_DEPTH: usize = 64;
/// The smallest the executor accepts; we bring our own buffers. It is pinned three times.
const EXECUTOR_MEMORY_BYTES: usize = 64 << 10;

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
    let tasks = Tasks::new(config.bell.clone())?;
    let poller = Poller::new(
        config.bell,
        tasks.clone(),
        config.spin,
        config.operations_in_flight_max,
    )?;
    let executor = glommio::executor();
    // The driver decides when the tasks run, and an idle driver has no use for the CPU: the shares
    // decide nothing.
    let (shares, relaxed) = (Shares::default(), Latency::NotImportant);
    let background = executor.create_task_queue(shares, relaxed, "background");
    let background = Background::new(background, tasks);
    let driver = drive(CoreRuntime { poller, background });
    Ok(driver.await)
}

#[cfg(test)]
mod tests;
