//! Exchanges with an origin, and the fills they become.
//!
//! ```text
//!  Exchange ─ nothing stored ─► other nodes ─ one gives it ─► as if it may be stored, below
//!           ─ send ─► head ─ judge ─┬─ 304 ─────────► the stored head is updated
//!                                   ├─ may be stored ► Stored is findable ─ lead resolves ─► fill ─► whole
//!                                   ├─ error, and stale may be served ► the stale response
//!                                   └─ else ─────────► passed to the one who asked
//!  Refill   ─ send (Range, If-Range) ─► same representation? ─► fill of one missing run
//! ```
//!
//! Kept true here:
//! - An exchange runs in a task of its own: it outlives the client that began it, and its lead resolves.
//! - Bytes are joined to stored ones only under a strong validator that both exchanges agree on
//!   (RFC 9111 §3.4).
//! - A body that did not arrive whole stays only as blocks that a later request can complete; where that
//!   is impossible it is removed.

use std::cell::Cell;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use tokio::sync::oneshot;

use crate::block::BlockSize;
use crate::cache::body::{Body, BodyError, Bringer, Fill, FillWriter, RangeSupport};
use crate::cache::head::{self, Head};
use crate::cache::hold::{Pace, Shortfall};
use crate::cache::inflight::{Lead, Outcome};
use crate::cache::residency::{Insertion, Standing, Stored};
use crate::cache::{
    Cache, Failure, OriginRules, Passed, Request, StaleReason, UNSHAREABLE_SECS, UpstreamFields,
    Wanted, Window,
};
use crate::clock::{self, Stamp};
use crate::origin::{
    ErrorKind, Frame, OriginError, OriginPool, ResponseBody, UpstreamRequest, UpstreamResponse,
};
use crate::peer::{self, PeerNode, Peers};
use crate::semantics::conditional::{self, Validators};
use crate::semantics::freshness::{self, ErrorSituation, Freshness, NoStore};
use crate::semantics::key::{CacheKey, Scheme};
use crate::semantics::range::ContentRange;
use crate::semantics::vary::VarySpec;
use crate::semantics::{hop, update};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::{
    FillFailure, Metrics, OriginId, OriginOutcome, PeerOutcome, Uncacheable, Validation,
};

/// The way of one data thread to the origins.
pub struct Fetcher {
    pub cache: Cache,
    pub pool: OriginPool,
    pub peers: Arc<Peers>,
    /// Connections to other nodes.
    pub peer_pool: OriginPool,
    pub tasks: Tasks,
    /// This node's name in `Via`.
    pub pseudonym: Arc<str>,
}

/// One question to an origin that may end in a stored response.
pub struct Exchange {
    key: CacheKey,
    method: Method,
    authority: Arc<str>,
    target: Bytes,
    /// The client's fields, as the variant is selected by.
    request: HeaderMap,
    /// The fields that go upstream.
    upstream: HeaderMap,
    wanted: Wanted,
    origin: Rc<OriginRules>,
    stale: Option<Arc<Stored>>,
    lead: Lead,
    /// Before the question was sent: a purge that is later is about its answer too.
    began: Stamp,
    interim: Option<Rc<dyn Fn(StatusCode, HeaderMap)>>,
    /// `None` where the fill is to go on though nobody reads it.
    linger: Option<Duration>,
    /// Other nodes may be asked first.
    may_ask_peers: bool,
    /// For one who waits for the end of the fill.
    held: Option<HeldFill>,
}

/// A fill without a client, from the side of the one who has it made.
struct HeldFill {
    pace: Rc<Pace>,
    /// Told how the fill has ended, once what it brought is found. It goes without a word where there is none.
    ended: oneshot::Sender<Result<(), BodyError>>,
}

/// Why an answer was not stored that came too late.
pub const OVERTAKEN: &str = "invalidated";

/// What the one who asked gets.
pub enum Led {
    Stored {
        stored: Arc<Stored>,
        status: StatusCode,
        /// Where it came from, if not from the origin.
        detail: Option<&'static str>,
    },
    Validated(Arc<Stored>),
    Stale {
        stored: Arc<Stored>,
        reason: StaleReason,
        status: Option<StatusCode>,
        detail: &'static str,
    },
    Passed {
        passed: Box<Passed>,
        detail: Option<&'static str>,
    },
    Failed(Failure),
}

/// What is left to do once the one who asked has an answer.
enum Rest {
    Nothing,
    Fill {
        stored: Arc<Stored>,
        body: ResponseBody,
        writer: FillWriter,
        source: Source,
    },
}

/// Who answers.
enum Source {
    Origin(OriginId),
    Peer(Arc<PeerNode>),
}

impl Exchange {
    pub fn new(
        request: &Request<'_>,
        stale: Option<Arc<Stored>>,
        upstream: &UpstreamFields<'_>,
        lead: Lead,
    ) -> Exchange {
        Exchange {
            key: request.key.clone(),
            method: request.method.clone(),
            authority: request.authority.clone(),
            target: request.target.clone(),
            request: request.headers.clone(),
            upstream: (upstream.make)(),
            wanted: request.wanted.clone(),
            linger: Some(request.origin.linger),
            origin: request.origin.clone(),
            stale,
            lead,
            began: Stamp::default(),
            interim: upstream.interim.clone(),
            may_ask_peers: true,
            held: None,
        }
    }

    /// For another node: no third is asked.
    pub fn for_peer(mut self) -> Exchange {
        self.may_ask_peers = false;
        self
    }

    /// Without a client behind it.
    pub fn in_background(mut self) -> Exchange {
        self.interim = None;
        self.linger = None;
        self.wanted = Wanted::All;
        self
    }

    /// Without a client behind it, at this pace, and for one who waits for the end of the fill.
    pub fn held(mut self, pace: Rc<Pace>) -> (Exchange, oneshot::Receiver<Result<(), BodyError>>) {
        let (tell, ended) = oneshot::channel();
        self.held = Some(HeldFill { pace, ended: tell });
        (self.in_background(), ended)
    }

