//! The consumers of one priority that have room, in the order of their queue's policy.
//! Does not know credit; see `dispatch.rs`.

use std::collections::BTreeSet;

use super::heap::Heap;
use super::ring::Ring;
use super::settings::Policy;
use super::{NONE, Random, Slots, TURN_MESSAGES_MAX, share};

/// Most messages of a turn where the policy is not round robin: a turn is what shares may be off by.
const TURN_SHORT_MAX: u32 = 16;
/// What a message of a consumer with weight 1 adds to its rank. A queue would have to deliver 2^48 of
/// them for a rank to be too large.
const WEIGHT_UNIT: u64 = 1 << 16;
/// Places of a consumer among the keys: more would share them out more evenly and take more memory.
const POINTS: u64 = 16;
/// Consumers with a place behind a key that are asked whether they have room for it.
const PROBES: usize = 8;
/// Messages that a consumer may be beyond its bound: with few, a share says nothing.
const SLACK: u64 = 16;
/// Messages after which what was given before counts half as much as what comes; per consumer.
const HALF_LIFE: u64 = 1_024;
/// The unit of a message in `Sticky` doubles up to here, then all loads are scaled down.
const UNIT_MAX: u64 = 1 << 30;

/// The consumers of one priority.
pub(super) struct Line {
    pub(super) priority: i8,
    /// Consumers of this priority, with room and without.
    pub(super) members: u32,
    kind: Kind,
}

enum Kind {
    RoundRobin(Ring),
    Random(Bag),
    Weighted(Ranked),
    LeastOutstanding(Ranked),
    Sticky(Box<Sticky>),
}

/// Consumers in no order, one of them chosen by chance.
#[derive(Default)]
struct Bag {
    slots: Vec<u32>,
    turn: Option<Turn>,
}

/// Consumers by rank.
#[derive(Default)]
struct Ranked {
    heap: Heap,
    turn: Option<Turn>,
    /// Of weights: the rank of who was chosen last, which those who come back start from. Else counts
    /// turns, so that of equal ones the one that waited longest is next.
    clock: u64,
}

/// Whose turn it is, and what it may still take in it.
#[derive(Clone, Copy)]
struct Turn {
    slot: u32,
    left: u32,
}

/// Consumers by the keys of messages: consistent hashing with bounded loads. A load is the number of
/// messages that a consumer got, older ones counting less and less.
struct Sticky {
    /// Those with room, by their load.
    heap: Heap,
    /// Where every consumer stands among the keys, with room or without.
    points: BTreeSet<(u64, u32)>,
    /// Sum of the loads of those with room.
    load: u64,
    /// What a message adds to a load now.
    unit: u64,
    /// Messages until it doubles.
    until_double: u64,
    priority: i8,
}

impl Line {
    pub(super) fn new(policy: Policy, priority: i8) -> Self {
        let kind = match policy {
            Policy::RoundRobin => Kind::RoundRobin(Ring::new()),
            Policy::Random => Kind::Random(Bag::default()),
            Policy::Weighted => Kind::Weighted(Ranked::default()),
            Policy::LeastOutstanding => Kind::LeastOutstanding(Ranked::default()),
            Policy::Sticky(_) => Kind::Sticky(Box::new(Sticky::new(priority))),
        };
        Self {
            priority,
            members: 0,
            kind,
        }
    }

    /// Consumers with room.
    pub(super) fn len(&self) -> u32 {
        match &self.kind {
            Kind::RoundRobin(ring) => ring.len(),
            Kind::Random(bag) => bag.slots.len() as u32,
            Kind::Weighted(ranked) | Kind::LeastOutstanding(ranked) => ranked.heap.len(),
            Kind::Sticky(sticky) => sticky.heap.len(),
        }
    }

    /// A consumer of this priority has come, or goes.
    pub(super) fn joins(&mut self, slot: u32, joined: u64) {
        self.members += 1;
        if let Kind::Sticky(sticky) = &mut self.kind {
            sticky.points.extend(points(slot, joined));
        }
    }

    pub(super) fn parts(&mut self, slot: u32, joined: u64) {
        self.members -= 1;
        if let Kind::Sticky(sticky) = &mut self.kind {
            for point in points(slot, joined) {
                sticky.points.remove(&point);
            }
        }
    }

