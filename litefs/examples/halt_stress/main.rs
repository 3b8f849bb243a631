//! How often LiteFS grants its HALT lock on this machine, and after what wait.
//!
//! ```sh
//! cargo run --release --example halt_stress -- --nodes 3 --seconds 30
//! ```
//!
//! Starts one primary and as many replicas as nodes are asked for. Then 1, 2, … replicas at once write as often
//! as they can, for that many seconds each time: lock, one transaction of one row, unlock. The primary only
//! accepts, as a primary's own lock does nothing. Each writer is a process, which has no children and so keeps
//! its lock.
//!
//! `--one-database` lets all write the same database. That WEDGES LiteFS, sooner or later: see it once, and
//! never do it.

use std::collections::VecDeque;
use std::env;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use rusqlite::Connection;

#[expect(dead_code, reason = "the tests of this workspace use the rest of it")]
mod node;

use node::LiteFs;

/// After the end of a round: a writer may still wait for a lock, and then for a slow commit.
const GRACE: Duration = Duration::from_secs(25);

/// Within which a node must have come to the primary's position when nobody writes any more.
const CATCH_UP: Duration = Duration::from_secs(10);

struct Settings {
    nodes: usize,
    seconds: u64,
    one_database: bool,
    binary: PathBuf,
}

/// One attempt to write, as the writer's process reports it.
enum Attempt {
    Written { wait: Duration, whole: Duration },
    Failed(String),
}

enum Message {
    /// Of a round.
    Attempt(usize, Attempt),
    /// A writer of a round has ended.
    Done(usize),
    Interrupted,
}

