//! One load thread that speaks to a peer: its connections, when its producers send, what its consumers
//! check, as the raw engine does. Does not know any protocol; a codec does.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::Events;
use ringpost_wire::control::Level;

use super::outcomes::Outcomes;
use super::{Codec, Event, Job, Payload, Which, Work, codec, connect};
use crate::arrivals::Schedule;
use crate::message::{STAMP_BYTES, Stamp, noise};
use crate::pipe::Pipe;
use crate::plan::Plan;
use crate::receipts::{Kind, Receipts};
use crate::source::Source;
use crate::tally::{Expected, Shared, Tally, count};
use crate::thread::{self, Thread, Turn, WAIT_MAX, mine};
use crate::{Error, Result};

/// Bytes of one receive beside the longest message, which has to fit.
const RECEIVE_BYTES: usize = 512 << 10;
/// How often a connection says that it is alive, in ns.
const BEAT_NS: u64 = 10_000_000_000;
/// How long a goodbye may take, in ns.
const GOODBYE_NS: u64 = 10_000_000_000;

/// Runs what is thread `index`'s of a plan.
///
/// # Errors
/// If a connection fails, or the peer ends it or breaks its protocol.
pub(crate) fn work(plan: &Plan, shared: &Shared, index: usize) -> Result<Tally> {
    let mut driver = Driver::connect(plan, shared, index)?;
    thread::work(&mut driver)?;
    driver.close()?;
    let thread = &mut driver.books.thread;
    thread.tally.to_ns = shared.now_ns();
    Ok(std::mem::take(&mut *thread.tally))
}

/// The connections, and what goes by them.
struct Driver<'a> {
    conns: Vec<Conn>,
    books: Books<'a>,
    room: Vec<u8>,
    batch: u32,
    beat_due_ns: u64,
}

/// One connection.
struct Conn {
    pipe: Pipe,
    codec: Box<dyn Codec>,
    work: Work,
    /// Places of the producers or consumers that its roles are.
    roles: Vec<usize>,
    is_ready: bool,
}

/// What was sent and what came.
struct Books<'a> {
    thread: Thread<'a>,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    expected: Expected,
    /// The longest payload without its stamp.
    noise: Vec<u8>,
    is_confirmed: bool,
}

/// A consumer of a queue, and which of those that share it.
#[derive(Clone, Copy)]
struct Consumer {
    queue: u32,
    copy: u32,
}

struct Producer {
    source: Source,
    conn: usize,
    role: usize,
    /// The queue of each group that it publishes to.
    queues: Vec<u32>,
    sent: u64,
    outcomes: Outcomes,
}

impl<'a> Driver<'a> {
    /// Connects everything that is thread `index`'s.
    fn connect(plan: &'a Plan, shared: &'a Shared, index: usize) -> Result<Self> {
        let longest = plan.payload_bytes_max() as usize;
        let mut driver = Self {
            conns: Vec::new(),
            books: Books {
                thread: Thread::new(plan, shared, index)?,
                producers: Vec::new(),
                consumers: Vec::new(),
                expected: Expected::new(plan),
                noise: noise(longest - STAMP_BYTES),
                is_confirmed: plan.level != Level::None,
            },
            room: vec![0; RECEIVE_BYTES + longest],
            batch: plan.batch_fitting(),
            beat_due_ns: shared.now_ns() + BEAT_NS,
        };
        let carriers = thread::producer_carriers(plan);
        for carrier in mine(carriers, index, plan.threads()) {
            let numbers = (carrier..plan.producers).step_by(carriers as usize);
            driver.add_producers(carrier, numbers.collect())?;
        }
        let carriers = thread::consumer_carriers(plan);
        let places = plan.queues * plan.consumers;
        for carrier in mine(carriers, index, plan.threads()) {
            let places = (carrier..places).step_by(carriers as usize);
            let consumers = places.map(|place| Consumer {
                queue: place % plan.queues,
                copy: place / plan.queues,
            });
            driver.add_consumers(carrier, consumers.collect())?;
        }
        driver.books.note_ready(&driver.conns);
        Ok(driver)
    }

