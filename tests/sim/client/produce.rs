//! What a client does as a producer: opens, publishes against credit, publishes again what has no
//! outcome, and checks every answer. Does not know consumers or routing.

use std::collections::{BTreeMap, VecDeque};

use ringpost_check::{Event, Level, MessageId, Refusal};
use ringpost_wire::control::{self, Body, Failure, ProducerCredit, ProducerOpen, ProducerOpened};
use ringpost_wire::{
    Code, ENVELOPE_BYTES, FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FragmentHead, FrameHeader,
    FrameKind, MessageParts, envelope, frame, header, padded,
};

use super::{Channel, Client, Link, Request, topology};
use crate::engine;
use crate::model::{self, Headers};
use crate::plan::{Fault, Leaning, Mode};
use crate::random::{Hash, Random};
use crate::say;
use crate::scene::{Routed, Scene};

/// Publishes without an outcome that a client keeps before it gives a producer up.
const KEPT_MAX: usize = 300;
/// Largest payload of a message that goes nowhere: with some of them a producer that does not get back
/// what was refused has no credit left.
const REFUSED_BYTES_MAX: u64 = 60_000;
/// Publishes that a producer has given up and may ask after later.
const GIVEN_UP_MAX: usize = 8;
/// Sequences that a producer may leave out when it goes on: a few windows of what brokers remember.
const LEFT_OUT_MAX: u64 = 3_000;
/// Publishes that a producer keeps in mind, to ask a window behind one of them later.
const LANDMARKS_MAX: usize = 24;
/// Bytes of a journal that clients do not fill with messages of ordinary lengths.
const JOURNAL_BYTES_PLENTY: u64 = 8 << 20;
/// Sequences back to which every broker remembers (P-38).
const REMEMBERED: u64 = 1_024;
/// The top of `timestamp_us` in every message of the simulator: the rest names the message.
const TAG_TOP: u64 = 0x51F0;

/// What is known of a publish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Not sent on this channel.
    Kept,
    /// Sent, not answered.
    Waiting,
    /// Confirmed or refused.
    Settled,
    /// Never to be answered.
    Unknown,
}

#[derive(Debug)]
struct Publish {
    sequence: u64,
    /// The message, padded.
    bytes: Vec<u8>,
    length: usize,
    mandatory: bool,
    exchange: String,
    key: String,
    headers: Headers,
    fate: Fate,
}

