//! Histories as text: one line per event, words between single spaces. Does not judge.
//!
//! ```text
//! queue <queue> durable|volatile
//! dropped <queue>
//! sent <producer>.<sequence> <hash> none|volatile|durable [<queue>[?],...]
//! confirmed <producer>.<first>-<last> volatile|durable
//! refused <producer>.<sequence> unroutable|other
//! unknown <producer>.<sequence>
//! consumer <consumer> <queue> acks|onsend
//! delivered <consumer> <queue> <place> <producer>.<sequence> <hash> first|again <count>
//! acked <queue> <producer>.<sequence>
//! ackconfirmed <queue> <producer>.<sequence>
//! returned <queue> <producer>.<sequence>
//! apart <queue>
//! closed <consumer>
//! lost <consumer>
//! crash
//! calm
//! end
//! ```
//!
//! Producers and hashes are hexadecimal without prefix, all else decimal; `?` marks a queue that
//! may be reached; an empty line and one that starts with `#` say nothing. A line is one `write`
//! to a file opened for appending, so a harness of many processes needs nothing else, and a line
//! cut off by a kill is the last one and may be dropped ([`read`] refuses it, so drop it yourself).

use core::fmt;
use std::io::{self, BufRead, Write};

use crate::event::{
    AckMode, ConsumerNo, Delivery, Durability, Event, Level, MessageId, QueueNo, Refusal, Target,
};

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A line that is no event, or a failure to read.
#[derive(Debug)]
pub enum ReadError {
    /// The source failed.
    Io(io::Error),
    /// This line, counted from 1, is no event.
    Line {
        /// Its number.
        number: u64,
        /// Its start.
        text: String,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot read the history: {error}"),
            Self::Line { number, text } => write!(f, "line {number} is no event: {text}"),
        }
    }
}

impl std::error::Error for ReadError {}

/// Reads a whole history and gives every event to `take`.
///
/// # Errors
/// If the source fails or a line is no event; events before it were given.
pub fn read(mut from: impl BufRead, mut take: impl FnMut(Event<'_>)) -> Result<(), ReadError> {
    let mut line = Vec::new();
    let mut targets = Vec::new();
    for number in 1.. {
        line.clear();
        let read = io::Read::take(&mut from, LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)
            .map_err(ReadError::Io)?;
        if read == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            if let Some(event) = parse(&line, &mut targets) {
                take(event);
                continue;
            }
        }
        line.truncate(200);
        return Err(ReadError::Line {
            number,
            text: String::from_utf8_lossy(&line).into_owned(),
        });
    }
    Ok(())
}

/// Reads one line without its end; `targets` holds what the event borrows.
#[must_use]
pub fn parse<'a>(line: &[u8], targets: &'a mut Vec<Target>) -> Option<Event<'a>> {
    let mut words = Words { rest: line };
    let event = match words.next()? {
        b"queue" => Event::Queue {
            queue: words.queue()?,
            durability: match words.next()? {
                b"durable" => Durability::Durable,
                b"volatile" => Durability::Volatile,
                _ => return None,
            },
        },
        b"dropped" => Event::Dropped {
            queue: words.queue()?,
        },
        b"died" => Event::Died {
            queue: words.queue()?,
            message: words.message()?,
        },
        b"sent" => {
            let message = words.message()?;
            let hash = hex(words.next()?)?;
            let level = level(words.next()?)?;
            targets.clear();
            if let Some(list) = words.next() {
                for item in list.split(|byte| *byte == b',') {
                    targets.push(match item.split_last()? {
                        (b'?', item) => Target::May(QueueNo(number(item)?)),
                        _ => Target::Must(QueueNo(number(item)?)),
                    });
                }
            }
            Event::Sent {
                message,
                hash,
                level,
                targets,
            }
        }
        b"confirmed" => {
            let (producer, range) = split(words.next()?, b'.')?;
            let (first, last) = split(range, b'-')?;
            Event::Confirmed {
                producer: hex(producer)?,
                first: number(first)?,
                last: number(last)?,
                level: level(words.next()?)?,
            }
        }
        b"refused" => Event::Refused {
            message: words.message()?,
            why: match words.next()? {
                b"unroutable" => Refusal::Unroutable,
                b"other" => Refusal::Other,
                _ => return None,
            },
        },
        b"unknown" => Event::Unknown {
            message: words.message()?,
        },
        b"consumer" => Event::Consumer {
            consumer: words.consumer()?,
            queue: words.queue()?,
            mode: match words.next()? {
                b"acks" => AckMode::Acks,
                b"onsend" => AckMode::OnSend,
                _ => return None,
            },
        },
        b"delivered" => Event::Delivered(Delivery {
            consumer: words.consumer()?,
            queue: words.queue()?,
            place: number(words.next()?)?,
            message: words.message()?,
            hash: hex(words.next()?)?,
            redelivered: match words.next()? {
                b"first" => false,
                b"again" => true,
                _ => return None,
            },
            count: number(words.next()?)?,
        }),
        b"acked" => Event::Acked {
            queue: words.queue()?,
            message: words.message()?,
        },
        b"ackconfirmed" => Event::AckConfirmed {
            queue: words.queue()?,
            message: words.message()?,
        },
        b"returned" => Event::Returned {
            queue: words.queue()?,
            message: words.message()?,
        },
        b"apart" => Event::Apart {
            queue: words.queue()?,
        },
        b"closed" => Event::ConsumerClosed {
            consumer: words.consumer()?,
        },
        b"lost" => Event::ConsumerLost {
            consumer: words.consumer()?,
        },
        b"crash" => Event::Crash,
        b"calm" => Event::Calm,
        b"end" => Event::End,
        _ => return None,
    };
    words.rest.is_empty().then_some(event)
}

