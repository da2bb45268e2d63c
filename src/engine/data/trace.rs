//! One message followed on its way, for whoever asked: what happened to it, and when (ADR 0016). Does
//! not decide anything: a core does the same whether it follows something or not.

use ringpost_wire::ids::{CoreId, ProducerId, QueueId, QueueSequence, Sequence, TenantId};
use ringpost_wire::{Messages, SettleRange};

use crate::data::flow::Flow;
use crate::data::journal::RunHead;
use crate::data::journal::block::BlockSequence;
use crate::data::queue::{Outcome, SequenceRange};
use crate::ids::{ConnId, Mono, SegmentIdx};

/// Messages that a core follows at a time, those included that have not come yet.
pub const TRACES_MAX: usize = 4;

/// Names a trace of a core; never used twice while the process lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TraceId(pub u64);

/// What is to be followed: the next message that is appended to a queue. One that travels in pieces is
/// passed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Name of the tenant.
    pub tenant: Vec<u8>,
    /// Name of the queue.
    pub queue: Vec<u8>,
    /// Only a message with this routing key.
    pub routing_key: Option<Vec<u8>>,
    /// When it ends at the latest.
    pub until: Mono,
}

/// Why a core follows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotFollowed {
    /// The core does not serve.
    NotServing,
    /// There is no such tenant.
    TenantUnknown,
    /// There is no such queue.
    QueueUnknown,
    /// The queue lives on that core.
    Elsewhere(CoreId),
    /// It follows [`TRACES_MAX`] already.
    TooMany,
}

/// Something that happened to a message that is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traced {
    /// For whom.
    pub trace: TraceId,
    /// When; all cores have the same clock.
    pub at: Mono,
    /// What.
    pub event: TraceEvent,
}

/// What happens to a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceEvent {
    /// Its frame was stepped on the core of its producer.
    Received {
        /// That core.
        core: CoreId,
        /// The producer's connection there.
        conn: ConnId,
        /// The producer's name.
        producer: ProducerId,
        /// The message's sequence there.
        sequence: Sequence,
    },
    /// It was routed, and has its place in the queue and in the open block of a journal.
    Appended {
        /// Place in the queue.
        queue_sequence: QueueSequence,
        /// Its padded bytes.
        bytes: u32,
        /// The journal's block, and the segment that this is in; `None` if the queue is volatile.
        block: Option<(u64, SegmentIdx)>,
    },
    /// The write of its block began.
    Submitted,
    /// Its block, and all before it, are known to be synced.
    Durable,
    /// Its producer, on this core, was told that it is confirmed.
    Confirmed,
    /// It may be delivered.
    Ready,
    /// It was given to a consumer's connection.
    Sent {
        /// The consumer, on the queue's core.
        consumer: u64,
        /// The core of its connection.
        core: CoreId,
        /// The connection there.
        conn: ConnId,
        /// The delivery's tag.
        tag: u64,
        /// Earlier deliveries.
        delivery_count: u32,
    },
    /// It was settled.
    Settled(TraceOutcome),
    /// Its consumer went, or was closed, and had not settled it: it returned to the queue.
    Returned {
        /// The consumer.
        consumer: u64,
    },
    /// The last event of a trace.
    Ended(TraceEnd),
}

/// How a message was settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceOutcome {
    /// Acked.
    Acked,
    /// Rejected.
    Rejected,
    /// Sent back to the queue.
    Requeued,
    /// Sent to a consumer that does not ack.
    BySending,
    /// Purged.
    Purged,
}

/// Why a trace ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceEnd {
    /// That it is settled is as durable as the message was; nothing is left of it.
    Forgotten,
    /// The queue was deleted.
    QueueDeleted,
    /// The journal has failed.
    JournalFailed,
    /// Its time was over.
    TimedOut,
}

/// Where a message came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Arrival {
    /// The connection, on its core.
    pub conn: ConnId,
    /// When its frame was stepped.
    pub at: Mono,
}

/// Messages that were just appended to a queue.
pub(crate) struct Run<'a> {
    pub(crate) queue: QueueId,
    pub(crate) first: QueueSequence,
    pub(crate) producer: ProducerId,
    pub(crate) bytes: &'a [u8],
    pub(crate) block: Option<(u64, SegmentIdx)>,
}

/// A producer of this core or of another one, as an append knows it.
#[derive(Clone, Copy)]
pub(crate) struct Publisher {
    pub(crate) core: CoreId,
    pub(crate) arrival: Arrival,
    /// Its key, if it is on this core.
    pub(crate) key: Option<u64>,
}

