//! A running node: its threads, its listeners, and everything that outlives a request.
//!
//! ```text
//!  main ── Node::start ─┬─ data thread 0..n   own listeners (SO_REUSEPORT), own ring, own origin pools
//!                       ├─ store's threads    index, write-behind, eviction
//!                       ├─ sweep thread       removes what was purged
//!                       ├─ manifest's threads what every node should hold
//!                       ├─ populate's threads fetch what of it is not here
//!                       ├─ control thread     admin listener: metrics, health
//!                       └─ access log's thread
//!       ── reload ──────► settings are swapped as one; connections notice nothing
//!       ── drain ───────► stop accepting ─► let run, bounded ─► flush the index ─► gone
//! ```

mod keeper;
mod sample;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use caje_admin_api::Scope;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;

use crate::cache::fill::Fetcher;
use crate::cache::inflight::Inflight;
use crate::cache::prefetch::{Source, Tally};
use crate::cache::purge::{NodePurged, Purged, Selector};
use crate::cache::record::Record;
use crate::cache::residency::Residency;
use crate::cache::{Cache, LocalCache, OriginRules};
use crate::clock::{self, HybridClock};
use crate::config::{Config, Routes};
use crate::endpoints::{self, Control};
use crate::manifest::{Manifest, NodeRow, Trouble};
use crate::origin::{self, OriginPool, Permits};
use crate::peer::{self, Peers};
use crate::proxy::connection::accept;
use crate::proxy::{self, Admission, Draining, Identity, MayPurge, Proxy};
use crate::semantics::freshness::Rules;
use crate::store::{self, Store, StoreEvents};
use crate::talk::Talk;
use crate::tasks::Tasks;
use crate::telemetry::{AccessLog, Metrics, NodeState, ReloadResult, diagnostics};
use crate::workers::populate::{self, Orders};
use crate::workers::prefetch;

use keeper::Keeper;

pub use crate::endpoints::ReloadError;

/// Connections that wait to be accepted, on each listener.
const BACKLOG: i32 = 4096;

/// What the admin listener is called in metrics, where it is asked by the public port.
const RESERVED_ORIGIN: &str = "_caje";

/// How much longer a sweep rests than it took, so that purges in a row take a tenth of a processor at most.
const SWEEP_REST: u32 = 9;

/// Why a node does not start. `main` exits with 2 for what trying again will not cure.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: io::Error },
    #[error("cannot use the data directory: {0}")]
    Store(#[from] store::OpenError),
    #[error("an origin's TLS settings cannot be used: {0}")]
    Origin(String),
    #[error("cannot write the access log: {0}")]
    AccessLog(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A running node. Dropping it ends it at once; [`Node::drain`] ends it well.
pub struct Node {
    settings: Arc<Settings>,
    shared: Arc<proxy::Shared>,
    cache: Cache,
    talk: Arc<Talk>,
    addresses: Vec<SocketAddr>,
    admin_address: SocketAddr,
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
    sweeper: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    keeper: Keeper,
    peers: Arc<Peers>,
    tasks: Arc<AtomicUsize>,
}

/// The settings in force, and where new ones come from.
struct Settings {
    current: Arc<ArcSwap<Config>>,
    /// One reload at a time.
    file: parking_lot::Mutex<Option<(PathBuf, diagnostics::Level)>>,
    shared: Arc<proxy::Shared>,
    /// What populate goes by.
    orders: watch::Sender<Arc<Orders>>,
    admin_address: SocketAddr,
    /// In place of tokens.
    may_purge: Option<MayPurge>,
}

impl Settings {
    fn take(&self, config: Config) -> Result<Vec<&'static str>, StartError> {
        let metrics = &self.shared.metrics;
        let settings = settings(
            &config,
            metrics,
            self.admin_address,
            self.may_purge.as_ref(),
        )
        .inspect_err(|_| {
            metrics.config_reloads.increment(ReloadResult::Failed);
        })?;
        self.orders.send_replace(orders(&config, &settings));
        self.shared.settings.store(Arc::new(settings));
        metrics.config_reloads.increment(ReloadResult::Ok);
        let needs_restart = self.current.load().needs_restart(&config);
        self.current.store(Arc::new(config));
        Ok(needs_restart)
    }

    fn read_again(&self) -> Result<Vec<&'static str>, ReloadError> {
        let file = self.file.lock();
        let Some((path, level)) = &*file else {
            return Err(ReloadError::NoFile);
        };
        let config = Config::load(path).map_err(|errors| {
            let reloads = &self.shared.metrics.config_reloads;
            reloads.increment(ReloadResult::Failed);
            ReloadError::Settings(errors.to_string())
        })?;
        let log_level = config.log.level.clone();
        let needs_restart = self
            .take(config)
            .map_err(|error| ReloadError::Settings(error.to_string()))?;
        // Last: a reload that fails changes nothing.
        if let Err(error) = level.set(&log_level) {
            tracing::error!(%error, "the log level was not changed");
        }
        Ok(needs_restart)
    }
}

