//! Reading of a stream: where each of its readers is, and how far its groups have come.
//! Does not know bytes of messages, connections or the journal.
//!
//! A stream is a queue whose messages nobody takes. They stay until retention removes them at the
//! head, where a queue's expire or make room; until then any number of readers get them, each from
//! where it began:
//!
//! ```text
//!   removed │ retained                                          │ not durable │
//!           head      reader        reader, member   reader at the end
//!                       └ cursor ─►    └ cursor ─►
//!                              group's offset ┘ everything below is settled
//! ```
//!
//! - A *reader* is a consumer of a stream. Its cursor is the next message that it is given; its credit
//!   and delivery tags are those of any consumer.
//! - A *group* is a name with an offset that is kept: everything below it was settled by the member
//!   whose turn it was. One member reads at a time, the others stand by; whoever takes over begins at
//!   the offset.
//! - A reader that has nothing to do is *parked* and stands in no line: until more is durable, until
//!   what it needs was read from disk, or until its pace lets it go on.

mod groups;
mod lane;
mod pace;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use ringpost_wire::ids::{DeliveryTag, QueueSequence};
use ringpost_wire::{Code, SettleRange};

use super::dispatch::{ConsumerKey, Turn};
use super::expiry::Ms;
use super::marks::Marks;
use super::{AckMode, Credit, Offer, Outcome, Queue, Settled, Source, Traits, Walked, ms_of};
use crate::ids::{Clock, Mono};
use groups::Groups;
use pace::Pacer;

pub use groups::{GROUPS_MAX, GroupFigures, KeptOffset, decode_offsets, encode_offsets};
pub use lane::MEMBERS_MAX;
pub use settings::{
    LANES_MAX, MAX_AGE_MS, MEMBERS, Pace, RATES, Reading, SPEEDS, Start, StreamSettings,
    read_consumer,
};

/// Why a reader is not offered anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    /// It is, if it has room.
    Nothing,
    /// It has had everything that is durable.
    More,
    /// What it needs is being read from disk.
    Disk,
    /// Its group is new, and no record of it is on disk.
    Group,
    /// Its pace: until then.
    Until(Ms),
}

/// A consumer of a stream.
struct Reader {
    /// The next message that it is given.
    cursor: u64,
    /// The group that it is a member of.
    group: Option<u32>,
    /// Who it is there.
    member: u64,
    wait: Wait,
    walked: Option<Walked>,
    pacer: Option<Pacer>,
}

/// Where a reader goes on, for its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The next message that it is given.
    pub offset: QueueSequence,
    /// Messages before it that it would have been given and that are there no more.
    pub missed: u64,
}

/// The readers and groups of a stream.
#[derive(Default)]
pub(super) struct Stream {
    /// By slot of the consumer.
    readers: Vec<Option<Reader>>,
    /// Slots of those that wait for more; of those that are gone, too.
    at_end: Vec<u32>,
    /// Slots of those that wait for the disk; of those that are gone, too.
    at_disk: Vec<u32>,
    /// Those that wait because of their pace.
    paced: BTreeSet<(Ms, u32)>,
    groups: Groups,
    /// It is a lane: who of a group reads is decided elsewhere.
    is_lane: bool,
    /// In a lane: groups whose members are to be said.
    changed: BTreeSet<Box<[u8]>>,
    /// What readers are to be told.
    told: VecDeque<(ConsumerKey, Position)>,
}

impl Stream {
    pub(super) fn has_readers(&self) -> bool {
        self.readers.iter().any(Option::is_some)
    }

    fn reader(&self, slot: u32) -> &Reader {
        self.readers[slot as usize]
            .as_ref()
            .expect("a consumer reads")
    }

    fn reader_mut(&mut self, slot: u32) -> &mut Reader {
        self.readers[slot as usize]
            .as_mut()
            .expect("a consumer reads")
    }
}

impl Queue {
    /// Makes it the stream that its settings say it is, also after a recovery, which does not know.
    pub(super) fn set_stream(&mut self) {
        let Some(settings) = self.settings.stream else {
            return;
        };
        self.expiry.keep_all(settings.max_age_ms);
        if self.stream.is_none() {
            // Nobody takes anything, so there is nothing to be marked.
            self.marks = Marks::unmarked();
            self.cursor = self.settled.floor() + 1;
            self.stream = Some(Box::default());
            if settings.lanes > 0 {
                self.stream().is_lane = true;
                self.consumers.let_lead();
            }
        }
    }

