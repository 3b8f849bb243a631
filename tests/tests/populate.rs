//! What the manifest lists and this disk lacks is fetched, without a client asking.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use caje_admin_api::{
    Coverage, Held, Job, JobState, Jobs, List, ManifestClear, NodeCoverage, Objects, State, path,
};
use caje_node::config::{Config, HostPattern, Record};
use caje_node::manifest::{About, Manifest, Resource, ResourceId};
use caje_node::semantics::key::{CacheKey, Scheme};
use caje_node::telemetry::{Metrics, Populated};
use caje_tests::{Ask, Folder, Gate, Node, Origin, OriginAnswer, settings, until, within};

use crate::api::{TOKEN, bearer, told, with_tokens};
use crate::command::caje;

/// What plays ask for where the host does not matter.
const HOST: &str = "a.example";

/// Populates, with pauses that no play has to wait for.
fn eager(config: &mut Config) {
    config.populate.enabled = true;
    config.populate.backoff = (Duration::from_millis(1), Duration::from_millis(5));
}

/// A node of this name whose manifest lies in a folder that others see.
async fn sharing(
    origin: &Origin,
    shared: &Folder,
    name: &str,
    change: impl FnOnce(&mut Config),
) -> Node {
    let folder = Folder::new();
    let mut config = settings(origin, &folder);
    config.node.name = name.to_owned();
    config.manifest.dir = Some(shared.join("manifest"));
    change(&mut config);
    Node::run(config, folder).await
}

async fn manifest(node: &Node) -> Manifest {
    until(
        || "a manifest".to_owned(),
        || node.inner().manifest().is_some(),
    )
    .await;
    node.inner().manifest().expect("a manifest")
}

/// A row for a response that nobody has fetched.
fn row(host: &str, target: &str) -> Resource {
    let key = CacheKey::new(Scheme::Http, host, target.as_bytes());
    Resource {
        id: ResourceId {
            cache_key: Bytes::copy_from_slice(key.as_bytes()),
            variant: Vec::new(),
        },
        about: About {
            url: format!("http://{host}{target}"),
            origin: "origin".to_owned(),
            ..About::default()
        },
    }
}

async fn list(node: &Node, targets: &[&str]) {
    let manifest = manifest(node).await;
    for target in targets {
        manifest.record(row(HOST, target)).expect("a row");
    }
}

async fn fetched(node: &Node, count: u64) {
    node.until("fetched", |metrics| {
        metrics.populate_attempts.get(Populated::Whole) >= count
    })
    .await;
}

fn attempts(metrics: &Metrics) -> u64 {
    metrics.populate_attempts.total()
}

/// All that was begun has ended, and nothing is to be tried again.
async fn settled(node: &Node, blocked: u64) {
    let sum = |metrics: &Metrics| -> u64 {
        let labels = [
            Populated::Redirection,
            Populated::ClientError,
            Populated::ServerError,
            Populated::Connect,
            Populated::Truncated,
            Populated::Protocol,
            Populated::Uncacheable,
            Populated::NoOrigin,
            Populated::NoRoom,
            Populated::Malformed,
        ];
        labels
            .iter()
            .map(|label| metrics.populate_blocked.get(*label))
            .sum()
    };
    node.until("what is blocked", |metrics| {
        sum(metrics) == blocked
            && metrics.populate_waiting.get(()) == 0
            && metrics.populate_in_flight.get(()) == 0
    })
    .await;
}

async fn recorded_elsewhere(count: u64) {
    let origin = Origin::builder().keep_log(false).start().await;
    let origin = origin.expect("an origin");
    let shared = Folder::new();
    let first = sharing(&origin, &shared, "first", |config| {
        config.origins[0].record = Record {
            min_hits: Some(1),
            ..Record::default()
        };
    })
    .await;
    let known = manifest(&first).await;
    let size = |n: u64| 100 + n * 37 % 5000;
    let target = |n: u64| format!("/bytes/{}/{n}", size(n));
    let mut connection = first.connect().await;
    for n in 0..count {
        let target = target(n);
        connection.get(&target).await.is_whole(&target, size(n));
    }
    let rows = || known.reader().and_then(|reader| reader.count());
    until(
        || format!("rows: {:?}", rows()),
        || rows() == Ok(count) && known.status().outbox == 0,
    )
    .await;
    first.drain().await;
    let before = origin.requests_total();
    assert_eq!(before, count);
    let began = Instant::now();
    let second = sharing(&origin, &shared, "second", |config| {
        eager(config);
        config.store.size_bytes = 1 << 30;
    })
    .await;
    fetched(&second, count).await;
    println!("{count} fetched in {:?}", began.elapsed());
    // Each once.
    assert_eq!(origin.requests_total() - before, count);
    assert_eq!(attempts(second.metrics()), count);
    let walks = second.metrics().populate_walks.total();
    println!("{walks} walks");
    assert!(walks <= 20 + began.elapsed().as_secs() * 10, "{walks}");
    let mut connection = second.connect().await;
    for n in 0..count {
        let target = target(n);
        let got = connection.get(&target).await.is_whole(&target, size(n));
        assert!(got.head.is_hit(), "{}", got.head.text);
    }
    assert_eq!(origin.requests_total() - before, count);
}

