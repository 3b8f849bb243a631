//! What of the stored responses the manifest is told of: those that every node should hold.
//!
//! Kept true here:
//! - Nobody waits for the manifest. What is to be recorded before it is open is kept, within a bound, and told then.
//! - What one user was authorised for, or was given a cookie with, is not told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::OriginRules;
use crate::cache::residency::Stored;
use crate::clock;
use crate::manifest::{About, Manifest, Resource, ResourceId, Unfit};
use crate::telemetry::{Metrics, Recorded};

/// Which responses of an origin are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Requests to this node, the one that brought it included. `None`: nothing is recorded.
    pub min_hits: Option<u32>,
    /// Of the body.
    pub min_bytes: u64,
    /// Of the path, without the query. Empty: all.
    pub paths: Vec<Glob>,
}

impl Default for Record {
    fn default() -> Record {
        Record {
            min_hits: Some(2),
            min_bytes: 0,
            paths: Vec::new(),
        }
    }
}

impl Record {
    pub const OFF: Record = Record {
        min_hits: None,
        min_bytes: 0,
        paths: Vec::new(),
    };

    /// Whether hits have to be counted.
    #[inline]
    pub fn counts_hits(&self) -> bool {
        self.min_hits > Some(1)
    }

    fn wants(&self, target: &[u8], bytes: Option<u64>) -> bool {
        let path = target.split(|&byte| byte == b'?').next().unwrap_or(target);
        bytes.unwrap_or(0) >= self.min_bytes
            && (self.paths.is_empty() || self.paths.iter().any(|glob| glob.matches(path)))
    }
}

