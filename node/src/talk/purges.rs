//! Purges of all nodes: told directly, and made sure of by the manifest's log.
//!
//! ```text
//! told by another node ──┐
//!                        ├──► known by (author, number, stamp)? ──no──► applied at this node's own next stamp
//! read from the log ─────┘            yes: what it came to
//!                  └──► behind them on the disk: how far the log was read
//! ```
//!
//! Kept true here:
//! - A purge of another node is applied once, later than all that was asked for here before it came.
//! - Where the log was read to is on the disk only after its purges are: a crash applies some again, and loses none.
//! - Until the log was read after a start, and where it has a gap, what this disk held before is in doubt.
//! - One's own purges are applied before they stand in the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use caje_admin_api::ErrorBody;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::SetOnce;
use tokio::time::timeout;

use super::{LOG_WARNING, PURGES, Peer, Reply, Talk, spawn};
use crate::cache::purge::{LogCursor, NodePurged, Purged, Selector};
use crate::clock::Stamp;
use crate::manifest::{self, Manifest, PurgeCursor, PurgeRow, Reader};
use crate::telemetry::PurgeWay;

/// Purges that are told apart from those that come again. Older ones come by the log alone, whose cursor knows them.
const MAX_KNOWN: usize = 65_536;

/// Purges read from the log at a time.
const LOG_PAGE: usize = 1000;

/// Purges recorded at a time: the manifest's queue holds more.
const RECORDED_AT_ONCE: usize = 512;

/// Purges in one message, and about how long it is at the most.
const MESSAGE_PURGES: usize = 512;
const MESSAGE_BYTES: usize = 512 << 10;

/// After the log could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// What one node tells another.
#[derive(Debug, Serialize, Deserialize)]
pub struct Words {
    pub purges: Vec<Told>,
}

/// A purge of another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    pub author: String,
    /// Its place in the author's log; 0 if the log did not take it.
    pub number: u64,
    /// When it was recorded, by the author's clock.
    pub stamp: Stamp,
    #[serde(flatten)]
    pub purge: manifest::Purge,
}

/// What purges came to on one node.
#[derive(Debug, Serialize, Deserialize)]
pub struct Applied {
    pub matched: u64,
    pub is_durable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Id {
    author: String,
    number: u64,
    /// An author that lost its disk counts anew.
    stamp: Stamp,
}

type Outcome = Arc<SetOnce<Purged>>;

/// Purges that were applied, or are being applied.
#[derive(Default)]
struct Known {
    outcomes: HashMap<Id, Outcome>,
    order: VecDeque<Id>,
}

impl Known {
    /// What it came to, or comes to; and whether it is for the caller to apply it.
    fn take(&mut self, id: Id) -> (Outcome, bool) {
        if let Some(outcome) = self.outcomes.get(&id) {
            return (outcome.clone(), false);
        }
        if self.order.len() >= MAX_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
        let outcome = Outcome::default();
        self.outcomes.insert(id.clone(), outcome.clone());
        self.order.push_back(id);
        (outcome, true)
    }
}

pub(super) struct Log {
    /// This process's first stamp: own purges in the log that are later were applied by it.
    started: Stamp,
    /// Those up to this one were applied by processes before.
    applied: Stamp,
    known: Mutex<Known>,
    is_read: AtomicBool,
}

impl Log {
    pub(super) fn new(started: Stamp, applied: Stamp) -> Log {
        Log {
            started,
            applied,
            known: Mutex::default(),
            is_read: AtomicBool::new(false),
        }
    }

    pub(super) fn is_read(&self) -> bool {
        self.is_read.load(Ordering::Relaxed)
    }
}

impl Talk {
    /// Purges here and on all nodes. One's own part first; all others once they have answered, or have not in time.
    pub(super) async fn purge(
        self: &Arc<Talk>,
        selectors: Vec<Selector>,
        soft: bool,
    ) -> Vec<NodePurged> {
        let begin = |selector: &Selector| {
            let seen = Stamp::default();
            self.cache.begin_purge(selector.clone(), soft, seen)
        };
        let begun: Vec<_> = selectors.iter().map(begin).collect();
        let wanted = selectors.iter().filter_map(|selector| {
            let selector = to_row(selector)?;
            Some(manifest::Purge { selector, soft })
        });
        let record = self.record(wanted.collect());
        let end = async {
            let (mut matched, mut is_durable) = (0, true);
            for purged in begun {
                let purged = purged.await;
                matched += purged.matched;
                is_durable &= purged.is_durable;
            }
            (matched, is_durable)
        };
        // The first is polled first: what is matched is counted before anything is swept.
        let ((matched, is_durable), (told, is_recorded)) = tokio::join!(biased; end, record);
        if let Some(last) = told.iter().map(|told| told.stamp).max()
            && is_durable
            && is_recorded
        {
            let rows = self.cache.residency.own_applied_to(last);
            // On its way; if it is lost, a restart applies some again.
            drop(self.cache.store.record_purges(rows));
        }
        let peers = self.peers();
        let error = match (is_durable, is_recorded) {
            (false, _) => Some("it is not on disk: a restart of this node may bring it back"),
            (true, false) if !peers.is_empty() || self.is_shared => Some(
                "the log of purges did not take it: a node that is away now will not learn of it",
            ),
            (true, _) => None,
        };
        let mut all = vec![NodePurged {
            node: self.id.clone(),
            matched,
            error: error.map(str::to_owned),
        }];
        all.extend(self.tell(peers, &told).await);
        all
    }