impl Publish {
    /// Its way, of which nothing is known yet.
    fn routed(&self, tenant: usize, level: Level) -> Routed {
        Routed {
            tenant,
            exchange: self.exchange.clone(),
            key: self.key.clone(),
            headers: self.headers.clone(),
            hash: Hash::of(&self.bytes[..self.length]),
            level,
            may_lack: false,
            may_miss: false,
            may_be_full: false,
            may_be_volatile: false,
            fans_out: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Closed,
    Opening,
    Open,
    Closing,
    /// Never opened again.
    Retired,
}

/// A producer, through all its channels.
#[derive(Debug)]
pub struct Producer {
    id: u64,
    epoch: u32,
    level: Level,
    downgrade: bool,
    channel: u16,
    state: State,
    /// Sequence of the next new publish.
    next: u64,
    /// What is numbered below may have been stored before it was opened.
    known_before: u64,
    /// Publishes from the oldest without an outcome on.
    kept: VecDeque<Publish>,
    /// Index into `kept` of the next to be sent on this channel.
    cursor: usize,
    /// Bytes of the large message at the cursor that were sent.
    pieces_sent: u32,
    /// Last sequence that went out on this channel.
    sent: u64,
    confirmed: u64,
    messages: u64,
    bytes: u64,
    credit_messages: u64,
    credit_bytes: u64,
    /// Published against the rules: never opened again.
    is_spoiled: bool,
    /// Publishes without an outcome that it went on without.
    given_up: Vec<Publish>,
    /// This channel is for one of those, and for nothing else.
    is_asking: bool,
    /// Sequences that it never used, first and last.
    left_out: Vec<(u64, u64)>,
    /// The last publish to each queue by its name.
    newest: BTreeMap<String, u64>,
    /// What that was when a channel was opened.
    landmarks: VecDeque<(String, u64)>,
}

/// The number that names a message in its own envelope.
#[must_use]
pub fn tag_of(message: MessageId) -> u64 {
    TAG_TOP << 48 | (message.producer & 0xFFFF) << 32 | (message.sequence & 0xFFFF_FFFF)
}

impl Producer {
    fn new(id: u64, epoch: u32, level: Level, downgrade: bool) -> Self {
        Self {
            id,
            epoch,
            level,
            downgrade,
            channel: 0,
            state: State::Closed,
            next: 1,
            known_before: 1,
            kept: VecDeque::new(),
            cursor: 0,
            pieces_sent: 0,
            sent: 0,
            confirmed: 0,
            messages: 0,
            bytes: 0,
            credit_messages: 0,
            credit_bytes: 0,
            is_spoiled: false,
            given_up: Vec::new(),
            is_asking: false,
            left_out: Vec::new(),
            newest: BTreeMap::new(),
            landmarks: VecDeque::new(),
        }
    }

    /// What stays in its place where it was handed on.
    fn retired(&self) -> Self {
        Self {
            state: State::Retired,
            ..Self::new(self.id, self.epoch, self.level, self.downgrade)
        }
    }

    fn message(&self, sequence: u64) -> MessageId {
        MessageId {
            producer: self.id,
            sequence,
        }
    }

    /// Its channel is gone: what was not answered never will be.
    pub fn gone(&mut self, scene: &mut Scene) {
        for publish in &mut self.kept {
            if publish.fate == Fate::Waiting {
                publish.fate = Fate::Unknown;
                scene.left_unanswered(MessageId {
                    producer: self.id,
                    sequence: publish.sequence,
                });
            }
        }
        self.pieces_sent = 0;
        if self.is_asking {
            self.is_asking = false;
            let asked = self.kept.drain(..).filter(|p| p.fate != Fate::Settled);
            self.given_up.extend(asked);
        }
        if self.state != State::Retired {
            self.state = State::Closed;
        }
        scene.forget_producer(self.id);
        if self.level == Level::None || self.kept.len() > KEPT_MAX || self.is_spoiled {
            // Nobody knows where it stands; a new one is started instead.
            self.retire();
        }
        self.forget_settled();
        self.cursor = 0;
    }

    fn retire(&mut self) {
        self.state = State::Retired;
        self.kept.clear();
        self.given_up.clear();
    }

    /// Goes on without what has no outcome, where the broker says that it may or further on (P-32).
    fn give_up(&mut self, next: u64) {
        for publish in self.kept.drain(..) {
            let has_room = self.given_up.len() < GIVEN_UP_MAX;
            let is_small = publish.length <= FRAGMENT_BYTES_MAX;
            if publish.fate == Fate::Unknown && is_small && has_room {
                self.given_up.push(publish);
            }
        }
        self.next = self.next.max(next);
    }

    /// Goes on further than it must (P-32): as likely as not just beyond a window behind a landmark, so
    /// that the sequence which the broker keeps in the same place is one of those left out.
    fn leave_out(&mut self, random: &mut Random) {
        let aimed = match self.landmarks.is_empty() || random.coin() {
            true => None,
            false => {
                let (_, landmark) = self.landmarks[random.index(self.landmarks.len())];
                (landmark + REMEMBERED + random.within(1..=8)).checked_sub(self.next)
            }
        };
        let count = match aimed {
            Some(count) if count > 0 => count,
            _ => random.scale(1..=LEFT_OUT_MAX),
        };
        self.left_out.push((self.next, self.next + count - 1));
        self.next += count;
    }

    /// A sequence that was left out about a window before the last publish to a queue, or a window behind
    /// an older one, with that queue: where what is new and what is known may be mistaken for each other.
    fn window_away(&self, random: &mut Random) -> Option<(u64, String)> {
        let is_left_out = |sequence: u64| {
            let within = |(first, last): &(u64, u64)| (*first..=*last).contains(&sequence);
            self.left_out.iter().any(within)
        };
        let mut found = Vec::new();
        for (queue, newest) in &self.newest {
            // One more than a window, a window, and one less.
            let before = (newest + 1).checked_sub(REMEMBERED + random.below(3));
            found.extend(before.map(|sequence| (sequence, queue)));
        }
        for (queue, landmark) in &self.landmarks {
            found.push((landmark + REMEMBERED, queue));
        }
        found.retain(|(sequence, _)| is_left_out(*sequence));
        if found.is_empty() {
            return None;
        }
        let (sequence, queue) = *random.pick(&found);
        Some((sequence, queue.clone()))
    }

    /// A sequence that was left out is used after all.
    fn use_left_out(&mut self, sequence: u64) {
        let ranges = core::mem::take(&mut self.left_out).into_iter();
        self.left_out = ranges
            .flat_map(|(first, last)| match (first..=last).contains(&sequence) {
                true => [(first, sequence - 1), (sequence + 1, last)],
                false => [(first, last), (1, 0)],
            })
            .filter(|(first, last)| first <= last)
            .collect();
    }

    /// A new channel is open: what was published before is a landmark.
    fn set_landmarks(&mut self) {
        for (queue, newest) in &self.newest {
            if self.landmarks.iter().all(|(_, known)| known != newest) {
                self.landmarks.push_back((queue.clone(), *newest));
            }
        }
        let many = self.landmarks.len().saturating_sub(LANDMARKS_MAX);
        self.landmarks.drain(..many);
    }

    fn forget_settled(&mut self) {
        while self.cursor > 0 && self.kept.front().is_some_and(|p| p.fate == Fate::Settled) {
            self.kept.pop_front();
            self.cursor -= 1;
        }
    }
}

impl Client {
    /// Opens or closes a producer.
    pub(super) fn manage_producers(&mut self, scene: &mut Scene) {
        let open: Vec<usize> = self.producers_in(State::Open);
        let closed = self.producers_in(State::Closed);
        let opening = self.producers_in(State::Opening);
        if open.len() + opening.len() < scene.plan.producers_max
            && (open.is_empty() || self.random.below(4) == 0)
        {
            let Some(channel) = self.free_channel() else {
                return;
            };
            let at = if !closed.is_empty() && self.random.below(4) > 0 {
                *self.random.pick(&closed)
            } else {
                self.new_producer(scene)
            };
            self.open_producer(at, channel, scene);
        } else if !open.is_empty() && self.random.below(6) == 0 {
            let at = *self.random.pick(&open);
            match self.random.below(6) {
                _ if scene.plan.leaning == Leaning::Epochs => self.hand_on(at, scene),
                0..2 => self.take_over(at, scene),
                2..4 => self.hand_on(at, scene),
                _ => self.close_producer(at, scene),
            }
        }
    }

    /// Leaves a producer to whichever client opens it next, on a connection of its own: what this one has
    /// sent meets the newer epoch on its way, on every core (P-30).
    fn hand_on(&mut self, at: usize, scene: &mut Scene) {
        if !self.may_be_taken_over(at) || self.producers[at].is_asking || scene.plan.clients < 2 {
            return;
        }
        self.publish_with(at, scene);
        scene.marks.hit("client hands a producer on");
        self.channels
            .insert(self.producers[at].channel, Channel::Fenced);
        self.producers[at].gone(scene);
        let left = self.producers[at].retired();
        let producer = core::mem::replace(&mut self.producers[at], left);
        say!(
            scene,
            "client {}: hands producer {:x} on",
            self.id,
            producer.id
        );
        scene.handed_on.push((self.tenant, self.id, producer));
    }

    /// Goes on with a producer that another client has left; false if there is none.
    pub(super) fn take_on(&mut self, scene: &mut Scene) -> bool {
        let is_for_us = |(tenant, client, _): &(usize, usize, Producer)| {
            *tenant == self.tenant && *client != self.id
        };
        let Some(idx) = scene.handed_on.iter().position(is_for_us) else {
            return false;
        };
        let Some(channel) = self.free_channel() else {
            return false;
        };
        let (_, _, producer) = scene.handed_on.remove(idx);
        self.producers.push(producer);
        self.open_producer(self.producers.len() - 1, channel, scene);
        true
    }

    fn may_be_taken_over(&self, at: usize) -> bool {
        let producer = &self.producers[at];
        producer.level != Level::None && producer.kept.len() <= KEPT_MAX
    }

    /// Opens a producer again that is open: the newer epoch ends the older (P-30).
    fn take_over(&mut self, at: usize, scene: &mut Scene) {
        if !self.may_be_taken_over(at) {
            return;
        }
        let Some(channel) = self.free_channel() else {
            return;
        };
        scene.marks.hit("client takes a producer over");
        self.channels
            .insert(self.producers[at].channel, Channel::Fenced);
        self.producers[at].gone(scene);
        self.open_producer(at, channel, scene);
    }

    fn producers_in(&self, state: State) -> Vec<usize> {
        (0..self.producers.len())
            .filter(|at| self.producers[*at].state == state)
            .collect()
    }

    fn new_producer(&mut self, scene: &mut Scene) -> usize {
        let level = match self.random.below(10) {
            0 => Level::None,
            1..3 => Level::Volatile,
            _ => Level::Durable,
        };
        let epoch = self.random.below(3) as u32;
        let downgrade = self.random.below(3) == 0;
        let producer = Producer::new(scene.new_producer(), epoch, level, downgrade);
        self.producers.push(producer);
        self.producers.len() - 1
    }

    fn open_producer(&mut self, at: usize, channel: u16, scene: &mut Scene) {
        let id = self.request(Request::ProducerOpen(at));
        let producer = &mut self.producers[at];
        producer.epoch += 1;
        producer.state = State::Opening;
        producer.channel = channel;
        producer.cursor = 0;
        (producer.messages, producer.bytes) = (0, 0);
        (producer.credit_messages, producer.credit_bytes) = (0, 0);
        let body = ProducerOpen {
            producer: producer.id,
            epoch: producer.epoch,
            level: producer.level as u8,
            flags: if producer.downgrade {
                control::PRODUCER_DOWNGRADE
            } else {
                0
            },
            reserved: 0,
        };
        let head = FrameHeader::bare(FrameKind::ProducerOpen, channel, id);
        body.write(&mut self.out, head);
        self.channels.insert(channel, Channel::Producer(at));
        say!(
            scene,
            "client {}: opens producer {:x} epoch {} on channel {channel}",
            self.id,
            self.producers[at].id,
            self.producers[at].epoch
        );
    }

    fn close_producer(&mut self, at: usize, scene: &mut Scene) {
        if self.producers[at].pieces_sent > 0 {
            return;
        }
        let id = self.request(Request::ProducerClose(at));
        let producer = &mut self.producers[at];
        producer.state = State::Closing;
        let channel = producer.channel;
        frame::write_bare(&mut self.out, FrameKind::ProducerClose, channel, id);
        say!(
            scene,
            "client {}: closes producer on channel {channel}",
            self.id
        );
    }

    /// Publishes a batch on some open producer, or a piece of a large message.
    pub(super) fn publish(&mut self, scene: &mut Scene) {
        let open = self.producers_in(State::Open);
        if open.is_empty() {
            return self.manage_producers(scene);
        }
        let at = *self.random.pick(&open);
        self.publish_with(at, scene);
    }

    fn publish_with(&mut self, at: usize, scene: &mut Scene) {
        let batch_max = if scene.plan.faults.has(Fault::TinyCredit) {
            1
        } else {
            40
        };
        let among = match scene.plan.leaning {
            Leaning::Epochs => self.known_queues(at, scene),
            _ => self.few_queues(scene),
        };
        let mut batch = match among.is_empty() || scene.plan.leaning == Leaning::Epochs {
            true => self.random.scale(1..=batch_max),
            false => batch_max,
        };
        let mandatory = self.random.below(4) == 0;
        let channel = self.producers[at].channel;
        let mut body = Vec::new();
        let (mut first, mut count, mut frame_mandatory) = (0, 0, false);
        while batch > 0 {
            batch -= 1;
            if self.producers[at].cursor == self.producers[at].kept.len() {
                if self.producers[at].is_asking {
                    let is_waiting = |p: &Publish| p.fate == Fate::Waiting;
                    if count == 0 && !self.producers[at].kept.iter().any(is_waiting) {
                        self.close_producer(at, scene);
                    }
                    break;
                }
                if scene.published >= scene.plan.publishes
                    || self.producers[at].kept.len() > KEPT_MAX
                {
                    break;
                }
                if scene.plan.faults.has(Fault::LargeMessages)
                    && self.random.chance(scene.plan.large_rate)
                {
                    self.new_publish(at, mandatory, true, &among, scene);
                } else {
                    self.new_publish(at, mandatory, false, &among, scene);
                }
            }
            let producer = &self.producers[at];
            let publish = &producer.kept[producer.cursor];
            if publish.length > FRAGMENT_BYTES_MAX {
                if count == 0 {
                    self.publish_pieces(at, scene);
                }
                break;
            }
            let fits = producer.messages < producer.credit_messages
                && producer.bytes + publish.bytes.len() as u64 <= producer.credit_bytes
                && body.len() + publish.bytes.len() + 32 <= FRAME_BYTES_MAX;
            if !fits {
                scene.marks.hit("client waits for credit");
                break;
            }
            if count > 0 && publish.mandatory != frame_mandatory {
                break;
            }
            if count == 0 {
                first = publish.sequence;
                frame_mandatory = publish.mandatory;
            }
            count += 1;
            body.extend_from_slice(&publish.bytes);
            self.goes_out(at, scene);
        }
        if count > 0 {
            let head = FrameHeader {
                flags: if frame_mandatory {
                    header::PUBLISH_MANDATORY
                } else {
                    0
                },
                count,
                body_bytes: body.len() as u32,
                ..FrameHeader::bare(FrameKind::Publish, channel, first)
            };
            say!(
                scene,
                "client {}: publishes {first}..{} on channel {channel}",
                self.id,
                first + u64::from(count)
            );
            self.out.extend_from_slice(&head.encode());
            self.out.extend_from_slice(&body);
        }
    }

    /// The publish at the cursor is sent: accounts for it and tells the scene.
    fn goes_out(&mut self, at: usize, scene: &mut Scene) {
        let tenant = self.tenant;
        let producer = &mut self.producers[at];
        let publish = &mut producer.kept[producer.cursor];
        producer.cursor += 1;
        producer.messages += 1;
        producer.sent = publish.sequence;
        if publish.exchange.is_empty() && publish.length <= FRAGMENT_BYTES_MAX {
            let newest = producer.newest.entry(publish.key.clone()).or_default();
            *newest = publish.sequence.max(*newest);
        }
        if publish.length <= FRAGMENT_BYTES_MAX {
            producer.bytes += publish.bytes.len() as u64;
        }
        publish.fate = if producer.level == Level::None {
            Fate::Settled
        } else {
            Fate::Waiting
        };
        let message = MessageId {
            producer: producer.id,
            sequence: publish.sequence,
        };
        say!(
            scene,
            "  to {:?} key {:?} headers {:?} mandatory {}",
            publish.exchange,
            publish.key,
            publish.headers,
            publish.mandatory
        );
        let routed = publish.routed(tenant, producer.level);
        let terms = envelope::terms_of(&publish.bytes).expect("it has an envelope");
        let now = scene.now;
        scene
            .times
            .sent(message, now, terms.delay_ms, terms.priority);
        scene.sent(message, routed);
    }

    /// Sends pieces of the large message at the cursor as far as credit goes.
    fn publish_pieces(&mut self, at: usize, scene: &mut Scene) {
        for _ in 0..2 {
            let producer = &self.producers[at];
            let Some(publish) = producer.kept.get(producer.cursor) else {
                return;
            };
            let piece_head = FragmentHead {
                message_bytes: publish.length as u32,
                offset: producer.pieces_sent,
            };
            let piece_bytes = piece_head.piece_bytes();
            let is_first = producer.pieces_sent == 0;
            if (is_first && producer.messages >= producer.credit_messages)
                || producer.bytes + padded(piece_bytes) as u64 > producer.credit_bytes
            {
                scene.marks.hit("client waits for credit");
                return;
            }
            let mut body = piece_head.encode().to_vec();
            let offset = piece_head.offset as usize;
            body.extend_from_slice(&publish.bytes[offset..offset + piece_bytes]);
            let mandatory = publish.mandatory && is_first;
            let head = FrameHeader {
                flags: if mandatory {
                    header::PUBLISH_MANDATORY
                } else {
                    0
                },
                count: 1,
                ..FrameHeader::bare(
                    FrameKind::PublishFragment,
                    producer.channel,
                    publish.sequence,
                )
            };
            frame::write(&mut self.out, head, &body);
            scene.marks.hit("client publishes a piece");
            let producer = &mut self.producers[at];
            producer.bytes += padded(piece_bytes) as u64;
            if is_first {
                // From its first byte on it may be refused; it is accounted for once.
                self.goes_out(at, scene);
                self.producers[at].cursor -= 1;
            }
            let producer = &mut self.producers[at];
            if piece_head.is_last() {
                producer.pieces_sent = 0;
                producer.cursor += 1;
                return;
            }
            producer.pieces_sent = piece_head.offset + piece_bytes as u32;
        }
    }

    /// Now and then the few queues that a batch goes to, by turns and again and again: those whose
    /// messages the broker puts together.
    fn few_queues(&mut self, scene: &Scene) -> Vec<String> {
        let names = self.queues_without_limit(scene);
        if names.is_empty() || self.random.below(4) > 0 {
            return Vec::new();
        }
        let count = self.random.within(1..=3);
        (0..count)
            .map(|_| (*self.random.pick(&names)).clone())
            .collect()
    }

    /// Two queues that the producer has published to, maybe under an older epoch, or else any.
    fn known_queues(&mut self, at: usize, scene: &Scene) -> Vec<String> {
        let mut names = self.queues_without_limit(scene);
        names.retain(|name| self.producers[at].newest.contains_key(*name));
        names.truncate(2);
        match names.is_empty() {
            true => self.few_queues(scene),
            false => names.into_iter().cloned().collect(),
        }
    }

    fn queues_without_limit<'s>(&self, scene: &'s Scene) -> Vec<&'s String> {
        let queues = scene.models[self.tenant].queues.iter();
        let has_limit =
            |queue: &model::Queue| queue.settings.messages_max + queue.settings.bytes_max > 0;
        let names = queues.filter(|(_, queue)| !has_limit(queue));
        names.map(|(name, _)| name).collect()
    }

