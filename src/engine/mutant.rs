//! Planted bugs: each is one decision of the engine made wrongly, compiled only with the feature
//! `mutants`, switched on one at a time by the simulator, which must notice. Decides nothing else.
//!
//! Where a decision is made, `mutant!(Name)` asks whether the bug of that name is planted:
//!
//! ```text
//! if completed || mutant!(ConfirmBeforeSync) { confirm(...) }
//! ```
//!
//! Without the feature it is the constant `false`, and the compiler removes the branch. A mutant
//! is a plausible slip of a careful person, at the place where it would be made; none exists that
//! only an assertion beside it could see.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant { $($(#[$doc])* $name,)* }

        impl Mutant {
            /// Every planted bug.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$name,)*];

            /// The word used on the command line and in tables.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Mutant::$name => $word,)* }
            }
        }
    };
}

mutants! {
    /// Publishes are confirmed when their block is submitted (NATS, Kafka, Iggy defaults).
    ConfirmBeforeSync = "confirm-before-sync";
    /// Messages are delivered before their block is durable (RocketMQ #8239).
    DeliverBeforeSync = "deliver-before-sync";
    /// Settles are confirmed before they are durable.
    SettledBeforeSync = "settled-before-sync";
    /// A completed write counts although an earlier one is still in flight.
    PrefixSkipsHole = "prefix-skips-hole";
    /// A failed write is taken for a completed one (fsyncgate).
    WriteErrorIgnored = "write-error-ignored";
    /// Recovery believes a block without its checksum.
    BlockChecksumIgnored = "block-checksum-ignored";
    /// Recovery believes a block that does not follow the one before it (Iggy #3946).
    BlockChainIgnored = "block-chain-ignored";
    /// A requeued message goes behind the others.
    RequeueToTheEnd = "requeue-to-the-end";
    /// A block states that everything submitted before it is synced (rulings 9).
    WatermarkOfSubmitted = "watermark-of-submitted";
    /// The mark of what may have been delivered counts before it is synced (rulings 15).
    MarkBeforeSync = "mark-before-sync";
    /// A checkpoint leaves out the acks of the block it is cut behind (once shipped here).
    CheckpointForgetsAcks = "checkpoint-forgets-acks";
    /// A checkpoint leaves out the topology of the block it is cut behind (once shipped here).
    CheckpointForgetsChanges = "checkpoint-forgets-changes";
    /// Refused is said though another target took it (once shipped here).
    RefusedThoughStored = "refused-though-stored";
    /// A settle is confirmed though the journal had no room for its record (once shipped here).
    SettledWithoutRoom = "settled-without-room";
    /// After the journal has failed, settles are confirmed at once (once shipped here).
    SettledAfterFailure = "settled-after-failure";
    /// A queue with a damaged range is purged like any other (once shipped here).
    PurgeOfDamaged = "purge-of-damaged";
    /// Of several arguments with one name all count, not the first (once shipped here).
    RepeatedArguments = "repeated-arguments";
    /// Refused is said though another core could not tell whether it took it (once shipped here).
    RefusedThoughUnsure = "refused-though-unsure";
    /// A segment is used again while a checkpoint on disk names it (RabbitMQ ra #589).
    EarlyReuse = "early-reuse";
    /// A moved message counts as moved before its new place is synced.
    MovedBeforeSync = "moved-before-sync";
    /// A checkpoint is written before the blocks that it covers are synced (BookKeeper #3329).
    CheckpointBeforeSync = "checkpoint-before-sync";
    /// A message that came back is offered as if it had never been delivered.
    CountForgotten = "count-forgotten";
    /// A message that came back is offered before its delivery count is synced (once shipped here).
    CountBeforeSync = "count-before-sync";
    /// A queue's limit counts what is ready only.
    LimitWithoutUnacked = "limit-without-unacked";
    /// `#` stands for one word or more.
    HashNeedsAWord = "hash-needs-a-word";
    /// What was routed before is routed so again, though bindings have changed.
    StaleRoute = "stale-route";
    /// A producer of an older epoch may publish where a newer one has (Kafka KIP 890).
    OlderEpochPasses = "older-epoch-passes";
    /// What producers have stored is forgotten by a restart.
    DedupForgottenAtRestart = "dedup-forgotten-at-restart";
    /// Below the window everything is new.
    BelowTheWindowIsNew = "below-the-window-is-new";
    /// A publish does not wait for what its producer published before it to many queues.
    SpreadOvertaken = "spread-overtaken";
    /// Of messages to many queues recovery does not learn the sequences.
    SequencesForgotten = "sequences-forgotten";
    /// A publish to other cores waits for one of them too few.
    FanOutOneShort = "fan-out-one-short";
    /// Another core says that it has a publish before it has synced it.
    ForwardedBeforeSync = "forwarded-before-sync";
    /// A large message of which pieces are missing is kept by recovery.
    IncompleteKept = "incomplete-kept";
    /// A cumulative settle takes the next delivery too.
    SettleOneMore = "settle-one-more";
    /// A consumer gets one message more than its credit.
    CreditOneMore = "credit-one-more";
    /// A purge is not recorded.
    PurgeNotRecorded = "purge-not-recorded";
    /// Of two blocks for one place in the chain the abandoned one is taken (Iggy #3946).
    AbandonedBlockTaken = "abandoned-block-taken";
    /// A consumer is told that it is open after its first deliveries, or its end (once shipped here).
    OpenedAfterItsFrames = "opened-after-its-frames";
    /// What is published behind a large message goes to other cores before it (once shipped here).
    LargeOvertaken = "large-overtaken";
    /// Starts keep to the limit of slots, though none is free (once shipped here).
    NoSlotForAStart = "no-slot-for-a-start";
    /// A large message is not told of credit for its next piece (once shipped here).
    CreditUntold = "credit-untold";
    /// Delivery counts that come while older ones wait for room are not written (once shipped here).
    CountsLeft = "counts-left";
    /// Refused publishes never give their credit back.
    RefusedCreditLost = "refused-credit-lost";
}

#[cfg(feature = "mutants")]
mod planted {
    use super::Mutant;
    use core::cell::Cell;

    thread_local! {
        /// One per thread, so that tests may plant different bugs at once.
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Plants a bug on this thread, or takes it out.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.set(mutant);
    }

    /// Whether this bug is planted.
    #[must_use]
    pub fn is_planted(mutant: Mutant) -> bool {
        PLANTED.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use planted::{is_planted, plant};

/// Whether this bug is planted: never, without the feature.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn is_planted(_mutant: Mutant) -> bool {
    false
}

/// Whether the planted bug of this name is switched on.
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutant::is_planted($crate::mutant::Mutant::$name)
    };
}
