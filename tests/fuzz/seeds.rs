//! Where fuzzing begins: inputs that are valid, so that a change of one byte is interesting.
//! Does not know what is wrong with the code.

use std::fs;
use std::io;
use std::path::Path;

use ringpost::config::Config;
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{FrameKind, MessageParts};

use crate::handshake::{Act, first};
use crate::recovery::{self, Change, REPAIR};
use crate::{Target, config};

/// Every seed of a target, with a name.
#[must_use]
pub fn of(target: Target) -> Vec<(String, Vec<u8>)> {
    match target {
        Target::Frames => frames(),
        Target::Envelope => envelopes(),
        Target::Handshake => talks(),
        Target::Recovery => disks(),
        Target::Amqp => crate::amqp::seeds(),
        Target::Config => settings(),
    }
}

/// Writes the seeds of a target into `folder`, and its dictionary beside it.
///
/// # Errors
/// What the file system answers.
pub fn write(target: Target, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, bytes) in of(target) {
        fs::write(folder.join(format!("seed_{name}")), bytes)?;
    }
    let mut words = String::new();
    for word in dictionary(target) {
        words.push('"');
        for byte in word {
            words.push_str(&format!("\\x{byte:02X}"));
        }
        words.push_str("\"\n");
    }
    fs::write(folder.with_extension("dict"), words)
}

/// The text of a hex file of the golden vectors: its frames' bytes.
fn bytes_of_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::bytes)
        .filter(u8::is_ascii_hexdigit)
        .collect();
    let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
    digits
        .chunks_exact(2)
        .map(|pair| nibble(pair[0]) << 4 | nibble(pair[1]))
        .collect()
}

/// Every golden vector whose name begins so.
fn golden(begin: &str) -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the golden vectors are there") {
        let path = entry.expect("it can be read").path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| name.starts_with(begin)) else {
            continue;
        };
        let text = fs::read_to_string(&path).expect("it can be read");
        found.push((name.to_owned(), bytes_of_hex(&text)));
    }
    found.sort();
    found
}

/// Each golden frame as a stream and as a frame to be sealed, and all of them as one stream.
fn frames() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut all = vec![0];
    for (name, bytes) in golden("frame_") {
        all.extend_from_slice(&bytes);
        let kind = FrameKind::from_number(bytes[4]).expect("a golden frame has a kind");
        let at = FrameKind::ALL.iter().position(|one| *one == kind);
        let body_bytes = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
        let mut sealed = vec![1, bytes[5], bytes[16]];
        sealed.push(at.expect("every kind is listed") as u8);
        sealed.extend_from_slice(&bytes[6..8]);
        sealed.push(bytes[8]);
        sealed.extend_from_slice(&bytes[32..32 + body_bytes as usize]);
        seeds.push((format!("{name}_sealed"), sealed));
        let mut stream = vec![0];
        stream.extend_from_slice(&bytes);
        seeds.push((name, stream));
    }
    all.truncate(crate::INPUT_BYTES_MAX);
    seeds.push(("all".to_owned(), all));
    seeds
}

fn headers() -> Vec<u8> {
    let mut inner = Vec::new();
    let mut writer = TableWriter::new(&mut inner);
    writer
        .put(b"deep", Value::F64(1.5))
        .put(b"none", Value::Void);
    writer.finish().expect("it is small");
    let inner = ringpost_wire::Table::parse(&inner).expect("it was written");
    let mut array = Vec::new();
    let mut writer = ringpost_wire::table::ArrayWriter::new(&mut array);
    writer.put(Value::U8(1)).put(Value::Text(b"two"));
    writer.finish().expect("it is small");
    let array = ringpost_wire::table::Array::parse(&array).expect("it was written");
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    writer
        .put(b"colour", Value::Text(b"red"))
        .put(b"size", Value::I32(7))
        .put(b"is", Value::Bool(true))
        .put(
            b"price",
            Value::Decimal {
                scale: 2,
                value: 995,
            },
        )
        .put(b"at", Value::Timestamp(1_700_000_000))
        .put(b"raw", Value::Bytes(b"\0\x01"))
        .put(b"table", Value::Table(inner))
        .put(b"array", Value::Array(array));
    writer.finish().expect("it is small");
    bytes
}

