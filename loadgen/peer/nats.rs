//! JetStream of NATS as a work queue: a stream for each queue whose acked messages go, publishes that are
//! answered, a consumer that is pushed to and acks each message. Knows the bytes; does not know sockets or
//! times.

use std::io::Write;

use ringpost_wire::control::{Durability, Level};
use serde_json::{Value, json};

use super::{Codec, Event, Job, Payload, Which, Work, damaged, refused, words};
use crate::Result;
use crate::engine::fresh_u64;

/// The durable consumer of every stream.
const CONSUMER: &str = "load";
/// Longest line, in bytes: what is longer is damage. A server's INFO may be long.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Largest message with its headers, in bytes.
const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Most bytes that a consumer is sent ahead of its acks: a server ends a client that holds up 64 MiB.
const PENDING_BYTES_MAX: u32 = 32 << 20;
/// After so long without an ack a message is delivered again, in ns: the server's own default.
const ACK_WAIT_NS: u64 = 30_000_000_000;
/// What a client says of itself: answers to subjects that nobody listens to are wanted.
const CONNECT: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":false,\
    \"name\":\"ringpost-load\",\"lang\":\"rust\",\"version\":\"0\",\"protocol\":1,\"echo\":true,\
    \"headers\":true,\"no_responders\":true}\r\n";
/// The server's word for an unknown stream.
const STREAM_UNKNOWN: u64 = 10_059;

/// One connection.
pub(super) struct Nats {
    work: Work,
    /// The stream of each role, which is its subject too.
    queues: Vec<String>,
    /// All streams of the run, for publishing.
    names: Vec<String>,
    /// What answers are sent to, without their number.
    inbox: String,
    is_memory: bool,
    is_confirmed: bool,
    /// Consumers of a queue share what is pushed.
    is_shared: bool,
    pending_max: u32,
    /// What the next answers to requests are still to come to: the streams, then their consumers.
    requests: usize,
    is_consumer_made: bool,
    /// Publishes of each role.
    sent: Vec<u64>,
    /// Acks that are not sent, and how many.
    acks: Vec<u8>,
    acked: u64,
    is_greeted: bool,
    is_ready: bool,
}

impl Nats {
    pub(super) fn new(job: Job<'_>) -> Self {
        let plan = job.plan;
        let fits = PENDING_BYTES_MAX / plan.payload_bytes_max().max(1);
        Self {
            work: job.work,
            queues: job.names(),
            names: job.all_names(),
            inbox: format!("_INBOX.load-{:016x}", fresh_u64()),
            is_memory: plan.durability == Durability::Volatile,
            is_confirmed: plan.level != Level::None,
            is_shared: plan.consumers > 1,
            pending_max: plan.credit.min(fits).max(1),
            requests: 0,
            is_consumer_made: false,
            sent: vec![0; job.queues.len()],
            acks: Vec::new(),
            acked: 0,
            is_greeted: false,
            is_ready: false,
        }
    }

    /// The connection is made: asks for what its work needs.
    fn set_up(&mut self, out: &mut Vec<u8>) {
        put(out, format_args!("SUB {}.> 0\r\n", self.inbox));
        match self.work {
            Work::Declare => {
                let storage = if self.is_memory { "memory" } else { "file" };
                for queue in &self.queues {
                    let config = json!({
                        "name": queue, "subjects": [queue], "retention": "workqueue",
                        "storage": storage, "num_replicas": 1, "discard": "old",
                        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0,
                        "max_msg_size": -1,
                    });
                    self.request(out, &format!("STREAM.CREATE.{queue}"), &config);
                }
                self.requests = self.queues.len();
            }
            Work::Delete => {
                for queue in &self.queues {
                    self.request(out, &format!("STREAM.DELETE.{queue}"), &json!({}));
                }
                self.requests = self.queues.len();
            }
            Work::Produce => {}
            Work::Consume => {
                for (role, queue) in self.queues.iter().enumerate() {
                    let group = if self.is_shared { CONSUMER } else { "" };
                    put(
                        out,
                        format_args!("SUB {} {group} {}\r\n", pushed_to(queue), role + 1),
                    );
                }
            }
        }
        if matches!(self.work, Work::Produce | Work::Consume) {
            // Its answer says that all before it has been taken in.
            out.extend_from_slice(b"PING\r\n");
        }
    }