/// A pattern of paths: `*` is anything within a segment, `**` anything at all; compared byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    /// `None` unless it begins with `/` or `*` and has only what a path may have.
    pub fn new(pattern: &str) -> Option<Glob> {
        let is_plain = pattern
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
        (pattern.starts_with(['/', '*']) && is_plain).then(|| Glob(pattern.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In time of pattern times path at the most: each star forgets the ones before it, save that a `*` which met
    /// a `/` goes back to the last `**`.
    pub fn matches(&self, path: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut here) = (0, 0);
        // Where to go on after a mismatch: behind the star, and the first byte that it has not taken.
        let (mut star, mut stars) = (None, None);
        while here < path.len() {
            if pattern[at..].starts_with(b"**") {
                at += 2;
                stars = Some((at, here));
                star = None;
            } else if pattern.get(at) == Some(&b'*') {
                at += 1;
                star = Some((at, here));
            } else if pattern.get(at) == Some(&path[here]) {
                at += 1;
                here += 1;
            } else if let Some((behind, taken)) = star.filter(|&(_, taken)| path[taken] != b'/') {
                (at, here) = (behind, taken + 1);
                star = Some((behind, here));
                if here == path.len() {
                    break;
                }
            } else if let Some((behind, taken)) = stars {
                (at, here) = (behind, taken + 1);
                stars = Some((behind, here));
                star = None;
            } else {
                return false;
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }
}

/// Requests that a stored response has answered, as far as it matters.
#[derive(Debug, Default)]
pub struct Hits(AtomicU32);

/// More are not counted: it will not be recorded.
const NEVER: u32 = u32::MAX;

impl Hits {
    /// Whether this request makes them `wanted`.
    #[inline]
    fn reach(&self, wanted: u32) -> bool {
        // Once reached it is only read, so that threads do not fight for it.
        self.0.load(Ordering::Relaxed) < wanted
            && self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1) == wanted
    }

    /// The next request makes them `wanted` once more: it was too early to tell.
    fn again(&self, wanted: u32) {
        self.0.store(wanted.saturating_sub(1), Ordering::Relaxed);
    }

    /// What was given to one user is not for others.
    pub fn never(&self) {
        self.0.store(NEVER, Ordering::Relaxed);
    }
}

/// Requests that a body has answered from here: all of the first, then about as many as there were.
#[derive(Debug, Default)]
pub struct Answers(AtomicU32);

/// Up to here each is counted, and then one for so many, so that threads do not fight for the count of a hot body.
const COUNTED_ALL: u32 = 64;
const COUNTED_ONE_IN: u32 = 64;

impl Answers {
    /// One more. `chance` is any number that differs from request to request.
    #[inline]
    pub fn note(&self, chance: u32) {
        let count = self.0.load(Ordering::Relaxed);
        if count < COUNTED_ALL {
            self.0.fetch_add(1, Ordering::Relaxed);
        } else if chance.is_multiple_of(COUNTED_ONE_IN) {
            // Wraps around after four thousand million.
            self.0.fetch_add(COUNTED_ONE_IN, Ordering::Relaxed);
        }
    }

    pub fn about(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Tells the manifest, where there is one.
#[derive(Default)]
pub struct Recorder {
    manifest: ArcSwapOption<Manifest>,
    opened: watch::Sender<()>,
    /// What waits for the first manifest, the oldest first.
    early: Mutex<VecDeque<Resource>>,
}

/// Responses that wait for a manifest, at the most. Beyond it the oldest are not told of.
const MAX_EARLY: usize = 4096;

/// What is fresh for less than this is gone before another node has it.
const MIN_FRESHNESS: Duration = Duration::from_secs(1);

impl Recorder {
    /// From now on that one is told; or none.
    pub fn tell(&self, manifest: Option<Manifest>) {
        let mut early = self.early.lock();
        if let Some(manifest) = &manifest {
            for resource in early.drain(..) {
                // It was found fit, or will not be told; it was counted then.
                let _ = manifest.record(resource);
            }
        }
        self.manifest.store(manifest.map(Arc::new));
        drop(early);
        self.opened.send_replace(());
    }

    /// Changes whenever there is another manifest, or none any more.
    pub fn opened(&self) -> watch::Receiver<()> {
        self.opened.subscribe()
    }

    pub fn manifest(&self) -> Option<Arc<Manifest>> {
        self.manifest.load_full()
    }

    /// A request was answered from `stored`, or has brought it whole.
    #[inline]
    pub fn answered(&self, origin: &OriginRules, stored: &Stored, metrics: &Metrics) {
        if let Some(wanted) = origin.record.min_hits
            && stored.hits.reach(wanted)
        {
            self.record(origin, stored, wanted, metrics);
        }
    }

    #[cold]
    fn record(&self, origin: &OriginRules, stored: &Stored, wanted: u32, metrics: &Metrics) {
        let length = stored.body.object.length();
        if length.is_none() {
            // It is arriving, and nobody knows how long it is. Its end is told of, too.
            stored.hits.again(wanted);
            return;
        }
        if !origin.record.wants(stored.key.target(), length)
            || stored.head.headers.contains_key(header::SET_COOKIE)
        {
            return;
        }
        let told = resource(origin, stored, clock::now()).map(|resource| self.put(resource));
        metrics.manifest_recorded.increment(match told {
            Some(Ok(())) => Recorded::Told,
            Some(Err(_)) | None => Recorded::Unfit,
        });
    }

    /// Tells the manifest, or the one that there will be.
    fn put(&self, resource: Resource) -> Result<(), Unfit> {
        if let Some(manifest) = self.manifest.load_full() {
            return manifest.record(resource);
        }
        let mut early = self.early.lock();
        // It may have come meanwhile, and has then taken all that waited.
        if let Some(manifest) = self.manifest.load_full() {
            return manifest.record(resource);
        }
        if early.len() >= MAX_EARLY {
            early.pop_front();
        }
        early.push_back(resource);
        Ok(())
    }
}

/// The row; `None` for what cannot be named or is as good as gone.
fn resource(origin: &OriginRules, stored: &Stored, now: SystemTime) -> Option<Resource> {
    let head = &stored.head;
    let left = u64::try_from(head.freshness.ttl(now)).unwrap_or(0);
    if left < MIN_FRESHNESS.as_secs() {
        return None;
    }
    let key = &stored.key;
    let target = std::str::from_utf8(key.target()).ok()?;
    let text = |value: &header::HeaderValue| value.to_str().ok().map(str::to_owned);
    let validators = &head.validators;
    let validator = validators.etag().or_else(|| validators.last_modified());
    let tags = head.tags.tags.iter();
    let variant = head.vary.values(&head.variant)?;
    let facts = head.facts(now);
    Some(Resource {
        id: ResourceId {
            cache_key: Bytes::copy_from_slice(key.as_bytes()),
            variant,
        },
        about: About {
            url: format!("{}://{}{target}", key.scheme(), key.authority()),
            origin: origin.name.to_string(),
            validator: validator.and_then(text),
            size: stored.body.object.length(),
            tags: tags
                .filter_map(|tag| String::from_utf8(tag.to_vec()).ok())
                .collect(),
            variant: facts.variant,
            fresh_until: facts.stale_at,
            priority: 0,
            why: match origin.record.min_hits {
                Some(hits) if hits > 1 => format!("asked for {hits} times"),
                _ => "fetched".to_owned(),
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{Answers, Glob, Hits};

    #[test]
    fn paths_are_matched_by_segments() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("/**", &["/", "/a", "/a/b/c"], &[""]),
            ("/a/*", &["/a/", "/a/b"], &["/a", "/a/b/c", "/b/a/"]),
            (
                "/a/*.ts",
                &["/a/1.ts", "/a/.ts"],
                &["/a/b/1.ts", "/a/1.tsx"],
            ),
            ("**.ts", &["/1.ts", "/a/b/2.ts"], &["/1.ts/a", "/ts"]),
            (
                "/a/**/z",
                &["/a/b/z", "/a/b/c/z", "/a//z"],
                &["/a/z", "/a/b/zz"],
            ),
            ("/*/*/c", &["/a/b/c", "///c"], &["/a/c", "/a/b/x/c"]),
            ("/**/x*y", &["/a/xy", "/a/x/b/x1y"], &["/a/x/y", "/xy"]),
            ("/a", &["/a"], &["/a/", "/A", "/ab"]),
            ("/*", &["/", "/a"], &["/a/"]),
        ];
        for (pattern, yes, no) in cases {
            let glob = Glob::new(pattern).expect("a pattern");
            for path in *yes {
                assert!(glob.matches(path.as_bytes()), "{pattern} and {path}");
            }
            for path in *no {
                assert!(!glob.matches(path.as_bytes()), "{pattern} and {path}");
            }
        }
        assert_eq!(Glob::new("a/*"), None);
        assert_eq!(Glob::new("/a b"), None);
    }

    /// Against the plain recursive definition, and in bounded time.
    #[test]
    fn patterns_mean_what_they_say() {
        fn plain(pattern: &[u8], path: &[u8]) -> bool {
            match (pattern, path) {
                ([], []) => true,
                ([b'*', b'*', rest @ ..], _) => {
                    (0..=path.len()).any(|taken| plain(rest, &path[taken..]))
                }
                ([b'*', rest @ ..], _) => (0..=path.len())
                    .take_while(|&taken| !path[..taken].contains(&b'/'))
                    .any(|taken| plain(rest, &path[taken..])),
                ([byte, rest @ ..], [first, behind @ ..]) => byte == first && plain(rest, behind),
                _ => false,
            }
        }
        let words = |letters: &[u8], length: u32| -> Vec<Vec<u8>> {
            let all = (0..=length).flat_map(|length| {
                let count = letters.len().pow(length);
                (0..count).map(move |number| (length, number))
            });
            all.map(|(length, mut number)| {
                (0..length)
                    .map(|_| {
                        let letter = letters[number % letters.len()];
                        number /= letters.len();
                        letter
                    })
                    .collect()
            })
            .collect()
        };
        let paths = words(b"/a", 6);
        for pattern in words(b"/a*", 5) {
            let Some(glob) = std::str::from_utf8(&pattern).ok().and_then(Glob::new) else {
                continue;
            };
            for path in &paths {
                let shown = String::from_utf8_lossy(path);
                let wanted = plain(&pattern, path);
                assert_eq!(glob.matches(path), wanted, "{} and {shown}", glob.as_str());
            }
        }
        let glob = Glob::new(&"/*a**a".repeat(30)).expect("a pattern");
        assert!(!glob.matches(format!("{}b", "/a".repeat(2000)).as_bytes()));
    }

    /// The first exactly, then within what chance allows: over 4 standard deviations are 3 %.
    #[test]
    fn answers_are_counted_about_right() {
        let answers = Answers::default();
        for number in 1..=50 {
            answers.note(number);
            assert_eq!(answers.about(), number);
        }
        let (mut state, count) = (1_u32, 1 << 20);
        for _ in 50..count {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            answers.note(state >> 16);
        }
        let off = answers.about().abs_diff(count);
        assert!(off < count / 32, "off by {off}");
    }

    #[test]
    fn it_is_told_once() {
        let hits = Hits::default();
        let told: Vec<bool> = (0..5).map(|_| hits.reach(3)).collect();
        assert_eq!(told, [false, false, true, false, false]);
        let hits = Hits::default();
        let told: Vec<bool> = (0..4)
            .map(|at| {
                let is_told = hits.reach(2);
                if at == 1 {
                    hits.again(2);
                }
                is_told
            })
            .collect();
        assert_eq!(told, [false, true, true, false]);
        let hits = Hits::default();
        hits.never();
        assert!(!(0..5).any(|_| hits.reach(1)));
    }
}
