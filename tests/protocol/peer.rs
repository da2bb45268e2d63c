//! One raw connection to a broker of two cores in this process, frame by frame. Uses the wire crate for
//! bytes; does not know the client crate, nor what a broker ought to answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringpost::boot;
use ringpost::config::{Config, Sources};
use ringpost_wire::control::{
    Bind, Body, ConsumerOpen, Durability, ExchangeDeclare, ExchangeKind, Failure, Get, Hello,
    Level, Named, PARTITION_BY_NAME, ProducerCredit, ProducerOpen, ProducerOpened, QueueDeclare,
    QueueInfo,
};
use ringpost_wire::header::{DONE_CHANGED, SETTLE_CONFIRM};
use ringpost_wire::version::MAGIC;
use ringpost_wire::{
    Code, Cut, DeliverHead, FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader,
    FrameKind, MessageParts, Messages, SettleRange, cut, frame,
};

/// How long an answer may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The broker that all tests share; it goes with the process.
pub(crate) fn broker() -> SocketAddr {
    static BROKER: OnceLock<(boot::Running, tempfile::TempDir)> = OnceLock::new();
    let (running, _) = BROKER.get_or_init(|| {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let flags = vec![
            ("listen", "127.0.0.1:0".to_owned()),
            ("admin_listen", "127.0.0.1:0".to_owned()),
            ("data_dir", directory.path().display().to_string()),
            ("cores", "2".to_owned()),
            ("cpus", "off".to_owned()),
            ("memory", "192MiB".to_owned()),
            ("segment_bytes", "4MiB".to_owned()),
            ("connections_max", "64".to_owned()),
        ];
        let sources = Sources {
            flags,
            ..Sources::default()
        };
        let config = Config::resolve(&sources).expect("good settings");
        let running = boot::start(config, None).unwrap_or_else(|error| panic!("{error}"));
        (running, directory)
    });
    running.addr()
}

/// A name that no other test uses.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{what}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A frame that was received.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: FrameHeader,
    pub(crate) body: Vec<u8>,
}

impl Frame {
    pub(crate) fn code(&self) -> Code {
        Code::from_number(Failure::decode(&self.body).expect("a failure").code)
    }

    /// The payloads of a delivery.
    pub(crate) fn payloads(&self) -> Vec<Vec<u8>> {
        let (_, messages) = self.delivery();
        Messages::new(messages)
            .map(|message| message.expect("a message").envelope.payload().to_vec())
            .collect()
    }

    pub(crate) fn delivery(&self) -> (DeliverHead, &[u8]) {
        assert_eq!(self.header.kind, FrameKind::Deliver);
        DeliverHead::split(&self.body).expect("a delivery")
    }
}

/// One connection, frame by frame.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    pub(crate) received: Vec<u8>,
    pub(crate) request: u64,
}

impl Peer {
    pub(crate) fn dial() -> Self {
        let stream = TcpStream::connect(broker()).expect("the broker listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self {
            stream,
            received: Vec::new(),
            request: 0,
        }
    }

    /// Dials and says hello to a tenant.
    pub(crate) fn of_tenant(tenant: &str) -> Self {
        let mut peer = Self::dial();
        let hello = Hello {
            tenant: tenant.as_bytes(),
            ..hello()
        };
        peer.body(FrameKind::Hello, 0, 0, &hello);
        assert_eq!(peer.next().header.kind, FrameKind::Welcome);
        peer
    }

    pub(crate) fn connect() -> Self {
        Self::of_tenant("")
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    pub(crate) fn frame(&mut self, header: FrameHeader, body: &[u8]) {
        let mut out = Vec::new();
        frame::write(&mut out, header, body);
        self.send(&out);
    }

    pub(crate) fn bare(&mut self, kind: FrameKind, channel: u16, sequence: u64) {
        self.frame(FrameHeader::bare(kind, channel, sequence), &[]);
    }

    pub(crate) fn body<'a>(
        &mut self,
        kind: FrameKind,
        channel: u16,
        sequence: u64,
        body: &impl Body<'a>,
    ) {
        let mut out = Vec::new();
        body.write(&mut out, FrameHeader::bare(kind, channel, sequence));
        self.send(&out);
    }

