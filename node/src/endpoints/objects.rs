//! What is stored: page by page, and one URL with all its variants.
//!
//! A page is found in one walk over all stored responses that keeps only the page's own, so that its cost in
//! memory does not grow with what is stored. What comes and goes meanwhile may be missed or seen; what stays
//! is seen exactly once over all pages.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State as FromState;
use caje_admin_api::{
    Inspection, NodeInspection, Object, Objects, ObjectsQuery, Sort, State, Variant,
};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::refusal::{Answer, Asked, Refusal, Told};
use super::{Node, Shared, coverage};
use crate::cache::residency::{Standing, Stored};
use crate::clock;
use crate::semantics::key::{CacheKey, Scheme, normalize_authority};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

pub(super) async fn list(
    FromState(node): FromState<Node>,
    Asked(query): Asked<ObjectsQuery>,
) -> Answer<Objects> {
    if query.state == Some(State::Missing) {
        return coverage::missing(&node, &query).await;
    }
    stored(&node, &query).await.map(Told)
}

/// A page of what is stored.
pub(super) async fn stored(node: &Node, query: &ObjectsQuery) -> Result<Objects, Refusal> {
    let after = match &query.cursor {
        None => None,
        Some(cursor) => Some(Place::read(cursor).ok_or_else(|| {
            Refusal::bad(
                "`cursor` is not one that a page has given",
                "begin again without it",
            )
        })?),
    };
    let wanted = Filter::new(query)?;
    let (limit, sort) = (limit(query.limit), query.sort);
    let page = node.apart(move |shared| page(shared, &wanted, sort, after, limit));
    page.await
}

/// How many a page has.
pub(super) fn limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE)
}

fn page(
    shared: &Shared,
    wanted: &Filter,
    sort: Sort,
    after: Option<Place>,
    limit: usize,
) -> Objects {
    let now = clock::now();
    // The last of the page on top: it goes when a better one comes.
    let mut kept: BinaryHeap<Candidate> = BinaryHeap::with_capacity(limit + 1);
    shared.control.cache.residency.for_each(|stored| {
        if !wanted.takes(stored, now) {
            return;
        }
        let place = Place::of(stored, sort, now);
        let is_behind = after.as_ref().is_none_or(|after| place > *after);
        let is_before = kept.len() <= limit || kept.peek().is_some_and(|last| place < last.place);
        if is_behind && is_before {
            kept.push(Candidate {
                place,
                stored: stored.clone(),
            });
            if kept.len() > limit + 1 {
                kept.pop();
            }
        }
    });
    let mut kept = kept.into_sorted_vec();
    let has_more = kept.len() > limit;
    kept.truncate(limit);
    let next = kept
        .last()
        .filter(|_| has_more)
        .map(|last| last.place.write());
    let name = shared.name();
    let objects = kept
        .iter()
        .map(|kept| object(&name, &kept.stored, now))
        .collect();
    Objects { objects, next }
}

/// Which stored responses are wanted.
#[derive(Debug, Default)]
pub(super) struct Filter {
    host: Option<String>,
    prefix: Option<Prefix>,
    tag: Option<String>,
    state: Option<State>,
}

impl Filter {
    fn new(query: &ObjectsQuery) -> Result<Filter, Refusal> {
        Ok(Filter {
            host: query.host.as_deref().map(str::to_ascii_lowercase),
            prefix: query.prefix.as_deref().map(Prefix::parse).transpose()?,
            tag: query.tag.clone(),
            state: query.state,
        })
    }

    pub(super) fn of_host(host: &str) -> Filter {
        Filter {
            host: Some(host.to_ascii_lowercase()),
            ..Filter::default()
        }
    }

    pub(super) fn of_tag(tag: &str) -> Filter {
        Filter {
            tag: Some(tag.to_owned()),
            ..Filter::default()
        }
    }

