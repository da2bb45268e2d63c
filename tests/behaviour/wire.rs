//! A small blocking client over raw frames: every rule of the protocol can be kept and broken with it.
//! Waits for events, never for time; a wait that lasts too long fails the test.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringpost_wire::control::{
    Attach, Bind, Body, ConsumerCredit, ConsumerOpen, Delete, Durability, ExchangeDeclare,
    ExchangeKind, Failure, Get, Hello, Level, Named, PARTITION_BY_NAME, ProducerCredit,
    ProducerOpen, ProducerOpened, QueueDeclare, QueueInfo, Welcome,
};
use ringpost_wire::header::DELIVER_REDELIVERED;
use ringpost_wire::version::{MAGIC, VERSION_MAX, VERSION_MIN};
use ringpost_wire::{
    Code, Cut, DeliverHead, FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FragmentHead,
    FrameHeader, FrameKind, MessageParts, Messages, SettleRange, cut, envelope, frame, padded,
};

use crate::broker::Broker;

/// How long any single wait may last before the test has failed: so that one that hangs ends, and so
/// long that no machine is too slow for it.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Looks that are taken at what must come about; how long they take is up to the machine.
const LOOKS_MAX: u32 = 2_000_000;

/// Looks until there is something to see; each look says why it is not yet.
#[track_caller]
pub fn eventually<T, W: std::fmt::Display>(mut look: impl FnMut() -> Result<T, W>) -> T {
    for _ in 1..LOOKS_MAX {
        match look() {
            Ok(seen) => return seen,
            Err(_) => std::thread::yield_now(),
        }
    }
    match look() {
        Ok(seen) => seen,
        Err(why) => panic!("{why}"),
    }
}
/// Heartbeats in a row, without anything else, after which a wait has lasted too long.
const HEARTBEATS_MAX: u64 = 24;

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub header: FrameHeader,
    pub body: Vec<u8>,
}

impl Frame {
    pub fn kind(&self) -> FrameKind {
        self.header.kind
    }

    /// The code of a frame that carries one.
    pub fn code(&self) -> Code {
        let failure = Failure::decode(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        Code::from_number(failure.code)
    }

    pub fn reason(&self) -> String {
        let failure = Failure::decode(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        String::from_utf8(failure.reason.to_vec()).expect("a reason is text")
    }
}

/// A message as it was delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    pub channel: u16,
    pub tag: u64,
    pub queue_sequence: u64,
    pub count: u32,
    pub redelivered: bool,
    pub exchange: Vec<u8>,
    pub key: Vec<u8>,
    pub payload: Vec<u8>,
}

/// What `QueueInfo` said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    pub name: Vec<u8>,
    pub ready: u64,
    pub unacked: u64,
    pub bytes: u64,
    pub published: u64,
    pub settled: u64,
    pub messages_max: u64,
    pub bytes_max: u64,
    pub consumers: u32,
    pub core: u16,
    pub partition: u16,
    pub durability: u8,
}

/// A connection.
pub struct Wire {
    stream: TcpStream,
    bytes: Vec<u8>,
    inbox: VecDeque<Frame>,
    ended: bool,
    id: u64,
    /// Heartbeats that came.
    pub heartbeats: u64,
    /// Each is answered by one.
    pub answers_heartbeats: bool,
    pub core: u16,
    /// Cores of the broker.
    pub cores: u16,
    pub heartbeat_ms: u32,
    pub message_bytes_max: u32,
}

/// A `Hello` that asks for nothing special.
pub fn hello<'a>(tenant: &'a [u8]) -> Hello<'a> {
    Hello {
        magic: MAGIC,
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        heartbeat_ms: 0,
        message_bytes_max: 0,
        tenant,
        client: b"behaviour",
    }
}

/// A durable queue without limits.
pub fn queue<'a>(name: &'a [u8]) -> QueueDeclare<'a> {
    QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: Durability::Durable as u8,
        flags: 0,
        partition: PARTITION_BY_NAME,
        name,
        arguments: b"",
    }
}

/// A durable queue on a certain core.
pub fn queue_on<'a>(name: &'a [u8], core: u16) -> QueueDeclare<'a> {
    QueueDeclare {
        partition: core,
        ..queue(name)
    }
}

/// The same queue, not journaled.
pub fn volatile<'a>(queue: QueueDeclare<'a>) -> QueueDeclare<'a> {
    QueueDeclare {
        durability: Durability::Volatile as u8,
        ..queue
    }
}

/// A durable exchange.
pub fn exchange<'a>(name: &'a [u8], kind: ExchangeKind) -> ExchangeDeclare<'a> {
    ExchangeDeclare {
        kind: kind as u8,
        durability: Durability::Durable as u8,
        flags: 0,
        reserved: 0,
        name,
        arguments: b"",
    }
}