fn envelopes() -> Vec<(String, Vec<u8>)> {
    let table = headers();
    let mut seeds = vec![("headers".to_owned(), [&[3], &table[..]].concat())];
    for (name, bytes) in golden("table").into_iter().chain(golden("message_")) {
        for how in 0..4 {
            seeds.push((format!("{name}_{how}"), [&[how], &bytes[..]].concat()));
        }
    }
    let mut batch = vec![2];
    for payload in [&b""[..], b"hello", &[7; 300]] {
        let parts = MessageParts {
            exchange: b"shop",
            routing_key: b"order.7.paid",
            properties: b"\0\0",
            headers: &table,
            payload,
            priority: 3,
            timestamp_us: 1,
            ttl_ms: 1000,
            delay_ms: 0,
            hops: 0,
        };
        parts.write(&mut batch).expect("it is small");
    }
    seeds.push(("batch".to_owned(), batch));
    seeds
}

/// Writes inputs of `handshake`.
struct Talk(Vec<u8>);

impl Talk {
    fn act(&mut self, act: Act, who: u8) -> &mut Self {
        self.0.push(act as u8 | who << 4);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A frame with a body of names; the header is kind, flags, channel, sequence, count.
    fn named(&mut self, who: u8, kind: FrameKind, head: [u8; 4], body: &[u8]) -> &mut Self {
        let at = FrameKind::ALL.iter().position(|one| *one == kind);
        self.act(Act::Named, who);
        self.0.push(at.expect("every kind is listed") as u8);
        self.bytes(&head).bytes(body)
    }

    fn greet(&mut self, who: u8) -> &mut Self {
        self.act(Act::Greet, who)
    }

    /// Declares queue `name`: limits, durability, flags, partition, name, no arguments.
    fn queue(&mut self, who: u8, name: u8, durability: u8) -> &mut Self {
        let body = [0, 0, durability, 0, 255, name, 0];
        self.named(who, FrameKind::QueueDeclare, [0, 0, 1, 0], &body)
    }

    fn producer(&mut self, who: u8, channel: u8, level: u8) -> &mut Self {
        let body = [9, 1, level, 0];
        self.named(who, FrameKind::ProducerOpen, [0, channel, 2, 0], &body)
    }

    fn consumer(&mut self, who: u8, channel: u8, queue: u8, credit: u8, flags: u8) -> &mut Self {
        let body = [0, credit, flags, queue, 0];
        self.named(who, FrameKind::ConsumerOpen, [0, channel, 3, 0], &body)
    }

    /// One message: exchange and key by number.
    fn publish(&mut self, who: u8, channel: u8, sequence: u8, to: [u8; 2]) -> &mut Self {
        self.act(Act::Publish, who)
            .bytes(&[0, channel, sequence, 0, to[0], to[1], 0, 5])
            .bytes(b"hello")
            .bytes(&[0, 0, 0])
    }

    fn settle(&mut self, who: u8, channel: u8, flags: u8, first: u8, last: u8) -> &mut Self {
        let body = [0, first, last];
        self.named(who, FrameKind::Settle, [flags, channel, 1, 1], &body)
    }

    fn rest(&mut self) -> &mut Self {
        self.act(Act::Rest, 0)
    }
}

fn talks() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, how: u8, write: &dyn Fn(&mut Talk)| {
        let mut talk = Talk(vec![how]);
        write(&mut talk);
        seeds.push((name.to_owned(), talk.0));
    };
    let flow = |talk: &mut Talk| {
        talk.greet(0).queue(0, 1, 1).rest().producer(0, 1, 2);
        talk.publish(0, 1, 1, [0, 1])
            .publish(0, 1, 2, [0, 1])
            .rest();
        talk.consumer(0, 2, 1, 10, 0).rest();
        talk.settle(0, 2, 4, 1, 1).settle(0, 2, 1, 2, 2).rest();
        talk.settle(0, 2, 2, 0, 9).rest();
    };
    add("flow", 0, &flow);
    add("flow_in_halves", first::HALVES, &flow);
    add("flow_in_long_turns", first::LONG_TURNS, &flow);
    add("flow_that_crashes", first::CRASH, &flow);
    add("routing", 0, &|talk| {
        talk.greet(0).queue(0, 1, 1).queue(0, 2, 0).rest();
        for kind in 1..5 {
            let name = 3 + kind % 2 * 4;
            let declare = [kind, 1, 0, name, 0];
            talk.named(0, FrameKind::ExchangeDeclare, [0, 0, 4, 0], &declare)
                .rest();
            talk.named(0, FrameKind::Bind, [0, 0, 5, 0], &[name, 1, 5, 0]);
            talk.named(0, FrameKind::Bind, [0, 0, 6, 0], &[name, 2, 4, 0])
                .rest();
            talk.producer(0, kind, 1);
            talk.publish(0, kind, 1, [name, 3])
                .publish(0, kind, 2, [4, 3])
                .rest();
        }
        talk.named(0, FrameKind::BindingList, [0, 0, 7, 0], &[0]);
        talk.named(0, FrameKind::ExchangeList, [0, 0, 8, 0], &[0]);
        talk.named(0, FrameKind::QueueList, [0, 0, 9, 0], &[0]);
        talk.named(0, FrameKind::Unbind, [0, 0, 10, 0], &[3, 1, 5, 0]);
        talk.named(0, FrameKind::ExchangeDelete, [0, 0, 11, 0], &[0, 3]);
        talk.named(0, FrameKind::QueuePurge, [0, 0, 12, 0], &[1]);
        talk.named(0, FrameKind::QueueInspect, [0, 0, 13, 0], &[1]);
        talk.named(0, FrameKind::QueueDelete, [0, 0, 14, 0], &[0, 1])
            .rest();
    });
    add("tenants", 0, &|talk| {
        talk.greet(0);
        talk.named(0, FrameKind::TenantDeclare, [0, 0, 1, 0], &[6])
            .rest();
        talk.named(0, FrameKind::TenantList, [0, 0, 2, 0], &[0]);
        let hello = [1, 1, 0, 0, 0, 6, 2, b'm', b'e'];
        talk.named(1, FrameKind::Hello, [0, 0, 1, 0], &hello);
        talk.queue(1, 1, 1).rest();
        talk.named(0, FrameKind::TenantDelete, [0, 0, 3, 0], &[6])
            .rest();
    });
    add("gets", 0, &|talk| {
        talk.greet(0).queue(0, 1, 1).rest().producer(0, 1, 2);
        talk.consumer(0, 2, 1, 0, 0);
        talk.named(0, FrameKind::Get, [0, 2, 4, 3], &[20, 0]);
        talk.publish(0, 1, 1, [0, 1]).rest();
        talk.named(0, FrameKind::Get, [0, 2, 5, 3], &[0, 0]).rest();
        talk.act(Act::Pass, 0).bytes(&[3]).rest();
        talk.named(0, FrameKind::ConsumerClose, [0, 2, 6, 0], &[0]);
        talk.named(0, FrameKind::ProducerClose, [0, 1, 7, 0], &[0])
            .rest();
    });
    add("slow_reader", 0, &|talk| {
        talk.greet(0)
            .greet(1)
            .queue(0, 1, 0)
            .rest()
            .producer(0, 1, 1);
        talk.act(Act::Stick, 1).bytes(&[0]);
        talk.consumer(1, 1, 1, 200, 1).rest();
        for sequence in 1..20 {
            talk.publish(0, 1, sequence, [0, 1]);
        }
        talk.rest().act(Act::Stick, 1).bytes(&[1]).rest();
        talk.act(Act::HangUp, 1).rest();
    });
    add("competing", 0, &|talk| {
        talk.greet(0)
            .greet(1)
            .queue(0, 1, 1)
            .rest()
            .producer(0, 1, 2);
        talk.consumer(0, 2, 1, 1, 0).consumer(1, 1, 1, 1, 0).rest();
        talk.publish(0, 1, 1, [0, 1])
            .publish(0, 1, 2, [0, 1])
            .rest();
        talk.named(1, FrameKind::ConsumerCredit, [0, 1, 0, 0], &[0, 5]);
        talk.publish(0, 1, 3, [0, 1])
            .rest()
            .act(Act::HangUp, 1)
            .rest();
        talk.settle(0, 2, 4, 0, 9).rest();
    });
    add("large", first::WHOLE, &|talk| {
        talk.greet(0).queue(0, 1, 1).rest().producer(0, 1, 2);
        for offset in 0..2 {
            talk.act(Act::Fragment, 0)
                .bytes(&[0x40, 0x10, offset, 0, 1, 1, 7, 0, 1]);
        }
        talk.rest()
            .consumer(0, 2, 1, 10, 0)
            .rest()
            .settle(0, 2, 4, 1, 1)
            .rest();
    });
    add("failing_disk", 0, &|talk| {
        talk.greet(0).queue(0, 1, 1).rest().producer(0, 1, 2);
        talk.publish(0, 1, 1, [0, 1])
            .act(Act::Fail, 0)
            .bytes(&[0, 3])
            .rest();
        talk.publish(0, 1, 2, [0, 1]).rest();
    });
    add("raw", 0, &|talk| {
        let (_, hello) = &golden("frame_01")[0];
        talk.act(Act::Raw, 0)
            .bytes(&[hello.len() as u8])
            .bytes(hello);
        talk.act(Act::Raw, 0).bytes(&[4]).bytes(b"GET ");
    });
    seeds
}

