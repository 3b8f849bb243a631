//! One HTTP/2 connection and the exchanges on it, by hyper.
//!
//! hyper checks framing, `content-length` against DATA, and flow control. It drops interim responses
//! without a word, so over HTTP/2 none are forwarded.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::connect::Io;
use super::pool::{Failure, Loss, Origin, Permit};
use super::{
    ErrorKind, Frame, Inner, OriginError, Phase, RequestBody, RequestBodySource, ResponseBody,
    Settings, SourceFailed, UpstreamRequest, UpstreamResponse,
};

/// Bytes an origin may send ahead of a slow reader: per stream, and per connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Streams of one connection before another connection is opened beside it.
const STREAMS_PER_CONNECTION: usize = 100;
/// A connection with requests on it that is silent for so long is asked for a sign of life, and given
/// as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A connection, shared by its exchanges. It ends gracefully when the last `Rc` goes.
pub(super) struct Connection {
    sender: http2::SendRequest<UploadBody>,
    origin: Rc<Origin>,
    /// Exchanges in flight.
    pub(super) streams: Cell<usize>,
    /// An exchange was begun on it.
    pub(super) used: Cell<bool>,
    idle_since: Cell<Instant>,
    /// Hands requests to the connection, and knows what the origin has said of it. Gone when the
    /// connection is: it holds the requests that nobody will take any more.
    driver: Rc<RefCell<Option<Driver>>>,
}

type Driver = http2::Connection<TokioIo<Io>, UploadBody, LocalExec>;

/// Runs a connection and its exchanges on this thread.
#[derive(Clone, Default)]
struct LocalExec(Rc<Executed>);

#[derive(Default)]
struct Executed {
    has_connection: Cell<bool>,
    /// The connection has read or written something.
    moved: Notify,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        // hyper's first task is the connection itself.
        if self.0.has_connection.replace(true) {
            tokio::task::spawn_local(future);
            return;
        }
        let executed = Rc::clone(&self.0);
        tokio::task::spawn_local(async move {
            let mut connection = std::pin::pin!(future);
            std::future::poll_fn(|cx| {
                let ended = connection.as_mut().poll(cx);
                executed.moved.notify_one();
                ended
            })
            .await;
        });
    }
}

