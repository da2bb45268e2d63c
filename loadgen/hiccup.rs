//! What the machine itself adds: a thread that sleeps for a millisecond, again and again, and records
//! how much later it was woken. Whatever the broker does, load on that CPU sees at least this.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::tally::latencies;
use crate::{Error, Result, machine};

/// How long it sleeps.
const SLEEP: Duration = Duration::from_millis(1);

/// A running meter; dropping it ends it.
#[derive(Debug)]
pub struct Meter {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Histogram<u64>>>>,
}

impl Meter {
    /// Starts on a CPU, or wherever the kernel likes.
    ///
    /// # Errors
    /// If no thread can be made.
    pub fn start(cpu: Option<usize>) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let body = move || {
            if let Some(id) = cpu
                && !machine::pin(id)
            {
                return Err(Error::Plan(format!(
                    "the hiccup meter cannot run on CPU {id}"
                )));
            }
            let mut histogram = latencies();
            while !told.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(SLEEP);
                let over = before.elapsed().saturating_sub(SLEEP);
                histogram.saturating_record(u64::try_from(over.as_nanos()).unwrap_or(u64::MAX));
            }
            Ok(histogram)
        };
        let thread = std::thread::Builder::new()
            .name("hiccups".into())
            .spawn(body)
            .map_err(Error::io("cannot start a thread"))?;
        Ok(Self {
            is_over,
            thread: Some(thread),
        })
    }

    /// Ends it; how late it was woken, in ns.
    ///
    /// # Errors
    /// If it could not run where it should.
    pub fn end(mut self) -> Result<Histogram<u64>> {
        self.is_over.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(found)) => found,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(latencies()),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // nobody asks any more what it found
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_wakes_again_and_again_until_it_is_ended() {
        let meter = Meter::start(None).expect("a thread");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        assert!(!meter.end().expect("it ran").is_empty());
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        let meter = Meter::start(Some(1 << 16)).expect("a thread");
        assert!(meter.end().is_err());
    }
}
