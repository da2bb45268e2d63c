//! One journal directory on a simulated device: slots, checkpoints, and what is in flight.
//! Decides what a crash leaves behind. Does not know what the bytes mean or when anything happens.
//!
//! A write is durable when its completion is given (O_DSYNC), never before. Until then a crash may
//! leave nothing, everything, or any 512-byte sectors of it; order between writes means nothing.
//! Files appear and vanish whole, but for a slot that was being created: it may be short.

use std::collections::{BTreeMap, VecDeque};

use ringpost_engine::{FileOp, FileReply, IoFault, OpId, SlotHead, SlotId};

use crate::random::{Random, Rate};

/// Writes that count as recent.
const RECENT_MAX: usize = 24;
/// Writes of which nothing behind them proves that they were synced: those that may be in flight at a
/// crash, and what starts that were cut off wrote behind them.
const DOUBTFUL_MAX: usize = 8;
/// What tears: no drive promises more.
pub const SECTOR: usize = 512;
/// Writes whose earlier content a lying drive may bring back.
const LIES_MAX: usize = 64;
/// EIO.
const EIO: i32 = 5;

/// How an operation in flight ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// As asked.
    Good,
    /// An error; of a write, any sectors may have arrived.
    Error,
    /// Fewer bytes than asked for.
    Short,
    /// Reported as done and never done: detectable only if something later survives.
    Dropped,
    /// Done at another place of the same directory.
    Misdirected,
}

/// What came of an operation.
#[derive(Debug)]
pub enum Done {
    /// A write ended.
    Write(Result<(), IoFault>),
    /// A read ended, with what it brought.
    Read(Result<(), IoFault>, Vec<u8>),
    /// A file operation ended.
    File(Result<FileReply, IoFault>),
}

/// Something submitted and not yet completed.
#[derive(Debug)]
enum Work {
    Write {
        slot: SlotId,
        position: u32,
        bytes: Vec<u8>,
    },
    Read {
        slot: SlotId,
        position: u32,
        length: u32,
    },
    File(FileOp),
}

/// What a crash found in flight, for marks and traces.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Wreck {
    /// Writes in flight.
    pub writes: usize,
    /// File operations in flight.
    pub files: usize,
    /// Writes of which some sectors arrived and some did not.
    pub torn: usize,
    /// Completed writes that a lying drive took back.
    pub taken_back: usize,
}

/// A journal directory.
#[derive(Debug, Default)]
pub struct Disk {
    slots: BTreeMap<SlotId, Vec<u8>>,
    /// Highest byte ever written of each slot, so that damage hits something.
    written: BTreeMap<SlotId, usize>,
    /// The latest writes: slot, position and bytes.
    recent: VecDeque<(SlotId, usize, usize)>,
    checkpoints: [Option<Vec<u8>>; 2],
    in_flight: Vec<(OpId, Work)>,
    /// Bytes that all files may have together.
    capacity: u64,
    /// Content before the latest writes, if the drive lies.
    lies: Option<Vec<(SlotId, usize, Vec<u8>)>>,
}