    /// `https://host/path`, or `host/path` for any scheme; and what of it a purge names.
    pub(super) fn of_prefix(prefix: &str) -> Result<(Filter, Option<Scheme>, CacheKey), Refusal> {
        let prefix = Prefix::parse(prefix)?;
        let Some(authority) = prefix.authority.clone() else {
            let message = "a prefix to be purged needs its host";
            return Err(Refusal::bad(
                message,
                "write it as https://example.com/path/",
            ));
        };
        let scheme = prefix.scheme;
        let key = CacheKey::new(scheme.unwrap_or(Scheme::Http), &authority, &prefix.path);
        let filter = Filter {
            prefix: Some(prefix),
            ..Filter::default()
        };
        Ok((filter, scheme, key))
    }

    pub(super) fn takes(&self, stored: &Stored, now: SystemTime) -> bool {
        let key = &stored.key;
        self.host
            .as_ref()
            .is_none_or(|host| key.authority() == host)
            && self.prefix.as_ref().is_none_or(|prefix| prefix.covers(key))
            && self
                .state
                .is_none_or(|state| state_of(stored, now) == state)
            && self.tag.as_ref().is_none_or(|tag| {
                let bears =
                    |names: &[Box<[u8]>]| names.iter().any(|name| **name == *tag.as_bytes());
                bears(&stored.head.tags.tags) || bears(&stored.head.tags.groups)
            })
    }
}

/// The beginning of a URL.
#[derive(Debug)]
pub(super) struct Prefix {
    scheme: Option<Scheme>,
    authority: Option<Box<str>>,
    path: Vec<u8>,
}

impl Prefix {
    /// As the manifest's URLs begin: with its scheme.
    pub(super) fn url(text: &str) -> Result<String, Refusal> {
        let prefix = Prefix::parse(text)?;
        match (
            prefix.scheme,
            prefix.authority,
            String::from_utf8(prefix.path),
        ) {
            (Some(scheme), Some(authority), Ok(path)) => {
                Ok(format!("{scheme}://{authority}{path}"))
            }
            _ => Err(Refusal::bad(
                "the manifest is looked through by whole beginnings of URLs",
                "write the prefix as https://example.com/path/",
            )),
        }
    }

    /// `https://host/path`, `host/path` or `/path`.
    fn parse(text: &str) -> Result<Prefix, Refusal> {
        if text.starts_with('/') {
            return Ok(Prefix {
                scheme: None,
                authority: None,
                path: text.as_bytes().to_vec(),
            });
        }
        let has_scheme = text.contains("://");
        let whole = match has_scheme {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let key = key_of(&whole)?;
        Ok(Prefix {
            scheme: has_scheme.then(|| key.scheme()),
            authority: Some(key.authority().into()),
            path: key.target().to_vec(),
        })
    }

    fn covers(&self, key: &CacheKey) -> bool {
        self.scheme.is_none_or(|scheme| key.scheme() == scheme)
            && self
                .authority
                .as_ref()
                .is_none_or(|own| key.authority() == &**own)
            && key.target().starts_with(&self.path)
    }
}

/// Where a stored response stands in an order: first by rank, then by its body, which no two share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: Rank,
    body: u64,
}

#[derive(Clone, Debug)]
enum Rank {
    Number(u64),
    Url(CacheKey),
}

