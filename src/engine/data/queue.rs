//! One queue: which messages it holds, who has them, who is next, what is done with.
//! Does not know bytes of messages, journals, connections or time.
//!
//! Every message has a queue sequence, from 1 without gaps, and is in exactly one state:
//!
//! ```text
//!            take                    settle (ack, reject)           forget
//!   fresh ---------->  unacked  -------------------------> pending --------> settled
//!                      |     ^                                ^              (durably)
//!      settle (requeue)|     | take                           | purge (fresh, returned)
//!      remove_consumer v     |                                |
//!                      returned  ---------------------------- +
//! ```
//!
//! - *fresh*: at or above the cursor, never delivered. Deliverable up to what is durable and marked
//!   (ruling 15).
//! - *delayed*: it waits for its time, by its producer's will or by the queue's retry policy; then it is
//!   as one that was returned.
//! - *unacked*: in one consumer's `unacked` ring, by delivery tag.
//! - *returned*: delivered and given back, or set apart when it came, by its delay or its rank; offered
//!   before anything fresh of its rank, in order of sequence.
//!   Of a durable queue only once the delivery count is durable (see [`Queue::take_counts`]). After a
//!   recovery also what may have been delivered before; those lie ahead of the cursor.
//! - *parked*: its turn came while its key was busy (see `groups.rs`); ready all the same.
//! - *dead*: rejected, expired, too many or returned too often, in a queue that has a dead-letter
//!   exchange: never delivered again, and done with when that exchange's queues have it. A queue
//!   without one settles such a message at once.
//! - *pending*: done with in memory, never delivered again; the ack record is on its way.
//! - *settled*: the ack record is durable; the message's segment may lose it.
//!
//! Nothing is stored for pending messages: they are those below the cursor, and those set apart above
//! it, that are in no other state.
//! The `index` holds one entry per run of messages that are not yet settled.
//!
//! The caller drives dispatch: [`Queue::next_offer`] describes what to give to whom, the caller reads the
//! bytes, decides how many messages fit, and says [`Queue::take`]. Nothing allocates per message.

mod chunks;
mod dead;
mod delayed;
mod dispatch;
mod dying;
mod expiry;
mod groups;
mod index;
mod marks;
mod places;
mod ranks;
mod replay;
mod retry;
mod returned;
mod settled;
mod stream;
#[cfg(test)]
mod tests;
mod transaction;
mod unacked;

use std::collections::VecDeque;

use crate::ids::{Mono, Place, SegmentIdx};
use dead::Dead;
use delayed::Delayed;
use dispatch::{Consumers, Turn};
use dying::{Buried, Grave};
use expiry::Expiry;
use groups::Groups;
use index::{Pieces, Run, RunIndex};
use marks::Marks;
use ranks::Ranks;
use returned::{Held, PendingCounts, Returned, ReturnedSet};
use ringpost_wire::control::Durability;
use ringpost_wire::envelope::Terms;
use ringpost_wire::ids::{DeliveryTag, QueueSequence};
use ringpost_wire::limits::padded;
use ringpost_wire::{Code, SettleRange, envelope};
use settled::SettledSet;
use stream::Stream;

pub use dead::{DeadOffer, Death};
pub use dispatch::{
    AckMode, CONSUMERS_MAX, ConsumerKey, Credit, DispatchSettings, GROUP_AHEAD, HOLD_MAX_MS,
    KeySource, PRIORITIES, Policy, Sharing, TURN_MESSAGES_MAX, Traits, WEIGHTS,
};
pub use dying::DEAD_MAX;
pub use groups::KeyReader;
pub use index::{RUN_BYTES_MAX, RUN_MESSAGES_MAX, Stretch};
pub use marks::{MARK_WINDOW_MAX, MARK_WINDOW_MIN};
pub use places::{Cancelling, Look, Picked, Seen};
pub use ranks::RANK_MAX;
pub(crate) use replay::ceil_ms;
pub use replay::{Arrival, KeptTerms, Replay, StateFault};
pub use retry::{Backoff, RETRY_DELAY_MAX_MS, RETRY_DELAY_MIN_MS, Retry};
pub use returned::{CountRange, CountsUpto, DELIVERIES_MAX};
pub use settled::{Ranges, SequenceRange};
pub use stream::{
    GROUPS_MAX, GroupFigures, KeptOffset, LANES_MAX, MAX_AGE_MS, MEMBERS, MEMBERS_MAX, Pace,
    Position, RATES, Reading, SPEEDS, Start, StreamSettings, decode_offsets, encode_offsets,
    read_consumer,
};
pub use transaction::Taken;

/// What a queue was declared to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Whether it outlives the process.
    pub durability: Durability,
    /// Most messages, ready and unsettled; 0 = no limit.
    pub messages_max: u64,
    /// Most padded bytes of those; 0 = no limit.
    pub bytes_max: u64,
    /// What happens to a publish that passes a limit.
    pub overflow: Overflow,
    /// How long a message may wait to be delivered, in ms; 0 = any time.
    pub ttl_ms: u32,
    /// How often a message may come back; the next time it is dead.
    pub returns_max: Option<u32>,
    /// Whether it has a dead-letter exchange.
    pub has_dead_letters: bool,
    /// How long a message that is given back waits; `None`: it is deliverable at once.
    pub retry: Option<Retry>,
    /// Largest rank of a message, at most [`RANK_MAX`]; 0: all are equal. A priority above it counts as
    /// it.
    pub rank_max: u8,
    /// After so many messages that have passed older ones of a lower rank the oldest one goes; 0 = never.
    pub rank_turn: u32,
    /// How messages are shared out among consumers.
    pub dispatch: DispatchSettings,
    /// Of a stream: what it keeps beside the limits, which never refuse but drop its head.
    pub stream: Option<StreamSettings>,
}

impl Settings {
    /// A queue that was asked for nothing but this.
    #[must_use]
    pub const fn plain(durability: Durability) -> Self {
        Self {
            durability,
            messages_max: 0,
            bytes_max: 0,
            overflow: Overflow::Refuse,
            ttl_ms: 0,
            returns_max: None,
            has_dead_letters: false,
            retry: None,
            rank_max: 0,
            rank_turn: 0,
            dispatch: DispatchSettings::DEFAULT,
            stream: None,
        }
    }
}

/// What happens to a publish that passes a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// It is refused; what is ready and what is delivered counts.
    Refuse,
    /// The oldest ready messages make room; only what is ready counts.
    DropHead,
    /// It is taken, and its producer gets no credit until there is room: see [`Queue::blocks`]. What is far
    /// beyond a limit is refused.
    Block,
}

/// Messages that a queue which blocks takes beyond its limit, so that producers may use the credit that they
/// have.
pub const BLOCK_MESSAGES_MAX: u64 = 65_536;
/// Bytes that it takes beyond its limit.
pub const BLOCK_BYTES_MAX: u64 = 64 << 20;

/// What a queue holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages ready for delivery, durable or not yet.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacked: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages on their way to the dead-letter exchange.
    pub dead: u64,
    /// Padded bytes of all those. An estimate, until the queue is empty, after a restart (in proportion,
    /// for records that were partly settled) and where ready messages were dropped or expired.
    pub bytes: u64,
    /// Messages ever put into the queue.
    pub published: u64,
    /// Messages done with: acked, rejected, purged or delivered without acks.
    pub settled: u64,
    /// Consumers.
    pub consumers: u32,
    /// Messages that died since the start, by [`Death`]: rejected, expired, too many, returned too often.
    pub deaths: [u64; 4],
}

/// What happens to settled deliveries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done with.
    Ack,
    /// Back to the original place.
    Requeue,
    /// Dead: done with, or on its way to the dead-letter exchange.
    Reject,
}

/// Instead of a slot: a message's key says which.
const BY_KEY: u32 = u32::MAX;

/// How much was settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Messages.
    pub messages: u64,
    /// Their padded bytes.
    pub bytes: u64,
}

/// Whether a run's record also says that its messages may have been delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marking {
    /// Its record carries the mark; see [`Queue::wants_marked`].
    Marked,
    /// It does not.
    Plain,
}

/// Where an offer's messages come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Fresh,
    /// Returned or set apart, of that rank.
    Returned(u8),
    /// It was parked until its key was ready.
    Parked,
    /// It stays: see `stream.rs`.
    Read,
}

/// Messages of one record of which at least one is live.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LiveRun {
    /// The first message.
    pub first: QueueSequence,
    /// Messages, settled ones among them included.
    pub count: u32,
    /// The record; of a large message the one of its first piece.
    pub place: Place,
    /// Messages of the record before the first one.
    pub skip: u32,
    /// Of a large message: the records of its pieces, in order; else empty.
    pub pieces: Vec<Place>,
}

