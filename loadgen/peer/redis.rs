//! Redis streams as a work queue, in RESP 2: XADD, a consumer group, and for what was worked on XACK and
//! XDEL, which keeps the stream as short as the queue. Knows the bytes; does not know sockets or times.

use std::collections::VecDeque;
use std::io::Write;

use super::{Codec, Event, Job, Payload, Which, Work, damaged, refused, words};
use crate::Result;

/// The consumer group of every stream.
const GROUP: &str = "load";
/// The field of an entry that holds the payload.
const FIELD: &[u8] = b"p";
/// Most entries of one read.
const COUNT_MAX: u32 = 1_000;
/// How long a read waits for entries, in ms. A goodbye waits as long.
const BLOCK_MS: u32 = 200;
/// Longest line, in bytes: what is longer is damage.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Longest string, in bytes.
const BULK_BYTES_MAX: usize = 2 << 20;
/// Most elements of an array.
const ARRAY_MAX: usize = 1 << 20;

/// What an answer will be to; answers come in the order of the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Something that has to be done before the connection is ready.
    SetUp,
    /// A publish of a role.
    Publish(usize),
    /// Acks or deletions.
    Settle,
    /// A read.
    Read,
    /// The goodbye.
    Quit,
}

/// One connection.
pub(super) struct Redis {
    work: Work,
    /// The stream of each role.
    keys: Vec<String>,
    /// For each stream of the run, what a publish to it starts with: all before the payload's length.
    heads: Vec<Vec<u8>>,
    /// The command that reads.
    read: Vec<u8>,
    asked: VecDeque<Asked>,
    /// Publishes of each role that were answered.
    answered: Vec<u64>,
    /// Ids of each role that are not acked, as strings of the protocol, and how many.
    ids: Vec<(Vec<u8>, u64)>,
    /// What is left of the answer to a read, once it has begun.
    reading: Option<Reading>,
    /// A read has been sent and not been answered whole.
    is_reading: bool,
    is_closing: bool,
}

/// An answer to a read, part by part.
#[derive(Default)]
struct Reading {
    streams: usize,
    entries: usize,
    role: usize,
}

impl Redis {
    pub(super) fn new(job: Job<'_>) -> Self {
        let keys = job.names();
        let consumer = format!("consumer-{}", job.number);
        let (count, block) = (job.plan.credit.min(COUNT_MAX), BLOCK_MS);
        let mut words = vec!["XREADGROUP".to_owned(), "GROUP".into(), GROUP.into()];
        words.extend([consumer, "COUNT".into(), count.to_string()]);
        words.extend(["BLOCK".into(), block.to_string(), "STREAMS".into()]);
        words.extend(keys.iter().cloned());
        words.extend(keys.iter().map(|_| ">".to_owned()));
        let mut read = Vec::new();
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        put_command(&mut read, &words);
        Self {
            work: job.work,
            answered: vec![0; keys.len()],
            ids: vec![(Vec::new(), 0); keys.len()],
            heads: job.all_names().iter().map(|name| head_of(name)).collect(),
            keys,
            read,
            asked: VecDeque::new(),
            reading: None,
            is_reading: false,
            is_closing: false,
        }
    }

