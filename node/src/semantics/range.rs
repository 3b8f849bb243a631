//! Byte ranges (RFC 9110 §14, §15.3.7).
//!
//! What it keeps true:
//! - A `Range` that is not understood exactly is no `Range`: the answer is then the whole.
//! - No answer repeats a byte: ranges that overlap or touch become one, and how many there may be is
//!   bounded before anything is computed from them.
//! - Numbers beyond 64 bits saturate; spans are `start..end` with `start < end <= length`.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};

/// One range as asked, before the length of the representation is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeSpec {
    /// From the first byte to before the second, or to the end; the second is greater.
    Span(u64, Option<u64>),
    /// That many bytes from the end.
    Suffix(u64),
}

/// What the `Range` field asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// Nothing that has to be heeded: absent, another unit, repeated or malformed.
    None,
    /// At least one.
    Set(Vec<RangeSpec>),
    /// More than are allowed.
    TooMany,
}

/// What the ranges come to on a representation of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// 416. Also for every range of an empty representation, which a 206 cannot describe.
    Unsatisfiable,
    Single(Range<u64>),
    /// At least two that neither overlap nor touch, in the order asked for.
    Multi(Vec<Range<u64>>),
}

/// The `Range` of a GET; with another method it has no meaning (RFC 9110 §14.2).
pub fn parse(request: &HeaderMap, max_ranges: usize) -> Ranges {
    let mut lines = request.get_all(RANGE).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => parse_value(line.as_bytes(), max_ranges),
        _ => Ranges::None,
    }
}

fn parse_value(value: &[u8], max_ranges: usize) -> Ranges {
    let value = value.trim_ascii();
    let Some((unit, set)) = value.split_at_checked(b"bytes=".len()) else {
        return Ranges::None;
    };
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return Ranges::None;
    }
    let mut specs = Vec::new();
    let mut count = 0_usize;
    for member in set.split(|&byte| byte == b',') {
        let member = member.trim_ascii();
        if member.is_empty() {
            continue;
        }
        let Some(spec) = parse_spec(member) else {
            return Ranges::None;
        };
        count += 1;
        if count <= max_ranges {
            specs.push(spec);
        }
    }
    match count {
        0 => Ranges::None,
        _ if count > max_ranges => Ranges::TooMany,
        _ => Ranges::Set(specs),
    }
}

/// `first-last`, `first-` or `-bytes`.
pub(super) fn parse_spec(member: &[u8]) -> Option<RangeSpec> {
    let dash = memchr::memchr(b'-', member)?;
    let (first, last) = (&member[..dash], &member[dash + 1..]);
    if first.is_empty() {
        return Some(RangeSpec::Suffix(number(last)?));
    }
    let first = number(first)?;
    if last.is_empty() {
        return Some(RangeSpec::Span(first, None));
    }
    let last = number(last)?;
    (first <= last).then(|| RangeSpec::Span(first, Some(last.saturating_add(1))))
}

/// `1*DIGIT`. Stops one short of the maximum, so that the position after it exists.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        let sum = sum.saturating_mul(10).saturating_add(digit);
        Some(sum.min(u64::MAX - 1))
    })
}

/// The bytes that ranges name in a representation of `length` bytes.
pub fn resolve(specs: &[RangeSpec], length: u64) -> Resolved {
    if let [spec] = specs {
        return match span_of(*spec, length) {
            Some(span) => Resolved::Single(span),
            None => Resolved::Unsatisfiable,
        };
    }
    let mut spans: Vec<(usize, Range<u64>)> = specs
        .iter()
        .filter_map(|spec| span_of(*spec, length))
        .enumerate()
        .collect();
    spans.sort_by_key(|(_, span)| span.start);
    spans.dedup_by(|(later_place, later), (place, span)| {
        let joins = later.start <= span.end;
        if joins {
            span.end = span.end.max(later.end);
            *place = (*place).min(*later_place);
        }
        joins
    });
    spans.sort_by_key(|(place, _)| *place);
    let mut spans: Vec<Range<u64>> = spans.into_iter().map(|(_, span)| span).collect();
    match spans.len() {
        0 => Resolved::Unsatisfiable,
        1 => Resolved::Single(spans.remove(0)),
        _ => Resolved::Multi(spans),
    }
}

fn span_of(spec: RangeSpec, length: u64) -> Option<Range<u64>> {
    let span = match spec {
        RangeSpec::Span(start, end) => start..end.unwrap_or(length).min(length),
        RangeSpec::Suffix(bytes) => length.saturating_sub(bytes)..length,
    };
    (span.start < span.end).then_some(span)
}

