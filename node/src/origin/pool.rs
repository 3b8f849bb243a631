//! Connection slots: who may have a connection to an origin, old or new, and in which order.
//!
//! ```text
//!          ┌──────────── release: the next waiter, else one less open ◄───────────┐
//!   Permit ┴► connecting ─► Connection in use ─► check_in: the next waiter, else idle
//!                                 ▲                                               │
//!                                 └────────── acquire: newest first ◄─────────────┴► expired: closed
//! ```
//!
//! A [`Permit`] is one of an origin's `max_connections`; whatever holds a connection holds its permit, and
//! dropping either frees the slot.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::{HeaderMap, Method, StatusCode};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::connect;
use super::resolve::Resolver;
use super::tls::Offer;
use super::{
    Counters, ErrorKind, Http2, OriginError, Phase, RequestBody, Scheme, Settings, UpstreamRequest,
    UpstreamResponse, h1, h2,
};

/// The connections of one data thread to all origins. A clone is the same pool.
#[derive(Clone)]
pub struct OriginPool(Rc<Shared>);

struct Shared {
    /// By the address of the settings, which the entry keeps alive.
    origins: RefCell<HashMap<usize, Rc<Origin>>>,
    resolver: Resolver,
    counters: Arc<Counters>,
    /// Connections to all of them together.
    most: usize,
    open: Rc<Cell<usize>>,
}

/// One origin's connections.
pub(super) struct Origin {
    pub(super) settings: Arc<Settings>,
    pub(super) counters: Arc<Counters>,
    resolver: Resolver,
    slots: RefCell<Slots>,
    /// Of the whole pool.
    most: usize,
    open: Rc<Cell<usize>>,
}

#[derive(Default)]
struct Slots {
    /// Permits given out.
    open: usize,
    /// Unused HTTP/1 connections, the one used last at the back.
    idle: VecDeque<Idle>,
    /// Those who wait for a permit or a connection, in order.
    waiters: VecDeque<oneshot::Sender<Slot>>,
    http2: Vec<Rc<h2::Connection>>,
    /// Those who wait for the HTTP/2 connection being opened.
    negotiating: Option<Vec<oneshot::Sender<Negotiation>>>,
    /// TLS chose HTTP/1 when offered both.
    is_http1: bool,
    /// The task that closes expired connections runs.
    has_reaper: bool,
}

struct Idle {
    connection: h1::Connection,
    since: Instant,
}

/// What a request gets to go out on.
enum Slot {
    Used(h1::Connection),
    Fresh(Permit),
}

/// What came of opening an HTTP/2 connection; `None`: TLS chose HTTP/1.
type Negotiation = Result<Option<Rc<h2::Connection>>, OriginError>;

/// The right to one connection.
pub(super) struct Permit(Rc<Origin>);

impl Permit {
    pub(super) fn origin(&self) -> &Rc<Origin> {
        &self.0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// An exchange that failed.
pub(super) struct Failure {
    pub(super) error: OriginError,
    pub(super) loss: Loss,
}

/// How little of an exchange that failed was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// A response has begun, or it would fail again.
    None,
    /// No byte of a response came.
    Unanswered,
    /// The origin says that it has not looked at the request.
    Refused,
}

impl OriginPool {
    pub fn new(counters: Arc<Counters>) -> Self {
        Self::bounded(counters, usize::MAX)
    }

    /// One that has no more than `most` connections to all origins together: what is unused is closed for others, and
    /// beyond it nobody waits, but fails with [`ErrorKind::Busy`].
    pub fn bounded(counters: Arc<Counters>, most: usize) -> Self {
        Self(Rc::new(Shared {
            origins: RefCell::default(),
            resolver: Resolver::default(),
            counters,
            most,
            open: Rc::default(),
        }))
    }

