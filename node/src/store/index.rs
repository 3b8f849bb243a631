//! The index: a local SQLite file that says what the segments hold, and the one thread that writes
//! it.
//!
//! What it keeps true:
//! - Bytes first, then the row: a row names only blocks whose write has ended. Row gone, then extent
//!   free: the thread holds a deleted object until its deletion is committed.
//! - Rows are written in batches, at most one in [`Settings::index_delay`](super::Settings), or at
//!   once when space waits for a deletion. No thread of the data path touches SQLite.
//! - A large body never has a large row rewritten: its extents are kept in groups of 256 blocks
//!   (3.3 KiB), and a batch writes only the groups that changed. A body of 5 GiB in blocks of
//!   256 KiB has 80 groups; received at 1 GiB/s it rewrites some 5 of them four times a second.
//!   The first group stands in the object's own row, so that a body of one block is one row.
//! - Somebody waits for a purge: it goes before all rows, which are committed a few at a time, so that it
//!   waits for one short transaction at the most. What the log holds is moved into the file by another thread.
//!
//! The last batch may be lost with the machine: it describes a cache (`synchronous = NORMAL`). Not so
//! one with a purge in it, which is on the disk before anybody is told (`FULL`).

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::oneshot;

use super::io::{Faults, be_gentle};
use super::object::Object;
use super::{Facts, Metrics, PurgeRow, Shared};

/// Rows in a batch, at most.
const BATCH_ROWS: usize = 4096;

/// Rows in one transaction, at most.
const COMMIT_ROWS: usize = 256;

/// Rows after which the log is moved into the file.
const CHECKPOINT_ROWS: usize = 2 * COMMIT_ROWS;

/// Pages of the log, of 4 KiB each, at which whoever commits moves it: the checkpoints do not keep up.
const MAX_LOG_PAGES: u32 = 16_384;

/// Pause after a commit that failed.
const RETRY_DELAY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Failed commits in a row after which the disk is given up.
const FAILURES: u32 = 5;

/// Rows that wait for room on a full disk, which is no failure as long as there are no more.
const MAX_WAITING: usize = 65_536;

pub(super) enum Message {
    Publish {
        object: Arc<Object>,
        key: Box<[u8]>,
        head: Box<[u8]>,
        facts: Facts,
    },
    Changed(Arc<Object>),
    Delete(Arc<Object>),
    /// There is a purge to be written.
    Purge,
    /// Space waits for a deletion: commit now.
    Hurry,
    /// Commit now, then answer.
    Write(oneshot::Sender<()>),
    /// Commit, with the times of use; then answer.
    Flush(oneshot::Sender<()>),
    Stop {
        discard: bool,
    },
}

/// Rows about purges, and who waits until they are on the disk.
struct Purging {
    rows: Vec<PurgeRow>,
    answer: oneshot::Sender<bool>,
}

#[derive(Clone)]
pub(super) struct Index {
    messages: mpsc::Sender<Message>,
    purges: mpsc::Sender<Purging>,
}

/// What the index thread is sent.
pub(super) struct Received {
    messages: mpsc::Receiver<Message>,
    /// Beside the messages, so that they are seen before all of those.
    purges: mpsc::Receiver<Purging>,
}

impl Index {
    pub(super) fn channel() -> (Self, Received) {
        let (messages, received) = mpsc::channel();
        let (purges, received_purges) = mpsc::channel();
        let received = Received {
            messages: received,
            purges: received_purges,
        };
        (Self { messages, purges }, received)
    }

    /// Writes rows before all else. The answer, whether they are on the disk, does not come if the thread has ended.
    pub(super) fn record_purges(&self, rows: Vec<PurgeRow>) -> oneshot::Receiver<bool> {
        let (answer, answered) = oneshot::channel();
        drop(self.purges.send(Purging { rows, answer }));
        self.send(Message::Purge);
        answered
    }

    /// A message to a thread that has ended is dropped: the index is lost, the node goes on.
    pub(super) fn send(&self, message: Message) {
        drop(self.messages.send(message));
    }
}

/// The CRC-32 over what a row says besides its blocks.
pub(super) fn row_crc(body: u64, key: &[u8], head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&body.to_le_bytes());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(head);
    hasher.finalize()
}

