//! AMQP 0-9-1 as a load needs it: PLAIN, a channel for each role, durable or transient messages, confirms,
//! consumers that ack. Knows the bytes; does not know sockets or times.

use ringpost_wire::control::{Durability, Level};

use super::{Codec, Event, Job, Payload, QueueType, Which, Work, damaged, refused, words};
use crate::{Error, Result};

/// What a client says first.
const PREAMBLE: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Bytes of a frame beside its payload: type, channel, size before it, the end after it.
const FRAME_BESIDE_BYTES: usize = 8;
/// Bytes of a frame before its payload.
const HEAD_BYTES: usize = 7;
/// What every frame ends with.
const FRAME_END: u8 = 0xce;
/// Largest frame asked for and taken, in bytes; RabbitMQ's own default.
pub(super) const FRAME_BYTES_MAX: u32 = 128 << 10;
/// Smallest that every peer takes.
const FRAME_BYTES_MIN: u32 = 4096;
/// Seconds after which a silent side is taken for dead; beats come every 10.
const HEARTBEAT_SECONDS: u16 = 60;
/// Largest body that is put together again, in bytes.
const BODY_BYTES_MAX: u64 = 2 << 20;
/// Most messages a consumer may hold: the field has 16 bits.
const PREFETCH_MAX: u32 = 65_535;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// A method: class and number.
type Method = (u16, u16);
const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CLOSE: Method = (10, 50);
const CLOSE_OK: Method = (10, 51);
const BLOCKED: Method = (10, 60);
const UNBLOCKED: Method = (10, 61);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_FLOW: Method = (20, 20);
const CHANNEL_FLOW_OK: Method = (20, 21);
const CHANNEL_CLOSE: Method = (20, 40);
const DECLARE: Method = (50, 10);
const DECLARE_OK: Method = (50, 11);
const DELETE: Method = (50, 40);
const DELETE_OK: Method = (50, 41);
const QOS: Method = (60, 10);
const QOS_OK: Method = (60, 11);
const CONSUME: Method = (60, 20);
const CONSUME_OK: Method = (60, 21);
const CANCEL: Method = (60, 30);
const PUBLISH: Method = (60, 40);
const RETURN: Method = (60, 50);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);
const SELECT: Method = (85, 10);
const SELECT_OK: Method = (85, 11);

/// One connection.
pub(super) struct Amqp {
    work: Work,
    /// The queue of each role.
    queues: Vec<String>,
    /// Names of all queues of the run, for publishing.
    names: Vec<String>,
    user: String,
    password: String,
    queue_type: QueueType,
    is_durable: bool,
    is_confirmed: bool,
    prefetch: u16,
    /// What was agreed on, in bytes.
    frame_bytes_max: u32,
    /// Answers that are still to come before the connection is ready.
    answers: usize,
    /// Of each role.
    channels: Vec<Channel>,
}

/// What is known of a role.
#[derive(Default)]
struct Channel {
    /// Highest tag delivered.
    tag: u64,
    settled: u64,
    /// A message that is being delivered.
    content: Option<Content>,
    /// What came of a body in several frames.
    body: Vec<u8>,
}

/// A message of which the method has come.
struct Content {
    is_redelivered: bool,
    /// Bytes that its header names; none before it has come.
    length: Option<u64>,
}

impl Amqp {
    pub(super) fn new(job: Job<'_>) -> Self {
        let plan = job.plan;
        Self {
            work: job.work,
            channels: job.queues.iter().map(|_| Channel::default()).collect(),
            queues: job.names(),
            names: job.all_names(),
            user: plan.peer.user.clone(),
            password: plan.peer.password.clone(),
            queue_type: plan.peer.queue_type,
            is_durable: plan.durability == Durability::Durable,
            is_confirmed: plan.level != Level::None,
            prefetch: u16::try_from(plan.credit.min(PREFETCH_MAX)).unwrap_or(u16::MAX),
            frame_bytes_max: FRAME_BYTES_MAX,
            answers: 0,
        }
    }

