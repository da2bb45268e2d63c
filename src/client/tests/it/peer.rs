//! A broker's end of one connection, played by hand: a test says what is received and sent.
//! Does not know queues; see `fake.rs` for a broker that plays by itself.

use bytes::{Bytes, BytesMut};
use ringpost_wire::control::{self, Body, ProducerOpened, Welcome};
use ringpost_wire::{
    Code, Cut, DeliverHead, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind,
    MessageParts, checksum, frame, version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the broker says in its `Welcome`.
#[derive(Clone, Copy, Debug)]
pub struct Greeting {
    pub version: u16,
    pub heartbeat_ms: u32,
    pub message_bytes_max: u32,
    pub channels_max: u16,
}

impl Default for Greeting {
    fn default() -> Self {
        Self {
            version: version::VERSION_MAX,
            heartbeat_ms: 10_000,
            message_bytes_max: ringpost_wire::MESSAGE_BYTES_MAX_DEFAULT,
            channels_max: 16,
        }
    }
}

/// A listener on a port of its own.
pub struct Door {
    listener: TcpListener,
}

impl Door {
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self { listener }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().expect("bound").to_string()
    }

    /// The next connection, before its handshake.
    pub async fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Peer {
            stream,
            received: BytesMut::new(),
        }
    }

    /// The next connection, after its handshake.
    pub async fn welcome(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.greet(Greeting::default()).await;
        peer
    }
}

/// One connection.
pub struct Peer {
    stream: TcpStream,
    received: BytesMut,
}