    /// Completes once the client behind it has gone and nobody else has waited for `linger`.
    async fn abandoned(&self, tell: Option<&mut oneshot::Sender<Led>>) {
        let Some(linger) = self.linger else {
            return std::future::pending().await;
        };
        if let Some(tell) = tell {
            tell.closed().await;
        }
        self.lead.abandoned(linger).await;
    }

    /// The bytes to ask for: whole blocks around those wanted, and the read-ahead. `None` is all.
    fn asked(&self, block_size: BlockSize) -> Option<Asked> {
        if self.method != Method::GET {
            return None;
        }
        match self.wanted {
            Wanted::All => None,
            Wanted::Span(from, to) => {
                let start = block_size.floor(from);
                let end = to.map(|to| block_size.ceil(to.saturating_add(self.origin.read_ahead)));
                (start > 0 || end.is_some()).then_some(Asked::Span(start, end))
            }
            // One block more than wanted, so that the block in which it begins is whole.
            Wanted::Suffix(length) => Some(Asked::Suffix(
                length.saturating_add(block_size.get() as u64),
            )),
        }
    }

    /// The fields that another node is sent: it has proven nothing yet, so none that belong to one user.
    fn peer_fields(&self, asked: Option<Asked>) -> HeaderMap {
        let mut fields = self.upstream.clone();
        for name in CONDITIONAL_FIELDS.into_iter().chain(PRIVATE_FIELDS) {
            fields.remove(name);
        }
        if let Some(asked) = asked {
            fields.insert(header::RANGE, asked.to_header());
        }
        fields
    }

    fn upstream_request(&mut self, asked: Option<&Asked>) -> UpstreamRequest {
        let mut headers = std::mem::take(&mut self.upstream);
        for name in CONDITIONAL_FIELDS {
            headers.remove(name);
        }
        if let Some(stale) = &self.stale {
            conditional::conditional_request(&mut headers, &stale.head.validators);
        }
        if let Some(asked) = asked {
            headers.insert(header::RANGE, asked.to_header());
        }
        let authority = self.origin.authority_for(&self.authority);
        let mut request = UpstreamRequest::new(self.method.clone(), self.target.clone(), authority);
        request.headers = headers;
        request
    }
}

/// Fields by which a client asks for less than the whole: the cache asks in its own words.
const CONDITIONAL_FIELDS: [header::HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// Fields of a request that belong to one user.
const PRIVATE_FIELDS: [header::HeaderName; 2] = [header::COOKIE, header::AUTHORIZATION];

/// A byte range in an upstream request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Span(u64, Option<u64>),
    Suffix(u64),
}

impl Asked {
    fn to_header(self) -> HeaderValue {
        let text = match self {
            Asked::Span(start, Some(end)) => format!("bytes={start}-{}", end - 1),
            Asked::Span(start, None) => format!("bytes={start}-"),
            Asked::Suffix(length) => format!("bytes=-{length}"),
        };
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"))
    }

    /// Whether a 206 that says `range` answers this question.
    fn is_answered_by(self, range: &ContentRange, length: u64) -> bool {
        let (start, end) = (range.span.start, range.span.end);
        match self {
            Asked::Span(from, to) => {
                start == from && to.is_none_or(|to| end <= to) && end <= length
            }
            Asked::Suffix(suffix) => start == length.saturating_sub(suffix) && end == length,
        }
    }
}

impl Fetcher {
    /// Runs an exchange in its own task and waits for what it gives the one who asked.
    pub async fn lead(self: &Rc<Self>, exchange: Exchange) -> Led {
        let (tell, told) = oneshot::channel();
        self.spawn_exchange(exchange, Some(tell));
        told.await
            .unwrap_or(Led::Failed(Failure::BadGateway("exchange-ended")))
    }

    /// Runs an exchange that nobody waits for.
    pub fn spawn(self: &Rc<Self>, exchange: Exchange) {
        self.spawn_exchange(exchange, None);
    }

    fn spawn_exchange(
        self: &Rc<Self>,
        mut exchange: Exchange,
        mut tell: Option<oneshot::Sender<Led>>,
    ) {
        let fetcher = self.clone();
        self.tasks.spawn(async move {
            let (linger, origin) = (exchange.linger, exchange.origin.clone());
            let held = exchange.held.take();
            let (led, rest) = fetcher.exchange(exchange, tell.as_mut()).await;
            if let Some(tell) = tell {
                // A client that has gone by now wants nothing any more; the fill goes on for others.
                let _ = tell.send(led);
            }
            if let Rest::Fill {
                stored,
                body,
                writer,
                source,
            } = rest
            {
                let is_peer = matches!(source, Source::Peer(_));
                let pace = held.as_ref().map(|held| &*held.pace);
                let terms = (linger, pace);
                let filled = fetcher.fill(&origin, source, &stored, body, writer, terms);
                let outcome = filled.await;
                if let Some(held) = held {
                    // What another node breaks off says nothing of the origin. Who waits may have lost interest.
                    let told = outcome.map_err(|error| match is_peer {
                        true => BodyError::Abandoned,
                        false => error,
                    });
                    let _ = held.ended.send(told);
                }
            }
        });
    }

    async fn exchange(
        &self,
        mut exchange: Exchange,
        mut tell: Option<&mut oneshot::Sender<Led>>,
    ) -> (Led, Rest) {
        let asked = exchange.asked(self.cache.store.block_size());
        exchange.began = self.cache.clock.tick();
        let of_peer = tokio::select! {
            biased;
            of_peer = self.ask_peers(&exchange, asked) => of_peer,
            () = exchange.abandoned(tell.as_deref_mut()) => {
                return (Led::Failed(Failure::BadGateway("abandoned")), Rest::Nothing);
            }
        };
        let (led, rest) = match of_peer {
            Some(of_peer) => of_peer,
            None => self.ask_origin(&mut exchange, asked, tell).await,
        };
        let outcome = match outcome(&led, exchange.lead.is_for_one_asker()) {
            Outcome::Failed(failure) => Outcome::Failed(failure),
            _ if exchange.lead.mark().is_overtaken() => Outcome::Overtaken,
            outcome if self.is_purged(&outcome) => Outcome::Overtaken,
            outcome => outcome,
        };
        exchange.lead.resolve(outcome);
        (led, rest)
    }

