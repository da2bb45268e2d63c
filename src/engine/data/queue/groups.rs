//! Message groups: who holds the messages of a key, and what waits for its key.
//! Does not know messages' bytes, places or credit: it is told hashes of keys and sequences.
//!
//! Every message of a key that is on its way has a note: *out* at the key's holder, *back* after it was
//! given back, or *parked*, because its turn came while its key was busy. What is back or parked stands in
//! the list of its key, in order of sequence. A key whose list begins with a parked message that may go
//! stands in the line of ready keys. A key without notes is forgotten.

#[cfg(test)]
mod tests;

use super::dispatch::KeySource;
use super::{Death, Offer, Queue, Ranges, Source};
use crate::data::table::{Table, hash_bytes};
use ringpost_wire::envelope;

const NONE: u32 = u32::MAX;

/// A message without a key: free to go to anybody.
const FREE: u64 = u64::MAX;

/// How a queue reads the key of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyReader {
    source: KeySource,
    is_grouped: bool,
}

impl KeyReader {
    pub(super) const fn new(source: KeySource, is_grouped: bool) -> Self {
        Self { source, is_grouped }
    }

    /// What stands for a message's key: equal ones have equal numbers. `message` starts with it and need
    /// not hold its payload; `None` if it is no message.
    #[must_use]
    pub fn of(self, message: &[u8]) -> Option<u64> {
        if !self.is_grouped {
            return self.source.of(message);
        }
        let envelope = envelope::open(message).ok()?;
        let key = self.source.of_group(&envelope);
        Some(key.map_or(FREE, |hash| hash.min(FREE - 1)))
    }
}

/// Whether a message may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// To anybody.
    Free,
    /// To the consumer in this slot.
    Held(u32),
    /// Something of its key goes first, or is to be settled first.
    Busy,
}

/// A parked message whose key is ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ready {
    pub(super) hash: u64,
    pub(super) sequence: u64,
    /// So many behind each other are parked and were delivered equally often; at most some.
    pub(super) count: u32,
    pub(super) deliveries: u32,
    /// The slot of who holds the key.
    pub(super) holder: Option<u32>,
}

/// Most messages of a key that go at a time when they were parked.
const BATCH_MAX: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Out,
    Back,
    Parked,
}

#[derive(Clone, Copy, Debug)]
struct Note {
    sequence: u64,
    key: u32,
    /// Neighbours in the list of its key.
    before: u32,
    after: u32,
    /// How often it was delivered, of a parked one.
    deliveries: u32,
    state: State,
    /// It counts to what a queue looks ahead.
    is_ahead: bool,
}

#[derive(Clone, Copy, Debug)]
struct Key {
    hash: u64,
    /// The slot of who has what is out.
    holder: u32,
    out: u32,
    /// Something was given back since something was out: that is settled first.
    drains: bool,
    /// The list of what waits.
    first: u32,
    last: u32,
    /// Neighbours in the line of ready keys.
    line_before: u32,
    line_after: u32,
    is_in_line: bool,
}

/// Values by number; those of what is gone are used again.
struct Slab<T> {
    values: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    const fn new() -> Self {
        Self {
            values: Vec::new(),
            free: Vec::new(),
        }
    }

    fn insert(&mut self, value: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self.values[at as usize] = Some(value);
            return at;
        }
        self.values.push(Some(value));
        self.values.len() as u32 - 1
    }

    fn get(&self, at: u32) -> &T {
        self.values[at as usize].as_ref().expect("it is in use")
    }

    fn get_mut(&mut self, at: u32) -> &mut T {
        self.values[at as usize].as_mut().expect("it is in use")
    }

    fn remove(&mut self, at: u32) -> T {
        self.free.push(at);
        self.values[at as usize].take().expect("it is in use")
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let used = self.values.iter().zip(0..);
        used.filter_map(|(value, at)| Some((at, value.as_ref()?)))
    }
}

/// The groups of one queue.
pub(super) struct Groups {
    keys: Slab<Key>,
    by_hash: Table<u64, u32>,
    notes: Slab<Note>,
    by_sequence: Table<u64, u32>,
    line_first: u32,
    line_last: u32,
    parked: u64,
    ahead: u64,
    ahead_max: u64,
    /// The head waits for a place among those parked, until somebody looks again.
    is_stalled: bool,
}

