//! Which responses are stored, how long they are fresh, and when a stale one may still be used
//! (RFC 9111 §3, §4.2 and §4.4, RFC 5861).
//!
//! ```text
//!  received          fresh until                     stale
//!     |------------------|-- while-revalidate --|
//!     |                  |-- if-error ------------------|
//!     |                  |-- unreachable ------------------------ … unless a directive forbids it
//! ```
//!
//! Kept true here:
//! - Time is an argument. A clock that steps makes no age negative and no response fresh for longer.
//! - What one user may not share with another is not stored: `private`, authorised, with a cookie.
//! - Where a response contradicts itself or cannot be read, it is stale.

use std::time::{Duration, SystemTime};

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::cache_control::{CacheControl, MAX_DELTA_SECS, parse_delta};
use super::key::{Scheme, normalize_authority};
use super::vary::VarySpec;

/// How far the clock may step back before an age is no longer believed, in milliseconds.
const BELIEVED_STEP_MS: i64 = 60_000;

/// How an origin's responses are kept where they leave it open.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Freshness of a response that says nothing of its own and may be stored.
    pub default_ttl: Option<Duration>,
    /// A tenth of the time since `Last-Modified` (RFC 9111 §4.2.2).
    pub heuristic: bool,
    pub heuristic_max: Duration,
    /// For responses that do not say it themselves.
    pub stale_while_revalidate: Option<Duration>,
    /// For responses that do not say it themselves.
    pub stale_if_error: Option<Duration>,
    pub serve_stale_when_unreachable: bool,
    /// `Set-Cookie` does not make a response private (RFC 9111 §7.3), but few that have it are public.
    pub store_set_cookie: bool,
    /// Also without what RFC 9111 §3.5 asks for.
    pub store_authorized: bool,
    pub honor_client_cache_control: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            default_ttl: None,
            heuristic: true,
            heuristic_max: Duration::from_secs(24 * 60 * 60),
            stale_while_revalidate: None,
            stale_if_error: None,
            serve_stale_when_unreachable: true,
            store_set_cookie: false,
            store_authorized: false,
            honor_client_cache_control: false,
        }
    }
}

impl Rules {
    /// Whether the request forbids to ask the origin (RFC 9111 §5.2.1.7).
    pub fn only_if_cached(&self, request: &HeaderMap) -> bool {
        self.honor_client_cache_control && CacheControl::of_request(request).only_if_cached
    }
}

/// Why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoStore {
    Method,
    Status,
    /// `must-understand`, with a status that is not.
    NotUnderstood,
    Directive,
    /// `no-store` in the request.
    RequestDirective,
    Private,
    Authorization,
    SetCookie,
    /// No request would select it.
    VaryAny,
    /// Nothing says how long it is fresh, and nothing lets it be validated.
    NoFreshness,
    /// Stale on arrival, with nothing to validate it by.
    NotReusable,
}

impl NoStore {
    /// Token for `Cache-Status` and metrics.
    pub const fn detail(self) -> &'static str {
        match self {
            NoStore::Method => "method",
            NoStore::Status => "status",
            NoStore::NotUnderstood => "must-understand",
            NoStore::Directive => "no-store",
            NoStore::RequestDirective => "request-no-store",
            NoStore::Private => "private",
            NoStore::Authorization => "authorization",
            NoStore::SetCookie => "set-cookie",
            NoStore::VaryAny => "vary-any",
            NoStore::NoFreshness => "no-freshness",
            NoStore::NotReusable => "not-reusable",
        }
    }

    /// Where it is written.
    pub const fn rfc(self) -> &'static str {
        match self {
            NoStore::Method | NoStore::Status | NoStore::NoFreshness | NoStore::NotReusable => {
                "RFC 9111 §3"
            }
            NoStore::NotUnderstood => "RFC 9111 §5.2.2.3",
            NoStore::Directive => "RFC 9111 §5.2.2.5",
            NoStore::RequestDirective => "RFC 9111 §5.2.1.5",
            NoStore::Private => "RFC 9111 §5.2.2.7",
            NoStore::Authorization => "RFC 9111 §3.5",
            NoStore::SetCookie => "RFC 9111 §7.3",
            NoStore::VaryAny => "RFC 9111 §4.1",
        }
    }
}

