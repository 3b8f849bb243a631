//! What is one user's stays one user's: two clients and a canary.

use caje_tests::{CANARY, Node, Origin, OriginAnswer};

/// An origin that answers each user with their own word.
async fn personal(answer: impl Fn() -> OriginAnswer + Send + Sync + 'static) -> Origin {
    let origin = Origin::start().await;
    origin.get("/a").respond_with(move |request| {
        let user = request
            .header("authorization")
            .or(request.header("cookie"))
            .unwrap_or("nobody");
        answer().body(user.to_owned())
    });
    origin
}

#[tokio::test]
async fn an_authorized_answer_is_for_one() {
    for directive in ["max-age=60", "max-age=60, private", "no-store"] {
        let origin = personal(move || OriginAnswer::ok().cache_control(directive)).await;
        let node = Node::start(&origin).await;
        node.get("/a")
            .header("authorization", CANARY)
            .await
            .says(CANARY);
        node.get("/a")
            .header("authorization", "other")
            .await
            .says("other");
        node.get("/a").await.says("nobody");
        node.at_rest().await;
        assert_eq!(origin.requests("/a"), 3, "{directive}");
    }
}

/// RFC 9111 section 3.5: these make it everybody's.
#[tokio::test]
async fn an_authorized_answer_may_be_declared_common() {
    for directive in [
        "public, max-age=60",
        "s-maxage=60",
        "must-revalidate, max-age=60",
    ] {
        let origin = Origin::start().await;
        origin.get("/a").body("common").cache_control(directive);
        let node = Node::start(&origin).await;
        node.get("/a")
            .header("authorization", "one")
            .await
            .says("common");
        node.at_rest().await;
        assert!(
            node.get("/a")
                .header("authorization", "two")
                .await
                .says("common")
                .head
                .is_hit(),
            "{directive}"
        );
        assert_eq!(origin.requests("/a"), 1);
    }
}

#[tokio::test]
async fn the_operator_may_store_authorized_answers() {
    let origin = Origin::start().await;
    origin.get("/a").body("common").cache_control("max-age=60");
    let node = Node::with(&origin, |config| {
        config.origins[0].rules.store_authorized = true
    })
    .await;
    node.get("/a")
        .header("authorization", "one")
        .await
        .says("common");
    node.at_rest().await;
    assert!(
        node.get("/a")
            .header("authorization", "two")
            .await
            .says("common")
            .head
            .is_hit()
    );
}

/// Two authorised users never wait for one another.
#[tokio::test]
async fn authorized_requests_are_not_collapsed() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .body("x")
        .cache_control("max-age=60")
        .gated();
    let node = Node::start(&origin).await;
    let clients: Vec<_> = (0..3)
        .map(|n| {
            node.get("/a")
                .header("authorization", &n.to_string())
                .start()
        })
        .collect();
    gate.reached_n(3).await;
    gate.open();
    for client in clients {
        client.await.expect("an answer").says("x");
    }
}

#[tokio::test]
async fn an_answer_that_sets_a_cookie_is_for_one() {
    for directive in ["max-age=60", "public, max-age=60", "public, s-maxage=60"] {
        let origin = personal(move || {
            OriginAnswer::ok()
                .cache_control(directive)
                .header("set-cookie", CANARY)
        })
        .await;
        let node = Node::start(&origin).await;
        let got = node.get("/a").header("cookie", "one").await.says("one");
        assert_eq!(got.head.get("set-cookie"), Some(CANARY));
        node.get("/a").header("cookie", "two").await.says("two");
        assert_eq!(origin.requests("/a"), 2, "{directive}");
    }
}

#[tokio::test]
async fn the_operator_may_store_answers_that_set_cookies() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .body("x")
        .cache_control("max-age=60")
        .header("set-cookie", "a=b");
    let node = Node::with(&origin, |config| {
        config.origins[0].rules.store_set_cookie = true
    })
    .await;
    node.get("/a").await.says("x");
    node.at_rest().await;
    assert!(node.get("/a").await.says("x").head.is_hit());
}

#[tokio::test]
async fn private_is_for_one() {
    for directive in [
        "private",
        "private, max-age=60",
        "PRIVATE, max-age=60",
        "private=\"x-a\", max-age=60",
    ] {
        let origin = personal(move || OriginAnswer::ok().cache_control(directive)).await;
        let node = Node::start(&origin).await;
        node.get("/a").header("cookie", CANARY).await.says(CANARY);
        let got = node.get("/a").header("cookie", "two").await;
        assert!(!got.text().contains(CANARY), "{directive}");
    }
}

