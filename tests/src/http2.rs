//! Clients of HTTP/2 with prior knowledge: an honest one, and one that writes its own frames.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::within;

/// An honest connection.
pub struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

impl Http2 {
    pub async fn to(address: SocketAddr) -> Http2 {
        let socket = within("a connection", TcpStream::connect(address))
            .await
            .expect("connect");
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (sender, connection) = within("a handshake", handshake).await.expect("shake hands");
        tokio::spawn(connection);
        Http2 { sender, address }
    }

    /// A GET to be completed and sent.
    pub fn request(&self, method: &str, target: &str) -> http::request::Builder {
        let host = crate::client::HOST;
        Request::builder()
            .method(method)
            .uri(format!("http://{host}{target}"))
    }

    /// Sends it and reads the head of the answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        within("a ready connection", self.sender.ready())
            .await
            .expect("a connection");
        let answer = within("an answer", self.sender.send_request(request)).await;
        answer.unwrap_or_else(|error| panic!("{} answers: {error}", self.address))
    }

    /// A GET, to its end.
    pub async fn get(&mut self, target: &str) -> Response<Bytes> {
        let request = self
            .request("GET", target)
            .body(Full::default())
            .expect("a request");
        Http2::whole(self.send(request).await).await
    }

    pub async fn whole(answer: Response<Incoming>) -> Response<Bytes> {
        let (head, body) = answer.into_parts();
        let body = within("a body", body.collect())
            .await
            .expect("a whole body");
        Response::from_parts(head, body.to_bytes())
    }
}

/// Numbers of frame types.
pub mod frame_type {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const GOAWAY: u8 = 7;
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Bytes,
}

impl Frame {
    /// The status of a HEADERS frame, where it is one of HPACK's static table or a plain literal.
    pub fn status(&self) -> Option<u16> {
        let mut block = &self.payload[..];
        // An encoder may first announce the size of its table.
        while block.first().is_some_and(|byte| byte & 0xe0 == 0x20) {
            block = &block[1..];
        }
        let indexed = [200, 204, 206, 304, 400, 404, 500];
        match block.first()? {
            byte @ 0x88..=0x8e => Some(indexed[usize::from(byte - 0x88)]),
            // A literal with the static name `:status`; its value is Huffman-coded or three digits.
            0x48 if block.get(1) == Some(&3) => {
                std::str::from_utf8(&block[2..5]).ok()?.parse().ok()
            }
            0x48 => Some(0),
            _ => None,
        }
    }
}

/// A connection whose client, or server, writes its frames byte by byte.
pub struct RawHttp2 {
    socket: TcpStream,
    inbox: BytesMut,
}

impl RawHttp2 {
    pub async fn to(address: SocketAddr) -> RawHttp2 {
        let socket = within("a connection", TcpStream::connect(address))
            .await
            .expect("connect");
        let mut raw = RawHttp2 {
            socket,
            inbox: BytesMut::new(),
        };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.frame(frame_type::SETTINGS, 0, 0, b"").await;
        raw
    }

    /// The server's side. A client's preface is read and left unchecked.
    pub async fn accepted(mut socket: TcpStream) -> RawHttp2 {
        let mut preface = [0; 24];
        let read = within("a preface", socket.read_exact(&mut preface)).await;
        read.expect("read a preface");
        let mut raw = RawHttp2 {
            socket,
            inbox: BytesMut::new(),
        };
        raw.frame(frame_type::SETTINGS, 0, 0, b"").await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        // A peer that has closed is what some plays are about.
        let _ = within("room to send", self.socket.write_all(bytes)).await;
    }

    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.send(&bytes).await;
    }

    /// A request's head of plain literals, all in one frame.
    pub async fn headers(&mut self, stream: u32, ends: bool, fields: &[(&str, &str)]) {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127, "a short field");
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(frame_type::HEADERS, 4 | u8::from(ends), stream, &block)
            .await;
    }

    /// The next frame; `None` at the connection's end.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.inbox.len() >= 9 {
                let length = u32::from_be_bytes([0, self.inbox[0], self.inbox[1], self.inbox[2]]);
                if self.inbox.len() >= 9 + length as usize {
                    let head = self.inbox.split_to(9);
                    return Some(Frame {
                        kind: head[3],
                        flags: head[4],
                        stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
                        payload: self.inbox.split_to(length as usize).freeze(),
                    });
                }
            }
            let read = within("a frame", self.socket.read_buf(&mut self.inbox)).await;
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }

    /// The first frame that is a word about a stream, or ends the connection.
    pub async fn verdict(&mut self) -> Option<Frame> {
        use frame_type::{GOAWAY, HEADERS, RST_STREAM};
        loop {
            let frame = self.next().await?;
            if matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY) {
                return Some(frame);
            }
        }
    }
}