    /// A short answer.
    fn answer<'b>(&mut self, asked: Asked, cursor: &mut Cursor<'_>) -> Result<Option<Event<'b>>> {
        let Some((kind, line)) = cursor.line()? else {
            return Ok(None);
        };
        let event = match (asked, kind) {
            (Asked::SetUp, b'+' | b':') => self.set_up_done(),
            // The group is there already.
            (Asked::SetUp, b'-') if line.starts_with(b"BUSYGROUP") => self.set_up_done(),
            (Asked::SetUp, b'-') => return Err(refused("a stream", words(line))),
            (Asked::Publish(role), b'$') => {
                if cursor.rest_of_bulk(line)?.is_none() {
                    return Ok(None);
                }
                Event::Confirmed(self.outcome(role))
            }
            (Asked::Publish(role), b'-') => Event::Refused(self.outcome(role), words(line)),
            (Asked::Settle, b':') => Event::Nothing,
            (Asked::Settle, b'-') => return Err(refused("an ack", words(line))),
            (Asked::Quit, b'+') => Event::Closed,
            (_, b'-') => return Err(refused("a command", words(line))),
            _ => return Err(damaged(format!("{:?} for {asked:?}", char::from(kind)))),
        };
        self.asked.pop_front();
        Ok(Some(event))
    }

    fn set_up_done<'b>(&self) -> Event<'b> {
        match self.asked.get(1) {
            Some(Asked::SetUp) => Event::Nothing,
            _ => Event::Ready,
        }
    }

    /// The next publish of a role has its outcome.
    fn outcome(&mut self, role: usize) -> Which {
        self.answered[role] += 1;
        Which {
            role,
            sequence: self.answered[role],
            is_multiple: false,
        }
    }

    /// One part of the answer to a read: its start, the head of a stream or an entry.
    fn read_part<'b>(&mut self, cursor: &mut Cursor<'b>) -> Result<Option<Event<'b>>> {
        let Some(reading) = &mut self.reading else {
            let Some((kind, line)) = cursor.line()? else {
                return Ok(None);
            };
            let streams = match kind {
                b'*' => length_of(line, ARRAY_MAX)?,
                b'-' => return Err(refused("a read", words(line))),
                _ => return Err(damaged(format!("{:?} for a read", char::from(kind)))),
            };
            self.reading = streams.map(|streams| Reading {
                streams,
                ..Reading::default()
            });
            self.end_if_read();
            return Ok(Some(Event::Nothing));
        };
        if reading.entries == 0 {
            let Some(key) = cursor.headed_array(2)? else {
                return Ok(None);
            };
            let Some(entries) = cursor.any_array()? else {
                return Ok(None);
            };
            let role = self.keys.iter().position(|own| own.as_bytes() == key);
            reading.role = role.ok_or_else(|| damaged(format!("the stream {:?}", words(key))))?;
            reading.streams = reading.streams.saturating_sub(1);
            reading.entries = entries;
            self.end_if_read();
            return Ok(Some(Event::Nothing));
        }
        let Some(id) = cursor.headed_array(2)? else {
            return Ok(None);
        };
        let Some(field) = cursor.headed_array(2)? else {
            return Ok(None);
        };
        if field != FIELD {
            return Err(damaged(format!("the field {:?}", words(field))));
        }
        let Some(payload) = cursor.bulk()? else {
            return Ok(None);
        };
        reading.entries -= 1;
        let role = reading.role;
        let (ids, count) = &mut self.ids[role];
        put_bulk(ids, id);
        *count += 1;
        self.end_if_read();
        Ok(Some(Event::Delivered {
            role,
            payload,
            is_redelivered: false, // only new entries are asked for
        }))
    }

    /// Notes that the answer to a read is whole.
    fn end_if_read(&mut self) {
        let is_more = |own: &Reading| own.entries > 0 || own.streams > 0;
        if self.reading.as_ref().is_some_and(is_more) {
            return;
        }
        self.reading = None;
        self.is_reading = false;
        self.asked.pop_front();
    }
}

impl Codec for Redis {
    fn open(&mut self, out: &mut Vec<u8>) {
        for key in &self.keys {
            match self.work {
                Work::Declare => put_command(
                    out,
                    &[
                        b"XGROUP",
                        b"CREATE",
                        key.as_bytes(),
                        GROUP.as_bytes(),
                        b"0",
                        b"MKSTREAM",
                    ],
                ),
                Work::Delete => put_command(out, &[b"DEL", key.as_bytes()]),
                Work::Produce | Work::Consume => continue,
            }
            self.asked.push_back(Asked::SetUp);
        }
        put_command(out, &[b"PING"]);
        self.asked.push_back(Asked::SetUp);
    }

