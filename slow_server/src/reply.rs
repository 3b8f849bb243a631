//! From an answer and a request to what is sent: conditions, ranges and framing, honestly, after
//! RFC 9110 and 9112.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use crate::answer::{Answer, Body, Framing, Interim, Ranges};
use crate::body::BodyFn;
use crate::request::Request;

/// A reply, ready to be written. A lie changes any part of it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Stands in place of the status line, byte for byte.
    pub(crate) status_line: Option<Vec<u8>>,
    pub(crate) http10: bool,
    pub(crate) interim: Vec<Interim>,
    /// Sent before the head, byte for byte.
    pub(crate) before: Vec<Step>,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    /// Further lines of the head, byte for byte, without their end.
    pub(crate) lines: Vec<Vec<u8>>,
    /// What ends a line of the head.
    pub(crate) eol: &'static [u8],
    /// Sent as the head, a byte each time this has passed.
    pub(crate) drip_head: Option<Duration>,
    pub(crate) framing: Framing,
    pub(crate) source: Source,
    pub(crate) body: Vec<Step>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
    /// Whether the last chunk and the trailers are sent.
    pub(crate) last_chunk: bool,
    /// Sent after the end of the body, byte for byte.
    pub(crate) after: Vec<Step>,
    pub(crate) end: End,
}

/// A piece of what is written.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Bytes of body that are no part of the representation (multipart heads).
    Text(Bytes),
    /// A range of the representation. Gates and throttle look at these.
    Source(Range<u64>),
    /// Bytes outside all framing.
    Raw(Bytes),
    /// The same bytes many times, outside all framing.
    Repeat(Bytes, u64),
    Pause(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The next request on the same connection, if nothing forbids it.
    Next,
    Close,
    Reset,
    /// Nothing, until the client leaves.
    Hold,
}

/// The whole representation.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Fixed(Bytes),
    Generated(BodyFn, u64),
}

impl Source {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Source::Fixed(bytes) => bytes.len() as u64,
            Source::Generated(_, size) => *size,
        }
    }

    /// Appends `range`; what lies outside a fixed body is zeros.
    pub(crate) fn append(&self, range: Range<u64>, out: &mut BytesMut) {
        let length = (range.end - range.start) as usize;
        match self {
            Source::Fixed(bytes) => {
                let start = (range.start as usize).min(bytes.len());
                let end = (range.end as usize).min(bytes.len());
                out.extend_from_slice(&bytes[start..end]);
                out.resize(out.len() + length - (end - start), 0);
            }
            Source::Generated(body, _) => {
                let at = out.len();
                out.resize(at + length, 0);
                body.fill(range.start, &mut out[at..]);
            }
        }
    }

    pub(crate) fn bytes(&self, range: Range<u64>) -> Bytes {
        let mut out = BytesMut::new();
        self.append(range, &mut out);
        out.freeze()
    }
}

