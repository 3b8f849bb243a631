//! One fill for many: who joins, what they get, and who must not wait.

use caje_tests::{End, Gate, Node, Origin, OriginAnswer};

const SIZE: u64 = 300_000;

/// Two clients ask for the same absent response: the origin is asked once, both get all of it.
#[tokio::test]
async fn concurrent_misses_share_one_fill() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated();
    let node = Node::start(&origin).await;
    let first = node.get("/a").start();
    gate.reached().await;
    let second = node.get("/a").start();
    node.joined_fills(1).await;
    gate.open();
    first.await.expect("the first").is_whole("/a", SIZE);
    let second = second.await.expect("the second").is_whole("/a", SIZE);
    assert!(
        second.head.cache_status().contains("collapsed"),
        "{}",
        second.head.text
    );
    assert_eq!(origin.requests("/a"), 1);
}

/// The second client streams the first half while the origin still holds the second.
#[tokio::test]
async fn a_joiner_reads_what_is_here_before_the_rest_is() {
    let origin = Origin::start().await;
    let half = SIZE / 2;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(half);
    let node = Node::start(&origin).await;
    let mut first = node.get("/a").open().await;
    let mut bytes = first.take(half as usize).await.to_vec();
    let mut second = node.get("/a").open().await;
    let joined = second.take(half as usize).await;
    assert_eq!(joined, bytes);
    assert!(!gate.is_open());
    gate.open();
    bytes.extend_from_slice(&first.rest().await.body);
    assert_eq!(slow_server::verify_body("/a", 0, &bytes), Ok(()));
    assert_eq!(bytes.len() as u64, SIZE);
    let rest = second.rest().await;
    assert_eq!(rest.end, End::Whole);
    assert_eq!(slow_server::verify_body("/a", half, &rest.body), Ok(()));
    assert_eq!(rest.body.len() as u64, SIZE - half);
    assert_eq!(origin.requests("/a"), 1);
}

/// The same of a body whose length nobody knows.
#[tokio::test]
async fn a_joiner_reads_a_body_of_unknown_length_as_it_arrives() {
    let origin = Origin::start().await;
    let half = SIZE / 2;
    let gate = Gate::new();
    origin
        .get("/a")
        .generated(SIZE)
        .chunk_size(10_000)
        .cache_control("max-age=60")
        .gate_at(half, &gate);
    let node = Node::start(&origin).await;
    let mut first = node.get("/a").open().await;
    first.take(half as usize).await;
    let mut second = node.get("/a").open().await;
    let joined = second.take(half as usize).await;
    assert_eq!(slow_server::verify_body("/a", 0, &joined), Ok(()));
    gate.open();
    for answer in [first, second] {
        let rest = answer.rest().await;
        assert_eq!(rest.end, End::Whole);
        assert_eq!(rest.body.len() as u64, SIZE - half);
        assert_eq!(slow_server::verify_body("/a", half, &rest.body), Ok(()));
    }
    node.get("/a").await.is_whole("/a", SIZE);
    assert_eq!(origin.requests("/a"), 1);
}

/// Each byte that the origin lets go is at each client, one by one.
#[tokio::test]
async fn bytes_are_passed_on_one_by_one() {
    let origin = Origin::start().await;
    let gates: Vec<Gate> = (1..5).map(|_| Gate::new()).collect();
    let mut route = origin.get("/a").generated(5).cache_control("max-age=60");
    for (at, gate) in (1..).zip(&gates) {
        route = route.gate_at(at, gate);
    }
    let node = Node::start(&origin).await;
    let mut answers = vec![node.get("/a").open().await, node.get("/a").open().await];
    for (at, gate) in (0..).zip(&gates) {
        for answer in &mut answers {
            assert_eq!(
                slow_server::verify_body("/a", at, &answer.take(1).await),
                Ok(())
            );
        }
        gate.open();
    }
    for answer in answers {
        assert_eq!(answer.rest().await.end, End::Whole);
    }
    assert_eq!(origin.requests("/a"), 1);
}

#[tokio::test]
async fn fifty_clients_on_one_cold_body_cost_one_request() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated();
    let node = Node::start(&origin).await;
    let clients: Vec<_> = (0..50).map(|_| node.get("/a").start()).collect();
    gate.reached().await;
    node.joined_fills(49).await;
    gate.open();
    for client in clients {
        client.await.expect("a client").is_whole("/a", SIZE);
    }
    assert_eq!(origin.requests("/a"), 1);
    assert_eq!(origin.counts("/a").bytes, SIZE);
}