impl Connection {
    pub(super) async fn open(io: Io, permit: Permit) -> Result<Rc<Self>, OriginError> {
        let origin = Rc::clone(permit.origin());
        let settings = &origin.settings;
        let executor = LocalExec::default();
        let mut builder = http2::Builder::new(executor.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // Until its SETTINGS have come.
            .initial_max_send_streams(0)
            .max_header_list_size(u32::try_from(settings.limits.max_head_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let failed = |message| OriginError::new(ErrorKind::Connect, message);
        let opening = async {
            let handshake = builder.handshake(TokioIo::new(io));
            let (sender, mut driver) = handshake.await.map_err(|e| failed(describe(&e)))?;
            while driver.current_max_send_streams() == 0 {
                tokio::select! {
                    ended = &mut driver => {
                        let why = ended.err().map(|error| describe(&error));
                        return Err(failed(why.unwrap_or_else(|| "closed before its SETTINGS".into())));
                    }
                    () = executor.0.moved.notified() => {}
                }
            }
            Ok((sender, Rc::new(RefCell::new(Some(driver)))))
        };
        let (sender, driver) = tokio::time::timeout(settings.connect_timeout, opening)
            .await
            .map_err(|_| OriginError::timeout(Phase::Connect))??;
        let driven = Rc::clone(&driver);
        tokio::task::spawn_local(async move {
            let driving = std::future::poll_fn(|cx| match &mut *driven.borrow_mut() {
                Some(driver) => Pin::new(driver).poll(cx),
                None => Poll::Ready(Ok(())),
            });
            if let Err(error) = driving.await {
                tracing::debug!(error = %describe(&error), "an HTTP/2 connection to an origin failed");
            }
            drop(driven.take());
            drop(permit);
        });
        Ok(Rc::new(Self {
            sender,
            origin,
            streams: Cell::new(0),
            used: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            driver,
        }))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Streams that the origin allows at a time, as it said last.
    fn capacity(&self) -> usize {
        let driver = self.driver.borrow();
        driver.as_ref().map_or(0, Driver::current_max_send_streams)
    }

    /// Whether one more exchange can begin at once.
    pub(super) fn has_room(&self) -> bool {
        self.streams.get() < self.capacity().min(STREAMS_PER_CONNECTION)
    }

    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }
}

/// One exchange in flight.
struct Stream(Rc<Connection>);

impl Stream {
    fn begin(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self(Rc::clone(connection))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let connection = &self.0;
        connection.streams.set(connection.streams.get() - 1);
        if connection.streams.get() == 0 {
            connection.idle_since.set(Instant::now());
            connection.origin.wake_reaper();
        }
    }
}

/// Sends one request and waits for its response's head.
pub(super) async fn exchange(
    connection: &Rc<Connection>,
    request: &UpstreamRequest,
    body: RequestBody,
) -> Result<UpstreamResponse, Failure> {
    let origin = &connection.origin;
    let settings = &origin.settings;
    let fatal = |error| Failure {
        error,
        loss: Loss::None,
    };
    let progress = Rc::new(Progress::default());
    if matches!(body, RequestBody::Empty) {
        progress.note(WaitsFor::Answer);
    }
    let message = compose(settings, request, body, &progress).map_err(fatal)?;

    let stream = Stream::begin(connection);
    let mut sender = connection.sender.clone();
    let mut response = std::pin::pin!(sender.send_request(message));
    let mut timer = std::pin::pin!(tokio::time::sleep_until(progress.check_at(settings)));
    let outcome = std::future::poll_fn(|cx| {
        if let Poll::Ready(outcome) = response.as_mut().poll(cx) {
            return Poll::Ready(outcome.map_err(|e| (classify(&e, &progress), is_refusal(&e))));
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let (at, phase) = progress.deadline(settings);
            if at <= Instant::now() {
                return Poll::Ready(Err((OriginError::timeout(phase), false)));
            }
            timer.as_mut().reset(progress.check_at(settings));
        }
    })
    .await;
    let response = outcome.map_err(|(error, is_refused)| {
        if matches!(error.kind, ErrorKind::Timeout(_)) {
            origin.forget_http2(connection);
        }
        Failure {
            error,
            loss: match is_refused {
                true => Loss::Refused,
                false => Loss::Unanswered,
            },
        }
    })?;

    let (head, incoming) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS || head.status.as_u16() >= 600 {
        return Err(fatal(OriginError::protocol("an impossible status")));
    }
    let content_length = content_length(&head.headers).map_err(fatal)?;
    let body = if incoming.is_end_stream() {
        Inner::Empty
    } else {
        Inner::Http2(Box::new(Body {
            incoming,
            timer: Box::pin(tokio::time::sleep(settings.read_timeout)),
            is_timer_set: false,
            progress,
            stream,
        }))
    };
    Ok(UpstreamResponse {
        status: head.status,
        version: head.version,
        headers: head.headers,
        content_length,
        close_delimited: false,
        body: ResponseBody(body),
        upgraded: None,
    })
}

fn compose(
    settings: &Settings,
    request: &UpstreamRequest,
    body: RequestBody,
    progress: &Rc<Progress>,
) -> Result<Request<UploadBody>, OriginError> {
    let unsendable = |e: http::Error| OriginError::new(ErrorKind::Unsendable, e.to_string());
    let target = PathAndQuery::from_maybe_shared(request.target.clone())
        .map_err(|e| unsendable(e.into()))?;
    if target.as_str().as_bytes() != &request.target[..] {
        return Err(OriginError::new(
            ErrorKind::Unsendable,
            "the target would be changed",
        ));
    }
    let uri = Uri::builder()
        .scheme(settings.scheme.as_str())
        .authority(&*request.authority)
        .path_and_query(target)
        .build()
        .map_err(unsendable)?;
    let mut message = Request::new(UploadBody::new(body, progress));
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = uri;
    let headers = message.headers_mut();
    headers.reserve(request.headers.len() + 1);
    for (name, value) in &request.headers {
        if !is_forbidden(name, value) {
            headers.append(name.clone(), value.clone());
        }
    }
    if let Some(length) = message.body().left {
        message
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(message)
}

/// RFC 9113 §8.2.2, and what is written from other knowledge.
fn is_forbidden(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "te" => value != "trailers",
        name => matches!(
            name,
            "host"
                | "expect"
                | "upgrade"
                | "connection"
                | "keep-alive"
                | "http2-settings"
                | "content-length"
                | "proxy-connection"
                | "transfer-encoding"
        ),
    }
}

fn content_length(headers: &http::HeaderMap) -> Result<Option<u64>, OriginError> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let digits = first.as_bytes();
    let number = std::str::from_utf8(digits)
        .ok()
        .filter(|_| digits.iter().all(u8::is_ascii_digit))
        .and_then(|digits| digits.parse().ok());
    match number {
        Some(number) if lines.next().is_none() => Ok(Some(number)),
        _ => Err(OriginError::protocol("Content-Length")),
    }
}

/// A response's body.
pub(super) struct Body {
    incoming: Incoming,
    timer: Pin<Box<Sleep>>,
    is_timer_set: bool,
    progress: Rc<Progress>,
    stream: Stream,
}

impl Body {
    pub(super) fn is_end(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, OriginError>>> {
        let origin = &self.stream.0.origin;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Pending => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => {
                    let mut error = classify(&error, &self.progress);
                    if error.kind == ErrorKind::Closed {
                        error.kind = ErrorKind::Truncated;
                    }
                    origin.counters.count(&error);
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    self.is_timer_set = false;
                    match frame.into_data() {
                        Ok(data) if data.is_empty() => continue,
                        Ok(data) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                        Err(frame) => match frame.into_trailers() {
                            Ok(trailers) => {
                                return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
                            }
                            Err(_) => continue,
                        },
                    }
                }
            }
            if !self.is_timer_set {
                self.is_timer_set = true;
                self.timer
                    .as_mut()
                    .reset(Instant::now() + origin.settings.read_timeout);
            }
            ready!(self.timer.as_mut().poll(cx));
            // Other streams of it may be well, but a new request should not bet on that.
            origin.forget_http2(&self.stream.0);
            let error = OriginError::timeout(Phase::Read);
            origin.counters.count(&error);
            return Poll::Ready(Some(Err(error)));
        }
    }
}

/// RFC 9113 §8.7: the origin has done nothing with the request.
fn is_refusal(error: &hyper::Error) -> bool {
    describe(error).contains("refused stream")
}

/// hyper's errors as ours. h2 tells a lost connection from a broken rule only by its words.
fn classify(error: &hyper::Error, progress: &Progress) -> OriginError {
    const LOST: [&str; 6] = [
        "broken pipe",
        "reset by peer",
        "connection closed",
        "unexpected eof",
        "refused stream",
        "not a result of an error",
    ];
    let message = describe(error);
    let words = message.to_lowercase();
    let is_lost = error.is_timeout()
        || error.is_closed()
        || error.is_canceled()
        || LOST.iter().any(|lost| words.contains(lost));
    match (progress.failed.get(), is_lost) {
        (Some(failed), _) => failed.into_error(),
        (None, true) => OriginError::new(ErrorKind::Closed, message),
        (None, false) => OriginError::new(ErrorKind::Protocol, message),
    }
}

fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Whom an upload waits for, and since when; shared between the upload and the exchange's timer.
struct Progress {
    since: Cell<Instant>,
    waits_for: Cell<WaitsFor>,
    failed: Cell<Option<SourceFailed>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    /// The origin, to take what was handed over.
    Origin,
    /// The client, for whom others keep the time.
    Client,
    /// The origin, to answer: everything was handed over.
    Answer,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            since: Cell::new(Instant::now()),
            waits_for: Cell::new(WaitsFor::Origin),
            failed: Cell::new(None),
        }
    }
}

