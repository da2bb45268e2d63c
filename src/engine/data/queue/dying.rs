//! How messages of a queue die: what is dropped at the head, what came back too often, and what waits
//! for the dead-letter exchange. Does not know where that is, nor how dead letters look.

use std::ops::Range;

use super::dead::{Dead, DeadOffer, Death, Dying};
use super::returned::{PendingCounts, Returned};
use super::settled::Ranges;
use super::unacked::Delivery;
use super::{Head, Offer, Overflow, Queue, Settings, Walked, mono_of, push_range};
use crate::ids::Mono;
use ringpost_wire::ids::QueueSequence;

/// Most dead messages of a queue on their way to its dead-letter exchange. While there are so many its
/// head waits, and a queue that drops its head refuses publishes.
pub const DEAD_MAX: u64 = 65_536;

/// A stream may hold more than its limits by one part in so many.
const RETAINED_SLACK: u64 = 64;

/// Messages that died.
#[derive(Clone, Copy, Default)]
pub(super) struct Buried {
    pub(super) messages: u64,
    /// Of those, the ones that are done with.
    dropped: u64,
    /// Their padded bytes.
    dropped_bytes: u64,
}

/// Where deliveries go that are not delivered again.
pub(super) struct Grave<'a> {
    dead: &'a mut Dead,
    counts: &'a mut PendingCounts,
    out: &'a mut Ranges,
    has_dead_letters: bool,
    returns_max: Option<u32>,
    buried: Buried,
}

impl<'a> Grave<'a> {
    pub(super) fn new(
        settings: Settings,
        dead: &'a mut Dead,
        counts: &'a mut PendingCounts,
        out: &'a mut Ranges,
    ) -> Self {
        Self {
            dead,
            counts,
            out,
            has_dead_letters: settings.has_dead_letters,
            returns_max: settings.returns_max,
            buried: Buried::default(),
        }
    }

    /// Takes a delivery that came back if it did so too often.
    pub(super) fn takes_returned(&mut self, delivery: &Delivery) -> bool {
        let is_over = self
            .returns_max
            .is_some_and(|max| delivery.earlier >= max && !crate::mutant!(LimitlessReturns));
        if is_over {
            self.bury(delivery, Death::DeliveryLimit);
        }
        is_over
    }

    pub(super) fn bury(&mut self, delivery: &Delivery, death: Death) {
        self.buried.messages += 1;
        if self.has_dead_letters {
            let dying = Dying {
                death,
                deliveries: delivery.earlier.saturating_add(1),
                bytes: delivery.bytes,
            };
            self.dead.wait(delivery.sequence, dying);
            return;
        }
        self.buried.dropped += 1;
        self.buried.dropped_bytes += u64::from(delivery.bytes);
        if delivery.earlier > 0 {
            self.counts
                .insert(Returned::new(delivery.sequence, 1, delivery.earlier));
        }
        push_range(self.out, delivery.sequence, delivery.sequence);
    }

    pub(super) fn done(self) -> Buried {
        self.buried
    }
}

impl Queue {
    /// So many messages died; those that do not wait for the dead-letter exchange are done with.
    pub(super) fn bury(&mut self, death: Death, buried: Buried) {
        self.deaths[death as usize] += buried.messages;
        self.pending += buried.dropped;
        self.bytes = self.bytes.saturating_sub(buried.dropped_bytes);
        self.clear_estimate();
    }

    /// Whether its messages expire, whatever their producers allow.
    #[must_use]
    pub const fn expires_all(&self) -> bool {
        self.settings.ttl_ms > 0
    }

    /// Whether a message of it expires at some time.
    #[must_use]
    pub fn expires(&self) -> bool {
        !self.expiry.is_idle() || self.next_paced().is_some()
    }

    /// When the next message at the head of its rank expires, if nothing happens before.
    pub fn next_expiry(&mut self) -> Option<Mono> {
        let paced = self.next_paced();
        if self.expiry.is_idle() {
            return paced;
        }
        let durable = self.durable;
        let ranks = 0..=self.returned.rank_max();
        let heads = ranks.filter_map(|rank| self.head_of(rank, durable));
        let heads: Vec<u64> = heads.map(|head| head.first).collect();
        let ends = heads.into_iter().filter_map(|first| self.expiry.of(first));
        let end = ends.min().map(|end| mono_of(end + 1));
        [end, paced].into_iter().flatten().min()
    }

