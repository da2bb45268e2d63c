//! The hot path of a core outside the engine: what is done per batch of messages. It does not know
//! the control plane, and nothing below it calls into that.

pub mod buffers;
pub mod conn;
pub mod drive;
pub mod engine;
pub mod flight;
pub mod mesh;
pub mod notices;
pub mod store;
pub mod twin;
