//! As much of an HTTP/1.1 client as LiteFS's port needs: one GET for each connection.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Limit of a head, of a line of chunked coding, of an event, and of `/info`'s body.
pub(crate) const LIMIT: u64 = 64 << 10;

/// Why LiteFS's HTTP port gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// There is nobody at the address, or it did not answer in time.
    #[error(
        "no LiteFS answers at {addr} ({source}); try: compare it with `http.addr` in litefs.yml, and look whether LiteFS runs"
    )]
    Unreachable {
        /// Host and port.
        addr: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody answers who is not LiteFS 0.5, or LiteFS refuses.
    #[error(
        "{addr} answered {status} for {path}; try: is that LiteFS's own port, not its proxy's?"
    )]
    Status {
        /// Host and port.
        addr: String,
        /// What was asked for.
        path: &'static str,
        /// The status.
        status: u16,
    },
    /// What came is not what LiteFS writes.
    #[error("{addr} sent {what}; try: is that LiteFS's own port, not its proxy's?")]
    Malformed {
        /// Host and port.
        addr: String,
        /// What was wrong with it.
        what: &'static str,
    },
    /// A stream of events that ended: LiteFS went away, or the reader was too slow for it.
    #[error("{addr} has ended the stream of events; try: the log of LiteFS")]
    Ended {
        /// Host and port.
        addr: String,
    },
}

/// A body, without its framing.
pub(crate) struct Body {
    stream: BufReader<TcpStream>,
    framing: Framing,
}

enum Framing {
    UntilEnd,
    Length(u64),
    Chunked {
        /// Of the current chunk.
        left: u64,
        first: bool,
    },
}

/// Opens a connection; each address that the name has gets `timeout`.
pub(crate) fn connect(addr: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addr.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Asks for `path`, and reads the head of the answer. No single read waits longer than the stream's timeout.
pub(crate) fn get(stream: TcpStream, addr: &str, path: &'static str) -> Result<Body, HttpError> {
    let unreachable = |source| HttpError::Unreachable {
        addr: addr.to_owned(),
        source,
    };
    let malformed = |what| HttpError::Malformed {
        addr: addr.to_owned(),
        what,
    };
    let mut stream = BufReader::new(stream);
    write!(
        stream.get_mut(),
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )
    .map_err(unreachable)?;
    let mut head = (&mut stream).take(LIMIT);
    let line = |head: &mut io::Take<&mut BufReader<TcpStream>>| {
        let mut text = String::new();
        match head.read_line(&mut text) {
            Ok(_) if text.ends_with('\n') => Ok(text.trim_end().to_owned()),
            Ok(_) => Err(malformed("a head that does not end")),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(malformed("a head that is no text"))
            }
            Err(error) => Err(unreachable(error)),
        }
    };
    let status = status(&line(&mut head)?).ok_or_else(|| malformed("no HTTP/1.1"))?;
    let mut framing = Framing::UntilEnd;
    loop {
        let field = line(&mut head)?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field
            .split_once(':')
            .ok_or_else(|| malformed("a header line without a colon"))?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            framing = Framing::Chunked {
                left: 0,
                first: true,
            };
        } else if name.eq_ignore_ascii_case("content-length") {
            let length = value.trim().parse();
            framing = Framing::Length(length.map_err(|_| malformed("a length that is none"))?);
        }
    }
    if status != 200 {
        let addr = addr.to_owned();
        return Err(HttpError::Status { addr, path, status });
    }
    Ok(Body { stream, framing })
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.1 ")?;
    rest.get(..3)?.parse().ok()
}

impl Body {
    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(timeout)
    }
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let left = match &mut self.framing {
            Framing::UntilEnd => return self.stream.read(into),
            Framing::Length(left) => left,
            Framing::Chunked { left, first } => {
                if *left == 0 {
                    *left = next_chunk(&mut self.stream, *first)?;
                    *first = false;
                }
                left
            }
        };
        if *left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(into.len());
        let got = self.stream.read(&mut into[..most])?;
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        *left -= got as u64;
        Ok(got)
    }
}

/// The size of the next chunk; 0 at the end. Trailers are left unread: nothing follows on the connection.
fn next_chunk(stream: &mut impl BufRead, first: bool) -> io::Result<u64> {
    if !first && !chunk_line(stream)?.is_empty() {
        return Err(ErrorKind::InvalidData.into());
    }
    let line = chunk_line(stream)?;
    let size = line.split(';').next().unwrap_or_default().trim();
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ErrorKind::InvalidData.into());
    }
    u64::from_str_radix(size, 16).map_err(|_| ErrorKind::InvalidData.into())
}

fn chunk_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.take(LIMIT).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{HttpError, connect, get};
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;
    use std::time::Duration;

    /// Answers one connection after the other with these bytes, and closes.
    pub(crate) fn server(answers: Vec<Vec<u8>>) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("an address").to_string();
        let thread = std::thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().expect("accept");
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).expect("read a request");
                }
                // Whoever asked may have seen enough.
                let _ = stream.get_mut().write_all(&answer);
            }
        });
        (addr, thread)
    }

    fn body(answer: &[u8]) -> Result<Result<String, std::io::ErrorKind>, HttpError> {
        let (addr, thread) = server(vec![answer.to_owned()]);
        let stream = connect(&addr, Duration::from_secs(5)).expect("connect");
        let got = get(stream, &addr, "/info").map(|mut body| {
            let mut text = String::new();
            let read = body.read_to_string(&mut text);
            read.map(|_| text).map_err(|error| error.kind())
        });
        thread.join().expect("the server");
        got
    }

    #[test]
    fn bodies_are_read_by_their_framing() {
        let whole: &[(&str, &str)] = &[
            ("Content-Length: 5\r\n\r\nhello, and more", "hello"),
            ("\r\nuntil the end", "until the end"),
            (
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\nA\r\n0123456789\r\n0\r\n\r\n",
                "hello!0123456789",
            ),
            ("transfer-encoding:chunked\r\n\r\n0\r\n\r\n", ""),
        ];
        for (rest, expected) in whole {
            let answer = format!("HTTP/1.1 200 OK\r\n{rest}");
            let got = body(answer.as_bytes()).expect("a head");
            assert_eq!(got.as_deref(), Ok(*expected), "{rest:?}");
        }
        for rest in [
            "Content-Length: 6\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n",
            "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let answer = format!("HTTP/1.1 200 OK\r\n{rest}");
            assert!(
                body(answer.as_bytes()).expect("a head").is_err(),
                "{rest:?}"
            );
        }
    }

    #[test]
    fn what_is_no_answer_of_litefs_is_told() {
        let refused = body(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        assert!(matches!(
            refused,
            Err(HttpError::Status { status: 404, .. })
        ));
        for answer in [
            &b"SSH-2.0-OpenSSH_9.6\r\n"[..],
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nServ",
            b"HTTP/1.1 \xff\xff\r\n\r\n",
            b"",
        ] {
            let got = body(answer);
            assert!(matches!(got, Err(HttpError::Malformed { .. })), "{got:?}");
        }
    }
}