/// A delivery of a run of messages.
pub(crate) struct Delivery {
    pub(crate) queue: QueueId,
    pub(crate) first: QueueSequence,
    pub(crate) count: u32,
    pub(crate) consumer: u64,
    pub(crate) place: (CoreId, ConnId),
    /// Tag of the first.
    pub(crate) tag: u64,
    pub(crate) delivery_count: u32,
}

/// The message of a trace.
#[derive(Debug)]
struct Followed {
    sequence: QueueSequence,
    /// The block that it waits for, 0 = none.
    block: u64,
    is_submitted: bool,
    /// Who is to be told of its confirm: key and sequence.
    unconfirmed: Option<(u64, u64)>,
    /// Who holds it: consumer and tag.
    holder: Option<(u64, u64)>,
    is_settled: bool,
}

#[derive(Debug)]
struct Trace {
    id: TraceId,
    queue: QueueId,
    routing_key: Option<Vec<u8>>,
    until: Mono,
    /// None until the message comes.
    followed: Option<Followed>,
}

/// What a core follows.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    traces: Vec<Trace>,
    last_id: u64,
    /// Events of this step.
    told: Vec<Traced>,
    /// The other core whose messages are being appended, and where they came from.
    pub(crate) forwarded: Option<(CoreId, Arrival)>,
}

impl Tracer {
    /// Whether anything is followed. The one question that is asked when nothing is.
    #[inline]
    pub(crate) const fn is_armed(&self) -> bool {
        !self.traces.is_empty()
    }

    /// Events since this was last asked.
    #[inline]
    pub(crate) fn take_told(&mut self, out: &mut Vec<Traced>) {
        if !self.told.is_empty() {
            out.append(&mut self.told);
        }
    }

    /// Follows the next message of a queue.
    pub(crate) fn add(&mut self, queue: QueueId, wanted: Wanted) -> Result<TraceId, NotFollowed> {
        if self.traces.len() >= TRACES_MAX {
            return Err(NotFollowed::TooMany);
        }
        self.last_id += 1;
        let id = TraceId(self.last_id);
        self.traces.push(Trace {
            id,
            queue,
            routing_key: wanted.routing_key,
            until: wanted.until,
            followed: None,
        });
        Ok(id)
    }

    /// Nobody asks any more.
    pub(crate) fn remove(&mut self, id: TraceId) {
        self.traces.retain(|trace| trace.id != id);
    }

    /// Whether the next message of a queue is waited for.
    pub(crate) fn is_waiting(&self, queue: QueueId) -> bool {
        let mut of_queue = self.traces.iter().filter(|trace| trace.queue == queue);
        of_queue.any(|trace| trace.followed.is_none())
    }

    /// Messages were appended to a queue that is [waited for](Self::is_waiting); `sequence_of` says what
    /// number their producer gave to each.
    pub(crate) fn appended(
        &mut self,
        run: &Run<'_>,
        publisher: impl Fn(u64) -> Option<Publisher>,
        sequence_of: impl Fn(usize) -> u64,
        now: Mono,
    ) {
        let waiting = |trace: &&mut Trace| trace.queue == run.queue && trace.followed.is_none();
        for trace in self.traces.iter_mut().filter(waiting) {
            let wanted = trace.routing_key.as_deref();
            let found = Messages::new(run.bytes)
                .flatten()
                .enumerate()
                .find(|(_, message)| {
                    wanted.is_none_or(|key| message.envelope.routing_key() == key)
                });
            let Some((idx, message)) = found else {
                continue;
            };
            let sequence = sequence_of(idx);
            let publisher = publisher(sequence);
            let mut tell = |at, event| {
                self.told.push(Traced {
                    trace: trace.id,
                    at,
                    event,
                });
            };
            if let Some(Publisher { core, arrival, .. }) = publisher {
                let received = TraceEvent::Received {
                    core,
                    conn: arrival.conn,
                    producer: run.producer,
                    sequence: Sequence(sequence),
                };
                tell(arrival.at, received);
            }
            let queue_sequence = run.first.plus(idx as u64);
            let appended = TraceEvent::Appended {
                queue_sequence,
                bytes: message.bytes.len() as u32,
                block: run.block,
            };
            tell(now, appended);
            if run.block.is_none() {
                tell(now, TraceEvent::Ready);
            }
            let key = publisher.and_then(|publisher| publisher.key);
            trace.followed = Some(Followed {
                sequence: queue_sequence,
                block: run.block.map_or(0, |(block, _)| block),
                is_submitted: run.block.is_none(),
                unconfirmed: key.map(|key| (key, sequence)),
                holder: None,
                is_settled: false,
            });
        }
    }

