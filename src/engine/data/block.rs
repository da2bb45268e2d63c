//! Queues that block: producers that publish into a full one get no credit until it has room. Does not know
//! how credit is shared out, nor how a queue is full.
//!
//! Credit that was given is a promise, and what is published within it is stored, beyond the queue's
//! limits: see [`crate::data::queue::Overflow::Block`]. So nothing waits here but credit, and what ends
//! that, a settlement, is always read.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_wire::ids::{CoreId, QueueId};

use crate::Effects;
use crate::data::flow::{Flow, Waiter};
use crate::data::route::Target;
use crate::ids::Mono;
use crate::mesh::Request;

/// How often another core is asked whether its queue has room, in ms.
const ASK_MS: u64 = 20;

/// Who is blocked by which queues.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Queues of this core that were full, and the producers here that have published into them since.
    here: BTreeMap<QueueId, BTreeSet<u64>>,
    /// Those of other cores.
    there: BTreeMap<(CoreId, QueueId), BTreeSet<u64>>,
    /// When these are asked next.
    ask_at: Option<Mono>,
    /// Queues that another core is being asked about.
    asked: BTreeSet<(CoreId, QueueId)>,
}

impl Blocks {
    /// When another core is to be asked.
    pub(crate) const fn next_deadline(&self) -> Option<Mono> {
        self.ask_at
    }
}

impl Flow {
    /// Notes that a producer publishes into queues of this core that block, as far as so much does not fit.
    pub(super) fn note_blocks(&mut self, key: u64, targets: &[Target], count: u32, bytes: usize) {
        for target in targets
            .iter()
            .filter(|target| target.core == self.config.core)
        {
            let state = self.queues.get(target.queue);
            if state.is_some_and(|state| state.queue.blocks(count, bytes as u64))
                && self
                    .blocks
                    .here
                    .entry(target.queue)
                    .or_default()
                    .insert(key)
                && let Some(producer) = self.producers.get_mut(key)
            {
                producer.blocks += 1;
            }
        }
    }

    /// A queue of another core, which a producer has published into, is full.
    pub(crate) fn blocked_there(&mut self, from: CoreId, queue: QueueId, key: u64) {
        let Some(producer) = self.producers.get_mut(key) else {
            return;
        };
        let blocked = self.blocks.there.entry((from, queue)).or_default();
        if blocked.insert(key) {
            producer.blocks += 1;
        }
        let ask_at = self.now.plus_ms(ASK_MS);
        self.blocks.ask_at.get_or_insert(ask_at);
    }

    /// Whether one of these queues of this core blocks whoever publishes into it now.
    pub(super) fn blocked_of(&self, queues: &[QueueId]) -> Option<QueueId> {
        let mut queues = queues.iter().copied();
        queues.find(|queue| self.is_blocking(*queue))
    }

    /// Whether a queue of this core has no room for a message more, and blocks.
    pub(crate) fn is_blocking(&self, queue: QueueId) -> bool {
        self.queues.get(queue).is_some_and(|state| {
            // Who publishes into one that refuses service is to hear of it.
            let has_failed = self.failed && state.durable;
            let is_served = !(state.damaged || has_failed);
            is_served && state.queue.blocks(1, 1)
        })
    }

    /// Whether any queue of this core blocks who publishes into it; for tests.
    #[must_use]
    pub fn is_any_blocking(&self) -> bool {
        self.queues.iter().any(|state| state.queue.blocks(1, 1))
    }

    /// Gives credit to producers whose queues have room again, and asks other cores about theirs: at the
    /// end of every turn.
    pub(crate) fn look_at_blocks(&mut self, effects: &mut Effects) {
        if self.blocks.here.is_empty() && self.blocks.there.is_empty() {
            self.blocks.ask_at = None;
            return;
        }
        let here = self.blocks.here.keys().copied();
        let mut free: Vec<QueueId> = here.filter(|queue| !self.is_blocking(*queue)).collect();
        if crate::mutant!(BlockForgotten) {
            free.clear();
        }
        for queue in free {
            let keys = self.blocks.here.remove(&queue).expect("it was just found");
            self.unblock(keys);
        }
        if self.blocks.ask_at.is_none_or(|at| at > self.now) {
            return;
        }
        let there = self.blocks.there.keys().copied().collect::<Vec<_>>();
        self.blocks.ask_at = (!there.is_empty()).then(|| self.now.plus_ms(ASK_MS));
        for (core, queue) in there {
            if self.blocks.asked.insert((core, queue)) {
                self.ask(
                    core,
                    Request::Room { queue },
                    Waiter::Room { queue },
                    effects,
                );
            }
        }
    }

    /// Another core says whether its queue has room.
    pub(crate) fn room_is_answered(&mut self, from: CoreId, queue: QueueId, has_room: bool) {
        self.blocks.asked.remove(&(from, queue));
        if has_room && let Some(keys) = self.blocks.there.remove(&(from, queue)) {
            self.unblock(keys);
        }
    }

    fn unblock(&mut self, keys: BTreeSet<u64>) {
        for key in keys {
            if let Some(producer) = self.producers.get_mut(key) {
                producer.blocks -= 1;
                if producer.blocks == 0 {
                    self.dirty(key);
                }
            }
        }
    }

    /// A producer is gone.
    pub(super) fn forget_blocks(&mut self, key: u64) {
        let has = |keys: &mut BTreeSet<u64>| {
            keys.remove(&key);
            !keys.is_empty()
        };
        self.blocks.here.retain(|_, keys| has(keys));
        self.blocks.there.retain(|_, keys| has(keys));
    }

    /// Checks that every producer knows how many queues block it; O(n).
    pub(super) fn check_blocks(&self) {
        for key in self.producers.keys() {
            let here = self.blocks.here.values().filter(|keys| keys.contains(&key));
            let there = self
                .blocks
                .there
                .values()
                .filter(|keys| keys.contains(&key));
            let producer = self.producers.get(key).expect("it was just found");
            assert_eq!(producer.blocks as usize, here.count() + there.count());
        }
    }
}