    pub(super) fn enter(&mut self, slots: &mut Slots, slot: u32) {
        match &mut self.kind {
            Kind::RoundRobin(ring) => ring.enter(slots, slot),
            Kind::Random(bag) => {
                slots.get_mut(slot).before = bag.slots.len() as u32;
                bag.slots.push(slot);
            }
            Kind::Weighted(ranked) => {
                // Who had no room has missed its turns.
                let rank = &mut slots.get_mut(slot).rank;
                rank.0 = rank.0.max(ranked.clock);
                ranked.heap.enter(slots, slot);
            }
            Kind::LeastOutstanding(ranked) => {
                slots.get_mut(slot).rank_by_held();
                ranked.heap.enter(slots, slot);
            }
            Kind::Sticky(sticky) => sticky.enter(slots, slot),
        }
    }

    pub(super) fn leave(&mut self, slots: &mut Slots, slot: u32) {
        match &mut self.kind {
            Kind::RoundRobin(ring) => ring.leave(slots, slot),
            Kind::Random(bag) => {
                let at = slots.get(slot).before as usize;
                bag.slots.swap_remove(at);
                if let Some(moved) = bag.slots.get(at) {
                    slots.get_mut(*moved).before = at as u32;
                }
                slots.get_mut(slot).before = NONE;
                bag.turn = bag.turn.filter(|turn| turn.slot != slot);
            }
            Kind::Weighted(ranked) | Kind::LeastOutstanding(ranked) => {
                ranked.heap.leave(slots, slot);
                ranked.turn = ranked.turn.filter(|turn| turn.slot != slot);
            }
            Kind::Sticky(sticky) => {
                sticky.heap.leave(slots, slot);
                sticky.load -= slots.get(slot).rank.0;
            }
        }
    }

    /// Whose turn it is and what it may take; `None` if the message's key says that.
    pub(super) fn turn(
        &mut self,
        slots: &Slots,
        random: &mut Random,
        ready: u64,
    ) -> Option<(u32, u32)> {
        let len = self.len();
        let fair = || share(ready, len, TURN_SHORT_MAX);
        let first = |heap: &Heap| heap.first().expect("a line that is asked has room");
        let turn = match &mut self.kind {
            Kind::RoundRobin(ring) => return Some(ring.turn(ready)),
            Kind::Sticky(_) => return None,
            Kind::Random(bag) => bag.turn.get_or_insert_with(|| {
                let at = random.below(u64::from(len)) as usize;
                let slot = bag.slots[at];
                Turn { slot, left: fair() }
            }),
            Kind::Weighted(Ranked { heap, turn, clock }) => turn.get_or_insert_with(|| {
                let slot = first(heap);
                let consumer = slots.get(slot);
                *clock = consumer.rank.0;
                let left = fair().min(u32::from(consumer.traits.weight));
                Turn { slot, left }
            }),
            Kind::LeastOutstanding(Ranked { heap, turn, .. }) => turn.get_or_insert_with(|| {
                let slot = first(heap);
                // Until it holds as many as the one behind it, and its share of what is there.
                let behind = heap.second(slots).map_or(0, |slot| slots.get(slot).rank.0);
                let less = behind.saturating_sub(slots.get(slot).rank.0);
                let less = u32::try_from(less).unwrap_or(u32::MAX);
                let left = less.saturating_add(fair()).min(TURN_MESSAGES_MAX);
                Turn { slot, left }
            }),
        };
        // Alone, nobody waits for the turn to end.
        let left = if len == 1 { u32::MAX } else { turn.left };
        Some((turn.slot, left))
    }

    /// A consumer with room has taken messages.
    pub(super) fn took(&mut self, slots: &mut Slots, slot: u32, messages: u32) {
        match &mut self.kind {
            Kind::RoundRobin(ring) => ring.took(slots, slot, messages),
            Kind::Random(bag) => shorten(&mut bag.turn, slot, messages),
            Kind::Weighted(ranked) => {
                shorten(&mut ranked.turn, slot, messages);
                let consumer = slots.get_mut(slot);
                let each = WEIGHT_UNIT / u64::from(consumer.traits.weight);
                consumer.rank.0 += u64::from(messages) * each;
                ranked.heap.changed(slots, slot);
            }
            Kind::LeastOutstanding(ranked) => {
                shorten(&mut ranked.turn, slot, messages);
                ranked.clock += 1;
                let consumer = slots.get_mut(slot);
                consumer.rank.1 = ranked.clock;
                consumer.rank_by_held();
                ranked.heap.changed(slots, slot);
            }
            Kind::Sticky(sticky) => sticky.took(slots, slot, messages),
        }
    }

