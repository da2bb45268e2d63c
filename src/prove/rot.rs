//! What happens to bytes on a disk, done to a data directory: a write that a power cut tore at the
//! end of a journal, and bits that rot. Knows files as bytes; where a journal ends it is told.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::broker::{Program, Started};
use crate::drain::drain_what_serves;
use crate::history::{judge, write};
use crate::link::Link;
use crate::random::Random;
use crate::worker::Shared;
use crate::{Outcome, Stopped};

/// What a write may be torn at: drives do not promise more.
const SECTOR_BYTES: u64 = 512;
/// Most sectors of a torn write.
const TORN_SECTORS_MAX: u64 = 64;
/// Looks for a byte that is not zero.
const LOOKS_MAX: u32 = 100_000;

/// Where the journals of a data directory end: files, and the offsets of their next writes.
pub type Tails = fn(&Path) -> Outcome<Vec<(PathBuf, u64)>>;

/// Puts sectors where the next write of each journal would go, as of one that a power cut tore: of
/// noise, or of what was written before, or both. Nobody was promised anything of it. Returns how
/// many journals have room for that.
///
/// # Errors
/// A file cannot be written.
pub fn tear(tails: Tails, data: &Path, random: &mut Random) -> Outcome<u32> {
    let mut torn = 0;
    for (path, end) in tails(data)? {
        let failed = |error| format!("cannot tear {}: {error}", path.display());
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(failed)?;
        let room = file.metadata().map_err(failed)?.len().saturating_sub(end) / SECTOR_BYTES;
        let sectors = random.between(1, TORN_SECTORS_MAX).min(room);
        for sector in 0..sectors {
            let mut bytes = [0u8; SECTOR_BYTES as usize];
            match random.below(3) {
                // It did not arrive.
                0 => continue,
                1 => bytes.fill_with(|| random.number() as u8),
                _ => {
                    let back = end.min(random.between(1, TORN_SECTORS_MAX) * SECTOR_BYTES);
                    let from = end - back;
                    file.read_exact_at(&mut bytes, from).map_err(failed)?;
                }
            }
            let at = end + sector * SECTOR_BYTES;
            file.write_all_at(&bytes, at).map_err(failed)?;
        }
        torn += u32::from(sectors > 0);
    }
    Ok(torn)
}

/// What came of a bit that rotted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rot {
    /// Everything is as it was.
    Harmless,
    /// Some queues refuse service, as `ringpost verify` says; the others are as they were.
    Refused,
    /// The broker does not start, as `ringpost verify` says.
    NotStarted,
}

/// Flips a bit in a copy of the program's data, lets `ringpost verify` look at it, starts a broker on
/// it, takes out everything that it gives, and judges that.
///
/// # Errors
/// A promise is broken: something is missing, wrong or doubled, and no queue refuses because of it.
/// Or a file or the broker is in the way.
pub fn flip(
    program: &Program,
    shared: &Shared,
    directory: &Path,
    random: &mut Random,
) -> Result<Rot, Stopped> {
    let copy = Program {
        data: directory.join("rotten"),
        log: directory.join("rotten.log"),
        ..program.clone()
    };
    copy_all(&program.data, &copy.data)?;
    let place = flip_a_bit(&copy.data, random)?;
    let told = |what: String| format!("{place}: {what}; the data is in {}", copy.data.display());
    let fails = |what: String| Stopped::Broken(told(what));
    let verified = copy.verify()?;
    let shared = shared.copy();
    let rot = match copy.start_or_status()? {
        Started::Ended(status) if status.code() == Some(4) => {
            if verified.success() {
                return Err(fails("the broker finds damage, verify does not".into()));
            }
            Rot::NotStarted
        }
        Started::Ended(status) => return Err(fails(format!("the broker ended with {status}"))),
        Started::Serving(broker) => {
            let mut link = Link::open(broker.address())?;
            shared.scene.declare(&mut link).map_err(told)?;
            let refusing = drain_what_serves(&shared, broker.address()).map_err(told)?;
            // What it refuses it has told; a queue that refuses keeps nothing else from a good end.
            broker.terminate().map_err(told)?;
            if !refusing.is_empty() && verified.success() {
                return Err(fails(
                    "a queue refuses service, verify finds nothing".into(),
                ));
            }
            let events = shared.history.all();
            let verdict = judge(&events);
            if !verdict.ended && verdict.violation_count == 0 {
                return Err(told(format!("{verdict}")).into());
            }
            if !verdict.is_clean() {
                write(&directory.join("rotten.history"), &events)?;
                return Err(fails(format!("{verdict}")));
            }
            if refusing.is_empty() {
                Rot::Harmless
            } else {
                Rot::Refused
            }
        }
    };
    fs::remove_dir_all(&copy.data).map_err(|error| format!("cannot remove a copy: {error}"))?;
    Ok(rot)
}

/// Flips a bit of a byte that is not zero, in a journal or a checkpoint; says which.
fn flip_a_bit(data: &Path, random: &mut Random) -> Outcome<String> {
    let mut files = Vec::new();
    list(data, &mut files)?;
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".seg") || name.starts_with("checkpoint-")
    });
    files.sort();
    for _ in 0..LOOKS_MAX {
        let path = random.pick(&files);
        let failed = |error| format!("cannot change {}: {error}", path.display());
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length == 0 {
            continue;
        }
        let at = random.below(length);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).map_err(failed)?;
        if byte[0] != 0 {
            byte[0] ^= 1 << random.below(8);
            file.write_all_at(&byte, at).map_err(failed)?;
            let name = path.strip_prefix(data).unwrap_or(path).display();
            return Ok(format!("a bit of byte {at} of {name} flipped"));
        }
    }
    Err("the data directory has nothing but zeroes".to_owned())
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> Outcome<()> {
    let failed = |error| format!("cannot list {}: {error}", directory.display());
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Copies a directory with all that is in it.
///
/// # Errors
/// Something of it cannot be read or written.
pub fn copy_all(from: &Path, to: &Path) -> Outcome<()> {
    let failed = |error| format!("cannot copy {}: {error}", from.display());
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).map_err(failed)?;
        }
    }
    Ok(())
}
