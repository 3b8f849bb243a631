//! Writers of heads and chunks, into a buffer that the caller reuses.
//!
//! The field writers skip what belongs to one connection and is decided here from [`Framing`]:
//! `content-length`, `transfer-encoding`, `connection`, `keep-alive`, `proxy-connection`, `upgrade`,
//! `host`, `expect`. A caller that wants one of them says so by an argument.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};

use super::Framing;

/// What the sender of a message says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// The version's default: persistent for HTTP/1.1. Nothing is written.
    Default,
    /// `connection: keep-alive`, which an HTTP/1.0 peer needs to hear.
    KeepAlive,
    /// `connection: close`.
    Close,
    /// `connection: upgrade`, beside an `upgrade` field that is then taken from the map.
    Upgrade,
}

/// Writes a whole request head: request line, `host`, fields, framing, empty line.
///
/// `target` and `authority` go out as they are and must have been checked by whoever made them
/// (they come from [`super::RequestHead`] or the configuration).
pub fn request_head(
    out: &mut BytesMut,
    method: &Method,
    target: &[u8],
    authority: &[u8],
    headers: &HeaderMap,
    framing: Framing,
    persistence: Persistence,
) {
    out.reserve(128 + target.len() + headers.len() * 48);
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target);
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(authority);
    out.put_slice(b"\r\n");
    fields(out, headers);
    if framing == Framing::None && expects_content(method) {
        field_number(out, b"content-length", 0);
    } else {
        framing_fields(out, framing);
    }
    connection(out, headers, persistence);
    end_of_head(out);
}

/// Writes a whole response head. `framing` [`Framing::None`] writes no framing field at all, as for
/// 204, 304 and 1xx; an empty body of any other status is `Length(0)`.
///
/// A HEAD or 304 answer that should tell a length passes `Length` here and then sends no body.
pub fn response_head(
    out: &mut BytesMut,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    persistence: Persistence,
) {
    out.reserve(96 + headers.len() * 48);
    status_line(out, version, status);
    fields(out, headers);
    framing_fields(out, framing);
    connection(out, headers, persistence);
    end_of_head(out);
}

/// Writes an interim (1xx) response, whole.
pub fn interim_head(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    status_line(out, Version::HTTP_11, status);
    fields(out, headers);
    end_of_head(out);
}

