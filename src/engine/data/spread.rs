//! Publishes of one turn that go to many queues, kept until the turn ends and then put into the
//! journal queue by queue, so that what one queue gets is one run (ADR 0014). Decides when that is and
//! tells producers what came of it; does not know routes, limits or how a block is written.
//!
//! Only what was judged and is sure of its place is kept: messages for one durable queue of this core
//! that has no limit. Until they have their place nothing else goes to the same queue, so its order
//! stays; and nothing is stepped that could see that they are not there yet.

use ringpost_wire::Code;
use ringpost_wire::ids::{ProducerId, QueueId, Sequence};

use crate::Effects;
use crate::data::admit::{Done, Stop};
use crate::data::flow::Flow;
use crate::data::journal::RunHead;
use crate::data::notes;
use crate::data::producer::Span;
use crate::data::publish::Group;
use crate::data::route::Target;
use crate::effect::Buffers;

/// Most bytes kept: a turn's worth of what a socket gives. Beyond it nothing gets cheaper.
const BYTES_MAX: usize = 2 << 20;
/// Of the hold for publishes that wait, one part in so many may be kept here.
const HOLD_PART: u64 = 4;
/// Bytes of one run, as part of the largest: a run does not go over the end of a block, and what is
/// left of one must be little.
const RUN_PART: usize = 8;
/// Most messages of one run.
const RUN_MESSAGES_MAX: usize = 1_024;
/// The end of a chain.
const NONE: u32 = u32::MAX;

/// Messages of one producer for one queue that came one after another.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Who published them, among [`Spread::origins`].
    origin: u32,
    /// Number of their span.
    span: u64,
    /// Sequence of the first.
    first: u64,
    /// How many.
    count: u32,
    /// Where they begin, and their padded bytes.
    start: u32,
    bytes: u32,
    /// The next part for the same queue.
    next: u32,
}

/// A queue and its parts, in the order in which they came.
#[derive(Clone, Copy, Debug)]
struct Chain {
    queue: QueueId,
    first: u32,
    last: u32,
}

/// A producer with parts. It may be gone when they get their place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Origin {
    key: u64,
    producer: ProducerId,
    epoch: u32,
}

/// What is kept.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    chains: Vec<Chain>,
    /// Chains at the front that have their place.
    placed: usize,
    origins: Vec<Origin>,
    /// What is left found no room when it was tried last.
    is_stuck: bool,
    // Scratch, kept for its memory.
    run: Vec<u8>,
    sequences: Vec<u64>,
    note: Vec<u8>,
}

impl Spread {
    /// Whether nothing is kept.
    pub(crate) const fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether what is kept waits for room: nothing more may be begun.
    pub(crate) const fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Whether something is kept for a queue that says it would be at `at`.
    fn is_for(&self, queue: QueueId, at: u32) -> bool {
        let chain = self.chains.get(at as usize);
        chain.is_some_and(|chain| chain.queue == queue) && at as usize >= self.placed
    }

    /// Bytes of memory that it takes.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + self.parts.len() * size_of::<Part>()
    }

    fn add(&mut self, at: u32, queue: QueueId, origin: Origin, span: u64, group: Group<'_>) -> u32 {
        let place = match self.origins.last() {
            Some(last) if *last == origin => self.origins.len() - 1,
            _ => {
                let known = self.origins.iter().position(|known| *known == origin);
                known.unwrap_or_else(|| {
                    self.origins.push(origin);
                    self.origins.len() - 1
                })
            }
        };
        let idx = self.parts.len() as u32;
        self.parts.push(Part {
            origin: place as u32,
            span,
            first: group.first,
            count: group.count,
            start: self.bytes.len() as u32,
            bytes: group.bytes.len() as u32,
            next: NONE,
        });
        self.bytes.extend_from_slice(group.bytes);
        match self.chains.get_mut(at as usize) {
            Some(chain) if chain.queue == queue => {
                self.parts[chain.last as usize].next = idx;
                chain.last = idx;
                at
            }
            _ => {
                self.chains.push(Chain {
                    queue,
                    first: idx,
                    last: idx,
                });
                self.chains.len() as u32 - 1
            }
        }
    }

    /// A part as it came.
    fn group(&self, part: u32) -> Group<'_> {
        let part = self.parts[part as usize];
        Group {
            first: part.first,
            count: part.count,
            bytes: &self.bytes[part.start as usize..(part.start + part.bytes) as usize],
            mandatory: false,
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
        self.chains.clear();
        self.origins.clear();
        self.placed = 0;
        self.is_stuck = false;
    }

    /// Puts the parts of one run together: from the first of a chain, as many as one producer
    /// published and fit. Returns how many parts.
    fn gather(&mut self, first: u32, bytes_max: usize) -> usize {
        self.run.clear();
        self.sequences.clear();
        let origin = self.parts[first as usize].origin;
        let mut at = first;
        let mut parts = 0;
        while at != NONE {
            let part = self.parts[at as usize];
            let bytes = self.run.len() + part.bytes as usize;
            let messages = self.sequences.len() + part.count as usize;
            let is_more = bytes <= bytes_max && messages <= RUN_MESSAGES_MAX;
            if part.origin != origin || (parts > 0 && !is_more) {
                break;
            }
            let range = part.start as usize..(part.start + part.bytes) as usize;
            self.run.extend_from_slice(&self.bytes[range]);
            let sequences = part.first..part.first + u64::from(part.count);
            self.sequences.extend(sequences);
            parts += 1;
            at = part.next;
        }
        parts
    }
}

