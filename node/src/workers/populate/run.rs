//! Runs: what populate is at, for those who watch. One is under way at a time; one that an operator wishes for goes
//! before the one that the node has begun by itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::plan::millis;
use super::show_blocked;
use crate::manifest::Filter;
use crate::telemetry::Metrics;

/// Runs that are remembered, those that go on included.
const MAX_RUNS: usize = 32;

/// Runs of operators that go on.
const MAX_WISHES: usize = 8;

/// What an operator wishes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub filter: Filter,
    /// Failures until now do not count.
    pub retry: bool,
    /// Only count.
    pub dry_run: bool,
    pub caps: Caps,
}

/// What holds for one run, below what the settings allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Items in flight.
    pub in_flight: Option<usize>,
    /// Bytes per second.
    pub rate: Option<u64>,
}

/// Why it is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("too many wishes are under way")]
    Busy,
    #[error("no run has this id")]
    Unknown,
    #[error("there is no manifest yet")]
    NoManifest,
    #[error("the store has no disk")]
    NoDisk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    Running,
    Done,
    Cancelled,
}

/// A run, as far as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub number: u64,
    pub id: String,
    pub filter: Filter,
    /// The node has begun it by itself.
    pub is_own: bool,
    pub dry_run: bool,
    pub state: RunState,
    /// Milliseconds since 1970.
    pub started_ms: u64,
    pub ended_ms: Option<u64>,
    /// Resources that it is about, as far as is known.
    pub total: u64,
    /// Fetched, or found to be here.
    pub fetched: u64,
    /// Bytes brought.
    pub bytes: u64,
    /// Left alone, by the reason.
    pub blocked: BTreeMap<String, u64>,
    /// Failed, and tried again after a pause.
    pub waiting: u64,
    pub caps: Caps,
    retry_since_ms: u64,
}

impl Run {
    pub fn blocked_in_all(&self) -> u64 {
        self.blocked.values().sum()
    }

    /// Fetched or left alone.
    pub fn done(&self) -> u64 {
        self.fetched + self.blocked_in_all()
    }
}

/// What is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The oldest first.
    pub runs: Vec<Run>,
    /// Of all that this disk lacks, what is left alone, by the reason, as of the last look.
    pub blocked: BTreeMap<String, u64>,
    /// What failed and is tried again after a pause.
    pub waiting: u64,
}

pub struct Runs {
    /// Ends the ids: nodes that are told at once begin runs in the same millisecond.
    node: String,
    runs: VecDeque<Run>,
    begun: u64,
    /// The node's own run was cancelled: it does not begin another by itself.
    is_paused: bool,
    /// Of the walk under way.
    blocked: BTreeMap<String, u64>,
    waiting: u64,
    has_changed: bool,
    tell: watch::Sender<Arc<Told>>,
    metrics: Arc<Metrics>,
}

impl Runs {
    pub fn new(node: String, tell: watch::Sender<Arc<Told>>, metrics: Arc<Metrics>) -> Runs {
        Runs {
            node,
            runs: VecDeque::new(),
            begun: 0,
            is_paused: false,
            blocked: BTreeMap::new(),
            waiting: 0,
            has_changed: true,
            tell,
            metrics,
        }
    }

    fn goes_on(run: &&Run) -> bool {
        run.state == RunState::Running
    }

    fn active_place(&self) -> Option<usize> {
        let of = |is_own| {
            let mut runs = self.runs.iter();
            runs.position(|run| Self::goes_on(&run) && run.is_own == is_own)
        };
        of(false).or_else(|| of(true))
    }

    pub fn active(&self) -> Option<&Run> {
        self.active_place().map(|place| &self.runs[place])
    }

    pub fn active_number(&self) -> Option<u64> {
        self.active().map(|run| run.number)
    }

    fn active_mut(&mut self) -> Option<&mut Run> {
        self.has_changed = true;
        let place = self.active_place()?;
        self.runs.get_mut(place)
    }

    /// Of the run under way.
    pub fn caps(&self) -> Caps {
        self.active().map_or_else(Caps::default, |run| run.caps)
    }

    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    pub fn retry_since_ms(&self) -> u64 {
        self.active().map_or(0, |run| run.retry_since_ms)
    }

    pub fn begin(&mut self, wish: Wish, now: SystemTime) -> Result<String, Refused> {
        let same = self.runs.iter_mut().find(|run| {
            run.state == RunState::Running
                && run.filter == wish.filter
                && run.dry_run == wish.dry_run
        });
        if let Some(same) = same {
            if wish.retry {
                same.retry_since_ms = millis(now);
            }
            // Who has wished last says how.
            same.caps = wish.caps;
            self.has_changed = true;
            return Ok(same.id.clone());
        }
        let wishes = self.runs.iter().filter(Self::goes_on);
        if wishes.count() > MAX_WISHES {
            return Err(Refused::Busy);
        }
        if wish.filter == Filter::All && !wish.dry_run {
            self.is_paused = false;
        }
        Ok(self.add(wish, false, now))
    }

