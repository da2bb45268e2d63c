//! One producer as its connection sees it: opening, credit, confirms, loss and end; and as its
//! handle sees it: room, pushing, flushing. Does not know sockets.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use ringpost_wire::control::{
    Body, PRODUCER_DOWNGRADE, ProducerCredit, ProducerOpen, ProducerOpened,
};
use ringpost_wire::{Code, FrameHeader, FrameKind, control};
use tokio::sync::{Notify, oneshot};

use super::pending::{Pending, PendingBatch};
use super::window::{Segment, Window};
use crate::connection::Connection;
use crate::stats::Counters;
use crate::{Error, ErrorKind, Level, Message, Resend, Result, options};

/// What a producer was built with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub exchange: Bytes,
    pub level: Level,
    pub is_downgrade_allowed: bool,
    pub is_mandatory: bool,
    pub in_flight_bytes_max: u64,
    pub resend: Resend,
    pub message_bytes_max: u32,
}

/// Shared by the producer's handles, its connection's tasks and, while it is in there, the list of
/// producers that have something to send.
pub(crate) struct Inner {
    pub settings: Settings,
    connection: Arc<Connection>,
    counters: Arc<Counters>,
    state: Mutex<State>,
    /// Told when messages were settled while somebody waits for room.
    space: Notify,
    /// Those who wait for room wait in line here.
    turn: tokio::sync::Mutex<()>,
    /// Tasks that wait for room.
    waiting_count: AtomicUsize,
}

struct State {
    window: Window,
    phase: Phase,
    /// It is in its connection's list of producers to be asked for frames.
    is_listed: bool,
    channel: u16,
    producer: u64,
    epoch: u32,
    /// Told once how the first opening went.
    opened: Option<oneshot::Sender<Result<()>>>,
    /// Who waits until everything below a local sequence is settled.
    flushes: Vec<(u64, Waker)>,
    /// First failure since the last flush.
    failure: Option<Error>,
    /// All handles are gone: close once everything is settled.
    is_abandoned: bool,
}

enum Phase {
    /// Not open now: connecting, or an opening is on its way.
    Waiting,
    /// Open in this session of the connection.
    Open(u32),
    /// Over.
    Ended(Error),
}

/// What must be done once the state is unlocked.
#[derive(Default)]
struct After {
    wakers: Vec<Waker>,
    has_room: bool,
    is_listed: bool,
    is_over: bool,
}

