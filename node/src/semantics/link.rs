//! Links in a message's head: the `Link` field (RFC 8288 §3).
//!
//! Kept true here: a malformed link costs only itself, not those around it. No more than
//! [`MAX_LINKS`] are looked at, in no more than [`MAX_BYTES`] of field lines, and nothing is
//! allocated until a parameter is asked for.

use std::borrow::Cow;

use http::header::LINK;
use http::{HeaderMap, HeaderValue};

use super::reference::{self, Target};

/// Links of one message that are looked at, malformed ones included.
pub const MAX_LINKS: usize = 256;

/// Bytes of `Link` lines that are looked at; a line that does not fit in any more is left out whole.
pub const MAX_BYTES: usize = 64 << 10;

/// One link, as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link<'a> {
    /// The reference between the angle brackets, neither resolved nor judged.
    pub target: &'a [u8],
    /// What follows the bracket, each parameter with its semicolon. Well formed.
    parameters: &'a [u8],
}

/// The links of a message, line after line.
pub fn links(headers: &HeaderMap) -> impl Iterator<Item = Link<'_>> {
    in_lines(headers.get_all(LINK))
}

fn in_lines<'a>(
    lines: impl IntoIterator<Item = &'a HeaderValue>,
) -> impl Iterator<Item = Link<'a>> {
    let mut bytes = 0;
    let fitting = lines.into_iter().map(HeaderValue::as_bytes);
    let fitting = fitting.filter(move |line| {
        let fits = bytes + line.len() <= MAX_BYTES;
        bytes += if fits { line.len() } else { 0 };
        fits
    });
    let members = fitting.flat_map(|line| {
        let mut rest = line;
        std::iter::from_fn(move || next_member(&mut rest))
    });
    members.take(MAX_LINKS).flatten()
}

impl<'a> Link<'a> {
    /// Whether the link is of this relation type: one of those in its first `rel`, which are compared
    /// without regard to case, extension relations too (RFC 8288 §2.1, §3.3).
    pub fn is(&self, relation: &str) -> bool {
        self.parameter("rel").is_some_and(|relations| {
            relations
                .split(u8::is_ascii_whitespace)
                .any(|known| known.eq_ignore_ascii_case(relation.as_bytes()))
        })
    }

    /// Whether the link's context is the message's own resource: it has no `anchor`, or one that comes
    /// to the same URL (RFC 8288 §3.2). A part of the resource, which a fragment names, is another context.
    pub fn is_about(&self, resource: &Target) -> bool {
        let Some(anchor) = self.parameter("anchor") else {
            return true;
        };
        !anchor.contains(&b'#')
            && reference::resolve(resource, &anchor).is_ok_and(|context| context == *resource)
    }

    /// The first parameter of that name, without quotes and escapes; empty where it has no value.
    pub fn parameter(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        let mut rest = self.parameters;
        while let Some((known, value)) = next_parameter(&mut rest)? {
            if known.eq_ignore_ascii_case(name.as_bytes()) {
                return Some(unquoted(value));
            }
        }
        None
    }
}

/// Takes the next member off a list; `Some(None)` where it is no link.
fn next_member<'a>(rest: &mut &'a [u8]) -> Option<Option<Link<'a>>> {
    let start = rest
        .iter()
        .position(|byte| !matches!(byte, b',' | b' ' | b'\t'))?;
    let list = &rest[start..];
    let Some(behind) = list.strip_prefix(b"<") else {
        *rest = behind_comma(list);
        return Some(None);
    };
    let target = match memchr::memchr2(b'>', b'<', behind) {
        Some(end) if behind[end] == b'>' => &behind[..end],
        // The bracket was never closed: the next link begins where another opens.
        Some(other) => {
            *rest = &behind[other..];
            return Some(None);
        }
        None => {
            *rest = behind_comma(behind);
            return Some(None);
        }
    };
    let parameters = &behind[target.len() + 1..];
    let mut unread = parameters;
    loop {
        match next_parameter(&mut unread) {
            Some(Some(_)) => {}
            Some(None) => break,
            None => {
                *rest = behind_comma(unread);
                return Some(None);
            }
        }
    }
    let parameters = &parameters[..parameters.len() - unread.len()];
    *rest = unread;
    Some(Some(Link { target, parameters }))
}

