//! One producer: credit, the publishes not yet confirmed, what confirm they may get.
//! Does not know where messages go.

use std::collections::VecDeque;

use ringpost_wire::control::Level;
use ringpost_wire::ids::{ProducerId, TenantId};
use ringpost_wire::{Code, FRAGMENT_BYTES_MAX, FragmentHead, padded};

use crate::data::stages::Entries;
use crate::data::trace::Arrival;
use crate::ids::{ConnId, Mono};

/// Consecutive publishes that share a fate.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Sequence of the last one.
    pub last: u64,
    /// Messages, as counted against credit.
    pub messages: u32,
    /// Padded bytes, as counted against credit.
    pub bytes: u32,
    /// Other cores that have not answered.
    pub waits: u32,
    /// The local journal block that must be durable, 0 = none.
    pub block: u64,
    /// The level that all targets together reach.
    pub level: Level,
    /// Set when a target refused or was lost: the exception that is told before the confirm.
    pub failed: Option<Code>,
    /// If it is set: how many messages at the start every target took all the same.
    pub kept: u32,
    /// A target took messages that others may have refused: nobody can say then that they are in no
    /// queue (P-39).
    pub stored: bool,
    /// Sequence of the first one (exceptions name a range).
    pub first: u64,
}

/// A large message as it comes, whatever becomes of it: what the next piece must be (P-31).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arriving {
    /// Whole message in bytes.
    pub message_bytes: u32,
    /// Bytes that have come.
    pub arrived: u32,
    /// Our checksum of them.
    pub crc: u32,
    /// What that must be in the end.
    pub crc_expected: u32,
}

/// Where the memory of a large message is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Among the beginnings: only its first pieces may come until there is memory for all of it.
    Beginning,
    /// Among the large messages: there is memory for all of it.
    Whole,
}

/// A large message on its way in. Its pieces are kept until it is whole, so that it takes its place
/// in its queues at once and a slow sender holds nobody up; [`crate::config::Limits`] bounds them.
#[derive(Debug)]
pub struct Assembly {
    /// Whole message in bytes.
    pub message_bytes: u32,
    /// Where that is counted.
    pub room: Room,
    /// Bytes that have arrived.
    pub arrived: u32,
    /// Padded bytes of them that were not called settled, so that no other piece comes meanwhile.
    pub unsettled: u64,
    /// How often in a row the sessions were looked over without a piece of it having come.
    pub silent_sweeps: u32,
    /// The bodies of the fragment frames, back to back; empty if it is refused.
    pub bodies: Vec<u8>,
    /// Set if it is refused: the rest of the pieces is dropped.
    pub refused: Option<Code>,
    /// The first frame was published `mandatory`.
    pub mandatory: bool,
}

impl Assembly {
    /// Bytes of a beginning: the piece that makes itself known, and the one that shows whether its
    /// sender goes on.
    const BEGINNING_BYTES: u32 = 2 * FRAGMENT_BYTES_MAX as u32;

    /// Bytes that may come before there is memory for all of it.
    #[must_use]
    pub const fn beginning_bytes(message_bytes: u32) -> u32 {
        if message_bytes < Self::BEGINNING_BYTES {
            message_bytes
        } else {
            Self::BEGINNING_BYTES
        }
    }

    /// Bytes that are reserved for it in its room.
    #[must_use]
    pub const fn reserved(&self) -> u64 {
        match (self.refused, self.room) {
            (Some(_), _) => 0,
            (None, Room::Beginning) => Self::beginning_bytes(self.message_bytes) as u64,
            (None, Room::Whole) => self.message_bytes as u64,
        }
    }

    /// Takes memory for the bodies that may come, all at once.
    pub fn expect_bytes(&mut self) {
        let pieces = (self.message_bytes as usize).div_ceil(FRAGMENT_BYTES_MAX);
        let all = self.reserved() as usize + pieces * FragmentHead::BYTES;
        self.bodies
            .reserve_exact(all.saturating_sub(self.bodies.len()));
    }

    /// The next piece.
    #[must_use]
    pub const fn next_piece(&self) -> FragmentHead {
        FragmentHead {
            message_bytes: self.message_bytes,
            offset: self.arrived,
        }
    }

