//! Works on a data directory while no broker uses it: checks it, gives up what is lost, and moves it
//! to another number of cores. Does not know formats; the engine does.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ringpost_engine::config::META;
use ringpost_engine::control::catalog::Catalog;
use ringpost_engine::control::offline::{self, Disk, Found, Opened, Unreadable, Unserved};
use ringpost_engine::control::recovery;
use ringpost_engine::data::journal::block::{BlockHeader, BlockSequence};
use ringpost_engine::data::journal::record::{PARTITION_META, PARTITION_TRANSACTIONS};
use ringpost_engine::data::journal::{self, Damage as EngineDamage};
use ringpost_engine::{FileOp, IoFault, JournalId, SlotHead, SlotId};
use ringpost_wire::ids::{PartitionId, QueueId};
use serde::Serialize;

use crate::boot_error::{BootError, BootErrorKind};
use crate::control::identity::Identity;
use crate::data::store::{fault, list_journal, perform, slot_path};
use crate::rt::disk::{self, DirectoryLock};

/// What was found in a data directory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Files read.
    pub files: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What refuses service until it is given up: what is lost, may be, or lies beside damage.
    pub damage: Vec<Damage>,
    /// What is damaged without any loss, for people.
    pub notes: Vec<String>,
}

/// A damaged range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Damage {
    /// Its name, for [`accept_loss`].
    pub range: String,
    /// The partitions that it may concern.
    pub partitions: String,
    /// What is wrong, for people.
    pub what: String,
}

/// Why a data directory cannot be worked on.
#[derive(Debug)]
pub enum OfflineError {
    /// It cannot be read.
    Unreadable {
        /// The directory.
        directory: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A broker uses it.
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// No damage has this name.
    RangeUnknown {
        /// The name.
        range: String,
    },
    /// What a start would say of it: it is no data directory, of a later format, or damaged.
    Unfit(BootError),
    /// A journal of it cannot be read as a whole; a start would fail over the same.
    Damaged {
        /// Why, for people.
        why: String,
    },
    /// What was to be done failed on the way.
    Failed {
        /// Why, for people.
        why: String,
    },
}

impl OfflineError {
    /// What it is about: the same as where a start fails over it.
    #[must_use]
    pub fn kind(&self) -> BootErrorKind {
        match self {
            OfflineError::Unreadable { .. } | OfflineError::InUse { .. } => {
                BootErrorKind::Environment
            }
            OfflineError::RangeUnknown { .. } => BootErrorKind::Configuration,
            OfflineError::Unfit(error) => error.kind(),
            OfflineError::Damaged { .. } => BootErrorKind::Damage,
            OfflineError::Failed { .. } => BootErrorKind::Other,
        }
    }
}

impl From<BootError> for OfflineError {
    fn from(error: BootError) -> Self {
        OfflineError::Unfit(error)
    }
}

impl std::fmt::Display for OfflineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OfflineError::Unreadable { directory, error } => write!(
                f,
                "cannot read the data directory {}: {error}; name another with --data-dir",
                directory.display()
            ),
            OfflineError::InUse { directory } => {
                write!(
                    f,
                    "a broker, or another `verify` or `repair`, uses {}: stop it first",
                    directory.display()
                )
            }
            OfflineError::RangeUnknown { range } => write!(
                f,
                "`ringpost verify` finds no damaged range '{range}': only damage can be given up"
            ),
            OfflineError::Unfit(error) => error.fmt(f),
            OfflineError::Damaged { why } | OfflineError::Failed { why } => f.write_str(why),
        }
    }
}

impl std::error::Error for OfflineError {}

/// The files of one journal, read and written in place. Writes are synced one by one.
struct Files {
    directory: PathBuf,
    writable: bool,
}

impl Files {
    fn open(&self, slot: SlotId) -> Result<std::fs::File, IoFault> {
        std::fs::OpenOptions::new()
            .read(true)
            .write(self.writable)
            .open(slot_path(&self.directory, slot))
            .map_err(|error| fault(&error))
    }
}

impl Disk for Files {
    fn read(&mut self, slot: SlotId, position: u32, into: &mut [u8]) -> Result<(), IoFault> {
        let file = self.open(slot)?;
        file.read_exact_at(into, u64::from(position))
            .map_err(|error| fault(&error))
    }

