//! The databases in the shared folder: writing one's own, reading anybody's.
//!
//! Each call does one short thing: a read transaction that stays open holds up the replication of all databases.
//!
//! Kept true here: where a folder may stop answering, as LiteFS's does, a database is opened and closed as seldom as
//! can be ([`Files`]). SQLite has one lock for all files of a process, takes it in each transaction on any of them, and
//! holds it while it opens or closes one: in a folder that stands still, that would hold up `local.db`, and the store's
//! index.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use rusqlite_migration::{M, Migrations};

use super::local::Outgoing;
use super::rows::{Kind, MAX_KEY_BYTES, MAX_VALUE_BYTES, Row};
use crate::clock::{HybridClock, Stamp};
use crate::cluster::Turn;

/// The versions of an author's database, oldest first; a published one is never changed. Readers must find
/// `owner` and `entry` with the columns of the first in every one.
pub(super) const MIGRATIONS: &[M<'static>] = &[M::up(include_str!("author.sql"))];

/// Bytes of a page, about: a database that another wrote may have rows of any size.
const PAGE_BYTES: usize = 8 << 20;

/// How long a statement waits for another process's.
const BUSY: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorError {
    /// Somebody else writes under our name.
    #[error("the database belongs to another process of the same name (instance {0})")]
    Usurped(String),
    #[error("the database was made by a later version of caje")]
    Newer,
    /// Nothing was committed.
    #[error("the lock's time ran out")]
    Late,
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl AuthorError {
    /// Whether the file is at fault, and can only be made anew.
    pub(super) fn is_damage(&self) -> bool {
        let Self::Sqlite(error) = self else {
            return false;
        };
        matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        )
    }
}

/// Who writes.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub node: String,
    pub instance: String,
    /// Has never written yet: a database under its name is its own from before it lost its disk.
    pub is_new: bool,
}

/// The last publication that a database has, before and after a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub found: Stamp,
    pub left: Stamp,
    /// Others had taken this author for gone, and emptied it.
    pub was_forgotten: bool,
}

/// Connections that are used again, without a transaction in between. One that has failed is not.
#[derive(Default)]
pub(super) struct Files {
    /// Whether any are.
    is_kept: bool,
    /// With the device on which the file was: a mount that came back has another.
    to_read: HashMap<PathBuf, (u64, Connection)>,
    to_write: HashMap<PathBuf, (u64, Connection)>,
}

impl Files {
    /// Of a folder in which files are written in place, and never replaced.
    pub(super) fn kept() -> Files {
        Files {
            is_kept: true,
            ..Files::default()
        }
    }

    /// Brings rows into the author's own database, in one transaction. Rows get their publication's stamps in the
    /// order in which they come. BLOCKING.
    pub(super) fn write(
        &mut self,
        turn: &Turn<'_>,
        owner: &Owner,
        clock: &HybridClock,
        rows: &[Outgoing],
    ) -> Result<Written, AuthorError> {
        let path = turn.database();
        let device = device(path);
        let mut connection = match self.to_write.remove(path) {
            Some((of, connection)) if Some(of) == device => connection,
            _ => open_to_write(turn)?,
        };
        let written = write_with(&mut connection, turn, owner, clock, rows)?;
        if let Some(device) = device.filter(|_| self.is_kept && forgets(&connection)) {
            self.to_write.insert(path.to_owned(), (device, connection));
        }
        Ok(written)
    }

    /// Up to `limit` rows that were published after `after`, in that order. A database that is not there, or has no
    /// tables yet, has none. BLOCKING.
    pub(super) fn read(
        &mut self,
        database: &Path,
        author: &str,
        after: Stamp,
        limit: usize,
        recover: bool,
    ) -> Result<Page, AuthorError> {
        self.with_reader(database, recover, |connection| {
            read_with(connection, author, after, limit)
        })
    }

    /// Up to `limit` rows behind `(kind, key)`, in that order. BLOCKING.
    pub(super) fn read_by_key(
        &mut self,
        database: &Path,
        author: &str,
        from: (i64, &[u8]),
        limit: usize,
    ) -> Result<Vec<Row>, AuthorError> {
        self.with_reader(database, false, |connection| {
            read_by_key_with(connection, author, from, limit)
        })
    }

    /// The default where there is nothing to read yet.
    fn with_reader<T: Default>(
        &mut self,
        database: &Path,
        recover: bool,
        read: impl FnOnce(&Connection) -> Result<T, AuthorError>,
    ) -> Result<T, AuthorError> {
        let device = device(database);
        let connection = match self.to_read.remove(database) {
            Some((of, connection)) if Some(of) == device => connection,
            _ => match open_to_read(database, recover)? {
                Some(connection) => connection,
                None => return Ok(T::default()),
            },
        };
        let got = read(&connection)?;
        if let Some(device) = device.filter(|_| self.is_kept && forgets(&connection)) {
            self.to_read
                .insert(database.to_owned(), (device, connection));
        }
        Ok(got)
    }
}