impl Disk {
    /// An empty directory on a device with room for `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            ..Self::default()
        }
    }

    /// From now on completed writes may be taken back by a crash: outside every promise.
    pub fn start_lying(&mut self) {
        self.lies.get_or_insert_default();
    }

    /// Changes the room of the device.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used(&self) -> u64 {
        let slots: usize = self.slots.values().map(Vec::len).sum();
        let checkpoints: usize = self.checkpoints.iter().flatten().map(Vec::len).sum();
        (slots + checkpoints) as u64
    }

    /// What a start finds: every slot's head and the readable checkpoints, in any order.
    pub fn found(&mut self, random: &mut Random) -> (Vec<SlotHead>, Vec<Vec<u8>>) {
        let mut heads: Vec<SlotHead> = self
            .slots
            .iter()
            .map(|(slot, bytes)| SlotHead {
                slot: *slot,
                file_bytes: bytes.len() as u64,
                head: bytes[..bytes.len().min(4096)].to_vec(),
            })
            .collect();
        let mut checkpoints: Vec<Vec<u8>> = self.checkpoints.iter().flatten().cloned().collect();
        random.shuffle(&mut heads);
        random.shuffle(&mut checkpoints);
        (heads, checkpoints)
    }

    /// Submits a write.
    ///
    /// # Panics
    /// If the engine breaks a rule: unaligned, outside its file, or over a write in flight.
    pub fn write(&mut self, op: OpId, slot: SlotId, position: u32, bytes: &[u8]) {
        let file = self.slots.get(&slot);
        let file_bytes = file
            .unwrap_or_else(|| panic!("write to slot {}, which is not there", slot.0))
            .len();
        let (start, end) = (position as usize, position as usize + bytes.len());
        assert!(!bytes.is_empty(), "empty write");
        assert!(
            start.is_multiple_of(4096) && end.is_multiple_of(4096),
            "write of {start}..{end} is not made of whole pages"
        );
        assert!(
            end <= file_bytes,
            "write of {start}..{end} leaves slot {} of {file_bytes} bytes",
            slot.0
        );
        for (other, work) in &self.in_flight {
            if let Work::Write {
                slot: at,
                position,
                bytes,
            } = work
            {
                let taken = *position as usize..*position as usize + bytes.len();
                assert!(
                    *at != slot || taken.end <= start || end <= taken.start,
                    "write {} overlaps write {} in flight in slot {}",
                    op.0,
                    other.0,
                    slot.0
                );
            }
        }
        let bytes = bytes.to_vec();
        self.submit(
            op,
            Work::Write {
                slot,
                position,
                bytes,
            },
        );
    }

    /// Submits a read.
    ///
    /// # Panics
    /// If it is unaligned.
    pub fn read(&mut self, op: OpId, slot: SlotId, position: u32, length: u32) {
        assert!(
            position.is_multiple_of(4096) && length.is_multiple_of(4096) && length > 0,
            "read of {length} at {position} is not made of whole pages"
        );
        self.submit(
            op,
            Work::Read {
                slot,
                position,
                length,
            },
        );
    }

    /// Submits a file operation.
    pub fn file(&mut self, op: OpId, what: FileOp) {
        self.submit(op, Work::File(what));
    }

    fn submit(&mut self, op: OpId, work: Work) {
        assert!(
            self.in_flight.iter().all(|(other, _)| *other != op),
            "operation {} is used twice",
            op.0
        );
        self.in_flight.push((op, work));
    }

    /// Writes in flight.
    #[must_use]
    pub fn writes_in_flight(&self) -> usize {
        let writes = self.in_flight.iter();
        writes
            .filter(|(_, work)| matches!(work, Work::Write { .. }))
            .count()
    }

    /// The bytes of a write in flight.
    #[must_use]
    pub fn bytes_in_flight(&self, op: OpId) -> Option<&[u8]> {
        self.in_flight.iter().find_map(|(other, work)| match work {
            Work::Write { bytes, .. } if *other == op => Some(&bytes[..]),
            _ => None,
        })
    }

    /// Ends an operation in flight.
    ///
    /// # Panics
    /// If it is not in flight.
    pub fn complete(&mut self, op: OpId, fate: Fate, random: &mut Random) -> Done {
        let at = self.in_flight.iter().position(|(other, _)| *other == op);
        let at = at.unwrap_or_else(|| panic!("operation {} is not in flight", op.0));
        match self.in_flight.remove(at).1 {
            Work::Write {
                slot,
                position,
                bytes,
            } => Done::Write(self.complete_write(slot, position as usize, &bytes, fate, random)),
            Work::Read {
                slot,
                position,
                length,
            } => {
                let (result, bytes) = self.complete_read(slot, position, length, fate, random);
                Done::Read(result, bytes)
            }
            Work::File(what) => Done::File(self.complete_file(what, fate)),
        }
    }

    fn complete_write(
        &mut self,
        slot: SlotId,
        position: usize,
        bytes: &[u8],
        fate: Fate,
        random: &mut Random,
    ) -> Result<(), IoFault> {
        self.remember(slot, position, bytes.len());
        match fate {
            Fate::Good => {
                self.put(slot, position, bytes);
                Ok(())
            }
            Fate::Error => {
                // The error may be that of the flush behind it.
                match random.below(4) {
                    0 => self.put(slot, position, bytes),
                    _ => self.put_sectors(slot, position, bytes, random),
                }
                Err(IoFault::Error(EIO))
            }
            Fate::Short => {
                let done = random.index(bytes.len() / SECTOR) * SECTOR;
                self.put(slot, position, &bytes[..done]);
                Err(IoFault::Short { done: done as u32 })
            }
            Fate::Dropped => Ok(()),
            Fate::Misdirected => {
                let slots: Vec<SlotId> = self.slots.keys().copied().collect();
                let wrong = *random.pick(&slots);
                let pages = self.slots[&wrong].len().saturating_sub(bytes.len()) / 4096;
                let at = random.index(pages + 1) * 4096;
                if at + bytes.len() <= self.slots[&wrong].len() {
                    self.put(wrong, at, bytes);
                }
                Ok(())
            }
        }
    }

    fn complete_read(
        &self,
        slot: SlotId,
        position: u32,
        length: u32,
        fate: Fate,
        random: &mut Random,
    ) -> (Result<(), IoFault>, Vec<u8>) {
        let file = self.slots.get(&slot).map_or(&[][..], Vec::as_slice);
        let start = (position as usize).min(file.len());
        let end = (start + length as usize).min(file.len());
        let bytes = file[start..end].to_vec();
        match fate {
            Fate::Error => (Err(IoFault::Error(EIO)), Vec::new()),
            Fate::Short => {
                let done = random.index(length as usize / SECTOR) * SECTOR;
                let done = done.min(bytes.len());
                (
                    Err(IoFault::Short { done: done as u32 }),
                    bytes[..done].to_vec(),
                )
            }
            Fate::Good | Fate::Dropped | Fate::Misdirected if bytes.len() < length as usize => {
                let done = bytes.len() as u32;
                (Err(IoFault::Short { done }), bytes)
            }
            Fate::Good | Fate::Dropped | Fate::Misdirected => (Ok(()), bytes),
        }
    }

    fn complete_file(&mut self, what: FileOp, fate: Fate) -> Result<FileReply, IoFault> {
        if fate != Fate::Good {
            return Err(IoFault::Error(EIO));
        }
        match what {
            FileOp::CreateSlot { slot, bytes } => {
                let before = self.slots.get(&slot).map_or(0, Vec::len) as u64;
                if self.used() - before + bytes > self.capacity {
                    return Err(IoFault::NoSpace);
                }
                self.slots.insert(slot, vec![0; bytes as usize]);
                self.written.remove(&slot);
            }
            FileOp::RemoveSlot { slot } => {
                self.slots.remove(&slot);
                self.written.remove(&slot);
            }
            FileOp::WriteCheckpoint {
                generation,
                content,
            } => {
                // The new file exists beside both old ones until it is renamed.
                if self.used() + content.len() as u64 > self.capacity {
                    return Err(IoFault::NoSpace);
                }
                let place = (generation % 2) as usize;
                self.checkpoints[place] = Some(content);
            }
        }
        Ok(FileReply::Done)
    }

    /// The power fails: decides the fate of everything in flight.
    pub fn crash(&mut self, random: &mut Random) -> Wreck {
        let mut wreck = Wreck::default();
        let mut in_flight = core::mem::take(&mut self.in_flight);
        random.shuffle(&mut in_flight);
        for (_, work) in in_flight {
            match work {
                Work::Read { .. } => {}
                Work::Write {
                    slot,
                    position,
                    bytes,
                } => {
                    wreck.writes += 1;
                    self.remember(slot, position as usize, bytes.len());
                    match random.below(4) {
                        0 => {}
                        1 => self.put(slot, position as usize, &bytes),
                        _ => {
                            wreck.torn += 1;
                            self.put_sectors(slot, position as usize, &bytes, random);
                        }
                    }
                }
                Work::File(what) => {
                    wreck.files += 1;
                    self.crash_file(what, random);
                }
            }
        }
        if let Some(lies) = &mut self.lies {
            let back = random.index(lies.len() + 1);
            wreck.taken_back = back;
            for (slot, position, before) in lies.split_off(lies.len() - back).into_iter().rev() {
                if let Some(file) = self.slots.get_mut(&slot)
                    && let Some(at) = file.get_mut(position..position + before.len())
                {
                    at.copy_from_slice(&before);
                }
            }
            lies.clear();
        }
        wreck
    }

    fn crash_file(&mut self, what: FileOp, random: &mut Random) {
        if let FileOp::CreateSlot { slot, bytes } = what
            && random.coin()
        {
            // Created and not yet written in full.
            let length = random.within(0..=bytes);
            let before = self.slots.get(&slot).map_or(0, Vec::len) as u64;
            if self.used() - before + length <= self.capacity {
                self.slots.insert(slot, vec![0; length as usize]);
                self.written.remove(&slot);
            }
        } else if random.coin() {
            let _whether_it_was_done = self.complete_file(what, Fate::Good);
        }
    }

    /// Flips one bit of what was written; says where, or `None` if nothing was.
    pub fn rot(&mut self, random: &mut Random) -> Option<String> {
        let checkpoints: Vec<usize> = (0..2)
            .filter(|idx| {
                self.checkpoints[*idx]
                    .as_ref()
                    .is_some_and(|content| !content.is_empty())
            })
            .collect();
        if !checkpoints.is_empty() && random.chance(Rate::percent(20)) {
            let idx = *random.pick(&checkpoints);
            let content = self.checkpoints[idx].as_mut()?;
            let at = random.index(content.len());
            content[at] ^= 1 << random.below(8);
            return Some(format!("checkpoint {idx} byte {at}"));
        }
        // Mostly what a start reads, but not the last blocks: those may be taken for torn.
        let doubtful = self.recent.len().saturating_sub(DOUBTFUL_MAX);
        if doubtful > 0 && random.below(4) > 0 {
            let (slot, position, length) = self.recent[random.index(doubtful)];
            let byte = position + random.index(length);
            return self.flip(slot, byte, random, ", of late");
        }
        let slots: Vec<(SlotId, usize)> = self
            .written
            .iter()
            .map(|(slot, end)| (*slot, *end))
            .collect();
        if slots.is_empty() {
            return None;
        }
        let (slot, end) = *random.pick(&slots);
        let at = random.index(end);
        self.flip(slot, at, random, "")
    }

    /// A bit flips in one of the last blocks that cannot be taken for torn: says where.
    pub fn rot_late(&mut self, random: &mut Random) -> Option<String> {
        let upto = self.recent.len().checked_sub(DOUBTFUL_MAX)?;
        let (slot, position, length) = *self.recent.get(upto.checked_sub(1 + random.index(3))?)?;
        let byte = position + random.index(length);
        self.flip(slot, byte, random, ", the latest")
    }

    /// A bit of a byte flips, unless the byte lies in a block that may be taken for torn: such a block may
    /// have been written where an older one was, which a start had cut.
    fn flip(&mut self, slot: SlotId, at: usize, random: &mut Random, when: &str) -> Option<String> {
        let doubtful = self.recent.len().saturating_sub(DOUBTFUL_MAX);
        let is_doubtful = |(of, position, length): &(SlotId, usize, usize)| {
            *of == slot && (*position..position + length).contains(&at)
        };
        if self.recent.range(doubtful..).any(is_doubtful) {
            return None;
        }
        *self.slots.get_mut(&slot)?.get_mut(at)? ^= 1 << random.below(8);
        Some(format!("slot {} byte {at}{when}", slot.0))
    }

    fn remember(&mut self, slot: SlotId, position: usize, length: usize) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((slot, position, length));
    }

    fn put(&mut self, slot: SlotId, position: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let Some(file) = self.slots.get_mut(&slot) else {
            // Removed or never made: a write that a crash let through to a file that is gone.
            return;
        };
        if position + bytes.len() > file.len() {
            return;
        }
        let at = &mut file[position..position + bytes.len()];
        if let Some(lies) = &mut self.lies {
            if lies.len() == LIES_MAX {
                lies.remove(0);
            }
            lies.push((slot, position, at.to_vec()));
        }
        at.copy_from_slice(bytes);
        let written = self.written.entry(slot).or_default();
        *written = (*written).max(position + bytes.len());
    }

    fn put_sectors(&mut self, slot: SlotId, position: usize, bytes: &[u8], random: &mut Random) {
        for (idx, sector) in bytes.chunks(SECTOR).enumerate() {
            if random.coin() {
                self.put(slot, position + idx * SECTOR, sector);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: SlotId = SlotId(3);

    fn with_slot() -> (Disk, Random) {
        let (mut disk, mut random) = (Disk::new(1 << 20), Random::new(1, 1));
        disk.file(
            OpId(0),
            FileOp::CreateSlot {
                slot: SLOT,
                bytes: 16384,
            },
        );
        assert!(matches!(
            disk.complete(OpId(0), Fate::Good, &mut random),
            Done::File(Ok(FileReply::Done))
        ));
        (disk, random)
    }

    fn sectors(disk: &Disk) -> Vec<bool> {
        let file = &disk.slots[&SLOT];
        let is_new = |sector: &[u8]| {
            let first = sector[0];
            assert!(sector.iter().all(|byte| *byte == first), "a sector tore");
            first == 9
        };
        file[4096..12288].chunks(SECTOR).map(is_new).collect()
    }

    #[test]
    fn a_completed_write_survives_every_crash() {
        for seed in 0..100 {
            let (mut disk, _) = with_slot();
            let mut random = Random::new(seed, 0);
            disk.write(OpId(1), SLOT, 4096, &[9; 8192]);
            assert!(matches!(
                disk.complete(OpId(1), Fate::Good, &mut random),
                Done::Write(Ok(()))
            ));
            assert_eq!(disk.crash(&mut random), Wreck::default());
            assert!(sectors(&disk).iter().all(|is_new| *is_new));
        }
    }

    #[test]
    fn a_write_in_flight_is_none_all_or_any_sectors() {
        let (mut none, mut all, mut some) = (0, 0, 0);
        for seed in 0..300 {
            let (mut disk, _) = with_slot();
            let mut random = Random::new(seed, 0);
            disk.write(OpId(1), SLOT, 4096, &[9; 8192]);
            assert_eq!(disk.crash(&mut random).writes, 1);
            assert_eq!(disk.writes_in_flight(), 0);
            match sectors(&disk).iter().filter(|is_new| **is_new).count() {
                0 => none += 1,
                16 => all += 1,
                _ => some += 1,
            }
        }
        assert!(none > 40 && all > 40 && some > 100, "{none} {all} {some}");
    }

    #[test]
    fn later_writes_may_arrive_without_earlier_ones() {
        let mut seen = [false; 4];
        for seed in 0..200 {
            let (mut disk, _) = with_slot();
            let mut random = Random::new(seed, 0);
            disk.write(OpId(1), SLOT, 4096, &[9; 4096]);
            disk.write(OpId(2), SLOT, 8192, &[9; 4096]);
            disk.crash(&mut random);
            let sectors = sectors(&disk);
            let whole = |part: &[bool]| usize::from(part.iter().all(|is_new| *is_new));
            seen[whole(&sectors[..8]) + 2 * whole(&sectors[8..])] = true;
        }
        assert_eq!(seen, [true; 4]);
    }

    #[test]
    fn errors_and_short_writes_say_so_and_leave_parts() {
        let mut random = Random::new(5, 5);
        for _ in 0..50 {
            let (mut disk, _) = with_slot();
            disk.write(OpId(1), SLOT, 4096, &[9; 8192]);
            assert!(matches!(
                disk.complete(OpId(1), Fate::Error, &mut random),
                Done::Write(Err(IoFault::Error(EIO)))
            ));
            sectors(&disk);
            let (mut disk, _) = with_slot();
            disk.write(OpId(1), SLOT, 4096, &[9; 8192]);
            let Done::Write(Err(IoFault::Short { done })) =
                disk.complete(OpId(1), Fate::Short, &mut random)
            else {
                panic!("a short write must say so")
            };
            let count = sectors(&disk).iter().take_while(|is_new| **is_new).count();
            assert_eq!(count * SECTOR, done as usize);
        }
    }

    #[test]
    fn checkpoints_are_replaced_whole_and_by_turns() {
        let mut random = Random::new(6, 6);
        let (mut seen_old, mut seen_new) = (false, false);
        for _ in 0..50 {
            let mut disk = Disk::new(1000);
            for generation in [4, 5] {
                let content = vec![generation as u8; 100];
                disk.file(
                    OpId(generation),
                    FileOp::WriteCheckpoint {
                        generation,
                        content,
                    },
                );
                disk.complete(OpId(generation), Fate::Good, &mut random);
            }
            disk.file(
                OpId(6),
                FileOp::WriteCheckpoint {
                    generation: 6,
                    content: vec![6; 100],
                },
            );
            disk.crash(&mut random);
            let (_, mut found) = disk.found(&mut random);
            found.sort();
            assert_eq!(found.len(), 2);
            assert!(found.iter().all(|content| content.len() == 100));
            seen_old |= found[0][0] == 4 && found[1][0] == 5;
            seen_new |= found[0][0] == 5 && found[1][0] == 6;
        }
        assert!(seen_old && seen_new);
    }

    #[test]
    fn a_slot_being_made_may_be_missing_or_short() {
        let (mut missing, mut short, mut whole) = (0, 0, 0);
        for seed in 0..200 {
            let (mut disk, mut random) = (Disk::new(1 << 20), Random::new(seed, 0));
            disk.file(
                OpId(0),
                FileOp::CreateSlot {
                    slot: SLOT,
                    bytes: 8192,
                },
            );
            disk.crash(&mut random);
            match disk.found(&mut random).0.first() {
                None => missing += 1,
                Some(head) if head.file_bytes < 8192 => {
                    assert_eq!(head.head.len() as u64, head.file_bytes.min(4096));
                    short += 1;
                }
                Some(_) => whole += 1,
            }
        }
        assert!(missing > 10 && short > 10 && whole > 10);
    }

    #[test]
    fn a_full_device_refuses_files_and_takes_writes() {
        let (mut disk, mut random) = with_slot();
        disk.set_capacity(disk.used());
        disk.file(
            OpId(1),
            FileOp::CreateSlot {
                slot: SlotId(4),
                bytes: 4096,
            },
        );
        assert!(matches!(
            disk.complete(OpId(1), Fate::Good, &mut random),
            Done::File(Err(IoFault::NoSpace))
        ));
        disk.write(OpId(2), SLOT, 0, &[1; 4096]);
        assert!(matches!(
            disk.complete(OpId(2), Fate::Good, &mut random),
            Done::Write(Ok(()))
        ));
    }

    #[test]
    fn lying_drives_take_back_the_latest_writes() {
        let (mut taken, mut kept) = (0, 0);
        for seed in 0..100 {
            let (mut disk, _) = with_slot();
            let mut random = Random::new(seed, 0);
            disk.start_lying();
            for op in 0..2 {
                disk.write(OpId(10 + op), SLOT, 4096 + 4096 * op as u32, &[9; 4096]);
                disk.complete(OpId(10 + op), Fate::Good, &mut random);
            }
            disk.crash(&mut random);
            let sectors = sectors(&disk);
            assert!(sectors[0] || !sectors[8], "only the latest go");
            if sectors[8] { kept += 1 } else { taken += 1 }
        }
        assert!(taken > 10 && kept > 10);
    }

    #[test]
    fn dropped_and_misdirected_writes_claim_success() {
        let (mut disk, mut random) = with_slot();
        for (op, fate) in [(1, Fate::Dropped), (2, Fate::Misdirected)] {
            disk.write(OpId(op), SLOT, 4096, &[9; 8192]);
            assert!(matches!(
                disk.complete(OpId(op), fate, &mut random),
                Done::Write(Ok(()))
            ));
        }
        assert!(disk.rot(&mut random).is_some());
    }

    #[test]
    fn reads_bring_what_is_there() {
        let (mut disk, mut random) = with_slot();
        disk.write(OpId(1), SLOT, 4096, &[9; 8192]);
        disk.complete(OpId(1), Fate::Good, &mut random);
        disk.read(OpId(2), SLOT, 4096, 8192);
        let Done::Read(Ok(()), bytes) = disk.complete(OpId(2), Fate::Good, &mut random) else {
            panic!("a good read brings bytes")
        };
        assert_eq!(bytes, [9; 8192]);
        disk.read(OpId(3), SLOT, 12288, 8192);
        let Done::Read(Err(IoFault::Short { done: 4096 }), bytes) =
            disk.complete(OpId(3), Fate::Good, &mut random)
        else {
            panic!("a read beyond the end is short")
        };
        assert_eq!(bytes.len(), 4096);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn overlapping_writes_are_a_bug() {
        let (mut disk, _) = with_slot();
        disk.write(OpId(1), SLOT, 0, &[1; 8192]);
        disk.write(OpId(2), SLOT, 4096, &[1; 4096]);
    }
}
