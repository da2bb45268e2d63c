//! The page `/trace`: one message of a queue, followed for whoever asks (ADR 0016). Does not know how a
//! core follows it.
//!
//! A connection of the admin port lasts for seconds and a message may take longer, so the page is asked
//! more than once: `?queue=NAME` begins and says under which number; `?id=NUMBER` says what has
//! happened since it was last asked, and waits up to a second for something.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use ringpost_engine::data::trace::{NotFollowed, TraceEnd, TraceEvent, TraceOutcome, Traced};
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::snapshot::{AdminRequest, FollowRequest};

/// Messages that are followed at a time, over all cores.
const TRACES_MAX: usize = 4;
/// Events that may wait to be asked for; a message that has more is followed no longer.
const EVENTS_MAX: usize = 256;
/// How long a question waits for an event.
const EVENT_WITHIN: Duration = Duration::from_secs(1);
/// Who asks no more for so long has gone.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// Longest time that a message is followed, in s.
pub const SECONDS_MAX: u64 = 3_600;
/// The same if the question does not say how long.
const SECONDS_DEFAULT: u64 = 30;

/// The messages that are followed.
#[derive(Debug, Default)]
pub(super) struct Traces(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    last_id: u64,
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    id: u64,
    core: usize,
    events: flume::Receiver<Traced>,
    asked: Instant,
}

impl Traces {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().expect("nobody panics with it")
    }

    /// Whether there is room for one more. Those who have gone make room.
    fn has_room(&self) -> bool {
        let mut book = self.book();
        book.open.retain(|open| open.asked.elapsed() < ASKED_WITHIN);
        book.open.len() < TRACES_MAX
    }

    fn add(&self, core: usize, events: flume::Receiver<Traced>) -> u64 {
        let mut book = self.book();
        book.last_id += 1;
        let id = book.last_id;
        book.open.push(Open {
            id,
            core,
            events,
            asked: Instant::now(),
        });
        id
    }

    fn find(&self, id: u64) -> Option<(usize, flume::Receiver<Traced>)> {
        let mut book = self.book();
        let open = book.open.iter_mut().find(|open| open.id == id)?;
        open.asked = Instant::now();
        Some((open.core, open.events.clone()))
    }

    fn remove(&self, id: u64) {
        self.book().open.retain(|open| open.id != id);
    }
}

/// `/trace`
pub(super) async fn page(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let answer = match Question::of(uri.query().unwrap_or_default()) {
        Ok(Question::Next(id)) => shared.next_events(id).await,
        Ok(Question::Begin(begin)) => shared.begin_trace(begin).await,
        Err(why) => Err((StatusCode::BAD_REQUEST, why)),
    };
    match answer {
        Ok(trace) => Json(trace).into_response(),
        Err((code, why)) => (code, format!("{why}\n")).into_response(),
    }
}

type Refusal = (StatusCode, &'static str);

#[derive(Debug, PartialEq, Eq)]
struct Begin {
    tenant: Vec<u8>,
    queue: Vec<u8>,
    routing_key: Option<Vec<u8>>,
    seconds: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Question {
    Begin(Begin),
    Next(u64),
}

impl Question {
    fn of(query: &str) -> Result<Self, &'static str> {
        let mut parts = BTreeMap::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or("a part of the question has no =")?;
            let value = decoded(value).ok_or("% is followed by two hexadecimal digits")?;
            if parts.insert(name, value).is_some() {
                return Err("a part of the question is there twice");
            }
        }
        let number = |value: Vec<u8>| String::from_utf8(value).ok()?.parse::<u64>().ok();
        let question = if let Some(id) = parts.remove("id") {
            Self::Next(number(id).ok_or("id is a number")?)
        } else {
            let queue = parts
                .remove("queue")
                .ok_or("name a queue: /trace?queue=NAME")?;
            let seconds = match parts.remove("seconds") {
                None => SECONDS_DEFAULT,
                Some(seconds) => number(seconds)
                    .filter(|seconds| (1..=SECONDS_MAX).contains(seconds))
                    .ok_or("seconds is a number from 1 to 3600")?,
            };
            Self::Begin(Begin {
                tenant: parts.remove("tenant").unwrap_or_default(),
                queue,
                routing_key: parts.remove("key"),
                seconds,
            })
        };
        if parts.is_empty() {
            Ok(question)
        } else {
            Err("a question has queue, and may have tenant, key and seconds; or it has id alone")
        }
    }
}

