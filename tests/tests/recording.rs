//! What a node tells the manifest of: the responses that every node should hold.

use std::fs;

use caje_node::cache::record::{Glob, Record};
use caje_node::manifest::{Cursor, Filter, Listed, Manifest};
use caje_tests::{CANARY, Folder, Node, Origin, until};

/// All that a node knows of, once it is `wanted` resources.
async fn recorded(node: &Node, wanted: usize) -> Vec<Listed> {
    let manifest = manifest_of(node).await;
    let mut changes = manifest.watch();
    let waited = async {
        loop {
            let all = listed(&manifest);
            if all.len() >= wanted {
                return all;
            }
            changes.changed().await.expect("a manifest that is open");
        }
    };
    let all = caje_tests::within("rows", waited).await;
    assert_eq!(all.len(), wanted, "{all:?}");
    all
}

fn listed(manifest: &Manifest) -> Vec<Listed> {
    let reader = manifest.reader().expect("a reader");
    let list = reader.resources(&Filter::All, &Cursor::default(), 1000);
    list.expect("a list").items
}

async fn manifest_of(node: &Node) -> Manifest {
    until(
        || "the manifest to be open".into(),
        || node.inner().manifest().is_some(),
    )
    .await;
    node.inner().manifest().expect("it is open")
}

fn all() -> Record {
    Record {
        min_hits: Some(1),
        ..Record::default()
    }
}

async fn recording(origin: &Origin, record: Record) -> Node {
    let node = Node::with(origin, |config| config.origins[0].record = record).await;
    manifest_of(&node).await;
    node
}

fn urls(rows: &[Listed]) -> Vec<&str> {
    let urls = rows.iter().map(|row| row.resource.about.url.as_str());
    urls.collect()
}

#[tokio::test]
async fn what_is_asked_for_again_is_recorded() {
    let origin = Origin::start().await;
    for path in ["/once", "/twice", "/last"] {
        let answer = origin.get(path).body("12345").cache_control("max-age=60");
        answer.etag("\"e\"").header("surrogate-key", "shop news");
    }
    let node = recording(&origin, Record::default()).await;
    for target in ["/once", "/twice", "/twice", "/twice", "/last", "/last"] {
        node.get(target).host("a.example").await.says("12345");
        node.at_rest().await;
    }
    let rows = recorded(&node, 2).await;
    assert_eq!(
        urls(&rows),
        ["http://a.example/last", "http://a.example/twice"]
    );
    let about = &rows[1].resource.about;
    assert_eq!(about.size, Some(5));
    assert_eq!(about.validator.as_deref(), Some("\"e\""));
    assert_eq!(about.tags, ["shop", "news"]);
    assert_eq!(
        (about.variant, about.why.as_str()),
        (0, "asked for 2 times")
    );
    assert_eq!(rows[1].author, "test");
}

#[tokio::test]
async fn rules_say_what_is_recorded() {
    let origin = Origin::start().await;
    origin
        .prefix("/")
        .body("x".repeat(100))
        .cache_control("max-age=60");
    origin
        .get("/seg/small")
        .body("x")
        .cache_control("max-age=60");
    let rule = Record {
        min_bytes: 50,
        paths: vec![Glob::new("/seg/*").expect("a pattern")],
        ..all()
    };
    let node = recording(&origin, rule).await;
    for target in ["/seg/small", "/other", "/seg/a/b", "/seg/1?q=/seg/x"] {
        node.get(target).host("a.example").await.expect(200);
        node.at_rest().await;
    }
    let rows = recorded(&node, 1).await;
    assert_eq!(urls(&rows), ["http://a.example/seg/1?q=/seg/x"]);

    let silent = recording(&origin, Record::OFF).await;
    for _ in 0..3 {
        silent.get("/seg/1").await.expect(200);
    }
    silent.at_rest().await;
    assert!(listed(&manifest_of(&silent).await).is_empty());
}

