//! What a caje node and its operators say to one another under `/_caje/v1`: paths and JSON.
//!
//! Kept true here:
//! - Every answer that tells of nodes has a list of them, also where there is one node.
//! - Units end the name: bytes, seconds, milliseconds since 1970. What is not known is absent or null.
//! - New fields may appear in answers; those that are here keep their meaning.
//!
//! It knows neither how a node works nor how an operator's screen looks.

mod answer;
mod ask;
pub mod path;

pub use answer::*;
pub use ask::*;
