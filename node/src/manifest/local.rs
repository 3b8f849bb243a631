//! `local.db`: what this node says, durable here first, and the merge of what all nodes say.
//!
//! What it keeps true:
//! - For each key the merge holds the row with the latest (stamp, author), whatever came in which order and however
//!   often: one statement decides.
//! - What a call has recorded is on the disk when it returns (`synchronous = FULL`).
//! - No transaction is open while another file than this is looked at: this lock is held for milliseconds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use rusqlite_migration::{M, Migrations};

use super::author::{Owner, Page};
use super::rows::{self, About, Kind, Purge, PurgeRow, Resource, ResourceId, Row, check};
use crate::clock::{HybridClock, Stamp};

/// The versions of `local.db`, oldest first; a published one is never changed.
pub(super) const MIGRATIONS: &[M<'static>] = &[M::up(include_str!("local.sql"))];

/// How long a statement waits for a reader that is in the way of a checkpoint.
const BUSY: Duration = Duration::from_secs(5);

/// Purges that are kept, of each author and in the merge: who has missed more of them drops what it holds.
const MAX_PURGES: u64 = 100_000;

/// The purge log is looked over after so many.
const PURGE_STEP: u64 = 1000;

/// Rows of a page in comparing and reading.
pub(super) const PAGE_ROWS: usize = 1000;

/// Something to say.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Encoded before it was queued.
    Record {
        key: Vec<u8>,
        value: String,
        about: About,
    },
    Remove {
        kind: Kind,
        key: Vec<u8>,
    },
    Put {
        kind: Kind,
        key: Vec<u8>,
        value: String,
    },
    Purge {
        purge: Purge,
        value: String,
    },
}

/// What recording has come to.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// For each change that was a purge, in order.
    pub purges: Vec<PurgeRow>,
    /// Whether there is something new to publish.
    pub to_publish: bool,
    /// Resources given up to keep the bound.
    pub given_up: u64,
}

/// A row of the outbox.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub kind: i64,
    pub key: Vec<u8>,
    pub stamp: Stamp,
    pub value: Option<String>,
    /// To be taken out of the author's database.
    pub leaves: bool,
}

/// What the merge lists, told as it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// What was told before is void: all that is listed follows.
    Anew,
    /// Resources that are listed from now on, or are not any more.
    Changed(Vec<Named>),
    /// All has been told.
    Whole,
}

/// A resource as the store's index names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub cache_key: Vec<u8>,
    pub variant: i64,
    pub is_listed: bool,
}

pub type Listener = dyn Fn(Listing) + Send + Sync;

pub(super) struct Local {
    path: PathBuf,
    owner: Owner,
    clock: Arc<HybridClock>,
    max_rows: usize,
    connection: Mutex<Connection>,
    /// Called under the connection's lock, so that it hears in the order in which things happened.
    listener: Mutex<Option<Box<Listener>>>,
}

