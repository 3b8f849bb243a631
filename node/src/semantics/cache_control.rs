//! What a message says about caching: `Cache-Control` (RFC 9111 §5.2) and the fields that say it to
//! some caches only (RFC 9213, and `Surrogate-Control`).
//!
//! Kept true here: of what is malformed, a restriction still counts and a permission does not. A
//! lifetime that cannot be read is none; of several, the shortest counts.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

/// The most that a count of seconds can say (RFC 9111 §1.2.2).
pub const MAX_DELTA_SECS: u32 = 1 << 31;

const TARGETED: [HeaderName; 2] = [
    HeaderName::from_static("caje-cdn-cache-control"),
    HeaderName::from_static("cdn-cache-control"),
];
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// Targets of a `Surrogate-Control` directive that mean this node.
const SURROGATE: &[u8] = b"caje";

/// Directives of a request or a response. Counts are seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// Whether there was such a field at all.
    pub present: bool,
    /// Said by a targeted field: `Cache-Control`, `Expires` and `Pragma` are then not for us.
    pub targeted: bool,
    pub max_age: Option<u32>,
    pub s_maxage: Option<u32>,
    pub no_store: bool,
    /// With field names, too: the whole response is validated (allowed by RFC 9111 §5.2.2.4).
    pub no_cache: bool,
    /// With field names, too: the whole response is private (allowed by RFC 9111 §5.2.2.7).
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub no_transform: bool,
    pub immutable: bool,
    /// RFC 5861 §3.
    pub stale_while_revalidate: Option<u32>,
    /// RFC 5861 §4.
    pub stale_if_error: Option<u32>,
    /// Of a request: how stale a response may be; [`MAX_DELTA_SECS`] where no number is given.
    pub max_stale: Option<u32>,
    /// Of a request.
    pub min_fresh: Option<u32>,
    /// Of a request.
    pub only_if_cached: bool,
}

/// A directive's value as it was written.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Absent,
    Text(&'a [u8]),
    /// There is one, and it breaks the syntax.
    Broken,
}

impl CacheControl {
    /// `Cache-Control` from all its field lines.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> CacheControl {
        let mut directives = CacheControl::default();
        for line in lines {
            directives.present = true;
            let mut rest = line.as_bytes();
            while let Some((name, value)) = next_directive(&mut rest) {
                directives.add(name, value);
            }
        }
        directives
    }

    /// What a request says; `Pragma: no-cache` where it has no `Cache-Control` (RFC 9111 §5.4).
    pub fn of_request(request: &HeaderMap) -> CacheControl {
        let mut directives = CacheControl::parse(request.get_all(header::CACHE_CONTROL));
        if !directives.present && has_pragma_no_cache(request) {
            directives.no_cache = true;
        }
        directives
    }

    /// What a response says to this node: `Caje-CDN-Cache-Control`, else `CDN-Cache-Control`, else
    /// `Surrogate-Control`, else `Cache-Control` and `Pragma`. A targeted field that is empty or
    /// cannot be parsed counts as absent (RFC 9213 §2.1).
    pub fn of_response(response: &HeaderMap) -> CacheControl {
        for name in TARGETED {
            if let Some(directives) = targeted(response, &name) {
                return directives;
            }
        }
        if let Some(directives) = surrogate(response) {
            return directives;
        }
        let mut directives = CacheControl::parse(response.get_all(header::CACHE_CONTROL));
        if !directives.present && has_pragma_no_cache(response) {
            directives.no_cache = true;
        }
        directives
    }

    /// Whether the directive is one that this node knows.
    fn add(&mut self, name: &[u8], value: Value<'_>) -> bool {
        let is = |directive: &str| name.eq_ignore_ascii_case(directive.as_bytes());
        let flag = match () {
            () if is("no-store") => &mut self.no_store,
            () if is("no-cache") => &mut self.no_cache,
            () if is("private") => &mut self.private,
            () if is("must-revalidate") => &mut self.must_revalidate,
            () if is("proxy-revalidate") => &mut self.proxy_revalidate,
            () if is("must-understand") => &mut self.must_understand,
            () if is("no-transform") => &mut self.no_transform,
            () if is("only-if-cached") => &mut self.only_if_cached,
            () if is("public") => {
                self.public |= matches!(value, Value::Absent);
                return true;
            }
            () if is("immutable") => {
                self.immutable |= matches!(value, Value::Absent);
                return true;
            }
            () => return self.add_count(name, value),
        };
        *flag = true;
        true
    }

    fn add_count(&mut self, name: &[u8], value: Value<'_>) -> bool {
        let is = |directive: &str| name.eq_ignore_ascii_case(directive.as_bytes());
        let seconds = match value {
            Value::Text(text) => parse_delta(text),
            Value::Absent | Value::Broken => None,
        };
        let count = match () {
            () if is("max-age") => &mut self.max_age,
            () if is("s-maxage") => &mut self.s_maxage,
            () if is("stale-while-revalidate") => &mut self.stale_while_revalidate,
            () if is("stale-if-error") => &mut self.stale_if_error,
            () if is("max-stale") => {
                let seconds = match value {
                    Value::Absent => Some(MAX_DELTA_SECS),
                    _ => seconds,
                };
                shorten(&mut self.max_stale, seconds.unwrap_or(0));
                return true;
            }
            () if is("min-fresh") => {
                // The largest asks for most.
                let seconds = seconds.unwrap_or(0);
                self.min_fresh = Some(self.min_fresh.map_or(seconds, |other| other.max(seconds)));
                return true;
            }
            () => return false,
        };
        shorten(count, seconds.unwrap_or(0));
        true
    }
}