impl Reply {
    /// Applies the request's method, conditions and ranges.
    pub(crate) fn new(answer: &Answer, request: &Request) -> Reply {
        let source = match &answer.body {
            Body::Fixed(bytes) => Source::Fixed(bytes.clone()),
            Body::Generated(size) => {
                Source::Generated(BodyFn::of_version(request.path(), answer.version), *size)
            }
        };
        let length = source.length();
        let mut fields = Vec::with_capacity(answer.headers.len() + 6);
        if answer.date && !answer.has("date") {
            fields.push(field("date", httpdate::fmt_http_date(SystemTime::now())));
        }
        if let Some(etag) = &answer.etag {
            fields.push(field("etag", etag.clone()));
        }
        if let Some(at) = answer.last_modified {
            fields.push(field("last-modified", httpdate::fmt_http_date(at)));
        }
        if answer.ranges != Ranges::Off && !answer.has("accept-ranges") {
            fields.push(field("accept-ranges", "bytes"));
        }
        if length > 0 && answer.content_type && !answer.has("content-type") {
            let value = match answer.body {
                Body::Fixed(_) => "text/plain",
                Body::Generated(_) => "application/octet-stream",
            };
            fields.push(field("content-type", value));
        }
        fields.extend(answer.headers.iter().cloned());
        let mut reply = Reply {
            status: answer.status,
            status_line: None,
            http10: answer.http10,
            interim: answer.interim.clone(),
            before: Vec::new(),
            fields,
            lines: answer.lines.clone(),
            eol: b"\r\n",
            drip_head: None,
            framing: answer.framing,
            source,
            body: Vec::new(),
            trailers: answer.trailers.clone(),
            last_chunk: true,
            after: Vec::new(),
            end: if answer.close || answer.http10 {
                End::Close
            } else {
                End::Next
            },
        };
        let reads = matches!(request.method, Method::GET | Method::HEAD);
        let condition = match answer.status {
            200 if answer.conditional => condition(answer, request, reads),
            _ => Condition::Holds,
        };
        match condition {
            Condition::NotModified => reply.not_modified(),
            Condition::Failed => {
                reply.status = 412;
                reply.replace_body(Bytes::new());
            }
            Condition::Holds => {
                reply.body.push(Step::Source(0..length));
                let applies = answer.ranges == Ranges::On
                    && answer.status == 200
                    && request.method == Method::GET
                    && (answer.ignore_if_range || if_range_holds(answer, request));
                if applies && let Some(value) = request.header("range") {
                    reply.apply_range(value);
                }
            }
        }
        let old = reply.http10 || request.version == Version::HTTP_10;
        if old && matches!(reply.framing, Framing::Chunked(_)) {
            reply.framing = Framing::Close;
        }
        let bodiless = reply.status < 200 || reply.status == 204 || reply.status == 304;
        if bodiless {
            reply.framing = Framing::Bare;
            reply.body.clear();
            reply.trailers.clear();
        }
        match reply.framing {
            Framing::Length if !reply.has("content-length") => {
                let length = reply.body_length();
                reply.set("content-length", length.to_string());
            }
            Framing::Chunked(_) => reply.set("transfer-encoding", "chunked"),
            Framing::Close => reply.end = End::Close,
            Framing::Length | Framing::Bare => {}
        }
        if request.method == Method::HEAD {
            reply.body.clear();
            reply.trailers.clear();
            reply.last_chunk = false;
            if reply.framing == Framing::Close {
                reply.end = End::Next;
            }
        }
        if answer.close && !reply.has("connection") {
            reply.set("connection", "close");
        }
        reply
    }

    fn apply_range(&mut self, value: &str) {
        let length = self.source.length();
        let Some(ranges) = parse_ranges(value, length) else {
            return;
        };
        match ranges.as_slice() {
            [] => {
                self.status = 416;
                self.replace_body(Bytes::new());
                self.set("content-range", format!("bytes */{length}"));
            }
            [range] => {
                self.status = 206;
                self.body = vec![Step::Source(range.clone())];
                self.set("content-range", content_range(range, length));
            }
            ranges => {
                self.status = 206;
                self.multipart(ranges, length);
            }
        }
    }

    /// `multipart/byteranges` of these ranges.
    pub(crate) fn multipart(&mut self, ranges: &[Range<u64>], length: u64) {
        let part_type = self.get("content-type").unwrap_or_default();
        self.body = Vec::with_capacity(ranges.len() * 2 + 1);
        for range in ranges {
            let head = format!(
                "\r\n--{BOUNDARY}\r\nContent-Type: {part_type}\r\nContent-Range: {}\r\n\r\n",
                content_range(range, length)
            );
            self.body.push(Step::Text(head.into()));
            self.body.push(Step::Source(range.clone()));
        }
        self.body
            .push(Step::Text(format!("\r\n--{BOUNDARY}--\r\n").into()));
        self.set(
            "content-type",
            format!("multipart/byteranges; boundary={BOUNDARY}"),
        );
    }

