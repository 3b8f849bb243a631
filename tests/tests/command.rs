//! `caje`, the operator's command: what it shows, what it changes, how it ends.

use std::process::{Output, Stdio};

use caje_tests::{Node, Origin, Program, within};

use crate::api::with_tokens;

const TOKEN: &str = "caje_canary_5c1f9a_all_scopes";

/// Runs it against a node: exit code, standard output, standard error.
pub async fn caje(node: &Node, arguments: &[&str]) -> (Option<i32>, String, String) {
    let endpoint = format!("http://{}", node.inner().admin_address());
    run(&endpoint, TOKEN, arguments).await
}

async fn run(endpoint: &str, token: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let path = tokio::task::spawn_blocking(Program::command_path)
        .await
        .expect("a build");
    let output = tokio::process::Command::new(path)
        .args(arguments)
        .env("CAJE_ENDPOINT", endpoint)
        .env("CAJE_TOKEN", token)
        .stdin(Stdio::null())
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = within("a command to end", output).await.expect("run caje");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(
        !stdout.contains("canary") && !stderr.contains("canary"),
        "{stdout}{stderr}"
    );
    (status.code(), stdout, stderr)
}

async fn filled() -> (Origin, Node) {
    let origin = Origin::start().await;
    for target in ["/a", "/b"] {
        let _ = origin
            .get(target)
            .generated(1000)
            .header("surrogate-key", "red")
            .cache_control("max-age=60");
    }
    let _ = origin.get("/private").body("mine").cache_control("private");
    let node = Node::with(&origin, with_tokens).await;
    node.get("/a").await.expect(200);
    node.get("/b").await.expect(200);
    node.at_rest().await;
    (origin, node)
}

#[tokio::test]
async fn a_list_in_every_form() {
    let (_origin, node) = filled().await;
    let (code, table, _) = caje(&node, &["ls"]).await;
    assert_eq!(code, Some(0));
    assert!(
        table.starts_with("STATE") && table.contains("http://a.example/a"),
        "{table}"
    );
    let (_, json, _) = caje(&node, &["ls", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["objects"].as_array().map(Vec::len), Some(2));
    let (_, lines, _) = caje(&node, &["ls", "-o", "ndjson"]).await;
    assert_eq!(lines.lines().count(), 2);
    let (_, csv, _) = caje(&node, &["ls", "-o", "csv", "--limit", "1"]).await;
    assert!(csv.lines().count() == 2 && csv.contains("url"), "{csv}");
}

#[tokio::test]
async fn every_reading_command_reads() {
    let (_origin, node) = filled().await;
    for command in [
        "nodes", "status", "stats", "origins", "storage", "jobs", "doctor",
    ] {
        let (code, table, error) = caje(&node, &[command]).await;
        assert!(code == Some(0) || command == "doctor", "{command}: {error}");
        assert!(!table.is_empty(), "{command}");
        let (_, json, _) = caje(&node, &[command, "-j"]).await;
        assert!(
            serde_json::from_str::<serde_json::Value>(&json).is_ok(),
            "{command}: {json}"
        );
    }
    let (code, text, _) = caje(&node, &["config", "show"]).await;
    assert!(code == Some(0) && text.contains("[store]"), "{text}");
    let (code, text, _) = caje(&node, &["healthcheck", "-j"]).await;
    let health: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(
        code == Some(0) && health["state"] == "ready" && health["disk"] == "ok",
        "{text}"
    );
    let (_, text, _) = caje(&node, &["openapi"]).await;
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    for shell in ["bash", "zsh", "fish"] {
        let (code, text, _) = run("nonsense", "", &["completions", shell]).await;
        assert!(code == Some(0) && text.contains("inspect"), "{shell}");
    }
}

#[tokio::test]
async fn why_is_told_step_by_step() {
    let (_origin, node) = filled().await;
    let (code, text, _) = caje(&node, &["why", "http://a.example/a"]).await;
    assert_eq!(code, Some(0));
    assert!(
        text.contains("cached: ") && text.contains("RFC 9111 §4.2.1"),
        "{text}"
    );
    let (_, text, _) = caje(&node, &["why", "http://a.example/private", "--live"]).await;
    for part in ["not cached: ", "rule: private, RFC 9111 §5.2.2.7", "try: "] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let arguments = [
        "why",
        "http://a.example/c",
        "-H",
        "authorization: x",
        "--response",
        "cache-control: max-age=9",
    ];
    let (_, text, _) = caje(&node, &arguments).await;
    assert!(
        text.contains("RFC 9111 §3.5") && text.contains("store_authorized"),
        "{text}"
    );
}

#[tokio::test]
async fn purges_and_what_asks_first() {
    let (_origin, node) = filled().await;
    let (code, text, error) = caje(&node, &["purge", "--url", "http://a.example/a"]).await;
    assert!(code == Some(0) && text.contains("done"), "{text}{error}");
    assert!(!node.get("/a").await.head.is_hit());
    let (code, text, _) = caje(&node, &["purge", "--key", "red", "--dry-run"]).await;
    assert!(code == Some(0) && text.contains("dry run"), "{text}");
    assert!(node.get("/b").await.head.is_hit());
    for arguments in [&["purge", "--all"][..], &["clear", "--disk"]] {
        let (code, _, error) = caje(&node, arguments).await;
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains("try: add --yes"), "{error}");
        assert!(node.get("/b").await.head.is_hit());
    }
    let (code, _, error) = caje(&node, &["clear", "--disk", "--yes"]).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(!node.get("/b").await.head.is_hit());
}