    /// There are no messages from `next` on any more.
    pub(super) fn end_readers_at(&mut self, next: u64) {
        if let Some(stream) = &mut self.stream {
            for reader in stream.readers.iter_mut().flatten() {
                reader.cursor = reader.cursor.min(next);
            }
            stream.groups.end_at(next);
        }
    }

    /// Whether its messages are read and not taken.
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("only a stream is read")
    }

    /// The first message that is retained; the next to be published if there is none.
    #[must_use]
    pub fn first_retained(&mut self) -> QueueSequence {
        self.skip_apart();
        QueueSequence(self.cursor)
    }

    /// Adds a reader, which is this member of its group if it has one. One that names a group that is there goes on where that is; any other begins where
    /// it says, and so does its new group.
    ///
    /// # Errors
    /// [`Code::LimitReached`] if there are as many consumers or groups as may be.
    ///
    /// # Panics
    /// If the key is in use or this is no stream.
    pub fn add_reader(
        &mut self,
        (key, member): (ConsumerKey, u64),
        (credit, mode): (Credit, AckMode),
        traits: Traits,
        reading: &Reading,
        clock: Clock,
    ) -> Result<(), Code> {
        let start = self.offset_of(reading.start, clock);
        let stream = self.stream.as_mut().expect("only a stream is read");
        if stream.is_lane && reading.group.is_some() {
            self.check_members(reading)?;
        }
        let stream = self.stream.as_mut().expect("only a stream is read");
        let known = reading
            .group
            .as_deref()
            .map(|name| stream.groups.find(name));
        if known == Some(None) && stream.groups.is_full() {
            return Err(Code::LimitReached);
        }
        let membership = match (&reading.group, known) {
            (Some(_), Some(Some(number))) => Some(number),
            (Some(name), _) => Some(stream.groups.add(name, start)),
            (None, _) => None,
        };
        let joins = membership.map(|group| (group, traits.priority));
        // Readers do not compete, so priorities are for groups only.
        let alike = Traits {
            priority: 0,
            ..traits
        };
        let added = self.consumers.add_member(key, credit, mode, alike, joins);
        let slot = match added {
            Ok(slot) => slot,
            Err(code) => {
                if let (Some(group), Some(None)) = (membership, known) {
                    stream.groups.remove(group);
                }
                return Err(code);
            }
        };
        if stream.readers.len() <= slot as usize {
            stream.readers.resize_with(slot as usize + 1, || None);
        }
        stream.readers[slot as usize] = Some(Reader {
            cursor: start,
            group: membership,
            member,
            wait: Wait::Nothing,
            walked: None,
            pacer: reading.pace.map(Pacer::new),
        });
        match membership {
            Some(group) => {
                stream.groups.get_mut(group).members += 1;
                self.members_changed(group);
                self.follow_election(group);
            }
            None => self.tell_position(slot, reading.start),
        }
        Ok(())
    }

    /// Tells a new reader where it begins, and what it asked for in vain.
    fn tell_position(&mut self, slot: u32, asked: Start) {
        let head = self.first_retained().0;
        let key = self.consumers.get(slot).key;
        let stream = self.stream();
        let reader = stream.reader_mut(slot);
        let wanted = match asked {
            Start::Offset(offset) => offset,
            Start::First | Start::Last | Start::Next | Start::Time(_) => reader.cursor,
        };
        reader.cursor = reader.cursor.max(head);
        let position = Position {
            offset: QueueSequence(reader.cursor),
            missed: reader.cursor.saturating_sub(wanted),
        };
        stream.told.push_back((key, position));
    }

    /// The first message of a start; never beyond the next one to be published.
    fn offset_of(&mut self, start: Start, clock: Clock) -> u64 {
        let head = self.first_retained().0;
        let offset = match start {
            Start::First => head,
            Start::Last => (self.next - 1).max(head),
            Start::Next => self.next,
            Start::Offset(offset) => offset,
            Start::Time(wall_s) => {
                let wall_ms = i64::try_from(wall_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
                let ago = ((clock.wall_us / 1_000) as i64).saturating_sub(wall_ms);
                let at = ms_of(clock.now).saturating_sub(ago);
                self.expiry.first_since(at).unwrap_or(self.next)
            }
        };
        offset.clamp(head, self.next)
    }

    /// Another member of a group may read now: it begins where the group is.
    //= P-84
    fn follow_election(&mut self, group: u32) {
        let active = self.consumers.active_of(group);
        let stream = self.stream.as_mut().expect("only a stream has groups");
        let kept = stream.groups.get_mut(group);
        if kept.active == active {
            return;
        }
        kept.active = active;
        let offset = kept.offset;
        let Some(slot) = active.and_then(|key| self.consumers.find(key)) else {
            return;
        };
        let reader = stream.reader_mut(slot);
        reader.cursor = offset;
        reader.walked = None;
        if let Some(pacer) = &mut reader.pacer {
            pacer.stop();
        }
        self.unpark(slot);
        self.tell_position(slot, Start::Offset(offset));
    }

    /// Removes a reader; its group keeps its offset. `None` if there is no such consumer.
    pub(super) fn remove_reader(&mut self, key: ConsumerKey) -> Option<Settled> {
        let slot = self.consumers.find(key)?;
        self.unpark(slot);
        let consumer = self.consumers.remove(key)?;
        let stream = self.stream();
        let reader = stream.readers[slot as usize].take();
        let reader = reader.expect("a consumer reads");
        stream.told.retain(|(told, _)| *told != key);
        if let Some(group) = reader.group {
            stream.groups.get_mut(group).members -= 1;
            self.members_changed(group);
            self.follow_election(group);
        }
        Some(Settled {
            messages: consumer.unacked.len() as u64,
            bytes: consumer.outstanding_bytes,
        })
    }

    /// Takes the next reader that is to be told where it goes on.
    pub fn take_position(&mut self) -> Option<(ConsumerKey, Position)> {
        self.stream.as_mut()?.told.pop_front()
    }

    // Waiting.

    fn park(&mut self, slot: u32, wait: Wait) {
        let stream = self.stream();
        stream.reader_mut(slot).wait = wait;
        match wait {
            Wait::Nothing => unreachable!("nobody waits for nothing"),
            Wait::More => stream.at_end.push(slot),
            Wait::Disk => stream.at_disk.push(slot),
            Wait::Group => {}
            Wait::Until(at) => {
                stream.paced.insert((at, slot));
            }
        }
        self.consumers.set_parked(slot, true);
    }

    fn unpark(&mut self, slot: u32) {
        let stream = self.stream();
        let reader = stream.reader_mut(slot);
        let wait = std::mem::replace(&mut reader.wait, Wait::Nothing);
        match wait {
            Wait::Nothing => return,
            Wait::Group => {}
            Wait::More => stream.at_end.retain(|other| *other != slot),
            Wait::Disk => stream.at_disk.retain(|other| *other != slot),
            Wait::Until(at) => {
                stream.paced.remove(&(at, slot));
            }
        }
        self.consumers.set_parked(slot, false);
    }

    /// More is durable, or was read from disk, or time has passed: readers that wait look again.
    pub fn look_again(&mut self) {
        self.look_at_groups_again();
        let (durable, now) = (self.durable, self.now);
        let Some(stream) = &mut self.stream else {
            return;
        };
        let mut back = std::mem::take(&mut stream.at_disk);
        let readers = &stream.readers;
        let has_more = |slot: &u32| {
            let reader = readers[*slot as usize].as_ref();
            reader.is_some_and(|reader| reader.cursor <= durable)
        };
        let (more, others) = std::mem::take(&mut stream.at_end)
            .into_iter()
            .partition::<Vec<u32>, _>(has_more);
        stream.at_end = others;
        back.extend(more);
        while let Some((at, slot)) = stream.paced.first().copied()
            && at <= now
        {
            stream.paced.pop_first();
            back.push(slot);
        }
        for slot in &back {
            stream.reader_mut(*slot).wait = Wait::Nothing;
        }
        for slot in back {
            self.consumers.set_parked(slot, false);
        }
    }

    /// When a reader's pace lets it go on, if nothing happens before.
    #[must_use]
    pub(super) fn next_paced(&self) -> Option<Mono> {
        let (at, _) = self.stream.as_ref()?.paced.first()?;
        Some(Mono(u64::try_from(*at).unwrap_or(0) * 1_000_000))
    }

    /// The offer's reader waits for the disk; others go on.
    pub fn wait_for_disk(&mut self, offer: &Offer) {
        self.park(offer.slot, Wait::Disk);
    }

    /// Whether a consumer could be given something now, were it read from disk or had its socket room.
    #[must_use]
    pub fn has_for(&self, key: ConsumerKey) -> bool {
        let (Some(slot), Some(stream)) = (self.consumers.slot_of(key), &self.stream) else {
            return false;
        };
        let reader = stream.reader(slot);
        let is_paced = matches!(reader.wait, Wait::Until(_));
        let may_read = self.consumers.is_active(slot) || self.awaits_group(key);
        may_read && !is_paced && reader.cursor <= self.durable
    }

    // Reading.

    /// As [`Queue::next_offer`], of a stream.
    pub(super) fn next_read(&mut self) -> Option<Offer> {
        loop {
            // Nobody takes from others what it is given, so a turn is as long as it may be.
            let (slot, turn) = match self.consumers.turn(u64::MAX) {
                Turn::Nobody => return None,
                Turn::Of(slot, turn) => (slot, turn),
                Turn::ByKey => unreachable!("readers are not chosen by key"),
            };
            let stream = self.stream();
            if let Some(group) = stream.reader(slot).group
                && !stream.groups.is_kept(group)
            {
                self.park(slot, Wait::Group);
                continue;
            }
            let at = self.go_on(slot);
            if at > self.durable {
                let stream = self.stream();
                if let Some(pacer) = &mut stream.reader_mut(slot).pacer {
                    pacer.stop();
                }
                self.park(slot, Wait::More);
                continue;
            }
            let run = self.index.find(at).expect("what is retained has a run");
            let mut last = run.last().min(self.durable);
            if self.settled.ceiling() >= at
                && let Some((first, _)) = self.settled.stretch_from(at)
            {
                last = last.min(first - 1);
            }
            let (now, expiry) = (self.now, &self.expiry);
            let stream = self.stream.as_mut().expect("only a stream is read");
            // What a member may have had is not new to another.
            let group = stream.reader(slot).group;
            let given = group.map_or(0, |group| stream.groups.get_mut(group).given);
            let is_again = at < given && !crate::mutant!(TakenOverUnflagged);
            if is_again {
                last = last.min(given - 1);
            }
            let reader = stream.reader_mut(slot);
            if let Some(pacer) = &mut reader.pacer {
                match pacer.due_upto(at, last, now, |sequence| expiry.arrival_of(sequence)) {
                    Ok(upto) => last = upto,
                    Err(until) => {
                        self.park(slot, Wait::Until(until));
                        continue;
                    }
                }
            }
            let walked = reader.walked;
            let offer = self.offer(slot, turn, run, at, last, walked);
            return Some(Offer {
                delivery_count: u32::from(is_again),
                source: Source::Read,
                ..offer
            });
        }
    }

    /// Where a reader goes on: what is there no more it has missed.
    fn go_on(&mut self, slot: u32) -> u64 {
        self.skip_apart();
        let key = self.consumers.get(slot).key;
        let stream = self.stream.as_mut().expect("only a stream is read");
        let reader = stream.reader_mut(slot);
        let mut at = reader.cursor.max(self.cursor);
        // The loss of something in the middle may have been accepted.
        if self.settled.ceiling() >= at
            && let Some((first, last)) = self.settled.stretch_from(at)
            && first <= at
        {
            at = last + 1;
        }
        if at > reader.cursor {
            let position = Position {
                offset: QueueSequence(at),
                missed: at - reader.cursor,
            };
            reader.cursor = at;
            stream.told.push_back((key, position));
            self.keep_up(slot, false);
        }
        at
    }

    /// As [`Queue::take`], of a stream: its reader has gone on, and the messages stay.
    pub(super) fn take_read(&mut self, offer: &Offer, at: u32, bytes_each: &[u32]) -> DeliveryTag {
        let count = bytes_each.len() as u64;
        let bytes = bytes_each.iter().map(|each| u64::from(*each)).sum();
        self.pass(offer, count, at, bytes);
        let consumer = self.consumers.get_mut(offer.slot);
        let tag = consumer.unacked.tag_last() + 1;
        let is_settled = consumer.mode == AckMode::None;
        if is_settled {
            consumer.unacked.skip_tags(count);
        } else {
            consumer.unacked.push(offer.first.0, 0, bytes_each);
            consumer.outstanding_bytes += bytes;
        }
        if let Some(pacer) = &mut self.stream().reader_mut(offer.slot).pacer {
            pacer.gave(count);
        }
        self.consumers.took(offer.slot, count as u32);
        self.keep_up(offer.slot, is_settled);
        DeliveryTag(tag)
    }

    /// The offer's first messages, of `bytes` padded bytes, are not for its reader. The first starts at
    /// `at` in the record's body.
    ///
    /// # Panics
    /// If the stream has changed since the offer.
    pub fn pass_over(&mut self, offer: &Offer, count: u32, at: u32, bytes: u64) {
        assert!(count <= offer.messages_max);
        self.pass(offer, u64::from(count), at, bytes);
        self.consumers.passed(offer.slot, count);
        self.keep_up(offer.slot, false);
    }

    fn pass(&mut self, offer: &Offer, count: u64, at: u32, bytes: u64) {
        assert!(self.consumers.get(offer.slot).key == offer.key);
        let walked = super::walked_behind(offer, count as u32, at, bytes);
        let reader = self.stream().reader_mut(offer.slot);
        assert!(reader.cursor == offer.first.0);
        reader.cursor += count;
        reader.walked = walked;
        let (group, cursor) = (reader.group, reader.cursor);
        if let Some(group) = group {
            let group = self.stream().groups.get_mut(group);
            group.given = group.given.max(cursor);
        }
    }

    /// The group of a reader has come as far as all of its messages are settled.
    fn keep_up(&mut self, slot: u32, is_settled: bool) {
        let consumer = self.consumers.get(slot);
        let (key, front) = (consumer.key, consumer.unacked.front_sequence());
        let stream = self.stream.as_mut().expect("only a stream is read");
        let reader = stream.reader(slot);
        let Some(group) = reader.group else {
            return;
        };
        let offset = match front {
            Some(front) if !crate::mutant!(OffsetOfDelivered) => front,
            _ => reader.cursor,
        };
        stream.groups.came_to(group, key, offset, is_settled);
    }

    /// As [`Queue::settle`], of a stream. Messages stay, whatever becomes of a delivery.
    ///
    /// # Errors
    /// As there, and [`Code::SettingInvalid`] for a requeue: nothing was taken that could return.
    pub(super) fn settle_read(
        &mut self,
        key: ConsumerKey,
        range: SettleRange,
        outcome: Outcome,
    ) -> Result<Settled, Code> {
        let slot = self.consumers.find(key).ok_or(Code::UnknownDelivery)?;
        if outcome == Outcome::Requeue {
            return Err(Code::SettingInvalid);
        }
        let mut done = Settled::default();
        let unacked = &mut self.consumers.get_mut(slot).unacked;
        unacked.settle(range.first, range.last, |delivery| {
            done.messages += 1;
            done.bytes += u64::from(delivery.bytes);
        })?;
        self.keep_up(slot, true);
        self.consumers.gave_back(slot, done.bytes);
        if let Some(group) = self.stream().reader(slot).group {
            self.follow_election(group);
        }
        Ok(done)
    }

    // Groups.

    /// Offsets of groups that are to be recorded, as a record's body of at most `bytes_max`; how many.
    /// Answer with [`Queue::groups_recorded`] when it is in a block.
    pub fn groups_to_record(&self, bytes_max: u32, out: &mut Vec<u8>) -> u32 {
        let stream = self.stream.as_ref();
        stream.map_or(0, |stream| stream.groups.to_record(bytes_max as usize, out))
    }

    /// What [`Queue::groups_to_record`] said last, with the same bound, is in a block.
    /// Its number, if there are new groups in it: answer with [`Queue::groups_kept`] when it is on disk.
    pub fn groups_recorded(&mut self, bytes_max: u32) -> Option<u64> {
        self.stream().groups.recorded(bytes_max as usize)
    }

    /// The record of this number and those before it are on disk: members of new groups are given what
    /// they ask for.
    pub fn groups_kept(&mut self, record: u64) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        stream.groups.kept_through(record);
        let groups = &stream.groups;
        let readers = stream.readers.iter().enumerate();
        let waiting = readers.filter_map(|(slot, reader)| {
            let reader = reader.as_ref()?;
            let is_kept = groups.is_kept(reader.group?);
            (reader.wait == Wait::Group && is_kept).then_some(slot as u32)
        });
        for slot in waiting.collect::<Vec<_>>() {
            self.unpark(slot);
        }
    }

    /// Whether a group was made that no record is written of.
    #[must_use]
    pub fn has_new_groups(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_some_and(|stream| stream.groups.has_new())
    }

    /// Whether offsets of groups are to be recorded.
    #[must_use]
    pub fn has_groups_to_record(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_some_and(|stream| stream.groups.is_due())
    }

    /// All groups with their offsets, for a checkpoint.
    pub fn kept_offsets(&self) -> impl Iterator<Item = (&[u8], u64)> + '_ {
        let stream = self.stream.iter();
        stream.flat_map(|stream| stream.groups.kept())
    }

    /// After a recovery: how far groups have come.
    pub fn restore_groups(&mut self, groups: Vec<KeptOffset>) {
        let next = self.next;
        let stream = self.stream();
        for KeptOffset { name, offset } in groups {
            stream.groups.restore(&name, offset, next);
        }
    }

    /// What its groups are and how far behind, by name.
    pub fn groups(&mut self) -> Vec<GroupFigures> {
        let (head, next) = (self.first_retained().0, self.next);
        let stream = self.stream();
        stream.groups.figures(head, next)
    }

    /// Sets a group to another offset; one that is not there is made. Says which offset that is.
    ///
    /// # Errors
    /// [`Code::InUse`] if it has members; [`Code::LimitReached`] if there are as many groups as may be.
    pub fn reset_group(
        &mut self,
        name: &[u8],
        start: Start,
        clock: Clock,
    ) -> Result<QueueSequence, Code> {
        let offset = self.offset_of(start, clock);
        let groups = &mut self.stream().groups;
        match groups.find(name) {
            Some(number) if groups.get_mut(number).members > 0 => return Err(Code::InUse),
            Some(number) => groups.reset(number, offset),
            None if groups.is_full() => return Err(Code::LimitReached),
            None => {
                groups.add(name, offset);
            }
        }
        Ok(QueueSequence(offset))
    }

    /// Forgets a group. Whether it was there.
    ///
    /// # Errors
    /// [`Code::InUse`] if it has members.
    pub fn remove_group(&mut self, name: &[u8]) -> Result<bool, Code> {
        let groups = &mut self.stream().groups;
        match groups.find(name) {
            Some(number) if groups.get_mut(number).members > 0 => Err(Code::InUse),
            Some(number) => {
                groups.remove(number);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    pub(super) fn stream_invariants(&self) {
        let Some(stream) = &self.stream else {
            return;
        };
        assert_eq!(self.unacked, 0);
        assert_eq!(self.returned.count(), 0);
        let readers = stream.readers.iter().flatten();
        assert_eq!(readers.clone().count(), self.consumers.len());
        stream.groups.invariants(stream.is_lane);
        for (slot, reader) in stream.readers.iter().enumerate() {
            let slot = slot as u32;
            let Some(reader) = reader else {
                assert!(!stream.at_end.contains(&slot) && !stream.at_disk.contains(&slot));
                continue;
            };
            let consumer = self.consumers.get(slot);
            assert_eq!(consumer.is_parked(), reader.wait != Wait::Nothing);
            assert_eq!(stream.at_end.contains(&slot), reader.wait == Wait::More);
            assert_eq!(stream.at_disk.contains(&slot), reader.wait == Wait::Disk);
            assert!(reader.cursor <= self.next);
            for delivery in consumer.unacked.iter() {
                assert!(delivery.sequence < reader.cursor);
            }
        }
    }
}
