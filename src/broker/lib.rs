//! Ringpost, the broker: process, sockets, files and configuration around `ringpost-engine`.
//! Does not decide what happens to a message.

pub mod budget;
pub mod config;
