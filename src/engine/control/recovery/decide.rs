//! Where a journal ends, decided from what a scan saw: torn or rotten, cut or hole.
//! Does not read, and does not know what records are in a block.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::data::journal::WRITES_IN_FLIGHT_MAX;
use crate::data::journal::block::{BlockHeader, BlockSequence, Content, SegmentNumber};
use crate::ids::SegmentIdx;

/// A block that the scan found.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Where.
    pub segment: SegmentIdx,
    /// Its header, which proved itself.
    pub header: BlockHeader,
    /// What the rest proves.
    pub content: Content,
}

/// Where the chain begins: behind the checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// The segment that was open, and where its next block goes.
    pub position: Option<(SegmentIdx, u32)>,
    /// Its number; blocks of lower ones are not part of the tail.
    pub number: SegmentNumber,
    /// The first block expected.
    pub next_sequence: BlockSequence,
    /// `header_crc` of the block before.
    pub prev_crc: u32,
    /// Incarnation of the block before.
    pub incarnation: u32,
    /// Every block up to this one was durable, say the checkpoints.
    pub durable: BlockSequence,
}

/// One step of a replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Replay this block (an index into what was seen).
    Whole(usize),
    /// This block was durable and is damaged: replay the records that prove themselves.
    Damaged(usize),
    /// Blocks `from..upto` were durable and are missing; they began here.
    Hole {
        /// First missing.
        from: BlockSequence,
        /// First after them.
        upto: BlockSequence,
        /// Where they began, if known.
        position: Option<(SegmentIdx, u32)>,
    },
}

/// What [`decide`] decided.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to replay.
    pub steps: Vec<Step>,
    /// Where the next block goes; `None` for a new segment.
    pub position: Option<(SegmentIdx, u32)>,
    /// The next block.
    pub next_sequence: BlockSequence,
    /// `header_crc` of the block before.
    pub prev_crc: u32,
    /// Blocks behind the cut.
    pub cut_count: u64,
}

/// Follows the chain through what was seen. Pure.
#[must_use]
pub fn decide(base: &Base, seen: &[Seen]) -> Plan {
    let mut by_sequence: BTreeMap<BlockSequence, Vec<usize>> = BTreeMap::new();
    for (index, block) in seen.iter().enumerate() {
        by_sequence
            .entry(block.header.sequence)
            .or_default()
            .push(index);
    }
    let mut steps = Vec::new();
    let mut position = base.position;
    let mut number = base.number;
    let mut next = base.next_sequence;
    let mut prev_crc = base.prev_crc;
    let mut incarnation = base.incarnation;
    // A slot holds one segment and a segment lies in one slot: what says otherwise was misdirected.
    let mut left: BTreeSet<SegmentIdx> = BTreeSet::new();
    loop {
        // The block that must come now: chained, not of an abandoned incarnation, and either right
        // behind the last one or first of a later segment.
        let chained = by_sequence.get(&next).and_then(|candidates| {
            let is_chained = |index: &usize| {
                let block = &seen[*index];
                let header = &block.header;
                let is_behind = position == Some((block.segment, header.offset))
                    && header.segment_number == number;
                let is_first = header.offset == 0
                    && header.segment_number > number
                    && is_home(block, position, number, &left);
                let follows = header.prev_crc == prev_crc && header.incarnation >= incarnation;
                (follows || crate::mutant!(BlockChainIgnored)) && (is_behind || is_first)
            };
            candidates
                .iter()
                .copied()
                .filter(is_chained)
                .max_by_key(|index| {
                    let incarnation = seen[*index].header.incarnation;
                    (
                        if crate::mutant!(AbandonedBlockTaken) {
                            u32::MAX - incarnation
                        } else {
                            incarnation
                        },
                        seen[*index].content.is_good(),
                    )
                })
        });
        let whole = chained.filter(|index| seen[*index].content.is_good());
        let step = match whole {
            Some(index) => Step::Whole(index),
            None => {
                // Torn or rotten? (rulings 9)
                let is_later = |block: &&Seen| {
                    block.header.sequence > next && block.header.incarnation >= incarnation
                };
                let stated = seen
                    .iter()
                    .filter(is_later)
                    .map(|block| synced_upto(&block.header))
                    .max()
                    .unwrap_or_default();
                let is_later_there = seen.iter().any(|block| is_later(&block));
                let is_torn = stated.max(base.durable) < next
                    && !(is_later_there && crate::mutant!(TornTakenForDamage));
                if is_torn || crate::mutant!(DamageEndsTheJournal) {
                    break;
                }
                match chained {
                    Some(index) => Step::Damaged(index),
                    None => match resume(seen, &by_sequence, next, incarnation, |block| {
                        is_home(block, position, number, &left)
                    }) {
                        Some(index) => {
                            let header = &seen[index].header;
                            if header.sequence > next {
                                steps.push(Step::Hole {
                                    from: next,
                                    upto: header.sequence,
                                    position,
                                });
                            }
                            // Go on as if the chain led there: the block itself may be torn.
                            if header.segment_number > number {
                                left.extend(position.map(|(segment, _)| segment));
                            }
                            position = Some((seen[index].segment, header.offset));
                            number = header.segment_number;
                            next = header.sequence;
                            prev_crc = header.prev_crc;
                            incarnation = header.incarnation;
                            continue;
                        }
                        None => {
                            // Only a checkpoint vouches for it: everything to its end is missing.
                            // What is there is evidence, so writing goes on elsewhere.
                            let upto = BlockSequence(base.durable.max(stated).0 + 1);
                            steps.push(Step::Hole {
                                from: next,
                                upto,
                                position,
                            });
                            position = None;
                            next = upto;
                            prev_crc = 0;
                            break;
                        }
                    },
                }
            }
        };
        let (Step::Whole(index) | Step::Damaged(index)) = step else {
            unreachable!("holes are pushed above");
        };
        let block = &seen[index];
        steps.push(step);
        if block.header.segment_number > number {
            left.extend(position.map(|(segment, _)| segment));
        }
        position = Some((block.segment, block.header.offset + block.header.bytes()));
        number = block.header.segment_number;
        next = BlockSequence(block.header.sequence.0 + 1);
        prev_crc = block.header.header_crc;
        incarnation = block.header.incarnation;
    }
    let cut_count = by_sequence
        .range(next..)
        .flat_map(|(_, indexes)| indexes)
        .filter(|index| seen[**index].header.incarnation >= incarnation)
        .count() as u64;
    Plan {
        steps,
        position,
        next_sequence: next,
        prev_crc,
        cut_count,
    }
}

