//! How far jobs are, as it happens: of this node's jobs, and of other nodes', in one answer.
//!
//! ```text
//! events of a, b, c ──► a is here: its own book, watched ───────────────────────────┬──► one stream of events
//!                   └─► b, c are elsewhere: each node is asked for its job, ────────┘
//!                       and waits with its answer until it is another than the one known
//! ```
//!
//! Kept true here:
//! - Nobody polls: a node answers another when the job has changed, or after [`PATIENCE`], so that a connection that
//!   leads nowhere is found out.
//! - Who watches has a place, and so has each node that asks for another who watches; there are so many and no more.
//! - A client that goes takes all of it along: the questions to other nodes are dropped with its answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use caje_admin_api::{ErrorBody, Job, JobLost, Jobs, path};
use futures_util::stream::{self, BoxStream, Stream, StreamExt, unfold};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::Node;
use super::jobs::{self, Watched};
use super::refusal::{Answer, Asked, Refusal, Told};
use crate::talk::{self, Peer, Reply, Silence};

/// Answers of events at a time.
const MAX_WATCHERS: usize = 16;

/// Questions of other nodes that wait at a time.
const MAX_WAITING: usize = 16;

/// Jobs of one answer.
const MAX_WATCHED: usize = 64;

/// Between two events of a job: one of thousands of items would otherwise drown who watches.
const EVENT_PACE: Duration = Duration::from_millis(100);

/// So that a connection that nobody reads is found out.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long a node waits with its answer to another.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often in a row a node may be silent, and the pause after each time.
const MAX_SILENCES: u32 = 3;
const SILENCE_PAUSE: Duration = Duration::from_secs(1);

/// The places of those who watch.
pub(super) struct Places {
    watchers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Places {
        Places {
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }
}

fn place(among: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    among.clone().try_acquire_owned().map_err(|_| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-watchers",
            "too many watch jobs by this node already",
            "`caje jobs show ID` tells how far it is",
        )
    })
}

/// What a node answers another.
#[derive(Serialize, Deserialize)]
struct Seen {
    /// Stands for the job as it is here.
    mark: String,
    job: Job,
}

impl Seen {
    fn new(job: Job) -> Seen {
        let text = serde_json::to_vec(&job).unwrap_or_default();
        let mark = blake3::hash(&text).to_hex()[..16].to_owned();
        Seen { mark, job }
    }
}

/// A job of this node, once it is another than the one with this mark. `None` where it has none of this id.
async fn next(node: &Node, id: &str, mark: Option<&str>) -> Option<Seen> {
    let mut watched = jobs::watched(node, id)?;
    loop {
        // Before it is read: what changes afterwards is seen.
        watched.mark_seen();
        let seen = Seen::new(jobs::find(node, id)?);
        if mark != Some(seen.mark.as_str()) {
            return Some(seen);
        }
        watched.changed().await?;
    }
}

/// What another node asks for.
#[derive(Deserialize)]
pub(super) struct Question {
    id: String,
    /// Of the job as the other knows it.
    mark: Option<String>,
}

/// Another node asks for one of this node's jobs. If it is as the other knows it, the answer waits until it is not.
pub(super) async fn told(
    State(node): State<Node>,
    Asked(question): Asked<Question>,
) -> Answer<serde_json::Value> {
    let _place = place(&node.places.waiting)?;
    let found = timeout(
        PATIENCE,
        next(&node, &question.id, question.mark.as_deref()),
    );
    let seen = match found.await {
        Ok(seen) => seen,
        Err(_) => jobs::find(&node, &question.id).map(Seen::new),
    };
    let seen = seen.ok_or_else(|| jobs::unknown(&question.id))?;
    let value = serde_json::to_value(&seen).map_err(|_| Refusal::internal())?;
    Ok(Told(value))
}

/// What is said of a job.
enum Said {
    Progress(Job),
    Lost(JobLost),
}

impl Said {
    fn event(&self) -> Event {
        let (name, text) = match self {
            Said::Progress(job) => ("progress", serde_json::to_string(job)),
            Said::Lost(lost) => ("lost", serde_json::to_string(lost)),
        };
        Event::default().event(name).data(text.unwrap_or_default())
    }
}