impl Local {
    /// Opens, or makes, `local.db` in `dir`. One that is damaged is set aside: the own rows are then read back from
    /// the author's database.
    pub(super) fn open(
        dir: &Path,
        node: &str,
        max_rows: usize,
        clock: Arc<HybridClock>,
    ) -> Result<Local, rusqlite_migration::Error> {
        let path = dir.join("local.db");
        let mut connection = open_database(&path)?;
        Migrations::from_slice(MIGRATIONS).to_latest(&mut connection)?;
        let meta = |name: &str| meta(&connection, name);
        let owner = Owner {
            node: node.to_owned(),
            instance: meta("instance")?,
            is_new: meta("claimed")? != "1",
        };
        let last: i64 = connection.query_row(
            "SELECT max(ifnull((SELECT max(stamp) FROM own), 0), ifnull((SELECT max(published) FROM own), 0),
                 ifnull((SELECT max(stamp) FROM entry), 0), ifnull((SELECT max(published) FROM author), 0))",
            [],
            |row| row.get(0),
        )?;
        clock.witness(Stamp(last.cast_unsigned()));
        Ok(Local {
            path,
            owner,
            clock,
            max_rows,
            connection: Mutex::new(connection),
            listener: Mutex::default(),
        })
    }

    /// Tells `listener` of all that is listed, and from now on of each change; nobody else any more.
    pub(super) fn tell_listed(&self, listener: Box<Listener>) -> rusqlite::Result<()> {
        let connection = self.connection.lock();
        *self.listener.lock() = Some(listener);
        self.tell_all(&connection)
    }

    fn tell_all(&self, connection: &Connection) -> rusqlite::Result<()> {
        let listener = self.listener.lock();
        let Some(tell) = listener.as_deref() else {
            return Ok(());
        };
        let mut statement = connection
            .prepare_cached("SELECT cache_key, variant FROM entry WHERE url IS NOT NULL")?;
        let mut rows = statement.query([])?;
        tell(Listing::Anew);
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            page.push(Named {
                cache_key: row.get(0)?,
                variant: row.get(1)?,
                is_listed: true,
            });
            if page.len() >= PAGE_ROWS {
                tell(Listing::Changed(std::mem::take(&mut page)));
            }
        }
        tell(Listing::Changed(page));
        tell(Listing::Whole);
        Ok(())
    }

    fn tell(&self, changed: Vec<Named>) {
        if let (false, Some(tell)) = (changed.is_empty(), self.listener.lock().as_deref()) {
            tell(Listing::Changed(changed));
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Records changes, in their order and in one transaction that is on the disk when this returns.
    pub(super) fn apply(&self, changes: &[Change]) -> rusqlite::Result<Applied> {
        let mut connection = self.connection.lock();
        connection.pragma_update(None, "synchronous", "FULL")?;
        let transaction = connection.transaction()?;
        let mut applied = Applied::default();
        let mut changed = Vec::new();
        for change in changes {
            self.apply_one(&transaction, change, &mut applied, &mut changed)?;
        }
        if applied.to_publish {
            applied.given_up = self.keep_bounds(&transaction, &mut changed)?;
        }
        transaction.commit()?;
        self.tell(changed);
        Ok(applied)
    }

    fn apply_one(
        &self,
        transaction: &Transaction<'_>,
        change: &Change,
        applied: &mut Applied,
        changed: &mut Vec<Named>,
    ) -> rusqlite::Result<()> {
        let (kind, key, value, priority) = match change {
            Change::Record { key, value, about } => {
                let known = live_value(transaction, Kind::Resource.number(), key)?;
                let known = known.and_then(|value| rows::read::<About>(&value).ok());
                if known.is_some_and(|known| about.is_told_by(&known)) {
                    return Ok(());
                }
                (Kind::Resource, key.clone(), Some(value), about.priority)
            }
            Change::Put { kind, key, value } => {
                if live_value(transaction, kind.number(), key)?.as_ref() == Some(value) {
                    return Ok(());
                }
                (*kind, key.clone(), Some(value), 0)
            }
            Change::Remove { kind, key } => {
                if live_value(transaction, kind.number(), key)?.is_none() {
                    return Ok(());
                }
                (*kind, key.clone(), None, 0)
            }
            Change::Purge { purge, value } => {
                let number = number(&meta(transaction, "purges")?) + 1;
                set_meta(transaction, "purges", &number.to_string())?;
                let key = rows::purge_key(&self.owner.instance, number);
                applied.purges.push(PurgeRow {
                    author: self.owner.node.clone(),
                    number,
                    stamp: Stamp(0),
                    purge: purge.clone(),
                });
                (Kind::Purge, key, Some(value), 0)
            }
        };
        let row = Row {
            kind: kind.number(),
            key,
            stamp: self.clock.tick(),
            author: self.owner.node.clone(),
            value: value.cloned(),
        };
        if let (Kind::Purge, Some(purge)) = (kind, applied.purges.last_mut()) {
            purge.stamp = row.stamp;
        }
        put_own(transaction, &row, priority, 0)?;
        merge_row(transaction, &row, changed)?;
        applied.to_publish = true;
        Ok(())
    }

    /// Withdraws resources beyond `max_rows`, least wanted and oldest first, and lets go of old tombstones and
    /// purges.
    fn keep_bounds(
        &self,
        transaction: &Transaction<'_>,
        changed: &mut Vec<Named>,
    ) -> rusqlite::Result<u64> {
        let max_rows = self.max_rows as i64;
        let held: i64 = transaction.query_row(
            "SELECT count(*) FROM own WHERE kind = 1 AND value IS NOT NULL AND published >= 0",
            [],
            |row| row.get(0),
        )?;
        let unwanted: Vec<(Vec<u8>, i64)> = transaction
            .prepare_cached(
                "SELECT key, stamp FROM own
                 WHERE kind = 1 AND value IS NOT NULL AND published >= 0
                 ORDER BY priority, stamp LIMIT ?1",
            )?
            .query_map([(held - max_rows).max(0)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?
            .collect::<Result<_, _>>()?;
        for (key, stamp) in &unwanted {
            // With the stamp of what it takes back: a later word of another author stands.
            let row = Row {
                kind: Kind::Resource.number(),
                key: key.clone(),
                stamp: Stamp(stamp.cast_unsigned()),
                author: self.owner.node.clone(),
                value: None,
            };
            put_own(transaction, &row, 0, 0)?;
            merge_row(transaction, &row, changed)?;
        }
        transaction
            .prepare_cached(
                "UPDATE own SET published = -1 WHERE (kind, key) IN (
                     SELECT kind, key FROM own WHERE value IS NULL AND published > 0
                     ORDER BY stamp DESC LIMIT -1 OFFSET ?1)",
            )?
            .execute([max_rows])?;
        let purges = number(&meta(transaction, "purges")?);
        if purges > MAX_PURGES && purges.is_multiple_of(PURGE_STEP) {
            let last = rows::purge_key(&self.owner.instance, purges - MAX_PURGES);
            transaction.execute(
                "UPDATE own SET published = -1 WHERE kind = 2 AND key <= ?1 AND published > 0",
                [&last],
            )?;
        }
        Ok(unwanted.len() as u64)
    }

    /// Rows that wait to be published: purges first, then the oldest.
    pub(super) fn outbox(&self, limit: usize) -> rusqlite::Result<Vec<Outgoing>> {
        let connection = self.connection.lock();
        let mut statement = connection.prepare_cached(
            "SELECT kind, key, stamp, value, published FROM own WHERE published <= 0
             ORDER BY kind <> 2, stamp LIMIT ?1",
        )?;
        let rows = statement.query_map([limit as i64], |row| {
            Ok(Outgoing {
                kind: row.get(0)?,
                key: row.get(1)?,
                stamp: Stamp(row.get::<_, i64>(2)?.cast_unsigned()),
                value: row.get(3)?,
                leaves: row.get::<_, i64>(4)? < 0,
            })
        })?;
        rows.collect()
    }

    pub(super) fn outbox_rows(&self) -> rusqlite::Result<u64> {
        let connection = self.connection.lock();
        let count: i64 = connection
            .prepare_cached("SELECT count(*) FROM own WHERE published <= 0")?
            .query_row([], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// These rows stand in the author's database now. What was changed meanwhile stays in the outbox.
    pub(super) fn published(&self, rows: &[Outgoing]) -> rusqlite::Result<()> {
        let mut connection = self.connection.lock();
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let transaction = connection.transaction()?;
        set_meta(&transaction, "claimed", "1")?;
        let mark = self.clock.tick().0.cast_signed();
        for row in rows {
            let stamp = row.stamp.0.cast_signed();
            if row.leaves {
                transaction
                    .prepare_cached(
                        "DELETE FROM own WHERE kind = ?1 AND key = ?2 AND stamp = ?3 AND published = -1",
                    )?
                    .execute(params![row.kind, row.key, stamp])?;
            } else {
                transaction
                    .prepare_cached(
                        "UPDATE own SET published = ?5
                         WHERE kind = ?1 AND key = ?2 AND stamp = ?3 AND (value IS NULL) = ?4
                             AND published = 0",
                    )?
                    .execute(params![row.kind, row.key, stamp, row.value.is_none(), mark])?;
            }
        }
        transaction.commit()
    }

    /// Where reading this author's database goes on. From the start, if another instance has written it.
    pub(super) fn watermark(&self, author: &str) -> rusqlite::Result<Stamp> {
        let connection = self.connection.lock();
        let published: Option<i64> = connection
            .prepare_cached("SELECT published FROM author WHERE name = ?1")?
            .query_row([author], |row| row.get(0))
            .optional()?;
        Ok(Stamp(published.unwrap_or_default().cast_unsigned()))
    }

    /// Merges a page of another author's rows. The answer says whether the merge has changed, and whether the
    /// author's database is another one than before and must be read from its start.
    pub(super) fn merge(&self, author: &str, page: &Page) -> rusqlite::Result<Merged> {
        let Some(instance) = &page.instance else {
            return Ok(Merged::default());
        };
        let mut connection = self.connection.lock();
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let transaction = connection.transaction()?;
        let known: Option<String> = transaction
            .prepare_cached("SELECT instance FROM author WHERE name = ?1")?
            .query_row([author], |row| row.get(0))
            .optional()?;
        if known.as_ref().is_some_and(|known| known != instance) {
            // What it still says is read again, and what others had said before it; purges stay done.
            transaction.execute(
                "DELETE FROM entry WHERE author = ?1 AND kind <> 2",
                [author],
            )?;
            transaction.execute(
                "DELETE FROM resource_tag WHERE key NOT IN (SELECT key FROM entry WHERE url IS NOT NULL)",
                [],
            )?;
            transaction.execute("DELETE FROM author", [])?;
            self.merge_own(&transaction)?;
            transaction.commit()?;
            self.tell_all(&connection)?;
            return Ok(Merged {
                is_another: true,
                ..Merged::default()
            });
        }
        let mut merged = Merged::default();
        let mut changed = Vec::new();
        for row in &page.rows {
            match check(row.kind, &row.key, row.stamp, row.value.as_deref()) {
                Ok(_) => {
                    self.clock.witness(row.stamp);
                    merged.rows += u64::from(merge_row(&transaction, row, &mut changed)?);
                }
                Err(reason) => {
                    merged.refused += 1;
                    tracing::warn!(author, kind = row.kind, %reason, "a row of the manifest is not taken");
                }
            }
        }
        transaction
            .prepare_cached(
                "INSERT INTO author (name, instance, published) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET instance = ?2, published = ?3",
            )?
            .execute(params![author, instance, page.published.0.cast_signed()])?;
        keep_purges(&transaction)?;
        transaction.commit()?;
        self.tell(changed);
        Ok(merged)
    }

    /// Merges all that this node says itself: what stood over it may have gone.
    fn merge_own(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let mut statement =
            transaction.prepare("SELECT kind, key, stamp, value FROM own WHERE published >= 0")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let row = Row {
                kind: row.get(0)?,
                key: row.get(1)?,
                stamp: Stamp(row.get::<_, i64>(2)?.cast_unsigned()),
                author: self.owner.node.clone(),
                value: row.get(3)?,
            };
            // All is told after it.
            merge_row(transaction, &row, &mut Vec::new())?;
        }
        Ok(())
    }

    /// Compares a page of the own database, from behind `(kind, key)` on, with what should stand there. Rows that
    /// are missing or differ go to the outbox; rows that this disk has lost are taken back. `whole` says that
    /// nothing comes after the page. Returns how many rows went to the outbox.
    pub(super) fn compare(
        &self,
        (kind, key): (i64, &[u8]),
        page: &[Row],
        whole: bool,
    ) -> rusqlite::Result<u64> {
        let mut connection = self.connection.lock();
        let transaction = connection.transaction()?;
        let there: HashMap<(i64, &[u8]), &Row> = page
            .iter()
            .map(|row| ((row.kind, row.key.as_slice()), row))
            .collect();
        let end = match page.last() {
            Some(last) if !whole => (last.kind, last.key.as_slice()),
            _ => (i64::MAX, &[][..]),
        };
        let mut lost = Vec::new();
        let mut changed = Vec::new();
        let mut held = HashMap::new();
        {
            let mut statement = transaction.prepare_cached(
                "SELECT kind, key, stamp, value IS NULL, published FROM own
                 WHERE (kind, key) > (?1, ?2) AND (kind, key) <= (?3, ?4)",
            )?;
            let mut rows = statement.query(params![kind, key, end.0, end.1])?;
            while let Some(row) = rows.next()? {
                let own: (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let (stamp, is_tombstone): (i64, bool) = (row.get(2)?, row.get(3)?);
                let published: i64 = row.get(4)?;
                let stamp = Stamp(stamp.cast_unsigned());
                let is_there = there
                    .get(&(own.0, own.1.as_slice()))
                    .is_some_and(|row| (row.stamp, row.value.is_none()) == (stamp, is_tombstone));
                if published > 0 && !is_there {
                    lost.push(own.clone());
                }
                held.insert(own, stamp);
            }
        }
        for row in page {
            let known = held.get(&(row.kind, row.key.clone()));
            if known.is_some_and(|known| *known >= row.stamp)
                || check(row.kind, &row.key, row.stamp, row.value.as_deref()).is_err()
            {
                continue;
            }
            self.clock.witness(row.stamp);
            put_own(
                &transaction,
                row,
                priority_of(row),
                self.clock.tick().0.cast_signed(),
            )?;
            merge_row(&transaction, row, &mut changed)?;
            lost.retain(|(kind, key)| (*kind, key) != (row.kind, &row.key));
        }
        for (kind, key) in &lost {
            transaction
                .prepare_cached("UPDATE own SET published = 0 WHERE kind = ?1 AND key = ?2")?
                .execute(params![kind, key])?;
        }
        transaction.commit()?;
        self.tell(changed);
        Ok(lost.len() as u64)
    }

    /// Ends with what is written in one file.
    pub(super) fn checkpoint(&self) {
        let connection = self.connection.lock();
        let done = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = done {
            tracing::debug!(%error, "local.db keeps its log");
        }
    }
}

/// What merging a page has come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    /// Rows that are now the latest of their keys.
    pub rows: u64,
    /// Rows that may not be merged.
    pub refused: u64,
    /// Another instance has written it: read it from its start.
    pub is_another: bool,
}

fn open_database(path: &Path) -> rusqlite::Result<Connection> {
    match open_sound(path) {
        Ok(connection) => Ok(connection),
        Err(error) if is_damage(&error) => {
            tracing::warn!(path = %path.display(), %error, "local.db is damaged and set aside; own rows are read back from the manifest");
            for suffix in ["", "-wal", "-shm"] {
                let mut from = path.as_os_str().to_owned();
                from.push(suffix);
                let mut to = path.as_os_str().to_owned();
                to.push(".bad");
                to.push(suffix);
                // The next open tells if the file is still in the way.
                let _ = std::fs::rename(from, to);
            }
            open_sound(path)
        }
        Err(error) => Err(error),
    }
}

fn open_sound(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.query_row("PRAGMA quick_check(1)", [], |row| {
        let found: String = row.get(0)?;
        if found == "ok" {
            return Ok(());
        }
        let damage = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(damage, Some(found)))
    })?;
    Ok(connection)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseCorrupt | NotADatabase)
    )
}

