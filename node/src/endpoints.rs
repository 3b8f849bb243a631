//! What a node answers to its operators: metrics, health, and the interface `_caje/v1`.
//!
//! ```text
//!  admin listener ──► route ──► access ──► handler ──► JSON
//!  public port ──► reserved? ──► 404, or (admin.public) the admin listener, as one more origin
//! ```
//!
//! Kept true here:
//! - Everything runs on the control thread; what blocks or takes long runs on threads of its own. No data
//!   thread waits for any of it.
//! - Without a token that is configured nothing of `_caje/v1` is told or changed.
//! - An answer's size has a bound: lists are cut into pages.
//! - Which paths there are, what they need and what they answer stands in one table, [`table`]; the
//!   description in `/_caje/openapi.json` is made from it.
//!
//! It does not know how a node starts or ends: what it steers it is given as a [`Control`].

mod access;
mod coverage;
mod dump;
mod explain;
mod forget;
mod history;
mod jobs;
mod objects;
mod openapi;
mod origins;
mod over;
mod purge;
mod refusal;
mod reserved;
mod schema;
mod state;
mod watching;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use caje_admin_api::{self as api, Scope, path};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::config::Config;
use crate::endpoints::access::{Gate, Peer};
use crate::endpoints::history::History;
use crate::endpoints::jobs::Registry;
use crate::endpoints::over::{Over, Way};
use crate::endpoints::refusal::Refusal;
use crate::endpoints::schema::{Schema, schema_of};
use crate::endpoints::watching::Places;
use crate::origin;
use crate::proxy::Identity;
use crate::store::DiskHealth;
use crate::talk::{self, Talk};
use crate::telemetry::{self, Metrics, NodeState};
use crate::workers::populate::Populate;

pub use access::allows;
pub use reserved::is_reserved;

/// Connections to the admin listener at a time.
const MAX_CONNECTIONS: usize = 64;

/// From a connection's first byte to the end of its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long accepting rests after it failed.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Scans of the stored responses and the like, at a time.
const MAX_BLOCKING: usize = 4;

/// What operators see and steer of a running node.
pub struct Control {
    pub talk: Arc<Talk>,
    pub cache: Cache,
    pub populate: Populate,
    pub metrics: Arc<Metrics>,
    /// The settings in force.
    pub config: Arc<ArcSwap<Config>>,
    pub identity: Identity,
    /// Why there is no manifest, or why it is not published.
    pub manifest_failure: Box<dyn Fn() -> Option<String> + Send + Sync>,
    pub origins: Arc<origin::Counters>,
    /// Where clients connect.
    pub listen: Vec<SocketAddr>,
    pub stage: Box<dyn Fn() -> NodeState + Send + Sync>,
    /// Whether the node says that it takes no more traffic, while it goes on serving what comes.
    pub set_drain: Box<dyn Fn(bool) + Send + Sync>,
    /// Reads the settings again; gives what only a restart can change. Blocks.
    pub reload: Box<dyn Fn() -> Result<Vec<&'static str>, ReloadError> + Send + Sync>,
    /// The file of settings, if there is one.
    pub file: Box<dyn Fn() -> Option<PathBuf> + Send + Sync>,
}

/// Why settings were not taken into use. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("this node was started without a file of settings")]
    NoFile,
    #[error("{0}")]
    Settings(String),
}

/// What all requests share.
struct Shared {
    control: Control,
    gate: Gate,
    jobs: Registry,
    places: Places,
    history: History,
    scans: Semaphore,
}

type Node = Arc<Shared>;

impl Shared {
    fn name(&self) -> String {
        self.control.config.load().node.name.clone()
    }

    /// Runs what blocks or takes long apart from the control thread.
    async fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let _place = self.scans.acquire().await;
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.map_err(|_| Refusal::internal())
    }
}

/// Serves until `ended`: a draining node still says so.
pub fn start(
    listener: TcpListener,
    control: Control,
    ended: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shared = Arc::new(Shared {
        control,
        gate: Gate::default(),
        jobs: Registry::default(),
        places: Places::default(),
        history: History::default(),
        scans: Semaphore::new(MAX_BLOCKING),
    });
    thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            runtime.block_on(serve(listener, shared, ended));
            // A name that is being looked up is waited for by nobody.
            runtime.shutdown_background();
        })
}

