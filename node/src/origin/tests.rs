//! Plays between this client and origins that follow a script, on real sockets.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::BytesMut;
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use super::*;

/// Runs a play on one thread; one that hangs fails.
fn play<T>(play: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(20), play).await };
    runtime
        .block_on(LocalSet::new().run_until(limited))
        .expect("the play hangs")
}

/// A pool and the settings of a scripted origin.
struct Stage {
    listener: TcpListener,
    settings: Arc<Settings>,
    pool: OriginPool,
    counters: Arc<Counters>,
}

impl Stage {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut settings = Settings::new(Scheme::Http, "127.0.0.1", port);
        change(&mut settings);
        let counters = Arc::new(Counters::default());
        let pool = OriginPool::new(Arc::clone(&counters));
        Self {
            listener,
            settings: Arc::new(settings),
            pool,
            counters,
        }
    }

    async fn accept(&self) -> Peer {
        let (stream, address) = self.listener.accept().await.unwrap();
        Peer {
            stream,
            address,
            buf: BytesMut::new(),
        }
    }

    /// Starts a request; it runs while the script goes on.
    fn send(&self, request: UpstreamRequest) -> JoinHandle<Outcome> {
        let (pool, settings) = (self.pool.clone(), Arc::clone(&self.settings));
        tokio::task::spawn_local(async move {
            let mut interim = Vec::new();
            let mut note = |status: StatusCode, headers| interim.push((status, headers));
            let result = pool.send(&settings, request, &mut note).await;
            Outcome { result, interim }
        })
    }

    fn get(&self, path: &'static str) -> JoinHandle<Outcome> {
        self.send(request(Method::GET, path))
    }

    /// One request, answered with `bytes` and then the end of the connection.
    async fn exchange(&self, request: UpstreamRequest, bytes: &[u8]) -> Outcome {
        let outcome = self.send(request);
        let mut peer = self.accept().await;
        peer.request().await;
        peer.say(bytes).await;
        drop(peer);
        outcome.await.unwrap()
    }
}

struct Outcome {
    result: Result<UpstreamResponse, OriginError>,
    interim: Vec<(StatusCode, HeaderMap)>,
}

impl Outcome {
    fn response(self) -> UpstreamResponse {
        self.result.unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(self) -> OriginError {
        match self.result {
            Ok(response) => panic!("a response: {}", response.status),
            Err(error) => error,
        }
    }
}

/// The origin's end of a connection.
struct Peer {
    stream: TcpStream,
    address: SocketAddr,
    buf: BytesMut,
}

impl Peer {
    /// The next request's head as it was sent.
    async fn request(&mut self) -> String {
        loop {
            if let Some(at) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.buf.split_to(at + 4);
                return String::from_utf8(head.to_vec()).unwrap();
            }
            let n = self.stream.read_buf(&mut self.buf).await.unwrap();
            assert_ne!(n, 0, "the client left: {:?}", self.buf);
        }
    }

    async fn read(&mut self, n: usize) -> Vec<u8> {
        while self.buf.len() < n {
            assert_ne!(
                self.stream.read_buf(&mut self.buf).await.unwrap(),
                0,
                "{:?}",
                self.buf
            );
        }
        self.buf.split_to(n).to_vec()
    }

    async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Answers requests with their own path as the body.
    async fn echo_path(&mut self) {
        let head = self.request().await;
        let path = head.split(' ').nth(1).unwrap();
        self.say(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        ))
        .await;
    }

    /// Waits until the client has closed.
    async fn closed(mut self) {
        loop {
            match self.stream.read_buf(&mut self.buf).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

fn request(method: Method, path: &'static str) -> UpstreamRequest {
    UpstreamRequest::new(method, Bytes::from_static(path.as_bytes()), "o.example")
}

/// Data bytes and trailers, or the error that ended the body.
async fn read_all(mut response: UpstreamResponse) -> Result<(Vec<u8>, HeaderMap), OriginError> {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = response.body.frame().await {
        match frame? {
            Frame::Data(data) => bytes.extend_from_slice(&data),
            Frame::Trailers(fields) => trailers = fields,
        }
    }
    assert!(response.body.is_end());
    assert!(response.body.frame().await.is_none());
    Ok((bytes, trailers))
}

async fn text(response: UpstreamResponse) -> String {
    String::from_utf8(read_all(response).await.unwrap().0).unwrap()
}

/// A request body that is fed by the test.
struct Feed(mpsc::UnboundedReceiver<Result<Frame, SourceFailed>>);

type Feeder = mpsc::UnboundedSender<Result<Frame, SourceFailed>>;

impl RequestBodySource for Feed {
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, SourceFailed>>> {
        self.0.poll_recv(cx)
    }
}

fn post(path: &'static str, length: Option<u64>) -> (UpstreamRequest, Feeder) {
    let (feeder, feed) = mpsc::unbounded_channel();
    let mut request = request(Method::POST, path);
    request.body = RequestBody::Stream {
        source: Box::pin(Feed(feed)),
        length,
    };
    (request, feeder)
}

fn data(text: &'static str) -> Result<Frame, SourceFailed> {
    Ok(Frame::Data(Bytes::from_static(text.as_bytes())))
}

#[test]
fn a_request_is_written_as_it_was_asked() {
    play(async {
        let stage = Stage::new().await;
        let mut asked = request(Method::GET, "/a//b/../%2e?c&d;e");
        asked.headers.insert("x-a", HeaderValue::from_static("1"));
        asked
            .headers
            .insert("connection", HeaderValue::from_static("x-a"));
        asked
            .headers
            .insert("transfer-encoding", HeaderValue::from_static("chunked"));
        asked
            .headers
            .insert("upgrade", HeaderValue::from_static("h2c"));
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        let head = peer.request().await;
        assert_eq!(
            head,
            "GET /a//b/../%2e?c&d;e HTTP/1.1\r\nhost: o.example\r\nx-a: 1\r\n\r\n"
        );
        peer.say("HTTP/1.1 200 OK\r\nX-B: 2\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        let response = outcome.await.unwrap().response();
        assert_eq!(
            (response.status, response.version),
            (StatusCode::OK, Version::HTTP_11)
        );
        assert_eq!(response.headers["x-b"], "2");
        assert_eq!(response.content_length, Some(2));
        assert!(!response.close_delimited);
        assert_eq!(text(response).await, "hi");
    });
}

/// Clean exchanges of every framing leave a connection that is used again.
#[test]
fn a_clean_connection_is_used_again() {
    play(async {
        let stage = Stage::new().await;
        let table = [
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                "hi",
            ),
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                "",
            ),
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                "hi",
            ),
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n",
                "x",
            ),
            (
                Method::HEAD,
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
                "",
            ),
            (
                Method::GET,
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
                "",
            ),
            (Method::DELETE, "HTTP/1.1 204 No Content\r\n\r\n", ""),
            (
                Method::GET,
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
                "hi",
            ),
            (
                Method::GET,
                "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nhi",
                "hi",
            ),
        ];
        let mut peer = None;
        for (method, answer, body) in &table {
            let outcome = stage.send(request(method.clone(), "/"));
            let peer = match &mut peer {
                Some(peer) => peer,
                none => none.insert(stage.accept().await),
            };
            peer.request().await;
            peer.say(answer).await;
            assert_eq!(
                text(outcome.await.unwrap().response()).await,
                *body,
                "{answer:?}"
            );
        }
        assert_eq!(stage.counters.connections_opened.load(Relaxed), 1);
        assert_eq!(
            stage.counters.connections_reused.load(Relaxed),
            table.len() as u64 - 1
        );
        stage.pool.close_idle();
        peer.unwrap().closed().await;
        assert_eq!(stage.counters.open.load(Relaxed), 0);
    });
}

