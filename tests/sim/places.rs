//! What clients know of messages that they saw, cancelled and moved by their places. Does not know how a
//! broker keeps to it.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_check::{MessageId, QueueNo};

/// A message of a queue.
type Copy = (QueueNo, MessageId);

/// A move of which it is not known how it ended, or known that it did.
#[derive(Clone, Debug)]
struct Move {
    tenant: usize,
    name: String,
    is_done: bool,
    /// It was delivered by its queue since.
    is_seen: bool,
}

/// The places of a world.
#[derive(Default)]
pub struct Places {
    cancelled: BTreeSet<Copy>,
    /// What was acked, with or without an answer.
    acked: BTreeSet<Copy>,
    /// What was acked for sure.
    gone: BTreeMap<Copy, u64>,
    moves: BTreeMap<Copy, Move>,
    /// What was ever to be moved, by tenant.
    ever: BTreeSet<(usize, MessageId)>,
    /// Moved messages in the queue for the dead, by tenant: at which place.
    found: BTreeMap<(usize, MessageId), u64>,
}

impl Places {
    /// The broker has said that a message is cancelled.
    pub fn cancelled(&mut self, queue: QueueNo, message: MessageId, now: u64) {
        self.cancelled.insert((queue, message));
        self.gone.insert((queue, message), now);
    }

    /// A client acks a message: whether it is there still is not known.
    pub fn acked(&mut self, queue: QueueNo, message: MessageId) {
        self.acked.insert((queue, message));
    }

    /// The broker has confirmed an ack.
    pub fn gone(&mut self, queue: QueueNo, message: MessageId, now: u64) {
        self.gone.entry((queue, message)).or_insert(now);
    }

    /// When it was said that it is done with, if it was.
    #[must_use]
    pub fn gone_since(&self, queue: QueueNo, message: MessageId) -> Option<u64> {
        self.gone.get(&(queue, message)).copied()
    }

    /// A message is to be moved to the queue for the dead.
    pub fn moves(&mut self, tenant: usize, name: &str, queue: QueueNo, message: MessageId) {
        self.ever.insert((tenant, message));
        self.moves.insert(
            (queue, message),
            Move {
                tenant,
                name: name.to_owned(),
                is_done: false,
                is_seen: false,
            },
        );
    }

    /// The broker has said that it is there.
    pub fn moved(&mut self, queue: QueueNo, message: MessageId) {
        if let Some(one) = self.moves.get_mut(&(queue, message)) {
            one.is_done = true;
        }
    }

    /// The broker has said that it is not moved, or may not be.
    pub fn stays(&mut self, queue: QueueNo, message: MessageId) {
        self.moves.remove(&(queue, message));
    }

    /// A queue is to be purged: nobody knows what is left of it.
    pub fn purged(&mut self, queue: QueueNo) {
        self.moves
            .retain(|(of, _), one| *of != queue || one.is_done);
    }

    /// A message is delivered by its queue.
    ///
    /// # Errors
    /// It was cancelled.
    pub fn delivered(&mut self, queue: QueueNo, message: MessageId) -> Result<(), String> {
        let copy = (queue, message);
        if let Some(one) = self.moves.get_mut(&copy) {
            one.is_seen = true;
        }
        if self.cancelled.contains(&copy) {
            return Err(format!("{message} was cancelled and is delivered"));
        }
        Ok(())
    }

    /// Whether a message was to be moved by somebody.
    #[must_use]
    pub fn was_moved(&self, tenant: usize, message: MessageId) -> bool {
        self.ever.contains(&(tenant, message))
    }

    /// A moved message is in the queue for the dead, at this place.
    pub fn found(&mut self, tenant: usize, message: MessageId, place: u64) {
        self.found.insert((tenant, message), place);
    }

    /// Whether every message that was to be moved is somewhere; `is_kept` says which queues keep theirs.
    ///
    /// # Errors
    /// One is nowhere.
    pub fn judge(&self, is_kept: impl Fn(usize, &str, QueueNo) -> bool) -> Result<(), String> {
        for ((queue, message), one) in &self.moves {
            let is_there = self.found.contains_key(&(one.tenant, *message));
            let is_acked = self.acked.contains(&(*queue, *message)) && !one.is_done;
            if is_there
                || is_acked
                || (one.is_seen && !one.is_done)
                || !is_kept(one.tenant, &one.name, *queue)
            {
                continue;
            }
            return Err(format!(
                "{message} was to be moved from {} and is nowhere, done {}",
                one.name, one.is_done
            ));
        }
        Ok(())
    }
}
