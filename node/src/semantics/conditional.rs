//! Validators and conditional requests (RFC 9110 §8.8, §13; RFC 9111 §4.3).
//!
//! What it keeps true:
//! - Bytes are joined, and `If-Range` holds, on a strong validator only; a weak one is good enough for
//!   a 304 and for nothing else.
//! - `If-None-Match` decides alone where it is present: a date never overrules an entity tag.
//! - What cannot be understood makes a condition that does not hold: the answer is then the whole.

use std::time::{Duration, SystemTime};

use http::header::{
    DATE, ETAG, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};

/// What identifies the representation of a response. A field that was sent twice counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    #[serde(with = "field_value")]
    etag: Option<HeaderValue>,
    #[serde(with = "field_value")]
    last_modified: Option<HeaderValue>,
}

/// What a client's conditions make of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// There is no condition, or it holds: the response goes out as it is.
    Proceed,
    /// The client has it: 304.
    NotModified,
}

impl Validators {
    pub fn from_headers(headers: &HeaderMap) -> Validators {
        Validators {
            etag: single(headers, &ETAG)
                .filter(|value| !value.is_empty())
                .cloned(),
            last_modified: single(headers, &LAST_MODIFIED)
                .filter(|value| !value.is_empty())
                .cloned(),
        }
    }

    /// Whether equality with another means equality of every byte. Only a strong, non-empty entity
    /// tag does: a date would need proof that nothing changed twice in its second
    /// (RFC 9110 §8.8.2.2), and `""` is what broken generators send for everything.
    pub fn is_strong(&self) -> bool {
        matches!(self.entity_tag(), Some(tag) if !tag.weak && !tag.opaque.is_empty())
    }

    /// Whether bytes of one may be joined to bytes of the other (RFC 9111 §3.4).
    pub fn same_representation(&self, other: &Validators) -> bool {
        self.is_strong() && self.etag == other.etag
    }

    /// The value that makes a range request safe to join to what is held, if there is one.
    pub fn if_range(&self) -> Option<HeaderValue> {
        self.etag.clone().filter(|_| self.is_strong())
    }

    /// The field's value as received, well formed or not.
    pub fn etag(&self) -> Option<&HeaderValue> {
        self.etag.as_ref()
    }

    /// The field's value as received, well formed or not.
    pub fn last_modified(&self) -> Option<&HeaderValue> {
        self.last_modified.as_ref()
    }

    /// Whether anything is there to ask the origin about.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    pub(super) fn entity_tag(&self) -> Option<EntityTag<'_>> {
        EntityTag::parse(self.etag.as_ref()?.as_bytes())
    }

    fn modified_at(&self) -> Option<SystemTime> {
        http_date(self.last_modified.as_ref()?)
    }
}

/// RFC 9111 §4.3.1: makes `upstream` ask whether what is held still stands. The client's own
/// conditions are taken out, because the answer is for the cache.
pub fn conditional_request(upstream: &mut HeaderMap, stored: &Validators) {
    for name in [
        IF_MATCH,
        IF_NONE_MATCH,
        IF_MODIFIED_SINCE,
        IF_UNMODIFIED_SINCE,
        IF_RANGE,
    ] {
        upstream.remove(name);
    }
    if let Some(etag) = stored.etag.as_ref().filter(|etag| is_askable(etag)) {
        upstream.insert(IF_NONE_MATCH, etag.clone());
    }
    // An origin that knows no entity tags goes by the date, another ignores it (RFC 9110 §13.1.3).
    if let Some(modified) = &stored.last_modified
        && http_date(modified).is_some()
    {
        upstream.insert(IF_MODIFIED_SINCE, modified.clone());
    }
}

/// Judges a GET or HEAD of a client against a stored 2xx response (RFC 9110 §13.2.2, RFC 9111
/// §4.3.2); a stored response of another status ignores conditions. `received_at` is when the stored
/// response arrived; it stands in for `Last-Modified` where `Date` is absent too.
pub fn evaluate(
    request: &HeaderMap,
    stored: &Validators,
    stored_headers: &HeaderMap,
    received_at: SystemTime,
) -> Conditional {
    if request.contains_key(IF_NONE_MATCH) {
        return none_match(request, stored);
    }
    if !request.contains_key(IF_MODIFIED_SINCE) {
        return Conditional::Proceed;
    }
    let Some(since) = single(request, &IF_MODIFIED_SINCE).and_then(http_date) else {
        return Conditional::Proceed;
    };
    let modified = match stored.modified_at() {
        Some(modified) => modified,
        None => single(stored_headers, &DATE)
            .and_then(http_date)
            .unwrap_or(received_at),
    };
    if modified <= since {
        Conditional::NotModified
    } else {
        Conditional::Proceed
    }
}

