//! Purges: what an operator, or an origin for its own, has declared gone or stale.
//!
//! ```text
//! Purge { selector, soft, stamp } ─► one entry for its selector: the stamps of its last hard and soft one
//!
//! stored response ── its URL, host, prefixes, tags ──► the entries that name it
//!     bytes asked for before a hard stamp ─► Gone       fields asked for before a soft one ─► Stale
//! ```
//!
//! Kept true here:
//! - Nothing is looked for when a purge is applied. Each stored response is held against the entries when
//!   it is next used, and once for each generation: until another purge, that is one comparison.
//! - What counts is when the origin was asked, not when its answer came: a purge catches what is on its way.
//! - A purge that is not remembered any more still holds: the floor is as high as its stamp.
//! - What may have been purged elsewhere without word of it is in doubt, and validated before it is used.
//! - Selectors are compared whole, never by a hash alone.
//!
//! It knows neither the store nor who may purge.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::cache::head::{Asked, Head};
use crate::clock::Stamp;
use crate::semantics::key::{CacheKey, Scheme};
use crate::store::PurgeRow;
use crate::telemetry;

/// Stamps that are remembered. Past it the oldest goes, and the floor rises to it: what was asked for
/// before that is purged, whatever it is.
pub const MAX_PURGES: usize = 100_000;

/// The same, of the groups of one origin, which its answers name: a floor of its own keeps it from raising
/// everybody's.
pub const MAX_GROUPS: usize = 1_000;

/// What is purged. Authorities as [`normalize_authority`](crate::semantics::key::normalize_authority)
/// gives them; tags and groups byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Every variant of one resource.
    Url {
        scheme: Scheme,
        authority: Arc<str>,
        target: Bytes,
    },
    /// Every target that begins with these bytes; of both schemes where none is given.
    Prefix {
        scheme: Option<Scheme>,
        authority: Arc<str>,
        path: Bytes,
    },
    /// Both schemes of an authority.
    Host(Arc<str>),
    /// On every host: what bears it in `Surrogate-Key`, `Cache-Tag` or `Cache-Groups`.
    Tag(Bytes),
    /// What bears it in `Cache-Groups`, on one origin (RFC 9875 §2).
    Group {
        scheme: Scheme,
        authority: Arc<str>,
        group: Bytes,
    },
    Everything,
}

impl Selector {
    /// As the metrics call it.
    pub fn label(&self) -> telemetry::PurgeSelector {
        match self {
            Selector::Url { .. } => telemetry::PurgeSelector::Url,
            Selector::Prefix { .. } => telemetry::PurgeSelector::Prefix,
            Selector::Host(_) => telemetry::PurgeSelector::Host,
            Selector::Tag(_) => telemetry::PurgeSelector::Tag,
            Selector::Group { .. } => telemetry::PurgeSelector::Group,
            Selector::Everything => telemetry::PurgeSelector::Everything,
        }
    }

    /// The key of the one resource that it is about.
    pub fn key(&self) -> Option<CacheKey> {
        match self {
            Selector::Url {
                scheme,
                authority,
                target,
            } => Some(CacheKey::new(*scheme, authority, target)),
            _ => None,
        }
    }

    fn name(&self) -> Name {
        match self {
            Selector::Url {
                scheme,
                authority,
                target,
            } => url_name(&CacheKey::new(*scheme, authority, target)),
            Selector::Prefix {
                scheme,
                authority,
                path,
            } => prefix_name(
                scheme.map_or(ANY_SCHEME, |scheme| scheme as u8),
                authority,
                path,
            ),
            Selector::Host(authority) => name(Kind::Host, &[authority.as_bytes()]),
            Selector::Tag(tag) => name(Kind::Tag, &[tag]),
            Selector::Group {
                scheme,
                authority,
                group,
            } => group_name(*scheme, authority, group),
            Selector::Everything => name(Kind::Floor, &[]),
        }
    }
}

