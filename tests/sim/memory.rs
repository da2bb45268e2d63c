//! The shell's buffer pool as the engine sees it, with every rule of the seam asserted.
//! Does not know what the bytes mean.

use std::ops::Range;

use ringpost_engine::{BufferId, Buffers};

/// What a free buffer is filled with, so that a read after release shows.
const POISON: u8 = 0xA7;

/// A pool of equal buffers.
#[derive(Debug)]
pub struct Pool {
    buffer_bytes: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    /// Empty until the buffer is acquired for the first time: most of a pool never is.
    bytes: Vec<u8>,
    /// Bytes below it never change while the buffer is held.
    sealed: u32,
    /// Whether the engine holds it.
    engine: bool,
    /// Writes, reads and sends that hold it.
    shell: u32,
    /// Reads in flight into it.
    reads: u32,
}

impl Pool {
    /// A pool of `count` free buffers.
    #[must_use]
    pub fn new(buffer_bytes: u32, count: usize) -> Self {
        assert!(buffer_bytes.is_multiple_of(4096), "buffers are whole pages");
        Self {
            buffer_bytes,
            slots: (0..count)
                .map(|_| Slot {
                    bytes: Vec::new(),
                    sealed: 0,
                    engine: false,
                    shell: 0,
                    reads: 0,
                })
                .collect(),
            free: (0..count as u32).rev().collect(),
        }
    }

    /// The shell takes a hold for a write or a send: the range must be sealed.
    pub fn hold_sealed(&mut self, buffer: BufferId, range: &Range<u32>) {
        let slot = self.held(buffer);
        assert!(
            range.start <= range.end && range.end <= slot.sealed,
            "range {range:?} of buffer {} is not sealed: sealed up to {}",
            buffer.0,
            slot.sealed
        );
        slot.shell += 1;
    }

    /// The shell takes a hold for a read: the range must be open.
    pub fn hold_open(&mut self, buffer: BufferId, range: &Range<u32>) {
        let slot = self.held(buffer);
        assert!(
            range.start >= slot.sealed && range.end as usize <= slot.bytes.len(),
            "read into range {range:?} of buffer {}, which is sealed up to {}",
            buffer.0,
            slot.sealed
        );
        slot.shell += 1;
        slot.reads += 1;
    }

    /// What a read brought; ends its hold.
    pub fn fill(&mut self, buffer: BufferId, range: Range<u32>, bytes: &[u8]) {
        let slot = &mut self.slots[buffer.0 as usize];
        assert!(
            slot.reads > 0,
            "no read is in flight into buffer {}",
            buffer.0
        );
        slot.reads -= 1;
        let (start, end) = (range.start as usize, range.end as usize);
        let done = bytes.len().min(end - start);
        slot.bytes[start..start + done].copy_from_slice(&bytes[..done]);
        self.unhold(buffer);
    }

    /// A write or send is over.
    pub fn unhold(&mut self, buffer: BufferId) {
        let slot = &mut self.slots[buffer.0 as usize];
        assert!(slot.shell > 0, "buffer {} is held by nothing", buffer.0);
        slot.shell -= 1;
        self.free_if_unheld(buffer);
    }

    /// [`ringpost_engine::Effect::Release`].
    pub fn release(&mut self, buffer: BufferId) {
        let slot = self.held(buffer);
        slot.engine = false;
        self.free_if_unheld(buffer);
    }

    /// Bytes of a buffer that the shell holds.
    #[must_use]
    pub fn shell_bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        let slot = &self.slots[buffer.0 as usize];
        assert!(slot.shell > 0, "buffer {} is held by nothing", buffer.0);
        &slot.bytes[range.start as usize..range.end as usize]
    }

    /// Buffers that the engine holds.
    #[must_use]
    pub fn engine_held(&self) -> usize {
        self.slots.iter().filter(|slot| slot.engine).count()
    }

    fn held(&mut self, buffer: BufferId) -> &mut Slot {
        let slot = &mut self.slots[buffer.0 as usize];
        assert!(slot.engine, "the engine does not hold buffer {}", buffer.0);
        slot
    }

    fn free_if_unheld(&mut self, buffer: BufferId) {
        let slot = &mut self.slots[buffer.0 as usize];
        if !slot.engine && slot.shell == 0 {
            slot.bytes.fill(POISON);
            slot.sealed = 0;
            self.free.push(buffer.0);
        }
    }
}

