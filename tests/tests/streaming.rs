//! Bodies that break: what arrived is passed on, and nothing of it is ever taken for the whole.

use caje_tests::{End, Lie, Node, Origin, OriginAnswer};

const SIZE: u64 = 300_000;

/// Asks until the origin is honest again, and checks every byte on the way.
async fn is_never_whole(lie: Lie, chunked: bool, etag: bool) {
    let origin = Origin::start().await;
    let route = || {
        let route = origin.get("/a").generated(SIZE).cache_control("max-age=60");
        let route = if etag { route.etag("\"1\"") } else { route };
        if chunked { route.chunked() } else { route }
    };
    let _ = route().lie(lie);
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        let got = node.get("/a").await;
        if got.status() == 200 {
            assert_ne!(got.end, End::Whole, "{lie}, of {} bytes", got.body.len());
            assert_eq!(
                slow_server::verify_body("/a", 0, &got.body),
                Ok(()),
                "{lie}"
            );
        }
        node.at_rest().await;
    }
    let _ = route();
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    assert!(
        node.get("/a").await.is_whole("/a", SIZE).head.is_hit(),
        "{lie}"
    );
}

#[tokio::test]
async fn a_truncated_body_is_never_whole() {
    for etag in [false, true] {
        for lie in [
            Lie::Truncated,
            Lie::TruncatedByOne,
            Lie::TruncatedReset,
            Lie::HeadOnly,
        ] {
            is_never_whole(lie, false, etag).await;
        }
    }
}

/// Where the end of the connection ends the body, that end is an orderly one only for a whole body.
#[tokio::test]
async fn a_truncated_body_ends_with_a_reset_over_http10() {
    let origin = Origin::start().await;
    let route = || origin.get("/a").generated(SIZE).chunked();
    let _ = route().lie(Lie::TruncatedChunked);
    let node = Node::start(&origin).await;
    let request = "GET /a HTTP/1.0\r\nhost: a.example\r\n\r\n";
    let mut cut = node.connect().await;
    cut.send(request).await;
    assert!(cut.is_reset().await);
    let _ = route();
    let mut whole = node.connect().await;
    whole.send(request).await;
    assert!(!whole.is_reset().await);
}

#[tokio::test]
async fn a_truncated_chunked_body_is_never_whole() {
    for etag in [false, true] {
        for lie in [
            Lie::TruncatedChunked,
            Lie::TruncatedInChunk,
            Lie::TruncatedBeforeLastCrlf,
        ] {
            is_never_whole(lie, true, etag).await;
        }
    }
}

/// What was cut once is asked for again, and nothing of the first answer is kept without a validator.
#[tokio::test]
async fn a_body_cut_at_the_origin_is_asked_for_again() {
    let origin = Origin::start().await;
    let half = OriginAnswer::ok()
        .generated(SIZE)
        .cache_control("max-age=60")
        .lie(Lie::Truncated);
    let whole = OriginAnswer::ok()
        .generated(SIZE)
        .cache_control("max-age=60");
    origin.get("/a").sequence([half, whole]);
    let node = Node::start(&origin).await;
    let got = node.get("/a").await;
    assert_eq!((got.status(), got.end), (200, End::Cut));
    node.at_rest().await;
    node.get("/a").await.is_whole("/a", SIZE);
    assert_eq!(origin.requests("/a"), 2);
}

