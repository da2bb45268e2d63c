//! Files: segments for the poller's ring, and blocking helpers for everything off the hot path. It
//! does not know what a block, a checkpoint or a journal is.
//!
//! The helpers block and belong on a thread of their own, never on a core. Each leaves the disk in
//! a state that survives a power cut before it returns, or an error.
#![expect(unsafe_code, reason = "statfs, statvfs and statx fill C structs")]

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memory::IO_ALIGNMENT;

/// How much [`create_segment`] writes at once.
pub const ZERO_CHUNK_BYTES: usize = 256 << 10;
/// What the name of a file ends with until it is whole.
const UNFINISHED_SUFFIX: &str = ".tmp";
/// The file in a data directory that its broker holds a lock on.
const LOCK: &str = "lock";
/// `statfs` type of tmpfs, where nothing is durable.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// An open segment, past the page cache. Clones share the descriptor, and an operation in flight
/// holds one, so that dropping the last of the others never closes a file in use.
#[derive(Clone, Debug)]
pub struct SegmentFile {
    /// Shared between the holder and the operations in flight; opened on one thread, used on another.
    file: Arc<File>,
}

impl SegmentFile {
    /// Opens a segment such that a completed write is durable (`O_DIRECT | O_DSYNC`). Reads work
    /// on it too.
    ///
    /// # Errors
    ///
    /// What the kernel answers; `EINVAL` if the file system has no direct I/O.
    pub fn open_for_writing(path: &Path) -> io::Result<Self> {
        let flags = libc::O_DIRECT | libc::O_DSYNC;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        Ok(SegmentFile {
            file: Arc::new(file),
        })
    }

    /// Opens a sealed segment (`O_DIRECT`).
    ///
    /// # Errors
    ///
    /// As for [`open_for_writing`](Self::open_for_writing).
    pub fn open_for_reading(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        Ok(SegmentFile {
            file: Arc::new(file),
        })
    }

    /// How long the file is.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

impl AsFd for SegmentFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Zeroes, aligned for direct I/O.
#[repr(align(4096))]
struct Zeroes([u8; ZERO_CHUNK_BYTES]);

impl Zeroes {
    fn new() -> Box<Self> {
        // SAFETY: an array of zero bytes is a valid array of bytes.
        unsafe { Box::new_zeroed().assume_init() }
    }
}

/// Creates a segment of `bytes` zeroes, written in full: an extent that was only reserved would
/// cost a file system transaction at its first write, on the hot path. `pace` is called after
/// each chunk with the bytes written so far, and may block to leave the disk to others. The file has
/// its name only once it is whole; a shorter one of that name is a leftover and is replaced.
///
/// # Errors
///
/// What the kernel answers, for example that the file exists or the disk is full. The unfinished
/// file is removed then, so that the space it took is free again.
///
/// # Panics
///
/// If `bytes` is not a multiple of [`IO_ALIGNMENT`].
pub fn create_segment(path: &Path, bytes: u64, mut pace: impl FnMut(u64)) -> io::Result<()> {
    assert!(
        bytes.is_multiple_of(IO_ALIGNMENT as u64),
        "{bytes} is not a multiple of a block"
    );
    if fs::metadata(path).is_ok_and(|found| found.len() >= bytes) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let unfinished = unfinished(path)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&unfinished)?;
    let filled = fill_with_zeroes(&file, bytes, &mut pace)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&unfinished, path))
        .and_then(|()| sync_directory(parent(path)));
    if filled.is_err() {
        // The first error is the one to report; a file that stays is removed by the next start.
        let _ = fs::remove_file(&unfinished);
    }
    filled
}

/// What a file is called until it is whole.
fn unfinished(path: &Path) -> io::Result<PathBuf> {
    let mut name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_owned();
    name.push(UNFINISHED_SUFFIX);
    Ok(path.with_file_name(name))
}

/// Removes what a process that was killed did not finish in a directory.
///
/// # Errors
///
/// What the kernel answers.
pub fn remove_unfinished(directory: &Path) -> io::Result<()> {
    let suffix = UNFINISHED_SUFFIX.as_bytes();
    for listed in list(directory)? {
        if listed.path.as_os_str().as_bytes().ends_with(suffix) {
            fs::remove_file(&listed.path)?;
        }
    }
    Ok(())
}

