//! The decoder of message bodies.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::head::{find_end, is_token, parse_trailers};
use super::{Framing, Limits};

/// Finds a body's bytes and its end in what a connection delivers.
///
/// ```text
///   Length ──────────────────────────────► End
///   Size ─► Data ─► DataEnd ─► Size …
///     └─(0)─► Trailers ─────────────────► End
///   UntilClose ──(connection_ended)──────► End
/// ```
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    limits: Limits,
    /// Bytes of chunk extensions so far.
    extension_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This many bytes are still to come, at least one.
    Length(u64),
    Size,
    /// This many bytes of a chunk are still to come, at least one.
    Data(u64),
    DataEnd,
    Trailers,
    UntilClose,
    End,
}

/// What [`BodyDecoder::decode`] found.
#[derive(Debug)]
pub enum Decoded {
    /// The next bytes of the body, never empty: a slice of the connection's buffer.
    Data(Bytes),
    /// The trailer section, not empty. [`Decoded::End`] comes next.
    Trailers(HeaderMap),
    /// The buffer holds nothing more for now.
    NeedMore,
    /// The body was complete. What the buffer still holds belongs to no part of it.
    End,
}

/// Why a body is not what its head announced. Nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("malformed: {0}")]
    Malformed(&'static str),
    #[error("{0} too large")]
    TooLarge(&'static str),
    /// The connection ended before the body did.
    #[error("the connection ended before the body")]
    Truncated,
}

impl BodyDecoder {
    pub fn new(framing: Framing, limits: &Limits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            limits: *limits,
            extension_bytes: 0,
        }
    }

    /// The whole body was decoded.
    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// How many bytes the body or the chunk at hand will still deliver at least; 0 when unknown. A
    /// reader sizes its buffer by it.
    pub fn expected_bytes(&self) -> u64 {
        match self.state {
            State::Length(n) | State::Data(n) => n,
            _ => 0,
        }
    }

    /// Takes the next part of the body off the front of `buf`.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, BodyError> {
        loop {
            match self.state {
                State::End => return Ok(Decoded::End),
                _ if buf.is_empty() => return Ok(Decoded::NeedMore),
                State::UntilClose => return Ok(Decoded::Data(buf.split().freeze())),
                State::Length(left) => {
                    let data = take(buf, left);
                    self.state = match left - data.len() as u64 {
                        0 => State::End,
                        left => State::Length(left),
                    };
                    return Ok(Decoded::Data(data));
                }
                State::Data(left) => {
                    let data = take(buf, left);
                    self.state = match left - data.len() as u64 {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                    return Ok(Decoded::Data(data));
                }
                State::DataEnd => match buf[..] {
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.state = State::Size;
                    }
                    [b'\r'] => return Ok(Decoded::NeedMore),
                    _ => return Err(BodyError::Malformed("chunk data longer than its size")),
                },
                State::Size => match self.chunk_size(buf)? {
                    None => return Ok(Decoded::NeedMore),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Data(size),
                },
                State::Trailers => {
                    let end = match find_end(buf, self.limits.max_trailer_bytes) {
                        Ok(Some(end)) => end,
                        Ok(None) => return Ok(Decoded::NeedMore),
                        Err(super::HeadError::TooLarge) => {
                            return Err(BodyError::TooLarge("trailer section"));
                        }
                        Err(_) => return Err(BodyError::Malformed("bare LF")),
                    };
                    let section = buf.split_to(end).freeze();
                    self.state = State::End;
                    if section.len() > 2 {
                        let trailers = parse_trailers(&section, &self.limits);
                        return trailers
                            .map(Decoded::Trailers)
                            .map_err(|error| match error {
                                super::HeadError::TooLarge => {
                                    BodyError::TooLarge("trailer section")
                                }
                                _ => BodyError::Malformed("trailer section"),
                            });
                    }
                }
            }
        }
    }

    /// The peer has ended the connection and all it sent was decoded: the end of a body that lasts
    /// until then, an error for any other that is not complete.
    pub fn connection_ended(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::End => Ok(()),
            State::UntilClose => {
                self.state = State::End;
                Ok(())
            }
            _ => Err(BodyError::Truncated),
        }
    }

    /// Takes a chunk's first line: `1*HEXDIG [ chunk-ext ] CRLF` (RFC 9112 §7.1).
    fn chunk_size(&mut self, buf: &mut BytesMut) -> Result<Option<u64>, BodyError> {
        /// Digits of the largest size that is believed: 2⁶⁰ bytes and leading zeros.
        const MOST_DIGITS: usize = 16;
        let room = self.limits.max_chunk_extension_bytes - self.extension_bytes;
        let within = &buf[..buf.len().min(MOST_DIGITS + room + 2)];

        let digits = within.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits > MOST_DIGITS {
            return Err(BodyError::TooLarge("chunk size"));
        }
        let Some(&after) = within.get(digits) else {
            return Ok(None);
        };
        if digits == 0 || !matches!(after, b'\r' | b';' | b' ' | b'\t') {
            return Err(BodyError::Malformed("chunk size"));
        }
        let Some(lf) = memchr::memchr(b'\n', within) else {
            return if within.len() < buf.len() || within.len() == MOST_DIGITS + room + 2 {
                Err(BodyError::TooLarge("chunk extension"))
            } else if let Some(cr) = memchr::memchr(b'\r', within)
                && cr + 1 < within.len()
            {
                Err(BodyError::Malformed("bare CR in a chunk's first line"))
            } else {
                Ok(None)
            };
        };
        if within[lf - 1] != b'\r' {
            return Err(BodyError::Malformed("bare LF in a chunk's first line"));
        }
        let extension = &within[digits..lf - 1];
        if extension.len() > room {
            return Err(BodyError::TooLarge("chunk extension"));
        }
        if !is_extension(extension) {
            return Err(BodyError::Malformed("chunk extension"));
        }
        self.extension_bytes += extension.len();
        // At most 16 hexadecimal digits always fit.
        let size = within[..digits].iter().fold(0_u64, |size, b| {
            size << 4 | u64::from((*b as char).to_digit(16).unwrap_or_default())
        });
        if size > 1 << 60 {
            return Err(BodyError::TooLarge("chunk size"));
        }
        buf.advance(lf + 1);
        Ok(Some(size))
    }
}

