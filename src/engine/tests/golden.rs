//! The golden vectors of the journal, `journal_*` in tests/golden, written and read. They are never
//! regenerated: who fails here has changed the format of data directories.
//! tests/compat/test_journal.py says the same in Python.

use std::path::PathBuf;

use ringpost_engine::control::checkpoint::{Checkpoint, NamedSegment};
use ringpost_engine::data::journal::block::{
    BLOCK_FLAG_INDEX, BLOCK_HEADER_BYTES, BlockHeader, BlockSequence, Content, Records,
    SegmentNumber, check_content,
};
use ringpost_engine::data::journal::record::{
    FLAG_COMPLETE, FLAG_LAST_PART, FLAG_RELOCATED, FLAG_SECOND_COPY, Kind, PARTITION_META,
    PARTITION_TRANSACTIONS, RECORD_HEAD_BYTES, RecordHead, align_record, fold_messages,
};
use ringpost_engine::data::journal::segment::{
    IndexBody, IndexPart, OpenIndex, PartitionRange, RunEntry,
};
use ringpost_engine::data::journal::{Config, Damage};
use ringpost_engine::data::notes;
use ringpost_engine::data::queue::{CountRange, SequenceRange, Taken, encode_offsets};
use ringpost_engine::data::transaction::{Decision, PartRun, Share, TransactionId};
use ringpost_engine::ids::{JournalId, SlotId};
use ringpost_wire::checksum::{crc32c, crc32c_append};
use ringpost_wire::ids::{CoreId, PartitionId, ProducerId, QueueId, QueueSequence, Sequence};
use ringpost_wire::limits::FRAGMENT_BYTES_MAX;
use ringpost_wire::{FragmentHead, MessageParts};

const UUID: u64 = 0x0102_0304_0506_0708;
const WALL_US: u64 = 1_700_000_000_123_456;

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"));
    let text = std::fs::read_to_string(folder.join(format!("{name}.hex")));
    let text = text.unwrap_or_else(|_| panic!("no vector {name}"));
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.bytes().filter(u8::is_ascii_hexdigit))
        .collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = core::str::from_utf8(pair).expect("hexadecimal digits are text");
            u8::from_str_radix(pair, 16).expect("two hexadecimal digits")
        })
        .collect()
}

fn messages() -> (Vec<u8>, Vec<u8>) {
    let full = MessageParts {
        exchange: b"shop",
        routing_key: b"order.7.paid",
        properties: b"\x10\x00\x02",
        headers: b"\x04sizei\x00\x00\x00\x07",
        payload: b"hello",
        priority: 3,
        timestamp_us: WALL_US,
        ttl_ms: 60_000,
        delay_ms: 0,
        hops: 0,
    };
    let (mut both, mut empty) = (Vec::new(), Vec::new());
    full.write(&mut both).expect("within limits");
    MessageParts::default()
        .write(&mut empty)
        .expect("within limits");
    both.extend_from_slice(&empty);
    (both, empty)
}

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange::new(QueueSequence(first), QueueSequence(last))
}

/// A head of queue 7 in partition 5.
fn of_queue(kind: Kind, number: u64, count: u32, first: u64) -> RecordHead {
    RecordHead {
        kind,
        flags: 0,
        partition: PartitionId(5),
        length: 0,
        count,
        crc: 0,
        partition_sequence: number,
        term: 1,
        queue: QueueId(7),
        queue_sequence: QueueSequence(first),
        producer: ProducerId(0),
        producer_sequence: Sequence(0),
        producer_epoch: 0,
        back: 0,
    }
}

/// A head that names no queue.
fn of_partition(kind: Kind, partition: PartitionId, number: u64, count: u32) -> RecordHead {
    RecordHead {
        partition,
        term: 0,
        queue: QueueId(0),
        ..of_queue(kind, number, count, 0)
    }
}