/// A selector that is to be applied.
#[derive(Clone, Debug)]
pub struct Purge {
    pub selector: Selector,
    /// Stale rather than gone.
    pub soft: bool,
    /// Of its application here: it is about what was asked for before.
    pub stamp: Stamp,
}

/// What the purges say of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Purged softly, first at this stamp.
    Stale(Stamp),
    Gone,
}

/// What a purge came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Stored responses that it was about. What another hard purge took and the disk still holds may be
    /// counted again.
    pub matched: u64,
    /// Whether it is on disk: if not, a restart may bring back what it was about.
    pub is_durable: bool,
}

/// What a purge of all nodes came to on one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePurged {
    pub node: String,
    pub matched: u64,
    /// Why it is not done there.
    pub error: Option<String>,
}

/// A selector as bytes: its kind, then its parts.
type Name = Box<[u8]>;

/// The first byte of a name. Written to disk: a number keeps its meaning.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    /// Everything: by order, or because older purges are not remembered.
    Floor = 0,
    Host = 1,
    Url = 2,
    Prefix = 3,
    Tag = 4,
    Group = 5,
    /// Everything of one origin whose groups are not all remembered.
    OriginFloor = 6,
    /// No purge: what was vouched for before its stamp is in doubt.
    Doubt = 7,
    /// No purge: how far the log of all nodes' purges was taken note of. Behind it stands whose numbers these are.
    LogCursor = 8,
    /// No purge: up to which stamp this node's own purges in that log were applied.
    OwnLog = 9,
}

/// How far the log of all nodes' purges was taken note of: an arrival, as this log counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogCursor {
    pub log: String,
    pub arrival: u64,
}

/// Stands for both schemes in a prefix's name.
const ANY_SCHEME: u8 = 255;

/// Bytes of a prefix's name before the authority: kind, scheme, length.
const PREFIX_SCHEME_AT: usize = 1;

fn name(kind: Kind, parts: &[&[u8]]) -> Name {
    let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(length);
    bytes.push(kind as u8);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.into()
}

fn url_name(key: &CacheKey) -> Name {
    name(Kind::Url, &[key.as_bytes()])
}

fn prefix_name(scheme: u8, authority: &str, path: &[u8]) -> Name {
    let length = (authority.len() as u32).to_le_bytes();
    name(
        Kind::Prefix,
        &[&[scheme], &length, authority.as_bytes(), path],
    )
}

fn origin_name(kind: Kind, scheme: Scheme, authority: &str, rest: &[u8]) -> Name {
    let length = (authority.len() as u32).to_le_bytes();
    name(
        kind,
        &[&[scheme as u8], &length, authority.as_bytes(), rest],
    )
}

fn group_name(scheme: Scheme, authority: &str, group: &[u8]) -> Name {
    origin_name(Kind::Group, scheme, authority, group)
}

/// The origin's part of a group's name; `None` for another name.
fn origin_of(name: &[u8]) -> Option<&[u8]> {
    let (&kind, origin) = name.split_first()?;
    let length = origin.get(1..5)?.try_into().ok()?;
    let end = 5usize.checked_add(u32::from_le_bytes(length) as usize)?;
    (kind == Kind::Group as u8).then(|| origin.get(..end))?
}

/// The bytes of a prefix's path; `None` for another name.
fn prefix_length(name: &[u8]) -> Option<usize> {
    let length = name.get(2..6)?.try_into().ok()?;
    let base = 6usize.checked_add(u32::from_le_bytes(length) as usize)?;
    (*name.first()? == Kind::Prefix as u8).then(|| name.len().checked_sub(base))?
}

/// The stamps of a selector's last purges; 0 where there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bounds {
    hard: u64,
    soft: u64,
}

/// What is purged, to be read without a lock. Changed only together with a [`Ledger`].
#[derive(Default)]
pub struct Purges {
    /// Grows with every change.
    generation: AtomicU64,
    bounds: papaya::HashMap<Name, Bounds>,
    /// The lengths that prefixes' paths have.
    prefix_lengths: ArcSwap<Vec<usize>>,
    /// What was vouched for before this stamp is in doubt; 0 if nothing is.
    doubt: AtomicU64,
}

