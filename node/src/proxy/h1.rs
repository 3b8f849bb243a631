//! HTTP/1.1 towards clients: requests off a connection one by one, answers onto it in order.
//!
//! ```text
//!   ┌─► head ──► answer ──► response head ──► pieces ──► drain ─┐
//!   └──────────────── keep-alive ───────────────────────────────┘──► close, lingering
//! ```
//!
//! Kept true here:
//! - Whatever the framing left unread of a request never becomes the next request: it is drained within
//!   bounds, or the connection ends.
//! - `100 Continue` is sent when the body is wanted, by us, once.
//! - A client that leaves while its answer is being prepared ends that work.
//! - A response that cannot be finished ends the connection before its announced end, so that nobody
//!   takes it for whole. If the end of the connection is the body's end (HTTP/1.0), that end is a reset.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::HeaderMap;
use http::{Method, StatusCode, Version};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::origin::{Frame, RequestBodySource, SourceFailed};
use crate::proxy::io::{ClientIo, Pace, Received};
use crate::proxy::message::{
    Body, Client, ClientBody, Interims, LastAuthority, Piece, Request, Response,
};
use crate::proxy::respond;
use crate::proxy::{Limits, Pending, Proxy, tunnel};
use crate::telemetry::{BadRequest, Label, TimeoutPhase};
use crate::wire::{
    BodyDecoder, Decoded, Framing, HeadError, RequestHead, encode, parse_request_head,
};

/// How long, and how much, is still read after the last answer, so that the peer gets it before a reset.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_LIMIT: usize = 1 << 20;

/// How long a connection that is between requests stays when the node begins to drain: a request may be on
/// its way, and closing would reset it.
pub(super) const LAST_CALL: Duration = Duration::from_millis(250);

/// Bodies up to this size are copied behind their head and sent as one piece, in bytes.
const COPY_LIMIT: usize = 4 << 10;

/// Serves one connection to its end. Never fails: what goes wrong concerns this client alone.
pub async fn serve(io: TcpStream, inbox: BytesMut, client: Client, proxy: Rc<Proxy>) {
    let limits = proxy.limits();
    let read_pace = Pace {
        stall: limits.header_timeout,
        min_rate: limits.body_rate,
    };
    let write_pace = Pace {
        stall: limits.write_timeout,
        min_rate: 0,
    };
    let received = Received::new(proxy.shared.metrics.clone(), inbox.len());
    let io = ClientIo::new(
        io,
        proxy.pipe.clone(),
        inbox,
        received,
        read_pace,
        write_pace,
    );
    let draining = proxy.draining.clone();
    let mut connection = Connection {
        drain: Box::pin(async move { draining.begun().await }),
        io: Rc::new(io),
        client,
        proxy,
        out: BytesMut::with_capacity(1024),
        interims: Rc::default(),
        last_authority: LastAuthority::default(),
    };
    if let After::Close { lingering } = connection.run().await {
        connection.close(lingering).await;
    }
}

struct Connection {
    io: Rc<ClientIo>,
    client: Client,
    proxy: Rc<Proxy>,
    /// Reused for every head.
    out: BytesMut,
    interims: Rc<Interims>,
    last_authority: LastAuthority,
    /// Completes when the node begins to drain. Kept from request to request: to enter and leave the
    /// list of those who wait costs more than to read a request.
    drain: Pin<Box<dyn Future<Output = ()>>>,
}

enum After {
    NextRequest,
    /// `lingering`: the peer may still be sending, and must not lose our answer to a reset.
    Close {
        lingering: bool,
    },
    /// Nothing more is to be said: the socket has been given away, or is to be reset.
    Gone,
}

const CLOSE: After = After::Close { lingering: false };

impl Connection {
    async fn run(&mut self) -> After {
        let mut is_first = true;
        loop {
            let head = match self.read_head(is_first).await {
                Ok(head) => head,
                Err(end) => return self.refuse(end).await,
            };
            is_first = false;
            match self.exchange(head).await {
                After::NextRequest => {}
                after => return after,
            }
        }
    }

