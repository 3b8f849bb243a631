//! Purges: what is named is gone, or stale; at once, for good, and nothing else.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use caje_node::cache::purge::Selector;
use caje_node::semantics::key::Scheme;
use caje_node::telemetry::StaleReason;
use caje_tests::{End, Folder, Gate, Node, Origin, OriginAnswer, settings, until, within};
use tokio::io::{AsyncBufReadExt, BufReader};

const HOST: &str = "a.example";
const SIZE: u64 = 10_000;

fn fresh(body: &'static str) -> OriginAnswer {
    OriginAnswer::ok().cache_control("max-age=600").body(body)
}

fn url(target: &str) -> Selector {
    Selector::Url {
        scheme: Scheme::Http,
        authority: HOST.into(),
        target: Bytes::copy_from_slice(target.as_bytes()),
    }
}

fn prefix(path: &'static str) -> Selector {
    Selector::Prefix {
        scheme: None,
        authority: HOST.into(),
        path: Bytes::from_static(path.as_bytes()),
    }
}

fn tag(tag: &'static str) -> Selector {
    Selector::Tag(Bytes::from_static(tag.as_bytes()))
}

/// Applies a purge; how many stored responses it was about.
async fn purge(node: &Node, selector: Selector, soft: bool) -> u64 {
    let purged = within("a purge", node.inner().purge(selector, soft)).await;
    let [own] = purged.as_slice() else {
        panic!("{purged:?}");
    };
    assert_eq!(own.error, None);
    own.matched
}

async fn is_hit(node: &Node, target: &str) -> bool {
    node.get(target).await.expect(200).head.is_hit()
}

/// Each selector removes what it is about, and leaves the rest.
#[tokio::test]
async fn each_selector_removes_its_own() {
    for (selector, matched, gone) in [
        (url("/dir/a?x=1"), 1, vec!["/dir/a?x=1"]),
        (url("/dir"), 0, vec![]),
        (prefix("/dir/"), 2, vec!["/dir/a?x=1", "/dir/b"]),
        (tag("blue"), 2, vec!["/dir/b", "/c"]),
        (tag("Blue"), 0, vec![]),
        (tag("x y"), 1, vec!["/d"]),
        (tag("grouped"), 1, vec!["/d"]),
        (Selector::Host("b.example".into()), 0, vec![]),
        (
            Selector::Host(HOST.into()),
            4,
            vec!["/dir/a?x=1", "/dir/b", "/c", "/d"],
        ),
        (
            Selector::Everything,
            4,
            vec!["/dir/a?x=1", "/dir/b", "/c", "/d"],
        ),
    ] {
        let origin = Origin::start().await;
        origin.get("/dir/a").answer(fresh("a"));
        origin
            .get("/dir/b")
            .answer(fresh("b").header("surrogate-key", "red blue"));
        origin
            .get("/c")
            .answer(fresh("c").header("surrogate-key", "blue"));
        origin.get("/d").answer(
            fresh("d")
                .header("cache-tag", "x y, z")
                .header("cache-groups", "\"grouped\""),
        );
        let node = Node::start(&origin).await;
        let targets = ["/dir/a?x=1", "/dir/b", "/c", "/d"];
        for target in targets {
            node.get(target).await.expect(200);
            assert!(is_hit(&node, target).await, "{target}");
        }
        assert_eq!(
            purge(&node, selector.clone(), false).await,
            matched,
            "{selector:?}"
        );
        for target in targets {
            let expected = !gone.contains(&target);
            assert_eq!(
                is_hit(&node, target).await,
                expected,
                "{target} {selector:?}"
            );
        }
        for target in targets {
            assert!(is_hit(&node, target).await, "{target} after {selector:?}");
        }
    }
}