/// With a strong validator and ranges, the rest is fetched without the client noticing.
#[tokio::test]
async fn a_body_with_a_strong_validator_is_completed() {
    let origin = Origin::start().await;
    let answer = || {
        OriginAnswer::ok()
            .generated(SIZE)
            .cache_control("max-age=60")
            .etag("\"1\"")
            .ranges(true)
    };
    origin
        .get("/a")
        .sequence([answer().lie(Lie::Truncated), answer()]);
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    let second = origin.last_request("/a");
    assert!(second.header("range").is_some(), "{:?}", second.headers);
    assert_eq!(second.header("if-range"), Some("\"1\""));
    node.at_rest().await;
    assert!(node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
    assert_eq!(origin.requests("/a"), 2);
}

/// The same where no length was announced: the answer with the rest says it.
#[tokio::test]
async fn a_chunked_body_with_a_strong_validator_is_completed() {
    for has_ranges in [true, false] {
        let origin = Origin::start().await;
        let answer = || {
            OriginAnswer::ok()
                .generated(SIZE)
                .cache_control("max-age=60")
                .etag("\"1\"")
                .ranges(has_ranges)
        };
        let cut = answer().chunked().lie(Lie::TruncatedChunked);
        origin.get("/a").sequence([cut, answer()]);
        let node = Node::start(&origin).await;
        node.get("/a").await.is_whole("/a", SIZE);
        let second = origin.last_request("/a");
        assert_eq!(second.header("if-range"), Some("\"1\""));
        assert_eq!(origin.requests("/a"), 2);
    }
}

/// The rest is of another representation: nobody gets a mixture.
#[tokio::test]
async fn a_body_that_changed_half_way_is_cut() {
    let origin = Origin::start().await;
    let answer = |version: u64| {
        OriginAnswer::ok()
            .generated(SIZE)
            .version(version)
            .cache_control("max-age=60")
            .etag(&format!("\"{version}\""))
            .ranges(true)
    };
    origin
        .get("/a")
        .sequence([answer(1).lie(Lie::Truncated), answer(2)]);
    let node = Node::start(&origin).await;
    let got = node.get("/a").await;
    assert_eq!((got.status(), got.end), (200, End::Cut));
    assert_eq!(
        slow_server::BodyFn::of_version("/a", 1).verify(0, &got.body),
        Ok(())
    );
    node.at_rest().await;
    node.get("/a").await.is_version("/a", 2, SIZE);
    node.at_rest().await;
    assert!(node.get("/a").await.is_version("/a", 2, SIZE).head.is_hit());
}

/// More than announced: the announced part is no proof of the whole's worth, and the connection is not used again.
#[tokio::test]
async fn an_over_long_body_poisons_nothing() {
    for lie in [Lie::OverLong, Lie::OverLongClose, Lie::SecondResponse] {
        let origin = Origin::start().await;
        let _ = origin
            .get("/a")
            .generated(SIZE)
            .cache_control("max-age=60")
            .lie(lie);
        let _ = origin.get("/b").generated(1000).cache_control("max-age=60");
        let node = Node::with(&origin, |config| {
            config.node.threads = 1.try_into().expect("one")
        })
        .await;
        let got = node.get("/a").await;
        assert_eq!(
            slow_server::verify_body("/a", 0, &got.body),
            Ok(()),
            "{lie}"
        );
        node.get("/b").await.is_whole("/b", 1000);
        let again = node.get("/a").await;
        assert_eq!(
            slow_server::verify_body("/a", 0, &again.body),
            Ok(()),
            "{lie}"
        );
        assert!(origin.malformed().is_empty());
    }
}

/// A body of chunked coding that breaks reaches its reader as far as it came, without an end.
#[tokio::test]
async fn what_arrived_before_the_break_is_passed_on() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("no-store")
        .lie(Lie::TruncatedChunked);
    let node = Node::start(&origin).await;
    let got = node.get("/a").await;
    assert_eq!((got.status(), got.end), (200, End::Cut));
    assert_eq!(got.body.len() as u64, SIZE / 2);
    assert_eq!(slow_server::verify_body("/a", 0, &got.body), Ok(()));
}

/// A body whose end only the connection tells may be cut without a sign: it is passed on and not kept.
#[tokio::test]
async fn a_close_delimited_body_is_not_stored() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(1000)
        .cache_control("max-age=60")
        .close_delimited();
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        assert!(!node.get("/a").await.is_whole("/a", 1000).head.is_hit());
    }
    assert_eq!(origin.requests("/a"), 2);
}

/// A large body comes through whole, more than the memory tier holds, and is served again from disk.
#[tokio::test]
async fn a_body_larger_than_memory_is_stored_whole() {
    let size = 40 << 20;
    let origin = Origin::start().await;
    let _ = origin.get("/a").generated(size).cache_control("max-age=60");
    let node = Node::with(&origin, |config| config.store.memory_bytes = 8 << 20).await;
    node.get("/a").await.is_whole("/a", size);
    node.at_rest().await;
    assert!(node.get("/a").await.is_whole("/a", size).head.is_hit());
    assert_eq!(origin.requests("/a"), 1);
}