/// Writes one event as a line.
///
/// # Errors
/// If the sink fails.
pub fn write(to: &mut impl Write, event: &Event<'_>) -> io::Result<()> {
    let level_word = |level: Level| match level {
        Level::None => "none",
        Level::Volatile => "volatile",
        Level::Durable => "durable",
    };
    match *event {
        Event::Queue { queue, durability } => {
            let word = match durability {
                Durability::Durable => "durable",
                Durability::Volatile => "volatile",
            };
            writeln!(to, "queue {} {word}", queue.0)
        }
        Event::Dropped { queue } => writeln!(to, "dropped {}", queue.0),
        Event::Died { queue, message } => writeln!(to, "died {} {message}", queue.0),
        Event::Sent {
            message,
            hash,
            level,
            targets,
        } => {
            write!(to, "sent {message} {hash:x} {}", level_word(level))?;
            for (idx, target) in targets.iter().enumerate() {
                let separator = if idx == 0 { ' ' } else { ',' };
                match target {
                    Target::Must(queue) => write!(to, "{separator}{}", queue.0)?,
                    Target::May(queue) => write!(to, "{separator}{}?", queue.0)?,
                }
            }
            writeln!(to)
        }
        Event::Confirmed {
            producer,
            first,
            last,
            level,
        } => writeln!(
            to,
            "confirmed {producer:x}.{first}-{last} {}",
            level_word(level)
        ),
        Event::Refused { message, why } => {
            let word = match why {
                Refusal::Unroutable => "unroutable",
                Refusal::Other => "other",
            };
            writeln!(to, "refused {message} {word}")
        }
        Event::Unknown { message } => writeln!(to, "unknown {message}"),
        Event::Consumer {
            consumer,
            queue,
            mode,
        } => {
            let word = match mode {
                AckMode::Acks => "acks",
                AckMode::OnSend => "onsend",
            };
            writeln!(to, "consumer {} {} {word}", consumer.0, queue.0)
        }
        Event::Delivered(delivery) => writeln!(
            to,
            "delivered {} {} {} {} {:x} {} {}",
            delivery.consumer.0,
            delivery.queue.0,
            delivery.place,
            delivery.message,
            delivery.hash,
            if delivery.redelivered {
                "again"
            } else {
                "first"
            },
            delivery.count
        ),
        Event::Acked { queue, message } => writeln!(to, "acked {} {message}", queue.0),
        Event::AckConfirmed { queue, message } => {
            writeln!(to, "ackconfirmed {} {message}", queue.0)
        }
        Event::Returned { queue, message } => writeln!(to, "returned {} {message}", queue.0),
        Event::Apart { queue } => writeln!(to, "apart {}", queue.0),
        Event::ConsumerClosed { consumer } => writeln!(to, "closed {}", consumer.0),
        Event::ConsumerLost { consumer } => writeln!(to, "lost {}", consumer.0),
        Event::Crash => writeln!(to, "crash"),
        Event::Calm => writeln!(to, "calm"),
        Event::End => writeln!(to, "end"),
    }
}

struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let (word, rest) = split(self.rest, b' ').unwrap_or((self.rest, &[]));
        self.rest = rest;
        Some(word)
    }

    fn queue(&mut self) -> Option<QueueNo> {
        self.next().and_then(number).map(QueueNo)
    }

    fn consumer(&mut self) -> Option<ConsumerNo> {
        self.next().and_then(number).map(ConsumerNo)
    }

    fn message(&mut self) -> Option<MessageId> {
        let (producer, sequence) = split(self.next()?, b'.')?;
        Some(MessageId {
            producer: hex(producer)?,
            sequence: number(sequence)?,
        })
    }
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..position], &bytes[position + 1..]))
}

fn level(word: &[u8]) -> Option<Level> {
    match word {
        b"none" => Some(Level::None),
        b"volatile" => Some(Level::Volatile),
        b"durable" => Some(Level::Durable),
        _ => None,
    }
}

fn number<N: TryFrom<u64>>(word: &[u8]) -> Option<N> {
    let mut value: u64 = 0;
    for byte in word {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    (!word.is_empty()).then(|| N::try_from(value).ok())?
}

fn hex(word: &[u8]) -> Option<u64> {
    if word.is_empty() || word.len() > 16 {
        return None;
    }
    word.iter().try_fold(0, |value: u64, byte| {
        let digit = (*byte as char).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}
