//! An engine over the local one that fails when it is told to, in the ways of LiteFS.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use caje_node::cluster::{
    Claim, ClusterError, Engine, Event, Freshness, Listener, Local, Position, Role, Subscription,
    Turn,
};
use rusqlite::Connection;

/// Publishes a row to a database of its own, and says in words what the engine has answered and whether it was
/// written: for comparing engines. `meanwhile` happens while the lock is held, before the row is written.
pub fn publication(engine: &dyn Engine, author: &str, mut meanwhile: impl FnMut()) -> String {
    let mut written = "unwritten";
    let published = engine.publish(author, &mut |turn| {
        meanwhile();
        let row = "CREATE TABLE IF NOT EXISTS written (value); INSERT INTO written VALUES (1)";
        let committed = Connection::open(turn.database()).and_then(|database| {
            database.pragma_update(None, "journal_mode", "TRUNCATE")?;
            database.execute_batch(&format!("BEGIN IMMEDIATE; {row}; COMMIT"))
        });
        written = if committed.is_ok() {
            "written"
        } else {
            "failed"
        };
    });
    let answer = match published {
        Ok(position) => match engine.position(author) {
            Ok(now) if now == position && position != Position::default() => "published",
            _ => "misplaced",
        },
        Err(ClusterError::NoPrimary(_)) => "NoPrimary",
        Err(ClusterError::OutOfStep(_)) => "OutOfStep",
        Err(ClusterError::TimedOut(_)) => "TimedOut",
        Err(ClusterError::Lost(_)) => "Lost",
        Err(ClusterError::Gone(_)) => "Gone",
        Err(_) => "other",
    };
    format!("{answer} {written}")
}

/// How a publication fails.
pub enum Fault {
    /// No lock: nothing is written.
    Before,
    /// A lock that is granted where this node's copy stands still.
    OutOfStep,
    /// Nobody serves the folder.
    Gone,
    /// The lock is lost without a word before anything is written, which then fails.
    Unlocked,
    /// All is written, and nobody says so.
    After,
    /// All is written, said to be, and undone; the position goes down.
    Undone,
    /// As before, but nobody tells of it, and the position looks right.
    UndoneInSilence,
    /// The wait for the lock ends in vain, when the sender goes.
    Wait(Receiver<()>),
}

/// A [`Local`] engine with faults.
pub struct Faults {
    inner: Local,
    dir: PathBuf,
    next: Mutex<VecDeque<Fault>>,
    listener: Arc<Mutex<Option<Listener>>>,
    /// Events go nowhere.
    is_deaf: Arc<AtomicBool>,
    freshness: Mutex<Freshness>,
    publications: AtomicU32,
    unlocked: AtomicU32,
}

impl Faults {
    /// # Panics
    /// When the folder cannot be used.
    pub fn open(dir: &Path) -> Arc<Faults> {
        Arc::new(Faults {
            inner: Local::open(dir).expect("open a folder"),
            dir: dir.to_owned(),
            next: Mutex::default(),
            listener: Arc::default(),
            is_deaf: Arc::default(),
            freshness: Mutex::new(Freshness::Original),
            publications: AtomicU32::new(0),
            unlocked: AtomicU32::new(0),
        })
    }

    /// The next publication fails so; after it the one after.
    pub fn fail(&self, fault: Fault) {
        self.next.lock().expect("faults").push_back(fault);
    }

    /// Like [`Fault::Wait`], until the sender goes.
    pub fn stand_still(&self) -> Sender<()> {
        let (go, wait) = channel();
        self.fail(Fault::Wait(wait));
        go
    }

    pub fn is_without_faults(&self) -> bool {
        self.next.lock().expect("faults").is_empty()
    }

    /// Events are lost from here on, or come again, with a word that some may have been missed.
    pub fn cut_events(&self, cut: bool) {
        self.is_deaf.store(cut, Ordering::SeqCst);
        if !cut {
            self.tell(Event::Resync);
        }
    }

    /// An event that nothing has caused.
    pub fn tell(&self, event: Event) {
        if let Some(listener) = &*self.listener.lock().expect("a listener") {
            listener(event);
        }
    }

