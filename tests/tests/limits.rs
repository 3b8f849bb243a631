//! What one client may cost. All limits are small here, so that nothing takes long.

use std::time::Duration;

use caje_node::telemetry::{CacheResult, StatusClass, TimeoutPhase};
use caje_tests::{Connection, End, Node, Origin, OriginAnswer};

const SHORT: Duration = Duration::from_millis(150);

async fn stage(change: impl FnOnce(&mut caje_node::config::Limits)) -> (Origin, Node) {
    let origin = Origin::start().await;
    origin.prefix("/").body("x").cache_control("max-age=60");
    let node = Node::with(&origin, |config| change(&mut config.limits)).await;
    (origin, node)
}

#[tokio::test]
async fn a_long_target_is_414() {
    let (origin, node) = stage(|limits| limits.max_uri_bytes = 100).await;
    node.get(&format!("/{}", "a".repeat(99))).await.says("x");
    let mut connection = node.connect().await;
    connection
        .send(node.get(&format!("/{}", "a".repeat(100))).bytes())
        .await;
    connection.answer("GET").await.expect(414);
    connection.is_closed().await;
    assert_eq!(origin.requests_total(), 1);
}

/// An origin may say more in its head than a client.
#[tokio::test]
async fn a_response_may_have_many_fields() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|_| {
        let answer = OriginAnswer::ok()
            .body("x")
            .header("cache-control", "max-age=60");
        (0..200).fold(answer, |answer, n| answer.header(&format!("x-{n}"), "1"))
    });
    let node = Node::start(&origin).await;
    for is_hit in [false, true] {
        let got = node.get("/a").await.says("x");
        assert!(got.head.has("x-199"), "{}", got.head.text);
        assert_eq!(got.head.is_hit(), is_hit);
    }
}

#[tokio::test]
async fn a_large_head_is_431() {
    let (origin, node) = stage(|limits| {
        limits.max_header_bytes = 2000;
        limits.max_headers = 20;
    })
    .await;
    node.get("/a")
        .header("x", &"y".repeat(1500))
        .await
        .says("x");
    for fields in [
        format!("x: {}\r\n", "y".repeat(2000)),
        "x: y\r\n".repeat(21),
    ] {
        let mut connection = node.connect().await;
        connection
            .send(format!(
                "GET /b HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n"
            ))
            .await;
        connection.answer("GET").await.expect(431);
        connection.is_closed().await;
    }
    // One that never ends is refused as soon as it is too large.
    let mut connection = node.connect().await;
    connection
        .send("GET /b HTTP/1.1\r\nhost: a.example\r\n")
        .await;
    while connection
        .try_send("x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(100))
        .await
        .is_ok()
    {}
    assert_eq!(origin.requests("/b"), 0);
    assert!(
        node.metric("caje_bad_requests_total{reason=\"headers_too_large\"}")
            .await
            >= 3.0
    );
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let (_origin, node) = stage(|limits| limits.first_byte_timeout = SHORT).await;
    let mut connection = node.connect().await;
    let all = connection.all().await;
    assert!(
        all.is_empty() || all.starts_with(b"HTTP/1.1 408"),
        "{all:?}"
    );
    // Half an HTTP/2 preface is no better.
    let mut connection = node.connect().await;
    connection.send("PRI * HTTP/2.0\r\n").await;
    let all = connection.all().await;
    assert!(!all.starts_with(b"HTTP/1.1 200"), "{all:?}");
    assert!(
        node.metric("caje_client_timeouts_total{phase=\"first_byte\"}")
            .await
            >= 1.0
    );
}

/// A head that comes too slowly, though bytes keep coming.
#[tokio::test]
async fn a_slow_head_is_408() {
    let (origin, node) = stage(|limits| limits.header_timeout = SHORT).await;
    let mut connection = node.connect().await;
    connection
        .send("GET /a HTTP/1.1\r\nhost: a.example\r\n")
        .await;
    connection.answer("GET").await.expect(408);
    connection.is_closed().await;
    let mut connection = node.connect().await;
    connection.get("/a").await.says("x");
    connection.send("GET /a HTTP/1.1\r\n").await;
    connection.answer("GET").await.expect(408);
    assert_eq!(origin.requests_total(), 1);
    assert!(
        node.metric("caje_client_timeouts_total{phase=\"head\"}")
            .await
            >= 2.0
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let (_origin, node) = stage(|limits| limits.idle_timeout = SHORT).await;
    let mut connection = node.connect().await;
    connection.get("/a").await.says("x");
    connection.is_closed().await;
    node.open_connections(0).await;
}

/// A body that stops coming takes neither a connection nor the origin's time for long.
#[tokio::test]
async fn a_slow_body_ends() {
    let (origin, node) = stage(|limits| {
        limits.header_timeout = SHORT;
        limits.body_rate = 1_000_000;
    })
    .await;
    for framing in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let mut connection = node.connect().await;
        connection
            .send(format!(
                "POST /a HTTP/1.1\r\nhost: a.example\r\n{framing}\r\n\r\n5\r\nhello\r\n"
            ))
            .await;
        let all = connection.all().await;
        assert!(all.starts_with(b"HTTP/1.1 408"), "{all:?}");
        node.open_connections(0).await;
        origin.wait_open_connections(0).await;
    }
}

/// A body that comes as fast as it must, but not whole in time.
#[tokio::test]
async fn an_endless_body_is_408() {
    let (origin, node) = stage(|limits| {
        limits.request_timeout = SHORT;
        limits.body_rate = 0;
    })
    .await;
    let mut connection = node.connect().await;
    connection
        .send("POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: 1000000\r\n\r\nhello")
        .await;
    connection.answer("POST").await.expect(408);
    connection.is_closed().await;
    origin.wait_open_connections(0).await;
}

const HTTP2_UPLOAD: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "a.example"),
    (":path", "/upload"),
];

