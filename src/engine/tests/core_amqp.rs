//! AMQP connections of cores: what clients are told, in which order, and with which codes they are ended
//! when they do what they may not. Does not know sockets.

#[path = "memory/amqp.rs"]
mod amqp;
#[path = "memory/machine.rs"]
mod machine;

use amqp::{CHANNEL_CLOSE, Client, OPEN, TUNE_OK, consume, declare, start_ok};
use machine::{Machine, Size};
use ringpost_amqp::method::FieldType;
use ringpost_amqp::{FrameType, Method, PROTOCOL_HEADER, ReplyCode, frame};

fn start(cores: u16) -> Machine {
    Machine::start(Size {
        cores,
        buffers: 64,
        segment_bytes: 8 << 20,
        slots_max: 64,
    })
}

fn confirm(client: &mut Client, machine: &mut Machine) {
    let select = Method::ConfirmSelect { no_wait: false };
    let ok = client.ask(machine, 1, &select);
    assert_eq!(ok.method(), Method::ConfirmSelectOk {});
}

fn declared(client: &mut Client, machine: &mut Machine, queue: &[u8], durable: bool) {
    let ok = client.ask(machine, 1, &declare(queue, durable));
    let Method::QueueDeclareOk { queue: name, .. } = ok.method() else {
        panic!("{:?}", ok.method())
    };
    assert_eq!(name, queue);
}

/// Queues of either core, durable or not: published by one connection, confirmed, consumed by another.
#[test]
fn messages_go_from_one_client_to_another() {
    let mut machine = start(2);
    let mut publisher = Client::with_channel(&mut machine, 0);
    let mut consumer = Client::with_channel(&mut machine, 1);
    confirm(&mut publisher, &mut machine);
    for (number, durable) in (0..12u8).zip([true, false].into_iter().cycle()) {
        let queue = [b'q', b'a' + number];
        declared(&mut publisher, &mut machine, &queue, durable);
        for body in [&b"one"[..], b"two", b""] {
            publisher.put_publish(1, b"", &queue, body);
        }
        publisher.send(&mut machine);
        // One or several acks, which together say all three.
        let mut told = 0;
        while told < 3 * (u64::from(number) + 1) {
            let ack = publisher.next(&mut machine);
            let Method::BasicAck { delivery_tag, .. } = ack.method() else {
                panic!("{:?}", ack.method())
            };
            assert!(delivery_tag > told);
            told = delivery_tag;
        }
        let ok = consumer.ask(&mut machine, 1, &consume(&queue, false));
        assert_eq!(
            ok.method(),
            Method::BasicConsumeOk {
                consumer_tag: b"tag"
            }
        );
        for body in [&b"one"[..], b"two", b""] {
            let (method, found) = consumer.content(&mut machine);
            let Method::BasicDeliver {
                consumer_tag,
                redelivered,
                exchange,
                routing_key,
                ..
            } = method.method()
            else {
                panic!("{:?}", method.method())
            };
            assert_eq!((consumer_tag, redelivered), (&b"tag"[..], false));
            assert_eq!((exchange, routing_key), (&b""[..], &queue[..]));
            assert_eq!(found, body);
        }
        let all = Method::BasicAck {
            delivery_tag: 0,
            multiple: true,
        };
        consumer.put(1, &all);
        let cancel = Method::BasicCancel {
            consumer_tag: b"tag",
            no_wait: false,
        };
        let ok = consumer.ask(&mut machine, 1, &cancel);
        assert_eq!(
            ok.method(),
            Method::BasicCancelOk {
                consumer_tag: b"tag"
            }
        );
    }
    for core in 0..2 {
        machine.core(core).invariants();
    }
}

/// A content may be cut between any frames, by the end of what was received or by another channel, and
/// its body into frames of any size.
#[test]
fn contents_are_put_together_however_they_come() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    let open = Method::ChannelOpen { reserved_1: b"" };
    client.ask(&mut machine, 2, &open);
    declared(&mut client, &mut machine, b"q", true);
    confirm(&mut client, &mut machine);
    let body: Vec<u8> = (0..1_000u32).map(|number| number as u8).collect();
    let mut published = 0;
    for piece_bytes in [1_000, 300, 999] {
        for frames in 0..=6 {
            client.put_publish_in(1, (b"", b"q", false), &body, piece_bytes);
            client.send_in_two(&mut machine, frames);
            published += 1;
        }
    }
    // Two channels whose frames alternate.
    for turn in 0..3 {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for (channel, frames) in [(1u16, &mut one), (2, &mut two)] {
            let publish = Method::BasicPublish {
                reserved_1: 0,
                exchange: b"",
                routing_key: b"q",
                mandatory: false,
                immediate: false,
            };
            let mut bytes = Vec::new();
            frame::write(&mut bytes, FrameType::Method, channel, |out| {
                publish.encode(out)
            });
            frames.push(bytes);
            let mut bytes = Vec::new();
            frame::write(&mut bytes, FrameType::Header, channel, |out| {
                out.extend_from_slice(b"\0\x3c\0\0\0\0\0\0\0\0\x03\xe8\0\0");
            });
            frames.push(bytes);
            for piece in body.chunks(500) {
                let mut bytes = Vec::new();
                frame::write(&mut bytes, FrameType::Body, channel, |out| {
                    out.extend_from_slice(piece);
                });
                frames.push(bytes);
            }
        }
        for (one, two) in one.iter().zip(&two) {
            client.put_bytes(one);
            client.put_bytes(two);
            if turn == 1 {
                client.send(&mut machine);
            }
        }
        client.send(&mut machine);
        published += 2;
    }
    let mut consumer = Client::with_channel(&mut machine, 0);
    consumer.ask(&mut machine, 1, &consume(b"q", true));
    for number in 0..published {
        let (_, found) = consumer.content(&mut machine);
        assert!(found == body, "message {number}");
    }
}

