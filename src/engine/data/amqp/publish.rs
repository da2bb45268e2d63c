//! From contents to native `Publish` frames, and from confirms to acks. Does not know where messages go,
//! but for mandatory ones, which go back if nothing takes them.
//!
//! A message is built where it is stepped: at the end of the native frame that is being put together,
//! its head when the content's header comes, its body frame by frame. Only what is cut by the end of what
//! was received, or by another channel, is moved apart until it is whole.

use ringpost_amqp::content::Unfit;
use ringpost_amqp::{ContentHeader, FrameType, Method, ReplyCode};
use ringpost_wire::control::{Body, Failure, Level, PRODUCER_DOWNGRADE, ProducerOpen};
use ringpost_wire::limits::PRODUCER_BROKER_MIN;
use ringpost_wire::properties::{Property, PropertyValue};
use ringpost_wire::{
    Code, FRAGMENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FragmentHead, FrameHeader,
    FrameKind, MessageParts, checksum, envelope, padded,
};

use super::channel::{Expect, PARTIAL_BYTES_KEPT, Place, REPLY_TO};
use super::deliver::{Payload, write_content};
use super::fault::Fault;
use super::requests::Waits;
use super::session::{Native, Session, Step, Talk, mix};
use crate::data::route::{Facts, lot_of};

/// Sequences of a channel begin below this, by chance: lots are drawn from them.
const FIRST_SEQUENCE_MAX: u64 = 1 << 48;

/// A native `Publish` frame that is being put together.
#[derive(Debug)]
pub(super) struct Batch {
    /// The channel of the client.
    channel: u16,
    /// Where its header will stand among the native frames.
    start: usize,
    /// Whole messages in it.
    count: u32,
}

impl Session {
    /// `basic.publish`: notes where its content goes.
    pub(super) fn publish(&mut self, number: u16, method: &Method<'_>) -> Result<Step, Fault> {
        let Method::BasicPublish {
            exchange,
            routing_key,
            mandatory,
            immediate,
            ..
        } = *method
        else {
            unreachable!("it was asked for")
        };
        if immediate {
            let why = "immediate=true";
            return Err(Fault::new(ReplyCode::NotImplemented, why, (60, 40)));
        }
        let channel = self.channels.get_mut(&number).expect("it is open");
        if channel.publisher.native == 0 {
            self.open_publisher(number)?;
            return Ok(Step::Again);
        }
        channel.address.clear();
        channel.address.extend_from_slice(exchange);
        channel.address.extend_from_slice(routing_key);
        channel.exchange_bytes = exchange.len();
        channel.is_mandatory = mandatory;
        channel.expect = Expect::Header;
        Ok(Step::Done)
    }

    fn open_publisher(&mut self, number: u16) -> Result<(), Fault> {
        let native = self.add_native(Native::Publisher { channel: number });
        let native = native.ok_or_else(|| too_many((60, 40)))?;
        let channel = self.channels.get_mut(&number).expect("it is open");
        channel.publisher.native = native;
        let open = ProducerOpen {
            producer: PRODUCER_BROKER_MIN,
            epoch: 0,
            level: Level::Durable as u8,
            flags: PRODUCER_DOWNGRADE,
            reserved: 0,
        };
        let sequence = self.next_sequence();
        self.awaited = sequence;
        let header = FrameHeader::bare(FrameKind::ProducerOpen, native, sequence);
        open.write(self.native(), header);
        self.waits = Some(Waits::Publisher { channel: number });
        Ok(())
    }

    /// The core has opened the producer of a channel.
    pub(super) fn publisher_opened(
        &mut self,
        number: u16,
        next: u64,
        granted: (u64, u64),
        talk: &Talk<'_>,
    ) {
        let chance = mix(mix(self.conn.0 ^ talk.flow.wall_us) ^ u64::from(number));
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let publisher = &mut channel.publisher;
        publisher.next = next.max(1 + chance % FIRST_SEQUENCE_MAX);
        publisher.used = (0, 0);
        publisher.granted = granted;
        let before = publisher.next - 1;
        if let Some(from) = &mut channel.confirms_from {
            *from = before;
        }
        channel.told = before;
        channel.refused.clear();
    }

