//! What is stored under which key: the one place that changes it.
//!
//! ```text
//! cache key ─► Resource ─► [Stored, Stored, …]   newest first, one for each variant
//!                             │ head (headers, freshness, validators, variant)
//!                             └ body (blocks in the store, fills in flight)
//! ```
//!
//! Kept true here:
//! - Lookups take no lock. Changes are serialised, and swap a resource's whole list at once.
//! - A stored response is found from the moment its head is known; it is written to the index only
//!   once a restart could make sense of it (whole, or joinable by a strong validator).
//! - The full key is compared, never only its hash.
//! - A response that left the list has left the store: its row goes first, its extents when the last
//!   reader is done.
//! - What the manifest lists is spared by the store, as soon as both are known and for as long as it is listed.
//! - What a hard purge is about is not put into the list, and not given out of it: it is taken out when it
//!   is met, or when a sweep comes by.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cache::body::Body;
use crate::cache::head::{self, Head};
use crate::cache::purge::{Ledger, LogCursor, Purge, Purges, Verdict};
use crate::cache::record::Hits;
use crate::clock::{self, Stamp};
use crate::manifest::{Listing, Named};
use crate::semantics::key::{CacheKey, DigestHashing, Scheme};
use crate::semantics::vary::VariantKey;
use crate::store::{Object, PurgeRow, Recovered, Store};

/// Variants kept of one resource: a response that varies by something unbounded must not fill the index.
const MAX_VARIANTS: usize = 64;

/// Resources that a sweep looks at before it lets others run.
const SWEEP_BATCH: usize = 1024;

/// Resources remembered as not worth waiting for, and for how long.
const MAX_UNSHAREABLE: usize = 65_536;

/// Invalidations that are remembered, for what other nodes give.
const MAX_INVALIDATED: usize = 65_536;

/// One stored response: a head and the body it belongs to.
pub struct Stored {
    pub key: CacheKey,
    pub head: Head,
    pub body: Arc<Body>,
    /// When it was made stale before its time, by a HEAD or a soft purge: a stamp, or 0.
    outdated: AtomicU64,
    /// Whether it may be used stale within the windows that follow that time.
    validates_always: AtomicBool,
    /// The generation of purges that it was last held against.
    seen: AtomicU64,
    /// The index knows that it is stale before its time.
    told_stale: AtomicBool,
    pub hits: Hits,
}

/// How a stored response stands, apart from its freshness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// Purged softly: stale since then at the latest.
    StaleSince(SystemTime),
    /// To be validated, whatever its freshness says.
    Outdated,
}

impl Stored {
    pub fn new(key: CacheKey, head: Head, body: Arc<Body>) -> Arc<Stored> {
        Arc::new(Stored {
            key,
            head,
            body,
            outdated: AtomicU64::new(0),
            validates_always: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            told_stale: AtomicBool::new(false),
            hits: Hits::default(),
        })
    }

    /// Whether it may answer a request with these fields: its variant, and its bytes to be had.
    pub fn matches(&self, request: &HeaderMap) -> bool {
        self.head.selects(request) && self.is_usable()
    }

    fn is_usable(&self) -> bool {
        !self.body.object.is_gone() && self.body.is_whole_or_arriving()
    }

    /// From now on it has to be validated, whatever its freshness says.
    pub fn outdate(&self) {
        self.validates_always.store(true, Ordering::Relaxed);
        self.outdated.store(1, Ordering::Release);
    }

    /// From now on it is stale, and has been since a soft purge.
    fn soften(&self, since: Stamp) {
        // The first counts: it is the one from which its windows run.
        let _ = self
            .outdated
            .compare_exchange(0, since.0, Ordering::Release, Ordering::Relaxed);
    }

    /// Apart from what [`Residency::standing`] knows of doubt.
    #[inline]
    pub fn standing(&self) -> Standing {
        match self.outdated.load(Ordering::Acquire) {
            0 => Standing::Good,
            _ if self.validates_always.load(Ordering::Relaxed) => Standing::Outdated,
            since => Standing::StaleSince(Stamp(since).time()),
        }
    }
}

