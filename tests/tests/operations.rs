//! What an operator does and sees: metrics, health, the access log, reloads, draining, the command line.

use std::time::Duration;

use caje_node::config::{AccessFormat, OriginUrl};
use caje_node::telemetry::{Label, TimeoutPhase};
use caje_tests::{
    CANARY, Connection, End, Folder, Http2, Node, Origin, Program, RawHttp2, settings, until,
};
use nix::sys::signal::Signal;

const SIZE: u64 = 300_000;

#[tokio::test]
async fn health_and_readiness() {
    let origin = Origin::start().await;
    let node = Node::start(&origin).await;
    assert!(
        node.admin("/_caje/healthz")
            .await
            .expect(200)
            .text()
            .starts_with("ok")
    );
    let ready = node.admin("/_caje/readyz").await.expect(200).text();
    assert!(
        ready.starts_with("ready") && ready.contains("disk: ok"),
        "{ready}"
    );
    node.admin("/nothing").await.expect(404);
    // None of it on the clients' listener: what is not reserved is the origin's there.
    origin.prefix("/").body("the origin's");
    node.get("/metrics").await.says("the origin's");
    for target in ["/_caje/healthz", "/_caje/readyz"] {
        node.get(target).await.expect(404);
    }
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let origin = Origin::start().await;
    origin.get("/a").body("hello").cache_control("max-age=60");
    let node = Node::start(&origin).await;
    node.get("/a").await.says("hello");
    node.at_rest().await;
    for _ in 0..3 {
        node.get("/a").await.says("hello");
    }
    node.answered(4).await;
    let got = node.admin("/metrics").await.expect(200);
    assert!(
        got.head
            .get("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4"))
    );
    for (series, value) in [
        ("caje_requests_total{class=\"2xx\",cache=\"miss\"}", 1.0),
        ("caje_requests_total{class=\"2xx\",cache=\"hit\"}", 3.0),
        ("caje_fills_started_total", 1.0),
        ("caje_fills_completed_total", 1.0),
        ("caje_origin_connections_opened_total", 1.0),
        ("caje_store_objects", 1.0),
        ("caje_node_state{state=\"serving\"}", 1.0),
        ("caje_disk_state{state=\"ok\"}", 1.0),
    ] {
        assert_eq!(node.metric(series).await, value, "{series}");
    }
    assert!(node.metric("caje_client_connections_accepted_total").await >= 4.0);
    assert!(node.metric("caje_response_bytes_total").await >= 20.0);
    assert!(
        node.metric("caje_origin_requests_total{origin=\"origin\",outcome=\"2xx\"}")
            .await
            >= 1.0
    );
    assert!(
        node.metric("caje_origin_response_bytes_total{origin=\"origin\"}")
            .await
            >= 5.0
    );
    assert_eq!(
        node.metric("caje_time_to_first_byte_seconds_count{cache=\"hit\"}")
            .await,
        3.0
    );
    // Each family has its sentence, and no client can make a series.
    for family in node.metrics().families() {
        assert!(
            got.text().contains(&format!("# HELP {} ", family.name)),
            "{}",
            family.name
        );
    }
    node.get(&format!("/{CANARY}"))
        .host(CANARY)
        .header("user-agent", CANARY)
        .await
        .expect(404);
    assert!(
        !node
            .admin("/metrics")
            .await
            .expect(200)
            .text()
            .contains(CANARY)
    );
}

/// A request that joins a body in the middle of its fill counts as joined too.
#[tokio::test]
async fn joining_a_body_under_way_is_counted() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=60")
        .gated_at(1000);
    let node = Node::start(&origin).await;
    let mut first = node.get("/a").open().await;
    first.take(1000).await;
    let second = node.get("/a").open().await;
    assert!(
        second.head.cache_status().contains("collapsed"),
        "{}",
        second.head.text
    );
    node.joined_fills(1).await;
    gate.open();
    first.rest().await;
    second.rest().await.is_whole("/a", SIZE);
}