/// `HTTP/1.1 200 OK` and CRLF. An HTTP/1.0 client is answered as 1.1 too (RFC 9110 §6.2: a server
/// tells its own version), unless the caller passes `HTTP_10`.
pub fn status_line(out: &mut BytesMut, version: Version, status: StatusCode) {
    out.put_slice(if version == Version::HTTP_10 {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    });
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

/// All fields of the map, without those that belong to one connection (module head).
pub fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        if !is_per_connection(name) {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// One field line. The caller vouches for name and value.
#[inline]
pub fn field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// One field line with a decimal number.
pub fn field_number(out: &mut BytesMut, name: &[u8], value: u64) {
    field(out, name, itoa::Buffer::new().format(value).as_bytes());
}

/// The field that announces `framing`, if it needs one.
pub fn framing_fields(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::Length(length) => field_number(out, b"content-length", length),
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
}

/// The empty line.
pub fn end_of_head(out: &mut BytesMut) {
    out.put_slice(b"\r\n");
}

/// The line before a chunk's data: what follows must be `length` bytes and then [`CHUNK_END`].
///
/// `length` 0 would end the body and is never written: nothing is.
pub fn chunk_start(out: &mut BytesMut, length: usize) {
    if length == 0 {
        return;
    }
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4);
    for shift in (0..digits).rev() {
        out.put_u8(b"0123456789abcdef"[(length >> (shift * 4)) & 0xf]);
    }
    out.put_slice(b"\r\n");
}

/// What follows a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The last chunk and an empty trailer section.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A whole chunk, data copied. Writes nothing for empty data.
pub fn chunk(out: &mut BytesMut, data: &[u8]) {
    if !data.is_empty() {
        out.reserve(data.len() + 20);
        chunk_start(out, data.len());
        out.put_slice(data);
        out.put_slice(CHUNK_END);
    }
}

/// The last chunk with its trailers; fields that may not be trailers (RFC 9110 §6.5.1) are left out.
pub fn last_chunk(out: &mut BytesMut, trailers: &HeaderMap) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers {
        if !is_per_connection(name) && *name != header::TRAILER {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

fn connection(out: &mut BytesMut, headers: &HeaderMap, persistence: Persistence) {
    match persistence {
        Persistence::Default => {}
        Persistence::KeepAlive => out.put_slice(b"connection: keep-alive\r\n"),
        Persistence::Close => out.put_slice(b"connection: close\r\n"),
        Persistence::Upgrade => {
            out.put_slice(b"connection: upgrade\r\n");
            for value in headers.get_all(header::UPGRADE) {
                field(out, b"upgrade", value.as_bytes());
            }
        }
    }
}

/// Methods whose requests say `content-length: 0` when they have no content (RFC 9110 §8.6).
fn expects_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

fn is_per_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "expect"
            | "upgrade"
            | "connection"
            | "keep-alive"
            | "content-length"
            | "proxy-connection"
            | "transfer-encoding"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn a_request_head_carries_only_our_framing() {
        let mut out = BytesMut::new();
        let headers = map(&[
            ("accept", "*/*"),
            ("content-length", "7"),
            ("transfer-encoding", "gzip"),
            ("host", "evil"),
            ("connection", "x"),
            ("expect", "100-continue"),
            ("upgrade", "h2c"),
        ]);
        request_head(
            &mut out,
            &Method::PUT,
            b"/a?b",
            b"o.example:81",
            &headers,
            Framing::Chunked,
            Persistence::Default,
        );
        assert_eq!(
            &out[..],
            b"PUT /a?b HTTP/1.1\r\nhost: o.example:81\r\naccept: */*\r\n\
              transfer-encoding: chunked\r\n\r\n"
        );
    }

    #[test]
    fn an_empty_post_tells_its_length_and_a_get_does_not() {
        for (method, expected) in [
            (
                Method::POST,
                "POST / HTTP/1.1\r\nhost: o\r\ncontent-length: 0\r\n\r\n",
            ),
            (Method::GET, "GET / HTTP/1.1\r\nhost: o\r\n\r\n"),
        ] {
            let mut out = BytesMut::new();
            let none = HeaderMap::new();
            request_head(
                &mut out,
                &method,
                b"/",
                b"o",
                &none,
                Framing::None,
                Persistence::Default,
            );
            assert_eq!(std::str::from_utf8(&out), Ok(expected));
        }
    }

    #[test]
    fn an_upgrade_is_written_only_when_asked_for() {
        let headers = map(&[("upgrade", "websocket")]);
        let mut out = BytesMut::new();
        response_head(
            &mut out,
            Version::HTTP_11,
            StatusCode::SWITCHING_PROTOCOLS,
            &headers,
            Framing::None,
            Persistence::Upgrade,
        );
        assert_eq!(
            &out[..],
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        );
    }

    #[test]
    fn response_framing_and_persistence() {
        let table = [
            (
                Framing::Length(70_000),
                Persistence::Close,
                "content-length: 70000\r\nconnection: close\r\n",
            ),
            (
                Framing::Chunked,
                Persistence::KeepAlive,
                "transfer-encoding: chunked\r\nconnection: keep-alive\r\n",
            ),
            (
                Framing::UntilClose,
                Persistence::Close,
                "connection: close\r\n",
            ),
            (Framing::None, Persistence::Default, ""),
        ];
        for (framing, persistence, expected) in table {
            let mut out = BytesMut::new();
            let none = HeaderMap::new();
            response_head(
                &mut out,
                Version::HTTP_11,
                StatusCode::OK,
                &none,
                framing,
                persistence,
            );
            assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{expected}\r\n"));
        }
        let mut out = BytesMut::new();
        interim_head(&mut out, StatusCode::EARLY_HINTS, &map(&[("link", "</a>")]));
        assert_eq!(&out[..], b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    }

    #[test]
    fn chunks() {
        for (length, line) in [
            (1, "1\r\n"),
            (15, "f\r\n"),
            (16, "10\r\n"),
            (255, "ff\r\n"),
            (256, "100\r\n"),
            (0x12345, "12345\r\n"),
            (0, ""),
        ] {
            let mut out = BytesMut::new();
            chunk_start(&mut out, length);
            assert_eq!(out, line);
        }
        let mut out = BytesMut::new();
        chunk(&mut out, b"hello");
        chunk(&mut out, b"");
        last_chunk(
            &mut out,
            &map(&[("etag", "\"a\""), ("content-length", "3")]),
        );
        assert_eq!(&out[..], b"5\r\nhello\r\n0\r\netag: \"a\"\r\n\r\n");
    }
}