/// Large bodies: several native frames in, several out, while the channel says other things.
#[test]
fn large_messages_are_sent_whole_and_nothing_comes_between() {
    let mut machine = start(2);
    let mut client = Client::with_channel(&mut machine, 0);
    let mut consumer = Client::with_channel(&mut machine, 1);
    let sizes = [150_000usize, 196_000, 196_700, 700_000, 1_500_000];
    for queue in [&b"large"[..], b"other"] {
        declared(&mut client, &mut machine, queue, true);
        let ok = consumer.ask(
            &mut machine,
            1,
            &Method::BasicConsume {
                reserved_1: 0,
                queue,
                consumer_tag: queue,
                no_local: false,
                no_ack: false,
                exclusive: false,
                no_wait: false,
                arguments: b"",
            },
        );
        assert_eq!(
            ok.method(),
            Method::BasicConsumeOk {
                consumer_tag: queue
            }
        );
    }
    for size in sizes {
        let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        client.put_publish(1, b"", b"large", &body);
        client.put_publish(1, b"", b"other", b"small");
        client.put_publish(1, b"", b"other", &body);
        client.send(&mut machine);
        let mut found = Vec::new();
        for _ in 0..3 {
            let (method, bytes) = consumer.content(&mut machine);
            let Method::BasicDeliver {
                consumer_tag,
                delivery_tag,
                ..
            } = method.method()
            else {
                panic!("{:?}", method.method())
            };
            assert!(bytes == body || bytes == b"small", "{} bytes", bytes.len());
            found.push((consumer_tag.to_vec(), bytes.len()));
            consumer.put(
                1,
                &Method::BasicAck {
                    delivery_tag,
                    multiple: false,
                },
            );
        }
        consumer.send(&mut machine);
        found.sort();
        let (large, other) = (b"large".to_vec(), b"other".to_vec());
        assert_eq!(found, [(large, size), (other.clone(), 5), (other, size)]);
    }
}

/// A return comes before the confirm of the same message.
#[test]
fn what_nobody_takes_comes_back_before_it_is_confirmed() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    confirm(&mut client, &mut machine);
    client.put_publish_in(1, (b"amq.direct", b"nowhere", true), b"back", 3);
    client.put_publish(1, b"amq.direct", b"nowhere", b"gone");
    client.send(&mut machine);
    let (method, body) = client.content(&mut machine);
    let expected = Method::BasicReturn {
        reply_code: 312,
        reply_text: b"NO_ROUTE",
        exchange: b"amq.direct",
        routing_key: b"nowhere",
    };
    assert_eq!((method.method(), &body[..]), (expected, &b"back"[..]));
    let ack = client.next(&mut machine);
    let expected = Method::BasicAck {
        delivery_tag: 2,
        multiple: true,
    };
    assert_eq!(ack.method(), expected);
}

/// A publish is not confirmed, and a channel not closed, before the disk has it.
#[test]
fn a_confirm_and_a_close_wait_for_the_disk() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    declared(&mut client, &mut machine, b"q", true);
    confirm(&mut client, &mut machine);
    machine.stall(0, true);
    client.put_publish(1, b"", b"q", b"x");
    client.put(1, &CHANNEL_CLOSE);
    client.send(&mut machine);
    assert_eq!(client.next_within(&mut machine, 50), None);
    machine.stall(0, false);
    let ack = client.next(&mut machine);
    let expected = Method::BasicAck {
        delivery_tag: 1,
        multiple: false,
    };
    assert_eq!(ack.method(), expected);
    let ok = client.next(&mut machine);
    assert_eq!(ok.method(), Method::ChannelCloseOk {});
}

