//! Several nodes: what one is told all do, who is away catches up, and nobody else is listened to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use caje_admin_api::{
    Coverage, ErrorBody, Inspection, Job, JobState, Jobs, Nodes, Objects, PurgeReport, Stats,
    Status, path,
};
use caje_node::Config;
use caje_node::config::{Engine, OriginUrl, Secret};
use caje_node::manifest::{About, NodeRow, Resource, ResourceId};
use caje_node::peer::{self, secret};
use caje_node::semantics::key::{CacheKey, Scheme};
use caje_node::talk::{HELLO, PURGES};
use caje_node::telemetry::{Metrics, PeerOutcome, PurgeWay};
use caje_tests::{Ask, Folder, Got, Node, Origin, OriginAnswer, PATIENCE, settings, until, within};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::api::with_tokens;
use crate::command::caje;

const TOKEN: &str = "Bearer caje_canary_5c1f9a_all_scopes";
const READER: &str = "Bearer caje_canary_5c1f9a_reads_only";
const SECRET: &str = "a secret of at least 32 characters";
const HOST: &str = "a.example";

/// Where all nodes' databases are.
struct Cluster {
    origin: Origin,
    shared: Folder,
}

impl Cluster {
    async fn new() -> Cluster {
        Cluster {
            origin: Origin::start().await,
            shared: Folder::new(),
        }
    }

    async fn node(&self, name: &str, change: impl FnOnce(&mut Config)) -> Node {
        let folder = Folder::new();
        let mut config = settings(&self.origin, &folder);
        with_tokens(&mut config);
        config.node.name = name.to_owned();
        config.node.region = Some(format!("region-{name}"));
        config.node.cdn_id = format!("cdn-{name}");
        config.manifest.dir = Some(self.shared.join("manifest"));
        config.cluster.secret = Some(Secret::new(SECRET));
        change(&mut config);
        Node::run(config, folder).await
    }

    /// Nodes that know one another, and have read the log.
    async fn nodes<const N: usize>(&self, names: [&str; N]) -> [Node; N] {
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(self.node(name, |_| {}).await);
        }
        for node in &nodes {
            knows(node, N).await;
        }
        nodes.try_into().ok().expect("as many")
    }

    fn fresh(&self, target: &str, tags: &str, body: &'static str) {
        let answer = OriginAnswer::ok()
            .cache_control("max-age=600")
            .header("surrogate-key", tags);
        self.origin.get(target).answer(answer.body(body));
    }
}

