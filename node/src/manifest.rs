//! The manifest: what every node should hold, what was purged, who the nodes are.
//!
//! Each node is the author of one database in a folder that all of them see; it says there what it has to say, reads
//! what all others say, and keeps the merge in a file of its own.
//!
//! ```text
//!  record ──► queue ──► local.db: own rows, outbox ──► m-<node>.db ──► (LiteFS, or a shared folder) ──► every node
//!   (never waits)       │   (acknowledged here)        under its lock                                      │
//!  reader ◄─────────────┴─ the merge, latest word wins ◄────────── m-<other>.db, read behind a watermark ◄─┘
//! ```
//!
//! What it keeps true:
//! - All SQL of the shared databases stands here, and no `.await` while a transaction is open.
//! - What was acknowledged is on this disk, and is published until it stands in the own database: after an error, a
//!   change of role, or a position that is not where it was left, own rows and database are compared.
//! - Rows are merged by (stamp, author): in any order, any number of times, with the same result everywhere.
//! - Only the thread `manifest-publish` touches the shared folder. Callers wait for nothing but this disk, and only
//!   those who have asked to.
//! - Rows are hints. It knows nothing of HTTP, of the cache and of what this disk holds.

mod author;
mod local;
mod publish;
mod queue;
mod read;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use author::Files;
use local::{Change, Local};
use publish::{FIRST_BACKOFF, Publisher, Tasks};
use queue::Queue;
use rows::Kind;

pub use local::{Listener, Listing, Named};
pub use publish::{Status, Trouble};
pub use read::{
    Author, Coverage, Covered, Cursor, Filter, Held, List, Listed, PurgeCursor, Purges, Reader,
};
pub use rows::{
    About, MAX_KEY_BYTES, MAX_TAGS, MAX_VALUE_BYTES, NodeRow, Purge, PurgeRow, Resource,
    ResourceId, Row, Scheme, Selector, Unfit,
};

use crate::clock::HybridClock;
use crate::cluster::{Claim, ClusterError, Engine, Role, Subscription, is_author};

/// How a manifest is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of `local.db`: this process's own.
    pub dir: PathBuf,
    /// The author's name: this node's among all.
    pub node: String,
    /// Resources that this node records, at the most.
    pub max_rows: usize,
    /// How long changes are gathered before they are written here.
    pub collect: Duration,
    /// Between the end of one publication and the beginning of the next.
    pub pace: Duration,
}

impl Settings {
    pub fn new(dir: impl Into<PathBuf>, node: &str) -> Settings {
        Settings {
            dir: dir.into(),
            node: node.to_owned(),
            max_rows: 100_000,
            collect: Duration::from_millis(50),
            pace: Duration::from_millis(50),
        }
    }
}

