//! Dead letters that were not taken: when they are tried again, how many of them wait in memory, and what
//! a journal that has failed means for them. Does not know how they are published.
//!
//! A few of each queue wait here, so that others of it, which go elsewhere, pass them. What is more goes
//! back to its queue, which then begins none for a while: no queue keeps those of others waiting,
//! and what is full, or damaged, for however long, costs nothing more.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_wire::Code;
use ringpost_wire::ids::QueueId;

use crate::data::flow::Flow;
use crate::ids::Mono;

/// Dead letters of one queue that wait here.
const OF_QUEUE_MAX: u32 = 16;
/// All of them, and their bytes.
const LETTERS_MAX: usize = 256;
const BYTES_MAX: usize = 1 << 20;
/// How often those bounds may be passed by what some of its queues have: published anew, it would need
/// them to remember that.
const BEGUN_FACTOR: usize = 4;
/// How long a dead letter that a queue did not take waits for the next time, and the longest that it
/// ever waits: twice as long each time, in ms. So does a queue that begins none.
const RETRY_MS: u64 = 50;
const RETRY_MS_MAX: u64 = 5_000;

/// How long to wait after so many refusals in a row.
fn pause_ms(refusals: u32) -> u64 {
    (RETRY_MS << refusals.min(16)).min(RETRY_MS_MAX)
}

/// What one queue waits for.
#[derive(Clone, Copy, Debug, Default)]
struct Stuck {
    /// Its dead letters here.
    letters: u32,
    /// Times in a row that one was given back to it.
    refusals: u32,
    /// It begins none until then.
    until: Option<Mono>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Later {
    /// When each is tried again.
    letters: BTreeSet<(Mono, u64)>,
    bytes: usize,
    stuck: BTreeMap<QueueId, Stuck>,
    /// When queues begin again.
    pauses: BTreeSet<(Mono, QueueId)>,
}

impl Later {
    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues that begin none for now.
    pub(super) fn paused(&self) -> usize {
        self.pauses.len()
    }

    pub(super) fn is_paused(&self, queue: QueueId) -> bool {
        let stuck = self.stuck.get(&queue);
        stuck.is_some_and(|stuck| stuck.until.is_some())
    }

    pub(super) fn next_deadline(&self) -> Option<Mono> {
        let letter = self.letters.first().map(|(at, _)| *at);
        let pause = self.pauses.first().map(|(at, _)| *at);
        letter.into_iter().chain(pause).min()
    }

    /// Whether one more of a queue, of so many bytes, may wait here.
    fn has_room(&self, queue: QueueId, cost: usize, is_begun: bool) -> bool {
        if is_begun {
            return self.letters.len() < LETTERS_MAX * BEGUN_FACTOR
                && self.bytes < BYTES_MAX * BEGUN_FACTOR;
        }
        let letters = self.stuck.get(&queue).map_or(0, |stuck| stuck.letters);
        letters < OF_QUEUE_MAX && self.letters.len() < LETTERS_MAX && self.bytes + cost <= BYTES_MAX
    }

    fn add(&mut self, at: Mono, key: u64, queue: QueueId, cost: usize) {
        self.letters.insert((at, key));
        self.bytes += cost;
        self.stuck.entry(queue).or_default().letters += 1;
    }

    /// One of a queue does not wait here any more.
    fn is_gone(&mut self, queue: QueueId, cost: usize) {
        self.bytes -= cost;
        if let Some(stuck) = self.stuck.get_mut(&queue) {
            stuck.letters -= 1;
        }
        self.tidy(queue);
    }

    /// A queue begins none for a while.
    fn pause(&mut self, queue: QueueId, now: Mono) {
        let stuck = self.stuck.entry(queue).or_default();
        if stuck.until.is_none() {
            let until = now.plus_ms(pause_ms(stuck.refusals));
            stuck.refusals += 1;
            stuck.until = Some(until);
            self.pauses.insert((until, queue));
        }
    }

    /// A queue whose pause is over at `now`.
    fn resume(&mut self, now: Mono) -> Option<QueueId> {
        let (_, queue) = *self.pauses.first().filter(|(at, _)| *at <= now)?;
        self.pauses.pop_first();
        if let Some(stuck) = self.stuck.get_mut(&queue) {
            stuck.until = None;
        }
        Some(queue)
    }

    /// A dead letter of a queue has been taken.
    pub(super) fn got_through(&mut self, queue: QueueId) {
        if let Some(stuck) = self.stuck.get_mut(&queue) {
            stuck.refusals = 0;
            self.tidy(queue);
        }
    }

    fn tidy(&mut self, queue: QueueId) {
        let is_idle =
            |stuck: &Stuck| stuck.letters == 0 && stuck.refusals == 0 && stuck.until.is_none();
        if self.stuck.get(&queue).is_some_and(is_idle) {
            self.stuck.remove(&queue);
        }
    }

