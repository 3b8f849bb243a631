//! A node in this process.

use std::net::SocketAddr;

use caje_node::Config;
use caje_node::config::{AccessFormat, Address};
use caje_node::telemetry::Metrics;
use slow_server::Origin;

use crate::client::{Ask, Connection};
use crate::{Folder, until, within};

/// A running node with its folder. It ends at once when this is dropped.
pub struct Node {
    inner: Option<caje_node::Node>,
    config: Config,
    folder: Folder,
}

/// What the plays' nodes have in common: one origin for all hosts, free ports, small sizes, no access log.
pub fn settings(origin: &Origin, folder: &Folder) -> Config {
    let mut config = Config::proxy("127.0.0.1:0", &origin.url(), Some(&folder.join("store")))
        .expect("an address and a URL");
    config.admin.listen = Address::parse("127.0.0.1:0").expect("an address");
    config.node.threads = 2.try_into().expect("not zero");
    config.node.name = "test".to_owned();
    config.node.region = None;
    config.store.size_bytes = 256 << 20;
    config.store.memory_bytes = 32 << 20;
    config.log.access = AccessFormat::Off;
    // Most plays count what the origin is asked for by clients.
    config.populate.enabled = false;
    config
}

/// A node that does not run.
pub struct Down(Node);

impl Down {
    /// Starts another one on the same folder, with some settings changed.
    pub async fn up(mut self, change: impl FnOnce(&mut Config)) -> Node {
        change(&mut self.0.config);
        let inner = Node::launch(self.0.config.clone()).await;
        self.0.inner = Some(inner.expect("start a node again"));
        self.0
    }

    pub fn folder(&self) -> &Folder {
        &self.0.folder
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A node blocks while it ends, which a thread of a runtime may not.
        if let Some(node) = self.inner.take() {
            let _ = std::thread::spawn(move || drop(node)).join();
        }
    }
}

impl Node {
    /// In front of this origin, with the settings that plays have in common.
    pub async fn start(origin: &Origin) -> Node {
        Node::with(origin, |_| {}).await
    }

    /// With some settings changed.
    pub async fn with(origin: &Origin, change: impl FnOnce(&mut Config)) -> Node {
        let folder = Folder::new();
        let mut config = settings(origin, &folder);
        change(&mut config);
        Node::run(config, folder).await
    }

    /// With just these settings, which may lie in `folder`.
    pub async fn run(config: Config, folder: Folder) -> Node {
        let inner = Node::launch(config.clone()).await;
        let inner = Some(inner.expect("start a node"));
        Node {
            inner,
            config,
            folder,
        }
    }

    /// A node without a folder of its own; or why there is none.
    pub async fn launch(config: Config) -> Result<caje_node::Node, caje_node::StartError> {
        let started = tokio::task::spawn_blocking(move || caje_node::Node::start(config));
        within("a node to start", started)
            .await
            .expect("a node's start does not panic")
    }

    pub fn inner(&self) -> &caje_node::Node {
        self.inner.as_ref().expect("the node runs")
    }

    /// Ends it well, and starts another one on the same folder.
    pub async fn restart(mut self) -> Node {
        self.stop().await;
        let inner = Node::launch(self.config.clone()).await;
        self.inner = Some(inner.expect("start a node again"));
        self
    }

    /// Ends it at once, and starts another one on the same folder.
    pub async fn killed(mut self) -> Node {
        let node = self.inner.take().expect("the node runs");
        let dropped = tokio::task::spawn_blocking(move || drop(node));
        within("a node to end", dropped)
            .await
            .expect("an end does not panic");
        let inner = Node::launch(self.config.clone()).await;
        self.inner = Some(inner.expect("start a node again"));
        self
    }

    /// Ends it well, and leaves its folder for [`Down::up`].
    pub async fn down(mut self) -> Down {
        self.stop().await;
        Down(self)
    }

    /// Ends it well.
    pub async fn drain(mut self) {
        self.stop().await;
    }

    async fn stop(&mut self) {
        let node = self.inner.take().expect("the node runs");
        let drained = tokio::task::spawn_blocking(move || node.drain());
        within("a node to drain", drained)
            .await
            .expect("a drain does not panic");
    }

    /// Begins to end it well; the handle ends with it.
    pub fn begin_drain(&mut self) -> tokio::task::JoinHandle<()> {
        let node = self.inner.take().expect("the node runs");
        tokio::task::spawn_blocking(move || node.drain())
    }

    pub fn config(&self) -> Config {
        self.config.clone()
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn address(&self) -> SocketAddr {
        self.inner().addresses()[0]
    }

    pub fn metrics(&self) -> &Metrics {
        self.inner().metrics()
    }

    pub fn get(&self, target: &str) -> Ask {
        self.ask("GET", target)
    }

    pub fn head(&self, target: &str) -> Ask {
        self.ask("HEAD", target)
    }

    pub fn post(&self, target: &str) -> Ask {
        self.ask("POST", target)
    }

    pub fn ask(&self, method: &str, target: &str) -> Ask {
        Ask::new(self.address(), method, target)
    }

    pub async fn connect(&self) -> Connection {
        Connection::to(self.address()).await
    }

    /// Asks the admin listener.
    pub fn admin(&self, target: &str) -> Ask {
        Ask::new(self.inner().admin_address(), "GET", target)
    }

    /// The value of a series of the exposition, such as `caje_fills_joined_total`.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.admin("/metrics").await.expect(200).text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no series {series} in\n{text}"));
        value.parse().expect("a number")
    }

    /// Waits until a counter of the node holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Metrics) -> bool) {
        let metrics = self.metrics();
        until(
            || format!("{what}:\n{}", metrics.render()),
            || holds(metrics),
        )
        .await;
    }

    /// `n` requests have joined a fill in flight, in all.
    pub async fn joined_fills(&self, n: u64) {
        self.until("requests to join a fill", |metrics| {
            metrics.fills_joined.total() >= n
        })
        .await;
    }

    /// `n` fills have come to an end, well or not.
    pub async fn ended_fills(&self, n: u64) {
        let ended = |metrics: &Metrics| {
            metrics.fills_completed.total() + metrics.fills_failed.total() >= n
                && metrics.fills.get(()) == 0
        };
        self.until("fills to end", ended).await;
    }

    /// No fill is in flight.
    pub async fn at_rest(&self) {
        self.until("fills to end", |metrics| metrics.fills.get(()) == 0)
            .await;
    }

    /// `n` requests have been answered, in all.
    pub async fn answered(&self, n: u64) {
        self.until("answers", |metrics| metrics.requests.total() >= n)
            .await;
    }

    /// Exactly this many client connections are open.
    pub async fn open_connections(&self, n: i64) {
        self.until("connections", |metrics| {
            metrics.client_connections.get(()) == n
        })
        .await;
    }

    /// No more tasks than these live on the data threads.
    pub async fn tasks_at_most(&self, n: usize) {
        let live = || self.inner().live_tasks();
        until(
            || format!("{n} tasks; there are {}", live()),
            || live() <= n,
        )
        .await;
    }
}
