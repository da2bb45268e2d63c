//! The broker keeps the rules of docs/protocol.md: raw frames over TCP, rule by rule. What it does
//! not keep yet stands in `protocol/gaps.rs`. Does not know the client crate.

#[path = "protocol/gaps.rs"]
mod gaps;
#[path = "protocol/peer.rs"]
mod peer;

use ringpost_wire::control::*;
use ringpost_wire::header::*;
use ringpost_wire::version::MAGIC;
use ringpost_wire::*;

use peer::*;

//= P-2, P-4
#[test]
fn what_is_no_frame_ends_its_connection_and_no_other() {
    let mut peer = Peer::connect();
    peer.send(&[0x55; 64]);
    peer.closed_with(Code::FrameMalformed);
}

//= P-3
#[test]
fn a_frame_that_is_too_long_ends_the_connection() {
    let mut header = FrameHeader::bare(FrameKind::Publish, 1, 1);
    header.body_bytes = FRAME_BYTES_MAX as u32;
    let mut peer = Peer::connect();
    peer.send(&header.encode());
    peer.closed_with(Code::FrameTooLarge);
}

//= P-5
#[test]
fn a_body_must_match_its_checksum() {
    let mut out = Vec::new();
    named("q").write(&mut out, FrameHeader::bare(FrameKind::QueueInspect, 0, 1));
    out[FRAME_HEADER_BYTES + 4] ^= 1;
    let mut peer = Peer::connect();
    peer.send(&out);
    peer.closed_with(Code::BodyMalformed);
}

//= P-6
#[test]
fn a_body_has_its_length_and_zeros_where_it_says_so() {
    for body in [&b"\x01\0\0\0"[..], b"\0\0\0\0x", b"\0\0"] {
        let mut peer = Peer::connect();
        peer.frame(FrameHeader::bare(FrameKind::QueueInspect, 0, 1), body);
        peer.closed_with(Code::BodyMalformed);
    }
    let mut peer = Peer::connect();
    let open = ProducerOpen {
        reserved: 1,
        ..producer(Level::Durable)
    };
    peer.body(FrameKind::ProducerOpen, 1, 1, &open);
    peer.closed_with(Code::BodyMalformed);
}

//= P-7, P-8
#[test]
fn the_first_frame_is_a_hello_that_the_broker_understands() {
    let mut peer = Peer::dial();
    peer.bare(FrameKind::QueueList, 0, 1);
    peer.closed_with(Code::UnexpectedFrame);

    let mut peer = Peer::dial();
    let newer = Hello {
        version_min: 9,
        version_max: 12,
        ..hello()
    };
    peer.body(FrameKind::Hello, 0, 0, &newer);
    peer.closed_with(Code::VersionUnsupported);

    let mut peer = Peer::dial();
    let wide = Hello {
        version_max: 12,
        ..hello()
    };
    peer.body(FrameKind::Hello, 0, 0, &wide);
    let answer = peer.expect(FrameKind::Welcome);
    let welcome = Welcome::decode(&answer.body).expect("a welcome");
    assert_eq!((welcome.magic, welcome.version), (MAGIC, 1));
    assert_eq!(welcome.cores, 2);
}

//= P-12
#[test]
fn heartbeats_are_agreed_and_kept() {
    let mut peer = Peer::dial();
    let hasty = Hello {
        heartbeat_ms: 1,
        ..hello()
    };
    peer.body(FrameKind::Hello, 0, 0, &hasty);
    let answer = peer.expect(FrameKind::Welcome);
    let welcome = Welcome::decode(&answer.body).expect("a welcome");
    assert_eq!(welcome.heartbeat_ms, HEARTBEAT_MS_MIN);
    // This peer says nothing more: it hears heartbeats, which `next` passes over, and then this.
    peer.closed_with(Code::TimedOut);
}

