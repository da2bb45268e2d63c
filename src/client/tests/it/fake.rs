//! A broker in memory that plays by itself: queues, bindings, producers with credit, consumers.
//! Slow on purpose where a setting says so; forgets everything when dropped. Routes by equal keys
//! only and has no durability.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use ringpost_wire::control::{
    self, Bind, Body, ConsumerCredit, ConsumerOpen, Delete, ExchangeDeclare, Get, Named,
    ProducerCredit, ProducerOpen, ProducerOpened, QueueDeclare, QueueInfo, Welcome,
};
use ringpost_wire::header::{
    DELIVER_REDELIVERED, PUBLISH_MANDATORY, SETTLE_CONFIRM, SETTLE_OUTCOME, SETTLE_REQUEUE,
};
use ringpost_wire::{
    Code, Cut, DeliverHead, FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FragmentHead,
    FrameHeader, FrameKind, Messages, SettleRange, envelope, frame, padded, version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::peer::deliver_frame;

/// What a test may turn.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Credit ahead of what a producer has published.
    pub credit_messages: u64,
    pub credit_bytes: u64,
    /// What a producer publishes again is not stored again.
    pub knows_producers: bool,
    /// Confirms are kept back.
    pub holds_confirms: bool,
    /// The connection on which that many bytes were received in all is cut, once.
    pub cut_after_bytes: Option<usize>,
    /// Most messages of a queue.
    pub queue_messages_max: usize,
    /// Most messages of a `Deliver` frame.
    pub deliver_count_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            credit_messages: 1_000,
            credit_bytes: 64 << 20,
            knows_producers: true,
            holds_confirms: false,
            cut_after_bytes: None,
            queue_messages_max: usize::MAX,
            deliver_count_max: 64,
        }
    }
}

/// A running broker; ends when dropped.
pub struct Fake {
    pub address: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    model: Mutex<Model>,
    /// Something may have to be delivered or confirmed.
    changed: Notify,
    /// Connections are to be cut.
    cut: Notify,
}

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    queue_sequence: u64,
    deliveries: u32,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Stored>,
    next: u64,
    volatile: bool,
}

#[derive(Default)]
struct Model {
    settings: Settings,
    queues: BTreeMap<String, Queue>,
    exchanges: BTreeMap<String, u8>,
    /// exchange, queue, key, arguments
    bindings: Vec<(String, String, String, Vec<u8>)>,
    tenants: Vec<String>,
    /// Next sequence and epoch of every producer ever seen.
    producers: HashMap<u64, (u64, u32)>,
    connections: usize,
}

#[derive(Default)]
struct Session {
    producers: BTreeMap<u16, Producer>,
    consumers: BTreeMap<u16, Consumer>,
    received: usize,
    /// Requests of this client count up.
    request_last: u64,
}

struct Producer {
    id: u64,
    level: u8,
    downgrade: bool,
    /// Sequence of the next publish, once there was one.
    next: Option<u64>,
    /// Everything below has its outcome.
    confirmed: u64,
    messages: u64,
    bytes: u64,
    partial: Vec<u8>,
    lowest: u8,
}

struct Consumer {
    queue: String,
    credit: u64,
    no_ack: bool,
    tag_next: u64,
    unsettled: BTreeMap<u64, Stored>,
    /// Request and messages left of a get.
    get: Option<(u64, u32, u32)>,
}

