//! What HTTP says about caching, as pure functions of messages, settings and a given time.
//!
//! Kept true here: nothing in this module does I/O, reads a clock, or panics on bytes from the
//! network; and nothing of it knows how a response is stored or how a message comes in.

pub mod asker;
pub mod cache_control;
pub mod cache_status;
pub mod cmcd;
pub mod conditional;
pub mod freshness;
pub mod hop;
pub mod key;
pub mod link;
pub mod pattern;
pub mod range;
pub mod reference;
pub mod tags;
pub mod update;
pub mod vary;
