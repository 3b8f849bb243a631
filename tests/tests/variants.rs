//! `Vary`: several variants of one key, and requests that are alike or not.

use caje_tests::{Node, Origin, OriginAnswer};

/// Answers with what the request says in `field`, and varies on it.
async fn varying(vary: &'static str, field: &'static str) -> (Origin, Node) {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(move |request| {
        let value = request.header_lines(field).join("|");
        OriginAnswer::ok()
            .body(value)
            .cache_control("max-age=60")
            .vary(vary)
    });
    let node = Node::start(&origin).await;
    (origin, node)
}

#[tokio::test]
async fn several_variants_live_side_by_side() {
    let (origin, node) = varying("Accept-Language", "accept-language").await;
    for round in 0..2 {
        for language in ["de", "fr", "en"] {
            let got = node
                .get("/a")
                .header("accept-language", language)
                .await
                .says(language);
            assert_eq!(got.head.is_hit(), round == 1, "{}", got.head.text);
        }
    }
    assert_eq!(origin.requests("/a"), 3);
    let got = node
        .get("/a")
        .header("accept-language", "it")
        .await
        .says("it");
    assert!(
        got.head.cache_status().contains("fwd=vary-miss"),
        "{}",
        got.head.text
    );
}

/// A missing field is not an empty one.
#[tokio::test]
async fn missing_and_empty_differ() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|request| {
        let value = request
            .header("x-a")
            .map_or("missing".to_owned(), |value| format!("<{value}>"));
        OriginAnswer::ok()
            .body(value)
            .cache_control("max-age=60")
            .vary("x-a")
    });
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        node.get("/a").await.says("missing");
        node.get("/a").header("x-a", "").await.says("<>");
    }
    assert_eq!(origin.requests("/a"), 2);
}

#[tokio::test]
async fn vary_on_several_lines_counts_all() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|request| {
        let value = format!("{:?}{:?}", request.header("x-a"), request.header("x-b"));
        OriginAnswer::ok()
            .body(value)
            .cache_control("max-age=60")
            .vary("X-A")
            .vary("x-B")
    });
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        node.get("/a")
            .header("x-a", "1")
            .header("x-b", "1")
            .await
            .says("Some(\"1\")Some(\"1\")");
        node.get("/a")
            .header("x-a", "1")
            .header("x-b", "2")
            .await
            .says("Some(\"1\")Some(\"2\")");
        node.get("/a")
            .header("x-a", "2")
            .header("x-b", "1")
            .await
            .says("Some(\"2\")Some(\"1\")");
    }
    assert_eq!(origin.requests("/a"), 3);
}

#[tokio::test]
async fn vary_star_is_never_stored() {
    for value in ["*", "accept, *"] {
        let origin = Origin::start().await;
        origin
            .get("/a")
            .body("x")
            .cache_control("max-age=60")
            .vary(value);
        let node = Node::start(&origin).await;
        for _ in 0..2 {
            assert!(!node.get("/a").await.says("x").head.is_hit());
        }
        assert_eq!(origin.requests("/a"), 2, "{value}");
    }
}

/// A 304 for one variant updates that one.
#[tokio::test]
async fn a_304_belongs_to_its_variant() {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(|request| {
        let value = request.header("x-a").unwrap_or("none").to_owned();
        let answer = OriginAnswer::ok()
            .etag(&format!("\"{value}\""))
            .vary("x-a")
            .cache_control("max-age=60");
        match request.header("if-none-match") {
            Some(_) => answer.body(value),
            None => answer.body(value).header("age", "61"),
        }
    });
    let node = Node::start(&origin).await;
    for value in ["1", "2"] {
        node.get("/a").header("x-a", value).await.says(value);
    }
    for value in ["1", "2"] {
        node.get("/a").header("x-a", value).await.says(value);
        assert_eq!(
            origin.last_request("/a").header("if-none-match"),
            Some(format!("\"{value}\"").as_str())
        );
        assert!(
            node.get("/a")
                .header("x-a", value)
                .await
                .says(value)
                .head
                .is_hit()
        );
    }
    assert_eq!(origin.requests("/a"), 4);
}

/// A response that varies by something unbounded does not fill the index.
#[tokio::test]
async fn variants_are_bounded() {
    let (_origin, node) = varying("x-a", "x-a").await;
    for n in 0..200 {
        let value = n.to_string();
        node.get("/a").header("x-a", &value).await.says(&value);
    }
    node.at_rest().await;
    assert!(node.metric("caje_store_objects").await <= 64.0);
}
