//! What happens per message. Does not configure, log, format or allocate per message.

pub mod mesh;
pub mod session;
pub mod table;
