//! The thread that touches the shared folder: it publishes the outbox, and reads what others have published.
//!
//! It may stand still for as long as LiteFS does. What waits for it is one set of things to do, however many events
//! have asked for them; `local.db` goes on being written by others meanwhile.
//!
//! ```text
//! woken ──► databases that changed: read behind the watermark, merge
//!       ──► own database stands elsewhere than we left it? ──► in doubt
//!       ──► outbox, or doubt: lock, write up to 1,000 rows, unlock ──┬─► published; more to publish? from the top
//!                                                                 └─► an error: in doubt, again after a pause
//! in doubt: once the lock was granted, and so all is here that there is, compare the own rows with the database,
//!           and put what is missing back into the outbox
//! ```
//!
//! A database of another that cannot be read is tried again after a pause of its own. It holds up nothing else, but until
//! it was read the node has not caught up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::author::{self, AuthorError, Files};
use super::local::{Local, PAGE_ROWS};
use super::{Counters, Settings};
use crate::clock::{HybridClock, Stamp};
use crate::cluster::{ClusterError, Engine, Event, Freshness, Position, Role};

/// Rows of one transaction in the author's database.
const BATCH_ROWS: usize = 1000;

/// Pauses after a failure: from the first to the second value, doubled each time. A sign of life ends one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The longest pause after another role: what fails then fails for another reason than before.
const BACKOFF_ANEW: Duration = Duration::from_millis(400);

/// Between two looks at how up to date the others' databases are: until all has been read for the first time, and then.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Others' databases that are older than this are behind.
const BEHIND: Duration = Duration::from_secs(5);

/// So long nobody may have told how up to date they are: an election takes 18 seconds at worst.
const UNHEARD: Duration = Duration::from_secs(30);

/// Nothing takes the publisher longer, unless somebody does not answer: LiteFS waits ten seconds for a lock, and a
/// page of rows takes milliseconds.
const LONGEST_ROUND: Duration = Duration::from_secs(30);

/// So many refused publications in a row are no accident.
const FAILURES: u32 = 3;

/// Authors that are told apart; beyond it all databases are looked at.
const MAX_CHANGED: usize = 1024;

/// What there is to do.
#[derive(Default)]
pub(super) struct Tasks {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    changed: BTreeSet<String>,
    resync: bool,
    outbox: bool,
    role: bool,
    /// Authors that are gone for good.
    forget: BTreeSet<String>,
    stop: bool,
}

impl Tasks {
    fn add(&self, add: impl FnOnce(&mut State)) {
        add(&mut self.state.lock());
        self.grown.notify_one();
    }

    pub(super) fn outbox(&self) {
        self.add(|state| state.outbox = true);
    }

    pub(super) fn forget(&self, author: &str) {
        self.add(|state| {
            state.forget.insert(author.to_owned());
        });
    }

    pub(super) fn stop(&self) {
        self.add(|state| state.stop = true);
    }

    pub(super) fn event(&self, event: Event) {
        self.add(|state| match event {
            Event::Changed(author) if state.changed.len() < MAX_CHANGED => {
                state.changed.insert(author);
            }
            Event::Changed(_) | Event::Resync => state.resync = true,
            Event::Role(_) => state.role = true,
        });
    }

