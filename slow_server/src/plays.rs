//! The origin on real sockets.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Answer, Lie, Origin, body_bytes, hls_body, verify_body};

/// A connection that sends and receives bytes as they are.
struct Wire(TcpStream);

struct Got {
    head: String,
    body: Vec<u8>,
}

impl Wire {
    async fn to(origin: &Origin) -> Wire {
        Wire(TcpStream::connect(origin.addr()).await.expect("connect"))
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("send");
    }

    async fn ask(&mut self, method: &str, target: &str, headers: &str) {
        self.send(&format!(
            "{method} {target} HTTP/1.1\r\nhost: a\r\n{headers}\r\n"
        ))
        .await;
    }

    async fn get(&mut self, target: &str, headers: &str) -> Got {
        self.ask("GET", target, headers).await;
        self.head_and_body().await
    }

    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.expect("a head"));
        }
        String::from_utf8(head).expect("text")
    }

    async fn body(&mut self, length: usize) -> Vec<u8> {
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.expect("a body");
        body
    }

    /// An answer with a length.
    async fn head_and_body(&mut self) -> Got {
        let head = self.head().await;
        let length = value(&head, "content-length").map_or(0, |v| v.parse().expect("a length"));
        Got {
            body: self.body(length).await,
            head,
        }
    }

    /// Everything to the end of the connection, but no more than a mebibyte, and no longer than a
    /// second or until it falls silent.
    async fn all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let silence = Duration::from_millis(150);
        let begun = std::time::Instant::now();
        while all.len() < 1024 * 1024 && begun.elapsed() < Duration::from_secs(1) {
            match tokio::time::timeout(silence, self.0.read_buf(&mut all)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => {
                    all.extend_from_slice(b"<end>");
                    break;
                }
                Err(_) => break,
            }
        }
        all
    }
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn status(head: &str) -> &str {
    &head[9..12]
}

#[tokio::test]
async fn a_generated_body_is_the_function_of_its_path() {
    let origin = Origin::start().await;
    let mut wire = Wire::to(&origin).await;
    let got = wire.get("/bytes/300k/x?cc=max-age%3D7", "").await;
    assert_eq!(got.body, body_bytes("/bytes/300k/x", 0..300 * 1024));
    assert_eq!(value(&got.head, "cache-control"), Some("max-age=7"));
    let part = wire
        .get("/bytes/5g", "range: bytes=5000000001-5000000099\r\n")
        .await;
    assert_eq!(status(&part.head), "206");
    assert_eq!(
        value(&part.head, "content-range"),
        Some("bytes 5000000001-5000000099/5368709120")
    );
    assert_eq!(verify_body("/bytes/5g", 5_000_000_001, &part.body), Ok(()));
    assert_eq!(part.body.len(), 99);
    let etag = value(&part.head, "etag").expect("a tag");
    let same = wire
        .get("/bytes/5g", &format!("if-none-match: {etag}\r\n"))
        .await;
    assert_eq!(status(&same.head), "304");
    assert_eq!(origin.connections(), 1);
    assert_eq!(origin.counts("/bytes/5g").range, 1);
    assert_eq!(origin.counts("/bytes/5g").bytes, 99);
    assert_eq!(origin.counts("/bytes/5g").not_modified, 1);
}

#[tokio::test]
async fn several_ranges_come_as_multipart() {
    let origin = Origin::start().await;
    origin.get("/a").body("0123456789").ranges(true);
    let got = Wire::to(&origin)
        .await
        .get("/a", "range: bytes=0-1,-2\r\n")
        .await;
    let text = String::from_utf8(got.body).expect("text");
    assert!(
        value(&got.head, "content-type")
            .expect("a type")
            .starts_with("multipart/byteranges")
    );
    assert!(
        text.contains("Content-Range: bytes 0-1/10\r\n\r\n01\r\n--"),
        "{text}"
    );
    assert!(
        text.contains("Content-Range: bytes 8-9/10\r\n\r\n89\r\n--"),
        "{text}"
    );
}

