//! HTTP/2 towards clients (prior knowledge), on hyper's connection.
//!
//! hyper and h2 keep the framing and stop the known floods; what is added here: authority and target by
//! the same rules as HTTP/1.1, a pace for bodies in both directions, and graceful ends.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use crate::cache::head::Head;
use crate::origin::{self, RequestBodySource, SourceFailed};
use crate::peer;
use crate::proxy::io::{Pace, Received};
use crate::proxy::message::{Body, Client, ClientBody, Request, Response};
use crate::proxy::{Proxy, respond};
use crate::semantics::key;
use crate::tasks::Tasks;
use crate::telemetry::{BadRequest, Label, TimeoutPhase};
use crate::wire;

/// How often an idle connection is asked whether it lives, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Response bytes buffered for one stream before it has to be read.
const SEND_BUFFER: usize = 256 << 10;

/// Handed to a stream at a time, in bytes: the usual length of a frame (RFC 9113 §4.2).
const PART_BYTES: usize = 16 << 10;

/// Streams that a client may have reset and we not yet forgotten.
const MAX_RESET_STREAMS: usize = 20;

/// Runs a connection's streams among the tasks of its thread, each until it is given up.
#[derive(Clone)]
struct LocalExecutor {
    tasks: Tasks,
    streams: Rc<Streams>,
}

impl<F: Future + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        // hyper makes a stream's future of what the service has just returned for its request.
        let Some(stream) = self.streams.begun.take() else {
            self.tasks.spawn(async move {
                future.await;
            });
            return;
        };
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                // Whatever of the stream is dropped before its end resets it.
                () = stream.given_up.notified() => {}
                _ = future => {}
            }
        });
    }
}

pub async fn serve<Io>(io: Io, inbox: BytesMut, client: Client, proxy: Rc<Proxy>)
where
    Io: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = proxy.limits();
    // A request may take its origin longer than a connection may idle; pings go on meanwhile.
    let silence = limits.idle_timeout.max(PING_INTERVAL + PING_TIMEOUT);
    let received = Received::new(proxy.shared.metrics.clone(), inbox.len());
    let io = TokioIo::new(Watched::new(io, inbox.freeze(), received, silence));
    let streams = Rc::new(Streams::default());
    let service = {
        let (proxy, streams) = (proxy.clone(), streams.clone());
        service_fn(move |request| {
            let (proxy, open) = (proxy.clone(), streams.open());
            async move { Ok::<_, Infallible>(exchange(request, client, proxy, open).await) }
        })
    };
    let executor = LocalExecutor {
        tasks: proxy.cache.fetcher.tasks.clone(),
        streams: streams.clone(),
    };
    let connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(limits.wire.max_head_bytes as u32)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .adaptive_window(false)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let bound = tokio::select! {
        biased;
        ended = connection.as_mut() => {
            if let Err(error) = ended && !error.is_closed() {
                proxy.shared.metrics.bad_requests.increment(BadRequest::Http2);
            }
            return;
        }
        // What is left then is bounded by the node's drain time.
        () = proxy.draining.begun() => None,
        // Answers to our pings keep the socket moving: only streams count.
        () = streams.idle(limits.idle_timeout, limits.write_timeout, &proxy) => {
            proxy.count_timeout(TimeoutPhase::Idle);
            Some(limits.write_timeout)
        }
    };
    connection.as_mut().graceful_shutdown();
    // A peer that has fallen silent does not answer this either.
    let _ = match bound {
        Some(bound) => tokio::time::timeout(bound, connection).await.ok(),
        None => Some(connection.await),
    };
}

async fn exchange(
    request: http::Request<Incoming>,
    client: Client,
    proxy: Rc<Proxy>,
    open: Rc<Stream>,
) -> http::Response<Outgoing> {
    let is_head = request.method() == Method::HEAD;
    let response = match accept(request, client, &proxy) {
        Ok((request, body)) => proxy.handle(Rc::new(request), body).await,
        Err(status) => {
            proxy
                .shared
                .metrics
                .bad_requests
                .increment(BadRequest::Http2);
            let cache_status = proxy.refused(&client, status, BadRequest::Http2.as_str(), 0);
            return refusal(status, cache_status, open);
        }
    };
    outgoing(response, is_head, proxy, open)
}

