//! What readers of streams know: what lies at which offset, and how far groups have come. Does not know
//! frames, or which consumer is which.
//!
//! A world in three has a stream in each of its tenants, every other one of several lanes. Its readers are no part of the history, which knows
//! queues whose messages are taken: only what the drain reads at the end is, each message once.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_check::{ConsumerNo, MessageId, QueueNo};
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

/// How many lanes its streams have; 0 = they are none of several.
#[must_use]
pub fn lanes(seed: u64) -> u8 {
    match mix(seed ^ 0x1a_9e_50) % 8 {
        drawn @ 0..4 => 2 + drawn as u8,
        _ => 0,
    }
}

/// The names of a stream as its readers know it.
#[must_use]
pub fn names(seed: u64) -> Vec<String> {
    match lanes(seed) {
        0 => vec![STREAM.to_owned()],
        lanes => (0..lanes).map(|lane| format!("{STREAM}#{lane}")).collect(),
    }
}

/// Whether it is a stream or a lane of it.
#[must_use]
pub fn is_stream(name: &str) -> bool {
    base(name) == STREAM
}

/// The queue that a name is about: of a lane its stream.
#[must_use]
pub fn base(name: &str) -> &str {
    match name.split_once('#') {
        Some((stream, _)) if stream == STREAM => stream,
        _ => name,
    }
}

fn lane_of(name: &str) -> u8 {
    let number = name.split_once('#').map(|(_, number)| number.parse());
    number.and_then(Result::ok).unwrap_or(0)
}

/// A lane of the stream of a tenant; of one by itself the only one.
pub type Lane = (QueueNo, u8);

/// Who joins a group in every lane.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    group: u64,
    /// What it calls itself; 0 = its connection.
    member: u64,
    priority: i8,
}

impl Seat {
    /// A member as chance will have it.
    #[must_use]
    pub fn draw(random: &mut Random) -> Self {
        Self {
            // Mostly the same one, so that there are several of it at a time.
            group: match random.below(4) {
                0 => random.below(GROUPS),
                _ => 0,
            },
            member: match random.below(3) {
                0 => 0,
                _ => 1 + random.below(1 << 60),
            },
            // Mostly they share.
            priority: match random.below(4) {
                0 => random.below(3) as i8,
                _ => 0,
            },
        }
    }
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
pub fn arguments(lanes: u8) -> Vec<u8> {
    let mut entries = vec![("x-queue-type", Value::Text(b"stream"))];
    if lanes > 0 {
        entries.push(("x-stream-lanes", Value::U8(lanes)));
    }
    table(&entries)
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
    /// The lane that it reads.
    pub lane: u8,
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
    pub fn draw(random: &mut Random, queue: &str, seat: Option<Seat>) -> (Self, Vec<u8>) {
        let group = (random.below(2) == 0).then(|| random.below(GROUPS));
        let group = seat.map_or(group, |seat| Some(seat.group));
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
            let priority = random.below(3) as i8;
            let priority = seat.map_or(priority, |seat| seat.priority);
            entries.push(("x-priority", Value::I8(priority)));
            if let Some(Seat { member: 1.., .. }) = seat {
                let member = seat.map_or(0, |seat| seat.member as i64);
                entries.push(("x-stream-member", Value::I64(member)));
            }
        }
        if is_filtered {
            let condition = Value::Text(b"sys.body_bytes % 3 = 0");
            entries.push(("x-stream-filter", condition));
        }
        if random.below(6) == 0 {
            entries.push(("x-stream-rate", Value::I64(random.scale(20..=5_000) as i64)));
        }
        let reader = Self::new(lane_of(queue), group, start == 0, is_filtered);
        (reader, table(&entries))
    }

    /// The one that reads everything at the end, from there on, with its arguments.
    #[must_use]
    pub fn of_drain(name: &str, from: u64) -> (Self, Vec<u8>) {
        let offset = Value::I64(from as i64);
        let reader = Self::new(lane_of(name), None, from == 1, false);
        (reader, table(&[("x-stream-offset", offset)]))
    }

