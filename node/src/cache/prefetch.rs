//! What answered requests say will be asked for next: told by those who answer, followed by a worker.
//!
//! Kept true here:
//! - Telling waits for nothing, and costs an answer that names nothing next to nothing. What cannot be taken is
//!   dropped, and told anew by a later answer.
//! - Only what a client got, or asked, is told of: neither what other nodes ask for nor what is fetched without a
//!   client leads any further by itself.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;

use crate::cache::residency::Stored;
use crate::semantics::cmcd;
use crate::semantics::key::Scheme;
use crate::semantics::reference::Confinement;

/// Hints that wait for the worker.
pub const MAX_HINTS: usize = 1024;

/// How an origin's answers, and requests for them, are followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Relation types of `Link` that are followed.
    pub links: Vec<Box<str>>,
    /// `nor` of requests (CTA-5004).
    pub cmcd: bool,
    /// `nor` of `CMSD-Static` (CTA-5006).
    pub cmsd: bool,
    pub query: Query,
    /// How many answers are followed, one after the other; at least one.
    pub depth: u8,
    pub confinement: Confinement,
    pub max_in_flight: usize,
    /// Bytes per second; `None`: no limit.
    pub max_rate: Option<u64>,
    /// Of one body, in bytes: a longer one is left to whoever asks for it.
    pub max_size: u64,
    /// In percent of what one kind of field has brought lately: beyond it, the rule is followed one time in eight.
    pub max_waste: u8,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            links: vec!["next".into()],
            cmcd: false,
            cmsd: true,
            query: Query::Skip,
            depth: 1,
            confinement: Confinement {
                either_scheme: true,
                ..Confinement::default()
            },
            max_in_flight: 4,
            max_rate: None,
            max_size: 64 << 20,
            max_waste: 50,
        }
    }
}

/// What a reference's query means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// A reference with one is not followed: asking for it may do something.
    Skip,
    /// It is followed as it was given.
    Keep,
    /// A reference without one gets that of the request: a signature that is good for a whole folder.
    Copy,
}

/// What has named something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    Link,
    Cmcd,
    Cmsd,
}

impl Source {
    pub const ALL: [Source; 3] = [Source::Link, Source::Cmcd, Source::Cmsd];

    pub fn name(self) -> &'static str {
        match self {
            Source::Link => "link",
            Source::Cmcd => "cmcd",
            Source::Cmsd => "cmsd",
        }
    }
}

/// An answered request, as far as it names others.
pub struct Hint {
    pub scheme: Scheme,
    pub authority: Arc<str>,
    pub target: Bytes,
    /// Of the answer: `Link` and `CMSD-Static`.
    pub said: HeaderMap,
    /// Of the request: CMCD's, if they are followed. Those in the query stand in the target.
    pub asked: HeaderMap,
    /// Of the request: what the answer's variant was selected by, never a user's own.
    pub selecting: HeaderMap,
}

const CMSD_STATIC: HeaderName = HeaderName::from_static("cmsd-static");

/// Whether this answer, or its request, names something that the rules follow. Looks only for names of fields.
pub fn names_something(rules: &Rules, asked: &HeaderMap, target: &[u8], said: &HeaderMap) -> bool {
    !rules.links.is_empty() && said.contains_key(header::LINK)
        || rules.cmsd && said.contains_key(CMSD_STATIC)
        || rules.cmcd && cmcd::may_name_next(asked, target)
}

/// The fields of an answer that a [`Hint`] carries.
pub fn said(fields: &HeaderMap) -> HeaderMap {
    only(fields, [header::LINK, CMSD_STATIC])
}

/// The fields of a request that a [`Hint`] carries.
pub fn asked(fields: &HeaderMap) -> HeaderMap {
    only(fields, cmcd::FIELDS)
}

fn only(fields: &HeaderMap, names: impl IntoIterator<Item = HeaderName>) -> HeaderMap {
    let mut some = HeaderMap::new();
    for name in names {
        for value in fields.get_all(&name) {
            some.append(name.clone(), value.clone());
        }
    }
    some
}

/// The request fields that selected this variant; `None` where a user's own are among them.
pub fn selecting(stored: &Stored) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    for (name, value) in stored.head.vary.values(&stored.head.variant)? {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        if name == header::COOKIE || name == header::AUTHORIZATION {
            return None;
        }
        fields.append(name, HeaderValue::from_str(&value).ok()?);
    }
    Some(fields)
}

/// Passes hints on to the worker, once there is one.
#[derive(Default)]
pub struct Prefetcher {
    hints: OnceLock<mpsc::Sender<Hint>>,
    /// By [`Source`].
    totals: [Arc<Tally>; Source::ALL.len()],
}

