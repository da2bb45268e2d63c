//! Whole conversations: clients say anything from `Hello` on, in pieces of any length, while the
//! disk answers in any order and time passes. Nothing they say may stop the engine, make it answer
//! without bound, or leave behind what a restart cannot read. Does not know which answer is right.

use ringpost_engine::ConnId;
use ringpost_wire::control::{Body, Hello};
use ringpost_wire::version::MAGIC;
use ringpost_wire::{
    FRAGMENT_BYTES_MAX, FragmentHead, FrameHeader, FrameKind, MessageParts, frame,
};

use crate::input::Input;
use crate::shell::{Disk, Shell, Size};

/// Names that clients use, so that they meet.
pub const NAMES: [&[u8]; 8] = [
    b"",
    b"orders",
    b"bills",
    b"shop",
    b"amq.topic",
    b"amq.fanout",
    b"tenant",
    "größe".as_bytes(),
];
/// Keys that they use.
pub const KEYS: [&[u8]; 8] = [
    b"", b"orders", b"bills", b"a.b", b"a.*", b"#", b"*.b.#", b"k",
];
/// Connections at a time.
const CONNS: usize = 4;

/// What an input says next, in the low four bits of a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Act {
    /// A frame, its header from the input, its checksum right.
    Frame = 0,
    /// A frame whose body is made of [`NAMES`], [`KEYS`] and numbers.
    Named = 1,
    /// Messages for an exchange.
    Publish = 2,
    /// Bytes as they are.
    Raw = 3,
    /// The disk does one thing.
    Complete = 4,
    /// The disk fails one thing.
    Fail = 5,
    /// Time passes.
    Pass = 6,
    /// A client vanishes.
    HangUp = 7,
    /// A client stops reading, or reads on.
    Stick = 8,
    /// A client connects and says `Hello` as it should.
    Greet = 9,
    /// A piece of a large message.
    Fragment = 10,
    /// A turn ends.
    Turn = 11,
    /// Everything that was asked of the disk is done.
    Rest = 12,
}

impl Act {
    const fn from_number(number: u8) -> Self {
        match number % 16 {
            0 => Self::Frame,
            1 | 13 => Self::Named,
            2 | 14 => Self::Publish,
            3 => Self::Raw,
            4 | 15 => Self::Complete,
            5 => Self::Fail,
            6 => Self::Pass,
            7 => Self::HangUp,
            8 => Self::Stick,
            9 => Self::Greet,
            10 => Self::Fragment,
            11 => Self::Turn,
            _ => Self::Rest,
        }
    }
}

/// Bits of the first byte.
pub mod first {
    /// Blocks of a whole frame, so that large messages travel.
    pub const WHOLE: u8 = 1;
    /// A crash ends it, not a shutdown.
    pub const CRASH: u8 = 2;
    /// Only [`super::Act::Turn`] ends a turn.
    pub const LONG_TURNS: u8 = 4;
    /// Bytes arrive in halves.
    pub const HALVES: u8 = 8;
}

struct Talk {
    shell: Shell,
    conns: [Option<ConnId>; CONNS],
    /// Bytes of each client that are on their way.
    late: [Vec<u8>; CONNS],
    halves: bool,
    acts: u64,
    heard_bytes: u64,
    is_faulty: bool,
}

/// See the module.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.byte();
    let size = if how & first::WHOLE == 0 {
        Size::Small
    } else {
        Size::Whole
    };
    let mut shell = Shell::boot(size, Disk::default());
    shell.start();
    assert!(
        shell.core().is_running(),
        "an empty directory is a broker's"
    );
    let mut talk = Talk {
        shell,
        conns: [None; CONNS],
        late: Default::default(),
        halves: how & first::HALVES != 0,
        acts: 0,
        heard_bytes: 0,
        is_faulty: false,
    };
    while !input.is_empty() {
        talk.act(&mut input);
        if how & first::LONG_TURNS == 0 {
            talk.shell.turn();
        }
        talk.bounded();
    }
    talk.end(size, how & first::CRASH != 0);
}