/// A path that looks static is no reason to store what the origin did not allow (web cache deception).
#[tokio::test]
async fn a_suffix_is_no_permission() {
    let origin = Origin::start().await;
    origin.prefix("/account").respond_with(|request| {
        OriginAnswer::ok().body(request.header("cookie").unwrap_or("nobody").to_owned())
    });
    let node = Node::start(&origin).await;
    for target in [
        "/account/x.css",
        "/account;x.js",
        "/account%2fx.png",
        "/account?x=.css",
    ] {
        node.get(target).header("cookie", CANARY).await.says(CANARY);
        node.get(target).header("cookie", "two").await.says("two");
    }
}

/// Fields that are not in the key cannot change what others get: they are overwritten or removed on the way.
#[tokio::test]
async fn unkeyed_fields_do_not_poison() {
    let origin = Origin::start().await;
    let fields = [
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-scheme",
        "x-forwarded-port",
        "x-forwarded-server",
        "x-original-url",
        "x-rewrite-url",
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-host",
        "x-original-host",
        "forwarded",
    ];
    origin.prefix("/a").respond_with(move |request| {
        let reflected: Vec<_> = fields
            .iter()
            .filter_map(|name| request.header(name))
            .collect();
        OriginAnswer::ok()
            .body(reflected.join("|"))
            .cache_control("max-age=60")
    });
    let node = Node::start(&origin).await;
    for name in fields {
        let target = format!("/a/{name}");
        let got = node.get(&target).header(name, CANARY).await.expect(200);
        assert!(!got.text().contains(CANARY), "{name} reached the origin");
        assert!(!node.get(&target).await.expect(200).text().contains(CANARY));
    }
}

/// Keys are as different as their bytes.
#[tokio::test]
async fn keys_are_byte_for_byte() {
    let origin = Origin::start().await;
    origin.prefix("/").respond_with(|request| {
        let text = format!(
            "{} {}",
            request.header("host").unwrap_or_default(),
            request.target
        );
        OriginAnswer::ok().body(text).cache_control("max-age=60")
    });
    let node = Node::start(&origin).await;
    let targets = [
        "/k",
        "//k",
        "/./k",
        "/x/../k",
        "/%6b",
        "/K",
        "/k/",
        "/k?",
        "/k?a=1&b=2",
        "/k?b=2&a=1",
        "/k;x=1",
        "/k%2f",
        "/k%00",
        "/k%23",
        "/k?a=1",
        "/k?a=%31",
        "/k&a=1",
        "/k%3fa=1",
        "/%2e/k",
        "/k%0d%0a",
        "/k\\",
    ];
    for target in targets {
        for host in ["a.example", "b.example", "a.example:8080"] {
            let expected = format!("{host} {target}");
            node.get(target).host(host).await.says(&expected);
            let got = node.get(target).host(host).await.says(&expected);
            assert!(got.head.is_hit(), "{expected}: {}", got.head.text);
        }
    }
    // Case of the host, and the default port, make no difference.
    for host in ["A.Example", "a.example:80"] {
        assert!(
            node.get("/k").host(host).await.expect(200).head.is_hit(),
            "{host}"
        );
    }
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

/// A GET with a body is never stored, and its body goes no further.
#[tokio::test]
async fn a_fat_get_is_not_stored() {
    let origin = Origin::start().await;
    origin.any("/a").respond_with(|request| {
        OriginAnswer::ok()
            .body(request.body.clone())
            .cache_control("max-age=60")
    });
    let node = Node::start(&origin).await;
    let got = node.get("/a").body(CANARY).await;
    assert!(matches!(got.status(), 200 | 400), "{}", got.head.text);
    assert_eq!(node.get("/a").await.expect(200).text(), "");
}

/// An error that the client provoked is not everybody's (CPDoS).
#[tokio::test]
async fn errors_are_not_stored_unless_they_say_so() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    for status in [400, 405, 413, 414, 431, 500, 501, 502, 503, 504] {
        let target = format!("/e{status}");
        origin.get(&target).status(status).body("error");
        node.get(&target).await.expect(status);
        origin.get(&target).body("well");
        let got = node.get(&target).await;
        if !matches!(status, 405 | 414 | 501) {
            assert_eq!(
                (got.status(), got.text().as_str()),
                (200, "well"),
                "{status}"
            );
        }
    }
}
