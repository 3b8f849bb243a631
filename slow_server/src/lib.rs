//! The scripted origin: of the demo, of every test and of the benchmarks.
//!
//! Two faces. By URL (`/bytes/1m?cc=max-age=60&delay=200`; `/` lists everything) it serves curl,
//! the demo and benchmarks. As a library it serves tests: [`Origin`] answers by routes that a test
//! writes, stops at [`Gate`]s, counts and keeps every request, and tells [`Lie`]s.
//!
//! What it keeps true:
//! - It is honest by default: conditions, ranges and framing follow RFC 9110 and 9112, and each
//!   byte of a generated body is a function of its URL ([`body_bytes`]). Only a lie lies.
//! - It is strict about what it receives: a request that is not HTTP gets 400 and stands in
//!   [`Origin::malformed`].
//! - A test waits on events, never on time: gates, counters and connections can all be waited for.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use slow_server::Origin;
//!
//! let origin = Origin::start().await;
//! let gate = origin.get("/a").body("hello").cache_control("max-age=60").gated();
//! // … a client asks for origin.url_of("/a") …
//! gate.open();
//! assert_eq!(origin.requests("/a"), 0);
//! # });
//! ```

mod answer;
mod body;
mod counts;
mod face;
mod gate;
mod hls;
mod http1;
mod http2;
mod lie;
mod origin;
#[cfg(test)]
mod plays;
mod reply;
mod request;
mod tls;

pub use answer::Answer;
pub use body::{BodyFn, Mismatch, body_bytes, body_bytes_of_version, fill_body, hash, verify_body};
pub use counts::Counts;
pub use gate::{Gate, WAIT_LIMIT};
pub use hls::hls_body;
pub use lie::{Lie, LieClass, UnknownLie};
pub use origin::{Builder, Origin, Route};
pub use request::{BODY_KEPT_BYTES, Request};
pub use tls::Alpn;
