//! The messages of a data directory that no broker uses, read by the broker's own recovery and put
//! into a history as if somebody had consumed them. Does not judge.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use ringpost_check::{AckMode, Delivery, Event, QueueNo};
use ringpost_wire::envelope;

use crate::Outcome;
use crate::broker::{Program, read_text};
use crate::producer::{hash_of, name_of};
use crate::tool;
use crate::worker::Shared;

/// What `ringpost verify --messages` finds: places, earlier deliveries and bytes by queue.
pub type Messages = BTreeMap<String, Vec<(u64, u32, Vec<u8>)>>;

/// Lets the broker's own recovery read a data directory.
///
/// # Errors
/// It finds damage, or what it says cannot be understood.
pub fn messages(program: &Program, directory: &Path) -> Outcome<Messages> {
    let path = directory.join("messages.json");
    tool::command(&program.path.to_string_lossy(), ["verify", "--data-dir"])
        .arg(&program.data)
        .arg("--messages")
        .arg(&path)
        .done()?;
    let mut found = Messages::new();
    for line in read_text(&path)?.lines() {
        let wrong = || format!("no line of messages: {line:.200}");
        let line: serde_json::Value = serde_json::from_str(line).map_err(|_| wrong())?;
        let number = |name: &str| line[name].as_u64().ok_or_else(wrong);
        let text = |name: &str| line[name].as_str().ok_or_else(wrong);
        let message = from_hex(text("message_hex")?).ok_or_else(wrong)?;
        let deliveries = number("delivery_count")? as u32;
        let queue = found.entry(text("queue")?.to_owned()).or_default();
        queue.push((number("queue_sequence")?, deliveries, message));
    }
    Ok(found)
}

/// A range that `ringpost verify` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damaged {
    /// Its name, as `ringpost repair` takes it.
    pub range: String,
    /// What is damaged, for people.
    pub what: String,
}

/// What `ringpost verify` names as damaged.
///
/// # Errors
/// It cannot be run, or what it says cannot be understood.
pub fn damaged(program: &Program) -> Outcome<Vec<Damaged>> {
    let output = Command::new(&program.path)
        .args(["verify", "--json", "--data-dir"])
        .arg(&program.data)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", program.path.display()))?;
    let lines = String::from_utf8_lossy(&output.stdout);
    if !matches!(output.status.code(), Some(0 | 4)) {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("verify ended with {}: {said}", output.status));
    }
    let damaged = |line: &str| {
        let fields: serde_json::Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| fields[name].as_str().map(str::to_owned);
        Some(Damaged {
            range: text("range")?,
            what: text("what")?,
        })
    };
    let wrong = |line: &str| format!("no line of damage: {line:.200}");
    let all = lines.lines();
    all.map(|line| damaged(line).ok_or_else(|| wrong(line)))
        .collect()
}

/// Lets `ringpost repair` give a range up.
///
/// # Errors
/// It does not.
pub fn give_up(program: &Program, damaged: &Damaged) -> Outcome<()> {
    tool::command(&program.path.to_string_lossy(), ["repair", "--data-dir"])
        .arg(&program.data)
        .arg("--accept-loss")
        .arg(&damaged.range)
        .done()
        .map(drop)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8; 2]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    rest.is_empty().then_some(())?;
    pairs.iter().map(byte).collect()
}

/// Puts what was found into a history, as if a consumer of each queue had been sent it, and ends it.
///
/// # Errors
/// It is no message, or of no queue that there is.
pub fn deliver(shared: &Shared, found: &Messages) -> Outcome<()> {
    for (name, messages) in found {
        let queue: QueueNo = shared
            .scene
            .queue_named(name)
            .ok_or_else(|| format!("a queue {name:?} that nobody declared"))?;
        let consumer = shared.consumer();
        let mode = AckMode::Acks;
        shared.history.record([Event::Consumer {
            consumer,
            queue,
            mode,
        }]);
        for (place, deliveries, message) in messages {
            let envelope = envelope::open(message)
                .map_err(|code| format!("message {place} of {name}: {code}"))?;
            shared.history.record([Event::Delivered(Delivery {
                consumer,
                queue,
                place: *place,
                message: name_of(envelope.payload()),
                hash: hash_of(message),
                redelivered: *deliveries > 0,
                count: *deliveries,
            })]);
        }
    }
    shared.history.record([Event::End]);
    Ok(())
}
