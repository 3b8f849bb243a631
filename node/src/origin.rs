//! Requests to origins: HTTP/1.1 by `wire`, HTTP/2 by hyper, over TCP or TLS.
//!
//! What it keeps true:
//! - A response is what the origin framed, or an error: a doubtful head, a body cut short or a
//!   malformed chunk never looks like a whole answer.
//! - A connection is used again only when its last exchange was clean to the byte: whole response,
//!   whole request, nothing unread, nothing unusual in its framing.
//! - Every wait has its timeout, every queue and buffer its bound, and dropping a future or a
//!   [`ResponseBody`] gives its connection slot to the next waiter at once.
//! - Nothing polls: waiters are woken by the event they wait for.
//!
//! It does not know caching, hop-by-hop fields or who asks; callers pass fields that may be forwarded.
//!
//! ```text
//!   send ─► slot: reuse idle │ open (dns ─► tcp ─► tls) │ wait, first come first served
//!        ─► write head, upload in a task of its own ─► interim responses ─► UpstreamResponse
//!        ─► ResponseBody::frame* ─► slot back to the pool, or closed
//! ```
//!
//! Everything here belongs to one data thread (`Rc`, local tasks): it must run in a `LocalSet` on a
//! current-thread runtime, and each data thread has its own [`OriginPool`].

mod connect;
mod error;
mod h1;
mod h2;
mod pool;
mod resolve;
mod tls;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};

use crate::wire;
pub use error::{ErrorKind, OriginError, Phase};
pub use h1::Upgraded;
pub use pool::OriginPool;
pub use tls::{Tls, TlsError, TlsOptions};

/// How one origin is reached. Two `Arc`s of equal settings have separate connections.
#[derive(Clone, Debug)]
pub struct Settings {
    pub scheme: Scheme,
    /// Name or address; an IPv6 address without brackets.
    pub host: Box<str>,
    pub port: u16,
    /// Addresses that may be connected to; all where there is none. Asked after a name was looked up: one
    /// address that may not keeps the name from being used.
    pub permits: Option<Permits>,
    pub http2: Http2,
    /// Needed when `scheme` is [`Scheme::Https`].
    pub tls: Option<Tls>,
    /// From the name to the usable connection: DNS, TCP and TLS together.
    pub connect_timeout: Duration,
    /// From the request's last byte to the whole head of the final response.
    pub first_byte_timeout: Duration,
    /// Between two reads of a response's body.
    pub read_timeout: Duration,
    /// For the origin to take the head, or one frame of the request's body.
    pub write_timeout: Duration,
    /// Until an unused connection is closed. Under 4 s: many origins close at 5.
    pub idle_timeout: Duration,
    /// For a connection slot to become free.
    pub queue_timeout: Duration,
    /// Connections per data thread, HTTP/1 and HTTP/2 together.
    pub max_connections: usize,
    /// Of these, how many may stay open unused.
    pub max_idle: usize,
    /// Requests that may wait for a connection, per data thread.
    pub max_waiting: usize,
    /// Interim (1xx) responses before a final one.
    pub max_interim: usize,
    /// Limits of response heads, chunk extensions and trailers.
    pub limits: wire::Limits,
}

impl Settings {
    /// Settings with the defaults of all but the address. `https` still needs [`Settings::tls`].
    pub fn new(scheme: Scheme, host: impl Into<Box<str>>, port: u16) -> Self {
        Self {
            scheme,
            host: host.into(),
            port,
            permits: None,
            http2: Http2::Off,
            tls: None,
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_millis(3500),
            queue_timeout: Duration::from_secs(10),
            max_connections: 256,
            max_idle: 64,
            max_waiting: 4096,
            max_interim: 16,
            limits: wire::Limits {
                max_head_bytes: 64 << 10,
                max_fields: wire::FIELDS_CEILING,
                ..wire::Limits::default()
            },
        }
    }
}

