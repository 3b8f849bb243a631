//! A client's request, from its head to the last byte of its answer.
//!
//! ```text
//! answer_at_once ─┬─ refused (loop, TRACE, nobody's host) ──► respond
//!                 ├─ GET, HEAD: fresh, and in memory ───────► deliver (200, 206, 304, 416)
//!                 └─ all else is pending, and what another node asks
//! answer ─┬─ GET, HEAD ─► cache.lookup ─┬─ usable ──────────► deliver
//!         │                             └─ fetch ─┬─ stored ► deliver
//!         │                                       └─ not ───► passed on, cut to the client's range
//!         ├─ PURGE, by who may ─► purged
//!         ├─ another node ─► what is fresh here; as a shield also what the origin gives ─► proven
//!         └─ all else ──► streamed both ways, invalidates ──► passed on, or tunnelled after 101
//! ```
//!
//! A hit is decided and made without a future of its own: nothing of it is waited for.
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
mod lend;
pub mod message;
mod multipart;
mod peers;
mod respond;
mod tunnel;

use std::cell::RefCell;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use crate::cache::fill::complete_head;
use crate::cache::prefetch::{self, Hint};
use crate::cache::purge::{NodePurged, Selector};
use crate::cache::residency::Stored;
use crate::cache::{self, Failure};
use crate::cache::{Answer, Forward, How, LocalCache, Lookup, OriginRules, UpstreamFields, Wanted};
use crate::clock;
use crate::origin::UpstreamRequest;
use crate::peer;
use crate::proxy::message::{Body, ClientBody, Interims, Report, Request, Response};
use crate::semantics::hop::{self, Forwarded, MaxForwards};
use crate::semantics::key::CacheKey;
use crate::semantics::range::{self, RangeSpec, Ranges};
use crate::semantics::{cmcd, conditional, freshness, tags};
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

/// Whether a request with these fields, from this peer, may purge by the method `PURGE`.
pub type MayPurge = Arc<dyn Fn(&HeaderMap, IpAddr) -> bool + Send + Sync>;

/// Purges on all nodes, softly or not. This node's part comes first.
pub type PurgeAll = Box<
    dyn Fn(Vec<Selector>, bool) -> Pin<Box<dyn Future<Output = Vec<NodePurged>> + Send>>
        + Send
        + Sync,
>;

/// What a reload can change, swapped as one.
pub struct Settings {
    pub limits: Limits,
    pub origins: Vec<OriginRules>,
    /// Gives places in `origins`.
    pub route: Router,
    /// Peers whose forwarding fields are extended rather than replaced.
    pub trusts: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    pub may_purge: MayPurge,
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
    pub settings: Arc<ArcSwap<Settings>>,
    pub identity: Identity,
    pub metrics: Arc<Metrics>,
    pub log: AccessLog,
    pub purge: PurgeAll,
}

/// The proxy of one data thread.
pub struct Proxy {
    pub shared: Arc<Shared>,
    pub cache: LocalCache,
    pub draining: Draining,
    /// Where there is one, bodies are sent without a copy.
    pipe: Option<Rc<lend::Pipe>>,
    local: RefCell<LocalCopy>,
}

/// The settings in force, as of the last look.
struct LocalCopy {
    current: arc_swap::Cache<Arc<ArcSwap<Settings>>, Arc<Settings>>,
    settings: Rc<LocalSettings>,
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

    fn route_to(&self, origin: &Rc<OriginRules>, request: &Request) -> Route {
        Route {
            origin: origin.clone(),
            trusted: (self.shared.trusts)(request.client.address),
        }
    }
}

/// The method that removes from the cache.
const PURGE: &str = "PURGE";

/// Request fields that make a purge a soft one, with the value 1.
const SOFT_PURGE: [&str; 2] = ["caje-soft-purge", "fastly-soft-purge"];

/// Says that a request is nobody's yet (Fetch standard, section 2.2.4).
const SEC_PURPOSE: &str = "sec-purpose";

/// How often a request starts over because what was stored turned out to have changed.
const MAX_ATTEMPTS: usize = 3;