impl Purges {
    /// Whether something may have been purged without our knowing since these questions were asked.
    #[inline]
    pub fn doubts(&self, asked: Asked) -> bool {
        asked.vouched.0 < self.doubt.load(Ordering::Relaxed)
    }

    /// A stored response that was held against this generation needs no other look.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What is to be done with a stored response with this head.
    pub fn verdict(&self, key: &CacheKey, head: &Head) -> Verdict {
        let bounds = self.bounds.pin();
        if bounds.is_empty() {
            return Verdict::Keep;
        }
        let mut judged = Judged::default();
        let mut ask = |name: &[u8]| {
            if let Some(found) = bounds.get(name) {
                judged.add(found, head);
            }
        };
        let (scheme, authority) = (key.scheme(), key.authority());
        ask(&[Kind::Floor as u8]);
        ask(&name(Kind::Host, &[authority.as_bytes()]));
        ask(&url_name(key));
        ask(&origin_name(Kind::OriginFloor, scheme, authority, b""));
        for tag in &head.tags.tags {
            ask(&name(Kind::Tag, &[tag]));
        }
        for group in &head.tags.groups {
            ask(&name(Kind::Tag, &[group]));
            ask(&group_name(scheme, authority, group));
        }
        let lengths = self.prefix_lengths.load();
        if !lengths.is_empty() {
            let target = key.target();
            let mut whole = prefix_name(scheme as u8, authority, target);
            let base = whole.len() - target.len();
            for any in [scheme as u8, ANY_SCHEME] {
                whole[PREFIX_SCHEME_AT] = any;
                for length in lengths.iter().take_while(|length| **length <= target.len()) {
                    ask(&whole[..base + length]);
                }
            }
        }
        judged.verdict()
    }
}

#[derive(Default)]
struct Judged {
    gone: bool,
    stale_since: Option<u64>,
}

impl Judged {
    fn add(&mut self, bounds: &Bounds, head: &Head) {
        self.gone |= head.asked.filled.0 < bounds.hard;
        if head.asked.validated.0 < bounds.soft {
            let since = self.stale_since.unwrap_or(u64::MAX);
            self.stale_since = Some(since.min(bounds.soft));
        }
    }

    fn verdict(&self) -> Verdict {
        match self.stale_since {
            _ if self.gone => Verdict::Gone,
            Some(since) => Verdict::Stale(Stamp(since)),
            None => Verdict::Keep,
        }
    }
}

/// What changes [`Purges`], and how many stored responses each selector is about. Held under the lock
/// that changes what is stored.
#[derive(Default)]
pub struct Ledger {
    /// Every stamp that is remembered, oldest first, with the name it stands in.
    by_age: BTreeMap<u64, Name>,
    /// The same for groups, by origin.
    groups: HashMap<Name, BTreeMap<u64, Name>>,
    /// How many remembered prefixes have a path of this length.
    prefixes: BTreeMap<usize, usize>,
    /// Stored responses of each host, tag, group; and of everything.
    counts: HashMap<Name, Count>,
    /// The doubt that lasts, as it is on disk.
    doubt: u64,
    cursor: Option<LogCursor>,
    /// Own purges in the log up to this stamp were applied.
    own: u64,
}

#[derive(Clone, Copy, Default)]
struct Count {
    stored: u64,
    /// Counted out by a hard purge at `since`, and not taken out yet.
    purged: u64,
    since: u64,
}

impl Ledger {
    /// Applies a purge. Returns how many stored responses it is about, where that is known without a
    /// look at each, and the rows to be written.
    pub fn apply(&mut self, purges: &Purges, purge: &Purge) -> (Option<u64>, Vec<PurgeRow>) {
        let matched = self.count(purge);
        let mut rows = Vec::new();
        self.enter(
            purges,
            purge.selector.name(),
            purge.soft,
            purge.stamp,
            &mut rows,
        );
        purges.generation.fetch_add(1, Ordering::Release);
        (matched, rows)
    }