#[tokio::test]
async fn a_gate_holds_the_head_and_another_the_second_half() {
    let origin = Origin::start().await;
    let head = origin.get("/a").body("hello").gated();
    let half = origin.change("/a").gated_at(2);
    let mut wire = Wire::to(&origin).await;
    wire.ask("GET", "/a", "").await;
    head.reached().await;
    origin.wait_requests("/a", 1).await;
    head.open();
    wire.head().await;
    assert_eq!(wire.body(2).await, b"he");
    half.reached().await;
    assert_eq!(origin.counts("/a").finished, 0);
    half.open();
    assert_eq!(wire.body(3).await, b"llo");
    origin.wait_finished("/a", 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_at_a_gate() {
    let origin = Origin::start().await;
    let gate = origin.get("/a").body("hello").gated_at(2);
    let mut wire = Wire::to(&origin).await;
    wire.ask("GET", "/a", "").await;
    gate.reached().await;
    drop(wire);
    origin.wait_abandoned("/a", 1).await;
    origin.wait_open_connections(0).await;
}

#[tokio::test]
async fn scripts_sequences_and_prefixes() {
    let origin = Origin::start().await;
    origin
        .get("/s")
        .sequence([Answer::status(503), Answer::ok().body("up")]);
    origin.any("/d").respond_with(|request| {
        Answer::ok().body(format!(
            "{} {} {}",
            request.method,
            request.query(),
            request.body_bytes
        ))
    });
    origin.prefix("/files/").generated(10);
    origin.get("/files/one").body("one");
    let mut wire = Wire::to(&origin).await;
    assert_eq!(status(&wire.get("/s", "").await.head), "503");
    assert_eq!(wire.get("/s", "").await.body, b"up");
    assert_eq!(wire.get("/s", "").await.body, b"up");
    wire.send("POST /d?q HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc")
        .await;
    assert_eq!(wire.head_and_body().await.body, b"POST q 3");
    assert_eq!(
        wire.get("/files/two", "").await.body,
        body_bytes("/files/two", 0..10)
    );
    assert_eq!(wire.get("/files/one?x=1", "").await.body, b"one");
    assert_eq!(origin.last_request("/d").body, "abc");
    assert!(
        origin
            .last_request("/d")
            .raw_head
            .starts_with(b"POST /d?q HTTP/1.1\r\n")
    );
    assert_eq!(origin.requests("/files/one?x=1"), 1);
}

#[tokio::test]
async fn interim_answers_trailers_and_chunks() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("hello")
        .early_hints(&[("link", "</x>; rel=preload")])
        .chunk_size(3)
        .trailer("x-sum", "5");
    let mut wire = Wire::to(&origin).await;
    wire.ask("GET", "/a", "").await;
    assert_eq!(
        wire.head().await,
        "HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n"
    );
    let head = wire.head().await;
    assert_eq!(value(&head, "transfer-encoding"), Some("chunked"));
    let chunks = b"3\r\nhel\r\n2\r\nlo\r\n0\r\nx-sum: 5\r\n\r\n";
    assert_eq!(wire.body(chunks.len()).await, chunks);
}

#[tokio::test]
async fn uploads_expectations_mirrors_and_upgrades() {
    let origin = Origin::start().await;
    let mut wire = Wire::to(&origin).await;
    wire.ask(
        "POST",
        "/upload",
        "content-length: 3\r\nexpect: 100-continue\r\n",
    )
    .await;
    assert_eq!(status(&wire.head().await), "100");
    wire.send("abc").await;
    let got = wire.head_and_body().await;
    assert!(
        String::from_utf8(got.body)
            .expect("text")
            .contains("\"body_bytes\":3")
    );
    wire.ask("POST", "/mirror", "transfer-encoding: chunked\r\n")
        .await;
    wire.send("2\r\nab\r\n").await;
    wire.head().await;
    assert_eq!(wire.body(7).await, b"2\r\nab\r\n");
    wire.send("1\r\nc\r\n0\r\n\r\n").await;
    assert_eq!(wire.body(11).await, b"1\r\nc\r\n0\r\n\r\n");
    origin.any("/no").refuse_expect();
    origin.any("/early").body("early").early();
    wire.ask(
        "POST",
        "/early",
        "content-length: 3\r\nexpect: 100-continue\r\n",
    )
    .await;
    assert_eq!(wire.head_and_body().await.body, b"early");
    wire.send("abc").await;
    wire.ask("GET", "/upgrade", "upgrade: x\r\nconnection: upgrade\r\n")
        .await;
    assert_eq!(status(&wire.head().await), "101");
    wire.send("ping").await;
    assert_eq!(wire.body(4).await, b"ping");
    let mut other = Wire::to(&origin).await;
    other
        .ask(
            "POST",
            "/no",
            "content-length: 3\r\nexpect: 100-continue\r\n",
        )
        .await;
    assert_eq!(status(&other.head().await), "417");
    assert_eq!(origin.malformed(), Vec::<String>::new());
}

#[tokio::test]
async fn malformed_requests_are_refused_and_kept() {
    let origin = Origin::start().await;
    let mut wire = Wire::to(&origin).await;
    wire.send("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        .await;
    assert!(wire.all().await.starts_with(b"HTTP/1.1 400 "));
    assert_eq!(origin.malformed().len(), 1);
    assert_eq!(origin.requests_total(), 0);
}

#[tokio::test]
async fn it_refuses_resumes_and_kills() {
    let origin = Origin::start().await;
    origin.get("/a").body("hello");
    let mut wire = Wire::to(&origin).await;
    wire.get("/a", "").await;
    origin.refuse().await;
    assert!(TcpStream::connect(origin.addr()).await.is_err());
    assert_eq!(wire.get("/a", "").await.body, b"hello");
    origin.resume().await;
    let mut second = Wire::to(&origin).await;
    second.get("/a", "").await;
    assert_eq!(origin.open_connections(), 2);
    origin.close_idle_connections();
    origin.wait_open_connections(0).await;
    let gate = origin.get("/g").gated();
    let mut third = Wire::to(&origin).await;
    third.ask("GET", "/g", "").await;
    gate.reached().await;
    origin.kill_connections();
    assert!(
        third
            .0
            .read_u8()
            .await
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
    );
    origin.shutdown().await;
    assert!(TcpStream::connect(origin.addr()).await.is_err());
}

#[tokio::test]
async fn counters_and_gates_by_url() {
    let origin = Origin::start().await;
    let mut wire = Wire::to(&origin).await;
    let mut held = Wire::to(&origin).await;
    held.ask("GET", "/bytes/10?gate=g", "").await;
    origin.gate("g").reached().await;
    wire.ask("POST", "/_gate/open?name=g", "").await;
    assert!(
        String::from_utf8(wire.head_and_body().await.body)
            .expect("text")
            .contains("\"open\":true")
    );
    held.head_and_body().await;
    origin.wait_finished("/bytes/10", 1).await;
    let count = String::from_utf8(wire.get("/_count?path=/bytes/10", "").await.body).expect("text");
    assert!(count.starts_with("{\"requests\":1,\"get\":1,"), "{count}");
    let all = String::from_utf8(wire.get("/_count", "").await.body).expect("text");
    assert!(
        all.starts_with("{\"requests\":1,"),
        "what asks for counters is not counted: {all}"
    );
    wire.ask("POST", "/_reset", "").await;
    wire.head_and_body().await;
    assert_eq!(origin.requests("/bytes/10"), 0);
    assert_eq!(
        status(&wire.get("/bytes/10?delay=soon", "").await.head),
        "400"
    );
    assert_eq!(status(&wire.get("/nothing", "").await.head), "404");
}

#[tokio::test]
async fn a_live_presentation_moves_on_by_hand() {
    let origin = Origin::start().await;
    let mut wire = Wire::to(&origin).await;
    let playlist = wire.get("/hls/manual/low/index.m3u8", "").await;
    assert!(
        String::from_utf8(playlist.body)
            .expect("text")
            .contains("\n4.ts\n")
    );
    assert_eq!(
        status(&wire.get("/hls/manual/low/5.ts", "").await.head),
        "404"
    );
    origin.hls_tick(1);
    let segment = wire.get("/hls/manual/low/5.ts", "").await;
    assert_eq!(
        Some(segment.body.as_slice()),
        hls_body("/hls/manual/low/5.ts")
    );
}

#[tokio::test]
async fn throttle_keeps_to_its_rate() {
    let origin = Origin::start().await;
    let begun = std::time::Instant::now();
    let got = Wire::to(&origin)
        .await
        .get("/bytes/3000?throttle=10000", "")
        .await;
    assert_eq!(got.body, body_bytes("/bytes/3000", 0..3000));
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

/// What a client sees of a lie, in every way that a lie may look at: two plain requests, a range, a
/// condition, a HEAD.
async fn seen(lie: Option<Lie>) -> Vec<Vec<u8>> {
    let origin = Origin::start().await;
    let answer = Answer::ok()
        .generated(1000)
        .etag("\"honest\"")
        .cache_control("no-cache");
    let answer = answer.ranges(true).last_modified(SystemTime::UNIX_EPOCH);
    origin.any("/a").answer(match lie {
        Some(lie) => answer.lie(lie),
        None => answer,
    });
    let mut seen = Vec::new();
    for (method, headers) in [
        ("GET", ""),
        ("GET", ""),
        ("GET", "range: bytes=100-299\r\nif-range: \"older\"\r\n"),
        ("GET", "range: bytes=100-299\r\n"),
        ("GET", "if-none-match: \"honest\"\r\n"),
        ("GET", "if-none-match: \"older\"\r\n"),
        ("HEAD", ""),
    ] {
        let mut wire = Wire::to(&origin).await;
        wire.ask(method, "/a", headers).await;
        seen.push(without_now(&wire.all().await));
    }
    drop(origin);
    seen
}

/// Leaves out a `Date` of this minute.
fn without_now(bytes: &[u8]) -> Vec<u8> {
    let is_now = |line: &[u8]| {
        let text = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.trim().strip_prefix("date: "));
        let date = text.and_then(|text| httpdate::parse_http_date(text).ok());
        date.is_some_and(|date| {
            let past = SystemTime::now()
                .duration_since(date)
                .unwrap_or(Duration::ZERO);
            let ahead = date
                .duration_since(SystemTime::now())
                .unwrap_or(Duration::ZERO);
            past + ahead < Duration::from_secs(60)
        })
    };
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines
        .map(|line| {
            if is_now(line) {
                &b"date: now\r\n"[..]
            } else {
                line
            }
        })
        .collect::<Vec<_>>()
        .concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lie_is_told_and_ends() {
    let honest = seen(None).await;
    let mut tasks = tokio::task::JoinSet::new();
    let mut waiting = Lie::ALL.iter().copied();
    let mut unmoved = Vec::new();
    loop {
        while tasks.len() < 64
            && let Some(lie) = waiting.next()
        {
            tasks.spawn(async move { (lie, seen(Some(lie)).await) });
        }
        let Some(done) = tasks.join_next().await else {
            break;
        };
        let (lie, seen) = done.expect("no panic");
        if seen == honest {
            unmoved.push(lie);
        }
    }
    assert_eq!(unmoved, [], "these look like the truth");
}

#[tokio::test]
async fn http2_serves_the_same_routes() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let origin = Origin::builder()
        .h2c(true)
        .start()
        .await
        .expect("an origin");
    let gate = origin.get("/a").body("hello").etag("\"x\"").gated_at(2);
    let stream = TcpStream::connect(origin.addr()).await.expect("connect");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a handshake");
    tokio::spawn(connection);
    let request = |target: &str| {
        let uri = format!("http://a{target}");
        http::Request::get(uri)
            .body(Empty::<bytes::Bytes>::new())
            .expect("a request")
    };
    let response = sender
        .send_request(request("/a"))
        .await
        .expect("a response");
    assert_eq!(response.headers()["etag"], "\"x\"");
    gate.reached().await;
    gate.open();
    assert_eq!(
        response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes(),
        "hello"
    );
    let response = sender
        .send_request(request("/bytes/300k"))
        .await
        .expect("a response");
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    assert_eq!(body, body_bytes("/bytes/300k", 0..300 * 1024));
    let response = sender
        .send_request(request("/bytes/10k?lie=truncated"))
        .await
        .expect("a response");
    assert!(response.into_body().collect().await.is_err());
    // The same port still speaks HTTP/1.1.
    assert_eq!(
        Wire::to(&origin).await.get("/bytes/3", "").await.body,
        body_bytes("/bytes/3", 0..3)
    );
    assert_eq!(origin.last_request("/a").version, http::Version::HTTP_2);
}

#[tokio::test]
async fn https_offers_http2_and_its_authority_signs() {
    use std::sync::Arc;

    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    let origin = Origin::builder()
        .tls(true)
        .start()
        .await
        .expect("an origin");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(origin.ca_pem().as_bytes()).expect("pem"))
        .expect("a root");
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    for (offered, chosen) in [
        (&[&b"h2"[..], b"http/1.1"][..], &b"h2"[..]),
        (&[b"http/1.1"], b"http/1.1"),
    ] {
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config.clone()));
        let stream = TcpStream::connect(origin.tls_addr())
            .await
            .expect("connect");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = connector.connect(name, stream).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(chosen));
        if chosen == b"http/1.1" {
            stream
                .write_all(b"GET /bytes/5 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                .await
                .expect("send");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("an answer");
            assert!(all.ends_with(&body_bytes("/bytes/5", 0..5)));
        }
    }
}