impl Proxy {
    pub fn new(shared: Arc<Shared>, cache: LocalCache, draining: Draining) -> Proxy {
        let mut current = arc_swap::Cache::new(shared.settings.clone());
        let settings = LocalSettings::new(current.load().clone());
        Proxy {
            local: RefCell::new(LocalCopy { current, settings }),
            pipe: lend::Pipe::new().map(Rc::new).ok(),
            shared,
            cache,
            draining,
        }
    }

    /// The settings in force, taken over anew after a reload.
    fn settings(&self) -> Rc<LocalSettings> {
        let LocalCopy { current, settings } = &mut *self.local.borrow_mut();
        let current = current.load();
        if !Arc::ptr_eq(current, &settings.shared) {
            *settings = LocalSettings::new(current.clone());
        }
        settings.clone()
    }

    pub fn limits(&self) -> Limits {
        self.settings().shared.limits
    }

    /// Answers one request.
    pub async fn handle(&self, request: Rc<Request>, body: ClientBody) -> Response {
        match self.answer_at_once(&request) {
            Ok(response) => response,
            Err(pending) => self.answer(request, body, pending).await,
        }
    }

    /// Whatever takes no waiting: refusals, and hits whose bytes are in memory. The rest comes back for
    /// [`Proxy::answer`].
    pub fn answer_at_once(&self, request: &Rc<Request>) -> Result<Response, Pending> {
        let settings = self.settings();
        if request.claims_peer
            && let Some(asked) = self.asked_by_peer(request, &settings)
        {
            return asked;
        }
        if let Some(refusal) = self.refusal(request, &settings.shared) {
            return Ok(refusal.respond(Report::of(request, None)));
        }
        let host = host_of(&request.authority);
        let Some(place) = (settings.shared.route)(host, &request.target) else {
            return Ok(respond::no_origin().respond(Report::of(request, None)));
        };
        let origin = &settings.origins[place];
        if !is_cacheable_form(request) {
            let route = settings.route_to(origin, request);
            return Err(match request.method.as_str() {
                PURGE => Pending::Purge(route),
                _ => Pending::Pass(route),
            });
        }
        let ranges = match request.method {
            Method::GET => range::parse(&request.headers, settings.shared.limits.max_ranges),
            _ => Ranges::None,
        };
        let key = CacheKey::new(request.client.scheme, &request.authority, &request.target);
        let now = clock::at(request.received);
        let found = self
            .cache
            .shared
            .lookup(&cache_request(request, &key, &ranges, origin), now);
        let found = match found {
            Lookup::Fresh(stored) => {
                let how = self.how_hit(&stored);
                match self.deliver_cached(request, origin, &ranges, stored, how, now) {
                    Ok(response) => {
                        self.foretell(request, origin, &response);
                        return Ok(response);
                    }
                    Err(stored) => Found::Fresh(stored, how),
                }
            }
            other => Found::Other(other),
        };
        let question = Question {
            request: request.clone(),
            key,
            ranges,
            route: settings.route_to(origin, request),
        };
        Err(Pending::Cacheable(Box::new(question), found))
    }

    /// Answers what could not be answered at once.
    pub async fn answer(
        &self,
        request: Rc<Request>,
        body: ClientBody,
        pending: Pending,
    ) -> Response {
        let origin = match &pending {
            Pending::Cacheable(question, _) => question.route.origin.clone(),
            Pending::Pass(route) | Pending::Purge(route) => route.origin.clone(),
            Pending::Peer(asked) => asked.question.route.origin.clone(),
        };
        let is_client = !matches!(pending, Pending::Peer(_));
        let awaited = Awaited::new(self, &request, &origin);
        let response = match pending {
            Pending::Cacheable(question, found) => self.cached(*question, found).await,
            Pending::Pass(route) => self.pass(&request, body, &route).await,
            Pending::Purge(route) => self.purge(&request, &route).await,
            Pending::Peer(asked) => self.answer_peer(*asked).await,
        };
        awaited.end();
        if is_client {
            self.foretell(&request, &origin, &response);
        }
        response
    }

    /// Tells the prefetcher of what an answer, or its request, names as the next.
    #[inline]
    fn foretell(&self, request: &Request, origin: &OriginRules, response: &Response) {
        if let Some(stored) = &response.stored {
            stored.body.used.note();
        }
        if let Some(rules) = &origin.prefetch {
            self.foretell_by(rules, request, response);
        }
    }