/// Which addresses may be connected to.
#[derive(Clone)]
pub struct Permits(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

impl Permits {
    /// `permits` sees IPv4 addresses as such, also where they are written as IPv6.
    pub fn new(permits: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Permits {
        Permits(Arc::new(permits))
    }

    /// Never where nobody may be ([`is_nobodys`]).
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !is_nobodys(address) && (self.0)(address)
    }
}

/// Link-local addresses, where clouds tell secrets, and such as stand for no host: nothing that was only told of is
/// there, whatever the settings allow.
pub fn is_nobodys(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                // A cloud's metadata, within the private networks of RFC 4193.
                || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permits(..)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Whether an origin is asked over HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Http2 {
    #[default]
    Off,
    /// As the TLS handshake decides (ALPN); HTTP/1.1 without TLS.
    Auto,
    /// Always; without TLS this is h2c with prior knowledge.
    PriorKnowledge,
}

/// A request as it goes to the origin.
pub struct UpstreamRequest {
    pub method: Method,
    /// Origin-form or `*`, sent byte for byte.
    pub target: Bytes,
    /// What `Host` or `:authority` says.
    pub authority: Box<str>,
    /// End-to-end fields. Fields of the connection and of framing are skipped when written.
    pub headers: HeaderMap,
    pub body: RequestBody,
    /// Ask for what `headers`' `upgrade` names. Only then is a 101 an answer, and only over HTTP/1.1.
    pub upgrade: bool,
}

impl UpstreamRequest {
    /// A request without fields and body.
    pub fn new(method: Method, target: Bytes, authority: impl Into<Box<str>>) -> Self {
        Self {
            method,
            target,
            authority: authority.into(),
            headers: HeaderMap::new(),
            body: RequestBody::Empty,
            upgrade: false,
        }
    }
}

/// A request's body.
#[derive(Default)]
pub enum RequestBody {
    #[default]
    Empty,
    /// Read by a task of its own while the response may already arrive.
    Stream {
        source: Pin<Box<dyn RequestBodySource>>,
        /// The body's length when it is known; otherwise it goes out chunked. A source that does not
        /// keep to it makes the request fail.
        length: Option<u64>,
    },
}

/// Where a request's body comes from. Dropped as soon as nobody will ask it again: the body was read
/// to its end, the origin went away, or it answered with an error before it had read everything.
pub trait RequestBodySource {
    /// The next frame; `None` at the end of a whole body.
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, SourceFailed>>>;
}

/// Why the request's body cannot be had. The request fails with the [`ErrorKind`] of the same name,
/// and the origin sees a cut connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceFailed {
    /// The client went away or broke a rule.
    #[error("the request body ended before its end")]
    RequestBody,
    /// The client sent less than it has to in the time it has.
    #[error("the request body came too slowly")]
    RequestTooSlow,
}

impl SourceFailed {
    fn into_error(self) -> OriginError {
        let kind = match self {
            SourceFailed::RequestBody => ErrorKind::RequestBody,
            SourceFailed::RequestTooSlow => ErrorKind::RequestTooSlow,
        };
        OriginError::new(kind, self.to_string())
    }
}

/// A part of a body.
#[derive(Debug)]
pub enum Frame {
    /// Never empty.
    Data(Bytes),
    /// At most one, and the last.
    Trailers(HeaderMap),
}

/// An origin's final response.
pub struct UpstreamResponse {
    pub status: StatusCode,
    pub version: Version,
    /// As received; without `transfer-encoding`. Fields of the connection are still in it.
    pub headers: HeaderMap,
    /// What the origin announced, also for HEAD and 304, whose body is empty all the same.
    pub content_length: Option<u64>,
    /// The body ends where the connection does: its end cannot be told from its truncation.
    pub close_delimited: bool,
    pub body: ResponseBody,
    /// The connection after a 101.
    pub upgraded: Option<Upgraded>,
}

/// A response's body. Dropping it before its end closes the connection (HTTP/1) or the stream.
pub struct ResponseBody(Inner);

enum Inner {
    Empty,
    Http1(Box<h1::Body>),
    Http2(Box<h2::Body>),
    Believed(Box<Believed>),
}

/// Says what of a body is to be believed: given its next bytes, or nothing at its end, it adds to the queue what may
/// be given out by now.
pub type Belief = dyn FnMut(Option<Bytes>, &mut VecDeque<Bytes>) -> Result<(), Unbelieved>;

/// Why a body is not given out any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbelieved {
    /// It is not over, though nothing more comes.
    Cut,
    Wrong,
}

