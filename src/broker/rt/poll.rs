//! The one place where a core waits: an epoll set for sockets and doorbell, and a private io_uring
//! for the journal. It does not know what the sockets say or what the blocks hold.
//!
//! A wait goes through three stages, each cheaper for the machine and slower to wake than the one
//! before, and ends at the first that finds work:
//!
//! ```text
//!   look     submit queued operations; completion queue, epoll_wait(0), the caller's rings
//!   spin     the same again and again with sched_yield between, at most `spin` long, and only if
//!            the last few idle periods ended within that time
//!   block    epoll_pwait2 on this thread until the deadline, in slices of a heartbeat; between
//!            two, the executor's other tasks run if they can
//! ```
//!
//! The thread never sleeps anywhere else while the driver lives: the executor is entered only for a
//! round that ends by itself. And no slice is longer than a heartbeat: if a wake-up is lost after
//! all, here or in the kernel, it costs that long and not for ever.
//!
//! The ring is created with cooperative task work: a completion interrupts nobody. It is noticed
//! when this thread enters the kernel, which every stage does, or because it wakes the sleep
//! (`epoll_pwait2` then says EINTR, and the completion queue has the entry).
#![expect(unsafe_code, reason = "epoll and io_uring are syscalls on raw memory")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

use super::background::Tasks;
use super::bell::Bell;
use super::disk::SegmentFile;
use super::memory::{IO_ALIGNMENT, IoWindow};
use super::time::Monotonic;

/// Socket events taken from the kernel in one turn; the rest stay queued there.
pub const SOCKET_EVENTS_PER_TURN_MAX: usize = 256;
/// The longest sleep while there was work within [`WARM`].
const HEARTBEAT_WARM: Duration = Duration::from_millis(2);
/// The longest sleep of an idle core: 20 looks a second cost nothing.
const HEARTBEAT_IDLE: Duration = Duration::from_millis(50);
/// How long after the last work a core counts as warm.
const WARM: Duration = Duration::from_millis(100);
/// What a sleep adds to the gap that a spin would have seen: the kernel's wake of this thread.
const WAKE_COST: Duration = Duration::from_micros(30);

/// The caller's name for a socket, given back with its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    const RING: Token = Token(u64::MAX);
    const BELL: Token = Token(u64::MAX - 1);
    /// The largest value a caller may use.
    pub const MAX: u64 = u64::MAX - 16;

    /// A token of the caller's.
    ///
    /// # Panics
    ///
    /// If the value is above [`Token::MAX`], which is kept for the poller itself.
    pub const fn new(value: u64) -> Self {
        assert!(
            value <= Token::MAX,
            "the highest tokens belong to the poller"
        );
        Token(value)
    }

    /// The value given to [`Token::new`].
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// What became of a socket since it was last reported. Edge triggered: the next report comes only
/// after a read fell short or said "would block", likewise for writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketEvent {
    /// The name given at registration.
    pub token: Token,
    /// There may be bytes, a connection to accept, or the end of the stream.
    pub readable: bool,
    /// There may be room to send.
    pub writable: bool,
    /// The peer closed or reset; read what is left and close.
    pub hangup: bool,
}

/// The caller's name for an operation of the ring, given back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(pub u64);

/// An operation of the ring that has ended.
#[derive(Debug)]
pub struct Completion {
    /// The name given at submission.
    pub operation: OperationId,
    /// What the kernel answered: bytes moved, or a negative error number.
    pub result: i32,
    /// The memory that was lent for it.
    pub window: IoWindow,
}

/// How an operation failed. Neither is retried: a write that failed once has told the truth once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// Fewer bytes than asked were moved.
    Short {
        /// How many were.
        moved: u32,
        /// How many were asked for.
        asked: u32,
    },
    /// The kernel reported this error number.
    Error(i32),
}

impl std::fmt::Display for IoFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            IoFailure::Short { moved, asked } => write!(f, "moved {moved} of {asked} bytes"),
            IoFailure::Error(number) => io::Error::from_raw_os_error(number).fmt(f),
        }
    }
}

impl std::error::Error for IoFailure {}

impl Completion {
    /// Whether every byte was moved.
    ///
    /// # Errors
    ///
    /// How it failed.
    pub fn outcome(&self) -> Result<(), IoFailure> {
        let asked = self.window.bytes();
        match u32::try_from(self.result) {
            Ok(moved) if moved == asked => Ok(()),
            Ok(moved) => Err(IoFailure::Short { moved, asked }),
            Err(_) => Err(IoFailure::Error(self.result.saturating_neg())),
        }
    }
}

