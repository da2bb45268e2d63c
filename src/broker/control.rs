//! What happens per operation, off the cores: administration, metrics, logs. Does not touch a
//! message.

pub mod admin;
pub mod flight;
pub mod identity;
pub mod log;
pub mod metrics;
pub mod numbers;
