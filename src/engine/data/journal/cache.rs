//! Which parts of segments are in memory: windows, each a buffer that mirrors a stretch of one.
//! Does not know what is in them, nor when memory is really reused: a send may outlive a window.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::data::journal::block::BlockSequence;
use crate::effect::{Effect, Effects};
use crate::ids::{BufferId, SegmentIdx};

/// Where a window's bytes came from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// This process wrote them; the number is its last block so far.
    Written(BlockSequence),
    /// They were read back; offsets (in the segment) of records that proved themselves, sorted.
    Read(Vec<u32>),
}

/// A buffer that mirrors `start..start + bytes` of a segment.
#[derive(Clone, Debug)]
pub struct Window {
    /// The memory; its first byte mirrors `start`.
    pub buffer: BufferId,
    /// Byte offset in the segment.
    pub start: u32,
    /// Bytes that are there.
    pub bytes: u32,
    /// Where they came from.
    pub origin: Origin,
}

impl Window {
    /// Byte offset in the segment after the window.
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.start + self.bytes
    }

    /// The range in the buffer of a range of the segment; the window covers it.
    #[must_use]
    pub fn range(&self, offset: u32, bytes: u32) -> Range<u32> {
        assert!(offset >= self.start, "a window covers what is asked of it");
        assert!(
            offset - self.start + bytes <= self.bytes,
            "a window covers what is asked of it"
        );
        offset - self.start..offset - self.start + bytes
    }
}

/// Every window of a core, oldest first for eviction.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    windows: BTreeMap<(SegmentIdx, u32), Window>,
    order: VecDeque<(SegmentIdx, u32)>,
}

/// How many windows that start before an offset are looked at: windows of cold reads may overlap.
const OVERLAP_MAX: usize = 4;

impl Cache {
    /// The window that holds `offset..offset + bytes` of a segment.
    #[must_use]
    pub fn find(&self, segment: SegmentIdx, offset: u32, bytes: u32) -> Option<&Window> {
        self.windows
            .range((segment, 0)..=(segment, offset))
            .rev()
            .take(OVERLAP_MAX)
            .map(|(_, window)| window)
            .find(|window| window.end() >= offset.saturating_add(bytes))
    }

    /// As [`Cache::find`], to change.
    pub fn find_mut(
        &mut self,
        segment: SegmentIdx,
        offset: u32,
        bytes: u32,
    ) -> Option<&mut Window> {
        self.windows
            .range_mut((segment, 0)..=(segment, offset))
            .rev()
            .take(OVERLAP_MAX)
            .map(|(_, window)| window)
            .find(|window| window.end() >= offset.saturating_add(bytes))
    }

    /// The window that starts there, to change.
    pub fn at_mut(&mut self, segment: SegmentIdx, start: u32) -> Option<&mut Window> {
        self.windows.get_mut(&(segment, start))
    }

    /// Adds a window; one that starts at the same place is given back.
    pub fn insert(&mut self, segment: SegmentIdx, window: Window, effects: &mut Effects) {
        let key = (segment, window.start);
        if let Some(old) = self.windows.insert(key, window) {
            effects.push(Effect::Release { buffer: old.buffer });
        } else {
            self.order.push_back(key);
        }
    }

    /// Gives back the oldest window that may go: whose blocks are all durable, and that is not
    /// `but`, the one being filled. Returns whether there was one.
    pub fn evict(
        &mut self,
        durable: BlockSequence,
        but: Option<BufferId>,
        effects: &mut Effects,
    ) -> bool {
        let may_go = |key: &(SegmentIdx, u32)| {
            let window = &self.windows[key];
            let settled = match window.origin {
                Origin::Written(last) => last <= durable,
                Origin::Read(_) => true,
            };
            settled && Some(window.buffer) != but
        };
        let Some(at) = self.order.iter().position(may_go) else {
            return false;
        };
        let key = self.order.remove(at).expect("position found it");
        let window = self.windows.remove(&key).expect("the order names windows");
        effects.push(Effect::Release {
            buffer: window.buffer,
        });
        true
    }

    /// Gives back every window of a segment: it is about to be written over.
    pub fn drop_segment(&mut self, segment: SegmentIdx, effects: &mut Effects) {
        let order = &mut self.order;
        let windows = &mut self.windows;
        let mut any = false;
        while let Some(key) = windows
            .range((segment, 0)..=(segment, u32::MAX))
            .next()
            .map(|(key, _)| *key)
        {
            let window = windows.remove(&key).expect("just found");
            effects.push(Effect::Release {
                buffer: window.buffer,
            });
            any = true;
        }
        if any {
            order.retain(|key| key.0 != segment);
        }
    }

    /// Windows held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether no window is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Asserts that order and windows name the same, each once.
    pub fn invariants(&self) {
        assert_eq!(self.order.len(), self.windows.len());
        for key in &self.order {
            assert!(self.windows.contains_key(key));
        }
    }
}
