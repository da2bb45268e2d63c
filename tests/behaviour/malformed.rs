//! What a client may not do: each ends its connection with the right code, and nothing else.

use ringpost_wire::control::{
    Attach, Bind, Body, ConsumerOpen, Delete, Level, ProducerOpen, QueueDeclare,
};
use ringpost_wire::header::{PUBLISH_MANDATORY, SETTLE_CONFIRM};
use ringpost_wire::{
    CHANNELS_MAX, Code, FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FrameHeader, FrameKind, checksum,
    frame,
};

use crate::wire::{Wire, consumer, filler, hello, message, queue, to_queue};
use crate::{Setup, on_cores};

on_cores! {
    headers_that_are_not_right
    bodies_that_do_not_fit
    frames_of_the_other_side
    channels_never_opened
    channel_numbers
    a_channel_is_of_one_kind
    publishes_that_do_not_fit
    messages_that_do_not_hold_together
    sequences
    sequences_at_the_end_of_the_numbers
    pieces_of_the_first_publish_have_one_sequence
    credit
    settlements_that_do_not_fit
    a_connection_that_is_cut_within_a_frame
    requests_without_a_number
    frames_of_the_connection_have_no_channel
    frames_without_a_body
    publishes_with_what_they_may_not_have
    unknown_flags_are_refused
    mutations
}

/// A connection does what it may not, with this code as the answer; another one does not notice.
#[track_caller]
fn ends(setup: &Setup, code: Code, act: impl FnOnce(&mut Wire)) {
    let mut bystander = setup.wire();
    bystander.declare(&queue(b"bystander"));
    bystander.consume(2, &consumer(b"bystander", 10));
    let mut producer = bystander.producer(1, Level::Durable);
    let mut wire = setup.wire();
    act(&mut wire);
    assert_eq!(wire.closed(), code);
    producer.confirm(&mut bystander, &[to_queue(b"bystander", b"well")]);
    let delivered = bystander.deliveries(2, 1);
    bystander.settle_surely(2, 0, &[(delivered[0].tag, delivered[0].tag)]);
    bystander.bye();
}

/// Bytes of a whole frame.
fn bytes_of(header: FrameHeader, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, header, body);
    out
}

/// The header's checksum is made right.
fn seal(bytes: &mut [u8]) {
    let crc = checksum::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
}

/// P-2, P-3, P-4, P-6
fn headers_that_are_not_right(setup: &Setup) {
    let good = bytes_of(FrameHeader::bare(FrameKind::QueueList, 0, 1), b"");
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = changed(change);
        seal(&mut bytes);
        bytes
    };
    let malformed = [
        changed(&|bytes| bytes[8] ^= 1),
        changed(&|bytes| bytes[31] ^= 0x80),
        sealed(&|bytes| bytes[4] = 0),
        sealed(&|bytes| bytes[4] = 9),
        sealed(&|bytes| bytes[4] = 255),
        sealed(&|bytes| bytes[0] = 48),
        sealed(&|bytes| bytes[0] = 33),
        sealed(&|bytes| bytes[0] = 0),
        sealed(&|bytes| bytes[20] = 1),
        // Padding is zeros.
        {
            let mut bytes = bytes_of(
                FrameHeader::bare(FrameKind::QueueInspect, 0, 1),
                &[1, 0, 0, 0, b'q'],
            );
            *bytes.last_mut().unwrap() = 1;
            bytes
        },
    ];
    for bytes in malformed {
        ends(setup, Code::FrameMalformed, |wire| wire.send_bytes(&bytes));
    }
    let length = FRAME_BYTES_MAX as u32 + 16;
    let large = sealed(&|bytes| {
        bytes[0..4].copy_from_slice(&length.to_le_bytes());
        bytes[20..24].copy_from_slice(&(length - 32).to_le_bytes());
    });
    ends(setup, Code::FrameTooLarge, |wire| wire.send_bytes(&large));
    // What came before the bad header is served; the answer of another core may come too late.
    if setup.cores() > 1 {
        return;
    }
    let mut wire = setup.wire();
    wire.send_bytes(&good);
    let id = wire.next_id();
    wire.send_bytes_anyway(&large);
    wire.wait(|frame| frame.kind() == FrameKind::Done && frame.header.sequence == id);
    assert_eq!(wire.closed(), Code::FrameTooLarge);
}

