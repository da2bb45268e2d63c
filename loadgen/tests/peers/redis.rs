//! Redis, as far as streams of a work queue need it.

use std::io::BufReader;
use std::net::TcpStream;

use crate::fake::{Output, READ_WAIT, Shared, bytes, line};

fn command(input: &mut BufReader<TcpStream>) -> Option<Vec<Vec<u8>>> {
    let count: usize = line(input)?.strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length: usize = line(input)?.strip_prefix('$')?.parse().ok()?;
        let mut word = bytes(input, length + 2)?;
        word.truncate(length);
        words.push(word);
    }
    Some(words)
}

pub fn serve(socket: TcpStream, shared: &Shared) {
    let output = Output::new(&socket);
    let mut input = BufReader::new(socket);
    // Entries that were read and not acked, of this connection.
    let (mut id, mut pending) = (0u64, 0usize);
    while let Some(words) = command(&mut input) {
        let text = |at: usize| String::from_utf8_lossy(&words[at]).into_owned();
        let mut store = shared.store();
        let answer = match text(0).as_str() {
            "PING" => b"+PONG\r\n".to_vec(),
            "QUIT" => b"+OK\r\n".to_vec(),
            "XGROUP" => {
                assert_eq!((text(1).as_str(), text(5).as_str()), ("CREATE", "MKSTREAM"));
                let is_new = !store.queues.contains(&text(2));
                store.queues.push(text(2));
                match is_new {
                    true => b"+OK\r\n".to_vec(),
                    false => b"-BUSYGROUP it exists\r\n".to_vec(),
                }
            }
            "DEL" => {
                store.queues.retain(|own| *own != text(1));
                b":1\r\n".to_vec()
            }
            "XADD" => match store.publish(&text(1), &words[4]) {
                true => b"$3\r\n1-0\r\n".to_vec(),
                false => b"-OOM command not allowed\r\n".to_vec(),
            },
            "XACK" => {
                let count = words.len() - 3;
                pending = pending.checked_sub(count).expect("what was read");
                store.settled += count as u64;
                format!(":{count}\r\n").into_bytes()
            }
            "XDEL" => format!(":{}\r\n", words.len() - 2).into_bytes(),
            "XREADGROUP" => {
                let keys = (words.len() - 9) / 2;
                let count: usize = text(5).parse().expect("a count");
                let keys: Vec<_> = (9..9 + keys).map(text).collect();
                let mut found = Vec::new();
                for wait in [true, false] {
                    for key in &keys {
                        let messages = store.take(key, count);
                        if !messages.is_empty() {
                            found.push((key, messages));
                        }
                    }
                    if found.is_empty() && wait {
                        let waited = shared.0.1.wait_timeout(store, READ_WAIT);
                        store = waited.expect("no connection has panicked").0;
                    }
                }
                let mut answer = match found.len() {
                    0 => b"*-1\r\n".to_vec(),
                    count => format!("*{count}\r\n").into_bytes(),
                };
                for (key, messages) in found {
                    pending += messages.len();
                    let (length, count) = (key.len(), messages.len());
                    answer.extend(format!("*2\r\n${length}\r\n{key}\r\n*{count}\r\n").bytes());
                    for message in messages {
                        id += 1;
                        let own = format!("{id}-0");
                        let (length, bytes) = (own.len(), message.len());
                        let head =
                            format!("*2\r\n${length}\r\n{own}\r\n*2\r\n$1\r\np\r\n${bytes}\r\n");
                        answer.extend(head.bytes());
                        answer.extend(message);
                        answer.extend(b"\r\n");
                    }
                }
                answer
            }
            other => panic!("{other}"),
        };
        drop(store);
        shared.0.1.notify_all();
        output.write(&answer);
    }
}
