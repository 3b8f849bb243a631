//! Opens the manifest beside the running node, tries again where that fails, tells of the nodes that stand in it, and
//! closes it at the end.
//!
//! Kept true here: neither start nor end of the node waits for a folder that stands still, and a node without its
//! manifest serves as it always does.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;

use crate::cache::Cache;
use crate::cache::record::Recorder;
use crate::cache::residency::Residency;
use crate::clock::HybridClock;
use crate::config::Config;
use crate::manifest::{Manifest, NodeRow, Trouble};
use crate::origin::OriginPool;
use crate::peer::{Peers, Teller, Told};

/// Pauses between two attempts: the first and the longest, doubled in between.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Between two looks at how fast the nodes answer.
const PROBE_PAUSE: Duration = Duration::from_secs(60);

/// Between two looks at who the nodes are.
const FOLLOW_REST: Duration = Duration::from_millis(250);

/// What the thread and the node share.
#[derive(Default)]
struct State {
    manifest: Option<Manifest>,
    /// Why there is none.
    failure: Option<String>,
    ended: bool,
}

/// The manifest's place in a node.
#[derive(Clone)]
pub(super) struct Keeper {
    state: Arc<(Mutex<State>, Condvar)>,
    recorder: Arc<Recorder>,
    /// The node ends.
    ending: Arc<Notify>,
    told: watch::Sender<Option<Manifest>>,
}

impl Keeper {
    /// Begins to open it. Never waits.
    pub(super) fn start(
        config: &Config,
        own: NodeRow,
        cache: &Cache,
        peers: Arc<Peers>,
    ) -> std::io::Result<Keeper> {
        let keeper = Keeper {
            state: Arc::default(),
            recorder: cache.recorder.clone(),
            ending: Arc::default(),
            told: watch::Sender::new(None),
        };
        let (config, this) = (config.clone(), keeper.clone());
        // It must not own the store, which would then end after the manifest.
        let residency = Arc::downgrade(&cache.residency);
        let clock = cache.clock.clone();
        // Not joined: it may be in a file system that has stopped.
        thread::Builder::new()
            .name("manifest-open".into())
            .spawn(move || {
                let opened = this.open(&config, &own, &clock);
                if let Some(manifest) = &opened {
                    tell_listed(manifest, residency);
                }
                if let Some(manifest) = opened.filter(|_| config.cluster.secret.is_some()) {
                    this.follow(&manifest, &peers);
                }
            })?;
        Ok(keeper)
    }