    /// Sends a request; its answer is to be taken with `next`.
    pub(crate) fn ask<'a>(&mut self, kind: FrameKind, channel: u16, body: &impl Body<'a>) -> u64 {
        self.request += 1;
        self.body(kind, channel, self.request, body);
        self.request
    }

    /// Sends a request and takes its answer.
    pub(crate) fn call<'a>(
        &mut self,
        kind: FrameKind,
        channel: u16,
        body: &impl Body<'a>,
    ) -> Frame {
        let request = self.ask(kind, channel, body);
        let answer = self.next();
        assert_eq!(answer.header.sequence, request, "{answer:?}");
        answer
    }

    /// The next frame that is no heartbeat; `None` when the broker has hung up.
    pub(crate) fn try_next(&mut self) -> Option<Frame> {
        loop {
            if let Cut::Complete { header, length } = cut(&self.received, FRAME_BYTES_MAX) {
                let bytes: Vec<u8> = self.received.drain(..length).collect();
                let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
                let body = bytes[FRAME_HEADER_BYTES..end].to_vec();
                let covered = frame::covered(header.kind, &body);
                assert_eq!(header.body_crc, ringpost_wire::checksum::crc32c(covered));
                if header.kind == FrameKind::Heartbeat {
                    continue;
                }
                return Some(Frame { header, body });
            }
            let mut bytes = [0; 64 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    pub(crate) fn next(&mut self) -> Frame {
        self.try_next().expect("the connection is up")
    }

    pub(crate) fn expect(&mut self, kind: FrameKind) -> Frame {
        let frame = self.next();
        assert_eq!(frame.header.kind, kind, "{frame:?}");
        frame
    }

    /// Expects that the broker closes the connection and says why.
    pub(crate) fn closed_with(mut self, code: Code) {
        let last = self.expect(FrameKind::Close);
        assert_eq!(last.code(), code);
        assert!(self.try_next().is_none(), "who says Close hangs up");
        // Nobody else has suffered.
        Peer::connect();
    }

    pub(crate) fn failed_with(&mut self, code: Code) {
        assert_eq!(self.expect(FrameKind::Failed).code(), code);
    }

    /// `Done`, and whether it changed something.
    pub(crate) fn done(&mut self) -> bool {
        self.expect(FrameKind::Done).header.flags & DONE_CHANGED != 0
    }

    pub(crate) fn declare(&mut self, name: &str) {
        self.call(FrameKind::QueueDeclare, 0, &queue(name));
    }

    pub(crate) fn info(&mut self, name: &str) -> (u64, u64) {
        let answer = self.call(FrameKind::QueueInspect, 0, &named(name));
        let info = QueueInfo::decode(&answer.body).expect("an info");
        (info.ready, info.unacked)
    }

    pub(crate) fn producer(&mut self, channel: u16, level: Level) -> ProducerOpened {
        self.producer_as(channel, &producer(level))
    }

    /// Opens a producer and waits until it has credit (P-33).
    pub(crate) fn producer_as(&mut self, channel: u16, open: &ProducerOpen) -> ProducerOpened {
        let answer = self.call(FrameKind::ProducerOpen, channel, open);
        assert_eq!(answer.header.kind, FrameKind::ProducerOpened);
        let mut opened = ProducerOpened::decode(&answer.body).expect("an opening");
        while opened.messages == 0 || opened.bytes < FRAGMENT_BYTES_MAX as u64 {
            let told = self.expect(FrameKind::ProducerCredit);
            assert_eq!(told.header.channel, channel);
            let credit = ProducerCredit::decode(&told.body).expect("credit");
            (opened.messages, opened.bytes) = (credit.messages, credit.bytes);
        }
        opened
    }

    pub(crate) fn close_producer(&mut self, channel: u16) {
        self.bare(FrameKind::ProducerClose, channel, 999);
        let closed = self.expect(FrameKind::ProducerClosed);
        assert_eq!((closed.header.sequence, closed.code()), (999, Code::Normal));
    }

    pub(crate) fn publish(
        &mut self,
        channel: u16,
        sequence: u64,
        flags: u8,
        messages: &[MessageParts<'_>],
    ) {
        let mut body = Vec::new();
        for message in messages {
            message.write(&mut body).expect("within limits");
        }
        let header = FrameHeader {
            flags,
            count: messages.len() as u32,
            ..FrameHeader::bare(FrameKind::Publish, channel, sequence)
        };
        self.frame(header, &body);
    }

    /// Publishes to a queue through the default exchange and waits for the confirm.
    pub(crate) fn fill(&mut self, channel: u16, name: &str, payloads: &[&str]) {
        self.producer(channel, Level::Durable);
        let messages: Vec<_> = payloads.iter().map(|text| message(name, text)).collect();
        self.publish(channel, 1, 0, &messages);
        self.confirmed(payloads.len() as u64, Level::Durable);
        self.close_producer(channel);
    }

    /// Waits for the confirm of everything up to `sequence`; others may come before.
    pub(crate) fn confirmed(&mut self, sequence: u64, level: Level) {
        loop {
            let frame = self.next();
            if frame.header.kind == FrameKind::ProducerCredit {
                continue;
            }
            assert_eq!(frame.header.kind, FrameKind::Confirm, "{frame:?}");
            assert_eq!(frame.header.flags, level as u8);
            assert!(frame.header.sequence <= sequence);
            ProducerCredit::decode(&frame.body).expect("credit");
            if frame.header.sequence == sequence {
                return;
            }
        }
    }

    /// Waits for a refusal of one publish and the confirm that passes it.
    pub(crate) fn refused(&mut self, sequence: u64, code: Code) {
        loop {
            let frame = self.next();
            if frame.header.kind != FrameKind::ProducerCredit {
                assert_eq!(frame.header.kind, FrameKind::Refused, "{frame:?}");
                assert_eq!((frame.header.sequence, frame.header.count), (sequence, 1));
                assert_eq!(frame.code(), code);
                break;
            }
        }
        self.confirmed_past(sequence);
    }

    pub(crate) fn confirmed_past(&mut self, sequence: u64) {
        while self.expect(FrameKind::Confirm).header.sequence < sequence {}
    }

    pub(crate) fn consumer(&mut self, channel: u16, name: &str, credit: u32, flags: u32) {
        let open = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: credit,
            flags,
            queue: name.as_bytes(),
        };
        let answer = self.call(FrameKind::ConsumerOpen, channel, &open);
        assert_eq!(answer.header.kind, FrameKind::ConsumerOpened, "{answer:?}");
    }

    pub(crate) fn settle(&mut self, channel: u16, flags: u8, first: u64, last: u64) {
        self.request += 1;
        let confirmed = flags & SETTLE_CONFIRM != 0;
        let header = FrameHeader {
            flags,
            count: 1,
            ..FrameHeader::bare(
                FrameKind::Settle,
                channel,
                if confirmed { self.request } else { 0 },
            )
        };
        self.frame(header, &SettleRange { first, last }.encode());
    }

    /// Takes deliveries until there are `count` messages; their payloads.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        while payloads.len() < count {
            payloads.extend(self.next().payloads());
        }
        assert_eq!(payloads.len(), count);
        payloads
    }

    pub(crate) fn get(&mut self, channel: u16, count: u32, wait_ms: u32) -> (Vec<Frame>, u32) {
        self.request += 1;
        let mut body = Vec::new();
        Get {
            wait_ms,
            reserved: 0,
        }
        .encode(&mut body);
        let header = FrameHeader {
            count,
            ..FrameHeader::bare(FrameKind::Get, channel, self.request)
        };
        self.frame(header, &body);
        let mut deliveries = Vec::new();
        loop {
            let frame = self.next();
            match frame.header.kind {
                FrameKind::Deliver => deliveries.push(frame),
                FrameKind::GetDone => {
                    assert_eq!(frame.header.sequence, self.request);
                    return (deliveries, frame.header.count);
                }
                _ => panic!("{frame:?}"),
            }
        }
    }
}

