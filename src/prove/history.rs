//! What clients did and saw, in one order, each with the position of a clock at that moment (how
//! much the disk below had been given by then). Does not judge; `ringpost-check` does.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringpost_check::{Checker, Event, MessageId, Verdict, text};

use crate::Outcome;

/// Reads a clock that never goes back.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// A history that grows. Shared by all clients of a run, each in a thread of its own.
pub struct History {
    clock: Clock,
    /// Locked for a moment by whoever records; the clock is read under the lock, so that positions
    /// are in the order of the events.
    events: Mutex<Vec<(u64, Event<'static>)>>,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

impl Default for History {
    fn default() -> Self {
        Self::new(Box::new(|| 0))
    }
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            events: Mutex::default(),
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<(u64, Event<'static>)>> {
        // Whoever panicked while pushing has failed the run already.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends events that were seen at once.
    pub fn record(&self, seen: impl IntoIterator<Item = Event<'static>>) {
        let mut events = self.events();
        let now = (self.clock)();
        events.extend(seen.into_iter().map(|event| (now, event)));
    }

    /// Events so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events().len()
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All events, each with where the clock stood, which never goes back.
    #[must_use]
    pub fn with_positions(&self) -> Vec<(u64, Event<'static>)> {
        self.events().clone()
    }

    /// All events.
    #[must_use]
    pub fn all(&self) -> Vec<Event<'static>> {
        self.events().iter().map(|(_, event)| *event).collect()
    }
}

/// Judges events.
#[must_use]
pub fn judge(events: &[Event<'static>]) -> Verdict {
    let mut checker = Checker::new();
    for event in events {
        checker.event(*event);
    }
    checker.verdict()
}

/// Publishes of a cut-off history that have no answer, as the events that say so.
#[must_use]
pub fn unanswered(events: &[Event<'static>]) -> Vec<Event<'static>> {
    let mut waiting = std::collections::BTreeSet::new();
    for event in events {
        match *event {
            Event::Sent { message, level, .. } if level != ringpost_check::Level::None => {
                waiting.insert(message);
            }
            Event::Confirmed {
                producer,
                first,
                last,
                ..
            } => {
                let id = |sequence| MessageId { producer, sequence };
                let done: Vec<_> = waiting.range(id(first)..=id(last)).copied().collect();
                for message in done {
                    waiting.remove(&message);
                }
            }
            Event::Refused { message, .. } | Event::Unknown { message } => {
                waiting.remove(&message);
            }
            _ => {}
        }
    }
    let unknown = |message| Event::Unknown { message };
    waiting.into_iter().map(unknown).collect()
}

/// Writes events as text, for `ringpost-check`.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, events: &[Event<'static>]) -> Outcome<()> {
    let written = std::fs::File::create(path).and_then(|file| {
        let mut out = std::io::BufWriter::new(file);
        for event in events {
            text::write(&mut out, event)?;
        }
        out.flush()
    });
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_check::{Level, QueueNo, Target};

    #[test]
    fn what_has_no_answer_is_found() {
        let message = |sequence| MessageId {
            producer: 7,
            sequence,
        };
        let sent = |sequence| Event::Sent {
            message: message(sequence),
            hash: 0,
            level: Level::Durable,
            targets: &[Target::Must(QueueNo(0))],
        };
        let confirmed = Event::Confirmed {
            producer: 7,
            first: 1,
            last: 2,
            level: Level::Durable,
        };
        let events = [sent(1), sent(2), sent(3), confirmed];
        assert_eq!(
            unanswered(&events),
            [Event::Unknown {
                message: message(3)
            }]
        );
    }
}
