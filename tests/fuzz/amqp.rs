//! AMQP: the codec, whose frames, methods and contents must encode to the bytes that they were decoded
//! from, and whole conversations of its clients with an engine. Nothing they say may stop it, make it
//! answer without bound or with what is no frame of AMQP. Does not know which answer is right.

use ringpost_amqp::content::{self, Unfit};
use ringpost_amqp::method::FieldType;
use ringpost_amqp::{
    ContentHeader, Cut, FRAME_BYTES_MAX, Frame, FrameType, Method, PROTOCOL_HEADER, cut, frame,
    login,
};
use ringpost_engine::ConnId;
use ringpost_wire::envelope;

use crate::handshake::{KEYS, NAMES};
use crate::input::Input;
use crate::shell::{Disk, Shell, Size};

/// Connections at a time.
const CONNS: usize = 2;
/// Channels that clients use.
const CHANNELS: u16 = 4;
/// Tables of arguments that mean something.
const TABLES: [&[u8]; 8] = [
    b"",
    b"\x0cx-max-lengthI\0\0\0\x02",
    b"\x0dx-message-ttlI\0\0\0\x05",
    b"\x16x-dead-letter-exchangeS\0\0\0\0\x19x-dead-letter-routing-keyS\0\0\0\x05bills",
    b"\x0ex-max-priorityb\x05",
    b"\x0cx-queue-typeS\0\0\0\x06stream",
    b"\x12alternate-exchangeS\0\0\0\x0aamq.fanout",
    b"\x0ax-priorityb\x02",
];

/// The first byte says whether the codec or an engine is looked at.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.byte() % 4 {
        0 => codec(input.all()),
        1 => one(&mut input),
        how => talk(&mut input, how == 2),
    }
}

/// Bytes of a socket: cut and read until something is wrong or missing.
fn codec(mut bytes: &[u8]) {
    loop {
        match cut(bytes, FRAME_BYTES_MAX) {
            Cut::Complete { frame, length } => {
                assert_eq!(frame::whole(bytes, FRAME_BYTES_MAX), Some(length));
                let less = cut(&bytes[..length - 1], FRAME_BYTES_MAX);
                assert!(matches!(less, Cut::Incomplete { .. }));
                let mut again = Vec::new();
                frame::write(&mut again, frame.kind, frame.channel, |out| {
                    out.extend_from_slice(frame.payload);
                });
                assert_eq!(again, &bytes[..length]);
                payload(frame.kind, frame.payload);
                bytes = &bytes[length..];
            }
            Cut::Incomplete { bytes_needed } => {
                assert!(bytes_needed > bytes.len() && bytes_needed <= FRAME_BYTES_MAX);
                return;
            }
            Cut::Malformed(_) => return,
        }
    }
}

/// A payload without its frame.
fn one(input: &mut Input<'_>) {
    let kind = input.pick(&[FrameType::Method, FrameType::Header]);
    payload(kind, input.all());
    let _read_or_not = login::read(b"PLAIN", input.all());
    let _read_or_not = login::read(b"AMQPLAIN", input.all());
}

fn payload(kind: FrameType, bytes: &[u8]) {
    if kind == FrameType::Method
        && let Ok(method) = Method::decode(bytes)
    {
        // Unused bits of an octet are not kept.
        let mut again = Vec::new();
        method.encode(&mut again);
        assert_eq!(again.len(), bytes.len());
        assert_eq!(Method::decode(&again), Ok(method));
    }
    if kind == FrameType::Header
        && let Ok(header) = ContentHeader::decode(bytes)
    {
        let mut scratch = Vec::new();
        let parts = match header.parts(&mut scratch) {
            Ok(parts) => parts,
            Err(Unfit::Headers | Unfit::Expiration) => return,
        };
        let mut message = Vec::new();
        // What is longer than a message may have is refused.
        if parts.begin(0, &mut message).is_ok() {
            envelope::finish(&mut message, 0);
            let message = envelope::open(&message).expect("it was just written");
            let mut again = Vec::new();
            content::encode(&message, &mut again);
            assert_eq!(again[12..], bytes[12..], "properties are kept as they are");
        }
    }
}

/// What a broker says must be what brokers say.
///
/// # Panics
/// If it is not.
pub fn check_said(frame: &Frame<'_>) {
    match frame.kind {
        FrameType::Method => {
            Method::decode(frame.payload).expect("a method of the specification");
        }
        FrameType::Header => {
            ContentHeader::decode(frame.payload).expect("a header of the specification");
        }
        FrameType::Body => assert!(!frame.payload.is_empty(), "a body frame has bytes"),
        FrameType::Heartbeat => assert_eq!((frame.channel, frame.payload.len()), (0, 0)),
    }
}

struct Talk {
    shell: Shell,
    conns: [Option<ConnId>; CONNS],
    acts: u64,
    heard_bytes: u64,
    is_faulty: bool,
}