/// The same rules as for an HTTP/1.1 head (RFC 9113 §8.3.1).
fn accept(
    request: http::Request<Incoming>,
    client: Client,
    proxy: &Rc<Proxy>,
) -> Result<(Request, ClientBody), StatusCode> {
    let (head, body) = request.into_parts();
    let malformed = StatusCode::BAD_REQUEST;
    let mut headers = head.headers;
    let hosts = headers.get_all(header::HOST).iter().count();
    let authority = match head.uri.authority() {
        Some(authority) => authority.as_str().as_bytes().to_vec(),
        None => headers
            .get(header::HOST)
            .ok_or(malformed)?
            .as_bytes()
            .to_vec(),
    };
    let authority = key::normalize_authority(&authority, client.scheme).map_err(|_| malformed)?;
    if hosts > 1 {
        return Err(malformed);
    }
    if let Some(host) = headers.remove(header::HOST) {
        // Two names for one request would let two parsers see two sites.
        let host = key::normalize_authority(host.as_bytes(), client.scheme);
        if host.map_err(|_| malformed)? != authority {
            return Err(malformed);
        }
    }
    let target = match head.uri.path_and_query() {
        _ if head.method == Method::CONNECT => return Err(StatusCode::NOT_IMPLEMENTED),
        Some(target) => Bytes::copy_from_slice(target.as_str().as_bytes()),
        None => return Err(malformed),
    };
    let is_known_scheme = |scheme: &Scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme);
    if !wire::is_target(&target) || !head.uri.scheme().is_none_or(is_known_scheme) {
        return Err(malformed);
    }
    if target.first() != Some(&b'/') && !(head.method == Method::OPTIONS && target == "*") {
        return Err(malformed);
    }
    if target.len() > proxy.limits().wire.max_target_bytes {
        return Err(StatusCode::URI_TOO_LONG);
    }
    join_cookies(&mut headers);
    let body = match body.is_end_stream() {
        true => ClientBody::Empty,
        false => ClientBody::Stream {
            length: body.size_hint().exact(),
            source: Box::pin(Source::new(body, proxy.clone())),
        },
    };
    headers.remove(header::CONTENT_LENGTH);
    let request = Request {
        method: head.method,
        target,
        authority: authority.into(),
        version: Version::HTTP_2,
        claims_peer: headers.contains_key(peer::secret::ASK),
        headers,
        has_body: !body.is_empty(),
        upgrade: false,
        client,
        interims: None,
        received: std::time::Instant::now(),
    };
    Ok((request, body))
}

/// RFC 9113 §8.2.3: crumbs become one field where the message leaves HTTP/2.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().count() < 2 {
        return;
    }
    let crumbs: Vec<_> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, cookie);
    }
}

fn refusal(
    status: StatusCode,
    cache_status: HeaderValue,
    open: Rc<Stream>,
) -> http::Response<Outgoing> {
    let mut response = http::Response::new(Outgoing::empty(open));
    let headers = response.headers_mut();
    headers.insert(respond::CACHE_STATUS, cache_status);
    *response.status_mut() = status;
    response
}

fn outgoing(
    mut response: Response,
    is_head: bool,
    proxy: Rc<Proxy>,
    open: Rc<Stream>,
) -> http::Response<Outgoing> {
    let mut headers = match &response.stored {
        Some(stored) => stored.head.headers.clone(),
        None => HeaderMap::new(),
    };
    if response.stored.is_some() {
        for name in Head::UNDELIVERED {
            headers.remove(&name);
        }
    }
    if let Some(age) = response.age {
        headers.insert(header::AGE, HeaderValue::from(age));
    }
    for (name, value) in &response.headers {
        headers.append(name, value.clone());
    }
    let cache_status = response.cache_status(&proxy.shared.identity.cache_name);
    headers.append(respond::CACHE_STATUS, cache_status.to_header());
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    let bodiless = is_head || respond::is_bodiless(response.status);
    if let Some(length) = response
        .length
        .filter(|_| !respond::is_bodiless(response.status))
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let status = response.status;
    let body = match bodiless {
        true => Body::Empty,
        false => std::mem::replace(&mut response.body, Body::Empty),
    };
    response.report.first_byte = Some(std::time::Instant::now());
    let mut message = http::Response::new(Outgoing::new(body, response, proxy, open));
    *message.status_mut() = status;
    *message.headers_mut() = headers;
    message
}

/// The streams of one connection.
#[derive(Default)]
struct Streams {
    open: RefCell<Vec<Weak<Stream>>>,
    /// The one whose task is about to be started.
    begun: RefCell<Option<Rc<Stream>>>,
    /// When the last one ended, or was last seen open.
    used: Cell<Option<Instant>>,
}

