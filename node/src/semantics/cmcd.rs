//! What a player says it will ask for next (CMCD: CTA-5004 and its second version, keys `nor` and `nrr`),
//! and what an origin says will be asked for next (CMSD: CTA-5006, the same keys of `CMSD-Static`).
//!
//! Kept true here: of a dictionary, only the two keys are read, so that whatever else a player writes, well
//! or badly, does not matter. References are relative to the URL of the request, and are neither resolved
//! nor judged here. There are no more than [`MAX_OBJECTS`] of them.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::HeaderName;
use sfv::{BareItem, Item, List, ListEntry, Parser};

use super::range::{self, RangeSpec};
use super::reference::percent_decoded;

/// Objects that one message names, at most.
pub const MAX_OBJECTS: usize = 16;

/// Longest dictionary that is read, in bytes, as it stands in a field line or, decoded, in a query.
pub const MAX_BYTES: usize = 8 << 10;

/// The fields of a request. The keys belong into the first; players are free to send them in another.
pub const FIELDS: [HeaderName; 4] = [
    HeaderName::from_static("cmcd-request"),
    HeaderName::from_static("cmcd-object"),
    HeaderName::from_static("cmcd-status"),
    HeaderName::from_static("cmcd-session"),
];
const CMSD_STATIC: HeaderName = HeaderName::from_static("cmsd-static");

/// The query's parameter, in this spelling only.
const PARAMETER: &[u8] = b"CMCD";

/// Something that is likely to be asked for next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextObject {
    /// Relative to the URL of the request, without the percent-encoding that the value had; empty for the
    /// same URL.
    pub reference: Box<[u8]>,
    /// The bytes of it, where not all.
    pub range: Option<RangeSpec>,
}

/// What a request says will be asked for next, by its fields and its `target` (path and query).
pub fn next_objects(request: &HeaderMap, target: &[u8]) -> Vec<NextObject> {
    let mut keys = Keys::default();
    for name in &FIELDS {
        for line in request.get_all(name) {
            keys.read(line.as_bytes());
        }
    }
    for parameter in query(target).split(|&byte| byte == b'&') {
        if let Some(value) = value_of_cmcd(parameter) {
            // A plus stands for a blank in what forms write; one that is meant is escaped.
            let blanks: Vec<u8> = value
                .iter()
                .map(|&byte| if byte == b'+' { b' ' } else { byte })
                .collect();
            keys.read(&percent_decoded(&blanks));
        }
    }
    keys.objects()
}

/// Whether a request may say what will be asked for next: looks for the key's name only.
pub fn may_name_next(request: &HeaderMap, target: &[u8]) -> bool {
    let has_key = |text: &[u8]| memchr::memmem::find(text, b"nor").is_some();
    let in_fields = FIELDS.iter().any(|name| {
        request
            .get_all(name)
            .iter()
            .any(|line| has_key(line.as_bytes()))
    });
    in_fields
        || query(target)
            .split(|&byte| byte == b'&')
            .any(|parameter| value_of_cmcd(parameter).is_some_and(has_key))
}

/// What a response says will be asked for next (CTA-5006, `CMSD-Static`).
pub fn announced_objects(response: &HeaderMap) -> Vec<NextObject> {
    let mut keys = Keys::default();
    for line in response.get_all(CMSD_STATIC) {
        keys.read(line.as_bytes());
    }
    keys.objects()
}

/// `target` without the `CMCD` parameter, all else byte for byte: a question mark goes only where nothing
/// else stood behind it.
pub fn without_cmcd(target: &[u8]) -> Cow<'_, [u8]> {
    let query = query(target);
    let is_told = |parameter: &[u8]| value_of_cmcd(parameter).is_some();
    if !query.split(|&byte| byte == b'&').any(is_told) {
        return Cow::Borrowed(target);
    }
    let mut kept = target[..target.len() - query.len() - 1].to_vec();
    let others = query.split(|&byte| byte == b'&');
    let others = others.filter(|parameter| !is_told(parameter));
    for (at, parameter) in others.enumerate() {
        kept.push(if at == 0 { b'?' } else { b'&' });
        kept.extend_from_slice(parameter);
    }
    Cow::Owned(kept)
}

