//! Which member of a group reads which lane: balanced, with the least movement. Does not know who the
//! members are, nor what they have read.
//!
//! A member that is in every lane is *complete*; one that is coming or going is not, for a while.
//!
//! 1. A lane stays with whom it has, as long as that one is there and nobody complete has a higher
//!    priority.
//! 2. A lane without a member goes to the one with the fewest lanes: of those that are complete, if one
//!    is, else of those that are there.
//! 3. While a complete member has two lanes fewer than another of its priority, one goes from that to it.

use std::collections::BTreeMap;

/// A member of a group, as a lane knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Who it is, in every lane.
    pub id: u64,
    /// Members of the highest priority share the lanes.
    pub priority: i8,
}

/// The lanes of a stream for one group.
#[derive(Debug)]
pub struct Balance {
    lanes: Vec<Lane>,
}

#[derive(Clone, Default, Debug)]
struct Lane {
    /// By number.
    members: Vec<Member>,
    reader: Option<u64>,
}

/// What is known of a member.
#[derive(Default)]
struct Known {
    /// Lanes that it is in.
    present: usize,
    priority: i8,
    /// Lanes that it reads.
    load: usize,
}

impl Balance {
    /// A group of so many lanes that nobody is a member of.
    #[must_use]
    pub fn new(lanes: u8) -> Self {
        Self {
            lanes: vec![Lane::default(); usize::from(lanes)],
        }
    }

