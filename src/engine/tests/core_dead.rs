//! What dies in a queue and where it goes: on one core and on two, small and in pieces. Does not know
//! crashes; the simulator does.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use machine::{Machine, Size};
use ringpost_engine::ConnId;
use ringpost_engine::data::queue::Death;
use ringpost_wire::control::{
    Bind, Body, ConsumerOpen, Delete, Durability, ExchangeDeclare, ExchangeKind, Failure, Named,
    PRODUCER_DOWNGRADE, ProducerOpen, QueueDeclare, QueueInfo,
};
use ringpost_wire::header::{SETTLE_ACK, SETTLE_CONFIRM, SETTLE_REJECT, SETTLE_REQUEUE};
use ringpost_wire::table::{Array, ArrayWriter, Table, TableWriter, Value};
use ringpost_wire::{
    Code, DeliverHead, FRAGMENT_BYTES_MAX, FragmentHead, FrameHeader, FrameKind, HEADERS_BYTES_MAX,
    MessageParts, Messages, SettleRange, envelope, frame,
};

/// A message as it was delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Got {
    tag: u64,
    earlier: u32,
    bytes: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> Option<String> {
        let message = envelope::open(&self.bytes).expect("a message");
        let table = Table::parse(message.headers()).expect("headers");
        let text = table.get(name.as_bytes())?.as_text()?;
        Some(String::from_utf8(text.to_vec()).expect("text"))
    }

    fn payload(&self) -> Vec<u8> {
        let message = envelope::open(&self.bytes).expect("a message");
        assert_eq!(message.check_crc(), Ok(()));
        message.payload().to_vec()
    }

    /// Queues and reasons of its deaths with how often each, the last one first.
    fn deaths(&self) -> Vec<(String, String, i64)> {
        let message = envelope::open(&self.bytes).expect("a message");
        let table = Table::parse(message.headers()).expect("headers");
        let Some(Value::Array(array)) = table.get(b"x-death") else {
            return Vec::new();
        };
        let entry = |value: Value<'_>| {
            let Value::Table(entry) = value else {
                panic!("each is a table")
            };
            let text = |name: &[u8]| {
                let text = entry.get(name).and_then(|value| value.as_text());
                String::from_utf8(text.expect("it is there").to_vec()).expect("text")
            };
            let count = entry.get(b"count").and_then(|value| value.as_integer());
            (text(b"queue"), text(b"reason"), count.expect("a count"))
        };
        array.values().map(entry).collect()
    }
}

struct Scene {
    machine: Machine,
    admin: ConnId,
    producer: ConnId,
    published: u64,
}

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().expect("a small table");
    bytes
}

impl Scene {
    fn new(cores: u16) -> Self {
        let mut machine = Machine::start(Size {
            cores,
            buffers: 64,
            segment_bytes: 8 << 20,
            slots_max: 16,
        });
        let admin = client::greet(&mut machine, 0);
        let producer = client::greet(&mut machine, 0);
        let open = ProducerOpen {
            producer: 77,
            epoch: 1,
            level: 2,
            // Volatile queues are welcome.
            flags: PRODUCER_DOWNGRADE,
            reserved: 0,
        };
        let mut bytes = Vec::new();
        open.write(&mut bytes, FrameHeader::bare(FrameKind::ProducerOpen, 1, 1));
        client::ask(&mut machine, 0, producer, &bytes);
        Self {
            machine,
            admin,
            producer,
            published: 0,
        }
    }

    /// A queue in a partition: partition and core are the same for those used here.
    fn queue(&mut self, name: &str, partition: u16, limit: u64, entries: &[(&str, Value<'_>)]) {
        let arguments = table(entries);
        let declare = QueueDeclare {
            messages_max: limit,
            bytes_max: 0,
            durability: Durability::Durable as u8,
            flags: 0,
            partition,
            name: name.as_bytes(),
            arguments: &arguments,
        };
        let mut bytes = Vec::new();
        declare.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDeclare, 0, 1));
        self.done(&bytes);
    }

