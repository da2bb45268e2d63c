//! What is kept of a channel of the client: its content that is coming in, its producer, and which
//! delivery is which. Does not know frames.

use std::collections::VecDeque;

/// Settled entries that may stand between others before they are taken out.
const HOLES_MAX: usize = 64;
/// Memory that a channel keeps for its next content.
pub(super) const PARTIAL_BYTES_KEPT: usize = 64 * 1024;

/// The name by which clients consume answers directly, and ask for them.
pub(super) const REPLY_TO: &[u8] = b"amq.rabbitmq.reply-to";

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expect {
    Method,
    /// Of the content of a publish.
    Header,
    /// Of the same.
    Body,
}

/// Where the content that is coming in lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// At the end of the batch that is being put together, from here on.
    Batch(usize),
    /// With the channel.
    Apart,
}

/// The native producer of a channel.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    /// Its native channel, 0 = none is open.
    pub(super) native: u16,
    /// Sequence of the next message.
    pub(super) next: u64,
    /// Messages and bytes published.
    pub(super) used: (u64, u64),
    /// Messages and bytes that may be.
    pub(super) granted: (u64, u64),
}

impl Publisher {
    /// Takes credit for so much, if there is.
    pub(super) fn charge(&mut self, messages: u64, bytes: u64) -> bool {
        let used = (self.used.0 + messages, self.used.1 + bytes);
        let has = used.0 <= self.granted.0 && used.1 <= self.granted.1;
        if has {
            self.used = used;
        }
        has
    }
}

/// A delivery that the client has not settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unacked {
    /// Its tag on this channel.
    pub(super) delivery: u64,
    /// Its tag at its native consumer.
    pub(super) tag: u64,
    /// The native channel of that, 0 = it is settled, [`GONE`] = that is no more.
    pub(super) native: u16,
}

/// The consumer of a delivery was ended, and the delivery has returned.
pub(super) const GONE: u16 = u16::MAX;

/// A channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) expect: Expect,
    /// The client was told that it ends; all but its answer is ignored.
    pub(super) is_closing: bool,

    // The content that is coming in.
    /// Exchange and routing key, back to back.
    pub(super) address: Vec<u8>,
    pub(super) exchange_bytes: usize,
    pub(super) is_mandatory: bool,
    pub(super) body_left: u64,
    /// Bytes of the whole message, without padding.
    pub(super) message_bytes: usize,
    pub(super) place: Place,
    pub(super) partial: Vec<u8>,
    /// Bytes of a large message that were passed on; it is whole.
    pub(super) passed_on: Option<usize>,
    /// Bytes that are counted for what lies apart.
    pub(super) gathered: u64,

    pub(super) publisher: Publisher,
    /// The sequence before the first one that is confirmed; none if the client does not want that.
    pub(super) confirms_from: Option<u64>,
    /// The last sequence of which the client was told.
    pub(super) told: u64,
    /// Spans above that were told to be refused.
    pub(super) refused: Vec<(u64, u64)>,

    /// Prefetch of consumers that are opened from now on.
    pub(super) prefetch: u16,
    /// Tag of the last delivery.
    pub(super) deliveries: u64,
    pub(super) unacked: VecDeque<Unacked>,
    holes: usize,
    /// The queue that was declared last.
    pub(super) queue: Vec<u8>,
    /// The queue that answers to requests of this channel come to; none if there is no consumer of
    /// [`REPLY_TO`].
    pub(super) replies: Vec<u8>,

    /// The native channel of the consumer whose message is being sent in pieces.
    pub(super) streams: u16,
    /// What is to be said when that is sent.
    pub(super) held: Vec<u8>,
}

impl Channel {
    pub(super) fn new() -> Self {
        Self {
            expect: Expect::Method,
            is_closing: false,
            address: Vec::new(),
            exchange_bytes: 0,
            is_mandatory: false,
            body_left: 0,
            message_bytes: 0,
            place: Place::Apart,
            partial: Vec::new(),
            passed_on: None,
            gathered: 0,
            publisher: Publisher::default(),
            confirms_from: None,
            told: 0,
            refused: Vec::new(),
            prefetch: 0,
            deliveries: 0,
            unacked: VecDeque::new(),
            holes: 0,
            queue: Vec::new(),
            replies: Vec::new(),
            streams: 0,
            held: Vec::new(),
        }
    }

    /// Exchange and routing key of the content that is coming in.
    pub(super) fn address(&self) -> (&[u8], &[u8]) {
        self.address.split_at(self.exchange_bytes)
    }

