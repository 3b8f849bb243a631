//! What a hop adds, removes and counts (RFC 9110 §7.6, RFC 7239, RFC 8586).
//!
//! What it keeps true:
//! - A field that concerns one connection does not reach the next, and neither does one that
//!   `Connection` nominates; but nobody can nominate away a field that frames, routes, authorises,
//!   validates or governs caching.
//! - What an origin reads about the client comes from this node or from a proxy it was told to trust.
//! - Loops are seen: `CDN-Loop` and `Via` grow, and what others wrote there stays.

use std::net::IpAddr;

use http::header::{
    CONNECTION, FORWARDED, HeaderName, MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderValue, Version};

use super::key::Scheme;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Fields of one connection or of the proxy itself, never stored and never forwarded (RFC 9110
/// §7.6.1, RFC 9111 §3.1). `Trailer` is among them because a stored response has no trailers.
static HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHENTICATION_INFO,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];

/// Removes what is meant for this hop alone, in a request or a response. It comes before anything
/// that reads the fields, so that the cache key and the origin see the same request.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in nominated(headers) {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Fields that `Connection` declares to be hop-by-hop, without those it has no say in.
pub(super) fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|option| {
            let usual: [&[u8]; 3] = [b"close", b"keep-alive", b""];
            !usual.iter().any(|usual| option.eq_ignore_ascii_case(usual))
        })
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(is_nominable)
        .collect()
}

/// A peer that could make a proxy drop these would change what the message means, where it goes, who
/// it is from, or how it is cached.
fn is_nominable(name: &HeaderName) -> bool {
    let name = name.as_str();
    let families = [
        "content-",
        "if-",
        "accept-",
        "x-forwarded-",
        "access-control-",
        "sec-",
    ];
    if families.iter().any(|family| name.starts_with(family)) {
        return false;
    }
    !matches!(
        name,
        "accept"
            | "age"
            | "allow"
            | "authentication-info"
            | "authorization"
            | "cache-control"
            | "cache-status"
            | "caje-cdn-cache-control"
            | "cdn-cache-control"
            | "cdn-loop"
            | "clear-site-data"
            | "cookie"
            | "date"
            | "early-data"
            | "etag"
            | "expect"
            | "expires"
            | "forwarded"
            | "host"
            | "last-modified"
            | "link"
            | "location"
            | "max-forwards"
            | "origin"
            | "pragma"
            | "range"
            | "referer"
            | "refresh"
            | "retry-after"
            | "server"
            | "set-cookie"
            | "strict-transport-security"
            | "surrogate-capability"
            | "surrogate-control"
            | "transfer-encoding"
            | "user-agent"
            | "vary"
            | "via"
            | "warning"
            | "www-authenticate"
            | "x-real-ip"
    )
}

/// Adds this node to `Via` (RFC 9110 §7.6.3). `version` is that of the message as received.
pub fn append_via(headers: &mut HeaderMap, version: Version, pseudonym: &str) {
    let version: &[u8] = match version {
        Version::HTTP_09 => b"0.9 ",
        Version::HTTP_10 => b"1.0 ",
        Version::HTTP_2 => b"2 ",
        Version::HTTP_3 => b"3 ",
        _ => b"1.1 ",
    };
    let mut member = Vec::with_capacity(version.len() + pseudonym.len());
    member.extend_from_slice(version);
    member.extend(received_by(pseudonym));
    let member =
        HeaderValue::try_from(member).unwrap_or_else(|_| HeaderValue::from_static("1.1 caje"));
    headers.append(VIA, member);
}

/// Whether a message has passed a node of this name.
pub fn via_contains(headers: &HeaderMap, pseudonym: &str) -> bool {
    headers
        .get_all(VIA)
        .iter()
        .flat_map(|line| Members::new(line.as_bytes(), Quoting::Comments))
        .any(|member| {
            let mut words = member
                .split(|byte| matches!(byte, b' ' | b'\t'))
                .filter(|word| !word.is_empty());
            words.next();
            words.next().is_some_and(|word| {
                let expected = received_by(pseudonym).map(|byte| byte.to_ascii_lowercase());
                word.iter().map(u8::to_ascii_lowercase).eq(expected)
            })
        })
}

