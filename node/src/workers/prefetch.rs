//! Prefetch: what an answer, or its request, says will be asked for next is fetched before it is.
//!
//! ```text
//!   answered ─► hint ─► plan: what it names ─► consider ─┬─ fresh here, under way, resting ─► nothing
//!                         (pure)                         ├─ over budget ────────────────────► dropped
//!                            ▲                           └─ waits its turn ─► hold ─┬─► whole, unused so far
//!                            └────────── depth: what that answer names ◄────────────┤
//!                                                                                   └─► failed: rests
//! ```
//!
//! Kept true here:
//! - Clients go first: what would wait for long, or for the connections that they wait for, is dropped. A later
//!   answer names it again.
//! - What is under way is under way once, for clients too: they join it.
//! - A failure leaves nothing but a pause, which grows, and is forgotten.
//! - A target is an origin of these settings, the request's own or one that is allowed; the request for it has
//!   nothing of a user's. No answer leads further than its rules' depth.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{mpsc, watch};

use crate::cache::fill::Fetcher;
use crate::cache::hold::{Pace, Shortfall, Suffices, Whole};
use crate::cache::prefetch::{self, Hint, Query, Rules, Source, Tally};
use crate::cache::residency::Stored;
use crate::cache::{Cache, LocalCache, OriginRules};
use crate::clock;
use crate::origin::{self, OriginPool};
use crate::peer::{MAX_CONNECTIONS, Peers};
use crate::semantics::freshness::Decision;
use crate::semantics::key::CacheKey;
use crate::semantics::reference::Target;
use crate::semantics::{cmcd, link};
use crate::tasks::Tasks;
use crate::telemetry::Prefetched;
use crate::workers::limits::Backoff;
use crate::workers::populate::Orders;
use crate::workers::{self, Asker, Question, host_of, may_select};

/// What one answer may name.
const MAX_NAMED: usize = 16;

/// Fetched at a time, for all origins.
pub const MAX_IN_FLIGHT: usize = 32;

/// That wait for their turn, for one origin.
const MAX_WAITING: usize = 32;

/// Pauses that are remembered. Past it, the oldest is forgotten.
const MAX_RESTING: usize = 4096;

/// After failures.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(60),
};

/// Bodies that one kind of field has brought, before it is judged; it is judged by twice as many at the most.
const JUDGED_BY: u64 = 32;

/// What one hint may lead to by all answers that are followed, whether it is here or not.
const MAX_CONSIDERED: usize = 64;

/// A rule that wastes is followed once in so many times.
const SAMPLED: u64 = 8;

/// What the worker is given.
pub struct Setup {
    pub cache: Cache,
    /// Origins and routes are those of populate.
    pub orders: watch::Receiver<Arc<Orders>>,
    /// In `Via`.
    pub pseudonym: Arc<str>,
    /// In `CDN-Loop`.
    pub cdn_id: Arc<str>,
    /// Other nodes, which may hold what is named.
    pub peers: Arc<Peers>,
    /// The connections of clients' requests to origins.
    pub clients: Arc<origin::Counters>,
    pub tasks: Arc<AtomicUsize>,
    pub uses_ring: bool,
}

/// Starts the thread `prefetch`. It ends with `ended`; what it fetches is then cut off.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    setup: Setup,
    ended: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let hints = setup.cache.prefetcher.listen();
    workers::start("prefetch", setup.uses_ring, move || {
        Worker::new(setup).run(hints, ended)
    })
}

/// Something that an answer names.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    target: Target,
    source: Source,
}

