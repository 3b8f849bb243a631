//! Requests that are no requests: 400 and a closed connection, and the origin hears nothing of them.

use caje_tests::{CANARY, Node, Origin, OriginAnswer};

/// What follows each malformed request on its connection. It must never be answered.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";

async fn stage() -> (Origin, Node) {
    let origin = Origin::start().await;
    origin.any("/smuggled").body(CANARY);
    origin.prefix("/").body("x");
    let node = Node::start(&origin).await;
    (origin, node)
}

async fn is_refused(node: &Node, bytes: &[u8], statuses: &[u16]) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let mut connection = node.connect().await;
    // The node may close while this is being sent.
    let _ = connection.try_send(bytes).await;
    let _ = connection.try_send(SMUGGLED).await;
    let got = connection.answer("GET").await;
    assert!(
        statuses.contains(&got.status()),
        "{shown:?}: {}",
        got.head.text
    );
    let rest = connection.all().await;
    assert!(
        rest.is_empty(),
        "{shown:?}: after the refusal came {rest:?}"
    );
}

fn get(lines: &str) -> Vec<u8> {
    format!("GET /x HTTP/1.1\r\nhost: a.example\r\n{lines}\r\n").into_bytes()
}

fn post(lines: &str, body: &str) -> Vec<u8> {
    format!("POST /x HTTP/1.1\r\nhost: a.example\r\n{lines}\r\n{body}").into_bytes()
}

#[tokio::test]
async fn ambiguous_lengths_are_refused() {
    let (origin, node) = stage().await;
    let body = "0\r\n\r\n";
    let forms = [
        post("content-length: 5\r\ntransfer-encoding: chunked\r\n", body),
        post("transfer-encoding: chunked\r\ncontent-length: 5\r\n", body),
        post("content-length: 5\r\ncontent-length: 6\r\n", "hello!"),
        post("content-length: 5, 6\r\n", "hello!"),
        post("content-length: +5\r\n", "hello"),
        post("content-length: -5\r\n", "hello"),
        post("content-length: 0x5\r\n", "hello"),
        post("content-length: 5 5\r\n", "hello"),
        post("content-length: 5.0\r\n", "hello"),
        post("content-length: five\r\n", "hello"),
        post("content-length: \r\n", ""),
        post("content-length: 18446744073709551621\r\n", "hello"),
        post("content-length: 99999999999999999999999999\r\n", "hello"),
        post("content-length: \"5\"\r\n", "hello"),
        post("content-length: 5;\r\n", "hello"),
        post("content-length:\u{b}5\r\n", "hello"),
        post("content-length : 5\r\n", "hello"),
        post(" content-length: 5\r\n", "hello"),
        post("x: y\r\n content-length: 5\r\n", "hello"),
    ];
    for form in forms {
        is_refused(&node, &form, &[400]).await;
    }
    assert_eq!(origin.requests_total(), 0);
    assert!(origin.malformed().is_empty());
}

