//! One connection to the broker: frames out at once, frames in when there are some. Does not know
//! what is published or consumed.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringpost_wire::control::{
    Attach, Bind, Body, Durability, ExchangeDeclare, ExchangeKind, Failure, Hello, Named,
    PARTITION_BY_NAME, QueueDeclare, QueueInfo, Welcome,
};
use ringpost_wire::{Code, Cut, FrameHeader, FrameKind, frame, version};

use crate::Outcome;

/// How long one look for frames waits.
const WAIT: Duration = Duration::from_millis(2);
/// How long a broker may take to answer or to read: far longer than any disk here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Silence after which a heartbeat is sent.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Bytes read at once.
const READ_BYTES: usize = 1 << 16;

/// A frame that arrived.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its body, checked against the header's checksum.
    pub body: Vec<u8>,
}

impl Frame {
    /// The reason in its `Failure` body.
    #[must_use]
    pub fn failure(&self) -> (Code, String) {
        match Failure::decode(&self.body) {
            Ok(failure) => (
                Code::from_number(failure.code),
                String::from_utf8_lossy(failure.reason).into_owned(),
            ),
            Err(code) => (code, "a failure that cannot be read".to_owned()),
        }
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    received: Vec<u8>,
    /// Bytes of `received` that were cut.
    cut: usize,
    /// Bytes that were ever cut.
    cut_total: u64,
    /// The last frame cut.
    last: Option<FrameHeader>,
    written: Instant,
    request: u64,
    /// Nothing more can be written: the peer is gone, but what it sent may still be read.
    is_mute: bool,
    /// Nothing more can be read.
    is_over: bool,
}

impl Link {
    /// Dials and shakes hands.
    ///
    /// # Errors
    /// Nobody answers, or not as the protocol says.
    pub fn open(address: &str) -> Outcome<Self> {
        let wrong = |error: io::Error| format!("cannot connect to {address}: {error}");
        let stream = TcpStream::connect(address).map_err(wrong)?;
        stream.set_nodelay(true).map_err(wrong)?;
        stream.set_read_timeout(Some(WAIT)).map_err(wrong)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(wrong)?;
        let mut link = Self {
            stream,
            received: Vec::new(),
            cut: 0,
            cut_total: 0,
            last: None,
            written: Instant::now(),
            request: 0,
            is_mute: false,
            is_over: false,
        };
        let hello = Hello {
            magic: version::MAGIC,
            version_min: version::VERSION_MIN,
            version_max: version::VERSION_MAX,
            heartbeat_ms: 0,
            message_bytes_max: 0,
            tenant: b"",
            client: b"ringpost-prove",
        };
        link.send(&hello, FrameHeader::bare(FrameKind::Hello, 0, 0));
        let answer = link.wait(|frame| frame.header.channel == 0)?;
        match answer.header.kind {
            FrameKind::Welcome => {
                Welcome::decode(&answer.body)
                    .map_err(|code| format!("a Welcome that is {code}"))?;
                Ok(link)
            }
            _ => Err(format!("not welcome: {:?}", answer.failure())),
        }
    }

    /// A new request id.
    pub fn request(&mut self) -> u64 {
        self.request += 1;
        self.request
    }

    /// Sends a frame with a body. If the peer is gone that shows when reading.
    pub fn send<'a>(&mut self, body: &impl Body<'a>, header: FrameHeader) {
        let mut bytes = Vec::new();
        body.write(&mut bytes, header);
        self.send_bytes(&bytes);
    }

