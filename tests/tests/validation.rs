//! Conditions, towards the origin and from clients; HEAD; invalidation.

use caje_tests::{Gate, Node, Origin, OriginAnswer};
use http::Method;

const SIZE: u64 = 10_000;
const OLD: &str = "Mon, 02 Jan 2006 15:04:05 GMT";

/// A stale response is validated; the 304's fields take the place of the stored ones.
#[tokio::test]
async fn a_304_updates_the_stored_head() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok().generated(SIZE).etag("\"1\"");
    let stale = answer
        .clone()
        .cache_control("max-age=60")
        .header("age", "61")
        .header("x-a", "old")
        .header("x-b", "kept");
    origin.get("/a").answer(stale);
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    origin
        .get("/a")
        .answer(answer.cache_control("max-age=1000").header("x-a", "new"));
    let got = node.get("/a").await.is_whole("/a", SIZE);
    assert!(
        got.head.cache_status().contains("fwd-status=304"),
        "{}",
        got.head.text
    );
    assert_eq!(
        origin.last_request("/a").header("if-none-match"),
        Some("\"1\"")
    );
    let got = node.get("/a").await.is_whole("/a", SIZE);
    assert!(got.head.is_hit(), "{}", got.head.text);
    assert_eq!(got.head.all("x-a"), ["new"]);
    assert_eq!(got.head.all("x-b"), ["kept"]);
    assert_eq!(got.head.get("cache-control"), Some("max-age=1000"));
    assert_eq!(origin.requests("/a"), 2);
    assert_eq!(origin.counts("/a").bytes, SIZE);
}

/// What a 304 says of length, coding and range is not the stored body's (RFC 9111 section 3.2).
#[tokio::test]
async fn a_304_cannot_change_what_the_body_is() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok()
        .generated(SIZE)
        .etag("\"1\"")
        .cache_control("max-age=60")
        .header("age", "61");
    origin.get("/a").answer(answer.clone());
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    origin
        .get("/a")
        .answer(answer.lie(caje_tests::Lie::NotModifiedPoison));
    for _ in 0..2 {
        let got = node.get("/a").await.is_whole("/a", SIZE);
        assert_eq!(got.head.length(), Some(SIZE));
        assert!(!got.head.has("content-encoding"), "{}", got.head.text);
        assert!(!got.head.has("content-range"), "{}", got.head.text);
    }
}

#[tokio::test]
async fn a_stale_response_is_validated_by_its_date() {
    let origin = Origin::start().await;
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_136_214_245);
    let answer = OriginAnswer::ok()
        .body("a")
        .last_modified(at)
        .cache_control("max-age=60")
        .header("age", "61");
    origin.get("/a").answer(answer);
    let node = Node::start(&origin).await;
    node.get("/a").await.says("a");
    node.get("/a").await.says("a");
    assert_eq!(
        origin.last_request("/a").header("if-modified-since"),
        Some(OLD)
    );
    assert_eq!(origin.counts("/a").not_modified, 1);
}

#[tokio::test]
async fn a_new_representation_takes_the_old_one_s_place() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok()
        .body("old")
        .etag("\"1\"")
        .cache_control("max-age=60")
        .header("age", "61");
    origin.get("/a").answer(answer);
    let node = Node::start(&origin).await;
    node.get("/a").await.says("old");
    origin.get("/a").answer(
        OriginAnswer::ok()
            .body("new")
            .etag("\"2\"")
            .cache_control("max-age=60"),
    );
    node.get("/a").await.says("new");
    assert!(node.get("/a").await.says("new").head.is_hit());
}

/// Many find it stale at once: one validates for all.
#[tokio::test]
async fn validations_are_collapsed() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .body("a")
        .etag("\"1\"")
        .cache_control("max-age=1");
    let _ = origin.get("/clock").body("c").cache_control("max-age=1");
    let node = Node::start(&origin).await;
    node.get("/a").await.says("a");
    node.get("/clock").await.says("c");
    // What was stored later is stale, so what was stored before is.
    while node.get("/clock").await.says("c").head.is_hit() {}
    let gate = origin.change("/a").cache_control("max-age=60").gated();
    let clients: Vec<_> = (0..5).map(|_| node.get("/a").start()).collect();
    gate.reached().await;
    node.joined_fills(4).await;
    gate.open();
    for client in clients {
        client.await.expect("a client").says("a");
    }
    assert_eq!(origin.requests("/a"), 2);
    assert_eq!(origin.counts("/a").not_modified, 1);
}