/// `received-by` is a token or host and port; what fits into neither becomes a dash.
fn received_by(pseudonym: &str) -> impl Iterator<Item = u8> {
    let usable = if pseudonym.is_empty() {
        "caje"
    } else {
        pseudonym
    };
    usable.bytes().map(|byte| {
        let fits = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&byte);
        if fits { byte } else { b'-' }
    })
}

/// How often the CDN `id` has had this request before (RFC 8586).
pub fn cdn_loop_count(headers: &HeaderMap, id: &str) -> usize {
    headers
        .get_all(CDN_LOOP)
        .iter()
        .flat_map(|line| Members::new(line.as_bytes(), Quoting::Strings))
        .filter(|member| {
            let end = memchr::memchr(b';', member).unwrap_or(member.len());
            member[..end]
                .trim_ascii()
                .eq_ignore_ascii_case(id.as_bytes())
        })
        .count()
}

/// Whether the CDN `id` has had this request before.
pub fn cdn_loop_contains(headers: &HeaderMap, id: &str) -> bool {
    headers.contains_key(CDN_LOOP) && cdn_loop_count(headers, id) > 0
}

/// Adds this CDN behind the others, which stay as they are.
pub fn append_cdn_loop(headers: &mut HeaderMap, id: &str) {
    let member = HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("caje"));
    headers.append(CDN_LOOP, member);
}

/// What is told upstream about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded<'a> {
    /// The peer of the connection.
    pub client: IpAddr,
    /// How the request arrived.
    pub scheme: Scheme,
    /// Host and port that it named.
    pub authority: &'a str,
    /// The peer is a proxy of ours: what it says is kept and extended instead of replaced.
    pub trusted: bool,
}

/// Sets `X-Forwarded-For`, `-Proto` and `-Host`, `X-Real-IP` and `Forwarded` (RFC 7239). Takes out
/// every other field by which a client could claim another address, host, path or method: none of
/// them is part of the cache key, so one client's claim would be another's answer.
pub fn set_forwarded(headers: &mut HeaderMap, forwarded: Forwarded<'_>) {
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
    let client = forwarded.client.to_canonical();
    let address = client.to_string();
    let hop = forwarded_element(client, forwarded.scheme, forwarded.authority);
    let (mut addresses, mut hops) = (Vec::new(), Vec::new());
    if forwarded.trusted {
        addresses = joined(headers, &X_FORWARDED_FOR);
        hops = joined(headers, &FORWARDED);
    } else {
        for name in [X_FORWARDED_PROTO, X_FORWARDED_HOST, X_REAL_IP] {
            headers.remove(name);
        }
    }
    push_member(&mut addresses, address.as_bytes());
    push_member(&mut hops, &hop);
    replace(headers, X_FORWARDED_FOR, &addresses);
    replace(headers, FORWARDED, &hops);
    let defaults = [
        (X_FORWARDED_PROTO, forwarded.scheme.as_str()),
        (X_FORWARDED_HOST, forwarded.authority),
        (X_REAL_IP, &address),
    ];
    for (name, default) in defaults {
        if headers.get_all(&name).iter().count() != 1 {
            replace(headers, name, default.as_bytes());
        }
    }
}

/// Fields that stand for an address, host, path, scheme or method somewhere, and are not set here.
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    if let Some(kind) = name.strip_prefix("x-forwarded") {
        return !matches!(kind, "-for" | "-proto" | "-host");
    }
    matches!(
        name,
        "cf-connecting-ip"
            | "cf-connecting-ipv6"
            | "client-ip"
            | "fastly-client-ip"
            | "fly-client-ip"
            | "forwarded-for"
            | "forwarded-for-ip"
            | "forwarded-host"
            | "forwarded-proto"
            | "front-end-https"
            | "http-client-ip"
            | "proxy"
            | "true-client-ip"
            | "x-backend-host"
            | "x-client-ip"
            | "x-cluster-client-ip"
            | "x-forward-for"
            | "x-forwared-host"
            | "x-host"
            | "x-host-override"
            | "x-http-destinationurl"
            | "x-http-host-override"
            | "x-http-method"
            | "x-http-method-override"
            | "x-method-override"
            | "x-original-host"
            | "x-original-method"
            | "x-original-uri"
            | "x-original-url"
            | "x-originating-ip"
            | "x-proxy-host"
            | "x-proxy-url"
            | "x-proxyuser-ip"
            | "x-remote-addr"
            | "x-remote-ip"
            | "x-rewrite-uri"
            | "x-rewrite-url"
            | "x-url-scheme"
    )
}

