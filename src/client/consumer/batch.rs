//! Received messages, read in place in the frame that brought them.
//! Does not know how frames are received or settled.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringpost_wire::{DeliverHead, Envelope, SettleRange, envelope, padded};

use crate::{HeaderValue, Headers};

/// Names one delivery of a consumer for as long as its connection lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeliveryTag {
    pub(crate) session: u32,
    /// Number of the consumer within this process.
    pub(crate) consumer: u32,
    pub(crate) number: u64,
}

impl fmt::Display for DeliveryTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

/// Messages that arrived together, in the order of their queue. At least one.
///
/// A batch is a view of the bytes that were received; nothing is copied, and up to 512 KiB stay in
/// memory while it lives. Keep [`Delivery`]s, not batches, if few messages are kept for long.
///
/// ```no_run
/// # async fn example(mut consumer: ringpost_client::Consumer) -> ringpost_client::Result<()> {
/// if let Some(batch) = consumer.next_batch().await? {
///     for delivery in &batch {
///         println!("{}: {} bytes", delivery.routing_key(), delivery.payload().len());
///     }
///     consumer.ack(&batch).await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Batch {
    /// Messages, padded, every one checked.
    pub(crate) body: Bytes,
    pub(crate) head: DeliverHead,
    pub(crate) first: DeliveryTag,
    pub(crate) count: u32,
    pub(crate) lane: Option<u32>,
    pub(crate) is_redelivered: bool,
}

/// A message whose bytes are not those its producer has sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    /// Places in the batch that are damaged.
    pub places: std::ops::Range<u32>,
    /// Where in the body the damage starts and what comes after it starts.
    pub bytes: std::ops::Range<usize>,
}

impl Batch {
    /// Checks every message; the first that is damaged, if any.
    pub(crate) fn check(&self) -> Result<(), Damage> {
        let mut at = 0;
        for place in 0..self.count {
            let message = envelope::open(&self.body[at..]);
            let Ok(message) = message.and_then(|message| message.check_crc().map(|()| message))
            else {
                // With the envelope, its length can be trusted only if the rest makes sense.
                let next = message.map_or(self.body.len(), |m| at + padded(m.length()));
                let is_joined = next < self.body.len()
                    && envelope::open(&self.body[next..]).is_ok_and(|m| m.check_crc().is_ok());
                return Err(match is_joined {
                    true => Damage {
                        places: place..place + 1,
                        bytes: at..next,
                    },
                    false => Damage {
                        places: place..self.count,
                        bytes: at..self.body.len(),
                    },
                });
            };
            at = (at + padded(message.length())).min(self.body.len());
        }
        if at == self.body.len() {
            Ok(())
        } else {
            // More bytes than messages: no telling which is wrong.
            Err(Damage {
                places: 0..self.count,
                bytes: 0..self.body.len(),
            })
        }
    }

    /// The messages before a damaged one.
    pub(crate) fn before(&self, damage: &Damage) -> Option<Batch> {
        (damage.places.start > 0).then(|| Batch {
            body: self.body.slice(..damage.bytes.start),
            count: damage.places.start,
            ..self.clone()
        })
    }

    /// The messages after a damaged one.
    pub(crate) fn after(&self, damage: &Damage) -> Option<Batch> {
        let skipped = u64::from(damage.places.end);
        (damage.places.end < self.count).then(|| Batch {
            body: self.body.slice(damage.bytes.end..),
            head: DeliverHead {
                queue_sequence: self.head.queue_sequence + skipped,
                ..self.head
            },
            first: self.tag(damage.places.end),
            count: self.count - damage.places.end,
            lane: self.lane,
            is_redelivered: self.is_redelivered,
        })
    }

    pub(crate) fn tag(&self, place: u32) -> DeliveryTag {
        DeliveryTag {
            number: self.first.number + u64::from(place),
            ..self.first
        }
    }

