//! Appending and locating allocate nothing per message: counted by the allocator itself.
//! Does not know what a record looks like.

#[path = "allocations/count.rs"]
mod allocations;

use std::ops::Range;

use ringpost_engine::control::checkpoint;
use ringpost_engine::data::journal::{Appended, Config, Journal, Located, RunHead};
use ringpost_engine::effect::{Buffers, Effect, Effects};
use ringpost_engine::ids::{BufferId, JournalId, Mono};
use ringpost_engine::input::FileReply;
use ringpost_wire::MessageParts;
use ringpost_wire::ids::{PartitionId, QueueId, QueueSequence};

const BUFFER_BYTES: u32 = 256 << 10;

struct Pool {
    bytes: Vec<Vec<u8>>,
    free: Vec<u32>,
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

/// Does what the effects ask for, at once.
fn do_all(journal: &mut Journal, pool: &mut Pool, effects: &mut Effects, now: Mono) {
    let mut at = 0;
    while at < effects.list.len() {
        match effects.list[at] {
            Effect::Write { op, .. } => {
                journal.io_done(op, Ok(()), pool, effects);
            }
            Effect::File { op, .. } => {
                journal.file_done(op, Ok(FileReply::Done), now, effects);
            }
            Effect::Release { buffer } => pool.free.push(buffer.0),
            _ => {}
        }
        at += 1;
    }
    effects.clear();
}

#[test]
fn a_million_messages_allocate_by_the_block() {
    let mut config = Config::new(JournalId(1), 7);
    config.segment_bytes = 16 << 20;
    let mut journal = Journal::fresh(config);
    let mut pool = Pool {
        bytes: vec![vec![0; BUFFER_BYTES as usize]; 32],
        free: (0..32).collect(),
    };
    let mut effects = Effects::default();
    let mut now = Mono(1);
    for _ in 0..20 {
        journal.turn_end(now, &mut pool, &mut effects);
        do_all(&mut journal, &mut pool, &mut effects, now);
    }
    assert!(journal.is_ready());
    let mut message = Vec::new();
    let parts = MessageParts {
        payload: &[1; 100],
        ..MessageParts::default()
    };
    parts.write(&mut message).expect("within limits");

    let mut next = [1u64; 64];
    let mut places = Vec::with_capacity(256);
    let mut appended_count = 0u64;
    let mut counted = 0;
    // The first quarter grows what is kept and reused.
    for turn in 0..4_000 {
        let before = allocations::count();
        places.clear();
        for index in 0..256usize {
            let queue = index % next.len();
            let first = QueueSequence(next[queue]);
            let head = RunHead::of_queue(PartitionId(queue as u16), QueueId(queue as u32), first);
            match journal.append_run(&mut pool, &mut effects, &head, 1, &message) {
                Ok(Appended::New(place)) => places.push((place, queue, first)),
                Ok(Appended::Merged) => {}
                Err(error) => panic!("{error:?}"),
            }
            next[queue] += 1;
        }
        now = now.plus_ms(1);
        // Two writes at a time: parts of the index may be before the last block.
        while journal.durable_block() < journal.open_block() {
            journal.turn_end(now, &mut pool, &mut effects);
            do_all(&mut journal, &mut pool, &mut effects, now);
        }
        for (place, queue, sequence) in &places {
            let located = journal.locate(&pool, *place, QueueId(*queue as u32), *sequence);
            assert!(matches!(located, Located::Cached { .. }));
            journal.drop_live(place.segment, 1);
        }
        if turn >= 1_000 {
            counted += allocations::count() - before;
            appended_count += 256;
        }
        if checkpoint::is_due(&journal, now) {
            checkpoint::begin(&mut journal, Vec::new(), &mut pool, &mut effects);
            do_all(&mut journal, &mut pool, &mut effects, now);
        }
    }
    let blocks = journal.durable_block().0;
    println!("{counted} allocations for {appended_count} messages in {blocks} blocks");
    assert!(
        counted * 500 <= appended_count,
        "{counted} allocations for {appended_count} messages"
    );
}