    #[inline(never)]
    fn foretell_by(&self, rules: &prefetch::Rules, request: &Request, response: &Response) {
        if request.method != Method::GET
            || !matches!(
                response.status,
                StatusCode::OK | StatusCode::PARTIAL_CONTENT
            )
        {
            return;
        }
        let stored = response.stored.as_deref();
        let said = stored.map_or(&response.headers, |stored| &stored.head.headers);
        let (asked, target) = (&request.headers, &request.target);
        // Nor do caches in front of one another go further the more there are.
        if !prefetch::names_something(rules, asked, target, said) || asked.contains_key(SEC_PURPOSE)
        {
            return;
        }
        let used = stored.map(|stored| &stored.body.used);
        // What a request names is its client's own; what an answer names is the same for all.
        let is_due = rules.cmcd && cmcd::may_name_next(asked, target)
            || used.is_none_or(|used| used.is_due(clock::now_secs()));
        if !is_due {
            return;
        }
        let Some(selecting) = stored.map_or_else(|| Some(HeaderMap::new()), prefetch::selecting)
        else {
            return;
        };
        let hint = || Hint {
            scheme: request.client.scheme,
            authority: request.authority.clone(),
            target: target.clone(),
            said: prefetch::said(said),
            asked: prefetch::asked(asked),
            selecting,
        };
        if !self.cache.shared.prefetcher.tell(hint)
            && let Some(used) = used
        {
            used.is_due_again();
        }
    }

    /// Requests that are answered here, whatever origin they are for.
    fn refusal(&self, request: &Request, settings: &Settings) -> Option<respond::Refusal> {
        if hop::cdn_loop_contains(&request.headers, &self.shared.identity.cdn_id) {
            self.shared.metrics.bad_requests.increment(BadRequest::Loop);
            return Some(respond::loop_detected());
        }
        // Who may not purge is not told that others may.
        let may_not = match request.method.as_str() {
            "TRACE" | "BAN" => true,
            PURGE => !(settings.may_purge)(&request.headers, request.client.address),
            _ => false,
        };
        if may_not {
            return Some(respond::method_not_allowed());
        }
        if request.method == Method::OPTIONS
            && hop::max_forwards(&request.headers) == MaxForwards::Exhausted
        {
            return Some(respond::options_here());
        }
        None
    }

    /// Purges the tags that `Surrogate-Key` names, else the target; softly if a field says so.
    async fn purge(&self, request: &Rc<Request>, route: &Route) -> Response {
        let is_soft = SOFT_PURGE
            .iter()
            .any(|name| request.headers.get(*name).is_some_and(|value| value == "1"));
        let mut selectors: Vec<Selector> = tags::named_tags(&request.headers)
            .into_iter()
            .map(|tag| Selector::Tag(tag.into_vec().into()))
            .collect();
        if !request.headers.contains_key("surrogate-key") {
            selectors.push(Selector::Url {
                scheme: request.client.scheme,
                authority: request.authority.clone(),
                target: request.target.clone(),
            });
        }
        let nodes = (self.shared.purge)(selectors, is_soft).await;
        respond::purged(&nodes, Report::of(request, Some(&route.origin)))
    }

    /// The long way: whatever a lookup finds, until there is an answer.
    async fn cached(&self, question: Question, found: Found) -> Response {
        let mut found = Some(found);
        let mut failure = Failure::BadGateway("changed-too-often");
        for _ in 0..MAX_ATTEMPTS {
            let lookup = || {
                self.cache
                    .shared
                    .lookup(&question.for_cache(), clock::now())
            };
            let (stored, how) = match found.take().unwrap_or_else(|| Found::Other(lookup())) {
                Found::Fresh(stored, how) => (stored, how),
                Found::Other(lookup) => match self.find(&question, lookup).await {
                    Answer::Stored(stored, how) => (stored, how),
                    Answer::Passed(passed, how) => {
                        return self.passed_on(question, *passed, how).await;
                    }
                    Answer::Failed(failure, how) => {
                        return respond::failed(failure, how, question.report());
                    }
                },
            };
            match self.deliver(&question, stored, how).await {
                Ok(response) => return response,
                Err(error) => failure = deliver::failure(error),
            }
        }
        let how = How {
            forward: Some(Forward::Partial),
            detail: Some(failure.detail()),
            ..How::default()
        };
        respond::failed(failure, how, question.report())
    }