/// P-5, P-6
fn bodies_that_do_not_fit(setup: &Setup) {
    let mut body = Vec::new();
    queue(b"q").encode(&mut body);
    let header = FrameHeader::bare(FrameKind::QueueDeclare, 0, 1);
    ends(setup, Code::BodyMalformed, |wire| {
        let mut bytes = bytes_of(header, &body);
        bytes[24] ^= 1;
        seal(&mut bytes);
        wire.send_bytes(&bytes);
    });
    for cut in [0, 1, body.len() - 1] {
        ends(setup, Code::BodyMalformed, |wire| {
            wire.send_frame(header, &body[..cut])
        });
    }
    ends(setup, Code::BodyMalformed, |wire| {
        let mut long = body.clone();
        long.push(0);
        wire.send_frame(header, &long);
    });
    ends(setup, Code::BodyMalformed, |wire| {
        wire.declare(&queue(b"q"));
        let name = [b'n'; 256];
        wire.request(
            FrameKind::QueueInspect,
            &ringpost_wire::control::Named { name: &name },
        );
    });
    // A reserved field that is not 0.
    ends(setup, Code::BodyMalformed, |wire| {
        let open = ProducerOpen {
            producer: 7,
            epoch: 1,
            level: 2,
            flags: 0,
            reserved: 1,
        };
        wire.request_on(FrameKind::ProducerOpen, 1, &open);
    });
    for kind in [
        FrameKind::QueueDelete,
        FrameKind::QueuePurge,
        FrameKind::QueueInspect,
        FrameKind::ExchangeDeclare,
        FrameKind::ExchangeDelete,
        FrameKind::Bind,
        FrameKind::Unbind,
        FrameKind::TenantDeclare,
        FrameKind::TenantDelete,
        FrameKind::GroupList,
        FrameKind::GroupReset,
        FrameKind::GroupDelete,
        FrameKind::QueueBrowse,
        FrameKind::QueueCancel,
        FrameKind::QueueMove,
        FrameKind::Attach,
    ] {
        ends(setup, Code::BodyMalformed, |wire| {
            wire.send_frame(FrameHeader::bare(kind, 0, 1), &[1]);
        });
    }
    for kind in [
        FrameKind::ProducerOpen,
        FrameKind::ConsumerOpen,
        FrameKind::TransactionOpen,
    ] {
        ends(setup, Code::BodyMalformed, |wire| {
            wire.send_frame(FrameHeader::bare(kind, 1, 1), &[1]);
        });
    }
}

/// P-16
fn frames_of_the_other_side(setup: &Setup) {
    for kind in [
        FrameKind::Welcome,
        FrameKind::Attached,
        FrameKind::Failed,
        FrameKind::Done,
        FrameKind::ProducerOpened,
        FrameKind::Confirm,
        FrameKind::Refused,
        FrameKind::ProducerCredit,
        FrameKind::ProducerClosed,
        FrameKind::ConsumerOpened,
        FrameKind::Deliver,
        FrameKind::DeliverFragment,
        FrameKind::Settled,
        FrameKind::ConsumerClosed,
        FrameKind::GetDone,
        FrameKind::QueueInfo,
        FrameKind::ExchangeInfo,
        FrameKind::BindingInfo,
        FrameKind::TenantInfo,
        FrameKind::ConsumerPosition,
        FrameKind::GroupInfo,
        FrameKind::QueueDescription,
        FrameKind::PolicyInfo,
        FrameKind::TransactionOpened,
        FrameKind::TransactionDone,
        FrameKind::TransactionClosed,
    ] {
        let mut wire = setup.wire();
        wire.send_frame(FrameHeader::bare(kind, 0, 1), b"");
        assert_eq!(wire.closed(), Code::UnexpectedFrame, "{kind:?}");
    }
    ends(setup, Code::UnexpectedFrame, |wire| {
        wire.send(FrameHeader::bare(FrameKind::Hello, 0, 0), &hello(b""));
    });
}

/// P-16
fn channels_never_opened(setup: &Setup) {
    for kind in [
        FrameKind::ProducerClose,
        FrameKind::ConsumerClose,
        FrameKind::Get,
        FrameKind::ConsumerCredit,
        FrameKind::Settle,
        FrameKind::Publish,
        FrameKind::TransactionCommit,
        FrameKind::TransactionRollback,
        FrameKind::TransactionClose,
    ] {
        for channel in [0, 7, CHANNELS_MAX + 1, u16::MAX] {
            let mut wire = setup.wire();
            let body: &[u8] = match kind {
                FrameKind::Get => &[0; 8],
                FrameKind::ConsumerCredit | FrameKind::Settle => &[0; 16],
                FrameKind::Publish => &message(&to_queue(b"q", b"")),
                _ => b"",
            };
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(kind, channel, 1)
            };
            wire.send_frame(header, body);
            assert_eq!(
                wire.closed(),
                Code::UnexpectedFrame,
                "{kind:?} on {channel}"
            );
        }
    }
}