    fn make_consumers(&mut self, out: &mut Vec<u8>) {
        for queue in &self.queues {
            let mut config = json!({
                "durable_name": CONSUMER, "deliver_subject": pushed_to(queue),
                "deliver_policy": "all", "replay_policy": "instant", "ack_policy": "explicit",
                "ack_wait": ACK_WAIT_NS, "max_deliver": -1, "max_ack_pending": self.pending_max,
            });
            if self.is_shared {
                config["deliver_group"] = CONSUMER.into();
            }
            let request = json!({ "stream_name": queue, "config": config });
            self.request(
                out,
                &format!("CONSUMER.DURABLE.CREATE.{queue}.{CONSUMER}"),
                &request,
            );
        }
        self.requests = self.queues.len();
        self.is_consumer_made = true;
    }

    fn request(&self, out: &mut Vec<u8>, what: &str, body: &Value) {
        let body = body.to_string();
        let (inbox, length) = (&self.inbox, body.len());
        put(
            out,
            format_args!("PUB $JS.API.{what} {inbox}.api {length}\r\n{body}\r\n"),
        );
    }

    /// An answer of the API.
    fn answered<'b>(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Event<'b>> {
        let answer = json_of(body)?;
        let is_unknown = answer["error"]["err_code"] == STREAM_UNKNOWN;
        let is_done = answer["error"].is_null() || self.work == Work::Delete && is_unknown;
        if !is_done {
            return Err(refused("a stream", error_of(&answer)));
        }
        self.requests = self
            .requests
            .checked_sub(1)
            .ok_or_else(|| damaged("an answer to nothing"))?;
        if self.requests > 0 {
            return Ok(Event::Nothing);
        }
        if self.work == Work::Declare && !self.is_consumer_made {
            self.make_consumers(out);
            return Ok(Event::Nothing);
        }
        self.is_ready = true;
        Ok(Event::Ready)
    }

    fn pong<'b>(&mut self) -> Event<'b> {
        match std::mem::replace(&mut self.is_ready, true) {
            true => Event::Closed,
            false => Event::Ready,
        }
    }

    /// A message: an answer to a publish or to a request, or a delivery.
    fn message<'b>(
        &mut self,
        head: &Head<'_>,
        body: &'b [u8],
        out: &mut Vec<u8>,
    ) -> Result<Event<'b>> {
        let (headers, body) = body
            .split_at_checked(head.headers)
            .ok_or_else(|| damaged("headers that are longer than the message"))?;
        if let Some(role) = head.subscription.checked_sub(1) {
            return self.delivered(role, head, headers, body);
        }
        let rest = head.subject.strip_prefix(self.inbox.as_bytes());
        let mut tokens = rest.unwrap_or_default().split(|byte| *byte == b'.').skip(1);
        let (first, second) = (tokens.next().unwrap_or_default(), tokens.next());
        if first == b"api" && second.is_none() {
            if !headers.is_empty() {
                return Err(refused("a request: JetStream is not on", words(headers)));
            }
            return self.answered(body, out);
        }
        let role = number_of(first).filter(|role| *role < self.sent.len());
        let sequence = second.and_then(number_of);
        let (Some(role), Some(sequence)) = (role, sequence) else {
            return Err(damaged(format!("an answer to {:?}", words(head.subject))));
        };
        let which = Which {
            role,
            sequence: sequence as u64,
            is_multiple: false,
        };
        if !headers.is_empty() {
            return Ok(Event::Refused(which, words(headers)));
        }
        // Without words of its own an error is an object, which a plain answer has none of.
        if body.starts_with(b"{\"stream\":") && !body[1..].contains(&b'{') {
            return Ok(Event::Confirmed(which));
        }
        let answer = json_of(body)?;
        match answer["error"].is_null() && answer["seq"].is_u64() {
            true => Ok(Event::Confirmed(which)),
            false => Ok(Event::Refused(which, error_of(&answer))),
        }
    }

    fn delivered<'b>(
        &mut self,
        role: usize,
        head: &Head<'_>,
        headers: &[u8],
        body: &'b [u8],
    ) -> Result<Event<'b>> {
        if role >= self.queues.len() {
            return Err(damaged(format!("the subscription {}", role + 1)));
        }
        if !headers.is_empty() {
            return Err(refused("the consumer", words(headers)));
        }
        let Some(reply) = head.reply else {
            return Err(damaged("a delivery that cannot be acked"));
        };
        self.acks.extend_from_slice(b"PUB ");
        self.acks.extend_from_slice(reply);
        self.acks.extend_from_slice(b" 4\r\n+ACK\r\n");
        self.acked += 1;
        // $JS.ACK.stream.consumer.times.…; with a domain and an account in front of the stream.
        let mut tokens = reply.split(|byte| *byte == b'.');
        let place = match reply.split(|byte| *byte == b'.').count() {
            9 => 4,
            _ => 6,
        };
        let times = tokens.nth(place).and_then(number_of);
        Ok(Event::Delivered {
            role,
            payload: body,
            is_redelivered: times.is_some_and(|times| times > 1),
        })
    }
}

