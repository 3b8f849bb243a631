//! A plain folder that the nodes of one host share.
//!
//! ```text
//! <dir>  m-a.db         the author's database
//!        m-a.db-lock    flock()ed while it is written
//!        m-a.db-owner   flock()ed for as long as a process is this author
//!        m-a.db-pos     where it stands, as LiteFS writes it; replaced after each commit, which is the event
//! ```
//!
//! The locks are on files of their own: closing any descriptor of a database's file would release SQLite's locks.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{
    Claim, ClusterError, Engine, Event, Freshness, Listener, Position, Role, Subscription, Turn,
    author_of, authors_in, file_of,
};

/// The engine of one host.
#[derive(Debug)]
pub struct Local {
    dir: PathBuf,
}

impl Local {
    /// In this folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`ClusterError::Io`].
    pub fn open(dir: &Path) -> Result<Local, ClusterError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(ClusterError::io(dir))?;
        // SQLite is told not to follow links, which it takes to mean the whole path.
        let dir = dir.canonicalize().map_err(ClusterError::io(dir))?;
        Ok(Local { dir })
    }

    fn beside(&self, author: &str, suffix: &str) -> PathBuf {
        self.dir.join(file_of(author) + suffix)
    }

    fn lock_file(&self, author: &str, suffix: &str) -> Result<(File, PathBuf), ClusterError> {
        let path = self.beside(author, suffix);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(ClusterError::io(&path))?;
        Ok((file, path))
    }

    fn tell_position(&self, author: &str, position: Position) -> Result<(), ClusterError> {
        let path = self.beside(author, "-pos");
        let new = self.dir.join(format!(".{}-pos", file_of(author)));
        let text = format!("{:016x}/{:016x}\n", position.transaction, position.checksum);
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(ClusterError::io(&path))
    }
}

impl Engine for Local {
    fn claim(&self, author: &str) -> Result<Claim, ClusterError> {
        let (file, path) = self.lock_file(author, "-owner")?;
        match file.try_lock() {
            Ok(()) => Ok(Claim { _held: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(ClusterError::Taken {
                author: author.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(ClusterError::io(&path)(error)),
        }
    }

    fn publish(
        &self,
        author: &str,
        write: &mut dyn FnMut(&Turn<'_>),
    ) -> Result<Position, ClusterError> {
        let (lock, path) = self.lock_file(author, "-lock")?;
        lock.lock().map_err(ClusterError::io(&path))?;
        let before = self.position(author)?;
        write(&Turn::new(&self.database(author)));
        let position = Position {
            transaction: before.transaction + 1,
            ..before
        };
        self.tell_position(author, position)?;
        Ok(position)
    }

    fn subscribe(&self, listener: Listener) -> Result<Subscription, ClusterError> {
        let failed = |errno: Errno| ClusterError::io(&self.dir)(errno.into());
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        inotify
            .add_watch(&self.dir, AddWatchFlags::IN_MOVED_TO)
            .map_err(failed)?;
        let (stopper, stopped) = UnixStream::pair().map_err(ClusterError::io(&self.dir))?;
        let thread = thread::Builder::new()
            .name("manifest-events".into())
            .spawn(move || {
                listener(Event::Resync);
                if let Err(error) = tell(&inotify, &stopped, &listener) {
                    tracing::error!(%error, "the manifest's folder is watched no more");
                }
            })
            .map_err(ClusterError::io(&self.dir))?;
        Ok(Subscription::new(move || {
            drop(stopper);
            // It only passes events on.
            let _ = thread.join();
        }))
    }

    fn position(&self, author: &str) -> Result<Position, ClusterError> {
        let path = self.beside(author, "-pos");
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(64).read_to_string(&mut text)) {
            Ok(_) => read_position(&text).ok_or_else(|| {
                ClusterError::io(&path)(io::Error::new(ErrorKind::InvalidData, "no position"))
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Position::default()),
            Err(error) => Err(ClusterError::io(&path)(error)),
        }
    }

    fn role(&self) -> Role {
        Role::Primary
    }

    fn freshness(&self) -> Result<Freshness, ClusterError> {
        Ok(Freshness::Original)
    }

    fn authors(&self) -> Result<Vec<String>, ClusterError> {
        authors_in(&self.dir)
    }

    fn database(&self, author: &str) -> PathBuf {
        self.dir.join(file_of(author))
    }

    fn readers_recover(&self) -> bool {
        true
    }
}

fn read_position(text: &str) -> Option<Position> {
    let (transaction, checksum) = text.trim_end().split_once('/')?;
    Some(Position {
        transaction: u64::from_str_radix(transaction, 16).ok()?,
        checksum: u64::from_str_radix(checksum, 16).ok()?,
    })
}

/// Passes on what the kernel tells, until the other end of `stopped` is closed.
fn tell(inotify: &Inotify, stopped: &UnixStream, listener: &Listener) -> nix::Result<()> {
    loop {
        let mut waits = [
            PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        if waits[1].any() == Some(true) {
            return Ok(());
        }
        let events = match inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(errno) => return Err(errno),
        };
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                listener(Event::Resync);
            }
            let author = event.name.as_deref().and_then(|name| {
                let database = name.to_str()?.strip_suffix("-pos")?;
                author_of(database)
            });
            if let Some(author) = author {
                listener(Event::Changed(author.to_owned()));
            }
        }
    }
}