/// How long [`Manifest::close`] waits for the last publication.
const CLOSE_WAIT: Duration = Duration::from_secs(6);

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "`{0}` cannot name a node in the manifest: letters, digits, `-`, `_` and `.`, up to 64; try: `manifest.node`"
    )]
    Name(String),
    #[error("{}: another process uses it; try: a data directory for each node", .0.display())]
    InUse(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("local.db: {0}")]
    Database(#[from] rusqlite_migration::Error),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// It is not on the disk: too much waits, the disk failed, or the manifest is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the manifest could not take it")]
pub struct NotRecorded;

/// A node's manifest. Clones are handles of the same one; it ends with [`Manifest::close`].
#[derive(Clone)]
pub struct Manifest(Arc<Inner>);

struct Inner {
    queue: Arc<Queue>,
    tasks: Arc<Tasks>,
    local: Arc<Local>,
    engine: Arc<dyn Engine>,
    counters: Arc<Counters>,
    changed: watch::Receiver<u64>,
    running: Mutex<Option<Running>>,
}

/// What ends with the manifest.
struct Running {
    _events: Subscription,
    record: JoinHandle<()>,
    publisher_ended: Arc<Ended>,
    _lock: File,
    _claim: Claim,
}

impl Manifest {
    /// Opens `local.db`, and starts the threads `manifest` and `manifest-publish`. Nothing of the shared folder is
    /// waited for, save the engine's claim. BLOCKING.
    ///
    /// # Errors
    /// [`OpenError`]: when the node's name or folder is in use, or its disk does not work.
    pub fn open(
        settings: Settings,
        engine: Arc<dyn Engine>,
        clock: Arc<HybridClock>,
    ) -> Result<Manifest, OpenError> {
        if !is_author(&settings.node) {
            return Err(OpenError::Name(settings.node));
        }
        let lock = lock_folder(&settings)?;
        let claim = engine.claim(&settings.node)?;
        let local = Local::open(
            &settings.dir,
            &settings.node,
            settings.max_rows,
            clock.clone(),
        )?;
        let local = Arc::new(local);
        let queue = Arc::new(Queue::default());
        let tasks = Arc::new(Tasks::default());
        let counters = Arc::new(Counters::default());
        counters.note(&local);
        let (changed, watched) = watch::channel(0);
        let io = |source| OpenError::Io {
            path: settings.dir.clone(),
            source,
        };
        let events = {
            let tasks = tasks.clone();
            engine.subscribe(Box::new(move |event| tasks.event(event)))?
        };
        let record = {
            let recorder = Recorder {
                queue: queue.clone(),
                tasks: tasks.clone(),
                local: local.clone(),
                counters: counters.clone(),
                changed: changed.clone(),
                collect: settings.collect,
            };
            thread("manifest", move || recorder.run()).map_err(io)?
        };
        let ended = Arc::new(Ended::default());
        let publisher = Publisher {
            engine: engine.clone(),
            local: local.clone(),
            clock,
            tasks: tasks.clone(),
            counters: counters.clone(),
            changed,
            settings: settings.clone(),
            in_doubt: true,
            position: None,
            left: None,
            forget: BTreeSet::new(),
            unread: BTreeSet::new(),
            broken: BTreeMap::new(),
            backoff: FIRST_BACKOFF,
            last_publication: None,
            files: if engine.readers_recover() {
                Files::default()
            } else {
                Files::kept()
            },
            is_backlog: false,
            caught_up: false,
            is_fresh: false,
            look: Some(Instant::now()),
            heard: Instant::now(),
            opened: Instant::now(),
        };
        let end = ended.clone();
        thread("manifest-publish", move || {
            publisher.run();
            end.tell();
        })
        .map_err(io)?;
        Ok(Manifest(Arc::new(Inner {
            queue,
            tasks,
            local,
            engine,
            counters,
            changed: watched,
            running: Mutex::new(Some(Running {
                _events: events,
                record,
                publisher_ended: ended,
                _lock: lock,
                _claim: claim,
            })),
        })))
    }

    /// Says that every node should hold this response. Never waits; where too much waits already, what is least
    /// wanted and oldest is dropped and counted. What the manifest says already is not said again.
    ///
    /// # Errors
    /// [`Unfit`], if it may not be a row: nothing is recorded.
    pub fn record(&self, resource: Resource) -> Result<(), Unfit> {
        let (key, value) = resource.encode()?;
        let about = resource.about;
        let priority = about.priority;
        self.0
            .queue
            .push(priority, Change::Record { key, value, about });
        Ok(())
    }

    /// Takes a resource out, whoever recorded it. Never waits.
    pub fn forget(&self, id: &ResourceId) {
        let key = id.encode();
        let kind = Kind::Resource;
        self.0.queue.push(u8::MAX, Change::Remove { kind, key });
    }

    /// Adds a purge to the log. The future is done when it is on this disk and can no more be lost, or with an error
    /// if it never will be; dropping it changes nothing.
    pub fn record_purge(
        &self,
        purge: Purge,
    ) -> impl Future<Output = Result<PurgeRow, NotRecorded>> + Send + use<> {
        let (ack, acked) = oneshot::channel();
        if let Ok(value) = rows::to_json(&purge) {
            let change = Change::Purge { purge, value };
            self.0.queue.push_durable(change, ack);
        }
        async move { acked.await.map_err(|_| NotRecorded) }
    }

    /// Says what this node is. Never waits.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn announce(&self, node: &NodeRow) -> Result<(), Unfit> {
        self.put(Kind::Node, node.id.as_bytes(), rows::to_json(node)?)
    }

    /// Sets a setting of all nodes. Never waits.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn set(&self, name: &str, value: &str) -> Result<(), Unfit> {
        self.put(Kind::Setting, name.as_bytes(), rows::to_json(&value)?)
    }

    fn put(&self, kind: Kind, key: &[u8], value: String) -> Result<(), Unfit> {
        rows::check(
            kind.number(),
            key,
            crate::clock::Stamp::default(),
            Some(&value),
        )?;
        let key = key.to_vec();
        self.0.queue.push(u8::MAX, Change::Put { kind, key, value });
        Ok(())
    }

    /// Whether a process of this host writes under an author's name, as far as the engine can tell. BLOCKING.
    pub fn is_author_here(&self, author: &str) -> bool {
        let claimed = self.0.engine.claim(author);
        matches!(claimed, Err(ClusterError::Taken { .. }))
    }

    /// Takes out all that an author lists and says of itself who is gone for good, on every node; what it has purged
    /// stays purged. Only who is sure may ask: with LiteFS, two that write one database can block each other. One
    /// that runs all the same publishes again what it has. Never waits; it is done as soon as the folder can be
    /// written, but not at all if this process ends before. One's own name is not taken.
    pub fn forget_author(&self, author: &str) {
        if is_author(author) && author != self.0.local.owner().node {
            self.0.tasks.forget(author);
        }
    }

    /// Changes each time that the merge has changed, and when the node has caught up.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.changed.clone()
    }

    /// Tells `listener` of all that is listed before this returns, and then of each change, from the threads that
    /// make them and which wait for it; another listener is told no more. BLOCKING.
    ///
    /// # Errors
    /// As SQLite has it.
    pub fn tell_listed(&self, listener: Box<Listener>) -> rusqlite::Result<()> {
        self.0.local.tell_listed(listener)
    }

    /// A connection to look things up with. BLOCKING, as all it does.
    ///
    /// # Errors
    /// As SQLite has it.
    pub fn reader(&self) -> rusqlite::Result<Reader> {
        Reader::open(self.0.local.path())
    }

    /// How it goes. Never waits, also where LiteFS stands still.
    pub fn status(&self) -> Status {
        let counted = self.0.counters.counted.lock();
        Status {
            role: self.0.engine.role(),
            dropped: self.0.queue.dropped(),
            busy: counted.round.map(|since| since.elapsed()),
            ..counted.status.clone()
        }
    }

    /// Records what waits, publishes once more for as long as six seconds, and ends. What was not published is
    /// published after the next start. BLOCKING. To close again does nothing.
    pub fn close(&self) {
        let Some(running) = self.0.running.lock().take() else {
            return;
        };
        self.0.queue.stop();
        // It panics only where a bug does, which was told of.
        let _ = running.record.join();
        self.0.tasks.stop();
        if !running.publisher_ended.wait(CLOSE_WAIT) {
            tracing::warn!("the last rows of the manifest are not published yet");
        }
        self.0.local.checkpoint();
    }
}