    /// A queue that is not durable.
    fn volatile_queue(&mut self, name: &str, entries: &[(&str, Value<'_>)]) {
        let arguments = table(entries);
        let declare = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: Durability::Volatile as u8,
            flags: 0,
            partition: 0,
            name: name.as_bytes(),
            arguments: &arguments,
        };
        let mut bytes = Vec::new();
        declare.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDeclare, 0, 1));
        self.done(&bytes);
    }

    fn bind(&mut self, exchange: &str, target: &str) {
        let bind = Bind {
            flags: 0,
            exchange: exchange.as_bytes(),
            target: target.as_bytes(),
            key: b"",
            arguments: b"",
        };
        let mut bytes = Vec::new();
        bind.write(&mut bytes, FrameHeader::bare(FrameKind::Bind, 0, 1));
        self.done(&bytes);
    }

    fn delete(&mut self, queue: &str) {
        let named = Delete {
            flags: 0,
            name: queue.as_bytes(),
        };
        let mut bytes = Vec::new();
        named.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDelete, 0, 1));
        self.done(&bytes);
    }

    /// Dead letters of core 0 that are in memory.
    fn letters(&self) -> usize {
        let flow = self.machine.core(0).flow().expect("it runs");
        flow.dead_figures()[0]
    }

    /// Puts so much through a queue that nothing from before is in memory.
    fn push_out(&mut self) {
        let filler = vec![1; 180 << 10];
        for _ in 0..120 {
            self.publish("filler", 0, &filler);
        }
    }

    fn done(&mut self, request: &[u8]) {
        let answer = client::ask(&mut self.machine, 0, self.admin, request);
        let (header, body, _) = client::whole(&answer);
        if header.kind == FrameKind::Failed {
            let failure = Failure::decode(body).expect("a failure");
            panic!("{}", String::from_utf8_lossy(failure.reason));
        }
        assert_eq!(header.kind, FrameKind::Done);
    }

    fn publish(&mut self, key: &str, ttl_ms: u32, payload: &[u8]) {
        self.publish_parts(&MessageParts {
            routing_key: key.as_bytes(),
            payload,
            ttl_ms,
            ..MessageParts::default()
        });
    }

    fn publish_parts(&mut self, parts: &MessageParts<'_>) {
        let mut message = Vec::new();
        parts.write(&mut message).expect("within limits");
        self.published += 1;
        let mut bytes = Vec::new();
        let length = parts.length();
        if length <= FRAGMENT_BYTES_MAX {
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(FrameKind::Publish, 1, self.published)
            };
            frame::write(&mut bytes, header, &message);
            self.machine.send(0, self.producer, &bytes);
        } else {
            for (number, piece) in message[..length].chunks(FRAGMENT_BYTES_MAX).enumerate() {
                let head = FragmentHead {
                    message_bytes: length as u32,
                    offset: (number * FRAGMENT_BYTES_MAX) as u32,
                };
                let mut body = head.encode().to_vec();
                body.extend_from_slice(piece);
                let header = FrameHeader {
                    count: 1,
                    ..FrameHeader::bare(FrameKind::PublishFragment, 1, self.published)
                };
                bytes.clear();
                frame::write(&mut bytes, header, &body);
                self.machine.send(0, self.producer, &bytes);
                self.turns(20);
            }
        }
        for _ in 0..1_000 {
            self.machine.turn();
            let received = std::mem::take(self.machine.received(0, self.producer));
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let (header, body, after) = client::whole(rest);
                rest = after;
                match header.kind {
                    FrameKind::Confirm if header.sequence == self.published => return,
                    FrameKind::Refused => {
                        let failure = Failure::decode(body).expect("a failure");
                        panic!("refused: {}", String::from_utf8_lossy(failure.reason));
                    }
                    _ => {}
                }
            }
        }
        panic!("no answer to publish {}", self.published);
    }

    fn turns(&mut self, count: u32) {
        for _ in 0..count {
            self.machine.turn();
        }
    }

    /// Lets so many ms pass.
    fn pass(&mut self, ms: u64) {
        self.turns((ms * 1_000_000 / machine::TURN_NS) as u32);
    }

    /// Ready messages of a queue, and those that are unsettled or on their way to where the dead go.
    fn holds(&mut self, name: &str) -> (u64, u64) {
        let named = Named {
            name: name.as_bytes(),
        };
        let mut bytes = Vec::new();
        named.write(&mut bytes, FrameHeader::bare(FrameKind::QueueInspect, 0, 1));
        let answer = client::ask(&mut self.machine, 0, self.admin, &bytes);
        let (header, body, _) = client::whole(&answer);
        assert_eq!(header.kind, FrameKind::QueueInfo);
        let info = QueueInfo::decode(body).expect("figures");
        (info.ready, info.unacked + info.dead)
    }

    fn consumer(&mut self, queue: &str) -> Consumer {
        let conn = client::greet(&mut self.machine, 0);
        let open = ConsumerOpen {
            credit_bytes: 64 << 20,
            credit_messages: 1_000,
            flags: 0,
            queue: queue.as_bytes(),
            arguments: b"",
        };
        let mut bytes = Vec::new();
        open.write(&mut bytes, FrameHeader::bare(FrameKind::ConsumerOpen, 1, 1));
        self.machine.send(0, conn, &bytes);
        self.turns(20);
        Consumer {
            conn,
            pieces: Vec::new(),
        }
    }

    /// Opens a consumer, takes what is there, acks all of it and closes.
    fn drain(&mut self, queue: &str) -> Vec<Got> {
        let mut consumer = self.consumer(queue);
        self.turns(100);
        let got = consumer.got(self);
        for got in &got {
            consumer.settle(self, got.tag, SETTLE_ACK);
        }
        let mut bytes = Vec::new();
        frame::write_bare(&mut bytes, FrameKind::ConsumerClose, 1, 10);
        self.machine.send(0, consumer.conn, &bytes);
        self.turns(100);
        got
    }
}