    /// 304 with the fields that RFC 9110 §15.4.5 wants.
    pub(crate) fn not_modified(&mut self) {
        self.status = 304;
        for name in ["content-type", "content-length", "accept-ranges"] {
            self.remove(name);
        }
        self.body.clear();
        self.trailers.clear();
    }

    /// Another body, of fixed bytes.
    pub(crate) fn replace_body(&mut self, body: Bytes) {
        self.remove("content-length");
        self.source = Source::Fixed(body);
        self.body = vec![Step::Source(0..self.source.length())];
        if self.source.length() == 0 {
            self.remove("content-type");
        }
    }

    pub(crate) fn body_length(&self) -> u64 {
        let length = |step: &Step| match step {
            Step::Text(bytes) => bytes.len() as u64,
            Step::Source(range) => range.end - range.start,
            _ => 0,
        };
        self.body.iter().map(length).sum()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields
            .iter()
            .any(|(n, _)| n.eq_ignore_ascii_case(name))
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let field = self
            .fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(&field.1).into_owned())
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.remove(name);
        self.add(name, value);
    }

    pub(crate) fn add(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.fields.push((name.to_owned(), value.into()));
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.fields.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    /// The head as it goes over HTTP/1.
    pub(crate) fn head(&self, out: &mut BytesMut) {
        match &self.status_line {
            Some(line) => out.extend_from_slice(line),
            None => {
                let version: &[u8] = if self.http10 {
                    b"HTTP/1.0 "
                } else {
                    b"HTTP/1.1 "
                };
                out.extend_from_slice(version);
                out.extend_from_slice(
                    format!("{:03} {}", self.status, reason(self.status)).as_bytes(),
                );
            }
        }
        out.extend_from_slice(self.eol);
        for (name, value) in &self.fields {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(self.eol);
        }
        for line in &self.lines {
            out.extend_from_slice(line);
            out.extend_from_slice(self.eol);
        }
        out.extend_from_slice(self.eol);
    }
}

pub(crate) const BOUNDARY: &str = "slow-server-part";

pub(crate) fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("")
}

pub(crate) fn field(name: &str, value: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (name.to_owned(), value.into())
}

pub(crate) fn content_range(range: &Range<u64>, length: u64) -> String {
    format!(
        "bytes {}-{}/{length}",
        range.start,
        range.end.saturating_sub(1)
    )
}

enum Condition {
    Holds,
    NotModified,
    Failed,
}

/// RFC 9110 §13.2.2, in its order.
fn condition(answer: &Answer, request: &Request, reads: bool) -> Condition {
    let modified = answer.last_modified.map(seconds);
    let date = |name| {
        request
            .header(name)
            .and_then(|v| httpdate::parse_http_date(v).ok())
            .map(seconds)
    };
    if request.headers.contains_key("if-match") {
        if !lists(request, "if-match", answer.etag.as_deref(), strong) {
            return Condition::Failed;
        }
    } else if let (Some(limit), Some(modified)) = (date("if-unmodified-since"), modified)
        && modified > limit
    {
        return Condition::Failed;
    }
    if request.headers.contains_key("if-none-match") {
        return match (
            lists(request, "if-none-match", answer.etag.as_deref(), weak),
            reads,
        ) {
            (false, _) => Condition::Holds,
            (true, true) => Condition::NotModified,
            (true, false) => Condition::Failed,
        };
    }
    match (date("if-modified-since"), modified) {
        (Some(since), Some(modified)) if reads && modified <= since => Condition::NotModified,
        _ => Condition::Holds,
    }
}

/// Whether a list of entity tags, on any number of lines, names `etag`.
fn lists(request: &Request, name: &str, etag: Option<&str>, same: fn(&str, &str) -> bool) -> bool {
    let lines = request.header_lines(name);
    if lines.iter().any(|line| line.trim() == "*") {
        return true;
    }
    let Some(etag) = etag else { return false };
    lines
        .iter()
        .flat_map(|line| split_tags(line))
        .any(|tag| same(tag, etag))
}

/// Splits at commas outside quotes.
fn split_tags(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let separator = |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    line.split(separator).map(str::trim).collect()
}

