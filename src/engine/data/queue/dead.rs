//! Messages that will not be delivered again and go to the queue's dead-letter exchange: those that
//! wait for that and those that are on their way. Does not know where they go.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Offer;
use ringpost_wire::ids::QueueSequence;

/// Why a message is not delivered any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Death {
    /// A consumer has rejected it.
    Rejected,
    /// Its time to live is over.
    Expired,
    /// Its queue was longer than it may be.
    MaxLength,
    /// It has come back more often than it may.
    DeliveryLimit,
    /// It is alive, and moved elsewhere.
    Moved,
}

impl Death {
    /// All reasons to die, in the order in which deaths are counted.
    pub const ALL: [Self; 4] = [
        Self::Rejected,
        Self::Expired,
        Self::MaxLength,
        Self::DeliveryLimit,
    ];

    /// The word in the header `x-death`; those of RabbitMQ.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
            Self::Moved => "moved",
        }
    }
}

/// A message that goes to the dead-letter exchange next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadOffer {
    /// Where it is; its consumer and credit mean nothing.
    pub offer: Offer,
    /// Why.
    pub death: Death,
}

impl DeadOffer {
    /// Its place in the queue.
    #[must_use]
    pub const fn sequence(&self) -> QueueSequence {
        self.offer.first
    }
}

/// One dead message. They are numbered in the order in which they died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dying {
    pub(crate) death: Death,
    /// How often it was delivered.
    pub(crate) deliveries: u32,
    /// Its padded bytes.
    pub(crate) bytes: u32,
}

/// The dead messages of one queue.
#[derive(Default)]
pub(crate) struct Dead {
    /// By round and sequence: those that are given back go behind all that wait then.
    waiting: BTreeMap<(u64, u64), (u64, Dying)>,
    /// The round of those that die now.
    round: u64,
    underway: BTreeMap<u64, (u64, Dying)>,
    /// Numbers of all of them.
    numbers: BTreeSet<u64>,
    /// How many ever died.
    died: u64,
    bytes: u64,
}

impl Dead {
    pub(crate) const fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            round: 0,
            underway: BTreeMap::new(),
            numbers: BTreeSet::new(),
            died: 0,
            bytes: 0,
        }
    }

    /// Messages here.
    pub(crate) fn count(&self) -> u64 {
        (self.waiting.len() + self.underway.len()) as u64
    }

    /// Their padded bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Messages that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// How many ever died.
    pub(crate) const fn died(&self) -> u64 {
        self.died
    }

    /// Whether those are done with that died as the numbers of this range.
    pub(crate) fn are_done(&self, numbers: Range<u64>) -> bool {
        numbers.is_empty() || self.numbers.range(numbers).next().is_none()
    }

    /// A message waits for its turn.
    pub(crate) fn wait(&mut self, sequence: u64, dying: Dying) {
        self.bytes += u64::from(dying.bytes);
        self.numbers.insert(self.died);
        let place = (self.round, sequence);
        let before = self.waiting.insert(place, (self.died, dying));
        assert!(before.is_none(), "a message dies once");
        self.died += 1;
    }

    /// Whose turn is next.
    pub(crate) fn next(&self) -> Option<(u64, Dying)> {
        let first = self.waiting.first_key_value();
        first.map(|((_, at), (_, dying))| (*at, *dying))
    }

    /// A message that waited is on its way, with so many padded bytes.
    pub(crate) fn begin(&mut self, sequence: u64, bytes: u32) {
        let ((_, next), (number, mut dying)) = self.waiting.pop_first().expect("it waits");
        assert!(next == sequence, "it is its turn");
        // What died at the head brought an estimate.
        self.bytes = self.bytes - u64::from(dying.bytes) + u64::from(bytes);
        dying.bytes = bytes;
        self.underway.insert(sequence, (number, dying));
    }

    /// A message that was on its way waits again, behind all others. Nothing if it is not on its way.
    pub(crate) fn give_back(&mut self, sequence: u64) {
        if let Some(dying) = self.underway.remove(&sequence) {
            self.round += 1;
            self.waiting.insert((self.round, sequence), dying);
        }
    }

    /// A message has arrived, or is dropped. `None` if it is not on its way.
    pub(crate) fn done(&mut self, sequence: u64) -> Option<Dying> {
        let (number, dying) = self.underway.remove(&sequence)?;
        self.numbers.remove(&number);
        self.bytes -= u64::from(dying.bytes);
        Some(dying)
    }

    /// Every message here, with its sequence.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Dying)> + '_ {
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|((_, sequence), (_, dying))| (*sequence, *dying));
        let underway = self.underway.iter();
        waiting.chain(underway.map(|(sequence, (_, dying))| (*sequence, *dying)))
    }

    pub(crate) fn invariants(&self) {
        let bytes: u64 = self.iter().map(|(_, dying)| u64::from(dying.bytes)).sum();
        assert_eq!(bytes, self.bytes);
        assert_eq!(self.numbers.len() as u64, self.count());
        assert!(
            self.waiting
                .keys()
                .all(|(_, at)| !self.underway.contains_key(at))
        );
    }
}
