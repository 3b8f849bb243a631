//! Populate: whatever the manifest lists and this disk lacks is fetched, without a client asking.
//!
//! ```text
//!   manifest changed ─┐
//!   something lost    ├─► walk: pages of what is lacking ─► plan ─┬─ fetch ──► window ─► hold ─┬─► whole
//!   settings changed  │    (thread populate-walk)                 ├─ wait ◄────────────────────┤
//!   a pause is over   │                                           └─ blocked ◄─────────────────┘
//!   an operator asks ─┘
//! ```
//!
//! Kept true here:
//! - It waits for events and for times that it knows. Walks begin at a pace that leaves nine tenths of a processor
//!   alone, however often something changes; what is in flight goes on meanwhile.
//! - Memory is bounded by a window of what is next for each origin, not by what is lacking.
//! - A success is a body that is whole in this store, in the variant that was recorded. What fails is counted, here
//!   and over restarts; what has hit a limit rests until its row changes, somebody wishes to retry, or time is over.
//! - Only origins of these settings are asked, by the routes that clients' requests take.
//! - Clients go first: half of the places are left where they wait for connections or fill much themselves, and a
//!   client that joins a fill lifts its pace.

mod attempts;
mod plan;
mod run;
mod walk;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::cache::fill::Fetcher;
use crate::cache::head::variant_number;
use crate::cache::hold::{Pace, Shortfall, Suffices};
use crate::cache::{Cache, LocalCache, OriginRules};
use crate::clock;
use crate::manifest::{Cursor, Filter, Manifest};
use crate::origin::{self, OriginPool};
use crate::peer::{MAX_CONNECTIONS, Peers};
use crate::tasks::Tasks;
use crate::telemetry::{Label, Populated};
use crate::workers::limits::{self, Backoff, Limits, Verdict};
use crate::workers::{self, Asker};
use attempts::Digest;
use plan::{Action, Found, Item, Snapshot, millis, plan};
use run::Runs;
use walk::{Ask, PAGE, Page, Walker};

pub use run::{Caps, Refused, Run, RunState, Told, Wish};

/// Items of one origin that are next.
const WINDOW: usize = 1024;

/// Between the beginnings of two walks, at the least.
const WALK_PACE: Duration = Duration::from_millis(100);

/// How much longer than it took a walk is rested from.
const WALK_REST: u32 = 9;

/// After something was lost: the index is written behind.
const LOST_DELAY: Duration = Duration::from_secs(1);

/// After a walk that failed.
const ERROR_REST: Duration = Duration::from_secs(5);

/// In percent of the disk: beyond it, what is brought would make others go that are listed too. Eviction ends above
/// it, so that what it takes is not fetched again in its place.
const FULL_PERCENT: u64 = 90;

/// Orders that wait to be taken.
const MAX_COMMANDS: usize = 64;

/// What the worker goes by.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Whether it begins by itself.
    pub enabled: bool,
    pub max_in_flight: usize,
    pub max_in_flight_per_origin: usize,
    /// Bytes per second; `None`: no limit.
    pub max_rate: Option<u64>,
    /// What has hit its limit is tried again after this.
    pub retry_after: Duration,
    pub backoff: Backoff,
    pub limits: Limits,
}

/// Chooses an origin by host (lower case, no port) and target.
pub type Route = Box<dyn Fn(&str, &[u8]) -> Option<usize> + Send + Sync>;

/// The settings in force.
pub struct Orders {
    pub settings: Settings,
    pub origins: Vec<OriginRules>,
    /// Gives places in `origins`.
    pub route: Route,
}

