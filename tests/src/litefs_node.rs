//! `caje-node` processes on real LiteFS, each on a mount of its own.
//!
//! ```ignore
//! let Ok(mut nodes) = LiteFsNode::cluster(&origin, 3, "").await else { return };
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use caje_admin_api::Nodes;
use caje_node::config::TokenHash;
use rusqlite::{Connection, OpenFlags};
use slow_server::Origin;
use tokio::time::Instant;

use crate::client::{Ask, Got};
use crate::litefs::{LiteFs, Skip};
use crate::program::Program;
use crate::{Folder, until_within};

/// A lock whose holder was killed is given away after 35 seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Lets a play see and change everything on its nodes.
const TOKEN: &str = "caje_canary_5c1f9a_of_nodes_on_litefs";

/// What nodes of plays know one another by.
const SECRET: &str = "canary-5c1f9a, which all nodes of a play know";

/// A LiteFS with its mount, and a node on it.
pub struct LiteFsNode {
    /// The first to go: a process that waits for a mount which stands still cannot be killed.
    pub litefs: LiteFs,
    program: Option<Program>,
    folder: Folder,
}

impl LiteFsNode {
    /// Starts nodes `n0`, whose LiteFS is the primary, `n1` and so on, in front of this origin. `origin_settings` are
    /// further lines of its section, and whatever sections follow.
    ///
    /// # Errors
    /// [`Skip`], which ends the play.
    pub async fn cluster(
        origin: &Origin,
        count: usize,
        origin_settings: &str,
    ) -> Result<Vec<LiteFsNode>, Skip> {
        let started = tokio::task::spawn_blocking(move || LiteFs::cluster(count));
        let all = started.await.expect("a start of LiteFS")?;
        let mut nodes = Vec::new();
        for (number, litefs) in all.into_iter().enumerate() {
            let folder = Folder::new();
            let settings = settings(number, origin, &litefs, &folder, origin_settings);
            fs::write(folder.join("caje.toml"), settings).expect("write settings");
            let mut node = LiteFsNode {
                litefs,
                program: None,
                folder,
            };
            node.start().await;
            nodes.push(node);
        }
        Ok(nodes)
    }

    /// Starts the node, after its end, and waits until it can record.
    pub async fn start(&mut self) {
        let settings = self.folder.join("caje.toml").display().to_string();
        let arguments = ["run", "--config", &settings];
        self.program = Some(Program::start_with_log(&arguments, &self.log_path()).await);
        let deadline = Instant::now() + PATIENCE;
        while self.readyz().await.contains("manifest: being opened") {
            assert!(Instant::now() < deadline, "{}", self.log());
        }
    }

    pub fn program(&self) -> &Program {
        self.program.as_ref().expect("a node that runs")
    }

    /// SIGTERM, and waits for the end: its exit code.
    pub async fn shutdown(&mut self) -> Option<i32> {
        self.program().signal(nix::sys::signal::Signal::SIGTERM);
        self.ended().await
    }

