//! Newtypes of the engine's seam: what names a buffer, a file, a connection, an operation, a place.
//! Does not know what they stand for in the operating system.

use ringpost_wire::ids::CoreId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $int);
    };
}

id!(
    /// A buffer of the shell's pool.
    BufferId(u32)
);
id!(
    /// A connection on this core; the shell never uses a number twice while the process lives.
    ConnId(u64)
);
/// A connection anywhere in the broker, for as long as the process lives: one that exclusive queues
/// belong to stays on its core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    /// The core that holds it.
    pub core: CoreId,
    /// Its number there.
    pub conn: ConnId,
}

id!(
    /// One operation asked for with an effect and answered by an input; never used twice.
    OpId(u64)
);
id!(
    /// A journal: the log that one core writes. Outlives a change of the number of cores.
    JournalId(u16)
);
id!(
    /// A file of a journal that holds one segment at a time.
    SlotId(u32)
);
id!(
    /// A segment in this core's own table of segments (not an identity on disk).
    SegmentIdx(u32)
);
id!(
    /// Nanoseconds of a monotonic clock; only differences mean anything.
    Mono(u64)
);

impl Mono {
    /// `ms` milliseconds later.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Milliseconds since `earlier`, 0 if it is not earlier.
    #[must_use]
    pub const fn ms_since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

/// Both clocks at one moment: what turns the time of one into that of the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// The engine's clock.
    pub now: Mono,
    /// Wall clock in µs since 1970.
    pub wall_us: u64,
}

/// Where a run record lies: its segment and its byte offset in it, a multiple of 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// The segment, in this core's table.
    pub segment: SegmentIdx,
    /// Byte offset of the record's header in the segment.
    pub offset: u32,
}
