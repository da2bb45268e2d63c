//! A disk and a buffer pool for tests: writes in flight, crashes that tear them, faults by number.
//! Does not know what is written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use ringpost_engine::effect::{Buffers, Effect, Effects, FileOp};
use ringpost_engine::ids::{BufferId, OpId, SlotId};
use ringpost_engine::input::{FileReply, IoFault, SlotHead};

/// A small random number generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// The shell's pool, strict about the contract.
#[derive(Debug)]
pub struct Pool {
    bytes: Vec<Vec<u8>>,
    is_held: Vec<bool>,
    in_use: Vec<u32>,
    sealed: Vec<u32>,
    buffer_bytes: u32,
}

impl Pool {
    pub fn new(count: usize, buffer_bytes: u32) -> Self {
        Self {
            bytes: vec![vec![0xa5; buffer_bytes as usize]; count],
            is_held: vec![false; count],
            in_use: vec![0; count],
            sealed: vec![0; count],
            buffer_bytes,
        }
    }

    pub fn release(&mut self, buffer: BufferId) {
        let at = buffer.0 as usize;
        assert!(self.is_held[at], "released once");
        self.is_held[at] = false;
    }

    pub fn held_count(&self) -> usize {
        self.is_held.iter().filter(|held| **held).count()
    }
}

impl Buffers for Pool {
    fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    fn available(&self) -> usize {
        (0..self.bytes.len())
            .filter(|at| !self.is_held[*at] && self.in_use[*at] == 0)
            .count()
    }

    fn acquire(&mut self) -> Option<BufferId> {
        let at = (0..self.bytes.len()).find(|at| !self.is_held[*at] && self.in_use[*at] == 0)?;
        self.is_held[at] = true;
        self.sealed[at] = 0;
        Some(BufferId(at as u32))
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        assert!(self.is_held[buffer.0 as usize]);
        &self.bytes[buffer.0 as usize][range.start as usize..range.end as usize]
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        let at = buffer.0 as usize;
        assert!(self.is_held[at]);
        assert!(from >= self.sealed[at], "sealed bytes are never changed");
        &mut self.bytes[at][from as usize..]
    }

    fn seal(&mut self, buffer: BufferId, upto: u32) {
        let at = buffer.0 as usize;
        assert!(upto >= self.sealed[at] && upto <= self.buffer_bytes);
        self.sealed[at] = upto;
    }
}

#[derive(Clone, Debug)]
pub struct PendingWrite {
    pub op: OpId,
    slot: SlotId,
    position: u32,
    buffer: BufferId,
    range: Range<u32>,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct PendingRead {
    pub op: OpId,
    slot: SlotId,
    position: u32,
    pub buffer: BufferId,
    range: Range<u32>,
}

/// What is on the platters.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub slots: BTreeMap<SlotId, Vec<u8>>,
    pub checkpoints: BTreeMap<u64, Vec<u8>>,
}

impl Image {
    pub fn heads(&self) -> Vec<SlotHead> {
        let head = |(slot, bytes): (&SlotId, &Vec<u8>)| SlotHead {
            slot: *slot,
            file_bytes: bytes.len() as u64,
            head: bytes[..bytes.len().min(4096)].to_vec(),
        };
        self.slots.iter().map(head).collect()
    }

    pub fn checkpoints(&self) -> Vec<Vec<u8>> {
        self.checkpoints.values().cloned().collect()
    }
}

/// Something that came back.
#[derive(Debug)]
pub enum Answer {
    Io(OpId, Result<(), IoFault>),
    File(OpId, Result<FileReply, IoFault>),
}

/// A disk with operations in flight.
#[derive(Debug, Default)]
pub struct Disk {
    pub image: Image,
    pub writes: VecDeque<PendingWrite>,
    pub reads: VecDeque<PendingRead>,
    pub files: VecDeque<(OpId, FileOp)>,
    /// The operation with this number fails, and what its fault is.
    pub fault: Option<(u64, IoFault)>,
    /// Blocks of 4 KiB that cannot be read: their slots, and where they begin.
    pub unreadable: BTreeSet<(SlotId, u32)>,
    /// Reads that failed over those.
    pub unread_count: u64,
    pub op_count: u64,
    /// Slots created.
    pub created_count: u64,
    /// Most bytes of slots and checkpoints together.
    pub bytes_max: Option<u64>,
    pub written_bytes: u64,
    pub read_bytes: u64,
    pub fail_stop: Option<String>,
    pub reports: Vec<String>,
}

impl Disk {
    pub fn of(image: Image) -> Self {
        Self {
            image,
            ..Self::default()
        }
    }

    /// Begins what the effects ask for.
    pub fn take(&mut self, effects: &mut Effects, pool: &mut Pool) {
        for effect in effects.list.drain(..) {
            match effect {
                Effect::Write {
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                } => {
                    assert!(position.is_multiple_of(4096));
                    assert!(range.start.is_multiple_of(4096) && range.end.is_multiple_of(4096));
                    let bytes = pool.bytes(buffer, range.clone()).to_vec();
                    assert!(range.end <= pool.sealed[buffer.0 as usize]);
                    let slot_bytes = self.image.slots[&slot].len();
                    assert!(
                        position as usize + bytes.len() <= slot_bytes,
                        "never extended"
                    );
                    pool.in_use[buffer.0 as usize] += 1;
                    self.writes.push_back(PendingWrite {
                        op,
                        slot,
                        position,
                        buffer,
                        range,
                        bytes,
                    });
                }
                Effect::Read {
                    op,
                    slot,
                    position,
                    buffer,
                    range,
                } => {
                    assert!(position.is_multiple_of(4096));
                    assert!(range.start.is_multiple_of(4096) && range.end.is_multiple_of(4096));
                    pool.in_use[buffer.0 as usize] += 1;
                    self.reads.push_back(PendingRead {
                        op,
                        slot,
                        position,
                        buffer,
                        range,
                    });
                }
                Effect::Release { buffer } => pool.release(buffer),
                Effect::File { op, what } => self.files.push_back((op, what)),
                Effect::FailStop { reason, .. } => self.fail_stop = Some(reason),
                Effect::Report { text, .. } => self.reports.push(text),
                other => panic!("no business of a journal: {other:?}"),
            }
        }
    }

