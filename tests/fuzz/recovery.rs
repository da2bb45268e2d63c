//! What happens to a disk while its engine is off, and what the engine makes of it. The disks are
//! those of small workloads whose clients know what they were promised; inputs flip, overwrite,
//! copy, cut and remove. Whatever is on the disk, the engine starts or says why not, gives nobody
//! what was never published, and misses nothing without saying so.
//! Does not know how recovery decides.
//!
//! An input that asks for it has all checksums made right after its changes: what they say is then
//! anything at all, no promise is left but the first, and it must hold.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use ringpost_engine::SlotId;
use ringpost_engine::control::recovery;
use ringpost_engine::data::journal;
use ringpost_engine::data::journal::block::{
    BLOCK_ALIGN, BLOCK_HEADER_BYTES, BLOCK_MAGIC, BlockHeader,
};
use ringpost_engine::data::journal::record::{
    RECORD_HEAD_BYTES, RecordHead, align_record, fold_messages,
};
use ringpost_engine::ids::JournalId;
use ringpost_wire::checksum::{crc32c, crc32c_append};
use ringpost_wire::control::{
    Bind, Body, Durability, ExchangeDeclare, ExchangeKind, Named, QUEUE_DAMAGED, QueueInfo,
};
use ringpost_wire::{DeliverHead, FrameHeader, FrameKind, Messages, SettleRange, header};

use crate::client::{Client, PRODUCER};
use crate::input::Input;
use crate::shell::{CLUSTER, Disk, Heard, PARTITIONS, Shell, Size};

/// The durable queues of every workload.
const QUEUES: [&[u8]; 3] = [b"orders", b"bills", b"notes"];

/// First byte of an input: which disk.
/// Second byte: checksums are made right afterwards.
pub const REPAIR: u8 = 1;

/// A change of the disk, in one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Change {
    /// Bits of one byte of a written block.
    Flip = 0,
    /// Bytes of a written block.
    Write = 1,
    /// Whole sectors become zero.
    Zero = 2,
    /// Blocks of one place are found at another, too.
    Copy = 3,
    /// A slot's file is cut.
    Cut = 4,
    /// A slot's file is gone.
    Remove = 5,
    /// A slot's file is found under another number.
    Clone = 6,
    /// Bits of one byte of a checkpoint.
    CheckpointFlip = 7,
    /// A checkpoint is cut.
    CheckpointCut = 8,
    /// A checkpoint is gone, or both are the same.
    CheckpointLose = 9,
    /// A field of a record's head.
    Record = 10,
    /// A field of a block's header.
    Header = 11,
    /// Bytes of a checkpoint.
    CheckpointWrite = 12,
}

impl Change {
    const ALL: [Change; 13] = [
        Change::Flip,
        Change::Write,
        Change::Zero,
        Change::Copy,
        Change::Cut,
        Change::Remove,
        Change::Clone,
        Change::CheckpointFlip,
        Change::CheckpointCut,
        Change::CheckpointLose,
        Change::Record,
        Change::Header,
        Change::CheckpointWrite,
    ];
}

/// A disk and what its clients were promised.
#[derive(Clone, Default)]
struct Image {
    disk: Disk,
    size: Option<Size>,
    /// By queue.
    books: [Book; QUEUES.len()],
    /// Everything on it is stated to be durable by something later.
    is_vouched: bool,
}

/// The messages of a queue, by number.
#[derive(Clone, Default)]
struct Book {
    /// Confirmed and not settled.
    must: BTreeSet<u32>,
    /// Published, and nobody knows more.
    may: BTreeSet<u32>,
    /// Settled, and that was confirmed.
    gone: BTreeSet<u32>,
}

