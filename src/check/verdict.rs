//! The outcome of a check, for programs and for people. Does not know how it was reached.

use core::fmt;

use crate::event::{ConsumerNo, MessageId, QueueNo};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $text:literal;)*) => {
        /// Which promise was broken.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// One word, for tables.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Kind::$name => $word,)* }
            }

            /// One sentence, for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// A confirmed message never arrived, or was not there again after its consumer was lost.
    Lost = "lost", "confirmed, and not delivered (again) by the end";
    /// A message was delivered, never settled, and is not there any more; it was not durable then.
    Vanished = "vanished", "delivered once without a confirm, never settled, and gone by the end";
    /// Delivered after the broker said that its ack is durable.
    DeliveredAfterAckConfirm = "delivered_after_ack_confirm", "delivered after its ack was confirmed";
    /// Delivered after an ack whose connection was never lost.
    DeliveredAfterAck = "delivered_after_ack", "delivered after an ack that nothing can have lost";
    /// Delivered a second time without the redelivered flag.
    UnflaggedDuplicate = "unflagged_duplicate", "delivered again without the redelivered flag";
    /// Flagged as redelivered though nothing happened that could have hidden an earlier delivery.
    FlaggedWithoutCause = "flagged_without_cause", "flagged as redelivered without any cause";
    /// The stated delivery count is below the deliveries seen.
    CountTooLow = "count_too_low", "stated delivery count is below the deliveries seen";
    /// The stated delivery count is above what lost consumers and crashes can explain.
    CountTooHigh = "count_too_high", "stated delivery count is above what losses explain";
    /// Delivered to one consumer while another still holds it.
    TwoHolders = "two_holders", "delivered while a living consumer holds it";
    /// A later publish of one producer has an earlier place in the same queue.
    PlacesOutOfOrder = "places_out_of_order", "place in the queue contradicts the producer's order";
    /// A consumer received an earlier place after a later one more often than returns explain.
    DeliveredOutOfOrder = "delivered_out_of_order", "delivered out of the queue's order";
    /// The same message was delivered from another place of the same queue.
    PlaceChanged = "place_changed", "delivered from another place than before";
    /// Two messages were delivered from one place.
    PlaceReused = "place_reused", "delivered from a place that another message had";
    /// Delivered though nobody sent it.
    Phantom = "phantom", "delivered though nobody sent it";
    /// Delivered though its publish was refused.
    RefusedButSeen = "refused_but_seen", "delivered though its publish was refused";
    /// Delivered from a queue it was not routed to.
    CrossQueue = "cross_queue", "delivered from a queue that it was not routed to";
    /// Refused as unroutable though a queue must take it.
    WronglyUnroutable = "wrongly_unroutable", "refused as unroutable though a queue takes it";
    /// What arrived is not what was sent.
    HashMismatch = "hash_mismatch", "what arrived is not what was sent";
    /// A publish was answered twice.
    AnsweredTwice = "answered_twice", "publish answered twice";
    /// A publish was never answered and its connection was never lost.
    NeverAnswered = "never_answered", "publish not answered by the end";
    /// Confirmed as durable though a target cannot be, or above what was asked for.
    LevelOverstated = "level_overstated", "confirmed at a level that cannot be true";
    /// The history contradicts itself: a bug of the harness, not of the broker.
    BadHistory = "bad_history", "history contradicts itself (harness bug)";
}

/// One broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Number of the event that showed it, from 1.
    pub event: u64,
    /// Which promise.
    pub kind: Kind,
    /// The message, if one is concerned.
    pub message: Option<MessageId>,
    /// The queue, if one is concerned.
    pub queue: Option<QueueNo>,
    /// The consumer, if one is concerned.
    pub consumer: Option<ConsumerNo>,
    /// Values that explain it.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.event, self.kind.word())?;
        if let Some(message) = self.message {
            write!(f, ", message {message}")?;
        }
        if let Some(queue) = self.queue {
            write!(f, ", queue {}", queue.0)?;
        }
        if let Some(consumer) = self.consumer {
            write!(f, ", consumer {}", consumer.0)?;
        }
        write!(f, ": {}", self.kind.text())?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

/// What was counted on the way.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Events read.
    pub events: u64,
    /// Different messages sent.
    pub sent: u64,
    /// Publishes confirmed, at any level.
    pub confirmed: u64,
    /// Publishes confirmed as durable.
    pub confirmed_durable: u64,
    /// Publishes refused.
    pub refused: u64,
    /// Publishes without an answer.
    pub unknown: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Deliveries of what had been delivered before.
    pub redelivered: u64,
    /// Acks and rejects.
    pub acked: u64,
    /// Acks and rejects that the broker confirmed.
    pub ack_confirmed: u64,
    /// Crashes.
    pub crashes: u64,
}

/// The outcome: nothing is wrong if `violations` is empty and `ended` is true.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whether the history was drained to its end; without that, loss cannot be decided.
    pub ended: bool,
    /// What was counted.
    pub counts: Counts,
    /// Violations found, also those beyond the ones kept below.
    pub violation_count: u64,
    /// The first violations, in the order in which they showed.
    pub violations: Vec<Violation>,
}

impl Verdict {
    /// Whether the history was drained and nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.ended && self.violation_count == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "{} events: {} sent, {} confirmed ({} durable), {} refused, {} unknown, \
             {} delivered ({} again), {} acked ({} confirmed), {} crashes",
            counts.events,
            counts.sent,
            counts.confirmed,
            counts.confirmed_durable,
            counts.refused,
            counts.unknown,
            counts.delivered,
            counts.redelivered,
            counts.acked,
            counts.ack_confirmed,
            counts.crashes,
        )?;
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        let more = self.violation_count - self.violations.len() as u64;
        if more > 0 {
            writeln!(f, "and {more} more")?;
        }
        match (self.violation_count, self.ended) {
            (0, true) => write!(f, "clean: every promise was kept"),
            (0, false) => write!(f, "undecided: the history was not drained to its end"),
            (count, _) => write!(f, "broken: {count} violations"),
        }
    }
}