/// What the data threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serve,
    /// Finish what runs, for this long at the most.
    Drain(Duration),
    /// The data threads have ended.
    Ended,
}

impl Node {
    /// Binds, opens the store and begins to serve. Blocks for as long as that takes. Clients
    /// may purge who have a token for it.
    pub fn start(config: Config) -> Result<Node, StartError> {
        Node::begin(config, None)
    }

    /// [`Node::start`], with other clients who may purge.
    pub fn start_permitting(config: Config, may_purge: MayPurge) -> Result<Node, StartError> {
        Node::begin(config, Some(may_purge))
    }

    fn begin(config: Config, may_purge: Option<MayPurge>) -> Result<Node, StartError> {
        let threads = config.node.threads.get();
        let listeners = listeners(&config, threads)?;
        let admin = admin_listener(&config)?;
        let metrics = Arc::new(Metrics::new());
        let log = access_log(&config, &metrics)?;
        let cache = open_cache(&config, &metrics)?;
        let admin_address = admin.local_addr().map_err(|error| StartError::Listen {
            address: config.admin.listen.to_string(),
            error,
        })?;
        let settings = settings(&config, &metrics, admin_address, may_purge.as_ref())?;
        let orders = watch::Sender::new(orders(&config, &settings));
        let ordered = orders.subscribe();
        let addresses: Vec<SocketAddr> = listeners[0]
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect();
        let talk = Talk::new(&config, &cache);
        let shared = Arc::new(proxy::Shared {
            purge: {
                let talk = talk.clone();
                Box::new(move |selectors, soft| talk.order(selectors, soft))
            },
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            identity: identity(&config),
            metrics: metrics.clone(),
            log,
        });
        let (phase, phases) = watch::channel(Phase::Serve);
        let tasks = Arc::new(AtomicUsize::new(0));
        let counters = Arc::new(origin::Counters::default());
        let peers = Arc::new(peers(&config));
        let is_out = Arc::new(AtomicBool::new(false));
        let stage = {
            let (phases, is_out) = (phases.clone(), is_out.clone());
            move || stage(*phases.borrow(), is_out.load(Ordering::Relaxed))
        };
        sample::sample(&metrics, &cache, &counters, &tasks, stage.clone());
        let admission = Admission::new(
            config.limits.max_connections,
            client_room(&config),
            config.limits.max_connections_per_address,
        );
        let uses_rings = cache.store.health().io == "io_uring";
        let settings = Arc::new(Settings {
            current: Arc::new(ArcSwap::from_pointee(config)),
            file: parking_lot::Mutex::new(None),
            shared: shared.clone(),
            orders,
            admin_address,
            may_purge,
        });
        let own = node_row(&settings.current.load(), &addresses, admin_address);
        let keeper = Keeper::start(&settings.current.load(), own, &cache, peers.clone())
            .map_err(StartError::Thread)?;
        sample::sample_manifest(&metrics, keeper.clone(), cache.recorder.clone());
        let until_drain = || {
            let mut phases = phases.clone();
            async move {
                // An error means that the node has gone: the same.
                let _ = phases.wait_for(|phase| *phase != Phase::Serve).await;
            }
        };
        let prefetcher = {
            let setup = prefetch::Setup {
                cache: cache.clone(),
                orders: ordered.clone(),
                pseudonym: shared.identity.pseudonym.clone(),
                cdn_id: shared.identity.cdn_id.clone(),
                peers: peers.clone(),
                clients: counters.clone(),
                tasks: tasks.clone(),
                uses_ring: uses_rings,
            };
            prefetch::start(setup, until_drain()).map_err(StartError::Thread)?
        };
        let (populate, populator) = {
            let config = settings.current.load();
            let setup = populate::Setup {
                node: config.manifest_settings().node,
                cache: cache.clone(),
                book: config.manifest_settings().dir.join("populate.db"),
                manifest: keeper.watch(),
                orders: ordered,
                pseudonym: shared.identity.pseudonym.clone(),
                cdn_id: shared.identity.cdn_id.clone(),
                peers: peers.clone(),
                clients: counters.clone(),
                tasks: tasks.clone(),
                uses_ring: uses_rings,
            };
            populate::start(setup, until_drain()).map_err(StartError::Thread)?
        };
        let control = Control {
            talk: talk.clone(),
            manifest_failure: {
                let keeper = keeper.clone();
                Box::new(move || keeper.failure())
            },
            cache: cache.clone(),
            populate,
            metrics,
            config: settings.current.clone(),
            identity: shared.identity.clone(),
            origins: counters.clone(),
            listen: addresses.clone(),
            stage: Box::new(stage),
            set_drain: Box::new(move |out| is_out.store(out, Ordering::Relaxed)),
            reload: {
                let settings = settings.clone();
                Box::new(move || settings.read_again())
            },
            file: {
                let settings = settings.clone();
                let path = move || Some(settings.file.lock().as_ref()?.0.clone());
                Box::new(path)
            },
        };
        let ended = {
            let mut phases = phases.clone();
            async move {
                // An error means that the node has gone: the same.
                let _ = phases.wait_for(|phase| *phase == Phase::Ended).await;
            }
        };
        let control = endpoints::start(admin, control, ended).map_err(StartError::Thread)?;
        let sweeper = {
            let (cache, phases) = (cache.clone(), phases.clone());
            let thread = thread::Builder::new().name("sweep".into());
            let started = thread.spawn(move || sweep(&cache, phases));
            started.map_err(StartError::Thread)?
        };
        let mut running = Vec::with_capacity(threads);
        for (place, listeners) in listeners.into_iter().enumerate() {
            let thread = DataThread {
                listeners,
                shared: shared.clone(),
                cache: cache.clone(),
                counters: counters.clone(),
                peers: peers.clone(),
                admission: admission.clone(),
                phases: phases.clone(),
                tasks: tasks.clone(),
                uses_ring: uses_rings,
            };
            let started = thread::Builder::new()
                .name(format!("data-{place}"))
                .spawn(move || thread.run());
            running.push(started.map_err(StartError::Thread)?);
        }
        Ok(Node {
            settings,
            shared,
            cache,
            talk,
            addresses,
            admin_address,
            phase,
            threads: running,
            control: Some(control),
            sweeper: Some(sweeper),
            workers: vec![populator, prefetcher],
            keeper,
            peers,
            tasks,
        })
    }

