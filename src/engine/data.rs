//! What happens per message. Does not configure, log, format or allocate per message.

pub mod admit;
pub(crate) mod amqp;
pub mod consumer;
pub mod dead_letter;
pub mod dedup;
pub mod deliver;
pub mod fanout;
pub mod fence;
pub mod flow;
pub mod hold;
pub mod journal;
pub mod lifetime;
pub mod notes;
pub mod producer;
pub mod publish;
pub mod queue;
pub mod recent;
pub mod route;
pub mod session;
pub mod slab;
pub mod spread;
pub mod stages;
pub mod streams;
pub mod table;
pub mod trace;
