//! Which stored response of a resource a request selects (RFC 9111 §4.1).
//!
//! A [`VarySpec`] says which request fields an origin looked at; a [`VariantKey`] holds what they
//! were:
//!
//! ```text
//! for each field, by name:   0                          the request did not have it
//!                            1   length (u32 LE)   value
//! ```
//!
//! Kept true here:
//! - Absent and empty differ, and no value can reach into another.
//! - Values count as equal only where the field's syntax says so: blanks around the commas of a
//!   list, lines of one list, case and order in `Accept-Encoding` and `Accept-Language`.
//! - What a client says in a field that the node writes itself never selects a variant.
//! - Comparing does not allocate.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};

/// Fields that the node derives from what is in the cache key anyway, or that say nothing about a
/// client: they are the same for all requests of a key, whatever a client puts in them.
const KEYED: [&str; 6] = [
    "host",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "via",
    "cdn-loop",
];

/// Fields in which the node tells a client's address. A response that depends on it is for one
/// client.
const CLIENT_ADDRESS: [&str; 3] = ["x-forwarded-for", "forwarded", "x-real-ip"];

/// Fields with one value in which a comma separates nothing: compared byte for byte.
const NO_LISTS: [&str; 6] = [
    "authorization",
    "cookie",
    "user-agent",
    "origin",
    "referer",
    "proxy-authorization",
];

/// Most list members that are put in order; longer lists are compared in the order they have.
const MAX_ORDERED: usize = 32;

/// The request fields that a response depends on, from its `Vary`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Names", into = "Names")]
pub struct VarySpec {
    any: bool,
    /// Ascending, each once.
    fields: Vec<HeaderName>,
}

impl VarySpec {
    pub fn from_headers(response: &HeaderMap) -> VarySpec {
        let mut spec = VarySpec::default();
        for line in response.get_all(header::VARY) {
            for member in line
                .as_bytes()
                .split(|&byte| byte == b',')
                .map(<[u8]>::trim_ascii)
            {
                if !member.is_empty() {
                    spec.add(member);
                }
            }
        }
        if spec.any {
            spec.fields.clear();
        }
        spec.fields
            .sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        spec.fields.dedup();
        spec
    }

    fn add(&mut self, member: &[u8]) {
        match HeaderName::from_bytes(member) {
            Ok(name) if name == "*" => self.any = true,
            Ok(name) if KEYED.contains(&name.as_str()) => {}
            Ok(name) if CLIENT_ADDRESS.contains(&name.as_str()) => self.any = true,
            Ok(name) => self.fields.push(name),
            // Something is varied on, and it cannot be said what.
            Err(_) => self.any = true,
        }
    }

    /// Whether no request selects the response without validation: `*`, or what only one client
    /// sends.
    pub fn is_any(&self) -> bool {
        self.any
    }

    /// Whether every request selects the response.
    pub fn is_empty(&self) -> bool {
        !self.any && self.fields.is_empty()
    }

    /// The fields looked at, lower-case and ascending.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(HeaderName::as_str)
    }

    /// The variant that these request fields name.
    pub fn key_for(&self, request: &HeaderMap) -> VariantKey {
        let mut key = Vec::new();
        for field in &self.fields {
            if !request.contains_key(field) {
                key.push(0);
                continue;
            }
            key.push(1);
            let length_at = key.len();
            key.extend_from_slice(&[0; 4]);
            emit(field, request, &mut |bytes| key.extend_from_slice(bytes));
            let length = (key.len() - length_at - 4) as u32;
            key[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        }
        VariantKey(key.into_boxed_slice())
    }

    /// Names and values of the fields that a request for that variant has: those that were absent are left out.
    /// `None` for a variant that no request names, or one that is not text.
    pub fn values(&self, variant: &VariantKey) -> Option<Vec<(String, String)>> {
        let mut rest = variant.as_bytes();
        let mut values = Vec::new();
        for field in &self.fields {
            match rest {
                [0, behind @ ..] => rest = behind,
                [1, behind @ ..] => {
                    let (length, behind) = behind.split_first_chunk::<4>()?;
                    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
                    let (value, behind) = behind.split_at_checked(length)?;
                    let value = HeaderValue::from_bytes(value).ok()?;
                    values.push((field.to_string(), value.to_str().ok()?.to_owned()));
                    rest = behind;
                }
                _ => return None,
            }
        }
        (!self.any && rest.is_empty()).then_some(values)
    }

    /// Whether these request fields name that variant: as `key_for(request) == *variant`, but
    /// without allocating, and never for `*`.
    pub fn matches(&self, variant: &VariantKey, request: &HeaderMap) -> bool {
        if self.any {
            return false;
        }
        let mut rest = variant.as_bytes();
        for field in &self.fields {
            match rest {
                [0, behind @ ..] if !request.contains_key(field) => rest = behind,
                [1, behind @ ..] if request.contains_key(field) => {
                    let Some((length, behind)) = behind.split_first_chunk::<4>() else {
                        return false;
                    };
                    let length = u32::from_le_bytes(*length) as usize;
                    let Some((mut expected, behind)) = behind.split_at_checked(length) else {
                        return false;
                    };
                    let mut equal = true;
                    emit(
                        field,
                        request,
                        &mut |bytes| match expected.strip_prefix(bytes) {
                            Some(left) => expected = left,
                            None => equal = false,
                        },
                    );
                    if !equal || !expected.is_empty() {
                        return false;
                    }
                    rest = behind;
                }
                _ => return false,
            }
        }
        rest.is_empty()
    }
}

