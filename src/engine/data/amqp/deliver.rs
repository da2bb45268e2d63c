//! From native deliveries to AMQP contents. Does not know queues.
//!
//! Small bodies are gathered by copy with the frames around them; of larger ones the frames' heads and
//! ends are written and the bytes between are sent from the buffer that they lie in.

use ringpost_amqp::{FrameType, Method, content, frame};
use ringpost_wire::header::{DELIVER_REDELIVERED, SETTLE_ACK, SETTLE_REQUEUE};
use ringpost_wire::{Envelope, FragmentHead, FrameHeader, Messages, envelope};

use super::channel::Unacked;
use super::requests::Waits;
use super::session::{ConsumerState, Session, Stage, Talk, body_bytes_max};
use crate::effect::Effect;
use crate::ids::{BufferId, ConnId};

/// Bodies up to this long are copied: as many bytes as the piece of a vectored send costs.
const GATHER_BYTES_MAX: usize = 2 * 1024;

/// The body of a content, or of its first piece.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Here(&'a [u8]),
    /// It is written by whoever asks.
    Apart,
}

/// Appends method, header and, if it is here, body of a content.
pub(super) fn write_content(
    out: &mut Vec<u8>,
    number: u16,
    frame_bytes_max: usize,
    method: &Method<'_>,
    message: &Envelope<'_>,
    payload: Payload<'_>,
) {
    frame::write(out, FrameType::Method, number, |out| method.encode(out));
    frame::write(out, FrameType::Header, number, |out| {
        content::encode(message, out);
    });
    if let Payload::Here(payload) = payload {
        for piece in payload.chunks(body_bytes_max(frame_bytes_max)) {
            frame::write(out, FrameType::Body, number, |out| {
                out.extend_from_slice(piece);
            });
        }
    }
}

/// Sends body frames whose bytes lie in a buffer.
fn send_body(
    talk: &mut Talk<'_>,
    (conn, number, frame_bytes_max): (ConnId, u16, usize),
    (buffer, mut from): (BufferId, u32),
    payload: &[u8],
) {
    for piece in payload.chunks(body_bytes_max(frame_bytes_max)) {
        let length = piece.len() as u32;
        let head = frame::head(FrameType::Body, number, piece.len());
        talk.say(conn, |out| out.extend_from_slice(&head));
        if talk.flow.sessions.get(conn).is_some() {
            talk.effects.push(Effect::SendBuffer {
                conn,
                buffer,
                range: from..from + length,
            });
            talk.flow.note_unsent(conn, length);
        }
        talk.say(conn, |out| out.push(ringpost_amqp::FRAME_END));
        from += length;
    }
}

impl Session {
    /// What a delivery is to be told as: its channel, and its tag there. `None` if nobody shall hear of
    /// it; then it was given back, or will be.
    fn receive(&mut self, native: u16, tag: u64) -> Option<(u16, u64)> {
        let consumer = self.consumer_of(native)?;
        let (number, no_ack) = (consumer.channel, consumer.no_ack);
        let is_mute = consumer.is_mute;
        let state = consumer.state;
        let is_told = match state {
            ConsumerState::Open => true,
            // Without acks they are lost if they are not told, and the client has not heard yet that
            // there are no more.
            ConsumerState::Closing => no_ack && (!is_mute || self.is_being_closed(number)),
            ConsumerState::Cancelled => {
                self.settle(native, SETTLE_REQUEUE, tag, tag);
                false
            }
            ConsumerState::Opening => false,
        };
        if !is_told {
            return None;
        }
        let is_get = self.consumer_of(native)?.is_getter;
        let acks_at_once = is_get
            && matches!(&self.waits, Some(Waits::Get { native: of, no_ack: true, .. }) if *of == native);
        let channel = self.channels.get_mut(&number)?;
        if channel.is_closing {
            return None;
        }
        channel.deliveries += 1;
        let delivery = channel.deliveries;
        if acks_at_once {
            self.settle(native, SETTLE_ACK, tag, tag);
        } else if !no_ack {
            channel.unacked.push_back(Unacked {
                delivery,
                tag,
                native,
            });
            self.consumer_of(native)?.outstanding += 1;
        }
        Some((number, delivery))
    }

    /// `Deliver`.
    pub(super) fn deliver(
        &mut self,
        header: &FrameHeader,
        messages: &[u8],
        source: Option<(BufferId, u32)>,
        talk: &mut Talk<'_>,
    ) {
        debug_assert_eq!(self.stage, Stage::Running);
        let native = header.channel;
        let mut at = 0u32;
        for (message, tag) in Messages::new(messages).zip(header.sequence..) {
            let message = message.expect("the core delivers whole messages");
            let bytes = message.bytes.len() as u32;
            let message = message.envelope;
            if let Some((number, delivery)) = self.receive(native, tag) {
                let payload = message.payload();
                let payload_at = at + (message.length() - payload.len()) as u32;
                let source = source.map(|(buffer, from)| (buffer, from + payload_at));
                let redelivered = header.flags & DELIVER_REDELIVERED != 0;
                self.tell_content(
                    native,
                    number,
                    (delivery, redelivered),
                    &message,
                    source,
                    talk,
                );
            }
            at += bytes;
        }
    }