fn fill_with_zeroes(file: &File, bytes: u64, pace: &mut impl FnMut(u64)) -> io::Result<()> {
    let zeroes = Zeroes::new();
    let mut written = 0;
    while written < bytes {
        let rest = usize::try_from(bytes - written).unwrap_or(usize::MAX);
        let chunk = &zeroes.0[..rest.min(ZERO_CHUNK_BYTES)];
        file.write_all_at(chunk, written)?;
        written += chunk.len() as u64;
        pace(written);
    }
    Ok(())
}

/// Replaces the contents of `path` such that after a power cut it holds the old or the new ones,
/// never a mixture: temporary file, sync, rename, directory sync.
///
/// # Errors
///
/// What the kernel answers; the old contents are untouched then, unless it was the last step that
/// failed, after which either may be found.
pub fn write_file_atomically(path: &Path, contents: &[u8]) -> io::Result<()> {
    let temporary = unfinished(path)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)?;
    let replaced = file
        .write_all(contents)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // The first error is the one to report; a leftover is overwritten by the next attempt.
        let _ = fs::remove_file(&temporary);
    }
    replaced.and_then(|()| sync_directory(parent(path)))
}

/// Gives a file a new name, durably.
///
/// # Errors
///
/// What the kernel answers.
pub fn rename(source: &Path, target: &Path) -> io::Result<()> {
    fs::rename(source, target)?;
    sync_directory(parent(target))?;
    if parent(source) != parent(target) {
        sync_directory(parent(source))?;
    }
    Ok(())
}

/// Removes a file, durably. Freeing a large one takes milliseconds.
///
/// # Errors
///
/// What the kernel answers.
pub fn unlink(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_directory(parent(path))
}

/// Creates a directory and its missing parents, readable by this user only, durably.
///
/// # Errors
///
/// What the kernel answers.
pub fn create_directory(path: &Path) -> io::Result<()> {
    let existing = path.ancestors().find(|ancestor| ancestor.is_dir());
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for created in path.ancestors() {
        sync_directory(parent(created))?;
        if Some(parent(created)) == existing || Some(created) == existing {
            break;
        }
    }
    Ok(())
}

/// Whether there is a directory at that path with anything in it.
#[must_use]
pub fn has_entries(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// Makes names that were created, renamed or removed in a directory durable.
///
/// # Errors
///
/// What the kernel answers.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Where it is.
    pub path: PathBuf,
    /// How long it is.
    pub bytes: u64,
}

/// Lists the regular files of a directory in order of their names.
///
/// # Errors
///
/// What the kernel answers.
pub fn list(directory: &Path) -> io::Result<Vec<ListedFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            files.push(ListedFile {
                path: entry.path(),
                bytes: metadata.len(),
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Reads a whole file of at most `bytes_max` bytes.
///
/// # Errors
///
/// What the kernel answers; `FileTooLarge` beyond the limit.
pub fn read_file(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    let file = File::open(path)?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut contents)?;
    if contents.len() > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(contents)
}

/// Fills `target` from `offset` of a segment. For direct I/O `offset`, the length and the address
/// have to be multiples of [`IO_ALIGNMENT`].
///
/// # Errors
///
/// What the kernel answers; `UnexpectedEof` if the file is too short.
pub fn read_exact(file: &SegmentFile, offset: u64, target: &mut [u8]) -> io::Result<()> {
    file.file.read_exact_at(target, offset)
}

/// How much room a file system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Its size.
    pub total_bytes: u64,
    /// What this user may still write.
    pub available_bytes: u64,
}

/// Asks how much room the file system of `path` has.
///
/// # Errors
///
/// What the kernel answers.
pub fn disk_space(path: &Path) -> io::Result<DiskSpace> {
    let path = c_path(path)?;
    let mut answer = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path is terminated and the answer has room; both live for the call.
    let result = unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and filled it; zeroes would have been valid as well.
    let answer = unsafe { answer.assume_init() };
    Ok(DiskSpace {
        total_bytes: answer.f_blocks.saturating_mul(answer.f_frsize),
        available_bytes: answer.f_bavail.saturating_mul(answer.f_frsize),
    })
}