struct Consumer {
    conn: ConnId,
    pieces: Vec<u8>,
}

impl Consumer {
    fn got(&mut self, scene: &mut Scene) -> Vec<Got> {
        let mut all = Vec::new();
        // Large ones come as their socket takes them.
        for _ in 0..200 {
            let received = std::mem::take(scene.machine.received(0, self.conn));
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let (header, body, after) = client::whole(rest);
                rest = after;
                match header.kind {
                    FrameKind::Deliver => {
                        let (head, messages) = DeliverHead::split(body).expect("a head");
                        for (idx, message) in Messages::new(messages).enumerate() {
                            let message = message.expect("a message");
                            let length = message.envelope.length();
                            all.push(Got {
                                tag: header.sequence + idx as u64,
                                earlier: head.delivery_count,
                                bytes: message.bytes[..length].to_vec(),
                            });
                        }
                    }
                    FrameKind::DeliverFragment => {
                        let (head, piece) = DeliverHead::split(body).expect("a head");
                        let (fragment, piece) = FragmentHead::split(piece).expect("a piece");
                        self.pieces.extend_from_slice(piece);
                        if self.pieces.len() == fragment.message_bytes as usize {
                            all.push(Got {
                                tag: header.sequence,
                                earlier: head.delivery_count,
                                bytes: std::mem::take(&mut self.pieces),
                            });
                        }
                    }
                    FrameKind::ConsumerOpened | FrameKind::Settled => {}
                    kind => panic!("a consumer got {kind:?}"),
                }
            }
            scene.machine.turn();
        }
        all
    }

    /// How many settlements were confirmed since this was last asked; nothing else came.
    fn settled(&mut self, scene: &mut Scene) -> usize {
        let received = std::mem::take(scene.machine.received(0, self.conn));
        let mut rest = received.as_slice();
        let mut count = 0;
        while !rest.is_empty() {
            let (header, _, after) = client::whole(rest);
            rest = after;
            assert_eq!(header.kind, FrameKind::Settled);
            count += 1;
        }
        count
    }

    fn settle(&self, scene: &mut Scene, tag: u64, outcome: u8) {
        let header = FrameHeader {
            count: 1,
            flags: outcome,
            ..FrameHeader::bare(FrameKind::Settle, 1, tag)
        };
        let range = SettleRange {
            first: tag,
            last: tag,
        };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, &range.encode());
        scene.machine.send(0, self.conn, &bytes);
        scene.turns(5);
    }
}

fn to_dead<'a>() -> [(&'a str, Value<'a>); 2] {
    [
        ("x-dead-letter-exchange", Value::Text(b"")),
        ("x-dead-letter-routing-key", Value::Text(b"dead")),
    ]
}

/// Where the dead go lies on this core and on another one.
fn everywhere(mut check: impl FnMut(&mut Scene)) {
    for (cores, partition) in [(1, 0), (2, 0), (2, 1)] {
        let mut scene = Scene::new(cores);
        scene.queue("dead", partition, 0, &[]);
        check(&mut scene);
    }
}

#[test]
fn a_rejected_message_goes_to_the_dead_letter_exchange() {
    everywhere(|scene| {
        scene.queue("orders", 0, 0, &to_dead());
        for payload in [b"one", b"two"] {
            scene.publish("orders", 0, payload);
        }
        let mut consumer = scene.consumer("orders");
        let got = consumer.got(scene);
        assert_eq!(got.len(), 2);
        consumer.settle(scene, got[0].tag, SETTLE_REJECT);
        consumer.settle(scene, got[1].tag, SETTLE_ACK);
        scene.turns(200);
        assert_eq!(scene.holds("orders"), (0, 0));
        assert_eq!(scene.holds("dead"), (1, 0));
        let dead = scene.drain("dead");
        assert_eq!(dead[0].payload(), b"one");
        assert_eq!(
            dead[0].deaths(),
            [("orders".to_owned(), "rejected".to_owned(), 1)]
        );
        assert_eq!(
            dead[0].header("x-first-death-queue").as_deref(),
            Some("orders")
        );
        let message = envelope::open(&dead[0].bytes).expect("a message");
        assert_eq!(
            (message.exchange(), message.routing_key()),
            (&b""[..], &b"dead"[..])
        );
    });
}

#[test]
fn messages_expire_without_anybody_and_are_never_delivered_late() {
    everywhere(|scene| {
        let mut settings = to_dead().to_vec();
        settings.push(("x-message-ttl", Value::I32(100)));
        scene.queue("short", 0, 0, &settings);
        scene.queue("any", 0, 0, &to_dead());
        scene.publish("short", 0, b"by the queue");
        scene.publish("short", 20, b"by itself");
        scene.publish("any", 40, b"first");
        scene.publish("any", 0, b"stays");
        scene.pass(60);
        // What is behind waits for its turn at the head.
        assert_eq!(scene.holds("short"), (2, 0));
        assert_eq!(scene.holds("any"), (1, 0));
        scene.pass(60);
        assert_eq!(scene.holds("short"), (0, 0));
        let dead: Vec<_> = scene.drain("dead").iter().map(Got::payload).collect();
        let expected = [&b"first"[..], b"by the queue", b"by itself"];
        assert_eq!(dead, expected);
        assert_eq!(scene.drain("any").len(), 1);
    });
}

