//! Clients that do their worst, from a seed, beside one that behaves: the broker ends every bad
//! connection, and the honest client notices nothing. Does not know which code ends what;
//! `malformed.rs` does. `RINGPOST_HOSTILE_FRAMES` makes it long.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use ringpost_engine::control::listing::LISTS_MAX;
use ringpost_wire::control::{
    Attach, Bind, Body, ConsumerCredit, Delete, ExchangeKind, Get, Level, Named, ProducerOpen,
};
use ringpost_wire::{Code, FRAGMENT_BYTES_MAX, FrameHeader, FrameKind, SettleRange, frame};

use crate::broker::{Broker, memory_least};
use crate::process::Process;
use crate::wire::{
    PATIENCE, Wire, consumer, exchange, filler, hello, message, queue, to_queue, volatile,
};

/// Frames that are sent unless the variable asks for more.
const FRAMES: u64 = 4_000;
/// Hostile clients at a time.
const THREADS: u64 = 3;
/// Connections of one of them that are kept and never read from.
const HELD_MAX: usize = 12;
/// What the broker among them may use.
const MEMORY: &str = "268435456B";
/// Where the hostile ones work.
const TENANT: &str = "hostile";
/// Messages that the honest client has in flight.
const BATCH: u64 = 4;

#[test]
fn an_honest_client_among_hostile_ones() {
    let asked = std::env::var("RINGPOST_HOSTILE_FRAMES");
    let frames = asked.map_or(FRAMES, |text| text.parse().expect("a number of frames"));
    let process = Process::start(2, MEMORY);
    let addr = process.addr();
    Wire::tenant_at(addr, TENANT).bye();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest(addr, &is_over));
        let hostile: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || hostile(addr, thread, frames / THREADS)))
            .collect();
        let ended: Vec<_> = hostile.into_iter().map(|thread| thread.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        let count = honest.join().expect("the honest client notices nothing");
        let mut all = Deeds::default();
        for ended in ended {
            let deeds = ended.expect("a hostile one is not held up");
            all.sessions += deeds.sessions;
            all.frames += deeds.frames;
            all.faults += deeds.faults;
        }
        println!(
            "{} hostile frames with {} faults in {} sessions; {count} durable messages of an honest \
             client meanwhile; at most {} KiB resident of {MEMORY}",
            all.frames,
            all.faults,
            all.sessions,
            process.resident_peak() >> 10
        );
        assert!(count > 0);
    });
    process.stays_inside("hostile sessions");
    // Whoever was hostile is gone, and so is what it held.
    let mut wire = process.wire();
    wire.declare(&queue(b"afterwards"));
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"afterwards", b"well")]);
}

/// Publishes durably and takes it back, in order, once, until told to stop; how many messages.
fn honest(addr: SocketAddr, is_over: &AtomicBool) -> u64 {
    let mut wire = Wire::tenant_at(addr, "honest");
    wire.declare(&queue(b"h"));
    wire.consume(2, &consumer(b"h", 2 * BATCH as u32));
    let mut producer = wire.producer(1, Level::Durable);
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        let payloads: Vec<Vec<u8>> = (number..number + BATCH)
            .map(|number| filler(number + 1, 16 + number as usize % 300))
            .collect();
        let parts: Vec<_> = payloads
            .iter()
            .map(|payload| to_queue(b"h", payload))
            .collect();
        producer.confirm(&mut wire, &parts);
        let delivered = wire.deliveries(2, BATCH as usize);
        for (delivery, payload) in delivered.iter().zip(&payloads) {
            assert_eq!(&delivery.payload, payload);
            assert!(!delivery.redelivered);
        }
        wire.settle_surely(
            2,
            0,
            &[(delivered[0].tag, delivered[BATCH as usize - 1].tag)],
        );
        number += BATCH;
    }
    wire.bye();
    number
}

/// Numbers that look random and come again from the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of so many times.
    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// Connects again and again, sends what is partly wrong, and leaves in several ways.