    /// Reads up to the end of a head. The first byte and the whole head each have a deadline.
    async fn read_head(&mut self, is_first: bool) -> Result<RequestHead, HeadEnd> {
        let settings = self.proxy.settings();
        let limits = &settings.shared.limits;
        let idle = if is_first {
            limits.first_byte_timeout
        } else {
            limits.idle_timeout
        };
        let mut deadline = None;
        loop {
            if !self.io.inbox().borrow().is_empty() {
                let parsed = parse_request_head(&mut self.io.inbox().borrow_mut(), &limits.wire);
                if let Some(head) = parsed.map_err(HeadEnd::Malformed)? {
                    return Ok(head);
                }
                deadline.get_or_insert_with(|| Instant::now() + limits.header_timeout);
            }
            let until = match deadline {
                Some(deadline) => deadline,
                None if self.proxy.draining.has_begun() => Instant::now() + LAST_CALL,
                None => Instant::now() + idle,
            };
            let mut fill = pin!(self.io.fill_until(until));
            let read = match deadline {
                Some(_) => fill.await,
                None if self.proxy.draining.has_begun() => fill.await,
                // An idle connection ends soon after the node begins to drain.
                None => {
                    let idle = poll_fn(|cx| match fill.as_mut().poll(cx) {
                        Poll::Ready(read) => Poll::Ready(Some(read)),
                        Poll::Pending => self.drain.as_mut().poll(cx).map(|()| None),
                    });
                    match idle.await {
                        Some(read) => read,
                        None => continue,
                    }
                }
            };
            match read {
                Err(error) if deadline.is_none() && is_timeout(&error) => {
                    return Err(HeadEnd::Idle);
                }
                Ok(0) | Err(_) if deadline.is_none() => return Err(HeadEnd::Closed),
                Ok(0) => {
                    return Err(HeadEnd::Malformed(HeadError::Malformed(
                        "ended in its head",
                    )));
                }
                Ok(_) => {}
                Err(_) => return Err(HeadEnd::TimedOut),
            }
        }
    }

    async fn refuse(&mut self, end: HeadEnd) -> After {
        let (status, detail) = match end {
            HeadEnd::Closed => return CLOSE,
            HeadEnd::Idle => {
                self.proxy.count_timeout(TimeoutPhase::Idle);
                return CLOSE;
            }
            HeadEnd::TimedOut => {
                self.proxy.count_timeout(TimeoutPhase::Head);
                (StatusCode::REQUEST_TIMEOUT, "http_request_timeout")
            }
            HeadEnd::Malformed(error) => {
                let reason = self.proxy.count_malformed(&error);
                (error.status(), reason.as_str())
            }
        };
        let text = respond::refusal_text(status, Some(detail));
        let cache_status = self.proxy.refused(&self.client, status, detail, text.len());
        self.out.clear();
        respond::encode_refusal(&mut self.out, status, cache_status, &text);
        let written = self.write(Bytes::new()).await;
        After::Close {
            lingering: written.is_ok(),
        }
    }

    async fn exchange(&mut self, head: RequestHead) -> After {
        let version = head.version;
        let is_head = head.method == Method::HEAD;
        let keep_alive = head.keep_alive;
        let body = match head.framing {
            Framing::None | Framing::Length(0) => None,
            framing => Some(Rc::new(RequestBody::new(
                self.io.clone(),
                self.proxy.limits(),
                framing,
                head.expect_continue,
            ))),
        };
        let interims = (version == Version::HTTP_11).then(|| self.interims.clone());
        let framing = head.framing;
        let request =
            match Request::from_http1(head, &self.client, interims, &mut self.last_authority) {
                Ok(request) => Rc::new(request),
                Err(error) => return self.refuse(HeadEnd::Malformed(error)).await,
            };
        let mut response = match self.proxy.answer_at_once(&request) {
            Ok(response) => response,
            Err(pending) => {
                // Out of line, as all that is not a hit in memory: such futures are large.
                let answer = Box::pin(self.answer(request, framing, body.as_ref(), pending));
                match answer.await {
                    Some(response) => response,
                    None => return CLOSE,
                }
            }
        };
        response.report.first_byte = Some(std::time::Instant::now());
        if let Body::Tunnel(_) = response.body {
            return Box::pin(self.tunnel(response)).await;
        }
        let outcome = self
            .deliver(&mut response, version, is_head, keep_alive, body.as_deref())
            .await;
        self.proxy.finished(&response, outcome.is_ok());
        if let Some(body) = body.as_deref().filter(|_| outcome.is_ok()) {
            // The origin answered first, and still takes the rest.
            given_back(Some(body)).await;
        }
        let drained = match outcome {
            Ok(Ending::KeepAlive) => self.drained(body.as_deref()).await,
            _ => false,
        };
        let interrupted = outcome.err();
        if interrupted.is_some() || body.is_some() {
            self.count_failure(interrupted, body.and_then(|body| body.failed.get()));
        }
        match interrupted {
            None if drained => After::NextRequest,
            None => After::Close { lingering: true },
            Some(interrupted) => {
                let is_end_of_body = version == Version::HTTP_10 && response.length.is_none();
                if interrupted != Interrupted::Upstream || is_end_of_body {
                    self.io.reset_at_end();
                    return After::Gone;
                }
                CLOSE
            }
        }
    }

