//! HTTP/2 without TLS towards clients, and the heads it must refuse.

use bytes::Bytes;
use caje_tests::{Http2, Node, Origin, OriginAnswer, RawHttp2, frame_type};
use http_body_util::{BodyExt, Full};

const SIZE: u64 = 300_000;

#[tokio::test]
async fn bodies_arrive_whole() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    let mut client = Http2::to(node.address()).await;
    for hit in [false, true] {
        let got = client.get("/a").await;
        assert_eq!(
            (got.status().as_u16(), got.body().len() as u64),
            (200, SIZE)
        );
        assert_eq!(slow_server::verify_body("/a", 0, got.body()), Ok(()));
        let status = got.headers()["cache-status"].to_str().expect("text");
        assert_eq!(status.contains("; hit"), hit, "{status}");
        node.at_rest().await;
    }
    // The same cache as over HTTP/1.1.
    assert!(node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
    let request = client
        .request("GET", "/a")
        .header("range", "bytes=10-19")
        .body(Full::default());
    let got = Http2::whole(client.send(request.expect("a request")).await).await;
    assert_eq!(got.status(), 206);
    assert_eq!(slow_server::verify_body("/a", 10, got.body()), Ok(()));
    let request = client
        .request("HEAD", "/a")
        .body(Full::default())
        .expect("a request");
    let got = Http2::whole(client.send(request).await).await;
    assert_eq!((got.status().as_u16(), got.body().len()), (200, 0));
    assert_eq!(got.headers()["content-length"], SIZE.to_string().as_str());
    let request = client
        .request("GET", "/a")
        .header("if-none-match", "\"1\"")
        .body(Full::default());
    assert_eq!(client.send(request.expect("a request")).await.status(), 304);
    assert_eq!(origin.requests("/a"), 1);
}

/// Streams of one connection do not wait for one another, and share fills with all others.
#[tokio::test]
async fn streams_run_side_by_side() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/held")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(1000);
    origin.get("/b").body("b").cache_control("max-age=60");
    let node = Node::start(&origin).await;
    let mut client = Http2::to(node.address()).await;
    let request = || client_request("/held");
    let mut held = client.send(request()).await;
    let first = held
        .body_mut()
        .frame()
        .await
        .expect("a frame")
        .expect("bytes");
    assert!(first.data_ref().is_some_and(|bytes| !bytes.is_empty()));
    assert_eq!(client.get("/b").await.body(), "b");
    let other = node.get("/held").open().await;
    gate.open();
    other.rest().await.is_whole("/held", SIZE);
    let rest = held
        .into_body()
        .collect()
        .await
        .expect("the rest")
        .to_bytes();
    let begun = first.into_data().expect("bytes");
    assert_eq!((begun.len() + rest.len()) as u64, SIZE);
    assert_eq!(origin.requests("/held"), 1);
}

fn client_request(target: &str) -> http::Request<Full<Bytes>> {
    let uri = format!("http://a.example{target}");
    http::Request::get(uri)
        .body(Full::default())
        .expect("a request")
}

#[tokio::test]
async fn uploads_and_trailers() {
    let origin = Origin::start().await;
    origin.post("/a").body("x").trailer("x-sum", "42");
    let node = Node::start(&origin).await;
    let mut client = Http2::to(node.address()).await;
    let body = Bytes::from(slow_server::body_bytes("/upload", 0..1_000_000));
    let request = client
        .request("POST", "/a")
        .header("cookie", "a=b")
        .header("cookie", "c=d");
    let got = client
        .send(request.body(Full::new(body.clone())).expect("a request"))
        .await;
    assert_eq!(got.status(), 200);
    let got = got.into_body().collect().await.expect("a body");
    assert_eq!(
        got.trailers()
            .and_then(|fields| fields.get("x-sum"))
            .map(|value| value.as_bytes()),
        Some(&b"42"[..])
    );
    let request = origin.last_request("/a");
    assert_eq!(
        (request.body_bytes, request.body_hash),
        (1_000_000, slow_server::hash(&body))
    );
    assert_eq!(request.header_lines("cookie"), ["a=b; c=d"]);
    assert_eq!(request.header_lines("host"), ["a.example"]);
    assert!(
        request.header_lines("via").join(", ").starts_with("2"),
        "{:?}",
        request.header_lines("via")
    );
    assert!(origin.malformed().is_empty());
}

