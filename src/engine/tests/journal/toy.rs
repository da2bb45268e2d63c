//! A toy engine over a journal: queues of messages, acks, checkpoints; and the log of what it did.
//! The state after a crash must be the state after exactly the operations up to the recovered block.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::control::checkpoint;
use ringpost_engine::control::compaction::{Compactor, Moved, Relocate};
use ringpost_engine::control::recovery::{Recovery, Replay, Report, Status};
use ringpost_engine::data::journal::block::BlockSequence;
use ringpost_engine::data::journal::record::{Kind, RecordHead};
use ringpost_engine::data::journal::segment::RunEntry;
use ringpost_engine::data::journal::{
    Appended, Config, Fetch, Journal, Located, NoRoom, Note, Progress, RunHead, Urgency,
};
use ringpost_engine::effect::{Buffers, Effects};
use ringpost_engine::ids::{Mono, Place};
use ringpost_wire::batch::Messages;
use ringpost_wire::ids::{PartitionId, ProducerId, QueueId, QueueSequence, Sequence};
use ringpost_wire::limits::PRODUCER_BROKER_MIN;
use ringpost_wire::{FragmentHead, MessageParts};

use super::disk::{Answer, Disk, Image, Pool, Random};

pub type Key = (u32, u64);

/// What a queue holds: sequence to payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    pub next: u64,
    pub live: BTreeMap<u64, Vec<u8>>,
}

pub type State = BTreeMap<u32, Queue>;

#[derive(Clone, Debug)]
pub enum Op {
    Publish {
        queue: u32,
        first: u64,
        payloads: Vec<Vec<u8>>,
    },
    Ack {
        queue: u32,
        sequences: Vec<u64>,
    },
}

pub fn apply(state: &mut State, op: &Op) {
    match op {
        Op::Publish {
            queue,
            first,
            payloads,
        } => {
            let queue = state.entry(*queue).or_default();
            for (index, payload) in payloads.iter().enumerate() {
                let sequence = first + index as u64;
                queue.live.insert(sequence, payload.clone());
                queue.next = queue.next.max(sequence + 1);
            }
        }
        Op::Ack { queue, sequences } => {
            let queue = state.entry(*queue).or_default();
            for sequence in sequences {
                queue.live.remove(sequence);
            }
        }
    }
}

/// What the engine itself keeps: which messages are not settled, and where they lie.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub next: BTreeMap<u32, u64>,
    /// Where each queue belongs.
    pub partitions: BTreeMap<u32, PartitionId>,
    /// Not settled; the place is unknown until the index or replay says so.
    pub live: BTreeMap<Key, Option<Place>>,
    /// The first message of each queue in a record: a body does not say it.
    pub bases: BTreeMap<(Place, u32), u64>,
    /// Settled, but the ack is not durable: where they lie.
    pub settling: BTreeMap<Key, Place>,
    /// Pieces of large messages.
    pub pieces: BTreeMap<Key, BTreeMap<u32, Place>>,
    pub incomplete: Vec<Key>,
}

impl Book {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.next.len() as u32).to_le_bytes());
        for (queue, next) in &self.next {
            out.extend_from_slice(&queue.to_le_bytes());
            out.extend_from_slice(&next.to_le_bytes());
        }
        for (queue, sequence) in self.live.keys() {
            out.extend_from_slice(&queue.to_le_bytes());
            out.extend_from_slice(&sequence.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut book = Self::default();
        let count = u32::from_le_bytes(bytes[..4].try_into().expect("4")) as usize;
        for (index, entry) in bytes[4..].chunks_exact(12).enumerate() {
            let queue = u32::from_le_bytes(entry[..4].try_into().expect("4"));
            let number = u64::from_le_bytes(entry[4..].try_into().expect("8"));
            if index < count {
                book.next.insert(queue, number);
            } else {
                book.live.insert((queue, number), None);
            }
        }
        book
    }
}

impl Book {
    fn lies(&mut self, place: Place, queue: u32, first: u64) {
        let known = self.bases.entry((place, queue)).or_insert(first);
        // A slot that was used before holds another record there now.
        *known = first;
    }
}