/// The CRC-32 of a purge's row.
pub(super) fn purge_crc(row: &PurgeRow) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&row.hard.to_le_bytes());
    hasher.update(&row.soft.to_le_bytes());
    hasher.update(&row.selector);
    hasher.finalize()
}

type Published = (Box<[u8]>, Box<[u8]>, Facts);

struct Row {
    object: Arc<Object>,
    /// Key, head and facts, when they are new.
    published: Option<Published>,
    groups: BTreeSet<u32>,
    deleted: bool,
}

struct Batch {
    /// By the body: neighbours in the file.
    rows: BTreeMap<u64, Row>,
    purges: Vec<PurgeRow>,
    /// Who waits for them.
    purging: Vec<oneshot::Sender<bool>>,
    hurry: bool,
    with_uses: bool,
    waiting: Vec<oneshot::Sender<()>>,
    stop: Option<bool>,
}

impl Batch {
    fn new() -> Self {
        Self {
            rows: BTreeMap::new(),
            purges: Vec::new(),
            purging: Vec::new(),
            hurry: false,
            with_uses: false,
            waiting: Vec::new(),
            stop: None,
        }
    }

    fn add(&mut self, message: Message, purges: &mpsc::Receiver<Purging>) {
        match message {
            Message::Publish {
                object,
                key,
                head,
                facts,
            } => {
                self.row(object).published = Some((key, head, facts));
            }
            Message::Changed(object) => {
                self.row(object);
            }
            Message::Delete(object) => self.row(object).deleted = true,
            Message::Purge => {
                self.take_purges(purges);
                // Or it was written before others' rows.
                self.hurry |= !self.purging.is_empty();
            }
            Message::Hurry => self.hurry = true,
            Message::Write(answer) => {
                self.hurry = true;
                self.waiting.push(answer);
            }
            Message::Flush(answer) => {
                self.hurry = true;
                self.with_uses = true;
                self.waiting.push(answer);
            }
            Message::Stop { discard } => {
                self.hurry = true;
                self.with_uses = true;
                self.stop = Some(discard);
            }
        }
    }

    fn take_purges(&mut self, purges: &mpsc::Receiver<Purging>) {
        for Purging { rows, answer } in purges.try_iter() {
            self.purges.extend(rows);
            self.purging.push(answer);
        }
    }

    fn row(&mut self, object: Arc<Object>) -> &mut Row {
        self.rows.entry(object.id().0).or_insert_with(|| Row {
            object,
            published: None,
            groups: BTreeSet::new(),
            deleted: false,
        })
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.purges.is_empty() && self.purging.is_empty()
    }

    /// Nothing is left to be written of the purges.
    fn end_purges(&mut self, written: bool) {
        self.purges.clear();
        self.tell(written);
    }

    /// Tells those who wait for purges whether they are on disk.
    fn tell(&mut self, written: bool) {
        for answer in self.purging.drain(..) {
            // Who asked may have gone.
            let _ = answer.send(written);
        }
    }

    /// Rows that wait to be written.
    fn waits(&self) -> usize {
        self.rows.len() + self.purges.len()
    }

    fn is_due(&self) -> bool {
        self.hurry || self.rows.len() >= BATCH_ROWS
    }
}

/// The index thread: until told to stop.
pub(super) fn run(
    connection: Connection,
    received: Received,
    shared: Arc<Shared>,
    delay: Duration,
    faults: Arc<Faults>,
) {
    let Received { messages, purges } = received;
    let mut writer = Writer::new(connection, shared.clone(), faults);
    let mut failures = 0;
    let mut batch = Batch::new();
    // A full disk is not tried more often than this, whatever comes.
    let mut not_before = Instant::now();
    loop {
        // Idle: until there is something to do. After a failure: until it is time to try again.
        let first = if batch.is_empty() {
            messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            messages.recv_timeout(RETRY_DELAY)
        };
        match first {
            Ok(message) => batch.add(message, &purges),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                batch.add(Message::Stop { discard: false }, &purges);
            }
        }
        while batch.stop.is_none() && Instant::now() < not_before {
            match messages.recv_timeout(not_before.saturating_duration_since(Instant::now())) {
                Ok(message) => batch.add(message, &purges),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    batch.add(Message::Stop { discard: false }, &purges);
                }
            }
        }
        let due = Instant::now() + delay;
        while !batch.is_due() {
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(message) => batch.add(message, &purges),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    batch.add(Message::Stop { discard: false }, &purges);
                }
            }
        }
        if batch.stop == Some(true) {
            return;
        }
        match writer.commit(&mut batch, &purges) {
            Ok(()) => {
                failures = 0;
                shared.index_written();
            }
            // It may have room again: what waits is kept, and who waits for it is told that it is not on disk.
            Err(error) if is_full(&error) && batch.waits() < MAX_WAITING => {
                Metrics::add(&shared.metrics.index_errors, 1);
                shared.index_failed(&error, false);
                batch.tell(false);
                not_before = Instant::now() + RETRY_DELAY;
            }
            Err(error) => {
                failures += 1;
                Metrics::add(&shared.metrics.index_errors, 1);
                shared.index_failed(&error, failures >= FAILURES);
                if failures >= FAILURES {
                    batch.rows.clear();
                    batch.end_purges(false);
                }
            }
        }
        batch.hurry = false;
        batch.with_uses = false;
        for answer in batch.waiting.drain(..) {
            // Who asked may have gone.
            let _ = answer.send(());
        }
        if batch.stop.is_some() {
            return writer.close();
        }
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

