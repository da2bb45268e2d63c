//! Which sequences of each producer a queue has stored, so that a publish sent again after a lost
//! connection is not stored twice (rulings 16). Does not know messages or connections.
//!
//! Kept per queue, not per partition: a fan-out writes a record for each queue, and a crash can fall
//! between two of them. Per producer and queue: the highest sequence stored, from where on all up to it
//! are, and a bitmap of the last [`WINDOW`] below it. Refused publishes are not in it.

use std::collections::BTreeMap;

use ringpost_wire::ids::{ProducerId, QueueId};
use ringpost_wire::limits::PRODUCER_BROKER_MIN;

use crate::data::table::Table;

/// Sequences remembered below the highest one (P-38).
pub const WINDOW: u64 = 1_024;
/// Pairs of producer and queue remembered; beyond them the oldest is forgotten.
pub const WINDOWS_MAX: usize = 8_192;
/// Producers whose epoch is remembered although no queue here has stored anything of them.
pub const EPOCHS_MAX: usize = 8_192;

/// Who publishes dead letters of which nobody knows any more whether they were stored: the broker, by no
/// name. Nothing is remembered of it.
pub const BROKER_NAMELESS: ProducerId = ProducerId(PRODUCER_BROKER_MIN);

const WORDS: usize = (WINDOW / 64) as usize;

/// What a sequence is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Not stored.
    New,
    /// Stored before: it is to be confirmed, not stored again.
    Before,
    /// Below the window: whether it was stored is not known any more.
    TooOld,
    /// The producer was opened again with a newer epoch.
    Fenced,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    epoch: u32,
    highest: u64,
    /// All from here up to the highest are stored: who publishes to one queue is known however far it
    /// goes back.
    solid_from: u64,
    /// Bit `n % WINDOW` is sequence `n`, for the last [`WINDOW`] up to the highest.
    bits: [u64; WORDS],
}

impl Window {
    const fn new(epoch: u32) -> Self {
        Self {
            epoch,
            highest: 0,
            solid_from: 1,
            bits: [0; WORDS],
        }
    }

    fn slot(sequence: u64) -> (usize, u64) {
        let bit = sequence % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn judge(&self, sequence: u64) -> Seen {
        if sequence > self.highest {
            Seen::New
        } else if sequence >= self.solid_from {
            Seen::Before
        } else if self.highest - sequence >= WINDOW + u64::from(crate::mutant!(WindowOneTooLong)) {
            match crate::mutant!(BelowTheWindowIsNew) {
                true => Seen::New,
                false => Seen::TooOld,
            }
        } else {
            let (word, bit) = Self::slot(sequence);
            if self.bits[word] & bit == 0 {
                Seen::New
            } else {
                Seen::Before
            }
        }
    }

    fn store(&mut self, first: u64, last: u64) {
        if first > self.highest + 1 {
            self.solid_from = first;
        } else if last + 1 >= self.solid_from {
            self.solid_from = self.solid_from.min(first);
        }
        if last > self.highest {
            // What falls between, and was never stored, is not: its bits must not stay from a
            // window's length before.
            if last - self.highest >= WINDOW {
                self.bits = [0; WORDS];
            } else if !crate::mutant!(GapKeepsBits) {
                self.mark(self.highest + 1, last, false);
            }
            self.highest = last;
        }
        let lowest = (self.highest + 1).saturating_sub(WINDOW);
        if last + 1 - first >= WINDOW {
            self.bits = [u64::MAX; WORDS];
            return;
        }
        if first.max(lowest) <= last {
            self.mark(first.max(lowest), last, true);
        }
    }

    /// Sets or clears the bits of `first..=last`, fewer than a window, by words: a producer that takes
    /// turns over many queues leaves a long gap in each of them with every message.
    fn mark(&mut self, first: u64, last: u64, is_stored: bool) {
        debug_assert!(first <= last && last - first < WINDOW);
        let mut change = |word: usize, mask: u64| {
            if is_stored {
                self.bits[word] |= mask;
            } else {
                self.bits[word] &= !mask;
            }
        };
        let (one, two) = ((first % WINDOW) as usize, (last % WINDOW) as usize);
        let (head, tail) = (one / 64, two / 64);
        let from = u64::MAX << (one % 64);
        let upto = u64::MAX >> (63 - two % 64);
        if head == tail && one <= two {
            change(head, from & upto);
            return;
        }
        change(head, from);
        change(tail, upto);
        let between = if is_stored { u64::MAX } else { 0 };
        if head < tail {
            self.bits[head + 1..tail].fill(between);
        } else {
            self.bits[head + 1..].fill(between);
            self.bits[..tail].fill(between);
        }
    }
}

/// Producer and queue.
type Pair = (u64, u32);

/// The windows of one core.
#[derive(Default)]
pub struct Dedup {
    windows: Vec<Window>,
    /// Where the window of a pair stands.
    places: Table<Pair, u32>,
    /// The pair looked up last: a publish asks before it stores.
    last: Option<(Pair, u32)>,
    /// Pairs by age, oldest first.
    ages: BTreeMap<u64, Pair>,
    made: u64,
    epochs: Epochs,
}

/// The newest epoch of the producers opened last. Gone with the process: what is stored under an
/// epoch says so in its window.
#[derive(Default)]
struct Epochs {
    /// By producer: its epoch, and when it was noted.
    newest: Table<u64, (u32, u64)>,
    /// Producers by when they were noted, oldest first.
    ages: BTreeMap<u64, u64>,
    noted: u64,
}

impl Epochs {
    fn of(&self, producer: ProducerId) -> u32 {
        self.newest.get(&producer.0).map_or(0, |(epoch, _)| *epoch)
    }