    fn next<'b>(
        &'b mut self,
        input: &'b [u8],
        _out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Event<'b>)>> {
        if input.is_empty() {
            return Ok(None);
        }
        let mut cursor = Cursor { rest: input };
        let event = match self.asked.front().copied() {
            Some(Asked::Read) => self.read_part(&mut cursor)?,
            Some(asked) => self.answer(asked, &mut cursor)?,
            None => return Err(damaged("an answer to nothing")),
        };
        Ok(event.map(|event| (input.len() - cursor.rest.len(), event)))
    }

    fn publish(&mut self, out: &mut Vec<u8>, role: usize, queue: u32, payload: Payload<'_>) {
        out.extend_from_slice(&self.heads[queue as usize]);
        put_number(out, b'$', payload.length());
        payload.append(out);
        out.extend_from_slice(b"\r\n");
        self.asked.push_back(Asked::Publish(role));
    }

    fn settle(&mut self, out: &mut Vec<u8>) -> u64 {
        let mut sum = 0;
        for (key, (ids, count)) in self.keys.iter().zip(&mut self.ids) {
            if *count == 0 {
                continue;
            }
            for command in [
                &[b"XACK", key.as_bytes(), GROUP.as_bytes()][..],
                &[b"XDEL", key.as_bytes()],
            ] {
                put_number(out, b'*', command.len() + *count as usize);
                command.iter().for_each(|word| put_bulk(out, word));
                out.extend_from_slice(ids);
                self.asked.push_back(Asked::Settle);
            }
            sum += *count;
            ids.clear();
            *count = 0;
        }
        let is_ready = self.asked.front() != Some(&Asked::SetUp);
        if self.work == Work::Consume && is_ready && !self.is_reading && !self.is_closing {
            out.extend_from_slice(&self.read);
            self.asked.push_back(Asked::Read);
            self.is_reading = true;
        }
        sum
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        self.is_closing = true;
        put_command(out, &[b"QUIT"]);
        self.asked.push_back(Asked::Quit);
    }
}

/// What a publish to a stream starts with: the id is the server's to choose.
fn head_of(name: &str) -> Vec<u8> {
    let mut head = b"*5\r\n$4\r\nXADD\r\n".to_vec();
    put_bulk(&mut head, name.as_bytes());
    put_bulk(&mut head, b"*");
    put_bulk(&mut head, FIELD);
    head
}

/// Appends a kind, a number and the end of the line.
fn put_number(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    write!(out, "{number}\r\n").expect("memory takes what is written");
}

fn put_bulk(out: &mut Vec<u8>, text: &[u8]) {
    put_number(out, b'$', text.len());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

fn put_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    put_number(out, b'*', words.len());
    words.iter().for_each(|word| put_bulk(out, word));
}

/// A length, of at most `max`; none is the protocol's null.
fn length_of(line: &[u8], max: usize) -> Result<Option<usize>> {
    if line == b"-1" {
        return Ok(None);
    }
    let text = std::str::from_utf8(line).ok();
    let length = text.and_then(|text| text.parse::<usize>().ok());
    let length = length.filter(|length| *length <= max);
    let damage = || damaged(format!("the length {:?}", words(line)));
    length.map(Some).ok_or_else(damage)
}

