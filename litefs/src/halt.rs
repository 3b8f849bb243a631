//! The HALT lock.
//!
//! Kept true here: the descriptor that holds the lock has a number of at least 900, is the only one of its
//! open file description from before the lock until after it, and never leaves its guard.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::descriptor::{LOWEST, duplicate_high};
use crate::mount::{MountError, beside, check, folder_of};

/// How long LiteFS waits for a lock before it gives up. It cannot be configured.
pub const HALT_WAIT: Duration = Duration::from_secs(10);

/// How long a primary honours a lock. It cannot be configured, and looks every 5 seconds.
pub const HALT_LIFE: Duration = Duration::from_secs(30);

/// A refusal that took this long is a wait that ended; an earlier one had another cause.
const WAITED: Duration = Duration::from_secs(9);

/// Interrupted waits are taken up again until then. LiteFS's own limit begins anew with each.
const RETRIED: Duration = Duration::from_secs(12);

/// The byte of the `-lock` file that is the HALT lock.
const HALT_BYTE: libc::off_t = 72;

/// Why a database could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum HaltError {
    /// The mount does not answer, or is none, or has no such database.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// There is no primary that could stand still: none is known, or it cannot be reached (`EIO`, at once).
    #[error(
        "{}: no primary granted HALT, refused after {waited:?}; try: `/info` of this node's LiteFS says who is primary, its log why it is not reached",
        database.display()
    )]
    NoPrimary {
        /// The path of the database.
        database: PathBuf,
        /// From the call to the refusal.
        waited: Duration,
    },
    /// Somebody else held the lock all the time, or read or wrote the database on the primary; or the
    /// primary did not answer (`EIO`, after [`HALT_WAIT`]).
    #[error(
        "{}: HALT was not granted within {waited:?}; try: look for another holder, for a transaction left open on the primary, and whether the primary still runs",
        database.display()
    )]
    TimedOut {
        /// The path of the database.
        database: PathBuf,
        /// From the call to the refusal.
        waited: Duration,
    },
    /// The primary has granted the lock, and this node's copy has not come to stand where the primary's does, so LiteFS has
    /// given it back. It has *not* forgotten it on this node: the next content of somebody else's that the primary brings
    /// for this database stops the replica for good. The next lock on the database that is granted, and released, makes
    /// it forget; where the copy stands still because the answer to a commit was lost, none is, and LiteFS has to be
    /// restarted. Said once: further attempts are refused for whatever reason they have.
    #[error(
        "{}: HALT was granted, but this node's copy is not where the primary's is, after {waited:?}; try: restart this node's LiteFS",
        database.display()
    )]
    OutOfStep {
        /// The path of the database.
        database: PathBuf,
        /// From the call to the refusal.
        waited: Duration,
    },
    /// This very descriptor holds the lock already, or waits for it (`ENOLCK`). [`halt`] opens a new one for
    /// each lock and cannot meet this.
    #[error(
        "{}: this descriptor holds HALT already; try: release it before taking it again",
        database.display()
    )]
    AlreadyHeld {
        /// The path of the database.
        database: PathBuf,
    },
    /// The process may not open a file with a number of 900 or more.
    #[error(
        "a lock needs a descriptor of at least {LOWEST}, which RLIMIT_NOFILE forbids; try: `ulimit -n 1024`"
    )]
    TooFewDescriptors,
    /// Anything else that the system has answered.
    #[error("{}: {source}; try: the log of LiteFS", database.display())]
    Io {
        /// The path of the database.
        database: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Takes the HALT lock of a database, so that this replica may write it.
///
/// BLOCKING: up to [`HALT_WAIT`] while somebody else holds the lock, or reads or writes the database on the
/// primary; without a limit while the LiteFS process is stopped. A signal does not end the wait.
///
/// On return this node has everything that the primary had of the database. While the lock is held, whoever
/// reads *this* database on the primary waits.
///
/// # What stops the replica for good
///
/// A replica that has asked for the lock, or holds it, and is then brought content *for that database* by its primary
/// takes its own write lock twice (`Store.processLTXStreamFrame`, `DB.UnsetRemoteHaltLock`), and replicates nothing any
/// more, whatever the database, until LiteFS is restarted. A call that has reached it then, the unlock for example,
/// does not return. So nobody should ask
/// - for the lock of a database that another node writes;
/// - on a database that this node has just made, until its content has come back: LiteFS sends its author a copy
///   after the first lock is released, which shows as a second [`Event::Tx`](crate::Event::Tx) with the same position;
/// - after [`HaltError::OutOfStep`], without a restart of LiteFS, if anybody else has written the database;
/// - after [`Event::PrimaryChange`](crate::Event::PrimaryChange) to a replica, until all has come that the primary had:
///   [`lag`](crate::lag()) is then shorter than the time since that event.
///
/// **On the primary** the lock is granted at once, does nothing and excludes nobody: a primary writes
/// without it. So the same code runs everywhere.
///
/// # Errors
/// [`HaltError`], by cause. After each the lock is not held.
pub fn halt(database: impl AsRef<Path>) -> Result<HaltGuard, HaltError> {
    let database = database.as_ref();
    check(folder_of(database))?;
    let lock = open_high(database)?;
    let was_counted = is_counted_as_held(&lock);
    let asked = Instant::now();
    loop {
        let refused = match set_lock(&lock, libc::F_WRLCK) {
            Ok(()) => break,
            Err(Errno::EINTR) if asked.elapsed() < RETRIED => continue,
            Err(errno) => errno,
        };
        let waited = asked.elapsed();
        return Err(match refused {
            Errno::EIO | Errno::EINTR if !was_counted && is_counted_as_held(&lock) => {
                HaltError::OutOfStep {
                    database: database.to_owned(),
                    waited,
                }
            }
            refused => refusal(refused, database, waited),
        });
    }
    Ok(HaltGuard {
        lock: Some(lock),
        database: database.to_owned(),
        asked,
        taken: Instant::now(),
    })
}

/// A HALT lock that is held. Dropping it releases the lock, and says nothing of failures:
/// [`release`](HaltGuard::release) does.
///
/// # What releases it too
///
/// LiteFS ties the lock to an open file, and takes *any* closing of any duplicate of its descriptor as
/// the end. This guard keeps the only one, and hands it out to nobody. One door is left:
///
/// **Spawning any child process releases the lock**, from any thread of the process, with any library. The
/// child begins with a duplicate of every descriptor and closes it on exec. Nothing reports it; the next
/// write fails, or meets another's. So a process that takes the lock has no children, or started them before.
///
/// # What expires it
///
/// The primary drops the lock [`HALT_LIFE`] after it was granted, and says nothing. There is no fencing: a
/// commit after that is accepted if nobody has written in between. Ask [`is_expired`](HaltGuard::is_expired)
/// before a commit.
///
/// A process that dies by a signal leaves its lock to expire, within a transaction or not: for up to 35 seconds
/// nobody writes that database. Release it where SIGTERM is handled.
#[derive(Debug)]
#[must_use = "dropping the guard releases the lock"]
pub struct HaltGuard {
    /// `None` once released.
    lock: Option<OwnedFd>,
    database: PathBuf,
    asked: Instant,
    taken: Instant,
}

impl HaltGuard {
    /// The database that is locked.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Since [`halt`] returned.
    pub fn held_for(&self) -> Duration {
        self.taken.elapsed()
    }

    /// How long [`halt`] has waited.
    pub fn waited(&self) -> Duration {
        self.taken - self.asked
    }

    /// Whether the lock may have expired: [`HALT_LIFE`] has passed since it was *asked for*. It was granted
    /// somewhere between that moment and the return of [`halt`].
    pub fn is_expired(&self) -> bool {
        self.asked.elapsed() >= HALT_LIFE
    }

    /// Releases the lock. BLOCKING: one exchange with the primary.
    ///
    /// # Errors
    /// [`HaltError::NoPrimary`] where the primary could not be told: it lets go by itself, when the lock
    /// expires. On this node the lock is released in any case.
    pub fn release(mut self) -> Result<(), HaltError> {
        self.unlock()
    }

    fn unlock(&mut self) -> Result<(), HaltError> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        let since = Instant::now();
        loop {
            match set_lock(&lock, libc::F_UNLCK) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) if since.elapsed() < RETRIED => {}
                Err(errno) => return Err(refusal(errno, &self.database, since.elapsed())),
            }
        }
    }
}

