//! Futures for what becomes of messages that were accepted for sending.
//! Does not know how messages travel.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::group::Group;
use crate::stats::Counters;
use crate::{Error, Level, Result};

/// What a confirmed publish got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Receipt {
    /// The lowest level over all queues that took the message, or over all messages of a batch.
    pub level: Level,
    /// How many messages the receipt is for.
    pub messages: u64,
}

/// The receipt of one message, to come: resolves when the message is confirmed, refused, or its fate
/// cannot be known any more.
///
/// Dropping it before that gives up the answer, not the message, and is counted in
/// [`crate::Stats::pendings_dropped`].
///
/// # Errors
/// [`crate::ErrorKind::Full`], [`crate::ErrorKind::Unroutable`], [`crate::ErrorKind::NotFound`] and
/// others if the broker refused the message: it was not stored.
/// [`crate::ErrorKind::Indeterminate`] if it is unknown whether it was.
#[must_use = "a `Pending` is the only word about the message; await it, or `flush` the producer"]
pub struct Pending {
    pub(crate) group: Arc<Group>,
    pub(crate) sequence: u64,
    pub(crate) counters: Arc<Counters>,
    pub(crate) is_done: bool,
}

impl Future for Pending {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.group.is_settled(self.sequence, cx.waker()) {
            return Poll::Pending;
        }
        self.is_done = true;
        let outcome = self.group.outcome(&(self.sequence..self.sequence + 1));
        Poll::Ready(match outcome.failed.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(Receipt {
                level: outcome.level.unwrap_or(Level::None),
                messages: 1,
            }),
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_done && !self.group.has_settled(self.sequence) {
            Counters::add(&self.counters.pendings_dropped, 1);
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// The receipt of a batch, to come: resolves once, when every message of it is settled.
///
/// # Errors
/// As [`Pending`], of the first message that failed; [`Error::failed`] names all of them.
#[must_use = "a `PendingBatch` is the only word about its messages; await it, or `flush` the producer"]
pub struct PendingBatch {
    pub(crate) groups: Vec<Arc<Group>>,
    /// Runs of local sequences: one, unless others enqueued in between.
    pub(crate) runs: Vec<Range<u64>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) is_done: bool,
}

impl PendingBatch {
    /// Messages of the batch.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether the batch has no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn result(&self) -> Result<Receipt> {
        let mut level = None;
        let mut failed: Vec<(Range<usize>, Error)> = Vec::new();
        let mut place = 0;
        for run in &self.runs {
            for group in &self.groups {
                let outcome = group.outcome(run);
                if let Some(reached) = outcome.level {
                    level = Some(level.map_or(reached, |lowest: Level| lowest.min(reached)));
                }
                for (range, error) in outcome.failed {
                    let start = place + memory_idx(range.start - run.start);
                    failed.push((start..start + memory_idx(range.end - range.start), error));
                }
            }
            place += memory_idx(run.end - run.start);
        }
        if failed.is_empty() {
            return Ok(Receipt {
                level: level.unwrap_or(Level::None),
                messages: self.len(),
            });
        }
        failed.sort_by_key(|(range, _)| range.start);
        Err(Error::batch(self.len(), failed))
    }
}

/// A count of messages that are in memory.
fn memory_idx(count: u64) -> usize {
    usize::try_from(count).expect("the messages of a batch were in memory")
}

impl Future for PendingBatch {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Settling goes forward, so the last message is settled last.
        if let (Some(group), Some(run)) = (self.groups.last(), self.runs.last())
            && !group.is_settled(run.end - 1, cx.waker())
        {
            return Poll::Pending;
        }
        self.is_done = true;
        Poll::Ready(self.result())
    }
}

impl Drop for PendingBatch {
    fn drop(&mut self) {
        if let (false, Some(group), Some(run)) =
            (self.is_done, self.groups.last(), self.runs.last())
            && !group.has_settled(run.end - 1)
        {
            Counters::add(&self.counters.pendings_dropped, 1);
        }
    }
}

impl fmt::Debug for PendingBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingBatch")
            .field("messages", &self.len())
            .finish_non_exhaustive()
    }
}
