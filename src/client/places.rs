//! Messages of a queue where they are: to be seen without being taken, cancelled or moved. Does not
//! consume.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringpost_wire::control::{
    Body, MOVE_WITH_KEY, QueueBrowse, QueueBrowsed, QueueCancel, QueueMove, QueueOutcome,
};
use ringpost_wire::envelope::{self, Envelope};
use ringpost_wire::{
    BROWSE_MESSAGE_BYTES_MAX, BROWSE_MESSAGES_MAX, BrowsedHead, BrowsedMessages, BrowsedState,
    Code, FILTER_BYTES_MAX, FrameKind, KEY_BYTES_MAX, NAME_BYTES_MAX, NAMED_MESSAGES_MAX,
};

use crate::admin::{check_length, encoded, unreadable};
use crate::connection::Answer;
use crate::{Client, Error, ErrorKind, Headers, Result};

/// How a message stands in its queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum MessageState {
    /// It goes to the next consumer with room, when it is its turn.
    Ready,
    /// It waits for its time.
    Delayed,
    /// A consumer holds it.
    Unacked,
    /// It is on its way to the dead-letter exchange, or is being moved.
    Dead,
    /// It is ready and waits for its key, in a queue with message groups.
    Grouped,
}

impl MessageState {
    const fn wire(self) -> BrowsedState {
        match self {
            Self::Ready => BrowsedState::Ready,
            Self::Delayed => BrowsedState::Delayed,
            Self::Unacked => BrowsedState::Unacked,
            Self::Dead => BrowsedState::Dead,
            Self::Grouped => BrowsedState::Grouped,
        }
    }

    const fn of(state: BrowsedState) -> Self {
        match state {
            BrowsedState::Ready => Self::Ready,
            BrowsedState::Delayed => Self::Delayed,
            BrowsedState::Unacked => Self::Unacked,
            BrowsedState::Dead => Self::Dead,
            BrowsedState::Grouped => Self::Grouped,
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Delayed => "delayed",
            Self::Unacked => "unacked",
            Self::Dead => "dead",
            Self::Grouped => "grouped",
        }
    }
}

/// What to see of a queue: see [`Client::browse`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Browse {
    from: u64,
    messages_max: u32,
    message_bytes_max: Option<u32>,
    states: u32,
    filter: String,
}

impl Browse {
    /// From the head of the queue on, all states, messages up to 64 KiB.
    pub fn from_head() -> Self {
        Self::default()
    }

    /// From that place in the queue on.
    pub fn from(place: u64) -> Self {
        Self {
            from: place,
            ..Self::default()
        }
    }

    /// At most so many messages a page, up to 256.
    pub fn messages_max(mut self, messages: u32) -> Self {
        self.messages_max = messages.clamp(1, BROWSE_MESSAGES_MAX);
        self
    }

    /// At most so many bytes of each message, up to 64 KiB; what comes before the payload is there in any
    /// case.
    pub fn message_bytes_max(mut self, bytes: u32) -> Self {
        self.message_bytes_max = Some(bytes.clamp(1, BROWSE_MESSAGE_BYTES_MAX));
        self
    }

    /// Only messages that stand so; more than one if it is said more than once.
    pub fn state(mut self, state: MessageState) -> Self {
        self.states |= state.wire() as u32;
        self
    }

    /// Only messages of which this holds: an expression as of a filter binding.
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = filter.into();
        self
    }
}

/// Some messages of a queue, in order of their places.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page {
    /// The messages; there may be none though there is more.
    pub messages: Vec<Browsed>,
    /// Where to go on; `None`: there is nothing more.
    pub next: Option<u64>,
    /// The newest place that the queue ever had; 0 if it never had a message.
    pub newest: u64,
}

/// A message that is seen where it is.
#[derive(Clone, Debug)]
pub struct Browsed {
    head: BrowsedHead,
    bytes: Bytes,
}