impl Fake {
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let shared = Arc::new(Shared {
            model: Mutex::new(Model {
                settings,
                ..Model::default()
            }),
            changed: Notify::new(),
            cut: Notify::new(),
        });
        let task = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            task,
        }
    }

    /// Changes settings.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.model.lock().expect("model").settings);
        self.shared.changed.notify_waiters();
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Payloads ready in a queue.
    pub fn ready(&self, queue: &str) -> Vec<Vec<u8>> {
        let model = self.shared.model.lock().expect("model");
        let stored = model
            .queues
            .get(queue)
            .into_iter()
            .flat_map(|queue| &queue.ready);
        stored
            .map(|stored| {
                envelope::open(&stored.bytes)
                    .expect("checked")
                    .payload()
                    .to_vec()
            })
            .collect()
    }

    pub fn connections(&self) -> usize {
        self.shared.model.lock().expect("model").connections
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a socket");
        shared.model.lock().expect("model").connections += 1;
        tokio::spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut session = Session::default();
    let mut received = BytesMut::with_capacity(1 << 20);
    let mut out = Vec::new();
    let cut = shared.cut.notified();
    tokio::pin!(cut);
    'serving: loop {
        let changed = shared.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let mut is_over = false;
        let mut has_changed = false;
        while let Cut::Complete { header, length } = ringpost_wire::cut(&received, FRAME_BYTES_MAX)
        {
            let bytes = received.split_to(length).freeze();
            let end = FRAME_HEADER_BYTES + header.body_bytes as usize;
            let body = bytes.slice(FRAME_HEADER_BYTES..end);
            let mut model = shared.model.lock().expect("model");
            match session.frame(&mut model, &header, body, &mut out) {
                Ok(changed) => has_changed |= changed,
                Err(code) => {
                    let close = FrameHeader::bare(FrameKind::Close, 0, 0);
                    control::write_failure(&mut out, close, code, "says the fake broker");
                    is_over = true;
                    break;
                }
            }
        }
        {
            let mut model = shared.model.lock().expect("model");
            if model
                .settings
                .cut_after_bytes
                .is_some_and(|most| session.received >= most)
            {
                model.settings.cut_after_bytes = None;
                break 'serving;
            }
            session.turn(&mut model, &mut out);
        }
        if has_changed {
            shared.changed.notify_waiters();
        }
        if stream.write_all(&out).await.is_err() || is_over {
            break;
        }
        out.clear();
        received.reserve(1 << 18);
        tokio::select! {
            result = stream.read_buf(&mut received) => match result {
                Ok(0) | Err(_) => break,
                Ok(count) => session.received += count,
            },
            () = changed => {}
            () = &mut cut => break,
        }
    }
    session.end(&mut shared.model.lock().expect("model"));
    shared.changed.notify_waiters();
}

impl Session {
    /// Everything unsettled returns to its queue.
    fn end(self, model: &mut Model) {
        for consumer in self.consumers.into_values() {
            let queue = model.queues.entry(consumer.queue).or_default();
            for stored in consumer.unsettled.into_values().rev() {
                queue.put_back(stored);
            }
        }
    }

    /// Takes one frame; whether other connections may be concerned.
    fn frame(
        &mut self,
        model: &mut Model,
        header: &FrameHeader,
        body: Bytes,
        out: &mut Vec<u8>,
    ) -> Result<bool, Code> {
        if header.kind != FrameKind::Publish {
            frame::check_body(header, &body)?;
        }
        let is_request = header.kind as u8 >= FrameKind::ProducerOpen as u8
            && !matches!(
                header.kind,
                FrameKind::Publish
                    | FrameKind::PublishFragment
                    | FrameKind::Settle
                    | FrameKind::ConsumerCredit
            );
        if is_request && header.sequence <= self.request_last {
            return Err(Code::UnexpectedFrame);
        }
        if is_request {
            self.request_last = header.sequence;
        }
        match header.kind {
            FrameKind::Hello => welcome(out),
            FrameKind::Heartbeat => {}
            FrameKind::Close => return Err(Code::Normal),
            FrameKind::Attach => {
                let queue = control::Attach::decode(&body)?.queue;
                if model.queues.contains_key(text(queue)) {
                    frame::write_bare(out, FrameKind::Attached, 0, header.sequence);
                } else {
                    failed(out, header.sequence, Code::QueueUnknown);
                }
            }
            FrameKind::ProducerOpen => self.open_producer(model, header, &body, out)?,
            FrameKind::Publish => return self.publish(model, header, &body, out),
            FrameKind::PublishFragment => return self.fragment(model, header, &body, out),
            FrameKind::ProducerClose => {
                self.producers
                    .remove(&header.channel)
                    .ok_or(Code::ChannelInvalid)?;
                let closed = FrameHeader::bare(FrameKind::ProducerClosed, header.channel, 0);
                control::write_failure(out, closed, Code::Normal, "");
            }
            FrameKind::ConsumerOpen => {
                let open = ConsumerOpen::decode(&body)?;
                if !model.queues.contains_key(text(open.queue)) {
                    let kind = FrameKind::Failed;
                    let failed = FrameHeader::bare(kind, header.channel, header.sequence);
                    control::write_failure(out, failed, Code::QueueUnknown, "no such queue");
                    return Ok(false);
                }
                let consumer = Consumer {
                    queue: text(open.queue).to_owned(),
                    credit: u64::from(open.credit_messages),
                    no_ack: open.flags & control::CONSUMER_NO_ACK != 0,
                    tag_next: 1,
                    unsettled: BTreeMap::new(),
                    get: None,
                };
                self.consumers.insert(header.channel, consumer);
                frame::write_bare(
                    out,
                    FrameKind::ConsumerOpened,
                    header.channel,
                    header.sequence,
                );
            }
            FrameKind::Settle => return self.settle(model, header, &body, out),
            FrameKind::ConsumerCredit => {
                let credit = ConsumerCredit::decode(&body)?;
                let consumer = self
                    .consumers
                    .get_mut(&header.channel)
                    .ok_or(Code::ChannelInvalid)?;
                consumer.credit = u64::from(credit.messages);
            }
            FrameKind::Get => {
                let wait = Get::decode(&body)?.wait_ms;
                let consumer = self
                    .consumers
                    .get_mut(&header.channel)
                    .ok_or(Code::ChannelInvalid)?;
                consumer.get = Some((header.sequence, header.count, wait));
            }
            FrameKind::ConsumerClose => {
                let consumer = self
                    .consumers
                    .remove(&header.channel)
                    .ok_or(Code::ChannelInvalid)?;
                let queue = model.queues.entry(consumer.queue).or_default();
                for stored in consumer.unsettled.into_values().rev() {
                    queue.put_back(stored);
                }
                let closed = FrameHeader::bare(FrameKind::ConsumerClosed, header.channel, 0);
                control::write_failure(out, closed, Code::Normal, "");
                return Ok(true);
            }
            _ => admin(model, header, &body, out)?,
        }
        Ok(false)
    }

