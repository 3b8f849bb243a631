//! What an answer, or its request, names as the next is here before a client asks for it.

use caje_node::config::Config;
use caje_node::config::prefetch::{Query, Rules, Source};
use caje_node::telemetry::{Metrics, Prefetched};
use caje_tests::{Gate, Node, Origin, OriginAnswer};

/// A node that follows links by these rules.
async fn following(origin: &Origin, change: impl FnOnce(&mut Rules)) -> Node {
    let mut rules = Rules::default();
    change(&mut rules);
    Node::with(origin, |config: &mut Config| {
        config.origins[0].prefetch = Some(rules);
    })
    .await
}

/// Segments `/1` to `/last`, each of which links to the next one.
fn chain(origin: &Origin, last: u64) {
    origin.prefix("/").respond_with(move |request| {
        let number: u64 = request.target[1..].parse().unwrap_or(0);
        let answer = OriginAnswer::ok().cache_control("max-age=600");
        let answer = match number < last {
            true => answer.header("link", format!("<{}>; rel=\"next\"", number + 1)),
            false => answer,
        };
        answer.body(format!("segment {number}"))
    });
}

/// An answer with this `Link`.
fn linked(origin: &Origin, target: &str, link: &str) {
    let answer = OriginAnswer::ok().cache_control("max-age=600");
    let answer = answer.header("link", link).body("a body");
    origin.get(target).answer(answer);
}

fn fresh(origin: &Origin, target: &str) {
    let answer = OriginAnswer::ok().cache_control("max-age=600");
    origin.get(target).answer(answer.body("a body"));
}

async fn came(node: &Node, outcome: Prefetched, count: u64) {
    let what = format!("{outcome:?}");
    node.until(&what, |metrics| metrics.prefetches.get(outcome) == count)
        .await;
}

/// All that was named has been dealt with: `count` in all.
async fn considered(node: &Node, count: u64) {
    let all = [
        Prefetched::Whole,
        Prefetched::Present,
        Prefetched::UnderWay,
        Prefetched::Failed,
        Prefetched::Resting,
        Prefetched::Refused,
        Prefetched::Dropped,
        Prefetched::Throttled,
    ];
    node.until("considered", |metrics| {
        all.iter()
            .map(|outcome| metrics.prefetches.get(*outcome))
            .sum::<u64>()
            == count
    })
    .await;
}

/// After the first segment, each is a hit, and the origin was asked for each once.
#[tokio::test]
async fn the_next_segment_is_a_hit() {
    const LAST: u64 = 20;
    let origin = Origin::start().await;
    chain(&origin, LAST);
    let node = following(&origin, |_| {}).await;
    for number in 1..=LAST {
        let got = node.get(&format!("/{number}")).await.expect(200);
        assert_eq!(got.text(), format!("segment {number}"));
        assert_eq!(got.head.is_hit(), number > 1, "{}", got.head.text);
        came(&node, Prefetched::Whole, number.min(LAST - 1)).await;
    }
    for number in 1..=LAST {
        assert_eq!(origin.requests(&format!("/{number}")), 1);
    }
    assert_eq!(origin.requests_total(), LAST);
    let total = node.inner().prefetched(Source::Link);
    assert_eq!((total.used(), total.wasted()), (LAST - 1, 0));
}

/// It is asked for by nobody: whole, without anything of the client's, and saying so.
#[tokio::test]
async fn nothing_of_the_client_goes_along() {
    let origin = Origin::start().await;
    chain(&origin, 2);
    let node = following(&origin, |_| {}).await;
    node.get("/1")
        .header("range", "bytes=0-3")
        .header("cookie", "a=secret")
        .header("referer", "http://a.example/secret")
        .header("if-none-match", "\"other\"")
        .header("user-agent", "a client")
        .await
        .expect(206);
    came(&node, Prefetched::Whole, 1).await;
    let asked = origin.requests_log();
    let asked = asked.iter().find(|asked| asked.target == "/2");
    let fields = &asked.expect("a prefetch").headers;
    assert_eq!(fields["sec-purpose"], "prefetch");
    for name in ["range", "cookie", "referer", "if-none-match"] {
        assert!(!fields.contains_key(name), "{fields:?}");
    }
    let agent = fields["user-agent"].to_str().expect("text");
    assert!(agent.starts_with("caje/"), "{agent}");
}

/// Who comes while it is under way gets what has arrived, and the rest as it does.
#[tokio::test]
async fn a_viewer_joins() {
    let origin = Origin::start().await;
    linked(&origin, "/1", "</2>; rel=next");
    let gate = origin
        .get("/2")
        .generated(300_000)
        .cache_control("max-age=60")
        .gated_at(150_000);
    let node = following(&origin, |_| {}).await;
    node.get("/1").await.expect(200);
    gate.reached().await;
    let mut viewer = node.get("/2").open().await;
    let first = viewer.take(100_000).await;
    assert_eq!(slow_server::verify_body("/2", 0, &first), Ok(()));
    gate.open();
    viewer.rest().await;
    came(&node, Prefetched::Whole, 1).await;
    assert_eq!(origin.requests("/2"), 1);
    assert_eq!(node.inner().prefetched(Source::Link).used(), 1);
}

