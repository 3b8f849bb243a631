//! Real LiteFS, for plays of clusters.
//!
//! ```ignore
//! let Ok(mut nodes) = LiteFs::cluster(3) else { return };
//! let (primary, replicas) = nodes.split_first_mut().unwrap();
//! ```
//!
//! A play that holds a HALT lock has a [`Hand`] do it: this process starts others, and each start would
//! release the lock.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litefs::{Event, Events, Position, Role, Stopper};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::consul::Consul;

/// How long anything may take: longer than elsewhere, as these plays write to a disk that all others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A session that is handed over has expired then, and somebody else is elected.
const HANDED_OVER: Duration = Duration::from_secs(5);

#[path = "../../litefs/examples/halt_stress/node.rs"]
mod node;

pub use node::LiteFs;

/// There is no LiteFS on this machine. The play that met it has been written down as skipped.
#[derive(Debug)]
pub struct Skip;

impl LiteFs {
    /// Starts `count` nodes, the first of which is the primary for as long as it lives, and waits until all
    /// are ready. They end when they are dropped.
    ///
    /// # Errors
    /// [`Skip`], which ends the play: `let Ok(nodes) = LiteFs::cluster(3) else { return };`
    ///
    /// # Panics
    /// When there is a LiteFS, and it does not start.
    pub fn cluster(count: usize) -> Result<Vec<LiteFs>, Skip> {
        Ok(LiteFs::start_cluster(&LiteFs::available()?, count))
    }

    /// The same, whose replicas reach the primary through a [`Wire`].
    ///
    /// # Errors
    /// [`Skip`].
    pub fn cluster_on_a_wire(count: usize) -> Result<(Vec<LiteFs>, Wire), Skip> {
        let mut wire = None;
        let nodes = LiteFs::start_cluster_through(&LiteFs::available()?, count, |primary| {
            let wire = wire.insert(Wire::to(primary));
            wire.addr.to_string()
        });
        Ok((nodes, wire.expect("a wire")))
    }

    /// Starts `count` nodes that agree on a primary by this Consul, the first of them to begin with. A session ends two
    /// seconds after the last word of its owner, where LiteFS's own setting makes it twenty; `CAJE_CONSUL_TTL` is half of
    /// that.
    ///
    /// # Errors
    /// [`Skip`].
    pub fn elected_cluster(count: usize, consul: &Consul) -> Result<Vec<LiteFs>, Skip> {
        let binary = LiteFs::available()?;
        let url = consul.url();
        let seconds = env::var("CAJE_CONSUL_TTL").ok();
        let seconds = seconds.map_or(1, |text| text.parse().expect("a number"));
        let (time_to_live, pause) = (Duration::from_secs(seconds), Duration::from_secs(1));
        Ok(LiteFs::start_elected_cluster(
            &binary,
            count,
            &url,
            time_to_live,
            pause,
        ))
    }