    fn open_producer(
        &mut self,
        model: &mut Model,
        header: &FrameHeader,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Code> {
        let open = ProducerOpen::decode(body)?;
        let known = model.producers.entry(open.producer).or_insert((1, 0));
        if open.epoch <= known.1 {
            let failed = FrameHeader::bare(FrameKind::Failed, header.channel, header.sequence);
            control::write_failure(out, failed, Code::ProducerFenced, "");
            return Ok(());
        }
        known.1 = open.epoch;
        if !model.settings.knows_producers {
            known.0 = 1;
        }
        let producer = Producer {
            id: open.producer,
            level: open.level,
            downgrade: open.flags & control::PRODUCER_DOWNGRADE != 0,
            next: None,
            confirmed: 0,
            messages: 0,
            bytes: 0,
            partial: Vec::new(),
            lowest: open.level,
        };
        let opened = ProducerOpened {
            sequence: known.0,
            messages: model.settings.credit_messages,
            bytes: model.settings.credit_bytes,
        };
        self.producers.insert(header.channel, producer);
        opened.write(
            out,
            FrameHeader::bare(FrameKind::ProducerOpened, header.channel, 0),
        );
        Ok(())
    }

    fn publish(
        &mut self,
        model: &mut Model,
        header: &FrameHeader,
        body: &Bytes,
        out: &mut Vec<u8>,
    ) -> Result<bool, Code> {
        let producer = self
            .producers
            .get_mut(&header.channel)
            .ok_or(Code::ChannelInvalid)?;
        producer.follow(header.sequence)?;
        let mut count = 0;
        for message in Messages::new(body) {
            let message = message?;
            message.envelope.check_crc()?;
            producer.take(model, message.bytes.len())?;
            let sequence = header.sequence + count;
            let bytes = body.slice_ref(message.bytes);
            producer.route(model, header, sequence, &bytes, out)?;
            count += 1;
        }
        if count != u64::from(header.count) {
            return Err(Code::BodyMalformed);
        }
        producer.publish_done(model, count);
        Ok(true)
    }

    fn fragment(
        &mut self,
        model: &mut Model,
        header: &FrameHeader,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool, Code> {
        let producer = self
            .producers
            .get_mut(&header.channel)
            .ok_or(Code::ChannelInvalid)?;
        producer.follow(header.sequence)?;
        let (head, piece) = FragmentHead::split(body)?;
        if head.offset == 0 {
            producer.take(model, padded(head.message_bytes as usize))?;
        }
        if producer.partial.len() != head.offset as usize {
            return Err(Code::BodyMalformed);
        }
        producer.partial.extend_from_slice(piece);
        if !head.is_last() {
            return Ok(false);
        }
        let mut bytes = std::mem::take(&mut producer.partial);
        envelope::open(&bytes)?.check_crc()?;
        bytes.resize(padded(bytes.len()), 0);
        producer.route(model, header, header.sequence, &Bytes::from(bytes), out)?;
        producer.publish_done(model, 1);
        Ok(true)
    }

    fn settle(
        &mut self,
        model: &mut Model,
        header: &FrameHeader,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool, Code> {
        let ranges: Vec<_> = SettleRange::parse(body, header.count)?.collect();
        let consumer = self
            .consumers
            .get_mut(&header.channel)
            .ok_or(Code::ChannelInvalid)?;
        for range in ranges {
            let from = if range.first == 0 { 1 } else { range.first };
            let is_known = range.first == 0
                || (from..=range.last).all(|tag| consumer.unsettled.contains_key(&tag));
            if !is_known {
                let closed = FrameHeader::bare(FrameKind::ConsumerClosed, header.channel, 0);
                control::write_failure(out, closed, Code::UnknownDelivery, "");
                self.consumers.remove(&header.channel);
                return Ok(false);
            }
            for tag in (from..=range.last).rev() {
                let Some(stored) = consumer.unsettled.remove(&tag) else {
                    continue;
                };
                if header.flags & SETTLE_OUTCOME == SETTLE_REQUEUE {
                    model
                        .queues
                        .entry(consumer.queue.clone())
                        .or_default()
                        .put_back(stored);
                }
            }
        }
        if header.flags & SETTLE_CONFIRM != 0 {
            frame::write_bare(out, FrameKind::Settled, header.channel, header.sequence);
        }
        Ok(true)
    }

    /// Confirms and delivers what can be.
    fn turn(&mut self, model: &mut Model, out: &mut Vec<u8>) {
        for (channel, producer) in &mut self.producers {
            let next = producer.next.unwrap_or_default();
            if next > producer.confirmed && !model.settings.holds_confirms {
                producer.confirmed = next;
                let credit = ProducerCredit {
                    messages: producer.messages + model.settings.credit_messages,
                    bytes: producer.bytes + model.settings.credit_bytes,
                };
                if producer.level == control::Level::None as u8 {
                    credit.write(
                        out,
                        FrameHeader::bare(FrameKind::ProducerCredit, *channel, 0),
                    );
                } else {
                    let header = FrameHeader {
                        flags: producer.lowest,
                        ..FrameHeader::bare(FrameKind::Confirm, *channel, next - 1)
                    };
                    credit.write(out, header);
                    producer.lowest = producer.level;
                }
            }
        }
        for (channel, consumer) in &mut self.consumers {
            consumer.deliver(model, *channel, out);
        }
    }
}

impl Producer {
    /// Checks that no sequence is left out.
    fn follow(&mut self, sequence: u64) -> Result<(), Code> {
        if self.next.is_none() {
            self.confirmed = sequence;
        }
        match self.next.get_or_insert(sequence) {
            next if *next == sequence => Ok(()),
            _ => Err(Code::SequenceGap),
        }
    }

    /// Counts a message against the credit.
    fn take(&mut self, model: &Model, bytes: usize) -> Result<(), Code> {
        self.messages += 1;
        self.bytes += bytes as u64;
        // What was granted is what was confirmed and the window, at least what it was opened with.
        let unconfirmed = self.next.unwrap_or(self.confirmed) - self.confirmed;
        if unconfirmed >= model.settings.credit_messages {
            return Err(Code::CreditExceeded);
        }
        Ok(())
    }

    fn publish_done(&mut self, model: &mut Model, count: u64) {
        let next = self.next.map_or(0, |next| next + count);
        self.next = Some(next);
        if let Some(known) = model.producers.get_mut(&self.id) {
            known.0 = known.0.max(next);
        }
    }

    fn route(
        &mut self,
        model: &mut Model,
        header: &FrameHeader,
        sequence: u64,
        bytes: &Bytes,
        out: &mut Vec<u8>,
    ) -> Result<(), Code> {
        let is_stored = |known: &(u64, u32)| sequence < known.0;
        if model.settings.knows_producers && model.producers.get(&self.id).is_some_and(is_stored) {
            return Ok(());
        }
        let message = envelope::open(bytes)?;
        let (exchange, key) = (text(message.exchange()), text(message.routing_key()));
        let names: Vec<String> = if exchange.is_empty() {
            vec![key.to_owned()]
        } else {
            let bindings = model.bindings.iter();
            let fitting = bindings.filter(|binding| binding.0 == exchange && binding.2 == key);
            fitting.map(|binding| binding.1.clone()).collect()
        };
        let mut refused = None;
        let mut targets = 0;
        for name in &names {
            let most = model.settings.queue_messages_max;
            if let Some(queue) = model.queues.get(name) {
                targets += 1;
                if queue.ready.len() >= most {
                    refused = Some(Code::QueueFull);
                }
                if queue.volatile && self.level == control::Level::Durable as u8 {
                    if self.downgrade {
                        self.lowest = control::Level::Volatile as u8;
                    } else {
                        refused = Some(Code::LevelUnavailable);
                    }
                }
            }
        }
        if targets == 0 && header.flags & PUBLISH_MANDATORY != 0 {
            refused = Some(Code::Unroutable);
        }
        if let Some(code) = refused {
            let header = FrameHeader {
                count: 1,
                ..FrameHeader::bare(FrameKind::Refused, header.channel, sequence)
            };
            control::write_failure(out, header, code, "says the fake broker");
            return Ok(());
        }
        for name in &names {
            if let Some(queue) = model.queues.get_mut(name) {
                queue.next += 1;
                queue.ready.push_back(Stored {
                    bytes: bytes.clone(),
                    queue_sequence: queue.next,
                    deliveries: 0,
                });
            }
        }
        Ok(())
    }
}

impl Queue {
    fn put_back(&mut self, mut stored: Stored) {
        stored.deliveries += 1;
        let place = self
            .ready
            .partition_point(|other| other.queue_sequence < stored.queue_sequence);
        self.ready.insert(place, stored);
    }
}

impl Consumer {
    fn deliver(&mut self, model: &mut Model, channel: u16, out: &mut Vec<u8>) {
        let Some(queue) = model.queues.get_mut(&self.queue) else {
            return;
        };
        let mut given = 0;
        loop {
            let unsettled = self.unsettled.len() as u64;
            let room = match self.get {
                Some((_, count, _)) => u64::from(count - given),
                None if self.no_ack => self.credit,
                None => self.credit.saturating_sub(unsettled),
            };
            let most = room.min(model.settings.deliver_count_max as u64) as usize;
            let run = run_of(&queue.ready, most);
            if run == 0 {
                break;
            }
            let messages: Vec<Stored> = queue.ready.drain(..run).collect();
            given += run as u32;
            write_run(out, channel, self.tag_next, &messages);
            for stored in messages {
                if !self.no_ack {
                    self.unsettled.insert(self.tag_next, stored);
                }
                self.tag_next += 1;
            }
        }
        if let Some((request, _, wait)) = self.get
            && (given > 0 || wait == 0)
        {
            self.get = None;
            let header = FrameHeader {
                count: given,
                ..FrameHeader::bare(FrameKind::GetDone, channel, request)
            };
            frame::write(out, header, &[]);
        }
    }
}

/// How many of the first messages can share a frame.
fn run_of(ready: &VecDeque<Stored>, most: usize) -> usize {
    let Some(first) = ready.front() else {
        return 0;
    };
    let mut bytes = 0;
    let is_joined = |(place, stored): &(usize, &Stored)| {
        bytes += stored.bytes.len();
        stored.queue_sequence == first.queue_sequence + *place as u64
            && stored.deliveries == first.deliveries
            && (*place == 0 || bytes <= FRAGMENT_BYTES_MAX)
    };
    ready
        .iter()
        .enumerate()
        .take(most)
        .take_while(is_joined)
        .count()
}

fn write_run(out: &mut Vec<u8>, channel: u16, tag: u64, messages: &[Stored]) {
    let head = DeliverHead {
        queue_sequence: messages[0].queue_sequence,
        delivery_count: messages[0].deliveries,
    };
    let flags = if head.delivery_count > 0 {
        DELIVER_REDELIVERED
    } else {
        0
    };
    let length = envelope::length_of(&messages[0].bytes).expect("a message");
    if length <= FRAGMENT_BYTES_MAX {
        let body: Vec<u8> = messages
            .iter()
            .flat_map(|stored| stored.bytes.to_vec())
            .collect();
        let count = messages.len() as u32;
        out.extend(deliver_frame(channel, tag, count, flags, &head, &body));
        return;
    }
    let mut offset = 0;
    while offset < length {
        let fragment = FragmentHead {
            message_bytes: length as u32,
            offset: offset as u32,
        };
        let piece = &messages[0].bytes[offset..offset + fragment.piece_bytes()];
        let body = [&head.encode()[..], &fragment.encode()[..], piece].concat();
        let header = FrameHeader {
            flags,
            count: 1,
            ..FrameHeader::bare(FrameKind::DeliverFragment, channel, tag)
        };
        frame::write(out, header, &body);
        offset += piece.len();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("names are UTF-8")
}

fn failed(out: &mut Vec<u8>, request: u64, code: Code) {
    let header = FrameHeader::bare(FrameKind::Failed, 0, request);
    control::write_failure(out, header, code, "says the fake broker");
}

fn welcome(out: &mut Vec<u8>) {
    let welcome = Welcome {
        magic: version::MAGIC,
        version: version::VERSION_MAX,
        core: 0,
        cores: 2,
        channels_max: 64,
        heartbeat_ms: 10_000,
        frame_bytes_max: FRAME_BYTES_MAX as u32,
        message_bytes_max: 4 << 20,
        credit_messages_max: 100_000,
        connection: 1,
        server: b"fake 1",
    };
    welcome.write(out, FrameHeader::bare(FrameKind::Welcome, 0, 0));
}

fn admin(
    model: &mut Model,
    header: &FrameHeader,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Code> {
    let request = header.sequence;
    let mut done = |changed, count| control::write_done(out, request, changed, count);
    match header.kind {
        FrameKind::QueueDeclare => {
            let declare = QueueDeclare::decode(body)?;
            let name = text(declare.name).to_owned();
            let volatile = declare.durability == control::Durability::Volatile as u8;
            match model.queues.get(&name) {
                _ if !control::is_name(declare.name) => failed(out, request, Code::NameInvalid),
                None if declare.flags & control::DECLARE_PASSIVE != 0 => {
                    failed(out, request, Code::QueueUnknown);
                }
                Some(queue)
                    if queue.volatile != volatile
                        && declare.flags & control::DECLARE_PASSIVE == 0 =>
                {
                    failed(out, request, Code::PreconditionFailed);
                }
                Some(_) => done(false, 0),
                None => {
                    model.queues.insert(
                        name,
                        Queue {
                            volatile,
                            ..Queue::default()
                        },
                    );
                    done(true, 0);
                }
            }
        }
        FrameKind::QueueDelete => {
            let delete = Delete::decode(body)?;
            let name = text(delete.name);
            let is_full = model.queues.get(name).map(|queue| !queue.ready.is_empty());
            match is_full {
                None => failed(out, request, Code::QueueUnknown),
                Some(true) if delete.flags & control::DELETE_IF_EMPTY != 0 => {
                    failed(out, request, Code::InUse);
                }
                Some(_) => {
                    let queue = model.queues.remove(name).expect("looked up");
                    done(true, queue.ready.len() as u32);
                }
            }
        }
        FrameKind::QueuePurge => {
            let name = text(Named::decode(body)?.name).to_owned();
            match model.queues.get_mut(&name) {
                Some(queue) => {
                    let count = queue.ready.len() as u32;
                    queue.ready.clear();
                    done(count > 0, count);
                }
                None => failed(out, request, Code::QueueUnknown),
            }
        }
        FrameKind::QueueInspect => {
            let name = text(Named::decode(body)?.name).to_owned();
            match model.queues.get(&name) {
                Some(queue) => queue_info(&name, queue, request, out),
                None => failed(out, request, Code::QueueUnknown),
            }
        }
        FrameKind::QueueList => {
            for (name, queue) in &model.queues {
                queue_info(name, queue, request, out);
            }
            control::write_done(out, request, false, model.queues.len() as u32);
        }
        FrameKind::ExchangeDeclare => {
            let declare = ExchangeDeclare::decode(body)?;
            let old = model
                .exchanges
                .insert(text(declare.name).to_owned(), declare.kind);
            done(old.is_none(), 0);
        }
        FrameKind::ExchangeDelete => {
            let name = text(Delete::decode(body)?.name);
            match model.exchanges.remove(name) {
                Some(_) => done(true, 0),
                None => failed(out, request, Code::ExchangeUnknown),
            }
        }
        FrameKind::ExchangeList => {
            for (name, kind) in &model.exchanges {
                let info = ExchangeDeclare {
                    kind: *kind,
                    durability: 1,
                    flags: 0,
                    reserved: 0,
                    name: name.as_bytes(),
                    arguments: &[],
                };
                info.write(out, FrameHeader::bare(FrameKind::ExchangeInfo, 0, request));
            }
            control::write_done(out, request, false, 0);
        }
        FrameKind::Bind | FrameKind::Unbind => {
            let bind = Bind::decode(body)?;
            let binding = (
                text(bind.exchange).to_owned(),
                text(bind.target).to_owned(),
                text(bind.key).to_owned(),
                bind.arguments.to_vec(),
            );
            let place = model.bindings.iter().position(|other| *other == binding);
            match (header.kind, place) {
                (FrameKind::Bind, None) => {
                    model.bindings.push(binding);
                    done(true, 0);
                }
                (FrameKind::Bind, Some(_)) => done(false, 0),
                (_, Some(place)) => {
                    model.bindings.remove(place);
                    done(true, 0);
                }
                (_, None) => failed(out, request, Code::BindingUnknown),
            }
        }
        FrameKind::BindingList => {
            for (exchange, queue, key, arguments) in &model.bindings {
                let info = Bind {
                    flags: 0,
                    exchange: exchange.as_bytes(),
                    target: queue.as_bytes(),
                    key: key.as_bytes(),
                    arguments,
                };
                info.write(out, FrameHeader::bare(FrameKind::BindingInfo, 0, request));
            }
            control::write_done(out, request, false, 0);
        }
        FrameKind::TenantDeclare | FrameKind::TenantDelete => {
            let name = text(Named::decode(body)?.name).to_owned();
            let place = model.tenants.iter().position(|other| *other == name);
            match (header.kind, place) {
                (FrameKind::TenantDeclare, None) => {
                    model.tenants.push(name);
                    done(true, 0);
                }
                (FrameKind::TenantDeclare, Some(_)) => done(false, 0),
                (_, Some(place)) => {
                    model.tenants.remove(place);
                    done(true, 0);
                }
                (_, None) => failed(out, request, Code::TenantUnknown),
            }
        }
        FrameKind::TenantList => {
            for name in &model.tenants {
                let named = Named {
                    name: name.as_bytes(),
                };
                named.write(out, FrameHeader::bare(FrameKind::TenantInfo, 0, request));
            }
            control::write_done(out, request, false, 0);
        }
        _ => return Err(Code::UnexpectedFrame),
    }
    Ok(())
}

fn queue_info(name: &str, queue: &Queue, request: u64, out: &mut Vec<u8>) {
    let info = QueueInfo {
        ready: queue.ready.len() as u64,
        unacked: 0,
        bytes: queue
            .ready
            .iter()
            .map(|stored| stored.bytes.len() as u64)
            .sum(),
        published: queue.next,
        settled: 0,
        messages_max: 0,
        bytes_max: 0,
        delayed: 0,
        due_ms: 0,
        dead: 0,
        recent_ms: 0,
        recent_arrived: 0,
        recent_left: 0,
        recent_taken: 0,
        wait_mean_us: 0,
        wait_p50_us: 0,
        wait_p99_us: 0,
        wait_max_us: 0,
        id: 1,
        consumers: 0,
        core: 0,
        partition: 0,
        durability: u8::from(!queue.volatile),
        flags: 0,
        lanes: 0,
        name: name.as_bytes(),
    };
    info.write(out, FrameHeader::bare(FrameKind::QueueInfo, 0, request));
}
