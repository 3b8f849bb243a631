//! `/_caje/v1` over real sockets: who is let in, what is told, what is changed.

use caje_admin_api::{
    ClearReport, Explanation, Inspection, Job, JobState, Objects, PurgeReport, Scope, Settings,
    State, Stats, Status, Verdict, path,
};
use caje_node::config::{Config, HostPattern, Token, TokenHash};
use caje_tests::{Ask, Got, Http2, Node, Origin};
use http_body_util::Full;

/// One user's; must be seen nowhere.
pub const TOKEN: &str = "caje_canary_5c1f9a_all_scopes";
const READER: &str = "caje_canary_5c1f9a_reads_only";
const PURGER: &str = "caje_canary_5c1f9a_purges_only";

pub fn with_tokens(config: &mut Config) {
    let token = |name: &str, token: &str, scopes: &[Scope]| Token {
        name: name.to_owned(),
        hash: TokenHash::of(token),
        scopes: scopes.to_vec(),
    };
    config.admin.tokens = vec![
        token("all", TOKEN, &[Scope::Read, Scope::Purge, Scope::Admin]),
        token("reader", READER, &[Scope::Read]),
        token("purger", PURGER, &[Scope::Purge]),
    ];
}

/// A request to the admin listener, under its own name.
fn ask(node: &Node, method: &str, target: &str) -> Ask {
    Ask::new(node.inner().admin_address(), method, target).host("127.0.0.1")
}

pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

pub async fn told<T: serde::de::DeserializeOwned>(
    node: &Node,
    method: &str,
    target: &str,
    body: &str,
) -> T {
    let request = ask(node, method, target).header("authorization", &bearer(TOKEN));
    let request = if body.is_empty() {
        request
    } else {
        request.body(body.to_owned())
    };
    let got = request.await;
    assert!(
        (200..300).contains(&got.status()),
        "{}\n{}",
        got.head.text,
        got.text()
    );
    assert_eq!(got.head.get("cache-control"), Some("no-store"));
    serde_json::from_slice(&got.body).unwrap_or_else(|error| panic!("{error}\n{}", got.text()))
}

/// An error has a code, what is wrong, and what to try.
#[track_caller]
fn refused(got: &Got, status: u16, code: &str) {
    assert_eq!(got.status(), status, "{}\n{}", got.head.text, got.text());
    let body: caje_admin_api::ErrorBody =
        serde_json::from_slice(&got.body).expect("an error as JSON");
    assert_eq!(body.error.code, code);
    assert!(!body.error.message.is_empty() && !body.error.remedy.is_empty());
    assert_eq!(got.head.get("cache-control"), Some("no-store"));
}

async fn filled() -> (Origin, Node) {
    let origin = Origin::start().await;
    let tagged = |target: &str, tags: &str, age: u32| {
        let _ = origin
            .get(target)
            .generated(1000)
            .header("surrogate-key", tags)
            .cache_control(&format!("max-age={age}"));
    };
    tagged("/a", "red big", 60);
    tagged("/b", "red", 120);
    tagged("/v/1", "blue", 600);
    let _ = origin
        .get("/old")
        .body("old")
        .etag("\"1\"")
        .cache_control("max-age=0");
    let _ = origin.get("/private").body("mine").cache_control("private");
    let node = Node::with(&origin, with_tokens).await;
    for target in ["/a", "/b", "/v/1", "/old"] {
        node.get(target).await.expect(200);
    }
    node.at_rest().await;
    (origin, node)
}

#[tokio::test]
async fn without_tokens_it_is_closed() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    for target in [path::STATUS, path::OBJECTS, path::LIST, path::AUTH] {
        let got = ask(&node, "GET", target)
            .header("authorization", &bearer(""))
            .await;
        refused(&got, 403, "closed");
    }
    refused(
        &ask(&node, "POST", path::PURGE).body("{}").await,
        403,
        "closed",
    );
    ask(&node, "GET", path::HEALTHZ).await.says("ok\n");
    ask(&node, "GET", path::OPENAPI).await.expect(200);
}

