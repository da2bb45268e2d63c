//! Messages that operators move to other queues: published as dead letters are, without the death. Does not
//! know who asked.

use ringpost_wire::ids::QueueId;
use ringpost_wire::{MessageParts, envelope};

use crate::data::flow::Flow;
use crate::data::queue::DeadOffer;
use crate::data::route::{Facts, Publisher, lot_of};

impl Flow {
    /// Puts a message that is moved, which was read, on its way; or back, if it comes to no queue.
    //= P-112
    pub(super) fn send_moved(&mut self, queue: QueueId, dead: &DeadOffer, message: &[u8]) {
        let sequence = dead.sequence();
        let state = self.queues.get_mut(queue).expect("it has messages to move");
        let Some(to) = self.places.moves_to(queue, sequence) else {
            // Nobody waits for it any more.
            state.queue.unpick(sequence);
            self.wake(queue);
            return;
        };
        let tenant = state.tenant;
        let read = envelope::open(message).expect("its queue took it");
        let routing_key = to.routing_key.as_deref().unwrap_or(read.routing_key());
        let facts = Facts {
            by: Publisher::Broker,
            ..Facts::of(&read, lot_of(u64::from(queue.0), sequence.0))
        };
        let mut targets = std::mem::take(&mut self.targets);
        targets.clear();
        let routed = self
            .router
            .resolve(tenant, &to.exchange, routing_key, &facts, &mut targets);
        if routed.is_err() {
            targets.clear();
        }
        // What is moved into its own queue would be moved for ever by who follows its end.
        targets.retain(|target| target.queue != queue);
        if targets.is_empty() {
            self.targets = targets;
            self.moved(queue, sequence, false);
            return;
        }
        let parts = MessageParts {
            exchange: &to.exchange,
            routing_key,
            properties: read.properties(),
            headers: read.headers(),
            payload: read.payload(),
            priority: read.priority(),
            timestamp_us: read.timestamp_us(),
            ttl_ms: read.ttl_ms(),
            // That is over.
            delay_ms: 0,
            // Whoever moves it begins a new round; what the broker wrote of deaths is believed as before.
            hops: read.hops().min(1),
        };
        self.put_underway(queue, sequence, &parts, &targets);
        targets.clear();
        self.targets = targets;
        if crate::mutant!(MovedEarly)
            && let Some(state) = self.queues.get_mut(queue)
            && state.queue.dead_is_done(sequence, &mut state.settled)
        {
            self.note_settled(queue, 1);
        }
    }

    /// A queue does not take a message that is moved: it stays where it was. Whether it is one.
    pub(super) fn move_is_refused(&mut self, key: u64) -> bool {
        let letter = self.dead_letters.get(key).expect("it was just looked at");
        let (queue, sequence, cost) = (letter.queue, letter.sequence, letter.cost);
        if !self.is_moving(queue, sequence) {
            return false;
        }
        self.dead_letters.remove(key);
        self.dead.bytes -= cost;
        self.moved(queue, sequence, false);
        self.wake_waiting();
        true
    }
}
