//! Streams and their groups, as clients see them: on one core and on two, from memory and from disk.
//! Does not know crashes; the simulator does.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use machine::{Machine, Size};
use ringpost_engine::ConnId;
use ringpost_wire::control::{
    Body, ConsumerOpen, ConsumerPosition, Durability, Failure, GroupDelete, GroupInfo, GroupReset,
    Named, ProducerOpen, QUEUE_STREAM, QueueDeclare, QueueInfo,
};
use ringpost_wire::header::{SETTLE_ACK, SETTLE_CONFIRM};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{
    Code, DeliverHead, FRAGMENT_BYTES_MAX, FragmentHead, FrameHeader, FrameKind, MessageParts,
    Messages, SettleRange, envelope, frame,
};

const STREAM: (&str, Value<'_>) = ("x-queue-type", Value::Text(b"stream"));
const FIRST: (&str, Value<'_>) = ("x-stream-offset", Value::Text(b"first"));

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().expect("a small table");
    bytes
}

struct Scene {
    machine: Machine,
    admin: ConnId,
    producer: ConnId,
    published: u64,
}

/// What a reader was told, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Told {
    Message { offset: u64, payload: Vec<u8> },
    Position { offset: u64, missed: u64 },
    Active(bool),
    Settled,
    Closed(Code, String),
}

struct Reader {
    conn: ConnId,
    pieces: Vec<u8>,
    tag: u64,
}

