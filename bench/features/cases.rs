//! The cases: how each is declared, what is published, and what of it is timed. Does not know what is
//! printed.

use std::time::Instant;

use ringpost_wire::control::{
    Bind, Durability, ExchangeDeclare, ExchangeKind, PARTITION_BY_NAME, QueueDeclare,
};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameKind, MessageParts};

use crate::client::{self, Consumer, Producer};
use crate::machine::{Machine, Size};

/// Messages of a frame, if they fit.
const BATCH: u32 = 1_024;
/// Frames that differ.
const FRAMES: u64 = 16;
/// Unconfirmed messages.
const WINDOW: u64 = 16_384;
/// Credit of the consumer.
const CREDIT: u32 = 8_192;
/// What a stream keeps.
const RETAINED_BYTES: u64 = 256 << 20;

/// What of a message's life is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// Published, confirmed, delivered, acked, all at once.
    All,
    /// Published to a stream and confirmed.
    Append,
    /// Read from a stream, from memory.
    Read,
}

/// Field tables and what they say.
pub type Entries = &'static [(&'static str, Value<'static>)];

/// Makes bindings.
type Binds = fn(&mut Machine);

/// One feature.
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// The least that its ratio has to be.
    pub goal: f64,
    /// What is timed.
    pub timed: Timed,
    /// What it is compared with, if not with [`PLAIN`].
    pub reference: Option<&'static Case>,
    /// The queue's settings.
    pub queue: Entries,
    /// The exchange: its kind, and what binds the queue to it.
    pub exchange: Option<(ExchangeKind, Binds)>,
    /// Sets what a message says besides, by its number.
    pub says: fn(u64, &mut Said),
}

/// What a message says besides its payload.
#[derive(Default)]
pub struct Said {
    /// Its routing key, if not the queue's name.
    pub key: String,
    /// Its headers, encoded.
    pub headers: Vec<u8>,
    /// See [`MessageParts`].
    pub priority: u8,
    /// See [`MessageParts`].
    pub ttl_ms: u32,
    /// See [`MessageParts`].
    pub delay_ms: u32,
}

const QUEUE: &str = "target";
const EXCHANGE: &str = "routes";

const fn plain(name: &'static str, timed: Timed) -> Case {
    Case {
        name,
        goal: 0.0,
        timed,
        reference: None,
        queue: &[],
        exchange: None,
        says: |_, _| {},
    }
}

/// One durable queue, published to by its name.
pub static PLAIN: Case = plain("plain", Timed::All);
/// The same attributes, and nobody looks at them.
static ATTRIBUTES: Case = Case {
    says: |number, said| said.headers = attributes(number),
    ..plain("attributes", Timed::All)
};
const STREAM: Entries = &[("x-queue-type", Value::Text(b"stream"))];

/// All features.
pub static CASES: [Case; 8] = [
    Case {
        goal: 0.80,
        exchange: Some((ExchangeKind::Topic, bind_topics)),
        says: |number, said| said.key = format!("shop.{}.paid", number % 1_000),
        ..plain("topic/1000-keys", Timed::All)
    },
    Case {
        goal: 0.80,
        exchange: Some((ExchangeKind::Topic, bind_topics)),
        says: |number, said| said.key = format!("shop.{}.paid", number % 10_000),
        ..plain("topic/10000-keys", Timed::All)
    },
    Case {
        goal: 0.70,
        reference: Some(&ATTRIBUTES),
        exchange: Some((ExchangeKind::Headers, bind_headers)),
        says: |number, said| said.headers = attributes(number),
        ..plain("headers", Timed::All)
    },
    Case {
        goal: 0.50,
        reference: Some(&ATTRIBUTES),
        exchange: Some((ExchangeKind::Filter, bind_filter)),
        says: |number, said| said.headers = attributes(number),
        ..plain("filter", Timed::All)
    },
    Case {
        goal: 0.80,
        queue: &[("x-max-priority", Value::U8(9))],
        says: |number, said| said.priority = (number * 7 % 10) as u8,
        ..plain("priority", Timed::All)
    },
    Case {
        goal: 0.85,
        says: |number, said| said.ttl_ms = 60_000 + (number % 7) as u32 * 1_000,
        ..plain("ttl", Timed::All)
    },
    Case {
        goal: 1.0,
        queue: STREAM,
        ..plain("stream-append", Timed::Append)
    },
    Case {
        goal: 1.5,
        queue: STREAM,
        ..plain("stream-read", Timed::Read)
    },
];

/// A field table.
pub fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = TableWriter::new(&mut out);
    for (key, value) in entries {
        writer.put(key.as_bytes(), *value);
    }
    writer.finish().expect("within limits");
    out
}

/// Three attributes, and another one that nobody asks for.
fn attributes(number: u64) -> Vec<u8> {
    table(&[
        ("total", Value::I64(150 + number as i64 % 50)),
        ("country", Value::Text(b"de")),
        ("vip", Value::Bool(true)),
        ("agent", Value::Text(b"web")),
    ])
}

