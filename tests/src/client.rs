//! A client of HTTP/1.1 that has every byte in its own hands.

use std::net::SocketAddr;
use std::pin::Pin;

use bytes::{Buf, Bytes, BytesMut};
use slow_server::BodyFn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::within;

/// What plays ask for where the host does not matter.
pub const HOST: &str = "a.example";

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    /// Status line and fields, as they came.
    pub text: String,
}

impl Head {
    /// The first line of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).into_iter().next()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.text.split("\r\n").skip(1);
        lines
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// How the node says this answer came about.
    pub fn cache_status(&self) -> &str {
        self.all("cache-status").last().copied().unwrap_or("")
    }

    pub fn is_hit(&self) -> bool {
        self.cache_status().contains("; hit")
    }

    pub fn is_stored(&self) -> bool {
        self.cache_status().contains("; stored")
    }

    pub fn length(&self) -> Option<u64> {
        self.get("content-length")
            .map(|text| text.parse().expect("a length in digits"))
    }

    fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By its own framing.
    Whole,
    /// The connection ended first.
    Cut,
    /// Its framing is broken.
    Broken,
}

/// A whole answer, as far as it came.
#[derive(Clone, Debug)]
pub struct Got {
    pub head: Head,
    pub interim: Vec<Head>,
    pub body: Bytes,
    /// Trailer lines.
    pub trailers: Vec<String>,
    pub end: End,
}

impl Got {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// This status, an answer that came to its end.
    #[track_caller]
    pub fn expect(self, status: u16) -> Got {
        assert_eq!(
            self.head.status,
            status,
            "{}\n{}",
            self.head.text,
            self.text()
        );
        assert_eq!(self.end, End::Whole, "{}", self.head.text);
        self
    }

    /// 200 with the first `length` bytes of the body of `path`, which are all of it.
    #[track_caller]
    pub fn is_whole(self, path: &str, length: u64) -> Got {
        self.is_version(path, 0, length)
    }

    #[track_caller]
    pub fn is_version(self, path: &str, version: u64, length: u64) -> Got {
        let got = self.expect(200);
        assert_eq!(got.body.len() as u64, length, "{}", got.head.text);
        verify(path, version, 0, &got.body);
        got
    }

    /// 206 with exactly these bytes of the body of `path`.
    #[track_caller]
    pub fn is_part(self, path: &str, span: std::ops::Range<u64>, length: u64) -> Got {
        let got = self.expect(206);
        let named = format!("bytes {}-{}/{length}", span.start, span.end - 1);
        assert_eq!(
            got.head.get("content-range"),
            Some(named.as_str()),
            "{}",
            got.head.text
        );
        assert_eq!(
            got.body.len() as u64,
            span.end - span.start,
            "{}",
            got.head.text
        );
        verify(path, 0, span.start, &got.body);
        got
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Got {
        let got = self.expect(200);
        assert_eq!(got.text(), text, "{}", got.head.text);
        got
    }
}

#[track_caller]
pub(crate) fn verify(path: &str, version: u64, offset: u64, bytes: &[u8]) {
    if let Err(mismatch) = BodyFn::of_version(path, version).verify(offset, bytes) {
        panic!("{path}: {mismatch}");
    }
}

/// A request that has not been sent.
#[derive(Clone, Debug)]
pub struct Ask {
    to: SocketAddr,
    method: String,
    target: String,
    host: String,
    fields: String,
    body: Bytes,
}

impl Ask {
    pub fn new(to: SocketAddr, method: &str, target: &str) -> Ask {
        Ask {
            to,
            method: method.to_owned(),
            target: target.to_owned(),
            host: HOST.to_owned(),
            fields: String::new(),
            body: Bytes::new(),
        }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.fields += &format!("{name}: {value}\r\n");
        self
    }

    #[must_use]
    pub fn host(mut self, host: &str) -> Ask {
        self.host = host.to_owned();
        self
    }

    #[must_use]
    pub fn range(self, range: &str) -> Ask {
        self.header("range", &format!("bytes={range}"))
    }

    /// A body with its length.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Ask {
        let body = body.into();
        let length = body.len().to_string();
        Ask {
            body,
            ..self.header("content-length", &length)
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let Ask {
            method,
            target,
            host,
            fields,
            ..
        } = self;
        let head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    /// Sends it on a connection of its own and reads the head of the answer.
    pub async fn open(self) -> Answer {
        let mut connection = Connection::to(self.to).await;
        connection.send(self.bytes()).await;
        connection.begin(&self.method).await
    }

    /// Sends it in a task of its own.
    pub fn start(self) -> JoinHandle<Got> {
        tokio::spawn(async move { self.await })
    }
}

impl IntoFuture for Ask {
    type Output = Got;
    type IntoFuture = Pin<Box<dyn Future<Output = Got> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.open().await.rest().await })
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    inbox: BytesMut,
}

