//! What purges cost a lookup, to be read by a person: `cargo run --release -p caje-node --example purge_figures`.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use caje_node::cache::body::Body;
use caje_node::cache::head::{Asked, Head};
use caje_node::cache::inflight::Inflight;
use caje_node::cache::purge::Selector;
use caje_node::cache::residency::{Mark, Residency, Stored};
use caje_node::cache::{Cache, Lookup, OriginRules, Request, Wanted};
use caje_node::clock::{self, HybridClock};
use caje_node::semantics::freshness::{Rules, storable};
use caje_node::semantics::key::{CacheKey, Scheme};
use caje_node::semantics::vary::VarySpec;
use caje_node::store::{Settings, Store, StoreEvents};
use caje_node::telemetry::Metrics;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::Notify;

const HOST: &str = "a.example";
const STORED: usize = 100_000;
const LOOKUPS: usize = 3_000_000;
const ROUNDS: usize = 7;

fn target(n: usize) -> Bytes {
    Bytes::from(format!("/some/folder/of/pages/{n}"))
}

/// Ten tags each, one of which every tenth shares.
fn store(cache: &Cache, n: usize) -> CacheKey {
    let mut headers = HeaderMap::new();
    headers.insert("cache-control", HeaderValue::from_static("max-age=6000"));
    let shared = if n.is_multiple_of(10) {
        "tenth"
    } else {
        "other"
    };
    let own: Vec<String> = (0..9).map(|tag| format!("t{n}-{tag}")).collect();
    let tags = format!("{shared} {}", own.join(" "));
    headers.insert("surrogate-key", HeaderValue::try_from(tags).expect("tags"));
    let (request, ok, now) = (HeaderMap::new(), StatusCode::OK, clock::now());
    let rules = Rules::default();
    let freshness = storable(&Method::GET, &request, ok, &headers, &rules, now, now);
    let vary = VarySpec::from_headers(&headers);
    let variant = vary.key_for(&request);
    let asked = Asked::at(cache.clock.tick());
    let freshness = freshness.expect("a storable answer");
    let head = Head::new(ok, headers, freshness, vary, variant, asked);
    let object = cache.store.create();
    object.set_length(0);
    let key = CacheKey::new(Scheme::Http, HOST, &target(n));
    let stored = Stored::new(key.clone(), head, Body::new(object, false));
    let _ = cache.residency.insert(stored, None, &Mark::default());
    key
}

struct Client {
    cache: Cache,
    keys: Vec<CacheKey>,
    host: Arc<str>,
    target: Bytes,
    headers: HeaderMap,
    origin: Rc<OriginRules>,
}

impl Client {
    fn finds(&self, key: &CacheKey) -> bool {
        let request = Request {
            key,
            method: &Method::GET,
            authority: &self.host,
            target: &self.target,
            headers: &self.headers,
            wanted: Wanted::All,
            origin: &self.origin,
        };
        let found = self.cache.lookup(&request, clock::now());
        matches!(black_box(found), Lookup::Fresh(_))
    }

    /// Nanoseconds for each lookup of a thousand hot keys.
    fn hot(&self) -> f64 {
        let keys: Vec<&CacheKey> = self.keys.iter().skip(1).step_by(100).collect();
        let began = Instant::now();
        for n in 0..LOOKUPS {
            assert!(self.finds(keys[n % keys.len()]));
        }
        began.elapsed().as_nanos() as f64 / LOOKUPS as f64
    }

    /// Nanoseconds for one lookup of each stored response.
    fn each(&self) -> f64 {
        let began = Instant::now();
        let found = self.keys.iter().filter(|key| self.finds(key)).count();
        let took = began.elapsed().as_nanos() as f64 / self.keys.len() as f64;
        println!("    ({found} of {} found)", self.keys.len());
        took
    }

    /// The median of several rounds.
    fn median(&self) -> f64 {
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| self.hot()).collect();
        rounds.sort_unstable_by(f64::total_cmp);
        rounds[ROUNDS / 2]
    }

    fn purge(&self, runtime: &tokio::runtime::Runtime, selector: Selector) -> (u64, Duration) {
        let began = Instant::now();
        let purged = runtime.block_on(self.cache.purge(selector, false));
        (purged.matched, began.elapsed())
    }
}

fn tag(tag: String) -> Selector {
    Selector::Tag(tag.into())
}

fn main() {
    let folder = std::env::temp_dir().join(format!("caje-purge-{}", std::process::id()));
    let settings = Settings::new(&folder, 1 << 30, 64 << 20);
    let (opened, _) = Store::open(settings, StoreEvents::default()).expect("opening the store");
    let metrics = Arc::new(Metrics::new());
    let cache = Cache {
        residency: Arc::new(Residency::new(opened.clone())),
        store: opened,
        inflight: Arc::new(Inflight::default()),
        clock: Arc::new(HybridClock::new()),
        sweeper: Arc::new(Notify::new()),
        recorder: Arc::default(),
        prefetcher: Arc::default(),
        metrics: metrics.clone(),
        switches: Arc::default(),
    };
    let config = caje_node::Config::proxy("127.0.0.1:0", "http://127.0.0.1:1", None);
    let rules = config.expect("settings").origin_rules(&metrics);
    let origin = Rc::new(rules.expect("an origin").remove(0));
    let began = Instant::now();
    let keys = (0..STORED).map(|n| store(&cache, n)).collect();
    println!("{STORED} stored, each with 10 tags: {:?}", began.elapsed());
    let client = Client {
        cache,
        keys,
        host: HOST.into(),
        target: target(0),
        headers: HeaderMap::new(),
        origin,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let before = client.median();
    println!("no purge: {before:.1} ns a lookup");
    let mut took: Vec<Duration> = Vec::new();
    for n in 0..10_000 {
        let selector = match n % 10 {
            0 => Selector::Url {
                scheme: Scheme::Http,
                authority: HOST.into(),
                target: format!("/absent/{n}").into(),
            },
            1 => Selector::Prefix {
                scheme: None,
                authority: HOST.into(),
                path: format!("/absent/{}", "x".repeat(n % 50)).into(),
            },
            2 => Selector::Host(format!("{n}.example").into()),
            _ => tag(format!("absent-{n}")),
        };
        // A prefix is counted by a look at everything: left out of the figure of the others.
        let (_, one) = client.purge(&runtime, selector);
        if n % 10 != 1 {
            took.push(one);
        }
    }
    took.sort_unstable();
    let (median, most) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("10,000 purges of what is absent: median {median:?}, 99 % within {most:?}");
    println!("first look at each afterwards: {:.1} ns", client.each());
    println!("second look at each: {:.1} ns", client.each());
    let after = client.median();
    let change = (after / before - 1.0) * 100.0;
    println!("after 10,000 purges: {after:.1} ns a lookup ({change:+.1} %)");
    let (matched, took) = client.purge(&runtime, tag("tenth".to_owned()));
    println!("a tag of {matched}: {took:?}");
    let began = Instant::now();
    let removed = client.cache.residency.sweep();
    println!("a sweep that removes {removed}: {:?}", began.elapsed());
    let prefix = Selector::Prefix {
        scheme: None,
        authority: HOST.into(),
        path: Bytes::from_static(b"/some/folder/of/pages/1"),
    };
    let (matched, took) = client.purge(&runtime, prefix);
    println!("a prefix of {matched}: {took:?}");
    drop(client);
    // What is left lies in the temporary folder.
    let _ = std::fs::remove_dir_all(folder);
}