/// Every change alone on every disk, with and without checksums that hide it.
fn disks() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for image in 0..recovery::image_count() as u8 {
        seeds.push((format!("{image}_untouched"), vec![image, 0]));
    }
    let changes: [(Change, &[u8]); 13] = [
        (Change::Flip, &[3, 0, 200, 0, 4]),
        (Change::Write, &[2, 0, 130, 0, 4, 1, 2, 3, 4]),
        (Change::Zero, &[4, 0, 0, 1]),
        (Change::Copy, &[1, 0, 5, 0, 0, 0]),
        (Change::Cut, &[0, 9, 0]),
        (Change::Remove, &[1]),
        (Change::Clone, &[0, 9]),
        (Change::CheckpointFlip, &[0, 40, 0, 1]),
        (Change::CheckpointCut, &[1, 60, 0]),
        (Change::CheckpointLose, &[0]),
        (Change::Record, &[6, 0, 1, 32, 3, 9]),
        (Change::Header, &[3, 0, 56, 3, 200]),
        (Change::CheckpointWrite, &[0, 24, 0, 4, 9, 0, 0, 0]),
    ];
    for (number, (change, rest)) in changes.iter().enumerate() {
        for how in [0, REPAIR] {
            let image = (number as u8 * 3 + how) % recovery::image_count() as u8;
            let mut bytes = vec![image, how, *change as u8];
            bytes.extend_from_slice(rest);
            seeds.push((format!("{image}_{change:?}_{how}").to_lowercase(), bytes));
        }
    }
    seeds
}