/// See the module.
pub fn run(bytes: &[u8]) {
    let images = images();
    let mut input = Input::new(bytes);
    let image = &images[usize::from(input.byte()) % images.len()];
    let is_repaired = input.byte() & REPAIR != 0;
    let mut disk = image.disk.clone();
    let mut changes = 0;
    let mut is_in_place = true;
    while !input.is_empty() && changes < 64 {
        is_in_place &= change(&mut disk, &mut input);
        changes += 1;
    }
    if is_repaired {
        repair(&mut disk);
    }
    let size = image.size.expect("every image has a size");
    let judged = judge(size, &disk);
    let mut shell = Shell::boot(size, disk);
    shell.start();
    if !shell.core().is_running() {
        assert!(
            changes > 0 && shell.fail_stop.is_some(),
            "what was not touched must start, and who does not start must say why"
        );
        return;
    }
    assert!(
        judged || is_repaired,
        "verify refuses what the engine starts with"
    );
    if is_repaired {
        Found::of(&mut shell, Trust::Anything);
        return;
    }
    let found = Found::of(&mut shell, Trust::Published);
    found.is_nothing_invented(image);
    // One flipped or overwritten block, not among the last: whatever was durable is there, or its
    // loss is named. More damage at a time may take away what would have told.
    if changes == 0 || (changes == 1 && is_in_place && image.is_vouched) {
        found.is_nothing_missing(image);
    }
    if changes == 0 {
        assert!(shell.errors.is_empty(), "{:?}", shell.errors);
    }
}

/// Whether the offline check opens it.
fn judge(size: Size, disk: &Disk) -> bool {
    let config = journal::Config {
        segment_bytes: size.segment_bytes(),
        buffer_bytes: size.buffer_bytes(),
        slots_max: size.config().limits.slots_max,
        partitions: PARTITIONS,
        ..journal::Config::new(JournalId(0), CLUSTER)
    };
    let found = disk.found();
    let read = |slot, position, into: &mut [u8]| disk.read(slot, position, into);
    recovery::verify(config, &found.slots, &found.checkpoints, read).is_ok()
}

// ---- what a disk came back with --------------------------------------------------------------

/// Which messages a disk may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trust {
    /// Those that a client published.
    Published,
    /// Any whose checksums are right.
    Anything,
}

/// What the queues gave their consumers after a start.
struct Found {
    /// By queue: its messages in the order of delivery, or nothing if it refused service.
    queues: [Option<Vec<u32>>; QUEUES.len()],
}

impl Found {
    /// Takes everything out of every queue.
    fn of(shell: &mut Shell, trust: Trust) -> Self {
        let mut client = Client::greet(shell);
        for (at, name) in QUEUES.iter().enumerate() {
            client.open_consumer(shell, channel_of(at), name);
        }
        let mut found = Self {
            queues: core::array::from_fn(|_| Some(Vec::new())),
        };
        let mut last = [0; QUEUES.len()];
        if trust == Trust::Anything {
            return found;
        }
        for heard in client.said {
            let at = usize::from(heard.header.channel.wrapping_sub(PRODUCER + 1));
            match heard.header.kind {
                FrameKind::Deliver => {
                    let (head, messages) = DeliverHead::split(&heard.body).expect("it was read");
                    assert!(head.queue_sequence > last[at], "deliveries are in order");
                    let mut count = 0;
                    for message in Messages::new(messages) {
                        let message = message.expect("it was read");
                        let number = number_of(message.envelope.payload(), at);
                        let list = found.queues[at].get_or_insert_default();
                        list.push(number.unwrap_or_else(|| {
                            panic!("queue {at} delivers {:?}", message.envelope.payload())
                        }));
                        count += 1;
                    }
                    last[at] = head.queue_sequence + count - 1;
                }
                FrameKind::ConsumerClosed | FrameKind::Failed => {
                    if let Some(queue) = found.queues.get_mut(at) {
                        *queue = None;
                    } else {
                        found.queues = Default::default();
                    }
                }
                _ => {}
            }
        }
        // A queue may refuse after it has delivered.
        if let Some(flow) = shell.core().flow() {
            let damaged = flow.figures().any(|queue| queue.damaged);
            if damaged {
                found.mark_damaged(shell);
            }
        }
        found
    }

    /// Queues that hold back what they cannot read say so in their figures.
    fn mark_damaged(&mut self, shell: &mut Shell) {
        let inspected = inspect(&mut Client::greet(shell), shell);
        for (at, is_damaged) in inspected.into_iter().enumerate() {
            if is_damaged {
                self.queues[at] = None;
            }
        }
    }

    fn is_nothing_invented(&self, image: &Image) {
        for (at, numbers) in self.queues.iter().enumerate() {
            let Some(numbers) = numbers else { continue };
            let book = &image.books[at];
            assert!(
                numbers.is_sorted(),
                "queue {at} is out of order: {numbers:?}"
            );
            for pair in numbers.windows(2) {
                assert!(pair[0] < pair[1], "queue {at} delivers {} twice", pair[0]);
            }
            for number in numbers {
                let is_known = book.must.contains(number)
                    || book.may.contains(number)
                    || book.gone.contains(number);
                assert!(is_known, "queue {at} delivers {number}, which nobody sent");
            }
        }
    }