#[test]
fn a_dead_letter_does_not_expire_again_and_says_what_it_was_allowed() {
    everywhere(|scene| {
        scene.queue("any", 0, 0, &to_dead());
        scene.publish("any", 30, b"late");
        scene.pass(200);
        let dead = scene.drain("dead");
        assert_eq!(dead.len(), 1);
        let message = envelope::open(&dead[0].bytes).expect("a message");
        assert_eq!(message.ttl_ms(), 0);
        let table = Table::parse(message.headers()).expect("headers");
        let Some(Value::Array(array)) = table.get(b"x-death") else {
            panic!("it died")
        };
        let Some(Value::Table(entry)) = array.values().next() else {
            panic!("a table")
        };
        assert_eq!(entry.get(b"original-expiration"), Some(Value::Text(b"30")));
    });
}

#[test]
fn a_queue_that_drops_its_head_keeps_the_newest() {
    let mut scene = Scene::new(1);
    scene.queue("dead", 0, 0, &[]);
    let drop = ("x-overflow", Value::Text(b"drop-head"));
    scene.queue("few", 0, 3, &[drop]);
    let settings: Vec<_> = to_dead().into_iter().chain([drop]).collect();
    scene.queue("kept", 0, 3, &settings);
    for number in 0..10_u8 {
        scene.publish("few", 0, &[number]);
        scene.publish("kept", 0, &[number]);
    }
    scene.turns(300);
    for name in ["few", "kept"] {
        let left: Vec<_> = scene.drain(name).iter().map(Got::payload).collect();
        assert_eq!(left, [[7], [8], [9]]);
    }
    let mut dead: Vec<_> = scene.drain("dead").iter().map(Got::payload).collect();
    dead.sort();
    assert_eq!(dead, (0..7).map(|number| vec![number]).collect::<Vec<_>>());
}

#[test]
fn a_message_comes_back_as_often_as_it_may() {
    everywhere(|scene| {
        let limit = ("x-delivery-limit", Value::I32(2));
        let settings: Vec<_> = to_dead().into_iter().chain([limit]).collect();
        scene.queue("orders", 0, 0, &settings);
        scene.queue("dropped", 0, 0, &[limit]);
        for name in ["orders", "dropped"] {
            scene.publish(name, 0, b"poison");
            let mut consumer = scene.consumer(name);
            for earlier in 0..3 {
                let got = consumer.got(scene);
                assert_eq!(got.len(), 1, "delivery {earlier} of {name}");
                assert_eq!(got[0].earlier, earlier);
                consumer.settle(scene, got[0].tag, SETTLE_REQUEUE);
            }
            assert_eq!(consumer.got(scene), []);
            assert_eq!(scene.holds(name), (0, 0));
        }
        let dead = scene.drain("dead");
        assert_eq!(dead.len(), 1);
        assert_eq!(
            dead[0].deaths(),
            [("orders".to_owned(), "delivery_limit".to_owned(), 1)]
        );
    });
}

#[test]
fn what_nobody_rejected_does_not_go_round() {
    let mut scene = Scene::new(2);
    let back = |key: &'static [u8]| {
        [
            ("x-dead-letter-exchange", Value::Text(b"")),
            ("x-dead-letter-routing-key", Value::Text(key)),
            ("x-message-ttl", Value::I32(10)),
        ]
    };
    scene.queue("one", 0, 0, &back(b"two"));
    scene.queue("two", 1, 0, &back(b"one"));
    scene.queue("self", 0, 0, &back(b"self"));
    scene.publish("one", 0, b"round");
    scene.publish("self", 0, b"round");
    scene.pass(300);
    for name in ["one", "two", "self"] {
        assert_eq!(scene.holds(name), (0, 0), "{name}");
    }
    // A retry with a pause: what was rejected comes back, again and again.
    scene.queue(
        "work",
        0,
        0,
        &[
            ("x-dead-letter-exchange", Value::Text(b"")),
            ("x-dead-letter-routing-key", Value::Text(b"pause")),
        ],
    );
    scene.queue("pause", 1, 0, &back(b"work"));
    scene.publish("work", 0, b"try");
    let mut consumer = scene.consumer("work");
    for count in 0..3 {
        scene.pass(50);
        let got = consumer.got(&mut scene);
        assert_eq!(got.len(), 1, "try {count}");
        let deaths = got[0].deaths();
        let expected: Vec<(String, String, i64)> = match count {
            0 => Vec::new(),
            _ => vec![
                ("pause".to_owned(), "expired".to_owned(), count),
                ("work".to_owned(), "rejected".to_owned(), count),
            ],
        };
        assert_eq!(deaths, expected);
        consumer.settle(&mut scene, got[0].tag, SETTLE_REJECT);
    }
}

