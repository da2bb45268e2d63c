//! Messages of a queue by their places: how each stands, and taking one out that nobody holds. Does not
//! know bytes, nor who asks.
//!
//! What a message is follows from the sets that it is in, most of which are in order of sequence. Two are
//! not: what consumers hold, and what is delayed. Those are looked through, the first as a whole (credit
//! bounds it), the second some thousand entries at a time.

use super::expiry::Ms;
use super::returned::Returned;
use super::{ConsumerKey, Death, Offer, Queue, QueueSequence, Ranges, Walked, push_range};
use crate::ids::Mono;
use ringpost_wire::BrowsedState;

/// A message, as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its place.
    pub sequence: QueueSequence,
    /// How it stands.
    pub state: BrowsedState,
    /// How often it was delivered.
    pub deliveries: u32,
    /// When it is due, if it is delayed.
    pub due: Option<Mono>,
    /// Who holds it.
    pub holder: Option<ConsumerKey>,
}

/// A look at some messages, which may take several turns.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// In order of sequence, once the look is done.
    pub found: Vec<Seen>,
    /// Where the next look begins; `None`: there is nothing more.
    pub next: Option<QueueSequence>,
    /// Neither ready nor held, so delayed or done with.
    open: Vec<u64>,
    /// How far those that are delayed were looked through.
    at: Option<(Ms, u64)>,
}

impl Look {
    /// One that has not begun.
    #[must_use]
    pub fn begin(from: QueueSequence) -> Self {
        Self {
            next: Some(from),
            ..Self::default()
        }
    }
}

/// Delayed messages that are to be taken back.
#[derive(Clone, Debug)]
pub struct Cancelling {
    /// Those that were not found so far, in order.
    wanted: Vec<u64>,
    at: Option<(Ms, u64)>,
}

impl Cancelling {
    /// Of messages in ascending order.
    #[must_use]
    pub fn new(wanted: Vec<u64>) -> Self {
        Self { wanted, at: None }
    }

    /// How many were not found.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.wanted.len() as u32
    }
}

/// Whether a message was taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Picked {
    /// It was.
    Taken,
    /// A consumer holds it, or it waits for the disk.
    Busy,
    /// It is not there, or not ready.
    Late,
}

impl Queue {
    /// Looks at up to `most` messages from `from` on that are durable and not done with. Go on with
    /// [`Queue::look_on`].
    #[must_use]
    pub fn look(&self, from: QueueSequence, most: usize) -> Look {
        let mut look = Look::default();
        let mut at = from.0.max(self.settled.floor() + 1);
        let mut looked = 0;
        while looked < most
            && let Some(run) = self.index.first_from(at)
            && run.first().max(at) <= self.durable
        {
            let last = run.last().min(self.durable);
            let mut sequence = run.first().max(at);
            while sequence <= last && looked < most {
                if let Some((first, end)) = self.settled.stretch_from(sequence)
                    && first <= sequence
                {
                    sequence = end + 1;
                    continue;
                }
                looked += 1;
                match self.standing(sequence) {
                    Some((state, deliveries)) => look.found.push(Seen {
                        sequence: QueueSequence(sequence),
                        state,
                        deliveries,
                        due: None,
                        holder: None,
                    }),
                    None => look.open.push(sequence),
                }
                sequence += 1;
            }
            at = sequence;
        }
        let is_end = looked < most;
        look.next = (!is_end).then_some(QueueSequence(at));
        if !look.open.is_empty() && self.dead.count() > 0 {
            self.look_at_dead(&mut look);
        }
        if !look.open.is_empty() && self.unacked > 0 {
            self.look_at_held(&mut look);
        }
        look
    }