    /// Asks for all that the work needs, at once.
    fn set_up(&mut self, out: &mut Vec<u8>) {
        let mut ask = |channel, method, arguments: &[u8]| {
            write_method(out, channel, method, arguments);
            self.answers += 1;
        };
        if matches!(self.work, Work::Declare | Work::Delete) {
            ask(1, CHANNEL_OPEN, &[0]);
        }
        for (role, queue) in self.queues.iter().enumerate() {
            let channel = channel_of(role);
            let mut named = vec![0, 0];
            put_short(&mut named, queue.as_bytes());
            match self.work {
                Work::Declare => {
                    named.push(u8::from(self.is_durable) << 1);
                    let kind: &[u8] = match self.queue_type {
                        QueueType::Classic => b"classic",
                        QueueType::Quorum => b"quorum",
                    };
                    put_table(&mut named, |table| {
                        put_short(table, b"x-queue-type");
                        table.push(b'S');
                        put_long(table, kind);
                    });
                    ask(1, DECLARE, &named);
                }
                Work::Delete => {
                    named.push(0);
                    ask(1, DELETE, &named);
                }
                Work::Produce => {
                    ask(channel, CHANNEL_OPEN, &[0]);
                    if self.is_confirmed {
                        ask(channel, SELECT, &[0]);
                    }
                }
                Work::Consume => {
                    ask(channel, CHANNEL_OPEN, &[0]);
                    let mut qos = vec![0; 4];
                    qos.extend_from_slice(&self.prefetch.to_be_bytes());
                    qos.push(0);
                    ask(channel, QOS, &qos);
                    put_short(&mut named, b""); // the peer names the consumer
                    named.push(0);
                    put_table(&mut named, |_| ());
                    ask(channel, CONSUME, &named);
                }
            }
        }
    }

