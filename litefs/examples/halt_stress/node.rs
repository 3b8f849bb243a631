//! Real LiteFS nodes on loopback, each a process with a mount of its own: one primary, the others replicas.
//!
//! Kept true here: whatever way a node goes (dropped, also by a panic), its process has ended and its mount is
//! gone afterwards. If this process is killed, each node ends by itself within a second or two, as LiteFS does when
//! its child ends, and the child waits for this process; what stays behind then is files, and a dead mount if one
//! of its files was open (`umount -l`).

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// For a start, and for an end that was asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A line of LiteFS's log: it is primary, or has all that its primary had.
const READY: &str = "connected to cluster, ready";

/// Another: the mount is there, whatever it shows.
const MOUNTED: &str = "LiteFS mounted to";

/// One LiteFS process and its mount.
#[derive(Debug)]
pub struct LiteFs {
    binary: PathBuf,
    /// With the settings, the data and the mount.
    folder: PathBuf,
    addr: String,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    log: Arc<Log>,
}

/// What LiteFS has written, line by line.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    /// Standard output and standard error.
    ended_streams: u8,
}

impl LiteFs {
    /// Starts `count` nodes and waits until all are ready. The first is the primary, for as long as it lives.
    ///
    /// # Panics
    /// When one does not start, with its log.
    pub fn start_cluster(binary: &Path, count: usize) -> Vec<LiteFs> {
        LiteFs::start_cluster_through(binary, count, str::to_owned)
    }

    /// The same, whose replicas reach the primary at the address that `through` makes of its own.
    pub fn start_cluster_through(
        binary: &Path,
        count: usize,
        through: impl FnOnce(&str) -> String,
    ) -> Vec<LiteFs> {
        let addrs: Vec<String> = (0..count).map(|_| free_addr()).collect();
        let lease = |primary: &str, candidate: bool| {
            format!(
                "type: static\n  hostname: primary\n  advertise-url: \"http://{primary}\"\n  candidate: {candidate}"
            )
        };
        let mut nodes = vec![LiteFs::start(binary, &addrs[0], &lease(&addrs[0], true))];
        let primary = through(&addrs[0]);
        for addr in &addrs[1..] {
            nodes.push(LiteFs::start(binary, addr, &lease(&primary, false)));
        }
        nodes
    }

    /// Nodes `l0`, `l1` and so on that agree on a primary by a Consul at `url`, all of them candidates: `l0` to begin with.
    /// A session ends after twice the `time_to_live` without a word, and who has lost its primary waits for the `pause`.
    pub fn start_elected_cluster(
        binary: &Path,
        count: usize,
        url: &str,
        time_to_live: Duration,
        pause: Duration,
    ) -> Vec<LiteFs> {
        let lease = |number: usize, addr: &str| {
            format!(
                "type: consul\n  hostname: l{number}\n  advertise-url: \"http://{addr}\"\n  \
                 candidate: true\n  reconnect-delay: {}ms\n  demote-delay: {}ms\n  \
                 consul:\n    url: \"{url}\"\n    key: primary\n    ttl: {}ms",
                pause.as_millis(),
                pause.as_millis(),
                time_to_live.as_millis(),
            )
        };
        let addrs = (0..count).map(|number| (number, free_addr()));
        addrs
            .map(|(number, addr)| LiteFs::start(binary, &addr, &lease(number, &addr)))
            .collect()
    }

    /// `lease` is what that section of the settings has.
    fn start(binary: &Path, addr: &str, lease: &str) -> LiteFs {
        let folder = std::env::temp_dir().join(format!("litefs-{}", addr.replace(':', "-")));
        let mut node = LiteFs {
            binary: binary.to_owned(),
            addr: addr.to_owned(),
            folder,
            process: None,
        };
        node.unmount();
        // Of an earlier process that had our id.
        let _ = fs::remove_dir_all(&node.folder);
        fs::create_dir_all(node.mount_dir()).expect("make a folder for a mount");
        let settings = format!(
            "exit-on-error: true\n\
             fuse:\n  dir: {:?}\n\
             exec: \"tail --pid={} -f /dev/null\"\n\
             data:\n  dir: {:?}\n\
             http:\n  addr: \"{addr}\"\n\
             lease:\n  {lease}\n",
            node.mount_dir(),
            std::process::id(),
            node.data_dir(),
        );
        fs::write(node.folder.join("litefs.yml"), settings).expect("write litefs.yml");
        node.spawn();
        node
    }

    /// Where its databases are.
    pub fn mount_dir(&self) -> PathBuf {
        self.folder.join("mount")
    }

    /// A database of this node.
    pub fn database(&self, name: &str) -> PathBuf {
        self.mount_dir().join(name)
    }