    /// Messages in the batch.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// The lane that it comes from, of a stream of several.
    #[must_use]
    pub fn lane(&self) -> Option<u32> {
        self.lane
    }

    /// Whether every message of it may have been delivered before.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.is_redelivered
    }

    /// The tags of its deliveries.
    #[must_use]
    pub fn tags(&self) -> RangeInclusive<DeliveryTag> {
        self.first..=self.tag(self.count - 1)
    }

    /// The deliveries, in order.
    #[must_use]
    pub fn iter(&self) -> Deliveries<'_> {
        Deliveries {
            batch: self,
            place: 0,
            rest: &self.body,
        }
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = DeliveryRef<'a>;
    type IntoIter = Deliveries<'a>;

    fn into_iter(self) -> Deliveries<'a> {
        self.iter()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("first", &self.first.number)
            .field("count", &self.count)
            .field("bytes", &self.body.len())
            .field("is_redelivered", &self.is_redelivered)
            .finish_non_exhaustive()
    }
}

/// Iterates over a [`Batch`].
#[derive(Clone, Debug)]
pub struct Deliveries<'a> {
    batch: &'a Batch,
    place: u32,
    rest: &'a [u8],
}

impl<'a> Iterator for Deliveries<'a> {
    type Item = DeliveryRef<'a>;

    fn next(&mut self) -> Option<DeliveryRef<'a>> {
        if self.place == self.batch.count {
            return None;
        }
        // `check` has opened every one of them.
        let envelope = envelope::open(self.rest).ok()?;
        let taken = padded(envelope.length()).min(self.rest.len());
        self.rest = &self.rest[taken..];
        let delivery = DeliveryRef {
            batch: self.batch,
            envelope,
            place: self.place,
        };
        self.place += 1;
        Some(delivery)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.batch.count - self.place) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Deliveries<'_> {}

/// One received message, borrowed from its [`Batch`].
#[derive(Clone, Copy)]
pub struct DeliveryRef<'a> {
    batch: &'a Batch,
    envelope: Envelope<'a>,
    place: u32,
}

impl<'a> DeliveryRef<'a> {
    /// What to ack it by.
    #[must_use]
    pub fn tag(&self) -> DeliveryTag {
        self.batch.tag(self.place)
    }

    /// The lane that it comes from, of a stream of several.
    #[must_use]
    pub fn lane(&self) -> Option<u32> {
        self.batch.lane
    }

    /// Its place in its queue, from 1 without gaps; with the queue it names the message for ever. Of a
    /// stream of several lanes: its place in its [lane](Self::lane).
    #[must_use]
    pub fn queue_sequence(&self) -> u64 {
        self.batch.head.queue_sequence + u64::from(self.place)
    }

    /// Earlier deliveries of it: exact, or one too high after a crash of the broker.
    #[must_use]
    pub fn delivery_count(&self) -> u32 {
        self.batch.head.delivery_count
    }