    /// How up to date the databases of others are, from here on.
    pub fn set_freshness(&self, freshness: Freshness) {
        *self.freshness.lock().expect("a freshness") = freshness;
    }

    /// How often a database was written.
    pub fn publications(&self) -> u32 {
        self.publications.load(Ordering::SeqCst)
    }

    /// How often nobody held the lock meanwhile.
    pub fn unlocked(&self) -> u32 {
        self.unlocked.load(Ordering::SeqCst)
    }

    fn write(&self, author: &str, turn: &Turn<'_>, write: &mut dyn FnMut(&Turn<'_>)) {
        self.publications.fetch_add(1, Ordering::SeqCst);
        let lock = self.dir.join(format!("m-{author}.db-lock"));
        let lock = File::open(lock).expect("open the lock's file");
        if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            self.unlocked.fetch_add(1, Ordering::SeqCst);
        }
        write(turn);
    }

    /// Puts the database, and its position, back to where they were.
    fn undo(&self, author: &str, before: &[(PathBuf, Vec<u8>)]) {
        for (path, bytes) in before {
            let new = self.dir.join(format!("undo-{author}"));
            fs::write(&new, bytes).expect("write a copy");
            fs::rename(&new, path).expect("put a copy in place");
        }
    }
}

impl Engine for Faults {
    fn claim(&self, author: &str) -> Result<Claim, ClusterError> {
        self.inner.claim(author)
    }

    fn publish(
        &self,
        author: &str,
        write: &mut dyn FnMut(&Turn<'_>),
    ) -> Result<Position, ClusterError> {
        let fault = self.next.lock().expect("faults").pop_front();
        match &fault {
            Some(Fault::Before) => return Err(ClusterError::NoPrimary("told to".into())),
            Some(Fault::OutOfStep) => return Err(ClusterError::OutOfStep("told to".into())),
            Some(Fault::Gone) => return Err(ClusterError::Gone("told to".into())),
            Some(Fault::Wait(wait)) => {
                // It never sends anything.
                let _ = wait.recv();
                return Err(ClusterError::TimedOut("told to".into()));
            }
            _ => {}
        }
        let files = ["", "-pos"].map(|suffix| self.dir.join(format!("m-{author}.db{suffix}")));
        let before: Vec<_> = files
            .into_iter()
            .filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes)))
            .collect();
        let position = self.inner.publish(author, &mut |turn| match &fault {
            Some(Fault::Unlocked) => {
                let read_only = format!("file:{}?mode=ro", turn.database().display());
                write(&Turn::new(Path::new(&read_only)));
            }
            _ => self.write(author, turn, write),
        })?;
        match fault {
            Some(Fault::After) => Err(ClusterError::Lost(author.to_owned())),
            Some(Fault::Undone) => {
                self.undo(author, &before);
                self.tell(Event::Changed(author.to_owned()));
                Ok(position)
            }
            Some(Fault::UndoneInSilence) => {
                self.undo(author, &before[..before.len().min(1)]);
                Ok(position)
            }
            _ => Ok(position),
        }
    }

    fn subscribe(&self, listener: Listener) -> Result<Subscription, ClusterError> {
        *self.listener.lock().expect("a listener") = Some(listener);
        let (is_deaf, listener) = (self.is_deaf.clone(), self.listener.clone());
        self.inner.subscribe(Box::new(move |event| {
            if is_deaf.load(Ordering::SeqCst) {
                return;
            }
            if let Some(listener) = &*listener.lock().expect("a listener") {
                listener(event);
            }
        }))
    }

    fn position(&self, author: &str) -> Result<Position, ClusterError> {
        self.inner.position(author)
    }

    fn role(&self) -> Role {
        self.inner.role()
    }

    fn freshness(&self) -> Result<Freshness, ClusterError> {
        Ok(*self.freshness.lock().expect("a freshness"))
    }

    fn authors(&self) -> Result<Vec<String>, ClusterError> {
        self.inner.authors()
    }

    fn database(&self, author: &str) -> PathBuf {
        self.inner.database(author)
    }

    fn readers_recover(&self) -> bool {
        self.inner.readers_recover()
    }
}
