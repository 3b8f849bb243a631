//! A node's manifest as a process of its own, for plays: does what its standard input says, and answers each line
//! with one.
//!
//! `manifest_hand local DIR DATA NODE` or `manifest_hand litefs MOUNT ADDR DATA NODE`
//!
//! | order | answer |
//! |---|---|
//! | `record PREFIX COUNT` | `done`: so many resources, queued |
//! | `soak SECONDS` | `soaked BATCHES ROWS`: own and shared resources all that time, and batches published in it |
//! | `write PREFIX SECONDS` | `wrote ROWS`: own resources all that time |
//! | `purge TAG` | `recorded NUMBER MILLISECONDS`, once it is durable, or `failed` |
//! | `rows` | `rows COUNT DIGEST`, of the whole merge |
//! | `resources` | `resources COUNT` |
//! | `reach COUNT` | `resources COUNT`, as soon as there are so many; or else `still COUNT` and the status |
//! | `caught-up` | `caught up with COUNT`, as soon as it has, and how many resources there are then |
//! | `outbox` | `outbox ROWS` |
//! | `lost` | `lost ROWS`: of its own that had been published, were found missing, and are published again |
//! | `status` | all of the status, for people |
//! | `hold` | `holding`: has begun a batch of its own under the lock, and written half of it. The next line, whatever it is, has it commit: `let go RESULT` |
//! | `half AUTHOR` | `half COUNT SOUND`: rows of such batches in that database, and what its integrity check says |
//! | `trouble` | `trouble TEXT`, of the status |
//! | `publication AUTHOR` | of `caje_tests::publication`, for another author |
//! | `publication-with-child AUTHOR` | the same, and a child process comes and goes in the middle |
//! | `joined` | `joined`, once the engine knows that others' databases are up to date |
//! | `close` | `done`, and the end |
//!
//! SIGTERM closes the manifest, and ends the process, whatever it does.

use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, Write};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use caje_node::clock::HybridClock;
use caje_node::cluster::{Engine, Freshness, LiteFs, Local};
use caje_node::manifest::{About, Manifest, Purge, Resource, ResourceId, Selector, Settings};
use nix::sys::signal::{SigSet, Signal};
use rusqlite::{Connection, OpenFlags};

/// How long `reach` waits before it says how far it has come.
const REACH: Duration = Duration::from_secs(50);

/// Between two pairs of rows of `soak`: in ten minutes less than `max_rows`.
const SOAK_PAUSE: Duration = Duration::from_millis(20);

/// Of a batch that is half written: more than SQLite keeps in memory.
const HALF_ROWS: u32 = 200;

