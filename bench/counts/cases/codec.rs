//! Cases of the bytes on the wire: frames and messages written, cut, opened and checked.
//! Does not know sockets.

use std::hint::black_box;

use ringpost_wire::control::{Body, ProducerCredit};
use ringpost_wire::{
    Cut, DeliverHead, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, MessageParts,
    Messages, SettleRange, cut, frame,
};

use super::Case;

/// Small frames of a round.
const FRAMES: u64 = 1_024;
/// Bytes of payload of a round, at least.
const ROUND_BYTES: usize = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("codec/open/100B", || open(100)),
        Case::new("codec/open/1KiB", || open(1 << 10)),
        Case::new("codec/open/16KiB", || open(16 << 10)),
        Case::new("codec/write/100B", || write(100)),
        Case::new("codec/write/1KiB", || write(1 << 10)),
        Case::new("codec/write/16KiB", || write(16 << 10)),
        Case::new("codec/deliver-head/write", deliver_head),
        Case::new("codec/confirm/write", write_confirm),
        Case::new("codec/confirm/read", read_confirms),
        Case::new("codec/settle/read", read_settles),
    ]
}

/// A full frame of messages with so many bytes of payload.
fn publish_frame(payload: usize) -> (Vec<u8>, usize) {
    let payload = vec![7; payload];
    let parts = parts(&payload);
    let (mut body, mut count) = (Vec::new(), 0);
    while FRAME_HEADER_BYTES + body.len() + parts.padded_length() <= FRAME_BYTES_MAX {
        parts.write(&mut body).expect("within limits");
        count += 1;
    }
    let mut bytes = Vec::new();
    let header = FrameHeader {
        count: count as u32,
        ..FrameHeader::bare(FrameKind::Publish, 1, 1)
    };
    frame::write(&mut bytes, header, &body);
    (bytes, count)
}

fn parts(payload: &[u8]) -> MessageParts<'_> {
    MessageParts {
        exchange: b"shop",
        routing_key: b"order.7.paid",
        payload,
        ..MessageParts::default()
    }
}

/// Cuts publish frames, opens every message and checks its checksum.
fn open(payload: usize) -> impl FnMut() -> u64 {
    let (bytes, count) = publish_frame(payload);
    let frames = (ROUND_BYTES / (count * payload)).max(1);
    move || {
        let mut opened = 0;
        for _ in 0..frames {
            let Cut::Complete { header, .. } = cut(black_box(&bytes), FRAME_BYTES_MAX) else {
                panic!("it is whole");
            };
            let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
            let body = &bytes[FRAME_HEADER_BYTES..end];
            frame::check_body(&header, body).expect("just written");
            for message in Messages::new(body) {
                let message = message.expect("just written");
                message.envelope.check_crc().expect("just written");
                black_box(message.envelope.address());
                opened += 1;
            }
        }
        opened
    }
}

/// Writes messages, and the frame around them.
fn write(payload: usize) -> impl FnMut() -> u64 {
    let (bytes, count) = publish_frame(payload);
    let frames = (ROUND_BYTES / (count * payload)).max(1);
    let payload = vec![7; payload];
    let mut body = Vec::with_capacity(bytes.len());
    let mut out = Vec::with_capacity(bytes.len());
    move || {
        let parts = parts(&payload);
        for _ in 0..frames {
            body.clear();
            out.clear();
            for _ in 0..count {
                black_box(&parts).write(&mut body).expect("within limits");
            }
            let header = FrameHeader {
                count: count as u32,
                ..FrameHeader::bare(FrameKind::Publish, 1, 1)
            };
            frame::write(&mut out, header, &body);
            black_box(&out);
        }
        (frames * count) as u64
    }
}

/// Writes what stands before the messages of a delivery: a unit is a frame.
fn deliver_head() -> impl FnMut() -> u64 {
    let mut out = Vec::with_capacity(1 << 20);
    move || {
        out.clear();
        for number in 0..FRAMES {
            let head = DeliverHead {
                queue_sequence: black_box(number),
                delivery_count: 0,
            };
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(FrameKind::Deliver, 1, number)
            };
            frame::write(&mut out, header, &head.encode());
        }
        black_box(&out);
        FRAMES
    }
}

fn confirms(out: &mut Vec<u8>) {
    for number in 0..FRAMES {
        let credit = ProducerCredit {
            messages: number + 1_000,
            bytes: black_box(number) * 128,
        };
        credit.write(out, FrameHeader::bare(FrameKind::Confirm, 1, number));
    }
}

fn write_confirm() -> impl FnMut() -> u64 {
    let mut out = Vec::with_capacity(1 << 20);
    move || {
        out.clear();
        confirms(&mut out);
        black_box(&out);
        FRAMES
    }
}

/// Cuts small frames, checks their bodies and gives them to `read`: a unit is a frame.
fn read_all(bytes: Vec<u8>, read: impl Fn(&FrameHeader, &[u8])) -> impl FnMut() -> u64 {
    move || {
        let (mut rest, mut count) = (bytes.as_slice(), 0);
        while let Cut::Complete { header, length } = cut(rest, FRAME_BYTES_MAX) {
            let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
            let body = &rest[FRAME_HEADER_BYTES..end];
            frame::check_body(&header, body).expect("just written");
            read(&header, body);
            rest = &rest[length..];
            count += 1;
        }
        count
    }
}

fn read_confirms() -> impl FnMut() -> u64 {
    let mut bytes = Vec::new();
    confirms(&mut bytes);
    read_all(bytes, |_, body| {
        black_box(ProducerCredit::decode(body).expect("just written"));
    })
}

fn read_settles() -> impl FnMut() -> u64 {
    let mut bytes = Vec::new();
    for number in 0..FRAMES {
        let header = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Settle, 1, 0)
        };
        let range = SettleRange {
            first: 0,
            last: number + 1,
        };
        frame::write(&mut bytes, header, &range.encode());
    }
    read_all(bytes, |header, body| {
        for range in SettleRange::parse(body, header.count).expect("just written") {
            black_box(range);
        }
    })
}