impl Scene {
    fn new(cores: u16, buffers: u32) -> Self {
        let mut machine = Machine::start(Size {
            cores,
            buffers,
            segment_bytes: 8 << 20,
            slots_max: 24,
        });
        let admin = client::greet(&mut machine, 0);
        let producer = client::greet(&mut machine, 0);
        let open = ProducerOpen {
            producer: 77,
            epoch: 1,
            level: 2,
            flags: 0,
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

    /// Declares in a partition: partition and core are the same for those used here.
    fn declare(&mut self, partition: u16, limit: u64, entries: &[(&str, Value<'_>)]) {
        let arguments = table(entries);
        let declare = QueueDeclare {
            messages_max: limit,
            bytes_max: 0,
            durability: Durability::Durable as u8,
            flags: 0,
            partition,
            name: b"s",
            arguments: &arguments,
        };
        let mut bytes = Vec::new();
        declare.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDeclare, 0, 1));
        assert_eq!(self.ask(&bytes), Ok(Vec::new()));
    }

    /// Asks something; the bodies of what comes before `Done`, or why not.
    fn ask(&mut self, request: &[u8]) -> Result<Vec<Vec<u8>>, (Code, String)> {
        self.machine.send(0, self.admin, request);
        let mut bodies = Vec::new();
        let mut bytes = Vec::new();
        for _ in 0..1_000 {
            self.machine.turn();
            bytes.append(self.machine.received(0, self.admin));
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (header, body, after) = client::whole(rest);
                rest = after;
                match header.kind {
                    FrameKind::Done => return Ok(bodies),
                    FrameKind::Failed => return Err(failure(body)),
                    FrameKind::QueueInfo => return Ok(vec![body.to_vec()]),
                    _ => bodies.push(body.to_vec()),
                }
            }
            bytes.clear();
        }
        panic!("no answer");
    }

    fn groups(&mut self) -> Vec<(String, u64, u64, u32)> {
        let mut bytes = Vec::new();
        let header = FrameHeader::bare(FrameKind::GroupList, 0, 5);
        Named { name: b"s" }.write(&mut bytes, header);
        let bodies = self.ask(&bytes).expect("it is a stream");
        let group = |body: &Vec<u8>| {
            let info = GroupInfo::decode(body).expect("figures");
            let name = String::from_utf8(info.name.to_vec()).expect("as it was made");
            (name, info.offset, info.lag, info.members)
        };
        bodies.iter().map(group).collect()
    }

    fn reset(&mut self, group: &str, entries: &[(&str, Value<'_>)]) -> Result<(), (Code, String)> {
        let reset = GroupReset {
            queue: b"s",
            group: group.as_bytes(),
            arguments: &table(entries),
        };
        let mut bytes = Vec::new();
        reset.write(&mut bytes, FrameHeader::bare(FrameKind::GroupReset, 0, 6));
        self.ask(&bytes).map(|_| ())
    }

    fn forget(&mut self, group: &str) -> Result<(), (Code, String)> {
        let delete = GroupDelete {
            queue: b"s",
            group: group.as_bytes(),
        };
        let mut bytes = Vec::new();
        delete.write(&mut bytes, FrameHeader::bare(FrameKind::GroupDelete, 0, 7));
        self.ask(&bytes).map(|_| ())
    }

    fn publish(&mut self, key: &str, ttl_ms: u32, headers: &[(&str, Value<'_>)], payload: &[u8]) {
        let headers = table(headers);
        let parts = MessageParts {
            exchange: b"",
            routing_key: b"s",
            headers: &headers,
            payload,
            ttl_ms,
            ..MessageParts::default()
        };
        assert_eq!(key, "s");
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
                    FrameKind::Refused => panic!("refused: {:?}", failure(body)),
                    _ => {}
                }
            }
        }
        panic!("no answer to publish {}", self.published);
    }

    fn publish_some(&mut self, count: u32) {
        for _ in 0..count {
            let payload = (self.published + 1).to_string();
            self.publish("s", 0, &[], payload.as_bytes());
        }
    }

    fn turns(&mut self, count: u32) {
        for _ in 0..count {
            self.machine.turn();
        }
    }

    fn info(&mut self) -> (u64, u64, u8) {
        let mut bytes = Vec::new();
        let header = FrameHeader::bare(FrameKind::QueueInspect, 0, 8);
        Named { name: b"s" }.write(&mut bytes, header);
        let bodies = self.ask(&bytes).expect("it is there");
        let info = QueueInfo::decode(&bodies[0]).expect("figures");
        (info.ready, info.unacked, info.flags)
    }

    fn reader(&mut self, credit: u32, flags: u32, entries: &[(&str, Value<'_>)]) -> Reader {
        let conn = client::greet(&mut self.machine, 0);
        let arguments = table(entries);
        let open = ConsumerOpen {
            credit_bytes: 64 << 20,
            credit_messages: credit,
            flags,
            queue: b"s",
            arguments: &arguments,
        };
        let mut bytes = Vec::new();
        open.write(&mut bytes, FrameHeader::bare(FrameKind::ConsumerOpen, 1, 1));
        self.machine.send(0, conn, &bytes);
        Reader {
            conn,
            pieces: Vec::new(),
            tag: 0,
        }
    }
}

fn failure(body: &[u8]) -> (Code, String) {
    let failure = Failure::decode(body).expect("a failure");
    let text = String::from_utf8_lossy(failure.reason).into_owned();
    (Code::from_number(failure.code), text)
}

impl Reader {
    /// What it is told until nothing more comes.
    fn told(&mut self, scene: &mut Scene) -> Vec<Told> {
        let mut all = Vec::new();
        for _ in 0..120 {
            scene.machine.turn();
            let received = std::mem::take(scene.machine.received(0, self.conn));
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let (header, body, after) = client::whole(rest);
                rest = after;
                match header.kind {
                    FrameKind::Deliver => {
                        let (head, messages) = DeliverHead::split(body).expect("a head");
                        assert_eq!(head.delivery_count, u32::from(header.flags));
                        assert_eq!(header.sequence, self.tag + 1);
                        for (idx, message) in Messages::new(messages).enumerate() {
                            let message = message.expect("a message");
                            assert_eq!(message.envelope.check_crc(), Ok(()));
                            self.tag += 1;
                            all.push(Told::Message {
                                offset: head.queue_sequence + idx as u64,
                                payload: message.envelope.payload().to_vec(),
                            });
                        }
                    }
                    FrameKind::DeliverFragment => {
                        let (head, piece) = DeliverHead::split(body).expect("a head");
                        let (fragment, piece) = FragmentHead::split(piece).expect("a piece");
                        self.pieces.extend_from_slice(piece);
                        if self.pieces.len() == fragment.message_bytes as usize {
                            let bytes = std::mem::take(&mut self.pieces);
                            let message = envelope::open(&bytes).expect("a message");
                            assert_eq!(message.check_crc(), Ok(()));
                            self.tag += 1;
                            all.push(Told::Message {
                                offset: head.queue_sequence,
                                payload: message.payload().to_vec(),
                            });
                        }
                    }
                    FrameKind::ConsumerPosition => {
                        let position = ConsumerPosition::decode(body).expect("a position");
                        let ConsumerPosition { offset, missed } = position;
                        all.push(Told::Position { offset, missed });
                    }
                    FrameKind::ConsumerActive => all.push(Told::Active(header.flags == 1)),
                    FrameKind::Settled => all.push(Told::Settled),
                    FrameKind::ConsumerClosed | FrameKind::Failed => {
                        let (code, text) = failure(body);
                        all.push(Told::Closed(code, text));
                    }
                    FrameKind::ConsumerOpened => {}
                    kind => panic!("a reader got {kind:?}"),
                }
            }
        }
        all
    }

    /// The offsets of what it is given until nothing more comes.
    fn offsets(&mut self, scene: &mut Scene) -> Vec<u64> {
        let told = self.told(scene).into_iter();
        let offset = |told| match told {
            Told::Message { offset, .. } => Some(offset),
            _ => None,
        };
        told.filter_map(offset).collect()
    }

    fn settle(&self, scene: &mut Scene, (first, last): (u64, u64), outcome: u8) {
        let header = FrameHeader {
            count: 1,
            flags: outcome,
            ..FrameHeader::bare(FrameKind::Settle, 1, 9)
        };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, header, &SettleRange { first, last }.encode());
        scene.machine.send(0, self.conn, &bytes);
    }

    fn close(&self, scene: &mut Scene) {
        let mut bytes = Vec::new();
        frame::write_bare(&mut bytes, FrameKind::ConsumerClose, 1, 10);
        scene.machine.send(0, self.conn, &bytes);
        scene.turns(30);
    }
}

//= P-81, P-83
#[test]
fn every_reader_gets_everything_from_its_start_on() {
    for (cores, partition) in [(1, 0), (2, 1)] {
        let mut scene = Scene::new(cores, 64);
        scene.declare(partition, 0, &[STREAM]);
        scene.publish_some(10);
        let mut first = scene.reader(1_000, 0, &[FIRST]);
        let mut from_seven = scene.reader(1_000, 1, &[("x-stream-offset", Value::I8(7))]);
        let mut last = scene.reader(1_000, 0, &[("x-stream-offset", Value::Text(b"last"))]);
        let mut next = scene.reader(1_000, 0, &[]);
        scene.turns(50);
        scene.publish_some(5);
        let told = first.told(&mut scene);
        let position = |offset| Told::Position { offset, missed: 0 };
        assert_eq!(told[0], position(1));
        let expected = |from: u64| {
            let message = |offset: u64| Told::Message {
                offset,
                payload: offset.to_string().into_bytes(),
            };
            (from..=15).map(message).collect::<Vec<_>>()
        };
        assert_eq!(told[1..], expected(1));
        assert_eq!(from_seven.offsets(&mut scene), (7..=15).collect::<Vec<_>>());
        assert_eq!(last.offsets(&mut scene), (10..=15).collect::<Vec<_>>());
        let told = next.told(&mut scene);
        assert_eq!(told[0], position(11));
        assert_eq!(told[1..], expected(11));
        // Nothing was taken, whatever they settle.
        first.settle(&mut scene, (0, 15), SETTLE_ACK);
        scene.turns(20);
        assert_eq!(scene.info(), (15, 0, QUEUE_STREAM));
    }
}

#[test]
fn a_message_of_any_size_is_read_and_credit_holds() {
    let mut scene = Scene::new(1, 64);
    scene.declare(0, 0, &[STREAM]);
    scene.publish_some(2);
    scene.publish("s", 1, &[], &[7; 700_000]);
    scene.publish_some(2);
    let mut reader = scene.reader(2, 0, &[FIRST]);
    assert_eq!(reader.offsets(&mut scene), [1, 2]);
    reader.settle(&mut scene, (0, 2), SETTLE_ACK);
    let told = reader.told(&mut scene);
    // What a message itself may live is of no account in a stream.
    assert!(matches!(&told[0], Told::Message { offset: 3, payload } if payload.len() == 700_000));
    assert_eq!(told.len(), 2);
    reader.settle(&mut scene, (3, 3), SETTLE_ACK);
    assert_eq!(reader.offsets(&mut scene), [5]);
}

//= P-82
#[test]
fn filters_choose_at_the_broker() {
    let mut scene = Scene::new(2, 64);
    scene.declare(1, 0, &[STREAM]);
    for number in 0..60 {
        let colour = if number % 7 < 3 { &b"red"[..] } else { b"blue" };
        scene.publish("s", 0, &[("colour", Value::Text(colour))], b"x");
    }
    let red = [FIRST, ("x-stream-filter", Value::Text(b"colour = 'red'"))];
    let mut reader = scene.reader(1_000, 0, &red);
    let expected: Vec<u64> = (0..60)
        .filter(|number| number % 7 < 3)
        .map(|n| n + 1)
        .collect();
    assert_eq!(reader.offsets(&mut scene), expected);
    // A group passes over what its member does not want.
    let mut entries = red.to_vec();
    entries.push(("x-stream-group", Value::Text(b"reds")));
    let mut member = scene.reader(1_000, 0, &entries);
    assert_eq!(member.offsets(&mut scene), expected);
    member.settle(&mut scene, (0, expected.len() as u64), SETTLE_ACK);
    scene.turns(30);
    assert_eq!(scene.groups(), [("reds".to_owned(), 61, 0, 1)]);
    let unfit = [FIRST, ("x-stream-filter", Value::Text(b"colour ="))];
    let told = scene.reader(1, 0, &unfit).told(&mut scene);
    assert!(
        matches!(&told[..], [Told::Closed(Code::SettingInvalid, _)]),
        "{told:?}"
    );
}

//= P-84, P-85, P-86
#[test]
fn members_take_turns_and_a_group_goes_on_where_it_was() {
    for (cores, partition) in [(1, 0), (2, 1)] {
        let mut scene = Scene::new(cores, 64);
        scene.declare(partition, 0, &[STREAM]);
        scene.publish_some(10);
        let member = [FIRST, ("x-stream-group", Value::Text(b"billing"))];
        let mut one = scene.reader(4, 0, &member);
        let told = one.told(&mut scene);
        assert_eq!(
            told[..2],
            [
                Told::Active(true),
                Told::Position {
                    offset: 1,
                    missed: 0
                }
            ]
        );
        assert_eq!(told.len(), 6);
        let mut two = scene.reader(4, 0, &member);
        assert_eq!(two.told(&mut scene), []);
        assert_eq!(scene.groups(), [("billing".to_owned(), 1, 10, 2)]);
        // The third is settled out of turn: it is read again by who takes over.
        one.settle(&mut scene, (3, 3), SETTLE_ACK);
        one.settle(&mut scene, (1, 1), SETTLE_ACK | SETTLE_CONFIRM);
        let told = one.told(&mut scene);
        assert_eq!(
            told.iter().filter(|told| **told == Told::Settled).count(),
            1
        );
        assert_eq!(scene.groups()[0].1, 2);
        one.close(&mut scene);
        let told = two.told(&mut scene);
        assert_eq!(
            told[..2],
            [
                Told::Active(true),
                Told::Position {
                    offset: 2,
                    missed: 0
                }
            ]
        );
        assert!(matches!(told[2], Told::Message { offset: 2, .. }));
        let in_use = (
            Code::InUse,
            "the group has members: close them first".to_owned(),
        );
        assert_eq!(scene.reset("billing", &[FIRST]), Err(in_use.clone()));
        assert_eq!(scene.forget("billing"), Err(in_use));
        two.close(&mut scene);
        assert_eq!(
            scene.reset("billing", &[("x-stream-offset", Value::I8(9))]),
            Ok(())
        );
        assert_eq!(scene.groups(), [("billing".to_owned(), 9, 2, 0)]);
        assert_eq!(scene.reader(9, 0, &member).offsets(&mut scene), [9, 10]);
        assert_eq!(
            scene.reset("audit", &[("x-stream-offset", Value::Text(b"next"))]),
            Ok(())
        );
        assert_eq!(scene.groups().len(), 2);
        assert_eq!(scene.forget("audit"), Ok(()));
        assert_eq!(scene.forget("audit"), Ok(()), "it was not there");
        assert_eq!(scene.groups().len(), 1);
    }
}

#[test]
fn retention_moves_slow_readers_and_says_so() {
    let mut scene = Scene::new(1, 64);
    scene.declare(0, 20, &[STREAM]);
    scene.publish_some(5);
    let mut reader = scene.reader(3, 0, &[FIRST]);
    assert_eq!(reader.offsets(&mut scene), [1, 2, 3]);
    scene.publish_some(45);
    scene.turns(30);
    assert_eq!(scene.info().0, 20);
    reader.settle(&mut scene, (0, 3), SETTLE_ACK);
    let told = reader.told(&mut scene);
    assert_eq!(
        told[0],
        Told::Position {
            offset: 31,
            missed: 27
        }
    );
    assert!(matches!(told[1], Told::Message { offset: 31, .. }));
    let late = scene
        .reader(1, 0, &[("x-stream-offset", Value::I8(10))])
        .told(&mut scene);
    assert_eq!(
        late[0],
        Told::Position {
            offset: 31,
            missed: 21
        }
    );
}

#[test]
fn many_readers_read_what_lies_on_disk_at_once() {
    let mut scene = Scene::new(1, 24);
    scene.declare(0, 0, &[STREAM]);
    for number in 0..400_u32 {
        let mut payload = vec![0; 30_000];
        payload[..4].copy_from_slice(&number.to_le_bytes());
        scene.publish("s", 0, &[], &payload);
    }
    let starts = [1, 100, 250];
    let mut readers: Vec<Reader> = starts
        .iter()
        .map(|start| scene.reader(1_000, 1, &[("x-stream-offset", Value::I32(*start))]))
        .collect();
    let mut given = vec![Vec::new(); readers.len()];
    for _ in 0..40 {
        for (reader, given) in readers.iter_mut().zip(&mut given) {
            for told in reader.told(&mut scene) {
                if let Told::Message { offset, payload } = told {
                    let number =
                        u32::from_le_bytes([payload[0], payload[1], payload[2], payload[3]]);
                    assert_eq!(u64::from(number) + 1, offset);
                    given.push(offset);
                }
            }
        }
    }
    assert!(
        scene.machine.reads(0).0 > 0,
        "not everything fits into memory"
    );
    for (start, given) in starts.iter().zip(&given) {
        assert!(
            given.iter().copied().eq(*start as u64..=400),
            "from {start}"
        );
    }
}

//= P-82
#[test]
fn what_makes_no_sense_is_refused_with_a_sentence() {
    let mut scene = Scene::new(1, 64);
    scene.declare(0, 0, &[STREAM]);
    let exclusive = scene.reader(1, 2, &[]).told(&mut scene);
    let reason = "a stream is read by any number of consumers, so none of them is exclusive";
    assert_eq!(
        exclusive,
        [Told::Closed(Code::SettingInvalid, reason.to_owned())]
    );
    let reset = scene.reset("g", &[]);
    let reason = "a group is reset to what x-stream-offset says".to_owned();
    assert_eq!(reset, Err((Code::SettingInvalid, reason)));
    let unknown = scene.reset("g", &[FIRST, ("x-stream-group", Value::Text(b"g"))]);
    assert!(unknown.is_err_and(|(code, _)| code == Code::SettingInvalid));
    assert!(
        scene
            .reset("", &[FIRST])
            .is_err_and(|(code, _)| code == Code::SettingInvalid)
    );
    let conn = client::greet(&mut scene.machine, 0);
    let declare = QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: Durability::Durable as u8,
        flags: 0,
        partition: 0,
        name: b"plain",
        arguments: b"",
    };
    let mut bytes = Vec::new();
    declare.write(&mut bytes, FrameHeader::bare(FrameKind::QueueDeclare, 0, 1));
    client::ask(&mut scene.machine, 0, conn, &bytes);
    let mut bytes = Vec::new();
    let header = FrameHeader::bare(FrameKind::GroupList, 0, 2);
    Named { name: b"plain" }.write(&mut bytes, header);
    let plain = scene.ask(&bytes);
    let reason = "only a stream has groups".to_owned();
    assert_eq!(plain, Err((Code::SettingInvalid, reason)));
    let arguments = table(&[FIRST]);
    let open = ConsumerOpen {
        credit_bytes: 0,
        credit_messages: 1,
        flags: 0,
        queue: b"plain",
        arguments: &arguments,
    };
    let mut bytes = Vec::new();
    open.write(&mut bytes, FrameHeader::bare(FrameKind::ConsumerOpen, 1, 3));
    let answer = client::ask(&mut scene.machine, 0, conn, &bytes);
    let (header, body, _) = client::whole(&answer);
    assert_eq!(
        (header.kind, failure(body).0),
        (FrameKind::Failed, Code::SettingInvalid)
    );
}
