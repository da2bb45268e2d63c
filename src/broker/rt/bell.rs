//! The doorbell of a core: wakes its loop when another thread has left it something. It does not
//! know what was left, nor where; the loop looks.
#![expect(unsafe_code, reason = "an eventfd is made and written by syscalls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::ring::SleepFlag;

/// One per core, shared by all threads that post to it. Ringing costs a fence while the core is
/// awake and a write of 8 bytes when it sleeps.
#[derive(Debug)]
pub struct Bell {
    /// Whether the core sleeps; stored by it, cleared by whoever wakes it.
    sleep: SleepFlag,
    /// An eventfd in the core's epoll set. Its count is never read back: the set is edge
    /// triggered, and 2^64 rings do not happen.
    descriptor: OwnedFd,
}

impl Bell {
    /// Makes a bell.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Bell {
            sleep: SleepFlag::new(),
            descriptor: eventfd(0)?,
        }))
    }

    /// Wakes the core if it sleeps. Call after publishing, once per batch.
    #[inline]
    pub fn ring(&self) {
        if self.sleep.must_wake() {
            self.write();
        }
    }

    /// Whether the core sleeps, and the duty to look for work once more before it does.
    pub(super) fn sleep_flag(&self) -> &SleepFlag {
        &self.sleep
    }

    /// What to wait on.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    #[cold]
    fn write(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is 8 bytes long and lives for the call. A full counter (EAGAIN) means
        // that the descriptor is readable already; nothing else can fail.
        unsafe { libc::write(self.descriptor.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// A descriptor that is readable at any time, for waiting until somebody has looked at it.
///
/// # Errors
///
/// If the process has no descriptor left.
pub(super) fn readable_for_ever() -> io::Result<OwnedFd> {
    eventfd(1)
}

fn eventfd(count: u32) -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers.
    let descriptor = unsafe { libc::eventfd(count, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