struct Writer {
    connection: Connection,
    checkpoints: Option<Checkpoints>,
    /// Written since the last checkpoint was asked for.
    rows: usize,
    shared: Arc<Shared>,
    faults: Arc<Faults>,
}

impl Writer {
    fn new(connection: Connection, shared: Arc<Shared>, faults: Arc<Faults>) -> Writer {
        let checkpoints = Checkpoints::start(&connection);
        if let Err(error) = &checkpoints {
            tracing::warn!(%error, "commits move the index's log themselves");
        }
        Writer {
            connection,
            checkpoints: checkpoints.ok(),
            rows: 0,
            shared,
            faults,
        }
    }

    /// Writes the batch, and what comes of purges meanwhile before the rest of it. What an error leaves is in the batch.
    fn commit(
        &mut self,
        batch: &mut Batch,
        purges: &mpsc::Receiver<Purging>,
    ) -> rusqlite::Result<()> {
        let uses = if batch.with_uses {
            self.shared.unsaved_uses()
        } else {
            Vec::new()
        };
        let mut uses = uses.chunks(COMMIT_ROWS);
        loop {
            batch.take_purges(purges);
            if !batch.purges.is_empty() || !batch.purging.is_empty() {
                self.transact(|connection| write_purges(connection, &batch.purges))?;
                batch.end_purges(true);
            }
            let mut rows: Vec<_> = iter::from_fn(|| batch.rows.pop_first())
                .take(COMMIT_ROWS)
                .collect();
            if !rows.is_empty() {
                let written = self.transact(|connection| write_rows(connection, &mut rows));
                if written.is_err() {
                    batch.rows.extend(rows);
                    return written;
                }
            } else if let Some(uses) = uses.next() {
                self.transact(|connection| write_uses(connection, uses))?;
            } else {
                return Ok(());
            }
        }
    }

    fn transact(
        &mut self,
        write: impl FnOnce(&mut Connection) -> rusqlite::Result<usize>,
    ) -> rusqlite::Result<()> {
        if Faults::check(&self.faults.index).is_err() {
            return Err(rusqlite::Error::InvalidQuery);
        }
        if Faults::check(&self.faults.index_full).is_err() {
            let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
            return Err(rusqlite::Error::SqliteFailure(full, None));
        }
        self.rows += write(&mut self.connection)?;
        Metrics::add(&self.shared.metrics.index_commits, 1);
        if self.rows >= CHECKPOINT_ROWS
            && let Some(checkpoints) = &self.checkpoints
        {
            checkpoints.ask();
            self.rows = 0;
        }
        Ok(())
    }

    fn close(self) {
        // The last connection to close is the one that cleans up.
        drop(self.checkpoints);
        if let Err(error) = self.connection.close() {
            tracing::warn!(error = %error.1, "the index was not closed properly");
        }
    }
}

