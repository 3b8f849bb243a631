//! What the node would do with a request, step by step, by the functions that decide it when the request
//! comes. Nothing is stored, joined or counted by asking.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use caje_admin_api::{ExplainRequest, Explanation, Step, Verdict};
use http::header::HeaderMap;
use http::{Method, StatusCode, Version};

use super::objects::{key_of, pair, url_of};
use super::refusal::{Answer, Ask, Refusal, Told};
use super::{Node, Shared, is_reserved};
use crate::cache::residency::{Standing, Stored};
use crate::clock;
use crate::config::{Config, Origin, Routes};
use crate::origin::{Counters, OriginPool, UpstreamRequest};
use crate::semantics::freshness::{self, Decision, NoStore, Rules, storable};
use crate::semantics::hop;
use crate::semantics::key::CacheKey;
use crate::semantics::{cache_control::CacheControl, conditional};

/// How long an origin is asked, at the most.
const LIVE_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn explain(
    State(node): State<Node>,
    Ask(ask): Ask<ExplainRequest>,
) -> Answer<Explanation> {
    let question = Question::new(&ask)?;
    let explained = node.apart(move |shared| question.explain(shared));
    explained.await?.map(Told)
}

struct Question {
    key: CacheKey,
    method: Method,
    fields: HeaderMap,
    response: Option<(StatusCode, HeaderMap)>,
    live: bool,
}

