//! caje's node: a shared HTTP cache in front of one or more origins, which streams while it fills.
//!
//! `ARCHITECTURE.md` at the root of the repository tells what knows what. The rows below are its layers,
//! top first; a module imports only from rows under its own (`tests/tests/tidy.rs` holds it).

pub mod demo;

pub mod node;

pub mod endpoints;

pub mod talk;

pub mod doctor;

pub mod config;

pub mod proxy;
pub mod workers;

pub mod cache;

pub mod peer;

pub mod manifest;
pub mod origin;
pub mod store;

pub mod cluster;
pub mod media;

pub mod block;
pub mod clock;
pub mod semantics;
pub mod tasks;
pub mod telemetry;
pub mod wire;

pub use config::Config;
pub use node::{Ender, Node, StartError};