/// Who publishes or gives back and then looks finds it, though nobody was told anything.
#[test]
fn who_looks_sees_what_the_connection_did_before() {
    for cores in [1, 2] {
        let mut machine = start(cores);
        let mut client = Client::with_channel(&mut machine, 0);
        for (name, durable) in [(&b"one"[..], true), (b"two", true), (b"three", false)] {
            declared(&mut client, &mut machine, name, durable);
            let get = Method::BasicGet {
                reserved_1: 0,
                queue: name,
                no_ack: false,
            };
            machine.stall(0, true);
            client.put_publish(1, b"", name, b"x");
            client.put(1, &declare(name, durable));
            client.send(&mut machine);
            machine.turn();
            machine.stall(0, false);
            let ok = client.next(&mut machine);
            let Method::QueueDeclareOk { message_count, .. } = ok.method() else {
                panic!("{:?}", ok.method())
            };
            assert_eq!(message_count, 1);
            for again in [false, true, true] {
                client.put(1, &get);
                client.send(&mut machine);
                let (got, body) = client.content(&mut machine);
                let Method::BasicGetOk {
                    delivery_tag,
                    redelivered,
                    ..
                } = got.method()
                else {
                    panic!("{:?}", got.method())
                };
                assert_eq!((redelivered, &body[..]), (again, &b"x"[..]));
                let back = Method::BasicNack {
                    delivery_tag,
                    multiple: false,
                    requeue: true,
                };
                client.put(1, &back);
            }
            let delete = Method::QueueDelete {
                reserved_1: 0,
                queue: name,
                if_unused: false,
                if_empty: false,
                no_wait: false,
            };
            let ok = client.ask(&mut machine, 1, &delete);
            assert_eq!(ok.method(), Method::QueueDeleteOk { message_count: 1 });
        }
    }
}

/// What a connection is told when it ends; nothing if it just ends.
fn ends_with(machine: &mut Machine, client: &mut Client) -> Option<u16> {
    let mut code = None;
    for _ in 0..1_000 {
        match client.next_within(machine, 1) {
            Some(frame) if frame.kind == FrameType::Method => {
                if let Method::ConnectionClose { reply_code, .. } = frame.method() {
                    code = Some(reply_code);
                }
            }
            Some(_) => {}
            None if machine.is_closed(client.core, client.conn) => return code,
            None => {}
        }
    }
    panic!("the connection does not end")
}

#[test]
fn other_protocols_are_told_which_one_this_is() {
    let mut machine = start(1);
    for header in [
        &b"AMQP\0\0\x09\0"[..],
        b"GET / HT",
        b"AMQP\x03\x01\0\0",
        b"\x16\x03\x01\0\0\0\0\0",
    ] {
        let client = Client::connect(&mut machine, 0);
        machine.send(0, client.conn, header);
        machine.turn();
        assert_eq!(*machine.received(0, client.conn), PROTOCOL_HEADER);
        assert!(machine.is_closed(0, client.conn));
    }
}

#[test]
fn only_a_guest_of_this_machine_is_let_in() {
    let mut machine = start(1);
    for (is_local, response, is_let_in) in [
        (true, &b"\0guest\0guest"[..], true),
        (false, b"\0guest\0guest", false),
        (true, b"\0guest\0other", false),
        (true, b"\0other\0guest", false),
        (true, b"", false),
    ] {
        for tells in [false, true] {
            let mut client = Client::connect(&mut machine, 0);
            client.conn = machine.connect_amqp(0, is_local);
            client.put_bytes(&PROTOCOL_HEADER);
            client.send(&mut machine);
            client.next(&mut machine);
            let ability = b"\x0ccapabilitiesF\0\0\0\x1f\x1cauthentication_failure_closet\x01";
            let login = Method::ConnectionStartOk {
                client_properties: if tells { ability } else { b"" },
                mechanism: b"PLAIN",
                response,
                locale: b"en_US",
            };
            client.put(0, &login);
            client.send(&mut machine);
            if is_let_in {
                let tune = client.next(&mut machine);
                assert!(matches!(tune.method(), Method::ConnectionTune { .. }));
                continue;
            }
            let code = ends_with(&mut machine, &mut client);
            assert_eq!(code, tells.then_some(403));
        }
    }
}