#[tokio::test]
async fn clients_conditions_are_answered_from_the_store() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok()
        .body("a")
        .etag("\"1\"")
        .cache_control("max-age=60")
        .header("last-modified", OLD);
    origin.get("/a").answer(
        answer
            .header("x-other", "y")
            .header("content-language", "de"),
    );
    let node = Node::start(&origin).await;
    node.get("/a").await.says("a");
    let newer = "Tue, 03 Jan 2006 15:04:05 GMT";
    let older = "Sun, 01 Jan 2006 15:04:05 GMT";
    let cases: [(&[(&str, &str)], u16); 10] = [
        (&[("if-none-match", "\"1\"")], 304),
        (&[("if-none-match", "W/\"1\"")], 304),
        (&[("if-none-match", "\"0\", \"1\"")], 304),
        (&[("if-none-match", "*")], 304),
        (&[("if-none-match", "\"2\"")], 200),
        (&[("if-modified-since", OLD)], 304),
        (&[("if-modified-since", newer)], 304),
        (&[("if-modified-since", older)], 200),
        // A tag goes before a date.
        (
            &[("if-none-match", "\"2\""), ("if-modified-since", newer)],
            200,
        ),
        (&[("if-modified-since", "yesterday")], 200),
    ];
    for (fields, status) in cases {
        for method in ["GET", "HEAD"] {
            let mut ask = node.ask(method, "/a");
            for (name, value) in fields {
                ask = ask.header(name, value);
            }
            let got = ask.await.expect(status);
            assert!(got.head.is_hit(), "{method} {fields:?}: {}", got.head.text);
            if status == 304 {
                assert_eq!(got.head.get("etag"), Some("\"1\""));
                assert!(
                    got.head.has("date") && got.head.has("cache-control"),
                    "{}",
                    got.head.text
                );
                assert!(!got.head.has("content-length"), "{}", got.head.text);
            }
        }
    }
    assert_eq!(origin.requests("/a"), 1);
}

/// On a miss the origin is asked for the whole, so that it can be stored, and the client gets its 304.
#[tokio::test]
async fn a_client_s_condition_does_not_keep_the_cache_from_filling() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("a")
        .etag("\"1\"")
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    node.get("/a")
        .header("if-none-match", "\"1\"")
        .await
        .expect(304);
    node.at_rest().await;
    assert!(node.get("/a").await.says("a").head.is_hit());
    assert_eq!(origin.requests("/a"), 1);
}

#[tokio::test]
async fn head_is_answered_from_a_stored_get() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .generated(SIZE)
        .etag("\"1\"")
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    let mut connection = node.connect().await;
    let head = connection.ask("HEAD", "/a", "").await.expect(200);
    assert!(head.head.is_hit(), "{}", head.head.text);
    assert_eq!(head.head.length(), Some(SIZE));
    assert!(head.body.is_empty());
    // Nothing of a body came, or the next answer would not be one.
    connection.get("/a").await.is_whole("/a", SIZE);
    assert_eq!(origin.requests("/a"), 1);
}

/// A HEAD on a miss stores nothing that could answer a GET.
#[tokio::test]
async fn a_head_never_becomes_a_get() {
    let origin = Origin::start().await;
    origin.get("/a").generated(SIZE).cache_control("max-age=60");
    let node = Node::start(&origin).await;
    let head = node.head("/a").await.expect(200);
    assert_eq!(head.head.length(), Some(SIZE));
    node.get("/a").await.is_whole("/a", SIZE);
    assert_eq!((origin.counts("/a").head, origin.counts("/a").get), (1, 1));
}

/// A HEAD that tells of another representation makes the stored one be validated.
#[tokio::test]
async fn a_head_of_another_representation_outdates_the_stored_one() {
    let origin = Origin::start().await;
    let stale = OriginAnswer::ok()
        .body("old")
        .etag("\"1\"")
        .cache_control("max-age=60")
        .header("age", "61");
    origin.get("/a").answer(stale);
    let node = Node::start(&origin).await;
    node.get("/a").await.says("old");
    origin.get("/a").answer(
        OriginAnswer::ok()
            .body("new!")
            .etag("\"2\"")
            .cache_control("max-age=60"),
    );
    node.head("/a").await.expect(200);
    node.get("/a").await.says("new!");
}