/// Every variant of a URL goes, and is counted.
#[tokio::test]
async fn a_url_is_all_its_variants() {
    let origin = Origin::start().await;
    origin.get("/a").answer(fresh("a").vary("accept-language"));
    let node = Node::start(&origin).await;
    for _ in 0..2 {
        for language in ["de", "en", "fr"] {
            node.get("/a")
                .header("accept-language", language)
                .await
                .says("a");
        }
    }
    assert_eq!(origin.requests("/a"), 3);
    assert_eq!(purge(&node, url("/a"), false).await, 3);
    assert_eq!(purge(&node, url("/a"), false).await, 0);
    for language in ["de", "en", "fr"] {
        node.get("/a")
            .header("accept-language", language)
            .await
            .says("a");
    }
    assert_eq!(origin.requests("/a"), 6);
}

/// A soft purge makes stale: validated if nothing allows more.
#[tokio::test]
async fn a_soft_purge_has_it_validated() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(fresh("a").etag("\"1\"").header("surrogate-key", "t"));
    let node = Node::start(&origin).await;
    node.get("/a").await.says("a");
    for selector in [tag("t"), url("/a"), prefix("/"), Selector::Everything] {
        assert_eq!(purge(&node, selector, true).await, 1);
        let got = node.get("/a").await.says("a");
        assert!(
            got.head.cache_status().contains("fwd-status=304"),
            "{}",
            got.head.text
        );
        assert!(is_hit(&node, "/a").await);
    }
    assert_eq!(origin.counts("/a").not_modified, 4);
}

/// What is purged softly is served while it is validated and when the origin fails, for as long as its
/// own directives say, from the purge on.
#[tokio::test]
async fn a_soft_purge_opens_the_stale_windows() {
    let origin = Origin::start().await;
    let directives = "max-age=600, stale-while-revalidate=60, stale-if-error=60";
    origin
        .get("/a")
        .body("a")
        .cache_control(directives)
        .etag("\"1\"");
    origin
        .get("/b")
        .body("b")
        .cache_control("max-age=600, stale-if-error=60")
        .etag("\"1\"");
    origin
        .get("/c")
        .body("c")
        .cache_control("max-age=600, stale-if-error=60, must-revalidate");
    let node = Node::start(&origin).await;
    for target in ["/a", "/b", "/c"] {
        node.get(target).await.expect(200);
    }
    assert_eq!(purge(&node, Selector::Everything, true).await, 3);
    let gate = origin.change("/a").gated();
    for _ in 0..2 {
        node.get("/a").await.says("a");
        gate.reached().await;
    }
    gate.open();
    origin.get("/b").answer(OriginAnswer::status(503));
    origin.get("/c").answer(OriginAnswer::status(503));
    node.get("/b").await.says("b");
    node.get("/c").await.expect(503);
    let stale = &node.metrics().stale_served;
    assert_eq!(stale.get(StaleReason::WhileRevalidate), 2);
    assert_eq!(stale.get(StaleReason::OriginError), 1);
}

/// A hard purge leaves nothing to fall back to.
#[tokio::test]
async fn what_is_gone_is_not_served_stale_either() {
    let origin = Origin::start().await;
    let directives = "max-age=600, stale-while-revalidate=600, stale-if-error=600";
    origin
        .get("/a")
        .body("a")
        .cache_control(directives)
        .etag("\"1\"");
    let node = Node::start(&origin).await;
    node.get("/a").await.says("a");
    purge(&node, url("/a"), false).await;
    origin.get("/a").answer(OriginAnswer::status(503));
    node.get("/a").await.expect(503);
    assert_eq!(origin.last_request("/a").header("if-none-match"), None);
    origin.refuse().await;
    origin.kill_connections();
    origin.wait_open_connections(0).await;
    node.get("/a").await.expect(502);
}

