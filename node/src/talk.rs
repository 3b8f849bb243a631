//! What the nodes of a cluster say to one another on their admin listeners: who they are, and what each is asked.
//!
//! ```text
//! node table, cluster.peers ──► peers ──► line ──► (proof) ──► another node's admin listener
//! purge ──► applied here ──► the manifest's log (on this disk) ──► told to all peers at once ──► who has it, who not
//!                                   │
//!                                   └──► every node's reader of the log: what it was not told it applies from there
//! ```
//!
//! Kept true here:
//! - Rows of the node table are hints: only addresses of `cluster.allow` are asked, who answers must prove that it
//!   knows the cluster's secret and say who it is, and what `cluster.peers` says counts more.
//! - All are asked at once, each for `cluster.timeout` at the most; who has not answered is told by name.
//! - Everything runs on the control thread. No data thread waits for any of it but by an `await`.
//!
//! It knows neither the operators nor what an endpoint answers.

mod line;
mod purges;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::cache::Cache;
use crate::cache::purge::{NodePurged, Selector};
use crate::clock;
use crate::config::{Cluster, Config, OriginUrl};
use crate::manifest::NodeRow;
use crate::peer::secret::{self, Asker, MAX_SKEW, Nonce, NotAPeer};

pub use line::{MAX_ANSWER, Silence};
pub use purges::{Applied, Told, Words};

/// Says who answers. Proven with the answer.
pub const NODE: HeaderName = HeaderName::from_static("caje-peer-node");
/// BLAKE3 of an answer's body, so that the proof of the head vouches for it too.
pub const BODY: HeaderName = HeaderName::from_static("caje-peer-body");

/// Tells one start of the node that answers from another. Proven with the answer.
pub const START: HeaderName = HeaderName::from_static("caje-peer-start");

/// Where nodes greet one another. Answers nothing but who is there.
pub const HELLO: &str = "/_caje/v1/peer/hello";
/// Where nodes tell one another of purges.
pub const PURGES: &str = "/_caje/v1/peer/purge";

/// Where a node asks another how far a job of it is.
pub const JOB: &str = "/_caje/v1/peer/job";

/// The parameter of a target that names the node that is meant; behind a `~`, its [`START`], which what changes
/// something has to name: a process remembers what it was asked, and the next one does not.
pub const TO: &str = "to";

/// Purges that wait for the control thread.
const MAX_ORDERS: usize = 1024;

/// Nodes that are told of, at the most: rows beyond it are nobody's.
const MAX_NODES: usize = 1024;

/// Questions that are remembered for as long as they could be sent again.
const MAX_ASKED: usize = 65_536;

/// Another node, as far as it is known.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `None` while one of `cluster.peers` has never answered.
    pub id: Option<String>,
    pub region: Option<String>,
    /// Its admin listener; or why it has none that could be asked.
    pub url: Result<OriginUrl, String>,
}

impl Peer {
    /// What an operator calls it.
    pub fn name(&self) -> String {
        match (&self.id, &self.url) {
            (Some(id), _) => id.clone(),
            (None, Ok(url)) => format!("http://{}", url.authority()),
            (None, Err(_)) => "?".to_owned(),
        }
    }
}

/// What another node has answered.
#[derive(Debug)]
pub struct Reply {
    pub node: String,
    pub status: StatusCode,
    pub body: Bytes,
}

/// Why a request is not taken for another node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("this node has no `cluster.secret`")]
    NoSecret,
    #[error(transparent)]
    NotAPeer(#[from] NotAPeer),
    #[error("it was sent before")]
    Again,
    #[error("it is meant for another node")]
    Elsewhere,
    /// The node that asks may know this one from before, or not at all: the answer tells it.
    #[error("it is meant for another start of this node")]
    AnotherStart(Asker),
}

/// A purge that a data thread waits for.
struct Order {
    selectors: Vec<Selector>,
    soft: bool,
    answer: oneshot::Sender<Vec<NodePurged>>,
}