#[test]
fn a_doubtful_connection_is_not_used_again() {
    play(async {
        let stage = Stage::new().await;
        let table = [
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
                "hi",
            ),
            (
                Method::GET,
                "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                "hi",
            ),
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!",
                "hi",
            ),
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
                "hi",
            ),
            (
                Method::GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\n",
                "",
            ),
            (
                Method::HEAD,
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                "",
            ),
            (
                Method::GET,
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nhi",
                "",
            ),
            (
                Method::GET,
                "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
                "",
            ),
            (
                Method::GET,
                "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
                "",
            ),
        ];
        for (method, answer, body) in &table {
            let outcome = stage.send(request(method.clone(), "/"));
            let mut peer = stage.accept().await;
            peer.request().await;
            peer.say(answer).await;
            assert_eq!(
                text(outcome.await.unwrap().response()).await,
                *body,
                "{answer:?}"
            );
            peer.closed().await;
        }
        assert_eq!(stage.counters.connections_reused.load(Relaxed), 0);
        assert_eq!(stage.counters.open.load(Relaxed), 0);
    });
}

/// Bytes that come while a connection is unused never become the next request's answer.
#[test]
fn late_bytes_poison_nothing() {
    play(async {
        let stage = Stage::new().await;
        let first = stage.get("/1");
        let mut peer = stage.accept().await;
        peer.echo_path().await;
        assert_eq!(text(first.await.unwrap().response()).await, "/1");
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            .await;

        let second = stage.get("/2");
        let mut other = stage.accept().await;
        assert_ne!(other.address, peer.address);
        other.echo_path().await;
        assert_eq!(text(second.await.unwrap().response()).await, "/2");
        assert_eq!(stage.counters.connections_stale.load(Relaxed), 1);
        peer.closed().await;
    });
}

#[test]
fn lying_heads_are_refused() {
    play(async {
        let bomb = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(70_000));
        let fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(300));
        let too_many = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
        let (p, l, t) = (
            ErrorKind::Protocol,
            ErrorKind::HeadTooLarge,
            ErrorKind::Truncated,
        );
        let table: &[(&str, ErrorKind)] = &[
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
                p,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
                p,
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", p),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                p,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
                p,
            ),
            (
                "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                p,
            ),
            ("HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", p),
            (
                "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nhi",
                p,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi", p),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", p),
            ("HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nhi", p),
            ("\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", p),
            ("SSH-2.0-OpenSSH_9.2\r\n", p),
            (&bomb, l),
            (&fields, l),
            (&too_many, l),
            ("", ErrorKind::Closed),
            ("HTTP/1.1 200 OK\r\n", t),
            ("HTTP/1.1 103 Early Hints\r\n\r\n", t),
        ];
        for (answer, kind) in table {
            let stage = Stage::new().await;
            let error = stage
                .exchange(request(Method::GET, "/"), answer.as_bytes())
                .await
                .error();
            assert_eq!(error.kind, *kind, "{:.60?}: {error}", answer);
            assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
            assert_eq!(stage.counters.open.load(Relaxed), 0);
        }
    });
}

#[test]
fn bodies_that_end_otherwise_than_announced() {
    play(async {
        let (p, t) = (ErrorKind::Protocol, ErrorKind::Truncated);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let table = [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n".to_owned(),
                "",
                t,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi".to_owned(),
                "hi",
                t,
            ),
            (chunked.to_owned(), "", t),
            (format!("{chunked}2\r\nhi"), "hi", t),
            (format!("{chunked}2\r\nhi\r\n"), "hi", t),
            (format!("{chunked}2\r\nhi\r\n0\r\n"), "hi", t),
            (format!("{chunked}2\r\nhi\r\n0\r\nA: b\r\n"), "hi", t),
            (format!("{chunked}2\r\nhi!\r\n"), "hi", p),
            (format!("{chunked}2\r\nhi\r\nzz\r\n"), "hi", p),
            (format!("{chunked}2\nhi\r\n"), "", p),
            (format!("{chunked}2;\r\nhi\r\n"), "", p),
            (
                format!("{chunked}2;a={}\r\nhi\r\n", "b".repeat(9000)),
                "",
                p,
            ),
            (format!("{chunked}ffffffffffffffff\r\nhi\r\n"), "", p),
            (
                format!("{chunked}0\r\nA: {}\r\n\r\n", "b".repeat(9000)),
                "",
                p,
            ),
            (format!("{chunked}0\r\nContent-Length: 3\r\n\r\n"), "", p),
        ];
        for (answer, body, kind) in &table {
            let stage = Stage::new().await;
            let outcome = stage
                .exchange(request(Method::GET, "/"), answer.as_bytes())
                .await;
            let mut response = outcome.response();
            let mut bytes = Vec::new();
            let error = loop {
                match response
                    .body
                    .frame()
                    .await
                    .expect("an error before the end")
                {
                    Ok(Frame::Data(data)) => bytes.extend_from_slice(&data),
                    Ok(Frame::Trailers(_)) => panic!("trailers: {answer:.80?}"),
                    Err(error) => break error,
                }
            };
            assert_eq!(
                (&bytes[..], error.kind),
                (body.as_bytes(), *kind),
                "{answer:.80?}"
            );
            assert!(
                response.body.frame().await.is_none(),
                "one error is all there is"
            );
            assert_eq!(stage.counters.protocol_errors.load(Relaxed), 1);
            assert_eq!(stage.counters.open.load(Relaxed), 0);
        }
    });
}