/// Sends a byte of a body on stream 1 again and again, with a request on a stream of its own after
/// each, until there is a verdict on stream 1; gives its kind and the number of answers that the
/// others had.
async fn drip_over_http2(node: &Node) -> (u8, usize) {
    use caje_tests::frame_type::{DATA, HEADERS, RST_STREAM};
    let mut raw = caje_tests::RawHttp2::to(node.address()).await;
    raw.headers(1, false, &HTTP2_UPLOAD).await;
    let get = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/other"),
    ];
    let (mut verdict, mut answers) = (None, 0);
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    for stream in (3..).step_by(2) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the body may drip on after {answers} bytes"
        );
        if verdict.is_none() {
            raw.frame(DATA, 0, 1, b"x").await;
        }
        raw.headers(stream, true, &get).await;
        loop {
            let frame = raw.next().await.expect("the connection lives on");
            if frame.stream == 1 && matches!(frame.kind, HEADERS | RST_STREAM) {
                verdict.get_or_insert(frame.kind);
            }
            assert!(
                frame.stream == 1 || frame.kind != RST_STREAM,
                "another stream is reset: {frame:?}"
            );
            if frame.stream == stream && frame.flags & 1 == 1 {
                answers += 1;
                break;
            }
        }
        // One more answer than it takes to know.
        if let Some(kind) = verdict
            && answers > 3
        {
            return (kind, answers);
        }
    }
    unreachable!("streams have numbers enough")
}

/// HTTP/2: a body that drips costs its client the stream, and nobody else anything.
#[tokio::test]
async fn a_slow_http2_body_ends() {
    let (origin, node) = stage(|limits| {
        limits.header_timeout = SHORT;
        limits.body_rate = 1_000_000_000;
    })
    .await;
    let (kind, _) = drip_over_http2(&node).await;
    assert_eq!(
        kind,
        caje_tests::frame_type::HEADERS,
        "an answer came first"
    );
    node.until("an answer of class 4xx", |metrics| {
        metrics
            .requests
            .get((StatusClass::ClientError, CacheResult::Bypass))
            == 1
    })
    .await;
    origin.wait_open_connections(0).await;
}

/// HTTP/2: a body that comes as fast as it must, but without end.
#[tokio::test]
async fn an_endless_http2_body_ends() {
    let (origin, node) = stage(|limits| {
        limits.request_timeout = SHORT;
        limits.body_rate = 0;
    })
    .await;
    drip_over_http2(&node).await;
    origin.wait_open_connections(0).await;
}