impl Question {
    fn new(ask: &ExplainRequest) -> Result<Question, Refusal> {
        let fields = |list: &[(String, String)]| -> Result<HeaderMap, Refusal> {
            let mut fields = HeaderMap::new();
            for (name, value) in list {
                let (name, value) = pair(name, value)?;
                fields.append(name, value);
            }
            Ok(fields)
        };
        let method = ask.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| Refusal::bad("this is no method", "leave `method` out for GET"))?;
        let response = match &ask.response {
            None => None,
            Some(response) => {
                let status = StatusCode::from_u16(response.status)
                    .map_err(|_| Refusal::bad("this is no status", "send one from 100 to 999"))?;
                Some((status, fields(&response.headers)?))
            }
        };
        if ask.live && method != Method::GET {
            let remedy = "leave `live` out, or ask about GET";
            return Err(Refusal::bad("an origin is asked with GET only", remedy));
        }
        Ok(Question {
            key: key_of(&ask.url)?,
            method,
            fields: fields(&ask.headers)?,
            response,
            live: ask.live,
        })
    }

    fn explain(self, shared: &Shared) -> Result<Explanation, Refusal> {
        let config = shared.control.config.load_full();
        let mut steps = Steps::default();
        let verdict = self.decide(shared, &config, &mut steps)?;
        let deciding = steps.0.iter().rev().find(|step| step.decides);
        let because = deciding.map_or("", |step| step.answer.as_str());
        Ok(Explanation {
            node: config.node.name.clone(),
            url: url_of(&self.key),
            verdict,
            summary: format!("{}: {because}", sentence(verdict)),
            steps: steps.0,
        })
    }

    fn decide(
        &self,
        shared: &Shared,
        config: &Config,
        steps: &mut Steps,
    ) -> Result<Verdict, Refusal> {
        let target = self.key.target();
        if is_reserved(target) {
            steps
                .add(
                    "Is the path the node's own?",
                    "yes: it never reaches an origin",
                )
                .rule("/_caje is reserved")
                .decides();
            return Ok(Verdict::Refused);
        }
        let authority = self.key.authority();
        let host = match authority.rfind([':', ']']) {
            Some(at) if authority.as_bytes()[at] == b':' => &authority[..at],
            _ => authority,
        };
        let Some(origin) = Routes::new(config)
            .find(host, target)
            .and_then(|at| config.origins.get(at))
        else {
            steps
                .add(
                    "Which origin is it for?",
                    format!("none answers for `{host}` and this path"),
                )
                .rule("[[origin]] hosts, path_prefix")
                .hint("add the host to an origin's `hosts`, or an origin without `hosts`")
                .decides();
            return Ok(Verdict::Refused);
        };
        steps
            .add(
                "Which origin is it for?",
                format!("`{}` at {}", origin.name, origin.url),
            )
            .rule("[[origin]] hosts, path_prefix");
        if !matches!(self.method, Method::GET | Method::HEAD) {
            let invalidates = freshness::invalidates(&self.method, StatusCode::OK);
            let more = if invalidates {
                "; a success invalidates what is stored for the URL"
            } else {
                ""
            };
            steps
                .add(
                    "Can the cache answer the method?",
                    format!("no: {} is passed on{more}", self.method),
                )
                .rfc(if invalidates {
                    "RFC 9111 §4.4"
                } else {
                    "RFC 9110 §9.2.3"
                })
                .decides();
            return Ok(Verdict::Bypass);
        }
        steps
            .add(
                "Can the cache answer the method?",
                format!("yes: {}", self.method),
            )
            .rfc("RFC 9110 §9.2.3");
        if conditional::has_unconditional_preconditions(&self.fields) {
            steps
                .add(
                    "Are there preconditions for the origin to judge?",
                    "yes: it is passed on",
                )
                .rule("If-Match or If-Unmodified-Since")
                .rfc("RFC 9111 §4.3.2")
                .hint("leave these fields out of requests that only read")
                .decides();
            return Ok(Verdict::Bypass);
        }
        let rules = origin.rules.clone();
        let found = self.look_up(shared, &rules, steps);
        if let Some((verdict, _)) = &found
            && matches!(verdict, Verdict::Hit | Verdict::Stale)
            && self.response.is_none()
            && !self.live
        {
            return Ok(*verdict);
        }
        let now = clock::now();
        let answered = match (&self.response, self.live) {
            (Some((status, fields)), _) => Some((*status, fields.clone(), now)),
            (None, true) => Some(self.ask_origin(shared, config, origin, steps)?),
            (None, false) => None,
        };
        let Some((status, fields, sent_at)) = answered else {
            if let Some((verdict, _)) = found {
                return Ok(verdict);
            }
            steps
                .add(
                    "May the answer be stored?",
                    "its head decides, which is not known here",
                )
                .rfc("RFC 9111 §3")
                .hint("give the answer's head, or `--live` to ask the origin now")
                .decides();
            return Ok(Verdict::Fetch);
        };
        Ok(self.judge(shared, &rules, status, &fields, sent_at, steps))
    }

    /// What a lookup finds.
    fn look_up(
        &self,
        shared: &Shared,
        rules: &Rules,
        steps: &mut Steps,
    ) -> Option<(Verdict, Arc<Stored>)> {
        let residency = &shared.control.cache.residency;
        let now = clock::now();
        let question = "Is something stored that the request selects?";
        let Some(resource) = residency.find(&self.key) else {
            let hint = "the key is scheme, host and target as clients send them to this node, byte for byte";
            steps
                .add(question, "no: nothing is stored under this URL")
                .rfc("RFC 9111 §2")
                .hint(hint);
            if residency.is_unshareable(&self.key, clock::now_secs()) {
                steps
                    .add(
                        "Do requests wait for one another?",
                        "no: the last answer could not be shared",
                    )
                    .rfc("RFC 9111 §4");
            }
            return None;
        };
        let selected = resource.select(&self.fields);
        let Some(stored) = selected.filter(|stored| !residency.is_gone(stored)) else {
            let fields: Vec<String> = resource
                .variants()
                .iter()
                .flat_map(|stored| {
                    stored
                        .head
                        .vary
                        .fields()
                        .map(str::to_owned)
                        .collect::<Vec<_>>()
                })
                .collect();
            let answer = format!(
                "no: other variants are, told apart by {}",
                fields.join(", ")
            );
            steps.add(question, answer).rule("Vary").rfc("RFC 9111 §4.1")
                .hint("let the origin name fewer fields in Vary, or give the request's fields with -H");
            return None;
        };
        steps
            .add(
                question,
                format!(
                    "yes: a {} of {} bytes",
                    stored.head.status,
                    stored.body.object.present_bytes()
                ),
            )
            .rfc("RFC 9111 §4.1");
        let freshness = match residency.standing(&stored) {
            Standing::StaleSince(since) => {
                steps
                    .add("Was it purged softly?", "yes: it is stale since then")
                    .rule("a soft purge");
                stored.head.freshness.stale_since(since)
            }
            Standing::Good | Standing::Outdated => stored.head.freshness.clone(),
        };
        let (age, ttl) = (freshness.age(now).as_secs(), freshness.ttl(now));
        let question = "Is it fresh?";
        if residency.standing(&stored) == Standing::Outdated {
            let (answer, rule) = match residency.is_in_doubt(&stored) {
                true => (
                    "not known: it may have been purged while this node was away",
                    "the log of purges, which was not read, or not without a gap",
                ),
                false => (
                    "no: it was made stale before its time",
                    "a HEAD that told of another version",
                ),
            };
            steps.add(question, answer).rule(rule).decides();
            return Some((Verdict::Validate, stored));
        }
        let guess = if freshness.is_heuristic() {
            ", by the node's own reckoning"
        } else {
            ""
        };
        let verdict = match freshness.decide(&self.fields, rules, now) {
            Decision::Fresh => {
                steps
                    .add(
                        question,
                        format!("yes: {age} s old, and fresh for {ttl} s more{guess}"),
                    )
                    .rfc(if freshness.is_heuristic() {
                        "RFC 9111 §4.2.2"
                    } else {
                        "RFC 9111 §4.2.1"
                    })
                    .decides();
                Verdict::Hit
            }
            Decision::StaleAllowed => {
                steps
                    .add(question, format!("no, for {} s; the client takes it", -ttl))
                    .rule("max-stale")
                    .rfc("RFC 9111 §5.2.1.2")
                    .decides();
                Verdict::Hit
            }
            Decision::StaleWhileRevalidate => {
                steps
                    .add(
                        question,
                        format!("no, for {} s; it is served while it is validated", -ttl),
                    )
                    .rule("stale-while-revalidate")
                    .rfc("RFC 5861 §3")
                    .decides();
                Verdict::Stale
            }
            Decision::Validate if ttl > 0 => {
                steps
                    .add(question, "it has to be validated before each use")
                    .rule("no-cache")
                    .rfc("RFC 9111 §5.2.2.4")
                    .hint("let the origin send max-age instead of no-cache")
                    .decides();
                Verdict::Validate
            }
            Decision::Validate => {
                steps
                    .add(question, format!("no: {age} s old, stale for {} s", -ttl))
                    .rfc("RFC 9111 §4.2")
                    .hint("let the origin send a longer s-maxage, or stale-while-revalidate")
                    .decides();
                Verdict::Validate
            }
            Decision::OnlyIfCached => {
                steps
                    .add(question, "no, and the client forbids to ask")
                    .rule("only-if-cached")
                    .rfc("RFC 9111 §5.2.1.7")
                    .decides();
                Verdict::Refused
            }
        };
        Some((verdict, stored))
    }

    /// Whether an answer with this head would be stored.
    fn judge(
        &self,
        shared: &Shared,
        rules: &Rules,
        status: StatusCode,
        fields: &HeaderMap,
        sent_at: SystemTime,
        steps: &mut Steps,
    ) -> Verdict {
        let now = clock::now();
        let directives = CacheControl::of_response(fields);
        let said = [
            "caje-cdn-cache-control",
            "cdn-cache-control",
            "surrogate-control",
            "cache-control",
        ]
        .into_iter()
        .find(|name| fields.contains_key(*name));
        match said {
            Some(name) => {
                let values: Vec<String> = fields
                    .get_all(name)
                    .iter()
                    .map(super::objects::lossy)
                    .collect();
                let targeted = if directives.targeted {
                    "RFC 9213 §2.1"
                } else {
                    "RFC 9111 §5.2"
                };
                steps
                    .add(
                        "Which field rules?",
                        format!("{name}: {}", values.join(", ")),
                    )
                    .rfc(targeted);
            }
            None => {
                steps
                    .add(
                        "Which field rules?",
                        "none: the origin says nothing about caching",
                    )
                    .rfc("RFC 9111 §5.2");
            }
        }
        let question = "May the answer be stored?";
        let freshness = match storable(
            &self.method,
            &self.fields,
            status,
            fields,
            rules,
            sent_at,
            now,
        ) {
            Ok(freshness) => freshness,
            Err(reason) => {
                let (answer, hint) = remedy(reason);
                steps
                    .add(question, format!("no: {answer}"))
                    .rule(reason.detail())
                    .rfc(reason.rfc())
                    .hint(hint)
                    .decides();
                return Verdict::NotStored;
            }
        };
        let length = fields
            .get(http::header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let largest = shared.control.cache.store.largest_body();
        if let Some(length) = length.filter(|length| *length > largest) {
            steps
                .add(
                    question,
                    format!("no: {length} bytes are more than half of the store"),
                )
                .rule("store.size")
                .hint("raise `store.size`")
                .decides();
            return Verdict::NotStored;
        }
        let ttl = freshness.ttl(now);
        let heuristic = freshness.is_heuristic();
        let (answer, rfc) = match (ttl > 0, freshness.is_shareable(now)) {
            (true, true) if heuristic => (
                format!("yes, fresh for {ttl} s by the node's own reckoning"),
                "RFC 9111 §4.2.2",
            ),
            (true, true) => (format!("yes, fresh for {ttl} s"), "RFC 9111 §4.2.1"),
            (true, false) => (
                "yes, but it is validated before each use".to_owned(),
                "RFC 9111 §5.2.2.4",
            ),
            (false, _) => (
                "yes, but it is stale on arrival and validated before each use".to_owned(),
                "RFC 9111 §4.3",
            ),
        };
        let step = steps.add(question, answer).rfc(rfc).decides();
        if heuristic {
            step.hint("let the origin say it: Cache-Control with max-age or s-maxage");
        }
        Verdict::Store
    }

    /// Asks the origin once, as a client's request would be.
    fn ask_origin(
        &self,
        shared: &Shared,
        config: &Config,
        origin: &Origin,
        steps: &mut Steps,
    ) -> Result<(StatusCode, HeaderMap, SystemTime), Refusal> {
        let failed = |why: String| {
            let remedy = format!("check that {} answers; `caje doctor` tries it", origin.url);
            Refusal::new(
                StatusCode::BAD_GATEWAY,
                "origin",
                format!("the origin was not asked: {why}"),
                remedy,
            )
        };
        let settings = origin
            .upstream_settings(1)
            .map_err(|error| failed(error.to_string()))?;
        let rules = config
            .origin_rules(&shared.control.metrics)
            .map_err(|error| failed(error.to_string()))?;
        let rule = rules.iter().find(|rule| *rule.name == *origin.name);
        let client = self.key.authority();
        let authority = rule.map_or_else(|| client.into(), |rule| rule.authority_for(client));
        let identity = &shared.control.identity;
        let mut request =
            UpstreamRequest::new(Method::GET, self.key.target().to_vec().into(), authority);
        request.headers = self.fields.clone();
        hop::strip_hop_by_hop(&mut request.headers);
        hop::append_via(&mut request.headers, Version::HTTP_11, &identity.pseudonym);
        hop::append_cdn_loop(&mut request.headers, &identity.cdn_id);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let sent_at = clock::now();
        let pool = OriginPool::new(Arc::new(Counters::default()));
        let asked = tokio::task::LocalSet::new().block_on(&runtime, async {
            let settings = Arc::new(settings);
            let mut interim = |_, _| {};
            let sent = pool.send(&settings, request, &mut interim);
            tokio::time::timeout(LIVE_TIMEOUT, sent).await
        });
        let response = match asked {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => {
                return Err(failed(format!(
                    "no answer within {} s",
                    LIVE_TIMEOUT.as_secs()
                )));
            }
        };
        steps.add("What does the origin answer?", response.status.to_string());
        let mut fields = response.headers;
        if let Some(length) = response.content_length {
            fields.insert(http::header::CONTENT_LENGTH, length.into());
        }
        Ok((response.status, fields, sent_at))
    }
}