/// 1,000 responses recorded through one node while another is down: it comes, and holds them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_fetches_what_others_have_recorded() {
    recorded_elsewhere(1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute; run by name for its figures"]
async fn ten_thousand() {
    recorded_elsewhere(10_000).await;
}

/// Each kind of failure has its limit, and the origin sees just as many requests: not one more after another change of
/// the manifest, nor after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_kept_to_the_number() {
    let origin = Origin::start().await;
    let cases = [
        ("/404", 1),
        ("/410", 1),
        ("/500", 5),
        ("/503", 5),
        ("/418", 3),
        ("/truncated", 3),
        ("/private", 1),
    ];
    for status in [404, 410, 500, 503, 418] {
        let _ = origin.get(&format!("/{status}")).status(status).body("no");
    }
    let _ = origin
        .get("/truncated")
        .generated(10_000)
        .cache_control("max-age=60")
        .lie(caje_tests::Lie::Truncated);
    let _ = origin.get("/private").body("mine").cache_control("private");
    let node = Node::with(&origin, |config| {
        eager(config);
        let mut closed = config.origins[0].clone();
        closed.name = "closed".to_owned();
        closed.hosts = vec![HostPattern::Exact("closed.example".to_owned())];
        // Nobody listens there: a port that is not for everybody.
        closed.url.port = 1;
        config.origins.push(closed);
    })
    .await;
    list(&node, &cases.map(|(target, _)| target)).await;
    let known = manifest(&node).await;
    known.record(row("closed.example", "/x")).expect("a row");
    settled(&node, 8).await;
    let check = |node: &Node, connects: u64| {
        for (target, count) in cases {
            assert_eq!(origin.requests(target), count, "{target}");
        }
        let connect = node.metrics().populate_attempts.get(Populated::Connect);
        assert_eq!(connect, connects);
    };
    check(&node, 5);
    // Something else changes.
    let _ = origin.get("/well").body("well").cache_control("max-age=60");
    list(&node, &["/well"]).await;
    fetched(&node, 1).await;
    settled(&node, 8).await;
    check(&node, 5);
    let node = node.restart().await;
    settled(&node, 8).await;
    check(&node, 0);
    assert_eq!(attempts(node.metrics()), 0);
    // The row itself says something new.
    let known = manifest(&node).await;
    let mut changed = row(HOST, "/404");
    changed.about.size = Some(7);
    known.record(changed).expect("a row");
    origin.wait_requests("/404", 2).await;
    settled(&node, 8).await;
    assert_eq!(origin.requests("/404"), 2);
}

