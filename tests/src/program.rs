//! The real binary, as a process of its own.

use std::io::{PipeReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::process::Child;

use crate::client::{Ask, Connection};
use crate::within;

/// Where a program's standard output is read.
type Output = Pin<Box<dyn AsyncRead + Send>>;

/// A running `caje-node`. Dropping it kills it.
pub struct Program {
    child: Child,
    lines: Lines<BufReader<Output>>,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its folder may be removed next: it must not write there any more. Who ended already cannot be killed.
        let _ = self.child.start_kill();
        while let Ok(None) = self.child.try_wait() {
            std::thread::yield_now();
        }
    }
}

impl Program {
    /// Where the binary is. It is built on first use: testing this package does not build another's binaries.
    pub fn path() -> PathBuf {
        static PATH: OnceLock<PathBuf> = OnceLock::new();
        PATH.get_or_init(|| build("caje-node", "caje-node")).clone()
    }

    /// Where the operator's command is.
    pub fn command_path() -> PathBuf {
        static PATH: OnceLock<PathBuf> = OnceLock::new();
        PATH.get_or_init(|| build("caje", "caje")).clone()
    }

    /// Starts it and waits for the lines that say where it listens.
    pub async fn start(arguments: &[&str]) -> Program {
        let path = tokio::task::spawn_blocking(Program::path)
            .await
            .expect("a build");
        Program::launch(tokio::process::Command::new(path).args(arguments)).await
    }

    /// Starts it where no file may grow beyond a mebibyte: to the program, a disk that takes no more.
    pub async fn start_without_room(arguments: &[&str]) -> Program {
        let path = tokio::task::spawn_blocking(Program::path)
            .await
            .expect("a build");
        let script = "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"";
        let mut command = tokio::process::Command::new("/bin/sh");
        command.args(["-c", script]).arg(path).args(arguments);
        Program::launch(&mut command).await
    }

    /// Starts it where nobody reads what it announces, so that it stays there.
    pub async fn start_unheard(arguments: &[&str]) -> Unheard {
        let path = tokio::task::spawn_blocking(Program::path)
            .await
            .expect("a build");
        let (output, mut input) = std::io::pipe().expect("a pipe");
        // Linux gives at least a page.
        let size = fcntl(&input, FcntlArg::F_SETPIPE_SZ(1)).expect("set a pipe's size");
        let mut filling = vec![b' '; size as usize];
        filling[size as usize - 1] = b'\n';
        input.write_all(&filling).expect("fill a pipe");
        let child = Program::spawn(tokio::process::Command::new(path).args(arguments), input);
        Unheard { child, output }
    }

    /// Starts it with its diagnostic log in a file.
    pub async fn start_with_log(arguments: &[&str], log: &std::path::Path) -> Program {
        let path = tokio::task::spawn_blocking(Program::path)
            .await
            .expect("a build");
        let log = std::fs::File::create(log).expect("create a file");
        Program::launch(
            tokio::process::Command::new(path)
                .args(arguments)
                .stderr(log),
        )
        .await
    }

    /// Starts it with no more than these many descriptors; its diagnostic log goes to a file.
    pub async fn start_with_descriptors(
        arguments: &[&str],
        count: u32,
        log: &std::path::Path,
    ) -> Program {
        let path = tokio::task::spawn_blocking(Program::path)
            .await
            .expect("a build");
        let log = std::fs::File::create(log).expect("create a file");
        let script = format!("ulimit -n {count}; exec \"$0\" \"$@\"");
        let mut command = tokio::process::Command::new("/bin/sh");
        command.args(["-c", &script]).arg(path).args(arguments);
        Program::launch(command.stderr(log)).await
    }

    async fn launch(command: &mut tokio::process::Command) -> Program {
        let mut child = Program::spawn(command, Stdio::piped());
        let output = child.stdout.take().expect("a pipe");
        Program::announced(child, Box::pin(output)).await
    }

    fn spawn(command: &mut tokio::process::Command, output: impl Into<Stdio>) -> Child {
        command
            .stdin(Stdio::null())
            .stdout(output)
            .kill_on_drop(true)
            .spawn()
            .expect("start caje-node")
    }

    async fn announced(child: Child, output: Output) -> Program {
        let mut lines = BufReader::new(output).lines();
        let address = announced(&mut lines, "listening http://").await;
        let admin = announced(&mut lines, "admin http://").await;
        Program {
            child,
            lines,
            address,
            admin,
        }
    }

    pub fn get(&self, target: &str) -> Ask {
        Ask::new(self.address, "GET", target)
    }

    pub async fn connect(&self) -> Connection {
        Connection::to(self.address).await
    }

    pub fn admin(&self, target: &str) -> Ask {
        Ask::new(self.admin, "GET", target)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("a running process")
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// kill -9, and waits for the end.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("kill a process");
    }

    /// Waits for it to end by itself; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let status = within("a process to end", self.child.wait()).await;
        status.expect("wait for a process").code()
    }

    /// The next line of its standard output.
    pub async fn line(&mut self) -> String {
        let line = within("a line", self.lines.next_line())
            .await
            .expect("read a line");
        line.expect("a line before the end")
    }

    /// Runs it to its end: exit code, standard output and standard error.
    pub async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
        let path = tokio::task::spawn_blocking(Program::path)
            .await
            .expect("a build");
        let output = tokio::process::Command::new(path)
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        let output = within("a process to end", output)
            .await
            .expect("run caje-node");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }
}

/// A program that has begun, and cannot say where it listens.
pub struct Unheard {
    child: Child,
    output: PipeReader,
}

impl Unheard {
    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Lets it say where it listens.
    pub async fn heard(self) -> Program {
        let output = pipe::Receiver::from_owned_fd(self.output.into()).expect("a pipe");
        Program::announced(self.child, Box::pin(output)).await
    }
}

fn send_signal(child: &Child, signal: Signal) {
    let id = child.id().expect("a running process");
    kill(Pid::from_raw(id as i32), signal).expect("send a signal");
}

async fn announced(lines: &mut Lines<BufReader<Output>>, what: &str) -> SocketAddr {
    loop {
        let line = within("an announcement", lines.next_line())
            .await
            .expect("read a line");
        let line = line.expect("an announcement before the end");
        if let Some(address) = line.strip_prefix(what) {
            return address.parse().expect("an address");
        }
    }
}

fn build(package: &str, binary: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the path of this test");
    let folder = own
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>")
        .to_owned();
    let target = folder.parent().expect("target/<profile>").to_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    command.args(["build", "--quiet", "--package", package, "--bin", binary]);
    command
        .args(["--manifest-path", manifest])
        .arg("--target-dir")
        .arg(target);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("run cargo");
    assert!(status.success(), "{binary} does not build");
    folder.join(binary)
}