    /// Gets an answer, by what a lookup has found.
    async fn find(&self, question: &Question, found: Lookup) -> Answer {
        let make = || self.upstream_fields(question);
        let upstream = UpstreamFields {
            make: &make,
            interim: question.request.interims.clone().map(interim_sink),
        };
        let request = &question.for_cache();
        match found {
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
            &question.request,
            question.request.headers.clone(),
            question.route.trusted,
        )
    }

    /// `headers` as they leave this node for the origin of `request`.
    fn forwardable(&self, request: &Request, mut headers: HeaderMap, trusted: bool) -> HeaderMap {
        hop::strip_hop_by_hop(&mut headers);
        peer::strip_fields(&mut headers);
        let forwarded = Forwarded {
            client: request.client.address,
            scheme: request.client.scheme,
            authority: &request.authority,
            trusted,
        };
        hop::set_forwarded(&mut headers, forwarded);
        hop::append_via(
            &mut headers,
            request.version,
            &self.shared.identity.pseudonym,
        );
        hop::append_cdn_loop(&mut headers, &self.shared.identity.cdn_id);
        headers
    }

    /// A request that the cache has no part in: streamed both ways.
    async fn pass(&self, request: &Rc<Request>, body: ClientBody, route: &Route) -> Response {
        let why = match request.method {
            Method::GET | Method::HEAD => Forward::Bypass,
            _ => Forward::Method,
        };
        let report = Report::of(request, Some(&route.origin));
        let wants_upgrade = request.upgrade && body.is_empty();
        let mut headers = self.forwardable(request, request.headers.clone(), route.trusted);
        if request.method == Method::OPTIONS
            && let MaxForwards::Left(left) = hop::max_forwards(&headers)
        {
            headers.insert(header::MAX_FORWARDS, HeaderValue::from(left));
        }
        if wants_upgrade {
            for value in request.headers.get_all(header::UPGRADE) {
                headers.append(header::UPGRADE, value.clone());
            }
        }
        let authority = route.origin.authority_for(&request.authority);
        let mut upstream =
            UpstreamRequest::new(request.method.clone(), request.target.clone(), authority);
        upstream.headers = headers;
        upstream.upgrade = wants_upgrade;
        // What a GET or HEAD carries means nothing (RFC 9110 §9.3.1) and is not sent on.
        if why == Forward::Method {
            upstream.body = body.into_upstream();
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
                return respond::failed(failure, how, report);
            }
        };
        how.forward_status = Some(response.status);
        if freshness::invalidates(&request.method, response.status) {
            self.invalidate(request, &response.headers);
        }
        if let Some(upgraded) = response.upgraded.take() {
            return Response {
                status: response.status,
                stored: None,
                age: None,
                headers: response.headers,
                length: None,
                body: Body::Tunnel(Box::new(upgraded)),
                how,
                ttl: None,
                report,
            };
        }
        hop::strip_hop_by_hop(&mut response.headers);
        complete_head(&mut response, &self.shared.identity.pseudonym, clock::now());
        let is_head = request.method == Method::HEAD;
        respond::through(response, is_head, how, report)
    }

    /// RFC 9111 §4.4: a successful unsafe request invalidates its target and what it points to.
    fn invalidate(&self, request: &Request, response: &HeaderMap) {
        let scheme = request.client.scheme;
        let cache = &self.cache.shared;
        let own = CacheKey::new(scheme, &request.authority, &request.target);
        let mut removed = cache.invalidate(&own);
        let targets =
            freshness::invalidation_targets(scheme, &request.authority, &request.target, response);
        for (authority, target) in targets {
            removed += cache.invalidate(&CacheKey::new(scheme, &authority, &target));
        }
        // RFC 9875 §3: groups of the origin that was asked, and of no other.
        let mut removed = removed as u64;
        for group in tags::invalidated_groups(response) {
            removed += cache.purge_soon(Selector::Group {
                scheme,
                authority: request.authority.clone(),
                group: group.into_vec().into(),
            });
        }
        self.shared.metrics.invalidations.add((), removed);
    }

    /// An uncacheable answer to a cacheable question: cut to the client's range and conditions.
    async fn passed_on(&self, question: Question, passed: cache::Passed, how: How) -> Response {
        match deliver::passed(&question, passed, how) {
            Ok(response) => response,
            // Asked for in the cache's words, it does not fit the client's: asked again in the client's.
            Err(()) => {
                let Question { request, route, .. } = &question;
                Box::pin(self.pass(request, ClientBody::Empty, route)).await
            }
        }
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

    /// Gives the reason that it is counted under.
    pub fn count_malformed(&self, error: &HeadError) -> BadRequest {
        let reason = match error {
            HeadError::Malformed(_) => BadRequest::Syntax,
            HeadError::Framing(_) => BadRequest::Framing,
            HeadError::Host(_) => BadRequest::Host,
            HeadError::Target(_) => BadRequest::Target,
            HeadError::Method(_) => BadRequest::Method,
            HeadError::NotSupported(_) => BadRequest::TransferEncoding,
            HeadError::TargetTooLong => BadRequest::UriTooLong,
            HeadError::TooLarge => BadRequest::HeadersTooLarge,
            HeadError::Expectation => BadRequest::Expectation,
            HeadError::Version => BadRequest::Version,
        };
        self.shared.metrics.bad_requests.increment(reason);
        reason
    }

    pub fn count_timeout(&self, phase: TimeoutPhase) {
        self.shared.metrics.client_timeouts.increment(phase);
    }

    pub fn count_client_gone(&self) {
        self.shared.metrics.clients_gone.increment(());
    }
}