#[test]
fn a_close_delimited_body_says_so() {
    play(async {
        let stage = Stage::new().await;
        let answer = b"HTTP/1.1 200 OK\r\n\r\nhello";
        let response = stage
            .exchange(request(Method::GET, "/"), answer)
            .await
            .response();
        assert!(response.close_delimited);
        assert_eq!(response.content_length, None);
        assert_eq!(text(response).await, "hello");
    });
}

/// A reset is no end, not even of a body that lasts until the end.
#[test]
fn a_reset_is_a_truncation() {
    play(async {
        let stage = Stage::new().await;
        let outcome = stage.get("/");
        let mut peer = stage.accept().await;
        peer.request().await;
        peer.say("HTTP/1.1 200 OK\r\n\r\nhello").await;
        let mut response = outcome.await.unwrap().response();
        assert!(matches!(
            response.body.frame().await,
            Some(Ok(Frame::Data(_)))
        ));
        socket2::SockRef::from(&peer.stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
        let error = response.body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Truncated);
    });
}

#[test]
fn trailers_arrive() {
    play(async {
        let stage = Stage::new().await;
        let answer =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nDigest: x\r\n\r\n";
        let response = stage
            .exchange(request(Method::GET, "/"), answer)
            .await
            .response();
        let (body, trailers) = read_all(response).await.unwrap();
        assert_eq!(body, b"hi");
        assert_eq!(trailers["digest"], "x");
    });
}

#[test]
fn interim_responses_are_passed_on_and_capped() {
    play(async {
        let stage = Stage::new().await;
        let answer = "HTTP/1.1 100 Continue\r\n\r\n\
                      HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                      HTTP/1.1 102 Processing\r\n\r\n\
                      HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let outcome = stage
            .exchange(request(Method::GET, "/"), answer.as_bytes())
            .await;
        let heard: Vec<_> = outcome
            .interim
            .iter()
            .map(|(status, _)| status.as_u16())
            .collect();
        assert_eq!(heard, [103, 102]);
        assert_eq!(outcome.interim[0].1["link"], "</a>");
        assert_eq!(text(outcome.response()).await, "hi");

        let mut answer = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(16);
        answer += "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let outcome = stage
            .exchange(request(Method::GET, "/"), answer.as_bytes())
            .await;
        assert_eq!(outcome.interim.len(), 16);
        assert!(outcome.result.is_ok());
    });
}

/// An early hint is heard before the origin goes on.
#[test]
fn an_early_hint_is_early() {
    play(async {
        let stage = Stage::new().await;
        let (heard, hint) = oneshot::channel();
        let mut heard = Some(heard);
        let mut interim = |status, _| heard.take().unwrap().send(status).unwrap();
        let origin = async {
            let mut peer = stage.accept().await;
            peer.request().await;
            peer.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
                .await;
            assert_eq!(hint.await.unwrap(), StatusCode::EARLY_HINTS);
            peer.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await;
        };
        let asked = stage
            .pool
            .send(&stage.settings, request(Method::GET, "/"), &mut interim);
        let (response, ()) = tokio::join!(asked, origin);
        assert!(response.unwrap().body.is_end());
    });
}

#[test]
fn an_asked_upgrade_becomes_a_tunnel() {
    play(async {
        let stage = Stage::new().await;
        let mut asked = request(Method::GET, "/chat");
        asked
            .headers
            .insert("upgrade", HeaderValue::from_static("websocket"));
        asked.upgrade = true;
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        let head = peer.request().await;
        assert!(
            head.contains("\r\nconnection: upgrade\r\nupgrade: websocket\r\n"),
            "{head}"
        );
        peer.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nearly")
            .await;
        let response = outcome.await.unwrap().response();
        assert_eq!(response.status, StatusCode::SWITCHING_PROTOCOLS);
        let mut tunnel = response.upgraded.unwrap();
        let mut bytes = [0; 5];
        tunnel.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"early");
        tunnel.write_all(b"ping").await.unwrap();
        assert_eq!(peer.read(4).await, b"ping");
        peer.say("pong!").await;
        tunnel.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong!");
        assert_eq!(stage.counters.open.load(Relaxed), 1);
        tunnel.shutdown().await.unwrap();
        drop(tunnel);
        peer.closed().await;
        assert_eq!(stage.counters.open.load(Relaxed), 0);
    });
}

#[test]
fn a_declined_upgrade_is_an_answer_like_any_other() {
    play(async {
        let stage = Stage::new().await;
        let mut asked = request(Method::GET, "/chat");
        asked
            .headers
            .insert("upgrade", HeaderValue::from_static("websocket"));
        asked.upgrade = true;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
        let response = stage.exchange(asked, answer).await.response();
        assert!(response.upgraded.is_none());
        assert_eq!(text(response).await, "no");

        // Which protocol, it does not say.
        let mut asked = request(Method::GET, "/chat");
        asked
            .headers
            .insert("upgrade", HeaderValue::from_static("websocket"));
        asked.upgrade = true;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        assert_eq!(
            stage.exchange(asked, answer).await.error().kind,
            ErrorKind::Protocol
        );
    });
}

/// The origin closes a kept connection just as the next request comes: an idempotent request is
/// sent again on a fresh one, once, and no other is.
#[test]
fn a_lost_connection_is_replaced_once() {
    play(async {
        for (method, is_retried) in [
            (Method::GET, true),
            (Method::HEAD, true),
            (Method::DELETE, true),
            (Method::POST, false),
            (Method::PATCH, false),
        ] {
            let stage = Stage::new().await;
            let first = stage.get("/1");
            let mut peer = stage.accept().await;
            peer.echo_path().await;
            text(first.await.unwrap().response()).await;

            let second = stage.send(request(method.clone(), "/2"));
            peer.request().await;
            drop(peer);
            if is_retried {
                let mut peer = stage.accept().await;
                peer.request().await;
                peer.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .await;
                assert_eq!(second.await.unwrap().response().status, StatusCode::OK);
            } else {
                assert_eq!(
                    second.await.unwrap().error().kind,
                    ErrorKind::Closed,
                    "{method}"
                );
            }
            assert_eq!(stage.counters.retries.load(Relaxed), u64::from(is_retried));
        }
    });
}