    /// Counts what was the client's doing: once, though both directions end with it.
    fn count_failure(&self, answer: Option<Interrupted>, body: Option<RequestBodyError>) {
        let proxy = &self.proxy;
        match (answer, body) {
            (_, Some(RequestBodyError::TooSlow)) => proxy.count_timeout(TimeoutPhase::Body),
            (_, Some(RequestBodyError::Malformed)) => {
                proxy
                    .shared
                    .metrics
                    .bad_requests
                    .increment(BadRequest::Body);
            }
            (Some(Interrupted::ClientTooSlow), _) => proxy.count_timeout(TimeoutPhase::Write),
            (Some(Interrupted::ClientGone), _) | (_, Some(RequestBodyError::Gone)) => {
                proxy.count_client_gone();
            }
            (Some(Interrupted::Upstream) | None, None) => {}
        }
    }

    /// The answer, unless the client leaves before there is one. Interim responses go out meanwhile.
    async fn answer(
        &mut self,
        request: Rc<Request>,
        framing: Framing,
        body: Option<&Rc<RequestBody>>,
        pending: Pending,
    ) -> Option<Response> {
        let proxy = self.proxy.clone();
        let client_body = match body {
            Some(body) => lend(body, framing),
            None => ClientBody::Empty,
        };
        let mut answering = pin!(proxy.answer(request, client_body, pending));
        let mut gone = pin!(async {
            // Until the body has come whole, who reads it is who hears of the client's end.
            given_back(body.map(Rc::as_ref)).await;
            self.io.gone().await;
        });
        loop {
            tokio::select! {
                biased;
                response = &mut answering => {
                    // Those that came with it go before it, or they would go before the next.
                    self.send_interims().await?;
                    return Some(response);
                }
                () = self.interims.wait() => self.send_interims().await?,
                () = &mut gone => return None,
            }
        }
    }

    async fn send_interims(&self) -> Option<()> {
        for (status, headers) in self.interims.take() {
            let mut head = BytesMut::new();
            encode::interim_head(&mut head, status, &headers);
            poll_fn(|cx| Poll::Ready(self.io.push_interim(cx, &head)))
                .await
                .ok()?;
        }
        Some(())
    }

    async fn deliver(
        &mut self,
        response: &mut Response,
        version: Version,
        is_head: bool,
        keep_alive: bool,
        request_body: Option<&RequestBody>,
    ) -> Result<Ending, Interrupted> {
        let bodiless = is_head || respond::is_bodiless(response.status);
        let framing = match response.length {
            _ if respond::is_bodiless(response.status) => Framing::None,
            Some(length) => Framing::Length(length),
            None if is_head => Framing::None,
            None if version == Version::HTTP_11 => Framing::Chunked,
            None => Framing::UntilClose,
        };
        let drainable = request_body.is_none_or(RequestBody::is_drainable);
        let ending = if keep_alive
            && drainable
            && framing != Framing::UntilClose
            && !self.proxy.draining.has_begun()
        {
            Ending::KeepAlive
        } else {
            Ending::Close
        };
        self.encode_head(response, version, framing, ending);
        if bodiless {
            self.write(Bytes::new()).await?;
            return Ok(ending);
        }
        match std::mem::replace(&mut response.body, Body::Empty) {
            Body::Empty => self.write(Bytes::new()).await?,
            Body::Full(bytes) => {
                response.report.sent_bytes += bytes.len() as u64;
                self.write_framed(framing, bytes).await?;
                self.write_end(framing, None).await?;
            }
            Body::Pair(mut first, mut rest) if matches!(framing, Framing::Length(_)) => {
                response.report.sent_bytes += (first.len() + rest.len()) as u64;
                self.io.write(&mut self.out, &mut first, &mut rest).await?;
            }
            mut body => {
                Box::pin(self.stream(&mut body, framing, response, request_body)).await?;
            }
        }
        Ok(ending)
    }

