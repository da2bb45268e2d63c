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
    /// Queues that asked for it before they need it and have not passed it.
    pub readers: u32,
    /// It ends where a buffer or what is durable does, so no read from its start would bring more: what
    /// is not whole in it is damaged.
    pub is_utmost: bool,
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
///
/// What was read back goes first while it is more than a half: a long backlog that is read from its
/// start would else push out its own end just before it comes to it.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    windows: Vec<Option<Window>>,
    /// Windows that are not in use.
    free: Vec<u32>,
    /// Where each window stands, by segment and start.
    places: BTreeMap<(SegmentIdx, u32), u32>,
    /// Those that were written, and those that were read, by age.
    written: VecDeque<(SegmentIdx, u32)>,
    read: VecDeque<(SegmentIdx, u32)>,
    /// What was found last: records that are wanted one after the other lie side by side.
    last: Option<Last>,
    /// What was found last before that: queues that are served in turns go to and fro.
    before: Option<Last>,
    /// Windows with readers.
    awaited: usize,
}

/// A window that was found, and where in its segment the next one starts.
#[derive(Clone, Copy, Debug)]
struct Last {
    segment: SegmentIdx,
    place: u32,
    until: u32,
}

/// How many windows that start before an offset are looked at: windows of cold reads may overlap.
const OVERLAP_MAX: usize = 4;

impl Cache {
    fn place(&self, segment: SegmentIdx, offset: u32, bytes: u32) -> Option<u32> {
        let end = offset.saturating_add(bytes);
        let holds = |place: u32| {
            let window = self.windows[place as usize].as_ref();
            window.is_some_and(|window| window.start <= offset && window.end() >= end)
        };
        for last in [self.last, self.before].into_iter().flatten() {
            if last.segment == segment && offset < last.until && holds(last.place) {
                return Some(last.place);
            }
        }
        self.places
            .range((segment, 0)..=(segment, offset))
            .rev()
            .take(OVERLAP_MAX)
            .map(|(_, place)| *place)
            .find(|place| holds(*place))
    }

    /// The window that holds `offset..offset + bytes` of a segment.
    #[must_use]
    pub fn find(&self, segment: SegmentIdx, offset: u32, bytes: u32) -> Option<&Window> {
        let place = self.place(segment, offset, bytes)?;
        self.windows[place as usize].as_ref()
    }

    /// Where the window that starts last at or before `offset` ends.
    #[must_use]
    pub fn end_before(&self, segment: SegmentIdx, offset: u32) -> Option<u32> {
        let mut below = self.places.range((segment, 0)..=(segment, offset));
        let (_, place) = below.next_back()?;
        self.windows[*place as usize].as_ref().map(Window::end)
    }

    /// Whether a window starts there.
    #[must_use]
    pub fn has_start(&self, segment: SegmentIdx, start: u32) -> bool {
        self.places.contains_key(&(segment, start))
    }

    /// As [`Cache::find`], to change.
    pub fn find_mut(
        &mut self,
        segment: SegmentIdx,
        offset: u32,
        bytes: u32,
    ) -> Option<&mut Window> {
        let place = self.place(segment, offset, bytes)?;
        let window = self.windows[place as usize].as_mut();
        if self.before.is_some_and(|before| before.place == place) {
            std::mem::swap(&mut self.last, &mut self.before);
        } else if self.last.is_none_or(|last| last.place != place) {
            let start = window.as_ref().map_or(0, |window| window.start);
            let mut above = self
                .places
                .range((segment, start + 1)..=(segment, u32::MAX));
            let until = above.next().map_or(u32::MAX, |((_, start), _)| *start);
            self.before = self.last.replace(Last {
                segment,
                place,
                until,
            });
        }
        window
    }

    /// The window that starts there, to change.
    pub fn at_mut(&mut self, segment: SegmentIdx, start: u32) -> Option<&mut Window> {
        let place = *self.places.get(&(segment, start))?;
        self.windows[place as usize].as_mut()
    }

