//! How a connection begins, how it stays and how it ends.

use ringpost_wire::control::{Hello, Named};
use ringpost_wire::version::MAGIC;
use ringpost_wire::{Code, FrameHeader, FrameKind, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN};

use crate::broker::Broker;
use crate::wire::{Wire, consumer, eventually, hello, queue, to_queue};
use crate::{Setup, on_cores};

on_cores! {
    welcome_says_what_holds
    the_newest_common_version_is_spoken
    without_a_common_version_the_broker_names_its_own
    an_unknown_tenant_is_refused
    a_second_hello_is_refused
    another_protocol_is_cut_off
    a_hello_is_small
    a_close_is_answered
    what_was_sent_before_a_close_is_served
    tenants_see_nothing_of_each_other
    tenants_come_and_go
}

/// P-7, P-12
fn welcome_says_what_holds(setup: &Setup) {
    let wire = Wire::open(&setup.broker);
    assert!(wire.core < setup.cores());
    assert_eq!(wire.heartbeat_ms, 10_000);
    assert_eq!(wire.message_bytes_max, 16 << 20);
    let asks = |heartbeat_ms, message_bytes_max| {
        let hello = Hello {
            heartbeat_ms,
            message_bytes_max,
            ..hello(b"")
        };
        let wire = Wire::greet(&setup.broker, &hello);
        (wire.heartbeat_ms, wire.message_bytes_max)
    };
    assert_eq!(asks(1, 1 << 30), (HEARTBEAT_MS_MIN, 16 << 20));
    assert_eq!(asks(u32::MAX, 70_000), (HEARTBEAT_MS_MAX, 70_000));
    assert_eq!(asks(5_000, 16 << 20), (5_000, 16 << 20));
}

/// P-8
fn the_newest_common_version_is_spoken(setup: &Setup) {
    for (version_min, version_max) in [(0, 1), (1, 1), (1, 9), (0, u16::MAX)] {
        let hello = Hello {
            version_min,
            version_max,
            ..hello(b"")
        };
        Wire::greet(&setup.broker, &hello).bye();
    }
}

/// P-8
fn without_a_common_version_the_broker_names_its_own(setup: &Setup) {
    for (version_min, version_max) in [(2, 9), (0, 0), (9, 1)] {
        let mut wire = Wire::dial(setup.broker.addr());
        let hello = Hello {
            version_min,
            version_max,
            ..hello(b"")
        };
        wire.send(FrameHeader::bare(FrameKind::Hello, 0, 0), &hello);
        let frame = wire.read();
        assert_eq!(frame.kind(), FrameKind::Close);
        assert_eq!(frame.code(), Code::VersionUnsupported);
        assert!(frame.reason().contains('1'), "{}", frame.reason());
        wire.ends();
    }
}

/// P-68
fn an_unknown_tenant_is_refused(setup: &Setup) {
    let mut wire = Wire::dial(setup.broker.addr());
    let header = FrameHeader::bare(FrameKind::Hello, 0, 0);
    wire.send(header, &hello(b"nobody knows"));
    assert_eq!(wire.closed(), Code::TenantUnknown);
}

/// P-7
fn a_second_hello_is_refused(setup: &Setup) {
    let mut wire = Wire::open(&setup.broker);
    wire.send(FrameHeader::bare(FrameKind::Hello, 0, 0), &hello(b""));
    assert_eq!(wire.closed(), Code::UnexpectedFrame);
}

