//! What readers of streams know: what lies at which offset, and how far groups have come. Does not know
//! frames, or which consumer is which.
//!
//! A world in three has a stream in each of its tenants. Its readers are no part of the history, which knows
//! queues whose messages are taken: only what the drain reads at the end is, each message once.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_check::{MessageId, QueueNo};
use ringpost_wire::table::{TableWriter, Value};

use crate::random::{Random, mix};

/// The stream of a tenant: it is never deleted or purged.
pub const STREAM: &str = "stream";
/// Groups of a stream.
const GROUPS: u64 = 3;

/// Whether a world has streams.
#[must_use]
pub fn is_in(seed: u64) -> bool {
    mix(seed ^ 0x57_4e_a1).is_multiple_of(3)
}

/// How many messages its streams retain, 0 = all.
#[must_use]
pub fn retained(seed: u64) -> u64 {
    match mix(seed ^ 0x5e_7a_17) % 4 {
        0 => 0,
        drawn => 15 * drawn * drawn,
    }
}

/// What makes a queue a stream.
#[must_use]
pub fn arguments() -> Vec<u8> {
    table(&[("x-queue-type", Value::Text(b"stream"))])
}

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (name, value) in entries {
        writer.put(name.as_bytes(), *value);
    }
    writer.finish().expect("a small table");
    bytes
}

/// A consumer of a stream, as its client sees it.
#[derive(Debug)]
pub struct Reader {
    /// Its group.
    pub group: Option<u64>,
    /// It begins with the first message, and sees every one that is retained.
    is_from_first: bool,
    /// It reads a third of the messages.
    is_filtered: bool,
    /// The next message, once it was told.
    next: Option<u64>,
    /// Where it began, or took over.
    began: u64,
    /// It was told that it is active, and may have taken over.
    is_new: bool,
    /// Offsets of what is not settled, by delivery tag.
    held: BTreeMap<u64, u64>,
    /// What of it was settled for good.
    settled: BTreeSet<u64>,
    /// What was gone before it got that.
    gone: BTreeSet<u64>,
}

/// Of a message by its tag, whether filtered readers get it.
fn is_chosen(bytes: usize) -> bool {
    bytes.is_multiple_of(3)
}

impl Reader {
    /// A reader as chance will have it, with its arguments.
    #[must_use]
    pub fn draw(random: &mut Random) -> (Self, Vec<u8>) {
        let group = (random.below(2) == 0).then(|| random.below(GROUPS));
        let is_filtered = group.is_none() && random.below(4) == 0;
        // All members of a group begin alike, so that whoever makes it is of no account.
        let start = match group {
            Some(_) => 0,
            None => random.below(4),
        };
        let offset = random.scale(1..=300) as i64;
        let name = format!("g{}", group.unwrap_or(0));
        let mut entries = vec![(
            "x-stream-offset",
            match start {
                0 => Value::Text(b"first"),
                1 => Value::Text(b"last"),
                2 => Value::Text(b"next"),
                _ => Value::I64(offset),
            },
        )];
        if group.is_some() {
            entries.push(("x-stream-group", Value::Text(name.as_bytes())));
            entries.push(("x-priority", Value::I8(random.below(3) as i8)));
        }
        if is_filtered {
            let condition = Value::Text(b"sys.body_bytes % 3 = 0");
            entries.push(("x-stream-filter", condition));
        }
        if random.below(6) == 0 {
            entries.push(("x-stream-rate", Value::I64(random.scale(20..=5_000) as i64)));
        }
        let reader = Self::new(group, start == 0, is_filtered);
        (reader, table(&entries))
    }

    /// The one that reads everything at the end, from there on, with its arguments.
    #[must_use]
    pub fn of_drain(from: u64) -> (Self, Vec<u8>) {
        let offset = Value::I64(from as i64);
        let reader = Self::new(None, from == 1, false);
        (reader, table(&[("x-stream-offset", offset)]))
    }

    const fn new(group: Option<u64>, is_from_first: bool, is_filtered: bool) -> Self {
        Self {
            group,
            is_from_first,
            is_filtered,
            next: None,
            began: 0,
            is_new: false,
            held: BTreeMap::new(),
            settled: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }

    /// It is active: where it goes on will be told, unless it was only to make way for one that has gone.
    pub fn is_active(&mut self) {
        self.is_new = true;
    }

    /// Whether it has read everything that was put into its stream, as far as anybody can say.
    #[must_use]
    pub fn has_all_of(&self, published: u64) -> bool {
        self.is_filtered || self.next.is_none_or(|next| next > published)
    }

    /// The offsets of deliveries that are settled.
    pub fn settle(&mut self, tags: &[u64]) -> Vec<u64> {
        tags.iter()
            .filter_map(|tag| self.held.remove(tag))
            .collect()
    }
}

/// How far a group has come.
#[derive(Default, Debug)]
struct Group {
    /// What members settled, or was gone before they got it.
    done: BTreeSet<u64>,
    /// Everything below is settled for good.
    safe: u64,
}

/// The streams of a world.
#[derive(Default, Debug)]
pub struct Streams {
    /// What lies where, for ever.
    known: BTreeMap<(QueueNo, u64), MessageId>,
    groups: BTreeMap<(QueueNo, u64), Group>,
    /// Offsets that a filtered reader was not given, and those that it was, by size.
    passed: Vec<(QueueNo, u64)>,
    sizes: BTreeMap<(QueueNo, u64), usize>,
    /// The last message that the drain has read.
    drained: BTreeMap<QueueNo, u64>,
    /// Messages may be removed before anybody has read them.
    removes: bool,
    /// Clients may hear long after it was said where they go on, when others have gone further.
    is_late: bool,
}

impl Streams {
    /// The streams of a world of this seed.
    #[must_use]
    pub fn of(seed: u64, is_late: bool) -> Self {
        Self {
            removes: retained(seed) > 0,
            is_late,
            ..Self::default()
        }
    }

