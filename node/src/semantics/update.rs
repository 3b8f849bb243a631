//! What a newer answer changes in a stored head (RFC 9111 §3.2, §4.3.4, §4.3.5).
//!
//! What it keeps true: a stored body keeps the fields that say what its bytes are, whatever a later
//! 304 or HEAD claims; everything else is as new as the newest answer.

use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderValue};

use super::conditional::{EntityTag, Validators, http_date};
use super::hop;

/// Field lines beyond which a stored head does not grow: one 304 after another could add to it without
/// end.
const FIELDS_MAX: usize = 512;

/// Takes over the fields of `news`, an answer that [`selects_stored`] or [`head_agrees`] found to be
/// about the stored response.
pub fn update_head(stored: &mut HeaderMap, news: &HeaderMap) {
    let nominated = hop::nominated(news);
    // The age of the stored response starts anew (RFC 9111 §4).
    stored.remove(AGE);
    for name in news.keys() {
        if describes_bytes(name) || hop::is_hop_by_hop(name) || nominated.contains(name) {
            continue;
        }
        // It is the same tag, or a weaker form of it: what the bytes were received under stays.
        if name == ETAG && stored.contains_key(ETAG) {
            continue;
        }
        let held = stored.get_all(name).iter().count();
        let grown = news.get_all(name).iter().count().saturating_sub(held);
        if grown > 0 && stored.len() + grown > FIELDS_MAX {
            continue;
        }
        let mut lines = news.get_all(name).iter();
        if let Some(first) = lines.next() {
            stored.insert(name, first.clone());
        }
        for line in lines {
            stored.append(name, line.clone());
        }
    }
}

/// Whether a 304, answering a request that asked about the stored response alone, is about it
/// (RFC 9111 §4.3.4). One without validators is: nothing else was asked about.
pub fn selects_stored(news: &HeaderMap, stored: &Validators) -> bool {
    if is_ambiguous(news) {
        return false;
    }
    let new = Validators::from_headers(news);
    let dates = (new.last_modified(), stored.last_modified());
    match (new.etag(), stored.etag()) {
        (Some(new), Some(held)) => is_same_tag(new, held),
        (Some(_), None) if new.is_strong() => false,
        (Some(_), None) => matches!(dates, (Some(new), Some(held)) if is_same_date(new, held)),
        (None, _) => match dates {
            (Some(new), Some(held)) => is_same_date(new, held),
            _ => true,
        },
    }
}

/// Whether the 200 to a HEAD describes the stored response to GET, of `length` bytes, so that it may
/// freshen it (RFC 9111 §4.3.5). A stored response it does not describe is outdated.
pub fn head_agrees(news: &HeaderMap, stored: &Validators, length: Option<u64>) -> bool {
    if is_ambiguous(news) {
        return false;
    }
    let new = Validators::from_headers(news);
    let is_same_tag = new.etag().is_none() || new.etag() == stored.etag();
    let is_same_date = match (new.last_modified(), stored.last_modified()) {
        (None, _) => true,
        (Some(new), Some(held)) => is_same_date(new, held),
        (Some(_), None) => false,
    };
    let mut announced = news.get_all(CONTENT_LENGTH).iter().map(decimal);
    let is_same_length =
        length.is_none_or(|length| announced.all(|announced| announced == Some(length)));
    is_same_tag && is_same_date && is_same_length
}

/// Whether a field of which there is one at most was sent twice.
fn is_ambiguous(news: &HeaderMap) -> bool {
    [ETAG, LAST_MODIFIED]
        .iter()
        .any(|name| news.get_all(name).iter().nth(1).is_some())
}

/// Fields that belong to the stored bytes: those RFC 9111 §3.2 excepts, and checksums of content.
fn describes_bytes(name: &HeaderName) -> bool {
    [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE].contains(name)
        || matches!(
            name.as_str(),
            "content-md5" | "digest" | "content-digest" | "repr-digest"
        )
}

