//! Messages that a transaction acknowledges: they belong to it, and to no consumer, until it is
//! decided (rulings 20). Does not know transactions.
//!
//! To the queue they are done with, though not durably: as after an ack whose record is not written.

use std::collections::VecDeque;

use ringpost_wire::{Code, SettleRange};

use super::dying::Grave;
use super::returned::Returned;
use super::unacked::Delivery;
use super::{ConsumerKey, Death, Durability, Home, Queue, Ranges, Spans};

/// A message that belongs to a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Taken {
    /// Its place in the queue.
    pub sequence: u64,
    /// Its padded bytes.
    pub bytes: u32,
    /// Deliveries of it before the one that is acknowledged.
    pub earlier: u32,
}

impl Queue {
    /// Takes a consumer's deliveries out of its hands; tags as for [`Queue::settle`]. They go to
    /// `out`, in the order of their tags.
    ///
    /// # Errors
    /// As for [`Queue::settle`], and [`Code::SettingInvalid`] of a stream, which nobody takes from;
    /// then nothing has changed.
    pub fn take_acked(
        &mut self,
        key: ConsumerKey,
        range: SettleRange,
        out: &mut Vec<Taken>,
    ) -> Result<(), Code> {
        if self.is_stream() {
            return Err(Code::SettingInvalid);
        }
        let slot = self.consumers.find(key).ok_or(Code::UnknownDelivery)?;
        let (mut messages, mut bytes) = (0, 0);
        let counts = &mut self.pending_counts;
        let mut groups = self.groups.as_deref_mut();
        let unacked = &mut self.consumers.get_mut(slot).unacked;
        unacked.settle(range.first, range.last, |delivery| {
            if let Some(groups) = &mut groups {
                groups.awaits_decision(delivery.sequence);
            }
            messages += 1;
            bytes += u64::from(delivery.bytes);
            if delivery.earlier > 0 {
                counts.insert(Returned::new(delivery.sequence, 1, delivery.earlier));
            }
            out.push(Taken {
                sequence: delivery.sequence,
                bytes: delivery.bytes,
                earlier: delivery.earlier,
            });
        })?;
        self.pending += messages;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.unacked -= messages;
        self.unacked_bytes -= bytes;
        self.consumers.gave_back(slot, bytes);
        Ok(())
    }

    /// Nothing comes of the transaction: its messages return to their places. What has returned too
    /// often is dead: settled messages go to `out`, as ranges for the ack record.
    ///
    /// # Panics
    /// If one of them does not belong to a transaction.
    pub fn give_back_acked(&mut self, taken: &[Taken], out: &mut Ranges) {
        let count = taken.len() as u64;
        assert!(count <= self.pending, "they were taken");
        let mut spans = Spans::new();
        for one in taken {
            self.pending_counts.remove(one.sequence, one.sequence);
        }
        let mut home = Home {
            returned: &mut self.returned,
            delayed: &mut self.delayed,
            ranks: &self.ranks,
            hold: self.settings.durability == Durability::Durable,
            // As what a consumer leaves behind when it goes.
            retry: None,
            now: self.now,
        };
        let mut grave = Grave::new(self.settings, &mut self.dead, &mut self.pending_counts, out);
        let mut bytes = 0;
        for one in taken {
            bytes += u64::from(one.bytes);
            let delivery = Delivery {
                tag: 0,
                sequence: one.sequence,
                bytes: one.bytes,
                earlier: one.earlier,
            };
            let is_dead = grave.takes_returned(&delivery);
            if let Some(groups) = &mut self.groups {
                groups.came_back(one.sequence, is_dead);
            }
            if is_dead {
                continue;
            }
            if let Some(span) = spans.push(one.sequence, one.earlier) {
                home.take_back(span);
            }
        }
        if let Some(span) = spans.finish() {
            home.take_back(span);
        }
        let buried = grave.done();
        self.pending -= count;
        self.bytes += bytes;
        self.ready += count - buried.messages;
        self.bury(Death::DeliveryLimit, buried);
    }

    /// After a recovery, before [`Queue::hold_restored`]: these belong to a transaction that was
    /// prepared, as far as they are there. Returns them, in order.
    pub fn restore_taken(&mut self, taken: &[Taken]) -> Vec<Taken> {
        let mut there = taken.to_vec();
        there.retain(|one| {
            one.sequence < self.next
                && !self.settled.contains(one.sequence)
                && self.index.find(one.sequence).is_some()
        });
        there.sort_unstable_by_key(|one| one.sequence);
        there.dedup_by_key(|one| one.sequence);
        let is_taken = |sequence: u64| {
            let found = there.binary_search_by_key(&sequence, |one| one.sequence);
            found.is_ok()
        };
        let mut ranked = Vec::new();
        for rank in self.returned.by_rank() {
            ranked.push(rank);
        }
        self.returned.drain(|_| {});
        for (rank, span) in ranked {
            for part in parts_without(span, is_taken) {
                self.returned.insert(rank, part);
            }
        }
        let mut delayed = Vec::new();
        self.delayed.drain(|due, span| delayed.push((due, span)));
        let mut waited = 0;
        for (due, span) in delayed {
            waited += u64::from(span.count);
            for part in parts_without(span, is_taken) {
                waited -= u64::from(part.count);
                self.delayed.insert(due, part);
            }
        }
        // Whatever lies in the way of the cursor is not fresh.
        let apart = self.apart.iter().copied();
        let own = there.iter().map(|one| (one.sequence, one.sequence));
        let mut all: Vec<(u64, u64)> = apart.chain(own).collect();
        all.sort_unstable();
        let mut joined: VecDeque<(u64, u64)> = VecDeque::with_capacity(all.len());
        for (first, last) in all {
            match joined.back_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => joined.push_back((first, last)),
            }
        }
        self.apart = joined;
        let count = there.len() as u64;
        let bytes: u64 = there.iter().map(|one| u64::from(one.bytes)).sum();
        self.ready -= count - waited;
        self.pending += count;
        self.bytes = self.bytes.saturating_sub(bytes);
        for one in &there {
            // They were delivered once more than before; no mark of this life says so.
            let deliveries = one.earlier.saturating_add(1);
            self.pending_counts
                .insert(Returned::new(one.sequence, 1, deliveries));
        }
        there
    }
}

/// What of a span is not taken, in order.
fn parts_without(span: Returned, is_taken: impl Fn(u64) -> bool) -> Vec<Returned> {
    let mut parts = Vec::new();
    let mut left = Some(span);
    while let Some(span) = left {
        let hole = (span.first..=span.last()).find(|sequence| is_taken(*sequence));
        match hole {
            Some(hole) => {
                if hole > span.first {
                    parts.push(span.upto(hole - 1));
                }
                left = span.from(hole + 1);
            }
            None => {
                parts.push(span);
                left = None;
            }
        }
    }
    parts
}