    fn add_producers(&mut self, carrier: u32, numbers: Vec<u32>) -> Result<()> {
        let plan = self.books.thread.plan;
        let (mut roles, mut firsts) = (Vec::new(), Vec::new());
        for (role, number) in numbers.into_iter().enumerate() {
            let queues: Vec<_> = plan.groups_of_producer(number).collect();
            firsts.push(queues.first().copied().unwrap_or(0));
            roles.push(self.books.producers.len());
            self.books.producers.push(Producer {
                source: Source::new(plan, number),
                conn: self.conns.len(),
                role,
                queues,
                sent: 0,
                outcomes: Outcomes::default(),
            });
        }
        self.add_conn(Work::Produce, carrier, firsts, roles)
    }

    fn add_consumers(&mut self, carrier: u32, consumers: Vec<Consumer>) -> Result<()> {
        let first = self.books.consumers.len();
        self.books.consumers.extend_from_slice(&consumers);
        let roles = (first..self.books.consumers.len()).collect();
        let queues = consumers.iter().map(|consumer| consumer.queue).collect();
        self.add_conn(Work::Consume, carrier, queues, roles)
    }

    fn add_conn(
        &mut self,
        work: Work,
        number: u32,
        queues: Vec<u32>,
        roles: Vec<usize>,
    ) -> Result<()> {
        let thread = &self.books.thread;
        let socket = thread.watch(connect(thread.plan.address)?, self.conns.len())?;
        let mut conn = Conn {
            pipe: Pipe::new(socket),
            codec: codec(Job {
                plan: thread.plan,
                work,
                number,
                queues,
            }),
            work,
            roles,
            is_ready: false,
        };
        conn.codec.open(&mut conn.pipe.out);
        conn.pipe.flush()?;
        self.conns.push(conn);
        Ok(())
    }

    /// Sends what is due or fits the window, at most one batch.
    fn produce_one(&mut self, place: usize, now: u64) -> Result<u32> {
        let books = &mut self.books;
        let (thread, producer) = (&mut books.thread, &mut books.producers[place]);
        let conn = &mut self.conns[producer.conn];
        producer.source.begin(thread.plan, thread.shared);
        let is_due = producer.source.is_due(now);
        if conn.pipe.is_blocked {
            if thread.is_open_loop && is_due {
                thread.tally.counts.socket_waits += 1;
                producer.source.is_held = true;
            }
            return Ok(0);
        }
        let wanted = thread.room(self.batch, producer.sent, producer.outcomes.count(), is_due);
        let mut written = 0;
        while u64::from(written) < wanted {
            let is_measured = now >= thread.measure_from_ns;
            let tally = is_measured.then_some(&mut *thread.tally);
            let Some(next) = producer.source.next(now, tally) else {
                break;
            };
            let longest = books.noise.len();
            let bytes = next
                .payload_bytes
                .map_or(longest, |bytes| bytes as usize - STAMP_BYTES);
            let payload = Payload {
                noise: &books.noise[..bytes],
                stamp: next.stamp.encode(),
            };
            let queue = producer.queues[next.lane];
            conn.codec
                .publish(&mut conn.pipe.out, producer.role, queue, payload);
            if books.is_confirmed {
                let stamp = next.stamp;
                producer.outcomes.send(stamp.intended_ns, stamp.sent_ns);
            }
            written += 1;
        }
        producer.sent += u64::from(written);
        producer.source.is_held &= producer.source.is_due(now);
        if !books.is_confirmed {
            count(&thread.progress.confirmed, u64::from(written));
        }
        conn.pipe.flush()?;
        Ok(written)
    }