    /// Whether the next piece has a place.
    #[must_use]
    pub fn has_place(&self) -> bool {
        let after = self.arrived as usize + self.next_piece().piece_bytes();
        self.room == Room::Whole || after <= Self::beginning_bytes(self.message_bytes) as usize
    }
}

/// What a producer published within its credit and found no room yet; in order.
#[derive(Debug)]
pub enum Held {
    /// Whole messages, checked.
    Batch {
        /// Sequence of the first that is not taken yet.
        first: u64,
        /// How many are not.
        count: u32,
        /// The frame was published `mandatory`.
        mandatory: bool,
        /// The messages of the frame.
        bytes: Vec<u8>,
        /// Bytes of those that are taken.
        taken: usize,
    },
    /// A piece of a large message.
    Piece {
        /// Sequence of the message.
        sequence: u64,
        /// Which piece.
        head: FragmentHead,
        /// The flags of the frame.
        flags: u8,
        /// The body of its frame; nothing if there was no room to keep it.
        body: Vec<u8>,
    },
    /// A large message that is whole.
    Whole {
        /// Its sequence.
        sequence: u64,
        /// Padded bytes of its last piece.
        last_bytes: u32,
        /// Its pieces, in memory of their own.
        assembly: Assembly,
    },
    /// Messages that are refused when those before them are taken.
    Refused {
        /// Sequence of the first.
        first: u64,
        /// How many.
        count: u32,
        /// Their padded bytes.
        bytes: u32,
        /// Why.
        code: Code,
    },
}

impl Held {
    /// Bytes of memory that one takes beside the messages.
    const NOTE_BYTES: u64 = 128;

    /// Bytes of the hold that it takes.
    #[must_use]
    pub fn cost(&self) -> u64 {
        let bytes = match self {
            Self::Batch { bytes, .. } => bytes.len(),
            Self::Piece { body, .. } => body.len(),
            Self::Whole { .. } | Self::Refused { .. } => 0,
        };
        bytes as u64 + Self::NOTE_BYTES
    }
}

/// A producer of a connection on this core.
#[derive(Debug)]
pub struct Producer {
    /// Its connection.
    pub conn: ConnId,
    /// Its channel there.
    pub channel: u16,
    /// The tenant of the connection.
    pub tenant: TenantId,
    /// Its name, chosen by the client.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: u32,
    /// Confirm level asked for.
    pub level: Level,
    /// A durable confirm may fall back to volatile.
    pub downgrade: bool,
    /// Sequence the next publish must have; 0 before the first, which chooses (P-32).
    pub next: u64,
    /// What it numbers below this may be in a queue since before it was opened on this channel.
    pub known_before: u64,
    /// Cumulative credit given: messages, bytes.
    pub granted: (u64, u64),
    /// Cumulative use of it: messages, bytes.
    pub used: (u64, u64),
    /// Cumulative use that has come to rest (durable, refused or lost): messages, bytes.
    pub settled: (u64, u64),
    /// Credit last told to the client: messages, bytes.
    pub told: (u64, u64),
    /// Publishes whose bytes are not yet durable, in order.
    spans: VecDeque<Span>,
    /// Number of the span at the front of `spans`.
    front: u64,
    /// Spans at the front that are confirmed already (levels below durable).
    confirmed: usize,
    /// When what is not confirmed has arrived.
    pub arrivals: Entries,
    /// Is on the list of producers to look at when the turn ends.
    pub dirty: bool,
    /// The block it last put itself on the waiting list for.
    pub waits_for: u64,
    /// Credit beyond the least that is counted as given.
    pub reserved: u64,
    /// A large message of which not all frames have come.
    pub arriving: Option<Arriving>,
    /// The last large message, if it was refused before all of it had come: the rest of its pieces
    /// may be on their way, and is ignored (P-31).
    pub unwanted: Option<Arriving>,
    /// A large message of which pieces were taken, but not all.
    pub assembly: Option<Assembly>,
    /// What was published and waits for room.
    pub held: VecDeque<Held>,
    /// Full queues that block it: while there are some it gets no credit.
    pub blocks: u32,
    /// Is on the list of producers that hold something.
    pub holding: bool,
    /// A large message has yet to be sent to some of the cores that get it: what was published after it
    /// waits, or it would be there first.
    pub is_passing_on: bool,
    /// The `ProducerClose` that is answered when every publish has its outcome (P-39).
    pub closing: Option<u64>,
}

