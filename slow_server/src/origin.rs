//! The origin: its routes, its log, its listeners and what a test does to them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::answer::Answer;
use crate::counts::{Board, Counts, Ledger};
use crate::gate::{Gate, WAIT_LIMIT};
use crate::request::Request;
use crate::tls::{Alpn, Identity};
use crate::{face, hls, http1, http2};

/// A running origin. It ends when this is dropped.
#[derive(Debug)]
pub struct Origin {
    shared: Arc<Shared>,
    plain: Door,
    tls: Option<Door>,
    ca_pem: String,
}

/// What an origin is to be, before it starts.
#[derive(Clone, Debug)]
pub struct Builder {
    listen: SocketAddr,
    tls_listen: Option<SocketAddr>,
    tls_names: Vec<String>,
    alpn: Alpn,
    h2c: bool,
    http2_streams: u32,
    keep_log: bool,
}

/// An answer at its place. Every method takes effect at once, also on a route that is served
/// already.
#[derive(Clone, Debug)]
pub struct Route {
    shared: Arc<Shared>,
    place: Place,
    method: Asked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A target with its query, or a path with any.
    Exact(String),
    Prefix(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    GetOrHead,
    Method(Method),
    Any,
}

#[derive(Clone)]
pub(crate) enum Script {
    Always(Box<Answer>),
    /// One after the other; the last one repeats.
    Sequence(Vec<Answer>, usize),
    Dynamic(Dynamic),
}

pub(crate) type Dynamic = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// What is to be answered.
pub(crate) enum Plan {
    Answer(Box<Answer>),
    /// To be asked once the request's body is here.
    Dynamic(Dynamic),
}

#[derive(Clone, Debug)]
struct Entry {
    place: Place,
    method: Asked,
    script: Script,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    routes: Mutex<Vec<Entry>>,
    pub(crate) board: Board,
    log: Mutex<Log>,
    keep_log: bool,
    malformed: Mutex<Vec<String>>,
    gates: Mutex<HashMap<String, Gate>>,
    pub(crate) hls: hls::Clock,
    pub(crate) h2c: bool,
    pub(crate) http2_streams: u32,
    requests: AtomicU64,
    connections: AtomicU64,
    open: watch::Sender<u64>,
    pub(crate) signal: watch::Sender<Signal>,
}

/// Counted up for each order to the connections that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signal {
    pub(crate) kill: u64,
    pub(crate) close_idle: u64,
}

#[derive(Debug, Default)]
struct Log {
    requests: VecDeque<Request>,
    /// The number of the first one kept.
    first: u64,
}

/// The log keeps the last of this many requests.
const LOG_REQUESTS: usize = 100_000;
/// And this many refused heads.
const LOG_MALFORMED: usize = 1_000;

