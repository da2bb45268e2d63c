//! Streams of several lanes, as clients see them, over one core and over three: where messages go, who of
//! a group reads which lane, and what is asked about the stream as a whole. Does not know crashes; the
//! simulator does.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use std::collections::{BTreeMap, BTreeSet};

use machine::{Machine, Size};
use ringpost_engine::ConnId;
use ringpost_wire::control::{
    Body, ConsumerOpen, DELETE_IF_EMPTY, DELETE_IF_UNUSED, Delete, Durability, Failure, GroupInfo,
    Named, PARTITION_BY_NAME, ProducerOpen, QUEUE_STREAM, QueueDeclare, QueueInfo,
};
use ringpost_wire::header::{DELIVER_REDELIVERED, SETTLE_ACK};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{
    Code, DeliverHead, FrameHeader, FrameKind, MessageParts, Messages, SettleRange, frame,
};

const LANES: u8 = 4;

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

impl Scene {
    fn new(cores: u16) -> Self {
        let mut machine = Machine::start(Size {
            cores,
            buffers: 64,
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

    fn with_stream(cores: u16) -> Self {
        let mut scene = Self::new(cores);
        scene
            .declare(&[("x-stream-lanes", Value::I8(LANES as i8))])
            .expect("it is new");
        scene
    }

    fn declare(&mut self, entries: &[(&str, Value<'_>)]) -> Result<(), (Code, String)> {
        let mut all = vec![("x-queue-type", Value::Text(b"stream"))];
        all.extend_from_slice(entries);
        let arguments = table(&all);
        let declare = QueueDeclare {
            messages_max: 0,
            bytes_max: 0,
            durability: Durability::Durable as u8,
            flags: 0,
            partition: PARTITION_BY_NAME,
            name: b"s",
            arguments: &arguments,
        };
        self.ask(FrameKind::QueueDeclare, &declare).map(|_| ())
    }

    /// Asks something; the bodies of what comes before `Done` or instead, or why not.
    fn ask<'a>(
        &mut self,
        kind: FrameKind,
        body: &impl Body<'a>,
    ) -> Result<Vec<Vec<u8>>, (Code, String)> {
        let mut bytes = Vec::new();
        body.write(&mut bytes, FrameHeader::bare(kind, 0, 5));
        self.ask_bytes(&bytes)
    }

    fn ask_bytes(&mut self, request: &[u8]) -> Result<Vec<Vec<u8>>, (Code, String)> {
        self.machine.send(0, self.admin, request);
        let mut bodies = Vec::new();
        for _ in 0..1_000 {
            self.machine.turn();
            let bytes = std::mem::take(self.machine.received(0, self.admin));
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (header, body, after) = client::whole(rest);
                rest = after;
                match header.kind {
                    FrameKind::Done => {
                        bodies.push(header.count.to_le_bytes().to_vec());
                        return Ok(bodies);
                    }
                    FrameKind::Failed => return Err(failure(body)),
                    _ => bodies.push(body.to_vec()),
                }
            }
            // An inspection is answered by itself.
            if request[..].len() > 4 && bodies.len() == 1 && is_inspection(request) {
                return Ok(bodies);
            }
        }
        panic!("no answer");
    }

    /// What is retained, by how many consumers it is read, and how many lanes there are.
    fn inspect(&mut self, name: &str) -> (u64, u32, u16) {
        let named = Named {
            name: name.as_bytes(),
        };
        let bodies = self
            .ask(FrameKind::QueueInspect, &named)
            .expect("it is there");
        let info = QueueInfo::decode(&bodies[0]).expect("figures");
        assert_eq!(info.name, name.as_bytes());
        assert_eq!(info.flags, QUEUE_STREAM);
        (info.ready, info.consumers, info.lanes)
    }

    fn publish(&mut self, key: &str, count: u64) {
        let payload = |sequence: u64| sequence.to_le_bytes();
        for _ in 0..count {
            self.published += 1;
            let payload = payload(self.published);
            let parts = MessageParts {
                exchange: if key == "s" { b"" } else { b"amq.fanout" },
                routing_key: key.as_bytes(),
                payload: &payload,
                ..MessageParts::default()
            };
            let mut message = Vec::new();
            parts.write(&mut message).expect("within limits");
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(FrameKind::Publish, 1, self.published)
            };
            let mut bytes = Vec::new();
            frame::write(&mut bytes, header, &message);
            self.machine.send(0, self.producer, &bytes);
        }
        for _ in 0..2_000 {
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
        panic!("publishes are not confirmed");
    }

    fn bind(&mut self) {
        let bind = ringpost_wire::control::Bind {
            flags: 0,
            exchange: b"amq.fanout",
            target: b"s",
            key: b"",
            arguments: b"",
        };
        self.ask(FrameKind::Bind, &bind).expect("both are there");
    }
}

fn is_inspection(request: &[u8]) -> bool {
    let (header, ..) = client::whole(request);
    header.kind == FrameKind::QueueInspect
}

fn failure(body: &[u8]) -> (Code, String) {
    let failure = Failure::decode(body).expect("a failure");
    let text = String::from_utf8_lossy(failure.reason).into_owned();
    (Code::from_number(failure.code), text)
}

/// One message, as a member got it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Got {
    lane: u8,
    offset: u64,
    again: bool,
    sequence: u64,
}

/// A member of a group: a connection with a consumer for each lane, on the channel behind its number.
struct Member {
    conn: ConnId,
    core: usize,
    active: BTreeSet<u8>,
    /// Tags that are not settled.
    held: BTreeMap<u8, Vec<u64>>,
    refused: Vec<(Code, String)>,
    got: Vec<Got>,
}

impl Member {
    fn join(scene: &mut Scene, core: usize, group: Option<&str>, lanes: &[&str]) -> Self {
        let conn = client::greet(&mut scene.machine, core);
        let mut bytes = Vec::new();
        for (number, lane) in lanes.iter().enumerate() {
            let mut entries = vec![("x-stream-offset", Value::Text(b"first"))];
            if let Some(group) = group {
                entries.push(("x-stream-group", Value::Text(group.as_bytes())));
            }
            let arguments = table(&entries);
            let open = ConsumerOpen {
                credit_bytes: 64 << 20,
                credit_messages: 1_000,
                flags: 0,
                queue: lane.as_bytes(),
                arguments: &arguments,
            };
            let channel = number as u16 + 1;
            open.write(
                &mut bytes,
                FrameHeader::bare(FrameKind::ConsumerOpen, channel, 1),
            );
        }
        scene.machine.send(core, conn, &bytes);
        Self {
            conn,
            core,
            active: BTreeSet::new(),
            held: BTreeMap::new(),
            refused: Vec::new(),
            got: Vec::new(),
        }
    }

    fn of_all(scene: &mut Scene, core: usize, group: Option<&str>) -> Self {
        Self::join(scene, core, group, &["s#0", "s#1", "s#2", "s#3"])
    }

    fn hear(&mut self, scene: &mut Scene) {
        let received = std::mem::take(scene.machine.received(self.core, self.conn));
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let (header, body, after) = client::whole(rest);
            rest = after;
            let lane = (header.channel.max(1) - 1) as u8;
            match header.kind {
                FrameKind::Deliver => {
                    let (head, messages) = DeliverHead::split(body).expect("a head");
                    let again = header.flags & DELIVER_REDELIVERED != 0;
                    assert_eq!(head.delivery_count, u32::from(again));
                    for (idx, message) in Messages::new(messages).enumerate() {
                        let message = message.expect("a message");
                        let payload = message.envelope.payload();
                        self.got.push(Got {
                            lane,
                            offset: head.queue_sequence + idx as u64,
                            again,
                            sequence: u64::from_le_bytes(payload.try_into().expect("8 bytes")),
                        });
                        let held = self.held.entry(lane).or_default();
                        held.push(header.sequence + idx as u64);
                    }
                }
                FrameKind::ConsumerActive if header.flags == 1 => {
                    assert!(self.active.insert(lane));
                }
                FrameKind::ConsumerActive => assert!(self.active.remove(&lane)),
                FrameKind::Failed | FrameKind::ConsumerClosed => self.refused.push(failure(body)),
                FrameKind::ConsumerOpened | FrameKind::ConsumerPosition => {}
                kind => panic!("a member got {kind:?}"),
            }
        }
    }

    fn settle(&mut self, scene: &mut Scene, lane: u8) {
        let tags = self.held.remove(&lane).unwrap_or_default();
        if let (Some(first), Some(last)) = (tags.first(), tags.last()) {
            let header = FrameHeader {
                count: 1,
                flags: SETTLE_ACK,
                ..FrameHeader::bare(FrameKind::Settle, u16::from(lane) + 1, 9)
            };
            let range = SettleRange {
                first: *first,
                last: *last,
            };
            let mut bytes = Vec::new();
            frame::write(&mut bytes, header, &range.encode());
            scene.machine.send(self.core, self.conn, &bytes);
        }
    }

    fn settle_all(&mut self, scene: &mut Scene) {
        for lane in 0..LANES {
            self.settle(scene, lane);
        }
    }

    fn leave(&self, scene: &mut Scene) {
        scene.machine.hang_up(self.core, self.conn);
    }
}

/// Some turns, in which no two of the members read one lane, nor hold something of it.
/// Long enough for what is written without haste.
fn run(scene: &mut Scene, members: &mut [&mut Member]) {
    for _ in 0..250 {
        scene.machine.turn();
        for member in members.iter_mut() {
            member.hear(scene);
        }
        for lane in 0..LANES {
            let with = members.iter().filter(|member| {
                let holds = member.held.get(&lane).is_some_and(|held| !held.is_empty());
                member.active.contains(&lane) || holds
            });
            assert!(with.count() <= 1, "two have lane {lane}");
        }
    }
}

fn loads(members: &[&Member]) -> Vec<usize> {
    members.iter().map(|member| member.active.len()).collect()
}

//= P-87, P-88
#[test]
fn keys_stay_in_their_lanes_and_all_lanes_together_have_everything() {
    for cores in [1, 3] {
        let mut scene = Scene::with_stream(cores);
        scene.bind();
        for round in 0..5 {
            for key in 0..20 {
                scene.publish(&format!("key-{key}"), 1 + round % 2);
            }
            scene.publish("s", 100);
        }
        let mut reader = Member::of_all(&mut scene, 0, None);
        run(&mut scene, &mut [&mut reader]);
        assert_eq!(reader.got.len() as u64, scene.published);
        let mut sequences = BTreeSet::new();
        for lane in 0..LANES {
            let own: Vec<_> = reader.got.iter().filter(|got| got.lane == lane).collect();
            assert!(own.iter().map(|got| got.offset).eq(1..=own.len() as u64));
            // What its producer puts into a lane is there in its order.
            assert!(own.is_sorted_by(|a, b| a.sequence < b.sequence));
            assert!(!own.iter().any(|got| got.again));
            sequences.extend(own.iter().map(|got| got.sequence));
            assert_eq!(
                scene.inspect(&format!("s#{lane}")),
                (own.len() as u64, 1, 0)
            );
        }
        assert!(sequences.into_iter().eq(1..=scene.published));
        assert_eq!(scene.inspect("s"), (scene.published, 4, 4));
        // A key is in one lane: of the first 20 every later message of the key lies with it.
        let of_key = |sequence: u64| (sequence <= 20).then(|| sequence - 1);
        let mut lane_of = BTreeMap::new();
        for got in &reader.got {
            if let Some(key) = of_key(got.sequence) {
                lane_of.insert(key, got.lane);
            }
        }
        let before: u64 = 20 + 100;
        for key in 0..20 {
            let second = before + 1 + 2 * key;
            let lanes = reader
                .got
                .iter()
                .filter(|got| (second..=second + 1).contains(&got.sequence));
            assert!(
                lanes.clone().count() == 2
                    && lanes.map(|got| got.lane).all(|lane| lane == lane_of[&key])
            );
        }
        assert!(lane_of.values().collect::<BTreeSet<_>>().len() > 1);
    }
}

//= P-89
#[test]
fn members_share_the_lanes_and_nothing_that_was_settled_comes_again() {
    for cores in [1, 3] {
        let mut scene = Scene::with_stream(cores);
        let at = |core: u16| usize::from(core % cores);
        scene.publish("s", 1_200);
        let mut one = Member::of_all(&mut scene, at(0), Some("g"));
        run(&mut scene, &mut [&mut one]);
        assert_eq!(loads(&[&one]), [4]);
        assert_eq!(one.got.len(), 1_200);
        // Another comes: what the first holds it keeps until that is settled.
        let mut two = Member::of_all(&mut scene, at(1), Some("g"));
        run(&mut scene, &mut [&mut one, &mut two]);
        assert_eq!(loads(&[&one, &two]), [2, 0]);
        one.settle_all(&mut scene);
        run(&mut scene, &mut [&mut one, &mut two]);
        assert_eq!(loads(&[&one, &two]), [2, 2]);
        scene.publish("s", 400);
        run(&mut scene, &mut [&mut one, &mut two]);
        assert!(!two.got.is_empty() && !two.got.iter().any(|got| got.again));
        assert_eq!(one.got.len() + two.got.len(), 1_600);
        // A third and a fourth: one lane each, and those that stay do not change hands.
        one.settle_all(&mut scene);
        two.settle_all(&mut scene);
        let (had_one, had_two) = (one.active.clone(), two.active.clone());
        let mut three = Member::of_all(&mut scene, at(2), Some("g"));
        run(&mut scene, &mut [&mut one, &mut two, &mut three]);
        let mut four = Member::of_all(&mut scene, at(0), Some("g"));
        run(&mut scene, &mut [&mut one, &mut two, &mut three, &mut four]);
        assert_eq!(loads(&[&one, &two, &three, &four]), [1; 4]);
        assert!(one.active.is_subset(&had_one) && two.active.is_subset(&had_two));
        // The fifth stands by.
        let mut five = Member::of_all(&mut scene, at(1), Some("g"));
        run(
            &mut scene,
            &mut [&mut one, &mut two, &mut three, &mut four, &mut five],
        );
        assert_eq!(loads(&[&one, &two, &three, &four, &five]), [1, 1, 1, 1, 0]);
        scene.publish("s", 600);
        run(
            &mut scene,
            &mut [&mut one, &mut two, &mut three, &mut four, &mut five],
        );
        let got = [&one, &two, &three, &four, &five].map(|member| member.got.len());
        assert_eq!((got.iter().sum::<usize>(), got[4]), (2_200, 0));
        // One goes that has settled nothing of this: who stood by has its lane, and all that comes again
        // is flagged.
        let lane = *two.active.first().expect("it has one");
        let lost: Vec<Got> = two
            .got
            .iter()
            .copied()
            .filter(|got| got.sequence > 1_600)
            .collect();
        assert!(!lost.is_empty());
        two.leave(&mut scene);
        run(
            &mut scene,
            &mut [&mut one, &mut three, &mut four, &mut five],
        );
        assert_eq!(loads(&[&one, &three, &four, &five]), [1; 4]);
        let again: Vec<Got> = lost
            .into_iter()
            .map(|got| Got { again: true, ..got })
            .collect();
        assert!(five.active.contains(&lane));
        assert_eq!(five.got, again);
        // Nobody but one is left.
        for member in [&mut one, &mut three, &mut four] {
            member.settle_all(&mut scene);
            run(&mut scene, &mut [member]);
            member.leave(&mut scene);
        }
        run(&mut scene, &mut [&mut five]);
        assert_eq!(loads(&[&five]), [4]);
        five.settle_all(&mut scene);
        run(&mut scene, &mut [&mut five]);
        let groups: Vec<(u64, u32)> = (0..LANES)
            .map(|lane| {
                let name = format!("s#{lane}");
                let named = Named {
                    name: name.as_bytes(),
                };
                let bodies = scene
                    .ask(FrameKind::GroupList, &named)
                    .expect("it is a stream");
                let info = GroupInfo::decode(&bodies[0]).expect("figures");
                (info.lag, info.members)
            })
            .collect();
        assert_eq!(groups, [(0, 1); 4]);
        five.leave(&mut scene);
        run(&mut scene, &mut []);
        for core in 0..usize::from(cores) {
            assert_eq!(scene.machine.core(core).groups_coordinated(), 0);
        }
    }
}

//= P-89
#[test]
fn the_stream_itself_is_asked_and_its_lanes_are_read() {
    let mut scene = Scene::with_stream(3);
    scene.publish("s", 300);
    let mut reader = Member::join(&mut scene, 1, None, &["s"]);
    run(&mut scene, &mut [&mut reader]);
    let reason = "the stream 's' has 4 lanes, each of which is a stream for those who read: 's#0' to \
                  's#3'";
    let refused = (Code::SettingInvalid, reason.to_owned());
    assert_eq!(reader.refused, std::slice::from_ref(&refused));
    let listed = scene.ask(FrameKind::GroupList, &Named { name: b"s" });
    assert_eq!(listed, Err(refused));
    // Those who consult a list see one queue.
    let mut bytes = Vec::new();
    frame::write_bare(&mut bytes, FrameKind::QueueList, 0, 5);
    let bodies = scene.ask_bytes(&bytes).expect("a list");
    let info = QueueInfo::decode(&bodies[0]).expect("figures");
    assert_eq!(
        (bodies.len(), info.name, info.ready, info.lanes),
        (2, &b"s"[..], 300, 4)
    );
    // With conditions.
    let delete = |flags| Delete { flags, name: b"s" };
    let refused = scene.ask(FrameKind::QueueDelete, &delete(DELETE_IF_EMPTY));
    let reason = "queue 's' holds 300 messages".to_owned();
    assert_eq!(refused, Err((Code::InUse, reason)));
    let mut member = Member::join(&mut scene, 2, Some("g"), &["s#2"]);
    run(&mut scene, &mut [&mut member]);
    let refused = scene.ask(FrameKind::QueueDelete, &delete(DELETE_IF_UNUSED));
    let reason = "queue 's' has 1 consumer".to_owned();
    assert_eq!(refused, Err((Code::InUse, reason)));
    let purged = scene.ask(FrameKind::QueuePurge, &Named { name: b"s" });
    assert_eq!(purged, Ok(vec![300_u32.to_le_bytes().to_vec()]));
    assert_eq!(scene.inspect("s"), (0, 1, 4));
    member.leave(&mut scene);
    run(&mut scene, &mut []);
    let unused = delete(DELETE_IF_EMPTY | DELETE_IF_UNUSED);
    scene
        .ask(FrameKind::QueueDelete, &unused)
        .expect("it is empty");
    for core in 0..3 {
        assert_eq!(scene.machine.core(core).groups_coordinated(), 0);
    }
    // It may come again, with another number of lanes.
    scene
        .declare(&[("x-stream-lanes", Value::I8(2))])
        .expect("it is new");
    assert_eq!(scene.inspect("s"), (0, 0, 2));
}