async fn serve(listener: TcpListener, shared: Node, ended: impl Future<Output = ()>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the admin listener cannot be used");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let router = TowerToHyperService::new(router(&shared));
    spawn(shared.control.talk.clone().run());
    spawn(history::keep(shared.clone()));
    tokio::pin!(ended);
    loop {
        let (accepted, place) = tokio::select! {
            () = &mut ended => return,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        let (Ok((socket, address)), Ok(place)) = (accepted, place) else {
            // Mostly out of descriptors: asking again at once would only burn the processor.
            tokio::time::sleep(ACCEPT_REST).await;
            continue;
        };
        let router = router.clone();
        spawn(async move {
            let _place = place;
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Peer(address.ip()));
                router.call(request)
            });
            // What a peer does wrong here concerns nobody else.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "these end with the control thread's runtime"
)]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// One method of one path.
struct Endpoint {
    method: Method,
    path: &'static str,
    /// What a token must allow. `None`: open to whoever reaches the admin listener.
    scope: Option<Scope>,
    /// Any token will do, whatever it allows.
    takes_any_token: bool,
    /// Whom it is about, where that may be other nodes.
    over: Option<Over>,
    summary: &'static str,
    query: Option<Schema>,
    /// Parameters of the query that no schema tells of, and whether they have to be there.
    parameters: &'static [(&'static str, bool)],
    /// What it begins goes on after the answer (202).
    begins: bool,
    ask: Option<Schema>,
    answer: Option<Schema>,
    route: MethodRouter<Node>,
}

impl Endpoint {
    fn new(
        method: Method,
        path: &'static str,
        scope: impl Into<Option<Scope>>,
        summary: &'static str,
        route: MethodRouter<Node>,
    ) -> Endpoint {
        Endpoint {
            method,
            path,
            scope: scope.into(),
            takes_any_token: path == path::AUTH,
            over: over::of_path(path),
            summary,
            query: None,
            parameters: &[],
            begins: false,
            ask: None,
            answer: None,
            route,
        }
    }

    fn parameters(mut self, parameters: &'static [(&'static str, bool)]) -> Endpoint {
        self.parameters = parameters;
        self
    }

    fn begins(mut self) -> Endpoint {
        self.begins = true;
        self
    }

    fn query<T: serde::de::DeserializeOwned>(mut self) -> Endpoint {
        self.query = Some(schema_of::<T>());
        self
    }

    fn ask<T: serde::de::DeserializeOwned>(mut self) -> Endpoint {
        self.ask = Some(schema_of::<T>());
        self
    }

    fn answer<T: serde::de::DeserializeOwned>(mut self) -> Endpoint {
        self.answer = Some(schema_of::<T>());
        self
    }
}

