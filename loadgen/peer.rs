//! Brokers of others under the same load: what they are told beyond a plan, and what a connection to one
//! says and hears, without bytes. The protocols are in the files beside; the driver moves the bytes.

mod amqp;
mod drive;
mod nats;
mod outcomes;
mod redis;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringpost_wire::control::Durability;

pub(crate) use self::drive::work;
use crate::message::STAMP_BYTES;
use crate::plan::{Plan, Service, Via};
use crate::routes::Exchange;
use crate::{Error, Result};

/// Kind of an AMQP queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum QueueType {
    /// On one node.
    #[default]
    Classic,
    /// A replicated log; of one node, one copy of it.
    Quorum,
}

/// What whoever set a peer up says that its confirms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Promise {
    /// Nothing.
    #[default]
    Unknown,
    /// It confirms before it syncs, or never syncs.
    Unsynced,
    /// It syncs before it confirms.
    Synced,
}

/// What only a peer is told, or is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// AMQP: kind of the queues.
    pub queue_type: QueueType,
    /// AMQP: user.
    pub user: String,
    /// AMQP: password.
    pub password: String,
    /// What its confirms are.
    pub promise: Promise,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_type: QueueType::Classic,
            user: "guest".into(),
            password: "guest".into(),
            promise: Promise::Unknown,
        }
    }
}

/// Largest payload, in bytes: NATS takes no larger message unless it is told to.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// Most bytes of what names start with: a short string of AMQP has 255, with a number.
const PREFIX_BYTES_MAX: usize = 200;

/// What may stand in the names of all peers.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// Checks what a peer is not driven to do here.
///
/// # Errors
/// [`Error::Plan`] with what is wrong.
pub fn check(plan: &Plan) -> Result<()> {
    let word = plan.via.word();
    let wrong = |text: String| Err(Error::Plan(text));
    if plan.exchange != Exchange::Default || plan.fan_out > 1 {
        return wrong(format!(
            "messages go straight to one queue via {word}: leave exchanges and --fan-out out"
        ));
    }
    if plan.service != Service::None {
        return wrong(format!(
            "consumers have no service time via {word}: leave --service out"
        ));
    }
    if plan.payload_bytes_max() > PAYLOAD_BYTES_MAX {
        return wrong(format!(
            "a payload of {} bytes: {PAYLOAD_BYTES_MAX} is the most via {word}",
            plan.payload_bytes_max()
        ));
    }
    if plan.queue_prefix.len() > PREFIX_BYTES_MAX || !plan.queue_prefix.bytes().all(is_plain) {
        return wrong(format!(
            "names of queues have to start with at most {PREFIX_BYTES_MAX} letters, digits, dashes and \
             underscores via {word}"
        ));
    }
    if plan.peer.queue_type == QueueType::Quorum && plan.durability == Durability::Volatile {
        return wrong("quorum queues are durable: leave --volatile out".into());
    }
    if plan.is_restart_expected {
        return wrong(format!("nothing comes back after a restart via {word}"));
    }
    let places = plan.queues * plan.consumers;
    let is_shared = plan.consumer_connections > 0 && plan.consumer_connections < places;
    if plan.via == Via::Redis && plan.consumers > 1 && (is_shared || places > 16) {
        return wrong(
            "consumers that share a queue need a connection each via redis: name as many with \
             --consumer-connections"
                .into(),
        );
    }
    Ok(())
}

/// Makes the plan's queues, with whatever consuming from them needs.
///
/// # Errors
/// If the peer is not there or refuses.
pub fn declare(plan: &Plan) -> Result<()> {
    set_up(plan, Work::Declare)
}

/// Deletes what [`declare`] made; whether it was there does not matter.
///
/// # Errors
/// As [`declare`].
pub fn delete(plan: &Plan) -> Result<()> {
    set_up(plan, Work::Delete)
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Making the queues of its roles.
    Declare,
    /// Deleting them.
    Delete,
    /// Publishing; a role is a producer.
    Produce,
    /// Consuming; a role is a consumer of one queue.
    Consume,
}

/// What a connection has to do.
pub(crate) struct Job<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) work: Work,
    /// Which of the run's connections of this work it is.
    pub(crate) number: u32,
    /// The queue of each role; of a producer the first that it publishes to.
    pub(crate) queues: Vec<u32>,
}

impl Job<'_> {
    /// Names of the queues of the roles.
    fn names(&self) -> Vec<String> {
        let queues = self.queues.iter();
        queues.map(|queue| self.plan.queue_name(*queue)).collect()
    }

    /// Names of all queues of the run.
    fn all_names(&self) -> Vec<String> {
        let queues = 0..self.plan.queues;
        queues.map(|queue| self.plan.queue_name(queue)).collect()
    }
}

/// What is published.
#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    /// All before the stamp.
    pub(crate) noise: &'a [u8],
    pub(crate) stamp: [u8; STAMP_BYTES],
}

impl Payload<'_> {
    /// Bytes of both.
    pub(crate) const fn length(&self) -> usize {
        self.noise.len() + STAMP_BYTES
    }

    /// Appends both.
    fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.noise);
        out.extend_from_slice(&self.stamp);
    }
}