impl Groups {
    pub(super) fn new(ahead_max: u32) -> Self {
        Self {
            keys: Slab::new(),
            by_hash: Table::new(),
            notes: Slab::new(),
            by_sequence: Table::new(),
            line_first: NONE,
            line_last: NONE,
            parked: 0,
            ahead: 0,
            ahead_max: u64::from(ahead_max),
            is_stalled: false,
        }
    }

    /// Messages that are parked.
    pub(super) const fn parked(&self) -> u64 {
        self.parked
    }

    pub(super) const fn has_ready(&self) -> bool {
        self.line_first != NONE
    }

    pub(super) const fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    pub(super) fn stall(&mut self, is_stalled: bool) {
        self.is_stalled = is_stalled;
    }

    /// Whether one more message that has no note may be parked.
    pub(super) fn may_park(&self, sequence: u64) -> bool {
        self.ahead < self.ahead_max || self.by_sequence.contains(&sequence)
    }

    /// Whether the message that is next at the head of the queue may go.
    pub(super) fn judge(&self, hash: u64, sequence: u64) -> Verdict {
        if hash == FREE {
            return Verdict::Free;
        }
        let Some(at) = self.by_hash.get(&hash) else {
            return Verdict::Free;
        };
        let key = self.keys.get(*at);
        let is_first = key.first == NONE || self.notes.get(key.first).sequence >= sequence;
        let passes = crate::mutant!(GroupPassesBack);
        if (key.drains || !is_first) && !passes {
            return Verdict::Busy;
        }
        match key.out {
            0 => Verdict::Free,
            _ => Verdict::Held(key.holder),
        }
    }

    /// The first key of the line.
    pub(super) fn next_ready(&self) -> Option<Ready> {
        let at = (self.line_first != NONE).then_some(self.line_first)?;
        let key = self.keys.get(at);
        let first = self.notes.get(key.first);
        let mut count = 1;
        let mut next = first.after;
        while next != NONE && count < BATCH_MAX {
            let note = self.notes.get(next);
            let joins = note.sequence == first.sequence + u64::from(count)
                && note.state == State::Parked
                && note.deliveries == first.deliveries;
            if !joins {
                break;
            }
            count += 1;
            next = note.after;
        }
        Some(Ready {
            hash: key.hash,
            sequence: first.sequence,
            count,
            deliveries: first.deliveries,
            holder: (key.out > 0).then_some(key.holder),
        })
    }

    /// The first key of the line cannot go now: it comes again when something of it is settled.
    pub(super) fn put_off(&mut self) {
        let at = self.line_first;
        debug_assert!(self.keys.get(at).out > 0, "nothing would bring it back");
        self.leave_line(at);
    }

    /// `count` messages of a key from `first` on go to the consumer in that slot.
    pub(super) fn take(&mut self, hash: u64, first: u64, count: u32, slot: u32) {
        if hash == FREE || count == 0 {
            return;
        }
        let at = self.key(hash);
        for sequence in first..first + u64::from(count) {
            match self.by_sequence.get(&sequence).copied() {
                Some(note) => {
                    self.unlink(note);
                    self.notes.get_mut(note).state = State::Out;
                }
                None => {
                    self.note(at, sequence, State::Out);
                }
            }
        }
        let key = self.keys.get_mut(at);
        debug_assert!(key.out == 0 || key.holder == slot || cfg!(feature = "mutants"));
        key.out += count;
        key.holder = slot;
        // Others of the line have their turn first.
        self.leave_line(at);
        self.see(at);
    }

    /// The message that is next at the head waits for its key.
    pub(super) fn park(&mut self, hash: u64, sequence: u64, deliveries: u32) {
        let at = self.key(hash);
        let note = match self.by_sequence.get(&sequence).copied() {
            Some(note) => note,
            None => {
                let note = self.note(at, sequence, State::Parked);
                self.notes.get_mut(note).is_ahead = true;
                self.ahead += 1;
                self.link(note);
                note
            }
        };
        let parked = self.notes.get_mut(note);
        parked.state = State::Parked;
        parked.deliveries = deliveries;
        self.parked += 1;
    }

    /// A message that was out is done with.
    pub(super) fn settle(&mut self, sequence: u64) {
        let Some(note) = self.by_sequence.remove(&sequence) else {
            return;
        };
        let note = self.notes.remove(note);
        debug_assert!(note.state == State::Out);
        self.less_out(note.key);
    }