/// The `Content-Range` of one part (RFC 9110 §14.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// Never empty.
    pub span: Range<u64>,
    /// Length of the whole representation, if the sender knows it; not less than the span's end.
    pub complete_length: Option<u64>,
}

impl ContentRange {
    /// None for anything malformed, contradictory, of another unit or unsatisfied.
    pub fn parse(value: &HeaderValue) -> Option<ContentRange> {
        let value = value.as_bytes().trim_ascii();
        let (unit, rest) = value.split_at_checked(b"bytes ".len())?;
        if !unit.eq_ignore_ascii_case(b"bytes ") {
            return None;
        }
        let slash = memchr::memchr(b'/', rest)?;
        let (positions, complete) = (&rest[..slash], &rest[slash + 1..]);
        let dash = memchr::memchr(b'-', positions)?;
        let first = exact_number(&positions[..dash])?;
        let last = exact_number(&positions[dash + 1..])?;
        let end = last.checked_add(1)?;
        let complete_length = match complete {
            b"*" => None,
            digits => Some(exact_number(digits)?),
        };
        let is_valid = first < end && complete_length.is_none_or(|length| end <= length);
        is_valid.then_some(ContentRange {
            span: first..end,
            complete_length,
        })
    }

    /// The field for a part that goes out; `span` is not empty.
    pub fn to_header(span: &Range<u64>, length: impl Into<Option<u64>>) -> HeaderValue {
        let mut value = Text::new();
        value.push(b"bytes ");
        value.push_content_range(span, length.into());
        value.to_header()
    }

    /// The field of a 416: `bytes */N`.
    pub fn unsatisfied(length: u64) -> HeaderValue {
        let mut value = Text::new();
        value.push(b"bytes */");
        value.push_number(length);
        value.to_header()
    }

    /// The `Content-Range` of a response, if it is there once and well formed.
    pub fn from_headers(headers: &HeaderMap) -> Option<ContentRange> {
        let mut lines = headers.get_all(CONTENT_RANGE).iter();
        let first = lines.next()?;
        lines.next().is_none().then(|| ContentRange::parse(first))?
    }
}

fn exact_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// What parts the ranges of one `multipart/byteranges` body:
///
/// ```text
///   --BOUNDARY CRLF  Content-Type: … CRLF  Content-Range: bytes 0-4/10 CRLF CRLF  part
///   CRLF --BOUNDARY CRLF  …  part
///   CRLF --BOUNDARY-- CRLF
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary([u8; BOUNDARY_BYTES]);

const BOUNDARY_BYTES: usize = 32;