fn expires_to(key: &[u8]) -> [(&str, Value<'_>); 3] {
    [
        ("x-dead-letter-exchange", Value::Text(b"")),
        ("x-dead-letter-routing-key", Value::Text(key)),
        ("x-message-ttl", Value::I32(10)),
    ]
}

/// A publisher that says that somebody has rejected its message.
fn claims_a_reject() -> Vec<u8> {
    let mut entry = Vec::new();
    let mut writer = TableWriter::new(&mut entry);
    writer
        .put(b"count", Value::I64(1))
        .put(b"reason", Value::Text(b"rejected"))
        .put(b"queue", Value::Text(b"elsewhere"));
    writer.finish().expect("a small table");
    let mut all = Vec::new();
    let mut writer = ArrayWriter::new(&mut all);
    writer.put(Value::Table(Table::parse(&entry).expect("a table")));
    writer.finish().expect("a small array");
    let all = Array::parse(&all).expect("an array");
    table(&[
        ("x-death", Value::Array(all)),
        ("x-first-death-queue", Value::Text(b"elsewhere")),
    ])
}

//= P-25
#[test]
fn what_a_publisher_says_of_deaths_is_not_believed() {
    let mut scene = Scene::new(1);
    scene.queue("self", 0, 0, &expires_to(b"self"));
    scene.queue("dead", 0, 0, &[]);
    scene.queue("short", 0, 0, &expires_to(b"dead"));
    let headers = claims_a_reject();
    for key in [&b"self"[..], b"short"] {
        scene.publish_parts(&MessageParts {
            routing_key: key,
            headers: &headers,
            ..MessageParts::default()
        });
    }
    scene.pass(300);
    assert_eq!(scene.holds("self"), (0, 0));
    let dead = scene.drain("dead");
    assert_eq!(
        dead[0].deaths(),
        [("short".to_owned(), "expired".to_owned(), 1)]
    );
    let first = dead[0].header("x-first-death-queue");
    assert_eq!(first.as_deref(), Some("short"));
}

#[test]
fn a_round_ends_though_somebody_rejected_it_before() {
    let mut scene = Scene::new(1);
    scene.queue("self", 0, 0, &expires_to(b"self"));
    scene.queue(
        "work",
        0,
        0,
        &[
            ("x-dead-letter-exchange", Value::Text(b"")),
            ("x-dead-letter-routing-key", Value::Text(b"self")),
        ],
    );
    scene.publish("work", 0, b"try");
    let mut consumer = scene.consumer("work");
    for got in consumer.got(&mut scene) {
        consumer.settle(&mut scene, got.tag, SETTLE_REJECT);
    }
    scene.pass(300);
    assert_eq!(scene.holds("self"), (0, 0));
}

#[test]
fn a_round_that_headers_do_not_tell_of_ends() {
    let mut scene = Scene::new(1);
    // More queues than entries are kept.
    let names: Vec<String> = (0..40).map(|number| format!("ring-{number}")).collect();
    for (idx, name) in names.iter().enumerate() {
        let next = &names[(idx + 1) % names.len()];
        scene.queue(name, 0, 0, &expires_to(next.as_bytes()));
    }
    scene.publish("ring-0", 0, b"round");
    // Headers that have no room for a note.
    scene.queue("one", 0, 0, &expires_to(b"two"));
    scene.queue("two", 0, 0, &expires_to(b"one"));
    let filler = vec![b'x'; HEADERS_BYTES_MAX - 20];
    let headers = table(&[("filler", Value::Text(&filler))]);
    scene.publish_parts(&MessageParts {
        routing_key: b"one",
        headers: &headers,
        ..MessageParts::default()
    });
    scene.pass(1_500);
    for name in names.iter().map(String::as_str).chain(["one", "two"]) {
        assert_eq!(scene.holds(name), (0, 0), "{name}");
    }
    let flow = scene.machine.core(0).flow().expect("it runs");
    assert_eq!(flow.stats().dead_unroutable, 2);
    assert_eq!(flow.stats().dead_lettered, 2 * 65);
}

#[test]
fn a_dead_letter_waits_for_a_queue_that_is_full() {
    for partition in [0, 1] {
        let mut scene = Scene::new(2);
        scene.queue("dead", partition, 1, &[]);
        scene.queue("orders", 0, 0, &to_dead());
        for payload in [b"one", b"two"] {
            scene.publish("orders", 0, payload);
        }
        let mut consumer = scene.consumer("orders");
        for got in consumer.got(&mut scene) {
            consumer.settle(&mut scene, got.tag, SETTLE_REJECT);
        }
        scene.pass(500);
        assert_eq!(scene.holds("dead"), (1, 0));
        assert_eq!(scene.holds("orders"), (0, 1), "one is on its way");
        assert_eq!(scene.drain("dead")[0].payload(), b"one");
        scene.pass(6_000);
        assert_eq!(scene.holds("orders"), (0, 0));
        assert_eq!(scene.drain("dead")[0].payload(), b"two");
    }
}

#[test]
fn a_reject_is_confirmed_when_its_dead_letter_is_stored() {
    for partition in [0, 1] {
        let mut scene = Scene::new(2);
        scene.queue("dead", partition, 1, &[]);
        scene.queue("orders", 0, 0, &to_dead());
        for payload in [b"one", b"two"] {
            scene.publish("orders", 0, payload);
        }
        let mut consumer = scene.consumer("orders");
        let got = consumer.got(&mut scene);
        consumer.settle(&mut scene, got[0].tag, SETTLE_REJECT | SETTLE_CONFIRM);
        scene.pass(200);
        assert_eq!(consumer.settled(&mut scene), 1);
        consumer.settle(&mut scene, got[1].tag, SETTLE_REJECT | SETTLE_CONFIRM);
        scene.pass(500);
        assert_eq!(consumer.settled(&mut scene), 0, "there is no room for it");
        assert_eq!(scene.drain("dead").len(), 1);
        scene.pass(6_000);
        assert_eq!(consumer.settled(&mut scene), 1);
        assert_eq!(scene.holds("dead"), (1, 0));
    }
}

/// Dead letters of `orders` go to the queue that their routing key names.
fn by_key(scene: &mut Scene, partition: u16) {
    scene.queue("full", partition, 1, &[]);
    scene.queue("free", partition, 0, &[]);
    scene.queue(
        "orders",
        0,
        0,
        &[("x-dead-letter-exchange", Value::Text(b""))],
    );
    scene.bind("amq.fanout", "orders");
}

fn publish_order(scene: &mut Scene, key: &str) {
    scene.publish_parts(&MessageParts {
        exchange: b"amq.fanout",
        routing_key: key.as_bytes(),
        payload: key.as_bytes(),
        ..MessageParts::default()
    });
}

#[test]
fn a_confirm_waits_for_no_death_before_it() {
    for partition in [0, 1] {
        let mut scene = Scene::new(2);
        by_key(&mut scene, partition);
        for key in ["full", "full", "free", "free"] {
            publish_order(&mut scene, key);
        }
        let mut consumer = scene.consumer("orders");
        let got = consumer.got(&mut scene);
        consumer.settle(&mut scene, got[0].tag, SETTLE_REJECT);
        consumer.settle(&mut scene, got[1].tag, SETTLE_REJECT);
        scene.pass(500);
        assert_eq!(scene.holds("orders"), (0, 3), "one has no place to go");
        consumer.settle(&mut scene, got[2].tag, SETTLE_REJECT | SETTLE_CONFIRM);
        scene.pass(50);
        assert_eq!(consumer.settled(&mut scene), 1);
        consumer.settle(&mut scene, got[3].tag, SETTLE_REQUEUE | SETTLE_CONFIRM);
        scene.pass(50);
        let again = consumer.got(&mut scene);
        assert_eq!(again.len(), 1);
        consumer.settle(&mut scene, again[0].tag, SETTLE_REJECT | SETTLE_CONFIRM);
        let mut bytes = Vec::new();
        frame::write_bare(&mut bytes, FrameKind::ConsumerClose, 1, 10);
        scene.machine.send(0, consumer.conn, &bytes);
        scene.pass(50);
        let said = std::mem::take(scene.machine.received(0, consumer.conn));
        let (settled, _, rest) = client::whole(&said);
        assert_eq!(settled.kind, FrameKind::Settled);
        assert_eq!(client::whole(rest).0.kind, FrameKind::ConsumerClosed);
    }
}

#[test]
fn full_queues_that_die_into_each_other_go_on() {
    for cores in [1, 2] {
        let mut scene = Scene::new(cores);
        let to = |key: &'static [u8]| {
            [
                ("x-dead-letter-exchange", Value::Text(b"")),
                ("x-dead-letter-routing-key", Value::Text(key)),
            ]
        };
        scene.queue("one", 0, 2, &to(b"two"));
        scene.queue("two", cores - 1, 2, &to(b"one"));
        scene.queue("self", 0, 2, &to(b"self"));
        for name in ["one", "two", "self"] {
            for _ in 0..2 {
                scene.publish(name, 0, name.as_bytes());
            }
        }
        let mut consumers: Vec<_> = ["one", "two", "self"]
            .map(|name| (name, scene.consumer(name)))
            .into();
        let mut expected = ["one", "two", "self"];
        for round in 0..3 {
            let mut all = Vec::new();
            for ((name, consumer), expected) in consumers.iter_mut().zip(expected) {
                let got = consumer.got(&mut scene);
                assert_eq!(got.len(), 2, "{name} in round {round}");
                assert!(got.iter().all(|got| got.payload() == expected.as_bytes()));
                all.push(got);
            }
            for ((_, consumer), got) in consumers.iter().zip(all) {
                for got in got {
                    consumer.settle(&mut scene, got.tag, SETTLE_REJECT);
                }
            }
            scene.pass(300);
            expected.swap(0, 1);
        }
    }
}

