//! What may answer a request, and the bytes behind the answer.
//!
//! ```text
//! lookup ─► Fresh ──────────────────────────────────────────► Answer::Stored
//!        ─► Stale, may be served while it is validated ─────► Answer::Stored (+ a validation behind it)
//!        ─► Stale | Miss ─► fetch ─► join a flight ─┬─ shareable ─► Answer::Stored (its body may still be filling)
//!                                 └► lead a flight ─┴─ not ───────► Answer::Passed (each its own)
//! ```
//!
//! Kept true here:
//! - A lookup takes no lock, makes no system call and decides by pure functions of head and clock.
//! - A fault of the store is a miss. A fault of the origin is answered from what is stored, where the
//!   directives allow it.
//! - What one client may not share with another is never waited for twice.

pub mod body;
pub mod fill;
pub mod head;
pub mod hold;
pub mod inflight;
pub mod prefetch;
pub mod purge;
pub mod record;
pub mod residency;

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::Notify;

use crate::block::BlockIndex;
use crate::cache::fill::{Exchange, Fetcher, Led};
use crate::cache::inflight::{FlightKey, Inflight, Kind, Outcome, Part};
use crate::cache::prefetch::Prefetcher;
use crate::cache::purge::{Purge, Purged, Selector};
use crate::cache::record::{Record, Recorder};
use crate::cache::residency::{Residency, Standing, Stored};
use crate::clock::{self, HybridClock, Stamp};
use crate::origin::{self, UpstreamResponse};
use crate::peer;
use crate::semantics::asker;
use crate::semantics::freshness::{Decision, Rules};
use crate::semantics::key::CacheKey;
use crate::store::Store;
use crate::telemetry::{Metrics, OriginId, PurgeMode};

pub use crate::store::may_lend;
pub use body::{BodyError, Reader};

/// How long a key whose answer could not be shared is asked for without waiting for one another.
const UNSHAREABLE_SECS: u64 = 60;

/// One origin as the cache sees it: where it is, and by which rules its answers are kept.
#[derive(Clone, Debug)]
pub struct OriginRules {
    pub name: Arc<str>,
    /// Its place in the metrics.
    pub id: OriginId,
    pub upstream: Arc<origin::Settings>,
    pub caching: Rules,
    /// How far a fill goes on after the range that was asked for, in bytes.
    pub read_ahead: u64,
    /// Present bytes that are asked for again rather than making two requests, in bytes.
    pub merge_gap: u64,
    /// How long a fill goes on that nobody reads.
    pub linger: Duration,
    /// What is sent as `Host`, if not what the client sent.
    pub host: Option<Box<str>>,
    /// What every node should hold.
    pub record: Record,
    /// Whether other nodes are asked first.
    pub peer: peer::Mode,
    /// How long other nodes are waited for before the origin is asked.
    pub peer_timeout: Duration,
    /// How what its answers name is fetched before it is asked for, if it is.
    pub prefetch: Option<Arc<prefetch::Rules>>,
}

impl OriginRules {
    /// The authority to ask for, for a client that asked for `client`.
    pub fn authority_for(&self, client: &str) -> Box<str> {
        match &self.host {
            Some(host) => host.clone(),
            None if client.is_empty() => self.upstream.host.clone(),
            None => client.into(),
        }
    }
}

/// The part of the cache that all threads share.
#[derive(Clone)]
pub struct Cache {
    pub store: Store,
    pub residency: Arc<Residency>,
    pub inflight: Arc<Inflight>,
    /// Stamps what is asked for, and purges.
    pub clock: Arc<HybridClock>,
    /// Told when there may be something to sweep.
    pub sweeper: Arc<Notify>,
    pub recorder: Arc<Recorder>,
    pub prefetcher: Arc<Prefetcher>,
    pub metrics: Arc<Metrics>,
    pub switches: Arc<Switches>,
}

/// Origins that an operator has switched off, by name, until the process ends: nobody asks them, as if they could not
/// be reached.
#[derive(Debug, Default)]
pub struct Switches(ArcSwap<BTreeSet<Box<str>>>);

impl Switches {
    pub fn is_off(&self, origin: &str) -> bool {
        self.0.load().contains(origin)
    }

    pub fn set(&self, origin: &str, is_off: bool) {
        self.0.rcu(|known| {
            let mut known = BTreeSet::clone(known);
            match is_off {
                true => known.insert(origin.into()),
                false => known.remove(origin),
            };
            known
        });
    }
}

