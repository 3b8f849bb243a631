//! Fetching what no client has asked for, to its last byte.
//!
//! ```text
//!  hold ─► whole here? ─────────────────────────────────────────────► Whole
//!       ─► partly, or arriving ─► missing runs, one after the other ─► Whole, or a Shortfall
//!       ─► not at all ─► join the flight, or lead one ─► its fill ──► Whole, or a Shortfall
//! ```
//!
//! Kept true here:
//! - It collapses with all other fills, in both directions: a client that comes meanwhile joins, and the origin is
//!   not asked for what is arriving already.
//! - Nothing but a body that is whole in the store is a success.
//! - A failure is told as it is, and nothing is tried again here: who asks counts.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::body::{Body, BodyError, Bringer};
use crate::cache::fill::{self, Exchange, Led};
use crate::cache::inflight::{Outcome, Part};
use crate::cache::residency::Stored;
use crate::cache::{
    Answer, Failure, Forward, Joined, LocalCache, Lookup, Passed, Request, UpstreamFields,
};
use crate::clock;
use crate::origin::Frame;
use crate::semantics::freshness::Decision;

/// How often one call begins anew because the representation has changed on the way.
const MAX_ATTEMPTS: usize = 3;

/// Fills in a row that may end well without bringing the byte that is waited for.
const MAX_IN_VAIN: u8 = 3;

/// The body of an answer that is of no use is read up to this, so that its connection can be used again.
const MAX_DRAINED: u64 = 64 << 10;

/// Bytes that may be spent at once after a rest: this much time's worth.
const BURST: Duration = Duration::from_millis(100);

/// What of what is here already will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffices {
    /// Stale or not.
    Any,
    /// What a client could be given without asking the origin.
    Fresh,
}

/// A body that is whole in the store.
pub struct Whole {
    pub stored: Arc<Stored>,
    /// Bytes that were not here before.
    pub brought: u64,
    /// Somebody else had asked for it, or it was here already.
    pub is_joined: bool,
}

/// Why a body is not whole in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortfall {
    /// The origin's answer was of no use, and this was its status.
    Status(u16),
    /// No connection, or one that ended before an answer began.
    Connect,
    Tls,
    Dns,
    Timeout,
    Truncated,
    /// Not to be understood, or not an answer to what was asked.
    Protocol,
    /// Answered well, and not to be stored.
    Uncacheable,
    /// Nobody's fault: too much was going on, or it was purged or evicted on the way.
    Again,
}

impl Shortfall {
    pub fn of_failure(failure: Failure) -> Shortfall {
        // The details that `OriginError` and `Fetcher` give.
        match failure.detail() {
            "connection_refused" | "destination_unavailable" | "connection_terminated" => {
                Shortfall::Connect
            }
            "dns_error" => Shortfall::Dns,
            "tls_protocol_error" => Shortfall::Tls,
            "connection_timeout"
            | "connection_write_timeout"
            | "http_response_timeout"
            | "connection_read_timeout" => Shortfall::Timeout,
            "http_response_incomplete" => Shortfall::Truncated,
            "connection_limit_reached" | "abandoned" | "exchange-ended" => Shortfall::Again,
            _ => Shortfall::Protocol,
        }
    }

    fn of_body(error: BodyError) -> Shortfall {
        match error {
            BodyError::Truncated => Shortfall::Truncated,
            BodyError::Timeout => Shortfall::Timeout,
            BodyError::Overlong | BodyError::Protocol => Shortfall::Protocol,
            BodyError::Unreachable => Shortfall::Connect,
            BodyError::Changed | BodyError::Abandoned | BodyError::Missing => Shortfall::Again,
        }
    }
}

/// How fast fills without a client may go, together: those of one thread.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Cell<Option<u64>>,
    /// Of one body, beyond which a fill without a client ends.
    max_body: Cell<Option<u64>>,
    /// Until then what was received is paid for.
    paid_until: Cell<Instant>,
    changed: Notify,
    /// Fills in flight.
    fills: Cell<usize>,
}

/// A fill in flight at some pace, as long as it lives.
pub struct Paced<'a>(&'a Pace);

impl Drop for Paced<'_> {
    fn drop(&mut self) {
        self.0.fills.set(self.0.fills.get() - 1);
    }
}

impl Pace {
    /// `None`: as fast as may be.
    pub fn new(bytes_per_second: Option<u64>) -> Rc<Pace> {
        Pace::bounded(bytes_per_second, None)
    }

    /// The same for bodies of `max_body` bytes at the most, if there is a bound.
    pub fn bounded(bytes_per_second: Option<u64>, max_body: Option<u64>) -> Rc<Pace> {
        Rc::new(Pace {
            bytes_per_second: Cell::new(bytes_per_second),
            max_body: Cell::new(max_body),
            paid_until: Cell::new(Instant::now()),
            changed: Notify::new(),
            fills: Cell::new(0),
        })
    }

