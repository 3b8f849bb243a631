//! Looking things up in the merge: by control threads and workers, each with a connection of its own; and joining
//! it to the store's index, which says what this disk holds.
//!
//! Everything here blocks, and sees what was merged when it began.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params};

use super::author::is_forgotten;
use super::local::resource_of;
use super::rows::{self, Kind, NodeRow, PurgeRow, Resource, ResourceId, Row};
use crate::clock::Stamp;

/// Looks things up. Not to be kept open within a transaction: there are none across calls.
pub struct Reader {
    connection: Connection,
    /// There is an index beside the merge.
    has_index: bool,
}

/// Which resources are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    All,
    /// URLs that begin with it.
    Prefix(String),
    /// URLs of this host and port, with either scheme.
    Host(String),
    Tag(String),
}

/// Where a list goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    url: String,
    key: Vec<u8>,
}

impl Cursor {
    /// As text, in which a list can be gone on with later.
    pub fn write(&self) -> String {
        let hex =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        format!("{}.{}", hex(self.url.as_bytes()), hex(&self.key))
    }

    /// Reads what [`Cursor::write`] gave; `None` for anything else.
    pub fn read(text: &str) -> Option<Cursor> {
        let bytes = |hex: &str| -> Option<Vec<u8>> {
            let digits = hex.as_bytes().chunks(2);
            digits
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect()
        };
        let (url, key) = text.split_once('.')?;
        Some(Cursor {
            url: String::from_utf8(bytes(url)?).ok()?,
            key: bytes(key)?,
        })
    }
}

/// A resource as it was recorded last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub resource: Resource,
    pub author: String,
    pub stamp: Stamp,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T> {
    pub items: Vec<T>,
    /// For the next part; `None` at the end.
    pub next: Option<Cursor>,
}

/// What of a resource this disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    Missing,
    /// Some of its bytes.
    Partial,
    /// All of it, and it is to be validated before it is used.
    Stale,
    /// All of it, fresh.
    Present,
}

/// A resource, and what is here of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    pub listed: Listed,
    pub held: Held,
}

/// Somebody who writes the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// Resources of which it has the last word.
    pub resources: u64,
}

/// How many resources are here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub present: u64,
    pub stale: u64,
    pub partial: u64,
    pub missing: u64,
}

impl Coverage {
    fn add(&mut self, held: Held, count: u64) {
        *match held {
            Held::Missing => &mut self.missing,
            Held::Partial => &mut self.partial,
            Held::Stale => &mut self.stale,
            Held::Present => &mut self.present,
        } += count;
    }
}

/// The best that the index has of a resource, as a number of [`Held`].
const HELD: &str = "ifnull((
    SELECT max(CASE
        WHEN object.length IS NULL OR object.held < object.length THEN object.held > 0
        WHEN object.stale_at > ?4 THEN 3 ELSE 2 END)
    FROM disk.object
    WHERE object.key = entry.cache_key AND object.variant = entry.variant), 0)";

/// How far somebody has taken note of purges. It is worth nothing for another `local.db`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeCursor {
    pub instance: String,
    pub arrival: u64,
}

/// Purges in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purges {
    pub rows: Vec<PurgeRow>,
    pub cursor: PurgeCursor,
    /// Purges are missing that were removed before they were asked for, or the cursor was another database's: who
    /// must not serve what was purged begins anew.
    pub is_gapless: bool,
}