#[test]
fn a_fresh_connection_that_is_lost_is_not_replaced() {
    play(async {
        let stage = Stage::new().await;
        let first = stage.get("/1");
        let mut peer = stage.accept().await;
        peer.echo_path().await;
        text(first.await.unwrap().response()).await;

        let second = stage.get("/2");
        peer.request().await;
        drop(peer);
        let mut peer = stage.accept().await;
        peer.request().await;
        drop(peer);
        assert_eq!(second.await.unwrap().error().kind, ErrorKind::Closed);
        // And half an answer is never asked for again.
        let third = stage.get("/3");
        let mut peer = stage.accept().await;
        peer.request().await;
        peer.say("HTTP/1.1 200").await;
        drop(peer);
        assert_eq!(third.await.unwrap().error().kind, ErrorKind::Truncated);
        assert_eq!(stage.counters.retries.load(Relaxed), 1);
    });
}

/// Requests beyond the cap wait, and are served in the order they came; one that left is skipped.
#[test]
fn slots_are_given_first_come_first_served() {
    play(async {
        let stage = Stage::with(|s| s.max_connections = 1).await;
        let order = Rc::new(RefCell::new(Vec::new()));
        let ask = |path: &'static str| {
            let (pool, settings) = (stage.pool.clone(), Arc::clone(&stage.settings));
            let order = Rc::clone(&order);
            tokio::task::spawn_local(async move {
                let outcome = pool
                    .send(&settings, request(Method::GET, path), &mut |_, _| {})
                    .await;
                let text = text(outcome.unwrap()).await;
                order.borrow_mut().push(text);
            })
        };
        let first = ask("/1");
        let mut peer = stage.accept().await;
        let head = peer.request().await;
        assert!(head.starts_with("GET /1 "));
        let others = [ask("/2"), ask("/3"), ask("/4"), ask("/5")];
        while stage.counters.waiting.load(Relaxed) < 4 {
            tokio::task::yield_now().await;
        }
        others[1].abort();
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/1")
            .await;
        first.await.unwrap();
        for _ in 0..3 {
            peer.echo_path().await;
        }
        for other in others {
            let _ = other.await;
        }
        assert_eq!(*order.borrow(), ["/1", "/2", "/4", "/5"]);
        assert_eq!(stage.counters.connections_opened.load(Relaxed), 1);
        assert_eq!(stage.counters.waiting.load(Relaxed), 0);
    });
}

/// A connection that breaks, or a body that is given up, frees its slot for the next in line.
#[test]
fn a_broken_connection_frees_its_slot() {
    play(async {
        let stage = Stage::with(|s| s.max_connections = 1).await;
        let first = stage.get("/1");
        let mut peer = stage.accept().await;
        peer.request().await;
        let (second, third) = (stage.get("/2"), stage.get("/3"));
        drop(peer);
        assert_eq!(first.await.unwrap().error().kind, ErrorKind::Closed);

        let mut peer = stage.accept().await;
        peer.request().await;
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            .await;
        let half = second.await.unwrap().response();
        drop(half);
        peer.closed().await;

        let mut peer = stage.accept().await;
        peer.echo_path().await;
        assert_eq!(text(third.await.unwrap().response()).await, "/3");
    });
}

#[test]
fn waiting_has_its_limits() {
    play(async {
        let stage = Stage::with(|s| {
            s.max_connections = 1;
            s.max_waiting = 1;
            s.queue_timeout = Duration::from_millis(50);
        })
        .await;
        let _first = stage.get("/1");
        let mut peer = stage.accept().await;
        peer.request().await;
        let second = stage.get("/2");
        let third = stage.get("/3");
        let error = third.await.unwrap().error();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        let error = second.await.unwrap().error();
        assert_eq!(error.kind, ErrorKind::Timeout(Phase::Queue));
        assert_eq!(error.detail(), "connection_limit_reached");
    });
}

/// Nobody asks, and the unused connection is closed all the same.
#[test]
fn idle_connections_are_closed_in_time() {
    play(async {
        let stage = Stage::with(|s| s.idle_timeout = Duration::from_millis(50)).await;
        for path in ["/1", "/2"] {
            let outcome = stage.get(path);
            let mut peer = stage.accept().await;
            peer.echo_path().await;
            text(outcome.await.unwrap().response()).await;
            peer.closed().await;
        }
        assert_eq!(stage.counters.connections_expired.load(Relaxed), 2);
        assert_eq!(stage.counters.open.load(Relaxed), 0);
    });
}

#[test]
fn only_so_many_connections_stay_open_unused() {
    play(async {
        let stage = Stage::with(|s| s.max_idle = 1).await;
        let outcomes = [stage.get("/1"), stage.get("/2")];
        let mut peers = [stage.accept().await, stage.accept().await];
        for peer in &mut peers {
            peer.echo_path().await;
        }
        for outcome in outcomes {
            text(outcome.await.unwrap().response()).await;
        }
        assert_eq!(stage.counters.open.load(Relaxed), 1);
    });
}

