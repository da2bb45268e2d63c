//! One load thread that speaks the raw protocol: its connections, what its producers send, what its
//! consumers check. Lean, so that one core can drive a broker's core: one write a batch, templates that
//! are patched, checks by stamp. Does not know when a run starts or ends; the run tells it.

mod producer;
mod server;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::Events;
use ringpost_wire::control::{Body, ConsumerOpen, ProducerCredit, ProducerOpen, ProducerOpened};
use ringpost_wire::{
    Cut, DeliverHead, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, SettleRange,
    cut, envelope, frame, header, padded,
};

use self::producer::Producer;
use self::server::Server;
use crate::arrivals::Schedule;
use crate::link::{Link, refusal};
use crate::message::{Stamp, Template};
use crate::pipe::Pipe;
use crate::plan::{Plan, Service};
use crate::receipts::{Kind, Receipts};
use crate::routes;
use crate::source::Source;
use crate::tally::{Expected, Shared, Tally, count};
use crate::thread::{self, Thread, Turn, WAIT_MAX, mine};
use crate::{Error, Result};

/// Bytes of one receive; two of the largest frames, so that a partial one leaves room for a whole.
const RECEIVE_BYTES: usize = 2 * FRAME_BYTES_MAX;
/// Credit in bytes asked for by a consumer.
const CREDIT_BYTES: u64 = 64 << 20;

/// One load thread.
pub struct Engine<'a> {
    thread: Thread<'a>,
    conns: Vec<Conn>,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    /// Places of the consumers that take time.
    slow: Vec<usize>,
    expected: Expected,
    room: Vec<u8>,
    batch: u32,
    heartbeat_ns: u64,
    heartbeat_due_ns: u64,
}

/// A connection and what its channels are.
struct Conn {
    pipe: Pipe,
    /// What the channels are, from channel 1 on.
    roles: Vec<Role>,
    /// Consumers with deliveries that are not settled yet.
    touched: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Role {
    Producer(usize),
    Consumer(usize),
}

struct Consumer {
    conn: usize,
    queue: u32,
    /// Which of the consumers of the queue it is.
    copy: u32,
    channel: u16,
    is_open: bool,
    /// Highest tag delivered.
    tag: u64,
    settled: u64,
    is_touched: bool,
    /// Works on each message for a while, and settles then.
    server: Option<Server>,
    /// Its deliveries are told apart from those of other consumers.
    is_told_apart: bool,
}

/// A number that no other producer has, of no other run either: a broker takes publishes of a producer
/// whose name it knows for repetitions, and confirms them without storing them (P-38).
pub(crate) fn fresh_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl<'a> Engine<'a> {
    /// Connects everything that is thread `index`'s.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub fn connect(plan: &'a Plan, shared: &'a Shared, index: usize) -> Result<Self> {
        let mut engine = Self {
            thread: Thread::new(plan, shared, index)?,
            conns: Vec::new(),
            producers: Vec::new(),
            consumers: Vec::new(),
            slow: Vec::new(),
            expected: Expected::new(plan),
            room: vec![0; RECEIVE_BYTES],
            batch: plan.batch_fitting(),
            heartbeat_ns: u64::MAX,
            heartbeat_due_ns: u64::MAX,
        };
        engine.connect_producers(index)?;
        engine.connect_consumers(index)?;
        engine.heartbeat_due_ns = shared.now_ns().saturating_add(engine.heartbeat_ns);
        Ok(engine)
    }

    fn connect_producers(&mut self, index: usize) -> Result<()> {
        let plan = self.thread.plan;
        let carriers = thread::producer_carriers(plan);
        for carrier in mine(carriers, index, plan.threads()) {
            let first = carrier % plan.groups() * plan.fan_out;
            let near = plan.producers_near.clone();
            let near = near.unwrap_or_else(|| plan.queue_name(first));
            let conn = self.add_conn(near)?;
            for number in (carrier..plan.producers).step_by(carriers as usize) {
                self.open_producer(conn, number)?;
            }
            self.conns[conn].pipe.flush()?;
        }
        Ok(())
    }

    fn connect_consumers(&mut self, index: usize) -> Result<()> {
        let plan = self.thread.plan;
        let places = plan.queues * plan.consumers;
        let carriers = thread::consumer_carriers(plan);
        for carrier in mine(carriers, index, plan.threads()) {
            let conn = self.add_conn(plan.queue_name(carrier % plan.queues))?;
            for place in (carrier..places).step_by(carriers as usize) {
                self.open_consumer(conn, place % plan.queues, place / plan.queues)?;
            }
            self.conns[conn].pipe.flush()?;
        }
        Ok(())
    }