    /// Makes up a message: every field drawn anew.
    fn new_publish(
        &mut self,
        at: usize,
        mandatory: bool,
        is_large: bool,
        among: &[String],
        scene: &mut Scene,
    ) {
        let random = &mut self.random;
        let model = &scene.models[self.tenant];
        let exchanges: Vec<&String> = model.exchanges.keys().collect();
        let routed = match scene.plan.leaning.fans_out() {
            true => 17,
            false => 11,
        };
        let (exchange, key, headers) = match random.below(20) {
            0 => (
                format!("nowhere-{}", random.below(3)),
                "k".into(),
                Headers::new(),
            ),
            draw if draw < routed && !exchanges.is_empty() => {
                let exchange = (*random.pick(&exchanges)).clone();
                let headers = topology::draw_headers(random);
                (exchange, topology::draw_key(random, false), headers)
            }
            _ => (String::new(), String::new(), Headers::new()),
        };
        let is_among = !among.is_empty() && random.below(8) > 0;
        let (exchange, headers) = match is_among {
            true => (String::new(), Headers::new()),
            false => (exchange, headers),
        };
        let key = if is_among {
            random.pick(among).clone()
        } else if exchange.is_empty() {
            self.queue_name(scene)
        } else {
            key
        };
        let random = &mut self.random;
        let header_bytes = topology::encode_headers(&headers, random);
        let payload_bytes = if is_large {
            let room = u64::from(self.welcome.message_bytes_max).min(700_000);
            if room <= FRAGMENT_BYTES_MAX as u64 + 2000 {
                return self.new_publish(at, mandatory, false, among, scene);
            }
            // Just as large as they must be, so that credit is left for what follows them.
            let most = match scene.plan.leaning == Leaning::Large && random.coin() {
                true => FRAGMENT_BYTES_MAX as u64 + 1_000,
                false => room - 1_000,
            };
            random.within(FRAGMENT_BYTES_MAX as u64..=most)
        } else if exchange.starts_with("nowhere") && random.below(4) == 0 {
            // What is refused gives its credit back, too: seldom is so much refused that it shows.
            random.within(1..=REFUSED_BYTES_MAX)
        } else {
            random.scale(1..=scene.plan.payload_max + 1) - 1
        } as usize;
        let mut payload = vec![0u8; payload_bytes];
        let fill = random.bits();
        for (idx, byte) in payload.iter_mut().enumerate() {
            *byte = (fill >> (idx % 8 * 8)) as u8 ^ (idx / 8) as u8;
        }
        let properties = vec![0x80; random.scale(1..=40) as usize - 1];
        let delay_ms = match scene.plan.faults.has(Fault::Times) && random.below(5) == 0 {
            true => random.scale(1..=5_000) as u32,
            false => 0,
        };
        let producer = &mut self.producers[at];
        let sequence = producer.next;
        let mut bytes = Vec::new();
        let parts = MessageParts {
            exchange: exchange.as_bytes(),
            routing_key: key.as_bytes(),
            properties: &properties,
            headers: &header_bytes,
            payload: &payload,
            priority: random.below(10) as u8,
            timestamp_us: tag_of(producer.message(sequence)),
            ttl_ms: 0,
            delay_ms,
            hops: 0,
        };
        let length = parts.length();
        parts
            .write(&mut bytes)
            .expect("every part is within its limit");
        assert!(length >= ENVELOPE_BYTES, "a message has an envelope");
        producer.next += 1;
        producer.kept.push_back(Publish {
            sequence,
            bytes,
            length,
            mandatory,
            exchange,
            key,
            headers,
            fate: Fate::Kept,
        });
        scene.published += 1;
    }

