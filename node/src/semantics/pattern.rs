//! The paths that follow one by an operator's pattern: a number in it counts on.
//!
//! Kept true here: all but the number stays byte for byte, and the number keeps its width as long as its
//! value has room in it. Matching takes time in proportion to the path (no backtracking), and both pattern
//! and path are bounded.

use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder};

/// Paths that follow one, at most.
pub const MAX_COUNT: usize = 64;

/// Longest path that is looked at, in bytes.
pub const MAX_PATH_BYTES: usize = 4 << 10;

/// Longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 10;

/// Memory of a compiled pattern, at most.
const MAX_COMPILED_BYTES: usize = 64 << 10;

/// The group that is the number, where it is not the last one that matched digits only.
const NUMBER: &str = "number";

/// Which paths follow one.
#[derive(Clone, Debug)]
pub struct PathPattern {
    regex: Regex,
    count: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    #[error("the pattern is longer than 1024 bytes")]
    TooLong,
    #[error(
        "the pattern has no group: what is to count on stands in parentheses, as in `(.*-)(\\d+)(\\.ts)`"
    )]
    NoGroup,
    #[error("the count is not between 1 and 64")]
    Count,
    #[error("{0}")]
    Syntax(Box<str>),
}

impl PathPattern {
    /// `pattern` is a regular expression for a whole path, ASCII only. The number is the group `number`
    /// (`(?P<number>\d+)`), or else the last group that matched digits and nothing else.
    pub fn new(pattern: &str, count: usize) -> Result<PathPattern, BadPattern> {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(BadPattern::TooLong);
        }
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(BadPattern::Count);
        }
        let syntax = |error: regex::Error| BadPattern::Syntax(error.to_string().into());
        let compile = |pattern: &str| {
            let mut builder = RegexBuilder::new(pattern);
            builder
                .unicode(false)
                .size_limit(MAX_COMPILED_BYTES)
                .build()
        };
        // Alone at first: it must not close the group that is put around it.
        compile(pattern).map_err(syntax)?;
        let regex = compile(&format!("^(?:{pattern})$")).map_err(syntax)?;
        if regex.captures_len() < 2 {
            return Err(BadPattern::NoGroup);
        }
        Ok(PathPattern { regex, count })
    }

    /// The next paths, nearest first; none for a path of another form. `path` is without its query. Ends
    /// where the number would not fit into 64 bits.
    pub fn following(&self, path: &[u8]) -> Vec<Box<[u8]>> {
        let Some(digits) = self.number(path) else {
            return Vec::new();
        };
        let (before, after) = (&path[..digits.start], &path[digits.end..]);
        let width = digits.len();
        let Some(number) = value(&path[digits]) else {
            return Vec::new();
        };
        let steps = 1..=self.count as u64;
        let numbers = steps.map_while(|step| number.checked_add(step));
        numbers
            .map(|next| {
                [before, format!("{next:0width$}").as_bytes(), after]
                    .concat()
                    .into()
            })
            .collect()
    }

    /// Where in the path the number stands.
    fn number(&self, path: &[u8]) -> Option<Range<usize>> {
        if path.len() > MAX_PATH_BYTES {
            return None;
        }
        let groups = self.regex.captures(path)?;
        let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        let found = match groups.name(NUMBER) {
            Some(named) => Some(named).filter(|group| is_number(group.as_bytes())),
            None => groups
                .iter()
                .skip(1)
                .flatten()
                .filter(|group| is_number(group.as_bytes()))
                .last(),
        };
        Some(found?.range())
    }
}

fn value(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |value, digit| {
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_count_on() {
        const USUAL: &str = r"(.*-)(\d+)(\.ts)";
        #[rustfmt::skip]
        let cases: &[(&str, usize, &str, &[&str])] = &[
            (USUAL, 3, "/live/a-7.ts", &["/live/a-8.ts", "/live/a-9.ts", "/live/a-10.ts"]),
            (USUAL, 2, "/a-0098.ts", &["/a-0099.ts", "/a-0100.ts"]),
            (USUAL, 1, "/a-999.ts", &["/a-1000.ts"]),
            (USUAL, 1, "/a-000.ts", &["/a-001.ts"]),
            (USUAL, 1, "/2024-01/a-5-6.ts", &["/2024-01/a-5-7.ts"]),
            (USUAL, 2, "/a-18446744073709551614.ts", &["/a-18446744073709551615.ts"]),
            (USUAL, 2, "/a-18446744073709551615.ts", &[]),
            (USUAL, 2, "/a-99999999999999999999999.ts", &[]),
            (USUAL, 1, "/a-00000000000000000000000007.ts", &["/a-00000000000000000000000008.ts"]),
            // Another form, or only a part of it.
            (USUAL, 1, "/a-7.m4s", &[]),
            (USUAL, 1, "/a-7.ts.bak", &[]),
            (USUAL, 1, "/a-.ts", &[]),
            (USUAL, 1, "", &[]),
            // Whole paths only, and alternatives stay within that.
            (r"/x/(\d+)", 1, "/x/1", &["/x/2"]),
            (r"/x/(\d+)", 1, "/x/1/y", &[]),
            (r"/a(\d)|/b(\d)", 1, "/b1", &["/b2"]),
            (r"/a(\d)|/b(\d)", 1, "/b1x", &[]),
            // Which group.
            (r"/(\d+)/(\d+)/(.*)", 1, "/1/2/x", &["/1/3/x"]),
            (r"/(\d+)/(\d+)/(.*)", 1, "/1/2/3", &["/1/2/4"]),
            (r"/(?P<number>\d+)/(\d+)\.ts", 1, "/1/2.ts", &["/2/2.ts"]),
            (r"/(?P<number>\w+)/(\d+)\.ts", 1, "/a/2.ts", &[]),
            (r"/(a+)", 1, "/aa", &[]),
            // Bytes, not characters.
            (r"/é(\d+)", 1, "/é1", &["/é2"]),
            (r"(.*)(\d)", 1, "/\u{661}1", &["/\u{661}2"]),
            (r"(.*)/(\d)", 1, "/\u{661}", &[]),
        ];
        for (pattern, count, path, expected) in cases {
            let following = PathPattern::new(pattern, *count)
                .unwrap()
                .following(path.as_bytes());
            let following: Vec<_> = following
                .iter()
                .map(|path| String::from_utf8_lossy(path))
                .collect();
            assert_eq!(following, *expected, "{pattern} {path}");
        }
        let long = [&[b'/'; MAX_PATH_BYTES][..], b"-1.ts"].concat();
        assert!(
            PathPattern::new(USUAL, 1)
                .unwrap()
                .following(&long)
                .is_empty()
        );
    }

    #[test]
    fn bad_patterns_are_refused() {
        let refusal = |pattern: &str, count| PathPattern::new(pattern, count).err();
        assert_eq!(refusal(r"\d+", 1), Some(BadPattern::NoGroup));
        assert_eq!(refusal(r"(\d+)", 0), Some(BadPattern::Count));
        assert_eq!(refusal(r"(\d+)", 65), Some(BadPattern::Count));
        assert_eq!(refusal(&"a".repeat(2000), 1), Some(BadPattern::TooLong));
        for pattern in [
            "(",
            "(a))(",
            r"(\d{1000}{1000})",
            r"(\pL)",
            "(?<number>a)(?<number>b)",
        ] {
            let refused = refusal(pattern, 1);
            assert!(
                matches!(refused, Some(BadPattern::Syntax(_))),
                "{pattern}: {refused:?}"
            );
        }
    }
}