fn hostile(addr: SocketAddr, thread: u64, frames: u64) -> Deeds {
    let mut held: Vec<TcpStream> = Vec::new();
    let mut deeds = Deeds::default();
    let mut seed = thread << 32;
    while deeds.frames < frames {
        seed += 1;
        let mut random = Random(seed);
        let (bytes, count, faults) = session(&mut random);
        deeds.sessions += 1;
        deeds.frames += count;
        deeds.faults += faults;
        // The broker may have as many connections as it may, and says so; that is an end, too.
        let mut stream = TcpStream::connect(addr).expect("the broker listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.set_write_timeout(Some(PATIENCE)).expect("an option");
        let way = random.below(8);
        if way == 0 {
            // In pieces, so that frames arrive torn.
            for piece in bytes.chunks(1 + random.below(40)) {
                // It hangs up as soon as something is wrong, here and below.
                let _ = stream.write_all(piece);
            }
        } else {
            let _ = stream.write_all(&bytes);
        }
        match way {
            // Gone at once, with everything unread.
            1 => {}
            // Stays, and never reads.
            2 => {
                held.truncate(HELD_MAX - 1);
                held.insert(0, stream);
            }
            _ => {
                let _ = stream.shutdown(Shutdown::Write);
                drain(&mut stream, seed);
            }
        }
    }
    deeds
}

/// Reads until the broker has hung up, which it has to do.
fn drain(stream: &mut TcpStream, seed: u64) {
    let mut room = vec![0; 64 << 10];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => panic!("seed {seed}: the connection does not end: {error}"),
        }
    }
}

/// What hostile clients did.
#[derive(Clone, Copy, Default)]
struct Deeds {
    sessions: u64,
    frames: u64,
    /// Frames that were changed, given again or put elsewhere, and places where bytes were.
    faults: u64,
}

/// The bytes of one connection, how many frames went into them, and how many faults.
fn session(random: &mut Random) -> (Vec<u8>, u64, u64) {
    let mut frames: Vec<(FrameHeader, Vec<u8>)> = Vec::new();
    if !random.one_in(20) {
        let mut body = Vec::new();
        hello(TENANT.as_bytes()).encode(&mut body);
        frames.push((FrameHeader::bare(FrameKind::Hello, 0, 0), body));
    }
    let mut sequences = [1_u64; 4];
    for id in 1..=4 + random.below(28) as u64 {
        frames.push(some_frame(random, id, &mut sequences));
    }
    // What is wrong within checksums that are right.
    let mut faults = random.below(3) as u64;
    for _ in 0..faults {
        let victim = random.below(frames.len());
        change(random, &mut frames[victim]);
    }
    if random.one_in(4) {
        let (one, other) = (random.below(frames.len()), random.below(frames.len()));
        frames.swap(one, other);
        faults += 1;
    }
    if random.one_in(4) {
        let again = frames[random.below(frames.len())].clone();
        frames.insert(random.below(frames.len()), again);
        faults += 1;
    }
    let mut bytes = Vec::new();
    for (header, body) in &frames {
        frame::write(&mut bytes, *header, body);
    }
    // What is wrong with the bytes themselves.
    let what = random.below(6);
    faults += u64::from(what < 4);
    match what {
        0 => {
            for _ in 0..1 + random.below(8) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        1 => bytes.truncate(random.below(bytes.len())),
        2 => {
            let at = random.below(bytes.len());
            let noise = filler(random.next(), random.below(400));
            bytes.splice(at..at, noise);
        }
        3 => {
            // A length that nobody has memory for.
            let at = random.below(bytes.len() / 16) * 16 + 20;
            let end = bytes.len().min(at + 4);
            bytes[at.min(end)..end].fill(0xff);
        }
        _ => {}
    }
    (bytes, frames.len() as u64, faults)
}

/// A frame that would be right at some place of some session.
fn some_frame(random: &mut Random, id: u64, sequences: &mut [u64; 4]) -> (FrameHeader, Vec<u8>) {
    const NAMES: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"nobody declares it"];
    let name = NAMES[random.below(NAMES.len())];
    let lane = random.below(4);
    let (to_producer, to_consumer) = (1 + lane as u16, 5 + lane as u16);
    let mut body = Vec::new();
    let bare = FrameHeader::bare;
    let header = match random.below(16) {
        0 => {
            let mut declared = queue(name);
            declared.messages_max = 1 + random.below(200) as u64;
            if name == b"d" {
                declared = volatile(declared);
            }
            declared.encode(&mut body);
            bare(FrameKind::QueueDeclare, 0, id)
        }
        1 => {
            exchange(b"x", ExchangeKind::Topic).encode(&mut body);
            bare(FrameKind::ExchangeDeclare, 0, id)
        }
        2 => {
            let (exchange, key, arguments) = (&b"x"[..], &b"#"[..], &b""[..]);
            Bind {
                flags: 0,
                exchange,
                target: name,
                key,
                arguments,
            }
            .encode(&mut body);
            bare(FrameKind::Bind, 0, id)
        }
        3 | 4 => {
            ProducerOpen {
                producer: 1 + random.next() % 1_000,
                epoch: 1 + random.below(3) as u32,
                level: random.below(3) as u8,
                flags: 0,
                reserved: 0,
            }
            .encode(&mut body);
            sequences[lane] = 1;
            bare(FrameKind::ProducerOpen, to_producer, id)
        }
        5..=7 => {
            let count = 1 + random.below(6);
            for _ in 0..count {
                let payload = filler(random.next(), random.below(2_000));
                let message = to_queue(name, &payload);
                message.write(&mut body).expect("within the limits");
            }
            let sequence = sequences[lane];
            sequences[lane] += count as u64;
            FrameHeader {
                count: count as u32,
                ..bare(FrameKind::Publish, to_producer, sequence)
            }
        }
        8 | 9 => {
            consumer(name, random.below(500) as u32).encode(&mut body);
            bare(FrameKind::ConsumerOpen, to_consumer, id)
        }
        10 => {
            let (first, more) = (random.below(20) as u64, random.below(20) as u64);
            let last = first + more;
            body.extend_from_slice(&SettleRange { first, last }.encode());
            FrameHeader {
                count: 1,
                flags: random.below(8) as u8,
                ..bare(FrameKind::Settle, to_consumer, id)
            }
        }
        11 => {
            ConsumerCredit {
                bytes: random.next() % (1 << 20),
                messages: random.below(1_000) as u32,
                reserved: 0,
            }
            .encode(&mut body);
            bare(FrameKind::ConsumerCredit, to_consumer, 0)
        }
        12 => {
            Get {
                wait_ms: random.below(50) as u32,
                reserved: 0,
            }
            .encode(&mut body);
            FrameHeader {
                count: 1 + random.below(20) as u32,
                ..bare(FrameKind::Get, to_consumer, id)
            }
        }
        13 => {
            let kinds = [FrameKind::QueueInspect, FrameKind::QueuePurge];
            Named { name }.encode(&mut body);
            bare(kinds[random.below(2)], 0, id)
        }
        14 => match random.below(3) {
            0 => {
                Attach { queue: name }.encode(&mut body);
                bare(FrameKind::Attach, 0, id)
            }
            1 => {
                Delete { flags: 0, name }.encode(&mut body);
                bare(FrameKind::QueueDelete, 0, id)
            }
            _ => bare(FrameKind::QueueList, 0, id),
        },
        _ => {
            let kinds = [FrameKind::ProducerClose, FrameKind::ConsumerClose];
            let kind = random.below(2);
            bare(kinds[kind], [to_producer, to_consumer][kind], id)
        }
    };
    (header, body)
}