/// A failure delays no viewer, and is tried again: by the viewer at once, and by a later link after a pause.
#[tokio::test]
async fn a_failure_leaves_nothing_behind() {
    let origin = Origin::start().await;
    linked(&origin, "/1", "</2>; rel=next");
    linked(&origin, "/other", "</2>; rel=next");
    let failed = OriginAnswer::status(503).body("not now");
    let answer = OriginAnswer::ok().cache_control("max-age=600").body("here");
    origin.get("/2").sequence([failed, answer]);
    let node = following(&origin, |_| {}).await;
    node.get("/1").await.expect(200);
    came(&node, Prefetched::Failed, 1).await;
    node.get("/other").await.expect(200);
    came(&node, Prefetched::Resting, 1).await;
    assert_eq!(origin.requests("/2"), 1);
    assert_eq!(node.get("/2").await.expect(200).text(), "here");
    assert!(node.get("/2").await.expect(200).head.is_hit());
    assert_eq!(origin.requests("/2"), 2);
}

/// As many as a page may name, and no more; pages that name one another end.
#[tokio::test]
async fn what_one_answer_may_lead_to_is_bounded() {
    let origin = Origin::start().await;
    origin.prefix("/").respond_with(|request| {
        let links: Vec<String> = (0..200)
            .map(|n| format!("<{}/{n}>; rel=next", request.target))
            .collect();
        OriginAnswer::ok()
            .cache_control("max-age=600")
            .header("link", links.join(", "))
            .body("a body")
    });
    linked(&origin, "/self", "</self>; rel=next");
    linked(&origin, "/a", "</b>; rel=next");
    linked(&origin, "/b", "</a>; rel=next");
    let node = following(&origin, |rules| rules.depth = 2).await;
    node.get("/self").await.expect(200);
    node.get("/a").await.expect(200);
    // `/b`, and what it names: `/a`, which is here.
    came(&node, Prefetched::Present, 1).await;
    assert_eq!(origin.requests_total(), 3);
    let node = following(&origin, |_| {}).await;
    node.get("/page").await.expect(200);
    considered(&node, 200).await;
    came(&node, Prefetched::Whole, 16).await;
    assert_eq!(origin.requests_total(), 3 + 17);
}

#[tokio::test]
async fn several_answers_are_followed_where_wanted() {
    let origin = Origin::start().await;
    chain(&origin, 100);
    let node = following(&origin, |rules| rules.depth = 3).await;
    node.get("/1").await.expect(200);
    came(&node, Prefetched::Whole, 3).await;
    // Two are here; from them it goes one further.
    assert!(node.get("/2").await.expect(200).head.is_hit());
    came(&node, Prefetched::Whole, 4).await;
    assert_eq!(origin.requests_total(), 5);
}

/// Only the links that the rules name, of answers that clients got, to where they may lead.
#[tokio::test]
async fn what_is_not_followed() {
    let origin = Origin::start().await;
    let refused = [
        "<http://169.254.169.254/latest>; rel=next",
        "<//other.example/>; rel=next",
        "<http://127.0.0.1:1/>; rel=next",
        "<https://[::1]/>; rel=next",
        "<file:///etc/passwd>; rel=next",
        "<http://user@a.example/>; rel=next",
        "<?token=1>; rel=next",
        "</2?delete=1>; rel=next",
    ];
    linked(&origin, "/refused", &refused.join(", "));
    linked(
        &origin,
        "/others",
        "</2>; rel=prev, </2>; rel=preload, </2>; rel=\"next\"; anchor=\"/elsewhere\"",
    );
    let not_found = OriginAnswer::status(404).cache_control("max-age=60");
    origin
        .get("/404")
        .answer(not_found.header("link", "</2>; rel=next").body("no"));
    linked(&origin, "/1", "</2>; rel=next");
    fresh(&origin, "/2");
    let node = following(&origin, |_| {}).await;
    for target in ["/others", "/404", "/refused"] {
        node.get(target).await;
    }
    node.head("/1").await.expect(200);
    node.get("/1")
        .header("sec-purpose", "prefetch")
        .await
        .expect(200);
    considered(&node, refused.len() as u64).await;
    came(&node, Prefetched::Refused, refused.len() as u64).await;
    assert_eq!(origin.requests("/2"), 0);
    // All this has not kept it from being followed.
    node.get("/1").await.expect(200);
    came(&node, Prefetched::Whole, 1).await;
    assert_eq!(origin.requests("/2"), 1);
}