/// What these fields name, in their order, each once, and how many were refused: a pure function.
fn plan(rules: &Rules, base: &Target, hint: &Hint) -> (Vec<Named>, u64) {
    let mut references: Vec<(Box<[u8]>, Source)> = Vec::new();
    for link in link::links(&hint.said) {
        if rules.links.iter().any(|relation| link.is(relation)) && link.is_about(base) {
            references.push((link.target.into(), Source::Link));
        }
    }
    let mut objects = |objects: Vec<cmcd::NextObject>, source| {
        // A part of a body is brought by the request for it, or with the whole.
        let whole = objects.into_iter().filter(|object| object.range.is_none());
        references.extend(whole.map(|object| (object.reference, source)));
    };
    if rules.cmsd {
        objects(cmcd::announced_objects(&hint.said), Source::Cmsd);
    }
    if rules.cmcd {
        objects(cmcd::next_objects(&hint.asked, &hint.target), Source::Cmcd);
    }
    let (mut all, mut seen, mut refused) = (Vec::new(), HashSet::new(), 0_u64);
    for (reference, source) in references {
        let resolved = rules.confinement.resolve(base, &reference).ok();
        let Some(target) = resolved.and_then(|target| with_query(rules.query, base, target)) else {
            refused += 1;
            continue;
        };
        if target == *base || !seen.insert(target.clone()) {
            continue;
        }
        if all.len() == MAX_NAMED {
            refused += 1;
            continue;
        }
        all.push(Named { target, source });
    }
    (all, refused)
}

fn with_query(query: Query, base: &Target, target: Target) -> Option<Target> {
    match (query, target.query(), base.query()) {
        (Query::Skip, Some(_), _) => None,
        (Query::Copy, None, Some(own)) => {
            let signed = format!("{}?{own}", target.path_and_query());
            Target::new(target.scheme(), target.authority(), signed.as_bytes()).ok()
        }
        _ => Some(target),
    }
}

/// Something to be fetched.
struct Item {
    question: Question,
    origin: Rc<OriginRules>,
    rules: Arc<Rules>,
    tally: Arc<Tally>,
    /// How many answers may be followed from here, this one included.
    depth: u8,
    /// Whose rules have named it.
    lane: Arc<str>,
    /// Looks that are left of its hint's.
    left: Rc<Cell<usize>>,
}

/// Whose rules are followed, and how far still.
struct Trail {
    lane: Arc<str>,
    rules: Arc<Rules>,
    considered: HashSet<Target>,
    left: Rc<Cell<usize>>,
}

struct Ended {
    item: Item,
    outcome: Result<Whole, Shortfall>,
}

/// Failures in a row, and until when it is left alone.
struct Rest {
    failures: u32,
    until: Instant,
}

/// What one origin's rules have named.
struct Lane {
    waiting: VecDeque<Item>,
    in_flight: usize,
    pace: Rc<Pace>,
}

struct Worker {
    cache: LocalCache,
    tasks: Tasks,
    orders_watch: watch::Receiver<Arc<Orders>>,
    orders: Arc<Orders>,
    origins: Vec<Rc<OriginRules>>,
    clients: Arc<origin::Counters>,
    cdn_id: Arc<str>,
    /// By the origin's name.
    lanes: BTreeMap<Arc<str>, Lane>,
    tallies: BTreeMap<(Arc<str>, Source), Arc<Tally>>,
    /// Waiting or in flight.
    busy: HashSet<[u8; 32]>,
    resting: HashMap<[u8; 32], Rest>,
    /// The oldest first; one that was renewed stands in it twice.
    rested: VecDeque<[u8; 32]>,
    /// Considered although their rule wastes, or not.
    sampled: u64,
    ended: mpsc::UnboundedSender<Ended>,
    has_ended: Option<mpsc::UnboundedReceiver<Ended>>,
}

