//! What is stored, for how long, and how an answer tells of it.

use caje_tests::{Node, Origin, OriginAnswer};

/// The second answer, after one that filled.
async fn twice(origin: &Origin, node: &Node, target: &str) -> (caje_tests::Got, caje_tests::Got) {
    let first = node.get(target).await;
    node.at_rest().await;
    let second = node.get(target).await;
    assert_eq!(first.body, second.body);
    assert!(origin.malformed().is_empty());
    (first, second)
}

#[tokio::test]
async fn a_hit_says_so() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("x")
        .cache_control("max-age=60")
        .header("x-own", "y");
    let node = Node::start(&origin).await;
    let (first, second) = twice(&origin, &node, "/a").await;
    let first = first.says("x").head;
    assert!(
        first
            .cache_status()
            .contains("fwd=uri-miss; fwd-status=200"),
        "{}",
        first.text
    );
    assert!(first.is_stored(), "{}", first.text);
    assert!(!first.has("age"), "{}", first.text);
    let second = second.says("x").head;
    assert!(
        second.is_hit() && second.cache_status().contains("ttl="),
        "{}",
        second.text
    );
    assert!(second.has("age"), "{}", second.text);
    for head in [first, second] {
        assert_eq!(head.all("content-length"), ["1"]);
        assert_eq!(head.all("date").len(), 1, "{}", head.text);
        assert_eq!(head.get("x-own"), Some("y"));
        assert!(
            head.get("via").is_some_and(|via| via.contains("caje")),
            "{}",
            head.text
        );
    }
}

#[tokio::test]
async fn what_is_stored_and_what_is_not() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    let old = "Mon, 02 Jan 2006 15:04:05 GMT";
    let cases: [(&str, OriginAnswer, bool); 24] = [
        (
            "max-age",
            OriginAnswer::ok().cache_control("max-age=60"),
            true,
        ),
        (
            "s-maxage wins",
            OriginAnswer::ok().cache_control("max-age=0, s-maxage=60"),
            true,
        ),
        (
            "s-maxage=0",
            OriginAnswer::ok().cache_control("max-age=60, s-maxage=0"),
            false,
        ),
        (
            "no-store",
            OriginAnswer::ok().cache_control("max-age=60, no-store"),
            false,
        ),
        (
            "No-Store",
            OriginAnswer::ok().cache_control("max-age=60, No-Store"),
            false,
        ),
        (
            "private",
            OriginAnswer::ok().cache_control("max-age=60, private"),
            false,
        ),
        (
            "no-cache",
            OriginAnswer::ok().cache_control("max-age=60, no-cache"),
            false,
        ),
        (
            "max-age=0",
            OriginAnswer::ok().cache_control("max-age=0"),
            false,
        ),
        ("nothing", OriginAnswer::ok(), false),
        (
            "heuristic",
            OriginAnswer::ok().header("last-modified", old),
            true,
        ),
        (
            "heuristic 404",
            OriginAnswer::status(404).header("last-modified", old),
            true,
        ),
        (
            "heuristic 302",
            OriginAnswer::status(302).header("last-modified", old),
            false,
        ),
        (
            "expires",
            OriginAnswer::ok().header("expires", "Fri, 01 Jan 2100 00:00:00 GMT"),
            true,
        ),
        (
            "expires 0",
            OriginAnswer::ok().header("expires", "0"),
            false,
        ),
        (
            "aged",
            OriginAnswer::ok()
                .cache_control("max-age=60")
                .header("age", "60"),
            false,
        ),
        (
            "302",
            OriginAnswer::status(302).cache_control("max-age=60"),
            true,
        ),
        (
            "404",
            OriginAnswer::status(404).cache_control("max-age=60"),
            true,
        ),
        (
            "500",
            OriginAnswer::status(500).cache_control("max-age=60"),
            true,
        ),
        (
            "599",
            OriginAnswer::status(599).cache_control("max-age=60"),
            true,
        ),
        (
            "204",
            OriginAnswer::status(204).cache_control("max-age=60"),
            true,
        ),
        (
            "must-understand 200",
            OriginAnswer::ok().cache_control("max-age=60, must-understand, no-store"),
            true,
        ),
        (
            "must-understand 599",
            OriginAnswer::status(599).cache_control("max-age=60, must-understand"),
            false,
        ),
        (
            "CDN-Cache-Control wins",
            OriginAnswer::ok()
                .cache_control("no-store")
                .header("cdn-cache-control", "max-age=60"),
            true,
        ),
        (
            "CDN-Cache-Control wins the other way",
            OriginAnswer::ok()
                .cache_control("max-age=60")
                .header("cdn-cache-control", "no-store"),
            false,
        ),
    ];
    for (number, (name, answer, stored)) in cases.into_iter().enumerate() {
        let target = format!("/case/{number}");
        let body = if name == "204" { "" } else { "x" };
        origin.get(&target).answer(answer.body(body));
        let (_, second) = twice(&origin, &node, &target).await;
        assert_eq!(second.head.is_hit(), stored, "{name}: {}", second.head.text);
        assert_eq!(
            origin.requests(&target),
            if stored { 1 } else { 2 },
            "{name}"
        );
    }
}