    /// Publishes against a rule; whatever the batch held has no outcome for sure.
    pub(super) fn publish_wrongly(&mut self, scene: &mut Scene) {
        let open = self.producers_in(State::Open);
        if open.is_empty() {
            return;
        }
        let at = *self.random.pick(&open);
        let (channel, confirmed) = (self.producers[at].channel, self.producers[at].confirmed);
        let kind = match self.random.below(4) {
            1 if self.producers[at].messages == 0 => 0,
            2 if self.producers[at].credit_bytes - self.producers[at].bytes > 16 << 20 => 0,
            kind => kind,
        };
        let sequence = match kind {
            // A gap far beyond what was published, and one that was published before.
            0 => self.producers[at].next + 1000,
            1 => confirmed.max(1),
            _ => self.producers[at].next,
        };
        let payload = vec![7; if kind == 2 { 190_000 } else { 10 }];
        let mut bytes = Vec::new();
        let parts = MessageParts {
            routing_key: b"no such queue",
            payload: &payload,
            ..MessageParts::default()
        };
        parts
            .write(&mut bytes)
            .expect("every part is within its limit");
        if kind == 3 {
            let byte = self.random.index(bytes.len());
            bytes[byte] ^= 0x10;
        }
        let room = self.producers[at].credit_bytes - self.producers[at].bytes;
        let copies = if kind == 2 { room / 190_000 + 1 } else { 1 };
        for copy in 0..copies {
            let head = FrameHeader {
                count: 1,
                body_bytes: bytes.len() as u32,
                ..FrameHeader::bare(FrameKind::Publish, channel, sequence + copy)
            };
            self.out.extend_from_slice(&head.encode());
            self.out.extend_from_slice(&bytes);
            frame::pad(&mut self.out);
        }
        // Part of it may be taken: the producer's sequences mean nothing any more.
        self.producers[at].is_spoiled = true;
        self.producers[at].state = State::Closing;
        say!(scene, "client {}: publishes wrongly, kind {kind}", self.id);
    }

