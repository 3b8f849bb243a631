//! A client's request, from its head to the last byte of its answer.
//!
//! ```text
//! handle ─┬─ refused (loop, TRACE, nobody's host) ────────────────► respond
//!         ├─ GET, HEAD ─► cache.lookup ─┬─ usable ────────────────► deliver (200, 206, 304, 416)
//!         │                             └─ fetch ─┬─ stored ──────► deliver
//!         │                                       └─ not ─────────► passed on, cut to the client's range
//!         └─ all else ──► streamed both ways, invalidates ────────► passed on, or tunnelled after 101
//! ```
//!
//! Kept true here:
//! - The key is what is forwarded: authority and target, byte for byte. What is not in the key and could
//!   change an answer is overwritten on the way upstream.
//! - No head promises a body that is not here or certain to come.
//! - A request with a body, with preconditions or for an upgrade never meets the cache.

pub mod connection;
mod deliver;
mod h1;
mod h2;
mod io;
pub mod message;
mod multipart;
mod respond;
mod tunnel;

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Version};

use crate::cache::fill::complete_head;
use crate::cache::residency::Stored;
use crate::cache::{self, Failure};
use crate::cache::{Answer, Forward, How, LocalCache, Lookup, OriginRules, UpstreamFields, Wanted};
use crate::clock;
use crate::origin::UpstreamRequest;
use crate::proxy::message::{Body, Client, ClientBody, Interims, Report, Request, Response};
use crate::semantics::hop::{self, Forwarded, MaxForwards};
use crate::semantics::key::CacheKey;
use crate::semantics::range::{self, RangeSpec, Ranges};
use crate::semantics::{conditional, freshness};
use crate::telemetry::{AccessLog, BadRequest, Metrics, TimeoutPhase};
use crate::wire::{self, HeadError};

pub use connection::{Admission, Draining};

/// What a client may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub first_byte_timeout: Duration,
    pub header_timeout: Duration,
    /// From a request's first byte to the last of its body.
    pub request_timeout: Duration,
    pub idle_timeout: Duration,
    pub write_timeout: Duration,
    /// Bytes per second that a request's body must bring.
    pub body_rate: u64,
    pub max_drained_body: u64,
    pub max_ranges: usize,
    pub max_streams: u32,
    pub wire: wire::Limits,
}

/// Chooses an origin by host (lower case, no port) and target.
pub type Router = Box<dyn Fn(&str, &[u8]) -> Option<usize> + Send + Sync>;

/// What a reload can change, swapped as one.
pub struct Settings {
    pub limits: Limits,
    pub origins: Vec<OriginRules>,
    /// Gives places in `origins`.
    pub route: Router,
    /// Peers whose forwarding fields are extended rather than replaced.
    pub trusts: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

/// How this node names itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// In `Via`.
    pub pseudonym: Arc<str>,
    /// In `Cache-Status`: the pseudonym and the region.
    pub cache_name: Arc<str>,
    /// In `CDN-Loop`.
    pub cdn_id: Arc<str>,
}

/// What the proxies of all threads share.
pub struct Shared {
    pub settings: ArcSwap<Settings>,
    pub identity: Identity,
    pub metrics: Arc<Metrics>,
    pub log: AccessLog,
}

/// The proxy of one data thread.
pub struct Proxy {
    pub shared: Arc<Shared>,
    pub cache: LocalCache,
    pub draining: Draining,
    local: RefCell<Rc<LocalSettings>>,
}

/// The settings as one thread holds them: shared counts that every request touched would be fought
/// over by all threads.
struct LocalSettings {
    shared: Arc<Settings>,
    origins: Vec<Rc<OriginRules>>,
}

impl LocalSettings {
    fn new(shared: Arc<Settings>) -> Rc<LocalSettings> {
        let origins = shared.origins.iter().cloned().map(Rc::new).collect();
        Rc::new(LocalSettings { shared, origins })
    }
}

/// How often a request starts over because what was stored turned out to have changed.
const MAX_ATTEMPTS: usize = 3;

impl Proxy {
    pub fn new(shared: Arc<Shared>, cache: LocalCache, draining: Draining) -> Proxy {
        Proxy {
            local: RefCell::new(LocalSettings::new(shared.settings.load_full())),
            shared,
            cache,
            draining,
        }
    }