/// Bytes as they may stand in a question.
#[must_use]
pub fn encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        rest = after;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
    }
    Some(bytes)
}

impl Shared {
    /// Asks every core to follow the message: the one that has the queue does.
    async fn begin_trace(&self, begin: Begin) -> Result<Trace, Refusal> {
        const SILENT: Refusal = (StatusCode::SERVICE_UNAVAILABLE, "a core does not answer");
        const FULL: Refusal = (
            StatusCode::SERVICE_UNAVAILABLE,
            "as many messages are followed as may be; ask again in a while",
        );
        let _round = self.round.acquire().await; // never closed
        if !self.traces.has_room() {
            return Err(FULL);
        }
        let (events, told) = flume::bounded(EVENTS_MAX);
        let mut asked = Vec::new();
        for port in &self.options.cores {
            let (reply, answer) = flume::bounded(1);
            let request = AdminRequest::Follow(Box::new(FollowRequest {
                tenant: begin.tenant.clone(),
                queue: begin.queue.clone(),
                routing_key: begin.routing_key.clone(),
                lasts_ms: begin.seconds * 1_000,
                reply,
                events: events.clone(),
            }));
            port.requests.try_send(request).map_err(|_| SILENT)?;
            port.bell.ring();
            asked.push(answer);
        }
        let deadline = tokio::time::Instant::now() + self.options.answer_within;
        let mut refusal = (StatusCode::NOT_FOUND, "there is no such queue");
        let mut found = None;
        for (core, answer) in asked.into_iter().enumerate() {
            match tokio::time::timeout_at(deadline, answer.recv_async()).await {
                Ok(Ok(Ok(_))) => found = Some(core),
                Ok(Ok(Err(NotFollowed::TooMany))) => refusal = FULL,
                Ok(Ok(Err(NotFollowed::TenantUnknown))) => refusal.1 = "there is no such tenant",
                Ok(Ok(Err(NotFollowed::NotServing))) | Ok(Err(_)) | Err(_) => refusal = SILENT,
                Ok(Ok(Err(NotFollowed::QueueUnknown | NotFollowed::Elsewhere(_)))) => {}
            }
        }
        let core = found.ok_or(refusal)?;
        Ok(Trace {
            id: self.traces.add(core, told),
            core,
            events: Vec::new(),
            ended: false,
        })
    }

    async fn next_events(&self, id: u64) -> Result<Trace, Refusal> {
        let gone = "nothing is followed under this number; it has ended, or nobody asked for it";
        let (core, told) = self.traces.find(id).ok_or((StatusCode::NOT_FOUND, gone))?;
        let mut trace = Trace {
            id,
            core,
            events: Vec::new(),
            ended: false,
        };
        match tokio::time::timeout(EVENT_WITHIN, told.recv_async()).await {
            Ok(Ok(first)) => trace.events.push(Event::of(first)),
            // The core has ended, or found no room for an event.
            Ok(Err(_)) => trace.ended = true,
            Err(_) => {}
        }
        trace.events.extend(told.try_iter().map(Event::of));
        trace.ended |= matches!(
            trace.events.last(),
            Some(Event {
                what: What::Ended { .. },
                ..
            })
        );
        if trace.ended {
            self.traces.remove(id);
        }
        Ok(trace)
    }
}

/// The JSON of `/trace`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Under which number to ask for more.
    pub id: u64,
    /// The core of the queue.
    pub core: usize,
    /// What has happened since this was last asked.
    pub events: Vec<Event>,
    /// Nothing more will.
    pub ended: bool,
}