    fn note(&mut self, producer: ProducerId, epoch: u32) {
        let mut newest = epoch;
        if let Some((before, age)) = self.newest.remove(&producer.0) {
            newest = newest.max(before);
            self.ages.remove(&age);
        } else if self.newest.len() >= EPOCHS_MAX
            && let Some((_, oldest)) = self.ages.pop_first()
        {
            self.newest.remove(&oldest);
        }
        self.noted += 1;
        self.ages.insert(self.noted, producer.0);
        self.newest.insert(producer.0, (newest, self.noted));
    }
}

/// What a core knows of a producer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Known {
    /// The sequence after the highest one stored, over all queues of the core; 1 if there is none.
    pub next: u64,
    /// The newest epoch it was opened or stored with, 0 if there is none.
    pub epoch: u32,
}

impl Known {
    /// What two cores know together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            next: self.next.max(other.next),
            epoch: self.epoch.max(other.epoch),
        }
    }
}

impl Dedup {
    fn window(&self, pair: Pair) -> Option<&Window> {
        let place = *self.places.get(&pair)?;
        Some(&self.windows[place as usize])
    }

    /// As [`Dedup::window`], to change; the pair is remembered.
    fn window_mut(&mut self, pair: Pair) -> Option<&mut Window> {
        let place = match self.last {
            Some((last, place)) if last == pair => place,
            _ => *self.places.get(&pair)?,
        };
        self.last = Some((pair, place));
        Some(&mut self.windows[place as usize])
    }

    /// Adds the window of a pair that has none.
    fn add(&mut self, pair: Pair, window: Window) {
        let oldest = match self.windows.len() {
            0..WINDOWS_MAX => None,
            _ => self.ages.pop_first(),
        };
        let place = match oldest {
            Some((_, pair)) => {
                let place = self.places.remove(&pair);
                let place = place.expect("every pair that has an age has a place");
                self.windows[place as usize] = window;
                place
            }
            None => {
                self.windows.push(window);
                self.windows.len() as u32 - 1
            }
        };
        self.made += 1;
        self.places.insert(pair, place);
        self.ages.insert(self.made, pair);
        self.last = Some((pair, place));
    }

    /// What sequence `sequence` of a producer is to a queue. Producer 0 gave no identity.
    #[must_use]
    pub fn judge(&self, producer: ProducerId, epoch: u32, queue: QueueId, sequence: u64) -> Seen {
        match self.window((producer.0, queue.0)) {
            Some(window) if epoch < window.epoch && !crate::mutant!(OlderEpochPasses) => {
                Seen::Fenced
            }
            Some(window) => window.judge(sequence),
            None if epoch < self.epochs.of(producer) => Seen::Fenced,
            None => Seen::New,
        }
    }

