//! Queues and exchanges that go by themselves, on one core and on two. Does not know crashes; the
//! simulator does.

#[path = "memory/client.rs"]
mod client;
#[path = "memory/machine.rs"]
mod machine;

use machine::{Machine, Size, TURN_NS};
use ringpost_engine::ConnId;
use ringpost_wire::control::{
    BIND_TO_EXCHANGE, Bind, Body, ConsumerOpen, DECLARE_PASSIVE, Delete, Durability,
    ExchangeDeclare, ExchangeKind, Failure, Named, QueueDeclare,
};
use ringpost_wire::table::{TableWriter, Value};
use ringpost_wire::{Code, FrameHeader, FrameKind, frame};

struct Scene {
    machine: Machine,
    admin: ConnId,
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

/// A queue in a partition: partition and core are the same for those used here.
fn declare(name: &str, partition: u16, durability: Durability, arguments: &[u8]) -> Vec<u8> {
    let body = QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: durability as u8,
        flags: 0,
        partition,
        name: name.as_bytes(),
        arguments,
    };
    written(FrameKind::QueueDeclare, &body)
}

fn find(name: &str) -> Vec<u8> {
    let body = QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: 0,
        flags: DECLARE_PASSIVE,
        partition: 0,
        name: name.as_bytes(),
        arguments: b"",
    };
    written(FrameKind::QueueDeclare, &body)
}

fn written<'a>(kind: FrameKind, body: &impl Body<'a>) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.write(&mut bytes, FrameHeader::bare(kind, 0, 1));
    bytes
}

fn exchange(name: &str, durability: Durability, is_auto_delete: bool) -> Vec<u8> {
    let arguments = table(&[("x-auto-delete", Value::Bool(is_auto_delete))]);
    let body = ExchangeDeclare {
        kind: ExchangeKind::Fanout as u8,
        durability: durability as u8,
        flags: 0,
        reserved: 0,
        name: name.as_bytes(),
        arguments: &arguments,
    };
    written(FrameKind::ExchangeDeclare, &body)
}

fn find_exchange(name: &str) -> Vec<u8> {
    let body = ExchangeDeclare {
        kind: 0,
        durability: 0,
        flags: DECLARE_PASSIVE,
        reserved: 0,
        name: name.as_bytes(),
        arguments: b"",
    };
    written(FrameKind::ExchangeDeclare, &body)
}

fn binding<'a>(exchange: &'a str, target: &'a str, flags: u32) -> Bind<'a> {
    Bind {
        flags,
        exchange: exchange.as_bytes(),
        target: target.as_bytes(),
        key: b"",
        arguments: b"",
    }
}

fn named(kind: FrameKind, name: &str) -> Vec<u8> {
    let name = name.as_bytes();
    match kind {
        FrameKind::QueueDelete => written(kind, &Delete { flags: 0, name }),
        _ => written(kind, &Named { name }),
    }
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
        Self { machine, admin }
    }

    fn ask_as(&mut self, core: usize, conn: ConnId, request: &[u8]) -> Result<(), Code> {
        let answer = client::ask(&mut self.machine, core, conn, request);
        let (header, body, _) = client::whole(&answer);
        match header.kind {
            FrameKind::Done | FrameKind::ConsumerOpened | FrameKind::QueueInfo => Ok(()),
            FrameKind::Failed => {
                let failure = Failure::decode(body).expect("a failure");
                Err(Code::from_number(failure.code))
            }
            kind => panic!("{kind:?}"),
        }
    }

    fn ask(&mut self, request: &[u8]) -> Result<(), Code> {
        self.ask_as(0, self.admin, request)
    }

    /// As a client does that does not ask for it by name: a list.
    fn is_there(&mut self, queue: &str) -> bool {
        self.ask(&named(FrameKind::QueueInspect, queue)).is_ok()
    }

    fn consume(&mut self, core: usize, conn: ConnId, queue: &str) -> Result<(), Code> {
        let open = ConsumerOpen {
            credit_bytes: 0,
            credit_messages: 1,
            flags: 0,
            queue: queue.as_bytes(),
            arguments: b"",
        };
        let mut bytes = Vec::new();
        open.write(&mut bytes, FrameHeader::bare(FrameKind::ConsumerOpen, 1, 1));
        self.ask_as(core, conn, &bytes)
    }

    fn close(&mut self, core: usize, conn: ConnId) {
        let mut bytes = Vec::new();
        frame::write_bare(&mut bytes, FrameKind::ConsumerClose, 1, 9);
        let answer = client::ask(&mut self.machine, core, conn, &bytes);
        assert_eq!(client::whole(&answer).0.kind, FrameKind::ConsumerClosed);
    }

    fn pass_ms(&mut self, ms: u64) {
        for _ in 0..ms * 1_000_000 / TURN_NS {
            self.machine.turn();
        }
    }
}