    /// Adds a window; one that starts at the same place is given back.
    pub fn insert(&mut self, segment: SegmentIdx, window: Window, effects: &mut Effects) {
        let key = (segment, window.start);
        self.last = None;
        self.before = None;
        if self.places.contains_key(&key) {
            self.written.retain(|other| *other != key);
            self.read.retain(|other| *other != key);
            self.remove(key, effects);
        }
        match window.origin {
            Origin::Written(_) => self.written.push_back(key),
            Origin::Read(_) => self.read.push_back(key),
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.windows.push(None);
            self.windows.len() as u32 - 1
        });
        self.awaited += usize::from(window.readers > 0);
        self.windows[place as usize] = Some(window);
        self.places.insert(key, place);
    }

    /// Takes a window out and gives it back.
    fn remove(&mut self, key: (SegmentIdx, u32), effects: &mut Effects) {
        let place = self.places.remove(&key).expect("the order names windows");
        let window = self.windows[place as usize].take();
        let Window {
            buffer, readers, ..
        } = window.expect("a place is in use");
        self.awaited -= usize::from(readers > 0);
        self.free.push(place);
        self.last = None;
        self.before = None;
        effects.push(Effect::Release { buffer });
    }

    /// Gives back the oldest window that may go: whose blocks are all durable, and that is not
    /// `but`, the one being filled. Returns whether there was one.
    pub fn evict(
        &mut self,
        durable: BlockSequence,
        but: Option<BufferId>,
        effects: &mut Effects,
    ) -> bool {
        let written_may_go = |key: &(SegmentIdx, u32)| {
            let window = self.windows[self.places[key] as usize].as_ref();
            let window = window.expect("a place is in use");
            let settled = match window.origin {
                Origin::Written(last) => last <= durable,
                Origin::Read(_) => true,
            };
            settled && Some(window.buffer) != but
        };
        let key = if self.read.len() > self.places.len() / 2 {
            self.read.pop_front()
        } else {
            let at = self.written.iter().position(written_may_go);
            at.and_then(|at| self.written.remove(at))
                .or_else(|| self.read.pop_front())
        };
        let Some(key) = key else { return false };
        self.remove(key, effects);
        true
    }

    /// A queue that reads will need the window that holds these bytes.
    pub fn join(&mut self, segment: SegmentIdx, offset: u32, bytes: u32) {
        if let Some(place) = self.place(segment, offset, bytes)
            && let Some(window) = self.windows[place as usize].as_mut()
        {
            self.awaited += usize::from(window.readers == 0);
            window.readers += 1;
        }
    }

    /// A queue that read the window has passed it.
    pub fn leave(&mut self, segment: SegmentIdx, offset: u32, bytes: u32) {
        if let Some(place) = self.place(segment, offset, bytes)
            && let Some(window) = self.windows[place as usize].as_mut()
            && window.readers > 0
        {
            window.readers -= 1;
            self.awaited -= usize::from(window.readers == 0);
        }
    }

    /// Windows that queues asked for and have not passed.
    #[must_use]
    pub fn awaited(&self) -> usize {
        self.awaited
    }

    /// Gives back every window of a segment: it is about to be written over.
    pub fn drop_segment(&mut self, segment: SegmentIdx, effects: &mut Effects) {
        let mut any = false;
        while let Some(key) = self
            .places
            .range((segment, 0)..=(segment, u32::MAX))
            .next()
            .map(|(key, _)| *key)
        {
            self.remove(key, effects);
            any = true;
        }
        if any {
            self.written.retain(|key| key.0 != segment);
            self.read.retain(|key| key.0 != segment);
        }
    }

    /// Windows held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no window is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Asserts that order and windows name the same, each once.
    pub fn invariants(&self) {
        assert_eq!(self.written.len() + self.read.len(), self.places.len());
        assert_eq!(self.windows.len(), self.places.len() + self.free.len());
        let read = |window: &&Window| window.readers > 0;
        let awaited = self.windows.iter().flatten().filter(read).count();
        assert_eq!(self.awaited, awaited);
        for key in self.written.iter().chain(&self.read) {
            let window = self.windows[self.places[key] as usize].as_ref();
            assert!(window.is_some_and(|window| window.start == key.1));
        }
    }
}