    const fn new(lane: u8, group: Option<u64>, is_from_first: bool, is_filtered: bool) -> Self {
        Self {
            lane,
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

    /// The lane of its stream that a name is about.
    #[must_use]
    pub fn lane_named(name: &str) -> u8 {
        lane_of(name)
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
    /// What members were given as if for the first time.
    fresh: BTreeSet<u64>,
    /// Who was given it last.
    holders: BTreeMap<u64, ConsumerNo>,
}

/// The streams of a world.
#[derive(Default, Debug)]
pub struct Streams {
    /// What lies where, for ever.
    known: BTreeMap<(Lane, u64), MessageId>,
    /// Of a stream of several lanes: where the messages of a key lie.
    lanes: BTreeMap<(QueueNo, Box<[u8]>), u8>,
    groups: BTreeMap<(Lane, u64), Group>,
    /// Offsets that a filtered reader was not given, and those that it was, by size.
    passed: Vec<(Lane, u64)>,
    sizes: BTreeMap<(Lane, u64), usize>,
    /// The last message that the drain has read.
    drained: BTreeMap<Lane, u64>,
    /// They have several lanes.
    pub has_lanes: bool,
    /// Messages may be removed before anybody has read them.
    removes: bool,
}

impl Streams {
    /// The streams of a world of this seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            removes: retained(seed) > 0,
            has_lanes: lanes(seed) > 0,
            ..Self::default()
        }
    }

    /// Where a drain goes on.
    #[must_use]
    pub fn undrained(&self, lane: Lane) -> u64 {
        self.drained.get(&lane).map_or(1, |last| last + 1)
    }

    /// The drain has read a message.
    pub fn drains(&mut self, lane: Lane, offset: u64) {
        self.drained.insert(lane, offset);
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
        let lane = (queue, reader.lane);
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
                let group = self.groups.entry((lane, group)).or_default();
                // It may have been told before others went further: that it is behind them is no fault.
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
            let group = self.groups.entry((lane, group)).or_default();
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
        (reader, consumer): (&mut Reader, ConsumerNo),
        (tag, offset, is_again): (u64, u64, bool),
        (message, bytes): (MessageId, usize),
    ) -> Result<(), String> {
        reader.is_new = false;
        let lane = (queue, reader.lane);
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
        let known = *self.known.entry((lane, offset)).or_insert(message);
        if known != message {
            return Err(format!("{known} lay at {offset}, and now {message}"));
        }
        self.sizes.insert((lane, offset), bytes);
        self.passed
            .extend((next..offset).map(|passed| (lane, passed)));
        reader.next = Some(offset + 1);
        reader.held.insert(tag, offset);
        let Some(group) = reader.group else {
            return match is_again {
                true => Err(format!("{offset} is flagged, and its reader is alone")),
                false => Ok(()),
            };
        };
        let group = self.groups.entry((lane, group)).or_default();
        group.holders.insert(offset, consumer);
        if !is_again && !group.fresh.insert(offset) {
            return Err(format!(
                "a group was given {offset} again, and that is not said"
            ));
        }
        Ok(())
    }

    /// Where a message lies, by its routing key.
    ///
    /// # Errors
    /// Another one of its key lies in another lane.
    pub fn lies(&mut self, queue: QueueNo, lane: u8, key: &[u8]) -> Result<(), String> {
        if !self.has_lanes || key.is_empty() || key == STREAM.as_bytes() {
            return Ok(());
        }
        let known = *self.lanes.entry((queue, key.into())).or_insert(lane);
        match known == lane {
            true => Ok(()),
            false => Err(format!(
                "a message of key {:?} lies in lane {lane}, another one in {known}",
                String::from_utf8_lossy(key)
            )),
        }
    }

    /// The broker starts again. A group of which nothing is known to be on disk may be a new one.
    pub fn restarts(&mut self) {
        for group in self.groups.values_mut().filter(|group| group.safe == 0) {
            group.fresh.clear();
        }
    }

    /// Of what a member settles now, something that another one was given since: if its settlement is
    /// good all the same, both had it.
    #[must_use]
    pub fn taken_meanwhile(
        &self,
        queue: QueueNo,
        reader: &Reader,
        consumer: ConsumerNo,
        offsets: &[u64],
    ) -> Option<u64> {
        let group = self.groups.get(&((queue, reader.lane), reader.group?))?;
        let is_taken = |offset: &&u64| {
            let holder = group.holders.get(*offset);
            holder.is_some_and(|holder| *holder != consumer)
        };
        offsets.iter().find(is_taken).copied()
    }

    /// A member of a group has settled what lies at these offsets.
    pub fn settled(&mut self, lane: Lane, group: u64, offsets: &[u64]) {
        let group = self.groups.entry((lane, group)).or_default();
        group.done.extend(offsets);
    }

    /// That is for good.
    pub fn is_safe(&mut self, queue: QueueNo, reader: &mut Reader, offsets: &[u64]) {
        let Some(group) = reader.group else {
            return;
        };
        reader.settled.extend(offsets);
        let lane = (queue, reader.lane);
        let group = self.groups.entry((lane, group)).or_default();
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
        let is_wrong = |passed: &&(Lane, u64)| {
            let bytes = self.sizes.get(*passed);
            bytes.is_some_and(|bytes| is_chosen(*bytes))
        };
        match self.passed.iter().find(is_wrong) {
            Some((_, offset)) => Err(format!("a filtered reader was not given {offset}")),
            None => Ok(()),
        }
    }
}
