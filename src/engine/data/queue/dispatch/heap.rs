//! Consumers with room by a rank, the lowest first: O(log n) to enter, leave and change, O(1) to see
//! who is first. Does not know what ranks mean.
//!
//! A consumer knows its place in the heap, so that a change of its rank finds it. Nothing is allocated
//! per change.

use super::Slots;

#[derive(Default)]
pub(super) struct Heap {
    slots: Vec<u32>,
}

impl Heap {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new() }
    }

    pub(super) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn first(&self) -> Option<u32> {
        self.slots.first().copied()
    }

    /// The lower of the two that could follow the first.
    pub(super) fn second(&self, slots: &Slots) -> Option<u32> {
        let left = *self.slots.get(1)?;
        match self.slots.get(2) {
            Some(right) if slots.get(*right).rank < slots.get(left).rank => Some(*right),
            _ => Some(left),
        }
    }

    pub(super) fn enter(&mut self, slots: &mut Slots, slot: u32) {
        self.slots.push(slot);
        let at = self.slots.len() - 1;
        slots.get_mut(slot).before = at as u32;
        self.rise(slots, at);
    }

    pub(super) fn leave(&mut self, slots: &mut Slots, slot: u32) {
        let at = slots.get(slot).before as usize;
        assert!(self.slots[at] == slot);
        self.slots.swap_remove(at);
        slots.get_mut(slot).before = super::NONE;
        if at < self.slots.len() {
            slots.get_mut(self.slots[at]).before = at as u32;
            self.settle(slots, at);
        }
    }

    /// A consumer's rank has changed.
    pub(super) fn changed(&mut self, slots: &mut Slots, slot: u32) {
        self.settle(slots, slots.get(slot).before as usize);
    }

    fn settle(&mut self, slots: &mut Slots, at: usize) {
        let at = self.rise(slots, at);
        self.sink(slots, at);
    }

    fn rise(&mut self, slots: &mut Slots, mut at: usize) -> usize {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.rank(slots, parent) <= self.rank(slots, at) {
                break;
            }
            self.swap(slots, parent, at);
            at = parent;
        }
        at
    }

    fn sink(&mut self, slots: &mut Slots, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= self.slots.len() {
                return;
            }
            let is_right =
                right < self.slots.len() && self.rank(slots, right) < self.rank(slots, left);
            let least = if is_right { right } else { left };
            if self.rank(slots, at) <= self.rank(slots, least) {
                return;
            }
            self.swap(slots, at, least);
            at = least;
        }
    }

    fn rank(&self, slots: &Slots, at: usize) -> (u64, u64) {
        slots.get(self.slots[at]).rank
    }

    fn swap(&mut self, slots: &mut Slots, one: usize, other: usize) {
        self.slots.swap(one, other);
        slots.get_mut(self.slots[one]).before = one as u32;
        slots.get_mut(self.slots[other]).before = other as u32;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().copied()
    }

    pub(super) fn invariants(&self, slots: &Slots) {
        for (at, slot) in self.slots.iter().enumerate() {
            assert_eq!(slots.get(*slot).before as usize, at);
            assert!(at == 0 || self.rank(slots, (at - 1) / 2) <= self.rank(slots, at));
        }
    }
}
