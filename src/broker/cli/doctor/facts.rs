//! What `ringpost doctor` finds out of the machine, without judgement. Changes nothing but a scratch
//! file that it removes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::allowance::Allowance;
use crate::boot_error::BootErrorKind;
use crate::config::Config;
use crate::control::identity::Identity;
use crate::rt::disk::{self, DirectIo, DirectoryLock, DiskSpace};
use crate::rt::net::Listener;
use crate::rt::probe::{self, Scratch};

/// Synced writes measured of each size.
const WRITES: u32 = 200;
/// Sizes of the measured writes, in bytes.
pub(super) const WRITE_BYTES: [usize; 2] = [4 << 10, 64 << 10];

/// What was found out, without judgement.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The kernel's release, such as `6.18.44`.
    pub kernel: String,
    /// Operations that io_uring lacks, or the error number of having none.
    pub io_uring: Result<Vec<&'static str>, i32>,
    /// The sysctl: 0 for everybody, 1 for the privileged, 2 for nobody.
    pub io_uring_disabled: u32,
    /// Whether a seccomp filter sees this process's syscalls.
    pub filtered: bool,
    /// Who runs this.
    pub user: String,
    /// Memory that may be locked, and files that may be open.
    pub allowance: Allowance,
    /// CPUs that this process may use.
    pub cpus: Vec<usize>,
    /// What the kernel reads the time from.
    pub clock_source: String,
    /// Memory of the machine or control group.
    pub memory: Option<u64>,
    /// Where the broker will listen.
    pub ports: Vec<Port>,
    /// The data directory, or why nothing can be said of it.
    pub data: Result<DataFacts, String>,
}

/// Where the broker will listen.
#[derive(Clone, Debug)]
pub(super) struct Port {
    /// The flag that says so, without dashes in front.
    pub flag: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Why it cannot.
    pub refused: Option<Refused>,
}

/// Why a broker cannot listen at an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// Somebody else listens there.
    Taken,
    /// In the kernel's words.
    Other(String),
}

/// Whether a broker may use the data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// Nothing is there yet.
    New,
    /// A broker has used it.
    Ours,
    /// A broker is using it, of this process.
    Held(String),
    /// Why it cannot be used.
    Refused {
        /// Whether it was once ours.
        is_damaged: bool,
        /// In words.
        why: String,
    },
}

/// What was found out of the data directory.
#[derive(Clone, Debug)]
pub(super) struct DataFacts {
    /// The directory that was looked at: the data directory, or the nearest above it that exists.
    pub path: PathBuf,
    /// Whether that is the data directory itself.
    pub is_there: bool,
    /// Whether a broker may use it.
    pub state: Use,
    /// Type of its file system.
    pub file_system: String,
    /// Whether the journal can work there.
    pub direct: Result<DirectIo, String>,
    /// Room.
    pub space: Option<DiskSpace>,
    /// Bytes of a write, and p50 and p99 of how long it took.
    pub writes: Vec<(usize, Duration, Duration)>,
}

impl Facts {
    /// Asks the machine.
    pub fn gather(config: &Config, measure: bool) -> Facts {
        let line = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let status = line("/proc/self/status");
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|text| text.trim().to_owned())
        };
        Facts {
            kernel: line("/proc/sys/kernel/osrelease"),
            io_uring: probe::io_uring_missing()
                .map_err(|error| error.raw_os_error().unwrap_or_default()),
            io_uring_disabled: line("/proc/sys/kernel/io_uring_disabled")
                .parse()
                .unwrap_or(0),
            filtered: field("Seccomp:").is_some_and(|mode| mode != "0"),
            user: std::env::var("USER").unwrap_or_else(|_| "$USER".into()),
            allowance: Allowance::of_process(),
            cpus: probe::cpus_usable(),
            clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            memory: probe::memory_bytes(),
            ports: [
                ("listen", config.listen),
                ("admin-listen", config.admin_listen),
            ]
            .into_iter()
            .chain(
                config
                    .amqp_listen
                    .iter()
                    .map(|address| ("amqp-listen", *address)),
            )
            .map(|(flag, address)| Port::gather(flag, address))
            .collect(),
            data: DataFacts::gather(&config.data_dir, measure),
        }
    }
}