/// The first client leaves before there is a head: the one who joined gets all of it.
#[tokio::test]
async fn the_first_client_may_leave_before_the_head() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated();
    let node = Node::start(&origin).await;
    let mut first = node.connect().await;
    first.send(node.get("/a").bytes()).await;
    gate.reached().await;
    let second = node.get("/a").start();
    node.joined_fills(1).await;
    first.reset();
    node.open_connections(1).await;
    gate.open();
    second.await.expect("the second").is_whole("/a", SIZE);
    assert_eq!(origin.requests("/a"), 1);
}

/// And in the middle of the body.
#[tokio::test]
async fn the_first_client_may_leave_in_the_middle() {
    let origin = Origin::start().await;
    let half = SIZE / 2;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(half);
    let node = Node::start(&origin).await;
    let mut first = node.get("/a").open().await;
    first.take(half as usize).await;
    let mut second = node.get("/a").open().await;
    second.take(1).await;
    first.leave();
    node.open_connections(1).await;
    gate.open();
    let rest = second.rest().await;
    assert_eq!(rest.end, End::Whole);
    assert_eq!(rest.body.len() as u64, SIZE - 1);
    assert_eq!(slow_server::verify_body("/a", 1, &rest.body), Ok(()));
    node.at_rest().await;
    assert!(node.get("/a").await.is_whole("/a", SIZE).head.is_hit());
    assert_eq!(origin.requests("/a"), 1);
}

/// Nobody is left: within `linger` somebody else may still come, and the fill is theirs.
#[tokio::test]
async fn a_fill_that_nobody_reads_waits_for_somebody() {
    let origin = Origin::start().await;
    let half = SIZE / 2;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(half);
    let node = Node::start(&origin).await;
    let mut first = node.get("/a").open().await;
    first.take(1).await;
    first.leave();
    node.open_connections(0).await;
    let second = node.get("/a").open().await;
    gate.open();
    second.rest().await.is_whole("/a", SIZE);
    assert_eq!(origin.requests("/a"), 1);
}

/// Nobody is left, and nobody comes: the origin is let go.
#[tokio::test]
async fn a_fill_that_nobody_wants_ends() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(SIZE / 2);
    let node = Node::with(&origin, |config| {
        config.limits.linger = std::time::Duration::from_millis(20);
    })
    .await;
    let mut first = node.get("/a").open().await;
    first.take(1).await;
    first.leave();
    origin.wait_abandoned("/a", 1).await;
    node.at_rest().await;
    gate.open();
    node.get("/a").await.is_whole("/a", SIZE);
}

/// An origin that gives no head is let go as well, once the last of those who waited has gone.
#[tokio::test]
async fn a_head_that_nobody_wants_is_not_waited_for() {
    for fields in ["", "authorization: Basic eDp5\r\n"] {
        let origin = Origin::start().await;
        let gate = origin.get("/a").generated(SIZE).gated();
        let node = Node::with(&origin, |config| {
            config.limits.linger = std::time::Duration::from_millis(20);
        })
        .await;
        let request = format!("GET /a HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n");
        let mut first = node.connect().await;
        first.send(&request).await;
        gate.reached().await;
        if fields.is_empty() {
            let mut second = node.connect().await;
            second.send(&request).await;
            node.joined_fills(1).await;
            second.reset();
        }
        first.reset();
        node.until("the request to end", |metrics| {
            metrics.origin_requests.total() == 1
        })
        .await;
        gate.open();
        node.get("/a").await.is_whole("/a", SIZE);
    }
}

/// A client that reads nothing holds neither the fill nor the others.
#[tokio::test]
async fn a_slow_client_slows_nobody() {
    let size = 24 << 20;
    let origin = Origin::start().await;
    origin
        .get("/a")
        .generated(size)
        .cache_control("max-age=60")
        .etag("\"1\"")
        .ranges(true);
    let node = Node::start(&origin).await;
    let mut slow = caje_tests::Connection::narrow(node.address()).await;
    slow.send(node.get("/a").bytes()).await;
    let mut slow = slow.begin("GET").await;
    slow.take(1).await;
    node.get("/a").await.is_whole("/a", size);
    origin.wait_finished("/a", 1).await;
    let rest = slow.rest().await;
    assert_eq!(rest.end, End::Whole);
    assert_eq!(slow_server::verify_body("/a", 1, &rest.body), Ok(()));
    assert_eq!(rest.body.len() as u64, size - 1);
    assert_eq!(origin.requests("/a"), 1);
}