/// Everything there is, but for what only the first version had.
#[rustfmt::skip]
fn table() -> Vec<Endpoint> {
    use Scope::{Admin, Node, Purge, Read};
    let read = |path, summary, route| Endpoint::new(Method::GET, path, Read, summary, route);
    let act = |path, scope, summary, route| Endpoint::new(Method::POST, path, scope, summary, route);
    vec![
        read(path::OBJECTS, "Stored responses, page by page", get(objects::list)).query::<api::ObjectsQuery>().answer::<api::Objects>(),
        read(path::INSPECT, "What every node holds of a URL (`url`, and `vary` for request fields)", get(objects::inspect)).parameters(&[("url", true), ("vary", false)]).answer::<api::Inspection>(),
        act(path::EXPLAIN, Read, "What a node would do with a request, and why, step by step", post(explain::explain)).ask::<api::ExplainRequest>().answer::<api::Explanation>(),
        act(path::PURGE, Purge, "Remove stored responses, or make them stale", post(purge::purge)).ask::<api::PurgeRequest>().answer::<api::PurgeReport>(),
        act(path::INVALIDATE, Purge, "Make stored responses stale", post(purge::invalidate)).ask::<api::PurgeRequest>().answer::<api::PurgeReport>(),
        read(path::NODES, "All nodes", get(state::nodes)).answer::<api::Nodes>(),
        Endpoint::new(Method::DELETE, path::NODE, Admin, "Forget a node that is gone for good", delete(forget::forget)).answer::<api::Forgotten>(),
        Endpoint::new(Method::DELETE, path::NODE_CACHE, Admin, "Clear a node's cache (`tier`: `disk` or `memory`)", delete(purge::clear)).parameters(&[("tier", true)]).answer::<api::ClearReport>(),
        Endpoint::new(Method::DELETE, path::MANIFEST, Admin, "Empty the manifest", delete(coverage::clear)).answer::<api::ManifestClear>(),
        read(path::STATUS, "Whether all is well, and what is not", get(state::status)).answer::<api::Status>(),
        read(path::COVERAGE, "What of the manifest every node holds", get(coverage::coverage)).query::<api::CoverageQuery>().answer::<api::Coverage>(),
        read(path::STATS, "Counters since the start, or of the last `since_secs`", get(state::stats)).query::<api::StatsQuery>().answer::<api::Stats>(),
        read(path::STATS_HISTORY, "Counters since the start, as they were every minute and every ten", get(history::history)).answer::<api::StatsHistory>(),
        read(path::CONFIG, "The settings in force, without secrets", get(state::config)).answer::<api::Settings>(),
        act(path::CONFIG_VALIDATE, Admin, "Check a file of settings, sent as text, and change nothing", post(state::validate)).answer::<api::Validation>(),
        act(path::CONFIG_DIFF, Admin, "What a file of settings, sent as text, or the node's own, would change", post(state::diff)).answer::<api::SettingsDiff>(),
        act(path::CONFIG_RELOAD, Admin, "Read the file of settings again", post(state::reload)).answer::<api::Reload>(),
        read(path::ORIGINS, "Origins and how they answered", get(origins::list)).answer::<api::Origins>(),
        act(path::ORIGIN_CHECK, Read, "Ask an origin once, with HEAD", post(origins::check)).answer::<api::OriginChecks>(),
        act(path::ORIGIN_DISABLE, Admin, "Ask an origin no more, as if it could not be reached, until the node ends", post(origins::disable)).answer::<api::Origins>(),
        act(path::ORIGIN_ENABLE, Admin, "Ask an origin again", post(origins::enable)).answer::<api::Origins>(),
        read(path::STORAGE, "Disk and memory", get(state::storage)).answer::<api::Storage>(),
        act(path::STORAGE_VERIFY, Admin, "Compare the checksums of all stored blocks, as a job", post(jobs::verify)).begins().answer::<api::Job>(),
        act(path::DRAIN, Admin, "Take a node out of rotation: it is not ready, and serves on", post(state::drain)).answer::<api::Drain>(),
        Endpoint::new(Method::DELETE, path::DRAIN, Admin, "Put a node back into rotation", delete(state::undrain)).answer::<api::Drain>(),
        read(path::DOCTOR, "What stands in the way on a node's machine", get(state::doctor)).answer::<api::Doctor>(),
        read(path::SUPPORT_DUMP, "All that a node tells of itself, without secrets, to be sent to who helps", get(dump::dump)).answer::<api::SupportDump>(),
        read(path::JOBS, "Jobs that run or ran lately", get(jobs::list)).answer::<api::Jobs>(),
        act(path::JOBS, Admin, "Begin a job", post(jobs::begin)).begins().ask::<api::JobRequest>().answer::<api::Job>(),
        read(path::JOB, "A job", get(jobs::show)).answer::<api::Job>(),
        Endpoint::new(Method::DELETE, path::JOB, Admin, "Cancel a job", delete(jobs::cancel)).answer::<api::Job>(),
        act(path::JOB_RESUME, Admin, "Go on with a job that was cancelled", post(jobs::resume)).answer::<api::Job>(),
        read(path::JOB_EVENTS, "The progress of jobs of any nodes (ids with commas between) as server-sent events, until their end", get(watching::events)),
        Endpoint::new(Method::GET, talk::HELLO, Node, "Who is there", get(purge::hello)),
        Endpoint::new(Method::GET, talk::JOB, Node, "How far a job is, once it is further than the asker knows", get(watching::told)),
        act(talk::PURGES, Node, "Take note of another node's purges", post(purge::hear)),
        Endpoint::new(Method::GET, path::OPENAPI, None, "This description", get(describe)),
        Endpoint::new(Method::GET, path::HEALTHZ, None, "Whether the process answers", get(healthz)),
        Endpoint::new(Method::GET, path::READYZ, None, "Whether the node takes traffic", get(readyz)),
        // Names of the first version.
        read(path::LIST, "Stored responses with how long they stay fresh, and what every node should hold", get(coverage::list)).query::<api::ListQuery>().answer::<api::List>(),
        act(path::CLEAR_FS, Admin, "Remove all stored responses of this node", post(purge::clear_disk)).answer::<api::ClearReport>(),
        act(path::CLEAR_DB, Admin, "Empty the manifest", post(coverage::clear)).answer::<api::ManifestClear>(),
        act(path::POPULATE, Admin, "Fetch what the manifest has and this node lacks", post(jobs::populate)).begins().answer::<api::Job>(),
        read(path::AUTH, "Whose token this is, and what it allows", get(access::identity)).answer::<api::Identity>(),
        act(path::AUTH, Read, "The same", post(access::identity)).answer::<api::Identity>(),
    ]
}