/// What a producer may be told, by [`Producer::settle`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// Everything up to this sequence is settled at this level.
    Confirm(u64, Level),
    /// Sequences `first..=last` failed.
    Refused {
        /// First one.
        first: u64,
        /// Last one.
        last: u64,
        /// Why.
        code: Code,
    },
}

impl Producer {
    /// Where a publish of it that is not confirmed came from, and when: `now` if that is not known.
    #[must_use]
    pub fn arrival(&self, sequence: u64, now: Mono) -> Arrival {
        Arrival {
            conn: self.conn,
            at: self.arrivals.entered(sequence).unwrap_or(now),
        }
    }

    /// A producer that may publish once it is granted credit.
    #[must_use]
    pub fn new(
        conn: ConnId,
        channel: u16,
        tenant: TenantId,
        id: ProducerId,
        epoch: u32,
        level: Level,
    ) -> Self {
        Self {
            conn,
            channel,
            tenant,
            id,
            epoch,
            level,
            downgrade: false,
            next: 0,
            known_before: 0,
            granted: (0, 0),
            used: (0, 0),
            settled: (0, 0),
            told: (0, 0),
            spans: VecDeque::new(),
            front: 1,
            confirmed: 0,
            arrivals: Entries::default(),
            dirty: false,
            waits_for: 0,
            reserved: 0,
            arriving: None,
            unwanted: None,
            assembly: None,
            held: VecDeque::new(),
            blocks: 0,
            holding: false,
            is_passing_on: false,
            closing: None,
        }
    }

    /// Checks that `count` publishes are the next ones, and not the last that can be numbered.
    ///
    /// # Errors
    /// [`Code::SequenceGap`] (P-32).
    pub fn expect(&self, sequence: u64, count: u32) -> Result<(), Code> {
        let is_next = sequence > 0 && (sequence == self.next || self.next == 0);
        if is_next && sequence.checked_add(u64::from(count)).is_some() {
            Ok(())
        } else {
            Err(Code::SequenceGap)
        }
    }

    /// Charges a publish against credit.
    ///
    /// # Errors
    /// [`Code::CreditExceeded`] (P-34).
    pub fn charge(&mut self, messages: u64, bytes: u64) -> Result<(), Code> {
        let used = (self.used.0 + messages, self.used.1 + bytes);
        if used.0 > self.granted.0 || used.1 > self.granted.1 {
            return Err(Code::CreditExceeded);
        }
        self.used = used;
        Ok(())
    }

