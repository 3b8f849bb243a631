//! A node's manifest as a process of its own, for plays: does what its standard input says, and answers each line
//! with one.
//!
//! `manifest_hand local DIR DATA NODE` or `manifest_hand litefs MOUNT ADDR DATA NODE`
//!
//! | order | answer |
//! |---|---|
//! | `record PREFIX COUNT` | `done`: so many resources, queued |
//! | `soak SECONDS` | `soaked BATCHES ROWS`: own and shared resources all that time, and batches published in it |
//! | `purge TAG` | `recorded NUMBER MILLISECONDS`, once it is durable, or `failed` |
//! | `rows` | `rows COUNT DIGEST`, of the whole merge |
//! | `resources` | `resources COUNT` |
//! | `reach COUNT` | `resources COUNT`, as soon as there are so many; or else `still COUNT` and the status |
//! | `caught-up` | `caught up with COUNT`, as soon as it has, and how many resources there are then |
//! | `outbox` | `outbox ROWS` |
//! | `status` | all of the status, for people |
//! | `publication AUTHOR` | of `caje_tests::publication`, for another author |
//! | `close` | `done`, and the end |

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
use caje_node::cluster::{Engine, LiteFs, Local};
use caje_node::manifest::{About, Manifest, Purge, Resource, ResourceId, Selector, Settings};

/// How long `reach` waits before it says how far it has come.
const REACH: Duration = Duration::from_secs(15);

/// Between two pairs of rows of `soak`: in ten minutes less than `max_rows`.
const SOAK_PAUSE: Duration = Duration::from_millis(20);

fn main() -> Result<(), Box<dyn Error>> {
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
    println!("ready");
    for line in std::io::stdin().lock().lines() {
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
            ["status"] => format!("{:?}", manifest.status()),
            ["publication", author] => caje_tests::publication(&*engine, author),
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
