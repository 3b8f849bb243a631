//! One question to other nodes, and what their answers have to prove.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method};

use super::node::{Pass, PeerNode};
use super::seal::Opener;
use super::secret::{self, Nonce, Secret};
use super::{ASKED, LENGTH, MODE, Mode, Peers, Stamps, select};
use crate::clock;
use crate::origin::{
    ErrorKind, OriginPool, ResponseBody, Unbelieved, UpstreamRequest, UpstreamResponse,
};
use crate::telemetry::{Metrics, PeerOutcome};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What is asked for where only the answer's time counts: a name that nobody has (RFC 6761 §6.4).
const PROBED: &str = "probe.invalid";

/// A node that takes longer is of no use to a client.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A GET for a response that is not here.
pub struct Question<'a> {
    /// The cache key's hash.
    pub key: &'a [u8; 32],
    pub authority: &'a str,
    /// Origin-form.
    pub target: &'a Bytes,
    /// End-to-end fields, without any that belong to one user.
    pub fields: &'a HeaderMap,
    pub mode: Mode,
    /// Until the head of an answer has come.
    pub timeout: Duration,
}

/// What a node that has proven itself gives.
pub struct Found {
    /// Its head is without the fields between nodes, and without what that node says of its own cache.
    pub response: UpstreamResponse,
    pub stamps: Stamps,
    /// Whose it is.
    pub node: Arc<PeerNode>,
}