fn lock_folder(settings: &Settings) -> Result<File, OpenError> {
    let dir = &settings.dir;
    let io = |source| OpenError::Io {
        path: dir.clone(),
        source,
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(io)?;
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(dir.clone())),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(body)
}

/// Before what the disk did not take is recorded again.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// Whether the disk is at fault, and not what was to be recorded.
fn may_pass(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DiskFull, ReadOnly, SystemIoFailure};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseBusy | DiskFull | ReadOnly | SystemIoFailure)
    )
}

/// The thread that writes what was recorded into `local.db`.
struct Recorder {
    queue: Arc<Queue>,
    tasks: Arc<Tasks>,
    local: Arc<Local>,
    counters: Arc<Counters>,
    changed: watch::Sender<u64>,
    collect: Duration,
}

impl Recorder {
    fn run(self) {
        while let Some(batch) = self.queue.next(self.collect) {
            match self.local.apply(&batch.changes) {
                Ok(applied) => {
                    if applied.to_publish {
                        self.changed.send_modify(|generation| *generation += 1);
                        self.tasks.outbox();
                    }
                    self.counters.recorded(&applied);
                    for (ack, row) in batch.acks.into_iter().zip(applied.purges) {
                        // Who asked may have gone.
                        let _ = ack.send(row);
                    }
                }
                // Those who wait for an acknowledgement learn of it: theirs go here.
                Err(error) => {
                    let rows = batch.changes.len();
                    self.counters.failed(&format!("local.db: {error}"), false);
                    if may_pass(&error) {
                        tracing::warn!(%error, rows, "local.db takes no rows; tried again");
                        self.queue.put_back(batch);
                        self.queue.rest(RECORD_RETRY);
                    } else {
                        tracing::error!(%error, rows, "local.db takes no rows");
                    }
                }
            }
        }
    }
}

