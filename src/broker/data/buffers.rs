//! The pool of equal, page-aligned buffers of one core: received bytes, open and sealed journal
//! blocks, blocks read back. It does not know what is in them.
//!
//! A buffer mirrors a stretch of a socket's stream or of a journal segment. Its *sealed* part is
//! read by many, the device and the sockets among them, and changes no more; behind it lies the
//! open tail, which one writer fills:
//!
//! ```text
//!   0                      sealed                          bytes
//!   | block | block | block | open tail ....................|
//!     lent as &[u8]           lent as &mut [u8], or to the device to be filled
//! ```
//!
//! References are counted by the core's shell, without atomics; at zero the buffer is free again.
//! Misuse is a bug of the shell and panics: no peer can cause it.
#![expect(
    unsafe_code,
    reason = "slices of one mapping are lent by id, not by borrow"
)]

use std::io;
use std::ops::Range;
use std::rc::Rc;

use ringpost_engine::BufferId;

use crate::rt::{IO_ALIGNMENT, IoWindow, Memory};

/// The size of a buffer if not configured otherwise: one journal block of the largest size.
pub const BUFFER_BYTES_DEFAULT: u32 = 256 << 10;

/// What the pool knows of one buffer.
#[derive(Clone, Debug, Default)]
struct BufferState {
    /// Who holds it, windows lent to the device included; free at zero.
    references: u32,
    /// Bytes before this one change no more.
    sealed: u32,
    /// The device is filling the open tail; nobody else touches it.
    filling: bool,
    /// Its pages have been brought into being.
    populated: bool,
}

/// The buffers of one core.
#[derive(Debug)]
pub struct BufferPool {
    /// All buffers, one behind the other; shared with the windows lent to the device.
    memory: Rc<Memory>,
    /// The size of each; a multiple of [`IO_ALIGNMENT`].
    buffer_bytes: u32,
    /// By id.
    states: Vec<BufferState>,
    /// Ids of free buffers; the last one released is taken first, for its cache lines.
    free: Vec<BufferId>,
}

impl BufferPool {
    /// Maps `count` buffers of `buffer_bytes`. Memory is taken when a buffer is first used.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the address space.
    ///
    /// # Panics
    ///
    /// If there are no buffers, or their size is no multiple of [`IO_ALIGNMENT`].
    pub fn new(count: u32, buffer_bytes: u32) -> io::Result<Self> {
        assert!(count > 0, "a pool without buffers cannot serve");
        assert!(buffer_bytes > 0, "buffers without bytes cannot serve");
        let aligned = (buffer_bytes as usize).is_multiple_of(IO_ALIGNMENT);
        assert!(aligned, "buffers of {buffer_bytes} bytes are not aligned");
        Ok(BufferPool {
            memory: Memory::map(count as usize * buffer_bytes as usize)?,
            buffer_bytes,
            states: vec![BufferState::default(); count as usize],
            free: (0..count).rev().map(BufferId).collect(),
        })
    }

    /// The size of each buffer.
    pub fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// How many buffers are free.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Takes a free buffer with one reference and nothing sealed, or `None` if all are in use. It
    /// holds what its last user left: clear what you do not write.
    pub fn acquire(&mut self) -> Option<BufferId> {
        let id = self.free.pop()?;
        let state = &mut self.states[id.0 as usize];
        assert_eq!(
            state.references, 0,
            "{id:?} was on the free list and in use"
        );
        state.references = 1;
        state.sealed = 0;
        if !state.populated {
            state.populated = true;
            let start = id.0 as usize * self.buffer_bytes as usize;
            self.memory
                .populate(start..start + self.buffer_bytes as usize);
        }
        Some(id)
    }

    /// Adds a reference.
    ///
    /// # Panics
    ///
    /// If the buffer is free.
    pub fn retain(&mut self, id: BufferId) {
        let state = self.used(id);
        state.references = state
            .references
            .checked_add(1)
            .expect("fewer than 2^32 holders");
    }

    /// Gives a reference back, and says whether it was the last, so that the buffer is free now.
    ///
    /// # Panics
    ///
    /// If the buffer is free already.
    pub fn release(&mut self, id: BufferId) -> bool {
        let state = self.used(id);
        state.references -= 1;
        if state.references > 0 {
            return false;
        }
        assert!(
            !state.filling,
            "{id:?} is being filled, so its window holds a reference"
        );
        self.free.push(id);
        true
    }