    async fn ask_origin(
        &self,
        exchange: &mut Exchange,
        asked: Option<Asked>,
        tell: Option<&mut oneshot::Sender<Led>>,
    ) -> (Led, Rest) {
        let request = exchange.upstream_request(asked.as_ref());
        exchange.began = self.cache.clock.tick();
        let sent_at = clock::now();
        let interim = exchange.interim.take();
        let mut on_interim = |status, headers| {
            if let Some(interim) = &interim {
                interim(status, headers);
            }
        };
        let response = tokio::select! {
            biased;
            response = self.send(&exchange.origin, request, &mut on_interim) => response,
            // Dropping the lead sends whoever has come this moment its own way.
            () = exchange.abandoned(tell) => {
                let counted = (exchange.origin.id, OriginOutcome::Client);
                self.cache.metrics.origin_requests.increment(counted);
                return (Led::Failed(Failure::BadGateway("abandoned")), Rest::Nothing);
            }
        };
        match response {
            Ok(response) => self.judge(exchange, asked, response, sent_at),
            Err(error) => (self.unreachable(exchange, &error), Rest::Nothing),
        }
    }

    /// What another node gives, if it may be used here as it is. `None`: the origin is to be asked.
    async fn ask_peers(&self, exchange: &Exchange, asked: Option<Asked>) -> Option<(Led, Rest)> {
        if !self.may_ask_peers(exchange) {
            return None;
        }
        let fields = exchange.peer_fields(asked);
        let question = peer::Question {
            key: exchange.key.hash(),
            authority: &exchange.authority,
            target: &exchange.target,
            fields: &fields,
            mode: exchange.origin.peer,
            timeout: exchange.origin.peer_timeout,
        };
        let sent_at = clock::now();
        let metrics = &self.cache.metrics;
        let found = self.peers.ask(&self.peer_pool, &question, metrics).await?;
        let taken = self.take_from_peer(exchange, asked, &fields, found, sent_at);
        metrics.peer_requests.increment(match taken {
            Some(_) => PeerOutcome::Filled,
            None => PeerOutcome::Unfit,
        });
        taken
    }

    /// Only for what is not here, and for nobody in particular.
    fn may_ask_peers(&self, exchange: &Exchange) -> bool {
        exchange.may_ask_peers
            && exchange.origin.peer != peer::Mode::Off
            && exchange.stale.is_none()
            && exchange.method == Method::GET
            && self.peers.are_known()
            && !exchange.authority.is_empty()
            // The port of a node's clients, where other nodes ask, knows no other.
            && exchange.key.scheme() == Scheme::Http
            && !exchange.request.contains_key(header::AUTHORIZATION)
            && !self.cache.residency.is_unshareable(&exchange.key, clock::now_secs())
    }

    /// Holds a node's answer against what is known here: it is used only where it would be if this node had asked for
    /// it when the other did.
    fn take_from_peer(
        &self,
        exchange: &Exchange,
        asked: Option<Asked>,
        fields: &HeaderMap,
        found: peer::Found,
        sent_at: SystemTime,
    ) -> Option<(Led, Rest)> {
        let peer::Found {
            mut response,
            stamps,
            node,
        } = found;
        let now = clock::now();
        hop::strip_hop_by_hop(&mut response.headers);
        complete_head(&mut response, &self.pseudonym, now);
        let span = match (response.status, asked) {
            (StatusCode::PARTIAL_CONTENT, asked) => Some(partial_span(&response, asked?)?),
            (StatusCode::OK, _) if is_part(&response) => return None,
            (StatusCode::NOT_MODIFIED | StatusCode::RANGE_NOT_SATISFIABLE, _) => return None,
            (status, _) if status.is_server_error() => return None,
            _ => None,
        };
        let storable = self.storable(exchange, &response, span.as_ref(), sent_at, now);
        let mut head = storable.ok()?;
        // What the client sent and the node was not told cannot have selected the variant.
        let told = |name: &str| {
            let own = exchange.request.get_all(name).iter();
            own.eq(fields.get_all(name))
        };
        if !head.freshness.is_shareable(now) || !head.vary.fields().all(told) {
            return None;
        }
        self.cache.clock.witness(stamps.now);
        let (filled, validated) = stamps.as_of(exchange.began);
        head.asked = head::Asked {
            filled,
            validated,
            // A node gives nothing that is in doubt there; what it does not know of yet comes to be known here too,
            // and later than this.
            vouched: exchange.began,
        };
        let is_current = !exchange.lead.mark().is_overtaken()
            && self.cache.residency.is_untouched(&exchange.key, &head);
        is_current.then(|| self.store(exchange, asked, head, response, span, Source::Peer(node)))
    }

