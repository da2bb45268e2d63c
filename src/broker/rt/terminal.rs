//! How wide the terminal is that somebody reads. It does not know what is shown there.
#![expect(unsafe_code, reason = "the size of a terminal is asked by ioctl")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Columns of the terminal that standard output is; `None` if it is none, or does not say.
#[must_use]
pub fn output_columns() -> Option<usize> {
    let mut answer = MaybeUninit::<libc::winsize>::zeroed();
    let output = io::stdout().as_raw_fd();
    // SAFETY: the answer has room for what is written and lives for the call.
    let result = unsafe { libc::ioctl(output, libc::TIOCGWINSZ, answer.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call succeeded and filled it; zeroes would have been valid as well.
    let answer = unsafe { answer.assume_init() };
    Some(usize::from(answer.ws_col)).filter(|columns| *columns > 0)
}
