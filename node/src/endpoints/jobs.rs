//! Work that goes on after the answer that began it, with an id, its progress and a way to end it.
//!
//! A job runs on the control thread between its waits, and ends with the process; runs of populate are that worker's,
//! and shown here. What a job has reached is watched: nobody polls.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use axum::extract::{Path, State};
use axum::response::Response;
use caje_admin_api::{Job, JobRequest, JobState, Jobs};
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::coverage;
use super::objects::millis;
use super::refusal::{Answer, Ask, Refusal, Told, json};
use super::{Node, spawn};
use crate::block::BlockIndex;
use crate::clock;
use crate::manifest::Filter;
use crate::store::{Object, ReadError};
use crate::workers::populate::{Caps, Refused, Run, RunState, Told as Runs, Wish};

/// Jobs that are remembered, those that run included.
const MAX_JOBS: usize = 64;

/// Items between two tellings of progress.
const STEP: u64 = 64;

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
    fn begin(&self, node: &str, author: &str, kind: &str) -> Result<Arc<Entry>, Refusal> {
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
            id: format!("{kind}-{started_ms:x}-{number:x}-{author}"),
            node: node.to_owned(),
            kind: kind.to_owned(),
            state: JobState::Running,
            started_ms,
            ended_ms: None,
            done: 0,
            total: 0,
            failed: 0,
            bytes: 0,
            blocked: BTreeMap::new(),
            waiting: 0,
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
        found.cloned().ok_or_else(|| unknown(id))
    }
}

pub(super) fn unknown(id: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "unknown-job",
        format!("there is no job `{}`", id.escape_default()),
        "`caje jobs` lists those that run or ran lately",
    )
}

/// A job of this node as it is now.
pub(super) fn find(node: &Node, id: &str) -> Option<Job> {
    run_of(node, id).or_else(|| Some(node.jobs.find(id).ok()?.shown()))
}

/// Changes when a job does.
pub(super) enum Watched {
    Run(watch::Receiver<Arc<Runs>>),
    Job(watch::Receiver<Job>),
}

/// Tells of a job of this node.
pub(super) fn watched(node: &Node, id: &str) -> Option<Watched> {
    match run_of(node, id) {
        Some(_) => Some(Watched::Run(node.control.populate.watch())),
        None => Some(Watched::Job(node.jobs.find(id).ok()?.job.subscribe())),
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

/// All of them, the latest first.
pub(super) async fn list(State(node): State<Node>) -> Told<Jobs> {
    Told(Jobs {
        jobs: all(&node),
        unanswered: Vec::new(),
    })
}

pub(super) fn all(node: &Node) -> Vec<Job> {
    let mut jobs: Vec<Job> = {
        let jobs = node.jobs.jobs.lock();
        jobs.iter().map(|entry| entry.shown()).collect()
    };
    let name = node.name();
    let told = node.control.populate.watch().borrow().clone();
    jobs.extend(told.runs.iter().map(|run| job_of(&name, run)));
    jobs.sort_by_key(|job| std::cmp::Reverse(job.started_ms));
    jobs
}

/// A run of populate, which keeps its own book.
fn run_of(node: &Node, id: &str) -> Option<Job> {
    let told = node.control.populate.watch().borrow().clone();
    let run = told.runs.iter().find(|run| run.id == id)?;
    Some(job_of(&node.name(), run))
}

fn job_of(node: &str, run: &Run) -> Job {
    let left_alone = run
        .blocked
        .iter()
        .map(|(reason, count)| format!("{reason}: {count}"));
    let left_alone: Vec<String> = left_alone.collect();
    let mut message = match (run.state, run.dry_run) {
        (RunState::Running, _) if run.waiting > 0 => {
            Some(format!("{} failed and are tried again", run.waiting))
        }
        (RunState::Running, _) => None,
        (RunState::Done, true) => Some(format!("{} are lacking; nothing was fetched", run.total)),
        (RunState::Done, false) => Some(format!("{} fetched", run.fetched)),
        (RunState::Cancelled, _) => Some(format!(
            "cancelled after {}; `caje jobs resume {}` goes on",
            run.fetched, run.id
        )),
    };
    if let Some(message) = message.as_mut().filter(|_| !left_alone.is_empty()) {
        message.push_str(&format!("; left alone: {}", left_alone.join(", ")));
    }
    Job {
        id: run.id.clone(),
        node: node.to_owned(),
        kind: "populate".to_owned(),
        state: match run.state {
            RunState::Running => JobState::Running,
            RunState::Done => JobState::Done,
            RunState::Cancelled => JobState::Cancelled,
        },
        started_ms: run.started_ms,
        ended_ms: run.ended_ms,
        done: run.done(),
        total: run.total.max(run.done()),
        failed: run.blocked_in_all(),
        bytes: run.bytes,
        blocked: run.blocked.clone(),
        waiting: run.waiting,
        message,
    }
}

fn refused(refused: Refused) -> Refusal {
    let (status, code, remedy) = match refused {
        Refused::Busy => (
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "wait for one of them, or cancel it: `caje jobs` lists them",
        ),
        Refused::Unknown => (
            StatusCode::NOT_FOUND,
            "unknown-job",
            "`caje jobs` lists those that run or ran lately",
        ),
        Refused::NoManifest => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no-manifest",
            "`/_caje/readyz` says why; it is opened by itself as soon as it can be",
        ),
        Refused::NoDisk => (
            StatusCode::CONFLICT,
            "no-disk",
            "`caje storage` says why; what is only in memory counts for nothing here",
        ),
    };
    Refusal::new(status, code, refused.to_string(), remedy)
}

pub(super) async fn show(State(node): State<Node>, Path(id): Path<String>) -> Answer<Job> {
    match run_of(&node, &id) {
        Some(job) => Ok(Told(job)),
        None => Ok(Told(node.jobs.find(&id)?.shown())),
    }
}

pub(super) async fn cancel(State(node): State<Node>, Path(id): Path<String>) -> Answer<Job> {
    if run_of(&node, &id).is_some() {
        node.control.populate.cancel(&id).await.map_err(refused)?;
        return steered(&node, &id);
    }
    let entry = node.jobs.find(&id)?;
    entry.cancelled.store(true, Ordering::Relaxed);
    Ok(Told(entry.shown()))
}

pub(super) async fn resume(State(node): State<Node>, Path(id): Path<String>) -> Answer<Job> {
    if run_of(&node, &id).is_none() {
        // One that is no run cannot be resumed; one that is unknown is told so.
        node.jobs.find(&id)?;
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "not-resumable",
            "a job of this kind does not go on where it was",
            "begin another one",
        ));
    }
    node.control.populate.resume(&id).await.map_err(refused)?;
    steered(&node, &id)
}