    fn write(&mut self, slot: SlotId, position: u32, bytes: &[u8]) -> Result<(), IoFault> {
        let file = self.open(slot)?;
        file.write_all_at(bytes, u64::from(position))
            .and_then(|()| file.sync_data())
            .map_err(|error| fault(&error))
    }

    fn file(&mut self, what: &FileOp) -> Result<(), IoFault> {
        perform(&self.directory, what, |_| {}).map_err(|error| fault(&error))
    }
}

/// The settings of a journal of this directory.
pub fn journal_config(identity: &Identity, core: u16) -> journal::Config {
    journal::Config {
        segment_bytes: identity.segment_bytes,
        slots_max: 1 << 16,
        partitions: identity.partitions,
        ..journal::Config::new(JournalId(core), identity.cluster)
    }
}

/// Looks at a data directory and locks it by `lock`.
fn claim(
    directory: &Path,
    lock: fn(&Path) -> io::Result<Option<DirectoryLock>>,
) -> Result<(DirectoryLock, Identity), OfflineError> {
    let unreadable = |error| OfflineError::Unreadable {
        directory: directory.to_owned(),
        error,
    };
    std::fs::read_dir(directory).map_err(unreadable)?;
    let identity = Identity::read(directory)?;
    identity.check_journals()?;
    match lock(directory) {
        Ok(Some(lock)) => Ok((lock, identity)),
        Ok(None) => Err(OfflineError::InUse {
            directory: directory.to_owned(),
        }),
        Err(error) => Err(unreadable(error)),
    }
}

fn listed(identity: &Identity, core: u16) -> Result<(Vec<SlotHead>, Vec<Vec<u8>>), OfflineError> {
    let directory = identity.journal_directory(core);
    list_journal(&directory).map_err(|error| OfflineError::Unreadable { directory, error })
}

fn opened(identity: &Identity, core: u16, writable: bool) -> Result<Opened<Files>, OfflineError> {
    let (heads, checkpoints) = listed(identity, core)?;
    let catalog = (core == META.0).then(|| Catalog::new(identity.partitions));
    let files = Files {
        directory: identity.journal_directory(core),
        writable,
    };
    let config = journal_config(identity, core);
    offline::open(config, &heads, &checkpoints, catalog, files).map_err(|why| {
        OfflineError::Damaged {
            why: format!("journal {core}: {why}"),
        }
    })
}

fn range_name(core: u16, damage: &EngineDamage) -> String {
    let upto = if damage.upto == u64::MAX {
        "end".to_owned()
    } else {
        damage.upto.to_string()
    };
    let partition = partition_name(damage.partition);
    format!("{core}:{partition}:{}-{upto}", damage.first)
}

/// What people call a partition.
fn partition_name(partition: PartitionId) -> String {
    match partition {
        PARTITION_META => "topology".to_owned(),
        PARTITION_TRANSACTIONS => "transactions".to_owned(),
        PartitionId(number) => number.to_string(),
    }
}

/// The name of messages of a queue that cannot be read.
fn messages_name(core: u16, partition: PartitionId, lost: &Unreadable) -> String {
    let (first, last) = (lost.range.first.0, lost.range.last.0);
    format!(
        "{core}:{}:queue-{}:{first}-{last}",
        partition.0, lost.queue.0
    )
}

/// The topology, as the meta core's journal has it.
fn catalog_of(identity: &Identity) -> Result<Catalog, OfflineError> {
    let meta = opened(identity, META.0, false)?;
    Ok(meta
        .catalog
        .unwrap_or_else(|| Catalog::new(identity.partitions)))
}