    /// Takes in a row that an earlier process wrote. Returns its latest stamp.
    pub fn recover(&mut self, purges: &Purges, row: &PurgeRow) -> Stamp {
        match row.selector.split_first() {
            Some((&kind, _)) if kind == Kind::Doubt as u8 => {
                self.doubt = self.doubt.max(row.hard);
                purges.doubt.fetch_max(row.hard, Ordering::Relaxed);
                return Stamp(row.hard);
            }
            Some((&kind, _)) if kind == Kind::OwnLog as u8 => {
                self.own = self.own.max(row.hard);
                return Stamp(row.hard);
            }
            Some((&kind, log)) if kind == Kind::LogCursor as u8 => {
                self.cursor = std::str::from_utf8(log).ok().map(|log| LogCursor {
                    log: log.to_owned(),
                    arrival: row.hard,
                });
                return Stamp::default();
            }
            _ => {}
        }
        let mut rows = Vec::new();
        for (soft, stamp) in [(false, row.hard), (true, row.soft)] {
            if stamp > 0 {
                let selector = row.selector.clone();
                self.enter(purges, selector, soft, Stamp(stamp), &mut rows);
            }
        }
        purges.generation.fetch_add(1, Ordering::Release);
        Stamp(row.hard.max(row.soft))
    }

    /// From now on what was vouched for before `stamp` is in doubt, until [`Ledger::trust`].
    pub fn doubt(&mut self, purges: &Purges, stamp: Stamp) {
        purges.doubt.fetch_max(stamp.0, Ordering::Relaxed);
    }

    /// The same for good: also after a restart. Returns what is to be written.
    pub fn doubt_for_good(&mut self, purges: &Purges, stamp: Stamp) -> Vec<PurgeRow> {
        self.doubt(purges, stamp);
        self.doubt = self.doubt.max(stamp.0);
        vec![PurgeRow {
            selector: name(Kind::Doubt, &[]),
            hard: self.doubt,
            soft: 0,
        }]
    }

    /// Nothing is in doubt any more but what is for good.
    pub fn trust(&mut self, purges: &Purges) {
        purges.doubt.store(self.doubt, Ordering::Relaxed);
    }

    pub fn cursor(&self) -> Option<LogCursor> {
        self.cursor.clone()
    }

    /// Up to which stamp this node's own purges in the log were applied.
    pub fn own_applied(&self) -> Stamp {
        Stamp(self.own)
    }

    /// Takes note that its own purges up to this stamp were applied. Returns what is to be written, behind their rows.
    pub fn apply_own(&mut self, stamp: Stamp) -> Vec<PurgeRow> {
        self.own = self.own.max(stamp.0);
        vec![PurgeRow {
            selector: name(Kind::OwnLog, &[]),
            hard: self.own,
            soft: 0,
        }]
    }

    /// Takes note of how far the log was read. Returns what is to be written, behind the rows of its purges.
    pub fn read_to(&mut self, cursor: &LogCursor) -> Vec<PurgeRow> {
        let row = |cursor: &LogCursor, mark| PurgeRow {
            selector: name(Kind::LogCursor, &[cursor.log.as_bytes()]),
            hard: cursor.arrival * mark,
            // Without a mark the row goes.
            soft: mark,
        };
        let before = self.cursor.replace(cursor.clone());
        let other = before.filter(|before| before.log != cursor.log);
        let mut rows: Vec<PurgeRow> = other.map(|other| row(&other, 0)).into_iter().collect();
        rows.push(row(cursor, 1));
        rows
    }

    fn count(&mut self, purge: &Purge) -> Option<u64> {
        let name = match &purge.selector {
            Selector::Url { .. } | Selector::Prefix { .. } => return None,
            selector => selector.name(),
        };
        let Some(count) = self.counts.get_mut(&name) else {
            return Some(0);
        };
        let stored = count.stored;
        if !purge.soft {
            count.purged += std::mem::take(&mut count.stored);
            count.since = purge.stamp.0;
        }
        Some(stored)
    }