    pub(super) fn on_producer_frame(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        if let Some(Channel::Fenced) = self.channels.get(&head.channel) {
            return self.on_fenced(head, body, scene);
        }
        let Some(Channel::Producer(at)) = self.channels.get(&head.channel) else {
            return if self.is_guilty {
                Ok(())
            } else {
                Err("no producer is on this channel".into())
            };
        };
        let at = *at;
        match head.kind {
            FrameKind::ProducerOpened => self.on_producer_opened(at, head, body, scene),
            FrameKind::Confirm => self.on_confirm(at, head, body, scene),
            FrameKind::Refused => self.on_refused(at, head, body, scene),
            FrameKind::ProducerCredit => {
                let credit = ProducerCredit::decode(body).map_err(|c| format!("credit: {c}"))?;
                self.credit(at, credit.messages, credit.bytes);
                Ok(())
            }
            _ => self.on_producer_closed(at, head, body, scene),
        }
    }

    fn on_producer_opened(
        &mut self,
        at: usize,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let opened = ProducerOpened::decode(body).map_err(|c| format!("opened: {c}"))?;
        match self.requests.remove(&head.sequence) {
            Some(Request::ProducerOpen(asked)) if asked == at => {}
            other => return Err(format!("ProducerOpened answers {other:?}")),
        }
        let producer = &mut self.producers[at];
        if opened.sequence == 0 || opened.sequence > producer.next {
            return Err(format!(
                "ProducerOpened knows sequence {}, the next one is {}",
                opened.sequence, producer.next
            ));
        }
        producer.known_before = opened.sequence;
        producer.state = State::Open;
        producer.cursor = 0;
        producer.pieces_sent = 0;
        producer.sent = 0;
        if producer.kept.iter().any(|p| p.fate == Fate::Unknown) {
            let goes_on = match scene.plan.leaning {
                Leaning::Epochs => self.random.below(4) > 0,
                _ => self.random.below(3) == 0,
            };
            if goes_on {
                scene.marks.hit("client goes on without an outcome");
                producer.give_up(opened.sequence);
                if self.random.coin() {
                    producer.leave_out(&mut self.random);
                }
            }
        } else if producer.kept.is_empty() {
            producer.next = producer.next.max(opened.sequence);
            self.ask_or_leave_out(at, scene);
        }
        let producer = &mut self.producers[at];
        producer.set_landmarks();
        if let Some(oldest) = producer.kept.front() {
            scene.marks.hit("client publishes again");
            producer.confirmed = oldest.sequence - 1;
        } else {
            producer.next = producer.next.max(opened.sequence);
            producer.confirmed = producer.next - 1;
        }
        self.credit(at, opened.messages, opened.bytes);
        let may_publish = self.link == Link::Open
            && scene.now >= self.silent_until
            && !scene.is_healthy
            && scene.published < scene.plan.publishes;
        if scene.plan.leaning == Leaning::Epochs && may_publish {
            // At once, while what was sent under an older epoch may still be on its way.
            self.publish_with(at, scene);
        }
        Ok(())
    }

