//! What another node gets that asks on the clients' port.
//!
//! ```text
//! Caje-Peer ─ proven? ─┬─ no ──► a client like any other
//!                      └─ yes ─► fresh here? ─┬─ yes ─────────────────► its bytes, all stored fields, stamps ─┐
//!                                             ├─ no, and a shield ──► the origin (no other node) ─► the same ─┤
//!                                             └─ no ───────────────► 504 at once ────────────────────────────┴► signed
//! ```
//!
//! Kept true here:
//! - Only what any client may be given is given: fresh, not purged, and not to be validated before each use.
//! - No answer waits for another node: a shield asks the origin, everybody else nobody.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderMap};
use http::{Method, StatusCode};

use crate::cache::residency::{Residency, Standing, Stored};
use crate::cache::{Answer, Forward, How, Lookup, Reader, UpstreamFields};
use crate::clock;
use crate::peer::seal::Sealer;
use crate::peer::secret::{self, Asker, Secret};
use crate::peer::{self, Mode, Stamps};
use crate::proxy::message::{Body, Report, Request, Response, Sealed};
use crate::proxy::respond;
use crate::proxy::{LocalSettings, Pending, Proxy, Question, Route, host_of, is_cacheable_form};
use crate::semantics::hop;
use crate::semantics::key::CacheKey;
use crate::semantics::range::{self, ContentRange, Ranges, Resolved};
use crate::telemetry::{BadRequest, PeerAnswer};

/// What a node that has proven itself asks for.
pub struct Asked {
    pub(super) question: Question,
    mode: Mode,
    asker: Asker,
}

/// A response that may be given, and the part of it that was asked for.
struct Given {
    stored: Arc<Stored>,
    /// The part, and the length of the whole.
    part: Option<(Range<u64>, u64)>,
    length: Option<u64>,
    /// `None` where there are no bytes.
    body: Option<Reader>,
    how: How,
}

impl Proxy {
    /// A question of another node, or the answer where there is nothing to find out. `None`: who asks is none, and is
    /// answered like any client.
    #[cold]
    pub(super) fn asked_by_peer(
        &self,
        request: &Rc<Request>,
        settings: &LocalSettings,
    ) -> Option<Result<Response, Pending>> {
        let secret = self.cache.fetcher.peers.secret()?;
        let metrics = &self.shared.metrics;
        let Some(asker) = asker(secret, request) else {
            metrics.peer_answers.increment(PeerAnswer::Refused);
            return None;
        };
        // It comes from a client by way of one node, whose name for the whole CDN stands there once.
        let is_loop = hop::cdn_loop_count(&request.headers, &self.shared.identity.cdn_id) > 1;
        if is_loop {
            metrics.bad_requests.increment(BadRequest::Loop);
        }
        let place = (settings.shared.route)(host_of(&request.authority), &request.target);
        let is_fit = !is_loop
            && request.method == Method::GET
            && is_cacheable_form(request)
            && !request.headers.contains_key(header::AUTHORIZATION);
        let Some(place) = place.filter(|_| is_fit) else {
            metrics.peer_answers.increment(PeerAnswer::Absent);
            return Some(Ok(absent(secret, &asker, Report::of(request, None))));
        };
        let max_ranges = settings.shared.limits.max_ranges;
        let question = Question {
            request: request.clone(),
            key: CacheKey::new(request.client.scheme, &request.authority, &request.target),
            ranges: range::parse(&request.headers, max_ranges),
            route: Route {
                origin: settings.origins[place].clone(),
                // It says who its client is, as a proxy of ours does.
                trusted: true,
            },
        };
        let mode = Mode::of_request(&request.headers);
        Some(Err(Pending::Peer(Box::new(Asked {
            question,
            mode,
            asker,
        }))))
    }

    pub(super) async fn answer_peer(&self, asked: Asked) -> Response {
        let Asked {
            question,
            mode,
            asker,
        } = asked;
        let given = self.give(&question, mode).await;
        let outcome = match &given {
            None => PeerAnswer::Absent,
            Some(given) if given.how.is_hit() => PeerAnswer::Held,
            Some(_) => PeerAnswer::Filled,
        };
        self.shared.metrics.peer_answers.increment(outcome);
        let report = question.report();
        match (given, self.cache.fetcher.peers.secret()) {
            (Some(given), Some(secret)) => self.given(secret, &asker, given, report),
            (_, Some(secret)) => absent(secret, &asker, report),
            // It was there when the proof was checked.
            (_, None) => respond::no_origin().respond(report),
        }
    }

