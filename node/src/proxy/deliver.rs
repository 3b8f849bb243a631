//! From a stored response to an answer: conditions, ranges, and where the bytes come from.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::cache::head::Head;
use crate::cache::residency::Stored;
use crate::cache::{BodyError, Failure, Forward, How, OriginRules, Passed, Reader, UpstreamFields};
use crate::clock;
use crate::proxy::message::{Body, Report, Request, Response};
use crate::proxy::multipart::{Multipart, Part};
use crate::proxy::respond;
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
        request: &Rc<Request>,
        origin: &Rc<OriginRules>,
        ranges: &Ranges,
        stored: Arc<Stored>,
        how: How,
        now: SystemTime,
    ) -> Result<Response, Arc<Stored>> {
        let selection = select(&request.headers, ranges, &stored, now);
        let length = stored.body.object.length();
        let span = match (&selection, length) {
            (Selection::Whole, Some(length)) => 0..length,
            (Selection::Part(span, _), _) => span.clone(),
            (Selection::NotModified | Selection::Unsatisfiable(_), _) => 0..0,
            _ => return Err(stored),
        };
        let body = if request.method == Method::HEAD || span.is_empty() {
            Body::Empty
        } else {
            match self.cache.cached(&stored, span.clone()) {
                Some((bytes, rest)) if rest.is_empty() => Body::Full(bytes),
                Some((bytes, rest)) => Body::Pair(bytes, rest),
                None => return Err(stored),
            }
        };
        let report = Report::of(request, Some(origin));
        Ok(respond(stored, selection, body, how, now, report))
    }

    /// Everything else: bytes from disk, from fills, and from the origin.
    pub(super) async fn deliver(
        &self,
        question: &Question,
        stored: Arc<Stored>,
        mut how: How,
    ) -> Result<Response, BodyError> {
        let now = clock::now();
        let request = &question.request;
        let selection = select(&request.headers, &question.ranges, &stored, now);
        let span = match &selection {
            _ if request.method == Method::HEAD => None,
            Selection::NotModified | Selection::Unsatisfiable(_) => None,
            Selection::Whole => Some(0..stored.body.object.length().unwrap_or(u64::MAX)),
            Selection::Part(span, _) => Some(span.clone()),
            Selection::Parts(spans, length) => {
                return self
                    .deliver_parts(question, &stored, spans, *length, how)
                    .await;
            }
        };
        let body = match span {
            Some(span) if !span.is_empty() => self.read(question, &stored, span, &mut how).await?,
            _ => Body::Empty,
        };
        Ok(respond(
            stored,
            selection,
            body,
            how,
            now,
            question.report(),
        ))
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
        self.cache
            .reader(stored, span, &question.for_cache(), &upstream)
    }

    async fn deliver_parts(
        &self,
        question: &Question,
        stored: &Arc<Stored>,
        spans: &[Range<u64>],
        length: u64,
        how: How,
    ) -> Result<Response, BodyError> {
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
        Ok(Response {
            status: StatusCode::PARTIAL_CONTENT,
            stored: None,
            age: age(&stored.head, &how, now),
            headers,
            length: Some(total),
            body: Body::Multipart(Box::new(Multipart::new(parts, boundary.end()))),
            how,
            ttl: Some(stored.head.freshness.ttl(now)),
            report: question.report(),
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
fn select(request: &HeaderMap, ranges: &Ranges, stored: &Stored, now: SystemTime) -> Selection {
    let head = &stored.head;
    if head.status != StatusCode::OK {
        return Selection::Whole;
    }
    let condition = conditional::evaluate(request, &head.validators, &head.headers, now);
    if condition == Conditional::NotModified {
        return Selection::NotModified;
    }
    let (Ranges::Set(specs), Some(length)) = (ranges, stored.body.object.length()) else {
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

fn respond(
    stored: Arc<Stored>,
    selection: Selection,
    body: Body,
    how: How,
    now: SystemTime,
    report: Report,
) -> Response {
    let head = &stored.head;
    let ttl = Some(head.freshness.ttl(now));
    let age = age(head, &how, now);
    let mut headers = HeaderMap::new();
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
    Response {
        status,
        stored: with_head.then_some(stored),
        age,
        headers,
        length,
        body,
        how,
        ttl,
        report,
    }
}

/// A first-hand answer has no age unless the origin's had one (RFC 9111 §5.1).
fn age(head: &Head, how: &How, now: SystemTime) -> Option<u64> {
    let age = head.age_secs(now);
    (age > 0 || how.is_hit()).then_some(age)
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
pub(super) fn passed(question: &Question, passed: Passed, how: How) -> Result<Response, ()> {
    let Passed { response, window } = passed;
    let request = &question.request.headers;
    let is_head = question.request.method == Method::HEAD;
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
        let mut answer = respond::through(response, is_head, how, question.report());
        answer.status = StatusCode::NOT_MODIFIED;
        answer.body = Body::Empty;
        answer.length = None;
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
            answer.headers.remove(name);
        }
        return Ok(answer);
    }
    let Some(window) = window else {
        return Ok(respond::through(response, is_head, how, question.report()));
    };
    let Ranges::Set(specs) = &question.ranges else {
        return Err(());
    };
    if !conditional::if_range_holds(request, &validators, &response.headers) {
        return Err(());
    }
    let length = window.complete_length;
    let announced = response.content_length;
    let mut answer = respond::through(response, is_head, how, question.report());
    match select_ranges(specs, length) {
        Selection::Part(span, _)
            if span.start >= window.starts_at
                && announced.is_none_or(|n| span.end <= window.starts_at.saturating_add(n)) =>
        {
            let body = std::mem::replace(&mut answer.body, Body::Empty);
            let Body::Upstream(body) = body else {
                return Err(());
            };
            answer.headers.insert(
                header::CONTENT_RANGE,
                ContentRange::to_header(&span, length),
            );
            answer.length = Some(span.end - span.start);
            answer.body = Body::Window {
                body,
                skip: span.start - window.starts_at,
                take: span.end - span.start,
            };
            Ok(answer)
        }
        Selection::Unsatisfiable(length) => {
            answer.status = StatusCode::RANGE_NOT_SATISFIABLE;
            answer
                .headers
                .insert(header::CONTENT_RANGE, ContentRange::unsatisfied(length));
            answer.length = Some(0);
            answer.body = Body::Full(Bytes::new());
            Ok(answer)
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
