//! The broker: process, sockets, files and configuration around the engine. It does not know how a
//! message is routed, queued or acknowledged; the engine decides that.

pub mod allowance;
pub mod boot;
pub mod boot_error;
pub mod budget;
pub mod cli;
pub mod config;
pub mod control;
pub mod data;
pub mod offline;
pub mod rt;
pub mod snapshot;
pub mod stages;
