//! Stale responses: while they are validated, when the origin fails, and never when it is forbidden.

use std::time::Duration;

use caje_node::telemetry::StaleReason;
use caje_tests::{Node, Origin, OriginAnswer};

/// Stored, and stale on arrival.
fn stale(directives: &str) -> OriginAnswer {
    let value = format!("max-age=60, {directives}");
    OriginAnswer::ok().cache_control(&value).header("age", "61")
}

fn fresh(body: &'static str) -> OriginAnswer {
    OriginAnswer::ok()
        .cache_control("max-age=60")
        .etag("\"2\"")
        .body(body)
}

#[tokio::test]
async fn stale_while_revalidate_serves_now_and_asks_behind() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(stale("stale-while-revalidate=600").body("old"));
    let node = Node::start(&origin).await;
    node.get("/a").await.says("old");
    origin.get("/a").answer(fresh("new"));
    let gate = origin.change("/a").gated();
    let got = node.get("/a").await.says("old");
    assert_eq!(
        got.head.get("age").and_then(|age| age.parse().ok()),
        Some(61),
        "{}",
        got.head.text
    );
    gate.reached().await;
    // While the origin thinks, everybody is served, and nobody else asks.
    for _ in 0..3 {
        node.get("/a").await.says("old");
    }
    assert_eq!(origin.requests("/a"), 2);
    gate.open();
    origin.wait_finished("/a", 2).await;
    let completed = |metrics: &caje_node::telemetry::Metrics| metrics.fills_completed.total() >= 2;
    node.until("the new body", completed).await;
    assert!(node.get("/a").await.says("new").head.is_hit());
    assert_eq!(origin.requests("/a"), 2);
}

#[tokio::test]
async fn stale_while_revalidate_from_the_configuration() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(stale("public").etag("\"1\"").body("old"));
    let node = Node::with(&origin, |config| {
        config.origins[0].rules.stale_while_revalidate = Some(Duration::from_secs(600));
    })
    .await;
    node.get("/a").await.says("old");
    let gate = origin.change("/a").gated();
    node.get("/a").await.says("old");
    gate.reached().await;
    gate.open();
    // The validation behind it was a conditional one.
    origin.wait_finished("/a", 2).await;
    assert_eq!(origin.counts("/a").not_modified, 1);
}

/// Beyond its window the client waits.
#[tokio::test]
async fn stale_while_revalidate_ends() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok()
        .cache_control("max-age=60, stale-while-revalidate=10")
        .header("age", "100");
    origin.get("/a").answer(answer.etag("\"1\"").body("old"));
    let node = Node::start(&origin).await;
    node.get("/a").await.says("old");
    origin.get("/a").answer(fresh("new"));
    node.get("/a").await.says("new");
}

#[tokio::test]
async fn stale_if_error_from_the_header() {
    let origin = Origin::start().await;
    for status in [500, 502, 503, 504] {
        let target = format!("/a{status}");
        origin
            .get(&target)
            .answer(stale("stale-if-error=600").body("old"));
        let node = Node::start(&origin).await;
        node.get(&target).await.says("old");
        origin
            .get(&target)
            .answer(OriginAnswer::status(status).body("error"));
        let got = node.get(&target).await.says("old");
        assert!(
            got.head
                .cache_status()
                .contains(&format!("fwd-status={status}")),
            "{}",
            got.head.text
        );
    }
}

#[tokio::test]
async fn stale_if_error_from_the_configuration() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(stale("public").etag("\"1\"").body("old"));
    let node = Node::with(&origin, |config| {
        config.origins[0].rules.stale_if_error = Some(Duration::from_secs(600));
    })
    .await;
    node.get("/a").await.says("old");
    origin
        .get("/a")
        .answer(OriginAnswer::status(503).body("error"));
    node.get("/a").await.says("old");
}