/// This node's part in the cluster. One for each node.
pub struct Talk {
    /// What the other nodes call this one.
    id: String,
    cache: Cache,
    cluster: Cluster,
    line: line::Line,
    log: purges::Log,
    /// The node table without this node.
    rows: ArcSwap<Vec<Peer>>,
    /// Who answers at the addresses of `cluster.peers`.
    named: Mutex<HashMap<OriginUrl, String>>,
    /// When each was last heard of, in milliseconds since 1970.
    heard: Mutex<HashMap<String, u64>>,
    asked: Mutex<Asked>,
    nonces: Nonces,
    /// This process's [`START`].
    start: String,
    /// The others', by node, as they have proven them.
    starts: Mutex<HashMap<String, String>>,
    /// Other nodes write the manifest too.
    is_shared: bool,
    orders: mpsc::Sender<Order>,
    waiting: Mutex<Option<mpsc::Receiver<Order>>>,
}

impl Talk {
    /// What this disk holds is in doubt from here on if the manifest is shared, until [`Talk::run`] has read the log.
    pub fn new(config: &Config, cache: &Cache) -> Arc<Talk> {
        let started = cache.clock.tick();
        if config.shares_manifest() {
            cache.residency.doubt(started);
        }
        let (orders, waiting) = mpsc::channel(MAX_ORDERS);
        let nonces = Nonces::default();
        let talk = Arc::new(Talk {
            id: config.manifest_settings().node,
            cache: cache.clone(),
            cluster: config.cluster.clone(),
            line: line::Line::default(),
            log: purges::Log::new(started, cache.residency.own_applied()),
            rows: ArcSwap::default(),
            named: Mutex::default(),
            heard: Mutex::default(),
            asked: Mutex::default(),
            start: format!("{:016x}", u64::from_be_bytes(nonces.next())),
            nonces,
            starts: Mutex::default(),
            is_shared: config.shares_manifest(),
            orders,
            waiting: Mutex::new(Some(waiting)),
        });
        let seen = Arc::downgrade(&talk);
        cache.metrics.on_scrape(move |metrics| {
            let is_unread = seen.upgrade().is_some_and(|talk| !talk.has_read_log());
            metrics.purge_log_unread.set((), u64::from(is_unread));
        });
        talk
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether other nodes can be asked at all.
    pub fn has_secret(&self) -> bool {
        self.cluster.secret.is_some()
    }

    /// Whether the log of purges was read since this node started.
    pub fn has_read_log(&self) -> bool {
        self.log.is_read()
    }

    /// Reads the log and the node table as they grow, and takes orders; ends never. On the control thread.
    pub async fn run(self: Arc<Talk>) {
        let waiting = self.waiting.lock().take();
        let orders = async {
            let Some(mut waiting) = waiting else { return };
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    order = waiting.recv() => {
                        let Some(order) = order else { return };
                        let talk = self.clone();
                        running.spawn(async move {
                            let purged = talk.purge(order.selectors, order.soft).await;
                            // Who asked may have gone.
                            let _ = order.answer.send(purged);
                        });
                    }
                    Some(_) = running.join_next() => {}
                }
            }
        };
        tokio::join!(orders, self.follow());
    }

    /// Purges everywhere, for who is on another thread.
    pub fn order(
        self: &Arc<Talk>,
        selectors: Vec<Selector>,
        soft: bool,
    ) -> Pin<Box<dyn Future<Output = Vec<NodePurged>> + Send>> {
        let talk = self.clone();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let order = Order {
                selectors,
                soft,
                answer,
            };
            let sent = talk.orders.send(order).await;
            match (sent, answered.await) {
                (Ok(()), Ok(purged)) => purged,
                // The node ends.
                _ => vec![NodePurged {
                    node: talk.id.clone(),
                    matched: 0,
                    error: Some("this node ends".to_owned()),
                }],
            }
        })
    }

    /// All other nodes that are known, those of `cluster.peers` first.
    pub fn peers(&self) -> Vec<Peer> {
        if !self.has_secret() {
            return Vec::new();
        }
        let named = self.named.lock();
        let rows = self.rows.load();
        let mut known = BTreeSet::new();
        let mut peers = Vec::new();
        for url in &self.cluster.peers {
            let id = named.get(url).cloned();
            let by_row = || rows.iter().find(|row| row.url.as_ref() == Ok(url));
            let id = id.or_else(|| by_row().and_then(|row| row.id.clone()));
            if let Some(id) = &id
                && (*id == self.id || !known.insert(id.clone()))
            {
                continue;
            }
            let region = rows.iter().find(|row| row.id.is_some() && row.id == id);
            peers.push(Peer {
                region: region.and_then(|row| row.region.clone()),
                id,
                url: Ok(url.clone()),
            });
        }
        let others = rows
            .iter()
            .filter(|row| row.id.as_ref().is_some_and(|id| !known.contains(id)));
        peers.extend(others.cloned());
        peers
    }

    /// When a node was last heard of, in milliseconds since 1970.
    pub fn heard_ms(&self, id: &str) -> Option<u64> {
        self.heard.lock().get(id).copied()
    }

    /// A node of the table, also where nodes do not talk to each other.
    pub fn row(&self, id: &str) -> Option<Peer> {
        let rows = self.rows.load();
        rows.iter()
            .find(|row| row.id.as_deref() == Some(id))
            .cloned()
    }

    /// Whether `cluster.peers` names the address at which this node has answered.
    pub fn is_named(&self, id: &str) -> bool {
        let named = self.named.lock();
        let by_row = self.row(id).and_then(|row| row.url.ok());
        let peers = &self.cluster.peers;
        by_row.is_some_and(|url| peers.contains(&url))
            || named
                .iter()
                .any(|(url, name)| name == id && peers.contains(url))
    }

    /// A node that is gone for good is not told of any more.
    pub fn forget(&self, id: &str) {
        self.heard.lock().remove(id);
        self.named.lock().retain(|_, name| name != id);
    }

    /// Asks nodes the same at once. Ordered by name; one that turned out to be this node, or another of them, is
    /// left out. `again` says that it does no harm to ask twice.
    pub async fn ask_all(
        self: &Arc<Talk>,
        peers: Vec<Peer>,
        method: &Method,
        target: &str,
        body: &Bytes,
        again: bool,
    ) -> Vec<(Peer, Result<Reply, Silence>)> {
        let mut asking = JoinSet::new();
        for (place, peer) in peers.into_iter().enumerate() {
            let talk = self.clone();
            let (method, target, body) = (method.clone(), target.to_owned(), body.clone());
            asking.spawn(async move {
                let reply = talk.ask(&peer, &method, &target, body, again).await;
                (place, peer, reply)
            });
        }
        let mut answers = Vec::new();
        while let Some(joined) = asking.join_next().await {
            // A task that panicked has said so.
            answers.extend(joined);
        }
        answers.sort_by_key(|(place, ..)| *place);
        let asked = answers.into_iter().map(|(_, mut peer, reply)| {
            if let Ok(reply) = &reply {
                peer.id = Some(reply.node.clone());
            }
            (peer, reply)
        });
        // A second row of the same name leads nowhere, or to the same: the answer counts.
        let (answered, silent): (Vec<_>, Vec<_>) = asked.partition(|(_, reply)| reply.is_ok());
        let mut seen = BTreeSet::from([self.id.clone()]);
        let mut left = Vec::new();
        for (peer, reply) in answered.into_iter().chain(silent) {
            if peer.id.clone().is_none_or(|id| seen.insert(id)) {
                left.push((peer, reply));
            }
        }
        left.sort_by_key(|(peer, _)| peer.name());
        left
    }

    /// Asks one node, within `cluster.timeout`.
    pub async fn ask(
        &self,
        peer: &Peer,
        method: &Method,
        target: &str,
        body: Bytes,
        again: bool,
    ) -> Result<Reply, Silence> {
        let limit = self.cluster.timeout;
        match timeout(limit, self.exchange(peer, method, target, body, again)).await {
            Ok(reply) => reply,
            Err(_) => Err(Silence::Late(limit)),
        }
    }

    /// Asks one node for what it may wait with for so long, and `cluster.timeout` more. To drop the future costs
    /// that node nothing.
    pub async fn wait_for(
        &self,
        peer: &Peer,
        target: &str,
        patience: Duration,
    ) -> Result<Reply, Silence> {
        let limit = patience + self.cluster.timeout;
        let asked = self.exchange(peer, &Method::GET, target, Bytes::new(), true);
        match timeout(limit, asked).await {
            Ok(reply) => reply,
            Err(_) => Err(Silence::Late(limit)),
        }
    }

    async fn exchange(
        &self,
        peer: &Peer,
        method: &Method,
        target: &str,
        body: Bytes,
        again: bool,
    ) -> Result<Reply, Silence> {
        let url = peer
            .url
            .as_ref()
            .map_err(|why| Silence::Nowhere(why.clone()))?;
        let id = match &peer.id {
            Some(id) => id.clone(),
            None => {
                let hello = self
                    .send(url, &Method::GET, HELLO, Bytes::new(), true)
                    .await?;
                self.named.lock().insert(url.clone(), hello.node.clone());
                hello.node
            }
        };
        if id == self.id {
            return Err(Silence::Nowhere("this is the node itself".to_owned()));
        }
        let start = || match changes(method) {
            true => self.starts.lock().get(&id).cloned(),
            false => None,
        };
        let mut named = start();
        let mut reply = {
            let target = addressed(target, &id, named.as_deref());
            self.send(url, method, &target, body.clone(), again).await?
        };
        let known = start();
        if reply.status == StatusCode::MISDIRECTED_REQUEST && known != named {
            // It has not taken it, and has told how it is called by now.
            named = known;
            let target = addressed(target, &id, named.as_deref());
            reply = self.send(url, method, &target, body, again).await?;
        }
        if reply.node != id {
            return Err(Silence::Another(reply.node));
        }
        self.heard.lock().insert(id, millis(clock::now()));
        Ok(reply)
    }

    async fn send(
        &self,
        url: &OriginUrl,
        method: &Method,
        target: &str,
        body: Bytes,
        again: bool,
    ) -> Result<Reply, Silence> {
        let secret = self.cluster.secret.as_ref().ok_or(Silence::NoSecret)?;
        let authority = url.authority();
        let prove = || {
            let nonce = self.nonces.next();
            let now = clock::wall();
            let proof = secret.ask(&self.id, now, nonce, method, &authority, target, &body);
            (proof, nonce)
        };
        let question = line::Question {
            url,
            method,
            target,
            body: &body,
            again,
            allow: &self.cluster.allow,
        };
        let (head, body, nonce) = self.line.send(&question, prove).await?;
        if !secret.is_answer(nonce, head.status, &head.headers) {
            return Err(Silence::Stranger);
        }
        let field = |name| {
            head.headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let sum = field(BODY).and_then(|sum| blake3::Hash::from_hex(sum).ok());
        let node = field(NODE).ok_or(Silence::Stranger)?;
        if sum != Some(blake3::hash(&body)) {
            return Err(Silence::Stranger);
        }
        if let Some(start) = field(START) {
            let start = start.to_owned();
            self.starts.lock().insert(node.to_owned(), start);
        }
        Ok(Reply {
            node: node.to_owned(),
            status: head.status,
            body,
        })
    }

    /// Which node has sent a request to the admin listener, with this body.
    ///
    /// # Errors
    /// [`Doubt`].
    pub fn who_asks(&self, parts: &Parts, body: &[u8]) -> Result<Asker, Doubt> {
        let secret = self.cluster.secret.as_ref().ok_or(Doubt::NoSecret)?;
        let mut fields = parts.headers.get_all(secret::ASK).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else {
            return Err(NotAPeer::Malformed.into());
        };
        let authority = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = authority.ok_or(NotAPeer::Malformed)?;
        let target = parts
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let now = clock::wall();
        let asker = secret.check(field, now, &parts.method, authority, target, body)?;
        let changes = changes(&parts.method);
        match addressee(target) {
            Some((id, _)) if id != self.id => return Err(Doubt::Elsewhere),
            None if changes => return Err(Doubt::Elsewhere),
            Some((_, start)) if changes && start != Some(&self.start) => {
                return Err(Doubt::AnotherStart(asker));
            }
            _ => {}
        }
        if changes && !self.asked.lock().is_first(&asker, now) {
            return Err(Doubt::Again);
        }
        self.heard
            .lock()
            .insert(asker.node.clone(), millis(clock::now()));
        Ok(asker)
    }

    /// Makes an answer to another node one that proves itself.
    pub fn prove(&self, asker: &Asker, status: StatusCode, fields: &mut HeaderMap, body: &[u8]) {
        let Some(secret) = &self.cluster.secret else {
            return;
        };
        // What the server adds by itself has to be there before, or it is not as it was proven.
        let date = httpdate::fmt_http_date(clock::now());
        let texts = [
            (DATE, date),
            (CONTENT_LENGTH, body.len().to_string()),
            (NODE, self.id.clone()),
            (START, self.start.clone()),
            (BODY, blake3::hash(body).to_hex().to_string()),
        ];
        for (name, text) in texts {
            if let Ok(value) = HeaderValue::try_from(text) {
                fields.insert(name, value);
            }
        }
        fields.insert(secret::PROOF, secret.answer(asker.nonce, status, fields));
    }

    fn take_rows(&self, rows: Vec<NodeRow>) {
        let others = rows.into_iter().filter(|row| row.id != self.id);
        let peer = |row: NodeRow| Peer {
            url: match row.admin.as_deref().map(OriginUrl::parse) {
                Some(Ok(url)) => Ok(url),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("it says of no address where nodes could ask it".to_owned()),
            },
            id: Some(row.id),
            region: row.region,
        };
        self.rows
            .store(Arc::new(others.take(MAX_NODES).map(peer).collect()));
    }
}

fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD)
}

/// A target that says which node is meant, and which start of it.
fn addressed(target: &str, id: &str, start: Option<&str>) -> String {
    let mark = if target.contains('?') { '&' } else { '?' };
    let id = encoded(id);
    match start {
        Some(start) => format!("{target}{mark}{TO}={id}~{start}"),
        None => format!("{target}{mark}{TO}={id}"),
    }
}

/// The node that a target is meant for, and its start if one is named.
fn addressee(target: &str) -> Option<(&str, Option<&str>)> {
    let (_, query) = target.split_once('?')?;
    let (_, last) = query.rsplit_once('&').unwrap_or(("", query));
    let meant = last.strip_prefix(TO)?.strip_prefix('=')?;
    Some(match meant.split_once('~') {
        Some((id, start)) => (id, Some(start)),
        None => (meant, None),
    })
}

/// An author's name has nothing that is not itself in a query; what is no author's name is nobody's.
fn encoded(id: &str) -> String {
    id.chars()
        .filter(|&char| char.is_ascii_alphanumeric() || "-_.".contains(char))
        .collect()
}

pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Questions that change something, for as long as they would be taken a second time.
#[derive(Default)]
struct Asked {
    nonces: HashSet<(String, Nonce)>,
    /// By the time until which they count, in seconds since 1970; and when they say that they were asked.
    order: VecDeque<(u64, u64, (String, Nonce))>,
    /// What was asked up to then may have been forgotten.
    forgotten: u64,
}

