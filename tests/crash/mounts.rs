//! Lets go of what is mounted. Does not know what that is.

use std::path::Path;
use std::time::{Duration, Instant};

use ringpost_prove::Outcome;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// How long a process that is just ending may keep a mount busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Unmounts what is mounted at `point`. Waits for processes that are just ending.
///
/// # Errors
/// Somebody uses it, or it is not mounted.
pub fn let_go(point: &Path) -> Outcome<()> {
    let start = Instant::now();
    loop {
        match unmount(point, UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(format!("cannot unmount {}: {error}", point.display())),
        }
    }
}
