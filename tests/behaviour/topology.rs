//! Queues, exchanges and bindings: made, found, compared, removed.

use ringpost_wire::control::{
    Bind, Body, DECLARE_PASSIVE, DELETE_IF_EMPTY, DELETE_IF_UNUSED, Delete, Durability,
    ExchangeDeclare, ExchangeKind, Level, Named, QueueDeclare,
};
use ringpost_wire::{Code, FrameKind, NAME_BYTES_MAX};

use crate::wire::{
    Wire, consumer, exchange, filler, payloads, queue, queue_on, to_queue, volatile,
};
use crate::{Setup, on_cores};

on_cores! {
    queues_are_declared_once
    exchanges_are_declared_once
    names
    settings_out_of_bounds
    queues_are_deleted
    exchanges_are_deleted
    bindings
    what_is_not_there
    purge_takes_what_is_ready
    figures_are_of_every_core
    requests_take_effect_in_order
    answers_carry_the_request
    lists
}

#[track_caller]
fn queue_fails(wire: &mut Wire, declare: &QueueDeclare<'_>) -> (Code, String) {
    let id = wire.request(FrameKind::QueueDeclare, declare);
    let frame = wire.answer(id);
    assert_eq!(frame.kind(), FrameKind::Failed, "{frame:?}");
    (frame.code(), frame.reason())
}

#[track_caller]
fn exchange_fails(wire: &mut Wire, declare: &ExchangeDeclare<'_>) -> (Code, String) {
    let id = wire.request(FrameKind::ExchangeDeclare, declare);
    let frame = wire.answer(id);
    assert_eq!(frame.kind(), FrameKind::Failed, "{frame:?}");
    (frame.code(), frame.reason())
}

/// P-61
fn queues_are_declared_once(setup: &Setup) {
    let mut wire = setup.wire();
    let passive = |name| QueueDeclare {
        flags: DECLARE_PASSIVE,
        ..queue(name)
    };
    assert_eq!(queue_fails(&mut wire, &passive(b"q")).0, Code::QueueUnknown);
    let asked = QueueDeclare {
        messages_max: 10,
        bytes_max: 20_000,
        ..queue(b"q")
    };
    assert!(wire.declare(&asked));
    assert!(!wire.declare(&asked));
    assert!(!wire.declare(&passive(b"q")), "passive compares nothing");
    let info = wire.inspect(b"q");
    assert_eq!((info.messages_max, info.bytes_max), (10, 20_000));
    assert_eq!(info.durability, Durability::Durable as u8);
    assert_eq!(info.core, info.partition % setup.cores());
    assert!(!wire.declare(&QueueDeclare {
        partition: info.partition,
        ..asked
    }));
    let other = (info.partition + 1) % 16;
    for (word, different) in [
        ("durability", volatile(asked)),
        (
            "messages_max",
            QueueDeclare {
                messages_max: 11,
                ..asked
            },
        ),
        (
            "messages_max",
            QueueDeclare {
                messages_max: 0,
                ..asked
            },
        ),
        (
            "bytes_max",
            QueueDeclare {
                bytes_max: 1,
                ..asked
            },
        ),
        (
            "partition",
            QueueDeclare {
                partition: other,
                ..asked
            },
        ),
    ] {
        let (code, reason) = queue_fails(&mut wire, &different);
        assert_eq!(code, Code::PreconditionFailed);
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(
        wire.inspect(b"q"),
        info,
        "a request that fails changes nothing"
    );
}

/// P-63
fn exchanges_are_declared_once(setup: &Setup) {
    let mut wire = setup.wire();
    let passive = ExchangeDeclare {
        flags: DECLARE_PASSIVE,
        ..exchange(b"x", ExchangeKind::Fanout)
    };
    assert_eq!(exchange_fails(&mut wire, &passive).0, Code::ExchangeUnknown);
    let asked = exchange(b"x", ExchangeKind::Topic);
    assert!(wire.declare_exchange(&asked));
    assert!(!wire.declare_exchange(&asked));
    assert!(!wire.declare_exchange(&passive), "passive compares nothing");
    for (word, different) in [
        ("kind", exchange(b"x", ExchangeKind::Direct)),
        (
            "durability",
            ExchangeDeclare {
                durability: 0,
                ..asked
            },
        ),
    ] {
        let (code, reason) = exchange_fails(&mut wire, &different);
        assert_eq!(code, Code::PreconditionFailed);
        assert!(reason.contains(word), "{reason}");
    }
}

/// P-60
fn names(setup: &Setup) {
    let mut wire = setup.wire();
    let longest = vec![b'n'; NAME_BYTES_MAX];
    for good in ["a", "with spaces and / : ;", "größe", "amqp", "Amq.x"] {
        assert!(wire.declare(&queue(good.as_bytes())));
        assert!(wire.declare_exchange(&exchange(good.as_bytes(), ExchangeKind::Direct)));
    }
    assert!(wire.declare(&queue(&longest)));
    for bad in [
        &b""[..],
        b"amq.",
        b"amq.gen-1",
        b"a\nb",
        b"\x7f",
        b"\xff\xfe",
        "a\u{85}".as_bytes(),
    ] {
        assert_eq!(
            queue_fails(&mut wire, &queue(bad)).0,
            Code::NameInvalid,
            "{bad:?}"
        );
        let tenant = wire.request(FrameKind::TenantDeclare, &Named { name: bad });
        if !bad.is_empty() {
            assert_eq!(wire.failed(tenant), Code::NameInvalid, "{bad:?}");
            let asked = exchange(bad, ExchangeKind::Direct);
            assert_eq!(
                exchange_fails(&mut wire, &asked).0,
                Code::NameInvalid,
                "{bad:?}"
            );
        }
    }
    // The default exchange is nobody's to change, and neither is one of the broker's.
    let asked = exchange(b"", ExchangeKind::Direct);
    let _refused_for_its_name_or_its_owner = exchange_fails(&mut wire, &asked);
    for name in [&b""[..], b"amq.topic"] {
        let id = wire.request(FrameKind::ExchangeDelete, &Delete { flags: 0, name });
        wire.failed(id);
    }
    // But where it exists it may be bound and published to.
    wire.bind(b"amq.fanout", b"a", b"", b"");
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[crate::wire::to(b"amq.fanout", b"", b"m")]);
    assert_eq!(wire.inspect(b"a").ready, 1);
}