    /// How a message stands, unless it is dead, a consumer holds it, or it is delayed or done with.
    fn standing(&self, sequence: u64) -> Option<(BrowsedState, u32)> {
        if self.is_stream() {
            return (sequence >= self.cursor).then_some((BrowsedState::Ready, 0));
        }
        if let Some((_, deliveries)) = self.returned.find(sequence) {
            return Some((BrowsedState::Ready, deliveries));
        }
        if !self.is_past(sequence) {
            return Some((BrowsedState::Ready, 0));
        }
        if let Some(deliveries) = self.parked(sequence) {
            return Some((BrowsedState::Grouped, deliveries));
        }
        let held = self.returned.find_held(sequence)?;
        let is_ready = held.due.is_none();
        is_ready.then_some((BrowsedState::Ready, held.span.deliveries))
    }

    fn look_at_dead(&self, look: &mut Look) {
        for (sequence, dying) in self.dead.iter() {
            if let Ok(at) = look.open.binary_search(&sequence) {
                look.open.remove(at);
                look.found.push(Seen {
                    sequence: QueueSequence(sequence),
                    state: BrowsedState::Dead,
                    deliveries: dying.deliveries,
                    due: None,
                    holder: None,
                });
            }
        }
    }

    fn parked(&self, sequence: u64) -> Option<u32> {
        self.groups.as_ref()?.parked_deliveries(sequence)
    }

    fn look_at_held(&self, look: &mut Look) {
        for consumer in self.consumers.iter().filter(|_| !self.is_stream()) {
            for delivery in consumer.unacked.iter() {
                let Ok(at) = look.open.binary_search(&delivery.sequence) else {
                    continue;
                };
                look.open.remove(at);
                look.found.push(Seen {
                    sequence: QueueSequence(delivery.sequence),
                    state: BrowsedState::Unacked,
                    deliveries: delivery.earlier,
                    due: None,
                    holder: Some(consumer.key),
                });
            }
        }
    }

    /// Goes on with a look, through up to `entries` entries of what is delayed; whether it is done.
    pub fn look_on(&mut self, look: &mut Look, entries: usize) -> bool {
        let mut seen = 0;
        while !look.open.is_empty() {
            if seen == entries {
                return false;
            }
            let Some((due, span)) = self.delayed.next_behind(look.at) else {
                break;
            };
            seen += 1;
            look.at = Some((due, span.first));
            let from = look.open.partition_point(|sequence| *sequence < span.first);
            let upto = look
                .open
                .partition_point(|sequence| *sequence <= span.last());
            for sequence in look.open.drain(from..upto) {
                look.found
                    .push(seen_delayed(sequence, due, span.deliveries));
            }
        }
        // What came back waits for its count first.
        for (due, span) in self.returned.iter_held_delayed() {
            let from = look.open.partition_point(|sequence| *sequence < span.first);
            let upto = look
                .open
                .partition_point(|sequence| *sequence <= span.last());
            for sequence in look.open.drain(from..upto) {
                look.found
                    .push(seen_delayed(sequence, due, span.deliveries));
            }
        }
        // The others are done with.
        look.open.clear();
        look.found.sort_unstable_by_key(|seen| seen.sequence);
        true
    }

    /// Where a message is, for no consumer; `None` if it is done with. `walked` is what was known of the one
    /// before: see [`Queue::walked_behind`].
    pub(crate) fn place_of(
        &mut self,
        sequence: QueueSequence,
        walked: Option<Walked>,
    ) -> Option<Offer> {
        if !self.is_live(sequence) {
            return None;
        }
        let run = self.index.find(sequence.0)?;
        Some(self.offer_alone(run, sequence.0, walked))
    }

    /// What is known of where the message behind that one starts, which is at `at` and has so many padded
    /// bytes.
    pub(crate) fn walked_behind(offer: &Offer, at: u32, bytes: u32) -> Option<Walked> {
        super::walked_behind(offer, 1, at, u64::from(bytes))
    }