/// What one [`Poller::wait`] found. Reused from turn to turn.
#[derive(Debug)]
pub struct Events {
    /// Sockets with news.
    pub sockets: Vec<SocketEvent>,
    /// Operations that ended, in the order in which they ended; the caller takes them out.
    pub completions: Vec<Completion>,
    /// Whether the caller's `pending` said yes.
    pub pending: bool,
}

impl Events {
    /// Room for one turn.
    pub fn new() -> Self {
        Events {
            sockets: Vec::with_capacity(SOCKET_EVENTS_PER_TURN_MAX),
            completions: Vec::new(),
            pending: false,
        }
    }

    /// Whether there is anything to do.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty() && self.completions.is_empty() && !self.pending
    }
}

impl Default for Events {
    fn default() -> Self {
        Events::new()
    }
}

/// An operation between submission and completion.
#[derive(Debug)]
struct InFlight {
    operation: OperationId,
    window: IoWindow,
    /// Keeps the descriptor from being closed, and its number reused, before the kernel has it.
    _file: SegmentFile,
}

/// Why a submission was not taken: as many operations as the poller was made for are in flight.
#[derive(Debug)]
pub struct RingFull(pub IoWindow);

/// Waits for sockets, disk and other cores on behalf of one core's loop.
pub struct Poller {
    /// Journal reads and writes; its descriptor is in the epoll set.
    ring: IoUring,
    /// Operations by slot; the slot number travels through the kernel.
    in_flight: Vec<Option<InFlight>>,
    /// Free slots of `in_flight`.
    slots_free: Vec<u32>,
    /// Operations pushed to the ring's queue and not yet handed to the kernel.
    queued: u32,
    /// Everything that may wake this thread: sockets, the ring and the bell.
    epoll: OwnedFd,
    /// Where the kernel puts socket events.
    raw_events: Vec<libc::epoll_event>,
    /// Rung by other threads; shared with them.
    bell: Arc<Bell>,
    /// The tasks beside the driver; shared with those who start them.
    tasks: Rc<Tasks>,
    /// When there was work last.
    worked: Monotonic,
    /// Whether spinning pays.
    spin: Spin,
    /// Counters for measurements.
    stats: PollerStats,
}

/// How the waits of a poller ended, for measurements and the admin view.
#[derive(Clone, Copy, Debug, Default)]
pub struct PollerStats {
    /// Calls of [`Poller::wait`].
    pub waits: u64,
    /// Waits that began to spin.
    pub spins: u64,
    /// Spins that found work.
    pub spins_won: u64,
    /// Times the thread slept, for a heartbeat at most.
    pub blocks: u64,
    /// Times the executor's other tasks were let run.
    pub rounds: u64,
}

impl Poller {
    /// Makes the poller of the core this runs on.
    ///
    /// # Errors
    ///
    /// If the kernel refuses io_uring or there is no descriptor left.
    pub(super) fn new(
        bell: Arc<Bell>,
        tasks: Rc<Tasks>,
        spin: Duration,
        in_flight_max: u32,
    ) -> io::Result<Self> {
        assert!(
            in_flight_max > 0,
            "a poller without operations cannot serve a journal"
        );
        let ring = IoUring::builder()
            .setup_clamp()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(in_flight_max)
            .or_else(|_| IoUring::builder().setup_clamp().build(in_flight_max))?;
        let in_flight_max = in_flight_max.min(ring.params().sq_entries());
        // SAFETY: epoll_create1 takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let readable = libc::EPOLLIN | libc::EPOLLET;
        epoll_add(epoll.as_fd(), ring.as_raw_fd(), Token::RING, readable)?;
        epoll_add(
            epoll.as_fd(),
            bell.descriptor().as_raw_fd(),
            Token::BELL,
            readable,
        )?;
        Ok(Poller {
            ring,
            in_flight: (0..in_flight_max).map(|_| None).collect(),
            slots_free: (0..in_flight_max).rev().collect(),
            queued: 0,
            epoll,
            raw_events: vec![libc::epoll_event { events: 0, u64: 0 }; SOCKET_EVENTS_PER_TURN_MAX],
            bell,
            tasks,
            worked: Monotonic::now(),
            spin: Spin {
                longest: spin,
                history: 0,
            },
            stats: PollerStats::default(),
        })
    }

    /// This core's bell, for those who post to it.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// How the waits so far have ended.
    pub fn stats(&self) -> PollerStats {
        self.stats
    }