/// P-61, P-63
fn settings_out_of_bounds(setup: &Setup) {
    let mut wire = setup.wire();
    let depth = {
        let mut table = Vec::new();
        for _ in 0..10 {
            let mut outer = vec![1, b'k', b'F'];
            outer.extend_from_slice(&(table.len() as u32).to_be_bytes());
            outer.append(&mut table);
            table = outer;
        }
        table
    };
    for asked in [
        QueueDeclare {
            durability: 2,
            ..queue(b"q")
        },
        QueueDeclare {
            partition: 16,
            ..queue(b"q")
        },
        QueueDeclare {
            partition: 65_534,
            ..queue(b"q")
        },
        QueueDeclare {
            arguments: b"\x01kS\0\0\0\x09x",
            ..queue(b"q")
        },
        QueueDeclare {
            arguments: b"\x01k?",
            ..queue(b"q")
        },
        QueueDeclare {
            arguments: &depth,
            ..queue(b"q")
        },
    ] {
        assert_eq!(
            queue_fails(&mut wire, &asked).0,
            Code::SettingInvalid,
            "{asked:?}"
        );
    }
    for asked in [
        ExchangeDeclare {
            kind: 0,
            ..exchange(b"x", ExchangeKind::Direct)
        },
        ExchangeDeclare {
            kind: ExchangeKind::ALL.len() as u8 + 1,
            ..exchange(b"x", ExchangeKind::Direct)
        },
        ExchangeDeclare {
            durability: 9,
            ..exchange(b"x", ExchangeKind::Direct)
        },
        ExchangeDeclare {
            flags: 2,
            ..exchange(b"x", ExchangeKind::Direct)
        },
    ] {
        assert_eq!(
            exchange_fails(&mut wire, &asked).0,
            Code::SettingInvalid,
            "{asked:?}"
        );
    }
    assert_eq!(wire.queues(), []);
}