impl Drop for HaltGuard {
    fn drop(&mut self) {
        // Closing the descriptor, which follows, releases it once more.
        let _ = self.unlock();
    }
}

/// Opens `<database>-lock` and moves it up. SQLite's own files must be closed before it when the kernel
/// closes a killed process's files in the order of their numbers: else LiteFS waits for itself.
fn open_high(database: &Path) -> Result<OwnedFd, HaltError> {
    let path = beside(database, "-lock");
    let low = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| MountError::from_io(error, &path, database))?;
    match duplicate_high(&low) {
        Ok(high) => Ok(high),
        Err(Errno::EINVAL | Errno::EMFILE) => Err(HaltError::TooFewDescriptors),
        Err(errno) => Err(HaltError::Io {
            database: database.to_owned(),
            source: errno.into(),
        }),
    }
    // `low` is closed here, before anything is locked.
}

/// Whether LiteFS takes this node for the holder of this database's lock. What it answers where it does not know the
/// question, or is gone, is no.
fn is_counted_as_held(lock: &OwnedFd) -> bool {
    let mut range = halt_range(libc::F_WRLCK);
    let asked = fcntl(lock, FcntlArg::F_OFD_GETLK(&mut range));
    asked.is_ok() && libc::c_int::from(range.l_type) != libc::F_UNLCK
}