/// `for=192.0.2.1;proto=https;host="a.example"`
fn forwarded_element(client: IpAddr, scheme: Scheme, authority: &str) -> Vec<u8> {
    let mut element = match client {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    element.push_str(";proto=");
    element.push_str(scheme.as_str());
    element.push_str(";host=\"");
    for character in authority.chars() {
        if matches!(character, '"' | '\\') {
            element.push('\\');
        }
        element.push(character);
    }
    element.push('"');
    element.into_bytes()
}

/// All lines of a list field as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let mut list = Vec::new();
    for line in headers.get_all(name) {
        push_member(&mut list, line.as_bytes().trim_ascii());
    }
    list
}

fn push_member(list: &mut Vec<u8>, member: &[u8]) {
    if !list.is_empty() && !member.is_empty() {
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(member);
}

/// Puts one line in the place of all. A value that no field can hold leaves none.
fn replace(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    match HeaderValue::from_bytes(value) {
        Ok(value) => {
            headers.insert(name, value);
        }
        Err(_) => {
            headers.remove(name);
        }
    }
}

/// Whether a TRACE or OPTIONS may be forwarded (RFC 9110 §7.6.2); other methods ignore the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxForwards {
    /// Absent or malformed.
    Unlimited,
    /// Not forwarded: this node answers as the final recipient.
    Exhausted,
    /// Forwarded with the field set to this value.
    Left(u32),
}

pub fn max_forwards(headers: &HeaderMap) -> MaxForwards {
    let Some(value) = headers.get(MAX_FORWARDS) else {
        return MaxForwards::Unlimited;
    };
    let digits = value.as_bytes().trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return MaxForwards::Unlimited;
    }
    let hops = digits.iter().fold(0_u32, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(u32::from(digit - b'0'))
    });
    match hops.checked_sub(1) {
        Some(left) => MaxForwards::Left(left),
        None => MaxForwards::Exhausted,
    }
}

/// Within what a comma does not separate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoting {
    /// `"…"`
    Strings,
    /// `(…)`, which nest.
    Comments,
}

/// Members of a list field's line. What is opened and never closed does not hide what follows: such
/// a line is parted at every comma.
struct Members<'a> {
    rest: Option<&'a [u8]>,
    quoting: Option<Quoting>,
}

