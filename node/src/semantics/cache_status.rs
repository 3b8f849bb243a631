//! `Cache-Status` (RFC 9211): what this node did with a request.
//!
//! Every answer carries it: an HTTP/1 head has it written into place, other users take a value that is
//! made in a buffer on the stack.

use std::io::{self, Write};

use http::HeaderValue;

/// Bytes that a value without key and detail fits into.
const USUAL_BYTES: usize = 192;
/// Bytes of a key or detail that are written; the rest is cut off.
const TEXT_BYTES: usize = 1024;
/// The greatest integer of a structured field (RFC 9651 §3.3.1).
const INTEGER_MAX: i64 = 999_999_999_999_999;

/// One member of the field. `hit` and `fwd` exclude each other: with `fwd`, `hit` is not written;
/// without it, neither are `fwd_status`, `stored` and `collapsed`, which belong to a forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    /// Who says it, such as `caje/lhr`.
    pub cache: &'a str,
    pub hit: bool,
    /// Why the request went forward: a token of RFC 9211 §2.2.
    pub fwd: Option<&'static str>,
    pub fwd_status: Option<u16>,
    /// Remaining freshness in seconds; negative when stale.
    pub ttl: Option<i64>,
    pub stored: bool,
    pub collapsed: bool,
    pub key: Option<&'a [u8]>,
    pub detail: Option<&'a str>,
}

impl CacheStatus<'_> {
    pub fn to_header(&self) -> HeaderValue {
        let mut room = [0; USUAL_BYTES];
        let mut rest = &mut room[..];
        let value = match self.write(&mut rest) {
            Ok(()) => {
                let used = USUAL_BYTES - rest.len();
                HeaderValue::from_bytes(&room[..used])
            }
            Err(_) => {
                let mut long = Vec::with_capacity(2 * USUAL_BYTES);
                // Writing to memory does not fail.
                let _ = self.write(&mut long);
                HeaderValue::from_bytes(&long)
            }
        };
        // Everything that is written is printable ASCII.
        value.unwrap_or_else(|_| HeaderValue::from_static("caje"))
    }

    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        write_string(out, self.cache.as_bytes())?;
        match self.fwd {
            Some(reason) => {
                out.write_all(b"; fwd=")?;
                write_item(out, reason.as_bytes())?;
                if let Some(status) = self.fwd_status {
                    out.write_all(b"; fwd-status=")?;
                    out.write_all(itoa::Buffer::new().format(status).as_bytes())?;
                }
            }
            None if self.hit => out.write_all(b"; hit")?,
            None => {}
        }
        if let Some(ttl) = self.ttl {
            let ttl = ttl.clamp(-INTEGER_MAX, INTEGER_MAX);
            out.write_all(b"; ttl=")?;
            out.write_all(itoa::Buffer::new().format(ttl).as_bytes())?;
        }
        if self.fwd.is_some() && self.stored {
            out.write_all(b"; stored")?;
        }
        if self.fwd.is_some() && self.collapsed {
            out.write_all(b"; collapsed")?;
        }
        if let Some(key) = self.key {
            out.write_all(b"; key=")?;
            write_string(out, key)?;
        }
        if let Some(detail) = self.detail {
            out.write_all(b"; detail=")?;
            write_item(out, detail.as_bytes())?;
        }
        Ok(())
    }
}

/// An sf-token where the text is one, an sf-string otherwise.
fn write_item(out: &mut impl Write, text: &[u8]) -> io::Result<()> {
    if is_token(text) {
        out.write_all(text)
    } else {
        write_string(out, text)
    }
}