    /// The settings in force, taken over anew after a reload.
    fn settings(&self) -> Rc<LocalSettings> {
        let mut local = self.local.borrow_mut();
        let current = self.shared.settings.load();
        if !Arc::ptr_eq(&current, &local.shared) {
            *local = LocalSettings::new(current.clone());
        }
        local.clone()
    }

    pub fn limits(&self) -> Limits {
        self.settings().shared.limits
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request) -> Response {
        let report = Report::of(&request);
        let settings = self.settings();
        if let Some(refusal) = self.refusal(&request) {
            return self.synthetic(refusal, report);
        }
        let host = host_of(&request.authority);
        let Some(place) = (settings.shared.route)(host, &request.target) else {
            return self.synthetic(respond::no_origin(), report);
        };
        let origin = &settings.origins[place];
        let report = Report {
            origin: Some(origin.clone()),
            ..report
        };
        let trusted = (settings.shared.trusts)(request.client.address);
        let route = Route {
            origin: origin.clone(),
            trusted,
            max_ranges: settings.shared.limits.max_ranges,
        };
        match request.method {
            Method::GET | Method::HEAD if is_cacheable_form(&request) => {
                self.cached(request, route, report).await
            }
            // Everything but the hit path is kept out of line: its futures are large.
            _ => Box::pin(self.pass(request, route, report)).await,
        }
    }

    /// Requests that are answered here, whatever origin they are for.
    fn refusal(&self, request: &Request) -> Option<respond::Refusal> {
        if hop::cdn_loop_contains(&request.headers, &self.shared.identity.cdn_id) {
            self.shared.metrics.bad_requests.increment(BadRequest::Loop);
            return Some(respond::loop_detected());
        }
        // What removes stored responses is for operators, on a listener of its own.
        if request.method == Method::TRACE || matches!(request.method.as_str(), "PURGE" | "BAN") {
            return Some(respond::method_not_allowed());
        }
        if request.method == Method::OPTIONS
            && hop::max_forwards(&request.headers) == MaxForwards::Exhausted
        {
            return Some(respond::options_here());
        }
        None
    }

    async fn cached(&self, mut request: Request, route: Route, report: Report) -> Response {
        let now = clock::now();
        let ranges = match request.method {
            Method::GET => range::parse(&request.headers, route.max_ranges),
            _ => Ranges::None,
        };
        let question = Question {
            cache: cache::Request {
                key: CacheKey::new(request.client.scheme, &request.authority, &request.target),
                method: request.method.clone(),
                authority: request.authority.clone(),
                target: request.target.clone(),
                headers: std::mem::take(&mut request.headers),
                wanted: wanted(&ranges),
                origin: route.origin.clone(),
            },
            ranges,
            client: request.client.address,
            scheme: request.client.scheme,
            trusted: route.trusted,
            version: request.version,
            interims: request.interims.take(),
        };
        if let Lookup::Fresh(stored) = self.cache.shared.lookup(&question.cache, now) {
            let how = self.how_hit(&stored);
            match self.deliver_cached(&question, stored, how, now) {
                Ok(delivered) => return self.respond(delivered, report),
                Err(stored) => {
                    return Box::pin(self.answer(question, Some((stored, how)), route, report))
                        .await;
                }
            }
        }
        Box::pin(self.answer(question, None, route, report)).await
    }

    /// The long way: whatever a lookup finds, until there is an answer.
    async fn answer(
        &self,
        question: Question,
        mut found: Option<(Arc<Stored>, How)>,
        route: Route,
        report: Report,
    ) -> Response {
        let mut failure = Failure::BadGateway("changed-too-often");
        for _ in 0..MAX_ATTEMPTS {
            let (stored, how) = match found.take() {
                Some(found) => found,
                None => match self.find(&question).await {
                    Answer::Stored(stored, how) => (stored, how),
                    Answer::Passed(passed, how) => {
                        return self.passed_on(question, *passed, how, route, report).await;
                    }
                    Answer::Failed(failure, how) => {
                        return self.respond(respond::failed(failure, how), report);
                    }
                },
            };
            match self.deliver(&question, stored, how).await {
                Ok(delivered) => return self.respond(delivered, report),
                Err(error) => failure = deliver::failure(error),
            }
        }
        let how = How {
            forward: Some(Forward::Partial),
            detail: Some(failure.detail()),
            ..How::default()
        };
        self.respond(respond::failed(failure, how), report)
    }