//= P-9, P-10
#[test]
fn topology_requests_of_a_connection_take_effect_in_order() {
    let (name, topic) = (unique("order"), unique("order"));
    let mut peer = Peer::connect();
    let asked = [
        peer.ask(FrameKind::QueueDeclare, 0, &queue(&name)),
        peer.ask(
            FrameKind::ExchangeDeclare,
            0,
            &exchange(&topic, ExchangeKind::Topic),
        ),
        peer.ask(FrameKind::Bind, 0, &bind(&topic, &name, "a.*")),
        peer.ask(FrameKind::Unbind, 0, &bind(&topic, &name, "a.*")),
    ];
    let mut answered: Vec<u64> = (0..4)
        .map(|_| {
            let done = peer.expect(FrameKind::Done);
            assert_eq!(done.header.flags, DONE_CHANGED);
            done.header.sequence
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, asked);
    peer.ask(FrameKind::QueueInspect, 0, &named("nowhere"));
    let failed = peer.expect(FrameKind::Failed);
    assert_eq!(failed.header.sequence, asked[3] + 1);
    assert_eq!(failed.code(), Code::QueueUnknown);
}

//= P-13
#[test]
fn a_connection_moves_to_the_core_of_a_queue() {
    let mut peer = Peer::connect();
    let mut seen = [false; 2];
    for _ in 0..32 {
        let name = unique("attach");
        peer.declare(&name);
        let attach = Attach {
            queue: name.as_bytes(),
        };
        let answer = peer.call(FrameKind::Attach, 0, &attach);
        assert_eq!(answer.header.kind, FrameKind::Attached);
        seen[answer.header.count as usize] = true;
        // It works there as it did before.
        peer.fill(1, &name, &["x"]);
        assert_eq!(peer.info(&name), (1, 0));
        if seen == [true; 2] {
            break;
        }
    }
    assert_eq!(seen, [true; 2], "32 names lie on both cores");
    let nowhere = Attach { queue: b"nowhere" };
    peer.ask(FrameKind::Attach, 0, &nowhere);
    peer.failed_with(Code::QueueUnknown);
    peer.producer(1, Level::Durable);
    peer.ask(FrameKind::Attach, 0, &nowhere);
    peer.closed_with(Code::UnexpectedFrame);
}

//= P-14, P-16
#[test]
fn channels_are_numbered_and_used_once() {
    for (first, second) in [(1, 1), (1, 0), (1, 4097)] {
        let mut peer = Peer::connect();
        peer.producer(first, Level::Durable);
        peer.body(
            FrameKind::ProducerOpen,
            second,
            2,
            &producer(Level::Durable),
        );
        peer.closed_with(Code::ChannelInvalid);
    }
    // A frame of the broker, a second hello, and a channel that nobody opened.
    let mut peer = Peer::connect();
    peer.bare(FrameKind::Done, 0, 1);
    peer.closed_with(Code::UnexpectedFrame);
    let mut peer = Peer::connect();
    peer.body(FrameKind::Hello, 0, 0, &hello());
    peer.closed_with(Code::UnexpectedFrame);
    let mut peer = Peer::connect();
    peer.publish(3, 1, 0, &[message("q", "x")]);
    peer.closed_with(Code::UnexpectedFrame);
}

//= P-17, P-47
#[test]
fn what_a_lost_connection_held_returns_to_its_place() {
    let name = unique("lost");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b", "c"]);
    peer.consumer(2, &name, 10, 0);
    let first = peer.take(3);
    assert_eq!(first, [b"a", b"b", b"c"]);
    peer.settle(2, SETTLE_ACK | SETTLE_CONFIRM, 2, 2);
    peer.expect(FrameKind::Settled);
    drop(peer);
    let mut peer = Peer::connect();
    peer.consumer(1, &name, 10, 0);
    let mut places = Vec::new();
    while places.len() < 2 {
        let again = peer.next();
        let (head, _) = again.delivery();
        assert_eq!(again.header.flags, DELIVER_REDELIVERED);
        assert_eq!(head.delivery_count, 1);
        places.extend((0..u64::from(again.header.count)).map(|idx| head.queue_sequence + idx));
    }
    assert_eq!(places, [1, 3]);
}

//= P-18
#[test]
fn settlements_are_read_while_publishes_are_refused() {
    let name = unique("full");
    let mut peer = Peer::connect();
    let small = QueueDeclare {
        messages_max: 2,
        ..queue(&name)
    };
    peer.call(FrameKind::QueueDeclare, 0, &small);
    peer.producer(1, Level::Durable);
    peer.publish(1, 1, 0, &[message(&name, "a"), message(&name, "b")]);
    peer.confirmed(2, Level::Durable);
    peer.publish(1, 3, 0, &[message(&name, "c")]);
    peer.refused(3, Code::QueueFull);
    peer.consumer(2, &name, 1, 0);
    peer.take(1);
    peer.settle(2, SETTLE_ACK | SETTLE_CONFIRM, 1, 1);
    // The next message and the answer may come in either order.
    let kinds = [peer.next().header.kind, peer.next().header.kind];
    assert!(kinds.contains(&FrameKind::Settled) && kinds.contains(&FrameKind::Deliver));
    peer.publish(1, 4, 0, &[message(&name, "d")]);
    peer.confirmed(4, Level::Durable);
}

//= P-19
#[test]
fn counts_are_those_of_the_body() {
    let mut body = Vec::new();
    message("q", "x").write(&mut body).expect("within limits");
    for count in [0, 2] {
        let mut peer = Peer::connect();
        peer.producer(1, Level::Durable);
        let header = FrameHeader {
            count,
            ..FrameHeader::bare(FrameKind::Publish, 1, 1)
        };
        peer.frame(header, &body);
        peer.closed_with(Code::BodyMalformed);
    }
}

//= P-20, P-21, P-24
#[test]
fn damaged_messages_end_the_connection() {
    let mut good = Vec::new();
    message("q", "hello")
        .write(&mut good)
        .expect("within limits");
    let length = envelope::length_of(&good).expect("a message");
    let sealed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        let crc = ringpost_wire::checksum::crc32c(&bytes[4..length]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let mut flipped = good.clone();
    flipped[length - 1] ^= 1;
    // A payload byte, a reserved one, a part that overlaps another, an unknown critical flag.
    for body in [flipped, sealed(13, 1), sealed(56, 64), sealed(10, 0x80)] {
        let mut peer = Peer::connect();
        peer.producer(1, Level::Durable);
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Publish, 1, 1)
        };
        peer.frame(header, &body);
        peer.closed_with(Code::MessageMalformed);
    }
}