    /// Waits for something to do, or until the given time.
    fn next(&self, until: Option<Instant>) -> State {
        let mut state = self.state.lock();
        while state.is_idle() {
            match until {
                None => self.grown.wait(&mut state),
                Some(until) => {
                    if self.grown.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
            }
        }
        let stop = state.stop;
        State {
            stop,
            ..std::mem::replace(
                &mut *state,
                State {
                    stop,
                    ..State::default()
                },
            )
        }
    }

    /// Lets changes gather until then, unless told to stop.
    fn gather(&self, until: Instant) {
        let mut state = self.state.lock();
        while !state.stop && !self.grown.wait_until(&mut state, until).timed_out() {}
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.changed.is_empty()
            && self.forget.is_empty()
            && !(self.resync || self.outbox || self.role || self.stop)
    }
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Author(#[from] AuthorError),
    #[error("local.db: {0}")]
    Local(#[from] rusqlite::Error),
}

pub(super) struct Publisher {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) local: Arc<Local>,
    pub(super) clock: Arc<HybridClock>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) counters: Arc<Counters>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) settings: Settings,
    /// The author's database may not hold what was published there.
    pub(super) in_doubt: bool,
    /// Where we left the own database.
    pub(super) position: Option<Position>,
    /// The last publication that we left there.
    pub(super) left: Option<Stamp>,
    /// Authors whose databases are to be emptied.
    pub(super) forget: BTreeSet<String>,
    /// Databases that are to be read.
    pub(super) unread: BTreeSet<String>,
    /// Databases that could not be read: each is tried again by itself, and holds up nothing else.
    pub(super) broken: BTreeMap<String, Broken>,
    pub(super) backoff: Duration,
    pub(super) last_publication: Option<Instant>,
    /// Of the shared folder.
    pub(super) files: Files,
    /// The last publication has left rows behind that were there already.
    pub(super) is_backlog: bool,
    /// All that was there has been read once.
    pub(super) caught_up: bool,
    /// The others' databases were up to date at the last look.
    pub(super) is_fresh: bool,
    /// When to look again.
    pub(super) look: Option<Instant>,
    /// When the engine last knew how up to date they were.
    pub(super) heard: Instant,
    pub(super) opened: Instant,
}

/// A database that could not be read.
pub(super) struct Broken {
    error: String,
    /// When it is tried again, and after which pause.
    again: Instant,
    pause: Duration,
}

/// What a publication leaves in the outbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    More,
    /// It has failed.
    Unknown,
}

/// What cannot be read of whom.
fn told_of(author: &str, error: &str) -> String {
    format!("what {author} says: {error}")
}

impl Publisher {
    /// Until told to stop; then publishes what waits, once.
    pub(super) fn run(mut self) {
        let mut due = true;
        let mut list = true;
        let mut retry: Option<Instant> = None;
        loop {
            let next = retry.or(due.then(Instant::now));
            let again = self.broken.values().map(|broken| broken.again).min();
            let next = [next, self.look, again].into_iter().flatten().min();
            let work = self.tasks.next(next);
            self.counters.begin();
            let was_fresh = self.is_fresh;
            self.look(work.role || work.resync);
            // What was read before this moment was not all that there was.
            list |= self.is_fresh && !was_fresh && !self.caught_up;
            // More rows are no reason to believe that it goes better now.
            let is_pause = retry.is_some_and(|retry| Instant::now() < retry)
                && !(work.role || work.resync || work.stop);
            if work.role {
                self.backoff = self.backoff.min(BACKOFF_ANEW);
            }
            due |= work.outbox || work.role;
            list |= work.resync;
            self.in_doubt |= work.role;
            self.unread.extend(work.changed);
            self.unread.extend(self.due_again());
            self.forget.extend(work.forget);
            if is_pause {
                self.read_all();
                self.counters.end();
                continue;
            }
            let listed = !list || self.list();
            list = !listed;
            let forgotten = self.forget_all();
            self.read_all();
            if self.is_fresh && listed && self.broken.is_empty() && !self.caught_up {
                self.caught_up = true;
                self.counters.caught_up();
                self.changed.send_modify(|generation| *generation += 1);
            }
            due |= self.in_doubt;
            let left = if due {
                self.publish_due(work.stop)
            } else {
                Left::Nothing
            };
            due = left != Left::Nothing;
            self.is_backlog = left == Left::More;
            self.counters.note(&self.local);
            self.counters.end();
            if work.stop && left != Left::More {
                return;
            }
            if listed && forgotten && left != Left::Unknown {
                retry = None;
                self.backoff = BACKOFF.0;
                let broken = self.broken.iter().next();
                let error = broken.map(|(author, broken)| told_of(author, &broken.error));
                self.counters.well_but(error);
            } else {
                retry = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(BACKOFF.1);
            }
        }
    }

    /// Puts all databases on the list of what is to be read. Says whether it could.
    fn list(&mut self) -> bool {
        match self.engine.authors() {
            Ok(authors) => {
                self.unread.extend(authors);
                true
            }
            Err(error) => {
                self.failed("the manifest's folder", &error.into());
                false
            }
        }
    }