    /// Sends a frame with bytes for a body.
    pub fn send_frame(&mut self, header: FrameHeader, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, body);
        self.send_bytes(&bytes);
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        if !self.is_mute {
            self.is_mute = self.stream.write_all(bytes).is_err();
            self.written = Instant::now();
        }
    }

    /// The next frame, or none within a moment.
    ///
    /// # Errors
    /// The connection has ended, or what came is no frame.
    pub fn receive(&mut self) -> Result<Option<Frame>, Ended> {
        if let Some(frame) = self.next_frame()? {
            return Ok(Some(frame));
        }
        if self.is_over {
            return Err(Ended::Lost);
        }
        if self.written.elapsed() > HEARTBEAT {
            self.send_frame(FrameHeader::bare(FrameKind::Heartbeat, 0, 0), &[]);
        }
        self.received.drain(..self.cut);
        self.cut = 0;
        let start = self.received.len();
        self.received.resize(start + READ_BYTES, 0);
        let read = self.stream.read(&mut self.received[start..]);
        self.received.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.is_over = true,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.is_over = true,
        }
        self.next_frame()
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, Ended> {
        let bytes = &self.received[self.cut..];
        match frame::cut(bytes, ringpost_wire::FRAME_BYTES_MAX) {
            Cut::Incomplete { .. } => Ok(None),
            Cut::Malformed(code) => Err(Ended::Wrong(format!(
                "the broker sent a {code} after {} bytes, behind {:?}: {:02x?}",
                self.cut_total,
                self.last,
                &bytes[..bytes.len().min(64)]
            ))),
            Cut::Complete { header, length } => {
                let start = ringpost_wire::FRAME_HEADER_BYTES;
                let body = bytes[start..start + header.body_bytes as usize].to_vec();
                if let Err(code) = frame::check_body(&header, &body) {
                    return Err(Ended::Wrong(format!("{:?}: {code}", header.kind)));
                }
                self.cut += length;
                self.cut_total += length as u64;
                self.last = Some(header);
                if header.kind == FrameKind::Close {
                    let frame = Frame { header, body };
                    let (code, reason) = frame.failure();
                    self.say_goodbye();
                    return Err(Ended::Closed(code, reason));
                }
                Ok(Some(Frame { header, body }))
            }
        }
    }

    /// Reads until a frame that `wanted` takes; all others but heartbeats are an error, so this is
    /// for connections without channels.
    fn wait(&mut self, wanted: impl Fn(&Frame) -> bool) -> Outcome<Frame> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.receive() {
                Ok(Some(frame)) if frame.header.kind == FrameKind::Heartbeat => {}
                Ok(Some(frame)) if wanted(&frame) => return Ok(frame),
                Ok(Some(frame)) => return Err(format!("unexpected {:?}", frame.header)),
                Ok(None) => {}
                Err(ended) => return Err(ended.to_string()),
            }
        }
        Err("the broker does not answer".to_owned())
    }

    fn ask<'a>(&mut self, kind: FrameKind, body: &impl Body<'a>) -> Outcome<Frame> {
        let id = self.request();
        self.send(body, FrameHeader::bare(kind, 0, id));
        let answer = self.wait(|frame| frame.header.sequence == id)?;
        if answer.header.kind == FrameKind::Failed {
            let (code, reason) = answer.failure();
            return Err(format!("{kind:?} failed: {code}: {reason}"));
        }
        Ok(answer)
    }

    /// Moves the connection to the core of a queue.
    ///
    /// # Errors
    /// The broker refuses, or is gone.
    pub fn attach(&mut self, queue: &str) -> Outcome<()> {
        let queue = queue.as_bytes();
        self.ask(FrameKind::Attach, &Attach { queue }).map(drop)
    }

    /// Declares a queue.
    ///
    /// # Errors
    /// The broker refuses, or is gone.
    pub fn declare_queue(&mut self, name: &str, durability: Durability) -> Outcome<()> {
        let declare = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: durability as u8,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name: name.as_bytes(),
            arguments: b"",
        };
        self.ask(FrameKind::QueueDeclare, &declare).map(drop)
    }

    /// Declares a durable exchange.
    ///
    /// # Errors
    /// The broker refuses, or is gone.
    pub fn declare_exchange(&mut self, name: &str, kind: ExchangeKind) -> Outcome<()> {
        let declare = ExchangeDeclare {
            kind: kind as u8,
            durability: Durability::Durable as u8,
            flags: 0,
            reserved: 0,
            name: name.as_bytes(),
            arguments: b"",
        };
        self.ask(FrameKind::ExchangeDeclare, &declare).map(drop)
    }

    /// Binds a queue to an exchange.
    ///
    /// # Errors
    /// The broker refuses, or is gone.
    pub fn bind(&mut self, exchange: &str, queue: &str, key: &str) -> Outcome<()> {
        let bind = Bind {
            flags: 0,
            exchange: exchange.as_bytes(),
            target: queue.as_bytes(),
            key: key.as_bytes(),
            arguments: b"",
        };
        self.ask(FrameKind::Bind, &bind).map(drop)
    }

    /// Ready and unsettled messages of a queue.
    ///
    /// # Errors
    /// The broker refuses, or is gone.
    pub fn inspect(&mut self, queue: &str) -> Outcome<(u64, u64)> {
        let name = queue.as_bytes();
        let answer = self.ask(FrameKind::QueueInspect, &Named { name })?;
        let info = QueueInfo::decode(&answer.body).map_err(|code| format!("QueueInfo: {code}"))?;
        Ok((info.ready, info.unacked))
    }

    fn say_goodbye(&mut self) {
        let normal = Failure {
            code: 0,
            reserved: 0,
            reason: b"",
        };
        self.send(&normal, FrameHeader::bare(FrameKind::Close, 0, 0));
        self.is_mute = true;
    }
}

/// How a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It is gone, without a word.
    Lost,
    /// The broker said goodbye.
    Closed(Code, String),
    /// The broker broke the protocol.
    Wrong(String),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost => f.write_str("the connection was lost"),
            Self::Closed(code, reason) => write!(f, "closed by the broker: {code}: {reason}"),
            Self::Wrong(what) => write!(f, "the broker broke the protocol: {what}"),
        }
    }
}
