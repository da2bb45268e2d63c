//! What a client does as a consumer: opens, takes, settles in every way, and checks every delivery.
//! Does not know producers or routing.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_check::{AckMode, ConsumerNo, Delivery, Event, MessageId, QueueNo};
use ringpost_wire::control::{self, Body, ConsumerCredit, ConsumerOpen, Failure, Get};
use ringpost_wire::{
    Code, DeliverHead, FragmentHead, FrameHeader, FrameKind, Messages, SettleRange, envelope,
    frame, header,
};

use ringpost_wire::table::{Table, Value};

use super::produce::tag_of;
use super::sharing::{HOLD_MAX_MS, Sharing, standing};
use super::{Channel, Client, Link, Request, Return, SMALL_BYTES_MAX};
use crate::groups::Coming;
use crate::model::GRAVES;
use crate::plan::{Fault, Mode};
use crate::random::Hash;
use crate::say;
use crate::scene::Scene;
use crate::streams::{self, Lane, Reader, STREAM, Seat};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Opening,
    Open,
    /// `ConsumerClose` is out, or the client has broken a rule: what arrives is not looked at.
    Leaving,
}

/// A consumer on a channel.
#[derive(Debug)]
pub struct Consumer {
    number: ConsumerNo,
    queue: QueueNo,
    queue_name: String,
    state: State,
    mode: AckMode,
    /// Credit in messages and bytes, as it was last said.
    credit: (u32, u64),
    /// Its queue has said that nothing is left to be delivered.
    is_fed: bool,
    /// It has been given more credit for the end of the world.
    is_raised: bool,
    /// Highest credit that the broker may believe in.
    credit_max: u32,
    taken_by_get: u32,
    tag_last: u64,
    /// What is not settled; a dead letter is nothing that the history knows.
    outstanding: BTreeMap<u64, Option<MessageId>>,
    /// A large message of which pieces have arrived.
    partial: Option<(u64, DeliverHead, u32, Vec<u8>)>,
    is_getting: bool,
    sharing: Sharing,
    /// It was told that it is the active consumer of its queue.
    is_active: bool,
    /// Of a queue with message groups: the key and place of what is not settled, by tag.
    keys: BTreeMap<u64, (Vec<u8>, u64)>,
    /// The places of its queue that it was given.
    places: BTreeSet<u64>,
    /// What arrives is not the client's any more.
    is_deaf: bool,
    /// Of a stream: where it reads.
    reader: Option<Reader>,
    /// The history knows of it: it takes, or it drains.
    is_told: bool,
}

impl Consumer {
    /// Its connection is lost, or nothing of it is believed any more.
    pub fn lost(&mut self, scene: &mut Scene) {
        self.is_deaf = true;
        if self.is_told {
            scene.event(Event::ConsumerLost {
                consumer: self.number,
            });
        }
    }

    /// The broker has forgotten it.
    pub fn over(&self, tenant: usize, scene: &mut Scene) {
        if self.mode == AckMode::OnSend {
            scene.swallows(self.queue);
        }
        self.opening_ends(tenant, scene);
    }

    fn opening_ends(&self, tenant: usize, scene: &mut Scene) {
        if self.state == State::Opening
            && let Some(queue) = scene.models[tenant]
                .queues
                .get_mut(streams::base(&self.queue_name))
        {
            queue.openings -= 1;
        }
    }
}