/// What ends a connection, and with which code.
#[test]
fn connections_end_with_the_code_of_the_specification() {
    let mut machine = start(1);
    let mut other = Client::with_channel(&mut machine, 0);
    let publish = Method::BasicPublish {
        reserved_1: 0,
        exchange: b"",
        routing_key: b"q",
        mandatory: false,
        immediate: true,
    };
    let raw = |kind: u8, channel: u16, payload: &[u8]| {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&channel.to_be_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes.push(0xce);
        bytes
    };
    let method = |channel: u16, method: &Method<'_>| {
        let mut payload = Vec::new();
        method.encode(&mut payload);
        raw(1, channel, &payload)
    };
    let content = [
        method(
            1,
            &Method::BasicPublish {
                reserved_1: 0,
                exchange: b"",
                routing_key: b"q",
                mandatory: false,
                immediate: false,
            },
        ),
        raw(2, 1, b"\0\x3c\0\0\0\0\0\0\0\0\0\x02\0\0"),
    ]
    .concat();
    let cases: Vec<(u16, Vec<u8>, &str)> = vec![
        (501, raw(4, 1, b""), "a frame of no type"),
        (501, b"\x08\0\0\0\0\0\0\xcd".to_vec(), "a frame without end"),
        (501, raw(8, 1, b""), "a heartbeat of a channel"),
        (502, raw(1, 1, b"\0\x3c\0\x50\0"), "a method cut short"),
        (502, raw(1, 1, b"\0"), "less than a number"),
        (503, raw(1, 1, b"\0\x3c\0\x63"), "a method of no number"),
        (
            503,
            method(1, &Method::BasicGetEmpty { reserved_1: b"" }),
            "a broker's method",
        ),
        (503, method(0, &TUNE_OK), "a method of the handshake"),
        (503, method(0, &OPEN), "another open"),
        (504, method(0, &CHANNEL_CLOSE), "a method of no channel"),
        (
            504,
            method(7, &declare(b"q", true)),
            "a channel that is not open",
        ),
        (
            504,
            method(1, &Method::ChannelOpen { reserved_1: b"" }),
            "another open channel",
        ),
        (505, raw(3, 1, b"x"), "a body of nothing"),
        (
            505,
            raw(2, 1, b"\0\x3c\0\0\0\0\0\0\0\0\0\x02\0\0"),
            "a header of nothing",
        ),
        (504, raw(3, 5, b"x"), "a body on a channel that is not open"),
        (505, [&content[..], &raw(2, 1, b"")].concat(), "two headers"),
        (
            505,
            [&content[..], &method(1, &declare(b"q", true))].concat(),
            "a method for a body",
        ),
        (
            501,
            [&content[..], &raw(3, 1, b"abc")].concat(),
            "a body that is too long",
        ),
        (
            530,
            method(2048, &Method::ChannelOpen { reserved_1: b"" }),
            "channel above the most",
        ),
        (540, method(1, &publish), "immediate"),
        (540, method(1, &Method::TxSelect {}), "transactions"),
        (
            540,
            method(1, &Method::ChannelFlow { active: false }),
            "flow",
        ),
        (
            540,
            method(1, &Method::BasicRecover { requeue: false }),
            "recover without requeue",
        ),
    ];
    for (code, bytes, what) in cases {
        let mut client = Client::with_channel(&mut machine, 0);
        client.put_bytes(&bytes);
        client.send(&mut machine);
        assert_eq!(ends_with(&mut machine, &mut client), Some(code), "{what}");
        assert!(other.is_alive(&mut machine), "{what}");
    }
    machine.core(0).invariants();
}

/// Before it is open a connection may say one thing at a time.
#[test]
fn methods_that_come_too_early_end_the_connection() {
    let mut machine = start(1);
    let early = [
        &start_ok(b"\0guest\0guest"),
        &TUNE_OK,
        &OPEN,
        &declare(b"q", true),
    ];
    for said in 0..3 {
        for (number, method) in early.iter().enumerate().filter(|(at, _)| *at != said) {
            let mut client = Client::connect(&mut machine, 0);
            client.put_bytes(&PROTOCOL_HEADER);
            for before in &early[..said] {
                client.put(0, before);
            }
            client.put(0, method);
            client.send(&mut machine);
            let code = ends_with(&mut machine, &mut client);
            assert_eq!(code, Some(503), "{number} after {said}");
        }
    }
}

/// Every method that clients send, cut at every byte of its payload: a syntax error, of this connection only.
#[test]
fn every_method_cut_at_every_byte_ends_its_connection() {
    let mut machine = start(1);
    let mut other = Client::with_channel(&mut machine, 0);
    for info in Method::ALL {
        let mut payload = [info.class.to_be_bytes(), info.method.to_be_bytes()].concat();
        let mut bits = 0;
        for (_, field) in info.fields {
            bits = match field {
                FieldType::Bit => bits + 1,
                _ => 0,
            };
            let bytes: &[u8] = match field {
                FieldType::Bit if bits % 8 != 1 => b"",
                FieldType::Bit | FieldType::Octet => b"\0",
                FieldType::Short => b"\0\0",
                FieldType::Long => b"\0\0\0\0",
                FieldType::LongLong => b"\0\0\0\0\0\0\0\0",
                FieldType::ShortStr => b"\x03abc",
                FieldType::LongStr | FieldType::Table => b"\0\0\0\x04\x01aVV",
            };
            payload.extend_from_slice(bytes);
        }
        for length in 0..payload.len() {
            let mut client = Client::with_channel(&mut machine, 0);
            let channel = u16::from(info.class != 10);
            let mut bytes = Vec::new();
            frame::write(&mut bytes, FrameType::Method, channel, |out| {
                out.extend_from_slice(&payload[..length]);
            });
            client.put_bytes(&bytes);
            client.send(&mut machine);
            let code = ends_with(&mut machine, &mut client);
            assert_eq!(
                code,
                Some(ReplyCode::SyntaxError.number()),
                "{} at {length}",
                info.name
            );
        }
    }
    assert!(other.is_alive(&mut machine));
    machine.core(0).invariants();
}