/// RFC 9111 section 4.4.
#[tokio::test]
async fn unsafe_methods_invalidate() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        origin.get("/a").body("a").cache_control("max-age=60");
        node.get("/a").await.says("a");
        assert!(node.get("/a").await.says("a").head.is_hit());
        let asked = origin.requests("/a");
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        origin.on(method.clone(), "/a").body("done");
        node.ask(method.as_str(), "/a").body("x").await.says("done");
        assert!(!node.get("/a").await.says("a").head.is_hit(), "{method}");
        assert_eq!(origin.requests("/a"), asked + 2);
    }
    assert!(node.metric("caje_invalidations_total").await >= 4.0);
}

#[tokio::test]
async fn safe_methods_and_failures_invalidate_nothing() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    origin.get("/a").body("a").cache_control("max-age=60");
    node.get("/a").await.says("a");
    origin.on(Method::OPTIONS, "/a").status(204);
    node.ask("OPTIONS", "/a").await.expect(204);
    for status in [400, 404, 500] {
        origin.post("/a").status(status);
        node.post("/a").body("x").await.expect(status);
    }
    assert!(node.get("/a").await.says("a").head.is_hit());
}

/// What the answer points to is invalidated too, on the same host only.
#[tokio::test]
async fn location_and_content_location_are_invalidated() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    for target in ["/a", "/b", "/c", "/d"] {
        origin.get(target).body("x").cache_control("max-age=60");
        node.get(target).await.says("x");
    }
    node.get("/d").host("other.example").await.says("x");
    let answer = OriginAnswer::status(201)
        .header("location", "/b")
        .header("content-location", "http://a.example/c");
    origin.post("/a").answer(answer);
    node.post("/a").body("x").await.expect(201);
    for target in ["/a", "/b", "/c"] {
        assert!(!node.get(target).await.says("x").head.is_hit(), "{target}");
    }
    assert!(node.get("/d").await.says("x").head.is_hit());
    let answer = OriginAnswer::status(201).header("location", "http://other.example/d");
    origin.post("/a").answer(answer);
    node.post("/a").body("x").await.expect(201);
    assert!(
        node.get("/d")
            .host("other.example")
            .await
            .says("x")
            .head
            .is_hit()
    );
}

/// Preconditions that only the origin can judge go to it.
#[tokio::test]
async fn if_match_is_for_the_origin() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("a")
        .etag("\"1\"")
        .cache_control("max-age=60");
    let node = Node::start(&origin).await;
    node.get("/a").await.says("a");
    node.get("/a").header("if-match", "\"2\"").await.expect(412);
    assert_eq!(origin.last_request("/a").header("if-match"), Some("\"2\""));
    assert!(node.get("/a").await.says("a").head.is_hit());
}

/// A body under way when its target is invalidated reaches its readers, and nobody after them.
#[tokio::test]
async fn a_body_under_way_can_be_invalidated() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(100);
    origin.post("/a").body("done");
    let node = Node::start(&origin).await;
    let mut running = node.get("/a").open().await;
    running.take(100).await;
    node.post("/a").body("x").await.says("done");
    let next = node.get("/a").start();
    origin.wait_requests("/a", 3).await;
    gate.open();
    let rest = running.rest().await;
    assert_eq!(slow_server::verify_body("/a", 100, &rest.body), Ok(()));
    assert_eq!(
        (rest.end, rest.body.len() as u64),
        (caje_tests::End::Whole, SIZE - 100)
    );
    next.await.expect("the next").is_whole("/a", SIZE);
}

/// `no-cache` is stored and validated each time.
#[tokio::test]
async fn no_cache_is_validated_each_time() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .etag("\"1\"")
        .cache_control("no-cache, max-age=60");
    let node = Node::start(&origin).await;
    for _ in 0..3 {
        assert!(!node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
        node.at_rest().await;
    }
    assert_eq!(
        (origin.requests("/a"), origin.counts("/a").not_modified),
        (3, 2)
    );
    assert_eq!(origin.counts("/a").bytes, SIZE);
}

/// A 304 that was not asked for, or that speaks of something else, is not an answer.
#[tokio::test]
async fn a_304_out_of_nothing_is_no_answer() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .body("x")
        .lie(caje_tests::Lie::NotModifiedUnasked);
    let node = Node::start(&origin).await;
    node.get("/a").await.expect(502);
}

