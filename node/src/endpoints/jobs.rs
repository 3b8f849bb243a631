//! Work that goes on after the answer that began it, with an id, its progress and a way to end it.
//!
//! A job runs on the control thread between its waits, and ends with the process. What it has reached is
//! watched: nobody polls.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use caje_admin_api::{Job, JobRequest, JobState, Jobs};
use futures_util::stream::unfold;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::objects::millis;
use super::refusal::{Answer, Ask, Refusal, Told, json};
use super::{Node, spawn};
use crate::block::BlockIndex;
use crate::clock;
use crate::store::{Object, ReadError};

/// Jobs that are remembered, those that run included.
const MAX_JOBS: usize = 64;

/// Answers of events at a time.
const MAX_WATCHERS: usize = 16;

/// Items between two tellings of progress.
const STEP: u64 = 64;

/// So that a connection that nobody reads is found out.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Registry {
    /// The oldest first.
    jobs: Mutex<VecDeque<Arc<Entry>>>,
    begun: AtomicU64,
}

struct Entry {
    job: watch::Sender<Job>,
    cancelled: AtomicBool,
}

impl Registry {
    /// A new job, unless one of its kind runs.
    fn begin(&self, node: &str, kind: &str) -> Result<Arc<Entry>, Refusal> {
        let mut jobs = self.jobs.lock();
        let running = jobs
            .iter()
            .map(|entry| entry.job.borrow().clone())
            .find(|job| job.kind == kind && !job.state.is_over());
        if let Some(running) = running {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "runs-already",
                format!("a job `{kind}` runs already: {}", running.id),
                format!(
                    "watch it with `caje jobs watch {}`, or cancel it first",
                    running.id
                ),
            ));
        }
        let started_ms = millis(clock::now());
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let job = Job {
            id: format!("{kind}-{started_ms:x}-{number:x}"),
            node: node.to_owned(),
            kind: kind.to_owned(),
            state: JobState::Running,
            started_ms,
            ended_ms: None,
            done: 0,
            total: 0,
            failed: 0,
            bytes: 0,
            message: None,
        };
        let entry = Arc::new(Entry {
            job: watch::Sender::new(job),
            cancelled: AtomicBool::new(false),
        });
        if jobs.len() >= MAX_JOBS {
            let over = jobs
                .iter()
                .position(|entry| entry.job.borrow().state.is_over());
            jobs.remove(over.unwrap_or(0));
        }
        jobs.push_back(entry.clone());
        Ok(entry)
    }

    fn find(&self, id: &str) -> Result<Arc<Entry>, Refusal> {
        let jobs = self.jobs.lock();
        let found = jobs.iter().find(|entry| entry.job.borrow().id == id);
        found.cloned().ok_or_else(|| {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "unknown-job",
                format!("there is no job `{}`", id.escape_default()),
                "`caje jobs` lists those that run or ran lately",
            )
        })
    }
}

impl Entry {
    fn shown(&self) -> Job {
        self.job.borrow().clone()
    }

    fn end(&self, state: JobState, message: String) {
        self.job.send_modify(|job| {
            job.state = state;
            job.ended_ms = Some(millis(clock::now()));
            job.message = Some(message);
        });
    }
}

pub(super) async fn list(State(node): State<Node>) -> Told<Jobs> {
    let jobs = node.jobs.jobs.lock();
    Told(Jobs {
        jobs: jobs.iter().rev().map(|entry| entry.shown()).collect(),
        unanswered: Vec::new(),
    })
}

pub(super) async fn show(State(node): State<Node>, Path(id): Path<String>) -> Answer<Job> {
    Ok(Told(node.jobs.find(&id)?.shown()))
}

pub(super) async fn cancel(State(node): State<Node>, Path(id): Path<String>) -> Answer<Job> {
    let entry = node.jobs.find(&id)?;
    entry.cancelled.store(true, Ordering::Relaxed);
    Ok(Told(entry.shown()))
}

