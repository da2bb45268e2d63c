//! A client that speaks AMQP to a machine. Does not know the broker.

#![allow(dead_code)]

use std::collections::VecDeque;

use ringpost_amqp::{Cut, FRAME_BYTES_MAX, FrameType, Method, PROTOCOL_HEADER, cut, frame};
use ringpost_engine::ConnId;

use crate::machine::Machine;

/// Turns within which everything is answered.
const TURNS_MAX: usize = 2_000;

/// A frame that was received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    pub kind: FrameType,
    pub channel: u16,
    pub payload: Vec<u8>,
}

impl Received {
    pub fn method(&self) -> Method<'_> {
        assert_eq!(self.kind, FrameType::Method);
        Method::decode(&self.payload).expect("a method of the specification")
    }
}

/// A connection.
pub struct Client {
    pub core: usize,
    pub conn: ConnId,
    frames: VecDeque<Received>,
    /// What is to be sent.
    out: Vec<u8>,
}

impl Client {
    /// One that has said nothing.
    pub fn connect(machine: &mut Machine, core: usize) -> Self {
        Self {
            core,
            conn: machine.connect_amqp(core, true),
            frames: VecDeque::new(),
            out: Vec::new(),
        }
    }

    /// One whose connection is open.
    pub fn open(machine: &mut Machine, core: usize) -> Self {
        let mut client = Self::connect(machine, core);
        client.out.extend_from_slice(&PROTOCOL_HEADER);
        client.send(machine);
        let start = client.next(machine);
        assert!(matches!(start.method(), Method::ConnectionStart { .. }));
        client.put(0, &start_ok(b"\0guest\0guest"));
        client.send(machine);
        let tune = client.next(machine);
        assert!(matches!(tune.method(), Method::ConnectionTune { .. }));
        client.put(0, &TUNE_OK);
        client.put(0, &OPEN);
        client.send(machine);
        let ok = client.next(machine);
        assert!(matches!(ok.method(), Method::ConnectionOpenOk { .. }));
        client
    }

    /// One with an open channel 1.
    pub fn with_channel(machine: &mut Machine, core: usize) -> Self {
        let mut client = Self::open(machine, core);
        let open = Method::ChannelOpen { reserved_1: b"" };
        let ok = client.ask(machine, 1, &open);
        assert!(matches!(ok.method(), Method::ChannelOpenOk { .. }));
        client
    }

    /// Puts a method to what is to be sent.
    pub fn put(&mut self, channel: u16, method: &Method<'_>) {
        frame::write(&mut self.out, FrameType::Method, channel, |out| {
            method.encode(out);
        });
    }

    /// Puts bytes to it.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Puts a publish with a bare content.
    pub fn put_publish(&mut self, channel: u16, exchange: &[u8], key: &[u8], body: &[u8]) {
        self.put_publish_in(channel, (exchange, key, false), body, FRAME_BYTES_MAX - 8);
    }

    /// The same, mandatory if it says so, with body frames of so many bytes.
    pub fn put_publish_in(
        &mut self,
        channel: u16,
        (exchange, routing_key, mandatory): (&[u8], &[u8], bool),
        body: &[u8],
        piece_bytes: usize,
    ) {
        let publish = Method::BasicPublish {
            reserved_1: 0,
            exchange,
            routing_key,
            mandatory,
            immediate: false,
        };
        self.put(channel, &publish);
        frame::write(&mut self.out, FrameType::Header, channel, |out| {
            out.extend_from_slice(b"\0\x3c\0\0");
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
            out.extend_from_slice(&[0, 0]);
        });
        for piece in body.chunks(piece_bytes) {
            frame::write(&mut self.out, FrameType::Body, channel, |out| {
                out.extend_from_slice(piece);
            });
        }
    }

    /// Sends what was put.
    pub fn send(&mut self, machine: &mut Machine) {
        machine.send(self.core, self.conn, &self.out);
        self.out.clear();
    }