/// A body that breaks at the origin breaks the stream: it does not end.
#[tokio::test]
async fn a_cut_body_is_a_reset_stream() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("no-store")
        .lie(caje_tests::Lie::TruncatedChunked);
    origin.get("/b").body("b");
    let node = Node::start(&origin).await;
    let mut client = Http2::to(node.address()).await;
    let got = client.send(client_request("/a")).await;
    assert!(got.into_body().collect().await.is_err());
    // Only the stream.
    assert_eq!(client.get("/b").await.body(), "b");
}

/// A stream that its client resets ends what was done for it alone.
#[tokio::test]
async fn a_reset_stream_ends_its_exchange() {
    let origin = Origin::start().await;
    let gate = origin.post("/a").body("x").gated();
    let node = Node::start(&origin).await;
    let mut raw = RawHttp2::to(node.address()).await;
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/a"),
    ];
    raw.headers(1, true, &head).await;
    gate.reached().await;
    raw.frame(frame_type::RST_STREAM, 0, 1, &8_u32.to_be_bytes())
        .await;
    origin.wait_open_connections(0).await;
    gate.open();
}

async fn is_refused(node: &Node, fields: &[(&str, &str)], data: Option<&[u8]>) {
    let mut raw = RawHttp2::to(node.address()).await;
    raw.headers(1, data.is_none(), fields).await;
    if let Some(data) = data {
        raw.frame(frame_type::DATA, 1, 1, data).await;
    }
    let verdict = raw.verdict().await;
    let refused = match &verdict {
        None => true,
        Some(frame) if frame.kind == frame_type::HEADERS => {
            matches!(frame.status(), Some(400 | 404 | 501 | 0))
        }
        Some(frame) => matches!(frame.kind, frame_type::RST_STREAM | frame_type::GOAWAY),
    };
    assert!(refused, "{fields:?}: {verdict:?}");
}

/// RFC 9113 sections 8.1 to 8.3.
#[tokio::test]
async fn malformed_requests_are_refused() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::start(&origin).await;
    let method = (":method", "GET");
    let scheme = (":scheme", "http");
    let authority = (":authority", "a.example");
    let path = (":path", "/a");
    let forms: [&[(&str, &str)]; 30] = [
        &[method, scheme, authority],
        &[scheme, authority, path],
        &[method, authority, path],
        &[method, scheme, path],
        &[method, scheme, authority, (":path", "")],
        &[method, scheme, authority, (":path", "a")],
        &[method, scheme, authority, (":path", "*")],
        &[method, scheme, authority, (":path", "/a b")],
        &[method, scheme, authority, (":path", "/a\r\nx: y")],
        &[
            method,
            scheme,
            authority,
            (":path", "/a HTTP/1.1\r\nhost: b\r\n\r\n"),
        ],
        &[method, scheme, authority, (":path", "/a\u{e9}")],
        &[method, (":scheme", "ftp"), authority, path],
        &[method, (":scheme", ""), authority, path],
        &[method, scheme, authority, path, (":path", "/b")],
        &[method, method, scheme, authority, path],
        &[method, scheme, authority, path, (":unknown", "x")],
        &[method, scheme, authority, ("x", "y"), path],
        &[method, scheme, authority, path, ("X-Upper", "y")],
        &[method, scheme, authority, path, ("x y", "z")],
        &[method, scheme, authority, path, ("x", "a\r\nb: c")],
        &[method, scheme, authority, path, ("x", "a\nb")],
        &[method, scheme, authority, path, ("x", "a\0b")],
        &[method, scheme, authority, path, ("connection", "close")],
        &[
            method,
            scheme,
            authority,
            path,
            ("transfer-encoding", "chunked"),
        ],
        &[method, scheme, authority, path, ("host", "b.example")],
        &[
            method,
            scheme,
            authority,
            path,
            ("host", "a.example"),
            ("host", "a.example"),
        ],
        &[method, scheme, (":authority", "u@a.example"), path],
        &[method, scheme, (":authority", "a.example/x"), path],
        &[method, scheme, (":authority", "a example"), path],
        &[(":method", "G T"), scheme, authority, path],
    ];
    for form in forms {
        is_refused(&node, form, None).await;
    }
    for name in ["keep-alive", "proxy-connection", "upgrade"] {
        is_refused(&node, &[method, scheme, authority, path, (name, "x")], None).await;
    }
    assert_eq!(
        origin.requests_total(),
        0,
        "{:?}",
        origin.requests_log().last()
    );
    assert!(origin.malformed().is_empty());
}