/// Whether a thread has ended.
#[derive(Default)]
struct Ended {
    ended: Mutex<bool>,
    told: Condvar,
}

impl Ended {
    fn tell(&self) {
        *self.ended.lock() = true;
        self.told.notify_all();
    }

    fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut ended = self.ended.lock();
        while !*ended {
            if self.told.wait_until(&mut ended, until).timed_out() {
                return *ended;
            }
        }
        true
    }
}

/// What the threads tell of.
#[derive(Default)]
pub(crate) struct Counters {
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    status: Status,
    /// When the publisher has begun with what it does now.
    round: Option<Instant>,
}

impl Counters {
    fn count(&self, count: impl FnOnce(&mut Status)) {
        count(&mut self.counted.lock().status);
    }

    /// The publisher begins with something for which it may have to wait for LiteFS.
    fn begin(&self) {
        self.counted.lock().round = Some(Instant::now());
    }

    fn end(&self) {
        self.counted.lock().round = None;
    }

    fn recorded(&self, applied: &local::Applied) {
        self.count(|status| status.given_up += applied.given_up);
    }

    fn note(&self, local: &Local) {
        let outbox = local.outbox_rows();
        self.count(|status| status.outbox = outbox.unwrap_or(status.outbox));
    }

    fn published(&self, rows: u64) {
        self.count(|status| {
            status.batches += u64::from(rows > 0);
            status.rows_published += rows;
        });
    }

    fn merged(&self, rows: u64) {
        self.count(|status| status.rows_merged += rows);
    }

    fn refused(&self, rows: u64) {
        self.count(|status| status.rows_refused += rows);
    }

    fn lost(&self, rows: u64) {
        self.count(|status| status.rows_lost += rows);
    }

    fn caught_up(&self) {
        self.count(|status| status.caught_up = true);
    }

    fn behind(&self, lag: Option<Duration>) {
        self.count(|status| status.position_behind = lag);
    }

    fn granted(&self) {
        self.count(|status| {
            status.halt_failures = 0;
            status.is_out_of_step = false;
        });
    }

    /// The lock is granted and cannot be used.
    fn out_of_step(&self) {
        self.count(|status| status.is_out_of_step = true);
    }

    /// A publication has failed. Where there is no primary it could not do else.
    fn not_published(&self, role: &Role) {
        self.count(|status| match role {
            Role::Unknown => status.halt_failures = 0,
            _ => status.halt_failures = status.halt_failures.saturating_add(1),
        });
    }

    fn failed(&self, error: &str, is_gone: bool) {
        self.count(|status| {
            status.error = Some(error.to_owned());
            status.is_gone = is_gone;
        });
    }

    /// Another's database cannot be read, which says nothing of the folder.
    fn unreadable(&self, error: &str) {
        self.count(|status| status.error = Some(error.to_owned()));
    }

    /// All went well, but for what could not be read of others.
    fn well_but(&self, error: Option<String>) {
        self.count(|status| {
            status.error = error;
            status.is_gone = false;
        });
    }
}
