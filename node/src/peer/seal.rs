//! The bodies between nodes: a row of records, each with a proof of its own.
//!
//! ```text
//!  record ─► length: u32, little-endian, the highest bit set in the last one │ mac: 16 bytes │ so many bytes of the body
//!  mac    ─► keyed BLAKE3 of the question's nonce, the record's place, whether it is the last, its bytes
//! ```
//!
//! Kept true here:
//! - No byte is given out that the other node has not sent as this one, at this place, in answer to this question.
//! - A body is over only with its last record: without it, it is cut.
//! - What waits for its proof is one record, at most [`MAX_RECORD`] bytes. A record may be as short as what has come,
//!   so that a body is passed on while it arrives.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use subtle::ConstantTimeEq;

use super::secret::{Mac, Nonce, Secret};

/// Bytes of the body in one record, at the most.
pub const MAX_RECORD: usize = 64 << 10;

/// Marks the last record.
const LAST: u32 = 1 << 31;

const LENGTH_BYTES: usize = 4;
const MAC_BYTES: usize = 16;
const HEAD_BYTES: usize = LENGTH_BYTES + MAC_BYTES;

/// Why a body is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of the body is not proven")]
pub struct Unproven;

/// What both ends count.
struct Row {
    secret: Secret,
    nonce: Nonce,
    place: u64,
}

impl Row {
    fn next(&mut self, is_last: bool, data: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = Mac::new(&self.secret, b"body");
        mac.part(&self.nonce);
        mac.part(&self.place.to_le_bytes());
        mac.part(&[u8::from(is_last)]);
        mac.part(data);
        self.place += 1;
        let mut short = [0; MAC_BYTES];
        short.copy_from_slice(&mac.finish().as_bytes()[..MAC_BYTES]);
        short
    }
}

/// Makes records of a body.
pub struct Sealer(Row);

impl Sealer {
    /// Of the answer to the question of that nonce.
    pub fn new(secret: &Secret, nonce: Nonce) -> Sealer {
        let secret = secret.clone();
        let place = 0;
        Sealer(Row {
            secret,
            nonce,
            place,
        })
    }

    /// The next bytes, as many as a record takes; they are taken off `data`.
    pub fn seal(&mut self, data: &mut Bytes) -> Bytes {
        let data = data.split_to(data.len().min(MAX_RECORD));
        self.record(false, &data)
    }

    /// The last record, behind all bytes.
    pub fn end(&mut self) -> Bytes {
        self.record(true, b"")
    }

    fn record(&mut self, is_last: bool, data: &[u8]) -> Bytes {
        let mark = if is_last { LAST } else { 0 };
        let mut record = BytesMut::with_capacity(HEAD_BYTES + data.len());
        // No record is longer than its bound.
        record.put_u32_le(data.len() as u32 | mark);
        record.put_slice(&self.0.next(is_last, data));
        record.put_slice(data);
        record.freeze()
    }
}

/// Makes a body of its records.
pub struct Opener {
    row: Row,
    /// Of the record that has begun.
    come: BytesMut,
    is_over: bool,
}

impl Opener {
    /// Of the answer to the question of that nonce.
    pub fn new(secret: &Secret, nonce: Nonce) -> Opener {
        let Sealer(row) = Sealer::new(secret, nonce);
        Opener {
            row,
            come: BytesMut::new(),
            is_over: false,
        }
    }