/// A consumer with credit for so many messages and any bytes.
pub fn consumer<'a>(queue: &'a [u8], credit_messages: u32) -> ConsumerOpen<'a> {
    ConsumerOpen {
        credit_bytes: 0,
        credit_messages,
        flags: 0,
        queue,
        arguments: b"",
    }
}

/// The bytes of one message without padding.
pub fn message(parts: &MessageParts<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    parts.write(&mut bytes).expect("within the limits");
    bytes.truncate(parts.length());
    bytes
}

/// A message for a queue by the default exchange.
pub fn to_queue<'a>(queue: &'a [u8], payload: &'a [u8]) -> MessageParts<'a> {
    MessageParts {
        routing_key: queue,
        payload,
        ..MessageParts::default()
    }
}

/// A message for an exchange.
pub fn to<'a>(exchange: &'a [u8], routing_key: &'a [u8], payload: &'a [u8]) -> MessageParts<'a> {
    MessageParts {
        exchange,
        routing_key,
        payload,
        ..MessageParts::default()
    }
}

/// Bytes that differ from place to place, so that a misplaced piece is seen.
pub fn filler(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

impl Wire {
    /// A connection on which nothing was said yet.
    pub fn dial(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).expect("the broker listens"))
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.set_write_timeout(Some(PATIENCE)).expect("an option");
        Self {
            stream,
            bytes: Vec::new(),
            inbox: VecDeque::new(),
            ended: false,
            id: 0,
            heartbeats: 0,
            answers_heartbeats: true,
            core: 0,
            cores: 0,
            heartbeat_ms: 0,
            message_bytes_max: 0,
        }
    }

    /// An open connection of the default tenant.
    pub fn open(broker: &Broker) -> Self {
        Self::greet(broker, &hello(b""))
    }

    /// An open connection of a tenant, which is created if it is not there.
    pub fn tenant(broker: &Broker, tenant: &str) -> Self {
        Self::tenant_at(broker.addr(), tenant)
    }

    /// The same, of a broker of which only the address is known.
    pub fn tenant_at(addr: SocketAddr, tenant: &str) -> Self {
        let mut first = Self::greet_at(addr, &hello(b""));
        let id = first.request(
            FrameKind::TenantDeclare,
            &Named {
                name: tenant.as_bytes(),
            },
        );
        first.done(id);
        first.bye();
        Self::greet_at(addr, &hello(tenant.as_bytes()))
    }

    /// An open connection that said this.
    pub fn greet(broker: &Broker, hello: &Hello<'_>) -> Self {
        let wire = Self::greet_at(broker.addr(), hello);
        assert_eq!(wire.cores, broker.cores());
        wire
    }

    /// An open connection to a broker of which only the address is known.
    pub fn greet_at(addr: SocketAddr, hello: &Hello<'_>) -> Self {
        Self::dial(addr).greeted(hello)
    }

    /// An open connection whose kernel keeps as little as it can of what is not read.
    pub fn greet_small(broker: &Broker, hello: &Hello<'_>) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a descriptor");
        socket.set_recv_buffer_size(4 << 10).expect("an option");
        let connected = socket.connect(&broker.addr().into());
        connected.expect("the broker listens");
        Self::over(socket.into()).greeted(hello)
    }

    fn greeted(self, hello: &Hello<'_>) -> Self {
        let mut wire = self;
        wire.send(FrameHeader::bare(FrameKind::Hello, 0, 0), hello);
        let frame = wire.read();
        assert_eq!(frame.kind(), FrameKind::Welcome, "{frame:?}");
        let welcome = Welcome::decode(&frame.body).expect("a body of its kind");
        assert_eq!(welcome.magic, MAGIC);
        wire.core = welcome.core;
        wire.cores = welcome.cores;
        wire.heartbeat_ms = welcome.heartbeat_ms;
        wire.message_bytes_max = welcome.message_bytes_max;
        wire
    }

    // Sending.

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    /// Sends although the broker may have hung up already.
    pub fn send_bytes_anyway(&mut self, bytes: &[u8]) {
        // What the broker says is asserted by the reader; it may have hung up before.
        let _ = self.stream.write_all(bytes);
    }

    pub fn send_frame(&mut self, header: FrameHeader, body: &[u8]) {
        let mut out = Vec::new();
        frame::write(&mut out, header, body);
        self.send_bytes(&out);
    }

    pub fn send<'a>(&mut self, header: FrameHeader, body: &impl Body<'a>) {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        self.send_frame(header, &bytes);
    }

    pub fn next_id(&mut self) -> u64 {
        self.id += 1;
        self.id
    }

    /// Sends a request about the connection or the topology; returns its id.
    pub fn request<'a>(&mut self, kind: FrameKind, body: &impl Body<'a>) -> u64 {
        self.request_on(kind, 0, body)
    }

    pub fn request_on<'a>(&mut self, kind: FrameKind, channel: u16, body: &impl Body<'a>) -> u64 {
        let id = self.next_id();
        self.send(FrameHeader::bare(kind, channel, id), body);
        id
    }

    pub fn request_bare(&mut self, kind: FrameKind, channel: u16) -> u64 {
        let id = self.next_id();
        self.send_frame(FrameHeader::bare(kind, channel, id), b"");
        id
    }

    // Receiving.

    /// The next frame that is no heartbeat, or `None` when the broker has hung up.
    pub fn try_read(&mut self) -> Option<Frame> {
        let first = self.heartbeats;
        loop {
            let before = self.heartbeats;
            let frame = self.try_read_once();
            if frame.is_some() || self.heartbeats == before {
                return frame;
            }
            // A disk that is busy with others makes everything slow, and nothing wrong.
            let waited = self.heartbeats - first;
            assert!(waited < HEARTBEATS_MAX, "nothing but heartbeats comes");
        }
    }

    /// The next frame; `None` for a heartbeat, or when the broker has hung up.
    fn try_read_once(&mut self) -> Option<Frame> {
        loop {
            match cut(&self.bytes, FRAME_BYTES_MAX) {
                Cut::Complete { header, length } => {
                    let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
                    let body = self.bytes[FRAME_HEADER_BYTES..end].to_vec();
                    assert!(self.bytes[end..length].iter().all(|byte| *byte == 0));
                    frame::check_body(&header, &body).expect("its checksum is right");
                    self.bytes.drain(..length);
                    if header.kind != FrameKind::Heartbeat {
                        return Some(Frame { header, body });
                    }
                    self.heartbeats += 1;
                    if self.answers_heartbeats {
                        let mut bytes = Vec::new();
                        frame::write_bare(&mut bytes, FrameKind::Heartbeat, 0, 0);
                        // The broker may have hung up meanwhile: the next read tells.
                        let _ = self.stream.write_all(&bytes);
                    }
                    return None;
                }
                Cut::Incomplete { .. } if self.ended => {
                    assert!(self.bytes.is_empty(), "the broker hung up within a frame");
                    return None;
                }
                Cut::Incomplete { .. } => {
                    let mut chunk = vec![0; 256 << 10];
                    match self.stream.read(&mut chunk) {
                        Ok(0) => self.ended = true,
                        Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                            self.ended = true;
                        }
                        Err(error) => panic!("nothing came in time: {error}"),
                    }
                }
                Cut::Malformed(code) => panic!("the broker sent what is no frame: {code}"),
            }
        }
    }

    /// The next frame, of those put aside or from the socket.
    pub fn read(&mut self) -> Frame {
        match self.inbox.pop_front() {
            Some(frame) => frame,
            None => self.try_read().expect("the broker hung up"),
        }
    }

    /// The next frame that fits; others are put aside in order.
    #[track_caller]
    pub fn wait(&mut self, fits: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(idx) = self.inbox.iter().position(&fits) {
            return self.inbox.remove(idx).expect("it was just found");
        }
        loop {
            let Some(frame) = self.try_read() else {
                panic!("the broker hung up; put aside: {:?}", self.aside());
            };
            if fits(&frame) {
                return frame;
            }
            assert!(
                frame.kind() != FrameKind::Close,
                "the broker closed: {} {}; put aside: {:?}",
                frame.code(),
                frame.reason(),
                self.aside()
            );
            self.inbox.push_back(frame);
        }
    }

    /// Frames that came and were not waited for.
    pub fn aside(&self) -> Vec<(FrameKind, u16, u64)> {
        let what = |f: &Frame| (f.kind(), f.header.channel, f.header.sequence);
        self.inbox.iter().map(what).collect()
    }

    /// The first frame of a channel that was put aside.
    pub fn take_aside(&mut self, channel: u16) -> Option<Frame> {
        let is_of = |frame: &Frame| frame.header.channel == channel;
        let idx = self.inbox.iter().position(is_of)?;
        self.inbox.remove(idx)
    }

    #[track_caller]
    pub fn wait_kind(&mut self, kind: FrameKind) -> Frame {
        self.wait(|frame| frame.kind() == kind)
    }

    #[track_caller]
    pub fn wait_on(&mut self, kind: FrameKind, channel: u16) -> Frame {
        self.wait(|frame| frame.kind() == kind && frame.header.channel == channel)
    }

    /// The answer to a request: never one that is put aside before.
    #[track_caller]
    pub fn answer(&mut self, id: u64) -> Frame {
        self.wait(|frame| {
            let answers = !matches!(
                frame.kind(),
                FrameKind::Deliver
                    | FrameKind::DeliverFragment
                    | FrameKind::Confirm
                    | FrameKind::Refused
                    | FrameKind::ProducerCredit
            );
            answers && frame.header.sequence == id
        })
    }

    /// Whether the request was done or failed.
    #[track_caller]
    pub fn answer_kind(&mut self, id: u64) -> FrameKind {
        let frame = self.answer(id);
        if frame.kind() == FrameKind::Failed {
            assert_eq!(frame.code(), Code::LimitReached, "{}", frame.reason());
        }
        frame.kind()
    }

    /// The request is done: whether something changed, and the count.
    #[track_caller]
    pub fn done(&mut self, id: u64) -> (bool, u32) {
        let frame = self.answer(id);
        if frame.kind() == FrameKind::Failed {
            panic!("failed: {} {}", frame.code(), frame.reason());
        }
        assert_eq!(frame.kind(), FrameKind::Done, "{frame:?}");
        (frame.header.flags & 1 != 0, frame.header.count)
    }

    /// The request failed: why.
    #[track_caller]
    pub fn failed(&mut self, id: u64) -> Code {
        let frame = self.answer(id);
        assert_eq!(frame.kind(), FrameKind::Failed, "{frame:?}");
        assert!(!frame.reason().is_empty(), "a failure says why");
        frame.code()
    }

    /// The broker ends the connection: with which code. Everything before the `Close` is dropped.
    #[track_caller]
    pub fn closed(&mut self) -> Code {
        loop {
            let frame = self.try_read().expect("the broker says why it hangs up");
            if frame.kind() == FrameKind::Close {
                let code = frame.code();
                assert!(!frame.reason().is_empty(), "a close says why");
                self.ends();
                return code;
            }
        }
    }

    /// Nothing more comes: the broker has hung up, once it was answered.
    #[track_caller]
    pub fn ends(&mut self) {
        let mut out = Vec::new();
        let failure = Failure {
            code: 0,
            reserved: 0,
            reason: b"",
        };
        failure.write(&mut out, FrameHeader::bare(FrameKind::Close, 0, 0));
        self.send_bytes_anyway(&out);
        assert!(self.try_read().is_none(), "a close is the last word");
    }

    /// Closes in order and waits for the answer.
    #[track_caller]
    pub fn bye(&mut self) {
        let failure = Failure {
            code: 0,
            reserved: 0,
            reason: b"",
        };
        self.send(FrameHeader::bare(FrameKind::Close, 0, 0), &failure);
        let frame = self.wait_kind(FrameKind::Close);
        assert_eq!(frame.code(), Code::Normal);
        assert!(self.try_read().is_none(), "a close is the last word");
    }

    /// Sends nothing more, and goes on reading.
    pub fn hang_up_writing(&mut self) {
        // The broker may have hung up before.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Waits until the broker has shown once more that it lives, if nothing else comes first.
    pub fn pause_for_heartbeat(&mut self) {
        let before = self.heartbeats;
        while self.heartbeats == before {
            if let Some(frame) = self.try_read_once() {
                self.inbox.push_back(frame);
            }
        }
    }

    /// Hangs up without a word.
    pub fn drop_dead(self) {
        drop(self.stream);
    }

    /// A request that any open connection is answered: everything sent before it was taken.
    #[track_caller]
    pub fn sync(&mut self) {
        let id = self.request_bare(FrameKind::TenantList, 0);
        self.wait(|f| f.kind() == FrameKind::Done && f.header.sequence == id);
        self.inbox
            .retain(|f| f.kind() != FrameKind::TenantInfo || f.header.sequence != id);
    }

    // Topology.

    #[track_caller]
    pub fn declare(&mut self, queue: &QueueDeclare<'_>) -> bool {
        let id = self.request(FrameKind::QueueDeclare, queue);
        self.done(id).0
    }

    #[track_caller]
    pub fn declare_exchange(&mut self, exchange: &ExchangeDeclare<'_>) -> bool {
        let id = self.request(FrameKind::ExchangeDeclare, exchange);
        self.done(id).0
    }

    /// Binds an exchange to an exchange.
    #[track_caller]
    pub fn bind_exchange(&mut self, exchange: &[u8], target: &[u8], key: &[u8]) -> bool {
        let bind = Bind {
            flags: ringpost_wire::control::BIND_TO_EXCHANGE,
            exchange,
            target,
            key,
            arguments: b"",
        };
        let id = self.request(FrameKind::Bind, &bind);
        self.done(id).0
    }

    #[track_caller]
    pub fn bind(&mut self, exchange: &[u8], queue: &[u8], key: &[u8], arguments: &[u8]) -> bool {
        let bind = Bind {
            flags: 0,
            exchange,
            target: queue,
            key,
            arguments,
        };
        let id = self.request(FrameKind::Bind, &bind);
        self.done(id).0
    }

    /// Deletes a queue; returns the messages dropped.
    #[track_caller]
    pub fn delete(&mut self, name: &[u8]) -> u32 {
        let id = self.request(FrameKind::QueueDelete, &Delete { flags: 0, name });
        self.done(id).1
    }

    #[track_caller]
    pub fn purge(&mut self, name: &[u8]) -> u32 {
        let id = self.request(FrameKind::QueuePurge, &Named { name });
        self.done(id).1
    }

    /// Purges a queue if it is there.
    #[track_caller]
    pub fn purge_if(&mut self, name: &[u8]) {
        let id = self.request(FrameKind::QueuePurge, &Named { name });
        self.answer(id);
    }

    #[track_caller]
    pub fn inspect(&mut self, name: &[u8]) -> Info {
        let id = self.request(FrameKind::QueueInspect, &Named { name });
        let frame = self.answer(id);
        assert_eq!(frame.kind(), FrameKind::QueueInfo, "{frame:?}");
        info(&frame)
    }

    #[track_caller]
    pub fn queues(&mut self) -> Vec<Info> {
        let id = self.request_bare(FrameKind::QueueList, 0);
        let mut queues = Vec::new();
        loop {
            let frame = self.answer(id);
            match frame.kind() {
                FrameKind::QueueInfo => queues.push(info(&frame)),
                FrameKind::Done => {
                    assert_eq!(frame.header.count as usize, queues.len());
                    return queues;
                }
                _ => panic!("{frame:?}"),
            }
        }
    }

    /// Moves to the core of a queue.
    #[track_caller]
    pub fn attach(&mut self, queue: &[u8]) {
        let id = self.request(FrameKind::Attach, &Attach { queue });
        let frame = self.answer(id);
        assert_eq!(frame.kind(), FrameKind::Attached, "{frame:?}");
        self.core = u16::try_from(frame.header.count).expect("a core");
    }

    /// Looks at a queue until what it holds fits.
    #[track_caller]
    pub fn until(&mut self, name: &[u8], fits: impl Fn(&Info) -> bool) -> Info {
        eventually(|| {
            let info = self.inspect(name);
            if fits(&info) {
                Ok(info)
            } else {
                Err(format!("it stays {info:?}"))
            }
        })
    }

    /// Looks for a queue until it is there.
    #[track_caller]
    pub fn until_there(&mut self, name: &[u8]) {
        eventually(|| {
            let is_there = self.queues().iter().any(|info| info.name == name);
            is_there.then_some(()).ok_or("it does not come")
        });
    }

    // Producing.

    #[track_caller]
    pub fn producer(&mut self, channel: u16, level: Level) -> Producer {
        self.producer_with(channel, level, 0)
    }

    #[track_caller]
    pub fn producer_with(&mut self, channel: u16, level: Level, flags: u8) -> Producer {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let open = ProducerOpen {
            producer: u64::from(std::process::id()) << 32 | number,
            epoch: 1,
            level: level as u8,
            flags,
            reserved: 0,
        };
        let id = self.request_on(FrameKind::ProducerOpen, channel, &open);
        let frame = self.answer(id);
        assert_eq!(frame.header.channel, channel);
        Producer::opened(&frame)
    }

    // Consuming.

    #[track_caller]
    pub fn consume(&mut self, channel: u16, open: &ConsumerOpen<'_>) {
        let id = self.request_on(FrameKind::ConsumerOpen, channel, open);
        let frame = self.answer(id);
        if frame.kind() == FrameKind::Failed {
            panic!("failed: {} {}", frame.code(), frame.reason());
        }
        assert_eq!(frame.kind(), FrameKind::ConsumerOpened, "{frame:?}");
        assert_eq!(frame.header.channel, channel);
    }

    /// The messages of the next delivery frame of a channel; a large message is put together.
    #[track_caller]
    pub fn delivered(&mut self, channel: u16) -> Vec<Delivery> {
        let frame = self.wait(|frame| {
            matches!(
                frame.kind(),
                FrameKind::Deliver | FrameKind::DeliverFragment | FrameKind::ConsumerClosed
            ) && frame.header.channel == channel
        });
        match frame.kind() {
            FrameKind::Deliver => deliveries(&frame),
            FrameKind::DeliverFragment => vec![self.put_together(&frame)],
            _ => panic!("the consumer ended: {}", frame.code()),
        }
    }

    fn put_together(&mut self, first: &Frame) -> Delivery {
        let mut frame = first.clone();
        let mut bytes = Vec::new();
        loop {
            let (head, rest) = DeliverHead::split(&frame.body).expect("a head");
            let (fragment, piece) = FragmentHead::split(rest).expect("a piece");
            assert_eq!(frame.header.count, 1, "P-46: {:?}", frame.header);
            assert_eq!(frame.header.sequence, first.header.sequence);
            assert_eq!(fragment.offset as usize, bytes.len());
            bytes.extend_from_slice(piece);
            if fragment.is_last() {
                let redelivered = frame.header.flags & DELIVER_REDELIVERED != 0;
                return delivery(&frame.header, &head, 0, redelivered, &bytes);
            }
            let channel = first.header.channel;
            frame = self.wait(|frame| {
                matches!(
                    frame.kind(),
                    FrameKind::Deliver | FrameKind::DeliverFragment
                ) && frame.header.channel == channel
            });
            assert_eq!(frame.kind(), FrameKind::DeliverFragment, "P-46");
        }
    }

    /// Exactly so many messages of a channel.
    #[track_caller]
    pub fn deliveries(&mut self, channel: u16, count: usize) -> Vec<Delivery> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.delivered(channel));
        }
        assert_eq!(all.len(), count, "more was delivered than expected");
        all
    }

    /// The deliveries of a channel that are here already: those of a consumer whose end was read.
    pub fn deliveries_before_end(&mut self, channel: u16) -> Vec<Delivery> {
        let is_one =
            |frame: &Frame| frame.kind() == FrameKind::Deliver && frame.header.channel == channel;
        let mut all = Vec::new();
        while let Some(idx) = self.inbox.iter().position(is_one) {
            let frame = self.inbox.remove(idx).expect("it was just found");
            all.extend(deliveries(&frame));
        }
        all
    }

    /// Whether a delivery of this channel is here already or comes before the answer to a request
    /// sent now.
    #[track_caller]
    pub fn nothing_delivered(&mut self, channel: u16) {
        self.sync();
        let found = self.inbox.iter().find(|frame| {
            matches!(
                frame.kind(),
                FrameKind::Deliver | FrameKind::DeliverFragment
            ) && frame.header.channel == channel
        });
        assert!(found.is_none(), "{:?}", found.map(|frame| frame.header));
    }

    /// Sends outcomes; returns the request's id, 0 without `SETTLE_CONFIRM`.
    pub fn settle(&mut self, channel: u16, flags: u8, ranges: &[(u64, u64)]) -> u64 {
        let id = if flags & 4 != 0 { self.next_id() } else { 0 };
        let header = FrameHeader {
            flags,
            count: ranges.len() as u32,
            ..FrameHeader::bare(FrameKind::Settle, channel, id)
        };
        let body: Vec<u8> = ranges
            .iter()
            .flat_map(|(first, last)| {
                SettleRange {
                    first: *first,
                    last: *last,
                }
                .encode()
            })
            .collect();
        self.send_frame(header, &body);
        id
    }

    /// Settles and waits until that survives a crash.
    #[track_caller]
    pub fn settle_surely(&mut self, channel: u16, outcome: u8, ranges: &[(u64, u64)]) {
        let id = self.settle(channel, outcome | 4, ranges);
        let frame = self.answer(id);
        assert_eq!(frame.kind(), FrameKind::Settled, "{frame:?}");
        assert_eq!(frame.header.channel, channel);
    }

    pub fn credit(&mut self, channel: u16, messages: u32, bytes: u64) {
        let credit = ConsumerCredit {
            bytes,
            messages,
            reserved: 0,
        };
        let header = FrameHeader::bare(FrameKind::ConsumerCredit, channel, 0);
        self.send(header, &credit);
    }

    pub fn get(&mut self, channel: u16, count: u32, wait_ms: u32) -> u64 {
        let id = self.next_id();
        let header = FrameHeader {
            count,
            ..FrameHeader::bare(FrameKind::Get, channel, id)
        };
        self.send(
            header,
            &Get {
                wait_ms,
                reserved: 0,
            },
        );
        id
    }

    /// What a `Get` brought, with everything that came before its end.
    #[track_caller]
    pub fn got(&mut self, channel: u16, id: u64) -> Vec<Delivery> {
        let done = self.answer(id);
        assert_eq!(done.kind(), FrameKind::GetDone, "{done:?}");
        self.deliveries(channel, done.header.count as usize)
    }

    /// Closes a consumer and waits for its last frame; what came before stays put aside.
    #[track_caller]
    pub fn close_consumer(&mut self, channel: u16) {
        let id = self.request_bare(FrameKind::ConsumerClose, channel);
        let frame = self.answer(id);
        assert_eq!(frame.kind(), FrameKind::ConsumerClosed, "{frame:?}");
        assert_eq!(frame.code(), Code::Normal);
    }

    /// The broker ends a consumer unasked: why.
    #[track_caller]
    pub fn consumer_closed(&mut self, channel: u16) -> Code {
        let frame = self.wait_on(FrameKind::ConsumerClosed, channel);
        assert_eq!(frame.header.sequence, 0, "nobody asked");
        frame.code()
    }
}

