//! What a deployment is made of: the files agree with the node, and with each other.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use caje_node::config::Config;
use caje_tests::{Ask, Folder, LiteFs, Origin, PATIENCE, Program};
use litefs::Role;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use toml::{Table, Value};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(file: &str) -> String {
    let path = repository().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn table(file: &str) -> Table {
    let parsed = text(file).parse();
    parsed.unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The value at a path of keys; a list stands for its first.
fn at<'t>(table: &'t Table, path: &str) -> &'t Value {
    let mut keys = path.split('/');
    let first = keys.next().and_then(|key| table.get(key));
    let found = keys.fold(first, |value, key| {
        let value = value?;
        value.as_array().map_or(value, |list| &list[0]).get(key)
    });
    found.unwrap_or_else(|| panic!("there is no {path}"))
}

fn string<'t>(table: &'t Table, path: &str) -> &'t str {
    let value = at(table, path).as_str();
    value.unwrap_or_else(|| panic!("{path} is no string"))
}

/// The only value of `key:` in a file of YAML, without its quotes.
fn yaml<'t>(text: &'t str, key: &str) -> &'t str {
    let mut values = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
    let value = values.next().unwrap_or_else(|| panic!("there is no {key}"));
    value.trim().trim_matches('"')
}

/// A file of settings of this repository, as a node reads it.
fn settings(file: &str) -> Config {
    let environment = caje_node::config::Environment::of_process();
    let table = table(file);
    let config = Config::parse(&table.to_string(), Path::new(file), &environment);
    config.unwrap_or_else(|errors| panic!("{errors}"))
}

fn ports(config: &Config) -> (i64, i64) {
    (
        config.node.listen[0].port.into(),
        config.admin.listen.port.into(),
    )
}

/// Seconds of a text such as `60s`.
fn seconds(text: &str) -> Duration {
    let number = text
        .strip_suffix('s')
        .and_then(|number| number.parse().ok());
    Duration::from_secs(number.unwrap_or_else(|| panic!("{text} is no number of seconds")))
}

#[test]
fn every_file_that_the_guide_names_is_there() {
    let guide = text("docs/deploy.md");
    let mut named = 0;
    for link in guide.split("](").skip(1) {
        let link = link.split(')').next().unwrap_or_default();
        if !link.contains("://") {
            let file = link.split('#').next().unwrap_or_default();
            let path = repository().join("docs").join(file);
            assert!(path.exists(), "docs/deploy.md links to {link}");
            named += 1;
        }
    }
    let words = guide.split(|c: char| c.is_whitespace() || "`[]()\"".contains(c));
    for word in words.filter(|word| word.starts_with("deploy/") || word.starts_with("scripts/")) {
        assert!(
            repository().join(word).exists(),
            "docs/deploy.md names {word}"
        );
        named += 1;
    }
    assert!(named > 20, "the guide names {named} files");
    for entry in fs::read_dir(repository().join("deploy")).expect("read deploy") {
        let name = entry.expect("an entry").file_name();
        let name = format!("deploy/{}", name.to_string_lossy());
        assert!(
            guide.contains(&name),
            "docs/deploy.md does not tell of {name}"
        );
    }
}

#[test]
fn fly_toml_agrees_with_the_node() {
    let fly = table("fly.toml");
    let (clients, admin) = ports(&Config::for_doctor());
    assert_eq!(
        at(&fly, "services/internal_port").as_integer(),
        Some(clients)
    );
    assert_eq!(at(&fly, "checks/ready/port").as_integer(), Some(admin));
    assert_eq!(at(&fly, "metrics/port").as_integer(), Some(admin));
    assert_eq!(string(&fly, "checks/ready/path"), "/_caje/readyz");
    // The only way in from outside.
    assert_eq!(at(&fly, "services").as_array().map(Vec::len), Some(1));
    assert_eq!(fly.get("http_service"), None);
    let drain = Config::for_doctor().limits.drain_timeout;
    assert!(seconds(string(&fly, "kill_timeout")) > drain);

    let dockerfile = text(string(&fly, "build/dockerfile"));
    let target = string(&fly, "build/build-target");
    assert!(
        dockerfile.contains(&format!(" AS {target}\n")),
        "no stage {target}"
    );
    let file = string(&fly, "files/guest_path");
    assert_eq!(string(&fly, "env/CAJE_CONFIG"), file);

    let settings_file = string(&fly, "files/local_path");
    assert_eq!(ports(&settings(settings_file)), (clients, admin));
    let litefs = text("deploy/litefs.fly.yml");
    let mount = litefs.lines().skip_while(|line| *line != "fuse:").nth(1);
    let mount = mount.expect("a mount").trim();
    let manifest_dir = table(settings_file);
    let manifest_dir = string(&manifest_dir, "manifest/dir");
    assert_eq!(mount, format!("dir: \"{manifest_dir}\""));
    let volume = string(&fly, "mounts/destination");
    assert!(litefs.contains(&format!("dir: \"{volume}/litefs\"")));
    // Where the node puts its cache on Fly.io, by default.
    let environment = text("node/src/config/environment.rs");
    assert!(environment.contains(&format!("\"{volume}/cache\"")));
}

