//! A blocking connection for what happens before and after the load: the handshake, attaching,
//! declaring and looking at queues. Does not carry messages.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringpost_wire::control::{
    Attach, Bind, Body, ConsumerOpen, Delete, Durability, ExchangeDeclare, ExchangeKind, Failure,
    Hello, Named, PARTITION_BY_NAME, QueueDeclare, QueueInfo, Welcome,
};
use ringpost_wire::{
    CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, Code, Cut, FRAME_BYTES_MAX, FRAME_HEADER_BYTES,
    FrameHeader, FrameKind, cut, frame, version,
};

use crate::{Error, Result};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection that asks one thing at a time.
#[derive(Debug)]
pub struct Link {
    socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    request: u64,
    /// Heartbeat interval that was agreed on.
    heartbeat: Duration,
}

/// What a queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Messages ready for delivery.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacked: u64,
}

impl Link {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// If nobody is there or the broker refuses.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(address).map_err(Error::io("cannot connect"))?;
        socket
            .set_nodelay(true)
            .map_err(Error::io("cannot set TCP_NODELAY"))?;
        socket
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .map_err(Error::io("cannot set a timeout"))?;
        let mut link = Self {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            request: 0,
            heartbeat: Duration::ZERO,
        };
        let hello = Hello {
            magic: version::MAGIC,
            version_min: version::VERSION_MIN,
            version_max: version::VERSION_MAX,
            heartbeat_ms: 0,
            message_bytes_max: 0,
            tenant: b"",
            client: b"ringpost-load",
        };
        let mut body = Vec::new();
        hello.encode(&mut body);
        link.write(FrameHeader::bare(FrameKind::Hello, 0, 0), &body)?;
        let (header, body) = link.read()?;
        if header.kind != FrameKind::Welcome {
            return Err(refusal("the connection", header, &body));
        }
        let welcome = Welcome::decode(&body).map_err(malformed)?;
        link.heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms));
        Ok(link)
    }

    /// Moves the connection to the core of a queue.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn attach(&mut self, queue: &str) -> Result<()> {
        let attach = Attach {
            queue: queue.as_bytes(),
        };
        self.ask("attaching", FrameKind::Attach, &attach, FrameKind::Attached)?;
        Ok(())
    }

    /// Creates a queue if it is not there.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn declare(&mut self, queue: &str, durability: Durability) -> Result<()> {
        self.declare_at(queue, durability, PARTITION_BY_NAME)
    }

    /// The same in a partition of its own choice, which lives on core `partition` mod cores.
    ///
    /// # Errors
    /// If the broker refuses, e.g. since the queue is there in another partition.
    pub fn declare_at(
        &mut self,
        queue: &str,
        durability: Durability,
        partition: u16,
    ) -> Result<()> {
        let declare = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: durability as u8,
            flags: 0,
            partition,
            name: queue.as_bytes(),
            arguments: b"",
        };
        let kind = FrameKind::QueueDeclare;
        self.ask("a queue", kind, &declare, FrameKind::Done)?;
        Ok(())
    }

    /// Creates an exchange if it is not there.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn declare_exchange(
        &mut self,
        exchange: &str,
        kind: ExchangeKind,
        durability: Durability,
    ) -> Result<()> {
        let declare = ExchangeDeclare {
            kind: kind as u8,
            durability: durability as u8,
            flags: 0,
            reserved: 0,
            name: exchange.as_bytes(),
            arguments: b"",
        };
        let kind = FrameKind::ExchangeDeclare;
        self.ask("an exchange", kind, &declare, FrameKind::Done)?;
        Ok(())
    }

    /// Binds a queue to an exchange.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn bind(&mut self, exchange: &str, queue: &str, key: &str, arguments: &[u8]) -> Result<()> {
        let bind = Bind {
            flags: 0,
            exchange: exchange.as_bytes(),
            target: queue.as_bytes(),
            key: key.as_bytes(),
            arguments,
        };
        self.ask("a binding", FrameKind::Bind, &bind, FrameKind::Done)?;
        Ok(())
    }

    /// Deletes a queue; whether it was there does not matter.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn delete(&mut self, queue: &str) -> Result<()> {
        self.delete_any("deleting a queue", FrameKind::QueueDelete, queue)
    }

    /// Deletes an exchange; whether it was there does not matter.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn delete_exchange(&mut self, exchange: &str) -> Result<()> {
        self.delete_any("deleting an exchange", FrameKind::ExchangeDelete, exchange)
    }

    fn delete_any(&mut self, what: &'static str, kind: FrameKind, name: &str) -> Result<()> {
        let delete = Delete {
            flags: 0,
            name: name.as_bytes(),
        };
        match self.ask(what, kind, &delete, FrameKind::Done) {
            Ok(_)
            | Err(Error::Refused {
                code: Some(Code::QueueUnknown | Code::ExchangeUnknown),
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What a queue holds.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn inspect(&mut self, queue: &str) -> Result<QueueState> {
        let named = Named {
            name: queue.as_bytes(),
        };
        let kind = FrameKind::QueueInspect;
        let body = self.ask("looking at a queue", kind, &named, FrameKind::QueueInfo)?;
        let info = QueueInfo::decode(&body).map_err(malformed)?;
        Ok(QueueState {
            ready: info.ready,
            unacked: info.unacked,
        })
    }

    /// The heartbeat interval that was agreed on.
    #[must_use]
    pub const fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// The socket, which nothing is waiting on.
    #[must_use]
    pub fn into_socket(self) -> TcpStream {
        assert!(self.input.is_empty(), "an answer is always read whole");
        self.socket
    }

    /// Opens a consumer on channel 1 that may be sent as much as a consumer can, and leaves what comes
    /// unread: it stalls.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn stall(&mut self, queue: &str) -> Result<()> {
        let open = ConsumerOpen {
            credit_bytes: CREDIT_BYTES_MAX,
            credit_messages: CREDIT_MESSAGES_MAX,
            flags: 0,
            queue: queue.as_bytes(),
            arguments: b"",
        };
        let (kind, answer) = (FrameKind::ConsumerOpen, FrameKind::ConsumerOpened);
        self.ask_on(1, "a consumer", kind, &open, answer)?;
        Ok(())
    }

    fn ask<'a>(
        &mut self,
        what: &'static str,
        kind: FrameKind,
        body: &impl Body<'a>,
        expected: FrameKind,
    ) -> Result<Vec<u8>> {
        self.ask_on(0, what, kind, body, expected)
    }

    fn ask_on<'a>(
        &mut self,
        channel: u16,
        what: &'static str,
        kind: FrameKind,
        body: &impl Body<'a>,
        expected: FrameKind,
    ) -> Result<Vec<u8>> {
        self.request += 1;
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        self.write(FrameHeader::bare(kind, channel, self.request), &bytes)?;
        loop {
            let (header, body) = self.read()?;
            if header.kind == expected {
                return Ok(body);
            }
            if header.kind != FrameKind::Heartbeat {
                return Err(refusal(what, header, &body));
            }
        }
    }

    fn write(&mut self, header: FrameHeader, body: &[u8]) -> Result<()> {
        self.output.clear();
        frame::write(&mut self.output, header, body);
        self.socket
            .write_all(&self.output)
            .map_err(Error::io("cannot send"))
    }

    fn read(&mut self) -> Result<(FrameHeader, Vec<u8>)> {
        loop {
            match cut(&self.input, FRAME_BYTES_MAX) {
                Cut::Complete { header, length } => {
                    let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
                    let body = self.input[FRAME_HEADER_BYTES..end].to_vec();
                    self.input.drain(..length);
                    return Ok((header, body));
                }
                Cut::Malformed(code) => return Err(malformed(code)),
                Cut::Incomplete { .. } => {}
            }
            let mut room = [0; 4096];
            let count = self
                .socket
                .read(&mut room)
                .map_err(Error::io("no answer from the broker"))?;
            if count == 0 {
                return Err(Error::Protocol("the broker hung up".into()));
            }
            self.input.extend_from_slice(&room[..count]);
        }
    }
}

fn malformed(code: Code) -> Error {
    Error::Protocol(format!("{code:?}"))
}

/// The error that a frame other than the expected one stands for.
#[must_use]
pub fn refusal(what: &'static str, header: FrameHeader, body: &[u8]) -> Error {
    match Failure::decode(body) {
        Ok(failure) => Error::Refused {
            what,
            code: Some(Code::from_number(failure.code)),
            reason: String::from_utf8_lossy(failure.reason).into_owned(),
        },
        Err(_) => Error::Protocol(format!("{:?} instead of {what}", header.kind)),
    }
}
