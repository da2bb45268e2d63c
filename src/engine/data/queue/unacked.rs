//! What one consumer holds: deliveries not settled yet, by tag.
//! Does not know queues, credit or what settling means.

use std::collections::VecDeque;

use ringpost_wire::Code;

/// One delivery that is not settled, 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Delivery {
    /// Its delivery tag.
    pub(crate) tag: u64,
    /// The message.
    pub(crate) sequence: u64,
    /// Padded bytes of the message; 0 = settled already, a hole.
    pub(crate) bytes: u32,
    /// Deliveries of the message before this one.
    pub(crate) earlier: u32,
}

const _: () = assert!(size_of::<Delivery>() == 24);

/// Holes that may stay however few deliveries are left.
const HOLES_MIN: usize = 64;

/// Deliveries in the order of their tags. Settled ones leave holes, which are swept out when they
/// outnumber the rest, so one delivery held for ever does not keep all later ones in memory.
#[derive(Default)]
pub(crate) struct Unacked {
    /// By tag; the one at the front is no hole.
    ring: VecDeque<Delivery>,
    holes: usize,
    /// Tag of the newest delivery ever, 0 = none.
    tag_last: u64,
}

impl Unacked {
    /// Tag of the newest delivery ever made, 0 = none.
    pub(crate) const fn tag_last(&self) -> u64 {
        self.tag_last
    }

    /// Tag of the oldest delivery not settled.
    pub(crate) fn front_tag(&self) -> Option<u64> {
        self.ring.front().map(|delivery| delivery.tag)
    }

    /// The message of the oldest delivery not settled.
    pub(crate) fn front_sequence(&self) -> Option<u64> {
        self.ring.front().map(|delivery| delivery.sequence)
    }

    /// Number of deliveries not settled.
    pub(crate) fn len(&self) -> usize {
        self.ring.len() - self.holes
    }

    /// Uses up the next tag for a delivery that needs no settling.
    pub(crate) fn skip_tags(&mut self, count: u64) {
        self.tag_last += count;
    }

    /// Adds deliveries of consecutive messages, one for each entry of `bytes_each`.
    pub(crate) fn push(&mut self, first: u64, earlier: u32, bytes_each: &[u32]) {
        let tag = self.tag_last + 1;
        self.tag_last += bytes_each.len() as u64;
        self.ring
            .extend(bytes_each.iter().enumerate().map(|(idx, bytes)| Delivery {
                tag: tag + idx as u64,
                sequence: first + idx as u64,
                bytes: *bytes,
                earlier,
            }));
    }

    /// Settles the tags `first..=last`, or every one up to `last` if `first` is 0. `each` is told of
    /// every delivery, in order. Nothing happens if one of the tags is not outstanding; cumulatively,
    /// if none is or `last` was never delivered.
    pub(crate) fn settle(
        &mut self,
        first: u64,
        last: u64,
        each: impl FnMut(Delivery),
    ) -> Result<(), Code> {
        if first == 0 {
            self.settle_cumulative(last, each)
        } else {
            self.settle_range(first, last, each)
        }
    }

    fn settle_cumulative(&mut self, last: u64, mut each: impl FnMut(Delivery)) -> Result<(), Code> {
        let front = self.ring.front().ok_or(Code::UnknownDelivery)?;
        if last < front.tag || last > self.tag_last {
            return Err(Code::UnknownDelivery);
        }
        let end = match self.find(last) {
            Ok(idx) if crate::mutant!(SettleOneMore) => (idx + 2).min(self.ring.len()),
            Ok(idx) => idx + 1,
            Err(idx) => idx,
        };
        let (head, tail) = self.ring.as_slices();
        let in_head = end.min(head.len());
        let mut done = 0;
        for part in [&head[..in_head], &tail[..end - in_head]] {
            for delivery in part {
                if delivery.bytes != 0 {
                    done += 1;
                    each(*delivery);
                }
            }
        }
        self.holes -= end - done;
        self.ring.drain(..end);
        self.pop_holes();
        Ok(())
    }

    fn settle_range(
        &mut self,
        first: u64,
        last: u64,
        mut each: impl FnMut(Delivery),
    ) -> Result<(), Code> {
        let start = self.find(first).map_err(|_| Code::UnknownDelivery)?;
        let beyond = last.checked_sub(first).ok_or(Code::UnknownDelivery)?;
        let final_idx = usize::try_from(beyond)
            .ok()
            .and_then(|beyond| start.checked_add(beyond))
            .filter(|idx| self.ring.get(*idx).is_some_and(|d| d.tag == last))
            .ok_or(Code::UnknownDelivery)?;
        // Tags rise, so as many entries as tags means that every tag is there.
        let mut range = self.ring.range_mut(start..=final_idx);
        if range.any(|delivery| delivery.bytes == 0) {
            return Err(Code::UnknownDelivery);
        }
        if start == 0 {
            self.ring.drain(..=final_idx).for_each(each);
        } else {
            for delivery in self.ring.range_mut(start..=final_idx) {
                each(*delivery);
                delivery.bytes = 0;
            }
            self.holes += final_idx - start + 1;
        }
        self.pop_holes();
        Ok(())
    }

    /// Settles everything; keeps the numbering.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Delivery)) {
        for delivery in self.ring.drain(..) {
            if delivery.bytes != 0 {
                each(delivery);
            }
        }
        self.holes = 0;
    }

    /// Deliveries not settled, in the order of their tags.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Delivery> + '_ {
        self.ring.iter().copied().filter(|d| d.bytes != 0)
    }

    /// Where the tag stands, or where it would.
    fn find(&self, tag: u64) -> Result<usize, usize> {
        let Some(front) = self.ring.front() else {
            return Err(0);
        };
        // Without swept holes the tags are consecutive and this is the answer.
        if let Some(guess) = tag.checked_sub(front.tag)
            && let Ok(guess) = usize::try_from(guess)
            && self.ring.get(guess).is_some_and(|d| d.tag == tag)
        {
            return Ok(guess);
        }
        self.ring
            .binary_search_by_key(&tag, |delivery| delivery.tag)
    }

    fn pop_holes(&mut self) {
        while self.holes > 0 && self.ring.front().is_some_and(|d| d.bytes == 0) {
            self.ring.pop_front();
            self.holes -= 1;
        }
        if self.holes > HOLES_MIN && self.holes > self.ring.len() / 2 {
            self.ring.retain(|delivery| delivery.bytes != 0);
            self.holes = 0;
        }
    }

    pub(crate) fn invariants(&self) {
        let holes = self.ring.iter().filter(|d| d.bytes == 0).count();
        assert_eq!(holes, self.holes);
        assert!(self.ring.front().is_none_or(|d| d.bytes != 0));
        assert!(self.ring.back().is_none_or(|d| d.tag <= self.tag_last));
        assert!(
            self.ring
                .iter()
                .zip(self.ring.iter().skip(1))
                .all(|(one, two)| one.tag < two.tag)
        );
        assert!(self.holes <= HOLES_MIN || self.holes <= self.ring.len() / 2);
    }
}
