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
//!
//! The last batch may be lost with the machine: it describes a cache (`synchronous = NORMAL`). Not so
//! one with a purge in it, which is on the disk before anybody is told (`FULL`).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::io::Faults;
use super::object::Object;
use super::{Facts, Metrics, PurgeRow, Shared};

/// Rows in a batch, at most.
const BATCH_ROWS: usize = 4096;

/// Pause after a commit that failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Failed commits in a row after which the disk is given up.
const FAILURES: u32 = 5;

pub(super) enum Message {
    Publish {
        object: Arc<Object>,
        key: Box<[u8]>,
        head: Box<[u8]>,
        facts: Facts,
    },
    Changed(Arc<Object>),
    Delete(Arc<Object>),
    /// Commit now, then answer whether it is on disk.
    Purge {
        rows: Vec<PurgeRow>,
        answer: oneshot::Sender<bool>,
    },
    /// Space waits for a deletion: commit now.
    Hurry,
    /// Commit, with the times of use; then answer.
    Flush(oneshot::Sender<()>),
    Stop {
        discard: bool,
    },
}

#[derive(Clone)]
pub(super) struct Index {
    messages: mpsc::Sender<Message>,
}

impl Index {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Message>) {
        let (messages, received) = mpsc::channel();
        (Self { messages }, received)
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
    rows: HashMap<u64, Row>,
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
            rows: HashMap::new(),
            purges: Vec::new(),
            purging: Vec::new(),
            hurry: false,
            with_uses: false,
            waiting: Vec::new(),
            stop: None,
        }
    }

    fn add(&mut self, message: Message) {
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
            Message::Purge { rows, answer } => {
                self.purges.extend(rows);
                self.purging.push(answer);
                self.hurry = true;
            }
            Message::Hurry => self.hurry = true,
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

    fn row(&mut self, object: Arc<Object>) -> &mut Row {
        self.rows.entry(object.id().0).or_insert_with(|| Row {
            object,
            published: None,
            groups: BTreeSet::new(),
            deleted: false,
        })
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.purging.is_empty()
    }

    /// Nothing of it is left to be written: tells those who wait for purges.
    fn end(&mut self, written: bool) {
        self.rows.clear();
        self.purges.clear();
        for answer in self.purging.drain(..) {
            // Who asked may have gone.
            let _ = answer.send(written);
        }
    }

    fn is_due(&self) -> bool {
        self.hurry || self.rows.len() >= BATCH_ROWS
    }
}

/// The index thread: until told to stop.
pub(super) fn run(
    mut connection: Connection,
    messages: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
    delay: Duration,
    faults: Arc<Faults>,
) {
    let mut failures = 0;
    let mut batch = Batch::new();
    loop {
        // Idle: until there is something to do. After a failure: until it is time to try again.
        let first = if batch.is_empty() {
            messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            messages.recv_timeout(RETRY_DELAY)
        };
        match first {
            Ok(message) => batch.add(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => batch.add(Message::Stop { discard: false }),
        }
        let due = Instant::now() + delay;
        while !batch.is_due() {
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(message) => batch.add(message),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    batch.add(Message::Stop { discard: false });
                }
            }
        }
        if batch.stop == Some(true) {
            return;
        }
        match commit(&mut connection, &mut batch, &shared, &faults) {
            Ok(()) => {
                failures = 0;
                batch.end(true);
                shared.index_written();
            }
            Err(error) => {
                failures += 1;
                Metrics::add(&shared.metrics.index_errors, 1);
                shared.index_failed(&error, failures >= FAILURES);
                if failures >= FAILURES {
                    batch.end(false);
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
            if let Err(error) = connection.close() {
                tracing::warn!(error = %error.1, "the index was not closed properly");
            }
            return;
        }
    }
}

fn commit(
    connection: &mut Connection,
    batch: &mut Batch,
    shared: &Shared,
    faults: &Faults,
) -> rusqlite::Result<()> {
    let uses = if batch.with_uses {
        shared.unsaved_uses()
    } else {
        Vec::new()
    };
    if batch.rows.is_empty() && batch.purges.is_empty() && uses.is_empty() {
        return Ok(());
    }
    if Faults::check(&faults.index).is_err() {
        return Err(rusqlite::Error::InvalidQuery);
    }
    let is_purge = !batch.purges.is_empty();
    if is_purge {
        connection.pragma_update(None, "synchronous", "FULL")?;
    }
    let written = write(connection, batch, uses);
    if is_purge {
        connection.pragma_update(None, "synchronous", "NORMAL")?;
    }
    written?;
    Metrics::add(&shared.metrics.index_commits, 1);
    Ok(())
}

fn write(
    connection: &mut Connection,
    batch: &mut Batch,
    uses: Vec<(u64, u32)>,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for row in &batch.purges {
        write_purge(&transaction, row)?;
    }
    for (body, row) in &mut batch.rows {
        row.groups.append(&mut row.object.take_dirty_groups());
        write_row(&transaction, *body, row)?;
    }
    if !uses.is_empty() {
        let mut statement =
            transaction.prepare_cached("UPDATE object SET last_use = ?2 WHERE body = ?1")?;
        for (body, last_use) in uses {
            statement.execute(params![body.cast_signed(), last_use])?;
        }
    }
    transaction.commit()
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
