//! What consumers hold and for how long: those of a queue that bounds it lose what they hold for longer,
//! and each can ask. Does not know who gets messages.

use std::collections::VecDeque;

use ringpost_wire::control::{Body, ConsumerInfo};
use ringpost_wire::header::CONSUMER_IS_ACTIVE;
use ringpost_wire::ids::{DeliveryTag, QueueId};
use ringpost_wire::{Code, FrameHeader, FrameKind, frame};

use crate::Effects;
use crate::data::flow::{Flow, Waiter};
use crate::data::queue::ConsumerKey;
use crate::ids::{ConnId, Mono};
use crate::mesh::Request;

/// Deliveries within this part of the bound are one mark: by so much a message may be held longer.
const MARKS_PER_BOUND: u64 = 8;

/// Since when a consumer holds which deliveries. No message has a timer: a consumer has one, for the
/// oldest that it holds, and as many marks as fit into the time that it may hold one.
#[derive(Debug)]
pub struct Holds {
    bound_ms: u64,
    marks: VecDeque<Mark>,
    /// When it is to be looked at, if it is.
    scheduled: Option<Mono>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The last delivery tag; the first is behind the mark before.
    last: u64,
    /// When the first and the last were delivered.
    from: Mono,
    to: Mono,
}

impl Holds {
    /// Nothing, to be held for so many ms.
    #[must_use]
    pub fn new(bound_ms: u64) -> Self {
        Self {
            bound_ms,
            marks: VecDeque::new(),
            scheduled: None,
        }
    }

    /// Deliveries up to the tag `last` were sent.
    fn enter(&mut self, last: u64, now: Mono) {
        let width_ms = self.bound_ms / MARKS_PER_BOUND;
        match self.marks.back_mut() {
            Some(mark) if now.ms_since(mark.from) < width_ms => (mark.last, mark.to) = (last, now),
            _ => self.marks.push_back(Mark {
                last,
                from: now,
                to: now,
            }),
        }
    }

    /// When the delivery with the tag `oldest` has been held for too long, never too early.
    fn deadline(&mut self, oldest: u64) -> Option<Mono> {
        while self.marks.front().is_some_and(|mark| mark.last < oldest) {
            self.marks.pop_front();
        }
        let mark = self.marks.front()?;
        Some(mark.to.plus_ms(self.bound_ms))
    }
}

impl Flow {
    /// A consumer was sent deliveries, the last of which has this tag.
    pub(crate) fn holds_more(&mut self, key: u64, last: DeliveryTag) {
        let now = self.now;
        let sink = self.sinks.get_mut(key);
        let Some(holds) = sink.and_then(|sink| sink.holds.as_mut()) else {
            return;
        };
        holds.enter(last.0, now);
        if holds.scheduled.is_none() {
            let deadline = now.plus_ms(holds.bound_ms);
            holds.scheduled = Some(deadline);
            self.holds_until.insert((deadline, key));
        }
    }

    /// A consumer holds nothing more, for ever.
    pub(crate) fn holds_nothing(&mut self, key: u64) {
        let sink = self.sinks.get_mut(key);
        if let Some(holds) = sink.and_then(|sink| sink.holds.take())
            && let Some(deadline) = holds.scheduled
        {
            self.holds_until.remove(&(deadline, key));
        }
    }

    /// Ends the consumers that hold a message longer than their queue allows.
    //= P-54
    pub(crate) fn end_holders(&mut self, effects: &mut Effects) {
        while let Some((deadline, key)) = self.holds_until.first().copied()
            && self.now >= deadline
        {
            self.holds_until.pop_first();
            let Some(sink) = self.sinks.get_mut(key) else {
                continue;
            };
            let Some(holds) = &mut sink.holds else {
                continue;
            };
            let state = self.queues.get_mut(sink.queue);
            let oldest = state.and_then(|state| state.queue.oldest(ConsumerKey(key)));
            holds.scheduled = oldest.and_then(|oldest| holds.deadline(oldest.0));
            match holds.scheduled {
                None => {}
                Some(later) if later > self.now => {
                    self.holds_until.insert((later, key));
                }
                Some(_) => {
                    holds.scheduled = None;
                    let reason = format!(
                        "it held a message for longer than {} ms, as its queue allows \
                         (x-consumer-hold-max): settle sooner, or ask for less credit",
                        holds.bound_ms
                    );
                    self.end_consumer(key, Code::HoldExceeded, &reason, effects);
                }
            }
        }
    }

    /// `ConsumerInspect`.
    //= P-53
    pub(crate) fn consumer_inspect(
        &mut self,
        conn: ConnId,
        header: FrameHeader,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let Some((owner, key)) = self.consumer(conn, header, &[])? else {
            return Ok(());
        };
        if owner == self.config.core {
            self.inspect_consumer(key, header.sequence, effects);
        } else {
            let request = Request::ConsumerInspect {
                consumer: key,
                sequence: header.sequence,
            };
            self.ask(owner, request, Waiter::Nobody, effects);
        }
        Ok(())
    }

    /// Says what a consumer of this core holds.
    pub(crate) fn inspect_consumer(&mut self, key: u64, sequence: u64, effects: &mut Effects) {
        let Some(sink) = self.sinks.get(key) else {
            return;
        };
        let channel = sink.channel;
        let Some(state) = self.queues.get_mut(sink.queue) else {
            return;
        };
        let held = state.queue.outstanding(ConsumerKey(key));
        let held = held.unwrap_or_default();
        let oldest = state.queue.oldest(ConsumerKey(key));
        let since = oldest.and_then(|tag| sink.held_since.entered(tag.0));
        let info = ConsumerInfo {
            messages: held.messages,
            bytes: held.bytes,
            oldest_ms: since.map_or(0, |since| self.now.ms_since(since)),
        };
        let header = FrameHeader::bare(FrameKind::ConsumerInfo, channel, sequence);
        self.tell(key, effects, |out| info.write(out, header));
    }

    /// Tells consumers of a queue that one of them is the active one now, or is it no longer.
    //= P-52
    pub(crate) fn say_active(&mut self, queue: QueueId, effects: &mut Effects) {
        while let Some(state) = self.queues.get_mut(queue)
            && let Some((key, is_active)) = state.queue.take_notice()
        {
            let Some(channel) = self.sinks.get(key.0).map(|sink| sink.channel) else {
                continue;
            };
            let mut header = FrameHeader::bare(FrameKind::ConsumerActive, channel, 0);
            header.flags = if is_active { CONSUMER_IS_ACTIVE } else { 0 };
            self.tell(key.0, effects, |out| frame::write(out, header, &[]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Mono {
        Mono(0).plus_ms(ms)
    }

    #[test]
    fn the_oldest_is_never_late_by_more_than_a_mark_and_never_early() {
        let mut holds = Holds::new(8_000);
        assert_eq!(holds.deadline(1), None);
        for tag in 1..=100 {
            holds.enter(tag, ms(tag * 100));
        }
        for tag in 1..=100 {
            let deadline = holds.deadline(tag).expect("it is held");
            let exact = ms(tag * 100 + 8_000);
            assert!(deadline >= exact && deadline.ms_since(exact) < 1_000);
        }
        assert_eq!(holds.deadline(101), None);
        // However many there are, marks are few.
        for tag in 101..=10_000 {
            holds.enter(tag, ms(tag));
        }
        assert!(holds.marks.len() <= 11);
    }
}
