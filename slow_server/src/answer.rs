//! What an origin is to answer: a script that a test, a URL or a closure writes.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::gate::Gate;
use crate::lie::Lie;

/// An answer before the request's conditions and ranges are applied to it.
///
/// Every method takes and returns the answer; [`Route`](crate::Route) has the same methods. As it
/// comes, an answer has status 200, `Date`, `Content-Length`, an empty body, no `Cache-Control`, no
/// validator and no ranges; with a validator it honours conditions.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) lines: Vec<Vec<u8>>,
    pub(crate) body: Body,
    pub(crate) version: u64,
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<SystemTime>,
    pub(crate) date: bool,
    pub(crate) conditional: bool,
    pub(crate) ranges: Ranges,
    pub(crate) framing: Framing,
    pub(crate) close: bool,
    pub(crate) http10: bool,
    pub(crate) delay: Duration,
    pub(crate) throttle: Option<u64>,
    pub(crate) gate: Option<Gate>,
    pub(crate) gates_at: Vec<(u64, Gate)>,
    pub(crate) lie: Option<Lie>,
    pub(crate) interim: Vec<Interim>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
    pub(crate) raw: Option<Raw>,
    pub(crate) kind: Kind,
    pub(crate) early: bool,
    pub(crate) refuse_expect: bool,
    pub(crate) content_type: bool,
    pub(crate) ignore_if_range: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Fixed(Bytes),
    /// The function of the request's path, this many bytes of it.
    Generated(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    Off,
    On,
    /// `Accept-Ranges: bytes`, and then every range is answered by the whole.
    Lie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    /// In chunks of this many bytes.
    Chunked(usize),
    /// The end of the connection ends the body.
    Close,
    /// What the head says is the head's business: the body goes out as it is. Only lies use it.
    Bare,
}

pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct Interim {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) bytes: Bytes,
    pub(crate) keep_open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// 101, then every byte comes back.
    Upgrade,
    /// The request's body comes back while it arrives.
    Mirror,
    /// A report of the request in JSON.
    Echo,
}

impl Default for Answer {
    fn default() -> Self {
        Answer::status(200)
    }
}