impl Inner {
    pub(crate) fn new(settings: Settings, connection: Arc<Connection>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            counters: Arc::clone(&connection.counters),
            connection,
            state: Mutex::new(State {
                window: Window::new(),
                phase: Phase::Waiting,
                is_listed: false,
                channel: 0,
                // The highest names are the broker's own (P-30).
                producer: options::random() >> 1,
                epoch: 0,
                opened: None,
                flushes: Vec::new(),
                failure: None,
                is_abandoned: false,
            }),
            space: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            waiting_count: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here is a bug that has been reported already; the window stays consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `opened` how the first opening went.
    pub(crate) fn expect_open(&self, opened: oneshot::Sender<Result<()>>) {
        self.lock().opened = Some(opened);
    }

    /// The frame that opens the producer on `channel`; called once per session and channel.
    pub(crate) fn open_frame(&self, channel: u16, request: u64, out: &mut Vec<u8>) {
        let mut state = self.lock();
        state.channel = channel;
        state.epoch += 1;
        let open = ProducerOpen {
            producer: state.producer,
            epoch: state.epoch,
            level: self.settings.level.to_wire() as u8,
            flags: if self.settings.is_downgrade_allowed {
                PRODUCER_DOWNGRADE
            } else {
                0
            },
            reserved: 0,
        };
        open.write(
            out,
            FrameHeader::bare(FrameKind::ProducerOpen, channel, request),
        );
    }

    pub(crate) fn opened(self: &Arc<Self>, session: u32, body: &[u8]) -> Result<(), Code> {
        let opened = ProducerOpened::decode(body)?;
        let credit = ProducerCredit {
            messages: opened.messages,
            bytes: opened.bytes,
        };
        let lost = Error::new(
            ErrorKind::Indeterminate,
            "the connection was lost before the broker confirmed the message",
        );
        let mut after = After::default();
        let mut state = self.lock();
        if matches!(state.phase, Phase::Ended(_)) {
            return Ok(());
        }
        let is_resending = match self.settings.resend {
            Resend::Unconfirmed => true,
            Resend::Never => false,
        };
        let resent = state.window.sent();
        let failed = state.window.reopen(
            opened.sequence,
            credit,
            is_resending,
            &lost,
            &mut after.wakers,
        );
        let failed = match failed {
            Ok(failed) => failed,
            Err(code) => {
                let channel = state.channel;
                drop(state);
                let text = "the broker knows publishes of this producer that it never sent";
                self.ended(&Error::from_code(code, text));
                self.connection.close_producer(channel, self);
                return Ok(());
            }
        };
        if failed > 0 {
            Counters::add(&self.counters.indeterminate, failed);
            state.failure.get_or_insert(lost);
        }
        Counters::add(
            &self.counters.resent,
            resent.saturating_sub(state.window.first()),
        );
        state.phase = Phase::Open(session);
        if let Some(opened) = state.opened.take() {
            // Nobody waits if the build was given up; its handle's drop then closes this.
            let _ = opened.send(Ok(()));
        }
        // Also if it is listed: the list may be that of a session that is gone.
        state.is_listed = true;
        after.is_listed = true;
        self.finish(state, after);
        Ok(())
    }

    pub(crate) fn confirm(self: &Arc<Self>, header: &FrameHeader, body: &[u8]) -> Result<(), Code> {
        let level = control::Level::from_number(header.flags).ok_or(Code::BodyMalformed)?;
        let credit = ProducerCredit::decode(body)?;
        let mut after = After::default();
        let mut state = self.lock();
        let count =
            state
                .window
                .confirm(header.sequence, Level::from_wire(level), &mut after.wakers)?;
        state.window.grant(credit);
        after.is_listed = state.list_if_pending();
        Counters::add(&self.counters.confirmed, count);
        self.finish(state, after);
        Ok(())
    }

    pub(crate) fn credit(self: &Arc<Self>, body: &[u8]) -> Result<(), Code> {
        let credit = ProducerCredit::decode(body)?;
        let mut state = self.lock();
        state.window.grant(credit);
        let after = After {
            is_listed: state.list_if_pending(),
            ..After::default()
        };
        self.finish(state, after);
        Ok(())
    }

    pub(crate) fn refused(&self, header: &FrameHeader, body: &[u8]) -> Result<(), Code> {
        let error = Error::from_refusal(body);
        let mut state = self.lock();
        let count = state.window.refuse(header.sequence, header.count, &error)?;
        let counter = match error.kind() {
            ErrorKind::Indeterminate => &self.counters.indeterminate,
            _ => &self.counters.refused,
        };
        Counters::add(counter, count);
        state.failure.get_or_insert(error);
        Ok(())
    }

    /// The session is gone; another one may come.
    pub(crate) fn lost(&self) {
        let mut state = self.lock();
        if let Phase::Open(_) = state.phase {
            state.phase = Phase::Waiting;
        }
    }

    /// It is over: nothing is sent or confirmed any more.
    pub(crate) fn ended(self: &Arc<Self>, error: &Error) {
        let mut after = After::default();
        let mut state = self.lock();
        if matches!(state.phase, Phase::Ended(_)) {
            return;
        }
        state.phase = Phase::Ended(error.clone());
        if let Some(opened) = state.opened.take() {
            // Nobody waits if the build was given up.
            let _ = opened.send(Err(error.clone()));
        }
        let unknown = error.as_kind(
            ErrorKind::Indeterminate,
            "the producer ended before the broker confirmed the message",
        );
        let sent = state.window.sent_ever();
        let count = state.window.fail_below(sent, &unknown, &mut after.wakers);
        Counters::add(&self.counters.indeterminate, count);
        let next = state.window.next();
        let unsent = state.window.fail_below(next, error, &mut after.wakers);
        if count > 0 {
            state.failure.get_or_insert(unknown);
        } else if unsent > 0 {
            state.failure.get_or_insert(error.clone());
        }
        after.has_room = true;
        self.finish(state, after);
    }

    /// Cuts frames for a writer of `session`. Returns whether there is more, and what to tell
    /// [`Inner::written`] once they are written.
    pub(crate) fn cut(
        &self,
        session: u32,
        budget: usize,
        out: &mut Vec<Segment>,
    ) -> (bool, Option<u64>) {
        let mut state = self.lock();
        state.is_listed = false;
        match state.phase {
            Phase::Open(open) if open == session => {}
            _ => return (false, None),
        }
        let channel = state.channel;
        let has_more = state.window.cut(channel, budget, out);
        state.is_listed = has_more;
        let is_unconfirmed = self.settings.level == Level::None;
        (has_more, is_unconfirmed.then(|| state.window.sent()))
    }

    /// Everything below the local sequence `upto` was written; that settles it at level none.
    pub(crate) fn written(self: &Arc<Self>, upto: u64) {
        let mut after = After::default();
        let mut state = self.lock();
        let upto = upto.min(state.window.sent());
        let count = state.window.settle(upto, Level::None, &mut after.wakers);
        Counters::add(&self.counters.confirmed, count);
        self.finish(state, after);
    }

    /// Unlocks the state, then does what follows from a change of it.
    fn finish(self: &Arc<Self>, mut state: MutexGuard<'_, State>, mut after: After) {
        let first = state.window.first();
        state.flushes.retain(|(upto, waker)| {
            let is_waiting = *upto > first;
            if !is_waiting {
                after.wakers.push(waker.clone());
            }
            is_waiting
        });
        after.is_over = state.is_abandoned && state.window.count() == 0;
        let channel = state.channel;
        drop(state);
        if after.is_listed {
            self.connection.list(Arc::clone(self));
        }
        if after.is_over {
            self.connection.close_producer(channel, self);
        }
        if self.waiting_count.load(Ordering::Relaxed) > 0 {
            self.space.notify_waiters();
        }
        for waker in after.wakers {
            waker.wake();
        }
    }

    /// The session and the channel in which it is open now.
    pub(crate) fn place(&self) -> Option<(u32, u16)> {
        let state = self.lock();
        match state.phase {
            Phase::Open(session) => Some((session, state.channel)),
            Phase::Waiting | Phase::Ended(_) => None,
        }
    }

    /// Messages and bytes not settled.
    pub(crate) fn in_flight(&self) -> (u64, u64) {
        let state = self.lock();
        (state.window.count(), state.window.bytes())
    }

    /// All handles are gone: closes the producer now, or once everything is settled.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let mut state = self.lock();
        state.is_abandoned = true;
        self.finish(state, After::default());
    }

