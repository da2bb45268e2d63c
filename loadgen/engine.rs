//! One load thread: its sockets, when its producers send, what its consumers check. Lean, so that
//! one core can drive a broker's core: one write a batch, templates that are patched, checks by
//! stamp. Does not know when a run starts or ends; the run tells it.

mod producer;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use ringpost_wire::control::{Body, ConsumerOpen, ProducerCredit, ProducerOpen, ProducerOpened};
use ringpost_wire::{
    Cut, DeliverHead, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, SettleRange,
    cut, envelope, frame, header, padded,
};

use self::producer::{Lane, Producer};
use crate::link::{Link, refusal};
use crate::message::{Random, Stamp, Template};
use crate::plan::{Pace, Plan};
use crate::tally::{Expected, Progress, Shared, Sums, Tally};
use crate::{Error, Result};

/// Bytes of one receive; two of the largest frames, so that a partial one leaves room for a whole.
const RECEIVE_BYTES: usize = 2 * FRAME_BYTES_MAX;
/// Longest wait for events: flags are looked at this often.
const WAIT_MAX: Duration = Duration::from_millis(5);
/// A send time nearer than this is spun for, since waits are in whole milliseconds.
const SPIN_NS: u64 = 2_000_000;
/// How often the CPU time of the thread is looked at.
const CPU_LOOK_NS: u64 = 10_000_000;
/// Credit in bytes asked for by a consumer.
const CREDIT_BYTES: u64 = 64 << 20;

/// One load thread.
pub struct Engine<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    progress: &'a Progress,
    poll: Poll,
    conns: Vec<Conn>,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    expected: Expected,
    tally: Tally,
    room: Vec<u8>,
    batch: u32,
    quota: u64,
    measure_from_ns: u64,
    heartbeat_ns: u64,
    heartbeat_due_ns: u64,
}

struct Conn {
    socket: TcpStream,
    /// Bytes to be sent; those before `sent` are.
    out: Vec<u8>,
    sent: usize,
    is_blocked: bool,
    is_readable: bool,
    /// The broker sends no more: what is left has to be read to its end, no event tells of that.
    is_ending: bool,
    is_closed: bool,
    /// The start of a frame that is not whole yet.
    partial: Vec<u8>,
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
    channel: u16,
    is_open: bool,
    /// Highest tag delivered.
    tag: u64,
    settled: u64,
    is_touched: bool,
}