/// What the worker is given.
pub struct Setup {
    /// This node's name among all.
    pub node: String,
    pub cache: Cache,
    /// Where attempts are remembered.
    pub book: PathBuf,
    pub manifest: watch::Receiver<Option<Manifest>>,
    pub orders: watch::Receiver<Arc<Orders>>,
    /// In `Via`.
    pub pseudonym: Arc<str>,
    /// In `CDN-Loop`.
    pub cdn_id: Arc<str>,
    /// Other nodes, which may hold what is lacking here.
    pub peers: Arc<Peers>,
    /// The connections of clients' requests to origins.
    pub clients: Arc<origin::Counters>,
    pub tasks: Arc<AtomicUsize>,
    pub uses_ring: bool,
}

/// Steers the worker, and tells what it is about.
#[derive(Clone)]
pub struct Populate {
    commands: mpsc::Sender<Command>,
    told: watch::Receiver<Arc<Told>>,
}

enum Command {
    Begin(Wish, oneshot::Sender<Result<String, Refused>>),
    Cancel(String, oneshot::Sender<Result<(), Refused>>),
    Resume(String, oneshot::Sender<Result<(), Refused>>),
}

impl Populate {
    /// Begins a run, and gives its id: that of the one under way where it does what is wished for.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn begin(&self, wish: Wish) -> Result<String, Refused> {
        self.order(|answer| Command::Begin(wish, answer)).await
    }

    /// Ends a run. What is in flight goes on; nothing that was fetched is lost.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn cancel(&self, id: &str) -> Result<(), Refused> {
        self.order(|answer| Command::Cancel(id.to_owned(), answer))
            .await
    }

    /// Goes on with a run that was cancelled.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn resume(&self, id: &str) -> Result<(), Refused> {
        self.order(|answer| Command::Resume(id.to_owned(), answer))
            .await
    }

    async fn order<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Command,
    ) -> Result<T, Refused> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.try_send(command(answer));
        sent.map_err(|_| Refused::Busy)?;
        answered.await.unwrap_or(Err(Refused::Busy))
    }

    /// What it is about, and each change of that.
    pub fn watch(&self) -> watch::Receiver<Arc<Told>> {
        self.told.clone()
    }
}

/// Starts the threads `populate` and `populate-walk`. They end with `ended`; what they fetch is then cut off, and
/// gone on with after the next start.
///
/// # Errors
/// When a thread cannot be started.
pub fn start(
    setup: Setup,
    ended: impl Future<Output = ()> + Send + 'static,
) -> io::Result<(Populate, JoinHandle<()>)> {
    let (commands, received) = mpsc::channel(MAX_COMMANDS);
    let (tell, told) = watch::channel(Arc::default());
    let (walker, walking) = Walker::start(setup.cache.store.clone(), setup.book.clone())?;
    let thread = workers::start("populate", setup.uses_ring, move || async move {
        Worker::new(setup, walker, tell).run(received, ended).await;
        // It ends with the walker; it panics only where a bug does, which was told of.
        let _ = walking.join();
    })?;
    Ok((Populate { commands, told }, thread))
}

/// A look through what is lacking.
struct Walk {
    number: u64,
    filter: Filter,
    after: Cursor,
    /// No page has come yet.
    is_new: bool,
    /// All pages have come.
    is_over: bool,
    /// Found, and not taken because the window was full.
    has_left: bool,
    took: Duration,
    /// Ended since it began, and begun before: not to be counted when they are met.
    settled: HashSet<Digest>,
}

struct Ended {
    item: Item,
    run: Option<u64>,
    walk: u64,
    outcome: Result<u64, Shortfall>,
}

type PageCome = oneshot::Receiver<Result<Page, String>>;

struct Worker {
    cache: LocalCache,
    tasks: Tasks,
    pace: Rc<Pace>,
    walker: Walker,
    manifest: watch::Receiver<Option<Manifest>>,
    orders_watch: watch::Receiver<Arc<Orders>>,
    orders: Arc<Orders>,
    origins: Vec<Rc<OriginRules>>,
    clients: Arc<origin::Counters>,
    cdn_id: Arc<str>,
    seed: u64,
    runs: Runs,