    fn open(&self, config: &Config, own: &NodeRow, clock: &Arc<HybridClock>) -> Option<Manifest> {
        let mut pause = PAUSE.0;
        loop {
            let opened = config
                .manifest_engine()
                .map_err(Into::into)
                .and_then(|engine| {
                    Manifest::open(config.manifest_settings(), engine, clock.clone())
                });
            let (state, told) = &*self.state;
            let mut state = state.lock();
            match opened {
                Ok(manifest) if state.ended => {
                    drop(state);
                    manifest.close();
                    return None;
                }
                Ok(manifest) => {
                    if let Err(error) = manifest.announce(own) {
                        tracing::error!(%error, "this node is not in the node table");
                    }
                    state.failure = None;
                    state.manifest = Some(manifest.clone());
                    // Under the lock, so that what ends it comes after.
                    self.recorder.tell(Some(manifest.clone()));
                    self.told.send_replace(Some(manifest.clone()));
                    return Some(manifest);
                }
                Err(error) => {
                    let failure = error.to_string();
                    if state.failure.as_ref() != Some(&failure) {
                        tracing::warn!(%error, "there is no manifest: it is tried again, and the node serves without it");
                    }
                    state.failure = Some(failure);
                    if !state.ended {
                        told.wait_for(&mut state, pause);
                    }
                    if state.ended {
                        return None;
                    }
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// Tells of the nodes that stand in the manifest, whenever it has changed, until the node ends.
    fn follow(&self, manifest: &Manifest, peers: &Peers) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        let (local, pool) = (LocalSet::new(), OriginPool::new(Arc::default()));
        let mut changes = manifest.watch();
        let (mut names, mut left_out) = (Vec::new(), Vec::new());
        let mut next_probe = Instant::now();
        while !self.state.0.lock().ended {
            changes.borrow_and_update();
            match manifest.reader().and_then(|reader| reader.nodes()) {
                Ok(nodes) => {
                    let told: Vec<Told> = nodes.into_iter().filter_map(told).collect();
                    let known = std::mem::take(&mut names);
                    names.extend(told.iter().map(|told| told.id.clone()));
                    if names != known {
                        next_probe = Instant::now();
                    }
                    let now = peers.set(Teller::Manifest, told);
                    if now != left_out && !now.is_empty() {
                        tracing::warn!(nodes = ?now, "these say they are where no node is asked");
                    }
                    left_out = now;
                }
                Err(error) => tracing::warn!(%error, "the node table cannot be read"),
            }
            let due = tokio::time::Instant::from_std(next_probe);
            let is_due = local.block_on(&runtime, async {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => Some(true),
                    changed = changes.changed() => changed.is_ok().then_some(false),
                    () = self.ending.notified() => None,
                }
            });
            match is_due {
                None => return,
                Some(false) => {}
                Some(true) => {
                    local.block_on(&runtime, async {
                        tokio::select! {
                            () = peers.probe(&pool, &names) => {}
                            () = self.ending.notified() => {}
                        }
                    });
                    next_probe = Instant::now() + PROBE_PAUSE;
                }
            }
            // What changes often is told of a few times a second.
            let (state, told) = &*self.state;
            let mut state = state.lock();
            if !state.ended {
                told.wait_for(&mut state, FOLLOW_REST);
            }
        }
    }

    /// The manifest, as soon as there is one.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Manifest>> {
        self.told.subscribe()
    }

    /// Why there is no manifest, or why it is not published. `None` also while it is being opened.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state.0.lock();
        match &state.manifest {
            Some(manifest) => {
                let status = manifest.status();
                let trouble = status.trouble().map(|trouble| trouble.to_string());
                trouble.or(status.error)
            }
            None => state.failure.clone(),
        }
    }

    /// Completes with what only a restart of LiteFS would end, once it has lasted for that long.
    pub(super) async fn stuck(&self, limit: Duration) -> Trouble {
        let look = (limit / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut since = None;
        loop {
            // What does not answer tells of no event.
            tokio::time::sleep(look).await;
            let manifest = self.state.0.lock().manifest.clone();
            match manifest.and_then(|manifest| manifest.status().trouble()) {
                None => since = None,
                Some(trouble) => {
                    let since = *since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= limit {
                        return trouble;
                    }
                }
            }
        }
    }

    /// Publishes what waits, bounded in time, and closes it. BLOCKING.
    pub(super) fn close(&self) {
        let (state, told) = &*self.state;
        let manifest = {
            let mut state = state.lock();
            state.ended = true;
            self.recorder.tell(None);
            self.told.send_replace(None);
            state.manifest.take()
        };
        told.notify_all();
        self.ending.notify_one();
        if let Some(manifest) = manifest {
            manifest.close();
        }
    }
}

/// From now on what the manifest lists is given up last here.
fn tell_listed(manifest: &Manifest, residency: Weak<Residency>) {
    let listener = move |listing| {
        if let Some(residency) = residency.upgrade() {
            residency.listed(listing);
        }
    };
    if let Err(error) = manifest.tell_listed(Box::new(listener)) {
        tracing::warn!(%error, "what the manifest lists is not known, and given up as anything else");
    }
}

/// Where a node's clients' port is, if it says.
fn told(node: NodeRow) -> Option<Told> {
    let data = node.data?;
    Some(Told { id: node.id, data })
}