#[tokio::test]
async fn unclear_transfer_codings_are_refused() {
    let (origin, node) = stage().await;
    let body = "0\r\n\r\n";
    for coding in [
        "transfer-encoding: identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunkedx",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding:\u{b}chunked",
        "transfer-encoding: \u{c}chunked",
        "transfer-encoding: chunked\u{0}",
        "transfer-encoding: ",
        "transfer-encoding: ,",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: x\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: cow",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding:\r\n chunked",
        "transfer_encoding: chunked\r\ntransfer-encoding: chunked, cow",
    ] {
        is_refused(&node, &post(&format!("{coding}\r\n"), body), &[400, 501]).await;
    }
    // HTTP/1.0 has no transfer codings.
    let form =
        format!("POST /x HTTP/1.0\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    is_refused(&node, form.as_bytes(), &[400]).await;
    assert_eq!(origin.requests_total(), 0);
    assert!(origin.malformed().is_empty());
}

#[tokio::test]
async fn malformed_heads_are_refused() {
    let (origin, node) = stage().await;
    let forms: [&[u8]; 30] = [
        b"GET /x HTTP/1.1\nhost: a.example\n\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\n\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\nb: c\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\rb\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\r\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\0b\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\x01b\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\x7fb\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx\0: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx y: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx : a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\n: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nno colon\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\r\n folded\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\nx: a\r\n\tfolded\r\n\r\n",
        b"GET /x HTTP/1.1\r\n host: a.example\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\n\xc3\xa9: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a.example\r\n\"x\": a\r\n\r\n",
        b"GET /x y HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"GET  /x HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"GET /x  HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"GET\t/x\tHTTP/1.1\r\nhost: a.example\r\n\r\n",
        b" GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"GET /x HTTP/1.1 \r\nhost: a.example\r\n\r\n",
        b"G@T /x HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"GET /x\0y HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"GET /x\x7f HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"\0\0\0\0GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
    ];
    for form in forms {
        is_refused(&node, form, &[400]).await;
    }
    assert_eq!(origin.requests_total(), 0);
    assert!(
        node.metric("caje_bad_requests_total{reason=\"syntax\"}")
            .await
            >= 20.0
    );
}

#[tokio::test]
async fn wrong_versions_are_refused() {
    let (origin, node) = stage().await;
    for line in [
        "GET /x",
        "GET /x HTTP/1.2.3",
        "GET /x HTTP/2.0",
        "GET /x HTTP/0.9",
        "GET /x http/1.1",
        "GET /x HTTP/1,1",
        "GET /x HTTP/11",
        "GET /x HTTPS/1.1",
        "GET /x HTTP/01.1",
        "GET /x HTTP/1.1x",
    ] {
        let form = format!("{line}\r\nhost: a.example\r\n\r\n");
        is_refused(&node, form.as_bytes(), &[400, 505]).await;
    }
    assert_eq!(origin.requests_total(), 0);
}

#[tokio::test]
async fn wrong_hosts_and_targets_are_refused() {
    let (origin, node) = stage().await;
    let with_host = |host: &str| format!("GET /x HTTP/1.1\r\n{host}\r\n\r\n");
    for host in [
        "x: y",
        "host: a.example\r\nhost: a.example",
        "host: a.example\r\nhost: b.example",
        "host: a.example, b.example",
        "host: a.example/x",
        "host: user@a.example",
        "host: a.example:port",
        "host: a.example:99999",
        "host: a example",
        "host: a.example\\",
        "host: a.example?x",
        "host: a.example#x",
        "host: [::1",
        "host: ::1",
        "host: [::g]",
        "host: <script>",
        "host: a\u{e9}.example",
        "host: http://a.example",
        "host : a.example",
    ] {
        is_refused(&node, with_host(host).as_bytes(), &[400]).await;
    }
    for target in [
        "x",
        "a.example",
        "//",
        "http:/x",
        "http://",
        "http:///x",
        "http://u@a.example/x",
        "ftp://a.example/x",
        "http://a example/x",
        "/x#y",
        "*",
        "?x",
        "\\x",
        "http://a.example:x/",
    ] {
        // Two slashes are a path; all others are no target of a GET.
        let statuses: &[u16] = if target == "//" { &[200] } else { &[400] };
        let form = format!("GET {target} HTTP/1.1\r\nhost: a.example\r\n\r\n");
        if statuses == [400] {
            is_refused(&node, form.as_bytes(), statuses).await;
        }
    }
    assert_eq!(origin.requests_total(), 0);
    // An empty host is allowed by the grammar; it never means another site.
    let mut connection = node.connect().await;
    connection.send("GET /x HTTP/1.1\r\nhost:\r\n\r\n").await;
    assert!(matches!(
        connection.answer("GET").await.status(),
        200 | 400 | 404
    ));
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

/// A body that breaks its framing takes its request and its connection with it.
#[tokio::test]
async fn malformed_chunks_end_the_exchange() {
    let (origin, node) = stage().await;
    origin
        .post("/x")
        .respond_with(|request| OriginAnswer::ok().body(request.body.clone()));
    for chunks in [
        "x\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
        "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        "5\r\nhello\r\n0\r\n folded: x\r\n\r\n",
        "5\r\nhello\r\n0\r\nx : y\r\n\r\n",
        "5;a=\0\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut connection = node.connect().await;
        let _ = connection
            .try_send(post("transfer-encoding: chunked\r\n", chunks))
            .await;
        let _ = connection.try_send(SMUGGLED).await;
        // The head may have been answered already; what must not be is an answer to what follows.
        let all = String::from_utf8_lossy(&connection.all().await).into_owned();
        assert!(!all.contains(CANARY), "{chunks:?}: {all}");
        assert!(!all.starts_with("HTTP/1.1 200"), "{chunks:?}: {all}");
        assert!(
            all.is_empty() || all.starts_with("HTTP/1.1 400"),
            "{chunks:?}: {all}"
        );
    }
    assert_eq!(origin.requests("/smuggled"), 0);
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
    assert!(
        origin
            .requests_log()
            .iter()
            .all(|request| request.trailers.is_empty())
    );
}

/// What is unusual and right is a request.
#[tokio::test]
async fn unusual_requests_are_understood() {
    let (origin, node) = stage().await;
    origin
        .post("/x")
        .respond_with(|request| OriginAnswer::ok().body(request.body.clone()));
    let mut connection = node.connect().await;
    let forms = [
        ("GET", "\r\nGET /x HTTP/1.1\r\nhost: a.example\r\n\r\n".to_owned(), "x"),
        ("POST", "POST /x HTTP/1.1\r\nhost: a.example\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello".to_owned(), "hello"),
        ("POST", "POST /x HTTP/1.1\r\nhost: a.example\r\ncontent-length: 5, 5\r\n\r\nhello".to_owned(), "hello"),
        ("POST", "POST /x HTTP/1.1\r\nhost: a.example\r\ncontent-length:   05\t\r\n\r\nhello".to_owned(), "hello"),
        ("POST", "POST /x HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: Chunked\r\n\r\n005;a=b;c=\"d;e\"\r\nhello\r\n000\r\n\r\n".to_owned(), "hello"),
        ("GET", "GET /x HTTP/1.1\r\nHOST: a.example\r\nx-empty:\r\nx-latin: \u{e9}\r\n\r\n".to_owned(), "x"),
        ("GET", format!("GET /x HTTP/1.1\r\nhost:a.example\r\nx: {}\r\n\r\n", "y".repeat(8000)), "x"),
    ];
    for (method, form, expected) in forms {
        connection.send(&form).await;
        let got = connection.answer(method).await;
        // Repeated lengths may also be refused (RFC 9112 section 6.3).
        if form.matches("5, 5").count()
            + form.matches("content-length: 5\r\ncontent-length").count()
            > 0
            && got.status() == 400
        {
            connection = node.connect().await;
            continue;
        }
        got.says(expected);
    }
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

/// Whatever a client says of its body, the origin hears one framing.
#[tokio::test]
async fn framing_is_written_anew() {
    let (origin, node) = stage().await;
    for form in [
        post("content-length: 5\r\n", "hello"),
        post(
            "transfer-encoding: chunked\r\n",
            "5;x=y\r\nhello\r\n0\r\n\r\n",
        ),
        post("", ""),
    ] {
        let mut connection = node.connect().await;
        connection.send(form).await;
        connection.answer("POST").await.says("x");
        let request = origin.last_request("/x");
        let lengths = request.header_lines("content-length").len();
        let codings = request.header_lines("transfer-encoding").len();
        assert!(lengths + codings <= 1, "{:?}", request.headers);
        assert!(!String::from_utf8_lossy(&request.raw_head).contains("x=y"));
    }
}

/// The body of a request that was answered from the cache is no request (CVE-2025-4366).
#[tokio::test]
async fn a_body_on_a_hit_is_drained_or_the_connection_closed() {
    let (origin, node) = stage().await;
    origin.get("/hit").body("hit").cache_control("max-age=60");
    node.get("/hit").await.says("hit");
    node.at_rest().await;
    for length in [SMUGGLED.len(), 200_000] {
        let mut connection = node.connect().await;
        let head =
            format!("GET /hit HTTP/1.1\r\nhost: a.example\r\ncontent-length: {length}\r\n\r\n");
        connection.send(head).await;
        connection.send(SMUGGLED).await;
        let got = connection.answer("GET").await;
        assert!(matches!(got.status(), 200 | 400), "{}", got.head.text);
        connection.finish().await;
        let rest = connection.all().await;
        assert!(!String::from_utf8_lossy(&rest).contains(CANARY), "{rest:?}");
    }
    // With the whole body sent, the connection may go on with what comes behind it.
    let mut connection = node.connect().await;
    connection.send(get("content-length: 5\r\n")).await;
    connection.send("hello").await;
    connection.answer("GET").await.expect(200);
    assert_eq!(origin.requests("/smuggled"), 0);
}

/// Half a head and the end.
#[tokio::test]
async fn half_a_head_is_refused() {
    let (origin, node) = stage().await;
    for half in [
        "G",
        "GET /x HTTP/1.1\r\n",
        "GET /x HTTP/1.1\r\nhost: a.example\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM",
    ] {
        let mut connection = node.connect().await;
        connection.send(half).await;
        connection.finish().await;
        let all = connection.all().await;
        assert!(
            all.is_empty() || all.starts_with(b"HTTP/1.1 400"),
            "{half:?}: {all:?}"
        );
    }
    assert_eq!(origin.requests_total(), 0);
    node.open_connections(0).await;
}
