//! What clients know of the order of keys in queues with message groups. Does not know how a broker keeps
//! to it.

use std::collections::BTreeMap;

use ringpost_check::{ConsumerNo, QueueNo};

/// A key of a queue.
type Group = (QueueNo, Vec<u8>);

/// What is known of one key.
#[derive(Default)]
struct Known {
    /// The last place that was delivered for the first time.
    last: u64,
    /// What was given back and did not come again: place, and who gave it back.
    back: BTreeMap<u64, ConsumerNo>,
}

/// The groups of a world.
#[derive(Default)]
pub struct Groups {
    groups: BTreeMap<Group, Known>,
}

/// A message that comes to a consumer.
#[derive(Clone, Copy, Debug)]
pub struct Coming {
    /// Who gets it.
    pub consumer: ConsumerNo,
    /// Its place in the queue.
    pub place: u64,
    /// Whether it was never delivered before.
    pub is_fresh: bool,
    /// Whether its producer delays it: then it comes when that is over.
    pub is_delayed: bool,
    /// Whether messages of its queue may die.
    pub may_die: bool,
}

impl Groups {
    /// A message comes.
    ///
    /// # Errors
    /// It should have come later.
    pub fn delivered(&mut self, queue: QueueNo, key: &[u8], coming: Coming) -> Result<(), String> {
        let Coming {
            consumer,
            place,
            is_fresh,
            is_delayed,
            may_die,
        } = coming;
        let known = self.groups.entry((queue, key.to_vec())).or_default();
        known.back.remove(&place);
        // Of its own it may be told too late, but another gets nothing while the key waits.
        let mut earlier = known.back.range(..place);
        if !may_die
            && !is_delayed
            && let Some((before, _)) = earlier.find(|(_, whose)| **whose != consumer)
        {
            return Err(format!(
                "a group out of order: place {place} of key {key:?} comes before {before}, which was \
                 given back"
            ));
        }
        if !is_fresh || is_delayed {
            return Ok(());
        }
        if place <= known.last {
            return Err(format!(
                "a group out of order: place {place} of key {key:?} comes behind {}",
                known.last
            ));
        }
        known.last = place;
        Ok(())
    }

    /// A consumer gives a message back.
    pub fn returned(&mut self, queue: QueueNo, key: &[u8], place: u64, whose: ConsumerNo) {
        let known = self.groups.entry((queue, key.to_vec())).or_default();
        known.back.insert(place, whose);
    }

    /// A message is to be cancelled or moved: whether it comes again is not known.
    pub fn may_go(&mut self, queue: QueueNo, place: u64) {
        let own = self.groups.iter_mut().filter(|((of, _), _)| *of == queue);
        for (_, known) in own {
            known.back.remove(&place);
        }
    }

    /// A queue is to be purged: what was given back may be gone.
    pub fn purged(&mut self, queue: QueueNo) {
        for (group, known) in &mut self.groups {
            if group.0 == queue {
                known.back.clear();
            }
        }
    }
}
