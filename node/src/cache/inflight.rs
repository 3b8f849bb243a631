//! Exchanges in flight, so that a question that is being asked is not asked again.
//!
//! A flight begins when the first request for a key finds nothing it may use, and ends when the head of
//! the answer has been judged; the body is then joined through the stored response. Kept true here:
//! - Of any number of requests that ask for a key at once, exactly one leads.
//! - A flight always resolves: a leader that goes without a word resolves it as [`Outcome::GoAlone`].
//! - Waiters are woken all at once, and each decides for itself.
//! - What the leader stored is to be found before its flight is gone: nobody falls in between.
//! - Every question that may end in a stored response holds the mark of its key. An invalidation sets
//!   the mark, and the next question gets a new one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cache::residency::{Mark, Stored};
use crate::cache::{Failure, StaleReason};

/// What is being asked for.
#[derive(Clone)]
pub struct FlightKey {
    /// The cache key's hash.
    pub key: [u8; 32],
    pub kind: Kind,
}

/// What may share an answer under one key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Kind {
    /// The variant, once the resource is known to vary.
    pub variant: Option<Box<[u8]>>,
    /// HEAD and GET are not one question.
    pub is_head: bool,
    /// Who asks, where the answer is known to be asked for each time.
    pub asker: Option<[u8; 32]>,
}

/// How a flight ended, for those who waited.
#[derive(Clone)]
pub enum Outcome {
    /// Shareable: whoever it matches reads it, from its first byte, as it arrives.
    Stored(Arc<Stored>),
    /// Stored, and to be validated before each use: the waiters validate it, each kind for itself.
    ToValidate(Arc<Stored>),
    /// The stale response it was to replace may be served instead.
    Stale(Arc<Stored>, StaleReason, &'static str),
    /// Private, uncacheable, or cut short: each waiter asks for itself.
    GoAlone,
    /// The key was invalidated meanwhile: it is a new question.
    Overtaken,
    Failed(Failure),
}

#[derive(Default)]
pub struct Inflight {
    /// By cache key; there are no more than there are questions under way.
    keys: Mutex<HashMap<[u8; 32], Asked>>,
}

/// What is being asked under one key since it was last invalidated.
#[derive(Default)]
struct Asked {
    mark: Arc<Mark>,
    /// Leads that live, with a flight or without.
    leads: usize,
    flights: HashMap<Kind, Arc<Flight>>,
}

pub struct Flight {
    outcome: OnceLock<Outcome>,
    resolved: Notify,
    /// Those who wait for the outcome, the leader's own client aside.
    waiting: AtomicUsize,
    /// Somebody has begun to wait, or has gone.
    waiters_changed: Notify,
}

/// One who waits, as long as it lives.
struct Waiter<'a>(&'a Flight);

impl<'a> Waiter<'a> {
    fn new(flight: &'a Flight) -> Waiter<'a> {
        flight.waiting.fetch_add(1, Ordering::Relaxed);
        flight.waiters_changed.notify_one();
        Waiter(flight)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.waiters_changed.notify_one();
    }
}

/// Whether a request leads a flight or waits for one.
pub enum Part {
    Lead(Lead),
    Join(Arc<Flight>),
}

impl Inflight {
    pub fn take_part(self: &Arc<Self>, key: FlightKey) -> Part {
        let mut keys = self.keys.lock();
        let asked = keys.entry(key.key).or_default();
        match asked.flights.entry(key.kind.clone()) {
            Entry::Occupied(entry) => Part::Join(entry.get().clone()),
            Entry::Vacant(entry) => {
                let flight = Arc::new(Flight {
                    outcome: OnceLock::new(),
                    resolved: Notify::new(),
                    waiting: AtomicUsize::new(0),
                    waiters_changed: Notify::new(),
                });
                entry.insert(flight.clone());
                asked.leads += 1;
                Part::Lead(Lead {
                    inflight: self.clone(),
                    key: key.key,
                    mark: asked.mark.clone(),
                    flight: Some((key.kind, flight)),
                })
            }
        }
    }

    /// To ask without anybody joining.
    pub fn alone(self: &Arc<Self>, key: [u8; 32]) -> Lead {
        let mut keys = self.keys.lock();
        let asked = keys.entry(key).or_default();
        asked.leads += 1;
        Lead {
            inflight: self.clone(),
            key,
            mark: asked.mark.clone(),
            flight: None,
        }
    }

    /// The key is invalidated: what is under way answers those who wait for it already, and nobody
    /// joins it any more.
    pub fn overtake(&self, key: &[u8; 32]) {
        if let Some(asked) = self.keys.lock().remove(key) {
            asked.mark.overtake();
        }
    }
}

impl Flight {
    pub async fn outcome(&self) -> Outcome {
        let _waiter = Waiter::new(self);
        loop {
            let resolved = self.resolved.notified();
            tokio::pin!(resolved);
            resolved.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            resolved.await;
        }
    }

    /// Completes once nobody has waited for `linger`.
    async fn abandoned(&self, linger: Duration) {
        loop {
            // A change that was not waited for is kept: at the worst, the time starts anew.
            let changed = self.waiters_changed.notified();
            if self.waiting.load(Ordering::Relaxed) > 0 {
                changed.await;
            } else if tokio::time::timeout(linger, changed).await.is_err() {
                return;
            }
        }
    }
}

/// The duty to resolve a flight; or, without one, a question that is known to be under way.
pub struct Lead {
    inflight: Arc<Inflight>,
    key: [u8; 32],
    mark: Arc<Mark>,
    flight: Option<(Kind, Arc<Flight>)>,
}

impl Lead {
    /// Whether all who wait ask as the leader does, so that even an answer that is to be validated
    /// before each use may be shared.
    pub fn is_for_one_asker(&self) -> bool {
        let kind = self.flight.as_ref().map(|(kind, _)| kind);
        kind.is_some_and(|kind| kind.asker.is_some())
    }

    /// Whether the key was invalidated since this lead was taken.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Completes once nobody has waited for the answer for `linger`, the leader's own client aside.
    pub async fn abandoned(&self, linger: Duration) {
        match &self.flight {
            Some((_, flight)) => flight.abandoned(linger).await,
            None => tokio::time::sleep(linger).await,
        }
    }

    pub fn resolve(self, outcome: Outcome) {
        // The first word counts; `Drop` only speaks for a leader that said none.
        if let Some((_, flight)) = &self.flight {
            let _ = flight.outcome.set(outcome);
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut keys = self.inflight.keys.lock();
        // After an invalidation the key's entry is another one, or gone.
        if let Entry::Occupied(mut entry) = keys.entry(self.key)
            && Arc::ptr_eq(&entry.get().mark, &self.mark)
        {
            let asked = entry.get_mut();
            if let Some((kind, _)) = &self.flight {
                asked.flights.remove(kind);
            }
            asked.leads -= 1;
            if asked.leads == 0 {
                entry.remove();
            }
        }
        drop(keys);
        if let Some((_, flight)) = &self.flight {
            flight.outcome.get_or_init(|| Outcome::GoAlone);
            flight.resolved.notify_waiters();
        }
    }
}