fn take(buf: &mut BytesMut, most: u64) -> Bytes {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if most >= buf.len() {
        buf.split().freeze()
    } else {
        buf.split_to(most).freeze()
    }
}

/// `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )` (RFC 9112 §7.1.1).
fn is_extension(mut rest: &[u8]) -> bool {
    fn skip_space(mut s: &[u8]) -> &[u8] {
        while let [b' ' | b'\t', tail @ ..] = s {
            s = tail;
        }
        s
    }
    fn skip_token(s: &[u8]) -> Option<&[u8]> {
        let length = s.iter().take_while(|b| is_token(**b)).count();
        (length > 0).then(|| &s[length..])
    }
    fn skip_quoted(mut s: &[u8]) -> Option<&[u8]> {
        loop {
            s = match s {
                [b'"', tail @ ..] => return Some(tail),
                [b'\\', b'\t' | b' '..=b'~' | 0x80.., tail @ ..] => tail,
                [b'\t' | b' '..=b'~' | 0x80.., tail @ ..] if s[0] != b'\\' => tail,
                _ => return None,
            };
        }
    }
    while !rest.is_empty() {
        let [b';', tail @ ..] = skip_space(rest) else {
            return false;
        };
        let Some(tail) = skip_token(skip_space(tail)) else {
            return false;
        };
        rest = tail;
        if let [b'=', value @ ..] = skip_space(rest) {
            let value = skip_space(value);
            let after = match value {
                [b'"', quoted @ ..] => skip_quoted(quoted),
                _ => skip_token(value),
            };
            let Some(after) = after else {
                return false;
            };
            rest = after;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body's bytes and trailers, and what is left of the input.
    type Whole = (Vec<u8>, HeaderMap, Vec<u8>);

    /// The whole body, or the error; `None` when bytes are missing.
    fn chunked(input: &[u8]) -> Option<Result<Whole, BodyError>> {
        decode(Framing::Chunked, input, input.len())
    }

    fn decode(framing: Framing, input: &[u8], step: usize) -> Option<Result<Whole, BodyError>> {
        let mut decoder = BodyDecoder::new(framing, &Limits::default());
        let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
        let mut buf = BytesMut::new();
        let mut pieces = input.chunks(step.max(1));
        loop {
            match decoder.decode(&mut buf) {
                Err(error) => return Some(Err(error)),
                Ok(Decoded::Data(data)) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Ok(Decoded::Trailers(fields)) => trailers = fields,
                Ok(Decoded::NeedMore) => buf.extend_from_slice(pieces.next()?),
                Ok(Decoded::End) => {
                    assert!(decoder.is_end());
                    pieces.for_each(|piece| buf.extend_from_slice(piece));
                    return Some(Ok((body, trailers, buf.to_vec())));
                }
            }
        }
    }

    #[test]
    fn good_chunked_bodies_in_pieces_of_any_size() {
        let table: &[(&[u8], &[u8])] = &[
            (b"0\r\n\r\n", b""),
            (b"000\r\n\r\n", b""),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
            (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
            (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
            (b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
            (b"5;a\r\nhello\r\n0;b=c\r\n\r\n", b"hello"),
            (b"5 ; a = b\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"5;a=\"q;\\\"\xff\";b\r\nhello\r\n0\r\n\r\n", b"hello"),
        ];
        for (input, expected) in table {
            let mut with_rest = input.to_vec();
            with_rest.extend_from_slice(b"HTTP/1.1");
            for step in 1..=with_rest.len() {
                let (body, trailers, left) =
                    decode(Framing::Chunked, &with_rest, step).unwrap().unwrap();
                assert_eq!(body, *expected, "{} by {step}", input.escape_ascii());
                assert!(trailers.is_empty());
                assert_eq!(left, b"HTTP/1.1");
            }
            for end in 0..input.len() {
                let cut = chunked(&input[..end]);
                assert!(cut.is_none(), "{} is whole", input[..end].escape_ascii());
            }
        }
    }

    #[test]
    fn bad_chunked_bodies() {
        let table: &[&[u8]] = &[
            // Sizes.
            b"\r\n",
            b"x\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"\t5\r\nhello\r\n",
            b"5x\r\nhello\r\n",
            b"5\0\r\nhello\r\n",
            b"5,5\r\nhello\r\n",
            b"5_0\r\n",
            b"\"5\"\r\n",
            b"5 \r\nhello\r\n",
            b"5\t\r\nhello\r\n",
            b"5 5\r\nhello\r\n",
            b"00000000000000005\r\nhello\r\n",
            b"ffffffffffffffff\r\n",
            b"10000000000000000\r\n",
            b"2000000000000000\r\n",
            // Line ends.
            b"5\nhello\r\n",
            b"5\rhello\r\n",
            b"5\r\rhello\r\n",
            b"5\n\r\nhello",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"5\r\nhello\n\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhelloXX0\r\n\r\n",
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"4\r\nhello\r\n0\r\n\r\n",
            b"6\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\r\n\r\n0\r\n\r\n",
            b"0\n\n",
            b"0\r\n\n",
            b"0\n\r\n",
            b"0\r\r\n\r\n",
            // Extensions (TERM.EXT, EXT.TERM and others of their kind).
            b"5;\r\nhello\r\n",
            b"5; \r\nhello\r\n",
            b"5;;a\r\nhello\r\n",
            b"5;a;\r\nhello\r\n",
            b"5;a=\r\nhello\r\n",
            b"5;=a\r\nhello\r\n",
            b"5;a b\r\nhello\r\n",
            b"5 a\r\nhello\r\n",
            b"5;a=\"b\r\nhello\r\n",
            b"5;a=\"b\"c\r\nhello\r\n",
            b"5;a=\"\\\r\nhello\r\n",
            b"5;a\nhello\r\n",
            b"5;\nhello\r\n",
            b"5;a\rb\r\nhello\r\n",
            b"5;a\rb",
            b"5;a=\"\n\"\r\nhello\r\n",
            b"5;a=\"\r\n\"\r\nhello\r\n",
            b"5;a\0\r\nhello\r\n",
            b"5;a=b\x01\r\nhello\r\n",
            b"5;a=b c\r\nhello\r\n",
            // Trailers.
            b"0\r\nA: b\n\r\n",
            b"0\r\nA: b\r\n\n",
            b"0\r\nA: b\rC: d\r\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
            b"0\r\nA: b\r\n c\r\n\r\n",
            b"0\r\nA: \0\r\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"0\r\nHost: h\r\n\r\n",
            b"0\r\nConnection: close\r\n\r\n",
            b"0\r\nContent_Length: 5\r\n\r\n",
        ];
        for input in table {
            let outcome = chunked(input);
            assert!(
                matches!(outcome, Some(Err(_))),
                "{}: {outcome:?}",
                input.escape_ascii()
            );
            let slowly = decode(Framing::Chunked, input, 1);
            assert!(
                matches!(slowly, Some(Err(_))),
                "{} slowly: {slowly:?}",
                input.escape_ascii()
            );
        }
    }

    #[test]
    fn trailers() {
        let input = b"1\r\nx\r\n0\r\nDigest: a\r\nX-B:  c \r\nx-b: d\r\n\r\nrest";
        for step in 1..input.len() {
            let (body, trailers, left) = decode(Framing::Chunked, input, step).unwrap().unwrap();
            assert_eq!((&body[..], &left[..]), (&b"x"[..], &b"rest"[..]));
            assert_eq!(trailers["digest"], "a");
            let values: Vec<_> = trailers.get_all("x-b").iter().collect();
            assert_eq!(values, ["c", "d"]);
        }
    }

    #[test]
    fn what_is_too_much() {
        let too_large = |input: &str| {
            for step in [1, 1000, input.len()] {
                match decode(Framing::Chunked, input.as_bytes(), step) {
                    Some(Err(BodyError::TooLarge(_))) => {}
                    other => panic!("{:.40}… by {step}: {other:?}", input),
                }
            }
        };
        too_large(&format!("5;a={}\r\nhello\r\n", "b".repeat(5000)));
        too_large(&format!("5;a={}", "b".repeat(5000)));
        // Small ones, too often.
        too_large(&"1;aaaaaaaaa\r\nx\r\n".repeat(500));
        too_large(&format!("0\r\nA: {}\r\n\r\n", "b".repeat(9000)));
        too_large(&format!("0\r\n{}\r\n", "A: b\r\n".repeat(101)));
        too_large(&"0".repeat(17));
    }

    #[test]
    fn lengths_and_ends() {
        let (body, _, left) = decode(Framing::Length(3), b"abcdef", 6).unwrap().unwrap();
        assert_eq!((&body[..], &left[..]), (&b"abc"[..], &b"def"[..]));
        assert!(decode(Framing::Length(7), b"abcdef", 6).is_none());
        assert!(decode(Framing::Length(u64::MAX), b"abcdef", 6).is_none());
        for framing in [Framing::None, Framing::Length(0)] {
            let (body, _, left) = decode(framing, b"abc", 3).unwrap().unwrap();
            assert_eq!((&body[..], &left[..]), (&b""[..], &b"abc"[..]));
        }

        let limits = Limits::default();
        let table: &[(Framing, &[u8], bool)] = &[
            (Framing::None, b"", true),
            (Framing::Length(3), b"abc", true),
            (Framing::Length(3), b"ab", false),
            (Framing::Length(3), b"", false),
            (Framing::UntilClose, b"", true),
            (Framing::UntilClose, b"abc", true),
            (Framing::Chunked, b"", false),
            (Framing::Chunked, b"3\r\nabc", false),
            (Framing::Chunked, b"3\r\nabc\r\n", false),
            (Framing::Chunked, b"3\r\nabc\r\n0\r\n", false),
            (Framing::Chunked, b"3\r\nabc\r\n0\r\n\r\n", true),
        ];
        for (framing, input, is_whole) in table {
            let mut decoder = BodyDecoder::new(*framing, &limits);
            let mut buf = BytesMut::from(*input);
            while let Decoded::Data(_) = decoder.decode(&mut buf).unwrap() {}
            let ended = decoder.connection_ended();
            assert_eq!(
                ended.is_ok(),
                *is_whole,
                "{framing:?} {}",
                input.escape_ascii()
            );
        }
    }

    #[test]
    fn data_is_not_copied() {
        let mut buf = BytesMut::from(&b"5\r\nhello\r\n0\r\n\r\n"[..]);
        let at = buf[3..].as_ptr();
        let mut decoder = BodyDecoder::new(Framing::Chunked, &Limits::default());
        let Ok(Decoded::Data(data)) = decoder.decode(&mut buf) else {
            panic!("no data")
        };
        assert_eq!(data.as_ptr(), at);
    }
}