/// Purged while it is being validated: neither the origin's failure nor its 304 brings it back.
#[tokio::test]
async fn a_validation_under_way_brings_nothing_back() {
    for status in [304, 503] {
        let origin = Origin::start().await;
        let directives = "max-age=60, stale-if-error=600";
        let stale = OriginAnswer::ok()
            .cache_control(directives)
            .etag("\"1\"")
            .header("surrogate-key", "t")
            .header("age", "61")
            .body("old");
        origin.get("/a").answer(stale);
        let node = Node::start(&origin).await;
        node.get("/a").await.says("old");
        let gate = match status {
            // It also takes the tag away by which it is purged.
            304 => origin
                .get("/a")
                .answer(fresh("old").etag("\"1\"").header("surrogate-key", "u"))
                .gated(),
            _ => origin.get("/a").answer(OriginAnswer::status(503)).gated(),
        };
        let asker = node.get("/a").start();
        gate.reached().await;
        purge(&node, tag("t"), false).await;
        gate.open();
        let got = within("the asker", asker).await.expect("a client");
        if status == 503 {
            got.expect(503);
        }
        origin.get("/a").answer(fresh("new").etag("\"2\""));
        node.get("/a").await.says("new");
    }
}

/// What was asked for before a purge and comes after it goes to who asked, and is not kept; whoever asks
/// after the purge gets what the origin says then, also those who waited.
#[tokio::test]
async fn what_is_on_its_way_is_purged_too() {
    for selector in [url("/a"), prefix("/"), tag("t"), Selector::Everything] {
        for soft in [false, true] {
            let origin = Origin::start().await;
            let gate = Gate::new();
            let answer = |body| fresh(body).header("surrogate-key", "t");
            origin
                .get("/a")
                .sequence([answer("old").gate(&gate), answer("new")]);
            let node = Node::start(&origin).await;
            let first = node.get("/a").start();
            gate.reached().await;
            purge(&node, selector.clone(), soft).await;
            let joiners = node.metrics().fills_joined.total();
            let later = node.get("/a").start();
            if soft || selector.key().is_none() {
                node.joined_fills(joiners + 1).await;
            }
            gate.open();
            first.await.expect("the first").says("old");
            later.await.expect("a later one").says("new");
            let got = node.get("/a").await.says("new");
            assert!(got.head.is_hit(), "{selector:?}: {}", got.head.text);
            assert_eq!(origin.requests("/a"), 2, "{selector:?}, soft {soft}");
        }
    }
}

/// A client that has half of the body gets the other half; the next one gets the new body.
#[tokio::test]
async fn a_body_half_sent_goes_on() {
    let origin = Origin::start().await;
    let size = 3 << 20;
    let answer = |version| {
        OriginAnswer::ok()
            .generated(size)
            .version(version)
            .cache_control("max-age=600")
    };
    let gate = Gate::new();
    origin
        .get("/a")
        .sequence([answer(0).gate_at(size / 2, &gate), answer(1)]);
    let node = Node::start(&origin).await;
    let mut filling = node.get("/a").open().await;
    let begun = filling.take(100_000).await;
    let mut joined = node.get("/a").open().await;
    joined.take(100_000).await;
    gate.reached().await;
    assert_eq!(purge(&node, Selector::Everything, false).await, 1);
    node.get("/a").await.is_version("/a", 1, size);
    gate.open();
    for answer in [filling, joined] {
        let rest = answer.rest().await;
        assert_eq!(rest.end, End::Whole);
        let whole = [&begun[..], &rest.body].concat();
        assert_eq!(whole, slow_server_body("/a", size));
    }
    let got = node.get("/a").await.is_version("/a", 1, size);
    assert!(got.head.is_hit());
}

fn slow_server_body(path: &str, size: u64) -> Vec<u8> {
    slow_server::body_bytes(path, 0..size)
}

