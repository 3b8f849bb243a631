//! Origins over HTTP/2 and over TLS.

use caje_node::config::{Http2, OriginUrl};
use caje_tests::{Folder, Node, Origin, RawHttp2, frame_type, settings};
use slow_server::Alpn;

const SIZE: u64 = 300_000;

async fn plays(origin: &Origin, node: &Node) {
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    origin
        .post("/a")
        .respond_with(|request| caje_tests::OriginAnswer::ok().body(request.body.clone()));
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    assert!(node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
    node.post("/a").body("hello").await.says("hello");
    let request = origin.last_request("/a");
    assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.header_lines("via").join(", "), "1.1 caje");
    node.get("/a")
        .range("1000-1999")
        .await
        .is_part("/a", 1000..2000, SIZE);
    // A body under way is joined here too.
    let gate = origin
        .get("/b")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(1000);
    let mut first = node.get("/b").open().await;
    first.take(1000).await;
    let mut second = node.get("/b").open().await;
    second.take(1000).await;
    gate.open();
    for answer in [first, second] {
        assert_eq!(
            slow_server::verify_body("/b", 1000, &answer.rest().await.body),
            Ok(())
        );
    }
    assert_eq!(origin.requests("/b"), 1);
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let origin = Origin::builder()
        .h2c(true)
        .start()
        .await
        .expect("start an origin");
    let node = Node::with(&origin, |config| {
        config.origins[0].http2 = Http2::PriorKnowledge
    })
    .await;
    plays(&origin, &node).await;
    assert_eq!(origin.last_request("/b").version, http::Version::HTTP_2);
}

/// An HTTP/2 connection that ends takes nothing with it: what is asked next goes out on another.
#[tokio::test]
async fn an_http2_connection_that_ended_is_replaced() {
    let origin = Origin::builder().h2c(true).start().await;
    let origin = origin.expect("start an origin");
    origin.prefix("/").body("x");
    let node = Node::with(&origin, |config| {
        config.node.threads = 1.try_into().expect("not zero");
        config.origins[0].http2 = Http2::PriorKnowledge;
        config.origins[0].max_connections = 1;
    })
    .await;
    for n in 0..3 {
        node.get(&format!("/{n}")).await.says("x");
        origin.kill_connections();
    }
}

/// An origin that takes one request at a time on each connection: none is sent before it has said so.
#[tokio::test]
async fn an_http2_origin_may_take_one_request_at_a_time() {
    let origin = Origin::builder().h2c(true).http2_streams(1).start().await;
    let origin = origin.expect("start an origin");
    let gate = origin.prefix("/").generated(5000).gated();
    let node = Node::with(&origin, |config| {
        config.node.threads = 1.try_into().expect("not zero");
        config.origins[0].http2 = Http2::PriorKnowledge;
        config.origins[0].max_connections = 20;
    })
    .await;
    let asked = (0..60).map(|n| {
        let ask = node.get(&format!("/{n}"));
        tokio::spawn(async move { ask.await })
    });
    let asked: Vec<_> = asked.collect();
    // As many as there may be connections; the others wait for their turn.
    gate.reached_n(20).await;
    gate.open();
    for (n, answer) in asked.into_iter().enumerate() {
        let answer = answer.await.expect("an answer");
        answer.is_whole(&format!("/{n}"), 5000);
    }
    assert_eq!(origin.requests_total(), 60);
}

/// A stream that the origin refuses was not looked at: its request is asked once more, whatever its
/// method and however new its connection.
#[tokio::test]
async fn a_refused_stream_is_asked_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a listener");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        for connection in 0.. {
            let (socket, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let mut raw = RawHttp2::accepted(socket).await;
                while let Some(frame) = raw.next().await {
                    let (kind, flags, payload): (_, _, &[u8]) = match connection {
                        // REFUSED_STREAM.
                        0 => (frame_type::RST_STREAM, 0, &[0, 0, 0, 7]),
                        // `:status: 204`, which ends head and stream.
                        _ => (frame_type::HEADERS, 5, &[0x89]),
                    };
                    if frame.kind == frame_type::HEADERS {
                        raw.frame(kind, flags, frame.stream, payload).await;
                    }
                }
            });
        }
    });
    let origin = Origin::start().await;
    let node = Node::with(&origin, |config| {
        let settings = &mut config.origins[0];
        settings.url = OriginUrl::parse(&format!("http://{address}")).expect("a URL");
        settings.http2 = Http2::PriorKnowledge;
    })
    .await;
    node.post("/a").await.expect(204);
}

async fn over_tls(alpn: Alpn, http2: Http2) -> (Origin, Node) {
    let origin = Origin::builder()
        .tls(true)
        .alpn(alpn)
        .start()
        .await
        .expect("start an origin");
    let folder = Folder::new();
    let ca = folder.join("ca.pem");
    std::fs::write(&ca, origin.ca_pem()).expect("write a file");
    let mut config = settings(&origin, &folder);
    let settings = &mut config.origins[0];
    settings.url = OriginUrl::parse(&origin.tls_url()).expect("a URL");
    settings.tls_ca = Some(ca);
    settings.http2 = http2;
    let node = Node::run(config, folder).await;
    (origin, node)
}

#[tokio::test]
async fn tls_negotiates_the_version() {
    for (alpn, http2, version) in [
        (Alpn::H2AndHttp1, Http2::Auto, http::Version::HTTP_2),
        (Alpn::H2AndHttp1, Http2::Off, http::Version::HTTP_11),
        (Alpn::Http1, Http2::Auto, http::Version::HTTP_11),
    ] {
        let (origin, node) = over_tls(alpn, http2).await;
        plays(&origin, &node).await;
        assert_eq!(origin.last_request("/b").version, version, "{http2:?}");
    }
}

/// A certificate that nobody vouches for, or of another name, is no origin.
#[tokio::test]
async fn certificates_are_checked() {
    let (origin, node) = over_tls(Alpn::Http1, Http2::Auto).await;
    origin.get("/a").body("x");
    node.get("/a").await.says("x");
    let mut config = node.config();
    config.origins[0].tls_name = Some("other.example".to_owned());
    node.inner().reload(config).expect("reload");
    // The living connections were checked for the old name: ask where none is.
    origin.kill_connections();
    origin.wait_open_connections(0).await;
    let got = node.get("/a").await.expect(502);
    assert!(
        got.head.cache_status().contains("detail="),
        "{}",
        got.head.text
    );
    let mut config = node.config();
    config.origins[0].tls_ca = None;
    node.inner().reload(config.clone()).expect("reload");
    node.get("/a").await.expect(502);
    config.origins[0].tls_insecure = true;
    node.inner().reload(config).expect("reload");
    node.get("/a").await.says("x");
}
