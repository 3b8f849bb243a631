//! All integration tests, in one binary.

mod api;
mod caching;
mod collapse;
mod command;
mod crash;
mod demo;
mod deployment;
mod framing;
mod http2;
mod lies;
mod limits;
mod litefs;
mod manifest;
mod operations;
mod origins;
mod proxying;
mod purge;
mod ranges;
mod recording;
mod sharing;
mod stale;
mod storage;
mod streaming;
mod tidy;
mod validation;
mod variants;