    fn encode_head(
        &mut self,
        response: &Response,
        version: Version,
        framing: Framing,
        ending: Ending,
    ) {
        let out = &mut self.out;
        out.clear();
        encode::status_line(out, Version::HTTP_11, response.status);
        if let Some(stored) = &response.stored {
            out.extend_from_slice(stored.head.lines());
        }
        if let Some(age) = response.age {
            encode::field_number(out, b"age", age);
        }
        encode::fields(out, &response.headers);
        out.extend_from_slice(b"cache-status: ");
        let cache_status = response.cache_status(&self.proxy.shared.identity.cache_name);
        // Writing to memory does not fail.
        let _ = cache_status.write(&mut out.writer());
        out.extend_from_slice(b"\r\n");
        encode::framing_fields(out, framing);
        match (ending, version) {
            (Ending::Close, _) => encode::field(out, b"connection", b"close"),
            (Ending::KeepAlive, Version::HTTP_10) => {
                encode::field(out, b"connection", b"keep-alive");
            }
            (Ending::KeepAlive, _) => {}
        }
        encode::end_of_head(out);
    }

    /// Sends pieces as they come. The head goes out with the first piece if that is here at once, and
    /// alone otherwise.
    async fn stream(
        &mut self,
        body: &mut Body,
        framing: Framing,
        response: &mut Response,
        request_body: Option<&RequestBody>,
    ) -> Result<(), Interrupted> {
        let mut left = match framing {
            Framing::Length(length) => length,
            _ => u64::MAX,
        };
        let mut trailers = None;
        loop {
            let piece = {
                let mut next = pin!(body.next());
                match poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await {
                    Poll::Ready(piece) => piece,
                    Poll::Pending => {
                        if !self.out.is_empty() {
                            self.write(Bytes::new()).await?;
                        }
                        let gone = async {
                            given_back(request_body).await;
                            self.io.gone().await;
                        };
                        tokio::select! {
                            biased;
                            piece = next => piece,
                            () = gone => return Err(Interrupted::ClientGone),
                        }
                    }
                }
            };
            match piece {
                Some(Ok(Piece::Data(bytes))) => {
                    left = left
                        .checked_sub(bytes.len() as u64)
                        .ok_or(Interrupted::Upstream)?;
                    response.report.sent_bytes += bytes.len() as u64;
                    self.write_framed(framing, bytes).await?;
                }
                Some(Ok(Piece::Trailers(fields))) => trailers = Some(fields),
                Some(Err(error)) => {
                    response.report.interrupted = Some(error);
                    // What came before the break is the client's all the same.
                    if !self.out.is_empty() {
                        self.write(Bytes::new()).await?;
                    }
                    return Err(Interrupted::Upstream);
                }
                None if framing == Framing::Chunked || left == 0 || left > u64::MAX / 2 => {
                    return self.write_end(framing, trailers).await;
                }
                None => return Err(Interrupted::Upstream),
            }
        }
    }

    async fn write_framed(
        &mut self,
        framing: Framing,
        mut bytes: Bytes,
    ) -> Result<(), Interrupted> {
        if framing == Framing::Chunked {
            if bytes.is_empty() {
                return Ok(());
            }
            encode::chunk_start(&mut self.out, bytes.len());
            let mut tail = Bytes::from_static(encode::CHUNK_END);
            return Ok(self.io.write(&mut self.out, &mut bytes, &mut tail).await?);
        }
        if bytes.len() <= COPY_LIMIT {
            self.out.extend_from_slice(&bytes);
            bytes = Bytes::new();
        }
        self.write(bytes).await
    }

    async fn write_end(
        &mut self,
        framing: Framing,
        trailers: Option<HeaderMap>,
    ) -> Result<(), Interrupted> {
        if framing == Framing::Chunked {
            encode::last_chunk(&mut self.out, &trailers.unwrap_or_default());
        }
        if self.out.is_empty() {
            return Ok(());
        }
        self.write(Bytes::new()).await
    }