impl Streams {
    fn open(&self) -> Rc<Stream> {
        let stream = Rc::new(Stream::default());
        let mut open = self.open.borrow_mut();
        open.retain(|stream| stream.strong_count() > 0);
        open.push(Rc::downgrade(&stream));
        self.begun.replace(Some(stream.clone()));
        stream
    }

    /// Completes when there has been no stream for `idle`. Meanwhile gives up the streams whose client
    /// has taken nothing of its answer for `stall`.
    async fn idle(&self, idle: Duration, stall: Duration, proxy: &Proxy) {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(idle.min(stall) / 4).await;
            let now = Instant::now();
            let open: Vec<_> = self
                .open
                .borrow()
                .iter()
                .filter_map(Weak::upgrade)
                .collect();
            for stream in &open {
                if stream.expire(now, stall) {
                    proxy.count_timeout(TimeoutPhase::Write);
                }
            }
            if !open.is_empty() {
                self.used.set(Some(now));
            } else if now >= self.used.get().unwrap_or(begun) + idle {
                return;
            }
        }
    }
}

/// An answer on its stream.
#[derive(Default)]
struct Stream {
    /// Since when a piece waits for the client to take it.
    blocked: Cell<Option<Instant>>,
    expired: Cell<bool>,
    given_up: Notify,
}

impl Stream {
    /// Gives the stream up when the client has taken nothing for `stall`: its task ends, and with it
    /// all that was held for it. Whether that has happened now.
    fn expire(&self, now: Instant, stall: Duration) -> bool {
        if self.blocked.get().is_none_or(|since| now < since + stall) {
            return false;
        }
        self.given_up.notify_one();
        !self.expired.replace(true)
    }
}

/// A response's body as hyper polls it.
struct Outgoing {
    stream: Rc<Stream>,
    pieces: Option<Pieces>,
    /// Settled when the body ends, however it does.
    report: Option<(Response, Rc<Proxy>)>,
    complete: bool,
    /// What was to be sent did not come.
    failed: bool,
}

type Step = (Body, Option<Result<origin::Frame, crate::cache::BodyError>>);

enum Pieces {
    Ready(Body),
    /// What is left of the piece that was read last comes first.
    Left(Bytes, Body),
    Waiting(Pin<Box<dyn Future<Output = Step>>>),
}

impl Outgoing {
    fn empty(stream: Rc<Stream>) -> Outgoing {
        Outgoing {
            stream,
            pieces: None,
            report: None,
            complete: true,
            failed: false,
        }
    }

    fn new(body: Body, response: Response, proxy: Rc<Proxy>, stream: Rc<Stream>) -> Outgoing {
        let is_empty = matches!(body, Body::Empty);
        Outgoing {
            stream,
            pieces: (!is_empty).then_some(Pieces::Ready(body)),
            report: Some((response, proxy)),
            complete: is_empty,
            failed: false,
        }
    }
}

impl Outgoing {
    /// The next part of a piece. The client has [`Limits::write_timeout`](crate::proxy::Limits) for
    /// each: of a whole block, slow clients of many streams would not take enough in that time.
    fn part(&mut self, mut bytes: Bytes, body: Body) -> Frame<Bytes> {
        let part = bytes.split_to(bytes.len().min(PART_BYTES));
        self.pieces = Some(match bytes.is_empty() {
            true => Pieces::Ready(body),
            false => Pieces::Left(bytes, body),
        });
        if let Some((response, _)) = &mut self.report {
            response.report.sent_bytes += part.len() as u64;
        }
        self.stream.blocked.set(Some(Instant::now()));
        Frame::data(part)
    }

