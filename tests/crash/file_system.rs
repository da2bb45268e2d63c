//! File systems on a block device: made, mounted, shut down, unmounted. Does not know what lies
//! under them or what is kept in them.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use ringpost_prove::Outcome;
use ringpost_prove::tool;

use crate::mounts::let_go;

/// Written as a whole when it is made, so that nothing of it is still being written under the broker.
const EXT4_WHOLE: &str = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";

/// A kind of file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// ext4, with its defaults but for few files.
    Ext4,
    /// XFS, with its defaults.
    Xfs,
}

/// What may be done with a file system that is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To read.
    ReadOnly,
    /// To read and to write.
    ReadWrite,
}

impl Kind {
    /// The kind of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Outcome<Self> {
        match name {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            _ => Err(format!(
                "{name:?} is no file system of this harness: ext4, xfs"
            )),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Bytes of a small one that holds some journals; XFS is not made smaller than 300 MiB.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 256 << 20,
            Self::Xfs => 320 << 20,
        }
    }

    /// Makes one on a device.
    ///
    /// # Errors
    /// A program is missing, or the device fails.
    pub fn make(self, device: &Path) -> Outcome<()> {
        let made = match self {
            Self::Ext4 => tool::command("mkfs.ext4", ["-q", "-F", "-N", "256", "-E", EXT4_WHOLE]),
            Self::Xfs => tool::command("mkfs.xfs", ["-q", "-f", "-K"]),
        };
        made.arg(device).done().map(drop)
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    kind: Kind,
    point: PathBuf,
    is_mounted: bool,
}

impl Mounted {
    /// Mounts a device at a directory, which is made if it is not there.
    ///
    /// # Errors
    /// What is on the device is no file system that can be mounted.
    pub fn mount(kind: Kind, device: &Path, point: &Path) -> Outcome<Self> {
        std::fs::create_dir_all(point)
            .map_err(|error| format!("cannot make {}: {error}", point.display()))?;
        // Many states of one XFS have one name.
        let options: Option<&CStr> = match kind {
            Kind::Ext4 => None,
            Kind::Xfs => Some(c"nouuid"),
        };
        // By the system call and not `mount`: a run mounts thousands of images.
        mount(device, point, kind.name(), MountFlags::NOATIME, options).map_err(|error| {
            format!(
                "cannot mount the {} of {}: {error}",
                kind.name(),
                device.display()
            )
        })?;
        Ok(Self {
            kind,
            point: point.to_owned(),
            is_mounted: true,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Stops it at once, as a crash of the machine would: what is not on the device never will be.
    ///
    /// # Errors
    /// `xfs_io` is missing, or the kernel refuses.
    pub fn shut_down(&self) -> Outcome<()> {
        tool::command("xfs_io", ["-x", "-c", "shutdown"])
            .arg(&self.point)
            .done()
            .map(drop)
    }

    /// Makes it find that it cannot be written any more: ext4 becomes read-only, as after an error
    /// of its journal, and XFS, which has no such state, stops.
    ///
    /// # Errors
    /// As [`Mounted::shut_down`].
    pub fn give_up(&self) -> Outcome<()> {
        match self.kind {
            Kind::Ext4 => mount_remount(&self.point, MountFlags::NOATIME, c"abort")
                .map_err(|error| format!("cannot abort {}: {error}", self.point.display())),
            Kind::Xfs => self.shut_down(),
        }
    }

    /// Lets nobody write to it, or lets them again.
    ///
    /// # Errors
    /// Somebody is writing.
    pub fn permit_writes(&self, access: Access) -> Outcome<()> {
        let flags = match access {
            Access::ReadOnly => MountFlags::NOATIME | MountFlags::RDONLY,
            Access::ReadWrite => MountFlags::NOATIME,
        };
        mount_remount(&self.point, flags, c"")
            .map_err(|error| format!("cannot remount {}: {error}", self.point.display()))
    }

    /// Unmounts it. Waits for processes that are just ending.
    ///
    /// # Errors
    /// Somebody uses it.
    pub fn unmount(mut self) -> Outcome<()> {
        self.is_mounted = false;
        let_go(&self.point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted {
            // The run has failed already. Lazily: a broker may still use it.
            let _ = unmount(&self.point, UnmountFlags::DETACH);
        }
    }
}