#[tokio::test]
async fn queries_go_by_their_rule() {
    let origin = Origin::start().await;
    linked(
        &origin,
        "/1?sign=a",
        "</2>; rel=next, </3?sign=b>; rel=next",
    );
    for target in ["/2", "/2?sign=a", "/3?sign=b"] {
        fresh(&origin, target);
    }
    // Those of the path are counted whatever their query is.
    for (query, wanted) in [
        (Query::Skip, [1, 0, 0]),
        (Query::Keep, [2, 0, 1]),
        (Query::Copy, [3, 1, 2]),
    ] {
        let node = following(&origin, |rules| rules.query = query).await;
        node.get("/1?sign=a").await.expect(200);
        considered(&node, 2).await;
        let asked = ["/2", "/2?sign=a", "/3?sign=b"].map(|target| origin.requests(target));
        assert_eq!(asked, wanted, "{query:?}");
    }
}

/// Many viewers of the same make one prefetch.
#[tokio::test]
async fn many_viewers_make_one_prefetch() {
    let origin = Origin::start().await;
    linked(&origin, "/1", "</2>; rel=next");
    let gate = Gate::new();
    origin
        .get("/2")
        .generated(1000)
        .cache_control("max-age=60")
        .gate_at(0, &gate);
    let node = following(&origin, |_| {}).await;
    node.get("/1").await.expect(200);
    gate.reached().await;
    let viewers: Vec<_> = (0..100).map(|_| node.get("/1").start()).collect();
    for viewer in viewers {
        viewer.await.expect("a viewer").expect(200);
    }
    gate.open();
    came(&node, Prefetched::Whole, 1).await;
    assert_eq!(origin.requests("/2"), 1);
}

/// What players (CTA-5004) and origins (CTA-5006) say.
#[tokio::test]
async fn media_fields_are_followed() {
    let origin = Origin::start().await;
    fresh(&origin, "/a/1");
    let answer = OriginAnswer::ok()
        .cache_control("max-age=600")
        .body("a body");
    let announced = answer.header("cmsd-static", "nor=\"4\"");
    origin.get("/a/3").answer(announced);
    for target in ["/a/1?CMCD=nor%3D%223%22", "/a/2", "/a/4"] {
        fresh(&origin, target);
    }
    let node = following(&origin, |rules| rules.cmcd = true).await;
    node.get("/a/1")
        .header("cmcd-request", "nor=\"2\",su")
        .await
        .expect(200);
    came(&node, Prefetched::Whole, 1).await;
    node.get("/a/1?CMCD=nor%3D%223%22").await.expect(200);
    came(&node, Prefetched::Whole, 2).await;
    node.get("/a/3").await.expect(200);
    came(&node, Prefetched::Whole, 3).await;
    for target in ["/a/2", "/a/3", "/a/4"] {
        assert!(node.get(target).await.expect(200).head.is_hit(), "{target}");
        assert_eq!(origin.requests(target), 1);
    }
    let node = following(&origin, |rules| (rules.cmcd, rules.cmsd) = (false, false)).await;
    node.get("/a/1")
        .header("cmcd-request", "nor=\"2\"")
        .await
        .expect(200);
    node.get("/a/3").await.expect(200);
    considered(&node, 0).await;
}

/// What was brought and purged before a client had it was brought for nothing.
#[tokio::test]
async fn what_nobody_had_is_wasted() {
    let origin = Origin::start().await;
    chain(&origin, 3);
    let node = following(&origin, |_| {}).await;
    node.get("/1").await.expect(200);
    came(&node, Prefetched::Whole, 1).await;
    node.post("/2").await;
    let total = node.inner().prefetched(Source::Link).clone();
    caje_tests::until(|| format!("{total:?}"), || total.wasted() == 1).await;
    assert_eq!(total.used(), 0);
}

/// Nothing is followed until it is asked for.
#[tokio::test]
async fn it_is_off_by_default() {
    let origin = Origin::start().await;
    chain(&origin, 3);
    let node = Node::start(&origin).await;
    assert_eq!(node.config().origins[0].prefetch, None);
    node.get("/1").await.expect(200);
    node.get("/1").await.expect(200);
    assert_eq!(origin.requests_total(), 1);
}

