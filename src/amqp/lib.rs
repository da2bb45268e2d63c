//! AMQP 0-9-1 as bytes: frames, methods, content headers, logins, and how a content maps to a native
//! message and back. Knows neither IO nor queues, and never allocates to read.
//!
//! ```text
//! connection = protocol header, then frames both ways
//!
//! frame      +---------+------------+---------+------------------+------+
//!            | type u8 | channel u16| size u32| payload          | 0xCE |
//!            +---------+------------+---------+------------------+------+
//! method     payload = class u16, method u16, arguments            ([`Method`])
//! header     payload = class u16, 0, body bytes u64, property list ([`ContentHeader`])
//! body       payload = a piece of the body
//! ```
//!
//! Integers are big-endian. Field tables are those of [`ringpost_wire::table`]: their contents lie in a
//! native message byte for byte as the client wrote them.
//!
//! The methods are generated from one table ([`method`]) which mirrors the published specification and
//! the extensions that RabbitMQ's clients use.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod code;
pub mod content;
pub mod frame;
pub mod login;
pub mod method;

pub use code::{Error, ReplyCode, Scope};
pub use content::{ContentHeader, Headers};
pub use frame::{
    Cut, FRAME_BYTES_MAX, FRAME_BYTES_MIN, FRAME_END, FRAME_OVERHEAD, Frame, FrameType,
    PROTOCOL_HEADER, cut,
};
pub use method::Method;