impl Ord for Rank {
    fn cmp(&self, other: &Rank) -> Ordering {
        let parts = |key: &CacheKey| (key.scheme() as u8, key.scheme().as_str().len());
        match (self, other) {
            (Rank::Number(own), Rank::Number(other)) => own.cmp(other),
            (Rank::Url(own), Rank::Url(other)) => (own.authority().cmp(other.authority()))
                .then_with(|| own.target().cmp(other.target()))
                .then_with(|| parts(own).cmp(&parts(other))),
            (Rank::Number(_), Rank::Url(_)) => Ordering::Less,
            (Rank::Url(_), Rank::Number(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Rank) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Rank) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Rank {}

impl Place {
    fn of(stored: &Stored, sort: Sort, now: SystemTime) -> Place {
        let object = &stored.body.object;
        let rank = match sort {
            Sort::Url => Rank::Url(stored.key.clone()),
            Sort::Hits => Rank::Number(u64::MAX - u64::from(stored.body.answers.about())),
            Sort::Size => Rank::Number(u64::MAX - object.length().unwrap_or(0)),
            // When it becomes stale, which stays the same while time goes on.
            Sort::Ttl => {
                let end = secs(now) as i64 + stored.head.freshness.ttl(now);
                Rank::Number(end.max(0) as u64)
            }
            Sort::Used => Rank::Number(u64::MAX - secs(object.last_use())),
        };
        Place {
            rank,
            body: object.id().0,
        }
    }

    fn write(&self) -> String {
        match &self.rank {
            Rank::Number(number) => format!("n{:x}.{number:x}", self.body),
            Rank::Url(key) => {
                let hex: String = key
                    .as_bytes()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                format!("u{:x}.{hex}", self.body)
            }
        }
    }

    fn read(cursor: &str) -> Option<Place> {
        let (body, rank) = cursor.get(1..)?.split_once('.')?;
        let body = u64::from_str_radix(body, 16).ok()?;
        let rank = match cursor.as_bytes().first()? {
            b'n' => Rank::Number(u64::from_str_radix(rank, 16).ok()?),
            b'u' => {
                let digits: Option<Vec<u8>> = rank
                    .as_bytes()
                    .chunks(2)
                    .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                    .collect();
                Rank::Url(CacheKey::from_bytes(&digits?)?)
            }
            _ => return None,
        };
        Some(Place { rank, body })
    }
}

struct Candidate {
    place: Place,
    stored: Arc<Stored>,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.place.cmp(&other.place)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.place == other.place
    }
}

impl Eq for Candidate {}

pub(super) async fn inspect(
    FromState(node): FromState<Node>,
    Asked(query): Asked<Vec<(String, String)>>,
) -> Answer<Inspection> {
    let mut url = None;
    let mut fields = HeaderMap::new();
    for (name, value) in query {
        match name.as_str() {
            "url" => url = Some(value),
            "vary" => {
                let (name, value) = field(&value)?;
                fields.append(name, value);
            }
            other => {
                let message = format!("there is no parameter `{other}`");
                return Err(Refusal::bad(
                    message,
                    "send `url`, and `vary` for each request field",
                ));
            }
        }
    }
    let url = url.ok_or_else(|| Refusal::bad("no `url` was given", "send `?url=https://…`"))?;
    let key = key_of(&url)?;
    let shown = url_of(&key);
    let inspect = node.apart(move |shared| inspected(shared, &key, &fields));
    Ok(Told(Inspection {
        url: shown,
        nodes: vec![inspect.await?],
        unanswered: Vec::new(),
    }))
}

fn inspected(shared: &Shared, key: &CacheKey, fields: &HeaderMap) -> NodeInspection {
    let residency = &shared.control.cache.residency;
    let config = shared.control.config.load();
    let now = clock::now();
    let found = residency
        .find(key)
        .map(|resource| resource.variants())
        .unwrap_or_default();
    let variants: Vec<Variant> = found
        .iter()
        .filter(|stored| !residency.is_gone(stored))
        .map(|stored| Variant {
            object: object(&config.node.name, stored, now),
            selected: stored.matches(fields),
            headers: texts(&stored.head.headers),
        })
        .collect();
    let hint = match variants.is_empty() {
        true => elsewhere(shared, key),
        false => None,
    };
    NodeInspection {
        node: config.node.name.clone(),
        region: config.node.region.clone(),
        variants,
        hint,
    }
}

/// Where the response is stored that was probably meant: the key has the scheme that clients use towards
/// this node.
fn elsewhere(shared: &Shared, key: &CacheKey) -> Option<String> {
    let other = match key.scheme() {
        Scheme::Http => Scheme::Https,
        Scheme::Https => Scheme::Http,
    };
    let meant = CacheKey::new(other, key.authority(), key.target());
    let found = shared.control.cache.residency.find(&meant)?;
    (!found.is_empty()).then(|| format!("{} is stored", url_of(&meant)))
}

/// One row of a list.
pub(super) fn object(node: &str, stored: &Stored, now: SystemTime) -> Object {
    let head = &stored.head;
    let body = &stored.body.object;
    let field = |name: HeaderName| head.headers.get(name).map(lossy);
    let used = millis(body.last_use());
    let tags = head.tags.tags.iter().chain(&head.tags.groups);
    Object {
        node: node.to_owned(),
        url: url_of(&stored.key),
        status: head.status.as_u16(),
        state: state_of(stored, now),
        age_secs: head.age_secs(now),
        ttl_secs: head.freshness.ttl(now),
        heuristic: head.freshness.is_heuristic(),
        size_bytes: body.length(),
        present_bytes: body.present_bytes(),
        used_ms: (used > 0).then_some(used),
        hits: stored.body.answers.about(),
        tags: tags
            .map(|tag| String::from_utf8_lossy(tag).into_owned())
            .collect(),
        vary: head.vary.fields().map(str::to_owned).collect(),
        etag: field(header::ETAG),
        content_type: field(header::CONTENT_TYPE),
        key: stored
            .key
            .hash()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}

fn state_of(stored: &Stored, now: SystemTime) -> State {
    match stored.head.freshness.is_shareable(now) && stored.standing() == Standing::Good {
        true => State::Fresh,
        false => State::Stale,
    }
}

/// The cache key of a URL as an operator writes it: the target is taken byte for byte.
pub(super) fn key_of(url: &str) -> Result<CacheKey, Refusal> {
    let wrong = |why: &str| {
        let message = format!("`{}` is no URL of the cache: {why}", url.escape_default());
        Refusal::bad(
            message,
            "write it as clients ask for it, such as https://example.com/path?query",
        )
    };
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| wrong("it has no scheme"))?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err(wrong("its scheme is neither http nor https")),
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let authority = normalize_authority(&rest.as_bytes()[..end], scheme)
        .map_err(|_| wrong("its host cannot be read"))?;
    let target = match rest.as_bytes().get(end) {
        Some(b'/') => rest[end..].to_owned(),
        _ => format!("/{}", &rest[end..]),
    };
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(wrong("it has spaces or control characters: encode them"));
    }
    Ok(CacheKey::new(scheme, &authority, target.as_bytes()))
}

pub(super) fn url_of(key: &CacheKey) -> String {
    let target = String::from_utf8_lossy(key.target());
    format!("{}://{}{target}", key.scheme(), key.authority())
}

/// `name: value`.
fn field(text: &str) -> Result<(HeaderName, HeaderValue), Refusal> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    pair(name, value)
}