    /// Whether a body of so many bytes is more than what is fetched without a client.
    pub fn is_too_long(&self, bytes: u64) -> bool {
        self.max_body.get().is_some_and(|max| bytes > max)
    }

    /// How many fills go at this pace now.
    pub fn fills(&self) -> usize {
        self.fills.get()
    }

    /// Counts one.
    pub fn begin(&self) -> Paced<'_> {
        self.fills.set(self.fills.get() + 1);
        Paced(self)
    }

    pub fn set(&self, bytes_per_second: Option<u64>) {
        if self.bytes_per_second.get() == bytes_per_second {
            return;
        }
        self.bytes_per_second.set(bytes_per_second);
        self.paid_until.set(Instant::now());
        self.changed.notify_waiters();
    }

    pub fn set_max_body(&self, bytes: Option<u64>) {
        self.max_body.set(bytes);
    }

    /// Waits until these bytes, which were received, are within the rate. Dropping the future keeps them counted.
    pub async fn spend(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second.get() else {
            return;
        };
        let now = Instant::now();
        let since = self.paid_until.get().max(now - BURST);
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let until = since + takes;
        self.paid_until.set(until);
        if until > now {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

impl LocalCache {
    /// Has the whole of what these request fields select in the store, by asking for what is missing of it, and, where
    /// that is wanted, whether what is stale may still be used. Dropping
    /// the future lets a fill that has begun go on.
    ///
    /// # Errors
    /// Why it is not whole, after one question to the origin, or several for a body of which parts are missing.
    pub async fn hold(
        &self,
        request: &Request<'_>,
        upstream: &UpstreamFields<'_>,
        pace: &Rc<Pace>,
        suffices: Suffices,
    ) -> Result<Whole, Shortfall> {
        let (mut brought, mut is_joined) = (0, true);
        let is_wanted = |stored: &Stored| {
            suffices == Suffices::Any
                || self.shared.decide(stored, request, clock::now()) == Decision::Fresh
        };
        for _ in 0..MAX_ATTEMPTS {
            let found = self.shared.residency.select(request.key, request.headers);
            let stored = match found.flatten() {
                Some(stored) if is_wanted(&stored) => stored,
                stale => {
                    // What a validation confirms was here before.
                    let before = stale.as_ref().map(|stale| {
                        let object = &stale.body.object;
                        (object.id(), object.present_bytes())
                    });
                    let (stored, is_led) = self.bring(request, stale, upstream, pace).await?;
                    let object = &stored.body.object;
                    let same = before.filter(|(id, _)| *id == object.id());
                    let had = same.map_or(0, |(_, bytes)| bytes);
                    brought += object.present_bytes().saturating_sub(had);
                    is_joined = !is_led || same.is_some();
                    stored
                }
            };
            let before = stored.body.object.present_bytes();
            let completed = self.complete(&stored, request, upstream, pace).await;
            brought += stored.body.object.present_bytes().saturating_sub(before);
            match completed {
                Ok(()) => {
                    return Ok(Whole {
                        stored,
                        brought,
                        is_joined,
                    });
                }
                Err(Incomplete::Changed) => {}
                Err(Incomplete::Short(shortfall)) => return Err(shortfall),
            }
        }
        Err(Shortfall::Again)
    }

    /// Asks for what is not here at all or is stale, or waits for somebody who does, and says which. What is returned may still be arriving.
    async fn bring(
        &self,
        request: &Request<'_>,
        stale: Option<Arc<Stored>>,
        upstream: &UpstreamFields<'_>,
        pace: &Rc<Pace>,
    ) -> Result<(Arc<Stored>, bool), Shortfall> {
        let mut lead = None;
        if self.may_collapse(request) {
            for _ in 0..2 {
                match self
                    .shared
                    .inflight
                    .take_part(self.flight_key(request, stale.as_deref()))
                {
                    Part::Lead(leading) => {
                        if let Lookup::Fresh(stored) = self.shared.lookup(request, clock::now()) {
                            leading.resolve(Outcome::Stored(stored.clone()));
                            return Ok((stored, false));
                        }
                        lead = Some(leading);
                        break;
                    }
                    Part::Join(flight) => {
                        self.shared.metrics.fills_joined.increment(());
                        match self.joined(request, Forward::UriMiss, flight.outcome().await) {
                            Joined::Answer(Answer::Stored(stored, _))
                            | Joined::Validate(stored) => {
                                return Ok((stored, false));
                            }
                            Joined::Answer(Answer::Failed(failure, _)) => {
                                return Err(Shortfall::of_failure(failure));
                            }
                            Joined::Answer(Answer::Passed(..)) | Joined::Again => {}
                            Joined::Alone => break,
                        }
                    }
                }
            }
        }
        let lead = lead.unwrap_or_else(|| self.shared.inflight.alone(*request.key.hash()));
        let exchange = Exchange::new(request, stale, upstream, lead);
        let (exchange, ended) = exchange.held(pace.clone());
        match self.fetcher.lead(exchange).await {
            Led::Stored { stored, .. } => match ended.await {
                Ok(Err(error)) => Err(Shortfall::of_body(error)),
                // Or another fill brings it.
                Ok(Ok(())) | Err(_) => Ok((stored, true)),
            },
            Led::Validated(stored) => Ok((stored, true)),
            // The origin did not say that it may be used.
            Led::Stale { status, .. } => Err(match status {
                Some(status) => Shortfall::Status(status.as_u16()),
                None => Shortfall::Connect,
            }),
            // Purged while it was asked for.
            Led::Passed {
                detail: Some(fill::OVERTAKEN),
                ..
            } => Err(Shortfall::Again),
            Led::Passed { passed, .. } => Err(useless(*passed).await),
            Led::Failed(failure) => Err(Shortfall::of_failure(failure)),
        }
    }

    /// Waits for what is arriving of a body, and asks for the rest.
    async fn complete(
        &self,
        stored: &Arc<Stored>,
        request: &Request<'_>,
        upstream: &UpstreamFields<'_>,
        pace: &Rc<Pace>,
    ) -> Result<(), Incomplete> {
        let body = &stored.body;
        let mut refill = None;
        let mut in_vain = 0;
        let mut last = None;
        while !body.object.is_complete() {
            if body.object.is_gone() {
                return Err(Incomplete::Short(Shortfall::Again));
            }
            let missing = self.first_missing(body);
            // Ended between two looks.
            let Some(at) = missing.or_else(|| body.has_fill().then_some(0)) else {
                break;
            };
            in_vain = if last == Some(at) { in_vain + 1 } else { 0 };
            last = Some(at);
            if in_vain > MAX_IN_VAIN {
                return Err(Incomplete::Short(Shortfall::Truncated));
            }
            if let Some(fill) = body.fill_towards(at) {
                ended(fill.held_to_end().await, None)?;
                continue;
            }
            let Some(length) = body.object.length().filter(|_| body.joinable) else {
                // It was cut off under somebody else, and cannot be gone on with.
                self.shared.residency.remove(stored);
                return Err(Incomplete::Short(Shortfall::Truncated));
            };
            let refill = refill.get_or_insert_with(|| {
                let pace = Some(pace.clone());
                self.fetcher.paced_refill(request, stored, upstream, pace)
            });
            match refill.start(body, at..length, true) {
                Bringer::New(fill) | Bringer::Fill(fill) => {
                    ended(fill.held_to_end().await, refill.take_refusal())?;
                }
                // Whether it brings this, too, shows next time.
                Bringer::Undecided(fill) => drop(fill.accepted().await),
            }
        }
        match body.object.is_gone() {
            true => Err(Incomplete::Short(Shortfall::Again)),
            false => Ok(()),
        }
    }

    /// Offset of the first byte that is not here. `None` where all are, or nobody knows how many there are.
    fn first_missing(&self, body: &Body) -> Option<u64> {
        let block_size = self.shared.store.block_size();
        let blocks = block_size.count(body.object.length()?);
        let run = body.object.missing_runs(0..blocks, 0).into_iter().next()?;
        Some(u64::from(run.start) * u64::from(block_size.get()))
    }
}

enum Incomplete {
    /// The origin has another representation: begin anew.
    Changed,
    Short(Shortfall),
}

fn ended(outcome: Result<(), BodyError>, refusal: Option<Shortfall>) -> Result<(), Incomplete> {
    match outcome {
        // A fill that gave way to another one has not failed.
        Ok(()) | Err(BodyError::Abandoned) => Ok(()),
        Err(BodyError::Changed) => Err(Incomplete::Changed),
        Err(error) => {
            let shortfall = refusal.unwrap_or_else(|| Shortfall::of_body(error));
            Err(Incomplete::Short(shortfall))
        }
    }
}

/// What an answer that was not stored comes to. A short one is read to its end.
async fn useless(passed: Passed) -> Shortfall {
    let status = passed.response.status;
    if passed
        .response
        .content_length
        .is_some_and(|length| length <= MAX_DRAINED)
    {
        let mut body = passed.response.body;
        while let Some(Ok(Frame::Data(_) | Frame::Trailers(_))) = body.frame().await {}
    }
    match status {
        StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NON_AUTHORITATIVE_INFORMATION => {
            Shortfall::Uncacheable
        }
        status => Shortfall::Status(status.as_u16()),
    }
}
