//! One file that the kernel reads and writes by asking us: the FUSE protocol, as far as a loop
//! device on that file needs it. Does not know what the bytes are or what becomes of them.
//!
//! Whoever opens `/dev/fuse` and hands it to `mount` answers the kernel's requests on it, one after
//! another: so there is one order of everything that reached the disk. Numbers are those of
//! `linux/fuse.h`, little-endian, and a request and an answer are one read and one write each.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::process::Stdio;

use ringpost_prove::Outcome;
use ringpost_prove::tool;

/// Most bytes of one write.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Bytes before the body of a request, and of an answer.
const REQUEST_HEADER_BYTES: usize = 40;
const ANSWER_HEADER_BYTES: usize = 16;
/// Bytes before the data of a write.
const WRITE_HEADER_BYTES: usize = 40;

/// The only file.
const ROOT: u64 = 1;
/// Its mode: a regular file.
const MODE: u32 = 0o100_600;
/// Answers to `Init`: the version spoken, and what of the kernel's offers is taken.
const VERSION: (u32, u32) = (7, 31);
const ASYNC_READ: u32 = 1 << 0;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIRECT_IO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
/// The answer to `Open`: nothing of this file is kept in the page cache.
const OPEN_DIRECT_IO: u32 = 1;

/// Operations of the kernel.
mod operation {
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
}

/// What a disk is asked to do.
#[derive(Debug)]
pub enum Request<'a> {
    /// Give what is at a position.
    Read {
        /// Where.
        position: u64,
        /// How much.
        bytes: usize,
        /// Where it goes.
        into: &'a mut Vec<u8>,
    },
    /// Take this.
    Write {
        /// Where.
        position: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// Make everything that was written so far outlive a power cut.
    Flush,
}

/// The number of an error, as the kernel names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// The medium does not do what was asked.
    pub const IO: Self = Self(5);
    /// Nobody serves this operation; the kernel does not ask again.
    const NOT_SERVED: Self = Self(38);
}

/// A mounted file and the channel to the kernel.
#[derive(Debug)]
pub struct Channel {
    kernel: File,
    bytes: u64,
}

impl Channel {
    /// Mounts a file of this size over the empty file at `path`. Nothing answers until it is served.
    ///
    /// # Errors
    /// The kernel lacks FUSE, or this process may not mount.
    pub fn mount(path: &Path, bytes: u64) -> Outcome<Self> {
        let wrong = |error: io::Error| format!("cannot open /dev/fuse: {error}");
        let kernel = File::options().read(true).write(true).open("/dev/fuse");
        let kernel = kernel.map_err(wrong)?;
        let channel = kernel.try_clone().map_err(wrong)?;
        File::create(path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        // `mount` inherits the channel as its standard input: descriptor 0.
        let options = format!("fd=0,rootmode={MODE:o},user_id=0,group_id=0");
        tool::command(
            "mount",
            ["-i", "-t", "fuse", "-o", &options, "ringpost-crash"],
        )
        .arg(path)
        .stdin(Stdio::from(channel))
        .done()?;
        Ok(Self { kernel, bytes })
    }

    /// Answers until the file is unmounted.
    ///
    /// # Errors
    /// The kernel says something that cannot be understood.
    pub fn serve(
        mut self,
        mut perform: impl FnMut(Request<'_>) -> Result<(), Errno>,
    ) -> Outcome<()> {
        let mut received = vec![0; WRITE_BYTES_MAX + REQUEST_HEADER_BYTES + WRITE_HEADER_BYTES];
        let mut answer = Vec::new();
        loop {
            let length = match self.kernel.read(&mut received) {
                Ok(length) => length,
                // Unmounted.
                Err(error) if error.raw_os_error() == Some(19) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The request was taken back while it was read.
                Err(error) if error.raw_os_error() == Some(2) => continue,
                Err(error) => return Err(format!("cannot read from /dev/fuse: {error}")),
            };
            let request = Fields(&received[..length]);
            let unique = request.long(8);
            answer.clear();
            let result = match request.word(4) {
                operation::FORGET | operation::BATCH_FORGET | operation::INTERRUPT => continue,
                operation::INIT => {
                    init(&request, &mut answer);
                    Ok(())
                }
                operation::GETATTR => {
                    self.attributes(&mut answer);
                    Ok(())
                }
                operation::OPEN => {
                    words(&mut answer, &[0, 0, OPEN_DIRECT_IO, 0]);
                    Ok(())
                }
                operation::READ => perform(Request::Read {
                    position: request.long(REQUEST_HEADER_BYTES + 8),
                    bytes: request.word(REQUEST_HEADER_BYTES + 16) as usize,
                    into: &mut answer,
                }),
                operation::WRITE => {
                    let bytes = &received[REQUEST_HEADER_BYTES + WRITE_HEADER_BYTES..length];
                    words(&mut answer, &[bytes.len() as u32, 0]);
                    perform(Request::Write {
                        position: request.long(REQUEST_HEADER_BYTES + 8),
                        bytes,
                    })
                }
                operation::FSYNC => perform(Request::Flush),
                operation::RELEASE | operation::FLUSH | operation::DESTROY => Ok(()),
                _ => Err(Errno::NOT_SERVED),
            };
            if result.is_err() {
                answer.clear();
            }
            let mut header = Vec::with_capacity(ANSWER_HEADER_BYTES);
            let error = result.map_or_else(|errno| -errno.0, |()| 0);
            let bytes = ANSWER_HEADER_BYTES + answer.len();
            words(&mut header, &[bytes as u32, error.cast_unsigned()]);
            header.extend_from_slice(&unique.to_le_bytes());
            let parts = [IoSlice::new(&header), IoSlice::new(&answer)];
            match self.kernel.write_vectored(&parts) {
                Ok(written) if written == bytes => {}
                // Whoever asked does not wait any more.
                Err(error) if matches!(error.raw_os_error(), Some(2 | 19)) => {}
                other => return Err(format!("cannot answer on /dev/fuse: {other:?}")),
            }
        }
    }

    /// The answer to `GetAttr`: a file of our size, good for a day.
    fn attributes(&self, answer: &mut Vec<u8>) {
        words(answer, &[86_400, 0, 0, 0]);
        for long in [ROOT, self.bytes, self.bytes / 512, 0, 0, 0] {
            answer.extend_from_slice(&long.to_le_bytes());
        }
        // Three parts of seconds, mode, links, user, group, device, block size, flags.
        words(answer, &[0, 0, 0, MODE, 1, 0, 0, 0, 4096, 0]);
    }
}

/// The answer to `Init`.
fn init(request: &Fields<'_>, answer: &mut Vec<u8>) {
    let read_ahead = request.word(REQUEST_HEADER_BYTES + 8);
    let offered = request.word(REQUEST_HEADER_BYTES + 12);
    let taken = offered & (ASYNC_READ | BIG_WRITES | ASYNC_DIRECT_IO | MAX_PAGES);
    words(answer, &[VERSION.0, VERSION.1, read_ahead, taken]);
    // Most requests in the background, and how many are a congestion: two halves of a word.
    words(answer, &[64 | 48 << 16, WRITE_BYTES_MAX as u32, 1]);
    // Most pages of a request, the other half unused; then what is unused.
    words(answer, &[(WRITE_BYTES_MAX / 4096) as u32]);
    words(answer, &[0; 8]);
}

fn words(answer: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        answer.extend_from_slice(&word.to_le_bytes());
    }
}

/// The fields of a request. What is missing is 0: the kernel sends whole requests.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4);
        bytes.map_or(0, |bytes| {
            u32::from_le_bytes(bytes.try_into().expect("4 bytes"))
        })
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }
}
