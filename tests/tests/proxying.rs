//! Proxying: what a request and an answer carry on, what they do not, and both directions at once.

use std::time::Duration;

use bytes::Bytes;
use caje_node::config::{Cidr, HostHeader, HostPattern, Origin as Settings, OriginUrl};
use caje_tests::{CANARY, End, Node, Origin, OriginAnswer};
use http::Method;

#[tokio::test]
async fn an_unknown_host_is_404() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::with(&origin, |config| {
        config.origins[0].hosts = vec![HostPattern::parse("a.example").expect("a pattern")];
    })
    .await;
    node.get("/").await.says("x");
    node.get("/").host("A.Example:80").await.says("x");
    for host in [
        "b.example",
        "a.example.evil",
        "xa.example",
        "127.0.0.1",
        "[::1]:80",
    ] {
        let got = node.get("/").host(host).await.expect(404);
        assert!(got.head.has("cache-status"), "{}", got.head.text);
    }
    assert_eq!(origin.requests_total(), 2);
}

/// Several origins by host and path prefix: the most specific host, then the longest prefix.
#[tokio::test]
async fn origins_are_chosen_by_host_and_prefix() {
    let (one, two, three) = (
        Origin::start().await,
        Origin::start().await,
        Origin::start().await,
    );
    for (origin, name) in [(&one, "one"), (&two, "two"), (&three, "three")] {
        origin.prefix("/").body(name);
    }
    let node = Node::with(&one, |config| {
        let template = config.origins[0].clone();
        let another = |name: &str, origin: &Origin| Settings {
            name: name.to_owned(),
            url: OriginUrl::parse(&origin.url()).expect("a URL"),
            ..template.clone()
        };
        config.origins.push(Settings {
            path_prefix: "/video".to_owned(),
            ..another("two", &two)
        });
        let hosts = vec![HostPattern::parse("*.example.org").expect("a pattern")];
        config.origins.push(Settings {
            hosts,
            ..another("three", &three)
        });
    })
    .await;
    for (host, target, name) in [
        ("a.example", "/", "one"),
        ("a.example", "/video", "two"),
        ("a.example", "/video/x", "two"),
        ("a.example", "/video?x", "two"),
        ("a.example", "/videos", "one"),
        ("a.example", "/Video", "one"),
        ("a.example", "/%76ideo", "one"),
        ("x.example.org", "/", "three"),
        ("x.example.org", "/video", "three"),
        ("example.org", "/", "one"),
    ] {
        assert_eq!(
            node.get(target).host(host).await.expect(200).text(),
            name,
            "{host}{target}"
        );
    }
}

#[tokio::test]
async fn the_host_header_is_as_configured() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let authority = origin.addr().to_string();
    for (setting, expected) in [
        (HostHeader::Client, "a.example"),
        (HostHeader::Origin, authority.as_str()),
        (HostHeader::Literal("b.example".to_owned()), "b.example"),
    ] {
        let node = Node::with(&origin, |config| {
            config.origins[0].host_header = setting.clone()
        })
        .await;
        node.get("/a").await.says("x");
        assert_eq!(origin.last_request("/a").header_lines("host"), [expected]);
    }
}

#[tokio::test]
async fn loops_are_refused() {
    let origin = Origin::start().await;
    origin.get("/a").body("x").cache_control("max-age=60");
    let node = Node::with(&origin, |config| {
        config.node.cdn_id = "caje-test".to_owned()
    })
    .await;
    for line in [
        "caje-test",
        "other, caje-test",
        "CAJE-test; v=1",
        "other; a=\",\", caje-test",
    ] {
        let got = node.get("/a").header("cdn-loop", line).await;
        assert_eq!(got.status(), 508, "{line}: {}", got.head.text);
        assert!(got.head.has("cache-status"));
    }
    node.get("/a")
        .header("cdn-loop", "other")
        .header("cdn-loop", "caje-test")
        .await
        .expect(508);
    assert_eq!(origin.requests_total(), 0);
    node.get("/a")
        .header("cdn-loop", "other; v=1")
        .await
        .says("x");
    let lines = origin
        .last_request("/a")
        .header_lines("cdn-loop")
        .join(", ");
    assert_eq!(lines, "other; v=1, caje-test");
}