    /// Takes what has come, and adds what is proven by now to `proven`.
    ///
    /// # Errors
    /// [`Unproven`]: nothing more of it is to be believed.
    pub fn open(&mut self, mut data: Bytes, proven: &mut VecDeque<Bytes>) -> Result<(), Unproven> {
        while !data.is_empty() {
            if self.is_over {
                return Err(Unproven);
            }
            self.take(&mut data, HEAD_BYTES);
            let Some(head) = self.come.first_chunk::<LENGTH_BYTES>() else {
                continue;
            };
            let marked = u32::from_le_bytes(*head);
            let (length, is_last) = ((marked & !LAST) as usize, marked & LAST != 0);
            if length > MAX_RECORD {
                return Err(Unproven);
            }
            self.take(&mut data, HEAD_BYTES + length);
            if self.come.len() < HEAD_BYTES + length {
                continue;
            }
            let mut record = std::mem::take(&mut self.come);
            record.advance(LENGTH_BYTES);
            let mac = record.split_to(MAC_BYTES);
            let right = self.row.next(is_last, &record);
            if !bool::from(right.ct_eq(&mac)) {
                return Err(Unproven);
            }
            self.is_over = is_last;
            if !record.is_empty() {
                proven.push_back(record.freeze());
            }
        }
        Ok(())
    }

    /// Whether all of the body has come.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes off `data` what the record lacks of so many bytes.
    fn take(&mut self, data: &mut Bytes, bytes: usize) {
        let lacks = bytes.saturating_sub(self.come.len()).min(data.len());
        if self.come.is_empty() {
            self.come.reserve(bytes);
        }
        self.come.put_slice(&data.split_to(lacks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = [7; 8];

    fn secret() -> Secret {
        Secret::new("0123456789abcdef0123456789abcdef")
    }

    fn sealed(body: &[u8], pieces: usize) -> Vec<u8> {
        let mut sealer = Sealer::new(&secret(), NONCE);
        let mut records = Vec::new();
        for piece in body.chunks(pieces) {
            let mut data = Bytes::copy_from_slice(piece);
            while !data.is_empty() {
                records.extend_from_slice(&sealer.seal(&mut data));
            }
        }
        records.extend_from_slice(&sealer.end());
        records
    }

    /// What comes out before a fault, and whether the body is whole.
    fn opened(sealed: &[u8], pieces: usize) -> (Vec<u8>, Result<bool, Unproven>) {
        let mut opener = Opener::new(&secret(), NONCE);
        let mut proven = VecDeque::new();
        let mut end = Ok(());
        for piece in sealed.chunks(pieces) {
            end = opener.open(Bytes::copy_from_slice(piece), &mut proven);
            if end.is_err() {
                break;
            }
        }
        let body: Vec<u8> = proven.iter().flatten().copied().collect();
        (body, end.map(|()| opener.is_over()))
    }

    fn body(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn a_body_comes_through_in_any_pieces() {
        for length in [0, 1, 19, 20, MAX_RECORD, MAX_RECORD + 1, 3 * MAX_RECORD] {
            let body = body(length);
            for (sent, came) in [(1 << 20, 1 << 20), (1000, 7), (7, 1000), (64 << 10, 1)] {
                let records = sealed(&body, sent);
                assert_eq!(opened(&records, came), (body.clone(), Ok(true)), "{length}");
            }
        }
    }

    #[test]
    fn no_changed_byte_comes_through() {
        let body = body(300);
        let records = sealed(&body, 100);
        for at in 0..records.len() {
            let mut changed = records.clone();
            changed[at] ^= 0x10;
            let (came, end) = opened(&changed, 50);
            assert!(body.starts_with(&came), "{at}");
            assert_ne!(end, Ok(true), "{at}");
        }
        for cut in 0..records.len() {
            let (came, end) = opened(&records[..cut], 50);
            assert!(body.starts_with(&came));
            assert_eq!(end, Ok(false), "{cut}");
        }
        let record = HEAD_BYTES + 100;
        let (first, rest) = records.split_at(record);
        let (second, last) = rest.split_at(record);
        for moved in [
            [second, first, last].concat(),
            [first, last].concat(),
            [first, first, second, last].concat(),
            [&records[..], &records[..]].concat(),
        ] {
            assert_ne!(opened(&moved, 50).1, Ok(true));
        }
        let mut other = Opener::new(&secret(), [8; 8]);
        let records = Bytes::from(records);
        assert_eq!(other.open(records, &mut VecDeque::new()), Err(Unproven));
    }
}
