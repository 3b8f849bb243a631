//! One other node: where it is, how fast it answers, and whether it is worth asking now.
//!
//! ```text
//!  good ── failure ─► rests (1 s, doubled up to 32 s) ─► tried by one request ─┬─ answers ─► good
//!                       ▲                                                      └─ fails ─┐
//!                       └────────────────────────────────────────────────────────────────┘
//! ```

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::MAX_CONNECTIONS;
use crate::clock;
use crate::origin::{Http2, Permits, Scheme, Settings};

/// The first rest of a node that has failed; each failure after it doubles the next.
const FIRST_REST: Duration = Duration::from_secs(1);
const MOST_DOUBLINGS: u32 = 5;

/// Times in a row that a node may be too slow because its origin may be.
const SLOW_LIMIT: u32 = 3;

/// How long a body of a node may stand still.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Names of nodes that answers tell apart; later ones are just peers.
const MAX_NAMES: usize = 4096;

/// A node as the manifest or the settings tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub id: String,
    /// The URL of its clients' port.
    pub data: String,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    host: Box<str>,
    port: u16,
}

impl Place {
    /// `http://host:port`, and no well-known port but those of HTTP: whoever forges a node's row must not make the
    /// nodes talk to a mail server.
    pub(super) fn parse(url: &str) -> Option<Place> {
        let uri: http::Uri = url.parse().ok()?;
        let authority = uri.authority()?;
        let is_plain = uri.scheme_str() == Some("http")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none();
        let host = authority.host();
        // Nothing stands before the host, and behind it a port that can be one.
        let port = match authority.as_str().strip_prefix(host)? {
            "" => 80,
            port => port.strip_prefix(':')?.parse().ok()?,
        };
        let is_fit = matches!(port, 80 | 443 | 1024..);
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']')?,
            None => host,
        };
        (is_plain && is_fit && !host.is_empty()).then(|| Place {
            host: host.into(),
            port,
        })
    }
}

/// Another node.
#[derive(Debug)]
pub struct PeerNode {
    id: Box<str>,
    place: Place,
    pub(super) upstream: Arc<Settings>,
    detail: &'static str,
    /// From a request to the head of its answer, in microseconds, the last ones counting most; 0: nobody knows.
    latency: AtomicU64,
    /// In a row.
    failures: AtomicU32,
    /// The same, of answers that came too late or not at all.
    slow: AtomicU32,
    /// In milliseconds of the node's uptime.
    rests_until: AtomicU64,
    /// Somebody finds out whether it is back.
    is_tried: AtomicBool,
}