    /// Sends a request and waits for the head of the final response. `interim` hears the others,
    /// 100 excepted.
    ///
    /// Dropping the future cancels the exchange and closes its connection. A request that a used
    /// connection lost before any answer is sent once more, on a fresh one, if it is idempotent and
    /// has no body (RFC 9110 §9.2.2); so is any without a body that the origin says it has not looked
    /// at (RFC 9113 §8.7).
    pub async fn send(
        &self,
        settings: &Arc<Settings>,
        request: UpstreamRequest,
        interim: &mut dyn FnMut(StatusCode, HeaderMap),
    ) -> Result<UpstreamResponse, OriginError> {
        self.0.counters.requests.fetch_add(1, Relaxed);
        let origin = self.origin(settings);
        if self.0.open.get() >= self.0.most && origin.slots.borrow().idle.is_empty() {
            self.close_one_idle();
        }
        let result = origin.send(request, interim).await;
        if let Err(error) = &result {
            self.0.counters.count(error);
        }
        result
    }

    /// Closes the connection that has been unused longest.
    fn close_one_idle(&self) {
        let since = |origin: &Rc<Origin>| {
            let slots = origin.slots.borrow();
            slots.idle.front().map(|idle| idle.since)
        };
        let origins = self.0.origins.borrow();
        let unused = origins
            .values()
            .filter_map(|origin| Some((since(origin)?, origin)));
        let oldest = unused.min_by_key(|(since, _)| *since);
        let oldest = oldest.map(|(_, origin)| origin.clone());
        drop(origins);
        let connection = oldest.and_then(|origin| origin.slots.borrow_mut().idle.pop_front());
        drop(connection);
    }

    /// Closes all unused connections.
    pub fn close_idle(&self) {
        let origins: Vec<_> = self.0.origins.borrow().values().cloned().collect();
        for origin in origins {
            origin.close_expired(None);
        }
    }

    fn origin(&self, settings: &Arc<Settings>) -> Rc<Origin> {
        let mut origins = self.0.origins.borrow_mut();
        let key = Arc::as_ptr(settings) as usize;
        if let Some(origin) = origins.get(&key) {
            return Rc::clone(origin);
        }
        // A new origin is rare (start, reload): the time to forget those nobody else remembers.
        origins.retain(|_, origin| {
            Arc::strong_count(&origin.settings) > 1 || origin.slots.borrow().open > 0
        });
        let origin = Rc::new(Origin {
            settings: Arc::clone(settings),
            counters: Arc::clone(&self.0.counters),
            resolver: self.0.resolver.clone(),
            slots: RefCell::default(),
            most: self.0.most,
            open: self.0.open.clone(),
        });
        origins.insert(key, Rc::clone(&origin));
        origin
    }
}

impl Counters {
    pub(super) fn count(&self, error: &OriginError) {
        match error.kind {
            ErrorKind::Timeout(_) => self.timeouts.fetch_add(1, Relaxed),
            ErrorKind::Protocol | ErrorKind::HeadTooLarge | ErrorKind::Truncated => {
                self.protocol_errors.fetch_add(1, Relaxed)
            }
            _ => return,
        };
    }
}

impl Origin {
    async fn send(
        self: &Rc<Self>,
        mut request: UpstreamRequest,
        interim: &mut dyn FnMut(StatusCode, HeaderMap),
    ) -> Result<UpstreamResponse, OriginError> {
        let is_repeatable = matches!(request.body, RequestBody::Empty) && !request.upgrade;
        let mut is_retry = false;
        loop {
            let mut body = std::mem::take(&mut request.body);
            let over_http2 = match self.tries_http2(&request) {
                true => self.http2(is_retry).await?,
                false => None,
            };
            let (used_before, outcome) = match over_http2 {
                Some(connection) => {
                    let used_before = connection.used.replace(true);
                    (used_before, h2::exchange(&connection, &request, body).await)
                }
                None => {
                    let (used_before, connection) = match self.acquire(is_retry).await? {
                        Slot::Used(connection) => (true, connection),
                        Slot::Fresh(permit) => (false, self.open_http1(permit).await?),
                    };
                    if used_before {
                        self.counters.connections_reused.fetch_add(1, Relaxed);
                    }
                    let body = std::mem::take(&mut body);
                    (
                        used_before,
                        h1::exchange(connection, &request, body, interim).await,
                    )
                }
            };
            match outcome {
                Ok(response) => return Ok(response),
                Err(failure) => {
                    let may_retry = match failure.loss {
                        Loss::None => false,
                        Loss::Unanswered => used_before && is_idempotent(&request.method),
                        Loss::Refused => true,
                    };
                    let is_lost = failure.error.kind == ErrorKind::Closed;
                    if !(is_lost && may_retry && is_repeatable && !is_retry) {
                        return Err(failure.error);
                    }
                }
            }
            is_retry = true;
            self.counters.retries.fetch_add(1, Relaxed);
        }
    }

