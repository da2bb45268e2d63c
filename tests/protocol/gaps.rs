//! Rules of docs/protocol.md that the broker does not keep yet, each shown by a test that fails
//! (`should_panic`). Whoever closes a gap sees its test complain, and moves it to `protocol.rs` with
//! a citation. This file only shrinks.

use std::time::Duration;

use ringpost_wire::control::*;
use ringpost_wire::header::*;
use ringpost_wire::*;

use super::peer::*;

/// P-10: a channel that is being opened, here on another core, already takes frames.
#[test]
#[should_panic(expected = "Close")]
fn frames_may_follow_the_opening_of_a_consumer() {
    for _ in 0..64 {
        let name = unique("follow");
        let mut peer = Peer::connect();
        peer.declare(&name);
        open_and_raise(&mut peer, &name);
        peer.expect(FrameKind::ConsumerOpened);
    }
}

/// P-10, P-15: they are ignored if the opening fails.
#[test]
#[should_panic(expected = "Close")]
fn frames_that_follow_a_failed_opening_are_ignored() {
    let mut peer = Peer::connect();
    open_and_raise(&mut peer, "nowhere");
    peer.failed_with(Code::QueueUnknown);
    peer.declare(&unique("follow"));
}

fn open_and_raise(peer: &mut Peer, name: &str) {
    let open = ConsumerOpen {
        credit_bytes: 0,
        credit_messages: 1,
        flags: 0,
        queue: name.as_bytes(),
    };
    let credit = ConsumerCredit {
        bytes: 0,
        messages: 3,
        reserved: 0,
    };
    let mut out = Vec::new();
    open.write(&mut out, FrameHeader::bare(FrameKind::ConsumerOpen, 1, 50));
    credit.write(&mut out, FrameHeader::bare(FrameKind::ConsumerCredit, 1, 0));
    peer.send(&out);
}

/// P-11: `Close` is answered with `Close`.
#[test]
#[should_panic(expected = "the connection is up")]
fn a_goodbye_is_answered() {
    let mut peer = Peer::connect();
    let goodbye = Failure {
        code: 0,
        reserved: 0,
        reason: b"",
    };
    peer.body(FrameKind::Close, 0, 0, &goodbye);
    peer.closed_with(Code::Normal);
}

/// P-15: what was on its way to a channel when the broker closed it is ignored.
#[test]
#[should_panic(expected = "Close")]
fn late_frames_to_a_closed_channel_are_ignored() {
    let name = unique("late");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b"]);
    peer.consumer(2, &name, 2, 0);
    peer.take(2);
    peer.settle(2, SETTLE_ACK, 9, 9);
    peer.expect(FrameKind::ConsumerClosed);
    peer.settle(2, SETTLE_ACK, 1, 1);
    assert_eq!(peer.info(&name), (2, 0));
}

/// P-19: a publish holds at least one message.
#[test]
#[should_panic(expected = "ProducerClosed")]
fn a_publish_of_nothing_is_refused() {
    let mut peer = Peer::connect();
    peer.producer(1, Level::Durable);
    peer.bare(FrameKind::Publish, 1, 1);
    peer.bare(FrameKind::ProducerClose, 1, 5);
    peer.closed_with(Code::BodyMalformed);
}

/// Says hello and asks for messages of at most 1000 bytes.
fn with_small_messages() -> Peer {
    let mut peer = Peer::dial();
    let small = Hello {
        message_bytes_max: 1000,
        ..hello()
    };
    peer.body(FrameKind::Hello, 0, 0, &small);
    peer.expect(FrameKind::Welcome);
    peer
}

/// P-22: the limit that was agreed on holds for messages that travel whole, too.
#[test]
#[should_panic(expected = "Confirm")]
fn whole_messages_above_the_limit_are_refused() {
    let name = unique("limit");
    let mut peer = with_small_messages();
    peer.declare(&name);
    peer.producer(1, Level::Durable);
    peer.publish(1, 1, 0, &[message(&name, &"x".repeat(5000))]);
    peer.refused(1, Code::MessageTooLarge);
}

/// P-42: a message above the limit of the consumer's connection ends the consumer.
#[test]
#[should_panic(expected = "Deliver")]
fn messages_above_the_limit_are_not_delivered() {
    let name = unique("limit");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &[&"x".repeat(5000)]);
    let mut peer = with_small_messages();
    peer.consumer(1, &name, 5, 0);
    let closed = peer.expect(FrameKind::ConsumerClosed);
    assert_eq!(closed.code(), Code::MessageTooLarge);
}

/// P-30: an older epoch is fenced.
#[test]
#[should_panic(expected = "ProducerOpened")]
fn an_older_epoch_is_fenced() {
    let mut peer = Peer::connect();
    let newer = ProducerOpen {
        epoch: 5,
        ..producer(Level::Durable)
    };
    peer.producer_as(1, &newer);
    let older = ProducerOpen { epoch: 4, ..newer };
    peer.ask(FrameKind::ProducerOpen, 2, &older);
    peer.failed_with(Code::ProducerFenced);
}

