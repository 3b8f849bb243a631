//! What a node does by itself, on threads of its own, beside what clients ask for.
//!
//! Kept true here:
//! - Each worker has a pure part that says what is to be done, given what is there and the time, and a thin one
//!   that does it.
//! - A worker waits for events, and for times that it knows; it never looks whether something has happened.
//! - Clients go first: a worker has threads of a low priority, and takes no place of theirs.

pub mod limits;
pub mod populate;
