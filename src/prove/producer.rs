//! A producer that outlives its connections: it keeps what has no answer and publishes it again
//! under its own sequence when it is opened again. Does not know why a connection was lost.

use std::collections::VecDeque;

use ringpost_check::{Event, Level, MessageId, Refusal};
use ringpost_wire::control::{
    Body, PRODUCER_DOWNGRADE, ProducerCredit, ProducerOpen, ProducerOpened,
};
use ringpost_wire::{
    Code, DeliverHead, FRAGMENT_BYTES_MAX, FragmentHead, FrameHeader, FrameKind, MessageParts,
    padded,
};

use crate::Outcome;
use crate::history::History;
use crate::link::{Frame, Link};
use crate::random::Random;
use crate::scene::{Address, Scene, Volatile};

/// Most publishes without an answer: within the dedup window of the broker (P-38).
const WINDOW_MAX: usize = 200;
/// Most messages of a frame.
const BATCH_MAX: u64 = 24;
/// Bytes at the start of a payload that name the message.
const NAME_BYTES: usize = 16;

/// A publish that may have to be repeated.
#[derive(Debug)]
struct Kept {
    sequence: u64,
    /// The message, padded.
    bytes: Vec<u8>,
    length: usize,
    address: Address,
    /// Not refused.
    is_open: bool,
}

/// A producer and what it has not been answered.
pub struct Producer {
    id: u64,
    epoch: u32,
    level: Level,
    volatile: Volatile,
    random: Random,
    /// Sequence of the next new publish.
    next: u64,
    /// Publishes from the oldest without an outcome on, without gaps.
    kept: VecDeque<Kept>,
    /// Place in `kept` of the next to be sent on this channel.
    cursor: usize,
    /// Bytes of the large message at the cursor that were sent.
    pieces_sent: usize,
    /// Every outcome up to here is known.
    confirmed: u64,
    messages: u64,
    bytes: u64,
    credit_messages: u64,
    credit_bytes: u64,
    channel: u16,
    is_open: bool,
    /// Publishes that may still be made, over all connections.
    budget: u64,
}

/// The hash of a message as the history names it.
#[must_use]
pub fn hash_of(message: &[u8]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64 ^ message.len() as u64;
    for chunk in message.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^= hash >> 29;
    }
    hash
}