    /// A message that was out was given back.
    pub(super) fn give_back(&mut self, sequence: u64) {
        let Some(at) = self.by_sequence.get(&sequence).copied() else {
            return;
        };
        let note = self.notes.get_mut(at);
        debug_assert!(note.state == State::Out);
        note.state = State::Back;
        let key = note.key;
        self.link(at);
        self.keys.get_mut(key).drains = true;
        self.less_out(key);
    }

    /// A message that waits is done with.
    pub(super) fn forget(&mut self, sequence: u64) {
        let Some(at) = self.by_sequence.remove(&sequence) else {
            return;
        };
        self.unlink(at);
        let note = self.notes.remove(at);
        debug_assert!(note.state != State::Out);
        self.see(note.key);
    }

    /// Everything that waits is done with; tells the parked messages, in no order.
    pub(super) fn forget_waiting(&mut self, mut each: impl FnMut(u64, u32)) {
        let waits = |note: &Note| note.state != State::Out;
        let all = self.notes.iter().map(|(_, note)| *note);
        let mut waiting: Vec<Note> = all.filter(|note| waits(note)).collect();
        waiting.sort_unstable_by_key(|note| note.sequence);
        for note in waiting {
            if note.state == State::Parked {
                each(note.sequence, note.deliveries);
            }
            self.forget(note.sequence);
        }
    }

    /// A message that is out was acknowledged by a transaction: nothing of its key goes until that is
    /// decided, and everything else of the key that is out is settled.
    pub(super) fn awaits_decision(&mut self, sequence: u64) {
        if let Some(at) = self.by_sequence.get(&sequence) {
            let key = self.notes.get(*at).key;
            self.keys.get_mut(key).drains = true;
            self.see(key);
        }
    }

    /// The acks of these messages are durable: those of transactions are decided by that.
    pub(super) fn acked_durably(&mut self, first: u64, last: u64) {
        if !self.by_sequence.is_empty() {
            (first..=last).for_each(|sequence| self.settle(sequence));
        }
    }

    /// A message that was out came back; if it is dead by that, it is done with.
    pub(super) fn came_back(&mut self, sequence: u64, is_dead: bool) {
        match is_dead {
            true => self.settle(sequence),
            false => self.give_back(sequence),
        }
    }

    /// Whether a message has a key, and is on its way.
    pub(super) fn knows(&self, sequence: u64) -> bool {
        self.by_sequence.contains(&sequence)
    }

    /// How often a parked message was delivered.
    pub(super) fn parked_deliveries(&self, sequence: u64) -> Option<u32> {
        let note = self.notes.get(*self.by_sequence.get(&sequence)?);
        (note.state == State::Parked).then_some(note.deliveries)
    }

    /// Parked messages with how often they were delivered, in no order.
    pub(super) fn iter_parked(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let parked = |note: &&Note| note.state == State::Parked;
        let notes = self.notes.iter().map(|(_, note)| note).filter(parked);
        notes.map(|note| (note.sequence, note.deliveries))
    }

    fn key(&mut self, hash: u64) -> u32 {
        if let Some(at) = self.by_hash.get(&hash) {
            return *at;
        }
        let at = self.keys.insert(Key {
            hash,
            holder: NONE,
            out: 0,
            drains: false,
            first: NONE,
            last: NONE,
            line_before: NONE,
            line_after: NONE,
            is_in_line: false,
        });
        self.by_hash.insert(hash, at);
        at
    }

    fn note(&mut self, key: u32, sequence: u64, state: State) -> u32 {
        let at = self.notes.insert(Note {
            sequence,
            key,
            before: NONE,
            after: NONE,
            deliveries: 0,
            state,
            is_ahead: false,
        });
        self.by_sequence.insert(sequence, at);
        at
    }

    fn less_out(&mut self, key: u32) {
        let entry = self.keys.get_mut(key);
        entry.out -= 1;
        if entry.out == 0 {
            entry.drains = false;
        }
        self.see(key);
    }

    /// Puts a key into its line, or forgets it, if that is due.
    fn see(&mut self, at: u32) {
        let key = *self.keys.get(at);
        if key.first == NONE {
            self.leave_line(at);
            if key.out == 0 {
                self.keys.remove(at);
                self.by_hash.remove(&key.hash);
            }
            return;
        }
        let may_go = self.notes.get(key.first).state == State::Parked && !key.drains;
        if !may_go {
            self.leave_line(at);
        } else if !(key.is_in_line || crate::mutant!(GroupForgotten) && key.out == 0) {
            self.enter_line(at);
        }
    }