#[test]
fn refused_letters_of_a_queue_keep_no_other_waiting() {
    for partition in [0, 1] {
        let mut scene = Scene::new(2);
        scene.queue("full", partition, 10, &[]);
        let to_full = [
            ("x-dead-letter-exchange", Value::Text(b"")),
            ("x-dead-letter-routing-key", Value::Text(b"full")),
            ("x-message-ttl", Value::I32(50)),
        ];
        scene.queue("many", 0, 0, &to_full);
        scene.queue("dead", partition, 0, &[]);
        let mut to_dead = to_dead().to_vec();
        to_dead.push(("x-message-ttl", Value::I32(50)));
        scene.queue("other", 0, 0, &to_dead);
        const MANY: u32 = 400;
        for number in 0..MANY {
            scene.publish("many", 0, &number.to_le_bytes());
        }
        scene.pass(1_000);
        assert_eq!(scene.holds("full"), (10, 0));
        assert_eq!(scene.holds("many"), (0, u64::from(MANY) - 10));
        assert!(scene.letters() <= 16, "others wait in their queue");
        scene.publish("other", 0, b"passes");
        scene.pass(100);
        assert_eq!(scene.holds("dead"), (1, 0));
        // Each comes once, whatever it waited for.
        let mut got = Vec::new();
        for _ in 0..40 {
            scene.pass(6_000);
            let some = scene.drain("full");
            assert_eq!(some.len(), 10);
            got.extend(some.iter().map(Got::payload));
        }
        got.sort();
        got.dedup();
        assert_eq!(got.len(), MANY as usize);
        assert_eq!(scene.holds("many"), (0, 0));
        assert_eq!(scene.letters(), 0);
    }
}

