//! Opening a directory: whose it is, what it holds, and what of that can be believed.
//!
//! ```text
//! <dir> (0700)   lock            flock()ed while a process uses the directory
//!                index.db, -wal  the rows: read once, in one scan
//!                index.db.bad    the last index that could not be read, kept for a look
//!                segment-NNNN    the blocks
//! ```
//!
//! What it keeps true: whatever lies in the files, opening ends with a store that gives out no wrong
//! byte. What cannot be believed is dropped: an index that is damaged or of a later version as a
//! whole (also when a purge in it is), a segment of another store with all rows that point into it, and single rows that fail
//! their checksum, do not fit, or claim each other's pages.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use rusqlite_migration::{M, Migrations};

use super::PurgeRow;
use super::index::{purge_crc, row_crc};
use super::io::{PAGE_BYTES, Segment};
use super::layout::{Extent, GROUP_BLOCKS, PageMap, read_group, segment_header};

pub(super) const INDEX: &str = "index.db";

/// Of the index's pages, in KiB: keys are in no order, so that each row that goes is in a page of its own.
const PAGE_CACHE_KIB: i32 = 8 << 10;

/// The versions of the index, oldest first; a published one is never changed.
const MIGRATIONS: &[M<'static>] = &[
    M::up(
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
     CREATE TABLE object (
         body INTEGER PRIMARY KEY,
         key BLOB NOT NULL,
         head BLOB NOT NULL,
         crc INTEGER NOT NULL,
         length INTEGER,
         last_use INTEGER NOT NULL,
         blocks BLOB
     ) STRICT;
     CREATE TABLE block_group (
         body INTEGER NOT NULL,
         number INTEGER NOT NULL,
         blocks BLOB NOT NULL,
         PRIMARY KEY (body, number)
     ) STRICT, WITHOUT ROWID;",
    ),
    M::up(
        "CREATE TABLE purge (
         selector BLOB PRIMARY KEY,
         hard INTEGER NOT NULL,
         soft INTEGER NOT NULL,
         crc INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;",
    ),
    // `held`: bytes on disk, NULL in rows from before. What these are for is asked elsewhere: what of the
    // manifest this disk holds.
    M::up(
        "ALTER TABLE object ADD COLUMN held INTEGER;
         ALTER TABLE object ADD COLUMN stale_at INTEGER NOT NULL DEFAULT 0;
         ALTER TABLE object ADD COLUMN variant INTEGER NOT NULL DEFAULT 0;
         CREATE INDEX object_key ON object (key);",
    ),
];

#[derive(Debug, thiserror::Error)]
pub(super) enum RecoverError {
    #[error("another process uses it")]
    Locked,
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error("cannot open the index: {0}")]
    Index(#[from] rusqlite::Error),
}

impl RecoverError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// The directory, locked and its index open.
pub(super) struct Directory {
    pub path: PathBuf,
    /// Holds the lock until it is closed.
    pub lock: File,
    pub index: Connection,
    /// Drawn when the index was made; the segments bear it.
    pub store_id: u64,
}

/// What the rows say, after doubt.
pub(super) struct Scan {
    pub rows: Vec<Row>,
    pub map: PageMap,
    pub segments: Vec<Arc<Segment>>,
    /// Rows that could not be believed.
    pub dropped: u64,
    /// The highest body id of any row.
    pub last_body: u64,
    pub purges: Vec<PurgeRow>,
}

pub(super) struct Row {
    pub body: u64,
    pub key: Box<[u8]>,
    pub head: Box<[u8]>,
    pub length: Option<u64>,
    pub last_use: u32,
    pub blocks: Vec<(u32, Extent)>,
}

/// The sizes that a directory is laid out for.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub block_bytes: u64,
    pub segment_pages: u32,
    pub limit_pages: u32,
}

