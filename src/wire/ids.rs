//! Newtypes for the numbers that name things, so that no bare integer crosses a signature.
//! Does not know which of them a broker has handed out.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $int);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A core of one broker: `0..cores`.
    CoreId(u16)
);
id!(
    /// A partition: the unit of placement and order. Fixed when a data directory is created.
    PartitionId(u16)
);
id!(
    /// A tenant. Never reused.
    TenantId(u32)
);
id!(
    /// An exchange. Never reused.
    ExchangeId(u32)
);
id!(
    /// A queue. Never reused, so a late message for a deleted queue can never reach another.
    QueueId(u32)
);
id!(
    /// A producer, chosen by the client at random and kept for its life: names it for dedup.
    ProducerId(u64)
);
id!(
    /// Number of a publish within its producer, from 1 without gaps.
    Sequence(u64)
);
id!(
    /// Place of a message in its queue, from 1 without gaps; with the queue it names the message for ever.
    QueueSequence(u64)
);
id!(
    /// Number of a delivery within its consumer, from 1 without gaps.
    DeliveryTag(u64)
);
id!(
    /// Number of a producer or consumer within its connection; 0 is the connection itself.
    Channel(u16)
);

impl Sequence {
    /// The sequence `count` places on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl QueueSequence {
    /// The place `count` places on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl DeliveryTag {
    /// The tag `count` deliveries on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}