/// HTTP/2: an answer that has begun before the body was too slow is cut.
#[tokio::test]
async fn a_slow_http2_body_cuts_an_answer_that_has_begun() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x").cache_control("max-age=60");
    let gate = origin
        .post("/upload")
        .generated(2000)
        .early()
        .gated_at(1000);
    let node = Node::with(&origin, |config| {
        config.limits.header_timeout = SHORT;
    })
    .await;
    let mut raw = caje_tests::RawHttp2::to(node.address()).await;
    raw.headers(1, false, &HTTP2_UPLOAD).await;
    gate.reached().await;
    let mut last = None;
    while last != Some(caje_tests::frame_type::RST_STREAM) {
        last = Some(raw.next().await.expect("a frame").kind);
    }
    gate.open();
    raw.headers(
        3,
        true,
        &[
            (":method", "GET"),
            HTTP2_UPLOAD[1],
            HTTP2_UPLOAD[2],
            (":path", "/other"),
        ],
    )
    .await;
    assert_eq!(raw.verdict().await.expect("a frame").stream, 3);
    origin.wait_open_connections(0).await;
}

/// A client that takes nothing of its answer is let go.
#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(64 << 20)
        .cache_control("no-store");
    let node = Node::with(&origin, |config| config.limits.write_timeout = SHORT).await;
    let mut connection = Connection::narrow(node.address()).await;
    connection.send(node.get("/a").bytes()).await;
    origin.wait_requests("/a", 1).await;
    node.open_connections(0).await;
    origin.wait_open_connections(0).await;
    let got = connection.begin("GET").await.rest().await;
    assert_eq!(got.end, End::Cut);
    assert_eq!(slow_server::verify_body("/a", 0, &got.body), Ok(()));
}

/// HTTP/2: a client that grants no window loses its streams, whether their answers are small or large
/// and come from the store or an origin, and keeps its connection.
#[tokio::test]
async fn an_http2_client_that_grants_no_window_loses_its_streams() {
    use caje_tests::frame_type::{RST_STREAM, SETTINGS};
    let origin = Origin::start().await;
    let _ = origin
        .prefix("/large")
        .generated(64 << 20)
        .cache_control("no-store");
    origin.get("/small").body("x").cache_control("max-age=60");
    let node = Node::with(&origin, |config| config.limits.write_timeout = SHORT).await;
    node.get("/small").await.says("x");
    node.at_rest().await;
    let mut raw = caje_tests::RawHttp2::to(node.address()).await;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    raw.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    let mut head = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/large"),
    ];
    let mut reset = std::collections::BTreeSet::new();
    for stream in [1, 3] {
        raw.headers(stream, true, &head).await;
        head[3].1 = "/small";
    }
    while reset.len() < 2 {
        let frame = raw.next().await.expect("the connection lives on");
        if frame.kind == RST_STREAM {
            reset.insert(frame.stream);
        }
    }
    origin.wait_open_connections(0).await;
    assert_eq!(node.metrics().client_timeouts.get(TimeoutPhase::Write), 2);
    // Each thread has its listener, and there is this connection.
    node.tasks_at_most(3).await;
    // With a window, the connection is as good as ever.
    raw.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]).await;
    raw.headers(5, true, &head).await;
    loop {
        let frame = raw.next().await.expect("a frame");
        if frame.stream == 5 && frame.flags & 1 == 1 {
            break;
        }
    }
}

#[tokio::test]
async fn connections_per_address_are_capped() {
    let (_origin, node) = stage(|limits| limits.max_connections_per_address = 5).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut connection = node.connect().await;
        connection.get("/a").await.says("x");
        open.push(connection);
    }
    let mut refused = node.connect().await;
    let _ = refused.try_send(node.get("/a").bytes()).await;
    let all = refused.all().await;
    assert!(!all.starts_with(b"HTTP/1.1 200"), "{all:?}");
    assert!(
        node.metric("caje_client_connections_refused_total{reason=\"per_address\"}")
            .await
            >= 1.0
    );
    // Another address has its own; and a place that is given back can be taken.
    open.pop().expect("a connection").reset();
    node.open_connections(4).await;
    let mut connection = node.connect().await;
    connection.get("/a").await.says("x");
}

#[tokio::test]
async fn connections_in_all_are_capped() {
    let (_origin, node) = stage(|limits| limits.max_connections = 3).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut connection = node.connect().await;
        connection.get("/a").await.says("x");
        open.push(connection);
    }
    let mut refused = node.connect().await;
    let _ = refused.try_send(node.get("/a").bytes()).await;
    assert!(!refused.all().await.starts_with(b"HTTP/1.1 200"));
    assert!(
        node.metric("caje_client_connections_refused_total{reason=\"total\"}")
            .await
            >= 1.0
    );
    for connection in &mut open {
        connection.get("/a").await.says("x");
    }
}