impl Boundary {
    /// Equal seeds make equal boundaries. A seed that the body's author can guess lets the body hold
    /// the boundary.
    pub fn new(seed: u64) -> Boundary {
        let mut text = [0; BOUNDARY_BYTES];
        let mut state = seed;
        for digits in text.chunks_exact_mut(16) {
            let mut word = splitmix(&mut state);
            for digit in digits {
                *digit = b"0123456789abcdef"[(word & 15) as usize];
                word >>= 4;
            }
        }
        Boundary(text)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `Content-Type` of the answer as a whole.
    pub fn content_type(self) -> HeaderValue {
        let mut value = Vec::with_capacity(MULTIPART.len() + BOUNDARY_BYTES);
        value.extend_from_slice(MULTIPART);
        value.extend_from_slice(&self.0);
        HeaderValue::try_from(value)
            .unwrap_or_else(|_| HeaderValue::from_static("multipart/byteranges"))
    }

    /// What stands before the bytes of a part. `content_type` is that of the whole representation.
    pub fn part_head(
        self,
        content_type: Option<&HeaderValue>,
        span: &Range<u64>,
        length: u64,
        first: bool,
    ) -> Bytes {
        let mut range = Text::new();
        range.push_content_range(span, Some(length));
        let bytes = self.part_head_bytes(content_type, range.as_bytes().len(), first);
        let mut head = BytesMut::with_capacity(bytes);
        if !first {
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"--");
        head.extend_from_slice(&self.0);
        if let Some(content_type) = content_type {
            head.extend_from_slice(b"\r\nContent-Type: ");
            head.extend_from_slice(content_type.as_bytes());
        }
        head.extend_from_slice(b"\r\nContent-Range: bytes ");
        head.extend_from_slice(range.as_bytes());
        head.extend_from_slice(b"\r\n\r\n");
        head.freeze()
    }

    fn part_head_bytes(
        self,
        content_type: Option<&HeaderValue>,
        range_bytes: usize,
        first: bool,
    ) -> usize {
        let lead = if first { 0 } else { 2 };
        let typed = content_type.map_or(0, |value| b"\r\nContent-Type: ".len() + value.len());
        let ranged = b"\r\nContent-Range: bytes ".len() + range_bytes;
        lead + 2 + BOUNDARY_BYTES + typed + ranged + 4
    }

    /// What stands after the bytes of the last part.
    pub fn end(self) -> Bytes {
        let mut end = BytesMut::with_capacity(BOUNDARY_BYTES + 8);
        end.extend_from_slice(b"\r\n--");
        end.extend_from_slice(&self.0);
        end.extend_from_slice(b"--\r\n");
        end.freeze()
    }

    /// `Content-Length` of the answer with these parts.
    pub fn total_length(
        self,
        content_type: Option<&HeaderValue>,
        spans: &[Range<u64>],
        length: u64,
    ) -> u64 {
        let end = BOUNDARY_BYTES as u64 + 8;
        spans.iter().enumerate().fold(end, |sum, (place, span)| {
            let mut range = Text::new();
            range.push_content_range(span, Some(length));
            let head = self.part_head_bytes(content_type, range.as_bytes().len(), place == 0);
            let part = span.end.saturating_sub(span.start);
            sum.saturating_add(head as u64).saturating_add(part)
        })
    }
}

const MULTIPART: &[u8] = b"multipart/byteranges; boundary=";

/// The next word of the splitmix64 generator.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A buffer on the stack for `bytes ` and three numbers of twenty digits at most.
struct Text {
    bytes: [u8; 80],
    used: usize,
}

impl Text {
    fn new() -> Text {
        Text {
            bytes: [0; 80],
            used: 0,
        }
    }

    fn push(&mut self, text: &[u8]) {
        let end = self.used + text.len();
        if let Some(room) = self.bytes.get_mut(self.used..end) {
            room.copy_from_slice(text);
            self.used = end;
        }
    }

    fn push_number(&mut self, number: u64) {
        self.push(itoa::Buffer::new().format(number).as_bytes());
    }