/// Walks through what was received. None is what has not come whole.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// A line: its first byte, and what follows it.
    fn line(&mut self) -> Result<Option<(u8, &'a [u8])>> {
        let looked = &self.rest[..self.rest.len().min(LINE_BYTES_MAX)];
        let Some(end) = looked.windows(2).position(|pair| pair == b"\r\n") else {
            return match looked.len() {
                LINE_BYTES_MAX => Err(damaged("a line without an end")),
                _ => Ok(None),
            };
        };
        let (line, rest) = (&self.rest[..end], &self.rest[end + 2..]);
        let (kind, line) = line.split_first().ok_or_else(|| damaged("an empty line"))?;
        self.rest = rest;
        Ok(Some((*kind, line)))
    }

    /// The bytes of a string whose length has been read.
    fn rest_of_bulk(&mut self, length: &[u8]) -> Result<Option<&'a [u8]>> {
        let length = length_of(length, BULK_BYTES_MAX)?
            .ok_or_else(|| damaged("nothing in the place of a string"))?;
        let Some((text, rest)) = self.rest.split_at_checked(length) else {
            return Ok(None);
        };
        let Some((end, rest)) = rest.split_first_chunk::<2>() else {
            return Ok(None);
        };
        if end != b"\r\n" {
            return Err(damaged("a string that is longer than it says"));
        }
        self.rest = rest;
        Ok(Some(text))
    }

    /// A string.
    fn bulk(&mut self) -> Result<Option<&'a [u8]>> {
        match self.line()? {
            None => Ok(None),
            Some((b'$', length)) => self.rest_of_bulk(length),
            Some((kind, _)) => Err(damaged(format!("{:?} for a string", char::from(kind)))),
        }
    }

    /// The start of an array: how many elements there are.
    fn any_array(&mut self) -> Result<Option<usize>> {
        match self.line()? {
            None => Ok(None),
            Some((b'*', length)) => length_of(length, ARRAY_MAX)?
                .map(Some)
                .ok_or_else(|| damaged("nothing in the place of an array")),
            Some((kind, _)) => Err(damaged(format!("{:?} for an array", char::from(kind)))),
        }
    }

    /// The start of an array of so many elements, and its first, which is a string.
    fn headed_array(&mut self, length: usize) -> Result<Option<&'a [u8]>> {
        match self.any_array()? {
            None => Ok(None),
            Some(found) if found == length => self.bulk(),
            Some(found) => Err(damaged(format!("{found} elements for {length}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Seen, damage, error_of, feed, job, one, plan, stamp};
    use super::*;
    use crate::plan::Via;

    fn make(work: Work) -> Redis {
        Redis::new(job(&plan(Via::Redis), work))
    }

    fn publish_thrice(codec: &mut Redis, out: &mut Vec<u8>) {
        codec.open(out);
        for _ in 0..3 {
            let stamp = stamp();
            let payload = Payload {
                noise: b"abc",
                stamp,
            };
            codec.publish(out, 0, 0, payload);
        }
    }

    fn begin_to_read(codec: &mut Redis, out: &mut Vec<u8>) {
        codec.open(out);
        let ready = codec.next(b"+PONG\r\n", out).expect("a pong");
        assert_eq!(ready, Some((7, Event::Ready)));
        assert_eq!(codec.settle(out), 0);
    }

    #[test]
    fn a_message_is_an_entry() {
        let (mut codec, mut out) = (make(Work::Produce), Vec::new());
        codec.open(&mut out);
        assert_eq!(out, b"*1\r\n$4\r\nPING\r\n");
        out.clear();
        let stamp = stamp();
        let payload = Payload {
            noise: b"abc",
            stamp,
        };
        codec.publish(&mut out, 0, 0, payload);
        let head = b"*5\r\n$4\r\nXADD\r\n$6\r\nload-0\r\n$1\r\n*\r\n$1\r\np\r\n$35\r\nabc";
        assert_eq!(out, [&head[..], &stamp, b"\r\n"].concat());
    }

    #[test]
    fn answers_belong_to_publishes_in_their_order() {
        let input = b"+PONG\r\n$3\r\n5-0\r\n-OOM command not allowed\r\n$3\r\n5-1\r\n";
        let (seen, said) = feed(|| make(Work::Produce), publish_thrice, input);
        let refused = Seen::Refused(one(0, 2), "OOM command not allowed".into());
        let confirmed = |sequence| Seen::Confirmed(one(0, sequence));
        assert_eq!(seen, [Seen::Ready, confirmed(1), refused, confirmed(3)]);
        assert!(said.is_empty());
        damage(|| make(Work::Produce), publish_thrice, input);
    }

    #[test]
    fn what_was_read_is_acked_and_deleted_and_more_is_read() {
        let input = b"*1\r\n*2\r\n$6\r\nload-0\r\n*2\r\n\
            *2\r\n$3\r\n7-0\r\n*2\r\n$1\r\np\r\n$4\r\none\n\r\n\
            *2\r\n$3\r\n7-1\r\n*2\r\n$1\r\np\r\n$5\r\n\r\n$1\r\r\n";
        let (seen, said) = feed(|| make(Work::Consume), begin_to_read, input);
        let delivered = |payload: &[u8]| Seen::Delivered(0, payload.to_vec(), false);
        assert_eq!(seen, [delivered(b"one\n"), delivered(b"\r\n$1\r")]);
        let acks = b"*5\r\n$4\r\nXACK\r\n$6\r\nload-0\r\n$4\r\nload\r\n$3\r\n7-0\r\n$3\r\n7-1\r\n\
            *4\r\n$4\r\nXDEL\r\n$6\r\nload-0\r\n$3\r\n7-0\r\n$3\r\n7-1\r\n";
        let read = b"*11\r\n$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n$4\r\nload\r\n$10\r\nconsumer-0\r\n\
            $5\r\nCOUNT\r\n$3\r\n500\r\n$5\r\nBLOCK\r\n$3\r\n200\r\n$7\r\nSTREAMS\r\n$6\r\nload-0\r\n\
            $1\r\n>\r\n";
        let text = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(text, String::from_utf8_lossy(&[&acks[..], read].concat()));
        damage(|| make(Work::Consume), begin_to_read, input);
    }

    #[test]
    fn a_read_that_found_nothing_is_sent_again_until_the_goodbye() {
        let (_, said) = feed(|| make(Work::Consume), begin_to_read, b"*-1\r\n");
        assert!(said.starts_with(b"*11\r\n$10\r\nXREADGROUP"));
        let close = |codec: &mut Redis, out: &mut Vec<u8>| {
            begin_to_read(codec, out);
            codec.close(out);
        };
        let (seen, said) = feed(|| make(Work::Consume), close, b"*-1\r\n+OK\r\n");
        assert_eq!((seen, said), (vec![Seen::Closed], Vec::new()));
    }

    #[test]
    fn streams_are_made_and_may_be_there() {
        let open = |codec: &mut Redis, out: &mut Vec<u8>| codec.open(out);
        let mut out = Vec::new();
        make(Work::Declare).open(&mut out);
        let create =
            b"*6\r\n$6\r\nXGROUP\r\n$6\r\nCREATE\r\n$6\r\nload-0\r\n$4\r\nload\r\n$1\r\n0\r\n\
            $8\r\nMKSTREAM\r\n*1\r\n$4\r\nPING\r\n";
        assert_eq!(out, create);
        let busy = b"-BUSYGROUP Consumer Group name already exists\r\n+PONG\r\n";
        for input in [&b"+OK\r\n+PONG\r\n"[..], busy] {
            let (seen, _) = feed(|| make(Work::Declare), open, input);
            assert_eq!(seen, [Seen::Ready]);
        }
        let wrong = b"-WRONGTYPE Operation against a key\r\n";
        let error = error_of(|| make(Work::Declare), open, wrong);
        assert!(error.contains("WRONGTYPE"), "{error}");
    }

    #[test]
    fn what_no_server_sends_is_an_error() {
        for (input, says) in [
            (&b"*1\r\n*3\r\n"[..], "3 elements for 2"),
            (b"*1\r\n*2\r\n$5\r\nother\r\n*0\r\n", "the stream \"other\""),
            (b"*1\r\n*2\r\n$9999999999\r\n", "the length"),
            (b"*99999999\r\n", "the length"),
            (b":1\r\n", "for a read"),
            (b"-NOGROUP No such key\r\n", "NOGROUP"),
            (b"\r\n", "an empty line"),
        ] {
            let error = error_of(|| make(Work::Consume), begin_to_read, input);
            assert!(error.contains(says), "{error}");
        }
        let long = vec![b'+'; LINE_BYTES_MAX];
        let error = error_of(|| make(Work::Consume), begin_to_read, &long);
        assert!(error.contains("without an end"), "{error}");
    }
}