/// Every block up to here was synced, or this one would not be on the disk: what it states, which is as
/// old as it waited for its turn to be written, and all that could not be in flight beside it.
fn synced_upto(header: &BlockHeader) -> BlockSequence {
    let behind = header
        .sequence
        .0
        .saturating_sub(u64::from(WRITES_IN_FLIGHT_MAX));
    match crate::mutant!(BacklogHidesDamage) {
        true => header.durable_upto,
        false => header.durable_upto.max(BlockSequence(behind)),
    }
}

/// Whether a block lies in the one slot that its segment can be in, if the chain has come to
/// `position` in segment `number` and has `left` others.
fn is_home(
    block: &Seen,
    position: Option<(SegmentIdx, u32)>,
    number: SegmentNumber,
    left: &BTreeSet<SegmentIdx>,
) -> bool {
    let is_here = position.is_some_and(|(segment, _)| segment == block.segment);
    match block.header.segment_number.cmp(&number) {
        Ordering::Less => false,
        Ordering::Equal => is_here,
        Ordering::Greater => !is_here && !left.contains(&block.segment),
    }
}

/// The first block behind a hole at `next` that may be believed: one that states the hole was
/// synced, or one that such a block is chained to.
fn resume(
    seen: &[Seen],
    by_sequence: &BTreeMap<BlockSequence, Vec<usize>>,
    next: BlockSequence,
    incarnation: u32,
    is_home: impl Fn(&Seen) -> bool,
) -> Option<usize> {
    let mut first = seen
        .iter()
        .enumerate()
        .filter(|(_, block)| {
            block.header.sequence > next
                && block.header.incarnation >= incarnation
                && synced_upto(&block.header) >= next
                && is_home(block)
        })
        .min_by_key(|(_, block)| {
            let newest = u32::MAX - block.header.incarnation;
            (block.header.sequence, newest)
        })
        .map(|(index, _)| index)?;
    loop {
        let header = &seen[first].header;
        let before = BlockSequence(header.sequence.0 - 1);
        if before < next {
            return Some(first);
        }
        let linked = by_sequence.get(&before).and_then(|candidates| {
            candidates.iter().copied().find(|index| {
                let candidate = &seen[*index].header;
                candidate.header_crc == header.prev_crc
                    && candidate.incarnation >= incarnation
                    && is_home(&seen[*index])
            })
        });
        match linked {
            Some(index) => first = index,
            None => return Some(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JournalId;

    /// A journal of blocks of 4 KiB, `per_segment` in each segment; what `edit` makes of it.
    struct Sketch {
        seen: Vec<Seen>,
    }

    /// Blocks `1..=count` with two in flight: each states that all but the two before are synced.
    fn sketch(count: u64, per_segment: u64) -> Sketch {
        let mut seen = Vec::new();
        let mut prev_crc = 0;
        for sequence in 1..=count {
            let mut header = BlockHeader {
                header_crc: 0,
                flags: 0,
                journal: JournalId(1),
                journal_uuid: 7,
                segment_number: SegmentNumber(1 + (sequence - 1) / per_segment),
                offset: ((sequence - 1) % per_segment) as u32 * 4096,
                used: 4096,
                sequence: BlockSequence(sequence),
                incarnation: 1,
                prev_crc,
                durable_upto: BlockSequence(sequence.saturating_sub(2)),
                wall_us: 0,
                record_count: 1,
                content_crc: sequence as u32,
                prev_partitions: 0,
                next_slot: None,
                cluster: 0,
                node: 0,
                replica: 0,
            };
            let _bytes_not_needed = header.encode();
            prev_crc = header.header_crc;
            seen.push(Seen {
                segment: SegmentIdx(header.segment_number.0 as u32),
                header,
                content: Content::Good,
            });
        }
        Sketch { seen }
    }

    impl Sketch {
        fn without(mut self, sequence: u64) -> Self {
            self.seen
                .retain(|block| block.header.sequence.0 != sequence);
            self
        }

        fn with_bad(mut self, sequence: u64) -> Self {
            self.seen[sequence as usize - 1].content = Content::Bad;
            self
        }

        /// What became of it: "w" a whole block, "d" a damaged one, "h" a hole; and the next block.
        fn decided(&self, base: &Base) -> (String, u64) {
            let plan = decide(base, &self.seen);
            let letters = plan.steps.iter().map(|step| match step {
                Step::Whole(_) => 'w',
                Step::Damaged(_) => 'd',
                Step::Hole { .. } => 'h',
            });
            (letters.collect(), plan.next_sequence.0)
        }
    }

    fn base() -> Base {
        Base {
            position: None,
            number: SegmentNumber(0),
            next_sequence: BlockSequence(1),
            prev_crc: 0,
            incarnation: 0,
            durable: BlockSequence(0),
        }
    }

    #[track_caller]
    fn check(sketch: &Sketch, base: &Base, letters: &str, next: u64) {
        assert_eq!(sketch.decided(base), (letters.to_owned(), next));
    }

    #[test]
    fn a_whole_journal_is_followed_over_segments() {
        check(&sketch(7, 3), &base(), "wwwwwww", 8);
        check(&sketch(0, 3), &base(), "", 1);
    }

    #[test]
    fn two_in_flight_are_cut_whichever_is_torn() {
        check(&sketch(6, 9).without(6), &base(), "wwwww", 6);
        check(&sketch(6, 9).without(5), &base(), "wwww", 5);
        check(&sketch(6, 9).with_bad(5), &base(), "wwww", 5);
        // Also when the second begins a segment.
        check(&sketch(4, 3).without(3), &base(), "ww", 3);
    }

    #[test]
    fn a_block_that_something_vouches_for_is_a_hole() {
        // Block 6 states 4: 4 is damaged, and 5 and 6 are chained behind it.
        check(&sketch(6, 9).without(4), &base(), "wwwhww", 7);
        check(&sketch(6, 9).with_bad(4), &base(), "wwwdww", 7);
        check(&sketch(6, 9).without(3).without(4), &base(), "wwhww", 7);
        // The first of a segment, and all of a segment.
        check(&sketch(9, 3).without(4), &base(), "wwwhwwwww", 10);
        let gone = sketch(9, 3).without(4).without(5).without(6);
        check(&gone, &base(), "wwwhwww", 10);
    }

    #[test]
    fn a_checkpoint_vouches_too() {
        let vouching = Base {
            durable: BlockSequence(6),
            ..base()
        };
        check(&sketch(6, 9).without(6), &vouching, "wwwwwh", 7);
        check(&sketch(0, 9), &vouching, "h", 7);
        // Evidence is never written over: what follows goes elsewhere.
        assert_eq!(decide(&vouching, &[]).position, None);
    }

    #[test]
    fn a_block_behind_a_hole_needs_a_voucher() {
        // 4 is missing and 6 states it; 5 is in place but chained to something else.
        let mut sketch = sketch(6, 9).without(4);
        sketch.seen[3].header.header_crc ^= 1;
        check(&sketch, &base(), "wwwhw", 7);
    }

    #[test]
    fn a_wrong_link_ends_the_chain() {
        let mut sketch = sketch(4, 9);
        sketch.seen[2].header.prev_crc ^= 1;
        check(&sketch, &base(), "ww", 3);
    }

    #[test]
    fn blocks_of_an_abandoned_incarnation_are_not_followed() {
        // Incarnation 2 cut at 3 and wrote it again; the old 4 is still there, and so is a torn 3.
        let old = sketch(4, 9);
        let mut sketch = sketch(3, 9);
        sketch.seen[2].header.incarnation = 2;
        sketch.seen[2].header.content_crc ^= 9;
        let _bytes_not_needed = sketch.seen[2].header.encode();
        sketch.seen.push(old.seen[3]);
        check(&sketch, &base(), "www", 4);
        // Even if it were chained.
        let crc = sketch.seen[2].header.header_crc;
        sketch.seen[3].header.prev_crc = crc;
        check(&sketch, &base(), "www", 4);
        assert_eq!(decide(&base(), &sketch.seen).cut_count, 0);
    }

    #[test]
    fn a_segment_of_a_former_life_is_not_followed() {
        let mut sketch = sketch(4, 3);
        sketch.seen[3].header.segment_number = SegmentNumber(1);
        check(&sketch, &base(), "www", 4);
    }

    /// A block in a slot that holds another segment was misdirected: the chain does not go back to a
    /// slot that it has left.
    #[test]
    fn a_misdirected_block_is_not_followed() {
        let mut misdirected = sketch(12, 3);
        misdirected.seen[7].segment = misdirected.seen[0].segment;
        check(&misdirected, &base(), "wwwwwwwhwwww", 13);
        // Beside the real one it changes nothing.
        let mut both = sketch(12, 3);
        both.seen.insert(0, misdirected.seen[7]);
        check(&both, &base(), "wwwwwwwwwwww", 13);
    }

    /// Any subset of blocks, any of them bad: it ends, in order, and never follows a gap that
    /// nobody vouches for.
    #[test]
    fn every_subset_of_a_small_journal() {
        const COUNT: u64 = 7;
        for mask in 0u32..3u32.pow(COUNT as u32) {
            let mut rest = mask;
            let mut whole = sketch(COUNT, 3);
            let mut fates = Vec::new();
            for _ in 0..COUNT {
                fates.push(rest % 3);
                rest /= 3;
            }
            for (index, fate) in fates.iter().enumerate() {
                if *fate == 1 {
                    whole.seen[index].content = Content::Bad;
                }
            }
            let mut index = 0;
            whole.seen.retain(|_| {
                index += 1;
                fates[index - 1] != 2
            });
            let plan = decide(&base(), &whole.seen);
            let stated = |sequence: u64| {
                whole
                    .seen
                    .iter()
                    .any(|block| block.header.durable_upto.0 >= sequence)
            };
            let mut next = 1;
            for step in &plan.steps {
                match step {
                    Step::Whole(index) => {
                        assert_eq!(whole.seen[*index].header.sequence.0, next);
                        next += 1;
                    }
                    Step::Damaged(index) => {
                        assert_eq!(whole.seen[*index].header.sequence.0, next);
                        assert!(stated(next), "only what was durable is damaged");
                        next += 1;
                    }
                    Step::Hole { from, upto, .. } => {
                        assert_eq!(from.0, next);
                        assert!(stated(next), "only what was durable is a hole");
                        next = upto.0;
                    }
                }
            }
            assert_eq!(plan.next_sequence.0, next);
            assert!(!stated(next), "nothing that was durable is cut");
        }
    }
}
