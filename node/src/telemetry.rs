//! What the node tells about itself: metrics, the access log, and the diagnostic log.
//!
//! Kept true here:
//! - Counting costs the request one relaxed add in memory of the counting thread; sums are made at
//!   scrape.
//! - A label's value comes from a closed set (an enum, or a configured origin), never from a
//!   request.
//! - Nothing here blocks a data thread: a full access log drops the line and counts it.
//!
//! This module knows nothing of HTTP semantics, of the store or of settings. Values that live
//! elsewhere (the store's counters) are copied into [`Sampled`] families by a hook given to
//! [`Metrics::on_scrape`].

pub mod access_log;
mod clock;
pub mod diagnostics;
mod exposition;
pub mod label;
pub mod metrics;
mod process;
mod sharded;

pub use access_log::{AccessLog, Format, Record, Sink};
pub use label::{
    BadRequest, CacheResult, DiskState, Dropped, FillFailure, IoEngine, Label, Labels,
    ManifestRole, NodeState, OriginId, OriginOutcome, PeerAnswer, PeerOutcome, Populated,
    PrefetchSource, Prefetched, PurgeMode, PurgeSelector, PurgeWay, Recorded, Refused,
    ReloadResult, StaleReason, StatusClass, StoreOperation, Tier, TimeoutPhase, Uncacheable,
    Validation, Version,
};
pub use metrics::{Counter, Gauge, Held, Histogram, Metrics, Sampled};