    /// Where a drain goes on.
    #[must_use]
    pub fn undrained(&self, queue: QueueNo) -> u64 {
        self.drained.get(&queue).map_or(1, |last| last + 1)
    }

    /// The drain has read a message.
    pub fn drains(&mut self, queue: QueueNo, offset: u64) {
        self.drained.insert(queue, offset);
    }

    /// A reader was told where it goes on.
    ///
    /// # Errors
    /// It is not where it should be.
    pub fn goes_on(
        &mut self,
        queue: QueueNo,
        reader: &mut Reader,
        offset: u64,
        missed: u64,
    ) -> Result<(), String> {
        if missed > 0 && !self.removes {
            return Err(format!(
                "{missed} messages before {offset} are gone, and none may be"
            ));
        }
        let before = offset - missed.min(offset);
        // Whoever made way for another held nothing any more.
        let takes_over = std::mem::take(&mut reader.is_new) && reader.held.is_empty();
        let next = reader
            .next
            .filter(|_| !takes_over || reader.group.is_none());
        match (next, reader.group) {
            (Some(next), _) if next != before && !reader.is_filtered => {
                return Err(format!(
                    "at {next} it has missed {missed} and goes on at {offset}"
                ));
            }
            (Some(_), _) => {}
            (None, Some(group)) => {
                let group = self.groups.entry((queue, group)).or_default();
                if before < group.safe && !self.is_late {
                    return Err(format!(
                        "a group goes on at {before}: all below {} is settled for good",
                        group.safe
                    ));
                }
                let skipped = (1..before).find(|offset| !group.done.contains(offset));
                // The first that is there when it is made may be any.
                if let (Some(skipped), false) = (skipped, self.removes) {
                    return Err(format!(
                        "a group goes on at {before}, and nobody has settled {skipped}"
                    ));
                }
                reader.began = before;
                reader.settled.clear();
                reader.gone.clear();
            }
            (None, None) => {
                if reader.is_from_first && before != 1 && !self.removes {
                    return Err(format!("the first message is {before}"));
                }
            }
        }
        if let Some(group) = reader.group {
            let group = self.groups.entry((queue, group)).or_default();
            group.done.extend(before..offset);
            reader.gone.extend(before..offset);
        }
        reader.next = Some(offset);
        Ok(())
    }

    /// A reader was given a message of so many bytes.
    ///
    /// # Errors
    /// It was not its turn, or something else lay there before.
    pub fn given(
        &mut self,
        queue: QueueNo,
        reader: &mut Reader,
        (tag, offset): (u64, u64),
        (message, bytes): (MessageId, usize),
    ) -> Result<(), String> {
        reader.is_new = false;
        let Some(next) = reader.next else {
            return Err("a reader was given a message and not told where it begins".into());
        };
        let is_next = match reader.is_filtered {
            true => offset >= next && is_chosen(bytes),
            false => offset == next,
        };
        if !is_next {
            return Err(format!("a reader was given {offset}, and {next} was next"));
        }
        let known = *self.known.entry((queue, offset)).or_insert(message);
        if known != message {
            return Err(format!("{known} lay at {offset}, and now {message}"));
        }
        self.sizes.insert((queue, offset), bytes);
        self.passed
            .extend((next..offset).map(|passed| (queue, passed)));
        reader.next = Some(offset + 1);
        reader.held.insert(tag, offset);
        Ok(())
    }

    /// A member of a group has settled what lies at these offsets.
    pub fn settled(&mut self, queue: QueueNo, group: u64, offsets: &[u64]) {
        let group = self.groups.entry((queue, group)).or_default();
        group.done.extend(offsets);
    }

    /// That is for good.
    pub fn is_safe(&mut self, queue: QueueNo, reader: &mut Reader, offsets: &[u64]) {
        let Some(group) = reader.group else {
            return;
        };
        reader.settled.extend(offsets);
        let group = self.groups.entry((queue, group)).or_default();
        loop {
            let is_settled = reader.settled.remove(&reader.began);
            if !is_settled && !reader.gone.remove(&reader.began) {
                return;
            }
            reader.began += 1;
            // That it passed over what is gone is not worth a record.
            if is_settled {
                group.safe = group.safe.max(reader.began);
            }
        }
    }

    /// Everything is drained: what filtered readers were not given was not for them.
    ///
    /// # Errors
    /// It was.
    pub fn judge(&self) -> Result<(), String> {
        let is_wrong = |passed: &&(QueueNo, u64)| {
            let bytes = self.sizes.get(*passed);
            bytes.is_some_and(|bytes| is_chosen(*bytes))
        };
        match self.passed.iter().find(is_wrong) {
            Some((_, offset)) => Err(format!("a filtered reader was not given {offset}")),
            None => Ok(()),
        }
    }
}
