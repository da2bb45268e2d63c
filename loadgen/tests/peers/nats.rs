//! NATS with JetStream, as far as a work queue with a pushed consumer needs it.

use std::io::BufReader;
use std::net::TcpStream;

use crate::fake::{Output, Shared, bytes, line};

pub fn serve(socket: TcpStream, shared: &Shared) {
    let output = Output::new(&socket);
    let mut input = BufReader::new(socket);
    output.write(b"INFO {\"server_id\":\"fake\",\"headers\":true}\r\n");
    while let Some(line) = line(&mut input) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["CONNECT", ..] | ["PONG"] => {}
            ["PING"] => output.write(b"PONG\r\n"),
            ["SUB", subject, .., sid] => {
                let Some(queue) = subject.strip_suffix(".pushed") else {
                    continue; // its own inbox: what it asks is answered at once
                };
                let (subject, sid) = (subject.to_owned(), sid.to_owned());
                let (own, ack) = (output.clone(), format!("$JS.ACK.{queue}.load.1.1.1.1.0"));
                let sink = move |message: &[u8]| {
                    let head = format!("MSG {subject} {sid} {ack} {}\r\n", message.len());
                    own.write(&[head.as_bytes(), message, b"\r\n"].concat());
                };
                shared.store().subscribe(queue, Box::new(sink));
            }
            ["PUB", subject, .., length] => {
                let length: usize = length.parse().expect("a length");
                let reply = (words.len() == 4).then(|| words[2]);
                let Some(mut message) = bytes(&mut input, length + 2) else {
                    return;
                };
                message.truncate(length);
                let mut store = shared.store();
                let answer = if subject.starts_with("$JS.ACK.") {
                    assert_eq!(message, b"+ACK");
                    store.settled += 1;
                    continue;
                } else if let Some(queue) = subject.strip_prefix("$JS.API.STREAM.CREATE.") {
                    store.queues.push(queue.to_owned());
                    "{\"type\":\"created\"}"
                } else if let Some(queue) = subject.strip_prefix("$JS.API.STREAM.DELETE.") {
                    store.queues.retain(|own| own != queue);
                    "{\"success\":true}"
                } else if subject.starts_with("$JS.API.CONSUMER.DURABLE.CREATE.") {
                    "{\"type\":\"created\"}"
                } else if store.publish(subject, &message) {
                    "{\"stream\":\"some\", \"seq\":1}"
                } else {
                    "{\"error\":{\"code\":503,\"description\":\"no space\"},\"stream\":\"some\"}"
                };
                drop(store);
                if let Some(reply) = reply {
                    let length = answer.len();
                    output.write(format!("MSG {reply} 0 {length}\r\n{answer}\r\n").as_bytes());
                }
            }
            _ => panic!("{line}"),
        }
    }
}