/// A number that no other producer has, of no other run either: a broker takes publishes of a producer
/// whose name it knows for repetitions, and confirms them without storing them (P-38).
fn fresh_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl<'a> Engine<'a> {
    /// Connects everything that is thread `index`'s.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub fn connect(plan: &'a Plan, shared: &'a Shared, index: usize) -> Result<Self> {
        let poll = Poll::new().map_err(Error::io("cannot make a poller"))?;
        let is_shared = plan.consumers > 1;
        let mut engine = Self {
            plan,
            shared,
            progress: &shared.threads[index],
            poll,
            conns: Vec::new(),
            producers: Vec::new(),
            consumers: Vec::new(),
            expected: Expected::new(plan.producers, plan.queues, is_shared),
            tally: Tally::default(),
            room: vec![0; RECEIVE_BYTES],
            batch: plan.batch_fitting(),
            quota: u64::MAX,
            measure_from_ns: u64::MAX,
            heartbeat_ns: u64::MAX,
            heartbeat_due_ns: u64::MAX,
        };
        if let crate::Stop::Published(messages) = plan.stop {
            engine.quota = messages.div_ceil(u64::from(plan.producers.max(1)));
        }
        engine.connect_producers(index)?;
        engine.connect_consumers(index)?;
        engine.heartbeat_due_ns = shared.now_ns().saturating_add(engine.heartbeat_ns);
        Ok(engine)
    }

    fn connect_producers(&mut self, index: usize) -> Result<()> {
        let plan = self.plan;
        let carriers = match plan.producer_connections {
            0 => plan.producers,
            count => count.min(plan.producers),
        };
        for carrier in mine(carriers, index, plan.threads()) {
            let conn = self.add_conn(plan.queue_name(carrier % plan.queues))?;
            for number in (carrier..plan.producers).step_by(carriers as usize) {
                self.open_producer(conn, number)?;
            }
            self.flush(conn)?;
        }
        Ok(())
    }

    fn connect_consumers(&mut self, index: usize) -> Result<()> {
        let plan = self.plan;
        let places = plan.queues * plan.consumers;
        let carriers = match plan.consumer_connections {
            0 => places.min(16),
            count => count.min(places),
        };
        for carrier in mine(carriers, index, plan.threads()) {
            let conn = self.add_conn(plan.queue_name(carrier % plan.queues))?;
            for place in (carrier..places).step_by(carriers as usize) {
                self.open_consumer(conn, &plan.queue_name(place % plan.queues))?;
            }
            self.flush(conn)?;
        }
        Ok(())
    }

    fn add_conn(&mut self, near: String) -> Result<usize> {
        let mut link = Link::connect(self.plan.address)?;
        link.attach(&near)?;
        let interval = u64::try_from(link.heartbeat().as_nanos()).unwrap_or(u64::MAX);
        self.heartbeat_ns = self.heartbeat_ns.min((interval / 3).max(1));
        let socket = link.into_socket();
        socket
            .set_nonblocking(true)
            .map_err(Error::io("cannot make a socket non-blocking"))?;
        let mut socket = TcpStream::from_std(socket);
        let place = self.conns.len();
        self.poll
            .registry()
            .register(
                &mut socket,
                Token(place),
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(Error::io("cannot register a socket"))?;
        self.conns.push(Conn {
            socket,
            out: Vec::with_capacity(FRAME_BYTES_MAX),
            sent: 0,
            is_blocked: false,
            is_readable: false,
            is_ending: false,
            is_closed: false,
            partial: Vec::new(),
            roles: Vec::new(),
            touched: Vec::new(),
        });
        Ok(place)
    }

    fn open_producer(&mut self, conn: usize, number: u32) -> Result<()> {
        let plan = self.plan;
        let lanes: Result<Vec<Lane>> = plan
            .queues_of_producer(number)
            .map(|queue| {
                let template = Template::new(&plan.queue_name(queue), plan.payload_bytes)?;
                Ok(Lane {
                    queue,
                    template,
                    sequence: 0,
                })
            })
            .collect();
        let gap_ns = match plan.pace {
            Pace::Constant { per_second } | Pace::Poisson { per_second } => {
                1e9 * f64::from(plan.producers) / per_second
            }
            Pace::Window { .. } => 0.0,
        };
        let place = self.producers.len();
        let roles = &mut self.conns[conn].roles;
        roles.push(Role::Producer(place));
        let channel = u16::try_from(roles.len())
            .map_err(|_| Error::Plan("too many channels on a connection".into()))?;
        let seed = fresh_u64();
        let open = ProducerOpen {
            producer: seed.max(1),
            epoch: 1,
            level: plan.level as u8,
            flags: 0,
            reserved: 0,
        };
        let header = FrameHeader::bare(FrameKind::ProducerOpen, channel, u64::from(channel));
        open.write(&mut self.conns[conn].out, header);
        self.producers.push(Producer {
            number,
            conn,
            channel,
            lanes: lanes?,
            turn: 0,
            is_open: false,
            sequence: 1,
            confirmed: 0,
            used_messages: 0,
            used_bytes: 0,
            credit_messages: 0,
            credit_bytes: 0,
            waiting: VecDeque::new(),
            due_ns: f64::NAN,
            gap_ns,
            random: Random::new(seed),
        });
        Ok(())
    }

    fn open_consumer(&mut self, conn: usize, queue: &str) -> Result<()> {
        let place = self.consumers.len();
        let roles = &mut self.conns[conn].roles;
        roles.push(Role::Consumer(place));
        let channel = u16::try_from(roles.len())
            .map_err(|_| Error::Plan("too many channels on a connection".into()))?;
        let open = ConsumerOpen {
            credit_bytes: CREDIT_BYTES,
            credit_messages: self.plan.credit,
            flags: 0,
            queue: queue.as_bytes(),
        };
        let header = FrameHeader::bare(FrameKind::ConsumerOpen, channel, u64::from(channel));
        open.write(&mut self.conns[conn].out, header);
        self.consumers.push(Consumer {
            channel,
            is_open: false,
            tag: 0,
            settled: 0,
            is_touched: false,
        });
        Ok(())
    }

    /// Works until the run is over, then says goodbye on every connection.
    ///
    /// # Errors
    /// If the broker ends a connection or channel, or breaks the protocol.
    pub fn work(mut self) -> Result<Tally> {
        let mut events = Events::with_capacity(1024);
        let mut cpu_look_ns = 0;
        let mut work_ns = 0;
        while !self.shared.is_over.load(Ordering::Relaxed) {
            let before = self.shared.now_ns();
            self.measure_from_ns = self.shared.measure_from_ns.load(Ordering::Relaxed);
            let produced = self.produce(before)?;
            let produced_ns = if produced > 0 {
                self.shared.now_ns() - before
            } else {
                0
            };
            let timeout = self.wait_for(before, produced);
            self.wait(&mut events, timeout)?;
            let woken = self.shared.now_ns();
            let handled = self.handle(&events, woken)?;
            if handled {
                work_ns += self.shared.now_ns() - woken;
            } else if produced == 0 && timeout == Duration::ZERO {
                // Spinning for a send time; the broker's kernel work may need this CPU.
                std::thread::yield_now();
            }
            work_ns += produced_ns;
            if self.plan.is_open_loop() {
                self.progress.work_ns.store(work_ns, Ordering::Relaxed);
            } else if woken >= cpu_look_ns {
                cpu_look_ns = woken + CPU_LOOK_NS;
                self.progress.work_ns.store(cpu_ns(), Ordering::Relaxed);
            }
            self.heartbeat(woken)?;
        }
        self.note_unsent();
        self.close()?;
        Ok(self.tally)
    }

    /// Open loop: what should have been sent by the end and was not.
    fn note_unsent(&mut self) {
        let is_timed = matches!(self.plan.stop, crate::Stop::After(_));
        if !is_timed || !self.plan.is_open_loop() || !self.shared.is_stopped.load(Ordering::Acquire)
        {
            return;
        }
        let stopped_ns = self.shared.stopped_ns.load(Ordering::Relaxed);
        let is_consumed = self.plan.consumers > 0;
        for producer in &self.producers {
            let (due, gap) = (producer.due_ns, producer.gap_ns);
            self.tally.note_unsent(due, gap, stopped_ns, is_consumed);
        }
    }

    fn wait(&mut self, events: &mut Events, timeout: Duration) -> Result<()> {
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                Err(Error::io("cannot wait for events")(error))
            }
            _ => Ok(()),
        }
    }

    /// How long to wait for events.
    fn wait_for(&self, now: u64, produced: u32) -> Duration {
        let is_idle = produced == 0 && self.conns.iter().all(|conn| !conn.is_readable);
        if !is_idle {
            return Duration::ZERO;
        }
        if !self.plan.is_open_loop() || self.shared.is_stopped.load(Ordering::Relaxed) {
            return WAIT_MAX;
        }
        let due = self.producers.iter().map(|producer| producer.due_ns);
        let next = due.fold(f64::INFINITY, f64::min);
        if next.is_finite() && next < (now + SPIN_NS) as f64 {
            Duration::ZERO
        } else if next.is_finite() {
            Duration::from_millis(1)
        } else {
            WAIT_MAX
        }
    }

    fn handle(&mut self, events: &Events, now: u64) -> Result<bool> {
        for event in events {
            let conn = &mut self.conns[event.token().0];
            conn.is_ending |= event.is_read_closed();
            conn.is_readable |= event.is_readable() || event.is_read_closed();
            if event.is_writable() && conn.is_blocked {
                conn.is_blocked = false;
            }
        }
        let mut worked = false;
        for place in 0..self.conns.len() {
            if self.conns[place].is_readable {
                worked = true;
                self.receive(place, now)?;
                self.settle(place);
            }
            self.flush(place)?;
        }
        Ok(worked)
    }

    // Producing

    /// Sends what is due or fits the window, at most one batch a producer; returns how many messages.
    fn produce(&mut self, now: u64) -> Result<u32> {
        if !self.shared.is_started.load(Ordering::Relaxed)
            || self.shared.is_stopped.load(Ordering::Relaxed)
            || self.producers.is_empty()
        {
            return Ok(0);
        }
        if !self.plan.is_open_loop() && self.plan.consumers > 0 {
            let sums = Sums::of(&self.shared.threads);
            if sums.published - sums.refused > sums.delivered + self.plan.lag_max {
                return Ok(0);
            }
        }
        let mut sum = 0;
        for place in 0..self.producers.len() {
            sum += self.produce_one(place, now)?;
        }
        if sum > 0 {
            let published = &self.progress.published;
            published.store(
                published.load(Ordering::Relaxed) + u64::from(sum),
                Ordering::Relaxed,
            );
        }
        Ok(sum)
    }

    fn produce_one(&mut self, place: usize, now: u64) -> Result<u32> {
        let producer = &mut self.producers[place];
        let conn = &mut self.conns[producer.conn];
        if conn.is_blocked {
            return Ok(0);
        }
        let left = self.quota - (producer.sequence - 1).min(self.quota);
        let batch = u64::from(self.batch).min(left);
        let wanted = match self.plan.pace {
            Pace::Window { messages } => {
                let outstanding = producer.sequence - 1 - producer.confirmed;
                let window = u64::from(messages);
                let batch = batch.min(window);
                if outstanding + batch > window {
                    0
                } else {
                    batch
                }
            }
            Pace::Constant { .. } | Pace::Poisson { .. } => {
                if producer.due_ns.is_nan() {
                    // Producers are spread over the first gap.
                    let share = f64::from(producer.number) / f64::from(self.plan.producers);
                    producer.due_ns = now as f64 + producer.gap_ns * share;
                }
                if producer.due_ns <= now as f64 {
                    batch
                } else {
                    0
                }
            }
        };
        if wanted == 0 {
            return Ok(0);
        }
        let each = producer.lanes[0].template.padded_length() as u64 + 16;
        let fits = (producer.credit_messages - producer.used_messages)
            .min((producer.credit_bytes - producer.used_bytes) / each);
        let is_starved = fits < wanted && fits < wanted.div_ceil(4);
        if fits == 0 || (is_starved && producer.sequence - 1 > producer.confirmed) {
            self.tally.credit_waits += 1;
            return Ok(0);
        }
        let count = producer.write_batch(
            &mut conn.out,
            u32::try_from(wanted.min(fits)).unwrap_or(u32::MAX),
            now,
            self.plan.pace,
            if now >= self.measure_from_ns {
                Some(&mut self.tally)
            } else {
                None
            },
        );
        if self.plan.level == ringpost_wire::control::Level::None {
            producer.confirmed = producer.sequence - 1;
            producer.waiting.clear();
            let confirmed = &self.progress.confirmed;
            let sum = confirmed.load(Ordering::Relaxed) + u64::from(count);
            confirmed.store(sum, Ordering::Relaxed);
        }
        let conn = producer.conn;
        self.flush(conn)?;
        Ok(count)
    }

    // Receiving

    /// Receives once and handles what is whole.
    fn receive(&mut self, place: usize, now: u64) -> Result<()> {
        let mut room = std::mem::take(&mut self.room);
        let conn = &mut self.conns[place];
        let had = conn.partial.len();
        room[..had].copy_from_slice(&conn.partial);
        let mut filled = had;
        match conn.socket.read(&mut room[had..]) {
            Ok(0) => {
                conn.is_closed = true;
                conn.is_readable = false;
                if !self.shared.is_over.load(Ordering::Relaxed) {
                    return Err(Error::Protocol("the broker hung up".into()));
                }
            }
            Ok(count) => {
                filled += count;
                // A short read drained the socket: the next bytes come with an event.
                conn.is_readable = filled == room.len() || conn.is_ending;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => conn.is_readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if self.shared.is_over.load(Ordering::Relaxed) => {
                conn.is_closed = true;
                conn.is_readable = false;
            }
            Err(error) => return Err(Error::io("cannot receive")(error)),
        }
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
        let partial = &mut self.conns[place].partial;
        partial.clear();
        partial.extend_from_slice(&room[end..filled]);
        self.room = room;
        Ok(())
    }

    fn take(&mut self, place: usize, header: FrameHeader, body: &[u8], now: u64) -> Result<()> {
        if header.kind != FrameKind::Deliver && frame::check_body(&header, body).is_err() {
            return Err(Error::Protocol("a body with a wrong checksum".into()));
        }
        match header.kind {
            FrameKind::Heartbeat | FrameKind::Settled => return Ok(()),
            FrameKind::Close if self.shared.is_over.load(Ordering::Relaxed) => {
                self.conns[place].is_closed = true;
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
                while let Some(first) = producer.waiting.front()
                    && first.last <= header.sequence
                {
                    if first.intended_ns >= self.measure_from_ns {
                        let latency = now.saturating_sub(first.intended_ns);
                        let count = u64::from(first.count);
                        self.tally.confirm.saturating_record_n(latency, count);
                    }
                    producer.waiting.pop_front();
                }
                let confirmed = &self.progress.confirmed;
                let sum = confirmed.load(Ordering::Relaxed) + newly;
                confirmed.store(sum, Ordering::Relaxed);
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
                let count = u64::from(header.count);
                self.tally.refused += count;
                let refused = &self.progress.refused;
                refused.store(refused.load(Ordering::Relaxed) + count, Ordering::Relaxed);
                let words = refusal("a publish", header, body).to_string();
                self.tally.first_refusal.get_or_insert(words);
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
                if !consumer.is_touched {
                    consumer.is_touched = true;
                    self.conns[conn].touched.push(place);
                }
                if header.flags & header::DELIVER_REDELIVERED != 0 {
                    self.tally.redelivered += u64::from(header.count);
                }
                let seen = self.check(&body[DeliverHead::BYTES.min(body.len())..], now)?;
                if seen != header.count {
                    let text = format!("{seen} messages in a frame of {}", header.count);
                    return Err(Error::Protocol(text));
                }
                let delivered = &self.progress.delivered;
                let sum = delivered.load(Ordering::Relaxed) + u64::from(seen);
                delivered.store(sum, Ordering::Relaxed);
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
    fn check(&mut self, mut rest: &[u8], now: u64) -> Result<u32> {
        let mut count = 0;
        // Messages of one batch have one intended time: they are recorded together.
        let (mut intended, mut run) = (u64::MAX, 0);
        while !rest.is_empty() {
            let length = envelope::length_of(rest).unwrap_or(0);
            let (Some(message), Some(after)) = (rest.get(..length), rest.get(padded(length)..))
            else {
                return Err(Error::Protocol("a message that is not whole".into()));
            };
            if self.plan.verify {
                let opened = envelope::open(message);
                if !opened.is_ok_and(|envelope| envelope.check_crc().is_ok()) {
                    self.tally.corrupt += 1;
                }
            }
            let Some(stamp) = Stamp::of(message) else {
                return Err(Error::Protocol("a message without a stamp".into()));
            };
            self.expected.see(&stamp, &mut self.tally);
            if stamp.intended_ns != intended {
                self.record_delivery(intended, run, now);
                (intended, run) = (stamp.intended_ns, 0);
            }
            run += 1;
            count += 1;
            rest = after;
        }
        self.record_delivery(intended, run, now);
        Ok(count)
    }

    fn record_delivery(&mut self, intended: u64, run: u64, now: u64) {
        if run > 0 && intended >= self.measure_from_ns {
            let latency = now.saturating_sub(intended);
            self.tally.end_to_end.saturating_record_n(latency, run);
        }
    }

    fn note_ready(&mut self) {
        let is_ready = self.producers.iter().all(|producer| producer.is_open)
            && self.consumers.iter().all(|consumer| consumer.is_open);
        self.progress.is_ready.store(is_ready, Ordering::Release);
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
            let range = SettleRange {
                first: 0,
                last: consumer.tag,
            };
            let mut header = FrameHeader::bare(FrameKind::Settle, consumer.channel, 0);
            header.count = 1;
            header.flags = header::SETTLE_ACK;
            frame::write(&mut conn.out, header, &range.encode());
        }
        let settled = &self.progress.settled;
        settled.store(settled.load(Ordering::Relaxed) + sum, Ordering::Relaxed);
    }

    fn flush(&mut self, place: usize) -> Result<()> {
        let conn = &mut self.conns[place];
        while conn.sent < conn.out.len() && !conn.is_blocked {
            match conn.socket.write(&conn.out[conn.sent..]) {
                Ok(count) => conn.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => conn.is_blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if conn.is_closed => break,
                Err(error) => return Err(Error::io("cannot send")(error)),
            }
        }
        if conn.sent == conn.out.len() {
            conn.out.clear();
            conn.sent = 0;
        }
        Ok(())
    }

    fn heartbeat(&mut self, now: u64) -> Result<()> {
        if now < self.heartbeat_due_ns {
            return Ok(());
        }
        self.heartbeat_due_ns = now + self.heartbeat_ns;
        for place in 0..self.conns.len() {
            frame::write_bare(&mut self.conns[place].out, FrameKind::Heartbeat, 0, 0);
            self.flush(place)?;
        }
        Ok(())
    }

    /// Ends every connection and waits for the broker's answer, so that all settlements hold.
    fn close(&mut self) -> Result<()> {
        for place in 0..self.conns.len() {
            let header = FrameHeader::bare(FrameKind::Close, 0, 0);
            let out = &mut self.conns[place].out;
            ringpost_wire::control::write_failure(out, header, ringpost_wire::Code::Normal, "");
            self.flush(place)?;
        }
        let mut events = Events::with_capacity(1024);
        let deadline = self.shared.now_ns() + 5_000_000_000;
        while self.conns.iter().any(|conn| !conn.is_closed) {
            let now = self.shared.now_ns();
            if now > deadline {
                let left = self.conns.iter().filter(|conn| !conn.is_closed).count();
                let text = format!("{left} connections get no answer to Close");
                return Err(Error::Stalled(text));
            }
            self.wait(&mut events, WAIT_MAX)?;
            self.handle(&events, now)?;
        }
        Ok(())
    }
}

/// The carriers of thread `index`.
fn mine(carriers: u32, index: usize, threads: usize) -> impl Iterator<Item = u32> {
    (0..carriers).filter(move |carrier| *carrier as usize % threads == index)
}

/// CPU time of this thread, in ns.
#[must_use]
pub fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or(0)
}