/// What a directory is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectIo {
    /// Direct I/O works with our alignment, and the file system is on a device.
    Durable,
    /// It works, but this is memory: nothing survives a power cut.
    Memory,
    /// The file system refuses direct I/O, or wants it aligned to more than we align to.
    Refused,
}

/// Finds out by trying whether the journal can work in `directory`: writes one block through a
/// descriptor like the journal's, and removes the file again.
///
/// # Errors
///
/// If the directory cannot be written at all.
pub fn probe_direct_io(directory: &Path) -> io::Result<DirectIo> {
    let path = directory.join(format!(".probe-{}", std::process::id()));
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(flags)
        .open(&path);
    let written = opened.and_then(|file| {
        file.write_all_at(&Zeroes::new().0[..IO_ALIGNMENT], 0)?;
        Ok(alignment_wanted(&file)? <= IO_ALIGNMENT)
    });
    match fs::remove_file(&path) {
        // On a refusal to open with these flags some file systems leave no file.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match written {
        Ok(true) if is_tmpfs(directory)? => Ok(DirectIo::Memory),
        Ok(true) => Ok(DirectIo::Durable),
        Ok(false) => Ok(DirectIo::Refused),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(DirectIo::Refused),
        Err(error) => Err(error),
    }
}

/// The larger of the alignments that the file system states for memory and offsets; 0 if it does
/// not say, as many do not.
fn alignment_wanted(file: &File) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the empty path with AT_EMPTY_PATH names the descriptor; the answer has room.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded; fields the kernel does not know stay zero, which is valid.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.stx_dio_mem_align.max(answer.stx_dio_offset_align) as usize)
}