    /// Waits until it has ended, as it was told to: its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut program = self.program.take().expect("a node that runs");
        program.ended().await
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("node.log")
    }

    /// What it has said since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("read a log")
    }

    pub fn get(&self, target: &str) -> Ask {
        self.program().get(target)
    }

    /// Whether it has this, whole, without asking anybody.
    pub async fn holds(&self, target: &str) -> bool {
        let ask = self.get(target).header("cache-control", "only-if-cached");
        let got = ask.await;
        match got.status() {
            200 => got.head.is_hit(),
            504 => false,
            _ => panic!("{}", got.head.text),
        }
    }

    /// Asks its admin listener as somebody who may do everything.
    pub async fn order(&self, method: &str, target: &str, json: &str) -> Got {
        Ask::new(self.program().admin_address(), method, target)
            .host("127.0.0.1")
            .header("authorization", &format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .body(json.to_owned())
            .await
    }

    /// What the system says of the thread that publishes: one of the files in its folder of `/proc`.
    fn publisher(&self, file: &str) -> Option<String> {
        let folder = format!("/proc/{}/task", self.program().id());
        let threads = fs::read_dir(folder).expect("threads");
        let mut threads = threads.map(|thread| thread.expect("a thread").path());
        let publisher = threads.find(|thread| {
            let name = fs::read_to_string(thread.join("comm"));
            // The system keeps fifteen letters.
            name.is_ok_and(|name| {
                "manifest-publish".starts_with(name.trim_end()) && name.len() > 10
            })
        });
        fs::read_to_string(publisher?.join(file)).ok()
    }

    /// Waits until the thread that publishes sits in `fcntl`, as it does while it waits for the lock.
    pub async fn waits_for_a_lock(&self) {
        let inside = format!("{} ", nix::libc::SYS_fcntl);
        let waits = || {
            self.publisher("syscall")
                .is_some_and(|call| call.starts_with(&inside))
        };
        until_within(PATIENCE, || "a wait for the lock".to_owned(), waits).await;
    }

    pub async fn readyz(&self) -> String {
        self.program()
            .admin("/_caje/readyz")
            .await
            .expect(200)
            .text()
    }

    /// The value of a series of the exposition.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.program().admin("/metrics").await.expect(200).text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no series {series} in\n{text}"));
        value.parse().expect("a number")
    }

    /// Waits until a series of the exposition has this value.
    pub async fn until_metric(&self, series: &str, wanted: f64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(series).await;
            if value == wanted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{series} is {value}, not {wanted}, after {PATIENCE:?}\n{}\n{}",
                self.readyz().await,
                self.log()
            );
        }
    }

    /// Waits until all that was recorded is published. Where the answer to a commit was lost with the primary, that takes
    /// a restart of LiteFS, for which the node then asks.
    pub async fn all_published_at_last(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric("caje_manifest_outbox_rows").await > 0.0 {
            let ready = self.readyz().await;
            assert!(Instant::now() < deadline, "{ready}\n{}", self.log());
            if ready.contains("try: restart LiteFS") {
                self.shutdown().await;
                self.litefs.restart();
                self.start().await;
            }
        }
    }

    /// Waits until it has published more than so many batches.
    pub async fn until_published_more_than(&self, batches: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric("caje_manifest_batches_total").await <= batches {
            assert!(
                Instant::now() < deadline,
                "no batch after {PATIENCE:?}\n{}\n{}",
                self.readyz().await,
                self.log()
            );
        }
    }

    /// Waits until all that was recorded here stands in its database of the manifest.
    pub async fn all_published(&self) {
        self.until_metric("caje_manifest_outbox_rows", 0.0).await;
        self.until_metric("caje_manifest_failing", 0.0).await;
    }

    /// Waits until its merge of what all nodes say has so many resources.
    pub async fn until_recorded(&self, wanted: usize) {
        let merge = self.folder.join("store").join("manifest").join("local.db");
        let count = || {
            let merge = Connection::open_with_flags(&merge, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            merge.busy_timeout(PATIENCE)?;
            let sql = "SELECT count(*) FROM entry WHERE url IS NOT NULL";
            merge.query_one(sql, [], |row| row.get::<_, u32>(0))
        };
        let what = || format!("{wanted} resources: {:?}\n{}", count(), self.log());
        until_within(PATIENCE, what, || {
            count().is_ok_and(|count| count as usize == wanted)
        })
        .await;
    }

    /// Waits until it knows of so many nodes, itself included, and each of them answers it.
    ///
    /// # Panics
    /// When they do not within [`PATIENCE`].
    pub async fn until_knows(&self, wanted: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let got = self.order("GET", "/_caje/v1/nodes", "").await.expect(200);
            let text = got.text();
            let known: Nodes = serde_json::from_str(&text).expect("nodes");
            if known.nodes.len() == wanted && known.unanswered.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{text}\n{}", self.log());
        }
    }

    /// Waits until it has all of these.
    pub async fn until_holds(&self, targets: &[String]) {
        let deadline = Instant::now() + PATIENCE;
        for target in targets {
            while !self.holds(target).await {
                assert!(
                    Instant::now() < deadline,
                    "{target} is not here after {PATIENCE:?}\n{}\n{}",
                    self.readyz().await,
                    self.log()
                );
            }
        }
    }
}

fn settings(
    number: usize,
    origin: &Origin,
    litefs: &LiteFs,
    folder: &Folder,
    origin_settings: &str,
) -> String {
    let is_told = origin_settings.contains("record");
    let record = if is_told { "" } else { "record = 'all'\n" };
    format!(
        "[node]\nname = 'n{number}'\nlisten = '127.0.0.1:0'\nthreads = 1\n\
         [admin]\nlisten = '127.0.0.1:0'\n\
         [[admin.token]]\nname = 'play'\nhash = '{}'\nscopes = ['read', 'purge', 'admin']\n\
         [store]\ndir = {:?}\nsize = '1GiB'\nmemory = '32MiB'\n\
         [manifest]\nengine = 'litefs'\ndir = {:?}\nlitefs = '{}'\n\
         [cluster]\nsecret = '{SECRET}'\n\
         [limits]\ndrain_timeout = '2s'\n\
         [log]\naccess = 'off'\n\
         [[origin]]\nname = 'main'\nurl = '{}'\n{record}honor_client_cache_control = true\n{origin_settings}\n",
        TokenHash::of(TOKEN),
        folder.join("store"),
        litefs.mount_dir(),
        litefs.http_addr(),
        origin.url(),
    )
}
