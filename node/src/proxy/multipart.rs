//! Several ranges of one body in one answer (`multipart/byteranges`, RFC 9110 §14.6).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::cache::{BodyError, Reader};
use crate::origin::Frame;

pub struct Multipart {
    parts: VecDeque<Part>,
    /// The closing delimiter, until it was sent.
    end: Option<Bytes>,
}

pub struct Part {
    /// Delimiter and fields; taken once sent.
    pub head: Option<Bytes>,
    pub reader: Reader,
}

impl Multipart {
    pub fn new(parts: VecDeque<Part>, end: Bytes) -> Multipart {
        Multipart {
            parts,
            end: Some(end),
        }
    }

    pub async fn next(&mut self) -> Option<Result<Frame, BodyError>> {
        while let Some(part) = self.parts.front_mut() {
            if let Some(head) = part.head.take() {
                return Some(Ok(Frame::Data(head)));
            }
            if let Some(read) = part.reader.next().await {
                return Some(read.map(Frame::Data));
            }
            self.parts.pop_front();
        }
        self.end.take().map(|end| Ok(Frame::Data(end)))
    }
}