impl Asked {
    /// Takes note of a question. One that was asked before, or that there is no room to remember, is not the first.
    fn is_first(&mut self, asker: &Asker, now: SystemTime) -> bool {
        let now = millis(now) / 1000;
        while let Some((until, ..)) = self.order.front()
            && *until < now
        {
            if let Some((_, at, asked)) = self.order.pop_front() {
                self.nonces.remove(&asked);
                self.forgotten = self.forgotten.max(at);
            }
        }
        // Only where the wall clock was set back is what was forgotten of a time that counts.
        if asker.at <= self.forgotten {
            return false;
        }
        let asked = (asker.node.clone(), asker.nonce);
        if self.order.len() >= MAX_ASKED || !self.nonces.insert(asked.clone()) {
            return false;
        }
        // It may be of a clock that is ahead by the whole skew, and counts for another.
        let until = now + 2 * MAX_SKEW.as_secs() + 1;
        self.order.push_back((until, asker.at, asked));
        true
    }
}

/// Nonces: each once in a process, and not to be foreseen from outside.
#[derive(Default)]
struct Nonces {
    key: OnceLock<[u8; 32]>,
    given: AtomicU64,
}

impl Nonces {
    fn next(&self) -> Nonce {
        let key = self.key.get_or_init(|| {
            use std::hash::{BuildHasher, RandomState};
            let mut hasher = blake3::Hasher::new();
            for _ in 0..4 {
                // Keyed by the system's own chance.
                hasher.update(&RandomState::new().hash_one(clock::now()).to_le_bytes());
            }
            hasher.update(&std::process::id().to_le_bytes());
            *hasher.finalize().as_bytes()
        });
        let given = self.given.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::keyed_hash(key, &given.to_le_bytes());
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&hash.as_bytes()[..8]);
        nonce
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it ends by itself, or with the control thread's runtime"
)]
fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}