/// Reads everything and writes nothing.
///
/// # Errors
/// The directory cannot be read, or a broker uses it.
pub fn verify(directory: &Path) -> Result<Survey, OfflineError> {
    let (_lock, identity) = claim(directory, DirectoryLock::share)?;
    let catalog = catalog_of(&identity)?;
    let mut survey = Survey::default();
    let mut has_lost_topology = false;
    for core in 0..identity.cores {
        let (heads, checkpoints) = listed(&identity, core)?;
        survey.files += (heads.len() + checkpoints.len()) as u64;
        let mut files = Files {
            directory: identity.journal_directory(core),
            writable: false,
        };
        let config = journal_config(&identity, core);
        let read = |slot, position, into: &mut [u8]| files.read(slot, position, into);
        let verified = recovery::verify(config, &heads, &checkpoints, read).map_err(|why| {
            OfflineError::Damaged {
                why: format!("journal {core}: {why}"),
            }
        })?;
        survey.blocks += verified.block_count + verified.report.replayed_count;
        survey.bytes += verified.report.read_bytes;
        let mut journal = opened(&identity, core, false)?;
        let known = journal.damages().to_vec();
        has_lost_topology |= journal.has_lost_topology();
        let unknown = journal
            .queues
            .keys()
            .filter(|id| catalog.queue(**id).is_none());
        let unknown: Vec<_> = unknown.map(|id| id.0.to_string()).collect();
        if has_lost_topology && !unknown.is_empty() {
            survey.notes.push(format!(
                "journal {core}: has messages of queues that the topology does not know any more \
                 (numbers {}); they go with what it has lost",
                unknown.join(", ")
            ));
        }
        let lost = journal.unreadable(|queue| catalog.queue(queue).is_some());
        let name_of = |queue: QueueId| match catalog.queue(queue) {
            Some(state) => format!(
                "queue {} ({})",
                queue.0,
                String::from_utf8_lossy(&state.name)
            ),
            None => format!("queue {}", queue.0),
        };
        for damage in &verified.report.damages {
            if known.contains(damage) {
                survey.damage.push(Damage {
                    range: range_name(core, damage),
                    partitions: partition_name(damage.partition),
                    what: known_text(damage, &lost, name_of),
                });
            } else {
                // A checkpoint covers them: what they said is known, and the messages that are still
                // needed are proved one by one below.
                let records = records_text(damage);
                survey
                    .notes
                    .push(format!("journal {core}: damaged: {records}"));
            }
        }
        let is_told = |lost: &Unreadable| {
            known
                .iter()
                .any(|damage| is_message(damage, lost) && lost.range.count() == 1)
        };
        for lost in &lost {
            let Some(queue) = catalog.queue(lost.queue) else {
                continue;
            };
            let is_damaged = known.iter().any(|d| d.partition == queue.partition);
            if is_damaged && (lost.why == Unserved::Nowhere || is_told(lost)) {
                continue;
            }
            survey.damage.push(Damage {
                range: messages_name(core, queue.partition, lost),
                partitions: partition_name(queue.partition),
                what: unserved_text(lost, &name_of(lost.queue)),
            });
        }
        let findings = verified.report.findings.iter();
        let findings = findings.map(|finding| format!("journal {core}: {finding}"));
        survey.notes.extend(findings);
        if verified.report.checkpoint_damaged {
            survey.notes.push(format!(
                "journal {core}: a checkpoint file cannot be read; the other one, or the journal, \
                 is used"
            ));
        }
    }
    Ok(survey)
}

/// Where the journals of a directory end: the file of each one's last block, and the offset behind
/// it. A journal without a block is left out.
///
/// # Errors
/// The directory cannot be read, or a broker uses it.
pub fn tails(directory: &Path) -> Result<Vec<(PathBuf, u64)>, OfflineError> {
    let (_lock, identity) = claim(directory, DirectoryLock::share)?;
    let mut tails = Vec::new();
    for core in 0..identity.cores {
        let journal = identity.journal_directory(core);
        let unreadable = |error| OfflineError::Unreadable {
            directory: journal.clone(),
            error,
        };
        let (heads, _) = listed(&identity, core)?;
        let mut last: Option<(BlockSequence, PathBuf, u64)> = None;
        for head in heads {
            let path = slot_path(&journal, head.slot);
            let content = disk::read_file(&path, identity.segment_bytes as usize);
            let content = content.map_err(unreadable)?;
            let mut at = 0;
            // Blocks of one life of the slot follow each other.
            let mut number = None;
            while let Some(block) = content.get(at..).and_then(BlockHeader::decode)
                && *number.get_or_insert(block.segment_number) == block.segment_number
                && block.journal_uuid == journal_config(&identity, core).journal_uuid
            {
                at += block.bytes() as usize;
                if last
                    .as_ref()
                    .is_none_or(|(sequence, ..)| *sequence < block.sequence)
                {
                    last = Some((block.sequence, path.clone(), at as u64));
                }
            }
        }
        tails.extend(last.map(|(_, path, end)| (path, end)));
    }
    Ok(tails)
}