fn weak(a: &str, b: &str) -> bool {
    a.strip_prefix("W/").unwrap_or(a) == b.strip_prefix("W/").unwrap_or(b)
}

fn strong(a: &str, b: &str) -> bool {
    a == b && !a.starts_with("W/")
}

/// RFC 9110 §13.1.5.
fn if_range_holds(answer: &Answer, request: &Request) -> bool {
    let Some(value) = request.header("if-range") else {
        return true;
    };
    match httpdate::parse_http_date(value) {
        Ok(date) => answer.last_modified.map(seconds) == Some(seconds(date)),
        Err(_) => answer
            .etag
            .as_deref()
            .is_some_and(|etag| strong(value, etag)),
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A request with more ranges than this gets the whole.
const MAX_RANGES: usize = 1000;

/// The satisfiable ranges of a `Range` value in the order asked; none at all when it is to be
/// ignored (RFC 9110 §14.2).
fn parse_ranges(value: &str, length: u64) -> Option<Vec<Range<u64>>> {
    let set = value.strip_prefix("bytes=")?;
    let mut ranges = Vec::new();
    for (count, spec) in set.split(',').map(str::trim).enumerate() {
        if count >= MAX_RANGES {
            return None;
        }
        let (first, last) = spec.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        let range = if first.is_empty() {
            length.saturating_sub(number(last)?)..length
        } else {
            let first = number(first)?;
            let end = if last.is_empty() {
                length
            } else {
                number(last)?.saturating_add(1)
            };
            if end <= first && !last.is_empty() {
                return None;
            }
            first..end.min(length)
        };
        if range.start < range.end {
            ranges.push(range);
        }
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        Request {
            method: Method::GET,
            target: "/a".to_owned(),
            version: Version::HTTP_11,
            headers: map,
            raw_head: Bytes::new(),
            body: Bytes::new(),
            body_bytes: 0,
            body_hash: 0,
            trailers: HeaderMap::new(),
            connection: 1,
            number: 1,
        }
    }

    #[test]
    fn ranges_are_resolved() {
        type Ends = &'static [(u64, u64)];
        let table: &[(&str, Option<Ends>)] = &[
            ("bytes=0-0", Some(&[(0, 1)])),
            ("bytes=5-", Some(&[(5, 10)])),
            ("bytes=-3", Some(&[(7, 10)])),
            ("bytes=-30", Some(&[(0, 10)])),
            ("bytes=-0", Some(&[])),
            ("bytes=8-99", Some(&[(8, 10)])),
            ("bytes=10-", Some(&[])),
            ("bytes=0-1, 4-5", Some(&[(0, 2), (4, 6)])),
            ("bytes=5-4", None),
            ("bytes=", None),
            ("items=0-1", None),
            ("bytes=+1-2", None),
        ];
        for (value, expected) in table {
            let ranges = parse_ranges(value, 10);
            let found = ranges.map(|all| all.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>());
            assert_eq!(found.as_deref(), *expected, "{value}");
        }
    }

    #[test]
    fn conditions_and_if_range() {
        let answer = Answer::ok().body("hello").etag("\"a,b\"").ranges(true);
        let table: &[(&[(&str, &str)], u16)] = &[
            (&[], 200),
            (&[("if-none-match", "\"x\", W/\"a,b\"")], 304),
            (&[("if-none-match", "*")], 304),
            (&[("if-none-match", "\"a\"")], 200),
            (&[("if-match", "W/\"a,b\"")], 412),
            (&[("range", "bytes=0-1")], 206),
            (&[("range", "bytes=0-1"), ("if-range", "\"a,b\"")], 206),
            (&[("range", "bytes=0-1"), ("if-range", "\"old\"")], 200),
            (&[("range", "bytes=9-")], 416),
        ];
        for (headers, status) in table {
            assert_eq!(
                Reply::new(&answer, &request(headers)).status,
                *status,
                "{headers:?}"
            );
        }
    }
}