    /// Goes on to take delayed messages back, through up to `entries` entries; whether that is done. They
    /// go to `out`, as ranges for the ack record; says how many.
    //= P-113
    pub fn cancel_some(
        &mut self,
        cancelling: &mut Cancelling,
        entries: usize,
        out: &mut Ranges,
    ) -> (u32, bool) {
        let mut cancelled = 0;
        for _ in 0..entries {
            if cancelling.wanted.is_empty() {
                return (cancelled, true);
            }
            let Some((due, span)) = self.delayed.next_behind(cancelling.at) else {
                return (cancelled, true);
            };
            let wanted = &mut cancelling.wanted;
            let from = wanted.partition_point(|sequence| *sequence < span.first);
            let upto = wanted.partition_point(|sequence| *sequence <= span.last());
            // What is behind it in the same entry has a place of its own now.
            cancelling.at = Some((due, span.last()));
            if from == upto {
                continue;
            }
            let taken: Vec<u64> = wanted.drain(from..upto).collect();
            self.delayed.take_out(due, span, &taken);
            for sequence in taken {
                self.cancel_one(sequence, span.deliveries, out);
                cancelled += 1;
            }
        }
        (cancelled, cancelling.wanted.is_empty())
    }

    fn cancel_one(&mut self, sequence: u64, deliveries: u32, out: &mut Ranges) {
        if crate::mutant!(CancelForgotten) {
            // It is gone from memory only.
            self.pending += 1;
            return;
        }
        let all = u128::from((self.ready + self.delayed_count() + 1).max(1));
        let bytes = (u128::from(self.ready_bytes()) / all) as u64;
        if let Some(groups) = &mut self.groups {
            groups.forget(sequence);
        }
        if deliveries > 0 {
            let span = Returned::new(sequence, 1, deliveries);
            self.pending_counts.insert(span);
        }
        push_range(out, sequence, sequence);
        self.pending += 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.clear_estimate();
    }

    /// Whether consumers hold those messages, which are in ascending order: the ones that they do.
    #[must_use]
    pub fn held_of(&self, sequences: &[u64]) -> Vec<u64> {
        let consumers = self.consumers.iter();
        let all = consumers.flat_map(|consumer| consumer.unacked.iter());
        let all = all.map(|delivery| delivery.sequence);
        let mut held: Vec<u64> = all
            .filter(|sequence| sequences.binary_search(sequence).is_ok())
            .collect();
        held.sort_unstable();
        held
    }

    /// Takes a ready message out of its queue: it is dead, to be moved elsewhere, and comes with
    /// [`Queue::next_dead`]. `held` is what consumers hold.
    //= P-112
    pub fn pick(&mut self, sequence: QueueSequence, held: &[u64]) -> Picked {
        let QueueSequence(sequence) = sequence;
        let is_there = sequence > 0 && sequence < self.next && !self.settled.contains(sequence);
        if !is_there || self.is_stream() {
            return Picked::Late;
        }
        if sequence > self.durable
            || held.binary_search(&sequence).is_ok()
            || self.returned.find_held(sequence).is_some()
            || self.dead.count() >= super::DEAD_MAX / 2
        {
            return Picked::Busy;
        }
        let deliveries = if let Some((rank, deliveries)) = self.returned.find(sequence) {
            self.returned.take_one(rank, sequence);
            // After a recovery it may lie ahead of the cursor.
            if !self.is_past(sequence) {
                self.set_one_apart(sequence);
            }
            deliveries
        } else if let Some(deliveries) = self.parked(sequence) {
            deliveries
        } else if !self.is_past(sequence) {
            self.set_one_apart(sequence);
            0
        } else {
            return Picked::Late;
        };
        if let Some(groups) = &mut self.groups {
            groups.forget(sequence);
        }
        self.ready -= 1;
        let all = u128::from((self.ready + self.delayed_count() + 1).max(1));
        let bytes = (u128::from(self.ready_bytes()) / all) as u32;
        self.dead.wait(
            sequence,
            super::dead::Dying {
                death: Death::Moved,
                deliveries,
                bytes,
            },
        );
        self.fresh_run = None;
        Picked::Taken
    }