    /// Empties the databases of those who are gone. Says whether it could.
    fn forget_all(&mut self) -> bool {
        while let Some(author) = self.forget.pop_first() {
            self.counters.begin();
            let mut emptied = None;
            let published = self.engine.publish(&author, &mut |turn| {
                emptied = Some(author::empty(turn, &author));
            });
            let done = match (emptied, published) {
                (Some(Err(error)), _) => Err(self.after_damage(&author, error)),
                (emptied, published) => published
                    .map(|_| matches!(emptied, Some(Ok(true))))
                    .map_err(PublishError::from),
            };
            match done {
                Ok(true) => {
                    self.unread.insert(author);
                }
                Ok(false) => {
                    self.forget.insert(author);
                }
                Err(error) => {
                    self.failed(&author, &error);
                    self.forget.insert(author);
                    return false;
                }
            }
        }
        true
    }

    /// Looks how up to date the others' databases are, if it is time.
    fn look(&mut self, at_once: bool) {
        let now = Instant::now();
        if !at_once && self.look.is_none_or(|at| now < at) {
            return;
        }
        let freshness = match self.engine.freshness() {
            Ok(freshness) => freshness,
            Err(error) => {
                self.failed("the manifest's folder", &error.into());
                Freshness::Unknown
            }
        };
        let pause = if self.caught_up { LOOK.1 } else { LOOK.0 };
        self.look = (freshness != Freshness::Original).then(|| now + pause);
        let lag = match freshness {
            Freshness::AsOf(lag) if lag > BEHIND => Some(lag),
            _ => None,
        };
        // A purge of the last seconds before the start may still be on its way.
        let is_before = matches!(freshness, Freshness::AsOf(lag) if lag > self.opened.elapsed());
        self.is_fresh = freshness != Freshness::Unknown && lag.is_none() && !is_before;
        self.counters.behind(if freshness == Freshness::Unknown {
            let unheard = self.heard.elapsed();
            Some(unheard).filter(|unheard| *unheard > UNHEARD)
        } else {
            self.heard = now;
            // While this node writes all the time, LiteFS has no word for it.
            let last = self.last_publication;
            lag.filter(|_| last.is_none_or(|last| last.elapsed() > BEHIND))
        });
    }

    /// Publishes in its pace, and without one where rows have piled up.
    fn publish_due(&mut self, at_once: bool) -> Left {
        if let Some(last) = self.last_publication
            && !(at_once || self.is_backlog)
        {
            self.tasks.gather(last + self.settings.pace);
        }
        match self.publish() {
            Ok(left) => {
                self.counters.granted();
                left
            }
            Err(error) => {
                self.in_doubt = true;
                match &error {
                    PublishError::Cluster(ClusterError::Joining) => {}
                    PublishError::Cluster(ClusterError::OutOfStep(_)) => {
                        self.counters.out_of_step();
                    }
                    _ => self.counters.not_published(&self.engine.role()),
                }
                self.failed("the own database", &error);
                Left::Unknown
            }
        }
    }

    fn failed(&self, what: &str, error: &PublishError) {
        let is_gone = matches!(error, PublishError::Cluster(ClusterError::Gone(_)));
        self.counters.failed(&format!("{what}: {error}"), is_gone);
        if self.backoff == BACKOFF.0 {
            tracing::warn!(what, %error, "the manifest is not up to date; tried again");
        } else {
            tracing::debug!(what, %error, "the manifest is not up to date; tried again");
        }
    }

    /// Those whose pause is over.
    fn due_again(&self) -> Vec<String> {
        let now = Instant::now();
        let due = self.broken.iter().filter(|(_, broken)| broken.again <= now);
        due.map(|(author, _)| author.clone()).collect()
    }

    /// Reads what has changed.
    fn read_all(&mut self) {
        for author in std::mem::take(&mut self.unread) {
            let read = if author == self.local.owner().node {
                self.look_after_own()
            } else {
                self.read(&author)
            };
            match read {
                Ok(()) => drop(self.broken.remove(&author)),
                Err(error) => self.is_broken(author, &error),
            }
        }
    }

