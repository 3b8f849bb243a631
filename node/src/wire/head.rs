//! Heads of requests and responses, parsed strictly in one pass.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use httparse::{EMPTY_HEADER, Header};

use super::{FIELDS_CEILING, Framing, Limits};

/// A request's head. Field values and the target are slices of the buffer it was read into.
#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    /// Origin-form (`/path?query`) or `*`, byte for byte as it was sent; of an absolute-form target
    /// the part after the authority, with `/` put before it where it was empty.
    pub target: Bytes,
    /// Host and port as sent: from the target if that was absolute-form (RFC 9112 §3.2.2), else from
    /// `Host`. `None` only for an HTTP/1.0 request that named none.
    pub authority: Option<Bytes>,
    /// The scheme an absolute-form target named.
    pub absolute_scheme: Option<TargetScheme>,
    pub version: Version,
    /// All fields but `host`, `content-length` and `transfer-encoding`, which `authority` and
    /// `framing` stand for.
    pub headers: HeaderMap,
    /// [`Framing::None`], `Length` or `Chunked`; `Length(0)` when the client said so.
    pub framing: Framing,
    /// The client's wish. The connection ends anyway if the body is not read to its end.
    pub keep_alive: bool,
    /// `Expect: 100-continue` by an HTTP/1.1 client: it waits for 100 before it sends the body.
    pub expect_continue: bool,
    /// The client offers to upgrade: `Connection: upgrade` beside `Upgrade`, HTTP/1.1. False if what it
    /// offers is HTTP (`h2c`, `TLS/1.0`): such an offer is ignored, as it may be (RFC 9110 §7.8).
    pub upgrade: bool,
    /// It says that another node asks: `caje-peer` stands in `headers`, which proves nothing yet.
    pub claims_peer: bool,
}

/// A response's head. Its field values share one allocation of the head's size.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    /// All fields but `transfer-encoding`; several equal `content-length`s became one.
    pub headers: HeaderMap,
    pub framing: Framing,
    /// The connection may carry another response after this one's body.
    pub keep_alive: bool,
}

impl ResponseHead {
    /// What `content-length` said, even where no body follows it (HEAD, 304).
    pub fn content_length(&self) -> Option<u64> {
        let value = self.headers.get(header::CONTENT_LENGTH)?;
        parse_digits(value.as_bytes())
    }
}

/// The scheme in an absolute-form target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetScheme {
    Http,
    Https,
}

/// Why a head was refused. Nothing after it can be trusted: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1, or HTTP/1 that could be read in two ways.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// As `Malformed`, in what says how long the message is.
    #[error("malformed framing: {0}")]
    Framing(&'static str),
    /// As `Malformed`, in what says whose site is meant.
    #[error("malformed: {0}")]
    Host(&'static str),
    #[error("malformed target: {0}")]
    Target(&'static str),
    /// A transfer coding that is well formed and not supported.
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// A method that is well formed and not supported.
    #[error("not supported: {0}")]
    Method(&'static str),
    #[error("the request target is too long")]
    TargetTooLong,
    #[error("the head is too large")]
    TooLarge,
    #[error("an expectation other than 100-continue")]
    Expectation,
    #[error("an HTTP version other than 1.0 and 1.1")]
    Version,
}

impl HeadError {
    /// The status for a client that sent this (an origin's fault is 502 whatever it was).
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Framing(_) | Self::Host(_) | Self::Target(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::NotSupported(_) | Self::Method(_) => StatusCode::NOT_IMPLEMENTED,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }
}

/// Whether a connection's first bytes are HTTP/2's (RFC 9113 §3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// HTTP/2 with prior knowledge. Nothing was consumed.
    Http2,
    Http1,
    /// Too few bytes to tell.
    Undecided,
}

/// Looks at a connection's first bytes. HTTP/1 is told after the first byte that differs, so a
/// request is never held back by it.
pub fn preface(first_bytes: &[u8]) -> Preface {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let n = first_bytes.len().min(PREFACE.len());
    if first_bytes[..n] != PREFACE[..n] {
        Preface::Http1
    } else if n == PREFACE.len() {
        Preface::Http2
    } else {
        Preface::Undecided
    }
}

/// Takes a request head off the front of `buf`; `None` when it is not all there yet.
///
/// One empty line before it is skipped (RFC 9112 §2.2). After an error the buffer's content is
/// unspecified.
pub fn parse_request_head(
    buf: &mut BytesMut,
    limits: &Limits,
) -> Result<Option<RequestHead>, HeadError> {
    if buf.first() == Some(&b'\r') {
        match buf.get(1) {
            None => return Ok(None),
            Some(b'\n') => buf.advance(2),
            Some(_) => return Err(HeadError::Malformed("bare CR")),
        }
    }
    let end = match find_end(buf, limits.max_head_bytes) {
        Ok(Some(end)) => end,
        Ok(None) => return unfinished_request(buf, limits).map(|()| None),
        Err(HeadError::TooLarge) => return Err(too_large(buf, limits)),
        Err(error) => return Err(error),
    };
    let head = buf.split_to(end).freeze();
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_CEILING];
    let mut parsed = httparse::Request::new(&mut []);
    let complete = parsed
        .parse_with_uninit_headers(&head, field_room(&mut fields, limits))
        .map_err(|e| request_error(e, &head, limits))?;
    if complete.is_partial() {
        return Err(HeadError::Malformed("an empty line inside the head"));
    }
    let (Some(method), Some(path), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(HeadError::Malformed("request line"));
    };
    if path.len() > limits.max_target_bytes {
        return Err(HeadError::TargetTooLong);
    }
    let version = version(minor);
    let method = parse_method(method)?;

    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut seen = Seen::default();
    let mut host: Option<&[u8]> = None;
    let mut expect = false;
    let mut claims_peer = false;
    let mut upgrade = Upgrade::default();
    for field in parsed.headers.iter() {
        match special(field.name) {
            Special::Host => {
                if host.replace(field.value).is_some() {
                    return Err(HeadError::Host("more than one Host"));
                }
                continue;
            }
            Special::ContentLength => {
                seen.content_length(field.value)?;
                continue;
            }
            Special::TransferEncoding => {
                seen.transfer_encoding(field.value)?;
                continue;
            }
            Special::Connection => seen.connection(field.value),
            Special::Upgrade => upgrade.offer(field.value),
            Special::Expect => {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::Expectation);
                }
                expect = true;
            }
            Special::Lookalike => return Err(HeadError::Framing("a framing field's lookalike")),
            Special::Peer => claims_peer = true,
            Special::No => {}
        }
        append(&mut headers, &head, field)?;
    }

    let framing = seen.framing(version)?.unwrap_or(Framing::None);
    let host = host
        .map(|host| check_authority(host).map(|()| head.slice_ref(host)))
        .transpose()?;
    let (target, authority, absolute_scheme) = split_target(&head, path, &method)?;
    if host.is_none() && version == Version::HTTP_11 {
        return Err(HeadError::Host("no Host"));
    }
    Ok(Some(RequestHead {
        method,
        target,
        authority: authority.or(host),
        absolute_scheme,
        version,
        headers,
        framing,
        keep_alive: seen.keep_alive(version),
        expect_continue: expect && version == Version::HTTP_11,
        upgrade: upgrade.may_be_tunnelled() && seen.upgrade && version == Version::HTTP_11,
        claims_peer,
    }))
}