    /// Whether it may have been delivered before.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.batch.is_redelivered
    }

    /// The exchange it was published to; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn exchange(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.envelope.exchange())
    }

    /// Its routing key; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn routing_key(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.envelope.routing_key())
    }

    /// Its routing key, byte for byte.
    #[must_use]
    pub fn routing_key_bytes(&self) -> &'a [u8] {
        self.envelope.routing_key()
    }

    /// Its payload.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.envelope.payload()
    }

    /// Its AMQP 0-9-1 property bytes, or nothing.
    #[must_use]
    pub fn properties(&self) -> &'a [u8] {
        self.envelope.properties()
    }

    /// Its encoded headers, or nothing.
    #[must_use]
    pub fn headers_encoded(&self) -> &'a [u8] {
        self.envelope.headers()
    }

    /// The value of one header, read in place.
    #[must_use]
    pub fn header(&self, key: &str) -> Option<HeaderValue<'a>> {
        crate::headers::find(self.envelope.headers(), key)
    }

    /// A copy of its headers; empty if they are no table.
    #[must_use]
    pub fn headers(&self) -> Headers {
        Headers::from_encoded(Bytes::copy_from_slice(self.envelope.headers())).unwrap_or_default()
    }

    /// Its priority, 0 is the lowest.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.envelope.priority()
    }

    /// When its producer said it came about.
    #[must_use]
    pub fn timestamp(&self) -> Option<SystemTime> {
        match self.envelope.timestamp_us() {
            0 => None,
            us => UNIX_EPOCH.checked_add(Duration::from_micros(us)),
        }
    }

    /// The time to live it was published with.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        match self.envelope.ttl_ms() {
            0 => None,
            ms => Some(Duration::from_millis(u64::from(ms))),
        }
    }

    /// A copy that keeps nothing but the message.
    #[must_use]
    pub fn to_owned(&self) -> Delivery {
        let start = self.envelope.exchange().as_ptr() as usize - self.batch.body.as_ptr() as usize;
        // The exchange is the first part after the envelope.
        let start = start - ringpost_wire::ENVELOPE_BYTES;
        let bytes = &self.batch.body[start..start + self.envelope.length()];
        Delivery {
            batch: Batch {
                body: Bytes::copy_from_slice(bytes),
                head: DeliverHead {
                    queue_sequence: self.queue_sequence(),
                    ..self.batch.head
                },
                first: self.tag(),
                count: 1,
                lane: self.batch.lane,
                is_redelivered: self.batch.is_redelivered,
            },
        }
    }
}

impl fmt::Debug for DeliveryRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("tag", &self.tag().number)
            .field("queue_sequence", &self.queue_sequence())
            .field("routing_key", &self.routing_key())
            .field("payload_bytes", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// One received message, copied out of its batch with [`DeliveryRef::to_owned`].
#[derive(Clone)]
pub struct Delivery {
    /// A batch of one.
    batch: Batch,
}

impl Delivery {
    /// The message.
    #[must_use]
    pub fn as_ref(&self) -> DeliveryRef<'_> {
        // It was opened before it was copied.
        self.batch
            .iter()
            .next()
            .expect("a delivery is a batch of one checked message")
    }

    /// What to ack it by.
    #[must_use]
    pub fn tag(&self) -> DeliveryTag {
        self.batch.first
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

/// A run of deliveries of one consumer in one session.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub(crate) first: DeliveryTag,
    pub(crate) last: DeliveryTag,
}

impl Span {
    pub(crate) fn range(&self) -> SettleRange {
        SettleRange {
            first: self.first.number,
            last: self.last.number,
        }
    }
}

mod sealed {
    /// What deliveries are settled by; the trait cannot be implemented elsewhere.
    pub trait Spans {
        /// Calls `each` with every run of deliveries.
        fn spans(&self) -> impl Iterator<Item = super::Span> + Send;
    }
}

pub(crate) use sealed::Spans;

/// Deliveries that can be settled: a `&`[`Batch`], a [`DeliveryRef`] or `&`[`Delivery`], a
/// [`DeliveryTag`], a range of tags, or a slice of tags or ranges. Sealed.
pub trait Settleable: Spans {}

impl<T: Spans + ?Sized> Settleable for T {}

fn one(tag: DeliveryTag) -> std::iter::Once<Span> {
    std::iter::once(Span {
        first: tag,
        last: tag,
    })
}

fn run(range: &RangeInclusive<DeliveryTag>) -> Span {
    Span {
        first: *range.start(),
        last: *range.end(),
    }
}

impl Spans for &Batch {
    fn spans(&self) -> impl Iterator<Item = Span> + Send {
        std::iter::once(run(&self.tags()))
    }
}

impl Spans for DeliveryRef<'_> {
    fn spans(&self) -> impl Iterator<Item = Span> + Send {
        one(self.tag())
    }
}

