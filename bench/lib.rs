//! What more than one program of this folder measures with. Does not know brokers.

pub mod floor;
