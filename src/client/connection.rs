//! One connection to a broker through all its sessions: who uses it, what waits to be written, and
//! the task that keeps it up. Does not know what producers and consumers do with their frames.
//!
//! ```text
//!              ┌ supervisor: dials, runs a session, dials again ┐
//!   handles ──►│  state ◄── receive() ◄── reader task           │◄── socket
//!              │    └────► gather() ────► writer task           │──► socket
//!              └────────────────────────────────────────────────┘
//! ```
//!
//! Locks are never nested: the connection's state is unlocked before a producer or consumer is
//! called, and they unlock theirs before they call the connection.

mod dial;
mod io;
mod out;

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ringpost_wire::header::{CONSUMER_IS_ACTIVE, DONE_CHANGED};
use ringpost_wire::{
    CHANNELS_MAX, Code, DeliverHead, FRAME_HEADER_BYTES, FrameHeader, FrameKind, SettleRange, frame,
};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use self::dial::{Link, dial};
use self::out::Out;
use crate::consumer::Inbox;
use crate::observe::LinkEvent;
use crate::options::{self, Limits, Options};
use crate::producer::{Segment, inner::Inner as Producer};
use crate::stats::Counters;
use crate::transaction::Book;
use crate::{Error, ErrorKind, Result};

/// Bytes of control frames that may wait before those who write more wait as well.
const OUT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of messages given to the writer at once, over all producers and from one of them.
const GATHER_BYTES_MAX: usize = 1024 * 1024;
const GATHER_BYTES_MAX_EACH: usize = 256 * 1024;
/// Most entries of a list that a broker may answer.
const LIST_COUNT_MAX: usize = 1_000_000;
/// Half-intervals of silence after which a peer is taken for gone: two intervals (P-12).
const SILENT_TICKS_MAX: u32 = 4;
/// How long to wait for the answer to `Close` (P-11).
const CLOSE_ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long to try to tell a peer why it is left.
const GOODBYE_WAIT: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug)]
pub(crate) struct Lost {
    error: Error,
    /// Dialling again cannot help.
    is_final: bool,
    /// What to say to the peer before hanging up, if it may still listen.
    goodbye: Option<Code>,
}

impl Lost {
    fn passing(error: Error) -> Self {
        Self {
            error,
            is_final: false,
            goodbye: None,
        }
    }

    /// The broker sent what the protocol does not allow; another session may do better, but for
    /// a version that will stay what it is.
    fn malformed(code: Code, text: &str) -> Self {
        Self {
            error: Error::protocol(code, text),
            is_final: code == Code::VersionUnsupported,
            goodbye: Some(code),
        }
    }

    /// The broker said why.
    fn by_broker(body: &[u8]) -> Self {
        let error = Error::from_failure(body);
        let is_final = error
            .code_number()
            .is_none_or(|code| code != Code::Normal && !code.is_retryable());
        Self {
            error,
            is_final,
            goodbye: Some(Code::Normal),
        }
    }
}

/// A producer whose messages below `upto` are settled once they are written.
pub(crate) struct Written {
    pub producer: Arc<Producer>,
    pub upto: u64,
}

/// What answered a request.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Something was created, changed or removed.
    pub is_changed: bool,
    pub count: u32,
    /// Bodies of the entries of a list.
    pub items: Vec<Bytes>,
}

/// What a request's answer looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Any entries, then `Done`, `Settled` or `GetDone`.
    Done,
    /// One entry and nothing else.
    Item,
}

struct Request {
    /// 0 for the connection.
    channel: u16,
    answer: Answer,
    reply: oneshot::Sender<Result<Reply>>,
    items: Vec<Bytes>,
}

#[derive(Clone)]
enum Channel {
    Producer(Arc<Producer>),
    Consumer(Arc<Inbox>),
    Transactions(Arc<Book>),
    /// Closed by this side; the broker has not said so yet. The frame that closes it is written
    /// once the channel is open, for a channel that is not cannot be closed.
    Retired(FrameKind),
}

struct Slot {
    channel: Channel,
    /// The broker has said that it is open.
    is_open: bool,
}

enum Phase {
    Up,
    Down,
    Ended(Error),
}

struct State {
    phase: Phase,
    /// Number of the session, from 1; what belongs to an older one is void.
    session: u32,
    limits: Arc<Limits>,
    out: Out,
    /// Producers that may have something to send.
    listed: VecDeque<Arc<Producer>>,
    requests: HashMap<u64, Request>,
    request_last: u64,
    channels: HashMap<u16, Slot>,
    channel_next: u16,
    /// Leases on it; an attached connection without any is closed.
    users: usize,
    is_closing: bool,
    /// What to say to the peer of this session before hanging up.
    goodbye: Option<Code>,
}