/// P-14
fn channel_numbers(setup: &Setup) {
    let open = ProducerOpen {
        producer: 7,
        epoch: 1,
        level: 2,
        flags: 0,
        reserved: 0,
    };
    for channel in [0, CHANNELS_MAX + 1, u16::MAX] {
        ends(setup, Code::ChannelInvalid, |wire| {
            wire.request_on(FrameKind::ProducerOpen, channel, &open);
        });
        ends(setup, Code::ChannelInvalid, |wire| {
            wire.declare(&queue(b"q"));
            wire.request_on(FrameKind::ConsumerOpen, channel, &consumer(b"q", 1));
        });
        // Also if the queue is not there: the number comes first.
        ends(setup, Code::ChannelInvalid, |wire| {
            wire.request_on(FrameKind::ConsumerOpen, channel, &consumer(b"none", 1));
        });
    }
    ends(setup, Code::ChannelInvalid, |wire| {
        wire.producer(3, Level::Durable);
        wire.request_on(FrameKind::ProducerOpen, 3, &open);
    });
    ends(setup, Code::ChannelInvalid, |wire| {
        wire.producer(3, Level::Durable);
        wire.request_on(FrameKind::ConsumerOpen, 3, &consumer(b"q", 1));
    });
    ends(setup, Code::ChannelInvalid, |wire| {
        wire.declare(&queue(b"q"));
        wire.request_on(FrameKind::ConsumerOpen, 3, &consumer(b"q", 1));
        wire.request_on(FrameKind::ConsumerOpen, 3, &consumer(b"q", 1));
    });
    let mut wire = setup.wire();
    wire.producer(CHANNELS_MAX, Level::Durable);
    // A number is free again when the open failed or the close was answered.
    let id = wire.request_on(FrameKind::ConsumerOpen, 9, &consumer(b"none", 1));
    assert_eq!(wire.failed(id), Code::QueueUnknown);
    wire.consume(9, &consumer(b"q", 1));
    wire.close_consumer(9);
    wire.producer(9, Level::Durable).close(&mut wire);
    wire.consume(9, &consumer(b"q", 1));
    wire.bye();
}

/// P-16
fn a_channel_is_of_one_kind(setup: &Setup) {
    ends(setup, Code::UnexpectedFrame, |wire| {
        wire.declare(&queue(b"q"));
        wire.consume(1, &consumer(b"q", 1));
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Publish, 1, 1)
        };
        wire.send_frame(header, &message(&to_queue(b"q", b"")));
    });
    ends(setup, Code::UnexpectedFrame, |wire| {
        wire.producer(1, Level::Durable);
        wire.settle(1, 0, &[(1, 1)]);
    });
    ends(setup, Code::UnexpectedFrame, |wire| {
        wire.producer(1, Level::Durable);
        wire.request_bare(FrameKind::ConsumerClose, 1);
    });
    // Attach only without channels (P-13).
    ends(setup, Code::UnexpectedFrame, |wire| {
        wire.declare(&queue(b"q"));
        wire.producer(1, Level::Durable);
        wire.request(FrameKind::Attach, &Attach { queue: b"q" });
    });
}