/// The run as it is now.
fn steered(node: &Node, id: &str) -> Answer<Job> {
    let job = run_of(node, id).ok_or_else(|| refused(Refused::Unknown))?;
    Ok(Told(job))
}

pub(super) async fn begin(
    State(node): State<Node>,
    Ask(ask): Ask<JobRequest>,
) -> Result<Response, Refusal> {
    match ask.kind.as_str() {
        "verify" if ask.concurrency.is_some() || ask.rate_bytes.is_some() => Err(Refusal::bad(
            "`concurrency` and `rate_bytes` are for jobs of the kind `populate`",
            "leave them out",
        )),
        "verify" => verify(State(node)).await,
        "populate" => {
            let wish = Wish {
                filter: coverage::filter(
                    ask.host.as_deref(),
                    ask.prefix.as_deref(),
                    ask.tag.as_deref(),
                )?,
                retry: ask.retry,
                dry_run: ask.dry_run,
                caps: caps(&ask)?,
            };
            wished(&node, wish).await
        }
        other => {
            let message = format!("there is no job of the kind `{}`", other.escape_default());
            Err(Refusal::bad(message, "there are `populate` and `verify`"))
        }
    }
}

fn caps(ask: &JobRequest) -> Result<Caps, Refusal> {
    if ask.concurrency == Some(0) || ask.rate_bytes == Some(0) {
        let message = "`concurrency` and `rate_bytes` are at least 1";
        return Err(Refusal::bad(message, "leave out what is not to be limited"));
    }
    Ok(Caps {
        in_flight: ask
            .concurrency
            .map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        rate: ask.rate_bytes,
    })
}

/// The name of the first version: everything.
pub(super) async fn populate(State(node): State<Node>) -> Result<Response, Refusal> {
    let wish = Wish {
        filter: Filter::All,
        retry: false,
        dry_run: false,
        caps: Caps::default(),
    };
    wished(&node, wish).await
}

async fn wished(node: &Node, wish: Wish) -> Result<Response, Refusal> {
    // What was cleared a moment ago is lacking.
    coverage::settle(node).await?;
    let id = node.control.populate.begin(wish).await.map_err(refused)?;
    let Told(job) = steered(node, &id)?;
    Ok(json(StatusCode::ACCEPTED, &job))
}

pub(super) async fn verify(State(node): State<Node>) -> Result<Response, Refusal> {
    let entry = node
        .jobs
        .begin(&node.name(), node.control.talk.id(), "verify")?;
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
