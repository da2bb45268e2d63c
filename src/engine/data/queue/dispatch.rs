//! Whose turn it is: the consumers of a queue, their credit, and the ring of those with room.
//! Does not know messages; it counts them.
//!
//! Only consumers that can take a message now stand in the ring, so choosing one costs the same with
//! a thousand idle consumers as with none. The one at the head has a turn of some messages (a share
//! of what is ready, so that little work is spread and much work is batched), then goes to the back.

use std::collections::BTreeMap;

use super::unacked::Unacked;
use ringpost_wire::Code;

/// Names a consumer of a queue; chosen by the caller, who never uses one twice at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConsumerKey(pub u64);

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
    /// Neighbours in the ring, `NONE` if it is not in it.
    before: u32,
    after: u32,
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
        !self.blocked && !self.short && self.room() > 0 && self.bytes_room() > 0
    }

    fn in_ring(&self) -> bool {
        self.before != NONE
    }
}

/// The consumers of one queue.
pub(crate) struct Consumers {
    slots: Vec<Option<Consumer>>,
    free: Vec<u32>,
    by_key: BTreeMap<ConsumerKey, u32>,
    /// The consumer of the last lookup and its slot: settlements come in bursts.
    last_found: Option<(ConsumerKey, u32)>,
    exclusive: bool,
    /// Whose turn it is, `NONE` if nobody has room.
    head: u32,
    in_ring: u32,
    /// Messages that the head may still take in this turn, 0 = its turn has not begun.
    turn_left: u32,
    /// Length of each turn of this round, and turns left in it.
    turn_messages: u32,
    turns_left: u32,
    /// Sum of message credits and grants.
    credit_sum: u64,
}