/// The thread that moves what SQLite's write-ahead log holds into the file, which takes long and keeps nobody from
/// writing the log.
struct Checkpoints {
    asked: Option<mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    /// From now on commits leave the log alone.
    fn start(writer: &Connection) -> Result<Checkpoints, Box<dyn std::error::Error>> {
        let path = writer.path().ok_or("it has no path")?.to_owned();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(path, flags)?;
        let (asked, asking) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("store-log".into())
            .spawn(move || {
                be_gentle();
                for () in asking {
                    let moved =
                        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
                    if let Err(error) = moved {
                        tracing::debug!(%error, "the index's log was not moved");
                    }
                }
            })?;
        writer.pragma_update(None, "wal_autocheckpoint", MAX_LOG_PAGES)?;
        Ok(Checkpoints {
            asked: Some(asked),
            thread: Some(thread),
        })
    }

    /// One that waits already will do.
    fn ask(&self) {
        if let Some(asked) = &self.asked {
            let _ = asked.try_send(());
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.asked = None;
        if let Some(thread) = self.thread.take() {
            // It panics only where a bug does, which was told of.
            drop(thread.join());
        }
    }
}

/// On the disk itself when this returns.
fn write_purges(connection: &mut Connection, purges: &[PurgeRow]) -> rusqlite::Result<usize> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let written = connection.transaction().and_then(|transaction| {
        for row in purges {
            write_purge(&transaction, row)?;
        }
        transaction.commit()
    });
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    written.map(|()| purges.len())
}

fn write_rows(connection: &mut Connection, rows: &mut [(u64, Row)]) -> rusqlite::Result<usize> {
    let transaction = connection.transaction()?;
    for (body, row) in rows.iter_mut() {
        row.groups.append(&mut row.object.take_dirty_groups());
        write_row(&transaction, *body, row)?;
    }
    transaction.commit()?;
    Ok(rows.len())
}

fn write_uses(connection: &mut Connection, uses: &[(u64, u32)]) -> rusqlite::Result<usize> {
    let transaction = connection.transaction()?;
    {
        let mut statement =
            transaction.prepare_cached("UPDATE object SET last_use = ?2 WHERE body = ?1")?;
        for (body, last_use) in uses {
            statement.execute(params![body.cast_signed(), last_use])?;
        }
    }
    transaction.commit()?;
    Ok(uses.len())
}

fn write_purge(connection: &Connection, row: &PurgeRow) -> rusqlite::Result<()> {
    if row.hard == 0 && row.soft == 0 {
        connection
            .prepare_cached("DELETE FROM purge WHERE selector = ?1")?
            .execute([&row.selector])?;
        return Ok(());
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO purge (selector, hard, soft, crc) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            row.selector,
            row.hard.cast_signed(),
            row.soft.cast_signed(),
            purge_crc(row)
        ])?;
    Ok(())
}

fn write_row(connection: &Connection, body: u64, row: &Row) -> rusqlite::Result<()> {
    let id = body.cast_signed();
    if row.deleted {
        connection
            .prepare_cached("DELETE FROM block_group WHERE body = ?1")?
            .execute([id])?;
        connection
            .prepare_cached("DELETE FROM object WHERE body = ?1")?
            .execute([id])?;
        return Ok(());
    }
    let length = row.object.length().map(u64::cast_signed);
    let held = row.object.disk_bytes().cast_signed();
    if let Some((key, head, facts)) = &row.published {
        let last_use = row.object.take_unsaved_use().unwrap_or_default();
        connection
            .prepare_cached(
                "INSERT INTO object
                     (body, key, head, crc, length, last_use, blocks, held, stale_at, variant)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (body) DO UPDATE SET key = ?2, head = ?3, crc = ?4, length = ?5,
                     last_use = max(last_use, ?6), blocks = ?7, held = ?8, stale_at = ?9,
                     variant = ?10",
            )?
            .execute(params![
                id,
                key,
                head,
                row_crc(body, key, head),
                length,
                last_use,
                row.object.encode_group(0),
                held,
                facts.stale_at.cast_signed(),
                facts.variant
            ])?;
    } else {
        connection
            .prepare_cached(
                "UPDATE object SET length = ?2, blocks = ?3, held = ?4 WHERE body = ?1",
            )?
            .execute(params![id, length, row.object.encode_group(0), held])?;
    }
    for group in row.groups.range(1..) {
        match row.object.encode_group(*group) {
            Some(blocks) => connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO block_group (body, number, blocks) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![id, group, blocks])?,
            None => connection
                .prepare_cached("DELETE FROM block_group WHERE body = ?1 AND number = ?2")?
                .execute(params![id, group])?,
        };
    }
    Ok(())
}