/// Takes a response head off the front of `buf`; `None` when it is not all there yet.
///
/// `method` is the request's: a response to HEAD has no body whatever its fields say. Every error is a
/// 502 to the client.
pub fn parse_response_head(
    buf: &mut BytesMut,
    method: &Method,
    limits: &Limits,
) -> Result<Option<ResponseHead>, HeadError> {
    // httparse would skip empty lines; before a response they are bytes that belong to no message.
    if matches!(buf.first(), Some(b'\r' | b'\n')) {
        return Err(HeadError::Malformed("an empty line before the status line"));
    }
    let Some(end) = find_end(buf, limits.max_head_bytes)? else {
        return unfinished_response(buf, limits).map(|()| None);
    };
    // A copy: a response's fields may be kept for days, the read buffer they came in should not be.
    let head = Bytes::copy_from_slice(&buf[..end]);
    buf.advance(end);
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_CEILING];
    let mut parsed = httparse::Response::new(&mut []);
    let complete = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, &head, field_room(&mut fields, limits))
        .map_err(generic_error)?;
    if complete.is_partial() {
        return Err(HeadError::Malformed("an empty line inside the head"));
    }
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Malformed("status line"));
    };
    let status = match StatusCode::from_u16(code) {
        Ok(status) if code < 600 => status,
        _ => return Err(HeadError::Malformed("status code")),
    };
    let version = version(minor);

    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut seen = Seen::default();
    for field in parsed.headers.iter() {
        match special(field.name) {
            Special::ContentLength => {
                let first = seen.length.is_none();
                seen.content_length(field.value)?;
                if first {
                    // Only the first member, should the line have listed the same number twice.
                    let value = field.value.split(|b| *b == b',').next().unwrap_or_default();
                    let value = HeaderValue::from_maybe_shared(head.slice_ref(value.trim_ascii()));
                    let value = value.map_err(|_| HeadError::Malformed("field value"))?;
                    headers.insert(header::CONTENT_LENGTH, value);
                }
                continue;
            }
            Special::TransferEncoding => {
                seen.transfer_encoding(field.value)?;
                continue;
            }
            Special::Connection => seen.connection(field.value),
            Special::Lookalike => return Err(HeadError::Framing("a framing field's lookalike")),
            Special::Host | Special::Upgrade | Special::Expect | Special::Peer | Special::No => {}
        }
        append(&mut headers, &head, field)?;
    }

    let announced = seen.framing(version)?;
    let mut keep_alive = seen.keep_alive(version);
    let framing = if status.is_informational() {
        if announced.is_some() {
            return Err(HeadError::Malformed("a 1xx response with a body"));
        }
        Framing::None
    } else if status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6 and RFC 9112 §6.1 forbid both fields here. A server that sends them may send
        // a body too, so nothing after this head is believed.
        if announced.is_some_and(|a| a != Framing::Length(0)) {
            keep_alive = false;
        }
        Framing::None
    } else if status == StatusCode::NOT_MODIFIED || *method == Method::HEAD {
        Framing::None
    } else {
        announced.unwrap_or(Framing::UntilClose)
    };
    if framing == Framing::UntilClose {
        keep_alive = false;
    }
    Ok(Some(ResponseHead {
        status,
        version,
        headers,
        framing,
        keep_alive,
    }))
}

/// Parses a trailer section that ends with its empty line; `section` holds nothing after it.
pub(super) fn parse_trailers(section: &Bytes, limits: &Limits) -> Result<HeaderMap, HeadError> {
    let mut fields = [EMPTY_HEADER; FIELDS_CEILING];
    let room = &mut fields[..limits.max_fields.min(FIELDS_CEILING)];
    let parsed = match httparse::parse_headers(section, room).map_err(generic_error)? {
        httparse::Status::Complete((_, fields)) => fields,
        httparse::Status::Partial => return Err(HeadError::Malformed("trailer section")),
    };
    let mut trailers = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        // RFC 9110 §6.5.1: framing and routing may never come after the fact.
        match special(field.name) {
            Special::No if is_never_trailer(field.name) => {}
            Special::No => append(&mut trailers, section, field)?,
            _ => return Err(HeadError::Malformed("a forbidden trailer field")),
        }
    }
    Ok(trailers)
}

