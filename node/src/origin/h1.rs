//! One HTTP/1.1 connection and the exchange on it.

use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{HeaderMap, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use super::connect::Io;
use super::pool::{Failure, Loss, Origin, Permit};
use super::{
    ErrorKind, Frame, Inner, OriginError, Phase, RequestBody, RequestBodySource, ResponseBody,
    Settings, SourceFailed, UpstreamRequest, UpstreamResponse,
};
use crate::wire::encode::{self, Persistence};
use crate::wire::{self, BodyDecoder, Decoded, Framing};

/// The read buffer to start with. It doubles whenever the origin fills it.
const FIRST_READ_BYTES: usize = 16 << 10;
/// The least for a body that is known to be larger.
const BODY_READ_BYTES: usize = 64 << 10;
const MOST_READ_BYTES: usize = 256 << 10;

/// A connection with no exchange on it, or the one whose exchange owns it.
pub(super) struct Connection {
    io: Io,
    /// Received and not yet understood.
    buf: BytesMut,
    /// How much the next buffer should hold.
    read_bytes: usize,
    /// One timer for all phases, so that none is allocated per request.
    timer: Pin<Box<Sleep>>,
    is_timer_set: bool,
    /// Everything of the request at hand reached the origin.
    is_request_whole: bool,
    permit: Permit,
}

impl Connection {
    pub(super) fn new(io: Io, permit: Permit) -> Self {
        Self {
            io,
            buf: BytesMut::new(),
            read_bytes: FIRST_READ_BYTES,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            is_timer_set: false,
            is_request_whole: true,
            permit,
        }
    }

    /// Closes the connection and keeps its slot.
    pub(super) fn into_permit(self) -> Permit {
        self.permit
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.buf.is_empty() && self.io.is_quiet()
    }

    fn origin(&self) -> &Rc<Origin> {
        self.permit.origin()
    }

    /// Back to the pool. An unused connection holds no buffer.
    fn check_in(mut self) {
        self.buf = BytesMut::new();
        self.read_bytes = FIRST_READ_BYTES;
        let origin = Rc::clone(self.origin());
        origin.check_in(self);
    }

    /// Reads what is there into the buffer. `expected` bytes are known to come, 0 when unknown.
    fn poll_fill(&mut self, cx: &mut Context<'_>, expected: u64) -> Poll<io::Result<usize>> {
        let spare = self.buf.capacity() - self.buf.len();
        if spare < self.read_bytes / 4 {
            // A body's end is often known: no more is reserved than will come, plus the little that
            // may follow it (a chunk's end, a pipelined mistake).
            let rest = usize::try_from(expected)
                .unwrap_or(usize::MAX)
                .saturating_add(64);
            let want = match expected {
                0 => self.read_bytes,
                _ => self.read_bytes.max(BODY_READ_BYTES).min(rest),
            };
            // Not `reserve`, which doubles what it has.
            if spare < want && !self.buf.try_reclaim(want) {
                let mut fresh = BytesMut::with_capacity(self.buf.len() + want);
                fresh.extend_from_slice(&self.buf);
                self.buf = fresh;
            }
        }
        let spare = self.buf.capacity() - self.buf.len();
        let read = ready!(pin!(self.io.read_buf(&mut self.buf)).poll(cx))?;
        if read == spare {
            self.read_bytes = (self.read_bytes * 2).min(MOST_READ_BYTES);
        }
        Poll::Ready(Ok(read))
    }

    /// Pending until `after` has passed since the timer was last cleared by `is_timer_set = false`.
    fn poll_timer(&mut self, cx: &mut Context<'_>, after: Duration) -> Poll<()> {
        if !self.is_timer_set {
            self.is_timer_set = true;
            self.timer.as_mut().reset(Instant::now() + after);
        }
        self.timer.as_mut().poll(cx)
    }
}

/// Sends one request and waits for its final response's head.
pub(super) async fn exchange(
    mut connection: Connection,
    request: &UpstreamRequest,
    body: RequestBody,
    interim: &mut dyn FnMut(StatusCode, HeaderMap),
) -> Result<UpstreamResponse, Failure> {
    let origin = Rc::clone(connection.origin());
    let settings = &*origin.settings;
    let framing = match &body {
        RequestBody::Empty => Framing::None,
        RequestBody::Stream {
            length: Some(length),
            ..
        } => Framing::Length(*length),
        RequestBody::Stream { length: None, .. } => Framing::Chunked,
    };
    let mut head = BytesMut::with_capacity(1024);
    let persistence = if request.upgrade {
        Persistence::Upgrade
    } else {
        Persistence::Default
    };
    encode::request_head(
        &mut head,
        &request.method,
        &request.target,
        request.authority.as_bytes(),
        &request.headers,
        framing,
        persistence,
    );
    match write(&mut connection.io, &mut head, settings.write_timeout).await {
        Ok(()) => {}
        Err(WriteFailed::Timeout) => {
            return Err(Failure {
                error: OriginError::timeout(Phase::Write),
                loss: Loss::Unanswered,
            });
        }
        // The origin may have said why before it closed.
        Err(WriteFailed::Io) => connection.is_request_whole = false,
    }
    let mut upload = match body {
        RequestBody::Empty => None,
        RequestBody::Stream { source, .. } => {
            let io = connection.io.clone();
            let write_timeout = settings.write_timeout;
            Some(Upload::start(upload(io, source, framing, write_timeout)))
        }
    };

    connection.is_timer_set = false;
    let mut interim_count = 0;
    let mut has_answer = false;
    loop {
        let failed = |error, has_answer: bool| Failure {
            error,
            loss: match has_answer {
                true => Loss::None,
                false => Loss::Unanswered,
            },
        };
        let parsed =
            wire::parse_response_head(&mut connection.buf, &request.method, &settings.limits);
        match parsed {
            Err(error) => return Err(failed(OriginError::head(error), true)),
            Ok(Some(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                let is_asked = request.upgrade && head.headers.contains_key(header::UPGRADE);
                if !is_asked {
                    return Err(failed(
                        OriginError::protocol("a 101 nobody asked for"),
                        true,
                    ));
                }
                return Ok(switched(connection, head));
            }
            Ok(Some(head)) if head.status.is_informational() => {
                has_answer = true;
                interim_count += 1;
                origin.counters.interim_responses.fetch_add(1, Relaxed);
                if interim_count > settings.max_interim {
                    let error =
                        OriginError::new(ErrorKind::HeadTooLarge, "too many interim responses");
                    return Err(failed(error, true));
                }
                // 100 answers an expectation that is never passed on.
                if head.status != StatusCode::CONTINUE {
                    interim(head.status, head.headers);
                }
                continue;
            }
            Ok(Some(head)) => return Ok(respond(connection, head, upload, settings)),
            Ok(None) => {}
        }
        let filled = std::future::poll_fn(|cx| {
            if let Some(running) = &mut upload
                && let Poll::Ready(outcome) = Pin::new(running).poll(cx)
            {
                // The wait for the answer begins when the request is whole.
                connection.is_timer_set = false;
                upload = None;
                connection.is_request_whole &= outcome.is_ok();
                if let Some(error) = outcome.err().and_then(UploadFailed::into_error) {
                    return Poll::Ready(Err(error));
                }
            }
            if let Poll::Ready(read) = connection.poll_fill(cx, 0) {
                return Poll::Ready(read.or_else(|error| match error.kind() {
                    // Over TLS, an end without a farewell.
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Ok(0),
                    _ => Err(OriginError::closed(&error)),
                }));
            }
            if upload.is_none() {
                ready!(connection.poll_timer(cx, settings.first_byte_timeout));
                return Poll::Ready(Err(OriginError::timeout(Phase::FirstByte)));
            }
            Poll::Pending
        })
        .await;
        match filled {
            Ok(0) => {
                let is_begun = has_answer || !connection.buf.is_empty();
                let kind = if is_begun {
                    ErrorKind::Truncated
                } else {
                    ErrorKind::Closed
                };
                let message = "the connection ended before the response's head";
                return Err(failed(OriginError::new(kind, message), is_begun));
            }
            Ok(_) => has_answer = true,
            Err(error) => {
                return Err(failed(error, has_answer));
            }
        }
    }
}

/// The response to a request whose head came.
fn respond(
    mut connection: Connection,
    head: wire::ResponseHead,
    upload: Option<Upload>,
    settings: &Settings,
) -> UpstreamResponse {
    let content_length = head.content_length();
    connection.is_timer_set = false;
    let mut body = Body {
        decoder: BodyDecoder::new(head.framing, &settings.limits),
        exchange: Some(Exchange {
            connection,
            upload,
            keep_alive: head.keep_alive,
            is_refusal: head.status.is_client_error() || head.status.is_server_error(),
        }),
    };
    let body = if body.decoder.is_end() {
        body.finish();
        Inner::Empty
    } else {
        Inner::Http1(Box::new(body))
    };
    UpstreamResponse {
        status: head.status,
        version: head.version,
        headers: head.headers,
        content_length,
        close_delimited: head.framing == Framing::UntilClose,
        body: ResponseBody(body),
        upgraded: None,
    }
}

fn switched(connection: Connection, head: wire::ResponseHead) -> UpstreamResponse {
    let Connection {
        io, buf, permit, ..
    } = connection;
    UpstreamResponse {
        status: head.status,
        version: head.version,
        headers: head.headers,
        content_length: None,
        close_delimited: false,
        body: ResponseBody::empty(),
        upgraded: Some(Upgraded {
            io,
            buf,
            _permit: permit,
        }),
    }
}

/// A response's body.
pub(super) struct Body {
    decoder: BodyDecoder,
    /// Until the body's end.
    exchange: Option<Exchange>,
}

struct Exchange {
    connection: Connection,
    upload: Option<Upload>,
    keep_alive: bool,
    /// 4xx or 5xx: the origin does not want what of the request it has not read.
    is_refusal: bool,
}

impl Body {
    pub(super) fn is_end(&self) -> bool {
        self.exchange.is_none()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, OriginError>>> {
        let frame = ready!(self.poll_decoded(cx));
        match &frame {
            Some(Err(error)) => {
                if let Some(exchange) = self.exchange.take() {
                    exchange.connection.origin().counters.count(error);
                }
            }
            // At the last byte, not when somebody asks for one more: the slot is free that much
            // sooner.
            _ if self.decoder.is_end() => self.finish(),
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn poll_decoded(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, OriginError>>> {
        let Some(Exchange {
            connection, upload, ..
        }) = &mut self.exchange
        else {
            return Poll::Ready(None);
        };
        loop {
            match self.decoder.decode(&mut connection.buf) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Decoded::Trailers(fields)) => {
                    return Poll::Ready(Some(Ok(Frame::Trailers(fields))));
                }
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::NeedMore) => {}
                Err(error) => return Poll::Ready(Some(Err(OriginError::body(error)))),
            }
            if let Some(running) = upload
                && let Poll::Ready(outcome) = Pin::new(running).poll(cx)
            {
                *upload = None;
                connection.is_request_whole &= outcome.is_ok();
                if let Some(error) = outcome.err().and_then(UploadFailed::into_error) {
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match connection.poll_fill(cx, self.decoder.expected_bytes()) {
                Poll::Ready(Ok(0)) => {
                    if let Err(error) = self.decoder.connection_ended() {
                        return Poll::Ready(Some(Err(OriginError::body(error))));
                    }
                }
                Poll::Ready(Ok(_)) => connection.is_timer_set = false,
                // A reset, or a TLS stream that ended without saying so.
                Poll::Ready(Err(error)) => {
                    let error = OriginError::new(ErrorKind::Truncated, error.to_string());
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Pending => {
                    let read_timeout = connection.origin().settings.read_timeout;
                    ready!(connection.poll_timer(cx, read_timeout));
                    return Poll::Ready(Some(Err(OriginError::timeout(Phase::Read))));
                }
            }
        }
    }

    /// The response is whole: what becomes of its connection.
    fn finish(&mut self) {
        let Some(exchange) = self.exchange.take() else {
            return;
        };
        let Exchange {
            connection,
            upload,
            keep_alive,
            is_refusal,
        } = exchange;
        match upload {
            None => {
                if keep_alive && connection.is_request_whole && connection.buf.is_empty() {
                    connection.check_in();
                }
            }
            Some(_) if is_refusal => {}
            // The origin answered first and still reads; it and the client keep their own time.
            Some(upload) => {
                tokio::task::spawn_local(async move {
                    if upload.await.is_ok() && keep_alive && connection.buf.is_empty() {
                        connection.check_in();
                    }
                });
            }
        }
    }
}

/// A connection that speaks another protocol now. Holds its slot until it is dropped.
pub struct Upgraded {
    io: Io,
    /// What came behind the 101.
    buf: BytesMut,
    _permit: Permit,
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buf.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let n = this.buf.len().min(buf.remaining());
        buf.put_slice(&this.buf[..n]);
        this.buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A running upload; dropping it stops it.
struct Upload(JoinHandle<Result<(), UploadFailed>>);

const BROKEN: UploadFailed = UploadFailed::Source(SourceFailed::RequestBody);

enum UploadFailed {
    Source(SourceFailed),
    Write(WriteFailed),
}

enum WriteFailed {
    Timeout,
    Io,
}

impl UploadFailed {
    /// `None` for a failed write: the origin may have answered before it stopped reading, and if not,
    /// reading finds out.
    fn into_error(self) -> Option<OriginError> {
        match self {
            Self::Source(failed) => Some(failed.into_error()),
            Self::Write(WriteFailed::Timeout) => Some(OriginError::timeout(Phase::Write)),
            Self::Write(WriteFailed::Io) => None,
        }
    }
}

impl Upload {
    fn start(upload: impl Future<Output = Result<(), UploadFailed>> + 'static) -> Self {
        Self(tokio::task::spawn_local(upload))
    }
}

impl Future for Upload {
    type Output = Result<(), UploadFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A task that ended without a result was a source that panicked.
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|ended| ended.unwrap_or(Err(BROKEN)))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn upload(
    mut io: Io,
    mut source: Pin<Box<dyn RequestBodySource>>,
    framing: Framing,
    write_timeout: Duration,
) -> Result<(), UploadFailed> {
    let mut left = match framing {
        Framing::Length(length) => Some(length),
        _ => None,
    };
    let mut trailers = HeaderMap::new();
    let mut line = BytesMut::new();
    loop {
        let frame = std::future::poll_fn(|cx| source.as_mut().poll_frame(cx)).await;
        match (frame, &mut left) {
            (Some(Err(failed)), _) => return Err(UploadFailed::Source(failed)),
            (Some(Ok(Frame::Trailers(fields))), _) => trailers = fields,
            (Some(Ok(Frame::Data(data))), _) if data.is_empty() => {}
            (Some(Ok(Frame::Data(mut data))), Some(left)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BROKEN)?;
                write(&mut io, &mut data, write_timeout)
                    .await
                    .map_err(UploadFailed::Write)?;
            }
            (Some(Ok(Frame::Data(data))), None) => {
                encode::chunk_start(&mut line, data.len());
                let mut chunk = line.split().chain(data).chain(encode::CHUNK_END);
                write(&mut io, &mut chunk, write_timeout)
                    .await
                    .map_err(UploadFailed::Write)?;
            }
            (None, Some(0)) => return Ok(()),
            (None, Some(_)) => return Err(BROKEN),
            (None, None) => {
                encode::last_chunk(&mut line, &trailers);
                return write(&mut io, &mut line, write_timeout)
                    .await
                    .map_err(UploadFailed::Write);
            }
        }
    }
}

/// Writes all of `bytes` within the timeout.
async fn write(io: &mut Io, bytes: &mut impl Buf, timeout: Duration) -> Result<(), WriteFailed> {
    let writing = async {
        io.write_all_buf(bytes).await?;
        io.flush().await
    };
    match tokio::time::timeout(timeout, writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(WriteFailed::Io),
        Err(_) => Err(WriteFailed::Timeout),
    }
}
