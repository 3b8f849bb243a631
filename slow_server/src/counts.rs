//! Counters by path, and the event that something was counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use http::Method;
use tokio::sync::watch;

use crate::gate::WAIT_LIMIT;
use crate::origin::lock;
use crate::request::Request;

/// What was asked for and sent. Of one path, or of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub get: u64,
    pub head: u64,
    pub post: u64,
    /// Of any other method.
    pub other: u64,
    /// With `If-None-Match` or another condition.
    pub conditional: u64,
    /// With `Range`.
    pub range: u64,
    /// Bytes of body sent (given to the kernel), framing left out.
    pub bytes: u64,
    /// Bytes of body received.
    pub uploaded: u64,
    /// Answered 304.
    pub not_modified: u64,
    /// Answered 206.
    pub partial: u64,
    /// Answers sent to their end.
    pub finished: u64,
    /// Answers that the client did not wait for.
    pub abandoned: u64,
}

/// The counters of one path.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Numbers the requests of a path.
    begun: AtomicU64,
    requests: AtomicU64,
    get: AtomicU64,
    head: AtomicU64,
    post: AtomicU64,
    other: AtomicU64,
    conditional: AtomicU64,
    range: AtomicU64,
    bytes: AtomicU64,
    uploaded: AtomicU64,
    not_modified: AtomicU64,
    partial: AtomicU64,
    finished: AtomicU64,
    abandoned: AtomicU64,
}

/// All counters. Paths beyond [`MAX_PATHS`] are counted in the total alone.
#[derive(Debug)]
pub(crate) struct Board {
    total: Arc<Tally>,
    paths: Mutex<HashMap<String, Arc<Tally>>>,
    changed: watch::Sender<()>,
}

const MAX_PATHS: usize = 1_000_000;

/// The counters that one exchange counts in.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    total: Arc<Tally>,
    path: Arc<Tally>,
    target: Option<Arc<Tally>>,
    changed: watch::Sender<()>,
    nth: u64,
}

impl Tally {
    fn counts(&self) -> Counts {
        Counts {
            requests: self.requests.load(Relaxed),
            get: self.get.load(Relaxed),
            head: self.head.load(Relaxed),
            post: self.post.load(Relaxed),
            other: self.other.load(Relaxed),
            conditional: self.conditional.load(Relaxed),
            range: self.range.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            uploaded: self.uploaded.load(Relaxed),
            not_modified: self.not_modified.load(Relaxed),
            partial: self.partial.load(Relaxed),
            finished: self.finished.load(Relaxed),
            abandoned: self.abandoned.load(Relaxed),
        }
    }
}

impl Board {
    pub(crate) fn new() -> Board {
        Board {
            total: Arc::default(),
            paths: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Counts a request by its path, and by its whole target if it has a query.
    pub(crate) fn request(&self, request: &Request) -> Ledger {
        let path = request.path();
        let target = (path.len() != request.target.len()).then_some(request.target.as_str());
        let (path, target) = {
            let mut paths = lock(&self.paths);
            let path = tally(&mut paths, path);
            (path, target.map(|target| tally(&mut paths, target)))
        };
        let nth = path.begun.fetch_add(1, Relaxed) + 1;
        let (total, changed) = (self.total.clone(), self.changed.clone());
        let ledger = Ledger {
            total,
            path,
            target,
            changed,
            nth,
        };
        ledger.count(|tally| {
            tally.requests.fetch_add(1, Relaxed);
            let method = match request.method {
                Method::GET => &tally.get,
                Method::HEAD => &tally.head,
                Method::POST => &tally.post,
                _ => &tally.other,
            };
            method.fetch_add(1, Relaxed);
            if request.is_conditional() {
                tally.conditional.fetch_add(1, Relaxed);
            }
            if request.headers.contains_key("range") {
                tally.range.fetch_add(1, Relaxed);
            }
        });
        ledger
    }

    /// For what is not to be counted.
    pub(crate) fn uncounted(&self) -> Ledger {
        Ledger {
            total: Arc::default(),
            path: Arc::default(),
            target: None,
            changed: self.changed.clone(),
            nth: 1,
        }
    }

    /// How often `target` was asked for: with a query exactly that target, else all of that path.
    pub(crate) fn requests(&self, target: &str) -> u64 {
        match lock(&self.paths).get(target) {
            Some(tally) => tally.requests.load(Relaxed),
            None => 0,
        }
    }

    pub(crate) fn counts(&self, target: &str) -> Counts {
        lock(&self.paths)
            .get(target)
            .map(|tally| tally.counts())
            .unwrap_or_default()
    }

    pub(crate) fn total(&self) -> Counts {
        self.total.counts()
    }

    /// Starts again from nothing. Exchanges that run go on counting in the old counters of their
    /// path.
    pub(crate) fn reset(&self) {
        lock(&self.paths).clear();
        for counter in [
            &self.total.requests,
            &self.total.get,
            &self.total.head,
            &self.total.post,
            &self.total.other,
            &self.total.conditional,
            &self.total.range,
            &self.total.bytes,
            &self.total.uploaded,
            &self.total.not_modified,
            &self.total.partial,
            &self.total.finished,
            &self.total.abandoned,
        ] {
            counter.store(0, Relaxed);
        }
    }

    /// Returns once `enough` says so of the counters of `target`; they are looked at after each
    /// change.
    pub(crate) async fn wait(&self, target: &str, wanted: &str, enough: impl Fn(&Counts) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !enough(&self.counts(target)) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(WAIT_LIMIT, wait).await.is_err() {
            panic!(
                "waited {WAIT_LIMIT:?} for {wanted} of {target}: {:?}",
                self.counts(target)
            );
        }
    }
}

fn tally(paths: &mut HashMap<String, Arc<Tally>>, name: &str) -> Arc<Tally> {
    if let Some(tally) = paths.get(name) {
        return tally.clone();
    }
    let tally = Arc::<Tally>::default();
    if paths.len() < MAX_PATHS {
        paths.insert(name.to_owned(), tally.clone());
    }
    tally
}

impl Ledger {
    /// Which request of its path this is, counted from 1.
    pub(crate) fn nth(&self) -> u64 {
        self.nth
    }

    pub(crate) fn status(&self, status: u16) {
        match status {
            206 => self.count(|tally| {
                tally.partial.fetch_add(1, Relaxed);
            }),
            304 => self.count(|tally| {
                tally.not_modified.fetch_add(1, Relaxed);
            }),
            _ => {}
        }
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.count(|tally| {
            tally.bytes.fetch_add(bytes, Relaxed);
        });
    }

    pub(crate) fn uploaded(&self, bytes: u64) {
        self.count(|tally| {
            tally.uploaded.fetch_add(bytes, Relaxed);
        });
    }

    pub(crate) fn ended(&self, finished: bool) {
        self.count(|tally| {
            let counter = if finished {
                &tally.finished
            } else {
                &tally.abandoned
            };
            counter.fetch_add(1, Relaxed);
        });
    }

    fn count(&self, add: impl Fn(&Tally)) {
        add(&self.total);
        add(&self.path);
        if let Some(target) = &self.target {
            add(target);
        }
        self.changed.send_replace(());
    }
}