impl Prefetcher {
    /// Where hints come out. Given out once.
    pub fn listen(&self) -> mpsc::Receiver<Hint> {
        let (sender, hints) = mpsc::channel(MAX_HINTS);
        // A second listener hears nothing.
        let _ = self.hints.set(sender);
        hints
    }

    /// Makes a hint, if there is room for it. Says whether there was.
    pub fn tell(&self, hint: impl FnOnce() -> Hint) -> bool {
        let room = self.hints.get().and_then(|hints| hints.try_reserve().ok());
        room.map(|room| room.send(hint())).is_some()
    }

    /// What became of all that this source has named.
    pub fn total(&self, source: Source) -> &Arc<Tally> {
        &self.totals[source as usize]
    }
}

/// What became of all that one rule has brought.
#[derive(Debug, Default)]
pub struct Tally {
    used: AtomicU64,
    /// Gone before anybody asked for it.
    wasted: AtomicU64,
    /// Counts the same, and others'.
    total: Option<Arc<Tally>>,
}

impl Tally {
    pub fn within(total: Arc<Tally>) -> Arc<Tally> {
        Arc::new(Tally {
            total: Some(total),
            ..Tally::default()
        })
    }

    /// Gives less weight to what was long ago: both are halved once they are more than `window` together.
    pub fn fade(&self, window: u64) {
        let (used, wasted) = (self.used(), self.wasted());
        if used + wasted > window {
            self.used.fetch_sub(used / 2, Ordering::Relaxed);
            self.wasted.fetch_sub(wasted / 2, Ordering::Relaxed);
        }
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn wasted(&self) -> u64 {
        self.wasted.load(Ordering::Relaxed)
    }

    fn add(&self, count: impl Fn(&Tally) -> &AtomicU64) {
        count(self).fetch_add(1, Ordering::Relaxed);
        if let Some(total) = &self.total {
            count(total).fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether a body was prefetched, and whether a client has had of it.
#[derive(Debug, Default)]
pub struct Use {
    state: AtomicU8,
    tally: OnceLock<Arc<Tally>>,
    /// The second, by the wall clock, in which its links were told of last.
    told: AtomicU32,
}

const USED: u8 = 1;
const PREFETCHED: u8 = 2;

impl Use {
    /// A client has got of it.
    #[inline]
    pub fn note(&self) {
        // Once noted it is only read, so that threads do not fight for it.
        if self.state.load(Ordering::Relaxed) & USED == 0 {
            self.count(USED, PREFETCHED);
        }
    }

    /// It was brought without a client, by a rule of which this is the tally.
    pub fn was_prefetched(&self, tally: Arc<Tally>) {
        // The first rule has it.
        let _ = self.tally.set(tally);
        self.count(PREFETCHED, USED);
    }

    /// Whoever comes second counts.
    #[cold]
    fn count(&self, is: u8, was: u8) {
        if self.state.fetch_or(is, Ordering::AcqRel) == was
            && let Some(tally) = self.tally.get()
        {
            tally.add(|tally| &tally.used);
        }
    }

    /// Whether its links are to be told of: once a second, however many ask for it.
    pub fn is_due(&self, second: u64) -> bool {
        let second = second as u32;
        self.told.load(Ordering::Relaxed) != second
            && self.told.swap(second, Ordering::Relaxed) != second
    }

    /// They could not be told of.
    pub fn is_due_again(&self) {
        self.told.store(0, Ordering::Relaxed);
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if *self.state.get_mut() == PREFETCHED
            && let Some(tally) = self.tally.get()
        {
            tally.add(|tally| &tally.wasted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_counts_once_whatever_comes_first() {
        let total = Arc::new(Tally::default());
        let tally = Tally::within(total.clone());
        let counts = || {
            assert_eq!(
                (tally.used(), tally.wasted()),
                (total.used(), total.wasted())
            );
            (tally.used(), tally.wasted())
        };
        let before = Use::default();
        before.note();
        before.was_prefetched(tally.clone());
        before.note();
        before.was_prefetched(tally.clone());
        drop(before);
        assert_eq!(counts(), (1, 0));
        let after = Use::default();
        after.was_prefetched(tally.clone());
        after.note();
        after.note();
        drop(after);
        assert_eq!(counts(), (2, 0));
        let never = Use::default();
        never.was_prefetched(tally.clone());
        drop(never);
        assert_eq!(counts(), (2, 1));
        // What a client brought itself was not prefetched.
        let own = Use::default();
        own.note();
        drop(own);
        assert_eq!(counts(), (2, 1));
    }
}