fn shorten(count: &mut Option<u32>, seconds: u32) {
    *count = Some(count.map_or(seconds, |other| other.min(seconds)));
}

/// `delta-seconds`; more than can be counted is [`MAX_DELTA_SECS`] (RFC 9111 §1.2.2).
pub fn parse_delta(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0u32, |seconds, digit| {
        let seconds = seconds
            .saturating_mul(10)
            .saturating_add(u32::from(digit - b'0'));
        seconds.min(MAX_DELTA_SECS)
    }))
}

fn has_pragma_no_cache(headers: &HeaderMap) -> bool {
    headers.get_all(header::PRAGMA).iter().any(|line| {
        let mut rest = line.as_bytes();
        std::iter::from_fn(|| next_directive(&mut rest))
            .any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"))
    })
}

/// Takes the next `token [ "=" ( token / quoted-string ) ]` of a list off its front.
fn next_directive<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], Value<'a>)> {
    loop {
        let start = rest
            .iter()
            .position(|byte| !matches!(byte, b',' | b' ' | b'\t'))?;
        let list = &rest[start..];
        let name_length = list
            .iter()
            .position(|&byte| !is_token(byte))
            .unwrap_or(list.len());
        let (name, behind) = list.split_at(name_length);
        let (value, behind) = take_value(behind);
        *rest = behind;
        if !name.is_empty() {
            return Some((name, value));
        }
    }
}

/// The value behind a directive's name, and what follows the directive's comma.
fn take_value(behind: &[u8]) -> (Value<'_>, &[u8]) {
    let Some(argument) = behind.strip_prefix(b"=") else {
        let (between, rest) = split_member(behind);
        let is_blank = between.trim_ascii().is_empty();
        return (
            if is_blank {
                Value::Absent
            } else {
                Value::Broken
            },
            rest,
        );
    };
    let (argument, rest) = split_member(argument);
    let argument = argument.trim_ascii_end();
    let value = match argument {
        [b'"', text @ .., b'"'] if !text.contains(&b'"') && !text.contains(&b'\\') => {
            Value::Text(text)
        }
        token if !token.is_empty() && token.iter().copied().all(is_token) => Value::Text(token),
        _ => Value::Broken,
    };
    (value, rest)
}