/// A listener that can be closed and opened again at the same address.
#[derive(Debug)]
struct Door {
    addr: SocketAddr,
    wanted: watch::Sender<DoorState>,
    is: watch::Receiver<DoorState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DoorState {
    Listening,
    Refusing,
    Gone,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Builder {
    /// Where to listen for plain HTTP. `127.0.0.1:0` unless given.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = addr;
        self
    }

    /// Listen for HTTPS too, on a free port of the loopback address.
    #[must_use]
    pub fn tls(mut self, on: bool) -> Self {
        self.tls_listen = on.then(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        self
    }

    /// Listen for HTTPS too, here.
    #[must_use]
    pub fn tls_listen(mut self, addr: SocketAddr) -> Self {
        self.tls_listen = Some(addr);
        self
    }

    /// The names and addresses of the certificate: `localhost`, `127.0.0.1` and `::1` unless given.
    #[must_use]
    pub fn tls_names(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tls_names = names.into_iter().map(Into::into).collect();
        self
    }

    /// What the HTTPS listener offers.
    #[must_use]
    pub fn alpn(mut self, alpn: Alpn) -> Self {
        self.alpn = alpn;
        self
    }

    /// Whether the plain listener serves HTTP/2 with prior knowledge beside HTTP/1.1.
    #[must_use]
    pub fn h2c(mut self, on: bool) -> Self {
        self.h2c = on;
        self
    }

    /// How many requests a client may have at a time on one HTTP/2 connection: 1000 unless this says
    /// another number. Others are refused.
    #[must_use]
    pub fn http2_streams(mut self, count: u32) -> Self {
        self.http2_streams = count;
        self
    }

    /// Whether requests are kept for [`Origin::requests_log`]. They are unless this says no.
    #[must_use]
    pub fn keep_log(mut self, on: bool) -> Self {
        self.keep_log = on;
        self
    }

    /// Starts on the current tokio runtime.
    ///
    /// # Errors
    /// An address cannot be listened on, or no certificate can be made.
    pub async fn start(self) -> io::Result<Origin> {
        let shared = Arc::new(Shared {
            routes: Mutex::default(),
            board: Board::new(),
            log: Mutex::new(Log {
                requests: VecDeque::new(),
                first: 1,
            }),
            keep_log: self.keep_log,
            malformed: Mutex::default(),
            gates: Mutex::default(),
            hls: hls::Clock::new(),
            h2c: self.h2c,
            http2_streams: self.http2_streams,
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: watch::Sender::new(0),
            signal: watch::Sender::new(Signal::default()),
        });
        let plain = Door::open(self.listen, shared.clone(), None).await?;
        let mut ca_pem = String::new();
        let mut tls = None;
        if let Some(addr) = self.tls_listen {
            let identity = Identity::make(&self.tls_names, self.alpn)?;
            ca_pem.clone_from(&identity.ca_pem);
            tls = Some(Door::open(addr, shared.clone(), Some(identity)).await?);
        }
        Ok(Origin {
            shared,
            plain,
            tls,
            ca_pem,
        })
    }
}

impl Origin {
    /// An origin for plain HTTP/1.1 on a free port of the loopback address.
    ///
    /// # Panics
    /// When it cannot listen there.
    pub async fn start() -> Origin {
        Origin::builder()
            .start()
            .await
            .expect("listen on a free port of the loopback address")
    }

    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls_listen: None,
            tls_names: ["localhost", "127.0.0.1", "::1"]
                .map(str::to_owned)
                .to_vec(),
            alpn: Alpn::H2AndHttp1,
            h2c: false,
            http2_streams: 1000,
            keep_log: true,
        }
    }