/// The only call that LiteFS understands: the waiting one, on one byte.
fn set_lock(lock: &OwnedFd, kind: libc::c_int) -> Result<(), Errno> {
    fcntl(lock, FcntlArg::F_OFD_SETLKW(&halt_range(kind))).map(drop)
}

fn halt_range(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: HALT_BYTE,
        l_len: 1,
        l_pid: 0,
    }
}

fn refusal(errno: Errno, database: &Path, waited: Duration) -> HaltError {
    let database = database.to_owned();
    match errno {
        Errno::EIO | Errno::EINTR | Errno::EAGAIN if waited >= WAITED => {
            HaltError::TimedOut { database, waited }
        }
        Errno::EIO => HaltError::NoPrimary { database, waited },
        Errno::ENOLCK => HaltError::AlreadyHeld { database },
        Errno::ENOTCONN | Errno::ECONNABORTED => HaltError::Mount(MountError::NotMounted {
            mount: folder_of(&database).to_owned(),
        }),
        errno => HaltError::Io {
            database,
            source: errno.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{HaltError, MountError, halt, open_high, refusal};
    use nix::errno::Errno;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn each_answer_has_its_cause_and_says_what_to_try() {
        let kind = |errno, seconds| {
            let error = refusal(errno, Path::new("/m/a.db"), Duration::from_secs(seconds));
            assert!(error.to_string().contains("try: "), "{error}");
            match error {
                HaltError::NoPrimary { .. } => "no primary",
                HaltError::TimedOut { .. } => "timed out",
                HaltError::AlreadyHeld { .. } => "held",
                HaltError::Mount(MountError::NotMounted { mount }) => {
                    assert_eq!(mount, Path::new("/m"));
                    "not mounted"
                }
                HaltError::Io { .. } => "io",
                error => panic!("{error:?}"),
            }
        };
        assert_eq!(kind(Errno::EIO, 0), "no primary");
        assert_eq!(kind(Errno::EIO, 10), "timed out");
        assert_eq!(kind(Errno::EINTR, 12), "timed out");
        assert_eq!(kind(Errno::ENOLCK, 0), "held");
        assert_eq!(kind(Errno::ENOTCONN, 0), "not mounted");
        assert_eq!(kind(Errno::ECONNABORTED, 3), "not mounted");
        assert_eq!(kind(Errno::EINVAL, 0), "io");
    }

    #[test]
    fn a_lock_s_descriptor_has_a_high_number() {
        let database = std::env::temp_dir().join(format!("litefs-high-{}", std::process::id()));
        let lock = super::beside(&database, "-lock");
        std::fs::write(&lock, "").expect("write a file");
        let high = open_high(&database).expect("open it");
        assert!(high.as_raw_fd() >= 900);
        std::fs::remove_file(lock).expect("remove a file");
    }

    #[test]
    fn a_plain_file_system_is_told_apart() {
        let error = halt(std::env::temp_dir().join("a.db")).expect_err("no LiteFS there");
        assert!(
            matches!(error, HaltError::Mount(MountError::NotLiteFs { .. })),
            "{error:?}"
        );
        let error = halt("/no/such/folder/a.db").expect_err("nothing there");
        assert!(error.to_string().contains("try: "), "{error}");
    }
}
