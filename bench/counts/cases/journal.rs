//! Cases of the journal: messages appended, sealed and known to be durable, and a journal read back
//! by recovery, on a device that costs nothing. Does not know queues.

use std::hint::black_box;
use std::ops::Range;

use ringpost_engine::control::checkpoint;
use ringpost_engine::control::recovery::{Recovery, Replay, Status};
use ringpost_engine::data::journal::record::RecordHead;
use ringpost_engine::data::journal::segment::RunEntry;
use ringpost_engine::data::journal::{Appended, Config, Journal, RunHead};
use ringpost_engine::effect::{Buffers, Effect, Effects, FileOp};
use ringpost_engine::ids::{BufferId, JournalId, Mono, Place};
use ringpost_engine::input::{FileReply, SlotHead};
use ringpost_wire::MessageParts;
use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

use super::Case;

const BUFFER_BYTES: u32 = 256 << 10;
const QUEUES: usize = 64;
/// Messages that are sealed together, and of a round.
const BLOCK_MESSAGES: usize = 128;
const ROUND_BLOCKS: usize = 32;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("journal/append/100B/runs-of-1", || append(100, 1)),
        Case::new("journal/append/100B/runs-of-128", || append(100, 128)),
        Case::new("journal/append/1KiB/runs-of-1", || append(1 << 10, 1)),
        Case::new("journal/append/1KiB/runs-of-128", || append(1 << 10, 128)),
        Case::new("journal/recover/100B", || recover(100)),
        Case::new("journal/recover/1KiB", || recover(1 << 10)),
    ]
}

struct Pool {
    bytes: Vec<Vec<u8>>,
    free: Vec<u32>,
}

impl Pool {
    fn new() -> Self {
        Self {
            bytes: vec![vec![0; BUFFER_BYTES as usize]; 32],
            free: (0..32).collect(),
        }
    }
}

impl Buffers for Pool {
    fn buffer_bytes(&self) -> u32 {
        BUFFER_BYTES
    }

    fn available(&self) -> usize {
        self.free.len()
    }

    fn acquire(&mut self) -> Option<BufferId> {
        self.free.pop().map(BufferId)
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        &self.bytes[buffer.0 as usize][range.start as usize..range.end as usize]
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        &mut self.bytes[buffer.0 as usize][from as usize..]
    }

    fn seal(&mut self, _buffer: BufferId, _upto: u32) {}
}

/// What becomes of the bytes that are written.
#[derive(Clone, Copy, PartialEq)]
enum Device {
    Forgets,
    Keeps,
}

/// A journal and what it needs.
struct Scene {
    config: Config,
    journal: Journal,
    pool: Pool,
    effects: Effects,
    now: Mono,
    device: Device,
    slots: Vec<Vec<u8>>,
    /// The sequence of each queue's next message.
    next: [u64; QUEUES],
    places: Vec<Place>,
}

impl Scene {
    fn new(device: Device) -> Self {
        let mut config = Config::new(JournalId(1), 7);
        config.segment_bytes = 16 << 20;
        let mut scene = Self {
            config,
            journal: Journal::fresh(config),
            pool: Pool::new(),
            effects: Effects::default(),
            now: Mono(1),
            device,
            slots: Vec::new(),
            next: [1; QUEUES],
            places: Vec::new(),
        };
        while !scene.journal.is_ready() || !scene.journal.is_supplied() {
            scene.end_turn();
        }
        scene
    }

    fn end_turn(&mut self) {
        self.now = self.now.plus_ms(1);
        let (buffers, effects) = (&mut self.pool, &mut self.effects);
        self.journal.turn_end(self.now, buffers, effects);
        self.do_all();
    }

    /// Does what the effects ask for, at once.
    fn do_all(&mut self) {
        let mut at = 0;
        while at < self.effects.list.len() {
            match &self.effects.list[at] {
                Effect::Write {
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                } => {
                    let op = *op;
                    if self.device == Device::Keeps {
                        let bytes = self.pool.bytes(*buffer, range.clone());
                        let at = *position as usize;
                        self.slots[slot.0 as usize][at..at + bytes.len()].copy_from_slice(bytes);
                    }
                    let (buffers, effects) = (&mut self.pool, &mut self.effects);
                    self.journal.io_done(op, Ok(()), buffers, effects);
                }
                Effect::File { op, what } => {
                    let op = *op;
                    if let (Device::Keeps, FileOp::CreateSlot { slot, bytes }) = (self.device, what)
                    {
                        assert_eq!(slot.0 as usize, self.slots.len(), "slots are made in order");
                        self.slots.push(vec![0; *bytes as usize]);
                    }
                    let done = Ok(FileReply::Done);
                    self.journal
                        .file_done(op, done, self.now, &mut self.effects);
                }
                Effect::Release { buffer } => self.pool.free.push(buffer.0),
                _ => {}
            }
            at += 1;
        }
        self.effects.clear();
    }