    fn enter_line(&mut self, at: u32) {
        let last = self.line_last;
        let key = self.keys.get_mut(at);
        key.is_in_line = true;
        key.line_before = last;
        key.line_after = NONE;
        match last {
            NONE => self.line_first = at,
            last => self.keys.get_mut(last).line_after = at,
        }
        self.line_last = at;
    }

    fn leave_line(&mut self, at: u32) {
        let key = self.keys.get_mut(at);
        if !key.is_in_line {
            return;
        }
        key.is_in_line = false;
        let (before, after) = (key.line_before, key.line_after);
        match before {
            NONE => self.line_first = after,
            before => self.keys.get_mut(before).line_after = after,
        }
        match after {
            NONE => self.line_last = before,
            after => self.keys.get_mut(after).line_before = before,
        }
    }

    /// Puts a note into the list of its key: mostly to one of its ends.
    fn link(&mut self, at: u32) {
        let Note { sequence, key, .. } = *self.notes.get(at);
        let mut before = self.keys.get(key).last;
        let is_lowest = |first: u32| first != NONE && self.notes.get(first).sequence > sequence;
        if is_lowest(self.keys.get(key).first) {
            before = NONE;
        }
        while before != NONE && self.notes.get(before).sequence > sequence {
            before = self.notes.get(before).before;
        }
        let after = match before {
            NONE => self.keys.get(key).first,
            before => self.notes.get(before).after,
        };
        let note = self.notes.get_mut(at);
        (note.before, note.after) = (before, after);
        match before {
            NONE => self.keys.get_mut(key).first = at,
            before => self.notes.get_mut(before).after = at,
        }
        match after {
            NONE => self.keys.get_mut(key).last = at,
            after => self.notes.get_mut(after).before = at,
        }
    }

    /// Takes a note that waits out of the list of its key.
    fn unlink(&mut self, at: u32) {
        let Note {
            key,
            before,
            after,
            state,
            is_ahead,
            ..
        } = *self.notes.get(at);
        match before {
            NONE => self.keys.get_mut(key).first = after,
            before => self.notes.get_mut(before).after = after,
        }
        match after {
            NONE => self.keys.get_mut(key).last = before,
            after => self.notes.get_mut(after).before = before,
        }
        if state == State::Parked {
            self.parked -= 1;
        }
        self.ahead -= u64::from(is_ahead);
        let note = self.notes.get_mut(at);
        (note.before, note.after, note.is_ahead) = (NONE, NONE, false);
    }

    /// Checks everything that must hold; O(n).
    pub(super) fn invariants(&self) {
        let (mut parked, mut ahead, mut waiting, mut out) = (0, 0, 0, 0);
        for (_, note) in self.notes.iter() {
            assert_eq!(
                self.notes
                    .get(
                        self.by_sequence
                            .get(&note.sequence)
                            .copied()
                            .expect("it is known")
                    )
                    .sequence,
                note.sequence
            );
            parked += u64::from(note.state == State::Parked);
            ahead += u64::from(note.is_ahead);
            out += u32::from(note.state == State::Out);
        }
        assert_eq!((self.parked, self.ahead), (parked, ahead));
        let mut in_line = 0;
        for (at, key) in self.keys.iter() {
            assert_eq!(self.by_hash.get(&key.hash), Some(&at));
            assert!(key.out > 0 || key.first != NONE, "a key without notes");
            out -= key.out;
            in_line += u32::from(key.is_in_line);
            let (mut note, mut below) = (key.first, 0);
            while note != NONE {
                let one = self.notes.get(note);
                assert!(one.sequence > below && one.key == at && one.state != State::Out);
                below = one.sequence;
                waiting += 1;
                note = one.after;
            }
            let first = (key.first != NONE).then(|| self.notes.get(key.first));
            if let Some(first) = first
                && key.out == 0
            {
                assert!(!key.drains);
                assert_eq!(first.state == State::Parked, key.is_in_line);
            }
        }
        assert_eq!(out, 0);
        let all = self
            .notes
            .iter()
            .filter(|(_, note)| note.state != State::Out);
        assert_eq!(all.count(), waiting);
        let mut at = self.line_first;
        while at != NONE {
            in_line -= 1;
            at = self.keys.get(at).line_after;
        }
        assert_eq!(in_line, 0);
    }
}