    fn is_nothing_missing(&self, image: &Image) {
        for (at, numbers) in self.queues.iter().enumerate() {
            let Some(numbers) = numbers else { continue };
            let book = &image.books[at];
            let there: BTreeSet<u32> = numbers.iter().copied().collect();
            let lost: Vec<_> = book.must.difference(&there).collect();
            assert!(
                lost.is_empty(),
                "queue {at} has lost {lost:?} and does not say so"
            );
            let back: Vec<_> = book.gone.intersection(&there).collect();
            assert!(
                back.is_empty(),
                "queue {at} delivers {back:?}, which were settled"
            );
        }
    }
}

// ---- what can happen to a disk ---------------------------------------------------------------

/// Where the blocks of a disk are.
fn blocks(disk: &Disk) -> Vec<(SlotId, usize, BlockHeader)> {
    let mut all = Vec::new();
    for (slot, bytes) in &disk.slots {
        for (number, page) in bytes.chunks_exact(BLOCK_ALIGN as usize).enumerate() {
            if let Some(header) = BlockHeader::decode(page) {
                all.push((*slot, number * BLOCK_ALIGN as usize, header));
            }
        }
    }
    all
}

/// One change. Whether it stayed inside one block, and that block is not one of the last two.
fn change(disk: &mut Disk, input: &mut Input<'_>) -> bool {
    let what = input.pick(&Change::ALL);
    let all = blocks(disk);
    let pick = |number: u16| all.get(usize::from(number) % all.len().max(1)).copied();
    let newest = all.iter().map(|(_, _, header)| header.sequence.0).max();
    let is_old = |header: &BlockHeader| {
        newest.is_some_and(|newest| header.sequence.0.saturating_add(2) <= newest)
    };
    let slots: Vec<SlotId> = disk.slots.keys().copied().collect();
    match what {
        Change::Flip | Change::Write | Change::Zero | Change::Record | Change::Header => {
            let Some((slot, start, header)) = pick(input.two()) else {
                return false;
            };
            let end = start + header.bytes() as usize;
            let file = disk.slots.get_mut(&slot).expect("it was listed");
            let end = end.min(file.len());
            let block = &mut file[start..end];
            overwrite(block, &header, what, input);
            is_old(&header)
        }
        Change::Copy => {
            let (Some(from), Some(to)) = (pick(input.two()), pick(input.two())) else {
                return false;
            };
            let bytes = disk.slots[&from.0][from.1..].to_vec();
            let count = from.2.bytes() as usize * usize::from(1 + input.byte() % 4);
            let position = to.1 + usize::from(input.byte() % 4) * BLOCK_ALIGN as usize;
            let file = disk.slots.get_mut(&to.0).expect("it was listed");
            let at = position.min(file.len());
            let count = count.min(bytes.len()).min(file.len() - at);
            file[at..at + count].copy_from_slice(&bytes[..count]);
            false
        }
        Change::Cut => {
            if let Some(slot) = slots.get(usize::from(input.byte()) % slots.len().max(1)) {
                let file = disk.slots.get_mut(slot).expect("it was listed");
                file.truncate(usize::from(input.two()) * 512 % (file.len() + 1));
            }
            false
        }
        Change::Remove => {
            if let Some(slot) = slots.get(usize::from(input.byte()) % slots.len().max(1)) {
                disk.slots.remove(slot);
            }
            false
        }
        Change::Clone => {
            if let Some(slot) = slots.get(usize::from(input.byte()) % slots.len().max(1)) {
                let file = disk.slots[slot].clone();
                disk.slots
                    .insert(SlotId(u32::from(input.byte()) % 32), file);
            }
            false
        }
        Change::CheckpointFlip | Change::CheckpointWrite | Change::CheckpointCut => {
            let Some(content) = &mut disk.checkpoints[usize::from(input.byte() % 2)] else {
                return true;
            };
            let at = usize::from(input.two()) % content.len().max(1);
            if what == Change::CheckpointCut {
                content.truncate(at);
            } else if what == Change::CheckpointFlip {
                if let Some(byte) = content.get_mut(at) {
                    *byte ^= input.byte().max(1);
                }
            } else {
                put(content, at, input.sized());
            }
            true
        }
        Change::CheckpointLose => {
            let which = input.byte();
            let lost = usize::from(which % 2);
            let kept = 1 - lost;
            disk.checkpoints[lost] = match which & 2 {
                0 => None,
                _ => disk.checkpoints[kept].clone(),
            };
            false
        }
    }
}