/// P-19, P-31
fn publishes_that_do_not_fit(setup: &Setup) {
    let mut one = Vec::new();
    to_queue(b"q", b"one").write(&mut one).unwrap();
    let publish = |count, body: &[u8]| {
        ends(setup, Code::BodyMalformed, |wire| {
            let mut producer = wire.producer(1, Level::Durable);
            producer.reserve(wire, 2, body.len() as u64);
            let header = FrameHeader {
                count,
                ..FrameHeader::bare(FrameKind::Publish, 1, 1)
            };
            wire.send_frame(header, body);
        });
    };
    publish(2, &one);
    publish(0, &one);
    publish(0, b"");
    publish(1, &[one.clone(), one.clone()].concat());
    // A message that must travel in pieces does not travel whole.
    publish(1, &{
        let mut body = Vec::new();
        let payload = filler(1, FRAGMENT_BYTES_MAX - 64);
        to_queue(b"q", &payload).write(&mut body).unwrap();
        body
    });
    let large = message(&to_queue(b"q", &filler(2, FRAGMENT_BYTES_MAX + 5)));
    type Pieces<'a> = &'a dyn Fn(&mut Wire, &mut crate::wire::Producer);
    let pieces = |act: Pieces<'_>| {
        ends(setup, Code::BodyMalformed, |wire| {
            let mut producer = wire.producer(1, Level::Durable);
            producer.reserve(wire, 1, FRAGMENT_BYTES_MAX as u64);
            act(wire, &mut producer);
        });
    };
    let (first, second) = large.split_at(FRAGMENT_BYTES_MAX);
    // A piece that is not the first, one twice, one cut short, another message between.
    pieces(&|wire, producer| {
        producer.send_piece(wire, 0, large.len(), FRAGMENT_BYTES_MAX, second);
    });
    pieces(&|wire, producer| {
        producer.send_piece(wire, 0, large.len(), 0, first);
        producer.send_piece(wire, 0, large.len(), 0, first);
    });
    pieces(&|wire, producer| {
        producer.send_piece(wire, 0, large.len(), 0, &first[..1000]);
    });
    pieces(&|wire, producer| {
        producer.send_piece(wire, 0, large.len(), 0, first);
        producer.reserve(wire, 0, 16);
        producer.send_piece(
            wire,
            0,
            large.len() + 1,
            FRAGMENT_BYTES_MAX,
            &[second, b"x"].concat(),
        );
    });
    pieces(&|wire, producer| producer.send_piece(wire, 0, 1000, 0, &first[..1000]));
    for sequence in [1, 2] {
        pieces(&|wire, producer| {
            producer.send_piece(wire, 0, large.len(), 0, first);
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(FrameKind::Publish, 1, sequence)
            };
            wire.send_frame(header, &one);
        });
    }
}

/// P-20, P-21, P-24
fn messages_that_do_not_hold_together(setup: &Setup) {
    let good = {
        let mut body = Vec::new();
        to_queue(b"q", b"some payload").write(&mut body).unwrap();
        body
    };
    let reseal = |body: &mut Vec<u8>| {
        let length = u32::from_le_bytes(body[4..8].try_into().unwrap()) as usize;
        let crc = checksum::crc32c(&body[4..length.min(body.len())]);
        body[..4].copy_from_slice(&crc.to_le_bytes());
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));
    let changes: [Change<'_>; 10] = [
        ("checksum", &|body| body[0] ^= 1),
        ("payload", &|body| body[66] ^= 1),
        ("critical flag", &|body| {
            body[10] = 1;
            reseal(body);
        }),
        ("hops", &|body| {
            body[13] = 1;
            reseal(body);
        }),
        ("reserved", &|body| {
            body[14] = 1;
            reseal(body);
        }),
        ("offset", &|body| {
            body[32] += 1;
            reseal(body);
        }),
        ("header bytes", &|body| {
            body[8] = 65;
            reseal(body);
        }),
        ("payload bytes", &|body| {
            body[60] += 1;
            reseal(body);
        }),
        ("length", &|body| body[4] = 10),
        ("padding", &|body| *body.last_mut().unwrap() = 1),
    ];
    for (what, change) in changes {
        let mut body = good.clone();
        change(&mut body);
        let mut wire = setup.wire();
        wire.declare(&queue(b"q"));
        wire.producer(1, Level::Durable);
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Publish, 1, 1)
        };
        wire.send_frame(header, &body);
        assert_eq!(wire.closed(), Code::MessageMalformed, "{what}");
    }
    // A large message is checked when it is whole; its envelope at once.
    let mut large = message(&to_queue(b"q", &filler(3, FRAGMENT_BYTES_MAX + 5)));
    *large.last_mut().unwrap() ^= 1;
    ends(setup, Code::MessageMalformed, |wire| {
        let mut producer = wire.producer(1, Level::Durable);
        producer.publish_large(wire, 0, &large);
    });
    large[10] = 1;
    ends(setup, Code::MessageMalformed, |wire| {
        let producer = wire.producer(1, Level::Durable);
        producer.send_piece(wire, 0, large.len(), 0, &large[..FRAGMENT_BYTES_MAX]);
    });
    (large[10], large[13]) = (0, 1);
    ends(setup, Code::MessageMalformed, |wire| {
        let producer = wire.producer(1, Level::Durable);
        producer.send_piece(wire, 0, large.len(), 0, &large[..FRAGMENT_BYTES_MAX]);
    });
    let mut wire = setup.wire();
    assert_eq!(wire.inspect(b"q").published, 0);
    wire.bye();
}