impl Relocate for Book {
    fn partition(&self, queue: QueueId) -> PartitionId {
        self.partitions[&queue.0]
    }

    fn is_live(&self, queue: QueueId, sequence: QueueSequence, place: Place) -> bool {
        self.live.get(&(queue.0, sequence.0)) == Some(&Some(place))
            || self
                .pieces
                .get(&(queue.0, sequence.0))
                .is_some_and(|pieces| pieces.values().any(|at| *at == place))
    }

    fn moved(&mut self, moved: &Moved) -> u32 {
        self.lies(moved.target, moved.queue.0, moved.first.0);
        let mut count = 0;
        for index in 0..moved.count {
            let key = (moved.queue.0, moved.first.0 + u64::from(index));
            if let Some(piece) = moved.piece {
                let place = self.pieces.get_mut(&key).and_then(|p| p.get_mut(&piece));
                if let Some(place) = place.filter(|place| **place == moved.source) {
                    *place = moved.target;
                    count += 1;
                }
            } else if let Some(Some(place)) = self.live.get_mut(&key)
                && *place == moved.source
            {
                *place = moved.target;
                count += 1;
            } else if let Some(place) = self.settling.get_mut(&key)
                && *place == moved.source
            {
                *place = moved.target;
                count += 1;
            }
        }
        count
    }
}

impl Replay for Book {
    fn checkpoint(&mut self, state: &[u8]) {
        *self = Book::decode(state);
    }

    fn block(&mut self, _wall_us: u64) {}

    fn index(&mut self, entry: &RunEntry, place: Place) {
        if entry.kind == Kind::Fragment {
            self.pieces
                .entry((entry.queue.0, entry.queue_sequence.0))
                .or_default()
                .insert(entry.count, place);
            return;
        }
        self.lies(place, entry.queue.0, entry.queue_sequence.0);
        for index in 0..entry.count {
            let key = (entry.queue.0, entry.queue_sequence.0 + u64::from(index));
            if let Some(at) = self.live.get_mut(&key) {
                *at = Some(place);
            }
        }
    }

    fn run(&mut self, head: &RecordHead, messages: &[u8], place: Place) {
        let walked = Messages::new(messages).count() as u32;
        assert!(walked <= head.count);
        self.lies(place, head.queue.0, head.queue_sequence.0);
        for index in 0..head.count {
            let key = (head.queue.0, head.queue_sequence.0 + u64::from(index));
            let before = self.live.insert(key, Some(place));
            assert_eq!(before, None, "a message is published once");
            let next = self.next.entry(key.0).or_insert(1);
            *next = (*next).max(key.1 + 1);
        }
    }

    fn fragment(&mut self, head: &RecordHead, body: &[u8], place: Place) {
        FragmentHead::split(body).expect("a whole piece");
        self.pieces
            .entry((head.queue.0, head.queue_sequence.0))
            .or_default()
            .insert(head.count, place);
    }

    fn relocated(&mut self, head: &RecordHead, _body: &[u8], place: Place) {
        if head.kind == Kind::Fragment {
            let key = (head.queue.0, head.queue_sequence.0);
            if let Some(pieces) = self.pieces.get_mut(&key) {
                pieces.insert(head.count, place);
            }
            return;
        }
        self.lies(place, head.queue.0, head.queue_sequence.0);
        for index in 0..head.count {
            let key = (head.queue.0, head.queue_sequence.0 + u64::from(index));
            if let Some(at) = self.live.get_mut(&key) {
                *at = Some(place);
            }
        }
    }

    fn record(&mut self, head: &RecordHead, body: &[u8]) {
        if head.kind == Kind::Ack {
            for entry in body.chunks_exact(8) {
                let sequence = u64::from_le_bytes(entry.try_into().expect("8"));
                self.live.remove(&(head.queue.0, sequence));
            }
        }
    }

    fn incomplete(&mut self, queue: QueueId, sequence: QueueSequence) {
        self.pieces.remove(&(queue.0, sequence.0));
        self.incomplete.push((queue.0, sequence.0));
    }
}

/// What a run of the toy does.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub config: Config,
    pub buffers: usize,
    pub queues: u32,
    pub payload_bytes_max: u64,
    /// Acks per publish, in percent.
    pub ack_percent: u64,
}

