//! Groups of a stream: names with offsets that are kept. Does not know messages, nor who reads next.
//!
//! An offset only grows, unless it is reset. What is to be recorded is gathered: however often a group
//! moved since the last record, the next one says where it is. A body of records is
//!
//! ```text
//! per group: offset u64 (0: the group is no more) | bytes of its name u32 | name
//! ```

use std::collections::{BTreeMap, VecDeque};

use crate::data::queue::ConsumerKey;

/// Most groups of a stream.
pub const GROUPS_MAX: usize = 256;
/// Most bytes of a record of offsets.
pub const GROUP_RECORD_BYTES_MAX: usize = 32 * 1024;
/// Messages that were passed over and settle nothing, after which an offset is recorded all the same:
/// so many are looked at again after a crash.
const UNSETTLED_MAX: u64 = 4096;

/// How far a group has come.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeptOffset {
    /// Its name.
    pub name: Box<[u8]>,
    /// The first message that is not settled; 0 if the group is no more.
    pub offset: u64,
}

/// What a group is and how far behind.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GroupFigures {
    /// Its name.
    pub name: Box<[u8]>,
    /// The first message that is not settled.
    pub offset: u64,
    /// Messages from there on that are retained.
    pub lag: u64,
    /// Consumers, those that stand by included.
    pub members: u32,
}

#[derive(Debug)]
pub(super) struct Group {
    name: Box<[u8]>,
    /// Everything below is settled.
    pub(super) offset: u64,
    /// As the last record says, 0 = none does.
    recorded: u64,
    /// It is to be recorded.
    is_due: bool,
    pub(super) members: u32,
    /// The member that reads.
    pub(super) active: Option<ConsumerKey>,
    /// In a lane: the member that is to read, once the one before has settled everything.
    pub(super) led: Option<u64>,
    /// From here on no member was given anything: what is given below may be given again.
    pub(super) given: u64,
    kept: Kept,
}

/// Whether a record of a group is on disk: until then its members are given nothing, since a crash might
/// forget that they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kept {
    /// None is written.
    No,
    /// One of these is in a block.
    In(u64),
    /// It is.
    Yes,
}

impl Group {
    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }
}

/// The groups of one stream, by number; numbers of those that are gone are used again.
#[derive(Default, Debug)]
pub(super) struct Groups {
    list: Vec<Option<Group>>,
    names: BTreeMap<Box<[u8]>, u32>,
    /// Names of those that are gone, to be recorded before anything else.
    gone: VecDeque<Box<[u8]>>,
    /// Groups that are to be recorded.
    due: u32,
    /// Counts the records that have new groups in them.
    batch: u64,
}

