//! A disk with a volatile cache that remembers everything it was given, in order, and fails when
//! told to: what may be on it after a power cut can be made up afterwards, as often as wanted. Does
//! not know file systems or brokers.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::fuse::{Channel, Errno, Request};
use crate::mounts::let_go;
use crate::volume::Volume;
use ringpost_prove::Outcome;
use ringpost_prove::random::Random;
use ringpost_prove::tool;

/// What a crash may tear a write into.
const SECTOR_BYTES: usize = 512;

/// Something that the disk was given, in the order in which it was.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Bytes for a position; in the volatile cache until the next flush.
    Write {
        /// Where.
        position: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A flush was done: everything before it stays.
    Flush,
}

/// What a disk does wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Writes fail once this many more were done.
    pub writes_until_error: Option<u64>,
    /// Only one write fails, and the next are done as if nothing had been.
    pub fails_once: bool,
    /// A write that fails has left the first half of its sectors on the disk.
    pub tears: bool,
    /// Reads of these bytes fail.
    pub unreadable: Vec<Range<u64>>,
    /// Flushes fail.
    pub fails_flushes: bool,
    /// Flushes are answered and not done.
    pub lies: bool,
    /// How long each request takes.
    pub delay: Duration,
    /// Nothing is answered.
    pub hangs: bool,
}

/// How a disk treats what it was given and did not flush, when the power goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Luck {
    /// It is all gone.
    Nothing,
    /// It is all there.
    Everything,
    /// Each write is there, gone, or torn.
    Mixed,
}

/// A disk that is served to the kernel as a file, and by a loop device as a disk.
#[derive(Debug)]
pub struct Device {
    /// Shared with the thread that serves it and with clocks.
    shared: Arc<Shared>,
    /// The mounted file.
    file: PathBuf,
    /// The loop device.
    path: PathBuf,
    server: Option<JoinHandle<Outcome<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the server when the disk does not hang any more.
    freed: Condvar,
    /// Entries since the disk was made. Apart from the state, since clocks read it all the time.
    position: AtomicU64,
}

#[derive(Debug)]
struct State {
    volume: Volume,
    log: Log,
    faults: Faults,
    /// Requests that failed.
    errors: u64,
}

/// What a disk was given since a moment.
#[derive(Clone, Debug)]
pub struct Log {
    /// What was on it then, all of it flushed.
    base: Volume,
    /// Entries before that moment.
    start: u64,
    entries: Vec<Entry>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked in here has failed the run already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(&self, request: Request<'_>) -> Result<(), Errno> {
        let mut state = self.state();
        let delay = state.faults.delay;
        if !delay.is_zero() {
            drop(state);
            std::thread::sleep(delay);
            state = self.state();
        }
        while state.faults.hangs {
            let woken = self.freed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        match request {
            Request::Read {
                position,
                bytes,
                into,
            } => {
                let end = position + bytes as u64;
                let is_hit = |lost: &Range<u64>| lost.start < end && position < lost.end;
                if state.faults.unreadable.iter().any(is_hit) {
                    state.errors += 1;
                    return Err(Errno::IO);
                }
                state.volume.read(position, bytes, into);
                Ok(())
            }
            Request::Write { position, bytes } => {
                match &mut state.faults.writes_until_error {
                    Some(0) => {
                        state.errors += 1;
                        if state.faults.fails_once {
                            state.faults.writes_until_error = None;
                        }
                        if state.faults.tears {
                            let sectors = bytes.len() / SECTOR_BYTES / 2;
                            self.keep(&mut state, position, &bytes[..sectors * SECTOR_BYTES]);
                        }
                        return Err(Errno::IO);
                    }
                    Some(left) => *left -= 1,
                    None => {}
                }
                self.keep(&mut state, position, bytes);
                Ok(())
            }
            Request::Flush => {
                if state.faults.fails_flushes {
                    state.errors += 1;
                    return Err(Errno::IO);
                }
                if !state.faults.lies {
                    self.log(&mut state, Entry::Flush);
                }
                Ok(())
            }
        }
    }

    fn keep(&self, state: &mut State, position: u64, bytes: &[u8]) {
        state.volume.write(position, bytes);
        let bytes = Arc::from(bytes);
        self.log(state, Entry::Write { position, bytes });
    }

    /// Logged before it is answered: whoever learns that it is done finds it in the log.
    fn log(&self, state: &mut State, entry: Entry) {
        state.log.entries.push(entry);
        let position = state.log.start + state.log.entries.len() as u64;
        self.position.store(position, Ordering::Release);
    }
}

impl Device {
    /// Serves a disk; its file is made in `directory`.
    ///
    /// # Errors
    /// The kernel lacks FUSE or loop devices, or this process is not root.
    pub fn serve(directory: &Path, volume: Volume) -> Outcome<Self> {
        let file = directory.join("disk");
        let bytes = volume.bytes();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                log: Log {
                    base: volume.clone(),
                    start: 0,
                    entries: Vec::new(),
                },
                volume,
                faults: Faults::default(),
                errors: 0,
            }),
            freed: Condvar::new(),
            position: AtomicU64::new(0),
        });
        let channel = Channel::mount(&file, bytes)?;
        let served = Arc::clone(&shared);
        let server = std::thread::spawn(move || channel.serve(|request| served.perform(request)));
        let mut device = Self {
            shared,
            file,
            path: PathBuf::new(),
            server: Some(server),
        };
        let arguments = ["--direct-io=on", "--find", "--show"];
        let path = tool::command("losetup", arguments)
            .arg(&device.file)
            .done()?;
        device.path = path.into();
        Ok(device)
    }

    /// The block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Entries so far, as a clock that never goes back.
    #[must_use]
    pub fn clock(&self) -> ringpost_prove::history::Clock {
        let shared = Arc::clone(&self.shared);
        Box::new(move || shared.position.load(Ordering::Acquire))
    }

    /// Begins the log anew: everything that is there counts as flushed.
    pub fn begin(&self) {
        let mut state = self.shared.state();
        state.log = Log {
            base: state.volume.clone(),
            start: state.log.start + state.log.entries.len() as u64,
            entries: Vec::new(),
        };
    }

    /// Changes the disk for another one; nobody may have it open.
    pub fn load(&self, volume: Volume) {
        self.shared.state().volume = volume;
        self.begin();
    }

    /// What is on it, flushed or not.
    #[must_use]
    pub fn volume(&self) -> Volume {
        self.shared.state().volume.clone()
    }

    /// What it was given since [`Device::begin`].
    #[must_use]
    pub fn log(&self) -> Log {
        self.shared.state().log.clone()
    }

    /// Changes what it does wrong.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.state().faults);
        self.shared.freed.notify_all();
    }

    /// Requests that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.shared.state().errors
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.set(|faults| *faults = Faults::default());
        if !self.path.as_os_str().is_empty() {
            // What cannot be undone is found by whoever runs out of loop devices.
            let _ = tool::command("losetup", ["--detach"])
                .arg(&self.path)
                .done();
        }
        if let (Ok(()), Some(server)) = (let_go(&self.file), self.server.take()) {
            let _ = server.join(); // as above
        }
    }
}