    /// The other nodes, as far as this one is told of them.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Where clients are served.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// What became of what was prefetched because this named it.
    pub fn prefetched(&self, source: Source) -> &Arc<Tally> {
        self.cache.prefetcher.total(source)
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    pub fn store(&self) -> &Store {
        &self.cache.store
    }

    /// Purges here and on all other nodes, as `talk` says: what it came to on each, on this one first.
    pub async fn purge(&self, selector: Selector, soft: bool) -> Vec<NodePurged> {
        self.talk.order(vec![selector], soft).await
    }

    /// Purges on this node alone, as [`Cache::purge`] says: the others do not learn of it. Needs a tokio runtime.
    pub async fn purge_here(&self, selector: Selector, soft: bool) -> Purged {
        self.cache.purge(selector, soft).await
    }

    /// What every node should hold; `None` while it cannot be opened.
    pub fn manifest(&self) -> Option<Manifest> {
        let manifest = self.cache.recorder.manifest();
        manifest.map(|manifest| (*manifest).clone())
    }

    /// Completes once the manifest is in a trouble that only a restart of LiteFS ends, for as long as the settings
    /// let it be; never, where they say nothing of it. Needs a tokio runtime.
    pub async fn stuck(&self) -> Trouble {
        match self.settings.current.load().manifest.exit_after {
            Some(limit) => self.keeper.stuck(limit).await,
            None => std::future::pending().await,
        }
    }

    /// Tasks that live on the data threads.
    pub fn live_tasks(&self) -> usize {
        self.tasks.load(Ordering::Relaxed)
    }

    /// Takes new settings into use, without touching a connection. Returns the sections that only a
    /// restart can change. On an error nothing has changed.
    pub fn reload(&self, config: Config) -> Result<Vec<&'static str>, StartError> {
        self.settings.take(config)
    }