/// Of what a message died last: the queue and the reason; `None` if it did not.
fn death_of(headers: &[u8]) -> Option<(String, String)> {
    let table = Table::parse(headers).ok()?;
    let Some(Value::Array(deaths)) = table.get(b"x-death") else {
        return None;
    };
    let Some(Value::Table(last)) = deaths.values().next() else {
        return None;
    };
    let text = |name: &[u8]| {
        let text = last.get(name)?.as_text()?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    Some((text(b"queue")?, text(b"reason")?))
}

impl Client {
    fn consumers(&self) -> Vec<u16> {
        self.channels
            .iter()
            .filter(|(_, channel)| {
                matches!(channel, Channel::Consumer(consumer) if consumer.state == State::Open)
            })
            .map(|(number, _)| *number)
            .collect()
    }

    fn consumer(&mut self, channel: u16) -> Option<&mut Consumer> {
        match self.channels.get_mut(&channel) {
            Some(Channel::Consumer(consumer)) => Some(consumer),
            _ => None,
        }
    }

    /// Opens or closes a consumer.
    pub(super) fn manage_consumers(&mut self, scene: &mut Scene) {
        if self.welcome.message_bytes_max <= SMALL_BYTES_MAX {
            // It would be ended by a message that is too large, and others get what it held before
            // it has heard of that.
            return;
        }
        let open = self.consumers();
        if open.len() < 4 && self.random.below(3) > 0 {
            let steady: Vec<String> = scene.models[self.tenant]
                .queues
                .iter()
                .filter(|(_, queue)| queue.is_steady())
                .map(|(name, _)| name.clone())
                .collect();
            if steady.is_empty() {
                return;
            }
            let streams = steady.iter().filter(|name| *name == STREAM);
            let name = match streams.count() > 0 && self.random.below(3) == 0 {
                true => STREAM.to_owned(),
                false => self.random.pick(&steady).clone(),
            };
            let messages = if scene.plan.faults.has(Fault::TinyCredit) {
                1
            } else if self.random.below(6) == 0 {
                0
            } else {
                self.random.scale(1..=300) as u32
            };
            let bytes = if self.random.below(4) == 0 {
                self.random.scale(1..=50_000)
            } else {
                0
            };
            // What is sent to nobody must not settle the dead.
            let names = match name == STREAM {
                true => streams::names(self.seed),
                false => vec![name.clone()],
            };
            let mode = if name != GRAVES && name != STREAM && self.random.below(12) == 0 {
                AckMode::OnSend
            } else {
                AckMode::Acks
            };
            let exclusive = self.random.below(15) == 0 && name != STREAM;
            if names.len() > 1 && self.random.coin() {
                // A member of a group, in every lane, or in most of them.
                self.seat = Some(Seat::draw(&mut self.random));
                let most = match self.random.below(6) {
                    0 => 1 + self.random.index(names.len()),
                    _ => names.len(),
                };
                for name in &names[..most] {
                    self.open_consumer(name, messages, bytes, mode, false, scene);
                }
                self.seat = None;
                return;
            }
            let name = self.random.pick(&names).clone();
            self.open_consumer(&name, messages, bytes, mode, exclusive, scene);
        } else if !open.is_empty() && self.random.below(3) == 0 {
            let channel = *self.random.pick(&open);
            self.close_consumer(channel, scene);
        }
    }

    pub(super) fn open_consumer(
        &mut self,
        name: &str,
        messages: u32,
        bytes: u64,
        mode: AckMode,
        exclusive: bool,
        scene: &mut Scene,
    ) -> Option<u16> {
        let channel = self.free_channel()?;
        let base = streams::base(name);
        let queue = scene.models[self.tenant].queues.get_mut(base)?;
        queue.openings += 1;
        let number = queue.number;
        let id = self.request(Request::ConsumerOpen(channel));
        let mut flags = 0;
        if mode == AckMode::OnSend {
            flags |= control::CONSUMER_NO_ACK;
        }
        if exclusive {
            flags |= control::CONSUMER_EXCLUSIVE;
        }
        let consumer_no = scene.new_consumer();
        let mut arguments = standing(self.seed, u64::from(consumer_no.0));
        let mut reader = None;
        let is_drain = self.drain.is_some();
        if streams::is_stream(name) {
            let lane = (number, Reader::lane_named(name));
            let (one, its_own) = match is_drain {
                true => Reader::of_drain(name, scene.streams.undrained(lane)),
                false => Reader::draw(&mut self.random, name, self.seat),
            };
            (reader, arguments) = (Some(one), its_own);
        }
        let is_told = reader.is_none() || is_drain;
        let body = ConsumerOpen {
            credit_bytes: bytes,
            credit_messages: messages,
            flags,
            queue: name.as_bytes(),
            arguments: &arguments,
        };
        body.write(
            &mut self.out,
            FrameHeader::bare(FrameKind::ConsumerOpen, channel, id),
        );
        let consumer = Consumer {
            number: consumer_no,
            queue: number,
            queue_name: name.into(),
            state: State::Opening,
            mode,
            credit: (messages, bytes),
            is_fed: false,
            is_raised: false,
            credit_max: messages,
            taken_by_get: 0,
            tag_last: 0,
            outstanding: BTreeMap::new(),
            partial: None,
            is_getting: false,
            sharing: Sharing::of(self.seed, self.tenant, name, self.is_slow),
            is_active: false,
            keys: BTreeMap::new(),
            places: BTreeSet::new(),
            is_deaf: false,
            reader,
            is_told,
        };
        say!(
            scene,
            "client {}: opens consumer {} of {name} on channel {channel}, credit {messages}",
            self.id,
            consumer.number.0
        );
        if is_told {
            scene.event(Event::Consumer {
                consumer: consumer.number,
                queue: number,
                mode,
            });
        }
        self.channels
            .insert(channel, Channel::Consumer(Box::new(consumer)));
        Some(channel)
    }

    pub(super) fn close_consumer(&mut self, channel: u16, scene: &mut Scene) {
        let id = self.request(Request::ConsumerClose);
        frame::write_bare(&mut self.out, FrameKind::ConsumerClose, channel, id);
        let Some(consumer) = self.consumer(channel) else {
            return;
        };
        consumer.state = State::Leaving;
        consumer.is_deaf = true;
        let number = consumer.number;
        if consumer.is_told {
            scene.event(Event::ConsumerClosed { consumer: number });
        }
    }

    /// Changes a consumer's credit.
    pub(super) fn change_credit(&mut self, scene: &mut Scene) {
        let open = self.consumers();
        if open.is_empty() {
            return;
        }
        let channel = *self.random.pick(&open);
        let messages = match self.random.below(6) {
            0 => 0,
            1 => 1,
            _ => self.random.scale(1..=500) as u32,
        };
        let bytes = if self.random.below(4) == 0 {
            self.random.scale(1..=50_000)
        } else {
            0
        };
        self.set_credit(channel, messages, bytes);
        say!(
            scene,
            "client {}: credit {messages} on channel {channel}",
            self.id
        );
    }

    fn set_credit(&mut self, channel: u16, messages: u32, bytes: u64) {
        let body = ConsumerCredit {
            bytes,
            messages,
            reserved: 0,
        };
        let head = FrameHeader::bare(FrameKind::ConsumerCredit, channel, 0);
        body.write(&mut self.out, head);
        if let Some(consumer) = self.consumer(channel) {
            consumer.credit = (messages, bytes);
            consumer.credit_max = consumer.credit_max.max(messages);
        }
    }

    /// Asks the queue of a consumer that has room and waits whether there is something for it. For the
    /// end of a world, when nothing else goes on.
    pub(super) fn ask_for_food(&mut self) {
        for channel in self.consumers() {
            let Some(consumer) = self.consumer(channel) else {
                continue;
            };
            let held = consumer.outstanding.len() as u32;
            if !core::mem::replace(&mut consumer.is_raised, true) && self.random.coin() {
                let more = self.random.within(1..=8) as u32;
                self.set_credit(channel, held + more, 0);
            }
        }
        let is_asking = |request: &Request| matches!(request, Request::Inspect(_));
        if self.link == Link::Open && !self.requests.values().any(is_asking) {
            let mut hungry = self.hungry();
            let name = hungry.next().map(|consumer| consumer.queue_name.clone());
            drop(hungry);
            if let Some(name) = name {
                self.inspect(&name);
            }
        }
    }

    /// A queue has said how many messages it could deliver.
    pub(super) fn told_of_food(&mut self, name: &str, ready: u64, published: u64) {
        for channel in self.channels.values_mut() {
            if let Channel::Consumer(consumer) = channel
                && consumer.queue_name == name
            {
                consumer.is_fed = match &consumer.reader {
                    None => ready == 0,
                    Some(reader) => reader.has_all_of(published),
                };
            }
        }
    }

    /// Consumers that have room for a message, and whose queue has not said that it has none for them.
    fn hungry(&self) -> impl Iterator<Item = &Consumer> {
        self.channels.values().filter_map(|channel| match channel {
            Channel::Consumer(consumer) => {
                // The last message may pass the limit of bytes, so who holds nothing has room.
                let held = consumer.outstanding.len();
                let has_room = held < consumer.credit.0 as usize
                    && (consumer.credit.1 == 0 || held == 0)
                    && consumer.mode == AckMode::Acks;
                let is_of_many = consumer
                    .reader
                    .as_ref()
                    .is_some_and(|reader| reader.group.is_some());
                let takes_turns = consumer.sharing == Sharing::Single || is_of_many;
                let may = !takes_turns || consumer.is_active;
                // What is ready may be of keys that others hold.
                let may = may && !matches!(consumer.sharing, Sharing::Groups(_));
                let is_open = consumer.state == State::Open && !consumer.is_deaf && may;
                (is_open && has_room && !consumer.is_fed).then_some(&**consumer)
            }
            Channel::Producer(_) | Channel::Fenced | Channel::Guest | Channel::Desk => None,
        })
    }

    /// Its members of groups: where, whether it is its turn, and whether it holds something.
    pub fn members(&self) -> impl Iterator<Item = ((Lane, u64), bool, bool)> + '_ {
        let is_open = |consumer: &&Consumer| {
            consumer.state == State::Open && !consumer.is_deaf && self.link == Link::Open
        };
        let consumers = self.channels.values().filter_map(|channel| match channel {
            Channel::Consumer(consumer) => Some(&**consumer),
            Channel::Producer(_) | Channel::Fenced | Channel::Guest | Channel::Desk => None,
        });
        consumers.filter(is_open).filter_map(|consumer| {
            let reader = consumer.reader.as_ref()?;
            let place = ((consumer.queue, reader.lane), reader.group?);
            Some((place, consumer.is_active, !consumer.outstanding.is_empty()))
        })
    }

    /// Whether the broker owes a consumer a message, or may: for the end of a world.
    #[must_use]
    pub fn waits_for_messages(&self) -> bool {
        self.link == Link::Open && self.hungry().next().is_some()
    }

    /// Takes messages.
    pub(super) fn get(&mut self, scene: &mut Scene) {
        let open = self.consumers();
        if open.is_empty() {
            return;
        }
        let channel = *self.random.pick(&open);
        if self
            .consumer(channel)
            .is_none_or(|consumer| consumer.is_getting)
        {
            return;
        }
        let most = self.random.scale(1..=50) as u32;
        let wait_ms = if self.random.coin() {
            0
        } else {
            self.random.scale(1..=500) as u32
        };
        let id = self.request(Request::Get {
            channel,
            most,
            given: 0,
        });
        let head = FrameHeader {
            count: most,
            ..FrameHeader::bare(FrameKind::Get, channel, id)
        };
        let body = Get {
            wait_ms,
            reserved: 0,
        };
        body.write(&mut self.out, head);
        if let Some(consumer) = self.consumer(channel) {
            consumer.is_getting = true;
            consumer.taken_by_get += most;
        }
        say!(
            scene,
            "client {}: get {most} on channel {channel}, wait {wait_ms} ms",
            self.id
        );
    }

    /// Settles some of what is outstanding, in one of the ways there are.
    pub(super) fn settle(&mut self, scene: &mut Scene) {
        let holding: Vec<u16> = self
            .consumers()
            .into_iter()
            .filter(|channel| {
                let Some(Channel::Consumer(consumer)) = self.channels.get(channel) else {
                    return false;
                };
                !consumer.outstanding.is_empty()
            })
            .collect();
        if holding.is_empty() {
            return;
        }
        let channel = *self.random.pick(&holding);
        let tags: Vec<u64> = match self.consumer(channel) {
            Some(consumer) => consumer.outstanding.keys().copied().collect(),
            None => return,
        };
        let is_reader = self
            .consumer(channel)
            .is_some_and(|consumer| consumer.reader.is_some());
        // Nothing returns to a stream: who asks for that is ended.
        let requeued = match is_reader {
            true => 0,
            false => scene.plan.requeue_percent,
        };
        let outcome = match self.random.below(100) {
            draw if draw < requeued => header::SETTLE_REQUEUE,
            draw if draw < requeued + 10 => header::SETTLE_REJECT,
            _ => header::SETTLE_ACK,
        };
        let mut ranges = Vec::new();
        let mut settled: Vec<u64> = Vec::new();
        match self.random.below(3) {
            0 => {
                // One.
                let tag = *self.random.pick(&tags);
                ranges.push(SettleRange {
                    first: tag,
                    last: tag,
                });
                settled.push(tag);
            }
            1 => {
                // All up to one.
                let last = *self.random.pick(&tags);
                ranges.push(SettleRange { first: 0, last });
                settled.extend(tags.iter().take_while(|tag| **tag <= last));
            }
            _ => {
                // Runs of neighbours, every second one left out.
                let mut at = 0;
                while at < tags.len() {
                    let length = self.random.scale(1..=8) as usize;
                    let mut end = at;
                    while end + 1 < tags.len()
                        && end - at + 1 < length
                        && tags[end + 1] == tags[end] + 1
                    {
                        end += 1;
                    }
                    if self.random.coin() {
                        ranges.push(SettleRange {
                            first: tags[at],
                            last: tags[end],
                        });
                        settled.extend(&tags[at..=end]);
                    }
                    at = end + 1;
                }
            }
        }
        let confirm = self.random.below(3) == 0;
        self.send_settle(channel, outcome, &ranges, &settled, confirm, scene);
    }

    /// Settles everything outstanding and asks for the confirm.
    pub(super) fn settle_all(&mut self, channel: u16, scene: &mut Scene) {
        let Some(consumer) = self.consumer(channel) else {
            return;
        };
        let tags: Vec<u64> = consumer.outstanding.keys().copied().collect();
        if let Some(last) = tags.last() {
            let ranges = [SettleRange {
                first: 0,
                last: *last,
            }];
            self.send_settle(channel, header::SETTLE_ACK, &ranges, &tags, true, scene);
        }
    }

    fn send_settle(
        &mut self,
        channel: u16,
        outcome: u8,
        ranges: &[SettleRange],
        settled: &[u64],
        confirm: bool,
        scene: &mut Scene,
    ) {
        if ranges.is_empty() {
            return;
        }
        let tenant = self.tenant;
        let Some(consumer) = self.consumer(channel) else {
            return;
        };
        let queue = consumer.queue;
        let name = consumer.queue_name.clone();
        let mut messages = Vec::new();
        let mut offsets = Vec::new();
        let mut taken = None;
        if let Some(reader) = &mut consumer.reader {
            offsets = reader.settle(settled);
            if let Some(group) = reader.group {
                let number = consumer.number;
                taken = scene
                    .streams
                    .taken_meanwhile(queue, reader, number, &offsets);
                scene.streams.settled((queue, reader.lane), group, &offsets);
            }
        }
        let (number, mut back) = (consumer.number, Vec::new());
        for tag in settled {
            if let Some((key, place)) = consumer.keys.remove(tag)
                && outcome == header::SETTLE_REQUEUE
            {
                back.push((key, place));
            }
        }
        for (key, place) in back {
            scene.groups.returned(queue, &key, place, number);
        }
        let Some(consumer) = self.consumer(channel) else {
            return;
        };
        for tag in settled {
            if let Some(Some(message)) = consumer.outstanding.remove(tag) {
                messages.push((queue, message));
                if outcome == header::SETTLE_REJECT {
                    scene.graves.rejected(tenant, &name, message);
                }
                if outcome == header::SETTLE_REQUEUE {
                    scene.times.requeued(queue, message);
                }
                scene.event(if outcome == header::SETTLE_REQUEUE {
                    Event::Returned { queue, message }
                } else {
                    Event::Acked { queue, message }
                });
            }
        }
        say!(
            scene,
            "client {}: settles {ranges:?} on channel {channel}, outcome {outcome}, confirm {confirm}",
            self.id
        );
        let mut returned = None;
        if outcome == header::SETTLE_REQUEUE {
            let back = std::mem::take(&mut messages);
            returned = Some(Return {
                queue: name.clone(),
                at: scene.now,
                messages: back,
            });
        }
        let id = if confirm {
            let is_reject = outcome == header::SETTLE_REJECT;
            self.request(Request::Settle {
                channel,
                messages,
                offsets,
                taken,
                rejects: is_reject.then_some(name),
                returned,
            })
        } else {
            0
        };
        let body: Vec<u8> = ranges.iter().flat_map(SettleRange::encode).collect();
        let head = FrameHeader {
            flags: outcome | if confirm { header::SETTLE_CONFIRM } else { 0 },
            count: ranges.len() as u32,
            ..FrameHeader::bare(FrameKind::Settle, channel, id)
        };
        frame::write(&mut self.out, head, &body);
    }

    /// Settles what is not outstanding; the broker ends the consumer.
    pub(super) fn settle_wrongly(&mut self, scene: &mut Scene) {
        let open = self.consumers();
        if open.is_empty() {
            return;
        }
        let channel = *self.random.pick(&open);
        let Some(consumer) = self.consumer(channel) else {
            return;
        };
        consumer.state = State::Leaving;
        let tag = consumer.tag_last + 1000;
        consumer.lost(scene);
        let head = FrameHeader {
            count: 1,
            ..FrameHeader::bare(FrameKind::Settle, channel, 0)
        };
        let range = SettleRange {
            first: tag,
            last: tag,
        };
        frame::write(&mut self.out, head, &range.encode());
    }

    pub(super) fn on_consumer_frame(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        if let Some(consumer) = self.consumer(head.channel)
            && consumer.state == State::Opening
            && head.kind != FrameKind::ConsumerOpened
        {
            return Err("a frame of a consumer comes before it is open".into());
        }
        match head.kind {
            FrameKind::Settled => return self.on_settled(head, scene),
            FrameKind::ConsumerClosed => return self.on_consumer_closed(head, body, scene),
            _ => {}
        }
        let is_guilty = self.is_guilty;
        let tenant = self.tenant;
        let Some(consumer) = self.consumer(head.channel) else {
            return if is_guilty {
                Ok(())
            } else {
                Err("no consumer is on this channel".into())
            };
        };
        match head.kind {
            FrameKind::ConsumerOpened => {
                consumer.opening_ends(tenant, scene);
                scene.shape.cores.insert(head.count);
                if consumer.state == State::Opening {
                    consumer.state = State::Open;
                }
                match self.requests.remove(&head.sequence) {
                    Some(Request::ConsumerOpen(channel)) if channel == head.channel => Ok(()),
                    other => Err(format!("ConsumerOpened answers {other:?}")),
                }
            }
            FrameKind::GetDone => {
                consumer.is_getting = false;
                let (is_deaf, consumer_mode) = (consumer.is_deaf, consumer.mode);
                match self.requests.remove(&head.sequence) {
                    Some(Request::Get { given, most, .. }) => {
                        let is_right = head.count <= most
                            && (head.count <= given || is_deaf || consumer_mode == AckMode::OnSend);
                        if is_right {
                            Ok(())
                        } else {
                            Err(format!(
                                "GetDone says {}, {given} arrived, {most} wanted",
                                head.count
                            ))
                        }
                    }
                    other => Err(format!("GetDone answers {other:?}")),
                }
            }
            FrameKind::ConsumerPosition => {
                let position = control::ConsumerPosition::decode(body);
                let position = position.map_err(|code| format!("ConsumerPosition: {code}"))?;
                let queue = consumer.queue;
                let Some(reader) = &mut consumer.reader else {
                    return Err("a consumer of a queue was told of a position".into());
                };
                if position.missed > 0 {
                    scene.marks.hit("reader missed some");
                }
                let told = scene
                    .streams
                    .goes_on(queue, reader, position.offset, position.missed);
                match scene.tolerates_losses() || consumer.is_deaf {
                    true => Ok(()),
                    false => told,
                }
            }
            FrameKind::ConsumerActive => {
                let group = consumer
                    .reader
                    .as_mut()
                    .filter(|reader| reader.group.is_some());
                let is_member = group.is_some();
                if let Some(reader) = group
                    && head.flags & header::CONSUMER_IS_ACTIVE != 0
                {
                    scene.marks.hit("member active");
                    if scene.streams.has_lanes {
                        scene.marks.hit("lane led");
                    }
                    reader.is_active();
                }
                if consumer.sharing != Sharing::Single && !is_member {
                    return Err("a consumer is active where all are".into());
                }
                let is_active = head.flags & header::CONSUMER_IS_ACTIVE != 0;
                if is_active == consumer.is_active {
                    return Err("ConsumerActive says what was said before".into());
                }
                consumer.is_active = is_active;
                Ok(())
            }
            FrameKind::Deliver => {
                if !consumer.is_deaf {
                    self.on_deliver(head, body, scene)?;
                }
                Ok(())
            }
            _ => {
                if !consumer.is_deaf {
                    self.on_piece(head, body, scene)?;
                }
                Ok(())
            }
        }
    }

    fn on_deliver(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let (deliver, messages) = DeliverHead::split(body).map_err(|c| format!("Deliver: {c}"))?;
        let mut count = 0;
        for message in Messages::new(messages) {
            let message = message.map_err(|code| format!("Deliver holds no message: {code}"))?;
            let bytes = &message.bytes[..message.envelope.length()];
            self.delivered(head, &deliver, count, bytes, scene)?;
            count += 1;
        }
        if count != head.count || count == 0 {
            return Err(format!(
                "Deliver says {} messages and holds {count}",
                head.count
            ));
        }
        self.check_credit(head.channel)
    }

    /// No more may be outstanding than credit and gets allow.
    fn check_credit(&mut self, channel: u16) -> Result<(), String> {
        let Some(consumer) = self.consumer(channel) else {
            return Ok(());
        };
        let most = consumer.credit_max as usize + consumer.taken_by_get as usize;
        if consumer.outstanding.len() > most {
            return Err(format!(
                "{} deliveries outstanding, credit never allowed more than {most}",
                consumer.outstanding.len()
            ));
        }
        Ok(())
    }

    fn on_piece(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let (deliver, rest) = DeliverHead::split(body).map_err(|c| format!("piece: {c}"))?;
        let (piece, bytes) = FragmentHead::split(rest).map_err(|c| format!("piece: {c}"))?;
        let consumer = self.consumer(head.channel).ok_or("no consumer")?;
        let mut whole = match consumer.partial.take() {
            None if piece.offset == 0 => Vec::new(),
            Some((tag, first, message_bytes, whole))
                if tag == head.sequence
                    && first == deliver
                    && message_bytes == piece.message_bytes
                    && piece.offset as usize == whole.len() =>
            {
                whole
            }
            other => {
                let before = other.map(|(tag, _, _, whole)| (tag, whole.len()));
                return Err(format!("piece {piece:?} follows {before:?}"));
            }
        };
        whole.extend_from_slice(bytes);
        if !piece.is_last() {
            consumer.partial = Some((head.sequence, deliver, piece.message_bytes, whole));
            return Ok(());
        }
        scene.marks.hit("large message delivered");
        self.delivered(head, &deliver, 0, &whole, scene)?;
        self.check_credit(head.channel)
    }

    /// One message of a delivery arrived in full.
    fn delivered(
        &mut self,
        head: &FrameHeader,
        deliver: &DeliverHead,
        idx: u32,
        bytes: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let is_detect = scene.plan.mode == Mode::Detect;
        let envelope = envelope::open(bytes).map_err(|c| format!("delivered message: {c}"))?;
        envelope
            .check_crc()
            .map_err(|c| format!("delivered message is damaged: {c}, detect {is_detect}"))?;
        let tag = envelope.timestamp_us();
        let message = scene
            .message_of_tag(tag)
            .filter(|message| tag_of(*message) == tag)
            .ok_or_else(|| format!("delivered a message that nobody made, tag {tag:x}"))?;
        let consumer = self.consumer(head.channel).ok_or("no consumer")?;
        let note = match consumer.queue_name == GRAVES {
            true => death_of(envelope.headers()),
            false => None,
        };
        let is_moved = consumer.queue_name == GRAVES
            && note.is_none()
            && scene.places.was_moved(self.tenant, message);
        let consumer = self.consumer(head.channel).ok_or("no consumer")?;
        let delivery_tag = head.sequence + u64::from(idx);
        if delivery_tag != consumer.tag_last + 1 {
            return Err(format!(
                "delivery tag {delivery_tag} follows {}",
                consumer.tag_last
            ));
        }
        consumer.tag_last = delivery_tag;
        let has_times = scene.plan.faults.has(Fault::Times);
        if consumer.sharing == Sharing::Single {
            if head.kind == FrameKind::Deliver && !consumer.is_active {
                return Err("a delivery to a consumer that is not the active one".into());
            }
            // What another held is back before it takes over, so only its own come again.
            let place = deliver.queue_sequence + u64::from(idx);
            let is_passed = consumer.places.last().is_some_and(|last| place < *last);
            if consumer.places.insert(place) && is_passed && !has_times {
                return Err(format!(
                    "the active consumer was given {place} after later ones"
                ));
            }
        }
        let place = deliver.queue_sequence + u64::from(idx);
        if let Sharing::Groups(key) = consumer.sharing
            && let Some(key) = key.of(&envelope)
        {
            consumer.keys.insert(delivery_tag, (key.clone(), place));
            let is_fresh =
                deliver.delivery_count == 0 && head.flags & header::DELIVER_REDELIVERED == 0;
            self.comes_of_group(head.channel, &key, (place, is_fresh), message, scene)?;
        }
        let consumer = self.consumer(head.channel).ok_or("no consumer")?;
        if matches!(consumer.sharing, Sharing::Groups(_))
            && !consumer.places.insert(place)
                | consumer.places.last().is_some_and(|last| place < *last)
        {
            // It may have waited for its key while others went.
            let queue = consumer.queue;
            scene.event(Event::Apart { queue });
        }
        let consumer = self.consumer(head.channel).ok_or("no consumer")?;
        let (queue, is_told) = (consumer.queue, consumer.is_told);
        let lane = consumer.reader.as_ref().map_or(0, |reader| reader.lane);
        let is_reader = consumer.reader.is_some();
        if let Some(reader) = &mut consumer.reader {
            scene.marks.hit("read from a stream");
            let body_bytes = envelope.payload_bytes();
            let is_again = head.flags & header::DELIVER_REDELIVERED != 0;
            if is_again {
                scene.marks.hit("group read on");
            }
            let given =
                scene
                    .streams
                    .lies(queue, lane, envelope.routing_key())
                    .and(scene.streams.given(
                        queue,
                        (reader, consumer.number),
                        (delivery_tag, place, is_again),
                        (message, body_bytes),
                    ));
            if !scene.tolerates_losses() {
                given?;
            }
        }
        if consumer.mode == AckMode::Acks {
            let message = (note.is_none() && !is_reader && !is_moved).then_some(message);
            consumer.outstanding.insert(delivery_tag, message);
        }
        let queue_name = consumer.queue_name.clone();
        let is_bounded = consumer.sharing == Sharing::Bounded;
        let delivery = Delivery {
            consumer: consumer.number,
            queue: consumer.queue,
            // The history knows one queue of each name, and places in lanes mean nothing there.
            place: match streams::is_stream(&queue_name) && scene.streams.has_lanes {
                true => 0,
                false => deliver.queue_sequence + u64::from(idx),
            },
            message,
            hash: Hash::of(bytes),
            redelivered: head.flags & header::DELIVER_REDELIVERED != 0,
            count: deliver.delivery_count,
        };
        if deliver.queue_sequence == 0 {
            return Err("queue sequence 0".into());
        }
        let hold_ms = HOLD_MAX_MS as u64;
        if is_bounded && scene.times.is_taken(&delivery, scene.now, hold_ms) {
            let (queue, message) = (delivery.queue, delivery.message);
            scene.event(Event::Returned { queue, message });
        }
        for request in self.requests.values_mut() {
            if let Request::Get { channel, given, .. } = request
                && *channel == head.channel
            {
                *given += 1;
            }
        }
        if is_moved {
            scene.marks.hit("moved one delivered");
            scene.places.found(self.tenant, message, delivery.place);
            return Ok(());
        }
        if let Some((queue, reason)) = note {
            return scene.dead_letter(self.tenant, (&queue, &reason), message, delivery.place);
        }
        if !is_reader {
            let verdict = scene.places.delivered(delivery.queue, message);
            if !scene.tolerates_losses() {
                verdict?;
            }
        }
        scene.check_returns(self.tenant, &queue_name, delivery.count)?;
        if !streams::is_stream(&queue_name) {
            scene.check_times(self.tenant, &queue_name, &delivery)?;
        }
        if delivery.redelivered {
            scene.marks.hit("redelivered");
        }
        if is_told {
            scene.event(Event::Delivered(delivery));
        }
        if is_told && is_reader {
            // It has seen it, whatever becomes of its connection.
            scene.streams.drains((queue, lane), place);
            scene.event(Event::Acked { queue, message });
        }
        Ok(())
    }

    /// A message of a key comes from a queue with message groups: whether it may.
    fn comes_of_group(
        &mut self,
        channel: u16,
        key: &[u8],
        (place, is_fresh): (u64, bool),
        message: MessageId,
        scene: &mut Scene,
    ) -> Result<(), String> {
        if scene.tolerates_losses() {
            return Ok(());
        }
        let consumer = self.consumer(channel).ok_or("no consumer")?;
        let (number, queue) = (consumer.number, consumer.queue);
        let name = consumer.queue_name.clone();
        let settings = scene.models[self.tenant].queues.get(&name);
        let settings = settings.filter(|queue| queue.is_steady());
        let coming = Coming {
            consumer: number,
            place,
            is_fresh,
            is_delayed: scene.times.is_delayed(message),
            may_die: settings.is_none_or(|queue| queue.settings.deaths.is_some()),
        };
        scene.groups.delivered(queue, key, coming)?;
        scene.marks.hit("of a group");
        for (other, one) in &self.channels {
            let Channel::Consumer(one) = one else {
                continue;
            };
            let is_holding = one.keys.values().any(|(held, _)| held == key);
            let is_other = *other != channel && one.queue == queue && !one.is_deaf;
            if is_other && is_holding && one.state == State::Open {
                return Err(format!(
                    "a group at two consumers: place {place} of key {key:?} comes to consumer {}, and \
                     {} holds others",
                    number.0, one.number.0
                ));
            }
        }
        Ok(())
    }

    fn on_settled(&mut self, head: &FrameHeader, scene: &mut Scene) -> Result<(), String> {
        match self.requests.remove(&head.sequence) {
            Some(Request::Settle {
                channel,
                messages,
                offsets,
                taken,
                rejects,
                returned,
            }) => {
                if let Some(taken) = taken
                    && !scene.tolerates_losses()
                {
                    return Err(format!(
                        "two members of a group had {taken} of a lane at once"
                    ));
                }
                if let Some(back) = returned {
                    let Return {
                        queue,
                        at,
                        messages,
                    } = back;
                    scene.return_is_confirmed(self.tenant, &queue, &messages, at);
                }
                if let Some(consumer) = self.consumer(channel)
                    && let Some(reader) = &mut consumer.reader
                {
                    scene.streams.is_safe(consumer.queue, reader, &offsets);
                }
                for (queue, message) in messages {
                    if let Some(name) = &rejects {
                        scene.reject_is_confirmed(self.tenant, name, queue, message);
                    }
                    scene.places.gone(queue, message, scene.now);
                    scene.event(Event::AckConfirmed { queue, message });
                }
                Ok(())
            }
            None if self.is_guilty => Ok(()),
            other => Err(format!("Settled answers {other:?}")),
        }
    }

    fn on_consumer_closed(
        &mut self,
        head: &FrameHeader,
        body: &[u8],
        scene: &mut Scene,
    ) -> Result<(), String> {
        let failure = Failure::decode(body).map_err(|c| format!("closed: {c}"))?;
        let code = Code::from_number(failure.code);
        scene.marks.hit(code.word());
        let asked = head.sequence != 0;
        if asked
            && !matches!(
                self.requests.remove(&head.sequence),
                Some(Request::ConsumerClose)
            )
        {
            return Err("ConsumerClosed answers nothing".into());
        }
        let Some(Channel::Consumer(mut consumer)) = self.channels.remove(&head.channel) else {
            return Err("no consumer is on this channel".into());
        };
        say!(
            scene,
            "client {}: consumer {} closed: {code}",
            self.id,
            consumer.number.0
        );
        if !asked {
            let is_reasonable = match code {
                Code::QueueDeleted | Code::ShuttingDown => true,
                Code::QueueDamaged => scene.plan.mode == Mode::Detect,
                // Retention does not wait for the last piece of a large message.
                Code::UnknownDelivery => {
                    self.is_guilty || consumer.mode == AckMode::OnSend || consumer.reader.is_some()
                }
                Code::JournalFailed => scene.journal_failed,
                Code::HoldExceeded => consumer.sharing == Sharing::Bounded,
                _ => false,
            };
            if !is_reasonable {
                return Err(format!("consumer closed with {code} without a reason"));
            }
            consumer.lost(scene);
        }
        consumer.over(self.tenant, scene);
        self.drain_refused(&consumer.queue_name, code, scene);
        // The broker ended it: that answers all of the channel (P-15). Asked, it says first what became
        // of the acks (P-48).
        let channel = head.channel;
        let is_its = |request: &Request| match request {
            Request::Get { channel: of, .. } | Request::Settle { channel: of, .. } => {
                *of == channel
            }
            _ => false,
        };
        let mut of_channel = self.requests.values().filter(|one| is_its(one));
        if asked && of_channel.any(|one| matches!(one, Request::Settle { .. })) {
            return Err("a consumer is closed before its acks are confirmed".into());
        }
        self.requests.retain(|_, request| !is_its(request));
        Ok(())
    }

    pub(super) fn consumer_refused(
        &mut self,
        channel: u16,
        code: Code,
        reason: &str,
        scene: &mut Scene,
    ) -> Result<(), String> {
        let Some(Channel::Consumer(mut consumer)) = self.channels.remove(&channel) else {
            return Err("no consumer is on this channel".into());
        };
        consumer.lost(scene);
        consumer.opening_ends(self.tenant, scene);
        self.drain_refused(&consumer.queue_name, code, scene);
        let is_reasonable = match code {
            Code::InUse | Code::LimitReached | Code::Overloaded | Code::ShuttingDown => true,
            Code::SettingInvalid => {
                let is_grouped = matches!(consumer.sharing, Sharing::Groups(_));
                is_grouped && consumer.mode == AckMode::OnSend
            }
            Code::JournalFailed => scene.journal_failed,
            Code::QueueDamaged => scene.plan.mode == Mode::Detect,
            Code::QueueUnknown => scene.may_have_lost_the_end(),
            _ => false,
        };
        if is_reasonable {
            Ok(())
        } else {
            Err(format!(
                "consumer of {} refused with {code}: {reason}",
                consumer.queue_name
            ))
        }
    }

    /// Whether it is open and a consumer is on the channel.
    pub(super) fn has_consumer(&self, channel: u16) -> bool {
        self.link == Link::Open && self.channels.contains_key(&channel)
    }
}