/// Whether a `Range` of this request may be answered from the stored response (RFC 9110 §13.1.5);
/// true where there is no `If-Range`.
pub fn if_range_holds(
    request: &HeaderMap,
    stored: &Validators,
    stored_headers: &HeaderMap,
) -> bool {
    if !request.contains_key(IF_RANGE) {
        return true;
    }
    let Some(condition) = single(request, &IF_RANGE) else {
        return false;
    };
    if let Some(asked) = EntityTag::parse(condition.as_bytes()) {
        return stored
            .entity_tag()
            .is_some_and(|held| held.matches_strongly(asked));
    }
    let (Some(asked), Some(modified)) = (http_date(condition), stored.modified_at()) else {
        return false;
    };
    let generated = single(stored_headers, &DATE).and_then(http_date);
    let is_strong = generated
        .and_then(|generated| generated.duration_since(modified).ok())
        .is_some_and(|gap| gap >= Duration::from_secs(1));
    asked == modified && is_strong
}

/// `If-Match` and `If-Unmodified-Since` are for the origin to judge: such a request is forwarded
/// (RFC 9111 §4.3.2).
pub fn has_unconditional_preconditions(request: &HeaderMap) -> bool {
    request.contains_key(IF_MATCH) || request.contains_key(IF_UNMODIFIED_SINCE)
}

/// An entity tag within its field (RFC 9110 §8.8.3). Some origins put blanks into it: what stands
/// between the quotes is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntityTag<'a> {
    pub weak: bool,
    /// Without the quotes.
    pub opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    /// Reads a field that is one entity tag and nothing else.
    pub(super) fn parse(value: &'a [u8]) -> Option<EntityTag<'a>> {
        let (tag, rest) = EntityTag::split_first(value.trim_ascii())?;
        rest.is_empty().then_some(tag)
    }

    /// Reads the entity tag at the very start, and gives what follows it.
    fn split_first(text: &'a [u8]) -> Option<(EntityTag<'a>, &'a [u8])> {
        let (weak, text) = match text.strip_prefix(b"W/") {
            Some(text) => (true, text),
            None => (false, text),
        };
        let text = text.strip_prefix(b"\"")?;
        let end = memchr::memchr(b'"', text)?;
        let opaque = &text[..end];
        Some((EntityTag { weak, opaque }, &text[end + 1..]))
    }

    pub(super) fn matches_weakly(self, other: EntityTag<'_>) -> bool {
        self.opaque == other.opaque
    }

    fn matches_strongly(self, other: EntityTag<'_>) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }
}

fn none_match(request: &HeaderMap, stored: &Validators) -> Conditional {
    let held = stored.entity_tag();
    let mut lines = request.get_all(IF_NONE_MATCH).iter();
    let found = lines.any(|line| {
        let line = line.as_bytes().trim_ascii();
        // A malformed tag is still the same tag when the client returns it exactly.
        line == b"*"
            || stored
                .etag
                .as_ref()
                .is_some_and(|etag| etag.as_bytes() == line)
            || held.is_some_and(|held| lists(line, held))
    });
    if found {
        Conditional::NotModified
    } else {
        Conditional::Proceed
    }
}

/// Whether a list of entity tags has one that matches weakly. A member that is none is passed over.
fn lists(mut line: &[u8], held: EntityTag<'_>) -> bool {
    loop {
        while let [b' ' | b'\t' | b',', rest @ ..] = line {
            line = rest;
        }
        if line.is_empty() {
            return false;
        }
        if let Some((tag, rest)) = EntityTag::split_first(line) {
            let rest = rest.trim_ascii_start();
            if rest.first().is_none_or(|&next| next == b',') {
                if tag.matches_weakly(held) {
                    return true;
                }
                line = rest;
                continue;
            }
        }
        match memchr::memchr(b',', line) {
            Some(comma) => line = &line[comma + 1..],
            None => return false,
        }
    }
}

/// Whether an origin would read this value, put into `If-None-Match`, as this one tag. `*` or a list
/// would ask for something else, and be answered with a 304 for any representation.
fn is_askable(etag: &HeaderValue) -> bool {
    let bytes = etag.as_bytes();
    EntityTag::parse(bytes).is_some() || !bytes.iter().any(|byte| matches!(byte, b'*' | b','))
}

/// The field's only line; none if there are several.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    lines.next().is_none().then_some(first)
}

