//! What an outcome looks like to the client: the one place where errors become statuses.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};

use crate::cache::head::Head;
use crate::cache::purge::NodePurged;
use crate::cache::{Failure, Forward, How, OriginRules, StaleReason};
use crate::clock;
use crate::origin::UpstreamResponse;
use crate::proxy::Proxy;
use crate::proxy::message::{Body, Client, Report, Request, Response};
use crate::semantics::cache_status::CacheStatus;
use crate::telemetry::{self, CacheResult};
use crate::wire::{Framing, encode};

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// An answer that this node makes up.
pub struct Refusal {
    status: StatusCode,
    detail: &'static str,
    allow: bool,
}

impl Refusal {
    fn new(status: StatusCode, detail: &'static str) -> Refusal {
        Refusal {
            status,
            detail,
            allow: false,
        }
    }

    pub fn respond(self, report: Report) -> Response {
        let how = How {
            detail: Some(self.detail),
            synthetic: true,
            ..How::default()
        };
        let mut response = made_up(self.status, how, report);
        if self.allow {
            let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            response.headers.insert(header::ALLOW, methods);
        }
        response
    }
}

pub fn no_origin() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no-origin-for-host")
}

/// RFC 8586 §2, RFC 5842 §7.2.
pub fn loop_detected() -> Refusal {
    Refusal::new(StatusCode::LOOP_DETECTED, "loop")
}

pub fn method_not_allowed() -> Refusal {
    Refusal {
        allow: true,
        ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method")
    }
}

/// `OPTIONS` that may go no further (RFC 9110 §7.6.2).
pub fn options_here() -> Refusal {
    Refusal {
        allow: true,
        ..Refusal::new(StatusCode::NO_CONTENT, "max-forwards")
    }
}

/// A purge came to an end, on this node first. What is not on its disk is purged, but may be back after a restart.
pub fn purged(nodes: &[NodePurged], report: Report) -> Response {
    let is_done = |node: &NodePurged| node.error.is_none();
    let (status, word) = match (
        nodes.first().is_some_and(is_done),
        nodes.iter().all(is_done),
    ) {
        (true, true) => (StatusCode::OK, "ok"),
        (true, false) => (StatusCode::OK, "partial"),
        (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, "not-durable"),
    };
    let how = How {
        synthetic: true,
        ..How::default()
    };
    let mut response = made_up(status, how, report);
    let matched: u64 = nodes.iter().map(|node| node.matched).sum();
    let mut text = format!("{{\"status\":\"{word}\",\"matched\":{matched}");
    if nodes.len() > 1 {
        let node = |node: &NodePurged| {
            let NodePurged {
                node,
                matched,
                error,
            } = node;
            serde_json::json!({"node": node, "matched": matched, "error": error}).to_string()
        };
        let list: Vec<String> = nodes.iter().map(node).collect();
        text.push_str(&format!(",\"nodes\":[{}]", list.join(",")));
    }
    text.push_str("}\n");
    let text = Bytes::from(text);
    let json = HeaderValue::from_static("application/json");
    response.headers.insert(header::CONTENT_TYPE, json);
    response.length = Some(text.len() as u64);
    response.body = Body::Full(text);
    response
}

/// No answer could be had from upstream.
pub fn failed(failure: Failure, how: How, report: Report) -> Response {
    let status = match failure {
        Failure::BadGateway(_) => StatusCode::BAD_GATEWAY,
        Failure::GatewayTimeout(_) | Failure::OnlyIfCached => StatusCode::GATEWAY_TIMEOUT,
        Failure::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        Failure::BadRequest(_) => StatusCode::BAD_REQUEST,
        Failure::RequestTimeout(_) => StatusCode::REQUEST_TIMEOUT,
    };
    let detail = Some(failure.detail());
    made_up(status, How { detail, ..how }, report)
}