/// What to deliver next, and to whom. Good until the queue changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The consumer; [`ConsumerKey::BY_KEY`] if the first message's key says who it is.
    pub key: ConsumerKey,
    /// Place in the queue of the first message; the others follow without gaps.
    pub first: QueueSequence,
    /// Most messages that may be taken: they lie in one record, are durable and within credit.
    pub messages_max: u32,
    /// Padded bytes that the consumer has credit for.
    pub bytes_room: u64,
    /// Whether the consumer holds nothing: then one message of any size may be taken.
    pub any_size: bool,
    /// Earlier deliveries of every message: exact, or at most one too high for each crash that it has
    /// lived through; never too low. 0 = delivered for the first time, else redelivered.
    pub delivery_count: u32,
    /// One message in several pieces; see [`Queue::pieces`].
    pub fragmented: bool,
    /// The record; message bytes start 64 bytes behind.
    pub place: Place,
    /// Message bytes of the whole record; 0 if fragmented.
    pub body_bytes: u32,
    /// How many messages of the record lie before the first one of the offer.
    pub index: u32,
    /// A message of the record at or before `index` whose start is known.
    from_index: u32,
    /// Its byte offset in the body.
    from_offset: u32,
    /// Queue sequence of the record's first message.
    base: u64,
    source: Source,
    slot: u32,
    /// What stands for the key of its messages, in a queue with message groups; `None` if it was not
    /// read yet.
    group: Option<u64>,
}

impl Offer {
    /// Byte offset in the record's body of the first message. `body` starts 64 bytes behind the
    /// record's [`Offer::place`] and need not hold more than the messages before the first one.
    /// `None` if the bytes are no messages. Usually reads nothing: the last place is remembered.
    #[must_use]
    pub fn locate(&self, body: &[u8]) -> Option<u32> {
        walk(body, self.from_index, self.from_offset, self.index)
    }

    /// Whether the messages were ready since they were durable: `None` if they were not, else whether
    /// older ones may have been passed over.
    pub(crate) fn was_ready(&self) -> Option<bool> {
        match self.source {
            Source::Fresh => Some(false),
            Source::Returned(rank) => (rank > 0 && self.delivery_count == 0).then_some(true),
            Source::Parked => (self.delivery_count == 0).then_some(true),
            // Each of many readers gets it.
            Source::Read => None,
        }
    }

    /// Whether the consumer may get one more message of `padded_bytes` after `messages` messages of
    /// `bytes` padded bytes of this offer.
    #[must_use]
    pub fn fits(&self, messages: u32, bytes: u64, padded_bytes: u32) -> bool {
        messages < self.messages_max
            && (bytes + u64::from(padded_bytes) <= self.bytes_room
                || (self.any_size && messages == 0))
    }
}

/// Byte offset of the message `index` of a record's body, given that message `from_index` starts at
/// `from_offset`. `None` if the bytes are no messages.
#[must_use]
pub fn walk(body: &[u8], from_index: u32, from_offset: u32, index: u32) -> Option<u32> {
    let mut at = from_offset as usize;
    for _ in from_index..index {
        let length = envelope::length_of(body.get(at..)?)?;
        if length == 0 {
            return None;
        }
        at = at.checked_add(padded(length))?;
    }
    u32::try_from(at).ok()
}

/// A message of a record whose start is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walked {
    place: Place,
    /// Queue sequence of the record's first message: places are used again, sequences are not.
    base: u64,
    index: u32,
    offset: u32,
}

/// The record that was pushed last: more messages may join it.
#[derive(Clone, Copy)]
struct LastRecord {
    count: u32,
    bytes: u32,
    place: Place,
    marking: Marking,
}

/// What is next in order.
#[derive(Clone, Copy)]
struct Head {
    first: u64,
    last: u64,
    /// Of messages that came back or were set apart, their span; `None`: they are fresh.
    returned: Option<Returned>,
    rank: u8,
}

/// One queue's state. See the module's text.
pub struct Queue {
    settings: Settings,
    /// Runs that hold messages not settled.
    index: RunIndex,
    /// Settled, durably.
    settled: SettledSet,
    consumers: Consumers,
    returned: ReturnedSet,
    /// Delivery counts of pending messages, for the checkpoint.
    pending_counts: PendingCounts,
    dead: Dead,
    deaths: [u64; 4],
    expiry: Expiry,
    /// What the expiry goes by, in ms.
    now: expiry::Ms,
    marks: Marks,
    /// Of a stream: who reads it, and its groups. Then `ready` is what is retained, from the cursor on.
    stream: Option<Box<Stream>>,
    /// Sequence of the next message to be published.
    next: u64,
    /// Messages up to here are durable.
    durable: u64,
    /// Messages from here on are fresh, but for those set apart, and settled and returned ones after a
    /// recovery.
    cursor: u64,
    /// Messages set apart when they came, for their delay or their rank, as far as they are not below the
    /// cursor: (first, last), in order.
    apart: VecDeque<(u64, u64)>,
    ranks: Ranks,
    /// Messages that have passed older ones of a lower rank since the oldest one went.
    passed: u32,
    delayed: Delayed,
    /// Of a queue with message groups.
    groups: Option<Box<Groups>>,
    /// The run of the cursor, if it was looked up.
    fresh_run: Option<Run>,
    fresh_walked: Option<Walked>,
    returned_walked: Option<Walked>,
    dead_walked: Option<Walked>,
    last_record: Option<LastRecord>,
    ready: u64,
    unacked: u64,
    /// Messages done with whose ack record is not durable.
    pending: u64,
    /// Padded bytes ready and unacked.
    bytes: u64,
    /// Of those, unacked.
    unacked_bytes: u64,
}