    async fn give(&self, question: &Question, mode: Mode) -> Option<Given> {
        let request = &question.for_cache();
        let found = self.cache.shared.lookup(request, clock::now());
        let (stored, how) = match found {
            Lookup::Fresh(stored) if may_be_given(&self.cache.shared.residency, &stored) => {
                let how = self.how_hit(&stored);
                (stored, how)
            }
            _ if mode != Mode::Shield => return None,
            Lookup::Forbidden => return None,
            Lookup::Fresh(stored)
            | Lookup::StaleWhileRevalidate(stored)
            | Lookup::Stale(stored) => self.fill(question, Some(stored), Forward::Stale).await?,
            Lookup::Miss(why) => self.fill(question, None, why).await?,
        };
        let length = stored.body.object.length();
        let part = match (&question.ranges, length) {
            (Ranges::Set(specs), Some(length)) if stored.head.status == StatusCode::OK => {
                match range::resolve(specs, length) {
                    Resolved::Single(span) => Some((span, length)),
                    Resolved::Unsatisfiable | Resolved::Multi(_) => return None,
                }
            }
            _ => None,
        };
        let span = match &part {
            Some((span, _)) => span.clone(),
            None => 0..length.unwrap_or(u64::MAX),
        };
        let body = match span.is_empty() {
            true => None,
            false => Some(self.bytes(question, mode, &stored, &span).await?),
        };
        Some(Given {
            length: length.map(|_| span.end - span.start),
            part,
            stored,
            body,
            how,
        })
    }

    /// From the origin, as a shield.
    async fn fill(
        &self,
        question: &Question,
        stale: Option<Arc<Stored>>,
        why: Forward,
    ) -> Option<(Arc<Stored>, How)> {
        let make = || self.upstream_fields(question);
        let upstream = UpstreamFields {
            make: &make,
            interim: None,
        };
        let request = &question.for_cache();
        let answer = self.cache.fetch_for_peer(request, stale, why, &upstream);
        match answer.await {
            Answer::Stored(stored, how)
                if how.stale.is_none() && may_be_given(&self.cache.shared.residency, &stored) =>
            {
                Some((stored, how))
            }
            // What is for one client is for the node to ask for that serves it.
            _ => None,
        }
    }

    async fn bytes(
        &self,
        question: &Question,
        mode: Mode,
        stored: &Arc<Stored>,
        span: &Range<u64>,
    ) -> Option<Reader> {
        if mode != Mode::Shield {
            return self.cache.reader_of_held(stored, span.clone());
        }
        let make = || self.upstream_fields(question);
        let upstream = UpstreamFields {
            make: &make,
            interim: None,
        };
        let request = &question.for_cache();
        let mut reader = self.cache.reader(stored, span.clone(), request, &upstream);
        reader.prime().await.ok()?;
        Some(reader)
    }

    fn given(&self, secret: &Secret, asker: &Asker, given: Given, report: Report) -> Response {
        let Given {
            stored,
            part,
            length,
            body,
            how,
        } = given;
        let now = clock::now();
        let head = &stored.head;
        // Also those that no client is sent: they say how long it is kept, and by what it is purged.
        let mut headers = head.headers.clone();
        for name in [header::CONTENT_LENGTH, header::CONTENT_RANGE] {
            headers.remove(name);
        }
        headers.insert(header::AGE, head.age_secs(now).into());
        let stamps = Stamps {
            filled: head.asked.filled,
            validated: head.asked.validated,
            now: self.cache.shared.clock.tick(),
        };
        headers.insert(peer::ASKED, stamps.to_header());
        if let Some(length) = length {
            headers.insert(peer::LENGTH, length.into());
        }
        let status = match &part {
            Some((span, length)) => {
                let range = ContentRange::to_header(span, *length);
                headers.insert(header::CONTENT_RANGE, range);
                StatusCode::PARTIAL_CONTENT
            }
            None => head.status,
        };
        let ttl = Some(head.freshness.ttl(now));
        sign(secret, asker, status, &mut headers);
        let sealed = |reader| {
            let sealer = Sealer::new(secret, asker.nonce);
            Body::Sealed(Box::new(Sealed::new(reader, sealer)))
        };
        Response {
            status,
            stored: None,
            age: None,
            headers,
            // Of what is sealed nobody knows how long it becomes.
            length: body.is_none().then_some(0),
            body: body.map_or(Body::Empty, sealed),
            how,
            ttl,
            report,
        }
    }
}

/// The node that asks, if one does.
fn asker(secret: &Secret, request: &Request) -> Option<Asker> {
    let mut fields = request.headers.get_all(secret::ASK).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return None;
    };
    let target = std::str::from_utf8(&request.target).ok()?;
    let (method, authority) = (&request.method, &request.authority);
    secret
        .check(field, clock::wall(), method, authority, target, b"")
        .inspect_err(|error| tracing::debug!(%error, "a client says that it is a node"))
        .ok()
}

fn may_be_given(residency: &Residency, stored: &Stored) -> bool {
    stored.head.freshness.is_shareable(clock::now()) && residency.standing(stored) == Standing::Good
}

/// Not here. Without a body, so that the connection goes on.
fn absent(secret: &Secret, asker: &Asker, report: Report) -> Response {
    let status = StatusCode::GATEWAY_TIMEOUT;
    let mut headers = HeaderMap::new();
    respond::insert_date(&mut headers, clock::now());
    sign(secret, asker, status, &mut headers);
    Response {
        status,
        stored: None,
        age: None,
        headers,
        length: Some(0),
        body: Body::Empty,
        how: How {
            detail: Some("not-held"),
            synthetic: true,
            ..How::default()
        },
        ttl: None,
        report,
    }
}

fn sign(secret: &Secret, asker: &Asker, status: StatusCode, headers: &mut HeaderMap) {
    let proof = secret.answer(asker.nonce, status, &peer::proven_fields(headers));
    headers.insert(secret::PROOF, proof);
}