    /// A header or body frame.
    pub(super) fn content_frame(
        &mut self,
        number: u16,
        kind: FrameType,
        payload: &[u8],
        talk: &mut Talk<'_>,
    ) -> Result<Step, Fault> {
        let of = (60, 40);
        let Some(channel) = self.channels.get_mut(&number) else {
            let why = "a content frame on a channel that is not open";
            return Err(Fault::new(ReplyCode::ChannelError, why, (0, 0)));
        };
        if channel.is_closing {
            return Ok(Step::Done);
        }
        match (channel.expect, kind) {
            (Expect::Header, FrameType::Header) => self.content_header(number, payload, talk),
            (Expect::Body, FrameType::Body) => {
                let left = channel.body_left.checked_sub(payload.len() as u64);
                let Some(left) = left else {
                    let why = "a body is longer than its header says";
                    return Err(Fault::new(ReplyCode::FrameError, why, of));
                };
                channel.body_left = left;
                match channel.place {
                    Place::Batch(_) => self.native.extend_from_slice(payload),
                    Place::Apart => channel.partial.extend_from_slice(payload),
                }
                if left == 0 {
                    return self.content_is_whole(number, talk);
                }
                Ok(Step::Done)
            }
            (expect, _) => {
                let why = match expect {
                    Expect::Method => "a content frame where a method is expected",
                    Expect::Header => "a body where the header of a content is expected",
                    Expect::Body => "a header where the body of a content is expected",
                };
                Err(Fault::new(ReplyCode::UnexpectedFrame, why, of))
            }
        }
    }