fn made_up(status: StatusCode, how: How, report: Report) -> Response {
    let text = match is_bodiless(status) {
        true => Bytes::new(),
        false => refusal_text(status, how.detail),
    };
    let mut headers = HeaderMap::new();
    if !text.is_empty() {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, plain);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    insert_date(&mut headers, clock::now());
    Response {
        status,
        stored: None,
        age: None,
        headers,
        length: Some(text.len() as u64),
        body: Body::Full(text),
        how,
        ttl: None,
        report,
    }
}

/// What an answer of our own says.
pub fn refusal_text(status: StatusCode, detail: Option<&str>) -> Bytes {
    let reason = status.canonical_reason().unwrap_or_default();
    let code = status.as_u16();
    match detail {
        Some(detail) => format!("{code} {reason} ({detail})\n").into(),
        None => format!("{code} {reason}\n").into(),
    }
}

/// A whole answer for a client whose request could not be understood. The connection ends with it.
pub fn encode_refusal(
    out: &mut BytesMut,
    status: StatusCode,
    cache_status: HeaderValue,
    text: &Bytes,
) {
    let mut headers = HeaderMap::new();
    insert_date(&mut headers, clock::now());
    headers.insert(CACHE_STATUS, cache_status);
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    let framing = Framing::Length(text.len() as u64);
    let close = encode::Persistence::Close;
    encode::response_head(out, Version::HTTP_11, status, &headers, framing, close);
    out.extend_from_slice(text);
}

/// An upstream's answer on its way through.
pub fn through(response: UpstreamResponse, is_head: bool, how: How, report: Report) -> Response {
    let bodiless = response.body.is_end();
    let length = match response.content_length {
        // Of the answer to a GET, nothing is known.
        None if bodiless && !is_head => Some(0),
        length => length,
    };
    let mut headers = response.headers;
    for name in Head::UNDELIVERED {
        // The age of an answer that came through is the origin's to tell.
        if name != header::AGE {
            headers.remove(name);
        }
    }
    Response {
        status: response.status,
        stored: None,
        age: None,
        headers,
        length,
        body: match bodiless {
            true => Body::Empty,
            false => Body::Upstream(Box::new(response.body)),
        },
        how,
        ttl: None,
        report,
    }
}

/// Whether answers of this status have no body whatever the request (RFC 9110 §6.4.1).
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

pub fn insert_date(headers: &mut HeaderMap, now: SystemTime) {
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
        headers.insert(header::DATE, date);
    }
}

impl Response {
    /// How this answer came about, in the words of RFC 9211.
    pub fn cache_status<'a>(&self, cache: &'a str) -> CacheStatus<'a> {
        let how = &self.how;
        CacheStatus {
            cache,
            hit: how.is_hit(),
            fwd: how.forward.map(forward_token),
            fwd_status: how.forward_status.map(|status| status.as_u16()),
            ttl: self.ttl,
            stored: how.stored,
            collapsed: how.collapsed,
            key: None,
            detail: how.detail,
        }
    }
}

/// RFC 9211 §2.2.
fn forward_token(forward: Forward) -> &'static str {
    match forward {
        Forward::Bypass => "bypass",
        Forward::Method => "method",
        Forward::UriMiss => "uri-miss",
        Forward::VaryMiss => "vary-miss",
        Forward::Request => "request",
        Forward::Stale => "stale",
        Forward::Partial => "partial",
    }
}

/// What the metrics call an outcome.
pub fn cache_result(how: &How) -> CacheResult {
    match how {
        How {
            synthetic: true, ..
        } => CacheResult::Synthetic,
        How {
            stale: Some(StaleReason::WhileRevalidate),
            ..
        } => CacheResult::Updating,
        How { stale: Some(_), .. } => CacheResult::Stale,
        How {
            revalidated: true, ..
        } => CacheResult::Revalidated,
        How {
            collapsed: true, ..
        } => CacheResult::Collapsed,
        How { forward: None, .. } => CacheResult::Hit,
        How {
            forward: Some(Forward::Stale),
            ..
        } => CacheResult::Expired,
        How {
            forward: Some(Forward::Partial),
            ..
        } => CacheResult::Partial,
        How {
            forward: Some(Forward::Bypass | Forward::Method),
            ..
        } => CacheResult::Bypass,
        How {
            forward: Some(_), ..
        } => CacheResult::Miss,
    }
}