/// Fields that are judged before the content, and must not change it afterwards (RFC 9110 §6.5.1):
/// authentication, conditions, caching, routing, and what describes the content. Left out, unlike the
/// framing fields, which make the message malformed.
fn is_never_trailer(name: &str) -> bool {
    const PREFIXES: [&str; 5] = [
        "content-",
        "if-",
        "proxy-",
        "x-forwarded-",
        "access-control-",
    ];
    const NAMES: [&str; 25] = [
        "age",
        "allow",
        "authorization",
        "cache-control",
        "cdn-cache-control",
        "cdn-loop",
        "connection",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "surrogate-control",
        "te",
        "trailer",
        "upgrade",
        "vary",
        "via",
        "www-authenticate",
    ];
    let starts = |prefix: &&str| {
        let start = name.as_bytes().get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    PREFIXES.iter().any(starts) || NAMES.iter().any(|never| name.eq_ignore_ascii_case(never))
}

/// Where the first empty line ends, if it is there, after a check that every line ends with CRLF.
pub(super) fn find_end(buf: &[u8], max_bytes: usize) -> Result<Option<usize>, HeadError> {
    let within = &buf[..buf.len().min(max_bytes)];
    let mut line_start = 0;
    for lf in memchr::memchr_iter(b'\n', within) {
        if lf == 0 || within[lf - 1] != b'\r' {
            return Err(HeadError::Malformed("bare LF"));
        }
        if lf - 1 == line_start {
            return Ok(Some(lf + 1));
        }
        line_start = lf + 1;
    }
    if buf.len() >= max_bytes {
        Err(HeadError::TooLarge)
    } else {
        Ok(None)
    }
}

/// Refuses at once what cannot become a request head any more, so that garbage is not held until
/// a timeout.
fn unfinished_request(buf: &[u8], limits: &Limits) -> Result<(), HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_CEILING];
    let mut parsed = httparse::Request::new(&mut []);
    parsed
        .parse_with_uninit_headers(buf, field_room(&mut fields, limits))
        .map_err(|e| request_error(e, buf, limits))?;
    if has_long_target(buf, limits) {
        Err(HeadError::TargetTooLong)
    } else {
        Ok(())
    }
}

fn too_large(buf: &[u8], limits: &Limits) -> HeadError {
    if has_long_target(buf, limits) {
        HeadError::TargetTooLong
    } else {
        HeadError::TooLarge
    }
}

/// The target grows as long as the first line does: method and version take little of it.
fn has_long_target(buf: &[u8], limits: &Limits) -> bool {
    memchr::memchr(b'\r', buf).unwrap_or(buf.len()) > limits.max_target_bytes + 64
}

fn unfinished_response(buf: &[u8], limits: &Limits) -> Result<(), HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_CEILING];
    let mut parsed = httparse::Response::new(&mut []);
    httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, buf, field_room(&mut fields, limits))
        .map_err(generic_error)?;
    Ok(())
}

fn field_room<'a, 'b>(
    fields: &'a mut [MaybeUninit<Header<'b>>; FIELDS_CEILING],
    limits: &Limits,
) -> &'a mut [MaybeUninit<Header<'b>>] {
    &mut fields[..limits.max_fields.min(FIELDS_CEILING)]
}

fn generic_error(error: httparse::Error) -> HeadError {
    use httparse::Error;
    HeadError::Malformed(match error {
        Error::TooManyHeaders => return HeadError::TooLarge,
        Error::Version => return HeadError::Version,
        Error::HeaderName => "field name",
        Error::HeaderValue => "field value",
        Error::NewLine => "line end",
        Error::Status => "status line",
        Error::Token => "request line",
    })
}

fn request_error(error: httparse::Error, head: &[u8], limits: &Limits) -> HeadError {
    if error != httparse::Error::Version {
        return generic_error(error);
    }
    // `HTTP/2.0` is a version we lack; `HTTP/x`, `http/1.1` or a space in the target is no version.
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let (_method, target, version) = (words.next(), words.next(), words.next());
    let is_version = matches!(
        version,
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit()
    );
    if target.is_some_and(|t| t.len() > limits.max_target_bytes) {
        HeadError::TargetTooLong
    } else if is_version && words.next().is_none() {
        HeadError::Version
    } else {
        HeadError::Malformed("request line")
    }
}

fn version(minor: u8) -> Version {
    if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    }
}

fn parse_method(method: &str) -> Result<Method, HeadError> {
    const LONGEST: usize = 32;
    if method == "CONNECT" {
        return Err(HeadError::Method("CONNECT"));
    }
    if method.len() > LONGEST {
        return Err(HeadError::Method("method"));
    }
    Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed("method"))
}

fn append(headers: &mut HeaderMap, head: &Bytes, field: &Header<'_>) -> Result<(), HeadError> {
    let name = HeaderName::from_bytes(field.name.as_bytes())
        .map_err(|_| HeadError::Malformed("field name"))?;
    let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
        .map_err(|_| HeadError::Malformed("field value"))?;
    headers.append(name, value);
    Ok(())
}

/// The fields that framing, routing and the connection hang on.
enum Special {
    No,
    Host,
    Expect,
    Upgrade,
    Connection,
    ContentLength,
    TransferEncoding,
    /// What nodes ask one another by.
    Peer,
    /// `Content_Length` and the like: CGI-style servers read `_` as `-`.
    Lookalike,
}

#[inline]
fn special(name: &str) -> Special {
    match name.len() {
        4 if name.eq_ignore_ascii_case("host") => Special::Host,
        6 if name.eq_ignore_ascii_case("expect") => Special::Expect,
        7 if name.eq_ignore_ascii_case("upgrade") => Special::Upgrade,
        9 if name.eq_ignore_ascii_case("caje-peer") => Special::Peer,
        10 if name.eq_ignore_ascii_case("connection") => Special::Connection,
        14 if name.eq_ignore_ascii_case("content-length") => Special::ContentLength,
        14 if name.eq_ignore_ascii_case("content_length") => Special::Lookalike,
        17 if name.eq_ignore_ascii_case("transfer-encoding") => Special::TransferEncoding,
        17 if name.eq_ignore_ascii_case("transfer_encoding") => Special::Lookalike,
        _ => Special::No,
    }
}