/// P-32
fn sequences(setup: &Setup) {
    let publish = |wire: &mut Wire, sequence, count: u32| {
        let mut body = Vec::new();
        for _ in 0..count {
            to_queue(b"q", b"m").write(&mut body).unwrap();
        }
        let header = FrameHeader {
            count,
            ..FrameHeader::bare(FrameKind::Publish, 1, sequence)
        };
        wire.send_frame(header, &body);
    };
    for second in [5, 7, 1, 0, u64::MAX] {
        ends(setup, Code::SequenceGap, |wire| {
            wire.producer(1, Level::Durable);
            publish(wire, 4, 2);
            publish(wire, second, 1);
        });
    }
    ends(setup, Code::SequenceGap, |wire| {
        wire.producer(1, Level::Durable);
        publish(wire, 0, 1);
    });
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    let mut producer = wire.producer(1, Level::Durable);
    producer.next = 1_000_000;
    producer.confirmed = 999_999;
    producer.confirm(&mut wire, &[to_queue(b"q", b"m"), to_queue(b"q", b"n")]);
    producer.confirm(&mut wire, &[to_queue(b"q", b"o")]);
    assert_eq!(producer.confirmed, 1_000_002);
    assert!(wire.inspect(b"q").ready >= 3);
    wire.bye();
}

/// P-32: there is no sequence behind the last number.
fn sequences_at_the_end_of_the_numbers(setup: &Setup) {
    let mut body = Vec::new();
    to_queue(b"q", b"m").write(&mut body).unwrap();
    let publish = |wire: &mut Wire, sequence| {
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Publish, 1, sequence)
        };
        wire.send_frame(header, &body);
    };
    ends(setup, Code::SequenceGap, |wire| {
        wire.producer(1, Level::Durable);
        publish(wire, u64::MAX);
    });
    ends(setup, Code::SequenceGap, |wire| {
        wire.producer(1, Level::Durable);
        publish(wire, u64::MAX - 1);
        publish(wire, u64::MAX);
    });
    let large = message(&to_queue(b"q", &filler(2, FRAGMENT_BYTES_MAX + 5)));
    ends(setup, Code::SequenceGap, |wire| {
        let mut producer = wire.producer(1, Level::Durable);
        producer.next = u64::MAX;
        producer.send_piece(wire, 0, large.len(), 0, &large[..FRAGMENT_BYTES_MAX]);
        let rest = &large[FRAGMENT_BYTES_MAX..];
        producer.send_piece(wire, 0, large.len(), FRAGMENT_BYTES_MAX, rest);
    });
}

/// P-31: also where the first publish chooses its sequence.
fn pieces_of_the_first_publish_have_one_sequence(setup: &Setup) {
    let large = message(&to_queue(b"q", &filler(2, FRAGMENT_BYTES_MAX + 5)));
    let (first, second) = large.split_at(FRAGMENT_BYTES_MAX);
    ends(setup, Code::SequenceGap, |wire| {
        let mut producer = wire.producer(1, Level::Durable);
        producer.next = 7;
        producer.send_piece(wire, 0, large.len(), 0, first);
        producer.next = 8;
        producer.send_piece(wire, 0, large.len(), FRAGMENT_BYTES_MAX, second);
    });
}

/// P-34
fn credit(setup: &Setup) {
    ends(setup, Code::CreditExceeded, |wire| {
        let mut producer = wire.producer(1, Level::Durable);
        let header = FrameHeader {
            count: u32::try_from(producer.messages + 1).unwrap(),
            ..FrameHeader::bare(FrameKind::Publish, 1, producer.next)
        };
        wire.send_frame(header, &message(&to_queue(b"q", b"m")));
        producer.next += 1;
    });
    // Bytes: frames go out until more was sent than was ever granted.
    ends(setup, Code::CreditExceeded, |wire| {
        let producer = wire.producer(1, Level::Durable);
        let payload = filler(1, 100_000);
        let mut frames = Vec::new();
        let mut sent = 0;
        let mut sequence = producer.next;
        while sent < 4 * producer.bytes {
            let mut body = Vec::new();
            to_queue(b"no such queue", &payload)
                .write(&mut body)
                .unwrap();
            to_queue(b"no such queue", &payload)
                .write(&mut body)
                .unwrap();
            let header = FrameHeader {
                count: 2,
                ..FrameHeader::bare(FrameKind::Publish, 1, sequence)
            };
            frame::write(&mut frames, header, &body);
            sent += body.len() as u64;
            sequence += 2;
        }
        // All that the broker grants meanwhile is less than what is sent at once only if it grants in
        // steps of what has come to rest; a frame that alone passes the credit always does.
        let header = FrameHeader {
            count: u32::MAX,
            ..FrameHeader::bare(FrameKind::Publish, 1, sequence)
        };
        frame::write(&mut frames, header, &message(&to_queue(b"q", b"m")));
        wire.send_bytes_anyway(&frames);
    });
}