    /// Whether messages of it may die at the head: it costs nothing to ask.
    #[must_use]
    pub fn may_die(&self) -> bool {
        !self.expiry.is_idle() || self.is_stream() || self.settings.overflow == Overflow::DropHead
    }

    /// Lets up to `max` ready messages die from the heads of the ranks on: those that have expired, and
    /// as many as pass a limit if the queue drops its head, of the lowest ranks first. Messages that are
    /// done with go to `out`, as ranges for the ack record; the others wait for [`Queue::next_dead`].
    /// Returns how many died.
    pub fn sweep_head(&mut self, max: u64, out: &mut Ranges) -> u64 {
        let mut swept = self.sweep_parked(max, out);
        for rank in 0..=self.returned.rank_max() {
            while swept < max {
                let count = self.sweep_rank(rank, max - swept, out);
                if count == 0 {
                    break;
                }
                swept += count;
            }
        }
        swept
    }

    /// Lets messages die that are next in a rank; how many did.
    fn sweep_rank(&mut self, rank: u8, max: u64, out: &mut Ranges) -> u64 {
        let room = match self.settings.has_dead_letters {
            true => DEAD_MAX.saturating_sub(self.dead.count()),
            false => u64::MAX,
        };
        let Some(head) = self.head_of(rank, self.durable) else {
            return 0;
        };
        let is_over = !self.expiry.is_idle() && self.expiry.is_over(head.first, self.now);
        let (death, last) = if is_over {
            (Death::Expired, head.last)
        } else {
            let behind = head.first + self.excess();
            (Death::MaxLength, behind.saturating_sub(1).min(head.last))
        };
        if last < head.first || room == 0 {
            return 0;
        }
        let last = match self.expiry.is_idle() {
            true => last,
            false => self.expiry.alike_upto(head.first, last, self.now),
        };
        let count = (last - head.first + 1).min(room).min(max);
        self.kill(&head, count, death, out);
        count
    }

    /// Ready messages beyond what a queue that drops its head may hold.
    fn excess(&self) -> u64 {
        let Settings {
            messages_max,
            bytes_max,
            overflow,
            rank_max,
            ..
        } = self.settings;
        if overflow != Overflow::DropHead {
            return 0;
        }
        // A stream lets go of many at a time: a record for each turn's few would be dear.
        let slack = |max: u64| match self.is_stream() {
            true => max / RETAINED_SLACK,
            false => 0,
        };
        // What cannot die yet makes no message of a higher rank die for it.
        let ready = match rank_max {
            0 => self.ready,
            _ => {
                let late = self.next - 1 - self.durable + self.returned.held_ready();
                self.ready.saturating_sub(late)
            }
        };
        let messages = match messages_max {
            0 => 0,
            max if ready <= max.saturating_add(slack(max)) => 0,
            max => ready - max,
        };
        // Of what waits for its time only the mean is known.
        let all = u128::from(self.ready + self.delayed_count()).max(1);
        let bytes = u128::from(self.ready_bytes()) * u128::from(ready) / all;
        let bytes = bytes as u64;
        if bytes_max == 0 || bytes <= bytes_max.saturating_add(slack(bytes_max)) {
            return messages;
        }
        let share = u128::from(bytes - bytes_max) * u128::from(ready) / u128::from(bytes);
        messages.max((share as u64).clamp(1, ready))
    }