//= P-22, P-31, P-33, P-46
#[test]
fn large_messages_travel_in_pieces_and_have_a_limit() {
    let name = unique("large");
    let mut peer = Peer::dial();
    let modest = Hello {
        message_bytes_max: 600_000,
        ..hello()
    };
    peer.body(FrameKind::Hello, 0, 0, &modest);
    let answer = peer.expect(FrameKind::Welcome);
    let welcome = Welcome::decode(&answer.body).expect("a welcome");
    assert_eq!(welcome.message_bytes_max, 600_000);
    peer.declare(&name);
    let opened = peer.producer(1, Level::Durable);
    let mut credit = opened.bytes;
    let mut used = 0;
    for (sequence, payload_bytes) in [(1, 500_000), (2, 700_000), (3, 300_000)] {
        let payload: Vec<u8> = (0..payload_bytes).map(|idx| (idx % 251) as u8).collect();
        let parts = MessageParts {
            routing_key: name.as_bytes(),
            payload: &payload,
            ..MessageParts::default()
        };
        let mut bytes = Vec::new();
        parts.write(&mut bytes).expect("within limits");
        bytes.truncate(parts.length());
        for (number, piece) in bytes.chunks(FRAGMENT_BYTES_MAX).enumerate() {
            used += piece.len().next_multiple_of(16) as u64;
            while credit < used {
                let told = peer.next();
                assert!(
                    [FrameKind::ProducerCredit, FrameKind::Confirm].contains(&told.header.kind)
                );
                credit = ProducerCredit::decode(&told.body).expect("credit").bytes;
            }
            let head = FragmentHead {
                message_bytes: bytes.len() as u32,
                offset: (number * FRAGMENT_BYTES_MAX) as u32,
            };
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(FrameKind::PublishFragment, 1, sequence)
            };
            peer.frame(header, &[&head.encode()[..], piece].concat());
        }
        if sequence == 2 {
            peer.refused(2, Code::MessageTooLarge);
        } else {
            peer.confirmed(sequence, Level::Durable);
        }
    }
    peer.consumer(2, &name, 10, 0);
    for (tag, payload_bytes) in [(1, 500_000), (2, 300_000)] {
        let mut bytes = Vec::new();
        loop {
            let frame = peer.expect(FrameKind::DeliverFragment);
            assert_eq!(frame.header.sequence, tag);
            let (_, rest) = DeliverHead::split(&frame.body).expect("a delivery");
            let (head, piece) = FragmentHead::split(rest).expect("a piece");
            assert_eq!(head.offset as usize, bytes.len());
            bytes.extend_from_slice(piece);
            if head.is_last() {
                break;
            }
        }
        let message = envelope::open(&bytes).expect("a message");
        message.check_crc().expect("whole");
        assert_eq!(message.payload().len(), payload_bytes);
    }
}

