//! The bytes between a Ringpost client and a Ringpost broker: frames, messages, control bodies, codes.
//!
//! This crate does not know IO, clocks, allocation policy or what a queue does with a message.
//! It is page one of the protocol in code; the normative text is `docs/protocol.md`, whose rules
//! are cited here as `P-n`.
//!
//! ```text
//! connection = Hello frame, Welcome frame, then any frames
//!
//! frame      +----------------------+-------------------------------+-----------+
//!            | FrameHeader, 32 B    | body, `body_bytes`            | zeros     |
//!            +----------------------+-------------------------------+-----------+
//!            |<---------------- `length`, a multiple of 16 --------------------->|
//!
//! Publish    body = message, message, ...      each padded with zeros to 16 bytes
//! Deliver    body = DeliverHead 16 B, message, message, ...
//! Fragment   body = FragmentHead 16 B, bytes of one message larger than `FRAGMENT_BYTES_MAX`
//! others     body = one fixed structure of little-endian integers, then its byte parts
//!
//! message    +----------------------+----------+-------------+------------+---------+---------+
//!            | Envelope, 64 B       | exchange | routing key | properties | headers | payload |
//!            +----------------------+----------+-------------+------------+---------+---------+
//! ```
//!
//! Every multi-byte integer is little-endian and unaligned (`rend::unaligned`), so a structure may
//! be read in place at any address. The fixed structures are rkyv archives (`Portable`, `repr(C)`,
//! checked by `rkyv::access`); to every other language they are documented C structs.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod batch;
pub mod browsed;
pub mod checksum;
pub mod code;
pub mod control;
pub mod envelope;
pub mod frame;
pub mod header;
pub mod ids;
pub mod limits;
pub mod properties;
pub mod table;
pub mod version;

pub use batch::{DeliverHead, FragmentHead, Messages, SettleRange};
pub use browsed::{BROWSED_CUT, BrowsedHead, BrowsedMessage, BrowsedMessages, BrowsedState};
pub use code::Code;
pub use envelope::{Envelope, MessageParts};
pub use frame::{Cut, cut};
pub use header::{FrameHeader, FrameKind};
pub use limits::*;
pub use table::Table;
