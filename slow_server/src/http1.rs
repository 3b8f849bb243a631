//! HTTP/1.1, down to the byte: because it must be able to lie, and to see what a proxy really sent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::answer::{Answer, Framing, Kind};
use crate::body::hash_on;
use crate::counts::Ledger;
use crate::lie;
use crate::origin::{Plan, Shared};
use crate::reply::{End, Reply, Step, field, reason};
use crate::request::{BODY_KEPT_BYTES, Request};

/// A request's head may be this long.
const MAX_HEAD_BYTES: usize = 512 * 1024;
const MAX_HEADERS: usize = 4096;
/// What is gathered before it is written.
const WRITE_BYTES: usize = 256 * 1024;
/// What is read ahead of an answer that waits.
const READ_AHEAD_BYTES: usize = 256 * 1024;
/// A chunk's size line may be this long.
const MAX_CHUNK_LINE_BYTES: usize = 4096;

/// A byte stream that can be reset.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The next close sends RST.
    fn reset_on_close(&self);
}

impl Transport for TcpStream {
    fn reset_on_close(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Transport for TlsStream<TcpStream> {
    fn reset_on_close(&self) {
        let _ = self.get_ref().0.set_zero_linger();
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve<S: Transport>(shared: Arc<Shared>, stream: S, id: u64) {
    let mut signal = shared.signal.subscribe();
    let kills = signal.borrow_and_update().kill;
    let mut connection = Connection {
        shared: shared.clone(),
        stream,
        id,
        input: BytesMut::with_capacity(8 * 1024),
        output: BytesMut::new(),
        unsent: 0,
    };
    tokio::select! {
        biased;
        _ = signal.wait_for(|signal| signal.kill != kills) => connection.stream.reset_on_close(),
        // The ways to end are all told by the bytes; there is nobody to report an error to.
        _ = connection.run() => {}
    }
}

struct Connection<S> {
    shared: Arc<Shared>,
    stream: S,
    id: u64,
    /// Received and not yet read.
    input: BytesMut,
    /// Gathered and not yet written.
    output: BytesMut,
    /// Bytes of body in `output`.
    unsent: u64,
}

/// What follows a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    Data { left: u64 },
    ChunkSize,
    ChunkData { left: u64 },
    ChunkEnd,
    Trailers,
    Done,
}

/// How an exchange left its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Reusable,
    Closing,
}

impl<S: Transport> Connection<S> {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            let Some(head) = self.read_head().await? else {
                return Ok(());
            };
            let parsed = match head {
                Ok(head) => parse_head(&head, self.id).map_err(|reason| (reason, head)),
                Err(reason) => Err((reason, Bytes::copy_from_slice(&self.input))),
            };
            match parsed {
                Ok((request, incoming)) => {
                    if self.exchange(request, incoming).await? == Left::Closing {
                        return self.close().await;
                    }
                }
                Err((reason, head)) => {
                    self.shared.note_malformed(reason, &head);
                    let body = format!("{reason}\n");
                    let answer = format!(
                        "HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    self.output.extend_from_slice(answer.as_bytes());
                    return self.close().await;
                }
            }
        }
    }

    /// The next head with its empty line; none at the end of the connection; a reason when it
    /// cannot be one.
    async fn read_head(&mut self) -> io::Result<Option<Result<Bytes, &'static str>>> {
        let mut searched = 0;
        let mut signal = self.shared.signal.subscribe();
        let closes = signal.borrow_and_update().close_idle;
        loop {
            // RFC 9112 §2.2: empty lines before a request line are skipped.
            while searched == 0 && self.input.starts_with(b"\r\n") {
                self.input.advance(2);
            }
            match end_of_head(&self.input, searched) {
                Some(end) => return Ok(Some(Ok(self.input.split_to(end).freeze()))),
                None if self.input.len() > MAX_HEAD_BYTES => {
                    return Ok(Some(Err("a head too long")));
                }
                None => searched = self.input.len().saturating_sub(3),
            }
            if !self.output.is_empty() {
                self.flush_all().await?;
            }
            let idle = self.input.is_empty();
            self.input.reserve(4 * 1024);
            let read = tokio::select! {
                read = self.stream.read_buf(&mut self.input) => read?,
                _ = signal.wait_for(|signal| signal.close_idle != closes), if idle => return Ok(None),
            };
            if read == 0 {
                return Ok(match self.input.is_empty() {
                    true => None,
                    false => Some(Err("the end within a head")),
                });
            }
        }
    }