    /// The address of plain HTTP.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.plain.addr
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.plain.addr)
    }

    #[must_use]
    pub fn url_of(&self, target: &str) -> String {
        format!("http://{}{target}", self.plain.addr)
    }

    /// The address of HTTPS.
    ///
    /// # Panics
    /// When the origin was started without it.
    #[must_use]
    pub fn tls_addr(&self) -> SocketAddr {
        self.tls
            .as_ref()
            .expect("the origin was built with tls")
            .addr
    }

    /// `https://127.0.0.1:PORT`
    ///
    /// # Panics
    /// When the origin was started without it.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.tls_addr())
    }

    /// The authority that signed the certificate of HTTPS, in PEM. Empty without HTTPS.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A new route for GET and HEAD of this path with any query, or of this target if it has one.
    /// It replaces an older one.
    pub fn get(&self, target: &str) -> Route {
        self.route(Place::Exact(target.to_owned()), Asked::GetOrHead)
    }

    pub fn post(&self, target: &str) -> Route {
        self.on(Method::POST, target)
    }

    pub fn put(&self, target: &str) -> Route {
        self.on(Method::PUT, target)
    }

    pub fn delete(&self, target: &str) -> Route {
        self.on(Method::DELETE, target)
    }

    /// A new route for this method.
    pub fn on(&self, method: Method, target: &str) -> Route {
        self.route(Place::Exact(target.to_owned()), Asked::Method(method))
    }

    /// A new route for every method that has no route of its own there.
    pub fn any(&self, target: &str) -> Route {
        self.route(Place::Exact(target.to_owned()), Asked::Any)
    }

    /// A new route for every path that begins like this and has no route of its own. The longest
    /// prefix wins.
    pub fn prefix(&self, path: &str) -> Route {
        self.route(Place::Prefix(path.to_owned()), Asked::Any)
    }

    /// These bytes, whatever they are, to every request for this target; then the connection is
    /// closed.
    pub fn raw(&self, target: &str, bytes: impl Into<Bytes>) -> Route {
        self.any(target).raw(bytes)
    }

    /// The route that is there, to be changed.
    ///
    /// # Panics
    /// When there is none.
    pub fn change(&self, target: &str) -> Route {
        let routes = lock(&self.shared.routes);
        let here = |entry: &&Entry| match &entry.place {
            Place::Exact(place) | Place::Prefix(place) => place == target,
        };
        let Some(entry) = routes.iter().find(here) else {
            panic!("no route at {target}")
        };
        let (place, method) = (entry.place.clone(), entry.method.clone());
        drop(routes);
        Route {
            shared: self.shared.clone(),
            place,
            method,
        }
    }

    fn route(&self, place: Place, method: Asked) -> Route {
        let mut routes = lock(&self.shared.routes);
        routes.retain(|entry| entry.place != place || entry.method != method);
        routes.push(Entry {
            place: place.clone(),
            method: method.clone(),
            script: Script::Always(Box::default()),
        });
        drop(routes);
        Route {
            shared: self.shared.clone(),
            place,
            method,
        }
    }

    /// The gate of this name: what `gate=name` in a URL waits at.
    #[must_use]
    pub fn gate(&self, name: &str) -> Gate {
        self.shared.gate(name)
    }

    /// How many requests there were for this target, or, without a query, for all of this path.
    #[must_use]
    pub fn requests(&self, target: &str) -> u64 {
        self.shared.board.requests(target)
    }

    #[must_use]
    pub fn requests_total(&self) -> u64 {
        self.shared.board.total().requests
    }

    /// What was asked of this target, or, without a query, of all of this path.
    #[must_use]
    pub fn counts(&self, target: &str) -> Counts {
        self.shared.board.counts(target)
    }

    #[must_use]
    pub fn counts_total(&self) -> Counts {
        self.shared.board.total()
    }

    /// Forgets all counts and the log.
    pub fn reset_counts(&self) {
        self.shared.reset();
    }

    /// Every request as it was received, in order. A request stands here as soon as its head is
    /// here.
    #[must_use]
    pub fn requests_log(&self) -> Vec<Request> {
        lock(&self.shared.log).requests.iter().cloned().collect()
    }

    /// The last request for this target, or, without a query, for this path.
    ///
    /// # Panics
    /// When there was none.
    #[must_use]
    pub fn last_request(&self, target: &str) -> Request {
        let log = lock(&self.shared.log);
        let found = log
            .requests
            .iter()
            .rfind(|r| r.target == target || r.path() == target);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no request for {target}"))
    }

    /// Why and what this origin refused as malformed. A proxy in front of it must leave this empty.
    #[must_use]
    pub fn malformed(&self) -> Vec<String> {
        lock(&self.shared.malformed).clone()
    }

    /// Returns once `n` requests for this target (or path) have arrived.
    ///
    /// # Panics
    /// After [`WAIT_LIMIT`], as do the other waits.
    pub async fn wait_requests(&self, target: &str, n: u64) {
        let wanted = format!("{n} requests");
        self.shared
            .board
            .wait(target, &wanted, |counts| counts.requests >= n)
            .await;
    }

    /// Returns once `n` answers for this target (or path) have been sent to their end.
    pub async fn wait_finished(&self, target: &str, n: u64) {
        let wanted = format!("{n} finished answers");
        self.shared
            .board
            .wait(target, &wanted, |counts| counts.finished >= n)
            .await;
    }

    /// Returns once `n` answers for this target (or path) have lost their client before their end.
    pub async fn wait_abandoned(&self, target: &str, n: u64) {
        let wanted = format!("{n} abandoned answers");
        self.shared
            .board
            .wait(target, &wanted, |counts| counts.abandoned >= n)
            .await;
    }

    /// Returns once `enough` says so of the counts of this target (or path).
    pub async fn wait_counts(&self, target: &str, enough: impl Fn(&Counts) -> bool) {
        self.shared
            .board
            .wait(target, "certain counts", enough)
            .await;
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Connections that are open.
    #[must_use]
    pub fn open_connections(&self) -> u64 {
        *self.shared.open.borrow()
    }

    /// Returns once exactly `n` connections are open.
    pub async fn wait_open_connections(&self, n: u64) {
        let mut open = self.shared.open.subscribe();
        let wait = open.wait_for(|open| *open == n);
        if tokio::time::timeout(WAIT_LIMIT, wait).await.is_err() {
            let open = self.open_connections();
            panic!("waited {WAIT_LIMIT:?} for {n} open connections; there are {open}");
        }
    }

    /// Ends every open connection with RST (HTTP/2 and TLS: without a word).
    pub fn kill_connections(&self) {
        self.shared.signal.send_modify(|signal| signal.kill += 1);
    }

    /// Closes every HTTP/1 connection that waits for a request.
    pub fn close_idle_connections(&self) {
        self.shared
            .signal
            .send_modify(|signal| signal.close_idle += 1);
    }

    /// Stops listening: who connects is refused by the kernel. Open connections stay;
    /// [`kill_connections`](Self::kill_connections) ends them.
    pub async fn refuse(&self) {
        for door in [Some(&self.plain), self.tls.as_ref()].into_iter().flatten() {
            door.turn(DoorState::Refusing).await;
        }
    }

    /// Listens again at the same addresses.
    pub async fn resume(&self) {
        for door in [Some(&self.plain), self.tls.as_ref()].into_iter().flatten() {
            door.turn(DoorState::Listening).await;
        }
    }

    /// Stops listening, ends every connection and returns once all of it has gone.
    pub async fn shutdown(&self) {
        for door in [Some(&self.plain), self.tls.as_ref()].into_iter().flatten() {
            door.turn(DoorState::Gone).await;
        }
        self.kill_connections();
        self.wait_open_connections(0).await;
    }

    /// Moves the presentation `/hls/manual/` on by `n` segments.
    pub fn hls_tick(&self, n: u64) {
        self.shared.hls.tick(n);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        for door in [Some(&self.plain), self.tls.as_ref()].into_iter().flatten() {
            door.wanted.send_replace(DoorState::Gone);
        }
        self.kill_connections();
    }
}