/// The name that a payload starts with; of one that has none, that of a message nobody sent.
#[must_use]
pub fn name_of(payload: &[u8]) -> MessageId {
    let word = |at: usize| {
        payload
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    MessageId {
        producer: word(0),
        sequence: word(8),
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("id", &format_args!("{:x}", self.id))
            .field("epoch", &self.epoch)
            .field("level", &self.level)
            .field("next", &self.next)
            .field("confirmed", &self.confirmed)
            .field("kept", &self.kept.len())
            .field("cursor", &self.cursor)
            .field("pieces_sent", &self.pieces_sent)
            .field("messages", &(self.messages, self.credit_messages))
            .field("bytes", &(self.bytes, self.credit_bytes))
            .finish_non_exhaustive()
    }
}

impl Producer {
    /// A new producer of a level that may publish `budget` messages.
    #[must_use]
    pub fn new(random: &mut Random, level: Level, volatile: Volatile, budget: u64) -> Self {
        Self {
            id: random.number() | 1,
            epoch: 0,
            level,
            volatile,
            random: random.fork(),
            next: 1,
            kept: VecDeque::new(),
            cursor: 0,
            pieces_sent: 0,
            confirmed: 0,
            messages: 0,
            bytes: 0,
            credit_messages: 0,
            credit_bytes: 0,
            channel: 0,
            is_open: false,
            budget,
        }
    }

    /// Whether every publish has its outcome.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.kept.iter().all(|kept| !kept.is_open)
    }

    /// Allows this many publishes from here on.
    pub fn allow(&mut self, budget: u64) {
        self.budget = budget;
    }

    /// Opens it on a channel of a connection.
    pub fn open(&mut self, link: &mut Link, channel: u16) {
        self.epoch += 1;
        self.channel = channel;
        self.is_open = false;
        (self.messages, self.bytes) = (0, 0);
        (self.credit_messages, self.credit_bytes) = (0, 0);
        self.cursor = 0;
        self.pieces_sent = 0;
        for kept in &mut self.kept {
            // What was refused lies between others that have no answer: all are sent again (P-32).
            kept.is_open = true;
        }
        let open = ProducerOpen {
            producer: self.id,
            epoch: self.epoch,
            level: self.level as u8,
            flags: match self.volatile {
                Volatile::Allow => PRODUCER_DOWNGRADE,
                Volatile::Avoid => 0,
            },
            reserved: 0,
        };
        let id = link.request();
        link.send(
            &open,
            FrameHeader::bare(FrameKind::ProducerOpen, channel, id),
        );
    }

    /// Its channel is gone: what was not answered never will be.
    pub fn gone(&mut self, history: &History) {
        let unknown = |kept: &Kept| Event::Unknown {
            message: MessageId {
                producer: self.id,
                sequence: kept.sequence,
            },
        };
        let sent = self
            .kept
            .iter()
            .take(self.cursor + usize::from(self.pieces_sent > 0));
        history.record(sent.filter(|kept| kept.is_open).map(unknown));
        self.is_open = false;
        if self.level == Level::None || self.random.percent(15) {
            // Nobody repeats what this one published: another comes in its place.
            self.id = self.random.number() | 1;
            self.epoch = 0;
            self.next = 1;
            self.confirmed = 0;
            self.kept.clear();
        }
    }

    /// Publishes what it may.
    pub fn publish(&mut self, link: &mut Link, scene: &Scene, history: &History) {
        if !self.is_open {
            return;
        }
        if self.pieces_sent > 0 && !self.send_pieces(link) {
            return;
        }
        let frame_max = self.random.between(1, BATCH_MAX);
        let mut body = Vec::new();
        let mut first = 0;
        let mut count = 0;
        while count < frame_max && self.has_next(scene) {
            let kept = &self.kept[self.cursor];
            let size = kept.bytes.len();
            let is_large = kept.length > FRAGMENT_BYTES_MAX;
            let has_credit = self.messages < self.credit_messages
                && self.bytes + (size.min(FRAGMENT_BYTES_MAX) as u64) <= self.credit_bytes;
            if !has_credit || body.len() + size > FRAGMENT_BYTES_MAX && !body.is_empty() {
                break;
            }
            if is_large && count > 0 {
                break;
            }
            // Said before the first byte leaves: whoever sees the message sees it afterwards.
            history.record([Event::Sent {
                message: MessageId {
                    producer: self.id,
                    sequence: kept.sequence,
                },
                hash: hash_of(&kept.bytes[..kept.length]),
                level: self.level,
                targets: scene.targets(kept.address),
            }]);
            if is_large {
                self.messages += 1;
                self.send_pieces(link);
                return;
            }
            if count == 0 {
                first = kept.sequence;
            }
            body.extend_from_slice(&kept.bytes);
            count += 1;
            self.messages += 1;
            self.bytes += size as u64;
            self.cursor += 1;
        }
        if count > 0 {
            let header = FrameHeader {
                count: count as u32,
                ..FrameHeader::bare(FrameKind::Publish, self.channel, first)
            };
            link.send_frame(header, &body);
            self.forget();
        }
    }

    /// Whether there is something to send at the cursor; makes a new message if there is not.
    fn has_next(&mut self, scene: &Scene) -> bool {
        if self.cursor < self.kept.len() {
            return true;
        }
        if self.budget == 0 || self.kept.len() >= WINDOW_MAX {
            return false;
        }
        self.budget -= 1;
        let address = scene.address(&mut self.random, self.volatile);
        let payload_bytes = match self.random.below(400) {
            0 => self.random.between(196_000, 500_000),
            1..=20 => self.random.between(4_000, 40_000),
            _ => self.random.between(NAME_BYTES as u64, 900),
        };
        let mut payload = Vec::with_capacity(payload_bytes as usize + 8);
        payload.extend_from_slice(&self.id.to_le_bytes());
        payload.extend_from_slice(&self.next.to_le_bytes());
        while payload.len() < payload_bytes as usize {
            payload.extend_from_slice(&self.random.number().to_le_bytes());
        }
        payload.truncate(payload_bytes as usize);
        let parts = MessageParts {
            exchange: address.exchange.as_bytes(),
            routing_key: address.key.as_bytes(),
            payload: &payload,
            ..MessageParts::default()
        };
        let mut bytes = Vec::with_capacity(parts.padded_length());
        parts.write(&mut bytes).expect("its parts are short");
        self.kept.push_back(Kept {
            sequence: self.next,
            bytes,
            length: parts.length(),
            address,
            is_open: self.level != Level::None,
        });
        self.next += 1;
        true
    }

    /// Sends pieces of the large message at the cursor; whether it is through.
    fn send_pieces(&mut self, link: &mut Link) -> bool {
        let kept = &self.kept[self.cursor];
        while self.pieces_sent < kept.length && kept.is_open | (self.level == Level::None) {
            let head = FragmentHead {
                message_bytes: kept.length as u32,
                offset: self.pieces_sent as u32,
            };
            let size = head.piece_bytes();
            if self.bytes + padded(size) as u64 > self.credit_bytes {
                return false;
            }
            let mut body = head.encode().to_vec();
            body.extend_from_slice(&kept.bytes[self.pieces_sent..self.pieces_sent + size]);
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(FrameKind::PublishFragment, self.channel, kept.sequence)
            };
            link.send_frame(header, &body);
            self.bytes += padded(size) as u64;
            self.pieces_sent += size;
        }
        self.pieces_sent = 0;
        self.cursor += 1;
        self.forget();
        true
    }

    /// Drops what has its outcome and needs no repeat.
    fn forget(&mut self) {
        let is_done = |kept: &Kept, confirmed: u64| !kept.is_open || kept.sequence <= confirmed;
        while self.cursor > 0
            && self
                .kept
                .front()
                .is_some_and(|kept| is_done(kept, self.confirmed))
        {
            self.kept.pop_front();
            self.cursor -= 1;
        }
    }

    /// Takes a frame of its channel.
    ///
    /// # Errors
    /// The broker says what it must not.
    pub fn take(&mut self, frame: &Frame, history: &History) -> Outcome<()> {
        let header = &frame.header;
        match header.kind {
            FrameKind::ProducerOpened => self.opened(frame),
            FrameKind::ProducerCredit => self.credit(frame),
            FrameKind::Confirm => {
                self.credit(frame)?;
                self.confirm(header, history)
            }
            FrameKind::Refused => {
                self.refuse(frame, history);
                Ok(())
            }
            FrameKind::ProducerClosed | FrameKind::Failed => {
                let (code, reason) = frame.failure();
                if matches!(code, Code::ShuttingDown | Code::JournalFailed) {
                    self.is_open = false;
                    return Ok(());
                }
                Err(format!("a producer ended: {code}: {reason}"))
            }
            other => Err(format!("a producer was sent a {other:?}")),
        }
    }

    fn opened(&mut self, frame: &Frame) -> Outcome<()> {
        let opened = ProducerOpened::decode(&frame.body)
            .map_err(|code| format!("ProducerOpened: {code}"))?;
        self.is_open = true;
        self.credit_messages = opened.messages;
        self.credit_bytes = opened.bytes;
        if self.kept.is_empty() {
            self.next = self.next.max(opened.sequence);
            self.confirmed = self.next - 1;
        }
        if opened.sequence > self.next {
            return Err(format!(
                "the broker knows sequence {} of producer {:x}, which has sent none above {}",
                opened.sequence - 1,
                self.id,
                self.next - 1
            ));
        }
        Ok(())
    }

    fn credit(&mut self, frame: &Frame) -> Outcome<()> {
        let credit = ProducerCredit::decode(&frame.body)
            .map_err(|code| format!("ProducerCredit: {code}"))?;
        self.credit_messages = self.credit_messages.max(credit.messages);
        self.credit_bytes = self.credit_bytes.max(credit.bytes);
        Ok(())
    }

    fn confirm(&mut self, header: &FrameHeader, history: &History) -> Outcome<()> {
        let level = match header.flags {
            1 => Level::Volatile,
            2 => Level::Durable,
            other => return Err(format!("a confirm at level {other}")),
        };
        let first = self.kept.front().map_or(self.next, |kept| kept.sequence);
        let sent = first + self.cursor as u64 + u64::from(self.pieces_sent > 0);
        if header.sequence >= sent {
            return Err(format!(
                "a confirm of {}, sent was up to {sent}",
                header.sequence
            ));
        }
        if header.sequence > self.confirmed {
            let first = first.max(self.confirmed + 1);
            if first <= header.sequence {
                history.record([Event::Confirmed {
                    producer: self.id,
                    first,
                    last: header.sequence,
                    level,
                }]);
            }
            self.confirmed = header.sequence;
            self.forget();
        }
        Ok(())
    }

    fn refuse(&mut self, frame: &Frame, history: &History) {
        let (code, _) = frame.failure();
        let last = frame.header.sequence + u64::from(frame.header.count);
        for sequence in frame.header.sequence..last {
            let message = MessageId {
                producer: self.id,
                sequence,
            };
            let why = match code {
                Code::Unroutable => Refusal::Unroutable,
                _ => Refusal::Other,
            };
            history.record([match code {
                Code::JournalFailed | Code::Indeterminate | Code::SequenceTooOld => {
                    Event::Unknown { message }
                }
                _ => Event::Refused { message, why },
            }]);
            if let Some(kept) = self.kept.iter_mut().find(|kept| kept.sequence == sequence) {
                kept.is_open = false;
            }
        }
        self.forget();
    }
}

/// The messages of a `Deliver` frame.
///
/// # Errors
/// They are not messages.
pub fn messages_of(body: &[u8]) -> Outcome<(DeliverHead, Vec<(MessageId, u64)>)> {
    let (head, messages) = DeliverHead::split(body).map_err(|code| format!("Deliver: {code}"))?;
    let mut names = Vec::new();
    for message in ringpost_wire::Messages::new(messages) {
        let message = message.map_err(|code| format!("a delivered message: {code}"))?;
        let length = message.envelope.length();
        names.push((
            name_of(message.envelope.payload()),
            hash_of(&message.bytes[..length]),
        ));
    }
    Ok((head, names))
}