    /// From now on [`Node::reload_file`] reads this file, and sets the level of the diagnostic log.
    pub fn read_from(&self, path: &Path, level: diagnostics::Level) {
        *self.settings.file.lock() = Some((path.to_owned(), level));
    }

    /// Like [`Node::reload`], with what the file of settings says now.
    pub fn reload_file(&self) -> Result<Vec<&'static str>, ReloadError> {
        self.settings.read_again()
    }

    /// For ending a drain that has begun, or is about to, from another thread.
    pub fn ender(&self) -> Ender {
        Ender(self.phase.clone())
    }

    /// For log rotation.
    pub fn reopen_log(&self) {
        self.shared.log.reopen();
    }

    /// Stops accepting, lets what runs finish within the configured time, and flushes the index.
    /// Blocks.
    pub fn drain(mut self) {
        let bound = self.settings.current.load().limits.drain_timeout;
        self.stop(bound);
    }

    fn stop(&mut self, bound: Duration) {
        if self.threads.is_empty() {
            return;
        }
        self.phase.send_if_modified(|phase| {
            let is_first = *phase == Phase::Serve;
            if is_first {
                *phase = Phase::Drain(bound);
            }
            is_first
        });
        for thread in self.threads.drain(..).chain(self.workers.drain(..)) {
            // A thread that panicked has said so; the others still have work to finish.
            let _ = thread.join();
        }
        self.phase.send_replace(Phase::Ended);
        for thread in [self.control.take(), self.sweeper.take()] {
            let _ = thread.map(JoinHandle::join);
        }
        self.keeper.close();
        block_on(self.cache.store.flush());
        self.shared.log.close();
    }
}

/// Ends a node's drain before its time.
pub struct Ender(watch::Sender<Phase>);

impl Ender {
    /// Cuts what still runs. The index is flushed all the same.
    pub fn end_now(&self) {
        self.0.send_if_modified(|phase| {
            let is_running = *phase != Phase::Ended;
            if is_running {
                *phase = Phase::Drain(Duration::ZERO);
            }
            is_running
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Runs a future to its end on a thread of its own: the caller may be inside another runtime.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join().ok())
}

struct DataThread {
    listeners: Vec<TcpListener>,
    shared: Arc<proxy::Shared>,
    cache: Cache,
    counters: Arc<origin::Counters>,
    peers: Arc<Peers>,
    admission: Arc<Admission>,
    phases: watch::Receiver<Phase>,
    tasks: Arc<AtomicUsize>,
    uses_ring: bool,
}

impl DataThread {
    fn run(self) {
        if self.uses_ring {
            tokio_uring::start(async move {
                let _ring = store::attach_ring();
                self.serve().await;
            });
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => LocalSet::new().block_on(&runtime, self.serve()),
            Err(error) => tracing::error!(%error, "a data thread cannot start"),
        }
    }

    async fn serve(mut self) {
        let tasks = Tasks::new(self.tasks);
        let draining = Draining::default();
        let pool = OriginPool::new(self.counters);
        let peer_pool = OriginPool::bounded(Arc::default(), peer::MAX_CONNECTIONS);
        let cache = LocalCache {
            shared: self.cache.clone(),
            fetcher: Rc::new(Fetcher {
                cache: self.cache,
                pool: pool.clone(),
                peers: self.peers,
                peer_pool: peer_pool.clone(),
                tasks: tasks.clone(),
                pseudonym: self.shared.identity.pseudonym.clone(),
            }),
        };
        let proxy = Rc::new(Proxy::new(self.shared, cache, draining.clone()));
        for listener in self.listeners {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let admission = self.admission.clone();
                    tasks.spawn(accept(listener, proxy.clone(), admission, tasks.clone()));
                }
                Err(error) => tracing::error!(%error, "a listener cannot be used"),
            }
        }
        drop(proxy);
        let bound = match self.phases.wait_for(|phase| *phase != Phase::Serve).await {
            Ok(phase) => match *phase {
                Phase::Drain(bound) => bound,
                Phase::Serve | Phase::Ended => Duration::ZERO,
            },
            Err(_) => Duration::ZERO,
        };
        draining.begin();
        pool.close_idle();
        peer_pool.close_idle();
        let cut_short = self
            .phases
            .wait_for(|phase| *phase == Phase::Drain(Duration::ZERO));
        // Beyond the bound the runtime ends with what still runs in it.
        tokio::select! {
            _ = tokio::time::timeout(bound, tasks.idle()) => {}
            _ = cut_short => {}
        }
    }
}