impl Codec for Nats {
    /// The server speaks first.
    fn open(&mut self, _out: &mut Vec<u8>) {}

    fn next<'b>(
        &'b mut self,
        input: &'b [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Event<'b>)>> {
        let looked = &input[..input.len().min(LINE_BYTES_MAX)];
        let Some(end) = looked.windows(2).position(|pair| pair == b"\r\n") else {
            return match looked.len() {
                LINE_BYTES_MAX => Err(damaged("a line without an end")),
                _ => Ok(None),
            };
        };
        let (line, taken) = (&input[..end], end + 2);
        let (verb, arguments) = match line.iter().position(|byte| *byte == b' ') {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[end..]),
        };
        let event = match verb {
            b"MSG" | b"HMSG" => {
                let head = head_of(arguments, verb == b"HMSG")?;
                let Some((body, rest)) = input[taken..].split_at_checked(head.bytes) else {
                    return Ok(None);
                };
                let Some((end, _)) = rest.split_first_chunk::<2>() else {
                    return Ok(None);
                };
                if end != b"\r\n" {
                    return Err(damaged("a message that is longer than it says"));
                }
                let event = self.message(&head, body, out)?;
                return Ok(Some((taken + head.bytes + 2, event)));
            }
            b"PING" => {
                out.extend_from_slice(b"PONG\r\n");
                Event::Nothing
            }
            b"PONG" => self.pong(),
            b"+OK" => Event::Nothing,
            b"-ERR" => return Err(refused("the connection", words(arguments))),
            b"INFO" => {
                // Sent again when the server's surroundings change.
                if !std::mem::replace(&mut self.is_greeted, true) {
                    out.extend_from_slice(CONNECT);
                    self.set_up(out);
                }
                Event::Nothing
            }
            _ => return Err(damaged(format!("the line {:?}", words(line)))),
        };
        Ok(Some((taken, event)))
    }

    fn publish(&mut self, out: &mut Vec<u8>, role: usize, queue: u32, payload: Payload<'_>) {
        self.sent[role] += 1;
        let (name, sequence) = (&self.names[queue as usize], self.sent[role]);
        out.extend_from_slice(b"PUB ");
        out.extend_from_slice(name.as_bytes());
        if self.is_confirmed {
            put(out, format_args!(" {}.{role}.{sequence}", self.inbox));
        }
        put(out, format_args!(" {}\r\n", payload.length()));
        payload.append(out);
        out.extend_from_slice(b"\r\n");
    }

    fn settle(&mut self, out: &mut Vec<u8>) -> u64 {
        out.append(&mut self.acks);
        std::mem::take(&mut self.acked)
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PING\r\n");
    }
}

/// What the line before a message says.
struct Head<'a> {
    subject: &'a [u8],
    subscription: usize,
    reply: Option<&'a [u8]>,
    /// Bytes of the headers, which the message starts with.
    headers: usize,
    /// Bytes of the message with its headers.
    bytes: usize,
}