/// The messages of a `Deliver` frame.
pub fn deliveries(frame: &Frame) -> Vec<Delivery> {
    let (head, body) = DeliverHead::split(&frame.body).expect("a head");
    let redelivered = frame.header.flags & DELIVER_REDELIVERED != 0;
    assert_eq!(redelivered, head.delivery_count > 0, "P-47");
    let all: Vec<Delivery> = Messages::new(body)
        .enumerate()
        .map(|(idx, message)| {
            let message = message.expect("well formed");
            let bytes = &message.bytes[..message.envelope.length()];
            delivery(&frame.header, &head, idx as u64, redelivered, bytes)
        })
        .collect();
    assert_eq!(all.len(), frame.header.count as usize, "P-19");
    all
}

fn delivery(
    header: &FrameHeader,
    head: &DeliverHead,
    idx: u64,
    redelivered: bool,
    bytes: &[u8],
) -> Delivery {
    let message = envelope::open(bytes).expect("a message");
    message.check_crc().expect("its producer's checksum");
    Delivery {
        channel: header.channel,
        tag: header.sequence + idx,
        queue_sequence: head.queue_sequence + idx,
        count: head.delivery_count,
        redelivered,
        exchange: message.exchange().to_vec(),
        key: message.routing_key().to_vec(),
        payload: message.payload().to_vec(),
    }
}

