//! Policies over queues that are there, on one core and on two. Does not know crashes; the simulator
//! does.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use client::Producer;
use machine::{Machine, Size, TURN_NS};
use ringpost_engine::ConnId;
use ringpost_wire::control::{Body, Failure, Named, PolicySet, QueueDescription, QueueInfo};
use ringpost_wire::table::{Table, TableWriter, Value};
use ringpost_wire::{Code, FrameHeader, FrameKind};

struct Scene {
    machine: Machine,
    admin: ConnId,
    queues: Vec<String>,
    producer: Producer,
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

fn written<'a>(kind: FrameKind, body: &impl Body<'a>) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.write(&mut bytes, FrameHeader::bare(kind, 0, 1));
    bytes
}

impl Scene {
    /// The queue `q0` in a partition, which is the number of its core, and `dead0` beside it.
    fn new(cores: u16, partition: u16) -> Self {
        let mut machine = Machine::start(Size {
            cores,
            buffers: 64,
            segment_bytes: 8 << 20,
            slots_max: 16,
        });
        let queues = client::declare(&mut machine, "q", 1, Some(partition));
        client::declare(&mut machine, "dead", 1, None);
        let admin = client::greet(&mut machine, 0);
        let producer = Producer::open(&mut machine, 0, &queues, 1, 10);
        Self {
            machine,
            admin,
            queues,
            producer,
        }
    }

    fn ask(&mut self, request: &[u8]) -> (FrameKind, Vec<u8>) {
        let answer = client::ask(&mut self.machine, 0, self.admin, request);
        let (header, body, _) = client::whole(&answer);
        (header.kind, body.to_vec())
    }

    fn done(&mut self, request: &[u8]) -> Result<(), Code> {
        match self.ask(request) {
            (FrameKind::Done, _) => Ok(()),
            (FrameKind::Failed, body) => {
                let failure = Failure::decode(&body).expect("a failure");
                Err(Code::from_number(failure.code))
            }
            (kind, _) => panic!("{kind:?}"),
        }
    }