pub(super) fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?.trim()).ok()
}

mod field_value {
    use http::HeaderValue;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(
        value: &Option<HeaderValue>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value
            .as_ref()
            .map(HeaderValue::as_bytes)
            .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<HeaderValue>, D::Error> {
        Option::<Vec<u8>>::deserialize(deserializer)?
            .map(|bytes| HeaderValue::try_from(bytes).map_err(D::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE_1: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
    const DATE_2: &str = "Wed, 01 Jan 2020 00:00:01 GMT";
    const DATE_3: &str = "Wed, 01 Jan 2020 00:00:02 GMT";
    const DATE_1_RFC850: &str = "Wednesday, 01-Jan-20 00:00:00 GMT";
    const DATE_1_ASCTIME: &str = "Wed Jan  1 00:00:00 2020";

    type Fields = &'static [(&'static str, &'static str)];

    fn headers(fields: Fields) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for &(name, value) in fields {
            // Not from_static, which refuses what an origin may well send.
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn validators(fields: Fields) -> Validators {
        Validators::from_headers(&headers(fields))
    }

    fn judge(request: Fields, stored: Fields) -> Conditional {
        let stored = headers(stored);
        let received_at = httpdate::parse_http_date(DATE_3).unwrap();
        evaluate(
            &headers(request),
            &Validators::from_headers(&stored),
            &stored,
            received_at,
        )
    }

    #[test]
    fn if_none_match() {
        #[rustfmt::skip]
        let not_modified: &[(Fields, &str)] = &[
            (&[("if-none-match", "\"abcdef\"")], "\"abcdef\""),
            (&[("if-none-match", "\"abcdefü\"")], "\"abcdefü\""),
            (&[("if-none-match", "W/\"abcdef\"")], "W/\"abcdef\""),
            (&[("if-none-match", "W/\"abcdef\"")], "\"abcdef\""),
            (&[("if-none-match", "\"abcdef\"")], "W/\"abcdef\""),
            (&[("if-none-match", "\"abcdef\", \"1234\", \"5678\"")], "\"abcdef\""),
            (&[("if-none-match", "\"1234\", \"abcdef\", \"5678\"")], "\"abcdef\""),
            (&[("if-none-match", "\"1234\", \"5678\", \"abcdef\"")], "\"abcdef\""),
            (&[("if-none-match", "\"1234\""), ("if-none-match", "\"abcdef\"")], "\"abcdef\""),
            (&[("if-none-match", ",, \"1\"\t,W/\"abcdef\",")], "\"abcdef\""),
            (&[("if-none-match", "\"a,b\",\"c\"")], "\"a,b\""),
            (&[("if-none-match", "junk, \"abcdef\"")], "\"abcdef\""),
            (&[("if-none-match", "*")], "\"abcdef\""),
            (&[("if-none-match", "\"\"")], "\"\""),
            // Malformed, but returned as it was sent.
            (&[("if-none-match", "abcdef")], "abcdef"),
            (&[("if-none-match", "w/\"abcdef\"")], "w/\"abcdef\""),
            (&[("if-none-match", "W\\\"abcdef\"")], "W\\\"abcdef\""),
            (&[("if-none-match", "W\"abcdef\"")], "W\"abcdef\""),
            // The tag wins over a date that would have it changed.
            (&[("if-none-match", "\"abcdef\""), ("if-modified-since", DATE_1)], "\"abcdef\""),
        ];
        #[rustfmt::skip]
        let proceed: &[(Fields, &str)] = &[
            (&[], "\"abcdef\""),
            (&[("if-none-match", "")], "\"abcdef\""),
            (&[("if-none-match", ",")], "\"abcdef\""),
            (&[("if-none-match", "\"abcde\"")], "\"abcdef\""),
            (&[("if-none-match", "\"ABCDEF\"")], "\"abcdef\""),
            (&[("if-none-match", "\"x, \"abcdef\"y")], "\"abcdef\""),
            (&[("if-none-match", "\"abcdef")], "\"abcdef\""),
            (&[("if-none-match", "W/")], "\"abcdef\""),
            (&[("if-none-match", "\"x\", *")], "\"abcdef\""),
            (&[("if-none-match", "\"abcdef\"junk")], "\"abcdef\""),
            // The tag wins over a date that would have it unchanged.
            (&[("if-none-match", "\"x\""), ("if-modified-since", DATE_3)], "\"abcdef\""),
        ];
        for (cases, expected) in [
            (not_modified, Conditional::NotModified),
            (proceed, Conditional::Proceed),
        ] {
            for (request, etag) in cases {
                let mut stored = headers(&[("last-modified", DATE_2), ("date", DATE_3)]);
                stored.insert(ETAG, HeaderValue::from_bytes(etag.as_bytes()).unwrap());
                let validators = Validators::from_headers(&stored);
                let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(2_000_000_000);
                let found = evaluate(&headers(request), &validators, &stored, now);
                assert_eq!(found, expected, "{request:?} {etag}");
            }
        }
        let stored = &[("last-modified", DATE_1)];
        assert_eq!(
            judge(&[("if-none-match", "\"a\"")], stored),
            Conditional::Proceed
        );
        assert_eq!(
            judge(&[("if-none-match", "*")], stored),
            Conditional::NotModified
        );
    }

    #[test]
    fn if_modified_since() {
        #[rustfmt::skip]
        let cases: &[(Fields, Fields, Conditional)] = &[
            (&[("if-modified-since", DATE_2)], &[("last-modified", DATE_2)], Conditional::NotModified),
            (&[("if-modified-since", DATE_3)], &[("last-modified", DATE_2)], Conditional::NotModified),
            (&[("if-modified-since", DATE_1)], &[("last-modified", DATE_2)], Conditional::Proceed),
            (&[("if-modified-since", DATE_1_RFC850)], &[("last-modified", DATE_1)], Conditional::NotModified),
            (&[("if-modified-since", DATE_1_ASCTIME)], &[("last-modified", DATE_1)], Conditional::NotModified),
            // Date, then the time of arrival, stand in for Last-Modified.
            (&[("if-modified-since", DATE_2)], &[("date", DATE_2)], Conditional::NotModified),
            (&[("if-modified-since", DATE_1)], &[("date", DATE_2)], Conditional::Proceed),
            (&[("if-modified-since", DATE_3)], &[], Conditional::NotModified),
            (&[("if-modified-since", DATE_2)], &[], Conditional::Proceed),
            (&[("if-modified-since", DATE_3)], &[("last-modified", "yesterday"), ("date", DATE_2)], Conditional::NotModified),
            // Not a date, or two of them.
            (&[("if-modified-since", "0")], &[("last-modified", DATE_1)], Conditional::Proceed),
            (&[("if-modified-since", "")], &[("last-modified", DATE_1)], Conditional::Proceed),
            (&[("if-modified-since", "yesterday")], &[("last-modified", "yesterday")], Conditional::Proceed),
            (&[("if-modified-since", DATE_3), ("if-modified-since", DATE_3)], &[("last-modified", DATE_1)], Conditional::Proceed),
        ];
        for &(request, stored, expected) in cases {
            assert_eq!(judge(request, stored), expected, "{request:?} {stored:?}");
        }
    }

    #[test]
    fn if_range() {
        let dated: Fields = &[("last-modified", DATE_1), ("date", DATE_2)];
        #[rustfmt::skip]
        let cases: &[(Fields, Fields, bool)] = &[
            (&[], &[], true),
            (&[("if-range", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-range", "\"a\"")], &[("etag", "\"b\"")], false),
            (&[("if-range", "\"a\"")], &[("etag", "W/\"a\"")], false),
            (&[("if-range", "W/\"a\"")], &[("etag", "W/\"a\"")], false),
            (&[("if-range", "W/\"a\"")], &[("etag", "\"a\"")], false),
            (&[("if-range", "\"a\"")], dated, false),
            (&[("if-range", "a")], &[("etag", "a")], false),
            (&[("if-range", "*")], &[("etag", "\"a\"")], false),
            (&[("if-range", "")], &[("etag", "\"a\"")], false),
            (&[("if-range", "\"a\", \"b\"")], &[("etag", "\"a\"")], false),
            (&[("if-range", "\"a\""), ("if-range", "\"a\"")], &[("etag", "\"a\"")], false),
            (&[("if-range", DATE_1)], dated, true),
            (&[("if-range", DATE_2)], dated, false),
            (&[("if-range", DATE_1)], &[("last-modified", DATE_1)], false),
            (&[("if-range", DATE_1)], &[("last-modified", DATE_1), ("date", DATE_1)], false),
            (&[("if-range", DATE_2)], &[("last-modified", DATE_2), ("date", DATE_1)], false),
        ];
        for &(request, stored, expected) in cases {
            let stored_headers = headers(stored);
            let held = Validators::from_headers(&stored_headers);
            let found = if_range_holds(&headers(request), &held, &stored_headers);
            assert_eq!(found, expected, "{request:?} {stored:?}");
        }
    }

    #[test]
    fn strength() {
        #[rustfmt::skip]
        let cases: &[(Fields, bool)] = &[
            (&[("etag", "\"a\"")], true),
            (&[("etag", "\"a b, c\"")], true),
            (&[("etag", "W/\"a\"")], false),
            (&[("etag", "w/\"a\"")], false),
            (&[("etag", "a")], false),
            (&[("etag", "")], false),
            (&[("etag", "\"\"")], false),
            (&[("etag", "\"")], false),
            (&[("etag", "\"a\"b\"")], false),
            (&[("etag", "\"a\""), ("etag", "\"a\"")], false),
            (&[("last-modified", DATE_1), ("date", DATE_3)], false),
            (&[], false),
        ];
        for &(fields, expected) in cases {
            let found = validators(fields);
            assert_eq!(found.is_strong(), expected, "{fields:?}");
            assert_eq!(found.same_representation(&found.clone()), expected);
            assert_eq!(found.if_range().is_some(), expected);
        }
        let (a, b) = (
            validators(&[("etag", "\"a\"")]),
            validators(&[("etag", "\"b\"")]),
        );
        assert!(!a.same_representation(&b));
        assert!(!a.same_representation(&validators(&[("etag", "W/\"a\"")])));
        assert!(!a.same_representation(&Validators::default()));
    }

    #[test]
    fn conditional_requests() {
        #[rustfmt::skip]
        let cases: &[(Fields, Fields)] = &[
            (&[("etag", "\"a\"")], &[("if-none-match", "\"a\"")]),
            (&[("etag", "W/\"a\"")], &[("if-none-match", "W/\"a\"")]),
            (&[("etag", "a")], &[("if-none-match", "a")]),
            (&[("etag", "*")], &[]),
            (&[("etag", "\"a\", \"b\"")], &[]),
            (&[("last-modified", DATE_1)], &[("if-modified-since", DATE_1)]),
            (&[("last-modified", "yesterday")], &[]),
            (&[("etag", "\"a\""), ("last-modified", DATE_1)],
             &[("if-none-match", "\"a\""), ("if-modified-since", DATE_1)]),
            (&[], &[]),
        ];
        for &(stored, expected) in cases {
            let mut upstream = headers(&[
                ("if-match", "\"x\""),
                ("if-none-match", "\"x\""),
                ("if-none-match", "\"y\""),
                ("if-modified-since", DATE_3),
                ("if-unmodified-since", DATE_3),
                ("if-range", "\"x\""),
            ]);
            conditional_request(&mut upstream, &validators(stored));
            assert_eq!(upstream, headers(expected), "{stored:?}");
        }
    }

    #[test]
    fn preconditions_of_writers_are_forwarded() {
        assert!(has_unconditional_preconditions(&headers(&[(
            "if-match", "*"
        )])));
        assert!(has_unconditional_preconditions(&headers(&[(
            "if-unmodified-since",
            DATE_1
        )])));
        assert!(!has_unconditional_preconditions(&headers(&[(
            "if-none-match",
            "*"
        )])));
    }

    #[test]
    fn validators_survive_serialisation() {
        for fields in [
            &[][..],
            &[("etag", "\"ü\"")],
            &[("etag", "\"a\""), ("last-modified", DATE_1)],
        ] {
            let held = validators(fields);
            let bytes = postcard::to_stdvec(&held).unwrap();
            assert_eq!(postcard::from_bytes::<Validators>(&bytes).unwrap(), held);
        }
        assert!(postcard::from_bytes::<Validators>(&[1, 1, b'\n', 0]).is_err());
    }
}
