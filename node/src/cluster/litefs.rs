//! The folder is a LiteFS mount. `litefs.md` in the crate's docs and `docs/halt-limits.md` say what it can do.
//!
//! Kept true here:
//! - While a lock is held, no part of this process may start a child process: that would release it.
//! - No lock is asked for while LiteFS may still bring content for that database from its primary. A replica that has
//!   asked, and is brought any, stops for good: it takes its own write lock twice. LiteFS brings content to the author
//!   when it connects to a primary, and once after the first transactions of a new database. So a node asks only as a
//!   replica that is known to be connected. A primary writes without a lock, which would do nothing: if it is none any
//!   more, its write is refused, where its question would be put to the next primary too early.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What this node is among the others; where there are no others, as on a shared folder, each is primary.
pub use litefs::Role;
use litefs::{Events, HaltError, HaltGuard, MountError};
use parking_lot::{Condvar, Mutex};

use super::{
    Claim, ClusterError, Engine, Event, Freshness, Listener, Position, Subscription, Turn,
    author_of, authors_in, file_of,
};

/// How long a publication waits for what LiteFS brings.
const BROUGHT: Duration = Duration::from_secs(10);

/// Between two looks at what LiteFS has no event for.
const LOOK: Duration = Duration::from_millis(20);

/// The engine of several hosts.
#[derive(Debug)]
pub struct LiteFs {
    mount: PathBuf,
    /// Host and port of this machine's LiteFS.
    addr: String,
    heard: Arc<Heard>,
}

/// What LiteFS has told.
#[derive(Debug)]
struct Heard {
    state: Mutex<State>,
    told: Condvar,
}

#[derive(Debug)]
struct State {
    /// `None` before LiteFS, or its silence, has said anything.
    role: Option<Role>,
    /// When it began to connect to this primary; `None` where it was connected before we asked.
    connecting: Option<Instant>,
    /// Where databases stand that were asked about, and how often in a row that was told.
    applied: HashMap<String, (Position, u32)>,
}

impl Heard {
    fn became(&self, role: Role, connecting: Option<Instant>) {
        let mut state = self.state.lock();
        state.role = Some(role);
        state.connecting = connecting;
        drop(state);
        self.told.notify_all();
    }

    fn applied(&self, author: &str, position: Position) {
        let mut state = self.state.lock();
        if let Some((last, times)) = state.applied.get_mut(author) {
            *times = if *last == position { *times + 1 } else { 1 };
            *last = position;
            drop(state);
            self.told.notify_all();
        }
    }
}

impl LiteFs {
    /// With this mount, and LiteFS's HTTP server at `addr`. Nothing is asked yet: a node starts without LiteFS too.
    pub fn new(mount: &Path, addr: &str) -> LiteFs {
        LiteFs {
            mount: mount.to_owned(),
            addr: addr.to_owned(),
            heard: Arc::new(Heard {
                state: Mutex::new(State {
                    role: None,
                    connecting: None,
                    applied: HashMap::new(),
                }),
                told: Condvar::new(),
            }),
        }
    }

    /// Waits until it is known how a publication is to be made: until LiteFS has told its role, and a replica has what its
    /// primary had when it connected. Says whether it takes a lock.
    fn wait_joined(&self) -> Result<bool, ClusterError> {
        let until = Instant::now() + BROUGHT;
        loop {
            let role = self.heard.state.lock().role.clone();
            match role {
                Some(Role::Primary) => return Ok(false),
                Some(Role::Replica { .. }) if self.freshness()? != Freshness::Unknown => {
                    return Ok(true);
                }
                Some(Role::Unknown) => {
                    litefs::primary(&self.mount)?;
                    let error =
                        "LiteFS is connected to none; try: its log, and `/info` of its port";
                    return Err(ClusterError::NoPrimary(error.to_owned()));
                }
                Some(Role::Replica { .. }) | None => {}
            }
            if Instant::now() >= until {
                return Err(ClusterError::Joining);
            }
            self.heard.told.wait_for(&mut self.heard.state.lock(), LOOK);
        }
    }