fn settings() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let end = config::SEPARATOR;
    let (mut file, mut variables, mut flags) = (String::new(), String::new(), String::new());
    for setting in Config::SETTINGS {
        file.push_str(&format!("{} = \"{}\"\n", setting.name, setting.default));
        variables.push_str(&format!("{}={}\n", setting.variable(), setting.default));
        flags.push_str(&format!("{}={}\n", setting.name, setting.default));
    }
    seeds.push(("file".to_owned(), file.clone().into_bytes()));
    seeds.push((
        "variables".to_owned(),
        format!("{end}{variables}").into_bytes(),
    ));
    seeds.push((
        "both".to_owned(),
        format!("{file}{end}{variables}").into_bytes(),
    ));
    seeds.push((
        "flags".to_owned(),
        format!("{end}{end}{flags}").into_bytes(),
    ));
    let all = format!("{file}{end}{variables}{end}{flags}");
    seeds.push(("all".to_owned(), all.into_bytes()));
    let texts = [
        "cores = 4\npartitions = 3\n",
        "memory = \"1TiB\"\nsegment_bytes = \"1 GiB\"\n",
        "listen = \"[::1]:0\"\nadmin_listen = \"0.0.0.0:80\"\ninsecure_listen = true\n",
        "cpus = \"0-3,7\"\nadmin_hosts = [\"a.example\", \"b\"]\n",
        "heartbeat = \"5min\"\ntrickle = 0\nspin = \"50us\"\n",
        "[table]\nkey = 1\n",
        "memroy = \"1GiB\"\n\n--\nRINGPOST_CORES=auto\nRINGPOST_PORT=tcp://10.0.0.1\n",
        "18446744073709551615TiB\n1h\n99999999999999999999us\n",
        "cores = 2\n\n--\nRINGPOST_CORES=3\nRINGPOST_MEMORY=\nRINGPOST_CORES=\n\n--\ncores=4\ncores=\n",
        "\n--\nRINGPOST_CPUS=0,2-3\nRINGPOST_ADMIN_HOSTS=a,,b\n\n--\ninsecure_listen=true\npartitions=128\n",
    ];
    for (number, text) in texts.iter().enumerate() {
        seeds.push((format!("text_{number}"), text.as_bytes().to_vec()));
    }
    seeds
}