    /// Looks at every message that has come: `look` says what happened to it.
    fn each(
        &mut self,
        now: Mono,
        mut look: impl FnMut(QueueId, &mut Followed) -> Option<TraceEvent>,
    ) {
        for trace in &mut self.traces {
            let Some(followed) = &mut trace.followed else {
                continue;
            };
            if let Some(event) = look(trace.queue, followed) {
                self.told.push(Traced {
                    trace: trace.id,
                    at: now,
                    event,
                });
            }
        }
    }

    /// Ends the traces that `why` gives a reason for.
    fn end(&mut self, now: Mono, why: impl Fn(&Trace) -> Option<TraceEnd>) {
        let told = &mut self.told;
        self.traces.retain(|trace| {
            let Some(end) = why(trace) else {
                return true;
            };
            told.push(Traced {
                trace: trace.id,
                at: now,
                event: TraceEvent::Ended(end),
            });
            false
        });
    }

    /// Writes were begun: `since` says when that of a block was, if it is in flight.
    pub(crate) fn submitted(&mut self, since: impl Fn(u64) -> Option<Mono>) {
        for trace in &mut self.traces {
            let Some(followed) = trace.followed.as_mut().filter(|it| !it.is_submitted) else {
                continue;
            };
            if let Some(at) = since(followed.block) {
                followed.is_submitted = true;
                self.told.push(Traced {
                    trace: trace.id,
                    at,
                    event: TraceEvent::Submitted,
                });
            }
        }
    }

    /// All blocks up to `durable` are synced: what is in them may be delivered.
    pub(crate) fn durable(&mut self, durable: u64, now: Mono) {
        for event in [TraceEvent::Durable, TraceEvent::Ready] {
            self.each(now, |_, followed| {
                let is_new = followed.block > 0 && followed.block <= durable;
                if event == TraceEvent::Ready && is_new {
                    followed.block = 0;
                }
                is_new.then_some(event)
            });
        }
    }

    /// A producer was told that all its publishes up to `last` are confirmed.
    pub(crate) fn confirmed(&mut self, key: u64, last: u64, now: Mono) {
        self.each(now, |_, followed| {
            let is_it =
                |(producer, sequence): &mut (u64, u64)| *producer == key && *sequence <= last;
            let told = followed.unconfirmed.take_if(is_it);
            told.map(|_| TraceEvent::Confirmed)
        });
    }

    /// Messages were given to a consumer.
    pub(crate) fn sent(&mut self, delivery: &Delivery, by_sending: &[SequenceRange], now: Mono) {
        let first = delivery.first.0;
        let last = first + u64::from(delivery.count) - 1;
        let is_in = |queue, followed: &Followed| {
            queue == delivery.queue && (first..=last).contains(&followed.sequence.0)
        };
        self.each(now, |queue, followed| {
            is_in(queue, followed).then(|| {
                let tag = delivery.tag + followed.sequence.0 - first;
                followed.holder = Some((delivery.consumer, tag));
                TraceEvent::Sent {
                    consumer: delivery.consumer,
                    core: delivery.place.0,
                    conn: delivery.place.1,
                    tag,
                    delivery_count: delivery.delivery_count,
                }
            })
        });
        self.each(now, |queue, followed| {
            let is_settled = is_in(queue, followed) && holds(by_sending, followed.sequence);
            is_settled.then(|| {
                followed.holder = None;
                followed.is_settled = true;
                TraceEvent::Settled(TraceOutcome::BySending)
            })
        });
    }

    /// A consumer has settled deliveries.
    pub(crate) fn settled(&mut self, key: u64, range: SettleRange, outcome: Outcome, now: Mono) {
        let outcome = match outcome {
            Outcome::Ack => TraceOutcome::Acked,
            Outcome::Reject => TraceOutcome::Rejected,
            Outcome::Requeue => TraceOutcome::Requeued,
        };
        self.each(now, |_, followed| {
            // First tag 0 means all up to the last, which is below any tag.
            let is_it = |(holder, tag): &mut (u64, u64)| {
                *holder == key && (range.first..=range.last).contains(tag)
            };
            followed.holder.take_if(is_it)?;
            followed.is_settled = outcome != TraceOutcome::Requeued;
            Some(TraceEvent::Settled(outcome))
        });
    }