/// P-62
fn queues_are_deleted(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"q", core));
        wire.bind(b"amq.direct", b"q", b"k", b"");
        let mut producer = wire.producer(1, Level::Durable);
        producer.confirm(&mut wire, &[to_queue(b"q", b"1"), to_queue(b"q", b"2")]);
        wire.consume(2, &consumer(b"q", 1));
        wire.deliveries(2, 1);
        let mut delete = |flags| {
            let id = wire.request(FrameKind::QueueDelete, &Delete { flags, name: b"q" });
            let frame = wire.answer(id);
            match frame.kind() {
                FrameKind::Done => Ok(frame.header.count),
                _ => Err(frame.code()),
            }
        };
        assert_eq!(delete(DELETE_IF_UNUSED), Err(Code::InUse));
        assert_eq!(delete(DELETE_IF_EMPTY), Err(Code::InUse));
        assert_eq!(delete(DELETE_IF_EMPTY | DELETE_IF_UNUSED), Err(Code::InUse));
        assert_eq!(delete(0), Ok(2), "both messages are dropped");
        assert_eq!(delete(0), Err(Code::QueueUnknown));
        assert_eq!(wire.consumer_closed(2), Code::QueueDeleted);
        let refused = producer.refused(&mut wire, 1, to_queue(b"q", b"3"));
        assert_eq!(refused, Code::Unroutable);
        // A queue of the same name is another queue, without bindings and messages.
        assert!(wire.declare(&queue_on(b"q", core)));
        let info = wire.inspect(b"q");
        assert_eq!((info.ready, info.published, info.consumers), (0, 0, 0));
        let part = crate::wire::to(b"amq.direct", b"k", b"4");
        assert_eq!(producer.refused(&mut wire, 1, part), Code::Unroutable);
        let id = wire.request(
            FrameKind::QueueDelete,
            &Delete {
                flags: 3,
                name: b"q",
            },
        );
        assert_eq!(wire.done(id), (true, 0));
    }
}

/// P-62
fn exchanges_are_deleted(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    wire.bind(b"x", b"q", b"", b"");
    let delete = |flags| Delete { flags, name: b"x" };
    let id = wire.request(FrameKind::ExchangeDelete, &delete(DELETE_IF_UNUSED));
    assert_eq!(wire.failed(id), Code::InUse);
    let id = wire.request(FrameKind::ExchangeDelete, &delete(0));
    assert!(wire.done(id).0);
    let id = wire.request(FrameKind::ExchangeDelete, &delete(0));
    assert_eq!(wire.failed(id), Code::ExchangeUnknown);
    let mut producer = wire.producer(1, Level::Durable);
    let part = crate::wire::to(b"x", b"", b"m");
    assert_eq!(producer.refused(&mut wire, 0, part), Code::ExchangeUnknown);
    // Its binding is gone with it.
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Fanout));
    assert_eq!(producer.refused(&mut wire, 1, part), Code::Unroutable);
    let id = wire.request(FrameKind::ExchangeDelete, &delete(DELETE_IF_UNUSED));
    assert!(wire.done(id).0);
}

/// P-64
fn bindings(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Direct));
    let bind = |key| Bind {
        flags: 0,
        exchange: b"x",
        target: b"q",
        key,
        arguments: b"",
    };
    assert!(wire.bind(b"x", b"q", b"k", b""));
    assert!(!wire.bind(b"x", b"q", b"k", b""));
    assert!(
        wire.bind(b"x", b"q", b"other", b""),
        "the key is part of what it is"
    );
    assert!(
        wire.bind(b"x", b"q", b"k", b"\x01ai\0\0\0\x01"),
        "and the arguments"
    );
    let id = wire.request(FrameKind::Unbind, &bind(b"third"));
    assert_eq!(wire.failed(id), Code::BindingUnknown);
    let id = wire.request(FrameKind::Unbind, &bind(b"k"));
    assert!(wire.done(id).0);
    let id = wire.request(FrameKind::Unbind, &bind(b"k"));
    assert_eq!(wire.failed(id), Code::BindingUnknown);
    let mut producer = wire.producer(1, Level::Durable);
    // The one with arguments is still there, and routes by its key.
    producer.confirm(&mut wire, &[crate::wire::to(b"x", b"k", b"m")]);
    assert_eq!(wire.inspect(b"q").ready, 1);
}