async fn logged(format: AccessFormat) -> Vec<String> {
    let origin = Origin::start().await;
    origin.get("/a").body("hello").cache_control("max-age=60");
    let folder = Folder::new();
    let path = folder.join("access.log");
    let mut config = settings(&origin, &folder);
    config.log.access = format;
    config.log.path = Some(path.clone());
    config.node.region = Some("lhr".to_owned());
    // Lines of one thread are in order.
    config.node.threads = 1.try_into().expect("one");
    let node = Node::run(config, folder).await;
    node.get("/a")
        .header("user-agent", "test \"quoted\" \u{e9}")
        .header("referer", "http://r/")
        .await
        .says("hello");
    node.at_rest().await;
    node.get("/a").await.says("hello");
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    until(
        || format!("two lines: {}", read()),
        || read().lines().count() >= 2,
    )
    .await;
    read().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_combined_log_has_a_line_for_each_answer() {
    let lines = logged(AccessFormat::Combined).await;
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for line in &lines {
        assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
        assert!(line.contains("\"GET /a HTTP/1.1\" 200 5 "), "{line}");
    }
    assert!(lines[0].contains("\"http://r/\""), "{}", lines[0]);
    assert!(!lines[0].contains("\"test \"quoted"), "{}", lines[0]);
}

#[tokio::test]
async fn the_json_log_has_a_line_for_each_answer() {
    let lines = logged(AccessFormat::Json).await;
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for line in &lines {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
        assert!(
            line.contains("\"request_method\":\"GET\"") && line.contains("\"response_status\":200"),
            "{line}"
        );
        assert!(line.contains("\"lhr\""), "{line}");
    }
    assert!(
        lines[0].contains("miss") && lines[1].contains("hit"),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn a_reload_swaps_rules_under_living_connections() {
    let (one, two) = (Origin::start().await, Origin::start().await);
    one.prefix("/").body("one").cache_control("no-store");
    two.prefix("/").body("two").cache_control("no-store");
    let node = Node::start(&one).await;
    let gate = one
        .get("/held")
        .generated(SIZE)
        .cache_control("no-store")
        .gated_at(10);
    let mut held = node.get("/held").open().await;
    held.take(10).await;
    let mut connection = node.connect().await;
    connection.get("/a").await.says("one");
    let mut config = node.config();
    config.origins[0].url = OriginUrl::parse(&two.url()).expect("a URL");
    config.limits.max_uri_bytes = 50;
    let sections = node.inner().reload(config).expect("reload");
    assert!(sections.is_empty(), "{sections:?}");
    connection.get("/a").await.says("two");
    gate.open();
    let rest = held.rest().await;
    assert_eq!((rest.end, rest.body.len() as u64), (End::Whole, SIZE - 10));
    connection
        .send(node.get(&format!("/{}", "a".repeat(50))).bytes())
        .await;
    connection.answer("GET").await.expect(414);
    assert_eq!(
        node.metric("caje_config_reloads_total{result=\"ok\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let node = Node::start(&origin).await;
    let mut connection = node.connect().await;
    connection.get("/a").await.says("x");
    let mut config = node.config();
    config.origins[0].url = OriginUrl::parse("https://a.example").expect("a URL");
    config.origins[0].tls_ca = Some("/no/such/file".into());
    assert!(node.inner().reload(config).is_err());
    connection.get("/a").await.says("x");
    assert_eq!(
        node.metric("caje_config_reloads_total{result=\"failed\"}")
            .await,
        1.0
    );
}

/// A request that is on its way when the drain begins is answered: the connection is not reset.
#[tokio::test]
async fn a_drain_answers_what_is_on_its_way() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let mut node = Node::start(&origin).await;
    let address = node.address();
    let mut used = node.connect().await;
    used.get("/a").await.says("x");
    let mut silent = node.connect().await;
    node.open_connections(2).await;
    let drained = node.begin_drain();
    let refused = || std::net::TcpStream::connect(address).is_err();
    until(|| "the listener to close".to_owned(), refused).await;
    for connection in [&mut used, &mut silent] {
        let got = connection.get("/b").await.says("x");
        assert_eq!(got.head.get("connection"), Some("close"));
        connection.is_closed().await;
    }
    drained.await.expect("a drain");
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let origin = Origin::start().await;
    let gate = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("max-age=600")
        .gated_at(10);
    origin.get("/idle").body("x");
    let mut node = Node::start(&origin).await;
    let address = node.address();
    let ready = node.admin("/_caje/readyz");
    let mut running = node.get("/a").open().await;
    running.take(10).await;
    let mut idle = node.connect().await;
    idle.get("/idle").await.says("x");
    let drained = node.begin_drain();
    idle.is_closed().await;
    let refused = || std::net::TcpStream::connect(address).is_err();
    until(|| "the listener to close".to_owned(), refused).await;
    assert!(!drained.is_finished());
    // While it drains it says so, where load balancers ask.
    assert!(ready.await.expect(503).text().contains("draining"));
    gate.open();
    let rest = running.rest().await;
    assert_eq!((rest.end, rest.body.len() as u64), (End::Whole, SIZE - 10));
    drained.await.expect("a drain");
    // The body that arrived during the drain was kept.
    let node = Node::launch(node.config()).await.expect("start again");
    let mut connection = caje_tests::Connection::to(node.addresses()[0]).await;
    assert!(
        connection
            .get("/a")
            .await
            .is_whole("/a", SIZE)
            .head
            .is_hit()
    );
    drop(connection);
    tokio::task::spawn_blocking(move || node.drain())
        .await
        .expect("drain");
}

/// What does not end within the bound is ended.
#[tokio::test]
async fn a_drain_is_bounded() {
    let origin = Origin::start().await;
    let _gate = origin.get("/a").generated(SIZE).gated_at(10);
    let mut node = Node::with(&origin, |config| {
        config.limits.drain_timeout = Duration::from_millis(200)
    })
    .await;
    let mut running = node.get("/a").open().await;
    running.take(10).await;
    node.begin_drain().await.expect("a drain");
    assert_eq!(running.rest().await.end, End::Cut);
    // Nothing of it is left: the folder is free.
    let node = Node::launch(node.config()).await.expect("start again");
    tokio::task::spawn_blocking(move || node.drain())
        .await
        .expect("drain");
}

fn file(origin: &Origin, folder: &Folder, more: &str) -> String {
    let text = format!(
        "[node]\nlisten = \"127.0.0.1:0\"\nthreads = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [store]\ndir = \"{}\"\nsize = \"256MiB\"\nmemory = \"16MiB\"\n[log]\naccess = \"off\"\n\
         [[origin]]\nname = \"main\"\nurl = \"{}\"\n{more}",
        folder.join("store").display(),
        origin.url()
    );
    let path = folder.join("caje.toml");
    std::fs::write(&path, text).expect("write a file");
    path.display().to_string()
}

async fn reloads(program: &Program, result: &str) -> f64 {
    let text = program.admin("/metrics").await.expect(200).text();
    let series = format!("caje_config_reloads_total{{result=\"{result}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

async fn reloaded(program: &Program, result: &str, n: f64) {
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    while reloads(program, result).await < n {
        assert!(
            tokio::time::Instant::now() < deadline,
            "no reload that {result}"
        );
    }
}

/// The program: SIGHUP and a changed file reload, a bad file changes nothing, SIGTERM drains.
#[tokio::test]
async fn the_program_reloads_and_drains() {
    let origin = Origin::start().await;
    origin.get("/a").body("x").cache_control("no-store");
    origin
        .get("/b")
        .body("set")
        .header("set-cookie", "a=b")
        .cache_control("max-age=60");
    let folder = Folder::new();
    let path = file(&origin, &folder, "");
    let mut program = Program::start(&["run", "--config", &path]).await;
    program.get("/a").await.says("x");
    program.get("/b").await.says("set");
    assert!(!program.get("/b").await.says("set").head.is_hit());
    // A changed file.
    file(&origin, &folder, "store_set_cookie = true\n");
    reloaded(&program, "ok", 1.0).await;
    program.get("/b").await.says("set");
    assert!(program.get("/b").await.says("set").head.is_hit());
    // A bad one.
    file(&origin, &folder, "store_set_cookies = true\n");
    reloaded(&program, "failed", 1.0).await;
    assert!(program.get("/b").await.says("set").head.is_hit());
    // A signal.
    file(&origin, &folder, "");
    let before = reloads(&program, "ok").await;
    program.signal(Signal::SIGHUP);
    reloaded(&program, "ok", before + 1.0).await;
    // And the end.
    let gate = origin.get("/c").generated(SIZE).gated_at(10);
    let mut running = program.get("/c").open().await;
    running.take(10).await;
    program.signal(Signal::SIGTERM);
    gate.open();
    let rest = running.rest().await;
    assert_eq!((rest.end, rest.body.len() as u64), (End::Whole, SIZE - 10));
    assert_eq!(program.ended().await, Some(0));
}

/// A change of the file and a signal count from the program's beginning: nothing has to be waited for.
#[tokio::test]
async fn a_reload_asked_for_before_the_addresses_are_said_is_done() {
    let origin = Origin::start().await;
    for signalled in [false, true] {
        let folder = Folder::new();
        let path = file(&origin, &folder, "");
        let program = Program::start_unheard(&["run", "--config", &path]).await;
        // By then it has read its file.
        let index = folder.join("store/index.db");
        until(|| "a store".to_owned(), || index.exists()).await;
        match signalled {
            true => program.signal(Signal::SIGHUP),
            false => assert_eq!(file(&origin, &folder, ""), path),
        }
        let program = program.heard().await;
        reloaded(&program, "ok", 1.0).await;
    }
}

/// A drain that is told again to end cuts what runs, and loses nothing that was stored.
#[tokio::test]
async fn a_second_signal_ends_the_drain() {
    let origin = Origin::start().await;
    origin.get("/a").body("x").cache_control("max-age=600");
    let gate = origin.get("/held").generated(SIZE).gated_at(10);
    let folder = Folder::new();
    let path = file(&origin, &folder, "");
    let mut program = Program::start(&["run", "--config", &path]).await;
    let mut running = program.get("/held").open().await;
    running.take(10).await;
    program.get("/a").await.says("x");
    program.signal(Signal::SIGTERM);
    let deadline = tokio::time::Instant::now() + caje_tests::PATIENCE;
    while program.admin("/_caje/readyz").await.status() != 503 {
        assert!(tokio::time::Instant::now() < deadline, "no drain");
    }
    program.signal(Signal::SIGINT);
    assert_eq!(program.ended().await, Some(0));
    assert_eq!(running.rest().await.end, End::Cut);
    gate.open();
    let program = Program::start(&["run", "--config", &path]).await;
    assert!(program.get("/a").await.says("x").head.is_hit());
}

/// A certificate that can be read when the file is checked, and not when it is taken into use.
#[tokio::test]
async fn a_reload_that_loses_its_certificate_changes_nothing() {
    let origin = Origin::builder().tls(true).start().await;
    let origin = origin.expect("start an origin");
    origin.get("/a").body("x").cache_control("no-store");
    let (folder, log) = (Folder::new(), Folder::new());
    let log = log.join("log");
    let path = file(&origin, &folder, "");
    let good = std::fs::read_to_string(&path).expect("read a file");
    let good = good.replace("[log]", "[log]\nlevel = \"error\"");
    std::fs::write(&path, &good).expect("write a file");
    let mut program = Program::start_with_log(&["run", "--config", &path], &log).await;
    // A pipe is there for its first reader, and gone for the second.
    let pipe = folder.join("ca.pem");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
    let writer = {
        let (pipe, pem) = (pipe.clone(), origin.ca_pem().to_owned());
        std::thread::spawn(move || {
            let opened = std::fs::OpenOptions::new().write(true).open(&pipe);
            std::fs::remove_file(&pipe).expect("remove a pipe");
            let written = std::io::Write::write_all(&mut opened.expect("a reader"), pem.as_bytes());
            written.expect("write a certificate");
        })
    };
    let lost = good
        .replace("\"error\"", "\"info\"")
        .replace(&origin.url(), "https://127.0.0.1:1")
        + &format!("tls_ca = \"{}\"\n", pipe.display());
    // Replaced as a whole: half a file would be another failure.
    let new = folder.join("new.toml");
    std::fs::write(&new, lost).expect("write a file");
    std::fs::rename(&new, &path).expect("rename a file");
    let told = || std::fs::read_to_string(&log).unwrap_or_default();
    until(
        || format!("the file to be refused: {}", told()),
        || told().contains("TLS settings cannot be used"),
    )
    .await;
    writer.join().expect("a writer");
    program.get("/a").await.says("x");
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended().await, Some(0));
    assert!(!told().contains("INFO"), "{}", told());
}

#[tokio::test]
async fn a_bad_file_is_refused_with_its_line() {
    let origin = Origin::start().await;
    let folder = Folder::new();
    let path = file(
        &origin,
        &folder,
        "stale_if_eror = \"1h\"\nread_ahead = \"lots\"\n",
    );
    for command in ["check", "run"] {
        let (code, _, error) = Program::run(&[command, "--config", &path]).await;
        assert_eq!(code, Some(2), "{error}");
        assert!(
            error.contains("stale_if_error"),
            "did it mean that? {error}"
        );
        assert!(
            error.contains("read_ahead") && error.contains("14"),
            "{error}"
        );
    }
    let path = file(&origin, &folder, "");
    assert_eq!(Program::run(&["check", "--config", &path]).await.0, Some(0));
    let (code, _, error) = Program::run(&["run", "--config", "/no/such/file"]).await;
    assert_eq!(code, Some(2), "{error}");
    let (code, _, error) =
        Program::run(&["proxy", "--listen", "127.0.0.1:0", "--origin", "nonsense"]).await;
    assert_eq!(code, Some(2), "{error}");
}

/// A second process on the folder ends with a sentence; a port that is taken too.
#[tokio::test]
async fn a_second_process_on_the_folder_is_refused() {
    let origin = Origin::start().await;
    origin.get("/a").body("x");
    let folder = Folder::new();
    let path = file(&origin, &folder, "");
    let program = Program::start(&["run", "--config", &path]).await;
    let (code, _, error) = Program::run(&["run", "--config", &path]).await;
    assert!(code.is_some_and(|code| code != 0), "{error}");
    assert!(error.contains("store"), "{error}");
    program.get("/a").await.says("x");
}

/// Each metric stands in the operator's handbook.
#[test]
fn the_handbook_knows_every_metric() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let text = std::fs::read_to_string(path).expect("read docs/operations.md");
    for family in caje_node::telemetry::Metrics::new().families() {
        assert!(text.contains(family.name), "{} is missing", family.name);
    }
    assert!(!caje_node::telemetry::DiskState::VALUES.is_empty());
}

/// An answer that broke off is logged as one.
#[tokio::test]
async fn the_log_tells_a_cut_answer() {
    let origin = Origin::start().await;
    let _ = origin
        .get("/a")
        .generated(SIZE)
        .cache_control("no-store")
        .lie(caje_tests::Lie::Truncated);
    let folder = Folder::new();
    let path = folder.join("access.log");
    let mut config = settings(&origin, &folder);
    config.log.access = AccessFormat::Json;
    config.log.path = Some(path.clone());
    let node = Node::run(config, folder).await;
    assert_eq!(node.get("/a").await.end, End::Cut);
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    until(|| "a line".to_owned(), || read().lines().count() >= 1).await;
    assert!(read().contains("\"response_complete\":false"), "{}", read());
}

/// What a client writes cannot write lines of its own into the log.
#[tokio::test]
async fn the_log_cannot_be_forged() {
    for format in [AccessFormat::Combined, AccessFormat::Json] {
        let origin = Origin::start().await;
        origin.prefix("/").body("x");
        let folder = Folder::new();
        let path = folder.join("access.log");
        let mut config = settings(&origin, &folder);
        config.log.access = format;
        config.log.path = Some(path.clone());
        let node = Node::run(config, folder).await;
        let agent = "x\t\u{1b}\"\\ \u{85}\u{2028}";
        let got = node.get("/%0a\"'\\").header("user-agent", agent).await;
        assert!(matches!(got.status(), 200 | 400));
        node.get("/second").await.says("x");
        let read = || std::fs::read(&path).unwrap_or_default();
        until(
            || "lines".to_owned(),
            || read().ends_with(b"\n") && String::from_utf8_lossy(&read()).contains("/second"),
        )
        .await;
        let bytes = read();
        assert!(
            bytes.iter().all(|byte| *byte >= b' ' || *byte == b'\n'),
            "{}",
            String::from_utf8_lossy(&bytes)
        );
        let lines = String::from_utf8_lossy(&bytes).lines().count();
        assert!(lines <= 2, "{}", String::from_utf8_lossy(&bytes));
    }
}

/// Each refused request counts under what is wrong with it.
#[tokio::test]
async fn bad_requests_are_counted_by_reason() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::start(&origin).await;
    let chunked = "POST /a HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\nno\r\n";
    for (reason, sent, status) in [
        ("syntax", "GET  /a HTTP/1.1\r\nhost: a.example\r\n\r\n", 400),
        ("host", "GET /a HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        (
            "framing",
            "GET /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: x\r\n\r\n",
            400,
        ),
        (
            "transfer_encoding",
            "GET /a HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: gzip\r\n\r\n",
            501,
        ),
        ("target", "GET * HTTP/1.1\r\nhost: a.example\r\n\r\n", 400),
        (
            "method",
            "CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n",
            501,
        ),
        ("body", chunked, 400),
    ] {
        let mut connection = node.connect().await;
        connection.send(sent).await;
        connection.answer("GET").await.expect(status);
        let series = format!("caje_bad_requests_total{{reason=\"{reason}\"}}");
        let what = format!("{reason} to be counted");
        node.until(&what, |metrics| {
            metrics.render().contains(&format!("{series} 1\n"))
        })
        .await;
    }
}

/// What clients send is counted in bytes, over both versions.
#[tokio::test]
async fn what_clients_send_is_counted() {
    let origin = Origin::start().await;
    origin.prefix("/").body("x");
    let node = Node::start(&origin).await;
    let upload = node.post("/a").body(vec![b'x'; 50_000]);
    let sent = upload.bytes().len() as u64;
    upload.await.says("x");
    let counted = |n: u64| {
        let node = &node;
        async move {
            node.until("bytes", |metrics| metrics.request_bytes.total() >= n)
                .await;
            node.metrics().request_bytes.total()
        }
    };
    assert_eq!(counted(sent).await, sent);
    let mut client = Http2::to(node.address()).await;
    assert_eq!(client.get("/b").await.status(), 200);
    drop(client);
    assert!(counted(sent + 1).await > sent + 50);
}

/// Clients that are too slow count under what they were too slow with; those that leave count too.
#[tokio::test]
async fn clients_that_are_slow_or_leave_are_counted() {
    let origin = Origin::start().await;
    let large = origin.prefix("/large").generated(64 << 20);
    let _ = large.cache_control("no-store");
    origin.any("/a").body("x");
    let short = Duration::from_millis(150);
    let node = Node::with(&origin, |config| {
        config.limits.idle_timeout = short;
        config.limits.header_timeout = short;
        config.limits.write_timeout = short;
    })
    .await;
    let timeouts = |phase, n| {
        let node = &node;
        async move {
            node.until("a timeout to be counted", |metrics| {
                metrics.client_timeouts.get(phase) == n
            })
            .await;
        }
    };
    let gone = |n| {
        let node = &node;
        async move {
            node.until("a client to be counted as gone", |metrics| {
                metrics.clients_gone.total() == n
            })
            .await;
        }
    };
    // Over HTTP/1.1: idle, in its body, in its answer; then leaving in both.
    let mut connection = node.connect().await;
    connection.get("/a").await.says("x");
    connection.is_closed().await;
    timeouts(TimeoutPhase::Idle, 1).await;
    let upload = "POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: 10\r\n\r\nhello";
    let mut connection = node.connect().await;
    connection.send(upload).await;
    connection.answer("POST").await.expect(408);
    timeouts(TimeoutPhase::Body, 1).await;
    let mut connection = Connection::narrow(node.address()).await;
    connection.send(node.get("/large").bytes()).await;
    timeouts(TimeoutPhase::Write, 1).await;
    gone(0).await;
    let mut running = node.get("/large").open().await;
    running.take(1000).await;
    running.leave();
    gone(1).await;
    let mut connection = node.connect().await;
    connection.send(upload).await;
    origin.wait_requests("/a", 3).await;
    connection.reset();
    gone(2).await;
    // Over HTTP/2.
    let upload = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "/a"),
    ];
    let mut raw = RawHttp2::to(node.address()).await;
    raw.headers(1, false, &upload).await;
    while raw.next().await.is_some() {}
    timeouts(TimeoutPhase::Body, 2).await;
    timeouts(TimeoutPhase::Idle, 2).await;
    let get = [
        (":method", "GET"),
        upload[1],
        upload[2],
        (":path", "/large"),
    ];
    let mut raw = RawHttp2::to(node.address()).await;
    raw.headers(1, true, &get).await;
    timeouts(TimeoutPhase::Write, 2).await;
    drop(raw);
    node.open_connections(0).await;
    let gate = origin.get("/held").body("x").gated();
    let mut raw = RawHttp2::to(node.address()).await;
    raw.headers(1, true, &[upload[1], upload[2], get[0], (":path", "/held")])
        .await;
    gate.reached().await;
    drop(raw);
    gone(3).await;
    gate.open();
    assert_eq!(node.metrics().client_timeouts.total(), 6);
}

/// Requests that are refused unread, tunnels, and clients that leave before their answer have lines.
#[tokio::test]
async fn the_log_has_what_was_no_plain_answer() {
    for format in [AccessFormat::Combined, AccessFormat::Json] {
        let origin = Origin::start().await;
        origin.any("/ws").upgrade();
        let gate = origin.any("/held").body("x").gated();
        let folder = Folder::new();
        let path = folder.join("access.log");
        let mut config = settings(&origin, &folder);
        config.log.access = format;
        config.log.path = Some(path.clone());
        config.node.region = Some("lhr".to_owned());
        config.limits.header_timeout = Duration::from_millis(150);
        config.limits.max_header_bytes = 2000;
        config.limits.max_uri_bytes = 100;
        let node = Node::run(config, folder).await;
        // What a line has to hold: as many clients, as many lines.
        let mut lines: Vec<Vec<String>> = Vec::new();
        let is_json = format == AccessFormat::Json;
        let large = format!("GET /b HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(3000));
        let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(200));
        for (sent, status, detail) in [
            ("GET /secret HTTP/1.1\r\n\r\n", 400, "host"),
            ("nonsense\r\n\r\n", 400, "syntax"),
            (
                "GET /secret HTTP/1.1\r\nhost: a\r\n",
                408,
                "http_request_timeout",
            ),
            (long.as_str(), 414, "uri_too_long"),
            (large.as_str(), 431, "headers_too_large"),
        ] {
            let mut connection = node.connect().await;
            connection.send(sent).await;
            let got = connection.answer("GET").await.expect(status);
            assert!(
                got.head
                    .cache_status()
                    .ends_with(&format!("; detail={detail}")),
                "{}",
                got.head.text
            );
            let length = got.body.len();
            lines.push(match is_json {
                true => vec![
                    format!("\"response_status\":{status},\"response_body_size\":{length},"),
                    format!("detail={detail}"),
                    "\"client_ip\":\"127.0.0.1\"".to_owned(),
                ],
                false => vec![
                    format!("] \"-\" {status} {length} "),
                    format!("detail={detail}"),
                    "127.0.0.1 - - [".to_owned(),
                ],
            });
        }
        let mut connection = node.connect().await;
        connection
            .send("GET /ws HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        assert_eq!(connection.next_head().await.expect("a head").status, 101);
        connection.send("hello").await;
        assert_eq!(connection.take(5).await, "hello");
        connection.finish().await;
        connection.is_closed().await;
        lines.push(match is_json {
            true => vec![
                "\"url\":\"/ws\"".to_owned(),
                "\"response_status\":101,\"response_body_size\":5,".to_owned(),
            ],
            false => vec!["\"GET /ws HTTP/1.1\" 101 5 ".to_owned()],
        });
        for (n, method) in [(1, "GET"), (2, "POST")] {
            let mut connection = node.connect().await;
            connection.send(node.ask(method, "/held").bytes()).await;
            origin.wait_requests("/held", n).await;
            connection.reset();
            lines.push(match is_json {
                true => vec![
                    format!(
                        "\"request_method\":\"{method}\",\"host\":\"a.example\",\"url\":\"/held\""
                    ),
                    "\"response_status\":499,\"response_body_size\":0,\"response_complete\":false"
                        .to_owned(),
                ],
                false => vec![format!("\"{method} /held HTTP/1.1\" 499 0 ")],
            });
            node.open_connections(0).await;
        }
        let mut raw = RawHttp2::to(node.address()).await;
        let head = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "b.example"),
            (":path", "/held"),
        ];
        raw.headers(1, true, &head).await;
        origin.wait_requests("/held", 3).await;
        drop(raw);
        node.open_connections(0).await;
        lines.push(match is_json {
            true => vec![
                "\"url\":\"/held\",\"request_protocol\":\"HTTP/2.0\"".to_owned(),
                "\"response_status\":499".to_owned(),
            ],
            false => vec!["\"GET /held HTTP/2.0\" 499 0 ".to_owned()],
        });
        gate.open();
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        until(
            || format!("{} lines: {}", lines.len(), read()),
            || read().lines().count() >= lines.len(),
        )
        .await;
        let text = read();
        assert_eq!(text.lines().count(), lines.len(), "{text}");
        assert!(!text.contains("secret"), "{text}");
        for parts in lines {
            let is_it = |line: &str| parts.iter().all(|part| line.contains(part));
            assert!(text.lines().any(is_it), "{parts:?} in\n{text}");
        }
    }
}