/// What the framing and connection fields of one head said so far.
#[derive(Default)]
struct Seen {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

/// What all `Upgrade` fields of a request offer.
#[derive(Default)]
struct Upgrade {
    offered: bool,
    carries_requests: bool,
}

impl Upgrade {
    fn offer(&mut self, value: &[u8]) {
        self.offered = true;
        self.carries_requests |= value.split(|b| *b == b',').any(|protocol| {
            let name = protocol.split(|b| *b == b'/').next().unwrap_or_default();
            [&b"h2c"[..], b"h2", b"http", b"tls"]
                .iter()
                .any(|other| trim(name).eq_ignore_ascii_case(other))
        });
    }

    /// Not HTTP in another dress: the requests within would reach the origin without being looked at.
    /// `h2c` is obsolete besides (RFC 9113 §3.1), and many a client offers it with an ordinary GET.
    fn may_be_tunnelled(&self) -> bool {
        self.offered && !self.carries_requests
    }
}

impl Seen {
    /// RFC 9110 §8.6: a list of one and the same number is that number.
    fn content_length(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for member in value.split(|b| *b == b',') {
            let number = parse_digits(trim(member))
                .ok_or(HeadError::Framing("Content-Length is no number"))?;
            if self.length.is_some_and(|first| first != number) {
                return Err(HeadError::Framing("two different Content-Length"));
            }
            self.length = Some(number);
        }
        Ok(())
    }

    /// Exactly one `chunked` in all lines together.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), HeadError> {
        let mut unknown = false;
        for member in value.split(|b| *b == b',') {
            let coding = trim(member);
            if coding.eq_ignore_ascii_case(b"chunked") {
                if self.chunked || unknown {
                    return Err(if self.chunked {
                        HeadError::Framing("chunked twice")
                    } else {
                        HeadError::NotSupported("transfer coding")
                    });
                }
                self.chunked = true;
            } else if coding.is_empty() || !coding.iter().all(|b| is_token(*b)) {
                return Err(HeadError::Framing("Transfer-Encoding"));
            } else if self.chunked {
                return Err(HeadError::Framing("chunked is not the last coding"));
            } else if coding.eq_ignore_ascii_case(b"identity") {
                return Err(HeadError::Framing("the identity transfer coding"));
            } else {
                unknown = true;
            }
        }
        if unknown {
            Err(HeadError::NotSupported("transfer coding"))
        } else {
            Ok(())
        }
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|b| *b == b',') {
            let option = trim(option);
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }

    fn framing(&self, version: Version) -> Result<Option<Framing>, HeadError> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(HeadError::Framing(
                "Content-Length beside Transfer-Encoding",
            )),
            // RFC 9112 §6.1: faulty framing.
            (true, None) if version == Version::HTTP_10 => {
                Err(HeadError::Framing("Transfer-Encoding in HTTP/1.0"))
            }
            (true, None) => Ok(Some(Framing::Chunked)),
            (false, length) => Ok(length.map(Framing::Length)),
        }
    }

    /// RFC 9112 §9.3.
    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}

/// Digits and nothing else; `None` also beyond `u64`.
pub(super) fn parse_digits(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Optional whitespace is SP and HTAB only (RFC 9110 §5.6.3).
fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

pub(super) fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

type SplitTarget = (Bytes, Option<Bytes>, Option<TargetScheme>);

/// Whether every byte may stand in a request's target, whatever its form and the version: a raw byte
/// above 0x7e or a fragment is in none (RFC 9112 §3.2, RFC 9113 §8.3.1).
pub fn is_target(bytes: &[u8]) -> bool {
    // Without an early end, so that it is done many bytes at a time.
    let is_foreign = |bad, b: &u8| bad | (*b == b'#') | !b.is_ascii_graphic();
    !bytes.iter().fold(false, is_foreign)
}

/// RFC 9112 §3.2: origin-form, absolute-form, or `*` for OPTIONS.
fn split_target(head: &Bytes, path: &str, method: &Method) -> Result<SplitTarget, HeadError> {
    let bytes = path.as_bytes();
    if !is_target(bytes) {
        return Err(HeadError::Target("a byte that no target holds"));
    }
    if bytes[0] == b'/' {
        return Ok((head.slice_ref(bytes), None, None));
    }
    if bytes == b"*" {
        return if *method == Method::OPTIONS {
            Ok((head.slice_ref(bytes), None, None))
        } else {
            Err(HeadError::Target("* is a target of OPTIONS only"))
        };
    }
    let (scheme, rest) = match bytes {
        [s @ .., b'/', b'/'] if s.eq_ignore_ascii_case(b"http:") => {
            (TargetScheme::Http, &bytes[7..])
        }
        _ if bytes.len() > 7 && bytes[..7].eq_ignore_ascii_case(b"http://") => {
            (TargetScheme::Http, &bytes[7..])
        }
        _ if bytes.len() > 8 && bytes[..8].eq_ignore_ascii_case(b"https://") => {
            (TargetScheme::Https, &bytes[8..])
        }
        _ => {
            return Err(HeadError::Target("neither origin-form nor absolute-form"));
        }
    };
    let split = rest
        .iter()
        .position(|b| matches!(b, b'/' | b'?'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at(split);
    check_authority(authority)?;
    let target = match path.first() {
        Some(b'/') => head.slice_ref(path),
        // RFC 9112 §3.2.4.
        None if *method == Method::OPTIONS => Bytes::from_static(b"*"),
        None => Bytes::from_static(b"/"),
        Some(_) => [b"/", path].concat().into(),
    };
    Ok((target, Some(head.slice_ref(authority)), Some(scheme)))
}

/// Bytes of a `reg-name` (RFC 3986 §3.2.2) that stand for themselves, but the comma.
const REG_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b';'
                    | b'='
            );
        byte += 1;
    }
    table
};