    async fn exchange(&mut self, mut request: Request, mut incoming: Incoming) -> io::Result<Left> {
        let ledger = self.shared.note(&mut request);
        let done = self
            .exchange_counted(&mut request, &mut incoming, &ledger)
            .await;
        ledger.ended(done.is_ok());
        done
    }

    async fn exchange_counted(
        &mut self,
        request: &mut Request,
        incoming: &mut Incoming,
        ledger: &Ledger,
    ) -> io::Result<Left> {
        let expects = request.version == Version::HTTP_11
            && request
                .header("expect")
                .is_some_and(|v| v.eq_ignore_ascii_case("100-continue"));
        let answer = match self.shared.plan(request) {
            Plan::Answer(answer) => answer,
            Plan::Dynamic(make) => {
                self.receive(request, incoming, expects, ledger).await?;
                Box::new(make(request))
            }
        };
        if expects && answer.refuse_expect {
            self.output.extend_from_slice(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return Ok(Left::Closing);
        }
        if answer.kind == Kind::Upgrade {
            return self.upgrade(request, ledger).await;
        }
        let before = !answer.early && answer.kind != Kind::Mirror;
        if before {
            self.receive(request, incoming, expects, ledger).await?;
        }
        if answer.kind == Kind::Mirror && expects {
            self.output
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let left = self.respond(&answer, request, incoming, ledger).await?;
        self.flush(ledger).await?;
        if left == Left::Closing {
            return Ok(left);
        }
        if *incoming != Incoming::Done {
            self.receive(request, incoming, false, ledger).await?;
        }
        let wants_close = request.version == Version::HTTP_10
            || request
                .header_lines("connection")
                .iter()
                .any(|v| v.to_ascii_lowercase().contains("close"));
        Ok(if wants_close {
            Left::Closing
        } else {
            Left::Reusable
        })
    }

    /// Reads the rest of the request's body and keeps what the log keeps.
    async fn receive(
        &mut self,
        request: &mut Request,
        incoming: &mut Incoming,
        expects: bool,
        ledger: &Ledger,
    ) -> io::Result<()> {
        if *incoming == Incoming::Done {
            return Ok(());
        }
        if expects && self.input.is_empty() {
            self.output
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.flush(ledger).await?;
        let mut kept = BytesMut::from(&request.body[..]);
        let mut result = Ok(());
        loop {
            match self.next_piece(request, incoming, ledger).await {
                Ok(Some(piece)) => {
                    let room = BODY_KEPT_BYTES.saturating_sub(kept.len());
                    kept.extend_from_slice(&piece[..piece.len().min(room)]);
                }
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        request.body = kept.freeze();
        self.shared.note_body(request);
        result
    }

    /// The next piece of the request's body.
    async fn next_piece(
        &mut self,
        request: &mut Request,
        incoming: &mut Incoming,
        ledger: &Ledger,
    ) -> io::Result<Option<Bytes>> {
        loop {
            match decode(&mut self.input, incoming, &mut request.trailers) {
                Ok(Some(piece)) => {
                    request.body_bytes += piece.len() as u64;
                    request.body_hash = hash_on(request.body_hash, &piece);
                    ledger.uploaded(piece.len() as u64);
                    return Ok(Some(piece));
                }
                Ok(None) if *incoming == Incoming::Done => return Ok(None),
                Ok(None) => self.read_more().await?,
                Err(reason) => {
                    self.shared.note_malformed(reason, &self.input);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                }
            }
        }
    }

    async fn read_more(&mut self) -> io::Result<()> {
        self.input.reserve(64 * 1024);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn respond(
        &mut self,
        answer: &Answer,
        request: &mut Request,
        incoming: &mut Incoming,
        ledger: &Ledger,
    ) -> io::Result<Left> {
        if !answer.delay.is_zero() {
            self.flush(ledger).await?;
            self.unless_gone(tokio::time::sleep(answer.delay)).await?;
        }
        if let Some(gate) = &answer.gate {
            self.flush(ledger).await?;
            self.unless_gone(gate.pass()).await?;
        }
        if let Some(raw) = &answer.raw {
            self.output.extend_from_slice(&raw.bytes);
            return Ok(if raw.keep_open {
                Left::Reusable
            } else {
                Left::Closing
            });
        }
        let mut reply = match (answer.kind, answer.lie) {
            (Kind::Echo, _) => Reply::new(&answer.clone().body(echo(request)), request),
            (_, Some(told)) => lie::lying_reply(told, answer, request, ledger.nth()),
            _ => Reply::new(answer, request),
        };
        if answer.kind == Kind::Mirror && request.method != Method::HEAD {
            reply.body.clear();
            if let Some(kind) = request.header("content-type") {
                reply.set("content-type", kind);
            }
        }
        if request
            .header("connection")
            .is_some_and(|v| v.eq_ignore_ascii_case("close"))
            && reply.end == End::Next
            && !reply.has("connection")
        {
            reply.set("connection", "close");
        }
        ledger.status(reply.status);
        self.write_reply(answer, &reply, request, incoming, ledger)
            .await?;
        self.flush(ledger).await?;
        match reply.end {
            End::Next => Ok(Left::Reusable),
            End::Close => Ok(Left::Closing),
            End::Hold => self.hold().await,
            End::Reset => {
                self.stream.reset_on_close();
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
    }

    async fn write_reply(
        &mut self,
        answer: &Answer,
        reply: &Reply,
        request: &mut Request,
        incoming: &mut Incoming,
        ledger: &Ledger,
    ) -> io::Result<()> {
        for interim in &reply.interim {
            let line = format!("HTTP/1.1 {} {}\r\n", interim.status, reason(interim.status));
            self.output.extend_from_slice(line.as_bytes());
            for (name, value) in &interim.headers {
                put_field(&mut self.output, name, value);
            }
            self.output.extend_from_slice(b"\r\n");
            self.flush(ledger).await?;
        }
        for step in &reply.before {
            self.write_raw(step, ledger).await?;
        }
        match reply.drip_head {
            None => reply.head(&mut self.output),
            Some(pause) => {
                let mut head = BytesMut::new();
                reply.head(&mut head);
                for byte in head {
                    self.output.put_u8(byte);
                    self.flush(ledger).await?;
                    self.unless_gone(tokio::time::sleep(pause)).await?;
                }
            }
        }
        let mut pace = Pace {
            rate: answer.throttle,
            started: Instant::now(),
            sent: 0,
        };
        let chunk = match reply.framing {
            Framing::Chunked(size) => Some(size as u64),
            _ => None,
        };
        if answer.kind == Kind::Mirror && answer.lie.is_none() {
            self.flush(ledger).await?;
            while let Some(piece) = self.next_piece(request, incoming, ledger).await? {
                if chunk.is_some() {
                    self.output
                        .extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                }
                self.output.extend_from_slice(&piece);
                self.unsent += piece.len() as u64;
                if chunk.is_some() {
                    self.output.extend_from_slice(b"\r\n");
                }
                self.flush(ledger).await?;
            }
            self.shared.note_body(request);
        }
        let mut gates = answer.gates_at.iter().peekable();
        for step in &reply.body {
            match step {
                Step::Text(bytes) => {
                    self.put_chunked(bytes, chunk);
                    self.unsent += bytes.len() as u64;
                    pace.sent += bytes.len() as u64;
                }
                Step::Source(range) => {
                    let mut at = range.start;
                    loop {
                        while let Some((held, gate)) = gates.peek() {
                            if *held > at {
                                break;
                            }
                            let within = *held < range.end || *held == reply.source.length();
                            if *held == at && within {
                                self.flush(ledger).await?;
                                self.unless_gone(gate.pass()).await?;
                            }
                            gates.next();
                        }
                        if at >= range.end {
                            break;
                        }
                        let mut end = range.end.min(at + pace.piece());
                        if let Some(chunk) = chunk {
                            end = end.min(at + chunk);
                        }
                        if let Some((held, _)) = gates.peek() {
                            end = end.min(*held);
                        }
                        if let Some(chunk) = chunk {
                            debug_assert!(end - at <= chunk);
                            self.output
                                .extend_from_slice(format!("{:x}\r\n", end - at).as_bytes());
                        }
                        reply.source.append(at..end, &mut self.output);
                        if chunk.is_some() {
                            self.output.extend_from_slice(b"\r\n");
                        }
                        self.unsent += end - at;
                        pace.sent += end - at;
                        at = end;
                        if self.output.len() >= WRITE_BYTES {
                            self.flush(ledger).await?;
                        }
                        if let Some(until) = pace.due() {
                            self.flush(ledger).await?;
                            self.unless_gone(tokio::time::sleep_until(until)).await?;
                        }
                    }
                }
                step => self.write_raw(step, ledger).await?,
            }
        }
        if chunk.is_some() && reply.last_chunk {
            self.output.extend_from_slice(b"0\r\n");
            for (name, value) in &reply.trailers {
                put_field(&mut self.output, name, value);
            }
            self.output.extend_from_slice(b"\r\n");
        }
        for step in &reply.after {
            self.write_raw(step, ledger).await?;
        }
        Ok(())
    }

    fn put_chunked(&mut self, bytes: &[u8], chunk: Option<u64>) {
        let Some(size) = chunk else {
            return self.output.extend_from_slice(bytes);
        };
        for piece in bytes.chunks(size as usize) {
            self.output
                .extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            self.output.extend_from_slice(piece);
            self.output.extend_from_slice(b"\r\n");
        }
    }

    async fn write_raw(&mut self, step: &Step, ledger: &Ledger) -> io::Result<()> {
        match step {
            Step::Raw(bytes) | Step::Text(bytes) => self.output.extend_from_slice(bytes),
            Step::Repeat(bytes, times) => {
                for _ in 0..*times {
                    self.output.extend_from_slice(bytes);
                    if self.output.len() >= WRITE_BYTES {
                        self.flush(ledger).await?;
                    }
                }
            }
            Step::Pause(pause) => {
                self.flush(ledger).await?;
                self.unless_gone(tokio::time::sleep(*pause)).await?;
            }
            Step::Source(_) => {}
        }
        Ok(())
    }

    /// 101 and every byte back, until the client ends.
    async fn upgrade(&mut self, request: &Request, ledger: &Ledger) -> io::Result<Left> {
        let asked = request.header("upgrade");
        let nominated = request
            .header("connection")
            .is_some_and(|v| v.to_ascii_lowercase().contains("upgrade"));
        let (Some(protocol), true) = (asked, nominated) else {
            self.output.extend_from_slice(
                b"HTTP/1.1 426 Upgrade Required\r\nupgrade: echo\r\nconnection: upgrade\r\ncontent-length: 0\r\n\r\n",
            );
            self.flush(ledger).await?;
            return Ok(Left::Reusable);
        };
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: {protocol}\r\nconnection: upgrade\r\n\r\n"
        );
        self.output.extend_from_slice(head.as_bytes());
        ledger.status(101);
        loop {
            let piece = self.input.split();
            self.unsent += piece.len() as u64;
            self.output.extend_from_slice(&piece);
            self.flush(ledger).await?;
            self.input.reserve(16 * 1024);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(Left::Closing);
            }
        }
    }

    /// Waits for `event`, unless the client closes its side first.
    async fn unless_gone<F: Future>(&mut self, event: F) -> io::Result<F::Output> {
        tokio::pin!(event);
        loop {
            let full = self.input.len() >= READ_AHEAD_BYTES;
            self.input.reserve(4 * 1024);
            tokio::select! {
                biased;
                happened = &mut event => return Ok(happened),
                read = self.stream.read_buf(&mut self.input), if !full => if read? == 0 {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                },
            }
        }
    }

    /// Reads and ignores until the client closes.
    async fn hold<T>(&mut self) -> io::Result<T> {
        loop {
            self.input.clear();
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }

    async fn flush(&mut self, ledger: &Ledger) -> io::Result<()> {
        let sent = std::mem::take(&mut self.unsent);
        self.flush_all().await?;
        if sent > 0 {
            ledger.sent(sent);
        }
        Ok(())
    }

    async fn flush_all(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await?;
            self.output.clear();
        }
        Ok(())
    }

    /// FIN, and then the other side's bytes are taken for a moment: closing over unread bytes would
    /// send RST and could destroy what was just written.
    async fn close(&mut self) -> io::Result<()> {
        self.flush_all().await?;
        self.stream.shutdown().await?;
        let drain = async {
            loop {
                self.input.clear();
                if self.stream.read_buf(&mut self.input).await? == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), drain).await;
        Ok(())
    }
}

/// Keeps a body to a rate.
struct Pace {
    /// Bytes in a second.
    rate: Option<u64>,
    started: Instant,
    sent: u64,
}

impl Pace {
    /// How much to send at once: a twentieth of a second's worth.
    fn piece(&self) -> u64 {
        self.rate.map_or(WRITE_BYTES as u64, |rate| {
            (rate / 20).clamp(1, WRITE_BYTES as u64)
        })
    }

    /// Until when to wait after what has been sent.
    fn due(&self) -> Option<Instant> {
        let rate = self.rate?;
        Some(self.started + Duration::from_secs_f64(self.sent as f64 / rate as f64))
    }
}

/// Where the head ends, if it does: behind its empty line. The LF of a line may lack its CR here;
/// parsing refuses that.
fn end_of_head(input: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(next) = input[at..].iter().position(|b| *b == b'\n') {
        at += next + 1;
        if input[at..].starts_with(b"\n") {
            return Some(at + 1);
        }
        if input[at..].starts_with(b"\r\n") {
            return Some(at + 2);
        }
    }
    None
}

fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Strict, after RFC 9112: what a proxy sends must need no forgiveness.
fn parse_head(head: &Bytes, connection: u64) -> Result<(Request, Incoming), &'static str> {
    for (at, byte) in head.iter().enumerate() {
        match byte {
            b'\n' if at == 0 || head[at - 1] != b'\r' => return Err("a bare LF"),
            b'\r' if head.get(at + 1) != Some(&b'\n') => return Err("a bare CR"),
            0 => return Err("a NUL"),
            _ => {}
        }
    }
    let mut small = [httparse::EMPTY_HEADER; 64];
    let mut large = Vec::new();
    let lines = head.iter().filter(|b| **b == b'\n').count();
    let slots: &mut [httparse::Header<'_>] = if lines <= small.len() {
        &mut small
    } else {
        large.resize(lines.min(MAX_HEADERS), httparse::EMPTY_HEADER);
        &mut large
    };
    let mut parsed = httparse::Request::new(slots);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err("an unfinished head"),
        Err(httparse::Error::TooManyHeaders) => return Err("too many header lines"),
        Err(_) => return Err("not HTTP/1"),
    }
    let method = parsed
        .method
        .and_then(|m| Method::from_bytes(m.as_bytes()).ok())
        .ok_or("a bad method")?;
    let target = parsed.path.ok_or("no target")?.to_owned();
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        let name =
            HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| "a bad field name")?;
        let value = HeaderValue::from_bytes(header.value).map_err(|_| "a bad field value")?;
        headers.append(name, value);
    }
    let version = if parsed.version == Some(0) {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    let hosts = headers.get_all("host").iter().count();
    if hosts > 1 || (version == Version::HTTP_11 && hosts == 0) {
        return Err("not exactly one Host");
    }
    let incoming = match (
        headers.contains_key("transfer-encoding"),
        headers.contains_key("content-length"),
    ) {
        (true, true) => return Err("Content-Length and Transfer-Encoding"),
        (true, false) => {
            let codings: Vec<_> = headers.get_all("transfer-encoding").iter().collect();
            let chunked =
                codings.len() == 1 && codings[0].as_bytes().eq_ignore_ascii_case(b"chunked");
            if !chunked || version == Version::HTTP_10 {
                return Err("a Transfer-Encoding other than chunked");
            }
            Incoming::ChunkSize
        }
        (false, true) => {
            let lengths: Vec<_> = headers.get_all("content-length").iter().collect();
            let digits = lengths[0].to_str().unwrap_or_default();
            if lengths.len() > 1 || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit())
            {
                return Err("a bad Content-Length");
            }
            match digits.parse().map_err(|_| "a bad Content-Length")? {
                0 => Incoming::Done,
                left => Incoming::Data { left },
            }
        }
        (false, false) => Incoming::Done,
    };
    let mut request = Shared::request(method, target, headers, connection);
    request.version = version;
    request.raw_head = head.clone();
    Ok((request, incoming))
}

/// Takes the next piece of a request's body from `input`. Nothing: more must arrive, or the body is
/// done.
fn decode(
    input: &mut BytesMut,
    state: &mut Incoming,
    trailers: &mut HeaderMap,
) -> Result<Option<Bytes>, &'static str> {
    loop {
        match *state {
            Incoming::Done => return Ok(None),
            Incoming::Data { left } | Incoming::ChunkData { left } => {
                if input.is_empty() {
                    return Ok(None);
                }
                let length = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let piece = input.split_to(length).freeze();
                let left = left - length as u64;
                *state = match *state {
                    Incoming::Data { .. } if left == 0 => Incoming::Done,
                    Incoming::Data { .. } => Incoming::Data { left },
                    _ if left == 0 => Incoming::ChunkEnd,
                    _ => Incoming::ChunkData { left },
                };
                return Ok(Some(piece));
            }
            Incoming::ChunkEnd => {
                if input.len() < 2 {
                    return Ok(None);
                }
                if !input.starts_with(b"\r\n") {
                    return Err("no CRLF after a chunk");
                }
                input.advance(2);
                *state = Incoming::ChunkSize;
            }
            Incoming::ChunkSize => {
                let Some(line) = take_line(input)? else {
                    return Ok(None);
                };
                let size = line.split(|b| *b == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(size).map_err(|_| "a bad chunk size")?;
                if size.is_empty()
                    || size.len() > 16
                    || !size.bytes().all(|b| b.is_ascii_hexdigit())
                {
                    return Err("a bad chunk size");
                }
                *state = match u64::from_str_radix(size, 16).map_err(|_| "a bad chunk size")? {
                    0 => Incoming::Trailers,
                    left => Incoming::ChunkData { left },
                };
            }
            Incoming::Trailers => {
                let Some(line) = take_line(input)? else {
                    return Ok(None);
                };
                if line.is_empty() {
                    *state = Incoming::Done;
                    continue;
                }
                let colon = line
                    .iter()
                    .position(|b| *b == b':')
                    .ok_or("a bad trailer")?;
                let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| "a bad trailer")?;
                let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii())
                    .map_err(|_| "a bad trailer")?;
                trailers.append(name, value);
            }
        }
    }
}