    /// Where LiteFS keeps what the mount shows.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Host and port of its HTTP server: an address of its own on loopback.
    pub fn http_addr(&self) -> &str {
        &self.addr
    }

    /// Puts what LiteFS keeps on a disk of its own with so many bytes, and starts it again without what it had.
    pub fn limit_disk(&mut self, bytes: u64) {
        self.kill();
        self.unmount();
        let (data, size) = (self.data_dir(), format!("size={bytes}"));
        fs::create_dir_all(&data).expect("make a folder for a disk");
        mount(
            Some("tmpfs"),
            &data,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .expect("mount a disk");
        self.spawn();
    }

    /// Whether its process has ended by itself.
    pub fn has_ended(&self) -> bool {
        let process = self.process.as_ref();
        process.is_none_or(|process| process.log.lock().ended_streams == 2)
    }

    /// What LiteFS has written since it was last started.
    pub fn log(&self) -> Vec<String> {
        let process = self.process.as_ref();
        process.map_or_else(Vec::new, |process| process.log.lock().lines.clone())
    }

    /// kill -9. The mount stays, and answers nothing, until [`LiteFs::restart`] or the end.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.child.kill();
            process.child.wait().expect("wait for LiteFS");
        }
    }

    /// SIGSTOP: it answers nobody, and its mount blocks.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Takes the mount away below everybody, and leaves LiteFS running: what is then below the path is a plain folder.
    pub fn lose_mount(&self) {
        self.unmount();
    }

    /// kill -9, a new mount, and a new process with the same data and address; waits until it is ready.
    pub fn restart(&mut self) {
        self.kill();
        self.unmount();
        self.spawn();
    }

    /// As [`LiteFs::restart`], but waits for the mount alone, as `skip-sync` would have it: there may be no primary.
    pub fn restart_unsynced(&mut self) {
        self.kill();
        self.unmount();
        self.spawn_until(MOUNTED);
    }

    /// Takes the mount away, also from under open files: what is left is a plain folder.
    pub fn unmount(&self) {
        let mount = self.mount_dir();
        // Several may lie on top of each other.
        while umount2(&mount, MntFlags::MNT_DETACH).is_ok() {}
    }

    /// SIGTERM, and waits for the end: how LiteFS has ended.
    ///
    /// # Panics
    /// When it runs no more, or does not end.
    pub fn shutdown(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let mut process = self.process.take().expect("a running LiteFS");
        if !process.log.ends() {
            let _ = process.child.kill();
            panic!("LiteFS does not end: {}", process.log.text());
        }
        process.child.wait().expect("wait for LiteFS")
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("a running LiteFS");
        kill(Pid::from_raw(process.child.id() as i32), signal).expect("send a signal");
    }

    fn spawn(&mut self) {
        self.spawn_until(READY);
    }

    fn spawn_until(&mut self, line: &str) {
        let mut child = Command::new(&self.binary)
            .args(["mount", "-config"])
            .arg(self.folder.join("litefs.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start LiteFS");
        let log = Arc::<Log>::default();
        log.follow(child.stdout.take().expect("a pipe"));
        log.follow(child.stderr.take().expect("a pipe"));
        let process = self.process.insert(Process { child, log });
        let ready = process.log.comes(line);
        assert!(
            ready,
            "LiteFS at {} does not get ready: {}",
            self.addr,
            process.log.text()
        );
    }
}

impl Drop for LiteFs {
    fn drop(&mut self) {
        self.kill();
        self.unmount();
        // It may be no disk of its own.
        let _ = umount2(&self.data_dir(), MntFlags::MNT_DETACH);
        // What is left behind lies in the system's temporary folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Log>, stream: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                log.lock().lines.push(line);
                log.grown.notify_all();
            }
            log.lock().ended_streams += 1;
            log.grown.notify_all();
        });
    }

    /// Waits until a line contains `what`; not if LiteFS ends first.
    fn comes(&self, what: &str) -> bool {
        let mut found = false;
        self.wait(|state| {
            found = state.lines.iter().any(|line| line.contains(what));
            found || state.ended_streams == 2
        });
        found
    }

    fn ends(&self) -> bool {
        self.wait(|state| state.ended_streams == 2)
    }

    fn wait(&self, mut holds: impl FnMut(&LogState) -> bool) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while !holds(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.grown.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn text(&self) -> String {
        self.lock().lines.join("\n")
    }
}

/// Nobody else's, for as long as this process lives: an address made of its id, on a port that the kernel
/// gives to nobody. So an address stays ours when the process behind it is restarted.
fn free_addr() -> String {
    static USED: AtomicU16 = AtomicU16::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let used = USED.fetch_add(1, Ordering::Relaxed);
    let (number, port) = (used % 254 + 1, 20_202 + used / 254);
    format!("127.{high}.{low}.{number}:{port}")
}