/// A channel that did what it may not is closed alone, and its number may be used again.
#[test]
fn a_fault_of_a_channel_leaves_the_others() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    let open = Method::ChannelOpen { reserved_1: b"" };
    client.ask(&mut machine, 2, &open);
    declared(&mut client, &mut machine, b"q", true);
    client.ask(&mut machine, 1, &consume(b"q", false));
    client.put_publish(1, b"", b"q", b"held");
    client.send(&mut machine);
    client.content(&mut machine);
    for _ in 0..3 {
        let wrong = Method::BasicAck {
            delivery_tag: 99,
            multiple: false,
        };
        client.put(1, &wrong);
        // What comes before it is told is ignored.
        client.put(1, &declare(b"never", true));
        client.send(&mut machine);
        let close = client.next(&mut machine);
        let Method::ChannelClose {
            reply_code,
            class_id,
            method_id,
            reply_text,
        } = close.method()
        else {
            panic!("{:?}", close.method())
        };
        assert_eq!(
            (close.channel, reply_code, class_id, method_id),
            (1, 406, 60, 80)
        );
        assert_eq!(reply_text, b"PRECONDITION_FAILED - unknown delivery tag 99");
        client.put(1, &Method::ChannelCloseOk {});
        let ok = client.ask(&mut machine, 1, &open);
        assert_eq!(ok.method(), Method::ChannelOpenOk { reserved_1: b"" });
        // What the channel held is back.
        let get = Method::BasicGet {
            reserved_1: 0,
            queue: b"q",
            no_ack: false,
        };
        client.put(1, &get);
        client.send(&mut machine);
        let (got, body) = client.content(&mut machine);
        assert!(matches!(
            got.method(),
            Method::BasicGetOk {
                redelivered: true,
                ..
            }
        ));
        assert_eq!(body, b"held");
    }
    assert!(client.is_alive(&mut machine));
    let passive = Method::QueueDeclare {
        reserved_1: 0,
        queue: b"never",
        passive: true,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: b"",
    };
    let close = client.ask(&mut machine, 2, &passive);
    assert!(matches!(
        close.method(),
        Method::ChannelClose {
            reply_code: 404,
            ..
        }
    ));
    machine.core(0).invariants();
}

/// Requests that follow each other without waiting are answered in order, with what came between.
#[test]
fn what_is_sent_without_waiting_takes_effect_in_order() {
    let mut machine = start(2);
    let mut client = Client::with_channel(&mut machine, 1);
    let bind = Method::QueueBind {
        reserved_1: 0,
        queue: b"q",
        exchange: b"amq.topic",
        routing_key: b"a.*",
        no_wait: true,
        arguments: b"",
    };
    client.put(1, &Method::ConfirmSelect { no_wait: true });
    let quiet = Method::QueueDeclare {
        reserved_1: 0,
        queue: b"q",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: true,
        arguments: b"",
    };
    client.put(1, &quiet);
    client.put(1, &bind);
    client.put_publish(1, b"amq.topic", b"a.b", b"bound");
    client.put(1, &declare(b"q", true));
    client.put(1, &consume(b"q", true));
    client.send(&mut machine);
    let mut names = Vec::new();
    let mut bodies = Vec::new();
    while bodies.is_empty() {
        let frame = client.next(&mut machine);
        match frame.kind {
            FrameType::Method => names.push(frame.method().name()),
            FrameType::Body => bodies.push(frame.payload),
            _ => {}
        }
    }
    names.retain(|name| *name != "basic.ack");
    assert_eq!(
        names,
        ["queue.declare-ok", "basic.consume-ok", "basic.deliver"]
    );
    assert_eq!(bodies, [b"bound"]);
}