/// The records of `journal_block`: heads without length and checksum, and bodies.
fn records() -> Vec<(RecordHead, Vec<u8>)> {
    let (both, empty) = messages();
    let produced = |head: RecordHead, sequence| RecordHead {
        producer: ProducerId(0x1122_3344_5566_7788),
        producer_epoch: 9,
        producer_sequence: Sequence(sequence),
        ..head
    };
    let piece = FragmentHead {
        message_bytes: FRAGMENT_BYTES_MAX as u32 + 5,
        offset: FRAGMENT_BYTES_MAX as u32,
    };
    let mut fragment = piece.encode().to_vec();
    fragment.extend_from_slice(b"tail!");
    let mut acks = Vec::new();
    notes::encode_ranges(&[range(1, 9), range(11, 11)], &mut acks);
    let mut counts = Vec::new();
    let counted = CountRange {
        range: range(3, 4),
        deliveries: 2,
    };
    notes::encode_counts(&[counted], &mut counts);
    let moved = RecordHead {
        flags: FLAG_RELOCATED,
        producer: ProducerId(8),
        producer_sequence: Sequence(4224),
        ..of_queue(Kind::Relocated, 13, 1, 50)
    };
    let watermark = RecordHead {
        flags: FLAG_COMPLETE,
        ..of_partition(Kind::Watermark, PARTITION_META, 0, 2)
    };
    let mut stands = Vec::new();
    for (partition, next) in [(PARTITION_META.0, 4u64), (5, 16)] {
        stands.extend_from_slice(&partition.to_le_bytes());
        stands.extend_from_slice(&next.to_le_bytes());
    }
    let mut truncate = 77u64.to_le_bytes().to_vec();
    truncate.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
    let mut loss = 20u64.to_le_bytes().to_vec();
    loss.extend_from_slice(&30u64.to_le_bytes());
    let partition = PartitionId(5);
    vec![
        (produced(of_queue(Kind::Run, 10, 2, 100), 42), both),
        (produced(of_queue(Kind::Fragment, 11, 1, 102), 44), fragment),
        (of_queue(Kind::Ack, 12, 2, 0), acks),
        (moved, empty),
        (of_queue(Kind::Mark, 14, 1, 150), Vec::new()),
        (of_queue(Kind::Counts, 15, 1, 0), counts),
        (
            of_partition(Kind::Catalog, PARTITION_META, 3, 0),
            b"a change".to_vec(),
        ),
        (watermark, stands),
        (of_partition(Kind::Truncate, PARTITION_META, 0, 0), truncate),
        (of_partition(Kind::Loss, partition, 16, 1), loss),
        (
            of_partition(Kind::Adopt, PartitionId(6), 5, 0),
            5u64.to_le_bytes().to_vec(),
        ),
    ]
}

/// The records of `journal_scattered`: a run whose sequences are 42 and 1042, and what says so.
fn scattered() -> Vec<(RecordHead, Vec<u8>)> {
    let mut sequences = Vec::new();
    notes::encode_sequences(&[42, 1042], &mut sequences);
    let named = RecordHead {
        producer: ProducerId(0x1122_3344_5566_7788),
        producer_epoch: 9,
        producer_sequence: Sequence(42),
        ..of_queue(Kind::Sequences, 11, 2, 100)
    };
    let (both, _) = messages();
    vec![(of_queue(Kind::Run, 10, 2, 100), both), (named, sequences)]
}

/// The records of `journal_shared`: a body, and what says that two queues have it.
fn shared() -> Vec<(RecordHead, Vec<u8>)> {
    let (both, _) = messages();
    let body_bytes = align_record(RECORD_HEAD_BYTES + both.len() as u32);
    let body = RecordHead {
        producer: ProducerId(9),
        producer_sequence: Sequence(8192 + u64::from(BLOCK_HEADER_BYTES)),
        term: 0,
        ..of_partition(Kind::Body, PartitionId(0), 0, 2)
    };
    let entry = RecordHead {
        producer: ProducerId(0x1122_3344_5566_7788),
        producer_epoch: 9,
        producer_sequence: Sequence(42),
        back: body_bytes,
        ..of_queue(Kind::Entry, 10, 2, 100)
    };
    let other = RecordHead {
        partition: PartitionId(6),
        queue: QueueId(8),
        queue_sequence: QueueSequence(1),
        partition_sequence: 5,
        back: body_bytes + RECORD_HEAD_BYTES,
        ..entry
    };
    vec![(body, both), (entry, Vec::new()), (other, Vec::new())]
}

/// The record of `journal_offsets`: how far groups of a stream have come; the second is no more.
fn offsets() -> Vec<(RecordHead, Vec<u8>)> {
    let mut offsets = Vec::new();
    let groups = [(&b"billing"[..], 31), (b"audit", 0)];
    encode_offsets(groups.into_iter(), &mut offsets);
    vec![(of_queue(Kind::Offsets, 17, 2, 0), offsets)]
}

