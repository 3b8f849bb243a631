//! HTTP/2: the same routes, told honestly but for what a head or a reset can say.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{Answer, Framing, Kind};
use crate::body::hash_on;
use crate::counts::Ledger;
use crate::http1::echo;
use crate::lie;
use crate::origin::{Plan, Shared};
use crate::reply::{End, Reply, Step};
use crate::request::{BODY_KEPT_BYTES, Request};

const FRAME_BYTES: u64 = 64 * 1024;
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Whether the client speaks HTTP/2 from its first byte. Takes nothing from the stream.
pub(crate) async fn sniff(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
    let mut seen = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 || seen[..length] != PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        // `peek` does not wait for more than what is there.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve<S>(shared: Arc<Shared>, stream: S, id: u64)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streams = shared.http2_streams;
    let service = service_fn(move |request| exchange(shared.clone(), request, id));
    // The ways to end are all told by the bytes; there is nobody to report an error to.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(streams)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Counts an exchange as abandoned unless it is told otherwise.
struct Account {
    ledger: Ledger,
    finished: bool,
}

impl Drop for Account {
    fn drop(&mut self) {
        self.ledger.ended(self.finished);
    }
}

async fn exchange(
    shared: Arc<Shared>,
    received: http::Request<Incoming>,
    id: u64,
) -> Result<http::Response<ReplyBody>, Infallible> {
    let (head, mut incoming) = received.into_parts();
    let target = head
        .uri
        .path_and_query()
        .map_or("*", |target| target.as_str())
        .to_owned();
    let mut request = Shared::request(head.method, target, head.headers, id);
    request.version = Version::HTTP_2;
    if let Some(authority) = head.uri.authority()
        && !request.headers.contains_key("host")
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        request.headers.insert("host", value);
    }
    let account = Account {
        ledger: shared.note(&mut request),
        finished: false,
    };
    let answer = match shared.plan(&request) {
        Plan::Answer(answer) => answer,
        Plan::Dynamic(make) => {
            receive(&shared, &mut request, &mut incoming, &account.ledger).await;
            Box::new(make(&request))
        }
    };
    let mirrors = answer.kind == Kind::Mirror;
    if !answer.early && !mirrors {
        receive(&shared, &mut request, &mut incoming, &account.ledger).await;
    }
    tokio::time::sleep(answer.delay).await;
    if let Some(gate) = &answer.gate {
        gate.pass().await;
    }
    let reply = match (answer.kind, answer.lie) {
        (Kind::Echo, _) => Reply::new(&answer.clone().body(echo(&request)), &request),
        (Kind::Plain, Some(told)) => {
            lie::lying_reply(told, &answer, &request, account.ledger.nth())
        }
        (Kind::Plain | Kind::Mirror, _) if answer.raw.is_none() => Reply::new(&answer, &request),
        _ => Reply::new(&Answer::status(500).body("not over HTTP/2\n"), &request),
    };
    account.ledger.status(reply.status);
    let (frames, receiver) = mpsc::channel(1);
    let mut response = http::Response::new(ReplyBody {
        frames: Some(receiver),
    });
    *response.status_mut() = match StatusCode::from_u16(reply.status) {
        Ok(status) if reply.status >= 200 => status,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    *response.headers_mut() = fields(&reply.fields);
    for name in [
        "connection",
        "keep-alive",
        "transfer-encoding",
        "upgrade",
        "proxy-connection",
    ] {
        response.headers_mut().remove(name);
    }
    if request.method == Method::HEAD
        || (reply.body.is_empty() && !mirrors && reply.trailers.is_empty())
    {
        response.body_mut().frames = None;
    }
    let has_body = response.body().frames.is_some();
    tokio::spawn(async move {
        let mut account = account;
        let sender = Sender {
            frames,
            ledger: account.ledger.clone(),
        };
        if answer.early && !mirrors {
            // The upload goes on while the answer is sent.
            let (ledger, mut request) = (account.ledger.clone(), request.clone());
            let shared = shared.clone();
            tokio::spawn(
                async move { receive(&shared, &mut request, &mut incoming, &ledger).await },
            );
            account.finished = !has_body || sender.send(&answer, &reply).await.is_some();
        } else if mirrors {
            account.finished = sender
                .mirror(&shared, &mut request, incoming)
                .await
                .is_some();
        } else {
            account.finished = !has_body || sender.send(&answer, &reply).await.is_some();
        }
    });
    Ok(response)
}

async fn receive(shared: &Shared, request: &mut Request, incoming: &mut Incoming, ledger: &Ledger) {
    let mut kept = BytesMut::new();
    while let Some(Ok(frame)) = incoming.frame().await {
        match frame.into_data() {
            Ok(data) => {
                let room = BODY_KEPT_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(&data[..data.len().min(room)]);
                note_piece(request, &data, ledger);
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    request.trailers = trailers;
                }
            }
        }
    }
    request.body = kept.freeze();
    shared.note_body(request);
}