impl Queue {
    /// An empty queue that never held a message.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut queue = Self {
            settings,
            index: RunIndex::new(),
            settled: SettledSet::new(),
            consumers: Consumers::new(&settings.dispatch),
            returned: ReturnedSet::new(),
            pending_counts: PendingCounts::new(),
            dead: Dead::new(),
            deaths: [0; 4],
            expiry: Expiry::new(settings.ttl_ms),
            now: 0,
            marks: match settings.durability {
                Durability::Durable => Marks::durable_queue(),
                Durability::Volatile => Marks::unmarked(),
            },
            stream: None,
            next: 1,
            durable: 0,
            cursor: 1,
            apart: VecDeque::new(),
            ranks: Ranks::new(),
            passed: 0,
            delayed: Delayed::new(),
            groups: (settings.dispatch.is_grouped)
                .then(|| Box::new(Groups::new(settings.dispatch.ahead_max))),
            fresh_run: None,
            fresh_walked: None,
            returned_walked: None,
            dead_walked: None,
            last_record: None,
            ready: 0,
            unacked: 0,
            pending: 0,
            bytes: 0,
            unacked_bytes: 0,
        };
        queue.set_stream();
        queue
    }

    /// What the queue holds.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let published = self.next - 1;
        Counters {
            ready: self.ready,
            unacked: self.unacked,
            delayed: self.delayed_count(),
            dead: self.dead.count(),
            bytes: self.bytes,
            published,
            settled: published - self.held(),
            consumers: self.consumers.len() as u32,
            deaths: self.deaths,
        }
    }

    /// What it was declared to be.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What it is to be from now on; what is there stays.
    ///
    /// # Panics
    /// If the durability changes.
    pub fn set(&mut self, settings: Settings) {
        assert!(settings.durability == self.settings.durability);
        self.expiry.set_queue_ttl(settings.ttl_ms);
        let first = self.settled.floor() + 1;
        if settings.ttl_ms > 0 && first < self.next {
            // When they came was of no interest so far.
            self.expiry.begin(first, self.now);
        }
        let (new, old) = (&settings.dispatch, &self.settings.dispatch);
        if (new.policy, new.is_single_active) != (old.policy, old.is_single_active) {
            assert!(self.consumers.len() == 0);
            self.consumers = Consumers::new(&settings.dispatch);
        }
        if new.is_grouped != old.is_grouped || new.ahead_max != old.ahead_max {
            assert!(self.consumers.len() == 0);
            self.groups = new.is_grouped.then(|| Box::new(Groups::new(new.ahead_max)));
        }
        self.settings = settings;
        self.set_stream();
    }

    /// The engine's clock, before the queue is asked what is to be delivered or has expired.
    pub fn set_now(&mut self, now: Mono) {
        self.now = ms_of(now);
    }

    /// Sequence that the next message will have.
    #[must_use]
    pub const fn next_sequence(&self) -> QueueSequence {
        QueueSequence(self.next)
    }

    // Publishing.

    /// Whether so many messages and padded bytes more would pass a limit.
    #[must_use]
    pub fn would_overflow(&self, count: u32, bytes: u64) -> bool {
        if self.settings.overflow == Overflow::DropHead {
            return self.is_dying_full() && self.is_limited();
        }
        let unacked = match crate::mutant!(LimitWithoutUnacked) {
            true => 0,
            false => self.unacked,
        };
        let others = self.delayed_count() + self.dead.count();
        let messages = self.ready + unacked + others;
        if self.settings.overflow == Overflow::Block {
            let Settings {
                messages_max,
                bytes_max,
                ..
            } = self.settings;
            let most = messages_max.saturating_add(BLOCK_MESSAGES_MAX);
            let most_bytes = bytes_max.saturating_add(BLOCK_BYTES_MAX);
            return (messages_max > 0 && messages + u64::from(count) > most)
                || (bytes_max > 0 && self.bytes + bytes > most_bytes);
        }
        self.passes_limit(messages, self.bytes, count, bytes)
    }

    /// Whether it blocks who publishes so much into it: that passes a limit, and a queue that blocks takes it
    /// all the same.
    #[must_use]
    pub fn blocks(&self, count: u32, bytes: u64) -> bool {
        let messages = self.held();
        self.settings.overflow == Overflow::Block
            && self.passes_limit(messages, self.bytes, count, bytes)
    }

    /// Messages that wait for their time.
    fn delayed_count(&self) -> u64 {
        self.delayed.count() + self.returned.held_delayed()
    }

    /// Messages that are not done with.
    fn held(&self) -> u64 {
        self.ready + self.unacked + self.delayed_count() + self.dead.count()
    }

    /// Whether it has a maximum length or bytes.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.settings.messages_max > 0 || self.settings.bytes_max > 0
    }

    /// Adds `count` messages of `bytes` padded bytes that lie back to back in the record at `place`.
    ///
    /// # Panics
    /// If `first` is not [`Queue::next_sequence`] or a number passes [`RUN_MESSAGES_MAX`] or
    /// [`RUN_BYTES_MAX`].
    pub fn push_run(
        &mut self,
        first: QueueSequence,
        count: u32,
        bytes: u32,
        place: Place,
        marking: Marking,
    ) {
        assert!(first.0 == self.next);
        let run = Run::new(first.0, count, bytes, place).expect("a record is bounded");
        self.index.push(run);
        self.last_record = Some(LastRecord {
            count,
            bytes,
            place,
            marking,
        });
        self.pushed(count, u64::from(bytes), marking);
    }

    /// Adds `count` messages of `bytes` padded bytes to the record pushed last.
    ///
    /// # Panics
    /// If no run was pushed, or the record passes its bounds.
    pub fn extend_last(&mut self, count: u32, bytes: u32) {
        let record = self.last_record.expect("a run was pushed");
        assert!(count > 0 && bytes.is_multiple_of(16));
        if !self
            .index
            .extend_last(self.next, count, bytes, record.place)
        {
            // The messages before are settled and their entry is gone, or the last one was moved.
            let whole = Run::new(
                self.next - u64::from(record.count),
                record.count + count,
                record.bytes + bytes,
                record.place,
            );
            let whole = whole.expect("a record is bounded");
            let last = self.next + u64::from(count) - 1;
            let part = whole.part(self.next, last, &self.settled);
            self.index.push(part.expect("new messages live"));
        }
        self.last_record = Some(LastRecord {
            count: record.count + count,
            bytes: record.bytes + bytes,
            ..record
        });
        self.pushed(count, u64::from(bytes), record.marking);
    }

    /// Adds one message of `bytes` padded bytes that lies in the records at `places`, in order.
    ///
    /// # Panics
    /// If `sequence` is not [`Queue::next_sequence`] or there is no place.
    pub fn push_fragmented(
        &mut self,
        sequence: QueueSequence,
        bytes: u32,
        places: &[Place],
        marking: Marking,
    ) {
        assert!(sequence.0 == self.next);
        let run = Run::fragmented(sequence.0, places[0]).expect("a place is aligned");
        self.index.push(run);
        self.index.insert_pieces(
            sequence.0,
            Pieces {
                bytes,
                places: places.to_vec(),
            },
        );
        self.last_record = None;
        self.pushed(1, u64::from(bytes), marking);
    }

    fn pushed(&mut self, count: u32, bytes: u64, marking: Marking) {
        let first = self.next;
        self.next += u64::from(count);
        self.ready += u64::from(count);
        self.bytes += bytes;
        if marking == Marking::Marked && self.settings.durability == Durability::Durable {
            self.marks.pushed_marked(first, self.next - 1);
        }
    }

    /// The last message that may be delivered, as those before it may; 0 = none.
    #[must_use]
    pub const fn durable(&self) -> QueueSequence {
        QueueSequence(self.durable)
    }

    /// Messages up to `sequence` are durable and may be delivered.
    ///
    /// # Panics
    /// If there is no such message.
    pub fn durable_through(&mut self, sequence: QueueSequence) {
        assert!(sequence.0 < self.next);
        self.durable = self.durable.max(sequence.0);
        self.marks.runs_durable(sequence.0);
    }

    /// The messages from `sequence` on, where a run starts, never became durable: the journal has
    /// failed. They are gone.
    ///
    /// # Panics
    /// If one of them is durable, or a run would be cut in two.
    pub fn abandon_from(&mut self, sequence: QueueSequence) {
        assert!(sequence.0 > self.durable && sequence.0 > self.settled.ceiling());
        if sequence.0 >= self.next {
            return;
        }
        let apart = self.returned.truncate_from(sequence.0);
        let delayed = self.delayed.truncate_from(sequence.0);
        let fresh_from = self.cursor.max(sequence.0);
        let fresh = self.next.saturating_sub(fresh_from) - self.apart_from(fresh_from);
        let here = fresh + apart + delayed;
        let dropped = self.next - sequence.0;
        // What was purged of them has no bytes any more; where it lies is not known.
        let bytes_from = if here == dropped {
            sequence.0
        } else {
            fresh_from
        };
        let mut bytes = 0;
        let mut from = sequence.0;
        while let Some(run) = self.index.first_from(from) {
            if run.first() >= bytes_from {
                bytes += self.bytes_of(run);
            }
            from = run.last() + 1;
        }
        let found = self.index.truncate_from(sequence.0);
        assert!(found == dropped);
        self.pending -= dropped - here;
        self.ready -= fresh + apart;
        self.bytes = self.bytes.saturating_sub(bytes);
        while let Some((first, last)) = self.apart.back_mut()
            && *last >= sequence.0
        {
            if *first < sequence.0 {
                *last = sequence.0 - 1;
                break;
            }
            self.apart.pop_back();
        }
        self.ranks.truncate_from(sequence.0);
        self.next = sequence.0;
        self.cursor = self.cursor.min(self.next);
        self.marks.abandon_from(sequence.0);
        self.pending_counts.truncate_from(sequence.0);
        self.expiry.truncate_from(sequence.0);
        self.end_readers_at(self.next);
        self.fresh_run = None;
        self.last_record = None;
        self.clear_estimate();
    }

    // Terms.

    /// `count` messages from `first` on were pushed, behind which nothing was said of any; they arrived
    /// now, and each asks for `terms`.
    ///
    /// # Panics
    /// If there are no such messages.
    pub fn arrived(&mut self, first: QueueSequence, count: u32, now: Mono, terms: Terms) {
        assert!(first.0 + u64::from(count) <= self.next);
        if self.is_stream() {
            // What its messages ask for is of no account: they stay as long as it says, in their order.
            self.expiry.push(first.0, ms_of(now), 0);
            return;
        }
        let Terms {
            ttl_ms,
            delay_ms,
            priority,
        } = terms;
        if ttl_ms > 0 || self.settings.ttl_ms > 0 || !self.expiry.is_idle() {
            self.expiry.push(first.0, ms_of(now), ttl_ms);
        }
        let rank = match crate::mutant!(RankIgnored) {
            true => 0,
            false => priority.min(self.settings.rank_max),
        };
        self.ranks.push(first.0, rank);
        if delay_ms == 0 && rank == 0 {
            return;
        }
        let span = Returned::new(first.0, count, 0);
        self.push_apart(first.0, span.last());
        //= P-58
        if delay_ms > 0 && !crate::mutant!(DelayIgnored) {
            self.ready -= u64::from(count);
            self.delayed.insert(due_ms(ms_of(now), delay_ms), span);
        } else {
            self.returned.insert(rank, span);
        }
    }

    /// Whether [`Queue::arrived`] has anything to note of messages with such terms.
    #[must_use]
    pub fn heeds(&self, terms: &Terms) -> bool {
        self.is_stream()
            || terms.ttl_ms > 0
            || terms.delay_ms > 0
            || self.settings.ttl_ms > 0
            || self.settings.rank_max > 0
            || !self.expiry.is_idle()
    }

    /// Messages behind all that are set apart are not fresh.
    fn push_apart(&mut self, first: u64, last: u64) {
        match self.apart.back_mut() {
            Some(before) if before.1 + 1 == first => before.1 = last,
            _ => self.apart.push_back((first, last)),
        }
    }

    /// When the next delayed message is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Mono> {
        self.delayed.next_due().map(mono_of)
    }

    /// Lets delayed messages go that are due, at least `max` if there are so many; says how many.
    pub fn release_due(&mut self, max: u64) -> u64 {
        let mut released = 0;
        while released < max
            && let Some(span) = self.delayed.take_due(self.now)
        {
            let returned = &mut self.returned;
            for_each_rank(&self.ranks, span, |rank, span| returned.insert(rank, span));
            self.ready += u64::from(span.count);
            released += u64::from(span.count);
        }
        released
    }

    fn bytes_of(&self, run: Run) -> u64 {
        match self.index.pieces(run.first()) {
            Some(pieces) if run.is_fragmented() => u64::from(pieces.bytes),
            _ => run.live_bytes(),
        }
    }

    // Marks.

    /// Whether the record of the next run should carry the mark "may have been delivered", which
    /// spares a mark record: consumers with credit keep up with what is published.
    #[must_use]
    pub fn wants_marked(&self) -> bool {
        let credit = self.consumers.credit_sum();
        // Who has ranks gives what came last before much that came earlier.
        let cursor = if self.settings.rank_max > 0 {
            self.next
        } else {
            self.cursor
        };
        self.marks.wants_marked(self.next, cursor, credit)
    }

    /// The mark to record in the next block, if one must be raised for dispatch to go on; each is
    /// said once. Answer with [`Queue::mark_durable`].
    pub fn mark_needed(&mut self) -> Option<QueueSequence> {
        let credit = self.consumers.credit_sum();
        let runs_durable = self.durable;
        let cursor = self.unmarked_first().unwrap_or(self.cursor);
        let mark = self.marks.needed(self.next, cursor, runs_durable, credit)?;
        Some(QueueSequence(mark))
    }

    /// The first message of a rank that waits for a mark, of the highest one of which it does, if that
    /// lies ahead of the cursor.
    fn unmarked_first(&self) -> Option<u64> {
        let ranks = (1..=self.returned.rank_max()).rev();
        let firsts = ranks.filter_map(|rank| self.returned.first(rank));
        let mut firsts = firsts.map(|span| span.first);
        let from = self.marks.durable().saturating_add(1);
        let range = self.cursor.max(from)..=self.durable;
        firsts.find(|first| range.contains(first))
    }

    /// The mark `sequence` is durable: messages up to there may be delivered.
    pub fn mark_durable(&mut self, sequence: QueueSequence) {
        self.marks.mark_durable(sequence.0);
    }

    // Consumers.

    /// Adds a consumer.
    ///
    /// # Errors
    /// [`Code::InUse`] if it or another one is exclusive; [`Code::LimitReached`].
    ///
    /// # Panics
    /// If the key is in use.
    pub fn add_consumer(
        &mut self,
        key: ConsumerKey,
        credit: Credit,
        mode: AckMode,
        sharing: Sharing,
        traits: Traits,
    ) -> Result<(), Code> {
        self.consumers.add(key, credit, mode, sharing, traits)
    }

    /// Removes a consumer; what it holds returns to the queue, and what has returned too often is dead:
    /// settled messages go to `out`, as ranges for the ack record. `None` if there is no such consumer.
    pub fn remove_consumer(&mut self, key: ConsumerKey, out: &mut Ranges) -> Option<Settled> {
        if self.is_stream() {
            return self.remove_reader(key);
        }
        let mut consumer = self.consumers.remove(key)?;
        let mut gone = Settled::default();
        let mut spans = Spans::new();
        let mut home = Home {
            returned: &mut self.returned,
            delayed: &mut self.delayed,
            ranks: &self.ranks,
            hold: self.settings.durability == Durability::Durable,
            // What a consumer leaves behind when it goes is taken over at once.
            retry: None,
            now: self.now,
        };
        let mut grave = Grave::new(self.settings, &mut self.dead, &mut self.pending_counts, out);
        let mut groups = self.groups.as_deref_mut();
        consumer.unacked.drain(|delivery| {
            gone.messages += 1;
            gone.bytes += u64::from(delivery.bytes);
            let is_dead = grave.takes_returned(&delivery);
            if let Some(groups) = &mut groups {
                groups.came_back(delivery.sequence, is_dead);
            }
            if is_dead {
                return;
            }
            if let Some(span) = spans.push(delivery.sequence, delivery.earlier) {
                home.take_back(span);
            }
        });
        if let Some(span) = spans.finish() {
            home.take_back(span);
        }
        let buried = grave.done();
        self.unacked -= gone.messages;
        self.unacked_bytes -= gone.bytes;
        self.ready += gone.messages - buried.messages;
        self.bury(Death::DeliveryLimit, buried);
        Some(gone)
    }

    /// The keys of all consumers, in order.
    pub fn consumers(&self) -> impl Iterator<Item = ConsumerKey> + '_ {
        self.consumers.keys()
    }

    /// What a consumer holds; `None` if there is no such consumer.
    pub fn outstanding(&mut self, key: ConsumerKey) -> Option<Settled> {
        let slot = self.consumers.find(key)?;
        let consumer = self.consumers.get(slot);
        Some(Settled {
            messages: consumer.unacked.len() as u64,
            bytes: consumer.outstanding_bytes,
        })
    }

    /// The oldest delivery that a consumer has not settled, if there is one.
    #[must_use]
    pub fn oldest(&mut self, key: ConsumerKey) -> Option<DeliveryTag> {
        let slot = self.consumers.find(key)?;
        let front = self.consumers.get(slot).unacked.front_tag()?;
        Some(DeliveryTag(front))
    }

    /// Whether a consumer may get messages: of a queue with a single active consumer it is that one.
    #[must_use]
    pub fn is_active(&mut self, key: ConsumerKey) -> bool {
        let slot = self.consumers.find(key);
        slot.is_some_and(|slot| self.consumers.is_active(slot))
    }

    /// Takes the next consumer that is to be told that it became the active one of the queue (`true`)
    /// or is it no longer.
    pub fn take_notice(&mut self) -> Option<(ConsumerKey, bool)> {
        self.consumers.take_notice()
    }

    /// Whether there is one.
    #[must_use]
    pub fn has_notice(&self) -> bool {
        self.consumers.has_notice()
    }

    /// Changes a consumer's credit; what it holds counts against it. `false` if there is none.
    pub fn set_credit(&mut self, key: ConsumerKey, credit: Credit) -> bool {
        let slot = self.consumers.find(key);
        slot.map(|slot| self.consumers.set_credit(slot, credit))
            .is_some()
    }

    /// Lets a consumer take `count` messages beyond its credit. `false` if there is none.
    pub fn grant_get(&mut self, key: ConsumerKey, count: u32) -> bool {
        let slot = self.consumers.find(key);
        slot.map(|slot| self.consumers.grant(slot, count)).is_some()
    }

    /// Takes back what was granted and not used; says how much. `None` if there is no such consumer.
    pub fn cancel_get(&mut self, key: ConsumerKey) -> Option<u32> {
        let slot = self.consumers.find(key)?;
        Some(self.consumers.cancel_grant(slot))
    }

    /// A consumer's connection is congested: it is offered nothing. `false` if there is none.
    pub fn block(&mut self, key: ConsumerKey) -> bool {
        let slot = self.consumers.find(key);
        slot.map(|slot| self.consumers.set_blocked(slot, true))
            .is_some()
    }

    /// Its connection is congested no more. `false` if there is no such consumer.
    pub fn unblock(&mut self, key: ConsumerKey) -> bool {
        let slot = self.consumers.find(key);
        slot.map(|slot| self.consumers.set_blocked(slot, false))
            .is_some()
    }

    // Dispatch.

    /// Whether messages are ready that are durable, as far as their bodies go.
    #[must_use]
    pub fn has_deliverable(&self) -> bool {
        if let Some(stream) = &self.stream {
            return stream.has_readers();
        }
        let is_ready = self
            .groups
            .as_ref()
            .is_some_and(|groups| groups.has_ready());
        is_ready || self.returned.count() > 0 || (self.cursor <= self.durable && self.ready > 0)
    }

    /// Whether such messages wait for a mark or for their delivery counts to be durable.
    #[must_use]
    pub fn awaits_journal(&self) -> bool {
        let fresh = self.cursor <= self.durable && self.cursor > self.marks.durable();
        let returned = self.returned.first(0);
        let restored = returned.is_some_and(|span| span.first > self.marks.durable());
        self.returned.is_holding() || fresh || restored || self.unmarked_first().is_some()
    }

    /// What to deliver next, and to whom; `None` if nothing is deliverable or nobody has room. The
    /// same again until it is taken or declined.
    #[must_use]
    pub fn next_offer(&mut self) -> Option<Offer> {
        if self.is_stream() {
            return self.next_read();
        }
        if self.is_dying_full() {
            return None;
        }
        if let Some(groups) = &self.groups {
            if groups.has_ready() {
                let ready = self.next_of_groups();
                if ready.is_some() || self.has_ready_key() {
                    return ready;
                }
            }
            if self.is_stalled() {
                return None;
            }
        }
        let fresh_end = self.durable.min(self.marks.durable());
        // No less than there are: some ahead of the cursor may be set apart.
        let waiting = self.returned.ready_count() + (fresh_end + 1).saturating_sub(self.cursor);
        if waiting == 0 {
            return None;
        }
        let (slot, turn) = match self.consumers.turn(waiting) {
            Turn::Nobody => return None,
            Turn::Of(slot, turn) => (slot, turn),
            Turn::ByKey => (BY_KEY, u32::MAX),
        };
        let head = self.head(fresh_end)?;
        let mut last = head.last;
        if !self.expiry.is_idle() {
            if self.expiry.is_over(head.first, self.now) {
                // It makes way first: see [`Queue::sweep_head`].
                return None;
            }
            last = self.expiry.alike_upto(head.first, last, self.now);
        }
        Some(match head.returned {
            Some(span) => self.offer_returned(slot, turn, (head.rank, span), last),
            None => self.offer_fresh(slot, turn, last),
        })
    }

    //= P-59
    /// What is next, if it may go: messages up to `end` may.
    fn head(&mut self, end: u64) -> Option<Head> {
        if self.returned.rank_max() == 0 {
            return self.head_of(0, end);
        }
        let turn = self.settings.rank_turn;
        if turn > 0 && self.passed >= turn {
            return self.oldest_head(end).map(|head| Head {
                last: head.first,
                ..head
            });
        }
        let mut rank = self.returned.rank_max();
        let mut head = loop {
            if let Some(head) = self.head_of(rank, end) {
                break head;
            }
            // Nor does a lower rank pass a message that waits for its count.
            if self.returned.held_first(rank).is_some() {
                return None;
            }
            rank = rank.checked_sub(1)?;
        };
        if turn > 0 {
            let most = u64::from(turn - self.passed);
            head.last = head.last.min(head.first + most - 1);
        }
        Some(head)
    }

    /// Of what is next in each rank, the message that came first.
    fn oldest_head(&mut self, end: u64) -> Option<Head> {
        let ranks = 0..=self.returned.rank_max();
        let heads = ranks.filter_map(|rank| self.head_of(rank, end));
        heads.min_by_key(|head| head.first)
    }

    /// What is next of a rank, if it may go: messages up to `end` may.
    fn head_of(&mut self, rank: u8, end: u64) -> Option<Head> {
        // What came back goes first, so nothing passes a message that waits for its count.
        let held = match self.returned.is_holding() {
            true => self.returned.held_first(rank),
            false => None,
        };
        if rank == 0 {
            self.skip_apart();
        }
        match self.returned.first(rank) {
            // Restored ones may lie above the mark; all others were marked when they were fresh.
            Some(span)
                if rank > 0
                    || span.first <= self.cursor
                        && !(crate::mutant!(RequeueToTheEnd) && self.cursor <= end) =>
            {
                let end = held.map_or(u64::MAX, |held| held - 1).min(end);
                (span.first <= end).then(|| Head {
                    first: span.first,
                    last: span.last().min(end),
                    returned: Some(span),
                    rank,
                })
            }
            _ if held.is_some() || rank > 0 => None,
            before => {
                let mut end = before.map_or(end, |span| end.min(span.first - 1));
                if self.settled.ceiling() >= self.cursor
                    && let Some((first, _)) = self.settled.stretch_from(self.cursor)
                {
                    end = end.min(first - 1);
                }
                if let Some((first, _)) = self.apart.front() {
                    end = end.min(first - 1);
                }
                (self.cursor <= end).then_some(Head {
                    first: self.cursor,
                    last: end,
                    returned: None,
                    rank: 0,
                })
            }
        }
    }

    /// Moves the cursor over what is set apart, and what was settled ahead of it before a recovery.
    fn skip_apart(&mut self) {
        loop {
            while let Some((first, last)) = self.apart.front().copied()
                && first <= self.cursor
            {
                self.cursor = self.cursor.max(last + 1);
                self.apart.pop_front();
            }
            if self.settled.ceiling() >= self.cursor
                && let Some((first, last)) = self.settled.stretch_from(self.cursor)
                && first <= self.cursor
            {
                self.cursor = last + 1;
            } else {
                return;
            }
        }
    }

    /// Messages from `sequence` on, at or ahead of the cursor, that are set apart.
    fn apart_from(&self, sequence: u64) -> u64 {
        let behind = self
            .apart
            .iter()
            .rev()
            .take_while(|span| span.1 >= sequence);
        behind
            .map(|(first, last)| last + 1 - first.max(&sequence))
            .sum()
    }

    fn offer_fresh(&mut self, slot: u32, turn: u32, end: u64) -> Offer {
        let run = match self.fresh_run {
            Some(run) if run.contains(self.cursor) => run,
            _ => {
                let run = self.index.find(self.cursor);
                let run = run.expect("a fresh message has a run");
                self.fresh_run = Some(run);
                run
            }
        };
        let last = end.min(run.last());
        self.offer(slot, turn, run, self.cursor, last, self.fresh_walked)
    }

    fn offer_returned(
        &mut self,
        slot: u32,
        turn: u32,
        (rank, span): (u8, Returned),
        end: u64,
    ) -> Offer {
        let run = self.index.find(span.first);
        let run = run.expect("a returned message has a run");
        let last = span.last().min(run.last()).min(end);
        let offer = self.offer(slot, turn, run, span.first, last, self.returned_walked);
        Offer {
            delivery_count: if crate::mutant!(CountForgotten) {
                0
            } else {
                span.deliveries
            },
            source: Source::Returned(rank),
            ..offer
        }
    }

    /// The messages `first..=last` of a run for a consumer.
    fn offer(
        &self,
        slot: u32,
        turn: u32,
        run: Run,
        first: u64,
        last: u64,
        walked: Option<Walked>,
    ) -> Offer {
        let count = u32::try_from(last - first + 1).unwrap_or(u32::MAX);
        let offer = Offer {
            messages_max: count.min(turn),
            ..self.offer_alone(run, first, walked)
        };
        if slot == BY_KEY {
            offer
        } else {
            self.offer_to(slot, &offer)
        }
    }

    /// One message of a run, for no consumer.
    fn offer_alone(&self, run: Run, first: u64, walked: Option<Walked>) -> Offer {
        let place = run.place();
        let index = run.index_of(first);
        let base = run.base();
        let known = walked.filter(|w| w.place == place && w.base == base && w.index <= index);
        Offer {
            key: ConsumerKey::BY_KEY,
            first: QueueSequence(first),
            messages_max: 1,
            bytes_room: u64::MAX,
            any_size: true,
            delivery_count: 0,
            fragmented: run.is_fragmented(),
            place,
            body_bytes: run.body_bytes(),
            index,
            from_index: known.map_or(0, |walked| walked.index),
            from_offset: known.map_or(0, |walked| walked.offset),
            base,
            source: Source::Fresh,
            slot: BY_KEY,
            group: None,
        }
    }

    /// An offer for the consumer in this slot.
    fn offer_to(&self, slot: u32, offer: &Offer) -> Offer {
        let consumer = self.consumers.get(slot);
        Offer {
            key: consumer.key,
            messages_max: offer.messages_max.min(consumer.room()),
            bytes_room: consumer.bytes_room(),
            any_size: consumer.unacked.len() == 0,
            slot,
            ..*offer
        }
    }

    /// How the key of a message is read, if it says who gets it.
    #[must_use]
    pub const fn key_reader(&self) -> Option<KeyReader> {
        match self.settings.dispatch.policy {
            Policy::Sticky(source) => {
                Some(KeyReader::new(source, self.settings.dispatch.is_grouped))
            }
            Policy::RoundRobin | Policy::Random | Policy::Weighted | Policy::LeastOutstanding => {
                None
            }
        }
    }

    /// The offer as it is for the consumer that the first message's key names: see
    /// [`KeyReader::of`]. It is good for messages of that key only. `None` if the message does not go
    /// now, because of its key: the offer is void and the next one is another, or none. `at` is where the
    /// message starts in the record's body, with so many padded bytes.
    ///
    /// # Panics
    /// If the offer has a consumer already, or the queue has changed since.
    #[must_use]
    pub fn address(&mut self, offer: &Offer, key: u64, (at, bytes): (u32, u32)) -> Option<Offer> {
        assert!(offer.key == ConsumerKey::BY_KEY);
        if self.groups.is_some() {
            return self.address_group(offer, key, (at, bytes));
        }
        let slot = self.consumers.by_key(key);
        Some(self.offer_to(slot, offer))
    }

    /// What of the durable messages from `first` on can be read at once, within `bytes_max`.
    #[must_use]
    pub fn stretch(&self, first: QueueSequence, bytes_max: u32) -> Option<Stretch> {
        self.index.stretch(first.0, self.durable, bytes_max)
    }

    /// The first message from `first` on whose record is not whole between `from` and the byte offset
    /// `upto` of its segment; the next to become durable if there is none.
    #[must_use]
    pub fn first_beyond(&self, first: QueueSequence, from: Place, upto: u32) -> QueueSequence {
        let range = (first.0, self.durable);
        QueueSequence(self.index.first_beyond(range, from, upto))
    }

    /// The offer's first messages are delivered: one for each entry of `bytes_each`, their padded
    /// bytes; the first one starts at `at` in the record's body. For a consumer without acks they are
    /// settled at once and go to `out`. Returns the delivery tag of the first.
    ///
    /// # Panics
    /// If the queue has changed since the offer, or it is more than the offer allows.
    pub fn take(
        &mut self,
        offer: &Offer,
        at: u32,
        bytes_each: &[u32],
        out: &mut Ranges,
    ) -> DeliveryTag {
        let first = offer.first.0;
        let count = u32::try_from(bytes_each.len()).expect("an offer is bounded");
        assert!(count > 0 && count <= offer.messages_max);
        let mut bytes = 0;
        for each in bytes_each {
            assert!(*each > 0);
            bytes += u64::from(*each);
        }
        assert!(bytes <= offer.bytes_room || (offer.any_size && count == 1));
        if offer.source == Source::Read {
            return self.take_read(offer, at, bytes_each);
        }
        self.advance(offer, count);
        self.remember(offer, count, at, bytes);
        self.ready -= u64::from(count);
        if let Some(groups) = &mut self.groups {
            let key = offer.group.expect("its key was read");
            groups.take(key, first, count, offer.slot);
        }

        let consumer = self.consumers.get_mut(offer.slot);
        assert!(consumer.key == offer.key);
        let tag = consumer.unacked.tag_last() + 1;
        match consumer.mode {
            AckMode::Explicit => {
                let earlier = offer.delivery_count;
                consumer.unacked.push(first, earlier, bytes_each);
                consumer.outstanding_bytes += bytes;
                self.unacked += u64::from(count);
                self.unacked_bytes += bytes;
            }
            AckMode::None => {
                consumer.unacked.skip_tags(u64::from(count));
                let last = offer.first.plus(u64::from(count) - 1);
                out.push(SequenceRange::new(offer.first, last));
                if offer.delivery_count > 0 {
                    let span = Returned::new(first, count, offer.delivery_count);
                    self.pending_counts.insert(span);
                }
                self.pending += u64::from(count);
                self.bytes = self.bytes.saturating_sub(bytes);
                self.clear_estimate();
            }
        }
        self.consumers.took(offer.slot, count);
        DeliveryTag(tag)
    }

    /// Takes `count` messages from where the offer found them.
    fn advance(&mut self, offer: &Offer, count: u32) {
        let first = offer.first.0;
        match offer.source {
            Source::Fresh => {
                assert!(first == self.cursor);
                self.cursor += u64::from(count);
            }
            Source::Returned(rank) => {
                assert!(self.returned.first(rank).is_some_and(|s| s.first == first));
                self.take_returned(rank, first, count);
            }
            // It left the others when it was parked.
            Source::Parked => {}
            Source::Read => unreachable!("what is read stays where it is"),
        }
        if self.settings.rank_turn > 0 {
            self.note_passed(offer, count);
        }
    }

    /// Takes the first `count` messages of the first span of a rank, from `first` on.
    fn take_returned(&mut self, rank: u8, first: u64, count: u32) {
        self.returned.take_first(rank, count);
        if rank == 0 {
            // After a recovery returned messages lie ahead of the cursor.
            self.cursor = self.cursor.max(first + u64::from(count));
        }
    }

    /// Messages were taken: whether older ones were passed over.
    fn note_passed(&mut self, offer: &Offer, count: u32) {
        let rank = match offer.source {
            Source::Fresh | Source::Parked | Source::Read => 0,
            Source::Returned(rank) => rank,
        };
        let end = self.durable.min(self.marks.durable());
        let mut lower = (0..rank).filter_map(|rank| self.head_of(rank, end));
        let has_passed = lower.any(|head| head.first < offer.first.0);
        self.passed = match has_passed {
            true => self.passed.saturating_add(count),
            false => 0,
        };
    }

    /// Remembers where the message behind the taken ones starts.
    fn remember(&mut self, offer: &Offer, count: u32, at: u32, bytes: u64) {
        let walked = walked_behind(offer, count, at, bytes);
        match offer.source {
            Source::Fresh => self.fresh_walked = walked,
            Source::Returned(_) | Source::Parked => self.returned_walked = walked,
            Source::Read => unreachable!("its reader remembers"),
        }
    }

    /// The offer's first message does not fit the consumer's byte credit: it is offered nothing
    /// until it settles something or gets other credit.
    ///
    /// # Panics
    /// If the consumer holds nothing: then one message of any size fits.
    pub fn decline(&mut self, offer: &Offer) {
        assert!(!offer.any_size);
        assert!(self.consumers.get(offer.slot).key == offer.key);
        self.consumers.set_short(offer.slot);
    }

    /// The records that hold a fragmented message, in order.
    #[must_use]
    pub fn pieces(&self, sequence: QueueSequence) -> Option<&[Place]> {
        let pieces = self.index.pieces(sequence.0)?;
        Some(&pieces.places)
    }

    // Settling.

    /// Settles a consumer's delivery tags; `first` = 0 means every outstanding one up to `last`. Messages
    /// that are done with go to `out`, as ranges for the ack record: acked ones, and dead ones of a queue
    /// without a dead-letter exchange.
    ///
    /// # Errors
    /// [`Code::UnknownDelivery`] if a tag of the range is not outstanding or, cumulatively, none is or
    /// `last` was never delivered, or there is no such consumer; then nothing has changed.
    pub fn settle(
        &mut self,
        key: ConsumerKey,
        range: SettleRange,
        outcome: Outcome,
        out: &mut Ranges,
    ) -> Result<Settled, Code> {
        if self.is_stream() {
            return self.settle_read(key, range, outcome);
        }
        let slot = self.consumers.find(key).ok_or(Code::UnknownDelivery)?;
        let unacked = &mut self.consumers.get_mut(slot).unacked;
        let mut done = Settled::default();
        let mut buried = (Death::Rejected, Buried::default());
        let mut groups = self.groups.as_deref_mut();
        match outcome {
            Outcome::Reject => {
                let mut grave =
                    Grave::new(self.settings, &mut self.dead, &mut self.pending_counts, out);
                unacked.settle(range.first, range.last, |delivery| {
                    done.messages += 1;
                    done.bytes += u64::from(delivery.bytes);
                    if let Some(groups) = &mut groups {
                        groups.settle(delivery.sequence);
                    }
                    grave.bury(&delivery, Death::Rejected);
                })?;
                buried.1 = grave.done();
            }
            Outcome::Ack => {
                let (mut first, mut last) = (1, 0);
                let counts = &mut self.pending_counts;
                unacked.settle(range.first, range.last, |delivery| {
                    done.messages += 1;
                    done.bytes += u64::from(delivery.bytes);
                    if let Some(groups) = &mut groups {
                        groups.settle(delivery.sequence);
                    }
                    if delivery.earlier > 0 {
                        counts.insert(Returned::new(delivery.sequence, 1, delivery.earlier));
                    }
                    if delivery.sequence != last + 1 {
                        push_range(out, first, last);
                        first = delivery.sequence;
                    }
                    last = delivery.sequence;
                })?;
                push_range(out, first, last);
                self.pending += done.messages;
                self.bytes = self.bytes.saturating_sub(done.bytes);
            }
            Outcome::Requeue => {
                let mut spans = Spans::new();
                let mut home = Home {
                    returned: &mut self.returned,
                    delayed: &mut self.delayed,
                    ranks: &self.ranks,
                    hold: self.settings.durability == Durability::Durable,
                    retry: self.settings.retry,
                    now: self.now,
                };
                let mut grave =
                    Grave::new(self.settings, &mut self.dead, &mut self.pending_counts, out);
                unacked.settle(range.first, range.last, |delivery| {
                    done.messages += 1;
                    done.bytes += u64::from(delivery.bytes);
                    let is_dead = grave.takes_returned(&delivery);
                    if let Some(groups) = &mut groups {
                        groups.came_back(delivery.sequence, is_dead);
                    }
                    if is_dead {
                        return;
                    }
                    if let Some(span) = spans.push(delivery.sequence, delivery.earlier) {
                        home.take_back(span);
                    }
                })?;
                if let Some(span) = spans.finish() {
                    home.take_back(span);
                }
                buried = (Death::DeliveryLimit, grave.done());
                if self.settings.retry.is_none() {
                    self.ready += done.messages - buried.1.messages;
                }
            }
        }
        self.unacked -= done.messages;
        self.unacked_bytes -= done.bytes;
        self.consumers.gave_back(slot, done.bytes);
        self.bury(buried.0, buried.1);
        Ok(done)
    }

    /// Appends the delivery counts of messages that came back since the last call, to be recorded in
    /// the next block. A durable queue offers them again only when [`Queue::counts_durable`] says that
    /// the record is durable: without that wait a crash could leave a count too low (ruling 15).
    pub fn take_counts(&mut self, out: &mut Vec<CountRange>) -> CountsUpto {
        self.returned.take_counts(out)
    }

    /// After a recovery: what was delivered in earlier lives is offered only once this one has recorded
    /// how often ([`Queue::take_counts`]). A mark says "may have been delivered" once, however many
    /// lives it has covered: without the record a second crash would leave counts too low.
    pub fn hold_restored(&mut self) {
        self.returned.hold_all(&mut self.delayed);
    }

    /// Whether messages wait for their delivery counts to be durable.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.returned.is_holding()
    }

    /// The counts handed out up to then are durable.
    pub fn counts_durable(&mut self, upto: CountsUpto) {
        self.returned.release(upto, &mut self.delayed);
    }

    /// The ack record of these messages is durable; each was settled before and is named once. Says
    /// how many live messages each segment has lost.
    ///
    /// # Panics
    /// If one of them was not settled in memory.
    pub fn forget(
        &mut self,
        ranges: &[SequenceRange],
        per_segment: &mut impl FnMut(SegmentIdx, u32),
    ) {
        for range in ranges {
            let (first, last) = (range.first.0, range.last.0);
            assert!(last < self.next && range.count() <= self.pending);
            let found = self.index.forget(first, last, per_segment);
            assert!(found == range.count());
            self.pending -= found;
            self.pending_counts.remove(first, last);
            self.settled.insert_new(first, last);
            if let Some(groups) = &mut self.groups {
                groups.acked_durably(first, last);
            }
        }
        self.ranks.forget(&self.settled);
        if !self.expiry.is_idle() {
            self.expiry.forget(&self.settled);
            if self.index.run_count() == 0 {
                self.expiry.clear();
            }
        }
        if self.index.run_count() == 0 {
            self.ranks.clear();
        }
    }

    /// Drops every message that nobody holds, delayed ones too; their sequences go to `out`, as ranges
    /// for the ack record.
    pub fn purge(&mut self, out: &mut Ranges) -> Settled {
        let gone = Settled {
            messages: self.ready + self.delayed_count(),
            bytes: self.ready_bytes(),
        };
        let mut count = 0;
        let (cursor, apart, counts) = (self.cursor, &self.apart, &mut self.pending_counts);
        let mut drop = |first: u64, last: u64| {
            if first <= last {
                count += last - first + 1;
                push_range(out, first, last);
            }
        };
        let mut drop_span = |span: Returned| {
            if span.deliveries > 0 {
                counts.insert(span);
            }
            // Those ahead of the cursor are dropped with the fresh ones, unless they are set apart.
            drop(span.first, span.last().min(cursor - 1));
            let mut from = span.first.max(cursor);
            while from <= span.last() {
                let at = apart.partition_point(|known| known.1 < from);
                let Some((first, last)) = apart.get(at).filter(|known| known.0 <= span.last())
                else {
                    return;
                };
                drop(from.max(*first), span.last().min(*last));
                from = last + 1;
            }
        };
        self.returned.drain(&mut drop_span);
        self.delayed.drain(|_, span| drop_span(span));
        if let Some(groups) = &mut self.groups {
            groups.forget_waiting(|sequence, deliveries| {
                drop_span(Returned::new(sequence, 1, deliveries));
            });
        }
        while self.cursor < self.next {
            self.skip_apart();
            let settled = self.settled.stretch_from(self.cursor);
            let ahead = [settled, self.apart.front().copied()].into_iter().flatten();
            let end = ahead.map(|(first, _)| first).min().unwrap_or(self.next);
            if self.cursor < end {
                push_range(out, self.cursor, end - 1);
                count += end - self.cursor;
                self.cursor = end;
            }
        }
        assert!(count == gone.messages);
        self.pending += count;
        self.ready = 0;
        self.bytes = self.unacked_bytes + self.dead.bytes();
        self.fresh_run = None;
        gone
    }

    /// Padded bytes that nobody holds, of delayed messages too.
    fn ready_bytes(&self) -> u64 {
        let others = self.unacked_bytes + self.dead.bytes();
        self.bytes.saturating_sub(others)
    }

    /// Without messages there are no bytes, whatever a restart has estimated.
    fn clear_estimate(&mut self) {
        if self.held() == 0 {
            self.bytes = 0;
        }
    }

    // Relocation.

    /// Whether the message is still needed: not durably settled.
    #[must_use]
    pub fn is_live(&self, sequence: QueueSequence) -> bool {
        sequence.0 < self.next && !self.settled.contains(sequence.0)
    }

    /// A message now lies at `place`, alone in its record, with `bytes` padded bytes. Returns where
    /// its old record is, or `None` if the message is not live and nothing has changed.
    ///
    /// # Panics
    /// If the message is fragmented or the bytes pass [`RUN_BYTES_MAX`].
    pub fn moved(&mut self, sequence: QueueSequence, place: Place, bytes: u32) -> Option<Place> {
        if !self.is_live(sequence) {
            return None;
        }
        let run = Run::new(sequence.0, 1, bytes, place).expect("a record is bounded");
        let old = self.index.relocate(sequence.0, run, &self.settled);
        self.fresh_run = None;
        Some(old)
    }

    /// The record at `target` holds `count` messages from `first` on, with `bytes` padded bytes, that
    /// lay in the record at `source`: those that are still live and still there lie at the target
    /// now. Returns how many.
    ///
    /// # Panics
    /// If a number passes [`RUN_MESSAGES_MAX`] or [`RUN_BYTES_MAX`].
    pub fn moved_run(
        &mut self,
        (first, count, bytes): (QueueSequence, u32, u32),
        source: Place,
        target: Place,
    ) -> u32 {
        let run = Run::new(first.0, count, bytes, target).expect("a record is bounded");
        self.fresh_run = None;
        self.index.relocate_run(run, Some(source), &self.settled) as u32
    }

    /// Piece `number` of a fragmented message moved; whether the message is live and lay there.
    pub fn moved_piece(
        &mut self,
        sequence: QueueSequence,
        number: u32,
        source: Place,
        target: Place,
    ) -> bool {
        self.fresh_run = None;
        self.is_live(sequence)
            && self
                .index
                .relocate_piece(sequence.0, number, source, target)
    }

    /// Whether the message is not durably settled and lies, in whole or in part, at `place`.
    pub fn lies_at(&self, sequence: QueueSequence, place: Place) -> bool {
        self.is_live(sequence) && self.index.lies_at(sequence.0, place)
    }

    /// The same for a fragmented message; its old records are those of [`Queue::pieces`] before.
    /// Returns whether the message is live.
    pub fn moved_fragmented(&mut self, sequence: QueueSequence, places: &[Place]) -> bool {
        if !self.is_live(sequence) {
            return false;
        }
        let run = Run::fragmented(sequence.0, places[0]).expect("a place is aligned");
        self.index.relocate_pieces(sequence.0, run, places);
        self.fresh_run = None;
        true
    }

    /// Tells for each run (and each piece of a fragmented message) its segment and how many live
    /// messages it holds there.
    pub fn for_each_live_run(&self, each: impl FnMut(SegmentIdx, u32)) {
        self.index.for_each_live(each);
    }

    /// Where the live messages are, stretch by stretch, in queue order.
    pub fn live_runs(&self) -> Vec<LiveRun> {
        self.index
            .iter()
            .map(|run| LiveRun {
                first: QueueSequence(run.first()),
                count: run.count() as u32,
                place: run.place(),
                skip: run.index_of(run.first()),
                pieces: self
                    .index
                    .pieces(run.first())
                    .filter(|_| run.is_fragmented())
                    .map_or_else(Vec::new, |pieces| pieces.places.clone()),
            })
            .collect()
    }

    /// Entries in the index, and ranges settled out of order: what the queue's memory grows with.
    #[must_use]
    pub fn footprint(&self) -> (usize, usize) {
        (self.index.run_count(), self.settled.span_count())
    }

    /// Checks everything that must hold; O(n). For tests, after every change.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn invariants(&self) {
        self.settled.invariants();
        self.index.invariants(&self.settled);
        self.consumers.invariants();
        self.returned.invariants();
        self.pending_counts.invariants();
        for span in self.pending_counts.iter() {
            assert_eq!(self.settled.count_in(span.first, span.last()), 0);
        }
        assert!(self.durable < self.next && self.cursor <= self.next);
        if self.is_stream() {
            self.stream_invariants();
        }
        assert!(self.settled.ceiling() < self.next);
        let live: u64 = self.index.iter().map(|run| run.live()).sum();
        assert_eq!(live, self.held() + self.pending);
        self.delayed.invariants();
        self.ranks.invariants();
        let mut below = 0;
        for (first, last) in &self.apart {
            assert!(below < *first && first <= last && *last < self.next);
            below = *last;
        }
        self.dead.invariants();
        self.expiry.invariants();
        for (sequence, _) in self.dead.iter() {
            assert!(self.is_past(sequence) && self.is_live(QueueSequence(sequence)));
        }
        assert_eq!(live, self.next - 1 - self.dead());
        if !self.is_stream() {
            let holds = |consumer: &dispatch::Consumer| consumer.unacked.len() as u64;
            assert_eq!(self.unacked, self.consumers.iter().map(holds).sum::<u64>());
            let holds = |consumer: &dispatch::Consumer| consumer.outstanding_bytes;
            assert_eq!(
                self.unacked_bytes,
                self.consumers.iter().map(holds).sum::<u64>()
            );
        }
        // What is returned and not past the cursor counts as fresh.
        let past = |span: Returned| {
            (span.first..=span.last())
                .filter(|s| self.is_past(*s))
                .count()
        };
        let returned: u64 = self
            .returned
            .by_rank()
            .map(|(_, span)| past(span) as u64)
            .sum();
        let settled = match self.cursor {
            cursor if cursor < self.next => self.settled.count_in(cursor, self.next - 1),
            _ => 0,
        };
        let apart = self.apart.iter().filter(|(_, last)| *last >= self.cursor);
        let apart = apart.map(|(first, last)| {
            let first = *first.max(&self.cursor);
            last + 1 - first - self.settled.count_in(first, *last)
        });
        let ahead = self.next - self.cursor - settled - apart.sum::<u64>();
        let parked = self.groups.as_ref().map_or(0, |groups| groups.parked());
        assert_eq!(self.ready, returned + ahead + parked);
        assert!(self.returned.count() <= self.ready);
        if let Some(groups) = &self.groups {
            groups.invariants();
            assert!(
                groups
                    .iter_parked()
                    .all(|(sequence, _)| self.is_past(sequence))
            );
        }
        for (rank, span) in self.returned.by_rank() {
            assert_eq!(self.ranks.of(span.first, span.last()), (rank, span.last()));
        }
        for (_, span) in self.delayed.iter().chain(self.returned.iter_held_delayed()) {
            for sequence in span.first..=span.last() {
                assert!(self.is_past(sequence) && self.is_live(QueueSequence(sequence)));
            }
        }
        let delivered = self.consumers.iter().flat_map(|c| c.unacked.iter());
        for delivery in delivered.filter(|_| !self.is_stream()) {
            assert!(self.is_past(delivery.sequence));
            assert!(self.is_live(QueueSequence(delivery.sequence)));
        }
    }

    /// Whether a message is not fresh: below the cursor, or set apart.
    fn is_past(&self, sequence: u64) -> bool {
        let at = self.apart.partition_point(|known| known.1 < sequence);
        let apart = self.apart.get(at).is_some_and(|known| known.0 <= sequence);
        apart || sequence < self.cursor
    }

    /// Messages durably settled.
    fn dead(&self) -> u64 {
        let spans = self.settled.spans();
        self.settled.floor() + spans.map(|(first, last)| last - first + 1).sum::<u64>()
    }
}