    /// `first-last/length`.
    fn push_content_range(&mut self, span: &Range<u64>, length: Option<u64>) {
        self.push_number(span.start);
        self.push(b"-");
        self.push_number(span.end.saturating_sub(1));
        self.push(b"/");
        match length {
            Some(length) => self.push_number(length),
            None => self.push(b"*"),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn to_header(&self) -> HeaderValue {
        HeaderValue::from_bytes(self.as_bytes())
            .unwrap_or_else(|_| HeaderValue::from_static("bytes */*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEARLY_MAX: u64 = u64::MAX - 1;

    fn ranges(value: &'static str) -> Ranges {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_static(value));
        parse(&headers, 3)
    }

    #[test]
    fn sets() {
        use RangeSpec::{Span, Suffix};
        #[rustfmt::skip]
        let cases: &[(&str, &[RangeSpec])] = &[
            ("bytes=0-0", &[Span(0, Some(1))]),
            ("bytes=1-", &[Span(1, None)]),
            ("bytes=-5", &[Suffix(5)]),
            ("bytes=-0", &[Suffix(0)]),
            ("Bytes=007-008", &[Span(7, Some(9))]),
            ("bytes=0-1,5-6 ,\t-2", &[Span(0, Some(2)), Span(5, Some(7)), Suffix(2)]),
            ("bytes=,0-1,,", &[Span(0, Some(2))]),
            ("bytes= 0-1", &[Span(0, Some(2))]),
            ("bytes=18446744073709551615-", &[Span(NEARLY_MAX, None)]),
            ("bytes=99999999999999999999-99999999999999999999", &[Span(NEARLY_MAX, Some(u64::MAX))]),
            ("bytes=0-18446744073709551615", &[Span(0, Some(u64::MAX))]),
            ("bytes=-99999999999999999999999", &[Suffix(NEARLY_MAX)]),
        ];
        for &(value, expected) in cases {
            assert_eq!(ranges(value), Ranges::Set(expected.to_vec()), "{value}");
        }
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-",
            "bytes=1-a",
            "bytes=--1",
            "bytes=2-1",
            "bytes=1",
            "bytes=1--2",
            "bytes=1-2-3",
            "bytes=0-1,x",
            "bytes=0-1;2-3",
            "bytes =0-1",
            "bytes:0-1",
            "items=0-1",
            "bytes=+1-2",
            "bytes=0x1-2",
            "bytes=1 - 2",
            "bytes=0-0,1-1,2-2,3-3,4-3",
            "none",
            "byte",
            "bytes=0-\u{7f}",
        ] {
            let mut headers = HeaderMap::new();
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else {
                continue;
            };
            headers.insert(RANGE, value.clone());
            assert_eq!(parse(&headers, 3), Ranges::None, "{value:?}");
        }
        assert_eq!(parse(&HeaderMap::new(), 3), Ranges::None);
        let mut twice = HeaderMap::new();
        twice.append(RANGE, HeaderValue::from_static("bytes=0-1"));
        twice.append(RANGE, HeaderValue::from_static("bytes=2-3"));
        assert_eq!(parse(&twice, 3), Ranges::None);
    }

    #[test]
    fn many_ranges_are_refused() {
        assert!(matches!(ranges("bytes=0-,0-,0-"), Ranges::Set(_)));
        assert_eq!(ranges("bytes=0-,0-,0-,0-"), Ranges::TooMany);
        let many = HeaderValue::try_from(format!("bytes={}", "0-0,".repeat(5000))).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, many);
        assert_eq!(parse(&headers, 16), Ranges::TooMany);
    }

    #[test]
    fn spans() {
        use RangeSpec::{Span, Suffix};
        use Resolved::{Multi, Single, Unsatisfiable};
        #[rustfmt::skip]
        let cases: &[(&[RangeSpec], u64, Resolved)] = &[
            (&[Span(0, Some(1))], 10, Single(0..1)),
            (&[Span(0, None)], 10, Single(0..10)),
            (&[Span(9, Some(u64::MAX))], 10, Single(9..10)),
            (&[Span(10, None)], 10, Unsatisfiable),
            (&[Span(10, Some(11))], 10, Unsatisfiable),
            (&[Span(NEARLY_MAX, Some(u64::MAX))], u64::MAX, Single(NEARLY_MAX..u64::MAX)),
            (&[Suffix(0)], 10, Unsatisfiable),
            (&[Suffix(1)], 10, Single(9..10)),
            (&[Suffix(u64::MAX)], 10, Single(0..10)),
            (&[Suffix(1)], 0, Unsatisfiable),
            (&[Span(0, None)], 0, Unsatisfiable),
            (&[], 10, Unsatisfiable),
            // Only one is left: no multipart.
            (&[Span(0, Some(1)), Span(20, None)], 10, Single(0..1)),
            (&[Suffix(0), Span(20, None)], 10, Unsatisfiable),
            // Overlapping and adjacent ones become one.
            (&[Span(0, None), Span(0, None), Suffix(3)], 10, Single(0..10)),
            (&[Span(0, Some(5)), Span(5, Some(10))], 10, Single(0..10)),
            (&[Span(5, Some(10)), Span(0, Some(5))], 10, Single(0..10)),
            (&[Span(0, Some(2)), Span(8, None), Span(1, Some(9))], 10, Single(0..10)),
            // Others keep their order; a joined one stands where its first part stood.
            (&[Span(0, Some(1)), Suffix(1)], 10, Multi(vec![0..1, 9..10])),
            (&[Suffix(1), Span(0, Some(1))], 10, Multi(vec![9..10, 0..1])),
            (&[Span(7, Some(8)), Span(0, Some(1)), Span(6, Some(7))], 10, Multi(vec![6..8, 0..1])),
            (&[Span(0, Some(1)), Span(7, Some(8)), Span(1, Some(2))], 10, Multi(vec![0..2, 7..8])),
        ];
        for (specs, length, expected) in cases {
            assert_eq!(resolve(specs, *length), *expected, "{specs:?} {length}");
        }
    }

    #[test]
    fn resolved_spans_never_repeat_a_byte() {
        let mut state = 7;
        for _ in 0..20_000 {
            let length = splitmix(&mut state) % 40;
            let specs: Vec<RangeSpec> = (0..splitmix(&mut state) % 6)
                .map(|_| {
                    let (a, b) = (splitmix(&mut state) % 50, splitmix(&mut state) % 50);
                    match splitmix(&mut state) % 3 {
                        0 => RangeSpec::Suffix(a),
                        1 => RangeSpec::Span(a, None),
                        _ => RangeSpec::Span(a.min(b), Some(a.max(b) + 1)),
                    }
                })
                .collect();
            let wanted: Vec<bool> = (0..length)
                .map(|byte| {
                    specs.iter().any(|spec| match *spec {
                        RangeSpec::Suffix(bytes) => byte >= length.saturating_sub(bytes),
                        RangeSpec::Span(start, end) => {
                            byte >= start && end.is_none_or(|end| byte < end)
                        }
                    })
                })
                .collect();
            let spans = match resolve(&specs, length) {
                Resolved::Unsatisfiable => Vec::new(),
                Resolved::Single(span) => vec![span],
                Resolved::Multi(spans) => {
                    assert!(spans.len() > 1);
                    spans
                }
            };
            let mut given = vec![false; wanted.len()];
            for span in spans {
                assert!(
                    span.start < span.end && span.end <= length,
                    "{specs:?} {length}"
                );
                for byte in span {
                    assert!(
                        !std::mem::replace(&mut given[byte as usize], true),
                        "{specs:?}"
                    );
                }
            }
            assert_eq!(given, wanted, "{specs:?} {length}");
        }
    }

    #[test]
    fn content_ranges() {
        #[rustfmt::skip]
        let cases: &[(&str, Range<u64>, Option<u64>)] = &[
            ("bytes 0-4/10", 0..5, Some(10)),
            ("bytes 4-9/10", 4..10, Some(10)),
            ("BYTES 4-9/*", 4..10, None),
            ("bytes 0-18446744073709551614/18446744073709551615", 0..u64::MAX, Some(u64::MAX)),
        ];
        for (text, span, length) in cases {
            let parsed = ContentRange::parse(&HeaderValue::from_static(text)).unwrap();
            assert_eq!((&parsed.span, &parsed.complete_length), (span, length));
            let written = ContentRange::to_header(span, *length);
            assert_eq!(written.to_str().unwrap(), text.to_ascii_lowercase());
        }
        for text in [
            "",
            "bytes",
            "bytes ",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes 0-4/",
            "bytes 0-4",
            "bytes -4/10",
            "bytes 0-/10",
            "bytes 0-4/4",
            "items 0-4/10",
            "bytes=0-4/10",
            "bytes 0-18446744073709551615/*",
            "bytes 0-4/99999999999999999999",
            "bytes a-4/10",
            "bytes 0 - 4/10",
            "bytes 0-4/10/10",
            "bytes  0-4/10",
            "bytes +0-4/10",
        ] {
            assert_eq!(
                ContentRange::parse(&HeaderValue::from_static(text)),
                None,
                "{text}"
            );
        }
        assert_eq!(ContentRange::unsatisfied(10), "bytes */10");
        assert_eq!(ContentRange::to_header(&(0..5), 10), "bytes 0-4/10");
    }

    #[test]
    fn multipart_bodies_have_the_length_announced() {
        let boundary = Boundary::new(1);
        assert_ne!(boundary, Boundary::new(2));
        let name = std::str::from_utf8(boundary.as_bytes()).unwrap();
        let announced = format!("multipart/byteranges; boundary={name}");
        assert_eq!(boundary.content_type(), announced.as_str());
        let text = HeaderValue::from_static("text/plain");
        let spans = [0..5_u64, 7..9, 100..101];
        for content_type in [None, Some(&text)] {
            let mut body = Vec::new();
            for (place, span) in spans.iter().enumerate() {
                let head = boundary.part_head(content_type, span, 1000, place == 0);
                body.extend_from_slice(&head);
                body.resize(body.len() + (span.end - span.start) as usize, b'x');
            }
            body.extend_from_slice(&boundary.end());
            let total = boundary.total_length(content_type, &spans, 1000);
            assert_eq!(body.len() as u64, total);
            if content_type.is_some() {
                let part = |range: &str, bytes: &str| {
                    format!(
                        "--{name}\r\nContent-Type: text/plain\r\n\
                         Content-Range: bytes {range}/1000\r\n\r\n{bytes}\r\n"
                    )
                };
                let parts = [
                    part("0-4", "xxxxx"),
                    part("7-8", "xx"),
                    part("100-100", "x"),
                ];
                let expected = format!("{}--{name}--\r\n", parts.concat());
                assert_eq!(String::from_utf8(body).unwrap(), expected);
            }
        }
        let everything = boundary.total_length(None, &[0..u64::MAX, 0..u64::MAX], u64::MAX);
        assert_eq!(everything, u64::MAX);
    }
}