/// Up to the next comma outside of quotes, and what is behind it.
fn split_member(list: &[u8]) -> (&[u8], &[u8]) {
    let mut quoted = false;
    let mut escaped = false;
    for (at, &byte) in list.iter().enumerate() {
        let was_escaped = std::mem::take(&mut escaped);
        match byte {
            b'"' if !was_escaped => quoted = !quoted,
            b'\\' if quoted && !was_escaped => escaped = true,
            b',' if !quoted => return (&list[..at], &list[at + 1..]),
            _ => {}
        }
    }
    if quoted {
        // A quote that never ends must not hide what follows it.
        if let Some(comma) = memchr::memchr(b',', list) {
            return (&list[..comma], &list[comma + 1..]);
        }
    }
    (list, &[])
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A targeted field (RFC 9213 §2.1): a Dictionary by RFC 9651, parameters ignored.
fn targeted(response: &HeaderMap, name: &HeaderName) -> Option<CacheControl> {
    let field = joined_lines(response, name)?;
    let dictionary: Dictionary = Parser::new(&field).parse().ok()?;
    if dictionary.is_empty() {
        return None;
    }
    let mut directives = CacheControl {
        present: true,
        targeted: true,
        ..CacheControl::default()
    };
    for (name, member) in &dictionary {
        let name = name.as_str().as_bytes();
        let mut digits = itoa::Buffer::new();
        let value = match member {
            ListEntry::Item(item) => match &item.bare_item {
                BareItem::Boolean(true) => Value::Absent,
                BareItem::Boolean(false) => continue,
                BareItem::Integer(number) => {
                    Value::Text(digits.format(i64::from(*number)).as_bytes())
                }
                // A count is an Integer and nothing else.
                _ => Value::Broken,
            },
            ListEntry::InnerList(_) => Value::Broken,
        };
        directives.add(name, value);
    }
    Some(directives)
}

/// `Surrogate-Control` (W3C Edge Architecture 1.0): as `Cache-Control`, but each directive may name
/// the surrogate that it is for, and a lifetime may say how much longer a stale response may be
/// used.
fn surrogate(response: &HeaderMap) -> Option<CacheControl> {
    let mut directives = CacheControl {
        present: true,
        targeted: true,
        ..CacheControl::default()
    };
    let mut any = false;
    for line in response.get_all(&SURROGATE_CONTROL) {
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let (member, behind) = split_member(rest);
            rest = behind;
            let mut parts = member.splitn(2, |&byte| byte == b';');
            let mut directive = parts.next().unwrap_or_default();
            if parts
                .next()
                .is_some_and(|target| !target.trim_ascii().eq_ignore_ascii_case(SURROGATE))
            {
                continue;
            }
            let mut extension = None;
            if let Some(plus) = memchr::memchr(b'+', directive) {
                extension = parse_delta(directive[plus + 1..].trim_ascii());
                directive = &directive[..plus];
            }
            while let Some((name, value)) = next_directive(&mut directive) {
                if name.eq_ignore_ascii_case(b"no-store-remote") {
                    directives.no_store = true;
                    any = true;
                    continue;
                }
                any |= directives.add(name, value);
                if name.eq_ignore_ascii_case(b"max-age") && extension.is_some() {
                    directives.stale_while_revalidate = extension;
                    directives.stale_if_error = extension;
                }
            }
        }
    }
    any.then_some(directives)
}