    /// Whether a purge came while it was asked for: those who wait may have asked after the purge.
    fn is_purged(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Stored(stored) | Outcome::ToValidate(stored) => {
                let residency = &self.cache.residency;
                residency.is_gone(stored) || residency.standing(stored) != Standing::Good
            }
            Outcome::Stale(stored, ..) => self.cache.residency.is_gone(stored),
            Outcome::GoAlone | Outcome::Overtaken | Outcome::Failed(_) => false,
        }
    }

    /// Sends one request to an origin, and counts how it went.
    pub async fn send(
        &self,
        origin: &OriginRules,
        request: UpstreamRequest,
        on_interim: &mut dyn FnMut(StatusCode, HeaderMap),
    ) -> Result<UpstreamResponse, OriginError> {
        if self.cache.switches.is_off(&origin.name) {
            return Err(OriginError::switched_off());
        }
        let sent = self.pool.send(&origin.upstream, request, on_interim).await;
        let outcome = match &sent {
            Ok(response) => response.status.as_u16().into(),
            Err(error) => origin_outcome(&error.kind),
        };
        self.cache
            .metrics
            .origin_requests
            .increment((origin.id, outcome));
        sent
    }

    /// The origin gave no answer: the stale one, if it may be served, or the failure.
    fn unreachable(&self, exchange: &Exchange, error: &OriginError) -> Led {
        let failure = match failure(error) {
            // RFC 9111 §5.2.2.2: what is stored may not be used without the origin.
            Failure::BadGateway(detail) if exchange.stale.is_some() => {
                Failure::GatewayTimeout(detail)
            }
            failure => failure,
        };
        let situation = ErrorSituation::Unreachable;
        self.stale_instead(exchange, situation, None, failure.detail())
            .unwrap_or(Led::Failed(failure))
    }

    /// An answer that cannot be believed is as good as none.
    fn fault(&self, exchange: &Exchange, detail: &'static str) -> (Led, Rest) {
        let situation = ErrorSituation::Unreachable;
        let led = self
            .stale_instead(exchange, situation, None, detail)
            .unwrap_or(Led::Failed(Failure::BadGateway(detail)));
        (led, Rest::Nothing)
    }

    fn stale_instead(
        &self,
        exchange: &Exchange,
        situation: ErrorSituation,
        status: Option<StatusCode>,
        detail: &'static str,
    ) -> Option<Led> {
        let stored = exchange.stale.clone()?;
        let reason = match situation {
            ErrorSituation::Unreachable => StaleReason::Unreachable,
            ErrorSituation::ServerError => StaleReason::IfError,
        };
        let residency = &self.cache.residency;
        // Without the origin nobody can say whether what is in doubt was purged.
        if residency.is_gone(&stored) || residency.is_in_doubt(&stored) {
            return None;
        }
        let freshness = match residency.standing(&stored) {
            Standing::StaleSince(since) => &stored.head.freshness.stale_since(since),
            Standing::Good | Standing::Outdated => &stored.head.freshness,
        };
        freshness
            .may_serve_stale_on_error(situation, &exchange.origin.caching, clock::now())
            .then_some(Led::Stale {
                stored,
                reason,
                status,
                detail,
            })
    }

    fn judge(
        &self,
        exchange: &Exchange,
        asked: Option<Asked>,
        mut response: UpstreamResponse,
        sent_at: SystemTime,
    ) -> (Led, Rest) {
        let now = clock::now();
        hop::strip_hop_by_hop(&mut response.headers);
        complete_head(&mut response, &self.pseudonym, now);
        match (response.status, &exchange.stale) {
            (StatusCode::NOT_MODIFIED, Some(stale)) => {
                self.cache
                    .metrics
                    .validations
                    .increment(Validation::NotModified);
                return (
                    self.validated(exchange, stale, &response, sent_at, now),
                    Rest::Nothing,
                );
            }
            // Nothing was asked that 304 or a part could answer.
            (StatusCode::NOT_MODIFIED, None) => return self.fault(exchange, "unasked-304"),
            (StatusCode::PARTIAL_CONTENT, _) if asked.is_none() => {
                return self.fault(exchange, "unasked-206");
            }
            // A part under the status of the whole.
            (StatusCode::OK, _) if asked.is_some() && is_part(&response) => {
                return self.fault(exchange, "part-as-whole");
            }
            // It answers this range, whatever it says of its freshness, and nobody else's request.
            (StatusCode::RANGE_NOT_SATISFIABLE, _) if asked.is_some() => {
                return pass(response, None, Some("range-not-satisfiable"));
            }
            (status, _) if is_stale_if_error(status) => {
                let situation = ErrorSituation::ServerError;
                if let Some(led) =
                    self.stale_instead(exchange, situation, Some(status), "origin-error")
                {
                    self.cache.metrics.validations.increment(Validation::Failed);
                    return (led, Rest::Nothing);
                }
            }
            _ => {}
        }
        let span = match (response.status, asked) {
            (StatusCode::PARTIAL_CONTENT, Some(asked)) => match partial_span(&response, asked) {
                Some(span) => Some(span),
                None => return self.fault(exchange, "bad-content-range"),
            },
            _ => None,
        };
        if exchange.method == Method::HEAD {
            self.learn_from_head(exchange, &response, sent_at, now);
            return pass(response, None, None);
        }
        match self.storable(exchange, &response, span.as_ref(), sent_at, now) {
            Ok(head) => {
                let source = Source::Origin(exchange.origin.id);
                self.store(exchange, asked, head, response, span, source)
            }
            Err(detail) => {
                // A part, or what one user was authorised for, says nothing about others' requests.
                let is_common =
                    span.is_none() && !exchange.request.contains_key(header::AUTHORIZATION);
                if response.status.as_u16() < 500 && is_common {
                    let until = clock::now_secs() + UNSHAREABLE_SECS;
                    self.cache.residency.mark_unshareable(&exchange.key, until);
                }
                self.displace(exchange, &response);
                pass(response, window(span.as_ref()), Some(detail))
            }
        }
    }

    /// A newer answer that may not be stored still says that the stored one is out of date.
    fn displace(&self, exchange: &Exchange, response: &UpstreamResponse) {
        if let Some(stale) = &exchange.stale
            && !response.status.is_server_error()
        {
            self.cache.residency.remove(stale);
        }
    }

    fn storable(
        &self,
        exchange: &Exchange,
        response: &UpstreamResponse,
        span: Option<&(Range<u64>, u64)>,
        sent_at: SystemTime,
        now: SystemTime,
    ) -> Result<Head, &'static str> {
        // A part is stored as a piece of the whole it belongs to.
        let status = match span {
            Some(_) => StatusCode::OK,
            None => response.status,
        };
        let freshness = freshness::storable(
            &exchange.method,
            &exchange.request,
            status,
            &response.headers,
            &exchange.origin.caching,
            sent_at,
            now,
        )
        .map_err(|reason| {
            self.cache
                .metrics
                .uncacheable
                .increment(uncacheable(reason));
            reason.detail()
        })?;
        if response.close_delimited {
            self.cache.metrics.uncacheable.increment(Uncacheable::Other);
            return Err("close-delimited");
        }
        let vary = VarySpec::from_headers(&response.headers);
        let variant = vary.key_for(&exchange.request);
        let mut headers = response.headers.clone();
        if span.is_some() {
            // What is stored is the whole: an answer with a part says its own range.
            headers.remove(header::CONTENT_RANGE);
        }
        let asked = head::Asked::at(exchange.began);
        let head = Head::new(status, headers, freshness, vary, variant, asked);
        let announced = match span {
            Some((span, _)) => Some(span.end - span.start),
            None => response.content_length,
        };
        // Beyond it, offsets have no block to lie in.
        let addressable = u64::from(self.cache.store.block_size().get()) * u64::from(u32::MAX);
        let complete = span.map(|(_, complete_length)| *complete_length);
        if announced > Some(self.cache.store.largest_body()) || complete > Some(addressable) {
            self.cache
                .metrics
                .uncacheable
                .increment(Uncacheable::TooLarge);
            return Err("too-large");
        }
        if span.is_some() && !head.is_joinable() {
            self.cache
                .metrics
                .uncacheable
                .increment(Uncacheable::PartialContent);
            return Err("partial-without-validator");
        }
        Ok(head)
    }

    /// Makes the response findable and its body readable, before a byte of it has come.
    fn store(
        &self,
        exchange: &Exchange,
        asked: Option<Asked>,
        mut head: Head,
        response: UpstreamResponse,
        span: Option<(Range<u64>, u64)>,
        source: Source,
    ) -> (Led, Rest) {
        if exchange.stale.is_some() {
            self.cache
                .metrics
                .validations
                .increment(Validation::Replaced);
        }
        let status = response.status;
        let store = &self.cache.store;
        let length = match &span {
            Some((_, complete_length)) => Some(*complete_length),
            None if is_bodiless(status) => Some(0),
            None => response.content_length,
        };
        let previous = exchange.stale.as_ref().filter(|stale| {
            span.is_some()
                && !stale.body.object.is_gone()
                && length == stale.body.object.length()
                && stale.head.validators.same_representation(&head.validators)
        });
        // Bytes of the same representation are joined to those that are here already.
        let body = match previous {
            Some(stale) => {
                head.asked = stale.head.asked.again(exchange.began);
                stale.body.clone()
            }
            None => {
                let object = store.create();
                if let Some(length) = length {
                    object.set_length(length);
                }
                Body::new(object, head.is_joinable())
            }
        };
        let window = window(span.as_ref());
        let span = match span {
            Some((span, _)) => span,
            None => 0..length.unwrap_or(u64::MAX),
        };
        match status {
            // How a node answers says nothing of the origin.
            _ if matches!(source, Source::Peer(_)) => {}
            StatusCode::PARTIAL_CONTENT => body.learn_ranges(RangeSupport::Honoured),
            _ if asked.is_some() => body.learn_ranges(RangeSupport::Ignored),
            _ => {}
        }
        let (fill, is_new) = body.fill_for(span.clone(), store.block_size());
        let writer = is_new.then(|| FillWriter::new(store.clone(), body.clone(), fill));
        let stored = Stored::new(exchange.key.clone(), head, body);
        let residency = &self.cache.residency;
        let before = previous.map(|stale| &**stale);
        if exchange.request.contains_key(header::AUTHORIZATION) {
            stored.hits.never();
        }
        let inserted = residency.insert(stored.clone(), before, exchange.lead.mark());
        if inserted == Insertion::Overtaken {
            self.overtake_purged(exchange);
            self.cache.metrics.uncacheable.increment(Uncacheable::Other);
            return pass(response, window, Some(OVERTAKEN));
        }
        residency.clear_unshareable(&exchange.key);
        let detail = match &source {
            Source::Origin(_) => None,
            Source::Peer(node) => Some(node.detail()),
        };
        let rest = match writer {
            Some(mut writer) => {
                writer.accept(span);
                Rest::Fill {
                    stored: stored.clone(),
                    body: response.body,
                    writer,
                    source,
                }
            }
            None => Rest::Nothing,
        };
        let led = Led::Stored {
            stored,
            status,
            detail,
        };
        (led, rest)
    }

    /// RFC 9111 §4.3.4: the stored head takes over what the 304 says, and is fresh again.
    fn validated(
        &self,
        exchange: &Exchange,
        stale: &Arc<Stored>,
        response: &UpstreamResponse,
        sent_at: SystemTime,
        now: SystemTime,
    ) -> Led {
        // A 304 that names another strong validator than the one it was asked about (decision 0004): the
        // response that was asked about is confirmed, but no further bytes may be joined to it.
        let names_another = !update::selects_stored(&response.headers, &stale.head.validators);
        if names_another && !stale.body.object.is_complete() {
            return Led::Validated(stale.clone());
        }
        match self.refreshed(exchange, stale, &response.headers, sent_at, now) {
            Some(stored) => Led::Validated(stored),
            None => Led::Validated(stale.clone()),
        }
    }

    /// Puts a head with updated fields in the place of a stored one, over the same body.
    fn refreshed(
        &self,
        exchange: &Exchange,
        stale: &Arc<Stored>,
        news: &HeaderMap,
        sent_at: SystemTime,
        now: SystemTime,
    ) -> Option<Arc<Stored>> {
        let mut headers = stale.head.headers.clone();
        update::update_head(&mut headers, news);
        let freshness = freshness::storable(
            &Method::GET,
            &exchange.request,
            stale.head.status,
            &headers,
            &exchange.origin.caching,
            sent_at,
            now,
        );
        let Ok(freshness) = freshness else {
            // Usable for the one who asked, and by nobody after.
            self.cache.residency.remove(stale);
            return None;
        };
        let stored = self.with_head(exchange, stale, headers, freshness);
        let mark = exchange.lead.mark();
        let residency = &self.cache.residency;
        let inserted = residency.insert(stored.clone(), Some(stale), mark);
        if inserted == Insertion::Overtaken {
            self.overtake_purged(exchange);
        }
        if inserted == Insertion::Done && stored.body.object.is_complete() {
            self.cache.residency.persist(&stored);
        }
        Some(stored)
    }

    /// What was asked has been purged since, whatever its key: those who wait ask anew, together.
    fn overtake_purged(&self, exchange: &Exchange) {
        // After an invalidation they do already, and another flight may be under way.
        if !exchange.lead.mark().is_overtaken() {
            self.cache.inflight.overtake(exchange.key.hash());
        }
    }

    fn with_head(
        &self,
        exchange: &Exchange,
        stale: &Stored,
        headers: HeaderMap,
        freshness: Freshness,
    ) -> Arc<Stored> {
        let vary = VarySpec::from_headers(&headers);
        let variant = if vary == stale.head.vary {
            stale.head.variant.clone()
        } else {
            vary.key_for(&exchange.request)
        };
        let asked = stale.head.asked.again(exchange.began);
        let head = Head::new(stale.head.status, headers, freshness, vary, variant, asked);
        Stored::new(stale.key.clone(), head, stale.body.clone())
    }

    /// RFC 9111 §4.3.5: a HEAD answer freshens the stored GET it agrees with and outdates another.
    fn learn_from_head(
        &self,
        exchange: &Exchange,
        response: &UpstreamResponse,
        sent_at: SystemTime,
        now: SystemTime,
    ) {
        let Some(stored) = exchange
            .stale
            .as_ref()
            .filter(|_| response.status == StatusCode::OK)
        else {
            return;
        };
        let length = stored.body.object.length();
        if update::head_agrees(&response.headers, &stored.head.validators, length) {
            self.refreshed(exchange, stored, &response.headers, sent_at, now);
        } else {
            stored.outdate();
        }
    }

    /// Brings a body to its end, or as far as it comes. `linger` is how long it goes on that nobody reads, if not for
    /// ever; `pace` how fast, where no client waits.
    async fn fill(
        &self,
        origin: &OriginRules,
        source: Source,
        stored: &Arc<Stored>,
        mut body: ResponseBody,
        mut writer: FillWriter,
        (linger, pace): (Option<Duration>, Option<&Pace>),
    ) -> Result<(), BodyError> {
        let _counted = self.cache.metrics.fill_started();
        let _paced = pace.map(Pace::begin);
        let fill = writer.fill().clone();
        let metrics = &self.cache.metrics;
        let (body_in, writer_in) = (&mut body, &mut writer);
        let length = stored.body.object.length().unwrap_or_default();
        let outcome = match pace {
            Some(pace) if pace.is_too_long(length) && !fill.is_watched() => {
                Err(BodyError::Abandoned)
            }
            _ => transfer(metrics, &source, body_in, writer_in, &fill, linger, pace).await,
        };
        // What another node sent, or who stands between, says nothing of the body: from there on the origin is asked.
        let outcome = outcome.map_err(|error| match (&source, error) {
            (Source::Peer(_), BodyError::Protocol) => BodyError::Truncated,
            (_, error) => error,
        });
        drop(body);
        if let (Source::Peer(node), Err(error)) = (&source, outcome)
            && error != BodyError::Abandoned
        {
            node.broke_off();
        }
        let outcome = writer.finish(outcome).await;
        self.cache
            .metrics
            .fill_ended(outcome.err().map(fill_failure));
        let object = &stored.body.object;
        if object.is_gone() || !stored.body.is_whole_or_arriving() {
            self.cache.residency.remove(stored);
            return outcome;
        }
        // Also where blocks are missing: what the store does not know of, it never gives up.
        self.cache.residency.persist(stored);
        // What no client has asked for is no request.
        if object.is_complete() && pace.is_none() {
            let cache = &self.cache;
            cache.recorder.answered(origin, stored, &cache.metrics);
        }
        outcome
    }

    /// How a reader of `stored` asks for bytes that are not here.
    pub fn refill(
        self: &Rc<Self>,
        request: &Request<'_>,
        stored: &Arc<Stored>,
        upstream: &UpstreamFields<'_>,
    ) -> Rc<Refill> {
        self.paced_refill(request, stored, upstream, None)
    }

    /// The same, at a pace.
    pub fn paced_refill(
        self: &Rc<Self>,
        request: &Request<'_>,
        stored: &Arc<Stored>,
        upstream: &UpstreamFields<'_>,
        pace: Option<Rc<Pace>>,
    ) -> Rc<Refill> {
        Rc::new(Refill {
            fetcher: self.clone(),
            stored: stored.clone(),
            authority: request.authority.clone(),
            target: request.target.clone(),
            upstream: (upstream.make)(),
            origin: request.origin.clone(),
            pace,
            refused: Cell::new(None),
        })
    }
}