    /// Accepts one message, waiting in line for room.
    pub(crate) async fn push(self: &Arc<Self>, message: &Message) -> Result<Pending> {
        if self.waiting_count.load(Ordering::Relaxed) == 0
            && let Some(pending) = self.try_push(message)?
        {
            return Ok(pending);
        }
        let _line = Line::join(self);
        let _turn = self.turn.lock().await;
        loop {
            let mut room = pin!(self.space.notified());
            room.as_mut().enable();
            if let Some(pending) = self.try_push(message)? {
                return Ok(pending);
            }
            room.await;
        }
    }

    fn try_push(self: &Arc<Self>, message: &Message) -> Result<Option<Pending>> {
        let mut state = self.lock();
        let Some(sequence) = self.push_locked(&mut state, message)? else {
            return Ok(None);
        };
        let group = Arc::clone(state.window.group_of_last());
        let is_listed = std::mem::replace(&mut state.is_listed, true);
        drop(state);
        if !is_listed {
            self.connection.list(Arc::clone(self));
        }
        Ok(Some(Pending {
            group,
            sequence,
            counters: Arc::clone(&self.counters),
            is_done: false,
        }))
    }

    /// Encodes the message if there is room for it.
    fn push_locked(&self, state: &mut State, message: &Message) -> Result<Option<u64>> {
        if let Phase::Ended(error) = &state.phase {
            return Err(error.clone());
        }
        let parts = message.parts(&self.settings.exchange);
        message.check(parts.length(), self.settings.message_bytes_max)?;
        let held = state.window.bytes();
        let is_full = held + parts.padded_length() as u64 > self.settings.in_flight_bytes_max;
        // One message that is larger than the room altogether goes alone.
        if is_full && held > 0 {
            return Ok(None);
        }
        state
            .window
            .push(&parts, self.settings.is_mandatory)
            .map(Some)
            .map_err(|code| Error::from_code(code, "a part of the message is over its limit"))
    }

