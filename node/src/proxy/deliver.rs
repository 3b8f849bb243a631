//! From a stored response to an answer: conditions, ranges, and where the bytes come from.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::cache::head::Head;
use crate::cache::residency::Stored;
use crate::cache::{BodyError, Failure, Forward, How, Passed, Reader, UpstreamFields};
use crate::clock;
use crate::proxy::message::Body;
use crate::proxy::multipart::{Multipart, Part};
use crate::proxy::respond::{self, Delivered};
use crate::proxy::{Proxy, Question};
use crate::semantics::conditional::{self, Conditional, Validators};
use crate::semantics::range::{self, Boundary, ContentRange, RangeSpec, Ranges, Resolved};

/// Fields of a 304 (RFC 9110 §15.4.5), and those that describe the answer rather than the body.
const NOT_MODIFIED_FIELDS: [HeaderName; 9] = [
    header::CACHE_CONTROL,
    header::CONTENT_LOCATION,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::VARY,
    header::VIA,
    HeaderName::from_static("cdn-cache-control"),
];

/// The part of a stored response that a request asks for.
enum Selection {
    NotModified,
    Unsatisfiable(u64),
    Whole,
    Part(Range<u64>, u64),
    Parts(Vec<Range<u64>>, u64),
}

impl Proxy {
    /// The hot path: everything that can be answered without waiting. `Err` gives the response back.
    pub(super) fn deliver_cached(
        &self,
        question: &Question,
        stored: Arc<Stored>,
        how: How,
        now: SystemTime,
    ) -> Result<Delivered, Arc<Stored>> {
        let selection = select(question, &stored, now);
        let length = stored.body.object.length();
        let span = match (&selection, length) {
            (Selection::Whole, Some(length)) => 0..length,
            (Selection::Part(span, _), _) => span.clone(),
            (Selection::NotModified | Selection::Unsatisfiable(_), _) => 0..0,
            _ => return Err(stored),
        };
        let body = if question.cache.method == Method::HEAD || span.is_empty() {
            Body::Empty
        } else {
            match self.cache.cached(&stored, span.clone()) {
                Some((bytes, rest)) if rest.is_empty() => Body::Full(bytes),
                Some((bytes, rest)) => Body::Pair(bytes, rest),
                None => return Err(stored),
            }
        };
        Ok(delivered(stored, selection, body, how, now))
    }

    /// Everything else: bytes from disk, from fills, and from the origin.
    pub(super) async fn deliver(
        &self,
        question: &Question,
        stored: Arc<Stored>,
        how: How,
    ) -> Result<Delivered, BodyError> {
        let now = clock::now();
        let stored = match self.deliver_cached(question, stored, how, now) {
            Ok(delivered) => return Ok(delivered),
            Err(stored) => stored,
        };
        let selection = select(question, &stored, now);
        let mut how = how;
        let body = match &selection {
            _ if question.cache.method == Method::HEAD => Body::Empty,
            Selection::NotModified | Selection::Unsatisfiable(_) => Body::Empty,
            Selection::Whole => {
                let end = stored.body.object.length().unwrap_or(u64::MAX);
                self.read(question, &stored, 0..end, &mut how).await?
            }
            Selection::Part(span, _) => {
                self.read(question, &stored, span.clone(), &mut how).await?
            }
            Selection::Parts(spans, length) => {
                return self
                    .deliver_parts(question, &stored, spans, *length, how)
                    .await;
            }
        };
        Ok(delivered(stored, selection, body, how, now))
    }

    async fn read(
        &self,
        question: &Question,
        stored: &Arc<Stored>,
        span: Range<u64>,
        how: &mut How,
    ) -> Result<Body, BodyError> {
        let mut reader = self.reader(question, stored, span);
        reader.prime().await?;
        note_fill(how, &reader);
        Ok(Body::Stored(Box::new(reader)))
    }