/// What may not be shared is asked for by all who waited, at once: none waits for another's answer.
#[tokio::test]
async fn waiters_of_an_unshareable_answer_go_at_once() {
    for directive in ["no-store", "private, max-age=60", "max-age=0"] {
        let origin = Origin::start().await;
        let gate = origin
            .get("/a")
            .generated(1000)
            .cache_control(directive)
            .gated();
        let node = Node::start(&origin).await;
        let clients: Vec<_> = (0..5).map(|_| node.get("/a").start()).collect();
        gate.reached().await;
        node.joined_fills(4).await;
        gate.open_one();
        // The other four stand at the gate together, though none of them has been answered.
        gate.reached_n(5).await;
        gate.open();
        for client in clients {
            client.await.expect("a client").is_whole("/a", 1000);
        }
        assert_eq!(origin.requests("/a"), 5, "{directive}");
    }
}

/// The next ones do not even wait for the head.
#[tokio::test]
async fn what_was_unshareable_is_not_waited_for_again() {
    let origin = Origin::start().await;
    let gate = origin.get("/a").body("x").cache_control("no-store").gated();
    let node = Node::start(&origin).await;
    let first = node.get("/a").start();
    gate.reached().await;
    gate.open_one();
    first.await.expect("an answer").says("x");
    let clients: Vec<_> = (0..4).map(|_| node.get("/a").start()).collect();
    gate.reached_n(5).await;
    gate.open();
    for client in clients {
        client.await.expect("an answer").says("x");
    }
}

/// A key that was unshareable and then is shareable collapses again.
#[tokio::test]
async fn what_became_shareable_is_collapsed_again() {
    let origin = Origin::start().await;
    origin.get("/a").body("x").cache_control("no-store");
    let node = Node::start(&origin).await;
    node.get("/a").await.says("x");
    origin.get("/a").body("y").cache_control("max-age=60");
    node.get("/a").await.says("y");
    assert!(node.get("/a").await.says("y").head.is_hit());
    assert_eq!(origin.requests("/a"), 2);
}

/// The leader fails before a head: everybody hears of it, nobody hangs.
#[tokio::test]
async fn a_leader_that_fails_leaves_nobody_waiting() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    origin.get("/a").raw("").gate(&gate);
    let node = Node::start(&origin).await;
    let clients: Vec<_> = (0..5).map(|_| node.get("/a").start()).collect();
    gate.reached().await;
    node.joined_fills(4).await;
    gate.open();
    for client in clients {
        let got = client.await.expect("a client").expect(502);
        assert!(
            got.head.cache_status().contains("detail="),
            "{}",
            got.head.text
        );
    }
}

/// Two variants are asked for at once: each waiter ends up with its own.
#[tokio::test]
async fn a_waiter_of_another_variant_gets_its_own() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    let held = gate.clone();
    origin.get("/a").respond_with(move |request| {
        let language = request
            .header("accept-language")
            .unwrap_or("none")
            .to_owned();
        OriginAnswer::ok()
            .body(language)
            .cache_control("max-age=60")
            .vary("accept-language")
            .gate(&held)
    });
    let node = Node::start(&origin).await;
    let asked = ["de", "fr", "fr", "de", "en"];
    let ask = |language| node.get("/a").header("accept-language", language).start();
    let first = ask("de");
    gate.reached().await;
    let mut clients = vec![(asked[0], first)];
    clients.extend(asked[1..].iter().map(|language| (*language, ask(language))));
    node.joined_fills(4).await;
    gate.open();
    for (language, client) in clients {
        client.await.expect("a client").says(language);
    }
    assert_eq!(origin.requests("/a"), 3);
}

/// One user's private answer never reaches those who waited for it.
#[tokio::test]
async fn waiters_never_see_another_users_answer() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    let held = gate.clone();
    origin.get("/a").respond_with(move |request| {
        let user = request.header("cookie").unwrap_or("nobody").to_owned();
        OriginAnswer::ok()
            .body(user)
            .cache_control("private, max-age=60")
            .gate(&held)
    });
    let node = Node::start(&origin).await;
    let first = node.get("/a").header("cookie", caje_tests::CANARY).start();
    gate.reached().await;
    let others: Vec<_> = (0..4)
        .map(|n| {
            node.get("/a")
                .header("cookie", &format!("user={n}"))
                .start()
        })
        .collect();
    node.joined_fills(4).await;
    gate.open();
    first.await.expect("the first").says(caje_tests::CANARY);
    for (n, other) in others.into_iter().enumerate() {
        other.await.expect("another").says(&format!("user={n}"));
    }
    node.get("/a").header("cookie", "late").await.says("late");
}