/// All lines of a field as one value. `None` if there are none.
fn joined_lines(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut lines = headers.get_all(name).iter();
    let mut field = lines.next()?.as_bytes().to_vec();
    for line in lines {
        field.extend_from_slice(b", ");
        field.extend_from_slice(line.as_bytes());
    }
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> CacheControl {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| HeaderValue::from_bytes(line.as_bytes()).unwrap())
            .collect();
        CacheControl::parse(&lines)
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    #[test]
    fn lifetimes() {
        for (lines, max_age) in [
            (&["max-age=3600"][..], Some(3600)),
            (&["MAX-age=3600"], Some(3600)),
            (&["max-age=\"3600\""], Some(3600)),
            (&["max-age=003600"], Some(3600)),
            (&[" , ,max-age=3600 ,"], Some(3600)),
            (&["a, b=c, max-age=3600"], Some(3600)),
            (&["a=\"x, max-age=1\", max-age=3600"], Some(3600)),
            (&["max-age=3600, a=\"max-age=1\""], Some(3600)),
            (&["a=\"\\\", max-age=1\""], None),
            (&["max-age=2147483647"], Some(2_147_483_647)),
            (&["max-age=2147483648"], Some(MAX_DELTA_SECS)),
            (&["max-age=99999999999999999999999"], Some(MAX_DELTA_SECS)),
            (&["max-age=3600, max-age=1800"], Some(1800)),
            (&["max-age=1", "max-age=1800"], Some(1)),
            (&["max-age=1800, max-age=x"], Some(0)),
            (&["max-age='3600'"], Some(0)),
            (&["max-age=-3600"], Some(0)),
            (&["max-age=3600.0"], Some(0)),
            (&["max-age=a3600"], Some(0)),
            (&["max-age=3600a"], Some(0)),
            (&["max-age=3600 7"], Some(0)),
            (&["max-age =3600"], Some(0)),
            (&["max-age= 3600"], Some(0)),
            (&["max-age"], Some(0)),
            (&["max-age="], Some(0)),
            (&["max-age=\"3600"], Some(0)),
            (&["x-max-age=3600"], None),
            (&["max-age3600"], None),
            (&[""], None),
        ] {
            assert_eq!(parse(lines).max_age, max_age, "{lines:?}");
        }
    }

    #[test]
    fn restrictions_count_even_if_malformed_and_permissions_do_not() {
        for line in [
            "no-store",
            "No-Store",
            "max-age=1,no-store",
            "no-store=1",
            "no-store =x",
            "no-store;a",
            "\"x\", no-store",
            "a=\"unended, no-store",
            "@@, no-store",
            "=, no-store",
        ] {
            assert!(parse(&[line]).no_store, "{line}");
        }
        for line in ["x-no-store", "a=\"no-store\"", "a=no-store", "nostore"] {
            assert!(!parse(&[line]).no_store, "{line}");
        }
        assert!(parse(&["private=\"a, b\""]).private);
        assert!(parse(&["no-cache=\"a\""]).no_cache);
        assert!(parse(&["public"]).public);
        assert!(!parse(&["public=1"]).public);
        assert!(parse(&["x"]).present && !parse(&[]).present);
    }

    #[test]
    fn request_directives() {
        let given = parse(&["max-stale, min-fresh=5, min-fresh=9, only-if-cached"]);
        assert_eq!(given.max_stale, Some(MAX_DELTA_SECS));
        assert_eq!(given.min_fresh, Some(9));
        assert!(given.only_if_cached);
        assert_eq!(parse(&["max-stale=5"]).max_stale, Some(5));
        assert_eq!(parse(&["max-stale=x"]).max_stale, Some(0));
        for (lines, no_cache) in [
            (&[("pragma", "no-cache")][..], true),
            (&[("pragma", "x, No-Cache")], true),
            (&[("pragma", "x")], false),
            (
                &[("pragma", "no-cache"), ("cache-control", "max-age=5")],
                false,
            ),
            (&[("cache-control", "no-cache")], true),
        ] {
            assert_eq!(
                CacheControl::of_request(&headers(lines)).no_cache,
                no_cache,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_most_specific_field_counts() {
        const OURS: &str = "caje-cdn-cache-control";
        const CDN: &str = "cdn-cache-control";
        const SURROGATE: &str = "surrogate-control";
        const ALL: &str = "cache-control";
        for (lines, max_age) in [
            (
                &[
                    (OURS, "max-age=1"),
                    (CDN, "max-age=2"),
                    (SURROGATE, "max-age=3"),
                ][..],
                Some(1),
            ),
            (
                &[
                    (ALL, "max-age=4"),
                    (SURROGATE, "max-age=3"),
                    (CDN, "max-age=2"),
                ],
                Some(2),
            ),
            (&[(ALL, "max-age=4"), (SURROGATE, "max-age=3")], Some(3)),
            (&[(ALL, "max-age=4")], Some(4)),
            // Read strictly: what is no Dictionary, or an empty one, is not there.
            (&[(ALL, "max-age=4"), (CDN, "")], Some(4)),
            (&[(ALL, "max-age=4"), (CDN, "max-age=2,")], Some(4)),
            (&[(ALL, "max-age=4"), (CDN, "Max-Age=2")], Some(4)),
            (&[(ALL, "max-age=4"), (CDN, "max-age =2")], Some(4)),
            (
                &[(ALL, "max-age=4"), (CDN, "max-age=2"), (CDN, "&")],
                Some(4),
            ),
            (
                &[(ALL, "max-age=4"), (CDN, "x=1"), (CDN, "max-age=2")],
                Some(2),
            ),
            (&[(ALL, "max-age=4"), (CDN, "max-age=2;a=b")], Some(2)),
            (
                &[(ALL, "max-age=4"), (CDN, "max-age=1, max-age=2")],
                Some(2),
            ),
            (
                &[(ALL, "max-age=4"), (CDN, "max-age=999999999999")],
                Some(MAX_DELTA_SECS),
            ),
            (&[(ALL, "max-age=4"), (CDN, "max-age=-2")], Some(0)),
            (&[(ALL, "max-age=4"), (CDN, "max-age=2.5")], Some(0)),
            (&[(ALL, "max-age=4"), (CDN, "max-age=\"2\"")], Some(0)),
            (&[(ALL, "max-age=4"), (CDN, "max-age")], Some(0)),
            (&[(ALL, "max-age=4"), (CDN, "foo")], None),
            // Surrogate-Control: as Cache-Control, with targets.
            (&[(ALL, "max-age=4"), (SURROGATE, "MaX-aGe=3")], Some(3)),
            (
                &[(ALL, "max-age=4"), (SURROGATE, "foo, max-age=3")],
                Some(3),
            ),
            (
                &[(ALL, "max-age=4"), (SURROGATE, "max-age=3;other")],
                Some(4),
            ),
            (
                &[(ALL, "max-age=4"), (SURROGATE, "max-age=3;Caje")],
                Some(3),
            ),
            (&[(ALL, "max-age=4"), (SURROGATE, "max-age=3+60")], Some(3)),
            (
                &[(ALL, "max-age=4"), (SURROGATE, "content=\"ESI/1.0\"")],
                Some(4),
            ),
        ] {
            assert_eq!(
                CacheControl::of_response(&headers(lines)).max_age,
                max_age,
                "{lines:?}"
            );
        }
        let flags = CacheControl::of_response(&headers(&[
            (
                CDN,
                "no-store=?0, private=(\"a\"), no-cache, public=1, must-revalidate=?1",
            ),
            (ALL, "no-store"),
        ]));
        assert!(flags.targeted && flags.private && flags.no_cache && flags.must_revalidate);
        assert!(!flags.no_store && !flags.public);
        let extended = CacheControl::of_response(&headers(&[(SURROGATE, "max-age=3 + 60")]));
        assert_eq!(extended.stale_while_revalidate, Some(60));
        let remote = CacheControl::of_response(&headers(&[(SURROGATE, "no-store-remote")]));
        assert!(remote.no_store);
    }

    #[test]
    fn no_bytes_make_it_fail() {
        let alphabet = b"a=\",\\ ;\t1+\xff";
        let mut line = Vec::new();
        for number in 0..20_000usize {
            line.clear();
            let mut rest = number;
            while rest > 0 {
                line.push(alphabet[rest % alphabet.len()]);
                rest /= alphabet.len();
            }
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_bytes(&line).unwrap();
            for name in [
                TARGETED[0].clone(),
                SURROGATE_CONTROL,
                header::CACHE_CONTROL,
            ] {
                headers.insert(name, value.clone());
            }
            CacheControl::of_response(&headers);
            CacheControl::of_request(&headers);
        }
    }
}