impl Habits {
    /// Small enough that everything happens often.
    pub fn small() -> Self {
        let mut config = Config::new(ringpost_engine::ids::JournalId(1), 0x1234_5678_9abc);
        config.buffer_bytes = 16 << 10;
        config.segment_bytes = 64 << 10;
        config.slots_max = 24;
        config.buffers_free_min = 6;
        config.partitions = 4;
        config.pack_after_ms = 20;
        config.spare_after_ms = 200;
        Self {
            config,
            buffers: 24,
            queues: 5,
            payload_bytes_max: 700,
            ack_percent: 90,
        }
    }
}

#[derive(Debug, Default, Clone)]
pub struct Marks {
    pub published: u64,
    pub shared: u64,
    pub joined: u64,
    pub checkpoints: u64,
    pub moved: u64,
    pub cold_reads: u64,
    pub refused_disk: u64,
    pub refused_buffers: u64,
    pub cut_blocks: u64,
    pub used_checkpoint: u64,
}

/// Journal, disk and the log of operations.
pub struct Toy {
    pub habits: Habits,
    pub random: Random,
    pub now: Mono,
    pub disk: Disk,
    pub pool: Pool,
    pub journal: Journal,
    pub compactor: Compactor,
    pub book: Book,
    pub effects: Effects,
    /// Operations with the block that holds them; those of blocks known recovered are folded into
    /// `base`.
    pub log: Vec<(BlockSequence, Op)>,
    pub base: State,
    /// Acks whose block is not durable.
    acks: Vec<(BlockSequence, Vec<Key>)>,
    pub marks: Marks,
    pub report: Report,
    pub failed: bool,
    payload_count: u64,
    pub checkpoints_on: bool,
}

/// Recovers an image. `None` if recovery refuses it.
pub fn recover(habits: &Habits, image: Image) -> Result<Recovered, String> {
    recover_from(habits, Disk::of(image))
}

fn partition_of(habits: &Habits, queue: u32) -> PartitionId {
    PartitionId((queue % u32::from(habits.config.partitions)) as u16)
}

pub type Recovered = (Journal, Book, Disk, Pool, Report, Effects);

/// Recovers what is on a disk.
pub fn recover_from(habits: &Habits, mut disk: Disk) -> Result<Recovered, String> {
    let mut pool = Pool::new(habits.buffers, habits.config.buffer_bytes);
    let mut effects = Effects::default();
    let mut book = Book::default();
    let mut recovery = Recovery::new(
        habits.config,
        &disk.image.heads(),
        &disk.image.checkpoints(),
    );
    loop {
        let status = recovery.step(&mut pool, &mut effects, &mut book);
        disk.take(&mut effects, &mut pool);
        match status {
            Status::Working => {
                let Answer::Io(op, result) = disk.finish_read(0, &mut pool) else {
                    unreachable!()
                };
                recovery.io_done(op, result, &mut effects);
            }
            Status::Done => break,
            Status::Failed(reason) => return Err(reason),
        }
    }
    assert!(disk.writes.is_empty(), "recovery writes nothing");
    let (mut journal, report) = recovery.finish(&mut effects);
    disk.take(&mut effects, &mut pool);
    assert_eq!(pool.held_count(), 0, "recovery keeps no buffer");
    for queue in 1..=habits.queues {
        book.partitions.insert(queue, partition_of(habits, queue));
    }
    for place in book.live.values().flatten() {
        journal.retain(place.segment, 1);
    }
    for pieces in book.pieces.values() {
        for place in pieces.values() {
            journal.retain(place.segment, 1);
        }
    }
    journal.invariants();
    Ok((journal, book, disk, pool, report, effects))
}

impl Toy {
    pub fn new(habits: Habits, seed: u64) -> Self {
        Self::open(habits, Random(seed), Image::default(), State::new())
    }

    pub fn open(habits: Habits, random: Random, image: Image, base: State) -> Self {
        Self::try_open(habits, random, image, base).expect("nothing but crashes happened")
    }