#[tokio::test]
async fn bodies_around_the_block_s_edges_are_right() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    let block = 256 << 10;
    for size in [
        0,
        1,
        4095,
        4096,
        4097,
        block - 1,
        block,
        block + 1,
        2 * block,
        3 * block + 7,
    ] {
        for framing in ["", "&chunked"] {
            let target = format!("/bytes/{size}/edge?cc=max-age=60{framing}");
            let path = format!("/bytes/{size}/edge");
            node.get(&target).await.is_whole(&path, size);
            node.at_rest().await;
            assert!(
                node.get(&target).await.is_whole(&path, size).head.is_hit(),
                "{target}"
            );
        }
    }
}

/// What arrived of a cut body is kept where a strong validator lets it be completed: only the rest is asked for.
#[tokio::test]
async fn what_arrived_is_not_asked_for_again() {
    let size = 4 << 20;
    let origin = Origin::start().await;
    let answer = || {
        OriginAnswer::ok()
            .generated(size)
            .etag("\"1\"")
            .ranges(true)
            .cache_control("max-age=60")
    };
    origin.get("/a").sequence([
        answer().lie(Lie::Truncated),
        OriginAnswer::status(503),
        answer(),
    ]);
    let node = Node::start(&origin).await;
    let got = node.get("/a").await;
    assert_eq!((got.status(), got.end), (200, End::Cut));
    assert_eq!(slow_server::verify_body("/a", 0, &got.body), Ok(()));
    node.at_rest().await;
    node.get("/a").await.is_whole("/a", size);
    node.at_rest().await;
    assert!(
        origin.counts("/a").bytes <= size + (256 << 10),
        "{} bytes",
        origin.counts("/a").bytes
    );
}

/// Over HTTP/2, too, a client that reads nothing holds nobody.
#[tokio::test]
async fn a_slow_http2_client_slows_nobody() {
    let size = 24 << 20;
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(size)
        .etag("\"1\"")
        .ranges(true)
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    let mut slow = caje_tests::Http2::to(node.address()).await;
    let request = slow
        .request("GET", "/a")
        .body(Default::default())
        .expect("a request");
    let answer = slow.send(request).await;
    node.get("/a").await.is_whole("/a", size);
    let got = caje_tests::Http2::whole(answer).await;
    assert_eq!(got.body().len() as u64, size);
    assert_eq!(slow_server::verify_body("/a", 0, got.body()), Ok(()));
    assert_eq!(origin.requests("/a"), 1);
}

/// Without a disk, a body that cannot be asked for again stays with those who read it, however slow they
/// are and whatever else comes through the memory.
#[tokio::test]
async fn a_slow_reader_without_a_disk_gets_all_of_it() {
    let size = 3_500_000;
    for state in ["arriving", "stored"] {
        let origin = Origin::start().await;
        origin.get("/a").generated(size).cache_control("max-age=60");
        let node = Node::with(&origin, |config| {
            config.store.dir = "/dev/full/store".into();
        })
        .await;
        if state == "stored" {
            node.get("/a").await.is_whole("/a", size);
            node.at_rest().await;
        }
        let mut slow = caje_tests::Connection::narrow(node.address()).await;
        slow.send(node.get("/a").bytes()).await;
        let mut slow = slow.begin("GET").await;
        slow.take(1).await;
        node.at_rest().await;
        for n in 0..24 {
            let path = format!("/other/{n}");
            origin
                .get(&path)
                .generated(size)
                .cache_control("max-age=60");
            node.get(&path).await.is_whole(&path, size);
        }
        let rest = slow.rest().await;
        assert_eq!(
            (rest.end, rest.body.len() as u64),
            (End::Whole, size - 1),
            "{state}"
        );
        assert_eq!(slow_server::verify_body("/a", 1, &rest.body), Ok(()));
    }
}

/// Slow readers that hold more than may be held give way: nobody else waits for them for long.
#[tokio::test]
async fn slow_readers_without_a_disk_do_not_hold_up_others() {
    let size = 3_500_000;
    let origin = Origin::start().await;
    let node = Node::with(&origin, |config| {
        config.store.dir = "/dev/full/store".into();
    })
    .await;
    let mut slow = Vec::new();
    for n in 0..4 {
        let path = format!("/{n}");
        origin
            .get(&path)
            .generated(size)
            .cache_control("max-age=60");
        let mut connection = caje_tests::Connection::narrow(node.address()).await;
        connection.send(node.get(&path).bytes()).await;
        let mut answer = connection.begin("GET").await;
        answer.take(1).await;
        slow.push(answer);
        node.get(&path).await.is_whole(&path, size);
    }
    drop(slow);
    node.open_connections(0).await;
    node.at_rest().await;
}