fn router(shared: &Node) -> Router {
    let mut router = Router::new().route("/metrics", get(metrics));
    for endpoint in table() {
        let guard = access::Guard {
            node: shared.clone(),
            scope: endpoint.scope,
            takes_any_token: endpoint.takes_any_token,
            // A dry run counts over all nodes; what it purges itself a node is told elsewhere.
            is_for_nodes: endpoint.over.is_some()
                || endpoint.scope == Some(Scope::Node)
                || [path::PURGE, path::INVALIDATE].contains(&endpoint.path),
            is_for_itself: endpoint.over.is_none(),
        };
        let mut route = endpoint.route;
        if let Some(over) = endpoint.over {
            let way = Way {
                node: shared.clone(),
                over,
            };
            route = route.route_layer(axum::middleware::from_fn_with_state(way, over::over_nodes));
        }
        let layer = axum::middleware::from_fn_with_state(guard, access::guard);
        router = router.route(endpoint.path, route.route_layer(layer));
    }
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(
            shared.clone(),
            access::keep_strangers_out,
        ))
        .with_state(shared.clone())
}

async fn metrics(State(node): State<Node>) -> Response {
    let mut response = text(StatusCode::OK, node.control.metrics.render());
    let content_type = HeaderValue::from_static(telemetry::metrics::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

async fn healthz() -> Response {
    text(StatusCode::OK, "ok\n")
}

/// Ready means: takes traffic. A node without its disk does, and says so.
async fn readyz(State(node): State<Node>) -> Response {
    if (node.control.stage)() != NodeState::Serving {
        return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    let health = node.control.cache.store.health();
    let disk = match health.disk {
        DiskHealth::Ok => "disk: ok".to_owned(),
        DiskHealth::Degraded { reason } => format!("disk: degraded: {reason}"),
        DiskHealth::Off { reason } => format!("disk: off: {reason}"),
    };
    text(
        StatusCode::OK,
        format!(
            "ready\n{disk}\nio: {}\nmanifest: {}\npurges: {}\n",
            health.io,
            manifest_health(&node.control),
            purges_health(&node.control)
        ),
    )
}

/// A node serves without its manifest, so this is told and makes nothing unready.
fn manifest_health(control: &Control) -> String {
    match (
        (control.manifest_failure)(),
        control.cache.recorder.manifest(),
    ) {
        (Some(failure), _) => format!("failing: {failure}"),
        (None, None) => "being opened".to_owned(),
        (None, Some(_)) => "ok".to_owned(),
    }
}

fn purges_health(control: &Control) -> &'static str {
    match control.talk.has_read_log() {
        true => "ok",
        false if control.config.load().shares_manifest() => {
            "the log was not read yet: what was stored before the start is validated before it is used"
        }
        false => "the log was not read yet",
    }
}

async fn describe() -> Response {
    refusal::json(StatusCode::OK, &openapi::document(&table()))
}

async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "not found\n")
}

async fn method_not_allowed() -> Response {
    text(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path has other methods\n",
    )
}

fn text(status: StatusCode, text: impl Into<axum::body::Body>) -> Response {
    let fields = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
    ];
    (status, fields, text.into()).into_response()
}