impl Buffers for Pool {
    fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    fn available(&self) -> usize {
        self.free.len()
    }

    fn acquire(&mut self) -> Option<BufferId> {
        let buffer = self.free.pop()?;
        let slot = &mut self.slots[buffer as usize];
        assert!(!slot.engine && slot.shell == 0, "a free buffer is held");
        if slot.bytes.is_empty() {
            slot.bytes = vec![POISON; self.buffer_bytes as usize];
        }
        slot.engine = true;
        Some(BufferId(buffer))
    }

    fn bytes(&self, buffer: BufferId, range: Range<u32>) -> &[u8] {
        let slot = &self.slots[buffer.0 as usize];
        assert!(slot.engine, "the engine does not hold buffer {}", buffer.0);
        &slot.bytes[range.start as usize..range.end as usize]
    }

    fn open_bytes(&mut self, buffer: BufferId, from: u32) -> &mut [u8] {
        let slot = self.held(buffer);
        assert!(
            slot.reads == 0,
            "a read is in flight into buffer {}",
            buffer.0
        );
        assert!(
            from >= slot.sealed,
            "buffer {} is sealed up to {}, opened from {from}",
            buffer.0,
            slot.sealed
        );
        &mut slot.bytes[from as usize..]
    }

    fn seal(&mut self, buffer: BufferId, upto: u32) {
        let slot = self.held(buffer);
        assert!(
            upto >= slot.sealed && upto as usize <= slot.bytes.len(),
            "the watermark of buffer {} goes from {} to {upto}",
            buffer.0,
            slot.sealed
        );
        slot.sealed = upto;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_returns_when_nobody_holds_it() {
        let mut pool = Pool::new(4096, 1);
        let buffer = pool.acquire().expect("one is free");
        assert!(pool.acquire().is_none());
        pool.open_bytes(buffer, 0)[..3].copy_from_slice(b"abc");
        pool.seal(buffer, 4096);
        pool.hold_sealed(buffer, &(0..4096));
        pool.release(buffer);
        assert_eq!(pool.available(), 0, "a write still holds it");
        assert_eq!(pool.shell_bytes(buffer, 0..3), b"abc");
        pool.unhold(buffer);
        assert_eq!(pool.available(), 1);
        let buffer = pool.acquire().expect("free again");
        assert_eq!(pool.bytes(buffer, 0..3), [POISON; 3]);
    }

    #[test]
    #[should_panic(expected = "is not sealed")]
    fn open_bytes_are_not_written() {
        let mut pool = Pool::new(4096, 1);
        let buffer = pool.acquire().expect("one is free");
        pool.hold_sealed(buffer, &(0..4096));
    }

    #[test]
    #[should_panic(expected = "is sealed up to")]
    fn sealed_bytes_are_not_opened() {
        let mut pool = Pool::new(4096, 1);
        let buffer = pool.acquire().expect("one is free");
        pool.seal(buffer, 16);
        pool.open_bytes(buffer, 0);
    }

    #[test]
    #[should_panic(expected = "does not hold")]
    fn released_bytes_are_not_read() {
        let mut pool = Pool::new(4096, 1);
        let buffer = pool.acquire().expect("one is free");
        pool.release(buffer);
        let _ = pool.bytes(buffer, 0..1);
    }

    #[test]
    fn a_read_fills_what_it_brought() {
        let mut pool = Pool::new(4096, 1);
        let buffer = pool.acquire().expect("one is free");
        pool.hold_open(buffer, &(0..4096));
        pool.fill(buffer, 0..4096, &[1; 512]);
        assert_eq!(pool.bytes(buffer, 511..513), [1, POISON]);
        assert_eq!(pool.engine_held(), 1);
    }
}
