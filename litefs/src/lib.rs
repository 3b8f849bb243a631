//! Bindings for [LiteFS](https://github.com/superfly/litefs) 0.5: take its HALT lock, and know where a
//! node stands.
//!
//! LiteFS is a FUSE file system that replicates SQLite databases from one *primary* to *replicas*. A
//! replica's databases are read-only, unless it holds the database's **HALT lock**: then the primary
//! stands still, and the replica writes in its place.
//!
//! ```no_run
//! use std::path::Path;
//!
//! # fn commit(_: &Path) -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let database = Path::new("/litefs/node-7.db");
//! litefs::create_database(database)?; // nothing happens if it is there
//! let lock = litefs::halt(database)?; // BLOCKING: up to 10 seconds
//! commit(database)?; // `BEGIN IMMEDIATE` … `COMMIT`, with any SQLite library
//! let position = litefs::position(database)?;
//! lock.release()?;
//! println!("committed as {position}");
//! # Ok(()) }
//! ```
//!
//! | what | how |
//! |---|---|
//! | write on a replica | [`halt`], [`create_database`] |
//! | who is primary | [`info`], [`Events::role`], as a [`Role`] |
//! | what a node has of a database | [`position`], [`lag`] |
//! | wait for something to change | [`Events`] |
//!
//! # What blocks
//!
//! Every function here blocks the calling thread; there is no runtime and no thread of this crate. What
//! goes through the mount ([`halt`], [`HaltGuard::release`] and its drop, [`create_database`],
//! [`position`], [`lag`], [`primary`]) has no time limit of its own: when the LiteFS process is stopped
//! but not dead, such a call returns when LiteFS goes on or dies. What goes over HTTP has the limits that
//! [`info`] and [`Events`] name.
//!
//! # Rules for writers
//!
//! LiteFS works well within these, and fails in hard ways outside:
//!
//! - **One writer for each database.** Let each node write a database of its own, and read all of them.
//!   Nodes that take turns on *one* database wedge LiteFS: a frame of another node that arrives while
//!   this node holds the lock makes it wait for itself, until it is restarted.
//! - **No child processes while a lock is held.** See [`HaltGuard`].
//! - **Rollback journal, not WAL**: `PRAGMA journal_mode = TRUNCATE` on every connection. In WAL mode a
//!   commit that the primary refuses is reported as a success.
//! - `BEGIN IMMEDIATE` after [`halt`], and a `busy_timeout` of at least 5 seconds.
//! - **Short reads everywhere.** A read transaction that is left open on a replica holds up the
//!   replication of all its databases.
//! - **An error after `BEGIN` means unknown**: the transaction may be there. Write so that it can be
//!   applied again.
//! - Be done well before [`HALT_LIFE`]: a lock that has expired is not reported, and does not stop a
//!   commit.
//! - A database's name ends in none of `-journal`, `-wal`, `-shm`, `-pos` and `-lock`, and the mount has
//!   no folders.
//!
//! LiteFS's HTTP port has no authentication. Keep it on a private network.

mod descriptor;
mod events;
mod halt;
mod http;
mod info;
mod mount;
mod position;

pub use events::{Event, Events, Stopper};
pub use halt::{HALT_LIFE, HALT_WAIT, HaltError, HaltGuard, halt};
pub use http::HttpError;
pub use info::{Info, Role, info};
pub use mount::{MountError, create_database, lag, position, primary};
pub use position::{ParsePositionError, Position};