fn head_of(arguments: &[u8], has_headers: bool) -> Result<Head<'_>> {
    let wrong = || damaged(format!("the message {:?}", words(arguments)));
    let tokens: Vec<_> = arguments
        .split(|byte| *byte == b' ')
        .filter(|token| !token.is_empty())
        .collect();
    let (names, sizes) = tokens
        .split_at_checked(tokens.len().saturating_sub(1 + usize::from(has_headers)))
        .ok_or_else(wrong)?;
    let (subject, subscription, reply) = match names {
        [subject, subscription] => (*subject, *subscription, None),
        [subject, subscription, reply] => (*subject, *subscription, Some(*reply)),
        _ => return Err(wrong()),
    };
    let size = |at: usize| sizes.get(at).copied().and_then(number_of).ok_or_else(wrong);
    let (headers, bytes) = match has_headers {
        true => (size(0)?, size(1)?),
        false => (0, size(0)?),
    };
    if bytes > MESSAGE_BYTES_MAX {
        return Err(wrong());
    }
    Ok(Head {
        subject,
        subscription: number_of(subscription).ok_or_else(wrong)?,
        reply,
        headers,
        bytes,
    })
}

/// Where a consumer of a queue is pushed to.
fn pushed_to(queue: &str) -> String {
    format!("{queue}.pushed")
}

fn number_of(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn json_of(text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text).map_err(|error| damaged(format!("{error} in {}", words(text))))
}