/// Overwrites as much of `bytes` as fits.
fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    let into = into.get_mut(at..).unwrap_or_default();
    let count = bytes.len().min(into.len());
    into[..count].copy_from_slice(&bytes[..count]);
}

fn overwrite(block: &mut [u8], header: &BlockHeader, what: Change, input: &mut Input<'_>) {
    match what {
        Change::Flip => {
            let at = usize::from(input.two()) % block.len();
            block[at] ^= input.byte().max(1);
        }
        Change::Write => {
            let at = usize::from(input.two()) % block.len();
            put(block, at, input.sized());
        }
        Change::Zero => {
            let sectors = block.len() / 512;
            let at = usize::from(input.byte()) % sectors;
            let count = usize::from(input.byte()) % sectors + 1;
            block[at * 512..(at + count).min(sectors) * 512].fill(0);
        }
        Change::Header => {
            let at = usize::from(input.byte()) % BLOCK_HEADER_BYTES as usize;
            put(block, at, &number(input));
        }
        _ => {
            let starts = record_starts(block, header);
            if let Some(start) = starts.get(usize::from(input.byte()) % starts.len().max(1)) {
                let at = start + usize::from(input.byte()) % RECORD_HEAD_BYTES as usize;
                put(block, at, &number(input));
            }
        }
    }
}

/// A number of as many bytes as a field may have.
fn number(input: &mut Input<'_>) -> Vec<u8> {
    let width = input.pick(&[1, 2, 4, 8]);
    let number = input.number();
    number.to_le_bytes()[..width].to_vec()
}

/// Where the records of a block start, as far as their lengths can be followed.
fn record_starts(block: &[u8], header: &BlockHeader) -> Vec<usize> {
    let used = (header.used as usize).min(block.len());
    let mut starts = Vec::new();
    let mut at = BLOCK_HEADER_BYTES as usize;
    while at + RECORD_HEAD_BYTES as usize <= used {
        starts.push(at);
        let Ok(head) = RecordHead::decode(&block[at..used]) else {
            break;
        };
        at += align_record(head.length.min(header.used)) as usize;
    }
    starts
}