impl Groups {
    pub(super) fn find(&self, name: &[u8]) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(super) fn is_full(&self) -> bool {
        self.names.len() >= GROUPS_MAX
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut Group {
        self.list[number as usize]
            .as_mut()
            .expect("the group is there")
    }

    fn insert(&mut self, name: &[u8], offset: u64) -> u32 {
        let free = self.list.iter().position(Option::is_none);
        let number = free.unwrap_or(self.list.len());
        if free.is_none() {
            self.list.push(None);
        }
        self.list[number] = Some(Group {
            name: name.into(),
            offset,
            recorded: 0,
            is_due: false,
            members: 0,
            active: None,
            led: None,
            given: 0,
            kept: Kept::No,
        });
        self.names.insert(name.into(), number as u32);
        number as u32
    }

    /// A new group: where it begins is kept from now on.
    pub(super) fn add(&mut self, name: &[u8], offset: u64) -> u32 {
        let number = self.insert(name, offset);
        self.set_due(number);
        number
    }

    /// A group of an earlier life. Where messages are lost it may have come farther than they go: then
    /// where it is now is recorded, or those that take their numbers were passed over one day.
    pub(super) fn restore(&mut self, name: &[u8], offset: u64, next: u64) {
        let number = self.insert(name, offset.min(next));
        let group = self.get_mut(number);
        group.recorded = offset.min(next);
        // Nobody knows how far members were given something.
        group.given = next;
        group.kept = Kept::Yes;
        if offset > next {
            self.set_due(number);
        }
    }

    pub(super) fn remove(&mut self, number: u32) {
        let group = self.list[number as usize].take();
        let group = group.expect("the group is there");
        self.due -= u32::from(group.is_due);
        self.names.remove(&group.name);
        self.gone.push_back(group.name);
    }

    pub(super) fn reset(&mut self, number: u32, offset: u64) {
        self.get_mut(number).offset = offset;
        self.set_due(number);
    }

    /// The member that reads has settled everything below `offset`, or passed over it.
    pub(super) fn came_to(&mut self, number: u32, by: ConsumerKey, offset: u64, is_settled: bool) {
        let group = self.get_mut(number);
        if group.active != Some(by) {
            return;
        }
        group.offset = group.offset.max(offset);
        let moved = group.offset.saturating_sub(group.recorded);
        if (is_settled && moved > 0) || moved >= UNSETTLED_MAX {
            self.set_due(number);
        }
    }

    fn set_due(&mut self, number: u32) {
        let group = self.get_mut(number);
        let is_new = !group.is_due;
        group.is_due = true;
        self.due += u32::from(is_new);
    }

    pub(super) fn is_due(&self) -> bool {
        self.due > 0 || !self.gone.is_empty()
    }

    /// Appends what one record has room for. Says how many groups that are.
    pub(super) fn to_record(&self, bytes_max: usize, out: &mut Vec<u8>) -> u32 {
        let bytes_max = bytes_max.min(GROUP_RECORD_BYTES_MAX);
        let from = out.len();
        let mut count = 0;
        for (name, offset) in self.next_record() {
            if !encode_offset(name, offset, bytes_max - (out.len() - from), out) {
                break;
            }
            count += 1;
        }
        count
    }

    fn next_record(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let due = self.list.iter().flatten().filter(|group| group.is_due);
        let gone = self.gone.iter().map(|name| (&**name, 0));
        gone.chain(due.map(|group| (&*group.name, group.offset)))
    }

    /// The records up to the one of this number are on disk.
    pub(super) fn kept_through(&mut self, batch: u64) {
        for group in self.list.iter_mut().flatten() {
            if matches!(group.kept, Kept::In(own) if own <= batch) {
                group.kept = Kept::Yes;
            }
        }
    }

    /// Whether there is a group that no record is written of.
    pub(super) fn has_new(&self) -> bool {
        let mut groups = self.list.iter().flatten();
        groups.any(|group| group.kept == Kept::No)
    }

    /// Whether a record of a group is on disk.
    pub(super) fn is_kept(&self, number: u32) -> bool {
        let group = self.list[number as usize].as_ref();
        group.is_some_and(|group| group.kept == Kept::Yes)
    }

    /// As if all groups had been recorded, and that were on disk.
    #[cfg(test)]
    pub(super) fn keep_all(&mut self) {
        for group in self.list.iter_mut().flatten() {
            group.kept = Kept::Yes;
        }
    }

    /// What [`Groups::to_record`] said last is in a block. Its number, if there are new groups in it:
    /// answer with [`Groups::kept_through`] when it is on disk.
    pub(super) fn recorded(&mut self, bytes_max: usize) -> Option<u64> {
        let batch = self.batch + 1;
        self.take_recorded(bytes_max, batch);
        let is_in = |group: &Group| group.kept == Kept::In(batch);
        let has_new = self.list.iter().flatten().any(is_in);
        self.batch += u64::from(has_new);
        has_new.then_some(batch)
    }

    fn take_recorded(&mut self, bytes_max: usize, batch: u64) {
        let mut room = bytes_max.min(GROUP_RECORD_BYTES_MAX);
        let mut fits = |name: &[u8]| {
            let bytes = entry_bytes(name);
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        };
        while let Some(name) = self.gone.front() {
            if !fits(name) {
                return;
            }
            self.gone.pop_front();
        }
        for group in self.list.iter_mut().flatten().filter(|group| group.is_due) {
            if !fits(&group.name) {
                return;
            }
            group.is_due = false;
            group.recorded = group.offset;
            if group.kept == Kept::No {
                group.kept = Kept::In(batch);
            }
            self.due -= 1;
        }
    }

    /// There are no messages from `next` on any more.
    pub(super) fn end_at(&mut self, next: u64) {
        for group in self.list.iter_mut().flatten() {
            group.offset = group.offset.min(next);
            group.given = group.given.min(next);
        }
    }

    pub(super) fn kept(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let groups = self.list.iter().flatten();
        groups.map(|group| (&*group.name, group.offset))
    }

    pub(super) fn figures(&self, head: u64, next: u64) -> Vec<GroupFigures> {
        let numbers = self.names.values();
        let groups = numbers.filter_map(|number| self.list[*number as usize].as_ref());
        let figures = groups.map(|group| GroupFigures {
            name: group.name.clone(),
            offset: group.offset,
            lag: next - group.offset.max(head).min(next),
            members: group.members,
        });
        figures.collect()
    }

    pub(super) fn invariants(&self, are_led: bool) {
        let groups = self.list.iter().flatten();
        assert_eq!(groups.clone().count(), self.names.len());
        assert!(self.names.len() <= GROUPS_MAX);
        let due = groups.clone().filter(|group| group.is_due).count();
        assert_eq!(due as u32, self.due);
        for group in groups {
            assert!(group.members > 0 || group.active.is_none());
            assert!(are_led || group.members == 0 || group.active.is_some());
        }
    }
}

const fn entry_bytes(name: &[u8]) -> usize {
    12 + name.len()
}

/// Appends an entry if it takes no more than `room`.
fn encode_offset(name: &[u8], offset: u64, room: usize, out: &mut Vec<u8>) -> bool {
    if entry_bytes(name) > room {
        return false;
    }
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&(name.len() as u32).to_le_bytes());
    out.extend_from_slice(name);
    true
}

