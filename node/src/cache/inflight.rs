//! Exchanges in flight, so that a question that is being asked is not asked again.
//!
//! A flight begins when the first request for a key finds nothing it may use, and ends when the head of
//! the answer has been judged; the body is then joined through the stored response. Kept true here:
//! - Of any number of requests that ask for a key at once, exactly one leads.
//! - A flight always resolves: a leader that goes without a word resolves it as [`Outcome::GoAlone`].
//! - Waiters are woken all at once, and each decides for itself.
//! - What the leader stored is to be found before its flight is gone: nobody falls in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cache::residency::Stored;
use crate::cache::{Failure, StaleReason};

/// What is being asked for: the cache key's hash, and the variant once the resource is known to vary.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FlightKey {
    pub key: [u8; 32],
    pub variant: Option<Box<[u8]>>,
    /// HEAD and GET are not one question.
    pub is_head: bool,
}

/// How a flight ended, for those who waited.
#[derive(Clone)]
pub enum Outcome {
    /// Shareable: whoever it matches reads it, from its first byte, as it arrives.
    Stored(Arc<Stored>),
    /// The stale response it was to replace may be served instead.
    Stale(Arc<Stored>, StaleReason, &'static str),
    /// Private, uncacheable, or cut short: each waiter asks for itself.
    GoAlone,
    Failed(Failure),
}

#[derive(Default)]
pub struct Inflight {
    flights: Mutex<HashMap<FlightKey, Arc<Flight>>>,
}

pub struct Flight {
    outcome: OnceLock<Outcome>,
    resolved: Notify,
}

/// Whether a request leads a flight or waits for one.
pub enum Part {
    Lead(Lead),
    Join(Arc<Flight>),
}

impl Inflight {
    pub fn take_part(self: &Arc<Self>, key: FlightKey) -> Part {
        match self.flights.lock().entry(key) {
            Entry::Occupied(entry) => Part::Join(entry.get().clone()),
            Entry::Vacant(entry) => {
                let flight = Arc::new(Flight {
                    outcome: OnceLock::new(),
                    resolved: Notify::new(),
                });
                let lead = Lead {
                    inflight: self.clone(),
                    key: entry.key().clone(),
                    flight: flight.clone(),
                };
                entry.insert(flight);
                Part::Lead(lead)
            }
        }
    }
}

impl Flight {
    pub async fn outcome(&self) -> Outcome {
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
}

/// The duty to resolve a flight.
pub struct Lead {
    inflight: Arc<Inflight>,
    key: FlightKey,
    flight: Arc<Flight>,
}

impl Lead {
    pub fn resolve(self, outcome: Outcome) {
        // The first word counts; `Drop` only speaks for a leader that said none.
        let _ = self.flight.outcome.set(outcome);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.inflight.flights.lock().remove(&self.key);
        self.flight.outcome.get_or_init(|| Outcome::GoAlone);
        self.flight.resolved.notify_waiters();
    }
}