fn talk(input: &mut Input<'_>, is_whole: bool) {
    let size = if is_whole { Size::Whole } else { Size::Small };
    let mut shell = Shell::boot(size, Disk::default());
    shell.start();
    let mut talk = Talk {
        shell,
        conns: [None; CONNS],
        acts: 0,
        heard_bytes: 0,
        is_faulty: false,
    };
    while !input.is_empty() {
        talk.act(input);
        talk.shell.turn();
        talk.acts += 1;
        let most = (1 << 20) + talk.heard_bytes * (8 + talk.acts);
        assert!(talk.shell.said_bytes <= most, "more is said than was asked");
    }
    for conn in talk.conns.into_iter().flatten() {
        talk.shell.hang_up(conn);
    }
    talk.shell.rest();
    talk.shell.shut_down();
    let is_well = talk.shell.fail_stop.is_none() && talk.shell.errors.is_empty();
    assert!(talk.is_faulty || is_well, "{:?}", talk.shell.errors);
}

impl Talk {
    fn act(&mut self, input: &mut Input<'_>) {
        let head = input.byte();
        let who = usize::from(head >> 4) % CONNS;
        match head % 16 {
            0..=4 => {
                let bytes = method(input);
                self.say(who, &bytes);
            }
            5..=7 => {
                let bytes = publish(input);
                self.say(who, &bytes);
            }
            8 => {
                let kind = input.byte();
                let mut bytes = vec![kind];
                bytes.extend_from_slice(&(u16::from(input.byte()) % CHANNELS).to_be_bytes());
                let payload = input.sized();
                bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
                bytes.extend_from_slice(payload);
                bytes.push(0xce);
                self.say(who, &bytes);
            }
            9 => {
                let bytes = input.sized();
                self.say(who, bytes);
            }
            10 => {
                let at = usize::from(input.byte()) % self.shell.in_flight().max(1);
                self.shell.complete(at);
            }
            11 => {
                let at = usize::from(input.byte()) % self.shell.in_flight().max(1);
                self.is_faulty |= self.shell.in_flight() > 0;
                self.shell.fail(at, u32::from(input.byte()) * 512);
            }
            12 => self.shell.pass(input.pick(&[1, 21, 260, 1_100, 70_000])),
            13 => {
                if let Some(conn) = self.conns[who].take() {
                    self.shell.hang_up(conn);
                }
            }
            14 => {
                let is_stuck = input.byte().is_multiple_of(2);
                if let Some(conn) = self.conns[who] {
                    self.shell.set_stuck(conn, is_stuck);
                }
            }
            _ => self.shell.rest(),
        }
    }

    /// A client sends bytes; it connects first if it has to.
    fn say(&mut self, who: usize, bytes: &[u8]) {
        let known = self.conns[who].filter(|conn| self.shell.is_open(*conn));
        let conn = known.unwrap_or_else(|| {
            let conn = self.shell.open_amqp();
            self.conns[who] = Some(conn);
            let greeting = greeting();
            self.heard_bytes += greeting.len() as u64;
            self.shell.arrive_amqp(conn, &greeting);
            conn
        });
        self.heard_bytes += bytes.len() as u64;
        self.shell.arrive_amqp(conn, bytes);
    }
}

/// Everything up to open channels, at once.
fn greeting() -> Vec<u8> {
    let mut bytes = PROTOCOL_HEADER.to_vec();
    let ability = b"\x0ccapabilitiesF\0\0\0\x19\x16consumer_cancel_notifyt\x01";
    let methods = [
        Method::ConnectionStartOk {
            client_properties: ability,
            mechanism: b"PLAIN",
            response: b"\0guest\0guest",
            locale: b"en_US",
        },
        Method::ConnectionTuneOk {
            channel_max: 0,
            frame_max: 4096,
            heartbeat: 30,
        },
        Method::ConnectionOpen {
            virtual_host: b"/",
            reserved_1: b"",
            reserved_2: false,
        },
    ];
    for method in methods {
        put(&mut bytes, 0, &method);
    }
    for channel in 1..CHANNELS {
        put(
            &mut bytes,
            channel,
            &Method::ChannelOpen { reserved_1: b"" },
        );
        put(
            &mut bytes,
            channel,
            &Method::ConfirmSelect { no_wait: false },
        );
    }
    bytes
}

fn put(out: &mut Vec<u8>, channel: u16, method: &Method<'_>) {
    frame::write(out, FrameType::Method, channel, |out| method.encode(out));
}