    fn content_header(
        &mut self,
        number: u16,
        payload: &[u8],
        talk: &mut Talk<'_>,
    ) -> Result<Step, Fault> {
        let of = (60, 40);
        let header = ContentHeader::decode(payload)?;
        // The name that stands for the queue of answers becomes that queue's.
        let asks = header.get(Property::ReplyTo) == Some(PropertyValue::Text(REPLY_TO));
        let replies = match asks {
            true => self
                .channels
                .get(&number)
                .map(|channel| channel.replies.clone()),
            false => None,
        };
        if replies.as_ref().is_some_and(Vec::is_empty) {
            let why = "fast reply consumer does not exist";
            return Err(Fault::new(ReplyCode::PreconditionFailed, why, of));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let parts = header
            .parts_with(replies.as_deref(), &mut scratch)
            .map_err(|unfit| {
                let why = match unfit {
                    Unfit::Headers => "headers are no field table, or over the limits of one",
                    Unfit::Expiration => "invalid expiration",
                };
                Fault::new(ReplyCode::PreconditionFailed, why, of)
            });
        let verdict = parts.and_then(|parts| self.begin_content(number, &header, parts, talk));
        self.scratch = scratch;
        if verdict? == Step::Again {
            return Ok(Step::Again);
        }
        if header.body_bytes == 0 {
            return self.content_is_whole(number, talk);
        }
        Ok(Step::Done)
    }

    fn begin_content(
        &mut self,
        number: u16,
        header: &ContentHeader<'_>,
        parts: MessageParts<'_>,
        talk: &mut Talk<'_>,
    ) -> Result<Step, Fault> {
        let of = (60, 40);
        let agreed = talk.flow.sessions.get(self.conn).and_then(|s| s.agreed());
        let most = agreed.map_or(0, |agreed| agreed.message_bytes_max as usize);
        let channel = self.channels.get_mut(&number).expect("it is open");
        let before = parts.length() + channel.address.len();
        let total =
            usize::try_from(header.body_bytes).map_or(usize::MAX, |b| b.saturating_add(before));
        if total > most {
            let why = format!(
                "message size {} is larger than configured max size {most}",
                header.body_bytes
            );
            return Err(Fault::new(ReplyCode::PreconditionFailed, &why, of));
        }
        let (exchange, _) = channel.address();
        if !exchange.is_empty() && !talk.flow.router.has_exchange(self.tenant, exchange) {
            let exchange = String::from_utf8_lossy(exchange);
            let host = String::from_utf8_lossy(&self.host);
            let why = format!("no exchange '{exchange}' in vhost '{host}'");
            return Err(Fault::new(ReplyCode::NotFound, &why, of));
        }
        let is_large = total > FRAGMENT_BYTES_MAX;
        // The pieces of a large one have credit of their own, when it is whole.
        if !is_large && !channel.publisher.charge(1, padded(total) as u64) {
            // What was gathered may have to be stepped before there is more.
            self.waits_credit = number;
            self.waits_since.get_or_insert(talk.flow.now);
            return Ok(Step::Again);
        }
        self.waits_since = None;
        channel.message_bytes = total;
        channel.body_left = header.body_bytes;
        channel.expect = Expect::Body;
        let body_bytes = header.body_bytes as usize;
        if is_large {
            self.reserve(number, total, talk)?;
        } else {
            self.open_batch(number, padded(total));
        }
        let channel = self.channels.get_mut(&number).expect("it is open");
        let (exchange, routing_key) = channel.address.split_at(channel.exchange_bytes);
        let parts = MessageParts {
            exchange,
            routing_key,
            ..parts
        };
        let begun = if is_large {
            channel.place = Place::Apart;
            channel.partial.clear();
            parts.begin(body_bytes, &mut channel.partial)
        } else {
            channel.place = Place::Batch(self.native.len());
            parts.begin(body_bytes, &mut self.native)
        };
        begun.map_err(|_| {
            channel.place = Place::Apart;
            let why = "properties or headers are larger than a message may have";
            Fault::new(ReplyCode::PreconditionFailed, why, of)
        })?;
        Ok(Step::Done)
    }

    /// Counts a content that lies apart until it is whole.
    fn reserve(&mut self, number: u16, bytes: usize, talk: &mut Talk<'_>) -> Result<(), Fault> {
        let bytes = bytes as u64;
        let most = talk.flow.config.limits.assembly_bytes_max;
        // One always may.
        if *talk.gathering > 0 && *talk.gathering + bytes > most {
            let why = "as many large messages are coming in as there is memory for; try again";
            return Err(Fault::new(ReplyCode::ContentTooLarge, why, (60, 40)));
        }
        *talk.gathering += bytes;
        let channel = self.channels.get_mut(&number).expect("it is open");
        channel.gathered = bytes;
        Ok(())
    }

    /// Begins a native frame of publishes of a channel with room for so many bytes more, if there is none.
    fn open_batch(&mut self, number: u16, bytes: usize) {
        if let Some(batch) = &self.batch
            && (batch.channel != number
                || self.native.len() - batch.start + bytes > FRAME_BYTES_MAX)
        {
            self.flush_batch();
        }
        if self.batch.is_none() {
            self.flush_settling();
            let start = self.native.len();
            self.native.resize(start + FRAME_HEADER_BYTES, 0);
            self.batch = Some(Batch {
                channel: number,
                start,
                count: 0,
            });
        }
    }

    /// Ends the native frame of publishes that is being put together.
    pub(super) fn flush_batch(&mut self) {
        let Some(batch) = self.batch.take() else {
            return;
        };
        let channel = self.channels.get_mut(&batch.channel);
        if let Some(channel) = channel
            && let Place::Batch(start) = channel.place
            && channel.expect == Expect::Body
        {
            // The rest of it comes later. It is small; its memory is the channel's own.
            channel.partial.clear();
            channel.partial.reserve_exact(padded(channel.message_bytes));
            channel.partial.extend_from_slice(&self.native[start..]);
            channel.place = Place::Apart;
            self.native.truncate(start);
        }
        if batch.count == 0 {
            self.native.truncate(batch.start);
            return;
        }
        let publisher = self
            .channels
            .get(&batch.channel)
            .map(|channel| &channel.publisher);
        let Some(publisher) = publisher else {
            self.native.truncate(batch.start);
            return;
        };
        let body_bytes = self.native.len() - batch.start - FRAME_HEADER_BYTES;
        let header = FrameHeader {
            count: batch.count,
            body_bytes: body_bytes as u32,
            ..FrameHeader::bare(
                FrameKind::Publish,
                publisher.native,
                publisher.next - u64::from(batch.count),
            )
        };
        let place = batch.start..batch.start + FRAME_HEADER_BYTES;
        self.native[place].copy_from_slice(&header.encode());
    }

    /// The last byte of a content has come.
    fn content_is_whole(&mut self, number: u16, talk: &mut Talk<'_>) -> Result<Step, Fault> {
        let channel = self.channels.get_mut(&number).expect("it is open");
        channel.expect = Expect::Method;
        let total = channel.message_bytes;
        let place = std::mem::replace(&mut channel.place, Place::Apart);
        let start = match place {
            Place::Batch(start) => {
                envelope::finish(&mut self.native, start);
                start
            }
            Place::Apart => {
                envelope::finish(&mut channel.partial, 0);
                0
            }
        };
        if channel.is_mandatory {
            let is_sending = channel.streams != 0;
            let mut held = is_sending.then(|| std::mem::take(&mut channel.held));
            let bytes = match place {
                Place::Batch(_) => &self.native[start..start + total],
                Place::Apart => &channel.partial[..total],
            };
            let sequence = channel.publisher.next;
            let frame_bytes_max = self.frame_bytes_max;
            return_unrouted(
                (self.conn, number, frame_bytes_max),
                (self.tenant, sequence),
                bytes,
                held.as_mut(),
                talk,
            );
            if let Some(held) = held {
                channel.held = held;
            }
        }
        if total > FRAGMENT_BYTES_MAX {
            self.flush_batch();
            let channel = self.channels.get_mut(&number).expect("it is open");
            channel.passed_on = Some(0);
            self.pass_on(number, talk);
            return Ok(Step::Done);
        }
        if place == Place::Apart {
            let partial = std::mem::take(&mut channel.partial);
            self.open_batch(number, partial.len());
            self.native.extend_from_slice(&partial);
            let channel = self.channels.get_mut(&number).expect("it is open");
            if partial.capacity() <= PARTIAL_BYTES_KEPT {
                channel.partial = partial;
            }
        }
        let channel = self.channels.get_mut(&number).expect("it is open");
        channel.publisher.next += 1;
        let batch = self.batch.as_mut().expect("its message is in it");
        batch.count += 1;
        Ok(Step::Done)
    }

    /// There is more credit: whoever waited for it goes on.
    pub(super) fn go_on_publishing(&mut self, talk: &mut Talk<'_>) {
        let number = std::mem::take(&mut self.waits_credit);
        let is_large = self
            .channels
            .get(&number)
            .is_some_and(|channel| channel.passed_on.is_some());
        if is_large {
            self.pass_on(number, talk);
        }
    }

    /// Passes on pieces of a large message as far as there is credit.
    fn pass_on(&mut self, number: u16, talk: &mut Talk<'_>) {
        let channel = self.channels.get_mut(&number).expect("it is open");
        let total = channel.message_bytes;
        let mut at = channel.passed_on.expect("it has begun");
        while at < total {
            let head = FragmentHead {
                message_bytes: total as u32,
                offset: at as u32,
            };
            let bytes = head.piece_bytes();
            let credit = (u64::from(at == 0), padded(bytes) as u64);
            if !channel.publisher.charge(credit.0, credit.1) {
                channel.passed_on = Some(at);
                self.waits_credit = number;
                self.waits_since.get_or_insert(talk.flow.now);
                return;
            }
            self.waits_since = None;
            let head = head.encode();
            let piece = &channel.partial[at..at + bytes];
            let header = FrameHeader {
                count: 1,
                body_bytes: (head.len() + bytes) as u32,
                body_crc: checksum::crc32c_append(checksum::crc32c(&head), piece),
                ..FrameHeader::bare(
                    FrameKind::PublishFragment,
                    channel.publisher.native,
                    channel.publisher.next,
                )
            };
            let end = self.native.len() + header.length();
            self.native.extend_from_slice(&header.encode());
            self.native.extend_from_slice(&head);
            self.native.extend_from_slice(piece);
            self.native.resize(end, 0);
            at += bytes;
        }
        channel.publisher.next += 1;
        channel.passed_on = None;
        channel.partial = Vec::new();
        *talk.gathering -= std::mem::take(&mut channel.gathered);
    }

    /// `Confirm` or `ProducerCredit`.
    pub(super) fn confirmed(&mut self, header: &FrameHeader, body: &[u8], talk: &mut Talk<'_>) {
        let Native::Publisher { channel: number } = *self.native_of(header.channel) else {
            return;
        };
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if channel.publisher.native != header.channel {
            return;
        }
        let number_at = |at: usize| {
            let raw = body[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(raw)
        };
        channel.publisher.granted = (number_at(0), number_at(8));
        if header.kind == FrameKind::ProducerCredit || header.sequence <= channel.told {
            return;
        }
        let last = header.sequence;
        let (left, last_taken) = channel.confirm(last);
        let Some(from) = channel.confirms_from else {
            return;
        };
        if left > 0 && last_taken > from {
            let ack = Method::BasicAck {
                delivery_tag: last_taken - from,
                multiple: left > 1,
            };
            self.tell(number, &ack, talk);
        }
    }

    /// `Refused`: the client hears it as nacks, or the channel ends.
    pub(super) fn refused(&mut self, header: &FrameHeader, body: &[u8], talk: &mut Talk<'_>) {
        let Native::Publisher { channel: number } = *self.native_of(header.channel) else {
            return;
        };
        let Ok(failure) = Failure::decode(body) else {
            return;
        };
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if channel.publisher.native != header.channel || channel.is_closing {
            return;
        }
        let reply = match Code::from_number(failure.code) {
            Code::ExchangeUnknown => Some(ReplyCode::NotFound),
            Code::PermissionDenied => Some(ReplyCode::AccessRefused),
            _ => None,
        };
        if let Some(reply) = reply {
            if self.is_being_closed(number) {
                return;
            }
            let why = String::from_utf8_lossy(failure.reason).into_owned();
            self.fail(number, Fault::new(reply, &why, (60, 40)), talk);
            return;
        }
        let (first, count) = (header.sequence, u64::from(header.count));
        // Those that were confirmed were told already.
        let from = first.max(channel.told + 1);
        let last = first + count - 1;
        if last < from {
            return;
        }
        channel.refuse(from, last);
        let Some(base) = channel.confirms_from else {
            return;
        };
        for sequence in from.max(base + 1)..=last {
            let nack = Method::BasicNack {
                delivery_tag: sequence - base,
                multiple: false,
                requeue: false,
            };
            self.tell(number, &nack, talk);
        }
    }
}

/// No native channel is left.
pub(super) fn too_many(of: (u16, u16)) -> Fault {
    let why = "as many consumers and publishing channels as a connection may have";
    Fault::new(ReplyCode::ResourceError, why, of)
}

/// Gives a mandatory message back if no queue takes it; behind what is held, if something is being sent.
fn return_unrouted(
    (conn, number, frame_bytes_max): (crate::ids::ConnId, u16, usize),
    (tenant, sequence): (ringpost_wire::ids::TenantId, u64),
    bytes: &[u8],
    held: Option<&mut Vec<u8>>,
    talk: &mut Talk<'_>,
) {
    let message = envelope::open(bytes).expect("it was just written");
    let mut targets = std::mem::take(&mut talk.flow.targets);
    let facts = Facts::of(&message, lot_of(PRODUCER_BROKER_MIN, sequence));
    let (exchange, routing_key) = (message.exchange(), message.routing_key());
    let router = &mut talk.flow.router;
    let routed = router.resolve(tenant, exchange, routing_key, &facts, &mut targets);
    let is_unrouted = routed.is_ok() && targets.is_empty();
    talk.flow.targets = targets;
    if !is_unrouted {
        return;
    }
    let method = Method::BasicReturn {
        reply_code: ReplyCode::NoRoute.number(),
        reply_text: ReplyCode::NoRoute.word().as_bytes(),
        exchange,
        routing_key,
    };
    let write = |out: &mut Vec<u8>| {
        let payload = Payload::Here(message.payload());
        write_content(out, number, frame_bytes_max, &method, &message, payload);
    };
    match held {
        Some(held) => write(held),
        None => talk.say(conn, write),
    }
}
