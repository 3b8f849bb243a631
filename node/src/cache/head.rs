//! The head of a stored response: what was received, what it means for caching, and how it goes out.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::semantics::conditional::Validators;
use crate::semantics::freshness::Freshness;
use crate::semantics::vary::{VariantKey, VarySpec};

/// First bytes of an encoded head; another version is not read, and its response is a miss.
const FORMAT: [u8; 4] = *b"cjh1";

pub struct Head {
    pub status: StatusCode,
    /// End-to-end fields as they will be sent, without framing, `Age` and the fields meant for us alone.
    pub headers: HeaderMap,
    pub freshness: Freshness,
    pub validators: Validators,
    pub vary: VarySpec,
    pub variant: VariantKey,
    /// The delivered fields as HTTP/1 lines, each ended by CRLF.
    lines: Bytes,
}

/// What stands in the index: postcard after [`FORMAT`], guarded by the row's own checksum.
#[derive(Serialize, Deserialize)]
struct Record {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    freshness: Freshness,
    vary: VarySpec,
    variant: VariantKey,
}

impl Head {
    pub fn new(
        status: StatusCode,
        headers: HeaderMap,
        freshness: Freshness,
        vary: VarySpec,
        variant: VariantKey,
    ) -> Head {
        Head {
            status,
            lines: encode_lines(&headers),
            validators: Validators::from_headers(&headers),
            headers,
            freshness,
            vary,
            variant,
        }
    }

    /// Whether later bytes may be joined to those held (RFC 9111 §3.4).
    pub fn is_joinable(&self) -> bool {
        self.status == StatusCode::OK && self.validators.is_strong()
    }

    pub fn selects(&self, request: &HeaderMap) -> bool {
        self.vary.matches(&self.variant, request)
    }

    pub fn same_variant(&self, other: &Head) -> bool {
        self.vary == other.vary && self.variant == other.variant
    }

    /// The fields of every answer from this response, ready for the wire.
    pub fn lines(&self) -> &Bytes {
        &self.lines
    }

    /// Stored for what they mean here, never sent: fields for the cache alone (RFC 9213 §2.2, the
    /// Surrogate ones), and what is computed anew for each answer.
    pub const UNDELIVERED: [HeaderName; 5] = [
        HeaderName::from_static("surrogate-control"),
        HeaderName::from_static("surrogate-key"),
        HeaderName::from_static("caje-cdn-cache-control"),
        header::AGE,
        header::CONTENT_LENGTH,
    ];

    pub fn delivers(name: &HeaderName) -> bool {
        !Head::UNDELIVERED.contains(name)
    }

    pub fn encode(&self) -> Box<[u8]> {
        let record = Record {
            status: self.status.as_u16(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            freshness: self.freshness.clone(),
            vary: self.vary.clone(),
            variant: self.variant.clone(),
        };
        // Serialising plain owned data into memory has no way to fail; an empty head is refused on reading.
        postcard::to_extend(&record, FORMAT.to_vec())
            .unwrap_or_default()
            .into_boxed_slice()
    }

    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let record: Record = postcard::from_bytes(bytes.strip_prefix(&FORMAT)?).ok()?;
        let mut headers = HeaderMap::with_capacity(record.headers.len());
        for (name, value) in record.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_bytes(&value).ok()?);
        }
        Some(Head::new(
            StatusCode::from_u16(record.status).ok()?,
            headers,
            record.freshness,
            record.vary,
            record.variant,
        ))
    }

    /// Seconds since the response was generated, by RFC 9111 §4.2.3.
    pub fn age_secs(&self, now: SystemTime) -> u64 {
        self.freshness.age(now).as_secs()
    }
}

fn encode_lines(headers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::with_capacity(32 * headers.len());
    for (name, value) in headers {
        if !Head::delivers(name) {
            continue;
        }
        lines.put_slice(name.as_str().as_bytes());
        lines.put_slice(b": ");
        lines.put_slice(value.as_bytes());
        lines.put_slice(b"\r\n");
    }
    lines.freeze()
}