/// What waiters are told of an exchange.
fn outcome(led: &Led, is_for_one_asker: bool) -> Outcome {
    match led {
        Led::Stored { stored, .. } | Led::Validated(stored) => {
            if is_for_one_asker || stored.head.freshness.is_shareable(clock::now()) {
                Outcome::Stored(stored.clone())
            } else {
                Outcome::ToValidate(stored.clone())
            }
        }
        Led::Stale {
            stored,
            reason,
            detail,
            ..
        } => Outcome::Stale(stored.clone(), *reason, detail),
        Led::Passed { .. } => Outcome::GoAlone,
        Led::Failed(failure) => Outcome::Failed(*failure),
    }
}

/// Whether a response describes itself as a part, whatever its status.
fn is_part(response: &UpstreamResponse) -> bool {
    response.headers.contains_key(header::CONTENT_RANGE)
}

/// The bytes of the representation that an answer brings, where it is a part.
fn window(span: Option<&(Range<u64>, u64)>) -> Option<Window> {
    span.map(|(span, complete_length)| Window {
        starts_at: span.start,
        complete_length: *complete_length,
    })
}

fn pass(
    response: UpstreamResponse,
    window: Option<Window>,
    detail: Option<&'static str>,
) -> (Led, Rest) {
    let passed = Box::new(Passed { response, window });
    (Led::Passed { passed, detail }, Rest::Nothing)
}