/// Takes `; name [ = value ]` off the front. `Some(None)` at the end of the link, `None` where the link
/// is malformed. What is left begins at a comma or is empty, unless it is malformed.
fn next_parameter<'a>(rest: &mut &'a [u8]) -> Option<Option<(&'a [u8], &'a [u8])>> {
    loop {
        *rest = rest.trim_ascii_start();
        let Some(parameter) = rest.strip_prefix(b";") else {
            return (rest.is_empty() || rest[0] == b',').then_some(None);
        };
        *rest = parameter.trim_ascii_start();
        let (name, behind) = split_token(rest);
        if name.is_empty() {
            // An empty parameter, as in `<a>;;rel=next`.
            if behind.is_empty() || matches!(behind[0], b';' | b',') {
                continue;
            }
            return None;
        }
        let behind = behind.trim_ascii_start();
        let Some(value) = behind.strip_prefix(b"=") else {
            *rest = behind;
            return Some(Some((name, b"")));
        };
        let value = value.trim_ascii_start();
        let length = match value.first() {
            Some(b'"') => match quoted_length(value) {
                Some(length) => length,
                None => {
                    // A quote that never ends must not hide what follows it.
                    *rest = &value[1..];
                    return None;
                }
            },
            // Unquoted URLs and media types are no tokens, and are written nevertheless.
            _ => value
                .iter()
                .position(|byte| matches!(byte, b';' | b',' | b' ' | b'\t' | b'"'))
                .unwrap_or(value.len()),
        };
        let (value, behind) = value.split_at(length);
        *rest = behind;
        return Some(Some((name, value)));
    }
}

fn split_token(text: &[u8]) -> (&[u8], &[u8]) {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let length = text.iter().position(|&byte| !is_token(byte));
    text.split_at(length.unwrap_or(text.len()))
}

/// Length of the quoted string that `text` begins with, both quotes included.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn unquoted(value: &[u8]) -> Cow<'_, [u8]> {
    let Some(inside) = value
        .strip_prefix(b"\"")
        .and_then(|v| v.strip_suffix(b"\""))
    else {
        return Cow::Borrowed(value);
    };
    if memchr::memchr(b'\\', inside).is_none() {
        return Cow::Borrowed(inside);
    }
    let mut text = Vec::with_capacity(inside.len());
    let mut bytes = inside.iter();
    while let Some(&byte) = bytes.next() {
        text.extend(if byte == b'\\' {
            bytes.next()
        } else {
            Some(&byte)
        });
    }
    Cow::Owned(text)
}