//= P-30, P-32
#[test]
fn publishes_are_numbered_without_gaps() {
    for next in [5, 7, 1] {
        let mut peer = Peer::connect();
        let opened = peer.producer(1, Level::Durable);
        assert_eq!(opened.sequence, 1);
        assert!(opened.messages > 0 && opened.bytes >= FRAGMENT_BYTES_MAX as u64);
        // The first may have any number from 1; this one is confirmed, since no queue need take it.
        peer.publish(1, 5, 0, &[message("nowhere", "x")]);
        peer.confirmed(5, Level::Durable);
        peer.publish(1, next, 0, &[message("nowhere", "x")]);
        peer.closed_with(Code::SequenceGap);
    }
}

//= P-35, P-36, P-37, P-39
#[test]
fn confirms_name_their_level_and_refusals_their_messages() {
    let (durable, volatile) = (unique("level"), unique("level"));
    let mut peer = Peer::connect();
    peer.declare(&durable);
    let declared = QueueDeclare {
        durability: Durability::Volatile as u8,
        ..queue(&volatile)
    };
    peer.call(FrameKind::QueueDeclare, 0, &declared);

    peer.producer(1, Level::Durable);
    peer.publish(1, 1, 0, &[message(&volatile, "x")]);
    peer.refused(1, Code::LevelUnavailable);
    let mixed = [
        message(&durable, "a"),
        message("nowhere", "b"),
        message(&durable, "c"),
    ];
    peer.publish(1, 2, PUBLISH_MANDATORY, &mixed);
    peer.expect_mixed(3, 4);
    peer.close_producer(1);

    let open = ProducerOpen {
        flags: PRODUCER_DOWNGRADE,
        ..producer(Level::Durable)
    };
    peer.producer_as(1, &open);
    peer.publish(1, 1, 0, &[message(&volatile, "x")]);
    peer.confirmed(1, Level::Volatile);
    peer.close_producer(1);
    peer.producer(1, Level::Volatile);
    peer.publish(1, 1, 0, &[message(&durable, "d")]);
    peer.confirmed_past(1);
    peer.close_producer(1);

    // Level none: refusals alone are said.
    peer.producer(1, Level::None);
    peer.publish(1, 1, PUBLISH_MANDATORY, &[message("nowhere", "x")]);
    let refused = peer.expect(FrameKind::Refused);
    assert_eq!(
        (refused.header.channel, refused.code()),
        (1, Code::Unroutable)
    );
    assert_eq!(peer.info(&volatile), (1, 0));
    assert_eq!(peer.info(&durable), (3, 0));
}

//= P-38
#[test]
fn a_sequence_that_comes_again_is_stored_once() {
    let name = unique("again");
    let mut open = producer(Level::Durable);
    for epoch in 1..=2 {
        let mut peer = Peer::connect();
        peer.declare(&name);
        open.epoch = epoch;
        peer.producer_as(1, &open);
        peer.publish(1, 1, 0, &[message(&name, "a")]);
        peer.confirmed(1, Level::Durable);
    }
    assert_eq!(Peer::connect().info(&name), (1, 0));
}