    /// Appends a block of messages in runs, one queue after the other, and waits until it is durable.
    fn append_block(&mut self, messages: &[u8], run: usize) {
        for number in 0..BLOCK_MESSAGES / run {
            let queue = number % QUEUES;
            let first = QueueSequence(self.next[queue]);
            let (partition, id) = (PartitionId(queue as u16), QueueId(queue as u32));
            let head = RunHead::of_queue(partition, id, first);
            let (buffers, effects) = (&mut self.pool, &mut self.effects);
            let appended = self
                .journal
                .append_run(buffers, effects, &head, run as u32, messages);
            match appended {
                Ok(Appended::New(place)) => self.places.push(place),
                Ok(Appended::Merged) => {}
                Err(error) => panic!("{error:?}"),
            }
            self.next[queue] += run as u64;
        }
        while self.journal.durable_block() < self.journal.open_block() {
            self.end_turn();
        }
    }

    /// Nothing of it is needed any more.
    fn drop_all(&mut self, run: u32) {
        for place in self.places.drain(..) {
            self.journal.drop_live(place.segment, run);
        }
        if checkpoint::is_due(&self.journal, self.now) {
            let (buffers, effects) = (&mut self.pool, &mut self.effects);
            checkpoint::begin(&mut self.journal, Vec::new(), buffers, effects);
            self.do_all();
        }
    }
}

/// So many messages, as a publish brings them.
fn messages(payload: usize, count: usize) -> Vec<u8> {
    let payload = vec![7; payload];
    let parts = MessageParts {
        routing_key: b"order.7.paid",
        payload: &payload,
        ..MessageParts::default()
    };
    let mut bytes = Vec::new();
    for _ in 0..count {
        parts.write(&mut bytes).expect("within limits");
    }
    bytes
}

fn append(payload: usize, run: usize) -> impl FnMut() -> u64 {
    let mut scene = Scene::new(Device::Forgets);
    let bytes = messages(payload, run);
    move || {
        for _ in 0..ROUND_BLOCKS {
            scene.append_block(black_box(&bytes), run);
            scene.drop_all(run as u32);
        }
        (ROUND_BLOCKS * BLOCK_MESSAGES) as u64
    }
}

/// Counts what is replayed.
#[derive(Default)]
struct Counter(u64);

impl Replay for Counter {
    fn checkpoint(&mut self, _state: &[u8]) {}

    fn block(&mut self, _wall_us: u64) {}
    fn index(&mut self, entry: &RunEntry, _place: Place) {
        black_box(entry);
    }

    fn run(&mut self, head: &RecordHead, messages: &[u8], _place: Place) {
        black_box(messages);
        self.0 += u64::from(head.count);
    }

    fn fragment(&mut self, _head: &RecordHead, _body: &[u8], _place: Place) {}

    fn relocated(&mut self, _head: &RecordHead, _body: &[u8], _place: Place) {}

    fn record(&mut self, _head: &RecordHead, _body: &[u8]) {}

    fn incomplete(&mut self, _queue: QueueId, _sequence: QueueSequence) {}
}

/// Reads a journal of one round back, without a checkpoint to begin at.
fn recover(payload: usize) -> impl FnMut() -> u64 {
    let mut scene = Scene::new(Device::Keeps);
    let bytes = messages(payload, 1);
    for _ in 0..ROUND_BLOCKS {
        scene.append_block(&bytes, 1);
    }
    let head = |(number, bytes): (usize, &Vec<u8>)| SlotHead {
        slot: ringpost_engine::SlotId(number as u32),
        file_bytes: bytes.len() as u64,
        head: bytes[..4_096].to_vec(),
    };
    let heads: Vec<SlotHead> = scene.slots.iter().enumerate().map(head).collect();
    move || {
        let Scene {
            config,
            pool,
            slots,
            ..
        } = &mut scene;
        let mut recovery = Recovery::new(*config, &heads, &[]);
        let (mut effects, mut replay) = (Effects::default(), Counter::default());
        loop {
            let status = recovery.step(pool, &mut effects, &mut replay);
            for effect in std::mem::take(&mut effects).list {
                match effect {
                    Effect::Read {
                        op,
                        slot,
                        position,
                        buffer,
                        range,
                    } => {
                        let length = range.len();
                        let target = &mut pool.open_bytes(buffer, range.start)[..length];
                        let at = position as usize;
                        target.copy_from_slice(&slots[slot.0 as usize][at..at + length]);
                        recovery.io_done(op, Ok(()), &mut effects);
                    }
                    Effect::Release { buffer } => pool.free.push(buffer.0),
                    _ => {}
                }
            }
            match status {
                Status::Working => {}
                Status::Done => break,
                Status::Failed(reason) => panic!("{reason}"),
            }
        }
        assert_eq!(replay.0, (ROUND_BLOCKS * BLOCK_MESSAGES) as u64);
        replay.0
    }
}