#[tokio::test]
async fn a_token_allows_what_its_scopes_say() {
    let (_origin, node) = filled().await;
    let with = |method: &str, target: &str, token: &str| {
        ask(&node, method, target).header("authorization", &bearer(token))
    };
    refused(&ask(&node, "GET", path::STATUS).await, 401, "no-token");
    refused(
        &with("GET", path::STATUS, "caje_wrong").await,
        401,
        "unknown-token",
    );
    refused(
        &with("GET", path::STATUS, &TOKEN[1..]).await,
        401,
        "unknown-token",
    );
    let basic = ask(&node, "GET", path::STATUS).header("authorization", TOKEN);
    refused(&basic.await, 401, "no-token");
    with("GET", path::STATUS, READER).await.expect(200);
    for (method, target) in [
        ("POST", path::PURGE),
        ("POST", path::CLEAR_FS),
        ("POST", path::DRAIN),
        ("DELETE", path::DRAIN),
        ("POST", path::CONFIG_RELOAD),
        ("POST", path::JOBS),
    ] {
        refused(&with(method, target, READER).body("{}").await, 403, "scope");
    }
    let auth = with("GET", path::AUTH, READER).await.expect(200).text();
    assert!(
        auth.contains("\"reader\"") && auth.contains("\"read\"") && !auth.contains(READER),
        "{auth}"
    );
    // Whose it is, whatever it allows.
    for method in ["GET", "POST"] {
        let auth = with(method, path::AUTH, PURGER).await.expect(200).text();
        assert!(auth.contains("\"purger\""), "{auth}");
    }
    refused(&with("GET", path::STATUS, PURGER).await, 403, "scope");
    let head = with("HEAD", path::STATUS, "caje_wrong").await;
    assert_eq!(head.status(), 401);
    assert_eq!(with("OPTIONS", path::STATUS, "x").await.status(), 405);
}

#[tokio::test]
async fn guessing_is_slowed_down() {
    let (_origin, node) = filled().await;
    for n in 0..20 {
        let wrong = format!("caje_wrong_{n}");
        let got = ask(&node, "GET", path::STATUS)
            .header("authorization", &bearer(&wrong))
            .await;
        refused(&got, 401, "unknown-token");
    }
    let got = ask(&node, "GET", path::STATUS)
        .header("authorization", &bearer(TOKEN))
        .await;
    refused(&got, 429, "too-many");
    assert!(got.head.has("retry-after"));
    ask(&node, "GET", path::READYZ).await.expect(200);
}

/// A browser that is led here, or a page of another site, changes nothing.
#[tokio::test]
async fn a_foreign_page_gets_nowhere() {
    let (_origin, node) = filled().await;
    let status = || ask(&node, "GET", path::STATUS).header("authorization", &bearer(TOKEN));
    refused(&status().host("evil.example").await, 403, "unknown-host");
    status().host("localhost:9180").await.expect(200);
    status().host("node-1.internal").await.expect(200);
    let purge = || {
        let body = r#"{"files": ["http://a.example/a"]}"#;
        ask(&node, "POST", path::PURGE)
            .header("authorization", &bearer(TOKEN))
            .body(body)
    };
    refused(
        &purge().header("origin", "http://evil.example").await,
        403,
        "foreign-page",
    );
    refused(&purge().header("origin", "null").await, 403, "foreign-page");
    refused(
        &purge().header("sec-fetch-site", "cross-site").await,
        403,
        "foreign-page",
    );
    refused(
        &purge().header("sec-fetch-site", "same-site").await,
        403,
        "foreign-page",
    );
    assert!(node.get("/a").await.head.is_hit());
    purge()
        .header("origin", "http://127.0.0.1")
        .header("sec-fetch-site", "same-origin")
        .await
        .expect(200);
    assert!(!node.get("/a").await.head.is_hit());

    let mut config = node.config();
    with_tokens(&mut config);
    config.admin.hosts = vec![HostPattern::parse("*.example").expect("a host")];
    assert_eq!(node.inner().reload(config).expect("reload"), [""; 0]);
    status().host("evil.example").await.expect(200);
}