impl Reader {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Reader> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        Ok(Reader {
            connection,
            has_index: false,
        })
    }

    /// A resource, if it is recorded.
    ///
    /// # Errors
    /// As SQLite has it, here and below.
    pub fn resource(&self, id: &ResourceId) -> rusqlite::Result<Option<Listed>> {
        let key = id.encode();
        let found = self
            .connection
            .prepare_cached(
                "SELECT key, value, author, stamp FROM entry
                 WHERE kind = 1 AND key = ?1 AND value IS NOT NULL",
            )?
            .query_row([&key], listed)
            .optional()?;
        Ok(found.flatten())
    }

    /// Up to `limit` resources behind a cursor, by URL.
    pub fn resources(
        &self,
        filter: &Filter,
        after: &Cursor,
        limit: usize,
    ) -> rusqlite::Result<List<Listed>> {
        self.list(filter, after, limit, ("NULL", 0), "TRUE", listed)
    }

    /// Attaches the store's index, for [`Reader::coverage`].
    ///
    /// # Errors
    /// When the file is not there: a store without a disk holds nothing that counts.
    pub fn attach_index(&mut self, index: &Path) -> rusqlite::Result<()> {
        let path = index.to_string_lossy();
        self.connection
            .execute("ATTACH DATABASE ?1 AS disk", [path.as_ref()])?;
        // It is opened only now.
        self.connection
            .query_row("SELECT count(*) FROM disk.meta", [], |_| Ok(()))?;
        self.has_index = true;
        Ok(())
    }

    /// What the index has of a row of `entry`: nothing, where there is no index.
    fn held(&self) -> &'static str {
        match self.has_index {
            true => HELD,
            false => "(0 * ifnull(?4, 0))",
        }
    }

    /// Up to `limit` resources behind a cursor, with what the disk holds of them at `now_secs`: one join of the
    /// merge and the attached index. Without one all is missing. Bytes that still wait to be written count as not held.
    pub fn coverage(
        &self,
        filter: &Filter,
        after: &Cursor,
        limit: usize,
        now_secs: u64,
    ) -> rusqlite::Result<List<Covered>> {
        let covered = |row: &rusqlite::Row<'_>| {
            let held = held_of(row.get(4)?);
            Ok(listed(row)?.map(|listed| Covered { listed, held }))
        };
        self.list(
            filter,
            after,
            limit,
            (self.held(), now_secs),
            "TRUE",
            covered,
        )
    }

    /// The same, of what is not whole on the disk.
    pub fn lacking(
        &self,
        filter: &Filter,
        after: &Cursor,
        limit: usize,
    ) -> rusqlite::Result<List<Covered>> {
        let covered = |row: &rusqlite::Row<'_>| {
            let held = held_of(row.get(4)?);
            Ok(listed(row)?.map(|listed| Covered { listed, held }))
        };
        let held = self.held();
        let is_lacking = format!("{held} < 2");
        self.list(filter, after, limit, (held, 0), &is_lacking, covered)
    }

    /// How many resources are not whole on the disk.
    pub fn count_lacking(&self, filter: &Filter) -> rusqlite::Result<u64> {
        let (condition, wanted) = condition(filter);
        let held = self.held();
        let sql = format!(
            "SELECT count(*) FROM entry
             WHERE url IS NOT NULL AND kind = 1 AND ?1 IS NULL AND ?2 IS NULL AND ?3 IS NULL
                 AND {held} < 2 AND {condition}"
        );
        let (nothing, now) = (rusqlite::types::Null, 0_i64);
        let mut parameters: Vec<&dyn ToSql> = vec![&nothing, &nothing, &nothing, &now];
        parameters.extend(wanted.iter().map(|text| text as &dyn ToSql));
        let count: i64 = self
            .connection
            .prepare_cached(&sql)?
            .query_row(parameters.as_slice(), |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// How many resources the disk holds, and how, at `now_secs`.
    pub fn coverage_counts(&self, now_secs: u64) -> rusqlite::Result<Coverage> {
        let held = self.held();
        let sql = format!(
            "SELECT {held} AS held, count(*) FROM entry
             WHERE url IS NOT NULL AND ?1 IS NULL AND ?2 IS NULL AND ?3 IS NULL GROUP BY held"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let nothing = rusqlite::types::Null;
        let mut rows =
            statement.query(params![nothing, nothing, nothing, now_secs.cast_signed()])?;
        let mut counts = Coverage::default();
        while let Some(row) = rows.next()? {
            let count = row.get::<_, i64>(1)?.unsigned_abs();
            counts.add(held_of(row.get(0)?), count);
        }
        Ok(counts)
    }

    /// The same for groups of resources, as `name` calls them by URL and origin. What is beyond `limit` groups counts
    /// in one called `*`.
    pub fn coverage_groups(
        &self,
        now_secs: u64,
        limit: usize,
        name: impl Fn(&str, &str) -> String,
    ) -> rusqlite::Result<BTreeMap<String, Coverage>> {
        let sql = format!(
            "SELECT {} AS held, url, json_extract(value, '$.origin') FROM entry
             WHERE url IS NOT NULL AND ?1 IS NULL AND ?2 IS NULL AND ?3 IS NULL",
            self.held()
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let nothing = rusqlite::types::Null;
        let mut rows =
            statement.query(params![nothing, nothing, nothing, now_secs.cast_signed()])?;
        let mut groups: BTreeMap<String, Coverage> = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let (url, origin): (String, Option<String>) = (row.get(1)?, row.get(2)?);
            let name = name(&url, origin.as_deref().unwrap_or_default());
            let name = match groups.len() < limit || groups.contains_key(&name) {
                true => name,
                false => "*".to_owned(),
            };
            groups.entry(name).or_default().add(held_of(row.get(0)?), 1);
        }
        Ok(groups)
    }

    /// How many stored responses the manifest does not list.
    pub fn count_extra(&self) -> rusqlite::Result<u64> {
        if !self.has_index {
            return Ok(0);
        }
        let count: i64 = self
            .connection
            .prepare_cached(
                "SELECT count(*) FROM disk.object
                 WHERE (key, variant) NOT IN (
                     SELECT cache_key, variant FROM entry
                     WHERE url IS NOT NULL AND cache_key IS NOT NULL AND variant IS NOT NULL)",
            )?
            .query_row([], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// The rows of `entry` that a filter and `only` let through, with one more column; in both ?4 is a number.
    fn list<T>(
        &self,
        filter: &Filter,
        after: &Cursor,
        limit: usize,
        (column, number): (&str, u64),
        only: &str,
        read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<T>>,
    ) -> rusqlite::Result<List<T>> {
        let (condition, wanted) = condition(filter);
        let sql = format!(
            "SELECT key, value, author, stamp, {column}, url FROM entry
             WHERE url IS NOT NULL AND kind = 1 AND (url, key) > (?1, ?2) AND ?4 IS NOT NULL
                 AND {condition} AND {only}
             ORDER BY url, key LIMIT ?3"
        );
        let (rows, number) = (limit as i64, number.cast_signed());
        let mut parameters: Vec<&dyn ToSql> = vec![&after.url, &after.key, &rows, &number];
        parameters.extend(wanted.iter().map(|text| text as &dyn ToSql));
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(parameters.as_slice())?;
        let mut items = Vec::new();
        let mut next = None;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            seen += 1;
            next = Some(Cursor {
                url: row.get(5)?,
                key: row.get(0)?,
            });
            items.extend(read(row)?);
        }
        Ok(List {
            items,
            next: next.filter(|_| seen == limit),
        })
    }

    /// How many resources are recorded.
    pub fn count(&self) -> rusqlite::Result<u64> {
        let count: i64 = self
            .connection
            .prepare_cached("SELECT count(*) FROM entry WHERE url IS NOT NULL")?
            .query_row([], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// All nodes that have told of themselves, by id.
    pub fn nodes(&self) -> rusqlite::Result<Vec<NodeRow>> {
        let values = self.live(Kind::Node)?;
        Ok(values
            .into_values()
            .filter_map(|value| rows::read(&value).ok())
            .collect())
    }

    /// What an author has said; `None` if nothing is known of it, or it was forgotten.
    pub fn author(&self, name: &str) -> rusqlite::Result<Option<Author>> {
        let instance: Option<String> = self
            .connection
            .prepare_cached("SELECT instance FROM author WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        let (rows, resources): (i64, i64) = self
            .connection
            .prepare_cached(
                "SELECT count(*), count(url) FROM entry
                 WHERE author = ?1 AND kind IN (?2, ?3) AND value IS NOT NULL",
            )?
            .query_row(
                params![name, Kind::Resource.number(), Kind::Node.number()],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
        let is_known = rows > 0 || instance.is_some_and(|instance| !is_forgotten(&instance));
        Ok(is_known.then_some(Author {
            resources: resources.unsigned_abs(),
        }))
    }

    /// All settings, by name.
    pub fn settings(&self) -> rusqlite::Result<BTreeMap<String, String>> {
        let read = |(key, value): (Vec<u8>, String)| {
            Some((String::from_utf8(key).ok()?, rows::read(&value).ok()?))
        };
        Ok(self
            .live(Kind::Setting)?
            .into_iter()
            .filter_map(read)
            .collect())
    }

    fn live(&self, kind: Kind) -> rusqlite::Result<BTreeMap<Vec<u8>, String>> {
        self.connection
            .prepare_cached("SELECT key, value FROM entry WHERE kind = ?1 AND value IS NOT NULL")?
            .query_map([kind.number()], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    }

    /// Up to `limit` purges that came after the cursor, one's own included.
    pub fn purges_since(&self, after: &PurgeCursor, limit: usize) -> rusqlite::Result<Purges> {
        let meta = |name: &str| -> rusqlite::Result<String> {
            self.connection
                .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
        };
        let instance = meta("instance")?;
        let is_ours = after.instance == instance;
        let mut arrival = if is_ours { after.arrival } else { 0 };
        let removed: u64 = meta("purges_removed")?.parse().unwrap_or_default();
        let mut rows = Vec::new();
        let mut statement = self.connection.prepare_cached(
            "SELECT purge.arrival, entry.key, entry.value, entry.author, entry.stamp
             FROM purge JOIN entry ON entry.kind = 2 AND entry.key = purge.key
             WHERE purge.arrival > ?1 ORDER BY purge.arrival LIMIT ?2",
        )?;
        let is_gapless = is_ours && arrival >= removed;
        let mut found = statement.query(params![arrival.cast_signed(), limit as i64])?;
        while let Some(row) = found.next()? {
            arrival = row.get::<_, i64>(0)?.unsigned_abs();
            let (key, value): (Vec<u8>, Option<String>) = (row.get(1)?, row.get(2)?);
            let purge = value.and_then(|value| rows::read(&value).ok());
            let (Some(number), Some(purge)) = (rows::purge_number(&key), purge) else {
                continue;
            };
            rows.push(PurgeRow {
                author: row.get(3)?,
                number,
                stamp: Stamp(row.get::<_, i64>(4)?.cast_unsigned()),
                purge,
            });
        }
        Ok(Purges {
            rows,
            cursor: PurgeCursor { instance, arrival },
            is_gapless,
        })
    }

    /// The whole merge, tombstones included, by kind and key: what nodes that have heard the same hold equally.
    pub fn all_rows(&self) -> rusqlite::Result<Vec<Row>> {
        self.connection
            .prepare_cached("SELECT kind, key, stamp, author, value FROM entry ORDER BY kind, key")?
            .query_map([], |row| {
                Ok(Row {
                    kind: row.get(0)?,
                    key: row.get(1)?,
                    stamp: Stamp(row.get::<_, i64>(2)?.cast_unsigned()),
                    author: row.get(3)?,
                    value: row.get(4)?,
                })
            })?
            .collect()
    }
}

pub(super) fn listed(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Listed>> {
    let (key, value): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
    let author = row.get(2)?;
    let stamp = Stamp(row.get::<_, i64>(3)?.cast_unsigned());
    Ok(resource_of(&key, &value).map(|resource| Listed {
        resource,
        author,
        stamp,
    }))
}

fn held_of(number: i64) -> Held {
    match number {
        3 => Held::Present,
        2 => Held::Stale,
        1 => Held::Partial,
        _ => Held::Missing,
    }
}

/// What a filter says of the rows of `entry`, with its texts from ?5 on.
fn condition(filter: &Filter) -> (&'static str, Vec<String>) {
    let of_host = |scheme: &str, host: &str| format!("{scheme}://{host}/");
    match filter {
        Filter::All => ("TRUE", Vec::new()),
        Filter::Prefix(prefix) => (
            "url >= ?5 AND url < ?6",
            vec![prefix.clone(), above(prefix)],
        ),
        Filter::Host(host) => {
            let (plain, tls) = (of_host("http", host), of_host("https", host));
            (
                "(url >= ?5 AND url < ?6 OR url >= ?7 AND url < ?8)",
                vec![plain.clone(), above(&plain), tls.clone(), above(&tls)],
            )
        }
        Filter::Tag(tag) => (
            "key IN (SELECT key FROM resource_tag WHERE tag = ?5)",
            vec![tag.clone()],
        ),
    }
}

/// A text above all that begin with `prefix`.
fn above(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}