/// What is known of where the message behind the first `count` of an offer starts, which begin at `at` in
/// the record's body.
fn walked_behind(offer: &Offer, count: u32, at: u32, bytes: u64) -> Option<Walked> {
    let offset = u32::try_from(u64::from(at) + bytes).ok();
    offset.filter(|_| !offer.fragmented).map(|offset| Walked {
        place: offer.place,
        base: offer.base,
        index: offer.index + count,
        offset,
    })
}

/// Messages that come back, to be joined where neighbours were delivered equally often.
struct Spans {
    open: Option<(u64, u32, u32)>,
}

impl Spans {
    const fn new() -> Self {
        Self { open: None }
    }

    /// Adds a message that was delivered `earlier` times before it was delivered now; gives out the
    /// span before if it does not join.
    fn push(&mut self, sequence: u64, earlier: u32) -> Option<Returned> {
        match &mut self.open {
            Some((first, count, before))
                if *first + u64::from(*count) == sequence && *before == earlier =>
            {
                *count += 1;
                None
            }
            open => {
                let done = *open;
                *open = Some((sequence, 1, earlier));
                done.map(|(first, count, before)| {
                    Returned::new(first, count, before.saturating_add(1))
                })
            }
        }
    }

    fn finish(self) -> Option<Returned> {
        self.open
            .map(|(first, count, before)| Returned::new(first, count, before.saturating_add(1)))
    }
}