    /// One method.
    fn method<'b>(&mut self, channel: u16, payload: &[u8], out: &mut Vec<u8>) -> Result<Event<'b>> {
        let mut reader = Reader(payload);
        let method = (reader.u16()?, reader.u16()?);
        match method {
            START => {
                write_method(out, 0, START_OK, &self.start_ok());
                Ok(Event::Nothing)
            }
            TUNE => {
                let (channels, frame_bytes) = (reader.u16()?, reader.u32()?);
                let heartbeat = reader.u16()?;
                if frame_bytes > 0 {
                    self.frame_bytes_max = frame_bytes.clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX);
                }
                let mut tune = channels.to_be_bytes().to_vec();
                tune.extend_from_slice(&self.frame_bytes_max.to_be_bytes());
                let seconds = if heartbeat == 0 { 0 } else { HEARTBEAT_SECONDS };
                tune.extend_from_slice(&seconds.to_be_bytes());
                write_method(out, 0, TUNE_OK, &tune);
                write_method(out, 0, OPEN, b"\x01/\x00\x00");
                Ok(Event::Nothing)
            }
            OPEN_OK => {
                self.set_up(out);
                Ok(Event::Nothing)
            }
            CHANNEL_OPEN_OK | DECLARE_OK | DELETE_OK | QOS_OK | CONSUME_OK | SELECT_OK => {
                self.answers = self
                    .answers
                    .checked_sub(1)
                    .ok_or_else(|| damaged(format!("{method:?}, which was not asked for")))?;
                Ok(match self.answers {
                    0 => Event::Ready,
                    _ => Event::Nothing,
                })
            }
            ACK | NACK => {
                let (sequence, bits) = (reader.u64()?, reader.u8()?);
                let which = Which {
                    role: self.role_of(channel)?,
                    sequence,
                    is_multiple: bits & 1 == 1,
                };
                Ok(match method {
                    ACK => Event::Confirmed(which),
                    _ => Event::Refused(which, "basic.nack".into()),
                })
            }
            DELIVER => {
                reader.short()?;
                let (tag, redelivered) = (reader.u64()?, reader.u8()?);
                let own = self.channel_mut(channel)?;
                if tag != own.tag + 1 || own.content.is_some() {
                    return Err(damaged(format!("delivery {tag} after {}", own.tag)));
                }
                own.tag = tag;
                own.content = Some(Content {
                    is_redelivered: redelivered & 1 == 1,
                    length: None,
                });
                own.body.clear();
                Ok(Event::Nothing)
            }
            CHANNEL_FLOW => {
                write_method(out, channel, CHANNEL_FLOW_OK, &[reader.u8()? & 1]);
                Ok(Event::Nothing)
            }
            BLOCKED | UNBLOCKED => Ok(Event::Nothing),
            CLOSE_OK => Ok(Event::Closed),
            CLOSE => Err(refused("the connection", reason(&mut reader)?)),
            CHANNEL_CLOSE => Err(refused("the channel", reason(&mut reader)?)),
            CANCEL => Err(refused("the consumer", "it was cancelled")),
            RETURN => Err(refused("a publish", reason(&mut reader)?)),
            _ => Err(damaged(format!("the method {method:?}"))),
        }
    }

    fn start_ok(&self) -> Vec<u8> {
        let mut start = Vec::new();
        put_table(&mut start, |table| {
            put_short(table, b"product");
            table.push(b'S');
            put_long(table, b"ringpost-load");
            put_short(table, b"capabilities");
            table.push(b'F');
            put_table(table, |table| {
                for name in [
                    &b"publisher_confirms"[..],
                    b"basic.nack",
                    b"consumer_cancel_notify",
                ] {
                    put_short(table, name);
                    table.extend_from_slice(b"t\x01");
                }
                put_short(table, b"authentication_failure_close");
                table.extend_from_slice(b"t\x01");
            });
        });
        put_short(&mut start, b"PLAIN");
        put_long(
            &mut start,
            format!("\0{}\0{}", self.user, self.password).as_bytes(),
        );
        put_short(&mut start, b"en_US");
        start
    }

    /// The header of a body: a message without one is whole with it.
    fn header<'b>(&mut self, role: usize, payload: &'b [u8]) -> Result<Event<'b>> {
        let mut reader = Reader(payload);
        reader.u32()?;
        let length = reader.u64()?;
        if length > BODY_BYTES_MAX {
            let text = format!("a body of {length} bytes; {BODY_BYTES_MAX} are the most");
            return Err(damaged(text));
        }
        let channel = &mut self.channels[role];
        match &mut channel.content {
            Some(content) if content.length.is_none() => content.length = Some(length),
            _ => return Err(damaged("a header without a delivery")),
        }
        if length > 0 {
            return Ok(Event::Nothing);
        }
        let content = channel.content.take();
        let is_redelivered = content.is_some_and(|content| content.is_redelivered);
        Ok(Event::Delivered {
            role,
            payload: &[],
            is_redelivered,
        })
    }

    /// A frame of a body: a message in one frame is not copied.
    fn body<'b>(&'b mut self, role: usize, payload: &'b [u8]) -> Result<Event<'b>> {
        let channel = &mut self.channels[role];
        let Some(Content {
            is_redelivered,
            length: Some(length),
        }) = channel.content
        else {
            return Err(damaged("a body without a header"));
        };
        let have = (channel.body.len() + payload.len()) as u64;
        if have > length {
            return Err(damaged(format!("{have} bytes of a body of {length}")));
        }
        if have == length {
            channel.content = None;
            if channel.body.is_empty() {
                return Ok(Event::Delivered {
                    role,
                    payload,
                    is_redelivered,
                });
            }
        }
        channel.body.extend_from_slice(payload);
        if have < length {
            return Ok(Event::Nothing);
        }
        Ok(Event::Delivered {
            role,
            payload: &channel.body,
            is_redelivered,
        })
    }

    fn role_of(&self, channel: u16) -> Result<usize> {
        let role = usize::from(channel).checked_sub(1);
        role.filter(|role| *role < self.channels.len())
            .ok_or_else(|| damaged(format!("channel {channel}, which is not open")))
    }

    fn channel_mut(&mut self, channel: u16) -> Result<&mut Channel> {
        let role = self.role_of(channel)?;
        Ok(&mut self.channels[role])
    }
}