impl State {
    /// A request id that no other request of the connection has (P-9).
    fn next_request(&mut self) -> u64 {
        self.request_last += 1;
        self.request_last
    }

    fn write_close(&mut self, number: u16, kind: FrameKind) {
        let request = self.next_request();
        frame::write_bare(self.out.frames(), kind, number, request);
    }
}

/// See the module. Shared by its three tasks, its channels and the client's pool.
pub(crate) struct Connection {
    pub options: Arc<Options>,
    pub counters: Arc<Counters>,
    /// The queue whose core it is attached to.
    queue: Option<String>,
    state: Mutex<State>,
    /// Wakes the writer.
    wake: Notify,
    /// The phase changed, or what waited to be written was taken.
    changed: Notify,
    /// Bytes were received since the last tick.
    heard: AtomicBool,
    /// Bytes were sent since the last tick.
    spoke: AtomicBool,
}

impl Connection {
    /// Dials once; keeps the connection up from then on.
    pub(crate) async fn start(
        options: Arc<Options>,
        counters: Arc<Counters>,
        queue: Option<String>,
    ) -> Result<(Arc<Self>, JoinHandle<()>)> {
        let link = dial(&options, queue.as_deref())
            .await
            .map_err(|lost| lost.error)?;
        let connection = Arc::new(Self {
            options,
            counters,
            queue,
            state: Mutex::new(State {
                phase: Phase::Up,
                session: 1,
                limits: Arc::new(link.limits.clone()),
                out: Out::default(),
                listed: VecDeque::new(),
                requests: HashMap::new(),
                request_last: 0,
                channels: HashMap::new(),
                channel_next: 1,
                users: 0,
                is_closing: false,
                goodbye: None,
            }),
            wake: Notify::new(),
            changed: Notify::new(),
            heard: AtomicBool::new(false),
            spoke: AtomicBool::new(false),
        });
        let supervisor = tokio::spawn(Arc::clone(&connection).supervise(link));
        Ok((connection, supervisor))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here is a bug that has been reported already; the maps stay consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.lock().limits)
    }

    /// The supervisor: one session after the other, until the end.
    async fn supervise(self: Arc<Self>, first: Link) {
        let policy = self.options.reconnect;
        let mut link = first;
        let mut attempt = 0;
        loop {
            let began = Instant::now();
            let Some(lost) = self.run(link).await else {
                return self.end(&Error::closed());
            };
            if self.is_closing() {
                return self.end(&Error::closed());
            }
            crate::observe::lost(&self.options.address, &lost.error);
            if lost.is_final || policy.attempts_max == 0 {
                return self.end(&lost.error);
            }
            self.go_down(&lost.error);
            let told = LinkEvent::Lost(lost.error.clone());
            self.options.observer.tell(told);
            if began.elapsed() > policy.longest {
                attempt = 0;
            }
            link = match self.redial(&mut attempt, lost.error).await {
                Ok(link) => link,
                Err(error) => return self.end(&error),
            };
            Counters::add(&self.counters.reconnects, 1);
            crate::observe::reconnected(&self.options.address, attempt);
            self.come_up(&link);
            self.options.observer.tell(LinkEvent::Restored);
        }
    }

    /// Dials until there is a connection or no attempt is left.
    async fn redial(&self, attempt: &mut u32, mut error: Error) -> Result<Link> {
        let policy = self.options.reconnect;
        loop {
            if *attempt >= policy.attempts_max {
                let text = format!("gave up after {attempt} attempts to connect again");
                return Err(error.as_kind(error.kind(), &text));
            }
            let wait = policy.wait(*attempt, options::random());
            *attempt += 1;
            let is_closing = async {
                loop {
                    let mut changed = pin!(self.changed.notified());
                    changed.as_mut().enable();
                    if self.is_closing() {
                        return;
                    }
                    changed.await;
                }
            };
            let dialled = tokio::select! {
                () = is_closing => return Err(Error::closed()),
                dialled = async {
                    tokio::time::sleep(wait).await;
                    dial(&self.options, self.queue.as_deref()).await
                } => dialled,
            };
            match dialled {
                Ok(link) => return Ok(link),
                Err(lost) if lost.is_final => return Err(lost.error),
                Err(lost) => {
                    Counters::add(&self.counters.connect_failures, 1);
                    error = lost.error;
                }
            }
        }
    }

    /// One session; `None` if it ended because the connection was closed.
    async fn run(self: &Arc<Self>, link: Link) -> Option<Lost> {
        let session = self.lock().session;
        let (reading, writing) = link.stream.into_split();
        let reader = io::read(Arc::clone(self), session, reading, link.received);
        let writer = io::write(Arc::clone(self), session, writing);
        let (mut reader, mut writer) = (tokio::spawn(reader), tokio::spawn(writer));
        let lost = tokio::select! {
            lost = &mut reader => Some(lost.unwrap_or_else(|_| task_died())),
            result = &mut writer => match result {
                Ok(Ok(())) => None,
                Ok(Err(lost)) => Some(lost),
                Err(_) => Some(task_died()),
            },
            lost = self.watch(link.limits.heartbeat) => Some(lost),
        };
        match &lost {
            // The writer has said `Close`: hanging up at once could tear down what it wrote.
            None => drop(tokio::time::timeout(CLOSE_ANSWER_WAIT, &mut reader).await),
            Some(Lost {
                goodbye: Some(code),
                ..
            }) => {
                self.lock().goodbye = Some(*code);
                self.wake.notify_one();
                // A peer that does not read is left without a word.
                drop(tokio::time::timeout(GOODBYE_WAIT, &mut writer).await);
            }
            Some(_) => {}
        }
        // The next session starts when nothing of this one runs any more.
        for task in [reader.abort_handle(), writer.abort_handle()] {
            task.abort();
        }
        // A task that was already joined above must not be polled again.
        while !(reader.is_finished() && writer.is_finished()) {
            tokio::task::yield_now().await;
        }
        lost
    }

    /// Sends heartbeats and listens for them.
    async fn watch(&self, interval: Duration) -> Lost {
        let half = (interval / 2).max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval_at(Instant::now() + half, half);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_ticks = 0;
        loop {
            ticks.tick().await;
            if self.heard.swap(false, Ordering::Relaxed) {
                silent_ticks = 0;
            } else {
                silent_ticks += 1;
            }
            if silent_ticks >= SILENT_TICKS_MAX {
                let text = format!("the broker was silent for two intervals of {interval:?}");
                return Lost {
                    error: Error::disconnected(&text),
                    is_final: false,
                    goodbye: Some(Code::TimedOut),
                };
            }
            if !self.spoke.swap(false, Ordering::Relaxed) {
                frame::write_bare(self.lock().out.frames(), FrameKind::Heartbeat, 0, 0);
                self.wake.notify_one();
            }
        }
    }

    /// The session is over and another one may come.
    fn go_down(&self, error: &Error) {
        let (requests, channels) = {
            let mut state = self.lock();
            state.phase = Phase::Down;
            state.session += 1;
            state.goodbye = None;
            state.out.clear();
            state.listed.clear();
            state
                .channels
                .retain(|_, slot| !matches!(slot.channel, Channel::Retired(_)));
            let mut channels = Vec::with_capacity(state.channels.len());
            for slot in state.channels.values_mut() {
                slot.is_open = false;
                channels.push(slot.channel.clone());
            }
            (std::mem::take(&mut state.requests), channels)
        };
        fail(requests, error);
        for channel in channels {
            match channel {
                Channel::Producer(producer) => producer.lost(),
                Channel::Consumer(inbox) => inbox.lost(),
                Channel::Transactions(book) => book.lost(),
                Channel::Retired(_) => {}
            }
        }
        self.changed.notify_waiters();
    }

    /// A new session starts: opens every channel again.
    fn come_up(&self, link: &Link) {
        self.heard.store(true, Ordering::Relaxed);
        let (session, channels) = {
            let mut state = self.lock();
            state.phase = Phase::Up;
            state.limits = Arc::new(link.limits.clone());
            state.out.clear();
            let slots = state.channels.iter();
            let mut channels: Vec<_> = slots
                .map(|(number, slot)| (*number, slot.channel.clone()))
                .collect();
            channels.sort_by_key(|(number, _)| *number);
            (state.session, channels)
        };
        for (number, channel) in channels {
            self.open(number, &channel, session);
        }
        self.changed.notify_waiters();
    }

    /// Nothing comes after this.
    fn end(&self, error: &Error) {
        let (requests, channels) = {
            let mut state = self.lock();
            state.phase = Phase::Ended(error.clone());
            state.session += 1;
            state.listed.clear();
            (
                std::mem::take(&mut state.requests),
                std::mem::take(&mut state.channels),
            )
        };
        fail(requests, error);
        for slot in channels.into_values() {
            match slot.channel {
                Channel::Producer(producer) => producer.ended(error),
                Channel::Consumer(inbox) => inbox.ended(error),
                Channel::Transactions(book) => book.ended(error),
                Channel::Retired(_) => {}
            }
        }
        self.changed.notify_waiters();
    }

    /// Writes everything that waits, says goodbye and ends. Returns at once.
    pub(crate) fn shut_down(&self) {
        self.lock().is_closing = true;
        self.wake.notify_one();
        self.changed.notify_waiters();
    }

    /// Ends it although its supervisor has not: nobody runs it any more.
    pub(crate) fn abandon(&self) {
        self.end(&Error::closed());
    }

    fn is_closing(&self) -> bool {
        self.lock().is_closing
    }

    /// What the writer says before it ends, once it is to end.
    fn goodbye(&self) -> Option<Code> {
        let state = self.lock();
        state.goodbye.or(state.is_closing.then_some(Code::Normal))
    }

    /// Takes the connection into use, unless it is at its end.
    pub(crate) fn join(&self) -> Result<()> {
        let mut state = self.lock();
        match &state.phase {
            Phase::Ended(error) => return Err(error.clone()),
            Phase::Up | Phase::Down => {}
        }
        if state.is_closing {
            return Err(Error::closed());
        }
        state.users += 1;
        Ok(())
    }

    /// The reverse of [`Connection::join`].
    pub(crate) fn leave(&self) {
        self.lock().users -= 1;
        self.shut_down_if_idle();
    }

    fn shut_down_if_idle(&self) {
        let is_idle = {
            let state = self.lock();
            let is_used = |slot: &Slot| !matches!(slot.channel, Channel::Retired(_));
            self.queue.is_some() && state.users == 0 && !state.channels.values().any(is_used)
        };
        if is_idle {
            self.shut_down();
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        let state = self.lock();
        state.is_closing || matches!(state.phase, Phase::Ended(_))
    }

    /// Every producer of the connection.
    pub(crate) fn producers(&self) -> Vec<Arc<Producer>> {
        let state = self.lock();
        let producers = state
            .channels
            .values()
            .filter_map(|slot| match &slot.channel {
                Channel::Producer(producer) => Some(Arc::clone(producer)),
                Channel::Consumer(_) | Channel::Transactions(_) | Channel::Retired(_) => None,
            });
        producers.collect()
    }

    /// Gives `channel` a number and opens it, now or once the connection is up.
    fn add(&self, channel: Channel) -> Result<u16> {
        let (number, session) = {
            let mut state = self.lock();
            if let Phase::Ended(error) = &state.phase {
                return Err(error.clone());
            }
            let most = state.limits.channels_max.clamp(1, CHANNELS_MAX);
            if state.channels.len() >= usize::from(most) {
                return Err(Error::new(
                    ErrorKind::Full,
                    format!("the connection has all of its {most} channels in use"),
                ));
            }
            let mut number = state.channel_next;
            while number > most || state.channels.contains_key(&number) {
                number = if number >= most { 1 } else { number + 1 };
            }
            state.channel_next = number + 1;
            let slot = Slot {
                channel: channel.clone(),
                is_open: false,
            };
            state.channels.insert(number, slot);
            (
                number,
                matches!(state.phase, Phase::Up).then_some(state.session),
            )
        };
        if let Some(session) = session {
            self.open(number, &channel, session);
        }
        Ok(number)
    }

    /// Writes the frame that opens a channel, unless its session is gone.
    fn open(&self, number: u16, channel: &Channel, session: u32) {
        let mut frame = Vec::with_capacity(512);
        let request = self.lock().next_request();
        match channel {
            Channel::Producer(producer) => producer.open_frame(number, request, &mut frame),
            Channel::Consumer(inbox) => inbox.open_frame(number, session, request, &mut frame),
            Channel::Transactions(book) => book.open_frame(number, session, request, &mut frame),
            Channel::Retired(_) => return,
        }
        let mut state = self.lock();
        if state.session == session {
            state.out.frames().extend_from_slice(&frame);
            drop(state);
            self.wake.notify_one();
        }
    }

    pub(crate) fn add_producer(&self, producer: &Arc<Producer>) -> Result<()> {
        self.add(Channel::Producer(Arc::clone(producer)))
            .map(|_| ())
    }

    pub(crate) fn add_consumer(&self, inbox: &Arc<Inbox>) -> Result<u16> {
        self.add(Channel::Consumer(Arc::clone(inbox)))
    }

    pub(crate) fn add_book(&self, book: &Arc<Book>) -> Result<u16> {
        self.add(Channel::Transactions(Arc::clone(book)))
    }

    /// Closes a channel for transactions, if it is still its own.
    pub(crate) fn close_book(&self, number: u16, book: &Arc<Book>) {
        let is_own = |channel: &Channel| matches!(channel, Channel::Transactions(there) if Arc::ptr_eq(there, book));
        self.retire(number, FrameKind::TransactionClose, is_own);
    }

    /// Waits until little waits to be written, or the session is over.
    pub(crate) async fn flushed(&self, session: u32) {
        loop {
            let mut changed = pin!(self.changed.notified());
            {
                let state = self.lock();
                let is_over = state.session != session || !matches!(state.phase, Phase::Up);
                if is_over || state.out.len() <= OUT_BYTES_MAX {
                    return;
                }
                changed.as_mut().enable();
            }
            changed.await;
        }
    }

    /// Closes the channel of a producer, if it is still its own.
    pub(crate) fn close_producer(&self, number: u16, producer: &Arc<Producer>) {
        let is_own = |channel: &Channel| matches!(channel, Channel::Producer(there) if Arc::ptr_eq(there, producer));
        self.retire(number, FrameKind::ProducerClose, is_own);
    }

    /// Closes the channel of a consumer, if it is still its own.
    pub(crate) fn close_consumer(&self, number: u16, inbox: &Arc<Inbox>) {
        let is_own = |channel: &Channel| matches!(channel, Channel::Consumer(there) if Arc::ptr_eq(there, inbox));
        self.retire(number, FrameKind::ConsumerClose, is_own);
    }

    fn retire(&self, number: u16, kind: FrameKind, is_own: impl Fn(&Channel) -> bool) {
        {
            let mut state = self.lock();
            let is_up = matches!(state.phase, Phase::Up);
            let is_open = match state.channels.get_mut(&number) {
                Some(slot) if is_own(&slot.channel) => {
                    slot.channel = Channel::Retired(kind);
                    slot.is_open
                }
                Some(_) | None => return,
            };
            if !is_up {
                state.channels.remove(&number);
            } else if is_open {
                state.write_close(number, kind);
            }
        }
        self.wake.notify_one();
        self.shut_down_if_idle();
    }

    /// The broker has opened a channel; it may have been closed here in the meantime.
    fn opened(&self, header: &FrameHeader) -> Result<Channel, Lost> {
        let mut state = self.lock();
        let Some(slot) = state.channels.get_mut(&header.channel) else {
            return Err(malformed(Code::ChannelInvalid, header));
        };
        let was_open = std::mem::replace(&mut slot.is_open, true);
        let channel = slot.channel.clone();
        if was_open {
            return Err(malformed(Code::UnexpectedFrame, header));
        }
        if let Channel::Retired(kind) = channel {
            state.write_close(header.channel, kind);
            drop(state);
            self.wake.notify_one();
        }
        Ok(channel)
    }

    /// Tells the writer that a producer has something to send.
    pub(crate) fn list(&self, producer: Arc<Producer>) {
        self.lock().listed.push_back(producer);
        self.wake.notify_one();
    }

    /// Gives the writer what waits, as much as it should write at once.
    fn gather(
        &self,
        session: u32,
        control: &mut Vec<u8>,
        segments: &mut Vec<Segment>,
        written: &mut Vec<Written>,
    ) {
        let (mut listed, was_full) = {
            let mut state = self.lock();
            if state.session != session || state.goodbye.is_some() {
                return;
            }
            let was_full = state.out.len() > OUT_BYTES_MAX;
            state.out.take(control);
            (std::mem::take(&mut state.listed), was_full)
        };
        if was_full {
            self.changed.notify_waiters();
        }
        let mut bytes = 0;
        let mut left = VecDeque::new();
        while let Some(producer) = listed.pop_front() {
            let start = segments.len();
            let (has_more, upto) = producer.cut(session, GATHER_BYTES_MAX_EACH, segments);
            bytes += segments[start..]
                .iter()
                .map(|s| s.body().len())
                .sum::<usize>();
            if let Some(upto) = upto {
                let producer = Arc::clone(&producer);
                written.push(Written { producer, upto });
            }
            if has_more {
                left.push_back(producer);
            }
            if bytes >= GATHER_BYTES_MAX {
                break;
            }
        }
        // Those who had no turn come first the next time.
        listed.append(&mut left);
        if !listed.is_empty() {
            let mut state = self.lock();
            if state.session == session {
                listed.append(&mut state.listed);
                state.listed = listed;
                drop(state);
                self.wake.notify_one();
            }
        }
    }

    /// Takes one frame of the reader. Returns a consumer that has more than it can hold.
    fn receive(
        &self,
        session: u32,
        header: &FrameHeader,
        frame: Bytes,
    ) -> Result<Option<Arc<Inbox>>, Lost> {
        let body = frame.slice(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.body_bytes as usize);
        let checked = match header.kind {
            FrameKind::Deliver => &body[..body.len().min(DeliverHead::BYTES)],
            _ => &body,
        };
        frame::check_body(header, checked).map_err(|code| malformed(code, header))?;
        match header.kind {
            FrameKind::Heartbeat => {}
            //= P-11
            FrameKind::Close => return Err(Lost::by_broker(&body)),
            FrameKind::Deliver | FrameKind::DeliverFragment => {
                if let Some(Channel::Consumer(inbox)) = self.channel(header)? {
                    let is_over = inbox
                        .delivered(session, header, body)
                        .map_err(|code| malformed(code, header))?;
                    return Ok(is_over.then_some(inbox));
                }
            }
            FrameKind::ProducerOpened => {
                if let Channel::Producer(producer) = self.opened(header)? {
                    let result = producer.opened(session, &body);
                    result.map_err(|code| malformed(code, header))?;
                }
            }
            FrameKind::ConsumerOpened => {
                if let Channel::Consumer(inbox) = self.opened(header)? {
                    inbox.opened();
                }
            }
            FrameKind::TransactionOpened => {
                if let Channel::Transactions(book) = self.opened(header)? {
                    let result = book.opened(&body);
                    result.map_err(|code| malformed(code, header))?;
                }
            }
            FrameKind::TransactionDone => {
                if let Some(Channel::Transactions(book)) = self.channel(header)? {
                    let result = book.over(header, Ok(()));
                    result.map_err(|code| malformed(code, header))?;
                }
            }
            //= P-52
            FrameKind::ConsumerActive => {
                if let Some(Channel::Consumer(inbox)) = self.channel(header)? {
                    inbox.active_is(session, header.flags & CONSUMER_IS_ACTIVE != 0);
                }
            }
            //= P-83
            FrameKind::ConsumerPosition => {
                if let Some(Channel::Consumer(inbox)) = self.channel(header)? {
                    let result = inbox.goes_on(session, &body);
                    result.map_err(|code| malformed(code, header))?;
                }
            }
            FrameKind::Confirm | FrameKind::Refused | FrameKind::ProducerCredit => {
                if let Some(Channel::Producer(producer)) = self.channel(header)? {
                    let result = match header.kind {
                        FrameKind::Confirm => producer.confirm(header, &body),
                        FrameKind::Refused => producer.refused(header, &body),
                        _ => producer.credit(&body),
                    };
                    result.map_err(|code| malformed(code, header))?;
                }
            }
            FrameKind::ProducerClosed
            | FrameKind::ConsumerClosed
            | FrameKind::TransactionClosed => {
                if header.channel == 0 {
                    return Err(malformed(Code::ChannelInvalid, header));
                }
                let error = Error::from_failure(&body);
                if error.code_number() == Some(Code::ShuttingDown) {
                    // The channel is to live on with the broker that comes next.
                    return Err(Lost::passing(error));
                }
                self.channel_closed(header.channel, &error);
            }
            FrameKind::Failed => {
                let error = Error::from_failure(&body);
                if let Some(book) = self.open_book(header.channel) {
                    // Its number is that of a transaction.
                    let result = book.over(header, Err(error));
                    return result
                        .map(|()| None)
                        .map_err(|code| malformed(code, header));
                }
                match self.take_request(header.sequence) {
                    Some(request) => drop(request.reply.send(Err(error))),
                    None if header.channel != 0 => self.channel_closed(header.channel, &error),
                    // Its caller has given up waiting.
                    None => {}
                }
            }
            FrameKind::Done | FrameKind::Settled | FrameKind::GetDone => {
                if let Some(request) = self.take_request(header.sequence) {
                    // A caller who has given up waiting does not want the answer.
                    let _ = request.reply.send(Ok(Reply {
                        is_changed: header.flags & DONE_CHANGED != 0,
                        count: header.count,
                        items: request.items,
                    }));
                }
            }
            FrameKind::QueueInfo
            | FrameKind::ExchangeInfo
            | FrameKind::BindingInfo
            | FrameKind::ConsumerInfo
            | FrameKind::QueueDescription
            | FrameKind::PolicyInfo
            | FrameKind::TenantInfo
            | FrameKind::GroupInfo
            | FrameKind::QueueBrowsed
            | FrameKind::QueueOutcome => self.item(header, body)?,
            FrameKind::Hello
            | FrameKind::Welcome
            | FrameKind::Attach
            | FrameKind::Attached
            | FrameKind::ProducerOpen
            | FrameKind::Publish
            | FrameKind::PublishFragment
            | FrameKind::ProducerClose
            | FrameKind::ConsumerOpen
            | FrameKind::Settle
            | FrameKind::ConsumerCredit
            | FrameKind::ConsumerClose
            | FrameKind::Get
            | FrameKind::ConsumerInspect
            | FrameKind::GroupList
            | FrameKind::GroupReset
            | FrameKind::GroupDelete
            | FrameKind::QueueBrowse
            | FrameKind::QueueCancel
            | FrameKind::QueueMove
            | FrameKind::QueueDeclare
            | FrameKind::QueueDelete
            | FrameKind::QueuePurge
            | FrameKind::QueueInspect
            | FrameKind::QueueList
            | FrameKind::QueueDescribe
            | FrameKind::PolicySet
            | FrameKind::PolicyDelete
            | FrameKind::PolicyList
            | FrameKind::ExchangeDeclare
            | FrameKind::ExchangeDelete
            | FrameKind::ExchangeList
            | FrameKind::Bind
            | FrameKind::Unbind
            | FrameKind::BindingList
            | FrameKind::TenantDeclare
            | FrameKind::TenantDelete
            | FrameKind::TransactionOpen
            | FrameKind::TransactionPublish
            | FrameKind::TransactionSettle
            | FrameKind::TransactionCommit
            | FrameKind::TransactionRollback
            | FrameKind::TransactionClose
            | FrameKind::TenantList => return Err(malformed(Code::UnexpectedFrame, header)),
        }
        Ok(None)
    }

    /// The channel a frame is for; `None` if this side has closed it.
    fn channel(&self, header: &FrameHeader) -> Result<Option<Channel>, Lost> {
        match self.lock().channels.get(&header.channel) {
            //= P-15
            Some(slot) if matches!(slot.channel, Channel::Retired(_)) => Ok(None),
            Some(slot) => Ok(Some(slot.channel.clone())),
            None => Err(malformed(Code::ChannelInvalid, header)),
        }
    }

    /// The transactions of a channel, if it is open for them.
    fn open_book(&self, number: u16) -> Option<Arc<Book>> {
        match self.lock().channels.get(&number) {
            Some(Slot {
                channel: Channel::Transactions(book),
                is_open: true,
            }) => Some(Arc::clone(book)).filter(|book| book.is_open()),
            _ => None,
        }
    }

    fn channel_closed(&self, number: u16, error: &Error) {
        let (slot, requests) = {
            let mut state = self.lock();
            let is_its = |_: &u64, request: &mut Request| request.channel == number;
            let requests: Vec<_> = state.requests.extract_if(is_its).collect();
            (state.channels.remove(&number), requests)
        };
        // The end of a channel is the answer to all that was asked on it (P-15).
        for (_, request) in requests {
            // A caller who has given up waiting does not want the answer.
            let _ = request.reply.send(Err(error.clone()));
        }
        match slot.map(|slot| slot.channel) {
            Some(Channel::Producer(producer)) => producer.ended(error),
            Some(Channel::Consumer(inbox)) => inbox.ended(error),
            Some(Channel::Transactions(book)) => book.ended(error),
            Some(Channel::Retired(_)) | None => {}
        }
    }

    fn take_request(&self, id: u64) -> Option<Request> {
        self.lock().requests.remove(&id)
    }

    /// One entry of a list, or all of an answer that is one entry.
    fn item(&self, header: &FrameHeader, body: Bytes) -> Result<(), Lost> {
        let mut state = self.lock();
        let Some(request) = state.requests.get_mut(&header.sequence) else {
            return Ok(());
        };
        if request.items.len() >= LIST_COUNT_MAX {
            return Err(malformed(Code::LimitReached, header));
        }
        // Entries are small; they must not keep a whole read buffer.
        request.items.push(Bytes::copy_from_slice(&body));
        if request.answer == Answer::Item
            && let Some(request) = state.requests.remove(&header.sequence)
        {
            drop(state);
            // A caller who has given up waiting does not want the answer.
            let _ = request.reply.send(Ok(Reply {
                is_changed: false,
                count: 1,
                items: request.items,
            }));
        }
        Ok(())
    }

    /// Waits until the connection is up.
    pub(crate) async fn up(&self) -> Result<()> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            match &self.lock().phase {
                Phase::Up => return Ok(()),
                Phase::Down => {}
                Phase::Ended(error) => return Err(error.clone()),
            }
            changed.await;
        }
    }

    /// Enters a request; `None` if the connection is not up, or not in `session` any more.
    fn enter(
        state: &mut State,
        session: Option<u32>,
        channel: u16,
        answer: Answer,
    ) -> Option<(u64, oneshot::Receiver<Result<Reply>>)> {
        let is_session = session.is_none_or(|session| session == state.session);
        if !is_session || !matches!(state.phase, Phase::Up) {
            return None;
        }
        let id = state.next_request();
        let (reply, answered) = oneshot::channel();
        let items = Vec::new();
        state.requests.insert(
            id,
            Request {
                channel,
                answer,
                reply,
                items,
            },
        );
        Some((id, answered))
    }

    /// Asks the broker for something, once the connection is up.
    pub(crate) async fn call(&self, kind: FrameKind, answer: Answer, body: &[u8]) -> Result<Reply> {
        let header = FrameHeader::bare(kind, 0, 0);
        self.call_with(header, None, self.options.request_timeout, answer, body)
            .await
    }

    /// Waits until the broker has answered a question, whatever it says: what was written before has
    /// reached it then.
    pub(crate) async fn answers(&self) -> Result<()> {
        let reply = self.call(FrameKind::TenantList, Answer::Done, &[]).await;
        match reply {
            Err(error) if error.code().is_none() => Err(error),
            Err(_) | Ok(_) => Ok(()),
        }
    }

    /// Closes the channel of a producer and waits until the broker has said what became of everything
    /// that came on it (P-39). The end of the channel is the answer (P-15).
    pub(crate) async fn end_producer(&self, session: u32, channel: u16) -> Result<()> {
        let header = FrameHeader::bare(FrameKind::ProducerClose, channel, 0);
        let timeout = self.options.request_timeout;
        let reply = self.call_with(header, Some(session), timeout, Answer::Done, &[]);
        match reply.await {
            Err(error) if error.code_number() != Some(Code::Normal) => Err(error),
            Err(_) | Ok(_) => Ok(()),
        }
    }

    /// Asks for something; in `session` only, if one is given.
    pub(crate) async fn call_with(
        &self,
        header: FrameHeader,
        session: Option<u32>,
        timeout: Duration,
        answer: Answer,
        body: &[u8],
    ) -> Result<Reply> {
        let asked = async {
            let answered = loop {
                self.up().await?;
                let mut state = self.lock();
                if let Some((id, answered)) =
                    Self::enter(&mut state, session, header.channel, answer)
                {
                    let header = FrameHeader {
                        sequence: id,
                        ..header
                    };
                    frame::write(state.out.frames(), header, body);
                    break answered;
                }
                if session.is_some_and(|session| session != state.session) {
                    return Err(Error::disconnected(
                        "the connection was lost in the meantime",
                    ));
                }
            };
            self.wake.notify_one();
            answered
                .await
                .unwrap_or_else(|_| Err(Error::disconnected("nobody answers")))
        };
        match tokio::time::timeout(timeout, asked).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("no answer within {timeout:?}; it may still be done"),
            )),
        }
    }

    /// Writes a frame without an answer; nothing if the session is over.
    pub(crate) fn tell(&self, session: u32, header: FrameHeader, body: &[u8]) {
        let mut state = self.lock();
        if state.session == session && matches!(state.phase, Phase::Up) {
            frame::write(state.out.frames(), header, body);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Settles deliveries of `session`; returns whether that session still is.
    pub(crate) async fn settle(
        &self,
        session: u32,
        channel: u16,
        outcome: u8,
        ranges: &mut (dyn Iterator<Item = SettleRange> + Send),
    ) -> bool {
        loop {
            let mut changed = pin!(self.changed.notified());
            {
                let mut state = self.lock();
                if state.session != session || !matches!(state.phase, Phase::Up) {
                    return false;
                }
                if state.out.len() <= OUT_BYTES_MAX {
                    for range in ranges {
                        state.out.settle(channel, outcome, range);
                    }
                    drop(state);
                    self.wake.notify_one();
                    return true;
                }
                changed.as_mut().enable();
            }
            changed.await;
        }
    }

    /// Settles deliveries of `session` and waits until that is durable; `false` if the session is
    /// over already.
    pub(crate) async fn settle_durably(
        &self,
        session: u32,
        channel: u16,
        outcome: u8,
        ranges: &[SettleRange],
    ) -> Result<bool> {
        let answered = {
            let mut state = self.lock();
            let Some((id, answered)) =
                Self::enter(&mut state, Some(session), channel, Answer::Done)
            else {
                return Ok(false);
            };
            state.out.settle_confirmed(channel, outcome, ranges, id);
            answered
        };
        self.wake.notify_one();
        answered
            .await
            .unwrap_or_else(|_| Err(Error::disconnected("nobody answers")))
            .map(|_| true)
    }
}

fn malformed(code: Code, header: &FrameHeader) -> Lost {
    Lost::malformed(
        code,
        &format!(
            "the broker sent a {:?} on channel {} that cannot be",
            header.kind, header.channel
        ),
    )
}

fn task_died() -> Lost {
    Lost::passing(Error::disconnected(
        "a task of the connection ended by itself",
    ))
}

fn fail(requests: HashMap<u64, Request>, error: &Error) {
    for request in requests.into_values() {
        // A caller who has given up waiting does not want the answer.
        let _ = request.reply.send(Err(error.as_kind(
            ErrorKind::Disconnected,
            "the connection was lost before the broker answered",
        )));
    }
}