/// RFC 9213: a targeted field that cannot be read is as if it were not there.
#[tokio::test]
async fn a_targeted_field_is_strict_and_passed_on() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    let answer = OriginAnswer::ok()
        .body("x")
        .cache_control("no-store")
        .header("cdn-cache-control", "max-age=60,, =;");
    origin.get("/invalid").answer(answer);
    let (_, second) = twice(&origin, &node, "/invalid").await;
    assert!(!second.head.is_hit(), "{}", second.head.text);
    origin
        .get("/valid")
        .body("x")
        .header("cdn-cache-control", "max-age=60");
    let (first, second) = twice(&origin, &node, "/valid").await;
    assert!(second.head.is_hit(), "{}", second.head.text);
    for got in [first, second] {
        assert_eq!(
            got.head.get("cdn-cache-control"),
            Some("max-age=60"),
            "{}",
            got.head.text
        );
    }
}

#[tokio::test]
async fn age_adds_up() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("x")
        .cache_control("max-age=1000")
        .header("age", "100");
    let node = Node::start(&origin).await;
    let (first, second) = twice(&origin, &node, "/a").await;
    for got in [first, second] {
        let age: u64 = got
            .head
            .get("age")
            .expect("an age")
            .parse()
            .expect("a number");
        assert!((100..110).contains(&age), "{}", got.head.text);
        assert_eq!(got.head.all("age").len(), 1);
    }
}

#[tokio::test]
async fn a_default_ttl_fills_the_gap() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    origin.get("/b").body("x").cache_control("no-store");
    let node = Node::with(&origin, |config| {
        config.origins[0].rules.default_ttl = Some(std::time::Duration::from_secs(60));
    })
    .await;
    let (_, second) = twice(&origin, &node, "/a").await;
    assert!(second.head.is_hit());
    let (_, second) = twice(&origin, &node, "/b").await;
    assert!(!second.head.is_hit());
}

/// By default a client cannot make the node ask the origin; where the operator wants it, it can.
#[tokio::test]
async fn request_directives_are_heeded_on_demand() {
    let origin = Origin::start().await;
    origin.get("/a").body("x").cache_control("max-age=60");
    let node = Node::start(&origin).await;
    let _ = twice(&origin, &node, "/a").await;
    for directive in ["no-cache", "no-store", "max-age=0"] {
        assert!(
            node.get("/a")
                .header("cache-control", directive)
                .await
                .says("x")
                .head
                .is_hit()
        );
    }
    let node = Node::with(&origin, |config| {
        config.origins[0].rules.honor_client_cache_control = true;
    })
    .await;
    node.get("/a")
        .header("cache-control", "only-if-cached")
        .await
        .expect(504);
    let _ = twice(&origin, &node, "/a").await;
    assert!(
        node.get("/a")
            .header("cache-control", "only-if-cached")
            .await
            .says("x")
            .head
            .is_hit()
    );
    assert!(
        !node
            .get("/a")
            .header("cache-control", "no-cache")
            .await
            .says("x")
            .head
            .is_hit()
    );
}