/// Words that the fuzzer puts into inputs of a target.
#[must_use]
pub fn dictionary(target: Target) -> Vec<Vec<u8>> {
    match target {
        Target::Frames | Target::Handshake => {
            let mut words: Vec<Vec<u8>> = vec![b"RPST".to_vec(), vec![255; 9], vec![0; 8]];
            words.push(ringpost_wire::version::MAGIC.to_le_bytes().to_vec());
            words.extend(crate::handshake::NAMES.iter().map(|name| name.to_vec()));
            words.extend(crate::handshake::KEYS.iter().map(|key| key.to_vec()));
            words.push(b"x-match".to_vec());
            words.retain(|word| !word.is_empty());
            words
        }
        Target::Amqp => {
            let names = crate::handshake::NAMES
                .iter()
                .chain(&crate::handshake::KEYS);
            let mut words: Vec<Vec<u8>> = names.map(|name| name.to_vec()).collect();
            words.extend([vec![0xce], b"\0\x3c\0\0".to_vec(), b"x-delay".to_vec()]);
            words.retain(|word| !word.is_empty());
            words
        }
        Target::Envelope => b"tbBsuIilfdDSATFVx"
            .iter()
            .map(|kind| vec![1, b'k', *kind])
            .collect(),
        Target::Recovery => vec![b"RPJ1".to_vec(), b"RPC1".to_vec(), vec![255; 9], vec![0; 8]],
        Target::Config => {
            let mut words: Vec<Vec<u8>> = Vec::new();
            for setting in Config::SETTINGS {
                words.push(setting.name.as_bytes().to_vec());
                words.push(setting.variable().into_bytes());
            }
            for word in [
                "auto",
                "off",
                "KiB",
                "GiB",
                "us",
                "min",
                "true",
                "0-",
                "::1",
                config::SEPARATOR,
            ] {
                words.push(word.as_bytes().to_vec());
            }
            words
        }
    }
}