fn main() -> Result<(), Box<dyn Error>> {
    // Before there is any other thread.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (engine, data, node): (Arc<dyn Engine>, &str, &str) = match arguments[..] {
        ["local", dir, data, node] => (Arc::new(Local::open(Path::new(dir))?), data, node),
        ["litefs", mount, addr, data, node] => {
            (Arc::new(LiteFs::new(Path::new(mount), addr)), data, node)
        }
        _ => return Err("see the head of manifest_hand.rs".into()),
    };
    let clock = Arc::new(HybridClock::new());
    let manifest = match Manifest::open(Settings::new(data, node), engine.clone(), clock) {
        Ok(manifest) => manifest,
        Err(error) => {
            println!("refused {error}");
            return Ok(());
        }
    };
    let closed = manifest.clone();
    thread::spawn(move || {
        signals.wait().expect("wait for a signal");
        closed.close();
        std::process::exit(0);
    });
    println!("ready");
    let mut lines = std::io::stdin().lock().lines();
    while let Some(line) = lines.next() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["record", prefix, count] => {
                for number in 0..count.parse::<u32>()? {
                    manifest.record(resource(&format!("{prefix}{number}")))?;
                }
                "done".to_owned()
            }
            ["soak", seconds] => {
                let end = Instant::now() + Duration::from_secs(seconds.parse()?);
                let before = manifest.status().batches;
                let mut rows = 0;
                while Instant::now() < end {
                    manifest.record(resource(&format!("/soak/{node}/{rows}")))?;
                    manifest.record(resource(&format!("/soak/all/{rows}")))?;
                    rows += 1;
                    let pause = Instant::now() + SOAK_PAUSE;
                    let _ = wait_until(std::future::pending::<()>(), Some(pause));
                }
                format!("soaked {} {rows}", manifest.status().batches - before)
            }
            ["write", prefix, seconds] => {
                let end = Instant::now() + Duration::from_secs(seconds.parse()?);
                let mut rows = 0;
                while Instant::now() < end {
                    manifest.record(resource(&format!("{prefix}{rows}")))?;
                    rows += 1;
                    let pause = Instant::now() + SOAK_PAUSE;
                    let _ = wait_until(std::future::pending::<()>(), Some(pause));
                }
                format!("wrote {rows}")
            }
            ["purge", tag] => {
                let purge = Purge {
                    selector: Selector::Tag {
                        tag: tag.to_owned().into(),
                    },
                    soft: false,
                };
                let since = Instant::now();
                match wait(manifest.record_purge(purge)) {
                    Ok(row) => format!("recorded {} {}", row.number, since.elapsed().as_millis()),
                    Err(_) => "failed".to_owned(),
                }
            }
            ["rows"] => {
                let rows = manifest.reader()?.all_rows()?;
                let mut hasher = DefaultHasher::new();
                for row in &rows {
                    let author = &row.author;
                    (row.kind, &row.key, row.stamp, author, &row.value).hash(&mut hasher);
                }
                format!("rows {} {:016x}", rows.len(), hasher.finish())
            }
            ["resources"] => format!("resources {}", manifest.reader()?.count()?),
            ["reach", count] => {
                let wanted: u64 = count.parse()?;
                let mut watch = manifest.watch();
                let deadline = Instant::now() + REACH;
                loop {
                    watch.mark_unchanged();
                    let count = manifest.reader()?.count()?;
                    if count == wanted {
                        break format!("resources {count}");
                    }
                    if wait_until(watch.changed(), Some(deadline)).is_none() {
                        break format!("still {count}; {:?}", manifest.status());
                    }
                }
            }
            ["caught-up"] => {
                let mut watch = manifest.watch();
                let deadline = Instant::now() + REACH;
                loop {
                    watch.mark_unchanged();
                    if manifest.status().caught_up {
                        break format!("caught up with {}", manifest.reader()?.count()?);
                    }
                    if wait_until(watch.changed(), Some(deadline)).is_none() {
                        break format!("not caught up; {:?}", manifest.status());
                    }
                }
            }
            ["outbox"] => format!("outbox {}", manifest.status().outbox),
            ["lost"] => format!("lost {}", manifest.status().rows_lost),
            ["status"] => format!("{:?}", manifest.status()),
            ["hold"] => {
                let mut wait = || {
                    println!("holding");
                    lines.next();
                };
                let mut committed = Ok(());
                let published = engine.publish(node, &mut |turn| {
                    committed = write_half_and_wait(turn.database(), &mut wait);
                });
                let words = format!("let go {committed:?} {published:?}");
                words.replace('\n', " ")
            }
            ["half", author] => half(&engine.database(author)),
            ["trouble"] => match manifest.status().trouble() {
                Some(trouble) => format!("trouble {trouble}"),
                None => "trouble none".to_owned(),
            },
            ["publication", author] => caje_tests::publication(&*engine, author, || {}),
            ["publication-with-child", author] => caje_tests::publication(&*engine, author, || {
                let status = std::process::Command::new("/bin/true").status();
                assert!(status.expect("run a child").success());
            }),
            ["joined"] => {
                let deadline = Instant::now() + REACH;
                while engine.freshness().ok() == Some(Freshness::Unknown)
                    && Instant::now() < deadline
                {
                    thread::yield_now();
                }
                "joined".to_owned()
            }
            ["close"] => {
                manifest.close();
                "done".to_owned()
            }
            _ => panic!("no such order: {words:?}"),
        };
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
        if words == ["close"] {
            return Ok(());
        }
    }
    Ok(())
}

fn resource(target: &str) -> Resource {
    Resource {
        id: ResourceId {
            cache_key: format!("example.com{target}").into(),
            variant: Vec::new(),
        },
        about: About {
            url: format!("https://example.com{target}"),
            origin: "main".to_owned(),
            ..About::default()
        },
    }
}

/// Begins a transaction, lets what it has written so far reach the file, waits, and commits.
fn write_half_and_wait(database: &Path, wait: &mut dyn FnMut()) -> rusqlite::Result<()> {
    let connection = Connection::open(database)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "TRUNCATE")?;
    connection.pragma_update(None, "cache_size", 2)?;
    connection.execute_batch(
        "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS half (value BLOB); DELETE FROM half",
    )?;
    for _ in 0..HALF_ROWS {
        connection.execute("INSERT INTO half VALUES (randomblob(2000))", [])?;
    }
    wait();
    connection.execute_batch("COMMIT")
}

fn half(database: &Path) -> String {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let asked = Connection::open_with_flags(database, flags).and_then(|database| {
        database.busy_timeout(Duration::from_secs(5))?;
        let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        let is_there = database.table_exists(None, "half")?;
        let count = "SELECT count(*) FROM half";
        let rows = match is_there {
            true => database.query_row(count, [], |row| row.get(0))?,
            false => 0,
        };
        Ok((rows, sound))
    });
    match asked {
        Ok((rows, sound)) => format!("half {rows} {sound}"),
        Err(error) => format!("half unknown {error}"),
    }
}

struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread.
fn wait<T>(future: impl Future<Output = T>) -> T {
    wait_until(future, None).expect("no end was given")
}

/// Waits for a future on this thread until then.
fn wait_until<T>(future: impl Future<Output = T>, until: Option<Instant>) -> Option<T> {
    let waker = Waker::from(Arc::new(Parked(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}