/// A queue that blocks has no room, and the acks that would make some are behind the publishes: the
/// connection is ended, and what it held goes to others.
#[test]
fn who_waits_for_its_own_acks_is_ended() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    let mut other = Client::with_channel(&mut machine, 0);
    let mut waits = Client::with_channel(&mut machine, 0);
    let asked = Method::QueueDeclare {
        reserved_1: 0,
        queue: b"q",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: b"\x0cx-max-lengthI\0\0\0\x01\x0ax-overflowS\0\0\0\x05block",
    };
    for client in [&mut client, &mut waits] {
        let ok = client.ask(&mut machine, 1, &asked);
        assert!(matches!(ok.method(), Method::QueueDeclareOk { .. }));
    }
    client.ask(&mut machine, 1, &consume(b"q", false));
    // One that holds nothing only waits.
    for client in [&mut client, &mut waits] {
        for _ in 0..200 {
            client.put_publish(1, b"", b"q", &[7; 10_000]);
            client.send(&mut machine);
            machine.turn();
            if !machine.core(0).is_read(client.conn) {
                break;
            }
        }
        assert!(!machine.core(0).is_read(client.conn), "there is no room");
    }
    let all = Method::BasicAck {
        delivery_tag: 0,
        multiple: true,
    };
    client.put(1, &all);
    client.send(&mut machine);
    let turns = 10_500 * 1_000_000 / machine::TURN_NS;
    for _ in 0..turns {
        machine.turn();
    }
    assert_eq!(ends_with(&mut machine, &mut client), Some(320));
    assert!(!machine.is_closed(0, waits.conn));
    // Somebody else takes them.
    other.ask(&mut machine, 1, &consume(b"q", true));
    let (_, body) = other.content(&mut machine);
    assert_eq!(body, [7; 10_000]);
    machine.core(0).invariants();
}

/// Who does not read its deliveries is not sent more than a bound, and gets all when it reads.
#[test]
fn a_client_that_is_not_read_waits_and_loses_nothing() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    declared(&mut client, &mut machine, b"q", true);
    // A publish that waits for the disk's answer lets nothing of its connection in that must follow it.
    machine.stall(0, true);
    let body = vec![7; 100_000];
    for _ in 0..400 {
        if !machine.core(0).is_read(client.conn) {
            break;
        }
        client.put_publish(1, b"", b"q", &body);
        client.send(&mut machine);
        machine.turn();
    }
    assert!(
        !machine.core(0).is_read(client.conn),
        "credit is not endless"
    );
    machine.stall(0, false);
    for _ in 0..2_000 {
        machine.turn();
    }
    assert!(
        machine.core(0).is_read(client.conn),
        "there is credit again"
    );
    machine.core(0).invariants();
}

/// Bytes of a message that is sent over several turns.
const LARGE_BYTES: usize = 4 << 20;

fn large_body() -> Vec<u8> {
    (0..LARGE_BYTES).map(|at| (at % 251) as u8).collect()
}

fn get(queue: &[u8], no_ack: bool) -> Method<'_> {
    Method::BasicGet {
        reserved_1: 0,
        queue,
        no_ack,
    }
}

/// Publishes bodies to a queue in memory, where a settlement takes effect at once.
fn published(machine: &mut Machine, queue: &[u8], bodies: &[&[u8]]) {
    let mut client = Client::with_channel(machine, 0);
    declared(&mut client, machine, queue, false);
    for body in bodies {
        client.put_publish(1, b"", queue, body);
    }
    client.put(1, &CHANNEL_CLOSE);
    client.send(machine);
    let ok = client.next(machine);
    assert_eq!(ok.method(), Method::ChannelCloseOk {});
}

/// Messages that are ready in a queue.
fn ready(client: &mut Client, machine: &mut Machine, channel: u16, queue: &[u8]) -> u32 {
    let ok = client.ask(machine, channel, &declare(queue, false));
    let Method::QueueDeclareOk { message_count, .. } = ok.method() else {
        panic!("{:?}", ok.method())
    };
    message_count
}

/// Reads up to the first body frame of a large message, and gives that.
fn begun(client: &mut Client, machine: &mut Machine) -> Vec<u8> {
    loop {
        let frame = client.next(machine);
        if frame.kind == FrameType::Body && frame.payload.len() > 100 {
            return frame.payload;
        }
    }
}

/// Reads the rest of it.
fn ended(client: &mut Client, machine: &mut Machine, mut body: Vec<u8>) {
    while body.len() < LARGE_BYTES {
        let frame = client.next(machine);
        assert_eq!((frame.kind, frame.channel), (FrameType::Body, 1));
        body.extend_from_slice(&frame.payload);
    }
    assert!(body == large_body());
}