fn query(target: &[u8]) -> &[u8] {
    match memchr::memchr(b'?', target) {
        Some(mark) => &target[mark + 1..],
        None => &[],
    }
}

fn value_of_cmcd(parameter: &[u8]) -> Option<&[u8]> {
    match parameter.strip_prefix(PARAMETER)? {
        [] => Some(&[]),
        [b'=', value @ ..] => Some(value),
        _ => None,
    }
}

/// The two keys, as far as they were found.
#[derive(Default)]
struct Keys {
    objects: Vec<NextObject>,
    /// `nrr`: of the first object, or of the one that is being asked for.
    range: Option<RangeSpec>,
}

impl Keys {
    fn read(&mut self, dictionary: &[u8]) {
        if dictionary.len() > MAX_BYTES {
            return;
        }
        for member in members(dictionary) {
            let member = member.trim_ascii();
            if let Some(value) = member.strip_prefix(b"nor=") {
                self.read_objects(value.trim_ascii());
            } else if let Some(value) = member.strip_prefix(b"nrr=") {
                self.range = self
                    .range
                    .or_else(|| range_of(&texts(value.trim_ascii()).first()?.0));
            }
        }
    }

    fn read_objects(&mut self, value: &[u8]) {
        for (text, range) in texts(value) {
            if self.objects.len() == MAX_OBJECTS {
                return;
            }
            let object = NextObject {
                reference: percent_decoded(&text).into(),
                range: range.and_then(|range| range_of(&range)),
            };
            if !self.objects.contains(&object) {
                self.objects.push(object);
            }
        }
    }

    fn objects(mut self) -> Vec<NextObject> {
        match (self.range, self.objects.first_mut()) {
            (Some(range), Some(first)) => first.range = first.range.or(Some(range)),
            // Without an object, more of the same is meant.
            (Some(range), None) => self.objects.push(NextObject {
                reference: Box::default(),
                range: Some(range),
            }),
            (None, _) => {}
        }
        self.objects
    }
}

/// `12323-48763`, `12323-` or `-48763`, as in a `Range` of bytes.
fn range_of(text: &[u8]) -> Option<RangeSpec> {
    let text = text.trim_ascii();
    range::parse_spec(text.strip_prefix(b"bytes=").unwrap_or(text))
}

/// Members of a dictionary: what stands between commas outside of quotes and parentheses. What is left open
/// ends with its line.
fn members(dictionary: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    let mut depth = 0_u32;
    dictionary.split(move |&byte| {
        let was_escaped = std::mem::take(&mut escaped);
        match byte {
            b'"' if !was_escaped => quoted = !quoted,
            b'\\' if quoted && !was_escaped => escaped = true,
            b'(' if !quoted => depth += 1,
            b')' if !quoted => depth = depth.saturating_sub(1),
            b',' => return !quoted && depth == 0,
            _ => {}
        }
        false
    })
}

/// A string, and the range that stands with it.
type Text = (Box<[u8]>, Option<Box<[u8]>>);

/// The strings of a value, each with its range (parameter `r`): of an item or an inner list where it is a
/// structured field (RFC 9651), and else the whole as it stands.
fn texts(value: &[u8]) -> Vec<Text> {
    let Ok(list) = Parser::new(value).parse::<List>() else {
        let text = value.strip_prefix(b"\"").unwrap_or(value);
        let text = text.strip_suffix(b"\"").unwrap_or(text);
        let is_plain = !text.is_empty() && !text.iter().any(|byte| b"\"()".contains(byte));
        return is_plain.then(|| (text.into(), None)).into_iter().collect();
    };
    let mut found = Vec::new();
    for entry in &list {
        match entry {
            ListEntry::Item(item) => found.extend(text_of(item)),
            ListEntry::InnerList(inner) => found.extend(inner.items.iter().filter_map(text_of)),
        }
    }
    found
}

fn text_of(item: &Item) -> Option<Text> {
    let range = item.params.get("r").and_then(bare_text);
    Some((bare_text(&item.bare_item)?, range))
}