fn meta(connection: &Connection, name: &str) -> rusqlite::Result<String> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
}

fn set_meta(connection: &Connection, name: &str, value: &str) -> rusqlite::Result<usize> {
    connection
        .prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1 AND value <> ?2")?
        .execute([name, value])
}

/// A number that only this module writes.
fn number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

fn live_value(connection: &Connection, kind: i64, key: &[u8]) -> rusqlite::Result<Option<String>> {
    let found: Option<Option<String>> = connection
        .prepare_cached("SELECT value FROM entry WHERE kind = ?1 AND key = ?2")?
        .query_row(params![kind, key], |row| row.get(0))
        .optional()?;
    Ok(found.flatten())
}

fn priority_of(row: &Row) -> u8 {
    let value = row.value.as_deref();
    let about = value.and_then(|value| rows::read::<About>(value).ok());
    match (Kind::of(row.kind), about) {
        (Some(Kind::Resource), Some(about)) => about.priority,
        _ => 0,
    }
}

fn put_own(
    connection: &Connection,
    row: &Row,
    priority: u8,
    published: i64,
) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO own (kind, key, stamp, priority, value, published)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            row.kind,
            row.key,
            row.stamp.0.cast_signed(),
            priority,
            row.value,
            published
        ])
}

/// Whether the row is now its key's. Of rows with the same stamp and author a tombstone is the later: it takes back.
/// What is listed from then on, or no more, is added to `changed`.
fn merge_row(
    connection: &Connection,
    row: &Row,
    changed: &mut Vec<Named>,
) -> rusqlite::Result<bool> {
    let columns = check(row.kind, &row.key, row.stamp, row.value.as_deref()).unwrap_or_default();
    let before = match Kind::of(row.kind) {
        Some(Kind::Resource) => named(connection, &row.key)?,
        _ => None,
    };
    let won = connection
        .prepare_cached(
            "INSERT INTO entry (kind, key, stamp, author, value, url, cache_key, variant)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (kind, key) DO UPDATE
             SET stamp = ?3, author = ?4, value = ?5, url = ?6, cache_key = ?7, variant = ?8
             WHERE (?3, ?4, ?5 IS NULL, ifnull(?5, ''))
                 > (entry.stamp, entry.author, entry.value IS NULL, ifnull(entry.value, ''))",
        )?
        .execute(params![
            row.kind,
            row.key,
            row.stamp.0.cast_signed(),
            row.author,
            row.value,
            columns.url,
            columns.cache_key,
            columns.variant
        ])?;
    if won == 0 {
        return Ok(false);
    }
    match Kind::of(row.kind) {
        Some(Kind::Resource) => {
            let after = columns.cache_key.zip(columns.variant);
            if before != after {
                let as_listed = |is_listed| {
                    move |(cache_key, variant)| Named {
                        cache_key,
                        variant,
                        is_listed,
                    }
                };
                changed.extend(before.map(as_listed(false)));
                changed.extend(after.map(as_listed(true)));
            }
            connection
                .prepare_cached("DELETE FROM resource_tag WHERE key = ?1")?
                .execute([&row.key])?;
            for tag in &columns.tags {
                connection
                    .prepare_cached(
                        "INSERT OR IGNORE INTO resource_tag (tag, key) VALUES (?1, ?2)",
                    )?
                    .execute(params![tag, row.key])?;
            }
        }
        Some(Kind::Purge) if row.value.is_some() => {
            connection
                .prepare_cached("INSERT OR IGNORE INTO purge (key) VALUES (?1)")?
                .execute([&row.key])?;
        }
        _ => {}
    }
    Ok(true)
}