    /// A producer with nothing to publish again asks after something that is long ago, or goes on further
    /// than it must.
    fn ask_or_leave_out(&mut self, at: usize, scene: &mut Scene) {
        let producer = &mut self.producers[at];
        if !producer.given_up.is_empty() && self.random.coin() {
            // Again under its own sequence, however long ago that was (P-39).
            scene.marks.hit("client asks after an old publish");
            let asked = self.random.index(producer.given_up.len());
            let asked = producer.given_up.swap_remove(asked);
            producer.kept.push_back(asked);
            producer.is_asking = true;
        } else if scene.published < scene.plan.publishes
            && self.random.coin()
            && let Some((sequence, queue)) = producer.window_away(&mut self.random)
        {
            scene.marks.hit("client asks a window away");
            self.lose(at, sequence, queue, scene);
            self.producers[at].is_asking = true;
        } else if !producer.newest.is_empty() && self.random.below(4) == 0 {
            producer.leave_out(&mut self.random);
        }
    }

    /// A publish under a sequence that was left out, as if it had been lost on its way: it has no outcome
    /// and is to be published again.
    fn lose(&mut self, at: usize, sequence: u64, queue: String, scene: &mut Scene) {
        let producer = &mut self.producers[at];
        producer.use_left_out(sequence);
        let next = core::mem::replace(&mut producer.next, sequence);
        self.new_publish(at, false, false, &[queue], scene);
        let producer = &mut self.producers[at];
        producer.next = next;
        let publish = producer.kept.back_mut().expect("it was just made up");
        publish.fate = Fate::Unknown;
        let routed = publish.routed(self.tenant, producer.level);
        let message = producer.message(sequence);
        scene.sent(message, routed);
        scene.left_unanswered(message);
    }