/// How long a stored response is fresh and what may be done with it afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// When the response came, in milliseconds since 1970.
    received_ms: i64,
    /// What it had aged by then (`corrected_initial_age`, RFC 9111 §4.2.3).
    initial_age_ms: u64,
    lifetime_secs: u32,
    stale_while_revalidate_secs: Option<u32>,
    stale_if_error_secs: Option<u32>,
    /// Not to be used without validation, fresh or not.
    no_cache: bool,
    /// Not to be used stale: `must-revalidate`, `proxy-revalidate` or `s-maxage` (RFC 9111 §4.2.4).
    must_revalidate: bool,
    /// The lifetime is the node's guess or setting.
    heuristic: bool,
}

/// What to do with a stored response that a request selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Fresh,
    /// Stale, and the client said that it takes it (`max-stale`).
    StaleAllowed,
    /// May be served now, and is to be validated behind the client's back.
    StaleWhileRevalidate,
    Validate,
    /// Has to be validated, and the client forbids it: 504.
    OnlyIfCached,
}

/// What went wrong when the origin was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorSituation {
    /// It answered 500, 502, 503 or 504.
    ServerError,
    /// It did not answer.
    Unreachable,
}

/// Whether a response to this request may be stored, and for how long it is then fresh.
///
/// A 206 is judged by its caller as the 200 that it is a part of. Fields of the response are those that
/// came, or those of a stored one that was updated by a 304 (RFC 9111 §3.2).
pub fn storable(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    rules: &Rules,
    sent_at: SystemTime,
    received_at: SystemTime,
) -> Result<Freshness, NoStore> {
    if method != Method::GET {
        return Err(NoStore::Method);
    }
    if status.is_informational() || matches!(status.as_u16(), 206 | 304) {
        return Err(NoStore::Status);
    }
    let directives = CacheControl::of_response(response);
    refuse(&directives, request, status, response, rules)?;

    let received_ms = millis(received_at);
    let date_secs = single_date(response, &header::DATE);
    let (lifetime, heuristic) = match explicit_lifetime(&directives, response, date_secs, received_ms) {
        Some(lifetime) => (Some(lifetime), false),
        None => (implicit_lifetime(&directives, status, response, rules, date_secs, received_ms), true),
    };
    let age = Age::of(response);
    let lifetime_secs = match age {
        Age::Unreadable => 0,
        _ => lifetime.unwrap_or(0),
    };
    let has_window = |header: Option<u32>, rule: Option<Duration>| match header {
        Some(secs) => secs > 0,
        None => rule.is_some_and(|window| !window.is_zero()),
    };
    let freshness = Freshness {
        received_ms,
        initial_age_ms: initial_age_ms(age.secs(), date_secs, millis(sent_at), received_ms),
        lifetime_secs,
        stale_while_revalidate_secs: directives.stale_while_revalidate,
        stale_if_error_secs: directives.stale_if_error,
        no_cache: directives.no_cache,
        must_revalidate: directives.must_revalidate
            || directives.proxy_revalidate
            || directives.s_maxage.is_some(),
        heuristic,
    };
    let usable_stale = !freshness.must_revalidate
        && !freshness.no_cache
        && (has_window(directives.stale_while_revalidate, rules.stale_while_revalidate)
            || has_window(directives.stale_if_error, rules.stale_if_error));
    if !freshness.is_shareable(received_at) && !usable_stale && !has_validator(response) {
        return Err(match lifetime {
            None => NoStore::NoFreshness,
            Some(_) => NoStore::NotReusable,
        });
    }
    let may_be_kept = lifetime.is_some() || directives.public || is_heuristically_cacheable(status);
    if may_be_kept { Ok(freshness) } else { Err(NoStore::NoFreshness) }
}

