//! The history checker: reads what clients sent, were told and received, and decides whether a
//! broker kept its promises. Does not know brokers, sockets, files or time.
//!
//! A **history** is a sequence of [`Event`]s in the order in which clients saw them happen, from
//! all clients together. [`Checker`] reads it once, in time linear in its length, and ends with a
//! [`Verdict`]: what was counted, and every [`Violation`] with its reason. The same program judges
//! the simulator, kill tests, crash images and soaks, so that "nothing was lost" means one thing.
//!
//! What is decided, and by which [`Kind`]:
//!
//! | promise | kinds |
//! |---|---|
//! | confirmed messages are delivered, whatever crashes | [`Kind::Lost`], [`Kind::Vanished`] |
//! | nothing comes back after its ack is known to be done | [`Kind::DeliveredAfterAckConfirm`], [`Kind::DeliveredAfterAck`] |
//! | duplicates are flagged, counts never too low | [`Kind::UnflaggedDuplicate`], [`Kind::FlaggedWithoutCause`], [`Kind::CountTooLow`], [`Kind::CountTooHigh`] |
//! | one holder at a time | [`Kind::TwoHolders`] |
//! | order per producer and queue, requeue to the original place | [`Kind::PlacesOutOfOrder`], [`Kind::DeliveredOutOfOrder`], [`Kind::PlaceChanged`], [`Kind::PlaceReused`] |
//! | nothing is seen that was not sent, was refused or aborted | [`Kind::Phantom`], [`Kind::RefusedButSeen`] |
//! | exactly the queues that routing names | [`Kind::CrossQueue`], [`Kind::WronglyUnroutable`] |
//! | bytes arrive as sent | [`Kind::HashMismatch`] |
//! | every publish is answered once, at a level that is true | [`Kind::AnsweredTwice`], [`Kind::NeverAnswered`], [`Kind::LevelOverstated`] |
//!
//! A harness that does not know something says so ([`Target::May`], [`Event::Unknown`],
//! [`Event::Dropped`]); the checker then asks for nothing there. It never guesses.
//!
//! ```
//! use ringpost_check::{Checker, text};
//!
//! let history = "queue 0 durable\n\
//!                sent 7.1 ab durable 0\n\
//!                confirmed 7.1-1 durable\n\
//!                crash\n\
//!                end\n";
//! let mut checker = Checker::new();
//! text::read(history.as_bytes(), |event| checker.event(event)).expect("well formed");
//! let verdict = checker.verdict();
//! assert_eq!(verdict.violations[0].kind, ringpost_check::Kind::Lost);
//! ```

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod checker;
mod event;
pub mod text;
mod verdict;

pub use checker::Checker;
pub use event::{
    AckMode, ConsumerNo, Delivery, Durability, Event, Level, MessageId, QueueNo, Refusal, Target,
};
pub use verdict::{Counts, Kind, Verdict, Violation};

#[cfg(test)]
mod tests;