/// Most messages without a key that go to one consumer at a time.
const FREE_MAX: u32 = 16;

/// Keys at the front of the line of which expired messages are dropped at a time.
const SWEPT_KEYS_MAX: u64 = 64;

impl Queue {
    /// See [`Queue::address`].
    pub(super) fn address_group(
        &mut self,
        offer: &Offer,
        key: u64,
        (at, bytes): (u32, u32),
    ) -> Option<Offer> {
        let groups = self.groups.as_mut().expect("it has groups");
        let sequence = offer.first.0;
        let slot = match groups.judge(key, sequence) {
            Verdict::Free => self.consumers.by_key(match key {
                // Nothing ties it to others.
                FREE => hash_bytes(0, &sequence.to_le_bytes()),
                key => key,
            }),
            Verdict::Held(slot) if self.consumers.is_eligible(slot) => slot,
            Verdict::Held(_) if crate::mutant!(GroupSpillsOver) => self.consumers.by_key(key),
            Verdict::Held(_) | Verdict::Busy if !groups.may_park(sequence) => {
                groups.stall(true);
                return None;
            }
            Verdict::Held(_) | Verdict::Busy => {
                groups.park(key, sequence, offer.delivery_count);
                self.advance(offer, 1);
                self.remember(offer, 1, at, u64::from(bytes));
                return None;
            }
        };
        let most = if key == FREE { FREE_MAX } else { u32::MAX };
        let offer = self.offer_to(slot, offer);
        Some(Offer {
            messages_max: offer.messages_max.min(most),
            group: Some(key),
            ..offer
        })
    }

    /// Whether it has message groups.
    #[must_use]
    pub const fn has_groups(&self) -> bool {
        self.groups.is_some()
    }

    /// Whether a key is ready that nobody could take anything of, or whose message has expired.
    pub(crate) fn has_ready_key(&self) -> bool {
        self.groups
            .as_ref()
            .is_some_and(|groups| groups.has_ready())
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.groups
            .as_ref()
            .is_some_and(|groups| groups.is_stalled())
    }

    /// What to deliver next of what is parked. `None` while a key is ready: nobody has room, or its
    /// message is to be dropped first.
    pub(super) fn next_of_groups(&mut self) -> Option<Offer> {
        loop {
            let groups = self.groups.as_mut().expect("it has groups");
            let ready = groups.next_ready()?;
            let slot = match ready.holder {
                Some(slot) if self.consumers.is_eligible(slot) => slot,
                Some(_) => {
                    groups.put_off();
                    continue;
                }
                None => self.consumers.find_by_key(ready.hash)?,
            };
            let first = ready.sequence;
            let mut last = first + u64::from(ready.count) - 1;
            if !self.expiry.is_idle() {
                if self.expiry.is_over(first, self.now) {
                    return None;
                }
                last = self.expiry.alike_upto(first, last, self.now);
            }
            let run = self.index.find(first).expect("a parked message has a run");
            let last = last.min(run.last());
            let walked = self.returned_walked;
            let offer = self.offer(slot, u32::MAX, run, first, last, walked);
            return Some(Offer {
                delivery_count: ready.deliveries,
                source: Source::Parked,
                group: Some(ready.hash),
                ..offer
            });
        }
    }

    /// Lets parked messages die that have expired and whose turn it is; how many did.
    pub(super) fn sweep_parked(&mut self, max: u64, out: &mut Ranges) -> u64 {
        let mut swept = 0;
        while swept < max.min(SWEPT_KEYS_MAX)
            && !self.expiry.is_idle()
            && !self.is_dying_full()
            && let Some(groups) = &mut self.groups
            && let Some(ready) = groups.next_ready()
            && self.expiry.is_over(ready.sequence, self.now)
        {
            groups.forget(ready.sequence);
            let others = u128::from((self.ready + self.delayed_count()).max(1));
            let bytes = u128::from(self.ready_bytes()) / others;
            self.ready -= 1;
            let (deliveries, bytes) = (ready.deliveries, bytes as u32);
            self.kill_one(ready.sequence, deliveries, (Death::Expired, bytes), out);
            swept += 1;
        }
        swept
    }

    /// What waits of groups is looked at again: something may have changed.
    pub(super) fn look_at_groups_again(&mut self) {
        if let Some(groups) = &mut self.groups {
            groups.stall(false);
        }
    }
}