    fn reader(&self, question: &Question, stored: &Arc<Stored>, span: Range<u64>) -> Reader {
        let make = || self.upstream_fields(question);
        let upstream = UpstreamFields {
            make: &make,
            interim: None,
        };
        self.cache.reader(stored, span, &question.cache, &upstream)
    }

    async fn deliver_parts(
        &self,
        question: &Question,
        stored: &Arc<Stored>,
        spans: &[Range<u64>],
        length: u64,
        how: How,
    ) -> Result<Delivered, BodyError> {
        let boundary = Boundary::new(stored.body.object.id().0 ^ length.rotate_left(32));
        let content_type = stored.head.headers.get(header::CONTENT_TYPE);
        let mut how = how;
        let mut parts = VecDeque::with_capacity(spans.len());
        for (place, span) in spans.iter().enumerate() {
            let mut reader = self.reader(question, stored, span.clone());
            if place == 0 {
                reader.prime().await?;
                note_fill(&mut how, &reader);
            } else {
                reader.defer();
            }
            let head = boundary.part_head(content_type, span, length, place == 0);
            parts.push_back(Part {
                head: Some(head),
                reader,
            });
        }
        let total = boundary.total_length(content_type, spans, length);
        let now = clock::now();
        let mut headers = own_fields(&stored.head);
        headers.insert(header::CONTENT_TYPE, boundary.content_type());
        insert_age(&mut headers, &stored.head, &how, now);
        Ok(Delivered {
            status: StatusCode::PARTIAL_CONTENT,
            stored: None,
            headers,
            length: Some(total),
            body: Body::Multipart(Box::new(Multipart::new(parts, boundary.end()))),
            how,
            ttl: Some(stored.head.freshness.ttl(now)),
        })
    }
}

/// A stored response whose first bytes had to be fetched is no hit (RFC 9211 §2.2: `partial`).
fn note_fill(how: &mut How, reader: &Reader) {
    if how.is_hit() && how.stale.is_none() && reader.begins_with_fill() {
        how.forward = Some(Forward::Partial);
        how.collapsed = !reader.has_asked();
    }
}

/// RFC 9110 §13.2.2: conditions first, then ranges.
fn select(question: &Question, stored: &Stored, now: SystemTime) -> Selection {
    let request = &question.cache.headers;
    let head = &stored.head;
    if head.status != StatusCode::OK {
        return Selection::Whole;
    }
    let condition = conditional::evaluate(request, &head.validators, &head.headers, now);
    if condition == Conditional::NotModified {
        return Selection::NotModified;
    }
    let (Ranges::Set(specs), Some(length)) = (&question.ranges, stored.body.object.length()) else {
        return Selection::Whole;
    };
    if !conditional::if_range_holds(request, &head.validators, &head.headers) {
        return Selection::Whole;
    }
    select_ranges(specs, length)
}

fn select_ranges(specs: &[RangeSpec], length: u64) -> Selection {
    match range::resolve(specs, length) {
        Resolved::Unsatisfiable => Selection::Unsatisfiable(length),
        Resolved::Single(span) => Selection::Part(span, length),
        Resolved::Multi(spans) => Selection::Parts(spans, length),
    }
}

fn delivered(
    stored: Arc<Stored>,
    selection: Selection,
    body: Body,
    how: How,
    now: SystemTime,
) -> Delivered {
    let head = &stored.head;
    let ttl = Some(head.freshness.ttl(now));
    let mut headers = HeaderMap::new();
    insert_age(&mut headers, head, &how, now);
    let (status, length, with_head) = match selection {
        Selection::NotModified => {
            for name in NOT_MODIFIED_FIELDS {
                for value in head.headers.get_all(&name) {
                    headers.append(name.clone(), value.clone());
                }
            }
            (StatusCode::NOT_MODIFIED, None, false)
        }
        Selection::Unsatisfiable(length) => {
            headers.insert(header::CONTENT_RANGE, ContentRange::unsatisfied(length));
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
            respond::insert_date(&mut headers, now);
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(0), false)
        }
        Selection::Part(span, length) => {
            // In an answer with a part, a `Content-Range` that means nothing in the stored 200
            // (RFC 9110 §14.4) would say something else than ours.
            let is_clean = !head.headers.contains_key(header::CONTENT_RANGE);
            if !is_clean {
                headers.extend(own_fields(head));
            }
            let own = ContentRange::to_header(&span, length);
            headers.insert(header::CONTENT_RANGE, own);
            let length = span.end - span.start;
            (StatusCode::PARTIAL_CONTENT, Some(length), is_clean)
        }
        Selection::Whole | Selection::Parts(..) => (head.status, stored.body.object.length(), true),
    };
    Delivered {
        status,
        stored: with_head.then_some(stored),
        headers,
        length,
        body,
        how,
        ttl,
    }
}