impl Peer {
    /// The next frame that is no heartbeat; `None` if the client hung up.
    pub async fn next(&mut self) -> Option<(FrameHeader, Bytes)> {
        loop {
            match ringpost_wire::cut(&self.received, FRAME_BYTES_MAX) {
                Cut::Complete { header, length } => {
                    let frame = self.received.split_to(length).freeze();
                    if header.kind == FrameKind::Heartbeat {
                        continue;
                    }
                    let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
                    return Some((header, frame.slice(FRAME_HEADER_BYTES..end)));
                }
                Cut::Incomplete { .. } => match self.stream.read_buf(&mut self.received).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                },
                Cut::Malformed(code) => panic!("the client sent no frame: {code}"),
            }
        }
    }

    /// The next frame, which must be of `kind`.
    pub async fn expect(&mut self, kind: FrameKind) -> (FrameHeader, Bytes) {
        let (header, body) = self.next().await.expect("a frame");
        assert_eq!(header.kind, kind, "{header:?}");
        (header, body)
    }

    /// Any next frame, heartbeats included.
    pub async fn expect_heartbeat(&mut self) {
        loop {
            match ringpost_wire::cut(&self.received, FRAME_BYTES_MAX) {
                Cut::Complete { header, length } => {
                    assert_eq!(header.kind, FrameKind::Heartbeat);
                    let _ = self.received.split_to(length);
                    return;
                }
                _ => assert_ne!(
                    self.stream
                        .read_buf(&mut self.received)
                        .await
                        .expect("bytes"),
                    0
                ),
            }
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("the client reads");
    }

    pub async fn send_body<'a>(&mut self, header: FrameHeader, body: &impl Body<'a>) {
        let mut out = Vec::new();
        body.write(&mut out, header);
        self.send(&out).await;
    }

    pub async fn greet(&mut self, greeting: Greeting) {
        self.expect(FrameKind::Hello).await;
        let welcome = Welcome {
            magic: version::MAGIC,
            version: greeting.version,
            core: 0,
            cores: 2,
            channels_max: greeting.channels_max,
            heartbeat_ms: greeting.heartbeat_ms,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            message_bytes_max: greeting.message_bytes_max,
            credit_messages_max: ringpost_wire::CREDIT_MESSAGES_MAX,
            connection: 1,
            server: b"fake 1",
        };
        self.send_body(FrameHeader::bare(FrameKind::Welcome, 0, 0), &welcome)
            .await;
    }

    pub async fn fail(&mut self, kind: FrameKind, channel: u16, sequence: u64, code: Code) {
        let mut out = Vec::new();
        let header = FrameHeader::bare(kind, channel, sequence);
        control::write_failure(&mut out, header, code, "because");
        self.send(&out).await;
    }

    pub async fn refuse(&mut self, channel: u16, sequence: u64, count: u32, code: Code) {
        let mut out = Vec::new();
        let header = FrameHeader {
            count,
            ..FrameHeader::bare(FrameKind::Refused, channel, sequence)
        };
        control::write_failure(&mut out, header, code, "because");
        self.send(&out).await;
    }

    /// Opens the producer that asks for it; returns its channel.
    pub async fn open_producer(&mut self, next: u64, messages: u64, bytes: u64) -> u16 {
        let (header, _) = self.expect(FrameKind::ProducerOpen).await;
        self.producer_opened(header.channel, next, messages, bytes)
            .await;
        header.channel
    }

    pub async fn producer_opened(&mut self, channel: u16, next: u64, messages: u64, bytes: u64) {
        let opened = ProducerOpened {
            sequence: next,
            messages,
            bytes,
        };
        let header = FrameHeader::bare(FrameKind::ProducerOpened, channel, 0);
        self.send_body(header, &opened).await;
    }

    pub async fn confirm(&mut self, channel: u16, through: u64, level: control::Level) {
        let credit = control::ProducerCredit {
            messages: 1_000,
            bytes: 1 << 30,
        };
        let header = FrameHeader {
            flags: level as u8,
            ..FrameHeader::bare(FrameKind::Confirm, channel, through)
        };
        self.send_body(header, &credit).await;
    }

    pub async fn credit(&mut self, channel: u16, messages: u64, bytes: u64) {
        let header = FrameHeader::bare(FrameKind::ProducerCredit, channel, 0);
        self.send_body(header, &control::ProducerCredit { messages, bytes })
            .await;
    }

    /// Attaches the connection and opens the consumer that asks for it; returns its channel.
    pub async fn open_consumer(&mut self) -> u16 {
        let (header, _) = self.expect(FrameKind::Attach).await;
        let attached = FrameHeader::bare(FrameKind::Attached, 0, header.sequence);
        let mut out = Vec::new();
        frame::write(&mut out, attached, &[]);
        self.send(&out).await;
        let (header, _) = self.expect(FrameKind::ConsumerOpen).await;
        self.bare(FrameKind::ConsumerOpened, header.channel, 0)
            .await;
        header.channel
    }

    pub async fn bare(&mut self, kind: FrameKind, channel: u16, sequence: u64) {
        let mut out = Vec::new();
        frame::write_bare(&mut out, kind, channel, sequence);
        self.send(&out).await;
    }

    pub async fn deliver(&mut self, channel: u16, first: u64, payloads: &[&[u8]]) {
        self.send(&delivery(channel, first, payloads)).await;
    }

    /// Waits until the client hangs up; what it still sends.
    pub async fn rest(&mut self) -> Vec<FrameHeader> {
        let mut headers = Vec::new();
        while let Some((header, _)) = self.next().await {
            headers.push(header);
        }
        headers
    }
}

/// One encoded message with its padding.
pub fn message(payload: &[u8]) -> Vec<u8> {
    let parts = MessageParts {
        routing_key: b"key",
        payload,
        ..MessageParts::default()
    };
    let mut out = Vec::new();
    parts.write(&mut out).expect("within limits");
    out
}

/// A `Deliver` frame.
pub fn delivery(channel: u16, first: u64, payloads: &[&[u8]]) -> Vec<u8> {
    let messages: Vec<u8> = payloads
        .iter()
        .flat_map(|payload| message(payload))
        .collect();
    deliver_frame(
        channel,
        first,
        payloads.len() as u32,
        0,
        &DeliverHead::default(),
        &messages,
    )
}

/// A `Deliver` frame around encoded messages.
pub fn deliver_frame(
    channel: u16,
    first: u64,
    count: u32,
    flags: u8,
    head: &DeliverHead,
    messages: &[u8],
) -> Vec<u8> {
    let head = head.encode();
    let header = FrameHeader {
        kind: FrameKind::Deliver,
        flags,
        channel,
        sequence: first,
        count,
        body_bytes: (head.len() + messages.len()) as u32,
        body_crc: checksum::crc32c(&head),
    };
    let mut out = Vec::with_capacity(header.length());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&head);
    out.extend_from_slice(messages);
    frame::pad(&mut out);
    out
}