#[test]
fn letters_for_other_queues_pass_those_that_are_refused() {
    let mut scene = Scene::new(1);
    by_key(&mut scene, 0);
    for _ in 0..60 {
        publish_order(&mut scene, "full");
    }
    publish_order(&mut scene, "free");
    let mut consumer = scene.consumer("orders");
    for got in consumer.got(&mut scene) {
        consumer.settle(&mut scene, got.tag, SETTLE_REJECT);
    }
    scene.pass(6_000);
    assert_eq!(scene.holds("full"), (1, 0));
    assert_eq!(scene.holds("free"), (1, 0));
    assert_eq!(scene.holds("orders"), (0, 59));
}

/// Two queues with a large message each that is dead and on disk; the first reads it, and the device
/// does not answer.
fn two_gather() -> Scene {
    let mut scene = Scene::new(1);
    scene.queue("dead", 0, 0, &[]);
    scene.queue("filler", 0, 0, &[("x-message-ttl", Value::I32(1))]);
    for (name, ttl_ms) in [("one", 2_000), ("two", 2_100)] {
        let mut settings = to_dead().to_vec();
        settings.push(("x-message-ttl", Value::I32(ttl_ms)));
        scene.queue(name, 0, 0, &settings);
        scene.publish(name, 0, &vec![7; 900_000]);
    }
    scene.push_out();
    scene.machine.stall_reads(0, true);
    scene.pass(2_500);
    assert_eq!(scene.letters(), 0, "they are being read");
    assert_eq!(scene.holds("one"), (0, 1));
    assert_eq!(scene.holds("two"), (0, 1));
    scene
}

#[test]
fn a_large_dead_message_that_is_gone_keeps_no_other_waiting() {
    let mut scene = two_gather();
    scene.delete("one");
    scene.machine.stall_reads(0, false);
    scene.pass(100);
    assert_eq!(scene.holds("two"), (0, 0));
    assert_eq!(scene.drain("dead").len(), 1);
}

#[test]
fn a_read_that_finds_no_buffer_is_tried_again_soon() {
    let mut scene = Scene::new(1);
    scene.queue("dead", 0, 0, &[]);
    scene.queue("filler", 0, 0, &[("x-message-ttl", Value::I32(1))]);
    let mut settings = to_dead().to_vec();
    settings.push(("x-message-ttl", Value::I32(2_000)));
    scene.queue("orders", 0, 0, &settings);
    scene.publish("orders", 0, b"cold");
    scene.push_out();
    let reads = scene.machine.reads(0);
    for _ in 0..15_000 {
        scene.machine.hog(0);
        scene.machine.turn();
    }
    assert_eq!(scene.machine.reads(0), reads, "there was no buffer");
    let now = scene.machine.now();
    let soon = now.plus_ms(1);
    let deadline = scene.machine.core(0).next_deadline(now);
    assert!(deadline.is_some_and(|at| at <= soon), "{deadline:?}");
    scene.machine.unhog(0);
    scene.pass(50);
    assert_eq!(scene.holds("dead"), (1, 0));
}