/// What follows the next comma outside of quotes and brackets; behind one that never ends, the next comma.
fn behind_comma(list: &[u8]) -> &[u8] {
    let mut at = 0;
    // Where one does not end, those behind it are not looked at: that would take quadratic time.
    let (mut quotes_end, mut brackets_end) = (true, true);
    while let Some(&byte) = list.get(at) {
        let rest = &list[at..];
        let length = match byte {
            b',' => return &rest[1..],
            b'"' if quotes_end => {
                let length = quoted_length(rest);
                quotes_end = length.is_some();
                length
            }
            b'<' if brackets_end => {
                let end = memchr::memchr(b'>', rest);
                brackets_end = end.is_some();
                end.map(|end| end + 1)
            }
            _ => None,
        };
        at += length.unwrap_or(1);
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::super::key::Scheme;
    use super::*;

    fn lines(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(LINK, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        headers
    }

    fn of_relation(headers: &HeaderMap, relation: &str) -> Vec<String> {
        links(headers)
            .filter(|link| link.is(relation))
            .map(|link| String::from_utf8_lossy(link.target).into_owned())
            .collect()
    }

    #[test]
    fn targets_of_a_relation() {
        #[rustfmt::skip]
        let cases: &[(&[&str], &[&str])] = &[
            (&[], &[]),
            (&[""], &[]),
            (&["<b>; rel=next"], &["b"]),
            (&["<b>; rel=\"next\""], &["b"]),
            (&["<b>; rel=\"prev next\""], &["b"]),
            (&["<b>; rel=\"prev\tnext \""], &["b"]),
            (&["<b>; rel=\"nextprev\""], &[]),
            (&["<b>; rel=\"\""], &[]),
            (&["<b>; REL=NeXT"], &["b"]),
            (&["<b>;rel=next"], &["b"]),
            (&["  <b>\t;\trel\t=\tnext\t"], &["b"]),
            (&["<b> ; title=\"x\" ; rel=next ; as=video"], &["b"]),
            (&["<b>; as=video; rel=next; rel=prev"], &["b"]),
            (&["<b>; rel=prev; rel=next"], &[]),
            (&["<b>; rel; rel=next"], &[]),
            (&["<b>"], &[]),
            (&["<b>; crossorigin; rel=next"], &["b"]),
            (&["<b>;; rel=next;"], &["b"]),
            (&["<b>; rel=next, <c>; rel=next"], &["b", "c"]),
            (&["<b>; rel=next,<c>;rel=prev,,<d>;rel=next,"], &["b", "d"]),
            (&["<b>; rel=next", "<c>; rel=next"], &["b", "c"]),
            (&["<b,c;d>; rel=next"], &["b,c;d"]),
            (&["<>; rel=next"], &[""]),
            (&["<b>; title=\", <x>; rel=next\", <c>; rel=next"], &["c"]),
            (&["<b>; title=\"\\\", <x>; rel=next\"; rel=next"], &["b"]),
            (&["<b>; title=\"a;b=c\"; rel=next"], &["b"]),
            (&["<b>; rel=\"ne\\xt\""], &["b"]),
            (&["<b>; title*=UTF-8''%e2%82%ac; rel=next"], &["b"]),
            (&["<b>; type=video/mp4; rel=next"], &["b"]),
            // What is malformed costs only itself.
            (&["b; rel=next, <c>; rel=next"], &["c"]),
            (&["<b; rel=next, <c>; rel=next"], &["c"]),
            (&["<b; rel=next"], &[]),
            (&["<b>; rel=next\"x, <c>; rel=next"], &["c"]),
            (&["<b>; title=\"x, <c>; rel=next"], &["c"]),
            (&["<b>; title=\"x; rel=next"], &[]),
            (&["<b> x; rel=next, <c>; rel=next"], &["c"]),
            (&["<b>; =next, <c>; rel=next"], &["c"]),
            (&["<b>; rel=next x, <c>; rel=next"], &["c"]),
            (&["\"<b>; rel=next, <c>; rel=next"], &["c"]),
            (&["<b>; rel=next é, <c>; rel=next"], &["c"]),
            (&[">, <c>; rel=next", "<"], &["c"]),
            (&["<b>; title=\"x\\"], &[]),
        ];
        for (given, expected) in cases {
            assert_eq!(of_relation(&lines(given), "next"), *expected, "{given:?}");
        }
    }

    #[test]
    fn extension_relations_are_compared_without_case() {
        let headers =
            lines(&["<b>; rel=\"next http://Example.com/Rel\", <c>; rel=http://example.com/rel"]);
        assert_eq!(of_relation(&headers, "http://example.com/rel"), ["b", "c"]);
        assert_eq!(of_relation(&headers, "next"), ["b"]);
    }

    #[test]
    fn parameters_are_given_without_quotes() {
        let headers = lines(&["<b>; AS=\"vid\\\"eo\"; as=x; nopush; type = text/css"]);
        let link = links(&headers).next().unwrap();
        assert_eq!(link.parameter("as").as_deref(), Some(&b"vid\"eo"[..]));
        assert_eq!(link.parameter("nopush").as_deref(), Some(&b""[..]));
        assert_eq!(link.parameter("type").as_deref(), Some(&b"text/css"[..]));
        assert_eq!(link.parameter("rel"), None);
    }

    #[test]
    fn an_anchor_may_make_it_anothers_link() {
        let page = Target::new(Scheme::Http, "a.example", b"/v/1.ts?q").unwrap();
        for (anchor, about) in [
            ("", true),
            ("; anchor=\"\"", true),
            ("; anchor=\"1.ts?q\"", true),
            ("; anchor=\"/v/1.ts?q\"", true),
            ("; anchor=\"/v/../v/1.ts?q\"", true),
            ("; anchor=\"HTTP://A.example:80/v/1.ts?q\"", true),
            ("; anchor=\"1.ts\"", false),
            ("; anchor=\"/v/2.ts?q\"", false),
            ("; anchor=\"#part\"", false),
            ("; anchor=\"//b.example/v/1.ts?q\"", false),
            ("; anchor=\"2.ts\"; anchor=\"\"", false),
            ("; anchor=\"\"; anchor=\"2.ts\"", true),
            ("; anchor=\"\\\\\"", false),
        ] {
            let headers = lines(&[&format!("<2.ts>; rel=next{anchor}")]);
            let link = links(&headers).next().unwrap();
            assert_eq!(link.is_about(&page), about, "{anchor}");
        }
    }

    #[test]
    fn links_are_bounded() {
        let many = "<b>; rel=next, ".repeat(2000);
        assert_eq!(links(&lines(&[&many])).count(), MAX_LINKS);
        let broken = "b, ".repeat(2000) + "<c>; rel=next";
        assert_eq!(links(&lines(&[&broken])).count(), 0);
        let long = format!("<{}>; rel=next", "x".repeat(MAX_BYTES));
        let headers = lines(&[&long, "<b>; rel=next"]);
        assert_eq!(of_relation(&headers, "next"), ["b"]);
    }

    /// A repeatable stream of numbers.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.0 >> 33) as usize % bound
        }
    }

    /// Well-formed links are all found, whatever stands malformed between them.
    #[test]
    fn broken_members_hide_no_others() {
        const BROKEN: [&str; 9] = [
            "x",
            "<x",
            "<x> y",
            "<x>; a=\"b",
            "<x>; =a",
            "\"",
            "x=\"",
            "; rel=next",
            ">",
        ];
        for seed in 0..1000 {
            let mut numbers = Numbers(seed);
            let mut members = Vec::new();
            let mut expected = Vec::new();
            for at in 0..numbers.below(8) {
                if numbers.below(2) == 0 {
                    members.push(BROKEN[numbers.below(BROKEN.len())].to_owned());
                }
                let relation = ["next", "\"next\"", "\"a NEXT b\""][numbers.below(3)];
                let more =
                    ["", "; as=\"x\\\"y, <z>\"", "; a; b=c", "; anchor=\"\""][numbers.below(4)];
                let order = numbers.below(2) == 0;
                members.push(match order {
                    true => format!("<t{at}>; rel={relation}{more}"),
                    false => format!("<t{at}>{more} ;rel={relation}"),
                });
                expected.push(format!("t{at}"));
            }
            // A quote left open reaches into a later quoted string: there is no telling which is meant.
            let is_clear = !members.iter().any(|member| {
                member.bytes().filter(|&byte| byte == b'"').count() % 2 == 1
                    && BROKEN.contains(&member.as_str())
            });
            let found = of_relation(&lines(&[&members.join(" , ")]), "next");
            if is_clear {
                assert_eq!(found, expected, "seed {seed}: {members:?}");
            }
        }
    }

    /// No bytes make it panic or loop, and what it gives are pieces of what it was given.
    #[test]
    fn any_bytes_are_borne() {
        const BYTES: &[u8] = b"<<>>;;,,==\"\"\\\\ \tarelnxt*\xc3\xa9";
        for seed in 0..5_000 {
            let mut numbers = Numbers(seed);
            let length = numbers.below(40);
            let line: Vec<u8> = (0..length)
                .map(|_| BYTES[numbers.below(BYTES.len())])
                .collect();
            let mut headers = HeaderMap::new();
            headers.append(LINK, HeaderValue::from_bytes(&line).unwrap());
            for link in links(&headers) {
                assert!(!link.target.contains(&b'>') && !link.target.contains(&b'<'));
                assert!(link.target.len() + 2 <= line.len(), "seed {seed}");
                link.is("next");
                link.parameter("anchor");
            }
        }
    }
}