    pub fn try_open(
        habits: Habits,
        random: Random,
        image: Image,
        base: State,
    ) -> Result<Self, String> {
        let (journal, book, disk, pool, report, effects) = recover(&habits, image)?;
        Ok(Self {
            habits,
            random,
            now: Mono(1),
            disk,
            pool,
            journal,
            compactor: Compactor::default(),
            book,
            effects,
            log: Vec::new(),
            base,
            acks: Vec::new(),
            marks: Marks::default(),
            report,
            failed: false,
            payload_count: 0,
            checkpoints_on: true,
        })
    }

    /// Everything is written, a watermark says so, and nothing is in flight.
    pub fn shut_down(&mut self) {
        for _ in 0..200_000 {
            self.journal.flush(&mut self.pool, &mut self.effects);
            self.settle();
            self.disk.take(&mut self.effects, &mut self.pool);
            if self.journal.is_quiet() {
                return;
            }
            self.complete_one();
        }
        panic!("never quiet");
    }

    /// The state after the operations in blocks up to `upto`.
    pub fn state_upto(&self, upto: BlockSequence) -> State {
        let mut state = self.base.clone();
        for (block, op) in &self.log {
            if *block <= upto {
                apply(&mut state, op);
            }
        }
        state
    }

    pub fn publish(&mut self) -> Result<(), NoRoom> {
        let queue = 1 + self.random.below(u64::from(self.habits.queues)) as u32;
        self.publish_to(queue)
    }

    pub fn publish_to(&mut self, queue: u32) -> Result<(), NoRoom> {
        let producer = ProducerId(self.random.below(2));
        self.publish_as(producer, queue)
    }

    /// The broker publishes what has died in another queue.
    pub fn publish_dead(&mut self, queue: u32) -> Result<(), NoRoom> {
        self.publish_as(ProducerId(PRODUCER_BROKER_MIN | 1), queue)
    }

    /// The same messages go to several queues and are stored once.
    pub fn publish_shared(&mut self) -> Result<(), NoRoom> {
        let all = u64::from(self.habits.queues);
        let most = 2 + self.random.below(all - 1);
        // Often the same as before, so that they join.
        let least = 1 + self.random.below(3) % (all - most + 1);
        let queues: Vec<u32> = (least..least + most).map(|queue| queue as u32).collect();
        let producer = ProducerId(self.random.below(2));
        let (payloads, bytes) = self.messages();
        let count = payloads.len() as u32;
        let habits = self.habits;
        let heads: Vec<RunHead> = queues
            .iter()
            .map(|queue| {
                let first = *self.book.next.entry(*queue).or_insert(1);
                RunHead {
                    producer,
                    // A producer counts for all queues together.
                    producer_sequence: Sequence(self.payload_count - u64::from(count) + 1),
                    ..RunHead::of_queue(
                        partition_of(&habits, *queue),
                        QueueId(*queue),
                        QueueSequence(first),
                    )
                }
            })
            .collect();
        let to =
            self.journal
                .append_shared(&mut self.pool, &mut self.effects, &heads, count, &bytes)?;
        self.marks.shared += 1;
        self.marks.joined += u64::from(to == Appended::Merged);
        for (queue, head) in queues.into_iter().zip(heads) {
            self.note(queue, head.queue_sequence.0, payloads.clone(), to);
        }
        Ok(())
    }

    /// Some messages, back to back.
    fn messages(&mut self) -> (Vec<Vec<u8>>, Vec<u8>) {
        let count = 1 + self.random.below(4) as u32;
        let mut payloads = Vec::new();
        let mut bytes = Vec::new();
        for _ in 0..count {
            self.payload_count += 1;
            let length = self.random.below(self.habits.payload_bytes_max + 1);
            let tag = self.random.next().to_le_bytes();
            let payload: Vec<u8> = tag.iter().cycle().take(length as usize).copied().collect();
            let parts = MessageParts {
                payload: &payload,
                ..MessageParts::default()
            };
            parts.write(&mut bytes).expect("within limits");
            payloads.push(payload);
        }
        (payloads, bytes)
    }

