//! HTTP/1.1 as far as one operator's request needs it: one connection, one request, one answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::failure::Failure;

/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two pieces of an answer. Events come at least every ten seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest line of a head, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// Most fields of an answer's head.
const MAX_FIELDS: usize = 256;

/// Longest answer that is kept, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Where a node listens for its operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// An answer whose body has not been read.
pub struct Answer {
    pub status: u16,
    body: Body,
}

enum Framing {
    Length(u64),
    Chunked { left: u64, is_over: bool },
    UntilEnd,
}

struct Body {
    from: BufReader<TcpStream>,
    framing: Framing,
}

impl Endpoint {
    /// `http://host:port`, or without the scheme.
    pub fn parse(text: &str) -> Result<Endpoint, Failure> {
        let wrong = |why: &str| {
            let what = format!("`{text}` is no endpoint: {why}");
            Failure::usage(
                what,
                "set --endpoint or CAJE_ENDPOINT to http://HOST:PORT of a node's admin listener",
            )
        };
        if text.starts_with("https://") {
            let what = "this command speaks no TLS".to_owned();
            let remedy = "make a tunnel to the admin listener (`ssh -L 9180:127.0.0.1:9180 HOST`, `fly proxy 9180`), \
                          and use http://127.0.0.1:9180";
            return Err(Failure::usage(what, remedy));
        }
        let rest = text
            .strip_prefix("http://")
            .unwrap_or(text)
            .trim_end_matches('/');
        if rest.contains(['/', '?', '@', ' ']) {
            return Err(wrong("only a host and a port are meant"));
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') || host.starts_with('[') => (
                host,
                port.parse().map_err(|_| wrong("its port is no number"))?,
            ),
            _ => (rest, 9180),
        };
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        Ok(Endpoint {
            host: host.to_owned(),
            port,
        })
    }

    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Sends a request and reads the head of its answer.
    pub fn send(
        &self,
        method: &str,
        target: &str,
        token: Option<&str>,
        body: Option<(&str, &[u8])>,
    ) -> Result<Answer, Failure> {
        let authority = self.authority();
        let unreachable = |error: std::io::Error| {
            Failure::error(
                format!("the node at http://{authority} cannot be reached: {error}"),
                "check that it runs and that this is `admin.listen` of its settings; set --endpoint or CAJE_ENDPOINT",
            )
        };
        let stream = self.connect().map_err(unreachable)?;
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n");
        head.push_str(concat!(
            "user-agent: caje/",
            env!("CARGO_PKG_VERSION"),
            "\r\n"
        ));
        if let Some(token) = token {
            if token.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
                let what = "the token has characters that no token has".to_owned();
                return Err(Failure::usage(
                    what,
                    "copy it again, without spaces and line ends",
                ));
            }
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        let (kind, bytes) = body.unwrap_or_default();
        if body.is_some() {
            head.push_str(&format!("content-type: {kind}\r\n"));
        }
        if body.is_some() || method != "GET" {
            head.push_str(&format!("content-length: {}\r\n", bytes.len()));
        }
        head.push_str("\r\n");
        let broken = |error: std::io::Error| {
            Failure::error(
                format!("the node at http://{authority} broke off: {error}"),
                "try again; its diagnostic log says more",
            )
        };
        let mut from = BufReader::new(stream);
        let sent = from
            .get_mut()
            .write_all(head.as_bytes())
            .and_then(|()| from.get_mut().write_all(bytes));
        // A node that refuses answers before all was sent: what it says counts more.
        let answered = read_head(&mut from);
        let (status, framing) = match (answered, sent) {
            (Ok(answered), _) => answered,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(broken(error)),
        };
        Ok(Answer {
            status,
            body: Body { from, framing },
        })
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::other("its name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(READ_TIMEOUT))?;
                    stream.set_write_timeout(Some(READ_TIMEOUT))?;
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn bad(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

fn line(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(bad("its answer is no HTTP"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| bad("its answer is no HTTP"))
}

fn read_head(from: &mut impl BufRead) -> std::io::Result<(u16, Framing)> {
    let status = line(from)?;
    let status = status
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5)?.parse().ok())
        .ok_or_else(|| bad("its answer is no HTTP"))?;
    let mut framing = Framing::UntilEnd;
    for _ in 0..MAX_FIELDS {
        let field = line(from)?;
        let Some((name, value)) = field.split_once(':') else {
            return match field.is_empty() {
                true => Ok((status, framing)),
                false => Err(bad("its answer is no HTTP")),
            };
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value
                .parse()
                .map_err(|_| bad("its answer has no readable length"))?;
            framing = Framing::Length(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding")
            && value.eq_ignore_ascii_case("chunked")
        {
            framing = Framing::Chunked {
                left: 0,
                is_over: false,
            };
        }
    }
    Err(bad("its answer has too many fields"))
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = match &mut self.framing {
            Framing::UntilEnd => u64::MAX,
            Framing::Length(left) => *left,
            Framing::Chunked { is_over: true, .. } => 0,
            Framing::Chunked { left, is_over } => {
                if *left == 0 {
                    let size = line(&mut self.from)?;
                    let size = size.split(';').next().unwrap_or_default().trim();
                    *left = u64::from_str_radix(size, 16)
                        .map_err(|_| bad("its answer has a broken chunk"))?;
                    if *left == 0 {
                        *is_over = true;
                        return Ok(0);
                    }
                }
                *left
            }
        };
        if most == 0 {
            return Ok(0);
        }
        let most = usize::try_from(most)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.from.read(&mut buffer[..most])?;
        match &mut self.framing {
            Framing::UntilEnd => {}
            Framing::Length(left) => {
                if read == 0 {
                    return Err(bad("its answer was cut off"));
                }
                *left -= read as u64;
            }
            Framing::Chunked { left, .. } => {
                if read == 0 {
                    return Err(bad("its answer was cut off"));
                }
                *left -= read as u64;
                if *left == 0 {
                    line(&mut self.from)?;
                }
            }
        }
        Ok(read)
    }
}

impl Answer {
    pub fn text(self) -> Result<String, Failure> {
        let broken =
            |why: String| Failure::error(why, "try again; the node's diagnostic log says more");
        let mut bytes = Vec::new();
        let mut body = self.body.take(MAX_ANSWER as u64);
        body.read_to_end(&mut bytes)
            .map_err(|error| broken(format!("the node's answer was not whole: {error}")))?;
        String::from_utf8(bytes).map_err(|_| broken("the node's answer is no text".to_owned()))
    }

    /// The lines of the answer, as they come.
    pub fn lines(self) -> impl Iterator<Item = std::io::Result<String>> {
        BufReader::new(self.body).lines()
    }
}

/// What may stand in a query or in a segment of a path as it is.
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let parse = |text: &str| {
            Endpoint::parse(text)
                .map(|endpoint| endpoint.authority())
                .ok()
        };
        for (text, expected) in [
            ("http://127.0.0.1:9180", Some("127.0.0.1:9180")),
            ("http://127.0.0.1:9180/", Some("127.0.0.1:9180")),
            ("node-1.internal", Some("node-1.internal:9180")),
            ("[::1]:7", Some("[::1]:7")),
            ("https://a:1", None),
            ("http://a:b", None),
            ("http://a/b", None),
            ("", None),
        ] {
            assert_eq!(parse(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn answers_of_all_framings() {
        let head = |text: &str| {
            read_head(&mut text.as_bytes())
                .map(|(status, _)| status)
                .ok()
        };
        assert_eq!(
            head("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"),
            Some(200)
        );
        assert_eq!(head("HTTP/1.1 404 \r\n\r\n"), Some(404));
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0\r\n",
            "HTTP/1.1 200 OK\r\nno field\r\n\r\n",
        ] {
            assert_eq!(head(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_encoded() {
        assert_eq!(encode("http://a/b c?d"), "http%3A%2F%2Fa%2Fb%20c%3Fd");
    }
}