impl Browsed {
    fn envelope(&self) -> Envelope<'_> {
        envelope::open(&self.bytes).expect("it was read before")
    }

    /// Its place in the queue, which names it there for as long as it is there.
    #[must_use]
    pub const fn place(&self) -> u64 {
        self.head.place
    }

    /// How it stands.
    #[must_use]
    pub const fn state(&self) -> MessageState {
        MessageState::of(self.head.state)
    }

    /// How often it was delivered.
    #[must_use]
    pub const fn delivery_count(&self) -> u32 {
        self.head.deliveries
    }

    /// Of a delayed one: until it is due.
    #[must_use]
    pub fn due_in(&self) -> Option<Duration> {
        let is_delayed = self.head.state == BrowsedState::Delayed;
        is_delayed.then(|| Duration::from_millis(self.head.due_ms))
    }

    /// Of one that a consumer holds: the number of its connection, in the broker's logs, its core, and
    /// the consumer's channel.
    #[must_use]
    pub fn holder(&self) -> Option<(u64, u16, u16)> {
        let is_held = self.head.state == BrowsedState::Unacked;
        is_held.then_some((self.head.connection, self.head.core, self.head.channel))
    }

    /// Bytes of the whole message, envelope included.
    #[must_use]
    pub const fn message_bytes(&self) -> u32 {
        self.head.message_bytes
    }

    /// Whether there is less of the payload here than the message has.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.head.shown_bytes < self.head.message_bytes
    }

    /// The exchange that it was published to.
    #[must_use]
    pub fn exchange(&self) -> String {
        String::from_utf8_lossy(self.envelope().exchange()).into_owned()
    }

    /// Its routing key.
    #[must_use]
    pub fn routing_key(&self) -> Vec<u8> {
        self.envelope().routing_key().to_vec()
    }

    /// Its headers; none if they are not well formed.
    #[must_use]
    pub fn headers(&self) -> Headers {
        let headers = Bytes::copy_from_slice(self.envelope().headers());
        Headers::from_encoded(headers).unwrap_or_default()
    }

    /// Its properties: AMQP 0-9-1 property bytes.
    #[must_use]
    pub fn properties(&self) -> Vec<u8> {
        self.envelope().properties().to_vec()
    }

    /// Its payload, as far as it is here.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        self.envelope().payload().to_vec()
    }

    /// Its priority.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.envelope().priority()
    }

    /// When it came about, as its producer says.
    #[must_use]
    pub fn timestamp(&self) -> Option<SystemTime> {
        let us = self.envelope().timestamp_us();
        (us > 0).then(|| UNIX_EPOCH + Duration::from_micros(us))
    }

    /// Its time to live.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        let ms = self.envelope().ttl_ms();
        (ms > 0).then(|| Duration::from_millis(u64::from(ms)))
    }
}

/// Where messages are moved to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MoveTo {
    exchange: String,
    routing_key: Option<Vec<u8>>,
}

impl MoveTo {
    /// To a queue.
    #[must_use]
    pub fn queue(name: &str) -> Self {
        Self {
            exchange: String::new(),
            routing_key: Some(name.as_bytes().to_vec()),
        }
    }

    /// To an exchange, each message with its own routing key.
    #[must_use]
    pub fn exchange(name: &str) -> Self {
        Self {
            exchange: name.to_owned(),
            routing_key: None,
        }
    }

    /// With this routing key instead of their own.
    #[must_use]
    pub fn routing_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.routing_key = Some(key.into());
        self
    }
}

/// What became of messages that were named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PlaceOutcome {
    /// Messages that are cancelled or moved.
    pub done: u32,
    /// Messages that are not there any more, or not as they must be: too late.
    pub late: u32,
    /// Messages that a consumer holds or that wait for the disk: they may be named again.
    pub busy: u32,
    /// Messages that no queue took; they are where they were.
    pub refused: u32,
}

/// The places as they travel: ascending, once each.
fn places(places: &[u64]) -> Result<Vec<u8>> {
    if places.is_empty() || places.len() > NAMED_MESSAGES_MAX {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("1 to {NAMED_MESSAGES_MAX} messages are named at a time"),
        ));
    }
    let mut sorted = places.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    Ok(sorted
        .iter()
        .flat_map(|place| place.to_le_bytes())
        .collect())
}