    /// Receives once and handles what is whole.
    fn receive(&mut self, place: usize, now: u64) -> Result<()> {
        let conn = &mut self.conns[place];
        let is_over = self.books.thread.is_over();
        let filled = conn.pipe.receive(&mut self.room, is_over)?;
        let mut receipts = self.books.receipts(now);
        let (mut end, mut is_changed) = (0, false);
        while let Some((length, event)) = conn
            .codec
            .next(&self.room[end..filled], &mut conn.pipe.out)?
        {
            end += length;
            match event {
                Event::Nothing => {}
                Event::Ready => is_changed |= !std::mem::replace(&mut conn.is_ready, true),
                Event::Closed => conn.pipe.is_closed = true,
                event if event.fits(conn.work) => {
                    self.books.take(&conn.roles, event, &mut receipts)?;
                }
                _ => {
                    let text = "an outcome or a message on a connection that is not for it";
                    return Err(Error::Protocol(text.into()));
                }
            }
        }
        let rest = &self.room[end..filled];
        if rest.len() == self.room.len() {
            let text = format!("more than {} bytes in one piece", rest.len());
            return Err(Error::Protocol(text));
        }
        conn.pipe.keep(rest);
        receipts.end(&mut self.books.thread.tally);
        let settled = conn.codec.settle(&mut conn.pipe.out);
        count(&self.books.thread.progress.settled, settled);
        if is_changed {
            self.books.note_ready(&self.conns);
        }
        Ok(())
    }

    /// Ends every connection and waits for the peer's answer, so that all settlements hold.
    fn close(&mut self) -> Result<()> {
        for conn in &mut self.conns {
            conn.codec.close(&mut conn.pipe.out);
            conn.pipe.flush()?;
        }
        let mut events = Events::with_capacity(1024);
        let deadline = self.books.thread.shared.now_ns() + GOODBYE_NS;
        while self.conns.iter().any(|conn| !conn.pipe.is_closed) {
            let now = self.books.thread.shared.now_ns();
            if now > deadline {
                let open = self.conns.iter().filter(|conn| !conn.pipe.is_closed);
                let text = format!("{} connections get no answer to a goodbye", open.count());
                return Err(Error::Stalled(text));
            }
            self.books.thread.wait(&mut events, WAIT_MAX)?;
            self.handle(&events, now)?;
        }
        Ok(())
    }
}

impl<'a> Turn<'a> for Driver<'a> {
    fn thread(&mut self) -> &mut Thread<'a> {
        &mut self.books.thread
    }

    fn produce(&mut self, now: u64) -> Result<u32> {
        if self.books.producers.is_empty() || !self.books.thread.is_producing() {
            return Ok(0);
        }
        let mut sum = 0;
        for place in 0..self.books.producers.len() {
            sum += self.produce_one(place, now)?;
        }
        if sum > 0 {
            count(&self.books.thread.progress.published, u64::from(sum));
        }
        Ok(sum)
    }

    fn wait_for(&self, now: u64, produced: u32) -> Duration {
        let is_idle = produced == 0 && self.conns.iter().all(|conn| !conn.pipe.is_readable);
        if !is_idle {
            return Duration::ZERO;
        }
        let is_paced = self.books.thread.is_paced();
        let producers = self.books.producers.iter().filter(|_| is_paced);
        let schedules = producers.filter_map(|one| one.source.schedule.as_ref());
        Thread::until(now, schedules.map(Schedule::due_ns))
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
            }
            self.conns[place].pipe.flush()?;
        }
        Ok(worked)
    }

    fn beat(&mut self, now: u64) -> Result<()> {
        if now < self.beat_due_ns {
            return Ok(());
        }
        self.beat_due_ns = now + BEAT_NS;
        for conn in &mut self.conns {
            conn.codec.beat(&mut conn.pipe.out);
            conn.pipe.flush()?;
        }
        Ok(())
    }

    fn schedules(&self, each: &mut dyn FnMut(&Schedule)) {
        for producer in &self.books.producers {
            producer.source.schedule.iter().for_each(&mut *each);
        }
    }
}

