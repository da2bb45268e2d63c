//! A consumer of one queue on one connection: it acks some, gives some back, rejects some and holds
//! some. Does not know what producers do.

use std::collections::{HashMap, VecDeque};

use ringpost_check::{AckMode, ConsumerNo, Delivery, Event, MessageId, QueueNo};
use ringpost_wire::control::{Body, ConsumerOpen, Get};
use ringpost_wire::header::{
    DELIVER_REDELIVERED, SETTLE_ACK, SETTLE_CONFIRM, SETTLE_REJECT, SETTLE_REQUEUE,
};
use ringpost_wire::{
    Code, DeliverHead, FragmentHead, FrameHeader, FrameKind, SettleRange, envelope,
};

use crate::Outcome;
use crate::history::History;
use crate::link::{Frame, Link};
use crate::producer::{hash_of, messages_of, name_of};
use crate::random::Random;

/// What a consumer does with what it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Habit {
    /// Some of everything; what is pushed.
    Mixed,
    /// Some of everything; takes messages itself.
    Takes,
    /// Acks all, each frame at once, and waits for it to be durable.
    Acks,
}

/// A consumer.
#[derive(Debug)]
pub struct Consumer {
    number: ConsumerNo,
    queue: QueueNo,
    channel: u16,
    habit: Habit,
    random: Random,
    /// Most deliveries that it holds before it settles the oldest.
    hold_max: usize,
    held: VecDeque<(u64, MessageId)>,
    /// Acks that will be confirmed, by request.
    asked: HashMap<u64, Vec<MessageId>>,
    /// What of a large message has come.
    pieces: Vec<u8>,
    is_open: bool,
    /// A `Get` is out.
    is_taking: bool,
    delivered: u64,
}

impl Consumer {
    /// Opens a consumer of a queue on a channel.
    #[must_use]
    pub fn open(
        link: &mut Link,
        history: &History,
        identity: (ConsumerNo, QueueNo, &str),
        channel: u16,
        habit: Habit,
        random: &mut Random,
    ) -> Self {
        let (number, queue, name) = identity;
        let mut random = random.fork();
        let hold_max = random.between(0, 30) as usize;
        let credit_messages = match habit {
            Habit::Mixed => random.between(hold_max as u64 + 1, 80) as u32,
            Habit::Takes => 0,
            Habit::Acks => 500,
        };
        history.record([Event::Consumer {
            consumer: number,
            queue,
            mode: AckMode::Acks,
        }]);
        let open = ConsumerOpen {
            credit_bytes: 0,
            credit_messages,
            flags: 0,
            queue: name.as_bytes(),
            arguments: b"",
        };
        let id = link.request();
        link.send(
            &open,
            FrameHeader::bare(FrameKind::ConsumerOpen, channel, id),
        );
        Self {
            number,
            queue,
            channel,
            habit,
            random,
            hold_max,
            held: VecDeque::new(),
            asked: HashMap::new(),
            pieces: Vec::new(),
            is_open: false,
            is_taking: false,
            delivered: 0,
        }
    }

    /// Its number in the history.
    #[must_use]
    pub fn number(&self) -> ConsumerNo {
        self.number
    }

    /// Its queue.
    #[must_use]
    pub fn queue(&self) -> QueueNo {
        self.queue
    }