    fn credit(&mut self, at: usize, messages: u64, bytes: u64) {
        let producer = &mut self.producers[at];
        producer.credit_messages = producer.credit_messages.max(messages);
        producer.credit_bytes = producer.credit_bytes.max(bytes);
    }

    fn on_confirm(
        &mut self,
        at: usize,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let credit = ProducerCredit::decode(body).map_err(|c| format!("Confirm: {c}"))?;
        self.credit(at, credit.messages, credit.bytes);
        let producer = &mut self.producers[at];
        let level = match head.flags {
            1 => Level::Volatile,
            2 => Level::Durable,
            other => return Err(format!("Confirm at level {other}")),
        };
        if producer.level == Level::None {
            return Err("Confirm for a producer that asked for none".into());
        }
        if level < producer.level && !producer.downgrade {
            return Err(format!(
                "confirmed {level:?}, asked for {:?}",
                producer.level
            ));
        }
        let mut upto = head.sequence;
        let last = producer.sent.max(producer.confirmed);
        if producer.is_spoiled {
            upto = upto.min(last);
        }
        if upto < producer.confirmed || upto > last {
            return Err(format!(
                "Confirm up to {upto}, before it {}, sent up to {last}",
                producer.confirmed
            ));
        }
        say!(
            scene,
            "client {}: producer {:x} confirmed {}..={upto} {level:?}",
            self.id,
            producer.id,
            producer.confirmed + 1
        );
        if upto > producer.confirmed {
            scene.event(Event::Confirmed {
                producer: producer.id,
                first: producer.confirmed + 1,
                last: upto,
                level,
            });
        }
        for publish in &mut producer.kept {
            if publish.sequence > upto {
                break;
            }
            if publish.fate == Fate::Waiting {
                publish.fate = Fate::Settled;
                let message = MessageId {
                    producer: producer.id,
                    sequence: publish.sequence,
                };
                scene.times.confirmed(message, scene.now);
                scene.settled(message);
            }
        }
        producer.confirmed = upto;
        producer.forget_settled();
        Ok(())
    }

    fn on_refused(
        &mut self,
        at: usize,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let failure = Failure::decode(body).map_err(|c| format!("Refused: {c}"))?;
        let code = Code::from_number(failure.code);
        scene.marks.hit(code.word());
        if head.count == 0 {
            return Err("Refused nothing".into());
        }
        for sequence in head.sequence..head.sequence + u64::from(head.count) {
            self.refused(at, sequence, code, scene)?;
        }
        self.producers[at].forget_settled();
        Ok(())
    }

    fn refused(
        &mut self,
        at: usize,
        sequence: u64,
        code: Code,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let message = self.producers[at].message(sequence);
        let producer = &mut self.producers[at];
        say!(scene, "client {}: {message} refused: {code}", self.id);
        let found = producer.kept.iter().position(|p| p.sequence == sequence);
        let is_partial = producer.pieces_sent > 0;
        let Some(idx) = found.filter(|idx| *idx < producer.cursor + usize::from(is_partial)) else {
            return if producer.level == Level::None || self.is_guilty {
                Ok(())
            } else {
                Err(format!(
                    "{message} refused, which was not sent or has its outcome"
                ))
            };
        };
        if is_partial && idx == producer.cursor {
            // The rest of a large message is not wanted.
            producer.pieces_sent = 0;
            producer.cursor += 1;
        }
        let publish = &producer.kept[idx];
        if sequence <= producer.confirmed && producer.level != Level::None {
            return Err(format!("{message} refused after a confirm passed it"));
        }
        let routed = scene.routed(message);
        let may_be_too_old = sequence + REMEMBERED < producer.next;
        let may_be_damaged = scene.plan.mode == Mode::Detect;
        // Few and small slots are a small disk.
        // The dead lie in their queue, and perhaps nobody takes them. A segment that is damaged is not
        // written again, and what a damaged queue holds is not acked.
        let may_lack_space = engine::journal_bytes_max(&scene.plan) < JOURNAL_BYTES_PLENTY
            || scene.tolerates_losses()
            || [
                Fault::NoSpace,
                Fault::FileError,
                Fault::TinySegments,
                Fault::Deaths,
                // What waits for its time can be taken by nobody.
                Fault::Times,
            ]
            .into_iter()
            .any(|fault| scene.plan.faults.has(fault));
        let is_reasonable = match code {
            Code::Unroutable => publish.mandatory,
            Code::ExchangeUnknown => routed.is_none_or(|routed| routed.may_lack),
            Code::QueueUnknown => routed.is_none_or(|routed| routed.may_miss),
            // Volatile queues hold as much as there is memory for.
            Code::QueueFull => {
                routed.is_none_or(|routed| routed.may_be_full || routed.may_be_volatile)
            }
            Code::LevelUnavailable => {
                producer.level == Level::Durable
                    && !producer.downgrade
                    && routed.is_none_or(|routed| routed.may_be_volatile)
            }
            Code::MessageTooLarge => publish.length > self.welcome.message_bytes_max as usize,
            Code::JournalFailed => scene.journal_failed,
            // Also some queues took it and others could not: not for lack of memory. After damage it is
            // not known which queues these are.
            Code::Indeterminate => {
                scene.journal_failed
                    || may_be_damaged
                    || sequence < producer.known_before
                    || routed.is_none_or(|routed| {
                        routed.fans_out
                            && (routed.may_be_full
                                || routed.may_be_volatile
                                || routed.may_miss
                                || may_be_too_old
                                || may_lack_space)
                    })
            }
            Code::DiskFull => may_lack_space,
            Code::QueueDamaged => may_be_damaged,
            Code::SequenceTooOld => may_be_too_old,
            // Credit is a promise of memory, with one exception: what a connection publishes beside
            // a large message while nothing else of its kind is read, and large ones when too many begin.
            Code::Overloaded => scene.plan.faults.has(Fault::LargeMessages),
            // A large message whose sender fell silent in the middle.
            Code::TimedOut => publish.length > FRAGMENT_BYTES_MAX,
            Code::LimitReached | Code::ShuttingDown => true,
            _ => false,
        };
        if !is_reasonable {
            return Err(format!("{message} refused with {code} without a reason"));
        }
        let publish = &mut producer.kept[idx];
        if matches!(
            code,
            Code::JournalFailed | Code::Indeterminate | Code::SequenceTooOld
        ) {
            publish.fate = Fate::Unknown;
            scene.event(Event::Unknown { message });
        } else {
            publish.fate = Fate::Settled;
            let why = if code == Code::Unroutable {
                Refusal::Unroutable
            } else {
                Refusal::Other
            };
            scene.event(Event::Refused { message, why });
        }
        scene.settled(message);
        Ok(())
    }