#[test]
fn a_journal_that_has_failed_keeps_no_letters() {
    let mut scene = Scene::new(1);
    scene.queue("full", 0, 1, &[]);
    scene.queue("free", 0, 0, &[]);
    scene.volatile_queue("lives", &[]);
    let to = |key: &'static [u8]| {
        [
            ("x-dead-letter-exchange", Value::Text(b"")),
            ("x-dead-letter-routing-key", Value::Text(key)),
            ("x-message-ttl", Value::I32(100)),
        ]
    };
    scene.queue("orders", 0, 0, &to(b"full"));
    scene.volatile_queue("passing", &to(b"free"));
    scene.volatile_queue("going", &to(b"lives"));
    for _ in 0..5 {
        scene.publish("orders", 0, b"dies");
    }
    scene.pass(500);
    assert_eq!(scene.letters(), 4);
    for name in ["passing", "going"] {
        scene.publish(name, 0, b"dies");
    }
    scene.machine.fail_writes(0);
    scene.pass(2_000);
    assert!(scene.machine.core(0).has_failed());
    assert_eq!(scene.letters(), 0);
    assert_eq!(scene.holds("passing"), (0, 0), "what it goes to is closed");
    assert_eq!(scene.holds("going"), (0, 0));
    assert_eq!(scene.holds("lives"), (1, 0));
}

#[test]
fn a_dead_letter_without_a_queue_is_dropped() {
    let mut scene = Scene::new(1);
    scene.queue(
        "lost",
        0,
        0,
        &[("x-dead-letter-exchange", Value::Text(b"nowhere"))],
    );
    scene.publish("lost", 10, b"gone");
    scene.pass(100);
    assert_eq!(scene.holds("lost"), (0, 0));
    let flow = scene.machine.core(0).flow().expect("it runs");
    assert_eq!(
        (flow.stats().dead_lettered, flow.stats().dead_unroutable),
        (1, 1)
    );
    let expired = Death::ALL.map(|death| u64::from(death == Death::Expired));
    assert_eq!(flow.deaths(), expired);
    scene.delete("lost");
    let flow = scene.machine.core(0).flow().expect("it runs");
    assert_eq!(flow.deaths(), expired, "a queue that is gone counts on");
}

#[test]
fn a_dead_letter_fans_out_to_queues_of_several_cores() {
    let mut scene = Scene::new(2);
    let declare = ExchangeDeclare {
        kind: ExchangeKind::Fanout as u8,
        durability: Durability::Durable as u8,
        flags: 0,
        reserved: 0,
        name: b"dlx",
        arguments: b"",
    };
    let mut bytes = Vec::new();
    declare.write(
        &mut bytes,
        FrameHeader::bare(FrameKind::ExchangeDeclare, 0, 1),
    );
    scene.done(&bytes);
    for (name, partition) in [("a", 0), ("b", 1), ("c", 0)] {
        scene.queue(name, partition, 0, &[]);
        scene.bind("dlx", name);
    }
    scene.queue(
        "orders",
        1,
        0,
        &[("x-dead-letter-exchange", Value::Text(b"dlx"))],
    );
    scene.publish("orders", 10, b"all");
    scene.pass(100);
    for name in ["a", "b", "c"] {
        let got = scene.drain(name);
        assert_eq!(got.len(), 1, "{name}");
        let message = envelope::open(&got[0].bytes).expect("a message");
        assert_eq!(
            (message.exchange(), message.routing_key()),
            (&b"dlx"[..], &b"orders"[..])
        );
    }
}

#[test]
fn large_messages_die_too() {
    everywhere(|scene| {
        scene.queue("orders", 0, 0, &to_dead());
        let large = vec![7; 500_000];
        // One that is large only with what is said of its death.
        let nearly = vec![8; FRAGMENT_BYTES_MAX - 100];
        scene.publish("orders", 0, &large);
        scene.publish("orders", 0, &nearly);
        scene.publish("orders", 0, b"small");
        let mut consumer = scene.consumer("orders");
        let got = consumer.got(scene);
        assert_eq!(got.len(), 3);
        for got in &got {
            consumer.settle(scene, got.tag, SETTLE_REJECT);
        }
        scene.turns(500);
        assert_eq!(scene.holds("orders"), (0, 0));
        let mut dead: Vec<_> = scene.drain("dead").iter().map(Got::payload).collect();
        dead.sort();
        assert_eq!(dead, [large, nearly, b"small".to_vec()].map(Vec::from));
    });
}

#[test]
fn names_of_the_broker_are_its_own() {
    let mut scene = Scene::new(1);
    let open = ProducerOpen {
        producer: ringpost_wire::limits::PRODUCER_BROKER_MIN,
        epoch: 1,
        level: 2,
        flags: 0,
        reserved: 0,
    };
    let mut bytes = Vec::new();
    open.write(&mut bytes, FrameHeader::bare(FrameKind::ProducerOpen, 1, 1));
    let answer = client::ask(&mut scene.machine, 0, scene.admin, &bytes);
    let (header, body, _) = client::whole(&answer);
    assert_eq!(header.kind, FrameKind::Failed);
    let failure = Failure::decode(body).expect("a failure");
    assert_eq!(failure.code, Code::SettingInvalid as u16);
}
