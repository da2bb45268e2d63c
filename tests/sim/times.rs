//! What clients know of when messages may be delivered: delays, the waits of retry policies, and ranks.
//! Does not know how brokers keep to them.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_check::{ConsumerNo, Delivery, MessageId, QueueNo};

/// What a queue was declared with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Timing {
    /// Largest rank, 0 = none.
    pub rank_max: u8,
    /// After so many messages that passed it the oldest goes, 0 = never.
    pub rank_turn: u32,
    /// What is given back waits.
    pub retry: Option<Retry>,
}

/// A retry policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry {
    /// The word for how waits grow.
    pub word: &'static str,
    /// The first wait in ms.
    pub delay_ms: u32,
    /// By how much it may be shorter or longer.
    pub jitter_percent: u8,
}

impl Retry {
    /// The shortest time that a message waits, in ns.
    const fn least_ns(self) -> u64 {
        self.delay_ms as u64 * (100 - self.jitter_percent as u64) / 100 * MS
    }
}

const MS: u64 = 1_000_000;

/// A message, as its producer sent it.
#[derive(Clone, Copy)]
struct Sent {
    /// When it was sent for the first time.
    first: u64,
    /// When its confirm came, if it did.
    confirmed: Option<u64>,
    delay_ms: u32,
    priority: u8,
}

/// A message that was given back: it does not come again before then, unless the broker starts anew.
#[derive(Clone, Copy)]
struct Wait {
    until: u64,
    starts: u64,
}

/// When messages of a world may be delivered.
#[derive(Default)]
pub struct Times {
    sent: BTreeMap<MessageId, Sent>,
    /// The last delivery of each: when, and in which life of the broker.
    delivered: BTreeMap<(QueueNo, MessageId), (u64, u64)>,
    waits: BTreeMap<(QueueNo, MessageId), Wait>,
    /// When a queue was purged last, as far as anybody asked for that.
    purged: BTreeMap<QueueNo, u64>,
    /// Who was given a message last that may be held for so long only, and when.
    holders: BTreeMap<(QueueNo, MessageId), (ConsumerNo, u64)>,
    /// What was ever given back by a consumer: it may wait, whatever becomes of the broker meanwhile.
    requeued: BTreeSet<(QueueNo, MessageId)>,
    /// Of what a consumer was given for the first time: by rank, when the last of it was sent, and its
    /// place.
    given: BTreeMap<ConsumerNo, BTreeMap<u8, (u64, u64)>>,
}

impl Times {
    /// A message goes out, for the first time or again.
    pub fn sent(&mut self, message: MessageId, now: u64, delay_ms: u32, priority: u8) {
        self.sent.entry(message).or_insert(Sent {
            first: now,
            confirmed: None,
            delay_ms,
            priority,
        });
    }

    /// Whether its producer delays a message.
    #[must_use]
    pub fn is_delayed(&self, message: MessageId) -> bool {
        let sent = self.sent.get(&message);
        sent.is_some_and(|sent| sent.delay_ms > 0)
    }

    /// Its confirm came.
    pub fn confirmed(&mut self, message: MessageId, now: u64) {
        if let Some(sent) = self.sent.get_mut(&message) {
            sent.confirmed.get_or_insert(now);
        }
    }

    /// A queue is to be purged: a crash may undo that, and then what waited is offered at once.
    pub fn purged(&mut self, queue: QueueNo, now: u64) {
        self.purged.insert(queue, now);
    }

    /// A consumer gives a message back.
    pub fn requeued(&mut self, queue: QueueNo, message: MessageId) {
        self.requeued.insert((queue, message));
    }

    /// A broker has said that a message is back in its queue, which was said to it at `sent`.
    ///
    /// # Errors
    /// It was delivered again too early.
    pub fn returned(
        &mut self,
        (queue, message): (QueueNo, MessageId),
        sent: u64,
        retry: Retry,
        starts: u64,
    ) -> Result<(), String> {
        let until = sent + retry.least_ns();
        let last = self.delivered.get(&(queue, message));
        match last {
            Some((at, life)) if *at > sent && *at < until && *life == starts => Err(format!(
                "{message} was given back at {sent} ns and came again at {at} ns, before {until} ns"
            )),
            Some((at, _)) if *at > sent => Ok(()),
            _ => {
                let wait = Wait { until, starts };
                self.waits.insert((queue, message), wait);
                Ok(())
            }
        }
    }

    /// A message of a queue that bounds how long a consumer may hold one is delivered: whether it was
    /// taken from another, who may not have heard of that yet.
    pub fn is_taken(&mut self, delivery: &Delivery, now: u64, hold_ms: u64) -> bool {
        let key = (delivery.queue, delivery.message);
        let before = self.holders.insert(key, (delivery.consumer, now));
        // It counts from when the broker sent it, which is before it came.
        before.is_some_and(|(other, since)| {
            other != delivery.consumer && now - since >= hold_ms * MS / 2
        })
    }

    /// A message is delivered: whether its queue need not deliver it in order.
    ///
    /// # Errors
    /// It is too early, or should have come before another one.
    pub fn delivered(
        &mut self,
        delivery: &Delivery,
        timing: Timing,
        (now, starts): (u64, u64),
        has_jumped: bool,
    ) -> Result<bool, String> {
        let Delivery { message, queue, .. } = *delivery;
        self.delivered.insert((queue, message), (now, starts));
        if let Some(wait) = self.waits.remove(&(queue, message))
            && wait.starts == starts
            && now < wait.until
        {
            return Err(format!(
                "{message} was given back and came before {} ns",
                wait.until
            ));
        }
        let Some(sent) = self.sent.get(&message).copied() else {
            return Ok(false);
        };
        let due = sent.first + u64::from(sent.delay_ms) * MS;
        let may_be_back = self
            .purged
            .get(&queue)
            .is_some_and(|purged| *purged >= sent.first);
        //= P-58
        if now < due && !has_jumped && !(may_be_back && starts > 1) {
            return Err(format!("{message} was delayed until {due} ns at least"));
        }
        //= P-59
        let rank = sent.priority.min(timing.rank_max);
        if delivery.count == 0 && sent.delay_ms == 0 && timing.rank_turn == 0 {
            let given = self.given.entry(delivery.consumer).or_default();
            if let Some(confirmed) = sent.confirmed
                // What had no queue when it was confirmed may have been published again.
                && let Some((lower, _)) = given.range(..rank).find(|(_, (sent, place))| {
                    *sent > confirmed && *place > delivery.place
                })
            {
                return Err(format!(
                    "{message} of rank {rank} was there before one of rank {lower} was sent and came \
                     behind it"
                ));
            }
            let last = given.entry(rank).or_default();
            *last = (*last).max((sent.first, delivery.place));
        }
        let may_wait = self.requeued.contains(&(queue, message));
        Ok(rank > 0 || sent.delay_ms > 0 || may_wait)
    }
}