    fn is_short(&self) -> bool {
        self.report.as_ref().is_some_and(|(response, _)| {
            let sent = response.report.sent_bytes;
            response.length.is_some_and(|length| sent < length)
        })
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Some((response, proxy)) = self.report.take() {
            proxy.finished(&response, self.complete);
            if !self.complete && !self.failed && !self.stream.expired.get() {
                proxy.count_client_gone();
            }
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.stream.blocked.set(None);
        let mut future = match self.pieces.take() {
            None => return Poll::Ready(None),
            Some(Pieces::Left(bytes, body)) => {
                return Poll::Ready(Some(Ok(self.part(bytes, body))));
            }
            Some(Pieces::Waiting(future)) => future,
            Some(Pieces::Ready(mut body)) => Box::pin(async move {
                let piece = body.next().await;
                (body, piece)
            }),
        };
        let (body, piece) = match future.as_mut().poll(cx) {
            Poll::Ready(step) => step,
            Poll::Pending => {
                self.pieces = Some(Pieces::Waiting(future));
                return Poll::Pending;
            }
        };
        match piece {
            Some(Ok(origin::Frame::Data(bytes))) => Poll::Ready(Some(Ok(self.part(bytes, body)))),
            Some(Ok(origin::Frame::Trailers(fields))) => {
                self.pieces = Some(Pieces::Ready(body));
                Poll::Ready(Some(Ok(Frame::trailers(fields))))
            }
            // The stream is reset: nobody takes what came for the whole.
            Some(Err(error)) => {
                self.failed = true;
                Poll::Ready(Some(Err(io::Error::other(error))))
            }
            // RFC 9113 §8.1.1: fewer than announced must not look like the end.
            None if self.is_short() => {
                self.failed = true;
                Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())))
            }
            None => {
                self.complete = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.pieces {
            None => SizeHint::with_exact(0),
            Some(Pieces::Ready(Body::Full(bytes))) => SizeHint::with_exact(bytes.len() as u64),
            Some(_) => SizeHint::default(),
        }
    }
}

/// A request's body, which must keep coming, and come whole in time. One timer watches over both.
struct Source {
    proxy: Rc<Proxy>,
    body: Incoming,
    pace: Pace,
    /// Bytes since the timer was set.
    moved: u64,
    /// When the body must have come whole.
    until: Instant,
    /// The end of the window that `moved` is held against, or `until` if that is sooner.
    timer: Pin<Box<Sleep>>,
    /// It was asked for a frame, and has none yet.
    waits: bool,
}

impl Source {
    fn new(body: Incoming, proxy: Rc<Proxy>) -> Source {
        let limits = proxy.limits();
        let pace = Pace {
            stall: limits.header_timeout,
            min_rate: limits.body_rate,
        };
        let now = Instant::now();
        let until = now + limits.request_timeout;
        Source {
            proxy,
            body,
            pace,
            moved: 0,
            until,
            timer: Box::pin(tokio::time::sleep_until(until.min(now + pace.stall))),
            waits: false,
        }
    }

    /// `waited`: the client was waited for before this poll too. A window that has ended while nobody
    /// asked for more is the origin's, and says nothing about the client.
    fn poll_too_slow(&mut self, cx: &mut Context<'_>, waited: bool) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= self.until || waited && self.moved < self.pace.least() {
                return Poll::Ready(());
            }
            self.moved = 0;
            let next = self.until.min(now + self.pace.stall);
            self.timer.as_mut().reset(next);
        }
    }
}

impl RequestBodySource for Source {
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<origin::Frame, SourceFailed>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => {
                let waited = std::mem::replace(&mut this.waits, true);
                ready!(this.poll_too_slow(cx, waited));
                this.proxy.count_timeout(TimeoutPhase::Body);
                return Poll::Ready(Some(Err(SourceFailed::RequestTooSlow)));
            }
            Poll::Ready(frame) => frame,
        };
        this.waits = false;
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|_| SourceFailed::RequestBody)?;
            match frame.into_data() {
                Ok(data) => {
                    this.moved += data.len() as u64;
                    Ok(origin::Frame::Data(data))
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(fields) => Ok(origin::Frame::Trailers(fields)),
                    Err(_) => Ok(origin::Frame::Data(Bytes::new())),
                },
            }
        }))
    }
}

/// How long nothing has moved.
struct Stall {
    allowed: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Stall {
    fn new(allowed: Duration) -> Stall {
        Stall {
            allowed,
            sleep: Box::pin(tokio::time::sleep(allowed)),
        }
    }

    fn moved(&mut self) {
        self.sleep.as_mut().reset(Instant::now() + self.allowed);
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().poll(cx)
    }
}

/// A socket whose first bytes were read already, and which ends when nothing moves on it for long.
struct Watched<Io> {
    io: Io,
    first: Bytes,
    received: Received,
    stall: Stall,
}

impl<Io> Watched<Io> {
    fn new(io: Io, first: Bytes, received: Received, idle: Duration) -> Watched<Io> {
        Watched {
            io,
            first,
            received,
            stall: Stall::new(idle),
        }
    }

    fn moved<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stall.moved();
            return polled;
        }
        ready!(self.stall.poll_stalled(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.first.is_empty() {
            let count = this.first.len().min(buffer.remaining());
            buffer.put_slice(&this.first[..count]);
            this.first.advance(count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buffer);
        this.received.add(buffer.filled().len() - before);
        this.moved(cx, polled)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.moved(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.moved(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
