//! Tells the compactor what is live, and lets the queues follow its moves.
//! Does not know which segments are worth emptying.

use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

use crate::control::compaction::{Moved, Relocate};
use crate::data::flow::Queues;
use crate::ids::Place;

/// The queues of a core, as the compactor sees them.
pub struct Residents<'a> {
    /// The queues.
    pub queues: &'a mut Queues,
}

impl Relocate for Residents<'_> {
    fn is_live(&self, queue: QueueId, sequence: QueueSequence, place: Place) -> bool {
        self.queues
            .get(queue)
            .is_some_and(|state| state.queue.lies_at(sequence, place))
    }

    fn partition(&self, queue: QueueId) -> PartitionId {
        self.queues
            .get(queue)
            .expect("its messages are live")
            .partition
    }

    fn moved(&mut self, moved: &Moved) -> u32 {
        let Some(state) = self.queues.get_mut(moved.queue) else {
            return 0;
        };
        match moved.piece {
            Some(number) => u32::from(state.queue.moved_piece(
                moved.first,
                number,
                moved.source,
                moved.target,
            )),
            None => state.queue.moved_run(
                (moved.first, moved.count, moved.bytes),
                moved.source,
                moved.target,
            ),
        }
    }
}