impl Connection {
    pub async fn to(address: SocketAddr) -> Connection {
        let socket = within("a connection", TcpStream::connect(address)).await;
        let socket = socket.expect("connect");
        socket.set_nodelay(true).expect("set a socket's option");
        Connection {
            socket,
            inbox: BytesMut::new(),
        }
    }

    /// With small buffers on this side, so that the peer notices a reader who stops.
    pub async fn narrow(address: SocketAddr) -> Connection {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket
            .set_recv_buffer_size(4096)
            .expect("set a socket's option");
        let socket = within("a connection", socket.connect(address)).await;
        Connection {
            socket: socket.expect("connect"),
            inbox: BytesMut::new(),
        }
    }

    /// # Panics
    /// When the peer has gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("send");
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within("room to send", self.socket.write_all(bytes.as_ref())).await
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) {
        // A peer that has gone already needs not be told.
        let _ = self.socket.shutdown().await;
    }

    /// A GET without anything special.
    pub async fn get(&mut self, target: &str) -> Got {
        self.ask("GET", target, "").await
    }

    /// `fields` are whole lines.
    pub async fn ask(&mut self, method: &str, target: &str, fields: &str) -> Got {
        self.send(format!(
            "{method} {target} HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n"
        ))
        .await;
        self.answer(method).await
    }

    /// The next answer, which is one to a request of this method.
    pub async fn answer(&mut self, method: &str) -> Got {
        let (head, interim) = self.heads().await;
        let mut framing = Framing::of(&head, method);
        let mut body = BytesMut::new();
        let mut trailers = Vec::new();
        let end = loop {
            match framing.step(self).await {
                Step::Data(data) => body.extend_from_slice(&data),
                Step::Trailers(lines) => trailers = lines,
                Step::End(end) => break end,
            }
        };
        Got {
            head,
            interim,
            body: body.freeze(),
            trailers,
            end,
        }
    }

    /// The head of the next answer; its body can be read in pieces.
    pub async fn begin(mut self, method: &str) -> Answer {
        let (head, interim) = self.heads().await;
        let framing = Framing::of(&head, method);
        Answer {
            head,
            interim,
            connection: self,
            framing,
            held: BytesMut::new(),
            trailers: Vec::new(),
            end: None,
        }
    }

    async fn heads(&mut self) -> (Head, Vec<Head>) {
        let mut interim = Vec::new();
        loop {
            match self.next_head().await {
                Some(head) if head.is_interim() => interim.push(head),
                Some(head) => return (head, interim),
                None => panic!(
                    "the connection ended before an answer; before it: {:?}",
                    self.inbox
                ),
            }
        }
    }

    /// The next head, interim ones too. `None` when the connection ends first.
    pub async fn next_head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = find(&self.inbox, b"\r\n\r\n") {
                let text = self.inbox.split_to(end + 4);
                let text = String::from_utf8_lossy(&text[..end]).into_owned();
                let status = text.get(9..12).and_then(|code| code.parse().ok());
                assert!(text.starts_with("HTTP/1.1 "), "no status line: {text}");
                let status = status.unwrap_or_else(|| panic!("no status: {text}"));
                return Some(Head { status, text });
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Reads what comes. `false` when the connection has ended, with or without a reset.
    async fn more(&mut self) -> bool {
        let read = within("bytes", self.socket.read_buf(&mut self.inbox)).await;
        matches!(read, Ok(1..))
    }

    /// Exactly these many bytes, whatever they are.
    pub async fn take(&mut self, count: usize) -> Bytes {
        while self.inbox.len() < count {
            assert!(
                self.more().await,
                "the connection ended after {:?}",
                self.inbox
            );
        }
        self.inbox.split_to(count).freeze()
    }

    /// Everything up to the end of the connection.
    pub async fn all(&mut self) -> Bytes {
        while self.more().await {}
        self.inbox.split().freeze()
    }

    /// Whether the node ends the connection with a reset; what comes before that is dropped.
    pub async fn is_reset(&mut self) -> bool {
        loop {
            self.inbox.clear();
            match within("bytes", self.socket.read_buf(&mut self.inbox)).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }

    /// The node closes, and says nothing more before it does.
    #[track_caller]
    pub fn is_closed(&mut self) -> impl Future<Output = ()> + '_ {
        let caller = std::panic::Location::caller();
        async move {
            let rest = self.all().await;
            assert!(rest.is_empty(), "{caller}: before the end came {rest:?}");
        }
    }

    /// Ends it with a reset, at once.
    pub fn reset(self) {
        self.socket
            .set_zero_linger()
            .expect("set a socket's option");
    }

    pub fn local_address(&self) -> SocketAddr {
        self.socket.local_addr().expect("a connected socket")
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Answer {
    pub head: Head,
    pub interim: Vec<Head>,
    connection: Connection,
    framing: Framing,
    held: BytesMut,
    trailers: Vec<String>,
    end: Option<End>,
}

impl Answer {
    /// The next `count` bytes of the body.
    ///
    /// # Panics
    /// When it ends before.
    pub async fn take(&mut self, count: usize) -> Bytes {
        while self.held.len() < count {
            assert!(
                self.step().await,
                "the body ended ({:?}) after {} bytes",
                self.end,
                self.held.len()
            );
        }
        self.held.split_to(count).freeze()
    }

    async fn step(&mut self) -> bool {
        match self.framing.step(&mut self.connection).await {
            Step::Data(data) => self.held.extend_from_slice(&data),
            Step::Trailers(lines) => self.trailers = lines,
            Step::End(end) => {
                self.end = Some(end);
                return false;
            }
        }
        true
    }

    /// The rest, to the end.
    pub async fn rest(mut self) -> Got {
        while self.step().await {}
        Got {
            head: self.head,
            interim: self.interim,
            body: self.held.freeze(),
            trailers: self.trailers,
            end: self.end.unwrap_or(End::Cut),
        }
    }

    /// The connection, with whatever has come after the head.
    pub fn into_connection(self) -> Connection {
        self.connection
    }

    /// Leaves without a word more.
    pub fn leave(self) {
        self.connection.reset();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunk(u64),
    ChunkHead,
    Trailers,
    UntilClose,
    Done,
    Wrong,
}

enum Step {
    Data(Bytes),
    Trailers(Vec<String>),
    End(End),
}

impl Framing {
    fn of(head: &Head, method: &str) -> Framing {
        if method == "HEAD" || matches!(head.status, 101 | 204 | 304) {
            return Framing::Done;
        }
        match (head.get("transfer-encoding"), head.length()) {
            (Some("chunked"), None) => Framing::ChunkHead,
            (Some(_), _) => Framing::Wrong,
            (None, Some(length)) => Framing::Length(length),
            (None, None) => Framing::UntilClose,
        }
    }

    async fn step(&mut self, connection: &mut Connection) -> Step {
        loop {
            match *self {
                Framing::Done | Framing::Length(0) => return Step::End(End::Whole),
                Framing::Wrong => return Step::End(End::Broken),
                Framing::UntilClose => {
                    if connection.inbox.is_empty() && !connection.more().await {
                        return Step::End(End::Whole);
                    }
                    return Step::Data(connection.inbox.split().freeze());
                }
                Framing::Length(left) => match some(connection, left).await {
                    None => return Step::End(End::Cut),
                    Some(data) => {
                        *self = Framing::Length(left - data.len() as u64);
                        return Step::Data(data);
                    }
                },
                Framing::Chunk(0) => match line(connection).await {
                    None => return Step::End(End::Cut),
                    Some(line) if line.is_empty() => *self = Framing::ChunkHead,
                    Some(_) => *self = Framing::Wrong,
                },
                Framing::Chunk(left) => match some(connection, left).await {
                    None => return Step::End(End::Cut),
                    Some(data) => {
                        *self = Framing::Chunk(left - data.len() as u64);
                        return Step::Data(data);
                    }
                },
                Framing::ChunkHead => match line(connection).await {
                    None => return Step::End(End::Cut),
                    Some(size) => match u64::from_str_radix(&size, 16) {
                        Ok(0) => *self = Framing::Trailers,
                        Ok(size) => *self = Framing::Chunk(size),
                        Err(_) => *self = Framing::Wrong,
                    },
                },
                Framing::Trailers => {
                    let mut lines = Vec::new();
                    loop {
                        match line(connection).await {
                            None => return Step::End(End::Cut),
                            Some(line) if line.is_empty() => break,
                            Some(line) => lines.push(line),
                        }
                    }
                    *self = Framing::Done;
                    return Step::Trailers(lines);
                }
            }
        }
    }
}

async fn some(connection: &mut Connection, up_to: u64) -> Option<Bytes> {
    if connection.inbox.is_empty() && !connection.more().await {
        return None;
    }
    let count = (connection.inbox.remaining() as u64).min(up_to);
    Some(connection.inbox.split_to(count as usize).freeze())
}

async fn line(connection: &mut Connection) -> Option<String> {
    loop {
        if let Some(end) = find(&connection.inbox, b"\r\n") {
            let line = connection.inbox.split_to(end + 2);
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if !connection.more().await {
            return None;
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