    /// Whether nobody is a member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.members.is_empty())
    }

    /// Who reads a lane.
    #[must_use]
    pub fn reader_of(&self, lane: u8) -> Option<u64> {
        self.lanes[usize::from(lane)].reader
    }

    /// These are the members of a lane now. Returns the lanes that another one reads from now on.
    pub fn set_members(&mut self, lane: u8, members: Vec<Member>) -> Vec<u8> {
        self.lanes[usize::from(lane)].members = members;
        let before: Vec<Option<u64>> = self.lanes.iter().map(|lane| lane.reader).collect();
        let mut known = self.known();
        let is_complete = |one: &Known| one.present == self.lanes.len();
        let complete = known.values().filter(|one| is_complete(one));
        let top = complete.map(|one| one.priority).max();
        let share: Vec<u64> = known
            .iter()
            .filter(|(_, one)| is_complete(one) && Some(one.priority) == top)
            .map(|(id, _)| *id)
            .collect();
        self.keep(&known, top);
        for id in self.lanes.iter().filter_map(|lane| lane.reader) {
            known.entry(id).or_default().load += 1;
        }
        self.fill(&mut known, &share);
        self.level(&mut known, &share, top);
        let lanes = self.lanes.iter().zip(before).enumerate();
        lanes
            .filter(|(_, (lane, before))| lane.reader != *before)
            .map(|(number, _)| number as u8)
            .collect()
    }

    fn known(&self) -> BTreeMap<u64, Known> {
        let mut known: BTreeMap<u64, Known> = BTreeMap::new();
        for member in self.lanes.iter().flat_map(|lane| &lane.members) {
            let one = known.entry(member.id).or_insert(Known {
                priority: member.priority,
                ..Known::default()
            });
            one.present += 1;
            one.priority = one.priority.max(member.priority);
        }
        known
    }

    /// Rule 1.
    fn keep(&mut self, known: &BTreeMap<u64, Known>, top: Option<i8>) {
        for lane in &mut self.lanes {
            let members = &lane.members;
            lane.reader = lane.reader.filter(|id| {
                let is_there =
                    members.iter().any(|member| member.id == *id) || crate::mutant!(MemberStays);
                let priority = known.get(id).map(|one| one.priority);
                is_there && top.is_none_or(|top| priority.is_none_or(|own| own >= top))
            });
        }
    }

    /// Rule 2.
    fn fill(&mut self, known: &mut BTreeMap<u64, Known>, share: &[u64]) {
        for lane in &mut self.lanes {
            if lane.reader.is_some() {
                continue;
            }
            let highest = lane.members.iter().map(|member| member.priority).max();
            let there = lane
                .members
                .iter()
                .filter(|member| share.is_empty() && Some(member.priority) == highest)
                .map(|member| member.id);
            let least = share
                .iter()
                .copied()
                .chain(there)
                .min_by_key(|id| (known[id].load, *id));
            lane.reader = least;
            if let Some(one) = least.and_then(|id| known.get_mut(&id)) {
                one.load += 1;
            }
        }
    }

    /// Rule 3.
    fn level(&mut self, known: &mut BTreeMap<u64, Known>, share: &[u64], top: Option<i8>) {
        let Some(top) = top else {
            return;
        };
        loop {
            let least = share.iter().min_by_key(|id| (known[*id].load, **id));
            let least = *least.expect("somebody complete has that priority");
            // Of the one with the most lanes the last.
            let most = self
                .lanes
                .iter_mut()
                .filter(|lane| {
                    let one = lane.reader.and_then(|id| known.get(&id));
                    one.is_some_and(|one| one.priority == top)
                })
                .max_by_key(|lane| lane.reader.map(|id| (known[&id].load, id)));
            let Some(most) = most else {
                return;
            };
            let from = most.reader.expect("it has one");
            if known[&from].load < known[&least].load + 2 {
                return;
            }
            most.reader = Some(least);
            known.entry(from).or_default().load -= 1;
            known.entry(least).or_default().load += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANES: u8 = 12;

    fn member(id: u64, priority: i8) -> Member {
        Member { id, priority }
    }

    /// Who reads the lanes.
    fn readers(balance: &Balance) -> Vec<Option<u64>> {
        balance.lanes.iter().map(|lane| lane.reader).collect()
    }

    fn loads(balance: &Balance) -> BTreeMap<u64, usize> {
        let mut loads = BTreeMap::new();
        for id in readers(balance).into_iter().flatten() {
            *loads.entry(id).or_default() += 1;
        }
        loads
    }

    /// A member comes to the lanes in this order, or goes. Returns how many changed hands.
    fn move_in_order(
        balance: &mut Balance,
        lanes: &[u8],
        change: impl Fn(&mut Vec<Member>),
    ) -> usize {
        let before = readers(balance);
        for lane in lanes {
            let mut members = balance.lanes[usize::from(*lane)].members.clone();
            change(&mut members);
            let was = readers(balance);
            let told = balance.set_members(*lane, members);
            for (number, (was, is)) in was.iter().zip(readers(balance)).enumerate() {
                assert_eq!(told.contains(&(number as u8)), *was != is);
            }
            // Nobody reads what he is not in, and somebody reads whatever somebody is in.
            for lane in &balance.lanes {
                let is_there = |id| lane.members.iter().any(|member| member.id == id);
                assert_eq!(lane.reader.is_some(), !lane.members.is_empty());
                assert!(lane.reader.is_none_or(is_there));
            }
        }
        let moved = before.iter().zip(readers(balance));
        moved.filter(|(before, is)| **before != *is).count()
    }

    fn comes(balance: &mut Balance, lanes: &[u8], one: Member) -> usize {
        move_in_order(balance, lanes, |members| {
            members.push(one);
            members.sort_by_key(|member| member.id);
        })
    }

    fn goes(balance: &mut Balance, lanes: &[u8], id: u64) -> usize {
        move_in_order(balance, lanes, |members| members.retain(|m| m.id != id))
    }

    fn shuffled(seed: &mut u64) -> Vec<u8> {
        let mut lanes: Vec<u8> = (0..LANES).collect();
        for at in (1..lanes.len()).rev() {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            lanes.swap(at, (*seed >> 33) as usize % (at + 1));
        }
        lanes
    }

    #[test]
    fn lanes_are_shared_evenly_and_no_more_move_than_must() {
        for seed in 0..200 {
            let mut seed = seed;
            let mut balance = Balance::new(LANES);
            let mut there: Vec<u64> = Vec::new();
            for step in 0..60 {
                let lanes = shuffled(&mut seed);
                let is_coming = there.is_empty() || (seed >> 40) % 5 < 3;
                if is_coming && there.len() < 20 {
                    let id = step + 1;
                    let moved = comes(&mut balance, &lanes, member(id, 0));
                    there.push(id);
                    // Its own share, from others; the first one gets all.
                    let share = usize::from(LANES) / there.len();
                    assert_eq!(moved, share);
                    assert_eq!(loads(&balance).get(&id).copied().unwrap_or(0), share);
                } else {
                    let id = there.remove(seed as usize % there.len());
                    let own = loads(&balance).get(&id).copied().unwrap_or(0);
                    assert_eq!(goes(&mut balance, &lanes, id), own);
                }
                let loads = loads(&balance);
                let most = loads.values().max().copied().unwrap_or(0);
                let least = there.iter().map(|id| loads.get(id).copied().unwrap_or(0));
                assert!(least.min().unwrap_or(0) + 1 >= most);
            }
        }
    }

    #[test]
    fn a_member_of_a_higher_priority_takes_all_lanes_when_it_is_complete() {
        let mut balance = Balance::new(LANES);
        let all: Vec<u8> = (0..LANES).collect();
        comes(&mut balance, &all, member(1, 0));
        comes(&mut balance, &all[1..], member(2, 5));
        assert_eq!(loads(&balance), BTreeMap::from([(1, 12)]));
        comes(&mut balance, &all[..1], member(2, 5));
        assert_eq!(loads(&balance), BTreeMap::from([(2, 12)]));
        comes(&mut balance, &all, member(3, 5));
        assert_eq!(loads(&balance), BTreeMap::from([(2, 6), (3, 6)]));
        goes(&mut balance, &all, 2);
        goes(&mut balance, &all, 3);
        assert_eq!(loads(&balance), BTreeMap::from([(1, 12)]));
        goes(&mut balance, &all, 1);
        assert!(balance.is_empty() && loads(&balance).is_empty());
    }

    #[test]
    fn who_is_in_some_lanes_only_gets_what_nobody_else_reads() {
        let mut balance = Balance::new(LANES);
        let all: Vec<u8> = (0..LANES).collect();
        comes(&mut balance, &all[..2], member(1, 0));
        comes(&mut balance, &all[1..3], member(2, 0));
        assert_eq!(readers(&balance)[..4], [Some(1), Some(1), Some(2), None]);
        comes(&mut balance, &all, member(3, 0));
        assert_eq!(loads(&balance), BTreeMap::from([(1, 2), (2, 1), (3, 9)]));
        // One that begins to go keeps what it has until it lets go of it.
        comes(&mut balance, &all, member(4, 0));
        let before = loads(&balance)[&3];
        goes(&mut balance, &all[..1], 3);
        assert_eq!(loads(&balance)[&3], before);
    }
}
