//! Following jobs by their events: bars where somebody looks, lines where nobody does, JSON where a program reads.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use caje_admin_api::{self as api, JobState, path};

use crate::client::Client;
use crate::failure::{Code, Failure, plain};
use crate::http::encode;
use crate::output::{Format, bytes};

/// Between two lines about one job, at the least.
const LINE_PACE: Duration = Duration::from_secs(1);

/// A node tells of so many jobs in one answer.
const MAX_FOLLOWED: usize = 64;

/// How jobs have ended, as far as that is known.
pub struct Followed {
    /// In the order in which they were asked for.
    pub jobs: Vec<api::Job>,
    pub lost: Vec<api::JobLost>,
}

impl Followed {
    /// None where all of them did all there was to do.
    pub fn code(&self) -> Option<Code> {
        let is_whole = |job: &&api::Job| job.state == JobState::Done && job.failed == 0;
        let whole = self.jobs.iter().filter(is_whole).count();
        let is_done = |job: &api::Job| job.state == JobState::Done;
        match whole == self.jobs.len() + self.lost.len() {
            true => None,
            false if self.jobs.iter().any(is_done) => Some(Code::Partial),
            false => Some(Code::Error),
        }
    }
}

/// Follows jobs of any nodes until all are over, or nothing more can be heard of them.
pub fn follow(ids: &[String], client: &Client) -> Result<Followed, Failure> {
    if ids.len() > MAX_FOLLOWED {
        let what = format!("{} jobs are too many to follow at once", ids.len());
        let remedy = "they go on; `caje jobs` lists them, and `caje jobs watch` follows up to 64";
        return Err(Failure::error(what, remedy));
    }
    let names: Vec<String> = ids.iter().map(|id| encode(id)).collect();
    let target = path::JOB_EVENTS.replace("{id}", &names.join(","));
    let events = client.send("GET", &target, None)?.lines();
    let mut screen = Screen::new(client);
    let mut jobs: BTreeMap<String, api::Job> = BTreeMap::new();
    let mut lost: Vec<api::JobLost> = Vec::new();
    let mut is_lost = false;
    for line in events {
        let line = line.map_err(|error| {
            let what = format!("the node broke off: {error}");
            let ids = ids.join(" ");
            Failure::error(
                what,
                format!("the jobs may go on; `caje jobs watch {ids}` looks again"),
            )
        })?;
        if let Some(name) = line.strip_prefix("event:") {
            is_lost = name.trim() == "lost";
        }
        let Some(data) = line.strip_prefix("data:") else {
            continue;
        };
        if is_lost {
            lost.extend(serde_json::from_str::<api::JobLost>(data));
            continue;
        }
        let Ok(job) = serde_json::from_str::<api::Job>(data) else {
            continue;
        };
        if client.format == Format::Ndjson {
            client.show(&job, &[&job], String::new);
        }
        screen.tell(&job);
        jobs.insert(job.id.clone(), job);
    }
    // Who breaks off without the last word leaves it open.
    for id in ids {
        let is_known = jobs.get(id).is_some_and(|job| job.state.is_over())
            || lost.iter().any(|lost| lost.id == *id);
        if !is_known {
            lost.push(api::JobLost {
                id: id.clone(),
                node: jobs.get(id).map(|job| job.node.clone()),
                error: format!(
                    "the node ended before the job did; `caje jobs show {id}` tells what is known"
                ),
            });
        }
    }
    for lost in &lost {
        client.unanswered.borrow_mut().push(api::Unanswered {
            node: lost.node.clone().unwrap_or_else(|| lost.id.clone()),
            error: lost.error.clone(),
            heard_ms: None,
        });
    }
    let mut found = Vec::new();
    for id in ids {
        found.extend(jobs.remove(id));
    }
    Ok(Followed { jobs: found, lost })
}

enum How {
    /// One for each job, drawn over and over.
    Bars,
    Lines,
    Silent,
}

struct Screen {
    how: How,
    jobs: Vec<api::Job>,
    /// When each was told of last.
    told: BTreeMap<String, Instant>,
    /// Lines that stand on the screen.
    drawn: usize,
}

impl Screen {
    fn new(client: &Client) -> Screen {
        let how = match client.format {
            Format::Table if std::io::stderr().is_terminal() => How::Bars,
            Format::Table => How::Lines,
            _ => How::Silent,
        };
        Screen {
            how,
            jobs: Vec::new(),
            told: BTreeMap::new(),
            drawn: 0,
        }
    }