/// What is in flight goes on; what was next is not asked for any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_manifest_begins_a_new_round() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .body("a")
        .cache_control("max-age=60")
        .gated();
    let names: Vec<String> = (0..50).map(|n| format!("/b/{n}")).collect();
    for name in names.iter().map(String::as_str).chain(["/c"]) {
        let _ = origin.get(name).body("b").cache_control("max-age=60");
    }
    let node = Node::with(&origin, |config| {
        eager(config);
        config.populate.max_in_flight = 1;
    })
    .await;
    let targets: Vec<&str> = ["/a"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    list(&node, &targets).await;
    gate.reached().await;
    let known = manifest(&node).await;
    for name in &names {
        known.forget(&row(HOST, name).id);
    }
    list(&node, &["/c"]).await;
    let walks = node.metrics().populate_walks.total();
    until(
        || "the rows to go".to_owned(),
        || known.reader().and_then(|reader| reader.count()) == Ok(2),
    )
    .await;
    node.until("another walk", |metrics| {
        metrics.populate_walks.total() > walks
    })
    .await;
    gate.open();
    fetched(&node, 2).await;
    assert_eq!(origin.requests("/c"), 1);
    for name in &names {
        assert_eq!(origin.requests(name), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_joins_and_the_rate_is_held_without_one() {
    let origin = Origin::start().await;
    let size = 1 << 20;
    let gate = origin
        .get("/a")
        .generated(size)
        .cache_control("max-age=60")
        .gated_at(300_000);
    let node = Node::with(&origin, |config| {
        eager(config);
        config.populate.max_rate = Some(512 << 10);
    })
    .await;
    list(&node, &["/a"]).await;
    gate.reached().await;
    let viewer = tokio::spawn(node.get("/a").into_future());
    node.joined_fills(1).await;
    let began = Instant::now();
    gate.open();
    let got = within("the viewer", viewer).await.expect("a viewer");
    got.is_whole("/a", size);
    // Far faster than the rate.
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(origin.requests("/a"), 1);
    fetched(&node, 1).await;
    let _ = origin.get("/b").generated(size).cache_control("max-age=60");
    let began = Instant::now();
    list(&node, &["/b"]).await;
    fetched(&node, 2).await;
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_700), "{took:?}");
    node.get("/b").await.is_whole("/b", size);
    assert_eq!(origin.requests("/b"), 1);
}

/// What one run is allowed holds for it alone, and below what the settings allow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_no_faster_than_it_was_told() {
    let origin = Origin::start().await;
    let size = 1 << 20;
    let mut gates = Vec::new();
    for target in ["/a", "/b"] {
        let answer = origin.get(target).generated(100);
        gates.push(answer.cache_control("max-age=60").gated());
    }
    let node = Node::with(&origin, |config| {
        with_tokens(config);
        config.populate.backoff = (Duration::from_millis(1), Duration::from_millis(5));
        config.populate.max_in_flight = 3;
    })
    .await;
    let in_flight = || node.metrics().populate_in_flight.get(());
    listed(&node, &["/a", "/b"], 2).await;
    let job: Job = told(
        &node,
        "POST",
        path::JOBS,
        r#"{"kind":"populate","concurrency":1}"#,
    )
    .await;
    gates[0].reached().await;
    assert_eq!(in_flight(), 1);
    gates.iter().for_each(Gate::open);
    ends(&node, &job.id).await;
    // Without a word of its own the settings count, and they do for a word that says more.
    let _ = origin.get("/e").generated(size).cache_control("max-age=60");
    listed(&node, &["/e"], 3).await;
    let began = Instant::now();
    let rate = r#"{"kind":"populate","rate_bytes":524288,"concurrency":1000}"#;
    let job: Job = told(&node, "POST", path::JOBS, rate).await;
    ends(&node, &job.id).await;
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_700), "{took:?}");
    let _ = origin.get("/f").generated(size).cache_control("max-age=60");
    listed(&node, &["/f"], 4).await;
    let began = Instant::now();
    let job: Job = told(&node, "POST", path::JOBS, r#"{"kind":"populate"}"#).await;
    ends(&node, &job.id).await;
    assert!(
        began.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        began.elapsed()
    );
    for body in [
        r#"{"kind":"populate","concurrency":0}"#,
        r#"{"kind":"populate","rate_bytes":0}"#,
        r#"{"kind":"verify","concurrency":1}"#,
    ] {
        let ask = Ask::new(node.inner().admin_address(), "POST", path::JOBS).host("127.0.0.1");
        let got = ask.header("authorization", &bearer(TOKEN)).body(body).await;
        assert_eq!(got.status(), 400, "{}", got.text());
    }
}

