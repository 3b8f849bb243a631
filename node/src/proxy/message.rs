//! A request and its answer, the same for both versions of HTTP.

use std::cell::RefCell;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, StatusCode, Version};
use tokio::sync::Notify;

use crate::cache::residency::Stored;
use crate::cache::{BodyError, How, OriginRules, Reader};
use crate::origin::{Frame, RequestBody, RequestBodySource, ResponseBody, Upgraded};
use crate::peer::seal::Sealer;
use crate::proxy::multipart::Multipart;
use crate::semantics::key::{self, Scheme};
use crate::wire::{Framing, HeadError, RequestHead};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: IpAddr,
    pub scheme: Scheme,
}

/// A request whose framing, authority and target have been checked. Whoever works on its answer, or
/// tells of it afterwards, shares it.
pub struct Request {
    pub method: Method,
    /// Origin-form or `*`, byte for byte.
    pub target: Bytes,
    /// Lower-case, without the scheme's default port. Empty for an HTTP/1.0 request that named none.
    pub authority: Arc<str>,
    pub version: Version,
    pub headers: HeaderMap,
    pub has_body: bool,
    pub upgrade: bool,
    /// It says that another node asks, which is to be proven.
    pub claims_peer: bool,
    pub client: Client,
    /// Where interim responses go; absent where the client would not understand them.
    pub interims: Option<Rc<Interims>>,
    pub received: Instant,
}

impl Request {
    pub fn from_http1(
        head: RequestHead,
        client: &Client,
        interims: Option<Rc<Interims>>,
        last: &mut LastAuthority,
    ) -> Result<Request, HeadError> {
        let authority = match head.authority {
            Some(authority) => last.normalize(authority, client.scheme)?,
            None => Arc::default(),
        };
        Ok(Request {
            method: head.method,
            target: head.target,
            authority,
            version: head.version,
            headers: head.headers,
            has_body: !matches!(head.framing, Framing::None | Framing::Length(0)),
            upgrade: head.upgrade,
            claims_peer: head.claims_peer,
            client: *client,
            interims,
            received: Instant::now(),
        })
    }
}

/// The authority that a connection named last: most name only one.
#[derive(Default)]
pub struct LastAuthority(Option<(Bytes, Arc<str>)>);

impl LastAuthority {
    fn normalize(&mut self, sent: Bytes, scheme: Scheme) -> Result<Arc<str>, HeadError> {
        if let Some((last, normal)) = &self.0
            && *last == sent
        {
            return Ok(normal.clone());
        }
        let normal: Arc<str> = key::normalize_authority(&sent, scheme)
            .map_err(|_| HeadError::Host("invalid host"))?
            .into();
        // A copy: what was read must not be held for as long as the connection lives.
        self.0 = Some((Bytes::copy_from_slice(&sent), normal.clone()));
        Ok(normal)
    }
}

/// The body of a client's request.
pub enum ClientBody {
    Empty,
    Stream {
        source: Pin<Box<dyn RequestBodySource>>,
        length: Option<u64>,
    },
}

impl ClientBody {
    pub fn is_empty(&self) -> bool {
        matches!(self, ClientBody::Empty)
    }

    pub fn into_upstream(self) -> RequestBody {
        match self {
            ClientBody::Empty => RequestBody::Empty,
            ClientBody::Stream { source, length } => RequestBody::Stream { source, length },
        }
    }
}

/// Interim (1xx) responses on their way to a client that is still waiting.
#[derive(Default)]
pub struct Interims {
    waiting: RefCell<Vec<(StatusCode, HeaderMap)>>,
    arrived: Notify,
}

impl Interims {
    pub fn push(&self, status: StatusCode, headers: HeaderMap) {
        self.waiting.borrow_mut().push((status, headers));
        self.arrived.notify_one();
    }

    /// Completes when there is something to [`Interims::take`].
    pub async fn wait(&self) {
        while self.waiting.borrow().is_empty() {
            self.arrived.notified().await;
        }
    }

    pub fn take(&self) -> Vec<(StatusCode, HeaderMap)> {
        self.waiting.take()
    }
}