/// Writes the methods of [`Answer`] and the same ones for [`Route`](crate::Route), each with its
/// sentence.
macro_rules! answer_methods {
    ($($(#[$doc:meta])* fn $name:ident($this:ident $(, $arg:ident: $ty:ty)*) $body:block)*) => {
        impl Answer {
            $($(#[$doc])* #[must_use] pub fn $name(mut self $(, $arg: $ty)*) -> Self {
                let $this = &mut self;
                $body
                self
            })*
        }

        impl crate::Route {
            $($(#[$doc])* pub fn $name(self $(, $arg: $ty)*) -> Self {
                self.edit(|answer| answer.$name($($arg),*))
            })*
        }
    };
}

answer_methods! {
    /// These bytes as the body.
    fn body(this, body: impl Into<Bytes>) {
        this.body = Body::Fixed(body.into());
    }
    /// The first `size` bytes of [`body_bytes`](crate::body_bytes) of the request's path as the
    /// body.
    fn generated(this, size: u64) {
        this.body = Body::Generated(size);
    }
    /// Another generated body for the same path:
    /// [`body_bytes_of_version`](crate::body_bytes_of_version).
    fn version(this, version: u64) {
        this.version = version;
    }
    /// The status code, 200 unless given.
    fn with_status(this, status: u16) {
        this.status = status;
    }
    /// One more header line. A line given here stands in place of the one that the server would
    /// write by itself (`Date`, `Content-Length`, `Content-Type`, `Accept-Ranges`).
    fn header(this, name: &str, value: impl AsRef<[u8]>) {
        this.headers.push((name.to_owned(), value.as_ref().to_vec()));
    }
    /// One more line of the head, byte for byte, without its CRLF. Not over HTTP/2.
    fn header_raw(this, line: impl AsRef<[u8]>) {
        this.lines.push(line.as_ref().to_vec());
    }
    /// The entity tag, quotes (and `W/`) included.
    fn etag(this, etag: &str) {
        this.etag = Some(etag.to_owned());
    }
    /// `Last-Modified`, cut to the second.
    fn last_modified(this, at: SystemTime) {
        this.last_modified = Some(at);
    }
    /// The value of `Cache-Control`.
    fn cache_control(this, value: &str) {
        this.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("cache-control"));
        this.headers.push(("cache-control".to_owned(), value.as_bytes().to_vec()));
    }
    /// The value of `Vary`.
    fn vary(this, value: &str) {
        this.headers.push(("vary".to_owned(), value.as_bytes().to_vec()));
    }
    /// Whether ranges are honoured. They are not unless this is called.
    fn ranges(this, on: bool) {
        this.ranges = if on { Ranges::On } else { Ranges::Off };
    }
    /// Chunked coding, chunks of 64 KiB.
    fn chunked(this) {
        this.framing = Framing::Chunked(CHUNK_BYTES);
    }
    /// Chunked coding, chunks of this many bytes.
    fn chunk_size(this, bytes: usize) {
        this.framing = Framing::Chunked(bytes.max(1));
    }
    /// No length: the end of the connection ends the body.
    fn close_delimited(this) {
        this.framing = Framing::Close;
    }
    /// `Connection: close`, and the connection is closed after the answer.
    fn close(this) {
        this.close = true;
    }
    /// An HTTP/1.0 status line; the connection is closed after the answer.
    fn http10(this) {
        this.http10 = true;
    }
    /// Waits this long before the head.
    fn delay(this, delay: Duration) {
        this.delay = delay;
    }
    /// At most this many bytes of body in a second.
    fn throttle(this, bytes_per_second: u64) {
        this.throttle = Some(bytes_per_second.max(1));
    }
    /// Holds the head (and all that would come before it) at this gate.
    fn gate(this, gate: &Gate) {
        this.gate = Some(gate.clone());
    }
    /// Holds the body at this gate before byte `at` of the representation (also in a range that
    /// contains that byte; `at` = its length: before the end). What comes before is sent.
    fn gate_at(this, at: u64, gate: &Gate) {
        this.gates_at.push((at, gate.clone()));
        this.gates_at.sort_by_key(|(at, _)| *at);
    }
    /// Tells this lie.
    fn lie(this, lie: Lie) {
        this.lie = Some(lie);
    }
    /// A 103 before the answer, with these header lines. Each call is one more 103.
    fn early_hints(this, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect();
        this.interim.push(Interim { status: 103, headers });
    }
    /// An interim answer (1xx) without header lines. Each call is one more.
    fn interim(this, status: u16) {
        this.interim.push(Interim { status, headers: Vec::new() });
    }
    /// One more trailer field. Makes the answer chunked.
    fn trailer(this, name: &str, value: &str) {
        this.trailers.push((name.to_owned(), value.as_bytes().to_vec()));
        if this.framing == Framing::Length {
            this.framing = Framing::Chunked(CHUNK_BYTES);
        }
    }
    /// These bytes and nothing else, then the connection is closed. Gate and delay hold. Over
    /// HTTP/2: 500.
    fn raw(this, bytes: impl Into<Bytes>) {
        this.raw = Some(Raw { bytes: bytes.into(), keep_open: false });
    }
    /// These bytes and nothing else, and the next request is read from the same connection.
    fn raw_keep_open(this, bytes: impl Into<Bytes>) {
        this.raw = Some(Raw { bytes: bytes.into(), keep_open: true });
    }
    /// 101 to a request with `Upgrade`, and then every byte comes back; 426 to any other.
    fn upgrade(this) {
        this.kind = Kind::Upgrade;
    }
    /// The answer's body is the request's body, sent while it arrives.
    fn mirror(this) {
        this.kind = Kind::Mirror;
        if this.framing == Framing::Length {
            this.framing = Framing::Chunked(CHUNK_BYTES);
        }
    }
    /// The answer's body reports the request: method, target, headers, body length and hash, in
    /// JSON.
    fn echo(this) {
        this.kind = Kind::Echo;
    }
    /// Answers before it reads the request's body (which it reads afterwards), and says nothing to
    /// `Expect`.
    fn early(this) {
        this.early = true;
    }
    /// 417 to `Expect: 100-continue`, without reading the body; then closes.
    fn refuse_expect(this) {
        this.refuse_expect = true;
    }
    /// No `Date`.
    fn no_date(this) {
        this.date = false;
    }
    /// Ignores `If-None-Match` and its like.
    fn no_conditional(this) {
        this.conditional = false;
    }
}

impl Answer {
    /// 200.
    #[must_use]
    pub fn ok() -> Answer {
        Answer::status(200)
    }

    /// An empty answer with this status.
    #[must_use]
    pub fn status(status: u16) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            lines: Vec::new(),
            body: Body::Fixed(Bytes::new()),
            version: 0,
            etag: None,
            last_modified: None,
            date: true,
            conditional: true,
            ranges: Ranges::Off,
            framing: Framing::Length,
            close: false,
            http10: false,
            delay: Duration::ZERO,
            throttle: None,
            gate: None,
            gates_at: Vec::new(),
            lie: None,
            interim: Vec::new(),
            trailers: Vec::new(),
            raw: None,
            kind: Kind::Plain,
            early: false,
            refuse_expect: false,
            content_type: true,
            ignore_if_range: false,
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers
            .iter()
            .any(|(n, _)| n.eq_ignore_ascii_case(name))
    }
}

impl crate::Route {
    /// The status code, 200 unless given.
    pub fn status(self, status: u16) -> Self {
        self.with_status(status)
    }
}