#[tokio::test]
async fn a_job_is_followed_to_its_end() {
    let (_origin, node) = filled().await;
    let (code, text, error) = caje(&node, &["storage", "verify"]).await;
    assert!(
        code == Some(0) && text.contains("done") && text.contains("2 of 2"),
        "{text}{error}"
    );
    let (_, text, _) = caje(&node, &["storage", "verify", "-o", "ndjson"]).await;
    let last: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["state"], "done");
    let (code, text, _) = caje(&node, &["drain"]).await;
    assert!(
        code == Some(0) && text.contains("out of rotation"),
        "{text}"
    );
    let (code, _, error) = caje(&node, &["healthcheck"]).await;
    assert!(
        code == Some(1) && error.contains("takes no traffic: draining"),
        "{error}"
    );
    assert_eq!(caje(&node, &["drain", "--undo"]).await.0, Some(0));
}

/// What, why, and what to try; and a code that a script can act on.
#[tokio::test]
async fn how_it_fails() {
    let (_origin, node) = filled().await;
    let endpoint = format!("http://{}", node.inner().admin_address());
    let folder = caje_tests::Folder::new();
    let bad = folder.join("bad.toml");
    std::fs::write(&bad, "[limits]\nmax_ury = '8KiB'\n").expect("write a file");
    let bad = bad.display().to_string();
    let check = async |endpoint: &str, token: &str, arguments: &[&str], expected: i32| {
        let (code, text, error) = run(endpoint, token, arguments).await;
        assert_eq!(code, Some(expected), "{arguments:?}\n{text}{error}");
        text + &error
    };
    for (endpoint, token, arguments, code) in [
        ("http://127.0.0.1:1", "x", &["status"][..], 1),
        ("https://a", "x", &["status"], 2),
        (&endpoint, "", &["status"], 1),
        (&endpoint, "caje_wrong", &["status"], 1),
        (&endpoint, "a b", &["status"], 2),
        (&endpoint, TOKEN, &["nodes", "--node", "other"], 4),
        (&endpoint, TOKEN, &["jobs", "show", "none"], 4),
        (&endpoint, TOKEN, &["populate", "--prefix", "/a"], 2),
        (&endpoint, TOKEN, &["jobs", "resume", "none"], 4),
        (&endpoint, TOKEN, &["inspect", "nonsense"], 2),
        (&endpoint, TOKEN, &["config", "reload"], 1),
    ] {
        let text = check(endpoint, token, arguments, code).await;
        assert!(
            text.contains("error: ") && text.contains("\ntry: "),
            "{text}"
        );
    }
    check(&endpoint, TOKEN, &["inspect", "http://a.example/none"], 4).await;
    let text = check(&endpoint, TOKEN, &["config", "validate", &bad], 2).await;
    assert!(text.contains("did you mean `max_uri`?"), "{text}");
    check(&endpoint, TOKEN, &["nonsense"], 2).await;
}

/// A token is printed once, with the settings that let it in; they do.
#[tokio::test]
async fn a_new_token_lets_in() {
    let (code, text, _) = Program::run(&["token", "new", "--name", "ci", "--scope", "read"]).await;
    assert_eq!(code, Some(0));
    let (token, settings) = text.split_once("\n\n").expect("a token and its settings");
    assert!(
        token.starts_with("caje_") && token.len() == 69 && !settings.contains(token),
        "{text}"
    );
    let origin = Origin::start().await;
    let folder = caje_tests::Folder::new();
    let file = folder.join("caje.toml");
    let text = format!(
        "[node]\nlisten = \"127.0.0.1:0\"\n[store]\ndir = \"{}\"\nsize = \"64MiB\"\nmemory = \"16MiB\"\n\
         [log]\naccess = \"off\"\n[[origin]]\nname = \"main\"\nurl = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{settings}",
        folder.join("store").display(),
        origin.url()
    );
    std::fs::write(&file, text).expect("write a file");
    let mut program = Program::start(&["run", "--config", &file.display().to_string()]).await;
    let endpoint = format!("http://{}", program.admin_address());
    let (code, text, error) = run(&endpoint, token, &["status"]).await;
    assert!(code == Some(0) && text.starts_with("ok"), "{text}{error}");
    let (code, _, error) = run(&endpoint, token, &["config", "reload"]).await;
    assert!(code == Some(1) && error.contains("admin"), "{error}");
    program.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(program.ended().await, Some(0));
}