/// The times of what came in one turn.
struct Both {
    confirms: Receipts,
    deliveries: Receipts,
}

impl Both {
    fn end(&mut self, tally: &mut Tally) {
        self.confirms.end(tally);
        self.deliveries.end(tally);
    }
}

impl Books<'_> {
    fn note_ready(&self, conns: &[Conn]) {
        let is_ready = conns.iter().all(|conn| conn.is_ready);
        let progress = self.thread.progress;
        progress.is_ready.store(is_ready, Ordering::Release);
    }

    fn receipts(&self, now: u64) -> Both {
        let (thread, is_open_loop) = (&self.thread, self.thread.is_open_loop);
        let from = thread.deliveries_from_ns();
        Both {
            confirms: Receipts::new(Kind::Confirm, thread.measure_from_ns, now, is_open_loop),
            deliveries: Receipts::new(Kind::Delivery, from, now, is_open_loop),
        }
    }

    /// What concerns messages.
    fn take(&mut self, roles: &[usize], event: Event<'_>, receipts: &mut Both) -> Result<()> {
        match event {
            Event::Confirmed(which) if self.is_confirmed => {
                let newly = self.settle(roles, which, Some(&mut receipts.confirms))?;
                count(&self.thread.progress.confirmed, newly);
            }
            Event::Refused(which, reason) => {
                let refused = match self.is_confirmed {
                    true => self.settle(roles, which, None)?,
                    false => 1,
                };
                let (progress, counts) = (self.thread.progress, &mut self.thread.tally.counts);
                if self.is_confirmed {
                    count(&progress.confirmed, refused);
                }
                count(&progress.refused, refused);
                counts.refused += refused;
                counts.first_refusal.get_or_insert(reason);
            }
            Event::Delivered {
                role,
                payload,
                is_redelivered,
            } => {
                let consumer = self.consumers[roles[role]];
                self.deliver(consumer, payload, is_redelivered, &mut receipts.deliveries)?;
            }
            Event::Confirmed(_) | Event::Nothing | Event::Ready | Event::Closed => {}
        }
        Ok(())
    }

    /// Publishes got their outcome; their times are recorded in `receipts` if there are any.
    fn settle(
        &mut self,
        roles: &[usize],
        which: Which,
        mut receipts: Option<&mut Receipts>,
    ) -> Result<u64> {
        let producer = &mut self.producers[roles[which.role]];
        let tally = &mut self.thread.tally;
        let newly = producer.outcomes.settle(which, |intended_ns, sent_ns| {
            if let Some(receipts) = &mut receipts {
                receipts.add(intended_ns, sent_ns, 1, tally);
            }
        });
        newly.ok_or_else(|| {
            let sequence = which.sequence;
            Error::Protocol(format!(
                "an outcome of publish {sequence}, which has none to come"
            ))
        })
    }

    fn deliver(
        &mut self,
        consumer: Consumer,
        payload: &[u8],
        is_redelivered: bool,
        receipts: &mut Receipts,
    ) -> Result<()> {
        let Thread {
            plan,
            progress,
            tally,
            ..
        } = &mut self.thread;
        let Some(stamp) = Stamp::of(payload) else {
            return Err(Error::Protocol("a message without a stamp".into()));
        };
        let sent = payload.get(..payload.len() - STAMP_BYTES);
        let is_whole = sent == self.noise.get(..payload.len() - STAMP_BYTES);
        if plan.verify && !is_whole {
            tally.counts.corrupt += 1;
        }
        tally.counts.redelivered += u64::from(is_redelivered);
        let Consumer { queue, copy } = consumer;
        self.expected.see(&stamp, queue, copy, tally);
        receipts.see(&stamp, tally);
        count(&progress.delivered, 1);
        Ok(())
    }
}