/// However pages that are here link to one another, one answer leads to a bounded number of looks.
#[tokio::test]
async fn pages_that_all_link_to_one_another_end() {
    const PAGES: u64 = 17;
    let origin = Origin::start().await;
    let links: Vec<String> = (0..PAGES).map(|n| format!("</{n}>; rel=next")).collect();
    for number in 0..PAGES {
        linked(&origin, &format!("/{number}"), &links.join(", "));
    }
    let node = following(&origin, |rules| rules.depth = 8).await;
    for number in 0..PAGES {
        node.get(&format!("/{number}")).await.expect(200);
    }
    let asked = origin.requests_total();
    assert_eq!(asked, PAGES);
    // It still hears.
    linked(&origin, "/other", "</last>; rel=next");
    fresh(&origin, "/last");
    node.get("/other").await.expect(200);
    caje_tests::until(|| "the last".to_owned(), || origin.requests("/last") == 1).await;
}

/// What is longer than a body may be is left to whoever asks for it, and told of as soon as its length is.
#[tokio::test]
async fn long_bodies_are_left_alone() {
    const SIZE: u64 = 3 << 20;
    let origin = Origin::start().await;
    for (page, body) in [("/1", "/known"), ("/2", "/unknown")] {
        linked(&origin, page, &format!("<{body}>; rel=next"));
    }
    let route = |target: &str| {
        origin
            .get(target)
            .generated(SIZE)
            .cache_control("max-age=60")
    };
    // The origin would send no more than this until it is let.
    let gate = route("/known").gated_at(1 << 20);
    route("/unknown").chunk_size(100_000);
    let node = following(&origin, |rules| rules.max_size = 1 << 20).await;
    node.get("/1").await.expect(200);
    came(&node, Prefetched::Failed, 1).await;
    gate.open();
    node.get("/2").await.expect(200);
    came(&node, Prefetched::Failed, 2).await;
    for target in ["/known", "/unknown"] {
        node.get(target).await.is_whole(target, SIZE);
    }
}

/// A target that its origin wants asked about each time is not asked for by every hint.
#[tokio::test]
async fn what_is_never_fresh_rests() {
    let origin = Origin::start().await;
    linked(&origin, "/1", "</2>; rel=next");
    linked(&origin, "/other", "</2>; rel=next");
    origin.get("/2").answer(
        OriginAnswer::ok()
            .cache_control("no-cache")
            .etag("\"a\"")
            .body("a body"),
    );
    let node = following(&origin, |_| {}).await;
    node.get("/1").await.expect(200);
    came(&node, Prefetched::Whole, 1).await;
    node.get("/other").await.expect(200);
    came(&node, Prefetched::Resting, 1).await;
    assert_eq!(origin.requests("/2"), 1);
}

/// What another origin's answers are named by counts as used there, too; and nothing but what its kind is goes along.
#[tokio::test]
async fn another_host_learns_nothing_of_the_client() {
    let origin = Origin::start().await;
    let answer = OriginAnswer::ok()
        .cache_control("max-age=600")
        .header("vary", "accept-encoding, x-session")
        .header("link", "<http://other.example/2>; rel=next, </3>; rel=next");
    origin.get("/1").answer(answer.body("a body"));
    fresh(&origin, "/2");
    fresh(&origin, "/3");
    let node = following(&origin, |rules| {
        let other = caje_node::semantics::reference::Allowed::parse("other.example");
        rules.confinement.allowed = [other.expect("a host")].into();
    })
    .await;
    node.get("/1")
        .header("accept-encoding", "gzip")
        .header("x-session", "secret")
        .await
        .expect(200);
    came(&node, Prefetched::Whole, 2).await;
    let asked = origin.requests_log();
    let fields = |target: &str| {
        let asked = asked.iter().find(|asked| asked.target == target);
        let fields = &asked.expect("a prefetch").headers;
        (
            fields.contains_key("accept-encoding"),
            fields.contains_key("x-session"),
        )
    };
    assert_eq!(fields("/2"), (true, false));
    assert_eq!(fields("/3"), (true, true));
}

/// However far answers may be followed, one hint fetches no more than its number.
#[tokio::test]
async fn a_site_is_not_crawled() {
    let origin = Origin::start().await;
    origin.prefix("/").respond_with(|request| {
        let own = request.target.trim_end_matches('/');
        let links: Vec<String> = (0..4).map(|n| format!("<{own}/{n}>; rel=next")).collect();
        OriginAnswer::ok()
            .cache_control("max-age=600")
            .header("link", links.join(", "))
            .body("a body")
    });
    let node = following(&origin, |rules| rules.depth = 8).await;
    node.get("/a").await.expect(200);
    // The last answers that are followed find nothing left.
    let looks = |metrics: &Metrics| {
        metrics.prefetches.get(Prefetched::Whole) + metrics.prefetches.get(Prefetched::Dropped)
    };
    node.until("the end", |metrics| {
        looks(metrics) >= 64 && metrics.prefetches.get(Prefetched::Refused) > 0
    })
    .await;
    assert_eq!(looks(node.metrics()), 64);
    let fetched = node.metrics().prefetches.get(Prefetched::Whole);
    assert_eq!(origin.requests_total(), 1 + fetched);
}