/// A line without its CRLF.
fn take_line(input: &mut BytesMut) -> Result<Option<Bytes>, &'static str> {
    let Some(lf) = input.iter().position(|b| *b == b'\n') else {
        return if input.len() > MAX_CHUNK_LINE_BYTES {
            Err("a line too long")
        } else {
            Ok(None)
        };
    };
    let line = input.split_to(lf + 1).freeze();
    match line.strip_suffix(b"\r\n") {
        Some(text) if !text.contains(&b'\r') => Ok(Some(line.slice(..text.len()))),
        _ => Err("a bare LF or CR"),
    }
}

/// A report of the request, in JSON.
pub(crate) fn echo(request: &Request) -> String {
    use crate::face::json_string;
    let list = |map: &HeaderMap| {
        let fields = map.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            format!("[{},{}]", json_string(name.as_str()), json_string(&value))
        });
        fields.collect::<Vec<_>>().join(",")
    };
    format!(
        "{{\"method\":{},\"target\":{},\"version\":\"{:?}\",\"connection\":{},\"headers\":[{}],\"body_bytes\":{},\"body_hash\":\"{:016x}\",\"trailers\":[{}]}}\n",
        json_string(request.method.as_str()),
        json_string(&request.target),
        request.version,
        request.connection,
        list(&request.headers),
        request.body_bytes,
        request.body_hash,
        list(&request.trailers),
    )
}