fn info(frame: &Frame) -> Info {
    let info = QueueInfo::decode(&frame.body).expect("a body of its kind");
    Info {
        name: info.name.to_vec(),
        ready: info.ready,
        unacked: info.unacked,
        bytes: info.bytes,
        published: info.published,
        settled: info.settled,
        messages_max: info.messages_max,
        bytes_max: info.bytes_max,
        consumers: info.consumers,
        core: info.core,
        partition: info.partition,
        durability: info.durability,
    }
}

/// The payloads of deliveries.
pub fn payloads(deliveries: &[Delivery]) -> Vec<&[u8]> {
    deliveries.iter().map(|d| d.payload.as_slice()).collect()
}

/// A producer that keeps to its credit.
#[derive(Debug)]
pub struct Producer {
    pub channel: u16,
    /// Sequence of the next publish.
    pub next: u64,
    pub messages: u64,
    pub bytes: u64,
    pub used_messages: u64,
    pub used_bytes: u64,
    /// Everything up to here has its outcome.
    pub confirmed: u64,
    /// Level of the last confirm.
    pub level: Option<Level>,
    /// Ranges refused, with the code.
    pub refused: Vec<(u64, u64, Code)>,
}

impl Producer {
    /// A producer that was opened so.
    #[track_caller]
    pub fn opened(frame: &Frame) -> Self {
        assert_eq!(frame.kind(), FrameKind::ProducerOpened, "{frame:?}");
        let opened = ProducerOpened::decode(&frame.body).expect("a body of its kind");
        Self {
            channel: frame.header.channel,
            next: opened.sequence,
            messages: opened.messages,
            bytes: opened.bytes,
            used_messages: 0,
            used_bytes: 0,
            confirmed: opened.sequence - 1,
            level: None,
            refused: Vec::new(),
        }
    }