    /// A fresh message leaves the order of the cursor.
    fn set_one_apart(&mut self, sequence: u64) {
        if sequence == self.cursor {
            self.cursor += 1;
            return;
        }
        let at = self.apart.partition_point(|known| known.1 < sequence);
        let joins_before = at > 0 && self.apart[at - 1].1 + 1 == sequence;
        let joins_after = self
            .apart
            .get(at)
            .is_some_and(|known| known.0 == sequence + 1);
        match (joins_before, joins_after) {
            (true, true) => {
                self.apart[at - 1].1 = self.apart[at].1;
                self.apart.remove(at);
            }
            (true, false) => self.apart[at - 1].1 = sequence,
            (false, true) => self.apart[at].0 = sequence,
            (false, false) => self.apart.insert(at, (sequence, sequence)),
        }
    }

    /// A message that was on its way elsewhere stays: it is ready, in its place. Whether it was.
    pub fn unpick(&mut self, sequence: QueueSequence) -> bool {
        let Some(dying) = self.dead.done(sequence.0) else {
            return false;
        };
        let span = Returned::new(sequence.0, 1, dying.deliveries);
        let returned = &mut self.returned;
        super::for_each_rank(&self.ranks, span, |rank, span| returned.insert(rank, span));
        self.ready += 1;
        true
    }
}