impl Directory {
    pub(super) fn open(dir: &Path, geometry: Geometry) -> Result<Self, RecoverError> {
        make_private(dir).map_err(RecoverError::io("cannot make the directory"))?;
        // SQLite is told not to follow links, which it takes to mean the whole path.
        let path = dir
            .canonicalize()
            .map_err(RecoverError::io("cannot find the directory"))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(path.join("lock"))
            .map_err(RecoverError::io("cannot make the lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RecoverError::Locked),
            Err(TryLockError::Error(error)) => {
                return Err(RecoverError::io("cannot lock the directory")(error));
            }
        }
        let (index, store_id) = match open_index(&path, geometry) {
            Ok(opened) => opened,
            Err(IndexError::Damaged(reason)) => {
                tracing::warn!(dir = %path.display(), reason, "starting with an empty cache");
                set_aside(&path).map_err(RecoverError::io("cannot set the index aside"))?;
                open_index(&path, geometry).map_err(|error| match error {
                    IndexError::Damaged(reason) => {
                        RecoverError::io("cannot make an index")(io::Error::other(reason))
                    }
                    IndexError::Sqlite(error) => error.into(),
                })?
            }
            Err(IndexError::Sqlite(error)) => return Err(error.into()),
        };
        Ok(Self {
            path,
            lock,
            index,
            store_id,
        })
    }

    /// Reads what the directory holds; starts empty when the index cannot be read.
    pub(super) fn scan(&mut self, geometry: Geometry) -> Result<Scan, RecoverError> {
        let (mut map, segments) = self.segments(geometry)?;
        let read = read_rows(&self.index, geometry.block_bytes)
            .and_then(|rows| Ok((rows, read_purges(&self.index)?)));
        let ((mut rows, mut bad, last_body), purges) = match read {
            Ok(read) => read,
            Err(error) if is_damage(&error) => {
                tracing::warn!(dir = %self.path.display(), %error, "the index cannot be read; starting with an empty cache");
                let nowhere = Connection::open_in_memory()?;
                drop(std::mem::replace(&mut self.index, nowhere));
                set_aside(&self.path).map_err(RecoverError::io("cannot set the index aside"))?;
                let (index, store_id) =
                    open_index(&self.path, geometry).map_err(|error| match error {
                        IndexError::Damaged(reason) => {
                            RecoverError::io("cannot make an index")(io::Error::other(reason))
                        }
                        IndexError::Sqlite(error) => error.into(),
                    })?;
                self.index = index;
                self.store_id = store_id;
                return self.scan(geometry);
            }
            Err(error) => return Err(error.into()),
        };
        drop_misplaced(&mut rows, &mut bad, &mut map, geometry);
        if !bad.is_empty() {
            tracing::warn!(
                rows = bad.len(),
                "dropped rows of the index that cannot be believed"
            );
            delete_rows(&mut self.index, &bad)?;
        }
        count_held(&mut self.index, &rows)?;
        Ok(Scan {
            rows,
            map,
            segments,
            dropped: bad.len() as u64,
            last_body,
            purges,
        })
    }

    pub(super) fn segment_path(&self, number: u32) -> PathBuf {
        segment_path(&self.path, number)
    }

    /// Opens the segments that are this store's, from the first on without a gap, and removes the
    /// others: their pages would not be found in any row.
    fn segments(&self, geometry: Geometry) -> Result<(PageMap, Vec<Arc<Segment>>), RecoverError> {
        let mut map = PageMap::new(geometry.segment_pages, geometry.limit_pages);
        let mut segments = Vec::new();
        let mut whole = true;
        for number in 0.. {
            let path = self.segment_path(number);
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
                break;
            }
            let first = u64::from(number) * u64::from(geometry.segment_pages);
            let wanted = whole && first < geometry.limit_pages.into();
            let segment = if wanted {
                self.own_segment(&path, number)
            } else {
                None
            };
            let Some(segment) = segment else {
                if wanted {
                    tracing::warn!(path = %path.display(), "not a segment of this store; removed");
                }
                whole = false;
                fs::remove_file(&path).map_err(RecoverError::io("cannot remove a segment"))?;
                continue;
            };
            let bytes = segment
                .file_bytes()
                .map_err(RecoverError::io("cannot size a segment"))?;
            let pages = (bytes / PAGE_BYTES as u64).min(geometry.segment_pages.into());
            let grown = (first + pages).min(geometry.limit_pages.into());
            map.grow(u32::try_from(grown).unwrap_or(u32::MAX));
            if first + pages > grown {
                // The limit has been lowered.
                let bytes = (grown - first) * PAGE_BYTES as u64;
                segment
                    .truncate(bytes)
                    .map_err(RecoverError::io("cannot shrink a segment"))?;
            }
            segments.push(Arc::new(segment));
            whole = pages == u64::from(geometry.segment_pages);
        }
        Ok((map, segments))
    }

    fn own_segment(&self, path: &Path, number: u32) -> Option<Segment> {
        let segment = Segment::open(path).ok()?;
        let header = segment.read_blocking(0, PAGE_BYTES).ok()?;
        let expected = segment_header(self.store_id, number);
        if header.as_slice().starts_with(&expected) {
            Some(segment)
        } else {
            None
        }
    }
}

pub(super) fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("segment-{number:04}"))
}

fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = fs::metadata(dir)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

enum IndexError {
    Damaged(String),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for IndexError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) {
            Self::Damaged(error.to_string())
        } else {
            Self::Sqlite(error)
        }
    }
}