//= P-40
#[test]
fn consumers_open_within_limits_and_exclusively() {
    let name = unique("open");
    let mut peer = Peer::connect();
    peer.declare(&name);
    let mut open = ConsumerOpen {
        credit_bytes: 0,
        credit_messages: CREDIT_MESSAGES_MAX + 1,
        flags: 0,
        queue: name.as_bytes(),
    };
    peer.ask(FrameKind::ConsumerOpen, 1, &open);
    peer.failed_with(Code::SettingInvalid);
    open.credit_messages = CREDIT_MESSAGES_MAX;
    assert_eq!(
        peer.call(FrameKind::ConsumerOpen, 1, &open).header.kind,
        FrameKind::ConsumerOpened
    );
    open.flags = CONSUMER_EXCLUSIVE;
    peer.ask(FrameKind::ConsumerOpen, 2, &open);
    peer.failed_with(Code::InUse);
    peer.request += 1;
    peer.bare(FrameKind::ConsumerClose, 1, 77);
    peer.expect(FrameKind::ConsumerClosed);
    peer.consumer(1, &name, 1, CONSUMER_EXCLUSIVE);
    open.flags = 0;
    peer.ask(FrameKind::ConsumerOpen, 2, &open);
    peer.failed_with(Code::InUse);
}

//= P-41, P-42, P-44, P-45
#[test]
fn credit_bounds_what_is_outstanding() {
    let name = unique("credit");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["1", "2", "3", "4", "5", "6"]);
    peer.consumer(2, &name, 2, 0);
    assert_eq!(peer.take(2), [b"1", b"2"]);
    assert_eq!(peer.info(&name), (4, 2));
    let more = ConsumerCredit {
        bytes: 0,
        messages: 3,
        reserved: 0,
    };
    peer.body(FrameKind::ConsumerCredit, 2, 0, &more);
    let third = peer.next();
    assert_eq!((third.header.sequence, third.header.count), (3, 1));
    assert_eq!(third.delivery().0.queue_sequence, 3);
    // Everything up to 2, and then 3 alone.
    peer.settle(2, SETTLE_ACK, 0, 2);
    assert_eq!(peer.take(2), [b"4", b"5"]);
    peer.settle(2, SETTLE_REJECT | SETTLE_CONFIRM, 3, 3);
    let kinds = [peer.next().header.kind, peer.next().header.kind];
    assert!(kinds.contains(&FrameKind::Settled) && kinds.contains(&FrameKind::Deliver));
    assert_eq!(peer.info(&name), (0, 3));
    // What is not outstanding ends the consumer, and what it held returns.
    peer.settle(2, SETTLE_ACK, 3, 3);
    let closed = peer.expect(FrameKind::ConsumerClosed);
    assert_eq!(
        (closed.header.sequence, closed.code()),
        (0, Code::UnknownDelivery)
    );
    assert_eq!(peer.info(&name), (3, 0));
    // A range that ends before it begins is no range.
    peer.consumer(3, &name, 1, 0);
    peer.take(1);
    peer.settle(3, SETTLE_ACK, 2, 1);
    peer.closed_with(Code::BodyMalformed);
}

//= P-43
#[test]
fn messages_are_taken_one_request_at_a_time() {
    let name = unique("get");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.consumer(1, &name, 0, 0);
    assert_eq!(peer.get(1, 5, 0).1, 0);
    assert_eq!(peer.get(1, 5, 30).1, 0);
    peer.fill(2, &name, &["a", "b", "c"]);
    let (deliveries, count) = peer.get(1, 2, 60_000);
    assert_eq!(count, 2);
    let payloads: Vec<_> = deliveries.iter().flat_map(Frame::payloads).collect();
    assert_eq!(payloads, [b"a", b"b"]);
    assert_eq!(peer.info(&name), (1, 2));
}

//= P-47
#[test]
fn requeued_messages_return_to_their_places() {
    let name = unique("requeue");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b", "c"]);
    peer.consumer(2, &name, 3, 0);
    peer.take(3);
    peer.settle(2, SETTLE_REQUEUE, 1, 1);
    let again = peer.next();
    assert_eq!(again.payloads(), [b"a"]);
    assert_eq!(again.header.flags, DELIVER_REDELIVERED);
    let (head, _) = again.delivery();
    assert_eq!((head.queue_sequence, head.delivery_count), (1, 1));
}