    fn add_conn(&mut self, near: String) -> Result<usize> {
        let mut link = Link::connect(self.thread.plan.address)?;
        link.attach(&near)?;
        let interval = u64::try_from(link.heartbeat().as_nanos()).unwrap_or(u64::MAX);
        self.heartbeat_ns = self.heartbeat_ns.min((interval / 3).max(1));
        let place = self.conns.len();
        self.conns.push(Conn {
            pipe: Pipe::new(self.thread.watch(link.into_socket(), place)?),
            roles: Vec::new(),
            touched: Vec::new(),
        });
        Ok(place)
    }

    fn open_producer(&mut self, conn: usize, number: u32) -> Result<()> {
        let plan = self.thread.plan;
        let templates: Result<Vec<Template>> = plan
            .groups_of_producer(number)
            .map(|group| {
                let route = routes::route(plan, group);
                Template::new(route.way(), plan.payload_bytes_max())
            })
            .collect();
        let place = self.producers.len();
        let roles = &mut self.conns[conn].roles;
        roles.push(Role::Producer(place));
        let channel = u16::try_from(roles.len())
            .map_err(|_| Error::Plan("too many channels on a connection".into()))?;
        let open = ProducerOpen {
            producer: fresh_u64().max(1),
            epoch: 1,
            level: plan.level as u8,
            flags: 0,
            reserved: 0,
        };
        let header = FrameHeader::bare(FrameKind::ProducerOpen, channel, u64::from(channel));
        open.write(&mut self.conns[conn].pipe.out, header);
        self.producers.push(Producer {
            source: Source::new(plan, number),
            conn,
            channel,
            templates: templates?,
            is_open: false,
            sequence: 1,
            confirmed: 0,
            used_messages: 0,
            used_bytes: 0,
            credit_messages: 0,
            credit_bytes: 0,
            waiting: VecDeque::new(),
        });
        Ok(())
    }

    fn open_consumer(&mut self, conn: usize, queue: u32, copy: u32) -> Result<()> {
        let name = self.thread.plan.queue_name(queue);
        let place = self.consumers.len();
        let roles = &mut self.conns[conn].roles;
        roles.push(Role::Consumer(place));
        let channel = u16::try_from(roles.len())
            .map_err(|_| Error::Plan("too many channels on a connection".into()))?;
        let open = ConsumerOpen {
            credit_bytes: CREDIT_BYTES,
            credit_messages: self.thread.plan.credit,
            flags: 0,
            queue: name.as_bytes(),
            arguments: b"",
        };
        let header = FrameHeader::bare(FrameKind::ConsumerOpen, channel, u64::from(channel));
        open.write(&mut self.conns[conn].pipe.out, header);
        let service = self.thread.plan.service_of(queue);
        let server = (service != Service::None).then(|| {
            let seed = self.thread.plan.seed ^ (place as u64 + 1).wrapping_mul(0x9e37_79b9);
            Server::new(service, seed)
        });
        if server.is_some() {
            self.slow.push(place);
        }
        self.consumers.push(Consumer {
            conn,
            queue,
            copy,
            channel,
            is_open: false,
            tag: 0,
            settled: 0,
            is_touched: false,
            is_told_apart: server.is_some() && self.thread.plan.service_queues > 0,
            server,
        });
        Ok(())
    }

    /// Works until the run is over, then says goodbye on every connection.
    ///
    /// # Errors
    /// If the broker ends a connection or channel, or breaks the protocol.
    pub fn work(mut self) -> Result<Tally> {
        thread::work(&mut self)?;
        self.close()?;
        self.thread.tally.to_ns = self.thread.shared.now_ns();
        Ok(*self.thread.tally)
    }

    // Producing