    fn publish_as(&mut self, producer: ProducerId, queue: u32) -> Result<(), NoRoom> {
        let first = *self.book.next.entry(queue).or_insert(1);
        let (payloads, bytes) = self.messages();
        let count = payloads.len() as u32;
        let head = RunHead {
            producer,
            producer_sequence: Sequence(first),
            ..RunHead::of_queue(
                partition_of(&self.habits, queue),
                QueueId(queue),
                QueueSequence(first),
            )
        };
        let to =
            self.journal
                .append_run(&mut self.pool, &mut self.effects, &head, count, &bytes)?;
        self.note(queue, first, payloads, to);
        Ok(())
    }

    /// Messages were appended to a queue.
    fn note(&mut self, queue: u32, first: u64, payloads: Vec<Vec<u8>>, to: Appended) {
        let place = match to {
            Appended::New(place) => {
                self.book.lies(place, queue, first);
                place
            }
            Appended::Merged => self.book.live[&(queue, first - 1)].expect("just appended"),
        };
        let count = payloads.len() as u64;
        for index in 0..count {
            self.book.live.insert((queue, first + index), Some(place));
        }
        self.book.next.insert(queue, first + count);
        self.marks.published += count;
        let op = Op::Publish {
            queue,
            first,
            payloads,
        };
        self.log.push((self.journal.open_block(), op));
    }

    /// Acks some messages of one queue that are durable.
    pub fn ack(&mut self, most: usize) -> Result<(), NoRoom> {
        let durable = self.state_keys_durable();
        let Some((queue, _)) = self.pick(&durable) else {
            return Ok(());
        };
        let mut keys: Vec<Key> = durable.iter().copied().filter(|k| k.0 == queue).collect();
        let skip = self.random.below(keys.len() as u64) as usize;
        keys.rotate_left(skip);
        keys.truncate(most);
        self.ack_keys(queue, &keys)
    }

    pub fn ack_keys(&mut self, queue: u32, keys: &[Key]) -> Result<(), NoRoom> {
        let sequences: Vec<u64> = keys.iter().map(|key| key.1).collect();
        let mut body = Vec::new();
        for sequence in &sequences {
            body.extend_from_slice(&sequence.to_le_bytes());
        }
        let note = Note {
            kind: Kind::Ack,
            head: RunHead::of_queue(
                partition_of(&self.habits, queue),
                QueueId(queue),
                QueueSequence(0),
            ),
            count: sequences.len() as u32,
            urgency: match self.random.chance(3) {
                true => Urgency::Now,
                false => Urgency::Trickle,
            },
        };
        self.journal
            .append_record(&mut self.pool, &mut self.effects, &note, &body)?;
        for key in keys {
            let place = self.book.live.remove(key).flatten().expect("live");
            self.book.settling.insert(*key, place);
        }
        let block = self.journal.open_block();
        self.acks.push((block, keys.to_vec()));
        self.log.push((block, Op::Ack { queue, sequences }));
        Ok(())
    }

    fn pick(&mut self, keys: &[Key]) -> Option<Key> {
        if keys.is_empty() {
            return None;
        }
        Some(keys[self.random.below(keys.len() as u64) as usize])
    }

    fn state_keys_durable(&self) -> Vec<Key> {
        let durable = self.journal.durable_block();
        let mut pending: BTreeSet<Key> = BTreeSet::new();
        for (block, op) in self.log.iter().rev() {
            if *block <= durable {
                break;
            }
            if let Op::Publish {
                queue,
                first,
                payloads,
            } = op
            {
                pending.extend((0..payloads.len() as u64).map(|i| (*queue, first + i)));
            }
        }
        self.book
            .live
            .keys()
            .filter(|key| !pending.contains(key))
            .copied()
            .collect()
    }

    pub fn turn_end(&mut self) {
        self.journal
            .turn_end(self.now, &mut self.pool, &mut self.effects);
        self.settle();
        if self.checkpoints_on && checkpoint::is_due(&self.journal, self.now) {
            self.checkpoint();
        }
        let moved = self.compactor.moved_count();
        self.compactor.poll(
            self.now,
            &mut self.journal,
            &mut self.book,
            &mut self.pool,
            &mut self.effects,
        );
        self.marks.moved += self.compactor.moved_count() - moved;
        self.disk.take(&mut self.effects, &mut self.pool);
        self.journal.invariants();
    }