impl Flow {
    /// The most bytes of messages for one queue that are kept as one.
    fn spread_bytes_max(&self) -> usize {
        self.journal.body_bytes_max() as usize / RUN_PART
    }

    /// Keeps a group that is not all of its frame until the end of the turn, if it may be kept.
    pub(super) fn keep_spread(&mut self, key: u64, group: Group<'_>, targets: &[Target]) -> bool {
        let &[target] = targets else {
            return false;
        };
        let bytes = group.bytes.len();
        let room = (self.config.limits.hold_bytes_max / HOLD_PART).min(BYTES_MAX as u64) as usize;
        if target.core != self.config.core
            || !target.durable
            || self.spread.is_stuck
            || bytes > self.spread_bytes_max()
            || group.count as usize > RUN_MESSAGES_MAX
            || self.spread.cost() + bytes > room
            || !self.has_turn(targets, bytes)
        {
            return false;
        }
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let (producer_id, epoch) = (producer.id, producer.epoch);
        // Whoever is refused is told so elsewhere.
        let Ok(level) = self.judge(producer, targets, None, group.mandatory) else {
            return false;
        };
        let queue = target.queue;
        if !self.dedup.is_ahead(producer_id, epoch, queue, group.first) {
            return false;
        }
        let Some(state) = self.queues.get_mut(queue).filter(|s| !s.queue.is_limited()) else {
            return false;
        };
        let origin = Origin {
            key,
            producer: producer_id,
            epoch,
        };
        let producer = self.producers.get(key).expect("its frame is being stepped");
        let span = producer.next_span();
        state.spread_at = self.spread.add(state.spread_at, queue, origin, span, group);
        self.held_bytes += (bytes + size_of::<Part>()) as u64;
        let waiting = Span {
            level,
            waits: 1,
            ..Span::of(group)
        };
        self.push_span(key, waiting);
        true
    }

    /// Gives what is kept its place before something else goes to these queues, if they have some of
    /// it. Returns whether they have none any more.
    pub(super) fn place_spread_before<B: Buffers>(
        &mut self,
        targets: &[Target],
        buffers: &mut B,
        effects: &mut Effects,
    ) -> bool {
        if crate::mutant!(SpreadOvertaken) || !self.is_spread_for(targets) {
            return true;
        }
        self.place_spread(buffers, effects);
        !self.is_spread_for(targets)
    }

    fn is_spread_for(&self, targets: &[Target]) -> bool {
        let is_for = |target: &Target| {
            let state = self.queues.get(target.queue);
            state.is_some_and(|state| self.spread.is_for(state.id, state.spread_at))
        };
        !self.spread.is_empty() && targets.iter().any(is_for)
    }

    /// Gives what is kept its place, as far as there is room: queue by queue.
    pub(crate) fn place_spread<B: Buffers>(&mut self, buffers: &mut B, effects: &mut Effects) {
        if self.spread.is_empty() {
            return;
        }
        let mut spread = std::mem::take(&mut self.spread);
        // What is under way has its numbers in its queues already.
        spread.is_stuck = self.underway.is_some();
        while !spread.is_stuck
            && let Some(chain) = spread.chains.get(spread.placed).copied()
        {
            let first = self.place_chain(&mut spread, chain, buffers, effects);
            spread.is_stuck = first != NONE;
            if spread.is_stuck {
                spread.chains[spread.placed].first = first;
            } else {
                spread.placed += 1;
            }
        }
        if !spread.is_stuck {
            self.held_bytes -= spread.cost() as u64;
            spread.clear();
        }
        self.spread = spread;
    }