pub(super) fn pair(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Refusal> {
    let name = HeaderName::from_bytes(name.trim().as_bytes());
    let value = HeaderValue::from_bytes(value.trim().as_bytes());
    match (name, value) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        _ => Err(Refusal::bad(
            "a field cannot be read",
            "write it as `name: value`",
        )),
    }
}

fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), lossy(value));
    headers.iter().map(text).collect()
}

pub(super) fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn secs(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

pub(super) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_byte_for_byte() {
        let shown = |url: &str| key_of(url).map(|key| url_of(&key)).ok();
        for (url, expected) in [
            ("http://Example.com", "http://example.com/"),
            (
                "https://example.com:443/a%2Fb?x#y",
                "https://example.com/a%2Fb?x",
            ),
            ("http://[::1]:8080/", "http://[::1]:8080/"),
            ("http://a?x", "http://a/?x"),
        ] {
            assert_eq!(shown(url).as_deref(), Some(expected), "{url}");
        }
        for url in [
            "",
            "/a",
            "ftp://a/",
            "http://",
            "http://a/b c",
            "http://a b/",
        ] {
            assert_eq!(shown(url), None, "{url}");
        }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let key = key_of("http://a/b").unwrap();
        for rank in [Rank::Number(u64::MAX), Rank::Url(key)] {
            let place = Place { rank, body: 77 };
            assert_eq!(Place::read(&place.write()), Some(place));
        }
        for cursor in ["", "n", "u1", "u1.", "u1.zz", "x1.1", "é1.1", "n1.1g"] {
            assert_eq!(Place::read(cursor), None, "{cursor}");
        }
    }
}