/// P-60 to P-64
fn what_is_not_there(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Direct));
    for kind in [FrameKind::Bind, FrameKind::Unbind] {
        for (exchange, queue, code) in [
            (&b"y"[..], &b"q"[..], Code::ExchangeUnknown),
            (b"x", b"r", Code::QueueUnknown),
        ] {
            let bind = Bind {
                flags: 0,
                exchange,
                target: queue,
                key: b"",
                arguments: b"",
            };
            let id = wire.request(kind, &bind);
            assert_eq!(wire.failed(id), code);
        }
    }
    for kind in [FrameKind::QueueInspect, FrameKind::QueuePurge] {
        let id = wire.request(kind, &Named { name: b"r" });
        assert_eq!(wire.failed(id), Code::QueueUnknown);
    }
    let id = wire.request(
        FrameKind::TenantDelete,
        &Named {
            name: b"no such tenant",
        },
    );
    assert_eq!(wire.failed(id), Code::TenantUnknown);
    let id = wire.request_on(FrameKind::ConsumerOpen, 1, &consumer(b"r", 1));
    assert_eq!(wire.failed(id), Code::QueueUnknown);
    let id = wire.request(
        FrameKind::Attach,
        &ringpost_wire::control::Attach { queue: b"r" },
    );
    assert_eq!(wire.failed(id), Code::QueueUnknown);
    wire.bye();
}

/// P-69
fn purge_takes_what_is_ready(setup: &Setup) {
    for core in 0..setup.cores() {
        for make in [|declare| declare, volatile] {
            let mut wire = setup.wire();
            wire.declare(&make(queue_on(b"q", core)));
            let mut producer = wire.producer(1, Level::Volatile);
            let parts: Vec<_> = (0..10).map(|_| to_queue(b"q", b"m")).collect();
            producer.confirm(&mut wire, &parts);
            wire.consume(2, &consumer(b"q", 3));
            let held = wire.deliveries(2, 3);
            assert_eq!(wire.purge(b"q"), 7);
            assert_eq!(wire.purge(b"q"), 0);
            let info = wire.inspect(b"q");
            assert_eq!((info.ready, info.unacked), (0, 3));
            // What was outstanding is not touched: it can be settled and can come back.
            wire.settle_surely(2, 1, &[(held[1].tag, held[1].tag)]);
            let again = wire.deliveries(2, 1);
            assert_eq!(again[0].queue_sequence, held[1].queue_sequence);
            wire.settle_surely(2, 0, &[(0, again[0].tag)]);
            let info = wire.inspect(b"q");
            assert_eq!((info.ready, info.unacked, info.settled), (0, 0, 10));
            producer.confirm(&mut wire, &[to_queue(b"q", b"after")]);
            assert_eq!(payloads(&wire.deliveries(2, 1)), [b"after"]);
            wire.delete(b"q");
        }
    }
}

/// P-67
fn figures_are_of_every_core(setup: &Setup) {
    let mut wire = setup.wire();
    let mut producer = wire.producer(1, Level::Durable);
    let payload = filler(1, 1000 - 64 - 2);
    for core in 0..setup.cores() {
        let name = format!("q{core}");
        wire.declare(&queue_on(name.as_bytes(), core));
        let parts: Vec<_> = (0..=core)
            .map(|_| to_queue(name.as_bytes(), &payload))
            .collect();
        producer.confirm(&mut wire, &parts);
        wire.consume(10 + core, &consumer(name.as_bytes(), 1));
        let one = wire.deliveries(10 + core, 1);
        wire.settle_surely(10 + core, 0, &[(one[0].tag, one[0].tag)]);
    }
    for core in 0..setup.cores() {
        let count = u64::from(core) + 1;
        let unacked = u64::from(count > 1);
        let name = format!("q{core}");
        let info = wire.until(name.as_bytes(), |info| info.unacked == unacked);
        assert_eq!(info.core, core);
        assert_eq!(info.ready, count - 1 - unacked);
        assert_eq!((info.published, info.settled), (count, 1));
        assert_eq!(info.bytes, (count - 1) * 1008);
        assert_eq!(info.consumers, 1);
    }
    let listed: Vec<_> = wire.queues().iter().map(|info| info.core).collect();
    assert_eq!(listed, (0..setup.cores()).collect::<Vec<_>>());
}