/// Something that happened to the message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, in ns of the machine's monotonic clock.
    pub at_ns: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happens to a message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// Its frame was taken up by the core of its producer.
    Received {
        /// That core.
        core: u16,
        /// The producer's connection there.
        connection: u64,
        /// The producer's name.
        producer: u64,
        /// The message's sequence there.
        sequence: u64,
    },
    /// It was routed, and has its place in the queue.
    Appended {
        /// Place in the queue.
        queue_sequence: u64,
        /// Its bytes in the journal.
        bytes: u32,
        /// The journal's block; none if the queue is volatile.
        block: Option<u64>,
        /// The segment that this is in.
        segment: Option<u32>,
    },
    /// The write of its block began.
    Submitted,
    /// Its block, and all before it, are known to be synced.
    Durable,
    /// Its producer was told.
    Confirmed,
    /// It may be delivered.
    Ready,
    /// It was given to a consumer's connection.
    Sent {
        /// The consumer.
        consumer: u64,
        /// The core of its connection.
        core: u16,
        /// The connection there.
        connection: u64,
        /// The delivery's tag.
        tag: u64,
        /// Earlier deliveries.
        delivery_count: u32,
    },
    /// It was settled: `acked`, `rejected`, `requeued`, `by_sending` (its consumer does not ack) or
    /// `purged`.
    Settled {
        /// How.
        outcome: String,
    },
    /// Its consumer went and had not settled it.
    Returned {
        /// The consumer.
        consumer: u64,
    },
    /// Nothing more is said: `forgotten` (its settling is as durable as it was), `queue_deleted`,
    /// `journal_failed` or `timed_out`.
    Ended {
        /// Why.
        why: String,
    },
}

impl Event {
    fn of(traced: Traced) -> Self {
        let what = match traced.event {
            TraceEvent::Received {
                core,
                conn,
                producer,
                sequence,
            } => What::Received {
                core: core.0,
                connection: conn.0,
                producer: producer.0,
                sequence: sequence.0,
            },
            TraceEvent::Appended {
                queue_sequence,
                bytes,
                block,
            } => What::Appended {
                queue_sequence: queue_sequence.0,
                bytes,
                block: block.map(|(block, _)| block),
                segment: block.map(|(_, segment)| segment.0),
            },
            TraceEvent::Submitted => What::Submitted,
            TraceEvent::Durable => What::Durable,
            TraceEvent::Confirmed => What::Confirmed,
            TraceEvent::Ready => What::Ready,
            TraceEvent::Sent {
                consumer,
                core,
                conn,
                tag,
                delivery_count,
            } => What::Sent {
                consumer,
                core: core.0,
                connection: conn.0,
                tag,
                delivery_count,
            },
            TraceEvent::Settled(outcome) => What::Settled {
                outcome: match outcome {
                    TraceOutcome::Acked => "acked",
                    TraceOutcome::Rejected => "rejected",
                    TraceOutcome::Requeued => "requeued",
                    TraceOutcome::BySending => "by_sending",
                    TraceOutcome::Purged => "purged",
                }
                .into(),
            },
            TraceEvent::Returned { consumer } => What::Returned { consumer },
            TraceEvent::Ended(end) => What::Ended {
                why: match end {
                    TraceEnd::Forgotten => "forgotten",
                    TraceEnd::QueueDeleted => "queue_deleted",
                    TraceEnd::JournalFailed => "journal_failed",
                    TraceEnd::TimedOut => "timed_out",
                }
                .into(),
            },
        };
        Self {
            at_ns: traced.at.0,
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_wrong_ones_refused() {
        let name = b"a/b c%\xff";
        let query = format!("queue={}&seconds=5", encoded(name));
        assert_eq!(query, "queue=a%2Fb%20c%25%FF&seconds=5");
        let begin = Begin {
            tenant: Vec::new(),
            queue: name.to_vec(),
            routing_key: None,
            seconds: 5,
        };
        assert_eq!(Question::of(&query), Ok(Question::Begin(begin)));
        assert_eq!(Question::of("id=7"), Ok(Question::Next(7)));
        let all = "queue=q&tenant=t&key=k";
        let begin = Begin {
            tenant: b"t".to_vec(),
            queue: b"q".to_vec(),
            routing_key: Some(b"k".to_vec()),
            seconds: SECONDS_DEFAULT,
        };
        assert_eq!(Question::of(all), Ok(Question::Begin(begin)));
        for wrong in [
            "",
            "tenant=t",
            "queue",
            "queue=q&queue=q",
            "queue=%4",
            "queue=%zz",
            "queue=q&seconds=0",
            "queue=q&seconds=3601",
            "queue=q&colour=red",
            "id=x",
            "id=7&queue=q",
        ] {
            assert!(Question::of(wrong).is_err(), "{wrong}");
        }
    }
}