/// Chunk extensions are bounded in all, not each by itself.
#[tokio::test]
async fn endless_chunk_extensions_end() {
    let (_origin, node) = stage(|_| {}).await;
    for chunk in [
        format!("1;{}\r\nx\r\n", "e".repeat(1000)),
        format!("1;{}", "e".repeat(1_000_000)),
    ] {
        let mut connection = node.connect().await;
        connection
            .send("POST /a HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        let mut sent = 0;
        while connection.try_send(&chunk).await.is_ok() {
            sent += chunk.len();
            assert!(
                sent < 64 << 20,
                "{sent} bytes of chunk extensions were taken"
            );
        }
    }
}

#[tokio::test]
async fn a_trailer_bomb_ends() {
    let (_origin, node) = stage(|_| {}).await;
    let mut connection = node.connect().await;
    connection.send("POST /a HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n").await;
    let mut sent = 0;
    let lines = "x-trailer: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000);
    while connection.try_send(&lines).await.is_ok() {
        sent += lines.len();
        assert!(sent < 64 << 20, "{sent} bytes of trailers were taken");
    }
}

/// Pipelined requests beyond what is answered wait in the kernel, not in memory.
#[tokio::test]
async fn a_flood_of_pipelined_requests_is_held_back() {
    let origin = Origin::start().await;
    let gate = origin.get("/a").body("x").gated();
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection.send(node.get("/a").bytes()).await;
    gate.reached().await;
    let many = node.get("/a").bytes().repeat(1000);
    let mut sent = 0;
    // The sockets' buffers take some megabytes; then sending stalls, which is what is wanted.
    while let Ok(Ok(())) = tokio::time::timeout(SHORT, connection.try_send(&many)).await {
        sent += many.len();
        assert!(sent < 256 << 20, "the node takes everything");
    }
    gate.open();
    connection.reset();
    node.open_connections(0).await;
}

/// 500 clients that leave in the middle of a miss leave descriptors and tasks where they were.
#[tokio::test]
async fn clients_that_leave_in_the_middle_cost_nothing() {
    let origin = Origin::start().await;
    let gate = origin
        .prefix("/leave")
        .generated(1 << 20)
        .cache_control("max-age=60")
        .gated_at(1000);
    origin.get("/warm").body("x").cache_control("max-age=60");
    let node = Node::with(&origin, |config| {
        config.limits.linger = Duration::from_millis(10);
        config.origins[0].idle_timeout = SHORT;
        config.origins[0].max_connections = 4000;
    })
    .await;
    node.get("/warm").await.says("x");
    node.at_rest().await;
    node.open_connections(0).await;
    let tasks = node.inner().live_tasks();
    for _round in 0..5 {
        let mut answers = Vec::new();
        for n in 0..100 {
            // Some share a fill, some have their own.
            let mut answer = node.get(&format!("/leave/{}", n / 4)).open().await;
            answer.take(1000).await;
            answers.push(answer);
        }
        answers.into_iter().for_each(caje_tests::Answer::leave);
        node.open_connections(0).await;
    }
    node.at_rest().await;
    gate.open();
    origin.wait_open_connections(0).await;
    node.tasks_at_most(tasks).await;
    assert_eq!(node.metric("caje_origin_connections").await, 0.0);
    node.get("/leave/0").await.is_whole("/leave/0", 1 << 20);
}

/// A client whose request is whole and that leaves before its answer is missed at once.
#[tokio::test]
async fn a_client_that_leaves_after_its_upload_is_noticed() {
    let origin = Origin::start().await;
    let gate = origin.post("/a").body("x").gated();
    let node = Node::start(&origin).await;
    for body in [
        "content-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut connection = node.connect().await;
        connection
            .send(format!("POST /a HTTP/1.1\r\nhost: a.example\r\n{body}"))
            .await;
        gate.reached().await;
        connection.reset();
        node.open_connections(0).await;
        origin.wait_open_connections(0).await;
    }
    gate.open();
}

/// The same in the middle of an answer that came before the request was whole.
#[tokio::test]
async fn a_client_that_leaves_an_early_answer_is_noticed() {
    let origin = Origin::start().await;
    let gate = origin.post("/a").generated(2000).early().gated_at(1000);
    let node = Node::start(&origin).await;
    let head = "POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: ";
    // Bytes are counted 16 KiB at a time: the last one is what makes them count.
    let length = (16 << 10) - head.len() - "16000\r\n\r\n".len();
    let mut connection = node.connect().await;
    connection.send(format!("{head}{length}\r\n\r\n")).await;
    let mut answer = connection.begin("POST").await;
    answer.take(1000).await;
    let mut connection = answer.into_connection();
    connection.send(vec![b'x'; length]).await;
    node.until("the whole request", |metrics| {
        metrics.request_bytes.total() == 16 << 10
    })
    .await;
    connection.reset();
    node.open_connections(0).await;
    origin.wait_open_connections(0).await;
    gate.open();
}

/// Clients that would take every descriptor wait; those that came first, misses and the administrator
/// are served meanwhile, and who waits is when somebody leaves.
#[tokio::test]
async fn descriptors_are_kept_for_what_is_no_client() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x").cache_control("max-age=60");
    let folder = caje_tests::Folder::new();
    let (log, store) = (folder.join("log"), folder.join("store"));
    let arguments = [
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--origin",
        &origin.url(),
        "--data-dir",
        &store.display().to_string(),
        "--memory",
        "16MiB",
        "--no-access-log",
    ];
    let program = caje_tests::Program::start_with_descriptors(&arguments, 184, &log).await;
    let mut first = program.connect().await;
    first.get("/a").await.says("x");
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(program.connect().await);
    }
    let mut last = idle.pop().expect("a connection");
    last.send("GET /last HTTP/1.1\r\nhost: a.example\r\n\r\n")
        .await;
    // The administrator's answers are what takes the others' time to be accepted.
    let metric = async |name: &str| -> f64 {
        let text = program.admin("/metrics").await.expect(200).text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect("a series").parse().expect("a number")
    };
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    while metric("caje_client_connections").await < 20.0 {
        assert!(tokio::time::Instant::now() < deadline, "too few are served");
    }
    assert!(first.get("/a").await.says("x").head.is_hit());
    for n in 0..10 {
        first.get(&format!("/miss/{n}")).await.says("x");
    }
    assert!(metric("caje_client_connections").await < 132.0);
    let refused = "caje_client_connections_refused_total{reason=\"descriptors\"}";
    assert_eq!(metric(refused).await, 0.0);
    assert_eq!(origin.requests("/last"), 0);
    let told = std::fs::read_to_string(&log).expect("read the log");
    assert!(told.contains("limits.max_connections is above"), "{told}");
    // A place that is given back is taken.
    drop(idle);
    last.answer("GET").await.says("x");
}

