//! One consumer as its connection sees it: opening, deliveries, loss and end; and as its handle
//! sees it: what to take next. Does not know sockets or settlements.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use ringpost_wire::control::{
    Body, CONSUMER_EXCLUSIVE, CONSUMER_NO_ACK, ConsumerOpen, ConsumerPosition,
};
use ringpost_wire::header::DELIVER_REDELIVERED;
use ringpost_wire::{Code, DeliverHead, FragmentHead, FrameHeader, FrameKind, padded};
use tokio::sync::{Notify, oneshot};

use super::Start;
use super::batch::{Batch, DeliveryTag};
use crate::stats::Counters;
use crate::{Error, ErrorKind, Headers, Result};

/// Bytes held for a consumer that settles nothing, after which its connection is not read.
const UNSETTLED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a consumer was built with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub queue: String,
    /// Which lane of a stream of several that is.
    pub lane: Option<u32>,
    /// 0 for one that takes messages itself.
    pub credit_messages: u32,
    pub credit_bytes: u64,
    pub is_exclusive: bool,
    pub arguments: Headers,
    /// Of a stream: where it begins.
    pub start: Option<Start>,
    /// The broker knows where it goes on.
    pub has_group: bool,
    /// Deliveries are settled by being sent.
    pub is_auto: bool,
    /// Largest message, in bytes.
    pub message_bytes_max: u32,
}

/// Shared by the consumer's handles and its connection's tasks.
pub(crate) struct Inbox {
    /// Number of the consumer within this process, so that tags of one are no tags of another.
    pub id: u32,
    pub settings: Settings,
    counters: Arc<Counters>,
    state: Mutex<State>,
    /// Told when an inbox that was over its bound is not any more.
    room: Notify,
    /// Told when the consumer becomes the active one of its queue, is it no longer, or is over.
    active: Notify,
}

struct State {
    session: u32,
    channel: u16,
    entries: VecDeque<Entry>,
    /// Messages in the entries.
    message_count: u64,
    /// Bytes in the entries.
    bytes: usize,
    /// Most messages that the broker may have in here: credit, or what was asked for.
    message_count_max: u64,
    credit_messages: u32,
    credit_bytes: u64,
    tag_last: u64,
    /// Of a stream: the message behind the last one that was handed out, or where it began.
    next_offset: Option<u64>,
    /// Of a stream: where the broker said last that it goes on.
    position: Option<u64>,
    /// Of a stream: messages that were gone before it got them.
    missed: u64,
    /// It is the active consumer of its queue.
    is_active: bool,
    partial: Option<Partial>,
    waker: Option<Waker>,
    end: Option<Error>,
    /// Told once how the first opening went.
    opened: Option<oneshot::Sender<Result<()>>>,
}

enum Entry {
    Batch(Batch),
    /// Deliveries that do not match their checksum.
    Damaged(RangeInclusive<DeliveryTag>),
}

/// A large message of which pieces are missing.
struct Partial {
    tag: u64,
    message_bytes: u32,
    bytes: BytesMut,
}