/// What was cleared a moment ago is lacking, though the index is written behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_knows_what_was_lost_just_before_it() {
    let origin = Origin::start().await;
    for target in ["/a", "/b"] {
        let _ = origin
            .get(target)
            .generated(100)
            .cache_control("max-age=60");
    }
    let node = Node::with(&origin, with_tokens).await;
    listed(&node, &["/a", "/b"], 2).await;
    let job: Job = told(&node, "POST", path::JOBS, r#"{"kind":"populate"}"#).await;
    ends(&node, &job.id).await;
    let held = || async {
        let coverage: Coverage = told(&node, "GET", path::COVERAGE, "").await;
        coverage.nodes[0].present
    };
    within("the index to know of it", async {
        while held().await != 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let _: serde_json::Value = told(&node, "POST", path::CLEAR_FS, "").await;
    let job: Job = told(&node, "POST", path::JOBS, r#"{"kind":"populate"}"#).await;
    ends(&node, &job.id).await;
    let job: Job = told(&node, "GET", &path::JOB.replace("{id}", &job.id), "").await;
    assert_eq!(job.done, 2, "{job:?}");
    for target in ["/a", "/b"] {
        assert!(node.get(target).await.expect(200).head.is_hit());
    }
}

/// Lists more, and waits until there are so many.
async fn listed(node: &Node, targets: &[&str], count: u64) {
    list(node, targets).await;
    let known = manifest(node).await;
    let rows = || known.reader().and_then(|reader| reader.count());
    until(|| format!("{:?}", rows()), || rows() == Ok(count)).await;
}

/// Waits for the end of a job, which has done all there was to do.
async fn ends(node: &Node, id: &str) {
    let events = path::JOB_EVENTS.replace("{id}", id);
    let ask = Ask::new(node.inner().admin_address(), "GET", &events).host("127.0.0.1");
    let text = ask.header("authorization", &bearer(TOKEN)).await.text();
    let last = text
        .lines()
        .rfind(|line| line.starts_with("data:"))
        .expect("an event");
    let job: Job = serde_json::from_str(&last[5..]).expect("a job");
    assert_eq!((job.state, job.failed), (JobState::Done, 0), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variants_are_fetched_as_they_were_recorded() {
    let origin = Origin::start().await;
    let shared = Folder::new();
    let _ = origin.get("/v").respond_with(|request| {
        let language = request.header("accept-language").unwrap_or("none");
        OriginAnswer::ok()
            .body(language.to_owned())
            .vary("accept-language")
            .cache_control("max-age=60")
    });
    let first = sharing(&origin, &shared, "first", |config| {
        config.origins[0].record = Record {
            min_hits: Some(1),
            ..Record::default()
        };
    })
    .await;
    let known = manifest(&first).await;
    for language in ["de", "fr"] {
        let asked = first
            .get("/v")
            .header("accept-language", language)
            .header("cookie", caje_tests::CANARY);
        asked.await.says(language);
    }
    first.get("/v").await.says("none");
    until(
        || "three rows".to_owned(),
        || known.reader().and_then(|reader| reader.count()) == Ok(3) && known.status().outbox == 0,
    )
    .await;
    let second = sharing(&origin, &shared, "second", eager).await;
    fetched(&second, 3).await;
    let before = origin.requests("/v");
    assert_eq!(before, 6);
    for language in ["de", "fr"] {
        let got = second.get("/v").header("accept-language", language).await;
        assert!(got.head.is_hit());
        got.says(language);
    }
    second.get("/v").await.says("none");
    assert_eq!(origin.requests("/v"), before);
    let log = origin.requests_log();
    let by_populate: Vec<_> = log.iter().rev().take(3).collect();
    for request in by_populate {
        assert_eq!(request.header("cookie"), None);
        assert_eq!(request.header("x-forwarded-proto"), Some("http"));
    }
}

/// A body that was cut off is gone on with from where it broke.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_cut_off_is_completed_by_ranges() {
    let origin = Origin::start().await;
    let size = 2_000_000;
    let whole = || {
        OriginAnswer::ok()
            .generated(size)
            .etag("\"1\"")
            .cache_control("max-age=60")
    };
    let cut = whole().lie(caje_tests::Lie::Truncated);
    let _ = origin.get("/a").sequence([cut, whole()]);
    let node = Node::with(&origin, eager).await;
    list(&node, &["/a"]).await;
    fetched(&node, 1).await;
    assert_eq!(origin.requests("/a"), 2);
    let range = origin.last_request("/a").header("range").map(str::to_owned);
    assert!(range.is_some_and(|range| !range.starts_with("bytes=0-")));
    node.get("/a").await.is_whole("/a", size);
    assert_eq!(origin.requests("/a"), 2);
}

/// Rows are hints: what they name is only asked for at origins of the settings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_rows_ask_for_nothing() {
    let origin = Origin::start().await;
    let elsewhere = Origin::start().await;
    let node = Node::with(&origin, |config| {
        eager(config);
        config.origins[0].hosts = vec![HostPattern::Exact(HOST.to_owned())];
    })
    .await;
    let known = manifest(&node).await;
    let inside = elsewhere.addr().to_string();
    known.record(row(&inside, "/secret")).expect("a row");
    known
        .record(row("169.254.169.254", "/latest/meta-data"))
        .expect("a row");
    known.record(row(HOST, "/_caje/v1/status")).expect("a row");
    let mut two_faced = row(HOST, "/shown");
    two_faced.id = row(HOST, "/meant").id;
    known.record(two_faced).expect("a row");
    let mut ranged = row(HOST, "/ranged");
    ranged.id.variant = vec![("range".to_owned(), "bytes=0-0".to_owned())];
    known.record(ranged).expect("a row");
    settled(&node, 5).await;
    assert_eq!(node.metrics().populate_blocked.get(Populated::NoOrigin), 3);
    assert_eq!(node.metrics().populate_blocked.get(Populated::Malformed), 2);
    assert_eq!(origin.requests_total() + elsewhere.requests_total(), 0);
}

/// An answer under another variant than the row's leaves the row lacking, and is not asked for again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_becomes_what_was_recorded_does_not_loop() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .body("a")
        .vary("accept-language")
        .cache_control("max-age=60");
    let node = Node::with(&origin, eager).await;
    list(&node, &["/a"]).await;
    settled(&node, 1).await;
    assert_eq!(origin.requests("/a"), 1);
    assert_eq!(
        node.metrics().populate_blocked.get(Populated::Uncacheable),
        1
    );
}

/// What was removed here, while others should still hold it, is fetched again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_is_fetched_again() {
    let origin = Origin::start().await;
    let _ = origin.get("/a").body("a").cache_control("max-age=60");
    let _ = origin.post("/a").status(204);
    let node = Node::with(&origin, eager).await;
    list(&node, &["/a"]).await;
    fetched(&node, 1).await;
    node.inner().store().flush().await;
    node.post("/a").await.expect(204);
    fetched(&node, 2).await;
    assert!(node.get("/a").await.expect(200).head.is_hit());
}

/// What rots on the disk is missing from the moment that it is found out, and is fetched again without a client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rots_is_fetched_again() {
    let origin = Origin::start().await;
    let answer = origin.get("/a").generated(200_000);
    let _ = answer.cache_control("max-age=60").etag("\"1\"");
    let node = Node::with(&origin, |config| {
        eager(config);
        with_tokens(config);
    })
    .await;
    list(&node, &["/a"]).await;
    fetched(&node, 1).await;
    let down = node.down().await;
    crate::storage::rot(&down.folder().join("store"));
    let node = down.up(|_| {}).await;
    manifest(&node).await;
    let _: Job = told(&node, "POST", path::STORAGE_VERIFY, "").await;
    fetched(&node, 1).await;
    assert_eq!(origin.requests("/a"), 2);
    let got = node.get("/a").host(HOST).await.is_whole("/a", 200_000);
    assert!(got.head.is_hit());
}

