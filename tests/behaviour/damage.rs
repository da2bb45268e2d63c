//! Bits that rot in a data directory: the checker names what the broker refuses, neither more nor
//! less, and what it names can be given up (rulings 10).

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ringpost::offline::{self, OfflineError};
use ringpost_engine::data::journal::block::{BLOCK_ALIGN, BlockHeader};
use ringpost_wire::control::Level;
use ringpost_wire::{Code, FrameKind};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::broker::Broker;
use crate::wire::{Wire, consumer, deliveries, filler, queue_on, to_queue};

const QUEUES: [&[u8]; 3] = [b"q0", b"q1", b"q2"];
const ROUNDS: u64 = 6;
const BATCH: u64 = 5;

fn text(queue: usize, number: u64) -> Vec<u8> {
    let mut text = format!("message {number} of queue {queue}, ").into_bytes();
    text.extend_from_slice(&filler(number, 200));
    text
}

/// Three queues in three partitions, published to in turns, so that blocks and records differ.
fn filled() -> Broker {
    let broker = Broker::start(1, &[]);
    let mut wire = Wire::open(&broker);
    for (partition, queue) in QUEUES.iter().enumerate() {
        wire.declare(&queue_on(queue, partition as u16));
    }
    let mut producer = wire.producer(1, Level::Durable);
    for round in 0..ROUNDS {
        for (number, queue) in QUEUES.iter().enumerate() {
            let texts: Vec<_> = (0..BATCH)
                .map(|index| text(number, round * BATCH + index))
                .collect();
            let parts: Vec<_> = texts.iter().map(|text| to_queue(queue, text)).collect();
            producer.confirm(&mut wire, &parts);
        }
    }
    broker
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let journal = directory.join("layout-0001/core-0000");
    let entries = std::fs::read_dir(journal).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    paths.sort();
    paths
}

/// Flips a bit `back` bytes before, or in, the first place where these bytes lie.
fn flip(directory: &Path, bytes: &[u8], back: usize) {
    for path in segments(directory) {
        let mut content = std::fs::read(&path).unwrap();
        let found = content.windows(bytes.len()).position(|w| w == bytes);
        if let Some(at) = found {
            content[at - back] ^= 4;
            std::fs::write(&path, content).unwrap();
            return;
        }
    }
    panic!("nothing of it is on the disk");
}

/// What a queue still gives, and whether it refuses.
fn drain(wire: &mut Wire, queue: usize) -> (Vec<Vec<u8>>, bool) {
    let channel = 10 + queue as u16;
    let ready = wire.inspect(QUEUES[queue]).ready;
    let open = consumer(QUEUES[queue], 1_000);
    let id = wire.request_on(FrameKind::ConsumerOpen, channel, &open);
    let frame = wire.answer(id);
    if frame.kind() == FrameKind::Failed {
        assert_eq!(frame.code(), Code::QueueDamaged);
        return (Vec::new(), true);
    }
    let mut texts = Vec::new();
    while (texts.len() as u64) < ready {
        let frame = wire.wait(|frame| {
            let kind = frame.kind();
            frame.header.channel == channel
                && matches!(kind, FrameKind::Deliver | FrameKind::ConsumerClosed)
        });
        if frame.kind() == FrameKind::ConsumerClosed {
            assert_eq!(frame.code(), Code::QueueDamaged, "{}", frame.reason());
            assert!(
                frame.reason().contains("ringpost verify"),
                "{}",
                frame.reason()
            );
            return (texts, true);
        }
        texts.extend(
            deliveries(&frame)
                .into_iter()
                .map(|delivery| delivery.payload),
        );
    }
    (texts, false)
}