    /// How many references a buffer has; 0 if it is free.
    pub fn references(&self, id: BufferId) -> u32 {
        self.states[id.0 as usize].references
    }

    /// Where the open tail begins.
    pub fn sealed(&self, id: BufferId) -> u32 {
        self.states[id.0 as usize].sealed
    }

    /// Declares everything before `end` to be final.
    ///
    /// # Panics
    ///
    /// If that lies before what is sealed already, or beyond the buffer, or is being filled.
    pub fn seal(&mut self, id: BufferId, end: u32) {
        let buffer_bytes = self.buffer_bytes;
        let state = self.used(id);
        assert!(!state.filling, "{id:?} is being filled by the device");
        assert!(
            state.sealed <= end,
            "{id:?} is sealed to {}, not {end}",
            state.sealed
        );
        assert!(end <= buffer_bytes, "{end} lies outside of {id:?}");
        state.sealed = end;
    }

    /// Bytes of a held buffer, to be read.
    ///
    /// # Panics
    ///
    /// If the buffer is free or the range is being filled.
    #[inline]
    pub fn bytes(&self, id: BufferId, range: Range<u32>) -> &[u8] {
        let place = self.held_place(id, &range);
        // SAFETY: the place lies in a buffer of the mapping, which is initialised (zeroed by the
        // kernel) and outlives &self. Writing takes &mut self, and the device fills nothing of it.
        unsafe { std::slice::from_raw_parts(self.address(place.start), place.len()) }
    }

    /// The open tail from `start` on, to be written.
    ///
    /// # Panics
    ///
    /// If `start` is sealed, or the buffer is free or being filled.
    #[inline]
    pub fn open_bytes(&mut self, id: BufferId, start: u32) -> &mut [u8] {
        let place = self.open_place(id, start..self.buffer_bytes);
        // SAFETY: the place lies in the mapping, which outlives &mut self; that borrow keeps all
        // other slices away. The device reads sealed bytes only and is not filling this tail.
        unsafe { std::slice::from_raw_parts_mut(self.address(place.start), place.len()) }
    }

    /// Lends sealed bytes to the device, which writes them to disk. The window holds a reference.
    ///
    /// # Panics
    ///
    /// If the range is not sealed, or the buffer is free.
    pub fn lend_sealed(&mut self, id: BufferId, range: Range<u32>) -> IoWindow {
        let place = self.sealed_place(id, &range);
        self.retain(id);
        // SAFETY: sealed bytes are never lent mutably, and the reference taken above keeps the
        // buffer from being acquired anew before the window is returned.
        unsafe { IoWindow::new(self.memory.clone(), place) }
    }

    /// Lends a range of the open tail to the device, which fills it from disk. The window holds a
    /// reference; nobody writes or seals the buffer before it is returned.
    ///
    /// # Panics
    ///
    /// If the range is not open, or the buffer is free or being filled already.
    pub fn lend_to_fill(&mut self, id: BufferId, range: Range<u32>) -> IoWindow {
        let place = self.open_place(id, range);
        self.retain(id);
        self.states[id.0 as usize].filling = true;
        // SAFETY: `filling` refuses `open_bytes` and a second window of the buffer, and unsealed
        // bytes are not lent for reading; the reference keeps the buffer from being acquired anew.
        unsafe { IoWindow::new(self.memory.clone(), place) }
    }

    /// Takes a window back from the device, with its reference; says which bytes of which buffer
    /// it was. After a fill it is for the caller to look at the result and to seal.
    ///
    /// # Panics
    ///
    /// If the window is of another pool.
    pub fn take_back(&mut self, window: IoWindow) -> (BufferId, Range<u32>) {
        assert!(window.is_of(&self.memory), "the window is of another pool");
        let place = window.range();
        let small = |value: usize| u32::try_from(value).expect("it lies within a buffer");
        let id = BufferId(small(place.start / self.buffer_bytes as usize));
        let start = small(place.start % self.buffer_bytes as usize);
        let range = start..start + window.bytes();
        let state = self.used(id);
        // A fill began behind the seal, and the seal cannot move during one; a write ends before it.
        if range.start >= state.sealed {
            assert!(
                state.filling,
                "an open window of {id:?} that does not fill it"
            );
            state.filling = false;
        }
        drop(window);
        self.release(id);
        (id, range)
    }