/// A client's GET or HEAD, as far as the cache has to know it.
pub struct Request<'a> {
    pub key: &'a CacheKey,
    pub method: &'a Method,
    pub authority: &'a Arc<str>,
    /// Origin-form target, byte for byte.
    pub target: &'a Bytes,
    /// The client's fields: they select the variant and are judged for what they allow.
    pub headers: &'a HeaderMap,
    /// Byte range that a miss should begin with.
    pub wanted: Wanted,
    pub origin: &'a Rc<OriginRules>,
}

/// The first bytes a client wants of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    All,
    /// From the first offset up to the second, if there is one.
    Span(u64, Option<u64>),
    /// The last bytes.
    Suffix(u64),
}

/// Why a request goes towards the origin (RFC 9211 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Request,
    Stale,
    Partial,
}

/// How an answer came about: `Cache-Status`, log and metrics are made from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// `None` is a hit.
    pub forward: Option<Forward>,
    pub forward_status: Option<StatusCode>,
    pub stored: bool,
    pub collapsed: bool,
    /// A stale response was validated and may be used again.
    pub revalidated: bool,
    /// Served although it is stale.
    pub stale: Option<StaleReason>,
    pub detail: Option<&'static str>,
    /// Made up by this node, without a look at cache or origin.
    pub synthetic: bool,
}