/// Makes something of a frame wrong; its checksums will be right all the same.
fn change(random: &mut Random, (header, body): &mut (FrameHeader, Vec<u8>)) {
    match random.below(7) {
        0 => header.kind = FrameKind::ALL[random.below(FrameKind::ALL.len())],
        1 => header.flags ^= 1 << random.below(8),
        2 => header.channel = random.next() as u16,
        3 => header.sequence = random.next() >> random.below(64),
        4 => header.count = (random.next() >> (32 + random.below(32))) as u32,
        5 if !body.is_empty() => {
            let at = random.below(body.len());
            body[at] ^= 1 << random.below(8);
        }
        _ => body.truncate(random.below(body.len() + 1)),
    }
}

/// Opens channel after channel: each open has an answer, and others can still open theirs.
#[test]
fn a_connection_that_opens_all_it_can() {
    const CHANNELS: u16 = 1_500;
    let broker = Broker::start(2, &[]);
    let mut greedy = Wire::open(&broker);
    greedy.declare(&queue(b"q"));
    let mut opened = 0;
    for channel in 1..=CHANNELS {
        let open = ProducerOpen {
            producer: u64::from(channel),
            epoch: 1,
            level: 2,
            flags: 0,
            reserved: 0,
        };
        let id = if channel % 2 == 0 {
            greedy.request_on(FrameKind::ProducerOpen, channel, &open)
        } else {
            greedy.request_on(FrameKind::ConsumerOpen, channel, &consumer(b"q", 1))
        };
        let answer = greedy.answer(id);
        match answer.kind() {
            FrameKind::ProducerOpened | FrameKind::ConsumerOpened => opened += 1,
            FrameKind::Failed => assert_eq!(answer.code(), Code::LimitReached),
            _ => panic!("{answer:?}"),
        }
    }
    assert!(opened > 0);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue(b"other"));
    wire.consume(2, &consumer(b"other", 1));
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"other", b"well")]);
    assert_eq!(wire.deliveries(2, 1)[0].payload, b"well");
    greedy.drop_dead();
    wire.bye();
}