/// The blocks of a purged body are not completed for a new reader.
#[tokio::test]
async fn a_part_is_purged_with_the_whole() {
    let origin = Origin::start().await;
    let (size, answer) = (2 << 20, |version, etag| {
        OriginAnswer::ok()
            .generated(2 << 20)
            .version(version)
            .etag(etag)
            .ranges(true)
            .cache_control("max-age=600")
    });
    origin.get("/a").answer(answer(0, "\"1\""));
    let node = Node::start(&origin).await;
    let part = || node.get("/a").range("0-999");
    part().await.is_part("/a", 0..1000, size);
    node.at_rest().await;
    assert!(part().await.is_part("/a", 0..1000, size).head.is_hit());
    purge(&node, url("/a"), false).await;
    origin.get("/a").answer(answer(1, "\"1\""));
    node.get("/a").await.is_version("/a", 1, size);
}

/// After a restart what was purged is still gone or stale, and the rest is here.
#[tokio::test]
async fn a_restart_forgets_no_purge() {
    let origin = Origin::start().await;
    for target in ["/url", "/tag", "/soft", "/kept"] {
        let answer = OriginAnswer::ok().generated(SIZE).etag("\"1\"");
        let answer = answer.cache_control("max-age=600");
        origin
            .get(target)
            .answer(answer.header("surrogate-key", target));
    }
    let mut node = Node::start(&origin).await;
    for target in ["/url", "/tag", "/soft", "/kept"] {
        node.get(target).await.is_whole(target, SIZE);
    }
    node.at_rest().await;
    node = node.restart().await;
    assert_eq!(purge(&node, url("/url"), false).await, 1);
    assert_eq!(purge(&node, tag("/tag"), false).await, 1);
    assert_eq!(purge(&node, tag("/soft"), true).await, 1);
    node = node.restart().await;
    assert_eq!(origin.requests_total(), 4);
    for (target, hit, validates) in [
        ("/url", false, false),
        ("/tag", false, false),
        ("/soft", false, true),
        ("/kept", true, false),
    ] {
        let got = node.get(target).await.is_whole(target, SIZE);
        assert_eq!(got.head.is_hit(), hit, "{target}");
        let validation = got.head.cache_status().contains("fwd-status=304");
        assert_eq!(validation, validates, "{target}");
    }
    // What was stored after the purge outlives another restart.
    node.at_rest().await;
    node = node.restart().await;
    for target in ["/url", "/tag", "/soft", "/kept"] {
        assert!(is_hit(&node, target).await, "{target}");
    }
}

/// What was purged gives its space back, though nobody asks for it.
#[tokio::test]
async fn the_space_of_what_is_purged_comes_back() {
    let origin = Origin::start().await;
    origin
        .prefix("/t")
        .generated(100_000)
        .cache_control("max-age=600")
        .header("surrogate-key", "t");
    origin
        .get("/kept")
        .generated(100_000)
        .cache_control("max-age=600");
    let node = Node::start(&origin).await;
    node.get("/kept").await.is_whole("/kept", 100_000);
    node.at_rest().await;
    let store = node.inner().store().clone();
    store.flush().await;
    let before = store.usage();
    for n in 0..40 {
        let target = format!("/t/{n}");
        node.get(&target).await.is_whole(&target, 100_000);
    }
    node.at_rest().await;
    store.flush().await;
    assert_eq!(store.usage().objects, 41);
    assert_eq!(purge(&node, tag("t"), false).await, 40);
    let used = || store.usage();
    let what = || {
        format!(
            "the space of what is purged: {:?}, {before:?} before",
            used()
        )
    };
    until(what, || {
        used().objects == 1 && used().disk_bytes == before.disk_bytes
    })
    .await;
    assert!(is_hit(&node, "/kept").await);
}

const CHILD: &str = "CAJE_TEST_PURGING_NODE";