//= P-48
#[test]
fn a_closed_consumer_gives_back_what_it_held() {
    let name = unique("close");
    let mut peer = Peer::connect();
    let attach = Attach {
        queue: name.as_bytes(),
    };
    peer.declare(&name);
    peer.call(FrameKind::Attach, 0, &attach);
    peer.fill(1, &name, &["a", "b", "c"]);
    peer.consumer(2, &name, 3, 0);
    peer.take(3);
    peer.settle(2, SETTLE_ACK, 1, 1);
    peer.bare(FrameKind::ConsumerClose, 2, 70);
    let closed = peer.expect(FrameKind::ConsumerClosed);
    assert_eq!((closed.header.sequence, closed.code()), (70, Code::Normal));
    assert_eq!(peer.info(&name), (2, 0));
    peer.consumer(2, &name, 3, 0);
    assert_eq!(peer.take(2), [b"b", b"c"]);
}

//= P-49
#[test]
fn without_acks_what_is_sent_is_settled() {
    let name = unique("no-ack");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b", "c"]);
    peer.consumer(2, &name, 1, CONSUMER_NO_ACK);
    assert_eq!(peer.take(3), [b"a", b"b", b"c"]);
    assert_eq!(peer.info(&name), (0, 0));
    peer.settle(2, SETTLE_ACK, 1, 1);
    assert_eq!(
        peer.expect(FrameKind::ConsumerClosed).code(),
        Code::UnknownDelivery
    );
}

//= P-60, P-61
#[test]
fn queues_are_declared_once_and_compared() {
    let name = unique("declare");
    let mut peer = Peer::connect();
    for bad in ["", "amq.mine", "a\nb"] {
        peer.ask(FrameKind::QueueDeclare, 0, &queue(bad));
        peer.failed_with(Code::NameInvalid);
    }
    let passive = QueueDeclare {
        flags: DECLARE_PASSIVE,
        ..queue(&name)
    };
    peer.ask(FrameKind::QueueDeclare, 0, &passive);
    peer.failed_with(Code::QueueUnknown);
    peer.ask(FrameKind::QueueDeclare, 0, &queue(&name));
    assert!(peer.done());
    for same in [queue(&name), passive] {
        peer.ask(FrameKind::QueueDeclare, 0, &same);
        assert!(!peer.done());
    }
    let other = QueueDeclare {
        messages_max: 5,
        ..queue(&name)
    };
    peer.ask(FrameKind::QueueDeclare, 0, &other);
    let failed = peer.expect(FrameKind::Failed);
    assert_eq!(failed.code(), Code::PreconditionFailed);
    // The default exchange routes to the queue that the key names.
    peer.fill(1, &name, &["x"]);
    assert_eq!(peer.info(&name), (1, 0));
}

//= P-62
#[test]
fn a_deleted_queue_ends_its_consumers() {
    let name = unique("delete");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b"]);
    peer.consumer(2, &name, 0, 0);
    let delete = |flags| Delete {
        flags,
        name: name.as_bytes(),
    };
    for flags in [DELETE_IF_UNUSED, DELETE_IF_EMPTY] {
        peer.ask(FrameKind::QueueDelete, 0, &delete(flags));
        peer.failed_with(Code::InUse);
    }
    peer.ask(FrameKind::QueueDelete, 0, &delete(0));
    // The answer and the end of the consumer may come in either order.
    let (first, second) = (peer.next(), peer.next());
    let (done, closed) = match first.header.kind {
        FrameKind::Done => (first, second),
        _ => (second, first),
    };
    assert_eq!((done.header.kind, done.header.count), (FrameKind::Done, 2));
    assert_eq!(closed.header.kind, FrameKind::ConsumerClosed);
    assert_eq!(closed.code(), Code::QueueDeleted);
    peer.ask(FrameKind::QueueDelete, 0, &delete(0));
    peer.failed_with(Code::QueueUnknown);
    let nowhere = Delete {
        flags: 0,
        name: b"nowhere",
    };
    peer.ask(FrameKind::ExchangeDelete, 0, &nowhere);
    peer.failed_with(Code::ExchangeUnknown);
}