fn main() -> ExitCode {
    let mut arguments: VecDeque<String> = env::args().skip(1).collect();
    let outcome = if arguments.front().is_some_and(|first| first == "writer") {
        arguments.pop_front();
        writer(&Vec::from(arguments))
    } else {
        Settings::from_arguments(arguments).and_then(|settings| stress(&settings))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("halt_stress: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Settings {
    fn from_arguments(mut arguments: VecDeque<String>) -> Result<Settings, Box<dyn Error>> {
        const USAGE: &str =
            "usage: halt_stress [--nodes 3] [--seconds 30] [--one-database] [--litefs PATH]";
        let mut settings = Settings {
            nodes: 3,
            seconds: 30,
            one_database: false,
            binary: default_binary(),
        };
        while let Some(argument) = arguments.pop_front() {
            let mut value = || arguments.pop_front().ok_or(USAGE);
            match argument.as_str() {
                "--nodes" => settings.nodes = value()?.parse()?,
                "--seconds" => settings.seconds = value()?.parse()?,
                "--one-database" => settings.one_database = true,
                "--litefs" => settings.binary = value()?.into(),
                _ => return Err(USAGE.into()),
            }
        }
        if !(1..=100).contains(&settings.nodes) || !(1..=3600).contains(&settings.seconds) {
            return Err("between 1 and 100 nodes, and between 1 and 3600 seconds".into());
        }
        Ok(settings)
    }
}

/// What a variable of the environment names that is called `LITEFS_BIN`, or ends so; else `litefs` on the path.
fn default_binary() -> PathBuf {
    let named = env::vars_os().find(|(name, _)| name.to_string_lossy().ends_with("LITEFS_BIN"));
    named.map_or_else(|| "litefs".into(), |(_, path)| path.into())
}

/// All rounds.
fn stress(settings: &Settings) -> Result<(), Box<dyn Error>> {
    // Only a thread of ours hears Ctrl-C, so that the nodes are dropped, and with them their mounts.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let (tell, messages) = channel();
    let interrupted = tell.clone();
    std::thread::spawn(move || {
        // Whoever listened may be through.
        while signals.wait().is_ok() && interrupted.send(Message::Interrupted).is_ok() {}
    });

    let version = Command::new(&settings.binary).arg("version").output();
    let version = version.map_err(|error| {
        let binary = settings.binary.display();
        format!(
            "{binary}: {error}; try: --litefs PATH, or https://github.com/superfly/litefs/releases"
        )
    })?;
    let version = String::from_utf8_lossy(&version.stdout);
    println!("{}, one primary, replicas that write", version.trim());
    if settings.one_database {
        println!("ALL WRITE ONE DATABASE: this wedges LiteFS and is here to show it");
    }
    println!(
        "{:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>12} {:>7} {:>7}",
        "writers",
        "locks",
        "locks/s",
        "wait p50",
        "p90",
        "p99",
        "max",
        "whole p50",
        "failed",
        "wedged"
    );
    for writers in 1..=settings.nodes {
        // Dropped last: who waits for a wedged mount can only be reaped when its LiteFS is gone.
        let mut processes = Writers(Vec::new());
        // New nodes for each round: a wedged one stays wedged.
        let nodes = LiteFs::start_cluster(&settings.binary, writers + 1);
        let mut round = Round::run(settings, &nodes, &mut processes, &tell, &messages)?;
        round.print(writers);
    }
    Ok(())
}

#[derive(Default)]
struct Round {
    /// From the call of `halt` to its return.
    waits: Vec<Duration>,
    /// From the call of `halt` to the return of `release`.
    wholes: Vec<Duration>,
    /// The first attempt of each writer began at the same time, and the last ended here.
    took: Duration,
    failures: Vec<String>,
    /// Writers that did not come to an end, or whose node does not follow the primary any more.
    wedged: usize,
}

impl Round {
    fn run(
        settings: &Settings,
        nodes: &[LiteFs],
        writers: &mut Writers,
        tell: &Sender<Message>,
        messages: &Receiver<Message>,
    ) -> Result<Round, Box<dyn Error>> {
        let begin = Instant::now();
        let (primary, nodes) = nodes.split_first().ok_or("no nodes")?;
        let name = |index: usize| match settings.one_database {
            true => "shared.db".to_owned(),
            false => format!("node-{index}.db"),
        };
        for (index, node) in nodes.iter().enumerate() {
            let database = node.database(&name(index));
            writers.start(nodes.len(), &database, settings.seconds, tell)?;
        }
        let deadline = begin + Duration::from_secs(settings.seconds) + GRACE;
        let mut round = Round::default();
        let mut running = nodes.len();
        while running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match messages.recv_timeout(left) {
                Ok(Message::Attempt(number, attempt)) if number == nodes.len() => match attempt {
                    Attempt::Written { wait, whole } => {
                        round.waits.push(wait);
                        round.wholes.push(whole);
                        round.took = begin.elapsed();
                    }
                    Attempt::Failed(cause) => round.failures.push(cause),
                },
                Ok(Message::Done(number)) if number == nodes.len() => running -= 1,
                // Of wedged writers of an earlier round.
                Ok(Message::Attempt(..) | Message::Done(_)) => {}
                Ok(Message::Interrupted) => return Err("interrupted".into()),
                Err(_) => break,
            }
        }
        let behind = |index: &usize| {
            let name = name(*index);
            let there = litefs::position(primary.database(&name)).ok();
            there != litefs::position(nodes[*index].database(&name)).ok()
        };
        let deadline = Instant::now() + CATCH_UP;
        loop {
            round.wedged = (0..nodes.len()).filter(behind).count().max(running);
            if round.wedged == 0 || Instant::now() > deadline {
                return Ok(round);
            }
            // Positions have no event that tells of standing still.
            if let Ok(Message::Interrupted) = messages.recv_timeout(Duration::from_millis(50)) {
                return Err("interrupted".into());
            }
        }
    }

    fn print(&mut self, writers: usize) {
        self.waits.sort_unstable();
        self.wholes.sort_unstable();
        let milliseconds = |of: &[Duration], part: f64| match of.len() {
            0 => "-".to_owned(),
            count => {
                let at = of[((count - 1) as f64 * part).round() as usize];
                format!("{:.1} ms", at.as_secs_f64() * 1e3)
            }
        };
        println!(
            "{writers:>7} {:>8} {:>8.1} {:>9} {:>9} {:>9} {:>9} {:>12} {:>7} {:>7}",
            self.waits.len(),
            self.waits.len() as f64 / self.took.as_secs_f64().max(1e-3),
            milliseconds(&self.waits, 0.5),
            milliseconds(&self.waits, 0.9),
            milliseconds(&self.waits, 0.99),
            milliseconds(&self.waits, 1.0),
            milliseconds(&self.wholes, 0.5),
            self.failures.len(),
            self.wedged,
        );
        self.failures.sort_unstable();
        for same in self.failures.chunk_by(|one, other| one == other) {
            println!("        {} times: {}", same.len(), same[0]);
        }
    }
}

/// The processes that write. They end with this.
struct Writers(Vec<Child>);

impl Writers {
    fn start(
        &mut self,
        round: usize,
        database: &Path,
        seconds: u64,
        tell: &Sender<Message>,
    ) -> Result<(), Box<dyn Error>> {
        let mut child = Command::new(env::current_exe()?)
            .arg("writer")
            .arg(database)
            .arg(seconds.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
        self.0.push(child);
        let tell = tell.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if tell
                    .send(Message::Attempt(round, Attempt::parse(&line)))
                    .is_err()
                {
                    return;
                }
            }
            // Whoever listened may be through.
            let _ = tell.send(Message::Done(round));
        });
        Ok(())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Most have ended by themselves.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Attempt {
    fn parse(line: &str) -> Attempt {
        let micros = |text: &str| text.parse().ok().map(Duration::from_micros);
        let written = line.strip_prefix("written ").and_then(|rest| {
            let (wait, whole) = rest.split_once(' ')?;
            Some(Attempt::Written {
                wait: micros(wait)?,
                whole: micros(whole)?,
            })
        });
        written.unwrap_or_else(|| Attempt::Failed(line.to_owned()))
    }
}

/// The process of a writer: writes until its time is over, and reports each attempt on a line.
fn writer(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [database, seconds] = arguments else {
        return Err("writer DATABASE SECONDS".into());
    };
    let database = Path::new(database);
    let until = Instant::now() + Duration::from_secs(seconds.parse()?);
    litefs::create_database(database)?;
    let connection = Connection::open(database)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let mut stdout = std::io::stdout().lock();
    while Instant::now() < until {
        match write(&connection, database) {
            Ok((wait, whole)) => {
                writeln!(stdout, "written {} {}", wait.as_micros(), whole.as_micros())?;
            }
            Err(error) => writeln!(stdout, "{}", one_line(error.as_ref()))?,
        }
    }
    Ok(())
}

/// How long the lock took, and then the whole.
fn write(connection: &Connection, database: &Path) -> Result<(Duration, Duration), Box<dyn Error>> {
    let begin = Instant::now();
    let lock = litefs::halt(database)?;
    let wait = lock.waited();
    connection.pragma_update(None, "journal_mode", "TRUNCATE")?;
    connection.execute_batch(
        "BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS written (value TEXT);
         INSERT INTO written VALUES (hex(randomblob(32)));
         COMMIT",
    )?;
    lock.release()?;
    Ok((wait, begin.elapsed()))
}

/// Without what differs each time, so that failures of one kind can be counted.
fn one_line(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<litefs::HaltError>() {
        Some(litefs::HaltError::TimedOut { .. }) => "HALT timed out".to_owned(),
        Some(litefs::HaltError::NoPrimary { .. }) => "HALT refused, without a wait".to_owned(),
        _ => error.to_string().replace('\n', " "),
    }
}