    fn produce_one(&mut self, place: usize, now: u64) -> Result<u32> {
        let thread = &mut self.thread;
        let producer = &mut self.producers[place];
        let conn = &mut self.conns[producer.conn].pipe;
        producer.source.begin(thread.plan, thread.shared);
        let is_due = producer.source.is_due(now);
        if conn.is_blocked {
            if thread.is_open_loop && is_due {
                thread.tally.counts.socket_waits += 1;
                producer.source.is_held = true;
            }
            return Ok(0);
        }
        let sent = producer.sequence - 1;
        let wanted = thread.room(self.batch, sent, sent - producer.confirmed, is_due);
        if wanted == 0 {
            return Ok(0);
        }
        let each = producer.templates[0].padded_length() as u64 + 16;
        let fits = (producer.credit_messages - producer.used_messages)
            .min((producer.credit_bytes - producer.used_bytes) / each);
        let is_starved = fits < wanted && fits < wanted.div_ceil(4);
        if fits == 0 || (is_starved && producer.sequence - 1 > producer.confirmed) {
            thread.tally.counts.credit_waits += 1;
            producer.source.is_held = true;
            return Ok(0);
        }
        let most = u32::try_from(wanted.min(fits)).unwrap_or(u32::MAX);
        let frame = if thread.plan.is_singly { 1 } else { most };
        let is_measured = now >= thread.measure_from_ns;
        let mut written = 0;
        while written < most && (written == 0 || producer.source.is_due(now)) {
            let tally = is_measured.then_some(&mut *thread.tally);
            written += producer.write_batch(&mut conn.out, frame, now, tally);
        }
        let is_held = producer.source.is_held || fits < wanted;
        producer.source.is_held = producer.source.is_due(now) && is_held;
        if thread.plan.level == ringpost_wire::control::Level::None {
            producer.confirmed = producer.sequence - 1;
            producer.waiting.clear();
            count(&thread.progress.confirmed, u64::from(written));
        }
        conn.flush()?;
        Ok(written)
    }

    // Receiving

    /// Receives once and handles what is whole.
    fn receive(&mut self, place: usize, now: u64) -> Result<()> {
        let mut room = std::mem::take(&mut self.room);
        let is_over = self.thread.is_over();
        let filled = self.conns[place].pipe.receive(&mut room, is_over)?;
        let mut end = 0;
        loop {
            match cut(&room[end..filled], FRAME_BYTES_MAX) {
                Cut::Complete { header, length } => {
                    let body = end + FRAME_HEADER_BYTES;
                    let body = &room[body..body + header.body_bytes as usize];
                    self.take(place, header, body, now)?;
                    end += length;
                }
                Cut::Incomplete { .. } => break,
                Cut::Malformed(code) => return Err(Error::Protocol(format!("{code:?}"))),
            }
        }
        self.conns[place].pipe.keep(&room[end..filled]);
        self.room = room;
        Ok(())
    }

    fn take(&mut self, place: usize, header: FrameHeader, body: &[u8], now: u64) -> Result<()> {
        if header.kind != FrameKind::Deliver && frame::check_body(&header, body).is_err() {
            return Err(Error::Protocol("a body with a wrong checksum".into()));
        }
        match header.kind {
            FrameKind::Heartbeat | FrameKind::Settled => return Ok(()),
            FrameKind::Close if self.thread.is_over() => {
                self.conns[place].pipe.is_closed = true;
                return Ok(());
            }
            _ => {}
        }
        let role = (header.channel as usize)
            .checked_sub(1)
            .and_then(|at| self.conns[place].roles.get(at).copied());
        match role {
            Some(Role::Producer(producer)) => self.take_of_producer(producer, header, body, now),
            Some(Role::Consumer(consumer)) => {
                self.take_of_consumer(place, consumer, header, body, now)
            }
            None => Err(refusal("the connection", header, body)),
        }
    }

    fn take_of_producer(
        &mut self,
        place: usize,
        header: FrameHeader,
        body: &[u8],
        now: u64,
    ) -> Result<()> {
        let malformed = |code| Error::Protocol(format!("{:?}: {code:?}", header.kind));
        let producer = &mut self.producers[place];
        match header.kind {
            FrameKind::Confirm => {
                let credit = ProducerCredit::decode(body).map_err(malformed)?;
                producer.credit_messages = credit.messages;
                producer.credit_bytes = credit.bytes;
                let newly = header.sequence.saturating_sub(producer.confirmed);
                producer.confirmed += newly;
                let thread = &mut self.thread;
                let (from, is_open_loop) = (thread.measure_from_ns, thread.is_open_loop);
                let mut receipts = Receipts::new(Kind::Confirm, from, now, is_open_loop);
                while let Some(first) = producer.waiting.front()
                    && first.last <= header.sequence
                {
                    let (intended_ns, sent_ns) = (first.intended_ns, first.sent_ns);
                    let messages = u64::from(first.count);
                    receipts.add(intended_ns, sent_ns, messages, &mut thread.tally);
                    producer.waiting.pop_front();
                }
                receipts.end(&mut thread.tally);
                count(&self.thread.progress.confirmed, newly);
            }
            FrameKind::ProducerCredit => {
                let credit = ProducerCredit::decode(body).map_err(malformed)?;
                producer.credit_messages = credit.messages;
                producer.credit_bytes = credit.bytes;
            }
            FrameKind::ProducerOpened => {
                let opened = ProducerOpened::decode(body).map_err(malformed)?;
                producer.credit_messages = opened.messages;
                producer.credit_bytes = opened.bytes;
                producer.is_open = true;
                self.note_ready();
            }
            FrameKind::Refused => {
                let refused = u64::from(header.count);
                self.thread.tally.counts.refused += refused;
                count(&self.thread.progress.refused, refused);
                let words = refusal("a publish", header, body).to_string();
                self.thread.tally.counts.first_refusal.get_or_insert(words);
            }
            _ => return Err(refusal("a producer", header, body)),
        }
        Ok(())
    }