/// How many clients the descriptors of this process leave room for.
fn client_room(config: &Config) -> usize {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return config.limits.max_connections;
    };
    let room = config.client_room(limit);
    let max_connections = config.limits.max_connections;
    if room < max_connections {
        tracing::warn!(
            limit,
            room,
            max_connections,
            "limits.max_connections is above what the limit of open files allows: clients beyond the room wait"
        );
    }
    room
}

fn open_cache(config: &Config, metrics: &Arc<Metrics>) -> Result<Cache, StartError> {
    // The store calls back about evictions before the residency can exist: a slot between the two.
    // Weak, or the store would hold itself through it.
    let slot: Arc<OnceLock<Weak<Residency>>> = Arc::default();
    let events = {
        let (slot, other) = (slot.clone(), slot.clone());
        StoreEvents {
            on_evicted: Box::new(move |object| {
                if let Some(residency) = slot.get().and_then(Weak::upgrade) {
                    residency.evicted(object);
                }
            }),
            on_damaged: Box::new(move || {
                if let Some(residency) = other.get().and_then(Weak::upgrade) {
                    residency.damaged();
                }
            }),
        }
    };
    let (store, recovered) = Store::open(config.store_settings(), events)?;
    let residency = Arc::new(Residency::new(store.clone()));
    // Set once, just made.
    let _ = slot.set(Arc::downgrade(&residency));
    let clock = HybridClock::new();
    clock.witness(residency.recover(&store.take_purges(), recovered));
    Ok(Cache {
        store,
        residency,
        inflight: Arc::new(Inflight::default()),
        clock: Arc::new(clock),
        sweeper: Arc::new(Notify::new()),
        recorder: Arc::default(),
        prefetcher: Arc::default(),
        metrics: metrics.clone(),
        switches: Arc::default(),
    })
}

/// What this node says of itself to the others.
fn node_row(config: &Config, listen: &[SocketAddr], admin: SocketAddr) -> NodeRow {
    // A wildcard is nobody's address.
    let own = |address: &SocketAddr| {
        let has_one = !address.ip().is_unspecified();
        has_one.then(|| format!("http://{address}"))
    };
    let cluster = &config.cluster;
    let data = cluster.advertise.as_ref().map(ToString::to_string);
    let admin_url = cluster.advertise_admin.as_ref().map(ToString::to_string);
    NodeRow {
        id: config.manifest_settings().node,
        region: config.node.region.clone(),
        data: data.or_else(|| listen.first().and_then(own)),
        admin: admin_url.or_else(|| own(&admin)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: clock::now_secs(),
    }
}

/// Gives back the space of what was purged, whenever there was a purge, until the data threads have ended.
fn sweep(cache: &Cache, mut phases: watch::Receiver<Phase>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    else {
        tracing::error!("what is purged keeps its space until it is asked for");
        return;
    };
    let rounds = async {
        loop {
            cache.sweeper.notified().await;
            let began = Instant::now();
            let removed = cache.residency.sweep();
            tracing::debug!(removed, "swept what was purged");
            tokio::time::sleep(began.elapsed() * SWEEP_REST).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            _ = phases.wait_for(|phase| *phase == Phase::Ended) => {}
            () = rounds => {}
        }
    });
}

fn access_log(config: &Config, metrics: &Arc<Metrics>) -> Result<AccessLog, StartError> {
    match config.access_log() {
        None => Ok(AccessLog::off()),
        Some((format, sink)) => {
            let (name, region) = (&config.node.name, config.node.region.as_deref());
            AccessLog::start(format, sink, name, region, metrics.clone())
                .map_err(StartError::AccessLog)
        }
    }
}

fn peers(config: &Config) -> Peers {
    let allow = config.cluster.allow.clone();
    let permits = Permits::new(move |address| allow.iter().any(|cidr| cidr.contains(address)));
    let me = config.manifest_settings().node;
    Peers::new(&me, config.cluster.secret.clone(), permits)
}