    /// The first `count` messages of the head die.
    fn kill(&mut self, head: &Head, count: u64, death: Death, out: &mut Ranges) {
        let Head { first, .. } = *head;
        let last = first + count - 1;
        let others = self.ready + self.delayed_count();
        let bytes = u128::from(self.ready_bytes()) * u128::from(count) / u128::from(others);
        let bytes = bytes as u64;
        let deliveries = head.returned.map_or(0, |span| span.deliveries);
        match head.returned {
            None => self.cursor += count,
            Some(_) => self.take_returned(head.rank, first, count as u32),
        }
        if let Some(groups) = &mut self.groups
            && head.returned.is_some()
        {
            (first..=last).for_each(|sequence| groups.forget(sequence));
        }
        self.ready -= count;
        let mut dropped = Buried {
            messages: count,
            ..Buried::default()
        };
        if self.settings.has_dead_letters {
            let dying = Dying {
                death,
                deliveries,
                bytes: (bytes / count) as u32,
            };
            (first..=last).for_each(|sequence| self.dead.wait(sequence, dying));
        } else {
            push_range(out, first, last);
            if deliveries > 0 {
                let span = Returned::new(first, count as u32, deliveries);
                self.pending_counts.insert(span);
            }
            dropped.dropped = count;
            dropped.dropped_bytes = bytes;
        }
        self.bury(death, dropped);
    }

    /// A message that nobody holds any more dies, with so many padded bytes.
    pub(super) fn kill_one(
        &mut self,
        sequence: u64,
        deliveries: u32,
        (death, bytes): (Death, u32),
        out: &mut Ranges,
    ) {
        let mut buried = Buried {
            messages: 1,
            ..Buried::default()
        };
        if self.settings.has_dead_letters {
            let dying = Dying {
                death,
                deliveries,
                bytes,
            };
            self.dead.wait(sequence, dying);
        } else {
            push_range(out, sequence, sequence);
            if deliveries > 0 {
                self.pending_counts
                    .insert(Returned::new(sequence, 1, deliveries));
            }
            buried.dropped = 1;
            buried.dropped_bytes = u64::from(bytes);
        }
        self.bury(death, buried);
    }

    /// How many messages ever went to the dead-letter exchange, or are to.
    #[must_use]
    pub const fn died(&self) -> u64 {
        self.dead.died()
    }

    /// Whether those are done with that died as the numbers of this range; they are numbered from 0 on,
    /// in the order in which they died.
    #[must_use]
    pub fn are_dead_done(&self, numbers: Range<u64>) -> bool {
        self.dead.are_done(numbers)
    }

    /// Dead messages that wait for the dead-letter exchange.
    #[must_use]
    pub fn dead_waiting(&self) -> u64 {
        self.dead.waiting()
    }

    /// Whether so many messages wait for the dead-letter exchange that no more may die: nothing is
    /// delivered, so that nothing more can be rejected than what consumers hold.
    #[must_use]
    pub fn is_dying_full(&self) -> bool {
        self.settings.has_dead_letters && self.dead.count() >= DEAD_MAX
    }

    /// Whether it has room for dead letters of so many messages and padded bytes. Its own dead do not
    /// count: they may wait for the room of the queue that this comes from, which waits for theirs.
    #[must_use]
    pub fn has_room_for_dead(&self, count: u32, bytes: u64) -> bool {
        match self.settings.overflow {
            // The head makes room, unless it cannot die; what nobody rejects or lets expire then goes.
            Overflow::DropHead => {
                !self.is_dying_full()
                    || !self.passes_limit(self.ready, self.ready_bytes(), count, bytes)
            }
            Overflow::Refuse | Overflow::Block => {
                let own_bytes = self.dead.bytes();
                let others_bytes = self.bytes.saturating_sub(own_bytes);
                let here = self.ready + self.unacked + self.delayed_count();
                !self.passes_limit(here, others_bytes, count, bytes)
            }
        }
    }

    /// Whether so many messages and bytes more than those would pass a limit.
    pub(super) fn passes_limit(
        &self,
        messages: u64,
        bytes: u64,
        more: u32,
        more_bytes: u64,
    ) -> bool {
        let Settings {
            messages_max,
            bytes_max,
            ..
        } = self.settings;
        (messages_max > 0 && messages + u64::from(more) > messages_max)
            || (bytes_max > 0 && bytes + more_bytes > bytes_max)
    }

    /// A dead message that was begun waits again: it found no place.
    pub fn give_dead_back(&mut self, sequence: QueueSequence) {
        self.dead.give_back(sequence.0);
    }

