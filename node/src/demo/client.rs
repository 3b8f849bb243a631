//! A client that knows nothing of the node: HTTP/1.1, one request per connection, on blocking
//! sockets, with a deadline for each wait.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::stop::Stop;

/// Without a byte from the other side.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at whether everything is to end.
const LOOK: Duration = Duration::from_millis(50);

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_FIELDS: usize = 100;

#[derive(Clone)]
pub struct Client {
    stop: Stop,
}

/// A request that was sent; nothing of its answer has been read.
pub struct Sent {
    wire: Wire,
    is_head: bool,
}

/// An answer whose body may still be on its way.
pub struct Incoming {
    pub head: Head,
    wire: Wire,
    framing: Framing,
}

pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    fields: Vec<(String, String)>,
}

enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    UntilClose,
}

struct Wire {
    stream: TcpStream,
    /// Received, and not yet consumed.
    buffer: Vec<u8>,
    stop: Stop,
}

impl Client {
    pub fn new(stop: Stop) -> Client {
        Client { stop }
    }

    pub fn get(&self, server: SocketAddr, target: &str) -> anyhow::Result<Answer> {
        self.get_with(server, target, &[])
    }

    pub fn get_with(
        &self,
        server: SocketAddr,
        target: &str,
        fields: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        self.send("GET", server, target, fields)?.head()?.rest()
    }

    pub fn post(&self, server: SocketAddr, target: &str) -> anyhow::Result<Answer> {
        let fields = [("Content-Length", "0")];
        self.send("POST", server, target, &fields)?.head()?.rest()
    }

    /// Posts JSON to who knows this token.
    pub fn order(
        &self,
        server: SocketAddr,
        target: &str,
        token: &str,
        json: &str,
    ) -> anyhow::Result<Answer> {
        let (token, length) = (format!("Bearer {token}"), json.len().to_string());
        let fields = [
            ("Authorization", token.as_str()),
            ("Content-Type", "application/json"),
            ("Content-Length", length.as_str()),
        ];
        let mut sent = self.send("POST", server, target, &fields)?;
        let written = sent.wire.stream.write_all(json.as_bytes());
        written.with_context(|| format!("asking {server} for {target}"))?;
        sent.head()?.rest()
    }

    /// Sends a request and waits for nothing.
    pub fn send(
        &self,
        method: &str,
        server: SocketAddr,
        target: &str,
        fields: &[(&str, &str)],
    ) -> anyhow::Result<Sent> {
        let stream = TcpStream::connect_timeout(&server, CONNECT_LIMIT)
            .with_context(|| format!("connecting to {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !fields.iter().any(|(name, _)| *name == "Host") {
            head.push_str(&format!("Host: {server}\r\n"));
        }
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("Connection: close\r\n\r\n");
        let mut wire = Wire {
            stream,
            buffer: Vec::new(),
            stop: self.stop.clone(),
        };
        wire.stream
            .write_all(head.as_bytes())
            .with_context(|| format!("asking {server} for {target}"))?;
        Ok(Sent {
            wire,
            is_head: method == "HEAD",
        })
    }
}

impl Sent {
    /// Waits for the head of the final answer.
    pub fn head(mut self) -> anyhow::Result<Incoming> {
        loop {
            let head = self.wire.head()?;
            if (100..200).contains(&head.status) {
                continue;
            }
            let framing = framing(&head, self.is_head)?;
            return Ok(Incoming {
                head,
                wire: self.wire,
                framing,
            });
        }
    }
}

impl Incoming {
    /// Waits for the next `count` bytes of the body, and takes no more.
    pub fn take(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        let Framing::Length(left) = &mut self.framing else {
            bail!("the answer does not say how long it is");
        };
        let after = left.checked_sub(count as u64);
        *left = after.with_context(|| format!("{left} bytes are to come, not {count}"))?;
        self.wire.take(count)
    }

    /// Waits for the body's end.
    pub fn rest(mut self) -> anyhow::Result<Answer> {
        let body = match self.framing {
            Framing::Length(left) => self.wire.take(usize::try_from(left)?)?,
            Framing::UntilClose => {
                while self.wire.receive()? > 0 {}
                std::mem::take(&mut self.wire.buffer)
            }
            Framing::Chunked => {
                let mut body = Vec::new();
                loop {
                    let line = self.wire.line()?;
                    let digits = line.split(';').next().unwrap_or_default().trim();
                    let size = usize::from_str_radix(digits, 16)
                        .with_context(|| format!("`{line}` is no chunk's size"))?;
                    if size == 0 {
                        while !self.wire.line()?.is_empty() {}
                        break;
                    }
                    body.extend(self.wire.take(size)?);
                    ensure!(
                        self.wire.line()?.is_empty(),
                        "a chunk goes on behind its end"
                    );
                }
                body
            }
        };
        Ok(Answer {
            head: self.head,
            body,
        })
    }
}

impl Head {
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

impl Wire {
    fn head(&mut self) -> anyhow::Result<Head> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut response = httparse::Response::new(&mut fields);
            let parsed = response
                .parse(&self.buffer)
                .context("reading the head of an answer")?;
            if let httparse::Status::Complete(length) = parsed {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let head = Head {
                    status: response.code.unwrap_or_default(),
                    fields: response
                        .headers
                        .iter()
                        .map(|field| (field.name.to_owned(), text(field.value)))
                        .collect(),
                };
                self.buffer.drain(..length);
                return Ok(head);
            }
            ensure!(
                self.buffer.len() < MAX_HEAD_BYTES,
                "the head of an answer does not end"
            );
            ensure!(self.receive()? > 0, "the connection ended before an answer");
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end)?;
                self.buffer.drain(..2);
                return Ok(String::from_utf8(line)?);
            }
            ensure!(self.buffer.len() < MAX_HEAD_BYTES, "a line does not end");
            ensure!(self.receive()? > 0, "the connection ended within a line");
        }
    }

    fn take(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        while self.buffer.len() < count {
            let have = self.buffer.len();
            ensure!(
                self.receive()? > 0,
                "the body ended after {have} of {count} bytes"
            );
        }
        let left = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, left))
    }

    /// Waits for bytes; 0 is the end.
    fn receive(&mut self) -> anyhow::Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0; 32 << 10];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(count) => {
                    self.buffer.extend_from_slice(&bytes[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stop.check()?;
                    ensure!(Instant::now() < deadline, "no byte came for {PATIENCE:?}");
                }
                Err(error) => return Err(error).context("reading an answer"),
            }
        }
    }
}

fn framing(head: &Head, is_head: bool) -> anyhow::Result<Framing> {
    if is_head || matches!(head.status, 204 | 304) {
        return Ok(Framing::Length(0));
    }
    if head.field("transfer-encoding").is_some() {
        return Ok(Framing::Chunked);
    }
    match head.field("content-length") {
        Some(length) => {
            let length = length.parse();
            Ok(Framing::Length(length.context("reading Content-Length")?))
        }
        None => Ok(Framing::UntilClose),
    }
}