/// A question under way when its key is invalidated answers the one who asked, and nobody after: what
/// came before the write is not kept. Those who ask later do not wait for it either.
#[tokio::test]
async fn an_answer_that_was_overtaken_is_not_kept() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    let answer = |version| {
        OriginAnswer::ok()
            .generated(SIZE)
            .version(version)
            .cache_control("max-age=60")
    };
    origin
        .get("/a")
        .sequence([answer(0).gate(&gate), answer(1)]);
    origin.post("/a").body("done");
    let node = Node::start(&origin).await;
    let first = node.get("/a").start();
    gate.reached().await;
    let waiters: Vec<_> = (0..3).map(|_| node.get("/a").start()).collect();
    node.joined_fills(3).await;
    node.post("/a").body("x").await.says("done");
    node.get("/a").await.is_version("/a", 1, SIZE);
    node.at_rest().await;
    gate.open();
    let first = first.await.expect("the first").is_whole("/a", SIZE);
    let status = first.head.cache_status();
    assert!(status.contains("detail=invalidated"), "{status}");
    for waiter in waiters {
        waiter.await.expect("a waiter").is_version("/a", 1, SIZE);
    }
    let after = node.get("/a").await.is_version("/a", 1, SIZE);
    assert!(after.head.is_hit(), "{}", after.head.text);
    assert_eq!(origin.requests("/a"), 3);
}

/// The same of a range, and of a request that nobody could have joined.
#[tokio::test]
async fn no_kind_of_question_outlives_an_invalidation() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    for (path, field, value) in [
        ("/part", "range", "bytes=10-19"),
        ("/user", "authorization", "Basic eDp5"),
    ] {
        let gate = origin
            .get(path)
            .generated(SIZE)
            .etag("\"1\"")
            .ranges(true)
            .cache_control("public, max-age=60")
            .gated();
        origin.post(path).body("done");
        let first = node.get(path).header(field, value).start();
        gate.reached().await;
        node.post(path).body("x").await.says("done");
        gate.open();
        let first = first.await.expect("the first");
        match first.status() {
            206 => first.is_part(path, 10..20, SIZE),
            _ => first.is_whole(path, SIZE),
        };
        let after = node.get(path).await.is_whole(path, SIZE);
        assert!(after.head.is_stored(), "{path}: {}", after.head.text);
        assert_eq!(origin.requests(path), 3);
    }
}

/// A 304 confirms what was stored before the write, and does not bring it back.
#[tokio::test]
async fn a_validation_does_not_outlive_an_invalidation() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    let answer = || OriginAnswer::ok().etag("\"1\"").cache_control("max-age=60");
    origin.get("/a").sequence([
        answer().body("old").header("age", "61"),
        answer().body("old").gate(&gate),
        answer().body("new").etag("\"2\""),
    ]);
    origin.post("/a").body("done");
    let node = Node::start(&origin).await;
    node.get("/a").await.says("old");
    node.at_rest().await;
    let validating = node.get("/a").start();
    gate.reached().await;
    node.post("/a").body("x").await.says("done");
    gate.open();
    validating.await.expect("the first").says("old");
    node.get("/a").await.says("new");
    assert!(node.get("/a").await.says("new").head.is_hit());
    assert_eq!(origin.counts("/a").not_modified, 1);
}

/// The answer to a HEAD without a length says none, and does not take that of the stored GET away.
#[tokio::test]
async fn a_head_without_a_length_says_none_and_damages_nothing() {
    let origin = Origin::start().await;
    let stored = || {
        OriginAnswer::ok()
            .generated(SIZE)
            .etag("\"1\"")
            .cache_control("max-age=60")
    };
    origin.get("/a").answer(stored().header("age", "61"));
    let node = Node::start(&origin).await;
    node.get("/a").await.is_whole("/a", SIZE);
    node.at_rest().await;
    origin.get("/a").answer(stored().chunked().no_conditional());
    let mut connection = node.connect().await;
    let head = connection.ask("HEAD", "/a", "").await.expect(200);
    assert_eq!(head.head.length(), None, "{}", head.head.text);
    // Nothing of a body came, and the stored one is as it was, and fresh again.
    let got = connection.get("/a").await.is_whole("/a", SIZE);
    assert!(got.head.is_hit(), "{}", got.head.text);
    assert_eq!(got.head.length(), Some(SIZE));
    // Nor does it say `0` where nothing is stored.
    origin.get("/b").generated(SIZE).chunked();
    let head = connection.ask("HEAD", "/b", "").await.expect(200);
    assert_eq!(head.head.length(), None, "{}", head.head.text);
}