/// What was cleared or purged a moment ago is lacking at once, and what was purged softly is stale: to who asks, and to
/// a run that begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_a_moment_ago_is_lacking() {
    let origin = Origin::start().await;
    let _ = origin.prefix("/").body("x").cache_control("max-age=3600");
    let node = Node::with(&origin, with_tokens).await;
    let targets: Vec<String> = (0..20).map(|n| format!("/{n}")).collect();
    list(
        &node,
        &targets.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    let known = manifest(&node).await;
    let count = || known.reader().and_then(|reader| reader.count());
    until(|| "rows".to_owned(), || count() == Ok(20)).await;
    let populate = async || {
        let ask = r#"{"kind": "populate"}"#;
        let job: Job = told(&node, "POST", path::JOBS, ask).await;
        let events = path::JOB_EVENTS.replace("{id}", &job.id);
        let watched = Ask::new(node.inner().admin_address(), "GET", &events)
            .host("127.0.0.1")
            .header("authorization", &bearer(TOKEN));
        let _ = watched.await.expect(200);
        let ended: Job = told(&node, "GET", &path::JOB.replace("{id}", &job.id), "").await;
        ended.done
    };
    let covered = async || {
        let mut all: Coverage = told(&node, "GET", path::COVERAGE, "").await;
        let NodeCoverage {
            present,
            stale,
            missing,
            ..
        } = all.nodes.remove(0);
        (present, stale, missing)
    };
    assert_eq!(populate().await, 20);
    let all = format!("{}?tier=disk", path::NODE_CACHE.replace("{id}", "test"));
    for (method, target, body) in [
        ("DELETE", all.as_str(), ""),
        ("POST", path::PURGE, r#"{"purge_everything": true}"#),
        ("POST", path::PURGE, r#"{"hosts": ["a.example"]}"#),
    ] {
        node.inner().store().flush().await;
        assert_eq!(covered().await, (20, 0, 0));
        let _: serde_json::Value = told(&node, method, target, body).await;
        assert_eq!(covered().await, (0, 0, 20), "{target} {body}");
        assert_eq!(populate().await, 20, "{target} {body}");
    }
    node.inner().store().flush().await;
    let _: serde_json::Value = told(
        &node,
        "POST",
        path::INVALIDATE,
        r#"{"hosts": ["a.example"]}"#,
    )
    .await;
    assert_eq!(covered().await, (0, 20, 0));
    // Confirmed by the origin, it is fresh again.
    let _ = node.get("/0").host(HOST).await.says("x");
    node.at_rest().await;
    node.inner().store().flush().await;
    assert_eq!(covered().await, (1, 19, 0));
}

/// An operator sees what is lacking, has it fetched, stops it and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_steers_it() {
    let origin = Origin::start().await;
    let names: Vec<String> = (0..20).map(|n| format!("/b/{n:02}")).collect();
    for name in &names {
        let _ = origin.get(name).body("b").cache_control("max-age=3600");
    }
    let gate = origin.change("/b/04").gated();
    let _ = origin.get("/gone").status(404).body("no");
    let node = Node::with(&origin, |config| {
        with_tokens(config);
        config.populate.max_in_flight = 1;
    })
    .await;
    let targets: Vec<&str> = names.iter().map(String::as_str).chain(["/gone"]).collect();
    list(&node, &targets).await;
    let known = manifest(&node).await;
    let count = || known.reader().and_then(|reader| reader.count());
    until(|| "rows".to_owned(), || count() == Ok(21)).await;

    let cover = async || -> NodeCoverage {
        let mut all: Coverage = told(&node, "GET", path::COVERAGE, "").await;
        all.nodes.remove(0)
    };
    let covered = cover().await;
    assert_eq!((covered.resources, covered.missing), (21, 21));
    let mut cursor = String::new();
    let mut seen = Vec::new();
    loop {
        let target = format!("{}?state=missing&limit=8{cursor}", path::OBJECTS);
        let page: Objects = told(&node, "GET", &target, "").await;
        seen.extend(page.objects.into_iter().map(|object| {
            assert_eq!((object.state, object.present_bytes), (State::Missing, 0));
            object.url
        }));
        match page.next {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 21);
    let begin = async |ask: &str| -> Job { told(&node, "POST", path::JOBS, ask).await };
    let show =
        async |id: &str| -> Job { told(&node, "GET", &path::JOB.replace("{id}", id), "").await };
    let over = async |id: &str| -> Job {
        let events = path::JOB_EVENTS.replace("{id}", id);
        let got = Ask::new(node.inner().admin_address(), "GET", &events)
            .host("127.0.0.1")
            .header("authorization", &bearer(TOKEN));
        let text = got.await.expect(200).text();
        let last = text
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .next_back();
        serde_json::from_str(last.expect("an event")).expect("a job")
    };

    let dry = begin(r#"{"kind":"populate","dry_run":true}"#).await;
    let dry = over(&dry.id).await;
    assert_eq!((dry.state, dry.total), (JobState::Done, 21), "{dry:?}");
    assert_eq!(origin.requests_total(), 0);

    let job = begin(r#"{"kind":"populate"}"#).await;
    gate.reached().await;
    // The same wish is the same job.
    let same: Job = told(&node, "POST", path::POPULATE, "").await;
    assert_eq!(same.id, job.id);
    let cancelled: Job = told(&node, "DELETE", &path::JOB.replace("{id}", &job.id), "").await;
    assert_eq!(cancelled.state, JobState::Cancelled);
    gate.open();
    fetched(&node, 5).await;
    assert_eq!(over(&job.id).await.state, JobState::Cancelled);
    assert_eq!(origin.requests_total(), 5);
    let resumed = path::JOB_RESUME.replace("{id}", &job.id);
    let resumed: Job = told(&node, "POST", &resumed, "").await;
    assert_eq!(
        (resumed.id.as_str(), resumed.state),
        (&*job.id, JobState::Running)
    );
    let done = over(&job.id).await;
    assert_eq!(done.state, JobState::Done, "{done:?}");
    assert_eq!(
        (done.done, done.total, done.failed),
        (21, 21, 1),
        "{done:?}"
    );
    assert_eq!(done.blocked.get("404"), Some(&1));
    assert_eq!(origin.requests_total(), 21);
    assert_eq!(show(&job.id).await, done);
    let jobs: Jobs = told(&node, "GET", path::JOBS, "").await;
    assert!(jobs.jobs.contains(&done));

    // Again changes nothing, and a wish to retry asks once more.
    let again = begin(r#"{"kind":"populate"}"#).await;
    assert_eq!(over(&again.id).await.failed, 1);
    assert_eq!(origin.requests("/gone"), 1);
    let retried =
        begin(r#"{"kind":"populate","retry":true,"prefix":"http://a.example/gone"}"#).await;
    let retried = over(&retried.id).await;
    assert_eq!((retried.total, retried.failed), (1, 1), "{retried:?}");
    assert_eq!(origin.requests("/gone"), 2);

    node.inner().store().flush().await;
    let covered = cover().await;
    assert_eq!((covered.present, covered.missing), (20, 1), "{covered:?}");
    assert_eq!(covered.blocked.get("404"), Some(&1), "{covered:?}");
    let list: List = told(&node, "GET", path::LIST, "").await;
    assert_eq!((list.objects.len(), list.manifest.len()), (20, 21));
    let missing = list.manifest.iter().filter(|row| row.held == Held::Missing);
    assert_eq!(missing.count(), 1);

    let (code, text, error) = caje(&node, &["coverage"]).await;
    assert!(code == Some(0) && text.contains("404: 1"), "{text}{error}");
    let (code, text, error) = caje(&node, &["populate", "--tag", "none"]).await;
    assert_eq!(code, Some(0), "{text}{error}");
    let (code, text, error) = caje(&node, &["populate"]).await;
    assert!(
        code == Some(3) && text.contains("404: 1"),
        "{code:?} {text}{error}"
    );
    let (code, text, error) = caje(&node, &["ls", "--state", "missing"]).await;
    assert!(code == Some(0) && text.contains("/gone"), "{text}{error}");

    let cleared: ManifestClear = told(&node, "DELETE", path::MANIFEST, "").await;
    assert_eq!(cleared.removed, 21);
    assert_eq!(count(), Ok(0));
    assert!(node.get("/b/00").await.expect(200).head.is_hit());
    assert_eq!(cover().await.resources, 0);
}

/// Half of the places are left where clients fill as much as that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_first() {
    let origin = Origin::start().await;
    let for_clients = Gate::new();
    let for_populate = Gate::new();
    let clients: Vec<String> = (0..4).map(|n| format!("/c/{n}")).collect();
    let rows: Vec<String> = (0..8).map(|n| format!("/p/{n}")).collect();
    for name in &clients {
        let route = origin.get(name).generated(1000).cache_control("max-age=60");
        let _ = route.gate_at(10, &for_clients);
    }
    for name in &rows {
        let route = origin.get(name).body("p").cache_control("max-age=60");
        let _ = route.gate(&for_populate);
    }
    let node = Node::with(&origin, |config| {
        eager(config);
        config.populate.max_in_flight = 4;
    })
    .await;
    let asked: Vec<_> = clients
        .iter()
        .map(|name| tokio::spawn(node.get(name).into_future()))
        .collect();
    for_clients.reached_n(4).await;
    node.until("fills of clients", |metrics| metrics.fills.get(()) == 4)
        .await;
    list(&node, &rows.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for_populate.reached_n(2).await;
    // Another round does not change that.
    let walks = node.metrics().populate_walks.total();
    list(&node, &["/none"]).await;
    node.until("another walk", |metrics| {
        metrics.populate_walks.total() > walks
    })
    .await;
    assert_eq!(node.metrics().populate_in_flight.get(()), 2);
    for_clients.open();
    for client in asked {
        client.await.expect("a client").expect(200);
    }
    node.until("fills of clients to end", |metrics| {
        metrics.fills.get(()) == 0
    })
    .await;
    for_populate.open_one();
    for_populate.reached_n(5).await;
    for_populate.open();
    fetched(&node, 8).await;
}

/// Settings that forbid it end what is under way; others are taken into use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_taken_into_use() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    let names: Vec<String> = (0..8).map(|n| format!("/p/{n}")).collect();
    for name in &names {
        let route = origin.get(name).body("p").cache_control("max-age=60");
        let _ = route.gate(&gate);
    }
    let node = Node::with(&origin, |config| {
        eager(config);
        config.populate.max_in_flight = 2;
    })
    .await;
    list(&node, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    gate.reached_n(2).await;
    let mut config = node.config();
    config.populate.enabled = false;
    node.inner().reload(config.clone()).expect("settings");
    gate.open();
    fetched(&node, 2).await;
    config.populate.enabled = true;
    node.inner().reload(config).expect("settings");
    fetched(&node, 8).await;
    for name in &names {
        assert_eq!(origin.requests(name), 1, "{name}");
    }
}

/// Bodies of one block, of which such a disk takes some sixty.
const BLOCK: u64 = 256 << 10;
const SMALL_DISK: u64 = 64 * BLOCK;

fn small_disk(config: &mut Config) {
    config.store.size_bytes = SMALL_DISK;
    config.store.memory_bytes = 4 << 20;
}

/// Has clients ask for bodies of one block, until the disk knows of them.
async fn ask_for(node: &Node, name: &str, numbers: std::ops::Range<u64>) {
    let mut connection = node.connect().await;
    for n in numbers {
        let target = format!("/bytes/{BLOCK}/{name}/{n}");
        connection.get(&target).await.is_whole(&target, BLOCK);
    }
    node.inner().store().flush().await;
}

fn blocks(name: &str, count: u64) -> Vec<String> {
    (0..count)
        .map(|n| format!("/bytes/{BLOCK}/{name}/{n}"))
        .collect()
}

fn asked_for(origin: &Origin, targets: &[String]) -> u64 {
    targets.iter().map(|target| origin.requests(target)).sum()
}

/// However much else comes, what the manifest lists stays; and goes like anything else when it is listed no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_listed_is_given_up_last() {
    let origin = Origin::start().await;
    let node = Node::with(&origin, small_disk).await;
    let listed = blocks("listed", 20);
    let known = manifest(&node).await;
    // Some are stored before they are listed, and some after.
    ask_for(&node, "listed", 0..10).await;
    for target in &listed {
        known.record(row(HOST, target)).expect("a row");
    }
    let count = || known.reader().and_then(|reader| reader.count());
    until(|| "rows".to_owned(), || count() == Ok(20)).await;
    node.until("what is listed to be spared", |_| {
        node.inner().store().usage().spared_bytes == 10 * BLOCK
    })
    .await;
    ask_for(&node, "listed", 10..20).await;
    assert_eq!(node.inner().store().usage().spared_bytes, 20 * BLOCK);
    ask_for(&node, "other", 0..100).await;
    let evicted = |node: &Node| {
        node.inner()
            .store()
            .metrics()
            .evictions
            .load(Ordering::Relaxed)
    };
    assert!(evicted(&node) >= 60, "{}", evicted(&node));
    ask_for(&node, "listed", 0..20).await;
    assert_eq!(asked_for(&origin, &listed), 20);
    // Also after a restart.
    let node = node.restart().await;
    node.until("what is listed to be spared", |_| {
        node.inner().store().usage().spared_bytes == 20 * BLOCK
    })
    .await;
    ask_for(&node, "another", 0..100).await;
    ask_for(&node, "listed", 0..20).await;
    assert_eq!(asked_for(&origin, &listed), 20);
    let known = manifest(&node).await;
    for target in &listed {
        known.forget(&row(HOST, target).id);
    }
    node.until("nothing to be spared", |_| {
        node.inner().store().usage().spared_bytes == 0
    })
    .await;
    ask_for(&node, "more", 0..100).await;
    ask_for(&node, "listed", 0..20).await;
    assert_eq!(asked_for(&origin, &listed), 40);
}

/// What others fill the disk with makes room for what is listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_listed_takes_the_place_of_others() {
    let origin = Origin::start().await;
    let node = Node::with(&origin, |config| {
        eager(config);
        small_disk(config);
    })
    .await;
    ask_for(&node, "other", 0..100).await;
    let listed = blocks("listed", 20);
    let known = manifest(&node).await;
    for target in &listed {
        let mut row = row(HOST, target);
        row.about.size = Some(BLOCK);
        known.record(row).expect("a row");
    }
    fetched(&node, 20).await;
    settled(&node, 0).await;
    assert_eq!(asked_for(&origin, &listed), 20);
    ask_for(&node, "listed", 0..20).await;
    assert_eq!(asked_for(&origin, &listed), 20);
}

/// Where what is listed does not fit, as much as fits is fetched, once; the rest is told of and left alone, whatever
/// clients bring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_left_alone() {
    let origin = Origin::start().await;
    let node = Node::with(&origin, |config| {
        eager(config);
        small_disk(config);
    })
    .await;
    let listed = blocks("listed", 100);
    let known = manifest(&node).await;
    for target in &listed {
        let mut row = row(HOST, target);
        row.about.size = Some(BLOCK);
        known.record(row).expect("a row");
    }
    let count = || known.reader().and_then(|reader| reader.count());
    until(|| "rows".to_owned(), || count() == Ok(100)).await;
    let whole = |node: &Node| node.metrics().populate_attempts.get(Populated::Whole);
    let left = |node: &Node| node.metrics().populate_blocked.get(Populated::NoRoom);
    node.until("the disk to be full", |metrics| {
        metrics.populate_in_flight.get(()) == 0 && whole(&node) + left(&node) == 100
    })
    .await;
    let fits = whole(&node);
    assert!((40..64).contains(&fits), "{fits}");
    settled(&node, 100 - fits).await;
    assert_eq!(asked_for(&origin, &listed), fits);
    // Clients ask for what is not listed: it makes nothing go that is.
    ask_for(&node, "other", 0..30).await;
    let walks = node.metrics().populate_walks.total();
    node.until("a walk after what was lost", |metrics| {
        metrics.populate_walks.total() > walks
    })
    .await;
    settled(&node, 100 - fits).await;
    assert_eq!(asked_for(&origin, &listed), fits);
    // And for all that is listed: some of it has to go, and nothing is fetched in its place.
    ask_for(&node, "listed", 0..100).await;
    let asked = asked_for(&origin, &listed);
    let walks = node.metrics().populate_walks.total();
    node.until("walks after what was lost", |metrics| {
        metrics.populate_walks.total() > walks + 1
    })
    .await;
    node.until("nothing in flight", |metrics| {
        metrics.populate_in_flight.get(()) == 0 && metrics.populate_waiting.get(()) == 0
    })
    .await;
    assert_eq!(asked_for(&origin, &listed), asked);
    assert_eq!(whole(&node), fits);
}

/// What a node had of a body when it ended is not fetched again, whether it ended well or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_with_what_was_on_disk() {
    for is_drained in [true, false] {
        let origin = Origin::start().await;
        let size = 8 * BLOCK;
        let whole = || {
            OriginAnswer::ok()
                .generated(size)
                .etag("\"1\"")
                .ranges(true)
                .cache_control("max-age=600")
        };
        let gate = Gate::new();
        let held = whole().gate_at(5 * BLOCK + 10, &gate);
        let _ = origin.get("/a").sequence([held, whole()]);
        let node = Node::with(&origin, |config| {
            eager(config);
            config.limits.drain_timeout = Duration::from_millis(50);
        })
        .await;
        list(&node, &["/a"]).await;
        gate.reached().await;
        node.until("five blocks", |_| {
            node.inner().store().usage().disk_bytes == 5 * BLOCK
        })
        .await;
        node.inner().store().flush().await;
        let node = match is_drained {
            true => node.restart().await,
            false => node.killed().await,
        };
        fetched(&node, 1).await;
        assert_eq!(origin.requests("/a"), 2, "{is_drained}");
        let range = origin.last_request("/a").header("range").map(str::to_owned);
        let left = format!("bytes={}-{}", 5 * BLOCK, size - 1);
        assert_eq!(range, Some(left), "{is_drained}");
        assert_eq!(node.metrics().populate_bytes.get(()), 3 * BLOCK);
        assert!(node.get("/a").await.is_whole("/a", size).head.is_hit());
        gate.open();
    }
}
