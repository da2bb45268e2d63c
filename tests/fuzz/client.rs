//! A client that keeps to the rules, on a [`Shell`]. Does not know what it is used to prove.

use ringpost_engine::ConnId;
use ringpost_wire::control::{Body, ConsumerOpen, Durability, Hello, Level, PARTITION_BY_NAME};
use ringpost_wire::control::{ProducerOpen, ProducerOpened, QueueDeclare};
use ringpost_wire::version::MAGIC;
use ringpost_wire::{FrameHeader, FrameKind, MessageParts, frame};

use crate::shell::{Heard, Shell};

/// Channel of its producer; consumers have those above it.
pub const PRODUCER: u16 = 1;

/// A client that keeps to the rules.
#[derive(Debug)]
pub struct Client {
    /// Its connection.
    pub conn: ConnId,
    /// What the broker said to it.
    pub said: Vec<Heard>,
    /// Sequence of the next publish.
    next: u64,
    /// The last one confirmed.
    confirmed: u64,
    request: u64,
}

impl Client {
    /// Connects and says `Hello`.
    #[must_use]
    pub fn greet(shell: &mut Shell) -> Self {
        let conn = shell.open();
        let mut client = Self {
            conn,
            said: Vec::new(),
            next: 1,
            confirmed: 0,
            request: 0,
        };
        let hello = Hello {
            magic: MAGIC,
            version_min: 1,
            version_max: 1,
            heartbeat_ms: 0,
            message_bytes_max: 0,
            tenant: b"",
            client: b"fuzz",
        };
        client.ask(shell, FrameKind::Hello, 0, &hello);
        client
    }

    /// Sends a frame.
    pub fn send(&self, shell: &mut Shell, header: FrameHeader, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, body);
        shell.arrive(self.conn, &bytes);
    }

    /// Sends a request and waits until everything rests.
    pub fn ask<'a>(
        &mut self,
        shell: &mut Shell,
        kind: FrameKind,
        channel: u16,
        body: &impl Body<'a>,
    ) {
        self.request += 1;
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        self.send(
            shell,
            FrameHeader::bare(kind, channel, self.request),
            &bytes,
        );
        shell.rest();
        self.hear(shell);
    }

    /// Takes what was said to it.
    pub fn hear(&mut self, shell: &mut Shell) {
        for heard in shell.take_heard() {
            if heard.conn != self.conn {
                continue;
            }
            if heard.header.kind == FrameKind::Confirm {
                self.confirmed = self.confirmed.max(heard.header.sequence);
            }
            self.said.push(heard);
        }
    }

    /// Whether everything it published was confirmed.
    #[must_use]
    pub const fn is_confirmed(&self) -> bool {
        self.confirmed + 1 == self.next
    }

    /// Declares a durable queue.
    pub fn declare_queue(&mut self, shell: &mut Shell, name: &[u8]) {
        let declare = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: Durability::Durable as u8,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name,
            arguments: b"",
        };
        self.ask(shell, FrameKind::QueueDeclare, 0, &declare);
    }

    /// Opens its producer, whose confirms are durable.
    ///
    /// # Panics
    /// If the broker does not open it.
    pub fn open_producer(&mut self, shell: &mut Shell) {
        let open = ProducerOpen {
            producer: 0xF0,
            epoch: 1,
            level: Level::Durable as u8,
            flags: 0,
            reserved: 0,
        };
        self.ask(shell, FrameKind::ProducerOpen, PRODUCER, &open);
        let opened = self.said.iter().rev();
        let mut opened = opened.filter(|heard| heard.header.kind == FrameKind::ProducerOpened);
        let opened = opened.next().expect("a producer opens");
        let opened = ProducerOpened::decode(&opened.body).expect("read");
        self.next = opened.sequence;
        self.confirmed = self.next - 1;
    }

    /// Publishes through the default exchange, without waiting.
    ///
    /// # Panics
    /// If a payload is too large.
    pub fn publish(&mut self, shell: &mut Shell, queue: &[u8], payloads: &[Vec<u8>]) {
        let mut body = Vec::new();
        let header = FrameHeader {
            count: payloads.len() as u32,
            ..FrameHeader::bare(FrameKind::Publish, PRODUCER, self.next)
        };
        for payload in payloads {
            let parts = MessageParts {
                routing_key: queue,
                payload,
                ..MessageParts::default()
            };
            parts.write(&mut body).expect("its parts are small");
        }
        self.next += u64::from(header.count);
        self.send(shell, header, &body);
    }

    /// Opens a consumer with all the credit there is.
    pub fn open_consumer(&mut self, shell: &mut Shell, channel: u16, queue: &[u8]) {
        let open = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: 100_000,
            flags: 0,
            queue,
            arguments: b"",
        };
        self.ask(shell, FrameKind::ConsumerOpen, channel, &open);
    }
}