impl<'a> Members<'a> {
    fn new(line: &'a [u8], quoting: Quoting) -> Members<'a> {
        Members {
            rest: Some(line),
            quoting: Some(quoting),
        }
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = self.rest.take()?;
        let comma = match self.quoting.map(|quoting| outer_comma(line, quoting)) {
            Some(Ok(comma)) => comma,
            Some(Err(Unclosed)) => {
                self.quoting = None;
                memchr::memchr(b',', line)
            }
            None => memchr::memchr(b',', line),
        };
        let member = match comma {
            Some(comma) => {
                self.rest = Some(&line[comma + 1..]);
                &line[..comma]
            }
            None => line,
        };
        Some(member.trim_ascii())
    }
}

struct Unclosed;

fn outer_comma(line: &[u8], quoting: Quoting) -> Result<Option<usize>, Unclosed> {
    let mut depth = 0_usize;
    let mut bytes = line.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match (quoting, byte) {
            (_, b',') if depth == 0 => return Ok(Some(at)),
            (_, b'\\') if depth > 0 => {
                bytes.next();
            }
            (Quoting::Strings, b'"') => depth = 1 - depth,
            (Quoting::Comments, b'(') => depth += 1,
            (Quoting::Comments, b')') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    if depth == 0 { Ok(None) } else { Err(Unclosed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for &(name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    fn line(headers: &HeaderMap, name: &str) -> Option<String> {
        let lines = headers.get_all(name).iter();
        let lines: Vec<&str> = lines.map(|line| line.to_str().unwrap()).collect();
        (!lines.is_empty()).then(|| lines.join(" | "))
    }

    #[test]
    fn hop_by_hop_fields_are_stripped() {
        let mut stripped = headers(&[
            ("connection", "a, B ,, keep-alive"),
            ("connection", "close, not a name, c"),
            ("a", "1"),
            ("a", "2"),
            ("b", "2"),
            ("c", "3"),
            ("d", "4"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "x"),
            ("proxy-authentication-info", "x"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "x"),
            ("http2-settings", "x"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
        ]);
        strip_hop_by_hop(&mut stripped);
        assert_eq!(stripped, headers(&[("d", "4")]));
        let plain = headers(&[("d", "4"), ("content-foo", "5")]);
        let mut stripped = plain.clone();
        strip_hop_by_hop(&mut stripped);
        assert_eq!(stripped, plain);
    }

    #[test]
    fn protected_fields_cannot_be_nominated() {
        for name in [
            "accept-encoding",
            "age",
            "authorization",
            "cache-control",
            "cdn-cache-control",
            "cdn-loop",
            "content-encoding",
            "content-length",
            "content-type",
            "cookie",
            "date",
            "etag",
            "expires",
            "forwarded",
            "host",
            "if-none-match",
            "last-modified",
            "location",
            "origin",
            "range",
            "set-cookie",
            "surrogate-control",
            "vary",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-real-ip",
        ] {
            let mut stripped = headers(&[(name, "x")]);
            let nomination = HeaderValue::try_from(name.to_ascii_uppercase()).unwrap();
            stripped.insert(CONNECTION, nomination);
            strip_hop_by_hop(&mut stripped);
            assert_eq!(stripped, headers(&[(name, "x")]), "{name}");
        }
    }

    #[test]
    fn via_grows() {
        let mut passed = headers(&[("via", "1.0 fred, 1.1 p.example.net (a, b)")]);
        append_via(&mut passed, Version::HTTP_11, "caje");
        append_via(&mut passed, Version::HTTP_2, "caje/lhr");
        append_via(&mut passed, Version::HTTP_10, "");
        assert_eq!(
            line(&passed, "via").unwrap(),
            "1.0 fred, 1.1 p.example.net (a, b) | 1.1 caje | 2 caje-lhr | 1.0 caje"
        );
        #[rustfmt::skip]
        let cases = [
            ("1.1 caje", true),
            ("1.0 fred, HTTP/1.1  CAJE (Rust), 1.1 x", true),
            ("1.1 caje-lhr", false),
            ("1.1 fred (1.1 caje)", false),
            ("1.1 fred (a, 1.1 caje, b)", false),
            ("1.1 fred (a, 1.1 caje", true),
            ("1.1 fred (\\), 1.1 caje)", false),
            ("caje", false),
            (", ,", false),
            ("", false),
        ];
        for (via, expected) in cases {
            assert_eq!(
                via_contains(&headers(&[("via", via)]), "caje"),
                expected,
                "{via}"
            );
        }
        assert!(via_contains(&passed, "caje/lhr"));
        assert!(!via_contains(&HeaderMap::new(), "caje"));
    }

    #[test]
    fn loops_are_counted() {
        #[rustfmt::skip]
        let cases: &[(&[&str], usize)] = &[
            (&[], 0),
            (&["caje"], 1),
            (&["foo123.foocdn.example, barcdn.example; trace=\"abcdef\""], 0),
            (&["AnotherCDN; abc=123; def=\"456\"", "Caje; x=1, caje"], 2),
            (&["caje2, xcaje, caje.example"], 0),
            (&["x; a=\", caje, \""], 0),
            (&["x; a=\"\\\", caje\""], 0),
            // A quote that is never closed hides nobody.
            (&["x; a=\", caje"], 1),
            (&["\"", "caje"], 1),
            (&["a, \"b, caje, c"], 1),
            (&[",,caje ;a,"], 1),
        ];
        for &(lines, expected) in cases {
            let mut passed = HeaderMap::new();
            for &line in lines {
                passed.append("cdn-loop", HeaderValue::from_static(line));
            }
            assert_eq!(cdn_loop_count(&passed, "caje"), expected, "{lines:?}");
            assert_eq!(cdn_loop_contains(&passed, "caje"), expected > 0);
            append_cdn_loop(&mut passed, "caje");
            assert_eq!(cdn_loop_count(&passed, "caje"), expected + 1);
            let others: Vec<_> = passed
                .get_all("cdn-loop")
                .iter()
                .take(lines.len())
                .collect();
            assert_eq!(others, lines);
        }
    }

    const FORWARDED_BY_PEER: &[(&str, &str)] = &[
        ("forwarded", "for=203.0.113.9"),
        ("forwarded", "for=198.51.100.1"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-for", "198.51.100.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "gopher"),
        ("x-real-ip", "203.0.113.9"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-scheme", "nothttps"),
        ("x-forwarded-server", "x"),
        ("x-forwarded-prefix", "/evil"),
        ("x-original-url", "/admin"),
        ("x-rewrite-url", "/admin"),
        ("x-http-method", "DELETE"),
        ("x-http-method-override", "DELETE"),
        ("x-method-override", "DELETE"),
        ("x-host", "evil.example"),
        ("x-original-host", "evil.example"),
        ("fly-client-ip", "203.0.113.9"),
        ("true-client-ip", "203.0.113.9"),
        ("proxy", "http://evil.example"),
        ("accept", "*/*"),
    ];

    fn forwarded(client: &str, trusted: bool) -> HeaderMap {
        let mut request = headers(FORWARDED_BY_PEER);
        let about = Forwarded {
            client: client.parse().unwrap(),
            scheme: Scheme::Https,
            authority: "a.example:8443",
            trusted,
        };
        set_forwarded(&mut request, about);
        request
    }

    #[test]
    fn a_clients_claims_are_replaced() {
        let request = forwarded("192.0.2.1", false);
        let expected = headers(&[
            ("accept", "*/*"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example:8443"),
            ("x-real-ip", "192.0.2.1"),
            (
                "forwarded",
                "for=192.0.2.1;proto=https;host=\"a.example:8443\"",
            ),
        ]);
        assert_eq!(request, expected);
        let request = forwarded("2001:db8::1", false);
        assert_eq!(request["x-forwarded-for"], "2001:db8::1");
        assert_eq!(
            request["forwarded"],
            "for=\"[2001:db8::1]\";proto=https;host=\"a.example:8443\""
        );
        let request = forwarded("::ffff:192.0.2.1", false);
        assert_eq!(request["x-forwarded-for"], "192.0.2.1");
    }

    #[test]
    fn a_trusted_proxys_word_is_extended() {
        let request = forwarded("192.0.2.1", true);
        let expected = headers(&[
            ("accept", "*/*"),
            ("x-forwarded-for", "203.0.113.9, 198.51.100.1, 192.0.2.1"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "evil.example"),
            ("x-real-ip", "203.0.113.9"),
            (
                "forwarded",
                "for=203.0.113.9, for=198.51.100.1, \
                 for=192.0.2.1;proto=https;host=\"a.example:8443\"",
            ),
        ]);
        assert_eq!(request, expected);
    }

    #[test]
    fn an_authority_cannot_leave_its_quotes() {
        let mut request = HeaderMap::new();
        let about = Forwarded {
            client: IpAddr::from([192, 0, 2, 1]),
            scheme: Scheme::Http,
            authority: "a\";for=\\x",
            trusted: false,
        };
        set_forwarded(&mut request, about);
        let expected = r#"for=192.0.2.1;proto=http;host="a\";for=\\x""#;
        assert_eq!(request["forwarded"], expected);
        let about = Forwarded {
            authority: "a\r\nx: y",
            ..about
        };
        set_forwarded(&mut request, about);
        assert_eq!(line(&request, "forwarded"), None);
        assert_eq!(line(&request, "x-forwarded-host"), None);
    }

    #[test]
    fn forwards_are_counted_down() {
        let cases = [
            ("0", MaxForwards::Exhausted),
            ("1", MaxForwards::Left(0)),
            ("010", MaxForwards::Left(9)),
            ("99999999999999999999", MaxForwards::Left(u32::MAX - 1)),
            ("", MaxForwards::Unlimited),
            ("-1", MaxForwards::Unlimited),
            ("1, 2", MaxForwards::Unlimited),
        ];
        for (value, expected) in cases {
            let request = headers(&[("max-forwards", value)]);
            assert_eq!(max_forwards(&request), expected, "{value}");
        }
        assert_eq!(max_forwards(&HeaderMap::new()), MaxForwards::Unlimited);
    }
}