impl Spans for &Delivery {
    fn spans(&self) -> impl Iterator<Item = Span> + Send {
        one(self.tag())
    }
}

impl Spans for DeliveryTag {
    fn spans(&self) -> impl Iterator<Item = Span> + Send {
        one(*self)
    }
}

impl Spans for RangeInclusive<DeliveryTag> {
    fn spans(&self) -> impl Iterator<Item = Span> + Send {
        std::iter::once(run(self))
    }
}

impl Spans for &[DeliveryTag] {
    fn spans(&self) -> impl Iterator<Item = Span> + Send {
        self.iter().flat_map(|tag| one(*tag))
    }
}

impl Spans for &[RangeInclusive<DeliveryTag>] {
    fn spans(&self) -> impl Iterator<Item = Span> + Send {
        self.iter().map(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_wire::MessageParts;

    fn batch(payloads: &[&[u8]]) -> Batch {
        let mut body = Vec::new();
        for payload in payloads {
            let parts = MessageParts {
                routing_key: b"key",
                payload,
                ..MessageParts::default()
            };
            parts.write(&mut body).expect("within limits");
        }
        Batch {
            body: body.into(),
            head: DeliverHead {
                queue_sequence: 100,
                delivery_count: 2,
            },
            first: DeliveryTag {
                session: 1,
                consumer: 3,
                number: 10,
            },
            count: u32::try_from(payloads.len()).expect("few"),
            lane: None,
            is_redelivered: true,
        }
    }

    fn payloads(batch: &Batch) -> Vec<&[u8]> {
        batch.iter().map(|delivery| delivery.payload()).collect()
    }

    #[test]
    fn a_batch_is_read_in_place() {
        let batch = batch(&[b"one", b"", b"three"]);
        assert_eq!(batch.check(), Ok(()));
        assert_eq!(payloads(&batch), [&b"one"[..], b"", b"three"]);
        let last = batch.iter().last().expect("three");
        assert_eq!((last.tag().number, last.queue_sequence()), (12, 102));
        let copy = last.to_owned();
        assert_eq!(copy.as_ref().payload(), b"three");
        assert_eq!(copy.as_ref().queue_sequence(), 102);
        assert_eq!(copy.tag(), last.tag());
        assert_eq!(copy.as_ref().routing_key(), "key");
        assert!(!format!("{batch:?}{last:?}{copy:?}").contains("three"));
    }

    fn damaged(byte: usize) -> (Batch, Damage) {
        let mut batch = batch(&[b"one", b"two", b"three"]);
        let mut body = batch.body.to_vec();
        body[byte] ^= 1;
        batch.body = body.into();
        let damage = batch.check().expect_err("damaged");
        (batch, damage)
    }

    #[test]
    fn damage_is_cut_out() {
        // Each message takes 80 bytes: the payload of the second one is damaged.
        let (batch, damage) = damaged(80 + 68);
        assert_eq!(damage.places, 1..2);
        assert_eq!(
            batch.before(&damage).as_ref().map(payloads),
            Some(vec![&b"one"[..]])
        );
        let after = batch.after(&damage).expect("one is left");
        assert_eq!(payloads(&after), [b"three"]);
        assert_eq!(after.check(), Ok(()));
        let third = after.iter().next().expect("one");
        assert_eq!((third.tag().number, third.queue_sequence()), (12, 102));
    }

    #[test]
    fn after_a_damaged_length_nothing_is_believed() {
        let (batch, damage) = damaged(80 + 5);
        assert_eq!(damage.places, 1..3);
        assert_eq!(batch.before(&damage).map(|batch| batch.count), Some(1));
        assert!(batch.after(&damage).is_none());
    }

    #[test]
    fn a_wrong_count_is_damage() {
        for count in [1, 3] {
            let mut batch = batch(&[b"one", b"two"]);
            batch.count = count;
            assert!(batch.check().is_err());
        }
    }
}