struct Believed {
    body: ResponseBody,
    belief: Box<Belief>,
    /// To be given out; never empty pieces.
    ready: VecDeque<Bytes>,
}

impl Believed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, OriginError>>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::Data(data))));
            }
            let believed = match std::task::ready!(self.body.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => (self.belief)(Some(data), &mut self.ready),
                // What nobody believes in is left out.
                Some(Ok(Frame::Trailers(_))) => continue,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => match (self.belief)(None, &mut self.ready) {
                    Ok(()) => return Poll::Ready(None),
                    Err(unbelieved) => Err(unbelieved),
                },
            };
            if let Err(unbelieved) = believed {
                let kind = match unbelieved {
                    Unbelieved::Cut => ErrorKind::Truncated,
                    Unbelieved::Wrong => ErrorKind::Protocol,
                };
                let error = OriginError::new(kind, "the body is not what it should be");
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl ResponseBody {
    /// A body without bytes.
    pub fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// The same body, of which only what is believed is given out.
    pub fn believed(
        self,
        belief: impl FnMut(Option<Bytes>, &mut VecDeque<Bytes>) -> Result<(), Unbelieved> + 'static,
    ) -> Self {
        Self(Inner::Believed(Box::new(Believed {
            body: self,
            belief: Box::new(belief),
            ready: VecDeque::new(),
        })))
    }

    /// The next frame; `None` after a whole body, again and again. Cancel-safe: a dropped call loses
    /// nothing. After an error the body is over.
    pub async fn frame(&mut self) -> Option<Result<Frame, OriginError>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// [`ResponseBody::frame`] for those who poll.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, OriginError>>> {
        let frame = match &mut self.0 {
            Inner::Empty => return Poll::Ready(None),
            Inner::Http1(body) => std::task::ready!(body.poll_frame(cx)),
            Inner::Http2(body) => std::task::ready!(body.poll_frame(cx)),
            Inner::Believed(body) => std::task::ready!(body.poll_frame(cx)),
        };
        let over = match &self.0 {
            Inner::Http1(body) => body.is_end(),
            Inner::Http2(body) => body.is_end(),
            // It has to be asked whether that was the end.
            Inner::Believed(_) => false,
            Inner::Empty => true,
        };
        if over || !matches!(frame, Some(Ok(_))) {
            self.0 = Inner::Empty;
        }
        Poll::Ready(frame)
    }

    /// Nothing more will come: the body was whole (or its error was delivered). `false` says nothing.
    pub fn is_end(&self) -> bool {
        matches!(self.0, Inner::Empty)
    }
}

/// What the origins' connections do, summed over all data threads. Relaxed counters; the last two
/// are gauges.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub connections_opened: AtomicU64,
    /// Attempts to connect that failed, timeouts included.
    pub connections_failed: AtomicU64,
    /// HTTP/1 requests that went out on a connection used before.
    pub connections_reused: AtomicU64,
    /// Idle connections found closed or with unread bytes.
    pub connections_stale: AtomicU64,
    /// Unused connections closed by the idle timeout.
    pub connections_expired: AtomicU64,
    /// Requests sent again on a fresh connection.
    pub retries: AtomicU64,
    pub timeouts: AtomicU64,
    /// Responses refused for what they were: bad framing, truncation, unasked upgrades.
    pub protocol_errors: AtomicU64,
    pub interim_responses: AtomicU64,
    pub open: AtomicI64,
    pub waiting: AtomicI64,
}
