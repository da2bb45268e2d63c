//! The files of one core's journal: writes and reads through its ring, slow file work on a thread
//! beside it. Does not know what a block holds, and never retries.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringpost_engine::{BufferId, FileOp, FileReply, Input, IoFault, OpId, SlotHead, SlotId};

use crate::data::buffers::BufferPool;
use crate::rt::disk::{self, SegmentFile};
use crate::rt::time::Monotonic;
use crate::rt::{Bell, Completion, IoFailure, OperationId, Poller};

/// Bytes of a slot that recovery looks at first.
const HEAD_BYTES: usize = 4096;
/// The largest checkpoint that is read back.
const CHECKPOINT_BYTES_MAX: usize = 1 << 30;
/// File operations that may wait for the thread.
const FILE_OPS_MAX: usize = 64;
/// Of the time in which a segment is made that nothing waits for, the disk is left to others for so
/// many times as long as it is used.
const LEFT_TO_OTHERS: u32 = 3;
/// The longest pause of that: when something begins to wait it is not noticed earlier.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Suffix of slot files.
const SLOT_SUFFIX: &str = "seg";

/// A write on its way, for the device's histogram.
#[derive(Clone, Copy, Debug)]
struct Timed {
    op: OpId,
    since: Monotonic,
}

/// The journal files of one core.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// Open files by slot number.
    files: Vec<Option<SegmentFile>>,
    requests: flume::Sender<(OpId, FileOp)>,
    answers: flume::Receiver<(OpId, Result<(), IoFault>)>,
    /// Whether something waits for a segment that is being made.
    hurry: Arc<AtomicBool>,
    /// Operations of the thread that are not answered.
    waiting: usize,
    writes: Vec<Timed>,
    /// Nanoseconds that writes took, taken by whoever keeps the histogram.
    pub write_ns: Vec<u64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a journal directory holds at start.
#[derive(Debug)]
pub struct Listing {
    /// The slots, with their first bytes.
    pub slots: Vec<SlotHead>,
    /// The checkpoints.
    pub checkpoints: Vec<Vec<u8>>,
}

impl Store {
    /// Opens the directory of a journal and starts its file thread, which rings `bell`.
    ///
    /// # Errors
    ///
    /// If a file cannot be listed, opened or read.
    pub fn open(directory: &Path, name: &str, bell: Arc<Bell>) -> io::Result<(Self, Listing)> {
        disk::remove_unfinished(directory)?;
        let (slots, checkpoints) = list_journal(directory)?;
        let mut files: Vec<Option<SegmentFile>> = Vec::new();
        for head in &slots {
            let idx = head.slot.0 as usize;
            if files.len() <= idx {
                files.resize(idx + 1, None);
            }
            let path = slot_path(directory, head.slot);
            files[idx] = Some(SegmentFile::open_for_writing(&path)?);
        }
        let listing = Listing { slots, checkpoints };
        let (requests, inbox) = flume::bounded::<(OpId, FileOp)>(FILE_OPS_MAX);
        let (outbox, answers) = flume::bounded(FILE_OPS_MAX);
        let hurry = Arc::new(AtomicBool::new(true));
        let is_hurried = hurry.clone();
        let root = directory.to_path_buf();
        let thread = std::thread::Builder::new()
            .name(format!("{name}-files"))
            .spawn(move || {
                while let Ok((op, what)) = inbox.recv() {
                    let mut since = Instant::now();
                    let give_way = |_| {
                        if !is_hurried.load(Ordering::Relaxed) {
                            let pause = since.elapsed() * LEFT_TO_OTHERS;
                            std::thread::sleep(pause.min(PAUSE_MAX));
                        }
                        since = Instant::now();
                    };
                    let result = perform(&root, &what, give_way).map_err(|error| fault(&error));
                    if outbox.send((op, result)).is_err() {
                        return;
                    }
                    bell.ring();
                }
            })?;
        let store = Self {
            directory: directory.to_path_buf(),
            files,
            requests,
            answers,
            hurry,
            waiting: 0,
            writes: Vec::new(),
            write_ns: Vec::new(),
            thread: Some(thread),
        };
        Ok((store, listing))
    }