    /// The dead message whose turn is next. The same again until it is begun.
    pub fn next_dead(&mut self) -> Option<DeadOffer> {
        let (sequence, dying) = self.dead.next()?;
        let run = self.index.find(sequence).expect("a dead message has a run");
        let offer = self.offer_alone(run, sequence, self.dead_walked);
        Some(DeadOffer {
            offer: Offer {
                delivery_count: dying.deliveries,
                ..offer
            },
            death: dying.death,
        })
    }

    /// It is on its way: it lies at `at` in its record's body, with so many padded bytes.
    ///
    /// # Panics
    /// If it does not wait.
    pub fn begin_dead(&mut self, dead: &DeadOffer, at: u32, bytes: u32) {
        self.dead.begin(dead.sequence().0, bytes);
        let end = at.checked_add(bytes).filter(|_| !dead.offer.fragmented);
        self.dead_walked = end.map(|offset| Walked {
            place: dead.offer.place,
            base: dead.offer.base,
            index: dead.offer.index + 1,
            offset,
        });
    }

    /// A dead message is done with: others have it, or it is dropped. It goes to `out`, for the ack record.
    /// Whether it was on its way.
    pub fn dead_is_done(&mut self, sequence: QueueSequence, out: &mut Ranges) -> bool {
        let Some(dying) = self.dead.done(sequence.0) else {
            return false;
        };
        if dying.deliveries > 0 {
            let span = Returned::new(sequence.0, 1, dying.deliveries);
            self.pending_counts.insert(span);
        }
        push_range(out, sequence.0, sequence.0);
        self.pending += 1;
        self.bytes = self.bytes.saturating_sub(u64::from(dying.bytes));
        self.clear_estimate();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::queue::{
        AckMode, BLOCK_BYTES_MAX, BLOCK_MESSAGES_MAX, ConsumerKey, Credit, Marking, Outcome,
        Sharing, Traits,
    };
    use crate::ids::{Place, SegmentIdx};
    use ringpost_wire::SettleRange;
    use ringpost_wire::control::Durability;

    const KEY: ConsumerKey = ConsumerKey(1);
    const BYTES: u32 = 64;

    /// A volatile queue with so many messages, and a consumer that takes all of them.
    fn queue(settings: Settings, messages: u64) -> Queue {
        let mut queue = Queue::new(settings);
        let credit = Credit {
            messages: u32::MAX,
            bytes: 0,
        };
        queue
            .add_consumer(
                KEY,
                credit,
                AckMode::Explicit,
                Sharing::Shared,
                Traits::default(),
            )
            .expect("it is the first");
        for number in 0..messages {
            let place = Place {
                segment: SegmentIdx(0),
                offset: 4_096 + 128 * number as u32,
            };
            let first = queue.next_sequence();
            queue.push_run(first, 1, BYTES, place, Marking::Plain);
            queue.durable_through(first);
        }
        if let Some(mark) = queue.mark_needed() {
            queue.mark_durable(mark);
        }
        queue
    }

    /// Delivers what may be; how much.
    fn deliver(queue: &mut Queue) -> u64 {
        let mut count = 0;
        loop {
            while let Some(mark) = queue.mark_needed() {
                queue.mark_durable(mark);
            }
            let Some(offer) = queue.next_offer() else {
                return count;
            };
            queue.take(&offer, 0, &[BYTES], &mut Ranges::default());
            count += 1;
        }
    }

    fn reject(queue: &mut Queue, last: u64) {
        let range = SettleRange { first: 0, last };
        let settled = queue.settle(KEY, range, Outcome::Reject, &mut Ranges::default());
        settled.expect("they are delivered");
    }

    #[test]
    fn as_many_die_as_may_and_no_more_is_delivered() {
        let settings = Settings {
            has_dead_letters: true,
            ..Settings::plain(Durability::Volatile)
        };
        let mut queue = queue(settings, DEAD_MAX + 10);
        assert_eq!(deliver(&mut queue), DEAD_MAX + 10);
        reject(&mut queue, DEAD_MAX);
        let place = Place {
            segment: SegmentIdx(1),
            offset: 4_096,
        };
        let next = queue.next_sequence();
        queue.push_run(next, 1, BYTES, place, Marking::Plain);
        queue.durable_through(next);
        assert_eq!(deliver(&mut queue), 0, "what it would reject has no place");
        let dead = queue.next_dead().expect("they wait");
        queue.begin_dead(&dead, 0, BYTES);
        assert_eq!(deliver(&mut queue), 0);
        assert!(queue.dead_is_done(dead.sequence(), &mut Ranges::default()));
        assert_eq!(deliver(&mut queue), 1);
    }

    #[test]
    fn own_dead_leave_room_for_those_of_others() {
        let settings = Settings {
            messages_max: 2,
            bytes_max: 2 * u64::from(BYTES),
            has_dead_letters: true,
            ..Settings::plain(Durability::Volatile)
        };
        let mut queue = queue(settings, 2);
        assert!(!queue.has_room_for_dead(1, u64::from(BYTES)));
        deliver(&mut queue);
        assert!(!queue.has_room_for_dead(1, u64::from(BYTES)));
        reject(&mut queue, 1);
        assert!(queue.would_overflow(1, u64::from(BYTES)));
        assert!(queue.has_room_for_dead(1, u64::from(BYTES)));
        assert!(!queue.has_room_for_dead(2, u64::from(BYTES)));
        assert!(!queue.has_room_for_dead(1, 2 * u64::from(BYTES)));
    }

    #[test]
    fn a_queue_that_blocks_takes_so_much_and_then_refuses() {
        let bytes_max = 10 * u64::from(BYTES);
        for (messages_max, bytes_max) in [(2, 0), (0, bytes_max)] {
            let settings = Settings {
                messages_max,
                bytes_max,
                overflow: Overflow::Block,
                ..Settings::plain(Durability::Volatile)
            };
            let mut queue = queue(settings, 1);
            let (room, own) = match messages_max {
                0 => ((1, bytes_max - u64::from(BYTES)), u64::from(BYTES)),
                max => ((max as u32 - 1, 0), 1),
            };
            assert!(!queue.blocks(room.0, room.1));
            assert!(queue.blocks(room.0 + 1, room.1 + 1));
            let (count, bytes) = match messages_max {
                0 => (1, bytes_max + BLOCK_BYTES_MAX - own),
                max => ((max + BLOCK_MESSAGES_MAX - own) as u32, 0),
            };
            assert!(!queue.would_overflow(count, bytes));
            assert!(queue.would_overflow(count + u32::from(messages_max > 0), bytes + 1));
            // Dead letters have no credit to wait for.
            assert!(queue.has_room_for_dead(room.0, room.1));
            assert!(!queue.has_room_for_dead(room.0 + 1, room.1 + 1));
            deliver(&mut queue);
            let range = SettleRange { first: 0, last: 1 };
            let settled = queue.settle(KEY, range, Outcome::Ack, &mut Ranges::default());
            settled.expect("it is delivered");
            assert!(!queue.blocks(1, 1));
        }
    }

    #[test]
    fn what_is_given_back_waits_behind_the_others() {
        let settings = Settings {
            has_dead_letters: true,
            ..Settings::plain(Durability::Volatile)
        };
        let mut queue = queue(settings, 4);
        deliver(&mut queue);
        reject(&mut queue, 3);
        let mut order = Vec::new();
        for number in 0..6 {
            let dead = queue.next_dead().expect("they wait");
            queue.begin_dead(&dead, 0, BYTES);
            order.push(dead.sequence().0);
            match number {
                0 => queue.give_dead_back(dead.sequence()),
                1 => {
                    // One that dies later does not pass it for ever.
                    reject(&mut queue, 4);
                    queue.give_dead_back(dead.sequence());
                }
                _ => assert!(queue.dead_is_done(dead.sequence(), &mut Ranges::default())),
            }
            queue.invariants();
        }
        assert_eq!(order, [1, 2, 3, 1, 4, 2]);
        assert!(queue.next_dead().is_none());
        assert!(queue.are_dead_done(0..4));
    }
}