/// P-44
fn settlements_that_do_not_fit(setup: &Setup) {
    let settles = |flags: u8, count: u32, body: &[u8]| {
        ends(setup, Code::BodyMalformed, |wire| {
            wire.declare(&queue(b"q"));
            wire.consume(1, &consumer(b"q", 1));
            let header = FrameHeader {
                flags,
                count,
                ..FrameHeader::bare(FrameKind::Settle, 1, 0)
            };
            wire.send_frame(header, body);
        });
    };
    let range = |first: u64, last: u64| [first.to_le_bytes(), last.to_le_bytes()].concat();
    settles(3, 1, &range(1, 1));
    settles(0, 1, &range(2, 1));
    settles(0, 0, b"");
    settles(0, 2, &range(1, 1));
    settles(0, 1, &range(1, 1)[..15]);
    settles(0, 1, &[range(1, 1), range(2, 2)].concat());
    let many: Vec<u8> = (0..4097).flat_map(|_| range(1, 1)).collect();
    settles(0, 4097, &many);
    ends(setup, Code::BodyMalformed, |wire| {
        wire.declare(&queue(b"q"));
        wire.consume(1, &consumer(b"q", 1));
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Settle, 1, 0)
        };
        let mut bytes = bytes_of(header, &range(1, 1));
        *bytes.last_mut().unwrap() ^= 1;
        wire.send_bytes(&bytes);
    });
}

/// P-17: whatever was whole before the cut is served.
fn a_connection_that_is_cut_within_a_frame(setup: &Setup) {
    let mut watcher = setup.wire();
    watcher.declare(&queue(b"q"));
    for (published, cut) in (1..).zip([1, 31, 32, 33, 100]) {
        let mut wire = setup.wire();
        let mut producer = wire.producer(1, Level::Durable);
        producer.publish(&mut wire, 0, &[to_queue(b"q", b"whole")]);
        let mut body = Vec::new();
        to_queue(b"q", b"cut").write(&mut body).unwrap();
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Publish, 1, producer.next)
        };
        wire.send_bytes(&bytes_of(header, &body)[..cut]);
        wire.drop_dead();
        watcher.until(b"q", |info| info.published == published);
    }
    watcher.bye();
}

/// P-9
fn requests_without_a_number(setup: &Setup) {
    let ends = |act: &dyn Fn(&mut Wire)| ends(setup, Code::UnexpectedFrame, act);
    ends(&|wire| wire.send_frame(FrameHeader::bare(FrameKind::QueueList, 0, 0), b""));
    ends(&|wire| {
        wire.send(
            FrameHeader::bare(FrameKind::QueueDeclare, 0, 0),
            &queue(b"q"),
        )
    });
    ends(&|wire| {
        let header = FrameHeader::bare(FrameKind::ConsumerOpen, 1, 0);
        wire.send(header, &consumer(b"q", 1));
    });
    ends(&|wire| {
        wire.declare(&queue(b"q"));
        wire.consume(1, &consumer(b"q", 1));
        let header = FrameHeader {
            count: 1,
            flags: SETTLE_CONFIRM,
            ..FrameHeader::bare(FrameKind::Settle, 1, 0)
        };
        wire.send_frame(header, &[0; 16]);
    });
    ends(&|wire| {
        wire.declare(&queue(b"q"));
        wire.consume(1, &consumer(b"q", 1));
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Get, 1, 0)
        };
        wire.send_frame(header, &[0; 8]);
    });
}

/// P-14, P-16
fn frames_of_the_connection_have_no_channel(setup: &Setup) {
    for kind in [
        FrameKind::Attach,
        FrameKind::Heartbeat,
        FrameKind::Close,
        FrameKind::QueueDeclare,
        FrameKind::QueueDelete,
        FrameKind::QueuePurge,
        FrameKind::QueueInspect,
        FrameKind::QueueList,
        FrameKind::ExchangeDeclare,
        FrameKind::ExchangeDelete,
        FrameKind::ExchangeList,
        FrameKind::Bind,
        FrameKind::Unbind,
        FrameKind::BindingList,
        FrameKind::TenantDeclare,
        FrameKind::TenantDelete,
        FrameKind::TenantList,
        FrameKind::QueueDescribe,
        FrameKind::PolicySet,
        FrameKind::PolicyDelete,
        FrameKind::PolicyList,
    ] {
        let mut wire = setup.wire();
        wire.send_frame(FrameHeader::bare(kind, 1, 1), b"");
        assert_eq!(wire.closed(), Code::UnexpectedFrame, "{kind:?}");
    }
}