    fn enter(
        &mut self,
        purges: &Purges,
        name: Name,
        soft: bool,
        stamp: Stamp,
        rows: &mut Vec<PurgeRow>,
    ) {
        let bounds = purges.bounds.pin();
        let before = bounds.get(&name).copied().unwrap_or_default();
        let mut after = before;
        let bound = if soft {
            &mut after.soft
        } else {
            &mut after.hard
        };
        if stamp.0 <= *bound {
            return;
        }
        let replaced = std::mem::replace(bound, stamp.0);
        bounds.insert(name.clone(), after);
        rows.push(row(&name, after));
        if before == Bounds::default() {
            self.note_prefix(purges, &name, true);
        }
        if name.first() == Some(&(Kind::Floor as u8)) {
            // Always there: it is what the others fall back to.
            return;
        }
        self.by_age.remove(&replaced);
        self.by_age.insert(stamp.0, name.clone());
        if let Some(origin) = origin_of(&name) {
            let groups = self.groups.entry(origin.into()).or_default();
            groups.remove(&replaced);
            groups.insert(stamp.0, name.clone());
            if groups.len() > MAX_GROUPS
                && let Some((oldest, _)) = groups.first_key_value()
            {
                let (oldest, mut floor) = (*oldest, vec![Kind::OriginFloor as u8]);
                floor.extend_from_slice(origin);
                self.forget(purges, oldest, floor.into(), rows);
            }
        }
        if self.by_age.len() > MAX_PURGES
            && let Some((oldest, _)) = self.by_age.first_key_value()
        {
            let floor = [Kind::Floor as u8].into();
            self.forget(purges, *oldest, floor, rows);
        }
    }

    /// Drops one stamp, and raises a floor to it: hard or soft, as it was.
    fn forget(&mut self, purges: &Purges, stamp: u64, floor: Name, rows: &mut Vec<PurgeRow>) {
        let Some(name) = self.by_age.remove(&stamp) else {
            return;
        };
        let bounds = purges.bounds.pin();
        let mut left = bounds.get(&name).copied().unwrap_or_default();
        let soft = left.soft == stamp;
        // The floor first: between the two the response would be kept.
        self.enter(purges, floor, soft, Stamp(stamp), rows);
        let bound = if soft { &mut left.soft } else { &mut left.hard };
        *bound = 0;
        rows.push(row(&name, left));
        if left == Bounds::default() {
            bounds.remove(&name);
            self.note_prefix(purges, &name, false);
        } else {
            bounds.insert(name.clone(), left);
        }
        if let Some(origin) = origin_of(&name)
            && let Some(groups) = self.groups.get_mut(origin)
        {
            groups.remove(&stamp);
            if groups.is_empty() {
                self.groups.remove(origin);
            }
        }
    }

    fn note_prefix(&mut self, purges: &Purges, name: &[u8], is_new: bool) {
        let Some(length) = prefix_length(name) else {
            return;
        };
        let names = self.prefixes.entry(length).or_default();
        *names = if is_new {
            *names + 1
        } else {
            names.saturating_sub(1)
        };
        let names = *names;
        if names == 0 {
            self.prefixes.remove(&length);
        }
        if names <= 1 {
            let lengths = self.prefixes.keys().copied().collect();
            purges.prefix_lengths.store(Arc::new(lengths));
        }
    }

    /// Counts a response that is stored from now on.
    pub fn stored(&mut self, key: &CacheKey, head: &Head) {
        each_count(key, head, |name| {
            self.counts.entry(name).or_default().stored += 1;
        });
    }

    /// Counts one that is not any more.
    pub fn dropped(&mut self, key: &CacheKey, head: &Head) {
        each_count(key, head, |name| {
            let Some(count) = self.counts.get_mut(&name) else {
                return;
            };
            if head.asked.filled.0 >= count.since {
                count.stored = count.stored.saturating_sub(1);
            } else {
                count.purged = count.purged.saturating_sub(1);
            }
            if count.stored == 0 && count.purged == 0 {
                self.counts.remove(&name);
            }
        });
    }
}