impl PeerNode {
    pub(super) fn new(id: &str, place: Place, permits: Permits) -> Arc<PeerNode> {
        let upstream = Settings {
            permits: Some(permits),
            http2: Http2::Off,
            connect_timeout: Duration::from_secs(2),
            read_timeout: READ_TIMEOUT,
            write_timeout: READ_TIMEOUT,
            max_connections: MAX_CONNECTIONS,
            max_idle: MAX_CONNECTIONS,
            max_waiting: 256,
            ..Settings::new(Scheme::Http, place.host.clone(), place.port)
        };
        Arc::new(PeerNode {
            id: id.into(),
            place,
            upstream: Arc::new(upstream),
            detail: detail(id),
            latency: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            slow: AtomicU32::new(0),
            rests_until: AtomicU64::new(0),
            is_tried: AtomicBool::new(false),
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// What `Cache-Status` says of an answer that came from it.
    pub fn detail(&self) -> &'static str {
        self.detail
    }

    /// A body that it sent did not come to its end: it rests.
    pub fn broke_off(&self) {
        self.rest();
    }

    pub(super) fn is(&self, id: &str, place: &Place) -> bool {
        *self.id == *id && self.place == *place
    }

    /// From a request to the head of its answer, as far as is known.
    pub fn latency(&self) -> Option<Duration> {
        let micros = self.latency.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// Whether it rests after a failure.
    pub fn rests(&self) -> bool {
        now_ms() < self.rests_until.load(Ordering::Relaxed)
    }

    /// The right to ask it; `None` while it rests, or somebody finds out whether it is back.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Pass> {
        let has_failed = self.failures.load(Ordering::Relaxed) > 0;
        if has_failed && (self.rests() || self.is_tried.swap(true, Ordering::Relaxed)) {
            return None;
        }
        Some(Pass {
            node: self.clone(),
            is_trial: has_failed,
            is_over: Cell::new(false),
        })
    }

    fn rest(&self) {
        // Of many that failed at once, the first is enough.
        if self.rests() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let rest = FIRST_REST * (1 << failures.min(MOST_DOUBLINGS));
        let until = now_ms() + rest.as_millis() as u64;
        self.rests_until.store(until, Ordering::Relaxed);
    }
}

/// The right to ask a node once.
pub(super) struct Pass {
    pub(super) node: Arc<PeerNode>,
    is_trial: bool,
    is_over: Cell<bool>,
}

impl Pass {
    /// It has proven itself. `took` is given where it waited for nobody else.
    pub(super) fn answered(&self, took: Option<Duration>) {
        self.is_over.set(true);
        self.node.failures.store(0, Ordering::Relaxed);
        self.node.slow.store(0, Ordering::Relaxed);
        let Some(took) = took else { return };
        let sample = (took.as_micros() as u64).max(1);
        let latency = &self.node.latency;
        let smoothed = match latency.load(Ordering::Relaxed) {
            0 => sample,
            before => (before * 7 + sample) / 8,
        };
        latency.store(smoothed.max(1), Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.is_over.set(true);
        self.node.rest();
    }

    /// Nothing came in time. A node that may wait for an origin is not given up for it at once.
    pub(super) fn was_late(&self, may_wait_for_others: bool) {
        self.is_over.set(true);
        let late = self.node.slow.fetch_add(1, Ordering::Relaxed) + 1;
        if !may_wait_for_others || self.is_trial || late >= SLOW_LIMIT {
            self.node.rest();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_trial {
            self.node.is_tried.store(false, Ordering::Relaxed);
        }
    }
}

fn now_ms() -> u64 {
    clock::uptime().as_millis() as u64
}

/// `peer:<id>`, kept for as long as the process lives.
fn detail(id: &str) -> &'static str {
    static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let detail = format!("peer:{id}");
    let mut names = NAMES.lock();
    if let Some(known) = names.get(detail.as_str()) {
        return known;
    }
    if names.len() >= MAX_NAMES {
        return "peer";
    }
    let kept: &'static str = Box::leak(detail.into_boxed_str());
    names.insert(kept);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Arc<PeerNode> {
        let place = Place::parse("http://127.0.0.1:8080").expect("a place");
        PeerNode::new(id, place, Permits::new(|_| true))
    }

    #[test]
    fn only_plain_places_are_asked() {
        for (url, host, port) in [
            ("http://10.0.0.1:8080", "10.0.0.1", 8080),
            ("http://10.0.0.1", "10.0.0.1", 80),
            ("http://a.internal:443/", "a.internal", 443),
            ("http://[fdaa::3]:8080", "fdaa::3", 8080),
        ] {
            let place = Place::parse(url).expect(url);
            assert_eq!((&*place.host, place.port), (host, port), "{url}");
        }
        for url in [
            "",
            "10.0.0.1:8080",
            "https://10.0.0.1:8080",
            "unix:/run/x",
            "http://10.0.0.1:25",
            "http://10.0.0.1:22",
            "http://10.0.0.1:0",
            "http://10.0.0.1:99999",
            "http://u:p@10.0.0.1:8080",
            "http://10.0.0.1:8080/x",
            "http://10.0.0.1:8080/?x",
            "http://:8080",
        ] {
            assert_eq!(Place::parse(url), None, "{url}");
        }
    }

    #[test]
    fn who_has_failed_rests_and_is_tried_by_one() {
        let node = node("a");
        let (one, two) = (node.admit().expect("a pass"), node.admit());
        one.failed();
        two.expect("another").failed();
        assert!(node.admit().is_none() && node.rests());
        assert_eq!(node.failures.load(Ordering::Relaxed), 1);
        node.rests_until.store(0, Ordering::Relaxed);
        let trial = node.admit().expect("one tries");
        assert!(node.admit().is_none(), "one at a time");
        drop(trial);
        let trial = node.admit().expect("the next");
        trial.answered(Some(Duration::from_micros(800)));
        drop(trial);
        assert!(node.admit().is_some() && node.admit().is_some());
        assert_eq!(node.latency(), Some(Duration::from_micros(800)));
    }

    #[test]
    fn a_shield_may_be_slow_a_few_times() {
        let node = node("a");
        for _ in 1..SLOW_LIMIT {
            node.admit().expect("a pass").was_late(true);
            assert!(!node.rests());
        }
        node.admit().expect("a pass").was_late(true);
        assert!(node.rests());
    }

    #[test]
    fn a_name_is_kept_once() {
        assert_eq!(detail("x"), "peer:x");
        assert!(std::ptr::eq(detail("x"), detail("x")));
    }
}