/// Not a play: the process that [`no_purge_is_lost_with_the_process`] kills. Purges what its standard input
/// names, and says when that is done.
#[tokio::test]
async fn node_in_a_process_of_its_own() {
    let Ok(setting) = std::env::var(CHILD) else {
        return;
    };
    let (dir, origin) = setting.split_once('|').expect("a folder and a URL");
    let dir = PathBuf::from(dir);
    let mut config = caje_node::Config::proxy("127.0.0.1:0", origin, Some(&dir)).expect("settings");
    config.admin.listen = caje_node::config::Address::parse("127.0.0.1:0").expect("an address");
    config.store.size_bytes = 64 << 20;
    config.store.memory_bytes = 16 << 20;
    config.log.access = caje_node::config::AccessFormat::Off;
    let node = tokio::task::spawn_blocking(|| caje_node::Node::start(config));
    let node = node.await.expect("a start").expect("a node");
    println!("\nlistening {}", node.addresses()[0]);
    let order = || tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    while let Ok(Some(Ok(line))) = order().await {
        let selector = match line.strip_prefix("tag ") {
            Some(tag) => Selector::Tag(Bytes::copy_from_slice(tag.as_bytes())),
            None => {
                node.store().flush().await;
                println!("\nflushed");
                continue;
            }
        };
        let purged = node.purge(selector, false).await;
        let own = purged.first().expect("the node's own part");
        println!("\npurged {} {}", own.matched, own.error.is_none());
    }
}

struct Child {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    address: std::net::SocketAddr,
}

impl Child {
    async fn start(folder: &Folder, origin: &Origin) -> Child {
        let setting = format!("{}|{}", folder.join("store").display(), origin.url());
        let own = std::env::current_exe().expect("the path of this test");
        let mut child = tokio::process::Command::new(own)
            .args([
                "--exact",
                "purge::node_in_a_process_of_its_own",
                "--nocapture",
            ])
            .env(CHILD, setting)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start a process");
        let stdout = child.stdout.take().expect("a pipe");
        let mut started = Child {
            child,
            lines: BufReader::new(stdout).lines(),
            address: ([127, 0, 0, 1], 0).into(),
        };
        let address = started.hears("listening ").await;
        started.address = address.parse().expect("an address");
        started
    }

    async fn hears(&mut self, what: &str) -> String {
        loop {
            let line = within(what, self.lines.next_line()).await;
            let line = line.expect("read a line").expect("a line before the end");
            if let Some(rest) = line.strip_prefix(what) {
                return rest.to_owned();
            }
        }
    }

    async fn orders(&mut self, line: &str) {
        use tokio::io::AsyncWriteExt;
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        let written = stdin.write_all(format!("{line}\n").as_bytes()).await;
        written.expect("write a line");
    }

    async fn get(&self, target: &str) -> caje_tests::Got {
        let mut connection = caje_tests::Connection::to(self.address).await;
        connection.get(target).await
    }
}

/// kill -9 right after the acknowledgement: what was purged is not served again, what was not is.
#[tokio::test]
async fn no_purge_is_lost_with_the_process() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    for n in 0..20 {
        let answer = OriginAnswer::ok()
            .generated(SIZE)
            .cache_control("max-age=600");
        let tag = format!("t{n}");
        origin
            .get(&format!("/{n}"))
            .answer(answer.header("surrogate-key", tag));
    }
    let mut child = Child::start(&folder, &origin).await;
    for n in 0..20 {
        let target = format!("/{n}");
        child.get(&target).await.is_whole(&target, SIZE);
    }
    child.orders("flush").await;
    child.hears("flushed").await;
    for n in 0..10 {
        child.orders(&format!("tag t{n}")).await;
        assert_eq!(child.hears("purged ").await, "1 true");
        child.child.kill().await.expect("kill a process");
        child = Child::start(&folder, &origin).await;
        for other in 0..20 {
            let target = format!("/{other}");
            if other <= n {
                assert_eq!(
                    origin.requests(&target),
                    1 + u64::from(other < n),
                    "{target}"
                );
            }
        }
        let target = format!("/{n}");
        let got = child.get(&target).await.is_whole(&target, SIZE);
        assert!(!got.head.is_hit(), "{target}: {}", got.head.text);
    }
    for n in 10..20 {
        let target = format!("/{n}");
        let got = child.get(&target).await.is_whole(&target, SIZE);
        assert!(got.head.is_hit(), "{target}: {}", got.head.text);
    }
    child.child.kill().await.expect("kill a process");
}

