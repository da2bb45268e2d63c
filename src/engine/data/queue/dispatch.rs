//! Whose turn it is: the consumers of a queue, their credit, and the lines of those with room.
//! Does not know messages; it counts them, and is told the hashes of keys.
//!
//! Only consumers that can take a message now stand in a line, so choosing one costs the same with
//! a thousand idle consumers as with none. There is a line for each priority in use; the first that is
//! not empty is served, in the order of the queue's policy (`line.rs`).

mod heap;
mod line;
mod ring;
mod settings;
mod single;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use super::unacked::Unacked;
use line::Line;
use ringpost_wire::Code;
use single::Single;

pub use settings::{
    DispatchSettings, GROUP_AHEAD, HOLD_MAX_MS, KeySource, PRIORITIES, Policy, Traits, WEIGHTS,
};

/// Names a consumer of a queue; chosen by the caller, who never uses one twice at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConsumerKey(pub u64);

impl ConsumerKey {
    /// Nobody's: of an offer whose consumer is named by the key of its first message.
    pub const BY_KEY: Self = Self(u64::MAX);
}

/// Most unsettled messages and bytes pushed to a consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credit {
    /// Messages; 0 = nothing is pushed, messages are granted one by one.
    pub messages: u32,
    /// Padded bytes; 0 = no limit of bytes. A consumer that holds nothing gets one message of any size.
    pub bytes: u64,
}

/// When a delivery is settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckMode {
    /// When the consumer says so.
    Explicit,
    /// When it is sent.
    None,
}

/// Whether a queue is shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Others may consume too.
    Shared,
    /// No other consumer beside this one.
    Exclusive,
}

/// Most consumers of one queue.
pub const CONSUMERS_MAX: usize = 65_536;
/// Most messages a consumer gets in one turn while others wait.
pub const TURN_MESSAGES_MAX: u32 = 256;

const NONE: u32 = u32::MAX;

pub(crate) struct Consumer {
    pub(crate) key: ConsumerKey,
    credit: Credit,
    pub(crate) mode: AckMode,
    /// Messages granted one by one and not taken yet.
    granted: u32,
    /// Padded bytes of `unacked`.
    pub(crate) outstanding_bytes: u64,
    pub(crate) unacked: Unacked,
    /// Its connection is congested.
    blocked: bool,
    /// The next message did not fit its byte credit; until something is settled.
    short: bool,
    traits: Traits,
    /// How many consumers the queue had before it.
    joined: u64,
    /// It has nothing to read for now: see [`super::stream`].
    parked: bool,
    /// Those of whom one gets messages, of which it is one; `NONE` if it shares with all.
    team: u32,
    /// How it stands among those.
    rank_in_team: i8,
    /// Of its team only one gets messages, and that is another.
    idle: bool,
    /// Neighbours in a ring, or its place in another kind of line and nothing; `NONE` if it is in none.
    before: u32,
    after: u32,
    /// Its rank where the line is one of ranks.
    rank: (u64, u64),
}

impl Consumer {
    /// Messages it may take now.
    pub(crate) fn room(&self) -> u32 {
        let outstanding = u32::try_from(self.unacked.len()).unwrap_or(u32::MAX);
        self.credit
            .messages
            .saturating_sub(outstanding)
            .saturating_add(self.granted)
            .saturating_add(u32::from(crate::mutant!(CreditOneMore)))
    }

    /// Bytes it may take now.
    pub(crate) fn bytes_room(&self) -> u64 {
        match self.credit.bytes {
            0 => u64::MAX,
            limit => limit.saturating_sub(self.outstanding_bytes),
        }
    }

    fn is_eligible(&self) -> bool {
        !self.blocked
            && !self.short
            && !self.idle
            && !self.parked
            && self.room() > 0
            && self.bytes_room() > 0
    }

    pub(crate) const fn is_parked(&self) -> bool {
        self.parked
    }

    fn is_in_line(&self) -> bool {
        self.before != NONE
    }