    /// A queue was deleted: it begins nothing more.
    pub(super) fn forget(&mut self, queue: QueueId) {
        let Some(stuck) = self.stuck.get_mut(&queue) else {
            return;
        };
        stuck.refusals = 0;
        if let Some(until) = stuck.until.take() {
            self.pauses.remove(&(until, queue));
        }
        self.tidy(queue);
    }
}

impl Flow {
    /// What has waited long enough goes on.
    pub(super) fn retry_dead(&mut self) {
        while let Some((at, key)) = self.dead.later.letters.first().copied()
            && at <= self.now
        {
            self.dead.later.letters.pop_first();
            let letter = self.dead_letters.get(key).expect("what waits is there");
            self.dead.later.is_gone(letter.queue, letter.cost);
            self.dead.ready.push(key);
        }
        while let Some(queue) = self.dead.later.resume(self.now) {
            self.wake(queue);
        }
    }

    /// A queue did not take a dead letter.
    pub(super) fn dead_is_refused(&mut self, key: u64, code: Code) {
        let letter = self
            .dead_letters
            .get_mut(key)
            .expect("it was just looked at");
        if code == Code::SequenceTooOld {
            // Whether it is there cannot be told any more, and it must not be lost.
            letter.is_nameless = true;
            self.dead.ready.push(key);
            return;
        }
        if !letter.is_begun && self.move_is_refused(key) {
            return;
        }
        let letter = self
            .dead_letters
            .get_mut(key)
            .expect("it was just looked at");
        self.stats.refusals.add(code, 1);
        let (queue, cost, is_begun) = (letter.queue, letter.cost, letter.is_begun);
        // A journal that has failed takes nothing before a restart, which no volatile queue outlives.
        let source = self.queues.get(queue);
        if code == Code::JournalFailed && !source.is_some_and(|state| state.durable) {
            self.give_durable_up(key);
            self.dead.ready.push(key);
            return;
        }
        let wait = pause_ms(letter.refusals);
        letter.refusals += 1;
        if self.dead.later.has_room(queue, cost, is_begun) || source.is_none() {
            self.dead
                .later
                .add(self.now.plus_ms(wait), key, queue, cost);
            return;
        }
        let letter = self
            .dead_letters
            .remove(key)
            .expect("it was just looked at");
        self.dead.bytes -= letter.cost;
        self.dead.later.pause(queue, self.now);
        let state = self.queues.get_mut(queue).expect("it was just looked at");
        state.queue.give_dead_back(letter.sequence);
        self.stop_gathering(queue);
        self.wake_waiting();
    }

    /// The queues that a dead letter goes to next are asked no more, as far as they are durable.
    fn give_durable_up(&mut self, key: u64) {
        let letter = self
            .dead_letters
            .get_mut(key)
            .expect("it was just looked at");
        let durable = &letter.durable;
        let queues = match letter.here.is_empty() {
            false => Some(&mut letter.here),
            true => letter.others.last_mut().map(|(_, queues)| queues),
        };
        let Some(queues) = queues else { return };
        let before = queues.len();
        queues.retain(|queue| !durable.contains(queue));
        if queues.len() == before {
            queues.clear();
        }
        if letter
            .others
            .last()
            .is_some_and(|(_, queues)| queues.is_empty())
        {
            letter.others.pop();
        }
    }

    /// The journal has failed. What came from durable queues is there at the next start, and these serve
    /// nobody until then; others give up what they cannot reach any more.
    pub(crate) fn dead_has_failed(&mut self) {
        let keys: Vec<u64> = self.dead_letters.keys().collect();
        for key in keys {
            let letter = self.dead_letters.get(key).expect("it was just found");
            let (queue, cost) = (letter.queue, letter.cost);
            if self.queues.get(queue).is_some_and(|state| state.durable) {
                self.dead_letters.remove(key);
                self.dead.bytes -= cost;
            }
        }
        let letters = &self.dead_letters;
        self.dead.ready.retain(|key| letters.get(*key).is_some());
        let is_there = |(_, key): &(Mono, u64)| letters.get(*key).is_some();
        self.dead.later.letters.retain(is_there);
        self.dead.later.bytes = 0;
        for stuck in self.dead.later.stuck.values_mut() {
            stuck.letters = 0;
        }
        for (_, key) in &self.dead.later.letters {
            let letter = letters.get(*key).expect("they were just retained");
            self.dead.later.bytes += letter.cost;
            let stuck = self.dead.later.stuck.entry(letter.queue).or_default();
            stuck.letters += 1;
        }
        // What waits for a block has queues that took it; those that never write it have lost it.
        let waits = std::mem::take(&mut self.dead_waits);
        for (_, key) in waits {
            self.dead_is_done(key);
        }
        if let Some(queue) = self.dead.gathering.as_ref().map(|own| own.queue)
            && !self.is_served(queue)
        {
            self.stop_gathering(queue);
        }
        self.wake_waiting();
    }
}
