//! What has failed so far, in a small database of this node's own: counts outlast a restart.
//!
//! It knows what it is told under a digest, nothing of what that stands for. BLOCKING. A database that cannot be
//! used is done without: counts then last as long as the process.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::workers::limits::Attempts;

/// BLAKE3 of a resource's id.
pub type Digest = [u8; 32];

/// Rows that nobody has touched for so long are of resources that are gone.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

pub struct Book {
    /// `None` where not even memory is to be had: nothing is remembered.
    connection: Option<Connection>,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS attempt (
        digest BLOB PRIMARY KEY,
        last_ms INTEGER NOT NULL,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS attempt_last ON attempt (last_ms);";

impl Book {
    /// Opens it, or makes it. One that is damaged is begun anew: only counts are lost.
    pub fn open(path: &Path) -> Book {
        let open = |path: &Path| -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.execute_batch(SCHEMA)?;
            // Its pages are there, too.
            connection.query_row("SELECT count(*) FROM attempt", [], |_| Ok(()))?;
            Ok(connection)
        };
        let in_memory = || {
            let connection = Connection::open_in_memory()?;
            connection.execute_batch(SCHEMA)?;
            Ok::<_, rusqlite::Error>(connection)
        };
        let opened = open(path).or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the counts of failed attempts are begun anew");
            for suffix in ["", "-wal", "-shm"] {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                // What is not there need not be removed, and what stays fails below.
                let _ = std::fs::remove_file(name);
            }
            open(path)
        });
        let connection = opened.or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "failed attempts are counted in memory");
            in_memory()
        });
        Book {
            connection: connection.ok(),
        }
    }

    pub fn of(&self, digest: &Digest) -> rusqlite::Result<Option<Attempts>> {
        let Some(connection) = &self.connection else {
            return Ok(None);
        };
        let value: Option<String> = connection
            .prepare_cached("SELECT value FROM attempt WHERE digest = ?1")?
            .query_row([&digest[..]], |row| row.get(0))
            .optional()?;
        Ok(value.and_then(|value| serde_json::from_str(&value).ok()))
    }

    /// `None`: nothing is known of it any more.
    pub fn set(&self, digest: &Digest, attempts: Option<&Attempts>) -> rusqlite::Result<()> {
        let Some(connection) = &self.connection else {
            return Ok(());
        };
        match attempts {
            None => connection
                .prepare_cached("DELETE FROM attempt WHERE digest = ?1")?
                .execute([&digest[..]])?,
            Some(attempts) => connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO attempt (digest, last_ms, value) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![
                    &digest[..],
                    attempts.last_ms.cast_signed(),
                    serde_json::to_string(attempts).unwrap_or_default()
                ])?,
        };
        Ok(())
    }

    /// Lets go of what is not asked about any more.
    pub fn forget_old(&self, now_ms: u64) -> rusqlite::Result<()> {
        let before = now_ms.saturating_sub(FORGOTTEN.as_millis() as u64);
        if let Some(connection) = &self.connection {
            connection.execute(
                "DELETE FROM attempt WHERE last_ms < ?1",
                [before.cast_signed()],
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::hold::Shortfall;

    #[test]
    fn counts_outlast_the_process_and_a_damaged_file_does_no_harm() {
        let dir = std::env::temp_dir().join(format!("caje-attempts-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let path = dir.join("populate.db");
        let mut attempts = Attempts {
            stamp: 7,
            ..Attempts::default()
        };
        attempts.note(Shortfall::Status(404), 5);
        attempts.note(Shortfall::Connect, 6);
        let digest = [1; 32];
        Book::open(&path)
            .set(&digest, Some(&attempts))
            .expect("written");
        let book = Book::open(&path);
        assert_eq!(book.of(&digest).expect("read"), Some(attempts));
        book.forget_old(FORGOTTEN.as_millis() as u64 + 7)
            .expect("forgotten");
        assert_eq!(book.of(&digest).expect("read"), None);
        drop(book);
        std::fs::write(&path, [0x5a; 8192]).expect("damage");
        let book = Book::open(&path);
        assert_eq!(book.of(&digest).expect("read"), None);
        drop(book);
        let _ = std::fs::remove_dir_all(&dir);
    }
}
