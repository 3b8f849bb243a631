//! The demo: its tour, on a plain folder and on real LiteFS, and that it leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use caje_tests::{Folder, LiteFs, Program, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::Mutex;

/// Demos prefer the same ports. One that starts a node again wants the port back that the node had, and another demo
/// could have taken it meanwhile.
static STAGE: Mutex<()> = Mutex::const_new(());

/// For a whole tour, on a machine that does much else.
const TOUR_LIMIT: Duration = Duration::from_secs(120);

/// The demo, with its folder for what is temporary below this one.
async fn demo(folder: &Folder, arguments: &[&str]) -> Command {
    let path = tokio::task::spawn_blocking(Program::path)
        .await
        .expect("a build");
    let mut command = Command::new(path);
    command
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Mounts below a folder, and what else is in it.
fn left_behind(folder: &Folder) -> Vec<String> {
    let shown = folder.path().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
    let mounts = mounts.lines().filter(|line| line.contains(&shown));
    let files = fs::read_dir(folder.path()).expect("read a folder");
    let files = files.map(|entry| entry.expect("an entry").path().display().to_string());
    mounts.map(str::to_owned).chain(files).collect()
}

async fn plays_its_tour(arguments: &[&str]) -> String {
    let folder = Folder::new();
    let output = demo(&folder, arguments).await.output();
    let output = tokio::time::timeout(TOUR_LIMIT, output).await;
    let output = output
        .expect("a tour within its time")
        .expect("run the demo");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{shown}\n{errors}");
    assert!(shown.contains("✓ end"), "{shown}");
    assert_eq!(left_behind(&folder), [""; 0]);
    shown
}

#[tokio::test]
async fn the_tour_is_right() {
    let _stage = STAGE.lock().await;
    plays_its_tour(&["--script"]).await;
}

#[tokio::test]
async fn the_tour_is_right_on_litefs() {
    if LiteFs::available().is_err() {
        return;
    }
    let _stage = STAGE.lock().await;
    let shown = plays_its_tour(&["--script", "--litefs"]).await;
    assert!(shown.contains("cdg: primary"), "{shown}");
    assert!(shown.contains("ewr: replica of primary"), "{shown}");
}

/// Each signal that asks for an end takes the mounts away too; so does LiteFS itself if nobody is left to ask.
#[tokio::test]
async fn mounts_go_with_the_demo() {
    if LiteFs::available().is_err() {
        return;
    }
    let _stage = STAGE.lock().await;
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGKILL,
    ] {
        let folder = Folder::new();
        let mut child = demo(&folder, &["--litefs"])
            .await
            .spawn()
            .expect("start the demo");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let started = async {
            while let Some(line) = lines.next_line().await.expect("read a line") {
                if line.contains("Ctrl-C ends everything") {
                    return;
                }
            }
            panic!("the demo ended");
        };
        within("the demo's start", started).await;
        let mounted = left_behind(&folder);
        assert_eq!(mounted.len(), 3 + 1, "{mounted:?}");
        let id = child.id().expect("a running demo");
        kill(Pid::from_raw(id as i32), signal).expect("send a signal");
        let status = within("the demo's end", child.wait()).await;
        let code = status.expect("wait for the demo").code();
        if signal == Signal::SIGKILL {
            gone(&folder).await;
        } else {
            assert_eq!(code, Some(0), "{signal}");
            assert_eq!(left_behind(&folder), [""; 0], "{signal}");
        }
    }
}

/// Waits until nothing is mounted below a folder.
async fn gone(folder: &Folder) {
    let shown = folder.path().display().to_string();
    let mounts = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
        mounts.lines().filter(|line| line.contains(&shown)).count()
    };
    caje_tests::until(|| format!("{} mounts to go", mounts()), || mounts() == 0).await;
}

/// Nothing is started, and each thing that is missing has its line.
#[tokio::test]
async fn what_litefs_needs_is_said() {
    let folder = Folder::new();
    let refused = async |variable: &str, value: &Path| {
        let mut command = demo(&folder, &["--litefs"]).await;
        let output = command.env_remove("CAJE_LITEFS_BIN").env(variable, value);
        let output = within("the demo", output.output()).await;
        let output = output.expect("run the demo");
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).expect("text")
    };
    let error = refused("PATH", folder.path()).await;
    for line in [
        "LiteFS: there is no `litefs` on the path; try: https://",
        "fusermount3: not on the path; try: apt-get install fuse3",
    ] {
        assert!(error.contains(line), "{error}");
    }
    let error = refused("CAJE_LITEFS_BIN", &folder.join("none")).await;
    assert!(error.contains("CAJE_LITEFS_BIN is no file"), "{error}");
    assert_eq!(left_behind(&folder), [""; 0]);
}