    /// Tells a whole content, from where it lies if it is large.
    fn tell_content(
        &mut self,
        native: u16,
        number: u16,
        (delivery_tag, redelivered): (u64, bool),
        message: &Envelope<'_>,
        source: Option<(BufferId, u32)>,
        talk: &mut Talk<'_>,
    ) {
        let (conn, frame_bytes_max) = (self.conn, self.frame_bytes_max);
        let message_count = match &self.waits {
            Some(Waits::Get { left, .. }) => *left,
            _ => 0,
        };
        let Some(consumer) = self.consumer_of(native) else {
            return;
        };
        let (is_getter, tag) = (consumer.is_getter, std::mem::take(&mut consumer.tag));
        let (exchange, routing_key) = (message.exchange(), message.routing_key());
        let method = match is_getter {
            true => Method::BasicGetOk {
                delivery_tag,
                redelivered,
                exchange,
                routing_key,
                message_count,
            },
            false => Method::BasicDeliver {
                consumer_tag: &tag,
                delivery_tag,
                redelivered,
                exchange,
                routing_key,
            },
        };
        let payload = message.payload();
        let channel = self.channels.get_mut(&number).expect("it was looked at");
        let is_gathered = payload.len() <= GATHER_BYTES_MAX && message.is_whole();
        match source {
            _ if channel.streams != 0 => {
                let here = Payload::Here(payload);
                let out = &mut channel.held;
                write_content(out, number, frame_bytes_max, &method, message, here);
            }
            Some(place) if !is_gathered => {
                talk.say(conn, |out| {
                    let apart = Payload::Apart;
                    write_content(out, number, frame_bytes_max, &method, message, apart);
                });
                send_body(talk, (conn, number, frame_bytes_max), place, payload);
            }
            _ => talk.say(conn, |out| {
                let here = Payload::Here(payload);
                write_content(out, number, frame_bytes_max, &method, message, here);
            }),
        }
        if let Some(consumer) = self.consumer_of(native) {
            consumer.tag = tag;
        }
    }

    /// `DeliverFragment`: a piece of a large message, which is passed on as it comes. What else is told
    /// on its channel waits until it is whole.
    pub(super) fn deliver_piece(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
        source: Option<(BufferId, u32)>,
        talk: &mut Talk<'_>,
    ) {
        let (head, piece) = FragmentHead::split(body).expect("the core delivers whole pieces");
        let native = header.channel;
        if head.offset == 0
            && !head.is_last()
            && let Some(consumer) = self.consumer_of(native)
        {
            consumer.large = header.sequence;
        }
        self.tell_piece(header, &head, piece, source, talk);
        if head.is_last() {
            self.large_is_whole(native);
        }
    }

    fn tell_piece(
        &mut self,
        header: &FrameHeader,
        head: &FragmentHead,
        piece: &[u8],
        source: Option<(BufferId, u32)>,
        talk: &mut Talk<'_>,
    ) {
        let source = source.map(|(buffer, from)| (buffer, from + FragmentHead::BYTES as u32));
        let native = header.channel;
        if head.offset == 0 {
            let Some((number, delivery)) = self.receive(native, header.sequence) else {
                return;
            };
            let message = envelope::open(piece).expect("the core delivers messages");
            let before = piece.len() - message.payload().len();
            let source = source.map(|(buffer, from)| (buffer, from + before as u32));
            let redelivered = header.flags & DELIVER_REDELIVERED != 0;
            let channel = self.channels.get_mut(&number).expect("it was looked at");
            if channel.streams == 0 {
                self.tell_content(
                    native,
                    number,
                    (delivery, redelivered),
                    &message,
                    source,
                    talk,
                );
                let channel = self.channels.get_mut(&number).expect("it was looked at");
                channel.streams = native;
                return;
            }
            // It comes behind the one that is being sent, and may not be cut by what waits with it.
            let before = std::mem::take(&mut channel.held);
            self.tell_content(
                native,
                number,
                (delivery, redelivered),
                &message,
                None,
                talk,
            );
            let channel = self.channels.get_mut(&number).expect("it was looked at");
            let apart = std::mem::replace(&mut channel.held, before);
            if let Some(consumer) = self.consumer_of(native) {
                consumer.apart = Some(apart);
            }
            return;
        }
        if let Some(consumer) = self.consumer_of(native)
            && let Some(mut apart) = consumer.apart.take()
        {
            let number = consumer.channel;
            for piece in piece.chunks(body_bytes_max(self.frame_bytes_max)) {
                frame::write(&mut apart, FrameType::Body, number, |out| {
                    out.extend_from_slice(piece);
                });
            }
            if !head.is_last() {
                self.consumer_of(native).expect("it was looked at").apart = Some(apart);
                return;
            }
            match self.channels.get_mut(&number) {
                Some(channel) if channel.streams != 0 => channel.held.extend_from_slice(&apart),
                _ => talk.say(self.conn, |out| out.extend_from_slice(&apart)),
            }
            return;
        }
        let Some(number) = self.consumer_of(native).map(|consumer| consumer.channel) else {
            return;
        };
        let (conn, frame_bytes_max) = (self.conn, self.frame_bytes_max);
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if channel.streams != native {
            return;
        }
        match source {
            Some(place) => send_body(talk, (conn, number, frame_bytes_max), place, piece),
            None => talk.say(conn, |out| {
                for piece in piece.chunks(body_bytes_max(frame_bytes_max)) {
                    frame::write(out, FrameType::Body, number, |out| {
                        out.extend_from_slice(piece);
                    });
                }
            }),
        }
        if head.is_last() {
            channel.streams = 0;
            let held = std::mem::take(&mut channel.held);
            talk.say(conn, |out| out.extend_from_slice(&held));
        }
    }
}