fn expires(ms: i32) -> Vec<u8> {
    table(&[("x-expires", Value::I32(ms))])
}

//= P-76
#[test]
fn an_unused_queue_expires_and_a_used_one_does_not() {
    for (cores, partition) in [(1, 0), (2, 0), (2, 1)] {
        for durability in [Durability::Durable, Durability::Volatile] {
            let mut scene = Scene::new(cores);
            let arguments = expires(50);
            let declared = declare("q", partition, durability, &arguments);
            assert_eq!(scene.ask(&declared), Ok(()));
            scene.pass_ms(40);
            assert!(scene.is_there("q"), "never early");
            scene.pass_ms(20);
            assert!(!scene.is_there("q"), "soon after");

            // Declared again in time, actively or passively, it lives on; looked at it does not.
            assert_eq!(scene.ask(&declared), Ok(()));
            for again in [&declared, &find("q")] {
                scene.pass_ms(40);
                assert_eq!(scene.ask(again), Ok(()));
            }
            scene.pass_ms(40);
            assert!(scene.is_there("q"));
            scene.pass_ms(20);
            assert!(!scene.is_there("q"));

            // A consumer keeps it, however long.
            assert_eq!(scene.ask(&declared), Ok(()));
            scene.pass_ms(40);
            let other = client::greet(&mut scene.machine, 0);
            assert_eq!(scene.consume(0, other, "q"), Ok(()));
            scene.pass_ms(200);
            assert!(scene.is_there("q"));
            scene.close(0, other);
            scene.pass_ms(40);
            assert!(scene.is_there("q"), "the span begins when it goes");
            scene.pass_ms(20);
            assert!(!scene.is_there("q"));
        }
    }
}

/// The time of a queue is over while the disk stands still: who comes is told so at once, and who
/// declares it again gets another one. In time, the declaration keeps it.
//= P-76
#[test]
fn a_queue_that_is_about_to_go_takes_nobody_and_one_declared_in_time_does() {
    for is_kept in [false, true] {
        let mut scene = Scene::new(2);
        let declared = declare("q", 1, Durability::Durable, &expires(50));
        assert_eq!(scene.ask(&declared), Ok(()));
        let other = client::greet(&mut scene.machine, 1);
        scene.pass_ms(48);
        if is_kept {
            assert_eq!(scene.ask(&declared), Ok(()));
        }
        // Nothing that is to be durable is, so a deletion is on its way for as long as that lasts.
        scene.machine.stall(0, true);
        scene.pass_ms(5);
        let consumed = scene.consume(1, other, "q");
        scene.machine.stall(0, false);
        scene.pass_ms(5);
        match is_kept {
            true => {
                assert_eq!(consumed, Ok(()));
                scene.pass_ms(100);
                assert!(scene.is_there("q"));
            }
            false => {
                assert_eq!(consumed, Err(Code::QueueUnknown));
                assert!(!scene.is_there("q"));
                assert_eq!(scene.ask(&declared), Ok(()));
                assert_eq!(scene.consume(1, other, "q"), Ok(()));
            }
        }
    }
}

//= P-76
#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer() {
    for (cores, partition) in [(1, 0), (2, 1)] {
        let mut scene = Scene::new(cores);
        let arguments = table(&[("x-auto-delete", Value::Bool(true))]);
        let declared = declare("q", partition, Durability::Durable, &arguments);
        assert_eq!(scene.ask(&declared), Ok(()));
        scene.pass_ms(500);
        assert!(scene.is_there("q"), "it has had none");
        let one = client::greet(&mut scene.machine, 0);
        let other = client::greet(&mut scene.machine, usize::from(cores) - 1);
        assert_eq!(scene.consume(0, one, "q"), Ok(()));
        assert_eq!(scene.consume(usize::from(cores) - 1, other, "q"), Ok(()));
        scene.close(0, one);
        scene.pass_ms(50);
        assert!(scene.is_there("q"), "there is another one");
        scene.machine.hang_up(usize::from(cores) - 1, other);
        scene.pass_ms(5);
        assert!(!scene.is_there("q"));
        assert_eq!(scene.ask(&declared), Ok(()), "another one may come");
        scene.pass_ms(5);
        assert!(scene.is_there("q"));
    }
}

