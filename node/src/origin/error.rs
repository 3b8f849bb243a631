//! What can go wrong with an origin, and whose fault it is.

use std::io;
use std::sync::Arc;

use http::StatusCode;

use crate::wire::{BodyError, HeadError};

/// Why an origin gave no response, or not all of one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct OriginError {
    pub kind: ErrorKind,
    message: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    #[error("name not resolved")]
    Dns,
    #[error("connection refused")]
    Refused,
    #[error("not connected")]
    Connect,
    /// It has an address that may not be connected to.
    #[error("address not permitted")]
    Prohibited,
    #[error("TLS handshake failed")]
    Tls,
    #[error("timeout ({0})")]
    Timeout(Phase),
    /// Too many requests wait for a connection already.
    #[error("connection limit reached")]
    Busy,
    /// The connection ended before a response began.
    #[error("connection closed")]
    Closed,
    /// The response's head or interim responses are too large or too many.
    #[error("response head too large")]
    HeadTooLarge,
    /// The response breaks the protocol.
    #[error("protocol violation")]
    Protocol,
    /// The connection ended before the response did.
    #[error("response incomplete")]
    Truncated,
    /// The request's own body failed: the client's fault.
    #[error("request body failed")]
    RequestBody,
    /// The request's own body came too slowly: the client's fault.
    #[error("request body too slow")]
    RequestTooSlow,
    /// The request cannot be said in the origin's protocol (a target that HTTP/2's URI lacks).
    #[error("request cannot be sent")]
    Unsendable,
}

/// Which wait took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Phase {
    #[error("free connection")]
    Queue,
    #[error("connect")]
    Connect,
    #[error("write")]
    Write,
    #[error("response head")]
    FirstByte,
    #[error("response body")]
    Read,
}

impl OriginError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// An operator has switched the origin off.
    pub fn switched_off() -> Self {
        Self::new(ErrorKind::Connect, "an operator has switched it off")
    }

    pub(super) fn timeout(phase: Phase) -> Self {
        Self::new(ErrorKind::Timeout(phase), "took too long")
    }

    pub(super) fn protocol(message: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Protocol, message)
    }

    pub(super) fn closed(error: &io::Error) -> Self {
        Self::new(ErrorKind::Closed, error.to_string())
    }

    pub(super) fn head(error: HeadError) -> Self {
        let kind = match error {
            HeadError::TooLarge => ErrorKind::HeadTooLarge,
            _ => ErrorKind::Protocol,
        };
        Self::new(kind, error.to_string())
    }

    pub(super) fn body(error: BodyError) -> Self {
        let kind = match error {
            BodyError::Truncated => ErrorKind::Truncated,
            BodyError::Malformed(_) | BodyError::TooLarge(_) => ErrorKind::Protocol,
        };
        Self::new(kind, error.to_string())
    }

    /// What a client is told when nothing better is stored: 504 for a timeout, 503 when this node
    /// has no connection to spare, 400 for a request that cannot be sent on or whose body failed,
    /// 408 for one whose body was too slow, else 502.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            ErrorKind::Busy | ErrorKind::Timeout(Phase::Queue) => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::RequestBody | ErrorKind::Unsendable => StatusCode::BAD_REQUEST,
            ErrorKind::RequestTooSlow => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// The token for `Cache-Status`'s `detail`: a proxy error type of RFC 9209 §2.3.
    pub fn detail(&self) -> &'static str {
        match self.kind {
            ErrorKind::Dns => "dns_error",
            ErrorKind::Refused => "connection_refused",
            ErrorKind::Connect => "destination_unavailable",
            ErrorKind::Prohibited => "destination_ip_prohibited",
            ErrorKind::Tls => "tls_protocol_error",
            ErrorKind::Timeout(Phase::Queue) | ErrorKind::Busy => "connection_limit_reached",
            ErrorKind::Timeout(Phase::Connect) => "connection_timeout",
            ErrorKind::Timeout(Phase::Write) => "connection_write_timeout",
            ErrorKind::Timeout(Phase::FirstByte) => "http_response_timeout",
            ErrorKind::Timeout(Phase::Read) => "connection_read_timeout",
            ErrorKind::Closed => "connection_terminated",
            ErrorKind::HeadTooLarge => "http_response_header_section_size",
            ErrorKind::Protocol => "http_protocol_error",
            ErrorKind::Truncated => "http_response_incomplete",
            ErrorKind::RequestBody => "http_request_error",
            ErrorKind::RequestTooSlow => "http_request_timeout",
            ErrorKind::Unsendable => "http_request_denied",
        }
    }

    /// The origin cannot be reached or does not answer, as RFC 5861's and RFC 9111 §4.2.4's stale
    /// responses ask; `false` for the client's own faults.
    pub fn is_unreachable(&self) -> bool {
        !matches!(
            self.kind,
            ErrorKind::RequestBody | ErrorKind::RequestTooSlow | ErrorKind::Unsendable
        )
    }
}