impl Inbox {
    pub(crate) fn new(settings: Settings, counters: Arc<Counters>) -> Arc<Self> {
        static ID_NEXT: AtomicU32 = AtomicU32::new(0);
        Arc::new(Self {
            id: ID_NEXT.fetch_add(1, Ordering::Relaxed),
            state: Mutex::new(State {
                session: 0,
                channel: 0,
                entries: VecDeque::new(),
                message_count: 0,
                bytes: 0,
                message_count_max: u64::from(settings.credit_messages),
                credit_messages: settings.credit_messages,
                credit_bytes: settings.credit_bytes,
                tag_last: 0,
                next_offset: None,
                position: None,
                missed: 0,
                is_active: false,
                partial: None,
                waker: None,
                end: None,
                opened: None,
            }),
            settings,
            counters,
            room: Notify::new(),
            active: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here is a bug that has been reported already; the entries stay consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `opened` how the first opening went.
    pub(crate) fn expect_open(&self, opened: oneshot::Sender<Result<()>>) {
        self.lock().opened = Some(opened);
    }

    /// The frame that opens the consumer on `channel`; called once per session.
    pub(crate) fn open_frame(&self, channel: u16, session: u32, request: u64, out: &mut Vec<u8>) {
        let mut state = self.lock();
        state.session = session;
        state.channel = channel;
        state.tag_last = 0;
        let is_auto = if self.settings.is_auto {
            CONSUMER_NO_ACK
        } else {
            0
        };
        let is_exclusive = if self.settings.is_exclusive {
            CONSUMER_EXCLUSIVE
        } else {
            0
        };
        let arguments = match (self.settings.start, state.next_offset) {
            (None, _) => self.settings.arguments.clone(),
            (Some(start), next) => {
                // What was lost on the way is read again; a group's members begin where that is.
                let next = next.filter(|_| !self.settings.has_group);
                let start = next.map_or(start, Start::Offset);
                let arguments = self.settings.arguments.clone();
                start.add_to(arguments).unwrap_or_default()
            }
        };
        let open = ConsumerOpen {
            credit_bytes: state.credit_bytes,
            credit_messages: state.credit_messages,
            flags: is_auto | is_exclusive,
            queue: self.settings.queue.as_bytes(),
            arguments: arguments.as_encoded(),
        };
        open.write(
            out,
            FrameHeader::bare(FrameKind::ConsumerOpen, channel, request),
        );
    }

    pub(crate) fn opened(&self) {
        if let Some(opened) = self.lock().opened.take() {
            // Nobody waits if the subscription was given up; its handle's drop then closes this.
            let _ = opened.send(Ok(()));
        }
    }

    /// It is the active consumer of its queue, or is not.
    pub(crate) fn active_is(&self, session: u32, is_active: bool) {
        let mut state = self.lock();
        if state.session == session {
            state.is_active = is_active;
            drop(state);
            self.active.notify_waiters();
        }
    }

    /// Where it goes on in its stream.
    pub(crate) fn goes_on(&self, session: u32, body: &[u8]) -> Result<(), Code> {
        let position = ConsumerPosition::decode(body)?;
        let mut state = self.lock();
        if state.session == session {
            state.position = Some(position.offset);
            state.missed += position.missed;
            state.next_offset.get_or_insert(position.offset);
        }
        Ok(())
    }

    pub(crate) fn position(&self) -> Option<u64> {
        self.lock().position
    }

    pub(crate) fn missed(&self) -> u64 {
        self.lock().missed
    }

    pub(crate) fn is_active(&self) -> bool {
        self.lock().is_active
    }

    /// Waits until it is active if it was not, or the other way round; `None` once it is over.
    pub(crate) async fn active_changes(&self, was_active: bool) -> Option<bool> {
        loop {
            let mut changed = pin!(self.active.notified());
            changed.as_mut().enable();
            {
                let state = self.lock();
                if state.is_active != was_active {
                    return Some(state.is_active);
                }
                if state.end.is_some() {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Takes deliveries; whether its connection must stop reading until there is room again.
    pub(crate) fn delivered(
        &self,
        session: u32,
        header: &FrameHeader,
        body: Bytes,
    ) -> Result<bool, Code> {
        let (head, rest) = DeliverHead::split(&body)?;
        let mut state = self.lock();
        if state.session != session || state.end.is_some() {
            return Ok(false);
        }
        let body = match header.kind {
            FrameKind::DeliverFragment => {
                let (fragment, piece) = FragmentHead::split(rest)?;
                let most = self.settings.message_bytes_max;
                match state.add_piece(header, &fragment, piece, most)? {
                    Some(whole) => whole,
                    None => return Ok(false),
                }
            }
            _ => body.slice(DeliverHead::BYTES..),
        };
        // Tags have no gaps (P-42), and nobody sends more than was asked for.
        let last = header
            .sequence
            .checked_add(u64::from(header.count).wrapping_sub(1))
            .ok_or(Code::BodyMalformed)?;
        if header.count == 0 || header.sequence != state.tag_last + 1 {
            return Err(Code::BodyMalformed);
        }
        let count = u64::from(header.count);
        if !self.settings.is_auto && state.message_count + count > state.message_count_max {
            return Err(Code::CreditExceeded);
        }
        state.tag_last = last;
        state.message_count += count;
        state.bytes += body.len();
        Counters::add(&self.counters.deliveries, count);
        let batch = Batch {
            body,
            head,
            first: DeliveryTag {
                session,
                consumer: self.id,
                number: header.sequence,
            },
            count: header.count,
            lane: self.settings.lane,
            is_redelivered: header.flags & DELIVER_REDELIVERED != 0,
        };
        state.entries.push_back(Entry::Batch(batch));
        let is_over = self.settings.is_auto && state.bytes > UNSETTLED_BYTES_MAX;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(is_over)
    }

    /// Waits until the inbox is within its bound again. The peer is not silent meanwhile: it is
    /// this side that does not listen.
    pub(crate) async fn wait_for_room(&self, heard: &AtomicBool) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            if self.lock().bytes <= UNSETTLED_BYTES_MAX {
                return;
            }
            tokio::select! {
                () = room => {}
                () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {
                    heard.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// The session is gone, and with it everything that was not taken out.
    pub(crate) fn lost(&self) {
        let mut state = self.lock();
        state.session = 0;
        Counters::add(&self.counters.deliveries_stale, state.message_count);
        state.entries.clear();
        state.message_count = 0;
        state.bytes = 0;
        state.partial = None;
        state.is_active = false;
        drop(state);
        self.active.notify_waiters();
    }

    /// It is over: nothing is delivered any more.
    pub(crate) fn ended(&self, error: &Error) {
        let mut state = self.lock();
        state.session = 0;
        state.end.get_or_insert_with(|| error.clone());
        if let Some(opened) = state.opened.take() {
            // Nobody waits if the subscription was given up.
            let _ = opened.send(Err(error.clone()));
        }
        // What is left would be delivered again to somebody else.
        Counters::add(&self.counters.deliveries_stale, state.message_count);
        state.entries.clear();
        state.message_count = 0;
        state.bytes = 0;
        state.partial = None;
        state.is_active = false;
        let waker = state.waker.take();
        drop(state);
        self.room.notify_waiters();
        self.active.notify_waiters();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What ended the consumer, if something has.
    pub(crate) fn end(&self) -> Option<Error> {
        self.lock().end.clone()
    }

    /// Session and channel it lives on now.
    pub(crate) fn place(&self) -> (u32, u16) {
        let state = self.lock();
        (state.session, state.channel)
    }

    /// Changes the credit; returns session and channel to tell the broker on.
    pub(crate) fn set_credit(&self, messages: u32, bytes: u64) -> (u32, u16) {
        let mut state = self.lock();
        state.credit_messages = messages;
        state.credit_bytes = bytes;
        // Messages under the older credit may still be on their way.
        state.message_count_max = state.message_count_max.max(u64::from(messages));
        (state.session, state.channel)
    }

    /// Lets the broker put `count` more messages in here, for a get.
    pub(crate) fn expect(&self, count: u32) {
        let mut state = self.lock();
        state.message_count_max = state.message_count + u64::from(count);
    }

    /// The next messages; `None` once the consumer was closed by its owner.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Batch>>> {
        loop {
            match self.take() {
                Some(result) => match result.transpose() {
                    Some(result) => return Poll::Ready(result.map(Some)),
                    // Everything in that entry was damaged: the next one says so.
                    None => continue,
                },
                None => {
                    let mut state = self.lock();
                    if let Some(error) = &state.end {
                        return Poll::Ready(match error.kind() {
                            ErrorKind::Closed => Ok(None),
                            _ => Err(error.clone()),
                        });
                    }
                    if state.entries.is_empty() {
                        state.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Takes one entry and checks its messages; `None` if there is none, `Some(Ok(None))` if there
    /// was nothing good in it.
    pub(crate) fn take(&self) -> Option<Result<Option<Batch>>> {
        let (entry, was_over) = {
            let mut state = self.lock();
            let was_over = state.bytes > UNSETTLED_BYTES_MAX;
            let entry = state.entries.pop_front()?;
            if let Entry::Batch(batch) = &entry {
                state.message_count -= u64::from(batch.count);
                state.bytes -= batch.body.len();
                let behind = batch.head.queue_sequence + u64::from(batch.count);
                if self.settings.start.is_some() {
                    state.next_offset = Some(behind);
                }
            }
            (entry, was_over)
        };
        if was_over {
            self.room.notify_waiters();
        }
        let batch = match entry {
            Entry::Batch(batch) => batch,
            Entry::Damaged(tags) => return Some(Err(self.report(&tags))),
        };
        // Outside of the lock: this reads every byte.
        let Err(damage) = batch.check() else {
            return Some(Ok(Some(batch)));
        };
        Counters::add(
            &self.counters.deliveries_damaged,
            u64::from(damage.places.end - damage.places.start),
        );
        let tags = batch.tag(damage.places.start)..=batch.tag(damage.places.end - 1);
        let mut state = self.lock();
        if state.session == batch.first.session {
            if let Some(after) = batch.after(&damage) {
                state.message_count += u64::from(after.count);
                state.bytes += after.body.len();
                state.entries.push_front(Entry::Batch(after));
            }
            state.entries.push_front(Entry::Damaged(tags));
        }
        Some(Ok(batch.before(&damage)))
    }

    /// The error for the first of some damaged deliveries; the others stay.
    fn report(&self, tags: &RangeInclusive<DeliveryTag>) -> Error {
        let first = *tags.start();
        if first < *tags.end() {
            let next = DeliveryTag {
                number: first.number + 1,
                ..first
            };
            let mut state = self.lock();
            if state.session == first.session {
                state.entries.push_front(Entry::Damaged(next..=*tags.end()));
            }
        }
        Error::new(
            ErrorKind::Damaged,
            format!(
                "delivery {first} of queue {:?} does not match its producer's checksum; ack or reject it",
                self.settings.queue
            ),
        )
        .with_delivery(first)
    }

    /// Whether the next entry is an error that is to be told first.
    pub(crate) fn is_damaged_next(&self) -> bool {
        matches!(self.lock().entries.front(), Some(Entry::Damaged(_)))
    }
}

impl State {
    /// Adds a piece of a large message; the whole message with its padding once it is complete.
    fn add_piece(
        &mut self,
        header: &FrameHeader,
        head: &FragmentHead,
        piece: &[u8],
        message_bytes_max: u32,
    ) -> Result<Option<Bytes>, Code> {
        if head.message_bytes > message_bytes_max {
            return Err(Code::MessageTooLarge);
        }
        if head.offset == 0 {
            if self.partial.is_some() {
                return Err(Code::BodyMalformed);
            }
            self.partial = Some(Partial {
                tag: header.sequence,
                message_bytes: head.message_bytes,
                bytes: BytesMut::with_capacity(padded(head.message_bytes as usize)),
            });
        }
        let partial = self.partial.as_mut().ok_or(Code::BodyMalformed)?;
        if partial.tag != header.sequence
            || partial.message_bytes != head.message_bytes
            || partial.bytes.len() != head.offset as usize
        {
            return Err(Code::BodyMalformed);
        }
        partial.bytes.extend_from_slice(piece);
        if !head.is_last() {
            return Ok(None);
        }
        let mut bytes = self.partial.take().ok_or(Code::BodyMalformed)?.bytes;
        bytes.resize(padded(bytes.len()), 0);
        Ok(Some(bytes.freeze()))
    }
}