fn is_tmpfs(directory: &Path) -> io::Result<bool> {
    let path = c_path(directory)?;
    let mut answer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path is terminated and the answer has room; both live for the call.
    let result = unsafe { libc::statfs(path.as_ptr(), answer.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and filled it; zeroes would have been valid as well.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_type == TMPFS_MAGIC)
}

/// Whether an error says that there is no room.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Keeps others out of a data directory for as long as it lives; the kernel lets go when the process
/// dies, however it dies. Who writes there has it alone, who only reads may have it with others.
#[derive(Debug)]
pub struct DirectoryLock {
    /// Locked; `None` if there is no lock file and nothing may be written.
    _file: Option<File>,
}

impl DirectoryLock {
    /// Locks `directory` by the file `lock` in it, which states the owner's process id unless the
    /// disk is full; `None` if another process has it.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn acquire(directory: &Path) -> io::Result<Option<Self>> {
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // In place: to cut it off first would give away the room that it has.
        let owner = format!("{}\n", std::process::id());
        match file.write_all_at(owner.as_bytes(), 0) {
            // A start needs no space: consumers need a broker to make room.
            Err(error) if is_full(&error) => file.set_len(0)?,
            written => written.and_then(|()| file.set_len(owner.len() as u64))?,
        }
        Ok(Some(DirectoryLock { _file: Some(file) }))
    }

    /// Keeps those out who would write to `directory`, and writes nothing there, so that it may be on
    /// a file system that is read only; `None` if a process has acquired it. A directory without the
    /// lock file, of which a copy may have been made without it, is taken as it is: a broker that
    /// started there at the same time would not be kept out.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn share(directory: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(directory.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(DirectoryLock { _file: None }));
            }
            opened => opened?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(DirectoryLock { _file: Some(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The process that has acquired `directory`, as its lock file states it, if one has; empty if
    /// that found the disk full. Writes nothing; who wants to acquire the lock in the same moment is
    /// refused.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn holder(directory: &Path) -> io::Result<Option<String>> {
        if DirectoryLock::share(directory)?.is_some() {
            return Ok(None);
        }
        let process = fs::read_to_string(directory.join(LOCK))?;
        Ok(Some(process.trim().to_owned()))
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> tempfile::TempDir {
        // Inside the build directory, which is on a disk where /tmp may be memory.
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("the source tree is writable")
    }

    #[test]
    fn a_segment_is_written_in_full_and_paced() {
        let directory = scratch();
        let path = directory.path().join("segment");
        let mut progress = Vec::new();
        let bytes = ZERO_CHUNK_BYTES as u64 * 2 + IO_ALIGNMENT as u64;
        create_segment(&path, bytes, |written| progress.push(written)).expect("there is room");
        assert_eq!(progress, [256 << 10, 512 << 10, bytes]);
        let contents = fs::read(&path).expect("it exists");
        assert_eq!(contents.len() as u64, bytes);
        assert!(contents.iter().all(|&byte| byte == 0));
        let again = create_segment(&path, 4096, |_| ()).expect_err("it exists");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(
            fs::metadata(&path).expect("it was not removed").len(),
            bytes
        );
    }

    #[test]
    fn what_a_kill_left_of_a_segment_is_replaced() {
        let directory = scratch();
        let path = directory.path().join("segment");
        fs::write(&path, [7; IO_ALIGNMENT]).expect("writable");
        fs::write(directory.path().join("segment.tmp"), b"unfinished").expect("writable");
        fs::write(directory.path().join("other.tmp"), b"unfinished").expect("writable");
        create_segment(&path, 2 * IO_ALIGNMENT as u64, |_| ()).expect("a leftover is no segment");
        let contents = fs::read(&path).expect("it exists");
        assert_eq!(contents, [0; 2 * IO_ALIGNMENT]);
        remove_unfinished(directory.path()).expect("writable");
        assert_eq!(list(directory.path()).expect("readable").len(), 1);
    }

    #[test]
    fn a_file_is_replaced_whole_and_no_leftover_stays() {
        let directory = scratch();
        let path = directory.path().join("checkpoint");
        write_file_atomically(&path, b"old").expect("writable");
        write_file_atomically(&path, b"the new one").expect("writable");
        assert_eq!(read_file(&path, 11).expect("readable"), b"the new one");
        let error = read_file(&path, 10).expect_err("one byte too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let files = list(directory.path()).expect("readable");
        assert_eq!(
            files,
            [ListedFile {
                path: path.clone(),
                bytes: 11
            }]
        );
        let moved = directory.path().join("moved");
        rename(&path, &moved).expect("writable");
        unlink(&moved).expect("it exists");
        assert!(list(directory.path()).expect("readable").is_empty());
    }

    #[test]
    fn directories_are_created_with_their_parents() {
        let directory = scratch();
        let deep = directory.path().join("a/b/c");
        create_directory(&deep).expect("writable");
        create_directory(&deep).expect("it may exist");
        assert!(deep.is_dir());
    }

    #[test]
    fn a_directory_is_locked_once() {
        let directory = scratch();
        let first = DirectoryLock::acquire(directory.path()).expect("writable");
        assert!(first.is_some());
        assert!(
            DirectoryLock::acquire(directory.path())
                .expect("writable")
                .is_none()
        );
        drop(first);
        assert!(
            DirectoryLock::acquire(directory.path())
                .expect("writable")
                .is_some()
        );
    }

    #[test]
    fn a_directory_is_shared_by_those_who_read() {
        let directory = scratch();
        let acquire = || DirectoryLock::acquire(directory.path()).expect("writable");
        let share = || DirectoryLock::share(directory.path()).expect("readable");
        assert!(share().is_some());
        assert!(list(directory.path()).expect("readable").is_empty());
        let writer = acquire();
        assert!(writer.is_some());
        let path = directory.path().join(LOCK);
        let owner = fs::read_to_string(&path).expect("readable");
        assert!(share().is_none());
        let holder = DirectoryLock::holder(directory.path()).expect("readable");
        assert_eq!(holder, Some(owner.trim().to_owned()));
        drop(writer);
        fs::write(&path, b"what it was").expect("writable");
        let readers = (share(), share());
        assert!(readers.0.is_some() && readers.1.is_some());
        assert!(acquire().is_none(), "who reads is not written over");
        let holder = DirectoryLock::holder(directory.path()).expect("readable");
        assert_eq!(holder, None);
        drop(readers);
        assert_eq!(fs::read(&path).expect("readable"), b"what it was");
        assert!(acquire().is_some());
    }

    #[test]
    fn the_probe_leaves_nothing_and_knows_memory() {
        let directory = scratch();
        probe_direct_io(directory.path()).expect("writable");
        assert!(list(directory.path()).expect("readable").is_empty());
        let missing = directory.path().join("missing");
        probe_direct_io(&missing).expect_err("there is no such directory");
        let space = disk_space(directory.path()).expect("it exists");
        assert!(space.available_bytes <= space.total_bytes);
    }
}