/// P-6
fn frames_without_a_body(setup: &Setup) {
    for kind in [
        FrameKind::Heartbeat,
        FrameKind::QueueList,
        FrameKind::ExchangeList,
        FrameKind::BindingList,
        FrameKind::TenantList,
        FrameKind::PolicyList,
    ] {
        let mut wire = setup.wire();
        wire.send_frame(FrameHeader::bare(kind, 0, 1), b"\0");
        assert_eq!(wire.closed(), Code::BodyMalformed, "{kind:?}");
    }
    ends(setup, Code::BodyMalformed, |wire| {
        wire.producer(1, Level::Durable);
        wire.send_frame(FrameHeader::bare(FrameKind::ProducerClose, 1, 9), b"\0");
    });
    ends(setup, Code::BodyMalformed, |wire| {
        wire.declare(&queue(b"q"));
        wire.consume(1, &consumer(b"q", 1));
        wire.send_frame(FrameHeader::bare(FrameKind::ConsumerClose, 1, 9), b"\0");
    });
}

/// P-5, P-92
fn publishes_with_what_they_may_not_have(setup: &Setup) {
    let one = {
        let mut body = Vec::new();
        to_queue(b"q", b"one").write(&mut body).unwrap();
        body
    };
    let header = FrameHeader {
        count: 1,
        ..FrameHeader::bare(FrameKind::Publish, 1, 1)
    };
    ends(setup, Code::BodyMalformed, |wire| {
        wire.producer(1, Level::Durable);
        let mut bytes = bytes_of(header, &one);
        bytes[24..28].copy_from_slice(&checksum::crc32c(&one).to_le_bytes());
        seal(&mut bytes);
        wire.send_bytes(&bytes);
    });
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    let mut producer = wire.producer(1, Level::Durable);
    let flags = 2 | PUBLISH_MANDATORY;
    let code = producer.refused(&mut wire, flags, to_queue(b"q", b"small"));
    assert_eq!(code, Code::SettingInvalid);
    let large = filler(2, FRAGMENT_BYTES_MAX + 5);
    let code = producer.refused(&mut wire, 2, to_queue(b"q", &large));
    assert_eq!(code, Code::SettingInvalid);
    // Behind one that waits for its place in the journal the refusal keeps its turn.
    producer.publish(&mut wire, 0, &[to_queue(b"q", &large)]);
    let code = producer.refused(&mut wire, 0x80, to_queue(b"q", b"small"));
    assert_eq!(code, Code::SettingInvalid);
    producer.confirm(&mut wire, &[to_queue(b"q", b"well")]);
    assert_eq!(wire.inspect(b"q").ready, 2);
    wire.bye();
}

/// P-92
fn unknown_flags_are_refused(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue(b"q"));
    let open = ConsumerOpen {
        flags: 4,
        ..consumer(b"q", 1)
    };
    let id = wire.request_on(FrameKind::ConsumerOpen, 1, &open);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    let open = ProducerOpen {
        producer: 9,
        epoch: 1,
        level: 2,
        flags: 2,
        reserved: 0,
    };
    let id = wire.request_on(FrameKind::ProducerOpen, 1, &open);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    let declare = QueueDeclare {
        flags: 2,
        ..queue(b"r")
    };
    let id = wire.request(FrameKind::QueueDeclare, &declare);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    let delete = Delete {
        flags: 4,
        name: b"q",
    };
    let id = wire.request(FrameKind::QueueDelete, &delete);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    assert_eq!(wire.inspect(b"q").consumers, 0);
    // Nor has a frame a flag that the page does not name.
    wire.consume(3, &consumer(b"q", 0));
    let producer = wire.producer(4, Level::Durable);
    let mut asks = |kind, channel, body: &[u8]| {
        let id = wire.next_id();
        let header = FrameHeader {
            flags: 0x80,
            count: u32::from(kind == FrameKind::Get),
            ..FrameHeader::bare(kind, channel, id)
        };
        wire.send_frame(header, body);
        assert_eq!(wire.failed(id), Code::SettingInvalid, "{kind:?}");
    };
    let bytes = |body: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        body(&mut out);
        out
    };
    let open = bytes(&|out| consumer(b"q", 1).encode(out));
    asks(FrameKind::ConsumerOpen, 1, &open);
    let declare = bytes(&|out| queue(b"r").encode(out));
    asks(FrameKind::QueueDeclare, 0, &declare);
    asks(FrameKind::QueueList, 0, b"");
    asks(FrameKind::Get, 3, &[0; 8]);
    asks(FrameKind::ProducerClose, 4, b"");
    asks(FrameKind::ConsumerClose, 3, b"");
    // A settlement with one is no settlement; who asks is told, and who does not cannot be.
    let settle = |wire: &mut Wire, flags, id| {
        let header = FrameHeader {
            flags,
            count: 1,
            ..FrameHeader::bare(FrameKind::Settle, 3, id)
        };
        wire.send_frame(header, &[0; 16]);
    };
    let id = wire.next_id();
    settle(&mut wire, 8 | SETTLE_CONFIRM, id);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    // Nothing has changed.
    assert_eq!(wire.queues().len(), 1);
    assert_eq!(wire.inspect(b"q").consumers, 1);
    producer.close(&mut wire);
    wire.close_consumer(3);
    wire.bye();
    ends(setup, Code::BodyMalformed, |wire| {
        wire.consume(3, &consumer(b"q", 0));
        settle(wire, 8, 0);
    });
}