/// P-10
fn requests_take_effect_in_order(setup: &Setup) {
    let mut wire = setup.wire();
    let mut ids = Vec::new();
    for round in 0..20 {
        let name = format!("q{round}");
        ids.push(wire.request(FrameKind::QueueDeclare, &queue(name.as_bytes())));
        let asked = exchange(name.as_bytes(), ExchangeKind::Fanout);
        ids.push(wire.request(FrameKind::ExchangeDeclare, &asked));
        let bind = Bind {
            flags: 0,
            exchange: name.as_bytes(),
            target: name.as_bytes(),
            key: b"",
            arguments: b"",
        };
        ids.push(wire.request(FrameKind::Bind, &bind));
        if round % 2 == 1 {
            let delete = Delete {
                flags: 0,
                name: name.as_bytes(),
            };
            ids.push(wire.request(FrameKind::QueueDelete, &delete));
            ids.push(wire.request(FrameKind::QueueDeclare, &queue(name.as_bytes())));
        }
    }
    for id in ids {
        assert!(wire.done(id).0);
    }
    assert_eq!(wire.queues().len(), 20);
}

/// P-9
fn answers_carry_the_request(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    let id = u64::MAX;
    let header = ringpost_wire::FrameHeader::bare(FrameKind::QueueInspect, 0, id);
    wire.send(header, &Named { name: b"q" });
    let frame = wire.answer(id);
    assert_eq!(
        (frame.kind(), frame.header.channel),
        (FrameKind::QueueInfo, 0)
    );
    let header = ringpost_wire::FrameHeader::bare(FrameKind::ConsumerOpen, 77, id - 1);
    wire.send(header, &consumer(b"none", 1));
    let frame = wire.answer(id - 1);
    assert_eq!(
        (frame.kind(), frame.header.channel),
        (FrameKind::Failed, 77)
    );
}

/// P-67
fn lists(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    wire.declare_exchange(&exchange(b"x", ExchangeKind::Headers));
    wire.bind(b"x", b"q", b"k", b"\x01at\x01");
    let mut list = |kind, item| {
        let id = wire.request_bare(kind, 0);
        let mut items = Vec::new();
        loop {
            let frame = wire.answer(id);
            if frame.kind() == FrameKind::Done {
                assert_eq!(frame.header.count as usize, items.len());
                return items;
            }
            assert_eq!(frame.kind(), item);
            items.push(frame.body);
        }
    };
    let exchanges = list(FrameKind::ExchangeList, FrameKind::ExchangeInfo);
    let mine = exchanges.iter().find_map(|body| {
        let info = ExchangeDeclare::decode(body).unwrap();
        (info.name == b"x").then_some(info.kind)
    });
    assert_eq!(mine, Some(ExchangeKind::Headers as u8));
    let bindings = list(FrameKind::BindingList, FrameKind::BindingInfo);
    let bind = Bind::decode(&bindings[0]).unwrap();
    assert_eq!(bindings.len(), 1);
    assert_eq!(
        (bind.exchange, bind.target, bind.key),
        (&b"x"[..], &b"q"[..], &b"k"[..])
    );
    assert_eq!(bind.arguments, b"\x01at\x01");
    let tenants = list(FrameKind::TenantList, FrameKind::TenantInfo);
    let names: Vec<_> = tenants
        .iter()
        .map(|body| Named::decode(body).unwrap().name)
        .collect();
    assert!(names.contains(&setup.tenant.as_bytes()) && names.contains(&&b"default"[..]));
}