fn seen_delayed(sequence: u64, due: Ms, deliveries: u32) -> Seen {
    Seen {
        sequence: QueueSequence(sequence),
        state: BrowsedState::Delayed,
        deliveries,
        due: Some(super::mono_of(due)),
        holder: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::queue::{
        AckMode, Credit, Durability, Marking, Outcome, Settings, Sharing, Traits,
    };
    use crate::ids::{Place, SegmentIdx};
    use ringpost_wire::SettleRange;
    use ringpost_wire::envelope::Terms;

    const KEY: ConsumerKey = ConsumerKey(1);
    const BYTES: u32 = 64;

    /// A volatile queue of so many messages: every third is delayed, by itself.
    fn queue(messages: u64) -> Queue {
        let mut queue = Queue::new(Settings::plain(Durability::Volatile));
        let credit = Credit {
            messages: 1_000,
            bytes: 0,
        };
        let traits = Traits::default();
        queue
            .add_consumer(KEY, credit, AckMode::Explicit, Sharing::Shared, traits)
            .expect("it is the first");
        for number in 1..=messages {
            let place = Place {
                segment: SegmentIdx(number as u32),
                offset: 0,
            };
            let first = queue.next_sequence();
            queue.push_run(first, 1, BYTES, place, Marking::Plain);
            if number % 3 == 0 {
                let terms = Terms {
                    delay_ms: 1_000 - number as u32,
                    ..Terms::default()
                };
                queue.arrived(first, 1, Mono(0), terms);
            }
            queue.durable_through(first);
        }
        queue
    }

    fn look(
        queue: &mut Queue,
        from: u64,
        most: usize,
        entries: usize,
    ) -> (Vec<(u64, BrowsedState)>, Option<u64>) {
        let mut look = queue.look(QueueSequence(from), most);
        let mut steps = 0;
        while !queue.look_on(&mut look, entries) {
            steps += 1;
            assert!(steps < 10_000, "it has an end");
        }
        let found = look.found.iter();
        let found = found.map(|seen| (seen.sequence.0, seen.state)).collect();
        (found, look.next.map(|next| next.0))
    }

    fn take(queue: &mut Queue, count: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(offer) = queue.next_offer()
        {
            queue.take(&offer, 0, &[BYTES], &mut Ranges::new());
            taken.push(offer.first.0);
        }
        taken
    }

    use BrowsedState::{Dead, Delayed, Ready, Unacked};

    #[test]
    fn a_look_finds_everything_once_in_pages_of_any_size() {
        let mut queue = queue(30);
        assert_eq!(take(&mut queue, 4), [1, 2, 4, 5]);
        let range = SettleRange { first: 2, last: 2 };
        let mut out = Ranges::new();
        let settled = queue.settle(KEY, range, Outcome::Ack, &mut out);
        settled.expect("it is held");
        // Whether its ack is durable or not, it is done with.
        for _ in 0..2 {
            for (most, entries) in [(1, 1), (3, 2), (7, 100), (100, 1)] {
                let (mut all, mut from) = (Vec::new(), Some(0));
                while let Some(place) = from {
                    let (found, next) = look(&mut queue, place, most, entries);
                    all.extend(found);
                    from = next;
                }
                let state = |place: u64| match place {
                    1 | 4 | 5 => Unacked,
                    place if place % 3 == 0 => Delayed,
                    _ => Ready,
                };
                let expected: Vec<_> = (1..=30).filter(|place| *place != 2).collect();
                let expected: Vec<_> = expected.iter().map(|at| (*at, state(*at))).collect();
                assert_eq!(all, expected, "{most} at a time, {entries} entries");
            }
            queue.forget(out.as_slice(), &mut |_, _| {});
            out.clear();
        }
    }

    #[test]
    fn what_is_picked_goes_from_anywhere_and_comes_back_in_its_place() {
        let mut queue = queue(12);
        assert_eq!(take(&mut queue, 3), [1, 2, 4]);
        let range = SettleRange { first: 1, last: 1 };
        let settled = queue.settle(KEY, range, Outcome::Requeue, &mut Ranges::new());
        settled.expect("it is held");
        let asked = [1, 2, 3, 5, 8, 10, 11, 13];
        let held = queue.held_of(&asked);
        assert_eq!(held, [2]);
        let picked: Vec<Picked> = asked
            .iter()
            .map(|place| queue.pick(QueueSequence(*place), &held))
            .collect();
        use Picked::{Busy, Late, Taken};
        assert_eq!(
            picked,
            [Taken, Busy, Late, Taken, Taken, Taken, Taken, Late]
        );
        queue.invariants();
        assert_eq!(queue.pick(QueueSequence(8), &held), Late);
        let states: Vec<_> = look(&mut queue, 0, 100, 100).0;
        let dead = states.iter().filter(|(_, state)| *state == Dead).count();
        assert_eq!((dead, queue.counters().ready), (5, 1));
        // One is moved, the others stay.
        for place in [1, 5, 8, 10, 11] {
            let dead = queue.next_dead().expect("it waits");
            assert_eq!(dead.sequence().0, place);
            queue.begin_dead(&dead, 0, BYTES);
            if place == 8 {
                let mut out = Ranges::new();
                assert!(queue.dead_is_done(dead.sequence(), &mut out));
                queue.forget(out.as_slice(), &mut |_, _| {});
            } else {
                assert!(queue.unpick(dead.sequence()));
            }
            queue.invariants();
        }
        assert_eq!(take(&mut queue, 10), [1, 5, 7, 10, 11]);
        queue.invariants();
    }

    #[test]
    fn delayed_messages_are_cancelled_within_a_bound_of_entries() {
        for entries in [1, 2, 100] {
            let mut queue = queue(30);
            let mut cancelling = Cancelling::new(vec![3, 4, 9, 30, 31]);
            let mut out = Ranges::new();
            let (mut done, mut steps) = (0, 0);
            loop {
                let (some, is_done) = queue.cancel_some(&mut cancelling, entries, &mut out);
                queue.invariants();
                done += some;
                steps += 1;
                if is_done {
                    break;
                }
                assert!(steps < 100, "it has an end");
            }
            assert_eq!((done, cancelling.left()), (3, 2));
            queue.forget(out.as_slice(), &mut |_, _| {});
            assert_eq!(queue.counters().delayed, 7);
            queue.set_now(Mono(2_000_000_000));
            queue.release_due(u64::MAX);
            assert_eq!(take(&mut queue, 100).len(), 27);
            queue.invariants();
        }
    }
}