impl Talk {
    fn act(&mut self, input: &mut Input<'_>) {
        let head = input.byte();
        let who = usize::from(head >> 4) % CONNS;
        match Act::from_number(head) {
            Act::Frame => {
                let header = header_of(input);
                let body = input.sized();
                self.frame(who, header, body);
            }
            Act::Named => {
                let header = header_of(input);
                let body = named_body(header.kind, input);
                self.frame(who, header, &body);
            }
            Act::Publish => self.publish(who, input),
            Act::Raw => {
                let bytes = input.sized().to_vec();
                self.bytes(who, &bytes);
            }
            Act::Complete => {
                let at = usize::from(input.byte()) % self.shell.in_flight().max(1);
                self.shell.complete(at);
            }
            Act::Fail => {
                let at = usize::from(input.byte()) % self.shell.in_flight().max(1);
                self.is_faulty |= self.shell.in_flight() > 0;
                self.shell.fail(at, u32::from(input.byte()) * 512);
            }
            Act::Pass => self.shell.pass(input.pick(&[1, 6, 21, 260, 1_100, 30_000])),
            Act::HangUp => {
                if let Some(conn) = self.conns[who].take() {
                    self.shell.hang_up(conn);
                }
                self.late[who].clear();
            }
            Act::Stick => {
                let is_stuck = input.byte().is_multiple_of(2);
                if let Some(conn) = self.conns[who] {
                    self.shell.set_stuck(conn, is_stuck);
                }
            }
            Act::Greet => {
                let hello = Hello {
                    magic: MAGIC,
                    version_min: 1,
                    version_max: 1,
                    heartbeat_ms: 0,
                    message_bytes_max: 0,
                    tenant: b"",
                    client: b"fuzz",
                };
                let mut bytes = Vec::new();
                hello.write(&mut bytes, FrameHeader::bare(FrameKind::Hello, 0, 1));
                self.bytes(who, &bytes);
            }
            Act::Fragment => self.fragment(who, input),
            Act::Turn => self.shell.turn(),
            Act::Rest => self.shell.rest(),
        }
    }

    fn frame(&mut self, who: usize, header: FrameHeader, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, body);
        self.bytes(who, &bytes);
    }

    /// A client sends bytes; it connects first if it has to.
    fn bytes(&mut self, who: usize, bytes: &[u8]) {
        let conn = match self.conns[who].filter(|conn| self.shell.is_open(*conn)) {
            Some(conn) => conn,
            None => {
                let conn = self.shell.open();
                self.conns[who] = Some(conn);
                self.late[who].clear();
                conn
            }
        };
        self.heard_bytes += bytes.len() as u64;
        self.late[who].extend_from_slice(bytes);
        let now = if self.halves {
            self.late[who].len().div_ceil(2)
        } else {
            self.late[who].len()
        };
        let now: Vec<u8> = self.late[who].drain(..now).collect();
        self.shell.arrive(conn, &now);
    }

    fn publish(&mut self, who: usize, input: &mut Input<'_>) {
        let mut header = FrameHeader {
            flags: input.byte(),
            ..FrameHeader::bare(FrameKind::Publish, u16::from(input.byte()), input.number())
        };
        let mut body = Vec::new();
        for _ in 0..1 + input.byte() % 4 {
            let parts = MessageParts {
                exchange: input.pick(&NAMES),
                routing_key: input.pick(&KEYS),
                headers: input.sized(),
                payload: input.sized(),
                priority: input.byte(),
                ttl_ms: u32::from(input.byte()),
                delay_ms: u32::from(input.byte() / 8),
                ..MessageParts::default()
            };
            parts.write(&mut body).expect("its parts are small");
            header.count += 1;
        }
        if let wrong @ 1.. = input.byte() / 128 {
            header.count += u32::from(wrong);
        }
        self.frame(who, header, &body);
    }

    /// A piece of a large message: as long as it must be, without its bytes in the input.
    fn fragment(&mut self, who: usize, input: &mut Input<'_>) {
        let message_bytes = FRAGMENT_BYTES_MAX as u32 + 1 + u32::from(input.two());
        let head = FragmentHead {
            message_bytes,
            offset: u32::from(input.byte() % 3) * FRAGMENT_BYTES_MAX as u32,
        };
        let header = FrameHeader {
            flags: input.byte(),
            ..FrameHeader::bare(
                FrameKind::PublishFragment,
                u16::from(input.byte()),
                input.number(),
            )
        };
        let filler = input.byte();
        let mut parts = MessageParts {
            exchange: input.pick(&NAMES),
            routing_key: input.pick(&KEYS),
            ..MessageParts::default()
        };
        let payload = vec![filler; message_bytes as usize - parts.length()];
        parts.payload = &payload;
        let mut message = Vec::new();
        parts.write(&mut message).expect("its parts are small");
        message.truncate(message_bytes as usize);
        let mut body = head.encode().to_vec();
        if let Some(piece) = message.get(head.offset as usize..) {
            body.extend_from_slice(&piece[..piece.len().min(head.piece_bytes())]);
        }
        self.frame(who, header, &body);
    }

    /// Nobody gets more out of the broker than what was put in can explain: an act has at most all
    /// that was ever said listed or delivered, to every queue; and heartbeats are few.
    fn bounded(&mut self) {
        self.acts += 1;
        let most = (1 << 20) + self.heard_bytes * (8 + self.acts);
        assert!(
            self.shell.said_bytes <= most,
            "{} bytes heard in {} acts, {} said",
            self.heard_bytes,
            self.acts,
            self.shell.said_bytes
        );
        self.shell.take_heard();
    }

    /// Everybody leaves; what is on the disk then is what was there.
    fn end(mut self, size: Size, is_crash: bool) {
        let what_is_allowed = |shell: &Shell, is_faulty: bool| {
            assert!(
                is_faulty || (shell.fail_stop.is_none() && shell.errors.is_empty()),
                "{:?} {:?}",
                shell.fail_stop,
                shell.errors
            );
        };
        what_is_allowed(&self.shell, self.is_faulty);
        if is_crash {
            let disk = self.shell.crash(1536);
            let mut again = Shell::boot(size, disk);
            again.start();
            what_is_allowed(&again, false);
            return;
        }
        for conn in self.conns.into_iter().flatten() {
            self.shell.hang_up(conn);
        }
        self.shell.rest();
        let before = self.shell.holdings();
        self.shell.shut_down();
        let has_failed = self.shell.core().has_failed();
        what_is_allowed(&self.shell, self.is_faulty);
        let mut again = Shell::boot(size, self.shell.crash(0));
        again.start();
        what_is_allowed(&again, false);
        if has_failed {
            return;
        }
        for (queue, holds) in again.holdings() {
            assert_eq!(before.get(&queue), Some(&holds), "queue {queue}");
        }
    }
}