fn bind(machine: &mut Machine, key: &str, arguments: &[(&str, Value<'_>)]) {
    client::topology(
        machine,
        FrameKind::Bind,
        &Bind {
            flags: 0,
            exchange: EXCHANGE.as_bytes(),
            target: QUEUE.as_bytes(),
            key: key.as_bytes(),
            arguments: &table(arguments),
        },
    );
}

/// Ten thousand patterns, of which one matches each key.
fn bind_topics(machine: &mut Machine) {
    for number in 0..10_000 {
        bind(machine, &format!("shop.{number}.*"), &[]);
    }
}

fn bind_headers(machine: &mut Machine) {
    for country in ["at", "be", "ch", "de"] {
        let country = Value::Text(country.as_bytes());
        let wanted = [
            ("x-match", Value::Text(b"all")),
            ("country", country),
            ("vip", Value::Bool(true)),
        ];
        bind(machine, "", &wanted);
    }
}

fn bind_filter(machine: &mut Machine) {
    let condition = Value::Text(b"total > 100 AND country = 'de' AND vip = TRUE");
    bind(machine, "", &[("x-filter", condition)]);
}

/// A case with everything that it needs.
pub struct Scene {
    timed: Timed,
    machine: Machine,
    producer: Producer,
    consumer: Option<Consumer>,
    queue: [String; 1],
}

impl Scene {
    /// Declares what the case needs.
    pub fn of(case: &Case, payload: usize) -> Self {
        let mut machine = Machine::start(Size {
            cores: 1,
            buffers: 512,
            segment_bytes: 32 << 20,
            slots_max: 64,
        });
        let is_stream = case.queue == STREAM;
        client::topology(
            &mut machine,
            FrameKind::QueueDeclare,
            &QueueDeclare {
                messages_max: 0,
                bytes_max: if is_stream { RETAINED_BYTES } else { 0 },
                durability: Durability::Durable as u8,
                flags: 0,
                partition: PARTITION_BY_NAME,
                name: QUEUE.as_bytes(),
                arguments: &table(case.queue),
            },
        );
        if let Some((kind, bind)) = case.exchange {
            client::topology(
                &mut machine,
                FrameKind::ExchangeDeclare,
                &ExchangeDeclare {
                    kind: kind as u8,
                    durability: Durability::Durable as u8,
                    flags: 0,
                    reserved: 0,
                    name: EXCHANGE.as_bytes(),
                    arguments: b"",
                },
            );
            bind(&mut machine);
        }
        let producer = Producer::open_with(&mut machine, 0, 77, frames(case, payload));
        Self {
            timed: case.timed,
            machine,
            producer,
            consumer: None,
            queue: [QUEUE.to_owned()],
        }
    }

    /// Does what the case times with at least so many messages; says the ns each.
    pub fn run(&mut self, messages: u64) -> f64 {
        match self.timed {
            Timed::All => self.run_all(messages),
            Timed::Append => self.publish(messages),
            Timed::Read => {
                let before = self.producer.published();
                self.publish(messages);
                self.read_from(before + 1)
            }
        }
    }

    fn run_all(&mut self, messages: u64) -> f64 {
        let machine = &mut self.machine;
        let queue = &self.queue;
        let consumer = self
            .consumer
            .get_or_insert_with(|| Consumer::open(machine, 0, queue, CREDIT));
        let first = consumer.delivered;
        let start = Instant::now();
        while consumer.delivered < first + messages {
            self.producer.publish(machine, WINDOW);
            machine.turn();
            consumer.work(machine, false);
        }
        start.elapsed().as_nanos() as f64 / (consumer.delivered - first) as f64
    }

    fn publish(&mut self, messages: u64) -> f64 {
        let first = self.producer.published();
        let start = Instant::now();
        while self.producer.published() < first + messages {
            self.producer.publish(&mut self.machine, WINDOW);
            self.machine.turn();
        }
        while self.producer.confirmed < self.producer.published() {
            self.producer.publish(&mut self.machine, 0);
            self.machine.turn();
        }
        let count = self.producer.published() - first;
        start.elapsed().as_nanos() as f64 / count as f64
    }

    /// Reads a stream from an offset to its end.
    fn read_from(&mut self, offset: u64) -> f64 {
        let machine = &mut self.machine;
        let messages = self.producer.published() + 1 - offset;
        let arguments = table(&[("x-stream-offset", Value::I64(offset as i64))]);
        let mut reader = Consumer::open_with(machine, 0, &self.queue, CREDIT, &arguments);
        let start = Instant::now();
        while reader.delivered < messages {
            machine.turn();
            reader.work(machine, false);
        }
        let each = start.elapsed().as_nanos() as f64 / reader.delivered as f64;
        reader.hang_up(machine);
        each
    }
}

/// Frames full of the case's messages.
fn frames(case: &Case, payload: usize) -> Vec<(Vec<u8>, u32)> {
    let payload = vec![7; payload];
    let exchange = if case.exchange.is_some() {
        EXCHANGE
    } else {
        ""
    };
    let mut frames = Vec::new();
    let (mut body, mut count, mut number) = (Vec::new(), 0, 0_u64);
    while (frames.len() as u64) < FRAMES {
        let mut said = Said {
            key: QUEUE.to_owned(),
            ..Said::default()
        };
        (case.says)(number, &mut said);
        let parts = MessageParts {
            exchange: exchange.as_bytes(),
            routing_key: said.key.as_bytes(),
            headers: &said.headers,
            payload: &payload,
            priority: said.priority,
            ttl_ms: said.ttl_ms,
            delay_ms: said.delay_ms,
            ..MessageParts::default()
        };
        if count == BATCH
            || body.len() + parts.padded_length() + FRAME_HEADER_BYTES > FRAME_BYTES_MAX
        {
            frames.push((client::publish_frame(&body, count), count));
            body.clear();
            count = 0;
        }
        parts.write(&mut body).expect("within limits");
        count += 1;
        number += 1;
    }
    frames
}
