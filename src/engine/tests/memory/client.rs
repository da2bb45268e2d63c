//! Clients of a machine in memory: a producer whose messages go to its queues in turns, and a
//! consumer of many queues that settles what it got. Does not know what is measured.

#![allow(dead_code)]

use ringpost_engine::ConnId;
use ringpost_wire::control::{
    Bind, Body, ConsumerOpen, Durability, Hello, PARTITION_BY_NAME, ProducerCredit, ProducerOpen,
    ProducerOpened, QueueDeclare,
};
use ringpost_wire::header::{SETTLE_ACK, SETTLE_CONFIRM, SETTLE_REQUEUE};
use ringpost_wire::version::{MAGIC, VERSION_MAX};
use ringpost_wire::{
    Cut, DeliverHead, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, MessageParts,
    SettleRange, cut, frame,
};

use crate::machine::Machine;

/// A connection that has said hello.
pub fn greet(machine: &mut Machine, core: usize) -> ConnId {
    let conn = machine.connect(core);
    let hello = Hello {
        magic: MAGIC,
        version_min: VERSION_MAX,
        version_max: VERSION_MAX,
        heartbeat_ms: 600_000,
        message_bytes_max: 0,
        tenant: b"",
        client: b"memory",
    };
    let mut bytes = Vec::new();
    hello.write(&mut bytes, FrameHeader::bare(FrameKind::Hello, 0, 1));
    machine.send(core, conn, &bytes);
    machine.turn();
    machine.received(core, conn).clear();
    conn
}

/// Sends a request and waits for what is said then.
pub fn ask(machine: &mut Machine, core: usize, conn: ConnId, request: &[u8]) -> Vec<u8> {
    machine.send(core, conn, request);
    while machine.received(core, conn).is_empty() {
        machine.turn();
    }
    std::mem::take(machine.received(core, conn))
}

/// Declares durable queues and says their names. Those named `at` a partition live there.
pub fn declare(
    machine: &mut Machine,
    prefix: &str,
    count: u32,
    partition: Option<u16>,
) -> Vec<String> {
    let conn = greet(machine, 0);
    let names: Vec<String> = (0..count)
        .map(|number| format!("{prefix}{number}"))
        .collect();
    for name in &names {
        let declare = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: Durability::Durable as u8,
            flags: 0,
            partition: partition.unwrap_or(PARTITION_BY_NAME),
            name: name.as_bytes(),
            arguments: b"",
        };
        let mut bytes = Vec::new();
        declare.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDeclare, 0, 1));
        let answer = ask(machine, 0, conn, &bytes);
        let header = whole(&answer).0;
        assert_eq!(header.kind, FrameKind::Done, "{name} is declared");
    }
    names
}

/// Declares one durable queue in a partition, on a connection of the first core.
pub fn declare_at(machine: &mut Machine, conn: ConnId, name: &str, partition: u16) {
    let declare = QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: Durability::Durable as u8,
        flags: 0,
        partition,
        name: name.as_bytes(),
        arguments: b"",
    };
    let mut bytes = Vec::new();
    declare.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDeclare, 0, 1));
    let answer = ask(machine, 0, conn, &bytes);
    assert_eq!(whole(&answer).0.kind, FrameKind::Done, "{name} is declared");
}

/// Binds queues to an exchange.
pub fn bind(machine: &mut Machine, exchange: &str, queues: &[String]) {
    for queue in queues {
        topology(
            machine,
            FrameKind::Bind,
            &Bind {
                flags: 0,
                exchange: exchange.as_bytes(),
                target: queue.as_bytes(),
                key: b"",
                arguments: b"",
            },
        );
    }
}

/// Asks for a change of the topology, which must be made.
pub fn topology<'a>(machine: &mut Machine, kind: FrameKind, body: &impl Body<'a>) {
    let conn = greet(machine, 0);
    let mut bytes = Vec::new();
    body.write(&mut bytes, FrameHeader::bare(kind, 0, 1));
    let answer = ask(machine, 0, conn, &bytes);
    assert_eq!(whole(&answer).0.kind, FrameKind::Done, "it is done");
    machine.hang_up(0, conn);
}

/// The first frame of some bytes, its body, and what follows.
pub fn whole(bytes: &[u8]) -> (FrameHeader, &[u8], &[u8]) {
    let Cut::Complete { header, length } = cut(bytes, FRAME_BYTES_MAX) else {
        panic!("sockets here give whole frames");
    };
    let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
    (header, &bytes[FRAME_HEADER_BYTES..end], &bytes[length..])
}

/// A producer that publishes the same batch over and over: one message for each queue in turns.
pub struct Producer {
    core: usize,
    conn: ConnId,
    frames: Vec<Vec<u8>>,
    counts: Vec<u32>,
    turn: usize,
    sequence: u64,
    granted: (u64, u64),
    used: (u64, u64),
    /// Every publish up to this one has its confirm.
    pub confirmed: u64,
}