/// `uri-host [":" port]` of RFC 9110 §4.2.1: no user, not empty. A comma is refused though a host's
/// grammar has it: it is what two `Host` lines become when somebody joins them.
fn check_authority(authority: &[u8]) -> Result<(), HeadError> {
    const BAD: HeadError = HeadError::Host("host");
    let (host, port) = if authority.first() == Some(&b'[') {
        let close = memchr::memchr(b']', authority).ok_or(BAD)?;
        let (literal, rest) = authority.split_at(close + 1);
        let inner = std::str::from_utf8(&literal[1..close]).map_err(|_| BAD)?;
        inner.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
        (literal, rest)
    } else {
        let colon = memchr::memchr(b':', authority).unwrap_or(authority.len());
        authority.split_at(colon)
    };
    if host.is_empty() {
        return Err(BAD);
    }
    if host[0] != b'[' {
        let mut rest = host;
        while let [b, tail @ ..] = rest {
            rest = match b {
                b'%' => match tail {
                    [a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => tail,
                    _ => return Err(BAD),
                },
                _ if REG_NAME[usize::from(*b)] => tail,
                _ => return Err(BAD),
            };
        }
    }
    match port {
        [] | [b':'] => Ok(()),
        [b':', digits @ ..] => match parse_digits(digits) {
            Some(port) if digits.len() <= 5 && port <= u64::from(u16::MAX) => Ok(()),
            _ => Err(BAD),
        },
        _ => Err(BAD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
        parse_request_head(&mut BytesMut::from(bytes), &Limits::default())
    }

    fn response(bytes: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
        parse_response_head(&mut BytesMut::from(bytes), &Method::GET, &Limits::default())
    }

    fn status_of(bytes: &[u8]) -> u16 {
        match request(bytes) {
            Ok(Some(_)) => 200,
            Ok(None) => 100,
            Err(error) => error.status().as_u16(),
        }
    }

    /// Each row is what follows `Host: h\r\n`; 200 stands for "accepted".
    #[test]
    fn framing_and_field_forms() {
        const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
        let table: &[(&str, u16)] = &[
            ("", 200),
            ("Content-Length: 0\r\n", 200),
            ("Content-Length: 5\r\n", 200),
            ("Content-Length: 05\r\n", 200),
            ("content-length:5\r\n", 200),
            ("Content-Length: \t 5 \t\r\n", 200),
            ("Content-Length: 5, 5\r\n", 200),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 200),
            ("Content-Length: 18446744073709551615\r\n", 200),
            (CHUNKED, 200),
            ("transfer-encoding: CHUNKED\r\n", 200),
            ("Transfer-Encoding:\tchunked\t\r\n", 200),
            // Content-Length that is no number.
            ("Content-Length:\r\n", 400),
            ("Content-Length: \r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: -5\r\n", 400),
            ("Content-Length: -0\r\n", 400),
            ("Content-Length: 5.0\r\n", 400),
            ("Content-Length: 5e1\r\n", 400),
            ("Content-Length: 0x5\r\n", 400),
            ("Content-Length: 0o5\r\n", 400),
            ("Content-Length: 5_0\r\n", 400),
            ("Content-Length: 5 5\r\n", 400),
            ("Content-Length: 5;\r\n", 400),
            ("Content-Length: 5;a=b\r\n", 400),
            ("Content-Length: \"5\"\r\n", 400),
            ("Content-Length: five\r\n", 400),
            ("Content-Length: NaN\r\n", 400),
            ("Content-Length: 18446744073709551616\r\n", 400),
            ("Content-Length: 99999999999999999999999999\r\n", 400),
            ("Content-Length: ٥\r\n", 400),
            ("Content-Length: 5\u{a0}\r\n", 400),
            // Lists.
            ("Content-Length: 5, 6\r\n", 400),
            ("Content-Length: 5,\r\n", 400),
            ("Content-Length: ,5\r\n", 400),
            ("Content-Length: 5,,5\r\n", 400),
            ("Content-Length: 5, +5\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
            ("Content-Length: 0\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5\r\ncontent-length: 6\r\n", 400),
            ("Content-Length: 5\r\nX: y\r\nContent-Length:\r\n", 400),
            // Both.
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
            ("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", 400),
            ("Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n", 501),
            // Transfer codings.
            ("Transfer-Encoding:\r\n", 400),
            ("Transfer-Encoding: ,chunked\r\n", 400),
            ("Transfer-Encoding: chunked,\r\n", 400),
            ("Transfer-Encoding: chunked, chunked\r\n", 400),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                400,
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
                400,
            ),
            (
                "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
                501,
            ),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n", 400),
            ("Transfer-Encoding: identity\r\n", 400),
            ("Transfer-Encoding: identity, chunked\r\n", 400),
            ("Transfer-Encoding: chunked, identity\r\n", 400),
            (
                "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
                400,
            ),
            ("Transfer-Encoding: gzip\r\n", 501),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding: chunked, gzip\r\n", 400),
            ("Transfer-Encoding: xchunked\r\n", 501),
            ("Transfer-Encoding: chunkedx\r\n", 501),
            ("Transfer-Encoding: x-chunked\r\n", 501),
            ("Transfer-Encoding: cow\r\n", 501),
            ("Transfer-Encoding: chunked;q=1\r\n", 400),
            ("Transfer-Encoding: chunked; ext\r\n", 400),
            ("Transfer-Encoding: \"chunked\"\r\n", 400),
            ("Transfer-Encoding: 'chunked'\r\n", 501),
            ("Transfer-Encoding: chunked chunked\r\n", 400),
            ("Transfer-Encoding: \u{b}chunked\r\n", 400),
            ("Transfer-Encoding: \u{c}chunked\r\n", 400),
            ("Transfer-Encoding: chunked\u{b}\r\n", 400),
            ("Transfer-Encoding: \u{a0}chunked\r\n", 400),
            ("Transfer-Encoding: chun\u{212a}ed\r\n", 400),
            ("Transfer-Encoding: chunked\0\r\n", 400),
            // Names.
            ("Transfer-Encoding : chunked\r\n", 400),
            ("Transfer-Encoding\t: chunked\r\n", 400),
            ("Transfer-Encoding\u{b}: chunked\r\n", 400),
            (" Transfer-Encoding: chunked\r\n", 400),
            ("\tTransfer-Encoding: chunked\r\n", 400),
            ("Content-Length : 5\r\n", 400),
            ("Content-Length\0: 5\r\n", 400),
            ("Transfer_Encoding: chunked\r\n", 400),
            ("Content_Length: 5\r\n", 400),
            ("CONTENT_LENGTH: 5\r\n", 400),
            ("Transfer-Encoding\r\n", 400),
            (": v\r\n", 400),
            ("A B: v\r\n", 400),
            ("A(B): v\r\n", 400),
            ("A\"B: v\r\n", 400),
            ("A@B: v\r\n", 400),
            ("A\u{e9}: v\r\n", 400),
            ("A\x7f: v\r\n", 400),
            ("A\x01: v\r\n", 400),
            ("garbage\r\n", 400),
            ("A.B_c~d: v\r\n", 200),
            // Values.
            ("A:\r\n", 200),
            ("A: \u{e9}\r\n", 200),
            ("A: b\tc\r\n", 200),
            ("A: b\0c\r\n", 400),
            ("A: b\x01c\r\n", 400),
            ("A: b\x1bc\r\n", 400),
            ("A: b\x7fc\r\n", 400),
            // Line ends.
            ("A: b\n", 400),
            ("A: b\nB: c\r\n", 400),
            ("A: b\rB: c\r\n", 400),
            ("A: b\r\r\n", 400),
            ("A: b\r\n\n", 400),
            ("A\r: b\r\n", 400),
            ("A: \rb\r\n", 400),
            // Folds.
            ("A: b\r\n c\r\n", 400),
            ("A: b\r\n\tc\r\n", 400),
            ("A:\r\n b\r\n", 400),
            ("Transfer-Encoding:\r\n chunked\r\n", 400),
            ("Content-Length: 5\r\n 6\r\n", 400),
            // Host again.
            ("Host: h\r\n", 400),
            ("host: other\r\n", 400),
            ("HOST:\r\n", 400),
            // Expectations.
            ("Expect: 100-continue\r\n", 200),
            ("Expect: 100-Continue\r\n", 200),
            ("Expect: 100-continue\r\nExpect: 100-continue\r\n", 200),
            ("Expect: y 100-continue\r\n", 417),
            ("Expect: 100-continue, x\r\n", 417),
            ("Expect: 200-ok\r\n", 417),
            ("Expect:\r\n", 417),
            // The connection's fields.
            ("Connection: keep-alive, close\r\n", 200),
            (
                "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
                200,
            ),
            ("Connection: Content-Length\r\nContent-Length: 5\r\n", 200),
        ];
        for (lines, expected) in table {
            let head = format!("POST /p HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
            assert_eq!(status_of(head.as_bytes()), *expected, "{lines:?}");
            // The same forms before Host, when they leave a head at all.
            if !lines.starts_with([' ', '\t']) {
                let head = format!("POST /p HTTP/1.1\r\n{lines}Host: h\r\n\r\n");
                assert_eq!(status_of(head.as_bytes()), *expected, "{lines:?} first");
            }
        }
    }

    #[test]
    fn request_lines() {
        let table: &[(&[u8], u16)] = &[
            (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
            (b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
            (b"get / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
            (b"M-SEARCH / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
            (b"PURGE / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
            (b"GET / HTTP/1.0\r\n\r\n", 200),
            (
                b"GET /%00/..//a;b?c?d%0d%0a HTTP/1.1\r\nHost: h\r\n\r\n",
                200,
            ),
            (b"GET /a|b\"<>{}^`\\[] HTTP/1.1\r\nHost: h\r\n\r\n", 200),
            (b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"\rGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b" GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: h\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: h\r\n\n", 400),
            (b"GET / HTTP/1.1\n\n", 400),
            (b"GET / HTTP/1.1\rHost: h\r\n\r\n", 400),
            (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /  HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
            (b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /\tHTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /\x0bb HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /a\x7f HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET /\r\n\r\n", 400),
            (b"GET\r\n\r\n", 400),
            (b"GET HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"G\x80T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"\"GET\" / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / http/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1.\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/11.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1.10\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/+1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTPS/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / ICY/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505),
            (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505),
            (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 501),
            (b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
            (
                b"AVERYVERYVERYVERYVERYLONGMETHODNAME / HTTP/1.1\r\nHost: h\r\n\r\n",
                501,
            ),
            (b"\x16\x03\x01\x02\x00\x01", 400),
            (b"EHLO mail.example\r\n", 400),
            // Targets.
            (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 200),
            (b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"OPTIONS *a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET ?a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET http:/// HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET http:// HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET https:// HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET http:/h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET http://u:p@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET http://h\\@x/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET file:///etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET http://h/ HTTP/1.1\r\n\r\n", 400),
            (b"GET http://h/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET http://h/ HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            (b"GET http://h/ HTTP/1.1\r\nHost: other\r\n\r\n", 200),
            (b"GET http://h/ HTTP/1.0\r\n\r\n", 200),
            // HTTP/1.0 and its framing.
            (
                b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            (
                b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            (b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n", 200),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
        ];
        for (bytes, expected) in table {
            assert_eq!(status_of(bytes), *expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn hosts() {
        let table = [
            ("h", true),
            ("H.example.", true),
            ("a_b.example:8080", true),
            ("h:", true),
            ("h:0", true),
            ("h:65535", true),
            ("192.0.2.1:80", true),
            ("[::1]", true),
            ("[2001:db8::1]:443", true),
            ("h%41", true),
            ("xn--bcher-kva.example", true),
            ("", false),
            (":80", false),
            ("h:65536", false),
            ("h:000080", false),
            ("h:+80", false),
            ("h:8a", false),
            ("h:80:80", false),
            ("h:80 ", true),
            ("h: 80", false),
            ("h i", false),
            ("h,h", false),
            ("h/p", false),
            ("h?q", false),
            ("h#f", false),
            ("h\\x", false),
            ("u@h", false),
            ("http://h", false),
            ("h%4", false),
            ("h%zz", false),
            ("h\"", false),
            ("h<", false),
            ("h\u{e9}", false),
            ("[::1", false),
            ("::1", false),
            ("[::1]x", false),
            ("[::1]:", true),
            ("[::g]", false),
            ("[]", false),
            ("[fe80::1%25eth0]", false),
            ("[v1.x]", false),
            ("[127.0.0.1]", false),
            ("h]", false),
        ];
        for (host, is_good) in table {
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let expected = if is_good { 200 } else { 400 };
            assert_eq!(status_of(head.as_bytes()), expected, "{host:?}");
            let in_target = format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\n\r\n");
            // A delimiter ends the authority there, and a space the target.
            if !host.contains(['/', '?', ' ']) && !host.is_empty() {
                assert_eq!(
                    status_of(in_target.as_bytes()),
                    expected,
                    "{host:?} in a target"
                );
            }
        }
    }

    #[test]
    fn an_absolute_target_names_the_authority() {
        let table = [
            (
                "GET",
                "http://A.example:80/x?y",
                "A.example:80",
                "/x?y",
                TargetScheme::Http,
            ),
            ("GET", "HTTP://a", "a", "/", TargetScheme::Http),
            ("GET", "https://a?q=/", "a", "/?q=/", TargetScheme::Https),
            (
                "GET",
                "https://[::1]:8/",
                "[::1]:8",
                "/",
                TargetScheme::Https,
            ),
            (
                "GET",
                "http://a//b/../c",
                "a",
                "//b/../c",
                TargetScheme::Http,
            ),
            ("OPTIONS", "http://a", "a", "*", TargetScheme::Http),
            ("OPTIONS", "http://a/", "a", "/", TargetScheme::Http),
        ];
        for (method, target, authority, path, scheme) in table {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: other\r\n\r\n");
            let head = request(head.as_bytes()).unwrap().unwrap();
            assert_eq!(
                head.authority.as_deref(),
                Some(authority.as_bytes()),
                "{target}"
            );
            assert_eq!(head.target, path, "{target}");
            assert_eq!(head.absolute_scheme, Some(scheme));
            assert!(!head.headers.contains_key("host"));
        }
    }

    #[test]
    fn what_a_request_head_says() {
        let mut buf = BytesMut::from(
            &b"POST /a//b?c HTTP/1.1\r\nHost: h:8\r\nX-A: 1\r\nx-a:  2 \r\nContent-Length: 3\r\n\
               Connection: Upgrade, x\r\nUpgrade: websocket\r\nExpect: 100-continue\r\n\r\nabcGET"
                [..],
        );
        let head = parse_request_head(&mut buf, &Limits::default())
            .unwrap()
            .unwrap();
        assert_eq!(&buf[..], b"abcGET", "the body is left where it is");
        assert_eq!(
            (head.method, head.version),
            (Method::POST, Version::HTTP_11)
        );
        assert_eq!(head.target, "/a//b?c");
        assert_eq!(head.authority.as_deref(), Some(&b"h:8"[..]));
        assert_eq!(head.framing, Framing::Length(3));
        assert!(head.keep_alive && head.expect_continue && head.upgrade);
        let values: Vec<_> = head.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert!(!head.headers.contains_key("content-length"));
    }

    #[test]
    fn persistence_and_upgrade() {
        // (version, lines, keep_alive, upgrade, expect_continue)
        let table = [
            ("1.1", "", true, false, false),
            ("1.1", "Connection: close\r\n", false, false, false),
            ("1.1", "Connection: x, CLOSE\r\n", false, false, false),
            (
                "1.1",
                "Connection: keep-alive\r\nConnection: close\r\n",
                false,
                false,
                false,
            ),
            ("1.1", "Connection: closed\r\n", true, false, false),
            ("1.0", "", false, false, false),
            ("1.0", "Connection: Keep-Alive\r\n", true, false, false),
            (
                "1.0",
                "Connection: keep-alive, close\r\n",
                false,
                false,
                false,
            ),
            ("1.0", "Expect: 100-continue\r\n", false, false, false),
            (
                "1.0",
                "Connection: upgrade\r\nUpgrade: x\r\n",
                false,
                false,
                false,
            ),
            ("1.1", "Connection: upgrade\r\n", true, false, false),
            ("1.1", "Upgrade: x\r\n", true, false, false),
            (
                "1.1",
                "Upgrade: x\r\nConnection: upgrade\r\n",
                true,
                true,
                false,
            ),
            (
                "1.1",
                "Connection: upgrade\r\nUpgrade: H2C\r\n",
                true,
                false,
                false,
            ),
            (
                "1.1",
                "Connection: upgrade\r\nUpgrade: x\r\nUpgrade: y, TLS/1.2\r\n",
                true,
                false,
                false,
            ),
            ("1.1", "Expect: 100-continue\r\n", true, false, true),
        ];
        for (version, lines, keep_alive, upgrade, expect) in table {
            let head = format!("GET / HTTP/{version}\r\nHost: h\r\n{lines}\r\n");
            let head = request(head.as_bytes()).unwrap().unwrap();
            let said = (head.keep_alive, head.upgrade, head.expect_continue);
            assert_eq!(said, (keep_alive, upgrade, expect), "{version} {lines:?}");
        }
    }

    /// Every prefix of a good head is "not all there yet".
    #[test]
    fn a_head_may_arrive_byte_by_byte() {
        let whole = b"\r\nPOST /p?q HTTP/1.1\r\nHost: h\r\nA: b\r\nContent-Length: 1\r\n\r\n";
        let mut buf = BytesMut::new();
        for (at, byte) in whole.iter().enumerate() {
            buf.extend_from_slice(&[*byte]);
            let head = parse_request_head(&mut buf, &Limits::default()).unwrap();
            assert_eq!(head.is_some(), at + 1 == whole.len(), "after {at}");
        }
        let whole = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 1\r\n\r\n";
        let mut buf = BytesMut::new();
        for (at, byte) in whole.iter().enumerate() {
            buf.extend_from_slice(&[*byte]);
            let head = parse_response_head(&mut buf, &Method::GET, &Limits::default()).unwrap();
            assert_eq!(head.is_some(), at + 1 == whole.len(), "after {at}");
        }
    }

    #[test]
    fn pipelined_heads_come_one_by_one() {
        let mut buf = BytesMut::from(
            &b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\nG"[..],
        );
        for path in ["/1", "/2"] {
            let head = parse_request_head(&mut buf, &Limits::default())
                .unwrap()
                .unwrap();
            assert_eq!(head.target, path);
        }
        assert!(
            parse_request_head(&mut buf, &Limits::default())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn sizes() {
        let limits = Limits {
            max_head_bytes: 200,
            max_fields: 3,
            max_target_bytes: 20,
            ..Limits::default()
        };
        let target = |n| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(n));
        let fields = |n| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(n));
        let field = |n| format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "b".repeat(n));
        let table = [
            (target(19), 200),
            (target(20), 414),
            (target(150), 414),
            (format!("GET /{}", "a".repeat(120)), 414),
            (format!("GET /{}", "a".repeat(250)), 414),
            (fields(2), 200),
            (fields(3), 431),
            (field(168), 200),
            (field(169), 431),
            (
                format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}", "b".repeat(300)),
                431,
            ),
        ];
        for (head, expected) in table {
            let status = match parse_request_head(&mut BytesMut::from(head.as_bytes()), &limits) {
                Ok(Some(_)) => 200,
                Ok(None) => 100,
                Err(error) => error.status().as_u16(),
            };
            assert_eq!(status, expected, "{head:?}");
        }
    }

    #[test]
    fn prefaces() {
        let table: &[(&[u8], Preface)] = &[
            (b"", Preface::Undecided),
            (b"P", Preface::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Preface::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Preface::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Preface::Http2),
            (b"PO", Preface::Http1),
            (b"G", Preface::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSN", Preface::Http1),
        ];
        for (bytes, expected) in table {
            assert_eq!(preface(bytes), *expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn response_framing() {
        use Framing::{Chunked, Length, None, UntilClose};
        // (method, head after the version, framing, keep-alive)
        let table = [
            ("GET", "200 OK\r\nContent-Length: 5\r\n", Length(5), true),
            ("GET", "200\r\nContent-Length: 5\r\n", Length(5), true),
            ("GET", "200 \r\nContent-Length: 5\r\n", Length(5), true),
            ("GET", "200 OK\r\nContent-Length: 5, 5\r\n", Length(5), true),
            (
                "GET",
                "200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
                Length(5),
                true,
            ),
            (
                "GET",
                "200 OK\r\nTransfer-Encoding: chunked\r\n",
                Chunked,
                true,
            ),
            (
                "GET",
                "200 OK\r\nConnection: close\r\nContent-Length: 5\r\n",
                Length(5),
                false,
            ),
            ("GET", "200 OK\r\n", UntilClose, false),
            (
                "GET",
                "200 OK\r\nConnection: keep-alive\r\n",
                UntilClose,
                false,
            ),
            ("HEAD", "200 OK\r\nContent-Length: 5\r\n", None, true),
            (
                "HEAD",
                "200 OK\r\nTransfer-Encoding: chunked\r\n",
                None,
                true,
            ),
            ("HEAD", "200 OK\r\n", None, true),
            ("GET", "204 No Content\r\n", None, true),
            ("GET", "204 No Content\r\nContent-Length: 0\r\n", None, true),
            (
                "GET",
                "204 No Content\r\nContent-Length: 5\r\n",
                None,
                false,
            ),
            (
                "GET",
                "204 No Content\r\nTransfer-Encoding: chunked\r\n",
                None,
                false,
            ),
            (
                "GET",
                "304 Not Modified\r\nContent-Length: 5\r\n",
                None,
                true,
            ),
            ("GET", "103 Early Hints\r\nLink: </a>\r\n", None, true),
            (
                "GET",
                "101 Switching Protocols\r\nUpgrade: x\r\n",
                None,
                true,
            ),
            ("GET", "599 x\r\nContent-Length: 0\r\n", Length(0), true),
        ];
        for (method, rest, framing, keep_alive) in table {
            let bytes = format!("HTTP/1.1 {rest}\r\n");
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let mut buf = BytesMut::from(bytes.as_bytes());
            let head = parse_response_head(&mut buf, &method, &Limits::default());
            let head = head.unwrap().unwrap();
            assert_eq!(
                (head.framing, head.keep_alive),
                (framing, keep_alive),
                "{rest:?}"
            );
            assert!(!head.headers.contains_key("transfer-encoding"));
        }
        let head = response(b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(head.headers["content-length"], "5");
        assert_eq!(head.content_length(), Some(5));
        let head = response(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n")
            .unwrap()
            .unwrap();
        assert!(!head.keep_alive);
    }

    #[test]
    fn lying_responses() {
        let table: &[&[u8]] = &[
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer_Encoding: chunked\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 103 x\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\nA: b\n\n",
            b"HTTP/1.1 200 OK\r\nA: b\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ngarbage\r\n\r\n",
            b"HTTP/1.1 200 O\rK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/1.1 000 OK\r\n\r\n",
            b"HTTP/1.1 600 OK\r\n\r\n",
            b"HTTP/1.1 999 OK\r\n\r\n",
            b"HTTP/1.1 2x0 OK\r\n\r\n",
            b"HTTP/1.1200 OK\r\n\r\n",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"HTTP/1.2 200 OK\r\n\r\n",
            b"http/1.1 200 OK\r\n\r\n",
            b"ICY 200 OK\r\n\r\n",
            b"\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"\nHTTP/1.1 200 OK\r\n\r\n",
            b" HTTP/1.1 200 OK\r\n\r\n",
            b"<html>hello</html>",
            b"\0\0\x12\x04\0\0\0\0\0",
        ];
        for bytes in table {
            assert!(response(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        let bomb = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(200));
        assert_eq!(response(bomb.as_bytes()).unwrap_err(), HeadError::TooLarge);
        let bomb = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(40_000));
        assert_eq!(response(bomb.as_bytes()).unwrap_err(), HeadError::TooLarge);
    }
}