/// P-18, P-33: large messages that are begun and not finished hold up neither those who publish what
/// is small, nor settlements beside one that waits, and in the end no large one either.
#[test]
fn large_messages_that_are_never_finished_hold_up_nobody() {
    const STALLED: usize = 100;
    const ROUNDS: u64 = 40;
    let memory = memory_least(1, 256);
    for settings in [&[("memory", memory.as_str())][..], &[]] {
        let broker = Broker::start(1, settings);
        let mut wire = Wire::open(&broker);
        wire.declare(&queue(b"q"));
        wire.declare(&queue(b"large"));
        let large = filler(1, 15 << 20);
        let whole = message(&to_queue(b"large", &large));
        let first = &whole[..FRAGMENT_BYTES_MAX];
        let mut stalled: Vec<_> = (0..STALLED)
            .map(|_| {
                let mut wire = Wire::open(&broker);
                let producer = wire.producer(1, Level::Durable);
                producer.send_piece(&mut wire, 0, whole.len(), 0, first);
                (wire, producer)
            })
            .collect();
        let waits = wire.producer(3, Level::Durable);
        waits.send_piece(&mut wire, 0, whole.len(), 0, first);
        wire.consume(2, &consumer(b"q", 10));
        let mut producer = wire.producer(1, Level::Durable);
        for round in 0..ROUNDS {
            producer.confirm(&mut wire, &[to_queue(b"q", &filler(round, 100))]);
            let delivered = wire.deliveries(2, 1);
            wire.settle_surely(2, 0, &[(delivered[0].tag, delivered[0].tag)]);
        }
        // One whose sender goes on gets its turn; as long as too many wait it is told so.
        let mut producer = wire.producer(4, Level::Durable);
        loop {
            producer.publish(&mut wire, 0, &[to_queue(b"large", &large)]);
            producer.settle(&mut wire);
            match producer.refused.pop() {
                None => break,
                Some((_, _, code)) => assert_eq!(code, Code::Overloaded),
            }
            stalled[0].0.sync();
        }
        assert_eq!(wire.inspect(b"large").ready, 1);
        // Those that stalled were told, and may publish again what comes next.
        let mut told = 0;
        for (wire, producer) in &mut stalled {
            wire.sync();
            producer.next = 2;
            while let Some(frame) = wire.take_aside(1) {
                producer.hear(&frame);
            }
            if let Some((first, last, code)) = producer.refused.pop() {
                assert_eq!((first, last), (1, 1));
                assert!(matches!(code, Code::TimedOut | Code::Overloaded), "{code}");
                told += 1;
                producer.confirm(wire, &[to_queue(b"q", b"small")]);
            }
        }
        // Who has memory that nobody waits for keeps it.
        assert!(told >= STALLED - 4, "{told}");
    }
}

/// P-31: pieces that come although the message was refused are ignored, and count as credit.
#[test]
fn pieces_of_a_refused_message_are_ignored() {
    let broker = Broker::start(1, &[("message_bytes_max", "1MiB")]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue(b"q"));
    let large = filler(1, 3 << 20);
    let whole = message(&to_queue(b"q", &large));
    let mut producer = wire.producer(1, Level::Durable);
    let sequence = producer.next;
    let mut offset = 0;
    for piece in whole.chunks(FRAGMENT_BYTES_MAX).take(5) {
        // It may be told of the refusal while it waits for the credit of another piece.
        producer.next = sequence + 1;
        producer.reserve(&mut wire, u64::from(offset == 0), piece.len() as u64);
        producer.next = sequence;
        producer.send_piece(&mut wire, 0, whole.len(), offset, piece);
        offset += piece.len();
    }
    producer.next = sequence + 1;
    producer.settle(&mut wire);
    assert_eq!(producer.refused, [(1, 1, Code::MessageTooLarge)]);
    producer.refused.clear();
    producer.confirm(&mut wire, &[to_queue(b"q", b"next")]);
    assert_eq!(wire.inspect(b"q").ready, 1);
    // Its rest may not come behind that.
    let piece = &whole[offset..offset + FRAGMENT_BYTES_MAX];
    producer.next = sequence;
    producer.send_piece(&mut wire, 0, whole.len(), offset, piece);
    assert_eq!(wire.closed(), Code::SequenceGap);
}