impl Codec for Amqp {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREAMBLE);
    }

    fn next<'b>(
        &'b mut self,
        input: &'b [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Event<'b>)>> {
        if input.starts_with(b"AMQP") {
            return Err(refused("the connection", "it speaks another version"));
        }
        let Some((head, rest)) = input.split_at_checked(HEAD_BYTES) else {
            return Ok(None);
        };
        let mut reader = Reader(head);
        let (kind, channel, size) = (reader.u8()?, reader.u16()?, reader.u32()?);
        if size as usize + FRAME_BESIDE_BYTES > FRAME_BYTES_MAX as usize {
            return Err(damaged(format!("a frame of {size} bytes")));
        }
        let Some((payload, rest)) = rest.split_at_checked(size as usize) else {
            return Ok(None);
        };
        let Some(end) = rest.first() else {
            return Ok(None);
        };
        if *end != FRAME_END {
            return Err(damaged(format!("a frame that ends with {end:#x}")));
        }
        let event = match kind {
            METHOD => self.method(channel, payload, out)?,
            HEADER => self.header(self.role_of(channel)?, payload)?,
            BODY => self.body(self.role_of(channel)?, payload)?,
            HEARTBEAT => Event::Nothing,
            _ => return Err(damaged(format!("a frame of type {kind}"))),
        };
        Ok(Some((payload.len() + FRAME_BESIDE_BYTES, event)))
    }

    fn publish(&mut self, out: &mut Vec<u8>, role: usize, queue: u32, payload: Payload<'_>) {
        let channel = channel_of(role);
        write_frame(out, METHOD, channel, |out| {
            put_u16(out, PUBLISH.0);
            put_u16(out, PUBLISH.1);
            out.extend_from_slice(&[0, 0, 0]); // reserved, and the default exchange
            put_short(out, self.names[queue as usize].as_bytes());
            out.push(0);
        });
        write_frame(out, HEADER, channel, |out| {
            put_u16(out, PUBLISH.0);
            put_u16(out, 0);
            out.extend_from_slice(&(payload.length() as u64).to_be_bytes());
            put_u16(out, 0x1000); // only the delivery mode follows
            out.push(1 + u8::from(self.is_durable));
        });
        let most = self.frame_bytes_max as usize - FRAME_BESIDE_BYTES;
        if payload.length() <= most {
            write_frame(out, BODY, channel, |out| payload.append(out));
            return;
        }
        let whole = [payload.noise, &payload.stamp].concat();
        for part in whole.chunks(most) {
            write_frame(out, BODY, channel, |out| out.extend_from_slice(part));
        }
    }

    fn settle(&mut self, out: &mut Vec<u8>) -> u64 {
        let mut sum = 0;
        for (role, channel) in self.channels.iter_mut().enumerate() {
            // A delivery whose body has not come is not settled yet.
            let last = channel.tag - u64::from(channel.content.is_some());
            if last == channel.settled {
                continue;
            }
            sum += last - channel.settled;
            channel.settled = last;
            let mut arguments = last.to_be_bytes().to_vec();
            arguments.push(1);
            write_method(out, channel_of(role), ACK, &arguments);
        }
        sum
    }

    fn beat(&mut self, out: &mut Vec<u8>) {
        write_frame(out, HEARTBEAT, 0, |_| ());
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let mut arguments = 200u16.to_be_bytes().to_vec();
        put_short(&mut arguments, b"");
        arguments.extend_from_slice(&[0; 4]);
        write_method(out, 0, CLOSE, &arguments);
    }
}

/// The channel of a role.
fn channel_of(role: usize) -> u16 {
    u16::try_from(role + 1).unwrap_or(u16::MAX)
}

fn put_u16(out: &mut Vec<u8>, number: u16) {
    out.extend_from_slice(&number.to_be_bytes());
}

/// Appends a short string, of at most 255 bytes.
fn put_short(out: &mut Vec<u8>, text: &[u8]) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&text[..usize::from(length)]);
}

/// Appends a long string.
fn put_long(out: &mut Vec<u8>, text: &[u8]) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

/// Appends a table whose entries are written by `fill`.
fn put_table(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut entries = Vec::new();
    fill(&mut entries);
    put_long(out, &entries);
}

/// Appends a frame whose payload is written by `fill`.
fn write_frame(out: &mut Vec<u8>, kind: u8, channel: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    put_u16(out, channel);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let size = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&size.to_be_bytes());
    out.push(FRAME_END);
}