async fn permitting(origin: &Origin) -> (caje_node::Node, Folder) {
    let folder = Folder::new();
    let config = settings(origin, &folder);
    let node = tokio::task::spawn_blocking(|| {
        let may: caje_node::proxy::MayPurge = Arc::new(|fields, _| {
            fields
                .get("authorization")
                .is_some_and(|value| value == "Bearer secret")
        });
        caje_node::Node::start_permitting(config, may)
    });
    (node.await.expect("a start").expect("a node"), folder)
}

/// `PURGE` is 405 for whoever may not, and works for whoever may.
#[tokio::test]
async fn the_method_purge() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(fresh("a").etag("\"1\"").header("surrogate-key", "t u"));
    origin
        .get("/b")
        .answer(fresh("b").header("surrogate-key", "t"));
    let (node, _folder) = permitting(&origin).await;
    let address = node.addresses()[0];
    let ask = |method: &'static str, target: &'static str, fields: &'static str| async move {
        let mut connection = caje_tests::Connection::to(address).await;
        connection.ask(method, target, fields).await
    };
    let token = "Authorization: Bearer secret\r\n";
    for fields in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Surrogate-Key: t\r\n",
    ] {
        ask("GET", "/a", "").await.says("a");
        ask("PURGE", "/a", fields).await.expect(405);
        assert!(ask("GET", "/a", "").await.says("a").head.is_hit());
    }
    for (target, fields, said) in [
        ("/a", "", "{\"status\":\"ok\",\"matched\":1}\n"),
        ("/absent", "", "{\"status\":\"ok\",\"matched\":0}\n"),
        (
            "/",
            "Surrogate-Key: t\r\n",
            "{\"status\":\"ok\",\"matched\":2}\n",
        ),
        (
            "/",
            "Surrogate-Key: u v\r\n",
            "{\"status\":\"ok\",\"matched\":1}\n",
        ),
        (
            "/a",
            "Surrogate-Key: \r\n",
            "{\"status\":\"ok\",\"matched\":0}\n",
        ),
    ] {
        ask("GET", "/a", "").await.says("a");
        ask("GET", "/b", "").await.says("b");
        let fields = format!("{token}{fields}");
        let mut connection = caje_tests::Connection::to(address).await;
        let got = connection.ask("PURGE", target, &fields).await.says(said);
        assert_eq!(got.head.get("content-type"), Some("application/json"));
        assert_eq!(got.head.get("cache-control"), Some("no-store"));
        let hit = connection.get("/a").await.says("a").head.is_hit();
        assert_eq!(hit, said.contains(":0"), "{target} {fields}");
    }
    ask("GET", "/a", "").await.says("a");
    for field in ["Caje-Soft-Purge: 1\r\n", "Fastly-Soft-Purge: 1\r\n"] {
        let mut connection = caje_tests::Connection::to(address).await;
        let fields = format!("{token}{field}");
        connection.ask("PURGE", "/a", &fields).await.expect(200);
        let got = connection.get("/a").await.says("a");
        assert!(
            got.head.cache_status().contains("fwd-status=304"),
            "{}",
            got.head.text
        );
    }
    assert!(
        origin
            .requests_log()
            .iter()
            .all(|request| request.method != "PURGE")
    );
    let _ = tokio::task::spawn_blocking(move || drop(node)).await;
}