    /// A consumer with room holds fewer than before.
    pub(super) fn holds_less(&mut self, slots: &mut Slots, slot: u32) {
        if let Kind::LeastOutstanding(ranked) = &mut self.kind {
            slots.get_mut(slot).rank_by_held();
            ranked.heap.changed(slots, slot);
            // It may be its turn now.
            let first = ranked.heap.first();
            ranked.turn = ranked.turn.filter(|turn| first == Some(turn.slot));
        }
    }

    /// The consumer for a message whose key has this hash.
    pub(super) fn by_key(&self, slots: &Slots, hash: u64) -> u32 {
        match &self.kind {
            Kind::Sticky(sticky) => sticky.find(slots, hash),
            _ => unreachable!("only a sticky line is asked"),
        }
    }

    pub(super) fn invariants(&self, slots: &Slots) {
        assert!(self.len() <= self.members);
        match &self.kind {
            Kind::RoundRobin(ring) => ring.invariants(slots),
            Kind::Random(bag) => {
                for (at, slot) in bag.slots.iter().enumerate() {
                    assert_eq!(slots.get(*slot).before as usize, at);
                }
            }
            Kind::Weighted(ranked) | Kind::LeastOutstanding(ranked) => {
                ranked.heap.invariants(slots);
            }
            Kind::Sticky(sticky) => {
                sticky.heap.invariants(slots);
                let loads = sticky.heap.iter().map(|slot| slots.get(slot).rank.0);
                assert_eq!(loads.sum::<u64>(), sticky.load);
                let points = u64::from(self.members) * POINTS;
                assert_eq!(sticky.points.len() as u64, points);
            }
        }
    }
}

fn shorten(turn: &mut Option<Turn>, slot: u32, messages: u32) {
    if let Some(Turn { slot: whose, left }) = turn {
        assert!(*whose == slot);
        *left = left.saturating_sub(messages);
        if *left == 0 {
            *turn = None;
        }
    }
}

fn points(slot: u32, joined: u64) -> impl Iterator<Item = (u64, u32)> {
    let mut random = Random::new(joined);
    (0..POINTS).map(move |_| (random.next(), slot))
}

impl Sticky {
    const fn new(priority: i8) -> Self {
        Self {
            heap: Heap::new(),
            points: BTreeSet::new(),
            load: 0,
            unit: 1,
            until_double: HALF_LIFE,
            priority,
        }
    }

    fn enter(&mut self, slots: &mut Slots, slot: u32) {
        // Who was away has not saved up a claim.
        let least = self.heap.first().map_or(0, |first| slots.get(first).rank.0);
        let load = slots.get(slot).rank.0.max(least);
        slots.get_mut(slot).rank.0 = load;
        self.load += load;
        self.heap.enter(slots, slot);
    }

    fn took(&mut self, slots: &mut Slots, slot: u32, messages: u32) {
        let more = u64::from(messages) * self.unit;
        slots.get_mut(slot).rank.0 += more;
        self.load += more;
        self.heap.changed(slots, slot);
        self.until_double = self.until_double.saturating_sub(u64::from(messages));
        if self.until_double == 0 {
            self.until_double = HALF_LIFE * u64::from(self.heap.len());
            self.unit *= 2;
            if self.unit > UNIT_MAX {
                self.scale_down(slots);
            }
        }
    }

    /// Counts in a smaller unit: O(consumers), once in many messages.
    fn scale_down(&mut self, slots: &mut Slots) {
        let priority = self.priority;
        let members = slots.iter_mut().filter(|c| c.traits.priority == priority);
        for consumer in members {
            // The order stays, so the heap does.
            consumer.rank.0 /= UNIT_MAX;
        }
        self.load = self.heap.iter().map(|slot| slots.get(slot).rank.0).sum();
        self.unit /= UNIT_MAX;
    }

    /// The consumer whose place is the first behind the key's and that is within its bound, else the one
    /// with the least load.
    fn find(&self, slots: &Slots, hash: u64) -> u32 {
        let behind = self.points.range((hash, 0)..);
        let around = behind.chain(self.points.iter());
        let mut last = NONE;
        for (_, slot) in around.take(PROBES) {
            if *slot != last && slots.get(*slot).is_in_line() && self.is_within(slots, *slot) {
                return *slot;
            }
            last = *slot;
        }
        self.heap.first().expect("a line that is asked has room")
    }

    /// Whether one message more leaves a consumer within 5/4 of the mean.
    fn is_within(&self, slots: &Slots, slot: u32) -> bool {
        let load = u128::from(slots.get(slot).rank.0) + u128::from(self.unit);
        let slack = u128::from(SLACK * self.unit);
        let count = u128::from(self.heap.len());
        4 * load * count <= 5 * u128::from(self.load + self.unit) + 4 * count * slack
    }
}