    /// Everything up to a sequence has its outcome: how many of those that were not told were taken, and
    /// the last of them.
    pub(super) fn confirm(&mut self, last: u64) -> (u64, u64) {
        let (mut left, mut last_taken) = (last - self.told, last);
        for (first, end) in self.refused.iter().rev() {
            if *first > last {
                continue;
            }
            let end = (*end).min(last);
            left -= end + 1 - first;
            if end == last_taken {
                last_taken = first - 1;
            }
        }
        self.told = last;
        self.refused.retain_mut(|(first, end)| {
            *first = (*first).max(last + 1);
            *first <= *end
        });
        self.tell_refused();
        (left, last_taken)
    }

    /// A span that was not told yet was refused.
    pub(super) fn refuse(&mut self, first: u64, last: u64) {
        match self.refused.last_mut() {
            Some((_, end)) if *end + 1 == first => *end = last,
            _ => self.refused.push((first, last)),
        }
        self.tell_refused();
    }

    /// What was refused next to what was told is told.
    fn tell_refused(&mut self) {
        while let Some((first, end)) = self.refused.first().copied()
            && first == self.told + 1
        {
            self.told = end;
            self.refused.remove(0);
        }
    }

    /// Where a delivery stands, if it is not settled.
    pub(super) fn find(&self, delivery: u64) -> Option<usize> {
        let idx = match self.unacked.front() {
            Some(front) if front.delivery == delivery => 0,
            _ => self.unacked.partition_point(|one| one.delivery < delivery),
        };
        let found = self.unacked.get(idx)?;
        (found.delivery == delivery && found.native != 0).then_some(idx)
    }

    /// Takes out the delivery that stands there.
    pub(super) fn take(&mut self, idx: usize) -> Unacked {
        let taken = self.unacked[idx];
        self.unacked[idx].native = 0;
        self.holes += 1;
        while self.unacked.front().is_some_and(|one| one.native == 0) {
            self.unacked.pop_front();
            self.holes -= 1;
        }
        // One that is never settled must not keep all behind it.
        if self.holes > HOLES_MAX && self.holes * 2 > self.unacked.len() {
            self.unacked.retain(|one| one.native != 0);
            self.holes = 0;
        }
        taken
    }

    /// Takes out the first delivery, if its tag is not above this one.
    pub(super) fn take_first(&mut self, upto: u64) -> Option<Unacked> {
        while let Some(first) = self.unacked.front().copied() {
            if first.native != 0 && first.delivery > upto {
                return None;
            }
            self.unacked.pop_front();
            if first.native != 0 {
                return Some(first);
            }
            self.holes -= 1;
        }
        None
    }

    /// A native consumer has ended: what it held has returned.
    pub(super) fn forget_consumer(&mut self, native: u16) {
        for one in &mut self.unacked {
            if one.native == native {
                one.native = GONE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(deliveries: u64) -> Channel {
        let mut channel = Channel::new();
        for delivery in 1..=deliveries {
            channel.unacked.push_back(Unacked {
                delivery,
                tag: delivery + 100,
                native: 3,
            });
        }
        channel
    }

    #[test]
    fn deliveries_are_settled_once_in_any_order() {
        let mut channel = channel(5);
        for delivery in [3, 1, 5, 2, 4] {
            let idx = channel.find(delivery).expect("it is not settled");
            assert_eq!(channel.take(idx).tag, delivery + 100);
            assert_eq!(channel.find(delivery), None);
        }
        assert!(channel.unacked.is_empty());
        assert_eq!((channel.find(0), channel.find(9)), (None, None));
    }

    #[test]
    fn many_are_settled_up_to_one() {
        let mut channel = channel(6);
        let idx = channel.find(2).expect("it is there");
        channel.take(idx);
        let taken = |channel: &mut Channel| channel.take_first(4).map(|one| one.delivery);
        assert_eq!(taken(&mut channel), Some(1));
        assert_eq!(taken(&mut channel), Some(3));
        assert_eq!(taken(&mut channel), Some(4));
        assert_eq!(taken(&mut channel), None);
        assert_eq!(channel.unacked.len(), 2);
    }

    #[test]
    fn one_that_is_never_settled_keeps_no_memory_of_others() {
        let mut channel = channel(1);
        for delivery in 2..10_000 {
            channel.unacked.push_back(Unacked {
                delivery,
                tag: 1,
                native: 3,
            });
            let idx = channel.find(delivery).expect("it is there");
            channel.take(idx);
            assert!(channel.unacked.len() <= 2 * (HOLES_MAX + 1));
        }
        assert_eq!(channel.find(1), Some(0));
    }
}
