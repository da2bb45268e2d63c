//! Peers that are not there: just enough of Redis, NATS and RabbitMQ on loopback to be published to and
//! consumed from, each with one fault on demand. Everything is one store, whatever it speaks.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::{amqp, nats, redis};

/// What goes wrong with one publish, counted from 1 over all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It is confirmed and never delivered.
    Lose(u64),
    /// It is delivered twice.
    Twice(u64),
    /// It is refused.
    Refuse(u64),
}

/// Delivers one message.
pub type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// What all connections share.
pub struct Store {
    fault: Fault,
    published: u64,
    /// Messages that the other side has settled.
    pub settled: u64,
    /// Queues that were declared and not deleted.
    pub queues: Vec<String>,
    waiting: HashMap<String, VecDeque<Vec<u8>>>,
    /// Consumers of each queue, which take turns.
    sinks: HashMap<String, VecDeque<Sink>>,
}

impl Store {
    /// Stores a message; false if it is refused.
    pub fn publish(&mut self, queue: &str, message: &[u8]) -> bool {
        assert!(self.queues.iter().any(|own| own == queue), "{queue}");
        self.published += 1;
        let times = match self.fault {
            Fault::Lose(at) if at == self.published => 0,
            Fault::Twice(at) if at == self.published => 2,
            Fault::Refuse(at) if at == self.published => return false,
            _ => 1,
        };
        for _ in 0..times {
            let sinks = self.sinks.entry(queue.to_owned()).or_default();
            match sinks.front_mut() {
                Some(sink) => {
                    sink(message);
                    sinks.rotate_left(1);
                }
                None => {
                    let waiting = self.waiting.entry(queue.to_owned()).or_default();
                    waiting.push_back(message.to_vec());
                }
            }
        }
        true
    }

    /// Delivers from now on, and what waits.
    pub fn subscribe(&mut self, queue: &str, mut sink: Sink) {
        for message in self.waiting.remove(queue).unwrap_or_default() {
            sink(&message);
        }
        self.sinks
            .entry(queue.to_owned())
            .or_default()
            .push_back(sink);
    }

    pub fn take(&mut self, queue: &str, most: usize) -> Vec<Vec<u8>> {
        let Some(waiting) = self.waiting.get_mut(queue) else {
            return Vec::new();
        };
        let count = waiting.len().min(most);
        waiting.drain(..count).collect()
    }
}

/// What a connection works on.
#[derive(Clone)]
pub struct Shared(pub Arc<(Mutex<Store>, Condvar)>);

impl Shared {
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.0.0.lock().expect("no connection has panicked")
    }
}

/// A peer; its threads end with the connections.
pub struct Fake {
    pub address: SocketAddr,
    shared: Shared,
}

impl Fake {
    /// Starts one that speaks what `via` names.
    pub fn start(via: &str, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let store = Store {
            fault,
            published: 0,
            settled: 0,
            queues: Vec::new(),
            waiting: HashMap::new(),
            sinks: HashMap::new(),
        };
        let shared = Shared(Arc::new((Mutex::new(store), Condvar::new())));
        let serve = match via {
            "redis" => redis::serve,
            "nats" => nats::serve,
            "amqp" => amqp::serve,
            _ => panic!("{via}"),
        };
        let own = shared.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (socket, shared) = (socket.expect("a guest"), own.clone());
                std::thread::spawn(move || serve(socket, &shared));
            }
        });
        Self { address, shared }
    }

    /// What it holds.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store()
    }
}

/// A line without its end; none at the end of the connection.
pub fn line(input: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    let count = input.read_line(&mut line).ok()?;
    (count > 0).then(|| line.trim_end().to_owned())
}

/// So many bytes.
pub fn bytes(input: &mut impl Read, count: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count];
    input.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// A socket that several threads write whole answers to. A guest that has gone is no fault of the peer.
#[derive(Clone)]
pub struct Output(Arc<Mutex<TcpStream>>);

impl Output {
    pub fn new(socket: &TcpStream) -> Self {
        Self(Arc::new(Mutex::new(socket.try_clone().expect("a socket"))))
    }

    pub fn write(&self, bytes: &[u8]) {
        let mut socket = self.0.lock().expect("no connection has panicked");
        drop(socket.write_all(bytes));
    }
}

/// Longest wait of a read, as short as a test may be.
pub const READ_WAIT: Duration = Duration::from_millis(20);
