//! RabbitMQ, as far as a queue with confirms and a consumer needs it. Confirms every other publish with
//! the one before it.

use std::collections::HashMap;
use std::io::BufReader;
use std::net::TcpStream;

use crate::fake::{Output, Shared, bytes};

/// What is known of a channel.
#[derive(Default)]
struct Channel {
    is_confirmed: bool,
    published: u64,
    confirmed: u64,
    acked: u64,
    /// A publish whose body has not come whole: queue, bytes that are to come, bytes that have.
    publish: Option<(String, usize, Vec<u8>)>,
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend(channel.to_be_bytes());
    frame.extend(u32::try_from(payload.len()).expect("short").to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    frame
}

fn method(channel: u16, class: u16, number: u16, arguments: &[u8]) -> Vec<u8> {
    let payload = [&class.to_be_bytes()[..], &number.to_be_bytes(), arguments].concat();
    frame(1, channel, &payload)
}

fn short(bytes: &[u8]) -> (String, &[u8]) {
    let (text, rest) = bytes[1..].split_at(usize::from(bytes[0]));
    (String::from_utf8(text.to_vec()).expect("text"), rest)
}

/// Writes deliveries; a message larger than 40 bytes in two bodies.
fn sink(output: Output, channel: u16) -> impl FnMut(&[u8]) + Send {
    let mut tag = 0u64;
    move |message: &[u8]| {
        tag += 1;
        let mut delivery = b"\x02ct".to_vec();
        delivery.extend(tag.to_be_bytes());
        delivery.extend(b"\x00\x00\x00");
        let mut header = b"\x00\x3c\x00\x00".to_vec();
        header.extend((message.len() as u64).to_be_bytes());
        header.extend(b"\x00\x00");
        let (first, second) = message.split_at(message.len().min(40));
        let mut whole = method(channel, 60, 60, &delivery);
        whole.extend(frame(2, channel, &header));
        whole.extend(frame(3, channel, first));
        if !second.is_empty() {
            whole.extend(frame(3, channel, second));
        }
        output.write(&whole);
    }
}

/// The body of a publish has come: stores it and says so.
fn store(shared: &Shared, channel: &mut Channel, number: u16, queue: &str, body: &[u8]) -> Vec<u8> {
    channel.published += 1;
    let is_stored = shared.store().publish(queue, body);
    let tag = channel.published.to_be_bytes();
    if !channel.is_confirmed {
        return Vec::new();
    }
    if !is_stored {
        return method(number, 60, 120, &[&tag[..], &[0]].concat());
    }
    let is_multiple = channel.confirmed + 1 < channel.published;
    channel.confirmed = channel.published;
    method(
        number,
        60,
        80,
        &[&tag[..], &[u8::from(is_multiple)]].concat(),
    )
}

pub fn serve(socket: TcpStream, shared: &Shared) {
    let output = Output::new(&socket);
    let mut input = BufReader::new(socket);
    assert_eq!(
        bytes(&mut input, 8).as_deref(),
        Some(&b"AMQP\x00\x00\x09\x01"[..])
    );
    let start = b"\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US";
    output.write(&method(0, 10, 10, start));
    let mut channels: HashMap<u16, Channel> = HashMap::new();
    while let Some(head) = bytes(&mut input, 7) {
        let number = u16::from_be_bytes([head[1], head[2]]);
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let Some(mut payload) = bytes(&mut input, size + 1) else {
            return;
        };
        assert_eq!(payload.pop(), Some(0xce));
        let channel = channels.entry(number).or_default();
        match head[0] {
            2 => {
                let length = u64::from_be_bytes(payload[4..12].try_into().expect("eight"));
                let publish = channel.publish.as_mut().expect("a method before it");
                publish.1 = usize::try_from(length).expect("short");
                continue;
            }
            3 => {
                let (queue, length, mut body) = channel.publish.take().expect("a header before it");
                body.extend(payload);
                if body.len() < length {
                    channel.publish = Some((queue, length, body));
                    continue;
                }
                let answer = store(shared, channel, number, &queue, &body);
                output.write(&answer);
                continue;
            }
            8 => continue,
            _ => {}
        }
        let (class, own) = (payload[1], payload[3]);
        let arguments = &payload[4..];
        let answer = match (class, own) {
            (10, 11) => method(0, 10, 30, b"\x07\xff\x00\x02\x00\x00\x00\x3c"),
            (10, 31) => continue,
            (10, 40) => method(0, 10, 41, b"\x00"),
            (10, 50) => method(0, 10, 51, b""),
            (20, 10) => method(number, 20, 11, b"\x00\x00\x00\x00"),
            (50, 10) => {
                shared.store().queues.push(short(&arguments[2..]).0);
                method(number, 50, 11, b"\x00\x00\x00\x00\x00\x00\x00\x00\x00")
            }
            (50, 40) => {
                let queue = short(&arguments[2..]).0;
                shared.store().queues.retain(|other| *other != queue);
                method(number, 50, 41, b"\x00\x00\x00\x00")
            }
            (60, 10) => method(number, 60, 11, b""),
            (60, 20) => {
                let queue = short(&arguments[2..]).0;
                output.write(&method(number, 60, 21, b"\x02ct"));
                let sink = Box::new(sink(output.clone(), number));
                shared.store().subscribe(&queue, sink);
                continue;
            }
            (60, 40) => {
                let (exchange, rest) = short(&arguments[2..]);
                assert_eq!(exchange, "");
                channel.publish = Some((short(rest).0, 0, Vec::new()));
                continue;
            }
            (60, 80) => {
                let tag = u64::from_be_bytes(arguments[..8].try_into().expect("eight"));
                assert_eq!(arguments[8], 1, "all of a turn at once");
                shared.store().settled += tag - channel.acked;
                channel.acked = tag;
                continue;
            }
            (85, 10) => {
                channel.is_confirmed = true;
                method(number, 85, 11, b"")
            }
            other => panic!("{other:?}"),
        };
        output.write(&answer);
    }
}