/// A method whose names, keys, numbers and tables are such as mean something.
fn method(input: &mut Input<'_>) -> Vec<u8> {
    let info = &Method::ALL[usize::from(input.byte()) % Method::ALL.len()];
    let mut payload = [info.class.to_be_bytes(), info.method.to_be_bytes()].concat();
    let mut bits = 0;
    for (_, field) in info.fields {
        bits = match field {
            FieldType::Bit => bits + 1,
            _ => 0,
        };
        match field {
            FieldType::Bit if bits % 8 != 1 => {}
            FieldType::Bit | FieldType::Octet => payload.push(input.byte()),
            FieldType::Short => payload.extend_from_slice(&u16::from(input.byte()).to_be_bytes()),
            FieldType::Long => payload.extend_from_slice(&u32::from(input.byte()).to_be_bytes()),
            FieldType::LongLong => payload.extend_from_slice(&input.number().to_be_bytes()),
            FieldType::ShortStr => {
                let choice = input.byte();
                let text = match choice % 3 {
                    0 => KEYS[usize::from(choice / 3) % KEYS.len()],
                    1 => input.sized(),
                    _ => NAMES[usize::from(choice / 3) % NAMES.len()],
                };
                payload.push(text.len() as u8);
                payload.extend_from_slice(text);
            }
            FieldType::LongStr | FieldType::Table => {
                let choice = input.byte();
                let table = match choice {
                    u8::MAX => input.sized(),
                    _ => TABLES[usize::from(choice) % TABLES.len()],
                };
                payload.extend_from_slice(&(table.len() as u32).to_be_bytes());
                payload.extend_from_slice(table);
            }
        }
    }
    let channel = match info.class {
        10 => 0,
        _ => u16::from(input.byte()) % CHANNELS,
    };
    let mut bytes = Vec::new();
    frame::write(&mut bytes, FrameType::Method, channel, |out| {
        out.extend_from_slice(&payload);
    });
    bytes
}

/// A publish with its content, of which frames may be missing.
fn publish(input: &mut Input<'_>) -> Vec<u8> {
    let channel = 1 + u16::from(input.byte()) % (CHANNELS - 1);
    let flags = input.byte();
    let mut bytes = Vec::new();
    let method = Method::BasicPublish {
        reserved_1: 0,
        exchange: input.pick(&NAMES),
        routing_key: input.pick(&KEYS),
        mandatory: flags & 1 != 0,
        immediate: flags & 14 == 14,
    };
    put(&mut bytes, channel, &method);
    let body = vec![flags; usize::from(input.byte()) * usize::from(1 + input.byte() % 32)];
    frame::write(&mut bytes, FrameType::Header, channel, |out| {
        out.extend_from_slice(b"\0\x3c\0\0");
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        match flags & 16 {
            0 => out.extend_from_slice(&[0, 0]),
            _ => out.extend_from_slice(input.sized()),
        }
    });
    let left_out = usize::from(flags >> 5 == 7);
    for piece in body.chunks(2_000).skip(left_out) {
        frame::write(&mut bytes, FrameType::Body, channel, |out| {
            out.extend_from_slice(piece);
        });
    }
    bytes
}

/// Inputs that are valid: each method once, a conversation of each, and the codec's own.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut stream = vec![0];
    stream.extend_from_slice(&greeting()[PROTOCOL_HEADER.len()..]);
    seeds.push(("stream".to_owned(), stream));
    let mut header = vec![1, 1];
    header.extend_from_slice(b"\0\x3c\0\0\0\0\0\0\0\0\0\x05\xa8\0\x01c\0\0\0\x04\x01kt\x01\x05");
    seeds.push(("header".to_owned(), header));
    let number_of = |class, method| {
        let found = Method::ALL
            .iter()
            .position(|info| (info.class, info.method) == (class, method));
        found.expect("it is of the table") as u8
    };
    // Names are chosen by 2 + 3 n, keys by 3 n.
    let (orders, declare, consume) = (2 + 3, number_of(50, 10), number_of(60, 20));
    for is_whole in [2, 3] {
        let mut bytes = vec![is_whole];
        bytes.extend_from_slice(&[0, declare, 0, orders, 2, 0, 1, 15]);
        bytes.extend_from_slice(&[0, consume, 0, orders, 0, 0, 0, 1, 15]);
        for number in 0..4 {
            bytes.extend_from_slice(&[5, 0, 1, 0, 1, 100 + number, 1, 15]);
        }
        bytes.extend_from_slice(&[0, number_of(60, 80), 2, 1, 1, 15]);
        bytes.extend_from_slice(&[0, number_of(60, 120), 4, 3, 1, 15]);
        bytes.extend_from_slice(&[0, number_of(60, 70), 0, orders, 0, 1, 15]);
        bytes.extend_from_slice(&[0, number_of(20, 40), 200, 3, 0, 0, 0, 1, 15]);
        bytes.extend_from_slice(&[0, number_of(10, 50), 200, 3, 0, 0, 0, 15]);
        seeds.push((format!("talk_{is_whole}"), bytes));
    }
    for (at, info) in Method::ALL.iter().enumerate() {
        let mut bytes = vec![2, 0, at as u8];
        bytes.resize(bytes.len() + info.fields.len(), orders);
        bytes.extend_from_slice(&[1, 15]);
        seeds.push((info.name.replace(['.', '-'], "_"), bytes));
    }
    seeds
}