/// Goes through a log from its start and makes up what may be on the disk after a power cut.
#[derive(Debug)]
pub struct Replay<'a> {
    log: &'a Log,
    /// Everything up to `flushed` and nothing else.
    volume: Volume,
    flushed: usize,
}

impl Log {
    /// The first and the last position at which the power may go.
    #[must_use]
    pub fn positions(&self) -> (u64, u64) {
        (self.start, self.start + self.entries.len() as u64)
    }

    /// The position before the first flush from a position on, or the end: the most is in the cache
    /// there.
    #[must_use]
    pub fn before_flush(&self, position: u64) -> u64 {
        let from = (position - self.start) as usize;
        let is_flush = |entry: &Entry| matches!(entry, Entry::Flush);
        let found = self.entries[from..].iter().position(is_flush);
        position + found.unwrap_or(self.entries.len() - from) as u64
    }

    /// The position behind the last flush before a position, the `lies` last ones left out.
    #[must_use]
    pub fn flushed(&self, position: u64, lies: usize) -> u64 {
        let entries = self.entries[..(position - self.start) as usize].iter();
        let flushes = entries.enumerate().rev();
        let mut flushes = flushes.filter(|(_, entry)| matches!(entry, Entry::Flush));
        let honest = flushes.nth(lies);
        self.start + honest.map_or(0, |(place, _)| place as u64 + 1)
    }

    /// Writes that lie in the cache at a position, so that luck decides about them.
    #[must_use]
    pub fn unflushed(&self, position: u64) -> u64 {
        position - self.flushed(position, 0)
    }

    /// Writes, bytes of them, and flushes.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let (mut writes, mut bytes_total, mut flushes) = (0, 0, 0);
        for entry in &self.entries {
            match entry {
                Entry::Write { bytes, .. } => {
                    writes += 1;
                    bytes_total += bytes.len() as u64;
                }
                Entry::Flush => flushes += 1,
            }
        }
        (writes, bytes_total, flushes)
    }

    /// At its start.
    #[must_use]
    pub fn replay(&self) -> Replay<'_> {
        Replay {
            log: self,
            volume: self.base.clone(),
            flushed: 0,
        }
    }
}

