//! A request as the origin received it.

use bytes::Bytes;
use http::{HeaderMap, Method, Version};

/// A received request, kept in the origin's log. Body, trailers and their like fill up as the body
/// arrives.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// The target, byte for byte as it stood in the request line (over HTTP/2: path and query).
    pub target: String,
    pub version: Version,
    pub headers: HeaderMap,
    /// The head as it was received, up to and with the empty line. Empty over HTTP/2.
    pub raw_head: Bytes,
    /// The first [`BODY_KEPT_BYTES`] bytes of the body.
    pub body: Bytes,
    /// Bytes of body received so far.
    pub body_bytes: u64,
    /// [`hash`](crate::hash) of the whole body received so far.
    pub body_hash: u64,
    pub trailers: HeaderMap,
    /// Which of the origin's connections brought it, counted from 1.
    pub connection: u64,
    /// Which of the origin's requests it is, counted from 1.
    pub number: u64,
}

/// How much of a request's body the log keeps.
pub const BODY_KEPT_BYTES: usize = 1024 * 1024;

impl Request {
    /// The target up to its query; of an absolute target, its path.
    #[must_use]
    pub fn path(&self) -> &str {
        path_of(&self.target)
    }

    /// What follows the `?`, or nothing.
    #[must_use]
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The first line of this name, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All lines of this name, in order.
    #[must_use]
    pub fn header_lines(&self, name: &str) -> Vec<String> {
        let lines = self.headers.get_all(name).iter();
        lines
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect()
    }

    pub(crate) fn is_conditional(&self) -> bool {
        [
            "if-none-match",
            "if-modified-since",
            "if-match",
            "if-unmodified-since",
        ]
        .iter()
        .any(|name| self.headers.contains_key(*name))
    }
}

pub(crate) fn path_of(target: &str) -> &str {
    let origin_form = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            rest.find('/').map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    origin_form.split('?').next().unwrap_or_default()
}
