//! What is to be done about a page of what this disk lacks: a pure function of the page, the rules and the time.
//!
//! Rows are hints of others. What is asked for is what the key says, at an origin of these settings; the fields are
//! those that select the variant, and never those that belong to one user or frame a message.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::attempts::Digest;
use super::{Route, Settings};
use crate::cache::head::variant_number;
use crate::cache::residency::Residency;
use crate::manifest::{Covered, Resource, ResourceId};
use crate::semantics::key::{CacheKey, normalize_authority};
use crate::workers::limits::{Attempts, Verdict};
use crate::workers::{Question, host_of, may_select};

/// What is lacking, and what is known of it.
pub struct Found {
    pub covered: Covered,
    pub digest: Digest,
    pub attempts: Option<Attempts>,
    /// It is whole in the store by now: the index is written behind.
    pub is_here: bool,
}

pub struct Snapshot<'a> {
    pub items: &'a [Found],
    pub settings: &'a Settings,
    pub route: &'a Route,
    /// Bytes that the disk takes before it gives up others that are listed.
    pub room: u64,
    /// Failures before this, in milliseconds since 1970, do not count.
    pub retry_since_ms: u64,
    /// Sets pauses of nodes apart.
    pub seed: u64,
}

/// For each item, in their order.
pub enum Action {
    Fetch(Box<Item>),
    /// It is here.
    Nothing,
    /// Not before this, in milliseconds since 1970.
    Wait(u64),
    /// For this reason, and until then unless something changes.
    Block(String, Option<u64>),
}

/// Something to be fetched.
pub struct Item {
    pub digest: Digest,
    /// The origin's place in the settings.
    pub origin: usize,
    pub question: Question,
    /// Tells variants apart: what is stored must have the same.
    pub variant: i64,
    /// Bytes of the body, as far as they are known.
    pub size: u64,
    /// Those that count still.
    pub attempts: Attempts,
}

/// How long what found no room rests.
const ROOM_REST: Duration = Duration::from_secs(60);

pub const NO_ORIGIN: &str = "no-origin";
pub const NO_ROOM: &str = "no-room";
pub const MALFORMED: &str = "malformed";

pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub fn plan(snapshot: &Snapshot<'_>, now: SystemTime) -> Vec<Action> {
    let now_ms = millis(now);
    let mut room = snapshot.room;
    let decide = |found: &Found| {
        if found.is_here {
            return Action::Nothing;
        }
        let resource = &found.covered.listed.resource;
        let Some(question) = question(resource) else {
            return Action::Block(MALFORMED.to_owned(), None);
        };
        let host = host_of(&question.authority);
        let Some(origin) = (snapshot.route)(host, &question.target) else {
            return Action::Block(NO_ORIGIN.to_owned(), None);
        };
        let stamp = found.covered.listed.stamp.0;
        let attempts = counted(snapshot, found.attempts.as_ref(), stamp, now_ms);
        let settings = snapshot.settings;
        let verdict = attempts.judge(
            &settings.limits,
            settings.backoff,
            settings.retry_after,
            seed(snapshot.seed, &found.digest, &attempts),
            now_ms,
        );
        match verdict {
            Verdict::Wait(until) => return Action::Wait(until),
            Verdict::Blocked(name, until) => return Action::Block(name, Some(until)),
            Verdict::Try => {}
        }
        let size = resource.about.size.unwrap_or(0);
        // Of some nobody knows how much they take.
        if size > room || room == 0 {
            let rest = settings.retry_after.min(ROOM_REST);
            let until = now_ms.saturating_add(rest.as_millis() as u64);
            return Action::Block(NO_ROOM.to_owned(), Some(until));
        }
        room -= size;
        Action::Fetch(Box::new(Item {
            digest: found.digest,
            origin,
            question,
            variant: resource.about.variant,
            size,
            attempts,
        }))
    };
    snapshot.items.iter().map(decide).collect()
}

/// The attempts that count still: those about the same state of the row, after the last wish to try again, and not
/// before a limit that has been rested from.
fn counted(
    snapshot: &Snapshot<'_>,
    attempts: Option<&Attempts>,
    stamp: u64,
    now_ms: u64,
) -> Attempts {
    let settings = snapshot.settings;
    let counts = |attempts: &&Attempts| {
        attempts.stamp == stamp
            && attempts.last_ms >= snapshot.retry_since_ms
            && !attempts.is_over(&settings.limits, settings.retry_after, now_ms)
    };
    attempts.filter(counts).cloned().unwrap_or(Attempts {
        stamp,
        ..Attempts::default()
    })
}

