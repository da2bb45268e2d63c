//! What happens beside a run: clients that come all at once, a broker that ends and comes back. Does
//! not know how load is made.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::broker::{Ending, Own};
use crate::link::Link;
use crate::plan::Plan;
use crate::tally::latencies;
use crate::{Error, Result};

/// Threads that connect in a storm.
const STORM_THREADS: u32 = 4;
/// How long measuring may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(600);

/// What happens beside a run.
pub(super) enum Beside {
    Nothing,
    Storm {
        after: Duration,
        clients: u32,
        per_second: f64,
    },
    Restart {
        after: Duration,
        ending: Ending,
        own: Box<Own>,
    },
}

/// What happened.
#[derive(Default)]
pub(super) struct Happened {
    pub(super) marks: Vec<(f64, String)>,
    pub(super) connects: Option<Histogram<u64>>,
    pub(super) notes: Vec<String>,
    /// The broker, given back.
    pub(super) own: Option<Own>,
}

impl Beside {
    /// Does it while `body` runs, from the moment on at which `begins` says that measuring has begun.
    pub(super) fn during<T>(
        self,
        plan: &Plan,
        begins: Receiver<Instant>,
        body: impl FnOnce() -> T,
    ) -> (T, Result<Happened>) {
        if let Beside::Nothing = self {
            return (body(), Ok(Happened::default()));
        }
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || match begins.recv_timeout(BEGIN_WITHIN) {
                Ok(start) => self.work(plan, start),
                // The run has ended before it was measured, and says why.
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => self.idle(),
            });
            let found = body();
            match thread.join() {
                Ok(happened) => (found, happened),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn idle(self) -> Result<Happened> {
        Ok(match self {
            Beside::Restart { own, .. } => Happened {
                own: Some(*own),
                ..Happened::default()
            },
            Beside::Nothing | Beside::Storm { .. } => Happened::default(),
        })
    }

    fn work(self, plan: &Plan, start: Instant) -> Result<Happened> {
        match self {
            Beside::Nothing => Ok(Happened::default()),
            Beside::Storm {
                after,
                clients,
                per_second,
            } => {
                sleep_until(start + after);
                storm(plan, start, clients, per_second)
            }
            Beside::Restart {
                after,
                ending,
                mut own,
            } => {
                sleep_until(start + after);
                let ended = start.elapsed().as_secs_f64();
                let took = own.restart(ending)?;
                let word = match ending {
                    Ending::Kill => "SIGKILL",
                    Ending::Term => "SIGTERM",
                };
                let ready = start.elapsed().as_secs_f64();
                let ms = took.as_secs_f64() * 1e3;
                Ok(Happened {
                    marks: vec![(ended, word.into()), (ready, "broker is back".into())],
                    notes: vec![format!(
                        "the broker shook hands again {ms:.0} ms after {word}"
                    )],
                    own: Some(*own),
                    connects: None,
                })
            }
        }
    }
}

fn sleep_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}

/// Connects clients at a rate, and keeps them for as long as the storm lasts.
fn storm(plan: &Plan, start: Instant, clients: u32, per_second: f64) -> Result<Happened> {
    let first = Instant::now();
    let found: Mutex<(Histogram<u64>, Vec<Link>)> = Mutex::new((latencies(), Vec::new()));
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let lock = "no thread panics while it holds it";
    let connect = |number: u32| -> Result<()> {
        let due = first + Duration::from_secs_f64(f64::from(number) / per_second);
        sleep_until(due);
        let mut link = Link::connect(plan.address)?;
        link.attach(&plan.queue_name(number % plan.queues))?;
        let took = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut found = found.lock().expect(lock);
        found.0.saturating_record(took);
        found.1.push(link);
        Ok(())
    };
    std::thread::scope(|scope| {
        for thread in 0..STORM_THREADS {
            let (connect, failed) = (&connect, &failed);
            scope.spawn(move || {
                for number in (thread..clients).step_by(STORM_THREADS as usize) {
                    if let Err(error) = connect(number) {
                        failed.lock().expect(lock).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    let (connects, links) = found.into_inner().expect(lock);
    let (begun, ended) = (first - start, start.elapsed());
    let mut notes = vec![format!(
        "{} of {clients} clients connected and attached in {:.2} s",
        links.len(),
        (ended - begun).as_secs_f64()
    )];
    if let Some(error) = failed.into_inner().expect(lock) {
        notes.push(format!("a client could not connect: {error}"));
    }
    Ok(Happened {
        marks: vec![
            (begun.as_secs_f64(), "storm begins".into()),
            (ended.as_secs_f64(), "all connected".into()),
        ],
        connects: Some(connects),
        notes,
        own: None,
    })
}