/// What the metrics call a reason to serve stale.
pub fn stale_label(reason: StaleReason) -> telemetry::StaleReason {
    match reason {
        StaleReason::WhileRevalidate => telemetry::StaleReason::WhileRevalidate,
        StaleReason::IfError => telemetry::StaleReason::OriginError,
        StaleReason::Unreachable => telemetry::StaleReason::Unreachable,
    }
}

impl Proxy {
    /// Counts and logs an answer whose last byte went out, or that broke off.
    pub fn finished(&self, response: &Response, complete: bool) {
        let report = &response.report;
        let metrics = &self.shared.metrics;
        let result = cache_result(&response.how);
        let status = response.status.as_u16();
        metrics.requests.increment((status.into(), result));
        metrics.response_bytes.add((), report.sent_bytes);
        if let Some(reason) = response.how.stale {
            metrics.stale_served.increment(stale_label(reason));
        }
        let received = report.request.received;
        let duration = received.elapsed();
        let first_byte = report.first_byte.map(|at| at.duration_since(received));
        // A tunnel lasts as long as its two ends like.
        if response.status != StatusCode::SWITCHING_PROTOCOLS {
            metrics.request_duration.observe((), duration);
        }
        if let Some(first_byte) = first_byte {
            metrics.time_to_first_byte.observe(result, first_byte);
        }
        if !self.shared.log.is_on() {
            return;
        }
        let cache_name = &self.shared.identity.cache_name;
        let cache_status = response.cache_status(cache_name).to_header();
        self.shared.log.push(&telemetry::Record {
            status: Some(status),
            body_bytes: report.sent_bytes,
            cache_status: Some(cache_status.as_bytes()),
            cache: Some(result),
            first_byte,
            duration,
            complete,
            ..record(&report.request, report.origin.as_deref())
        });
    }

    /// Counts and logs a request whose client left before its answer.
    pub fn left(&self, request: &Request, origin: &OriginRules) {
        self.shared.metrics.clients_gone.increment(());
        if self.shared.log.is_on() {
            self.shared.log.push(&telemetry::Record {
                duration: request.received.elapsed(),
                ..record(request, Some(origin))
            });
        }
    }

    /// Logs a request that is refused before it could be understood; gives the `Cache-Status` that
    /// says so. `sent_bytes` is the length of the answer's body.
    pub fn refused(
        &self,
        client: &Client,
        status: StatusCode,
        detail: &'static str,
        sent_bytes: usize,
    ) -> HeaderValue {
        let cache_status = CacheStatus {
            cache: &self.shared.identity.cache_name,
            detail: Some(detail),
            ..CacheStatus::default()
        };
        let cache_status = cache_status.to_header();
        if self.shared.log.is_on() {
            self.shared.log.push(&telemetry::Record {
                time: clock::now(),
                client: client.address,
                method: "",
                target: b"",
                protocol: "",
                host: b"",
                status: Some(status.as_u16()),
                body_bytes: sent_bytes as u64,
                referer: None,
                user_agent: None,
                cache_status: Some(cache_status.as_bytes()),
                cache: Some(CacheResult::Synthetic),
                origin: None,
                first_byte: None,
                duration: Duration::ZERO,
                complete: true,
            });
        }
        cache_status
    }
}

/// What the log says of a request that has not been answered.
fn record<'a>(request: &'a Request, origin: Option<&'a OriginRules>) -> telemetry::Record<'a> {
    let field = |name| request.headers.get(name).map(HeaderValue::as_bytes);
    telemetry::Record {
        time: clock::at(request.received),
        client: request.client.address,
        method: request.method.as_str(),
        target: &request.target,
        protocol: match request.version {
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        host: request.authority.as_bytes(),
        status: None,
        body_bytes: 0,
        referer: field(header::REFERER),
        user_agent: field(header::USER_AGENT),
        cache_status: None,
        cache: None,
        origin: origin.map(|origin| &*origin.name),
        first_byte: None,
        duration: Duration::ZERO,
        complete: false,
    }
}
