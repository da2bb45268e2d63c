//! One connection between a client and a core: bytes on the way up, bytes on the way down, and who
//! still believes in it. Does not know when anything happens.

use std::collections::VecDeque;
use std::ops::Range;

use ringpost_engine::{BufferId, ConnId};
use ringpost_wire::{Code, Cut, FRAME_BYTES_MAX, cut};

use crate::memory::Pool;
use crate::random::Random;

/// Bytes that the broker wants to send.
#[derive(Debug)]
enum Chunk {
    Bytes(Vec<u8>),
    /// A sealed part of a buffer, held until it is taken.
    Buffer {
        core: usize,
        buffer: BufferId,
        range: Range<u32>,
    },
}

/// What the shell cut from the bytes that arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Nothing whole yet.
    Nothing,
    /// One or more whole frames.
    Frames(Vec<u8>),
    /// No frame: nothing more is read.
    Malformed(Code),
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    /// The client.
    pub client: usize,
    /// The core it lives on.
    pub core: usize,
    /// What that core calls it.
    pub conn: ConnId,
    /// Whether the client still reads and writes.
    pub is_attached: bool,
    /// Whether it is on its way from one core to another.
    pub is_moving: bool,
    /// Whether the core was told that it is closed.
    pub is_closed: bool,
    /// Bytes from the client that have not arrived.
    pub up: VecDeque<u8>,
    /// Something is scheduled that moves `up`.
    pub up_scheduled: bool,
    /// Something is scheduled that moves `kernel`.
    pub give_scheduled: bool,
    /// Something is scheduled that copies `down`.
    pub copy_scheduled: bool,
    /// The client does not read before this time.
    pub paused_until: u64,
    /// Bytes that arrived and are not a whole frame.
    partial: Vec<u8>,
    is_deaf: bool,
    down: VecDeque<(ConnId, Chunk)>,
    /// Bytes taken from the broker that the client has not read.
    kernel: VecDeque<u8>,
}

impl Link {
    /// A new connection.
    #[must_use]
    pub fn new(client: usize, core: usize, conn: ConnId) -> Self {
        Self {
            client,
            core,
            conn,
            is_attached: true,
            is_moving: false,
            is_closed: false,
            up: VecDeque::new(),
            up_scheduled: false,
            give_scheduled: false,
            copy_scheduled: false,
            paused_until: 0,
            partial: Vec::new(),
            is_deaf: false,
            down: VecDeque::new(),
            kernel: VecDeque::new(),
        }
    }

    /// The broker sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.down
            .push_back((self.conn, Chunk::Bytes(bytes.to_vec())));
    }

    /// The broker sends a part of a buffer, which it now holds.
    pub fn send_buffer(&mut self, pool: &mut Pool, buffer: BufferId, range: Range<u32>) {
        pool.hold_sealed(buffer, &range);
        let core = self.core;
        self.down.push_back((
            self.conn,
            Chunk::Buffer {
                core,
                buffer,
                range,
            },
        ));
    }

    /// `count` bytes from the client arrive.
    pub fn arrive(&mut self, count: usize) -> Arrived {
        if self.is_deaf {
            self.up.drain(..count);
            return Arrived::Nothing;
        }
        take_front(&mut self.up, count, &mut self.partial);
        let mut end = 0;
        loop {
            match cut(&self.partial[end..], FRAME_BYTES_MAX) {
                Cut::Complete { length, .. } => end += length,
                Cut::Incomplete { .. } => break,
                Cut::Malformed(code) if end == 0 => {
                    self.is_deaf = true;
                    return Arrived::Malformed(code);
                }
                // The good frames first; what follows is looked at again.
                Cut::Malformed(_) => break,
            }
        }
        if end == 0 {
            return Arrived::Nothing;
        }
        let rest = self.partial.split_off(end);
        Arrived::Frames(core::mem::replace(&mut self.partial, rest))
    }

    /// Copies what the kernel has no room for out of the buffers that it is in.
    pub fn copy_out(&mut self, pools: &mut [Option<Pool>]) {
        for (_, chunk) in &mut self.down {
            if let Chunk::Buffer {
                core,
                buffer,
                range,
            } = chunk
                && let Some(pool) = &mut pools[*core]
            {
                let bytes = pool.shell_bytes(*buffer, range.clone()).to_vec();
                pool.unhold(*buffer);
                *chunk = Chunk::Bytes(bytes);
            }
        }
    }

    /// Whether buffers are held for what the kernel has no room for.
    #[must_use]
    pub fn holds_buffers(&self) -> bool {
        let mut chunks = self.down.iter();
        chunks.any(|(_, chunk)| matches!(chunk, Chunk::Buffer { .. }))
    }

    /// Whether what is left of arrived bytes should be looked at again.
    #[must_use]
    pub fn has_rest(&self) -> bool {
        !self.is_deaf && !self.partial.is_empty()
    }

    /// The kernel takes bytes from the broker, as far as it has room. Returns how many of them the
    /// core that owns the connection now had sent.
    pub fn take(&mut self, pools: &mut [Option<Pool>], room: u64, random: &mut Random) -> u32 {
        let mut own = 0;
        while (self.kernel.len() as u64) < room {
            let Some((conn, chunk)) = self.down.pop_front() else {
                break;
            };
            let left = (room - self.kernel.len() as u64) as usize;
            let length = chunk.length();
            let take = if random.below(4) == 0 {
                random.within(1..=length as u64) as usize
            } else {
                length
            }
            .min(left);
            let rest = chunk.split(take, &mut self.kernel, pools);
            if conn == self.conn {
                own += take as u32;
            }
            if let Some(rest) = rest {
                self.down.push_front((conn, rest));
            }
        }
        own
    }

    /// Whether the broker has bytes that the kernel has not taken.
    #[must_use]
    pub fn wants_room(&self) -> bool {
        !self.down.is_empty()
    }

    /// Bytes that the client could read.
    #[must_use]
    pub fn readable(&self) -> usize {
        self.kernel.len()
    }

    /// The client reads bytes.
    pub fn give(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        take_front(&mut self.kernel, count, &mut bytes);
        bytes
    }

    /// Everything the broker wanted to send, at once: the connection ends in good order.
    pub fn flush(&mut self, pools: &mut [Option<Pool>]) -> Vec<u8> {
        while let Some((_, chunk)) = self.down.pop_front() {
            let length = chunk.length();
            let rest = chunk.split(length, &mut self.kernel, pools);
            assert!(rest.is_none(), "a chunk was taken whole");
        }
        self.give(self.readable())
    }
}