/// RFC 9111 §3, but for what it says about lifetimes.
fn refuse(
    directives: &CacheControl,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    rules: &Rules,
) -> Result<(), NoStore> {
    if directives.must_understand {
        if !is_understood(status) {
            return Err(NoStore::NotUnderstood);
        }
    } else if directives.no_store {
        return Err(NoStore::Directive);
    }
    if rules.honor_client_cache_control && CacheControl::of_request(request).no_store {
        return Err(NoStore::RequestDirective);
    }
    if directives.private {
        return Err(NoStore::Private);
    }
    let for_everybody =
        directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    let authorized = request.contains_key(header::AUTHORIZATION);
    if authorized && !for_everybody && !rules.store_authorized {
        return Err(NoStore::Authorization);
    }
    if response.contains_key(header::SET_COOKIE) && !rules.store_set_cookie {
        return Err(NoStore::SetCookie);
    }
    if VarySpec::from_headers(response).is_any() {
        return Err(NoStore::VaryAny);
    }
    Ok(())
}

/// RFC 9111 §4.2.1, in seconds: `s-maxage`, else `max-age`, else `Expires`.
fn explicit_lifetime(
    directives: &CacheControl,
    response: &HeaderMap,
    date_secs: Option<i64>,
    received_ms: i64,
) -> Option<u32> {
    if let Some(secs) = directives.s_maxage.or(directives.max_age) {
        return Some(secs);
    }
    // RFC 9213 §2.1: who heeds a targeted field ignores Expires.
    if directives.targeted || !response.contains_key(header::EXPIRES) {
        return None;
    }
    // RFC 9111 §5.3: what is no date, "0" above all, is in the past.
    let Some(expires_secs) = single_date(response, &header::EXPIRES) else {
        return Some(0);
    };
    let date_secs = date_secs.unwrap_or(received_ms.div_euclid(1000));
    Some(clamp_delta(expires_secs.saturating_sub(date_secs)))
}

/// RFC 9111 §4.2.2, in seconds.
fn implicit_lifetime(
    directives: &CacheControl,
    status: StatusCode,
    response: &HeaderMap,
    rules: &Rules,
    date_secs: Option<i64>,
    received_ms: i64,
) -> Option<u32> {
    if !directives.public && !is_heuristically_cacheable(status) {
        return None;
    }
    if rules.heuristic
        && let Some(modified_secs) = single_date(response, &header::LAST_MODIFIED)
    {
        let date_secs = date_secs.unwrap_or(received_ms.div_euclid(1000));
        let tenth = clamp_delta(date_secs.saturating_sub(modified_secs) / 10);
        return Some(tenth.min(delta_secs(rules.heuristic_max)));
    }
    rules.default_ttl.map(delta_secs)
}

/// `corrected_initial_age` of RFC 9111 §4.2.3.
fn initial_age_ms(
    age_secs: u32,
    date_secs: Option<i64>,
    sent_ms: i64,
    received_ms: i64,
) -> u64 {
    let received_secs = received_ms.div_euclid(1000);
    let apparent_secs = date_secs.map_or(0, |date| clamp_delta(received_secs.saturating_sub(date)));
    let delay_ms = received_ms.saturating_sub(sent_ms).max(0) as u64;
    let corrected_ms = u64::from(age_secs) * 1000 + delay_ms;
    corrected_ms.max(u64::from(apparent_secs) * 1000)
}

impl Freshness {
    /// RFC 9111 §4.2.3. At most 2^31 seconds.
    pub fn age(&self, now: SystemTime) -> Duration {
        Duration::from_millis(self.age_ms(now))
    }

    /// Seconds that it stays fresh: more than 0 while it is.
    pub fn ttl(&self, now: SystemTime) -> i64 {
        i64::from(self.lifetime_secs) - (self.age_ms(now) / 1000) as i64
    }

    pub fn is_fresh(&self, now: SystemTime) -> bool {
        self.ttl(now) > 0
    }

    /// Whether it may answer requests that waited while it was fetched (RFC 9111 §4).
    pub fn is_shareable(&self, now: SystemTime) -> bool {
        self.is_fresh(now) && !self.no_cache
    }

    /// Whether its lifetime is the node's guess or setting, not the origin's word.
    pub fn is_heuristic(&self) -> bool {
        self.heuristic
    }