/// A first-hand answer has no age unless the origin's had one (RFC 9111 §5.1).
fn insert_age(headers: &mut HeaderMap, head: &Head, how: &How, now: SystemTime) {
    let age = head.age_secs(now);
    if age > 0 || how.is_hit() {
        headers.insert(header::AGE, HeaderValue::from(age));
    }
}

/// The stored fields as a map, for an answer that changes one of them.
fn own_fields(head: &Head) -> HeaderMap {
    head.headers
        .iter()
        .filter(|(name, _)| Head::delivers(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// An answer that is not stored, cut to what the client asked for. `Err`: it was asked for in a way
/// from which the client's own answer cannot be made.
pub(super) fn passed(question: &Question, passed: Passed, how: How) -> Result<Delivered, ()> {
    let Passed { response, window } = passed;
    let request = &question.cache.headers;
    let is_head = question.cache.method == Method::HEAD;
    let validators = Validators::from_headers(&response.headers);
    // An `If-Range`, which the cache did not pass on, may have made it the whole.
    if response.status == StatusCode::RANGE_NOT_SATISFIABLE
        && request.contains_key(header::IF_RANGE)
    {
        return Err(());
    }
    if response.status == StatusCode::OK
        && conditional::evaluate(request, &validators, &response.headers, clock::now())
            == Conditional::NotModified
    {
        let mut delivered = respond::through(response, is_head, how);
        delivered.status = StatusCode::NOT_MODIFIED;
        delivered.body = Body::Empty;
        delivered.length = None;
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
            delivered.headers.remove(name);
        }
        return Ok(delivered);
    }
    let Some(window) = window else {
        return Ok(respond::through(response, is_head, how));
    };
    let Ranges::Set(specs) = &question.ranges else {
        return Err(());
    };
    if !conditional::if_range_holds(request, &validators, &response.headers) {
        return Err(());
    }
    let length = window.complete_length;
    let announced = response.content_length;
    let mut delivered = respond::through(response, is_head, how);
    match select_ranges(specs, length) {
        Selection::Part(span, _)
            if span.start >= window.starts_at
                && announced.is_none_or(|n| span.end <= window.starts_at.saturating_add(n)) =>
        {
            let body = std::mem::replace(&mut delivered.body, Body::Empty);
            let Body::Upstream(body) = body else {
                return Err(());
            };
            delivered.headers.insert(
                header::CONTENT_RANGE,
                ContentRange::to_header(&span, length),
            );
            delivered.length = Some(span.end - span.start);
            delivered.body = Body::Window {
                body,
                skip: span.start - window.starts_at,
                take: span.end - span.start,
            };
            Ok(delivered)
        }
        Selection::Unsatisfiable(length) => {
            delivered.status = StatusCode::RANGE_NOT_SATISFIABLE;
            delivered
                .headers
                .insert(header::CONTENT_RANGE, ContentRange::unsatisfied(length));
            delivered.length = Some(0);
            delivered.body = Body::Full(Bytes::new());
            Ok(delivered)
        }
        _ => Err(()),
    }
}

/// What it means that a body's first byte could not be had.
pub(super) fn failure(error: BodyError) -> Failure {
    match error {
        BodyError::Timeout => Failure::GatewayTimeout(error.token()),
        _ => Failure::BadGateway(error.token()),
    }
}
