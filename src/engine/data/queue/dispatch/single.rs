//! The one consumer of a team that gets messages, and who is next. Does not know credit.
//!
//! ```text
//!   first of the order ──► active ──── a higher priority comes ────► leaving
//!                            │                                         │ holds nothing
//!                            └── goes: what it held is back in order   ▼
//!                                 └──────────────► the first of the order is active
//! ```
//!
//! A team that is *led* is told who is to be active, by somebody who knows of other queues; nobody is
//! until then.

use std::collections::{BTreeSet, VecDeque};

use super::{ConsumerKey, Slots};

#[derive(Default)]
pub(super) struct Single {
    /// Every member: the highest priority first (its negative), then the one that came first.
    order: BTreeSet<(i8, u64, u32)>,
    active: Option<Active>,
    /// Somebody else says who is to be active.
    is_led: bool,
    /// Whom he said.
    led: Option<u32>,
}

#[derive(Clone, Copy)]
struct Active {
    priority: i8,
    slot: u32,
    /// Another takes over when this one holds nothing more.
    is_leaving: bool,
}

impl Single {
    /// A team of whose members nobody is active until somebody says so.
    pub(super) fn led() -> Self {
        Self {
            is_led: true,
            ..Self::default()
        }
    }

    /// This one is to be active.
    pub(super) fn lead(&mut self, slot: Option<u32>) {
        assert!(self.is_led);
        self.led = slot;
    }

    pub(super) fn joins(&mut self, priority: i8, joined: u64, slot: u32) {
        self.order.insert((-priority, joined, slot));
    }

    pub(super) fn parts(&mut self, priority: i8, joined: u64, slot: u32) {
        self.order.remove(&(-priority, joined, slot));
        self.active = self.active.filter(|active| active.slot != slot);
        self.led = self.led.filter(|led| *led != slot);
    }

    /// Who is to be active, and its priority.
    fn wanted(&self) -> Option<(i8, u32)> {
        if self.is_led {
            return self.led.map(|slot| (0, slot));
        }
        let first = self.order.first();
        first.map(|(negative, _, slot)| (-negative, *slot))
    }

    /// The one whose turn it is, also while it is leaving.
    pub(super) fn active_slot(&self) -> Option<u32> {
        self.active.map(|active| active.slot)
    }

    /// Sees who is to be active. Says whose messages stop or start: (slot, gets none).
    pub(super) fn elect(
        &mut self,
        slots: &Slots,
        notices: &mut VecDeque<(ConsumerKey, bool)>,
    ) -> [Option<(u32, bool)>; 2] {
        let mut changes = [None; 2];
        let wanted = self.wanted();
        if let Some(active) = &mut self.active {
            let is_leaving = match wanted {
                _ if self.is_led => wanted.is_none_or(|(_, slot)| slot != active.slot),
                Some((priority, _)) => priority > active.priority,
                None => false,
            };
            if is_leaving != active.is_leaving {
                active.is_leaving = is_leaving;
                changes[0] = Some((active.slot, is_leaving));
                let key = slots.get(active.slot).key;
                notices.push_back((key, !is_leaving));
            }
            let holds = slots.get(active.slot).unacked.len() > 0
                && !crate::mutant!(ActiveBeforeSettled)
                && !(self.is_led && crate::mutant!(LaneBeforeSettled));
            if !is_leaving || holds {
                return changes;
            }
        }
        let Some((priority, slot)) = wanted else {
            self.active = None;
            return changes;
        };
        self.active = Some(Active {
            priority,
            slot,
            is_leaving: false,
        });
        changes[1] = Some((slot, false));
        notices.push_back((slots.get(slot).key, true));
        changes
    }

    pub(super) fn invariants(&self, slots: &Slots, len: usize) {
        assert_eq!(self.order.len(), len);
        assert!(self.is_led || self.active.is_some() == (len > 0));
        for (_, _, slot) in &self.order {
            let is_active = self
                .active
                .is_some_and(|active| active.slot == *slot && !active.is_leaving);
            assert_eq!(slots.get(*slot).idle, !is_active);
        }
    }
}