impl Port {
    /// Tries to take the address, and lets go of it.
    fn gather(flag: &'static str, address: SocketAddr) -> Port {
        let refused = Listener::claim(address).err().map(|error| {
            if error.kind() == std::io::ErrorKind::AddrInUse {
                Refused::Taken
            } else {
                Refused::Other(error.to_string())
            }
        });
        Port {
            flag,
            address,
            refused,
        }
    }
}

impl Use {
    /// Looks at a directory that exists.
    fn gather(directory: &Path) -> Use {
        if let Err(error) = Identity::check(directory) {
            return Use::Refused {
                is_damaged: error.kind() == BootErrorKind::Damage,
                why: error.to_string(),
            };
        }
        match DirectoryLock::holder(directory) {
            Ok(Some(process)) => Use::Held(process),
            Ok(None) if Identity::is_in(directory) => Use::Ours,
            Ok(None) => Use::New,
            Err(error) => Use::Refused {
                is_damaged: false,
                why: format!("cannot open its file `lock`: {error}"),
            },
        }
    }
}

impl DataFacts {
    /// Asks the file system of `directory`, or of what it will be made in.
    fn gather(directory: &Path, measure: bool) -> Result<DataFacts, String> {
        let absolute = std::path::absolute(directory).map_err(|error| error.to_string())?;
        let path = absolute
            .ancestors()
            .find(|path| path.exists())
            .filter(|path| path.is_dir())
            .ok_or("it is no directory, or would be in what is none")?;
        let is_there = path == absolute;
        let state = if is_there {
            Use::gather(path)
        } else {
            Use::New
        };
        if matches!(state, Use::Refused { .. }) {
            // Whosever it is, nothing is written there.
            return Ok(DataFacts {
                path: path.to_owned(),
                is_there,
                state,
                file_system: String::new(),
                direct: Ok(DirectIo::Durable),
                space: None,
                writes: Vec::new(),
            });
        }
        let direct = disk::probe_direct_io(path).map_err(|error| error.to_string());
        let mut writes = Vec::new();
        if measure && direct.is_ok() {
            let scratch = Scratch::create(path).map_err(|error| error.to_string())?;
            for bytes in WRITE_BYTES {
                let mut spans = scratch
                    .measure(bytes, WRITES)
                    .map_err(|error| error.to_string())?;
                spans.sort_unstable();
                let at = |percent: usize| spans[(spans.len() - 1) * percent / 100];
                writes.push((bytes, at(50), at(99)));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Ok(DataFacts {
            file_system: file_system_of(&mounts, path).unwrap_or_else(|| "unknown".into()),
            direct,
            space: disk::disk_space(path).ok(),
            writes,
            is_there,
            state,
            path: path.to_owned(),
        })
    }
}

/// The file system type of the longest mount point above `path`.
fn file_system_of(mounts: &str, path: &Path) -> Option<String> {
    let lines = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?.replace("\\040", " ");
        let kind = right.split(' ').next()?;
        path.starts_with(&point)
            .then(|| (point.len(), kind.to_owned()))
    });
    // Of two mounts on one point the later one is seen.
    lines
        .enumerate()
        .max_by_key(|(order, (length, _))| (*length, *order))
        .map(|it| it.1.1)
}

/// The first two numbers of a kernel release.
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
                      30 22 0:25 / /var/lib rw - xfs /dev/vdb rw\n\
                      31 22 0:26 / /with\\040space rw shared:1 - tmpfs tmpfs rw\n\
                      32 22 0:27 / /var/lib rw - btrfs /dev/vdc rw\n";
        let of = |path: &str| file_system_of(mounts, Path::new(path));
        assert_eq!(of("/home").as_deref(), Some("ext4"));
        assert_eq!(of("/var/lib/ringpost").as_deref(), Some("btrfs"));
        assert_eq!(of("/with space/x").as_deref(), Some("tmpfs"));
        assert_eq!(of("/variable").as_deref(), Some("ext4"));
        assert_eq!(kernel_version("6.1.0-rc1"), Some((6, 1)));
        assert_eq!(kernel_version("nonsense"), None);
    }
}
