//! File systems on a block device: made, mounted, shut down, unmounted. Does not know what lies
//! under them or what is kept in them.

use std::path::{Path, PathBuf};

use ringpost_prove::Outcome;
use ringpost_prove::tool;

/// A kind of file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// ext4, with its defaults.
    Ext4,
    /// XFS, with its defaults.
    Xfs,
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
            Self::Ext4 => tool::command("mkfs.ext4", ["-q", "-F", "-E", "nodiscard"]),
            Self::Xfs => tool::command("mkfs.xfs", ["-q", "-f", "-K"]),
        };
        made.arg(device).done().map(drop)
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
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
        let options = match kind {
            Kind::Ext4 => "noatime",
            Kind::Xfs => "noatime,nouuid",
        };
        tool::command("mount", ["-i", "-t", kind.name(), "-o", options])
            .arg(device)
            .arg(point)
            .done()?;
        Ok(Self {
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

    /// Unmounts it. Waits for processes that are just ending.
    ///
    /// # Errors
    /// Somebody uses it.
    pub fn unmount(mut self) -> Outcome<()> {
        self.is_mounted = false;
        tool::until_done(|| tool::command("umount", ["-i"]).arg(&self.point)).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted {
            // The run has failed already. Lazily: a broker may still use it.
            let _ = tool::command("umount", ["-i", "-l"])
                .arg(&self.point)
                .done();
        }
    }
}