    async fn write(&mut self, mut body: Bytes) -> Result<(), Interrupted> {
        Ok(self
            .io
            .write(&mut self.out, &mut body, &mut Bytes::new())
            .await?)
    }

    /// Whether the next request begins where this one's body ends, after reading what is left of it.
    async fn drained(&self, body: Option<&RequestBody>) -> bool {
        match body {
            None => true,
            Some(body) => body.drain().await,
        }
    }

    async fn tunnel(&mut self, mut response: Response) -> After {
        let cache_status = response.cache_status(&self.proxy.shared.identity.cache_name);
        let cache_status = cache_status.to_header();
        response.headers.append(respond::CACHE_STATUS, cache_status);
        self.encode_upgrade(&response);
        let body = std::mem::replace(&mut response.body, Body::Empty);
        let mut tunnelled = Tunnelled {
            proxy: self.proxy.clone(),
            response,
            sent_bytes: Cell::new(0),
            complete: false,
        };
        if self.write(Bytes::new()).await.is_err() {
            return CLOSE;
        }
        let Body::Tunnel(tunnel) = body else {
            return CLOSE;
        };
        let idle = self.proxy.limits().idle_timeout;
        tunnel::run(&self.io, *tunnel, idle, &tunnelled.sent_bytes).await;
        tunnelled.complete = true;
        After::Gone
    }

    fn encode_upgrade(&mut self, response: &Response) {
        self.out.clear();
        encode::response_head(
            &mut self.out,
            Version::HTTP_11,
            response.status,
            &response.headers,
            Framing::None,
            encode::Persistence::Upgrade,
        );
    }

    /// Ends the connection in a way that lets the peer read our last answer (RFC 9112 §9.6).
    async fn close(&self, lingering: bool) {
        if self.io.shutdown().await.is_err() || !lingering {
            return;
        }
        let until = Instant::now() + LINGER_TIME;
        let mut left = LINGER_LIMIT;
        while left > 0 {
            self.io.inbox().borrow_mut().clear();
            match self.io.fill_until(until).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    }
}

/// A tunnel, which is counted and logged when it ends, however it does.
struct Tunnelled {
    proxy: Rc<Proxy>,
    response: Response,
    /// To the client.
    sent_bytes: Cell<u64>,
    complete: bool,
}

impl Drop for Tunnelled {
    fn drop(&mut self) {
        self.response.report.sent_bytes = self.sent_bytes.get();
        self.proxy.finished(&self.response, self.complete);
    }
}

/// Why no request head came.
enum HeadEnd {
    Closed,
    /// Nothing came for too long.
    Idle,
    /// It began, and did not end in time.
    TimedOut,
    Malformed(HeadError),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    KeepAlive,
    Close,
}

/// Why the answer could not be sent whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interrupted {
    /// It left: what it has not taken is the kernel's to keep until the end is a reset.
    ClientGone,
    /// It takes nothing: the same.
    ClientTooSlow,
    /// What was to be sent did not come.
    Upstream,
}