/// A region's sums, the last while, and what is asked of others by a flag of its own.
#[tokio::test]
async fn counters_by_region_and_time() {
    let (_origin, node) = filled().await;
    let (code, text, error) = caje(&node, &["stats", "-1", "--by", "region", "-j"]).await;
    assert_eq!(code, Some(0), "{error}");
    let sums: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let region = &sums["regions"][0];
    assert_eq!(
        (&region["region"], &region["nodes"], &region["requests"]),
        (&"-".into(), &1.into(), &2.into())
    );
    assert!(region.get("node").is_none(), "{text}");
    let (code, text, _) = caje(&node, &["stats", "--since", "1h"]).await;
    assert!(code == Some(0) && text.contains("requests"), "{text}");
    for wrong in ["2d", "x", "0s"] {
        let (code, _, error) = caje(&node, &["stats", "--since", wrong]).await;
        assert!(code == Some(2) && error.contains("--since"), "{error}");
    }
    let history: serde_json::Value =
        crate::api::told(&node, "GET", "/_caje/v1/stats/history", "").await;
    assert_eq!(history["nodes"][0]["node"], "test");
}

/// What is off is not asked, whoever wants something of it; a check asks all the same.
#[tokio::test]
async fn an_origin_is_switched_off_and_on() {
    let (origin, node) = filled().await;
    let (code, text, error) = caje(&node, &["origins", "check", "-j"]).await;
    assert_eq!(code, Some(0), "{text}{error}");
    let checks: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let name = checks["nodes"][0]["origin"]
        .as_str()
        .expect("a name")
        .to_owned();
    assert!(checks["nodes"][0]["status"].is_u64(), "{text}");
    let (code, text, error) = caje(&node, &["origins", "disable", &name]).await;
    assert!(code == Some(0) && text.contains(" off "), "{text}{error}");
    let before = origin.requests_total();
    let got = node.get("/new").await;
    assert_eq!(got.status(), 502, "{}", got.head.text);
    assert!(
        got.head.cache_status().contains("destination_unavailable"),
        "{}",
        got.head.text
    );
    assert_eq!(node.post("/new").await.status(), 502);
    assert!(node.get("/a").await.head.is_hit());
    assert_eq!(origin.requests_total(), before);
    assert_eq!(caje(&node, &["origins", "check", &name]).await.0, Some(0));
    let (code, text, _) = caje(&node, &["origins", "enable", &name]).await;
    assert!(code == Some(0) && text.contains(" on "), "{text}");
    let _ = origin.get("/new").body("new");
    node.get("/new").await.says("new");
    let (code, _, error) = caje(&node, &["origins", "disable", "nobody"]).await;
    assert!(
        code == Some(4) && error.contains("try: take one of: "),
        "{error}"
    );
    let closed = Origin::start().await;
    let node = Node::with(&closed, |config| {
        with_tokens(config);
        // Nobody listens there: a port that is not for everybody.
        config.origins[0].url.port = 1;
    })
    .await;
    let (code, text, _) = caje(&node, &["origins", "check"]).await;
    assert!(code == Some(1) && text.contains("refused"), "{text}");
}