/// Makes every checksum right, and the chain of blocks whole, so that only what they say is wrong.
fn repair(disk: &mut Disk) {
    let mut chain = Vec::new();
    for (slot, bytes) in &mut disk.slots {
        let mut at = 0;
        while at + BLOCK_ALIGN as usize <= bytes.len() {
            let page = &mut bytes[at..];
            if page[..4] == BLOCK_MAGIC {
                seal_header(page);
                if let Some(header) = BlockHeader::decode(page) {
                    let upto = (header.bytes() as usize).min(page.len());
                    seal_records(&mut page[..upto], &header);
                    chain.push((header.sequence, *slot, at));
                }
            }
            at += BLOCK_ALIGN as usize;
        }
    }
    chain.sort_unstable();
    let mut prev = None;
    for (sequence, slot, at) in chain {
        let page = &mut disk.slots.get_mut(&slot).expect("it was listed")[at..];
        if let Some((before, crc)) = prev
            && before == sequence.0.wrapping_sub(1)
        {
            put(page, 52, &u32::to_le_bytes(crc));
            seal_header(page);
        }
        prev = BlockHeader::decode(page).map(|header| (header.sequence.0, header.header_crc));
    }
    for content in disk.checkpoints.iter_mut().flatten() {
        if content.len() > 8 {
            let crc = crc32c(&content[8..]);
            content[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

fn seal_header(page: &mut [u8]) {
    let crc = crc32c(&page[8..BLOCK_HEADER_BYTES as usize]);
    page[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn seal_records(block: &mut [u8], header: &BlockHeader) {
    let mut content_crc = 0;
    let mut count = 0_u32;
    for start in record_starts(block, header) {
        let Ok(mut head) = RecordHead::decode(&block[start..]) else {
            continue;
        };
        let body = start + RECORD_HEAD_BYTES as usize..start.saturating_add(head.length as usize);
        let Some(body) = block.get_mut(body) else {
            continue;
        };
        let folded = if head.kind.has_messages() {
            seal_messages(body);
            match fold_messages(0, body) {
                Some(folded) => {
                    head.count = folded.count;
                    folded.crc
                }
                None => 0,
            }
        } else {
            crc32c(body)
        };
        let bytes = head.seal(folded);
        put(block, start, &bytes);
        content_crc = crc32c_append(content_crc, &head.crc.to_le_bytes());
        count += 1;
    }
    put(block, 72, &count.to_le_bytes());
    put(block, 76, &content_crc.to_le_bytes());
    seal_header(block);
}

fn seal_messages(mut body: &mut [u8]) {
    while let Some(length) = ringpost_wire::envelope::length_of(body) {
        crate::envelope::seal(body);
        let step = ringpost_wire::padded(length.clamp(1, body.len()));
        body = body.get_mut(step..).unwrap_or_default();
    }
}

// ---- workloads -------------------------------------------------------------------------------

/// How a workload ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Everything is at rest, and a watermark says so.
    Idle,
    /// In good order.
    ShutDown,
    /// With writes in flight, of which so many bytes arrived.
    Crash(u32),
}

/// What a workload does.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    rounds: u32,
    publishes: u32,
    filler: usize,
    /// Of so many messages one is acknowledged.
    ack_one_in: u32,
    end: End,
    /// The engine is started again once, in the middle.
    is_restarted: bool,
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let base = Recipe {
            rounds: 2,
            publishes: 5,
            filler: 20,
            ack_one_in: 3,
            end: End::Idle,
            is_restarted: false,
        };
        let recipes = [
            Recipe { rounds: 0, ..base },
            base,
            Recipe {
                end: End::ShutDown,
                ..base
            },
            Recipe {
                rounds: 12,
                publishes: 9,
                filler: 900,
                ..base
            },
            Recipe {
                rounds: 30,
                publishes: 12,
                filler: 1_500,
                ack_one_in: 1,
                end: End::ShutDown,
                ..base
            },
            Recipe {
                rounds: 5,
                end: End::Crash(1_024),
                ..base
            },
            Recipe {
                rounds: 10,
                filler: 600,
                is_restarted: true,
                ..base
            },
            Recipe {
                rounds: 20,
                filler: 2_000,
                ack_one_in: 2,
                end: End::Crash(0),
                is_restarted: true,
                ..base
            },
        ];
        recipes.iter().map(Recipe::cook).collect()
    })
}

/// Number of images: the first byte of an input picks one.
#[must_use]
pub fn image_count() -> usize {
    images().len()
}

impl Recipe {
    fn cook(&self) -> Image {
        let size = Size::Small;
        let mut image = Image {
            size: Some(size),
            is_vouched: self.end == End::Idle || self.end == End::ShutDown,
            ..Image::default()
        };
        let mut shell = Shell::boot(size, Disk::default());
        shell.start();
        let mut client = Client::greet(&mut shell);
        declare(&mut client, &mut shell);
        let mut number = 0;
        client.open_producer(&mut shell);
        for round in 0..self.rounds {
            if self.is_restarted && round == self.rounds / 2 {
                shell.rest();
                let disk = shell.crash(0);
                shell = Shell::boot(size, disk);
                shell.start();
                client = Client::greet(&mut shell);
                client.open_producer(&mut shell);
            }
            let at = round as usize % QUEUES.len();
            let first = number + 1;
            number += self.publishes;
            let is_last = round + 1 == self.rounds;
            let payloads: Vec<Vec<u8>> = (first..=number)
                .map(|number| payload(number, at, self.filler))
                .collect();
            client.publish(&mut shell, QUEUES[at], &payloads);
            if is_last && let End::Crash(_) = self.end {
                // Sealed and handed to the disk, which does not answer.
                shell.turn();
                image.books[at].may.extend(first..=number);
                break;
            }
            shell.rest();
            client.hear(&mut shell);
            assert!(client.is_confirmed(), "what rests is confirmed");
            image.books[at].must.extend(first..=number);
            if round % 2 == 1 {
                ack_some(&mut shell, &mut image.books, self.ack_one_in);
                client.hear(&mut shell);
            }
            shell.pass(40);
            shell.rest();
        }
        match self.end {
            End::Idle => {
                // The watermark's time, and the checkpoint's.
                for _ in 0..4 {
                    shell.pass(10);
                    shell.rest();
                }
                image.disk = shell.crash(0);
            }
            End::ShutDown => {
                shell.shut_down();
                image.disk = shell.crash(0);
            }
            End::Crash(done) => image.disk = shell.crash(done),
        }
        image
    }
}

/// Declares the topology of every workload.
fn declare(client: &mut Client, shell: &mut Shell) {
    for name in QUEUES {
        client.declare_queue(shell, name);
    }
    let exchange = ExchangeDeclare {
        kind: ExchangeKind::Topic as u8,
        durability: Durability::Durable as u8,
        flags: 0,
        reserved: 0,
        name: b"shop",
        arguments: b"",
    };
    client.ask(shell, FrameKind::ExchangeDeclare, 0, &exchange);
    let bind = Bind {
        flags: 0,
        exchange: b"shop",
        target: QUEUES[0],
        key: b"order.#",
        arguments: b"",
    };
    client.ask(shell, FrameKind::Bind, 0, &bind);
    let is_done = |heard: &&Heard| heard.header.kind == FrameKind::Done;
    let done = client.said.iter().filter(is_done).count();
    assert_eq!(done, QUEUES.len() + 2, "the topology is made");
}

/// A second connection takes what is there, settles some of it for good, and leaves.
fn ack_some(shell: &mut Shell, books: &mut [Book; QUEUES.len()], one_in: u32) {
    let mut taker = Client::greet(shell);
    for (at, book) in books.iter_mut().enumerate() {
        taker.open_consumer(shell, channel_of(at), QUEUES[at]);
        let channel = channel_of(at);
        let mut acked = Vec::new();
        for heard in core::mem::take(&mut taker.said) {
            // What another queue gives late is left alone.
            if heard.header.kind != FrameKind::Deliver || heard.header.channel != channel {
                continue;
            }
            let (_, messages) = DeliverHead::split(&heard.body).expect("it was read");
            for (message, tag) in Messages::new(messages).zip(heard.header.sequence..) {
                let message = message.expect("it was read");
                let number = number_of(message.envelope.payload(), at).expect("it was published");
                if number.is_multiple_of(one_in) {
                    acked.push((number, tag));
                }
            }
        }
        if acked.is_empty() {
            continue;
        }
        let mut body = Vec::new();
        for (_, tag) in &acked {
            body.extend(
                SettleRange {
                    first: *tag,
                    last: *tag,
                }
                .encode(),
            );
        }
        let settle = FrameHeader {
            flags: header::SETTLE_ACK | header::SETTLE_CONFIRM,
            count: acked.len() as u32,
            ..FrameHeader::bare(FrameKind::Settle, channel, 77)
        };
        taker.send(shell, settle, &body);
        shell.rest();
        taker.hear(shell);
        let is_settled = |heard: &Heard| heard.header.kind == FrameKind::Settled;
        assert!(taker.said.iter().any(is_settled), "what rests is settled");
        for (number, _) in acked {
            assert!(book.must.remove(&number));
            book.gone.insert(number);
        }
    }
    shell.hang_up(taker.conn);
    shell.rest();
}

/// Whether each queue says that it is damaged.
fn inspect(client: &mut Client, shell: &mut Shell) -> Vec<bool> {
    let mut all = Vec::new();
    for name in QUEUES {
        let named = Named { name };
        client.said.clear();
        client.ask(shell, FrameKind::QueueInspect, 0, &named);
        let info = client
            .said
            .iter()
            .find(|heard| heard.header.kind == FrameKind::QueueInfo);
        all.push(info.is_none_or(|heard| {
            let info = QueueInfo::decode(&heard.body).expect("read");
            info.flags & QUEUE_DAMAGED != 0
        }));
    }
    all
}

/// The channel of the consumer of a queue.
const fn channel_of(at: usize) -> u16 {
    PRODUCER + 1 + at as u16
}

/// The payload of a message: everything in it follows from its number and queue.
fn payload(number: u32, at: usize, filler: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.push(at as u8);
    bytes.extend((0..filler).map(|idx| (number as usize * 31 + idx) as u8));
    bytes
}

/// The number of a message of that queue, if every byte of it is right.
fn number_of(bytes: &[u8], at: usize) -> Option<u32> {
    let number = u32::from_le_bytes(*bytes.first_chunk()?);
    let filler = bytes.len().checked_sub(5)?;
    (bytes == payload(number, at, filler)).then_some(number)
}