#[test]
fn a_body_is_uploaded_as_it_comes() {
    play(async {
        let stage = Stage::new().await;
        let (chunked, feeder) = post("/up", None);
        let outcome = stage.send(chunked);
        let mut peer = stage.accept().await;
        let head = peer.request().await;
        assert!(
            head.contains("\r\ntransfer-encoding: chunked\r\n"),
            "{head}"
        );
        for (sent, seen) in [("hello", "5\r\nhello\r\n"), ("more", "4\r\nmore\r\n")] {
            feeder.send(data(sent)).unwrap();
            assert_eq!(peer.read(seen.len()).await, seen.as_bytes());
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("digest", HeaderValue::from_static("x"));
        feeder.send(Ok(Frame::Trailers(trailers))).unwrap();
        drop(feeder);
        let end = "0\r\ndigest: x\r\n\r\n";
        assert_eq!(peer.read(end.len()).await, end.as_bytes());
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert_eq!(outcome.await.unwrap().response().status, StatusCode::OK);

        // The same connection again, with a length.
        let (sized, feeder) = post("/up", Some(5));
        let outcome = stage.send(sized);
        let head = peer.request().await;
        assert!(head.contains("\r\ncontent-length: 5\r\n"), "{head}");
        feeder.send(data("hel")).unwrap();
        assert_eq!(peer.read(3).await, b"hel");
        feeder.send(data("lo")).unwrap();
        drop(feeder);
        assert_eq!(peer.read(2).await, b"lo");
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert_eq!(outcome.await.unwrap().response().status, StatusCode::OK);
        assert_eq!(stage.counters.connections_opened.load(Relaxed), 1);
    });
}

/// Request and response stream at once: what is sent comes back before the request ends.
#[test]
fn both_ways_at_once() {
    play(async {
        let stage = Stage::new().await;
        let (asked, feeder) = post("/echo", None);
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        peer.request().await;
        peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        let mut response = outcome.await.unwrap().response();
        for round in ["5\r\nfirst\r\n", "6\r\nsecond\r\n"] {
            let word = round.split("\r\n").nth(1).unwrap();
            feeder
                .send(Ok(Frame::Data(Bytes::from_static(word.as_bytes()))))
                .unwrap();
            let echoed = peer.read(round.len()).await;
            assert_eq!(echoed, round.as_bytes());
            peer.say(&echoed).await;
            let Some(Ok(Frame::Data(back))) = response.body.frame().await else {
                panic!()
            };
            assert_eq!(back, word);
        }
        drop(feeder);
        assert_eq!(peer.read(5).await, b"0\r\n\r\n");
        peer.say("0\r\n\r\n").await;
        assert!(response.body.frame().await.is_none());

        // Both were whole, so the connection serves again.
        let next = stage.get("/next");
        peer.echo_path().await;
        assert_eq!(text(next.await.unwrap().response()).await, "/next");
    });
}

/// A refusal ends the upload: its source is dropped, the connection closed.
#[test]
fn a_refusal_stops_the_upload() {
    play(async {
        let stage = Stage::new().await;
        let (asked, feeder) = post("/up", None);
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        peer.request().await;
        feeder.send(data("a")).unwrap();
        peer.read(6).await;
        peer.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
            .await;
        let response = outcome.await.unwrap().response();
        assert_eq!(response.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(text(response).await, "no");
        feeder.closed().await;
        peer.closed().await;
        assert_eq!(stage.counters.open.load(Relaxed), 0);
    });
}

/// An answer that comes whole before the request is: the upload goes on without it.
#[test]
fn an_early_answer_does_not_stop_the_upload() {
    play(async {
        let stage = Stage::with(|s| s.max_connections = 1).await;
        let (asked, feeder) = post("/up", Some(4));
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        peer.request().await;
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
        assert_eq!(text(outcome.await.unwrap().response()).await, "ok");
        feeder.send(data("late")).unwrap();
        assert_eq!(peer.read(4).await, b"late");
        drop(feeder);
        // Only now is the connection free again.
        let next = stage.get("/next");
        peer.echo_path().await;
        assert_eq!(text(next.await.unwrap().response()).await, "/next");
        assert_eq!(stage.counters.connections_opened.load(Relaxed), 1);
    });
}

/// An origin that answers and closes while the request still comes has answered.
#[test]
fn an_answer_survives_a_failed_upload() {
    play(async {
        let stage = Stage::new().await;
        let (asked, feeder) = post("/up", None);
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        peer.request().await;
        peer.say("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            .await;
        peer.stream.shutdown().await.unwrap();
        let response = outcome.await.unwrap().response();
        feeder.send(data("more")).unwrap();
        assert_eq!(text(response).await, "no");
    });
}

/// A request whose body fails is never a whole request for the origin, nor a response for us.
#[test]
fn a_failed_source_cuts_the_request() {
    play(async {
        // (announced length, what the source does)
        let table = [
            (None, vec![data("a"), Err(SourceFailed::RequestBody)]),
            (Some(4), vec![data("a"), Err(SourceFailed::RequestBody)]),
            (Some(4), vec![data("abc")]),
            (Some(4), vec![data("abcde")]),
        ];
        for (length, frames) in table {
            let stage = Stage::new().await;
            let (asked, feeder) = post("/up", length);
            let outcome = stage.send(asked);
            let mut peer = stage.accept().await;
            peer.request().await;
            for frame in frames {
                feeder.send(frame).unwrap();
            }
            drop(feeder);
            let error = outcome.await.unwrap().error();
            assert_eq!(error.kind, ErrorKind::RequestBody);
            assert!(!error.is_unreachable());
            let mut rest = Vec::new();
            let _ = peer.stream.read_to_end(&mut rest).await;
            assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < 10, "{rest:?}");
        }
    });
}

#[test]
fn timeouts() {
    play(async {
        let short = Duration::from_millis(50);
        // The first byte: nothing, half a head, hints without end.
        for said in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 103 Early Hints\r\n\r\n",
        ] {
            let stage = Stage::with(|s| s.first_byte_timeout = short).await;
            let outcome = stage.get("/");
            let mut peer = stage.accept().await;
            peer.request().await;
            peer.say(said).await;
            let error = outcome.await.unwrap().error();
            assert_eq!(error.kind, ErrorKind::Timeout(Phase::FirstByte), "{said:?}");
            assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);
            peer.closed().await;
            assert_eq!(stage.counters.timeouts.load(Relaxed), 1);
        }
        // The body, at any point.
        for said in [
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=",
            "HTTP/1.1 200 OK\r\n\r\nhalf",
        ] {
            let stage = Stage::with(|s| s.read_timeout = short).await;
            let outcome = stage.get("/");
            let mut peer = stage.accept().await;
            peer.request().await;
            peer.say(said).await;
            let error = read_all(outcome.await.unwrap().response())
                .await
                .unwrap_err();
            assert_eq!(error.kind, ErrorKind::Timeout(Phase::Read), "{said:?}");
            peer.closed().await;
        }
        // An origin that does not read.
        let stage = Stage::with(|s| s.write_timeout = short).await;
        let (asked, feeder) = post("/up", None);
        let outcome = stage.send(asked);
        let peer = stage.accept().await;
        for _ in 0..64 {
            let _ = feeder.send(Ok(Frame::Data(Bytes::from(vec![0; 1 << 20]))));
        }
        let error = outcome.await.unwrap().error();
        assert_eq!(error.kind, ErrorKind::Timeout(Phase::Write));
        drop(peer);
        // A handshake without end.
        let stage = Stage::with(|s| {
            s.scheme = Scheme::Https;
            s.tls = Some(Tls::new(&TlsOptions::default()).unwrap());
            s.connect_timeout = short;
        })
        .await;
        let outcome = stage.get("/");
        let peer = stage.accept().await;
        let error = outcome.await.unwrap().error();
        assert_eq!(error.kind, ErrorKind::Timeout(Phase::Connect));
        peer.closed().await;
    });
}

/// A slow client is not the origin's fault: while it uploads, no timeout of the origin runs.
#[test]
fn a_slow_upload_is_no_timeout() {
    play(async {
        let short = Duration::from_millis(30);
        let stage = Stage::with(|s| {
            s.first_byte_timeout = short;
            s.write_timeout = short;
        })
        .await;
        let (asked, feeder) = post("/up", None);
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        peer.request().await;
        // Time itself is what is tested here.
        tokio::time::sleep(short * 3).await;
        feeder.send(data("a")).unwrap();
        drop(feeder);
        assert_eq!(peer.read(11).await, b"1\r\na\r\n0\r\n\r\n");
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert_eq!(outcome.await.unwrap().response().status, StatusCode::OK);
    });
}

