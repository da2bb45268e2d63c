//! What happens per message. Does not configure, log, format or allocate per message.

pub mod mesh;
pub mod route;
pub mod session;
pub mod table;