    fn is_broken(&mut self, author: String, error: &PublishError) {
        let known = self.broken.get(&author);
        let pause = known.map_or(BACKOFF.0, |known| (known.pause * 2).min(BACKOFF.1));
        if known.is_none() {
            tracing::warn!(author, %error, "what a node says cannot be read; tried again");
        } else {
            tracing::debug!(author, %error, "what a node says cannot be read; tried again");
        }
        let error = error.to_string();
        self.counters.unreadable(&told_of(&author, &error));
        let again = Instant::now() + pause;
        self.broken.insert(
            author,
            Broken {
                error,
                again,
                pause,
            },
        );
    }

    /// The own database stands where we left it, or something was undone.
    fn look_after_own(&mut self) -> Result<(), PublishError> {
        let node = &self.local.owner().node;
        let now = self.engine.position(node)?;
        if self.position.is_some_and(|left| left != now) {
            tracing::debug!(?now, left = ?self.position, "the own database was changed by others");
            self.position = Some(now);
            self.in_doubt = true;
        }
        Ok(())
    }

    fn read(&mut self, author: &str) -> Result<(), PublishError> {
        let database = self.engine.database(author);
        let mut rows = 0;
        loop {
            self.counters.begin();
            let after = self.local.watermark(author)?;
            let recover = self.engine.readers_recover();
            let page = self
                .files
                .read(&database, author, after, PAGE_ROWS, recover)?;
            if page.unfit > 0 {
                tracing::warn!(
                    author,
                    rows = page.unfit,
                    "rows of the manifest are not taken: they are none"
                );
            }
            let merged = self.local.merge(author, &page)?;
            rows += merged.rows;
            self.counters.refused(merged.refused + page.unfit);
            if merged.is_another {
                // What it had said is gone, and what others say in its place is to be read.
                self.tasks.event(Event::Resync);
                rows += 1;
            }
            if !merged.is_another && !page.has_more {
                break;
            }
        }
        if rows > 0 {
            self.counters.merged(rows);
            self.changed.send_modify(|generation| *generation += 1);
        }
        Ok(())
    }

    /// Publishes a batch, and compares if that is in doubt. Others' rows are read between two batches, however many
    /// there are.
    fn publish(&mut self) -> Result<Left, PublishError> {
        let rows = self.local.outbox(BATCH_ROWS)?;
        if rows.is_empty() && !self.in_doubt {
            return Ok(Left::Nothing);
        }
        let owner = self.local.owner();
        let mut written = None;
        let position = self.engine.publish(&owner.node, &mut |turn| {
            written = Some(self.files.write(turn, owner, &self.clock, &rows));
        });
        let written = match written {
            Some(Err(error)) => return Err(self.after_damage(&owner.node, error)),
            Some(Ok(written)) => Some(written),
            None => None,
        };
        self.position = Some(position?);
        if let Some(written) = written {
            // What was undone without a word.
            self.in_doubt |= self.left.is_some_and(|left| left != written.found);
            self.in_doubt |= written.was_forgotten;
            self.left = Some(written.left);
        }
        self.last_publication = Some(Instant::now());
        self.local.published(&rows)?;
        self.counters.published(rows.len() as u64);
        let mut lost = 0;
        if self.in_doubt {
            lost = self.compare()?;
            self.in_doubt = false;
            if lost > 0 {
                tracing::info!(rows = lost, "publishing again what was lost");
                self.counters.lost(lost);
            }
        }
        let is_all = rows.len() < BATCH_ROWS && lost == 0;
        Ok(if is_all { Left::Nothing } else { Left::More })
    }

    /// A damaged file of our own, which replicates to nobody, is made anew.
    fn after_damage(&self, author: &str, error: AuthorError) -> PublishError {
        if error.is_damage() && self.engine.readers_recover() {
            let database = self.engine.database(author);
            tracing::warn!(database = %database.display(), "made anew: it was damaged");
            // A journal would be played into the next one. What cannot be removed is met again at the next attempt.
            let mut journal = database.clone().into_os_string();
            journal.push("-journal");
            let _ = std::fs::remove_file(journal);
            let _ = std::fs::remove_file(database);
        }
        error.into()
    }