    /// Asks its primary to hand over to it, and waits until it is primary.
    ///
    /// # Errors
    /// What LiteFS has answered.
    pub fn promote(&self) -> Result<(), String> {
        let addr = self.http_addr();
        let asked = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(addr)?;
            write!(
                stream,
                "POST /promote HTTP/1.1\r\nhost: {addr}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = asked().map_err(|error| error.to_string())?;
        if !answer.starts_with("HTTP/1.1 200 ") {
            return Err(answer);
        }
        let until = Instant::now() + HANDED_OVER;
        while !self.is_primary() {
            if Instant::now() >= until {
                return Err("what it was handed has expired".to_owned());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Whether it says that it is the primary.
    pub fn is_primary(&self) -> bool {
        litefs::info(self.http_addr()).is_ok_and(|info| info.role == Role::Primary)
    }

    /// Where LiteFS is: `CAJE_LITEFS_BIN`, or `litefs` on the path.
    ///
    /// # Errors
    /// [`Skip`], once it is written down for `scripts/test`.
    ///
    /// # Panics
    /// Where LiteFS is there and cannot be used: then the play has failed, and is not skipped.
    pub fn available() -> Result<PathBuf, Skip> {
        let Some(binary) = find() else {
            skipped();
            return Err(Skip);
        };
        let usable = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
        assert!(
            usable && on_path("fusermount3").is_some(),
            "LiteFS is at {}, and needs root, /dev/fuse and fusermount3 (Debian: fuse3)",
            binary.display()
        );
        Ok(binary)
    }
}

fn find() -> Option<PathBuf> {
    match env::var_os("CAJE_LITEFS_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "CAJE_LITEFS_BIN is no file: {path:?}");
            Some(path)
        }
        None => on_path("litefs"),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// One line on the real standard error, which the test harness does not capture, and one for `scripts/test`.
fn skipped() {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a play");
    // Each line in one piece: others write at the same time.
    let line = format!("skipped {name}: there is no LiteFS\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("write a line");
    if let Some(path) = env::var_os("CAJE_SKIPPED") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let mut file = file.expect("open CAJE_SKIPPED");
        file.write_all(format!("{name}\n").as_bytes())
            .expect("write a line");
    }
}

/// A process that takes HALT locks and writes, a line for each thing to do: see `litefs_hand.rs`. Dropping it
/// kills it.
pub struct Hand {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Hand {
    /// `binary` is `env!("CARGO_BIN_EXE_litefs_hand")`, which only a test knows.
    pub fn start(binary: &str) -> Hand {
        Hand::start_with(binary, &[])
    }

    /// A process with arguments, which takes orders in the same way.
    pub fn start_with(binary: &str, arguments: &[&str]) -> Hand {
        let mut child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a hand");
        let (tell, answers) = channel();
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Hand {
            orders: child.stdin.take().expect("a pipe"),
            child,
            answers,
        }
    }

    /// Gives an order; [`Hand::answer`] waits for what comes of it.
    pub fn order(&mut self, verb: &str, arguments: &[&dyn std::fmt::Display]) {
        let mut line = verb.to_owned();
        for argument in arguments {
            line += &format!(" {argument}");
        }
        writeln!(self.orders, "{line}").expect("give an order");
    }

    /// What came of the last order, in a word and what belongs to it.
    pub fn answer(&mut self) -> String {
        self.answer_within(PATIENCE)
    }

    /// The same for an order that takes its time.
    pub fn answer_within(&mut self, limit: Duration) -> String {
        let answer = self.answers.recv_timeout(limit);
        answer.unwrap_or_else(|error| panic!("waited {limit:?} for a hand: {error}"))
    }

    /// An order and what comes of it.
    pub fn does(&mut self, verb: &str, arguments: &[&dyn std::fmt::Display]) -> String {
        self.order(verb, arguments);
        self.answer()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("send a signal");
    }

    /// Waits until it sits in `fcntl`, as it does while it waits for a lock.
    pub fn waits_for_a_lock(&self) {
        let inside = format!("{} ", nix::libc::SYS_fcntl);
        let waits = self.until_proc("syscall", PATIENCE, |line| line.starts_with(&inside));
        assert!(waits, "it waits for no lock after {PATIENCE:?}");
    }

    /// Stops it, which interrupts what it waits for, and lets it go on. LiteFS loses an interrupt now and then: it
    /// waits on as if there had been none, and so does the process, which is stopped only when it returns.
    pub fn interrupt(&self) {
        self.signal(Signal::SIGSTOP);
        self.until_proc("stat", Duration::from_secs(1), |line| line.contains(") T "));
        self.signal(Signal::SIGCONT);
    }

    /// Whether something became so of a process, for which the kernel has no event.
    fn until_proc(&self, name: &str, limit: Duration, holds: impl Fn(&str) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let file = format!("/proc/{}/{name}", self.child.id());
        while !fs::read_to_string(&file).is_ok_and(|line| holds(&line)) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        match self.answers.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Disconnected) => self.child.wait().expect("wait for a hand"),
            other => panic!("waited for a hand's end: {other:?}"),
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        // One that waits for a LiteFS that was stopped ends when that does, which may be after this.
        let until = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

/// A way to an address on which answers can be lost.
pub struct Wire {
    addr: SocketAddr,
    state: Arc<WireState>,
}

#[derive(Default)]
struct WireState {
    is_mute: AtomicBool,
    ended: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Wire {
    /// # Panics
    /// When there is no port.
    pub fn to(there: &str) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let state = Arc::<WireState>::default();
        let (shared, there) = (state.clone(), there.to_owned());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if shared.ended.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(far) = TcpStream::connect(&there) {
                    shared.join(&near, &far);
                }
            }
        });
        Wire { addr, state }
    }

    /// From here on answers are lost, and requests arrive.
    pub fn mute(&self) {
        self.state.is_mute.store(true, Ordering::SeqCst);
    }

    /// Cuts all connections; new ones are as they should be.
    pub fn cut(&self) {
        self.state.is_mute.store(false, Ordering::SeqCst);
        for stream in self.state.streams.lock().expect("streams").drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl WireState {
    fn join(self: &Arc<WireState>, near: &TcpStream, far: &TcpStream) {
        let copy = |stream: &TcpStream| stream.try_clone().expect("a stream");
        let mut streams = self.streams.lock().expect("streams");
        streams.extend([copy(near), copy(far)]);
        drop(streams);
        for (mut from, mut to, is_answer) in [
            (copy(near), copy(far), false),
            (copy(far), copy(near), true),
        ] {
            let state = self.clone();
            std::thread::spawn(move || {
                let mut bytes = vec![0; 64 << 10];
                while let Ok(got @ 1..) = from.read(&mut bytes) {
                    let is_lost = is_answer && state.is_mute.load(Ordering::SeqCst);
                    if !is_lost && to.write_all(&bytes[..got]).is_err() {
                        break;
                    }
                }
                for end in [from, to] {
                    let _ = end.shutdown(Shutdown::Both);
                }
            });
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes who accepts.
        let _ = TcpStream::connect(self.addr);
    }
}

/// The events of a node, as they come.
pub struct Watch {
    events: Receiver<Event>,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch, and waits for the first event.
    pub fn on(node: &LiteFs) -> Watch {
        let events = Events::connect(node.http_addr());
        let stopper = events.stopper();
        let (tell, received) = channel();
        let thread = std::thread::spawn(move || {
            for event in events {
                if tell.send(event).is_err() {
                    break;
                }
            }
        });
        let mut watch = Watch {
            events: received,
            stopper,
            thread: Some(thread),
        };
        watch.until("a connection", |event| matches!(event, Event::Init(_)));
        watch
    }

    /// Waits for an event, and passes over others.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if wanted(&event) => return event,
                Ok(_) => {}
                Err(error) => panic!("waited {PATIENCE:?} for {what}: {error}"),
            }
        }
    }

    /// Waits until a database of this node stands there.
    pub fn until_at(&mut self, name: &str, wanted: Position) {
        self.until(&format!("{name} at {wanted}"), |event| {
            matches!(event, Event::Tx { database, position, .. } if database == name && *position == wanted)
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            // It only passes events on.
            let _ = thread.join();
        }
    }
}