impl Progress {
    fn note(&self, waits_for: WaitsFor) {
        self.since.set(Instant::now());
        self.waits_for.set(waits_for);
    }

    /// When to look at the deadline next: no later than the earliest that may come to hold by then.
    fn check_at(&self, settings: &Settings) -> Instant {
        self.deadline(settings)
            .0
            .min(Instant::now() + settings.first_byte_timeout)
    }

    fn deadline(&self, settings: &Settings) -> (Instant, Phase) {
        let since = self.since.get();
        match self.waits_for.get() {
            WaitsFor::Origin => (since + settings.write_timeout, Phase::Write),
            WaitsFor::Answer => (since + settings.first_byte_timeout, Phase::FirstByte),
            WaitsFor::Client => (Instant::now() + settings.write_timeout, Phase::Write),
        }
    }
}

/// A request's body as hyper reads it.
struct UploadBody {
    source: Option<Pin<Box<dyn RequestBodySource>>>,
    /// What is left of an announced length.
    left: Option<u64>,
    progress: Rc<Progress>,
}

impl UploadBody {
    fn new(body: RequestBody, progress: &Rc<Progress>) -> Self {
        let progress = Rc::clone(progress);
        match body {
            RequestBody::Empty => Self {
                source: None,
                left: None,
                progress,
            },
            RequestBody::Stream { source, length } => Self {
                source: Some(source),
                left: length,
                progress,
            },
        }
    }

    fn fail(
        &mut self,
        failed: SourceFailed,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, SourceFailed>>> {
        self.progress.failed.set(Some(failed));
        self.source = None;
        Poll::Ready(Some(Err(failed)))
    }
}

impl http_body::Body for UploadBody {
    type Data = Bytes;
    type Error = SourceFailed;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, SourceFailed>>> {
        let this = self.get_mut();
        let Some(source) = &mut this.source else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = source.as_mut().poll_frame(cx) else {
            this.progress.note(WaitsFor::Client);
            return Poll::Pending;
        };
        this.progress.note(WaitsFor::Origin);
        match frame {
            Some(Ok(Frame::Data(data))) => {
                if let Some(left) = &mut this.left {
                    match left.checked_sub(data.len() as u64) {
                        Some(rest) => *left = rest,
                        None => return this.fail(SourceFailed::RequestBody),
                    }
                }
                Poll::Ready(Some(Ok(http_body::Frame::data(data))))
            }
            Some(Ok(Frame::Trailers(trailers))) => {
                Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers))))
            }
            None if this.left.is_none_or(|left| left == 0) => {
                this.source = None;
                this.progress.note(WaitsFor::Answer);
                Poll::Ready(None)
            }
            None => this.fail(SourceFailed::RequestBody),
            Some(Err(failed)) => this.fail(failed),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }
}
