//! Groups in a lane of a stream of several: who reads is decided elsewhere, for all lanes together.
//! Does not know by whom, nor other lanes.

use ringpost_wire::Code;

use super::Reading;
use crate::data::coordinator::Member;
use crate::data::queue::{ConsumerKey, Queue};

/// Most consumers of a group in a lane: each change of one says who all of them are.
pub const MEMBERS_MAX: u32 = 256;

impl Queue {
    /// Whether a group has room for one member more.
    pub(super) fn check_members(&mut self, reading: &Reading) -> Result<(), Code> {
        let groups = &mut self.stream().groups;
        let group = reading.group.as_deref().and_then(|name| groups.find(name));
        match group {
            Some(group) if groups.get_mut(group).members >= MEMBERS_MAX => Err(Code::LimitReached),
            _ => Ok(()),
        }
    }

    /// Somebody has come to a group or gone from it: that is to be said, and may bring the one that is to
    /// read, or take it away.
    pub(super) fn members_changed(&mut self, group: u32) {
        let stream = self.stream();
        if !stream.is_lane {
            return;
        }
        let name = stream.groups.get_mut(group).name().into();
        stream.changed.insert(name);
        self.lead_again(group);
    }

    /// Takes the next group whose members are to be said, and who they are: of each the highest priority.
    pub fn take_members(&mut self) -> Option<(Box<[u8]>, Vec<Member>)> {
        let name = self.stream.as_mut()?.changed.pop_first()?;
        let mut members: Vec<Member> = Vec::new();
        // It may be deleted meanwhile, and has no members then.
        if let Some(group) = self.stream().groups.find(&name) {
            let slots = self.consumers.members_of(group);
            let stream = self.stream.as_deref().expect("it is one");
            members.extend(slots.into_iter().map(|slot| Member {
                id: stream.reader(slot).member,
                priority: self.consumers.rank_in_team(slot),
            }));
            members.sort_unstable_by_key(|member| (member.id, -i16::from(member.priority)));
            members.dedup_by_key(|member| member.id);
        }
        Some((name, members))
    }

    /// Whether a member of a group waits for a decision who reads, or for a record of its new group.
    #[must_use]
    pub fn awaits_group(&self, key: ConsumerKey) -> bool {
        let (Some(slot), Some(stream)) = (self.consumers.slot_of(key), &self.stream) else {
            return false;
        };
        stream.reader(slot).group.is_some_and(|group| {
            let is_undecided = stream.is_lane && self.consumers.active_of(group).is_none();
            is_undecided || !stream.groups.is_kept(group)
        })
    }

    /// This member of a group is to read, or nobody; a group that is not there has been deleted.
    pub fn lead(&mut self, group: &[u8], member: Option<u64>) {
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.is_lane) else {
            return;
        };
        if let Some(group) = stream.groups.find(group) {
            stream.groups.get_mut(group).led = member;
            self.lead_again(group);
            self.follow_election(group);
        }
    }

    /// Of several consumers of the member that is to read the last one does: a connection that was lost
    /// may be noticed later than the next one comes.
    fn lead_again(&mut self, group: u32) {
        let Some(stream) = self.stream.as_deref_mut() else {
            return;
        };
        let led = stream.groups.get_mut(group).led;
        let slots = self.consumers.members_of(group);
        let is_led = |slot: &u32| led == Some(stream.reader(*slot).member);
        let slot = slots.into_iter().find(is_led);
        self.consumers.lead(group, slot);
    }
}