/// Where messages go that come back.
struct Home<'a> {
    returned: &'a mut ReturnedSet,
    delayed: &'a mut Delayed,
    ranks: &'a Ranks,
    /// Until their counts are durable.
    hold: bool,
    retry: Option<Retry>,
    now: expiry::Ms,
}

impl Home<'_> {
    fn take_back(&mut self, span: Returned) {
        let retry = self.retry.filter(|_| !crate::mutant!(RetryAtOnce));
        // What came back together does not all come again together.
        let is_spread = retry.is_some_and(|retry| retry.jitter_percent > 0);
        let mut left = Some(span);
        while let Some(span) = left {
            let last = if is_spread { span.first } else { span.last() };
            left = span.from(last + 1);
            self.take_back_alike(span.upto(last), retry);
        }
    }

    /// Takes back messages that wait equally long.
    fn take_back_alike(&mut self, span: Returned, retry: Option<Retry>) {
        let due = retry.map(|retry| self.now + 1 + retry.wait_ms(span.first, span.deliveries));
        let hold = self.hold && !crate::mutant!(CountBeforeSync);
        match due {
            Some(due) if !hold => self.delayed.insert(due, span),
            Some(_) => self.returned.hold(Held { span, rank: 0, due }),
            None => {
                for_each_rank(self.ranks, span, |rank, span| match hold {
                    true => self.returned.hold(Held { span, rank, due }),
                    false => self.returned.insert(rank, span),
                });
            }
        }
    }
}

/// Tells the parts of a span that have one rank each.
fn for_each_rank(ranks: &Ranks, span: Returned, mut each: impl FnMut(u8, Returned)) {
    if ranks.is_idle() {
        return each(0, span);
    }
    let mut left = Some(span);
    while let Some(span) = left {
        let (rank, upto) = ranks.of(span.first, span.last());
        each(rank, span.upto(upto));
        left = span.from(upto + 1);
    }
}

/// When a message is due that arrived in that millisecond: the delay is over then, whenever in it.
fn due_ms(arrived: expiry::Ms, delay_ms: u32) -> expiry::Ms {
    arrived + 1 + expiry::Ms::from(delay_ms)
}

fn mono_of(ms: expiry::Ms) -> Mono {
    Mono(u64::try_from(ms).unwrap_or(0).saturating_mul(1_000_000))
}

fn ms_of(now: Mono) -> expiry::Ms {
    (now.0 / 1_000_000) as expiry::Ms
}

/// Adds `first..=last` unless it is empty.
fn push_range(out: &mut Ranges, first: u64, last: u64) {
    if first <= last {
        out.push(SequenceRange::new(
            QueueSequence(first),
            QueueSequence(last),
        ));
    }
}
