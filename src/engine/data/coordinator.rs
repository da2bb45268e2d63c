//! Groups of streams of several lanes: lanes say who their members are, and the core of the first lane
//! says which of them reads (ADR 25). Does not know offsets, nor when a lane changes hands.
//!
//! ```text
//! core of a lane                       core of the first lane
//!   a member comes or goes ── Members ──► Balance
//!   elect, when all is settled ◄── Lead ──┘  for every lane that changes
//! ```
//!
//! Lanes say again whatever has changed, so that nothing is kept here that would be missed: a lane that
//! is deleted says that it has no members.

mod balance;

use std::collections::BTreeMap;

use ringpost_wire::ids::{CoreId, PartitionId, QueueId};

pub use self::balance::{Balance, Member};
use crate::Effects;
use crate::data::flow::{Flow, Waiter};
use crate::mesh::Request;

/// Which lane of which stream a queue is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LaneOf {
    /// The stream, whose lanes follow it by number.
    pub stream: QueueId,
    /// The partition of its first lane.
    pub partition: PartitionId,
    /// How many it has.
    pub lanes: u8,
    /// The number of this one.
    pub number: u8,
}

/// Who the members of a group are in a lane.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Members {
    /// The lane.
    pub lane: LaneOf,
    /// The group.
    pub group: Box<[u8]>,
    /// By number.
    pub members: Vec<Member>,
}

/// The groups that this core decides about.
#[derive(Default, Debug)]
pub struct Coordinators {
    groups: BTreeMap<(QueueId, Box<[u8]>), Balance>,
}

impl Coordinators {
    /// Lanes that are to be told who reads them now: this one, and others if that changes.
    fn decide(&mut self, said: Members) -> Vec<(u8, Option<u64>)> {
        let Members {
            lane,
            group,
            members,
        } = said;
        let key = (lane.stream, group);
        let balance = self
            .groups
            .entry(key.clone())
            .or_insert_with(|| Balance::new(lane.lanes));
        let mut told = balance.set_members(lane.number, members);
        if !told.contains(&lane.number) {
            told.push(lane.number);
        }
        let told = told.into_iter();
        let told = told.map(|lane| (lane, balance.reader_of(lane))).collect();
        if balance.is_empty() {
            self.groups.remove(&key);
        }
        told
    }

    /// Groups that are decided about here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

impl Flow {
    /// Why a queue cannot be read, or its groups be asked about: what holds its messages are lanes.
    pub(crate) fn is_read_by_lane(&self, queue: QueueId) -> Option<String> {
        let lanes = self.router.lanes_of(queue)?;
        let name = String::from_utf8_lossy(&lanes.name);
        let last = lanes.count - 1;
        Some(format!(
            "the stream '{name}' has {} lanes, each of which is a stream for those who read: '{name}#0' \
             to '{name}#{last}'",
            lanes.count
        ))
    }

    /// Says who the members of a lane's groups are, where they have changed; one at a time, so that
    /// nobody who comes and goes fills the way to another core.
    pub(crate) fn say_members(&mut self, queue: QueueId, effects: &mut Effects) {
        while let Some(state) = self.queues.get_mut(queue)
            && let Some(lane) = state.lane
            && !state.is_saying_members
            && let Some((group, members)) = state.queue.take_members()
        {
            let said = Members {
                lane,
                group,
                members,
            };
            let decider = self.router.core_of(lane.partition);
            if decider == self.config.core {
                self.members_are(said, effects);
            } else {
                state.is_saying_members = true;
                let request = Request::Members(Box::new(said));
                self.ask(decider, request, Waiter::Members(queue), effects);
            }
        }
    }

    /// The core that decides has heard who the members of a lane are.
    pub(crate) fn members_said(&mut self, queue: QueueId, effects: &mut Effects) {
        if let Some(state) = self.queues.get_mut(queue) {
            state.is_saying_members = false;
            self.say_members(queue, effects);
        }
    }

    /// A lane says who its members are: decides who reads, and tells the lanes.
    //= P-89
    pub(crate) fn members_are(&mut self, said: Members, effects: &mut Effects) {
        let (lane, group) = (said.lane, said.group.clone());
        for (number, member) in self.coordinators.decide(said) {
            let queue = QueueId(lane.stream.0 + 1 + u32::from(number));
            let core = self.core_of_lane(lane, number);
            if core == self.config.core {
                self.lead(queue, &group, member);
            } else {
                let group = group.clone();
                let request = Request::Lead {
                    queue,
                    group,
                    member,
                };
                self.ask(core, request, Waiter::Nobody, effects);
            }
        }
    }

    fn core_of_lane(&self, lane: LaneOf, number: u8) -> CoreId {
        let partition = usize::from(lane.partition.0) + usize::from(number);
        let partition = partition % self.router.partitions();
        self.router.core_of(PartitionId(partition as u16))
    }

    /// Who is to read a lane of this core for a group.
    pub(crate) fn lead(&mut self, queue: QueueId, group: &[u8], member: Option<u64>) {
        // It may be deleted meanwhile.
        if let Some(state) = self.queues.get_mut(queue) {
            state.queue.lead(group, member);
            self.wake(queue);
        }
    }
}