    pub fn decide(&self, request: &HeaderMap, rules: &Rules, now: SystemTime) -> Decision {
        let client = if rules.honor_client_cache_control {
            CacheControl::of_request(request)
        } else {
            CacheControl::default()
        };
        let ttl = self.ttl(now);
        let refused = client.no_cache
            || self.no_cache
            || client.max_age.is_some_and(|secs| self.age_ms(now) > u64::from(secs) * 1000);
        let wanted_ttl = client.min_fresh.map_or(1, |secs| i64::from(secs).max(1));
        if !refused && ttl >= wanted_ttl {
            return Decision::Fresh;
        }
        let must_validate = refused || self.must_revalidate || client.min_fresh.is_some();
        if !must_validate && client.max_stale.is_some_and(|secs| -ttl <= i64::from(secs)) {
            return Decision::StaleAllowed;
        }
        let window = self.stale_while_revalidate_secs;
        if !must_validate && self.within(window, rules.stale_while_revalidate, now) {
            return Decision::StaleWhileRevalidate;
        }
        if client.only_if_cached { Decision::OnlyIfCached } else { Decision::Validate }
    }

    /// Whether it may be used instead of the origin's answer that did not come (RFC 9111 §4.2.4,
    /// RFC 5861 §4). A `stale-if-error` of the response bounds both situations.
    pub fn may_serve_stale_on_error(
        &self,
        situation: ErrorSituation,
        rules: &Rules,
        now: SystemTime,
    ) -> bool {
        if self.no_cache || (self.must_revalidate && !self.is_fresh(now)) {
            return false;
        }
        let unbounded = situation == ErrorSituation::Unreachable
            && rules.serve_stale_when_unreachable
            && self.stale_if_error_secs.is_none();
        unbounded || self.within(self.stale_if_error_secs, rules.stale_if_error, now)
    }

    /// Whether it has been stale for less than a window: the response's own, else the rule's.
    fn within(&self, own_secs: Option<u32>, rule: Option<Duration>, now: SystemTime) -> bool {
        let window_secs = own_secs.or_else(|| rule.map(delta_secs)).unwrap_or(0);
        let end_secs = u64::from(self.lifetime_secs) + u64::from(window_secs);
        window_secs > 0 && self.age_ms(now) < end_secs * 1000
    }

    fn age_ms(&self, now: SystemTime) -> u64 {
        let resident_ms = millis(now).saturating_sub(self.received_ms);
        let age_ms = self.initial_age_ms.saturating_add(resident_ms.max(0) as u64);
        let age_ms = if resident_ms < -BELIEVED_STEP_MS {
            // Stored in what is now the future: its age is not known, so it is not fresh.
            age_ms.max(u64::from(self.lifetime_secs) * 1000)
        } else {
            age_ms
        };
        age_ms.min(u64::from(MAX_DELTA_SECS) * 1000)
    }
}

/// What `Age` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Absent,
    Secs(u32),
    Unreadable,
}

impl Age {
    /// RFC 9111 §5.1. Of a list, its first member. Otherwise what is no number on one line makes the
    /// response stale: it has been in a cache, and it is unknown for how long.
    fn of(response: &HeaderMap) -> Age {
        let mut lines = response.get_all(header::AGE).iter();
        let Some(line) = lines.next() else {
            return Age::Absent;
        };
        if lines.next().is_some() {
            return Age::Unreadable;
        }
        let mut members = line.as_bytes().trim_ascii().split(|&byte| byte == b',').map(parse_delta);
        match members.next().flatten() {
            Some(secs) if members.all(|member| member.is_some()) => Age::Secs(secs),
            _ => Age::Unreadable,
        }
    }

    fn secs(self) -> u32 {
        match self {
            Age::Secs(secs) => secs,
            Age::Absent | Age::Unreadable => 0,
        }
    }
}

/// Statuses that are kept without an explicit lifetime. RFC 9110 §15.1 also has 206, which is judged as
/// what it is a part of, and 405, 414 and 501, which a client can provoke for everybody's URL: those
/// take an explicit lifetime.
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 410)
}

/// Final statuses whose caching this node knows all about (RFC 9111 §5.2.2.3).
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 300..=303 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505
    )
}