    async fn find(&self, question: &Question) -> Answer {
        let make = || self.upstream_fields(question);
        let upstream = UpstreamFields {
            make: &make,
            interim: question.interims.clone().map(interim_sink),
        };
        let now = clock::now();
        let request = &question.cache;
        match self.cache.shared.lookup(request, now) {
            Lookup::Fresh(stored) => {
                let how = self.how_hit(&stored);
                Answer::Stored(stored, how)
            }
            Lookup::StaleWhileRevalidate(stored) => {
                self.cache
                    .validate_behind(request, stored.clone(), &upstream);
                let stale = Some(cache::StaleReason::WhileRevalidate);
                Answer::Stored(
                    stored,
                    How {
                        stale,
                        ..How::default()
                    },
                )
            }
            Lookup::Stale(stored) => {
                self.cache
                    .fetch(request, Some(stored), Forward::Stale, &upstream)
                    .await
            }
            Lookup::Miss(why) => self.cache.fetch(request, None, why, &upstream).await,
            Lookup::Forbidden => Answer::Failed(Failure::OnlyIfCached, How::default()),
        }
    }

    /// The fields of a client's request as they go upstream.
    fn upstream_fields(&self, question: &Question) -> HeaderMap {
        self.forwardable(
            question.cache.headers.clone(),
            Forwarded {
                client: question.client,
                scheme: question.scheme,
                authority: &question.cache.authority,
                trusted: question.trusted,
            },
            question.version,
        )
    }

    fn forwardable(
        &self,
        mut headers: HeaderMap,
        forwarded: Forwarded<'_>,
        version: Version,
    ) -> HeaderMap {
        hop::strip_hop_by_hop(&mut headers);
        hop::set_forwarded(&mut headers, forwarded);
        hop::append_via(&mut headers, version, &self.shared.identity.pseudonym);
        hop::append_cdn_loop(&mut headers, &self.shared.identity.cdn_id);
        headers
    }

    /// A request that the cache has no part in: streamed both ways.
    async fn pass(&self, mut request: Request, route: Route, report: Report) -> Response {
        let why = match request.method {
            Method::GET | Method::HEAD => Forward::Bypass,
            _ => Forward::Method,
        };
        let mut headers = std::mem::take(&mut request.headers);
        if request.method == Method::OPTIONS
            && let MaxForwards::Left(left) = hop::max_forwards(&headers)
        {
            headers.insert(header::MAX_FORWARDS, HeaderValue::from(left));
        }
        let wants_upgrade = request.upgrade && request.body.is_empty();
        let upgrade = headers
            .get_all(header::UPGRADE)
            .iter()
            .cloned()
            .collect::<Vec<_>>();
        let mut headers = self.forwardable(
            headers,
            Forwarded {
                client: request.client.address,
                scheme: request.client.scheme,
                authority: &request.authority,
                trusted: route.trusted,
            },
            request.version,
        );
        if wants_upgrade {
            for value in upgrade {
                headers.append(header::UPGRADE, value);
            }
        }
        let authority = route.origin.authority_for(&request.authority);
        let mut upstream =
            UpstreamRequest::new(request.method.clone(), request.target.clone(), authority);
        upstream.headers = headers;
        upstream.upgrade = wants_upgrade;
        // What a GET or HEAD carries means nothing (RFC 9110 §9.3.1) and is not sent on.
        if why == Forward::Method {
            upstream.body = std::mem::replace(&mut request.body, ClientBody::Empty).into_upstream();
        }
        let interims = request.interims.clone();
        let mut on_interim = |status, headers| {
            if let Some(interims) = &interims {
                interims.push(status, headers);
            }
        };
        let fetcher = &self.cache.fetcher;
        let sent = fetcher.send(&route.origin, upstream, &mut on_interim).await;
        let mut how = How {
            forward: Some(why),
            ..How::default()
        };
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => {
                let failure = cache::fill::failure(&error);
                how.detail = Some(failure.detail());
                return self.respond(respond::failed(failure, how), report);
            }
        };
        how.forward_status = Some(response.status);
        if freshness::invalidates(&request.method, response.status) {
            self.invalidate(&request, &response.headers);
        }
        if let Some(upgraded) = response.upgraded.take() {
            let delivered = respond::Delivered {
                status: response.status,
                stored: None,
                headers: response.headers,
                length: None,
                body: Body::Tunnel(Box::new(upgraded)),
                how,
                ttl: None,
            };
            return self.respond(delivered, report);
        }
        hop::strip_hop_by_hop(&mut response.headers);
        complete_head(&mut response, &self.shared.identity.pseudonym, clock::now());
        let is_head = request.method == Method::HEAD;
        self.respond(respond::through(response, is_head, how), report)
    }

    /// RFC 9111 §4.4: a successful unsafe request invalidates its target and what it points to.
    fn invalidate(&self, request: &Request, response: &HeaderMap) {
        let scheme = request.client.scheme;
        let residency = &self.cache.shared.residency;
        let own = CacheKey::new(scheme, &request.authority, &request.target);
        let mut removed = residency.invalidate(&own);
        let targets =
            freshness::invalidation_targets(scheme, &request.authority, &request.target, response);
        for (authority, target) in targets {
            removed += residency.invalidate(&CacheKey::new(scheme, &authority, &target));
        }
        self.shared.metrics.invalidations.add((), removed as u64);
    }

    /// An uncacheable answer to a cacheable question: cut to the client's range and conditions.
    async fn passed_on(
        &self,
        question: Question,
        passed: cache::Passed,
        how: How,
        route: Route,
        report: Report,
    ) -> Response {
        match deliver::passed(&question, passed, how) {
            Ok(delivered) => self.respond(delivered, report),
            // Asked for in the cache's words, it does not fit the client's: asked again in the client's.
            Err(()) => Box::pin(self.pass(question.into_request(), route, report)).await,
        }
    }

    fn synthetic(&self, refusal: respond::Refusal, report: Report) -> Response {
        self.respond(refusal.into_delivered(), report)
    }

    /// A stored response whose first fill is still running was not here when it was asked for.
    fn how_hit(&self, stored: &Stored) -> How {
        let body = &stored.body;
        let arriving = !body.object.is_complete() && body.has_fill();
        if arriving {
            self.shared.metrics.fills_joined.increment(());
        }
        How {
            forward: arriving.then_some(Forward::UriMiss),
            collapsed: arriving,
            ..How::default()
        }
    }

    pub fn count_malformed(&self, error: &HeadError) {
        let reason = match error {
            HeadError::Malformed(_) => BadRequest::Syntax,
            HeadError::NotSupported(_) => BadRequest::TransferEncoding,
            HeadError::TargetTooLong => BadRequest::UriTooLong,
            HeadError::TooLarge => BadRequest::HeadersTooLarge,
            HeadError::Expectation => BadRequest::Expectation,
            HeadError::Version => BadRequest::Version,
        };
        self.shared.metrics.bad_requests.increment(reason);
    }

    pub fn count_timeout(&self, phase: TimeoutPhase) {
        self.shared.metrics.client_timeouts.increment(phase);
    }

    pub fn count_client_gone(&self) {
        self.shared.metrics.clients_gone.increment(());
    }
}