    fn used(&mut self, id: BufferId) -> &mut BufferState {
        let state = &mut self.states[id.0 as usize];
        assert!(state.references > 0, "{id:?} is free");
        state
    }

    /// Where sealed bytes lie in the mapping.
    #[inline]
    fn sealed_place(&self, id: BufferId, range: &Range<u32>) -> Range<usize> {
        let state = &self.states[id.0 as usize];
        assert!(state.references > 0, "{id:?} is free");
        assert!(range.start <= range.end, "{range:?} runs backwards");
        assert!(
            range.end <= state.sealed,
            "{id:?} is sealed to {}, not {range:?}",
            state.sealed
        );
        self.place(id, range)
    }

    /// Where bytes that may be read lie in the mapping.
    #[inline]
    fn held_place(&self, id: BufferId, range: &Range<u32>) -> Range<usize> {
        let state = &self.states[id.0 as usize];
        assert!(state.references > 0, "{id:?} is free");
        assert!(range.start <= range.end, "{range:?} runs backwards");
        assert!(
            range.end <= self.buffer_bytes,
            "{range:?} lies outside of {id:?}"
        );
        assert!(
            !state.filling || range.end <= state.sealed,
            "{id:?} is being filled by the device"
        );
        self.place(id, range)
    }

    /// Where open bytes lie in the mapping.
    #[inline]
    fn open_place(&self, id: BufferId, range: Range<u32>) -> Range<usize> {
        let state = &self.states[id.0 as usize];
        assert!(state.references > 0, "{id:?} is free");
        assert!(!state.filling, "{id:?} is being filled by the device");
        assert!(range.start <= range.end, "{range:?} runs backwards");
        assert!(
            state.sealed <= range.start,
            "{id:?} is sealed to {}, {range:?}",
            state.sealed
        );
        assert!(
            range.end <= self.buffer_bytes,
            "{range:?} lies outside of {id:?}"
        );
        self.place(id, &range)
    }

    #[inline]
    fn place(&self, id: BufferId, range: &Range<u32>) -> Range<usize> {
        let start = id.0 as usize * self.buffer_bytes as usize;
        start + range.start as usize..start + range.end as usize
    }

    #[inline]
    fn address(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.memory.bytes(), "{offset} lies outside");
        // SAFETY: the callers computed the offset from an id and a range checked against a buffer,
        // so it lies inside the mapping or one past its end.
        unsafe { self.memory.start().as_ptr().add(offset) }
    }
}

impl ringpost_engine::Buffers for BufferPool {
    fn buffer_bytes(&self) -> u32 {
        Self::buffer_bytes(self)
    }

    fn available(&self) -> usize {
        self.free_count()
    }

    fn acquire(&mut self) -> Option<BufferId> {
        Self::acquire(self)
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        Self::bytes(self, buffer, range)
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        Self::open_bytes(self, buffer, from)
    }