/// What a row of the merge lists.
fn named(connection: &Connection, key: &[u8]) -> rusqlite::Result<Option<(Vec<u8>, i64)>> {
    connection
        .prepare_cached(
            "SELECT cache_key, variant FROM entry WHERE kind = 1 AND key = ?1 AND url IS NOT NULL",
        )?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// Lets go of the oldest purges, of all authors together.
fn keep_purges(connection: &Connection) -> rusqlite::Result<()> {
    let ends: (i64, i64) = connection
        .prepare_cached("SELECT ifnull(min(arrival), 0), ifnull(max(arrival), 0) FROM purge")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let first_kept = ends.1 - (2 * MAX_PURGES).cast_signed();
    if ends.0 + PURGE_STEP.cast_signed() >= first_kept {
        return Ok(());
    }
    connection.execute(
        "DELETE FROM entry WHERE kind = 2 AND key IN (SELECT key FROM purge WHERE arrival < ?1)",
        [first_kept],
    )?;
    connection.execute("DELETE FROM purge WHERE arrival < ?1", [first_kept])?;
    set_meta(connection, "purges_removed", &(first_kept - 1).to_string())?;
    Ok(())
}

/// A resource as the merge has it.
pub(super) fn resource_of(key: &[u8], value: &str) -> Option<Resource> {
    Some(Resource {
        id: ResourceId::decode(key)?,
        about: rows::read(value).ok()?,
    })
}