#[tokio::test]
async fn without_stale_if_error_the_error_goes_through() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(stale("public").etag("\"1\"").body("old"));
    let node = Node::start(&origin).await;
    node.get("/a").await.says("old");
    origin
        .get("/a")
        .answer(OriginAnswer::status(503).body("error"));
    assert_eq!(node.get("/a").await.expect(503).text(), "error");
    // A 4xx is no failure of the origin, and is never hidden.
    origin
        .get("/b")
        .answer(stale("stale-if-error=600").body("old"));
    node.get("/b").await.says("old");
    origin
        .get("/b")
        .answer(OriginAnswer::status(404).body("gone"));
    node.get("/b").await.expect(404);
}

#[tokio::test]
async fn an_unreachable_origin_leaves_the_stale_response() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(stale("public").etag("\"1\"").body("old"));
    let node = Node::start(&origin).await;
    node.get("/a").await.says("old");
    origin.refuse().await;
    origin.kill_connections();
    origin.wait_open_connections(0).await;
    let got = node.get("/a").await.says("old");
    assert!(
        got.head.cache_status().contains("fwd=stale"),
        "{}",
        got.head.text
    );
    assert!(
        got.head.cache_status().contains("detail="),
        "{}",
        got.head.text
    );
    // Counted once the answer's last byte is out, which may be after the client has it.
    node.until("a stale answer", |metrics| {
        metrics.stale_served.get(StaleReason::Unreachable) >= 1
    })
    .await;
    origin.resume().await;
    origin.get("/a").answer(fresh("new"));
    node.get("/a").await.says("new");
}

#[tokio::test]
async fn a_directive_forbids_to_serve_stale() {
    for directive in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=60",
        "no-cache",
    ] {
        let origin = Origin::start().await;
        origin
            .get("/a")
            .answer(stale(directive).etag("\"1\"").body("old"));
        let node = Node::start(&origin).await;
        node.get("/a").await.says("old");
        origin.refuse().await;
        origin.kill_connections();
        origin.wait_open_connections(0).await;
        let got = node.get("/a").await;
        assert!(
            matches!(got.status(), 502 | 504),
            "{directive}: {}",
            got.head.text
        );
        assert!(
            got.head.cache_status().contains("detail="),
            "{directive}: {}",
            got.head.text
        );
    }
}

#[tokio::test]
async fn the_operator_may_forbid_it_too() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(stale("public").etag("\"1\"").body("old"));
    let node = Node::with(&origin, |config| {
        config.origins[0].rules.serve_stale_when_unreachable = false;
    })
    .await;
    node.get("/a").await.says("old");
    origin.refuse().await;
    origin.kill_connections();
    origin.wait_open_connections(0).await;
    node.get("/a").await.expect(504);
}

/// An origin that hangs is one that cannot be reached.
#[tokio::test]
async fn an_origin_that_hangs_leaves_the_stale_response() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(stale("public").etag("\"1\"").body("old"));
    let node = Node::with(&origin, |config| {
        config.origins[0].first_byte_timeout = Duration::from_millis(200);
    })
    .await;
    node.get("/a").await.says("old");
    let _gate = origin.change("/a").gated();
    node.get("/a").await.says("old");
    let got = node.get("/b?gate").await;
    assert_eq!(got.status(), 404);
}

#[tokio::test]
async fn nothing_stored_and_no_origin_is_a_clear_answer() {
    let origin = Origin::start().await;
    let gate = origin.get("/slow").body("late").gated();
    let node = Node::with(&origin, |config| {
        config.origins[0].first_byte_timeout = Duration::from_millis(200);
    })
    .await;
    let got = node.get("/slow").await.expect(504);
    assert!(
        got.head.cache_status().contains("fwd=uri-miss"),
        "{}",
        got.head.text
    );
    assert!(
        got.head.cache_status().contains("detail="),
        "{}",
        got.head.text
    );
    gate.open();
    origin.refuse().await;
    origin.kill_connections();
    origin.wait_open_connections(0).await;
    let got = node.get("/b").await.expect(502);
    assert!(
        got.head.cache_status().contains("fwd=uri-miss"),
        "{}",
        got.head.text
    );
    assert!(
        got.head.cache_status().contains("detail="),
        "{}",
        got.head.text
    );
    // And it recovers by itself.
    origin.resume().await;
    origin.get("/b").body("b");
    node.get("/b").await.says("b");
}