impl Worker {
    fn new(setup: Setup) -> Worker {
        let tasks = Tasks::new(setup.tasks);
        let mut orders_watch = setup.orders;
        let orders = orders_watch.borrow_and_update().clone();
        let (ended, has_ended) = mpsc::unbounded_channel();
        Worker {
            cache: LocalCache {
                shared: setup.cache.clone(),
                fetcher: Rc::new(Fetcher {
                    cache: setup.cache,
                    pool: OriginPool::bounded(Arc::default(), MAX_IN_FLIGHT),
                    peers: setup.peers,
                    peer_pool: OriginPool::bounded(Arc::default(), MAX_CONNECTIONS),
                    tasks: tasks.clone(),
                    pseudonym: setup.pseudonym,
                }),
            },
            tasks,
            orders_watch,
            origins: orders.origins.iter().cloned().map(Rc::new).collect(),
            orders,
            clients: setup.clients,
            cdn_id: setup.cdn_id,
            lanes: BTreeMap::new(),
            tallies: BTreeMap::new(),
            busy: HashSet::new(),
            resting: HashMap::new(),
            rested: VecDeque::new(),
            sampled: 0,
            ended,
            has_ended: Some(has_ended),
        }
    }

    async fn run(mut self, mut hints: mpsc::Receiver<Hint>, ended: impl Future<Output = ()>) {
        let Some(mut has_ended) = self.has_ended.take() else {
            return;
        };
        tokio::pin!(ended);
        loop {
            tokio::select! {
                biased;
                () = &mut ended => return,
                Some(ended) = has_ended.recv() => self.has_ended(ended),
                changed = self.orders_watch.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_orders();
                }
                Some(hint) = hints.recv() => self.hear(&hint),
            }
            self.dispatch();
        }
    }

    /// What waits was named by rules of other settings. What is in flight goes on.
    fn take_orders(&mut self) {
        self.orders = self.orders_watch.borrow_and_update().clone();
        self.origins = self.orders.origins.iter().cloned().map(Rc::new).collect();
        for lane in self.lanes.values_mut() {
            for item in lane.waiting.drain(..) {
                self.busy.remove(item.question.key.hash());
            }
        }
        self.lanes.retain(|_, lane| lane.in_flight > 0);
        for origin in &self.origins {
            let lane = self.lanes.get(&origin.name);
            if let (Some(lane), Some(rules)) = (lane, &origin.prefetch) {
                lane.pace.set(rules.max_rate);
                lane.pace.set_max_body(Some(rules.max_size));
            }
        }
        self.tallies.clear();
        self.resting.clear();
        self.rested.clear();
    }

    /// The origin that answers for this, by the settings.
    fn origin_of(&self, authority: &str, target: &[u8]) -> Option<Rc<OriginRules>> {
        let place = (self.orders.route)(host_of(authority), target)?;
        self.origins.get(place).cloned()
    }

    fn hear(&mut self, hint: &Hint) {
        let Some(origin) = self.origin_of(&hint.authority, &hint.target) else {
            return;
        };
        if let Some(rules) = &origin.prefetch {
            let mut trail = Trail {
                lane: origin.name.clone(),
                rules: rules.clone(),
                considered: HashSet::new(),
                left: Rc::new(Cell::new(MAX_CONSIDERED)),
            };
            self.follow(hint, &mut trail, rules.depth);
        }
    }

    /// Considers all that a hint names.
    fn follow(&mut self, hint: &Hint, trail: &mut Trail, depth: u8) {
        // What a player says of itself is no part of what it asks for.
        let target = cmcd::without_cmcd(&hint.target);
        let Ok(base) = Target::new(hint.scheme, &hint.authority, &target) else {
            return;
        };
        let (named, refused) = plan(&trail.rules, &base, hint);
        self.count(Prefetched::Refused, refused);
        for named in named {
            if trail.considered.insert(named.target.clone()) {
                let Some(left) = trail.left.get().checked_sub(1) else {
                    return self.count(Prefetched::Refused, 1);
                };
                trail.left.set(left);
                self.consider(named, &base, &hint.selecting, trail, depth);
            }
        }
    }

    fn count(&self, outcome: Prefetched, count: u64) {
        self.cache.shared.metrics.prefetches.add(outcome, count);
    }

    fn consider(
        &mut self,
        named: Named,
        base: &Target,
        selecting: &HeaderMap,
        trail: &mut Trail,
        depth: u8,
    ) {
        let Some((question, origin)) = self.question(&named.target, base, selecting) else {
            return self.count(Prefetched::Refused, 1);
        };
        let key = *question.key.hash();
        if self.busy.contains(&key) {
            return self.count(Prefetched::UnderWay, 1);
        }
        let request = question.request(&origin);
        let residency = &self.cache.shared.residency;
        let found = residency.select(&question.key, &question.fields).flatten();
        if let Some(stored) = found
            && stored.body.object.is_complete()
            && self.cache.shared.decide(&stored, &request, clock::now()) == Decision::Fresh
        {
            self.count(Prefetched::Present, 1);
            return self.go_on(&stored, trail, depth);
        }
        if self
            .resting
            .get(&key)
            .is_some_and(|rest| Instant::now() < rest.until)
        {
            return self.count(Prefetched::Resting, 1);
        }
        let of = (trail.lane.clone(), named.source);
        let total = self.cache.shared.prefetcher.total(named.source);
        let tally = self.tallies.entry(of);
        let tally = tally
            .or_insert_with(|| Tally::within(total.clone()))
            .clone();
        if self.wastes(&tally, trail.rules.max_waste) {
            return self.count(Prefetched::Throttled, 1);
        }
        let clients_wait = self.clients.waiting.load(Ordering::Relaxed) > 0;
        let rules = &trail.rules;
        let lane = self.lanes.entry(trail.lane.clone());
        let lane = lane.or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            in_flight: 0,
            pace: Pace::bounded(rules.max_rate, Some(rules.max_size)),
        });
        if clients_wait || lane.waiting.len() >= MAX_WAITING {
            return self.count(Prefetched::Dropped, 1);
        }
        self.busy.insert(key);
        lane.waiting.push_back(Item {
            question,
            origin,
            rules: rules.clone(),
            tally,
            depth,
            lane: trail.lane.clone(),
            left: trail.left.clone(),
        });
    }

    /// What to ask for, and of whom. `None` where no origin of the settings answers for it, or the variant is selected
    /// by what is a user's own. Of that, others than who named it are told only what kinds of content are taken.
    fn question(
        &self,
        target: &Target,
        base: &Target,
        selecting: &HeaderMap,
    ) -> Option<(Question, Rc<OriginRules>)> {
        if !selecting.keys().all(|name| may_select(name.as_str())) {
            return None;
        }
        let is_own = (target.scheme(), target.authority()) == (base.scheme(), base.authority());
        let fields = selecting.iter();
        let fields = fields.filter(|(name, _)| is_own || name.as_str().starts_with("accept"));
        let fields = fields.map(|(name, value)| (name.clone(), value.clone()));
        let path = target.path_and_query().as_bytes();
        let origin = self.origin_of(target.authority(), path)?;
        let question = Question {
            key: CacheKey::new(target.scheme(), target.authority(), path),
            authority: target.authority().into(),
            target: Bytes::copy_from_slice(path),
            fields: fields.collect(),
        };
        Some((question, origin))
    }

    /// Whether a rule's prefetches are for nothing too often to be followed now.
    fn wastes(&mut self, tally: &Tally, max_waste: u8) -> bool {
        tally.fade(2 * JUDGED_BY);
        let (used, wasted) = (tally.used(), tally.wasted());
        if used + wasted < JUDGED_BY || wasted * 100 <= (used + wasted) * u64::from(max_waste) {
            return false;
        }
        self.sampled += 1;
        !self.sampled.is_multiple_of(SAMPLED)
    }

    /// From what is here: one answer further, if the rules go so far.
    fn go_on(&mut self, stored: &Arc<Stored>, trail: &mut Trail, depth: u8) {
        let Some(depth) = depth.checked_sub(1).filter(|depth| *depth > 0) else {
            return;
        };
        let Some(selecting) = prefetch::selecting(stored) else {
            return;
        };
        let hint = Hint {
            scheme: stored.key.scheme(),
            authority: stored.key.authority().into(),
            target: Bytes::copy_from_slice(&cmcd::without_cmcd(stored.key.target())),
            said: prefetch::said(&stored.head.headers),
            asked: HeaderMap::new(),
            selecting,
        };
        self.follow(&hint, trail, depth);
    }

    fn dispatch(&mut self) {
        let mut in_flight: usize = self.lanes.values().map(|lane| lane.in_flight).sum();
        let mut begun = Vec::new();
        for lane in self.lanes.values_mut() {
            while in_flight < MAX_IN_FLIGHT
                && let Some(item) = lane.waiting.front()
                && lane.in_flight < item.rules.max_in_flight
                && let Some(item) = lane.waiting.pop_front()
            {
                lane.in_flight += 1;
                in_flight += 1;
                begun.push((item, lane.pace.clone()));
            }
        }
        for (item, pace) in begun {
            self.begin(item, pace);
        }
    }

    fn begin(&self, item: Item, pace: Rc<Pace>) {
        let (cache, cdn_id, ended) = (self.cache.clone(), self.cdn_id.clone(), self.ended.clone());
        let counted = cache.shared.metrics.prefetch_in_flight.hold(());
        self.tasks.spawn(async move {
            let asker = Asker {
                cdn_id: &cdn_id,
                agent: concat!("caje/", env!("CARGO_PKG_VERSION"), " (prefetch)"),
                // Fetch standard, section 2.2.4.
                also: Some((
                    HeaderName::from_static("sec-purpose"),
                    HeaderValue::from_static("prefetch"),
                )),
            };
            let question = &item.question;
            let outcome = question
                .hold(&cache, &item.origin, asker, &pace, Suffices::Fresh)
                .await;
            drop(counted);
            // The worker may have ended.
            let _ = ended.send(Ended { item, outcome });
        });
    }

    fn has_ended(&mut self, ended: Ended) {
        let Ended { item, outcome } = ended;
        let key = *item.question.key.hash();
        self.busy.remove(&key);
        if let Some(lane) = self.lanes.get_mut(&item.lane) {
            lane.in_flight = lane.in_flight.saturating_sub(1);
        }
        match outcome {
            Ok(whole) => {
                self.count(Prefetched::Whole, 1);
                let metrics = &self.cache.shared.metrics;
                metrics.prefetch_bytes.add((), whole.brought);
                if !whole.is_joined {
                    whole.stored.body.used.was_prefetched(item.tally);
                }
                let request = item.question.request(&item.origin);
                let cache = &self.cache.shared;
                match cache.decide(&whole.stored, &request, clock::now()) {
                    Decision::Fresh => drop(self.resting.remove(&key)),
                    // To be asked for each time: whoever comes does.
                    _ => self.rest(key),
                }
                let mut trail = Trail {
                    lane: item.lane,
                    rules: item.rules,
                    considered: HashSet::new(),
                    left: item.left,
                };
                self.go_on(&whole.stored, &mut trail, item.depth);
            }
            Err(shortfall) => {
                tracing::debug!(key = %item.question.key, ?shortfall, "not prefetched");
                self.count(Prefetched::Failed, 1);
                self.rest(key);
            }
        }
    }

    fn rest(&mut self, key: [u8; 32]) {
        let failures = self.resting.get(&key).map_or(1, |rest| rest.failures + 1);
        let seed = u64::from_le_bytes(key.first_chunk().copied().unwrap_or_default());
        let until = Instant::now() + BACKOFF.pause(failures, seed);
        self.resting.insert(key, Rest { failures, until });
        self.rested.push_back(key);
        if self.rested.len() > MAX_RESTING
            && let Some(oldest) = self.rested.pop_front()
            && !self.rested.contains(&oldest)
        {
            self.resting.remove(&oldest);
        }
    }
}