    /// A consumer is gone: what it held is its queue's again.
    pub(crate) fn consumer_gone(&mut self, key: u64, now: Mono) {
        self.each(now, |_, followed| {
            let held = followed.holder.take_if(|(holder, _)| *holder == key);
            held.map(|(consumer, _)| TraceEvent::Returned { consumer })
        });
    }

    /// The messages of a queue that nobody holds were purged.
    pub(crate) fn purged(&mut self, queue: QueueId, now: Mono) {
        self.each(now, |of, followed| {
            let is_it = of == queue && followed.holder.is_none() && !followed.is_settled;
            is_it.then(|| {
                followed.is_settled = true;
                TraceEvent::Settled(TraceOutcome::Purged)
            })
        });
    }

    /// Messages of a queue are no more.
    pub(crate) fn forgotten(&mut self, queue: QueueId, ranges: &[SequenceRange], now: Mono) {
        self.end(now, |trace| {
            let followed = trace.followed.as_ref().filter(|_| trace.queue == queue)?;
            holds(ranges, followed.sequence).then_some(TraceEnd::Forgotten)
        });
    }

    /// A queue is no more.
    pub(crate) fn deleted(&mut self, queue: QueueId, now: Mono) {
        self.end(now, |trace| {
            (trace.queue == queue).then_some(TraceEnd::QueueDeleted)
        });
    }

    /// The journal has failed; `is_durable` says which queues are in it.
    pub(crate) fn journal_failed(&mut self, is_durable: impl Fn(QueueId) -> bool, now: Mono) {
        self.end(now, |trace| {
            is_durable(trace.queue).then_some(TraceEnd::JournalFailed)
        });
    }

    /// Ends those whose time is over.
    pub(crate) fn expire(&mut self, now: Mono) {
        self.end(now, |trace| {
            (now >= trace.until).then_some(TraceEnd::TimedOut)
        });
    }

    /// When the first of them ends.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.traces.iter().map(|trace| trace.until).min()
    }
}

fn holds(ranges: &[SequenceRange], sequence: QueueSequence) -> bool {
    let mut ranges = ranges.iter();
    ranges.any(|range| (range.first..=range.last).contains(&sequence))
}

impl Flow {
    /// Follows the next message of a queue of this core.
    pub(crate) fn follow(
        &mut self,
        tenant: TenantId,
        wanted: Wanted,
    ) -> Result<TraceId, NotFollowed> {
        let target = self.find_queue(tenant, &wanted.queue);
        let target = target.ok_or(NotFollowed::QueueUnknown)?;
        if target.core != self.config.core {
            return Err(NotFollowed::Elsewhere(target.core));
        }
        if self.queues.get(target.queue).is_none() {
            return Err(NotFollowed::QueueUnknown);
        }
        self.tracer.add(target.queue, wanted)
    }

    /// Messages were appended to a queue of this core.
    pub(super) fn trace_appended(
        &mut self,
        head: &RunHead,
        bytes: &[u8],
        sequence_of: impl Fn(usize) -> u64,
    ) {
        let queue = head.queue;
        if !self.tracer.is_waiting(queue) {
            return;
        }
        let is_durable = self.queues.get(queue).is_some_and(|state| state.durable);
        let segment = self.journal.open_segment().filter(|_| is_durable);
        let run = Run {
            queue,
            first: head.queue_sequence,
            producer: head.producer,
            bytes,
            block: segment.map(|segment| (self.journal.open_block().0, segment)),
        };
        let forwarded = self.tracer.forwarded;
        let (producers, now, here) = (&self.producers, self.now, self.config.core);
        let publisher = |sequence| {
            if let Some((core, arrival)) = forwarded {
                let key = None;
                return Some(Publisher { core, arrival, key });
            }
            let (key, producer) = producers
                .keys()
                .filter_map(|key| Some((key, producers.get(key)?)))
                .find(|(_, it)| it.id == head.producer && it.epoch == head.producer_epoch)?;
            Some(Publisher {
                core: here,
                arrival: producer.arrival(sequence, now),
                key: Some(key),
            })
        };
        self.tracer.appended(&run, publisher, sequence_of, now);
    }

    /// A turn ends: writes may have been begun, and time is over for some.
    pub(crate) fn trace_turn(&mut self) {
        let journal = &self.journal;
        self.tracer
            .submitted(|block| journal.submitted(BlockSequence(block)));
        self.tracer.expire(self.now);
    }
}