/// An answer on its way to the client.
pub struct Response {
    pub status: StatusCode,
    /// The stored response whose fields go out before [`Response::headers`].
    pub stored: Option<Arc<Stored>>,
    /// Of a stored response, in seconds.
    pub age: Option<u64>,
    /// All other fields but `Cache-Status`, which is made from `how` and `ttl`.
    pub headers: HeaderMap,
    /// Bytes of the body, if known: of what would be sent, where the answer has none (HEAD).
    pub length: Option<u64>,
    pub body: Body,
    pub how: How,
    /// Seconds of freshness left.
    pub ttl: Option<i64>,
    pub report: Report,
}

/// What the log and the metrics will say of an answer.
pub struct Report {
    pub request: Rc<Request>,
    pub origin: Option<Rc<OriginRules>>,
    /// When the head was handed to the connection.
    pub first_byte: Option<Instant>,
    pub sent_bytes: u64,
    pub interrupted: Option<BodyError>,
}

impl Report {
    pub fn of(request: &Rc<Request>, origin: Option<&Rc<OriginRules>>) -> Report {
        Report {
            request: request.clone(),
            origin: origin.cloned(),
            first_byte: None,
            sent_bytes: 0,
            interrupted: None,
        }
    }
}

pub enum Body {
    Empty,
    Full(Bytes),
    /// Two pieces that are both here, for one write.
    Pair(Bytes, Bytes),
    Stored(Box<Reader>),
    /// The same for another node, to which it is proven.
    Sealed(Box<Sealed>),
    Upstream(Box<ResponseBody>),
    /// The client's part of a longer upstream body: how much to leave out, and how much to take.
    Window {
        body: Box<ResponseBody>,
        skip: u64,
        take: u64,
    },
    Multipart(Box<Multipart>),
    Tunnel(Box<Upgraded>),
}

pub type Piece = Frame;

impl Body {
    /// The next piece in order; `None` at the end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Piece, BodyError>> {
        match self {
            Body::Empty | Body::Tunnel(_) => None,
            Body::Full(bytes) if bytes.is_empty() => None,
            Body::Full(bytes) => Some(Ok(Piece::Data(std::mem::take(bytes)))),
            Body::Pair(first, rest) => {
                let first = std::mem::take(first);
                *self = Body::Full(std::mem::take(rest));
                Some(Ok(Piece::Data(first)))
            }
            Body::Stored(reader) => reader.next().await.map(|read| read.map(Piece::Data)),
            Body::Sealed(sealed) => sealed.next().await,
            Body::Upstream(body) => upstream_piece(body).await,
            Body::Window { body, skip, take } => window_piece(body, skip, take).await,
            Body::Multipart(multipart) => multipart.next().await,
        }
    }
}

/// A stored body on its way to another node.
pub struct Sealed {
    /// `None` once it has ended.
    reader: Option<Reader>,
    sealer: Sealer,
    /// Read, and not sealed yet.
    rest: Bytes,
}

impl Sealed {
    pub fn new(reader: Reader, sealer: Sealer) -> Sealed {
        Sealed {
            reader: Some(reader),
            sealer,
            rest: Bytes::new(),
        }
    }

    async fn next(&mut self) -> Option<Result<Piece, BodyError>> {
        if self.rest.is_empty() {
            match self.reader.as_mut()?.next().await {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.reader = None;
                    return Some(Ok(Piece::Data(self.sealer.end())));
                }
            }
        }
        Some(Ok(Piece::Data(self.sealer.seal(&mut self.rest))))
    }
}

async fn upstream_piece(body: &mut ResponseBody) -> Option<Result<Piece, BodyError>> {
    let frame = body.frame().await?;
    Some(frame.map_err(|error| crate::cache::fill::body_error(&error)))
}

async fn window_piece(
    body: &mut ResponseBody,
    skip: &mut u64,
    take: &mut u64,
) -> Option<Result<Piece, BodyError>> {
    while *take > 0 {
        let mut data = match upstream_piece(body).await {
            Some(Ok(Frame::Data(data))) => data,
            Some(Ok(Frame::Trailers(_))) => continue,
            other => return other,
        };
        let left_out = (*skip).min(data.len() as u64);
        *skip -= left_out;
        let _ = data.split_to(left_out as usize);
        data.truncate((*take).min(data.len() as u64) as usize);
        *take -= data.len() as u64;
        if !data.is_empty() {
            return Some(Ok(Frame::Data(data)));
        }
    }
    None
}