/// Whatever a client sends, the broker lives and serves others: frames with bytes changed, half of
/// them with the checksums made right again.
fn mutations(setup: &Setup) {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut add = |kind, channel, count, sequence, body: &[u8]| {
        let header = FrameHeader {
            count,
            ..FrameHeader::bare(kind, channel, sequence)
        };
        frames.push(bytes_of(header, body));
    };
    let mut body = Vec::new();
    queue(b"q").encode(&mut body);
    add(FrameKind::QueueDeclare, 0, 0, 1, &body);
    body.clear();
    consumer(b"q", 5).encode(&mut body);
    add(FrameKind::ConsumerOpen, 1, 0, 2, &body);
    body.clear();
    let open = ProducerOpen {
        producer: 3,
        epoch: 1,
        level: 2,
        flags: 0,
        reserved: 0,
    };
    open.encode(&mut body);
    add(FrameKind::ProducerOpen, 2, 0, 3, &body);
    body.clear();
    to_queue(b"q", b"mutant").write(&mut body).unwrap();
    to_queue(b"q", b"mutant two").write(&mut body).unwrap();
    add(FrameKind::Publish, 2, 2, 1, &body);
    body.clear();
    let bind = Bind {
        flags: 0,
        exchange: b"x",
        target: b"q",
        key: b"k",
        arguments: b"",
    };
    bind.encode(&mut body);
    add(FrameKind::Bind, 0, 0, 4, &body);
    add(FrameKind::Settle, 1, 1, 5, &[0; 16]);
    add(FrameKind::Get, 1, 3, 6, &[0; 8]);
    add(FrameKind::ConsumerCredit, 1, 0, 0, &[0; 16]);
    add(FrameKind::QueueList, 0, 0, 7, b"");
    add(FrameKind::ConsumerClose, 1, 0, 8, b"");
    add(FrameKind::ProducerClose, 2, 0, 9, b"");

    for seed in 0..120_u64 {
        let noise = filler(seed + 1, 64);
        let mut bytes = Vec::new();
        let victim = usize::from(noise[0]) % frames.len();
        for (idx, frame) in frames.iter().enumerate() {
            let mut frame = frame.clone();
            if idx == victim {
                let changes = 1 + usize::from(noise[1]) % 3;
                for change in 0..changes {
                    let at = usize::from(noise[2 + 2 * change]) % frame.len();
                    frame[at] = noise[3 + 2 * change];
                }
                if seed % 2 == 0 {
                    let end = frame.len().min(32 + usize::from(frame[20]));
                    if !matches!(frame[4], 18) {
                        let crc = checksum::crc32c(&frame[32.min(end)..end]);
                        frame[24..28].copy_from_slice(&crc.to_le_bytes());
                    }
                    seal(&mut frame);
                }
            }
            bytes.extend_from_slice(&frame);
        }
        let mut wire = setup.wire();
        wire.send_bytes_anyway(&bytes);
        wire.hang_up_writing();
        while wire.try_read().is_some() {}
    }
    let mut wire = setup.wire();
    wire.declare(&queue(b"after"));
    let mut producer = wire.producer(1, Level::Durable);
    producer.confirm(&mut wire, &[to_queue(b"after", b"all is well")]);
    assert_eq!(wire.inspect(b"after").ready, 1);
    wire.bye();
}