    fn add(&mut self, wish: Wish, is_own: bool, now: SystemTime) -> String {
        let started_ms = millis(now);
        self.begun += 1;
        let id = format!("populate-{started_ms:x}-{:x}-{}", self.begun, self.node);
        if self.runs.len() >= MAX_RUNS {
            let over = self.runs.iter().position(|run| !Self::goes_on(&run));
            self.runs.remove(over.unwrap_or(0));
        }
        self.runs.push_back(Run {
            number: self.begun,
            id: id.clone(),
            filter: wish.filter,
            is_own,
            dry_run: wish.dry_run,
            state: RunState::Running,
            started_ms,
            ended_ms: None,
            total: 0,
            fetched: 0,
            bytes: 0,
            blocked: BTreeMap::new(),
            waiting: 0,
            caps: wish.caps,
            retry_since_ms: if wish.retry { started_ms } else { 0 },
        });
        self.has_changed = true;
        id
    }

    pub fn cancel(&mut self, id: &str, now: SystemTime) -> Result<(), Refused> {
        let mut runs = self.runs.iter_mut();
        let run = runs.find(|run| run.id == id).ok_or(Refused::Unknown)?;
        if run.state == RunState::Running {
            run.state = RunState::Cancelled;
            run.ended_ms = Some(millis(now));
            // Otherwise the node would begin it again at once.
            self.is_paused |= run.is_own || run.filter == Filter::All;
            self.has_changed = true;
        }
        Ok(())
    }

    /// The node is not to begin anything by itself any more.
    pub fn stop_own(&mut self, now: SystemTime) {
        let mut runs = self.runs.iter_mut();
        let own = runs.find(|run| run.is_own && run.state == RunState::Running);
        if let Some(own) = own {
            own.state = RunState::Cancelled;
            own.ended_ms = Some(millis(now));
            self.has_changed = true;
        }
    }

    pub fn resume(&mut self, id: &str) -> Result<(), Refused> {
        let mut runs = self.runs.iter_mut();
        let run = runs.find(|run| run.id == id).ok_or(Refused::Unknown)?;
        if run.state == RunState::Cancelled {
            run.state = RunState::Running;
            run.ended_ms = None;
            self.is_paused &= run.filter != Filter::All;
            self.has_changed = true;
        }
        Ok(())
    }

    /// There is something to fetch: if nobody has wished for it, the node begins a run of its own.
    pub fn has_work(&mut self, now: SystemTime) {
        if self.active_place().is_none() {
            let wish = Wish {
                filter: Filter::All,
                retry: false,
                dry_run: false,
                caps: Caps::default(),
            };
            self.add(wish, true, now);
            let (blocked, waiting) = (self.blocked.clone(), self.waiting);
            if let Some(run) = self.active_mut() {
                (run.blocked, run.waiting) = (blocked, waiting);
            }
        }
    }

    /// What is counted in a walk is counted anew.
    pub fn walk_begins(&mut self) {
        self.blocked.clear();
        self.waiting = 0;
        self.count();
    }

    /// So many are lacking.
    pub fn expect(&mut self, lacking: u64) {
        if let Some(run) = self.active_mut() {
            run.total = run.fetched + lacking;
        }
    }

    pub fn found_here(&mut self) {
        if let Some(run) = self.active_mut() {
            // It was counted as lacking by an index that is written behind.
            run.total = run.total.saturating_sub(1).max(run.fetched);
        }
    }

    pub fn blocks(&mut self, reason: &str) {
        *self.blocked.entry(reason.to_owned()).or_default() += 1;
        self.count();
    }

    pub fn waits(&mut self) {
        self.waiting += 1;
        self.count();
    }

    fn count(&mut self) {
        let (blocked, waiting) = (self.blocked.clone(), self.waiting);
        if let Some(run) = self.active_mut() {
            (run.blocked, run.waiting) = (blocked, waiting);
        }
    }

    pub fn filled(&mut self, number: Option<u64>, bytes: u64) {
        self.has_changed = true;
        let mut runs = self.runs.iter_mut();
        if let Some(run) = runs.find(|run| Some(run.number) == number) {
            run.fetched += 1;
            run.bytes += bytes;
        }
    }

    /// Ends the run under way, unless something of it waits. Says whether one has ended.
    pub fn end_active(&mut self, now: SystemTime) -> bool {
        let Some(place) = self.active_place() else {
            return false;
        };
        let run = &mut self.runs[place];
        if run.waiting > 0 && !run.dry_run {
            return false;
        }
        run.state = RunState::Done;
        run.ended_ms = Some(millis(now));
        if !run.dry_run {
            run.total = run.done();
        }
        self.has_changed = true;
        true
    }

    pub fn tell(&mut self) {
        if !std::mem::take(&mut self.has_changed) {
            return;
        }
        let is_of_all = self.active().is_none_or(|run| run.filter == Filter::All);
        let told = self.tell.borrow().clone();
        let (blocked, waiting) = match is_of_all {
            true => (self.blocked.clone(), self.waiting),
            false => (told.blocked.clone(), told.waiting),
        };
        show_blocked(&self.metrics, &blocked);
        self.metrics.populate_waiting.set((), waiting);
        self.tell.send_replace(Arc::new(Told {
            runs: self.runs.iter().cloned().collect(),
            blocked,
            waiting,
        }));
    }
}