    fn tell(&mut self, job: &api::Job) {
        let mut out = std::io::stderr().lock();
        match self.how {
            How::Silent => {}
            How::Lines => {
                let is_due = |at: &Instant| at.elapsed() >= LINE_PACE;
                if job.state.is_over() || self.told.get(&job.id).is_none_or(is_due) {
                    self.told.insert(job.id.clone(), Instant::now());
                    // Nobody to see it is no failure of the job.
                    let _ = writeln!(out, "{}", line(job));
                }
            }
            How::Bars => {
                match self.jobs.iter_mut().find(|known| known.id == job.id) {
                    Some(known) => *known = job.clone(),
                    None => {
                        self.jobs.push(job.clone());
                        self.jobs.sort_by(|a, b| a.node.cmp(&b.node));
                    }
                }
                let mut text = String::new();
                if self.drawn > 0 {
                    text.push_str(&format!("\x1b[{}A", self.drawn));
                }
                let widths = self.jobs.iter().map(|job| plain(&job.node, false).len());
                let width = widths.max().unwrap_or(0);
                for job in &self.jobs {
                    text.push_str(&format!("\x1b[2K{}\n", bar(job, width)));
                }
                self.drawn = self.jobs.len();
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
        }
    }
}

fn counts(job: &api::Job) -> String {
    let mut text = format!("{} of {}, {}", job.done, job.total, bytes(job.bytes));
    if job.failed > 0 {
        text.push_str(&format!(", {} failed", job.failed));
    }
    if job.waiting > 0 {
        text.push_str(&format!(", {} wait", job.waiting));
    }
    text
}

fn line(job: &api::Job) -> String {
    let node = plain(&job.node, false);
    format!("{node}: {}: {}", job.state.as_str(), counts(job))
}

fn bar(job: &api::Job, width: usize) -> String {
    const WIDTH: u64 = 30;
    let share = (job.done * WIDTH).checked_div(job.total);
    // What has nothing to do has done it.
    let full = if job.state.is_over() { WIDTH } else { 0 };
    let filled = share.unwrap_or(full).min(WIDTH);
    let bar: String = (0..WIDTH)
        .map(|at| if at < filled { '#' } else { '.' })
        .collect();
    let node = plain(&job.node, false);
    format!(
        "{node:<width$} [{bar}] {} {}",
        counts(job),
        job.state.as_str()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: JobState, done: u64, total: u64, failed: u64) -> api::Job {
        api::Job {
            id: "populate-1-1-a".to_owned(),
            node: "a".to_owned(),
            kind: "populate".to_owned(),
            state,
            started_ms: 0,
            ended_ms: None,
            done,
            total,
            failed,
            bytes: 2048,
            blocked: BTreeMap::new(),
            waiting: 0,
            message: None,
        }
    }

    #[test]
    fn what_a_bar_shows() {
        let half = bar(&job(JobState::Running, 50, 100, 1), 3);
        let filled = format!("[{}{}]", "#".repeat(15), ".".repeat(15));
        assert_eq!(
            half,
            format!("a   {filled} 50 of 100, 2.0 KiB, 1 failed running")
        );
        assert!(bar(&job(JobState::Running, 0, 0, 0), 1).contains("[..."));
        assert!(bar(&job(JobState::Done, 0, 0, 0), 1).contains("[###"));
    }

    #[test]
    fn some_is_neither_all_nor_nothing() {
        let lost = || api::JobLost {
            id: "x".to_owned(),
            node: None,
            error: "gone".to_owned(),
        };
        let whole = || job(JobState::Done, 1, 1, 0);
        let partly = || job(JobState::Done, 1, 1, 1);
        let cancelled = || job(JobState::Cancelled, 0, 1, 0);
        for (jobs, lost, code) in [
            (vec![whole(), whole()], vec![], None),
            (vec![whole(), partly()], vec![], Some(Code::Partial)),
            (vec![partly()], vec![], Some(Code::Partial)),
            (vec![whole(), cancelled()], vec![], Some(Code::Partial)),
            (vec![whole()], vec![lost()], Some(Code::Partial)),
            (vec![cancelled()], vec![], Some(Code::Error)),
            (vec![], vec![lost()], Some(Code::Error)),
        ] {
            assert_eq!(Followed { jobs, lost }.code(), code);
        }
    }
}