/// Events of jobs of any nodes: each is one of them as it is then, until all are over.
pub(super) async fn events(
    State(node): State<Node>,
    Path(ids): Path<String>,
) -> Result<Response, Refusal> {
    let mut wanted: Vec<&str> = ids.split(',').filter(|id| !id.is_empty()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() || wanted.len() > MAX_WATCHED {
        let message = format!("the events of 1 to {MAX_WATCHED} jobs are told at a time");
        return Err(Refusal::bad(message, "write their ids with commas between"));
    }
    let place = place(&node.places.watchers)?;
    let (own, others): (Vec<&str>, Vec<&str>) = wanted
        .iter()
        .partition(|id| jobs::find(&node, id).is_some());
    let mut streams: Vec<BoxStream<'static, Said>> = Vec::new();
    let mut lost = Vec::new();
    for id in own {
        streams.push(own_events(node.clone(), id.to_owned()).boxed());
    }
    if !others.is_empty() {
        let (found, silent) = held_by(&node).await;
        for id in others {
            match found
                .iter()
                .find(|(_, ids)| ids.iter().any(|held| held == id))
            {
                Some((peer, _)) => {
                    let (node, peer) = (node.clone(), peer.clone());
                    streams.push(others_events(node, peer, id.to_owned()).boxed());
                }
                None => lost.push(id.to_owned()),
            }
        }
        if streams.is_empty() {
            return Err(match silent {
                Some(refusal) => refusal,
                None => jobs::unknown(&lost.join(", ")),
            });
        }
    }
    let lost = lost.into_iter().map(|id| {
        Said::Lost(JobLost {
            error: format!("no node that answers has a job `{id}`"),
            node: None,
            id,
        })
    });
    let lost: Vec<Said> = lost.collect();
    let all = stream::iter(lost).chain(stream::select_all(streams));
    let told = all.map(move |said| {
        let _held = &place;
        Ok::<_, Infallible>(said.event())
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(told).keep_alive(keep_alive).into_response())
}

/// The jobs that other nodes remember; and why one of them, if any, does not say.
async fn held_by(node: &Node) -> (Vec<(Peer, Vec<String>)>, Option<Refusal>) {
    let talk = &node.control.talk;
    let nothing = Bytes::new();
    let asked = talk.ask_all(talk.peers(), &Method::GET, path::JOBS, &nothing, true);
    let mut found = Vec::new();
    let mut silent = None;
    for (peer, reply) in asked.await {
        let jobs = match &reply {
            Ok(reply) => serde_json::from_slice::<Jobs>(&reply.body).ok(),
            Err(silence) => {
                silent = Some(super::over::silent(&peer.name(), silence));
                None
            }
        };
        let ids = jobs.map(|jobs| jobs.jobs.into_iter().map(|job| job.id).collect());
        found.extend(ids.map(|ids| (peer, ids)));
    }
    (found, silent)
}

fn own_events(node: Node, id: String) -> impl Stream<Item = Said> {
    unfold(Some((node, id, None::<String>)), |state| async move {
        let (node, id, mark) = state?;
        if mark.is_some() {
            sleep(EVENT_PACE).await;
        }
        let Some(seen) = next(&node, &id, mark.as_deref()).await else {
            let lost = JobLost {
                error: "it is remembered no more".to_owned(),
                node: Some(node.name()),
                id,
            };
            return Some((Said::Lost(lost), None));
        };
        let rest = (!seen.job.state.is_over()).then_some((node, id, Some(seen.mark)));
        Some((Said::Progress(seen.job), rest))
    })
}

fn others_events(node: Node, peer: Peer, id: String) -> impl Stream<Item = Said> {
    let begin = Some((node, peer, id, None::<String>));
    unfold(begin, |state| async move {
        let (node, peer, id, mark) = state?;
        if mark.is_some() {
            sleep(EVENT_PACE).await;
        }
        match next_of(&node, &peer, &id, mark.as_deref()).await {
            Ok(seen) => {
                let rest = (!seen.job.state.is_over()).then_some((node, peer, id, Some(seen.mark)));
                Some((Said::Progress(seen.job), rest))
            }
            Err(error) => {
                let lost = JobLost {
                    id,
                    node: Some(peer.name()),
                    error,
                };
                Some((Said::Lost(lost), None))
            }
        }
    })
}

/// Another node's job, once it is another than the one with this mark; or why nothing is known of it any more.
async fn next_of(node: &Node, peer: &Peer, id: &str, mark: Option<&str>) -> Result<Seen, String> {
    let mut target = format!("{}?id={}", talk::JOB, plain(id));
    if let Some(mark) = mark {
        target.push_str(&format!("&mark={mark}"));
    }
    let mut silences = 0;
    loop {
        let reply = node.control.talk.wait_for(peer, &target, PATIENCE).await;
        match understood(reply) {
            // It has waited in vain: asked again, it waits again.
            Ok(seen) if mark == Some(seen.mark.as_str()) => silences = 0,
            Ok(seen) => return Ok(seen),
            Err(Unheard::Refused(error)) => return Err(error),
            Err(Unheard::Silent(error)) => {
                silences += 1;
                if silences >= MAX_SILENCES {
                    return Err(error);
                }
                sleep(SILENCE_PAUSE).await;
            }
        }
    }
}

enum Unheard {
    Silent(String),
    Refused(String),
}

fn understood(reply: Result<Reply, Silence>) -> Result<Seen, Unheard> {
    let reply = reply.map_err(|silence| Unheard::Silent(silence.to_string()))?;
    if reply.status == StatusCode::OK {
        let seen = serde_json::from_slice(&reply.body);
        return seen.map_err(|_| Unheard::Refused("its answer cannot be read".to_owned()));
    }
    let said = serde_json::from_slice::<ErrorBody>(&reply.body);
    let said = said.map_or_else(
        |_| format!("it answers with {}", reply.status),
        |said| said.error.message,
    );
    Err(match reply.status {
        StatusCode::SERVICE_UNAVAILABLE => Unheard::Silent(said),
        _ => Unheard::Refused(said),
    })
}

/// An id has nothing that is not itself in a query; what has is nobody's.
fn plain(id: &str) -> String {
    id.chars()
        .filter(|&char| char.is_ascii_alphanumeric() || "-_.".contains(char))
        .collect()
}

impl Watched {
    /// Completes with each change; with `None` when there will be none.
    async fn changed(&mut self) -> Option<()> {
        match self {
            Watched::Run(told) => told.changed().await.ok(),
            Watched::Job(job) => job.changed().await.ok(),
        }
    }

    fn mark_seen(&mut self) {
        match self {
            Watched::Run(told) => drop(told.borrow_and_update()),
            Watched::Job(job) => drop(job.borrow_and_update()),
        }
    }
}
