//! The messages of a data directory, read in this process by the code that `ringpost verify` is made
//! of. The only place of this crate that knows the broker otherwise than as a program: thousands of
//! images are read, and starting a process for each takes longer than reading it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use ringpost::offline::{self, OfflineError};
use ringpost_prove::Outcome;
use ringpost_prove::offline::Messages;

/// How long a lock of this process may live on in a process that another thread is just starting.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `ringpost verify --messages` would write.
///
/// # Errors
/// It finds damage, or the recovery panics.
pub fn messages(data: &Path) -> Outcome<Messages> {
    catch_unwind(AssertUnwindSafe(|| read(data)))
        .unwrap_or_else(|_| Err("the recovery panicked, as is said above".to_owned()))
}

fn read(data: &Path) -> Outcome<Messages> {
    let survey = unlocked(|| offline::verify(data))?;
    if !survey.damage.is_empty() {
        return Err(format!("damage that nobody made: {:?}", survey.damage));
    }
    let mut found = Messages::new();
    unlocked(|| {
        offline::messages(data, |message| {
            let queue = String::from_utf8_lossy(message.queue).into_owned();
            let message = (
                message.sequence.0,
                message.delivery_count,
                message.message.to_vec(),
            );
            found.entry(queue).or_default().push(message);
            Ok(())
        })
    })?;
    Ok(found)
}

/// Does something with a directory that nobody uses, but for a moment perhaps: whoever starts a
/// process holds all locks of this one until the program is loaded.
fn unlocked<T>(mut work: impl FnMut() -> Result<T, OfflineError>) -> Outcome<T> {
    let start = Instant::now();
    loop {
        match work() {
            Err(OfflineError::InUse { .. }) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done.map_err(|error| error.to_string()),
        }
    }
}
