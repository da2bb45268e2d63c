//! Consumers with room, one after the other: round robin in O(1), whoever enters and leaves.
//! Does not know credit or messages.
//!
//! The one at the head has a turn of some messages (a share of what is ready, so that little work is
//! spread and much work is batched), then goes to the back.

use super::{NONE, Slots, TURN_MESSAGES_MAX, share};

/// A ring through the slots of consumers.
pub(super) struct Ring {
    /// Whose turn it is, `NONE` if nobody has room.
    head: u32,
    len: u32,
    /// Messages that the head may still take in this turn, 0 = its turn has not begun.
    turn_left: u32,
    /// Length of each turn of this round, and turns left in it.
    turn_messages: u32,
    turns_left: u32,
}

impl Ring {
    pub(super) const fn new() -> Self {
        Self {
            head: NONE,
            len: 0,
            turn_left: 0,
            turn_messages: 1,
            turns_left: 0,
        }
    }

    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn turn(&mut self, ready: u64) -> (u32, u32) {
        if self.turn_left == 0 {
            if self.turns_left == 0 {
                self.turn_messages = share(ready, self.len, TURN_MESSAGES_MAX);
                self.turns_left = self.len;
            }
            self.turn_left = self.turn_messages;
        }
        // Alone, nobody waits for the turn to end.
        let turn = if self.len == 1 {
            u32::MAX
        } else {
            self.turn_left
        };
        (self.head, turn)
    }

    pub(super) fn took(&mut self, slots: &Slots, slot: u32, messages: u32) {
        assert!(slot == self.head);
        self.turn_left = self.turn_left.saturating_sub(messages);
        if self.turn_left == 0 {
            self.head = slots.get(slot).after;
            self.turns_left = self.turns_left.saturating_sub(1);
        }
    }

    /// Enters just behind everyone who waits.
    pub(super) fn enter(&mut self, slots: &mut Slots, slot: u32) {
        self.len += 1;
        if self.head == NONE {
            self.head = slot;
            let consumer = slots.get_mut(slot);
            (consumer.before, consumer.after) = (slot, slot);
            return;
        }
        let head = self.head;
        let tail = slots.get(head).before;
        let consumer = slots.get_mut(slot);
        (consumer.before, consumer.after) = (tail, head);
        slots.get_mut(tail).after = slot;
        slots.get_mut(head).before = slot;
    }

    pub(super) fn leave(&mut self, slots: &mut Slots, slot: u32) {
        let consumer = slots.get_mut(slot);
        let (before, after) = (consumer.before, consumer.after);
        (consumer.before, consumer.after) = (NONE, NONE);
        self.len -= 1;
        if self.head == slot {
            if self.turn_left > 0 {
                self.turn_left = 0;
                self.turns_left = self.turns_left.saturating_sub(1);
            }
            self.head = if after == slot { NONE } else { after };
        }
        if after != slot {
            slots.get_mut(before).after = after;
            slots.get_mut(after).before = before;
        }
    }

    pub(super) fn invariants(&self, slots: &Slots) {
        let mut steps = 0;
        let mut at = self.head;
        while at != NONE && (steps == 0 || at != self.head) {
            let after = slots.get(at).after;
            assert_eq!(slots.get(after).before, at);
            at = after;
            steps += 1;
        }
        assert_eq!(steps, self.len);
    }
}