fn error_of(answer: &Value) -> String {
    match answer["error"]["description"].as_str() {
        Some(text) => text.to_owned(),
        None => words(answer.to_string().as_bytes()),
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes what is written");
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Seen, damage, error_of, feed, job, one, plan, stamp};
    use super::*;
    use crate::plan::Via;

    const INFO: &[u8] = b"INFO {\"server_id\":\"a\",\"headers\":true}\r\n";

    /// Its inbox is the same for every one of them.
    fn make(work: Work) -> Nats {
        let mut codec = Nats::new(job(&plan(Via::Nats), work));
        codec.inbox = "_INBOX.a".into();
        codec
    }

    fn greet(codec: &mut Nats, out: &mut Vec<u8>) {
        let (length, event) = codec.next(INFO, out).expect("info").expect("whole");
        assert_eq!((length, event), (INFO.len(), Event::Nothing));
    }

    fn begin(codec: &mut Nats, out: &mut Vec<u8>) {
        greet(codec, out);
        let ready = codec.next(b"PONG\r\n", out).expect("a pong");
        assert_eq!(ready, Some((6, Event::Ready)));
    }

    #[test]
    fn a_client_says_what_it_is_and_where_answers_go() {
        let (mut codec, mut out) = (make(Work::Produce), Vec::new());
        codec.open(&mut out);
        assert!(out.is_empty(), "the server speaks first");
        greet(&mut codec, &mut out);
        let said = String::from_utf8(out).expect("text");
        assert!(said.starts_with("CONNECT {\"verbose\":false,"), "{said}");
        assert!(
            said.ends_with("\"no_responders\":true}\r\nSUB _INBOX.a.> 0\r\nPING\r\n"),
            "{said}"
        );
        let (_, said) = feed(|| make(Work::Produce), begin, b"PING\r\n+OK\r\n");
        assert_eq!(said, b"PONG\r\n");
        let (seen, said) = feed(|| make(Work::Produce), begin, INFO);
        assert!(seen.is_empty() && said.is_empty(), "it is greeted once");
    }

    #[test]
    fn a_message_asks_for_an_answer_unless_none_is_wanted() {
        let (mut codec, mut out) = (make(Work::Produce), Vec::new());
        let stamp = stamp();
        let payload = Payload {
            noise: b"abc",
            stamp,
        };
        codec.publish(&mut out, 0, 0, payload);
        assert_eq!(
            out,
            [b"PUB load-0 _INBOX.a.0.1 35\r\nabc", &stamp[..], b"\r\n"].concat()
        );
        out.clear();
        codec.is_confirmed = false;
        codec.publish(&mut out, 0, 0, payload);
        assert_eq!(out, [b"PUB load-0 35\r\nabc", &stamp[..], b"\r\n"].concat());
    }

    #[test]
    fn answers_to_publishes_are_confirms_or_refusals() {
        let input = b"MSG _INBOX.a.0.2 0 28\r\n{\"stream\":\"load-0\", \"seq\":2}\r\n\
            MSG _INBOX.a.0.1 0 91\r\n{\"error\":{\"code\":503,\"err_code\":10077,\"description\":\"maximum \
            bytes exceeded\"},\"stream\":\"l\"}\r\n\
            HMSG _INBOX.a.0.3 0 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        let (seen, said) = feed(|| make(Work::Produce), begin, input);
        assert_eq!(
            seen,
            [
                Seen::Confirmed(one(0, 2)),
                Seen::Refused(one(0, 1), "maximum bytes exceeded".into()),
                Seen::Refused(one(0, 3), "NATS/1.0 503\r\n\r\n".into()),
            ]
        );
        assert!(said.is_empty());
        damage(|| make(Work::Produce), begin, input);
    }

    #[test]
    fn each_delivery_is_acked_by_itself() {
        let input = b"MSG load-0.pushed 1 $JS.ACK.load-0.load.1.7.7.1700.3 5\r\nab\r\nc\r\n\
            MSG load-0.pushed 1 $JS.ACK.load-0.load.2.8.8.1701.2 0\r\n\r\n";
        let (seen, said) = feed(|| make(Work::Consume), begin, input);
        assert_eq!(
            seen,
            [
                Seen::Delivered(0, b"ab\r\nc".to_vec(), false),
                Seen::Delivered(0, Vec::new(), true)
            ]
        );
        let acks = b"PUB $JS.ACK.load-0.load.1.7.7.1700.3 4\r\n+ACK\r\n\
            PUB $JS.ACK.load-0.load.2.8.8.1701.2 4\r\n+ACK\r\n";
        assert_eq!(said, acks);
        damage(|| make(Work::Consume), begin, input);
    }

    #[test]
    fn streams_are_made_then_their_consumers() {
        let mut out = Vec::new();
        greet(&mut make(Work::Declare), &mut out);
        let said = String::from_utf8(out).expect("text");
        assert!(
            said.contains("PUB $JS.API.STREAM.CREATE.load-0 _INBOX.a.api "),
            "{said}"
        );
        assert!(said.contains("\"retention\":\"workqueue\""), "{said}");
        let made = b"MSG _INBOX.a.api 0 18\r\n{\"type\":\"created\"}\r\n";
        let (seen, said) = feed(|| make(Work::Declare), greet, made);
        assert!(seen.is_empty());
        let said = String::from_utf8(said).expect("text");
        let create = "PUB $JS.API.CONSUMER.DURABLE.CREATE.load-0.load _INBOX.a.api ";
        assert!(said.starts_with(create), "{said}");
        assert!(said.contains("\"max_ack_pending\":500"), "{said}");
        let both = [&made[..], made].concat();
        assert_eq!(feed(|| make(Work::Declare), greet, &both).0, [Seen::Ready]);
        let refusal = b"MSG _INBOX.a.api 0 65\r\n{\"error\":{\"code\":404,\"err_code\":10059,\
            \"description\":\"not found\"}}\r\n";
        assert_eq!(feed(|| make(Work::Delete), greet, refusal).0, [Seen::Ready]);
        let error = error_of(|| make(Work::Declare), greet, refusal);
        assert!(error.contains("not found"), "{error}");
    }

    #[test]
    fn what_no_server_sends_is_an_error() {
        for (input, says) in [
            (&b"-ERR 'Slow Consumer'\r\n"[..], "Slow Consumer"),
            (b"HELLO\r\n", "HELLO"),
            (b"MSG a\r\n", "the message"),
            (b"MSG load-0.pushed 1 r 9999999999\r\n", "the message"),
            (b"MSG load-0.pushed 1 r 1\r\nabc", "longer than it says"),
            (b"MSG load-0.pushed 1 1\r\na\r\n", "cannot be acked"),
            (b"MSG load-0.pushed 2 r 1\r\na\r\n", "the subscription 2"),
            (b"MSG other 0 1\r\na\r\n", "an answer to \"other\""),
            (
                b"HMSG load-0.pushed 1 r 9 1\r\na\r\n",
                "longer than the message",
            ),
            (b"HMSG load-0.pushed 1 12 12\r\nNATS/1.0 409\r\n", "409"),
        ] {
            let error = error_of(|| make(Work::Consume), begin, input);
            assert!(error.contains(says), "{error}");
        }
    }
}