#[test]
fn what_cannot_be_reached() {
    play(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let counters = Arc::new(Counters::default());
        let pool = OriginPool::new(Arc::clone(&counters));
        for (host, kind) in [
            ("127.0.0.1", ErrorKind::Refused),
            ("localhost", ErrorKind::Refused),
            ("no such host.invalid", ErrorKind::Dns),
        ] {
            let settings = Arc::new(Settings::new(Scheme::Http, host, port));
            let outcome = pool
                .send(&settings, request(Method::GET, "/"), &mut |_, _| {})
                .await;
            let error = outcome.err().unwrap();
            assert_eq!(
                (error.kind, error.status()),
                (kind, StatusCode::BAD_GATEWAY),
                "{host}"
            );
            assert!(error.is_unreachable());
        }
        assert_eq!(counters.connections_failed.load(Relaxed), 3);
        assert_eq!(counters.open.load(Relaxed), 0);
    });
}

/// A large body comes byte for byte, and in large pieces when the origin is fast.
#[test]
fn a_large_body() {
    const LENGTH: usize = 16 << 20;
    fn byte(at: usize) -> u8 {
        (at.wrapping_mul(2_654_435_761) >> 13) as u8
    }
    play(async {
        let stage = Stage::new().await;
        let outcome = stage.get("/");
        let mut peer = stage.accept().await;
        let origin = tokio::task::spawn_local(async move {
            peer.request().await;
            peer.say(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"
            ))
            .await;
            let body: Vec<u8> = (0..LENGTH).map(byte).collect();
            peer.say(body).await;
            peer
        });
        let mut response = outcome.await.unwrap().response();
        let mut at = 0;
        while let Some(frame) = response.body.frame().await {
            let Frame::Data(data) = frame.unwrap() else {
                panic!()
            };
            assert!(data.len() <= 256 << 10, "bounded");
            assert!(
                data.iter().zip(at..).all(|(b, at)| *b == byte(at)),
                "from {at}"
            );
            at += data.len();
        }
        assert_eq!(at, LENGTH);
        drop(origin.await);
    });
}

/// Dropping a request while it waits for its answer closes the connection.
#[test]
fn a_cancelled_request_leaves_nothing() {
    play(async {
        let stage = Stage::new().await;
        let outcome = stage.get("/");
        let mut peer = stage.accept().await;
        peer.request().await;
        outcome.abort();
        peer.closed().await;
        assert!(outcome.await.is_err());
        assert_eq!(stage.counters.open.load(Relaxed), 0);
        let (asked, feeder) = post("/up", None);
        let outcome = stage.send(asked);
        let mut peer = stage.accept().await;
        peer.request().await;
        outcome.abort();
        feeder.closed().await;
        peer.closed().await;
    });
}

mod http2 {
    use std::convert::Infallible;

    use http::{Request, Response};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;

    use super::*;

    enum Answer {
        Said(Option<Bytes>),
        Echo(Incoming),
    }

    impl http_body::Body for Answer {
        type Data = Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
            match self.get_mut() {
                Self::Said(text) => Poll::Ready(text.take().map(|t| Ok(http_body::Frame::data(t)))),
                Self::Echo(body) => Pin::new(body).poll_frame(cx),
            }
        }