    /// Takes one frame of its channel; panics if the producer was closed.
    #[track_caller]
    pub fn hear(&mut self, frame: &Frame) {
        match frame.kind() {
            FrameKind::Confirm => {
                assert!(frame.header.sequence > self.confirmed, "P-35: cumulative");
                assert!(frame.header.sequence < self.next, "P-35: not published");
                self.confirmed = frame.header.sequence;
                self.level = Level::from_number(frame.header.flags);
                self.raise(frame);
            }
            FrameKind::ProducerCredit => self.raise(frame),
            FrameKind::Refused => {
                let first = frame.header.sequence;
                assert!(first > self.confirmed, "P-35: refused before the confirm");
                assert!(frame.header.count > 0);
                let last = first + u64::from(frame.header.count) - 1;
                assert!(last < self.next, "P-35: not published");
                assert!(!frame.reason().is_empty());
                self.refused.push((first, last, frame.code()));
            }
            _ => panic!("{frame:?}"),
        }
    }

    fn raise(&mut self, frame: &Frame) {
        let credit = ProducerCredit::decode(&frame.body).expect("a body of its kind");
        self.messages = self.messages.max(credit.messages);
        self.bytes = self.bytes.max(credit.bytes);
    }

    /// Waits for the next word about this producer.
    #[track_caller]
    pub fn wait(&mut self, wire: &mut Wire) {
        let channel = self.channel;
        let frame = wire.wait(|frame| {
            matches!(
                frame.kind(),
                FrameKind::Confirm
                    | FrameKind::Refused
                    | FrameKind::ProducerCredit
                    | FrameKind::ProducerClosed
            ) && frame.header.channel == channel
        });
        self.hear(&frame);
    }