/// Appends offsets as they are in a checkpoint.
pub fn encode_offsets<'a>(groups: impl Iterator<Item = (&'a [u8], u64)>, out: &mut Vec<u8>) {
    for (name, offset) in groups {
        encode_offset(name, offset, usize::MAX, out);
    }
}

/// Reads offsets; `None` if the bytes are no such thing.
#[must_use]
pub fn decode_offsets(mut bytes: &[u8]) -> Option<Vec<KeptOffset>> {
    let mut offsets = Vec::new();
    while !bytes.is_empty() {
        let (offset, rest) = bytes.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let (name, rest) = rest.split_at_checked(length)?;
        offsets.push(KeptOffset {
            name: name.into(),
            offset: u64::from_le_bytes(*offset),
        });
        bytes = rest;
    }
    Some(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As much as a small buffer takes.
    const BODY_BYTES_MAX: usize = 3_000;

    fn recorded(groups: &mut Groups) -> Vec<KeptOffset> {
        let mut all = Vec::new();
        while groups.is_due() {
            let mut bytes = Vec::new();
            let count = groups.to_record(BODY_BYTES_MAX, &mut bytes);
            assert!(count > 0 && bytes.len() <= BODY_BYTES_MAX);
            let some = decode_offsets(&bytes).expect("it was just written");
            assert_eq!(some.len(), count as usize);
            groups.recorded(BODY_BYTES_MAX);
            groups.invariants(false);
            all.extend(some);
        }
        all
    }

    fn kept(name: &str, offset: u64) -> KeptOffset {
        let name = name.as_bytes().into();
        KeptOffset { name, offset }
    }

    #[test]
    fn offsets_are_recorded_once_and_in_order() {
        let mut groups = Groups::default();
        let one = groups.add(b"one", 7);
        groups.add(b"two", 1);
        assert_eq!(recorded(&mut groups), [kept("one", 7), kept("two", 1)]);
        let key = ConsumerKey(3);
        groups.get_mut(one).active = Some(key);
        groups.get_mut(one).members = 1;
        groups.came_to(one, key, 9, true);
        groups.came_to(one, key, 8, true);
        groups.came_to(one, ConsumerKey(4), 12, true);
        assert_eq!(recorded(&mut groups), [kept("one", 9)]);
        // What settles nothing is not worth a record, unless it is much, or something was settled behind.
        groups.came_to(one, key, 10, false);
        assert!(!groups.is_due());
        groups.came_to(one, key, 10, true);
        assert_eq!(recorded(&mut groups), [kept("one", 10)]);
        groups.came_to(one, key, 10, true);
        assert!(!groups.is_due());
        groups.came_to(one, key, 10 + UNSETTLED_MAX, false);
        assert_eq!(recorded(&mut groups), [kept("one", 10 + UNSETTLED_MAX)]);
        groups.get_mut(one).active = None;
        groups.get_mut(one).members = 0;
        groups.remove(one);
        groups.add(b"one", 2);
        assert_eq!(recorded(&mut groups), [kept("one", 0), kept("one", 2)]);
    }

    #[test]
    fn a_group_of_lost_messages_is_where_those_end() {
        let mut groups = Groups::default();
        let one = groups.add(b"one", 1);
        groups.remove(one);
        recorded(&mut groups);
        groups.restore(b"one", 30, 25);
        groups.restore(b"two", 20, 25);
        assert_eq!(recorded(&mut groups), [kept("one", 25)]);
        let one = groups.find(b"one").expect("it is there");
        groups.get_mut(one).active = Some(ConsumerKey(1));
        groups.get_mut(one).members = 1;
        groups.came_to(one, ConsumerKey(1), 26, true);
        assert_eq!(recorded(&mut groups), [kept("one", 26)]);
    }

    #[test]
    fn a_record_has_a_bound_and_all_are_recorded() {
        let mut groups = Groups::default();
        let name = |number: usize| format!("{number:0255}");
        for number in 0..GROUPS_MAX {
            assert!(!groups.is_full());
            groups.add(name(number).as_bytes(), number as u64 + 1);
        }
        assert!(groups.is_full());
        assert_eq!(recorded(&mut groups).len(), GROUPS_MAX);
        for number in 0..GROUPS_MAX {
            let found = groups.find(name(number).as_bytes());
            groups.remove(found.expect("it is there"));
        }
        assert_eq!(recorded(&mut groups).len(), GROUPS_MAX);
        assert_eq!(groups.kept().count(), 0);
    }

    #[test]
    fn cuts_are_seen() {
        let mut bytes = Vec::new();
        let groups = [(&b"one"[..], 1), (b"", u64::MAX)];
        encode_offsets(groups.into_iter(), &mut bytes);
        assert_eq!(decode_offsets(&bytes).map(|all| all.len()), Some(2));
        for length in 1..bytes.len() {
            let is_boundary = length == entry_bytes(b"one");
            assert_eq!(decode_offsets(&bytes[..length]).is_some(), is_boundary);
        }
    }
}