/// Moves the first `count` bytes: by slices, not one by one.
fn take_front(from: &mut VecDeque<u8>, count: usize, to: &mut Vec<u8>) {
    let (head, tail) = from.as_slices();
    let (in_head, in_tail) = (count.min(head.len()), count.saturating_sub(head.len()));
    to.extend_from_slice(&head[..in_head]);
    to.extend_from_slice(&tail[..in_tail]);
    from.drain(..count);
}

impl Chunk {
    fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Buffer { range, .. } => range.len(),
        }
    }

    /// Moves the first `count` bytes; returns what is left, or lets go of the buffer.
    fn split(
        self,
        count: usize,
        to: &mut VecDeque<u8>,
        pools: &mut [Option<Pool>],
    ) -> Option<Chunk> {
        match self {
            Self::Bytes(mut bytes) => {
                let rest = bytes.split_off(count);
                to.extend(bytes);
                (!rest.is_empty()).then_some(Self::Bytes(rest))
            }
            Self::Buffer {
                core,
                buffer,
                range,
            } => {
                let pool = pools[core].as_mut().expect("a core that sends has a pool");
                let middle = range.start + count as u32;
                to.extend(pool.shell_bytes(buffer, range.start..middle));
                if middle == range.end {
                    pool.unhold(buffer);
                    return None;
                }
                Some(Self::Buffer {
                    core,
                    buffer,
                    range: middle..range.end,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_engine::Buffers;
    use ringpost_wire::{FrameKind, frame};

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let mut bytes = Vec::new();
        for sequence in 0..3 {
            frame::write_bare(&mut bytes, FrameKind::Heartbeat, 0, sequence);
        }
        let mut link = Link::new(0, 0, ConnId(1));
        let mut got = Vec::new();
        for byte in &bytes {
            link.up.push_back(*byte);
            if let Arrived::Frames(frames) = link.arrive(1) {
                got.extend(frames);
            }
        }
        assert_eq!(got, bytes);
        link.up.extend(&bytes);
        link.up.extend([0xFF; 40]);
        assert_eq!(link.arrive(bytes.len() + 40), Arrived::Frames(bytes));
        assert!(link.has_rest());
        assert_eq!(link.arrive(0), Arrived::Malformed(Code::FrameMalformed));
        assert!(!link.has_rest());
    }

    #[test]
    fn buffers_are_held_until_their_last_byte_is_taken() {
        let mut pool = Pool::new(4096, 1);
        let buffer = pool.acquire().expect("one is free");
        pool.open_bytes(buffer, 0).fill(5);
        pool.seal(buffer, 4096);
        let mut link = Link::new(0, 0, ConnId(1));
        link.send(b"head");
        link.send_buffer(&mut pool, buffer, 16..32);
        pool.release(buffer);
        let mut pools = [Some(pool)];
        let mut random = Random::new(1, 1);
        let mut got = Vec::new();
        let mut taken = 0;
        while link.wants_room() {
            taken += link.take(&mut pools, 7, &mut random);
            let readable = link.readable();
            assert!(readable <= 7);
            got.extend(link.give(readable));
        }
        assert_eq!(got, [&b"head"[..], &[5; 16]].concat());
        assert_eq!(taken, 20);
        assert_eq!(pools[0].as_ref().map(Buffers::available), Some(1));
    }
}
