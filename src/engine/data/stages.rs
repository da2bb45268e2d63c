//! The stages of a message's way, and how long messages spend in those that the engine sees, in samples
//! for the shell's histograms. Does not know histograms.

use crate::ids::Mono;

/// A stage of a message's way through a core. The engine gives samples of those that it sees begin and
/// end: [`Stage::Journal`], [`Stage::Device`], [`Stage::Publish`], [`Stage::Ready`] and
/// [`Stage::Held`]; the others are the shell's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Stage {
    /// From the turn that found a socket readable until its frames are stepped.
    Receive,
    /// Checked, routed and copied into the open block.
    Route,
    /// On the ring to the core that owns the queue.
    Ring,
    /// From the first message of a block to the start of its write: other writes are in flight, or
    /// the turn is not over.
    Journal,
    /// From the start of that write until the core knows that the block is synced.
    Device,
    /// From then until the confirm was given to the socket.
    Confirm,
    /// From the arrival of a publish until its confirm is said, all of the above and other cores
    /// included.
    Publish,
    /// From the moment when a message may be delivered until it is, for the first time.
    Ready,
    /// From then until it was given to the socket.
    Dispatch,
    /// From a delivery until the client settles it.
    Held,
}

impl Stage {
    /// In the order in which messages pass them.
    pub const ALL: [Self; 10] = [
        Self::Receive,
        Self::Route,
        Self::Ring,
        Self::Journal,
        Self::Device,
        Self::Confirm,
        Self::Publish,
        Self::Ready,
        Self::Dispatch,
        Self::Held,
    ];

    /// The word used in metrics and reports.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Route => "route",
            Self::Ring => "ring",
            Self::Journal => "journal",
            Self::Device => "device",
            Self::Confirm => "confirm",
            Self::Publish => "publish",
            Self::Ready => "ready",
            Self::Dispatch => "dispatch",
            Self::Held => "held",
        }
    }
}

/// So many messages spent so much time in a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Which.
    pub stage: Stage,
    /// How long, in ns.
    pub ns: u64,
    /// Messages.
    pub count: u32,
}

/// Marks that are kept apart. Beyond them two neighbours become one, with the mean of their times.
const MARKS_MAX: usize = 16;

/// When numbered messages entered a stage. Takes no memory before the first one, and as little for a
/// million of them as for sixteen ranges.
#[derive(Clone, Debug, Default)]
pub struct Entries(Option<Box<Marks>>);

#[derive(Clone, Debug)]
struct Marks {
    /// The first number of the first mark.
    first: u64,
    /// Ranges of numbers, each up to its `last`, in order and without gaps.
    list: [Mark; MARKS_MAX],
    /// How many of them there are.
    count: usize,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    last: u64,
    at: Mono,
}

impl Entries {
    /// The messages `first..=last` enter at `at`; numbers only grow.
    pub fn enter(&mut self, first: u64, last: u64, at: Mono) {
        let marks = self.0.get_or_insert_with(|| {
            Box::new(Marks {
                first,
                list: [Mark { last: 0, at }; MARKS_MAX],
                count: 0,
            })
        });
        match marks.list[..marks.count].last_mut() {
            None => marks.first = first,
            Some(mark) if last <= mark.last => return,
            Some(mark) if mark.at == at => {
                mark.last = last;
                return;
            }
            Some(_) if marks.count == MARKS_MAX => marks.join_neighbours(),
            Some(_) => {}
        }
        marks.list[marks.count] = Mark { last, at };
        marks.count += 1;
    }

    /// When a message entered, if it has not left.
    #[must_use]
    pub fn entered(&self, number: u64) -> Option<Mono> {
        let marks = self.0.as_ref().filter(|marks| marks.first <= number)?;
        let mut list = marks.list[..marks.count].iter();
        list.find(|mark| number <= mark.last).map(|mark| mark.at)
    }