    fn tries_http2(&self, request: &UpstreamRequest) -> bool {
        match self.settings.http2 {
            Http2::Off => false,
            Http2::PriorKnowledge => true,
            // HTTP/2 has no Upgrade: such a request asks TLS for HTTP/1.
            Http2::Auto => {
                self.settings.scheme == Scheme::Https
                    && !request.upgrade
                    && !self.slots.borrow().is_http1
            }
        }
    }

    async fn open_http1(&self, permit: Permit) -> Result<h1::Connection, OriginError> {
        let connected = self
            .counted(connect(&self.settings, &self.resolver, Offer::Http1))
            .await;
        if connected.is_err() {
            // The origin may be another one when it comes back.
            self.slots.borrow_mut().is_http1 = false;
        }
        Ok(h1::Connection::new(connected?.io, permit))
    }

    async fn counted<T>(
        &self,
        connecting: impl Future<Output = Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        let connected = connecting.await;
        let counter = match connected {
            Ok(_) => &self.counters.connections_opened,
            Err(_) => &self.counters.connections_failed,
        };
        counter.fetch_add(1, Relaxed);
        connected
    }

    /// A connection or the right to open one; always the latter when it must be `fresh`.
    async fn acquire(self: &Rc<Self>, fresh: bool) -> Result<Slot, OriginError> {
        if fresh {
            let oldest = self.slots.borrow_mut().idle.pop_front();
            if let Some(idle) = oldest {
                return Ok(Slot::Fresh(idle.connection.into_permit()));
            }
        }
        loop {
            let newest = self.slots.borrow_mut().idle.pop_back();
            let Some(Idle { connection, .. }) = newest else {
                break;
            };
            if connection.is_quiet() {
                return Ok(Slot::Used(connection));
            }
            self.counters.connections_stale.fetch_add(1, Relaxed);
        }
        if let Some(permit) = self.try_permit() {
            return Ok(Slot::Fresh(permit));
        }
        if self.open.get() >= self.most {
            return Err(too_many_wait());
        }
        match self.wait().await? {
            Slot::Used(connection) if fresh || !connection.is_quiet() => {
                Ok(Slot::Fresh(connection.into_permit()))
            }
            slot => Ok(slot),
        }
    }

    fn try_permit(self: &Rc<Self>) -> Option<Permit> {
        let mut slots = self.slots.borrow_mut();
        if slots.open >= self.settings.max_connections.max(1) || self.open.get() >= self.most {
            return None;
        }
        slots.open += 1;
        self.open.set(self.open.get() + 1);
        self.counters.open.fetch_add(1, Relaxed);
        Some(Permit(Rc::clone(self)))
    }