#[test]
fn all_settings_are_good() {
    let (clients, admin) = ports(&Config::for_doctor());
    for file in ["deploy/caje.fly.toml", "deploy/caje.compose.toml"] {
        assert_eq!(ports(&settings(file)), (clients, admin), "{file}");
    }
    let compose = text("deploy/compose.yml");
    for number in 1..=3 {
        let published =
            format!("\"127.0.0.1:808{number}:{clients}\", \"127.0.0.1:918{number}:{admin}\"");
        assert!(
            compose.contains(&published),
            "compose.yml lacks {published}"
        );
    }
    let drain = Config::for_doctor().limits.drain_timeout;
    assert!(seconds(yaml(&compose, "stop_grace_period")) > drain);
    let dockerfile = text("Dockerfile");
    assert!(dockerfile.contains(&format!("EXPOSE {clients} {admin}\n")));
    // Folders that volumes are mounted on, and that must be the node's own there.
    let manifest = table("deploy/caje.compose.toml");
    for folder in ["/var/cache/caje", string(&manifest, "manifest/dir")] {
        assert!(
            compose.contains(&format!(":{folder}\n")),
            "compose.yml: {folder}"
        );
        let built = folder.strip_prefix("/var").expect("a folder below /var");
        assert!(
            dockerfile.contains(&format!(" /out{built}")),
            "Dockerfile: {folder}"
        );
    }
}

#[test]
fn the_image_is_built_with_the_toolchain_of_the_workspace() {
    let workspace = table("Cargo.toml");
    let version = string(&workspace, "workspace/package/rust-version");
    let dockerfile = text("Dockerfile");
    assert!(dockerfile.contains(&format!("FROM rust:{version}-bookworm AS")));
    for line in dockerfile.lines() {
        let builds = ["cargo build", "cargo chef cook", "cargo install"];
        if builds.iter().any(|command| line.contains(command)) {
            assert!(line.contains(" --locked "), "{line}");
        }
    }
    // The node, and the command that asks it, in each image.
    let copied = "COPY --link --from=builder /out/caje-node /out/caje /usr/local/bin/\n";
    assert_eq!(dockerfile.matches(copied).count(), 2);
    let ignored = text(".dockerignore");
    let members = at(&workspace, "workspace/members")
        .as_array()
        .expect("a list");
    for member in members {
        let member = member.as_str().expect("a folder");
        assert!(
            !ignored.lines().any(|line| line == member),
            "{member} is not in the image"
        );
    }
}

#[test]
fn units_outlast_a_drain_and_stop_at_bad_settings() {
    let drain = Config::for_doctor().limits.drain_timeout;
    for file in ["deploy/caje-node.service", "deploy/caje-litefs.service"] {
        let unit = text(file);
        let value = |key: &str| {
            let found = unit
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("{file} has no {key}"))
        };
        assert!(seconds(value("TimeoutStopSec")) > drain, "{file}");
        assert_eq!(value("RestartPreventExitStatus"), "2", "{file}");
        assert_eq!(value("CacheDirectory"), "caje", "{file}");
    }
}

/// Runs `scripts/deploy-fly` where there are the system's own commands, and flyctl if `folder` has it.
fn deploy_fly(folder: &Folder, arguments: &[&str]) -> Output {
    Command::new(repository().join("scripts/deploy-fly"))
        .args(arguments)
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .output()
        .expect("run scripts/deploy-fly")
}