impl Route {
    pub(crate) fn edit(self, change: impl FnOnce(Answer) -> Answer) -> Self {
        self.script(|script| match script {
            Script::Always(answer) => **answer = change(std::mem::take(answer)),
            Script::Sequence(..) => panic!("a sequence is made of whole answers"),
            Script::Dynamic(_) => panic!("the closure of respond_with makes the whole answer"),
        })
    }

    /// Holds every answer before its head.
    pub fn gated(self) -> Gate {
        let gate = Gate::new();
        let _ = self.gate(&gate);
        gate
    }

    /// Holds every answer before byte `at` of its representation; see [`Answer::gate_at`].
    pub fn gated_at(self, at: u64) -> Gate {
        let gate = Gate::new();
        let _ = self.gate_at(at, &gate);
        gate
    }

    /// Each answer is what this closure says. It is called when the request's body has been read.
    pub fn respond_with(self, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let answer: Dynamic = Arc::new(answer);
        self.script(|script| *script = Script::Dynamic(answer))
    }

    /// One answer after the other; the last one repeats.
    ///
    /// # Panics
    /// Without any.
    pub fn sequence(self, answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers: Vec<Answer> = answers.into_iter().collect();
        assert!(!answers.is_empty(), "a sequence of no answers");
        self.script(|script| *script = Script::Sequence(answers, 0))
    }