//= P-63, P-64
#[test]
fn bindings_are_known_by_all_they_say_and_a_queue_gets_a_message_once() {
    let (name, topic) = (unique("bind"), unique("bind"));
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.ask(
        FrameKind::ExchangeDeclare,
        0,
        &exchange(&topic, ExchangeKind::Topic),
    );
    assert!(peer.done());
    peer.ask(
        FrameKind::ExchangeDeclare,
        0,
        &exchange(&topic, ExchangeKind::Fanout),
    );
    peer.failed_with(Code::PreconditionFailed);
    for key in ["order.*.paid", "order.#"] {
        for is_new in [true, false] {
            peer.ask(FrameKind::Bind, 0, &bind(&topic, &name, key));
            assert_eq!(peer.done(), is_new);
        }
    }
    peer.producer(1, Level::Durable);
    let twice_matched = MessageParts {
        exchange: topic.as_bytes(),
        ..message("order.7.paid", "x")
    };
    peer.publish(1, 1, 0, &[twice_matched]);
    peer.confirmed(1, Level::Durable);
    assert_eq!(peer.info(&name), (1, 0));
    peer.ask(FrameKind::Unbind, 0, &bind(&topic, &name, "nothing"));
    peer.failed_with(Code::BindingUnknown);
    peer.ask(FrameKind::Bind, 0, &bind("nowhere", &name, "k"));
    peer.failed_with(Code::ExchangeUnknown);
    peer.ask(FrameKind::Bind, 0, &bind(&topic, "nowhere", "k"));
    peer.failed_with(Code::QueueUnknown);
}

//= P-67, P-68
#[test]
fn tenants_do_not_see_each_other_and_lists_say_how_many() {
    let (tenant, name) = (unique("tenant"), unique("tenant"));
    let mut stranger = Peer::dial();
    let hello = Hello {
        tenant: tenant.as_bytes(),
        ..hello()
    };
    stranger.body(FrameKind::Hello, 0, 0, &hello);
    stranger.closed_with(Code::TenantUnknown);

    let mut peer = Peer::connect();
    for is_new in [true, false] {
        peer.ask(FrameKind::TenantDeclare, 0, &named(&tenant));
        assert_eq!(peer.done(), is_new);
    }
    peer.declare(&name);
    let mut other = Peer::of_tenant(&tenant);
    other.ask(FrameKind::QueueInspect, 0, &named(&name));
    other.failed_with(Code::QueueUnknown);
    let theirs = [unique("list"), unique("list"), unique("list")];
    for name in &theirs {
        other.declare(name);
    }
    other.bare(FrameKind::QueueList, 0, 900);
    let mut listed: Vec<String> = (0..3)
        .map(|_| {
            let frame = other.expect(FrameKind::QueueInfo);
            assert_eq!(frame.header.sequence, 900);
            let info = QueueInfo::decode(&frame.body).expect("an info");
            String::from_utf8(info.name.to_vec()).expect("UTF-8")
        })
        .collect();
    listed.sort();
    assert_eq!(listed, theirs);
    assert_eq!(other.expect(FrameKind::Done).header.count, 3);
    peer.ask(FrameKind::TenantDelete, 0, &named(&tenant));
    peer.failed_with(Code::InUse);
}

//= P-69
#[test]
fn a_purge_drops_what_is_ready() {
    let name = unique("purge");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b", "c"]);
    peer.consumer(2, &name, 1, 0);
    peer.take(1);
    let purged = peer.call(FrameKind::QueuePurge, 0, &named(&name));
    assert_eq!(
        (purged.header.kind, purged.header.count),
        (FrameKind::Done, 2)
    );
    assert_eq!(peer.info(&name), (0, 1));
    peer.settle(2, SETTLE_ACK | SETTLE_CONFIRM, 1, 1);
    peer.expect(FrameKind::Settled);
}

//= P-92
#[test]
fn unknown_flags_of_a_request_are_refused() {
    let mut peer = Peer::connect();
    let odd = QueueDeclare {
        flags: 0x40,
        ..queue("odd")
    };
    peer.ask(FrameKind::QueueDeclare, 0, &odd);
    peer.failed_with(Code::SettingInvalid);
}