    /// Whether all of `first..` are new to a queue: higher than any before.
    #[must_use]
    pub fn is_ahead(
        &mut self,
        producer: ProducerId,
        epoch: u32,
        queue: QueueId,
        first: u64,
    ) -> bool {
        match self.window_mut((producer.0, queue.0)) {
            Some(window) => epoch >= window.epoch && first > window.highest,
            None => epoch >= self.epochs.of(producer),
        }
    }

    /// Sequences `first..=last` are stored in a queue.
    pub fn store(
        &mut self,
        producer: ProducerId,
        epoch: u32,
        queue: QueueId,
        (first, last): (u64, u64),
    ) {
        if producer.0 == 0 || producer == BROKER_NAMELESS || first == 0 {
            return;
        }
        let pair = (producer.0, queue.0);
        if let Some(window) = self.window_mut(pair) {
            window.epoch = window.epoch.max(epoch);
            window.store(first, last);
            return;
        }
        let mut window = Window::new(epoch);
        window.store(first, last);
        self.add(pair, window);
    }

    /// Each of `sequences`, which rise, is stored in a queue. Those that fall out of the window at once
    /// are not looked at.
    pub fn store_each(
        &mut self,
        producer: ProducerId,
        epoch: u32,
        queue: QueueId,
        sequences: &[u64],
    ) {
        let Some(last) = sequences.last() else {
            return;
        };
        let within = sequences.partition_point(|sequence| last - sequence >= WINDOW);
        for sequence in &sequences[within..] {
            self.store(producer, epoch, queue, (*sequence, *sequence));
        }
    }

    /// What is known of a producer.
    #[must_use]
    pub fn known(&self, producer: ProducerId) -> Known {
        let none = Known {
            next: 1,
            epoch: self.epochs.of(producer),
        };
        let of_producer = self.ages.values().filter(|pair| pair.0 == producer.0);
        let windows = of_producer.filter_map(|pair| self.window(*pair));
        windows.fold(none, |known, window| {
            known.and(Known {
                next: window.highest + 1,
                epoch: window.epoch,
            })
        })
    }

    /// A producer was opened with `epoch`: nothing is stored under an older one any more. Says what
    /// was known before.
    //= P-30
    pub fn fence(&mut self, producer: ProducerId, epoch: u32) -> Known {
        let before = self.known(producer);
        self.epochs.note(producer, epoch);
        for pair in self.ages.values().filter(|pair| pair.0 == producer.0) {
            let place = self.places.get(pair).expect("every pair has a place");
            let window = &mut self.windows[*place as usize];
            window.epoch = window.epoch.max(epoch);
        }
        before
    }

    /// Takes the windows of queues for which `takes` says so from `other`.
    pub fn adopt(&mut self, other: &Dedup, takes: impl Fn(QueueId) -> bool) {
        for pair in other.ages.values().filter(|pair| takes(QueueId(pair.1))) {
            let window = other.window(*pair).expect("every pair has a window");
            match self.window_mut(*pair) {
                Some(own) => *own = *window,
                None => self.add(*pair, *window),
            }
        }
    }