/// Whether an answer is about the one who asks, or about the moment, rather than about what was asked for.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 408 | 429) || status.is_server_error()
}

/// RFC 5861 §4 names these.
fn is_stale_if_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn is_bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT
}

/// What every recipient of a response adds to its head: a date where there is none, and itself.
pub fn complete_head(response: &mut UpstreamResponse, pseudonym: &str, now: SystemTime) {
    if !response.headers.contains_key(header::DATE)
        && let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now))
    {
        response.headers.insert(header::DATE, date);
    }
    // They are for nodes; an answer that comes from one has lost them already.
    peer::strip_fields(&mut response.headers);
    hop::append_via(&mut response.headers, response.version, pseudonym);
}

/// The span a 206 brings and the length of the whole, if both fit the question and the framing.
fn partial_span(response: &UpstreamResponse, asked: Asked) -> Option<(Range<u64>, u64)> {
    let value = response.headers.get(header::CONTENT_RANGE)?;
    let range = ContentRange::parse(value)?;
    let length = range.complete_length?;
    let span = range.span.clone();
    let fits_framing = response
        .content_length
        .is_none_or(|announced| announced == span.end - span.start);
    (asked.is_answered_by(&range, length) && fits_framing && !span.is_empty())
        .then_some((span, length))
}

async fn transfer(
    metrics: &Metrics,
    source: &Source,
    body: &mut ResponseBody,
    writer: &mut FillWriter,
    fill: &Fill,
    linger: Option<Duration>,
    pace: Option<&Pace>,
) -> Result<(), BodyError> {
    let mut abandoned = pin!(async {
        match linger {
            Some(linger) => fill.abandoned(linger).await,
            None => std::future::pending().await,
        }
    });
    let mut brought = 0_u64;
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut abandoned => return Err(BodyError::Abandoned),
        };
        match frame {
            Some(Ok(Frame::Data(data))) => {
                let length = data.len() as u64;
                match source {
                    Source::Origin(id) => metrics.origin_response_bytes.add(*id, length),
                    Source::Peer(_) => metrics.peer_response_bytes.add((), length),
                }
                writer.write(data).await?;
                if writer.is_in_vain() {
                    return Err(BodyError::Abandoned);
                }
                brought += length;
                if let Some(pace) = pace {
                    if pace.is_too_long(brought) && !fill.is_watched() {
                        return Err(BodyError::Abandoned);
                    }
                    // A client that has joined is not held up.
                    tokio::select! {
                        biased;
                        () = pace.spend(length) => {}
                        () = fill.watched() => {}
                    }
                }
            }
            // Stored responses have no trailers (RFC 9110 §6.5.1 allows to discard them).
            Some(Ok(Frame::Trailers(_))) => {}
            Some(Err(error)) => return Err(body_error(&error)),
            None => return Ok(()),
        }
    }
}

