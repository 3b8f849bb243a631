//! What a node does by itself, on threads of its own, beside what clients ask for.
//!
//! Kept true here:
//! - Each worker has a pure part that says what is to be done, given what is there and the time, and a thin one
//!   that does it.
//! - A worker waits for events, and for times that it knows; it never looks whether something has happened.
//! - Clients go first: a worker has threads of a low priority, and takes no place of theirs.

pub mod limits;
pub mod populate;
pub mod prefetch;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use tokio::task::LocalSet;

use crate::cache::hold::{Pace, Shortfall, Suffices, Whole};
use crate::cache::{LocalCache, OriginRules, Request, UpstreamFields, Wanted};
use crate::semantics::hop;
use crate::semantics::key::CacheKey;
use crate::store::{self, be_gentle};

/// What a worker asks for.
pub struct Question {
    pub key: CacheKey,
    pub authority: Arc<str>,
    pub target: Bytes,
    /// Those that the variant is selected by.
    pub fields: HeaderMap,
}

/// As whom a worker asks.
#[derive(Clone)]
struct Asker<'a> {
    cdn_id: &'a str,
    /// In `User-Agent`, beside this program's name.
    agent: &'static str,
    /// A field of its own.
    also: Option<(HeaderName, HeaderValue)>,
}

impl Question {
    fn request<'a>(&'a self, origin: &'a Rc<OriginRules>) -> Request<'a> {
        Request {
            key: &self.key,
            method: &Method::GET,
            authority: &self.authority,
            target: &self.target,
            headers: &self.fields,
            wanted: Wanted::All,
            origin,
        }
    }

    /// Has what is asked for whole in the store.
    async fn hold(
        &self,
        cache: &LocalCache,
        origin: &Rc<OriginRules>,
        asker: Asker<'_>,
        pace: &Rc<Pace>,
        suffices: Suffices,
    ) -> Result<Whole, Shortfall> {
        let make = || self.upstream_fields(&cache.fetcher.pseudonym, &asker);
        let upstream = UpstreamFields {
            make: &make,
            interim: None,
        };
        let request = self.request(origin);
        cache.hold(&request, &upstream, pace, suffices).await
    }

    /// The request's fields as they leave this node: nobody's but its own stand behind it.
    fn upstream_fields(&self, pseudonym: &str, asker: &Asker<'_>) -> HeaderMap {
        let mut headers = self.fields.clone();
        hop::strip_hop_by_hop(&mut headers);
        if !headers.contains_key(header::USER_AGENT)
            && let Ok(agent) = HeaderValue::from_str(asker.agent)
        {
            headers.insert(header::USER_AGENT, agent);
        }
        let scheme = HeaderValue::from_static(self.key.scheme().as_str());
        headers.insert("x-forwarded-proto", scheme);
        if let Ok(authority) = HeaderValue::from_str(&self.authority) {
            headers.insert("x-forwarded-host", authority);
        }
        hop::append_via(&mut headers, Version::HTTP_11, pseudonym);
        hop::append_cdn_loop(&mut headers, asker.cdn_id);
        if let Some((name, value)) = &asker.also {
            headers.insert(name, value.clone());
        }
        headers
    }
}

/// Whether a request may have this field because somebody else says so: not what belongs to one user, asks for less than the
/// whole, frames the message, or is the node's own to say.
fn may_select(name: &str) -> bool {
    const REFUSED: [&str; 22] = [
        "authorization",
        "cdn-loop",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "cookie2",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "max-forwards",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-real-ip",
    ];
    let starts = ["if-", "x-forwarded-", "caje-"];
    !REFUSED.contains(&name) && !starts.iter().any(|start| name.starts_with(start))
}

/// Without the port.
fn host_of(authority: &str) -> &str {
    match authority.rfind([':', ']']) {
        Some(at) if authority.as_bytes()[at] == b':' => &authority[..at],
        _ => authority,
    }
}

/// Runs a worker on a thread of its own, of low priority, with a ring where there is one.
fn start<W: Future<Output = ()> + 'static>(
    name: &'static str,
    uses_ring: bool,
    work: impl FnOnce() -> W + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(move || {
        be_gentle();
        if uses_ring {
            return tokio_uring::start(async move {
                let _ring = store::attach_ring();
                work().await;
            });
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => LocalSet::new().block_on(&runtime, async move { work().await }),
            Err(error) => tracing::error!(%error, name, "a worker cannot run"),
        }
    })
}