/// A large message that is got without acks is settled when it was sent to its end.
#[test]
fn a_large_message_may_be_got_without_acks() {
    for cores in [1, 2] {
        let mut machine = start(cores);
        for queue in [&b"qa"[..], b"qb", b"qc"] {
            published(&mut machine, queue, &[&large_body()]);
            let mut client = Client::with_channel(&mut machine, 0);
            client.put(1, &get(queue, true));
            client.send(&mut machine);
            let (_, body) = client.content(&mut machine);
            assert!(body == large_body());
            assert!(client.is_alive(&mut machine));
            machine.hang_up(0, client.conn);
            for _ in 0..20 {
                machine.turn();
            }
            let mut client = Client::with_channel(&mut machine, 0);
            assert_eq!(ready(&mut client, &mut machine, 1, queue), 0);
        }
        machine.core(0).invariants();
    }
}

/// What settles everything while a large message is being sent does not cut it.
#[test]
fn a_large_message_that_is_settled_early_is_sent_to_its_end() {
    let all = Method::BasicAck {
        delivery_tag: 0,
        multiple: true,
    };
    let back = Method::BasicNack {
        delivery_tag: 0,
        multiple: true,
        requeue: true,
    };
    let one = Method::BasicAck {
        delivery_tag: 3,
        multiple: false,
    };
    let recover = Method::BasicRecover { requeue: true };
    for (settles, comes_again, left) in [
        (&all, false, 0),
        (&one, false, 2),
        (&back, true, 3),
        (&recover, true, 3),
    ] {
        let mut machine = start(2);
        for queue in [&b"qa"[..], b"qb", b"qc"] {
            published(&mut machine, queue, &[b"one", b"two", &large_body()]);
            let mut client = Client::with_channel(&mut machine, 0);
            client.ask(&mut machine, 1, &consume(queue, false));
            let begin = begun(&mut client, &mut machine);
            client.put(1, settles);
            client.send(&mut machine);
            ended(&mut client, &mut machine, begin);
            if comes_again {
                let mut again = Vec::new();
                while again.len() < 3 {
                    let frame = client.next(&mut machine);
                    if frame.kind == FrameType::Method
                        && frame.method().name() == "basic.recover-ok"
                    {
                        continue;
                    }
                    let header = client.next(&mut machine);
                    let bytes = header.payload[4..12].try_into().expect("eight bytes");
                    let bytes = u64::from_be_bytes(bytes) as usize;
                    let mut body = Vec::new();
                    while body.len() < bytes {
                        body.extend_from_slice(&client.next(&mut machine).payload);
                    }
                    again.push(body.len());
                }
                again.sort_unstable();
                assert_eq!(again, [3, 3, LARGE_BYTES]);
            }
            assert!(client.is_alive(&mut machine));
            machine.hang_up(0, client.conn);
            for _ in 0..20 {
                machine.turn();
            }
            let mut client = Client::with_channel(&mut machine, 0);
            assert_eq!(ready(&mut client, &mut machine, 1, queue), left);
        }
        machine.core(0).invariants();
    }
}

/// A consumer that is cancelled while it is sent a large message gets it whole, and then is cancelled.
#[test]
fn a_cancel_waits_for_the_end_of_a_large_message() {
    for no_ack in [true, false] {
        let mut machine = start(2);
        for queue in [&b"qa"[..], b"qb", b"qc"] {
            published(&mut machine, queue, &[&large_body()]);
            let mut client = Client::with_channel(&mut machine, 0);
            client.ask(&mut machine, 1, &consume(queue, no_ack));
            let begin = begun(&mut client, &mut machine);
            let cancel = Method::BasicCancel {
                consumer_tag: b"tag",
                no_wait: false,
            };
            client.put(1, &cancel);
            client.send(&mut machine);
            ended(&mut client, &mut machine, begin);
            let ok = client.next(&mut machine);
            let expected = Method::BasicCancelOk {
                consumer_tag: b"tag",
            };
            assert_eq!(ok.method(), expected);
            assert_eq!(ready(&mut client, &mut machine, 1, queue), 0);
            let ok = client.ask(&mut machine, 1, &CHANNEL_CLOSE);
            assert_eq!(ok.method(), Method::ChannelCloseOk {});
            assert!(client.is_alive(&mut machine));
        }
        machine.core(0).invariants();
    }
}

fn exchange(name: &[u8], internal: bool) -> Method<'_> {
    Method::ExchangeDeclare {
        reserved_1: 0,
        exchange: name,
        kind: b"fanout",
        passive: false,
        durable: true,
        auto_delete: false,
        internal,
        no_wait: false,
        arguments: b"",
    }
}