/// What an answer without a line of its own says.
pub(crate) fn plain(status: u16, text: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::status(status).body(text);
    answer.headers.push(field("cache-control", "no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_heads_are_refused() {
        let table: &[(&str, &str)] = &[
            ("GET / HTTP/1.1\nhost: a\r\n\r\n", "a bare LF"),
            ("GET / HTTP/1.1\r\nhost: a\rb\r\n\r\n", "a bare CR"),
            ("GET / HTTP/1.1\r\nhost: a\0b\r\n\r\n", "a NUL"),
            ("GET / HTTP/1.1\r\n\r\n", "not exactly one Host"),
            (
                "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
                "not exactly one Host",
            ),
            (
                "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
                "Content-Length and Transfer-Encoding",
            ),
            (
                "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
                "a bad Content-Length",
            ),
            ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", "not HTTP/1"),
            (
                "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
                "a Transfer-Encoding other than chunked",
            ),
        ];
        for (head, reason) in table {
            let parsed = parse_head(&Bytes::from_static(head.as_bytes()), 1);
            assert_eq!(parsed.err(), Some(*reason), "{head:?}");
        }
    }

    #[test]
    fn chunks_are_decoded_byte_by_byte() {
        let wire = b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\nrest";
        let (mut input, mut state) = (BytesMut::new(), Incoming::ChunkSize);
        let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
        for byte in wire {
            input.put_u8(*byte);
            while let Some(piece) =
                decode(&mut input, &mut state, &mut trailers).expect("good chunks")
            {
                body.extend_from_slice(&piece);
            }
        }
        assert_eq!(
            (body.as_slice(), state, &input[..]),
            (&b"abcde"[..], Incoming::Done, &b"rest"[..])
        );
        assert_eq!(trailers["x-sum"], "5");
    }
}