/// A strong tag selects the same strong tag. It also selects the weak form of itself: origins that
/// code content on the way out weaken the tag of a 200 but not that of the 304 they answer with.
fn is_same_tag(new: &HeaderValue, held: &HeaderValue) -> bool {
    let tags = (
        EntityTag::parse(new.as_bytes()),
        EntityTag::parse(held.as_bytes()),
    );
    match tags {
        (Some(new), Some(held)) => new.matches_weakly(held),
        _ => new == held,
    }
}

fn is_same_date(new: &HeaderValue, held: &HeaderValue) -> bool {
    new == held || http_date(new).is_some_and(|new| http_date(held) == Some(new))
}

fn decimal(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = &'static [(&'static str, &'static str)];

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|&(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn appended(fields: Fields) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for &(name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_304_updates_all_but_what_describes_the_bytes() {
        let updated = [
            "cache-control",
            "clear-site-data",
            "content-foo",
            "content-location",
            "content-security-policy",
            "content-type",
            "date",
            "expires",
            "last-modified",
            "public-key-pins",
            "set-cookie",
            "set-cookie2",
            "test-header",
            "vary",
            "via",
            "x-content-foo",
            "x-frame-options",
            "x-xss-protection",
        ];
        let kept = [
            "connection",
            "content-digest",
            "content-encoding",
            "content-length",
            "content-md5",
            "content-range",
            "digest",
            "etag",
            "keep-alive",
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
            "proxy-connection",
            "repr-digest",
            "te",
            "transfer-encoding",
            "upgrade",
        ];
        for (names, expected) in [(&updated[..], "new"), (&kept[..], "old")] {
            for &name in names {
                let mut stored = headers(&[(name, "old"), ("other", "stays")]);
                update_head(&mut stored, &headers(&[(name, "new")]));
                assert_eq!(stored[name], expected, "{name}");
                assert_eq!(stored["other"], "stays");
            }
        }
    }

    #[test]
    fn hop_by_hop_fields_of_a_304_are_not_added() {
        let mut stored = headers(&[("a", "1")]);
        let news = headers(&[
            ("connection", "b, cache-control"),
            ("b", "2"),
            ("cache-control", "no-store"),
            ("keep-alive", "9"),
            ("content-encoding", "gzip"),
        ]);
        update_head(&mut stored, &news);
        assert_eq!(
            stored,
            headers(&[("a", "1"), ("cache-control", "no-store")])
        );
    }

    #[test]
    fn all_lines_of_a_field_are_replaced() {
        let mut stored = appended(&[("link", "a"), ("link", "b"), ("vary", "x"), ("age", "30")]);
        update_head(
            &mut stored,
            &appended(&[("link", "c"), ("link", "d"), ("etag", "\"e\"")]),
        );
        let links: Vec<_> = stored.get_all("link").iter().collect();
        assert_eq!(links, ["c", "d"]);
        assert_eq!(stored["vary"], "x");
        assert_eq!(stored["etag"], "\"e\"");
        assert!(!stored.contains_key("age"));
        update_head(&mut stored, &appended(&[("age", "2")]));
        assert_eq!(stored["age"], "2");
    }

    #[test]
    fn a_head_stops_growing() {
        let mut stored = HeaderMap::new();
        for round in 0..8 {
            let mut news = HeaderMap::new();
            for field in 0..200 {
                let name = HeaderName::try_from(format!("x-{}", (round * 200 + field) / 3));
                news.append(name.unwrap(), HeaderValue::from_static("1"));
            }
            update_head(&mut stored, &news);
        }
        assert!(stored.len() <= FIELDS_MAX, "{}", stored.len());
    }

    const DATE: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
    const DATE_850: &str = "Wednesday, 01-Jan-20 00:00:00 GMT";
    const LATER: &str = "Wed, 01 Jan 2020 00:00:01 GMT";

    #[test]
    fn a_304_selects_by_validators() {
        #[rustfmt::skip]
        let cases: &[(Fields, Fields, bool)] = &[
            // 304 / stored
            (&[], &[], true),
            (&[], &[("etag", "\"a\"")], true),
            (&[], &[("last-modified", DATE)], true),
            (&[("etag", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("etag", "\"a\"")], &[("etag", "\"b\"")], false),
            (&[("etag", "\"a\"")], &[("etag", "W/\"a\"")], true),
            (&[("etag", "\"a\"")], &[("last-modified", DATE)], false),
            (&[("etag", "\"a\""), ("last-modified", DATE)], &[("last-modified", DATE)], false),
            (&[("etag", "W/\"a\"")], &[("etag", "\"a\"")], true),
            (&[("etag", "W/\"a\"")], &[("etag", "W/\"a\"")], true),
            (&[("etag", "W/\"a\"")], &[("etag", "W/\"b\"")], false),
            (&[("etag", "W/\"a\"")], &[], false),
            (&[("etag", "W/\"a\""), ("last-modified", DATE)], &[("last-modified", DATE)], true),
            (&[("etag", "a")], &[("etag", "a")], true),
            (&[("etag", "a")], &[("etag", "\"a\"")], false),
            (&[("etag", "\"a\""), ("etag", "\"b\"")], &[("etag", "\"a\"")], false),
            (&[("etag", "\"a\""), ("last-modified", LATER)], &[("etag", "\"a\""), ("last-modified", DATE)], true),
            (&[("last-modified", DATE)], &[("last-modified", DATE)], true),
            (&[("last-modified", DATE_850)], &[("last-modified", DATE)], true),
            (&[("last-modified", LATER)], &[("last-modified", DATE)], false),
            (&[("last-modified", LATER)], &[("etag", "\"a\""), ("last-modified", DATE)], false),
            (&[("last-modified", DATE)], &[("etag", "\"a\"")], true),
            (&[("last-modified", "never")], &[("last-modified", DATE)], false),
        ];
        for &(news, stored, expected) in cases {
            let held = Validators::from_headers(&appended(stored));
            assert_eq!(
                selects_stored(&appended(news), &held),
                expected,
                "{news:?} {stored:?}"
            );
        }
    }

    #[test]
    fn a_head_answer_agrees_or_outdates() {
        let stored: Fields = &[("etag", "\"a\""), ("last-modified", DATE)];
        #[rustfmt::skip]
        let cases: &[(Fields, Fields, Option<u64>, bool)] = &[
            // HEAD / stored
            (&[], &[], Some(5), true),
            (&[], stored, Some(5), true),
            (&[("content-length", "5")], stored, Some(5), true),
            (&[("content-length", "6")], stored, Some(5), false),
            (&[("content-length", "+5")], stored, Some(5), false),
            (&[("content-length", "5"), ("content-length", "6")], stored, Some(5), false),
            (&[("content-length", "99999999999999999999")], stored, Some(5), false),
            (&[("content-length", "6")], stored, None, true),
            (&[("etag", "\"a\""), ("content-length", "5")], stored, Some(5), true),
            (&[("etag", "\"b\"")], stored, Some(5), false),
            (&[("etag", "W/\"a\"")], stored, Some(5), false),
            (&[("etag", "\"a\"")], &[], Some(5), false),
            (&[("last-modified", DATE)], stored, Some(5), true),
            (&[("last-modified", DATE_850)], stored, Some(5), true),
            (&[("last-modified", LATER)], stored, Some(5), false),
            (&[("etag", "\"a\""), ("last-modified", LATER)], stored, Some(5), false),
            (&[("last-modified", DATE)], &[], Some(5), false),
            (&[("etag", "\"a\""), ("etag", "\"a\"")], stored, Some(5), false),
        ];
        for &(news, stored, length, expected) in cases {
            let held = Validators::from_headers(&appended(stored));
            assert_eq!(
                head_agrees(&appended(news), &held, length),
                expected,
                "{news:?} {stored:?} {length:?}"
            );
        }
    }
}