    fn set(&mut self, name: &str, priority: i32, options: &[(&str, Value<'_>)]) {
        let options = table(options);
        let body = PolicySet {
            priority: priority as u32,
            applies: 1,
            flags: 0,
            reserved: 0,
            name: name.as_bytes(),
            pattern: b"^q",
            options: &options,
        };
        let asked = written(FrameKind::PolicySet, &body);
        assert_eq!(self.done(&asked), Ok(()));
    }

    fn delete(&mut self, name: &str) {
        let name = name.as_bytes();
        let asked = written(FrameKind::PolicyDelete, &Named { name });
        assert_eq!(self.done(&asked), Ok(()));
    }

    /// Messages of a queue; nothing if there is none.
    fn holds(&mut self, name: &str) -> Option<u64> {
        let name = name.as_bytes();
        let (kind, body) = self.ask(&written(FrameKind::QueueInspect, &Named { name }));
        (kind == FrameKind::QueueInfo).then(|| {
            let info = QueueInfo::decode(&body).expect("figures");
            info.ready + info.unacked
        })
    }

    fn publish(&mut self, count: u32) {
        let until = self.producer.published() + u64::from(count);
        while self.producer.confirmed < until {
            if self.producer.published() < until {
                self.producer.publish(&mut self.machine, 1);
            } else {
                // Hears what was confirmed, and publishes nothing more.
                self.producer.publish(&mut self.machine, 0);
            }
            self.machine.turn();
        }
    }

    fn pass_ms(&mut self, ms: u64) {
        for _ in 0..ms * 1_000_000 / TURN_NS {
            self.machine.turn();
        }
    }
}

/// One core, and a queue on the other one of two.
const PLACES: [(u16, u16); 2] = [(1, 0), (2, 1)];

//= P-79
#[test]
fn a_limit_holds_at_once_and_no_longer_than_its_policy() {
    for (cores, partition) in PLACES {
        let mut scene = Scene::new(cores, partition);
        scene.publish(5);
        assert_eq!(scene.holds("q0"), Some(5));
        let drop_head = ("x-overflow", Value::Text(b"drop-head"));
        scene.set("limits", 0, &[("x-max-length", Value::I32(2)), drop_head]);
        scene.pass_ms(2);
        assert_eq!(scene.holds("q0"), Some(2), "the oldest go at once");
        scene.publish(3);
        scene.pass_ms(2);
        assert_eq!(scene.holds("q0"), Some(2));
        scene.set("wider", 1, &[("x-max-length", Value::I32(4))]);
        scene.publish(5);
        scene.pass_ms(2);
        assert_eq!(
            scene.holds("q0"),
            Some(4),
            "one counts more, for what it sets"
        );
        scene.delete("wider");
        scene.pass_ms(2);
        assert_eq!(scene.holds("q0"), Some(2));
        scene.delete("limits");
        scene.publish(3);
        scene.pass_ms(2);
        assert_eq!(scene.holds("q0"), Some(5));
    }
}

//= P-79
#[test]
fn a_time_to_live_begins_when_its_policy_is_set() {
    for (cores, partition) in PLACES {
        let mut scene = Scene::new(cores, partition);
        scene.publish(3);
        scene.pass_ms(500);
        let dead = [
            ("x-message-ttl", Value::I32(100)),
            ("x-dead-letter-exchange", Value::Text(b"")),
            ("x-dead-letter-routing-key", Value::Text(b"dead0")),
        ];
        scene.set("ttl", 0, &dead);
        scene.pass_ms(60);
        scene.publish(1);
        scene.pass_ms(30);
        assert_eq!(scene.holds("q0"), Some(4), "never early");
        scene.pass_ms(30);
        assert_eq!(scene.holds("q0"), Some(1));
        assert_eq!(scene.holds("dead0"), Some(3));
        // What is dead goes where it was to go, and nothing more dies.
        scene.delete("ttl");
        scene.pass_ms(500);
        assert_eq!(scene.holds("q0"), Some(1));
        assert_eq!(scene.holds("dead0"), Some(3));
    }
}

//= P-79
#[test]
fn a_queue_expires_by_a_policy() {
    for (cores, partition) in PLACES {
        let mut scene = Scene::new(cores, partition);
        scene.set("long", 1, &[("x-expires", Value::I32(1_000))]);
        scene.set("short", 0, &[("x-expires", Value::I32(50))]);
        scene.pass_ms(200);
        assert_eq!(scene.holds("q0"), Some(0), "the other one counts");
        scene.delete("long");
        scene.pass_ms(40);
        assert_eq!(
            scene.holds("q0"),
            Some(0),
            "the span begins with the policy"
        );
        scene.pass_ms(20);
        assert_eq!(scene.holds("q0"), None);
    }
}

//= P-80
#[test]
fn a_description_says_what_holds_and_who_says_so() {
    let mut scene = Scene::new(2, 1);
    scene.set("limits", 0, &[("x-max-length", Value::I32(2))]);
    let name = scene.queues[0].clone();
    let named = |name: &str| {
        let name = name.as_bytes();
        written(FrameKind::QueueDescribe, &Named { name })
    };
    let (kind, body) = scene.ask(&named(&name));
    assert_eq!(kind, FrameKind::QueueDescription);
    let described = QueueDescription::decode(&body).expect("a description");
    assert_eq!(
        (described.name, described.messages_max),
        (name.as_bytes(), 0)
    );
    let options = Table::parse(described.options).expect("options");
    let Some(Value::Table(limit)) = options.get(b"x-max-length") else {
        panic!("it has a limit");
    };
    let value = limit.get(b"value").and_then(|value| value.as_integer());
    let policy = limit.get(b"policy").and_then(|policy| policy.as_text());
    assert_eq!((value, policy), (Some(2), Some(&b"limits"[..])));
    assert_eq!(scene.done(&named("nobody")), Err(Code::QueueUnknown));
    // All of them, and then the end.
    let answer = client::ask(&mut scene.machine, 0, scene.admin, &named(""));
    let mut kinds = Vec::new();
    let mut rest = answer.as_slice();
    while !rest.is_empty() {
        let (header, _, after) = client::whole(rest);
        kinds.push((header.kind, header.count));
        rest = after;
    }
    assert_eq!(
        kinds,
        [
            (FrameKind::QueueDescription, 0),
            (FrameKind::QueueDescription, 0),
            (FrameKind::Done, 2)
        ]
    );
}