    /// Writes purges into the log, and says whether it took them all. They have a number if it did.
    async fn record(&self, purges: Vec<manifest::Purge>) -> (Vec<Told>, bool) {
        let mut told = Vec::with_capacity(purges.len());
        if self.is_shared || self.cache.recorder.manifest().is_some() {
            let recorded = async {
                let manifest = self.manifest().await?;
                for some in purges.chunks(RECORDED_AT_ONCE) {
                    let waiting: Vec<_> = some
                        .iter()
                        .map(|purge| manifest.record_purge(purge.clone()))
                        .collect();
                    for row in waiting {
                        told.push(row.await.ok()?.into());
                    }
                }
                Some(())
            };
            if timeout(self.cluster.timeout, recorded).await == Ok(Some(())) {
                return (told, true);
            }
        }
        for purge in purges.into_iter().skip(told.len()) {
            told.push(Told {
                author: self.id.clone(),
                number: 0,
                stamp: self.cache.clock.tick(),
                purge,
            });
        }
        let is_recorded = told.is_empty();
        (told, is_recorded)
    }

    /// The manifest, once it is open.
    async fn manifest(&self) -> Option<Arc<Manifest>> {
        let mut opened = self.cache.recorder.opened();
        loop {
            opened.borrow_and_update();
            if let Some(manifest) = self.cache.recorder.manifest() {
                return Some(manifest);
            }
            opened.changed().await.ok()?;
        }
    }

    /// Tells nodes of purges; what each made of them.
    async fn tell(self: &Arc<Talk>, peers: Vec<Peer>, told: &[Told]) -> Vec<NodePurged> {
        let mut all: Vec<NodePurged> = Vec::new();
        let mut left = peers;
        for message in messages(told) {
            let answers = self
                .ask_all(
                    std::mem::take(&mut left),
                    &Method::POST,
                    PURGES,
                    &message,
                    true,
                )
                .await;
            for (peer, reply) in answers {
                let node = peer.name();
                let (matched, error) = match reply.as_ref().map(understand) {
                    Ok(Ok(applied)) => (
                        applied.matched,
                        (!applied.is_durable).then(|| NOT_ON_DISK.to_owned()),
                    ),
                    Ok(Err(refused)) => (0, Some(refused)),
                    Err(silence) => (0, Some(silence.to_string())),
                };
                let goes_on = error.is_none();
                match all.iter_mut().find(|purged| purged.node == node) {
                    Some(purged) => {
                        purged.matched += matched;
                        purged.error = purged.error.take().or(error);
                    }
                    None => all.push(NodePurged {
                        node,
                        matched,
                        error,
                    }),
                }
                // Who is silent is not waited for again.
                if goes_on {
                    left.push(peer);
                }
            }
        }
        all
    }

    /// Applies what another node tells of. It goes on to its end, even if the future is dropped.
    pub async fn hear(self: &Arc<Talk>, words: Words) -> Option<Applied> {
        let talk = self.clone();
        let applying = spawn(async move { talk.apply(words.purges, PurgeWay::Told).await });
        applying.await.ok()
    }