/// Checks a directory, starts a broker in it and compares; gives up what is named and looks again.
/// Returns how many messages of each queue are gone.
#[track_caller]
fn judge(mut broker: Broker) -> [u64; 3] {
    let survey = offline::verify(broker.directory()).unwrap_or_else(|error| panic!("{error}"));
    let named: BTreeSet<&str> = survey
        .damage
        .iter()
        .map(|d| d.partitions.as_str())
        .collect();
    // Without what was declared nothing can be served.
    let is_served = !named.contains("topology");
    if is_served {
        broker = broker.started();
        let mut wire = Wire::open(&broker);
        for queue in 0..QUEUES.len() {
            let (texts, refuses) = drain(&mut wire, queue);
            let is_named = named.contains(queue.to_string().as_str());
            assert_eq!(refuses, is_named, "queue {queue}: {:?}", survey.damage);
            let all: Vec<_> = (0..ROUNDS * BATCH)
                .map(|number| text(queue, number))
                .collect();
            assert!(refuses || texts == all, "queue {queue}");
        }
        broker.stop();
    } else {
        let refusal = broker.refusal();
        assert!(refusal.contains("topology has lost records"), "{refusal}");
        assert!(refusal.contains("ringpost verify"), "{refusal}");
    }
    let again = offline::verify(broker.directory()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again.damage, survey.damage, "it stays until it is accepted");
    for damage in &survey.damage {
        // The loss of messages may have been accepted with that of the records around them.
        let left = offline::verify(broker.directory()).unwrap();
        if left.damage.contains(damage) {
            offline::accept_loss(broker.directory(), &damage.range)
                .unwrap_or_else(|error| panic!("{}: {error}", damage.range));
        }
    }
    let clean = offline::verify(broker.directory()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(clean.damage, [], "before: {:?}", survey.damage);
    broker = broker.started();
    let mut wire = Wire::open(&broker);
    let mut gone = [0; 3];
    for (queue, gone) in gone.iter_mut().enumerate() {
        // One whose declaration is lost is declared anew, and is empty.
        let declare = queue_on(QUEUES[queue], queue as u16);
        let id = wire.request(FrameKind::QueueDeclare, &declare);
        let answer = wire.answer(id).kind();
        assert!(answer == FrameKind::Done || is_served, "{answer:?}");
        let (texts, refuses) = drain(&mut wire, queue);
        assert!(!refuses, "queue {queue} after {:?}", survey.damage);
        let mut wanted = (0..ROUNDS * BATCH).map(|number| text(queue, number));
        // In order, and nothing that was not published.
        assert!(texts.iter().all(|got| wanted.any(|text| text == *got)));
        *gone = ROUNDS * BATCH - texts.len() as u64;
    }
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &QUEUES.map(|queue| to_queue(queue, b"goes on")));
    gone
}

/// Behind a checkpoint, as after a clean end.
fn cold() -> Broker {
    let mut broker = filled();
    broker.stop();
    broker
}

/// In the tail, as after a crash; but not before the broker has been idle and stated on disk that all
/// is synced, since until then the end of the tail may be taken for torn.
fn tail() -> Broker {
    let broker = filled();
    while !is_stated(
        broker.directory(),
        &text(QUEUES.len() - 1, ROUNDS * BATCH - 1),
    ) {
        std::thread::yield_now();
    }
    broker.copied()
}

/// A broker that was stopped by force and does not start: a declaration has rotted.
pub fn without_a_declaration() -> Broker {
    let broker = tail();
    // A string with its length; the declaration comes before the messages.
    flip(broker.directory(), b"\x02\0\0\0q1", 0);
    broker
}

/// Whether a block states that the block with these bytes is synced.
fn is_stated(directory: &Path, bytes: &[u8]) -> bool {
    let (mut block, mut stated) = (u64::MAX, 0);
    for path in segments(directory) {
        let content = std::fs::read(&path).unwrap();
        for (number, head) in content.chunks(BLOCK_ALIGN as usize).enumerate() {
            let Some(header) = BlockHeader::decode(head) else {
                continue;
            };
            let start = number * BLOCK_ALIGN as usize;
            let end = (start + header.bytes() as usize).min(content.len());
            stated = stated.max(header.durable_upto.0);
            if content[start..end]
                .windows(bytes.len())
                .any(|found| found == bytes)
            {
                block = header.sequence.0;
            }
        }
    }
    stated >= block
}

#[test]
fn nothing_is_named_where_nothing_is_damaged() {
    for broker in [cold(), tail()] {
        let survey = offline::verify(broker.directory()).unwrap();
        assert_eq!(survey.notes, [] as [String; 0]);
        assert_eq!(judge(broker), [0, 0, 0]);
    }
}

/// What lies in a directory, at any depth: paths, what can be done with them, when they changed, and
/// what they hold.
fn listed(directory: &Path) -> Vec<(PathBuf, u32, SystemTime, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::metadata(&path).unwrap();
        let content = match metadata.is_dir() {
            true => Vec::new(),
            false => std::fs::read(&path).unwrap(),
        };
        if metadata.is_dir() {
            found.extend(listed(&path));
        }
        let (mode, changed) = (metadata.permissions().mode(), metadata.modified().unwrap());
        found.push((path, mode, changed, content));
    }
    found.sort();
    found
}