    /// Accepts messages, waiting in line for room whenever it is used up.
    pub(crate) async fn push_batch<I>(self: &Arc<Self>, messages: I) -> Result<PendingBatch>
    where
        I: IntoIterator,
        I::Item: std::borrow::Borrow<Message>,
    {
        let mut batch = PendingBatch {
            groups: Vec::new(),
            runs: Vec::new(),
            counters: Arc::clone(&self.counters),
            is_done: false,
        };
        let mut messages = messages.into_iter().peekable();
        if self.waiting_count.load(Ordering::Relaxed) == 0
            && self.try_push_batch(&mut messages, &mut batch)?
        {
            return Ok(batch);
        }
        let _line = Line::join(self);
        let _turn = self.turn.lock().await;
        loop {
            let mut room = pin!(self.space.notified());
            room.as_mut().enable();
            if self.try_push_batch(&mut messages, &mut batch)? {
                return Ok(batch);
            }
            room.await;
        }
    }

    /// Accepts messages until there is no room; returns whether that were all.
    fn try_push_batch<I>(
        self: &Arc<Self>,
        messages: &mut std::iter::Peekable<I>,
        batch: &mut PendingBatch,
    ) -> Result<bool>
    where
        I: Iterator,
        I::Item: std::borrow::Borrow<Message>,
    {
        use std::borrow::Borrow as _;
        while messages.peek().is_some() {
            let mut state = self.lock();
            let mut result = Ok(true);
            // The lock is given up now and then, so that the writer can go on meanwhile.
            for _ in 0..BATCH_PER_LOCK {
                let Some(message) = messages.peek() else {
                    break;
                };
                match self.push_locked(&mut state, message.borrow()) {
                    Ok(Some(sequence)) => {
                        messages.next();
                        let group = state.window.group_of_last();
                        if batch
                            .groups
                            .last()
                            .is_none_or(|last| !Arc::ptr_eq(last, group))
                        {
                            batch.groups.push(Arc::clone(group));
                        }
                        match batch.runs.last_mut() {
                            Some(run) if run.end == sequence => run.end += 1,
                            _ => batch.runs.push(sequence..sequence + 1),
                        }
                    }
                    Ok(None) => {
                        result = Ok(false);
                        break;
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            let is_listed = std::mem::replace(&mut state.is_listed, true);
            drop(state);
            if !is_listed {
                self.connection.list(Arc::clone(self));
            }
            if !result? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until everything accepted so far is settled; the first failure since the last flush.
    pub(crate) async fn flush(&self) -> Result<()> {
        let upto = self.lock().window.next();
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.window.first() >= upto {
                return Poll::Ready(match state.failure.take() {
                    Some(error) => Err(error),
                    None => Ok(()),
                });
            }
            let is_known = |(at, waker): &(u64, Waker)| *at == upto && waker.will_wake(cx.waker());
            if !state.flushes.iter().any(is_known) {
                state.flushes.push((upto, cx.waker().clone()));
            }
            Poll::Pending
        })
        .await
    }
}

/// Messages accepted under one lock: a few microseconds of work.
const BATCH_PER_LOCK: usize = 64;

impl State {
    /// Whether it has to be listed because it is open and has messages.
    fn list_if_pending(&mut self) -> bool {
        let is_sending =
            matches!(self.phase, Phase::Open(_)) && self.window.next() > self.window.sent();
        is_sending && !std::mem::replace(&mut self.is_listed, true)
    }
}

/// A place among those who wait for room.
struct Line<'a>(&'a AtomicUsize);

impl<'a> Line<'a> {
    fn join(inner: &'a Inner) -> Self {
        inner.waiting_count.fetch_add(1, Ordering::Relaxed);
        Self(&inner.waiting_count)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