/// Lets go of all pages. SQLite takes those it holds for good as long as the file's counter of changes is the same; but
/// LiteFS may undo a change and make another one, with the same count.
fn forgets(connection: &Connection) -> bool {
    connection.execute_batch("PRAGMA shrink_memory").is_ok()
}

fn device(database: &Path) -> Option<u64> {
    std::fs::metadata(database).ok().map(|found| found.dev())
}

#[cfg(test)]
pub(super) fn write(
    turn: &Turn<'_>,
    owner: &Owner,
    clock: &HybridClock,
    rows: &[Outgoing],
) -> Result<Written, AuthorError> {
    Files::default().write(turn, owner, clock, rows)
}

fn write_with(
    connection: &mut Connection,
    turn: &Turn<'_>,
    owner: &Owner,
    clock: &HybridClock,
    rows: &[Outgoing],
) -> Result<Written, AuthorError> {
    migrate(connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: Option<String> = transaction
        .query_row("SELECT instance FROM owner", [], |row| row.get(0))
        .optional()?;
    let is_ours = found.as_ref() == Some(&owner.instance);
    let was_forgotten = found.as_deref().is_some_and(is_forgotten);
    if let Some(other) = found.filter(|_| !is_ours && !was_forgotten && !owner.is_new) {
        return Err(AuthorError::Usurped(other));
    }
    let last = |transaction: &Connection| -> rusqlite::Result<Stamp> {
        let last: Option<i64> =
            transaction.query_row("SELECT max(published) FROM entry", [], |row| row.get(0))?;
        Ok(Stamp(last.unwrap_or_default().cast_unsigned()))
    };
    let found = last(&transaction)?;
    if is_ours && rows.is_empty() {
        let left = found;
        return Ok(Written {
            found,
            left,
            was_forgotten,
        });
    }
    if !is_ours {
        transaction.execute(
            "INSERT OR REPLACE INTO owner (one, node, instance) VALUES (1, ?1, ?2)",
            [&owner.node, &owner.instance],
        )?;
    }
    clock.witness(found);
    for row in rows {
        write_row(&transaction, row, clock)?;
    }
    let left = last(&transaction)?;
    if turn.is_over() {
        return Err(AuthorError::Late);
    }
    transaction.commit()?;
    Ok(Written {
        found,
        left,
        was_forgotten,
    })
}

/// Begins the name of an owner that nobody is.
const FORGOTTEN: &str = "forgotten-";

/// Whether this instance is nobody's any more.
pub(super) fn is_forgotten(instance: &str) -> bool {
    instance.starts_with(FORGOTTEN)
}

/// Rows that are taken out within one turn.
const EMPTIED_ROWS: usize = 20_000;

/// Takes out what an author that is gone for good had listed and told of itself, under an owner that nobody is: each
/// call some of it, in one transaction. Says whether that was all. What it had purged and taken out stays: who was away has yet to hear of it. A node that comes back
/// under the name takes the database again, and publishes what it still has. BLOCKING.
pub(super) fn empty(turn: &Turn<'_>, node: &str) -> Result<bool, AuthorError> {
    let mut connection = open_to_write(turn)?;
    migrate(&mut connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (resource, node_row) = (Kind::Resource.number(), Kind::Node.number());
    let taken = transaction.execute(
        "DELETE FROM entry WHERE (kind, key) IN (
             SELECT kind, key FROM entry WHERE kind IN (?1, ?2) AND value IS NOT NULL LIMIT ?3)",
        params![resource, node_row, EMPTIED_ROWS as i64],
    )?;
    transaction.execute(
        "INSERT OR REPLACE INTO owner (one, node, instance)
         VALUES (1, ?1, ?2 || lower(hex(randomblob(8))))",
        [node, FORGOTTEN],
    )?;
    if turn.is_over() {
        return Err(AuthorError::Late);
    }
    transaction.commit()?;
    Ok(taken < EMPTIED_ROWS)
}

fn open_to_write(turn: &Turn<'_>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(turn.database(), flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "TRUNCATE")?;
    Ok(connection)
}

fn write_row(
    connection: &Connection,
    row: &Outgoing,
    clock: &HybridClock,
) -> rusqlite::Result<usize> {
    if row.leaves {
        return connection
            .prepare_cached("DELETE FROM entry WHERE kind = ?1 AND key = ?2 AND stamp <= ?3")?
            .execute(params![row.kind, row.key, row.stamp.0.cast_signed()]);
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO entry (kind, key, stamp, published, value)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            row.kind,
            row.key,
            row.stamp.0.cast_signed(),
            clock.tick().0.cast_signed(),
            row.value
        ])
}

fn migrate(connection: &mut Connection) -> Result<(), AuthorError> {
    use rusqlite_migration::{Error, MigrationDefinitionError};
    match Migrations::from_slice(MIGRATIONS).to_latest(connection) {
        Ok(()) => Ok(()),
        Err(Error::MigrationDefinition(MigrationDefinitionError::DatabaseTooFarAhead)) => {
            Err(AuthorError::Newer)
        }
        Err(Error::RusqliteError { err, .. }) => Err(err.into()),
        Err(_) => Err(rusqlite::Error::InvalidQuery.into()),
    }
}