/// Whether the file is at fault, and not the machine.
fn is_damage(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::PermissionDenied
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::DiskFull
                | ErrorCode::CannotOpen
        )
    )
}

fn open_index(dir: &Path, geometry: Geometry) -> Result<(Connection, u64), IndexError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(dir.join(INDEX), flags)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -PAGE_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(16);
    Migrations::from_slice(MIGRATIONS)
        .to_latest(&mut connection)
        .map_err(|error| match error {
            rusqlite_migration::Error::RusqliteError { err, .. } => err.into(),
            // A later version, or not ours.
            other => IndexError::Damaged(format!("the index has an unknown version: {other}")),
        })?;
    let geometry_value = geometry.block_bytes.cast_signed();
    let segment_value = i64::from(geometry.segment_pages);
    match (
        meta(&connection, "store")?,
        meta(&connection, "block_bytes")?,
    ) {
        (Some(store), Some(block_bytes))
            if block_bytes == geometry_value
                && meta(&connection, "segment_pages")? == Some(segment_value) =>
        {
            Ok((connection, store.cast_unsigned()))
        }
        (None, None) => {
            // Only has to differ from that of the segments which may lie here already.
            let store = random();
            let transaction = connection.transaction()?;
            for (name, value) in [
                ("store", store.cast_signed()),
                ("block_bytes", geometry_value),
                ("segment_pages", segment_value),
            ] {
                transaction.execute(
                    "INSERT INTO meta (name, value) VALUES (?1, ?2)",
                    params![name, value],
                )?;
            }
            transaction.commit()?;
            Ok((connection, store))
        }
        _ => Err(IndexError::Damaged(
            "it is laid out for another block or segment size".to_owned(),
        )),
    }
}

fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
            row.get(0)
        })
        .optional()
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Moves the index out of the way; it replaces the one that was set aside before.
fn set_aside(dir: &Path) -> io::Result<()> {
    for (suffix, kept) in [
        ("", true),
        ("-wal", true),
        ("-shm", false),
        ("-journal", false),
    ] {
        let from = dir.join(format!("{INDEX}{suffix}"));
        let to = dir.join(format!("{INDEX}.bad{suffix}"));
        let moved = if kept {
            fs::rename(&from, &to)
        } else {
            fs::remove_file(&from)
        };
        match moved {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// All purges. One that is not as it was written makes the index a damaged one: it may have been about
/// anything.
fn read_purges(connection: &Connection) -> rusqlite::Result<Vec<PurgeRow>> {
    let mut statement = connection.prepare("SELECT selector, hard, soft, crc FROM purge")?;
    let mut found = statement.query([])?;
    let mut purges = Vec::new();
    while let Some(row) = found.next()? {
        let read = PurgeRow {
            selector: row.get_ref(0)?.as_blob()?.into(),
            hard: row.get::<_, i64>(1)?.cast_unsigned(),
            soft: row.get::<_, i64>(2)?.cast_unsigned(),
        };
        if row.get::<_, i64>(3)? != i64::from(purge_crc(&read)) {
            return Err(rusqlite::Error::InvalidQuery);
        }
        purges.push(read);
    }
    Ok(purges)
}

type Rows = (Vec<Row>, Vec<u64>, u64);

/// All rows, the ids of those that are not as they were written, and the highest id.
fn read_rows(connection: &Connection, block_bytes: u64) -> rusqlite::Result<Rows> {
    let mut rows: Vec<Row> = Vec::new();
    let mut bad = Vec::new();
    let mut last_body = 0;
    let mut statement = connection.prepare(
        "SELECT body, key, head, crc, length, last_use, blocks FROM object ORDER BY body",
    )?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let body = row.get::<_, i64>(0)?.cast_unsigned();
        let (key, head) = (row.get_ref(1)?.as_blob()?, row.get_ref(2)?.as_blob()?);
        last_body = last_body.max(body);
        let length = row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned);
        let mut read = Row {
            body,
            key: key.into(),
            head: head.into(),
            length,
            last_use: u32::try_from(row.get::<_, i64>(5)?).unwrap_or_default(),
            blocks: Vec::new(),
        };
        let believed = row.get::<_, i64>(3)? == i64::from(row_crc(body, key, head))
            && row
                .get_ref(6)?
                .as_blob_or_null()?
                .is_none_or(|stored| add_group(&mut read, 0, stored, block_bytes));
        if believed {
            rows.push(read)
        } else {
            bad.push(body)
        }
    }
    let mut statement =
        connection.prepare("SELECT body, number, blocks FROM block_group ORDER BY body, number")?;
    let mut found = statement.query([])?;
    let mut at = 0;
    while let Some(row) = found.next()? {
        let body = row.get::<_, i64>(0)?.cast_unsigned();
        // Both scans are in ascending order of the signed number.
        while rows
            .get(at)
            .is_some_and(|row| row.body.cast_signed() < body.cast_signed())
        {
            at += 1;
        }
        let group = u32::try_from(row.get::<_, i64>(1)?).unwrap_or(u32::MAX);
        let stored = row.get_ref(2)?.as_blob()?;
        match rows.get_mut(at) {
            // The other groups of the body may be good; its blocks do not depend on each other.
            Some(read) if read.body == body => {
                if !add_group(read, group, stored, block_bytes) {
                    tracing::warn!(
                        body,
                        group,
                        "dropped blocks whose places cannot be believed"
                    );
                }
            }
            _ => bad.push(body),
        }
    }
    Ok((rows, bad, last_body))
}

/// Adds the blocks of a stored group; false, and none added, when it cannot be believed.
fn add_group(row: &mut Row, group: u32, stored: &[u8], block_bytes: u64) -> bool {
    let Some(blocks) = read_group(row.body, group, stored) else {
        return false;
    };
    if group > u32::MAX / GROUP_BLOCKS - 1 {
        return false;
    }
    let before = row.blocks.len();
    row.blocks.extend(blocks);
    let length = row.length;
    let fits = |(block, extent): &(u32, Extent)| {
        let start = u64::from(*block) * block_bytes;
        let whole = match length {
            Some(length) if start >= length => return false,
            Some(length) => (length - start).min(block_bytes),
            None => block_bytes,
        };
        u64::from(extent.bytes) == whole
    };
    let believed = row.blocks[before..].iter().all(fits);
    if !believed {
        row.blocks.truncate(before);
    }
    believed
}

/// Claims the pages of all rows. Rows that point to nowhere, or at pages that others point at too,
/// go: there is no telling whose the bytes are.
fn drop_misplaced(rows: &mut Vec<Row>, bad: &mut Vec<u64>, map: &mut PageMap, geometry: Geometry) {
    let before = bad.len();
    rows.retain(|row| {
        let placed = row
            .blocks
            .iter()
            .all(|(_, extent)| map.admits(extent.page, extent.pages()));
        if !placed {
            bad.push(row.body);
        }
        placed
    });
    let all = |rows: &[Row], map: &mut PageMap| {
        rows.iter()
            .flat_map(|row| &row.blocks)
            .all(|(_, extent)| map.claim(extent.page, extent.pages()))
    };
    if all(rows, map) {
        if bad.len() > before {
            tracing::warn!(
                rows = bad.len() - before,
                "rows point outside of the segments"
            );
        }
        return;
    }
    let mut places: Vec<(Extent, u64)> = rows
        .iter()
        .flat_map(|row| row.blocks.iter().map(|(_, extent)| (*extent, row.body)))
        .collect();
    places.sort_unstable_by_key(|(extent, _)| extent.page);
    let mut doubtful = HashSet::new();
    let mut reach: Option<(u32, u64)> = None;
    for (extent, body) in places {
        let end = extent.page + extent.pages();
        if let Some((reached, other)) = reach
            && extent.page < reached
        {
            doubtful.extend([body, other]);
        }
        if reach.is_none_or(|(reached, _)| end > reached) {
            reach = Some((end, body));
        }
    }
    let grown = map.grown();
    *map = PageMap::new(geometry.segment_pages, geometry.limit_pages);
    map.grow(grown);
    rows.retain(|row| !doubtful.contains(&row.body));
    bad.extend(doubtful);
    let claimed = all(rows, map);
    debug_assert!(claimed, "every row that shares pages has been dropped");
}

/// Writes down what rows hold that were written before there was a place for it.
fn count_held(connection: &mut Connection, rows: &[Row]) -> rusqlite::Result<()> {
    let any: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM object WHERE held IS NULL)",
        [],
        |row| row.get(0),
    )?;
    if !any {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    {
        let mut update =
            transaction.prepare("UPDATE object SET held = ?2 WHERE body = ?1 AND held IS NULL")?;
        for row in rows {
            let blocks = row.blocks.iter();
            let held: u64 = blocks.map(|(_, extent)| u64::from(extent.bytes)).sum();
            update.execute(params![row.body.cast_signed(), held.cast_signed()])?;
        }
    }
    transaction.commit()
}

fn delete_rows(connection: &mut Connection, bodies: &[u64]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for body in bodies {
        transaction.execute(
            "DELETE FROM block_group WHERE body = ?1",
            [body.cast_signed()],
        )?;
        transaction.execute("DELETE FROM object WHERE body = ?1", [body.cast_signed()])?;
    }
    transaction.commit()
}