/// HTTP/2: a connection without a word, and a stream whose body stops.
#[tokio::test]
async fn silent_http2_connections_end() {
    let (_origin, node) = stage(|limits| {
        limits.idle_timeout = SHORT;
        limits.header_timeout = SHORT;
        limits.write_timeout = SHORT;
    })
    .await;
    let mut raw = caje_tests::RawHttp2::to(node.address()).await;
    while raw.next().await.is_some() {}
    let mut raw = caje_tests::RawHttp2::to(node.address()).await;
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/a"),
    ];
    raw.headers(1, false, &head).await;
    while raw.next().await.is_some() {}
    node.open_connections(0).await;
}

/// HTTP/2: heads are bounded too.
#[tokio::test]
async fn a_large_http2_head_is_refused() {
    let (origin, node) = stage(|limits| {
        limits.max_header_bytes = 4000;
        limits.max_uri_bytes = 100;
    })
    .await;
    let mut client = caje_tests::Http2::to(node.address()).await;
    let target = format!("/{}", "a".repeat(100));
    assert_eq!(client.get(&target).await.status(), 414);
    let mut raw = caje_tests::RawHttp2::to(node.address()).await;
    let large = "y".repeat(100);
    let mut head = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/a"),
    ];
    head.extend((0..100).map(|_| ("x-large", large.as_str())));
    raw.headers(1, true, &head).await;
    let verdict = raw.verdict().await;
    let passed = verdict
        .as_ref()
        .is_some_and(|frame| frame.status() == Some(200));
    assert!(!passed, "{verdict:?}");
    assert_eq!(origin.requests_total(), 0);
}