/// However `/_caje` is written, an origin never sees it and the public port has nothing there.
#[tokio::test]
async fn variants_of_the_path_do_not_slip_past() {
    const VARIANTS: [&str; 14] = [
        "/_caje/v1/status",
        "/_caje",
        "/_caje/readyz",
        "//_caje/v1/status",
        "/./_caje/v1/status",
        "/x/../_caje/v1/status",
        "/%5fcaje/v1/status",
        "/%5Fcaj%65/v1/status",
        "/%255fcaje/v1/status",
        "/_CAJE/v1/status",
        "/_caje;x/v1/status",
        "/x/%2e%2e/_caje/v1/status",
        "/%2f_caje/v1/status",
        "http://a.example/_caje/v1/status",
    ];
    for public in [false, true] {
        let origin = Origin::start().await;
        origin
            .prefix("/")
            .body("the origin")
            .cache_control("max-age=60");
        let node = Node::with(&origin, |config| {
            with_tokens(config);
            config.admin.public = public;
        })
        .await;
        for target in VARIANTS {
            for method in ["GET", "POST", "HEAD", "OPTIONS"] {
                let got = node.ask(method, target).await;
                assert_eq!(got.status(), 404, "{method} {target}\n{}", got.head.text);
                assert!(!got.text().contains("token"), "{target}\n{}", got.text());
            }
            let wrong = node
                .get(target)
                .header("authorization", &bearer("caje_wrong"))
                .await;
            assert!(matches!(wrong.status(), 404), "{target}");
        }
        let mut client = Http2::to(node.address()).await;
        for target in VARIANTS {
            let request = client.request("GET", target.trim_start_matches("http://a.example"));
            let got = client
                .send(request.body(Full::default()).expect("a request"))
                .await;
            assert_eq!(got.status(), 404, "{target}");
        }
        assert_eq!(origin.requests_total(), 0);
        // What only looks like it is the origin's.
        node.get("/a/_caje").await.says("the origin");
        node.get("/_cajex").await.says("the origin");
    }
}

#[tokio::test]
async fn the_public_port_answers_only_when_asked_to_and_with_a_token() {
    let origin = Origin::start().await;
    origin
        .prefix("/")
        .body("the origin")
        .cache_control("max-age=60");
    let node = Node::with(&origin, |config| {
        with_tokens(config);
        config.admin.public = true;
    })
    .await;
    let by_public =
        |target: &str, token: &str| node.get(target).header("authorization", &bearer(token));
    let got = by_public(path::STATUS, TOKEN).await.expect(200);
    assert!(
        serde_json::from_slice::<Status>(&got.body).is_ok(),
        "{}",
        got.text()
    );
    assert!(!got.head.is_stored(), "{}", got.head.text);
    by_public(path::STATUS, READER).await.expect(200);
    refused(
        &node
            .ask("POST", path::DRAIN)
            .header("authorization", &bearer(READER))
            .await,
        403,
        "scope",
    );
    by_public(path::STATUS, "caje_wrong").await.expect(404);
    node.get(path::STATUS).await.expect(404);
    node.get(path::READYZ).await.expect(404);
    node.post(path::READYZ).await.expect(404);
    by_public(path::READYZ, READER).await.expect(200);
    // Only its own: metrics stay where they are.
    by_public("/metrics", TOKEN).await.says("the origin");
    by_public("/_caje/../metrics", TOKEN)
        .await
        .says("the origin");
    // Who claims to have come by the public port is treated so, and no better.
    let forged = ask(&node, "GET", path::STATUS).header("authorization", &bearer(TOKEN));
    forged
        .header("cdn-loop", &node.config().node.cdn_id)
        .await
        .expect(200);
    let forged = ask(&node, "GET", path::STATUS).header("cdn-loop", &node.config().node.cdn_id);
    forged.await.expect(404);
    assert!(
        !origin
            .requests_log()
            .iter()
            .any(|request| request.target.contains("_caje/v1"))
    );

    let mut config = node.config();
    with_tokens(&mut config);
    config.admin.public = false;
    node.inner().reload(config).expect("reload");
    by_public(path::STATUS, TOKEN).await.expect(404);
}

