//! N engines on a simulated disk, network, mesh and clock: one seed is one world, bit for bit.
//! Drives the engine through its seam and plays its clients; does not know how it works inside.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod client;
pub mod disk;
pub mod engine;
pub mod graves;
pub mod groups;
pub mod ledger;
pub mod memory;
pub mod model;
pub mod network;
pub mod places;
pub mod plan;
pub mod random;
pub mod run;
pub mod scene;
pub mod streams;
pub mod times;
pub mod transactions;
pub mod world;