fn has_validator(response: &HeaderMap) -> bool {
    response.contains_key(header::ETAG) || response.contains_key(header::LAST_MODIFIED)
}

/// A date in seconds since 1970. Lines that disagree are no date.
fn single_date(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next()?;
    if lines.any(|other| other != line) {
        return None;
    }
    let date = httpdate::parse_http_date(line.to_str().ok()?.trim()).ok()?;
    Some(millis(date).div_euclid(1000))
}

fn clamp_delta(secs: i64) -> u32 {
    secs.clamp(0, i64::from(MAX_DELTA_SECS)) as u32
}

fn delta_secs(duration: Duration) -> u32 {
    duration.as_secs().min(u64::from(MAX_DELTA_SECS)) as u32
}

/// Milliseconds since 1970, negative before.
fn millis(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// Whether a response to this request outdates what is stored for its target (RFC 9111 §4.4): a
/// method that is not known to be safe, and no error.
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    const SAFE: [&str; 8] =
        ["GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"];
    (status.is_success() || status.is_redirection()) && !SAFE.contains(&method.as_str())
}

/// What else such a response outdates: `Location` and `Content-Location`, if they are of the request's
/// own origin (RFC 9111 §4.4). As authority and target of a cache key.
pub fn invalidation_targets(
    scheme: Scheme,
    authority: &str,
    target: &[u8],
    response: &HeaderMap,
) -> Vec<(Box<str>, Vec<u8>)> {
    let mut targets: Vec<(Box<str>, Vec<u8>)> = Vec::new();
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let references = response.get_all(name);
        for found in references.iter().filter_map(|it| resolve(scheme, authority, target, it)) {
            if found != target && targets.iter().all(|(_, known)| *known != found) {
                targets.push((authority.into(), found));
            }
        }
    }
    targets
}

/// The target that a URI reference names (RFC 3986 §5.2), if it is of the same origin.
fn resolve(
    scheme: Scheme,
    authority: &str,
    base: &[u8],
    reference: &HeaderValue,
) -> Option<Vec<u8>> {
    let reference = reference.as_bytes().trim_ascii();
    let end = memchr::memchr(b'#', reference).unwrap_or(reference.len());
    let mut reference = &reference[..end];
    if let Some(colon) = scheme_end(reference) {
        if !reference[..colon].eq_ignore_ascii_case(scheme.as_str().as_bytes()) {
            return None;
        }
        reference = &reference[colon + 1..];
        if !reference.starts_with(b"//") {
            return None;
        }
    }
    let (base_path, base_query) = split_query(base);
    let (path, query);
    if let Some(rest) = reference.strip_prefix(b"//") {
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let named = normalize_authority(&rest[..end], scheme).ok()?;
        if *named != *authority {
            return None;
        }
        let (given, given_query) = split_query(&rest[end..]);
        path = remove_dot_segments(if given.is_empty() { b"/" } else { given });
        query = given_query;
    } else {
        let (given, given_query) = split_query(reference);
        (path, query) = match given {
            [] => (base_path.to_vec(), given_query.or(base_query)),
            [b'/', ..] => (remove_dot_segments(given), given_query),
            _ => {
                let directory = memchr::memrchr(b'/', base_path).map_or(0, |slash| slash + 1);
                let merged = [&base_path[..directory], given].concat();
                (remove_dot_segments(&merged), given_query)
            }
        };
    }
    let mut target = path;
    if let Some(query) = query {
        target.push(b'?');
        target.extend_from_slice(query);
    }
    Some(target)
}

/// Where the colon behind a scheme is, if the reference begins with one.
fn scheme_end(reference: &[u8]) -> Option<usize> {
    let colon = reference.iter().position(|byte| matches!(byte, b':' | b'/' | b'?'))?;
    let is_scheme = reference[colon] == b':'
        && reference[0].is_ascii_alphabetic()
        && reference[..colon]
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    is_scheme.then_some(colon)
}

fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', target) {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    }
}

/// RFC 3986 §5.2.4, of a path that begins with a slash.
fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let mut segments = path.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => out.truncate(memchr::memrchr(b'/', &out).unwrap_or(0)),
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if is_last {
            out.push(b'/');
        }
    }
    out
}