    /// What was put, which is not sent then.
    pub fn take_put(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Sends what was put in two parts, the first of so many whole frames.
    pub fn send_in_two(&mut self, machine: &mut Machine, frames: usize) {
        let mut at = 0;
        for _ in 0..frames {
            at += match cut(&self.out[at..], FRAME_BYTES_MAX) {
                Cut::Complete { length, .. } => length,
                _ => 0,
            };
        }
        machine.send(self.core, self.conn, &self.out[..at]);
        machine.turn();
        machine.send(self.core, self.conn, &self.out[at..]);
        self.out.clear();
    }

    fn hear(&mut self, machine: &mut Machine) {
        let bytes = machine.received(self.core, self.conn);
        let mut at = 0;
        while let Cut::Complete { frame, length } = cut(&bytes[at..], FRAME_BYTES_MAX) {
            self.frames.push_back(Received {
                kind: frame.kind,
                channel: frame.channel,
                payload: frame.payload.to_vec(),
            });
            at += length;
        }
        assert_eq!(at, bytes.len(), "the broker writes whole frames");
        bytes.clear();
    }

    /// The next frame, if one comes.
    pub fn next_within(&mut self, machine: &mut Machine, turns: usize) -> Option<Received> {
        for _ in 0..=turns {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            machine.turn();
            self.hear(machine);
        }
        None
    }

    /// The next frame.
    pub fn next(&mut self, machine: &mut Machine) -> Received {
        self.next_within(machine, TURNS_MAX)
            .expect("it is answered")
    }

    /// Sends a method and takes the next frame.
    pub fn ask(&mut self, machine: &mut Machine, channel: u16, method: &Method<'_>) -> Received {
        self.put(channel, method);
        self.send(machine);
        self.next(machine)
    }

    /// The next content: its method and its body.
    pub fn content(&mut self, machine: &mut Machine) -> (Received, Vec<u8>) {
        let method = self.next(machine);
        let header = self.next(machine);
        assert_eq!(
            (header.kind, header.channel),
            (FrameType::Header, method.channel)
        );
        let body_bytes = header.payload[4..12].try_into().expect("eight bytes");
        let body_bytes = u64::from_be_bytes(body_bytes) as usize;
        let mut body = Vec::new();
        while body.len() < body_bytes {
            let piece = self.next(machine);
            assert_eq!(
                (piece.kind, piece.channel),
                (FrameType::Body, method.channel)
            );
            body.extend_from_slice(&piece.payload);
        }
        (method, body)
    }

    /// Whether the connection answers.
    pub fn is_alive(&mut self, machine: &mut Machine) -> bool {
        let open = Method::ChannelOpen { reserved_1: b"" };
        self.put(9, &open);
        self.put(9, &CHANNEL_CLOSE);
        self.send(machine);
        let mut saw = 0;
        while saw < 2 {
            let Some(frame) = self.next_within(machine, TURNS_MAX) else {
                return false;
            };
            saw += usize::from(frame.channel == 9);
        }
        true
    }
}

pub const TUNE_OK: Method<'static> = Method::ConnectionTuneOk {
    channel_max: 2047,
    frame_max: FRAME_BYTES_MAX as u32,
    heartbeat: 60,
};
pub const OPEN: Method<'static> = Method::ConnectionOpen {
    virtual_host: b"/",
    reserved_1: b"",
    reserved_2: false,
};
pub const CHANNEL_CLOSE: Method<'static> = Method::ChannelClose {
    reply_code: 200,
    reply_text: b"",
    class_id: 0,
    method_id: 0,
};

pub fn start_ok(response: &[u8]) -> Method<'_> {
    Method::ConnectionStartOk {
        client_properties: b"",
        mechanism: b"PLAIN",
        response,
        locale: b"en_US",
    }
}

pub fn declare(queue: &[u8], durable: bool) -> Method<'_> {
    Method::QueueDeclare {
        reserved_1: 0,
        queue,
        passive: false,
        durable,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: b"",
    }
}

pub fn consume(queue: &[u8], no_ack: bool) -> Method<'_> {
    Method::BasicConsume {
        reserved_1: 0,
        queue,
        consumer_tag: b"tag",
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: b"",
    }
}
