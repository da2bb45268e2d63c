//! Which slots exist, which are free, and what keeps a segment from being reused (rulings 12, 17).
//! Does not know what a unit is, nor how a file is made.

use crate::data::journal::segment::{Segment, SlotState};
use crate::data::journal::{Journal, RESERVE_SLOTS, RESUME_SLOTS, SlotTask};
use crate::effect::{Buffers, Effect, Effects, FileOp};
use crate::ids::{Mono, SegmentIdx, SlotId};

impl Journal {
    /// Adds units that are live in a segment: recovery found them.
    pub fn retain(&mut self, segment: SegmentIdx, units: u32) {
        self.table.get_mut(segment).live_count += u64::from(units);
    }

    /// Takes away units that are durably settled, or have moved.
    pub fn drop_live(&mut self, segment: SegmentIdx, units: u32) {
        let mut segment = self.table.get_mut(segment);
        segment.live_count = segment
            .live_count
            .checked_sub(u64::from(units))
            .expect("a unit is dropped once");
    }

    /// A relocation into this segment is no longer in flight.
    pub(crate) fn unpin(&mut self, segment: SegmentIdx) {
        let mut segment = self.table.get_mut(segment);
        segment.pin_count = segment
            .pin_count
            .checked_sub(1)
            .expect("a pin is taken away once");
    }

    /// Makes slots free whose segment neither holds anything live nor is needed by one of the two
    /// checkpoints on disk (rulings 12).
    pub(super) fn reclaim(&mut self, effects: &mut Effects) {
        let durable = self.checkpoints.durable_generation;
        for index in 0..self.table.len() {
            let index = SegmentIdx(index as u32);
            let mut segment = self.table.get_mut(index);
            if segment.state == SlotState::Sealed
                && segment.live_count == 0
                && segment.pin_count == 0
                && (durable >= segment.named_generation + 2 || crate::mutant!(EarlyReuse))
            {
                segment.state = if segment.is_short {
                    SlotState::Absent
                } else {
                    SlotState::Free
                };
                self.cache.drop_segment(index, effects);
                self.failed_reads.forget(index);
            }
        }
        self.slot_freed();
    }

    /// A free slot was put to use: fewer than it seemed are to spare.
    pub(super) fn slot_taken(&mut self) {
        let free = self.table.count(SlotState::Free);
        if let Some((_, fewest)) = &mut self.spare_since {
            *fewest = free.min(*fewest);
        }
        let spare = free.saturating_sub(self.free_target());
        self.surplus = self.surplus.min(spare);
    }

    pub(super) fn slot_freed(&mut self) {
        let free = self.table.count(SlotState::Free);
        if free >= RESERVE_SLOTS + RESUME_SLOTS {
            self.is_publish_refused = false;
            if let Some(segment) = self.segment {
                self.table.get_mut(segment).is_reserve = false;
            }
        }
        if self.next_slot.is_none() {
            self.next_slot = self.table.first(SlotState::Free, None);
        }
    }

    /// Free slots that are kept ready.
    pub(super) fn free_target(&self) -> usize {
        RESERVE_SLOTS + RESUME_SLOTS.max(self.config.spare_slots as usize)
    }

    /// Slots that there may be. A start that finds none free may have one more, or it could write
    /// neither its first block nor the checkpoint that frees others.
    fn slots_limit(&self) -> usize {
        let has_one = self.is_ready() || self.table.count(SlotState::Free) > 0;
        let limit = match has_one || crate::mutant!(NoSlotForAStart) {
            true => self.config.slots_max,
            false => self.config.slots_at_start_max(),
        };
        limit as usize
    }

    pub(super) fn supply_slots(&mut self, now: Mono, effects: &mut Effects) {
        if self.slot_task.is_some() || self.create_after.is_some_and(|after| now < after) {
            return;
        }
        self.create_after = None;
        let free = self.table.count(SlotState::Free);
        let count = self.table.len() - self.table.count(SlotState::Absent);
        if free < self.free_target() && count < self.slots_limit() {
            let journal = self.config.journal;
            let slot = match self.table.first(SlotState::Absent, None) {
                Some(slot) => slot,
                None => {
                    let number = self.table.len() as u32;
                    let slot = SlotId(number);
                    self.table.push(Segment::absent(slot, journal))
                }
            };
            let op = self.new_op();
            self.table.get_mut(slot).state = SlotState::Busy;
            self.slot_task = Some((op, SlotTask::Create(slot)));
            effects.push(Effect::File {
                op,
                what: FileOp::CreateSlot {
                    slot: self.table.get(slot).slot,
                    bytes: u64::from(self.config.segment_bytes),
                },
            });
        } else if self.surplus > 0 {
            self.surplus -= 1;
            self.remove_slot(self.free_target(), effects);
        }
    }

    /// Finds out how many free slots nothing needs: the fewest that were too many all the while.
    pub(super) fn watch_spares(&mut self, now: Mono) {
        let free = self.table.count(SlotState::Free);
        let target = self.free_target();
        if free <= target || self.surplus > 0 {
            self.spare_since = None;
            return;
        }
        let (since, fewest) = *self.spare_since.get_or_insert((now, free));
        let fewest = fewest.min(free);
        if now.ms_since(since) < self.config.spare_after_ms {
            self.spare_since = Some((since, fewest));
        } else {
            self.spare_since = None;
            self.surplus = fewest.saturating_sub(target);
        }
    }

    /// Gives a free slot back to the file system, if more than `kept` are free.
    pub(super) fn remove_slot(&mut self, kept: usize, effects: &mut Effects) {
        let free = self.table.count(SlotState::Free);
        if self.slot_task.is_some() || free <= kept {
            return;
        }
        let Some(slot) = self.table.first(SlotState::Free, self.next_slot) else {
            return;
        };
        let op = self.new_op();
        self.table.get_mut(slot).state = SlotState::Busy;
        self.slot_task = Some((op, SlotTask::Remove(slot)));
        effects.push(Effect::File {
            op,
            what: FileOp::RemoveSlot {
                slot: self.table.get(slot).slot,
            },
        });
    }

    /// Gives cached buffers back until as many are free as the configuration keeps. Returns whether
    /// it gave any.
    pub fn supply_buffers(&mut self, buffers: &impl Buffers, effects: &mut Effects) -> bool {
        let wanted = self.config.buffers_free_min as usize;
        let missing = wanted.saturating_sub(buffers.available());
        let filling = self.window.map(|window| window.buffer);
        let mut given = 0;
        while given < missing && self.cache.evict(self.durable, filling, effects) {
            given += 1;
        }
        given > 0
    }
}