/// What cannot be answered without waiting.
pub enum Pending {
    /// May be answered from the cache.
    Cacheable(Box<Question>, Found),
    /// The cache has no part in it.
    Pass(Route),
    /// By somebody who may.
    Purge(Route),
    /// Another node's.
    Peer(Box<peers::Asked>),
}

/// An answer that a client waits for. Dropped before its end, the client has left.
struct Awaited<'p> {
    proxy: &'p Proxy,
    request: &'p Request,
    origin: &'p OriginRules,
    over: bool,
}

impl<'p> Awaited<'p> {
    fn new(proxy: &'p Proxy, request: &'p Request, origin: &'p OriginRules) -> Awaited<'p> {
        Awaited {
            proxy,
            request,
            origin,
            over: false,
        }
    }

    fn end(mut self) {
        self.over = true;
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.proxy.left(self.request, self.origin);
        }
    }
}

/// What the lookup of a pending request has found.
pub enum Found {
    /// Usable, but not in memory.
    Fresh(Arc<Stored>, How),
    /// Anything else.
    Other(Lookup),
}

/// Where a request goes and what its client is believed.
pub struct Route {
    origin: Rc<OriginRules>,
    trusted: bool,
}

/// A request that may be answered from the cache.
pub struct Question {
    request: Rc<Request>,
    key: CacheKey,
    ranges: Ranges,
    route: Route,
}

impl Question {
    fn for_cache(&self) -> cache::Request<'_> {
        cache_request(&self.request, &self.key, &self.ranges, &self.route.origin)
    }

    fn report(&self) -> Report {
        Report::of(&self.request, Some(&self.route.origin))
    }
}

fn cache_request<'a>(
    request: &'a Request,
    key: &'a CacheKey,
    ranges: &Ranges,
    origin: &'a Rc<OriginRules>,
) -> cache::Request<'a> {
    cache::Request {
        key,
        method: &request.method,
        authority: &request.authority,
        target: &request.target,
        headers: &request.headers,
        wanted: wanted(ranges),
        origin,
    }
}

/// The cache answers requests that have no body, no preconditions for the origin to judge (RFC 9111
/// §4.3.2), and want no other protocol.
fn is_cacheable_form(request: &Request) -> bool {
    matches!(request.method, Method::GET | Method::HEAD)
        && !request.has_body
        && !request.upgrade
        && request.target.first() == Some(&b'/')
        && !conditional::has_unconditional_preconditions(&request.headers)
}

fn host_of(authority: &str) -> &str {
    match memchr::memrchr2(b':', b']', authority.as_bytes()) {
        Some(at) if authority.as_bytes()[at] == b':' => &authority[..at],
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
