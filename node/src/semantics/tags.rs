//! By what a response can be found again other than by its URL: `Surrogate-Key`, `Cache-Tag` and
//! `Cache-Groups` (RFC 9875 §2).
//!
//! Kept true here: names are compared byte for byte, case and all. A response has no more than
//! [`MAX_TAGS`] of them; those beyond, and those longer than [`MAX_TAG_BYTES`], are as if not there.

use http::HeaderMap;
use http::header::HeaderName;
use sfv::{BareItem, List, ListEntry, Parser};

/// Tags and groups of one response, at most.
pub const MAX_TAGS: usize = 128;

/// Longest tag, in bytes.
pub const MAX_TAG_BYTES: usize = 256;

const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// What a stored response is tagged with, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Of `Surrogate-Key` and `Cache-Tag`: for operators, across hosts.
    pub tags: Box<[Box<[u8]>]>,
    /// Of `Cache-Groups`: within one origin (scheme and authority).
    pub groups: Box<[Box<[u8]>]>,
}

impl Tags {
    pub fn from_headers(headers: &HeaderMap) -> Tags {
        let mut tags = Vec::new();
        for line in headers.get_all(SURROGATE_KEY) {
            collect(&mut tags, line.as_bytes().split(u8::is_ascii_whitespace));
        }
        for line in headers.get_all(CACHE_TAG) {
            collect(&mut tags, line.as_bytes().split(|&byte| byte == b','));
        }
        let mut groups = groups(headers, &CACHE_GROUPS);
        groups.truncate(MAX_TAGS - tags.len());
        Tags {
            tags: tags.into(),
            groups: groups.into(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.groups.is_empty()
    }
}

/// The tags that a `PURGE` request names in `Surrogate-Key`: all of them, as many as its head has room for.
pub fn named_tags(request: &HeaderMap) -> Vec<Box<[u8]>> {
    let lines = request.get_all(SURROGATE_KEY).iter();
    let mut tags: Vec<Box<[u8]>> = lines
        .flat_map(|line| line.as_bytes().split(u8::is_ascii_whitespace))
        .filter(|tag| !tag.is_empty())
        .map(Box::from)
        .collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

/// The groups that an answer to an unsafe request invalidates (RFC 9875 §3).
pub fn invalidated_groups(response: &HeaderMap) -> Vec<Box<[u8]>> {
    groups(response, &CACHE_GROUP_INVALIDATION)
}

/// Strings of a structured list; of one that cannot be parsed, none (RFC 9651 §4.2).
fn groups(headers: &HeaderMap, name: &HeaderName) -> Vec<Box<[u8]>> {
    let mut groups = Vec::new();
    let mut lines = headers.get_all(name).iter();
    let Some(first) = lines.next() else {
        return groups;
    };
    let mut whole = first.as_bytes().to_vec();
    for line in lines {
        whole.extend_from_slice(b", ");
        whole.extend_from_slice(line.as_bytes());
    }
    let Ok(list) = Parser::new(&whole).parse::<List>() else {
        return groups;
    };
    for entry in &list {
        if let ListEntry::Item(item) = entry
            && let BareItem::String(text) = &item.bare_item
        {
            collect(&mut groups, [text.as_str().as_bytes()]);
        }
    }
    groups
}

fn collect<'a>(tags: &mut Vec<Box<[u8]>>, found: impl IntoIterator<Item = &'a [u8]>) {
    for tag in found {
        let tag = tag.trim_ascii();
        let fits = !tag.is_empty() && tag.len() <= MAX_TAG_BYTES && tags.len() < MAX_TAGS;
        if fits && !tags.iter().any(|known| **known == *tag) {
            tags.push(tag.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn texts(names: &[Box<[u8]>]) -> Vec<String> {
        let names = names.iter();
        names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn what_fields_name() {
        type Case<'a> = (&'a [(&'static str, &'a str)], &'a [&'a str], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (&[], &[], &[]),
            (
                &[("surrogate-key", "a b  c\td")],
                &["a", "b", "c", "d"],
                &[],
            ),
            (&[("surrogate-key", "a,b")], &["a,b"], &[]),
            (
                &[("surrogate-key", "a"), ("surrogate-key", "b a")],
                &["a", "b"],
                &[],
            ),
            (&[("cache-tag", "a, b c ,,d")], &["a", "b c", "d"], &[]),
            (
                &[("surrogate-key", "a"), ("cache-tag", "a,A")],
                &["a", "A"],
                &[],
            ),
            (&[("cache-groups", "\"a\", \"b c\"")], &[], &["a", "b c"]),
            (
                &[("cache-groups", "\"a\""), ("cache-groups", "\"b\"")],
                &[],
                &["a", "b"],
            ),
            (
                &[("cache-groups", "\"a\";x=1, token, 5, (\"in\")")],
                &[],
                &["a"],
            ),
            (&[("cache-groups", "\"a\", \"not closed")], &[], &[]),
            (&[("cache-groups", "")], &[], &[]),
        ];
        for (fields, tags, groups) in cases {
            let found = Tags::from_headers(&headers(fields));
            assert_eq!(texts(&found.tags), *tags, "{fields:?}");
            assert_eq!(texts(&found.groups), *groups, "{fields:?}");
            assert_eq!(found.is_empty(), tags.is_empty() && groups.is_empty());
        }
    }

    #[test]
    fn names_are_bounded() {
        let many: Vec<String> = (0..200).map(|n| format!("t{n}")).collect();
        let long = "x".repeat(MAX_TAG_BYTES + 1);
        let fitting = "y".repeat(MAX_TAG_BYTES);
        let value = format!("{long} {fitting} {}", many.join(" "));
        let found = Tags::from_headers(&headers(&[
            ("surrogate-key", &value),
            ("cache-groups", "\"g\""),
        ]));
        assert_eq!(found.tags.len(), MAX_TAGS);
        assert_eq!(texts(&found.tags)[0], fitting);
        assert!(found.groups.is_empty());
        // Who purges by many means all of them.
        let named = named_tags(&headers(&[("surrogate-key", &many.join(" "))]));
        assert_eq!(named.len(), 200);
        let named = named_tags(&headers(&[
            ("surrogate-key", " b a "),
            ("surrogate-key", "b"),
        ]));
        assert_eq!(texts(&named), ["a", "b"]);
    }

    #[test]
    fn invalidated_groups_are_a_list_of_strings() {
        let answer = headers(&[("cache-group-invalidation", "\"a\", \"b\", c")]);
        assert_eq!(texts(&invalidated_groups(&answer)), ["a", "b"]);
        assert!(invalidated_groups(&headers(&[("cache-groups", "\"a\"")])).is_empty());
    }
}