    /// The messages `first..=last` leave at `now`: `each` is told of how many that entered together,
    /// and how long ago that was. What entered before them has left, too, unless `is_apart`. Numbers that
    /// never entered are passed over.
    pub fn leave(
        &mut self,
        first: u64,
        last: u64,
        is_apart: bool,
        now: Mono,
        mut each: impl FnMut(u64, u32),
    ) {
        let Some(marks) = &mut self.0 else { return };
        let mut from = marks.first;
        let mut over = 0;
        for mark in &marks.list[..marks.count] {
            if from > last {
                break;
            }
            let (start, end) = (from.max(first), mark.last.min(last));
            if start <= end {
                let count = u32::try_from(end + 1 - start).unwrap_or(u32::MAX);
                each(now.0.saturating_sub(mark.at.0), count);
            }
            over += usize::from(mark.last <= last);
            from = mark.last + 1;
        }
        if is_apart && marks.first < first {
            return;
        }
        marks.first = marks.first.max(last.saturating_add(1));
        if over > 0 {
            marks.list.copy_within(over..marks.count, 0);
            marks.count -= over;
        }
    }
}

impl Marks {
    fn join_neighbours(&mut self) {
        let mut first = self.first;
        for idx in 0..MARKS_MAX / 2 {
            let (one, other) = (self.list[2 * idx], self.list[2 * idx + 1]);
            let (ones, others) = (one.last + 1 - first, other.last - one.last);
            first = other.last + 1;
            let after = u128::from(other.at.0.saturating_sub(one.at.0)) * u128::from(others);
            let mean = one.at.0 + (after / u128::from(ones + others)) as u64;
            self.list[idx] = Mark {
                last: other.last,
                at: Mono(mean),
            };
        }
        self.count = MARKS_MAX / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave(
        entries: &mut Entries,
        first: u64,
        last: u64,
        apart: bool,
        now: u64,
    ) -> Vec<(u64, u32)> {
        let mut told = Vec::new();
        entries.leave(first, last, apart, Mono(now), |ns, count| {
            told.push((ns, count))
        });
        told
    }

    #[test]
    fn each_range_is_told_its_own_time() {
        let mut entries = Entries::default();
        assert_eq!(leave(&mut entries, 1, 9, false, 5), []);
        entries.enter(1, 4, Mono(100));
        entries.enter(5, 6, Mono(100));
        entries.enter(7, 10, Mono(130));
        assert_eq!(leave(&mut entries, 1, 2, false, 150), [(50, 2)]);
        let entered = [2, 3, 7, 10, 11].map(|number| entries.entered(number));
        let (early, late) = (Some(Mono(100)), Some(Mono(130)));
        assert_eq!(entered, [None, early, late, late, None]);
        assert_eq!(leave(&mut entries, 3, 8, false, 160), [(60, 4), (30, 2)]);
        assert_eq!(leave(&mut entries, 9, 20, false, 170), [(40, 2)]);
        assert_eq!(leave(&mut entries, 9, 20, false, 180), []);
        // A gap, as after a purge.
        entries.enter(50, 60, Mono(200));
        assert_eq!(leave(&mut entries, 40, 55, false, 210), [(10, 6)]);
    }

    #[test]
    fn what_leaves_apart_leaves_the_others_there() {
        let mut entries = Entries::default();
        entries.enter(1, 10, Mono(0));
        entries.enter(11, 20, Mono(5));
        assert_eq!(leave(&mut entries, 15, 15, true, 10), [(5, 1)]);
        assert_eq!(leave(&mut entries, 2, 3, true, 20), [(20, 2)]);
        assert_eq!(leave(&mut entries, 1, 10, true, 30), [(30, 10)]);
        assert_eq!(leave(&mut entries, 11, 20, true, 40), [(35, 10)]);
        assert_eq!(leave(&mut entries, 1, 20, true, 50), []);
    }

    #[test]
    fn many_ranges_take_little_and_keep_their_sum() {
        let mut entries = Entries::default();
        let mut exact = 0;
        for number in 1..=10_000_u64 {
            entries.enter(number, number, Mono(number * 10));
            exact += 200_000 - number * 10;
        }
        let told = leave(&mut entries, 1, 10_000, false, 200_000);
        assert_eq!(
            told.iter().map(|(_, count)| u64::from(*count)).sum::<u64>(),
            10_000
        );
        let sum: u64 = told.iter().map(|(ns, count)| ns * u64::from(*count)).sum();
        let off = sum.abs_diff(exact) as f64 / exact as f64;
        assert!(off < 0.01, "{sum} {exact}");
    }
}