impl Replay<'_> {
    /// What is on the disk if the power goes at a position, which may not be before that of an
    /// earlier call: everything up to the last flush before it, but for the `lies` last ones, and of
    /// the rest what luck decides.
    ///
    /// # Panics
    /// If the position is not one of the log.
    pub fn cut(&mut self, position: u64, lies: usize, random: &mut Random) -> Volume {
        let end = (position - self.log.start) as usize;
        let entries = &self.log.entries[..end];
        let flushed = (self.log.flushed(position, lies) - self.log.start) as usize;
        for entry in &self.log.entries[self.flushed..flushed.max(self.flushed)] {
            apply(&mut self.volume, entry);
        }
        self.flushed = self.flushed.max(flushed);
        let mut volume = self.volume.clone();
        let mut cached: Vec<&Entry> = entries[self.flushed..].iter().collect();
        let luck = match lies == 0 {
            true => *random.pick(&[Luck::Nothing, Luck::Everything, Luck::Mixed, Luck::Mixed]),
            // So that what the file system needs lies as far back as what the broker does.
            false => Luck::Nothing,
        };
        match luck {
            Luck::Nothing => {}
            Luck::Everything => {
                for entry in cached {
                    apply(&mut volume, entry);
                }
            }
            Luck::Mixed => {
                shuffle(&mut cached, random);
                for entry in cached {
                    tear(&mut volume, entry, random);
                }
            }
        }
        volume
    }
}

fn apply(volume: &mut Volume, entry: &Entry) {
    match entry {
        Entry::Write { position, bytes } => volume.write(*position, bytes),
        Entry::Flush => {}
    }
}

/// A write that was in the cache: gone, there, or any of its sectors.
fn tear(volume: &mut Volume, entry: &Entry, random: &mut Random) {
    let Entry::Write { position, bytes } = entry else {
        return;
    };
    match random.below(10) {
        0..4 => {}
        4..7 => volume.write(*position, bytes),
        _ => {
            for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if random.percent(50) {
                    let at = position + (number * SECTOR_BYTES) as u64;
                    volume.write(at, sector);
                }
            }
        }
    }
}

fn shuffle<T>(list: &mut [T], random: &mut Random) {
    for last in (1..list.len()).rev() {
        list.swap(last, random.below(last as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 1 << 16;

    fn write(position: u64, byte: u8, sectors: usize) -> Entry {
        Entry::Write {
            position,
            bytes: vec![byte; sectors * SECTOR_BYTES].into(),
        }
    }

    fn log(entries: Vec<Entry>) -> Log {
        Log {
            base: Volume::new(BYTES),
            start: 10,
            entries,
        }
    }

    fn sectors(volume: &Volume, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        volume.read(0, count * SECTOR_BYTES, &mut bytes);
        let all = |sector: &[u8]| {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "half a sector"
            );
            sector[0]
        };
        bytes.chunks(SECTOR_BYTES).map(all).collect()
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_is_luck() {
        let log = log(vec![
            write(0, 1, 4),
            Entry::Flush,
            write(0, 2, 4),
            write(2048, 3, 1),
            Entry::Flush,
        ]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..2_000 {
            let mut random = Random::new(seed);
            let mut replay = log.replay();
            let before = replay.cut(11, 0, &mut random);
            assert!(sectors(&before, 4).iter().all(|byte| *byte <= 1));
            let flushed = replay.cut(12, 0, &mut random);
            assert_eq!(sectors(&flushed, 5), [1, 1, 1, 1, 0]);
            seen.insert(sectors(&replay.cut(14, 0, &mut random), 5));
            let all = replay.cut(15, 0, &mut random);
            assert_eq!(sectors(&all, 5), [2, 2, 2, 2, 3]);
        }
        // Each of five sectors old or new, in every combination.
        assert_eq!(seen.len(), 32);
    }

    #[test]
    fn a_disk_that_lies_forgets_what_it_flushed_lately() {
        let log = log(vec![
            write(0, 1, 1),
            Entry::Flush,
            write(0, 2, 1),
            Entry::Flush,
            write(0, 3, 1),
            Entry::Flush,
        ]);
        for (lies, byte) in [(1, 2), (2, 1), (3, 0), (4, 0)] {
            let state = log.replay().cut(16, lies, &mut Random::new(1));
            assert_eq!(sectors(&state, 1), [byte], "{lies} lies");
        }
    }

    #[test]
    fn a_seed_gives_one_state() {
        let log = log((0..100)
            .map(|byte| write(byte * 512, byte as u8, 3))
            .collect());
        let state = |seed| {
            let mut random = Random::new(seed);
            let mut bytes = Vec::new();
            let volume = log.replay().cut(110, 0, &mut random);
            volume.read(0, BYTES as usize, &mut bytes);
            bytes
        };
        assert_eq!(state(3), state(3));
        assert!((0..20).any(|seed| state(seed) != state(seed + 1)));
    }
}