fn lines_with<'t>(output: &'t str, start: &str) -> Vec<&'t str> {
    output
        .lines()
        .filter(|line| line.starts_with(start))
        .collect()
}

#[test]
fn deploying_to_fly_needs_flyctl_and_good_arguments() {
    let none = Folder::new();
    let refused = |arguments: &[&str]| {
        let output = deploy_fly(&none, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let error = refused(&[]);
    assert!(error.contains("flyctl is not installed"), "{error}");
    assert!(
        error.contains("try: https://fly.io/docs/flyctl/install/"),
        "{error}"
    );
    for (arguments, expected) in [
        (["--regions", "lhr"], "lacks cdg, the primary region"),
        (["--regions", "cdg=0"], "'cdg=0' is no region"),
        (["--regions", "cdg;id"], "'cdg;id' is no region"),
        (["--app", "a b"], "'a b' is no name for an app"),
        (["--volume-size", "big"], "'big' is no number of gigabytes"),
        (["--config", "nowhere.toml"], "there is no file"),
        (["--secrets", "Cargo.toml"], "not every line of"),
        (["--frobnicate", "1"], "there is no option --frobnicate"),
    ] {
        let mut given = arguments.map(str::to_owned);
        if given[1] == "Cargo.toml" {
            given[1] = repository().join("Cargo.toml").display().to_string();
        }
        let error = refused(&given.each_ref().map(String::as_str));
        assert!(error.contains(expected), "{given:?}: {error}");
    }
}

#[test]
fn a_dry_run_prints_what_a_first_deployment_does() {
    let none = Folder::new();
    let secrets = none.join("secrets");
    fs::write(&secrets, "# tokens\nTOKEN=s3cr3t\n").expect("write secrets");
    let secrets = secrets.display().to_string();
    let arguments = [
        "--app",
        "edge",
        "--regions",
        "cdg=2,lhr",
        "--secrets",
        &secrets,
        "--dry-run",
    ];
    let output = deploy_fly(&none, &arguments);
    assert_eq!(output.status.code(), Some(0));
    let output = String::from_utf8(output.stdout).expect("text");
    let size = table("fly.toml");
    let size = string(&size, "mounts/initial_size")
        .trim_end_matches("gb")
        .to_owned();
    let volume = format!(
        "+ flyctl volumes create caje_data --app edge --region cdg --size {size} --count 2 --yes"
    );
    assert_eq!(
        lines_with(&output, "+ "),
        [
            "+ flyctl apps create edge --org personal",
            &volume,
            &volume.replace("cdg", "lhr").replace("count 2", "count 1"),
            "+ flyctl consul attach --app edge",
            "+ flyctl secrets import --stage --app edge  (CAJE_CLUSTER_SECRET, 256 random bits)",
            &format!("+ flyctl secrets import --stage --app edge < {secrets}"),
            "+ flyctl deploy --app edge --config fly.toml --ha=false",
            "+ flyctl scale count 2 --app edge --region cdg --yes",
            "+ flyctl scale count 1 --app edge --region lhr --yes",
        ]
    );
    assert!(!output.contains("s3cr3t"));
}

/// Stands for flyctl: answers questions from the files in its folder, and writes down all else.
const FLYCTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
case "$*" in
  *" --json") cat "$here/$1.json" ;;
  "auth whoami") ;;
  "secrets import "*) cat >"$here/imported" && echo "$*" >>"$here/done" ;;
  *) echo "$*" >>"$here/done" ;;
esac
"#;