/// P-33: a producer gets credit, however many others have some and do not use it.
#[test]
#[should_panic(expected = "nothing came")]
fn idle_producers_do_not_starve_others() {
    let mut peer = Peer::connect();
    let patience = Some(Duration::from_secs(2));
    peer.stream.set_read_timeout(patience).expect("a timeout");
    for channel in 1..=8 {
        peer.producer(channel, Level::Durable);
    }
}

/// P-39: `ProducerClosed` comes after the outcomes of everything published before.
#[test]
#[should_panic(expected = "ProducerClosed")]
fn closing_a_producer_waits_for_its_outcomes() {
    let name = unique("outcomes");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.producer(1, Level::Durable);
    let mut body = Vec::new();
    message(&name, "x").write(&mut body).expect("within limits");
    let header = FrameHeader {
        count: 1,
        ..FrameHeader::bare(FrameKind::Publish, 1, 1)
    };
    let mut out = Vec::new();
    frame::write(&mut out, header, &body);
    frame::write_bare(&mut out, FrameKind::ProducerClose, 1, 60);
    peer.send(&out);
    peer.expect(FrameKind::Confirm);
    peer.expect(FrameKind::ProducerClosed);
}

/// P-39: what is refused is in no queue, also if its queues live on several cores.
#[test]
#[should_panic(expected = "queue_full")]
fn what_is_refused_is_in_no_queue() {
    let mut peer = Peer::connect();
    let fanout = unique("fanout");
    peer.ask(
        FrameKind::ExchangeDeclare,
        0,
        &exchange(&fanout, ExchangeKind::Fanout),
    );
    assert!(peer.done());
    // Partition 0 is the first core's and partition 1 the second's.
    let names = [unique("fanout"), unique("fanout")];
    for (partition, name) in (0u16..).zip(&names) {
        let declared = QueueDeclare {
            partition,
            messages_max: u64::from(partition),
            ..queue(name)
        };
        peer.call(FrameKind::QueueDeclare, 0, &declared);
        peer.ask(FrameKind::Bind, 0, &bind(&fanout, name, ""));
        assert!(peer.done());
    }
    let attach = Attach {
        queue: names[0].as_bytes(),
    };
    peer.call(FrameKind::Attach, 0, &attach);
    peer.fill(1, &names[1], &["it is full now"]);
    peer.producer(1, Level::Durable);
    let both = MessageParts {
        exchange: fanout.as_bytes(),
        ..message("", "x")
    };
    peer.publish(1, 1, 0, &[both]);
    let code = peer.expect(FrameKind::Refused).code();
    peer.confirmed_past(1);
    let stored = peer.info(&names[0]).0;
    assert!(
        code == Code::Indeterminate || stored == 0,
        "{code}, but stored"
    );
}

/// P-43: what is ready is given at once.
#[test]
#[should_panic(expected = "right: 2")]
fn a_get_takes_what_is_ready() {
    let name = unique("get");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b"]);
    peer.consumer(2, &name, 0, 0);
    assert_eq!(peer.get(2, 2, 0).1, 2);
}

/// P-47: what was requeued comes before what was published after it.
#[test]
#[should_panic(expected = "right: [[97]]")]
fn what_was_requeued_comes_first() {
    let name = unique("first");
    let mut peer = Peer::connect();
    peer.declare(&name);
    peer.fill(1, &name, &["a", "b", "c"]);
    peer.consumer(2, &name, 2, 0);
    peer.take(2);
    peer.settle(2, SETTLE_REQUEUE, 1, 1);
    assert_eq!(peer.next().payloads(), [b"a"]);
}

/// P-92: unknown flags of a producer are refused.
#[test]
#[should_panic(expected = "ProducerOpened")]
fn unknown_flags_of_a_producer_are_refused() {
    let mut peer = Peer::connect();
    let odd = ProducerOpen {
        flags: 0x40,
        ..producer(Level::Durable)
    };
    peer.ask(FrameKind::ProducerOpen, 1, &odd);
    peer.failed_with(Code::SettingInvalid);
}

/// P-92: unknown flags of a consumer are refused.
#[test]
#[should_panic(expected = "ConsumerOpened")]
fn unknown_flags_of_a_consumer_are_refused() {
    let name = unique("flags");
    let mut peer = Peer::connect();
    peer.declare(&name);
    let odd = ConsumerOpen {
        credit_bytes: 0,
        credit_messages: 1,
        flags: 0x40,
        queue: name.as_bytes(),
    };
    peer.ask(FrameKind::ConsumerOpen, 1, &odd);
    peer.failed_with(Code::SettingInvalid);
}
