//! The outcomes of the messages of one block, shared by those who wait for them.
//! Does not know connections or how an outcome came about.
//!
//! A message costs nothing here: outcomes are runs of sequences, and only what is awaited has a
//! waker. A group lives as long as a `Pending` that points to it, so outcomes that nobody can ask
//! for any more take no memory.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::{Error, Level};

/// Outcomes of a run of sequences. Shared by the producer's window and its `Pending`s.
#[derive(Default, Debug)]
pub(crate) struct Group {
    state: Mutex<State>,
}

#[derive(Default, Debug)]
struct State {
    /// Every sequence below is settled.
    settled: u64,
    /// Levels reached, as runs: each holds up to its sequence, exclusive.
    levels: Vec<(u64, Level)>,
    /// Sequences that were not stored, or of which that is unknown; in no order, few.
    failed: Vec<(Range<u64>, Error)>,
    /// Who waits for which sequence, in order: nobody waits for one twice.
    wakers: Vec<(u64, Waker)>,
}

/// What became of a run of messages.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The lowest level of those that did not fail; `None` if all failed.
    pub level: Option<Level>,
    /// What failed.
    pub failed: Vec<(Range<u64>, Error)>,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles every sequence below `upto` that is not settled yet.
    pub(crate) fn settle(&self, upto: u64, level: Level, wakers: &mut Vec<Waker>) {
        let mut state = self.lock();
        debug_assert!(upto >= state.settled, "settling goes forward");
        state.settled = upto;
        match state.levels.last_mut() {
            Some((end, last)) if *last == level => *end = upto,
            _ => state.levels.push((upto, level)),
        }
        let woken = state
            .wakers
            .partition_point(|(sequence, _)| *sequence < upto);
        wakers.extend(state.wakers.drain(..woken).map(|(_, waker)| waker));
    }

    /// Notes that `sequences` failed; they are settled later, by what passes them.
    pub(crate) fn fail(&self, sequences: Range<u64>, error: &Error) {
        self.lock().failed.push((sequences, error.clone()));
    }

    /// Whether `sequence` is settled; if not, `waker` is woken once it is.
    pub(crate) fn is_settled(&self, sequence: u64, waker: &Waker) -> bool {
        let mut state = self.lock();
        if sequence < state.settled {
            return true;
        }
        match state.wakers.binary_search_by_key(&sequence, |(at, _)| *at) {
            Ok(place) => state.wakers[place].1.clone_from(waker),
            // Mostly the last place: who enqueues in order waits in order.
            Err(place) => state.wakers.insert(place, (sequence, waker.clone())),
        }
        false
    }

    /// Whether `sequence` is settled, asked by nobody who waits.
    pub(crate) fn has_settled(&self, sequence: u64) -> bool {
        sequence < self.lock().settled
    }

    /// The outcome of `sequences`, which must be settled as far as they are in this group.
    pub(crate) fn outcome(&self, sequences: &Range<u64>) -> Outcome {
        let state = self.lock();
        let overlap =
            |range: &Range<u64>| range.start.max(sequences.start)..range.end.min(sequences.end);
        let failed: Vec<_> = state
            .failed
            .iter()
            .map(|(range, error)| (overlap(range), error))
            .filter(|(range, _)| !range.is_empty())
            .map(|(range, error)| (range, error.clone()))
            .collect();
        let mut level = None;
        let mut from = 0;
        for (end, run) in &state.levels {
            if !overlap(&(from..*end)).is_empty() {
                level = Some(level.map_or(*run, |lowest: Level| lowest.min(*run)));
            }
            from = *end;
        }
        Outcome { level, failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn outcomes_are_runs_of_levels_with_exceptions() {
        let group = Group::default();
        let mut wakers = Vec::new();
        assert!(!group.is_settled(10, Waker::noop()));
        assert!(!group.is_settled(12, Waker::noop()));
        group.fail(11..13, &Error::new(ErrorKind::Full, "full"));
        group.settle(12, Level::Durable, &mut wakers);
        assert_eq!(wakers.len(), 1);
        group.settle(20, Level::Volatile, &mut wakers);
        assert_eq!(wakers.len(), 2);
        assert!(group.is_settled(19, Waker::noop()) && !group.has_settled(20));
        assert_eq!(group.outcome(&(10..11)).level, Some(Level::Durable));
        assert_eq!(group.outcome(&(10..20)).level, Some(Level::Volatile));
        let failed = group.outcome(&(12..20)).failed;
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, 12..13);
        assert!(group.outcome(&(13..20)).failed.is_empty());
    }
}