fn bare_text(item: &BareItem) -> Option<Box<[u8]>> {
    let text = match item {
        BareItem::String(text) => text.as_str(),
        BareItem::Token(token) => token.as_str(),
        BareItem::DisplayString(text) => text,
        _ => return None,
    };
    Some(text.as_bytes().into())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn shown(objects: &[NextObject]) -> Vec<String> {
        let objects = objects.iter().map(|object| {
            let reference = String::from_utf8_lossy(&object.reference);
            match object.range {
                None => reference.into_owned(),
                Some(RangeSpec::Span(first, Some(end))) => {
                    format!("{reference} {first}-{}", end - 1)
                }
                Some(RangeSpec::Span(first, None)) => format!("{reference} {first}-"),
                Some(RangeSpec::Suffix(bytes)) => format!("{reference} -{bytes}"),
            }
        });
        objects.collect()
    }

    /// Values of `nor` and `nrr`, in a field and in a query, in both dictionaries.
    #[test]
    fn what_comes_next() {
        #[rustfmt::skip]
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("bl=21300,br=3200,bs,cid=\"x\",d=4004,su,tb=6000", &[]),
            ("nor=\"seg2.m4v\"", &["seg2.m4v"]),
            ("nor=\"..%2F300kbps%2Fsegment35.m4v\"", &["../300kbps/segment35.m4v"]),
            ("bl=21300,nor=\"..%2F300kbps%2Fsegment35.m4v\",nrr=\"12323-48763\",su",
                &["../300kbps/segment35.m4v 12323-48763"]),
            ("nrr=\"12323-48763\"", &[" 12323-48763"]),
            ("nrr=\"100-\",nor=\"a\"", &["a 100-"]),
            ("nrr=\"-100\",nor=\"a\"", &["a -100"]),
            ("nrr=\"bytes=0-99\",nor=\"a\"", &["a 0-99"]),
            ("nrr=\"9-1\",nor=\"a\"", &["a"]),
            ("nrr=\"x\",nor=\"a\"", &["a"]),
            // The second version.
            ("nor=(\"a\" \"b%2Fc\")", &["a", "b/c"]),
            ("nor=(\"a\";r=\"0-99\" \"b\";r=\"100-\"),v=2", &["a 0-99", "b 100-"]),
            ("nor=(\"a\";r=\"0-99\";x=1 \"a\";r=\"100-199\")", &["a 0-99", "a 100-199"]),
            ("nor=(\"a\"  \"a\")", &["a"]),
            ("nor=()", &[]),
            ("nor=(\"a\" \"b\"),nrr=\"0-9\"", &["a 0-9", "b"]),
            ("nor=\"a\";r=\"0-9\"", &["a 0-9"]),
            // What players do otherwise.
            ("nor=seg2.m4v", &["seg2.m4v"]),
            ("nor=2.m4v", &["2.m4v"]),
            ("nor=../a/2.m4v, nrr=0-99", &["../a/2.m4v 0-99"]),
            ("Bad key, X=1.5.5, su=true, nor=\"a\"", &["a"]),
            (" nor=\"a\" , x", &["a"]),
            ("com.example-nor=\"x\",nor=\"a\"", &["a"]),
            ("cid=\"x,nor=y\",nor=\"a\"", &["a"]),
            ("cid=\"x\\\",nor=y\",nor=\"a\"", &["a"]),
            ("nor=\"é\"", &["é"]),
            ("nor=\"a", &["a"]),
            ("nor=\"a\",nor=\"b\"", &["a", "b"]),
            // Nothing that could be meant.
            ("nor", &[]),
            ("nor=", &[]),
            ("nor=(\"a\"", &[]),
            ("nor=(1 2)", &[]),
            ("nor=5", &[]),
            ("NOR=\"a\"", &[]),
            ("cid=\"never closed,nor=\"a\"", &[]),
        ];
        for (dictionary, expected) in cases {
            for name in ["cmcd-request", "cmcd-session"] {
                let mut request = HeaderMap::new();
                request.insert(
                    name,
                    HeaderValue::from_bytes(dictionary.as_bytes()).unwrap(),
                );
                assert_eq!(
                    shown(&next_objects(&request, b"/a")),
                    *expected,
                    "{dictionary}"
                );
            }
            let mut response = HeaderMap::new();
            response.insert(
                "cmsd-static",
                HeaderValue::from_bytes(dictionary.as_bytes()).unwrap(),
            );
            assert_eq!(
                shown(&announced_objects(&response)),
                *expected,
                "{dictionary}"
            );
            let encoded: String = dictionary
                .bytes()
                .map(|byte| format!("%{byte:02x}"))
                .collect();
            let target = format!("/a?x=1&CMCD={encoded}&y");
            let found = next_objects(&HeaderMap::new(), target.as_bytes());
            assert_eq!(shown(&found), *expected, "{dictionary}");
            assert_eq!(&*without_cmcd(target.as_bytes()), b"/a?x=1&y");
        }
    }

    #[test]
    fn a_query_is_decoded_and_then_its_value() {
        for (target, expected) in [
            ("/a?CMCD=nor%3D%22..%252Fb%22", &["../b"][..]),
            ("/a?CMCD=nor=%22b%252522%22", &["b%22"]),
            ("/a?CMCD=nor%3D(%22a%22+%22b%22)", &["a", "b"]),
            ("/a?CMCD=nor%3D%22a%252Bb%22", &["a+b"]),
            ("/a?cmcd=nor%3D%22b%22", &[]),
            ("/a?x=?CMCD=nor%3D%22b%22", &[]),
            ("/a&CMCD=nor%3D%22b%22", &[]),
            ("/a?CMCD=nor%3D%22b%22&CMCD=nor%3D%22c%22", &["b", "c"]),
        ] {
            let found = next_objects(&HeaderMap::new(), target.as_bytes());
            assert_eq!(shown(&found), expected, "{target}");
        }
    }

    #[test]
    fn the_rest_of_a_query_is_kept() {
        for (target, expected) in [
            ("/a", "/a"),
            ("/a?", "/a?"),
            ("/a?CMCD=x", "/a"),
            ("/a?CMCD", "/a"),
            ("/a?CMCD=", "/a"),
            ("/a?CMCD=x&", "/a?"),
            ("/a?&CMCD=x", "/a?"),
            ("/a?&CMCD=x&", "/a?&"),
            ("/a?b=1&CMCD=x", "/a?b=1"),
            ("/a?CMCD=x&b=%31&b=+", "/a?b=%31&b=+"),
            ("/a?b&CMCD=x&&c==&CMCD=y&d?CMCD=z", "/a?b&&c==&d?CMCD=z"),
            ("/a?cmcd=x", "/a?cmcd=x"),
            ("/a?CMCDx=1", "/a?CMCDx=1"),
            ("/a?xCMCD=1", "/a?xCMCD=1"),
            ("/a?%43MCD=1", "/a?%43MCD=1"),
            ("/CMCD=x", "/CMCD=x"),
        ] {
            let found = without_cmcd(target.as_bytes());
            assert_eq!(&*found, expected.as_bytes(), "{target}");
            let is_same = matches!(found, Cow::Borrowed(_));
            assert_eq!(is_same, target == expected, "{target}");
        }
    }

    #[test]
    fn objects_are_bounded() {
        let many: String = (0..100).map(|at| format!("\"{at}\" ")).collect();
        let mut request = HeaderMap::new();
        let value = format!("nor=({})", many.trim_end());
        request.insert("cmcd-request", HeaderValue::from_str(&value).unwrap());
        assert_eq!(next_objects(&request, b"/").len(), MAX_OBJECTS);
        let long = format!("nor=\"{}\"", "x".repeat(MAX_BYTES));
        request.insert("cmcd-request", HeaderValue::from_str(&long).unwrap());
        assert!(next_objects(&request, b"/").is_empty());
    }

    /// No bytes make it panic, and without the parameter there is none.
    #[test]
    fn any_bytes_are_borne() {
        const PIECES: [&str; 16] = [
            "CMCD", "=", "&", "?", "nor", "nrr", "\"", "(", ")", ";r=", "%22", "%2", ",", "\\",
            "0-9", "é",
        ];
        let mut state = 3_u64;
        let mut below = |bound: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % bound
        };
        for _ in 0..10_000 {
            let count = below(12);
            let text: String = (0..count).map(|_| PIECES[below(PIECES.len())]).collect();
            let target = format!("/a?CMCD={text}");
            next_objects(&HeaderMap::new(), target.as_bytes());
            let left = without_cmcd(target.as_bytes());
            assert_eq!(without_cmcd(&left), left, "{target}");
            let mut request = HeaderMap::new();
            request.insert(
                "cmcd-request",
                HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            );
            next_objects(&request, b"/");
        }
    }
}