    /// Waits until LiteFS has brought a new database back to its author: after the commit it tells of the same
    /// position once more.
    fn wait_brought_back(&self, author: &str, position: Position) {
        let until = Instant::now() + BROUGHT;
        let mut state = self.heard.state.lock();
        while matches!(state.role, Some(Role::Replica { .. }))
            && state
                .applied
                .get(author)
                .is_some_and(|(last, times)| *last != position || *times < 2)
        {
            if self.heard.told.wait_until(&mut state, until).timed_out() {
                tracing::warn!(author, "LiteFS has not brought back the new database");
                break;
            }
        }
        state.applied.remove(author);
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
        let takes_lock = self.wait_joined()?;
        litefs::create_database(&database)?;
        let lock = match takes_lock {
            true => Some(litefs::halt(&database)?),
            false => None,
        };
        let is_new = self.position(author)? == Position::default();
        if is_new {
            let mut state = self.heard.state.lock();
            state.applied.insert(author.to_owned(), Default::default());
        }
        write(&Turn::new(&database));
        if lock.as_ref().is_some_and(HaltGuard::is_expired) {
            return Err(ClusterError::Lost(author.to_owned()));
        }
        let position = self.position(author)?;
        lock.map_or(Ok(()), HaltGuard::release)?;
        if is_new && position != Position::default() {
            self.wait_brought_back(author, position);
        }
        Ok(position)
    }

    fn subscribe(&self, listener: Listener) -> Result<Subscription, ClusterError> {
        let events = Events::connect(&self.addr);
        let stopper = events.stopper();
        let heard = self.heard.clone();
        let thread = thread::Builder::new()
            .name("manifest-events".into())
            .spawn(move || {
                // Before LiteFS answers, and if it never does: what the mount shows is what there is.
                listener(Event::Resync);
                for event in events {
                    tell(event, &heard, &listener);
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
            Ok(position) => Ok(position.into()),
            Err(MountError::NoSuchDatabase { .. }) => Ok(Position::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn role(&self) -> Role {
        let role = self.heard.state.lock().role.clone();
        role.unwrap_or(Role::Unknown)
    }

    /// A primary says once a second that it lives, and for the first time when it has sent all that there was; but
    /// nothing as long as this replica itself writes all the time.
    fn freshness(&self) -> Result<Freshness, ClusterError> {
        match self.role() {
            Role::Primary => Ok(Freshness::Original),
            Role::Replica { .. } => {
                let lag = litefs::lag(&self.mount)?;
                let connecting = self.heard.state.lock().connecting;
                let is_of_now = |lag: &Duration| connecting.is_none_or(|at| *lag < at.elapsed());
                Ok(lag
                    .filter(is_of_now)
                    .map_or(Freshness::Unknown, Freshness::AsOf))
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

fn tell(event: litefs::Event, heard: &Heard, listener: &Listener) {
    let became = |role: Role, connecting| {
        heard.became(role.clone(), connecting);
        listener(Event::Role(role));
    };
    match event {
        litefs::Event::Init(role) => {
            became(role, None);
            listener(Event::Resync);
        }
        litefs::Event::PrimaryChange(role) => became(role, Some(Instant::now())),
        litefs::Event::Gap(cause) => {
            tracing::warn!(%cause, "LiteFS tells nothing");
            became(Role::Unknown, None);
        }
        litefs::Event::Tx {
            database, position, ..
        } => {
            if let Some(author) = author_of(&database) {
                heard.applied(author, position.into());
                listener(Event::Changed(author.to_owned()));
            }
        }
        _ => {}
    }
}

impl From<litefs::Position> for Position {
    fn from(position: litefs::Position) -> Position {
        Position {
            transaction: position.txid,
            checksum: position.checksum,
        }
    }
}

impl From<HaltError> for ClusterError {
    fn from(error: HaltError) -> ClusterError {
        match error {
            HaltError::NoPrimary { .. } => ClusterError::NoPrimary(error.to_string()),
            HaltError::OutOfStep { .. } => ClusterError::OutOfStep(error.to_string()),
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