impl Producer {
    /// Opens one on a core; `batch` messages of `payload` bytes make a frame.
    pub fn open(
        machine: &mut Machine,
        core: usize,
        queues: &[String],
        batch: u32,
        payload: usize,
    ) -> Self {
        Self::open_to(machine, core, ("", queues), batch, payload)
    }

    /// The same with an exchange, and routing keys in turns.
    pub fn open_to(
        machine: &mut Machine,
        core: usize,
        (exchange, queues): (&str, &[String]),
        batch: u32,
        payload: usize,
    ) -> Self {
        let payload = vec![7; payload];
        let mut frames = Vec::new();
        let mut counts = Vec::new();
        let mut turn = 0;
        // Until the queues come round to where they began.
        loop {
            let mut body = Vec::new();
            let mut count = 0;
            while count < batch {
                let parts = MessageParts {
                    exchange: exchange.as_bytes(),
                    routing_key: queues[turn % queues.len()].as_bytes(),
                    payload: &payload,
                    ..MessageParts::default()
                };
                if body.len() + parts.padded_length() + FRAME_HEADER_BYTES > FRAME_BYTES_MAX {
                    break;
                }
                parts.write(&mut body).expect("within limits");
                turn += 1;
                count += 1;
            }
            frames.push(publish_frame(&body, count));
            counts.push(count);
            if turn % queues.len() == 0 || frames.len() == 64 {
                break;
            }
        }
        let frames = frames.into_iter().zip(counts).collect();
        Self::open_with(machine, core, 77 + core as u64, frames)
    }

    /// The same with `Publish` frames as they are to be sent, and how many messages are in each; 0 is a
    /// producer that nobody knows again.
    pub fn open_with(
        machine: &mut Machine,
        core: usize,
        producer: u64,
        frames: Vec<(Vec<u8>, u32)>,
    ) -> Self {
        let conn = greet(machine, core);
        let open = ProducerOpen {
            producer,
            epoch: u32::from(producer > 0),
            level: 2,
            flags: 0,
            reserved: 0,
        };
        let mut bytes = Vec::new();
        open.write(&mut bytes, FrameHeader::bare(FrameKind::ProducerOpen, 1, 1));
        // Other cores are asked first what they know of it.
        let answer = ask(machine, core, conn, &bytes);
        let (_, body, _) = whole(&answer);
        let opened = ProducerOpened::decode(body).expect("it is open");
        let (frames, counts) = frames.into_iter().unzip();
        Self {
            core,
            conn,
            frames,
            counts,
            turn: 0,
            sequence: 1,
            granted: (opened.messages, opened.bytes),
            used: (0, 0),
            confirmed: 0,
        }
    }

    /// Publishes a batch if there is credit and fewer than `window` messages wait for their confirm;
    /// says how many messages it was.
    pub fn publish(&mut self, machine: &mut Machine, window: u64) -> u32 {
        self.hear(machine);
        let at = self.turn % self.frames.len();
        let (frame, count) = (&mut self.frames[at], self.counts[at]);
        let body_bytes = (frame.len() - FRAME_HEADER_BYTES) as u64;
        let used = (self.used.0 + u64::from(count), self.used.1 + body_bytes);
        let waiting = self.sequence - 1 - self.confirmed;
        if used.0 > self.granted.0 || used.1 > self.granted.1 || waiting >= window {
            return 0;
        }
        let (header, _, _) = whole(frame);
        let header = FrameHeader {
            sequence: self.sequence,
            ..header
        };
        frame[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        machine.send(self.core, self.conn, frame);
        self.used = used;
        self.sequence += u64::from(count);
        self.turn += 1;
        count
    }

    /// Messages published.
    pub fn published(&self) -> u64 {
        self.sequence - 1
    }

    fn hear(&mut self, machine: &mut Machine) {
        let received = machine.received(self.core, self.conn);
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let (header, body, after) = whole(rest);
            match header.kind {
                FrameKind::Confirm | FrameKind::ProducerCredit => {
                    let credit = ProducerCredit::decode(body).expect("credit");
                    self.granted = (credit.messages, credit.bytes);
                    if header.kind == FrameKind::Confirm {
                        self.confirmed = header.sequence;
                    }
                }
                kind => panic!("a producer got {kind:?}"),
            }
            rest = after;
        }
        received.clear();
    }
}

/// A `Publish` frame of messages that were written back to back; its sequence is set when it is sent.
pub fn publish_frame(body: &[u8], count: u32) -> Vec<u8> {
    let header = FrameHeader {
        count,
        ..FrameHeader::bare(FrameKind::Publish, 1, 0)
    };
    let mut frame = Vec::new();
    frame::write(&mut frame, header, body);
    frame
}

/// One connection that consumes from many queues.
pub struct Consumer {
    core: usize,
    conn: ConnId,
    /// Channels that are open.
    opened: usize,
    /// Highest tag delivered on each channel, and settled.
    tags: Vec<(u64, u64)>,
    touched: Vec<u16>,
    out: Vec<u8>,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages delivered again.
    pub redelivered: u64,
    /// Frames they came in.
    pub frames: u64,
}