/// Each event is the job as it is then; the last one is its end.
pub(super) async fn events(
    State(node): State<Node>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let watched = node.jobs.find(&id)?.job.subscribe();
    if node.jobs.find(&id)?.job.receiver_count() > MAX_WATCHERS {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-watchers",
            "too many watch this job already",
            "`caje jobs show ID` tells how far it is",
        ));
    }
    let stream = unfold(Some((watched, true)), |state| async move {
        let (mut watched, is_first) = state?;
        if !is_first {
            watched.changed().await.ok()?;
        }
        let job = watched.borrow_and_update().clone();
        let text = serde_json::to_string(&job).unwrap_or_default();
        let event = Event::default().event("progress").data(text);
        let rest = (!job.state.is_over()).then_some((watched, false));
        Some((Ok::<_, Infallible>(event), rest))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(stream).keep_alive(keep_alive).into_response())
}

pub(super) async fn begin(
    State(node): State<Node>,
    Ask(ask): Ask<JobRequest>,
) -> Result<Response, Refusal> {
    match ask.kind.as_str() {
        "verify" => verify(State(node)).await,
        "populate" => Err(super::manifest_is_not_here().await),
        other => {
            let message = format!("there is no job of the kind `{}`", other.escape_default());
            Err(Refusal::bad(message, "`verify` is one"))
        }
    }
}

pub(super) async fn verify(State(node): State<Node>) -> Result<Response, Refusal> {
    let entry = node.jobs.begin(&node.name(), "verify")?;
    let shown = entry.shown();
    spawn(verified(node, entry));
    Ok(json(StatusCode::ACCEPTED, &shown))
}

/// Reads every block that is here. A block that fails its checksum is given up by the store as it is read:
/// what is damaged is missing afterwards, and comes again from the origin.
async fn verified(node: Node, entry: Arc<Entry>) {
    let collect = node.apart(|shared| {
        let mut objects: Vec<Weak<Object>> = Vec::new();
        shared
            .control
            .cache
            .residency
            .for_each(|stored| objects.push(Arc::downgrade(&stored.body.object)));
        objects
    });
    let Ok(objects) = collect.await else {
        entry.end(
            JobState::Failed,
            "the stored responses could not be listed".to_owned(),
        );
        return;
    };
    entry
        .job
        .send_modify(|job| job.total = objects.len() as u64);
    let store = &node.control.cache.store;
    let (mut done, mut failed, mut bytes) = (0_u64, 0_u64, 0_u64);
    for object in &objects {
        if entry.cancelled.load(Ordering::Relaxed) {
            entry.end(
                JobState::Cancelled,
                format!("cancelled after {done} of {}", objects.len()),
            );
            return;
        }
        let mut is_damaged = false;
        if let Some(object) = object.upgrade() {
            let blocks = object
                .length()
                .map_or(0, |length| store.block_size().count(length));
            for index in (0..blocks).map(BlockIndex) {
                if !object.contains(index) || entry.cancelled.load(Ordering::Relaxed) {
                    continue;
                }
                match store.read(&object, index).await {
                    Ok(block) => bytes += block.len() as u64,
                    Err(ReadError::Absent | ReadError::Interrupted) => {}
                    Err(ReadError::Corrupt | ReadError::Io { .. }) => is_damaged = true,
                }
            }
        }
        done += 1;
        failed += u64::from(is_damaged);
        if done.is_multiple_of(STEP) {
            entry
                .job
                .send_modify(|job| (job.done, job.failed, job.bytes) = (done, failed, bytes));
            // Others of this thread have their turn, even if all was in memory.
            tokio::task::yield_now().await;
        }
    }
    entry
        .job
        .send_modify(|job| (job.done, job.failed, job.bytes) = (done, failed, bytes));
    let message = match failed {
        0 => format!("{done} stored responses are as they were written"),
        failed => format!("{failed} of {done} were damaged; their damaged blocks are gone"),
    };
    entry.end(JobState::Done, message);
}