impl Peers {
    /// Asks the nodes that come into question, together. `None`: nobody gives it in time. Dropping the future
    /// ends the question.
    pub async fn ask(
        &self,
        pool: &OriginPool,
        question: &Question<'_>,
        metrics: &Metrics,
    ) -> Option<Found> {
        let secret = self.secret()?;
        let target = std::str::from_utf8(question.target).ok()?;
        let nodes = self.nodes();
        let passes = match question.mode {
            Mode::Off => return None,
            Mode::Nearest => select::nearest(&nodes, question.key),
            Mode::Shield => {
                let pass = select::shield(&nodes, &self.me, question.key);
                pass.into_iter().collect()
            }
        };
        if passes.is_empty() {
            return None;
        }
        let attempt = |pass| {
            let attempt = async move {
                let asked = self.attempt(pool, secret, pass, question, target).await;
                match asked {
                    Ok(found) => Some(found),
                    Err(outcome) => {
                        metrics.peer_requests.increment(outcome);
                        None
                    }
                }
            };
            Box::pin(attempt) as Pin<Box<dyn Future<Output = Option<Found>> + '_>>
        };
        let mut attempts: Vec<_> = passes.iter().map(attempt).collect();
        let first = poll_fn(|cx| {
            let mut found = None;
            attempts.retain_mut(|attempt| {
                if found.is_some() {
                    return true;
                }
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(answer) => {
                        found = answer;
                        false
                    }
                    Poll::Pending => true,
                }
            });
            match found {
                None if !attempts.is_empty() => Poll::Pending,
                found => Poll::Ready(found),
            }
        });
        let in_time = tokio::time::timeout(question.timeout, first).await;
        drop(attempts);
        for pass in passes.iter().filter(|pass| !pass.is_over()) {
            let outcome = match in_time {
                Ok(_) => PeerOutcome::Outpaced,
                Err(_) => {
                    pass.was_late(question.mode == Mode::Shield);
                    PeerOutcome::Timeout
                }
            };
            metrics.peer_requests.increment(outcome);
        }
        in_time.ok().flatten()
    }

    /// Asks each node of these names that does not rest for what nobody has, one after the other: how long an answer
    /// takes, and whether there is one, is known before a client's question depends on it.
    pub async fn probe(&self, pool: &OriginPool, names: &[String]) {
        let Some(secret) = self.secret() else { return };
        let question = Question {
            key: &[0; 32],
            authority: PROBED,
            target: &Bytes::from_static(b"/"),
            fields: &HeaderMap::new(),
            mode: Mode::Nearest,
            timeout: PROBE_TIMEOUT,
        };
        for node in self.nodes().iter() {
            let pass = names.iter().any(|name| *name == *node.id());
            let Some(pass) = pass.then(|| node.admit()).flatten() else {
                continue;
            };
            let asked = self.attempt(pool, secret, &pass, &question, "/");
            if tokio::time::timeout(PROBE_TIMEOUT, asked).await.is_err() {
                pass.was_late(false);
            }
        }
    }

    async fn attempt(
        &self,
        pool: &OriginPool,
        secret: &Secret,
        pass: &Pass,
        question: &Question<'_>,
        target: &str,
    ) -> Result<Found, PeerOutcome> {
        let nonce = nonce();
        let authority = question.authority;
        let mut request = UpstreamRequest::new(Method::GET, question.target.clone(), authority);
        request.headers = question.fields.clone();
        let proof = secret.ask(
            &self.me,
            clock::wall(),
            nonce,
            &Method::GET,
            authority,
            target,
            b"",
        );
        request.headers.insert(secret::ASK, proof);
        request.headers.insert(MODE, question.mode.to_header());
        let began = Instant::now();
        let sent = pool
            .send(&pass.node.upstream, request, &mut |_, _| {})
            .await;
        let mut response = sent.map_err(|error| {
            tracing::debug!(node = pass.node.id(), %error, "a node does not answer");
            // That there is no connection left for it is not its fault.
            if error.kind != ErrorKind::Busy {
                pass.failed();
            }
            PeerOutcome::Failed
        })?;
        let proven = proven_fields(&response.headers);
        if !secret.is_answer(nonce, response.status, &proven) {
            tracing::debug!(node = pass.node.id(), "who answers is not a node");
            pass.failed();
            return Err(PeerOutcome::Untrusted);
        }
        let took = (question.mode == Mode::Nearest).then(|| began.elapsed());
        pass.answered(took);
        let Some(asked) = response.headers.get(ASKED) else {
            return Err(PeerOutcome::Absent);
        };
        let stamps = Stamps::parse(asked).ok_or(PeerOutcome::Unfit)?;
        let length = match response.headers.get(LENGTH) {
            Some(length) => Some(parse_length(length).ok_or(PeerOutcome::Unfit)?),
            None => None,
        };
        // What the framing says has nobody proven.
        response.content_length = length;
        response.close_delimited = false;
        let body = std::mem::replace(&mut response.body, ResponseBody::empty());
        if length != Some(0) {
            let mut opener = Opener::new(secret, nonce);
            response.body = body.believed(move |data, proven| match data {
                Some(data) => opener.open(data, proven).map_err(|_| Unbelieved::Wrong),
                None if opener.is_over() => Ok(()),
                None => Err(Unbelieved::Cut),
            });
        }
        super::strip_fields(&mut response.headers);
        remove_last_cache_status(&mut response.headers);
        Ok(Found {
            response,
            stamps,
            node: pass.node.clone(),
        })
    }
}

fn parse_length(field: &HeaderValue) -> Option<u64> {
    let text = field.to_str().ok()?;
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// The fields of an answer that its proof is about. `Cache-Status` is written into place with the head, and framing
/// belongs to the connection.
pub fn proven_fields(fields: &HeaderMap) -> HeaderMap {
    let mut proven = fields.clone();
    proven.remove(CACHE_STATUS);
    proven.remove(header::CONTENT_LENGTH);
    proven
}

/// Each cache writes a line of its own behind the others. The node's says how it came by its answer, which is nothing
/// to tell with each hit here.
fn remove_last_cache_status(headers: &mut HeaderMap) {
    let mut lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().cloned().collect();
    lines.pop();
    headers.remove(CACHE_STATUS);
    for line in lines {
        headers.append(CACHE_STATUS, line);
    }
}

/// Not the same twice.
fn nonce() -> Nonce {
    RandomState::new().hash_one(clock::uptime()).to_le_bytes()
}