/// RFC 9875: an answer to an unsafe request invalidates groups, of its own origin only.
#[tokio::test]
async fn an_answer_invalidates_groups_of_its_own_origin() {
    let origin = Origin::start().await;
    origin
        .get("/a")
        .answer(fresh("a").header("cache-groups", "\"g\", \"h\""));
    origin
        .get("/tagged")
        .answer(fresh("t").header("surrogate-key", "g"));
    let invalidating = |group: &str| OriginAnswer::ok().header("cache-group-invalidation", group);
    let node = Node::start(&origin).await;
    let get = |host: &'static str| node.get("/a").host(host);
    for (status, group, gone) in [
        (200, "\"g\"", true),
        (200, "\"x\", \"h\"", true),
        (200, "\"G\"", false),
        (200, "g", false),
        (500, "\"g\"", false),
    ] {
        get("a.example").await.says("a");
        get("b.example").await.says("a");
        node.get("/tagged").await.says("t");
        origin
            .post("/write")
            .answer(invalidating(group).with_status(status));
        node.post("/write")
            .host("a.example")
            .body("x")
            .await
            .expect(status);
        assert_eq!(
            get("a.example").await.says("a").head.is_hit(),
            !gone,
            "{group}"
        );
        assert!(get("b.example").await.says("a").head.is_hit(), "{group}");
        assert!(is_hit(&node, "/tagged").await, "{group}");
    }
    // A safe method's answer does not.
    origin.get("/read").answer(invalidating("\"g\"").body("r"));
    node.get("/read").await.says("r");
    assert!(get("a.example").await.says("a").head.is_hit());
}

/// Stores `count` small responses, every `every`th of them tagged.
async fn filled(origin: &Origin, node: &Node, count: usize, every: usize) {
    let answer = OriginAnswer::ok().cache_control("max-age=6000").body("x");
    origin.prefix("/plain").answer(answer.clone());
    origin
        .prefix("/tagged")
        .answer(answer.header("surrogate-key", "tenth"));
    let clients = 16;
    let mut running = Vec::new();
    for client in 0..clients {
        let mut connection = node.connect().await;
        running.push(tokio::spawn(async move {
            for n in (client..count).step_by(clients) {
                let folder = if n % every == 0 { "tagged" } else { "plain" };
                connection.get(&format!("/{folder}/{n}")).await.expect(200);
            }
        }));
    }
    for client in running {
        client.await.expect("a client");
    }
}

/// 10,000 of 100,000 stored responses bear the tag: acknowledged at once, and none of them is served
/// afterwards. Prints how long the acknowledgement took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run by name for its figures"]
async fn a_tag_of_many() {
    of_many(100_000, 10_000).await;
}

/// The same with fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_of_some() {
    of_many(4_000, 400).await;
}

async fn of_many(count: usize, tagged: usize) {
    let origin = Origin::builder().keep_log(false).start().await;
    let origin = origin.expect("an origin");
    let node = Node::with(&origin, |config| config.store.size_bytes = 2 << 30).await;
    let every = count / tagged;
    filled(&origin, &node, count, every).await;
    node.at_rest().await;
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        purge(&node, tag("none"), false).await;
        took.push(began.elapsed());
    }
    let began = Instant::now();
    let matched = purge(&node, tag("tenth"), false).await;
    let acknowledged = began.elapsed();
    assert_eq!(matched, tagged as u64);
    took.sort_unstable();
    println!("{matched} of {count} acknowledged after {acknowledged:?}; of none: {took:?}");
    let before = origin.requests_total();
    let mut connection = node.connect().await;
    for n in (0..count).step_by(every * 10) {
        let got = connection.get(&format!("/tagged/{n}")).await.expect(200);
        assert!(!got.head.is_hit(), "{n}");
        let got = connection
            .get(&format!("/plain/{}", n + 1))
            .await
            .expect(200);
        assert!(got.head.is_hit(), "{n}");
    }
    assert_eq!(origin.requests_total() - before, (tagged / 10) as u64);
    let kept = (count - tagged + tagged / 10) as u64;
    let store = node.inner().store();
    let began = Instant::now();
    until(
        || format!("{kept} objects: {:?}", store.usage()),
        || store.usage().objects == kept,
    )
    .await;
    println!("swept within {:?}", began.elapsed());
}
