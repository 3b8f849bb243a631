//! The harness of the plays: real nodes on real sockets, in one process with a scripted origin.
//!
//! Kept true here:
//! - Ports are free ones and folders are temporary, so any number of plays runs side by side.
//! - A play waits for events: the origin's gates and counters, the node's counters, bytes. Whatever does not
//!   come within [`PATIENCE`] fails the play with a sentence.
//! - The client believes nothing: it frames answers by itself, and tells whole ones from cut ones.

mod client;
mod consul;
mod faults;
mod folder;
mod http2;
mod litefs;
mod litefs_node;
mod node;
mod program;

use std::future::Future;
use std::time::Duration;

pub use client::{Answer, Ask, Connection, End, Got, Head};
pub use consul::Consul;
pub use faults::{Fault, Faults, publication};
pub use folder::Folder;
pub use http2::{Frame, Http2, RawHttp2, frame_type};
pub use litefs::{Hand, LiteFs, PATIENCE as HAND_PATIENCE, Skip, Watch, Wire};
pub use litefs_node::{LiteFsNode, PATIENCE as LITEFS_PATIENCE};
pub use node::{Node, settings};
pub use program::{Program, Unheard};
pub use slow_server::{Answer as OriginAnswer, Gate, Lie, LieClass, Origin};

/// How long anything may take before the play that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A word that belongs to one user, and must never reach another.
pub const CANARY: &str = "canary-5c1f9a";

/// Waits for what has to come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Looks again and again, giving way in between, until `holds`. For what has no event of its own.
pub async fn until(what: impl Fn() -> String, holds: impl FnMut() -> bool) {
    until_within(PATIENCE, what, holds).await;
}

/// The same, where more patience is needed.
pub async fn until_within(
    limit: Duration,
    what: impl Fn() -> String,
    mut holds: impl FnMut() -> bool,
) {
    let deadline = tokio::time::Instant::now() + limit;
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited {limit:?} for {}",
            what()
        );
        // Both the tasks of this thread and the other threads of this machine get their turn.
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
}
