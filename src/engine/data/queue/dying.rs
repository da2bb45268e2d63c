//! How messages of a queue die: what is dropped at the head, what came back too often, and what waits
//! for the dead-letter exchange. Does not know where that is, nor how dead letters look.

use super::dead::{Dead, DeadOffer, Death, Dying};
use super::returned::{PendingCounts, Returned};
use super::settled::Ranges;
use super::unacked::Delivery;
use super::{Head, Offer, Overflow, Queue, Settings, Walked, ms_of, push_range};
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

    /// A message from `first` on, behind all others, arrived and may live `ttl_ms`, 0 = any time; so may those
    /// that follow.
    pub fn arrived(&mut self, first: QueueSequence, now: Mono, ttl_ms: u32) {
        self.expiry.push(first.0, ms_of(now), ttl_ms);
    }

    /// Whether its messages expire, whatever their producers allow.
    #[must_use]
    pub const fn expires_all(&self) -> bool {
        self.settings.ttl_ms > 0 || self.is_stream()
    }

    /// Whether a message of it expires at some time.
    #[must_use]
    pub fn expires(&self) -> bool {
        !self.expiry.is_idle() || self.next_paced().is_some()
    }

    /// When the message at the head expires, if nothing happens before.
    pub fn next_expiry(&mut self) -> Option<Mono> {
        let paced = self.next_paced();
        if self.expiry.is_idle() {
            return paced;
        }
        let head = self.head(u64::MAX, self.durable);
        let end = head.and_then(|head| self.expiry.of(head.first));
        let end = end.map(|end| Mono(u64::try_from(end + 1).unwrap_or(0) * 1_000_000));
        [end, paced].into_iter().flatten().min()
    }

    /// Whether messages of it may die at the head: it costs nothing to ask.
    #[must_use]
    pub fn may_die(&self) -> bool {
        !self.expiry.is_idle() || self.is_stream() || self.settings.overflow == Overflow::DropHead
    }

    /// Lets up to `max` ready messages die from the head on: those that have expired, and as many as
    /// pass a limit if the queue drops its head. Messages that are done with go to `out`, as ranges
    /// for the ack record; the others wait for [`Queue::next_dead`]. Returns how many died.
    pub fn sweep_head(&mut self, max: u64, out: &mut Ranges) -> u64 {
        let mut swept = 0;
        while swept < max {
            let room = match self.settings.has_dead_letters {
                true => DEAD_MAX.saturating_sub(self.dead.count()),
                false => u64::MAX,
            };
            let Some(head) = self.head(u64::MAX, self.durable) else {
                break;
            };
            let is_over = !self.expiry.is_idle() && self.expiry.is_over(head.first, self.now);
            let (death, last) = if is_over {
                (Death::Expired, head.last)
            } else {
                let behind = head.first + self.excess();
                (Death::MaxLength, behind.saturating_sub(1).min(head.last))
            };
            if last < head.first || room == 0 {
                break;
            }
            let last = match self.expiry.is_idle() {
                true => last,
                false => self.expiry.alike_upto(head.first, last, self.now),
            };
            let count = last - head.first + 1;
            let count = count.min(room).min(max - swept);
            self.kill(&head, count, death, out);
            swept += count;
        }
        swept
    }

    /// Ready messages beyond what a queue that drops its head may hold.
    fn excess(&self) -> u64 {
        let Settings {
            messages_max,
            bytes_max,
            overflow,
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
        let messages = match messages_max {
            0 => 0,
            max if self.ready <= max + slack(max) => 0,
            max => self.ready - max,
        };
        let bytes = self.ready_bytes();
        if bytes_max == 0 || bytes <= bytes_max + slack(bytes_max) {
            return messages;
        }
        let share = u128::from(bytes - bytes_max) * u128::from(self.ready) / u128::from(bytes);
        messages.max((share as u64).clamp(1, self.ready))
    }

    /// The first `count` messages of the head die.
    fn kill(&mut self, head: &Head, count: u64, death: Death, out: &mut Ranges) {
        let Head { first, .. } = *head;
        let last = first + count - 1;
        let bytes = u128::from(self.ready_bytes()) * u128::from(count) / u128::from(self.ready);
        let bytes = bytes as u64;
        let deliveries = head.returned.map_or(0, |span| span.deliveries);
        match head.returned {
            None => self.cursor += count,
            Some(_) => {
                self.returned.take_first(count as u32);
                self.cursor = self.cursor.max(last + 1);
            }
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

    /// How many messages ever went to the dead-letter exchange, or are to.
    #[must_use]
    pub const fn died(&self) -> u64 {
        self.dead.died()
    }

    /// Whether the first `count` of those are done with.
    #[must_use]
    pub fn are_dead_done(&self, count: u64) -> bool {
        self.dead.are_done(count)
    }

    /// Dead messages that wait for the dead-letter exchange.
    #[must_use]
    pub fn dead_waiting(&self) -> u64 {
        self.dead.waiting()
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