fn sentence(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Hit => "it is answered from the cache",
        Verdict::Stale => "it is answered from the cache, and validated behind the client's back",
        Verdict::Validate => "the origin is asked whether what is stored is still right",
        Verdict::Store => "the origin's answer is stored",
        Verdict::NotStored => "the origin's answer is not stored",
        Verdict::Fetch => "the origin is asked",
        Verdict::Bypass => "it is passed on",
        Verdict::Refused => "no origin is asked",
    }
}

/// In words, and what to change.
fn remedy(reason: NoStore) -> (&'static str, &'static str) {
    match reason {
        NoStore::Method => (
            "only answers to GET are stored",
            "ask with GET first; HEAD is then answered from it",
        ),
        NoStore::Status => (
            "answers with this status are not stored",
            "nothing: interim, partial and 304 answers are no responses of their own",
        ),
        NoStore::NotUnderstood => (
            "must-understand, with a status that this node does not know",
            "send a status of RFC 9110, or leave must-understand out",
        ),
        NoStore::Directive => (
            "the origin forbids it with no-store",
            "let the origin leave no-store out, or send CDN-Cache-Control for the CDN alone",
        ),
        NoStore::RequestDirective => (
            "the client forbids it with no-store",
            "set `honor_client_cache_control = false` for the origin",
        ),
        NoStore::Private => (
            "the origin says that it is for one user",
            "let the origin leave private out if the answer is the same for all",
        ),
        NoStore::Authorization => (
            "the request has Authorization, and the answer is not marked as one for all",
            "let the origin send public or s-maxage; or set `store_authorized = true` if it is the same for all",
        ),
        NoStore::SetCookie => (
            "it sets a cookie, which would go to every client",
            "let the origin set cookies on other URLs only; or set `store_set_cookie = true` if the cookie is the same for all",
        ),
        NoStore::VaryAny => (
            "Vary: * lets no request select it",
            "let the origin name the request fields that matter",
        ),
        NoStore::NoFreshness => (
            "nothing says how long it is fresh",
            "let the origin send Cache-Control with max-age; or set `default_ttl` for the origin",
        ),
        NoStore::NotReusable => (
            "it is stale on arrival, and has nothing to be validated by",
            "let the origin send max-age above 0, or an ETag",
        ),
    }
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, question: &str, answer: impl Into<String>) -> Writing<'_> {
        self.0.push(Step {
            question: question.to_owned(),
            answer: answer.into(),
            decides: false,
            rule: None,
            rfc: None,
            hint: None,
        });
        let last = self.0.len() - 1;
        Writing(&mut self.0[last])
    }
}

/// The step that was added last.
struct Writing<'s>(&'s mut Step);

impl Writing<'_> {
    fn rule(self, rule: &str) -> Self {
        self.0.rule = Some(rule.to_owned());
        self
    }

    fn rfc(self, rfc: &str) -> Self {
        self.0.rfc = Some(rfc.to_owned());
        self
    }

    fn hint(self, hint: &str) -> Self {
        self.0.hint = Some(hint.to_owned());
        self
    }

    fn decides(self) -> Self {
        self.0.decides = true;
        self
    }
}