//= P-77
#[test]
fn an_exclusive_queue_belongs_to_its_connection() {
    for (cores, partition, core) in [(1, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1)] {
        let mut scene = Scene::new(cores);
        let owner = client::greet(&mut scene.machine, core);
        let arguments = table(&[("x-exclusive", Value::Bool(true))]);
        let declared = declare("q", partition, Durability::Volatile, &arguments);
        assert_eq!(scene.ask_as(core, owner, &declared), Ok(()));
        let bound = written(FrameKind::Bind, &binding("amq.fanout", "q", 0));
        let unbound = written(FrameKind::Unbind, &binding("amq.fanout", "q", 0));
        let purged = named(FrameKind::QueuePurge, "q");
        let deleted = named(FrameKind::QueueDelete, "q");
        for request in [
            &declared,
            &declare("q", partition, Durability::Volatile, b""),
            &find("q"),
            &bound,
            &unbound,
            &purged,
            &deleted,
        ] {
            assert_eq!(scene.ask(request), Err(Code::ResourceLocked));
        }
        let stranger = scene.admin;
        assert_eq!(scene.consume(0, stranger, "q"), Err(Code::ResourceLocked));
        assert!(scene.is_there("q"), "anybody may look");
        for request in [&declared, &find("q"), &bound, &unbound, &purged] {
            assert_eq!(scene.ask_as(core, owner, request), Ok(()));
        }
        assert_eq!(scene.consume(core, owner, "q"), Ok(()));
        let more: Vec<String> = (0..200).map(|number| format!("q{number}")).collect();
        for name in &more {
            let declared = declare(name, partition, Durability::Volatile, &arguments);
            assert_eq!(scene.ask_as(core, owner, &declared), Ok(()));
        }
        // The last one is on its way when the connection goes.
        let late = declare("late", partition, Durability::Volatile, &arguments);
        scene.machine.send(core, owner, &late);
        scene.machine.hang_up(core, owner);
        scene.pass_ms(20);
        for name in more.iter().map(String::as_str).chain(["q", "late"]) {
            assert!(!scene.is_there(name), "{name}");
        }
        assert_eq!(
            scene.ask(&declare("q", 0, Durability::Durable, b"")),
            Ok(())
        );
        assert_eq!(
            scene.ask(&declare("r", 0, Durability::Durable, &arguments)),
            Err(Code::SettingInvalid),
            "nothing of it could outlive the broker"
        );
    }
}

//= P-78
#[test]
fn an_auto_delete_exchange_goes_with_its_last_binding() {
    let mut scene = Scene::new(2);
    let is_there = |scene: &mut Scene, name: &str| scene.ask(&find_exchange(name)).is_ok();
    for name in ["first", "second", "stays"] {
        let request = exchange(name, Durability::Durable, name != "stays");
        assert_eq!(scene.ask(&request), Ok(()));
    }
    for name in ["a", "b"] {
        let request = declare(name, 1, Durability::Durable, b"");
        assert_eq!(scene.ask(&request), Ok(()));
    }
    for bound in [
        binding("second", "a", 0),
        binding("first", "second", BIND_TO_EXCHANGE),
        binding("first", "b", 0),
        binding("stays", "a", 0),
    ] {
        assert_eq!(scene.ask(&written(FrameKind::Bind, &bound)), Ok(()));
    }
    let unbound = written(FrameKind::Unbind, &binding("first", "b", 0));
    assert_eq!(scene.ask(&unbound), Ok(()));
    assert!(is_there(&mut scene, "first"), "it has another one");
    // The queue takes the binding from `second`, which goes and takes the last one from `first`.
    assert_eq!(scene.ask(&named(FrameKind::QueueDelete, "a")), Ok(()));
    assert!(!is_there(&mut scene, "second") && !is_there(&mut scene, "first"));
    assert!(is_there(&mut scene, "stays"));
    // More than one record holds.
    let count = 200;
    for number in 0..count {
        let name = format!("x{number}");
        let created = exchange(&name, Durability::Durable, true);
        assert_eq!(scene.ask(&created), Ok(()));
        let bound = written(FrameKind::Bind, &binding(&name, "b", 0));
        assert_eq!(scene.ask(&bound), Ok(()));
    }
    assert_eq!(scene.ask(&named(FrameKind::QueueDelete, "b")), Ok(()));
    scene.pass_ms(20);
    for number in 0..count {
        assert!(!is_there(&mut scene, &format!("x{number}")), "x{number}");
    }
}