/// How long the log may take to be read before that is told.
const LOG_WARNING: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_asked_once() {
        let mut asked = Asked::default();
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        let asked_at = |node: &str, nonce: u8, at| Asker {
            node: node.into(),
            nonce: [nonce; 8],
            at,
        };
        let asker = |node, nonce| asked_at(node, nonce, 1000);
        assert!(asked.is_first(&asker("a", 1), at(1000)));
        assert!(!asked.is_first(&asker("a", 1), at(1000)));
        assert!(asked.is_first(&asker("a", 2), at(1000)));
        assert!(asked.is_first(&asker("b", 1), at(1060)));
        assert!(!asked.is_first(&asker("a", 1), at(1120)));
        // By now its time has passed long since.
        assert!(asked.is_first(&asked_at("b", 2, 1200), at(1200)));
        assert_eq!(asked.nonces.len(), 1);
        // A clock that is set back brings back no time of which nothing is remembered.
        assert!(!asked.is_first(&asker("a", 1), at(1000)));
        assert!(asked.is_first(&asked_at("a", 3, 1001), at(1000)));
    }

    #[test]
    fn who_is_meant_stands_last() {
        for (target, id) in [
            ("/a?to=b", Some(("b", None))),
            ("/a?to=c&x=1&to=b", Some(("b", None))),
            ("/a?to=b~0f", Some(("b", Some("0f")))),
            ("/a?to=b&x=1", None),
            ("/a", None),
            ("/a?into=b", None),
        ] {
            assert_eq!(addressee(target), id, "{target}");
        }
        let target = addressed("/a?x", "b", Some("0f"));
        assert_eq!(addressee(&target), Some(("b", Some("0f"))));
        assert_eq!(addressed("/a", "b", None), "/a?to=b");
    }

    #[test]
    fn nonces_differ() {
        let nonces = Nonces::default();
        let given: HashSet<Nonce> = (0..1000).map(|_| nonces.next()).collect();
        assert_eq!(given.len(), 1000);
        assert_ne!(nonces.next(), Nonces::default().next());
    }
}