/// Lets everybody read, and write or not.
fn permit(directory: &Path, mode: u32) {
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    set(directory, 0o755);
    for (path, ..) in listed(directory) {
        let is_searched = if path.is_dir() { 0o111 } else { 0 };
        set(&path, mode | is_searched);
    }
    set(directory, mode | 0o111);
}

/// Does something on a thread that modes keep out, also where the test is run as root.
fn as_anybody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = capabilities(None).unwrap();
            let over = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            sets.effective -= over;
            set_capabilities(None, sets).unwrap();
            work()
        });
        thread.join().expect("it is done")
    })
}

/// Who looks needs no leave to write, leaves no trace, and lets others look at the same time.
#[test]
fn looking_writes_nothing() {
    let broker = cold();
    let directory = broker.directory();
    std::fs::write(directory.join("lock"), "whoever it was").unwrap();
    for has_lock in [true, false] {
        if !has_lock {
            std::fs::remove_file(directory.join("lock")).unwrap();
        }
        permit(directory, 0o444);
        let before = listed(directory);
        let probe = directory.join("probe");
        as_anybody(|| {
            std::fs::write(&probe, "").expect_err("nothing can be written there");
            let survey = offline::verify(directory).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(survey.damage, []);
            let mut count = 0;
            let counted = offline::messages(directory, |_| {
                count += 1;
                offline::verify(directory)
                    .map(drop)
                    .map_err(|error| error.to_string())
            });
            counted.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(count, QUEUES.len() as u64 * ROUNDS * BATCH);
            let error = offline::accept_loss(directory, "0:0:1-2").expect_err("that would write");
            assert!(error.to_string().contains("ermission denied"), "{error}");
        });
        assert!(listed(directory) == before, "something has changed");
        permit(directory, 0o644);
    }
    let broker = broker.started();
    let surveyed = offline::verify(broker.directory());
    assert!(
        matches!(surveyed, Err(OfflineError::InUse { .. })),
        "{surveyed:?}"
    );
}

#[test]
fn one_message_is_lost_with_its_own_bytes() {
    for (broker, words) in [
        (
            cold(),
            "messages 13 to 13 of queue 2 (q1) are lost: they cannot be read",
        ),
        (
            tail(),
            "message 13 of queue 2 (q1) is lost: it has rotted in record ",
        ),
    ] {
        flip(broker.directory(), &text(1, 12), 0);
        let survey = offline::verify(broker.directory()).unwrap();
        assert_eq!(survey.damage.len(), 1, "{:?}", survey.damage);
        let what = &survey.damage[0].what;
        assert!(what.starts_with(words), "{what}");
        assert_eq!(judge(broker), [0, 1, 0]);
    }
}

/// A record is proved as a whole when it is read, so a settled message that rots keeps its neighbours
/// from being served: they are named, and giving them up moves them and costs nothing.
#[test]
fn a_settled_message_that_rots_keeps_its_neighbours_from_service() {
    for is_cold in [true, false] {
        let mut broker = filled();
        let mut wire = Wire::open(&broker);
        wire.consume(1, &consumer(QUEUES[1], 1_000));
        let got = wire.deliveries(1, (ROUNDS * BATCH) as usize);
        wire.settle_surely(1, 0, &[(got[11].tag, got[11].tag)]);
        drop(wire);
        if is_cold {
            broker.stop();
        } else {
            while !is_stated(broker.directory(), &text(1, 11)) {
                std::thread::yield_now();
            }
            broker = broker.copied();
        }
        flip(broker.directory(), &text(1, 11), 0);
        let survey = offline::verify(broker.directory()).unwrap();
        let all: Vec<_> = survey.damage.iter().map(|d| d.what.as_str()).collect();
        let (settled, beside): (Vec<&str>, Vec<&str>) = all
            .iter()
            .partition(|what| what.starts_with("message 12 of queue 2 (q1) has rotted"));
        // Recovery names it where no checkpoint says that it is settled.
        assert_eq!(settled.len(), usize::from(!is_cold), "{all:?}");
        assert!(settled.iter().all(|what| what.contains("nothing is lost")));
        assert!(!beside.is_empty(), "{all:?}");
        assert!(
            beside.iter().all(|what| what.contains(" are whole, but ")),
            "{all:?}"
        );
        // The settled one is gone, and nothing else.
        assert_eq!(judge(broker), [0, 1, 0]);
    }
}