    fn next_fault(&mut self) -> Option<IoFault> {
        self.op_count += 1;
        match self.fault {
            Some((at, fault)) if self.op_count == at => Some(fault),
            _ => None,
        }
    }

    pub fn finish_write(&mut self, at: usize, pool: &mut Pool) -> Answer {
        let write = self.writes.remove(at).expect("a write in flight");
        pool.in_use[write.buffer.0 as usize] -= 1;
        let now = &pool.bytes[write.buffer.0 as usize]
            [write.range.start as usize..write.range.end as usize];
        assert_eq!(now, write.bytes, "bytes in flight are never changed");
        let result = match self.next_fault() {
            Some(fault) => {
                // Some of it may have landed all the same.
                self.tear(&write, &mut Random(self.op_count));
                Err(fault)
            }
            None => {
                self.apply(&write);
                Ok(())
            }
        };
        Answer::Io(write.op, result)
    }

    fn apply(&mut self, write: &PendingWrite) {
        let slot = self.image.slots.get_mut(&write.slot).expect("created");
        let at = write.position as usize;
        slot[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
        self.written_bytes += write.bytes.len() as u64;
    }

    pub fn finish_read(&mut self, at: usize, pool: &mut Pool) -> Answer {
        let read = self.reads.remove(at).expect("a read in flight");
        pool.in_use[read.buffer.0 as usize] -= 1;
        let bytes = read.range.end - read.range.start;
        let from = read.position as usize;
        let blocks = (read.slot, read.position)..(read.slot, read.position + bytes);
        let is_hit = self.unreadable.range(blocks).next().is_some();
        self.unread_count += u64::from(is_hit);
        let fault = self.next_fault().or(is_hit.then_some(IoFault::Error(5)));
        let result = match (fault, self.image.slots.get(&read.slot)) {
            (Some(fault), _) => Err(fault),
            (None, Some(slot)) if from + bytes as usize <= slot.len() => {
                let target = &mut pool.bytes[read.buffer.0 as usize]
                    [read.range.start as usize..read.range.end as usize];
                target.copy_from_slice(&slot[from..from + bytes as usize]);
                self.read_bytes += u64::from(bytes);
                Ok(())
            }
            (None, _) => Err(IoFault::Short { done: 0 }),
        };
        Answer::Io(read.op, result)
    }

    pub fn finish_file(&mut self, at: usize) -> Answer {
        let (op, what) = self.files.remove(at).expect("a file operation in flight");
        let result = match self.next_fault() {
            Some(fault) => Err(fault),
            None => self.do_file(&what),
        };
        Answer::File(op, result)
    }

    fn used_bytes(&self) -> u64 {
        let slots: usize = self.image.slots.values().map(Vec::len).sum();
        let files: usize = self.image.checkpoints.values().map(Vec::len).sum();
        (slots + files) as u64
    }

    fn do_file(&mut self, what: &FileOp) -> Result<FileReply, IoFault> {
        let room = self
            .bytes_max
            .map_or(u64::MAX, |max| max.saturating_sub(self.used_bytes()));
        match what {
            FileOp::CreateSlot { slot, bytes } => {
                if *bytes > room {
                    return Err(IoFault::NoSpace);
                }
                self.image.slots.insert(*slot, vec![0; *bytes as usize]);
                self.created_count += 1;
            }
            FileOp::RemoveSlot { slot } => {
                self.image.slots.remove(slot);
            }
            FileOp::WriteCheckpoint {
                generation,
                content,
            } => {
                if content.len() as u64 > room {
                    return Err(IoFault::NoSpace);
                }
                self.image
                    .checkpoints
                    .insert(generation % 2, content.clone());
            }
        }
        Ok(FileReply::Done)
    }

    /// The process dies: what is in flight lands not at all, wholly, or in part.
    pub fn crash(mut self, random: &mut Random) -> Image {
        for (_, what) in std::mem::take(&mut self.files) {
            match (random.below(3), &what) {
                (0, _) => {}
                (1, FileOp::CreateSlot { slot, bytes }) => {
                    let bytes = random.below(*bytes) as usize;
                    self.image.slots.insert(*slot, vec![0; bytes]);
                }
                _ => {
                    let _full_disk_is_fine = self.do_file(&what);
                }
            }
        }
        let mut writes: Vec<_> = std::mem::take(&mut self.writes).into();
        while !writes.is_empty() {
            let write = writes.swap_remove(random.below(writes.len() as u64) as usize);
            match random.below(4) {
                0 => {}
                1 => self.apply(&write),
                _ => self.tear(&write, random),
            }
        }
        self.image
    }

    fn tear(&mut self, write: &PendingWrite, random: &mut Random) {
        let slot = self.image.slots.get_mut(&write.slot).expect("created");
        let one_in = 2 + random.below(8);
        let is_mostly_there = random.chance(2);
        for from in (0..write.bytes.len()).step_by(512) {
            if random.chance(one_in) != is_mostly_there {
                let at = write.position as usize + from;
                slot[at..at + 512].copy_from_slice(&write.bytes[from..from + 512]);
            }
        }
    }
}