impl Consumers {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: BTreeMap::new(),
            last_found: None,
            exclusive: false,
            head: NONE,
            in_ring: 0,
            turn_left: 0,
            turn_messages: 1,
            turns_left: 0,
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
        self.slots.iter().flatten()
    }

    pub(crate) fn add(
        &mut self,
        key: ConsumerKey,
        credit: Credit,
        mode: AckMode,
        sharing: Sharing,
    ) -> Result<(), Code> {
        assert!(!self.by_key.contains_key(&key));
        if self.exclusive || (sharing == Sharing::Exclusive && self.len() > 0) {
            return Err(Code::InUse);
        }
        if self.len() == CONSUMERS_MAX {
            return Err(Code::LimitReached);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = Some(Consumer {
            key,
            credit,
            mode,
            granted: 0,
            outstanding_bytes: 0,
            unacked: Unacked::default(),
            blocked: false,
            short: false,
            before: NONE,
            after: NONE,
        });
        self.by_key.insert(key, slot);
        self.exclusive = sharing == Sharing::Exclusive;
        self.credit_sum += u64::from(credit.messages);
        self.refresh(slot);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: ConsumerKey) -> Option<Consumer> {
        let slot = self.by_key.remove(&key)?;
        self.leave_ring(slot);
        self.last_found = None;
        self.exclusive = false;
        self.free.push(slot);
        let consumer = self.slots[slot as usize].take();
        let consumer = consumer.expect("a key's slot is in use");
        self.credit_sum -= u64::from(consumer.credit.messages) + u64::from(consumer.granted);
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

    pub(crate) fn get(&self, slot: u32) -> &Consumer {
        self.slots[slot as usize].as_ref().expect("slot in use")
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Consumer {
        self.slots[slot as usize].as_mut().expect("slot in use")
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

    /// The head cannot take the next message until it settles something.
    pub(crate) fn set_short(&mut self, slot: u32) {
        self.get_mut(slot).short = true;
        self.refresh(slot);
    }

    /// Something was settled.
    pub(crate) fn gave_back(&mut self, slot: u32, bytes: u64) {
        let consumer = self.get_mut(slot);
        consumer.outstanding_bytes -= bytes;
        consumer.short = false;
        self.refresh(slot);
    }

    /// The consumer whose turn it is and the messages it may take in this turn; `ready` is what
    /// waits to be taken, by whomever.
    pub(crate) fn turn(&mut self, ready: u64) -> Option<(u32, u32)> {
        if self.head == NONE {
            return None;
        }
        if self.turn_left == 0 {
            if self.turns_left == 0 {
                let share = ready.div_ceil(u64::from(self.in_ring));
                self.turn_messages = share.clamp(1, u64::from(TURN_MESSAGES_MAX)) as u32;
                self.turns_left = self.in_ring;
            }
            self.turn_left = self.turn_messages;
        }
        // Alone, nobody waits for the turn to end.
        let turn = if self.in_ring == 1 {
            u32::MAX
        } else {
            self.turn_left
        };
        Some((self.head, turn))
    }

    /// The head has taken `messages` messages.
    pub(crate) fn took(&mut self, slot: u32, messages: u32) {
        assert!(slot == self.head);
        let consumer = self.get_mut(slot);
        let from_grant = messages.min(consumer.granted);
        consumer.granted -= from_grant;
        self.credit_sum -= u64::from(from_grant);
        self.turn_left = self.turn_left.saturating_sub(messages);
        if self.turn_left == 0 {
            self.head = self.get(slot).after;
            self.turns_left = self.turns_left.saturating_sub(1);
        }
        self.refresh(slot);
    }

    /// Puts a consumer into the ring or takes it out, as it should be.
    fn refresh(&mut self, slot: u32) {
        let consumer = self.get(slot);
        match (consumer.is_eligible(), consumer.in_ring()) {
            (true, false) => self.enter_ring(slot),
            (false, true) => self.leave_ring(slot),
            (true, true) | (false, false) => {}
        }
    }

    /// Enters the ring just behind everyone who waits.
    fn enter_ring(&mut self, slot: u32) {
        self.in_ring += 1;
        if self.head == NONE {
            self.head = slot;
            let consumer = self.get_mut(slot);
            (consumer.before, consumer.after) = (slot, slot);
            return;
        }
        let head = self.head;
        let tail = self.get(head).before;
        let consumer = self.get_mut(slot);
        (consumer.before, consumer.after) = (tail, head);
        self.get_mut(tail).after = slot;
        self.get_mut(head).before = slot;
    }

    fn leave_ring(&mut self, slot: u32) {
        let consumer = self.get_mut(slot);
        let (before, after) = (consumer.before, consumer.after);
        if before == NONE {
            return;
        }
        (consumer.before, consumer.after) = (NONE, NONE);
        self.in_ring -= 1;
        if self.head == slot {
            if self.turn_left > 0 {
                self.turn_left = 0;
                self.turns_left = self.turns_left.saturating_sub(1);
            }
            self.head = if after == slot { NONE } else { after };
        }
        if after != slot {
            self.get_mut(before).after = after;
            self.get_mut(after).before = before;
        }
    }

    pub(crate) fn invariants(&self) {
        let mut credit_sum = 0;
        let mut eligible = 0;
        for (key, slot) in &self.by_key {
            let consumer = self.get(*slot);
            assert_eq!(consumer.key, *key);
            assert_eq!(consumer.in_ring(), consumer.is_eligible());
            eligible += u32::from(consumer.is_eligible());
            credit_sum += u64::from(consumer.credit.messages) + u64::from(consumer.granted);
            consumer.unacked.invariants();
            let bytes: u64 = consumer.unacked.iter().map(|d| u64::from(d.bytes)).sum();
            assert_eq!(bytes, consumer.outstanding_bytes);
        }
        assert_eq!(self.iter().count(), self.by_key.len());
        assert_eq!(eligible, self.in_ring);
        assert_eq!(credit_sum, self.credit_sum);
        let mut steps = 0;
        let mut at = self.head;
        while at != NONE && (steps == 0 || at != self.head) {
            let after = self.get(at).after;
            assert_eq!(self.get(after).before, at);
            at = after;
            steps += 1;
        }
        assert_eq!(steps, self.in_ring);
    }
}
