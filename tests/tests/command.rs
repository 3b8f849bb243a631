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
    assert_eq!(caje(&node, &["healthcheck"]).await.0, Some(0));
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
    assert_eq!(caje(&node, &["healthcheck"]).await.0, Some(1));
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
