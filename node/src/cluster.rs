//! Where nodes meet: a folder with a database for each node, who may write one now, and who has written.
//!
//! Kept true here:
//! - A database `m-<node>.db` is written by its author alone, and only within [`Engine::publish`], which holds
//!   its lock. LiteFS's primary has none to hold, and refuses who is none any more.
//! - Whoever subscribes is told of each change, or that some may have been missed ([`Event::Resync`]).
//! - Nothing here knows what the databases hold; only `litefs` knows LiteFS's files.
//!
//! Whatever takes an engine's `&self` may block: in `fcntl`, or in a file system that has stopped.

mod litefs;
mod local;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use self::litefs::{LiteFs, Role};
pub use local::Local;

/// How long a lock is used at the most. LiteFS takes it away after 30 seconds, and says nothing.
pub const TURN: Duration = Duration::from_secs(5);

/// How far a database has come on this node. Two copies with equal positions have equal content; a position that
/// goes down, or another checksum for the same transaction, means that something was undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// One more with each transaction.
    pub transaction: u64,
    pub checksum: u64,
}

/// What an engine has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The database of this author has changed.
    Changed(String),
    /// Changes may have been missed: look at all databases. It comes first, and after each gap.
    Resync,
    /// Another role.
    Role(Role),
}

/// How up to date the databases of others are on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// They are the originals, or there is no other copy that could be ahead.
    Original,
    /// As they were so long ago, or later.
    AsOf(Duration),
    /// Not all that there was has come yet, or nobody is there who would tell.
    #[default]
    Unknown,
}

/// Why a database could not be locked, found or asked about.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Another process is this author.
    #[error(
        "another process writes as node `{author}`; try: a `manifest.node` (or `node.name`) of its own for each node"
    )]
    Taken { author: String },
    /// Nobody can grant the lock now.
    #[error("no primary: {0}")]
    NoPrimary(String),
    /// The lock was not granted in time.
    #[error("waited in vain for the lock: {0}")]
    TimedOut(String),
    /// The lock was granted, and of no use: this node's copy does not stand where the primary's does. Only a restart of
    /// LiteFS is sure to help.
    #[error("the own copy stands still: {0}")]
    OutOfStep(String),
    /// The primary has not sent all yet that this node lacks. Nothing was tried.
    #[error("what the primary had is not all here yet")]
    Joining,
    /// The lock was, or may have been, lost while it was used. What was written may be there, or not.
    #[error("the lock of {0} was lost while it was held")]
    Lost(String),
    /// Nobody serves the folder. It comes back, if at all, as another mount.
    #[error("{0}")]
    Gone(String),
    /// The folder, or something in it, does not answer as it should.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// LiteFS's own words.
    #[error("{0}")]
    LiteFs(String),
}

impl ClusterError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
        let path = path.to_owned();
        move |source| ClusterError::Io { path, source }
    }
}

/// The time in which a database may be written: its lock is held until this goes.
pub struct Turn<'a> {
    database: &'a Path,
    until: Instant,
}

impl<'a> Turn<'a> {
    /// A turn that begins now.
    pub fn new(database: &'a Path) -> Turn<'a> {
        Turn {
            database,
            until: Instant::now() + TURN,
        }
    }

    #[cfg(test)]
    pub(crate) fn over(database: &'a Path) -> Turn<'a> {
        Turn {
            database,
            until: Instant::now(),
        }
    }

    pub fn database(&self) -> &Path {
        self.database
    }

    /// Too late to commit: what was begun is to be rolled back.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// That this process is an author, for as long as it is kept.
#[derive(Debug, Default)]
pub struct Claim {
    _held: Option<File>,
}

/// Tells of changes until it is dropped. Dropping waits for the thread that tells.
pub struct Subscription {
    stop: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop();
        }
    }
}

impl Subscription {
    pub fn new(stop: impl FnOnce() + Send + 'static) -> Subscription {
        Subscription {
            stop: Some(Box::new(stop)),
        }
    }
}

/// Takes events, on the engine's own thread. It must not block.
pub type Listener = Box<dyn Fn(Event) + Send>;

/// The seam between the manifest and what replicates it. All calls may block.
pub trait Engine: Send + Sync {
    /// Makes this process the one author of that name, where that can be known.
    ///
    /// # Errors
    /// [`ClusterError::Taken`].
    fn claim(&self, author: &str) -> Result<Claim, ClusterError>;

    /// Calls `write` once while the author's database is locked, and says where the database stands then. The
    /// database need not exist before. Without the lock `write` is not called.
    ///
    /// # Errors
    /// After each in which `write` was called, what it has committed may be there, or not.
    fn publish(
        &self,
        author: &str,
        write: &mut dyn FnMut(&Turn<'_>),
    ) -> Result<Position, ClusterError>;

    /// Begins to tell `listener`, with [`Event::Resync`] first.
    ///
    /// # Errors
    /// [`ClusterError::Io`], when there is no folder to watch or no thread to be had.
    fn subscribe(&self, listener: Listener) -> Result<Subscription, ClusterError>;

    /// Where the author's database stands; the default if it has none.
    ///
    /// # Errors
    /// [`ClusterError`].
    fn position(&self, author: &str) -> Result<Position, ClusterError>;

    /// The role as it was last told of. Does not block.
    fn role(&self) -> Role;

    /// How up to date the databases of others are here. There is no event for it.
    ///
    /// # Errors
    /// [`ClusterError`].
    fn freshness(&self) -> Result<Freshness, ClusterError>;

    /// Everybody who has a database here.
    ///
    /// # Errors
    /// [`ClusterError::Io`].
    fn authors(&self) -> Result<Vec<String>, ClusterError>;

    /// Where the author's database is, for reading.
    fn database(&self, author: &str) -> PathBuf;

    /// Whether a reader may end what a killed author left half done.
    fn readers_recover(&self) -> bool;
}

/// Longest name of an author.
const MAX_AUTHOR_BYTES: usize = 64;

/// Whether a node of that name can have a database: letters, digits, `-`, `_` and `.`.
pub fn is_author(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= MAX_AUTHOR_BYTES && name.bytes().all(plain)
}

fn file_of(author: &str) -> String {
    format!("m-{author}.db")
}

/// `a` of `m-a.db`, and nothing of any other file.
fn author_of(file: &str) -> Option<&str> {
    let author = file.strip_prefix("m-")?.strip_suffix(".db")?;
    is_author(author).then_some(author)
}

fn authors_in(folder: &Path) -> Result<Vec<String>, ClusterError> {
    let mut authors = Vec::new();
    for entry in folder.read_dir().map_err(ClusterError::io(folder))? {
        let name = entry.map_err(ClusterError::io(folder))?.file_name();
        authors.extend(name.to_str().and_then(author_of).map(str::to_owned));
    }
    authors.sort();
    Ok(authors)
}

#[cfg(test)]
mod tests {
    use super::{author_of, file_of};

    #[test]
    fn only_databases_of_authors_are_read() {
        for author in ["a", "edge-1.lhr_2", &"n".repeat(64)] {
            assert_eq!(author_of(&file_of(author)), Some(author));
        }
        for other in [
            "m-.db",
            "m-a.db-journal",
            "m-a.db-lock",
            "a.db",
            "m-a b.db",
            "m-a/../b.db",
            ".m-a.db",
            &file_of(&"n".repeat(65)),
        ] {
            assert_eq!(author_of(other), None, "{other}");
        }
    }
}
