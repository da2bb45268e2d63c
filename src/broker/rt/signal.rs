//! The signals that ask the process to end, as messages. It does not know how the process ends.
#![expect(unsafe_code, reason = "signal masks are set by libc calls")]

use std::io;
use std::mem::MaybeUninit;

/// A request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `SIGTERM`: a supervisor asks.
    Terminate,
    /// `SIGINT`: somebody at a terminal asks.
    Interrupt,
}

/// Blocks `SIGTERM` and `SIGINT` for this thread and all it will start. Call it in `main` before
/// the first thread: one that does not block them would be killed by them.
///
/// # Errors
///
/// What the kernel answers.
pub fn block_termination_signals() -> io::Result<()> {
    let signals = termination_signals();
    // SAFETY: the set lives for the call; the old mask is not wanted.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// Starts a thread that waits for the blocked signals and passes them on. A second signal while
/// nobody listens to the first is dropped; the thread ends when the receiver is gone.
///
/// # Errors
///
/// If the thread cannot be started.
pub fn spawn_signal_thread() -> io::Result<flume::Receiver<Signal>> {
    let (sender, receiver) = flume::bounded(1);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let signals = termination_signals();
            while !sender.is_disconnected() {
                let mut number = 0;
                // SAFETY: the set and the number live for the call.
                let result = unsafe { libc::sigwait(&raw const signals, &raw mut number) };
                let signal = match number {
                    _ if result != 0 => continue,
                    libc::SIGTERM => Signal::Terminate,
                    _ => Signal::Interrupt,
                };
                // Full: the first request has not been read yet, and the second adds nothing to it.
                let _ = sender.try_send(signal);
            }
        })?;
    Ok(receiver)
}

fn termination_signals() -> libc::sigset_t {
    let mut signals = MaybeUninit::uninit();
    // SAFETY: the set has room for what is written.
    unsafe { libc::sigemptyset(signals.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it.
    let mut signals = unsafe { signals.assume_init() };
    for number in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the set is initialised and the number is a signal.
        unsafe { libc::sigaddset(&raw mut signals, number) };
    }
    signals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_signals_are_in_the_set_and_no_other() {
        let signals = termination_signals();
        let is_member = |number| {
            // SAFETY: the set is initialised and lives for the call.
            unsafe { libc::sigismember(&raw const signals, number) == 1 }
        };
        assert!(is_member(libc::SIGTERM));
        assert!(is_member(libc::SIGINT));
        assert!(!is_member(libc::SIGUSR1));
    }
}