    /// This answer, in place of what was built so far.
    pub fn answer(self, answer: Answer) -> Self {
        self.script(|script| *script = Script::Always(Box::new(answer)))
    }

    fn script(self, change: impl FnOnce(&mut Script)) -> Self {
        let mut routes = lock(&self.shared.routes);
        let here = |entry: &&mut Entry| entry.place == self.place && entry.method == self.method;
        if let Some(entry) = routes.iter_mut().find(here) {
            change(&mut entry.script);
        }
        drop(routes);
        self
    }
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Script::Always(answer) => answer.fmt(f),
            Script::Sequence(answers, next) => write!(f, "{answers:?} at {next}"),
            Script::Dynamic(_) => f.write_str("a closure"),
        }
    }
}

impl Shared {
    /// What to answer: by route, or else by URL.
    pub(crate) fn plan(self: &Arc<Self>, request: &Request) -> Plan {
        let mut routes = lock(&self.routes);
        let best = routes
            .iter_mut()
            .filter_map(|entry| Some((entry.rank(request)?, entry)))
            .max_by_key(|(rank, _)| *rank);
        if let Some((_, entry)) = best {
            return match &mut entry.script {
                Script::Always(answer) => Plan::Answer(answer.clone()),
                Script::Dynamic(answer) => Plan::Dynamic(answer.clone()),
                Script::Sequence(answers, next) => {
                    let answer = answers[(*next).min(answers.len() - 1)].clone();
                    *next += 1;
                    Plan::Answer(Box::new(answer))
                }
            };
        }
        drop(routes);
        Plan::Answer(Box::new(face::answer(self, request)))
    }

    /// Notes and counts a request; its number is its place in the log. Orders to the origin itself
    /// are neither noted nor counted.
    pub(crate) fn note(&self, request: &mut Request) -> Ledger {
        if face::is_order(request.path()) {
            return self.board.uncounted();
        }
        self.log(request);
        self.board.request(request)
    }

    fn log(&self, request: &mut Request) {
        request.number = self.requests.fetch_add(1, Relaxed) + 1;
        if !self.keep_log {
            return;
        }
        let mut log = lock(&self.log);
        // Two connections may come here in another order than they were numbered.
        request.number = log.first + log.requests.len() as u64;
        log.requests.push_back(request.clone());
        if log.requests.len() > LOG_REQUESTS {
            log.requests.pop_front();
            log.first += 1;
        }
    }

    /// Writes what arrived of a request's body into the log.
    pub(crate) fn note_body(&self, request: &Request) {
        if !self.keep_log {
            return;
        }
        let mut log = lock(&self.log);
        let Some(at) = request.number.checked_sub(log.first) else {
            return;
        };
        if let Some(noted) = log.requests.get_mut(at as usize)
            && noted.connection == request.connection
        {
            noted.body = request.body.clone();
            noted.body_bytes = request.body_bytes;
            noted.body_hash = request.body_hash;
            noted.trailers = request.trailers.clone();
        }
    }

    pub(crate) fn note_malformed(&self, reason: &str, head: &[u8]) {
        let mut malformed = lock(&self.malformed);
        if malformed.len() < LOG_MALFORMED {
            let head = String::from_utf8_lossy(&head[..head.len().min(200)]);
            malformed.push(format!("{reason}: {head:?}"));
        }
    }