    /// Compares the own rows with what stands in the database, page by page. How many were not there.
    fn compare(&mut self) -> Result<u64, PublishError> {
        let node = &self.local.owner().node;
        let database = self.engine.database(node);
        let mut from = (i64::MIN, Vec::new());
        let mut lost = 0;
        loop {
            self.counters.begin();
            let page = self
                .files
                .read_by_key(&database, node, (from.0, &from.1), PAGE_ROWS)
                .map_err(|error| self.after_damage(node, error))?;
            let whole = page.len() < PAGE_ROWS;
            lost += self.local.compare((from.0, &from.1), &page, whole)?;
            match page.last() {
                Some(last) if !whole => from = (last.kind, last.key.clone()),
                _ => return Ok(lost),
            }
        }
    }
}

pub(super) const FIRST_BACKOFF: Duration = BACKOFF.0;

/// The state of the cluster as the publisher last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub role: Role,
    /// Rows that are recorded and not yet published.
    pub outbox: u64,
    /// What went wrong last, until all went well.
    pub error: Option<String>,
    /// Transactions with rows in the own database, and their rows.
    pub batches: u64,
    pub rows_published: u64,
    /// Rows of others that became the latest of their keys.
    pub rows_merged: u64,
    /// Rows of others that could not be taken.
    pub rows_refused: u64,
    /// Rows that had been published and were found missing.
    pub rows_lost: u64,
    /// Changes that found no room in the queue.
    pub dropped: u64,
    /// Own resources given up to keep `max_rows`.
    pub given_up: u64,
    /// All that there was has been read once since the start: with LiteFS, once a primary was known and had sent it.
    /// It stays so.
    pub caught_up: bool,
    /// Publications in a row that have failed though there was a primary.
    pub halt_failures: u32,
    /// Its own database stands still on this node, and on the primary it does not.
    pub is_out_of_step: bool,
    /// The others' databases are as they were so long ago, which is longer than it should be.
    pub position_behind: Option<Duration>,
    /// How long the publisher has been at one thing, which can only mean that it waits for LiteFS.
    pub busy: Option<Duration>,
    /// Nobody serves the folder.
    pub is_gone: bool,
}

/// Why the manifest of a node is not what it should be, although the node goes on serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("nobody serves the manifest's folder; try: the log of LiteFS, then start it again")]
    Gone,
    #[error("LiteFS has not answered for {} s; try: restart LiteFS, and this node with it", .0.as_secs())]
    StandsStill(Duration),
    #[error(
        "the node's own database stands still on this node, and on the primary it does not; try: restart LiteFS, and this node with it"
    )]
    OutOfStep,
    #[error("{0} publications have failed in a row; try: restart LiteFS, and this node with it")]
    NotPublished(u32),
    #[error("what other nodes say is {} s old; try: the log of LiteFS, whether there is a primary, and else restart LiteFS, and this node with it", .0.as_secs())]
    Behind(Duration),
}

impl Status {
    /// What a restart of LiteFS, and of this node, may end; for the node's report of its health. A cluster without a
    /// primary is trouble after half a minute, and not before.
    pub fn trouble(&self) -> Option<Trouble> {
        if self.is_gone {
            return Some(Trouble::Gone);
        }
        if let Some(busy) = self.busy.filter(|busy| *busy > LONGEST_ROUND) {
            return Some(Trouble::StandsStill(busy));
        }
        if self.is_out_of_step {
            return Some(Trouble::OutOfStep);
        }
        if self.halt_failures >= FAILURES {
            return Some(Trouble::NotPublished(self.halt_failures));
        }
        self.position_behind.map(Trouble::Behind)
    }
}

impl Default for Status {
    fn default() -> Status {
        Status {
            role: Role::Unknown,
            outbox: 0,
            error: None,
            batches: 0,
            rows_published: 0,
            rows_merged: 0,
            rows_refused: 0,
            rows_lost: 0,
            dropped: 0,
            given_up: 0,
            caught_up: false,
            halt_failures: 0,
            is_out_of_step: false,
            position_behind: None,
            busy: None,
            is_gone: false,
        }
    }
}