    /// Whether the file thread has answered something.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.writes.is_empty()
    }

    /// Says whether something waits for a segment that is being made. If nothing does, making it gives
    /// way to what is written meanwhile: at full speed it would take most of the disk's time.
    pub fn hurry(&self, is_waited_for: bool) {
        self.hurry.store(is_waited_for, Ordering::Relaxed);
    }

    /// The next answer of the file thread, as the engine takes it.
    pub fn answer(&mut self) -> Option<Input<'static>> {
        let (op, result) = self.answers.try_recv().ok()?;
        self.waiting -= 1;
        Some(Input::File {
            op,
            result: result.map(|()| FileReply::Done),
        })
    }

    /// Hands an operation to the file thread. The engine has few of them on their way at a time.
    pub fn file(&mut self, op: OpId, what: FileOp) {
        if let FileOp::RemoveSlot { slot } = &what
            && let Some(file) = self.files.get_mut(slot.0 as usize)
        {
            *file = None;
        }
        self.waiting += 1;
        assert!(
            self.waiting <= FILE_OPS_MAX,
            "the engine has few file operations on their way"
        );
        self.requests
            .send((op, what))
            .expect("the file thread lives as long as the store");
    }

    fn slot(&mut self, slot: SlotId) -> io::Result<SegmentFile> {
        let idx = slot.0 as usize;
        if self.files.len() <= idx {
            self.files.resize(idx + 1, None);
        }
        if self.files[idx].is_none() {
            let file = SegmentFile::open_for_writing(&slot_path(&self.directory, slot))?;
            self.files[idx] = Some(file);
        }
        Ok(self.files[idx].clone().expect("it was just opened"))
    }

    /// Queues a write. A file that cannot be opened answers at once.
    ///
    /// # Errors
    ///
    /// The answer to give the engine.
    #[expect(
        clippy::too_many_arguments,
        reason = "a write is named by all of these"
    )]
    pub fn write(
        &mut self,
        op: OpId,
        slot: SlotId,
        position: u32,
        buffer: BufferId,
        range: std::ops::Range<u32>,
        pool: &mut BufferPool,
        poller: &mut Poller,
    ) -> Result<(), IoFault> {
        let file = self.slot(slot).map_err(|error| fault(&error))?;
        let window = pool.lend_sealed(buffer, range);
        self.writes.push(Timed {
            op,
            since: Monotonic::now(),
        });
        let queued = poller.submit_write(OperationId(op.0), &file, u64::from(position), window);
        if let Err(full) = queued {
            pool.take_back(full.0);
            self.writes.retain(|timed| timed.op != op);
            return Err(IoFault::Error(libc::EAGAIN));
        }
        Ok(())
    }

    /// Queues a read into the open part of a buffer.
    ///
    /// # Errors
    ///
    /// The answer to give the engine.
    #[expect(clippy::too_many_arguments, reason = "a read is named by all of these")]
    pub fn read(
        &mut self,
        op: OpId,
        slot: SlotId,
        position: u32,
        buffer: BufferId,
        range: std::ops::Range<u32>,
        pool: &mut BufferPool,
        poller: &mut Poller,
    ) -> Result<(), IoFault> {
        let file = self.slot(slot).map_err(|error| fault(&error))?;
        let window = pool.lend_to_fill(buffer, range);
        let queued = poller.submit_read(OperationId(op.0), &file, u64::from(position), window);
        if let Err(full) = queued {
            pool.take_back(full.0);
            return Err(IoFault::Error(libc::EAGAIN));
        }
        Ok(())
    }

    /// An operation of the ring has ended: what to tell the engine.
    pub fn completed(&mut self, completion: Completion, pool: &mut BufferPool) -> Input<'static> {
        let op = OpId(completion.operation.0);
        let result = completion.outcome().map_err(|failure| match failure {
            IoFailure::Short { moved, .. } => IoFault::Short { done: moved },
            IoFailure::Error(number) => IoFault::Error(number),
        });
        let (buffer, _) = pool.take_back(completion.window);
        if let Some(idx) = self.writes.iter().position(|timed| timed.op == op) {
            let timed = self.writes.swap_remove(idx);
            let took = Monotonic::now().since(timed.since);
            self.write_ns
                .push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        Input::Io { op, buffer, result }
    }

    /// Ends the file thread; everything it was asked is done.
    pub fn close(mut self) {
        self.hurry(true);
        drop(self.requests);
        drop(self.answers);
        if let Some(thread) = self.thread.take() {
            // It ends when its inbox is gone; a panic in it was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// The slots of a journal with their first bytes, and the content of its checkpoints.
///
/// # Errors
///
/// If a file cannot be listed or read.
pub fn list_journal(directory: &Path) -> io::Result<(Vec<SlotHead>, Vec<Vec<u8>>)> {
    let mut slots = Vec::new();
    let mut checkpoints = Vec::new();
    for listed in disk::list(directory)? {
        let file_name = listed
            .path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        if let Some(slot) = slot_of(file_name) {
            let file = SegmentFile::open_for_reading(&listed.path)?;
            let head = read_head(&file, listed.bytes)?;
            slots.push(SlotHead {
                slot,
                file_bytes: listed.bytes,
                head,
            });
        } else if is_checkpoint(file_name) {
            checkpoints.push(disk::read_file(&listed.path, CHECKPOINT_BYTES_MAX)?);
        }
    }
    Ok((slots, checkpoints))
}

fn is_checkpoint(file_name: &str) -> bool {
    matches!(file_name, "checkpoint-0" | "checkpoint-1")
}

/// Name of a slot's file.
#[must_use]
pub fn slot_path(directory: &Path, slot: SlotId) -> PathBuf {
    directory.join(format!("{:08}.{SLOT_SUFFIX}", slot.0))
}

fn slot_of(file_name: &str) -> Option<SlotId> {
    let (number, suffix) = file_name.split_once('.')?;
    (suffix == SLOT_SUFFIX && number.len() == 8).then(|| number.parse().ok().map(SlotId))?
}

/// An aligned page for reading a head past the page cache.
#[repr(align(4096))]
struct Page([u8; HEAD_BYTES]);

fn read_head(file: &SegmentFile, bytes: u64) -> io::Result<Vec<u8>> {
    if bytes < HEAD_BYTES as u64 {
        return Ok(Vec::new());
    }
    let mut page = Page([0; HEAD_BYTES]);
    disk::read_exact(file, 0, &mut page.0)?;
    Ok(page.0.to_vec())
}

/// A file system's error, as the engine takes it.
#[must_use]
pub fn fault(error: &io::Error) -> IoFault {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => IoFault::NoSpace,
        Some(number) => IoFault::Error(number),
        None => IoFault::Error(libc::EIO),
    }
}

/// Performs a file operation on the journal at `root`; durable when it returns. `give_way` is called
/// between the pieces of a long one, with the bytes written.
///
/// # Errors
///
/// What the file system answers.
pub fn perform(root: &Path, what: &FileOp, give_way: impl FnMut(u64)) -> io::Result<()> {
    match what {
        FileOp::CreateSlot { slot, bytes } => {
            disk::create_segment(&slot_path(root, *slot), *bytes, give_way)
        }
        FileOp::RemoveSlot { slot } => {
            disk::unlink(&slot_path(root, *slot))?;
            disk::sync_directory(root)
        }
        FileOp::WriteCheckpoint {
            generation,
            content,
        } => {
            let path = root.join(format!("checkpoint-{}", generation % 2));
            disk::write_file_atomically(&path, content)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_named_by_number() {
        let path = slot_path(Path::new("/x"), SlotId(17));
        assert_eq!(path, Path::new("/x/00000017.seg"));
        assert_eq!(slot_of("00000017.seg"), Some(SlotId(17)));
        for other in ["17.seg", "00000017.tmp", "checkpoint-0", "0000001x.seg"] {
            assert_eq!(slot_of(other), None);
        }
    }
}