    fn seal(&mut self, buffer: BufferId, upto: u32) {
        Self::seal(self, buffer, upto);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u32 = 8192;

    fn pool(count: u32) -> BufferPool {
        BufferPool::new(count, BYTES).expect("there is address space")
    }

    #[test]
    fn all_buffers_can_be_used_and_then_none() {
        let mut pool = pool(3);
        let ids: Vec<_> = (0..3)
            .map(|_| pool.acquire().expect("one is free"))
            .collect();
        assert!(pool.acquire().is_none());
        for (index, &id) in ids.iter().enumerate() {
            let mark = u8::try_from(index).expect("small");
            pool.open_bytes(id, 0).fill(mark);
            pool.seal(id, BYTES);
        }
        for (index, &id) in ids.iter().enumerate() {
            assert!(
                pool.bytes(id, 0..BYTES)
                    .iter()
                    .all(|&byte| usize::from(byte) == index)
            );
        }
        assert!(pool.release(ids[1]));
        assert_eq!(pool.acquire(), Some(ids[1]));
        assert_eq!(pool.sealed(ids[1]), 0);
        assert_eq!(pool.free_count(), 0);
    }

    #[test]
    fn a_buffer_is_free_after_its_last_reference() {
        let mut pool = pool(1);
        let id = pool.acquire().expect("one is free");
        pool.retain(id);
        assert_eq!(pool.references(id), 2);
        assert!(!pool.release(id));
        assert!(pool.acquire().is_none());
        assert!(pool.release(id));
        assert_eq!(pool.free_count(), 1);
    }

    #[test]
    fn a_window_holds_its_buffer_and_returns_its_place() {
        let mut pool = pool(2);
        let id = pool.acquire().expect("one is free");
        pool.seal(id, 4096);
        let written = pool.lend_sealed(id, 0..4096);
        let filled = pool.lend_to_fill(id, 4096..BYTES);
        assert!(!pool.release(id));
        assert_eq!(pool.references(id), 2);
        assert_eq!(pool.take_back(written), (id, 0..4096));
        assert_eq!(pool.take_back(filled), (id, 4096..BYTES));
        assert_eq!(pool.references(id), 0);
    }

    #[test]
    fn the_memory_outlives_the_pool_while_a_window_is_out() {
        let mut pool = pool(1);
        let id = pool.acquire().expect("one is free");
        let window = pool.lend_to_fill(id, 0..4096);
        drop(pool);
        assert_eq!(window.range(), 0..4096);
    }

    /// Runs `misuse` on a pool with one acquired buffer that is sealed to 4096.
    fn misuse(misuse: impl FnOnce(&mut BufferPool, BufferId)) {
        let mut pool = pool(2);
        let id = pool.acquire().expect("one is free");
        pool.seal(id, 4096);
        misuse(&mut pool, id);
    }

    #[test]
    #[should_panic(expected = "is free")]
    fn releasing_twice_panics() {
        misuse(|pool, id| {
            pool.release(id);
            pool.release(id);
        });
    }

    #[test]
    #[should_panic(expected = "is free")]
    fn retaining_a_free_buffer_panics() {
        misuse(|pool, _| pool.retain(BufferId(1)));
    }

    #[test]
    #[should_panic(expected = "is free")]
    fn reading_a_released_buffer_panics() {
        misuse(|pool, id| {
            pool.release(id);
            pool.bytes(id, 0..0);
        });
    }

    #[test]
    #[should_panic(expected = "lies outside")]
    fn reading_beyond_the_end_panics() {
        misuse(|pool, id| {
            pool.bytes(id, 0..BYTES + 1);
        });
    }

    #[test]
    #[should_panic(expected = "is being filled")]
    fn reading_what_the_device_fills_panics() {
        misuse(|pool, id| {
            let _window = pool.lend_to_fill(id, 4096..BYTES);
            pool.bytes(id, 0..4097);
        });
    }

    #[test]
    #[should_panic(expected = "is sealed to 4096")]
    fn writing_sealed_bytes_panics() {
        misuse(|pool, id| {
            pool.open_bytes(id, 4095);
        });
    }

    #[test]
    #[should_panic(expected = "is sealed to 4096")]
    fn unsealing_panics() {
        misuse(|pool, id| pool.seal(id, 4095));
    }

    #[test]
    #[should_panic(expected = "lies outside")]
    fn sealing_beyond_the_end_panics() {
        misuse(|pool, id| pool.seal(id, BYTES + 1));
    }

    #[test]
    #[should_panic(expected = "is being filled")]
    fn writing_what_the_device_fills_panics() {
        misuse(|pool, id| {
            let _window = pool.lend_to_fill(id, 4096..BYTES);
            pool.open_bytes(id, 4096);
        });
    }

    #[test]
    #[should_panic(expected = "is being filled")]
    fn sealing_what_the_device_fills_panics() {
        misuse(|pool, id| {
            let _window = pool.lend_to_fill(id, 4096..BYTES);
            pool.seal(id, BYTES);
        });
    }

    #[test]
    #[should_panic(expected = "another pool")]
    fn a_window_returns_to_its_own_pool() {
        misuse(|pool, id| {
            let window = pool.lend_sealed(id, 0..4096);
            BufferPool::new(2, BYTES)
                .expect("there is address space")
                .take_back(window);
        });
    }
}