/// The records of `journal_transactions`: one that core 1 decides is prepared here, and one of this
/// core is decided.
fn transactions() -> Vec<(RecordHead, Vec<u8>)> {
    let (messages, _) = messages();
    let id = |core, count: u64| TransactionId {
        core: CoreId(core),
        number: 2 << 32 | count,
    };
    let taken = |sequence, bytes, earlier| Taken {
        sequence,
        bytes,
        earlier,
    };
    let share = Share {
        runs: vec![PartRun {
            queue: QueueId(7),
            count: 2,
            bytes: messages.len() as u32,
        }],
        messages,
        taken: vec![(QueueId(8), vec![taken(3, 96, 0), taken(5, 112, 2)])],
    };
    let (mut prepared, mut decided) = (Vec::new(), Vec::new());
    share.encode(id(1, 7), &mut prepared);
    assert_eq!(Share::decode(&prepared), Some((id(1, 7), share)));
    let decision = Decision::Commit(vec![CoreId(0), CoreId(1)]);
    decision.encode(id(3, 9), &mut decided);
    let of = |kind, number| RecordHead {
        term: 0,
        ..of_partition(kind, PARTITION_TRANSACTIONS, number, 0)
    };
    vec![
        (of(Kind::Prepare, 4), prepared),
        (of(Kind::Decide, 5), decided),
    ]
}

/// A block of these records, without the zeros that fill it; and its header.
fn block(
    records: &[(RecordHead, Vec<u8>)],
    place: (u16, u32),
    sequence: u64,
    durable: u64,
) -> (BlockHeader, Vec<u8>) {
    let (mut bytes, mut content_crc) = (vec![0; BLOCK_HEADER_BYTES as usize], 0);
    for (head, body) in records {
        let mut head = *head;
        head.length = RECORD_HEAD_BYTES + body.len() as u32;
        let folded = match head.kind.has_messages() {
            true => fold_messages(0, body).expect("messages").crc,
            false => crc32c(body),
        };
        bytes.extend_from_slice(&head.seal(folded));
        bytes.extend_from_slice(body);
        bytes.resize(align_record(bytes.len() as u32) as usize, 0);
        content_crc = crc32c_append(content_crc, &head.crc.to_le_bytes());
    }
    let mut header = BlockHeader {
        header_crc: 0,
        flags: place.0,
        journal: JournalId(3),
        journal_uuid: UUID,
        segment_number: SegmentNumber(9),
        offset: place.1,
        used: bytes.len() as u32,
        sequence: BlockSequence(sequence),
        incarnation: 2,
        prev_crc: 0x1122_3344,
        durable_upto: BlockSequence(durable),
        wall_us: WALL_US,
        record_count: records.len() as u32,
        content_crc,
        prev_partitions: 1 << 63 | 1 << 5,
        next_slot: Some(SlotId(4)),
        cluster: 0,
        node: 0,
        replica: 0,
    };
    bytes[..BLOCK_HEADER_BYTES as usize].copy_from_slice(&header.encode());
    (header, bytes)
}

/// The vector is what is written, and reading it gives what was.
#[track_caller]
fn check_block(name: &str, header: &BlockHeader, written: &[u8], wanted: &[(RecordHead, Vec<u8>)]) {
    let mut golden = golden(name);
    assert_eq!(written, golden, "{name} is written otherwise");
    golden.resize(header.bytes() as usize, 0);
    assert_eq!(BlockHeader::decode(&golden), Some(*header), "{name}");
    assert_eq!(check_content(header, &golden), Content::Good, "{name}");
    let found: Vec<_> = Records::new(header, &golden)
        .map(|found| found.record.expect("whole"))
        .map(|(head, body)| (head, body.to_vec()))
        .collect();
    assert_eq!(found.len(), wanted.len());
    for ((head, body), (wanted_head, wanted_body)) in found.iter().zip(wanted) {
        let (length, crc) = (head.length, head.crc);
        let wanted_head = RecordHead {
            length,
            crc,
            ..*wanted_head
        };
        assert_eq!((head, body), (&wanted_head, wanted_body), "{name}");
    }
}

#[test]
fn a_block_with_every_kind() {
    let records = records();
    let scattered = scattered();
    let offsets = offsets();
    let transactions = transactions();
    let shared = shared();
    let all = records.iter().chain(&scattered).chain(&offsets);
    let all = all.chain(&transactions).chain(&shared);
    let mut kinds: Vec<Kind> = all.map(|(head, _)| head.kind).collect();
    kinds.push(Kind::Index);
    kinds.sort_unstable();
    kinds.dedup();
    let written = Kind::ALL.iter().copied().filter(|kind| !kind.is_reserved());
    assert_eq!(kinds, written.collect::<Vec<_>>(), "no kind is forgotten");
    let (header, bytes) = block(&records, (0, 8192), 77, 75);
    check_block("journal_block", &header, &bytes, &records);
    let (header, bytes) = block(&scattered, (0, 8192), 77, 75);
    check_block("journal_scattered", &header, &bytes, &scattered);
    let (header, bytes) = block(&offsets, (0, 8192), 77, 75);
    check_block("journal_offsets", &header, &bytes, &offsets);
    let (header, bytes) = block(&transactions, (0, 8192), 77, 75);
    check_block("journal_transactions", &header, &bytes, &transactions);
    let (header, bytes) = block(&shared, (0, 8192), 77, 75);
    check_block("journal_shared", &header, &bytes, &shared);
}