    fn rank_by_held(&mut self) {
        self.rank.0 = self.unacked.len() as u64;
    }
}

/// Consumers by number; those of consumers that are gone are used again.
struct Slots(Vec<Option<Consumer>>);

impl Slots {
    fn get(&self, slot: u32) -> &Consumer {
        self.0[slot as usize].as_ref().expect("slot in use")
    }

    fn get_mut(&mut self, slot: u32) -> &mut Consumer {
        self.0[slot as usize].as_mut().expect("slot in use")
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Consumer> {
        self.0.iter_mut().flatten()
    }
}

/// A generator of random numbers: the same in every run, so that a queue that is driven alike does
/// alike.
struct Random(u64);

impl Random {
    const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// What each of `len` gets of what is ready, within bounds.
fn share(ready: u64, len: u32, most: u32) -> u32 {
    let share = ready.div_ceil(u64::from(len.max(1)));
    share.clamp(1, u64::from(most)) as u32
}

/// Who gets the next messages.
pub(crate) enum Turn {
    /// Nobody has room.
    Nobody,
    /// The consumer in this slot, so many.
    Of(u32, u32),
    /// Whom the message's key says.
    ByKey,
}

/// The consumers of one queue.
pub(crate) struct Consumers {
    policy: Policy,
    slots: Slots,
    free: Vec<u32>,
    by_key: BTreeMap<ConsumerKey, u32>,
    /// The consumer of the last lookup and its slot: settlements come in bursts.
    last_found: Option<(ConsumerKey, u32)>,
    exclusive: bool,
    /// By priority, the highest first: those that have consumers.
    lines: Vec<Line>,
    /// Teams of which one consumer at a time gets messages: the only one of a queue with a single active
    /// consumer, the groups of a stream.
    teams: Vec<Single>,
    /// Whether all consumers are of the first one.
    is_one_team: bool,
    /// Whether somebody else says who of a team gets messages.
    are_teams_led: bool,
    /// Who is to be told that it is active, or is no longer. Of one consumer at most two in a row.
    notices: VecDeque<(ConsumerKey, bool)>,
    random: Random,
    /// Consumers that ever joined.
    joined: u64,
    /// Sum of message credits and grants.
    credit_sum: u64,
}

impl Consumers {
    pub(crate) fn new(settings: &DispatchSettings) -> Self {
        Self {
            policy: settings.policy,
            slots: Slots(Vec::new()),
            free: Vec::new(),
            by_key: BTreeMap::new(),
            last_found: None,
            exclusive: false,
            lines: Vec::new(),
            teams: Vec::new(),
            is_one_team: settings.is_single_active,
            are_teams_led: false,
            notices: VecDeque::new(),
            random: Random::new(0),
            joined: 0,
            credit_sum: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Sum of message credits and grants.
    pub(crate) const fn credit_sum(&self) -> u64 {
        self.credit_sum
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = ConsumerKey> + '_ {
        self.by_key.keys().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Consumer> {
        self.slots.0.iter().flatten()
    }

    pub(crate) fn add(
        &mut self,
        key: ConsumerKey,
        credit: Credit,
        mode: AckMode,
        sharing: Sharing,
        traits: Traits,
    ) -> Result<(), Code> {
        let joins = self.is_one_team.then_some((0, traits.priority));
        self.add_to(key, credit, (mode, sharing), traits, joins)
            .map(|_| ())
    }

    /// Adds a consumer that reads a stream, to a team if it is of one, with its rank there. Returns its
    /// slot.
    pub(crate) fn add_member(
        &mut self,
        key: ConsumerKey,
        credit: Credit,
        mode: AckMode,
        traits: Traits,
        joins: Option<(u32, i8)>,
    ) -> Result<u32, Code> {
        self.add_to(key, credit, (mode, Sharing::Shared), traits, joins)
    }

    fn add_to(
        &mut self,
        key: ConsumerKey,
        credit: Credit,
        (mode, sharing): (AckMode, Sharing),
        traits: Traits,
        joins: Option<(u32, i8)>,
    ) -> Result<u32, Code> {
        assert!(!self.by_key.contains_key(&key));
        if self.exclusive || (sharing == Sharing::Exclusive && self.len() > 0) {
            return Err(Code::InUse);
        }
        if self.len() == CONSUMERS_MAX {
            return Err(Code::LimitReached);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.0.push(None);
            self.slots.0.len() as u32 - 1
        });
        self.joined += 1;
        let joined = self.joined;
        self.slots.0[slot as usize] = Some(Consumer {
            key,
            credit,
            mode,
            granted: 0,
            outstanding_bytes: 0,
            unacked: Unacked::default(),
            blocked: false,
            short: false,
            traits,
            joined,
            parked: false,
            team: joins.map_or(NONE, |(team, _)| team),
            rank_in_team: joins.map_or(0, |(_, rank)| rank),
            idle: joins.is_some(),
            before: NONE,
            after: NONE,
            rank: (0, 0),
        });
        self.by_key.insert(key, slot);
        self.exclusive = sharing == Sharing::Exclusive;
        self.credit_sum += u64::from(credit.messages);
        let priority = traits.priority;
        let at = self.lines.partition_point(|line| line.priority > priority);
        if self
            .lines
            .get(at)
            .is_none_or(|line| line.priority != priority)
        {
            self.lines.insert(at, Line::new(self.policy, priority));
        }
        self.lines[at].joins(slot, joined);
        self.refresh(slot);
        if let Some((team, rank)) = joins {
            if self.teams.len() <= team as usize {
                let make = match self.are_teams_led {
                    true => Single::led,
                    false => Single::default,
                };
                self.teams.resize_with(team as usize + 1, make);
            }
            self.teams[team as usize].joins(rank, joined, slot);
            self.elect(team);
        }
        Ok(slot)
    }

    pub(crate) fn remove(&mut self, key: ConsumerKey) -> Option<Consumer> {
        let slot = self.by_key.remove(&key)?;
        let Consumer {
            traits,
            joined,
            team,
            rank_in_team,
            ..
        } = *self.slots.get(slot);
        let at = self.line_of(traits.priority);
        let line = &mut self.lines[at];
        if self.slots.get(slot).is_in_line() {
            line.leave(&mut self.slots, slot);
        }
        line.parts(slot, joined);
        if line.members == 0 {
            self.lines.remove(at);
        }
        self.last_found = None;
        self.exclusive = false;
        self.free.push(slot);
        let consumer = self.slots.0[slot as usize].take();
        let consumer = consumer.expect("a key's slot is in use");
        self.credit_sum -= u64::from(consumer.credit.messages) + u64::from(consumer.granted);
        if team != NONE {
            self.teams[team as usize].parts(rank_in_team, joined, slot);
            // Its key may be that of another when they are told.
            self.notices.retain(|(told, _)| *told != key);
            self.elect(team);
        }
        Some(consumer)
    }

    pub(crate) fn find(&mut self, key: ConsumerKey) -> Option<u32> {
        if let Some((found, slot)) = self.last_found
            && found == key
        {
            return Some(slot);
        }
        let slot = *self.by_key.get(&key)?;
        self.last_found = Some((key, slot));
        Some(slot)
    }

    pub(crate) fn slot_of(&self, key: ConsumerKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub(crate) fn get(&self, slot: u32) -> &Consumer {
        self.slots.get(slot)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Consumer {
        self.slots.get_mut(slot)
    }

    pub(crate) fn set_credit(&mut self, slot: u32, credit: Credit) {
        let consumer = self.get_mut(slot);
        let old = u64::from(consumer.credit.messages);
        consumer.credit = credit;
        consumer.short = false;
        self.credit_sum = self.credit_sum - old + u64::from(credit.messages);
        self.refresh(slot);
    }

    pub(crate) fn grant(&mut self, slot: u32, count: u32) {
        let consumer = self.get_mut(slot);
        let before = consumer.granted;
        consumer.granted = before.saturating_add(count);
        let more = consumer.granted - before;
        consumer.short = false;
        self.credit_sum += u64::from(more);
        self.refresh(slot);
    }

    pub(crate) fn cancel_grant(&mut self, slot: u32) -> u32 {
        let granted = core::mem::take(&mut self.get_mut(slot).granted);
        self.credit_sum -= u64::from(granted);
        self.refresh(slot);
        granted
    }

    pub(crate) fn set_blocked(&mut self, slot: u32, blocked: bool) {
        self.get_mut(slot).blocked = blocked;
        self.refresh(slot);
    }

    pub(crate) fn set_parked(&mut self, slot: u32, parked: bool) {
        self.get_mut(slot).parked = parked;
        self.refresh(slot);
    }

    /// A consumer cannot take the next message until it settles something.
    pub(crate) fn set_short(&mut self, slot: u32) {
        self.get_mut(slot).short = true;
        self.refresh(slot);
    }

    /// Something was settled.
    pub(crate) fn gave_back(&mut self, slot: u32, bytes: u64) {
        let consumer = self.slots.get_mut(slot);
        consumer.outstanding_bytes -= bytes;
        consumer.short = false;
        let (is_in_line, priority) = (consumer.is_in_line(), consumer.traits.priority);
        let team = consumer.team;
        if is_in_line {
            let at = self.line_of(priority);
            self.lines[at].holds_less(&mut self.slots, slot);
        }
        self.refresh(slot);
        if team != NONE {
            self.elect(team);
        }
    }

    /// Who gets the next messages; `ready` is what waits to be taken, by whomever.
    pub(crate) fn turn(&mut self, ready: u64) -> Turn {
        let Some(line) = self.lines.iter_mut().find(|line| line.len() > 0) else {
            return Turn::Nobody;
        };
        match line.turn(&self.slots, &mut self.random, ready) {
            Some((slot, messages)) => Turn::Of(slot, messages),
            None => Turn::ByKey,
        }
    }

    /// Who gets a message whose key has this hash, if [`Consumers::turn`] leaves that to the key.
    pub(crate) fn by_key(&self, hash: u64) -> u32 {
        let line = self.lines.iter().find(|line| line.len() > 0);
        let line = line.expect("somebody has room");
        line.by_key(&self.slots, hash)
    }

    /// The same, if somebody has room at all.
    pub(crate) fn find_by_key(&self, hash: u64) -> Option<u32> {
        let line = self.lines.iter().find(|line| line.len() > 0)?;
        Some(line.by_key(&self.slots, hash))
    }

    /// Whether a consumer may take a message now.
    pub(crate) fn is_eligible(&self, slot: u32) -> bool {
        self.get(slot).is_in_line()
    }

    /// The one whose turn it was has taken messages.
    pub(crate) fn took(&mut self, slot: u32, messages: u32) {
        let consumer = self.slots.get_mut(slot);
        let from_grant = messages.min(consumer.granted);
        consumer.granted -= from_grant;
        let priority = consumer.traits.priority;
        self.credit_sum -= u64::from(from_grant);
        let at = self.line_of(priority);
        self.lines[at].took(&mut self.slots, slot, messages);
        self.refresh(slot);
    }

    /// The one whose turn it was has passed over messages, which is a part of its turn.
    pub(crate) fn passed(&mut self, slot: u32, messages: u32) {
        let at = self.line_of(self.get(slot).traits.priority);
        self.lines[at].took(&mut self.slots, slot, messages);
    }

    /// Where the line of a priority stands; the highest comes first, and mostly there is no other.
    fn line_of(&self, priority: i8) -> usize {
        let at = self.lines.iter().position(|line| line.priority == priority);
        at.expect("a consumer's priority has a line")
    }

    /// Puts a consumer into its line or takes it out, as it should be.
    fn refresh(&mut self, slot: u32) {
        let consumer = self.slots.get(slot);
        let is_eligible = consumer.is_eligible();
        if is_eligible == consumer.is_in_line() {
            return;
        }
        let at = self.line_of(consumer.traits.priority);
        if is_eligible {
            self.lines[at].enter(&mut self.slots, slot);
        } else {
            self.lines[at].leave(&mut self.slots, slot);
        }
    }

    /// From now on [`Consumers::lead`] says who of a team gets messages.
    pub(crate) fn let_lead(&mut self) {
        assert!(self.teams.is_empty());
        self.are_teams_led = true;
    }

    /// The consumer in this slot of a team, or nobody, is to get messages, when the one before holds
    /// nothing more.
    pub(crate) fn lead(&mut self, team: u32, slot: Option<u32>) {
        if let Some(single) = self.teams.get_mut(team as usize) {
            single.lead(slot);
            self.elect(team);
        }
    }

    /// Sees who of a team is the one that gets messages.
    fn elect(&mut self, team: u32) {
        let single = &mut self.teams[team as usize];
        let changes = single.elect(&self.slots, &mut self.notices);
        for (slot, is_idle) in changes.into_iter().flatten() {
            self.slots.get_mut(slot).idle = is_idle;
            self.refresh(slot);
        }
    }

    /// Takes the next of those that became the active consumer, or are it no longer, and were not told;
    /// whether it is.
    pub(crate) fn take_notice(&mut self) -> Option<(ConsumerKey, bool)> {
        self.notices.pop_front()
    }

    /// Whether somebody is to be told.
    pub(crate) fn has_notice(&self) -> bool {
        !self.notices.is_empty()
    }

    /// The members of a team, those that came last first: their slots.
    pub(crate) fn members_of(&self, team: u32) -> Vec<u32> {
        let members = self.iter().filter(|consumer| consumer.team == team);
        let mut members: Vec<(u64, u32)> = members
            .filter_map(|consumer| Some((consumer.joined, self.slot_of(consumer.key)?)))
            .collect();
        members.sort_unstable_by(|one, two| two.cmp(one));
        members.into_iter().map(|(_, slot)| slot).collect()
    }

    /// The rank of a consumer in its team.
    pub(crate) fn rank_in_team(&self, slot: u32) -> i8 {
        self.get(slot).rank_in_team
    }

    /// The consumer of a team whose turn it is, also while another waits to take over.
    pub(crate) fn active_of(&self, team: u32) -> Option<ConsumerKey> {
        let slot = self.teams.get(team as usize)?.active_slot()?;
        Some(self.get(slot).key)
    }

    /// Whether a consumer may get messages: it shares the queue, or is the active one.
    pub(crate) fn is_active(&self, slot: u32) -> bool {
        !self.get(slot).idle
    }

    pub(crate) fn invariants(&self) {
        let mut credit_sum = 0;
        let mut eligible = 0;
        for (key, slot) in &self.by_key {
            let consumer = self.get(*slot);
            assert_eq!(consumer.key, *key);
            assert_eq!(consumer.is_in_line(), consumer.is_eligible());
            eligible += u32::from(consumer.is_eligible());
            credit_sum += u64::from(consumer.credit.messages) + u64::from(consumer.granted);
            consumer.unacked.invariants();
            let bytes: u64 = consumer.unacked.iter().map(|d| u64::from(d.bytes)).sum();
            assert_eq!(bytes, consumer.outstanding_bytes);
        }
        assert_eq!(self.iter().count(), self.by_key.len());
        assert_eq!(eligible, self.lines.iter().map(Line::len).sum::<u32>());
        let members: u32 = self.lines.iter().map(|line| line.members).sum();
        assert_eq!(members as usize, self.by_key.len());
        assert!(
            self.lines
                .is_sorted_by(|one, two| one.priority > two.priority)
        );
        assert_eq!(credit_sum, self.credit_sum);
        for line in &self.lines {
            assert!(line.members > 0);
            line.invariants(&self.slots);
        }
        for (team, single) in self.teams.iter().enumerate() {
            let is_in = |consumer: &&Consumer| consumer.team as usize == team;
            single.invariants(&self.slots, self.iter().filter(is_in).count());
        }
    }
}
