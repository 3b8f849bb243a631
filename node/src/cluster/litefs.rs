//! The folder is a LiteFS mount. `litefs.md` in the crate's docs and `docs/halt-limits.md` say what it can do.
//!
//! While a lock is held, no part of this process may start a child process: that would release it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// What this node is among the others; where there are no others, as on a shared folder, each is primary.
pub use litefs::Role;
use litefs::{Events, HaltError, MountError};
use parking_lot::Mutex;

use super::{
    Claim, ClusterError, Engine, Event, Freshness, Listener, Position, Subscription, Turn,
    author_of, authors_in, file_of,
};

/// The engine of several hosts.
#[derive(Debug)]
pub struct LiteFs {
    mount: PathBuf,
    /// Host and port of this machine's LiteFS.
    addr: String,
    role: Arc<Mutex<Role>>,
}

impl LiteFs {
    /// With this mount, and LiteFS's HTTP server at `addr`. Nothing is asked yet: a node starts without LiteFS too.
    pub fn new(mount: &Path, addr: &str) -> LiteFs {
        LiteFs {
            mount: mount.to_owned(),
            addr: addr.to_owned(),
            role: Arc::new(Mutex::new(Role::Unknown)),
        }
    }
}

impl Engine for LiteFs {
    /// Nobody can say whether another host has this author: the database's owner row will.
    fn claim(&self, _author: &str) -> Result<Claim, ClusterError> {
        Ok(Claim::default())
    }

    fn publish(
        &self,
        author: &str,
        write: &mut dyn FnMut(&Turn<'_>),
    ) -> Result<Position, ClusterError> {
        let database = self.database(author);
        litefs::create_database(&database)?;
        let lock = litefs::halt(&database)?;
        write(&Turn::new(&database));
        if lock.is_expired() {
            return Err(ClusterError::Lost(author.to_owned()));
        }
        let position = self.position(author)?;
        lock.release()?;
        Ok(position)
    }

    fn subscribe(&self, listener: Listener) -> Result<Subscription, ClusterError> {
        let events = Events::connect(&self.addr);
        let stopper = events.stopper();
        let role = self.role.clone();
        let thread = thread::Builder::new()
            .name("manifest-events".into())
            .spawn(move || {
                // Before LiteFS answers, and if it never does: what the mount shows is what there is.
                listener(Event::Resync);
                for event in events {
                    tell(event, &role, &listener);
                }
            })
            .map_err(ClusterError::io(&self.mount))?;
        Ok(Subscription::new(move || {
            stopper.stop();
            // It only passes events on.
            let _ = thread.join();
        }))
    }

    fn position(&self, author: &str) -> Result<Position, ClusterError> {
        match litefs::position(self.database(author)) {
            Ok(position) => Ok(Position {
                transaction: position.txid,
                checksum: position.checksum,
            }),
            Err(MountError::NoSuchDatabase { .. }) => Ok(Position::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn role(&self) -> Role {
        self.role.lock().clone()
    }

    /// LiteFS tells a replica once a second that its primary lives, and before the first time has sent it all that
    /// there was; but nothing as long as this replica itself writes all the time.
    fn freshness(&self) -> Result<Freshness, ClusterError> {
        match self.role() {
            Role::Primary => Ok(Freshness::Original),
            Role::Replica { .. } => {
                let lag = litefs::lag(&self.mount)?;
                Ok(lag.map_or(Freshness::Unknown, Freshness::AsOf))
            }
            Role::Unknown => Ok(Freshness::Unknown),
        }
    }

    fn authors(&self) -> Result<Vec<String>, ClusterError> {
        // A folder that is not mounted is empty, which is not the same as a cluster without rows.
        litefs::primary(&self.mount)?;
        authors_in(&self.mount)
    }

    fn database(&self, author: &str) -> PathBuf {
        self.mount.join(file_of(author))
    }

    fn readers_recover(&self) -> bool {
        false
    }
}

fn tell(event: litefs::Event, role: &Mutex<Role>, listener: &Listener) {
    let became = |new: Role| {
        *role.lock() = new.clone();
        listener(Event::Role(new));
    };
    match event {
        litefs::Event::Init(new) => {
            became(new);
            listener(Event::Resync);
        }
        litefs::Event::PrimaryChange(new) => became(new),
        litefs::Event::Gap(cause) => {
            tracing::warn!(%cause, "LiteFS tells nothing");
            became(Role::Unknown);
        }
        litefs::Event::Tx { database, .. } => {
            if let Some(author) = author_of(&database) {
                listener(Event::Changed(author.to_owned()));
            }
        }
        _ => {}
    }
}

impl From<HaltError> for ClusterError {
    fn from(error: HaltError) -> ClusterError {
        match error {
            HaltError::NoPrimary { .. } => ClusterError::NoPrimary(error.to_string()),
            HaltError::TimedOut { .. } => ClusterError::TimedOut(error.to_string()),
            HaltError::Mount(error) => error.into(),
            error => ClusterError::LiteFs(error.to_string()),
        }
    }
}

impl From<MountError> for ClusterError {
    fn from(error: MountError) -> ClusterError {
        match error {
            MountError::NotMounted { .. } | MountError::NotLiteFs { .. } => {
                ClusterError::Gone(error.to_string())
            }
            error => ClusterError::LiteFs(error.to_string()),
        }
    }
}