fn header_of(input: &mut Input<'_>) -> FrameHeader {
    FrameHeader {
        kind: input.pick(FrameKind::ALL),
        flags: input.byte(),
        channel: match input.byte() {
            u8::MAX => u16::MAX,
            small => u16::from(small),
        },
        sequence: input.number(),
        count: input.number() as u32,
        body_bytes: 0,
        body_crc: 0,
    }
}

/// A body of that kind out of few bytes; of kinds that a client does not send, any bytes.
fn named_body(kind: FrameKind, input: &mut Input<'_>) -> Vec<u8> {
    use FrameKind as K;
    use ringpost_wire::SettleRange;
    use ringpost_wire::control::{
        Attach, Bind, ConsumerCredit, ConsumerOpen, Delete, ExchangeDeclare, Get, Named,
        ProducerOpen, QueueDeclare,
    };
    let mut body = Vec::new();
    match kind {
        K::Hello => Hello {
            magic: MAGIC,
            version_min: u16::from(input.byte()),
            version_max: u16::from(input.byte()),
            heartbeat_ms: u32::from(input.two()),
            message_bytes_max: input.number() as u32,
            tenant: input.pick(&NAMES),
            client: input.sized(),
        }
        .encode(&mut body),
        K::Attach => Attach {
            queue: input.pick(&NAMES),
        }
        .encode(&mut body),
        K::ProducerOpen => ProducerOpen {
            producer: input.number(),
            epoch: u32::from(input.byte()),
            level: input.byte() % 4,
            flags: input.byte() % 4,
            reserved: 0,
        }
        .encode(&mut body),
        K::ConsumerOpen => ConsumerOpen {
            credit_bytes: input.number(),
            credit_messages: input.number() as u32,
            flags: u32::from(input.byte() % 8),
            queue: input.pick(&NAMES),
            arguments: input.sized(),
        }
        .encode(&mut body),
        K::ConsumerCredit => ConsumerCredit {
            bytes: input.number(),
            messages: input.number() as u32,
            reserved: 0,
        }
        .encode(&mut body),
        K::Get => Get {
            wait_ms: u32::from(input.two()),
            reserved: 0,
        }
        .encode(&mut body),
        K::Settle => {
            for _ in 0..1 + input.byte() % 4 {
                let (first, last) = (input.number(), input.number());
                body.extend(SettleRange { first, last }.encode());
            }
        }
        K::QueueDeclare => QueueDeclare {
            messages_max: input.number(),
            bytes_max: input.number(),
            durability: input.byte() % 3,
            flags: input.byte() % 4,
            partition: match input.byte() {
                u8::MAX => u16::MAX,
                small => u16::from(small),
            },
            name: input.pick(&NAMES),
            arguments: input.sized(),
        }
        .encode(&mut body),
        K::QueueDelete | K::ExchangeDelete => Delete {
            flags: u32::from(input.byte() % 8),
            name: input.pick(&NAMES),
        }
        .encode(&mut body),
        K::QueuePurge | K::QueueInspect | K::TenantDeclare | K::TenantDelete => Named {
            name: input.pick(&NAMES),
        }
        .encode(&mut body),
        K::ExchangeDeclare => ExchangeDeclare {
            kind: input.byte() % 6,
            durability: input.byte() % 3,
            flags: input.byte() % 4,
            reserved: 0,
            name: input.pick(&NAMES),
            arguments: input.sized(),
        }
        .encode(&mut body),
        K::Bind | K::Unbind => Bind {
            flags: 0,
            exchange: input.pick(&NAMES),
            target: input.pick(&NAMES),
            key: input.pick(&KEYS),
            arguments: input.sized(),
        }
        .encode(&mut body),
        _ => body.extend_from_slice(input.sized()),
    }
    body
}