/// A length that the data does not keep is an error of the stream, whoever has read how much by then.
#[tokio::test]
async fn a_wrong_length_is_refused() {
    let origin = Origin::start().await;
    origin
        .post("/a")
        .respond_with(|request| OriginAnswer::ok().body(request.body.clone()));
    let node = Node::start(&origin).await;
    let post = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/a"),
    ];
    for length in ["3", "10", "-1", "x", "5, 6"] {
        let fields = [&post[..], &[("content-length", length)]].concat();
        let mut raw = RawHttp2::to(node.address()).await;
        raw.headers(1, false, &fields).await;
        raw.frame(frame_type::DATA, 1, 1, b"hello").await;
        let verdict = raw.verdict().await;
        let is_ok = verdict
            .as_ref()
            .is_some_and(|frame| frame.status() == Some(200));
        assert!(!is_ok, "{length}: {verdict:?}");
    }
    assert!(
        origin
            .requests_log()
            .iter()
            .all(|request| request.body_bytes <= 5)
    );
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

/// Opening and resetting streams without end costs the client its connection, not us our work.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::start(&origin).await;
    let mut raw = RawHttp2::to(node.address()).await;
    let head = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/a"),
    ];
    for stream in (1..20_001).step_by(2) {
        raw.headers(stream, true, &head).await;
        raw.frame(frame_type::RST_STREAM, 0, stream, &8_u32.to_be_bytes())
            .await;
    }
    let mut ended = false;
    while let Some(frame) = raw.next().await {
        ended |= frame.kind == frame_type::GOAWAY;
        if ended {
            break;
        }
    }
    // GOAWAY or the plain end: either way it is over, and others are served.
    assert_eq!(Http2::to(node.address()).await.get("/b").await.body(), "x");
    drop(raw);
    node.open_connections(1).await;
}

#[tokio::test]
async fn loops_and_hosts_are_judged_as_over_http1() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::with(&origin, |config| {
        config.node.cdn_id = "caje-test".to_owned()
    })
    .await;
    let mut client = Http2::to(node.address()).await;
    let request = client
        .request("GET", "/a")
        .header("cdn-loop", "caje-test")
        .body(Full::default());
    assert_eq!(client.send(request.expect("a request")).await.status(), 508);
    let request = client
        .request("GET", "/a")
        .header("x-forwarded-for", "6.6.6.6")
        .body(Full::default());
    assert_eq!(client.send(request.expect("a request")).await.status(), 200);
    assert_eq!(
        origin.last_request("/a").header_lines("x-forwarded-for"),
        ["127.0.0.1"]
    );
}

/// A drain tells the client, and finishes what runs.
#[tokio::test]
async fn a_drain_finishes_streams() {
    let origin = Origin::start().await;
    let gate = origin.get("/a").generated(SIZE).gated_at(1000);
    let mut node = Node::start(&origin).await;
    let mut client = Http2::to(node.address()).await;
    let got = client.send(client_request("/a")).await;
    gate.reached().await;
    let drained = node.begin_drain();
    gate.open();
    let body = got
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    assert_eq!(body.len() as u64, SIZE);
    drained.await.expect("a drain");
}