/// Fields of one hop, and those for this cache alone, are neither stored nor sent on.
#[tokio::test]
async fn hop_by_hop_fields_are_not_stored() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok().body("x").cache_control("max-age=60");
    let answer = answer
        .header("connection", "x-secret, keep-alive")
        .header("x-secret", caje_tests::CANARY);
    let answer = answer
        .header("keep-alive", "timeout=5")
        .header("proxy-authenticate", "Basic")
        .header("upgrade", "h2c");
    origin.get("/a").answer(
        answer
            .header("surrogate-control", "max-age=60")
            .header("surrogate-key", "k"),
    );
    let node = Node::start(&origin).await;
    let (first, second) = twice(&origin, &node, "/a").await;
    assert!(second.head.is_hit());
    for got in [first, second] {
        assert!(
            !got.head.text.contains(caje_tests::CANARY),
            "{}",
            got.head.text
        );
        for name in [
            "keep-alive",
            "proxy-authenticate",
            "upgrade",
            "surrogate-control",
            "surrogate-key",
        ] {
            assert!(!got.head.has(name), "{name}: {}", got.head.text);
        }
    }
}

/// `Cache-Status` of those before us stays, and comes first.
#[tokio::test]
async fn cache_status_is_appended() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("x")
        .cache_control("max-age=60")
        .header("cache-status", "\"shield\"; hit");
    let node = Node::start(&origin).await;
    let (first, second) = twice(&origin, &node, "/a").await;
    for got in [first, second] {
        let all = got.head.all("cache-status").join(", ");
        assert!(all.starts_with("\"shield\"; hit, \"caje\""), "{all}");
    }
}

#[tokio::test]
async fn a_region_stands_in_cache_status() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let node = Node::with(&origin, |config| {
        config.node.region = Some("lhr".to_owned())
    })
    .await;
    let got = node.get("/a").await.says("x");
    assert!(
        got.head
            .cache_status()
            .starts_with("\"caje/lhr\"; fwd=uri-miss"),
        "{}",
        got.head.text
    );
}

/// An answer to a POST is for the one who posted.
#[tokio::test]
async fn an_answer_to_a_post_is_not_stored() {
    let origin = Origin::start().await;
    origin.post("/a").body("posted").cache_control("max-age=60");
    origin.get("/a").body("got").cache_control("max-age=60");
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        node.post("/a").body("x").await.says("posted");
    }
    node.get("/a").await.says("got");
    assert_eq!(origin.requests("/a"), 3);
}

/// Conditions of clients hold for what is not stored, too.
#[tokio::test]
async fn conditions_hold_for_what_is_not_stored() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("x")
        .etag("\"1\"")
        .cache_control("no-store");
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        let got = node
            .get("/a")
            .header("if-none-match", "\"1\"")
            .await
            .expect(304);
        assert_eq!(got.head.get("etag"), Some("\"1\""));
        node.get("/a")
            .header("if-none-match", "\"2\"")
            .await
            .says("x");
    }
}

/// A coded body is stored as it came, for those who asked for that coding.
#[tokio::test]
async fn content_codings_are_variants() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|request| {
        let answer = OriginAnswer::ok()
            .cache_control("max-age=60")
            .vary("accept-encoding");
        match request.header("accept-encoding") {
            Some(value) if value.contains("br") => {
                answer.body("coded").header("content-encoding", "br")
            }
            _ => answer.body("plain"),
        }
    });
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        let got = node
            .get("/a")
            .header("accept-encoding", "br")
            .await
            .says("coded");
        assert_eq!(got.head.get("content-encoding"), Some("br"));
        let got = node.get("/a").await.says("plain");
        assert!(!got.head.has("content-encoding"), "{}", got.head.text);
    }
    assert_eq!(origin.requests("/a"), 2);
}