#[tokio::test]
async fn lists_have_pages() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x").cache_control("max-age=60");
    let node = Node::with(&origin, with_tokens).await;
    for n in 0..25 {
        node.get(&format!("/n/{n}")).await.expect(200);
    }
    node.get("/other").await.expect(200);
    node.at_rest().await;
    for sort in ["url", "size", "ttl", "used"] {
        let mut urls = Vec::new();
        let mut cursor = String::new();
        loop {
            let target = format!("{}?prefix=/n/&limit=10&sort={sort}{cursor}", path::OBJECTS);
            let page: Objects = told(&node, "GET", &target, "").await;
            assert!(page.objects.len() <= 10);
            urls.extend(page.objects.into_iter().map(|object| object.url));
            match page.next {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        if sort == "url" {
            assert!(urls.is_sorted(), "{urls:?}");
        }
        urls.sort();
        urls.dedup();
        assert_eq!(urls.len(), 25, "{sort}: {urls:?}");
    }
    for query in [
        "limit=x",
        "state=odd",
        "cursor=zz",
        "unknown=1",
        "prefix=a%20b",
    ] {
        let target = format!("{}?{query}", path::OBJECTS);
        let got = ask(&node, "GET", &target)
            .header("authorization", &bearer(TOKEN))
            .await;
        refused(&got, 400, "bad-request");
    }
}

#[tokio::test]
async fn filters_and_one_url() {
    let (_origin, node) = filled().await;
    let urls = async |query: &str| {
        let page: Objects = told(&node, "GET", &format!("{}?{query}", path::OBJECTS), "").await;
        let short = |url: String| url.replace("http://a.example", "");
        page.objects
            .into_iter()
            .map(|object| short(object.url))
            .collect::<Vec<_>>()
    };
    assert_eq!(urls("").await, ["/a", "/b", "/old", "/v/1"]);
    assert_eq!(urls("tag=red").await, ["/a", "/b"]);
    assert_eq!(urls("state=stale").await, ["/old"]);
    assert_eq!(urls("prefix=http://a.example/v/").await, ["/v/1"]);
    assert_eq!(urls("host=other.example").await, [""; 0]);
    assert_eq!(urls("sort=ttl&state=fresh&limit=2").await, ["/a", "/b"]);
    let got = ask(&node, "GET", "/_caje/v1/objects?state=missing&prefix=/v/")
        .header("authorization", &bearer(TOKEN));
    refused(&got.await, 400, "bad-request");

    let target = format!("{}?url=http://A.example:80/a", path::INSPECT);
    let found: Inspection = told(&node, "GET", &target, "").await;
    let variant = &found.nodes[0].variants[0];
    assert_eq!(
        (found.nodes[0].node.as_str(), variant.object.status),
        ("test", 200)
    );
    assert_eq!(variant.object.tags, ["red", "big"]);
    assert_eq!(
        (variant.object.size_bytes, variant.object.present_bytes),
        (Some(1000), 1000)
    );
    assert_eq!(variant.object.state, State::Fresh);
    assert!(variant.selected);
    let target = format!("{}?url=https://a.example/a", path::INSPECT);
    let found: Inspection = told(&node, "GET", &target, "").await;
    let hint = found.nodes[0].hint.as_deref();
    assert_eq!(hint, Some("http://a.example/a is stored"));
}

#[tokio::test]
async fn a_url_is_purged() {
    let (origin, node) = filled().await;
    let purge = |body: &'static str| told::<PurgeReport>(&node, "POST", path::PURGE, body);
    let report = purge(r#"{"files": ["http://a.example/a"], "dry_run": true}"#).await;
    assert_eq!((report.nodes[0].matched, report.dry_run), (1, true));
    assert!(node.get("/a").await.head.is_hit());
    let report = purge(r#"{"files": ["http://a.example/a", "http://a.example/none"]}"#).await;
    assert_eq!((report.nodes[0].matched, report.nodes[0].done), (1, true));
    assert!(!node.get("/a").await.head.is_hit());
    // Softly: what is stored is asked about before its next use.
    let asked = origin.requests("/b");
    let body = r#"{"files": ["http://a.example/b"]}"#;
    let report: PurgeReport = told(&node, "POST", path::INVALIDATE, body).await;
    assert_eq!((report.nodes[0].matched, report.soft), (1, true));
    assert!(!node.get("/b").await.head.is_hit());
    assert_eq!(origin.requests("/b"), asked + 1);
    // By tag, prefix, host, and everything; what is counted beforehand is what is matched.
    for (body, dry, matched) in [
        (
            r#"{"tags": ["blue"]}"#,
            r#"{"tags": ["blue"], "dry_run": true}"#,
            1,
        ),
        (
            r#"{"prefixes": ["a.example/b"]}"#,
            r#"{"prefixes": ["a.example/b"], "dry_run": true}"#,
            1,
        ),
        (
            r#"{"hosts": ["A.example"]}"#,
            r#"{"hosts": ["A.example"], "dry_run": true}"#,
            4,
        ),
        (
            r#"{"purge_everything": true}"#,
            r#"{"purge_everything": true, "dry_run": true}"#,
            4,
        ),
    ] {
        for target in ["/a", "/b", "/v/1", "/old"] {
            node.get(target).await.expect(200);
        }
        node.at_rest().await;
        assert_eq!(purge(dry).await.nodes[0].matched, matched, "{body}");
        assert_eq!(purge(body).await.nodes[0].matched, matched, "{body}");
        assert_eq!(purge(dry).await.nodes[0].matched, 0, "{body}");
    }
    // By the method, for who may.
    let method = |token: &str| {
        node.ask("PURGE", "/a")
            .header("authorization", &bearer(token))
    };
    assert_eq!(method(READER).await.status(), 405);
    method(TOKEN).await.expect(200);
    for body in [
        "{}",
        "",
        "{\"flies\": []}",
        r#"{"files": ["/a"]}"#,
        r#"{"tags": [""]}"#,
        // Less than a host is meant.
        r#"{"hosts": ["a.example/v/"]}"#,
    ] {
        let request = ask(&node, "POST", path::PURGE).header("authorization", &bearer(TOKEN));
        refused(&request.body(body).await, 400, "bad-request");
    }
}

#[tokio::test]
async fn tiers_are_cleared() {
    let (_origin, node) = filled().await;
    let report: ClearReport = told(
        &node,
        "DELETE",
        "/_caje/v1/nodes/test/cache?tier=memory",
        "",
    )
    .await;
    assert!(report.nodes[0].bytes > 0);
    node.get("/a").await.is_whole("/a", 1000);
    assert_eq!(node.metric("caje_store_objects").await, 4.0);
    let report: ClearReport = told(&node, "POST", path::CLEAR_FS, "").await;
    assert_eq!(report.nodes[0].objects, 4);
    assert!(!node.get("/a").await.head.is_hit());
    let other = ask(&node, "DELETE", "/_caje/v1/nodes/other/cache?tier=disk");
    refused(
        &other.header("authorization", &bearer(TOKEN)).await,
        404,
        "unknown-node",
    );
}

#[tokio::test]
async fn why_a_url_is_cached_or_is_not() {
    let (origin, node) = filled().await;
    let explain =
        async |body: &str| -> Explanation { told(&node, "POST", path::EXPLAIN, body).await };
    let asked = origin.requests_total();
    let check = async |body: &str, verdict: Verdict, rfc: Option<&str>| {
        let found = explain(body).await;
        assert_eq!(found.verdict, verdict, "{found:#?}");
        let step = found
            .steps
            .iter()
            .rev()
            .find(|step| step.decides)
            .expect("a step that decides");
        assert_eq!(step.rfc.as_deref(), rfc, "{found:#?}");
        assert!(!found.summary.ends_with(": "), "{}", found.summary);
    };
    check(
        r#"{"url": "http://a.example/a"}"#,
        Verdict::Hit,
        Some("RFC 9111 §4.2.1"),
    )
    .await;
    check(
        r#"{"url": "http://a.example/old"}"#,
        Verdict::Validate,
        Some("RFC 9111 §4.2"),
    )
    .await;
    check(
        r#"{"url": "http://a.example/new"}"#,
        Verdict::Fetch,
        Some("RFC 9111 §3"),
    )
    .await;
    check(
        r#"{"url": "http://a.example/a", "method": "POST"}"#,
        Verdict::Bypass,
        Some("RFC 9111 §4.4"),
    )
    .await;
    check(
        r#"{"url": "http://a.example//_caje/x"}"#,
        Verdict::Refused,
        None,
    )
    .await;
    check(
        r#"{"url": "http://a.example/c", "response": {"status": 200, "headers": [["cache-control", "max-age=60"], ["set-cookie", "a=b"]]}}"#,
        Verdict::NotStored,
        Some("RFC 9111 §7.3"),
    )
    .await;
    check(
        r#"{"url": "http://a.example/c", "headers": [["authorization", "x"]], "response": {"status": 200, "headers": [["cache-control", "max-age=60"]]}}"#,
        Verdict::NotStored,
        Some("RFC 9111 §3.5"),
    )
    .await;
    check(
        r#"{"url": "http://a.example/c", "response": {"status": 200, "headers": [["cache-control", "max-age=60"]]}}"#,
        Verdict::Store,
        Some("RFC 9111 §4.2.1"),
    )
    .await;
    // Asking why costs the origin nothing, unless it is to be asked.
    assert_eq!(origin.requests_total(), asked);
    check(
        r#"{"url": "http://a.example/private", "live": true}"#,
        Verdict::NotStored,
        Some("RFC 9111 §5.2.2.7"),
    )
    .await;
    assert_eq!(origin.requests_total(), asked + 1);
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
}

#[tokio::test]
async fn what_a_node_tells_of_itself() {
    let (_origin, node) = filled().await;
    let status: Status = told(&node, "GET", path::STATUS, "").await;
    assert_eq!(
        (status.state.as_str(), status.nodes.len()),
        ("ok", 1),
        "{:?}",
        status.findings
    );
    let stats: Stats = told(&node, "GET", path::STATS, "").await;
    assert_eq!(stats.nodes[0].requests, 4);
    assert_eq!(stats.nodes[0].by_cache["miss"], 4);
    let settings: Settings = told(&node, "GET", path::CONFIG, "").await;
    let toml = &settings.nodes[0].toml;
    assert!(
        toml.contains("[store]") && toml.contains("reader") && !toml.contains("blake3"),
        "{toml}"
    );
    for target in [
        path::NODES,
        path::ORIGINS,
        path::STORAGE,
        path::DOCTOR,
        path::JOBS,
        path::LIST,
    ] {
        let _: serde_json::Value = told(&node, "GET", target, "").await;
    }
    let got = ask(&node, "POST", path::CONFIG_RELOAD)
        .header("authorization", &bearer(TOKEN))
        .await;
    refused(&got, 409, "no-file");
}

#[tokio::test]
async fn a_drained_node_is_not_ready_and_serves_on() {
    let (_origin, node) = filled().await;
    let _: serde_json::Value = told(&node, "POST", path::DRAIN, "").await;
    node.admin(path::READYZ).await.expect(503);
    assert!(node.get("/a").await.head.is_hit());
    let status: Status = told(&node, "GET", path::STATUS, "").await;
    assert_eq!(
        (status.state.as_str(), status.findings.len()),
        ("draining", 1)
    );
    let _: serde_json::Value = told(&node, "DELETE", path::DRAIN, "").await;
    node.admin(path::READYZ).await.expect(200);
}

#[tokio::test]
async fn a_job_tells_of_its_progress_until_its_end() {
    let (_origin, node) = filled().await;
    let job: Job = told(&node, "POST", path::STORAGE_VERIFY, "").await;
    let target = path::JOB_EVENTS.replace("{id}", &job.id);
    let events = ask(&node, "GET", &target)
        .header("authorization", &bearer(TOKEN))
        .await
        .expect(200);
    assert_eq!(events.head.get("content-type"), Some("text/event-stream"));
    let text = events.text();
    let last = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .next_back()
        .expect("an event");
    let last: Job = serde_json::from_str(last).expect("a job");
    assert_eq!(
        (last.state, last.done, last.total, last.failed),
        (JobState::Done, 4, 4, 0)
    );
    assert!(last.bytes >= 3003);
    let target = path::JOB.replace("{id}", &job.id);
    let shown: Job = told(&node, "GET", &target, "").await;
    assert_eq!(shown, last);
    let none = ask(&node, "GET", "/_caje/v1/jobs/none")
        .header("authorization", &bearer(TOKEN))
        .await;
    refused(&none, 404, "unknown-job");
}

/// A token stands in no answer and no setting that is shown; its hash neither.
#[tokio::test]
async fn secrets_stay_secret() {
    let (_origin, node) = filled().await;
    let hash = TokenHash::of(TOKEN).to_string();
    let openapi = ask(&node, "GET", path::OPENAPI).await.expect(200).text();
    let document: serde_json::Value = serde_json::from_str(&openapi).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    assert!(
        paths.len() > 20 && paths.contains_key(path::PURGE),
        "{openapi}"
    );
    for (target, methods) in paths {
        if target.contains('{')
            || !methods
                .as_object()
                .is_some_and(|methods| methods.contains_key("get"))
        {
            continue;
        }
        let text = ask(&node, "GET", target)
            .header("authorization", &bearer(TOKEN))
            .await
            .text();
        assert!(
            !text.contains("canary") && !text.contains(&hash[7..]),
            "{target}: {text}"
        );
    }
}