pub(crate) fn hello() -> Hello<'static> {
    Hello {
        magic: MAGIC,
        version_min: 1,
        version_max: 1,
        heartbeat_ms: 0,
        message_bytes_max: 0,
        tenant: b"",
        client: b"a test",
    }
}

pub(crate) fn named(name: &str) -> Named<'_> {
    Named {
        name: name.as_bytes(),
    }
}

pub(crate) fn queue(name: &str) -> QueueDeclare<'_> {
    QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: Durability::Durable as u8,
        flags: 0,
        partition: PARTITION_BY_NAME,
        name: name.as_bytes(),
        arguments: b"",
    }
}

pub(crate) fn exchange(name: &str, kind: ExchangeKind) -> ExchangeDeclare<'_> {
    ExchangeDeclare {
        kind: kind as u8,
        durability: Durability::Durable as u8,
        flags: 0,
        reserved: 0,
        name: name.as_bytes(),
        arguments: b"",
    }
}

pub(crate) fn bind<'a>(exchange: &'a str, queue: &'a str, key: &'a str) -> Bind<'a> {
    Bind {
        exchange: exchange.as_bytes(),
        queue: queue.as_bytes(),
        key: key.as_bytes(),
        arguments: b"",
    }
}

pub(crate) fn producer(level: Level) -> ProducerOpen {
    static ID: AtomicU64 = AtomicU64::new(1);
    ProducerOpen {
        producer: ID.fetch_add(1, Ordering::Relaxed),
        epoch: 1,
        level: level as u8,
        flags: 0,
        reserved: 0,
    }
}

/// A message for a queue, by the default exchange.
pub(crate) fn message<'a>(queue: &'a str, payload: &'a str) -> MessageParts<'a> {
    MessageParts {
        routing_key: queue.as_bytes(),
        payload: payload.as_bytes(),
        ..MessageParts::default()
    }
}

impl Peer {
    /// Publish `refused` is refused as unroutable before everything up to `last` is confirmed.
    pub(crate) fn expect_mixed(&mut self, refused: u64, last: u64) {
        let mut has_refused = false;
        loop {
            let frame = self.next();
            match frame.header.kind {
                FrameKind::Refused => {
                    assert_eq!((frame.header.sequence, frame.header.count), (refused, 1));
                    assert_eq!(frame.code(), Code::Unroutable);
                    has_refused = true;
                }
                FrameKind::Confirm => {
                    assert!(has_refused || frame.header.sequence < refused);
                    if frame.header.sequence == last {
                        return;
                    }
                }
                _ => assert_eq!(frame.header.kind, FrameKind::ProducerCredit),
            }
        }
    }
}