#[test]
fn a_second_deployment_makes_what_is_missing_and_destroys_nothing() {
    let folder = Folder::new();
    let flyctl = folder.join("flyctl");
    fs::write(&flyctl, FLYCTL).expect("write flyctl");
    fs::set_permissions(&flyctl, fs::Permissions::from_mode(0o755)).expect("make it a program");
    let answer = |kind: &str, json: &str| {
        fs::write(folder.join(&format!("{kind}.json")), json).expect("write an answer");
    };
    answer(
        "apps",
        r#"[{ "ID": "edge", "Name": "edge", "Organization": { "Slug": "personal" } }]"#,
    );
    answer(
        "secrets",
        r#"[{ "Name": "FLY_CONSUL_URL", "Digest": "a" }]"#,
    );
    answer(
        "volumes",
        r#"[
            { "id": "v1", "name": "caje_data", "state": "created", "region": "cdg" },
            { "id": "v2", "name": "other", "state": "created", "region": "cdg" },
            { "id": "v3", "name": "caje_data", "state": "created", "region": "lhr" }
        ]"#,
    );
    answer(
        "machines",
        r#"[
            { "id": "m1", "state": "started", "region": "cdg", "config": { "env": { "a": "\"region\":\"lhr\"" } } },
            { "id": "m2", "state": "started", "region": "ewr", "config": {} },
            { "id": "m3", "state": "started", "region": "ewr", "config": {} }
        ]"#,
    );
    let output = deploy_fly(&folder, &["--app", "edge", "--regions", "cdg=2,lhr,ewr"]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let done = fs::read_to_string(folder.join("done")).expect("something was done");
    assert_eq!(
        done.lines().collect::<Vec<_>>(),
        [
            "volumes create caje_data --app edge --region cdg --size 20 --count 1 --yes",
            "volumes create caje_data --app edge --region ewr --size 20 --count 1 --yes",
            "secrets import --stage --app edge",
            "deploy --app edge --config fly.toml --ha=false",
            "scale count 2 --app edge --region cdg --yes",
            "scale count 1 --app edge --region lhr --yes",
        ]
    );
    assert!(
        shown.contains("ewr has 2, which is more than asked for; they stay"),
        "{shown}"
    );
    let secret = fs::read_to_string(folder.join("imported")).expect("a secret");
    let digits = secret.trim_end().strip_prefix("CAJE_CLUSTER_SECRET=");
    let digits = digits.expect("the secret's name");
    assert!(digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert!(!shown.contains(digits));

    // It stays what it is.
    answer(
        "secrets",
        r#"[{ "Name": "FLY_CONSUL_URL" }, { "Name": "CAJE_CLUSTER_SECRET" }]"#,
    );
    fs::remove_file(folder.join("imported")).expect("remove a file");
    let output = deploy_fly(&folder, &["--app", "edge", "--regions", "cdg=2,lhr,ewr"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(!folder.join("imported").exists());
}

/// A question that fails is not taken for "there is nothing": nothing is made then.
#[test]
fn a_deployment_ends_at_a_question_without_an_answer() {
    let folder = Folder::new();
    let flyctl = folder.join("flyctl");
    fs::write(&flyctl, FLYCTL).expect("write flyctl");
    fs::set_permissions(&flyctl, fs::Permissions::from_mode(0o755)).expect("make it a program");
    let output = deploy_fly(&folder, &["--app", "edge"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!folder.join("done").exists());
}

/// LiteFS and the node below it, as `deploy/caje-litefs.service` starts them.
struct Host {
    child: Child,
    mount: PathBuf,
    lines: Receiver<String>,
}

impl Host {
    /// With the file for plain hosts, in which only folders and the port are others.
    fn start(
        binary: &Path,
        folder: &Folder,
        [own, primary]: [&str; 2],
        port: u16,
        origin: &str,
    ) -> Host {
        let folder = folder.join(own);
        let (mount, data) = (folder.join("mount"), folder.join("data"));
        fs::create_dir_all(&mount).expect("make a folder for a mount");
        let settings = folder.join("caje.toml");
        let text_of_settings = format!(
            "[node]\nname = '{own}'\nlisten = '127.0.0.1:0'\nthreads = 1\n[admin]\nlisten = '127.0.0.1:0'\n[store]\ndir = {:?}\n\
             [manifest]\nengine = 'litefs'\ndir = {mount:?}\nlitefs = '{own}:{port}'\n\
             [[origin]]\nname = 'a'\nurl = '{origin}'\nrecord = 'all'\n",
            folder.join("cache"),
        );
        fs::write(&settings, text_of_settings).expect("write settings");
        let mut yml = text("deploy/litefs.static.yml");
        for (theirs, ours) in [
            ("\"/litefs\"", format!("{mount:?}")),
            ("\"/var/lib/litefs\"", format!("{data:?}")),
            ("\":20202\"", format!("\"${{CAJE_LITEFS_SELF}}:{port}\"")),
            (":20202\"", format!(":{port}\"")),
            (
                "\"caje-node run",
                format!("\"{} run", Program::path().display()),
            ),
            ("/etc/caje/caje.toml\"", format!("{}\"", settings.display())),
        ] {
            assert_eq!(yml.matches(theirs).count(), 1, "{theirs} in\n{yml}");
            yml = yml.replace(theirs, &ours);
        }
        let path = folder.join("litefs.yml");
        fs::write(&path, yml).expect("write litefs.yml");
        let mut child = Command::new(binary)
            .args(["mount", "-config"])
            .arg(path)
            .env("CAJE_LITEFS_SELF", own)
            .env("CAJE_LITEFS_PRIMARY", primary)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start LiteFS");
        let (tell, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let stderr = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let told = tell.clone();
        std::thread::spawn(move || {
            stdout
                .map_while(Result::ok)
                .try_for_each(|line| told.send(line))
        });
        std::thread::spawn(move || {
            stderr
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(line))
        });
        Host {
            child,
            mount,
            lines,
        }
    }

    /// Waits for a line that has this in it: what follows it there.
    fn says(&self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut before = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(what) => {
                    let (_, rest) = line.split_once(what).unwrap_or_default();
                    return rest.to_owned();
                }
                Ok(line) => before += &format!("{line}\n"),
                Err(error) => panic!("waited for {what}: {error}\n{before}"),
            }
        }
    }

    fn terminate(&self) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // LiteFS takes the node along, which a kill would leave behind.
        self.terminate();
        // One that still waits for its primary logs on and on, and heeds no signal.
        let deadline = Instant::now() + PATIENCE / 4;
        while Instant::now() < deadline && self.lines.recv_timeout(PATIENCE / 4).is_ok() {}
        let _ = self.child.kill();
        let _ = self.child.wait();
        while umount2(&self.mount, MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// A replica serves before its primary is there, and follows it once it is: what it has recorded then arrives.
#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_share_one_litefs_yml() {
    let Ok(binary) = LiteFs::available() else {
        return;
    };
    let origin = Origin::start().await;
    let folder = Folder::new();
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let [one, two] = [1, 2].map(|number| format!("127.{high}.{low}.{number}"));
    let port = 20_301;
    let start = |own: &str| Host::start(&binary, &folder, [own, &one], port, &origin.url());
    let replica = start(&two);
    let address = |text: String| text.parse::<SocketAddr>().expect("an address");
    let clients = address(replica.says("listening http://"));
    let asked = address(replica.says("admin http://"));
    let ready = async |admin| Ask::new(admin, "GET", "/_caje/readyz").await.text();
    let since = Instant::now();
    while ready(asked).await.contains("manifest: being opened") {
        assert!(since.elapsed() < PATIENCE, "the manifest is not opened");
    }
    let page = "/bytes/1000/page";
    let got = Ask::new(clients, "GET", page).await;
    got.is_whole(page, 1000);
    let primary = start(&one);
    let admin = address(primary.says("admin http://"));
    primary.says("stream connected");
    let role = |own: &str| {
        litefs::info(&format!("{own}:{port}"))
            .expect("ask LiteFS")
            .role
    };
    assert_eq!(role(&one), Role::Primary);
    assert_eq!(role(&two), Role::Replica { of: one.clone() });

    // The replica's word of itself, and of the page.
    let series = "caje_manifest_rows_merged_total ";
    let since = Instant::now();
    loop {
        let metrics = Ask::new(admin, "GET", "/metrics").await.text();
        let merged = metrics.lines().find_map(|line| line.strip_prefix(series));
        let merged = merged.and_then(|value| value.parse::<u32>().ok());
        if merged.is_some_and(|merged| merged >= 2) {
            break;
        }
        let patient = since.elapsed() < PATIENCE;
        assert!(
            patient,
            "{merged:?} rows were merged: {}",
            ready(asked).await
        );
    }
    for mut host in [replica, primary] {
        host.terminate();
        host.says("litefs shut down complete");
        assert_eq!(host.child.wait().expect("an end").code(), Some(0));
    }
}