fn row(name: &Name, bounds: Bounds) -> PurgeRow {
    PurgeRow {
        selector: name.clone(),
        hard: bounds.hard,
        soft: bounds.soft,
    }
}

/// The selectors that a stored response is counted under.
fn each_count(key: &CacheKey, head: &Head, mut count: impl FnMut(Name)) {
    let tags = &head.tags;
    count(name(Kind::Floor, &[]));
    count(name(Kind::Host, &[key.authority().as_bytes()]));
    for tag in &tags.tags {
        count(name(Kind::Tag, &[tag]));
    }
    for group in &tags.groups {
        count(group_name(key.scheme(), key.authority(), group));
        if !tags.tags.contains(group) {
            count(name(Kind::Tag, &[group]));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method, StatusCode};

    use super::*;
    use crate::cache::head::Asked;
    use crate::semantics::freshness::{Rules, storable};
    use crate::semantics::vary::VarySpec;

    fn head(asked: u64, fields: &[(&'static str, &str)]) -> Head {
        let mut headers = HeaderMap::new();
        headers.insert("cache-control", HeaderValue::from_static("max-age=60"));
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        let (request, now) = (HeaderMap::new(), crate::clock::now());
        let (rules, ok) = (Rules::default(), StatusCode::OK);
        let freshness = storable(&Method::GET, &request, ok, &headers, &rules, now, now);
        let vary = VarySpec::from_headers(&headers);
        let variant = vary.key_for(&request);
        let freshness = freshness.expect("a storable answer");
        Head::new(
            ok,
            headers,
            freshness,
            vary,
            variant,
            Asked::at(Stamp(asked)),
        )
    }

    fn purge(selector: Selector, soft: bool, stamp: u64) -> Purge {
        Purge {
            selector,
            soft,
            stamp: Stamp(stamp),
        }
    }

    fn prefix(scheme: Option<Scheme>, path: &'static str) -> Selector {
        Selector::Prefix {
            scheme,
            authority: "a.example".into(),
            path: Bytes::from_static(path.as_bytes()),
        }
    }

    fn url(target: &'static str) -> Selector {
        Selector::Url {
            scheme: Scheme::Http,
            authority: "a.example".into(),
            target: Bytes::from_static(target.as_bytes()),
        }
    }

    fn group(authority: &str, group: &str) -> Selector {
        Selector::Group {
            scheme: Scheme::Http,
            authority: authority.into(),
            group: Bytes::copy_from_slice(group.as_bytes()),
        }
    }

    fn tag(tag: &'static str) -> Selector {
        Selector::Tag(Bytes::from_static(tag.as_bytes()))
    }

    /// One response, `http://a.example/dir/x?q` with the tags t and u and the group g.
    #[test]
    fn what_a_selector_is_about() {
        let key = CacheKey::new(Scheme::Http, "a.example", b"/dir/x?q");
        let fields = [("surrogate-key", "t u"), ("cache-groups", "\"g\"")];
        let https = Some(Scheme::Https);
        for (selector, is_about) in [
            (url("/dir/x?q"), true),
            (url("/dir/x"), false),
            (prefix(None, "/dir/"), true),
            (prefix(Some(Scheme::Http), "/dir/x?"), true),
            (prefix(None, ""), true),
            (prefix(https, "/dir/"), false),
            (prefix(None, "/dir/x?q"), true),
            (prefix(None, "/dir/x?qq"), false),
            (prefix(None, "/Dir/"), false),
            (Selector::Host("a.example".into()), true),
            (Selector::Host("b.a.example".into()), false),
            (tag("t"), true),
            (tag("u"), true),
            (tag("T"), false),
            (tag("tu"), false),
            (tag("g"), true),
            (group("a.example", "g"), true),
            (group("b.example", "g"), false),
            (group("a.example", "t"), false),
            (Selector::Everything, true),
        ] {
            for soft in [false, true] {
                let (purges, mut ledger) = (Purges::default(), Ledger::default());
                let before = purges.generation();
                let _ = ledger.apply(&purges, &purge(selector.clone(), soft, 10));
                assert_ne!(purges.generation(), before);
                let expected = match (is_about, soft) {
                    (false, _) => Verdict::Keep,
                    (true, true) => Verdict::Stale(Stamp(10)),
                    (true, false) => Verdict::Gone,
                };
                let verdict = purges.verdict(&key, &head(9, &fields));
                assert_eq!(verdict, expected, "{selector:?}, soft {soft}");
                let later = purges.verdict(&key, &head(11, &fields));
                assert_eq!(later, Verdict::Keep, "{selector:?}, soft {soft}");
            }
        }
    }

    #[test]
    fn a_validation_outlives_a_soft_purge_and_not_a_hard_one() {
        let key = CacheKey::new(Scheme::Http, "a.example", b"/");
        let (purges, mut ledger) = (Purges::default(), Ledger::default());
        let mut validated = head(5, &[]);
        validated.asked = validated.asked.again(Stamp(20));
        let _ = ledger.apply(&purges, &purge(Selector::Everything, true, 10));
        assert_eq!(purges.verdict(&key, &validated), Verdict::Keep);
        let _ = ledger.apply(&purges, &purge(Selector::Everything, false, 10));
        assert_eq!(purges.verdict(&key, &validated), Verdict::Gone);
    }

    #[test]
    fn what_was_written_is_what_is_read() {
        let (purges, mut ledger) = (Purges::default(), Ledger::default());
        let mut rows = HashMap::new();
        for (place, selector) in [
            url("/a"),
            prefix(None, "/b"),
            tag("t"),
            Selector::Everything,
        ]
        .into_iter()
        .enumerate()
        {
            let order = purge(selector, place % 2 == 1, 10 + place as u64);
            let (_, written) = ledger.apply(&purges, &order);
            rows.extend(written.into_iter().map(|row| (row.selector.clone(), row)));
        }
        let (read, mut other) = (Purges::default(), Ledger::default());
        let latest = rows.values().map(|row| other.recover(&read, row)).max();
        assert_eq!(latest, Some(Stamp(13)));
        for (target, fields, asked) in [
            ("/a", "x", 5),
            ("/b/c", "x", 5),
            ("/c", "t", 5),
            ("/c", "x", 12),
            ("/c", "x", 14),
        ] {
            let key = CacheKey::new(Scheme::Http, "a.example", target.as_bytes());
            let head = head(asked, &[("cache-tag", fields)]);
            assert_eq!(
                read.verdict(&key, &head),
                purges.verdict(&key, &head),
                "{target}"
            );
        }
    }

    #[test]
    fn doubt_ends_with_what_was_validated_since_or_is_trusted() {
        let (purges, mut ledger) = (Purges::default(), Ledger::default());
        let (old, new) = (Asked::at(Stamp(5)), Asked::at(Stamp(5)).again(Stamp(11)));
        assert!(!purges.doubts(old));
        ledger.doubt(&purges, Stamp(10));
        assert!(purges.doubts(old) && !purges.doubts(new));
        ledger.trust(&purges);
        assert!(!purges.doubts(old));
        let rows = ledger.doubt_for_good(&purges, Stamp(8));
        ledger.doubt(&purges, Stamp(20));
        ledger.trust(&purges);
        assert!(purges.doubts(old) && !purges.doubts(new));
        let (read, mut other) = (Purges::default(), Ledger::default());
        assert_eq!(other.recover(&read, &rows[0]), Stamp(8));
        assert!(read.doubts(old) && !read.doubts(new));
    }

    #[test]
    fn the_log_s_cursor_is_read_as_written() {
        let at = |log: &str, arrival| LogCursor {
            log: log.into(),
            arrival,
        };
        let mut ledger = Ledger::default();
        let purges = Purges::default();
        let mut rows: HashMap<Name, PurgeRow> = HashMap::new();
        for cursor in [at("a", 0), at("a", 7), at("b", 0)] {
            for row in ledger.read_to(&cursor) {
                match (row.hard, row.soft) {
                    (0, 0) => drop(rows.remove(&row.selector)),
                    _ => drop(rows.insert(row.selector.clone(), row)),
                }
            }
            assert_eq!(rows.len(), 1);
            let mut other = Ledger::default();
            for row in rows.values() {
                assert_eq!(other.recover(&purges, row), Stamp(0));
            }
            assert_eq!(other.cursor(), Some(cursor));
        }
        assert!(purges.bounds.pin().is_empty());
    }

    #[test]
    fn what_is_forgotten_raises_the_floor() {
        let (purges, mut ledger) = (Purges::default(), Ledger::default());
        for n in 0..MAX_PURGES as u64 + 3 {
            let tag = Selector::Tag(Bytes::from(format!("t{n}")));
            let (_, rows) = ledger.apply(&purges, &purge(tag, n == 1, 10 + n));
            let forgotten = rows.iter().filter(|row| row.hard == 0 && row.soft == 0);
            assert_eq!(forgotten.count(), usize::from(n >= MAX_PURGES as u64));
        }
        assert_eq!(ledger.by_age.len(), MAX_PURGES);
        assert_eq!(purges.bounds.pin().len(), MAX_PURGES + 1);
        let key = CacheKey::new(Scheme::Http, "a.example", b"/");
        for (asked, verdict) in [(9, Verdict::Gone), (11, Verdict::Gone), (12, Verdict::Keep)] {
            assert_eq!(purges.verdict(&key, &head(asked, &[])), verdict, "{asked}");
        }
    }

    #[test]
    fn an_origin_s_many_groups_are_its_own_affair() {
        let (purges, mut ledger) = (Purges::default(), Ledger::default());
        for n in 0..=MAX_GROUPS as u64 {
            let order = purge(group("a.example", &format!("g{n}")), false, 10 + n);
            let _ = ledger.apply(&purges, &order);
        }
        let own = CacheKey::new(Scheme::Http, "a.example", b"/");
        let other = CacheKey::new(Scheme::Http, "b.example", b"/");
        assert_eq!(purges.verdict(&own, &head(9, &[])), Verdict::Gone);
        assert_eq!(purges.verdict(&own, &head(10, &[])), Verdict::Keep);
        assert_eq!(purges.verdict(&other, &head(9, &[])), Verdict::Keep);
        assert_eq!(ledger.by_age.len(), MAX_GROUPS + 1);
    }

    #[test]
    fn stored_responses_are_counted_once() {
        let key = CacheKey::new(Scheme::Http, "a.example", b"/");
        let (purges, mut ledger) = (Purges::default(), Ledger::default());
        let fields = [("surrogate-key", "t"), ("cache-groups", "\"t\", \"g\"")];
        let (first, second) = (head(5, &fields), head(6, &fields));
        ledger.stored(&key, &first);
        ledger.stored(&key, &second);
        let matched = |ledger: &mut Ledger, selector, soft, stamp| {
            ledger.apply(&purges, &purge(selector, soft, stamp)).0
        };
        for selector in [
            tag("t"),
            tag("g"),
            group("a.example", "g"),
            Selector::Host("a.example".into()),
            Selector::Everything,
        ] {
            assert_eq!(matched(&mut ledger, selector, true, 8), Some(2));
        }
        assert_eq!(matched(&mut ledger, tag("x"), false, 9), Some(0));
        assert_eq!(matched(&mut ledger, tag("t"), false, 10), Some(2));
        assert_eq!(matched(&mut ledger, tag("t"), false, 11), Some(0));
        // One that is stored afterwards counts; those that are swept do not count down.
        ledger.stored(&key, &head(12, &fields));
        ledger.dropped(&key, &first);
        ledger.dropped(&key, &second);
        assert_eq!(matched(&mut ledger, tag("t"), true, 13), Some(1));
        assert_eq!(
            matched(&mut ledger, Selector::Everything, true, 14),
            Some(1)
        );
    }
}