/// Waits until a node has so many in its table and has read the log.
async fn knows(node: &Node, count: usize) {
    let rows = || {
        let manifest = node.inner().manifest()?;
        Some(manifest.reader().ok()?.nodes().ok()?.len())
    };
    until(
        || format!("{count} nodes, {:?}", rows()),
        || rows() == Some(count),
    )
    .await;
    read_log(node).await;
    // What the table says is what the node uses.
    let listed = || async {
        let nodes: Nodes = told(node, "GET", path::NODES, "").await;
        nodes.nodes.len() + nodes.unanswered.len()
    };
    within("nodes to be known", async {
        while listed().await != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn read_log(node: &Node) {
    let is_read = |metrics: &Metrics| metrics.render().contains("\ncaje_purge_log_unread 0\n");
    node.until("the log to be read", is_read).await;
}

/// Purges that came to a node so.
async fn heard(node: &Node, way: PurgeWay, count: u64) {
    node.until("purges to be heard", |metrics| {
        metrics.purges_heard.get(way) >= count
    })
    .await;
}

fn ask(node: &Node, method: &str, target: &str) -> Ask {
    Ask::new(node.inner().admin_address(), method, target).host("127.0.0.1")
}

async fn told<T: serde::de::DeserializeOwned>(
    node: &Node,
    method: &str,
    target: &str,
    body: &str,
) -> T {
    let request = ask(node, method, target).header("authorization", TOKEN);
    let request = match body.is_empty() {
        true => request,
        false => request.body(body.to_owned()),
    };
    let got = request.await;
    let (text, body) = (got.head.text.clone(), got.text());
    assert!((200..300).contains(&got.status()), "{text}\n{body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}\n{body}"))
}

async fn purge(node: &Node, body: &str) -> PurgeReport {
    told(node, "POST", path::PURGE, body).await
}

/// Node, matched, and whether it is done.
fn parts(report: &PurgeReport) -> Vec<(&str, u64, bool)> {
    let mut parts: Vec<_> = report
        .nodes
        .iter()
        .map(|node| (node.node.as_str(), node.matched, node.done))
        .collect();
    parts.sort_unstable();
    parts
}

#[track_caller]
fn refused(got: &Got, status: u16, code: &str) {
    assert_eq!(got.status(), status, "{}\n{}", got.head.text, got.text());
    let body: ErrorBody = serde_json::from_slice(&got.body).expect("an error as JSON");
    assert_eq!(body.error.code, code);
}

async fn is_hit(node: &Node, target: &str) -> bool {
    node.get(target).await.expect(200).head.is_hit()
}

/// A purge is acknowledged by all nodes, with what each had, and is not served by any afterwards.
#[tokio::test]
async fn a_purge_reaches_all_nodes() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "a");
    cluster.fresh("/b", "red", "b");
    cluster.fresh("/c", "blue", "c");
    let nodes = cluster.nodes(["a", "b", "c"]).await;
    let [a, b, c] = &nodes;
    for (node, targets) in [
        (a, &["/a", "/b", "/c"][..]),
        (b, &["/a", "/c"]),
        (c, &["/c"]),
    ] {
        for target in targets {
            node.get(target).await.expect(200);
        }
        node.at_rest().await;
    }
    let dry: PurgeReport = purge(b, r#"{"tags":["red"],"dry_run":true}"#).await;
    assert_eq!(
        parts(&dry),
        [("a", 2, true), ("b", 1, true), ("c", 0, true)]
    );
    let report = purge(b, r#"{"tags":["red"]}"#).await;
    assert_eq!(report.nodes[0].node, "b", "one's own part comes first");
    assert_eq!(
        parts(&report),
        [("a", 2, true), ("b", 1, true), ("c", 0, true)]
    );
    assert!(!is_hit(a, "/a").await && !is_hit(b, "/a").await);
    for node in &nodes {
        assert!(is_hit(node, "/c").await);
    }
    // By each selector, by the method, and by the library.
    for (node, body) in [
        (a, r#"{"files":["http://a.example/c"]}"#),
        (c, r#"{"prefixes":["a.example/c"]}"#),
        (b, r#"{"hosts":["a.example"]}"#),
        (a, r#"{"purge_everything":true}"#),
    ] {
        for node in &nodes {
            node.get("/c").await.expect(200);
            node.at_rest().await;
        }
        let report = purge(node, body).await;
        assert!(
            report
                .nodes
                .iter()
                .all(|node| node.done && node.matched >= 1),
            "{report:?}"
        );
        for node in &nodes {
            assert!(!is_hit(node, "/c").await, "{body}");
        }
    }
    let got = b.ask("PURGE", "/c").header("authorization", TOKEN).await;
    let text = got.expect(200).text();
    assert!(
        text.starts_with(r#"{"status":"ok","matched":3,"nodes":["#),
        "{text}"
    );
    assert!(!is_hit(a, "/c").await && !is_hit(c, "/c").await);
}

/// Who was down while a purge was made is named, and never serves what was purged when it is back.
#[tokio::test]
async fn a_node_that_was_down_applies_what_it_missed() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "old");
    cluster.fresh("/b", "blue", "kept");
    let [a, b] = cluster.nodes(["a", "b"]).await;
    for target in ["/a", "/b"] {
        b.get(target).await.expect(200);
    }
    b.at_rest().await;
    let down = b.down().await;
    let report = purge(&a, r#"{"tags":["red"]}"#).await;
    assert_eq!(parts(&report), [("a", 0, true), ("b", 0, false)]);
    assert!(report.nodes[1].error.is_some());
    cluster.fresh("/a", "red", "new");
    let b = down.up(|_| {}).await;
    // From its first moment on.
    b.get("/a").await.says("new");
    read_log(&b).await;
    heard(&b, PurgeWay::Log, 1).await;
    b.get("/a").await.says("new");
    assert!(
        is_hit(&b, "/b").await,
        "what was not purged is trusted again"
    );
    // After another start nothing is applied again.
    let b = b.restart().await;
    read_log(&b).await;
    assert!(is_hit(&b, "/a").await && is_hit(&b, "/b").await);
}

/// The same where the node does not know any more how far it had read: all that it holds is validated.
#[tokio::test]
async fn a_node_that_lost_its_place_in_the_log_trusts_nothing_it_holds() {
    for (lost, kept) in [("store/manifest", "/b"), ("cursor", "/b")] {
        let cluster = Cluster::new().await;
        let [a, b] = cluster.nodes(["a", "b"]).await;
        cluster.fresh("/a", "red", "old");
        let tagged = OriginAnswer::ok()
            .cache_control("max-age=600")
            .etag("\"1\"");
        cluster.origin.get(kept).answer(tagged.body("kept"));
        for target in ["/a", kept] {
            b.get(target).await.expect(200);
        }
        b.at_rest().await;
        let down = b.down().await;
        purge(&a, r#"{"tags":["red"]}"#).await;
        cluster.fresh("/a", "red", "new");
        match lost {
            "cursor" => {
                let index = down.folder().join("store/index.db");
                let index = rusqlite::Connection::open(index).expect("open an index");
                let cursors =
                    index.execute("DELETE FROM purge WHERE substr(selector, 1, 1) = x'08'", []);
                assert_eq!(cursors.expect("delete a row"), 1);
            }
            folder => {
                std::fs::remove_dir_all(down.folder().join(folder)).expect("remove a folder");
            }
        }
        let b = down.up(|_| {}).await;
        read_log(&b).await;
        let before = cluster.origin.requests(kept);
        b.get("/a").await.says("new");
        let got = b.get(kept).await.says("kept");
        assert!(!got.head.is_hit(), "{lost}: {}", got.head.text);
        assert_eq!(cluster.origin.requests(kept), before + 1, "{lost}");
        assert!(
            is_hit(&b, kept).await,
            "{lost}: once it was validated it is used"
        );
        // The doubt is still there after another start, of what was not validated since.
        let b = b.restart().await;
        read_log(&b).await;
        assert!(is_hit(&b, kept).await, "{lost}");
    }
}

/// What was stored before its place in the log was lost is not given to who asks for nothing but what is stored
/// (RFC 9111 section 5.2.1.7); what another node vouches for is not in doubt, also after another start.
#[tokio::test]
async fn what_another_node_vouches_for_is_not_in_doubt() {
    let cluster = Cluster::new().await;
    for target in ["/old", "/new"] {
        cluster.fresh(target, "red", "kept");
    }
    let change = |config: &mut Config| {
        config.origins[0].rules.honor_client_cache_control = true;
        config.origins[0].peer = peer::Mode::Nearest;
        config.origins[0].peer_timeout = PATIENCE;
    };
    let a = cluster.node("a", change).await;
    let b = cluster.node("b", change).await;
    knows(&b, 2).await;
    b.get("/old").await.expect(200);
    a.get("/new").await.expect(200);
    a.at_rest().await;
    b.at_rest().await;
    let down = b.down().await;
    let index = rusqlite::Connection::open(down.folder().join("store/index.db"));
    let cursors = index
        .expect("open an index")
        .execute("DELETE FROM purge WHERE substr(selector, 1, 1) = x'08'", []);
    assert_eq!(cursors.expect("delete a row"), 1);
    let b = down.up(|_| {}).await;
    read_log(&b).await;
    let peers = || b.inner().peers().nodes().len();
    until(|| format!("{} others", peers()), || peers() == 1).await;
    let only_if_cached = |node: &Node, target: &str| {
        node.get(target)
            .header("cache-control", "only-if-cached")
            .into_future()
    };
    only_if_cached(&b, "/old").await.expect(504);
    assert_eq!(cluster.origin.requests("/old"), 1);
    b.get("/new").await.says("kept");
    assert_eq!(b.metrics().peer_requests.get(PeerOutcome::Filled), 1);
    b.at_rest().await;
    assert!(is_hit(&b, "/new").await);
    only_if_cached(&b, "/new").await.says("kept");
    b.get("/old").await.says("kept");
    assert_eq!(cluster.origin.requests("/old"), 2);
    only_if_cached(&b, "/old").await.says("kept");
    b.inner().store().flush().await;
    let b = b.restart().await;
    read_log(&b).await;
    assert!(is_hit(&b, "/new").await && is_hit(&b, "/old").await);
    assert_eq!(cluster.origin.requests("/new"), 1);
}

/// Where the log cannot be read, nothing that was stored before the start is used without its origin's word.
#[tokio::test]
async fn an_unread_log_makes_what_is_stored_doubtful() {
    let cluster = Cluster::new().await;
    let answer = OriginAnswer::ok()
        .cache_control("max-age=600")
        .etag("\"1\"");
    cluster.origin.get("/a").answer(answer.clone().body("a"));
    cluster.origin.get("/b").answer(answer.body("b"));
    let node = cluster.node("a", |_| {}).await;
    for target in ["/a", "/b"] {
        node.get(target).await.expect(200);
    }
    node.at_rest().await;
    let no_mount = cluster.shared.join("no-litefs");
    std::fs::create_dir_all(&no_mount).expect("make a folder");
    let down = node.down().await;
    let node = down
        .up(|config| {
            config.manifest.engine = Engine::LiteFs;
            config.manifest.dir = Some(no_mount);
            config.origins[0].rules.honor_client_cache_control = true;
        })
        .await;
    let asked = cluster.origin.requests("/a");
    let only_if_cached = node.get("/a").header("cache-control", "only-if-cached");
    only_if_cached.await.expect(504);
    assert_eq!(cluster.origin.requests("/a"), asked);
    let got = node.get("/a").await.says("a");
    assert!(!got.head.is_hit(), "{}", got.head.text);
    assert!(is_hit(&node, "/a").await);
    let ready = node.admin("/_caje/readyz").await.expect(200).text();
    assert!(
        ready.contains("purges: the log was not read yet"),
        "{ready}"
    );
    assert_eq!(node.metric("caje_purge_log_unread").await, 1.0);
    cluster.origin.refuse().await;
    cluster.origin.kill_connections();
    let got = node.get("/b").await;
    assert_eq!(got.status(), 504, "{}\n{}", got.head.text, got.text());
}

/// Whom nobody reaches learns of a purge by the log.
#[tokio::test]
async fn the_log_makes_up_for_a_lost_message() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "old");
    let a = cluster.node("a", |_| {}).await;
    let unreached = OriginUrl::parse("http://127.0.0.1:1").expect("a URL");
    let b = cluster
        .node("b", |config| {
            config.cluster.advertise_admin = Some(unreached)
        })
        .await;
    for node in [&a, &b] {
        knows(node, 2).await;
    }
    b.get("/a").await.expect(200);
    b.at_rest().await;
    let report = purge(&a, r#"{"tags":["red"]}"#).await;
    assert_eq!(parts(&report), [("a", 0, true), ("b", 0, false)]);
    heard(&b, PurgeWay::Log, 1).await;
    cluster.fresh("/a", "red", "new");
    b.get("/a").await.says("new");
}

/// A purge comes by message and by the log. What was fetched after the first is not taken by the second.
#[tokio::test]
async fn a_purge_that_comes_twice_is_applied_once() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "a");
    let [a, b] = cluster.nodes(["a", "b"]).await;
    b.get("/a").await.expect(200);
    b.at_rest().await;
    let report = purge(&a, r#"{"tags":["red"]}"#).await;
    assert_eq!(parts(&report), [("a", 0, true), ("b", 1, true)]);
    assert!(!is_hit(&b, "/a").await);
    b.at_rest().await;
    heard(&b, PurgeWay::Again, 1).await;
    assert!(is_hit(&b, "/a").await);
    let metrics = b.metrics();
    let applied =
        metrics.purges_heard.get(PurgeWay::Told) + metrics.purges_heard.get(PurgeWay::Log);
    assert_eq!(applied, 1);
}

/// Rows of the node table are hints: who answers has to know the secret, and to be who it is said to be.
#[tokio::test]
async fn forged_rows_gain_nothing() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "a");
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let elsewhere = Origin::start().await;
    elsewhere.prefix("/").body("{}");
    let manifest = a.inner().manifest().expect("a manifest");
    let row = |id: &str, admin: &str| NodeRow {
        id: id.to_owned(),
        admin: Some(admin.to_owned()),
        ..NodeRow::default()
    };
    let b_address = format!("http://{}", b.inner().admin_address());
    for (id, admin) in [
        ("stranger", elsewhere.url().as_str()),
        ("metadata", "http://169.254.169.254"),
        ("public", "http://192.0.2.1:9180"),
        ("tls", "https://127.0.0.1:1"),
        ("path", "http://127.0.0.1:1/a"),
        ("another", b_address.as_str()),
    ] {
        manifest.announce(&row(id, admin)).expect("a row");
    }
    knows(&a, 8).await;
    let report = purge(&a, r#"{"tags":["red"]}"#).await;
    let error = |name: &str| {
        let found = report.nodes.iter().find(|node| node.node == name);
        let found = found.unwrap_or_else(|| panic!("no {name} in {report:?}"));
        assert_eq!(found.done, found.error.is_none());
        found.error.clone().unwrap_or_default()
    };
    assert_eq!((error("a"), error("b")), (String::new(), String::new()));
    for (name, why) in [
        ("stranger", "does not know the cluster's secret"),
        ("metadata", "169.254.169.254 is none of"),
        ("public", "192.0.2.1 is none of"),
        ("tls", "TLS"),
        ("path", "path"),
        ("another", ""),
    ] {
        let error = error(name);
        assert!(error.contains(why) && !error.is_empty(), "{name}: {error}");
    }
    // What the stranger was sent proves nothing anywhere else: the secret is not in it.
    for request in elsewhere.requests_log() {
        let text = format!("{request:?}");
        assert!(!text.contains(SECRET) && !text.contains("canary"), "{text}");
    }
}

/// A row of a node's own name that leads elsewhere is not believed over `cluster.peers`.
#[tokio::test]
async fn configured_peers_count_more_than_rows() {
    let cluster = Cluster::new().await;
    let b = cluster.node("b", |_| {}).await;
    let url = format!("http://{}", b.inner().admin_address());
    let peers = vec![OriginUrl::parse(&url).expect("a URL")];
    let a = cluster
        .node("a", |config| config.cluster.peers = peers)
        .await;
    knows(&a, 2).await;
    let manifest = a.inner().manifest().expect("a manifest");
    let forged = NodeRow {
        id: "b".to_owned(),
        admin: Some("http://127.0.0.1:1".to_owned()),
        ..NodeRow::default()
    };
    manifest.announce(&forged).expect("a row");
    knows(&a, 2).await;
    let report = purge(&a, r#"{"tags":["red"]}"#).await;
    assert_eq!(parts(&report), [("a", 0, true), ("b", 0, true)]);
}

fn now() -> SystemTime {
    // The nodes of this process have the same clock.
    caje_node::clock::now()
}

/// A request as node `b` proves it, with a nonce of its own.
fn proven(
    node: &Node,
    secret: &str,
    at: SystemTime,
    method: &Method,
    target: &str,
    body: &str,
) -> Ask {
    static NONCES: AtomicU64 = AtomicU64::new(1);
    let nonce = NONCES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let field =
        Secret::new(secret).ask("b", at, nonce, method, "127.0.0.1", target, body.as_bytes());
    let field = field.to_str().expect("text").to_owned();
    let ask = ask(node, method.as_str(), target).header("caje-peer", &field);
    match body.is_empty() {
        true => ask,
        false => ask.body(body.to_owned()),
    }
}

/// How a node is named by who asks it to change something.
async fn named(node: &Node, id: &str) -> String {
    let hello = proven(node, SECRET, now(), &Method::GET, HELLO, "").await;
    let start = hello.head.get("caje-peer-start").expect("a start");
    format!("{id}~{start}")
}

fn words(tag: &str) -> String {
    format!(
        r#"{{"purges":[{{"author":"b","number":7,"stamp":1,"selector":{{"by":"tag","tag":"{tag}"}},"soft":false}}]}}"#
    )
}

/// Messages that were changed, sent again, are old, or meant for another are refused, and do nothing.
#[tokio::test]
async fn only_a_node_s_own_words_are_taken() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "a");
    let node = cluster.node("a", |_| {}).await;
    node.get("/a").await.expect(200);
    node.at_rest().await;
    let meant = named(&node, "a").await;
    let target = format!("{PURGES}?to={meant}");
    let (post, words) = (Method::POST, words("red"));
    let wrong = |ask: Ask| async move { refused(&ask.await, 401, "no-node") };
    let with = |secret: &str, at: SystemTime| proven(&node, secret, at, &post, &target, &words);
    wrong(with("another secret of 32 characters!", now())).await;
    wrong(with(SECRET, now() - Duration::from_secs(62))).await;
    wrong(with(SECRET, now() + Duration::from_secs(62))).await;
    wrong(with(SECRET, UNIX_EPOCH)).await;
    let elsewhere = format!("{PURGES}?to=c");
    wrong(proven(&node, SECRET, now(), &post, &elsewhere, &words)).await;
    wrong(proven(&node, SECRET, now(), &post, PURGES, &words)).await;
    let ask = |target: &str, field: &str, body: &str| {
        ask(&node, "POST", target)
            .header("caje-peer", field)
            .body(body.to_owned())
    };
    let secret = Secret::new(SECRET);
    let prove = |nonce: u8| {
        let nonce = [nonce; 8];
        let field = secret.ask(
            "b",
            now(),
            nonce,
            &post,
            "127.0.0.1",
            &target,
            words.as_bytes(),
        );
        field.to_str().expect("text").to_owned()
    };
    let field = prove(250);
    wrong(ask(&target, &field, &words.replace("red", "rad"))).await;
    wrong(ask(&format!("{PURGES}?x&to={meant}"), &field, &words)).await;
    wrong(ask(&target, &field.replacen("b;", "c;", 1), &words)).await;
    wrong(ask(&target, &field, &words).header("caje-peer", &field)).await;
    wrong(ask(&target, &field, &words).host("localhost")).await;
    for nonsense in ["", ";;;", "b;1;2;3", &"x".repeat(5000)] {
        wrong(ask(&target, nonsense, &words)).await;
    }
    assert!(is_hit(&node, "/a").await, "nothing was done so far");
    // The right one, once.
    let got = ask(&target, &field, &words).await.expect(200);
    assert_eq!(got.text().trim(), r#"{"matched":1,"is_durable":true}"#);
    let mut fields = HeaderMap::new();
    for line in got.head.text.lines().skip(1) {
        if let Some((name, value)) = line.split_once(':') {
            let name = HeaderName::try_from(name).expect("a name");
            let value = HeaderValue::try_from(value.trim()).expect("a value");
            fields.append(name, value);
        }
    }
    assert!(secret.is_answer([250; 8], StatusCode::OK, &fields));
    assert!(!secret.is_answer([251; 8], StatusCode::OK, &fields));
    assert_eq!(
        fields.get("caje-peer-node").map(HeaderValue::as_bytes),
        Some(&b"a"[..])
    );
    assert!(!is_hit(&node, "/a").await);
    node.at_rest().await;
    wrong(ask(&target, &field, &words)).await;
    // The same purge in another message is known.
    let got = with(SECRET, now()).await.expect(200);
    assert_eq!(got.text().trim(), r#"{"matched":1,"is_durable":true}"#);
    assert!(is_hit(&node, "/a").await);
    // A node tells of no other's.
    let others = words.replace(r#""author":"b""#, r#""author":"c""#);
    let got = proven(&node, SECRET, now(), &post, &target, &others).await;
    refused(&got, 400, "bad-request");
}

/// What was caught on the way to a node is of no use against the next process of that node, which remembers nothing of
/// what it was asked.
#[tokio::test]
async fn what_was_said_to_an_earlier_start_is_not_taken() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "a");
    let node = cluster.node("a", |_| {}).await;
    let target = format!("{PURGES}?to={}", named(&node, "a").await);
    let (post, words) = (Method::POST, words("red"));
    let (secret, nonce) = (Secret::new(SECRET), [5; 8]);
    let field = secret.ask(
        "b",
        now(),
        nonce,
        &post,
        "127.0.0.1",
        &target,
        words.as_bytes(),
    );
    let field = field.to_str().expect("text");
    let say = async |node: &Node| {
        let ask = ask(node, "POST", &target).header("caje-peer", field);
        ask.body(words.clone()).await
    };
    say(&node).await.expect(200);
    refused(&say(&node).await, 401, "no-node");
    let node = node.restart().await;
    read_log(&node).await;
    node.get("/a").await.expect(200);
    node.at_rest().await;
    let got = say(&node).await;
    refused(&got, 421, "another-start");
    assert!(got.head.has(secret::PROOF.as_str()), "{}", got.head.text);
    assert!(is_hit(&node, "/a").await);
    // Who knew it by its earlier name learns of the other.
    let b = cluster.node("b", |_| {}).await;
    knows(&b, 2).await;
    let report = purge(&b, r#"{"tags":["blue"]}"#).await;
    assert_eq!(parts(&report), [("a", 0, true), ("b", 0, true)]);
    let node = node.restart().await;
    read_log(&node).await;
    let report = within("node a to be told", async {
        loop {
            let report = purge(&b, r#"{"tags":["blue"]}"#).await;
            // Until its new address is known.
            if parts(&report).contains(&("a", 0, true)) {
                return report;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(parts(&report).contains(&("b", 0, true)));
    drop(node);
}

/// What nodes may ask of one another, and by which door.
#[tokio::test]
async fn a_proof_opens_what_nodes_need() {
    let cluster = Cluster::new().await;
    let node = cluster.node("a", |config| config.admin.public = true).await;
    let get = |target: &str| proven(&node, SECRET, now(), &Method::GET, target, "");
    get(&format!("{HELLO}?to=a")).await.expect(200);
    get(HELLO).await.expect(200);
    let nodes = get(&format!("{}?to=a", path::NODES)).await.expect(200);
    assert!(nodes.head.has(secret::PROOF.as_str()));
    // One's own part alone, whatever is asked.
    let nodes = get(&format!("{}?scope=cluster&to=a", path::NODES))
        .await
        .expect(200);
    let nodes: Nodes = serde_json::from_slice(&nodes.body).expect("nodes");
    assert_eq!((nodes.nodes.len(), nodes.unanswered.len()), (1, 0));
    let post = |target: &str, body: &str| proven(&node, SECRET, now(), &Method::POST, target, body);
    let meant = named(&node, "a").await;
    for (target, body) in [
        (path::CONFIG_RELOAD, "x"),
        (path::CONFIG_VALIDATE, "x"),
        (path::CLEAR_DB, "x"),
    ] {
        let got = post(&format!("{target}?to={meant}"), body).await;
        refused(&got, 403, "scope");
    }
    let purge = format!("{}?to={meant}", path::PURGE);
    let got = post(&purge, r#"{"tags":["x"]}"#).await;
    refused(&got, 403, "scope");
    // A token opens the doors that its scopes say, and these are not among them.
    for token in [TOKEN, READER] {
        let got = ask(&node, "POST", PURGES).header("authorization", token);
        refused(&got.body(words("red")).await, 403, "scope");
    }
    refused(
        &ask(&node, "POST", PURGES).body(words("red")).await,
        401,
        "no-token",
    );
    // Nor does a proof open anything on the public port, however the path is written.
    for target in [
        PURGES,
        "//_caje/v1/peer/purge",
        "/%5fcaje/v1/peer/purge",
        "/x/../_caje/v1/peer/purge",
        "/_CAJE/v1/peer/purge",
    ] {
        let target = format!("{target}?to=a");
        let (nonce, words) = ([9; 8], words("red"));
        let field = Secret::new(SECRET).ask(
            "b",
            now(),
            nonce,
            &Method::POST,
            HOST,
            &target,
            words.as_bytes(),
        );
        let ask = node
            .post(&target)
            .header("caje-peer", field.to_str().expect("text"));
        assert_eq!(ask.body(words).await.status(), 404, "{target}");
    }
    assert_eq!(node.metrics().purges_heard.total(), 0);
    assert_eq!(cluster.origin.requests_total(), 0);
}

/// Without a secret nobody is asked, and nobody is believed.
#[tokio::test]
async fn without_a_secret_nodes_do_not_talk() {
    let cluster = Cluster::new().await;
    let a = cluster
        .node("a", |config| config.cluster.secret = None)
        .await;
    let b = cluster.node("b", |_| {}).await;
    for node in [&a, &b] {
        read_log(node).await;
    }
    let target = format!("{PURGES}?to=a");
    let got = proven(&a, SECRET, now(), &Method::POST, &target, &words("red")).await;
    refused(&got, 401, "no-node");
    let nodes: Nodes = told(&a, "GET", path::NODES, "").await;
    assert_eq!((nodes.nodes.len(), nodes.unanswered.len()), (1, 0));
    // The log has it all the same.
    assert_eq!(
        parts(&purge(&a, r#"{"tags":["red"]}"#).await),
        [("a", 0, true)]
    );
    heard(&b, PurgeWay::Log, 1).await;
}

/// One node answers for all, or for the one that is named.
#[tokio::test]
async fn one_node_answers_for_all() {
    let cluster = Cluster::new().await;
    cluster.fresh("/a", "red", "a");
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    b.get("/a").await.expect(200);
    b.at_rest().await;
    let nodes: Nodes = told(&a, "GET", path::NODES, "").await;
    let names: Vec<&str> = nodes.nodes.iter().map(|node| node.node.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let first = &nodes.nodes[1];
    assert!(
        first.caught_up && first.role.as_deref() == Some("primary"),
        "{first:?}"
    );
    let found: Inspection = told(&a, "GET", "/_caje/v1/inspect?url=http://a.example/a", "").await;
    let held = |name: &str| {
        let node = found.nodes.iter().find(|node| node.node == name);
        node.map(|node| node.variants.len())
    };
    assert_eq!(
        (held("a"), held("b"), held("c")),
        (Some(0), Some(1), Some(0))
    );
    let stats: Stats = told(&a, "GET", path::STATS, "").await;
    assert_eq!(stats.nodes.len(), 1);
    let stats: Stats = told(&a, "GET", "/_caje/v1/stats?scope=cluster", "").await;
    assert_eq!(stats.nodes.len(), 3);
    let objects: Objects = told(&a, "GET", "/_caje/v1/objects?node=b&limit=5", "").await;
    assert_eq!(
        (objects.objects.len(), objects.objects[0].node.as_str()),
        (1, "b")
    );
    let stats: Stats = told(&a, "GET", "/_caje/v1/stats?region=region-c", "").await;
    assert_eq!((stats.nodes.len(), stats.nodes[0].node.as_str()), (1, "c"));
    let with = |target: &str| ask(&a, "GET", target).header("authorization", TOKEN);
    refused(&with("/_caje/v1/stats?node=x").await, 404, "unknown-node");
    refused(
        &with("/_caje/v1/stats?region=x").await,
        404,
        "unknown-region",
    );
    refused(
        &with("/_caje/v1/objects?scope=cluster").await,
        400,
        "bad-request",
    );
    refused(&with("/_caje/v1/jobs/x").await, 404, "unknown-job");
    let got = ask(&a, "POST", "/_caje/v1/purge?node=b").header("authorization", TOKEN);
    refused(&got.body(r#"{"tags":["red"]}"#).await, 400, "bad-request");
    // Jobs: of one node, of all; looked for wherever they are.
    let job: Job = told(&a, "POST", "/_caje/v1/storage/verify?node=b", "").await;
    assert_eq!(job.node, "b");
    let found: Job = told(&c, "GET", &path::JOB.replace("{id}", &job.id), "").await;
    assert_eq!(found.id, job.id);
    let jobs: Jobs = told(&a, "GET", "/_caje/v1/jobs?scope=cluster", "").await;
    assert_eq!(jobs.jobs.len(), 1);
    let cleared: serde_json::Value =
        told(&a, "DELETE", "/_caje/v1/nodes/b/cache?tier=disk", "").await;
    assert_eq!(cleared["nodes"][0]["objects"], 1);
    // Who is away is named, and the others' answers are not waited for longer.
    let down = b.down().await;
    let nodes: Nodes = told(&a, "GET", path::NODES, "").await;
    assert_eq!((nodes.nodes.len(), nodes.unanswered.len()), (2, 1));
    assert_eq!(nodes.unanswered[0].node, "b");
    assert!(nodes.unanswered[0].heard_ms.is_some());
    let status: Status = told(&a, "GET", path::STATUS, "").await;
    assert_eq!(status.unanswered.len(), 1);
    let got = with("/_caje/v1/stats?node=b").await;
    refused(&got, 504, "silent-node");
    drop(down);
}

/// Lists what nobody has fetched.
async fn list(node: &Node, targets: &[&str]) {
    let manifest = node.inner().manifest().expect("a manifest");
    for target in targets {
        let key = CacheKey::new(Scheme::Http, HOST, target.as_bytes());
        let row = Resource {
            id: ResourceId {
                cache_key: Bytes::copy_from_slice(key.as_bytes()),
                variant: Vec::new(),
            },
            about: About {
                url: format!("http://{HOST}{target}"),
                origin: "origin".to_owned(),
                ..About::default()
            },
        };
        manifest.record(row).expect("a row");
    }
}

/// Waits until a node knows of so many resources.
async fn lists(node: &Node, count: u64) {
    let rows = || {
        let manifest = node.inner().manifest()?;
        manifest.reader().ok()?.count().ok()
    };
    until(|| format!("{:?}", rows()), || rows() == Some(count)).await;
}

fn events_of(node: &Node, ids: &str) -> Ask {
    let target = path::JOB_EVENTS.replace("{id}", ids);
    ask(node, "GET", &target).header("authorization", TOKEN)
}

/// One command fills all nodes, shows how far each is, and says who could not do it all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_populates_all_nodes() {
    let cluster = Cluster::new().await;
    let targets = ["/a", "/b", "/c"];
    for target in targets {
        cluster.fresh(target, "red", "a body");
    }
    let nodes = cluster.nodes(["a", "b", "c"]).await;
    let [a, b, c] = &nodes;
    list(b, &targets).await;
    for node in &nodes {
        lists(node, 3).await;
    }
    let (code, text, error) = caje(a, &["populate", "--all", "--dry-run", "--detach", "-j"]).await;
    assert_eq!(code, Some(0), "{error}");
    let jobs: Jobs = serde_json::from_str(&text).expect("jobs");
    assert_eq!(jobs.jobs.len(), 3);
    // By any node, and by several ids.
    let ids: Vec<&str> = jobs.jobs.iter().map(|job| job.id.as_str()).collect();
    let mut arguments = vec!["jobs", "watch"];
    arguments.extend(&ids);
    let (code, text, error) = caje(c, &arguments).await;
    assert!(
        code == Some(0) && text.lines().count() == 4,
        "{text}{error}"
    );
    assert!(error.contains("b: done: 0 of 3"), "{error}");
    let (code, text, error) = caje(
        a,
        &["populate", "--all", "--concurrency", "2", "-o", "ndjson"],
    )
    .await;
    assert_eq!(code, Some(0), "{text}{error}");
    let last = |name: &str| -> Job {
        let mut jobs = text
            .lines()
            .map(|line| serde_json::from_str::<Job>(line).expect("a job"));
        jobs.rfind(|job| job.node == name).expect("events")
    };
    for node in ["a", "b", "c"] {
        let job = last(node);
        assert_eq!((job.state, job.done, job.failed), (JobState::Done, 3, 0));
    }
    for node in &nodes {
        for target in targets {
            assert!(is_hit(node, target).await);
        }
    }
    // How much that is, each way. The index is written behind.
    let whole = || async {
        let coverage: Coverage = told(a, "GET", path::COVERAGE, "").await;
        coverage.nodes.iter().map(|node| node.present).sum::<u64>()
    };
    within("the indexes to know of it", async {
        while whole().await != 9 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for (by, name) in [
        ("node", "a"),
        ("region", "region-b"),
        ("origin", "origin"),
        ("prefix", "http://a.example/"),
    ] {
        let (code, text, error) = caje(a, &["coverage", "--by", by]).await;
        assert_eq!(code, Some(0), "{text}{error}");
        let rows = text.lines().filter(|line| line.contains("100 %"));
        assert!(rows.count() == 3 && text.contains(name), "{by}\n{text}");
    }
    let coverage: Coverage = told(a, "GET", "/_caje/v1/coverage?by=origin", "").await;
    let group = &coverage.nodes[0].groups[0];
    assert_eq!(
        (group.name.as_str(), group.present, group.missing),
        ("origin", 3, 0)
    );
    cluster.fresh("/extra", "red", "listed by nobody");
    a.get("/extra").await.expect(200);
    let extra = || async {
        let coverage: Coverage = told(a, "GET", "/_caje/v1/coverage?scope=local", "").await;
        coverage.nodes[0].extra
    };
    within("the index to know of it", async {
        while extra().await != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (code, text, error) = caje(a, &["stats", "--by", "region", "-o", "csv"]).await;
    assert!(
        code == Some(0) && text.lines().count() == 4,
        "{text}{error}"
    );
    // What fails on all of them, and who is away.
    let _ = cluster.origin.get("/gone").status(404).body("no");
    list(a, &["/gone"]).await;
    for node in &nodes {
        lists(node, 4).await;
    }
    let (code, text, error) = caje(b, &["populate", "--all"]).await;
    assert_eq!(code, Some(3), "{text}{error}");
    assert!(
        text.contains("404: 1") && error.contains("c: done"),
        "{text}{error}"
    );
    let (code, _, error) = caje(b, &["populate", "--all", "--node", "a"]).await;
    assert!(code == Some(2) && error.contains("try: "), "{error}");
    let (code, _, error) = caje(
        b,
        &[
            "populate",
            "--region",
            "region-c",
            "--prefix",
            "http://a.example/a",
        ],
    )
    .await;
    assert_eq!(code, Some(0), "{error}");
    let [a, b, c] = nodes;
    let down = c.down().await;
    let (code, text, error) =
        caje(&a, &["populate", "--all", "--prefix", "http://a.example/a"]).await;
    assert_eq!(code, Some(3), "{text}{error}");
    assert!(error.contains("c has not answered: "), "{error}");
    let (code, _, error) = caje(&b, &["jobs"]).await;
    assert_eq!(code, Some(3), "{error}");
    drop(down);
}

/// A job is watched, cancelled and gone on with by a node that does not have it; who watches and goes takes no place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_steered_from_any_node() {
    const PLACES: usize = 16;
    let cluster = Cluster::new().await;
    let gate = cluster
        .origin
        .get("/a")
        .body("a")
        .cache_control("max-age=60")
        .gated();
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    list(&b, &["/a"]).await;
    lists(&b, 1).await;
    let job: Job = told(
        &a,
        "POST",
        "/_caje/v1/jobs?node=b",
        r#"{"kind":"populate"}"#,
    )
    .await;
    gate.reached().await;
    let running = |text: &[u8]| text.windows(9).any(|part| part == b"\"running\"");
    let mut watchers = Vec::new();
    for _ in 0..PLACES {
        let mut watcher = events_of(&a, &job.id).open().await;
        assert_eq!(watcher.head.status, 200);
        assert!(running(&watcher.take(200).await));
        watchers.push(watcher);
    }
    refused(&events_of(&a, &job.id).await, 503, "too-many-watchers");
    for watcher in watchers {
        watcher.leave();
    }
    let place = || async {
        loop {
            let mut watcher = events_of(&a, &job.id).open().await;
            if watcher.head.status == 200 {
                assert!(running(&watcher.take(200).await));
                return watcher;
            }
            tokio::task::yield_now().await;
        }
    };
    let watcher = within("a place", place()).await;
    let target = path::JOB.replace("{id}", &job.id);
    let cancelled: Job = told(&c, "DELETE", &target, "").await;
    assert_eq!(
        (cancelled.node.as_str(), cancelled.state),
        ("b", JobState::Cancelled)
    );
    let text = watcher.rest().await.text();
    assert!(text.contains("\"cancelled\""), "{text}");
    let resume = path::JOB_RESUME.replace("{id}", &job.id);
    let resumed: Job = told(&a, "POST", &resume, "").await;
    assert_eq!(resumed.state, JobState::Running);
    let other = events_of(&c, &job.id).start();
    gate.open();
    let text = other.await.expect("a watcher").text();
    assert!(
        text.trim_end().ends_with('}') && text.contains("\"done\":1"),
        "{text}"
    );
    assert!(is_hit(&b, "/a").await);
    refused(&events_of(&a, "populate-0-0-x").await, 404, "unknown-job");
    refused(&events_of(&a, ",").await, 400, "bad-request");
    // One that nobody has does not keep the others from being told of.
    let text = events_of(&c, &format!("{},nonsense", job.id)).await.text();
    assert!(
        text.contains("event: lost") && text.contains("event: progress"),
        "{text}"
    );
    let missing = path::JOB_RESUME.replace("{id}", "nonsense");
    let got = ask(&a, "POST", &missing)
        .header("authorization", TOKEN)
        .await;
    refused(&got, 404, "unknown-job");
    // The node that has it ends: who watches by another learns so.
    let gate = cluster
        .origin
        .get("/b")
        .body("b")
        .cache_control("max-age=60")
        .gated();
    list(&b, &["/b"]).await;
    lists(&b, 2).await;
    let job: Job = told(&b, "POST", path::JOBS, r#"{"kind":"populate"}"#).await;
    gate.reached().await;
    let mut watcher = events_of(&a, &job.id).open().await;
    watcher.take(200).await;
    let down = b.down().await;
    let text = watcher.rest().await.text();
    assert!(
        text.contains("event: lost") && text.contains("\"node\":\"b\""),
        "{text}"
    );
    gate.open();
    drop(down);
}

/// A node that is gone for good leaves the node table, the answers and the manifest; one that still answers does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_gone_is_forgotten() {
    let cluster = Cluster::new().await;
    cluster.fresh("/both", "red", "a body");
    cluster.fresh("/own", "red", "a body");
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    list(&a, &["/both"]).await;
    lists(&b, 1).await;
    list(&b, &["/own"]).await;
    for node in [&a, &b, &c] {
        lists(node, 2).await;
    }
    let forget = |node: &Node, name: &str| {
        ask(node, "DELETE", &path::NODE.replace("{id}", name)).header("authorization", TOKEN)
    };
    refused(&forget(&a, "a").await, 409, "oneself");
    refused(&forget(&a, "b").await, 409, "still-runs");
    refused(&forget(&a, "nobody").await, 404, "unknown-node");
    let got = ask(&a, "DELETE", &path::NODE.replace("{id}", "b")).header("authorization", READER);
    refused(&got.await, 403, "scope");
    let (code, _, error) = caje(&a, &["nodes", "forget", "b"]).await;
    assert!(code == Some(2) && error.contains("add --yes"), "{error}");
    let (code, _, error) = caje(&a, &["nodes", "forget", "b", "--yes"]).await;
    assert!(
        code == Some(1) && error.contains("try: end it first"),
        "{error}"
    );
    let down = b.down().await;
    let (code, text, error) = caje(&a, &["nodes", "forget", "b", "--yes"]).await;
    assert!(
        code == Some(0) && text.contains("b is forgotten (it cannot be reached"),
        "{text}{error}"
    );
    for node in [&a, &c] {
        lists(node, 1).await;
        knows(node, 2).await;
        let report = purge(node, r#"{"tags":["none"]}"#).await;
        assert_eq!(parts(&report), [("a", 0, true), ("c", 0, true)]);
        let coverage: Coverage = told(node, "GET", path::COVERAGE, "").await;
        assert_eq!(coverage.nodes.len(), 2);
    }
    refused(&forget(&a, "b").await, 404, "unknown-node");
    // It comes all the same: with what it lists, and for all to know.
    let b = down.up(|_| {}).await;
    for node in [&a, &b, &c] {
        lists(node, 2).await;
        knows(node, 3).await;
    }
    // For a moment its old row is known, with the address that it had.
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    loop {
        let report = purge(&c, r#"{"tags":["none"]}"#).await;
        if parts(&report) == [("a", 0, true), ("b", 0, true), ("c", 0, true)] {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{report:?}");
    }
}

/// A node that takes questions and never answers holds nobody up beyond the timeout.
#[tokio::test]
async fn nobody_waits_for_a_silent_node() {
    let cluster = Cluster::new().await;
    let a = cluster
        .node("a", |config| {
            config.cluster.timeout = Duration::from_millis(300)
        })
        .await;
    read_log(&a).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = silent.local_addr().expect("an address");
    let row = NodeRow {
        id: "silent".to_owned(),
        admin: Some(format!("http://{address}")),
        ..NodeRow::default()
    };
    let manifest = a.inner().manifest().expect("a manifest");
    manifest.announce(&row).expect("a row");
    knows(&a, 2).await;
    let report = purge(&a, r#"{"tags":["red"]}"#).await;
    assert_eq!(parts(&report), [("a", 0, true), ("silent", 0, false)]);
    let error = report.nodes[1].error.as_deref().unwrap_or_default();
    assert!(error.contains("300ms"), "{error}");
}

/// Responses that each node stores in what measures purges, and tags that they are spread over.
const STORED: usize = 100_000;
const TAGS: usize = 10;

/// An origin of small bodies, each with one of the tags `t0`, `t1`, and so on.
pub(crate) fn answer_with_tags(origin: &Origin) {
    origin.prefix("/").respond_with(|request| {
        let number = request.target.rsplit('/').next();
        let number: usize = number.and_then(|n| n.parse().ok()).unwrap_or(0);
        OriginAnswer::ok()
            .cache_control("max-age=6000")
            .header("surrogate-key", format!("t{}", number % TAGS))
            .body("a body")
    });
}

/// Fills the nodes at these addresses; then purges one tag after the other by `purge`, which is given a node's place
/// and what to ask it for. Prints how long each took until all nodes had acknowledged it.
pub(crate) async fn measure_tags(
    nodes: &[SocketAddr],
    mut purge: impl AsyncFnMut(usize, String) -> PurgeReport,
) {
    const CONNECTIONS: usize = 16;
    let mut filling = Vec::new();
    for &address in nodes {
        for first in 0..CONNECTIONS {
            filling.push(tokio::spawn(async move {
                let mut connection = caje_tests::Connection::to(address).await;
                for number in (first..STORED).step_by(CONNECTIONS) {
                    let got = connection.get(&format!("/{number}")).await;
                    assert_eq!(got.status(), 200);
                }
            }));
        }
    }
    for filled in filling {
        filled.await.expect("a filling");
    }
    let mut took = Vec::new();
    for tag in 0..TAGS {
        let began = Instant::now();
        let report = purge(tag % nodes.len(), format!(r#"{{"tags":["t{tag}"]}}"#)).await;
        took.push(began.elapsed());
        assert_eq!(report.nodes.len(), nodes.len());
        for node in &report.nodes {
            assert!(node.done, "{node:?}");
            assert_eq!(node.matched, (STORED / TAGS) as u64);
        }
    }
    println!(
        "{STORED} stored on each of {} nodes, a tag of {}: {took:.0?}",
        nodes.len(),
        STORED / TAGS
    );
    took.sort_unstable();
    println!("median {:.1?}", took[took.len() / 2]);
}

/// How long a tag's purge takes on the local engine. To be read by a person:
/// `cargo test --release -p caje-tests -- --ignored --nocapture a_tag_of_ten_thousand`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_tag_of_ten_thousand_on_three_nodes() {
    let cluster = Cluster::new().await;
    answer_with_tags(&cluster.origin);
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let large = |config: &mut Config| config.store.size_bytes = 2 << 30;
        nodes.push(cluster.node(name, large).await);
    }
    for node in &nodes {
        knows(node, 3).await;
    }
    let addresses: Vec<_> = nodes.iter().map(Node::address).collect();
    measure_tags(&addresses, async |place, wish| {
        purge(&nodes[place], &wish).await
    })
    .await;
}