fn index() -> (Vec<u8>, IndexBody) {
    let run = RunEntry {
        kind: Kind::Run,
        is_relocated: false,
        queue: QueueId(7),
        queue_sequence: QueueSequence(100),
        count: 2,
        offset: 16384 + 128,
        body_bytes: 192,
        message_bytes: 0,
    };
    let fragment = RunEntry {
        kind: Kind::Fragment,
        queue_sequence: QueueSequence(102),
        count: 1,
        offset: run.offset + 256,
        body_bytes: 32,
        message_bytes: FRAGMENT_BYTES_MAX as u32 + 5,
        ..run
    };
    let moved = RunEntry {
        kind: Kind::Relocated,
        is_relocated: true,
        queue: QueueId(300),
        queue_sequence: QueueSequence(1 << 40),
        count: 1,
        offset: fragment.offset + 64,
        body_bytes: 64,
        ..run
    };
    let ranges =
        [(5, 10, 16), (PARTITION_META.0, 3, 3)].map(|(partition, first, last)| PartitionRange {
            partition,
            first,
            last,
        });
    let mut index = OpenIndex::default();
    for run in [&run, &fragment, &moved] {
        index.add_run(run);
    }
    index.add_block(BlockSequence(70), 16384, 8192, &ranges);
    index.add_block(BlockSequence(71), 24576, 4096, &[]);
    let before = IndexPart {
        first_copy: 12288,
        ..IndexPart::default()
    };
    let mut bytes = Vec::new();
    index.encode(1, Some(before), &mut bytes);
    let body = IndexBody::decode(&bytes).expect("as written");
    assert_eq!(body.runs, [run, fragment, moved]);
    assert_eq!(body.blocks[0].partitions, ranges);
    let blocks: Vec<_> = body
        .blocks
        .iter()
        .map(|b| (b.sequence.0, b.offset, b.bytes))
        .collect();
    assert_eq!(blocks, [(70, 16384, 8192), (71, 24576, 4096)]);
    assert_eq!((body.number, body.part_before), (1, 12288));
    (bytes, body)
}

#[test]
fn a_block_with_an_index() {
    let (bytes, _) = index();
    let head = RecordHead {
        flags: FLAG_SECOND_COPY | FLAG_LAST_PART,
        ..of_partition(Kind::Index, PARTITION_META, 0, 1)
    };
    let records = [(head, bytes)];
    let (header, bytes) = block(&records, (BLOCK_FLAG_INDEX, 28672), 72, 70);
    assert!(header.is_index());
    check_block("journal_index", &header, &bytes, &records);
}

#[test]
fn a_checkpoint() {
    let config = Config::new(JournalId(3), UUID);
    let sealed = NamedSegment {
        slot: SlotId(4),
        journal: JournalId(3),
        number: SegmentNumber(9),
        written_bytes: 65536,
        unit_count: 10,
        unit_bytes: 2000,
        is_damaged: true,
        parts: vec![IndexPart {
            covers_from: 0,
            covers_upto: 16384,
            first_copy: 16384,
            second_copy: 20480,
        }],
        made_parts: vec![vec![1, 2, 3]],
    };
    let open = NamedSegment {
        slot: SlotId(5),
        number: SegmentNumber(10),
        parts: Vec::new(),
        made_parts: Vec::new(),
        ..sealed.clone()
    };
    let checkpoint = Checkpoint {
        generation: 6,
        next_sequence: BlockSequence(77),
        prev_crc: 0x1122_3344,
        prev_partitions: 1 << 5,
        incarnation: 2,
        next_number: SegmentNumber(11),
        next_slot: Some(SlotId(4)),
        wall_us: WALL_US,
        partitions: vec![(PARTITION_META, 4), (PartitionId(5), 16)],
        segments: vec![sealed],
        open: Some(open),
        open_index: index().0,
        damages: vec![Damage {
            partition: PartitionId(5),
            first: 20,
            upto: 30,
            queue: QueueId(7),
            queue_sequence: QueueSequence(101),
            segment_number: SegmentNumber(9),
            offset: 8192,
        }],
        state: b"the state".to_vec(),
    };
    let golden = golden("journal_checkpoint");
    assert_eq!(checkpoint.encode(&config), golden);
    assert_eq!(Checkpoint::decode(&config, &golden), Some(checkpoint));
}