    /// Appends every window, for a checkpoint: count u32, then producer u64, queue u32, epoch u32,
    /// highest u64, solid from u64, bits.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.ages.len() as u32).to_le_bytes());
        for pair in self.ages.values() {
            let window = self.window(*pair).expect("every pair has a window");
            out.extend_from_slice(&pair.0.to_le_bytes());
            out.extend_from_slice(&pair.1.to_le_bytes());
            out.extend_from_slice(&window.epoch.to_le_bytes());
            out.extend_from_slice(&window.highest.to_le_bytes());
            out.extend_from_slice(&window.solid_from.to_le_bytes());
            for word in window.bits {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Reads what [`Dedup::encode`] wrote; `None` if the bytes are no such thing.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        const ENTRY_BYTES: usize = 32 + 8 * WORDS;
        let (count, entries) = bytes.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        if count > WINDOWS_MAX || entries.len() != count * ENTRY_BYTES {
            return None;
        }
        let u64_at = |entry: &[u8], at: usize| {
            entry[at..at + 8]
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let mut dedup = Self::default();
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let numbers = u64_at(entry, 8);
            let mut window = Window::new((numbers >> 32) as u32);
            window.highest = u64_at(entry, 16);
            window.solid_from = u64_at(entry, 24);
            if window.solid_from == 0 || window.solid_from > window.highest + 1 {
                return None;
            }
            for (idx, word) in window.bits.iter_mut().enumerate() {
                *word = u64_at(entry, 32 + 8 * idx);
            }
            let pair = (u64_at(entry, 0), numbers as u32);
            if dedup.places.contains(&pair) {
                return None;
            }
            dedup.add(pair, window);
        }
        Some(dedup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCER: ProducerId = ProducerId(7);
    const QUEUE: QueueId = QueueId(3);

    fn judge(dedup: &Dedup, sequence: u64) -> Seen {
        dedup.judge(PRODUCER, 0, QUEUE, sequence)
    }

    #[test]
    fn many_at_once_are_as_good_as_one_after_another() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            // xorshift64: Marsaglia 2003.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..200 {
            let (mut one, mut many) = (Dedup::default(), Dedup::default());
            let mut next = 1;
            for _ in 0..10 {
                let step = 1 + random(1_500);
                let count = 1 + random(50);
                let sequences: Vec<u64> = (0..count)
                    .map(|_| {
                        next += 1 + random(step);
                        next
                    })
                    .collect();
                for sequence in &sequences {
                    one.store(PRODUCER, 0, QUEUE, (*sequence, *sequence));
                }
                many.store_each(PRODUCER, 0, QUEUE, &sequences);
            }
            for sequence in next.saturating_sub(2 * WINDOW).max(1)..=next + 1 {
                let (one, many) = (judge(&one, sequence), judge(&many, sequence));
                // What is too old may be known by one of them.
                assert!(one == many || (one, many) == (Seen::Before, Seen::TooOld));
            }
        }
    }

    #[test]
    fn what_was_stored_is_known_within_the_window() {
        let mut dedup = Dedup::default();
        assert_eq!(judge(&dedup, 1), Seen::New);
        dedup.store(PRODUCER, 0, QUEUE, (1, 10));
        dedup.store(PRODUCER, 0, QUEUE, (12, 20));
        assert_eq!(judge(&dedup, 10), Seen::Before);
        assert_eq!(judge(&dedup, 11), Seen::New);
        assert_eq!(judge(&dedup, 20), Seen::Before);
        assert_eq!(judge(&dedup, 21), Seen::New);
        assert!(dedup.is_ahead(PRODUCER, 0, QUEUE, 21));
        assert!(!dedup.is_ahead(PRODUCER, 0, QUEUE, 20));
        assert_eq!(dedup.known(PRODUCER).next, 21);
        assert_eq!(dedup.judge(PRODUCER, 0, QueueId(4), 5), Seen::New);
    }

    #[test]
    fn the_window_slides() {
        let mut dedup = Dedup::default();
        dedup.store(PRODUCER, 0, QUEUE, (1, 1));
        dedup.store(PRODUCER, 0, QUEUE, (3, 5_000));
        for sequence in 1..=2 {
            assert_eq!(judge(&dedup, sequence), Seen::TooOld);
        }
        // Without a gap nothing is too old.
        assert_eq!(judge(&dedup, 3), Seen::Before);
        for sequence in 5_001 - WINDOW..=5_000 {
            assert_eq!(judge(&dedup, sequence), Seen::Before);
        }
        // A gap leaves no bits of an earlier round behind.
        dedup.store(PRODUCER, 0, QUEUE, (5_500, 5_500));
        for sequence in 5_001..5_500 {
            assert_eq!(judge(&dedup, sequence), Seen::New, "{sequence}");
        }
        assert_eq!(judge(&dedup, 4_900), Seen::Before);
        dedup.store(PRODUCER, 0, QUEUE, (90_000, 90_000));
        assert_eq!(judge(&dedup, 89_999), Seen::New);
    }

    /// However much was on its way when the broker died.
    #[test]
    fn a_producer_of_one_queue_is_known_to_its_first() {
        let mut dedup = Dedup::default();
        for batch in 0..100 {
            let first = 7 + 1_000 * batch;
            dedup.store(PRODUCER, 0, QUEUE, (first, first + 999));
        }
        let mut bytes = Vec::new();
        dedup.encode(&mut bytes);
        let restored = Dedup::decode(&bytes).expect("as written");
        for dedup in [&dedup, &restored] {
            assert_eq!(judge(dedup, 6), Seen::TooOld);
            assert_eq!(judge(dedup, 7), Seen::Before);
            assert_eq!(judge(dedup, 100_006), Seen::Before);
            assert_eq!(judge(dedup, 100_007), Seen::New);
        }
    }

    #[test]
    fn the_window_agrees_with_a_set() {
        let mut dedup = Dedup::default();
        let mut stored = std::collections::BTreeSet::new();
        let mut random = 1u64;
        for _ in 0..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let highest: u64 = stored.last().copied().unwrap_or(0);
            // Mostly near the highest, at times a long way behind it or beyond.
            let ahead = match (random >> 20) % 8 {
                0 => 1_100,
                _ => 40,
            };
            let first = (highest + ahead)
                .saturating_sub((random >> 33) % 1_200)
                .max(1);
            let last = first + (random >> 50) % 30;
            for sequence in first..=last {
                let is_below = sequence <= highest && highest - sequence >= WINDOW;
                let is_stored = stored.contains(&sequence);
                match judge(&dedup, sequence) {
                    Seen::New => assert!(!is_stored && !is_below, "{sequence}"),
                    Seen::Before => assert!(is_stored, "{sequence}"),
                    Seen::TooOld => assert!(is_below, "{sequence}"),
                    Seen::Fenced => panic!("there is one epoch"),
                }
            }
            dedup.store(PRODUCER, 0, QUEUE, (first, last));
            stored.extend(first..=last);
        }
    }

