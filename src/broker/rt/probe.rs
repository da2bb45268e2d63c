//! What the machine offers, asked before anything depends on it: io_uring, memory, the speed of a
//! synced write. It does not judge; `doctor` and the start of the broker do.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};

use super::disk;
use super::time::Monotonic;

/// The operations that the cores, their executor and the journal use.
const OPERATIONS: &[(&str, u8)] = &[
    ("NOP", opcode::Nop::CODE),
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("OPENAT", opcode::OpenAt::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("STATX", opcode::Statx::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("POLL_REMOVE", opcode::PollRemove::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
    ("TIMEOUT_REMOVE", opcode::TimeoutRemove::CODE),
    ("LINK_TIMEOUT", opcode::LinkTimeout::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("RECVMSG", opcode::RecvMsg::CODE),
];

/// Makes a small ring and asks it for every operation that is needed; the names of those that it
/// does not have.
///
/// # Errors
///
/// There is no ring: `ENOSYS` without io_uring in the kernel, `EPERM` where a sysctl or a seccomp
/// filter forbids it, `ENOMEM` where the limit of locked memory is too small for it.
pub fn io_uring_missing() -> io::Result<Vec<&'static str>> {
    let ring = IoUring::new(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let missing = OPERATIONS
        .iter()
        .filter(|operation| !probe.is_supported(operation.1));
    Ok(missing.map(|operation| operation.0).collect())
}

/// Memory that this process may use at most: of the machine, or of its control group if that is
/// less. `None` if the kernel does not say.
#[must_use]
pub fn memory_bytes() -> Option<u64> {
    let information = fs::read_to_string("/proc/meminfo").ok()?;
    let line = information
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(
        kib.saturating_mul(1024)
            .min(control_group_memory_bytes().unwrap_or(u64::MAX)),
    )
}

/// The smallest limit on the way from this process's control group to the root.
fn control_group_memory_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let directory = root.join(own);
    let limits = directory
        .ancestors()
        .take_while(|ancestor| ancestor.starts_with(root));
    limits
        .filter_map(|group| fs::read_to_string(group.join("memory.max")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

/// CPUs that this process may run on, by number; empty if the kernel does not say.
#[must_use]
pub fn cpus_usable() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.map(|list| cpu_list(list.trim())).unwrap_or_default()
}

/// Reads a list as the kernel writes it, such as `0-3,6`.
fn cpu_list(text: &str) -> Vec<usize> {
    let ranges = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

/// The size of the file that writes are measured in.
const SCRATCH_BYTES: u64 = 8 << 20;
/// Largest write that can be measured.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Memory that direct I/O accepts.
#[repr(align(4096))]
struct Aligned([u8; WRITE_BYTES_MAX]);

/// A file like a journal's segment, written in full; removed when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    /// Where it is.
    path: PathBuf,
    /// Opened as the journal opens its segments, or without `O_DIRECT`.
    file: fs::File,
}

impl Scratch {
    /// Makes the file in `directory`; without direct I/O if the file system refuses that, so that
    /// there is something to measure.
    ///
    /// # Errors
    ///
    /// The directory cannot be written, or has no room for 8 MiB.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!(".ringpost-scratch-{}", std::process::id()));
        let made = disk::create_segment(&path, SCRATCH_BYTES, |_| {}).and_then(|()| {
            let open = |flags| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(flags)
                    .open(&path)
            };
            open(libc::O_DIRECT | libc::O_DSYNC).or_else(|_| open(libc::O_DSYNC))
        });
        match made {
            Ok(file) => Ok(Scratch { path, file }),
            Err(error) => {
                // What may be left of it; the first error is the one that matters.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Writes `count` times `bytes` bytes, one after the other, each synced; how long each took.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    ///
    /// # Panics
    ///
    /// If `bytes` is no multiple of 4096, zero, or above 64 KiB.
    pub fn measure(&self, bytes: usize, count: u32) -> io::Result<Vec<Duration>> {
        assert!(
            bytes > 0 && bytes <= WRITE_BYTES_MAX,
            "{bytes} bytes cannot be measured"
        );
        assert!(
            bytes.is_multiple_of(4096),
            "{bytes} is not a multiple of the alignment"
        );
        let memory = Box::new(Aligned([0x5a; WRITE_BYTES_MAX]));
        let places = SCRATCH_BYTES / bytes as u64;
        let mut spans = Vec::with_capacity(count as usize);
        for number in 0..u64::from(count) {
            let start = Monotonic::now();
            self.file
                .write_all_at(&memory.0[..bytes], number % places * bytes as u64)?;
            spans.push(Monotonic::now().since(start));
        }
        Ok(spans)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A scratch file that stays is in nobody's way; there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_of_the_kernel() {
        assert_eq!(cpu_list("0-3,6"), [0, 1, 2, 3, 6]);
        assert_eq!(cpu_list("0"), [0]);
        assert_eq!(cpu_list(""), [0; 0]);
        assert!(!cpus_usable().is_empty());
    }

    #[test]
    fn the_scratch_file_goes_with_its_owner() {
        let directory = tempfile::tempdir().expect("a directory");
        let scratch = Scratch::create(directory.path()).expect("has room");
        let spans = scratch.measure(4096, 3).expect("writes");
        assert_eq!(spans.len(), 3);
        drop(scratch);
        assert_eq!(fs::read_dir(directory.path()).expect("is there").count(), 0);
    }

    #[test]
    fn the_machine_has_memory() {
        assert!(memory_bytes().expect("Linux says") > 0);
    }
}