/// A file that was cut behind a message: it is whole, however large it is and however little of what
/// follows it can be read; the one across the cut is lost, and those behind it.
#[test]
fn a_large_record_before_what_cannot_be_read_is_whole() {
    const BYTES: usize = 100_000;
    let mut broker = Broker::start(1, &[]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue_on(b"q0", 0));
    let mut producer = wire.producer(1, Level::Durable);
    let texts: Vec<_> = (0..6).map(|number| filler(number, BYTES)).collect();
    for text in &texts {
        producer.confirm(&mut wire, &[to_queue(b"q0", text)]);
    }
    drop(wire);
    broker.stop();
    let found = segments(broker.directory()).into_iter().find_map(|path| {
        let content = std::fs::read(&path).unwrap();
        let at = content
            .windows(64)
            .position(|bytes| bytes == &texts[3][..64])?;
        Some((path, (at + BYTES).next_multiple_of(BLOCK_ALIGN as usize)))
    });
    let (path, end) = found.expect("it is on the disk");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(end as u64).unwrap();
    let survey = offline::verify(broker.directory()).unwrap();
    let ranges: Vec<_> = survey.damage.iter().map(|d| d.range.as_str()).collect();
    assert_eq!(ranges, ["0:0:queue-1:5-6"], "{survey:?}");
    offline::accept_loss(broker.directory(), ranges[0]).unwrap_or_else(|error| panic!("{error}"));
    let broker = broker.started();
    let mut wire = Wire::open(&broker);
    wire.consume(1, &consumer(b"q0", 10));
    let left = wire.deliveries(1, 4);
    let left: Vec<_> = left.into_iter().map(|delivery| delivery.payload).collect();
    assert!(left == texts[..4], "{} messages", left.len());
    assert_eq!(wire.inspect(b"q0").ready, 0);
}

/// The head of a record lies before its first message: the record is lost, its neighbours are not.
#[test]
fn a_record_is_lost_with_its_head() {
    for broker in [cold(), tail()] {
        // Of message 10 the envelope and strings lie between.
        flip(broker.directory(), &text(2, 10), 64 + 64);
        assert_eq!(judge(broker), [0, 0, BATCH]);
    }
}

/// A queue whose declaration is lost is not taken for one that was deleted: the broker does not
/// start before somebody gives it up; then it can be declared anew, and gets nothing of the old one.
#[test]
fn a_lost_declaration_is_not_a_deleted_queue() {
    let broker = without_a_declaration();
    let survey = offline::verify(broker.directory()).unwrap();
    assert_eq!(survey.damage.len(), 1, "{:?}", survey.damage);
    assert_eq!(survey.damage[0].partitions, "topology");
    assert!(survey.notes[0].contains("(numbers 2)"), "{survey:?}");
    assert_eq!(judge(broker), [0, ROUNDS * BATCH, 0]);
}

/// A journal that is not there any more is missed, with its directory or without what was in it; and is
/// begun anew only where an operator says so.
#[test]
fn a_journal_that_is_gone_is_missed() {
    let mut broker = Broker::start(2, &[]);
    broker.stop();
    let journal = broker.directory().join("layout-0001/core-0001");
    std::fs::remove_dir_all(&journal).unwrap();
    for round in 0..2 {
        let refusal = broker.refusal();
        assert!(refusal.contains("core-0001 is gone"), "{refusal}");
        let surveyed = offline::verify(broker.directory());
        assert!(surveyed.is_err_and(|error| error.to_string() == refusal));
        if round == 0 {
            std::fs::create_dir(&journal).unwrap();
        }
    }
    let identity = broker.directory().join("ringpost.toml");
    let text = std::fs::read_to_string(&identity).unwrap();
    std::fs::write(&identity, text.replace("begun = true\n", "")).unwrap();
    let broker = broker.started();
    assert!(Wire::open(&broker).queues().is_empty());
}

/// Wherever a bit rots, the checker and the broker agree.
#[test]
fn any_bit() {
    for (seed, broker) in [(1, cold()), (2, tail())] {
        let noise = filler(seed, 8 * 8);
        for number in noise.chunks(8) {
            let mut random = u64::from_le_bytes(number.try_into().unwrap()) as usize;
            let copy = broker.copied();
            let paths = segments(copy.directory());
            let mut contents: Vec<_> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
            let mut used: Vec<(usize, usize)> = Vec::new();
            for (file, content) in contents.iter().enumerate() {
                let bytes = content.iter().enumerate();
                used.extend(
                    bytes
                        .filter(|(_, byte)| **byte != 0)
                        .map(|(at, _)| (file, at)),
                );
            }
            random %= used.len();
            let (file, at) = used[random];
            contents[file][at] ^= 0x10;
            std::fs::write(&paths[file], &contents[file]).unwrap();
            println!("byte {at} of {}", paths[file].display());
            judge(copy);
        }
    }
}