/// A node that is its own origin ends at once.
#[tokio::test]
async fn a_node_in_front_of_itself_ends() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    let mut config = node.config();
    config.origins[0].url = OriginUrl::parse(&format!("http://{}", node.address())).expect("a URL");
    node.inner().reload(config).expect("reload");
    let got = node.get("/a").await;
    assert_eq!(got.status(), 508, "{}", got.head.text);
    assert!(
        got.head.all("cache-status").len() >= 2 || got.head.cache_status().contains("caje"),
        "{}",
        got.head.text
    );
}

#[tokio::test]
async fn via_grows_both_ways() {
    let origin = Origin::start().await;
    origin.get("/a").body("x").header("via", "1.0 shield");
    let node = Node::start(&origin).await;
    let got = node.get("/a").header("via", "2 edge").await.says("x");
    assert_eq!(got.head.all("via").join(", "), "1.0 shield, 1.1 caje");
    assert_eq!(
        origin.last_request("/a").header_lines("via").join(", "),
        "2 edge, 1.1 caje"
    );
}

#[tokio::test]
async fn forwarding_fields_are_overwritten() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let node = Node::start(&origin).await;
    let ask = || {
        let ask = node
            .get("/a")
            .header("x-forwarded-for", "6.6.6.6")
            .header("x-forwarded-for", "7.7.7.7");
        let ask = ask
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "evil.example");
        ask.header("forwarded", "for=6.6.6.6;host=evil.example;proto=https")
            .header("x-real-ip", "6.6.6.6")
    };
    ask().await.says("x");
    let request = origin.last_request("/a");
    assert_eq!(request.header_lines("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.header_lines("x-forwarded-proto"), ["http"]);
    assert_eq!(request.header_lines("x-forwarded-host"), ["a.example"]);
    let forwarded = request.header_lines("forwarded").join(", ");
    assert!(
        forwarded.contains("for=127.0.0.1") && !forwarded.contains("6.6.6.6"),
        "{forwarded}"
    );
    assert!(!String::from_utf8_lossy(&request.raw_head).contains("6.6.6.6"));
    assert!(!String::from_utf8_lossy(&request.raw_head).contains("evil"));
}

#[tokio::test]
async fn a_trusted_proxy_s_word_is_extended() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let node = Node::with(&origin, |config| {
        config.node.trust_forwarded = vec![Cidr::parse("127.0.0.0/8").expect("a network")];
    })
    .await;
    let ask = node
        .get("/a")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-forwarded-proto", "https");
    ask.header("forwarded", "for=6.6.6.6").await.says("x");
    let request = origin.last_request("/a");
    assert_eq!(
        request.header_lines("x-forwarded-for").join(", "),
        "6.6.6.6, 127.0.0.1"
    );
    assert_eq!(request.header_lines("x-forwarded-proto"), ["https"]);
    assert!(
        request
            .header_lines("forwarded")
            .join(", ")
            .starts_with("for=6.6.6.6, for=127.0.0.1")
    );
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_end_here() {
    let origin = Origin::start().await;
    origin.any("/a").body("x");
    let node = Node::start(&origin).await;
    let fields = [
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "x-nominated",
        "x-other",
    ];
    for method in ["GET", "POST"] {
        let mut ask = node
            .ask(method, "/a")
            .header("connection", "X-Nominated , x-other,,keep-alive");
        for name in fields {
            ask = ask.header(name, CANARY);
        }
        ask.await.says("x");
        let request = origin.last_request("/a");
        let head = String::from_utf8_lossy(&request.raw_head).into_owned();
        assert!(!head.contains(CANARY), "{head}");
    }
}

/// `Connection` cannot nominate away what frames, routes, authorises or governs caching (threats F7).
#[tokio::test]
async fn connection_cannot_nominate_what_matters() {
    let origin = Origin::start().await;
    origin.any("/a").body("x");
    let node = Node::start(&origin).await;
    let names = "authorization, host, cookie, content-length, x-forwarded-for, cache-control, via, cdn-loop, close";
    let ask = node
        .post("/a")
        .header("connection", names)
        .header("authorization", "a")
        .header("cookie", "c");
    ask.header("cache-control", "no-cache")
        .body("hello")
        .await
        .says("x");
    let request = origin.last_request("/a");
    for (name, value) in [
        ("authorization", "a"),
        ("host", "a.example"),
        ("cookie", "c"),
        ("x-forwarded-for", "127.0.0.1"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert!(request.headers.contains_key("via") && request.headers.contains_key("cdn-loop"));
    assert_eq!(request.body, "hello");
}

#[tokio::test]
async fn end_to_end_fields_and_targets_arrive_as_they_were() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::start(&origin).await;
    for target in [
        "/a//b/./../c",
        "/%61?x=%20&&",
        "/a;b=c,d",
        "/'\"<>|{}^`",
        "/?",
        "/a?b?c#d".split('#').next().expect("one"),
    ] {
        node.get(target)
            .header("x-a", "1")
            .header("x-a", "2")
            .header("cookie", "a=b; c=d")
            .await
            .says("x");
        let request = origin.requests_log().pop().expect("a request");
        assert_eq!(request.target, target);
        assert_eq!(request.header_lines("x-a"), ["1", "2"]);
        assert_eq!(request.header_lines("cookie"), ["a=b; c=d"]);
    }
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

/// An absolute target wins over `Host`, and goes upstream in origin form.
#[tokio::test]
async fn an_absolute_target_wins() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|request| {
        let host = request.header("host").unwrap_or_default();
        OriginAnswer::ok()
            .body(format!("{host} {}", request.target))
            .cache_control("max-age=60")
    });
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection
        .send("GET http://b.example/a HTTP/1.1\r\nhost: a.example\r\n\r\n")
        .await;
    connection.answer("GET").await.says("b.example /a");
    assert!(
        node.get("/a")
            .host("b.example")
            .await
            .says("b.example /a")
            .head
            .is_hit()
    );
    node.get("/a").await.says("a.example /a");
    connection
        .send("GET http://b.example HTTP/1.1\r\nhost: a.example\r\n\r\n")
        .await;
    connection.answer("GET").await.expect(200);
    assert_eq!(origin.requests_log().pop().expect("a request").target, "/");
}

#[tokio::test]
async fn trace_and_connect_are_refused() {
    let origin = Origin::start().await;
    origin.any("/a").body("x");
    let node = Node::start(&origin).await;
    let got = node.ask("TRACE", "/a").header("cookie", CANARY).await;
    assert!(matches!(got.status(), 405 | 501), "{}", got.head.text);
    assert!(!got.text().contains(CANARY));
    let mut connection = node.connect().await;
    connection
        .send("CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n")
        .await;
    let got = connection.answer("GET").await;
    assert!(matches!(got.status(), 400 | 405 | 501), "{}", got.head.text);
    assert_eq!(origin.requests_total(), 0);
}

#[tokio::test]
async fn options_counts_its_forwards() {
    let origin = Origin::start().await;
    origin.on(Method::OPTIONS, "/a").status(204);
    let node = Node::start(&origin).await;
    let got = node.ask("OPTIONS", "/a").header("max-forwards", "0").await;
    assert!(matches!(got.status(), 200 | 204), "{}", got.head.text);
    assert_eq!(origin.requests_total(), 0);
    node.ask("OPTIONS", "/a")
        .header("max-forwards", "5")
        .await
        .expect(204);
    assert_eq!(origin.last_request("/a").header("max-forwards"), Some("4"));
    let mut connection = node.connect().await;
    connection
        .send("OPTIONS * HTTP/1.1\r\nhost: a.example\r\n\r\n")
        .await;
    connection.answer("OPTIONS").await;
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

#[tokio::test]
async fn unknown_methods_go_through() {
    let origin = Origin::start().await;
    origin
        .any("/a")
        .respond_with(|request| OriginAnswer::ok().body(request.method.to_string()));
    let node = Node::start(&origin).await;
    for method in ["PROPFIND", "M-SEARCH", "get"] {
        node.ask(method, "/a").await.says(method);
    }
    // What would remove stored responses is not for everybody.
    for method in ["PURGE", "BAN", "TRACE"] {
        node.ask(method, "/a").await.expect(405);
    }
}

/// A request's body streams to the origin while the answer streams back.
#[tokio::test]
async fn a_post_streams_both_ways_at_once() {
    let origin = Origin::start().await;
    origin.post("/mirror").mirror();
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection
        .send("POST /mirror HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    connection.send("3\r\nabc\r\n").await;
    let mut answer = connection.begin("POST").await;
    assert_eq!(answer.head.status, 200);
    assert_eq!(answer.take(3).await, "abc");
    // The origin has answered the first piece; the second is sent only now.
    let mut connection = answer.into_connection();
    connection.send("4\r\ndefg\r\n").await;
    // First comes the end of the first chunk.
    assert_eq!(connection.take(11).await, "\r\n4\r\ndefg\r\n");
    connection.send("0\r\n\r\n").await;
    assert_eq!(connection.take(5).await, "0\r\n\r\n");
    assert!(origin.malformed().is_empty());
}

/// An answer that comes before the request's body has ended reaches the client then.
#[tokio::test]
async fn an_early_answer_is_not_held_back() {
    let origin = Origin::start().await;
    origin.post("/a").status(403).body("no").early();
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection
        .send("POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: 10000000\r\n\r\nsome")
        .await;
    let got = connection.answer("POST").await.expect(403);
    assert_eq!(got.text(), "no");
    assert!(
        got.head
            .get("connection")
            .is_some_and(|value| value.contains("close")),
        "{}",
        got.head.text
    );
}

/// An origin that answers first and reads afterwards gets the whole upload, without a hole in it; then
/// the connection serves the next request or ends, but never hangs.
#[tokio::test]
async fn an_upload_goes_on_after_an_early_answer() {
    let origin = Origin::start().await;
    origin.post("/a").body("early").early();
    origin.get("/b").body("b");
    let node = Node::start(&origin).await;
    for length in [20_000, 60_000, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8).collect();
        let mut connection = node.connect().await;
        let whole = node.post("/a").body(body.clone()).bytes();
        let first = whole.len() - body.len() + 1000;
        connection.send(&whole[..first]).await;
        connection.answer("POST").await.says("early");
        let mut is_open = true;
        for piece in whole[first..].chunks(7000) {
            is_open = is_open && connection.try_send(piece).await.is_ok();
        }
        let next = node.get("/b").bytes();
        if is_open && connection.try_send(next).await.is_ok() {
            let next = connection.next_head().await;
            assert!(next.is_none_or(|head| head.status == 200));
        }
        let received = || origin.last_request("/a").body_bytes;
        caje_tests::until(
            || format!("{length} bytes at the origin; {} came", received()),
            || received() == u64::from(length),
        )
        .await;
        let hash = origin.last_request("/a").body_hash;
        assert_eq!(hash, slow_server::hash(&body), "of {length}");
    }
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    let origin = Origin::start().await;
    origin.post("/a").body("got it");
    let node = Node::start(&origin).await;
    let body = Bytes::from(slow_server::body_bytes("/upload", 0..5_000_000));
    node.post("/a").body(body.clone()).await.says("got it");
    origin.wait_finished("/a", 1).await;
    let request = origin.last_request("/a");
    assert_eq!(
        (request.body_bytes, request.body_hash),
        (5_000_000, slow_server::hash(&body))
    );
    assert_eq!(request.header("content-length"), Some("5000000"));
    // The same in chunks of odd sizes.
    let mut connection = node.connect().await;
    connection
        .send("POST /a HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for piece in body.chunks(77_777) {
        connection
            .send(format!("{:X};ext=1\r\n", piece.len()))
            .await;
        connection.send(piece).await;
        connection.send("\r\n").await;
    }
    connection.send("0\r\n\r\n").await;
    connection.answer("POST").await.says("got it");
    let request = origin.last_request("/a");
    assert_eq!(
        (request.body_bytes, request.body_hash),
        (5_000_000, slow_server::hash(&body))
    );
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let origin = Origin::start().await;
    origin.post("/a").body("x").trailer("x-sum", "42");
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    let head = "POST /a HTTP/1.1\r\nhost: a.example\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-up\r\n\r\n";
    connection.send(head).await;
    connection.send("1\r\na\r\n0\r\nx-up: 7\r\n\r\n").await;
    let got = connection.answer("POST").await.says("x");
    assert_eq!(got.trailers, ["x-sum: 42"]);
    assert_eq!(
        origin
            .last_request("/a")
            .trailers
            .get("x-up")
            .map(|value| value.as_bytes()),
        Some(&b"7"[..])
    );
}

/// Trailers that would frame, route or govern caching are dropped or refused, never merged.
#[tokio::test]
async fn trailers_cannot_smuggle_fields() {
    let origin = Origin::start().await;
    origin.post("/a").body("x");
    origin.get("/b").body("b");
    let node = Node::start(&origin).await;
    for name in [
        "content-length",
        "transfer-encoding",
        "host",
        "authorization",
        "cache-control",
        "content-range",
    ] {
        let mut connection = node.connect().await;
        connection
            .send("POST /a HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        connection
            .send(format!("1\r\na\r\n0\r\n{name}: 5\r\n\r\n"))
            .await;
        connection.answer("POST").await;
        for request in origin.requests_log() {
            assert!(!request.trailers.contains_key(name), "{name}");
        }
    }
    node.get("/b").await.says("b");
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

/// 103 goes to the client at once, though the answer is held.
#[tokio::test]
async fn early_hints_are_forwarded() {
    let origin = Origin::start().await;
    for directive in ["no-store", "max-age=60"] {
        let gate = origin
            .get("/a")
            .body("x")
            .cache_control(directive)
            .early_hints(&[("link", "</s.css>; rel=preload")])
            .gated_at(0);
        let node = Node::start(&origin).await;
        let mut connection = node.connect().await;
        connection.send(node.get("/a").bytes()).await;
        let hint = connection.next_head().await.expect("a head");
        assert_eq!(
            (hint.status, hint.get("link")),
            (103, Some("</s.css>; rel=preload"))
        );
        gate.open();
        connection.answer("GET").await.says("x");
        // A stored response has no hints; an HTTP/1.0 client would not understand them.
        connection
            .send("GET /a?x HTTP/1.0\r\nhost: a.example\r\n\r\n")
            .await;
        assert!(connection.answer("GET").await.interim.is_empty());
    }
}

/// Interim answers that come in one piece with the final one belong to it, and not to the next answer.
#[tokio::test]
async fn interim_answers_do_not_leak_into_the_next_answer() {
    let origin = Origin::start().await;
    let answer = "HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-length: 1\r\n\r\nx";
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </s.css>; rel=preload\r\n\r\n";
    origin.get("/a").raw_keep_open(format!("{hints}{answer}"));
    origin.get("/b").raw_keep_open(answer);
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    for _ in 0..3 {
        let first = connection.get("/a").await.says("x");
        assert_eq!(first.interim.len(), 1, "{:?}", first.interim);
        let second = connection.get("/b").await.says("x");
        assert!(second.interim.is_empty(), "{:?}", second.interim);
    }
}

#[tokio::test]
async fn unknown_interim_answers_are_no_answers() {
    let origin = Origin::start().await;
    origin.get("/a").body("x").interim(102).interim(199);
    let node = Node::start(&origin).await;
    node.get("/a").await.says("x");
}

#[tokio::test]
async fn expect_is_answered_once_and_when_the_body_is_wanted() {
    let origin = Origin::start().await;
    origin
        .post("/a")
        .respond_with(|request| OriginAnswer::ok().body(request.body.clone()));
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection
        .send("POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
        .await;
    let head = connection.next_head().await.expect("an interim head");
    assert_eq!(head.status, 100);
    connection.send("hello").await;
    let got = connection.answer("POST").await.says("hello");
    assert!(got.interim.is_empty());
    // The connection goes on.
    connection
        .ask("POST", "/a", "content-length: 0\r\n")
        .await
        .says("");
}

/// Refused without a look at the body: no 100, and what the client sends then is no request.
#[tokio::test]
async fn expect_with_a_refusal_does_not_desynchronise() {
    let origin = Origin::start().await;
    origin.post("/a").status(403).early();
    origin.get("/smuggled").body(CANARY);
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";
    let length = smuggled.len();
    let head = format!(
        "POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
    );
    connection.send(head).await;
    let got = connection.answer("POST").await;
    assert!(
        got.status() == 403 || got.status() == 100,
        "{}",
        got.head.text
    );
    // Whether a client sends it or not: it is the body.
    let _ = connection.try_send(smuggled).await;
    connection.finish().await;
    let rest = connection.all().await;
    assert!(!String::from_utf8_lossy(&rest).contains(CANARY), "{rest:?}");
    assert_eq!(origin.requests("/smuggled"), 0);
}

#[tokio::test]
async fn an_unknown_expectation_is_417() {
    let origin = Origin::start().await;
    origin.post("/a").body("x");
    let node = Node::start(&origin).await;
    node.post("/a")
        .header("expect", "the-unexpected")
        .body("x")
        .await
        .expect(417);
    assert_eq!(origin.requests_total(), 0);
}

#[tokio::test]
async fn an_upgrade_is_tunnelled_after_101() {
    let origin = Origin::start().await;
    origin.any("/ws").upgrade();
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection
        .send("GET /ws HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    let head = connection.next_head().await.expect("a head");
    assert_eq!(head.status, 101);
    assert!(
        head.get("upgrade")
            .is_some_and(|value| value.eq_ignore_ascii_case("websocket")),
        "{}",
        head.text
    );
    for text in ["hello", "GET / HTTP/1.1\r\n\r\n", "bye"] {
        connection.send(text).await;
        assert_eq!(connection.take(text.len()).await, text);
    }
    connection.finish().await;
    connection.is_closed().await;
    node.open_connections(0).await;
    origin.wait_open_connections(0).await;
}

/// Without a 101 there is no tunnel: the next bytes are a request, and checked as one.
#[tokio::test]
async fn without_101_there_is_no_tunnel() {
    let origin = Origin::start().await;
    origin.get("/a").body("plain");
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    let fields = "connection: upgrade\r\nupgrade: websocket\r\n";
    connection.ask("GET", "/a", fields).await.says("plain");
    connection.get("/a").await.says("plain");
    connection.send("garbage\r\n\r\n").await;
    connection.answer("GET").await.expect(400);
    connection.is_closed().await;
    // `Upgrade` that `Connection` does not name is not passed on; nor is one with a body.
    node.get("/a")
        .header("upgrade", "websocket")
        .await
        .says("plain");
    assert_eq!(origin.last_request("/a").header("upgrade"), None);
    assert!(origin.malformed().is_empty());
}

/// HTTP within a tunnel would reach the origin unseen: an offer of it is ignored, and the request is one
/// like any other.
#[tokio::test]
async fn an_upgrade_to_http_is_ignored() {
    let origin = Origin::start().await;
    origin.get("/a").body("plain").cache_control("max-age=60");
    let node = Node::start(&origin).await;
    for (offer, is_hit) in [("h2c", false), ("H2C", true), ("websocket, h2c", true)] {
        let mut connection = node.connect().await;
        let fields = format!(
            "connection: upgrade, http2-settings\r\nupgrade: {offer}\r\nhttp2-settings: AAMAAABk\r\n"
        );
        let got = connection.ask("GET", "/a", &fields).await.says("plain");
        assert_eq!(got.head.is_hit(), is_hit, "{offer}: {}", got.head.text);
        connection.get("/a").await.says("plain");
    }
    let asked = origin.last_request("/a");
    for name in ["upgrade", "http2-settings"] {
        assert_eq!(asked.header(name), None, "{name}");
    }
    // Not even where the origin would switch.
    origin.any("/ws").upgrade();
    let mut connection = node.connect().await;
    let got = connection
        .ask("GET", "/ws", "connection: upgrade\r\nupgrade: h2c\r\n")
        .await;
    assert_ne!(got.status(), 101);
}

/// Requests that come before their turn are answered in order.
#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::start().await;
    let gate = origin.get("/0").body("0").gated();
    for n in 1..10 {
        origin
            .get(&format!("/{n}"))
            .body(n.to_string())
            .cache_control("max-age=60");
        origin
            .post(&format!("/{n}"))
            .respond_with(|request| OriginAnswer::ok().body(request.body.clone()));
    }
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    let mut all = String::new();
    for n in 0..10 {
        match n % 3 {
            1 => {
                all += &format!(
                    "POST /{n} HTTP/1.1\r\nhost: a.example\r\ncontent-length: 2\r\n\r\np{n}"
                )
            }
            2 => {
                all += &format!(
                    "POST /{n} HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n2\r\np{n}\r\n0\r\n\r\n"
                )
            }
            _ => all += &format!("GET /{n} HTTP/1.1\r\nhost: a.example\r\n\r\n"),
        }
    }
    connection.send(all).await;
    gate.reached().await;
    gate.open();
    for n in 0..10 {
        let method = if n % 3 == 0 { "GET" } else { "POST" };
        let expected = if n % 3 == 0 {
            n.to_string()
        } else {
            format!("p{n}")
        };
        connection.answer(method).await.says(&expected);
    }
    assert!(origin.malformed().is_empty());
}

/// A request that comes byte by byte is a request.
#[tokio::test]
async fn a_head_may_come_byte_by_byte() {
    let origin = Origin::start().await;
    origin
        .post("/a")
        .respond_with(|request| OriginAnswer::ok().body(request.body.clone()));
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    for byte in node.post("/a").body("hello").bytes() {
        connection.send([byte]).await;
    }
    connection.answer("POST").await.says("hello");
}

#[tokio::test]
async fn connections_are_kept_and_closed_as_asked() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x").cache_control("max-age=60");
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    for _ in 0..3 {
        connection.get("/a").await.says("x");
    }
    let got = connection
        .ask("GET", "/a", "connection: close\r\n")
        .await
        .says("x");
    assert_eq!(got.head.get("connection"), Some("close"));
    connection.is_closed().await;
    let mut connection = node.connect().await;
    connection
        .send("GET /a HTTP/1.0\r\nhost: a.example\r\n\r\n")
        .await;
    connection.answer("GET").await.says("x");
    connection.is_closed().await;
    let mut connection = node.connect().await;
    for _ in 0..2 {
        connection
            .send("GET /a HTTP/1.0\r\nhost: a.example\r\nconnection: keep-alive\r\n\r\n")
            .await;
        let got = connection.answer("GET").await.says("x");
        assert_eq!(got.head.get("connection"), Some("keep-alive"));
    }
}

/// A body of unknown length ends with the connection for an HTTP/1.0 client.
#[tokio::test]
async fn an_http10_client_gets_no_chunks() {
    let origin = Origin::start().await;
    origin.get("/a").generated(100_000).chunked();
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection
        .send("GET /a HTTP/1.0\r\nhost: a.example\r\nconnection: keep-alive\r\n\r\n")
        .await;
    let got = connection.answer("GET").await.is_whole("/a", 100_000);
    assert!(!got.head.has("transfer-encoding"), "{}", got.head.text);
}

/// A pooled connection that the origin has closed costs the client nothing.
#[tokio::test]
async fn a_dead_pooled_connection_is_replaced() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::with(&origin, |config| {
        config.node.threads = 1.try_into().expect("one")
    })
    .await;
    for n in 0..5 {
        node.get(&format!("/{n}")).await.says("x");
        origin.close_idle_connections();
        origin.wait_open_connections(0).await;
    }
    for n in 0..3 {
        node.get(&format!("/again/{n}")).await.says("x");
    }
    // Connections are used again where they live.
    assert!(origin.connections() <= 6, "{}", origin.connections());
}

/// A request with a body is never sent twice.
#[tokio::test]
async fn a_post_is_never_repeated() {
    let origin = Origin::start().await;
    origin.get("/warm").body("x");
    origin.post("/a").raw("");
    let node = Node::with(&origin, |config| {
        config.node.threads = 1.try_into().expect("one")
    })
    .await;
    node.get("/warm").await.says("x");
    let got = node.post("/a").body("pay").await;
    assert_eq!(got.status(), 502, "{}", got.head.text);
    assert_eq!(origin.requests("/a"), 1);
}

/// A client that leaves while its upload is under way ends it at the origin too.
#[tokio::test]
async fn an_upload_that_breaks_off_breaks_off_at_the_origin() {
    let origin = Origin::start().await;
    origin.post("/a").body("x");
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection
        .send("POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: 1000\r\n\r\nhalf")
        .await;
    origin.wait_requests("/a", 1).await;
    connection.reset();
    node.open_connections(0).await;
    origin.wait_open_connections(0).await;
    assert_eq!(origin.counts("/a").finished, 0);
}

/// A client that leaves while the origin thinks ends an exchange that is for nobody else.
#[tokio::test]
async fn a_client_that_leaves_ends_its_own_exchange() {
    let origin = Origin::start().await;
    let gate = origin.post("/a").body("x").gated();
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection.send(node.post("/a").bytes()).await;
    gate.reached().await;
    connection.reset();
    node.open_connections(0).await;
    origin.wait_open_connections(0).await;
    gate.open();
}

/// An answer without a body by its nature has none, whatever the origin says.
#[tokio::test]
async fn bodiless_answers_have_no_body() {
    let origin = Origin::start().await;
    origin.get("/204").status(204);
    origin.get("/304").status(304).header("etag", "\"1\"");
    origin
        .get("/head")
        .generated(1000)
        .cache_control("no-store");
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    let got = connection.get("/204").await.expect(204);
    assert!(
        !got.head.has("content-length") && !got.head.has("transfer-encoding"),
        "{}",
        got.head.text
    );
    let got = connection.ask("HEAD", "/head", "").await.expect(200);
    assert_eq!((got.head.length(), got.end), (Some(1000), End::Whole));
    connection.get("/head").await.is_whole("/head", 1000);
}

/// Small writes of a slow origin arrive one by one, without being held for more.
#[tokio::test]
async fn an_uncacheable_body_streams_as_it_arrives() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(2000)
        .cache_control("no-store")
        .chunk_size(10)
        .gated_at(10);
    let node = Node::start(&origin).await;
    let mut answer = node.get("/a").open().await;
    assert_eq!(
        slow_server::verify_body("/a", 0, &answer.take(10).await),
        Ok(())
    );
    gate.open();
    let rest = answer.rest().await;
    assert_eq!((rest.end, rest.body.len()), (End::Whole, 1990));
}

/// An origin that accepts nothing more: a clear answer, and soon.
#[tokio::test]
async fn a_busy_origin_is_a_clear_answer() {
    let origin = Origin::start().await;
    let gate = origin.prefix("/held").body("x").gated();
    let node = Node::with(&origin, |config| {
        config.node.threads = 1.try_into().expect("one");
        config.origins[0].max_connections = 2;
        config.origins[0].queue_timeout = Duration::from_millis(100);
    })
    .await;
    let held: Vec<_> = (0..2)
        .map(|n| node.get(&format!("/held/{n}")).start())
        .collect();
    gate.reached_n(2).await;
    let got = node.get("/held/2").await.expect(503);
    assert!(
        got.head.cache_status().contains("detail="),
        "{}",
        got.head.text
    );
    gate.open();
    for answer in held {
        answer.await.expect("an answer").says("x");
    }
    node.get("/held/3").await.says("x");
}

/// An HTTP/1.0 request may come without a host; it goes to an origin for any.
#[tokio::test]
async fn an_http10_request_without_a_host_is_served() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection.send("GET /a HTTP/1.0\r\n\r\n").await;
    connection.answer("GET").await.says("x");
    assert_eq!(origin.last_request("/a").header_lines("host").len(), 1);
    assert!(origin.malformed().is_empty());
}

/// Clients and origins by IPv6, and an origin by name.
#[tokio::test]
async fn ipv6_clients_and_named_origins() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let node = Node::with(&origin, |config| {
        config.node.listen =
            vec![caje_node::config::Address::parse("[::1]:0").expect("an address")];
        let url = format!("http://localhost:{}", origin.addr().port());
        config.origins[0].url = OriginUrl::parse(&url).expect("a URL");
    })
    .await;
    node.get("/a").host("[::1]:8080").await.says("x");
    let request = origin.last_request("/a");
    assert_eq!(request.header_lines("x-forwarded-for"), ["::1"]);
    let forwarded = request.header_lines("forwarded").join(", ");
    assert!(forwarded.contains("for=\"[::1]\""), "{forwarded}");
    assert_eq!(request.header_lines("host"), ["[::1]:8080"]);
}

/// Many fields, and large ones, within the limits arrive both ways.
#[tokio::test]
async fn large_heads_go_through() {
    let origin = Origin::start().await;
    let value = "v".repeat(20_000);
    origin
        .get("/a")
        .body("x")
        .header("x-a", &value)
        .header("x-b", &value)
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        let got = node.get("/a").header("x-up", &value).await.says("x");
        assert_eq!(got.head.get("x-a"), Some(value.as_str()));
        node.at_rest().await;
    }
    assert_eq!(
        origin.last_request("/a").header("x-up"),
        Some(value.as_str())
    );
}
