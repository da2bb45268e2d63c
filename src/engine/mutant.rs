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
    ($($(#[$doc:meta])* $name:ident = $word:literal, $origin:ident $(($peer:literal))?;)*) => {
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

            /// Where it comes from.
            #[must_use]
            pub const fn origin(self) -> Origin {
                match self { $(Mutant::$name => Origin::$origin $(($peer))?,)* }
            }
        }
    };
}

/// Where a planted bug comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Another system shipped it, or one like it: which, and where it is told.
    Peer(&'static str),
    /// It was shipped here and mended: docs/ledger.md.
    Shipped,
    /// One rule left out, or turned round, as mutation testing does.
    Mutation,
}

mutants! {
    /// Publishes are confirmed when their block is submitted.
    ConfirmBeforeSync = "confirm-before-sync", Peer("NATS, Kafka, Iggy: defaults");
    /// Messages are delivered before their block is durable.
    DeliverBeforeSync = "deliver-before-sync", Peer("RocketMQ #8239");
    /// Settles are confirmed before they are durable.
    SettledBeforeSync = "settled-before-sync", Mutation;
    /// What queues share counts as live for one of them only.
    SharedCountedOnce = "shared-counted-once", Mutation;
    /// An entry whose body is damaged is passed over.
    EntryWithoutBodyIgnored = "entry-without-body-ignored", Mutation;
    /// The entries of a body that was joined name as many messages as before.
    JoinedNotEntered = "joined-not-entered", Mutation;
    /// A completed write counts although an earlier one is still in flight.
    PrefixSkipsHole = "prefix-skips-hole", Mutation;
    /// A failed write is taken for a completed one.
    WriteErrorIgnored = "write-error-ignored", Peer("fsyncgate");
    /// Recovery believes a block without its checksum.
    BlockChecksumIgnored = "block-checksum-ignored", Mutation;
    /// Recovery believes a block that does not follow the one before it.
    BlockChainIgnored = "block-chain-ignored", Peer("Iggy #3946");
    /// A message's priority makes no difference.
    RankIgnored = "rank-ignored", Mutation;
    /// A delayed message is delivered at once.
    DelayIgnored = "delay-ignored", Mutation;
    /// A message that is given back is offered again at once, whatever the retry policy.
    RetryAtOnce = "retry-at-once", Mutation;
    /// Producers that a full queue has blocked are not looked at when it has room.
    BlockForgotten = "block-forgotten", Mutation;
    /// A delayed message that is taken back is taken out of memory only.
    CancelForgotten = "cancel-forgotten", Mutation;
    /// A message that is moved leaves its queue before others have it.
    MovedEarly = "moved-early", Mutation;
    /// A message of a group passes one that was given back and waits.
    GroupPassesBack = "group-passes-back", Mutation;
    /// A key whose consumer has no room goes to another one.
    GroupSpillsOver = "group-spills-over", Mutation;
    /// What waits for a key is not looked at when the key is free.
    GroupForgotten = "group-forgotten", Mutation;
    /// A requeued message goes behind the others.
    RequeueToTheEnd = "requeue-to-the-end", Mutation;
    /// A block states that everything submitted before it is synced (rulings 9).
    WatermarkOfSubmitted = "watermark-of-submitted", Mutation;
    /// The mark of what may have been delivered counts before it is synced (rulings 15).
    MarkBeforeSync = "mark-before-sync", Mutation;
    /// A checkpoint leaves out the acks of the block it is cut behind.
    CheckpointForgetsAcks = "checkpoint-forgets-acks", Shipped;
    /// A core says that its share of a transaction is prepared before that is synced.
    PreparedBeforeSync = "prepared-before-sync", Mutation;
    /// The other cores hear that a transaction has happened before the decision is synced.
    DecidedBeforeSync = "decided-before-sync", Mutation;
    /// A commit is answered before it is synced.
    CommittedBeforeSync = "committed-before-sync", Mutation;
    /// A checkpoint leaves out the shares of transactions that are prepared.
    CheckpointForgetsPrepared = "prepare-forgotten", Mutation;
    /// A checkpoint leaves out the topology of the block it is cut behind.
    CheckpointForgetsChanges = "checkpoint-forgets-changes", Shipped;
    /// Refused is said though another target took it.
    RefusedThoughStored = "refused-though-stored", Shipped;
    /// A settle is confirmed though the journal had no room for its record.
    SettledWithoutRoom = "settled-without-room", Shipped;
    /// After the journal has failed, settles are confirmed at once.
    SettledAfterFailure = "settled-after-failure", Shipped;
    /// A queue with a damaged range is purged like any other.
    PurgeOfDamaged = "purge-of-damaged", Shipped;
    /// Of several arguments with one name all count, not the first.
    RepeatedArguments = "repeated-arguments", Shipped;
    /// Refused is said though another core could not tell whether it took it.
    RefusedThoughUnsure = "refused-though-unsure", Shipped;
    /// A segment is used again while a checkpoint on disk names it.
    EarlyReuse = "early-reuse", Peer("RabbitMQ ra #589");
    /// A moved message counts as moved before its new place is synced.
    MovedBeforeSync = "moved-before-sync", Mutation;
    /// A checkpoint is written before the blocks that it covers are synced.
    CheckpointBeforeSync = "checkpoint-before-sync", Peer("BookKeeper #3329");
    /// A message that came back is offered as if it had never been delivered.
    CountForgotten = "count-forgotten", Mutation;
    /// A message that came back is offered before its delivery count is synced.
    CountBeforeSync = "count-before-sync", Shipped;
    /// A queue's limit counts what is ready only.
    LimitWithoutUnacked = "limit-without-unacked", Mutation;
    /// `#` stands for one word or more.
    HashNeedsAWord = "hash-needs-a-word", Mutation;
    /// What was routed before is routed so again, though bindings have changed.
    StaleRoute = "stale-route", Mutation;
    /// What was drawn by lot, or by headers, is kept for the address.
    LotRemembered = "lot-remembered", Mutation;
    /// In a filter, what is unknown beside something true is true.
    UnknownIsTrue = "unknown-is-true", Mutation;
    /// A producer of an older epoch may publish where a newer one has.
    OlderEpochPasses = "older-epoch-passes", Peer("Kafka KIP 890");
    /// What producers have stored is forgotten by a restart.
    DedupForgottenAtRestart = "dedup-forgotten-at-restart", Mutation;
    /// Below the window everything is new.
    BelowTheWindowIsNew = "below-the-window-is-new", Mutation;
    /// The window is one longer than there are bits for it.
    WindowOneTooLong = "window-one-too-long", Mutation;
    /// A gap in a producer's sequences keeps the bits of a window before.
    GapKeepsBits = "gap-keeps-bits", Mutation;
    /// A publish does not wait for what its producer published before it to many queues.
    SpreadOvertaken = "spread-overtaken", Mutation;
    /// Of messages to many queues recovery does not learn the sequences.
    SequencesForgotten = "sequences-forgotten", Mutation;
    /// A publish to other cores waits for one of them too few.
    FanOutOneShort = "fan-out-one-short", Mutation;
    /// Another core says that it has a publish before it has synced it.
    ForwardedBeforeSync = "forwarded-before-sync", Mutation;
    /// A large message of which pieces are missing is kept by recovery.
    IncompleteKept = "incomplete-kept", Mutation;
    /// A cumulative settle takes the next delivery too.
    SettleOneMore = "settle-one-more", Mutation;
    /// A consumer gets one message more than its credit.
    CreditOneMore = "credit-one-more", Mutation;
    /// A message comes back as often as it likes.
    LimitlessReturns = "limitless-returns", Mutation;
    /// A reject is confirmed before its dead letter is stored.
    DeadSettledAtOnce = "dead-settled-at-once", Peer("RabbitMQ: at-most-once dead lettering");
    /// A dead letter has no name by which a queue knows that it has it.
    DeadNameless = "dead-nameless", Mutation;
    /// A purge is not recorded.
    PurgeNotRecorded = "purge-not-recorded", Mutation;
    /// Of two blocks for one place in the chain the abandoned one is taken.
    AbandonedBlockTaken = "abandoned-block-taken", Peer("Iggy #3946");
    /// A consumer is told that it is open after its first deliveries, or its end.
    OpenedAfterItsFrames = "opened-after-its-frames", Shipped;
    /// What is published behind a large message goes to other cores before it.
    LargeOvertaken = "large-overtaken", Shipped;
    /// The last answer for a large message ends the way of the one behind it.
    PassingEndsEarly = "passing-ends-early", Shipped;
    /// Starts keep to the limit of slots, though none is free.
    NoSlotForAStart = "no-slot-for-a-start", Shipped;
    /// A large message is not told of credit for its next piece.
    CreditUntold = "credit-untold", Shipped;
    /// A consumer is closed though settle frames before wait for their confirm, which never comes.
    ClosedBeforeSettled = "closed-before-settled", Shipped;
    /// Delivery counts that come while older ones wait for room are not written.
    CountsLeft = "counts-left", Shipped;
    /// Another core is not told that a consumer's connection has ended: what it holds never comes back.
    UnackedOrphaned = "unacked-orphaned", Peer("RabbitMQ #15473");
    /// More credit wakes nobody.
    CreditWakesNobody = "credit-wakes-nobody", Peer("Bufstream 0.1.0: stuck consumers");
    /// Damage in the middle of a journal is taken for its end.
    DamageEndsTheJournal = "damage-ends-the-journal", Peer("NATS #7549");
    /// A rotten block is taken for torn while those behind it were sealed before it was synced.
    BacklogHidesDamage = "backlog-hides-damage", Shipped;
    /// Publishes that wait for acks hold the places on the way to another core that acks need.
    PublishesHoldTheLane = "publishes-hold-the-lane", Shipped;
    /// What a crash with two writes in flight leaves is taken for damage.
    TornTakenForDamage = "torn-taken-for-damage", Peer("Iggy #3970");
    /// Refused publishes never give their credit back.
    RefusedCreditLost = "refused-credit-lost", Mutation;
    /// A group of a stream has come as far as messages were delivered, not as far as they were settled.
    OffsetOfDelivered = "offset-of-delivered", Peer("Kafka: commits before the work is done");
    /// A message goes to a lane of its stream by lot, whatever its key.
    KeyInManyLanes = "key-in-many-lanes", Mutation;
    /// A lane changes hands while the member before still holds messages of it.
    LaneBeforeSettled = "lane-before-settled", Peer("Kafka: rebalances before commits");
    /// A lane stays with its member when that is gone.
    MemberStays = "member-stays", Mutation;
    /// What a member of a group may have had is given to another one as if nobody had.
    TakenOverUnflagged = "taken-over-unflagged", Mutation;
    /// A checkpoint leaves out how far groups of streams have come.
    CheckpointForgetsOffsets = "checkpoint-forgets-offsets", Mutation;
    /// A consumer becomes the active one while the one before still holds messages.
    ActiveBeforeSettled = "active-before-settled", Mutation;
    /// A queue that expires is deleted though it was declared again in time.
    RedeclareForgotten = "redeclare-forgotten", Mutation;
    /// Anybody may use an exclusive queue.
    ExclusiveShared = "exclusive-shared", Mutation;
    /// An exchange that is to go with its last binding stays when a queue takes that along.
    OrphansStay = "orphans-stay", Mutation;
    /// A policy holds for queues that are declared after it only.
    PolicyForNewOnly = "policy-for-new-only", Mutation;
    /// Of several policies the last one by name counts, whatever their priorities.
    PoliciesByName = "policies-by-name", Mutation;
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