    pub fn checkpoint(&mut self) {
        let state = self.book.encode();
        checkpoint::begin(&mut self.journal, state, &mut self.pool, &mut self.effects);
        self.disk.take(&mut self.effects, &mut self.pool);
        self.marks.checkpoints += 1;
    }

    /// Drops what acks have durably settled.
    fn settle(&mut self) {
        let durable = self.journal.durable_block();
        let mut left = Vec::new();
        for (block, keys) in std::mem::take(&mut self.acks) {
            if block > durable {
                left.push((block, keys));
                continue;
            }
            for key in keys {
                let place = self.book.settling.remove(&key).expect("settling");
                self.journal.drop_live(place.segment, 1);
            }
        }
        self.acks = left;
    }

    pub fn answer(&mut self, answer: Answer) {
        let progress = match answer {
            Answer::Io(op, result) => {
                self.journal
                    .io_done(op, result, &mut self.pool, &mut self.effects)
            }
            Answer::File(op, result) => {
                self.journal
                    .file_done(op, result, self.now, &mut self.effects)
            }
        };
        match progress {
            Progress::Failed => self.failed = true,
            Progress::Arrived { .. } => self.marks.cold_reads += 1,
            Progress::Durable(_) | Progress::Nothing | Progress::Unreadable(_) => {}
        }
        self.disk.take(&mut self.effects, &mut self.pool);
    }

    /// Lets one random thing of what is in flight come back.
    pub fn complete_one(&mut self) -> bool {
        let counts = [
            self.disk.writes.len(),
            self.disk.reads.len(),
            self.disk.files.len(),
        ];
        let all: usize = counts.iter().sum();
        if all == 0 {
            return false;
        }
        let mut at = self.random.below(all as u64) as usize;
        let answer = if at < counts[0] {
            self.disk.finish_write(at, &mut self.pool)
        } else {
            at -= counts[0];
            if at < counts[1] {
                self.disk.finish_read(at, &mut self.pool)
            } else {
                self.disk.finish_file(at - counts[1])
            }
        };
        self.answer(answer);
        true
    }

    /// Runs until nothing is in flight and every deadline has passed.
    pub fn settle_down(&mut self) {
        let started = self.now;
        for _ in 0..200_000 {
            self.turn_end();
            if self.now.ms_since(started) > 5_000 {
                // All that is left is a file that there is no space for.
                return;
            }
            if !self.complete_one() {
                let deadlines = [self.journal.next_deadline(), self.compactor.next_deadline()];
                match deadlines.into_iter().flatten().min() {
                    Some(deadline) => self.now = self.now.max(deadline),
                    None => return,
                }
            }
            if self.failed {
                return;
            }
        }
        panic!(
            "never quiet: now {:?}, journal {:?}, compactor {:?}, idle {}",
            self.now,
            self.journal.next_deadline(),
            self.compactor.next_deadline(),
            self.compactor.is_idle()
        );
    }

    /// A random step of everything.
    pub fn random_step(&mut self) {
        match self.random.below(10) {
            0..=3 if self.journal.is_ready() => {
                match match self.habits.queues > 1 && self.random.chance(3) {
                    true => self.publish_shared(),
                    false => self.publish(),
                } {
                    Ok(()) | Err(NoRoom::Closed | NoRoom::Slot) => {}
                    Err(NoRoom::Disk) => self.marks.refused_disk += 1,
                    Err(NoRoom::Buffers) => self.marks.refused_buffers += 1,
                }
            }
            4..=5 if self.journal.is_ready() => {
                if self.random.below(100) < self.habits.ack_percent {
                    let most = 1 + self.random.below(12) as usize;
                    let _no_room_is_fine = self.ack(most);
                }
            }
            6 => self.now = Mono(self.now.0 + self.random.below(8_000_000)),
            7 => self.turn_end(),
            _ => {
                self.complete_one();
                if self.random.chance(2) {
                    self.turn_end();
                }
            }
        }
        self.disk.take(&mut self.effects, &mut self.pool);
    }

    /// Everything dies. Returns what is on disk, and what a recovery must find: at least the state
    /// up to `durable`.
    pub fn crash(mut self) -> Crashed {
        let durable = self.journal.durable_block();
        let image = self.disk.crash(&mut self.random);
        Crashed {
            habits: self.habits,
            random: self.random,
            image,
            log: self.log,
            base: self.base,
            durable,
            marks: self.marks,
        }
    }