/// An sf-string. Bytes it cannot hold are percent-encoded.
fn write_string(out: &mut impl Write, text: &[u8]) -> io::Result<()> {
    let mut rest = &text[..text.len().min(TEXT_BYTES)];
    out.write_all(b"\"")?;
    while !rest.is_empty() {
        let plain = rest
            .iter()
            .position(|byte| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\'))
            .unwrap_or(rest.len());
        out.write_all(&rest[..plain])?;
        rest = &rest[plain..];
        let Some((&special, after)) = rest.split_first() else {
            break;
        };
        if matches!(special, b'"' | b'\\') {
            out.write_all(&[b'\\', special])?;
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            let high = DIGITS[usize::from(special >> 4)];
            let low = DIGITS[usize::from(special & 15)];
            out.write_all(&[b'%', high, low])?;
        }
        rest = after;
    }
    out.write_all(b"\"")
}

/// RFC 9651 §3.3.4.
fn is_token(text: &[u8]) -> bool {
    let Some((first, rest)) = text.split_first() else {
        return false;
    };
    let is_start = first.is_ascii_alphabetic() || *first == b'*';
    is_start
        && text.len() <= TEXT_BYTES
        && rest
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISS: CacheStatus<'static> = CacheStatus {
        cache: "caje/lhr",
        hit: false,
        fwd: Some("uri-miss"),
        fwd_status: None,
        ttl: None,
        stored: false,
        collapsed: false,
        key: None,
        detail: None,
    };
    const HIT: CacheStatus<'static> = CacheStatus {
        hit: true,
        fwd: None,
        ..MISS
    };

    #[test]
    fn members() {
        #[rustfmt::skip]
        let cases: &[(CacheStatus<'_>, &str)] = &[
            (CacheStatus { ttl: Some(57), ..HIT }, r#""caje/lhr"; hit; ttl=57"#),
            (CacheStatus { ttl: Some(-412), ..HIT }, r#""caje/lhr"; hit; ttl=-412"#),
            (CacheStatus { ttl: Some(i64::MIN), ..HIT }, r#""caje/lhr"; hit; ttl=-999999999999999"#),
            (CacheStatus { ttl: Some(i64::MAX), ..HIT }, r#""caje/lhr"; hit; ttl=999999999999999"#),
            (CacheStatus { stored: true, collapsed: true, fwd_status: Some(200), ..HIT }, r#""caje/lhr"; hit"#),
            (MISS, r#""caje/lhr"; fwd=uri-miss"#),
            (
                CacheStatus { fwd_status: Some(200), ttl: Some(60), stored: true, collapsed: true, ..MISS },
                r#""caje/lhr"; fwd=uri-miss; fwd-status=200; ttl=60; stored; collapsed"#,
            ),
            (CacheStatus { hit: true, ..MISS }, r#""caje/lhr"; fwd=uri-miss"#),
            (CacheStatus { hit: false, ..HIT }, r#""caje/lhr""#),
            (CacheStatus { detail: Some("no-store"), ..MISS }, r#""caje/lhr"; fwd=uri-miss; detail=no-store"#),
            (CacheStatus { detail: Some("9 \"lives\""), ..MISS }, r#""caje/lhr"; fwd=uri-miss; detail="9 \"lives\"""#),
            (CacheStatus { detail: Some(""), ..HIT }, r#""caje/lhr"; hit; detail="""#),
            (CacheStatus { key: Some(b"/a\\\"\r\n\xff\0"), ..HIT }, r#""caje/lhr"; hit; key="/a\\\"%0D%0A%FF%00""#),
            (CacheStatus { cache: "\u{fc}\"", ..HIT }, r#""%C3%BC\""; hit"#),
        ];
        for (status, expected) in cases {
            let value = status.to_header();
            assert_eq!(value.as_bytes(), expected.as_bytes(), "{status:?}");
        }
    }

    #[test]
    fn long_text_leaves_the_stack_and_is_cut() {
        for length in 0..2 * TEXT_BYTES {
            let key = vec![b'k'; length];
            let status = CacheStatus {
                key: Some(&key),
                ..HIT
            };
            let value = status.to_header();
            let expected = r#""caje/lhr"; hit; key="""#.len() + length.min(TEXT_BYTES);
            assert_eq!(value.len(), expected);
        }
    }

    #[test]
    fn every_value_is_a_structured_field() {
        let mut texts: Vec<String> = (0..=255_u8).map(|byte| char::from(byte).into()).collect();
        texts.push("*tchar:/!#$%&'*+-.^_`|~09azAZ".into());
        for text in &texts {
            let status = CacheStatus {
                cache: text,
                key: Some(text.as_bytes()),
                detail: Some(text),
                ..MISS
            };
            let value = status.to_header();
            let list = sfv::Parser::new(value.as_bytes()).parse::<sfv::List>();
            assert_eq!(list.map(|list| list.len()).ok(), Some(1), "{value:?}");
        }
    }
}