/// The answer to a request of a channel that has ended since answers no other request.
#[test]
fn answers_go_to_the_request_that_they_answer() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    let open = Method::ChannelOpen { reserved_1: b"" };
    client.ask(&mut machine, 2, &open);
    declared(&mut client, &mut machine, b"q", true);
    client.ask(&mut machine, 1, &exchange(b"inside", true));
    client.put_publish(1, b"inside", b"", b"refused");
    client.put(1, &exchange(b"new", false));
    client.put(2, &consume(b"q", false));
    client.put(2, &exchange(b"newer", false));
    client.send(&mut machine);
    let mut heard = Vec::new();
    for _ in 0..3 {
        let frame = client.next(&mut machine);
        heard.push((frame.channel, frame.method().name()));
    }
    heard.sort_by_key(|(channel, _)| *channel);
    let expected = [
        (1, "channel.close"),
        (2, "basic.consume-ok"),
        (2, "exchange.declare-ok"),
    ];
    assert_eq!(heard, expected);
    client.put(1, &Method::ChannelCloseOk {});
    assert!(client.is_alive(&mut machine));
    machine.core(0).invariants();
}

/// What comes back does not cut a large message that is being sent on the same channel.
#[test]
fn a_return_waits_for_the_end_of_a_large_message() {
    let mut machine = start(1);
    published(&mut machine, b"q", &[&large_body()]);
    let mut client = Client::with_channel(&mut machine, 0);
    client.ask(&mut machine, 1, &consume(b"q", false));
    let begin = begun(&mut client, &mut machine);
    client.put_publish_in(1, (b"amq.direct", b"nowhere", true), b"back", 4);
    client.send(&mut machine);
    ended(&mut client, &mut machine, begin);
    let (method, body) = client.content(&mut machine);
    assert_eq!(method.method().name(), "basic.return");
    assert_eq!(body, b"back");
    assert!(client.is_alive(&mut machine));
}

/// Of messages of which some are refused each one is settled, and once.
#[test]
fn each_message_is_settled_when_some_are_refused() {
    let mut machine = start(2);
    for number in 0..8u8 {
        let queue = [b'q', b'a' + number];
        let mut client = Client::with_channel(&mut machine, 0);
        confirm(&mut client, &mut machine);
        let arguments = b"\x0cx-max-lengthI\0\0\0\x01\x0ax-overflowS\0\0\0\x0ereject-publish";
        let bounded = Method::QueueDeclare {
            reserved_1: 0,
            queue: &queue,
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments,
        };
        client.ask(&mut machine, 1, &bounded);
        declared(&mut client, &mut machine, b"free", true);
        client.put_publish(1, b"", &queue, b"fills");
        client.send(&mut machine);
        let ack = client.next(&mut machine);
        assert_eq!(ack.method().name(), "basic.ack");
        for to in [&b"free"[..], &queue, &queue] {
            client.put_publish(1, b"", to, b"x");
        }
        client.send(&mut machine);
        let mut outcomes = [Some("ack"), None, None, None];
        while let Some(frame) = client.next_within(&mut machine, 100) {
            let (tag, multiple, outcome) = match frame.method() {
                Method::BasicAck {
                    delivery_tag,
                    multiple,
                } => (delivery_tag, multiple, "ack"),
                Method::BasicNack {
                    delivery_tag,
                    multiple,
                    ..
                } => (delivery_tag, multiple, "nack"),
                other => panic!("{other:?}"),
            };
            let last = tag as usize - 1;
            let first = if multiple { 0 } else { last };
            assert_eq!(outcomes[last], None, "message {tag} is settled twice");
            for one in &mut outcomes[first..=last] {
                one.get_or_insert(outcome);
            }
        }
        assert_eq!(
            outcomes,
            [Some("ack"), Some("ack"), Some("nack"), Some("nack")]
        );
    }
}

/// A channel that its client closes is not closed once more for what fails meanwhile.
#[test]
fn a_channel_that_is_being_closed_is_not_failed() {
    let mut machine = start(1);
    let mut client = Client::with_channel(&mut machine, 0);
    client.ask(&mut machine, 1, &exchange(b"inside", true));
    client.put_publish(1, b"inside", b"", b"refused");
    client.put(1, &CHANNEL_CLOSE);
    client.send(&mut machine);
    let ok = client.next(&mut machine);
    assert_eq!(ok.method(), Method::ChannelCloseOk {});
    // Who has heard nothing of the channel any more may have answered a close of it before.
    client.put(1, &Method::ChannelCloseOk {});
    assert!(client.is_alive(&mut machine));
    machine.core(0).invariants();
}

/// Who agrees on no heartbeats and then does not open its connection is waited for no longer than others.
#[test]
fn a_handshake_without_heartbeats_ends_in_time() {
    let mut machine = start(1);
    let mut client = Client::connect(&mut machine, 0);
    client.put_bytes(&PROTOCOL_HEADER);
    client.send(&mut machine);
    client.next(&mut machine);
    client.put(0, &start_ok(b"\0guest\0guest"));
    let quiet = Method::ConnectionTuneOk {
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: 0,
    };
    client.put(0, &quiet);
    client.send(&mut machine);
    let is_closed = (0..200_000).any(|_| {
        machine.turn();
        machine.is_closed(0, client.conn)
    });
    assert!(is_closed);
}