    fn take_of_consumer(
        &mut self,
        conn: usize,
        place: usize,
        header: FrameHeader,
        body: &[u8],
        now: u64,
    ) -> Result<()> {
        let consumer = &mut self.consumers[place];
        match header.kind {
            FrameKind::Deliver => {
                if header.sequence != consumer.tag + 1 {
                    let text = format!("tag {} after {}", header.sequence, consumer.tag);
                    return Err(Error::Protocol(text));
                }
                consumer.tag += u64::from(header.count);
                if consumer.server.is_none() && !consumer.is_touched {
                    consumer.is_touched = true;
                    self.conns[conn].touched.push(place);
                }
                if header.flags & header::DELIVER_REDELIVERED != 0 {
                    self.thread.tally.counts.redelivered += u64::from(header.count);
                }
                let seen = self.check(place, &body[DeliverHead::BYTES.min(body.len())..], now)?;
                if seen != header.count {
                    let text = format!("{seen} messages in a frame of {}", header.count);
                    return Err(Error::Protocol(text));
                }
                count(&self.thread.progress.delivered, u64::from(seen));
            }
            FrameKind::ConsumerOpened => {
                consumer.is_open = true;
                self.note_ready();
            }
            _ => return Err(refusal("a consumer", header, body)),
        }
        Ok(())
    }

    /// Checks the messages of a delivery and records their latency; returns how many there are.
    fn check(&mut self, place: usize, mut rest: &[u8], now: u64) -> Result<u32> {
        let consumer = &mut self.consumers[place];
        let (queue, copy) = (consumer.queue, consumer.copy);
        let is_told_apart = consumer.is_told_apart;
        let mut server = consumer.server.as_mut();
        let mut count = 0;
        let kind = match is_told_apart {
            true => Kind::Apart,
            false => Kind::Delivery,
        };
        let from = self.thread.deliveries_from_ns();
        let mut receipts = Receipts::new(kind, from, now, self.thread.is_open_loop);
        let is_verified = self.thread.plan.verify;
        let tally = &mut *self.thread.tally;
        while !rest.is_empty() {
            let length = envelope::length_of(rest).unwrap_or(0);
            let (Some(message), Some(after)) = (rest.get(..length), rest.get(padded(length)..))
            else {
                return Err(Error::Protocol("a message that is not whole".into()));
            };
            if is_verified {
                let opened = envelope::open(message);
                if !opened.is_ok_and(|envelope| envelope.check_crc().is_ok()) {
                    tally.counts.corrupt += 1;
                }
            }
            let Some(stamp) = Stamp::of(message) else {
                return Err(Error::Protocol("a message without a stamp".into()));
            };
            self.expected.see(&stamp, queue, copy, tally);
            receipts.see(&stamp, tally);
            if let Some(server) = &mut server {
                server.take(now, stamp.intended_ns);
            }
            count += 1;
            rest = after;
        }
        receipts.end(tally);
        Ok(count)
    }

    fn note_ready(&mut self) {
        let is_ready = self.producers.iter().all(|producer| producer.is_open)
            && self.consumers.iter().all(|consumer| consumer.is_open);
        self.thread
            .progress
            .is_ready
            .store(is_ready, Ordering::Release);
    }

    // Sending

    /// Settles all that one receive brought, one frame for each consumer.
    fn settle(&mut self, place: usize) {
        let conn = &mut self.conns[place];
        let mut sum = 0;
        for at in conn.touched.drain(..) {
            let consumer = &mut self.consumers[at];
            consumer.is_touched = false;
            sum += consumer.tag - consumer.settled;
            consumer.settled = consumer.tag;
            write_settle(&mut conn.pipe.out, consumer.channel, consumer.tag);
        }
        count(&self.thread.progress.settled, sum);
    }