/// Reads every message that a start would find and gives it to `each`, queue by queue. Writes
/// nothing.
///
/// # Errors
/// The directory cannot be read or is damaged, a broker uses it, or what `each` says.
pub fn messages(
    directory: &Path,
    each: impl FnMut(Found<'_>) -> Result<(), String>,
) -> Result<(), OfflineError> {
    let (_lock, identity) = claim(directory, DirectoryLock::share)?;
    let journals = (0..identity.cores)
        .map(|core| opened(&identity, core, false))
        .collect::<Result<_, _>>()?;
    offline::messages(journals, each).map_err(|why| OfflineError::Failed { why })
}

/// Whether damage of one message is that of these.
fn is_message(damage: &EngineDamage, lost: &Unreadable) -> bool {
    let is_inside = (lost.range.first..=lost.range.last).contains(&damage.queue_sequence);
    damage.queue == lost.queue && is_inside
}

/// What damage that recovery names has cost, where `lost` are the messages that are not served.
fn known_text(
    damage: &EngineDamage,
    lost: &[Unreadable],
    name_of: impl Fn(QueueId) -> String,
) -> String {
    let records = records_text(damage);
    if damage.queue == QueueId(0) {
        return match damage.upto {
            u64::MAX => format!("{records} may be lost: nothing says how many there were, if any"),
            upto if upto == damage.first + 1 => format!("{records} is lost"),
            _ => format!("{records} are lost"),
        };
    }
    let queue = name_of(damage.queue);
    let message = format!("message {} of {queue}", damage.queue_sequence.0);
    match lost.iter().any(|lost| is_message(damage, lost)) {
        true => format!("{message} is lost: it has rotted in {records}"),
        false => format!(
            "{message} has rotted in {records}: it is settled and nothing is lost, but the \
             partition does not serve before that is given up"
        ),
    }
}

/// Why messages of a queue are not served.
fn unserved_text(lost: &Unreadable, queue: &str) -> String {
    let (first, last) = (lost.range.first.0, lost.range.last.0);
    let messages = format!("messages {first} to {last} of {queue}");
    match lost.why {
        Unserved::Nowhere => format!("{messages} are lost: nothing says where they lie"),
        Unserved::Damaged => format!("{messages} are lost: they cannot be read"),
        Unserved::Beside => format!(
            "{messages} are whole, but a settled one of the same record is damaged: to give them up \
             moves them and loses nothing"
        ),
    }
}

fn records_text(damage: &EngineDamage) -> String {
    let records = match (damage.first, damage.upto) {
        (first, u64::MAX) => format!("records {first} and later ones"),
        (first, upto) if upto == first + 1 => format!("record {first}"),
        (first, upto) => format!("records {first} to {}", upto - 1),
    };
    let whose = match damage.partition {
        PARTITION_META => "the topology".to_owned(),
        PARTITION_TRANSACTIONS => "transactions over several cores".to_owned(),
        PartitionId(number) => format!("partition {number}"),
    };
    format!(
        "{records} of {whose} (segment {}, offset {})",
        damage.segment_number.0, damage.offset
    )
}

/// Writes a durable record that `range` is given up.
///
/// # Errors
/// The directory cannot be read or written, a broker uses it, or no damage has this name.
pub fn accept_loss(directory: &Path, range: &str) -> Result<(), OfflineError> {
    let (_lock, identity) = claim(directory, DirectoryLock::acquire)?;
    let catalog = catalog_of(&identity)?;
    let partition_of = |queue| catalog.queue(queue).map(|queue| queue.partition);
    for core in 0..identity.cores {
        let failed = |why| OfflineError::Failed {
            why: format!("journal {core}: {why}"),
        };
        let mut journal = opened(&identity, core, true)?;
        let found = journal
            .damages()
            .iter()
            .find(|damage| range_name(core, damage) == range)
            .copied();
        if let Some(damage) = found {
            return journal.accept_loss(&damage, partition_of).map_err(failed);
        }
        let lost = journal.unreadable(|queue| catalog.queue(queue).is_some());
        let found = lost.into_iter().find_map(|lost| {
            let partition = partition_of(lost.queue)?;
            (messages_name(core, partition, &lost) == range).then_some((partition, lost))
        });
        if let Some((partition, lost)) = found {
            // Looking took the queues apart.
            let mut journal = opened(&identity, core, true)?;
            return journal
                .give_up(partition, lost.queue, &[lost.range])
                .map_err(failed);
        }
    }
    Err(OfflineError::RangeUnknown {
        range: range.to_owned(),
    })
}

/// Writes the journals of a directory anew for another number of cores. The old ones are only read
/// and stay what the directory is until the new ones are complete and durable; a crash in between
/// begins anew.
///
/// # Errors
/// Why it cannot be done, for people.
pub fn rehome(old: &Identity, cores: u16) -> Result<Identity, OfflineError> {
    let new = old.for_cores(cores);
    new.make_journals()?;
    let sources: Vec<Opened<Files>> = (0..old.cores)
        .map(|core| opened(old, core, false))
        .collect::<Result<_, _>>()?;
    let targets = (0..cores)
        .map(|core| {
            let directory = new.journal_directory(core);
            (
                journal_config(&new, core),
                Files {
                    directory,
                    writable: true,
                },
            )
        })
        .collect();
    offline::rehome(sources, targets).map_err(|why| OfflineError::Failed { why })?;
    for core in 0..cores {
        let directory = new.journal_directory(core);
        disk::sync_directory(&directory)
            .map_err(|error| OfflineError::Unreadable { directory, error })?;
    }
    new.write()?;
    new.remove_other_layouts()?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use ringpost_engine::data::journal::block::SegmentNumber;
    use ringpost_engine::data::queue::SequenceRange;
    use ringpost_wire::ids::QueueSequence;

    use super::*;

    fn damage(upto: u64, queue: u32) -> EngineDamage {
        EngineDamage {
            partition: PartitionId(3),
            first: 5,
            upto,
            queue: QueueId(queue),
            queue_sequence: QueueSequence(u64::from(queue)),
            segment_number: SegmentNumber(2),
            offset: 4096,
        }
    }

    fn unserved(first: u64, last: u64, why: Unserved) -> Unreadable {
        Unreadable {
            queue: QueueId(7),
            range: SequenceRange::new(QueueSequence(first), QueueSequence(last)),
            why,
        }
    }

    #[test]
    fn what_recovery_names_is_said_as_it_is() {
        let lost = [unserved(7, 7, Unserved::Damaged)];
        for (damage, lost, words) in [
            (
                damage(9, 0),
                &[][..],
                "records 5 to 8 of partition 3 (segment 2, offset 4096) are lost",
            ),
            (
                damage(u64::MAX, 0),
                &[],
                "records 5 and later ones of partition 3 (segment 2, offset 4096) may be lost: \
                 nothing says how many there were, if any",
            ),
            (
                damage(6, 7),
                &lost,
                "message 7 of queue 7 (q) is lost: it has rotted in record 5 of partition 3 \
                 (segment 2, offset 4096)",
            ),
            (
                damage(6, 7),
                &[],
                "message 7 of queue 7 (q) has rotted in record 5 of partition 3 (segment 2, offset \
                 4096): it is settled and nothing is lost, but the partition does not serve before \
                 that is given up",
            ),
        ] {
            let text = known_text(&damage, lost, |queue| format!("queue {} (q)", queue.0));
            assert_eq!(text, words);
        }
    }

    #[test]
    fn messages_that_are_not_served_are_lost_or_whole() {
        for (why, words) in [
            (Unserved::Nowhere, "are lost: nothing says where they lie"),
            (Unserved::Damaged, "are lost: they cannot be read"),
            (
                Unserved::Beside,
                "are whole, but a settled one of the same record is damaged: to give them up moves \
                 them and loses nothing",
            ),
        ] {
            let text = unserved_text(&unserved(2, 4, why), "queue 7 (q)");
            assert_eq!(text, format!("messages 2 to 4 of queue 7 (q) {words}"));
        }
    }
}
