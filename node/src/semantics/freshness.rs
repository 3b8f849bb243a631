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
//! - Time is an argument. A clock that steps makes no age negative and no response fresh for
//!   longer.
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

/// Longer than any date, in bytes.
const MAX_DATE: usize = 48;

/// How an origin's responses are kept where they leave it open.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Freshness of a response that says nothing of its own and may be stored.
    pub default_ttl: Option<Duration>,
    /// A tenth of the time since `Last-Modified` (RFC 9111 §4.2.2).
    pub heuristic: bool,
    pub heuristic_max: Duration,
    /// For responses that were fresh once and do not say it themselves.
    pub stale_while_revalidate: Option<Duration>,
    /// For responses that do not say it themselves.
    pub stale_if_error: Option<Duration>,
    pub serve_stale_when_unreachable: bool,
    /// `Set-Cookie` does not make a response private (RFC 9111 §7.3), but few that have it are
    /// public.
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
    /// Not to be used stale: `must-revalidate` or `proxy-revalidate` (RFC 9111 §4.2.4).
    must_revalidate: bool,
    /// The same by `s-maxage` (RFC 9111 §5.2.2.10), save within a window that the response itself
    /// grants: who writes `s-maxage=1, stale-while-revalidate=59` means both.
    revalidates_by_s_maxage: bool,
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
/// A 206 is judged by its caller as the 200 that it is a part of. Fields of the response are those
/// that came, or those of a stored one that was updated by a 304 (RFC 9111 §3.2).
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
    let (lifetime, heuristic) =
        match explicit_lifetime(&directives, response, date_secs, received_ms) {
            Some(lifetime) => (Some(lifetime), false),
            None => (
                implicit_lifetime(&directives, status, response, rules, date_secs, received_ms),
                true,
            ),
        };
    let age = Age::of(response);
    let lifetime_secs = match age {
        Age::Unreadable => 0,
        _ => lifetime.unwrap_or(0),
    };
    let freshness = Freshness {
        received_ms,
        initial_age_ms: initial_age_ms(age.secs(), date_secs, millis(sent_at), received_ms),
        lifetime_secs,
        stale_while_revalidate_secs: directives.stale_while_revalidate,
        stale_if_error_secs: directives.stale_if_error,
        no_cache: directives.no_cache,
        must_revalidate: directives.must_revalidate || directives.proxy_revalidate,
        revalidates_by_s_maxage: directives.s_maxage.is_some(),
        heuristic,
    };
    let windows = [directives.stale_while_revalidate, directives.stale_if_error];
    let usable_stale = !freshness.must_revalidate
        && !freshness.no_cache
        && windows.into_iter().flatten().any(|secs| secs > 0);
    if !freshness.is_shareable(received_at) && !usable_stale && !has_validator(response) {
        return Err(match lifetime {
            None => NoStore::NoFreshness,
            Some(_) => NoStore::NotReusable,
        });
    }
    let may_be_kept = lifetime.is_some() || directives.public || is_heuristically_cacheable(status);
    if may_be_kept {
        Ok(freshness)
    } else {
        Err(NoStore::NoFreshness)
    }
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
fn initial_age_ms(age_secs: u32, date_secs: Option<i64>, sent_ms: i64, received_ms: i64) -> u64 {
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

    /// Whether it came to be validated before each use: with `no-cache`, or without a second of
    /// freshness.
    pub fn arrived_stale(&self) -> bool {
        self.no_cache || u64::from(self.lifetime_secs) <= self.initial_age_ms / 1000
    }

    /// Whether its lifetime is the node's guess or setting, not the origin's word.
    pub fn is_heuristic(&self) -> bool {
        self.heuristic
    }

    /// The same, of a response that is stale from `since` on at the latest: as if it had aged until then.
    pub fn stale_since(&self, since: SystemTime) -> Freshness {
        let missing_ms = (u64::from(self.lifetime_secs) * 1000).saturating_sub(self.age_ms(since));
        Freshness {
            initial_age_ms: self.initial_age_ms.saturating_add(missing_ms),
            ..self.clone()
        }
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
            || client
                .max_age
                .is_some_and(|secs| self.age_ms(now) > u64::from(secs) * 1000);
        let wanted_ttl = client.min_fresh.map_or(1, |secs| i64::from(secs).max(1));
        if !refused && ttl >= wanted_ttl {
            return Decision::Fresh;
        }
        let must_validate = refused || self.must_revalidate || client.min_fresh.is_some();
        let implied = self.revalidates_by_s_maxage;
        if !must_validate
            && !implied
            && client.max_stale.is_some_and(|secs| -ttl <= i64::from(secs))
        {
            return Decision::StaleAllowed;
        }
        let own = self.stale_while_revalidate_secs;
        // What never was fresh is to be validated each time, unless its origin says otherwise.
        let rule = rules
            .stale_while_revalidate
            .filter(|_| self.lifetime_secs > 0 && !implied);
        if !must_validate && self.within(own, rule, now) {
            return Decision::StaleWhileRevalidate;
        }
        if client.only_if_cached {
            Decision::OnlyIfCached
        } else {
            Decision::Validate
        }
    }

    /// Whether it may be used instead of the origin's answer that did not come (RFC 9111 §4.2.4,
    /// RFC 5861 §4). A `stale-if-error` of the response bounds both situations.
    pub fn may_serve_stale_on_error(
        &self,
        situation: ErrorSituation,
        rules: &Rules,
        now: SystemTime,
    ) -> bool {
        let implied = self.revalidates_by_s_maxage && self.stale_if_error_secs.is_none();
        if self.no_cache || ((self.must_revalidate || implied) && !self.is_fresh(now)) {
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
        let age_ms = self
            .initial_age_ms
            .saturating_add(resident_ms.max(0) as u64);
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
    /// RFC 9111 §5.1. Of a list, its first member. Otherwise what is no number on one line makes
    /// the response stale: it has been in a cache, and it is unknown for how long.
    fn of(response: &HeaderMap) -> Age {
        let mut lines = response.get_all(header::AGE).iter();
        let Some(line) = lines.next() else {
            return Age::Absent;
        };
        if lines.next().is_some() {
            return Age::Unreadable;
        }
        let mut members = line
            .as_bytes()
            .trim_ascii()
            .split(|&byte| byte == b',')
            .map(parse_delta);
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

/// Statuses that are kept without an explicit lifetime. RFC 9110 §15.1 also has 206, which is
/// judged as what it is a part of, and 405, 414 and 501, which a client can provoke for everybody's
/// URL: those take an explicit lifetime.
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 410
    )
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
    let line = line.as_bytes().trim_ascii();
    let mut date = [0; MAX_DATE];
    let date = date.get_mut(..line.len())?;
    // To be read in any case (RFC 9111 §4.2), which the parser does not do.
    let mut in_word = false;
    for (byte, given) in date.iter_mut().zip(line) {
        *byte = if in_word {
            given.to_ascii_lowercase()
        } else {
            given.to_ascii_uppercase()
        };
        in_word = given.is_ascii_alphabetic();
    }
    if date.ends_with(b" Gmt") {
        date[line.len() - 3..].make_ascii_uppercase();
    }
    let date = httpdate::parse_http_date(std::str::from_utf8(date).ok()?).ok()?;
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
    const SAFE: [&str; 8] = [
        "GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY",
    ];
    (status.is_success() || status.is_redirection()) && !SAFE.contains(&method.as_str())
}

/// What else such a response outdates: `Location` and `Content-Location`, if they are of the
/// request's own origin (RFC 9111 §4.4). As authority and target of a cache key.
pub fn invalidation_targets(
    scheme: Scheme,
    authority: &str,
    target: &[u8],
    response: &HeaderMap,
) -> Vec<(Box<str>, Vec<u8>)> {
    let mut targets: Vec<(Box<str>, Vec<u8>)> = Vec::new();
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let references = response.get_all(name);
        for found in references
            .iter()
            .filter_map(|it| resolve(scheme, authority, target, it))
        {
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
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?'))
            .unwrap_or(rest.len());
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
    let colon = reference
        .iter()
        .position(|byte| matches!(byte, b':' | b'/' | b'?'))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 12:00:00.250 UTC.
    const NOW_MS: u64 = 1_795_262_400_250;

    fn at(secs: i64) -> SystemTime {
        let base = SystemTime::UNIX_EPOCH + Duration::from_millis(NOW_MS);
        match u64::try_from(secs) {
            Ok(later) => base + Duration::from_secs(later),
            Err(_) => base - Duration::from_secs(secs.unsigned_abs()),
        }
    }

    /// Fields from lines; `@-10` is the date ten seconds before the response came.
    fn headers(lines: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines
            .split('|')
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            let (name, value) = line.split_once(':').unwrap();
            let value = match value.trim().strip_prefix('@') {
                Some(secs) => httpdate::fmt_http_date(at(secs.parse().unwrap())),
                None => value.trim().to_owned(),
            };
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn store(
        request: &str,
        status: u16,
        response: &str,
        rules: &Rules,
    ) -> Result<Freshness, NoStore> {
        let status = StatusCode::from_u16(status).unwrap();
        storable(
            &Method::GET,
            &headers(request),
            status,
            &headers(response),
            rules,
            at(0),
            at(0),
        )
    }

    fn stored(response: &str) -> Freshness {
        store("", 200, response, &Rules::default()).unwrap()
    }

    #[test]
    fn ttl_on_arrival() {
        use NoStore::*;
        for (status, response, ttl) in [
            // No freshness at all.
            (200, "", Err(NoFreshness)),
            (200, "etag: \"a\"", Ok(0)),
            // Cache-Control.
            (200, "cache-control: max-age=3600", Ok(3600)),
            (200, "cache-control: MaX-aGe=3600", Ok(3600)),
            (200, "cache-control: foobar, max-age=3600", Ok(3600)),
            (200, "cache-control: max-age=0", Err(NotReusable)),
            (200, "cache-control: max-age=0 | etag: \"a\"", Ok(0)),
            (200, "cache-control: max-age=-3600", Err(NotReusable)),
            (200, "cache-control: max-age='3600'", Err(NotReusable)),
            (200, "cache-control: max-age=99999999999", Ok(1 << 31)),
            (200, "cache-control: s-maxage=5, max-age=3600", Ok(5)),
            (
                200,
                "cache-control: max-age=5 | cache-control: s-maxage=3600",
                Ok(3600),
            ),
            (
                200,
                "cache-control: max-age=3600 | expires: @-7200 | date: @0",
                Ok(3600),
            ),
            (
                200,
                "cache-control: max-age=3600 | expires: 0 | date: @0",
                Ok(3600),
            ),
            (
                200,
                "cache-control: max-age=0 | expires: @3600 | date: @0",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=0, s-maxage=9 | expires: @-10",
                Ok(9),
            ),
            // Expires.
            (200, "expires: @100 | date: @0", Ok(100)),
            (200, "expires: @100", Ok(100)),
            (200, "expires: @100 | expires: @100", Ok(100)),
            (200, "expires: @100 | expires: @200", Err(NotReusable)),
            (200, "expires: @0 | date: @0", Err(NotReusable)),
            (200, "expires: @300 | date: @400", Err(NotReusable)),
            (200, "expires: 0 | date: @0", Err(NotReusable)),
            (200, "expires: 0 | last-modified: @-1000 | date: @0", Ok(0)),
            (200, "expires: @10 | date: foo", Ok(10)),
            (200, "expires: Sat, 21 Nov 2026 12:01:00 GMT", Ok(60)),
            (200, "expires: sat, 21 NOV 2026 12:01:00 gmt", Ok(60)),
            (200, "expires: Saturday, 21-Nov-26 12:01:00 GMT", Ok(60)),
            (200, "expires: Sat Nov 21 12:01:00 2026", Ok(60)),
            (
                200,
                "expires: Sat, 21 Nov 2026 12:01:00 UTC",
                Err(NotReusable),
            ),
            (
                200,
                "expires: Sat, 21 Nov 2026 12:01:00 AEST",
                Err(NotReusable),
            ),
            (200, "expires: \u{e9}\u{e9}", Err(NotReusable)),
            // Age and Date.
            (200, "cache-control: max-age=3600 | age: 100", Ok(3500)),
            (
                200,
                "cache-control: max-age=3600 | age: 7200 | date: @0",
                Err(NotReusable),
            ),
            (200, "cache-control: max-age=3600 | date: @-600", Ok(3000)),
            (200, "cache-control: max-age=3600 | date: @600", Ok(3600)),
            (200, "expires: @10 | date: @-10 | age: 25", Err(NotReusable)),
            (200, "expires: @20 | date: @10 | age: 15", Err(NotReusable)),
            (200, "cache-control: max-age=3600 | age: 0,7200", Ok(3600)),
            (
                200,
                "cache-control: max-age=3600 | age: 7200,0",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=3600 | age: abc",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=3600 | age: -1",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=3600 | age: 1.0",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=3600 | age: 1;a=b",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=3600 | age: 0, 0",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=3600 | age: 0 | age: 0",
                Err(NotReusable),
            ),
            (
                200,
                "cache-control: max-age=3600 | age: 99999999999999999999",
                Err(NotReusable),
            ),
            // Heuristics.
            (200, "last-modified: @-1000 | date: @0", Ok(100)),
            (200, "last-modified: @-1000", Ok(100)),
            (200, "last-modified: @1000", Ok(0)),
            (200, "last-modified: @-99999999", Ok(86_400)),
            (
                200,
                "last-modified: @-1000 | cache-control: no-transform",
                Ok(100),
            ),
            (203, "last-modified: @-1000", Ok(100)),
            (204, "last-modified: @-1000", Ok(100)),
            (301, "last-modified: @-1000", Ok(100)),
            (404, "last-modified: @-1000", Ok(100)),
            (410, "last-modified: @-1000", Ok(100)),
            (201, "last-modified: @-1000", Err(NoFreshness)),
            (302, "last-modified: @-1000", Err(NoFreshness)),
            (403, "last-modified: @-1000", Err(NoFreshness)),
            (405, "last-modified: @-1000", Err(NoFreshness)),
            (414, "last-modified: @-1000", Err(NoFreshness)),
            (501, "last-modified: @-1000", Err(NoFreshness)),
            (503, "last-modified: @-1000", Err(NoFreshness)),
            (599, "last-modified: @-1000", Err(NoFreshness)),
            (
                599,
                "last-modified: @-1000 | cache-control: public",
                Ok(100),
            ),
            // Explicit freshness on any final status.
            (302, "expires: @100", Ok(100)),
            (400, "cache-control: max-age=9", Ok(9)),
            (503, "expires: @100", Ok(100)),
            (599, "cache-control: max-age=9", Ok(9)),
            (103, "cache-control: max-age=9", Err(Status)),
            (206, "cache-control: max-age=9", Err(Status)),
            (304, "cache-control: max-age=9", Err(Status)),
            // Directives that forbid.
            (200, "cache-control: max-age=9, No-StOrE", Err(Directive)),
            (200, "cache-control: private, max-age=9", Err(Private)),
            (
                200,
                "cache-control: private=\"set-cookie\", max-age=9",
                Err(Private),
            ),
            (200, "cache-control: no-cache, max-age=9", Err(NotReusable)),
            (
                200,
                "cache-control: no-cache, max-age=9 | etag: \"a\"",
                Ok(9),
            ),
            (200, "cache-control: no-cache | etag: \"a\"", Ok(0)),
            (
                200,
                "cache-control: max-age=9, must-understand, no-store",
                Ok(9),
            ),
            (
                599,
                "cache-control: max-age=9, must-understand",
                Err(NotUnderstood),
            ),
            (
                200,
                "cache-control: max-age=9 | set-cookie: a=b",
                Err(SetCookie),
            ),
            (200, "cache-control: max-age=9 | vary: *", Err(VaryAny)),
            (200, "cache-control: max-age=9 | vary: a", Ok(9)),
            (200, "cache-control: max-age=9 | pragma: no-cache", Ok(9)),
            (200, "expires: @9 | pragma: no-cache", Err(NotReusable)),
            // Targeted fields.
            (
                200,
                "cache-control: no-store | cdn-cache-control: max-age=9",
                Ok(9),
            ),
            (
                200,
                "cache-control: max-age=9 | cdn-cache-control: no-store",
                Err(Directive),
            ),
            (
                200,
                "cache-control: max-age=9 | cdn-cache-control: no-cache, x | expires: @5",
                Err(NoFreshness),
            ),
            (
                200,
                "cdn-cache-control: max-age=9 | expires: 0 | pragma: no-cache",
                Ok(9),
            ),
            (
                200,
                "surrogate-control: max-age=9 | cache-control: max-age=3600",
                Ok(9),
            ),
            // Stale on arrival, but for something.
            (
                200,
                "cache-control: max-age=0, stale-while-revalidate=9",
                Ok(0),
            ),
            (200, "cache-control: max-age=0, stale-if-error=9", Ok(0)),
            (200, "cache-control: s-maxage=0, stale-if-error=9", Ok(0)),
        ] {
            let found = store("", status, response, &Rules::default());
            assert_eq!(
                found.map(|freshness| freshness.ttl(at(0))),
                ttl,
                "{status} {response}"
            );
        }
    }

    #[test]
    fn authorized_and_private_requests() {
        use NoStore::*;
        let honoring = Rules {
            honor_client_cache_control: true,
            ..Rules::default()
        };
        let lax = Rules {
            store_authorized: true,
            store_set_cookie: true,
            ..Rules::default()
        };
        let strict = Rules::default();
        for (request, response, rules, refused) in [
            (
                "authorization: a",
                "expires: @99",
                &strict,
                Some(Authorization),
            ),
            (
                "authorization: a",
                "cache-control: max-age=9",
                &strict,
                Some(Authorization),
            ),
            (
                "authorization: a",
                "cache-control: max-age=9, proxy-revalidate",
                &strict,
                Some(Authorization),
            ),
            (
                "authorization: a",
                "cache-control: max-age=9, public",
                &strict,
                None,
            ),
            (
                "authorization: a",
                "cache-control: max-age=9, must-revalidate",
                &strict,
                None,
            ),
            (
                "authorization: a",
                "cache-control: s-maxage=9",
                &strict,
                None,
            ),
            (
                "authorization: a",
                "cache-control: public, private, max-age=9",
                &strict,
                Some(Private),
            ),
            ("authorization: a", "cache-control: max-age=9", &lax, None),
            (
                "authorization: a",
                "cache-control: private, max-age=9",
                &lax,
                Some(Private),
            ),
            ("", "cache-control: max-age=9 | set-cookie: a=b", &lax, None),
            ("cookie: a=b", "cache-control: max-age=9", &strict, None),
            (
                "cache-control: no-store",
                "cache-control: max-age=9",
                &strict,
                None,
            ),
            (
                "cache-control: no-store",
                "cache-control: max-age=9",
                &honoring,
                Some(RequestDirective),
            ),
        ] {
            let found = store(request, 200, response, rules);
            assert_eq!(found.err(), refused, "{request}: {response}");
        }
    }

    #[test]
    fn only_get_is_stored() {
        for method in [Method::HEAD, Method::POST, Method::OPTIONS] {
            let fresh = headers("cache-control: max-age=9");
            let found = storable(
                &method,
                &HeaderMap::new(),
                StatusCode::OK,
                &fresh,
                &Rules::default(),
                at(0),
                at(0),
            );
            assert_eq!(found, Err(NoStore::Method), "{method}");
        }
    }

    #[test]
    fn rules_fill_in_what_a_response_leaves_open() {
        let rules = Rules {
            default_ttl: Some(Duration::from_secs(60)),
            heuristic_max: Duration::from_secs(50),
            ..Rules::default()
        };
        let windows = Rules {
            stale_while_revalidate: Some(Duration::from_secs(9)),
            stale_if_error: Some(Duration::from_secs(9)),
            ..Rules::default()
        };
        assert_eq!(store("", 200, "", &windows), Err(NoStore::NoFreshness));
        let no_guess = Rules {
            heuristic: false,
            ..rules.clone()
        };
        for (status, response, rules, ttl) in [
            (200, "", &rules, Ok(60)),
            (200, "cache-control: max-age=9", &rules, Ok(9)),
            (200, "cache-control: max-age=0 | etag: \"a\"", &rules, Ok(0)),
            (
                200,
                "cache-control: no-store",
                &rules,
                Err(NoStore::Directive),
            ),
            (200, "last-modified: @-1000", &rules, Ok(50)),
            (200, "last-modified: @-1000", &no_guess, Ok(60)),
            (404, "", &rules, Ok(60)),
            (405, "", &rules, Err(NoStore::NoFreshness)),
            (500, "", &rules, Err(NoStore::NoFreshness)),
        ] {
            let found = store("", status, response, rules);
            assert_eq!(
                found.as_ref().map(|it| it.ttl(at(0))).map_err(|no| *no),
                ttl,
                "{response}"
            );
            assert!(
                found.is_err() || response.contains("max-age") || found.unwrap().is_heuristic()
            );
        }
    }

    #[test]
    fn age_grows_with_time_and_never_shrinks_below_zero() {
        let fresh = headers("cache-control: max-age=60 | age: 10 | date: @-4");
        let rules = Rules::default();
        let freshness = storable(
            &Method::GET,
            &HeaderMap::new(),
            StatusCode::OK,
            &fresh,
            &rules,
            at(-5),
            at(0),
        )
        .unwrap();
        for (now, age, ttl) in [
            (0, 15, 45),
            (1, 16, 44),
            (44, 59, 1),
            (45, 60, 0),
            (1000, 1015, -955),
            // The clock was set back: a little, a lot, before 1970.
            (-30, 15, 45),
            (-3600, 60, 0),
            (-2_000_000_000, 60, 0),
            (9_000_000_000, 1 << 31, 60 - (1 << 31)),
        ] {
            assert_eq!(freshness.age(at(now)).as_secs(), age, "{now}");
            assert_eq!(freshness.ttl(at(now)), ttl, "{now}");
            assert_eq!(freshness.is_fresh(at(now)), ttl > 0, "{now}");
        }
        let bytes = postcard::to_stdvec(&freshness).unwrap();
        assert_eq!(
            postcard::from_bytes::<Freshness>(&bytes).unwrap(),
            freshness
        );
        // Answered before it was asked.
        let odd = storable(
            &Method::GET,
            &HeaderMap::new(),
            StatusCode::OK,
            &headers("cache-control: max-age=60"),
            &rules,
            at(100),
            SystemTime::UNIX_EPOCH - Duration::from_secs(9),
        );
        assert_eq!(odd.unwrap().ttl(SystemTime::UNIX_EPOCH), 51);
    }

    #[test]
    fn what_to_do_with_a_stored_response() {
        use Decision::*;
        let deaf = Rules::default();
        let honoring = Rules {
            honor_client_cache_control: true,
            ..Rules::default()
        };
        let swr = Rules {
            stale_while_revalidate: Some(Duration::from_secs(5)),
            ..Rules::default()
        };
        for (response, now, request, rules, decision) in [
            ("max-age=60", 0, "", &deaf, Fresh),
            ("max-age=60", 59, "", &deaf, Fresh),
            ("max-age=60", 60, "", &deaf, Validate),
            ("max-age=60, immutable", 60, "", &deaf, Validate),
            ("max-age=60, no-cache", 0, "", &deaf, Validate),
            (
                "max-age=60, stale-while-revalidate=10",
                60,
                "",
                &deaf,
                StaleWhileRevalidate,
            ),
            (
                "max-age=60, stale-while-revalidate=10",
                69,
                "",
                &deaf,
                StaleWhileRevalidate,
            ),
            (
                "max-age=60, stale-while-revalidate=10",
                70,
                "",
                &deaf,
                Validate,
            ),
            ("max-age=60", 64, "", &swr, StaleWhileRevalidate),
            ("max-age=60", 65, "", &swr, Validate),
            (
                "max-age=60, stale-while-revalidate=0",
                60,
                "",
                &swr,
                Validate,
            ),
            ("max-age=0", 0, "", &swr, Validate),
            (
                "max-age=0, stale-while-revalidate=1",
                0,
                "",
                &swr,
                StaleWhileRevalidate,
            ),
            ("max-age=60, must-revalidate", 60, "", &swr, Validate),
            (
                "s-maxage=60, stale-while-revalidate=10",
                60,
                "",
                &swr,
                StaleWhileRevalidate,
            ),
            ("s-maxage=60", 60, "", &swr, Validate),
            ("max-age=60, no-cache", 60, "", &swr, Validate),
            ("max-age=60", 0, "no-cache", &deaf, Fresh),
            ("max-age=60", 0, "max-age=0, only-if-cached", &deaf, Fresh),
            ("max-age=60", 60, "max-stale", &deaf, Validate),
            ("max-age=60", 0, "no-cache", &honoring, Validate),
            ("max-age=60", 0, "no-store", &honoring, Fresh),
            ("max-age=60", 1, "max-age=0", &honoring, Validate),
            ("max-age=60", 9, "max-age=9", &honoring, Fresh),
            ("max-age=60", 10, "max-age=9", &honoring, Validate),
            ("max-age=60", 10, "max-age=x", &honoring, Validate),
            ("max-age=60", 10, "min-fresh=50", &honoring, Fresh),
            ("max-age=60", 10, "min-fresh=51", &honoring, Validate),
            ("max-age=60", 70, "max-stale", &honoring, StaleAllowed),
            ("max-age=60", 70, "max-stale=10", &honoring, StaleAllowed),
            ("max-age=60", 71, "max-stale=10", &honoring, Validate),
            (
                "max-age=60",
                70,
                "max-stale, max-age=5",
                &honoring,
                Validate,
            ),
            (
                "max-age=60, must-revalidate",
                70,
                "max-stale",
                &honoring,
                Validate,
            ),
            ("max-age=60", 0, "only-if-cached", &honoring, Fresh),
            ("max-age=60", 60, "only-if-cached", &honoring, OnlyIfCached),
            (
                "max-age=60, no-cache",
                0,
                "only-if-cached",
                &honoring,
                OnlyIfCached,
            ),
        ] {
            let freshness = stored(&format!("cache-control: {response} | etag: \"a\""));
            let request = match request {
                "" => HeaderMap::new(),
                directives => headers(&format!("cache-control: {directives}")),
            };
            let found = freshness.decide(&request, rules, at(now));
            assert_eq!(found, decision, "{response} at {now}: {request:?}");
        }
        let pragma = headers("pragma: no-cache");
        let freshness = stored("cache-control: max-age=60");
        assert_eq!(freshness.decide(&pragma, &honoring, at(0)), Validate);
        assert_eq!(freshness.decide(&pragma, &deaf, at(0)), Fresh);
        assert!(honoring.only_if_cached(&headers("cache-control: only-if-cached")));
        assert!(!deaf.only_if_cached(&headers("cache-control: only-if-cached")));
    }

    #[test]
    fn stale_instead_of_an_error() {
        let plain = Rules::default();
        let lasting = Rules {
            stale_if_error: Some(Duration::from_secs(30)),
            ..Rules::default()
        };
        let never = Rules {
            serve_stale_when_unreachable: false,
            ..Rules::default()
        };
        // Response, seconds since, rules: allowed on 5xx, allowed when unreachable.
        for (response, now, rules, on_error, unreachable) in [
            ("max-age=60", 60, &plain, false, true),
            ("max-age=60", 1_000_000, &plain, false, true),
            ("max-age=60", 60, &never, false, false),
            ("max-age=60, stale-if-error=10", 60, &plain, true, true),
            ("max-age=60, stale-if-error=10", 70, &plain, false, false),
            ("max-age=60, stale-if-error=10", 60, &never, true, true),
            ("max-age=60, stale-if-error=0", 60, &lasting, false, false),
            ("max-age=60", 89, &lasting, true, true),
            ("max-age=60", 90, &lasting, false, true),
            (
                "max-age=60, must-revalidate, stale-if-error=10",
                60,
                &lasting,
                false,
                false,
            ),
            ("max-age=60, proxy-revalidate", 60, &lasting, false, false),
            ("s-maxage=60", 60, &lasting, false, false),
            ("s-maxage=60", 59, &lasting, true, true),
            ("max-age=60, no-cache", 0, &lasting, false, false),
        ] {
            let freshness = stored(&format!("cache-control: {response} | etag: \"a\""));
            for (situation, allowed) in [
                (ErrorSituation::ServerError, on_error),
                (ErrorSituation::Unreachable, unreachable),
            ] {
                let found = freshness.may_serve_stale_on_error(situation, rules, at(now));
                assert_eq!(found, allowed, "{response} at {now}: {situation:?}");
            }
        }
    }

    #[test]
    fn sharing_with_those_who_waited() {
        for (response, shareable) in [
            ("max-age=60", true),
            ("max-age=60, no-cache", false),
            ("max-age=0", false),
        ] {
            let freshness = stored(&format!("cache-control: {response} | etag: \"a\""));
            assert_eq!(freshness.is_shareable(at(0)), shareable, "{response}");
            assert_eq!(freshness.arrived_stale(), !shareable, "{response}");
        }
    }

    #[test]
    fn unsafe_requests_invalidate() {
        for (method, status, expected) in [
            ("POST", 200, true),
            ("PUT", 204, true),
            ("DELETE", 302, true),
            ("M-SEARCH", 200, true),
            ("POST", 404, false),
            ("POST", 500, false),
            ("GET", 200, false),
            ("HEAD", 200, false),
            ("OPTIONS", 200, false),
            ("PROPFIND", 207, false),
        ] {
            let method: Method = method.parse().unwrap();
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(invalidates(&method, status), expected, "{method} {status}");
        }
    }

    #[test]
    fn references_of_the_same_origin_are_invalidated() {
        for (reference, found) in [
            ("/x", Some("/x")),
            ("/x?y#z", Some("/x?y")),
            ("x", Some("/a/x")),
            ("../x", Some("/x")),
            ("../../../x", Some("/x")),
            ("./x/.", Some("/a/x/")),
            ("/a/./b/../c", Some("/a/c")),
            ("/..", Some("/")),
            ("//example.com", Some("/")),
            ("//EXAMPLE.com:80/x", Some("/x")),
            ("http://example.com/x", Some("/x")),
            ("HTTP://example.com?q", Some("/?q")),
            ("?r", Some("/a/b?r")),
            ("/x:y", Some("/x:y")),
            ("/%2e%2e/x", Some("/%2e%2e/x")),
            ("//x//y", None),
            ("", None),
            ("#f", None),
            ("/a/b?q", None),
            ("https://example.com/x", None),
            ("http://example.com:8080/x", None),
            ("http://other.example/x", None),
            ("http://user@example.com/x", None),
            ("http:x", None),
            ("mailto:a@b", None),
            ("http://[", None),
        ] {
            let found: Vec<_> = found
                .into_iter()
                .map(|target| target.as_bytes().to_vec())
                .collect();
            for name in ["location", "content-location"] {
                let response = headers(&format!("{name}:{reference}"));
                let targets =
                    invalidation_targets(Scheme::Http, "example.com", b"/a/b?q", &response);
                assert!(
                    targets
                        .iter()
                        .all(|(authority, _)| &**authority == "example.com")
                );
                let targets: Vec<_> = targets.into_iter().map(|(_, target)| target).collect();
                assert_eq!(targets, found, "{reference}");
            }
        }
        let both = headers("location: /x | content-location: /y");
        assert_eq!(
            invalidation_targets(Scheme::Http, "a", b"/", &both).len(),
            2
        );
        let same = headers("location: /x | content-location: /x");
        assert_eq!(
            invalidation_targets(Scheme::Http, "a", b"/", &same).len(),
            1
        );
    }
}