    walk: Option<Walk>,
    walks: u64,
    page: Option<PageCome>,
    /// Something has changed since the last walk began.
    is_due: bool,
    not_before: Instant,
    /// When a pause is over, in milliseconds since 1970.
    due_ms: Option<u64>,
    last_lost: Instant,
    /// When the index knows of what was lost first since the last look.
    lost_due: Option<Instant>,
    /// Until then the index may not know what was lost before the last order: no run is at its end.
    settles: Option<Instant>,

    /// What is next, by origin.
    window: BTreeMap<usize, VecDeque<Item>>,
    /// In flight, by origin.
    flying: BTreeMap<usize, usize>,
    /// In the window or in flight.
    busy: HashSet<Digest>,
    /// Bytes that are on their way, as far as they are known.
    reserved: u64,
    ended: mpsc::UnboundedSender<Ended>,
    has_ended: Option<mpsc::UnboundedReceiver<Ended>>,
    /// Whether the walker was told of a manifest: later than it is there.
    is_open: bool,
}

impl Worker {
    fn new(setup: Setup, walker: Walker, tell: watch::Sender<Arc<Told>>) -> Worker {
        let tasks = Tasks::new(setup.tasks);
        let mut orders_watch = setup.orders;
        let orders = orders_watch.borrow_and_update().clone();
        let (ended, has_ended) = mpsc::unbounded_channel();
        let metrics = setup.cache.metrics.clone();
        let digest = blake3::hash(setup.node.as_bytes());
        let seed = digest.as_bytes().first_chunk().copied();
        let mut worker = Worker {
            cache: LocalCache {
                shared: setup.cache.clone(),
                fetcher: Rc::new(Fetcher {
                    cache: setup.cache,
                    pool: OriginPool::new(Arc::default()),
                    peers: setup.peers,
                    peer_pool: OriginPool::bounded(Arc::default(), MAX_CONNECTIONS),
                    tasks: tasks.clone(),
                    pseudonym: setup.pseudonym,
                }),
            },
            tasks,
            pace: Pace::new(orders.settings.max_rate),
            walker,
            manifest: setup.manifest,
            orders_watch,
            origins: orders.origins.iter().cloned().map(Rc::new).collect(),
            orders,
            clients: setup.clients,
            cdn_id: setup.cdn_id,
            seed: seed.map_or(0, u64::from_le_bytes),
            runs: Runs::new(setup.node, tell, metrics),
            walk: None,
            walks: 0,
            page: None,
            is_due: true,
            not_before: Instant::now(),
            due_ms: None,
            last_lost: Instant::now(),
            lost_due: None,
            settles: None,
            window: BTreeMap::new(),
            flying: BTreeMap::new(),
            busy: HashSet::new(),
            reserved: 0,
            ended,
            has_ended: Some(has_ended),
            is_open: false,
        };
        worker.open();
        worker
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>, ended: impl Future<Output = ()>) {
        let Some(mut has_ended) = self.has_ended.take() else {
            return;
        };
        let residency = self.cache.shared.residency.clone();
        let mut changes = self.changes();
        let mut is_steered = true;
        tokio::pin!(ended);
        loop {
            self.tend();
            let wake = self.wake();
            tokio::select! {
                biased;
                () = &mut ended => return,
                Some(ended) = has_ended.recv() => self.has_ended(ended),
                page = come(&mut self.page) => {
                    self.page = None;
                    self.page_has_come(page);
                }
                // Before what is asked for after it.
                () = residency.lost() => {
                    let now = Instant::now();
                    self.last_lost = now;
                    self.lost_due.get_or_insert(now + LOST_DELAY);
                }
                command = commands.recv(), if is_steered => match command {
                    Some(command) => self.obey(command),
                    None => is_steered = false,
                },
                changed = self.manifest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.open();
                    changes = self.changes();
                }
                () = changed(&mut changes) => self.is_due = true,
                changed = self.orders_watch.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_orders();
                }
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
            }
        }
    }

    /// Reads from the manifest that there is now.
    fn open(&mut self) {
        let manifest = self.manifest.borrow_and_update().clone();
        self.is_open = manifest.is_some();
        self.walker.ask(Ask::Open(manifest));
        self.walker.ask(Ask::ForgetOld(millis(clock::now())));
        self.is_due = true;
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.manifest.borrow().as_ref().map(Manifest::watch)
    }

    fn take_orders(&mut self) {
        self.orders = self.orders_watch.borrow_and_update().clone();
        self.origins = self.orders.origins.iter().cloned().map(Rc::new).collect();
        if !self.orders.settings.enabled {
            self.runs.stop_own(clock::now());
        }
        // Their origins are those of other settings. What is in flight goes on at its own.
        self.empty_window();
        self.flying.clear();
        self.is_due = true;
    }

    fn obey(&mut self, command: Command) {
        let before = self.runs.active_number();
        self.settles = self.lost_due.map(|_| self.last_lost + LOST_DELAY);
        // What was done is told before it is answered. Who asked may have gone.
        match command {
            Command::Begin(wish, answer) => {
                let begun = match self.cache.shared.store.is_memory_only() {
                    true => Err(Refused::NoDisk),
                    false if self.manifest.borrow().is_none() => Err(Refused::NoManifest),
                    false => self.runs.begin(wish, clock::now()),
                };
                self.runs.tell();
                let _ = answer.send(begun);
            }
            Command::Cancel(id, answer) => {
                let cancelled = self.runs.cancel(&id, clock::now());
                self.runs.tell();
                let _ = answer.send(cancelled);
            }
            Command::Resume(id, answer) => {
                let resumed = self.runs.resume(&id);
                self.runs.tell();
                let _ = answer.send(resumed);
            }
        }
        if self.runs.active_number() != before {
            // What was next was so for another run.
            self.empty_window();
            self.walk = None;
        }
        self.is_due = true;
    }

    /// Does all that can be done at once.
    fn tend(&mut self) {
        let now_ms = millis(clock::now());
        if self.due_ms.is_some_and(|due| due <= now_ms) {
            self.due_ms = None;
            self.is_due = true;
        }
        let now = Instant::now();
        if self.lost_due.is_some_and(|due| due <= now) {
            self.is_due = true;
            // What was lost meanwhile the index may not know of yet.
            let last = self.last_lost + LOST_DELAY;
            self.lost_due = (last > now).then_some(last);
        }
        if self.wants_another_walk() {
            self.is_due = true;
        }
        self.walk_on();
        self.pace
            .set(lower(self.orders.settings.max_rate, self.runs.caps().rate));
        self.dispatch();
        self.end_runs();
        self.runs.tell();
    }

    /// Whether what a walk has left may have a place by now.
    fn wants_another_walk(&self) -> bool {
        let has_left = self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.is_over && walk.has_left);
        has_left && self.window.values().any(|next| next.len() < WINDOW / 4)
    }

    fn filter(&self) -> Option<Filter> {
        if self.manifest.borrow().is_none() || self.cache.shared.store.is_memory_only() {
            return None;
        }
        match self.runs.active() {
            Some(run) => Some(run.filter.clone()),
            None if self.orders.settings.enabled && !self.runs.is_paused() => Some(Filter::All),
            None => None,
        }
    }

    fn walk_on(&mut self) {
        if self.page.is_some() {
            return;
        }
        if self.is_due && self.not_before <= Instant::now() {
            self.is_due = false;
            self.empty_window();
            self.walk = None;
            // A manifest that comes makes a walk due. A disk does not come.
            let can_tell = self.is_open && self.cache.shared.store.index_path().is_some();
            if let Some(filter) = self.filter().filter(|_| can_tell) {
                self.begin_walk(filter);
            }
        }
        let is_hungry = self.is_hungry();
        let Some(walk) = &self.walk else { return };
        if !walk.is_over && is_hungry {
            let (filter, after) = (walk.filter.clone(), walk.after.clone());
            self.page = Some(self.walker.page(filter, after, walk.is_new));
        }
    }

    /// Whether there is a use for more items.
    fn is_hungry(&self) -> bool {
        let next: usize = self.window.values().map(VecDeque::len).sum();
        let in_flight: usize = self.flying.values().sum();
        let has_others = self.origins.len() > 1;
        next < PAGE || has_others && in_flight < self.allowed().0
    }

    fn begin_walk(&mut self, filter: Filter) {
        self.walks += 1;
        self.due_ms = None;
        self.cache.shared.metrics.populate_walks.increment(());
        self.runs.walk_begins();
        self.walk = Some(Walk {
            number: self.walks,
            filter,
            after: Cursor::default(),
            is_new: true,
            is_over: false,
            has_left: false,
            took: Duration::ZERO,
            settled: HashSet::new(),
        });
    }

    fn empty_window(&mut self) {
        for item in self.window.values().flatten() {
            self.busy.remove(&item.digest);
        }
        self.window.clear();
    }

    fn page_has_come(&mut self, page: Result<Page, String>) {
        let Some(mut walk) = self.walk.take() else {
            return;
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, "what this disk lacks cannot be found out");
                self.is_due = true;
                self.not_before = Instant::now() + ERROR_REST;
                return;
            }
        };
        walk.took += page.took;
        if let Some(lacking) = page.lacking {
            self.runs.expect(lacking);
        }
        walk.is_new = false;
        let now = clock::now();
        let residency = &self.cache.shared.residency;
        let found = page.items.into_iter().map(|(covered, digest, attempts)| {
            let id = &covered.listed.resource.id;
            Found {
                is_here: plan::is_here(residency, id, covered.listed.resource.about.variant),
                covered,
                digest,
                attempts,
            }
        });
        let items: Vec<Found> = found.collect();
        let actions = plan(
            &Snapshot {
                items: &items,
                settings: &self.orders.settings,
                route: &self.orders.route,
                room: self.room(),
                retry_since_ms: self.runs.retry_since_ms(),
                seed: self.seed,
            },
            now,
        );
        for (found, action) in items.iter().zip(actions) {
            if self.busy.contains(&found.digest) || walk.settled.contains(&found.digest) {
                continue;
            }
            match action {
                Action::Nothing => self.runs.found_here(),
                Action::Wait(until) => {
                    self.runs.waits();
                    self.wake_by(until);
                }
                Action::Block(reason, until) => {
                    self.runs.blocks(&reason);
                    if let Some(until) = until {
                        self.wake_by(until);
                    }
                }
                Action::Fetch(_) if self.runs.active().is_some_and(|run| run.dry_run) => {}
                Action::Fetch(item) => {
                    let next = self.window.entry(item.origin).or_default();
                    if next.len() < WINDOW {
                        self.busy.insert(item.digest);
                        next.push_back(*item);
                    } else {
                        walk.has_left = true;
                    }
                }
            }
        }
        match page.next {
            Some(next) => walk.after = next,
            None => {
                walk.is_over = true;
                let rest = (walk.took * WALK_REST).max(WALK_PACE);
                self.not_before = self.not_before.max(Instant::now() + rest);
            }
        }
        if !self.window.is_empty() {
            self.runs.has_work(now);
        }
        self.walk = Some(walk);
    }

    fn wake_by(&mut self, until_ms: u64) {
        self.due_ms = Some(self.due_ms.map_or(until_ms, |due| due.min(until_ms)));
    }

    /// When there is something to do without an event.
    fn wake(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.is_due && self.page.is_none() {
            return Some(self.not_before.max(now));
        }
        let paused = self.due_ms.and_then(|due| {
            let left = due.saturating_sub(millis(clock::now()));
            // Not a moment too early, and not before a walk may begin.
            let at = now.checked_add(Duration::from_millis(left.saturating_add(1)))?;
            Some(at.max(self.not_before))
        });
        [paused, self.lost_due].into_iter().flatten().min()
    }

    /// Bytes that the disk takes without giving up others that are listed.
    fn room(&self) -> u64 {
        let usage = self.cache.shared.store.usage();
        let full = usage.disk_reach / 100 * FULL_PERCENT;
        let next: u64 = self.window.values().flatten().map(|item| item.size).sum();
        let used = usage.spared_bytes + usage.dirty_bytes;
        full.saturating_sub(used.saturating_add(self.reserved).saturating_add(next))
    }

    /// Items that may be in flight, in all and for one origin. Half where clients wait for connections, or fill as
    /// much as this; one at the least, so that the end of it is when to look again.
    fn allowed(&self) -> (usize, usize) {
        let settings = &self.orders.settings;
        let cap = self.runs.caps().in_flight.unwrap_or(usize::MAX).max(1);
        let all = settings.max_in_flight.min(cap);
        let each = settings.max_in_flight_per_origin.min(cap);
        let own = i64::try_from(self.pace.fills()).unwrap_or(i64::MAX);
        let others = self.cache.shared.metrics.fills.get(()) - own;
        let are_busy = self.clients.waiting.load(Ordering::Relaxed) > 0
            || usize::try_from(others).is_ok_and(|others| others >= all);
        match are_busy {
            true => ((all / 2).max(1), (each / 2).max(1)),
            false => (all, each),
        }
    }

    fn dispatch(&mut self) {
        let (all, each) = self.allowed();
        let mut in_flight: usize = self.flying.values().sum();
        // Origins in turn, so that none waits for another's items.
        loop {
            let mut has_begun = false;
            let origins: Vec<usize> = self.window.keys().copied().collect();
            for origin in origins {
                let flying = self.flying.entry(origin).or_default();
                if in_flight >= all || *flying >= each {
                    continue;
                }
                let Some(item) = self.window.get_mut(&origin).and_then(VecDeque::pop_front) else {
                    continue;
                };
                *flying += 1;
                in_flight += 1;
                has_begun = true;
                self.begin(item);
            }
            if !has_begun {
                break;
            }
        }
        self.window.retain(|_, next| !next.is_empty());
    }

    fn begin(&mut self, item: Item) {
        let Some(origin) = self.origins.get(item.origin).cloned() else {
            return;
        };
        self.reserved += item.size;
        let (cache, pace, ended) = (self.cache.clone(), self.pace.clone(), self.ended.clone());
        let counted = cache.shared.metrics.populate_in_flight.hold(());
        let (run, walk) = (self.runs.active_number(), self.walks);
        let cdn_id = self.cdn_id.clone();
        self.tasks.spawn(async move {
            let outcome = fetch(&cache, &item, &origin, &cdn_id, &pace).await;
            drop(counted);
            // The worker may have ended.
            let _ = ended.send(Ended {
                item,
                run,
                walk,
                outcome,
            });
        });
    }

    fn has_ended(&mut self, ended: Ended) {
        let Ended {
            mut item,
            run,
            walk,
            outcome,
        } = ended;
        if let Some(flying) = self.flying.get_mut(&item.origin) {
            *flying = flying.saturating_sub(1);
        }
        self.busy.remove(&item.digest);
        self.reserved = self.reserved.saturating_sub(item.size);
        if let Some(current) = self.walk.as_mut().filter(|current| current.number != walk) {
            current.settled.insert(item.digest);
        }
        let metrics = &self.cache.shared.metrics;
        let shortfall = match outcome {
            Ok(brought) => {
                metrics.populate_attempts.increment(Populated::Whole);
                metrics.populate_bytes.add((), brought);
                if !item.attempts.counts.is_empty() {
                    self.walker.ask(Ask::Note(item.digest, None));
                }
                return self.runs.filled(run, brought);
            }
            Err(shortfall) => shortfall,
        };
        metrics.populate_attempts.increment(counted_as(shortfall));
        let now_ms = millis(clock::now());
        item.attempts.note(shortfall, now_ms);
        let settings = &self.orders.settings;
        let verdict = item.attempts.judge(
            &settings.limits,
            settings.backoff,
            settings.retry_after,
            plan::seed(self.seed, &item.digest, &item.attempts),
            now_ms,
        );
        tracing::debug!(key = %item.question.key, ?shortfall, ?verdict, "not populated");
        match verdict {
            Verdict::Blocked(reason, until) => {
                self.runs.blocks(&reason);
                self.wake_by(until);
            }
            Verdict::Wait(until) => {
                self.runs.waits();
                self.wake_by(until);
            }
            Verdict::Try => {
                self.runs.waits();
                self.is_due = true;
            }
        }
        self.walker.ask(Ask::Note(item.digest, Some(item.attempts)));
    }

    /// Nothing is left to do of the run under way, but what is blocked.
    fn end_runs(&mut self) {
        let is_over = self.walk.as_ref().is_some_and(|walk| {
            let is_its_own = self
                .runs
                .active()
                .is_some_and(|run| run.filter == walk.filter);
            walk.is_over && !walk.has_left && is_its_own
        });
        let is_settled = self.settles.is_none_or(|at| at <= Instant::now());
        let has_more = self.is_due || self.page.is_some() || !self.busy.is_empty();
        if !is_over || has_more || !is_settled {
            return;
        }
        if self.runs.end_active(clock::now()) {
            // What else is there to be done.
            self.is_due = true;
        }
    }
}