    async fn wait(self: &Rc<Self>) -> Result<Slot, OriginError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut slots = self.slots.borrow_mut();
            if slots.waiters.len() >= self.settings.max_waiting {
                slots.waiters.retain(|waiter| !waiter.is_closed());
            }
            if slots.waiters.len() >= self.settings.max_waiting {
                return Err(too_many_wait());
            }
            slots.waiters.push_back(sender);
        }
        let _gauge = Waiting::enter(&self.counters);
        match tokio::time::timeout(self.settings.queue_timeout, receiver).await {
            Ok(Ok(slot)) => Ok(slot),
            // The sender lives as long as this origin, which `self` holds.
            Ok(Err(_)) | Err(_) => Err(OriginError::timeout(Phase::Queue)),
        }
    }

    /// The next one who still waits. Nothing else runs between this and the send, so it succeeds.
    fn next_waiter(&self) -> Option<oneshot::Sender<Slot>> {
        let mut slots = self.slots.borrow_mut();
        while let Some(waiter) = slots.waiters.pop_front() {
            if !waiter.is_closed() {
                return Some(waiter);
            }
        }
        None
    }

    /// A permit's end: the next waiter's beginning.
    fn release(self: &Rc<Self>) {
        if let Some(waiter) = self.next_waiter() {
            // A slot that was not taken is a permit again, and comes back here when it is dropped.
            drop(waiter.send(Slot::Fresh(Permit(Rc::clone(self)))));
        } else {
            self.slots.borrow_mut().open -= 1;
            self.open.set(self.open.get() - 1);
            self.counters.open.fetch_sub(1, Relaxed);
        }
    }

    /// Takes a connection back after a clean exchange.
    pub(super) fn check_in(self: &Rc<Self>, connection: h1::Connection) {
        if let Some(waiter) = self.next_waiter() {
            drop(waiter.send(Slot::Used(connection)));
            return;
        }
        if self.settings.max_idle == 0 {
            return;
        }
        let oldest = {
            let mut slots = self.slots.borrow_mut();
            slots.idle.push_back(Idle {
                connection,
                since: Instant::now(),
            });
            if slots.idle.len() > self.settings.max_idle {
                slots.idle.pop_front()
            } else {
                None
            }
        };
        drop(oldest);
        self.wake_reaper();
    }

    /// An HTTP/2 connection to send one more request on; `None` when TLS chose HTTP/1.
    async fn http2(self: &Rc<Self>, mut fresh: bool) -> Negotiation {
        loop {
            let negotiation = {
                let mut slots = self.slots.borrow_mut();
                slots.http2.retain(|connection| !connection.is_closed());
                let best = slots
                    .http2
                    .iter()
                    .min_by_key(|connection| connection.streams.get());
                let best = best.filter(|_| !fresh).cloned();
                let may_open = slots.open < self.settings.max_connections.max(1);
                if let Some(best) = best
                    && (!may_open || best.has_room())
                {
                    return Ok(Some(best));
                }
                self.join_negotiation(&mut slots)?
            };
            let _gauge = Waiting::enter(&self.counters);
            let negotiated = negotiation.await.unwrap_or_else(|_| {
                let message = "the attempt was abandoned";
                Err(OriginError::new(ErrorKind::Connect, message))
            });
            match &negotiated {
                // More have waited for it than it takes.
                Ok(Some(connection)) if !connection.has_room() => fresh = false,
                _ => return negotiated,
            }
        }
    }

    /// Waits with others for one connection, which is being opened from now on.
    fn join_negotiation(
        self: &Rc<Self>,
        slots: &mut Slots,
    ) -> Result<oneshot::Receiver<Negotiation>, OriginError> {
        let (sender, receiver) = oneshot::channel();
        let Some(others) = &mut slots.negotiating else {
            slots.negotiating = Some(vec![sender]);
            // In a task of its own: those who wait must not depend on the first one's patience.
            tokio::task::spawn_local(Rc::clone(self).negotiate());
            return Ok(receiver);
        };
        if others.len() >= self.settings.max_waiting {
            others.retain(|other| !other.is_closed());
        }
        if others.len() >= self.settings.max_waiting {
            return Err(too_many_wait());
        }
        others.push(sender);
        Ok(receiver)
    }

    async fn negotiate(self: Rc<Self>) {
        let negotiation = self.open_http2().await;
        let waiters = {
            let mut slots = self.slots.borrow_mut();
            match &negotiation {
                Ok(Some(connection)) => slots.http2.push(Rc::clone(connection)),
                Ok(None) => slots.is_http1 = true,
                Err(_) => {}
            }
            slots.negotiating.take().unwrap_or_default()
        };
        for waiter in waiters {
            // One that left needs no connection.
            let _ = waiter.send(negotiation.clone());
        }
        self.wake_reaper();
    }

    async fn open_http2(self: &Rc<Self>) -> Negotiation {
        let permit = match self.acquire(true).await? {
            Slot::Fresh(permit) => permit,
            Slot::Used(connection) => connection.into_permit(),
        };
        let offer = match self.settings.http2 {
            Http2::PriorKnowledge => Offer::Http2,
            _ => Offer::Either,
        };
        let connected = self
            .counted(connect(&self.settings, &self.resolver, offer))
            .await?;
        if offer == Offer::Either && !connected.is_http2 {
            self.check_in(h1::Connection::new(connected.io, permit));
            return Ok(None);
        }
        h2::Connection::open(connected.io, permit).await.map(Some)
    }

    /// An HTTP/2 connection that should get no new requests.
    pub(super) fn forget_http2(&self, connection: &h2::Connection) {
        let gone = {
            let mut slots = self.slots.borrow_mut();
            let at = slots
                .http2
                .iter()
                .position(|c| std::ptr::eq(&**c, connection));
            at.map(|at| slots.http2.swap_remove(at))
        };
        drop(gone);
    }

    /// Makes sure that what is idle now will be closed in time.
    pub(super) fn wake_reaper(self: &Rc<Self>) {
        let mut slots = self.slots.borrow_mut();
        if !slots.has_reaper && slots.next_expiry(&self.settings).is_some() {
            slots.has_reaper = true;
            tokio::task::spawn_local(Rc::clone(self).reap());
        }
    }

    /// Sleeps until the connection that has been idle the longest expires; ends when none is idle.
    async fn reap(self: Rc<Self>) {
        loop {
            let next = self.slots.borrow().next_expiry(&self.settings);
            let Some(next) = next else { break };
            tokio::time::sleep_until(next).await;
            self.close_expired(Some(Instant::now()));
        }
        self.slots.borrow_mut().has_reaper = false;
    }

    /// Closes the idle connections that have expired by `now`, or all of them.
    fn close_expired(&self, now: Option<Instant>) {
        let is_over =
            |since: Instant| now.is_none_or(|now| since + self.settings.idle_timeout <= now);
        let mut expired = (Vec::new(), Vec::new());
        {
            let mut slots = self.slots.borrow_mut();
            while let Some(idle) = slots.idle.pop_front_if(|idle| is_over(idle.since)) {
                expired.0.push(idle);
            }
            let (over, live) = std::mem::take(&mut slots.http2)
                .into_iter()
                .partition(|c| c.idle_since().is_some_and(is_over));
            slots.http2 = live;
            expired.1 = over;
        }
        let count = expired.0.len() + expired.1.len();
        self.counters
            .connections_expired
            .fetch_add(count as u64, Relaxed);
    }
}

impl Slots {
    fn next_expiry(&self, settings: &Settings) -> Option<Instant> {
        let http1 = self.idle.front().map(|idle| idle.since);
        let http2 = self
            .http2
            .iter()
            .filter_map(|connection| connection.idle_since())
            .min();
        let since = http1.into_iter().chain(http2).min()?;
        Some(since + settings.idle_timeout)
    }
}

fn too_many_wait() -> OriginError {
    OriginError::new(ErrorKind::Busy, "too many requests wait for a connection")
}

/// RFC 9110 §9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// Counts one who waits, for as long as it lives.
struct Waiting<'a>(&'a Counters);

impl<'a> Waiting<'a> {
    fn enter(counters: &'a Counters) -> Self {
        counters.waiting.fetch_add(1, Relaxed);
        Self(counters)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