    async fn apply(&self, purges: Vec<Told>, way: PurgeWay) -> Applied {
        let begun: Vec<_> = purges
            .into_iter()
            .map(|told| {
                let id = Id {
                    author: told.author,
                    number: told.number,
                    stamp: told.stamp,
                };
                let (outcome, is_ours) = self.log.known.lock().take(id);
                let heard = if is_ours { way } else { PurgeWay::Again };
                self.cache.metrics.purges_heard.increment(heard);
                let applied = is_ours.then(|| {
                    let selector = of_row(told.purge.selector);
                    self.cache
                        .begin_purge(selector, told.purge.soft, told.stamp)
                });
                (outcome, applied)
            })
            .collect();
        let mut all = Applied {
            matched: 0,
            is_durable: true,
        };
        for (outcome, applied) in begun {
            let purged = match applied {
                Some(applied) => {
                    let purged = applied.await;
                    // Nobody else sets it.
                    let _ = outcome.set(purged);
                    purged
                }
                None => *outcome.wait().await,
            };
            all.matched += purged.matched;
            all.is_durable &= purged.is_durable;
        }
        all
    }

    /// Reads the log and the node table as they grow, of whichever manifest there is.
    pub(super) async fn follow(self: &Arc<Talk>) {
        let mut opened = self.cache.recorder.opened();
        let warning = async {
            tokio::time::sleep(LOG_WARNING).await;
            if self.is_shared && !self.has_read_log() {
                tracing::warn!(
                    "the log of purges was not read yet: what was stored before the start is validated before it is used"
                );
            }
        };
        let following = async {
            loop {
                opened.borrow_and_update();
                let reading = async {
                    if let Some(manifest) = self.cache.recorder.manifest() {
                        self.follow_one(&manifest).await;
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = reading => {}
                    changed = opened.changed() => if changed.is_err() { return },
                }
            }
        };
        tokio::join!(warning, following);
    }

    async fn follow_one(self: &Arc<Talk>, manifest: &Manifest) {
        let mut changed = manifest.watch();
        let mut reader = None;
        loop {
            changed.borrow_and_update();
            // Before it is read: what comes to be here afterwards is another change.
            let is_current = manifest.status().caught_up;
            match self.catch_up(manifest, reader.take()).await {
                Ok(used) => {
                    reader = Some(used);
                    if is_current && !self.log.is_read.swap(true, Ordering::Relaxed) {
                        self.cache.residency.trust();
                        tracing::debug!("the log of purges is read");
                    }
                    if changed.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the log of purges cannot be read; tried again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Reads to the end of the log, and the node table.
    async fn catch_up(
        self: &Arc<Talk>,
        manifest: &Manifest,
        reader: Option<Reader>,
    ) -> rusqlite::Result<Reader> {
        let residency = &self.cache.residency;
        let mut reader = reader;
        loop {
            let known = residency.log_cursor();
            let after = known
                .clone()
                .map_or_else(PurgeCursor::default, |known| PurgeCursor {
                    instance: known.log,
                    arrival: known.arrival,
                });
            let (manifest, from) = (manifest.clone(), reader.take());
            let read = tokio::task::spawn_blocking(move || {
                let reader = from.map_or_else(|| manifest.reader(), Ok)?;
                let page = reader.purges_since(&after, LOG_PAGE)?;
                let nodes = reader.nodes()?;
                Ok::<_, rusqlite::Error>((reader, page, nodes))
            });
            let Ok(read) = read.await else {
                // Only with the runtime.
                return std::future::pending().await;
            };
            let (used, page, nodes) = read?;
            self.take_rows(nodes);
            let mut rows = Vec::new();
            if !page.is_gapless && self.is_shared {
                let since = match known {
                    // What was asked for since the start was asked for after all that is missing.
                    None => self.log.started,
                    Some(_) => self.cache.clock.tick(),
                };
                rows.extend(residency.doubt_for_good(since));
                if known.is_some() {
                    tracing::warn!(
                        "the log of purges has a gap: what is stored is validated before it is used again"
                    );
                }
            }
            let is_whole = page.rows.len() < LOG_PAGE;
            let is_due = |own: Stamp| own > self.log.applied && own <= self.log.started;
            let others = page
                .rows
                .into_iter()
                .filter(|row| row.author != self.id || is_due(row.stamp));
            self.apply(others.map(Told::from).collect(), PurgeWay::Log)
                .await;
            let cursor = LogCursor {
                log: page.cursor.instance,
                arrival: page.cursor.arrival,
            };
            if known.as_ref() != Some(&cursor) {
                rows.extend(residency.log_read_to(&cursor));
                // If it is lost, the same is read again.
                let _ = self.cache.store.record_purges(rows).await;
            }
            if is_whole {
                return Ok(used);
            }
            reader = Some(used);
        }
    }
}

const NOT_ON_DISK: &str = "it is not on its disk: a restart of that node may bring it back";

fn understand(reply: &Reply) -> Result<Applied, String> {
    if reply.status != StatusCode::OK {
        let said = serde_json::from_slice::<ErrorBody>(&reply.body);
        return Err(said.map_or_else(
            |_| format!("it answers with {}", reply.status),
            |said| said.error.message,
        ));
    }
    serde_json::from_slice(&reply.body)
        .map_err(|error| format!("its answer cannot be read: {error}"))
}

/// Purges in messages that are not too long.
fn messages(told: &[Told]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let mut left = told;
    while !left.is_empty() {
        let mut count = left.len().min(MESSAGE_PURGES);
        loop {
            let words = Words {
                purges: left[..count].to_vec(),
            };
            let text = serde_json::to_vec(&words).unwrap_or_default();
            if text.len() <= MESSAGE_BYTES || count == 1 {
                messages.push(text.into());
                break;
            }
            count = count.div_ceil(2);
        }
        left = &left[count..];
    }
    messages
}

impl From<PurgeRow> for Told {
    fn from(row: PurgeRow) -> Told {
        Told {
            author: row.author,
            number: row.number,
            stamp: row.stamp,
            purge: row.purge,
        }
    }
}

/// As the log has it. What an origin purges of its own groups is each node's affair.
fn to_row(selector: &Selector) -> Option<manifest::Selector> {
    Some(match selector {
        Selector::Url {
            scheme,
            authority,
            target,
        } => manifest::Selector::Url {
            scheme: *scheme,
            authority: authority.to_string(),
            target: target.clone(),
        },
        Selector::Prefix {
            scheme,
            authority,
            path,
        } => manifest::Selector::Prefix {
            scheme: *scheme,
            authority: authority.to_string(),
            path: path.clone(),
        },
        Selector::Host(authority) => manifest::Selector::Host {
            authority: authority.to_string(),
        },
        Selector::Tag(tag) => manifest::Selector::Tag { tag: tag.clone() },
        Selector::Group { .. } => return None,
        Selector::Everything => manifest::Selector::Everything,
    })
}

fn of_row(selector: manifest::Selector) -> Selector {
    match selector {
        manifest::Selector::Url {
            scheme,
            authority,
            target,
        } => Selector::Url {
            scheme,
            authority: authority.into(),
            target,
        },
        manifest::Selector::Prefix {
            scheme,
            authority,
            path,
        } => Selector::Prefix {
            scheme,
            authority: authority.into(),
            path,
        },
        manifest::Selector::Host { authority } => Selector::Host(authority.into()),
        manifest::Selector::Tag { tag } => Selector::Tag(tag),
        manifest::Selector::Everything => Selector::Everything,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: u64, bytes: usize) -> Told {
        Told {
            author: "a".into(),
            number,
            stamp: Stamp(number),
            purge: manifest::Purge {
                selector: manifest::Selector::Tag {
                    tag: Bytes::from(vec![b'x'; bytes]),
                },
                soft: false,
            },
        }
    }

    #[test]
    fn messages_have_a_length_and_say_all() {
        for (count, bytes) in [(0, 1), (1, 10), (1500, 10), (100, 20_000), (3, 600_000)] {
            let all: Vec<Told> = (0..count).map(|number| told(number, bytes)).collect();
            let messages = messages(&all);
            let read = messages.iter().flat_map(|message| {
                assert!(message.len() <= MESSAGE_BYTES.max(bytes + 200));
                serde_json::from_slice::<Words>(message).unwrap().purges
            });
            let numbers: Vec<u64> = read.map(|told| told.number).collect();
            assert_eq!(numbers, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_purge_is_known_by_all_three() {
        let mut known = Known::default();
        let id = |author: &str, number, stamp| Id {
            author: author.into(),
            number,
            stamp: Stamp(stamp),
        };
        assert!(known.take(id("a", 1, 5)).1);
        assert!(!known.take(id("a", 1, 5)).1);
        for other in [id("b", 1, 5), id("a", 2, 5), id("a", 1, 6)] {
            assert!(known.take(other).1);
        }
        for number in 0..MAX_KNOWN as u64 {
            let _ = known.take(id("c", number, 1));
        }
        assert_eq!(known.outcomes.len(), MAX_KNOWN);
        assert!(known.take(id("a", 1, 5)).1);
    }

    #[test]
    fn selectors_keep_their_meaning_in_the_log() {
        let tag = Selector::Tag(Bytes::from_static(b"\xe9"));
        for selector in [tag, Selector::Everything, Selector::Host("a".into())] {
            assert_eq!(to_row(&selector).map(of_row), Some(selector));
        }
    }
}