/// Messages where they are.
impl Client {
    /// Shows messages of a queue without taking them: nothing of the queue changes, and no delivery count.
    /// Go on at [`Page::next`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; [`ErrorKind::Invalid`] if the filter is wrong;
    /// else as the broker or the network says.
    pub async fn browse(&self, queue: &str, browse: &Browse) -> Result<Page> {
        check_length("the name", queue, NAME_BYTES_MAX)?;
        check_length("the filter", &browse.filter, FILTER_BYTES_MAX)?;
        let body = encoded(&QueueBrowse {
            from: browse.from,
            messages_max: browse.messages_max,
            message_bytes_max: browse.message_bytes_max.unwrap_or(0),
            states: browse.states,
            reserved: 0,
            queue: queue.as_bytes(),
            filter: browse.filter.as_bytes(),
        })?;
        let reply = self
            .ask(FrameKind::QueueBrowse, Answer::Item, &body)
            .await?;
        let item = reply.items.first();
        let item = item.ok_or_else(|| unreadable(Code::BodyMalformed))?;
        let browsed = QueueBrowsed::decode(item).map_err(unreadable)?;
        let messages = BrowsedMessages::new(browsed.messages).map(|message| {
            let message = message.map_err(unreadable)?;
            Ok(Browsed {
                head: message.head,
                bytes: item.slice_ref(message.bytes),
            })
        });
        Ok(Page {
            messages: messages.collect::<Result<_>>()?,
            next: (browsed.next > 0).then_some(browsed.next),
            newest: browsed.newest,
        })
    }

    /// Takes delayed messages back, by their places ([`Browsed::place`]), at most 1,024 at a time. What is
    /// done is durable, and is never delivered; what is [late](PlaceOutcome::late) is not delayed any more.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; else as the broker or the network says.
    pub async fn cancel_messages(&self, queue: &str, messages: &[u64]) -> Result<PlaceOutcome> {
        check_length("the name", queue, NAME_BYTES_MAX)?;
        let body = encoded(&QueueCancel {
            queue: queue.as_bytes(),
            places: &places(messages)?,
        })?;
        self.ask_outcome(FrameKind::QueueCancel, &body).await
    }

    /// Moves ready messages elsewhere, by their places ([`Browsed::place`]), at most 1,024 at a time: at
    /// least once each, and none is lost.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such queue; [`ErrorKind::Invalid`] if they would go to where
    /// they are; else as the broker or the network says.
    pub async fn move_messages(
        &self,
        queue: &str,
        to: &MoveTo,
        messages: &[u64],
    ) -> Result<PlaceOutcome> {
        check_length("the name", queue, NAME_BYTES_MAX)?;
        check_length("the name", &to.exchange, NAME_BYTES_MAX)?;
        let routing_key = to.routing_key.as_deref().unwrap_or_default();
        if routing_key.len() > KEY_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the routing key has more than {KEY_BYTES_MAX} bytes"),
            ));
        }
        let body = encoded(&QueueMove {
            flags: match to.routing_key {
                Some(_) => MOVE_WITH_KEY,
                None => 0,
            },
            queue: queue.as_bytes(),
            exchange: to.exchange.as_bytes(),
            routing_key,
            places: &places(messages)?,
        })?;
        self.ask_outcome(FrameKind::QueueMove, &body).await
    }

    async fn ask_outcome(&self, kind: FrameKind, body: &[u8]) -> Result<PlaceOutcome> {
        let reply = self.ask(kind, Answer::Item, body).await?;
        let item = reply.items.first();
        let item = item.ok_or_else(|| unreadable(Code::BodyMalformed))?;
        let outcome = QueueOutcome::decode(item).map_err(unreadable)?;
        Ok(PlaceOutcome {
            done: outcome.done,
            late: outcome.late,
            busy: outcome.busy,
            refused: outcome.refused,
        })
    }
}