fn note_piece(request: &mut Request, data: &Bytes, ledger: &Ledger) {
    request.body_bytes += data.len() as u64;
    request.body_hash = hash_on(request.body_hash, data);
    ledger.uploaded(data.len() as u64);
}

fn fields(list: &[(String, Vec<u8>)]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(list.len());
    for (name, value) in list {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_bytes(value),
        ) {
            // A head beyond what a map holds is cut: HTTP/2 peers refuse it anyway.
            if map.try_append(name, value).is_err() {
                break;
            }
        }
    }
    map
}

/// The body that hyper reads, fed by a [`Sender`]. Without a feed it is empty.
struct ReplyBody {
    frames: Option<mpsc::Receiver<Result<Frame<Bytes>, Cut>>>,
}

/// The body ends before its time; the stream is reset.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Cut {}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut self.frames {
            Some(frames) => frames.poll_recv(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none()
    }
}

struct Sender {
    frames: mpsc::Sender<Result<Frame<Bytes>, Cut>>,
    ledger: Ledger,
}

impl Sender {
    /// Nothing when the client has left.
    async fn send(&self, answer: &Answer, reply: &Reply) -> Option<()> {
        let (started, mut sent) = (Instant::now(), 0);
        let mut gates = answer.gates_at.iter().peekable();
        let piece = answer
            .throttle
            .map_or(FRAME_BYTES, |rate| (rate / 20).clamp(1, FRAME_BYTES));
        for step in &reply.body {
            match step {
                Step::Text(bytes) => self.data(bytes.clone()).await?,
                Step::Source(range) => {
                    let mut at = range.start;
                    loop {
                        while let Some((held, gate)) = gates.next_if(|(held, _)| *held <= at) {
                            if *held == at && (at < range.end || at == reply.source.length()) {
                                self.unless_gone(gate.pass()).await?;
                            }
                        }
                        if at >= range.end {
                            break;
                        }
                        let mut end = range.end.min(at + piece);
                        if let Some((held, _)) = gates.peek() {
                            end = end.min(*held);
                        }
                        self.data(reply.source.bytes(at..end)).await?;
                        sent += end - at;
                        at = end;
                        if let Some(rate) = answer.throttle {
                            let due = started + Duration::from_secs_f64(sent as f64 / rate as f64);
                            self.unless_gone(tokio::time::sleep_until(due)).await?;
                        }
                    }
                }
                Step::Pause(pause) => self.unless_gone(tokio::time::sleep(*pause)).await?,
                Step::Raw(_) | Step::Repeat(..) => {}
            }
        }
        let declared = reply
            .get("content-length")
            .and_then(|v| v.parse::<u64>().ok());
        let whole = match reply.framing {
            Framing::Length | Framing::Bare => {
                declared.is_none_or(|length| length == reply.body_length())
            }
            Framing::Chunked(_) => reply.last_chunk,
            Framing::Close => true,
        };
        match reply.end {
            End::Hold => return self.unless_gone(std::future::pending()).await,
            End::Reset => return self.frames.send(Err(Cut)).await.ok(),
            End::Close if !whole => return self.frames.send(Err(Cut)).await.ok(),
            End::Close | End::Next => {}
        }
        if !reply.trailers.is_empty() {
            self.frames
                .send(Ok(Frame::trailers(fields(&reply.trailers))))
                .await
                .ok()?;
        }
        Some(())
    }

    async fn mirror(
        &self,
        shared: &Shared,
        request: &mut Request,
        mut incoming: Incoming,
    ) -> Option<()> {
        while let Some(frame) = incoming.frame().await {
            if let Ok(data) = frame.ok()?.into_data() {
                note_piece(request, &data, &self.ledger);
                self.data(data).await?;
            }
        }
        shared.note_body(request);
        Some(())
    }

    async fn data(&self, bytes: Bytes) -> Option<()> {
        let length = bytes.len() as u64;
        self.frames.send(Ok(Frame::data(bytes))).await.ok()?;
        self.ledger.sent(length);
        Some(())
    }

    async fn unless_gone<T>(&self, event: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            happened = event => Some(happened),
            () = self.frames.closed() => None,
        }
    }
}