    /// Every message that is live must be readable, with its own bytes.
    pub fn check_contents(&mut self, state: &State) -> Result<(), String> {
        let keys: Vec<Key> = self.book.live.keys().copied().collect();
        for key in keys {
            let payload = self.read(key)?;
            if state[&key.0].live[&key.1] != payload {
                return Err(format!("{key:?} has other bytes"));
            }
        }
        Ok(())
    }

    /// The payload of a live message.
    pub fn read(&mut self, key: Key) -> Result<Vec<u8>, String> {
        let place = self.book.live[&key].ok_or(format!("{key:?} has no place"))?;
        let (queue, sequence) = (QueueId(key.0), QueueSequence(key.1));
        for _ in 0..10_000 {
            match self.journal.locate(&self.pool, place, queue, sequence) {
                Located::Cached { buffer, body, head } => {
                    let base = match head.kind {
                        Kind::Body => self.book.bases[&(place, key.0)],
                        _ => head.queue_sequence.0,
                    };
                    let index = sequence.0 - base;
                    let bytes = self.pool.bytes(buffer, body);
                    let message = Messages::new(bytes).nth(index as usize);
                    let message = message.expect("in the run").expect("well formed");
                    message.envelope.check_crc().expect("proved before");
                    return Ok(message.envelope.payload().to_vec());
                }
                Located::Cold => {
                    let asked = self.journal.fetch(&mut self.pool, &mut self.effects, place);
                    if asked == Fetch::Busy {
                        self.turn_end();
                    }
                    self.disk.take(&mut self.effects, &mut self.pool);
                }
                Located::Coming => {
                    self.complete_one();
                }
                Located::Damaged => return Err(format!("{key:?} at {place:?} is damaged")),
            }
        }
        panic!("{key:?} at {place:?} is read for ever");
    }
}

pub struct Crashed {
    pub habits: Habits,
    pub random: Random,
    pub image: Image,
    pub log: Vec<(BlockSequence, Op)>,
    pub base: State,
    pub durable: BlockSequence,
    pub marks: Marks,
}

impl Crashed {
    /// Recovers and compares with the log.
    pub fn reopen(self) -> Toy {
        let mut toy = Toy::open(self.habits, self.random, self.image, self.base);
        toy.log = self.log;
        toy.marks = self.marks;
        let recovered = toy.journal.durable_block();
        assert!(
            recovered >= self.durable,
            "block {} was durable, recovered only up to {}",
            self.durable.0,
            recovered.0
        );
        assert_eq!(toy.report.damages, [], "a crash is no damage");
        assert_eq!(
            toy.report.findings,
            [] as [String; 0],
            "a crash is no damage"
        );
        let expected = toy.state_upto(recovered);
        compare(&expected, &toy.book);
        toy.check_contents(&expected).expect("readable");
        toy.marks.cut_blocks += toy.report.cut_count;
        toy.marks.used_checkpoint += u64::from(toy.report.generation > 0);
        toy.log.clear();
        toy.base = expected;
        toy
    }
}

/// Whether the book holds exactly what is expected.
pub fn matches(expected: &State, book: &Book) -> bool {
    let wanted = expected
        .iter()
        .flat_map(|(queue, held)| held.live.keys().map(|sequence| (*queue, *sequence)));
    wanted.eq(book.live.keys().copied())
        && expected
            .iter()
            .all(|(queue, held)| book.next.get(queue).copied().unwrap_or(1) == held.next.max(1))
}

pub fn compare(expected: &State, book: &Book) {
    let wanted: Vec<Key> = expected
        .iter()
        .flat_map(|(queue, held)| held.live.keys().map(|sequence| (*queue, *sequence)))
        .collect();
    let got: Vec<Key> = book.live.keys().copied().collect();
    assert_eq!(got, wanted, "the live messages");
    for (queue, held) in expected {
        assert_eq!(
            book.next.get(queue).copied().unwrap_or(1),
            held.next.max(1),
            "the next sequence of queue {queue}"
        );
    }
}