impl How {
    pub fn is_hit(&self) -> bool {
        self.forward.is_none() && !self.synthetic
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReason {
    WhileRevalidate,
    IfError,
    Unreachable,
}

/// Why no answer can be had. Which status that becomes is decided in one place, by the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The origin could not be reached, or not be understood.
    BadGateway(&'static str),
    /// The origin did not answer in time.
    GatewayTimeout(&'static str),
    /// Too many others wait for this origin.
    Busy(&'static str),
    /// The client broke off its own request, or asked for what cannot be said to the origin.
    BadRequest(&'static str),
    /// The client sent its own request too slowly.
    RequestTimeout(&'static str),
    /// `only-if-cached`, and nothing usable is.
    OnlyIfCached,
}

impl Failure {
    pub fn detail(self) -> &'static str {
        match self {
            Failure::BadGateway(detail)
            | Failure::GatewayTimeout(detail)
            | Failure::Busy(detail)
            | Failure::BadRequest(detail)
            | Failure::RequestTimeout(detail) => detail,
            Failure::OnlyIfCached => "only-if-cached",
        }
    }
}

pub enum Answer {
    Stored(Arc<Stored>, How),
    /// From the origin, for this client alone.
    Passed(Box<Passed>, How),
    Failed(Failure, How),
}

/// A response that is not stored, on its way through.
pub struct Passed {
    pub response: UpstreamResponse,
    /// The upstream was asked for more than the client: of its bytes, those from the first to the
    /// second offset (of the representation) are the client's. The whole length is given too.
    pub window: Option<Window>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Offset of the first byte that the upstream sends.
    pub starts_at: u64,
    pub complete_length: u64,
}

/// What a lookup found.
pub enum Lookup {
    Fresh(Arc<Stored>),
    /// May be served now, and should be validated behind the client's back.
    StaleWhileRevalidate(Arc<Stored>),
    Stale(Arc<Stored>),
    Miss(Forward),
    /// The request forbids to go further.
    Forbidden,
}

impl Cache {
    /// What is stored for this request, and whether it may be used as it is.
    pub fn lookup(&self, request: &Request<'_>, now: SystemTime) -> Lookup {
        let rules = &request.origin.caching;
        let stored = match self.residency.select(request.key, request.headers) {
            Some(Some(stored)) => stored,
            Some(None) => return miss(Forward::VaryMiss, request, rules),
            None => return miss(Forward::UriMiss, request, rules),
        };
        self.store.touch(&stored.body.object, now);
        match self.decide(&stored, request, now) {
            Decision::Fresh | Decision::StaleAllowed => {
                stored.body.answers.note(chance(now));
                if request.origin.record.counts_hits() {
                    self.recorder
                        .answered(request.origin, &stored, &self.metrics);
                }
                Lookup::Fresh(stored)
            }
            Decision::StaleWhileRevalidate => {
                stored.body.answers.note(chance(now));
                Lookup::StaleWhileRevalidate(stored)
            }
            Decision::Validate => Lookup::Stale(stored),
            Decision::OnlyIfCached => Lookup::Forbidden,
        }
    }

    /// Whether it may be used, and how.
    pub fn decide(&self, stored: &Stored, request: &Request<'_>, now: SystemTime) -> Decision {
        let rules = &request.origin.caching;
        let freshness = &stored.head.freshness;
        match self.residency.standing(stored) {
            Standing::Good => freshness.decide(request.headers, rules, now),
            Standing::StaleSince(since) => {
                let freshness = freshness.stale_since(since);
                freshness.decide(request.headers, rules, now)
            }
            // RFC 9111 §5.2.1.7: what would have to be validated may not be used, and nobody may be asked.
            Standing::Outdated if rules.only_if_cached(request.headers) => Decision::OnlyIfCached,
            Standing::Outdated => Decision::Validate,
        }
    }

    /// Removes every variant of a key (RFC 9111 §4.4), and keeps no answer to a question about it that
    /// is under way. Returns how many variants there were.
    pub fn invalidate(&self, key: &CacheKey) -> usize {
        // Before the removal: what another node was asked for earlier is not put in its place.
        self.residency.note_invalidated(key, self.clock.tick());
        self.inflight.overtake(key.hash());
        self.residency.invalidate(key)
    }

    /// Removes what the selector is about, or makes it stale. From the moment this returns, nothing of it
    /// is served that was asked for before, also after a crash; what is being sent goes on. Once polled,
    /// it is applied, even if the future is dropped.
    pub async fn purge(&self, selector: Selector, soft: bool) -> Purged {
        self.begin_purge(selector, soft, Stamp::default()).await
    }

    /// [`Cache::purge`], applied when this returns, later than `seen`, which is another node's stamp: what was
    /// asked for here before now is purged. The future tells what it came to; it needs a tokio runtime.
    pub fn begin_purge(
        &self,
        selector: Selector,
        soft: bool,
        seen: Stamp,
    ) -> impl Future<Output = Purged> + Send + use<> {
        self.clock.witness(seen);
        let (matched, purge, written) = self.apply(selector, soft);
        let cache = self.clone();
        async move {
            let matched = match (matched, purge.selector) {
                (Some(matched), _) => matched,
                (
                    None,
                    Selector::Prefix {
                        scheme,
                        authority,
                        path,
                    },
                ) => {
                    let (residency, before) = (cache.residency.clone(), purge.stamp);
                    let count = move || residency.count_prefix(scheme, &authority, &path, before);
                    // It only fails with the runtime, and then nobody waits for the number.
                    tokio::task::spawn_blocking(count).await.unwrap_or_default()
                }
                (None, _) => 0,
            };
            let is_durable = written.await;
            cache.wake_sweeper(matched);
            Purged {
                matched,
                is_durable,
            }
        }
    }

    /// Applies a purge without waiting for the disk: as durable as an invalidation is. For what an answer
    /// invalidates besides its URL (RFC 9875 §3).
    pub fn purge_soon(&self, selector: Selector) -> u64 {
        let (matched, ..) = self.apply(selector, false);
        let matched = matched.unwrap_or_default();
        self.wake_sweeper(matched);
        matched
    }

    /// What was not stored yet is judged when it comes: only what was gives space back, or has a row in the index.
    fn wake_sweeper(&self, matched: u64) {
        if matched > 0 {
            self.residency.note_purged();
            self.sweeper.notify_one();
        }
    }

    fn apply(
        &self,
        selector: Selector,
        soft: bool,
    ) -> (
        Option<u64>,
        Purge,
        impl Future<Output = bool> + Send + use<>,
    ) {
        let stamp = self.clock.tick();
        let mode = if soft {
            PurgeMode::Soft
        } else {
            PurgeMode::Hard
        };
        self.metrics.purges.increment((selector.label(), mode));
        let purge = Purge {
            selector,
            soft,
            stamp,
        };
        let (matched, rows) = self.residency.purge(&purge);
        if let (false, Some(key)) = (soft, purge.selector.key()) {
            // Those who ask from now on do not wait for an answer that they may not have.
            self.inflight.overtake(key.hash());
        }
        (matched, purge, self.store.record_purges(rows))
    }
}

/// The least of the clock's digits: what nobody can choose.
fn chance(now: SystemTime) -> u32 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.subsec_nanos())
}

fn miss(why: Forward, request: &Request<'_>, rules: &Rules) -> Lookup {
    if rules.only_if_cached(request.headers) {
        Lookup::Forbidden
    } else {
        Lookup::Miss(why)
    }
}

/// The cache on one data thread, with its own way to the origins.
#[derive(Clone)]
pub struct LocalCache {
    pub shared: Cache,
    pub fetcher: Rc<Fetcher>,
}

impl LocalCache {
    /// Asks the origin, or waits for an answer that somebody else is already getting.
    ///
    /// `forwarded` makes the fields that go upstream; it is called at most twice.
    pub async fn fetch(
        &self,
        request: &Request<'_>,
        stale: Option<Arc<Stored>>,
        why: Forward,
        upstream: &UpstreamFields<'_>,
    ) -> Answer {
        self.fetch_as(request, stale, why, upstream, true).await
    }

    /// The same for another node: no third is asked. Where this one is asking others for its own clients, the wait
    /// for them is theirs.
    pub async fn fetch_for_peer(
        &self,
        request: &Request<'_>,
        stale: Option<Arc<Stored>>,
        why: Forward,
        upstream: &UpstreamFields<'_>,
    ) -> Answer {
        self.fetch_as(request, stale, why, upstream, false).await
    }

    async fn fetch_as(
        &self,
        request: &Request<'_>,
        mut stale: Option<Arc<Stored>>,
        why: Forward,
        upstream: &UpstreamFields<'_>,
        may_ask_peers: bool,
    ) -> Answer {
        let mut lead = None;
        if self.may_collapse(request) {
            // The second time the variant is known: those who cannot share the first answer's variant
            // may still share one of their own. So may those whose answer was overtaken, or is to be
            // validated each time.
            for _ in 0..2 {
                let key = self.flight_key(request, stale.as_deref());
                match self.shared.inflight.take_part(key) {
                    Part::Lead(leading) => {
                        // Another flight may have ended since the lookup.
                        if let Lookup::Fresh(stored) = self.shared.lookup(request, clock::now()) {
                            leading.resolve(Outcome::Stored(stored.clone()));
                            let collapsed = true;
                            let forward = Some(why);
                            let how = How {
                                forward,
                                collapsed,
                                ..How::default()
                            };
                            return Answer::Stored(stored, how);
                        }
                        lead = Some(leading);
                        break;
                    }
                    Part::Join(flight) => {
                        self.shared.metrics.fills_joined.increment(());
                        match self.joined(request, why, flight.outcome().await) {
                            Joined::Answer(answer) => return answer,
                            Joined::Again => {}
                            Joined::Validate(stored) => stale = Some(stored),
                            Joined::Alone => {
                                self.shared.metrics.fills_unshared.increment(());
                                break;
                            }
                        }
                    }
                }
            }
        }
        let lead = lead.unwrap_or_else(|| self.shared.inflight.alone(*request.key.hash()));
        let mut exchange = Exchange::new(request, stale, upstream, lead);
        if !may_ask_peers {
            exchange = exchange.for_peer();
        }
        let led = self.fetcher.lead(exchange).await;
        self.answer(led, why)
    }

    /// Validates behind the client's back, unless somebody does already.
    pub fn validate_behind(
        &self,
        request: &Request<'_>,
        stale: Arc<Stored>,
        upstream: &UpstreamFields<'_>,
    ) {
        let Part::Lead(lead) = self
            .shared
            .inflight
            .take_part(self.flight_key(request, None))
        else {
            return;
        };
        let exchange = Exchange::new(request, Some(stale), upstream, lead).in_background();
        self.fetcher.spawn(exchange);
    }

    /// `stale` is what would be validated: if it has to be each time, its validation is shared by those
    /// whom nothing sets apart.
    fn flight_key(&self, request: &Request<'_>, stale: Option<&Stored>) -> FlightKey {
        let resource = self.shared.residency.find(request.key);
        let variant = resource.and_then(|resource| resource.variant_of(request.headers));
        FlightKey {
            key: *request.key.hash(),
            kind: Kind {
                variant: variant.map(|variant| variant.as_bytes().into()),
                is_head: *request.method == Method::HEAD,
                asker: stale
                    .filter(|stale| stale.head.freshness.arrived_stale())
                    .map(|_| asker::asker(request.headers)),
            },
        }
    }

    /// Waiting is worth it where the answer may be for several: not for what a user was authorised for,
    /// nor where the last answer could not be shared.
    fn may_collapse(&self, request: &Request<'_>) -> bool {
        *request.method == Method::GET
            && !request.headers.contains_key(http::header::AUTHORIZATION)
            && !self
                .shared
                .residency
                .is_unshareable(request.key, crate::clock::now_secs())
    }

    fn joined(&self, request: &Request<'_>, why: Forward, outcome: Outcome) -> Joined {
        let how = How {
            forward: Some(why),
            collapsed: true,
            ..How::default()
        };
        match outcome {
            Outcome::Stored(stored) if stored.matches(request.headers) => {
                Joined::Answer(Answer::Stored(stored, how))
            }
            Outcome::ToValidate(stored) if stored.matches(request.headers) => {
                Joined::Validate(stored)
            }
            Outcome::Stored(_) | Outcome::ToValidate(_) | Outcome::Overtaken => Joined::Again,
            Outcome::Stale(stored, reason, detail) if stored.matches(request.headers) => {
                let stale = Some(reason);
                Joined::Answer(Answer::Stored(
                    stored,
                    How {
                        stale,
                        detail: Some(detail),
                        ..how
                    },
                ))
            }
            Outcome::Stale(..) | Outcome::GoAlone => Joined::Alone,
            Outcome::Failed(failure) => {
                let detail = Some(failure.detail());
                Joined::Answer(Answer::Failed(failure, How { detail, ..how }))
            }
        }
    }

    fn answer(&self, led: Led, why: Forward) -> Answer {
        let how = How {
            forward: Some(why),
            ..How::default()
        };
        match led {
            Led::Stored {
                stored,
                status,
                detail,
            } => Answer::Stored(
                stored,
                How {
                    forward_status: Some(status),
                    stored: true,
                    detail,
                    ..how
                },
            ),
            Led::Validated(stored) => Answer::Stored(
                stored,
                How {
                    forward_status: Some(StatusCode::NOT_MODIFIED),
                    revalidated: true,
                    ..how
                },
            ),
            Led::Stale {
                stored,
                reason,
                status,
                detail,
            } => Answer::Stored(
                stored,
                How {
                    stale: Some(reason),
                    forward_status: status,
                    detail: Some(detail),
                    ..how
                },
            ),
            Led::Passed { passed, detail } => {
                let forward_status = Some(passed.response.status);
                Answer::Passed(
                    passed,
                    How {
                        forward_status,
                        detail,
                        ..how
                    },
                )
            }
            Led::Failed(failure) => {
                let detail = Some(failure.detail());
                Answer::Failed(failure, How { detail, ..how })
            }
        }
    }

    /// A reader of part of a stored body, which asks the origin for what is not here.
    pub fn reader(
        &self,
        stored: &Arc<Stored>,
        span: Range<u64>,
        request: &Request<'_>,
        upstream: &UpstreamFields<'_>,
    ) -> Reader {
        // Several blocks take time to read, in which one of them may be lost.
        let block_size = self.shared.store.block_size();
        let is_long = span.end.saturating_sub(span.start) > u64::from(block_size.get());
        let may_lack = !stored.body.object.is_complete() || is_long && stored.body.joinable;
        let refill = may_lack.then(|| self.fetcher.refill(request, stored, upstream));
        Reader::new(self.shared.store.clone(), stored.body.clone(), span, refill)
    }

    /// A reader of bytes that are all here, which asks nobody for any. `None` where one is not.
    pub fn reader_of_held(&self, stored: &Arc<Stored>, span: Range<u64>) -> Option<Reader> {
        let store = &self.shared.store;
        let object = &stored.body.object;
        let mut blocks = store.block_size().span(span.clone());
        let is_held =
            object.is_complete() || blocks.all(|index| object.contains(BlockIndex(index)));
        is_held.then(|| Reader::new(store.clone(), stored.body.clone(), span, None))
    }

    /// Bytes of a stored body from the memory tier: of one block, or of two that adjoin, as most ranges
    /// that are shorter than a block need. The second part is empty where one is enough.
    pub fn cached(&self, stored: &Stored, span: Range<u64>) -> Option<(Bytes, Bytes)> {
        let block_size = self.shared.store.block_size();
        let first = block_size.index_of(span.start);
        let border = block_size.start(first) + u64::from(block_size.get());
        if span.end <= border {
            return Some((self.cached_part(stored, first, span)?, Bytes::new()));
        }
        let second = BlockIndex(first.0.checked_add(1)?);
        if span.end > border + u64::from(block_size.get()) {
            return None;
        }
        let head = self.cached_part(stored, first, span.start..border)?;
        let tail = self.cached_part(stored, second, border..span.end)?;
        Some((head, tail))
    }

    fn cached_part(&self, stored: &Stored, index: BlockIndex, span: Range<u64>) -> Option<Bytes> {
        let store = &self.shared.store;
        let start = store.block_size().start(index);
        let block = store.cached(&stored.body.object, index)?;
        let from = usize::try_from(span.start - start).ok()?;
        let to = usize::try_from(span.end - start).ok()?;
        (to <= block.len()).then(|| block.slice(from..to))
    }
}

enum Joined {
    Answer(Answer),
    /// Stored, but not for these request fields; or overtaken.
    Again,
    /// Stored, and to be validated first.
    Validate(Arc<Stored>),
    Alone,
}

/// What makes the upstream's request fields from a client's; only called when there is a need.
pub struct UpstreamFields<'a> {
    pub make: &'a dyn Fn() -> HeaderMap,
    pub interim: Option<Rc<dyn Fn(StatusCode, HeaderMap)>>,
}
