//! HTTP/1.1 framing (RFC 9112), for both sides of the node.
//!
//! What it keeps true:
//! - A message that two parsers could read in two ways is refused: a line ends with CRLF and nothing
//!   else, `Content-Length` never stands beside `Transfer-Encoding`, the only transfer coding is one
//!   `chunked`, there is one valid `Host`, and no field is folded.
//! - What was framing on one connection never becomes framing on another: the fields that carry it are
//!   taken out of the field map, and the encoder writes its own from [`Framing`].
//! - Every buffer is bounded by a [`Limits`] field, and body bytes are handed out without a copy.
//!
//! It does no I/O and knows neither caching nor hop-by-hop rules (`semantics` does).
//!
//! ```text
//!   bytes ─► parse_request_head / parse_response_head ─► head + Framing ─► BodyDecoder ─► Data*, Trailers?, End
//!   head + Framing ─► encode::* ─► bytes
//! ```

mod body;
pub mod encode;
mod head;

pub use body::{BodyDecoder, BodyError, Decoded};
pub use head::{
    HeadError, Preface, RequestHead, ResponseHead, TargetScheme, is_target, parse_request_head,
    parse_response_head, preface,
};

/// More field lines than this are refused whatever [`Limits::max_fields`] says.
pub const FIELDS_CEILING: usize = 256;

/// What one message may cost before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head, from its first line to the empty line: 431 beyond it.
    pub max_head_bytes: usize,
    /// Field lines in a head or trailer section: 431 beyond it, at most [`FIELDS_CEILING`].
    pub max_fields: usize,
    /// Bytes of a request target: 414 beyond it.
    pub max_target_bytes: usize,
    /// Bytes of all chunk extensions of one body together (RFC 9112 §7.1.1).
    pub max_chunk_extension_bytes: usize,
    /// Bytes of a trailer section.
    pub max_trailer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_head_bytes: 32 << 10,
            max_fields: 100,
            max_target_bytes: 8 << 10,
            max_chunk_extension_bytes: 4 << 10,
            max_trailer_bytes: 8 << 10,
        }
    }
}

/// How the end of a body is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body follows.
    None,
    /// Exactly this many bytes follow.
    Length(u64),
    /// The chunked coding, then perhaps trailers.
    Chunked,
    /// The body lasts until the connection ends. Responses only: nobody can tell such a body's end
    /// from its truncation.
    UntilClose,
}