/// The lower of two limits.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

async fn come(page: &mut Option<PageCome>) -> Result<Page, String> {
    match page {
        Some(page) => {
            let come = page.await;
            come.unwrap_or_else(|_| Err("the thread that reads has ended".to_owned()))
        }
        None => pending().await,
    }
}

async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(watched) = changes
        && watched.changed().await.is_ok()
    {
        return;
    }
    // Closed: another manifest will be told of.
    *changes = None;
    pending().await
}

/// Has one item whole in the store, in the variant that was recorded. Gives the bytes that were brought.
async fn fetch(
    cache: &LocalCache,
    item: &Item,
    origin: &Rc<OriginRules>,
    cdn_id: &str,
    pace: &Rc<Pace>,
) -> Result<u64, Shortfall> {
    let asker = Asker {
        cdn_id,
        agent: concat!("caje/", env!("CARGO_PKG_VERSION"), " (populate)"),
        also: None,
    };
    let whole = item
        .question
        .hold(cache, origin, asker, pace, Suffices::Any)
        .await?;
    let head = &whole.stored.head;
    // What is stored under another name leaves this one lacking, however often it is fetched.
    match variant_number(&head.vary, &head.variant) == item.variant {
        true => Ok(whole.brought),
        false => Err(Shortfall::Uncacheable),
    }
}

fn counted_as(shortfall: Shortfall) -> Populated {
    match shortfall {
        Shortfall::Status(status) => status.into(),
        other => Populated::named(&limits::name(other)).unwrap_or(Populated::Again),
    }
}

/// What the metrics call a reason to leave something alone.
fn blocked_as(reason: &str) -> Populated {
    match reason.parse::<u16>() {
        Ok(status) => status.into(),
        Err(_) => Populated::named(&reason.replace('-', "_")).unwrap_or(Populated::Again),
    }
}

/// Tells how many are left alone for each reason.
fn show_blocked(metrics: &crate::telemetry::Metrics, blocked: &BTreeMap<String, u64>) {
    let mut sums = vec![0; Populated::VALUES.len()];
    for (reason, count) in blocked {
        sums[blocked_as(reason).index()] += count;
    }
    for value in Populated::VALUES {
        if let Some(label) = Populated::named(value) {
            metrics.populate_blocked.set(label, sums[label.index()]);
        }
    }
}