    /// Settles what consumers that take time are done with; when the load has stopped, all.
    fn serve(&mut self, now: u64) -> Result<()> {
        let is_stopped = self.thread.shared.is_stopped.load(Ordering::Relaxed);
        let from = self.thread.deliveries_from_ns();
        let mut sum = 0;
        for at in 0..self.slow.len() {
            let consumer = &mut self.consumers[self.slow[at]];
            let Some(server) = &mut consumer.server else {
                continue;
            };
            let done = server.finish(now, is_stopped, from, &mut self.thread.tally.served);
            if done == 0 {
                continue;
            }
            sum += done;
            consumer.settled += done;
            let conn = consumer.conn;
            write_settle(
                &mut self.conns[conn].pipe.out,
                consumer.channel,
                consumer.settled,
            );
            self.conns[conn].pipe.flush()?;
        }
        count(&self.thread.progress.settled, sum);
        Ok(())
    }

    /// Ends every connection and waits for the broker's answer, so that all settlements hold.
    fn close(&mut self) -> Result<()> {
        for place in 0..self.conns.len() {
            let header = FrameHeader::bare(FrameKind::Close, 0, 0);
            let out = &mut self.conns[place].pipe.out;
            ringpost_wire::control::write_failure(out, header, ringpost_wire::Code::Normal, "");
            self.conns[place].pipe.flush()?;
        }
        let mut events = Events::with_capacity(1024);
        let deadline = self.thread.shared.now_ns() + 5_000_000_000;
        while self.conns.iter().any(|conn| !conn.pipe.is_closed) {
            let now = self.thread.shared.now_ns();
            if now > deadline {
                let left = self
                    .conns
                    .iter()
                    .filter(|conn| !conn.pipe.is_closed)
                    .count();
                let text = format!("{left} connections get no answer to Close");
                return Err(Error::Stalled(text));
            }
            self.thread.wait(&mut events, WAIT_MAX)?;
            self.handle(&events, now)?;
        }
        Ok(())
    }
}

impl<'a> Turn<'a> for Engine<'a> {
    fn thread(&mut self) -> &mut Thread<'a> {
        &mut self.thread
    }

    /// At most one batch a producer.
    fn produce(&mut self, now: u64) -> Result<u32> {
        if self.producers.is_empty() || !self.thread.is_producing() {
            return Ok(0);
        }
        let mut sum = 0;
        for place in 0..self.producers.len() {
            sum += self.produce_one(place, now)?;
        }
        if sum > 0 {
            count(&self.thread.progress.published, u64::from(sum));
        }
        Ok(sum)
    }

    fn wait_for(&self, now: u64, produced: u32) -> Duration {
        let is_idle = produced == 0 && self.conns.iter().all(|conn| !conn.pipe.is_readable);
        if !is_idle {
            return Duration::ZERO;
        }
        let is_paced = self.thread.is_paced();
        let schedules = self.producers.iter().filter(|_| is_paced);
        let due = schedules.filter_map(|one| one.source.schedule.as_ref().map(Schedule::due_ns));
        let slow = self.slow.iter().filter_map(|place| {
            let server = self.consumers[*place].server.as_ref()?;
            server.next().map(|finish_ns| finish_ns as f64)
        });
        Thread::until(now, due.chain(slow))
    }

    fn handle(&mut self, events: &Events, now: u64) -> Result<bool> {
        for event in events {
            self.conns[event.token().0].pipe.note(event);
        }
        let mut worked = false;
        for place in 0..self.conns.len() {
            if self.conns[place].pipe.is_readable {
                worked = true;
                self.receive(place, now)?;
                self.settle(place);
            }
            self.conns[place].pipe.flush()?;
        }
        if !self.slow.is_empty() {
            self.serve(now)?;
        }
        Ok(worked)
    }

    fn beat(&mut self, now: u64) -> Result<()> {
        if now < self.heartbeat_due_ns {
            return Ok(());
        }
        self.heartbeat_due_ns = now + self.heartbeat_ns;
        for place in 0..self.conns.len() {
            frame::write_bare(&mut self.conns[place].pipe.out, FrameKind::Heartbeat, 0, 0);
            self.conns[place].pipe.flush()?;
        }
        Ok(())
    }

    fn schedules(&self, each: &mut dyn FnMut(&Schedule)) {
        for producer in &self.producers {
            producer.source.schedule.iter().for_each(&mut *each);
        }
    }
}

/// Acks everything up to a tag.
fn write_settle(out: &mut Vec<u8>, channel: u16, last: u64) {
    let range = SettleRange { first: 0, last };
    let mut header = FrameHeader::bare(FrameKind::Settle, channel, 0);
    header.count = 1;
    header.flags = header::SETTLE_ACK;
    frame::write(out, header, &range.encode());
}