        fn size_hint(&self) -> http_body::SizeHint {
            match self {
                Self::Said(text) => http_body::SizeHint::with_exact(
                    text.as_ref().map_or(0, |text| text.len() as u64),
                ),
                Self::Echo(_) => http_body::SizeHint::new(),
            }
        }
    }

    #[derive(Clone)]
    struct Exec;

    impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Exec {
        fn execute(&self, future: F) {
            tokio::task::spawn_local(future);
        }
    }

    /// Serves HTTP/2 on `io` until it ends: requests are counted, and echoed.
    pub(super) async fn serve<I>(io: I, served: Rc<Cell<usize>>, hold: Rc<Notify>)
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let service = service_fn(move |request: Request<Incoming>| {
            served.set(served.get() + 1);
            let hold = Rc::clone(&hold);
            async move { Ok::<_, Infallible>(answer(request, hold).await) }
        });
        let _ = hyper::server::conn::http2::Builder::new(Exec)
            .serve_connection(TokioIo::new(io), service)
            .await;
    }

    async fn answer(request: Request<Incoming>, hold: Rc<Notify>) -> Response<Answer> {
        let mut said = String::new();
        let uri = request.uri().clone();
        let _ = write!(
            said,
            "{} {}",
            request.method(),
            uri.path_and_query().unwrap()
        );
        let mut response = Response::builder();
        response = response.header("x-authority", uri.authority().unwrap().as_str());
        if request.headers().contains_key("connection") {
            response = response.status(599);
        }
        match uri.path() {
            "/hold" => hold.notified().await,
            "/never" => std::future::pending().await,
            _ => {}
        }
        if request.method() == Method::POST {
            return response.body(Answer::Echo(request.into_body())).unwrap();
        }
        response.body(Answer::Said(Some(said.into()))).unwrap()
    }

    /// A stage whose origin speaks HTTP/2; counts connections and requests.
    struct Served {
        stage: Stage,
        requests: Rc<Cell<usize>>,
        connections: Rc<Cell<usize>>,
        ended: Rc<Cell<usize>>,
        hold: Rc<Notify>,
    }

    async fn served(change: impl FnOnce(&mut Settings)) -> Served {
        let stage = Stage::with(|settings| {
            settings.http2 = Http2::PriorKnowledge;
            change(settings);
        })
        .await;
        let port = stage.settings.port;
        let Stage {
            listener,
            settings,
            pool,
            counters,
        } = stage;
        let spare = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stage = Stage {
            listener: spare,
            settings,
            pool,
            counters,
        };
        assert_eq!(listener.local_addr().unwrap().port(), port);
        let all = Served {
            stage,
            requests: Rc::default(),
            connections: Rc::default(),
            ended: Rc::default(),
            hold: Rc::default(),
        };
        let (requests, connections) = (Rc::clone(&all.requests), Rc::clone(&all.connections));
        let (ended, hold) = (Rc::clone(&all.ended), Rc::clone(&all.hold));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.set(connections.get() + 1);
                let (requests, ended) = (Rc::clone(&requests), Rc::clone(&ended));
                let hold = Rc::clone(&hold);
                tokio::task::spawn_local(async move {
                    serve(stream, requests, hold).await;
                    ended.set(ended.get() + 1);
                });
            }
        });
        all
    }

    #[test]
    fn requests_share_one_connection() {
        play(async {
            let all = served(|_| {}).await;
            let outcomes: Vec<_> = (0..20).map(|_| all.stage.get("/a//b?c")).collect();
            for outcome in outcomes {
                let response = outcome.await.unwrap().response();
                assert_eq!(response.version, Version::HTTP_2);
                assert_eq!(response.headers["x-authority"], "o.example");
                assert_eq!(response.content_length, Some(11));
                assert_eq!(text(response).await, "GET /a//b?c");
            }
            assert_eq!((all.connections.get(), all.requests.get()), (1, 20));
            assert_eq!(all.stage.counters.open.load(Relaxed), 1);
            all.stage.pool.close_idle();
            while all.ended.get() == 0 || all.stage.counters.open.load(Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        });
    }

    #[test]
    fn connection_fields_stay_behind() {
        play(async {
            let all = served(|_| {}).await;
            let mut asked = request(Method::GET, "/");
            for (name, value) in [
                ("connection", "x"),
                ("keep-alive", "5"),
                ("te", "gzip"),
                ("upgrade", "h2c"),
            ] {
                asked.headers.insert(name, HeaderValue::from_static(value));
            }
            let response = all.stage.send(asked).await.unwrap().response();
            assert_eq!(response.status, StatusCode::OK);
        });
    }

    #[test]
    fn both_ways_at_once() {
        play(async {
            let all = served(|_| {}).await;
            for length in [None, Some(8)] {
                let (asked, feeder) = post("/echo", length);
                let outcome = all.stage.send(asked);
                feeder.send(data("ping")).unwrap();
                let mut response = outcome.await.unwrap().response();
                let Some(Ok(Frame::Data(back))) = response.body.frame().await else {
                    panic!()
                };
                assert_eq!(back, "ping");
                feeder.send(data("pong")).unwrap();
                drop(feeder);
                let (rest, _) = read_all(response).await.unwrap();
                assert_eq!(rest, b"pong");
            }
        });
    }

    #[test]
    fn a_failed_source_fails_the_request() {
        play(async {
            let all = served(|_| {}).await;
            let (asked, feeder) = post("/echo", None);
            let outcome = all.stage.send(asked);
            feeder.send(data("ping")).unwrap();
            let mut response = outcome.await.unwrap().response();
            let Some(Ok(Frame::Data(_))) = response.body.frame().await else {
                panic!()
            };
            feeder.send(Err(SourceFailed::RequestBody)).unwrap();
            let error = response.body.frame().await.unwrap().unwrap_err();
            assert_eq!(error.kind, ErrorKind::RequestBody, "{error}");
        });
    }

    #[test]
    fn timeouts_and_cancellation() {
        play(async {
            let all = served(|s| s.first_byte_timeout = Duration::from_millis(50)).await;
            let error = all.stage.get("/never").await.unwrap().error();
            assert_eq!(error.kind, ErrorKind::Timeout(Phase::FirstByte));
            let held = all.stage.get("/hold");
            while all.requests.get() < 2 {
                tokio::task::yield_now().await;
            }
            held.abort();
            assert!(held.await.is_err());
            let response = all.stage.get("/").await.unwrap().response();
            assert_eq!(text(response).await, "GET /");
        });
    }

    /// Nobody asks, and the unused connection is closed all the same.
    #[test]
    fn idle_connections_are_closed_in_time() {
        play(async {
            let all = served(|s| s.idle_timeout = Duration::from_millis(50)).await;
            text(all.stage.get("/").await.unwrap().response()).await;
            while all.stage.counters.open.load(Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(all.stage.counters.connections_expired.load(Relaxed), 1);
            text(all.stage.get("/").await.unwrap().response()).await;
            assert_eq!(all.connections.get(), 2);
        });
    }

    #[test]
    fn an_origin_that_speaks_something_else() {
        play(async {
            let stage = Stage::with(|s| s.http2 = Http2::PriorKnowledge).await;
            let outcome = stage.get("/");
            let mut peer = stage.accept().await;
            peer.say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                .await;
            let error = outcome.await.unwrap().error();
            assert_eq!(error.status(), StatusCode::BAD_GATEWAY, "{error:?}");
            peer.closed().await;

            let outcome = stage.send(request(Method::GET, "/<"));
            let mut peer = stage.accept().await;
            // Empty SETTINGS.
            peer.say("\0\0\0\x04\0\0\0\0\0").await;
            let error = outcome.await.unwrap().error();
            assert_eq!(error.kind, ErrorKind::Unsendable, "{error}");
            drop(peer);
        });
    }

    /// Without SETTINGS there is no connection, however long the origin keeps it.
    #[test]
    fn an_origin_that_never_says_its_settings() {
        play(async {
            let stage = Stage::with(|s| {
                s.http2 = Http2::PriorKnowledge;
                s.connect_timeout = Duration::from_millis(50);
            })
            .await;
            let outcome = stage.get("/");
            let peer = stage.accept().await;
            let error = outcome.await.unwrap().error();
            assert_eq!(error.kind, ErrorKind::Timeout(Phase::Connect), "{error}");
            peer.closed().await;
            assert_eq!(stage.counters.open.load(Relaxed), 0);
        });
    }
}

mod over_tls {
    use std::path::Path;

    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
    use rustls::ServerConfig;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn write(&self, path: &Path) {
            std::fs::write(path, self.0.pem()).unwrap();
        }

        fn acceptor(&self, name: &str, protocols: &[&[u8]]) -> TlsAcceptor {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &self.0).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(aws_lc_rs::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
            TlsAcceptor::from(Arc::new(config))
        }
    }

    fn file(name: &str) -> std::path::PathBuf {
        let mut path = std::env::temp_dir();
        path.push(format!("caje-origin-{}-{name}.pem", std::process::id()));
        path
    }

    async fn stage(options: &TlsOptions, http2: Http2) -> Stage {
        let tls = Tls::new(options).unwrap();
        Stage::with(|settings| {
            settings.scheme = Scheme::Https;
            settings.host = "localhost".into();
            settings.tls = Some(tls);
            settings.http2 = http2;
        })
        .await
    }

    #[test]
    fn alpn_decides() {
        let authority = Authority::new();
        let path = file("alpn");
        authority.write(&path);
        let options = TlsOptions {
            extra_ca: Some(path.clone()),
            ..TlsOptions::default()
        };
        let (h1, h2): (&[u8], &[u8]) = (b"http/1.1", b"h2");
        let table: &[(Http2, &[&[u8]], Version)] = &[
            (Http2::Off, &[h2, h1], Version::HTTP_11),
            (Http2::Off, &[], Version::HTTP_11),
            (Http2::Auto, &[h2, h1], Version::HTTP_2),
            (Http2::Auto, &[h1], Version::HTTP_11),
            (Http2::Auto, &[], Version::HTTP_11),
            (Http2::PriorKnowledge, &[h2], Version::HTTP_2),
        ];
        for (http2, protocols, version) in table {
            play(async {
                let stage = stage(&options, *http2).await;
                let acceptor = authority.acceptor("localhost", protocols);
                // Several at once, so that they meet while the protocol is still unknown.
                let outcomes = [stage.get("/1"), stage.get("/1"), stage.get("/1")];
                let serving = async {
                    loop {
                        let tcp = stage.accept().await.stream;
                        let mut tls = acceptor.accept(tcp).await.unwrap();
                        tokio::task::spawn_local(async move {
                            if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                                http2::serve(tls, Rc::default(), Rc::default()).await;
                                return;
                            }
                            let mut head = Vec::new();
                            while tls.read_buf(&mut head).await.unwrap() > 0 {
                                if head.ends_with(b"\r\n\r\n") {
                                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
                                    tls.write_all(answer).await.unwrap();
                                    head.clear();
                                }
                            }
                        });
                    }
                };
                let asking = async {
                    for outcome in outcomes {
                        let response = outcome.await.unwrap().response();
                        assert_eq!(response.version, *version, "{http2:?}");
                        text(response).await;
                    }
                    // A used connection of either kind serves again.
                    let opened = stage.counters.connections_opened.load(Relaxed);
                    let response = stage.get("/2").await.unwrap().response();
                    text(response).await;
                    assert_eq!(stage.counters.connections_opened.load(Relaxed), opened);
                    if *version == Version::HTTP_2 {
                        assert_eq!(opened, 1);
                    }
                };
                tokio::select! {
                    () = serving => {}
                    () = asking => {}
                }
            });
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn whom_to_trust() {
        let (known, unknown) = (Authority::new(), Authority::new());
        let path = file("trust");
        known.write(&path);
        let with_ca = TlsOptions {
            extra_ca: Some(path.clone()),
            ..TlsOptions::default()
        };
        let insecure = TlsOptions {
            insecure: true,
            ..TlsOptions::default()
        };
        let renamed = TlsOptions {
            server_name: Some("o.example".to_owned()),
            ..with_ca.clone()
        };
        let table = [
            (&with_ca, &known, "localhost", true),
            (&with_ca, &unknown, "localhost", false),
            (&with_ca, &known, "o.example", false),
            (&renamed, &known, "o.example", true),
            (&renamed, &known, "localhost", false),
            (&insecure, &unknown, "elsewhere", true),
            (&TlsOptions::default(), &known, "localhost", false),
        ];
        for (options, authority, name, is_trusted) in table {
            play(async {
                let stage = stage(options, Http2::Off).await;
                let outcome = stage.get("/");
                let tcp = stage.accept().await.stream;
                let accepted = authority.acceptor(name, &[]).accept(tcp).await;
                if is_trusted {
                    let mut tls = accepted.unwrap();
                    let mut head = [0; 16];
                    tls.read_exact(&mut head).await.unwrap();
                    tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                        .await
                        .unwrap();
                    assert_eq!(text(outcome.await.unwrap().response()).await, "hi");
                } else {
                    assert_eq!(
                        outcome.await.unwrap().error().kind,
                        ErrorKind::Tls,
                        "{name}"
                    );
                }
            });
        }
        std::fs::remove_file(path).unwrap();
    }

    /// TLS tells a truncation from an end (close_notify), so a close-delimited body is checked too.
    #[test]
    fn a_cut_tls_stream_is_a_truncation() {
        let authority = Authority::new();
        let insecure = TlsOptions {
            insecure: true,
            ..TlsOptions::default()
        };
        for is_closed in [true, false] {
            play(async {
                let stage = stage(&insecure, Http2::Off).await;
                let outcome = stage.get("/");
                let tcp = stage.accept().await.stream;
                let mut tls = authority.acceptor("x", &[]).accept(tcp).await.unwrap();
                let mut head = [0; 16];
                tls.read_exact(&mut head).await.unwrap();
                tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello")
                    .await
                    .unwrap();
                tls.flush().await.unwrap();
                if is_closed {
                    tls.shutdown().await.unwrap();
                }
                // Only the sending side, lest unread bytes turn the end into a reset.
                tls.get_mut().0.shutdown().await.unwrap();
                let read = read_all(outcome.await.unwrap().response()).await;
                match read {
                    Ok((body, _)) => assert!(is_closed && body == b"hello"),
                    Err(error) => {
                        assert!(!is_closed && error.kind == ErrorKind::Truncated, "{error}");
                    }
                }
            });
        }
    }

    #[test]
    fn unusable_settings() {
        let missing = TlsOptions {
            extra_ca: Some("/nowhere.pem".into()),
            ..TlsOptions::default()
        };
        assert!(matches!(Tls::new(&missing), Err(TlsError::Read { .. })));
        let path = file("empty");
        std::fs::write(&path, "no certificate").unwrap();
        let empty = TlsOptions {
            extra_ca: Some(path.clone()),
            ..TlsOptions::default()
        };
        assert!(matches!(Tls::new(&empty), Err(TlsError::Empty(_))));
        std::fs::remove_file(path).unwrap();
        let name = TlsOptions {
            server_name: Some("a b".to_owned()),
            ..TlsOptions::default()
        };
        assert!(matches!(Tls::new(&name), Err(TlsError::ServerName(_))));
    }
}

/// A pool with a bound for all origins together: what is unused makes room, and nobody waits for another origin's.
#[test]
fn a_bounded_pool_has_no_more_connections() {
    play(async {
        let (one, other) = (Stage::new().await, Stage::new().await);
        let pool = OriginPool::bounded(Arc::clone(&one.counters), 1);
        let one = Stage {
            pool: pool.clone(),
            ..one
        };
        let other = Stage { pool, ..other };
        let first = one.get("/a");
        let mut peer = one.accept().await;
        peer.request().await;
        assert_eq!(other.get("/b").await.unwrap().error().kind, ErrorKind::Busy);
        peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        first.await.unwrap().response();
        assert_eq!(one.counters.open.load(Relaxed), 1);
        // The unused one goes.
        let second = other.get("/b");
        let mut peer = other.accept().await;
        peer.request().await;
        assert_eq!(one.counters.open.load(Relaxed), 1);
        peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        second.await.unwrap().response();
    });
}