/// What an upstream's failure in the middle of a body means to its readers.
pub fn body_error(error: &OriginError) -> BodyError {
    match error.kind {
        ErrorKind::Truncated => BodyError::Truncated,
        ErrorKind::Timeout(_) => BodyError::Timeout,
        ErrorKind::Protocol => BodyError::Protocol,
        _ => BodyError::Truncated,
    }
}

/// Why a whole exchange failed.
pub fn failure(error: &OriginError) -> Failure {
    match error.status() {
        StatusCode::GATEWAY_TIMEOUT => Failure::GatewayTimeout(error.detail()),
        StatusCode::SERVICE_UNAVAILABLE => Failure::Busy(error.detail()),
        StatusCode::BAD_REQUEST => Failure::BadRequest(error.detail()),
        StatusCode::REQUEST_TIMEOUT => Failure::RequestTimeout(error.detail()),
        _ => Failure::BadGateway(error.detail()),
    }
}

/// What the metrics call an exchange that brought no response.
fn origin_outcome(kind: &ErrorKind) -> OriginOutcome {
    match kind {
        ErrorKind::Dns => OriginOutcome::Dns,
        ErrorKind::Refused | ErrorKind::Connect | ErrorKind::Prohibited => OriginOutcome::Connect,
        ErrorKind::Tls => OriginOutcome::Tls,
        ErrorKind::Timeout(_) => OriginOutcome::Timeout,
        ErrorKind::Busy => OriginOutcome::Busy,
        ErrorKind::Closed => OriginOutcome::Closed,
        ErrorKind::HeadTooLarge | ErrorKind::Protocol => OriginOutcome::Protocol,
        ErrorKind::Truncated => OriginOutcome::Truncated,
        ErrorKind::RequestBody | ErrorKind::RequestTooSlow | ErrorKind::Unsendable => {
            OriginOutcome::Client
        }
    }
}

/// What the metrics call a reason not to store.
fn uncacheable(reason: NoStore) -> Uncacheable {
    match reason {
        NoStore::Method => Uncacheable::Method,
        NoStore::Status => Uncacheable::Status,
        NoStore::NotUnderstood => Uncacheable::MustUnderstand,
        NoStore::Directive => Uncacheable::NoStore,
        NoStore::RequestDirective => Uncacheable::RequestNoStore,
        NoStore::Private => Uncacheable::Private,
        NoStore::Authorization => Uncacheable::Authorization,
        NoStore::SetCookie => Uncacheable::SetCookie,
        NoStore::VaryAny => Uncacheable::VaryAny,
        NoStore::NoFreshness | NoStore::NotReusable => Uncacheable::NoFreshness,
    }
}