/// P-67: more lists than anybody has memory for, read when there is time.
#[test]
fn lists_come_as_they_are_read() {
    const QUEUES: usize = 4_000;
    let broker = Broker::start(2, &[]);
    let mut wire = Wire::open(&broker);
    let names: Vec<_> = (0..QUEUES)
        .map(|number| format!("{number:0250}").into_bytes())
        .collect();
    let ids: Vec<_> = names
        .iter()
        .map(|name| wire.request(FrameKind::QueueDeclare, &queue(name)))
        .collect();
    for id in ids {
        wire.done(id);
    }
    let lists: Vec<_> = (0..LISTS_MAX).map(|_| wire.next_id()).collect();
    let one_more = wire.next_id();
    let mut bytes = Vec::new();
    for id in lists.iter().chain([&one_more]) {
        frame::write_bare(&mut bytes, FrameKind::QueueList, 0, *id);
    }
    wire.send_bytes(&bytes);
    // Whoever asks beside them is served, and what they find changes under them.
    let mut other = Wire::open(&broker);
    other.bind(b"amq.topic", &names[7], b"key", b"");
    other.delete(&names[QUEUES - 1]);
    for name in names.iter().take(100) {
        let mut producer = other.producer(1, Level::Durable);
        let message = to_queue(name, b"m");
        producer.confirm(&mut other, &[message]);
        producer.close(&mut other);
        // Nobody is cut off for what was not read.
        wire.request(FrameKind::QueueInspect, &Named { name });
    }
    assert_eq!(wire.failed(one_more), Code::LimitReached);
    for id in lists {
        let mut count = 0;
        let done = loop {
            let frame = wire.wait(|frame| frame.header.sequence == id);
            if frame.kind() != FrameKind::QueueInfo {
                break frame;
            }
            assert!(frame.body.ends_with(&names[count]), "in order, each once");
            count += 1;
        };
        assert_eq!(done.kind(), FrameKind::Done);
        assert_eq!(done.header.count as usize, count);
        assert!(count >= QUEUES - 1, "{count}");
    }
    let id = wire.request_bare(FrameKind::BindingList, 0);
    assert_eq!(wire.answer(id).kind(), FrameKind::BindingInfo);
    assert_eq!(wire.done(id).1, 1);
}

/// What is bound takes memory, however few the bindings are; a restart does not forget what it takes.
#[test]
fn routing_tables_are_bounded() {
    let memory = memory_least(2, 256);
    let mut broker = Broker::start(2, &[("memory", &memory)]);
    let mut wire = Wire::open(&broker);
    wire.declare(&queue(b"q"));
    let bind = |wire: &mut Wire, kind, number: u32| {
        let key = number.to_be_bytes();
        let text = filler(u64::from(number), 51 << 10);
        let mut arguments = b"\x01ax".to_vec();
        arguments.extend_from_slice(&(text.len() as u32).to_be_bytes());
        arguments.extend_from_slice(&text);
        let bind = Bind {
            flags: 0,
            exchange: b"amq.headers",
            target: b"q",
            key: &key,
            arguments: &arguments,
        };
        wire.request(kind, &bind)
    };
    let mut bound = 0;
    loop {
        let id = bind(&mut wire, FrameKind::Bind, bound);
        if wire.answer_kind(id) == FrameKind::Failed {
            break;
        }
        bound += 1;
        assert!(bound < 100, "nothing bounds it");
    }
    assert!(bound > 0);
    // Small things find no room either once it is full, and those that are there go on.
    let mut small = 0;
    loop {
        let name = format!("small {small}");
        let id = wire.request(FrameKind::QueueDeclare, &queue(name.as_bytes()));
        if wire.answer_kind(id) == FrameKind::Failed {
            break;
        }
        small += 1;
        assert!(small < 2_000, "nothing bounds it");
    }
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"q", b"well")]);
    wire.bye();
    broker.restart();
    let mut wire = Wire::open(&broker);
    let id = bind(&mut wire, FrameKind::Bind, bound);
    assert_eq!(wire.failed(id), Code::LimitReached);
    // What is given back can be taken again.
    let id = bind(&mut wire, FrameKind::Unbind, 0);
    wire.done(id);
    let id = bind(&mut wire, FrameKind::Bind, bound);
    wire.done(id);
    assert_eq!(wire.inspect(b"q").ready, 1);
}