/// Settings: what a file would change, what to begin with, and that it is taken.
#[tokio::test]
async fn settings_are_compared() {
    let (_origin, node) = filled().await;
    let folder = caje_tests::Folder::new();
    let file = folder.join("caje.toml");
    let path = file.display().to_string();
    let (code, text, error) = caje(&node, &["config", "show", "--effective"]).await;
    assert_eq!(code, Some(0), "{error}");
    // Tokens are shown without what lets them in.
    let mut parts = text.split("\n[");
    let mut same = parts.next().expect("a head").to_owned();
    for part in parts.filter(|part| !part.starts_with("[admin.token]")) {
        same += &format!("\n[{part}");
    }
    let changes = async |text: &str| {
        std::fs::write(&file, text).expect("write a file");
        let (code, text, error) = caje(&node, &["config", "diff", &path, "-j"]).await;
        assert_eq!(code, Some(0), "{error}");
        let diff: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let changes = diff["nodes"][0]["changes"]
            .as_array()
            .expect("changes")
            .clone();
        let is_token = |change: &serde_json::Value| {
            let key = change["key"].as_str().unwrap_or_default();
            key.starts_with("admin.token.") && change["then"].is_null()
        };
        changes
            .into_iter()
            .filter(|change| !is_token(change))
            .collect::<Vec<_>>()
    };
    assert_eq!(changes(&same).await, Vec::<serde_json::Value>::new());
    let other = same.replace("name = \"test\"", "name = \"other\"");
    let changed = changes(&other).await;
    assert_eq!(
        (
            changed.len(),
            &changed[0]["key"],
            &changed[0]["now"],
            &changed[0]["then"]
        ),
        (1, &"node.name".into(), &"test".into(), &"other".into()),
        "{changed:?}"
    );
    let (code, text, error) = caje(&node, &["config", "diff", &path]).await;
    assert!(
        code == Some(0) && text.contains("IN THE FILE"),
        "{text}{error}"
    );
    std::fs::write(&file, "[store]\nsise = '1GiB'\n").expect("write a file");
    let (code, _, error) = caje(&node, &["config", "diff", &path]).await;
    assert!(
        code == Some(2) && error.contains("did you mean `size`?"),
        "{error}"
    );
    // Without a file it is the node's own, of which there is none here.
    let (code, _, error) = caje(&node, &["config", "diff"]).await;
    assert!(
        code == Some(1) && error.contains("try: start it with"),
        "{error}"
    );
    let (code, text, _) = run("nonsense", "", &["config", "init"]).await;
    assert_eq!(code, Some(0));
    std::fs::write(&file, text).expect("write a file");
    let (code, text, error) = caje(&node, &["config", "validate", &path]).await;
    assert_eq!(code, Some(0), "{text}{error}");
}

/// All that a node tells of itself, and nobody's secret or URL among it.
#[tokio::test]
async fn a_support_dump_has_all_and_no_secrets() {
    let (_origin, node) = filled().await;
    let (code, text, error) = caje(&node, &["support-dump"]).await;
    assert_eq!(code, Some(0), "{error}");
    let dump: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let own = &dump["nodes"][0];
    for part in [
        "info", "stats", "settings", "origins", "storage", "doctor", "jobs", "metrics",
    ] {
        assert!(own.get(part).is_some_and(|part| !part.is_null()), "{part}");
    }
    assert!(!text.contains("a.example"), "{text}");
    // Tokens are looked for by what runs the command; their hashes:
    let hash = caje_node::config::TokenHash::of(TOKEN).to_string();
    assert!(!text.contains(&hash), "{text}");
}

/// URLs of a file, more than one request takes; asked first, as all that is about many.
#[tokio::test]
async fn many_urls_are_purged_in_several_requests() {
    let (_origin, node) = filled().await;
    let folder = caje_tests::Folder::new();
    let file = folder.join("urls");
    let mut text = "# what is gone\n".to_owned();
    for number in 0..12_000 {
        text += &format!("http://a.example/gone/{number}\n");
    }
    text += "http://a.example/a\n";
    std::fs::write(&file, text).expect("write a file");
    let path = file.display().to_string();
    let (code, text, error) =
        caje(&node, &["purge", "--wait", "--file", &path, "--key", "red"]).await;
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(!node.get("/a").await.head.is_hit() && !node.get("/b").await.head.is_hit());
}

#[tokio::test]
async fn a_node_by_its_place_and_what_goes_with_what() {
    let (_origin, node) = filled().await;
    let (code, text, error) = caje(&node, &["drain", "test"]).await;
    assert!(
        code == Some(0) && text.contains("out of rotation"),
        "{text}{error}"
    );
    let (code, text, _) = caje(&node, &["drain", "test", "--undo"]).await;
    assert!(code == Some(0) && text.contains("in rotation"), "{text}");
    for (arguments, expected) in [
        (&["drain", "nobody"][..], 4),
        (&["drain", "test", "--node", "test"], 2),
        (
            &["origins", "disable", "main", "--all", "--node", "test"],
            2,
        ),
        (&["why", "http://a.example/a", "--dry-run", "--live"], 2),
        (&["clear", "--manifest", "--node", "test", "--yes"], 2),
        (&["populate", "--rate", "fast"], 2),
        (&["populate", "--concurrency", "0"], 2),
        (&["coverage", "--by", "moon"], 2),
    ] {
        let (code, _, error) = caje(&node, arguments).await;
        assert_eq!(code, Some(expected), "{arguments:?}\n{error}");
    }
    let (code, text, error) = caje(&node, &["why", "http://a.example/a", "--dry-run"]).await;
    assert!(code == Some(0) && text.contains("cached"), "{error}");
    let (code, text, error) = caje(&node, &["storage", "verify", "--repair"]).await;
    assert!(
        code == Some(0) && text.contains("populate-"),
        "{text}{error}"
    );
}