/// What the fields of a [`VarySpec`] were in the request that a response answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VariantKey(Box<[u8]>);

impl VariantKey {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// How a [`VarySpec`] is kept.
#[derive(Serialize, Deserialize)]
struct Names {
    any: bool,
    fields: Vec<String>,
}

impl From<VarySpec> for Names {
    fn from(spec: VarySpec) -> Names {
        Names {
            any: spec.any,
            fields: spec.fields().map(str::to_owned).collect(),
        }
    }
}

impl TryFrom<Names> for VarySpec {
    type Error = header::InvalidHeaderName;

    fn try_from(names: Names) -> Result<VarySpec, header::InvalidHeaderName> {
        let fields = names
            .fields
            .iter()
            .map(|name| HeaderName::from_bytes(name.as_bytes()));
        Ok(VarySpec {
            any: names.any,
            fields: fields.collect::<Result<_, _>>()?,
        })
    }
}

/// Gives the normal form of a field's value piece by piece.
fn emit(field: &HeaderName, request: &HeaderMap, sink: &mut impl FnMut(&[u8])) {
    let lines = || request.get_all(field).iter().map(HeaderValue::as_bytes);
    if NO_LISTS.contains(&field.as_str()) {
        for (at, line) in lines().enumerate() {
            if at > 0 {
                // In no value: lines stay apart.
                sink(b"\n");
            }
            sink(line);
        }
        return;
    }
    let is_preference = field == header::ACCEPT_ENCODING || field == header::ACCEPT_LANGUAGE;
    if is_preference && emit_ordered(lines().flat_map(Members), sink) {
        return;
    }
    for (at, member) in lines().flat_map(Members).enumerate() {
        if at > 0 {
            sink(b",");
        }
        if is_preference {
            emit_folded(member, sink);
        } else {
            sink(member);
        }
    }
}

/// Members in one order and one case. `false`, and nothing given, where there are too many.
fn emit_ordered<'a>(members: impl Iterator<Item = &'a [u8]>, sink: &mut impl FnMut(&[u8])) -> bool {
    let mut ordered: [&[u8]; MAX_ORDERED] = [&[]; MAX_ORDERED];
    let mut count = 0;
    for member in members {
        let Some(place) = ordered.get_mut(count) else {
            return false;
        };
        *place = member;
        count += 1;
    }
    let ordered = &mut ordered[..count];
    ordered.sort_unstable_by(|a, b| folded(a).cmp(folded(b)));
    for (at, member) in ordered.iter().enumerate() {
        if at > 0 {
            sink(b",");
        }
        emit_folded(member, sink);
    }
    true
}

fn emit_folded(member: &[u8], sink: &mut impl FnMut(&[u8])) {
    for byte in folded(member) {
        sink(&[byte]);
    }
}

/// Lower case and no blanks, which mean nothing in a coding, a language range or a weight.
fn folded(member: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let solid = member.iter().filter(|byte| !matches!(byte, b' ' | b'\t'));
    solid.map(u8::to_ascii_lowercase)
}