fn identity(config: &Config) -> Identity {
    let pseudonym = &config.node.pseudonym;
    Identity {
        pseudonym: pseudonym.as_str().into(),
        cache_name: config.cache_name().into(),
        cdn_id: config.node.cdn_id.as_str().into(),
    }
}

fn settings(
    config: &Config,
    metrics: &Metrics,
    admin: SocketAddr,
    may_purge: Option<&MayPurge>,
) -> Result<proxy::Settings, StartError> {
    let mut rules = config
        .origin_rules(metrics)
        .map_err(|error| StartError::Origin(error.to_string()))?;
    // What is reserved never reaches an origin: it is nobody's, or the admin listener's.
    let reserved = config.admin.public.then(|| {
        rules.push(admin_as_origin(admin, config, metrics));
        rules.len() - 1
    });
    let routes = Routes::new(config);
    let trusted = config.node.trust_forwarded.clone();
    Ok(proxy::Settings {
        limits: config.limits.proxy(),
        origins: rules,
        route: Box::new(move |host, target| match endpoints::is_reserved(target) {
            true => reserved,
            false => routes.find(host, target),
        }),
        trusts: Box::new(move |address| trusted.iter().any(|cidr| cidr.contains(address))),
        may_purge: may_purge.cloned().unwrap_or_else(|| {
            let admin = config.admin.clone();
            Arc::new(move |fields, _| endpoints::allows(&admin, fields, Scope::Purge))
        }),
    })
}

/// What populate goes by: the origins and routes of clients' requests, but for what is reserved.
fn orders(config: &Config, settings: &proxy::Settings) -> Arc<Orders> {
    let routes = Routes::new(config);
    Arc::new(Orders {
        settings: config.populate.worker(),
        origins: settings.origins.clone(),
        route: Box::new(move |host, target| match endpoints::is_reserved(target) {
            true => None,
            false => routes.find(host, target),
        }),
    })
}

/// The admin listener, asked by those who come by the public port. Nothing of it is ever stored.
fn admin_as_origin(admin: SocketAddr, config: &Config, metrics: &Metrics) -> OriginRules {
    let address = match admin.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let defaults = origin::Settings::new(origin::Scheme::Http, host, admin.port());
    OriginRules {
        name: RESERVED_ORIGIN.into(),
        id: metrics.origins.intern(RESERVED_ORIGIN),
        upstream: Arc::new(origin::Settings {
            http2: origin::Http2::Off,
            ..defaults
        }),
        caching: Rules {
            heuristic: false,
            serve_stale_when_unreachable: false,
            ..Rules::default()
        },
        read_ahead: 0,
        merge_gap: 0,
        linger: config.limits.linger,
        host: None,
        record: Record::OFF,
        peer: peer::Mode::Off,
        peer_timeout: config.cluster.timeout,
        prefetch: None,
    }
}

/// One set of listeners for each data thread: the kernel shares connections out.
fn listeners(config: &Config, threads: usize) -> Result<Vec<Vec<TcpListener>>, StartError> {
    let mut sets: Vec<Vec<TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
    for listen in &config.node.listen {
        let bound = bind_all(listen, threads).map_err(|error| StartError::Listen {
            address: listen.to_string(),
            error,
        })?;
        for (set, listener) in sets.iter_mut().zip(bound) {
            set.push(listener);
        }
    }
    Ok(sets)
}

fn bind_all(listen: &crate::config::Address, threads: usize) -> io::Result<Vec<TcpListener>> {
    let address = listen.resolve()?;
    // SO_REUSEPORT would silently share a port with another process: asked for alone first.
    let address = bind(address, false)?.local_addr()?;
    (0..threads).map(|_| bind(address, true)).collect()
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn admin_listener(config: &Config) -> Result<TcpListener, StartError> {
    let listen = || bind(config.admin.listen.resolve()?, false);
    listen().map_err(|error| StartError::Listen {
        address: config.admin.listen.to_string(),
        error,
    })
}

/// What the node tells of itself.
fn stage(phase: Phase, is_out: bool) -> NodeState {
    match phase {
        Phase::Serve if !is_out => NodeState::Serving,
        Phase::Serve | Phase::Drain(_) | Phase::Ended => NodeState::Draining,
    }
}