    pub(crate) fn gate(&self, name: &str) -> Gate {
        lock(&self.gates)
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    pub(crate) fn reset(&self) {
        self.board.reset();
        let mut log = lock(&self.log);
        log.first += log.requests.len() as u64;
        log.requests.clear();
    }

    /// A request of this connection without body so far.
    pub(crate) fn request(
        method: Method,
        target: String,
        headers: HeaderMap,
        connection: u64,
    ) -> Request {
        Request {
            method,
            target,
            version: http::Version::HTTP_11,
            headers,
            raw_head: Bytes::new(),
            body: Bytes::new(),
            body_bytes: 0,
            body_hash: crate::body::HASH_START,
            trailers: HeaderMap::new(),
            connection,
            number: 0,
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, identity: Option<Arc<Identity>>, id: u64) {
        self.open.send_modify(|open| *open += 1);
        let _open = OpenGuard(self.clone());
        let _ = stream.set_nodelay(true);
        match identity {
            None if self.h2c => match http2::sniff(&stream).await {
                Ok(true) => http2::serve(self, stream, id).await,
                Ok(false) => http1::serve(self, stream, id).await,
                Err(_) => {}
            },
            None => http1::serve(self, stream, id).await,
            Some(identity) => {
                let Ok(stream) = identity.acceptor.accept(stream).await else {
                    return;
                };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    http2::serve(self, stream, id).await;
                } else {
                    http1::serve(self, stream, id).await;
                }
            }
        }
    }
}

impl Entry {
    /// How well this route fits a request; the better, the higher.
    fn rank(&self, request: &Request) -> Option<(usize, usize)> {
        let method = match &self.method {
            Asked::GetOrHead if matches!(request.method, Method::GET | Method::HEAD) => 1,
            Asked::Method(method) if *method == request.method => 1,
            Asked::Any => 0,
            _ => return None,
        };
        let place = match &self.place {
            Place::Exact(target) if *target == request.target => usize::MAX,
            Place::Exact(path) if path == request.path() => usize::MAX - 1,
            Place::Prefix(prefix) if request.path().starts_with(prefix.as_str()) => prefix.len(),
            _ => return None,
        };
        Some((place, method))
    }
}

struct OpenGuard(Arc<Shared>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

impl Door {
    async fn open(
        addr: SocketAddr,
        shared: Arc<Shared>,
        identity: Option<Identity>,
    ) -> io::Result<Door> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let (wanted, mut orders) = watch::channel(DoorState::Listening);
        let (becomes, is) = watch::channel(DoorState::Listening);
        let identity = identity.map(Arc::new);
        tokio::spawn(async move {
            let mut listener = Some(listener);
            loop {
                let order = *orders.borrow_and_update();
                match order {
                    DoorState::Gone => {
                        drop(listener.take());
                        becomes.send_replace(order);
                        return;
                    }
                    DoorState::Refusing => listener = None,
                    DoorState::Listening if listener.is_none() => {
                        match TcpListener::bind(addr).await {
                            Ok(bound) => listener = Some(bound),
                            Err(_) => {
                                tokio::time::sleep(Duration::from_millis(10)).await;
                                continue;
                            }
                        }
                    }
                    DoorState::Listening => {}
                }
                becomes.send_replace(order);
                let accepted = async {
                    match &listener {
                        Some(listener) => listener.accept().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    accepted = accepted => match accepted {
                        Ok((stream, _)) => {
                            let id = shared.connections.fetch_add(1, Relaxed) + 1;
                            tokio::spawn(guarded(shared.clone(), stream, identity.clone(), id));
                        }
                        // Out of descriptors: those that are open will give some back.
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    },
                    changed = orders.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Door { addr, wanted, is })
    }

    async fn turn(&self, state: DoorState) {
        self.wanted.send_replace(state);
        let mut is = self.is.clone();
        let wait = is.wait_for(|is| *is == state);
        if tokio::time::timeout(WAIT_LIMIT, wait).await.is_err() {
            panic!("the listener at {} did not become {state:?}", self.addr);
        }
    }
}

/// Serves until the connection ends, or all connections are killed.
async fn guarded(shared: Arc<Shared>, stream: TcpStream, identity: Option<Arc<Identity>>, id: u64) {
    let mut signal = shared.signal.subscribe();
    let kills = signal.borrow_and_update().kill;
    tokio::select! {
        // HTTP/1 watches the signal itself, to reset: it comes first.
        biased;
        () = shared.clone().serve(stream, identity, id) => {}
        _ = signal.wait_for(|signal| signal.kill != kills) => {}
    }
}