/// Whether a key was invalidated while a question was under way: its answer may describe what was
/// there before, and is not kept.
#[derive(Debug, Default)]
pub struct Mark(AtomicBool);

impl Mark {
    /// To be set before what is stored under the key is removed.
    pub fn overtake(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_overtaken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What became of a response that was to be made findable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Insertion {
    Done,
    /// Its key was invalidated, or it was purged, since it was asked for. It is removed from the store.
    Overtaken,
}

pub struct Resource {
    key: CacheKey,
    variants: ArcSwap<Vec<Arc<Stored>>>,
}

impl Resource {
    /// The newest stored response that these request fields select (RFC 9111 §4.1).
    pub fn select(&self, request: &HeaderMap) -> Option<Arc<Stored>> {
        let variants = self.variants.load();
        variants
            .iter()
            .find(|stored| stored.matches(request))
            .cloned()
    }

    /// The variant that these request fields name, by what the newest response varies on.
    pub fn variant_of(&self, request: &HeaderMap) -> Option<VariantKey> {
        let variants = self.variants.load();
        variants
            .first()
            .map(|newest| newest.head.vary.key_for(request))
    }

    pub fn variants(&self) -> Vec<Arc<Stored>> {
        self.variants.load().to_vec()
    }

    pub fn is_empty(&self) -> bool {
        self.variants.load().is_empty()
    }
}

pub struct Residency {
    store: Store,
    resources: papaya::HashMap<[u8; 32], Arc<Resource>, DigestHashing>,
    /// The key of each body that the store may give up by itself.
    owners: papaya::HashMap<u64, CacheKey>,
    purges: Purges,
    changes: Mutex<Ledger>,
    /// Told when something was taken out that nothing has replaced.
    lost: Notify,
    /// Whether something was purged since the last sweep began.
    unswept: AtomicBool,
    /// Held by who sweeps.
    sweeping: Mutex<()>,
    /// Keys whose last answer could not be shared, until when (seconds of the node's clock).
    unshareable: quick_cache::sync::Cache<[u8; 32], u64>,
    /// When a key was last invalidated here: what another node has of it may be older.
    invalidated: quick_cache::sync::Cache<[u8; 32], Stamp>,
    /// What the manifest lists, by [`listed_name`]: 8 bytes for each, and two names that are one cost nothing but
    /// their order of going. Held while what is stored is marked by it, so that the last change is the one that stays.
    listed: Mutex<HashSet<u64>>,
}

/// A variant of a resource among those that are listed.
fn listed_name(key: &CacheKey, variant: i64) -> u64 {
    let first = key.hash().first_chunk().copied();
    first.map_or(0, u64::from_le_bytes) ^ variant.cast_unsigned()
}

fn name_of(stored: &Stored) -> u64 {
    let variant = head::variant_number(&stored.head.vary, &stored.head.variant);
    listed_name(&stored.key, variant)
}

impl Residency {
    pub fn new(store: Store) -> Residency {
        Residency {
            store,
            resources: papaya::HashMap::with_hasher(DigestHashing::default()),
            owners: papaya::HashMap::new(),
            purges: Purges::default(),
            changes: Mutex::default(),
            lost: Notify::new(),
            unswept: AtomicBool::new(false),
            sweeping: Mutex::new(()),
            unshareable: quick_cache::sync::Cache::new(MAX_UNSHAREABLE),
            invalidated: quick_cache::sync::Cache::new(MAX_INVALIDATED),
            listed: Mutex::default(),
        }
    }

    /// Takes in what the store found on disk, purges first. Rows that cannot be read are dropped: a miss, no
    /// error. Returns the latest stamp of all that was found.
    pub fn recover(&self, purges: &[PurgeRow], recovered: Vec<Recovered>) -> Stamp {
        let mut latest = Stamp::default();
        let mut ledger = self.changes.lock();
        for row in purges {
            latest = latest.max(ledger.recover(&self.purges, row));
        }
        drop(ledger);
        for row in recovered {
            let head = Head::decode(&row.head);
            let key = CacheKey::from_bytes(&row.key);
            let (Some(head), Some(key)) = (head, key) else {
                self.store.remove(&row.object);
                continue;
            };
            let body = Body::new(row.object, head.is_joinable());
            if !body.is_whole_or_arriving() {
                self.store.remove(&body.object);
                continue;
            }
            latest = latest.max(head.asked.validated).max(head.asked.vouched);
            // Nobody asked for it, so no invalidation can have overtaken it.
            let stored = Stored::new(key, head, body);
            if self.place(stored.clone(), None, &Mark::default()) == Insertion::Overtaken {
                self.store.remove(&stored.body.object);
            }
        }
        latest
    }

    /// What these request fields select of a resource: `None` if nothing is stored under the key, and
    /// an inner `None` if only other variants are. Takes no share of the resource itself, whose count
    /// all threads would fight over. What is purged is taken out on the way.
    pub fn select(&self, key: &CacheKey, request: &HeaderMap) -> Option<Option<Arc<Stored>>> {
        loop {
            let found = {
                let resources = self.resources.pin();
                let resource = resources.get(key.hash())?;
                (resource.key == *key).then(|| resource.select(request))?
            };
            match found {
                Some(stored) if self.is_gone(&stored) => self.remove(&stored),
                found => return Some(found),
            }
        }
    }

    /// Whether a hard purge is about it; of a soft one, it takes note.
    #[inline]
    pub fn is_gone(&self, stored: &Stored) -> bool {
        let generation = self.purges.generation();
        generation != stored.seen.load(Ordering::Relaxed) && self.is_found_gone(stored, generation)
    }

    #[cold]
    fn is_found_gone(&self, stored: &Stored, generation: u64) -> bool {
        match self.purges.verdict(&stored.key, &stored.head) {
            // It stays unseen, so that whoever else meets it finds the same.
            Verdict::Gone => return true,
            Verdict::Stale(since) => stored.soften(since),
            Verdict::Keep => {}
        }
        stored.seen.store(generation, Ordering::Relaxed);
        false
    }

    /// How it stands. What may have been purged without our knowing is to be validated.
    #[inline]
    pub fn standing(&self, stored: &Stored) -> Standing {
        match self.is_in_doubt(stored) {
            false => stored.standing(),
            true => Standing::Outdated,
        }
    }

    /// Whether it may have been purged without our knowing: not to be used unless its origin confirms it.
    #[inline]
    pub fn is_in_doubt(&self, stored: &Stored) -> bool {
        self.purges.doubts(stored.head.asked)
    }

    /// What was vouched for before `stamp` is in doubt, until it is trusted.
    pub fn doubt(&self, stamp: Stamp) {
        self.changes.lock().doubt(&self.purges, stamp);
    }

    /// The same for good. Returns what is to be written.
    pub fn doubt_for_good(&self, stamp: Stamp) -> Vec<PurgeRow> {
        self.changes.lock().doubt_for_good(&self.purges, stamp)
    }

    /// All purges are known: nothing is in doubt but what is for good.
    pub fn trust(&self) {
        self.changes.lock().trust(&self.purges);
    }

    /// How far the log of all nodes' purges was taken note of.
    pub fn log_cursor(&self) -> Option<LogCursor> {
        self.changes.lock().cursor()
    }

    /// Up to which stamp this node's own purges in that log were applied.
    pub fn own_applied(&self) -> Stamp {
        self.changes.lock().own_applied()
    }

    /// Takes note that they were up to this stamp. Returns what is to be written, behind their rows.
    pub fn own_applied_to(&self, stamp: Stamp) -> Vec<PurgeRow> {
        self.changes.lock().apply_own(stamp)
    }

    /// Takes note of how far the log was read. Returns what is to be written, behind the rows of its purges.
    pub fn log_read_to(&self, cursor: &LogCursor) -> Vec<PurgeRow> {
        self.changes.lock().read_to(cursor)
    }

    /// Applies a purge. From now on nothing that it is about is found. Returns how many stored responses
    /// that are, `None` where each would have to be looked at, and what is to be written.
    pub fn purge(&self, purge: &Purge) -> (Option<u64>, Vec<PurgeRow>) {
        let matched = purge.selector.key().map(|key| {
            let resource = self.find(&key);
            let variants = resource.map(|resource| resource.variants());
            let variants = variants.unwrap_or_default();
            let kept = variants.iter().filter(|stored| !self.is_gone(stored));
            kept.count() as u64
        });
        let (counted, rows) = self.changes.lock().apply(&self.purges, purge);
        (matched.or(counted), rows)
    }

    /// How many stored responses a prefix is about, as of a stamp: looks at each, so on no data thread.
    pub fn count_prefix(
        &self,
        scheme: Option<Scheme>,
        authority: &str,
        path: &[u8],
        before: Stamp,
    ) -> u64 {
        let resources = self.resources.pin();
        let is_within = |key: &CacheKey| {
            scheme.is_none_or(|scheme| scheme == key.scheme())
                && key.authority() == authority
                && key.target().starts_with(path)
        };
        let within = resources
            .values()
            .filter(|resource| is_within(&resource.key));
        let older = |resource: &Arc<Resource>| {
            let variants = resource.variants.load();
            let older = variants
                .iter()
                .filter(|stored| stored.head.asked.filled < before);
            older.count() as u64
        };
        within.map(older).sum()
    }

    /// There is something to sweep.
    pub fn note_purged(&self) {
        self.unswept.store(true, Ordering::Release);
    }

    /// Takes out what is purged and has not been met, so that its space comes back, and has the index know what was
    /// made stale. Looks at everything that is stored, so on no data thread; if nothing was purged since the last time,
    /// at nothing. Returns how many responses went.
    pub fn sweep(&self) -> u64 {
        let _one = self.sweeping.lock();
        if !self.unswept.swap(false, Ordering::AcqRel) {
            return 0;
        }
        let mut removed = 0;
        let resources = self.resources.pin();
        for (place, resource) in resources.values().enumerate() {
            for stored in resource.variants.load().iter() {
                if self.is_gone(stored) {
                    self.remove(stored);
                    removed += 1;
                } else if stored.standing() != Standing::Good
                    && stored.body.object.is_complete()
                    && !stored.told_stale.swap(true, Ordering::Relaxed)
                {
                    self.persist(stored);
                }
            }
            if place % SWEEP_BATCH == SWEEP_BATCH - 1 {
                std::thread::yield_now();
            }
        }
        removed
    }

    pub fn find(&self, key: &CacheKey) -> Option<Arc<Resource>> {
        let resources = self.resources.pin();
        let resource = resources.get(key.hash())?;
        (resource.key == *key).then(|| resource.clone())
    }

    /// Makes a response findable, in place of the one of its variant, unless the key was invalidated
    /// since it was asked for, or it was purged. The same if the response `before`, whose bytes it
    /// continues, was purged: its tags may have been others.
    pub fn insert(&self, stored: Arc<Stored>, before: Option<&Stored>, mark: &Mark) -> Insertion {
        if !mark.is_overtaken() && stored.body.joinable && stored.body.object.length().is_some() {
            self.persist(&stored);
        }
        let inserted = self.place(stored.clone(), before, mark);
        // Overtaken, or evicted before it was to be found here; under another head its bytes may be.
        if inserted == Insertion::Overtaken || stored.body.object.is_gone() {
            self.remove(&stored);
        }
        inserted
    }

    /// Gives a stored response an index row, so that it is found after a restart.
    pub fn persist(&self, stored: &Stored) {
        let head = stored.head.encode();
        let mut facts = stored.head.facts(clock::now());
        match stored.standing() {
            Standing::Good => {}
            Standing::StaleSince(since) => {
                let since = since.duration_since(SystemTime::UNIX_EPOCH);
                facts.stale_at = facts.stale_at.min(since.map_or(0, |since| since.as_secs()));
            }
            Standing::Outdated => facts.stale_at = 0,
        }
        self.store
            .publish(&stored.body.object, stored.key.as_bytes(), head, facts);
    }

    fn place(&self, stored: Arc<Stored>, before: Option<&Stored>, mark: &Mark) -> Insertion {
        let mut ledger = self.changes.lock();
        // Under the lock: an invalidation sets the mark first and takes what is here under it, and a purge
        // is applied under it.
        if mark.is_overtaken()
            || self.is_gone(&stored)
            || before.is_some_and(|before| self.is_gone(before))
        {
            return Insertion::Overtaken;
        }
        if let Some(before) = before {
            let since = before.outdated.load(Ordering::Acquire);
            if since > stored.head.asked.validated.0 {
                stored.soften(Stamp(since));
            }
        }
        let body = stored.body.object.id().0;
        self.owners.pin().insert(body, stored.key.clone());
        let resources = self.resources.pin();
        let resource = match resources.get(stored.key.hash()) {
            Some(resource) if resource.key == stored.key => resource.clone(),
            // Another key with this hash: the newer one takes its place.
            other => {
                if let Some(other) = other {
                    let displaced = other.variants();
                    note_dropped(&mut ledger, &displaced);
                    self.discard(&displaced);
                }
                let resource = Arc::new(Resource {
                    key: stored.key.clone(),
                    variants: ArcSwap::default(),
                });
                resources.insert(*stored.key.hash(), resource.clone());
                resource
            }
        };
        ledger.stored(&stored.key, &stored.head);
        let mut variants = vec![stored.clone()];
        let mut dropped = Vec::new();
        for old in resource.variants.load().iter() {
            if Arc::ptr_eq(&old.body, &stored.body) {
                ledger.dropped(&old.key, &old.head);
                continue;
            }
            let replaced = old.head.same_variant(&stored.head) || !old.is_usable();
            if replaced || variants.len() >= MAX_VARIANTS {
                dropped.push(old.clone());
            } else {
                variants.push(old.clone());
            }
        }
        resource.variants.store(Arc::new(variants));
        note_dropped(&mut ledger, &dropped);
        self.discard(&dropped);
        // Found by now: whoever lists it from here on marks it.
        let listed = self.listed.lock();
        let is_listed = !listed.is_empty() && listed.contains(&name_of(&stored));
        self.store.spare(&stored.body.object, is_listed);
        Insertion::Done
    }

    /// Takes note of what the manifest lists: the store gives it up last. Waits for those who store something, so not
    /// on a data thread.
    pub fn listed(&self, listing: Listing) {
        match listing {
            Listing::Anew => self.listed.lock().clear(),
            Listing::Changed(changed) => changed.into_iter().for_each(|named| self.list(named)),
            Listing::Whole => self.spare_all(),
        }
    }

    fn list(&self, named: Named) {
        let Some(key) = CacheKey::from_bytes(&named.cache_key) else {
            return;
        };
        let name = listed_name(&key, named.variant);
        let mut listed = self.listed.lock();
        let has_changed = match named.is_listed {
            true => listed.insert(name),
            false => listed.remove(&name),
        };
        if let (true, Some(resource)) = (has_changed, self.find(&key)) {
            let variants = resource.variants.load();
            let meant = variants.iter().find(|stored| name_of(stored) == name);
            if let Some(stored) = meant {
                self.store.spare(&stored.body.object, named.is_listed);
            }
        }
    }

    /// Marks all that is stored anew, the least recently used first.
    fn spare_all(&self) {
        let mut all = Vec::new();
        self.for_each(|stored| all.push((stored.body.object.last_use(), stored.clone())));
        all.sort_by_key(|(last_use, _)| *last_use);
        for (_, stored) in all {
            let listed = self.listed.lock();
            let is_listed = listed.contains(&name_of(&stored));
            self.store.spare(&stored.body.object, is_listed);
        }
    }

    /// Completes when something was taken out since the last call ended. For one who waits.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// The store has lost blocks.
    pub fn damaged(&self) {
        self.lost.notify_one();
    }

    fn discard(&self, dropped: &[Arc<Stored>]) {
        for stored in dropped {
            self.owners.pin().remove(&stored.body.object.id().0);
            self.store.remove(&stored.body.object);
        }
    }

    /// Removes one stored response, whichever head it has by now.
    pub fn remove(&self, stored: &Stored) {
        self.owners.pin().remove(&stored.body.object.id().0);
        self.store.remove(&stored.body.object);
        self.drop_variants(&stored.key, |other| Arc::ptr_eq(&other.body, &stored.body));
        self.lost.notify_one();
    }

    /// The store gave an object up to make room.
    pub fn evicted(&self, object: &Arc<Object>) {
        let key = self.owners.pin().remove(&object.id().0).cloned();
        if let Some(key) = key {
            self.drop_variants(&key, |stored| Arc::ptr_eq(&stored.body.object, object));
            self.lost.notify_one();
        }
    }

    /// Removes every variant of a resource. Returns how many there were.
    pub fn invalidate(&self, key: &CacheKey) -> usize {
        let dropped = self.drop_variants(key, |_| true);
        self.discard(&dropped);
        if !dropped.is_empty() {
            self.lost.notify_one();
        }
        dropped.len()
    }

    /// Takes variants out of their resource, and gives them back.
    fn drop_variants(&self, key: &CacheKey, gone: impl Fn(&Stored) -> bool) -> Vec<Arc<Stored>> {
        let mut ledger = self.changes.lock();
        let resources = self.resources.pin();
        let Some(resource) = resources.get(key.hash()) else {
            return Vec::new();
        };
        if resource.key != *key {
            return Vec::new();
        }
        let (dropped, variants): (Vec<_>, Vec<_>) = resource
            .variants()
            .into_iter()
            .partition(|stored| gone(stored));
        if variants.is_empty() {
            resources.remove(key.hash());
        }
        resource.variants.store(Arc::new(variants));
        note_dropped(&mut ledger, &dropped);
        dropped
    }

    /// Shows each stored response that is not purged, in no order. What comes or goes meanwhile may be shown or not. Takes as
    /// long as there are many: not for a data thread.
    pub fn for_each(&self, mut see: impl FnMut(&Arc<Stored>)) {
        for resource in self.resources.pin().values() {
            for stored in resource.variants.load().iter() {
                if !self.is_gone(stored) {
                    see(stored);
                }
            }
        }
    }

    /// Remembers that what was asked for before `at` is not what this key stands for any more.
    pub fn note_invalidated(&self, key: &CacheKey, at: Stamp) {
        self.invalidated.insert(*key.hash(), at);
    }

    /// Whether neither a purge, hard or soft, nor an invalidation here is about a response with this head, which
    /// another node has asked for.
    pub fn is_untouched(&self, key: &CacheKey, head: &Head) -> bool {
        let invalidated = self.invalidated.get(key.hash());
        invalidated.is_none_or(|at| at < head.asked.filled)
            && self.purges.verdict(key, head) == Verdict::Keep
    }

    /// Remembers that requests for this key should not wait for one another until `until_secs`.
    pub fn mark_unshareable(&self, key: &CacheKey, until_secs: u64) {
        self.unshareable.insert(*key.hash(), until_secs);
    }

    pub fn clear_unshareable(&self, key: &CacheKey) {
        self.unshareable.remove(key.hash());
    }

    pub fn is_unshareable(&self, key: &CacheKey, now_secs: u64) -> bool {
        self.unshareable
            .get(key.hash())
            .is_some_and(|until| now_secs < until)
    }
}

fn note_dropped(ledger: &mut Ledger, dropped: &[Arc<Stored>]) {
    for stored in dropped {
        ledger.dropped(&stored.key, &stored.head);
    }
}