    /// Whether so much more may be published now.
    pub fn may_publish(&self, messages: u64, bytes: u64) -> bool {
        self.used_messages + messages <= self.messages
            && self.used_bytes + padded(bytes as usize) as u64 <= self.bytes
    }

    /// Waits until so much more may be published.
    #[track_caller]
    pub fn reserve(&mut self, wire: &mut Wire, messages: u64, bytes: u64) {
        while !self.may_publish(messages, bytes) {
            self.wait(wire);
        }
        self.used_messages += messages;
        self.used_bytes += padded(bytes as usize) as u64;
    }

    /// Publishes messages as credit allows: in frames, large ones in fragments. Returns the sequence
    /// of the first.
    #[track_caller]
    pub fn publish(&mut self, wire: &mut Wire, flags: u8, parts: &[MessageParts<'_>]) -> u64 {
        let first = self.next;
        let mut body = Vec::new();
        let mut count = 0;
        for part in parts {
            let bytes = part.padded_length();
            if part.length() > FRAGMENT_BYTES_MAX {
                self.flush(wire, flags, &mut body, &mut count);
                self.publish_large(wire, flags, &message(part));
                continue;
            }
            let full = FRAME_HEADER_BYTES + body.len() + bytes > FRAME_BYTES_MAX;
            let short = self.used_messages + count + 1 > self.messages
                || self.used_bytes + (body.len() + bytes) as u64 > self.bytes;
            if full || short {
                self.flush(wire, flags, &mut body, &mut count);
            }
            part.write(&mut body).expect("within the limits");
            count += 1;
        }
        self.flush(wire, flags, &mut body, &mut count);
        first
    }

    #[track_caller]
    fn flush(&mut self, wire: &mut Wire, flags: u8, body: &mut Vec<u8>, count: &mut u64) {
        if *count > 0 {
            self.reserve(wire, *count, body.len() as u64);
            let header = FrameHeader {
                flags,
                count: *count as u32,
                ..FrameHeader::bare(FrameKind::Publish, self.channel, self.next)
            };
            wire.send_frame(header, body);
            self.next += *count;
        }
        body.clear();
        *count = 0;
    }

    /// A message in pieces, until it is refused.
    #[track_caller]
    pub fn publish_large(&mut self, wire: &mut Wire, flags: u8, message: &[u8]) {
        self.next += 1;
        let sequence = self.next - 1;
        for (idx, piece) in message.chunks(FRAGMENT_BYTES_MAX).enumerate() {
            let (messages, bytes) = (u64::from(idx == 0), padded(piece.len()) as u64);
            while !self.may_publish(messages, bytes) {
                self.wait(wire);
            }
            if self.refused.iter().any(|refused| refused.1 == sequence) {
                return;
            }
            self.reserve(wire, messages, bytes);
            let offset = idx * FRAGMENT_BYTES_MAX;
            self.send_piece_of(sequence, wire, flags, message.len(), offset, piece);
        }
    }

    /// One piece of a large message, whatever credit says.
    pub fn send_piece(
        &self,
        wire: &mut Wire,
        flags: u8,
        message_bytes: usize,
        offset: usize,
        piece: &[u8],
    ) {
        self.send_piece_of(self.next, wire, flags, message_bytes, offset, piece);
    }

    fn send_piece_of(
        &self,
        sequence: u64,
        wire: &mut Wire,
        flags: u8,
        message_bytes: usize,
        offset: usize,
        piece: &[u8],
    ) {
        let head = FragmentHead {
            message_bytes: message_bytes as u32,
            offset: offset as u32,
        };
        let mut body = head.encode().to_vec();
        body.extend_from_slice(piece);
        let header = FrameHeader {
            flags,
            count: 1,
            ..FrameHeader::bare(FrameKind::PublishFragment, self.channel, sequence)
        };
        wire.send_frame(header, &body);
    }

    /// Waits until everything published has its outcome.
    #[track_caller]
    pub fn settle(&mut self, wire: &mut Wire) {
        while self.confirmed + 1 < self.next {
            self.wait(wire);
        }
    }

    /// Publishes and waits until all of it is confirmed, nothing refused.
    #[track_caller]
    pub fn confirm(&mut self, wire: &mut Wire, parts: &[MessageParts<'_>]) -> u64 {
        let first = self.publish(wire, 0, parts);
        self.settle(wire);
        assert_eq!(self.refused, [], "nothing is refused");
        first
    }

    /// Publishes one message that is refused: why.
    #[track_caller]
    pub fn refused(&mut self, wire: &mut Wire, flags: u8, part: MessageParts<'_>) -> Code {
        let sequence = self.publish(wire, flags, &[part]);
        self.settle(wire);
        let refused = self.refused.pop();
        let Some((first, last, code)) = refused else {
            panic!("it was confirmed")
        };
        assert_eq!((first, last), (sequence, sequence));
        code
    }

    /// Closes it in order.
    #[track_caller]
    pub fn close(mut self, wire: &mut Wire) -> Self {
        let id = wire.request_bare(FrameKind::ProducerClose, self.channel);
        loop {
            let channel = self.channel;
            let frame = wire.wait(|frame| frame.header.channel == channel);
            if frame.kind() == FrameKind::ProducerClosed {
                assert_eq!(frame.header.sequence, id);
                assert_eq!(frame.code(), Code::Normal);
                return self;
            }
            self.hear(&frame);
        }
    }
}