fn write_method(out: &mut Vec<u8>, channel: u16, method: Method, arguments: &[u8]) {
    write_frame(out, METHOD, channel, |out| {
        put_u16(out, method.0);
        put_u16(out, method.1);
        out.extend_from_slice(arguments);
    });
}

/// The reason of a close: a code and words.
fn reason(reader: &mut Reader<'_>) -> Result<String> {
    let code = reader.u16()?;
    Ok(format!("{code} {}", words(reader.short()?)))
}

/// Reads the fields of a payload.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N]> {
        let split = self.0.split_first_chunk();
        let (chunk, rest) = split.ok_or_else(|| damaged("a frame that ends too early"))?;
        self.0 = rest;
        Ok(*chunk)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.chunk()?))
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.chunk()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.chunk()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.chunk()?))
    }

    fn short(&mut self) -> Result<&'a [u8]> {
        let length = usize::from(self.u8()?);
        let split = self.0.split_at_checked(length);
        let (text, rest) =
            split.ok_or_else(|| Error::Protocol("a string that ends too early".into()))?;
        self.0 = rest;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Seen, damage, error_of, feed, job, one, plan, stamp};
    use super::*;
    use crate::plan::Via;

    const TUNE_BYTES: &[u8] =
        b"\x01\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x1e\x07\xff\x00\x02\x00\x00\x00\x3c\xce";
    const OPEN_OK_BYTES: &[u8] = b"\x01\x00\x00\x00\x00\x00\x05\x00\x0a\x00\x29\x00\xce";
    const CHANNEL_OPEN_OK_BYTES: &[u8] =
        b"\x01\x00\x01\x00\x00\x00\x08\x00\x14\x00\x0b\x00\x00\x00\x00\xce";
    const SELECT_OK_BYTES: &[u8] = b"\x01\x00\x01\x00\x00\x00\x04\x00\x55\x00\x0b\xce";
    const QOS_OK_BYTES: &[u8] = b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x0b\xce";
    const CONSUME_OK_BYTES: &[u8] = b"\x01\x00\x01\x00\x00\x00\x07\x00\x3c\x00\x15\x02ct\xce";

    fn make(work: Work) -> Amqp {
        Amqp::new(job(&plan(Via::Amqp), work))
    }

    fn feed_all(codec: &mut Amqp, out: &mut Vec<u8>, parts: &[&[u8]]) {
        for part in parts {
            let taken = codec.next(part, out).expect("good bytes").expect("whole");
            assert_eq!(taken.0, part.len());
        }
    }

    fn begin_to_produce(codec: &mut Amqp, out: &mut Vec<u8>) {
        let answers = [
            TUNE_BYTES,
            OPEN_OK_BYTES,
            CHANNEL_OPEN_OK_BYTES,
            SELECT_OK_BYTES,
        ];
        feed_all(codec, out, &answers);
    }

    fn begin_to_consume(codec: &mut Amqp, out: &mut Vec<u8>) {
        feed_all(
            codec,
            out,
            &[
                TUNE_BYTES,
                OPEN_OK_BYTES,
                CHANNEL_OPEN_OK_BYTES,
                QOS_OK_BYTES,
            ],
        );
        feed_all(codec, out, &[CONSUME_OK_BYTES]);
    }

    /// The head of a delivery with so many bytes of body.
    fn delivery(tag: u8, redelivered: u8, length: u8) -> Vec<u8> {
        let mut bytes =
            b"\x01\x00\x01\x00\x00\x00\x18\x00\x3c\x00\x3c\x02ct\x00\x00\x00\x00\x00\x00\x00"
                .to_vec();
        bytes.extend([tag, redelivered]);
        bytes.extend(b"\x00\x06load-0\xce"); // the default exchange, and the key
        let size = u8::try_from(bytes.len() - 8).expect("short");
        bytes[6] = size;
        bytes.extend(b"\x02\x00\x01\x00\x00\x00\x0f\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00");
        bytes.extend([length, 0x10, 0x00, 0x02, 0xce]);
        bytes
    }

    fn body(text: &[u8]) -> Vec<u8> {
        let size = u8::try_from(text.len()).expect("short");
        [b"\x03\x00\x01\x00\x00\x00", &[size][..], text, b"\xce"].concat()
    }

    #[test]
    fn the_handshake_is_the_documents() {
        let (mut codec, mut out) = (make(Work::Produce), Vec::new());
        codec.open(&mut out);
        assert_eq!(out, b"AMQP\x00\x00\x09\x01");
        out.clear();
        let start = b"\x01\x00\x00\x00\x00\x00\x1c\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\
            \x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US\xce";
        feed_all(&mut codec, &mut out, &[start]);
        assert_eq!(out[7..11], *b"\x00\x0a\x00\x0b");
        let sasl = b"\x05PLAIN\x00\x00\x00\x0c\x00guest\x00guest\x05en_US\xce";
        assert!(out.ends_with(sasl), "{out:?}");
        out.clear();
        feed_all(&mut codec, &mut out, &[TUNE_BYTES]);
        let tune_ok =
            b"\x01\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x1f\x07\xff\x00\x02\x00\x00\x00\x3c\xce";
        let open = b"\x01\x00\x00\x00\x00\x00\x08\x00\x0a\x00\x28\x01/\x00\x00\xce";
        assert_eq!(out, [&tune_ok[..], open].concat());
        out.clear();
        feed_all(&mut codec, &mut out, &[OPEN_OK_BYTES]);
        let channel = b"\x01\x00\x01\x00\x00\x00\x05\x00\x14\x00\x0a\x00\xce";
        let select = b"\x01\x00\x01\x00\x00\x00\x05\x00\x55\x00\x0a\x00\xce";
        assert_eq!(out, [&channel[..], select].concat());
        out.clear();
        codec.beat(&mut out);
        codec.close(&mut out);
        let beat = b"\x08\x00\x00\x00\x00\x00\x00\xce";
        let close = b"\x01\x00\x00\x00\x00\x00\x0b\x00\x0a\x00\x32\x00\xc8\x00\x00\x00\x00\x00\xce";
        assert_eq!(out, [&beat[..], close].concat());
    }

    #[test]
    fn queues_are_made_with_their_kind() {
        let mut codec = make(Work::Declare);
        codec.queue_type = QueueType::Quorum;
        let mut out = Vec::new();
        feed_all(&mut codec, &mut out, &[TUNE_BYTES]);
        out.clear();
        feed_all(&mut codec, &mut out, &[OPEN_OK_BYTES]);
        let declare = b"\x00\x32\x00\x0a\x00\x00\x06load-0\x02\x00\x00\x00\x18\x0cx-queue-typeS\
            \x00\x00\x00\x06quorum\xce";
        assert!(out.ends_with(declare), "{out:?}");
        let ok = b"\x01\x00\x01\x00\x00\x00\x13\x00\x32\x00\x0b\x06load-0\x00\x00\x00\x00\x00\x00\x00\x00\xce";
        let input = [CHANNEL_OPEN_OK_BYTES, ok].concat();
        let open = |codec: &mut Amqp, out: &mut Vec<u8>| {
            feed_all(codec, out, &[TUNE_BYTES, OPEN_OK_BYTES]);
        };
        assert_eq!(feed(|| make(Work::Declare), open, &input).0, [Seen::Ready]);
    }

    #[test]
    fn a_message_is_a_method_a_header_and_bodies_that_fit_frames() {
        let (mut codec, mut out) = (make(Work::Produce), Vec::new());
        let stamp = stamp();
        let payload = Payload {
            noise: b"abc",
            stamp,
        };
        codec.publish(&mut out, 0, 0, payload);
        let method = b"\x01\x00\x01\x00\x00\x00\x0f\x00\x3c\x00\x28\x00\x00\x00\x06load-0\x00\xce";
        let header =
            b"\x02\x00\x01\x00\x00\x00\x0f\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x23\
            \x10\x00\x02\xce";
        let body = [b"\x03\x00\x01\x00\x00\x00\x23abc", &stamp[..], b"\xce"].concat();
        assert_eq!(out, [&method[..], header, &body].concat());
        out.clear();
        codec.frame_bytes_max = 28;
        codec.publish(&mut out, 0, 0, payload);
        let split = out.split_off(method.len() + header.len());
        let whole = [b"abc", &stamp[..]].concat();
        let first = [b"\x03\x00\x01\x00\x00\x00\x14", &whole[..20], b"\xce"].concat();
        let second = [b"\x03\x00\x01\x00\x00\x00\x0f", &whole[20..], b"\xce"].concat();
        assert_eq!(split, [first, second].concat());
    }

    #[test]
    fn confirms_are_for_one_or_for_all_up_to_one() {
        let input =
            b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x02\x00\xce\
            \x08\x00\x00\x00\x00\x00\x00\xce\
            \x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x05\x01\xce\
            \x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x78\x00\x00\x00\x00\x00\x00\x00\x06\x00\xce";
        let (seen, said) = feed(|| make(Work::Produce), begin_to_produce, input);
        let up_to = Which {
            is_multiple: true,
            ..one(0, 5)
        };
        let refused = Seen::Refused(one(0, 6), "basic.nack".into());
        assert_eq!(
            seen,
            [Seen::Confirmed(one(0, 2)), Seen::Confirmed(up_to), refused]
        );
        assert!(said.is_empty());
        damage(|| make(Work::Produce), begin_to_produce, input);
    }

    #[test]
    fn deliveries_of_one_turn_are_acked_at_once_and_bodies_are_put_together() {
        let input = [
            delivery(1, 0, 3),
            body(b"one"),
            delivery(2, 1, 5),
            body(b"t"),
            body(b"wo"),
            body(b"\xce!"),
            delivery(3, 0, 0),
        ]
        .concat();
        let (seen, said) = feed(|| make(Work::Consume), begin_to_consume, &input);
        assert_eq!(
            seen,
            [
                Seen::Delivered(0, b"one".to_vec(), false),
                Seen::Delivered(0, b"two\xce!".to_vec(), true),
                Seen::Delivered(0, Vec::new(), false)
            ]
        );
        let ack =
            b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x03\x01\xce";
        assert_eq!(said, ack);
        damage(|| make(Work::Consume), begin_to_consume, &input);
    }

    #[test]
    fn a_delivery_whose_body_has_not_come_is_not_acked() {
        let input = [delivery(1, 0, 1), body(b"a"), delivery(2, 0, 2), body(b"b")].concat();
        let (_, said) = feed(|| make(Work::Consume), begin_to_consume, &input);
        let ack =
            b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x01\x01\xce";
        assert_eq!(said, ack);
    }

    #[test]
    fn the_peers_reasons_are_told_and_damage_is_an_error() {
        let close =
            b"\x01\x00\x00\x00\x00\x00\x13\x00\x0a\x00\x32\x01\x94\x08NO_QUEUE\x00\x32\x00\x0a\xce";
        let channel =
            b"\x01\x00\x01\x00\x00\x00\x13\x00\x14\x00\x28\x01\x96\x08DIFFERNT\x00\x32\x00\x0a\xce";
        for (input, says) in [
            (&close[..], "404 NO_QUEUE"),
            (channel, "406 DIFFERNT"),
            (b"AMQP\x00\x00\x09\x01", "another version"),
            (b"\x08\x00\x00\x00\x00\x00\x00\xcf", "ends with 0xcf"),
            (b"\x01\x00\x00\xff\xff\xff\xff", "a frame of"),
            (b"\x07\x00\x00\x00\x00\x00\x00\xce", "type 7"),
            (b"\x01\x00\x00\x00\x00\x00\x01\x00\xce", "ends too early"),
            (b"\x01\x00\x09\x00\x00\x00\x0d\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x02\x00\xce", "channel 9"),
            (CONSUME_OK_BYTES, "not asked for"),
        ] {
            let error = error_of(|| make(Work::Consume), begin_to_consume, input);
            assert!(error.contains(says), "{error}");
        }
        let much = [delivery(1, 0, 1), body(b"ab")].concat();
        let orphan = body(b"a");
        let gap = delivery(7, 0, 1);
        for (input, says) in [
            (much, "2 bytes"),
            (orphan, "without a header"),
            (gap, "delivery 7"),
        ] {
            let error = error_of(|| make(Work::Consume), begin_to_consume, &input);
            assert!(error.contains(says), "{error}");
        }
    }
}
