//! The bytes of a disk, copied when written: a copy of a whole volume costs little, so that a
//! thousand states of one disk may lie in memory. Does not know who writes or what a flush is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use ringpost_prove::Outcome;

/// Bytes that are copied together.
const CHUNK_BYTES: usize = 16 << 10;

/// The bytes of a disk.
#[derive(Clone)]
pub struct Volume {
    /// Shared by all copies until one of them writes there. Fresh chunks are all one.
    chunks: Vec<Arc<[u8; CHUNK_BYTES]>>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("bytes", &self.bytes())
            .finish()
    }
}

impl Volume {
    /// A volume of zeros.
    ///
    /// # Panics
    /// If `bytes` is no multiple of 16 KiB.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        assert!(bytes.is_multiple_of(CHUNK_BYTES as u64));
        let empty = Arc::new([0; CHUNK_BYTES]);
        Self {
            chunks: vec![empty; bytes as usize / CHUNK_BYTES],
        }
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.chunks.len() * CHUNK_BYTES) as u64
    }

    /// Appends what is at a position to `into`; nothing of what lies behind the end.
    pub fn read(&self, position: u64, bytes: usize, into: &mut Vec<u8>) {
        let end = (position + bytes as u64).min(self.bytes());
        let mut at = position;
        while at < end {
            let (chunk, within) = split(at);
            let count = (CHUNK_BYTES - within).min((end - at) as usize);
            into.extend_from_slice(&self.chunks[chunk][within..within + count]);
            at += count as u64;
        }
    }

    /// Where these bytes lie. Never looks at what was never written.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Vec<u64> {
        let is_written = |chunk: &[u8; CHUNK_BYTES]| chunk.iter().any(|byte| *byte != 0);
        let mut found = Vec::new();
        let mut number = 0;
        while number < self.chunks.len() {
            // Chunks that follow each other are searched together.
            let first = number;
            let mut together = Vec::new();
            while let Some(chunk) = self.chunks.get(number).filter(|chunk| is_written(chunk)) {
                together.extend_from_slice(&**chunk);
                number += 1;
            }
            number = number.max(first + 1);
            let is_first = |window: &&[u8]| window[0] == bytes[0] && *window == bytes;
            let windows = together.windows(bytes.len());
            let places = windows.enumerate().filter(|(_, window)| is_first(window));
            let base = (first * CHUNK_BYTES) as u64;
            found.extend(places.map(|(at, _)| base + at as u64));
        }
        found
    }

    /// Writes it to a file, with holes for what was never written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Outcome<()> {
        let wrong = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let file = File::create(path).map_err(wrong)?;
        file.set_len(self.bytes()).map_err(wrong)?;
        for (number, chunk) in self.chunks.iter().enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                let position = (number * CHUNK_BYTES) as u64;
                file.write_all_at(&**chunk, position).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// If they reach behind the end.
    pub fn write(&mut self, position: u64, bytes: &[u8]) {
        assert!(position + bytes.len() as u64 <= self.bytes());
        let mut rest = bytes;
        let mut at = position;
        while !rest.is_empty() {
            let (chunk, within) = split(at);
            let count = (CHUNK_BYTES - within).min(rest.len());
            let (now, later) = rest.split_at(count);
            Arc::make_mut(&mut self.chunks[chunk])[within..within + count].copy_from_slice(now);
            rest = later;
            at += count as u64;
        }
    }
}

/// The chunk of a position, and the place in it.
fn split(position: u64) -> (usize, usize) {
    let position = position as usize;
    (position / CHUNK_BYTES, position % CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_prove::random::Random;

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut random = Random::new(1);
        let mut volume = Volume::new(4 * CHUNK_BYTES as u64);
        let mut plain = vec![0; 4 * CHUNK_BYTES];
        let mut copies = Vec::new();
        for _ in 0..200 {
            let position = random.below(plain.len() as u64);
            let length = random.between(1, 40_000).min(plain.len() as u64 - position) as usize;
            let bytes: Vec<u8> = (0..length).map(|_| random.number() as u8).collect();
            volume.write(position, &bytes);
            plain[position as usize..][..length].copy_from_slice(&bytes);
            copies.push((volume.clone(), plain.clone()));
        }
        let needle = &plain[CHUNK_BYTES - 20..CHUNK_BYTES + 20];
        assert!(volume.find(needle).contains(&(CHUNK_BYTES as u64 - 20)));
        assert!(volume.find(b"is nowhere in there").is_empty());
        for (copy, plain) in &copies {
            let position = random.below(plain.len() as u64);
            let mut read = Vec::new();
            copy.read(position, usize::MAX >> 1, &mut read);
            assert_eq!(read, plain[position as usize..]);
        }
    }
}