impl Consumer {
    /// Opens a consumer of each queue, all on one connection of a core.
    pub fn open(machine: &mut Machine, core: usize, queues: &[String], credit: u32) -> Self {
        Self::open_with(machine, core, queues, credit, b"")
    }

    /// The same with arguments, an AMQP field table.
    pub fn open_with(
        machine: &mut Machine,
        core: usize,
        queues: &[String],
        credit: u32,
        arguments: &[u8],
    ) -> Self {
        let conn = greet(machine, core);
        for (number, queue) in queues.iter().enumerate() {
            let open = ConsumerOpen {
                credit_bytes: 64 << 20,
                credit_messages: credit,
                flags: 0,
                queue: queue.as_bytes(),
                arguments,
            };
            let channel = number as u16 + 1;
            let mut bytes = Vec::new();
            open.write(
                &mut bytes,
                FrameHeader::bare(FrameKind::ConsumerOpen, channel, 1),
            );
            machine.send(core, conn, &bytes);
        }
        let mut consumer = Self {
            core,
            conn,
            opened: 0,
            tags: vec![(0, 0); queues.len()],
            touched: Vec::new(),
            out: Vec::new(),
            delivered: 0,
            redelivered: 0,
            frames: 0,
        };
        while consumer.opened < queues.len() {
            machine.turn();
            consumer.work(machine, false);
        }
        consumer
    }

    /// Acks the next message of its first channel, which was delivered and not taken yet, and asks to
    /// be told when that is on disk.
    pub fn ack_durably(&mut self, machine: &mut Machine) {
        let header = FrameHeader {
            count: 1,
            flags: SETTLE_ACK | SETTLE_CONFIRM,
            ..FrameHeader::bare(FrameKind::Settle, 1, 9)
        };
        let last = self.tags[0].0 + 1;
        let range = SettleRange { first: last, last };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, &range.encode());
        machine.send(self.core, self.conn, &bytes);
    }

    /// Closes the consumer of its first channel.
    pub fn close(&mut self, machine: &mut Machine) {
        let mut bytes = Vec::new();
        frame::write_bare(&mut bytes, FrameKind::ConsumerClose, 1, 10);
        machine.send(self.core, self.conn, &bytes);
    }

    /// Its connection is gone.
    pub fn hang_up(self, machine: &mut Machine) {
        machine.hang_up(self.core, self.conn);
    }

    /// What kinds of frames its first channel got since this was last asked.
    pub fn told(&mut self, machine: &mut Machine) -> Vec<FrameKind> {
        let received = machine.received(self.core, self.conn);
        let mut kinds = Vec::new();
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let (header, _, after) = whole(rest);
            if header.channel == 1 {
                kinds.push(header.kind);
            }
            rest = after;
        }
        received.clear();
        kinds
    }

    /// Whether it was told. Drops what was delivered.
    pub fn is_settled(&mut self, machine: &mut Machine) -> bool {
        let received = machine.received(self.core, self.conn);
        let mut is_told = false;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let (header, _, after) = whole(rest);
            is_told |= header.kind == FrameKind::Settled && header.sequence == 9;
            rest = after;
        }
        received.clear();
        is_told
    }

    /// Takes what was delivered and settles it: `requeue` of every channel's last message, the rest
    /// is acked.
    pub fn work(&mut self, machine: &mut Machine, requeue: bool) -> u64 {
        let before = self.delivered;
        let received = machine.received(self.core, self.conn);
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let (header, body, after) = whole(rest);
            rest = after;
            match header.kind {
                FrameKind::ConsumerOpened => {
                    self.opened += 1;
                    continue;
                }
                // Where a reader of a stream begins.
                FrameKind::ConsumerPosition => continue,
                _ => {}
            }
            assert_eq!(header.kind, FrameKind::Deliver);
            DeliverHead::split(body).expect("it was written by us");
            let (tag, settled) = &mut self.tags[usize::from(header.channel) - 1];
            assert_eq!(header.sequence, *tag + 1, "tags have no gap");
            if tag == settled {
                self.touched.push(header.channel);
            }
            *tag += u64::from(header.count);
            self.delivered += u64::from(header.count);
            if header.flags != 0 {
                self.redelivered += u64::from(header.count);
            }
            self.frames += 1;
        }
        received.clear();
        self.out.clear();
        for channel in self.touched.drain(..) {
            let (tag, settled) = &mut self.tags[usize::from(channel) - 1];
            let mut say = |first, last, flags| {
                let header = FrameHeader {
                    count: 1,
                    flags,
                    ..FrameHeader::bare(FrameKind::Settle, channel, 0)
                };
                frame::write(&mut self.out, header, &SettleRange { first, last }.encode());
            };
            if requeue {
                say(*tag, *tag, SETTLE_REQUEUE);
            }
            if !requeue || *tag > *settled + 1 {
                say(0, *tag, SETTLE_ACK);
            }
            *settled = *tag;
        }
        if !self.out.is_empty() {
            machine.send(self.core, self.conn, &self.out);
        }
        self.delivered - before
    }
}