/// The members of a list, without the blanks around them; commas in quoted strings separate
/// nothing.
struct Members<'a>(&'a [u8]);

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.0.is_empty() {
            let mut quoted = false;
            let mut escaped = false;
            let end = self.0.iter().position(|&byte| {
                let was_escaped = std::mem::take(&mut escaped);
                match byte {
                    b'"' if !was_escaped => quoted = !quoted,
                    b'\\' if quoted && !was_escaped => escaped = true,
                    _ => {}
                }
                byte == b',' && !quoted
            });
            let (member, rest) = match end {
                Some(end) => (&self.0[..end], &self.0[end + 1..]),
                None => (self.0, &[][..]),
            };
            self.0 = rest;
            let member = member.trim_ascii();
            if !member.is_empty() {
                return Some(member);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn spec(lines: &[&str]) -> VarySpec {
        let lines: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
        VarySpec::from_headers(&headers(&lines))
    }

    #[test]
    fn vary_is_read_from_all_lines() {
        for (lines, fields) in [
            (&[][..], Some(&[][..])),
            (&[""], Some(&[])),
            (&[", ,"], Some(&[])),
            (&["Foo"], Some(&["foo"])),
            (&["Foo, BAR"], Some(&["bar", "foo"])),
            (&["b", "a,b , B"], Some(&["a", "b"])),
            (&["Host, X-Forwarded-Proto, a"], Some(&["a"])),
            (&["*"], None),
            (&["*, *"], None),
            (&["*", "*"], None),
            (&[", *"], None),
            (&["", "*"], None),
            (&["*, Foo"], None),
            (&["Foo, *"], None),
            (&["Foo Bar"], None),
            (&["X-Forwarded-For"], None),
            (&["a, Forwarded"], None),
        ] {
            let spec = spec(lines);
            assert_eq!(spec.is_any(), fields.is_none(), "{lines:?}");
            let found: Vec<_> = spec.fields().collect();
            assert_eq!(found, fields.unwrap_or_default(), "{lines:?}");
            let bytes = postcard::to_stdvec(&spec).unwrap();
            assert_eq!(postcard::from_bytes::<VarySpec>(&bytes).unwrap(), spec);
        }
    }

    #[test]
    fn requests_select_by_the_fields_named() {
        let chars_33 = "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u,v,w,x,y,z,1,2,3,4,5,6,7";
        type Lines<'a> = &'a [(&'a str, &'a str)];
        let cases: &[(&str, Lines<'_>, Lines<'_>, bool)] = &[
            ("", &[("a", "1")], &[("a", "2")], true),
            ("*", &[("a", "1")], &[("a", "1")], false),
            ("a", &[("a", "1")], &[("a", "1")], true),
            ("a", &[("a", "1")], &[("a", "2")], false),
            ("a", &[("a", "1")], &[("a", "12")], false),
            ("a", &[("a", "12")], &[("a", "1")], false),
            ("a", &[("a", "1")], &[], false),
            ("a", &[], &[("a", "1")], false),
            ("a", &[], &[("a", "")], false),
            ("a", &[], &[("b", "1")], true),
            (
                "a, b",
                &[("a", "1"), ("b", "2")],
                &[("b", "2"), ("a", "1")],
                true,
            ),
            (
                "a, b",
                &[("a", "1"), ("b", "2")],
                &[("a", "2"), ("b", "1")],
                false,
            ),
            (
                "a, b, c",
                &[("a", "1"), ("c", "2")],
                &[("a", "1"), ("c", "2")],
                true,
            ),
            (
                "a, b, c",
                &[("a", "1"), ("c", "2")],
                &[("a", "1"), ("b", "2")],
                false,
            ),
            ("a", &[("a", "1, 2")], &[("a", "1"), ("a", "2")], true),
            ("a", &[("a", "1, 2")], &[("a", "2"), ("a", "1")], false),
            ("a", &[("a", "1,2")], &[("a", "1 ,\t2,")], true),
            ("a", &[("a", "\"1,2\"")], &[("a", "\"1, 2\"")], false),
            (
                "a",
                &[("a", "\"\\\"1,2\"")],
                &[("a", "\"\\\"1, 2\"")],
                false,
            ),
            ("a", &[("a", "x")], &[("a", "X")], false),
            (
                "cookie",
                &[("cookie", "a=1,2")],
                &[("cookie", "a=1, 2")],
                false,
            ),
            (
                "cookie",
                &[("cookie", "a"), ("cookie", "b")],
                &[("cookie", "a,b")],
                false,
            ),
            ("x-forwarded-host", &[("x-forwarded-host", "a")], &[], true),
            (
                "accept-language",
                &[("accept-language", "en, de")],
                &[("accept-language", "de,eN")],
                true,
            ),
            (
                "accept-language",
                &[("accept-language", "en, de")],
                &[("accept-language", "en ,  de")],
                true,
            ),
            (
                "accept-language",
                &[("accept-language", "en, de")],
                &[("accept-language", "en;q=0.5, de")],
                false,
            ),
            (
                "accept-language",
                &[("accept-language", "en;q=0.5")],
                &[("accept-language", "en; q=0.5")],
                true,
            ),
            (
                "accept-encoding",
                &[("accept-encoding", "gzip, br")],
                &[("accept-encoding", "BR"), ("accept-encoding", "gzip")],
                true,
            ),
            (
                "accept-encoding",
                &[("accept-encoding", "gzip")],
                &[("accept-encoding", "gzip, br")],
                false,
            ),
            (
                "accept-encoding",
                &[("accept-encoding", chars_33)],
                &[("accept-encoding", chars_33)],
                true,
            ),
        ];
        for (vary, stored, presented, selects) in cases {
            let spec = spec(&[vary]);
            let variant = spec.key_for(&headers(stored));
            let presented = headers(presented);
            assert_eq!(
                spec.matches(&variant, &presented),
                *selects,
                "{vary}: {stored:?}"
            );
            if !spec.is_any() {
                assert_eq!(
                    spec.key_for(&presented) == variant,
                    *selects,
                    "{vary}: {stored:?}"
                );
            }
        }
    }

    #[test]
    fn a_damaged_variant_matches_nothing() {
        let spec = spec(&["a, b"]);
        let request = headers(&[("a", "1")]);
        let key = spec.key_for(&request);
        for end in 0..key.as_bytes().len() {
            let cut = VariantKey(key.as_bytes()[..end].into());
            assert!(!spec.matches(&cut, &request), "{end}");
        }
        let long = VariantKey([key.as_bytes(), b"x"].concat().into());
        assert!(!spec.matches(&long, &request));
        assert!(!spec.matches(&VariantKey([1, 255, 255, 255, 255].into()), &request));
    }
}