    /// Whether what it holds begins with a piece that waits for memory for its large message.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        let assembly = self.assembly.as_ref();
        assembly.is_some_and(|assembly| assembly.refused.is_none() && !assembly.has_place())
    }

    /// Whether it is in the middle of a large message for all of which there is memory.
    #[must_use]
    pub fn is_in_a_large_one(&self) -> bool {
        let assembly = self.assembly.as_ref();
        assembly.is_some_and(|assembly| assembly.room == Room::Whole)
    }

    /// A piece of a large message that was refused before it came (P-31): it counts like others.
    ///
    /// # Errors
    /// It is not the next one, or beyond credit.
    pub fn ignore_piece(&mut self, mut unwanted: Arriving, head: FragmentHead) -> Result<(), Code> {
        if unwanted.message_bytes != head.message_bytes || unwanted.arrived != head.offset {
            return Err(Code::BodyMalformed);
        }
        let bytes = padded(head.piece_bytes()) as u64;
        self.charge(0, bytes)?;
        self.settled.1 += bytes;
        unwanted.arrived += head.piece_bytes() as u32;
        self.unwanted = (!head.is_last()).then_some(unwanted);
        Ok(())
    }

    /// Credit given and not come to rest, in messages and bytes: what this producer may still cause.
    #[must_use]
    pub const fn exposure(&self) -> (u64, u64) {
        (
            self.granted.0 - self.settled.0,
            self.granted.1 - self.settled.1,
        )
    }

    /// Adds a span, merged with the one before it where they share a fate. Returns its number.
    pub fn push(&mut self, span: Span) -> u64 {
        if let Some(last) = self.spans.back_mut()
            && last.waits == 0
            && span.waits == 0
            && last.block == span.block
            && last.level == span.level
            && last.failed == span.failed
            && (last.failed.is_none() || (last.kept == 0 && span.kept == 0))
            && last.stored == span.stored
            && self.spans.len() > self.confirmed
        {
            let last = self.spans.back_mut().expect("it was just looked at");
            last.last = span.last;
            last.kept += span.kept;
            last.messages += span.messages;
            last.bytes += span.bytes;
        } else {
            self.spans.push_back(span);
        }
        self.front + self.spans.len() as u64 - 1
    }

    /// The number that the next span gets. A span that waits is never merged, so it is final.
    #[must_use]
    pub fn next_span(&self) -> u64 {
        self.front + self.spans.len() as u64
    }

    /// Whether the client should hear of its new credit without waiting for a confirm: it has used
    /// half of what it was told, or waits for nothing and may not publish whatever it wants. What it
    /// waits for is that bytes settle: a large message is on its way until its last piece.
    //= P-33
    #[must_use]
    pub fn wants_credit_told(&self) -> bool {
        let news = (self.granted.0 - self.told.0, self.granted.1 - self.told.1);
        // A client that guesses may have used what it was given but not told of.
        let left = (
            self.told.0.saturating_sub(self.used.0),
            self.told.1.saturating_sub(self.used.1),
        );
        let rests = self.used.1 == self.settled.1
            && (self.used.0 == self.settled.0 || !crate::mutant!(CreditUntold));
        let is_short = left.1 < FRAGMENT_BYTES_MAX as u64 && news.1 > 0;
        news.0 > left.0 || news.1 > left.1 || (rests && is_short)
    }

    /// One of the other cores that span `number` waits for has answered: its queues took all of it,
    /// or refused it but for the first `taken` messages.
    pub fn answered(&mut self, number: u64, outcome: Result<(), Code>, taken: u32) {
        let idx = number
            .checked_sub(self.front)
            .expect("a span waits until all have answered");
        let span = &mut self.spans[idx as usize];
        span.waits -= 1;
        match outcome {
            Ok(()) => span.stored = true,
            Err(code) => {
                // Who cannot tell may have it, whatever the others say.
                let is_unsure = code == Code::Indeterminate && !crate::mutant!(RefusedThoughUnsure);
                span.stored |= is_unsure || (span.failed.is_some() && span.kept != taken);
                span.kept = span.kept.min(taken);
                span.failed = span.failed.or(Some(code));
            }
        }
    }

    /// The queues of this core that span `number` waits for took all of it, or refused it but for the
    /// first `taken` messages; what they took is durable with this block, 0 = at once.
    pub fn stored(&mut self, number: u64, block: u64, outcome: Result<(), Code>, taken: u32) {
        self.answered(number, outcome, taken);
        if outcome.is_ok() || taken > 0 {
            let idx = number - self.front;
            self.spans[idx as usize].block = block;
        }
    }

    /// Whether a queue has taken messages of span `number`.
    #[must_use]
    pub fn is_stored(&self, number: u64) -> bool {
        let idx = number.checked_sub(self.front);
        let span = idx.and_then(|idx| self.spans.get(idx as usize));
        span.is_some_and(|span| span.stored)
    }

    /// Every span that waits for a block after `durable` is lost with the journal.
    pub fn journal_failed(&mut self, durable: u64) {
        //= P-39
        for span in &mut self.spans {
            if span.block > durable {
                span.failed = Some(Code::Indeterminate);
                span.kept = 0;
                span.block = 0;
            }
        }
    }

    /// Whether the client was told what became of everything that it published.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.confirmed == self.spans.len() && self.held.is_empty()
    }

    /// Takes what has come to rest, given the durable block, and tells in order what to say.
    pub fn settle(&mut self, durable: u64, mut say: impl FnMut(Word)) {
        //= P-35
        let mut through: Option<(u64, Level)> = None;
        // First what may be confirmed, then what is at rest: at level volatile a confirm is earlier.
        for span in self.spans.iter().skip(self.confirmed) {
            let early = self.level != Level::Durable && span.level != Level::Durable;
            let is_waiting = span.waits > u32::from(crate::mutant!(FanOutOneShort));
            if is_waiting || (span.block > durable && !early) {
                break;
            }
            self.confirmed += 1;
            if let Some(code) = span.failed {
                // Told before the confirm that passes it.
                if let Some((last, level)) = through.take() {
                    say(Word::Confirm(last, level));
                }
                let first = span.first + u64::from(span.kept);
                // An earlier attempt may have gone to other queues, or other cores.
                let unsure_before = match code {
                    Code::SequenceTooOld | Code::JournalFailed => first,
                    _ if crate::mutant!(RefusedThoughStored) => first,
                    _ if span.stored => span.last + 1,
                    _ => self.known_before.clamp(first, span.last + 1),
                };
                for (first, end, code) in [
                    (first, unsure_before, Code::Indeterminate),
                    (unsure_before, span.last + 1, code),
                ] {
                    if first < end {
                        let last = end - 1;
                        say(Word::Refused { first, last, code });
                    }
                }
                through = Some((span.last, span.level));
                continue;
            }
            match through {
                Some((last, level)) if level != span.level => {
                    say(Word::Confirm(last, level));
                    through = Some((span.last, span.level));
                }
                _ => through = Some((span.last, span.level)),
            }
        }
        if let Some((last, level)) = through {
            say(Word::Confirm(last, level));
        }
        while let Some(span) = self.spans.front() {
            if self.confirmed == 0 || span.block > durable {
                break;
            }
            if span.failed.is_none() || !crate::mutant!(RefusedCreditLost) {
                self.settled.0 += u64::from(span.messages);
                self.settled.1 += u64::from(span.bytes);
            }
            self.spans.pop_front();
            self.front += 1;
            self.confirmed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn producer(level: Level) -> Producer {
        let mut producer = Producer::new(ConnId(1), 1, TenantId(1), ProducerId(9), 0, level);
        producer.granted = (1_000, 1_000_000);
        producer
    }

    fn span(first: u64, last: u64, block: u64, waits: u32, level: Level) -> Span {
        let messages = (last + 1 - first) as u32;
        Span {
            first,
            last,
            messages,
            bytes: 64 * messages,
            waits,
            block,
            level,
            failed: None,
            kept: messages,
            stored: false,
        }
    }

    fn words(producer: &mut Producer, durable: u64) -> Vec<Word> {
        let mut words = Vec::new();
        producer.settle(durable, |word| words.push(word));
        words
    }

    #[test]
    fn confirms_follow_the_durable_prefix() {
        let mut producer = producer(Level::Durable);
        producer.push(span(1, 4, 1, 0, Level::Durable));
        producer.push(span(5, 6, 1, 0, Level::Durable));
        producer.push(span(7, 7, 2, 0, Level::Durable));
        assert_eq!(words(&mut producer, 0), []);
        assert_eq!(words(&mut producer, 1), [Word::Confirm(6, Level::Durable)]);
        assert_eq!(producer.settled, (6, 384));
        assert_eq!(words(&mut producer, 2), [Word::Confirm(7, Level::Durable)]);
        assert!(producer.spans.is_empty());
    }

    #[test]
    fn another_core_holds_back_the_confirm() {
        let mut producer = producer(Level::Durable);
        let number = producer.push(span(1, 1, 1, 1, Level::Durable));
        producer.push(span(2, 2, 1, 0, Level::Durable));
        assert_eq!(words(&mut producer, 1), []);
        producer.answered(number, Ok(()), 0);
        assert_eq!(words(&mut producer, 1), [Word::Confirm(2, Level::Durable)]);
    }

    //= P-35
    #[test]
    fn refused_is_said_only_of_what_is_in_no_queue() {
        let refused = |first, last, code| Word::Refused { first, last, code };
        let confirm = Word::Confirm(9, Level::Durable);
        let full = Err(Code::QueueFull);
        type Answers<'a> = &'a [(Result<(), Code>, u32)];
        let check = |answers: Answers<'_>, expected: &[Word]| {
            let mut producer = producer(Level::Durable);
            let waits = answers.len() as u32;
            let number = producer.push(span(0, 9, 0, waits, Level::Durable));
            for (outcome, taken) in answers {
                assert_eq!(words(&mut producer, 1), []);
                producer.answered(number, *outcome, *taken);
            }
            assert_eq!(words(&mut producer, 1), expected, "{answers:?}");
        };
        check(&[(Ok(()), 0), (Ok(()), 0)], &[confirm]);
        check(&[(full, 0)], &[refused(0, 9, Code::QueueFull), confirm]);
        check(&[(full, 4)], &[refused(4, 9, Code::QueueFull), confirm]);
        check(
            &[(full, 0), (full, 0)],
            &[refused(0, 9, Code::QueueFull), confirm],
        );
        for answers in [[(Ok(()), 0), (full, 4)], [(full, 4), (Ok(()), 0)]] {
            check(&answers, &[refused(4, 9, Code::Indeterminate), confirm]);
        }
        let unsure = Err(Code::Indeterminate);
        for answers in [[(unsure, 0), (full, 0)], [(full, 0), (unsure, 0)]] {
            check(&answers, &[refused(0, 9, Code::Indeterminate), confirm]);
        }
        for answers in [[(full, 7), (full, 4)], [(full, 4), (full, 7)]] {
            check(&answers, &[refused(4, 9, Code::Indeterminate), confirm]);
        }
    }

    #[test]
    fn exceptions_come_before_the_confirm_that_passes_them() {
        let mut producer = producer(Level::Durable);
        producer.push(span(1, 1, 1, 0, Level::Durable));
        producer.push(Span {
            failed: Some(Code::QueueFull),
            kept: 0,
            ..span(2, 3, 0, 0, Level::Durable)
        });
        producer.push(span(4, 4, 1, 0, Level::Durable));
        assert_eq!(
            words(&mut producer, 1),
            [
                Word::Confirm(1, Level::Durable),
                Word::Refused {
                    first: 2,
                    last: 3,
                    code: Code::QueueFull
                },
                Word::Confirm(4, Level::Durable),
            ]
        );
    }

    #[test]
    fn a_volatile_confirm_is_early_but_its_credit_is_not() {
        let mut producer = producer(Level::Volatile);
        producer.push(span(1, 2, 1, 0, Level::Volatile));
        assert_eq!(words(&mut producer, 0), [Word::Confirm(2, Level::Volatile)]);
        assert_eq!(producer.settled, (0, 0));
        // A later span must not be merged into a confirmed one.
        producer.push(span(3, 3, 1, 0, Level::Volatile));
        assert_eq!(words(&mut producer, 0), [Word::Confirm(3, Level::Volatile)]);
        assert_eq!(words(&mut producer, 1), []);
        assert_eq!(producer.settled, (3, 192));
    }

    //= P-39
    #[test]
    fn a_failed_journal_never_blocks_the_rest() {
        let mut producer = producer(Level::Durable);
        producer.push(span(1, 2, 5, 0, Level::Durable));
        producer.journal_failed(4);
        assert_eq!(
            words(&mut producer, 4),
            [
                Word::Refused {
                    first: 1,
                    last: 2,
                    code: Code::Indeterminate
                },
                Word::Confirm(2, Level::Durable),
            ]
        );
    }

    //= P-33
    #[test]
    fn a_large_message_hears_of_credit_for_its_next_piece() {
        let (piece, used) = (FRAGMENT_BYTES_MAX as u64, 5 << 20);
        for (given, known) in [(1.0, 0.5), (1.0, 0.9), (1.5, 0.8), (1.9, 0.99), (1.9, 1.0)] {
            let bytes = |pieces: f64| (pieces * piece as f64) as u64;
            let mut producer = producer(Level::Durable);
            producer.granted = (10, used + bytes(given));
            producer.told = (10, used + bytes(known));
            producer.charge(1, used).expect("it has credit");
            // Its pieces have come to rest; the message has not.
            producer.settled.1 = used;
            let is_known = known >= 1.0;
            assert_eq!(
                producer.wants_credit_told(),
                !is_known,
                "{known} of {given}"
            );
        }
    }

    //= P-34
    #[test]
    fn credit_is_charged() {
        let mut producer = producer(Level::Durable);
        assert_eq!(producer.charge(1_000, 1_000_000), Ok(()));
        assert_eq!(producer.charge(1, 0), Err(Code::CreditExceeded));
    }
}
