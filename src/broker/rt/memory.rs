//! Page-aligned memory and the windows of it that are lent to the kernel. It does not know what the
//! bytes are, nor who counts references to them: that is `data/buffers.rs`.
#![expect(unsafe_code, reason = "maps memory and hands addresses to the kernel")]

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

/// What direct I/O is aligned to: addresses, file offsets and lengths. The file system's block and
/// every page size divide it or equal it; smaller alignments are legal on some disks, and slow.
pub const IO_ALIGNMENT: usize = 4096;

/// One anonymous mapping, zeroed, whose pages come into being when they are first touched. Owned
/// by one core and dropped with the last window into it.
#[derive(Debug)]
pub struct Memory {
    /// Where it starts; a multiple of [`IO_ALIGNMENT`].
    start: NonNull<u8>,
    /// How long it is.
    bytes: usize,
}

impl Memory {
    /// Maps `bytes` bytes of address space.
    ///
    /// # Errors
    ///
    /// What the kernel answers, most likely that there is no room.
    ///
    /// # Panics
    ///
    /// If `bytes` is zero or not a multiple of [`IO_ALIGNMENT`].
    pub fn map(bytes: usize) -> io::Result<Rc<Self>> {
        assert!(bytes > 0, "an empty mapping is of no use");
        assert!(
            bytes.is_multiple_of(IO_ALIGNMENT),
            "{bytes} is not a multiple of the alignment"
        );
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap does not return null on success");
        Ok(Rc::new(Memory { start, bytes }))
    }

    /// How long the mapping is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of the first byte; valid for reads and writes of [`bytes`](Self::bytes) bytes.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Brings the pages of `range` into being with one call instead of one fault each. Best effort.
    ///
    /// # Panics
    ///
    /// If the range lies outside or is not aligned.
    pub fn populate(&self, range: Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.bytes,
            "{range:?} lies outside"
        );
        assert!(
            range.start.is_multiple_of(IO_ALIGNMENT),
            "{range:?} is not aligned"
        );
        // SAFETY: range.start <= bytes, so the address is inside the mapping or one past it.
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: the range is ours; populating changes no contents. A kernel that does not know
        // the advice refuses it, and the pages fault in one by one.
        unsafe {
            libc::madvise(
                start.as_ptr().cast(),
                range.len(),
                libc::MADV_POPULATE_WRITE,
            )
        };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and no window is left, since each holds an Rc.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        assert_eq!(result, 0, "unmapping a whole mapping cannot fail");
    }
}

/// A stretch of [`Memory`] while the kernel reads or writes it: taken by a submission, returned
/// with its completion. Not `Clone`, so that it cannot be in two operations.
#[derive(Debug)]
#[must_use = "a window is given back to the pool it was lent from"]
pub struct IoWindow {
    /// Keeps the mapping alive as long as the kernel may touch it; shared with the pool.
    memory: Rc<Memory>,
    /// Which bytes of the mapping; inside it, never empty.
    range: Range<usize>,
}

impl IoWindow {
    /// Opens the window `range` of `memory`.
    ///
    /// # Safety
    ///
    /// Until the window is dropped or given back, the caller lends these bytes to nobody mutably
    /// (if the kernel reads them), or to nobody at all (if it writes them).
    ///
    /// # Panics
    ///
    /// If the range is empty or lies outside.
    pub unsafe fn new(memory: Rc<Memory>, range: Range<usize>) -> Self {
        assert!(range.start < range.end, "the window {range:?} is empty");
        assert!(
            range.end <= memory.bytes,
            "{range:?} lies outside of {} bytes",
            memory.bytes
        );
        IoWindow { memory, range }
    }

    /// Which bytes of the mapping.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// How many bytes; an operation that moves fewer has failed.
    pub fn bytes(&self) -> u32 {
        u32::try_from(self.range.len()).expect("the pool makes windows inside a buffer, < 4 GiB")
    }

    /// Whether the window is of this mapping.
    pub fn is_of(&self, memory: &Rc<Memory>) -> bool {
        Rc::ptr_eq(&self.memory, memory)
    }

    /// Where it starts, for the kernel.
    pub(super) fn address(&self) -> NonNull<u8> {
        // SAFETY: the constructor checked that the range lies inside the mapping.
        unsafe { self.memory.start.add(self.range.start) }
    }
}