    fn on_producer_closed(
        &mut self,
        at: usize,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let failure = Failure::decode(body).map_err(|c| format!("closed: {c}"))?;
        let code = Code::from_number(failure.code);
        scene.marks.hit(code.word());
        let asked = match self.requests.get(&head.sequence) {
            Some(Request::ProducerClose(asked)) if *asked == at => {
                self.requests.remove(&head.sequence);
                true
            }
            _ if head.sequence == 0 => false,
            other => return Err(format!("ProducerClosed answers {other:?}")),
        };
        let producer = &mut self.producers[at];
        let waiting = producer.kept.iter().find(|p| p.fate == Fate::Waiting);
        if let (true, Code::Normal, Some(publish)) = (asked, code, waiting)
            && !self.is_guilty
        {
            let message = producer.message(publish.sequence);
            return Err(format!(
                "producer closed in good order, and {message} has no outcome"
            ));
        }
        if !asked
            && !matches!(
                code,
                Code::ProducerFenced | Code::ShuttingDown | Code::JournalFailed
            )
            && !self.is_guilty
        {
            return Err(format!("producer closed unasked with {code}"));
        }
        // A close that was out when the channel ended is answered by this.
        self.requests
            .retain(|_, request| !matches!(request, Request::ProducerClose(other) if *other == at));
        self.producers[at].gone(scene);
        self.channels.remove(&head.channel);
        Ok(())
    }

    /// A frame for a producer that was opened again elsewhere.
    fn on_fenced(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        if head.kind == FrameKind::ProducerClosed {
            let failure = Failure::decode(body).map_err(|c| format!("closed: {c}"))?;
            let code = Code::from_number(failure.code);
            scene.marks.hit(code.word());
            // Nobody may have opened it again yet when its core ends it for another reason.
            let is_expected = matches!(
                code,
                Code::ProducerFenced | Code::ShuttingDown | Code::JournalFailed
            );
            if !is_expected || head.sequence != 0 {
                return Err(format!("the older producer ended with {code}"));
            }
            self.channels.remove(&head.channel);
        }
        Ok(())
    }

    pub(super) fn producer_refused(
        &mut self,
        at: usize,
        channel: u16,
        code: Code,
    ) -> Result<(), String> {
        self.channels.remove(&channel);
        self.producers[at].state = State::Closed;
        match code {
            Code::ProducerFenced => {
                self.producers[at].retire();
                Err("fenced though nobody else opened it".into())
            }
            Code::LimitReached | Code::JournalFailed | Code::Overloaded | Code::ShuttingDown => {
                Ok(())
            }
            _ => Err(format!("ProducerOpen failed with {code}")),
        }
    }

    /// Whether the broker owes something: an outcome, or, where everything has one, credit for a
    /// message and a piece, or for the next piece of a large message (P-33). For the end of a world.
    #[must_use]
    pub fn waits_for_broker(&self, is_blocked: bool) -> bool {
        let has_transaction = self.waits_for_transaction();
        self.link == Link::Open
            && (has_transaction
                || self.producers.iter().any(|producer| {
                    let waits = producer.kept.iter().any(|p| p.fate == Fate::Waiting);
                    let has_piece =
                        producer.credit_bytes >= producer.bytes + FRAGMENT_BYTES_MAX as u64;
                    let has_message = producer.credit_messages > producer.messages;
                    let is_judged = !producer.is_spoiled && producer.state == State::Open;
                    is_judged
                        && if producer.pieces_sent > 0 {
                            // Nobody who does not go on keeps its memory for ever.
                            !has_piece
                        } else if waits {
                            producer.level != Level::None
                        } else {
                            // A full queue may hold it back.
                            !is_blocked && (!has_message || !has_piece)
                        }
                }))
    }
}