    /// Reports what happens on a socket or listener under `token` from now on, beginning with what
    /// it is ready for at the moment.
    ///
    /// # Errors
    ///
    /// What the kernel answers: the descriptor is registered already, or memory is short.
    pub fn register(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        assert!(
            token.0 <= Token::MAX,
            "the highest tokens belong to the poller"
        );
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        epoll_add(self.epoll.as_fd(), socket.as_raw_fd(), token, interest)
    }

    /// Reports nothing of this socket from the next wait on; needed before it is handed to another
    /// core, not before it is closed. Events already gathered remain with the caller.
    ///
    /// # Errors
    ///
    /// If the socket was not registered.
    pub fn deregister(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: both descriptors are open for the call; a null event is allowed for a removal.
        let result = unsafe {
            libc::epoll_ctl(
                epoll,
                libc::EPOLL_CTL_DEL,
                socket.as_raw_fd(),
                std::ptr::null_mut(),
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// How many operations are in flight or queued.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.slots_free.len()
    }

    /// Queues a write of the window to `offset`. It reaches the kernel with the next
    /// [`submit`](Self::submit) or [`wait`](Self::wait). On a file opened with
    /// [`SegmentFile::open_for_writing`] its completion means that the bytes are durable.
    ///
    /// # Errors
    ///
    /// The window, if too many operations are in flight.
    pub fn submit_write(
        &mut self,
        operation: OperationId,
        file: &SegmentFile,
        offset: u64,
        window: IoWindow,
    ) -> Result<(), RingFull> {
        let target = types::Fd(file.as_fd().as_raw_fd());
        let entry =
            opcode::Write::new(target, window.address().as_ptr(), window.bytes()).offset(offset);
        self.push(operation, file, offset, window, entry.build())
    }

    /// Queues a read from `offset` that fills the window; otherwise like
    /// [`submit_write`](Self::submit_write).
    ///
    /// # Errors
    ///
    /// The window, if too many operations are in flight.
    pub fn submit_read(
        &mut self,
        operation: OperationId,
        file: &SegmentFile,
        offset: u64,
        window: IoWindow,
    ) -> Result<(), RingFull> {
        let source = types::Fd(file.as_fd().as_raw_fd());
        let entry =
            opcode::Read::new(source, window.address().as_ptr(), window.bytes()).offset(offset);
        self.push(operation, file, offset, window, entry.build())
    }

    fn push(
        &mut self,
        operation: OperationId,
        file: &SegmentFile,
        offset: u64,
        window: IoWindow,
        entry: io_uring::squeue::Entry,
    ) -> Result<(), RingFull> {
        assert!(
            offset.is_multiple_of(IO_ALIGNMENT as u64),
            "offset {offset} is not aligned"
        );
        assert!(
            window.range().start.is_multiple_of(IO_ALIGNMENT),
            "the memory is not aligned"
        );
        assert!(
            window.range().end.is_multiple_of(IO_ALIGNMENT),
            "the length is not aligned"
        );
        let Some(slot) = self.slots_free.pop() else {
            return Err(RingFull(window));
        };
        let entry = entry.user_data(u64::from(slot));
        let kept = InFlight {
            operation,
            window,
            _file: file.clone(),
        };
        let free = self.in_flight[slot as usize].replace(kept);
        assert!(
            free.is_none(),
            "slot {slot} was on the free list and in use"
        );
        // SAFETY: memory and descriptor stay valid until the completion, since the slot holds the
        // window and the file, and `drop` waits for what is in flight.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has as many entries as there are slots");
        self.queued += 1;
        Ok(())
    }

    /// Hands what is queued to the kernel with one syscall; [`wait`](Self::wait) does it too, but a
    /// caller that has sends to make first lets the disk begin meanwhile.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the ring as such; operations that fail say so in their completion.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.queued == 0 {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(taken) => {
                let taken = u32::try_from(taken).expect("no more than were queued");
                self.queued = self
                    .queued
                    .checked_sub(taken)
                    .expect("no more than were queued");
                Ok(())
            }
            // Short of memory, busy or interrupted: nothing was taken, the next turn tries again.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EBUSY | libc::EINTR)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until a socket, a completion or the caller's own `pending` has work, or the deadline
    /// has come, whichever is first; then `events` says which, and holds nothing at a deadline.
    ///
    /// `pending` looks at the rings from other cores and whatever else is rung through the
    /// [`Bell`]; it is called often and has to be cheap.
    ///
    /// # Errors
    ///
    /// If the ring or the epoll set fails as such, which nothing in this process can repair.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing but the events it had gathered; drive it to its end.
    pub async fn wait(
        &mut self,
        deadline: Option<Monotonic>,
        events: &mut Events,
        pending: impl Fn() -> bool,
    ) -> io::Result<()> {
        self.stats.waits += 1;
        events.sockets.clear();
        assert!(
            events.completions.is_empty(),
            "completions of the last turn were not taken"
        );
        self.submit()?;
        let start = Monotonic::now();
        if self.tasks.is_overdue(start) {
            self.round().await?;
        }
        if self.look(events, &pending)? {
            self.worked = start;
            return Ok(());
        }
        let idle_since = Monotonic::now();
        if is_past(deadline, idle_since) {
            return Ok(());
        }
        let found = (self.spin.pays() && self.spin(idle_since, deadline, events, &pending)?)
            || self.sleep(deadline, events, &pending).await?;
        if found {
            let now = Monotonic::now();
            self.spin.learn(now.since(idle_since));
            self.worked = now;
        }
        Ok(())
    }

    /// Lets the executor's other tasks run.
    #[cold]
    async fn round(&mut self) -> io::Result<()> {
        self.stats.rounds += 1;
        self.tasks.round().await
    }

    /// One look at everything, without waiting.
    #[inline]
    fn look(&mut self, events: &mut Events, pending: &impl Fn() -> bool) -> io::Result<bool> {
        self.gather_sockets(Duration::ZERO, events)?;
        self.gather_completions(events);
        events.pending = pending();
        Ok(!events.is_empty())
    }

    fn spin(
        &mut self,
        idle_since: Monotonic,
        deadline: Option<Monotonic>,
        events: &mut Events,
        pending: &impl Fn() -> bool,
    ) -> io::Result<bool> {
        self.stats.spins += 1;
        let until = idle_since.plus(self.spin.longest);
        loop {
            // A spinner that never gives way delays the kernel threads which complete the writes
            // it waits for by a scheduler tick.
            std::thread::yield_now();
            if self.look(events, pending)? {
                self.stats.spins_won += 1;
                return Ok(true);
            }
            let now = Monotonic::now();
            if now >= until || is_past(deadline, now) {
                return Ok(false);
            }
        }
    }

    /// Blocks in slices until there is work or the deadline has come.
    async fn sleep(
        &mut self,
        deadline: Option<Monotonic>,
        events: &mut Events,
        pending: &impl Fn() -> bool,
    ) -> io::Result<bool> {
        loop {
            let mut now = Monotonic::now();
            if is_past(deadline, now) {
                return Ok(false);
            }
            if self.tasks.next_round() <= now {
                self.round().await?;
                now = Monotonic::now();
            }
            // Whatever the kernel could not take is offered again, since nothing else would wake us.
            self.submit()?;
            let slice = self.slice(now, deadline);
            self.bell.sleep_flag().announce_sleep();
            // The look after the announcement: whoever published before it saw us awake.
            if !pending() && !self.tasks.has_runnable() {
                self.stats.blocks += 1;
                self.gather_sockets(slice, events)?;
            }
            self.bell.sleep_flag().announce_awake();
            if events.sockets.is_empty() {
                self.look(events, pending)?;
            } else {
                self.gather_completions(events);
                events.pending = pending();
            }
            if !events.is_empty() {
                return Ok(true);
            }
        }
    }

    /// How long the thread may sleep now.
    fn slice(&self, now: Monotonic, deadline: Option<Monotonic>) -> Duration {
        // What the kernel did not take, it will not tell us of either.
        let is_warm = now.since(self.worked) < WARM || self.queued > 0;
        let heartbeat = match is_warm {
            true => HEARTBEAT_WARM,
            false => HEARTBEAT_IDLE,
        };
        let round = self.tasks.next_round().since(now);
        let deadline = deadline.map_or(heartbeat, |deadline| deadline.since(now));
        heartbeat.min(round).min(deadline)
    }

    /// Takes events from the epoll set, waiting for the first at most `timeout`.
    fn gather_sockets(&mut self, timeout: Duration, events: &mut Events) -> io::Result<()> {
        let count = epoll_wait(self.epoll.as_fd(), &mut self.raw_events, timeout)?;
        for raw in &self.raw_events[..count] {
            let token = Token(raw.u64);
            if token.0 > Token::MAX {
                continue;
            }
            let has = |flags: i32| raw.events & flags.cast_unsigned() != 0;
            events.sockets.push(SocketEvent {
                token,
                readable: has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
                writable: has(libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR),
                hangup: has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
            });
        }
        Ok(())
    }

    /// Takes what the completion queue holds: loads from shared memory, no syscall.
    #[inline]
    fn gather_completions(&mut self, events: &mut Events) {
        if self.slots_free.len() == self.in_flight.len() {
            return;
        }
        for entry in self.ring.completion() {
            let slot = u32::try_from(entry.user_data()).expect("we gave the kernel a slot number");
            let ended = self.in_flight[slot as usize].take();
            let ended = ended.expect("the kernel completes an operation once");
            self.slots_free.push(slot);
            events.completions.push(Completion {
                operation: ended.operation,
                result: entry.result(),
                window: ended.window,
            });
        }
    }
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller")
            .field("in_flight", &self.in_flight())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Drop for Poller {
    /// Waits for what is in flight: the kernel must not write into memory that was given back.
    fn drop(&mut self) {
        let mut events = Events::new();
        while self.in_flight() > 0 {
            let waited = self.ring.submit_and_wait(1);
            if let Err(error) = waited
                && error.kind() != io::ErrorKind::Interrupted
            {
                // The ring is broken; leaking is the only safe thing left to do with the memory.
                std::mem::forget(std::mem::take(&mut self.in_flight));
                return;
            }
            self.gather_completions(&mut events);
        }
    }
}

/// Decides whether spinning pays, from how the last idle periods ended.
#[derive(Debug)]
struct Spin {
    /// How long to spin at most; zero never spins.
    longest: Duration,
    /// The last eight idle periods, newest in bit 0: set if a spin would have found the work.
    history: u8,
}

impl Spin {
    /// Two of the last four: one lucky hit does not start it, one miss does not stop it.
    fn pays(&self) -> bool {
        !self.longest.is_zero() && (self.history & 0b1111).count_ones() >= 2
    }

    fn learn(&mut self, idle: Duration) {
        let hit = idle <= self.longest + WAKE_COST;
        self.history = self.history << 1 | u8::from(hit);
    }
}

fn is_past(deadline: Option<Monotonic>, now: Monotonic) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Takes the descriptor that a syscall has just returned.
fn owned(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the callers pass what a creating syscall returned; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn epoll_add(epoll: BorrowedFd<'_>, target: RawFd, token: Token, interest: i32) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: interest.cast_unsigned(),
        u64: token.0,
    };
    // SAFETY: the event lives for the call; a target that is no open descriptor is an error.
    let result =
        unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, target, &mut event) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Returns how many events were written to `events`; none if a signal or a completion's task work
/// interrupted the wait.
fn epoll_wait(
    epoll: BorrowedFd<'_>,
    events: &mut [libc::epoll_event],
    timeout: Duration,
) -> io::Result<usize> {
    let epoll = epoll.as_raw_fd();
    let room = i32::try_from(events.len()).unwrap_or(i32::MAX);
    let count = if timeout.is_zero() {
        // SAFETY: the kernel writes at most `room` events to the slice, which lives for the call.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, 0) };
        libc::c_long::from(count)
    } else {
        let exact = timespec(timeout);
        let no_mask = std::ptr::null::<libc::sigset_t>();
        // SAFETY: as above; the timeout lives for the call, and a null mask changes no signals.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll,
                events.as_mut_ptr(),
                room,
                &raw const exact,
                no_mask,
                std::mem::size_of::<libc::sigset_t>(),
            )
        };
        if count < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
            // A tool between us and the kernel, as valgrind, may not know the call: whole
            // milliseconds then, late rather than busy.
            let whole = timeout.as_nanos().div_ceil(1_000_000);
            let whole = i32::try_from(whole).unwrap_or(i32::MAX);
            // SAFETY: as above.
            let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, whole) };
            libc::c_long::from(count)
        } else {
            count
        }
    };
    match usize::try_from(count) {
        Ok(count) => Ok(count),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_starts_after_two_hits_and_ends_after_three_misses() {
        let mut spin = Spin {
            longest: Duration::from_micros(50),
            history: 0,
        };
        let (hit, miss) = (Duration::from_micros(20), Duration::from_millis(1));
        assert!(!spin.pays());
        spin.learn(hit);
        assert!(!spin.pays());
        spin.learn(hit);
        assert!(spin.pays());
        spin.learn(miss);
        spin.learn(miss);
        assert!(spin.pays());
        spin.learn(miss);
        assert!(!spin.pays());
    }

    #[test]
    fn a_spin_of_zero_never_pays() {
        let mut spin = Spin {
            longest: Duration::ZERO,
            history: 0,
        };
        for _ in 0..8 {
            spin.learn(Duration::ZERO);
        }
        assert!(!spin.pays());
    }
}
