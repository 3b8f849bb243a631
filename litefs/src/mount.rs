//! What a mount says of itself, through its files.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};

use crate::Position;

/// A mount that does not answer, or is none.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount is there, and nobody serves it: LiteFS has died (`ENOTCONN`, `ECONNABORTED`).
    #[error(
        "no LiteFS serves the mount {} any more; try: the log of LiteFS, then `umount -l {0}` and start it again",
        mount.display()
    )]
    NotMounted {
        /// The mount.
        mount: PathBuf,
    },
    /// The folder lies on another file system: LiteFS was not mounted there, or elsewhere.
    #[error(
        "{} is no LiteFS mount; try: compare it with `fuse.dir` in litefs.yml, and look whether LiteFS runs (`mount -t fuse`)",
        folder.display()
    )]
    NotLiteFs {
        /// The folder in which the database would be.
        folder: PathBuf,
    },
    /// This node's LiteFS knows no such database.
    #[error(
        "LiteFS knows no database {}; try: `create_database` before the first write, or wait until it is replicated",
        database.display()
    )]
    NoSuchDatabase {
        /// The path of the database.
        database: PathBuf,
    },
    /// Anything else that reading or opening a file of the mount has answered.
    #[error("{}: {source}; try: the log of LiteFS", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Makes sure that a database exists, so that it can be locked: on a replica, too. One that exists is not
/// opened, so that the locks of SQLite connections in this process stay.
///
/// A new database is empty; write it first under [`halt`](crate::halt()). BLOCKING.
///
/// # Errors
/// [`MountError`]; on a mount that is gone, for example.
pub fn create_database(database: impl AsRef<Path>) -> Result<(), MountError> {
    let database = database.as_ref();
    check(folder_of(database))?;
    let created = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(database);
    match created {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(MountError::from_io(error, database, database)),
    }
}

/// How far this node has come with a database. BLOCKING.
///
/// After a commit under [`halt`](crate::halt()), and before the lock is released, it is the position of that
/// commit.
///
/// # Errors
/// [`MountError::NoSuchDatabase`], among others.
pub fn position(database: impl AsRef<Path>) -> Result<Position, MountError> {
    let database = database.as_ref();
    let path = beside(database, "-pos");
    let text = read(&path, database)?;
    text.trim_end_matches('\n')
        .parse()
        .map_err(|error| invalid(&path, error))
}

/// How long ago this node last heard from its primary, by both machines' clocks. `None` before it has
/// caught up for the first time, zero on the primary. BLOCKING.
///
/// Do not judge a node's health by it: a node that writes much looks late, and a wedged one healthy.
/// Compare [`position`]s instead.
///
/// # Errors
/// [`MountError`].
pub fn lag(mount: impl AsRef<Path>) -> Result<Option<Duration>, MountError> {
    let path = mount.as_ref().join(".lag");
    let text = read(&path, &path)?;
    parse_lag(&text).ok_or_else(|| invalid(&path, "not a number of milliseconds"))
}

/// The host name of the primary that this replica is connected to: LiteFS's `.primary` file. BLOCKING.
///
/// `None` means that this node is the primary *or* that nobody is known to be one. To tell these two apart,
/// ask for the [`Role`](crate::Role).
///
/// # Errors
/// [`MountError`].
pub fn primary(mount: impl AsRef<Path>) -> Result<Option<String>, MountError> {
    let mount = mount.as_ref();
    check(mount)?;
    let path = mount.join(".primary");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(MountError::from_io(error, &path, &path)),
    }
}

/// `<database><suffix>`.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether LiteFS serves this folder: only FUSE mounts with a `.lag` file are its.
pub(crate) fn check(folder: &Path) -> Result<(), MountError> {
    let lag = folder.join(".lag");
    let found =
        statfs(folder)
            .map_err(io::Error::from)
            .and_then(|stat| match stat.filesystem_type() {
                FUSE_SUPER_MAGIC => fs::symlink_metadata(&lag).map(drop),
                _ => Err(ErrorKind::NotFound.into()),
            });
    match found {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(MountError::NotLiteFs {
            folder: folder.to_owned(),
        }),
        Err(error) => Err(MountError::from_io(error, &lag, &lag)),
        Ok(()) => Ok(()),
    }
}

fn read(path: &Path, database: &Path) -> Result<String, MountError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) => {
            if error.kind() == ErrorKind::NotFound {
                check(folder_of(path))?;
            }
            Err(MountError::from_io(error, path, database))
        }
    }
}

fn invalid(path: &Path, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> MountError {
    MountError::Io {
        path: path.to_owned(),
        source: io::Error::new(ErrorKind::InvalidData, what),
    }
}

/// LiteFS writes `i32::MAX` before the first catch-up; a clock that is ahead makes it negative.
fn parse_lag(text: &str) -> Option<Option<Duration>> {
    let millis: i64 = text.trim_end_matches('\n').parse().ok()?;
    if millis == i64::from(i32::MAX) {
        return Some(None);
    }
    Some(Some(Duration::from_millis(
        u64::try_from(millis).unwrap_or(0),
    )))
}

impl MountError {
    pub(crate) fn from_io(error: io::Error, path: &Path, database: &Path) -> MountError {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTCONN | Errno::ECONNABORTED) => MountError::NotMounted {
                mount: folder_of(database).to_owned(),
            },
            Some(Errno::ENOENT) => MountError::NoSuchDatabase {
                database: database.to_owned(),
            },
            _ => MountError::Io {
                path: path.to_owned(),
                source: error,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MountError, check, create_database, parse_lag, position};
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn lag_has_three_kinds_of_values() {
        let table = [
            ("+000000000\n", Some(Some(0))),
            ("+000001234\n", Some(Some(1234))),
            ("-000000007\n", Some(Some(0))),
            ("+2147483647\n", Some(None)),
            ("", None),
            ("soon\n", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|lag| lag.map(Duration::from_millis));
            assert_eq!(parse_lag(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_dead_mount_is_named_with_what_to_do() {
        let error = std::io::Error::from(nix::errno::Errno::ENOTCONN);
        let database = Path::new("/m/a.db");
        let error = MountError::from_io(error, Path::new("/m/a.db-pos"), database);
        assert_eq!(
            error.to_string(),
            "no LiteFS serves the mount /m any more; try: the log of LiteFS, then `umount -l /m` and start it again"
        );
    }

    #[test]
    fn a_plain_folder_is_no_mount() {
        let folder = std::env::temp_dir();
        assert!(matches!(check(&folder), Err(MountError::NotLiteFs { .. })));
        let nowhere = check(Path::new("/no/such/folder"));
        assert!(matches!(nowhere, Err(MountError::NotLiteFs { .. })));
        let database = folder.join("litefs-no-such.db");
        assert!(matches!(
            create_database(&database),
            Err(MountError::NotLiteFs { .. })
        ));
        assert!(!database.exists(), "nothing is created there");
        assert!(matches!(
            position(&database),
            Err(MountError::NotLiteFs { .. })
        ));
    }
}