/// P-7: with or without a word.
fn another_protocol_is_cut_off(setup: &Setup) {
    let cut_off = |speak: &dyn Fn(&mut Wire)| {
        let mut wire = Wire::dial(setup.broker.addr());
        speak(&mut wire);
        if let Some(frame) = wire.try_read() {
            assert_eq!(frame.kind(), FrameKind::Close);
            assert_ne!(frame.code(), Code::Normal);
            wire.ends();
        }
    };
    cut_off(&|wire| wire.send_bytes(b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n"));
    cut_off(&|wire| {
        wire.send_bytes(b"AMQP\0\0\x09\x01AMQP\0\0\x09\x01AMQP\0\0\x09\x01AMQP\0\0\x09\x01")
    });
    cut_off(&|wire| {
        let hello = Hello {
            magic: MAGIC + 1,
            ..hello(b"")
        };
        wire.send(FrameHeader::bare(FrameKind::Hello, 0, 0), &hello);
    });
    cut_off(&|wire| {
        wire.request_bare(FrameKind::QueueList, 0);
    });
    cut_off(&|wire| wire.send_frame(FrameHeader::bare(FrameKind::Heartbeat, 0, 0), b""));
}

/// P-7: a large frame is refused before it is there, so that strangers take no memory.
fn a_hello_is_small(setup: &Setup) {
    let mut wire = Wire::dial(setup.broker.addr());
    let header = FrameHeader {
        body_bytes: 100_000,
        ..FrameHeader::bare(FrameKind::Hello, 0, 0)
    };
    wire.send_bytes(&header.encode());
    assert_eq!(wire.closed(), Code::FrameTooLarge);
}

/// P-11
fn a_close_is_answered(setup: &Setup) {
    Wire::open(&setup.broker).bye();
}

/// P-11, P-17
fn what_was_sent_before_a_close_is_served(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    let mut producer = wire.producer(1, ringpost_wire::control::Level::Durable);
    producer.publish(&mut wire, 0, &[to_queue(b"q", b"last words")]);
    wire.bye();
    let mut wire = setup.wire();
    wire.until(b"q", |info| info.ready == 1);
    wire.consume(1, &consumer(b"q", 1));
    assert_eq!(wire.deliveries(1, 1)[0].payload, b"last words");
}

/// P-68
fn tenants_see_nothing_of_each_other(setup: &Setup) {
    let mut here = setup.wire();
    let mut there = Wire::tenant(&setup.broker, &format!("{} other", setup.tenant));
    assert!(here.declare(&queue(b"q")));
    assert!(there.declare(&queue(b"q")));
    assert!(here.declare(&queue(b"mine")));
    let mut producer = here.producer(1, ringpost_wire::control::Level::Durable);
    producer.confirm(&mut here, &[to_queue(b"q", b"here")]);
    assert_eq!(there.inspect(b"q").ready, 0);
    let id = there.request(FrameKind::QueueInspect, &Named { name: b"mine" });
    assert_eq!(there.failed(id), Code::QueueUnknown);
    let names = |wire: &mut Wire| {
        let infos = wire.queues();
        infos.into_iter().map(|info| info.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&mut here), [b"mine".to_vec(), b"q".to_vec()]);
    assert_eq!(names(&mut there), [b"q".to_vec()]);
    there.delete(b"q");
    assert_eq!(here.inspect(b"q").ready, 1);
}

/// P-68
fn tenants_come_and_go(setup: &Setup) {
    let mut wire = Wire::open(&setup.broker);
    let name = format!("{} guest", setup.tenant);
    let named = Named {
        name: name.as_bytes(),
    };
    let mut ask = |kind| {
        let id = wire.request(kind, &named);
        let frame = wire.answer(id);
        match frame.kind() {
            FrameKind::Done => Ok(frame.header.flags == 1),
            _ => Err(frame.code()),
        }
    };
    assert_eq!(ask(FrameKind::TenantDeclare), Ok(true));
    assert_eq!(ask(FrameKind::TenantDeclare), Ok(false));
    let mut guest = Wire::greet(&setup.broker, &hello(name.as_bytes()));
    assert_eq!(ask(FrameKind::TenantDelete), Err(Code::InUse));
    guest.declare(&queue(b"q"));
    guest.bye();
    assert_eq!(ask(FrameKind::TenantDelete), Err(Code::InUse));
    let mut guest = Wire::greet(&setup.broker, &hello(name.as_bytes()));
    guest.delete(b"q");
    guest.bye();
    // The broker learns of the end of a connection when it looks.
    eventually(|| match ask(FrameKind::TenantDelete) {
        Err(Code::InUse) => Err("it stays in use"),
        _ => Ok(()),
    });
    let mut stranger = Wire::dial(setup.broker.addr());
    let header = FrameHeader::bare(FrameKind::Hello, 0, 0);
    stranger.send(header, &hello(name.as_bytes()));
    assert_eq!(stranger.closed(), Code::TenantUnknown);
}

/// P-7, P-12
#[test]
fn silence_ends_a_connection() {
    let broker = Broker::start(1, &[("handshake_timeout", "300ms"), ("heartbeat", "1s")]);
    let mut mute = Wire::dial(broker.addr());
    let mut silent = Wire::open(&broker);
    silent.answers_heartbeats = false;
    let mut lively = Wire::open(&broker);
    while lively.heartbeats < 6 {
        lively.sync();
        lively.pause_for_heartbeat();
    }
    lively.bye();
    assert_eq!(mute.closed(), Code::TimedOut);
    assert_eq!(silent.closed(), Code::TimedOut);
    assert!(silent.heartbeats > 0, "the broker shows that it lives");
}