/// The same for the same attempt on the same node.
pub fn seed(node: u64, digest: &Digest, attempts: &Attempts) -> u64 {
    let first = digest.first_chunk().copied().map_or(0, u64::from_le_bytes);
    let mixed = (first ^ node ^ attempts.last_ms).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

/// What a row stands for, unless it cannot be asked for, or says two things at once.
fn question(resource: &Resource) -> Option<Question> {
    let id = &resource.id;
    let key = CacheKey::from_bytes(&id.cache_key)?;
    let (scheme, target) = (key.scheme(), key.target());
    let is_sendable = |byte: &u8| *byte > b' ' && *byte != 0x7f && *byte != b'#';
    if target.first() != Some(&b'/') || !target.iter().all(is_sendable) {
        return None;
    }
    let authority = key.authority();
    if normalize_authority(authority.as_bytes(), scheme)
        .ok()?
        .as_ref()
        != authority
    {
        return None;
    }
    let shown = String::from_utf8_lossy(target);
    if resource.about.url != format!("{scheme}://{authority}{shown}") {
        return None;
    }
    let mut fields = HeaderMap::with_capacity(id.variant.len());
    for (name, value) in &id.variant {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        if !may_select(name.as_str()) {
            return None;
        }
        fields.append(name, HeaderValue::from_str(value).ok()?);
    }
    Some(Question {
        authority: authority.into(),
        target: Bytes::copy_from_slice(target),
        fields,
        key,
    })
}

/// Whether the store has the whole of it.
pub fn is_here(residency: &Residency, id: &ResourceId, variant: i64) -> bool {
    let Some(key) = CacheKey::from_bytes(&id.cache_key) else {
        return false;
    };
    let Some(resource) = residency.find(&key) else {
        return false;
    };
    resource.variants().iter().any(|stored| {
        stored.body.object.is_complete()
            && !residency.is_gone(stored)
            && variant_number(&stored.head.vary, &stored.head.variant) == variant
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::hold::Shortfall;
    use crate::clock::Stamp;
    use crate::manifest::{About, Held, Listed, ResourceId};
    use crate::semantics::key::Scheme;
    use crate::workers::limits::{Backoff, Limits};

    fn settings() -> Settings {
        Settings {
            enabled: true,
            max_in_flight: 8,
            max_in_flight_per_origin: 4,
            max_rate: None,
            retry_after: Duration::from_secs(60),
            backoff: Backoff {
                first: Duration::from_secs(1),
                longest: Duration::from_secs(8),
            },
            limits: Limits {
                default: 2,
                by_kind: [("404".to_owned(), 1)].into(),
            },
        }
    }

    fn found(target: &str) -> Found {
        let key = CacheKey::new(Scheme::Http, "a.example:81", target.as_bytes());
        let id = ResourceId {
            cache_key: Bytes::copy_from_slice(key.as_bytes()),
            variant: Vec::new(),
        };
        Found {
            digest: id.digest(),
            covered: Covered {
                listed: Listed {
                    resource: Resource {
                        id,
                        about: About {
                            url: format!("http://a.example:81{target}"),
                            size: Some(100),
                            ..About::default()
                        },
                    },
                    author: "x".into(),
                    stamp: Stamp(3),
                },
                held: Held::Missing,
            },
            attempts: None,
            is_here: false,
        }
    }

    fn failed(shortfall: Shortfall, at_ms: u64) -> Option<Attempts> {
        let mut attempts = Attempts {
            stamp: 3,
            ..Attempts::default()
        };
        attempts.note(shortfall, at_ms);
        Some(attempts)
    }

    /// What is done about one of them, in a word.
    fn planned(found: Found, now_ms: u64, change: impl FnOnce(&mut Snapshot<'_>)) -> String {
        let settings = settings();
        let route: Route = Box::new(|host, target| {
            (host == "a.example").then(|| usize::from(target.starts_with(b"/b")))
        });
        let items = [found];
        let mut snapshot = Snapshot {
            items: &items,
            settings: &settings,
            route: &route,
            room: 1000,
            retry_since_ms: 0,
            seed: 0,
        };
        change(&mut snapshot);
        let now = UNIX_EPOCH + Duration::from_millis(now_ms);
        match plan(&snapshot, now).remove(0) {
            Action::Fetch(item) => format!("fetch {} {}", item.origin, item.attempts.counts.len()),
            Action::Nothing => "nothing".into(),
            Action::Wait(until) => format!("wait {until}"),
            Action::Block(reason, Some(until)) => format!("{reason} {until}"),
            Action::Block(reason, None) => reason,
        }
    }

    #[test]
    fn what_is_lacking_is_fetched_unless_there_is_a_reason() {
        let same = |_: &mut Snapshot<'_>| {};
        assert_eq!(planned(found("/a"), 0, same), "fetch 0 0");
        assert_eq!(planned(found("/b"), 0, same), "fetch 1 0");
        let here = Found {
            is_here: true,
            ..found("/a")
        };
        assert_eq!(planned(here, 0, same), "nothing");
        let with = |shortfall| Found {
            attempts: failed(shortfall, 1_000),
            ..found("/a")
        };
        assert_eq!(
            planned(with(Shortfall::Status(404)), 1_001, same),
            "404 61000"
        );
        assert_eq!(
            planned(with(Shortfall::Status(404)), 61_000, same),
            "fetch 0 0"
        );
        let retry = |snapshot: &mut Snapshot<'_>| snapshot.retry_since_ms = 1_001;
        assert_eq!(
            planned(with(Shortfall::Status(404)), 1_001, retry),
            "fetch 0 0"
        );
        let mut told_again = with(Shortfall::Status(404));
        told_again.covered.listed.stamp = Stamp(4);
        assert_eq!(planned(told_again, 1_001, same), "fetch 0 0");
        assert!(planned(with(Shortfall::Connect), 1_001, same).starts_with("wait "));
        assert_eq!(planned(with(Shortfall::Connect), 2_000, same), "fetch 0 1");
        let full = |snapshot: &mut Snapshot<'_>| snapshot.room = 99;
        assert_eq!(planned(found("/a"), 5, full), "no-room 60005");
        let unknown = |room| {
            let mut found = found("/a");
            found.covered.listed.resource.about.size = None;
            planned(found, 5, move |snapshot: &mut Snapshot<'_>| {
                snapshot.room = room
            })
        };
        assert_eq!(unknown(1), "fetch 0 0");
        assert_eq!(unknown(0), "no-room 60005");
    }

    #[test]
    fn what_a_row_cannot_ask_for() {
        let same = |_: &mut Snapshot<'_>| {};
        let row = |change: &dyn Fn(&mut Resource)| {
            let mut found = found("/a");
            change(&mut found.covered.listed.resource);
            planned(found, 0, same)
        };
        let key = |authority: &str, target: &str| -> Bytes {
            let key = CacheKey::new(Scheme::Http, authority, target.as_bytes());
            Bytes::copy_from_slice(key.as_bytes())
        };
        // An address inside, whatever origin the row names.
        let inside = |resource: &mut Resource| {
            resource.id.cache_key = key("169.254.169.254", "/latest/meta-data");
            resource.about.url = "http://169.254.169.254/latest/meta-data".into();
            resource.about.origin = "main".into();
        };
        assert_eq!(row(&inside), NO_ORIGIN);
        for (authority, target) in [
            ("a.example:81", "/a b"),
            ("a.example:81", "/a\r\nx: y"),
            ("a.example:81", "*"),
            ("A.example:81", "/a"),
            ("a.example:80", "/a"),
            ("a.example/..", "/a"),
        ] {
            let odd = |resource: &mut Resource| {
                resource.id.cache_key = key(authority, target);
                resource.about.url = format!("http://{authority}{target}");
            };
            assert_eq!(row(&odd), MALFORMED, "{authority} {target}");
        }
        let other = |resource: &mut Resource| resource.about.url = "http://a.example:81/z".into();
        assert_eq!(row(&other), MALFORMED);
        let no_key = |resource: &mut Resource| resource.id.cache_key = Bytes::from_static(b"x");
        assert_eq!(row(&no_key), MALFORMED);
        for name in [
            "cookie",
            "authorization",
            "range",
            "if-none-match",
            "host",
            "x-forwarded-for",
            "a b",
            "caje-peer",
        ] {
            let with = |resource: &mut Resource| {
                resource.id.variant = vec![(name.to_owned(), "x".to_owned())];
            };
            assert_eq!(row(&with), MALFORMED, "{name}");
        }
        let split = |resource: &mut Resource| {
            resource.id.variant = vec![("accept".to_owned(), "x\r\ncookie: y".to_owned())];
        };
        assert_eq!(row(&split), MALFORMED);
        let varied = |resource: &mut Resource| {
            resource.id.variant = vec![("accept-language".to_owned(), "de".to_owned())];
        };
        assert_eq!(row(&varied), "fetch 0 0");
    }
}