    #[test]
    fn an_open_fences_before_anything_is_stored() {
        let mut dedup = Dedup::default();
        dedup.store(PRODUCER, 2, QUEUE, (1, 3));
        let before = dedup.fence(PRODUCER, 5);
        assert_eq!(before, Known { next: 4, epoch: 2 });
        for queue in [QUEUE, QueueId(4)] {
            assert_eq!(dedup.judge(PRODUCER, 4, queue, 9), Seen::Fenced);
            assert!(!dedup.is_ahead(PRODUCER, 4, queue, 9));
            assert!(dedup.is_ahead(PRODUCER, 5, queue, 9));
        }
        // An older one that comes late changes nothing.
        assert_eq!(dedup.fence(PRODUCER, 3), Known { next: 4, epoch: 5 });
        assert_eq!(dedup.known(PRODUCER).epoch, 5);
        for number in 0..2 * EPOCHS_MAX as u64 {
            dedup.fence(ProducerId(100 + number), 1);
        }
        assert!(dedup.epochs.newest.len() <= EPOCHS_MAX);
        // What is stored is known longer.
        assert_eq!(dedup.judge(PRODUCER, 4, QUEUE, 9), Seen::Fenced);
    }

    #[test]
    fn a_newer_epoch_fences_and_state_survives() {
        let mut dedup = Dedup::default();
        dedup.store(PRODUCER, 4, QUEUE, (1, 3));
        assert_eq!(dedup.judge(PRODUCER, 3, QUEUE, 9), Seen::Fenced);
        assert_eq!(dedup.judge(PRODUCER, 5, QUEUE, 3), Seen::Before);
        let mut bytes = Vec::new();
        dedup.encode(&mut bytes);
        let decoded = Dedup::decode(&bytes).expect("it was just written");
        assert_eq!(decoded.judge(PRODUCER, 5, QUEUE, 3), Seen::Before);
        assert_eq!(decoded.known(PRODUCER), Known { next: 4, epoch: 4 });
        for len in 0..bytes.len() {
            assert!(Dedup::decode(&bytes[..len]).is_none(), "cut at {len}");
        }
        for number in 0..2 * WINDOWS_MAX as u64 {
            dedup.store(ProducerId(100 + number), 0, QUEUE, (1, 1));
        }
        assert!(dedup.windows.len() <= WINDOWS_MAX);
        assert_eq!(dedup.judge(PRODUCER, 5, QUEUE, 3), Seen::New);
    }
}