impl From<std::io::Error> for Interrupted {
    fn from(error: std::io::Error) -> Interrupted {
        match is_timeout(&error) {
            true => Interrupted::ClientTooSlow,
            false => Interrupted::ClientGone,
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::TimedOut
}

/// A request's body on its connection.
pub struct RequestBody {
    io: Rc<ClientIo>,
    limits: Limits,
    decoder: RefCell<BodyDecoder>,
    /// The client waits for `100 Continue` before it sends.
    awaits_continue: Cell<bool>,
    started: Cell<bool>,
    failed: Cell<Option<RequestBodyError>>,
    /// Somebody else reads it: two readers would each miss what the other got.
    lent: Cell<bool>,
    returned: Notify,
}

/// The body as the origin's connection reads it.
fn lend(body: &Rc<RequestBody>, framing: Framing) -> ClientBody {
    body.lend();
    ClientBody::Stream {
        source: Box::pin(Lent(body.clone())),
        length: match framing {
            Framing::Length(length) => Some(length),
            _ => None,
        },
    }
}

struct Lent(Rc<RequestBody>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl RequestBodySource for Lent {
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, SourceFailed>>> {
        self.0.poll_piece(cx).map(|piece| {
            piece.map(|piece| {
                piece.map_err(|error| match error {
                    RequestBodyError::TooSlow => SourceFailed::RequestTooSlow,
                    _ => SourceFailed::RequestBody,
                })
            })
        })
    }
}

/// Why a request's body stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestBodyError {
    /// The client broke off.
    Gone,
    TooSlow,
    Malformed,
}

/// Completes when the body was read to its end, or nobody else reads it any more.
async fn given_back(body: Option<&RequestBody>) {
    let Some(body) = body else { return };
    while body.lent.get() && !body.is_read() {
        body.returned.notified().await;
    }
}

impl RequestBody {
    fn new(
        io: Rc<ClientIo>,
        limits: Limits,
        framing: Framing,
        awaits_continue: bool,
    ) -> RequestBody {
        RequestBody {
            io,
            decoder: RefCell::new(BodyDecoder::new(framing, &limits.wire)),
            limits,
            awaits_continue: Cell::new(awaits_continue),
            started: Cell::new(false),
            failed: Cell::new(None),
            lent: Cell::new(false),
            returned: Notify::new(),
        }
    }

    pub fn lend(&self) {
        self.lent.set(true);
    }

    pub fn give_back(&self) {
        self.lent.set(false);
        self.returned.notify_one();
    }

    fn is_read(&self) -> bool {
        self.decoder.borrow().is_end() || self.failed.get().is_some()
    }

    /// Whether the rest is little enough to be read, and certain to come.
    fn is_drainable(&self) -> bool {
        let decoder = self.decoder.borrow();
        self.failed.get().is_none()
            && (decoder.is_end()
                || !self.awaits_continue.get()
                    && decoder.expected_bytes() <= self.limits.max_drained_body)
    }

    async fn drain(&self) -> bool {
        if !self.is_drainable() {
            return false;
        }
        let mut left = self.limits.max_drained_body;
        loop {
            match poll_fn(|cx| self.poll_piece(cx)).await {
                None => return true,
                Some(Ok(Piece::Data(bytes))) if bytes.len() as u64 <= left => {
                    left -= bytes.len() as u64;
                }
                Some(Ok(Piece::Trailers(_))) => {}
                Some(_) => return false,
            }
        }
    }

    /// The next piece, in order; `None` at the body's end.
    pub fn poll_piece(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, RequestBodyError>>> {
        if !self.started.replace(true) {
            self.io.start_reading_body(self.limits.request_timeout);
        }
        let piece = ready!(self.poll_decoded(cx));
        match &piece {
            None => {
                self.io.stop_reading_body();
                self.returned.notify_one();
            }
            Some(Err(error)) => {
                self.failed.set(Some(*error));
                self.returned.notify_one();
            }
            Some(Ok(_)) => {}
        }
        Poll::Ready(piece)
    }

    fn poll_decoded(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, RequestBodyError>>> {
        if let Some(error) = self.failed.get() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let decoded = self
                .decoder
                .borrow_mut()
                .decode(&mut self.io.inbox().borrow_mut());
            match decoded {
                Ok(Decoded::Data(bytes)) => return Poll::Ready(Some(Ok(Piece::Data(bytes)))),
                Ok(Decoded::Trailers(fields)) => {
                    return Poll::Ready(Some(Ok(Piece::Trailers(fields))));
                }
                Ok(Decoded::End) => return Poll::Ready(None),
                Err(_) => return Poll::Ready(Some(Err(RequestBodyError::Malformed))),
                Ok(Decoded::NeedMore) => {}
            }
            if self.awaits_continue.replace(false)
                && self
                    .io
                    .push_interim(cx, b"HTTP/1.1 100 Continue\r\n\r\n")
                    .is_err()
            {
                return Poll::Ready(Some(Err(RequestBodyError::Gone)));
            }
            match ready!(self.io.poll_fill_paced(cx)) {
                Ok(0) => return Poll::Ready(Some(Err(RequestBodyError::Gone))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

impl From<std::io::Error> for RequestBodyError {
    fn from(error: std::io::Error) -> RequestBodyError {
        match is_timeout(&error) {
            true => RequestBodyError::TooSlow,
            false => RequestBodyError::Gone,
        }
    }
}