#[tokio::test]
async fn what_is_one_user_s_is_never_recorded() {
    let origin = Origin::start().await;
    let private = origin
        .get("/cookie")
        .body(CANARY)
        .cache_control("max-age=60");
    private.header("set-cookie", CANARY);
    let common = origin.get("/authorized").body(CANARY);
    common.cache_control("public, max-age=60");
    let by_cookie = origin.get("/by-cookie").body(CANARY);
    by_cookie
        .cache_control("max-age=60")
        .header("vary", "cookie");
    for (path, directives) in [("/private", "private, max-age=60"), ("/no", "no-store")] {
        origin.get(path).body(CANARY).cache_control(directives);
    }
    origin.get("/last").body("x").cache_control("max-age=60");
    let node = Node::with(&origin, |config| {
        config.origins[0].record = all();
        config.origins[0].rules.store_set_cookie = true;
    })
    .await;
    manifest_of(&node).await;
    for path in ["/cookie", "/private", "/no", "/authorized", "/by-cookie"] {
        let ask = node.get(path).header("cookie", CANARY);
        ask.header("authorization", CANARY).await.expect(200);
        node.at_rest().await;
    }
    node.get("/by-cookie")
        .header("cookie", CANARY)
        .await
        .expect(200);
    node.at_rest().await;
    node.get("/last").host("a.example").await.says("x");
    let rows = recorded(&node, 1).await;
    assert_eq!(urls(&rows), ["http://a.example/last"]);
    assert!(!format!("{rows:?}").contains(CANARY));
}

#[tokio::test]
async fn a_row_names_its_variant() {
    let origin = Origin::start().await;
    let answer = origin.get("/a").cache_control("max-age=60").body("x");
    answer.header("vary", "accept-language, x-device");
    let node = recording(&origin, all()).await;
    for language in ["de", "en-GB, en;q=0.5"] {
        let ask = node.get("/a").header("accept-language", language);
        ask.await.says("x");
        node.at_rest().await;
    }
    let rows = recorded(&node, 2).await;
    let variants: Vec<_> = rows.iter().map(|row| &row.resource.id.variant).collect();
    let named = |value: &str| vec![("accept-language".to_owned(), value.to_owned())];
    assert!(variants.contains(&&named("de")), "{variants:?}");
    let about = rows.iter().map(|row| row.resource.about.variant);
    let numbers: std::collections::BTreeSet<i64> = about.collect();
    assert_eq!(numbers.len(), 2);
    // What was recorded selects the response that it was recorded of.
    for row in &rows {
        let (name, value) = &row.resource.id.variant[0];
        assert!(
            node.get("/a")
                .header(name, value)
                .await
                .says("x")
                .head
                .is_hit()
        );
    }
}

#[tokio::test]
async fn nodes_of_one_folder_know_the_same() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x").cache_control("max-age=60");
    let shared = Folder::new();
    let start = async |name: &'static str| {
        let change = |config: &mut caje_node::Config| {
            config.node.name = name.to_owned();
            config.manifest.dir = Some(shared.join("manifest"));
            config.origins[0].record = all();
        };
        Node::with(&origin, change).await
    };
    let (one, other) = (start("one").await, start("other").await);
    manifest_of(&one).await;
    manifest_of(&other).await;
    one.get("/1").host("a.example").await.says("x");
    other.get("/2").host("a.example").await.says("x");
    for node in [&one, &other] {
        let rows = recorded(node, 2).await;
        assert_eq!(urls(&rows), ["http://a.example/1", "http://a.example/2"]);
        let manifest = manifest_of(node).await;
        let names = || -> Vec<String> {
            let nodes = manifest.reader().and_then(|reader| reader.nodes());
            nodes
                .expect("nodes")
                .into_iter()
                .map(|node| node.id)
                .collect()
        };
        until(|| "both to be known".into(), || names() == ["one", "other"]).await;
    }
}

/// Without its manifest a node serves, says so, and takes it up when it can; what was to be recorded meanwhile is
/// told then.
#[tokio::test]
async fn a_node_serves_without_its_manifest() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x").cache_control("max-age=60");
    let folder = Folder::new();
    let in_the_way = folder.join("manifest");
    fs::write(&in_the_way, "a file").expect("write a file");
    let mut config = caje_tests::settings(&origin, &folder);
    config.manifest.dir = Some(in_the_way.clone());
    config.origins[0].record = all();
    let node = Node::run(config, folder).await;
    node.get("/a").host("a.example").await.says("x");
    let again = node.get("/a").host("a.example").await;
    assert!(again.says("x").head.is_hit());
    let ready = async || node.admin("/_caje/readyz").await.expect(200).text();
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    while !ready().await.contains("manifest: failing: ") {
        assert!(tokio::time::Instant::now() < deadline, "{}", ready().await);
    }
    assert!(node.metric("caje_manifest_failing").await == 1.0);
    fs::remove_file(&in_the_way).expect("remove a file");
    manifest_of(&node).await;
    assert!(ready().await.contains("manifest: ok\n"));
    node.get("/b").host("a.example").await.says("x");
    let rows = recorded(&node, 2).await;
    assert_eq!(urls(&rows), ["http://a.example/a", "http://a.example/b"]);
}