/// What a peer has said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// Nothing that matters outside of the protocol.
    Nothing,
    /// The connection can do its work, or has done it if that is declaring or deleting.
    Ready,
    /// Publishes of a role are confirmed.
    Confirmed(Which),
    /// Publishes of a role are refused, in the peer's words.
    Refused(Which, String),
    /// A message for a role.
    Delivered {
        role: usize,
        payload: &'a [u8],
        is_redelivered: bool,
    },
    /// The peer has answered the goodbye: all that was settled before holds.
    Closed,
}

impl Event<'_> {
    /// Whether it may come on a connection for some work: the roles that it names are those of that work.
    pub(crate) const fn fits(&self, work: Work) -> bool {
        match self {
            Self::Nothing | Self::Ready | Self::Closed => true,
            Self::Confirmed(_) | Self::Refused(..) => matches!(work, Work::Produce),
            Self::Delivered { .. } => matches!(work, Work::Consume),
        }
    }
}

/// Publishes of one role, whose publishes are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Which {
    pub(crate) role: usize,
    pub(crate) sequence: u64,
    /// All up to `sequence` that had no outcome yet, instead of that one.
    pub(crate) is_multiple: bool,
}

/// One connection's side of a protocol, without a socket: bytes in, events out; calls in, bytes out.
/// Nothing that a peer sends makes it panic, and it keeps no more of it than one message.
pub(crate) trait Codec {
    /// Appends what is said first.
    fn open(&mut self, out: &mut Vec<u8>);

    /// Takes one piece from the start of what was received: how long it was, and what it says. None if it
    /// is not whole yet. Appends answers that the protocol wants.
    ///
    /// # Errors
    /// [`Error::Refused`] with the peer's words, [`Error::Protocol`] if it is damaged.
    fn next<'b>(
        &'b mut self,
        input: &'b [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Event<'b>)>>;

    /// Appends a message of a producer to a queue.
    fn publish(&mut self, out: &mut Vec<u8>, role: usize, queue: u32, payload: Payload<'_>);

    /// Acks all that was delivered and not acked, and asks for more where that has to be asked for.
    /// Returns how many were acked.
    fn settle(&mut self, out: &mut Vec<u8>) -> u64;

    /// Says that it is alive; called every few seconds.
    fn beat(&mut self, _out: &mut Vec<u8>) {}

    /// Says goodbye; what is delivered after it is not settled.
    fn close(&mut self, out: &mut Vec<u8>);
}

/// The codec of a connection.
fn codec(job: Job<'_>) -> Box<dyn Codec> {
    match job.plan.via {
        Via::Amqp => Box::new(amqp::Amqp::new(job)),
        Via::Redis => Box::new(redis::Redis::new(job)),
        Via::Nats => Box::new(nats::Nats::new(job)),
        Via::Raw | Via::Client => unreachable!("Ringpost is no peer"),
    }
}

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to a peer.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address).map_err(Error::io("cannot connect"))?;
    socket
        .set_nodelay(true)
        .map_err(Error::io("cannot set TCP_NODELAY"))?;
    Ok(socket)
}

/// Declares or deletes all queues by one connection that waits for its answers.
fn set_up(plan: &Plan, work: Work) -> Result<()> {
    plan.check()?;
    let mut socket = connect(plan.address)?;
    socket
        .set_read_timeout(Some(ANSWER_TIMEOUT))
        .map_err(Error::io("cannot set a timeout"))?;
    let mut codec = codec(Job {
        plan,
        work,
        number: 0,
        queues: (0..plan.queues).collect(),
    });
    let (mut input, mut out) = (Vec::new(), Vec::new());
    codec.open(&mut out);
    loop {
        let mut taken = 0;
        while let Some((length, event)) = codec.next(&input[taken..], &mut out)? {
            let (is_ready, is_closed) = (event == Event::Ready, event == Event::Closed);
            taken += length;
            if is_closed {
                return Ok(());
            }
            if is_ready {
                codec.close(&mut out);
            }
        }
        input.drain(..taken);
        socket
            .write_all(&out)
            .map_err(Error::io("cannot send to the peer"))?;
        out.clear();
        let mut room = [0; 16 << 10];
        let count = socket
            .read(&mut room)
            .map_err(Error::io("no answer from the peer"))?;
        if count == 0 {
            return Err(Error::Protocol("the peer hung up".into()));
        }
        input.extend_from_slice(&room[..count]);
    }
}

/// A refusal in a peer's words.
fn refused(what: &'static str, reason: impl Into<String>) -> Error {
    Error::Refused {
        what,
        code: None,
        reason: reason.into(),
    }
}

/// What a peer must not send.
fn damaged(text: impl Into<String>) -> Error {
    Error::Protocol(text.into())
}

/// Bytes as words that can be printed, at most so many of them.
fn words(bytes: &[u8]) -> String {
    const BYTES_MAX: usize = 300;
    String::from_utf8_lossy(&bytes[..bytes.len().min(BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests;