/// Rows of an author's database.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Of the owner row; `None` before there is one.
    pub instance: Option<String>,
    pub rows: Vec<Row>,
    /// Rows that are no rows: too large, or of other types. They are passed over.
    pub unfit: u64,
    /// Of the last row: where the next page begins.
    pub published: Stamp,
    /// There is more behind it.
    pub has_more: bool,
}

#[cfg(test)]
pub(super) fn read(
    database: &Path,
    author: &str,
    after: Stamp,
    limit: usize,
    recover: bool,
) -> Result<Page, AuthorError> {
    Files::default().read(database, author, after, limit, recover)
}

fn read_with(
    connection: &Connection,
    author: &str,
    after: Stamp,
    limit: usize,
) -> Result<Page, AuthorError> {
    let mut page = Page {
        published: after,
        ..Page::default()
    };
    let transaction = connection.unchecked_transaction()?;
    page.instance = transaction
        .query_row("SELECT instance FROM owner", [], |row| row.get(0))
        .optional()?;
    // What is too large is not even read: an empty blob is no value of any row.
    let mut statement = transaction.prepare(
        "SELECT kind, key, stamp, iif(octet_length(value) > ?3 OR octet_length(key) > ?4, x'', value), published
         FROM entry WHERE published > ?1 AND typeof(published) = 'integer' ORDER BY published LIMIT ?2",
    )?;
    let (longest, longest_key) = (MAX_VALUE_BYTES as i64, MAX_KEY_BYTES as i64);
    let mut rows = statement.query(params![
        after.0.cast_signed(),
        limit as i64,
        longest,
        longest_key
    ])?;
    let (mut seen, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        seen += 1;
        page.published = Stamp(row.get::<_, i64>(4)?.cast_unsigned());
        match read_row(row, author) {
            Ok(row) => {
                bytes += row.key.len() + row.value.as_ref().map_or(0, String::len);
                page.rows.push(row);
            }
            // SQLite's types are those of values, and whoever made the table may have let anything in.
            Err(error) if is_type(&error) => page.unfit += 1,
            Err(error) => return Err(error.into()),
        }
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    page.has_more = seen == limit || bytes >= PAGE_BYTES;
    Ok(page)
}

fn is_type(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, InvalidColumnType, Utf8Error};
    matches!(
        error,
        FromSqlConversionFailure(..) | InvalidColumnType(..) | Utf8Error(..)
    )
}

#[cfg(test)]
pub(super) fn read_by_key(
    database: &Path,
    author: &str,
    from: (i64, &[u8]),
    limit: usize,
) -> Result<Vec<Row>, AuthorError> {
    Files::default().read_by_key(database, author, from, limit)
}

fn read_by_key_with(
    connection: &Connection,
    author: &str,
    (kind, key): (i64, &[u8]),
    limit: usize,
) -> Result<Vec<Row>, AuthorError> {
    let mut statement = connection.prepare(
        "SELECT kind, key, stamp, value FROM entry
         WHERE (kind, key) > (?1, ?2) ORDER BY kind, key LIMIT ?3",
    )?;
    let rows = statement.query_and_then(params![kind, key, limit as i64], |row| {
        read_row(row, author)
    })?;
    let is_row = |row: &rusqlite::Result<Row>| !row.as_ref().is_err_and(is_type);
    Ok(rows.filter(is_row).collect::<Result<_, _>>()?)
}

fn read_row(row: &rusqlite::Row<'_>, author: &str) -> rusqlite::Result<Row> {
    Ok(Row {
        kind: row.get(0)?,
        key: row.get(1)?,
        stamp: Stamp(row.get::<_, i64>(2)?.cast_unsigned()),
        author: author.to_owned(),
        value: row.get(3)?,
    })
}

/// `None` where there is nothing to read yet.
fn open_to_read(database: &Path, recover: bool) -> Result<Option<Connection>, AuthorError> {
    match std::fs::metadata(database) {
        Ok(found) if found.len() == 0 => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let open = |flags| -> rusqlite::Result<(Connection, i64)> {
        let connection =
            Connection::open_with_flags(database, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "query_only", true)?;
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok((connection, version))
    };
    let (connection, version) = match open(OpenFlags::SQLITE_OPEN_READ_ONLY) {
        // Its author was killed within a transaction, which whoever may write can roll back.
        Err(error) if recover && needs_recovery(&error) => open(OpenFlags::SQLITE_OPEN_READ_WRITE)?,
        opened => opened?,
    };
    if version == 0 {
        return Ok(None);
    }
    if version as usize > MIGRATIONS.len() {
        tracing::debug!(database = %database.display(), version, "reading what a later version wrote");
    }
    Ok(Some(connection))
}

fn needs_recovery(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen)
    )
}