/// What the metrics call the end of a fill.
fn fill_failure(error: BodyError) -> FillFailure {
    match error {
        BodyError::Truncated => FillFailure::Truncated,
        BodyError::Overlong => FillFailure::Overlong,
        BodyError::Timeout => FillFailure::Timeout,
        BodyError::Protocol => FillFailure::Protocol,
        BodyError::Changed => FillFailure::Changed,
        BodyError::Unreachable => FillFailure::Unreachable,
        BodyError::Abandoned => FillFailure::Abandoned,
        BodyError::Missing => FillFailure::Other,
    }
}

/// How the readers of one stored response ask for what is missing of it.
pub struct Refill {
    fetcher: Rc<Fetcher>,
    stored: Arc<Stored>,
    authority: Arc<str>,
    target: Bytes,
    upstream: HeaderMap,
    origin: Rc<OriginRules>,
    pace: Option<Rc<Pace>>,
    /// Why the last question had no answer that could be used, where its fill cannot say so.
    refused: Cell<Option<Shortfall>>,
}

impl Refill {
    /// Why the origin gave nothing when it was last asked, as far as it is known. Asked once.
    pub fn take_refusal(&self) -> Option<Shortfall> {
        self.refused.take()
    }

    /// Begins to fill the first missing run of `span`, and the read-ahead behind it, unless a fill in
    /// flight brings it; with `may_wait`, also unless one may turn out to.
    pub fn start(self: &Rc<Self>, body: &Arc<Body>, span: Range<u64>, may_wait: bool) -> Bringer {
        let run = self.missing_run(body, span);
        let bringer = body.refill_for(run, self.store().block_size(), may_wait);
        if let Bringer::New(fill) = &bringer {
            let refill = self.clone();
            let writer = FillWriter::new(self.store().clone(), body.clone(), fill.clone());
            self.fetcher
                .tasks
                .spawn(async move { refill.run(writer).await });
        }
        bringer
    }

    fn store(&self) -> &Store {
        &self.fetcher.cache.store
    }

    fn missing_run(&self, body: &Body, span: Range<u64>) -> Range<u64> {
        let block_size = self.store().block_size();
        let length = body.object.length().unwrap_or(u64::MAX);
        let end = span.end.saturating_add(self.origin.read_ahead).min(length);
        let blocks = block_size.span(span.start..end.max(span.start + 1));
        let gap = (self.origin.merge_gap / block_size.get() as u64) as u32;
        let run = body.object.missing_runs(blocks.clone(), gap);
        let run = run
            .into_iter()
            .next()
            .unwrap_or(blocks.start..blocks.start + 1);
        block_size.floor(run.start as u64 * block_size.get() as u64)
            ..(run.end as u64 * block_size.get() as u64).min(length)
    }

    async fn run(&self, mut writer: FillWriter) {
        let _counted = self.fetcher.cache.metrics.fill_started();
        let _paced = self.pace.as_deref().map(Pace::begin);
        let fill = writer.fill().clone();
        let outcome = match self.ask(&mut writer).await {
            Ok(mut body) => {
                let (linger, pace) = (Some(self.origin.linger), self.pace.as_deref());
                let metrics = &self.fetcher.cache.metrics;
                let source = Source::Origin(self.origin.id);
                let (body, writer) = (&mut body, &mut writer);
                transfer(metrics, &source, body, writer, &fill, linger, pace).await
            }
            Err(error) => Err(error),
        };
        if outcome == Err(BodyError::Changed) {
            // Before its readers are told, who then look for another.
            self.fetcher.cache.residency.remove(&self.stored);
        }
        let outcome = writer.finish(outcome).await;
        self.fetcher
            .cache
            .metrics
            .fill_ended(outcome.err().map(fill_failure));
    }

    /// Sends the question; the body that comes is of the stored representation, or there is none.
    async fn ask(&self, writer: &mut FillWriter) -> Result<ResponseBody, BodyError> {
        let span = writer.fill().span();
        let asked = Asked::Span(span.start, Some(span.end));
        let authority = self.origin.authority_for(&self.authority);
        let mut request = UpstreamRequest::new(Method::GET, self.target.clone(), authority);
        request.headers = self.upstream.clone();
        for name in CONDITIONAL_FIELDS {
            request.headers.remove(name);
        }
        request.headers.insert(header::RANGE, asked.to_header());
        let validators = &self.stored.head.validators;
        if let Some(if_range) = validators.if_range() {
            request.headers.insert(header::IF_RANGE, if_range);
        }
        let response = self
            .fetcher
            .send(&self.origin, request, &mut |_, _| {})
            .await;
        let response = response.map_err(|error| {
            self.refused
                .set(Some(Shortfall::of_failure(failure(&error))));
            BodyError::Unreachable
        })?;
        let body = &self.stored.body;
        let same = validators.same_representation(&Validators::from_headers(&response.headers));
        match response.status {
            StatusCode::PARTIAL_CONTENT => {
                let (span, complete) = partial_span(&response, asked).ok_or(BodyError::Protocol)?;
                if body.object.length().is_none() && complete > self.store().largest_body() {
                    return Err(BodyError::Missing);
                }
                if !same || !body.agree_on_length(complete) {
                    return Err(BodyError::Changed);
                }
                body.learn_ranges(RangeSupport::Honoured);
                writer.accept(span);
            }
            // An origin without ranges: all of it once more, of which the missing blocks are kept.
            StatusCode::OK if is_part(&response) => return Err(BodyError::Protocol),
            StatusCode::OK
                if same
                    && response
                        .content_length
                        .is_none_or(|n| body.agree_on_length(n)) =>
            {
                body.learn_ranges(RangeSupport::Ignored);
                if body.is_brought_by_another(writer.fill(), span.start) {
                    // Its readers join the other, which is further on.
                    return Err(BodyError::Abandoned);
                }
                writer.accept(0..body.object.length().unwrap_or(u64::MAX));
            }
            // The origin will not have this client, or nobody for now: that says nothing about what is stored.
            status if is_refusal(status) => {
                self.refused.set(Some(Shortfall::Status(status.as_u16())));
                return Err(BodyError::Unreachable);
            }
            _ => return Err(BodyError::Changed),
        }
        Ok(response.body)
    }
}