    /// Appends the parts of a chain. Returns the first one that must wait.
    fn place_chain<B: Buffers>(
        &mut self,
        spread: &mut Spread,
        chain: Chain,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> u32 {
        let bytes_max = self.spread_bytes_max();
        let mut at = chain.first;
        while at != NONE {
            let origin = spread.origins[spread.parts[at as usize].origin as usize];
            let first = spread.parts[at as usize].first;
            let queue = chain.queue;
            let (producer, epoch) = (origin.producer, origin.epoch);
            let (parts, appended) = if self.dedup.is_ahead(producer, epoch, queue, first) {
                let parts = spread.gather(at, bytes_max);
                let appended = self.append_gathered(spread, queue, origin, buffers, effects);
                (parts, appended)
            } else {
                // Another connection of the same producer has published it too.
                let group = spread.group(at);
                (1, self.append_again(queue, origin, group, buffers, effects))
            };
            let (block, outcome) = match appended {
                Err(Stop::Wait) => return at,
                Err(Stop::Disk) => (0, Err(Code::DiskFull)),
                Err(Stop::Refused(code)) => (0, Err(code)),
                Ok(block) => (block, Ok(())),
            };
            for _ in 0..parts {
                let part = spread.parts[at as usize];
                self.span_stored(origin.key, part.span, block, outcome, 0);
                at = part.next;
            }
        }
        NONE
    }

    /// Appends what was gathered for a queue, all or nothing. Returns the block it is in, 0 = none.
    fn append_gathered<B: Buffers>(
        &mut self,
        spread: &mut Spread,
        queue: QueueId,
        origin: Origin,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<u64, Stop> {
        let Some(state) = self.queues.get_mut(queue) else {
            // Deleted since, with everything in it.
            return Ok(0);
        };
        if state.damaged {
            return Err(Stop::Refused(Code::QueueDamaged));
        }
        let (first, last) = match *spread.sequences {
            [first, .., last] => (first, last),
            [first] => (first, first),
            [] => unreachable!("a part has messages"),
        };
        let count = spread.sequences.len() as u32;
        let head = RunHead {
            producer: origin.producer,
            producer_epoch: origin.epoch,
            producer_sequence: Sequence(first),
            ..RunHead::of_queue(state.partition, queue, state.queue.next_sequence())
        };
        let is_consecutive = last - first + 1 == u64::from(count);
        let appended = if is_consecutive {
            self.journal
                .append_run(buffers, effects, &head, count, &spread.run)
        } else {
            spread.note.clear();
            notes::encode_sequences(&spread.sequences, &mut spread.note);
            self.journal
                .append_scattered(buffers, effects, &head, count, &spread.run, &spread.note)
        };
        let to = appended.map_err(Stop::of)?;
        state.took(head.queue_sequence, count, &spread.run, to, self.now);
        if self.tracer.is_armed() {
            let sequences = &spread.sequences;
            self.trace_appended(&head, &spread.run, |idx| sequences[idx]);
        }
        //= P-38
        self.dedup
            .store_each(origin.producer, origin.epoch, queue, &spread.sequences);
        Ok(self.appended(queue))
    }

    /// Appends what of a part is not stored yet. What was appended before it had to wait is known by
    /// then, so all of it can be tried again.
    fn append_again<B: Buffers>(
        &mut self,
        queue: QueueId,
        origin: Origin,
        group: Group<'_>,
        buffers: &mut B,
        effects: &mut Effects,
    ) -> Result<u64, Stop> {
        let from = (origin.producer, origin.epoch);
        let put = self.append_some(queue, from, group, Done::default(), buffers, effects);
        match put.stop {
            None => Ok(put.block),
            Some(Stop::Disk | Stop::Refused(_)) if put.done.messages > 0 => {
                Err(Stop::Refused(Code::Indeterminate))
            }
            Some(stop) => Err(stop),
        }
    }

    /// The last sequence of a producer among what is kept.
    pub(super) fn spread_of(&self, producer: ProducerId) -> Option<u64> {
        let parts = self.spread.parts.iter().filter(|part| {
            let origin = self.spread.origins[part.origin as usize];
            origin.producer == producer
        });
        parts
            .map(|part| part.first + u64::from(part.count) - 1)
            .max()
    }

    /// Gives up what is kept: the broker shuts down and there was no room.
    pub(super) fn abandon_spread(&mut self) {
        let mut spread = std::mem::take(&mut self.spread);
        for chain in &spread.chains[spread.placed..] {
            let mut at = chain.first;
            while at != NONE {
                let part = spread.parts[at as usize];
                let origin = spread.origins[part.origin as usize];
                self.span_stored(origin.key, part.span, 0, Err(Code::Indeterminate), 0);
                at = part.next;
            }
        }
        self.held_bytes -= spread.cost() as u64;
        spread.clear();
        self.spread = spread;
    }
}