    /// Deliveries so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Whether everything that came is settled, and known to be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.held.is_empty() && self.asked.is_empty()
    }

    /// Takes messages, if that is its habit.
    pub fn poll(&mut self, link: &mut Link) {
        if self.habit == Habit::Takes && self.is_open && !self.is_taking {
            self.is_taking = true;
            let get = Get {
                wait_ms: self.random.below(20) as u32,
                reserved: 0,
            };
            let id = link.request();
            let header = FrameHeader {
                count: self.random.between(1, 40) as u32,
                ..FrameHeader::bare(FrameKind::Get, self.channel, id)
            };
            let mut body = Vec::new();
            get.encode(&mut body);
            link.send_frame(header, &body);
        }
    }

    /// Takes a frame of its channel.
    ///
    /// # Errors
    /// The broker says what it must not.
    pub fn take(&mut self, frame: &Frame, link: &mut Link, history: &History) -> Outcome<()> {
        let header = &frame.header;
        match header.kind {
            FrameKind::ConsumerOpened => self.is_open = true,
            FrameKind::Deliver => {
                let (head, messages) = messages_of(&frame.body)?;
                if messages.len() != header.count as usize {
                    return Err("a Deliver with another count of messages".to_owned());
                }
                self.deliver(header, head, &messages, history);
                self.settle(link, history);
            }
            FrameKind::DeliverFragment => self.piece(frame, link, history)?,
            FrameKind::Settled => {
                let queue = self.queue;
                let acked = self.asked.remove(&header.sequence);
                let acked = acked.ok_or("a Settled that nobody asked for")?;
                let confirmed = |message| Event::AckConfirmed { queue, message };
                history.record(acked.into_iter().map(confirmed));
            }
            FrameKind::GetDone => self.is_taking = false,
            FrameKind::ConsumerClosed | FrameKind::Failed => {
                let (code, reason) = frame.failure();
                // A file system that stops fails reads before it fails a write. Damage that is there
                // is in the log and ends the drain.
                let may_be = [Code::ShuttingDown, Code::JournalFailed, Code::QueueDamaged];
                if !may_be.contains(&code) {
                    return Err(format!("a consumer ended: {code}: {reason}"));
                }
                self.is_open = false;
            }
            other => return Err(format!("a consumer was sent a {other:?}")),
        }
        Ok(())
    }

    fn piece(&mut self, frame: &Frame, link: &mut Link, history: &History) -> Outcome<()> {
        let wrong = |code: Code| format!("DeliverFragment: {code}");
        let (head, rest) = DeliverHead::split(&frame.body).map_err(wrong)?;
        let (piece, bytes) = FragmentHead::split(rest).map_err(wrong)?;
        if piece.offset as usize != self.pieces.len() {
            return Err("a piece of a delivery is missing".to_owned());
        }
        self.pieces.extend_from_slice(bytes);
        if self.pieces.len() == piece.message_bytes as usize {
            let bytes = std::mem::take(&mut self.pieces);
            let message = envelope::open(&bytes).map_err(wrong)?;
            let message = (name_of(message.payload()), hash_of(&bytes));
            self.deliver(&frame.header, head, &[message], history);
            self.settle(link, history);
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        header: &FrameHeader,
        head: DeliverHead,
        messages: &[(MessageId, u64)],
        history: &History,
    ) {
        let delivery = |(idx, (message, hash)): (usize, &(MessageId, u64))| {
            Event::Delivered(Delivery {
                consumer: self.number,
                queue: self.queue,
                place: head.queue_sequence + idx as u64,
                message: *message,
                hash: *hash,
                redelivered: header.flags & DELIVER_REDELIVERED != 0,
                count: head.delivery_count,
            })
        };
        history.record(messages.iter().enumerate().map(delivery));
        for (idx, (message, _)) in messages.iter().enumerate() {
            self.held
                .push_back((header.sequence + idx as u64, *message));
        }
        self.delivered += messages.len() as u64;
    }

    /// Decides what becomes of what it holds.
    fn settle(&mut self, link: &mut Link, history: &History) {
        if self.habit == Habit::Acks {
            return self.settle_all(link, history);
        }
        let held = std::mem::take(&mut self.held);
        let mut acked = Vec::new();
        for (tag, message) in held {
            match self.random.below(100) {
                0..60 => acked.push((tag, message)),
                60..66 => self.say(link, history, SETTLE_REQUEUE, &[(tag, message)]),
                66..70 => self.say(link, history, SETTLE_REJECT, &[(tag, message)]),
                _ => self.held.push_back((tag, message)),
            }
        }
        for some in acked.chunks(ringpost_wire::SETTLE_RANGES_MAX) {
            self.say(link, history, SETTLE_ACK, some);
        }
        if self.held.len() > self.hold_max {
            self.settle_all(link, history);
        }
    }

    /// Acks everything that it holds, in one range.
    fn settle_all(&mut self, link: &mut Link, history: &History) {
        let Some((last, _)) = self.held.back().copied() else {
            return;
        };
        let all: Vec<_> = self.held.drain(..).collect();
        let range = SettleRange { first: 0, last };
        self.say_ranges(link, history, SETTLE_ACK, &all, &[range]);
    }

    fn say(
        &mut self,
        link: &mut Link,
        history: &History,
        outcome: u8,
        messages: &[(u64, MessageId)],
    ) {
        let single = |(tag, _): &(u64, MessageId)| SettleRange {
            first: *tag,
            last: *tag,
        };
        let ranges: Vec<_> = messages.iter().map(single).collect();
        if !ranges.is_empty() {
            self.say_ranges(link, history, outcome, messages, &ranges);
        }
    }

    fn say_ranges(
        &mut self,
        link: &mut Link,
        history: &History,
        outcome: u8,
        messages: &[(u64, MessageId)],
        ranges: &[SettleRange],
    ) {
        let queue = self.queue;
        let said = |(_, message): &(u64, MessageId)| match outcome {
            SETTLE_REQUEUE => Event::Returned {
                queue,
                message: *message,
            },
            _ => Event::Acked {
                queue,
                message: *message,
            },
        };
        history.record(messages.iter().map(said));
        let is_confirmed = self.habit == Habit::Acks || self.random.percent(50);
        let mut header = FrameHeader {
            flags: outcome,
            count: ranges.len() as u32,
            ..FrameHeader::bare(FrameKind::Settle, self.channel, 0)
        };
        if is_confirmed {
            header.sequence = link.request();
            header.flags |= SETTLE_CONFIRM;
            let acked = match outcome {
                SETTLE_REQUEUE => Vec::new(),
                _ => messages.iter().map(|(_, message)| *message).collect(),
            };
            self.asked.insert(header.sequence, acked);
        }
        let body: Vec<u8> = ranges.iter().flat_map(SettleRange::encode).collect();
        link.send_frame(header, &body);
    }
}
