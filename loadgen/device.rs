//! What the device does without a broker: blocking durable writes of one thread, and whether the file
//! system makes them durable at all. Does not know the broker.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::tally::latencies;
use crate::{Error, Result};

/// Bytes of the file that is written over and over.
pub const FILE_BYTES: u64 = 32 << 20;
/// Where blocks begin, and what they are a multiple of.
pub const ALIGN: usize = 4096;

/// What a directory lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Kind of the file system, e.g. `ext4`.
    pub file_system: String,
    /// What is mounted, e.g. `/dev/vda`.
    pub source: String,
    /// Whether files can be opened with O_DIRECT.
    pub is_direct: bool,
}

impl Place {
    /// Whether the file system is memory.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        matches!(
            self.file_system.as_str(),
            "tmpfs" | "ramfs" | "devtmpfs" | "hugetlbfs"
        )
    }

    /// Why a sync here is none, if so.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.is_memory() {
            Some(format!("{} is memory", self.file_system))
        } else if !self.is_direct {
            Some(format!("{} has no O_DIRECT here", self.file_system))
        } else {
            None
        }
    }
}

/// Looks at what a directory lies on.
///
/// # Errors
/// If nothing can be written there.
pub fn look(directory: &Path) -> Result<Place> {
    let whole = directory
        .canonicalize()
        .map_err(Error::io("cannot find the directory of the device"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (file_system, source) =
        mount_of(&mounts, &whole).unwrap_or_else(|| ("unknown".to_owned(), "unknown".to_owned()));
    let file = Scratch::new(directory)?;
    let opened = open(&file.path, libc::O_DIRECT);
    Ok(Place {
        file_system,
        source,
        is_direct: opened.is_ok(),
    })
}

/// Kind and source of the mount that a path lies under, from the lines of `mountinfo`.
fn mount_of(mounts: &str, path: &Path) -> Option<(String, String)> {
    let mut found: Option<(PathBuf, String, String)> = None;
    for line in mounts.lines() {
        let (before, after) = line.split_once(" - ")?;
        let point = PathBuf::from(before.split(' ').nth(4)?.replace("\\040", " "));
        let mut rest = after.split(' ');
        let (kind, source) = (rest.next()?, rest.next().unwrap_or("unknown"));
        // A later mount on the same point hides the earlier one.
        let is_nearer = found
            .as_ref()
            .is_none_or(|(other, ..)| point.starts_with(other));
        if path.starts_with(&point) && is_nearer {
            found = Some((point, kind.to_owned(), source.to_owned()));
        }
    }
    found.map(|(_, kind, source)| (kind, source))
}

/// A file that goes when this does.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(directory: &Path) -> Result<Self> {
        let path = directory.join(format!(".ringpost-load-{}", std::process::id()));
        File::create(&path).map_err(Error::io("cannot write where the device is measured"))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // the next look at it writes it anew
    }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)
}

/// Writes `bytes` again and again for `time`, with O_DSYNC and, where there is one, O_DIRECT, to a
/// file that was written before; how long each took, in ns.
///
/// # Errors
/// If the disk fails.
pub fn measure(directory: &Path, bytes: usize, time: Duration) -> Result<Histogram<u64>> {
    let failed = |error| Error::io("cannot measure the device")(error);
    let scratch = Scratch::new(directory)?;
    let mut first = open(&scratch.path, 0).map_err(failed)?;
    let part = vec![1u8; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        first.write_all(&part).map_err(failed)?;
    }
    first.sync_all().map_err(failed)?;
    drop(first);
    let file = open(&scratch.path, libc::O_DIRECT | libc::O_DSYNC)
        .or_else(|_| open(&scratch.path, libc::O_DSYNC))
        .map_err(failed)?;
    write_again(&file, 0..FILE_BYTES, bytes.clamp(1, 1 << 20), time).map_err(failed)
}

/// Writes blocks of `bytes`, rounded up to whole pages, one after the other into a part of a file that
/// begins at a page, again and again for `time`; how long each took, in ns.
///
/// # Errors
/// If the disk fails.
pub fn write_again(
    file: &File,
    part: Range<u64>,
    bytes: usize,
    time: Duration,
) -> io::Result<Histogram<u64>> {
    let bytes = bytes.next_multiple_of(ALIGN);
    let room = vec![2u8; bytes + ALIGN];
    let from = room.as_ptr().align_offset(ALIGN);
    let block = &room[from..from + bytes];
    let (mut histogram, start, mut position) = (latencies(), Instant::now(), part.start);
    while start.elapsed() < time {
        let before = Instant::now();
        file.write_all_at(block, position)?;
        let took = u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX);
        histogram.saturating_record(took);
        position += bytes as u64;
        if position + bytes as u64 > part.end {
            position = part.start;
        }
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / /dev/shm rw - tmpfs tmpfs rw
31 22 0:26 / /data rw shared:1 - xfs /dev/vdb rw
32 31 0:27 / /data/in\\040memory rw - tmpfs none rw";

    #[test]
    fn the_nearest_mount_counts() {
        let kind = |path: &str| mount_of(MOUNTS, Path::new(path)).map(|(kind, _)| kind);
        for (path, expected) in [
            ("/var/lib", "ext4"),
            ("/dev/shm/x", "tmpfs"),
            ("/data", "xfs"),
            ("/database", "ext4"),
            ("/data/in memory/x", "tmpfs"),
        ] {
            assert_eq!(kind(path).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(kind("relative"), None);
    }

    #[test]
    fn memory_and_files_without_o_direct_are_not_durable() {
        let place = |file_system: &str, is_direct| Place {
            file_system: file_system.to_owned(),
            source: "x".to_owned(),
            is_direct,
        };
        assert_eq!(place("ext4", true).fault(), None);
        assert!(place("tmpfs", true).fault().is_some());
        assert!(place("ext4", false).fault().is_some());
    }

    #[test]
    fn writes_are_timed_and_leave_nothing() {
        let directory =
            std::env::temp_dir().join(format!("ringpost-device-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let found = measure(&directory, 5000, Duration::from_millis(30)).expect("a disk");
        assert!(!found.is_empty() && found.max() > 0);
        look(&directory).expect("it can be looked at");
        std::fs::remove_dir(&directory).expect("it is empty");
        let gone = measure(&directory, 5000, Duration::from_millis(30));
        assert!(gone.is_err());
    }
}
