//! Streams of several lanes: a consumer of each, taken for one. Does not know who of a group has which.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::{Activity, Batch, ConsumerBuilder, Handle, Held, Inbox, Settler, Start};
use crate::client::Client;
use crate::{ByteSize, Error, ErrorKind, Result};

/// How long one lane is waited for while others may have something.
const GET_WAIT: Duration = Duration::from_millis(20);

impl ConsumerBuilder {
    /// Opens a consumer of each lane of the stream; `refused` if it has no lanes.
    pub(super) async fn open_lanes(mut self, refused: Error) -> Result<Settler> {
        let client = Client::from_shared(Arc::clone(&self.shared));
        let lanes = client.inspect_queue(&self.queue).await?.lanes;
        if lanes < 2 {
            return Err(refused);
        }
        if let Some((lane, _)) = self.lane_offsets.iter().find(|(lane, _)| *lane >= lanes) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("there is no lane {lane}: the stream has {lanes}"),
            ));
        }
        let start = *self.start.get_or_insert_default();
        if self.has_group {
            // The same one in every lane, and no other's.
            let member = (crate::options::random() >> 4).max(1) as i64;
            self.arguments = self.arguments.with("x-stream-member", member);
        }
        if self.credit_messages > 0 {
            (self.credit_messages, self.credit_bytes) =
                share(lanes as usize, self.credit_messages, self.credit_bytes);
        }
        let mut all = Vec::with_capacity(lanes as usize);
        for lane in 0..lanes {
            let own = self.lane_offsets.iter().find(|(own, _)| *own == lane);
            self.start = Some(own.map_or(start, |(_, offset)| Start::Offset(*offset)));
            let queue = format!("{}#{lane}", self.queue);
            all.push(self.open_one(&queue, Some(lane)).await?);
        }
        Ok(Settler::of(self.queue, all))
    }
}

/// The credit of one of so many lanes.
pub(super) fn share(lanes: usize, messages: u32, bytes: u64) -> (u32, u64) {
    let least = u32::from(messages > 0);
    let each = messages / lanes as u32;
    let bytes_each = bytes / lanes as u64;
    (each.max(least), bytes_each.max(u64::from(bytes > 0)))
}

/// The next messages of any lane, beginning with another one each time.
pub(super) fn poll_next(
    all: &[Handle],
    turn: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Batch>>> {
    for step in 0..all.len() {
        let at = (*turn + step) % all.len();
        if let Poll::Ready(next) = all[at].inbox.poll_next(cx) {
            *turn = (at + 1) % all.len();
            return Poll::Ready(next);
        }
    }
    Poll::Pending
}

/// Takes what is there from each lane in turn, until there is enough; if there is nothing, waits.
pub(super) async fn get(
    all: &[Handle],
    turn: &mut usize,
    count: u32,
    wait: Duration,
) -> Result<Vec<Batch>> {
    let until = Instant::now() + wait;
    let mut batches = Vec::new();
    let mut left = count;
    let mut is_first_round = true;
    loop {
        for _ in 0..all.len() {
            let handle = &all[*turn % all.len()];
            *turn = (*turn + 1) % all.len();
            let patience = match is_first_round {
                true => Duration::ZERO,
                false => GET_WAIT.min(until.saturating_duration_since(Instant::now())),
            };
            let more = handle.get(left, patience).await?;
            let taken: usize = more.iter().map(Batch::len).sum();
            left = left.saturating_sub(taken as u32);
            batches.extend(more);
            if left == 0 || (!is_first_round && !batches.is_empty()) {
                return Ok(batches);
            }
        }
        if !batches.is_empty() || Instant::now() >= until {
            return Ok(batches);
        }
        is_first_round = false;
    }
}

/// What all lanes hold together.
pub(super) async fn held(all: &[Handle]) -> Result<Held> {
    let mut sum = Held {
        messages: 0,
        bytes: ByteSize::new(0),
        oldest: Duration::ZERO,
    };
    for handle in all {
        let held = handle.held().await?;
        sum.messages += held.messages;
        sum.bytes = ByteSize::new(sum.bytes.bytes() + held.bytes.bytes());
        sum.oldest = sum.oldest.max(held.oldest);
    }
    Ok(sum)
}

/// The first of some consumers that becomes active, or is it no longer, unlike what is noted; `None`
/// once one is over.
pub(super) async fn first_change(inboxes: &[(Arc<Inbox>, bool)]) -> Option<(usize, bool)> {
    if let [(inbox, was_active)] = inboxes {
        let is_active = inbox.active_changes(*was_active).await?;
        return Some((0, is_active));
    }
    type Change<'a> = Pin<Box<dyn Future<Output = Option<bool>> + Send + 'a>>;
    let mut changes: Vec<Change<'_>> = Vec::with_capacity(inboxes.len());
    for (inbox, was_active) in inboxes {
        changes.push(Box::pin(inbox.active_changes(*was_active)));
    }
    std::future::poll_fn(|cx| {
        for (at, change) in changes.iter_mut().enumerate() {
            if let Poll::Ready(is_active) = change.as_mut().poll(cx) {
                return Poll::Ready(is_active.map(|is_active| (at, is_active)));
            }
        }
        Poll::Pending
    })
    .await
}

impl Activity {
    /// The lanes that it has now, of a stream of several.
    #[must_use]
    pub fn lanes(&self) -> Vec<u32> {
        let active = self.inboxes.iter().filter(|(inbox, _)| inbox.is_active());
        active
            .filter_map(|(inbox, _)| inbox.settings.lane)
            .collect()
    }

    /// How many lanes there are: 1 unless it is of a stream of several.
    #[must_use]
    pub fn lanes_max(&self) -> u32 {
        self.inboxes.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_credit_and_each_has_some() {
        assert_eq!(share(1, 1_000, 64), (1_000, 64));
        assert_eq!(share(4, 1_000, 64), (250, 16));
        assert_eq!(share(4, 3, 3), (1, 1));
        assert_eq!(share(4, 0, 0), (0, 0));
    }
}