/// A request for a head does not wait for a body.
#[tokio::test]
async fn head_does_not_wait_for_a_gets_body() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(1);
    let node = Node::start(&origin).await;
    let mut first = node.get("/a").open().await;
    first.take(1).await;
    let head = node.head("/a").await.expect(200);
    assert_eq!(head.head.length(), Some(SIZE));
    gate.open();
    first.rest().await;
    assert_eq!(origin.requests("/a"), 1);
}

/// An origin that wants to be asked each time, and answers users by their cookies without saying so.
async fn asked_each_time() -> (Origin, Node, Gate) {
    let origin = Origin::start().await;
    let gate = Gate::new();
    gate.open();
    let held = gate.clone();
    origin.get("/a").respond_with(move |request| {
        let user = request.header("cookie").unwrap_or("nobody").to_owned();
        OriginAnswer::ok()
            .etag(&format!("\"{user}\""))
            .body(user)
            .cache_control("no-cache")
            .gate(&held)
    });
    let node = Node::start(&origin).await;
    (origin, node, gate)
}

/// What is to be validated before each use is validated once for all who wait.
#[tokio::test]
async fn fifty_clients_share_the_validation_of_what_is_validated_each_time() {
    let (origin, node, gate) = asked_each_time().await;
    node.get("/a").await.says("nobody");
    node.at_rest().await;
    gate.close();
    let clients: Vec<_> = (0..50).map(|_| node.get("/a").start()).collect();
    gate.reached_n(2).await;
    node.joined_fills(49).await;
    gate.open();
    for client in clients {
        client.await.expect("a client").says("nobody");
    }
    assert_eq!(origin.requests("/a"), 2);
    assert_eq!(origin.counts("/a").not_modified, 1);
    // Those who come afterwards have it validated again.
    node.get("/a").await.says("nobody");
    assert_eq!(origin.requests("/a"), 3);
}

/// The same when nothing is stored yet: they learn what it is, and then validate it together.
#[tokio::test]
async fn waiters_of_what_is_validated_each_time_validate_it_together() {
    let (origin, node, gate) = asked_each_time().await;
    gate.close();
    let clients: Vec<_> = (0..50).map(|_| node.get("/a").start()).collect();
    gate.reached().await;
    node.joined_fills(49).await;
    gate.open_one();
    gate.reached_n(2).await;
    node.joined_fills(49 + 48).await;
    gate.open();
    for client in clients {
        client.await.expect("a client").says("nobody");
    }
    assert_eq!(origin.requests("/a"), 2);
    assert_eq!(origin.counts("/a").bytes, "nobody".len() as u64);
}

/// Users whom a cookie sets apart never share one, and do not wait for one another: all stand at the
/// origin at once.
#[tokio::test]
async fn a_validation_is_not_shared_between_users() {
    let (_origin, node, gate) = asked_each_time().await;
    node.get("/a")
        .header("cookie", "user=0")
        .await
        .says("user=0");
    node.at_rest().await;
    gate.close();
    let ask = |user: usize| {
        let cookie = format!("user={user}");
        (
            cookie.clone(),
            node.get("/a").header("cookie", &cookie).start(),
        )
    };
    let clients: Vec<_> = (0..10).map(|n| ask(n / 2)).collect();
    // One of each pair, beside the one that filled the cache.
    gate.reached_n(1 + 5).await;
    node.joined_fills(5).await;
    gate.open();
    for (cookie, client) in clients {
        client.await.expect("a client").says(&cookie);
    }
}

/// What turns out private while it is validated goes to one alone: the others ask at once.
#[tokio::test]
async fn waiters_of_a_validation_that_cannot_be_shared_go_at_once() {
    let (origin, node, gate) = asked_each_time().await;
    node.get("/a").await.says("nobody");
    node.at_rest().await;
    gate.close();
    let held = gate.clone();
    let private = OriginAnswer::ok().body("mine").cache_control("private");
    origin.get("/a").answer(private.gate(&held));
    let clients: Vec<_> = (0..5).map(|_| node.get("/a").start()).collect();
    gate.reached_n(2).await;
    node.joined_fills(4).await;
    gate.open_one();
    gate.reached_n(1 + 5).await;
    gate.open();
    for client in clients {
        client.await.expect("a client").says("mine");
    }
    assert_eq!(origin.requests("/a"), 6);
}
