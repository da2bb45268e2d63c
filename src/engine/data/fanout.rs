//! Appends what goes to several durable queues of this core once for all of them (ADR 0026). Does not know
//! where it comes from, nor who waits for it.

use ringpost_wire::ids::{ProducerId, QueueId, Sequence};

use crate::data::flow::Flow;
use crate::data::journal::{Journal, RunHead};
use crate::data::publish::Group;
use crate::effect::{Buffers, Effects};

/// Lists that are used again.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    /// The queues that have what was appended last, in the order in which they were given.
    pub(super) queues: Vec<QueueId>,
    heads: Vec<RunHead>,
}

impl Fanout {
    /// Nobody has anything of what comes now.
    pub(super) fn forget(&mut self) {
        self.queues.clear();
    }
}

impl Flow {
    /// Appends a group to those of `queues` that can share it, if that pays: [`Fanout::queues`] are those
    /// that have all of it then, the others have nothing. Returns the block that must be durable for
    /// that, 0 = none.
    pub(super) fn append_together<B: Buffers>(
        &mut self,
        queues: impl Iterator<Item = QueueId>,
        (producer, epoch): (ProducerId, u32),
        group: Group<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> u64 {
        let mut sharing = std::mem::take(&mut self.fanout.queues);
        let mut heads = std::mem::take(&mut self.fanout.heads);
        sharing.clear();
        // What may have been stored before is looked at message by message.
        sharing.extend(queues.filter(|queue| {
            self.queues.get(*queue).is_some_and(|state| state.durable)
                && self.dedup.is_ahead(producer, epoch, *queue, group.first)
        }));
        let most = self.journal.shared_by_max(group.bytes.len());
        let last = group.first + u64::from(group.count) - 1;
        let (mut done, mut block) = (0, 0);
        loop {
            let count = most.min(sharing.len() - done);
            if !Journal::sharing_pays(count, group.bytes.len()) {
                break;
            }
            let some = &sharing[done..done + count];
            heads.clear();
            heads.extend(some.iter().map(|queue| {
                let state = self.queues.get(*queue).expect("it was just found");
                RunHead {
                    producer,
                    producer_epoch: epoch,
                    producer_sequence: Sequence(group.first),
                    ..RunHead::of_queue(state.partition, *queue, state.queue.next_sequence())
                }
            }));
            let outcome =
                self.journal
                    .append_shared(buffers, effects, &heads, group.count, group.bytes);
            // Queue by queue it is found out what is in the way.
            let Ok(to) = outcome else { break };
            for head in &heads {
                let state = self.queues.get_mut(head.queue).expect("it was just found");
                state.took(head.queue_sequence, group.count, group.bytes, to, self.now);
                if self.tracer.is_armed() {
                    self.trace_appended(head, group.bytes, |idx| group.first + idx as u64);
                }
                //= P-38
                self.dedup
                    .store(producer, epoch, head.queue, (group.first, last));
                block = block.max(self.appended(head.queue));
            }
            done += count;
            self.stats.shared += count as u64 * u64::from(group.count);
        }
        sharing.truncate(done);
        self.fanout.queues = sharing;
        self.fanout.heads = heads;
        block
    }
}