/// Where a request goes and what its client is believed.
struct Route {
    origin: Rc<OriginRules>,
    trusted: bool,
    max_ranges: usize,
}

/// A request that may be answered from the cache.
struct Question {
    cache: cache::Request,
    ranges: Ranges,
    client: IpAddr,
    scheme: crate::semantics::key::Scheme,
    trusted: bool,
    version: Version,
    interims: Option<Rc<Interims>>,
}

impl Question {
    /// The client's own request, for the origin to answer as it stands.
    fn into_request(self) -> Request {
        Request {
            method: self.cache.method,
            target: self.cache.target,
            authority: self.cache.authority,
            version: self.version,
            headers: self.cache.headers,
            body: ClientBody::Empty,
            upgrade: false,
            client: Client {
                address: self.client,
                scheme: self.scheme,
            },
            interims: self.interims,
            received: Instant::now(),
        }
    }
}

/// The cache answers requests that have no body, no preconditions for the origin to judge (RFC 9111
/// §4.3.2), and want no other protocol.
fn is_cacheable_form(request: &Request) -> bool {
    request.body.is_empty()
        && !request.upgrade
        && request.target.first() == Some(&b'/')
        && !conditional::has_unconditional_preconditions(&request.headers)
}

fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

fn wanted(ranges: &Ranges) -> Wanted {
    match ranges {
        Ranges::Set(specs) => match specs.first() {
            Some(RangeSpec::Span(from, to)) => Wanted::Span(*from, *to),
            Some(RangeSpec::Suffix(length)) => Wanted::Suffix(*length),
            None => Wanted::All,
        },
        _ => Wanted::All,
    }
}

fn interim_sink(interims: Rc<Interims>) -> Rc<dyn Fn(StatusCode, HeaderMap)> {
    Rc::new(move |status, headers| interims.push(status, headers))
}
